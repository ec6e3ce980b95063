//! Whose a connection is, told from outside: the kernel has put no record on
//! it.
//!
//! In: the two ends of an accepted connection. Out: its [`Owner`]. The kernel
//! tells the user and the cgroup of the socket at the other end; the process
//! is whoever has that socket open, as `/proc` shows. A process that cannot be
//! seen from here (another pid namespace), or that has closed its socket
//! meanwhile, is told by its cgroup; a client on another machine by its
//! address. Such a group has the pid 0, which no process has, and a number
//! that stays the same in place of its start time.
//!
//! Invariant: looking through `/proc` never holds up other connections, and
//! connections that come together share one look.
use std::{
    collections::HashMap,
    fs,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use procfs::process::{FDTarget, Process};

use super::sockets::{Holder, Sockets};
use crate::{
    process::{self, Owner, ProcessKey},
    redirect::{
        cgroup::{self, Mount},
        remembered,
    },
};

/// Users in cgroups whose last processes are remembered: they are asked first.
const MAX_RECENT: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
const RECENT_EACH: usize = 8;
/// In a cgroup with no more processes than these, they are asked next.
const MAX_NEIGHBOURS: usize = 64;
/// Cgroups whose directories are remembered, or that there is none.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// After so many looks in vain, a cgroup's processes count as invisible for a
/// while.
const BLIND_AFTER: u32 = 3;
const BLIND_FOR: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Owners {
    sockets: Mutex<Sockets>,
    search: Mutex<Search>,
    /// `None` where no tree is mounted.
    tree: Option<(Mount, OwnedFd)>,
    paths: Mutex<LruCache<u64, Option<PathBuf>>>,
    by_cgroup: AtomicU64,
    by_address: AtomicU64,
}

impl Owners {
    pub(super) fn new(sockets: Sockets) -> Self {
        Self {
            sockets: Mutex::new(sockets),
            search: Mutex::new(Search::new()),
            tree: remembered::tree(),
            paths: Mutex::new(LruCache::new(MAX_PATHS)),
            by_cgroup: AtomicU64::default(),
            by_address: AtomicU64::default(),
        }
    }

    /// How many connections were told by a cgroup, and by an address.
    pub(super) fn told(&self) -> (u64, u64) {
        (self.by_cgroup.load(Ordering::Relaxed), self.by_address.load(Ordering::Relaxed))
    }

    /// The owner of the connection that `client` made to `origin`.
    pub(super) fn of(&self, client: SocketAddr, origin: SocketAddr) -> Owner {
        let asked = Instant::now();
        let holder = locked(&self.sockets).holder(client, origin).unwrap_or_else(|error| {
            tracing::debug!(%error, "a socket's holder could not be looked up");
            None
        });
        let Some(holder) = holder else {
            self.by_address.fetch_add(1, Ordering::Relaxed);
            return of_address(client.ip());
        };
        aside(|| {
            let search = || locked(&self.search).find(holder, asked, || self.neighbours(holder.cgroup_id));
            let found = (holder.inode != 0).then(search).flatten();
            if let Some(owner) = found.and_then(|pid| of_process(pid, holder)) {
                return owner;
            }
            if holder.cgroup_id == 0 {
                self.by_address.fetch_add(1, Ordering::Relaxed);
                return of_address(client.ip());
            }
            self.by_cgroup.fetch_add(1, Ordering::Relaxed);
            self.of_cgroup(holder)
        })
    }

    fn of_cgroup(&self, holder: Holder) -> Owner {
        let id = holder.cgroup_id;
        let path = self.tree.as_ref().and_then(|(mount, _)| mount.path_of(&self.directory(id)?));
        let name = path.as_deref().and_then(|path| {
            let container = process::container(path).map(|id| format!("container {}", id.get(..12).unwrap_or(id)));
            container.or_else(|| process::unit(path).map(str::to_owned))
        });
        let name =
            name.unwrap_or_else(|| path.as_ref().map_or(format!("cgroup {id}"), |path| format!("cgroup {path}")));
        Owner { uid: holder.uid, cgroup_id: id, cgroup: path, ..group(id, name) }
    }

    /// The directory of a cgroup, as far as the tree is visible here.
    fn directory(&self, id: u64) -> Option<PathBuf> {
        let (mount, tree) = self.tree.as_ref()?;
        let look_up = || remembered::directory(mount, tree, id).filter(|path| mount.path_of(path).is_some());
        locked(&self.paths).get_or_insert(id, look_up).clone()
    }

    /// The processes of a cgroup, where they are few. A socket's process may
    /// have left it.
    fn neighbours(&self, id: u64) -> Vec<u32> {
        let pids = self.directory(id).and_then(|directory| cgroup::processes(&directory).ok());
        pids.filter(|pids| pids.len() <= MAX_NEIGHBOURS).unwrap_or_default()
    }
}

/// A connection of nobody in particular.
fn group(number: u64, name: String) -> Owner {
    Owner {
        key: ProcessKey { pid: 0, start_ticks: number },
        tid: 0,
        parent: 0,
        uid: 0,
        gid: 0,
        cgroup_id: 0,
        start_boottime: 0,
        image: 0,
        arguments: 0,
        command_len: 0,
        inner: None,
        comm: name,
        cgroup: None,
    }
}

/// A client on another machine.
pub(super) fn of_address(address: IpAddr) -> Owner {
    /// Above every cgroup's id, and exact in JSON.
    const ADDRESSES: u64 = 1 << 52;
    let mut hasher = siphasher::sip::SipHasher13::new();
    address.hash(&mut hasher);
    group(ADDRESSES | hasher.finish() >> 12, address.to_string())
}

fn of_process(pid: u32, holder: Holder) -> Option<Owner> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let status = process.status().ok();
    let inner = status.as_ref().and_then(|status| status.nspid.as_ref()?.last().copied());
    Some(Owner {
        key: ProcessKey { pid, start_ticks: stat.starttime },
        tid: pid,
        parent: u32::try_from(stat.ppid).unwrap_or_default(),
        uid: holder.uid,
        gid: status.map_or(0, |status| status.egid),
        cgroup_id: holder.cgroup_id,
        inner: inner.and_then(|inner| u32::try_from(inner).ok()),
        ..group(0, stat.comm)
    })
}

