//! How connections get here: the kernel side loaded and attached, and the
//! cgroups it is attached to.
//!
//! In: the target (cgroups, or a process within its own), the watched ports.
//! Out: two listeners to which the target's connects come, and for each
//! accepted socket its origin and owner ([`Redirect::origin_of`]).
//!
//! - The listeners are open before anything is attached, and the hand-over is
//!   attached before the connects are redirected: nothing is ever redirected
//!   to nobody.
//! - Every attachment is a `bpf_link` that belongs to this process and is not
//!   pinned: however the process ends, the target's next connect goes direct.
//! - A socket that is not fit to be redirected goes direct and is counted; so
//!   does a connect that this process cannot take (`gate`), unless it is to
//!   be refused.
#![allow(unsafe_code)]

mod attach;
mod attaching;
mod btf;
mod error;
mod forest;
mod gate;
mod inhabitants;
mod link;
mod listen;
mod load;
mod network;
mod pattern;
mod probe;
mod remembered;
mod several;
mod tally;
mod tproxy;
mod tree;
mod ways;

pub mod cgroup;
pub mod find;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, MapError, PerCpuArray, SkStorage};
use retryscope_ebpf::Record;

use crate::process::{
    CommandLine, Memory, Owner, ProcessKey,
    warden::{Post, Warden},
};

pub use attach::{Attacher, Attachment, Maps, Watched, listeners, outermost};
pub use attaching::{Attaching, Holder};
pub use error::RedirectError;
pub use forest::{Forest, Found};
use gate::Gate;
pub use gate::{Fail, shutter};
pub use inhabitants::Inhabitants;
pub use listen::{Listeners, queue};
pub use network::{
    Changes, Deliver, Door, Elsewhere, Inhabited, Network, Networks, Opened, Pending, Refused, inhabited,
};
pub use pattern::{PatternError, Patterns};
pub use probe::{Probe, probe};
pub use several::{Places, Several};
pub use tally::{Counters, Tally};
pub use tproxy::{Far, Filter, Held, Taking, Turn, sweep};
pub use ways::{Choice, Reach, Redirection, Wanted, Way};

/// A loopback address that hardly anybody serves: connections to it tell whether
/// redirection works, and are nobody's else.
pub const BEACON: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

/// Whose connects are redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every process in a cgroup (its directory) and in those below.
    Cgroup(PathBuf),
    /// A process, its children as of now, and all they start from now on, as
    /// long as they stay in its cgroup; nothing else in that cgroup.
    Process { pid: u32 },
    /// Every process in cgroups that come and go, attached by [`Several`].
    Several(Places),
}

#[derive(Clone, Debug)]
pub struct Options {
    /// At most [`retryscope_ebpf::MAX_PORTS`]; none stands for every TCP port
    /// but the listeners' own.
    pub ports: Vec<u16>,
    /// Leave UDP to the watched ports alone instead of refusing it.
    pub allow_quic: bool,
    /// What becomes of connects that cannot be carried.
    pub fail: Fail,
    pub target: Target,
}

/// What the kernel side knows of an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Where the client meant to connect to; an IPv4-mapped address comes out
    /// as IPv4.
    pub origin: SocketAddr,
    pub owner: Owner,
    /// Where it is, and where its upstream is to be reached from.
    pub network: Network,
}

/// A redirection in force. It ends when this is dropped; the listeners should
/// outlive it, so that no connect is ever diverted to nobody.
pub struct Redirect {
    // What diverts goes first, also when this is dropped.
    attached: Mutex<Attached>,
    accepted: SkStorage<MapData, Record>,
    /// Behind a lock only because aya wants `&mut` for what is one system
    /// call on a file descriptor.
    exempt: Mutex<SkStorage<MapData, u32>>,
    tally: PerCpuArray<MapData, u64>,
    remembered: remembered::Remembered,
    networks: Others,
    gate: Mutex<Gate>,
    /// Holds on to everything where connects are refused once this process is
    /// gone.
    warden: Mutex<Option<Warden>>,
}

/// Network namespaces beside our own.
#[derive(Debug)]
struct Others {
    /// The number of our own.
    own: Option<u64>,
    by: Who,
    /// There were some, now or earlier; until then nothing need be asked.
    any: AtomicBool,
}

#[derive(Debug)]
enum Who {
    Us(Box<RwLock<Networks>>),
    Another(Box<dyn Elsewhere>),
}

impl Others {
    fn new(by: Who) -> Self {
        Self { own: listen::netns_cookie().ok(), by, any: AtomicBool::new(false) }
    }

