//! The time that a set of spans covers together, summed as they come.
//!
//! Backoff ends when an attempt begins, so spans arrive nearly in the order
//! of their ends, and only the latest disjoint ones can still grow together.
//! Older ones are kept as a sum. A span that reaches back behind what is kept
//! counts from there on; how much of it was cut off is counted. Until that
//! happens the sum is exact, in whatever order spans come.
use std::{collections::VecDeque, time::Duration};

use crate::flow::Moment;

#[derive(Clone, Debug)]
pub(super) struct Union {
    /// Disjoint, not touching, ascending.
    spans: VecDeque<(Moment, Moment)>,
    limit: usize,
    /// Of all spans, those no longer kept included.
    covered: u64,
    /// Where the last span no longer kept ends.
    horizon: Moment,
    cut: u64,
}

impl Union {
    /// Keeps at most `limit` disjoint spans.
    pub(super) fn new(limit: usize) -> Self {
        Self { spans: VecDeque::new(), limit: limit.max(1), covered: 0, horizon: Moment(0), cut: 0 }
    }

    pub(super) fn add(&mut self, from: Moment, to: Moment) {
        let begin = from.max(self.horizon);
        if from < begin {
            self.cut = self.cut.saturating_add(begin.min(to).0.saturating_sub(from.0));
        }
        if to <= begin {
            return;
        }
        let first = self.spans.partition_point(|span| span.1 < begin);
        let after = self.spans.partition_point(|span| span.0 <= to);
        let mut whole = (begin, to);
        // Those from `first` up to `after` overlap or touch the new one.
        for span in self.spans.drain(first..after.max(first)) {
            self.covered -= span.1.0 - span.0.0;
            whole = (whole.0.min(span.0), whole.1.max(span.1));
        }
        self.spans.insert(first, whole);
        self.covered += whole.1.0 - whole.0.0;
        if self.spans.len() > self.limit
            && let Some((_, end)) = self.spans.pop_front()
        {
            self.horizon = end;
        }
    }

    pub(super) fn covered(&self) -> Duration {
        Duration::from_nanos(self.covered)
    }

    /// How much of the spans was left out of account at most.
    pub(super) fn cut(&self) -> Duration {
        Duration::from_nanos(self.cut)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(spans: &[(u64, u64)]) -> u64 {
        (0..400).filter(|at| spans.iter().any(|(from, to)| from <= at && at < to)).count() as u64
    }

    fn union(limit: usize, spans: &[(u64, u64)]) -> Union {
        let mut union = Union::new(limit);
        for (from, to) in spans {
            union.add(Moment(*from), Moment(*to));
        }
        union
    }

    #[test]
    fn a_span_may_bridge_several() {
        let union = union(8, &[(0, 10), (20, 30), (40, 50), (5, 45), (7, 7), (9, 8)]);
        assert_eq!(union.covered(), Duration::from_nanos(50));
        assert_eq!(union.cut(), Duration::ZERO);
    }

    #[test]
    fn what_reaches_behind_the_horizon_is_cut_and_counted() {
        let union = union(2, &[(0, 10), (20, 30), (40, 50), (5, 60)]);
        assert_eq!(union.covered(), Duration::from_nanos(60));
        assert_eq!(union.cut(), Duration::from_nanos(5));
    }

    proptest! {
        #[test]
        fn equals_the_naive_union_in_any_order(spans in prop::collection::vec((0..300_u64, 0..100_u64), 0..40)) {
            let spans: Vec<_> = spans.into_iter().map(|(from, length)| (from, from + length)).collect();
            prop_assert_eq!(union(64, &spans).covered().as_nanos(), u128::from(naive(&spans)));
        }

        #[test]
        fn bounded_memory_never_overstates_and_owns_up(
            spans in prop::collection::vec((0..300_u64, 0..100_u64), 0..40), limit in 1..4_usize,
        ) {
            let spans: Vec<_> = spans.into_iter().map(|(from, length)| (from, from + length)).collect();
            let union = union(limit, &spans);
            let (naive, covered) = (naive(&spans), u64::try_from(union.covered().as_nanos()).expect("small"));
            prop_assert!(union.spans.len() <= limit);
            prop_assert!(covered <= naive);
            prop_assert!(naive <= covered + u64::try_from(union.cut().as_nanos()).expect("small"));
        }

        #[test]
        fn in_order_ends_within_reach_are_exact(
            steps in prop::collection::vec((1..3_u64, 0..6_u64), 0..100),
        ) {
            // With ends at least one apart, a span of at most 6 reaches back over at most 4 disjoint ones.
            let mut end = 10;
            let spans: Vec<_> = steps.iter().map(|(step, length)| { end += step; (end - length, end) }).collect();
            prop_assert_eq!(union(8, &spans).covered().as_nanos(), u128::from(naive(&spans)));
        }
    }
}
