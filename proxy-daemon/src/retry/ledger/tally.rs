//! What is counted: the same tally for an operation, a process and the whole.
use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::quantiles::Quantiles;
use crate::{
    flow::{Attempt, Failure, Injected as Told, route},
    retry::Class,
};

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
            (None, Some(status), None | Some(Failure::Cancelled | Failure::Unread)) => Outcome::Genuine(status),
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

    /// The client took away the same: a status, whoever told it, or a kind of
    /// failure.
    pub(super) fn same(self, other: Self) -> bool {
        match (self, other) {
            (Outcome::Error(one), Outcome::Error(other)) => one == other,
            (Outcome::Aborted(one), Outcome::Aborted(other)) => one == other,
            _ => self.status().is_some() && self.status() == other.status(),
        }
    }

    pub(super) fn redirected(self) -> bool {
        self.status().is_some_and(|status| (300..400).contains(&status))
    }
}

/// Numbers by key: few keys, kept in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts<K>(Vec<(K, u64)>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K> Counts<K> {
    pub(super) fn into_pairs(self) -> impl Iterator<Item = (K, u64)> {
        self.0.into_iter()
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

    pub(super) fn add(&mut self, key: K, count: u64) {
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    pub count: u64,
    pub total: Duration,
    pub max: Duration,
    /// The part of `count` that followed a rule's doing.
    pub injected_count: u64,
    /// The part of `total` that followed a rule's doing.
    pub injected_total: Duration,
    /// Of their lengths.
    pub quantiles: Quantiles,
}

impl Backoff {
    pub(super) fn add(&mut self, wait: Duration, injected: bool) {
        self.count += 1;
        self.total = self.total.saturating_add(wait);
        self.max = self.max.max(wait);
        self.quantiles.add(wait);
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
        self.quantiles.add_all(&other.quantiles);
    }
}

/// Attempts by kind of outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    genuine: [u64; Class::ALL.len()],
    injected: [u64; Class::ALL.len()],
}

impl Classes {
    /// Told, or caused, by the upstream or the client.
    pub fn genuine(&self, class: Class) -> u64 {
        self.genuine[class as usize]
    }

    /// Made by a rule.
    pub fn injected(&self, class: Class) -> u64 {
        self.injected[class as usize]
    }

    pub fn all(&self, class: Class) -> u64 {
        self.genuine(class) + self.injected(class)
    }

    pub(super) fn add(&mut self, class: Class, injected: bool) {
        let counts = if injected { &mut self.injected } else { &mut self.genuine };
        counts[class as usize] += 1;
    }

    /// A client that went away had waited in vain: it tries again.
    pub(super) fn was_timeout(&mut self) {
        let [gone, late] = [Class::Cancelled, Class::Timeout].map(|class| class as usize);
        if self.genuine[gone] > 0 {
            self.genuine[gone] -= 1;
            self.genuine[late] += 1;
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.genuine.iter_mut().zip(other.genuine).for_each(|(sum, count)| *sum += count);
        self.injected.iter_mut().zip(other.injected).for_each(|(sum, count)| *sum += count);
    }
}

/// Different error codes that one tally tells apart.
const MAX_CODES: usize = 16;

/// Services' own error codes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Codes(Vec<(Arc<str>, u64)>);

impl Codes {
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.0.iter().map(|(code, count)| (code, *count))
    }

    fn add(&mut self, code: &Arc<str>, count: u64) {
        match self.0.binary_search_by(|entry| entry.0.cmp(code)) {
            Ok(at) => self.0[at].1 += count,
            Err(at) if self.0.len() < MAX_CODES => self.0.insert(at, (Arc::clone(code), count)),
            // Past the limit the last takes the rest: `~` sorts after letters.
            Err(_) => match self.0.last_mut() {
                Some((last, sum)) if &**last == "~other" => *sum += count,
                _ => self.0.push((Arc::from("~other"), count)),
            },
        }
    }
}

/// How long services asked clients to wait (`Retry-After` and its like).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Failed attempts whose response asked for a wait.
    pub count: u64,
    pub total: Duration,
    /// Of `count`, those that the client followed with another attempt.
    pub followed: u64,
    /// Of `followed`, those that it waited long enough for.
    pub honoured: u64,
}

impl Asked {
    fn add_all(&mut self, other: &Self) {
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.followed += other.followed;
        self.honoured += other.honoured;
    }
}

/// What failed attempts have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wasted {
    /// From their starts to their ends, summed.
    pub time: Duration,
    /// Body bytes.
    pub sent: u64,
    pub received: u64,
}

