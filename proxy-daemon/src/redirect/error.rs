//! What can go wrong, said to the person at the keyboard.
use std::{error::Error, io, path::PathBuf};

use super::cgroup::CgroupError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    #[error(
        "{what} was refused by the kernel ({cause}): run as root (sudo), or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    )]
    Permission { what: &'static str, cause: String },
    #[error(
        "{what} was refused by the kernel ({cause}): run as root (sudo), or with CAP_NET_ADMIN in this network namespace"
    )]
    Capability { what: &'static str, cause: String },
    #[error("{what} does not work on this kernel: {cause}. {remedy}")]
    Kernel { what: &'static str, cause: String, remedy: &'static str },
    #[error("{given} ports to watch were given, {max} are possible: name fewer, or watch every port with --port any", max = retryscope_ebpf::MAX_PORTS)]
    Ports { given: usize },
    #[error("there is no cgroup at {path}: name a directory below the cgroup2 mount (see `retryscope doctor`)", path = path.display())]
    NoCgroup { path: PathBuf },
    #[error("there is no process {pid}: it has ended, or it is in another pid namespace")]
    NoProcess { pid: u32 },
    #[error("the listener on {address} could not be opened ({cause}): the loopback must be up (`ip link set lo up`)")]
    Listener { address: &'static str, cause: io::Error },
    #[error(
        "there is no network interface {name} that traffic could arrive on: `ip link` lists those of this network namespace"
    )]
    Interface { name: String },
    #[error("{given} interfaces were given; at most {most} are possible")]
    Interfaces { given: usize, most: usize },
    #[error(
        "another instance already takes all of this network namespace's connections (it holds the table inet {table}): end that one first, or choose a --cgroup"
    )]
    NamespaceTaken { table: String },
    #[error("{most} instances redirect in this network namespace already, and there cannot be more: end one of them")]
    Instances { most: u8 },
    #[error("only TPROXY takes a network namespace or an interface: leave out --redirect ebpf, or choose a --cgroup")]
    NeedsTproxy,
    #[error(
        "TPROXY cannot tell one process from its neighbours in the cgroup: leave out --redirect tproxy, or choose the --cgroup"
    )]
    NeedsEbpf,
    #[error(
        "--fail closed takes eBPF: what TPROXY redirects goes direct as soon as retryscope is gone; choose a --cgroup or a --pid, or --fail open"
    )]
    NeedsEbpfToRefuse,
    #[error("{ebpf}\nTPROXY, the other way, does not work either: {tproxy}")]
    Neither { ebpf: Box<RedirectError>, tproxy: Box<RedirectError> },
    #[error("the network namespace of process {pid} cannot be entered ({cause}): run as root on the host")]
    Network { pid: u32, cause: io::Error },
    #[error("the process that holds the packet filter says: {cause}")]
    Elsewhere { cause: String },
    #[error("no port is free in a network namespace that no other listener has: too many are in use")]
    NoPort,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl RedirectError {
    /// 64 usage, 69 the kernel lacks something, 77 permission.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Permission { .. } | Self::Capability { .. } => 77,
            Self::Kernel { .. }
            | Self::Listener { .. }
            | Self::Network { .. }
            | Self::Elsewhere { .. }
            | Self::NoPort
            | Self::NamespaceTaken { .. }
            | Self::Instances { .. } => 69,
            Self::Ports { .. }
            | Self::NoCgroup { .. }
            | Self::NoProcess { .. }
            | Self::Interface { .. }
            | Self::Interfaces { .. }
            | Self::NeedsTproxy
            | Self::NeedsEbpfToRefuse
            | Self::NeedsEbpf => 64,
            Self::Neither { ebpf, .. } => ebpf.exit_code(),
            Self::Cgroup(error) => error.exit_code(),
        }
    }

    /// Classes an error of aya's (or any other) by the system call's answer.
    pub(super) fn of(what: &'static str, error: &(dyn Error + 'static)) -> Self {
        let cause = summary(error);
        // The kernel says EPERM and EACCES to what a lesser process may not
        // do, and also to what no process may do.
        match os_error(error) {
            Some(nix::libc::EPERM | nix::libc::EACCES) if !super::probe::has_capabilities() => {
                Self::Permission { what, cause }
            }
            Some(nix::libc::EPERM) => Self::Kernel {
                what,
                cause,
                remedy: "Another program may hold the cgroup for itself (`bpftool cgroup tree` shows which), \
                         or the kernel is locked down",
            },
            _ => Self::Kernel { what, cause, remedy: "Run `retryscope doctor` to see what is missing" },
        }
    }
}

fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// One line: the error and its sources, without the verifier's log.
pub(super) fn summary(error: &(dyn Error + 'static)) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let line = text.split(". Verifier output").next().unwrap_or_default().lines().next().unwrap_or_default();
        if !line.is_empty() && lines.last().is_none_or(|last| !last.contains(line)) {
            lines.push(line.to_owned());
        }
        next = error.source();
    }
    lines.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_command_line_contract() {
        let refused = RedirectError::Permission { what: "loading", cause: "Operation not permitted".into() };
        assert_eq!(refused.exit_code(), 77);
        assert!(refused.to_string().contains("sudo"), "{refused}");
        let missing = RedirectError::of("loading", &io::Error::from_raw_os_error(nix::libc::EINVAL));
        assert_eq!(missing.exit_code(), 69);
        assert_eq!(RedirectError::NoProcess { pid: 1 }.exit_code(), 64);
    }
}
