//! Ended attempts for whoever watches: event files, traces, live views.
//!
//! In: each attempt, once it is in the ledger. Out: the same to every
//! subscriber, through a bounded queue of its own. The data path never waits:
//! what a slow subscriber has no room for is dropped, and counted.
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::flow::Attempt;

#[derive(Debug, Default)]
pub struct Feed {
    /// Somebody listens: without, an attempt costs one load.
    heard: AtomicBool,
    subscribers: Mutex<Vec<Subscriber>>,
    /// Of all that there ever were.
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Arc<Attempt>>,
    dropped: Arc<AtomicU64>,
}

/// One watcher's end. It is left by dropping it.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<Arc<Attempt>>,
    dropped: Arc<AtomicU64>,
}

impl Feed {
    /// Everything from now on, at most `room` attempts behind.
    pub fn subscribe(&self, room: usize) -> Subscription {
        let (sender, queue) = mpsc::channel(room.max(1));
        let dropped = Arc::new(AtomicU64::new(0));
        self.lock().push(Subscriber { queue: sender, dropped: Arc::clone(&dropped) });
        self.heard.store(true, Ordering::Relaxed);
        Subscription { queue, dropped }
    }

    /// Nothing is copied: what is told of is nobody's to change any more.
    pub fn publish(&self, attempt: &Arc<Attempt>) {
        if !self.heard.load(Ordering::Relaxed) {
            return;
        }
        let mut subscribers = self.lock();
        subscribers.retain(|subscriber| match subscriber.queue.try_send(Arc::clone(attempt)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                subscriber.dropped.fetch_add(1, Ordering::Relaxed);
                self.dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        if subscribers.is_empty() {
            self.heard.store(false, Ordering::Relaxed);
        }
    }

    /// What watchers had no room for, all of them together.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// No more will come: subscribers end once they have read what they have.
    pub fn close(&self) {
        self.lock().clear();
        self.heard.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next attempt; `None` once the feed is closed.
    pub async fn next(&mut self) -> Option<Arc<Attempt>> {
        self.queue.recv().await
    }

    /// As [`Self::next`], for a thread of its own.
    pub fn wait(&mut self) -> Option<Arc<Attempt>> {
        self.queue.blocking_recv()
    }

    /// As [`Self::next`], and `None` too where nothing is there yet.
    pub fn try_next(&mut self) -> Option<Arc<Attempt>> {
        self.queue.try_recv().ok()
    }

    /// How many attempts there was no room for, so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::tests::attempt;

    #[tokio::test]
    async fn every_subscriber_gets_all_that_it_has_room_for() {
        let feed = Feed::default();
        feed.publish(&Arc::new(attempt()));
        let (mut wide, mut narrow) = (feed.subscribe(8), feed.subscribe(2));
        (0..5).for_each(|_| feed.publish(&Arc::new(attempt())));
        feed.close();
        let mut got = [0, 0];
        while wide.next().await.is_some() {
            got[0] += 1;
        }
        while narrow.next().await.is_some() {
            got[1] += 1;
        }
        assert_eq!((got, wide.dropped(), narrow.dropped()), ([5, 2], 0, 3));
        assert_eq!(feed.dropped(), 3);
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let feed = Feed::default();
        drop(feed.subscribe(1));
        feed.publish(&Arc::new(attempt()));
        assert!(feed.lock().is_empty() && !feed.heard.load(Ordering::Relaxed));
    }
}
