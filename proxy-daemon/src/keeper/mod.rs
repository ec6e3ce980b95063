//! What stays privileged: two small processes beside the one that serves
//! connections.
//!
//! The keeper has what must not be within reach of whoever parses bytes from
//! the network: the authority's key, the loaded eBPF programs, and the right
//! to read the configuration. It opens no socket. In: requests of the server
//! over a socket pair, and cgroups that come and go. Out: what it has attached
//! (descriptors: the server holds them, so that everything is gone when the
//! server is), signatures on leaves, the configuration's text.
//!
//! The porter has what it takes to enter other network namespaces, such as
//! containers'. In: from the keeper, which cgroups are attached; from the
//! server, requests for sockets. Out, to the server: doors that have opened or
//! closed, and the sockets. It is another process than the keeper, since
//! Landlock, which keeps the keeper from files, also keeps a process from
//! knowing which namespaces others are in.
//!
//! Where connections are redirected by TPROXY, the porter holds the packet
//! filter's table instead, looks up whose connections are, and makes sockets
//! that the table leaves alone; the keeper then has no programs.
//!
//! The protocols are narrow on purpose. The server cannot say *what* to attach
//! (the configuration does, which the keeper reads itself), nor have anything
//! signed but leaves ([`crate::tls::Authority::sign_leaf`]); and it can name no
//! process and no namespace to the porter, but only doors that this has opened
//! by itself.
//!
//! All three end when one of them does.
mod client;
mod doors;
mod handing;
pub mod porter;
mod serve;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    process::{Owner, confine::Account},
    redirect::{Counters, Taking, Turn},
};

pub use client::{Answer, Authorised, Keeper, KeeperError, Started, Starting, Taken};
pub use doors::Porter;
pub use serve::main;

/// The hidden first argument that makes this binary the keeper.
pub const KEEPER: &str = "__keeper";
/// The one that makes it the porter.
pub const PORTER: &str = "__porter";

/// Targets of the command line take the place of the file's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    pub cgroups: Vec<String>,
    pub units: Vec<String>,
    pub containers: Vec<String>,
}

impl Targets {
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.units.is_empty() && self.containers.is_empty()
    }
}

/// The first message: sent while the server still is who it was started as.
/// With it come the other end of the signing channel, where there is a porter
/// the way to it, and the listeners.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub config: PathBuf,
    pub targets: Targets,
    /// The cgroup of both processes, as a directory.
    pub cgroup: PathBuf,
    pub ports: Vec<u16>,
    pub allow_quic: bool,
    pub ca_dir: PathBuf,
    /// Whom the porter becomes; `None`: there is none.
    pub porter: Option<Account>,
    /// What TPROXY is to take; `None`: cgroups are attached.
    pub taking: Option<Taking>,
}

/// What the server asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// To read the configuration again and put its targets in force.
    Reload,
    /// Whether anybody is there.
    Ping,
}

/// What the keeper says, in answer or by itself.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// Loaded. With it come the maps.
    Started {
        authority: Vec<u8>,
        /// The keeper's pid.
        pid: u32,
    },
    /// It could not start; what the server exits with.
    Failed {
        message: String,
        code: u8,
    },
    /// Everything that matches is attached, and the keeper has given up its
    /// privileges.
    Ready {
        /// What the kernel could not be asked for.
        less: Vec<String>,
    },
    /// With it come the links: those that divert, then the others.
    Attached {
        number: u64,
        name: String,
        diverting: usize,
    },
    /// `gone`: the cgroup does not exist any more.
    Detached {
        number: u64,
        gone: bool,
    },
    /// A cgroup cannot be attached.
    Refused {
        name: String,
        why: String,
    },
    /// The answer to [`Request::Reload`].
    Reloaded {
        config: String,
        rules: Vec<(PathBuf, String)>,
    },
    /// The other answer to it: nothing has changed.
    Broken {
        why: String,
    },
    Pong,
}

/// The porter's first message. With it comes, if it is to enter namespaces, its
/// way to the keeper.
#[derive(Debug, Serialize, Deserialize)]
struct Post {
    account: Account,
    work: Work,
}

#[derive(Debug, Serialize, Deserialize)]
enum Work {
    Doors {
        /// Of the server's own listeners: no other may have them.
        ports: Vec<u32>,
    },
    Filter {
        ports: Vec<u16>,
        allow_quic: bool,
        taking: Taking,
    },
}

/// What the keeper tells the porter.
#[derive(Debug, Serialize, Deserialize)]
enum Place {
    /// With it come the maps of listeners and of counts.
    Maps,
    Attached {
        number: u64,
        path: PathBuf,
    },
    Detached {
        number: u64,
    },
    /// That was all for now.
    All,
}

