//! A few thousand attempts that ended one after the other, each a row of
//! numbers, with their texts, addresses and processes beside them, each kept
//! once.
use std::{
    collections::HashMap,
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::block::{BLOCK, Block};
use crate::{
    flow::{Attempt, Evidence, Failure, Moment, Protocol, redact},
    process::{Facts, Process},
    retry::Class,
};

/// How many attempts a chunk has.
pub(super) const ROWS: usize = 4096;
/// The longest text that a row has, in bytes.
pub(super) const MAX_TEXT: usize = 1024;

/// Which text, address or process of its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(u16);

impl At {
    /// None.
    pub(super) const NONE: At = At(u16::MAX);

    pub(super) fn index(self) -> Option<usize> {
        (self != Self::NONE).then_some(usize::from(self.0))
    }
}

/// Times in ns; `u64::MAX` stands for none.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) started: u64,
    pub(super) ended: u64,
    waited: u64,
    held: u64,
    asked: u64,
    pub(super) connection: u64,
    pub(super) call: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) number: u32,
    /// 0 where the client did not say.
    max: u32,
    /// How far back the call's attempt that ended before is; 0 if none is
    /// known.
    pub(super) previous: u32,
    /// How far on the call's next to end is; 0 as long as there is none.
    next: AtomicU32,
    pub(super) method: At,
    pub(super) authority: At,
    pub(super) target: At,
    pub(super) service: At,
    pub(super) operation: At,
    pub(super) reason: At,
    pub(super) rule: At,
    pub(super) code: At,
    pub(super) request_type: At,
    pub(super) response_type: At,
    pub(super) upgrade: At,
    pub(super) process: At,
    client: At,
    origin: At,
    client_port: u16,
    origin_port: u16,
    /// 0 for none.
    status: u16,
    told: u16,
    abort: At,
    pub(super) protocol: Protocol,
    pub(super) evidence: Evidence,
    pub(super) class: Class,
    pub(super) failure: Option<Failure>,
    waited_for_rule: bool,
}

const NONE: u64 = u64::MAX;

impl Row {
    pub(super) fn wait(&self) -> Option<Duration> {
        time(self.waited)
    }

    /// When it began, or began to be waited for, in ns.
    pub(super) fn begun(&self) -> u64 {
        let wait = self.wait().map_or(0, |wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        self.started.saturating_sub(wait)
    }

    /// It was under way, or waited for, within `[from, to]`.
    pub(super) fn lies_in(&self, (from, to): (u64, u64)) -> bool {
        self.ended >= from && self.begun() <= to
    }

    pub(super) fn waited_for_rule(&self) -> bool {
        self.waited_for_rule
    }

    pub(super) fn held(&self) -> Duration {
        time(self.held).unwrap_or_default()
    }

    pub(super) fn asked(&self) -> Option<Duration> {
        time(self.asked)
    }

    pub(super) fn max(&self) -> Option<u32> {
        (self.max > 0).then_some(self.max)
    }

    pub(super) fn status(&self) -> Option<u16> {
        (self.status > 0).then_some(self.status)
    }

    /// What a rule told the client.
    pub(super) fn told(&self) -> Option<u16> {
        (self.told > 0).then_some(self.told)
    }

    pub(super) fn is_injected(&self) -> bool {
        self.rule != At::NONE
    }

    pub(super) fn next(&self) -> Option<u32> {
        let next = self.next.load(Ordering::Relaxed);
        (next > 0).then_some(next)
    }

    pub(super) fn followed_by(&self, distance: u32) {
        self.next.store(distance, Ordering::Relaxed);
    }
}

fn time(nanos: u64) -> Option<Duration> {
    (nanos != NONE).then(|| Duration::from_nanos(nanos))
}

fn nanos(time: Option<Duration>) -> u64 {
    time.map_or(NONE, |time| u64::try_from(time.as_nanos()).unwrap_or(NONE - 1))
}

/// Texts in one piece of memory.
#[derive(Debug, Default)]
struct Texts {
    bytes: String,
    ends: Vec<u32>,
}

impl Texts {
    fn get(&self, at: usize) -> Option<&str> {
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..end)
    }
}

