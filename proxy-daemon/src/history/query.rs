//! Questions about what is kept.
//!
//! Newest first. A question looks at so many attempts at most, and tells
//! where to go on: an answer takes a few tens of milliseconds, however much
//! is kept and however little of it is found.
use std::{borrow::Borrow, collections::HashMap, hash::Hash, ops::ControlFlow, sync::Arc, time::Duration};

use super::{
    AttemptDetail, AttemptEntry, CallEntry, CallsPage, Curl, History, Page,
    block::{BLOCK, Block},
    chunk::{Chunk, Row},
    scratch::Scratch,
    store::{Heads, Store},
};
use crate::{
    flow::{
        Moment,
        filter::{Filter, Known},
    },
    process,
    report::build::ms,
};

/// How many attempts a question looks at where a filter is asked of each.
pub const SCANNED: u64 = 50_000;
/// The most attempts or calls in one answer.
pub const MAX_LIMIT: usize = 1_000;
/// Attempts are numbered in about the order of their ends: not further apart
/// than this, in ns.
pub(super) const SLACK: u64 = 1_000_000_000;
/// How many attempts of a call are shown.
const LANES: usize = 100;

/// Which attempts.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub filter: Option<&'a Filter>,
    /// At most so many, and at most [`MAX_LIMIT`].
    pub limit: usize,
    /// Only those that ended before this one, and after that one.
    pub before: Option<u64>,
    pub after: Option<u64>,
    /// Only those that were under way, or waited for, within this time: in ms
    /// since the instance's start.
    pub from_ms: Option<f64>,
    pub to_ms: Option<f64>,
}

impl Query<'_> {
    /// Which time, in ns, ends included.
    fn time(&self) -> (u64, u64) {
        let nanos = |ms: f64| (ms.max(0.0) * 1e6) as u64;
        (self.from_ms.map_or(0, nanos), self.to_ms.map_or(u64::MAX, nanos))
    }
}

impl Default for Query<'_> {
    fn default() -> Self {
        Self { filter: None, limit: 100, before: None, after: None, from_ms: None, to_ms: None }
    }
}

/// What is kept, as of when it was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    pub(super) oldest: u64,
    pub(super) newest: u64,
    pub(super) dropped: u64,
}

impl Extent {
    pub(super) fn of(store: &Store) -> Self {
        Self { oldest: store.oldest(), newest: store.newest(), dropped: store.dropped }
    }
}

/// A filter, asked of row after row.
pub(super) struct Sieve<'a> {
    filter: Option<&'a Filter>,
    scratch: Scratch,
    pub(super) unknown: u64,
}

impl<'a> Sieve<'a> {
    pub(super) fn new(filter: Option<&'a Filter>) -> Self {
        Self { filter, scratch: Scratch::new(), unknown: 0 }
    }

    pub(super) fn passes(&mut self, chunk: (u64, &Chunk), row: &Row, heads: Option<&Arc<Heads>>) -> bool {
        let Some(filter) = self.filter else { return true };
        match self.scratch.judge(filter, chunk, row, heads.map(|heads| &**heads)) {
            Some(passes) => passes,
            None => {
                self.unknown += 1;
                false
            }
        }
    }
}

/// An attempt that a question comes by.
pub(super) struct Met<'a> {
    pub(super) id: u64,
    /// The chunk, and the number of its first attempt.
    pub(super) chunk: (u64, &'a Chunk),
    pub(super) row: &'a Row,
    heads: Option<&'a Arc<Heads>>,
}

impl Met<'_> {
    pub(super) fn passes(&self, sieve: &mut Sieve<'_>) -> bool {
        sieve.passes(self.chunk, self.row, self.heads)
    }
}

