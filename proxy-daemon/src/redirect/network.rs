//! Network namespaces beside our own: a container's processes cannot reach the
//! listeners of the host, so they get listeners where they are.
//!
//! In: the processes of a target. Out: a [`Door`] for each listener, and
//! sockets for upstream connections, which are made in the same namespace:
//! what the client can reach, it reaches, and from where it would have.
//!
//! The process that serves may do this itself, or, where it has given up what
//! that takes, leave it to another ([`Elsewhere`]).
//!
//! - A namespace has a thread that lives in it and makes its sockets; a socket
//!   belongs to where it was made, whoever uses it.
//! - No two listeners have the same port, so that a port tells where it is.
//! - A namespace is left when none of the target's processes is in it.
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    fs::{self, File},
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use nix::sched::{CloneFlags, setns};
use procfs::process::all_processes;
use retryscope_ebpf::{Listening, MAX_NETWORKS};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::{Listeners, RedirectError, Target, cgroup, listen};

/// Requests for sockets that may wait for one namespace's thread.
const MAX_WAITING: usize = 256;
/// How often a listener is opened anew where its port is taken elsewhere.
const MAX_TRIES: usize = 32;
/// How long a loopback may take to be brought up before it is told that it is
/// down.
const PATIENCE: Duration = Duration::from_secs(2);
/// The thread only makes system calls.
const STACK: usize = 128 * 1024;

/// In which network namespace a connection is: by its cookie; our own unless
/// told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(pub(super) Option<u64>);

/// A listener in another network namespace.
#[derive(Debug)]
pub struct Door {
    pub listener: TcpListener,
    /// Ends when nobody is left there to come through.
    pub over: oneshot::Receiver<()>,
}

/// A namespace that was entered.
#[derive(Debug)]
pub struct Opened {
    pub cookie: u64,
    /// A process there, for people.
    pub pid: u32,
    /// For IPv4; then, where there is IPv6, for that.
    pub doors: Vec<Door>,
}

/// Where connections go direct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A process there.
    pub pid: u32,
    pub why: String,
}

/// What a look around has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// By their cookies.
    pub left: Vec<u64>,
    pub opened: Vec<Opened>,
    pub refused: Vec<Refused>,
}

impl Changes {
    /// Says what there is to say to the journal or the terminal; what is left
    /// are the doors.
    pub(super) fn tell(self) -> Vec<Door> {
        for Refused { pid, why } in &self.refused {
            tracing::warn!(pid, "{why}; connections there go direct");
        }
        let tell = |opened: Opened| {
            tracing::info!(
                pid = opened.pid,
                cookie = opened.cookie,
                "listening in the network namespace of this process"
            );
            opened.doors
        };
        self.opened.into_iter().flat_map(tell).collect()
    }
}

/// Namespaces that another process listens in on our behalf, and makes sockets
/// in.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Whether there are any.
    fn is_empty(&self) -> bool;
    /// A socket in one of them.
    fn socket(&self, cookie: u64, v6: bool) -> Pending;
}

/// A socket that is being made.
pub type Pending = oneshot::Receiver<io::Result<OwnedFd>>;

/// Which namespace, as the file system tells.
type Inode = (u64, u64);

/// Takes a socket that was made.
pub type Deliver = Box<dyn FnOnce(io::Result<OwnedFd>) + Send>;

struct Request {
    domain: Domain,
    deliver: Deliver,
}

/// Processes by the namespace in which they are, one for each.
#[derive(Debug, Default)]
pub struct Inhabited {
    found: BTreeMap<Inode, u32>,
    /// Of processes whose namespace we may not know.
    hidden: Option<Refused>,
}

/// A namespace that was entered.
struct Entered {
    inode: Inode,
    listening: Listening,
    sockets: SyncSender<Request>,
    /// Dropped to close the doors.
    _doors: Vec<oneshot::Sender<()>>,
}

/// The namespaces that this process listens in.
pub struct Networks {
    /// `None`: no other namespace is ever entered.
    map: Option<HashMap<MapData, u64, Listening>>,
    own: Inode,
    own_ports: BTreeSet<u32>,
    entered: BTreeMap<u64, Entered>,
    /// Those that cannot be entered; not tried, nor told of, again.
    refused: HashSet<Inode>,
    /// Those whose loopback is down: since when, and whether it was told. Who
    /// makes a namespace brings it up a moment later.
    down: std::collections::HashMap<Inode, (Instant, bool)>,
    /// It was told that some cannot even be known.
    hidden: bool,
}

