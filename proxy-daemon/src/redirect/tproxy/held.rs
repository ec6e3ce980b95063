//! The table, held for another process that serves its connections: see
//! [`Far`](super::far::Far) for the other half.
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Reach, Tproxy, number::OWN_MARK};
use crate::{
    process::Owner,
    redirect::{Counters, Listeners, RedirectError, Turn},
};

/// Whose connections are taken, where no cgroup tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taking {
    /// Every process's in this network namespace.
    Namespace,
    /// What arrives on these interfaces to be forwarded.
    Ingress(Vec<String>),
}

impl std::fmt::Display for Taking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespace => f.write_str("this network namespace"),
            Self::Ingress(interfaces) => write!(f, "what arrives on {}", interfaces.join(", ")),
        }
    }
}

/// A table in force. It ends when this is dropped.
#[derive(Debug)]
pub struct Held {
    tproxy: Tproxy,
    listeners: Option<Listeners>,
}

impl Held {
    pub fn start(ports: &[u16], allow_quic: bool, taking: &Taking) -> Result<Self, RedirectError> {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        ports.dedup();
        let reach = match taking {
            Taking::Namespace => Reach::Namespace,
            Taking::Ingress(interfaces) => Reach::Ingress(interfaces),
        };
        let (tproxy, listeners) = Tproxy::start(&ports, allow_quic, &reach)?;
        Ok(Self { tproxy, listeners: Some(listeners) })
    }

    /// For each family a listener, and a socket that says that who serves it
    /// answers.
    pub fn opened(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.iter().flat_map(|listeners| [Some(&listeners.v4), listeners.v6.as_ref()]);
        let both = listeners.flatten().zip(&self.tproxy.pulse);
        both.flat_map(|(listener, (pulse, _))| [listener.as_fd(), pulse.as_fd()]).collect()
    }

    /// Those have been handed over.
    pub fn let_go(&mut self) {
        self.listeners = None;
        self.tproxy.pulse.clear();
    }

    pub fn owner(&self, client: SocketAddr, origin: SocketAddr) -> Owner {
        self.tproxy.owners.of(client, origin)
    }

    /// A socket that the table leaves alone.
    pub fn socket(&self, v6: bool) -> io::Result<OwnedFd> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_mark(OWN_MARK)?;
        Ok(socket.into())
    }

    pub fn turn(&self, to: Turn) -> Result<(), RedirectError> {
        match to {
            Turn::Full => self.tproxy.heed_room(0),
            Turn::Room => self.tproxy.heed_room(u64::MAX),
            Turn::Bypass => self.tproxy.bypass(true)?,
            Turn::NoBypass => self.tproxy.bypass(false)?,
            Turn::Over => self.tproxy.detach(),
        }
        Ok(())
    }

    pub fn counters(&self) -> Counters {
        self.tproxy.counters()
    }
}