impl History {
    /// Goes through what is kept before `before`, newest first. The chunk that
    /// is being filled is looked at while nothing is added. `pass` says of
    /// what several of them come to whether none of these need be visited.
    pub(super) fn walk(
        &self,
        filter: Option<&Filter>,
        before: Option<u64>,
        mut pass: impl FnMut(&Block) -> bool,
        mut visit: impl FnMut(Met<'_>) -> ControlFlow<()>,
    ) -> Extent {
        let store = self.lock();
        let extent = Extent::of(&store);
        let (with_heads, heads) =
            if filter.is_some_and(Filter::needs_heads) { store.all_heads() } else { (0, Vec::new()) };
        let before = before.unwrap_or(u64::MAX);
        let mut one = |start: u64, chunk: &Chunk| {
            let mut at = chunk.rows.len();
            while let Some(below) = at.checked_sub(1) {
                // At a block's last row, if all of the block is asked for.
                let first = below - below % BLOCK;
                if (at == chunk.rows.len() || at.is_multiple_of(BLOCK))
                    && start + first as u64 >= extent.oldest
                    && start + (below as u64) < before
                    && chunk.blocks.get(first / BLOCK).is_some_and(&mut pass)
                {
                    at = first;
                    continue;
                }
                at = below;
                let id = start + at as u64;
                if id < extent.oldest {
                    return ControlFlow::Break(());
                }
                if let Some(row) = chunk.rows.get(at).filter(|_| id < before) {
                    let place = id.checked_sub(with_heads).and_then(|at| usize::try_from(at).ok());
                    let heads = place.and_then(|at| heads.get(at));
                    visit(Met { id, chunk: (start, chunk), row, heads })?;
                }
            }
            ControlFlow::Continue(())
        };
        let (start, open) = store.open();
        let sealed = store.sealed(before);
        let mut goes_on = one(start, open);
        drop(store);
        for (start, chunk) in sealed {
            if goes_on.is_break() {
                break;
            }
            goes_on = one(start, &chunk);
        }
        extent
    }

    /// Attempts, newest first.
    pub fn attempts(&self, query: &Query<'_>) -> Page {
        let limit = query.limit.min(MAX_LIMIT);
        let after = query.after.unwrap_or(0);
        let mut page = Page::default();
        let mut sieve = Sieve::new(query.filter);
        let time = query.time();
        let pass = |block: &Block| block.lies_outside(time);
        let extent = self.walk(query.filter, query.before, pass, |met| {
            if met.id <= after || met.row.ended.saturating_add(SLACK) < time.0 {
                return ControlFlow::Break(());
            }
            if page.attempts.len() >= limit || page.scanned >= SCANNED {
                page.next = Some(met.id + 1);
                return ControlFlow::Break(());
            }
            page.scanned += 1;
            if met.row.lies_in(time) && met.passes(&mut sieve) {
                page.attempts.push(AttemptEntry::of(met.id, met.chunk.1, met.row, &self.clock));
            }
            ControlFlow::Continue(())
        });
        page.unknown = sieve.unknown;
        let Extent { oldest, newest, dropped } = extent;
        (page.oldest, page.newest, page.dropped) = (oldest, newest, dropped);
        page
    }

    /// One attempt in full; `None` if it is not kept.
    pub fn attempt(&self, id: u64) -> Option<AttemptDetail> {
        let store = self.lock();
        let (chunk, row) = store.row(id).filter(|_| id >= store.oldest())?;
        Some(AttemptDetail::of(id, chunk, row, store.heads(id).map(|heads| &**heads), &self.clock))
    }

    /// The attempt as a command that makes it again.
    pub fn curl(&self, id: u64) -> Option<Curl> {
        self.attempt(id).map(|attempt| Curl::of(&attempt))
    }

    /// Calls with any attempt that the filter takes, newest first by their
    /// latest attempts.
    pub fn calls(&self, query: &Query<'_>) -> CallsPage {
        let limit = query.limit.min(MAX_LIMIT);
        let after = query.after.unwrap_or(0);
        let (mut scanned, mut next) = (0, None);
        // The latest attempts of calls; what belongs to them is looked up
        // afterwards, wherever it is.
        let mut latest = Vec::new();
        let time = query.time();
        let extent = self.walk(
            None,
            query.before,
            |_| false,
            |Met { id, row, .. }| {
                if id <= after || row.ended.saturating_add(SLACK) < time.0 {
                    return ControlFlow::Break(());
                }
                // Each is looked at once more.
                if scanned >= SCANNED / 2 {
                    next = Some(id + 1);
                    return ControlFlow::Break(());
                }
                scanned += 1;
                if row.next().is_none() {
                    latest.push(id);
                }
                ControlFlow::Continue(())
            },
        );
        let (mut calls, mut sieve) = (Vec::new(), Sieve::new(query.filter));
        for id in latest {
            if calls.len() >= limit {
                next = Some(id + 1);
                break;
            }
            calls.extend(self.call(id, time, &mut sieve));
        }
        let Extent { oldest, newest, dropped } = extent;
        CallsPage { calls, scanned, unknown: sieve.unknown, next, oldest, newest, dropped }
    }

    /// The call whose latest attempt this is, if the filter takes any of its
    /// attempts within this time.
    fn call(&self, latest: u64, time: (u64, u64), sieve: &mut Sieve<'_>) -> Option<CallEntry> {
        let store = self.lock();
        let (mut passes, mut found) = (false, Vec::new());
        let mut id = Some(latest);
        while let Some(this) = id.filter(|id| *id >= store.oldest() && found.len() < LANES) {
            let Some((start, chunk, row)) = store.place(this) else { break };
            passes = passes || row.lies_in(time) && sieve.passes((start, chunk), row, store.heads(this));
            found.push((this, chunk, row));
            id = this.checked_sub(u64::from(row.previous)).filter(|_| row.previous > 0);
        }
        let (_, _, oldest) = found.last().filter(|_| passes)?;
        let started = found.iter().map(|(.., row)| row.started).min().unwrap_or_default();
        let ended = found.iter().map(|(.., row)| row.ended).max().unwrap_or_default();
        let waited: Duration = found.iter().filter_map(|(.., row)| row.wait()).sum();
        let entries = found.iter().rev().map(|(id, chunk, row)| AttemptEntry::of(*id, chunk, row, &self.clock));
        Some(CallEntry {
            call: oldest.call,
            earlier: u64::from(oldest.number.saturating_sub(1)),
            attempts: entries.collect(),
            took_ms: ms(Moment(ended).since(Moment(started))),
            waited_ms: ms(waited),
        })
    }
}

/// How many of the latest attempts tell which values there are.
const ASKED: u64 = 10_000;
/// How many values of a kind are told, and how many are told apart.
const VALUES: usize = 50;
const APART: usize = 1_000;

/// Values, and how often each was seen.
struct Seen<T>(HashMap<T, u64>);

impl<T: Clone + Eq + Hash + Ord> Seen<T> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn add<Q: Eq + Hash + ToOwned<Owned = T> + ?Sized>(&mut self, value: &Q)
    where
        T: Borrow<Q>,
    {
        if let Some(count) = self.0.get_mut(value) {
            *count += 1;
        } else if self.0.len() < APART {
            self.0.insert(value.to_owned(), 1);
        }
    }

