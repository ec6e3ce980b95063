//! Quantiles of waits: a high dynamic range histogram, kept sparse.
//!
//! Buckets are those of HdrHistogram with 7 significant bits (an error below
//! 1 %), in units of 10 µs. A process waits in few different lengths, and
//! there is a histogram for every operation of every process, so only the
//! buckets that hold something are kept.
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds in a unit.
const UNIT: u64 = 10_000;
/// Below this many units each has a bucket of its own; above, every doubling
/// has half as many.
const LINEAR: u64 = 256;
const HALF: u64 = LINEAR / 2;

/// Counts by bucket, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    buckets: Vec<(u16, u64)>,
}

impl Quantiles {
    pub fn add(&mut self, value: Duration) {
        self.add_many(bucket(value), 1);
    }

    pub fn add_all(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add_many(*bucket, *count);
        }
    }

    fn add_many(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |entry| entry.0) {
            Ok(at) => self.buckets[at].1 += count,
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// The least value that at least the share `q` (0 to 1) of all values does
    /// not exceed, to 1 % above. `None` where there are none.
    pub fn at(&self, q: f64) -> Option<Duration> {
        let all: u64 = self.buckets.iter().map(|entry| entry.1).sum();
        let wanted = ((q.clamp(0.0, 1.0) * all as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= wanted).then(|| highest(*bucket))
        })
    }

    /// Cumulative counts for bounds in ascending order: how many values are at
    /// most each. Values within 1 % of a bound may count on either side.
    pub fn cumulative<const N: usize>(&self, bounds: [Duration; N]) -> [u64; N] {
        bounds.map(|bound| {
            let last = bucket(bound);
            self.buckets.iter().take_while(|entry| entry.0 <= last).map(|entry| entry.1).sum()
        })
    }
}

fn bucket(value: Duration) -> u16 {
    let units = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX) / UNIT;
    if units < LINEAR {
        return units as u16;
    }
    // How often the value has to be halved to come below `LINEAR`.
    let halvings = u64::from(units.ilog2() - LINEAR.ilog2() + 1);
    // At most 64 doublings of 128 buckets.
    (LINEAR + (halvings - 1) * HALF + ((units >> halvings) - HALF)) as u16
}

/// The highest value of a bucket.
fn highest(bucket: u16) -> Duration {
    let bucket = u64::from(bucket);
    let units = if bucket < LINEAR {
        bucket + 1
    } else {
        let halvings = (bucket - LINEAR) / HALF + 1;
        let start = (bucket - LINEAR) % HALF + HALF;
        (start + 1).saturating_mul(1_u64.checked_shl(halvings as u32).unwrap_or(u64::MAX))
    };
    Duration::from_nanos(units.saturating_mul(UNIT).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Quantiles::default().at(0.5), None);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(
            mut values in prop::collection::vec(1..100_000_000_000_u64, 1..200), q in 0.0..=1.0_f64,
        ) {
            let mut quantiles = Quantiles::default();
            values.iter().for_each(|value| quantiles.add(Duration::from_nanos(*value)));
            values.sort_unstable();
            let at = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
            let (exact, told) = (values[at] as f64, quantiles.at(q).expect("values").as_nanos() as f64);
            prop_assert!(told >= exact && told <= exact * 1.01 + UNIT as f64, "{told} for {exact}");
        }

        #[test]
        fn merging_is_adding(one in prop::collection::vec(0..u64::MAX, 0..50), other in prop::collection::vec(0..u64::MAX, 0..50)) {
            let of = |values: &mut dyn Iterator<Item = &u64>| {
                let mut quantiles = Quantiles::default();
                values.for_each(|value| quantiles.add(Duration::from_nanos(*value)));
                quantiles
            };
            let mut merged = of(&mut one.iter());
            merged.add_all(&of(&mut other.iter()));
            prop_assert_eq!(merged, of(&mut one.iter().chain(&other)));
        }

        #[test]
        fn buckets_are_ordered(one: u64, other: u64) {
            let (one, other) = (one.min(other), one.max(other));
            prop_assert!(bucket(Duration::from_nanos(one)) <= bucket(Duration::from_nanos(other)));
            prop_assert!(highest(bucket(Duration::from_nanos(one))) >= Duration::from_nanos(one));
        }
    }
}
