//! Counts over time, for charts.
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ops::ControlFlow,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    History, MAX_KEPT, SCANNED,
    block::Block,
    chunk::{Chunk, Row},
    query::{Extent, SLACK, Sieve},
};
use crate::{
    flow::{Moment, filter::Filter},
    process::ProcessKey,
    report::build::ms,
    retry::Class,
};

/// The most buckets of one answer.
pub const MAX_BUCKETS: usize = 1_000;
/// How many processes are told apart, and how many of those are told of.
const MAX_PROCESSES: usize = 64;
const TOLD: usize = 16;

/// Which time, divided into how many parts. Counted from the instance's start,
/// in ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// Since the oldest that is kept, unless told.
    pub from_ms: Option<f64>,
    /// Until now, unless told.
    pub to_ms: Option<f64>,
    pub buckets: usize,
    /// As of [`super::Query`].
    pub before: Option<u64>,
    /// Whether each process is told of on its own, too: then every attempt has
    /// to be looked at.
    pub processes: bool,
}

/// What ended within one part of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    pub attempts: u64,
    pub retries: u64,
    pub throttled: u64,
    /// All kinds of failures, throttled ones as well.
    pub failed: u64,
    /// Those whose outcome was a rule's doing.
    pub injected: u64,
    /// Backoff that lay within this part of the time, of each call on its own:
    /// calls that wait side by side add up. Of attempts that have ended.
    pub backoff_ms: f64,
}

impl Bucket {
    fn add(&mut self, other: &Bucket) {
        self.attempts += other.attempts;
        self.retries += other.retries;
        self.throttled += other.throttled;
        self.failed += other.failed;
        self.injected += other.injected;
        self.backoff_ms += other.backoff_ms;
    }

    pub(super) fn count(&mut self, row: &Row) {
        self.attempts += 1;
        self.retries += u64::from(row.number > 1);
        self.throttled += u64::from(row.class == Class::Throttled);
        self.failed += u64::from(row.class.is_failure());
        self.injected += u64::from(row.is_injected());
    }
}

/// The same of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessSeries {
    pub pid: u32,
    pub start_ticks: u64,
    pub comm: String,
    pub attempts: u64,
    pub buckets: Vec<Bucket>,
}

/// Counts over time, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Series {
    /// The time that the buckets cover, in ms since the instance's start.
    pub from_ms: f64,
    pub to_ms: f64,
    /// How long each is.
    pub bucket_ms: f64,
    pub buckets: Vec<Bucket>,
    /// The processes with most attempts, at most 16.
    pub processes: Vec<ProcessSeries>,
    /// As of attempts.
    pub scanned: u64,
    pub unknown: u64,
    /// Ask again with `before` set to this and add up what comes; absent
    /// where all of the time was looked at.
    pub next: Option<u64>,
    pub oldest: u64,
    pub newest: u64,
    pub dropped: u64,
}

/// The time, as it is divided.
#[derive(Clone, Copy, Debug)]
struct Parts {
    from: u64,
    to: u64,
    count: usize,
}

impl Parts {
    fn length(self) -> u64 {
        ((self.to - self.from) / self.count as u64).max(1)
    }

    /// The one part that all of a time lies in.
    fn whole(self, first: u64, last: u64) -> Option<usize> {
        self.at(first).filter(|at| self.at(last) == Some(*at))
    }

    fn at(self, moment: u64) -> Option<usize> {
        let at = moment.checked_sub(self.from).filter(|_| moment < self.to)? / self.length();
        Some(usize::try_from(at).unwrap_or(usize::MAX).min(self.count - 1))
    }

    /// Each part that a wait lies in, and how much of it, in ns.
    fn shares(self, start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
        let (start, end) = (start.max(self.from), end.min(self.to));
        let first = self.at(start).filter(|_| start < end);
        let last = first.and_then(|_| self.at(end - 1));
        first.zip(last).into_iter().flat_map(|(first, last)| first..=last).map(move |at| {
            let from = self.from + at as u64 * self.length();
            let to = if at + 1 == self.count { self.to } else { from + self.length() };
            (at, end.min(to).saturating_sub(start.max(from)))
        })
    }
}

/// Buckets that are being filled.
#[derive(Debug)]
struct Filling {
    buckets: Vec<Bucket>,
    comm: String,
    attempts: u64,
}

impl Filling {
    fn new(count: usize, comm: &str) -> Self {
        Self { buckets: vec![Bucket::default(); count], comm: comm.to_owned(), attempts: 0 }
    }

    fn add(&mut self, row: &Row, parts: Parts) {
        if let Some(bucket) = parts.at(row.ended).and_then(|at| self.buckets.get_mut(at)) {
            bucket.count(row);
            self.attempts += 1;
        }
        for (at, nanos) in parts.shares(row.begun(), row.started) {
            if let Some(bucket) = self.buckets.get_mut(at) {
                bucket.backoff_ms += nanos as f64 / 1e6;
            }
        }
    }
}

