//! A cgroup of a test's own, gone with its guard; and what can be seen of
//! anybody's cgroup.
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{SOON, clients, until};

/// Where the cgroup2 tree is mounted.
#[track_caller]
pub fn mount() -> PathBuf {
    procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .expect("own mountinfo")
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .expect("no cgroup2 tree is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

/// The cgroup2 directory of a process.
pub fn of(pid: i32) -> Option<PathBuf> {
    let groups = procfs::process::Process::new(pid).ok()?.cgroups().ok()?;
    let path = groups.0.into_iter().find(|group| group.hierarchy == 0)?.pathname;
    Some(from_line(&path))
}

/// The directory of a path as `/proc/PID/cgroup` spells it.
pub fn from_line(path: &str) -> PathBuf {
    mount().join(path.trim().trim_start_matches("0::").trim_start_matches('/'))
}

pub fn id(path: &Path) -> u64 {
    std::fs::metadata(path).map(|data| data.ino()).unwrap_or_default()
}

/// The ids of all BPF links attached to the cgroup with this id.
#[track_caller]
pub fn links(cgroup_id: u64) -> Vec<u64> {
    let output = Command::new(clients::need("bpftool", "bpftool")).args(["--json", "link", "show"]).output();
    let output = output.expect("running bpftool");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("bpftool link show ({error}): {}", String::from_utf8_lossy(&output.stderr)));
    let links = links.as_array().cloned().unwrap_or_default();
    links.iter().filter(|link| link["cgroup_id"] == cgroup_id).filter_map(|link| link["id"].as_u64()).collect()
}

pub struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    pub fn new() -> Self {
        Self::of_kind("")
    }

    /// One whose name ends so, as `.service`.
    pub fn of_kind(kind: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        clients::root();
        let name = format!("retryscope-test-{}-{}{kind}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = mount().join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("making {}: {error}", path.display()));
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that enters the cgroup before it becomes `program`.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&self.path).arg(program);
        command
    }

    fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let gone = || {
            let _ = std::fs::remove_dir(&self.path);
            (!self.path.exists()).then_some(())
        };
        if std::thread::panicking() {
            // A second panic would abort and hide the first.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until("the cgroup is gone", SOON, gone)));
        } else {
            until("the test's cgroup can be removed", SOON, gone);
        }
    }
}
