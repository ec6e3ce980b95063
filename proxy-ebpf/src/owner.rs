//! Who is running: the facts about the current task.
use core::{
    ffi::c_void,
    mem::{MaybeUninit, transmute},
    ptr::write_volatile,
};

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_current_uid_gid,
        bpf_probe_read_kernel, bpf_probe_read_user,
    },
};
use retryscope_ebpf::{Address, COMM_LEN, MAX_PIECES, PIECE_LEN, Piece, PieceKey, Record};

use crate::maps;

const NANOS_PER_TICK: u64 = 10_000_000;

/// A `task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const c_void);

impl Task {
    pub(crate) fn new(task: *const c_void) -> Self {
        Self(task)
    }

    pub(crate) fn current() -> Self {
        // SAFETY: a helper without conditions.
        Self(unsafe { bpf_get_current_task() } as *const c_void)
    }

    pub(crate) fn tgid(self) -> u32 {
        self.field(maps::task_tgid())
    }

    /// Start of the thread group, ns since boot.
    pub(crate) fn start(self) -> u64 {
        self.leader().field(maps::task_start_boottime())
    }

    /// The same as `/proc` shows it, in 1/100 s.
    pub(crate) fn start_ticks(self) -> u64 {
        self.start() / NANOS_PER_TICK
    }

    pub(crate) fn parent(self) -> Self {
        Task(self.pointer(maps::task_real_parent()))
    }

    /// How many threads of the group have not begun to exit.
    pub(crate) fn living_threads(self) -> u32 {
        Task(self.pointer(maps::task_signal())).field(maps::signal_live())
    }

    fn leader(self) -> Self {
        Task(self.pointer(maps::task_group_leader()))
    }

    /// How often the process has called `exec`. Children begin with their
    /// parent's number, threads share their process's.
    fn image(self) -> u64 {
        self.field(maps::task_exec_id())
    }

    /// Where the command line begins and ends in the process's memory.
    fn arguments(self) -> (u64, u64) {
        let memory = Task(self.pointer(maps::task_mm()));
        (memory.field(maps::mm_arg_start()), memory.field(maps::mm_arg_end()))
    }

    /// The process's number in its own pid namespace; 0 where not known.
    fn inner(self) -> u32 {
        /// `struct upid`: the number, and its namespace.
        const UPID: u32 = 16;
        /// The kernel nests no deeper than 32.
        const DEEPEST: u32 = 31;
        if maps::pid_numbers() == 0 {
            return 0;
        }
        let pid = Task(self.leader().pointer(maps::task_pid()));
        let level: u32 = pid.field(maps::pid_level());
        pid.field(maps::pid_numbers() + (level & DEEPEST) * UPID)
    }

    /// Name of the process.
    fn comm(self) -> [u8; COMM_LEN] {
        if maps::task_comm() == 0 {
            return current_comm();
        }
        let words: [u64; COMM_LEN / 8] = self.leader().field(maps::task_comm());
        // SAFETY: as many bytes, of any value.
        unsafe { transmute(words) }
    }

    #[inline(always)]
    fn pointer(self, offset: u32) -> *const c_void {
        self.field::<u64>(offset) as *const c_void
    }

    /// Reads the field at an offset; zero where the offset is not known or
    /// the read fails. Without a branch for the latter: each would double the
    /// ways that the verifier has to follow.
    #[inline(always)]
    fn field<T: Copy + Default>(self, offset: u32) -> T {
        if offset == 0 {
            return T::default();
        }
        let mut value = MaybeUninit::<T>::uninit();
        let source = self.0.wrapping_byte_add(offset as usize);
        // SAFETY: the helper checks the address, and zeroes the value instead
        // of faulting; so it is written either way, and integers may have any
        // bits.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, source);
            value.assume_init()
        }
    }
}

pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the current process belongs to the target.
pub(crate) fn is_target() -> bool {
    maps::only_processes() == 0 || is_watched()
}

/// Whether the current process is one of the watched ones. Its start time
/// tells it from another that has got its number since.
pub(crate) fn is_watched() -> bool {
    // SAFETY: the value is copied at once.
    match unsafe { maps::PROCESSES.get(current_tgid()) } {
        Some(start) => *start == Task::current().start_ticks(),
        None => false,
    }
}

/// The record of a connect that the current task makes.
#[inline(always)]
pub(crate) fn record(origin: Address, origin_port: u32) -> Record {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: helpers without conditions.
    let (uid_gid, cgroup_id) = unsafe { (bpf_get_current_uid_gid(), bpf_get_current_cgroup_id()) };
    let task = Task::current();
    let (begin, end) = task.arguments();
    Record {
        start_boottime: task.start(),
        cgroup_id,
        image: task.image(),
        arguments: begin,
        origin,
        comm: task.comm(),
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        parent: task.parent().tgid(),
        uid: uid_gid as u32,
        gid: (uid_gid >> 32) as u32,
        origin_port,
        command_len: end.wrapping_sub(begin) as u32,
        inner: task.inner(),
    }
}

/// Keeps the command line of the record's process, the current one, unless it
/// is kept already. What cannot be read is missing: the daemon then asks
/// `/proc`.
#[inline(never)]
pub(crate) fn keep_command(record: &Record) {
    let mut key = PieceKey { start_boottime: record.start_boottime, image: record.image, tgid: record.tgid, number: 0 };
    // SAFETY: the value is not looked at.
    if unsafe { maps::COMMANDS.get(&key) }.is_some() {
        return;
    }
    // Another task of this CPU may run this at any time: only the stack is
    // nobody else's.
    let mut piece = MaybeUninit::<Piece>::uninit();
    let mut from = 0;
    while key.number < MAX_PIECES && from < record.command_len {
        let length = (record.command_len - from).min(PIECE_LEN as u32);
        // No bytes of the piece before.
        clear(&mut piece);
        let source = record.arguments.wrapping_add(from as u64) as *const c_void;
        // SAFETY: the helper writes no more than `length` bytes, which the
        // piece has; it checks the source and fails instead of faulting.
        let read = unsafe { bpf_probe_read_user(piece.as_mut_ptr().cast(), length, source) };
        // SAFETY: it has been written from end to end.
        if read != 0 || maps::COMMANDS.insert(&key, unsafe { piece.assume_init_ref() }, 0).is_err() {
            return;
        }
        key.number += 1;
        from += PIECE_LEN as u32;
    }
}

/// Fills a piece with zeros, word by word: otherwise that would be a call to a
/// loop over its bytes, which the verifier follows round by round.
#[inline(always)]
fn clear(piece: &mut MaybeUninit<Piece>) {
    let words = piece.as_mut_ptr().cast::<u64>();
    let mut at = 0;
    while at < PIECE_LEN / 8 {
        // SAFETY: within the piece.
        unsafe { write_volatile(words.wrapping_add(at), 0) };
        at += 1;
    }
}

/// Name of the current thread, where that of its process is not to be had.
fn current_comm() -> [u8; COMM_LEN] {
    let mut comm = MaybeUninit::<[u8; COMM_LEN]>::uninit();
    // SAFETY: the helper writes as many bytes as it is told to, also where it
    // fails.
    unsafe {
        bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_LEN as u32);
        comm.assume_init()
    }
}
