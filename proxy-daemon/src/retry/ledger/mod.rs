//! The ledger: attempts in, calls, retries and backoff per process out.
//!
//! How things are counted, where the vocabulary leaves room:
//!
//! - A *call* is (process, family, the client's identifier). It and its
//!   attempts are counted as attempts **end**; what is under way is not in a
//!   snapshot. An attempt without a signal is a call of its own.
//! - A *retry* is every attempt of a call but its first. The first is the one
//!   numbered 1: an attempt numbered 2 is a retry also where the first was
//!   never seen here, because its connection failed before HTTP. A second
//!   attempt numbered 1 (something below the client sent it again) is a retry.
//! - *Backoff* runs from the end of the call's attempt that ended last to the
//!   beginning of the next. There is none while another attempt of the call
//!   is under way (hedging), and none after a redirect. After a success there
//!   is: the client's own numbering says that it was none (an error inside a
//!   200, a checksum that did not match). It counts for the operation that
//!   failed.
//! - A call is *given up* while nothing of it is under way, none of the
//!   attempts that ran side by side succeeded, and the last to end had a
//!   retryable outcome, or one that the client has tried again before in the
//!   same call: some services throttle with 400 and say so in the body, and a
//!   client's own time-out looks like its going away. The next attempt takes
//!   that back; nothing has to close the call, so neither eviction nor exit
//!   changes what was counted.
//! - *Stalled* is the union of a process's backoff, see [`union`].
//!
//! Totals hold for ever: a process or operation past its limit is folded into
//! a row for the others, and [`Bounds`] tells what that cost.
mod calls;
mod herds;
mod quantiles;
mod series;
mod shares;
mod snapshot;
mod tally;
#[cfg(test)]
mod tests;
mod union;

use std::{fmt, sync::Arc};

use calls::{CallName, Calls, Last, Place};
pub use herds::HerdCount;
use lru::LruCache;
pub use quantiles::Quantiles;
pub use series::Series;
use shares::Share;
pub use snapshot::{
    Bounds, ConnectionKind, Connections, Folded, Problem, ProblemCount, ProcessShare, RuleWait, Snapshot,
};
pub use tally::{Asked, Backoff, Classes, Codes, Counts, OperationName, Outcome, Tally, Wasted};

use super::{Class, Signal, class::is_retryable};
use crate::{
    flow::{Attempt, CallId, Evidence, Link, Moment, Wait},
    process::{Process, ProcessKey},
};

/// How much the ledger remembers. Each limit is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls under way or failed so far.
    pub calls: usize,
    /// Calls that have come to an end and may yet be taken up again.
    pub settled: usize,
    pub processes: usize,
    /// Operations per process, without the row for the others.
    pub operations: usize,
    /// Different problems per process.
    pub problems: usize,
    /// Rules told apart per process by the waits they cause.
    pub rules: usize,
    /// Disjoint spans of backoff per process that can still grow together.
    pub spans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { calls: 65_536, settled: 8_192, processes: 8_192, operations: 256, problems: 64, rules: 64, spans: 256 }
    }
}

/// Time is passed in: [`Moment`]s of the instance's one clock.
pub struct Ledger {
    limits: Limits,
    started: Moment,
    calls: Calls,
    last_call: u64,
    shares: LruCache<ProcessKey, Share>,
    last_share: u64,
    folded: Folded,
    bounds: Bounds,
}

impl Ledger {
    pub fn new(limits: Limits, started: Moment) -> Self {
        Self {
            limits,
            started,
            calls: Calls::new(limits.calls, limits.settled),
            last_call: 0,
            shares: LruCache::unbounded(),
            last_share: 0,
            folded: Folded::default(),
            bounds: Bounds::default(),
        }
    }

    /// A connection of the process came to its decision.
    pub fn connection(&mut self, process: &Arc<Process>, kind: ConnectionKind, at: Moment) {
        if let Some(share) = self.share(process, at) {
            share.connection(kind);
        }
    }

    /// Something to tell the person who reads the report; repeats are counted.
    pub fn problem(&mut self, process: &Arc<Process>, problem: Problem, at: Moment) {
        let limit = self.limits.problems;
        if let Some(share) = self.share(process, at) {
            share.problem(problem, limit);
        }
    }

