//! The places an instance needs while it runs: cgroups for itself and its
//! command, and a folder for certificates. They go away with it, and a
//! janitor sees to that also when it is killed.
use std::{
    ffi::OsString,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::Failure;
use crate::{
    process::janitor::{Chores, Janitor},
    redirect::cgroup,
};

const PREFIX: &str = "retryscope-";
const RUN: &str = "/run";
/// In the folder: the cgroup that goes with it.
const CGROUP: &str = "cgroup";
/// How long the end waits for places to be empty: the kernel counts a process
/// that has ended a moment longer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Scene {
    cgroups: Option<Cgroups>,
    pub(super) folder: PathBuf,
    janitor: Option<Janitor>,
}

/// Directories of cgroups.
#[derive(Debug)]
struct Cgroups {
    /// Where we came from and go back to.
    home: PathBuf,
    /// The one that holds the others.
    base: PathBuf,
    daemon: PathBuf,
    /// The command's.
    target: PathBuf,
}

impl Scene {
    /// Makes the places, and moves this process into its own cgroup. `routes`:
    /// the janitor is to remove routes that may be left. `recording`: it is to
    /// mend this file, should we be killed.
    pub(super) fn set(routes: bool, recording: Option<PathBuf>) -> Result<Self, Failure> {
        let failed = |error: cgroup::CgroupError| Failure::new(error.exit_code(), error.to_string());
        sweep();
        let cgroups = Cgroups::choose().map_err(failed)?;
        let folder = match private_folder(Some(&cgroups.base)) {
            Ok(folder) => folder,
            Err(failure) => {
                let _ = cgroup::remove(&cgroups.base);
                return Err(failure);
            }
        };
        let chores = Chores {
            target: Some(cgroups.target.clone()),
            cgroups: vec![cgroups.target.clone(), cgroups.daemon.clone(), cgroups.base.clone()],
            folder: Some(folder.clone()),
            lock: None,
            routes,
            recording,
        };
        let made = cgroup::create(&cgroups.daemon)
            .and_then(|()| cgroup::create(&cgroups.target))
            .map_err(failed)
            .and_then(|()| janitor(&chores));
        let janitor = match made {
            Ok(janitor) => janitor,
            Err(failure) => {
                let _ = cgroup::remove(&cgroups.base);
                let _ = fs::remove_dir_all(&folder);
                return Err(failure);
            }
        };
        // From here on, dropping the scene clears it.
        let scene = Self { cgroups: Some(cgroups), folder, janitor: Some(janitor) };
        if let Some(daemon) = scene.daemon() {
            cgroup::join(daemon, std::process::id()).map_err(failed)?;
        }
        Ok(scene)
    }

    /// The same without cgroups, for where none are needed.
    pub(super) fn without_cgroups(recording: Option<PathBuf>) -> Result<Self, Failure> {
        sweep();
        let folder = private_folder(None)?;
        let chores = Chores { folder: Some(folder.clone()), routes: true, recording, ..Chores::default() };
        match janitor(&chores) {
            Ok(janitor) => Ok(Self { cgroups: None, folder, janitor: Some(janitor) }),
            Err(failure) => {
                let _ = fs::remove_dir_all(&folder);
                Err(failure)
            }
        }
    }

    /// Our own cgroup.
    pub(super) fn daemon(&self) -> Option<&Path> {
        self.cgroups.as_ref().map(|cgroups| &*cgroups.daemon)
    }

    /// The command's cgroup.
    pub(super) fn target(&self) -> Option<&Path> {
        self.cgroups.as_ref().map(|cgroups| &*cgroups.target)
    }

    /// Processes of the command that are still there.
    pub(super) fn left_behind(&self) -> Vec<u32> {
        self.target().map_or(Vec::new(), |target| cgroup::processes(target).unwrap_or_default())
    }

    /// Clears the places. False if something is still used: the janitor then
    /// waits for it.
    pub(super) fn clear(mut self) -> bool {
        self.leave()
    }

    fn leave(&mut self) -> bool {
        let Some(janitor) = self.janitor.take() else { return true };
        // Our own cgroup can only be removed once we are out of it; should
        // that fail, the janitor waits for our end.
        let home = self.cgroups.as_ref().map(|cgroups| &cgroups.home);
        let out = home.is_none_or(|home| cgroup::join(home, std::process::id()).is_ok());
        let patience = if out && self.left_behind().is_empty() { PATIENCE } else { Duration::ZERO };
        janitor.finish(patience)
    }
}

impl Cgroups {
    /// Below the cgroup we are in, so that limits set on it still hold for the
    /// command; where that is not possible, at the top. The one that holds the
    /// others is made.
    fn choose() -> Result<Self, cgroup::CgroupError> {
        let home = cgroup::own()?;
        let name = format!("{PREFIX}{}", std::process::id());
        let mut base = home.join(&name);
        if let Err(error) = cgroup::create_own(&base) {
            let top = cgroup::Mount::find()?.point().join(&name);
            if top == base || cgroup::create_own(&top).is_err() {
                return Err(error);
            }
            base = top;
        }
        Ok(Self { home, daemon: base.join("daemon"), target: base.join("target"), base })
    }
}

fn janitor(chores: &Chores) -> Result<Janitor, Failure> {
    Janitor::start(chores)
        .map_err(|error| Failure::new(70, format!("cannot start the process that cleans up ({error})")))
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A folder for certificates that the command's user may read. It says which
/// cgroup it belongs to, if any.
fn private_folder(cgroup: Option<&Path>) -> Result<PathBuf, Failure> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    let made = builder.tempdir_in(RUN).or_else(|_| builder.tempdir()).and_then(|folder| {
        // Whatever the caller's mask of new files: others read it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let cgroup = cgroup.map_or(&b""[..], |cgroup| cgroup.as_os_str().as_bytes());
        fs::write(folder.path().join(CGROUP), cgroup)?;
        Ok(folder.keep())
    });
    made.map_err(|error| {
        Failure::new(
            73,
            format!(
                "cannot make a folder for the certificate in {RUN} or {} ({error})",
                std::env::temp_dir().display()
            ),
        )
    })
}

/// Removes what instances left whose janitors were killed with them. Best
/// effort: somebody else may be sweeping as well.
fn sweep() {
    for folder in fs::read_dir(RUN).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Some(pid) = folder.file_name().and_then(|name| owner(name.to_str()?)) else { continue };
        let alive = pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists();
        let Ok(cgroup) = fs::read(folder.join(CGROUP)) else { continue };
        let cgroup = PathBuf::from(OsString::from_vec(cgroup));
        // Processes in it may still need the folder.
        let none = cgroup.as_os_str().is_empty();
        let ours = none || cgroup.file_name().and_then(|name| name.to_str()) == Some(&format!("{PREFIX}{pid}"));
        if alive || !ours || !none && cgroup::populated(&cgroup).unwrap_or(false) {
            continue;
        }
        if !none {
            let _ = cgroup::remove(&cgroup);
        }
        let _ = fs::remove_dir_all(&folder);
    }
}

/// The instance that a folder belongs to: `retryscope-PID-…`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}
