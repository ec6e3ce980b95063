//! What a few rows that ended one after the other come to, so that most of
//! what is kept need not be looked at to count it, or to pass it by.
use super::{chunk::Row, series::Bucket};

/// How many rows a block has.
pub(super) const BLOCK: usize = 64;

/// Times in ns since the instance's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// The first and the last end.
    pub(super) ended: (u64, u64),
    /// The first moment that any of them began at, or began to wait for.
    pub(super) begun: u64,
    /// From the first begin of a wait to the last end of one; no time where
    /// there was none.
    pub(super) waits: (u64, u64),
    pub(super) counts: Bucket,
}

impl Block {
    /// `rows`: of one chunk, one after the other, and not none.
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut made = Self { ended: (u64::MAX, 0), begun: u64::MAX, waits: (u64::MAX, 0), counts: Bucket::default() };
        for row in rows {
            made.ended = (made.ended.0.min(row.ended), made.ended.1.max(row.ended));
            made.begun = made.begun.min(row.begun());
            made.counts.count(row);
            if let Some(wait) = row.wait() {
                made.waits = (made.waits.0.min(row.begun()), made.waits.1.max(row.started));
                made.counts.backoff_ms += wait.as_nanos() as f64 / 1e6;
            }
        }
        made
    }

    /// None of them can have been under way within `[from, to]`.
    pub(super) fn lies_outside(&self, (from, to): (u64, u64)) -> bool {
        self.ended.1 < from || self.begun > to
    }
}
