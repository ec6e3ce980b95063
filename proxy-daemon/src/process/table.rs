//! The table of processes seen, read from `/proc` once each (and again when
//! `exec` has changed the name).
use std::{
    io::Read,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use procfs::process::Process as Proc;
use tokio::sync::mpsc;

use super::{Facts, Owner, Process, ProcessKey};

/// How many processes are remembered. Past it the one that has not connected
/// for longest is forgotten here; whoever holds its [`Process`] keeps it.
const MAX_PROCESSES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// How much of a command line is kept, in bytes.
const MAX_COMMAND: u64 = 4096;

#[derive(Debug)]
pub struct ProcessTable {
    seen: Mutex<LruCache<ProcessKey, Arc<Process>>>,
    newcomers: mpsc::Sender<Arc<Process>>,
}

impl ProcessTable {
    /// A table that tells of every process it has not seen before. Where the
    /// receiver is slow some go untold, never delaying a connection.
    pub fn new(newcomers: mpsc::Sender<Arc<Process>>) -> Self {
        Self { seen: Mutex::new(LruCache::new(MAX_PROCESSES)), newcomers }
    }

    /// A descriptor that turns readable when the process ends; `None` if it
    /// has ended.
    pub fn open(key: ProcessKey) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(key.pid).ok()?)?;
        let descriptor = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Opened before it is looked at: should the pid have been reused, the
        // start time tells.
        let start = Proc::new(pid.as_raw_nonzero().get()).and_then(|proc| proc.stat()).ok()?.starttime;
        (start == key.start_ticks).then_some(descriptor)
    }

    /// The process behind an owner, read from `/proc` if it is new or has
    /// changed its name since.
    pub fn of(&self, owner: &Owner) -> Arc<Process> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get(&owner.key) {
            let known = Arc::clone(known);
            drop(seen);
            // A thread may carry a name of its own; only the leader's name
            // tells that `exec` has run.
            if owner.tid == owner.key.pid && known.facts().comm != owner.comm {
                known.renew(read(owner));
            }
            return known;
        }
        let process = Arc::new(Process::new(owner.key, owner.parent, owner.uid, read(owner)));
        seen.put(owner.key, Arc::clone(&process));
        // A full channel costs the process's end in the report, no more.
        let _ = self.newcomers.try_send(Arc::clone(&process));
        process
    }
}

/// Reads the facts, unless the pid is another process by now.
fn read(owner: &Owner) -> Facts {
    let fallback = || Facts { comm: owner.comm.clone(), command: owner.comm.clone(), exe: None, cgroup: None };
    let Ok(pid) = i32::try_from(owner.key.pid) else { return fallback() };
    let Ok(proc) = Proc::new(pid) else { return fallback() };
    let Ok(stat) = proc.stat() else { return fallback() };
    if stat.starttime != owner.key.start_ticks {
        return fallback();
    }
    let command = command_line(owner.key.pid).unwrap_or_default();
    Facts {
        command: if command.is_empty() { stat.comm.clone() } else { command },
        comm: stat.comm,
        exe: proc.exe().ok().map(|path| path.to_string_lossy().into_owned()),
        cgroup: proc
            .cgroups()
            .ok()
            .and_then(|groups| groups.0.into_iter().find(|group| group.hierarchy == 0).map(|group| group.pathname)),
    }
}

/// The command line, its words joined by spaces and cut where it is long.
fn command_line(pid: u32) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cmdline"))?.take(MAX_COMMAND + 1).read_to_end(&mut bytes)?;
    let cut = bytes.len() as u64 > MAX_COMMAND;
    while !cut && bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if cut {
        text.push('…');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        let proc = Proc::myself().expect("own /proc entry");
        let stat = proc.stat().expect("own stat");
        Owner {
            key: ProcessKey { pid: std::process::id(), start_ticks: stat.starttime },
            tid: std::process::id(),
            parent: stat.ppid.unsigned_abs(),
            uid: 0,
            gid: 0,
            cgroup_id: 1,
            comm: stat.comm,
        }
    }

    #[test]
    fn reads_itself_once() {
        let table = ProcessTable::new(mpsc::channel(8).0);
        let first = table.of(&me());
        assert!(first.facts().exe.as_deref().is_some_and(|exe| exe.contains("retryscope")));
        assert!(first.facts().cgroup.as_deref().is_some_and(|path| path.starts_with('/')));
        assert!(Arc::ptr_eq(&first, &table.of(&me())));
    }

    #[test]
    fn newcomers_are_told_once() {
        let (sender, mut receiver) = mpsc::channel(8);
        let table = ProcessTable::new(sender);
        table.of(&me());
        table.of(&me());
        assert_eq!(receiver.try_recv().expect("a newcomer").key, me().key);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn only_the_very_process_is_opened() {
        let mut key = me().key;
        assert!(ProcessTable::open(key).is_some());
        key.start_ticks -= 1;
        assert!(ProcessTable::open(key).is_none());
    }

    #[test]
    fn recycled_pid_is_another_process() {
        let table = ProcessTable::new(mpsc::channel(8).0);
        let mine = table.of(&me());
        let mut other = me();
        other.key.start_ticks -= 1;
        other.comm = "gone".into();
        let gone = table.of(&other);
        assert!(!Arc::ptr_eq(&mine, &gone));
        assert_eq!(gone.facts().command, "gone");
        assert_eq!(gone.facts().exe, None);
    }
}
