//! `retryscope daemon`, started by a test and gone with it.
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::signal::Signal;

use super::{Finished, Report, Running, SOON, TestCa, alive, cgroup, clients, run, until};
use crate::words;

/// Whom the daemon becomes in tests: a user of every Debian system.
pub const USER: &str = "nobody";

/// A configuration, an authority and a name of its own.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub name: String,
}

impl Site {
    /// With the authority of a test's upstreams to trust.
    pub fn new(ca: &TestCa) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        // Whom the daemon becomes has to reach what it keeps.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("chmod");
        let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run::retryscope(words!["ca", "init", "--ca-dir", folder.path().join("ca")]).finish(SOON).ok();
        std::fs::copy(ca.pem(), folder.path().join("upstream.pem")).expect("copied");
        Self { folder, name }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// Writes the configuration: what every test needs, then `top`, then
    /// `tables`.
    pub fn write(&self, top: &str, tables: &str) {
        let text = format!(
            "user = \"{USER}\"\nca_dir = \"ca\"\nupstream_ca = [\"upstream.pem\"]\nstate_dir = \"{}\"\n{top}\n{tables}\n",
            self.path("state").display()
        );
        std::fs::write(self.config(), text).expect("the configuration");
    }

    /// Where the daemon has its socket.
    pub fn runtime(&self) -> PathBuf {
        Path::new("/run/retryscope").join(&self.name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(run::RETRYSCOPE);
        command.arg("daemon").arg("--config").arg(self.config()).arg("--name").arg(&self.name);
        command
    }

    /// Starts the daemon and waits until it serves.
    pub fn start(&self) -> Daemon {
        self.started(self.command())
    }

    /// By a command that becomes the daemon.
    pub fn started(&self, mut command: Command) -> Daemon {
        let running = clients::bare(&mut command);
        let mut daemon = Daemon { running: Some(running), name: self.name.clone() };
        daemon.said("serving");
        daemon
    }

    pub fn reload(&self) -> Finished {
        run::retryscope(words!["reload", "--name", &self.name]).finish(SOON)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Left where the daemon was killed together with who cleans up.
        let _ = std::fs::remove_dir_all(self.runtime());
    }
}

/// A running daemon; ended in order, or killed, with its guard.
pub struct Daemon {
    pub running: Option<Running>,
    name: String,
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        self.running.as_ref().expect("running").pid
    }

    pub fn log(&self) -> String {
        super::show(&self.running.as_ref().expect("running").stderr.bytes())
    }

    /// Waits until the daemon has said this.
    #[track_caller]
    pub fn said(&mut self, part: &str) {
        let running = self.running.as_mut().expect("running");
        until(&format!("the daemon says `{part}`"), SOON, || {
            let said = super::show(&running.stderr.bytes());
            let found = said.contains(part);
            assert!(found || !running.ended(), "the daemon ended: {said}");
            found.then_some(())
        });
    }

    pub fn signal(&self, signal: Signal) {
        self.running.as_ref().expect("running").signal(signal);
    }

    /// The process that keeps what is privileged.
    pub fn keeper(&self) -> i32 {
        self.part("__keeper").expect("a keeper")
    }

    /// The process that enters network namespaces, where there is one.
    pub fn porter(&self) -> Option<i32> {
        self.part("__porter")
    }

    fn part(&self, name: &str) -> Option<i32> {
        let children = super::process::descendants(self.pid());
        children.into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == name.as_bytes())
        })
    }

    /// The report so far.
    pub fn report(&self) -> Report {
        let words: Vec<OsString> = words!["report", "--instance", self.pid().to_string(), "--report", "json"];
        let finished = run::retryscope(words).finish(SOON).ok();
        Report::parse(&finished.text())
    }

    /// Waits until this cgroup has the daemon's programs.
    pub fn watches(&self, path: &Path) {
        let id = cgroup::id(path);
        until(&format!("{} is watched", path.display()), SOON, || (cgroup::links(id).len() >= 6).then_some(()));
    }

    /// Asks for the end and waits for it.
    pub fn end(mut self) -> Finished {
        let running = self.running.take().expect("running");
        running.signal(Signal::SIGTERM);
        running.finish(SOON)
    }
}
