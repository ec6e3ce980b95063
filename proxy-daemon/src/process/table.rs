//! The table of processes seen, each read once (and again when it has changed
//! its name): from what the kernel kept, then from `/proc`.
use std::{
    io::Read,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use procfs::process::{Process as Proc, Stat};
use tokio::sync::mpsc;

use super::{CommandLine, Facts, Memory, Owner, Process, ProcessKey, containers::Names};

/// How many processes are remembered. Past it the one that has not connected
/// for longest is forgotten here; whoever holds its [`Process`] keeps it.
const MAX_PROCESSES: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// How much of a command line is kept, in bytes.
const MAX_COMMAND: u64 = 4096;

#[derive(Debug)]
pub struct ProcessTable {
    /// By process and by which program of it. The kernel's start is finer than
    /// the key's.
    seen: Mutex<LruCache<(ProcessKey, u64, u64), Arc<Process>>>,
    newcomers: mpsc::Sender<Arc<Process>>,
    memory: Arc<dyn Memory>,
    names: Names,
}

impl ProcessTable {
    /// A table that tells of every process it has not seen before. Where the
    /// receiver is slow some go untold, never delaying a connection.
    pub fn new(newcomers: mpsc::Sender<Arc<Process>>, memory: Arc<dyn Memory>) -> Self {
        Self { seen: Mutex::new(LruCache::new(MAX_PROCESSES)), newcomers, memory, names: Names::default() }
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

    /// The process behind an owner, read if it is new or has changed its name
    /// since.
    pub fn of(&self, owner: &Owner) -> Arc<Process> {
        let key = (owner.key, owner.start_boottime, owner.image);
        let known = self.seen().get(&key).map(Arc::clone);
        if let Some(known) = known {
            // Where the kernel tells no more than a thread's name, only the
            // first thread's is the process's.
            if (owner.image != 0 || owner.tid == owner.key.pid) && known.facts().comm != owner.comm {
                let facts = self.renamed(owner, &known.facts());
                known.renew(facts);
            }
            return known;
        }
        // Read while others go on; whoever is first with it has it entered.
        let process = Arc::new(Process::of(owner, self.read(owner)));
        let mut seen = self.seen();
        if let Some(known) = seen.get(&key) {
            return Arc::clone(known);
        }
        seen.put(key, Arc::clone(&process));
        drop(seen);
        // A full channel costs the process's end in the report, no more. A
        // group has no end.
        if owner.key.pid != 0 {
            let _ = self.newcomers.try_send(Arc::clone(&process));
        }
        process
    }

    fn seen(&self) -> MutexGuard<'_, LruCache<(ProcessKey, u64, u64), Arc<Process>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The facts of a process as of its connect.
    fn read(&self, owner: &Owner) -> Facts {
        let alive = living(owner);
        let kept = self.memory.command(owner);
        let command = match (&kept, &alive) {
            (Some(kept), _) if !kept.cut => text(kept),
            (_, Some(_)) => command_line(owner.key.pid).map(|line| text(&line)).unwrap_or_default(),
            (Some(kept), None) => text(kept),
            (None, None) => String::new(),
        };
        let comm = match &alive {
            // The kernel's word may be a thread's.
            Some((_, stat)) if owner.image == 0 => stat.comm.clone(),
            _ => owner.comm.clone(),
        };
        let cgroup = self
            .memory
            .cgroup(owner.cgroup_id)
            .or_else(|| cgroup_of(&alive.as_ref()?.0))
            .or_else(|| owner.cgroup.clone());
        Facts {
            command: if command.is_empty() { comm.clone() } else { command },
            comm,
            exe: alive.and_then(|(proc, _)| proc.exe().ok()).map(|path| path.to_string_lossy().into_owned()),
            container_name: cgroup.as_deref().and_then(|cgroup| self.names.of(cgroup)),
            cgroup,
        }
    }

    /// The facts of a process that has given itself another name, and often
    /// another command line with it.
    fn renamed(&self, owner: &Owner, known: &Facts) -> Facts {
        let Some((proc, stat)) = living(owner) else {
            return Facts { comm: owner.comm.clone(), ..known.clone() };
        };
        let command = command_line(owner.key.pid).map(|line| text(&line)).unwrap_or_default();
        let comm = if owner.image == 0 { stat.comm } else { owner.comm.clone() };
        Facts {
            command: if command.is_empty() { comm.clone() } else { command },
            comm,
            exe: proc.exe().ok().map(|path| path.to_string_lossy().into_owned()),
            ..known.clone()
        }
    }
}

/// The process in `/proc`, if it is there and runs the program that connected.
fn living(owner: &Owner) -> Option<(Proc, Stat)> {
    let proc = Proc::new(i32::try_from(owner.key.pid).ok()?).ok()?;
    let stat = proc.stat().ok()?;
    // 0 where it may not be seen; so it is as well once the process has ended
    // and waits to be reaped.
    let arguments = stat.arg_start.unwrap_or_default();
    let same = owner.arguments == 0 || arguments == 0 || arguments == owner.arguments;
    (stat.starttime == owner.key.start_ticks && same).then_some((proc, stat))
}

fn cgroup_of(proc: &Proc) -> Option<String> {
    let groups = proc.cgroups().ok()?;
    groups.0.into_iter().find(|group| group.hierarchy == 0).map(|group| group.pathname)
}

fn command_line(pid: u32) -> std::io::Result<CommandLine> {
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cmdline"))?.take(MAX_COMMAND + 1).read_to_end(&mut bytes)?;
    let cut = bytes.len() as u64 > MAX_COMMAND;
    bytes.truncate(usize::try_from(MAX_COMMAND).unwrap_or(usize::MAX));
    Ok(CommandLine { bytes, cut })
}

/// The command line, its words joined by spaces; with an ellipsis where it was
/// cut.
fn text(line: &CommandLine) -> String {
    let mut words = line.bytes.as_slice();
    if !line.cut {
        // A process that writes its own title over its arguments leaves no NUL
        // at the end; the title is what comes before the first.
        if words.last().is_some_and(|last| *last != 0) {
            words = words.split(|byte| *byte == 0).next().unwrap_or_default();
        }
        while let Some((0, rest)) = words.split_last() {
            words = rest;
        }
    }
    let words: Vec<u8> = words.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    let mut text = String::from_utf8_lossy(&words).into_owned();
    if line.cut {
        text.push('…');
    }
    text
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
            start_boottime: stat.starttime * 10_000_000,
            image: 3,
            arguments: stat.arg_start.unwrap_or_default(),
            command_len: 0,
            inner: None,
            comm: stat.comm,
            cgroup: None,
        }
    }

    /// A kernel that has kept one command line, or none.
    #[derive(Debug)]
    struct Kept(Option<CommandLine>);

    impl Memory for Kept {
        fn command(&self, _: &Owner) -> Option<CommandLine> {
            self.0.clone()
        }

        fn cgroup(&self, id: u64) -> Option<String> {
            (id == 77).then(|| "/kept".to_owned())
        }
    }

    fn table() -> ProcessTable {
        ProcessTable::new(mpsc::channel(8).0, Arc::new(Kept(None)))
    }

    fn kept(bytes: &[u8], cut: bool) -> ProcessTable {
        let line = CommandLine { bytes: bytes.into(), cut };
        ProcessTable::new(mpsc::channel(8).0, Arc::new(Kept(Some(line))))
    }

    /// The process is gone: everything is the kernel's word.
    #[test]
    fn what_the_kernel_kept_of_a_process_that_is_gone() {
        let gone = Owner { key: ProcessKey { pid: std::process::id(), start_ticks: 1 }, cgroup_id: 77, ..me() };
        let facts = kept(b"python3\0-m\0app\0", false).of(&gone).facts();
        assert_eq!((facts.command.as_str(), facts.cgroup.as_deref()), ("python3 -m app", Some("/kept")));
        assert_eq!(facts.exe, None);
        assert_eq!(kept(b"python3\0-m\0a", true).of(&gone).facts().command, "python3 -m a…");
        let none = table().of(&gone).facts();
        assert_eq!(none.command, none.comm);
    }

    /// The process runs another program by now: `/proc` is not believed.
    #[test]
    fn what_connected_before_an_exec() {
        let before = Owner { arguments: 1, image: 2, comm: "before".into(), ..me() };
        let facts = kept(b"before\0", false).of(&before).facts();
        assert_eq!((facts.command.as_str(), facts.exe.as_deref()), ("before", None));
    }

    /// Each program of a process is told apart, under one key.
    #[test]
    fn exec_makes_another_of_the_same_process() {
        let table = table();
        let (before, after) = (table.of(&me()), table.of(&Owner { image: 4, ..me() }));
        assert!(!Arc::ptr_eq(&before, &after));
        assert_eq!((before.key, before.image, after.image), (after.key, 3, 4));
    }

    /// A long command line is read from `/proc` as long as that has it.
    #[test]
    fn cut_only_where_nothing_has_it_whole() {
        let facts = kept(b"x", true).of(&me()).facts();
        assert!(facts.command.contains("retryscope") && !facts.command.ends_with('…'), "{}", facts.command);
    }

    #[test]
    fn titles_and_odd_command_lines() {
        let text = |bytes: &[u8]| super::text(&CommandLine { bytes: bytes.into(), cut: false });
        assert_eq!(text(b"nginx: worker\0old\0rest"), "nginx: worker");
        assert_eq!(text(b"a\0\0b\0\0"), "a  b");
        assert_eq!(text(b"\0"), "");
        assert_eq!(text(b"a\xff\0"), "a\u{fffd}");
    }

    #[test]
    fn reads_itself_once() {
        let table = table();
        let first = table.of(&me());
        assert!(first.facts().exe.as_deref().is_some_and(|exe| exe.contains("retryscope")));
        assert!(first.facts().cgroup.as_deref().is_some_and(|path| path.starts_with('/')));
        assert!(Arc::ptr_eq(&first, &table.of(&me())));
    }

    #[test]
    fn newcomers_are_told_once() {
        let (sender, mut receiver) = mpsc::channel(8);
        let table = ProcessTable::new(sender, Arc::new(Kept(None)));
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
        let table = table();
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