    /// An attempt begins: which call it belongs to, which number it has there
    /// (the client's own, or by arrival), and how long the call has waited for
    /// it. Every beginning is followed by one [`finish`](Self::finish).
    pub fn begin(&mut self, process: &Arc<Process>, signal: Option<&Signal>, at: Moment) -> Link {
        let limit = self.limits.rules;
        self.share(process, at);
        let Some(signal) = signal else {
            self.last_call += 1;
            return Link {
                call: CallId(self.last_call),
                number: 1,
                max: None,
                evidence: Evidence::Alone,
                waited: None,
            };
        };
        let name = CallName { process: process.key, call: signal.call, family: signal.family };
        let last_call = &mut self.last_call;
        let fresh = || {
            *last_call += 1;
            CallId(*last_call)
        };
        let Some((id, call)) = self.calls.named(name, fresh) else {
            // Just entered, so it is there; were it not, it is a call of its own.
            return Link { call: CallId(0), number: 1, max: None, evidence: Evidence::Alone, waited: None };
        };

        call.begun = call.begun.saturating_add(1);
        let number = signal.number.unwrap_or(call.begun);
        call.highest = call.highest.max(number);
        call.max = signal.max.or(call.max);
        let alone = call.in_flight == 0;
        call.in_flight = call.in_flight.saturating_add(1);
        let mut waited = None;
        if alone {
            call.won = false;
            call.tried_again = call.last.as_ref().map(|last| last.outcome);
            if let Some(last) = call.last.as_ref().filter(|last| last.ended <= at) {
                waited = follow(&mut self.shares, &mut self.folded, process.key, last, at, limit);
            }
        }
        if let Some(place) = call.given_up.take() {
            let tally = tally_at(&mut self.shares, &mut self.folded, process.key, place);
            tally.give_ups = tally.give_ups.saturating_sub(1);
        }
        let max = call.max;
        Link { call: id, number, max, evidence: Evidence::Exact, waited }
    }

    /// An attempt has ended: the whole record.
    pub fn finish(&mut self, attempt: &Attempt) {
        let ended = attempt.ended.unwrap_or(attempt.started);
        let (outcome, class) = (Outcome::of(attempt), Class::of(attempt));
        let limit = self.limits.operations;
        self.share(&attempt.process, ended);
        let Some(share) = self.shares.peek_mut(&attempt.process.key) else { return };
        let place = share.place(attempt, limit);
        let Some(tally) = share.tally(place) else { return };
        tally.ended(attempt, outcome, class);
        let retryable = is_retryable(class, outcome.status());

        if attempt.link.evidence == Evidence::Alone {
            tally.calls += 1;
            tally.unlinked += 1;
            tally.give_ups += u64::from(retryable);
            return;
        }
        let call = self.calls.get(attempt.link.call);
        let first = attempt.link.number <= 1 && !call.as_ref().is_some_and(|call| call.first_ended);
        if !first {
            match attempt.link.evidence {
                Evidence::Inferred => tally.retries_inferred += 1,
                Evidence::Exact | Evidence::Alone => tally.retries_exact += 1,
            }
        }
        let Some(call) = call else {
            // Forgotten while it was under way: what the number alone tells.
            tally.calls += u64::from(first);
            tally.give_ups += u64::from(retryable);
            return;
        };

        call.first_ended |= first;
        if !call.counted {
            call.counted = true;
            tally.calls += 1;
        }
        if !first && !call.retried {
            call.retried = true;
            tally.calls_retried += 1;
        }
        call.in_flight = call.in_flight.saturating_sub(1);
        call.won |= !class.is_failure();
        if call.last.as_ref().is_none_or(|last| last.ended <= ended) {
            call.last = Some(Last {
                ended,
                outcome,
                class,
                place,
                asked: attempt.complaint.wait.filter(|_| class.is_failure()),
                done: tally::is_done(attempt, class),
                rule: attempt.injected.as_ref().map(|injected| Arc::clone(&injected.rule)),
            });
        }
        if let Some(place) = call.given_up_with().map(|last| last.place)
            && call.given_up.is_none()
        {
            call.given_up = Some(place);
            // Not always this attempt's: the last to end may have been another.
            tally_at(&mut self.shares, &mut self.folded, attempt.process.key, place).give_ups += 1;
        }
        self.calls.shelve(attempt.link.call);
    }

