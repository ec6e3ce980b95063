//! How retries are spread over a process's life, in bounded memory.
//!
//! Time is cut into equal slots; where there would be more than [`SLOTS`],
//! neighbours are merged and the slots become twice as long. Sums stay exact.
use std::time::Duration;

use crate::flow::Moment;

/// The most slots; even.
const SLOTS: usize = 48;
/// How long slots are at first.
const SHORTEST: Duration = Duration::from_millis(100);

/// Counts by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    from: Moment,
    slot: Duration,
    counts: Vec<u64>,
}

impl Series {
    pub(super) fn new(from: Moment) -> Self {
        Self { from, slot: SHORTEST, counts: Vec::new() }
    }

    /// What came before the beginning counts for the first slot.
    pub(super) fn add(&mut self, at: Moment) {
        let mut index = self.index(at);
        while index >= SLOTS {
            self.merge();
            index = self.index(at);
        }
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
    }

    fn index(&self, at: Moment) -> usize {
        usize::try_from(at.since(self.from).as_nanos() / self.slot.as_nanos().max(1)).unwrap_or(usize::MAX)
    }

    fn merge(&mut self) {
        self.counts = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
        self.slot = self.slot.saturating_mul(2);
    }

    /// How long a slot is.
    pub fn slot(&self) -> Duration {
        self.slot
    }

    /// One count for each slot from the beginning up to `until`, or to the
    /// last that is not zero if that is later.
    pub fn counts(&self, until: Moment) -> Vec<u64> {
        let mut series = self.clone();
        while series.index(until) >= SLOTS {
            series.merge();
        }
        let length = series.counts.len().max(series.index(until) + 1);
        series.counts.resize(length, 0);
        series.counts
    }

    /// [`Self::slot`] of what [`Self::counts`] gives.
    pub fn slot_until(&self, until: Moment) -> Duration {
        let mut series = self.clone();
        while series.index(until) >= SLOTS {
            series.merge();
        }
        series.slot
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_grow_with_time() {
        let mut series = Series::new(Moment(0));
        for second in [0, 1, 2, 59] {
            series.add(Moment(second * 1_000_000_000));
        }
        assert_eq!(series.slot(), Duration::from_millis(1_600));
        let counts = series.counts(Moment(60_000_000_000));
        assert_eq!((counts.len(), counts[0], counts[1], counts[36]), (38, 2, 1, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_memory_is_bounded(moments: Vec<u64>, until: u64) {
            let mut series = Series::new(Moment(5));
            moments.iter().for_each(|at| series.add(Moment(*at)));
            let counts = series.counts(Moment(until));
            prop_assert!(counts.len() <= SLOTS);
            prop_assert_eq!(counts.iter().sum::<u64>(), moments.len() as u64);
        }
    }
}