    /// Those seen most often first.
    fn values(self) -> Vec<T> {
        let mut values: Vec<_> = self.0.into_iter().collect();
        values.sort_by(|(one, often), (other, less)| less.cmp(often).then_with(|| one.cmp(other)));
        values.into_iter().take(VALUES).map(|(value, _)| value).collect()
    }
}

impl History {
    /// Values that the latest attempts have had, for whoever types a filter.
    pub fn known(&self) -> Known {
        let mut texts: [Seen<String>; 6] = std::array::from_fn(|_| Seen::new());
        let [services, operations, comms, hosts, methods, containers] = &mut texts;
        let (mut statuses, mut pids) = (Seen::new(), Seen::new());
        let mut left = ASKED;
        self.walk(
            None,
            None,
            |_| false,
            |Met { chunk: (_, chunk), row, .. }| {
                let add = |seen: &mut Seen<String>, at| {
                    if let Some(text) = chunk.text(at) {
                        seen.add(text);
                    }
                };
                add(services, row.service);
                add(operations, row.operation);
                add(hosts, row.authority);
                add(methods, row.method);
                [row.status(), row.told()].into_iter().flatten().for_each(|status| statuses.add(&status));
                if let Some(process) = chunk.process(row) {
                    let facts = process.facts();
                    comms.add(&facts.comm);
                    pids.add(&process.key.pid);
                    let container = facts.cgroup.as_deref().and_then(process::container);
                    if let Some(name) = facts.container_name.as_deref().or(container) {
                        containers.add(name);
                    }
                }
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        let [services, operations, comms, hosts, methods, containers] = texts.map(Seen::values);
        Known {
            services,
            operations,
            comms,
            hosts,
            methods,
            statuses: statuses.values(),
            pids: pids.values(),
            containers,
        }
    }
}