/// What the server asks the porter for: in a form of its own, which leaves
/// nothing to be understood wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// Comes back with the answer.
    id: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Whether anybody is there.
    Ping,
    /// A socket where a door is open, by the door's number; one that the table
    /// leaves alone, where that is 0.
    Socket {
        cookie: u64,
        v6: bool,
    },
    /// Whose a connection is.
    Owner {
        client: SocketAddr,
        origin: SocketAddr,
    },
    /// What becomes of new connections.
    Turn(Turn),
    Counters,
}

impl Asked {
    /// The longest.
    const LENGTH: usize = 9 + 2 * 18;

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(self.id.to_be_bytes());
        bytes[0] = match self.what {
            What::Ping => 0,
            What::Socket { cookie, v6 } => {
                bytes.extend(cookie.to_be_bytes());
                if v6 { 6 } else { 4 }
            }
            What::Owner { client, origin } => {
                for end in [client, origin] {
                    let address = match end.ip() {
                        IpAddr::V4(address) => address.to_ipv6_mapped(),
                        IpAddr::V6(address) => address,
                    };
                    bytes.extend(address.octets());
                    bytes.extend(end.port().to_be_bytes());
                }
                1
            }
            What::Turn(to) => {
                bytes.push(to as u8);
                2
            }
            What::Counters => 3,
        };
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let end = |bytes: &[u8]| {
            let (address, port) = bytes.split_first_chunk::<16>()?;
            let port = u16::from_be_bytes(port.try_into().ok()?);
            Some(SocketAddr::new(IpAddr::from(*address).to_canonical(), port))
        };
        let what = match (kind, rest) {
            (0, []) => What::Ping,
            (4 | 6, cookie) => What::Socket { cookie: u64::from_be_bytes(cookie.try_into().ok()?), v6: *kind == 6 },
            (1, ends) if ends.len() == 36 => What::Owner { client: end(&ends[..18])?, origin: end(&ends[18..])? },
            (2, [to]) => What::Turn(Turn::ALL.into_iter().find(|turn| *turn as u8 == *to)?),
            (3, []) => What::Counters,
            _ => return None,
        };
        Some(Self { id: u64::from_be_bytes(*id), what })
    }
}

/// What the porter says to the server, in answer or by itself.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// It could not start; what the server exits with.
    Failed {
        message: String,
        code: u8,
    },
    /// The doors of those who are there at the start are open, and it has
    /// given up what it does not need.
    Ready {
        /// The porter's pid.
        pid: u32,
        /// What the kernel could not be asked for.
        less: Vec<String>,
        /// Capabilities without which no door can be opened.
        missing: Vec<String>,
    },
    /// With it come the listeners.
    Opened {
        cookie: u64,
        /// A process there.
        pid: u32,
    },
    Closed {
        cookie: u64,
    },
    /// A namespace cannot be listened in.
    Refused {
        pid: u32,
        why: String,
    },
    /// With it comes the socket that was asked for.
    Made {
        id: u64,
    },
    NotMade {
        id: u64,
        /// As of errno(3).
        code: i32,
    },
    Pong {
        id: u64,
    },
    /// The table is in force. With it come, for each family, a listener and a
    /// socket that says that who serves it answers.
    Filtering,
    Owner {
        id: u64,
        owner: Box<Owner>,
    },
    Turned {
        id: u64,
        /// Why not.
        error: Option<String>,
    },
    Counted {
        id: u64,
        counters: Box<Counters>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let (client, origin) = ("10.0.0.1:4000".parse().expect("one"), "[2001:db8::1]:443".parse().expect("one"));
        for what in [
            What::Ping,
            What::Socket { cookie: 1, v6: false },
            What::Socket { cookie: u64::MAX - 1, v6: true },
            What::Owner { client, origin },
            What::Owner { client: origin, origin: client },
            What::Turn(Turn::Over),
            What::Turn(Turn::Full),
            What::Counters,
        ] {
            let asked = Asked { id: u64::MAX - 7, what };
            let bytes = asked.to_bytes();
            assert!(bytes.len() <= Asked::LENGTH);
            assert_eq!(Asked::from_bytes(&bytes), Some(asked));
            assert_eq!(Asked::from_bytes(&[&bytes[..], &[0]].concat()), None, "longer");
            assert_eq!(Asked::from_bytes(&bytes[..bytes.len() - 1]), None, "shorter");
        }
        for wrong in [&[][..], &[5; 17], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 9]] {
            assert_eq!(Asked::from_bytes(wrong), None);
        }
    }
}
