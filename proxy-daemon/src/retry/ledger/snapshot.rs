//! What the ledger tells, as plain values.
use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    herds::HerdCount,
    series::Series,
    tally::{OperationName, Tally},
};
use crate::{flow::Moment, process::Process};

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionKind {
    /// TLS was terminated and attempts were read.
    Intercepted,
    /// Bytes went through untouched.
    Tunnelled,
    /// It came to nothing: the upstream or either handshake failed.
    Refused,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub intercepted: u64,
    pub tunnelled: u64,
    pub refused: u64,
}

impl Connections {
    pub fn sum(&self) -> u64 {
        self.intercepted + self.tunnelled + self.refused
    }

    pub fn add_all(&mut self, other: &Self) {
        self.intercepted += other.intercepted;
        self.tunnelled += other.tunnelled;
        self.refused += other.refused;
    }

    pub(super) fn add(&mut self, kind: ConnectionKind) {
        match kind {
            ConnectionKind::Intercepted => self.intercepted += 1,
            ConnectionKind::Tunnelled => self.tunnelled += 1,
            ConnectionKind::Refused => self.refused += 1,
        }
    }
}

/// Something a person should know of a process's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One clause, such as `the client refused our certificate`. With `name`
    /// it tells problems apart.
    pub kind: &'static str,
    /// The host it happened with.
    pub name: String,
    /// What to do about it, a sentence.
    pub hint: String,
    /// Where the client met something that it would not have met without us:
    /// what, in place of what.
    pub differs: Option<&'static str>,
}

/// Connections to one name that were passed on untouched, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelCount {
    pub name: String,
    /// A clause, such as `not TLS`.
    pub why: &'static str,
    pub connections: u64,
    /// Bytes from and to the client; of connections that have ended.
    pub sent: u64,
    pub received: u64,
    /// How long those were open, in all, and the longest of them.
    pub open: Duration,
    pub longest: Duration,
}

/// What passed through a tunnel that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub sent: u64,
    pub received: u64,
    pub open: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemCount {
    pub kind: &'static str,
    pub name: String,
    pub hint: String,
    pub count: u64,
    pub differs: Option<&'static str>,
}

/// The waits that one rule caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleWait {
    pub rule: Arc<str>,
    pub count: u64,
    pub total: Duration,
}

#[derive(Clone, Debug)]
pub struct ProcessShare {
    pub process: Arc<Process>,
    /// Tells this row from an earlier one of the same process, which was
    /// folded. Never used twice.
    pub serial: u64,
    /// Its first connection or attempt.
    pub first: Moment,
    /// Its exit, or the moment of the snapshot.
    pub until: Moment,
    pub exited: bool,
    /// The sum of `operations`.
    pub tally: Tally,
    /// The union of its waits, and of those that followed a rule's doing.
    pub stalled: Duration,
    pub stalled_injected: Duration,
    /// Retries that woke together.
    pub herds: HerdCount,
    /// Retries that followed a wait, over time, from `first` on.
    pub series: Series,
    pub rules: Vec<RuleWait>,
    pub connections: Connections,
    /// In the order in which they were first seen.
    pub operations: Vec<(OperationName, Tally)>,
    pub problems: Vec<ProblemCount>,
    pub tunnels: Vec<TunnelCount>,
}

impl ProcessShare {
    pub fn observed(&self) -> Duration {
        self.until.since(self.first)
    }
}

/// Processes that no longer have a row of their own, as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    pub processes: u64,
    pub tally: Tally,
    pub connections: Connections,
    pub stalled: Duration,
    pub stalled_injected: Duration,
    pub herds: HerdCount,
    pub observed: Duration,
}

/// What the limits have cost so far; all zero below them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Calls forgotten while more was expected of them.
    pub calls_forgotten: u64,
    /// Processes whose rows were folded into one.
    pub processes_folded: u64,
    /// Attempts counted under no operation of their own.
    pub operations_folded: u64,
    /// Problems, and tunnels' names, not listed.
    pub problems_dropped: u64,
    /// Attempts that passed though somebody wanted them held.
    pub attempts_unheld: u64,
    /// Backoff that `stalled` may lack.
    pub waits_cut: Duration,
}

impl Folded {
    /// Adds a process that gets no row of its own any more.
    pub(super) fn add(&mut self, share: &ProcessShare) {
        self.processes += 1;
        self.tally.add_all(&share.tally);
        self.connections.add_all(&share.connections);
        self.observed = self.observed.saturating_add(share.observed());
        self.herds.add_all(&share.herds);
        self.stalled = self.stalled.saturating_add(share.stalled);
        self.stalled_injected = self.stalled_injected.saturating_add(share.stalled_injected);
    }
}

impl Snapshot {
    /// Everything in one row.
    pub fn fold(&self) -> Folded {
        let mut folded = self.folded.clone();
        self.processes.iter().for_each(|share| folded.add(share));
        folded
    }
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub started: Moment,
    pub taken: Moment,
    /// The sum of `processes` and `folded`.
    pub totals: Tally,
    /// In no particular order.
    pub processes: Vec<ProcessShare>,
    pub folded: Folded,
    pub bounds: Bounds,
}
