//! The system calls that a confined process may make (seccomp).
//!
//! What is not listed fails with EPERM: a library that asks in vain for
//! something it can do without goes on. Arguments are looked at where they
//! make the difference: sockets of which family, BPF to do what, a new thread
//! and never a new process.
use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Which part a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves connections: parses what comes from the network.
    Server,
    /// Keeps the authority's key and the loaded programs.
    Keeper,
    /// Listens in other network namespaces, and makes sockets there.
    Porter,
    /// The same, where connections are redirected by TPROXY: holds the packet
    /// filter's table, looks up owners, and makes sockets that it leaves alone.
    Filter,
    /// Outlives the server, to refuse connects.
    Warden,
}

/// Of both: memory, threads, time, descriptors that are open, reading files.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The older names of some of them, which C libraries still use.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Of the server: connections, what it keeps on disk, processes' ends.
const SERVER: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_fchmod,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    libc::SYS_pwrite64,
    libc::SYS_recvmmsg,
    libc::SYS_renameat2,
    libc::SYS_sendmmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_unlinkat,
];
#[cfg(target_arch = "x86_64")]
const OLDER_SERVER: &[libc::c_long] = &[libc::SYS_rename, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_SERVER: &[libc::c_long] = &[];

/// Of the keeper: cgroups that come and go.
const KEEPER: &[libc::c_long] = &[libc::SYS_getsockopt, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch];

/// Of the porter: listeners, and cgroups that people come into.
const PORTER: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_listen,
    libc::SYS_setsockopt,
];

/// Of the warden: it ends the one before it.
const WARDEN: &[libc::c_long] = &[libc::SYS_pidfd_send_signal];

/// linux/bpf.h
const MAP_LOOKUP: u64 = 1;
const MAP_UPDATE: u64 = 2;
const MAP_DELETE: u64 = 3;
const LINK_CREATE: u64 = 28;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn rules(role: Role) -> Result<Rules, seccompiler::BackendError> {
    let number = |value: libc::c_int| u64::from(value.cast_unsigned());
    let own = match role {
        Role::Server => [SERVER, OLDER_SERVER],
        Role::Keeper => [KEEPER, &[]],
        Role::Porter | Role::Filter => [PORTER, &[]],
        Role::Warden => [WARDEN, &[]],
    };
    let mut rules: Rules =
        COMMON.iter().chain(OLDER).chain(own.into_iter().flatten()).map(|call| (*call, Vec::new())).collect();
    let mut only = |call: libc::c_long, conditions: Vec<Vec<SeccompCondition>>| {
        let conditions = conditions.into_iter().map(SeccompRule::new).collect::<Result<Vec<_>, _>>()?;
        rules.insert(call, conditions);
        Ok::<_, seccompiler::BackendError>(())
    };
    // A thread shares everything with its process; a process would not. (What
    // asks by clone3, whose flags cannot be seen, is told that there is none.)
    only(libc::SYS_clone, vec![vec![masked(0, number(libc::CLONE_THREAD), number(libc::CLONE_THREAD))?]])?;
    // A thread's name, and that of its memory.
    let named = [libc::PR_SET_NAME, libc::PR_SET_VMA].map(|what| equal(0, number(what)).map(|it| vec![it]));
    only(libc::SYS_prctl, named.into_iter().collect::<Result<_, _>>()?)?;
    // To read limits, not to set them.
    let read = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    only(libc::SYS_prlimit64, vec![vec![read]])?;
    let mut controls = vec![libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS];
    // Whether the loopback is up.
    controls.extend((role == Role::Porter).then_some(libc::SIOCGIFFLAGS));
    let controls = controls.into_iter().map(|what| equal(1, what).map(|it| vec![it]));
    only(libc::SYS_ioctl, controls.collect::<Result<_, _>>()?)?;
    let used: &[u64] = match role {
        Role::Server | Role::Warden => &[MAP_LOOKUP, MAP_UPDATE],
        Role::Keeper => &[LINK_CREATE],
        Role::Porter => &[MAP_LOOKUP, MAP_UPDATE, MAP_DELETE],
        Role::Filter => &[],
    };
    if !used.is_empty() {
        only(libc::SYS_bpf, used.iter().map(|what| equal(0, *what).map(|it| vec![it])).collect::<Result<_, _>>()?)?;
    }
    let (families, kinds): (&[_], &[_]) = match role {
        Role::Server => (&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6], &[libc::SOCK_STREAM, libc::SOCK_DGRAM]),
        Role::Porter | Role::Filter => (&[libc::AF_INET, libc::AF_INET6], &[libc::SOCK_STREAM]),
        Role::Keeper | Role::Warden => (&[], &[]),
    };
    const KIND: u64 = 0xf;
    let mut sockets = Vec::new();
    for (family, kind) in families.iter().flat_map(|family| kinds.iter().map(move |kind| (*family, *kind))) {
        sockets.push(vec![equal(0, number(family))?, masked(1, KIND, number(kind))?]);
    }
    if !sockets.is_empty() {
        only(libc::SYS_socket, sockets)?;
    }
    if role == Role::Porter {
        only(libc::SYS_setns, vec![vec![equal(1, number(libc::CLONE_NEWNET))?]])?;
    }
    if matches!(role, Role::Porter | Role::Filter) {
        // No file rules can hold for it (see `confine`); so it only reads.
        let writing = number(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND);
        only(libc::SYS_openat, vec![vec![masked(2, writing, 0)?]])?;
        #[cfg(target_arch = "x86_64")]
        only(libc::SYS_open, vec![vec![masked(1, writing, 0)?]])?;
    }
    Ok(rules)
}

fn program(rules: Rules, listed: SeccompAction, others: SeccompAction) -> Result<BpfProgram, String> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|_| "unknown kind of processor".to_owned())?;
    let filter = SeccompFilter::new(rules, others, listed, arch).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

/// Confines this thread and those that it starts.
pub(super) fn confine(role: Role) -> Result<(), String> {
    let refused = |error: libc::c_int| SeccompAction::Errno(error.cast_unsigned());
    let mut listed = rules(role).map_err(|error| error.to_string())?;
    listed.insert(libc::SYS_clone3, Vec::new());
    let listed = program(listed, SeccompAction::Allow, refused(libc::EPERM))?;
    // With it C libraries fall back to clone, whose flags can be seen.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let unknown = program(unknown, refused(libc::ENOSYS), SeccompAction::Allow)?;
    // The first leaves the call that installs the second.
    apply_filter(&unknown).map_err(|error| error.to_string())?;
    apply_filter(&listed).map_err(|error| error.to_string())
}
