//! What rules count: their hits, and how often each has acted for whom.
//!
//! In: attempts that a rule's filter matches. Out: whether its limits let it
//! act. What is asked and what is counted is one step, under one lock; only a
//! rule that has such limits takes it.
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lru::LruCache;

use super::{
    Per, Rate, RateKey, Rule,
    bucket::{Bucket, Inflow},
    draw::make_room,
};
use crate::{
    flow::{Attempt, CallId, Moment, Operation, aws},
    process::ProcessKey,
};

/// How many calls, processes or operations a rule remembers. Past it the one
/// not seen for longest is forgotten, and counts from the start again.
const MAX_KEYS: usize = 16_384;

/// The counters of one rule, shared by every connection and by every set
/// that has the rule. On cache lines of its own: every core counts here.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct RuleState {
    hits: AtomicU64,
    failed: AtomicU64,
    /// Attempts that the filter has matched; counted where shares are limited.
    matched: AtomicU64,
    forgotten: AtomicU64,
    born: Moment,
    limited: Option<Mutex<Limited>>,
}

/// What limits look at.
#[derive(Debug)]
struct Limited {
    /// Attempts that have come as far as `every`.
    seen: u64,
    acted: u64,
    times: LruCache<Key, u32>,
    buckets: LruCache<Key, Bucket>,
}

/// Whom a limit is for.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Call(CallId),
    Process(ProcessKey),
    Operation(Operation),
    Host(Arc<str>),
    /// S3's bucket, and the start of the key.
    Place(String, String),
    Rule,
}

/// Whether an answer of [`RuleState::admits`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Would it?
    Look,
    /// The rule acts if the answer is yes.
    Take,
}

impl RuleState {
    pub(super) fn new(rule: &Rule, now: Moment) -> Self {
        let limits = &rule.limits;
        let limited = limits.every.is_some()
            || limits.times.is_some()
            || limits.max_share.is_some()
            || limits.max_hits.is_some()
            || rule.action.limit.is_some();
        let limited = limited.then(|| {
            Mutex::new(Limited { seen: 0, acted: 0, times: LruCache::unbounded(), buckets: LruCache::unbounded() })
        });
        Self {
            hits: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            matched: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            born: now,
            limited,
        }
    }

    /// How often the rule has acted.
    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many calls, processes or operations were forgotten before their
    /// time: the rule may have acted on them more often than it should.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// The rule should have acted, and what it was to change did not allow it.
    pub(super) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The rule's filter matches an attempt.
    pub(super) fn matched(&self) {
        self.matched.fetch_add(1, Ordering::Relaxed);
    }

    /// The rule's time has come and is not over.
    pub(super) fn is_due(&self, rule: &Rule, now: Moment) -> bool {
        let (after, window) = (rule.limits.after, rule.limits.window);
        if after.is_none() && window.is_none() {
            return true;
        }
        let age = now.since(self.born);
        let after = after.unwrap_or(Duration::ZERO);
        age >= after && window.is_none_or(|window| age < after.saturating_add(window))
    }

    /// Whether the limits that count let the rule act.
    pub(super) fn admits(&self, rule: &Rule, attempt: &Attempt, now: Moment, ask: Ask) -> bool {
        let Some(limited) = &self.limited else { return true };
        let take = ask == Ask::Take;
        // What has to be put together is, before anyone waits for the lock.
        let limits = &rule.limits;
        let times = limits.times.map(|times| (times.count, per(times.per, attempt)));
        let limit = match &rule.action.limit {
            Some(rate) => match rate_key(rate, attempt) {
                Some(key) => Some((Inflow::of(rate), key)),
                // No such bucket: nothing exceeds it.
                None => return false,
            },
            None => None,
        };
        let mut limited = limited.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = &mut *limited;
        if let Some(every) = limits.every {
            let turn = limited.seen + 1;
            if take {
                limited.seen = turn;
            }
            if turn % u64::from(every.get()) != 0 {
                return false;
            }
        }
        if let Some((count, key)) = &times
            && limited.times.get(key).copied().unwrap_or(0) >= *count
        {
            return false;
        }
        if let Some(share) = limits.max_share {
            // A look comes before the attempt is counted among the matched.
            let matched = self.matched.load(Ordering::Relaxed) + u64::from(!take);
            if (limited.acted + 1) as f64 > share * matched as f64 + 1e-9 {
                return false;
            }
        }
        if limits.max_hits.is_some_and(|most| limited.acted >= most) {
            return false;
        }
        if let Some((inflow, key)) = limit {
            let within = match limited.buckets.get_mut(&key) {
                Some(bucket) if take => bucket.take(inflow, now),
                Some(bucket) => !bucket.is_empty(inflow, now),
                None => {
                    let mut bucket = Bucket::full(inflow, now);
                    let within = bucket.take(inflow, now);
                    if take {
                        self.forget(make_room(&mut limited.buckets, MAX_KEYS));
                        limited.buckets.put(key, bucket);
                    }
                    within
                }
            };
            if within {
                return false;
            }
        }
        if take {
            limited.acted += 1;
            if let Some((_, key)) = times {
                match limited.times.get_mut(&key) {
                    Some(count) => *count += 1,
                    None => {
                        self.forget(make_room(&mut limited.times, MAX_KEYS));
                        limited.times.put(key, 1);
                    }
                }
            }
        }
        true
    }

    fn forget(&self, count: u64) {
        self.forgotten.fetch_add(count, Ordering::Relaxed);
    }
}

fn per(per: Per, attempt: &Attempt) -> Key {
    match per {
        Per::Call => Key::Call(attempt.link.call),
        Per::Process => Key::Process(attempt.process.key),
        Per::Operation => Key::Operation(operation(attempt)),
        Per::Rule => Key::Rule,
    }
}

fn rate_key(rate: &Rate, attempt: &Attempt) -> Option<Key> {
    Some(match rate.key {
        RateKey::Rule => Key::Rule,
        RateKey::Host => Key::Host(attempt.request.host().to_ascii_lowercase().into()),
        RateKey::Operation => Key::Operation(operation(attempt)),
        RateKey::Process => Key::Process(attempt.process.key),
        RateKey::Bucket => Key::Place(aws::s3_place(&attempt.request)?.0, String::new()),
        RateKey::Prefix => {
            let (bucket, key) = aws::s3_place(&attempt.request)?;
            let prefix = key.rfind('/').and_then(|slash| key.get(..=slash)).unwrap_or_default().to_owned();
            Key::Place(bucket, prefix)
        }
    })
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
