//! The two ways in which connections come here, and the choice between them.
//!
//! In: what is wanted ([`Wanted`]). Out: a [`Redirection`] in force, which
//! looks the same from above whichever way it goes, and says which it is and
//! why.
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    Counters, Door, Fail, Listeners, Network, Options, Pending, Redirect, RedirectError, Redirected, Target,
    tproxy::{self, Far, Tproxy},
};
use crate::process::{
    CommandLine, Memory, Owner,
    warden::{Post, Warden},
};

/// The way that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// eBPF where the cgroup can be attached to, else TPROXY.
    #[default]
    Auto,
    Ebpf,
    Tproxy,
}

/// Whose connections are redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Target(Target),
    /// Every process in this network namespace, but for the daemon itself.
    Namespace,
    /// What arrives on these interfaces, on its way to another machine.
    Ingress(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Wanted {
    /// At most [`retryscope_ebpf::MAX_PORTS`]; none stands for every TCP port.
    pub ports: Vec<u16>,
    /// Leave UDP to the watched ports alone instead of refusing it.
    pub allow_quic: bool,
    /// What becomes of connects that cannot be carried. Only eBPF refuses
    /// them.
    pub fail: Fail,
    pub reach: Reach,
    pub choice: Choice,
}

/// Which way it is, and why, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// `ebpf` or `tproxy`.
    pub name: &'static str,
    /// Why not the other, where there was a choice.
    pub why: Option<String>,
}

/// A redirection in force. It ends when this is dropped.
#[derive(Debug)]
pub struct Redirection {
    by: By,
    way: Way,
}

#[derive(Debug)]
enum By {
    Ebpf(Arc<Redirect>),
    Tproxy(Box<Tproxy>),
    /// With a table that another process holds.
    Far(Box<Far>),
}

impl Redirection {
    /// Opens the listeners and puts the redirection into force.
    ///
    /// `daemon_cgroup` is the directory of the cgroup in which this process
    /// now is; only eBPF needs it.
    pub fn start(wanted: &Wanted, daemon_cgroup: Option<&Path>) -> Result<(Self, Listeners), RedirectError> {
        match wanted.choice {
            Choice::Tproxy => Self::by_tproxy(wanted, None),
            Choice::Ebpf => Self::by_ebpf(wanted, daemon_cgroup),
            Choice::Auto if !matches!(wanted.reach, Reach::Target(_)) => {
                let why = "eBPF takes processes by their cgroup, not a network namespace or an interface";
                Self::by_tproxy(wanted, Some(why.to_owned()))
            }
            Choice::Auto => match Self::by_ebpf(wanted, daemon_cgroup) {
                Err(error) if can_be_helped(wanted, &error) => {
                    let why = error.to_string();
                    Self::by_tproxy(wanted, Some(format!("eBPF cannot be used: {why}")))
                        .map_err(|other| RedirectError::Neither { ebpf: Box::new(error), tproxy: Box::new(other) })
                }
                started => started,
            },
        }
    }

    fn by_ebpf(wanted: &Wanted, daemon_cgroup: Option<&Path>) -> Result<(Self, Listeners), RedirectError> {
        let Reach::Target(target) = &wanted.reach else {
            return Err(RedirectError::NeedsTproxy);
        };
        let daemon_cgroup = daemon_cgroup.ok_or(super::cgroup::CgroupError::NotMounted)?;
        let options = Options {
            ports: wanted.ports.clone(),
            allow_quic: wanted.allow_quic,
            fail: wanted.fail,
            target: target.clone(),
        };
        let (redirect, listeners) = Redirect::start(&options, daemon_cgroup)?;
        Ok((Self { by: By::Ebpf(Arc::new(redirect)), way: Way { name: "ebpf", why: None } }, listeners))
    }

    fn by_tproxy(wanted: &Wanted, why: Option<String>) -> Result<(Self, Listeners), RedirectError> {
        if wanted.fail == Fail::Closed {
            return Err(RedirectError::NeedsEbpfToRefuse);
        }
        let mut ports = wanted.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        if ports.len() > retryscope_ebpf::MAX_PORTS {
            return Err(RedirectError::Ports { given: ports.len() });
        }
        let reach = match &wanted.reach {
            Reach::Target(Target::Cgroup(path)) => tproxy::Reach::Cgroup(path),
            Reach::Target(Target::Process { .. } | Target::Several(_)) => return Err(RedirectError::NeedsEbpf),
            Reach::Namespace => tproxy::Reach::Namespace,
            Reach::Ingress(interfaces) => tproxy::Reach::Ingress(interfaces),
        };
        let (tproxy, listeners) = Tproxy::start(&ports, wanted.allow_quic, &reach)?;
        Ok((Self { by: By::Tproxy(Box::new(tproxy)), way: Way { name: "tproxy", why } }, listeners))
    }

