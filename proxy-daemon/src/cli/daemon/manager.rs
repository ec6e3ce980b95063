//! The service manager, where one has started us (sd_notify(3)).
use std::time::Duration;

use sd_notify::NotifyState;

/// Tells the manager; without one, nobody.
pub(super) fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// How often the manager wants to hear that all is well; a third of its
/// patience.
pub(super) fn heartbeat() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| (patience / 3).max(Duration::from_millis(100)))
}

/// A configuration is being read; [`tell`] of [`NotifyState::Ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}
