//! The cgroup of a daemon: one in which nobody else is.
//!
//! The hand-over sees every socket of the cgroup that the listeners belong
//! to. A service manager gives each service its own; where somebody has
//! started the daemon by hand, one is made, and goes away with it.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::Failure;
use crate::{
    control,
    process::janitor::{Chores, Janitor},
    redirect::cgroup,
};

#[derive(Debug)]
pub(super) struct Place {
    cgroup: PathBuf,
    janitor: Option<Janitor>,
}

impl Place {
    /// `folder` goes away with a cgroup that is made.
    pub(super) fn take(folder: &Path) -> Result<Self, Failure> {
        let home = cgroup::own()?;
        let me = std::process::id();
        let top = cgroup::Mount::find()?.point().to_owned();
        if home != top && cgroup::processes(&home).is_ok_and(|there| there == [me]) {
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
}

impl Drop for Place {
    fn drop(&mut self) {
        // We are still in it: it is removed when we are gone.
        if let Some(janitor) = self.janitor.take() {
            janitor.finish(Duration::ZERO);
        }
    }
}