/// What makes a chunk smaller while it is filled.
#[derive(Debug, Default)]
struct Known {
    hasher: lru::DefaultHasher,
    texts: HashMap<u64, At, lru::DefaultHasher>,
    addresses: HashMap<IpAddr, At, lru::DefaultHasher>,
    /// By where their facts lie, which stays as long as they are kept here.
    processes: HashMap<(usize, usize), Remembered, lru::DefaultHasher>,
}

/// Held, so that nothing else comes to lie in its place.
#[derive(Debug)]
struct Remembered {
    at: At,
    _process: Arc<Process>,
    _facts: Arc<Facts>,
}

#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) rows: Vec<Row>,
    /// What each [`BLOCK`] rows come to, once nothing is added any more.
    pub(super) blocks: Box<[Block]>,
    texts: Texts,
    addresses: Vec<IpAddr>,
    aborts: Vec<&'static str>,
    processes: Vec<Arc<Process>>,
    /// Of the processes' names, in bytes.
    facts: usize,
    known: Option<Box<Known>>,
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self { known: Some(Box::default()), ..Self::default() }
    }

    /// Nothing is added any more.
    pub(super) fn seal(&mut self) {
        self.known = None;
        self.rows.shrink_to_fit();
        self.blocks = self.rows.chunks(BLOCK).map(Block::of).collect();
        self.texts.bytes.shrink_to_fit();
        self.texts.ends.shrink_to_fit();
        self.addresses.shrink_to_fit();
        self.processes.shrink_to_fit();
    }

    /// How much memory it takes, without what is there to fill it.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.rows.capacity() * size_of::<Row>()
            + self.blocks.len() * size_of::<Block>()
            + self.texts.bytes.capacity()
            + self.texts.ends.capacity() * size_of::<u32>()
            + self.addresses.capacity() * size_of::<IpAddr>()
            + self.processes.capacity() * size_of::<Arc<Process>>()
            + self.facts
    }

    pub(super) fn text(&self, at: At) -> Option<&str> {
        self.texts.get(at.index()?)
    }

    /// How many texts there are.
    pub(super) fn texts(&self) -> usize {
        self.texts.ends.len()
    }

    pub(super) fn process(&self, row: &Row) -> Option<&Arc<Process>> {
        self.processes.get(row.process.index()?)
    }

    pub(super) fn abort(&self, row: &Row) -> Option<&'static str> {
        self.aborts.get(row.abort.index()?).copied()
    }

    pub(super) fn client(&self, row: &Row) -> SocketAddr {
        self.address(row.client, row.client_port)
    }

    pub(super) fn origin(&self, row: &Row) -> SocketAddr {
        self.address(row.origin, row.origin_port)
    }

    fn address(&self, at: At, port: u16) -> SocketAddr {
        let address = at.index().and_then(|at| self.addresses.get(at));
        SocketAddr::new(address.copied().unwrap_or(IpAddr::from([0, 0, 0, 0])), port)
    }

    /// Adds an attempt whose call's attempt before is so far back.
    pub(super) fn add(&mut self, attempt: &Attempt, previous: u32) {
        let Some(mut known) = self.known.take() else { return };
        let request = &attempt.request;
        let injected = attempt.injected.as_ref();
        let response = attempt.response.as_ref();
        let kind = |headers: &crate::flow::Headers, name| headers.text(name).map(str::to_owned);
        let request_type = kind(&request.headers, "content-type");
        let response_type = response.and_then(|response| kind(&response.headers, "content-type"));
        let upgrade = kind(&request.headers, "upgrade");
        let started = attempt.started;
        let mut text = |text: &str| self.texts.intern(&mut known, text);
        let mut optional = |it: Option<&str>| it.filter(|it| !it.is_empty()).map_or(At::NONE, &mut text);
        let row = Row {
            started: started.0,
            ended: attempt.ended.unwrap_or(started).0,
            waited: nanos(attempt.link.waited.map(|wait| wait.length())),
            held: nanos(Some(attempt.held)),
            asked: nanos(attempt.complaint.wait),
            connection: attempt.connection.0,
            call: attempt.link.call.0,
            sent: attempt.sent,
            received: attempt.received,
            number: attempt.link.number,
            max: attempt.link.max.unwrap_or(0),
            previous,
            next: AtomicU32::new(0),
            method: optional(Some(&request.method)),
            authority: optional(Some(redact::authority(&request.authority))),
            target: optional(Some(&redact::url(&request.target))),
            service: optional(attempt.operation.service.as_deref()),
            operation: optional(attempt.operation.name.as_deref()),
            reason: optional(response.map(|response| response.reason.as_str())),
            rule: optional(injected.map(|injected| &*injected.rule)),
            code: optional(attempt.complaint.code.as_deref()),
            request_type: optional(request_type.as_deref()),
            response_type: optional(response_type.as_deref()),
            upgrade: optional(upgrade.as_deref()),
            process: At::NONE,
            client: At::NONE,
            origin: At::NONE,
            client_port: attempt.client.port(),
            origin_port: attempt.origin.port(),
            status: response.map_or(0, |response| response.status),
            told: injected.and_then(|injected| injected.status).unwrap_or(0),
            abort: At::NONE,
            protocol: attempt.protocol,
            evidence: attempt.link.evidence,
            class: Class::of(attempt),
            failure: attempt.failure,
            waited_for_rule: attempt.link.waited.is_some_and(|wait| wait.injected),
        };
        let row = Row {
            process: self.remember(&mut known, &attempt.process),
            client: self.place(&mut known, attempt.client.ip()),
            origin: self.place(&mut known, attempt.origin.ip()),
            abort: injected.and_then(|injected| injected.abort).map_or(At::NONE, |abort| self.way(abort)),
            ..row
        };
        self.rows.push(row);
        self.known = Some(known);
    }

    fn place(&mut self, known: &mut Known, address: IpAddr) -> At {
        *known.addresses.entry(address).or_insert_with(|| push(&mut self.addresses, address))
    }

    /// Ways of breaking off are few.
    fn way(&mut self, abort: &'static str) -> At {
        match self.aborts.iter().position(|known| *known == abort) {
            Some(at) => number(at),
            None => push(&mut self.aborts, abort),
        }
    }

    /// The process with the facts of now: it may rename itself later.
    fn remember(&mut self, known: &mut Known, process: &Arc<Process>) -> At {
        let facts = process.facts();
        let key = (Arc::as_ptr(process).addr(), Arc::as_ptr(&facts).addr());
        if let Some(known) = known.processes.get(&key) {
            return known.at;
        }
        let mut kept = Process::new(process.key, process.parent, process.uid, Facts::clone(&facts));
        (kept.image, kept.inner) = (process.image, process.inner);
        self.facts += size_of::<Process>() + size_of::<Facts>() + 32 + facts.comm.len() + facts.command.len();
        for text in [&facts.exe, &facts.cgroup, &facts.container_name].into_iter().flatten() {
            self.facts += text.len();
        }
        let at = push(&mut self.processes, Arc::new(kept));
        known.processes.insert(key, Remembered { at, _process: Arc::clone(process), _facts: facts });
        at
    }
}

fn number(at: usize) -> At {
    u16::try_from(at).map_or(At::NONE, At)
}

fn push<T>(list: &mut Vec<T>, item: T) -> At {
    list.push(item);
    number(list.len() - 1)
}

impl Texts {
    fn intern(&mut self, known: &mut Known, text: &str) -> At {
        let text = cut(text);
        let hash = known.hasher.hash_one(text);
        match known.texts.get(&hash) {
            Some(at) if at.index().and_then(|at| self.get(at)) == Some(text) => return *at,
            _ => {}
        }
        self.bytes.push_str(text);
        // A chunk has 4,096 times a dozen texts of 1 KiB at most.
        let at = push(&mut self.ends, u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        known.texts.insert(hash, at);
        at
    }
}

/// The text within [`MAX_TEXT`] bytes.
fn cut(text: &str) -> &str {
    if text.len() <= MAX_TEXT { text } else { &text[..text.floor_char_boundary(MAX_TEXT)] }
}

impl Row {
    /// It ended within `[from, to)`.
    pub(super) fn ended_in(&self, from: Moment, to: Moment) -> bool {
        (from.0..to.0).contains(&self.ended)
    }
}
