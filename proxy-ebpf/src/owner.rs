//! Who is running: the facts about the current task.
use core::{ffi::c_void, mem::transmute};

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_kernel,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_current_uid_gid},
};
use retryscope_ebpf::{Address, COMM_LEN, Record};

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
        Task(self.pointer(maps::task_group_leader())).field(maps::task_start_boottime())
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

    #[inline(always)]
    fn pointer(self, offset: u32) -> *const c_void {
        self.field::<u64>(offset) as *const c_void
    }

    /// Reads the field at an offset; zero where the offset is not known or
    /// the read fails.
    #[inline(always)]
    fn field<T: Default>(self, offset: u32) -> T {
        if offset == 0 {
            return T::default();
        }
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_byte_add(offset as usize).cast::<T>()) }.unwrap_or_default()
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
    Record {
        start_boottime: task.start(),
        cgroup_id,
        origin,
        comm: comm(),
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        parent: task.parent().tgid(),
        uid: uid_gid as u32,
        gid: (uid_gid >> 32) as u32,
        origin_port,
    }
}

/// Name of the current thread. Zeroed as two words: an array of bytes would be
/// zeroed by a call to a loop.
fn comm() -> [u8; COMM_LEN] {
    let mut words = [0_u64; COMM_LEN / 8];
    // SAFETY: the helper writes as many bytes as it is told to.
    unsafe { bpf_get_current_comm(words.as_mut_ptr().cast(), COMM_LEN as u32) };
    // SAFETY: as many bytes, of any value.
    unsafe { transmute(words) }
}
