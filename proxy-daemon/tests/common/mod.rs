//! The harness of the end-to-end tests: authorities, upstreams, clients and
//! `retryscope run` itself, each a guard that takes everything it made with
//! it, also when a test panics.
//!
//! In: what a test wants to see happen. Out: what the client got, what the
//! upstream received, and the report. Nothing here stands in for the kernel,
//! the clients or the product: the binary under test is the one Cargo built.
//!
//! Every server listens on a loopback address of its own at the real port
//! 443, so tests run beside each other, and the same command can be run
//! directly ([`Run::direct`]) and through retryscope.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_debug_implementations,
    clippy::needless_pass_by_value,
    reason = "each test binary uses its own part of the harness"
)]

pub mod both;
pub mod browser;
pub mod by_hand;
pub mod ca;
pub mod cgroup;
pub mod clients;
pub mod daemon;
pub mod frames;
pub mod hand;
pub mod lingering;
pub mod looping;
pub mod machine;
pub mod page;
pub mod peer;
pub mod podman;
pub mod process;
pub mod report;
pub mod run;
pub mod servers;
pub mod steady;
pub mod tmux;
pub mod upstream;
pub mod wire;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

pub use browser::Browser;
pub use ca::TestCa;
pub use cgroup::TestCgroup;
pub use daemon::{Daemon, Site};
pub use looping::Loop;
pub use machine::Machine;
pub use page::Page;
pub use peer::Peer;
pub use process::{Finished, Running, alive};
pub use report::Report;
pub use run::{Outcome, Run};
pub use upstream::Upstream;
pub use wire::{Wire, WireConn};

/// The name that upstreams of the harness go by.
pub const NAME: &str = "upstream.test";

/// How long anything that should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Whether a measured time is to be judged: as `cargo xtask bench --page
/// --strict` says, on a machine that has nothing else to do.
pub fn times_count() -> bool {
    std::env::var_os("RETRYSCOPE_BENCH").is_some_and(|value| value == "strict")
}

/// A listener on a loopback address that nothing else uses, at `port`.
pub fn own_listener(port: u16) -> TcpListener {
    for _ in 0..64 {
        if let Ok(listener) = TcpListener::bind(own_address(port)) {
            return listener;
        }
    }
    panic!("no loopback address is free at port {port}; as root any 127.x.y.z:{port} should be");
}

/// A loopback address out of four million.
pub fn own_address(port: u16) -> SocketAddr {
    let mut random = [0; 3];
    aws_lc_rs::rand::fill(&mut random).expect("random bytes");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 64 + random[0] % 64, random[1], 1 + random[2] % 254)), port)
}

/// Waits until `look` finds something. For states that the kernel announces
/// to nobody, such as a directory that should be gone.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The bytes of every test body: a block of prime length repeated, so that a
/// lost, doubled or swapped piece of any round size changes the digest.
pub fn pattern(length: usize) -> Vec<u8> {
    let block = pattern_block();
    block.iter().copied().cycle().take(length).collect()
}

fn pattern_block() -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    (0..65_521)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        })
        .collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes for a failure message.
pub fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The words of a command, whatever their types.
#[macro_export]
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(std::ffi::OsString::from($word)),*] };
}
