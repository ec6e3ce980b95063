//! The calls that may still see an attempt.
//!
//! Two shelves, each in order of last use and bounded. *Open* calls have an
//! attempt under way or have failed so far; *settled* ones have come to an
//! end, but a client may think otherwise (an error inside a 200, a region
//! redirect), so they are kept for a while. A flood of successes thus never
//! drives out a call that is waiting to be retried.
use std::{collections::HashMap, sync::Arc, time::Duration};

use lru::LruCache;

use super::{tally::Outcome, tracks::Waiting};
use crate::{
    flow::{CallId, Moment},
    process::ProcessKey,
    retry::{
        Class,
        class::is_retryable,
        signals::{CallKey, Family},
    },
};

/// What names a call beyond doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CallName {
    pub(super) process: ProcessKey,
    pub(super) call: CallKey,
    pub(super) family: Family,
}

/// An operation's row: the process as it was entered (it may have been folded
/// away since), and the row's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) serial: u64,
    pub(super) row: u32,
}

/// The attempt of a call that ended last.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) ended: Moment,
    pub(super) outcome: Outcome,
    pub(super) class: Class,
    pub(super) place: Place,
    /// How long the client was asked to wait.
    pub(super) asked: Option<Duration>,
    /// The upstream had carried out what cannot be done twice.
    pub(super) done: bool,
    /// The rule that made the outcome.
    pub(super) rule: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) struct Call {
    /// Absent where the client names none.
    pub(super) name: Option<CallName>,
    /// The digest of its requests' body, as far as it is known.
    pub(super) body: Option<u64>,
    /// What the attempt under way is taken to follow, until its body tells.
    pub(super) doubted: Option<Waiting>,
    pub(super) begun: u32,
    pub(super) in_flight: u32,
    /// The highest number seen.
    pub(super) highest: u32,
    pub(super) max: Option<u32>,
    /// Counted as a call: one of its attempts has ended.
    pub(super) counted: bool,
    /// Counted as a retried call.
    pub(super) retried: bool,
    /// The attempt numbered 1 has ended.
    pub(super) first_ended: bool,
    /// An attempt has succeeded, or one under way beside it.
    pub(super) won: bool,
    pub(super) last: Option<Last>,
    /// The outcome that the client followed with its latest attempt.
    pub(super) tried_again: Option<Outcome>,
    /// Counted as given up, and where.
    pub(super) given_up: Option<Place>,
}

impl Call {
    fn new(name: Option<CallName>) -> Self {
        Self {
            name,
            body: None,
            doubted: None,
            begun: 0,
            in_flight: 0,
            highest: 0,
            max: None,
            counted: false,
            retried: false,
            first_ended: false,
            won: false,
            last: None,
            tried_again: None,
            given_up: None,
        }
    }

    /// The outcome that the call is given up with, were this its end: one
    /// that is retryable, or that this client has tried again before in this
    /// call, and so takes for retryable.
    pub(super) fn given_up_with(&self) -> Option<&Last> {
        let last = self.last.as_ref().filter(|_| self.in_flight == 0 && !self.won)?;
        let again = || self.tried_again.is_some_and(|before| before.same(last.outcome));
        let retryable = is_retryable(last.class, last.outcome.status());
        (retryable || (last.class.is_failure() && again())).then_some(last)
    }

    /// Nothing is under way and nothing more is expected.
    fn settled(&self) -> bool {
        let failed = self.last.as_ref().is_some_and(|last| last.class.is_failure());
        self.in_flight == 0 && (self.won || !failed || self.max.is_some_and(|max| self.highest >= max))
    }
}

pub(super) struct Calls {
    names: HashMap<CallName, CallId, lru::DefaultHasher>,
    open: LruCache<CallId, Call>,
    settled: LruCache<CallId, Call>,
    max_open: usize,
    max_settled: usize,
    /// Open calls that had to be forgotten: a later attempt of one counts as
    /// a new call.
    pub(super) forgotten: u64,
}

impl Calls {
    pub(super) fn new(max_open: usize, max_settled: usize) -> Self {
        // Unbounded, because a bounded one sets its whole table aside at once.
        Self {
            names: HashMap::default(),
            open: LruCache::unbounded(),
            settled: LruCache::unbounded(),
            max_open: max_open.max(1),
            max_settled: max_settled.max(1),
            forgotten: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len() + self.settled.len()
    }

    /// The call of this name, which is entered as `fresh` if it is unknown.
    pub(super) fn named(&mut self, name: CallName, fresh: impl FnOnce() -> CallId) -> Option<(CallId, &mut Call)> {
        let id = match self.names.get(&name) {
            Some(id) => {
                if let Some((id, call)) = self.settled.pop_entry(id) {
                    self.open.put(id, call);
                }
                *id
            }
            None => {
                let id = fresh();
                self.names.insert(name, id);
                self.open.put(id, Call::new(Some(name)));
                id
            }
        };
        self.trim();
        self.open.get_mut(&id).map(|call| (id, call))
    }

    /// Enters a call without a name, or with one that is not known yet.
    pub(super) fn enter(&mut self, id: CallId, name: Option<CallName>) -> Option<&mut Call> {
        if let Some(name) = name {
            self.names.insert(name, id);
        }
        self.open.put(id, Call::new(name));
        self.trim();
        self.open.get_mut(&id)
    }

    pub(super) fn is_named(&self, name: &CallName) -> bool {
        self.names.contains_key(name)
    }

    /// The call goes on: it may have come to its end before. Under one more
    /// name, if it has none.
    pub(super) fn resume(&mut self, id: CallId, name: Option<CallName>) -> Option<&mut Call> {
        if let Some((id, call)) = self.settled.pop_entry(&id) {
            self.open.put(id, call);
        }
        let call = self.open.get_mut(&id)?;
        if let Some(name) = name.filter(|_| call.name.is_none()) {
            self.names.insert(name, id);
            call.name = Some(name);
        }
        Some(call)
    }

    /// A call, wherever it is, without touching its place in the order.
    pub(super) fn peek_mut(&mut self, id: CallId) -> Option<&mut Call> {
        match self.open.peek_mut(&id) {
            None => self.settled.peek_mut(&id),
            found => found,
        }
    }

    /// A call that has an attempt under way.
    pub(super) fn get(&mut self, id: CallId) -> Option<&mut Call> {
        self.open.get_mut(&id)
    }

    /// Puts a call aside if it has come to its end; for good where no attempt
    /// can follow: it has no name, and none of its attempts `waits` for
    /// another.
    pub(super) fn shelve(&mut self, id: CallId, waits: bool) {
        if self.open.peek(&id).is_some_and(Call::settled)
            && let Some(call) = self.open.pop(&id)
            && (waits || call.name.is_some())
        {
            self.settled.put(id, call);
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.open.len() > self.max_open {
            let Some((_, call)) = self.open.pop_lru() else { break };
            if let Some(name) = call.name {
                self.names.remove(&name);
            }
            self.forgotten += 1;
        }
        while self.settled.len() > self.max_settled {
            let Some((_, call)) = self.settled.pop_lru() else { break };
            if let Some(name) = call.name {
                self.names.remove(&name);
            }
        }
    }
}
