//! A real container, by podman and crun, gone with its guard: namespaces and
//! a cgroup of its own, the machine's files as its image, and no network but
//! what a test puts there.
use std::{
    ffi::OsStr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::resource::{Resource, getrlimit};
use tempfile::TempDir;

use super::{SOON, cgroup, clients};

/// Shows what runs in it a cgroup2 tree where systemd has it, also on a
/// machine that mounts the older trees beside it: crun asks for that.
const UNIFIED: &str = r#"umount -R -l /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup && exec "$@""#;

const SETTINGS: &str = "[containers]\ndefault_ulimits = []\npids_limit = 0\n\
    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n";

pub struct Container {
    pub name: String,
    pub id: String,
    /// Of its first process, as seen out here.
    pub pid: i32,
    engine: Engine,
}

/// podman, with settings that fit a machine without systemd.
pub struct Engine(TempDir);

impl Engine {
    #[track_caller]
    pub fn new() -> Self {
        clients::need("crun", "crun");
        let dir = tempfile::Builder::new().prefix("retryscope-test-podman-").tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("containers.conf"), SETTINGS).expect("the settings");
        Self(dir)
    }

    /// `podman`, to be given its words.
    pub fn podman(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", UNIFIED, "sh", "env"]);
        command.arg(format!("CONTAINERS_CONF={}", self.0.path().join("containers.conf").display()));
        command.arg(clients::need("podman", "podman"));
        command
    }

    /// A name that no other container has, nor had.
    pub fn name(prefix: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        format!("{prefix}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    /// Limits of a container's processes: who may not raise limits cannot have
    /// podman's own.
    pub fn limits() -> Vec<String> {
        let limits = [
            ("memlock", Resource::RLIMIT_MEMLOCK, 8 << 20),
            ("nofile", Resource::RLIMIT_NOFILE, 4096),
            ("nproc", Resource::RLIMIT_NPROC, 4096),
        ];
        let limit = |(name, resource, most)| {
            let hard = getrlimit(resource).expect("a limit").1.min(most);
            ["--ulimit".to_owned(), format!("{name}={hard}:{hard}")]
        };
        limits.into_iter().flat_map(limit).collect()
    }

    /// Removes a container, running or not.
    pub fn remove(&self, name: &str) {
        let removed = self.podman().args(["rm", "--force", "--time", "0", name]).output();
        if !removed.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("left behind: the container {name} ({removed:?})");
        }
    }
}

impl Container {
    /// Runs a command in a container named `PREFIX-…`.
    #[track_caller]
    pub fn start(prefix: &str, command: &[&str]) -> Self {
        let name = Engine::name(prefix);
        let mut container = Self { name, id: String::new(), pid: 0, engine: Engine::new() };
        let mut run = container.podman();
        // Privileged: without a filter for devices, for which crun needs more
        // locked memory than it may get.
        run.args(["run", "--detach", "--network=none", "--privileged", "--name", &container.name]);
        run.args(Engine::limits());
        run.args(["--rootfs", "/:O"]).args(command);
        clients::bare(&mut run).finish(SOON * 3).ok();
        let told = container.ask(["inspect", "--format", "{{.Id}} {{.State.Pid}}", &container.name]);
        let (id, pid) = told.trim().split_once(' ').expect("an id and a pid");
        (container.id, container.pid) = (id.to_owned(), pid.parse().expect("a pid"));
        container
    }

    fn podman(&self) -> Command {
        self.engine.podman()
    }

    #[track_caller]
    fn ask<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> String {
        clients::bare(self.podman().args(words)).finish(SOON * 3).ok().text()
    }

    /// `podman exec` of a command, with standard input.
    pub fn exec<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> super::Running {
        clients::bare(self.podman().args(["exec", "--interactive", &self.name]).args(words))
    }

    /// Writes a file in the container.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let mut running = self.exec(["sh", "-c", "cat > \"$0\"", path]);
        running.write(text.as_bytes());
        running.close_stdin();
        running.finish(SOON).ok();
    }

    /// Its cgroup out here.
    pub fn cgroup(&self) -> PathBuf {
        cgroup::of(self.pid).expect("its cgroup")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.remove(&self.name);
        // podman makes it and leaves it; others may be using it.
        let _ = std::fs::remove_dir(cgroup::mount().join("libpod_parent"));
    }
}
