//! A token bucket, as a value.
//!
//! In: moments at which something arrives. Out: whether a token was there for
//! it. Over any time no more pass than the burst and what the rate brings; a
//! moment earlier than the last brings nothing.
use super::Rate;
use crate::flow::Moment;

/// How a bucket is filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inflow {
    per_second: f64,
    burst: f64,
}

impl Inflow {
    pub(super) fn of(rate: &Rate) -> Self {
        let per_second = rate.count / rate.per.as_secs_f64().max(1e-9);
        let burst = rate.burst.map_or((per_second / 10.0).max(1.0), |burst| f64::from(burst.get()));
        Self { per_second, burst }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: f64,
    at: Moment,
}

impl Bucket {
    pub(super) fn full(inflow: Inflow, now: Moment) -> Self {
        Self { tokens: inflow.burst, at: now }
    }

    /// The bucket as it is then.
    fn filled(self, inflow: Inflow, now: Moment) -> Self {
        let gained = now.since(self.at).as_secs_f64() * inflow.per_second;
        Self { tokens: (self.tokens + gained).min(inflow.burst), at: self.at.max(now) }
    }

    pub(super) fn is_empty(self, inflow: Inflow, now: Moment) -> bool {
        self.filled(inflow, now).tokens < 1.0
    }

    /// Takes a token; false if there is none.
    pub(super) fn take(&mut self, inflow: Inflow, now: Moment) -> bool {
        *self = self.filled(inflow, now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::rules::RateKey;

    fn inflow(count: f64, burst: Option<u32>) -> Inflow {
        let burst = burst.and_then(NonZeroU32::new);
        Inflow::of(&Rate { count, per: Duration::from_secs(1), burst, key: RateKey::Rule })
    }

    #[test]
    fn a_burst_is_a_tenth_of_a_second_and_at_least_one() {
        assert_eq!(inflow(3500.0, None).burst, 350.0);
        assert_eq!(inflow(0.5, None).burst, 1.0);
        assert_eq!(inflow(3500.0, Some(7)).burst, 7.0);
    }

    proptest! {
        #[test]
        fn no_more_pass_than_came_in(
            count in 0.1_f64..5_000.0,
            burst in 1_u32..100,
            gaps in prop::collection::vec(0_u64..300_000_000, 1..300),
            back in 0_u64..1_000_000,
        ) {
            let inflow = inflow(count, Some(burst));
            let mut bucket = Bucket::full(inflow, Moment(0));
            let (mut now, mut passed) = (0, 0_u32);
            for (index, gap) in gaps.iter().enumerate() {
                now += gap;
                let at = if index % 5 == 4 { now.saturating_sub(back) } else { now };
                passed += u32::from(bucket.take(inflow, Moment(at)));
                prop_assert!(f64::from(passed) <= f64::from(burst) + count * now as f64 / 1e9 + 1e-6);
            }
        }

        #[test]
        fn nothing_that_came_in_is_lost_under_load(count in 1_u32..2_000, burst in 1_u32..50, seconds in 1_u64..5) {
            let inflow = inflow(f64::from(count), Some(burst));
            let mut bucket = Bucket::full(inflow, Moment(0));
            // Enough arrivals to empty it at once, then four for each token.
            let mut passed = (0..burst).filter(|_| bucket.take(inflow, Moment(0))).count() as f64;
            let arrivals = u64::from(count) * 4 * seconds;
            for index in 1..=arrivals {
                let at = Moment(index * seconds * 1_000_000_000 / arrivals);
                passed += f64::from(u8::from(bucket.take(inflow, at)));
            }
            let came = f64::from(count) * seconds as f64;
            prop_assert!(passed <= f64::from(burst) + came + 1e-6);
            // A bucket for one token is full until the next arrival: a gap is
            // lost with each.
            let used = if burst == 1 { came / 1.25 } else { came };
            prop_assert!(passed >= f64::from(burst) + used - 1.0 - 1e-6, "{} of {}", passed, came);
        }
    }
}
