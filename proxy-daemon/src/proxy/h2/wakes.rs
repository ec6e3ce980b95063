//! A task that wakes itself while it runs.
//!
//! A connection's streams and both of its sides live in one task and wake each
//! other: a request that is passed on wakes the side that sends it. Were the
//! runtime told, it would take the task for one that yields, run it once more,
//! and rouse another thread to share the work. So what wakes the task while it
//! is polled is noted, and it looks again by itself.
//!
//! In: polls. Out: the same polls, again for as long as something woke the task
//! meanwhile, up to a bound. No wake is lost: one that comes when the poll has
//! ended goes to the runtime.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Looks in one poll. The runtime's budget may be what makes a look futile, and
/// only a return renews it.
const MAX_LOOKS: usize = 4;

/// Nobody polls.
const IDLE: u8 = 0;
/// Bits: somebody polls; woken since the last look began.
const POLLED: u8 = 1;
const WOKEN: u8 = 2;

#[derive(Debug)]
struct State {
    now: AtomicU8,
    task: AtomicWaker,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Polled, the task looks again by itself; woken before, it will run.
        if self.now.fetch_or(WOKEN, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Wakes {
    state: Arc<State>,
    waker: Waker,
}

impl Wakes {
    pub(super) fn new() -> Self {
        let state = Arc::new(State { now: AtomicU8::new(IDLE), task: AtomicWaker::new() });
        Self { waker: Arc::clone(&state).into(), state }
    }

    /// Everything is looked at from here on, so that nothing of what woke the
    /// task before is left to do.
    pub(super) fn begin_look(&self) {
        self.state.now.swap(POLLED, Ordering::AcqRel);
    }

    /// Polls until nothing has woken the task meanwhile.
    pub(super) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.task.register(context.waker());
        let mut inner = Context::from_waker(&self.waker);
        for _ in 0..MAX_LOOKS {
            self.begin_look();
            let found = look(&mut inner);
            if found.is_ready() {
                self.state.now.store(IDLE, Ordering::Release);
                return found;
            }
            if self.state.now.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        self.state.now.store(IDLE, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize},
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One poll in vain, of which `look` does each look, and is told its number:
    /// how many looks there were, and who counts what the runtime is told.
    fn polled(wakes: &Wakes, mut look: impl FnMut(usize, &Waker)) -> (usize, Arc<Counted>) {
        let counted = Arc::new(Counted::default());
        let waker = Arc::clone(&counted).into();
        let mut looks = 0;
        let polled = wakes.poll(&mut Context::from_waker(&waker), |context| {
            looks += 1;
            look(looks, context.waker());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        (looks, counted)
    }

    #[test]
    fn a_task_that_wakes_itself_looks_again() {
        let wakes = Wakes::new();
        let (looks, counted) = polled(&wakes, |number, waker| {
            if number < 3 {
                waker.wake_by_ref();
            }
        });
        assert_eq!((looks, counted.0.load(Ordering::Relaxed)), (3, 0));
        wakes.waker.wake_by_ref();
        wakes.waker.wake_by_ref();
        assert_eq!(counted.0.load(Ordering::Relaxed), 1, "once for both");
    }

    #[test]
    fn a_task_that_never_rests_yields() {
        let (looks, counted) = polled(&Wakes::new(), |_, waker| waker.wake_by_ref());
        assert_eq!((looks, counted.0.load(Ordering::Relaxed)), (MAX_LOOKS, 1));
    }

    #[test]
    fn what_woke_it_before_a_look_is_done_with_it() {
        let wakes = Wakes::new();
        let (looks, counted) = polled(&wakes, |_, waker| {
            waker.wake_by_ref();
            wakes.begin_look();
        });
        assert_eq!((looks, counted.0.load(Ordering::Relaxed)), (1, 0));
    }

    /// Whenever a wake from another thread comes, what it is about is seen.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_from_elsewhere_is_lost() {
        let wakes = Wakes::new();
        for round in 0..20_000 {
            let done = Arc::new(AtomicBool::new(false));
            let (told, waker) = (Arc::clone(&done), wakes.waker.clone());
            tokio::spawn(async move {
                told.store(true, Ordering::Release);
                waker.wake();
            });
            let seen = std::future::poll_fn(|context| {
                wakes.poll(context, |_| if done.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending })
            });
            let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
            assert!(seen.is_ok(), "round {round}");
        }
    }
}
