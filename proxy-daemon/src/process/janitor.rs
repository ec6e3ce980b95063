//! What is left on disk goes away with the command, also when the daemon is
//! killed: a small process of ours outlives it to remove cgroups and the
//! private folder once nothing uses them any more.
//!
//! In: a [`Chores`] on standard input, then its end (the daemon has ended, or
//! says that it is done). Out: nothing left.
use std::{
    fs,
    io::{self, BufRead, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

/// The hidden first argument that makes this binary the janitor.
pub const JANITOR: &str = "__janitor";
const MAX_MESSAGE: u64 = 1 << 20;
/// What a daemon says that ends by itself; a killed one says nothing.
const DONE: &[u8] = b"done\n";
/// How long a killed daemon's sockets may take to be closed.
const LAST_BREATH: Duration = Duration::from_secs(10);

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Chores {
    /// Waited for: the others are removed when no process is left in it.
    pub target: Option<PathBuf>,
    /// Cgroups to remove, children before parents.
    pub cgroups: Vec<PathBuf>,
    /// The folder that the target's trust variables point into.
    pub folder: Option<PathBuf>,
    /// A file in it: whoever has it locked has the folder, and keeps it.
    #[serde(default)]
    pub lock: Option<PathBuf>,
    /// Routes that a killed daemon leaves are to be removed.
    #[serde(default)]
    pub routes: bool,
    /// A file that a killed daemon may leave torn.
    #[serde(default)]
    pub recording: Option<PathBuf>,
}

/// The daemon's handle: dropping it lets the janitor begin.
#[derive(Debug)]
pub struct Janitor {
    child: Child,
    input: Option<ChildStdin>,
}

impl Janitor {
    pub fn start(chores: &Chores) -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(JANITOR)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut message = serde_json::to_vec(chores)?;
        message.push(b'\n');
        input.write_all(&message)?;
        Ok(Self { child, input: Some(input) })
    }

    /// Lets the janitor begin, and waits for it for as long as `patience`.
    /// True if everything is gone; else it goes on without us.
    pub fn finish(mut self, patience: Duration) -> bool {
        if let Some(mut input) = self.input.take() {
            // A janitor that is gone needs no word.
            let _ = input.write_all(DONE);
        }
        let deadline = Instant::now() + patience;
        let Ok(descriptor) = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
        else {
            return false;
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                Ok(1..) => return self.child.wait().is_ok_and(|status| status.success()),
                Ok(_) | Err(_) => return false,
            }
        }
    }
}

/// The janitor's own life; `sweep` removes the routes that killed daemons
/// leave, `mend` closes their recordings.
pub fn main(sweep: impl FnOnce(), mend: impl FnOnce(&Path)) -> ExitCode {
    let parent = rustix::process::getppid()
        .and_then(|parent| rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty()).ok());
    // Signals for the terminal's foreground are not meant for this.
    let _ = setsid();
    let mut input = io::BufReader::new(io::stdin().lock());
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_MESSAGE).read_until(b'\n', &mut line);
    let Some(chores) = read.ok().and_then(|_| serde_json::from_slice::<Chores>(&line).ok()) else {
        return ExitCode::from(64);
    };
    // Until the daemon has ended, in whatever way.
    let said = io::copy(&mut input, &mut io::sink());
    if said.is_ok_and(|said| said == 0) && (chores.routes || chores.recording.is_some()) {
        // Its routes and its files are its own until its last descriptor is
        // closed.
        if let Some(parent) = &parent {
            let timeout = PollTimeout::try_from(LAST_BREATH).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(parent.as_fd(), PollFlags::POLLIN)], timeout);
        }
        if let Some(recording) = &chores.recording {
            mend(recording);
        }
        if chores.routes {
            sweep();
        }
    }
    if let Some(target) = &chores.target {
        wait_empty(target);
    }
    if clean(&chores) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Removes everything; true if nothing is left.
fn clean(chores: &Chores) -> bool {
    let mut clean = true;
    for cgroup in &chores.cgroups {
        // A process that has ended may be counted a moment longer.
        wait_empty(cgroup);
        clean &= gone(remove(cgroup));
    }
    // Held until the folder is gone.
    let lock = chores.lock.as_ref().map(fs::File::open);
    let taken = matches!(&lock, Some(Ok(lock)) if lock.try_lock().is_err());
    if let Some(folder) = chores.folder.as_ref().filter(|_| !taken) {
        clean &= gone(fs::remove_dir_all(folder));
    }
    clean
}

/// Removes a cgroup and those that were made below it.
fn remove(cgroup: &Path) -> io::Result<()> {
    // Each of the entries of a cgroup's folder is the kernel's; only folders
    // are removed.
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

fn gone(result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Waits until no process is left in a cgroup or below it; the kernel wakes
/// whoever polls its `cgroup.events`.
fn wait_empty(cgroup: &Path) {
    let Ok(mut events) = fs::File::open(cgroup.join("cgroup.events")) else { return };
    loop {
        let mut text = String::new();
        if io::Seek::rewind(&mut events).is_err() || events.read_to_string(&mut text).is_err() {
            return;
        }
        if !text.lines().any(|line| line == "populated 1") {
            return;
        }
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
