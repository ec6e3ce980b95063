//! The ledger: attempts in, calls, retries and backoff per process out.
//!
//! How things are counted, where the vocabulary leaves room:
//!
//! - A *call* is (process, family, the client's identifier). It and its
//!   attempts are counted as attempts **end**; what is under way is not in a
//!   snapshot. Where the client names no call, [`tracks`] tells which one a
//!   request goes on with, if any; a link that only the body can settle is
//!   settled at the attempt's end.
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
mod names;
mod quantiles;
mod series;
mod shares;
mod snapshot;
mod tally;
#[cfg(test)]
mod tests;
mod tracks;
mod union;

use std::{fmt, net::IpAddr, sync::Arc};

use calls::{CallName, Calls, Last, Place};
pub use herds::HerdCount;
use lru::LruCache;
pub use quantiles::Quantiles;
pub use series::Series;
use shares::Share;
pub use snapshot::{
    Bounds, ConnectionKind, Connections, Folded, Passed, Problem, ProblemCount, ProcessShare, RuleWait, Snapshot,
    TunnelCount,
};
pub use tally::{Asked, Backoff, ByHand, Classes, Codes, Counts, OperationName, Outcome, Tally, Wasted};

use tracks::{Tracks, Waiting};

use super::{Class, Fingerprint, Hint, Signal, class::is_retryable};
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
    /// Different requests of clients that do not name their calls.
    pub tracks: usize,
    pub processes: usize,
    /// Operations per process, without the row for the others.
    pub operations: usize,
    /// Different problems per process, and different tunnels.
    pub problems: usize,
    /// Rules told apart per process by the waits they cause.
    pub rules: usize,
    /// Disjoint spans of backoff per process that can still grow together.
    pub spans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls: 65_536,
            settled: 8_192,
            tracks: 16_384,
            processes: 8_192,
            operations: 256,
            problems: 64,
            rules: 64,
            spans: 256,
        }
    }
}

