//! A Debian with a booted systemd, in namespaces of its own.
//!
//! Its files are an overlay over a tree that `cargo xtask test` makes once
//! (`target/systemd/bookworm`), its cgroups lie in one of this test's, its
//! network is a loopback. Everything is gone with the guard.
use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use super::{Finished, Running, SOON, TestCgroup, cgroup, clients, until};

/// Booting and shutting down take seconds, on a busy machine more.
const LATER: Duration = Duration::from_secs(120);

/// Its cgroups are seen as on a system without cgroup v1, its files as an
/// overlay; nothing of this is seen outside.
const BOOT: &str = r#"
set -eu
mkdir "$2/upper" "$2/work" "$2/root"
umount -R -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --directory "$2/root" --machine "$3" \
    --register=no --keep-unit --boot --private-network --console=pipe --capability=all \
    --system-call-filter="bpf perf_event_open landlock_create_ruleset landlock_add_rule landlock_restrict_self" \
    --bind="$2/shared:/test"
"#;

pub struct Machine {
    running: Option<Running>,
    leader: i32,
    group: TestCgroup,
    scratch: tempfile::TempDir,
}

impl Machine {
    pub fn boot() -> Self {
        clients::root();
        let base = std::env::var_os("RETRYSCOPE_TEST_SYSTEMD").map(PathBuf::from);
        let base = base.unwrap_or_else(|| clients::target().join("systemd/bookworm"));
        assert!(
            base.join("usr/lib/systemd/systemd").exists(),
            "{} is missing: `cargo xtask test` makes it",
            base.display()
        );
        clients::need("systemd-nspawn", "systemd-container");
        // Not on a file system that cannot lie over another.
        let scratch = tempfile::Builder::new().prefix("retryscope-machine-").tempdir_in(clients::target());
        let scratch = scratch.expect("a folder");
        std::fs::create_dir(scratch.path().join("shared")).expect("a folder");
        let group = TestCgroup::new();
        let mut command = group.command(&clients::need("unshare", "util-linux"));
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", BOOT, "boot"]);
        command.arg(base).arg(scratch.path()).arg(group.path().file_name().expect("a name"));
        let running = clients::bare(&mut command);
        let mut machine = Self { running: Some(running), leader: 0, group, scratch };
        machine.leader = until("the machine has its first process", LATER, || machine.find_leader());
        until("the machine has booted", LATER, || {
            let state = machine.run(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&state.text().trim()).then_some(())
        });
        machine
    }

    /// nspawn's child: in a cgroup of its own, below which systemd makes its.
    fn find_leader(&self) -> Option<i32> {
        let init = std::fs::read_to_string(self.group.path().join("payload/init.scope/cgroup.procs")).ok()?;
        init.lines().find_map(|line| line.parse().ok())
    }

    /// Seen as `/test` inside.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.scratch.path().join("shared").join(name)
    }

    /// A file of the machine's, as it is seen from here.
    pub fn file(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.leader.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// The directory of one of its units' cgroups.
    pub fn cgroup(&self, unit: &str) -> PathBuf {
        self.group.path().join("payload/system.slice").join(unit)
    }

    /// Runs a command inside.
    pub fn run(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(clients::need("nsenter", "util-linux"));
        command.args(["-t", &self.leader.to_string(), "-m", "-u", "-i", "-n", "-p", "-C"]).args(words);
        clients::bare(&mut command).finish(LATER)
    }

    pub fn sh(&self, script: &str) -> Finished {
        self.run(&["/bin/sh", "-c", script])
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", "--value", "-p", name, unit]).ok().text().trim().to_owned()
    }

    /// What a unit has said, for a failure message.
    pub fn journal(&self, unit: &str) -> String {
        self.run(&["journalctl", "--no-pager", "-n", "60", "-u", unit]).text()
    }

    /// A listener in the machine's network.
    pub fn listen(&self, address: &str) -> TcpListener {
        Self::listen_beside(self.leader, address)
    }

    /// A listener in the network of one of its units.
    pub fn listen_in(&self, unit: &str, address: &str) -> TcpListener {
        let processes = std::fs::read_to_string(self.cgroup(unit).join("cgroup.procs")).expect("the unit's processes");
        let pid = processes.lines().next().and_then(|pid| pid.parse().ok()).expect("a process");
        Self::listen_beside(pid, address)
    }

    fn listen_beside(pid: i32, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().expect("an address");
        let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("the network namespace");
        // A thread of its own: it does not come back.
        let listening = std::thread::spawn(move || {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the network namespace");
            // Its loopback may come up a moment later.
            until("there is a listener", LATER, || TcpListener::bind(address).ok())
        });
        listening.join().expect("no panic")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ended = |running: Running| {
            running.signal(nix::sys::signal::Signal::SIGTERM);
            running.finish(LATER);
        };
        if let Some(running) = self.running.take() {
            // Whatever comes of it, nothing may be left.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ended(running)));
        }
        let _ = std::fs::write(self.group.path().join("cgroup.kill"), "1");
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the machine's cgroups are gone", SOON, || {
                remove_below(self.group.path());
                let left = std::fs::read_dir(self.group.path()).into_iter().flatten().flatten();
                (left.filter(|entry| entry.path().is_dir()).count() == 0).then_some(())
            });
        }));
    }
}

fn remove_below(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_below(&entry.path());
        let _ = std::fs::remove_dir(entry.path());
    }
}

/// The ids of the links at the cgroup of a unit.
pub fn links(path: &Path) -> Vec<u64> {
    cgroup::links(cgroup::id(path))
}
