//! What a job measured, as numbers.
use std::time::Duration;

/// The value that `share` of the samples do not exceed; `samples` is sorted
/// on the way. Zero where there are none.
pub(crate) fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let Some(last) = samples.len().checked_sub(1) else { return Duration::ZERO };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
    samples[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_none_one_and_many() {
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
        assert_eq!(quantile(&mut [Duration::from_secs(3)], 0.99), Duration::from_secs(3));
        let mut many: Vec<_> = (0..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut many, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&mut many, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&mut many, 1.0), Duration::from_millis(100));
    }
}