    /// By TPROXY, with a table that another process holds.
    pub fn far(far: Far) -> Self {
        Self { by: By::Far(Box::new(far)), way: Way { name: "tproxy", why: None } }
    }

    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Where an accepted connection was meant to go, and whose it is. `None`
    /// if no redirect explains it: it must be closed.
    pub fn origin_of(&self, accepted: &impl AsFd) -> Result<Option<Redirected>, RedirectError> {
        match &self.by {
            By::Ebpf(redirect) => redirect.origin_of(accepted),
            By::Tproxy(tproxy) => tproxy.origin_of(accepted),
            By::Far(far) => Ok(far.origin_of(accepted)),
        }
    }

    /// Marks a socket of the daemon's own before it connects: it is never
    /// redirected.
    pub fn exempt(&self, socket: &impl AsFd) -> Result<(), RedirectError> {
        match &self.by {
            By::Ebpf(redirect) => redirect.exempt(socket),
            By::Tproxy(tproxy) => tproxy.exempt(socket),
            // It was made so: see `socket_in`.
            By::Far(_) => Ok(()),
        }
    }

    /// As [`Redirect::look_around`]. TPROXY takes one network namespace, its
    /// own.
    pub fn look_around(&self, target: &Target) -> Vec<Door> {
        match &self.by {
            By::Ebpf(redirect) => redirect.look_around(target),
            By::Tproxy(_) | By::Far(_) => Vec::new(),
        }
    }

    /// Whether there are listeners in other network namespaces.
    pub fn listens_elsewhere(&self) -> bool {
        match &self.by {
            By::Ebpf(redirect) => redirect.listens_elsewhere(),
            By::Tproxy(_) | By::Far(_) => false,
        }
    }

    /// A socket that somebody else has to make: in another network namespace, or
    /// with what this process may not give it. `None` where any will do.
    pub fn socket_in(&self, network: Network, v6: bool) -> Option<Pending> {
        match &self.by {
            By::Ebpf(redirect) => redirect.socket_in(network, v6),
            By::Tproxy(_) => None,
            By::Far(far) => Some(far.socket(v6)),
        }
    }

    pub fn counters(&self) -> Counters {
        match &self.by {
            By::Ebpf(redirect) => redirect.counters(),
            By::Tproxy(tproxy) => tproxy.counters(),
            By::Far(far) => far.counters(),
        }
    }

    /// As [`Redirect::guard`]; TPROXY has nothing to hold on to.
    pub fn guard(&self, by: Warden, listeners: &Listeners, post: &Post<'_>) -> io::Result<()> {
        match &self.by {
            By::Ebpf(redirect) => redirect.guard(by, listeners, post),
            By::Tproxy(_) | By::Far(_) => Ok(()),
        }
    }

    /// As [`Redirect::relieve`].
    pub fn relieve(&self, left: &[OwnedFd]) {
        match &self.by {
            By::Ebpf(redirect) => redirect.relieve(left),
            By::Tproxy(_) | By::Far(_) => {}
        }
    }

    /// This process answers for so long, and has room for so many connects.
    pub fn renew(&self, time: Duration, room: u64) {
        match &self.by {
            By::Ebpf(redirect) => redirect.renew(time, room),
            By::Tproxy(tproxy) => tproxy.renew(room),
            By::Far(far) => far.renew(room),
        }
    }

    /// From now on every new connect goes direct; or no longer. Connections
    /// already here go on.
    pub fn bypass(&self, on: bool) -> Result<(), RedirectError> {
        match &self.by {
            By::Ebpf(redirect) => redirect.bypass(on),
            By::Tproxy(tproxy) => tproxy.bypass(on),
            By::Far(far) => far.bypass(on).map_err(|cause| RedirectError::Elsewhere { cause }),
        }
    }

    /// Lets every new connect go direct; connections already here go on.
    pub fn detach(&self) {
        match &self.by {
            By::Ebpf(redirect) => redirect.detach(),
            By::Tproxy(tproxy) => tproxy.detach(),
            By::Far(far) => far.detach(),
        }
    }
}

impl From<Arc<Redirect>> for Redirection {
    /// What somebody else attaches cgroups to, and detaches them from.
    fn from(redirect: Arc<Redirect>) -> Self {
        Self { by: By::Ebpf(redirect), way: Way { name: "ebpf", why: None } }
    }
}

impl Memory for Redirection {
    fn command(&self, owner: &Owner) -> Option<CommandLine> {
        match &self.by {
            By::Ebpf(redirect) => redirect.command(owner),
            // It looks the owner up when the connection is there, and keeps
            // nothing.
            By::Tproxy(_) | By::Far(_) => None,
        }
    }

    fn cgroup(&self, id: u64) -> Option<String> {
        match &self.by {
            By::Ebpf(redirect) => redirect.cgroup(id),
            By::Tproxy(_) | By::Far(_) => None,
        }
    }
}

/// Whether TPROXY may work where eBPF did not. One process cannot be told from
/// its neighbours there; and what is wrong with the request stays wrong.
fn can_be_helped(wanted: &Wanted, error: &RedirectError) -> bool {
    matches!(wanted.reach, Reach::Target(Target::Cgroup(_)))
        && wanted.fail == Fail::Open
        && matches!(error, RedirectError::Permission { .. } | RedirectError::Kernel { .. } | RedirectError::Cgroup(_))
}