/// Time is passed in: [`Moment`]s of the instance's one clock.
pub struct Ledger {
    limits: Limits,
    started: Moment,
    calls: Calls,
    tracks: Tracks,
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
            tracks: Tracks::new(limits.tracks),
            last_call: 0,
            shares: LruCache::unbounded(),
            last_share: 0,
            folded: Folded::default(),
            bounds: Bounds::default(),
        }
    }

    /// What earlier ledgers came to goes on in the row for the others.
    pub fn continues(&mut self, earlier: Folded) {
        self.folded = earlier;
    }

    /// A connection of the process came to its decision.
    pub fn connection(&mut self, process: &Arc<Process>, kind: ConnectionKind, at: Moment) {
        if let Some(share) = self.share(process, at) {
            share.connection(kind);
        }
    }

    /// A connection of the process is passed on untouched from now on; its end
    /// is told by [`Self::passed`].
    pub fn tunnel(&mut self, process: &Arc<Process>, name: &str, why: &'static str, at: Moment) {
        let limit = self.limits.problems;
        if let Some(share) = self.share(process, at) {
            share.tunnel(name, why, limit);
        }
    }

    /// A tunnel of the process has ended. Where the process has been folded
    /// since, what passed is not told.
    pub fn passed(&mut self, process: &Arc<Process>, name: &str, why: &'static str, passed: Passed) {
        if let Some(share) = self.shares.peek_mut(&process.key) {
            share.passed(name, why, passed);
        }
    }

    /// An attempt passed that somebody wanted held, since too many are.
    pub fn unheld(&mut self) {
        self.bounds.attempts_unheld += 1;
    }

    /// Something to tell the person who reads the report; repeats are counted.
    pub fn problem(&mut self, process: &Arc<Process>, problem: Problem, at: Moment) {
        let limit = self.limits.problems;
        if let Some(share) = self.share(process, at) {
            share.problem(problem, limit);
        }
    }

    /// Whether a connection that could not be made is an attempt of its own,
    /// and not the same one tried at another address of the name.
    pub fn connects(&mut self, print: Fingerprint, address: IpAddr, started: Moment, ended: Moment) -> bool {
        self.tracks.connects(print, address, started, ended)
    }

    /// An attempt begins: which call it belongs to, which number it has there
    /// (the client's own, or by arrival), and how long the call has waited for
    /// it. Every beginning is followed by one [`finish`](Self::finish), with
    /// the hint's print in [`Attempt::print`].
    pub fn begin(&mut self, process: &Arc<Process>, hint: &Hint, host: &str, at: Moment) -> Link {
        self.share(process, at);
        let key = process.key;
        let signal = hint.signal.as_ref();
        let name = signal.and_then(|signal| Some(CallName { process: key, call: signal.call?, family: signal.family }));
        let number = signal.and_then(|signal| signal.number);
        let max = signal.and_then(|signal| signal.max);
        let told = name.filter(|name| !name.family.is_weak() || self.calls.is_named(name));
        // A track has to hear of every beginning, also of those that it is not
        // asked about.
        let followed = hint.print.and_then(|print| match told {
            Some(_) => self.tracks.pass(print),
            None => self.tracks.begin(print, number.filter(|number| *number > 1), at),
        });
        if let Some(name) = told {
            let link = self.begin_named(name, number, max, (process, host), at);
            if let Some(print) = hint.print {
                self.tracks.followed(print, link.call);
            }
            return link;
        }
        let followed = followed.or_else(|| {
            let first = number.is_none_or(|number| number > 1);
            self.tracks.take_newest(Fingerprint::of_connecting(key, host), at).filter(|_| first)
        });
        let Some(waiting) = followed else { return self.begin_alone(name, signal, max) };
        let Some(call) = self.calls.resume(waiting.call, name) else { return self.begin_alone(name, signal, max) };
        call.begun = call.begun.saturating_add(1);
        let number = number.unwrap_or(waiting.number.saturating_add(1));
        call.highest = call.highest.max(number);
        call.max = max.or(call.max);
        // Numbered by the client, or with nothing to come that could tell
        // otherwise: no more doubt.
        let numbered = signal.is_some_and(|signal| signal.number.is_some());
        let evidence = if numbered { Evidence::Exact } else { Evidence::Inferred };
        if numbered || hint.bodiless {
            let max = call.max;
            let waited = self.resumed(key, waiting.call, at);
            return Link { call: waiting.call, number, max, evidence, waited };
        }
        call.doubted = Some(waiting);
        call.in_flight = call.in_flight.saturating_add(1);
        let last = call.last.as_ref().filter(|last| !last.outcome.redirected() && last.ended <= at);
        let waited = last.map(|last| Wait { from: last.ended, to: at, injected: last.rule.is_some() });
        Link { call: waiting.call, number, max: call.max, evidence, waited }
    }

    /// As [`Self::begin`], where the link is known: an attempt out of a
    /// recording. Its wait is found anew.
    pub fn begin_linked(&mut self, process: &Arc<Process>, link: Link, at: Moment) -> Link {
        self.share(process, at);
        self.last_call = self.last_call.max(link.call.0);
        let waited = match self.calls.get(link.call) {
            Some(_) => self.resumed(process.key, link.call, at),
            None => {
                if let Some(call) = self.calls.enter(link.call, None) {
                    call.in_flight = 1;
                }
                None
            }
        };
        if let Some(call) = self.calls.get(link.call) {
            call.begun = call.begun.saturating_add(1);
            call.highest = call.highest.max(link.number);
            call.max = link.max.or(call.max);
        }
        Link { waited, ..link }
    }

    /// The client says which call this is.
    fn begin_named(
        &mut self,
        name: CallName,
        number: Option<u32>,
        max: Option<u32>,
        (process, host): (&Arc<Process>, &str),
        at: Moment,
    ) -> Link {
        if !self.calls.is_named(&name)
            && let Some(number) = number.filter(|number| *number > 1)
        {
            self.adopt(name, number, Fingerprint::of_connecting(process.key, host), at);
        }
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
        let number = number.unwrap_or(call.begun);
        call.highest = call.highest.max(number);
        call.max = max.or(call.max);
        let max = call.max;
        let waited = self.resumed(process.key, id, at);
        Link { call: id, number, max, evidence: Evidence::Exact, waited }
    }

    /// The first attempts of a call whose connections could not be made: they
    /// are the call's, now that it shows its name.
    fn adopt(&mut self, name: CallName, number: u32, connecting: Fingerprint, at: Moment) {
        let Some(waiting) = self.tracks.take_newest(connecting, at) else { return };
        if waiting.number < number {
            self.calls.resume(waiting.call, Some(name));
        } else {
            self.tracks.put_back(connecting, waiting);
        }
    }

    /// Nothing that it could belong to: a call of its own.
    fn begin_alone(&mut self, name: Option<CallName>, signal: Option<&Signal>, max: Option<u32>) -> Link {
        self.last_call += 1;
        let id = CallId(self.last_call);
        let number = signal.and_then(|signal| signal.number).unwrap_or(1);
        if let Some(call) = self.calls.enter(id, name) {
            (call.begun, call.in_flight, call.highest, call.max) = (1, 1, number, max);
        }
        let evidence = if signal.is_some() { Evidence::Exact } else { Evidence::Alone };
        Link { call: id, number, max, evidence, waited: None }
    }

    /// An attempt of a call that is known begins: what that says of those
    /// before it.
    fn resumed(&mut self, key: ProcessKey, id: CallId, at: Moment) -> Option<Wait> {
        let limit = self.limits.rules;
        let call = self.calls.get(id)?;
        let alone = call.in_flight == 0;
        call.in_flight = call.in_flight.saturating_add(1);
        let mut waited = None;
        if alone {
            call.won = false;
            call.tried_again = call.last.as_ref().map(|last| last.outcome);
            if let Some(last) = call.last.as_ref().filter(|last| last.ended <= at) {
                waited = follow(&mut self.shares, &mut self.folded, key, last, at, limit);
            }
        }
        if let Some(place) = call.given_up.take() {
            let tally = tally_at(&mut self.shares, &mut self.folded, key, place);
            tally.give_ups = tally.give_ups.saturating_sub(1);
        }
        waited
    }

    /// An attempt has ended: the whole record. The link that holds: what was
    /// taken for a retry may have turned out to be another request.
    pub fn finish(&mut self, attempt: &Attempt) -> Link {
        let ended = attempt.ended.unwrap_or(attempt.started);
        let (outcome, class) = (Outcome::of(attempt), Class::of(attempt));
        let retryable = is_retryable(class, outcome.status()) || class == Class::Cancelled;
        let print = attempt.print.map(Fingerprint::from);
        let mut link = attempt.link;
        if let Some(doubted) = self.calls.get(link.call).and_then(|call| call.doubted.take()) {
            link = self.settle(attempt, doubted);
        }
        let mut waits = false;
        if let Some(print) = print {
            let (call, number, started) = (link.call, link.number, attempt.started);
            let asked = attempt.complaint.wait;
            let waiting = Waiting { call, number, started, ended, asked, retryable };
            // Clients that number their attempts may try anything again.
            let numbered = link.evidence == Evidence::Exact && class.is_failure();
            waits = retryable || numbered;
            self.tracks.finish(print, ended, waits.then_some(waiting));
        }
        self.count(attempt, &link, (outcome, class), ended);
        if let Some(body) = attempt.body_digest
            && let Some(call) = self.calls.peek_mut(link.call)
        {
            call.body = Some(body);
        }
        self.calls.shelve(link.call, waits);
        link
    }

    /// What was doubted of a link is known now that the body has passed.
    fn settle(&mut self, attempt: &Attempt, doubted: Waiting) -> Link {
        let (link, key) = (attempt.link, attempt.process.key);
        let Some(call) = self.calls.get(link.call) else { return link };
        call.in_flight = call.in_flight.saturating_sub(1);
        let differs = call.body.zip(attempt.body_digest).is_some_and(|(before, now)| before != now);
        if !differs {
            let waited = self.resumed(key, link.call, attempt.started);
            return Link { waited, ..link };
        }
        call.begun = call.begun.saturating_sub(1);
        self.calls.shelve(link.call, true);
        if let Some(print) = attempt.print.map(Fingerprint::from) {
            self.tracks.put_back(print, doubted);
        }
        self.begin_alone(None, None, None)
    }

    fn count(&mut self, attempt: &Attempt, link: &Link, (outcome, class): (Outcome, Class), ended: Moment) {
        let limit = self.limits.operations;
        self.share(&attempt.process, ended);
        let Some(share) = self.shares.peek_mut(&attempt.process.key) else { return };
        let place = share.place(attempt, limit);
        let Some(tally) = share.tally(place) else { return };
        tally.ended(attempt, outcome, class);
        tally.unlinked += u64::from(link.evidence != Evidence::Exact);
        let retryable = is_retryable(class, outcome.status());

        let call = self.calls.get(link.call);
        let first = link.number <= 1 && !call.as_ref().is_some_and(|call| call.first_ended);
        if !first {
            match link.evidence {
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
        let mut bounds = Bounds { calls_forgotten: self.calls.forgotten + self.tracks.forgotten, ..self.bounds };
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
        // What it runs now stands for the process.
        if share.process.image < process.image {
            share.process = Arc::clone(process);
        }
        Some(share)
    }

    /// Adds a share to the row for the others.
    fn fold(&mut self, share: &Share, now: Moment) {
        let report = share.report(now);
        self.bounds.take(share);
        self.bounds.processes_folded += 1;
        self.folded.add(&report);
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