    fn is_empty(&self) -> bool {
        match &self.by {
            Who::Us(networks) => networks.read().unwrap_or_else(PoisonError::into_inner).is_empty(),
            Who::Another(elsewhere) => elsewhere.is_empty(),
        }
    }

    /// Where a socket is. One in a namespace that has just been left does not
    /// count as one in our own.
    fn of(&self, socket: &impl AsFd) -> Network {
        if !self.any.load(Ordering::Relaxed) {
            if self.is_empty() {
                return Network::default();
            }
            self.any.store(true, Ordering::Relaxed);
        }
        Network(listen::cookie_of(socket).ok().filter(|cookie| self.own.is_some_and(|own| own != *cookie)))
    }

    fn socket(&self, cookie: u64, v6: bool) -> Pending {
        match &self.by {
            Who::Us(networks) => networks.read().unwrap_or_else(PoisonError::into_inner).socket(cookie, v6),
            Who::Another(elsewhere) => elsewhere.socket(cookie, v6),
        }
    }
}

/// What is attached where, by the number that whoever attached it chose.
#[derive(Default)]
struct Attached {
    places: BTreeMap<u64, Attachment>,
    /// No longer targets; what was under way keeps what serves it until then.
    lingering: Vec<(Instant, Attachment)>,
    /// Nothing is to be diverted any more.
    over: bool,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // First everything that diverts, whatever is first among the places.
        self.places.values_mut().for_each(|place| place.diverting.clear());
    }
}

impl Redirect {
    /// Opens the listeners, loads the kernel side, then attaches it.
    ///
    /// `daemon_cgroup` is the directory of the cgroup in which this process
    /// now is: the listeners' sockets, and those accepted from them, belong to
    /// it, and the hand-over needs to see them.
    pub fn start(options: &Options, daemon_cgroup: &Path) -> Result<(Self, Listeners), RedirectError> {
        Self::start_with(load::OBJECT, options, daemon_cgroup)
    }

    /// As [`Redirect::start`], with another build of the kernel side: lets the
    /// kernel tests judge a fresh one.
    #[doc(hidden)]
    pub fn start_with(
        object: &[u8],
        options: &Options,
        daemon_cgroup: &Path,
    ) -> Result<(Self, Listeners), RedirectError> {
        let target = match &options.target {
            Target::Cgroup(path) => path.clone(),
            Target::Process { pid } => cgroup::of_process(*pid)?,
            Target::Several(_) => return Err(RedirectError::NeedsEbpf),
        };
        load::open(&target)?;
        let by_process = matches!(options.target, Target::Process { .. });
        if by_process {
            tree::can_follow(&btf::Layout::of_kernel())?;
        }
        let listeners = listen::open()?;
        let watched = Watched { ports: options.ports.clone(), allow_quic: options.allow_quic };
        let mut attacher = Attacher::load_object(object, &watched, &listeners, daemon_cgroup, by_process)?;
        let mut places = BTreeMap::new();
        if !attacher.holds_daemon(&target) {
            places.insert(0, attacher.attach_daemon()?);
        }
        let mut attachment = attacher.attach_serving(&target)?;
        if let Target::Process { pid } = options.target {
            // First the tracepoints, then /proc: a child forked in between
            // is seen by one or the other.
            let following = attacher.loaded.attach_tracking()?;
            places.insert(2, Attachment::from_parts(Vec::new(), following));
            tree::seed(&mut attacher.loaded.processes()?, pid)?;
        }
        attacher.attach_diverting(&target, &mut attachment)?;
        places.insert(1, attachment);
        let redirect = Self::new(attacher.maps()?, options.fail, None)?;
        redirect.attached().places = places;
        redirect.own_ports(&listeners)?;
        Ok((redirect, listeners))
    }

    /// No listener elsewhere may have the ports of these.
    fn own_ports(&self, listeners: &Listeners) -> Result<(), RedirectError> {
        let ports = [Some(listen::port(&listeners.v4)?), listeners.v6.as_ref().map(listen::port).transpose()?];
        if let Who::Us(networks) = &self.networks.by {
            networks.write().unwrap_or_else(PoisonError::into_inner).own_ports(ports.into_iter().flatten());
        }
        Ok(())
    }

