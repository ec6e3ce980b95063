//! What is counted: the same tally for an operation, a process and the whole.
use std::{sync::Arc, time::Duration};

use crate::flow::{Attempt, Failure, Injected as Told, Request};

/// How an attempt came out, from the client's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream's status, told unchanged.
    Genuine(u16),
    /// A status told by a rule, and the upstream's own beneath it.
    Injected { told: u16, genuine: Option<u16> },
    /// Broken off by a rule, in this way.
    Aborted(&'static str),
    /// No response, or a broken one; `None` where the record does not say
    /// why.
    Error(Option<Failure>),
}

impl Outcome {
    /// Every attempt has exactly one outcome. A status that a rule told counts
    /// as told; a response that broke off is the failure that broke it; but a
    /// client that went away with a status in hand has its status.
    pub fn of(attempt: &Attempt) -> Self {
        let genuine = attempt.response.as_ref().map(|response| response.status);
        match (&attempt.injected, genuine, attempt.failure) {
            (Some(Told { abort: Some(abort), .. }), ..) => Outcome::Aborted(abort),
            (Some(Told { status: Some(told), .. }), genuine, _) => Outcome::Injected { told: *told, genuine },
            (None, Some(status), None | Some(Failure::Cancelled)) => Outcome::Genuine(status),
            (_, _, failure) => Outcome::Error(failure),
        }
    }

    /// The status that the client took away.
    pub fn status(self) -> Option<u16> {
        match self {
            Outcome::Genuine(status) | Outcome::Injected { told: status, .. } => Some(status),
            Outcome::Error(_) | Outcome::Aborted(_) => None,
        }
    }

    /// What a client may well try again. A call that ends like this has been
    /// given up.
    pub fn retryable(self) -> bool {
        match self {
            Outcome::Error(failure) => failure.is_some_and(|failure| failure != Failure::Cancelled),
            Outcome::Aborted(_) => true,
            Outcome::Genuine(status) | Outcome::Injected { told: status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504 | 509 | 529)
            }
        }
    }

    /// The client took away the same: a status, whoever told it, or a kind of
    /// failure.
    pub(super) fn same(self, other: Self) -> bool {
        match (self, other) {
            (Outcome::Error(one), Outcome::Error(other)) => one == other,
            (Outcome::Aborted(one), Outcome::Aborted(other)) => one == other,
            _ => self.status().is_some() && self.status() == other.status(),
        }
    }

    /// A status that settles the call: informational, success or redirect.
    pub(super) fn succeeded(self) -> bool {
        self.status().is_some_and(|status| status < 400)
    }

    pub(super) fn redirected(self) -> bool {
        self.status().is_some_and(|status| (300..400).contains(&status))
    }
}

/// Numbers by key: few keys, kept in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts<K>(Vec<(K, u64)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy> Counts<K> {
    pub fn get(&self, key: K) -> u64 {
        self.0.binary_search_by_key(&key, |entry| entry.0).map_or(0, |at| self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        self.0.iter().copied()
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().map(|entry| entry.1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, key: K, count: u64) {
        match self.0.binary_search_by_key(&key, |entry| entry.0) {
            Ok(at) => self.0[at].1 += count,
            Err(at) => self.0.insert(at, (key, count)),
        }
    }

    fn add_all(&mut self, other: &Self) {
        other.iter().for_each(|(key, count)| self.add(key, count));
    }
}

/// The status under which statuses are counted that are not three digits, or
/// that come after too many different ones.
const OTHER_STATUS: u16 = 0;

/// Different statuses that one tally tells apart.
const MAX_STATUSES: usize = 64;

impl Counts<u16> {
    fn add_status(&mut self, status: u16) {
        let known = self.0.binary_search_by_key(&status, |entry| entry.0).is_ok();
        let fits = (100..=999).contains(&status) && self.0.len() < MAX_STATUSES;
        self.add(if known || fits { status } else { OTHER_STATUS }, 1);
    }
}

/// Waits between the attempts of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    pub count: u64,
    pub total: Duration,
    pub max: Duration,
    /// The part of `count` that followed a rule's doing.
    pub injected_count: u64,
    /// The part of `total` that followed a rule's doing.
    pub injected_total: Duration,
}

