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
    /// Where we came from and go back to.
    home: PathBuf,
    pub(super) daemon: PathBuf,
    /// The command's cgroup.
    pub(super) target: PathBuf,
    pub(super) folder: PathBuf,
    janitor: Option<Janitor>,
}

impl Scene {
    /// Makes the places, and moves this process into its own.
    ///
    /// They lie below the cgroup we are in, so that limits set on it still
    /// hold for the command; where that is not possible, at the top.
    pub(super) fn set() -> Result<Self, Failure> {
        let failed = |error: cgroup::CgroupError| Failure::new(error.exit_code(), error.to_string());
        let home = cgroup::own().map_err(failed)?;
        let name = format!("{PREFIX}{}", std::process::id());
        sweep();
        let mut base = home.join(&name);
        if let Err(error) = cgroup::create(&base) {
            let top = cgroup::Mount::find().map_err(failed)?.point().join(&name);
            if top == base || cgroup::create(&top).is_err() {
                return Err(failed(error));
            }
            base = top;
        }
        let (daemon, target) = (base.join("daemon"), base.join("target"));
        let folder = match private_folder(&base) {
            Ok(folder) => folder,
            Err(failure) => {
                let _ = cgroup::remove(&base);
                return Err(failure);
            }
        };
        let chores = Chores {
            target: Some(target.clone()),
            cgroups: vec![target.clone(), daemon.clone(), base.clone()],
            folder: Some(folder.clone()),
        };
        let mut scene = Self { home, daemon, target, folder, janitor: None };
        let made =
            cgroup::create(&scene.daemon).and_then(|()| cgroup::create(&scene.target)).map_err(failed).and_then(|()| {
                Janitor::start(&chores)
                    .map_err(|error| Failure::new(70, format!("cannot start the process that cleans up ({error})")))
            });
        match made {
            Ok(janitor) => scene.janitor = Some(janitor),
            Err(failure) => {
                let _ = cgroup::remove(&base);
                let _ = fs::remove_dir_all(&scene.folder);
                return Err(failure);
            }
        }
        // From here on, dropping the scene clears it.
        cgroup::join(&scene.daemon, std::process::id()).map_err(failed)?;
        Ok(scene)
    }

    /// Processes of the command that are still there.
    pub(super) fn left_behind(&self) -> Vec<u32> {
        cgroup::processes(&self.target).unwrap_or_default()
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
        let out = cgroup::join(&self.home, std::process::id()).is_ok();
        let patience = if out && self.left_behind().is_empty() { PATIENCE } else { Duration::ZERO };
        janitor.finish(patience)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A folder for certificates that the command's user may read. It says which
/// cgroup it belongs to.
fn private_folder(cgroup: &Path) -> Result<PathBuf, Failure> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    let made = builder.tempdir_in(RUN).or_else(|_| builder.tempdir()).and_then(|folder| {
        // Whatever the caller's mask of new files: others read it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        fs::write(folder.path().join(CGROUP), cgroup.as_os_str().as_bytes())?;
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
        let ours = cgroup.file_name().and_then(|name| name.to_str()) == Some(&format!("{PREFIX}{pid}"));
        if alive || !ours || cgroup::populated(&cgroup).unwrap_or(false) {
            continue;
        }
        let _ = cgroup::remove(&cgroup);
        let _ = fs::remove_dir_all(&folder);
    }
}

/// The instance that a folder belongs to: `retryscope-PID-…`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}
