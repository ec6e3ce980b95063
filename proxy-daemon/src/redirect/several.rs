//! One kernel side on cgroups that come and go, attached by the process that
//! also serves their connections. (Where serving must not be privileged, the
//! keeper attaches instead.)
//!
//! In: patterns, as they change, and the kernel's word of cgroups that appear
//! or go. Out: what matches is attached; what does not any more goes direct,
//! while connections under way keep what serves them.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    Attacher, Attaching, Attachment, Fail, Forest, Holder, Listeners, Patterns, Redirect, RedirectError, Watched,
    cgroup::CgroupError, listen,
};
use crate::process;

/// Between looks around where nothing was told: what was missed is found then.
const ROUND: Duration = Duration::from_secs(5);
/// Between looks around where much is told.
const BREATH: Duration = Duration::from_millis(20);
/// Connections that are diverted when a cgroup is no longer a target keep
/// what serves them for so long.
const LINGER: Duration = Duration::from_secs(60);

/// Cgroups that are targets at the moment: directories, by number. Shared by
/// whoever attaches them and whoever looks into them.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<BTreeMap<u64, PathBuf>>>);

impl Places {
    pub fn list(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Places {}

/// What attaches.
#[derive(Debug)]
pub struct Several {
    attaching: Attaching,
    redirect: Arc<Redirect>,
    places: Places,
}

impl Several {
    /// Opens the listeners and loads the kernel side. Nothing is attached yet.
    ///
    /// `daemon` is the directory of the cgroup in which this process now is.
    pub fn load(watched: &Watched, fail: Fail, daemon: &Path) -> Result<(Self, Listeners), RedirectError> {
        let listeners = listen::open()?;
        let mut attacher = Attacher::load(watched, &listeners, daemon)?;
        let redirect = Redirect::new(attacher.maps()?, fail, None)?;
        redirect.own_ports(&listeners)?;
        let attaching = Attaching::new(attacher, Forest::new()?);
        let several = Self { attaching, redirect: Arc::new(redirect), places: Places::default() };
        Ok((several, listeners))
    }

    pub fn redirect(&self) -> &Arc<Redirect> {
        &self.redirect
    }

    /// What is attached, now and from now on.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Follows the patterns and the cgroups, until nobody changes the patterns
    /// any more.
    pub async fn follow(mut self, mut wanted: watch::Receiver<Patterns>) -> Result<(), CgroupError> {
        let failed = |error: std::io::Error| CgroupError::Io {
            doing: "watching",
            path: self.attaching.forest().path(Path::new("/")).into(),
            cause: error,
        };
        let news = self.attaching.forest().news().try_clone_to_owned().and_then(process::readable).map_err(failed)?;
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let patterns = wanted.borrow_and_update().clone();
            tokio::task::block_in_place(|| self.look(&patterns));
            let looked = Instant::now();
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return Ok(()) },
                ready = news.readable() => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                    // At once where it has been quiet.
                    tokio::time::sleep(BREATH.saturating_sub(looked.elapsed())).await;
                    if let Err(error) = self.attaching.forest().hear() {
                        tracing::warn!(%error, "cgroups that come are noticed within {} s only", ROUND.as_secs());
                    }
                }
                _ = round.tick() => {}
            }
        }
    }

    /// Brings what is attached in line with what is there.
    fn look(&mut self, patterns: &Patterns) {
        let Ok(()) = self.attaching.follow(patterns, &mut &*self.redirect);
        self.places.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(self.attaching.attached());
    }
}

impl Holder for &Redirect {
    type Error = Infallible;

    fn attached(&mut self, number: u64, name: &str, attachment: Attachment) -> Result<(), Infallible> {
        self.add(number, attachment);
        if !name.is_empty() {
            tracing::info!(cgroup = name, "watching a cgroup");
        }
        Ok(())
    }

    fn detached(&mut self, number: u64, name: &str, gone: bool) -> Result<(), Infallible> {
        if !name.is_empty() {
            tracing::info!(cgroup = name, "no longer watching a cgroup");
        }
        if gone {
            self.remove(number);
        } else {
            self.retire_for(number, LINGER);
        }
        Ok(())
    }

    fn refused(&mut self, name: &str, why: &str) -> Result<(), Infallible> {
        tracing::warn!(cgroup = name, why, "a cgroup cannot be watched");
        Ok(())
    }
}
