//! The way without eBPF: packets are marked by nf_tables, led to the loopback
//! by a routing rule, and handed to the listeners by TPROXY. For where a
//! cgroup cannot be attached to (a container with no access to the host), and
//! for traffic that other machines send through this one.
//!
//! In: what to take ([`Whose`](rules::Whose), ports). Out: two transparent
//! listeners, and for each accepted socket its origin (the address it was sent
//! to) and its owner, as far as it can be told from outside ([`owner`]).
//!
//! - The table belongs to a socket of this process: however the process ends,
//!   the kernel removes the table, and the target's next connect goes direct.
//! - Connections that were open before, and those that begin while others end
//!   ([`Tproxy::detach`]), pass untouched.
//! - Tables of others are not touched, no setting of the system is changed,
//!   and no other program is run.
mod expression;
mod far;
mod held;
mod listener;
mod netlink;
mod number;
mod owner;
mod routes;
mod rules;
mod sockets;
mod table;
mod wire;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::net::if_::if_nametoindex;
use socket2::SockRef;

use self::{
    number::{INSTANCES, Number, OWN_MARK},
    owner::Owners,
    routes::Routes,
    rules::{Phase, Plan, Whose},
    sockets::Sockets,
    table::Table,
};
pub use far::{Far, Filter, Turn};
pub use held::{Held, Taking};

use super::{BEACON, Counters, Listeners, Network, RedirectError, Redirected, cgroup};

/// Room for fewer connections than these is none: the table cannot count down,
/// and more may come before it is told again.
const MARGIN: u64 = 16;
/// Interfaces whose traffic is taken, at most.
const MAX_INTERFACES: usize = 64;

/// What is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach<'a> {
    /// Processes in a cgroup (its directory) and below, in this network
    /// namespace.
    Cgroup(&'a Path),
    /// Every process in this network namespace.
    Namespace,
    /// What arrives on these interfaces to be forwarded.
    Ingress(&'a [String]),
}

/// Which part of a count is a bypass's.
#[derive(Clone, Copy, Debug, Default)]
struct Bypassed {
    /// What had been counted when one began that goes on.
    since: Option<u64>,
    /// During those that are over.
    earlier: u64,
}

impl Bypassed {
    /// Of so many.
    fn of(self, counted: u64) -> u64 {
        self.earlier + self.since.map_or(0, |since| counted.saturating_sub(since))
    }
}

/// A redirection in force. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Tproxy {
    // Without the table the routes mean nothing; so it goes first.
    table: Table,
    _routes: Routes,
    plan: Plan,
    owners: Owners,
    /// Where the listeners are: what is sent there was not redirected.
    listeners: Vec<SocketAddr>,
    /// Sockets that say to the table, for each family, that we answer.
    pulse: Vec<(UdpSocket, SocketAddr)>,
    phase: Mutex<Phase>,
    /// The table counts what passes during a bypass with what it has no room
    /// for.
    bypassed: Mutex<Bypassed>,
    handed_over: AtomicU64,
    unmatched: AtomicU64,
    /// Connections that were open before and did not find room in the table.
    broken: u64,
}

impl Tproxy {
    pub(super) fn start(
        ports: &[u16],
        allow_quic: bool,
        reach: &Reach<'_>,
    ) -> Result<(Self, Listeners), RedirectError> {
        let whose = whose(reach)?;
        let listeners = listener::open()?;
        let there = addresses(&listeners)?;
        sweep();
        let table = claim(&whose)?;
        let sockets = Sockets::open().map_err(|cause| explain("looking up sockets (sock_diag)", &cause))?;
        let look_up = |most| {
            let needed = !matches!(whose, Whose::Arriving(_)) && !is_empty(reach);
            let found = if needed { sockets.open_to(ports, most) } else { Ok((Vec::new(), 0)) };
            found.map_err(|cause| explain("looking up open connections (sock_diag)", &cause))
        };
        let (_, count) = look_up(0)?;
        let plan = Plan {
            number: table.number(),
            whose: whose.clone(),
            ports: ports.to_vec(),
            refuse_udp: !allow_quic,
            room: rules::room(count),
            v4: there.first().map_or(0, SocketAddr::port),
            v6: there.get(1).map(SocketAddr::port),
        };
        let lo = ["lo".to_owned()];
        let interfaces = if let Whose::Arriving(interfaces) = &plan.whose { interfaces } else { &lo[..] };
        let routes = Routes::add(plan.number, plan.v6.is_some(), interfaces)
            .map_err(|cause| explain("adding a routing rule", &cause))?;
        table.fill(&plan).map_err(|refusal| refusal.explain())?;
        // From here on what begins is noted; what is open already is found.
        let (open, besides) = look_up(plan.room * 3 / 4)?;
        table.leave_alone(&plan, &open).map_err(|refusal| refusal.explain())?;
        let pulse = there.iter().map(|there| pulse(*there, &plan)).collect::<io::Result<_>>();
        let pulse = pulse.map_err(|cause| explain("marking a socket", &cause))?;
        table.turn(&plan, Phase::Taking).map_err(|refusal| refusal.explain())?;
        let tproxy = Self {
            table,
            _routes: routes,
            plan,
            owners: Owners::new(sockets),
            listeners: there,
            pulse,
            phase: Mutex::new(Phase::Taking),
            bypassed: Mutex::default(),
            handed_over: AtomicU64::default(),
            unmatched: AtomicU64::default(),
            broken: besides as u64,
        };
        Ok((tproxy, listeners))
    }