/// What was found by looking through `/proc`.
#[derive(Debug)]
struct Search {
    recent: LruCache<(u64, u32), Vec<u32>>,
    last: Option<Look>,
    blind: LruCache<u64, Blind>,
}

/// All sockets of all processes that are visible, at one time.
#[derive(Debug)]
struct Look {
    begun: Instant,
    holders: HashMap<u32, u32>,
}

#[derive(Debug, Default)]
struct Blind {
    misses: u32,
    until: Option<Instant>,
}

impl Search {
    fn new() -> Self {
        Self { recent: LruCache::new(MAX_RECENT), last: None, blind: LruCache::new(MAX_RECENT) }
    }

    /// The pid of the process that has the socket open; `asked` is a time at
    /// which it was open. First those are asked that had one lately, then the
    /// socket's neighbours, then everybody.
    fn find(&mut self, holder: Holder, asked: Instant, neighbours: impl FnOnce() -> Vec<u32>) -> Option<u32> {
        let Holder { uid, inode, cgroup_id } = holder;
        let holder_of = |pids: &[u32]| pids.iter().copied().find(|pid| holds(*pid, inode));
        if let Some(pid) = self.recent.get(&(cgroup_id, uid)).and_then(|pids| holder_of(pids)) {
            return Some(pid);
        }
        if let Some(pid) = holder_of(&neighbours()) {
            self.remember(holder, pid);
            return Some(pid);
        }
        let now = Instant::now();
        let blind = self.blind.get_or_insert_mut(cgroup_id, Blind::default);
        if blind.until.is_some_and(|until| now < until) {
            return None;
        }
        let look = match self.last.take() {
            Some(look) if look.begun >= asked => look,
            _ => Look::take(),
        };
        let found = look.holders.get(&inode).copied();
        self.last = Some(look);
        match found {
            None => {
                blind.misses += 1;
                blind.until = (blind.misses >= BLIND_AFTER).then(|| now + BLIND_FOR);
            }
            Some(pid) => {
                *blind = Blind::default();
                self.remember(holder, pid);
            }
        }
        found
    }