    /// The process has ended. What it had under way may still be reported.
    pub fn exited(&mut self, key: ProcessKey, at: Moment) {
        if let Some(share) = self.shares.peek_mut(&key) {
            share.exited(at);
        }
    }

    pub fn snapshot(&self, now: Moment) -> Snapshot {
        let processes: Vec<_> = self.shares.iter().map(|(_, share)| share.report(now)).collect();
        let mut totals = self.folded.tally.clone();
        processes.iter().for_each(|share| totals.add_all(&share.tally));
        let mut bounds = Bounds { calls_forgotten: self.calls.forgotten, ..self.bounds };
        self.shares.iter().for_each(|(_, share)| bounds.take(share));
        Snapshot { started: self.started, taken: now, totals, processes, folded: self.folded.clone(), bounds }
    }

    /// The process's share, entered if it is new.
    fn share(&mut self, process: &Arc<Process>, at: Moment) -> Option<&mut Share> {
        if !self.shares.contains(&process.key) {
            while self.shares.len() >= self.limits.processes.max(1) {
                let Some((_, share)) = self.shares.pop_lru() else { break };
                self.fold(&share, at);
            }
            self.last_share += 1;
            self.shares.put(process.key, Share::new(process, self.last_share, at, &self.limits));
        }
        let share = self.shares.get_mut(&process.key)?;
        share.active(at);
        Some(share)
    }

    /// Adds a share to the row for the others.
    fn fold(&mut self, share: &Share, now: Moment) {
        let report = share.report(now);
        self.bounds.take(share);
        self.bounds.processes_folded += 1;
        self.folded.processes += 1;
        self.folded.tally.add_all(&report.tally);
        self.folded.connections.add_all(&report.connections);
        self.folded.observed = self.folded.observed.saturating_add(report.observed());
        self.folded.herds.add_all(&report.herds);
        self.folded.stalled = self.folded.stalled.saturating_add(report.stalled);
        self.folded.stalled_injected = self.folded.stalled_injected.saturating_add(report.stalled_injected);
    }
}

/// A call goes on after its attempt that ended last: what that costs, and what
/// it says of the attempt. The wait, unless it followed a redirect.
fn follow(
    shares: &mut LruCache<ProcessKey, Share>,
    folded: &mut Folded,
    process: ProcessKey,
    last: &Last,
    at: Moment,
    limit: usize,
) -> Option<Wait> {
    let redirected = last.outcome.redirected();
    let wait = Wait { from: last.ended, to: at, injected: last.rule.is_some() };
    if !redirected && let Some(share) = shares.peek_mut(&process) {
        share.waited(&wait, last.rule.as_ref(), limit);
    }
    let tally = tally_at(shares, folded, process, last.place);
    if last.class == Class::Cancelled {
        tally.classes.was_timeout();
    }
    if let Some(asked) = last.asked {
        tally.followed(asked, wait.length());
    }
    tally.repeated += u64::from(last.done);
    if redirected {
        return None;
    }
    tally.backoff.add(wait.length(), wait.injected);
    Some(wait)
}

/// The tally at a place; that of the folded processes where the process has
/// been folded since (and perhaps entered anew).
fn tally_at<'a>(
    shares: &'a mut LruCache<ProcessKey, Share>,
    folded: &'a mut Folded,
    process: ProcessKey,
    place: Place,
) -> &'a mut Tally {
    match shares.peek_mut(&process).and_then(|share| share.tally(place)) {
        Some(tally) => tally,
        None => &mut folded.tally,
    }
}

impl Bounds {
    fn take(&mut self, share: &Share) {
        self.operations_folded += share.operations_folded;
        self.problems_dropped += share.problems_dropped;
        self.waits_cut = self.waits_cut.saturating_add(share.waits_cut());
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("calls", &self.calls.len())
            .field("processes", &self.shares.len())
            .finish_non_exhaustive()
    }
}
