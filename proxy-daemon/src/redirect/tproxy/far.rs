//! TPROXY where the table is another process's: who serves connections may
//! change no packet filter.
//!
//! In: the listeners, the sockets that say that we answer, and a way to ask
//! the process that holds the table ([`Filter`]). Out: the same as of
//! [`Tproxy`](super::Tproxy). That this process lives it says itself: were it to
//! hang, connections go direct, whatever the other one thinks.
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use socket2::SockRef;

use super::{MARGIN, owner, sockets};
use crate::{
    process::Owner,
    redirect::{BEACON, Counters, Listeners, Network, Pending, Redirected},
};

/// Who holds the table.
pub trait Filter: std::fmt::Debug + Send + Sync {
    /// Whose a connection is; `None` where there is no answer.
    fn owner(&self, client: SocketAddr, origin: SocketAddr) -> Option<Owner>;
    /// A socket that the table leaves alone.
    fn socket(&self, v6: bool) -> Pending;
    /// What becomes of new connections from now on.
    fn turn(&self, to: Turn) -> Result<(), String>;
    /// What was counted; nothing where there is no answer.
    fn counters(&self) -> Counters;
}

/// What is asked of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Turn {
    /// There is no room for more connections; or again.
    Full,
    Room,
    Bypass,
    NoBypass,
    /// Nothing new is taken any more.
    Over,
}

impl Turn {
    pub const ALL: [Self; 5] = [Self::Full, Self::Room, Self::Bypass, Self::NoBypass, Self::Over];
}

#[derive(Debug)]
pub struct Far {
    filter: Box<dyn Filter>,
    /// What is sent there was not redirected.
    listeners: Vec<SocketAddr>,
    pulse: Vec<(UdpSocket, SocketAddr)>,
    full: AtomicBool,
    handed_over: AtomicU64,
    unmatched: AtomicU64,
}

impl Far {
    /// With what the other process has opened: for each family a listener and
    /// a socket that says that we answer.
    pub fn new(filter: Box<dyn Filter>, opened: Vec<OwnedFd>) -> io::Result<(Self, Listeners)> {
        let (mut listeners, mut there, mut pulse) = (Vec::new(), Vec::new(), Vec::new());
        let mut opened = opened.into_iter();
        while let (Some(listener), Some(socket)) = (opened.next(), opened.next()) {
            let listener = TcpListener::from(listener);
            let address = listener.local_addr()?;
            there.push(address);
            pulse.push((UdpSocket::from(socket), address));
            listeners.push(listener);
        }
        let mut listeners = listeners.into_iter();
        let v4 = listeners.next().ok_or(io::ErrorKind::InvalidData)?;
        let listeners = Listeners { v4, v6: listeners.next() };
        let (full, handed_over, unmatched) = Default::default();
        Ok((Self { filter, listeners: there, pulse, full, handed_over, unmatched }, listeners))
    }

    /// As [`Tproxy::origin_of`](super::Tproxy::origin_of).
    pub(in crate::redirect) fn origin_of(&self, accepted: &impl AsFd) -> Option<Redirected> {
        let socket = SockRef::from(accepted);
        let ends = socket.local_addr().and_then(|local| Ok((local.as_socket(), socket.peer_addr()?.as_socket())));
        // A socket without a peer is closed already.
        let Ok((Some(origin), Some(client))) = ends else { return None };
        if self.listeners.contains(&origin) {
            self.unmatched.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.handed_over.fetch_add(1, Ordering::Relaxed);
        let (origin, client) = (sockets::canonical(origin), sockets::canonical(client));
        let asks = origin.ip() == IpAddr::V4(BEACON);
        let owner = if asks { None } else { owner::aside(|| self.filter.owner(client, origin)) };
        let owner = owner.unwrap_or_else(|| owner::of_address(client.ip()));
        Some(Redirected { origin, owner, network: Network::default() })
    }

    pub(in crate::redirect) fn socket(&self, v6: bool) -> Pending {
        self.filter.socket(v6)
    }

    pub(in crate::redirect) fn renew(&self, room: u64) {
        super::send_pulse(&self.pulse);
        let full = room < MARGIN;
        if self.full.swap(full, Ordering::Relaxed) != full
            && let Err(error) = self.turn(if full { Turn::Full } else { Turn::Room })
        {
            tracing::warn!(error, full, "the table stays as it is");
        }
    }

    pub(in crate::redirect) fn bypass(&self, on: bool) -> Result<(), String> {
        self.turn(if on { Turn::Bypass } else { Turn::NoBypass })
    }

    /// Waits for the answer, which may hold up nobody else.
    fn turn(&self, to: Turn) -> Result<(), String> {
        owner::aside(|| self.filter.turn(to))
    }

    pub(in crate::redirect) fn detach(&self) {
        if let Err(error) = self.turn(Turn::Over) {
            tracing::warn!(error, "new connections come here until the end");
        }
    }

    pub(in crate::redirect) fn counters(&self) -> Counters {
        Counters {
            handed_over: self.handed_over.load(Ordering::Relaxed),
            unmatched: self.unmatched.load(Ordering::Relaxed),
            ..owner::aside(|| self.filter.counters())
        }
    }
}