    /// Where an accepted connection was meant to go, and whose it is. `None`
    /// if it was made to the listener itself: it must be closed.
    pub(super) fn origin_of(&self, accepted: &impl AsFd) -> Result<Option<Redirected>, RedirectError> {
        let socket = SockRef::from(accepted);
        let ends = socket.local_addr().and_then(|local| Ok((local.as_socket(), socket.peer_addr()?.as_socket())));
        // A socket without a peer is closed already.
        let Ok((Some(origin), Some(client))) = ends else { return Ok(None) };
        if self.listeners.contains(&origin) {
            self.unmatched.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        self.handed_over.fetch_add(1, Ordering::Relaxed);
        let (origin, client) = (sockets::canonical(origin), sockets::canonical(client));
        // Whoever only asks whether this works is not looked for.
        let asks = origin.ip() == IpAddr::V4(BEACON);
        let owner = if asks { owner::of_address(client.ip()) } else { self.owners.of(client, origin) };
        Ok(Some(Redirected { origin, owner, network: Network::default() }))
    }

    /// Marks a socket of the daemon's own: its packets are left alone. Call
    /// before `connect()`.
    pub(super) fn exempt(&self, socket: &impl AsFd) -> Result<(), RedirectError> {
        SockRef::from(socket)
            .set_mark(OWN_MARK)
            .map_err(|cause| explain("marking a socket as the daemon's own", &cause))
    }

    /// This process answers, and has room for so many connects. It is believed
    /// for two seconds.
    pub(super) fn renew(&self, room: u64) {
        send_pulse(&self.pulse);
        self.heed_room(room);
    }

    /// There is room for so many connects.
    fn heed_room(&self, room: u64) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match (*phase, room < MARGIN) {
            (Phase::Taking, true) => self.turn(&mut phase, Phase::Full),
            (Phase::Full, false) => self.turn(&mut phase, Phase::Taking),
            _ => {}
        }
    }

    fn turn(&self, phase: &mut Phase, to: Phase) {
        match self.table.turn(&self.plan, to) {
            Ok(()) => *phase = to,
            Err(refusal) => tracing::warn!(error = %refusal.explain(), ?to, "the table stays as it is"),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let (told_by_cgroup, told_by_address) = self.owners.told();
        let bypassed = self.bypassed.lock().unwrap_or_else(PoisonError::into_inner);
        let no_room = self.table.packets(rules::NO_ROOM);
        let direct_bypassed = bypassed.of(no_room);
        drop(bypassed);
        Counters {
            redirected: self.table.packets(rules::TAKEN),
            handed_over: self.handed_over.load(Ordering::Relaxed),
            udp_refused: self.table.packets(rules::REFUSED),
            direct_stalled: self.table.packets(rules::STALLED),
            direct_no_room: no_room.saturating_sub(direct_bypassed),
            direct_bypassed,
            unmatched: self.unmatched.load(Ordering::Relaxed),
            broken_before: self.broken,
            told_by_cgroup,
            told_by_address,
            ..Counters::default()
        }
    }

    /// Lets every new connect go direct, and UDP; or no longer. What is here
    /// goes on.
    pub(super) fn bypass(&self, on: bool) -> Result<(), RedirectError> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let to = match (*phase, on) {
            (Phase::Taking | Phase::Full, true) => Phase::Bypassed,
            (Phase::Bypassed, false) => Phase::Taking,
            // It is so already; or it is over.
            _ => return Ok(()),
        };
        let mut bypassed = self.bypassed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.table.packets(rules::NO_ROOM);
        self.table.turn_besides_udp(&self.plan, to).map_err(|refusal| refusal.explain())?;
        *phase = to;
        *bypassed = if on {
            Bypassed { since: Some(before), ..*bypassed }
        } else {
            Bypassed { since: None, earlier: bypassed.of(self.table.packets(rules::NO_ROOM)) }
        };
        Ok(())
    }

    /// Lets every new connect go direct; what is here goes on.
    pub(super) fn detach(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        self.turn(&mut phase, Phase::Draining);
    }
}

