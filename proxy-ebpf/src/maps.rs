//! The maps, and the constants that the daemon sets before it loads.
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use retryscope_ebpf::{
    COUNTERS, Counter, Gate, Handshake, Listening, MAX_HANDSHAKES, MAX_NETWORKS, MAX_PIECES_KEPT, MAX_PORTS,
    MAX_PROCESSES, Piece, PieceKey, Record,
};

/// On a client's socket that was redirected. Freed with the socket.
#[btf_map]
pub(crate) static CLIENTS: SkStorage<Record> = SkStorage::new();

/// Records on their way from the client's socket to the accepted one.
#[btf_map]
pub(crate) static HANDSHAKES: LruHashMap<Handshake, Record, MAX_HANDSHAKES> = LruHashMap::new();

/// On a socket that the daemon accepts; it reads them by file descriptor.
#[btf_map]
pub(crate) static ACCEPTED: SkStorage<Record> = SkStorage::new();

/// On the daemon's own sockets: never redirected, wherever it lives. Only who
/// holds this map can tag a socket.
#[btf_map]
pub(crate) static EXEMPT: SkStorage<u32> = SkStorage::new();

/// The watched ports, in host byte order.
#[btf_map]
pub(crate) static PORTS: HashMap<u32, u32, MAX_PORTS> = HashMap::new();

/// The tree of the watched process: thread group id to its start, in 1/100 s
/// since boot. Unused where a whole cgroup is the target.
#[btf_map]
pub(crate) static PROCESSES: HashMap<u32, u64, MAX_PROCESSES> = HashMap::new();

/// The listeners in other network namespaces: by the namespace's cookie, and
/// each by its own key.
#[btf_map]
pub(crate) static NETWORKS: HashMap<u64, Listening, { 3 * MAX_NETWORKS }> = HashMap::new();

/// What the daemon can take; one entry.
#[btf_map]
pub(crate) static GATE: Array<Gate, 1> = Array::new();

/// Command lines of processes that connected: `/proc` may have nothing of them
/// any more when the daemon accepts.
#[btf_map]
pub(crate) static COMMANDS: LruHashMap<PieceKey, Piece, MAX_PIECES_KEPT> = LruHashMap::new();

#[btf_map]
pub(crate) static TALLY: PerCpuArray<u64, COUNTERS> = PerCpuArray::new();

pub(crate) fn count(counter: Counter) {
    if let Some(slot) = TALLY.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own. A count may be lost where an
        // interrupt counts between read and write; these are statistics.
        unsafe { *slot += 1 };
    }
}

/// A number that the daemon writes into `.rodata` before loading. It is frozen
/// then, and the verifier drops the branches that it makes unreachable.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident, $read:ident: $type:ty;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: $type = 0;

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $read() -> $type {
            // SAFETY: a static that only the loader writes, before the
            // program exists.
            unsafe { read_volatile(addr_of!($name)) }
        }
    )*};
}

settings! {
    /// Port of the listener on 127.0.0.1, host byte order.
    LISTENER_V4, listener_v4: u32;
    /// Port of the listener on ::1, host byte order; 0 where there is none.
    LISTENER_V6, listener_v6: u32;
    /// Cookie of the network namespace that the listeners are in.
    NETNS_COOKIE, netns_cookie: u64;
    /// 1: every TCP port is watched; `PORTS` then are those of UDP alone.
    EVERY_PORT, every_port: u32;
    /// 1: refuse UDP to watched ports.
    REFUSE_UDP, refuse_udp: u32;
    /// 1: `bpf_set_retval` exists (5.18), so a refusal can say ECONNREFUSED.
    HAS_SET_RETVAL, has_set_retval: u32;
    /// 1: `bpf_skc_to_mptcp_sock` exists (5.19, with MPTCP and BTF).
    HAS_MPTCP, has_mptcp: u32;
    /// 1: only the processes in `PROCESSES` are the target.
    ONLY_PROCESSES, only_processes: u32;
    /// Offsets into the kernel's structures, in bytes; all 0 where not known.
    TASK_TGID, task_tgid: u32;
    TASK_GROUP_LEADER, task_group_leader: u32;
    TASK_START_BOOTTIME, task_start_boottime: u32;
    TASK_REAL_PARENT, task_real_parent: u32;
    TASK_SIGNAL, task_signal: u32;
    SIGNAL_LIVE, signal_live: u32;
    TASK_COMM, task_comm: u32;
    TASK_EXEC_ID, task_exec_id: u32;
    TASK_MM, task_mm: u32;
    MM_ARG_START, mm_arg_start: u32;
    MM_ARG_END, mm_arg_end: u32;
    TASK_PID, task_pid: u32;
    PID_LEVEL, pid_level: u32;
    PID_NUMBERS, pid_numbers: u32;
}
