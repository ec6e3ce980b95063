//! What the kernel side is told of how much this process can take, and what
//! becomes of the rest.
use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::maps::{Array, MapData};
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
}

/// From loading to the first accept.
const GRACE: Duration = Duration::from_secs(60);

impl Gate {
    pub(super) fn new(map: OwnedFd, fail: Fail) -> Result<Self, RedirectError> {
        let failed = |error: std::io::Error| RedirectError::of("opening the maps", &error);
        let descriptor = map.try_clone().map_err(failed)?;
        Ok(Self { map: opened(map)?, descriptor, fail })
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

    fn set(&mut self, until: u64, room: i64) {
        let entry = Entry { until, room, closed: u64::from(self.fail == Fail::Closed) };
        // An entry of an array is always there to be written.
        if let Err(error) = self.map.set(0, entry, 0) {
            tracing::error!(%error, "the kernel's gate cannot be set");
        }
    }

    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Nobody answers any more, and connects are refused: for a process that has
/// outlived the one that did.
pub fn shut(map: OwnedFd) -> Result<(), RedirectError> {
    Gate::new(map, Fail::Closed).map(|mut gate| gate.set(0, 0))
}

/// CLOCK_MONOTONIC, which the kernel side reads as well.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