/// Which namespaces processes are in.
pub fn inhabited(pids: impl IntoIterator<Item = u32>) -> Inhabited {
    let mut inhabited = Inhabited::default();
    for pid in pids {
        match fs::metadata(format!("/proc/{pid}/ns/net")) {
            Ok(data) => {
                inhabited.found.entry(inode(&data)).or_insert(pid);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                inhabited.hidden.get_or_insert_with(|| Refused {
                    pid,
                    why: format!("the network namespace of processes such as this one cannot be told ({error})"),
                });
            }
            // A process that has just ended is nowhere.
            Err(_) => {}
        }
    }
    inhabited
}

impl Networks {
    /// With the kernel side's map of listeners; without one, no other
    /// namespace is ever entered.
    pub fn new(map: Option<OwnedFd>) -> Result<Self, RedirectError> {
        let own = fs::metadata("/proc/thread-self/ns/net").map(|data| inode(&data)).unwrap_or_default();
        let map = map.map(super::opened).transpose()?;
        let (own_ports, entered, refused) = (BTreeSet::new(), BTreeMap::new(), HashSet::new());
        Ok(Self { map, own, own_ports, entered, refused, down: Default::default(), hidden: false })
    }

    /// The ports of the listeners in our own namespace: no other listener may
    /// have them.
    pub fn own_ports(&mut self, ports: impl IntoIterator<Item = u32>) {
        self.own_ports = ports.into_iter().collect();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entered.is_empty()
    }

    /// Enters the namespaces in which there are processes, and leaves those in
    /// which there are none any more.
    pub fn look(&mut self, inhabited: &Inhabited) -> Changes {
        let mut changes = Changes::default();
        if self.map.is_none() {
            return changes;
        }
        let found = &inhabited.found;
        changes.left = self
            .entered
            .iter()
            .filter(|(_, network)| !found.contains_key(&network.inode))
            .map(|(cookie, _)| *cookie)
            .collect();
        changes.left.iter().for_each(|cookie| self.leave(*cookie));
        self.refused.retain(|inode| found.contains_key(inode));
        self.down.retain(|inode, _| found.contains_key(inode));
        for (inode, pid) in found {
            let known = self.entered.values().any(|network| network.inode == *inode);
            if known || *inode == self.own || self.refused.contains(inode) {
                continue;
            }
            let pid = *pid;
            if self.entered.len() >= MAX_NETWORKS {
                self.refused.insert(*inode);
                let why = format!("there are more than {MAX_NETWORKS} network namespaces to listen in");
                changes.refused.push(Refused { pid, why });
                continue;
            }
            match self.enter(pid, *inode) {
                Ok(opened) => {
                    self.down.remove(inode);
                    changes.opened.extend(opened);
                }
                Err(RedirectError::Listener { cause, .. }) if cause.kind() == io::ErrorKind::NetworkDown => {
                    let (since, told) = self.down.entry(*inode).or_insert_with(|| (Instant::now(), false));
                    if since.elapsed() >= PATIENCE && !std::mem::replace(told, true) {
                        let why = format!("the loopback is down in the network namespace of process {pid}");
                        changes.refused.push(Refused { pid, why });
                    }
                }
                Err(error) => {
                    self.refused.insert(*inode);
                    changes.refused.push(Refused { pid, why: error.to_string() });
                }
            }
        }
        if let Some(hidden) = &inhabited.hidden
            && !std::mem::replace(&mut self.hidden, true)
        {
            changes.refused.push(hidden.clone());
        }
        changes
    }