/// Removes the routes of instances that were killed. Best effort: they do no
/// harm.
pub fn sweep() {
    for number in routes::left().unwrap_or_default() {
        // Whoever holds the number is alive, or is it us for the moment.
        if let Ok(Some(_table)) = Table::claim([number])
            && let Err(error) = routes::forget(number)
        {
            tracing::debug!(%error, %number, "the routes of an earlier instance stay");
        }
    }
}

/// What this needs of the kernel is there: all of it is checked, and none of
/// it done.
pub(super) fn rehearse() -> Result<String, RedirectError> {
    let listeners = listener::open()?;
    let there = addresses(&listeners)?;
    Sockets::open().map_err(|cause| explain("looking up sockets (sock_diag)", &cause))?;
    let free = Table::claim(Number::all()).map_err(|refusal| refusal.explain())?.map(|table| table.number());
    let number = free.ok_or(RedirectError::Instances { most: INSTANCES })?;
    for whose in [Whose::Cgroup { id: 1, level: 1 }, Whose::Everybody, Whose::Arriving(vec!["lo".to_owned()])] {
        let plan = Plan {
            number,
            whose,
            ports: vec![443],
            refuse_udp: true,
            room: rules::room(0),
            v4: there.first().map_or(0, SocketAddr::port),
            v6: there.get(1).map(SocketAddr::port),
        };
        table::rehearse(&plan).map_err(|refusal| refusal.explain())?;
    }
    Ok(if there.len() > 1 { "IPv4 and IPv6" } else { "IPv4 only; IPv6 goes direct" }.to_owned())
}

fn claim(whose: &Whose) -> Result<Table, RedirectError> {
    // All of a namespace can be taken once; that is the first number.
    let everybody = *whose == Whose::Everybody;
    let numbers = Number::all().filter(|number| everybody == (*number == Number::FIRST));
    let claimed = Table::claim(numbers).map_err(|refusal| refusal.explain())?;
    claimed.ok_or(if everybody {
        RedirectError::NamespaceTaken { table: Number::FIRST.table() }
    } else {
        RedirectError::Instances { most: INSTANCES - 1 }
    })
}

fn whose(reach: &Reach<'_>) -> Result<Whose, RedirectError> {
    match reach {
        Reach::Namespace => Ok(Whose::Everybody),
        Reach::Cgroup(path) => {
            let resolved = path.canonicalize().map_err(|_| RedirectError::NoCgroup { path: path.to_path_buf() })?;
            let level = cgroup::Mount::find()?.depth(&resolved);
            let level = level.ok_or_else(|| RedirectError::NoCgroup { path: path.to_path_buf() })?;
            Ok(Whose::Cgroup { id: cgroup::id(&resolved)?, level })
        }
        Reach::Ingress(interfaces) => {
            let mut interfaces = interfaces.to_vec();
            interfaces.sort_unstable();
            interfaces.dedup();
            let known = |name: &str| name != "lo" && if_nametoindex(name).is_ok();
            if let Some(name) = interfaces.iter().find(|name| !known(name)) {
                return Err(RedirectError::Interface { name: name.clone() });
            }
            if interfaces.len() > MAX_INTERFACES {
                return Err(RedirectError::Interfaces { given: interfaces.len(), most: MAX_INTERFACES });
            }
            Ok(Whose::Arriving(interfaces))
        }
    }
}

/// A cgroup without processes has no connections either.
fn is_empty(reach: &Reach<'_>) -> bool {
    matches!(reach, Reach::Cgroup(path) if !cgroup::populated(path).unwrap_or(true))
}

/// A socket whose packets the table takes for a sign of life, and where they
/// are sent: nobody gets them.
fn pulse(listener: SocketAddr, plan: &Plan) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = UdpSocket::bind((listener.ip(), 0))?;
    socket.set_nonblocking(true)?;
    SockRef::from(&socket).set_mark(plan.number.mark())?;
    Ok((socket, listener))
}

fn send_pulse(pulse: &[(UdpSocket, SocketAddr)]) {
    for (socket, there) in pulse {
        // What is full or gone will be told by the silence.
        let _ = socket.send_to(&[0], there);
    }
}

fn addresses(listeners: &Listeners) -> Result<Vec<SocketAddr>, RedirectError> {
    let of = |listener: &std::net::TcpListener| {
        listener.local_addr().map_err(|cause| RedirectError::Listener { address: "the loopback", cause })
    };
    let mut addresses = vec![of(&listeners.v4)?];
    addresses.extend(listeners.v6.as_ref().map(of).transpose()?);
    Ok(addresses)
}

fn explain(what: &'static str, cause: &io::Error) -> RedirectError {
    use nix::libc::{EACCES, EPERM};
    match cause.raw_os_error() {
        Some(EPERM | EACCES) => RedirectError::Capability { what, cause: cause.to_string() },
        _ => RedirectError::Kernel {
            what,
            cause: cause.to_string(),
            remedy: "Run `retryscope doctor` to see what is missing",
        },
    }
}
