//! One kernel side on cgroups that come and go, attached by the process that
//! also serves their connections. (Where serving must not be privileged, the
//! keeper attaches instead.)
//!
//! In: patterns, as they change, and the kernel's word of cgroups that appear
//! or go. Out: what matches is attached; what does not any more goes direct,
//! while connections under way keep what serves them.
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    Attacher, Fail, Forest, Listeners, Patterns, Redirect, RedirectError, Watched, cgroup::CgroupError, listen,
};
use crate::process;

/// Between looks around where nothing was told: what was missed is found then.
const ROUND: Duration = Duration::from_secs(5);
/// Between looks around where much is told.
const BREATH: Duration = Duration::from_millis(20);
/// Connections that are diverted when a cgroup is no longer a target keep
/// what serves them for so long.
const LINGER: Duration = Duration::from_secs(60);
/// The number of our own cgroup's hand-over; no directory has it.
const OWN: u64 = 0;

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
    attacher: Attacher,
    forest: Forest,
    redirect: Arc<Redirect>,
    places: Places,
    attached: BTreeMap<u64, PathBuf>,
    /// Our own hand-over is attached by itself.
    own: bool,
    /// Told once, until they are gone.
    refused: BTreeSet<u64>,
    cut: bool,
}

impl Several {
    /// Opens the listeners and loads the kernel side. Nothing is attached yet.
    ///
    /// `daemon` is the directory of the cgroup in which this process now is.
    pub fn load(watched: &Watched, fail: Fail, daemon: &Path) -> Result<(Self, Listeners), RedirectError> {
        let listeners = listen::open()?;
        let mut attacher = Attacher::load(watched, &listeners, daemon)?;
        let redirect = Redirect::new(attacher.maps()?, fail)?;
        redirect.own_ports(&listeners)?;
        let several = Self {
            attacher,
            forest: Forest::new()?,
            redirect: Arc::new(redirect),
            places: Places::default(),
            attached: BTreeMap::new(),
            own: false,
            refused: BTreeSet::new(),
            cut: false,
        };
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
            path: self.forest.path(Path::new("/")).into(),
            cause: error,
        };
        let news = self.forest.news().try_clone_to_owned().and_then(process::readable).map_err(failed)?;
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
                    if let Err(error) = self.forest.hear() {
                        tracing::warn!(%error, "cgroups that come are noticed within {} s only", ROUND.as_secs());
                    }
                }
                _ = round.tick() => {}
            }
        }
    }

    /// Brings what is attached in line with what is there.
    fn look(&mut self, patterns: &Patterns) {
        let found = self.forest.look(patterns);
        if found.cut && !std::mem::replace(&mut self.cut, found.cut) {
            tracing::warn!("there are more cgroups than are looked at; some go direct");
        }
        self.refused.retain(|number| found.targets.contains_key(number));
        let over: Vec<u64> =
            self.attached.keys().filter(|number| !found.targets.contains_key(number)).copied().collect();
        for number in over {
            let Some(path) = self.attached.remove(&number) else { continue };
            if !self.own && self.attacher.holds_daemon(&path) {
                self.attach_own();
            }
            tracing::info!(cgroup = self.forest.path(&path), "no longer watching a cgroup");
            if is(&path, number) { self.redirect.retire_for(number, LINGER) } else { self.redirect.remove(number) }
        }
        if !self.own && !self.attached.values().any(|path| self.attacher.holds_daemon(path)) {
            self.attach_own();
        }
        for (number, path) in found.targets {
            if self.attached.contains_key(&number) || self.refused.contains(&number) {
                continue;
            }
            match self.attacher.attach(&path) {
                Ok(attachment) => {
                    self.redirect.add(number, attachment);
                    if self.own && self.attacher.holds_daemon(&path) {
                        self.own = false;
                        self.redirect.remove(OWN);
                    }
                    tracing::info!(cgroup = self.forest.path(&path), "watching a cgroup");
                    self.attached.insert(number, path);
                }
                // It was removed meanwhile.
                Err(_) if !is(&path, number) => {}
                Err(error) => {
                    self.refused.insert(number);
                    tracing::warn!(cgroup = self.forest.path(&path), %error, "a cgroup cannot be watched");
                }
            }
        }
        self.places.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.attached);
    }

    fn attach_own(&mut self) {
        match self.attacher.attach_daemon() {
            Ok(attachment) => {
                self.redirect.add(OWN, attachment);
                self.own = true;
            }
            Err(error) => tracing::error!(%error, "the hand-over of connections cannot be attached"),
        }
    }
}

/// The directory is there, and still the same.
fn is(path: &Path, number: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.ino() == number)
}
