//! Ended attempts, kept for whoever looks at them later or follows them: the
//! store behind every view.
//!
//! In: the feed, read by a thread of its own, so that the data path never
//! waits. Out: answers to questions about what is kept ([`Query`]), and what
//! comes from now on ([`Follower`]). Attempts are numbered from 1 in the
//! order in which they ended.
//!
//! Invariants: credentials are taken out before anything is kept, so that no
//! question can find them; an attempt takes [`ROW`] bytes on the average, or
//! older ones go before their time; heads are kept for the latest alone,
//! within [`HEADS`] bytes; what was missed is counted, and told.
mod block;
mod chunk;
mod curl;
mod entry;
mod follow;
mod query;
mod scratch;
mod series;
mod store;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use curl::Curl;
pub use entry::{AttemptDetail, AttemptEntry, CallEntry, CallsPage, Page};
pub use follow::{Followed, Follower};
pub use query::{MAX_LIMIT, Query, SCANNED};
pub use series::{Bucket, MAX_BUCKETS, ProcessSeries, Series, Span};
use store::Store;
use tokio::sync::watch;

use crate::{
    flow::{Attempt, Clock},
    proxy::{Feed, Subscription},
};

/// How many attempts are kept unless told otherwise, and at most.
pub const KEPT: usize = 100_000;
pub const MAX_KEPT: usize = 1_000_000;
/// What an attempt may take on the average, in bytes, without its heads.
pub const ROW: usize = 256;
/// What all heads may take, in bytes.
pub const HEADS: usize = 32 << 20;
/// How far the store may be behind, in attempts.
const ROOM: usize = 65_536;
/// Between two looks at the feed, once it has had something within this time so
/// often: to be woken by each of many attempts would cost the data path a system
/// call every time.
const PAUSE: Duration = Duration::from_millis(10);
const BUSY: u32 = 32;
/// How many attempts are taken in one go.
const BATCH: usize = 256;
/// How many may follow at once.
const MAX_FOLLOWERS: usize = 64;

/// How far the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// The latest attempt's number; 0 before the first.
    newest: u64,
    /// No more will come.
    closed: bool,
}

/// What is kept, shared by who fills it and who asks.
pub struct History {
    store: Mutex<Store>,
    clock: Clock,
    progress: watch::Sender<Progress>,
    followers: AtomicUsize,
}

impl History {
    /// Keeps the latest `keep` attempts, at most [`MAX_KEPT`]; 0 keeps none.
    pub fn new(clock: Clock, keep: usize) -> Self {
        Self {
            store: Mutex::new(Store::new(keep.min(MAX_KEPT), HEADS)),
            clock,
            progress: watch::Sender::new(Progress::default()),
            followers: AtomicUsize::new(0),
        }
    }

    /// Takes all that comes, until the feed is closed.
    pub fn fill(self: &Arc<Self>, feed: &Feed) -> JoinHandle<()> {
        let mut subscription = feed.subscribe(ROOM);
        let history = Arc::clone(self);
        std::thread::spawn(move || {
            let (mut last, mut soon) = (Instant::now(), 0);
            while let Some(first) = subscription.wait() {
                soon = if last.elapsed() < PAUSE { soon + 1 } else { 0 };
                let busy = soon >= BUSY;
                if history.take(first, &mut subscription, busy) && busy {
                    std::thread::sleep(PAUSE);
                }
                last = Instant::now();
            }
            history.close();
        })
    }

    /// The attempt, and what else is there already. Whether that was all.
    fn take(&self, first: Arc<Attempt>, subscription: &mut Subscription, busy: bool) -> bool {
        let mut store = self.lock();
        store.add(first, busy);
        let mut all = false;
        for _ in 1..BATCH {
            let Some(next) = subscription.try_next() else {
                all = true;
                break;
            };
            store.add(next, busy);
        }
        store.dropped = subscription.dropped();
        let newest = store.newest();
        drop(store);
        self.progress.send_modify(|progress| progress.newest = newest);
        all
    }

    /// No more will come.
    fn close(&self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }

    /// Adds an attempt by hand, as the feed would.
    pub fn add(&self, attempt: &Attempt) {
        let mut store = self.lock();
        store.add(Arc::new(attempt.clone()), false);
        let newest = store.newest();
        drop(store);
        self.progress.send_modify(|progress| progress.newest = newest);
    }

    /// Whether anything is kept at all.
    pub fn is_kept(&self) -> bool {
        self.lock().keeps()
    }

    /// What is kept takes so many bytes: rows, and heads.
    pub fn bytes(&self) -> (usize, usize) {
        self.lock().bytes()
    }

    /// Waits until nobody follows any more, or for so long: they are told of
    /// the end.
    pub async fn left(&self, patience: Duration) {
        let gone = async {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while self.followers.load(Ordering::Acquire) > 0 {
                tick.tick().await;
            }
        };
        let _ = tokio::time::timeout(patience, gone).await;
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}