    fn enter(&mut self, pid: u32, expected: Inode) -> Result<Option<Opened>, RedirectError> {
        let failed = move |cause| RedirectError::Network { pid, cause };
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
        if namespace.metadata().map(|data| inode(&data)).map_err(failed)? != expected {
            // The number is another process's by now.
            return Ok(None);
        }
        let mut taken = self.own_ports.clone();
        for network in self.entered.values() {
            taken.extend([network.listening.v4, network.listening.v6]);
        }
        let (sockets, requests) = sync_channel::<Request>(MAX_WAITING);
        let (tell, told) = sync_channel(1);
        std::thread::Builder::new()
            .name("network".into())
            .stack_size(STACK)
            .spawn(move || {
                let listening = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|error| failed(error.into()))
                    .and_then(|()| {
                        let listeners = open(&taken)?;
                        let cookie = listen::cookie_of(&listeners.v4).map_err(failed)?;
                        Ok((cookie, listeners))
                    });
                drop(namespace);
                if tell.send(listening).is_err() {
                    return;
                }
                for Request { domain, deliver } in requests {
                    let made = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP));
                    deliver(made.map(Into::into));
                }
            })
            .map_err(failed)?;
        let (cookie, listeners) = told.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))??;
        let listening =
            Listening { v4: listen::port(&listeners.v4)?, v6: listeners.v6.as_ref().map_or(Ok(0), listen::port)? };
        let (mut doors, mut ends) = (Vec::new(), Vec::new());
        for listener in [Some(listeners.v4), listeners.v6].into_iter().flatten() {
            let (end, over) = oneshot::channel();
            doors.push(Door { listener, over });
            ends.push(end);
        }
        self.entered.insert(cookie, Entered { inode: expected, listening, sockets, _doors: ends });
        // The listeners first: what comes to them is told by their ports.
        let keys = keys(listening).chain([cookie]);
        for key in keys {
            if let Some(map) = &mut self.map
                && let Err(error) = map.insert(key, listening, 0)
            {
                self.leave(cookie);
                return Err(RedirectError::of("telling the kernel side of listeners", &error));
            }
        }
        Ok(Some(Opened { cookie, pid, doors }))
    }

    fn leave(&mut self, cookie: u64) {
        if let Some(network) = self.entered.remove(&cookie) {
            for key in [cookie].into_iter().chain(keys(network.listening)) {
                // It may not have been entered.
                let _ = self.map.as_mut().map(|map| map.remove(&key));
            }
        }
    }

    /// Has a socket made in a namespace, by its thread, and delivered; or an
    /// error, where the namespace has been left or has too much to do.
    pub fn make(&self, cookie: u64, v6: bool, deliver: Deliver) {
        let request = Request { domain: if v6 { Domain::IPV6 } else { Domain::IPV4 }, deliver };
        let Some(network) = self.entered.get(&cookie) else {
            return (request.deliver)(Err(io::ErrorKind::NetworkDown.into()));
        };
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) =
            network.sockets.try_send(request)
        {
            (request.deliver)(Err(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// As [`Elsewhere::socket`].
    pub(super) fn socket(&self, cookie: u64, v6: bool) -> Pending {
        let (reply, pending) = oneshot::channel();
        // Whoever asked may have given up.
        self.make(cookie, v6, Box::new(|made| drop(reply.send(made))));
        pending
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks").field("entered", &self.entered.keys()).finish_non_exhaustive()
    }
}

fn inode(data: &fs::Metadata) -> Inode {
    (data.dev(), data.ino())
}

fn keys(listening: Listening) -> impl Iterator<Item = u64> {
    [listening.v4, listening.v6].into_iter().filter(|port| *port != 0).map(Listening::key)
}

/// Listeners whose ports are none of those taken.
fn open(taken: &BTreeSet<u32>) -> Result<Listeners, RedirectError> {
    let mut kept = Vec::new();
    loop {
        let listeners = listen::open()?;
        let v6 = listeners.v6.as_ref().map(listen::port).transpose()?;
        let free = !taken.contains(&listen::port(&listeners.v4)?) && v6.is_none_or(|v6| !taken.contains(&v6));
        if free || kept.len() >= MAX_TRIES {
            return if free { Ok(listeners) } else { Err(RedirectError::NoPort) };
        }
        // Kept meanwhile, so that the next have others.
        kept.push(listeners);
    }
}

/// The processes of a target, as of now.
pub(super) fn processes(target: &Target) -> Vec<u32> {
    match target {
        Target::Cgroup(path) => below(path),
        Target::Process { pid } => descendants(*pid),
        Target::Several(places) => places.list().iter().flat_map(|path| below(path)).collect(),
    }
}

fn below(path: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    // One that has just been removed is empty.
    cgroup::walk(path, |directory| pids.extend(cgroup::processes(directory).unwrap_or_default()));
    pids
}

fn descendants(root: u32) -> Vec<u32> {
    let stats = all_processes().into_iter().flatten().flatten().filter_map(|process| process.stat().ok());
    let parents: Vec<(u32, u32)> =
        stats.filter_map(|stat| Some((u32::try_from(stat.ppid).ok()?, u32::try_from(stat.pid).ok()?))).collect();
    let mut found = vec![root];
    let mut known = HashSet::from([root]);
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let children = parents.iter().filter(|(of, _)| *of == parent).map(|(_, pid)| *pid);
        found.extend(children.filter(|pid| known.insert(*pid)));
        at += 1;
    }
    found
}
