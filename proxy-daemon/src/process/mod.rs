//! Who a process is: pid, start time, command, cgroup.
//!
//! In: the owner that the kernel recorded when a socket was connected. Out:
//! one shared [`Process`] per (pid, start time), so that a recycled pid is
//! another process. The process may be gone, or run another program, before we
//! look: what the kernel recorded of it then comes first, and `/proc` is asked
//! for the rest only while it still shows the same program.
//!
//! Who connected owns the connection, also when the socket is handed to
//! another process, by `fork` or over a Unix socket: the kernel tells of the
//! connect, and of no later change of hands.
mod calls;
mod cgroups;
pub mod channel;
pub mod confine;
mod containers;
pub mod janitor;
pub mod launch;
mod memory;
mod peer;
mod program;
mod table;
pub mod warden;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, RwLock},
};

use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

pub use calls::Role;
pub use cgroups::{container, container_of, is_unit, pod, unescape, unit, user};
pub use containers::{Engines, Named, in_pod};
pub use memory::release as release_memory;
pub use peer::peer_groups;
pub use program::{Environment, bare, environment, program};
pub use table::ProcessTable;

/// Lets the runtime wait for a descriptor to turn readable.
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and stays the same descriptor, for as
    // long as it lives; it moves into what is returned.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(Into::into)
}

/// Lifts the limit of open files as far as it goes: connections of all the
/// target's processes come together here. To be called after every process
/// that should keep the caller's limit has been started.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // What the kernel allows a process at most unless told otherwise
    // (`fs.nr_open`); root may raise its hard limit up to there.
    const MOST: u64 = 1 << 20;
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if setrlimit(Resource::RLIMIT_NOFILE, MOST, MOST.max(hard)).is_err()
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// A process beyond doubt: a pid is reused, a pid and its start time are not.
/// Where a process cannot be told, a group of them stands for it (a cgroup, a
/// machine): its pid is 0, which no process has, and `start_ticks` a number
/// of the group's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Thread group id, in the daemon's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks (1/100 s) since boot: field 22 of
    /// `/proc/PID/stat`, which is the kernel's `start_boottime` / 10^7 ns.
    pub start_ticks: u64,
}

/// The owner of a connection, as the kernel recorded it at `connect()`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub key: ProcessKey,
    /// The thread that called `connect()`.
    pub tid: u32,
    /// Parent's thread group id; 0 where the kernel could not tell.
    pub parent: u32,
    pub uid: u32,
    pub gid: u32,
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// Start of the process, ns since boot; 0 where the kernel could not tell.
    pub start_boottime: u64,
    /// Which of its programs it was at `connect()`: grows with every `exec`. 0
    /// where the kernel could not tell.
    pub image: u64,
    /// Where that program's arguments lie in its memory; 0 where not known.
    pub arguments: u64,
    /// Bytes of the command line that the kernel kept (or began to keep).
    pub command_len: u32,
    /// Its pid in its own pid namespace, where that could be told.
    pub inner: Option<u32>,
    /// The first 15 bytes of the process's name, lossily decoded.
    pub comm: String,
    /// The cgroup's path where it is known without the process, as of a group.
    pub cgroup: Option<String>,
}

/// A command line as it lies in a process's memory: arguments, each ended by a
/// NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub bytes: Vec<u8>,
    /// There was more of it.
    pub cut: bool,
}

/// What is known of owners that are gone from `/proc`.
pub trait Memory: Send + Sync + std::fmt::Debug {
    /// The command line as of the `connect()`.
    fn command(&self, owner: &Owner) -> Option<CommandLine>;

    /// Path of a cgroup below the cgroup2 mount, by its directory's number.
    fn cgroup(&self, id: u64) -> Option<String>;
}

/// What is known of a process, as long as it runs one program: after an `exec`
/// it is another of these, with the same key. Shared by every record that
/// mentions it.
#[derive(Debug)]
pub struct Process {
    pub key: ProcessKey,
    pub parent: u32,
    pub uid: u32,
    /// Grows with every `exec`.
    pub image: u64,
    /// Its pid in its own pid namespace, where that is another one.
    pub inner: Option<u32>,
    facts: RwLock<Arc<Facts>>,
}

/// What a process can change of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Name of the executable as the kernel shortens it (15 bytes).
    pub comm: String,
    /// The command line, arguments joined by single spaces; `comm` where the
    /// process was gone before it could be read.
    pub command: String,
    pub exe: Option<String>,
    /// Path below the cgroup2 mount, `/` first.
    pub cgroup: Option<String>,
    /// What the container's engine calls it, where the cgroup is a
    /// container's.
    pub container_name: Option<String>,
}

impl Process {
    pub fn new(key: ProcessKey, parent: u32, uid: u32, facts: Facts) -> Self {
        Self { key, parent, uid, image: 0, inner: None, facts: RwLock::new(Arc::new(facts)) }
    }

    pub(crate) fn of(owner: &Owner, facts: Facts) -> Self {
        let inner = owner.inner.filter(|inner| *inner != owner.key.pid);
        Self { image: owner.image, inner, ..Self::new(owner.key, owner.parent, owner.uid, facts) }
    }

    /// The facts as last read.
    pub fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn renew(&self, facts: Facts) {
        *self.facts.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(facts);
    }
}
