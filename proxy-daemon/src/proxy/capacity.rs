//! How many connections this process can take, said to the kernel several
//! times a second: what exceeds it then goes direct, or is refused, instead
//! of waiting here.
//!
//! In: the limit of open files, the connections under way, the accept queues.
//! Out: [`Capacity::room`], from a task on the very runtime that serves the
//! connections: where that is starved or stopped, nothing is said, and the
//! kernel takes this process for stalled.
use std::{
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};

use crate::redirect;

/// How often the kernel is told.
pub const PULSE: Duration = Duration::from_millis(250);
/// For how long it then believes it. Longer than a busy machine keeps a ready
/// task waiting, shorter than a client waits for its connection.
pub const BELIEF: Duration = Duration::from_secs(2);

/// Descriptors for all that is no connection: listeners, maps, links, files,
/// the control socket and who is connected to it, processes that are watched.
const RESERVED: u64 = 64;
/// The same where there are so many that it makes no difference.
const RESERVED_OF_MANY: u64 = 8192;
/// Of each connection: the client's socket and the upstream's.
const EACH: u64 = 2;

/// How many connections are under way, and may be.
#[derive(Debug)]
pub struct Capacity {
    most: u64,
    open: AtomicU64,
    /// The system was out of descriptors or memory since it was last asked.
    exhausted: AtomicBool,
    /// As of when the kernel was last told: the room, and who waited to be
    /// accepted.
    told: AtomicU64,
    waiting: AtomicU64,
}

/// What the kernel was last told, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections under way.
    pub open: u64,
    /// As many as there may be.
    pub most: u64,
    /// How many more there was room for.
    pub room: u64,
    /// How many waited to be accepted.
    pub waiting: u64,
}

/// A connection under way.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Capacity);

impl Capacity {
    /// As many connections as the limit of open files allows now.
    pub fn of_files() -> Self {
        // What cannot be asked for is no limit.
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self::of(files)
    }

    fn of(files: u64) -> Self {
        let reserved = if files > 4 * RESERVED_OF_MANY { RESERVED_OF_MANY } else { RESERVED };
        let most = (files.saturating_sub(reserved) / EACH).max(1);
        Self {
            most,
            open: AtomicU64::new(0),
            exhausted: AtomicBool::new(false),
            told: AtomicU64::new(most),
            waiting: AtomicU64::new(0),
        }
    }

    pub(super) fn enter(&self) -> Place<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }

    /// The system said that it is out of something.
    pub(super) fn exhausted(&self) {
        self.exhausted.store(true, Ordering::Relaxed);
    }

    /// How many connections more there is room for, with these listeners.
    pub fn room(&self, listeners: &[BorrowedFd<'_>]) -> u64 {
        let queues = listeners.iter().filter_map(|listener| redirect::queue(listener).ok());
        let (waiting, places) = queues.fold((0, u64::MAX), |(waiting, places), (queued, most)| {
            let free = u64::from(most.saturating_sub(queued));
            (waiting + u64::from(queued), places.min(free))
        });
        let room = self.room_with(waiting, places);
        self.told.store(room, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
        room
    }

    pub fn load(&self) -> Load {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Load { open: of(&self.open), most: self.most, room: of(&self.told), waiting: of(&self.waiting) }
    }

    fn room_with(&self, waiting: u64, places: u64) -> u64 {
        if self.exhausted.swap(false, Ordering::Relaxed) {
            return 0;
        }
        let taken = self.open.load(Ordering::Relaxed).saturating_add(waiting);
        self.most.saturating_sub(taken).min(places)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_files_and_queues_leave() {
        let capacity = Capacity::of(1024);
        assert_eq!(capacity.room_with(0, u64::MAX), 480);
        assert_eq!(capacity.room_with(80, 4096), 400);
        assert_eq!(capacity.room_with(0, 7), 7);
        let places: Vec<_> = (0..480).map(|_| capacity.enter()).collect();
        assert_eq!(capacity.room_with(0, 4096), 0);
        drop(places);
        assert_eq!(capacity.room_with(0, 4096), 480);
        assert_eq!(Capacity::of(1 << 20).room_with(0, u64::MAX), ((1 << 20) - RESERVED_OF_MANY) / 2);
        assert_eq!(Capacity::of(3).room_with(0, 9), 1);
    }

    #[test]
    fn exhaustion_closes_for_one_pulse() {
        let capacity = Capacity::of(1024);
        capacity.exhausted();
        assert_eq!(capacity.room_with(0, 4096), 0);
        assert_eq!(capacity.room_with(0, 4096), 480);
    }
}
