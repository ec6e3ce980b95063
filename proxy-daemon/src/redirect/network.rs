//! Network namespaces beside our own: a container's processes cannot reach the
//! listeners of the host, so they get listeners where they are.
//!
//! In: the processes of a target. Out: a [`Door`] for each listener, and
//! sockets for upstream connections, which are made in the same namespace:
//! what the client can reach, it reaches, and from where it would have.
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
    sync::mpsc::{SyncSender, sync_channel},
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
/// The thread only makes system calls.
const STACK: usize = 128 * 1024;

/// In which network namespace a connection is: by its cookie; our own unless
/// told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Option<u64>);

/// A listener in another network namespace.
#[derive(Debug)]
pub struct Door {
    pub listener: TcpListener,
    /// Ends when nobody is left there to come through.
    pub over: oneshot::Receiver<()>,
}

/// A socket that is being made.
pub type Pending = oneshot::Receiver<io::Result<OwnedFd>>;

/// Which namespace, as the file system tells.
type Inode = (u64, u64);

struct Request {
    domain: Domain,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

/// A namespace that was entered.
struct Entered {
    inode: Inode,
    listening: Listening,
    sockets: SyncSender<Request>,
    /// Dropped to close the doors.
    _doors: Vec<oneshot::Sender<()>>,
}

pub(super) struct Networks {
    /// `None`: no other namespace is ever entered.
    map: Option<HashMap<MapData, u64, Listening>>,
    own: Inode,
    own_ports: BTreeSet<u32>,
    entered: BTreeMap<u64, Entered>,
    /// Those that cannot be entered; not tried, nor told of, again.
    refused: HashSet<Inode>,
}

impl Networks {
    pub(super) fn new(map: Option<HashMap<MapData, u64, Listening>>) -> Self {
        let own = fs::metadata("/proc/thread-self/ns/net").map(|data| inode(&data)).unwrap_or_default();
        Self { map, own, own_ports: BTreeSet::new(), entered: BTreeMap::new(), refused: HashSet::new() }
    }

    /// The ports of the listeners in our own namespace.
    pub(super) fn own_ports(&mut self, ports: impl IntoIterator<Item = u32>) {
        self.own_ports = ports.into_iter().collect();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entered.is_empty()
    }

    /// Enters the namespaces of these processes, and leaves those in which
    /// none of them is any more.
    pub(super) fn look(&mut self, pids: impl IntoIterator<Item = u32>) -> Vec<Door> {
        if self.map.is_none() {
            return Vec::new();
        }
        let mut found: BTreeMap<Inode, u32> = BTreeMap::new();
        for pid in pids {
            // A process that has just ended is nowhere.
            if let Ok(data) = fs::metadata(format!("/proc/{pid}/ns/net")) {
                found.entry(inode(&data)).or_insert(pid);
            }
        }
        let gone: Vec<u64> = self
            .entered
            .iter()
            .filter(|(_, network)| !found.contains_key(&network.inode))
            .map(|(cookie, _)| *cookie)
            .collect();
        gone.into_iter().for_each(|cookie| self.leave(cookie));
        self.refused.retain(|inode| found.contains_key(inode));
        let mut doors = Vec::new();
        for (inode, pid) in found {
            let known = self.entered.values().any(|network| network.inode == inode);
            if known || inode == self.own || self.refused.contains(&inode) {
                continue;
            }
            if self.entered.len() >= MAX_NETWORKS {
                self.refused.insert(inode);
                tracing::warn!(
                    pid,
                    "there are more than {MAX_NETWORKS} network namespaces; connections in this one go direct"
                );
                continue;
            }
            match self.enter(pid, inode) {
                Ok(opened) => doors.extend(opened),
                Err(error) => {
                    self.refused.insert(inode);
                    tracing::warn!(
                        pid,
                        %error,
                        "the network namespace of this process cannot be listened in; connections there go direct"
                    );
                }
            }
        }
        doors
    }

    fn enter(&mut self, pid: u32, expected: Inode) -> Result<Vec<Door>, RedirectError> {
        let failed = move |cause| RedirectError::Network { pid, cause };
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
        if namespace.metadata().map(|data| inode(&data)).map_err(failed)? != expected {
            // The number is another process's by now.
            return Ok(Vec::new());
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
                    .and_then(|()| Ok((listen::netns_cookie()?, open(&taken)?)));
                drop(namespace);
                if tell.send(listening).is_err() {
                    return;
                }
                for Request { domain, reply } in requests {
                    let made = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP));
                    // Whoever asked may have given up.
                    let _ = reply.send(made.map(Into::into));
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
        tracing::info!(pid, cookie, "listening in the network namespace of this process");
        Ok(doors)
    }

    fn leave(&mut self, cookie: u64) {
        if let Some(network) = self.entered.remove(&cookie) {
            for key in [cookie].into_iter().chain(keys(network.listening)) {
                // It may not have been entered.
                let _ = self.map.as_mut().map(|map| map.remove(&key));
            }
        }
    }

    /// Where a socket is.
    pub(super) fn of(&self, socket: &impl AsFd) -> Network {
        if self.entered.is_empty() {
            return Network::default();
        }
        let cookie = listen::cookie_of(socket).ok();
        Network(cookie.filter(|cookie| self.entered.contains_key(cookie)))
    }

    /// A socket in another namespace; `None` where it is our own.
    pub(super) fn socket(&self, network: Network, v6: bool) -> Option<Pending> {
        let cookie = network.0?;
        let (reply, pending) = oneshot::channel();
        let request = Request { domain: if v6 { Domain::IPV6 } else { Domain::IPV4 }, reply };
        // Where the thread is gone, or has too much to do, the request goes,
        // and its reply ends unsaid.
        if let Some(network) = self.entered.get(&cookie) {
            let _ = network.sockets.try_send(request);
        }
        Some(pending)
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
    let mut left = vec![path.to_owned()];
    while let Some(directory) = left.pop() {
        // One that has just been removed is empty.
        pids.extend(cgroup::processes(&directory).unwrap_or_default());
        left.extend(cgroup::children(&directory).unwrap_or_default());
    }
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
