//! What comes from now on, for whoever follows.
//!
//! A follower reads what is kept at its own pace: nothing is queued for it,
//! and nothing waits for it. One that falls too far behind goes on with what
//! is there, and is told how much it missed.
use std::sync::{Arc, atomic::Ordering};

use tokio::sync::watch;

use super::{AttemptEntry, History, MAX_FOLLOWERS, Progress, query::Sieve};
use crate::flow::filter::Filter;

/// How far a follower may be behind, in attempts.
const MAX_BEHIND: u64 = 16_384;
/// How many attempts are looked at in one go.
const BATCH: u64 = 256;

/// What a follower is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    Attempt(Box<AttemptEntry>),
    /// So many attempts are not told of, whatever the filter would have said
    /// of them: the follower, or the store itself, was too slow.
    Skipped(u64),
}

/// Somebody who follows; it is left by dropping it.
#[derive(Debug)]
pub struct Follower {
    history: Arc<History>,
    filter: Option<Filter>,
    progress: watch::Receiver<Progress>,
    /// The last attempt that was looked at.
    at: u64,
    /// As last told.
    dropped: u64,
}

impl History {
    /// From after the attempt `after` on, or from now on. `None` where too
    /// many follow already.
    pub fn follow(self: &Arc<Self>, filter: Option<Filter>, after: Option<u64>) -> Option<Follower> {
        let room = |followers| (followers < MAX_FOLLOWERS).then_some(followers + 1);
        self.followers.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        let progress = self.progress.subscribe();
        let store = self.lock();
        let (newest, dropped) = (store.newest(), store.dropped);
        drop(store);
        let at = after.unwrap_or(newest).min(newest);
        Some(Follower { history: Arc::clone(self), filter, progress, at, dropped })
    }
}

impl Follower {
    /// What there is to tell, at least one thing; `None` once no more will
    /// come.
    pub async fn next(&mut self) -> Option<Vec<Followed>> {
        loop {
            let progress = *self.progress.borrow_and_update();
            let told = self.look();
            if !told.is_empty() {
                return Some(told);
            }
            if self.at < progress.newest {
                // Others have their turn between batches.
                tokio::task::yield_now().await;
            } else if progress.closed || self.progress.changed().await.is_err() {
                return None;
            }
        }
    }

    fn look(&mut self) -> Vec<Followed> {
        let mut told = Vec::new();
        let store = self.history.lock();
        let (oldest, newest) = (store.oldest(), store.newest());
        let reachable = oldest.max((newest + 1).saturating_sub(MAX_BEHIND));
        let mut skipped = reachable.saturating_sub(self.at + 1);
        self.at += skipped;
        skipped += store.dropped.saturating_sub(self.dropped);
        self.dropped = store.dropped;
        if skipped > 0 {
            told.push(Followed::Skipped(skipped));
        }
        let mut sieve = Sieve::new(self.filter.as_ref());
        let until = newest.min(self.at + BATCH);
        for id in self.at + 1..=until {
            let Some((start, chunk, row)) = store.place(id) else { continue };
            if sieve.passes((start, chunk), row, store.heads(id)) {
                told.push(Followed::Attempt(Box::new(AttemptEntry::of(id, chunk, row, &self.history.clock))));
            }
        }
        self.at = until.max(self.at);
        told
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.history.followers.fetch_sub(1, Ordering::AcqRel);
    }
}
