//! What rules count: their hits, and how often each has acted for whom.
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use lru::LruCache;

use super::{Per, RuleSet, Times};
use crate::{
    flow::{Attempt, CallId, Operation},
    process::ProcessKey,
};

/// How many calls, processes or operations a rule remembers. Past it the one
/// not seen for longest is forgotten, and counts from the start again.
const MAX_KEYS: usize = 16_384;

/// The counters of one [`RuleSet`], shared by every connection. Only rules
/// that are limited take a lock, and only on attempts they match.
#[derive(Debug)]
pub struct RuleState {
    counters: Box<[Counter]>,
    forgotten: AtomicU64,
}

#[derive(Debug)]
struct Counter {
    hits: AtomicU64,
    /// How often the rule has acted, if it is limited.
    acted: Option<Mutex<LruCache<Key, u32>>>,
}

/// Whom a limit is for.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Call(CallId),
    Process(ProcessKey),
    Operation(Operation),
    Rule,
}

impl RuleState {
    pub fn new(rules: &RuleSet) -> Self {
        let counter = |limited: bool| Counter {
            hits: AtomicU64::new(0),
            acted: limited.then(|| Mutex::new(LruCache::unbounded())),
        };
        Self {
            counters: rules.rules.iter().map(|rule| counter(rule.times.is_some())).collect(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// How often a rule has acted.
    pub fn hits(&self, index: usize) -> u64 {
        self.counters.get(index).map_or(0, |counter| counter.hits.load(Ordering::Relaxed))
    }

    /// How many calls, processes or operations were forgotten before their
    /// time: a rule may have acted on them more often than it should.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, index: usize) {
        if let Some(counter) = self.counters.get(index) {
            counter.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One of the times that the rule may act, unless they are used up.
    pub(super) fn take(&self, index: usize, times: Times, attempt: &Attempt) -> bool {
        let Some(acted) = self.counters.get(index).and_then(|counter| counter.acted.as_ref()) else { return false };
        let key = match times.per {
            Per::Call => Key::Call(attempt.link.call),
            Per::Process => Key::Process(attempt.process.key),
            Per::Operation => Key::Operation(operation(attempt)),
            Per::Rule => Key::Rule,
        };
        let mut acted = acted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = acted.get_mut(&key) {
            let free = *count < times.count;
            *count += u32::from(free);
            return free;
        }
        if acted.len() >= MAX_KEYS && acted.pop_lru().is_some() {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        acted.put(key, 1);
        times.count > 0
    }
}

/// Where nothing names the operation, method and host stand for it.
fn operation(attempt: &Attempt) -> Operation {
    let known = &attempt.operation;
    if known.name.is_some() {
        return known.clone();
    }
    Operation {
        service: known.service.clone().or_else(|| Some(attempt.request.host().into())),
        name: Some(attempt.request.method.clone()),
    }
}
