//! The cgroup of a daemon: one in which nobody else is.
//!
//! The hand-over sees every socket of the cgroup that the listeners belong
//! to. A service manager gives each service its own; where somebody has
//! started the daemon by hand, one is made, and goes away with it.
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Failure;
use crate::{
    control,
    process::{
        janitor::{Chores, Janitor},
        warden,
    },
    redirect::cgroup,
};

/// How long an earlier daemon's other processes may take to end.
const ENDING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Place {
    cgroup: PathBuf,
    janitor: Option<Janitor>,
}

impl Place {
    /// `folder` goes away with a cgroup that is made; and `routes` of TPROXY, where
    /// who made them was killed.
    pub(super) fn take(folder: &Path, routes: bool) -> Result<Self, Failure> {
        let home = cgroup::own()?;
        let me = std::process::id();
        let top = cgroup::Mount::find()?.point().to_owned();
        if home != top && is_alone(&home, me) {
            return Ok(Self { cgroup: home, janitor: None });
        }
        let name = format!("retryscope-{me}");
        let mut cgroup = home.join(&name);
        if let Err(error) = cgroup::create_own(&cgroup) {
            let above = top.join(&name);
            if above == cgroup || cgroup::create_own(&above).is_err() {
                return Err(error.into());
            }
            cgroup = above;
        }
        let chores = Chores {
            target: None,
            cgroups: vec![cgroup.clone()],
            folder: Some(folder.into()),
            lock: Some(folder.join(control::PID)),
            routes,
            ..Chores::default()
        };
        let janitor = match Janitor::start(&chores) {
            Ok(janitor) => janitor,
            Err(error) => {
                let _ = cgroup::remove(&cgroup);
                return Err(Failure::new(70, format!("cannot start the process that cleans up ({error})")));
            }
        };
        cgroup::join(&cgroup, me)?;
        Ok(Self { cgroup, janitor: Some(janitor) })
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A part of this daemon has died: cleaned up as if all of it had.
    pub(super) fn abandon(mut self) {
        drop(self.janitor.take());
    }
}

/// Whether nobody else is in the cgroup that could open a socket there. What
/// an earlier daemon has left there to refuse connections opens none; and its
/// other parts, which end with it, are waited for.
fn is_alone(cgroup: &Path, me: u32) -> bool {
    let deadline = Instant::now() + ENDING;
    loop {
        let Ok(mut others) = cgroup::processes(cgroup) else { return false };
        others.retain(|pid| *pid != me && !warden::is_left(pid.cast_signed(), None));
        if others.is_empty() {
            return true;
        }
        if !others.iter().all(|pid| is_part(*pid)) || Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// A process that is part of a daemon, or has just ended.
fn is_part(pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return true };
    line.is_empty() || line.starts_with(b"retryscope\0__")
}

impl Drop for Place {
    fn drop(&mut self) {
        // We are still in it: it is removed when we are gone.
        if let Some(janitor) = self.janitor.take() {
            janitor.finish(Duration::ZERO);
        }
    }
}