impl Filling {
    /// Takes a block as a whole, if it lies in one part.
    fn add_block(&mut self, block: &Block, parts: Parts) -> bool {
        let Some(at) = parts.whole(block.ended.0, block.ended.1) else { return false };
        let (start, end) = block.waits;
        if start < end && parts.whole(start, end - 1) != Some(at) {
            return false;
        }
        let Some(bucket) = self.buckets.get_mut(at) else { return false };
        bucket.add(&block.counts);
        self.attempts += block.counts.attempts;
        true
    }
}

impl History {
    /// Counts over a span of time of what the filter takes.
    pub fn series(&self, span: &Span, filter: Option<&Filter>) -> Series {
        let nanos = |ms: f64| (ms.max(0.0) * 1e6) as u64;
        let oldest = || {
            let store = self.lock();
            store.row(store.oldest()).map(|(_, row)| row.started.min(row.ended))
        };
        let to = span.to_ms.map_or_else(|| self.clock.now().0, nanos);
        let from = span.from_ms.map(nanos).or_else(oldest).unwrap_or(0).min(to.saturating_sub(1));
        let parts = Parts { from, to: to.max(from + 1), count: span.buckets.clamp(1, MAX_BUCKETS) };
        let all = RefCell::new(Filling::new(parts.count, ""));
        let mut processes: HashMap<ProcessKey, Filling> = HashMap::new();
        let bound = if filter.is_some() { SCANNED } else { MAX_KEPT as u64 };
        let (mut scanned, mut next) = (0, None);
        let mut sieve = Sieve::new(filter);
        let by_block = filter.is_none() && !span.processes;
        let pass = |block: &Block| {
            block.ended.1 < parts.from
                || block.ended.0 >= parts.to
                || (by_block && all.borrow_mut().add_block(block, parts))
        };
        let extent = self.walk(filter, span.before, pass, |met| {
            let row = met.row;
            if row.ended.saturating_add(SLACK) < parts.from {
                return ControlFlow::Break(());
            }
            if scanned >= bound {
                next = Some(met.id + 1);
                return ControlFlow::Break(());
            }
            scanned += 1;
            if row.ended_in(Moment(parts.from), Moment(parts.to)) && met.passes(&mut sieve) {
                all.borrow_mut().add(row, parts);
                if span.processes {
                    of_process(&mut processes, met.chunk.1, row, parts);
                }
            }
            ControlFlow::Continue(())
        });
        let mut processes: Vec<_> = processes.into_iter().collect();
        processes.sort_by_key(|(key, filling)| (std::cmp::Reverse(filling.attempts), *key));
        processes.truncate(TOLD);
        let Extent { oldest, newest, dropped } = extent;
        let since = |nanos| ms(Moment(nanos).since(Moment::default()));
        Series {
            from_ms: since(parts.from),
            to_ms: since(parts.to),
            bucket_ms: parts.length() as f64 / 1e6,
            buckets: all.into_inner().buckets,
            processes: processes
                .into_iter()
                .map(|(key, filling)| ProcessSeries {
                    pid: key.pid,
                    start_ticks: key.start_ticks,
                    comm: filling.comm,
                    attempts: filling.attempts,
                    buckets: filling.buckets,
                })
                .collect(),
            scanned,
            unknown: sieve.unknown,
            next,
            oldest,
            newest,
            dropped,
        }
    }
}

fn of_process(processes: &mut HashMap<ProcessKey, Filling>, chunk: &Chunk, row: &Row, parts: Parts) {
    let Some(process) = chunk.process(row) else { return };
    let room = processes.len() < MAX_PROCESSES;
    match processes.entry(process.key) {
        Entry::Occupied(known) => known.into_mut().add(row, parts),
        Entry::Vacant(place) if room => {
            place.insert(Filling::new(parts.count, &process.facts().comm)).add(row, parts);
        }
        Entry::Vacant(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_has_its_part() {
        let parts = Parts { from: 100, to: 200, count: 3 };
        assert_eq!(parts.at(99), None);
        assert_eq!((parts.at(100), parts.at(132), parts.at(133), parts.at(199)), (Some(0), Some(0), Some(1), Some(2)));
        assert_eq!(parts.at(200), None);
    }

    #[test]
    fn a_wait_is_shared_out() {
        let parts = Parts { from: 100, to: 200, count: 4 };
        let shares = |from, to| parts.shares(from, to).collect::<Vec<_>>();
        assert_eq!(shares(110, 160), [(0, 15), (1, 25), (2, 10)]);
        assert_eq!(shares(0, 1000).iter().map(|(_, share)| share).sum::<u64>(), 100);
        assert_eq!(shares(0, 100), []);
        assert_eq!(shares(120, 120), []);
        assert_eq!(shares(200, 300), []);
    }
}
