//! What the kernel side is told of how much this process can take, and what
//! becomes of the rest.
use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::maps::{Array, MapData, MapError};
use nix::time::{ClockId, clock_gettime};
use retryscope_ebpf::Gate as Entry;

use super::{RedirectError, opened};

/// What becomes of connects that cannot be carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fail {
    /// They go direct, unobserved.
    #[default]
    Open,
    /// They are refused.
    Closed,
}

/// The kernel's gate, and how it is set.
pub(super) struct Gate {
    map: Array<MapData, Entry>,
    descriptor: OwnedFd,
    fail: Fail,
    bypassed: bool,
    /// As it was last said: until when, and how much room.
    last: (u64, i64),
}

/// From loading to the first accept.
const GRACE: Duration = Duration::from_secs(60);

impl Gate {
    pub(super) fn new(map: OwnedFd, fail: Fail) -> Result<Self, RedirectError> {
        let failed = |error: std::io::Error| RedirectError::of("opening the maps", &error);
        let descriptor = map.try_clone().map_err(failed)?;
        Ok(Self { map: opened(map)?, descriptor, fail, bypassed: false, last: (0, 0) })
    }

    /// Lets everything in until this process begins to say what it can take.
    pub(super) fn open(mut self) -> Self {
        self.renew(GRACE, u64::MAX);
        self
    }

    /// This process answers, and can take so many connects more, until it
    /// says so again or the time is over.
    pub(super) fn renew(&mut self, time: Duration, room: u64) {
        let until = now().saturating_add(time);
        self.set(nanos(until), i64::try_from(room).unwrap_or(i64::MAX));
    }

    /// From now on every connect goes direct; or no longer. Nothing else
    /// changes.
    pub(super) fn bypass(&mut self, on: bool) -> Result<(), RedirectError> {
        self.bypassed = on;
        let (until, room) = self.last;
        self.try_set(until, room).map_err(|error| RedirectError::of("setting the kernel's gate", &error))
    }

    fn set(&mut self, until: u64, room: i64) {
        // An entry of an array is always there to be written.
        if let Err(error) = self.try_set(until, room) {
            tracing::error!(%error, "the kernel's gate cannot be set");
        }
    }

    fn try_set(&mut self, until: u64, room: i64) -> Result<(), MapError> {
        let closed = if self.fail == Fail::Closed { Entry::CLOSED } else { 0 };
        let bypassed = if self.bypassed { Entry::BYPASSED } else { 0 };
        self.last = (until, room);
        self.map.set(0, Entry { until, room, flags: closed | bypassed }, 0)
    }

    fn is_bypassed(&self) -> bool {
        self.map.get(&0, 0).is_ok_and(|entry| entry.flags & Entry::BYPASSED != 0)
    }
    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Nobody answers any more, and connects are refused: for a process that has
/// outlived the one that did. False where it had been bypassed: then they are
/// to go direct, and nothing is done.
///
/// The map is opened at once, and the gate shut when that is called.
pub fn shutter(map: OwnedFd) -> Result<impl FnOnce() -> Result<bool, RedirectError>, RedirectError> {
    let mut gate = Gate::new(map, Fail::Closed)?;
    Ok(move || {
        if gate.is_bypassed() {
            return Ok(false);
        }
        gate.try_set(0, 0).map_err(|error| RedirectError::of("setting the kernel's gate", &error))?;
        Ok(true)
    })
}

/// CLOCK_MONOTONIC, which the kernel side reads as well.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
