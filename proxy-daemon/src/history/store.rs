//! What is kept: chunks of rows, and the heads of the latest attempts.
use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
};

use lru::LruCache;

use super::{
    MAX_KEPT, ROW,
    chunk::{Chunk, MAX_TEXT, ROWS, Row},
};
use crate::{
    flow::{Attempt, Evidence, Headers, Trailers, redact},
    retry::Class,
};

/// What few attempts may take in any case, in bytes.
const LEAST: usize = 4 << 20;
/// How many calls are remembered that may yet go on; as many as in the ledger.
const MAX_CALLS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// What a head takes besides its bytes: its place here, and in memory.
const OVERHEAD: usize = 160;

/// The heads of one attempt. What is told of them has no credentials: they are
/// taken out at once, or, while attempts come thick and fast and most are
/// forgotten before anybody asks, when somebody does.
#[derive(Debug)]
pub(super) struct Heads {
    shown: OnceLock<Shown>,
    /// As they came, where they were not looked at yet.
    raw: Option<Raw>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) request: Headers,
    pub(super) response: Option<Headers>,
    /// Where the row has only its beginning.
    pub(super) target: Option<Box<str>>,
    pub(super) trailers: Option<Box<Trailers>>,
}

#[derive(Debug)]
struct Raw {
    request: Headers,
    response: Option<Headers>,
    target: Arc<str>,
    trailers: Option<Box<Trailers>>,
}

impl Raw {
    /// Copied only where somebody else has the attempt as well.
    fn of(attempt: Arc<Attempt>) -> Self {
        let Attempt { request, response, trailers, .. } = Arc::unwrap_or_clone(attempt);
        Self {
            request: request.headers,
            response: response.map(|response| response.headers),
            target: request.target,
            trailers,
        }
    }

    fn shown(&self) -> Shown {
        let target = redact::url(&self.target);
        Shown {
            request: redact::headers(&self.request),
            response: self.response.as_ref().map(redact::headers),
            target: (target.len() > MAX_TEXT).then(|| target.into()),
            trailers: self.trailers.as_ref().map(|it| {
                Box::new(Trailers { request: redact::headers(&it.request), response: redact::headers(&it.response) })
            }),
        }
    }

    fn bytes(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, |it| it.request.bytes() + it.response.bytes());
        self.request.bytes() + self.response.as_ref().map_or(0, Headers::bytes) + self.target.len() + trailers
    }
}

impl Heads {
    fn of(attempt: Arc<Attempt>, at_once: bool) -> Self {
        let raw = Raw::of(attempt);
        let bytes = OVERHEAD + raw.bytes();
        match at_once {
            true => Self { shown: raw.shown().into(), raw: None, bytes },
            false => Self { shown: OnceLock::new(), raw: Some(raw), bytes },
        }
    }

    pub(super) fn shown(&self) -> &Shown {
        self.shown.get_or_init(|| self.raw.as_ref().map(Raw::shown).unwrap_or_default())
    }
}

#[derive(Debug)]
pub(super) struct Store {
    keep: usize,
    rows: usize,
    sealed: VecDeque<Arc<Chunk>>,
    /// Of `sealed`.
    bytes: usize,
    open: Chunk,
    /// The number of the first attempt in `sealed`, or else in `open`.
    first: u64,
    newest: u64,
    /// Of the latest attempts, oldest first.
    heads: VecDeque<Arc<Heads>>,
    head_bytes: usize,
    max_heads: usize,
    /// The latest attempt of each call.
    calls: LruCache<u64, u64>,
    /// Attempts that came too fast to be kept.
    pub(super) dropped: u64,
}

impl Store {
    pub(super) fn new(keep: usize, max_heads: usize) -> Self {
        Self {
            keep,
            // Few enough that what goes at once is a small part.
            rows: (keep / 16).clamp(1, ROWS),
            sealed: VecDeque::new(),
            bytes: 0,
            open: Chunk::new(),
            first: 1,
            newest: 0,
            heads: VecDeque::new(),
            head_bytes: 0,
            max_heads,
            calls: LruCache::unbounded(),
            dropped: 0,
        }
    }

    pub(super) fn keeps(&self) -> bool {
        self.keep > 0
    }

