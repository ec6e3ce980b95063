//! One loaded kernel side on several cgroups, which come and go.
//!
//! In: directories of cgroups. Out: an [`Attachment`] for each, in force until
//! it is dropped. The process that attaches need not be the one that holds
//! what is attached: an attachment is a handful of descriptors, and so are the
//! [`Maps`]; whoever holds them needs no privilege.
//!
//! No cgroup may be attached that lies in another that is: programs would run
//! twice for one connect, and the second run would undo what the first has
//! done. [`outermost`] chooses.
use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    Listeners, RedirectError, btf, listen,
    load::{self, DIVERTING, HANDOVER, NAMING},
    tally::Tally,
};

/// Where HTTP/3 is spoken by itself.
const QUIC: u16 = 443;

/// What is redirected, whoever the target is.
#[derive(Clone, Debug)]
pub struct Watched {
    /// At most [`retryscope_ebpf::MAX_PORTS`]; none stands for every TCP port
    /// but the listeners' own.
    pub ports: Vec<u16>,
    /// Leave UDP to the watched ports alone instead of refusing it.
    pub allow_quic: bool,
}

/// The kernel side, loaded, and ready to be attached.
#[derive(Debug)]
pub struct Attacher {
    pub(super) loaded: load::Loaded,
    /// Where the listeners' sockets belong.
    daemon: PathBuf,
}

/// What tells connections' origins and owners, keeps our own sockets apart,
/// and counts; held by who serves the connections.
#[derive(Debug)]
pub struct Maps {
    pub accepted: OwnedFd,
    pub exempt: OwnedFd,
    pub tally: OwnedFd,
    pub commands: OwnedFd,
    /// For whoever may enter other network namespaces.
    pub networks: Option<OwnedFd>,
    pub gate: OwnedFd,
}

/// The programs on one cgroup. They stay until this is dropped.
#[derive(Debug)]
pub struct Attachment {
    // What diverts goes first, also when this is dropped.
    pub(super) diverting: Vec<OwnedFd>,
    pub(super) serving: Vec<OwnedFd>,
}

impl Attachment {
    /// What diverts or refuses, and what serves connections already diverted.
    pub fn into_parts(self) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
        (self.diverting, self.serving)
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.diverting.iter().chain(&self.serving).map(AsFd::as_fd).collect()
    }

    pub fn from_parts(diverting: Vec<OwnedFd>, serving: Vec<OwnedFd>) -> Self {
        Self { diverting, serving }
    }
}

impl Attacher {
    /// Loads the kernel side for connects to be diverted to these listeners,
    /// which belong to a process in the cgroup `daemon`.
    pub fn load(watched: &Watched, listeners: &Listeners, daemon: &Path) -> Result<Self, RedirectError> {
        Self::load_object(load::OBJECT, watched, listeners, daemon, false)
    }

    pub(super) fn load_object(
        object: &[u8],
        watched: &Watched,
        listeners: &Listeners,
        daemon: &Path,
        only_processes: bool,
    ) -> Result<Self, RedirectError> {
        let ports: BTreeSet<u16> = watched.ports.iter().copied().collect();
        let mut ports: Vec<u16> = ports.into_iter().collect();
        if ports.len() > retryscope_ebpf::MAX_PORTS {
            return Err(RedirectError::Ports { given: ports.len() });
        }
        let every_port = ports.is_empty();
        if every_port {
            // UDP is not only QUIC: names are asked for by it.
            ports.push(QUIC);
        }
        let settings = load::Settings {
            every_port,
            listener_v4: listen::port(&listeners.v4)?,
            listener_v6: listeners.v6.as_ref().map_or(Ok(0), listen::port)?,
            netns_cookie: listen::netns_cookie()?,
            refuse_udp: !watched.allow_quic,
            only_processes,
            layout: btf::Layout::of_kernel(),
        };
        let mut loaded = load::Loaded::new(object, &settings)?;
        loaded.watch(&ports)?;
        Ok(Self { loaded, daemon: resolved(daemon) })
    }

