//! One process's share of the ledger: its rows, waits, connections and
//! problems.
use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    Limits,
    calls::Place,
    herds::Herds,
    series::Series,
    snapshot::{ConnectionKind, Connections, Passed, Problem, ProblemCount, ProcessShare, RuleWait, TunnelCount},
    tally::{OperationName, Tally},
    union::Union,
};
use crate::{
    flow::{Attempt, Moment, Wait},
    process::Process,
};

/// Longer texts of a problem are cut here.
const MAX_TEXT: usize = 512;
/// Retries after less than this never slept: they do not wake together.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

pub(super) struct Share {
    pub(super) process: Arc<Process>,
    /// Tells this entry from an earlier one of the same process.
    serial: u64,
    first: Moment,
    last: Moment,
    exited: Option<Moment>,
    connections: Connections,
    rows: Vec<(OperationName, Tally)>,
    index: HashMap<OperationName, u32, lru::DefaultHasher>,
    waits: Union,
    injected_waits: Union,
    herds: Herds,
    series: Series,
    rules: Vec<RuleWait>,
    problems: Vec<ProblemCount>,
    tunnels: Vec<TunnelCount>,
    /// Attempts counted in the row for other operations.
    pub(super) operations_folded: u64,
    pub(super) problems_dropped: u64,
}

impl Share {
    pub(super) fn new(process: &Arc<Process>, serial: u64, at: Moment, limits: &Limits) -> Self {
        Self {
            process: Arc::clone(process),
            serial,
            first: at,
            last: at,
            exited: None,
            connections: Connections::default(),
            rows: Vec::new(),
            index: HashMap::default(),
            waits: Union::new(limits.spans),
            injected_waits: Union::new(limits.spans),
            herds: Herds::default(),
            series: Series::new(at),
            rules: Vec::new(),
            problems: Vec::new(),
            tunnels: Vec::new(),
            operations_folded: 0,
            problems_dropped: 0,
        }
    }

    pub(super) fn active(&mut self, at: Moment) {
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }

    pub(super) fn exited(&mut self, at: Moment) {
        self.exited = Some(self.exited.map_or(at, |before| before.min(at)));
    }

    pub(super) fn connection(&mut self, kind: ConnectionKind) {
        self.connections.add(kind);
    }

    pub(super) fn problem(&mut self, problem: Problem, limit: usize) {
        let Problem { kind, mut name, mut hint, differs } = problem;
        cut(&mut name);
        if let Some(known) = self.problems.iter_mut().find(|known| known.kind == kind && known.name == name) {
            known.count += 1;
            return;
        }
        if self.problems.len() >= limit {
            self.problems_dropped += 1;
            return;
        }
        cut(&mut hint);
        self.problems.push(ProblemCount { kind, name, hint, count: 1, differs });
    }

    /// A tunnel begins.
    pub(super) fn tunnel(&mut self, name: &str, why: &'static str, limit: usize) {
        self.connections.add(ConnectionKind::Tunnelled);
        if let Some(known) = self.tunnel_mut(name, why) {
            known.connections += 1;
            return;
        }
        if self.tunnels.len() >= limit {
            self.problems_dropped += 1;
            return;
        }
        let (mut name, zero) = (name.to_owned(), Duration::ZERO);
        cut(&mut name);
        self.tunnels.push(TunnelCount { name, why, connections: 1, sent: 0, received: 0, open: zero, longest: zero });
    }

    /// A tunnel has ended.
    pub(super) fn passed(&mut self, name: &str, why: &'static str, passed: Passed) {
        let Some(known) = self.tunnel_mut(name, why) else { return };
        known.sent = known.sent.saturating_add(passed.sent);
        known.received = known.received.saturating_add(passed.received);
        known.open = known.open.saturating_add(passed.open);
        known.longest = known.longest.max(passed.open);
    }

    fn tunnel_mut(&mut self, name: &str, why: &'static str) -> Option<&mut TunnelCount> {
        let name = &name[..name.floor_char_boundary(MAX_TEXT)];
        self.tunnels.iter_mut().find(|known| known.why == why && known.name == name)
    }

    /// The row for an attempt's operation, entered if it is new.
    pub(super) fn place(&mut self, attempt: &Attempt, limit: usize) -> Place {
        let serial = self.serial;
        let name = OperationName::of(attempt);
        if let Some(row) = name.as_ref().and_then(|name| self.index.get(name)) {
            return Place { serial, row: *row };
        }
        // The row for other operations stands beside those within the limit.
        let name = match name {
            Some(name) if self.rows.len() < limit => name,
            _ => {
                self.operations_folded += 1;
                let other = OperationName::other();
                if let Some(row) = self.index.get(&other) {
                    return Place { serial, row: *row };
                }
                other
            }
        };
        let row = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.rows.push((name.clone(), Tally::default()));
        self.index.insert(name, row);
        Place { serial, row }
    }

    /// The row's tally, unless the place is in an earlier entry of the process.
    pub(super) fn tally(&mut self, place: Place) -> Option<&mut Tally> {
        let row = self.rows.get_mut(place.row as usize).filter(|_| place.serial == self.serial);
        row.map(|(_, tally)| tally)
    }

    pub(super) fn waited(&mut self, wait: &Wait, rule: Option<&Arc<str>>, limit: usize) {
        self.waits.add(wait.from, wait.to);
        if wait.length() >= SHORTEST_WAIT {
            self.herds.woke(wait.to);
        }
        self.series.add(wait.to);
        if wait.injected {
            self.injected_waits.add(wait.from, wait.to);
        }
        let Some(rule) = rule else { return };
        let at = self.rules.iter().position(|known| known.rule == *rule).unwrap_or_else(|| {
            // Past the limit the last entry takes the rest.
            if self.rules.len() < limit {
                let full = self.rules.len() + 1 == limit;
                let rule = if full { Arc::from("(other rules)") } else { Arc::clone(rule) };
                self.rules.push(RuleWait { rule, count: 0, total: Duration::ZERO });
            }
            self.rules.len() - 1
        });
        if let Some(entry) = self.rules.get_mut(at) {
            entry.count += 1;
            entry.total = entry.total.saturating_add(wait.length());
        }
    }

    pub(super) fn whole(&self) -> Tally {
        let mut whole = Tally::default();
        self.rows.iter().for_each(|(_, tally)| whole.add_all(tally));
        whole
    }

    pub(super) fn waits_cut(&self) -> Duration {
        self.waits.cut()
    }

    pub(super) fn report(&self, now: Moment) -> ProcessShare {
        ProcessShare {
            process: Arc::clone(&self.process),
            serial: self.serial,
            first: self.first,
            until: self.exited.unwrap_or(now).max(self.last),
            exited: self.exited.is_some(),
            tally: self.whole(),
            stalled: self.waits.covered(),
            stalled_injected: self.injected_waits.covered(),
            herds: self.herds.counted(),
            series: self.series.clone(),
            rules: self.rules.clone(),
            connections: self.connections,
            operations: self.rows.clone(),
            problems: self.problems.clone(),
            tunnels: self.tunnels.clone(),
        }
    }
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
}