    /// `busy`: many come, and nobody waits to see this one.
    pub(super) fn add(&mut self, attempt: Arc<Attempt>, busy: bool) {
        if self.keep == 0 {
            return;
        }
        self.newest += 1;
        let call = attempt.link.call.0;
        // A client that names no call has none to go on with after a success.
        let named = attempt.link.evidence == Evidence::Exact;
        let before = if named || Class::of(&attempt).is_failure() {
            let before = self.calls.put(call, self.newest);
            if self.calls.len() > MAX_CALLS.get() {
                self.calls.pop_lru();
            }
            before
        } else {
            self.calls.pop(&call)
        };
        let distance = before.and_then(|before| u32::try_from(self.newest - before).ok()).unwrap_or(0);
        if let Some((_, row)) = before.filter(|_| distance > 0).and_then(|before| self.row(before)) {
            row.followed_by(distance);
        }
        self.open.add(&attempt, distance);
        if self.open.rows.len() >= self.rows {
            let mut full = std::mem::replace(&mut self.open, Chunk::new());
            full.seal();
            self.bytes += full.bytes();
            self.sealed.push_back(Arc::new(full));
        }
        let heads = Heads::of(attempt, !busy);
        self.head_bytes += heads.bytes;
        self.heads.push_back(Arc::new(heads));
        self.trim();
    }

    fn trim(&mut self) {
        let budget = (self.keep.min(MAX_KEPT) * ROW).max(LEAST);
        while let Some(oldest) = self.sealed.front() {
            let kept = usize::try_from(self.newest + 1 - self.first).unwrap_or(usize::MAX);
            if kept - oldest.rows.len() < self.keep && self.bytes + self.open.bytes() <= budget {
                break;
            }
            self.first += oldest.rows.len() as u64;
            self.bytes -= oldest.bytes();
            self.sealed.pop_front();
        }
        while self.head_bytes > self.max_heads || self.heads.len() as u64 > self.newest + 1 - self.first {
            let Some(oldest) = self.heads.pop_front() else { break };
            self.head_bytes -= oldest.bytes;
        }
    }

    #[cfg(test)]
    pub(super) fn forget_heads(&mut self) {
        self.heads.clear();
        self.head_bytes = 0;
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The oldest that is kept; past the newest where there is none.
    pub(super) fn oldest(&self) -> u64 {
        // Chunks go whole: a few more may still be there than are kept.
        self.first.max((self.newest + 1).saturating_sub(self.keep as u64))
    }

    pub(super) fn bytes(&self) -> (usize, usize) {
        (self.bytes + self.open.bytes(), self.head_bytes)
    }

    /// The attempt of this number, in its chunk.
    pub(super) fn row(&self, id: u64) -> Option<(&Chunk, &Row)> {
        self.place(id).map(|(_, chunk, row)| (chunk, row))
    }

    /// The same, with the number of the chunk's first attempt.
    pub(super) fn place(&self, id: u64) -> Option<(u64, &Chunk, &Row)> {
        let at = usize::try_from(id.checked_sub(self.first)?).ok()?;
        let (number, within) = (at / self.rows, at % self.rows);
        let chunk = match self.sealed.get(number) {
            Some(chunk) => chunk,
            None if number == self.sealed.len() => &self.open,
            None => return None,
        };
        chunk.rows.get(within).map(|row| (id - within as u64, chunk, row))
    }

    pub(super) fn heads(&self, id: u64) -> Option<&Arc<Heads>> {
        let back = usize::try_from(self.newest.checked_sub(id)?).ok()?;
        self.heads.get(self.heads.len().checked_sub(back + 1)?)
    }

    /// All heads, and the number of the first attempt that has some.
    pub(super) fn all_heads(&self) -> (u64, Vec<Arc<Heads>>) {
        (self.newest + 1 - self.heads.len() as u64, self.heads.iter().map(Arc::clone).collect())
    }

    /// The chunk that is being filled, and its first attempt's number.
    pub(super) fn open(&self) -> (u64, &Chunk) {
        (self.newest + 1 - self.open.rows.len() as u64, &self.open)
    }

    /// Full chunks, newest first, and their first attempts' numbers: of those
    /// that have any before this one.
    pub(super) fn sealed(&self, before: u64) -> Vec<(u64, Arc<Chunk>)> {
        let starts = (0..).map(|at: u64| self.first + at * self.rows as u64);
        let chunks = starts.zip(&self.sealed).take_while(|(start, _)| *start < before);
        let mut found: Vec<_> = chunks.map(|(start, chunk)| (start, Arc::clone(chunk))).collect();
        found.reverse();
        found
    }
}
