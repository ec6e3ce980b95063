//! What stays privileged: a small process beside the one that serves
//! connections.
//!
//! The keeper has what must not be within reach of whoever parses bytes from
//! the network: the authority's key, the loaded eBPF programs, and the right
//! to read the configuration. It opens no socket. In: requests of the server
//! over a socket pair, and cgroups that come and go. Out: what it has attached
//! (descriptors: the server holds them, so that everything is gone when the
//! server is), signatures on leaves, the configuration's text.
//!
//! The protocol is narrow on purpose. The server cannot say *what* to attach
//! (the configuration does, which the keeper reads itself), nor have anything
//! signed but leaves ([`crate::tls::Authority::sign_leaf`]).
//!
//! The keeper ends when the server does, and the server when the keeper does.
mod attaching;
mod client;
mod serve;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{Answer, Authorised, Keeper, KeeperError, Started, Starting};
pub use serve::main;

/// The hidden first argument that makes this binary the keeper.
pub const KEEPER: &str = "__keeper";

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
/// With it come the other end of the signing channel, and the listeners.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    pub config: PathBuf,
    pub targets: Targets,
    /// The cgroup of both processes, as a directory.
    pub cgroup: PathBuf,
    pub ports: Vec<u16>,
    pub allow_quic: bool,
    pub ca_dir: PathBuf,
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