    /// With the maps of a kernel side that was loaded elsewhere, and nothing
    /// attached yet. Where another process enters network namespaces, it is
    /// asked for sockets there.
    pub fn new(maps: Maps, fail: Fail, elsewhere: Option<Box<dyn Elsewhere>>) -> Result<Self, RedirectError> {
        let networks = Others::new(match elsewhere {
            Some(elsewhere) => Who::Another(elsewhere),
            None => Who::Us(Box::new(RwLock::new(Networks::new(maps.networks)?))),
        });
        Ok(Self {
            attached: Mutex::default(),
            accepted: opened(maps.accepted)?,
            exempt: Mutex::new(opened(maps.exempt)?),
            tally: opened(maps.tally)?,
            remembered: remembered::Remembered::new(opened(maps.commands)?),
            networks,
            gate: Mutex::new(Gate::new(maps.gate, fail)?.open()),
            warden: Mutex::default(),
        })
    }

    /// Lets another process hold on to what is attached, so that the target's
    /// connects are refused should this one end before its time.
    pub fn guard(&self, mut by: Warden, listeners: &Listeners, post: &Post<'_>) -> io::Result<()> {
        let attached = self.attached();
        let mut warden = self.warden();
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let listening: Vec<_> =
            [Some(listeners.v4.as_fd()), listeners.v6.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect();
        by.begin(gate.descriptor(), &listening, post)?;
        for (number, place) in &attached.places {
            by.hold(*number, &place.descriptors())?;
        }
        *warden = Some(by);
        Ok(())
    }

    /// The wardens that earlier instances have left are no longer needed: what
    /// they refuse comes here.
    pub fn relieve(&self, left: &[OwnedFd]) {
        if let Some(warden) = self.warden().as_mut()
            && let Err(error) = warden.relieve(left)
        {
            tracing::error!(%error, "what an earlier instance has left goes on refusing connections; end it by hand");
        }
    }

    fn warden(&self) -> MutexGuard<'_, Option<Warden>> {
        self.warden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process answers for so long, and has room for so many connects.
    pub fn renew(&self, time: Duration, room: u64) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).renew(time, room);
    }

    /// From now on every new connect goes direct, also with `Fail::Closed`; or
    /// no longer. What is attached stays, and so does what is under way.
    pub fn bypass(&self, on: bool) -> Result<(), RedirectError> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).bypass(on)
    }

    /// Takes over what was attached, under a number of its own; what has this
    /// number is detached.
    pub fn add(&self, number: u64, mut attachment: Attachment) {
        let mut attached = self.attached();
        if attached.over {
            attachment.diverting.clear();
        }
        if let Some(warden) = self.warden().as_mut()
            && let Err(error) = warden.hold(number, &attachment.descriptors())
        {
            tracing::error!(%error, "what is attached now goes direct, not refused, should this process die");
        }
        attached.places.insert(number, attachment);
    }

    /// Lets the connects of one place go direct. Connections already diverted
    /// keep their records and their peer's name.
    pub fn retire(&self, number: u64) {
        if let Some(place) = self.attached().places.get_mut(&number) {
            self.let_go(number);
            place.diverting.clear();
        }
    }

    fn let_go(&self, number: u64) {
        if let Some(warden) = self.warden().as_mut() {
            warden.let_go(number);
        }
    }

    /// As [`Redirect::retire`], and lets go of the place once what was under
    /// way has had this time to end.
    pub fn retire_for(&self, number: u64, time: Duration) {
        // Until then under another number: the place may be attached anew.
        let mut attached = self.attached();
        self.let_go(number);
        let Some(mut place) = attached.places.remove(&number) else { return };
        place.diverting.clear();
        attached.lingering.retain(|(until, _)| *until > Instant::now());
        attached.lingering.push((Instant::now() + time, place));
    }

    /// Whether the maps can be used by who calls this.
    pub fn is_usable(&self) -> bool {
        self.tally.get(&0, 0).is_ok()
    }

    /// Lets go of a place.
    pub fn remove(&self, number: u64) {
        let mut attached = self.attached();
        self.let_go(number);
        attached.places.remove(&number);
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an accepted connection was meant to go, and whose it is. `None`
    /// if no redirect explains it: it must be closed.
    pub fn origin_of(&self, accepted: &impl AsFd) -> Result<Option<Redirected>, RedirectError> {
        match self.accepted.get(&accepted.as_fd().as_raw_fd(), 0) {
            Ok(record) => Ok(Some(redirected(&record, self.networks.of(accepted)))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(RedirectError::of("reading a connection's record", &error)),
        }
    }

    /// Marks a socket of the daemon's own: its connects are never redirected,
    /// also where the daemon is in the target's cgroup. Call before
    /// `connect()`.
    pub fn exempt(&self, socket: &impl AsFd) -> Result<(), RedirectError> {
        let mut exempt = self.exempt.lock().unwrap_or_else(PoisonError::into_inner);
        exempt
            .insert(&socket.as_fd().as_raw_fd(), 1, 0)
            .map_err(|error| RedirectError::of("marking a socket as the daemon's own", &error))
    }

    /// Looks at which network namespaces the target's processes are in, opens
    /// listeners where there are none yet, and closes them where nobody is
    /// left. Reads `/proc`; a moment for hundreds of processes.
    pub fn look_around(&self, target: &Target) -> Vec<Door> {
        let Who::Us(networks) = &self.networks.by else { return Vec::new() };
        // Looked at before anybody has to wait for it.
        let inhabited = inhabited(network::processes(target));
        networks.write().unwrap_or_else(PoisonError::into_inner).look(&inhabited).tell()
    }

    /// Whether there are listeners in other network namespaces.
    pub fn listens_elsewhere(&self) -> bool {
        !self.networks.is_empty()
    }

    /// A socket in another network namespace; `None` where it is our own.
    pub fn socket_in(&self, network: Network, v6: bool) -> Option<Pending> {
        network.0.map(|cookie| self.networks.socket(cookie, v6))
    }

    /// What the kernel side has counted so far.
    pub fn counters(&self) -> Counters {
        tally::read(&self.tally)
    }

    /// Lets every new connect go direct. Connections already diverted keep
    /// their records and their peer's name until this is dropped.
    pub fn detach(&self) {
        let mut attached = self.attached();
        attached.over = true;
        // An orderly end: nobody is to be kept out.
        drop(self.warden().take());
        attached.places.values_mut().for_each(|place| place.diverting.clear());
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Memory for Redirect {
    fn command(&self, owner: &Owner) -> Option<CommandLine> {
        self.remembered.command(owner)
    }

    fn cgroup(&self, id: u64) -> Option<String> {
        self.remembered.cgroup(id)
    }
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

/// A map by its descriptor.
fn opened<M: TryFrom<Map, Error = MapError>>(map: OwnedFd) -> Result<M, RedirectError> {
    MapData::from_fd(map)
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(|error| RedirectError::of("opening the maps", &error))
}

fn redirected(record: &Record, network: Network) -> Redirected {
    let port = u16::try_from(record.origin_port).unwrap_or_default();
    let address = Ipv6Addr::from(record.origin.octets());
    let address = if record.origin.is_v4() { address.to_canonical() } else { IpAddr::V6(address) };
    Redirected { origin: SocketAddr::new(address, port), owner: owner(record), network }
}

fn owner(record: &Record) -> Owner {
    /// `/proc` shows start times in ticks of 1/100 s.
    const NANOS_PER_TICK: u64 = 10_000_000;
    let name = record.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let start_ticks = match record.start_boottime {
        0 => tree::start_ticks(record.tgid).unwrap_or_default(),
        nanos => nanos / NANOS_PER_TICK,
    };
    Owner {
        key: ProcessKey { pid: record.tgid, start_ticks },
        tid: record.tid,
        parent: record.parent,
        uid: record.uid,
        gid: record.gid,
        cgroup_id: record.cgroup_id,
        start_boottime: record.start_boottime,
        image: record.image,
        arguments: record.arguments,
        command_len: record.command_len,
        inner: Some(record.inner).filter(|inner| *inner != 0),
        comm: String::from_utf8_lossy(name).into_owned(),
        cgroup: None,
    }
}

#[cfg(test)]
mod tests {
    use retryscope_ebpf::Address;

    use super::*;

    fn record(origin: Address) -> Record {
        Record {
            start_boottime: 123_450_000_001,
            cgroup_id: 7,
            image: 2,
            arguments: 0x7ffd_0000,
            origin,
            comm: *b"app\0junk\0\0\0\0\0\0\0\0",
            tgid: 10,
            tid: 11,
            parent: 1,
            uid: 1000,
            gid: 100,
            origin_port: 443,
            command_len: 3,
            inner: 0,
        }
    }

    #[test]
    fn mapped_origins_come_out_as_v4() {
        let mapped = redirected(&record(Address::v4(u32::from_ne_bytes([192, 0, 2, 1]))), Network::default());
        assert_eq!(mapped.origin.to_string(), "192.0.2.1:443");
        assert_eq!(redirected(&record(Address::LOOPBACK_V6), Network::default()).origin.to_string(), "[::1]:443");
    }

    #[test]
    fn owner_speaks_proc() {
        let owner = owner(&record(Address::LOOPBACK_V4));
        assert_eq!((owner.key.start_ticks, owner.comm.as_str()), (12_345, "app"));
    }

    #[test]
    fn is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Redirect>();
    }
}