    /// Has the kernel check every program now, so that no privilege is needed
    /// to attach them later.
    pub fn load_all(&mut self) -> Result<(), RedirectError> {
        DIVERTING.into_iter().chain(NAMING).chain([HANDOVER]).try_for_each(|name| self.loaded.load(name))
    }

    /// Whether who calls this may use a map.
    pub fn try_use(&self) -> bool {
        self.loaded.map("TALLY").and_then(Tally::new).is_ok_and(|tally| tally.try_use())
    }

    /// The maps, for whoever serves the connections.
    pub fn maps(&mut self) -> Result<Maps, RedirectError> {
        Ok(Maps {
            accepted: self.loaded.map("ACCEPTED")?,
            exempt: self.loaded.map("EXEMPT")?,
            tally: self.loaded.map("TALLY")?,
            commands: self.loaded.map("COMMANDS")?,
            networks: Some(self.loaded.map("NETWORKS")?),
            gate: self.loaded.map("GATE")?,
        })
    }

    /// The daemon's own cgroup.
    pub(super) fn place(&self) -> &Path {
        &self.daemon
    }

    /// Whether a cgroup holds the daemon's own.
    pub fn holds_daemon(&self, target: &Path) -> bool {
        self.daemon.starts_with(resolved(target))
    }

    /// The hand-over on the daemon's own cgroup, for as long as no attachment
    /// is on one that holds it. It has to be in force before anything diverts.
    pub fn attach_daemon(&mut self) -> Result<Attachment, RedirectError> {
        let place = load::open(&self.daemon)?;
        Ok(Attachment { diverting: Vec::new(), serving: vec![self.loaded.attach(HANDOVER, &place)?] })
    }

    /// What serves the target's connections, and its hand-over. Nothing is
    /// diverted yet.
    pub(super) fn attach_serving(&mut self, target: &Path) -> Result<Attachment, RedirectError> {
        let place = load::open(target)?;
        let mut serving = Vec::new();
        // The hand-over must see both ends, and none of them twice.
        if !resolved(target).starts_with(&self.daemon) || self.holds_daemon(target) {
            serving.push(self.loaded.attach(HANDOVER, &place)?);
        }
        for name in NAMING {
            serving.push(self.loaded.attach(name, &place)?);
        }
        Ok(Attachment { diverting: Vec::new(), serving })
    }

    pub(super) fn attach_diverting(&mut self, target: &Path, attachment: &mut Attachment) -> Result<(), RedirectError> {
        let place = load::open(target)?;
        for name in DIVERTING {
            attachment.diverting.push(self.loaded.attach(name, &place)?);
        }
        Ok(())
    }

    /// Diverts the connects of a cgroup and of those below it.
    pub fn attach(&mut self, target: &Path) -> Result<Attachment, RedirectError> {
        let mut attachment = self.attach_serving(target)?;
        self.attach_diverting(target, &mut attachment)?;
        Ok(attachment)
    }
}

/// Opens the listeners to which connects are diverted.
pub fn listeners() -> Result<Listeners, RedirectError> {
    listen::open()
}

/// Those of the cgroups that lie in none of the others.
pub fn outermost(cgroups: impl IntoIterator<Item = PathBuf>) -> BTreeSet<PathBuf> {
    let all: BTreeSet<PathBuf> = cgroups.into_iter().collect();
    let inner = |path: &PathBuf| path.ancestors().skip(1).any(|above| all.contains(above));
    all.iter().filter(|path| !inner(path)).cloned().collect()
}

fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_cgroups_are_chosen() {
        let paths = ["/cg/b", "/cg/a/x/y", "/cg/a", "/cg/a/x", "/cg/ab/x", "/cg/b"].map(PathBuf::from);
        let chosen: Vec<_> = outermost(paths).into_iter().collect();
        assert_eq!(chosen, ["/cg/a", "/cg/ab/x", "/cg/b"].map(PathBuf::from));
        assert_eq!(outermost([PathBuf::from("/cg"), PathBuf::from("/cg/a")]).len(), 1);
        assert!(outermost([]).is_empty());
    }
}