    fn remember(&mut self, holder: Holder, pid: u32) {
        let pids = self.recent.get_or_insert_mut((holder.cgroup_id, holder.uid), Vec::new);
        pids.insert(0, pid);
        pids.truncate(RECENT_EACH);
    }
}

impl Look {
    fn take() -> Self {
        let begun = Instant::now();
        let mut holders: HashMap<u32, u32> = HashMap::new();
        let here = fs::read_link("/proc/thread-self/ns/net").ok();
        for process in procfs::process::all_processes().into_iter().flatten().flatten() {
            let Ok(pid) = u32::try_from(process.pid) else { continue };
            if fs::read_link(format!("/proc/{pid}/ns/net")).ok() != here {
                continue;
            }
            for inode in sockets_of(&process) {
                // A child has what its parent had: the older one connected it.
                let entry = holders.entry(inode).or_insert(pid);
                if *entry != pid && started(pid) < started(*entry) {
                    *entry = pid;
                }
            }
        }
        Self { begun, holders }
    }
}

fn started(pid: u32) -> Option<u64> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok().map(|stat| stat.starttime)
}

fn holds(pid: u32, inode: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok())
        .is_some_and(|process| sockets_of(&process).any(|found| found == inode))
}

/// The inodes of a process's sockets; none where they cannot be seen.
fn sockets_of(process: &Process) -> impl Iterator<Item = u32> {
    process.fd().into_iter().flatten().filter_map(|descriptor| match descriptor.ok()?.target {
        FDTarget::Socket(inode) => u32::try_from(inode).ok(),
        _ => None,
    })
}

/// Does slow work where the runtime does not wait for it.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_process_that_connected() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let there = listener.local_addr().expect("its address");
        let owners = Owners::new(Sockets::open().expect("sock_diag"));
        // The second time it is found where it was found before.
        for _ in 0..2 {
            let client = TcpStream::connect(there).expect("a connection");
            let owner = owners.of(client.local_addr().expect("its address"), there);
            assert_eq!(owner.key.pid, std::process::id());
            assert_eq!(Some(owner.key.start_ticks), started(owner.key.pid));
        }
        assert_eq!(owners.told(), (0, 0));
    }

    #[test]
    fn a_client_elsewhere_is_its_address() {
        let owners = Owners::new(Sockets::open().expect("sock_diag"));
        let origin = "192.0.2.9:443".parse().expect("an address");
        let of = |client: &str| owners.of(client.parse().expect("an address"), origin);
        let (one, same, other) = (of("192.0.2.1:1"), of("192.0.2.1:2"), of("[2001:db8::1]:1"));
        assert_eq!((one.key.pid, one.comm.as_str()), (0, "192.0.2.1"));
        assert_eq!(one.key, same.key);
        assert_ne!(one.key, other.key);
        // JSON keeps it exactly.
        assert!(one.key.start_ticks < 1 << 53);
        assert_eq!(owners.told(), (0, 3));
    }

    #[test]
    fn what_cannot_be_seen_is_its_cgroup() {
        let own = cgroup::own().expect("an own cgroup");
        let owners = Owners::new(Sockets::open().expect("sock_diag"));
        let id = cgroup::id(&own).expect("its id");
        let owner = owners.of_cgroup(Holder { uid: 7, inode: 0, cgroup_id: id });
        assert_eq!((owner.key.pid, owner.key.start_ticks, owner.uid), (0, id, 7));
        assert!(own.ends_with(owner.cgroup.expect("its path").trim_start_matches('/')));
        let unknown = owners.of_cgroup(Holder { uid: 7, inode: 0, cgroup_id: 1 << 40 });
        assert_eq!((unknown.comm.as_str(), unknown.cgroup), ("cgroup 1099511627776", None));
    }
}
