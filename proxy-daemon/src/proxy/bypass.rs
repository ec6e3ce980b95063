//! The kill switch: the target's new connections go direct at once, whatever
//! else this process does or fails to do.
//!
//! In: a wish, by whoever may use the control socket. Out: the gate, set; and
//! what was under way goes on, or, where that is wanted, leaves as it does
//! when an instance ends: what is idle at once, what is busy after its answer.
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::Gate;
use crate::flow::{Clock, Moment};

/// Who is told that it should leave.
#[derive(Debug)]
pub(super) struct Leaving(Mutex<watch::Sender<bool>>);

impl Default for Leaving {
    fn default() -> Self {
        Self(Mutex::new(watch::Sender::new(false)))
    }
}

impl Leaving {
    /// Becomes true when the connection that holds it should leave.
    pub(super) fn notice(&self) -> watch::Receiver<bool> {
        self.sender().subscribe()
    }

    /// Tells everybody who is here, and nobody who comes later.
    fn now(&self) {
        let mut sender = self.sender();
        sender.send_replace(true);
        *sender = watch::Sender::new(false);
    }

    /// Tells everybody who is here or comes later.
    pub(super) fn for_good(&self) {
        self.sender().send_replace(true);
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, watch::Sender<bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the instance is bypassed.
#[derive(Debug)]
pub struct Bypass {
    gate: Arc<dyn Gate>,
    clock: Clock,
    pub(super) leaving: Leaving,
    since: Mutex<Option<Moment>>,
}

impl Bypass {
    /// `on`: the gate is set already.
    pub fn new(gate: Arc<dyn Gate>, clock: Clock, on: bool) -> Self {
        let since = Mutex::new(on.then(|| clock.now()));
        Self { gate, clock, leaving: Leaving::default(), since }
    }

    /// Since when it is bypassed, if it is.
    pub fn since(&self) -> Option<Moment> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets new connections go direct, or no longer. With `now`, those under
    /// way are asked to leave.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn switch(&self, on: bool, now: bool) -> io::Result<()> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        self.gate.bypass(on)?;
        match (on, *since) {
            (true, None) => {
                *since = Some(self.clock.now());
                tracing::warn!("bypassed: new connections go direct, unobserved, until `retryscope bypass off`");
            }
            (false, Some(_)) => {
                *since = None;
                tracing::warn!("no longer bypassed: new connections come here again");
            }
            _ => {}
        }
        if on && now {
            self.leaving.now();
            tracing::warn!("connections under way are ended as they become idle");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_later_stays() {
        let leaving = Leaving::default();
        let here = leaving.notice();
        leaving.now();
        let later = leaving.notice();
        assert!(*here.borrow() && !*later.borrow());
        leaving.for_good();
        assert!(*later.borrow() && *leaving.notice().borrow());
    }
}