impl Wasted {
    fn add_all(&mut self, other: &Self) {
        self.time = self.time.saturating_add(other.time);
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// `statuses`, `injected`, `aborted` and `errors` hold every attempt exactly
/// once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Counted when the first attempt of a call ends.
    pub calls: u64,
    /// Calls with at least one retry.
    pub calls_retried: u64,
    /// Counted as they end.
    pub attempts: u64,
    /// Of `attempts`, those whose client says nothing that could link them: what
    /// they are linked to is inferred.
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
    #[serde(with = "super::names")]
    pub aborted: Counts<&'static str>,
    /// Attempts without a status for the client, or with half a response.
    #[serde(with = "super::names")]
    pub errors: Counts<&'static str>,
    /// Attempts of which a head was too long to be read whole.
    pub unread: u64,
    /// The same attempts by kind.
    pub classes: Classes,
    /// What services called their errors.
    pub codes: Codes,
    pub asked: Asked,
    /// Body bytes of all attempts.
    pub sent: u64,
    pub received: u64,
    pub wasted: Wasted,
    /// Retries of requests that are not idempotent and that the upstream had
    /// carried out: the client never heard of it.
    pub repeated: u64,
    /// How long rules and people have held attempts up.
    pub held: Duration,
    #[serde(default)]
    pub hand: ByHand,
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
        self.unread += other.unread;
        self.classes.add_all(&other.classes);
        other.codes.iter().for_each(|(code, count)| self.codes.add(code, count));
        self.asked.add_all(&other.asked);
        self.sent += other.sent;
        self.received += other.received;
        self.wasted.add_all(&other.wasted);
        self.repeated += other.repeated;
        self.held = self.held.saturating_add(other.held);
        self.hand.add_all(&other.hand);
        self.backoff.add_all(&other.backoff);
    }

    /// Counts an attempt that has ended.
    pub(super) fn ended(&mut self, attempt: &Attempt, outcome: Outcome, class: Class) {
        self.attempts += 1;
        self.outcome(outcome);
        self.unread += u64::from(attempt.failure == Some(Failure::Unread));
        self.classes.add(class, attempt.injected.is_some());
        self.held = self.held.saturating_add(attempt.held);
        self.hand.ended(attempt, outcome);
        self.sent += attempt.sent;
        self.received += attempt.received;
        if !class.is_failure() {
            return;
        }
        // What people took to look at it is neither side's waste.
        let time = attempt.ended.unwrap_or(attempt.started).since(attempt.started).saturating_sub(attempt.hand.time);
        self.wasted.add_all(&Wasted { time, sent: attempt.sent, received: attempt.received });
        if let Some(code) = &attempt.complaint.code {
            self.codes.add(code, 1);
        }
        if let Some(wait) = attempt.complaint.wait {
            self.asked.count += 1;
            self.asked.total = self.asked.total.saturating_add(wait);
        }
    }

    /// The client follows an attempt that asked for this wait.
    pub(super) fn followed(&mut self, asked: Duration, waited: Duration) {
        self.asked.followed += 1;
        self.asked.honoured += u64::from(waited + TOLERANCE >= asked);
    }

    fn outcome(&mut self, outcome: Outcome) {
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

/// What people have done to attempts by hand: a part of what the tally says
/// was injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ByHand {
    /// Attempts that were held, and for how long in all.
    pub held: u64,
    pub time: Duration,
    /// Requests that reached the upstream other than the client sent them.
    pub asked: u64,
    /// Genuine answers that were changed.
    pub changed: u64,
    /// Answers that no upstream has given.
    pub made: u64,
    pub aborted: u64,
}

impl ByHand {
    fn add_all(&mut self, other: &Self) {
        self.held += other.held;
        self.time = self.time.saturating_add(other.time);
        self.asked += other.asked;
        self.changed += other.changed;
        self.made += other.made;
        self.aborted += other.aborted;
    }

    fn ended(&mut self, attempt: &Attempt, outcome: Outcome) {
        let hand = &attempt.hand;
        self.held += u64::from(hand.holds > 0);
        self.time = self.time.saturating_add(hand.time);
        self.asked += u64::from(hand.asked);
        match outcome {
            Outcome::Injected { genuine: Some(_), .. } if hand.told => self.changed += 1,
            Outcome::Injected { genuine: None, .. } if hand.told => self.made += 1,
            Outcome::Aborted(_) if hand.told => self.aborted += 1,
            _ => {}
        }
    }
}

/// Timers fire late rather than early, but clients round.
const TOLERANCE: Duration = Duration::from_millis(20);

/// The upstream has carried out what it may not be asked to do twice, and the
/// client was told otherwise.
pub(super) fn is_done(attempt: &Attempt, class: Class) -> bool {
    let done = attempt.response.as_ref().is_some_and(|response| (200..300).contains(&response.status));
    let keyed = || attempt.request.headers.get("idempotency-key").is_some();
    done && class.is_failure()
        && attempt.complaint.code.is_none()
        && matches!(&*attempt.request.method, "POST" | "PATCH")
        && !attempt.operation.name.as_deref().is_some_and(reads)
        && !keyed()
}

/// Operations of RPC services that are sent by POST and change nothing.
fn reads(operation: &str) -> bool {
    ["Get", "List", "Describe", "Head", "Query", "Scan", "Search", "BatchGet", "Receive", "Select", "Lookup", "Count"]
        .iter()
        .any(|verb| operation.starts_with(verb))
}

/// What an attempt is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OperationName {
    /// Absent where unknown.
    pub service: Option<Arc<str>>,
    /// As the service names it, or else `METHOD host/path`, see [`route`].
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
    pub fn of(attempt: &Attempt) -> Option<Self> {
        let operation = match &attempt.operation.name {
            Some(name) => Arc::clone(name),
            None => Arc::from(route::name(&attempt.request)?),
        };
        let service = attempt.operation.service.clone();
        let length = operation.len() + service.as_ref().map_or(0, |service| service.len());
        (length <= MAX_NAME).then_some(Self { service, operation })
    }
}