impl Backoff {
    pub(super) fn add(&mut self, wait: Duration, injected: bool) {
        self.count += 1;
        self.total = self.total.saturating_add(wait);
        self.max = self.max.max(wait);
        if injected {
            self.injected_count += 1;
            self.injected_total = self.injected_total.saturating_add(wait);
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.max = self.max.max(other.max);
        self.injected_count += other.injected_count;
        self.injected_total = self.injected_total.saturating_add(other.injected_total);
    }
}

/// `statuses`, `injected`, `aborted` and `errors` hold every attempt exactly
/// once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Counted when the first attempt of a call ends.
    pub calls: u64,
    /// Calls with at least one retry.
    pub calls_retried: u64,
    /// Counted as they end.
    pub attempts: u64,
    /// Of `attempts`, those whose client says nothing that could link them.
    pub unlinked: u64,
    pub retries_exact: u64,
    pub retries_inferred: u64,
    /// Calls whose last attempt so far has failed with a retryable outcome
    /// and that no attempt has followed.
    pub give_ups: u64,
    /// Told as the upstream gave them.
    pub statuses: Counts<u16>,
    /// Told by a rule.
    pub injected: Counts<u16>,
    /// The upstream's statuses beneath `injected`.
    pub replaced: Counts<u16>,
    /// Broken off by a rule.
    pub aborted: Counts<&'static str>,
    /// Attempts without a status for the client, or with half a response.
    pub errors: Counts<&'static str>,
    /// How long rules have held attempts up.
    pub held: Duration,
    pub backoff: Backoff,
}

impl Tally {
    pub fn retries(&self) -> u64 {
        self.retries_exact + self.retries_inferred
    }

    pub fn add_all(&mut self, other: &Self) {
        self.calls += other.calls;
        self.calls_retried += other.calls_retried;
        self.attempts += other.attempts;
        self.unlinked += other.unlinked;
        self.retries_exact += other.retries_exact;
        self.retries_inferred += other.retries_inferred;
        self.give_ups += other.give_ups;
        self.statuses.add_all(&other.statuses);
        self.injected.add_all(&other.injected);
        self.replaced.add_all(&other.replaced);
        self.aborted.add_all(&other.aborted);
        self.errors.add_all(&other.errors);
        self.held = self.held.saturating_add(other.held);
        self.backoff.add_all(&other.backoff);
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Genuine(status) => self.statuses.add_status(status),
            Outcome::Injected { told, genuine } => {
                self.injected.add_status(told);
                if let Some(status) = genuine {
                    self.replaced.add_status(status);
                }
            }
            Outcome::Aborted(how) => self.aborted.add(how, 1),
            Outcome::Error(failure) => self.errors.add(failure.map_or("unknown", Failure::name), 1),
        }
    }
}

/// What an attempt is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OperationName {
    /// Absent where unknown.
    pub service: Option<Arc<str>>,
    /// As the service names it, or else `METHOD host`.
    pub operation: Arc<str>,
}

/// Longer names are not an API's.
const MAX_NAME: usize = 256;

impl OperationName {
    /// The row for all operations that no longer get one of their own.
    pub fn other() -> Self {
        Self { service: None, operation: Arc::from("(other)") }
    }

    /// `None` for a name too long to be kept.
    pub(super) fn of(attempt: &Attempt) -> Option<Self> {
        let operation = match &attempt.operation.name {
            Some(name) => Arc::clone(name),
            None => Arc::from(unnamed(&attempt.request)?),
        };
        let service = attempt.operation.service.clone();
        let length = operation.len() + service.as_ref().map_or(0, |service| service.len());
        (length <= MAX_NAME).then_some(Self { service, operation })
    }
}

fn unnamed(request: &Request) -> Option<String> {
    let host = request.host();
    (request.method.len() + host.len() < MAX_NAME).then(|| format!("{} {host}", request.method))
}
