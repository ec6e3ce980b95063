//! One program on one cgroup: a `bpf_link`, which lasts as long as somebody
//! holds its descriptor.
use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::libc;

use super::load::{DIVERTING, HANDOVER, NAMING};

/// Where in the kernel a program is called, by its number in linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook(u32);

impl Hook {
    /// The hook that a program of the kernel side is written for.
    pub(super) fn of(program: &str) -> Option<Self> {
        let [sendmsg4, sendmsg6, connect4, connect6] = DIVERTING;
        let [getpeername4, getpeername6] = NAMING;
        let number = match program {
            HANDOVER => 3,
            _ if program == connect4 => 10,
            _ if program == connect6 => 11,
            _ if program == sendmsg4 => 14,
            _ if program == sendmsg6 => 15,
            _ if program == getpeername4 => 29,
            _ if program == getpeername6 => 30,
            _ => return None,
        };
        Some(Self(number))
    }
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads for a cgroup.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    hook: u32,
    /// None: a link is added to those of others, and order is by age.
    flags: u32,
}

/// Attaches a program to a cgroup. Never the older PROG_ATTACH, which would
/// outlive its process.
pub(super) fn create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    let number = |descriptor: BorrowedFd<'_>| descriptor.as_raw_fd().cast_unsigned();
    let attributes = LinkCreate { program: number(program), target: number(cgroup), hook: hook.0, flags: 0 };
    // SAFETY: the attributes outlive the call, their size is told, and both
    // descriptors are open.
    let made = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attributes, size_of::<LinkCreate>()) };
    opened(made)
}

fn opened(made: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(made) {
        // SAFETY: the kernel has just opened it for us, closed on exec.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The part of `union bpf_attr` that BPF_RAW_TRACEPOINT_OPEN reads.
#[repr(C)]
struct TracepointOpen {
    name: u64,
    program: u32,
    _padding: u32,
}

/// Attaches a program to a raw tracepoint.
pub(super) fn trace(program: BorrowedFd<'_>, tracepoint: &CStr) -> io::Result<OwnedFd> {
    const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    let attributes = TracepointOpen {
        name: tracepoint.as_ptr().addr() as u64,
        program: program.as_raw_fd().cast_unsigned(),
        _padding: 0,
    };
    // SAFETY: the attributes and the name outlive the call, the size is told,
    // and the descriptor is open.
    let made = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &raw const attributes, size_of::<TracepointOpen>())
    };
    opened(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cgroup_program_has_its_hook() {
        let hooks: std::collections::BTreeSet<u32> = DIVERTING
            .into_iter()
            .chain(NAMING)
            .chain([HANDOVER])
            .map(|name| Hook::of(name).unwrap_or_else(|| panic!("{name} has no hook")).0)
            .collect();
        assert_eq!(hooks.len(), 7);
        assert_eq!(Hook::of("rs_fork"), None);
    }
}
