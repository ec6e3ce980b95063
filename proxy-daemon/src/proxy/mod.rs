//! The data path: accept → classify → intercept or tunnel → HTTP exchange.
//!
//! In: connections that the kernel redirected here. Out: the same traffic at
//! their origins, rewritten where a rule says so, and every attempt in the
//! ledger. Invariants: a connection that no redirect explains is closed; the
//! upstream is connected and verified before the client is answered; what
//! fails on one side fails in kind on the other; no time-out of ours can be
//! felt by a client whose upstream has none.
mod answers;
mod beacon;
mod bypass;
mod capacity;
mod connection;
mod doors;
mod exchange;
mod failure;
mod feed;
mod findings;
mod h1;
mod h2;
pub mod holds;
mod learned;
mod recorded;
mod route;
mod socket;
mod tunnel;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};

pub use answers::{Answered, Answers, Missing};
pub use beacon::Beacon;
pub use bypass::Bypass;
pub use capacity::{BELIEF, Capacity, Load, PULSE};
use doors::Doors;
pub use exchange::Account;
pub use feed::{Feed, Subscription};
pub use findings::Findings;
pub use learned::{Learned, Refusal};
pub use route::{Mapping, RouteError, Routes};
pub use socket::{Gate, connect};

use crate::{
    process::ProcessTable,
    redirect::Door,
    tls::{Leaves, Servers, Upstream},
};

/// Between tries to accept while the system is out of file descriptors or
/// memory; the kernel keeps the connections meanwhile.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(20);

/// Everything a connection needs.
#[derive(Debug)]
pub struct Proxy {
    pub account: Arc<Account>,
    pub gate: Arc<dyn Gate>,
    pub processes: ProcessTable,
    pub leaves: Leaves,
    pub servers: Servers,
    pub upstream: Upstream,
    pub routes: Routes,
    pub learned: Learned,
    pub findings: Findings,
    /// Answers, in the upstreams' place.
    pub answers: Option<Arc<Answers>>,
    pub counters: Counters,
    pub capacity: Capacity,
    pub bypass: Arc<Bypass>,
    /// Where everybody's connections are redirected, what shows it.
    pub beacon: Option<Beacon>,
    /// Where the page is served, which is not to be had by way of us.
    pub page: Option<SocketAddr>,
}

#[derive(Debug, Default)]
pub struct Counters {
    strays: AtomicU64,
    accept_failures: AtomicU64,
}

/// What the counters say, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Connections that no redirect explains; closed.
    pub strays: u64,
    /// Failed `accept()` calls, as when file descriptors ran out.
    pub accept_failures: u64,
}

impl Counted {
    /// Without what the daemon has done itself to see that it lives.
    pub fn without(mut self, heartbeats: u64) -> Self {
        self.strays = self.strays.saturating_sub(heartbeats);
        self
    }
}

impl Counters {
    pub fn read(&self) -> Counted {
        Counted {
            strays: self.strays.load(Ordering::Relaxed),
            accept_failures: self.accept_failures.load(Ordering::Relaxed),
        }
    }
}

impl Proxy {
    /// Accepts and serves until `drain` turns true and every connection has
    /// ended; or, once it drains, until `cut` turns true: what is still open
    /// is then closed, its attempts counted as cancelled.
    ///
    /// Doors to other network namespaces may be added all the while.
    pub async fn serve(
        self: Arc<Self>,
        v4: TcpListener,
        v6: Option<TcpListener>,
        doors: mpsc::Receiver<Door>,
        mut drain: watch::Receiver<bool>,
        mut cut: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        let mut doors = Doors::new(doors);
        loop {
            let accepted = tokio::select! {
                accepted = v4.accept() => accepted,
                accepted = accept(v6.as_ref()) => accepted,
                accepted = doors.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                _ = drain.wait_for(|draining| *draining) => break,
            };
            self.spawn(&mut connections, accepted).await;
        }
        self.bypass.leaving.for_good();
        // What was redirected before the detach may still be on its way.
        loop {
            tokio::select! {
                biased;
                () = async { drop(cut.wait_for(|cut| *cut).await) } => break,
                accepted = v4.accept() => self.spawn(&mut connections, accepted).await,
                accepted = accept(v6.as_ref()) => self.spawn(&mut connections, accepted).await,
                accepted = doors.accept() => self.spawn(&mut connections, accepted).await,
                ended = connections.join_next() => if ended.is_none() { return },
            }
        }
        connections.shutdown().await;
    }

    /// Whether a connection was on its way to our own page.
    fn leads_to_page(&self, origin: SocketAddr) -> bool {
        self.page.is_some_and(|page| {
            let ip = page.ip().to_canonical();
            page.port() == origin.port() && (ip.is_unspecified() || ip == origin.ip().to_canonical())
        })
    }

    async fn spawn(
        self: &Arc<Self>,
        connections: &mut JoinSet<()>,
        accepted: io::Result<(TcpStream, std::net::SocketAddr)>,
    ) {
        match accepted {
            Ok((client, _)) => {
                let proxy = Arc::clone(self);
                let leave = self.bypass.leaving.notice();
                connections.spawn(async move {
                    let _place = proxy.capacity.enter();
                    connection::serve(&proxy, client, leave).await;
                });
            }
            Err(error) => {
                self.counters.accept_failures.fetch_add(1, Ordering::Relaxed);
                if failure::is_exhaustion(&error) {
                    self.capacity.exhausted();
                    tracing::warn!(%error, "cannot accept a connection; it waits");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
