//! Attempts put together to calls.
//!
//! In: attempts as they end. Out: each call once it has come to its end: it
//! has succeeded, has made all the attempts that its client said it would, or
//! has been quiet for a while after a failure. Pure; time is passed in.
use std::{sync::Arc, time::Duration};

use lru::LruCache;

use crate::{
    flow::{Attempt, CallId, Moment},
    retry::Class,
};

/// After a failure that no attempt has followed for so long, none is expected.
const QUIET: Duration = Duration::from_secs(60);
/// Calls that are not at their end; past it the longest quiet one is taken to
/// be.
const MAX_OPEN: usize = 8192;
/// Attempts of a call that are kept.
const MAX_ATTEMPTS: usize = 128;

/// A call as far as it has come; in the order in which its attempts ended.
#[derive(Debug)]
pub(super) struct Call {
    /// At least one.
    pub(super) attempts: Vec<Arc<Attempt>>,
    /// Attempts that are not kept.
    pub(super) more: u32,
}

impl Call {
    fn add(&mut self, attempt: Arc<Attempt>) {
        if self.attempts.len() < MAX_ATTEMPTS {
            self.attempts.push(attempt);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn ended(&self) -> Moment {
        self.attempts.iter().filter_map(|attempt| attempt.ended).max().unwrap_or_default()
    }
}

#[derive(Debug)]
pub(super) struct Calls {
    /// Longest quiet last.
    open: LruCache<CallId, Call>,
    limit: usize,
    cut: u64,
}

impl Default for Calls {
    fn default() -> Self {
        Self { open: LruCache::unbounded(), limit: MAX_OPEN, cut: 0 }
    }
}

impl Calls {
    /// Takes in an attempt; gives back calls that are at their end by that.
    pub(super) fn add(&mut self, attempt: Arc<Attempt>) -> Vec<Call> {
        let id = attempt.link.call;
        let done = !Class::of(&attempt).is_failure() || attempt.link.max.is_some_and(|max| attempt.link.number >= max);
        let mut call = self.open.pop(&id).unwrap_or(Call { attempts: Vec::new(), more: 0 });
        call.add(attempt);
        if done {
            return vec![call];
        }
        self.open.put(id, call);
        let mut ended = Vec::new();
        while self.open.len() > self.limit {
            let Some((_, call)) = self.open.pop_lru() else { break };
            self.cut += 1;
            ended.push(call);
        }
        ended
    }

    /// The calls that have been quiet for long.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<Call> {
        let mut ended = Vec::new();
        while self.open.peek_lru().is_some_and(|(_, call)| now.since(call.ended()) >= QUIET) {
            ended.extend(self.open.pop_lru().map(|(_, call)| call));
        }
        ended
    }

    /// All the rest.
    pub(super) fn drain(&mut self) -> Vec<Call> {
        std::iter::from_fn(|| self.open.pop_lru()).map(|(_, call)| call).collect()
    }

    /// How many calls were taken to be at their end for want of room.
    pub(super) fn cut(&self) -> u64 {
        self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::tests::attempt;

    fn ended(call: u64, number: u32, status: u16, at: u64) -> Arc<Attempt> {
        let mut it = attempt();
        (it.link.call, it.link.number, it.link.max) = (CallId(call), number, Some(3));
        it.response.as_mut().expect("a response").status = status;
        it.ended = Some(Moment(at * 1_000_000_000));
        Arc::new(it)
    }

    fn numbers(calls: &[Call]) -> Vec<Vec<u32>> {
        calls.iter().map(|call| call.attempts.iter().map(|attempt| attempt.link.number).collect()).collect()
    }

    #[test]
    fn a_call_ends_with_success_or_its_last_attempt() {
        let mut calls = Calls::default();
        assert!(calls.add(ended(1, 1, 503, 0)).is_empty());
        assert!(calls.add(ended(2, 1, 503, 1)).is_empty());
        assert_eq!(numbers(&calls.add(ended(1, 2, 200, 2))), [[1, 2]]);
        assert!(calls.add(ended(2, 2, 503, 3)).is_empty());
        assert_eq!(numbers(&calls.add(ended(2, 3, 503, 4))), [[1, 2, 3]]);
        assert!(calls.drain().is_empty());
    }

    #[test]
    fn a_call_ends_when_it_was_quiet_for_long() {
        let mut calls = Calls::default();
        calls.add(ended(1, 1, 503, 0));
        calls.add(ended(2, 1, 503, 30));
        assert!(calls.expire(Moment(59_000_000_000)).is_empty());
        assert_eq!(numbers(&calls.expire(Moment(60_000_000_000))), [[1]]);
        assert_eq!(numbers(&calls.drain()), [[1]]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut calls = Calls { limit: 2, ..Calls::default() };
        assert_eq!((0..5).map(|call| calls.add(ended(call, 1, 503, 0)).len()).sum::<usize>(), 3);
        assert_eq!((calls.cut(), calls.open.len()), (3, 2));
        for _ in 0..300 {
            calls.add(ended(9, 1, 503, 0));
        }
        let call = calls.add(ended(9, 2, 200, 0));
        assert_eq!((call[0].attempts.len(), call[0].more), (MAX_ATTEMPTS, 173));
    }
}
