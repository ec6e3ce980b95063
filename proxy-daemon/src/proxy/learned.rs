//! Clients that will not trust the certificate made for them: what was seen
//! of them, and whether their next connection is passed on untouched.
//!
//! In: how a client took its handshake. Out: tunnel or intercept. A client
//! has refused when it sent an alert about the certificate or left right
//! after its handshake without a word, as one does that pins its server; one
//! that broke off without an alert has to do so twice. What a process has
//! refused stays refused for as long as it is remembered. Other processes of
//! the same program are spared the failure too, for [`MEMORY`], unless the
//! program has been seen to trust the certificate: then some of its processes
//! are told otherwise than others, and each learns for itself.
use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::{
    flow::Moment,
    process::{self, Process, ProcessKey},
};

/// How long a refusal speaks for other processes of the program: long enough
/// for a job that runs each few minutes, short enough that a client that was
/// mended is seen again.
pub(super) const MEMORY: Duration = Duration::from_secs(3600);

/// How soon after its handshake a client leaves that did not like what it
/// saw. One that leaves later had no use for the connection.
pub(super) const AT_ONCE: Duration = Duration::from_secs(2);

/// Clients remembered by name; the one unseen for longest is forgotten.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// How a client took the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It has sent a request.
    Trusts,
    /// It said why it does not trust the certificate, or left in silence
    /// right after the handshake.
    Refuses,
    /// The handshake broke off without a reason.
    BrokeOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Trusting,
    /// Broke off once.
    Doubtful,
    Refused(Moment),
}

/// Whom it is known of, and the host's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Client {
    Process(ProcessKey),
    Program(String),
}

/// A refusal, written down for the next instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One of the two.
    process: Option<ProcessKey>,
    program: Option<String>,
    name: String,
}

#[derive(Debug)]
pub struct Learned {
    seen: Mutex<LruCache<(Client, Arc<str>), Seen>>,
    /// Nothing is learned: a client that refuses fails each time.
    strict: bool,
    forgotten: AtomicU64,
}

impl Learned {
    pub fn new(strict: bool) -> Self {
        Self { seen: Mutex::new(LruCache::new(MAX_REMEMBERED)), strict, forgotten: AtomicU64::new(0) }
    }

    /// What is to be remembered beyond this instance.
    pub fn refusals(&self, now: Moment) -> Vec<Refusal> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = |((client, name), seen): (&(Client, Arc<str>), &Seen)| {
            let Seen::Refused(at) = seen else { return None };
            let (process, program) = match client {
                Client::Process(key) => (Some(*key), None),
                Client::Program(program) => (None, Some(program.clone()).filter(|_| now.since(*at) < MEMORY)),
            };
            (process.is_some() || program.is_some()).then(|| Refusal { process, program, name: name.to_string() })
        };
        // The one that is remembered last is the one seen last.
        seen.iter().rev().filter_map(refusal).collect()
    }

    /// Takes over what an earlier instance has learned.
    pub fn remember(&self, refusals: Vec<Refusal>, now: Moment) {
        if self.strict {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for Refusal { process, program, name } in refusals {
            if let Some(client) = process.map(Client::Process).or(program.map(Client::Program)) {
                self.put(&mut seen, (client, name.into()), Seen::Refused(now));
            }
        }
    }

    /// Whether this client's connection to `name` is to be left alone.
    pub(super) fn leaves_alone(&self, process: &Process, name: &Arc<str>, now: Moment) -> bool {
        if self.strict {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_empty() {
            return false;
        }
        match seen.get(&(Client::Process(process.key), Arc::clone(name))) {
            Some(Seen::Refused(_)) => return true,
            Some(Seen::Trusting) => return false,
            Some(Seen::Doubtful) | None => {}
        }
        let program = Client::Program(process::program(&process.facts()));
        matches!(seen.get(&(program, Arc::clone(name))), Some(Seen::Refused(at)) if now.since(*at) < MEMORY)
    }

    /// A client has shown what it thinks. True if its next connection to
    /// `name` will be left alone.
    pub(super) fn learn(&self, process: &Process, name: &Arc<str>, reaction: Reaction, now: Moment) -> bool {
        if self.strict {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let itself = (Client::Process(process.key), Arc::clone(name));
        let of_itself = seen.get(&itself).copied();
        // Whoever has trusted it once has other reasons to leave.
        if of_itself == Some(Seen::Trusting) {
            return false;
        }
        let program = (Client::Program(process::program(&process.facts())), Arc::clone(name));
        let of_program = seen.get(&program).copied();
        let refuses = match reaction {
            Reaction::Trusts => {
                self.put(&mut seen, itself, Seen::Trusting);
                self.put(&mut seen, program, Seen::Trusting);
                return false;
            }
            Reaction::Refuses => true,
            Reaction::BrokeOff => {
                [of_itself, of_program].iter().any(|seen| matches!(seen, Some(Seen::Doubtful | Seen::Refused(_))))
            }
        };
        let now = if refuses { Seen::Refused(now) } else { Seen::Doubtful };
        self.put(&mut seen, itself, now);
        if of_program != Some(Seen::Trusting) {
            self.put(&mut seen, program, now);
        }
        refuses
    }

    fn put(&self, seen: &mut LruCache<(Client, Arc<str>), Seen>, key: (Client, Arc<str>), value: Seen) {
        let known = seen.contains(&key);
        if seen.push(key, value).is_some() && !known {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the client has not yet been seen to trust the certificate.
    pub(super) fn doubts(&self, process: &Process, name: &Arc<str>) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let client = |client| seen.peek(&(client, Arc::clone(name))).copied();
        client(Client::Process(process.key)) != Some(Seen::Trusting)
            && client(Client::Program(process::program(&process.facts()))) != Some(Seen::Trusting)
    }

    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Clients forgotten since there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Facts;

    fn process(pid: u32, exe: &str) -> Process {
        let key = ProcessKey { pid, start_ticks: 1 };
        Process::new(key, 1, 0, Facts { exe: Some(exe.into()), ..Facts::default() })
    }

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    fn name() -> Arc<str> {
        "a.test".into()
    }

    #[test]
    fn one_refusal_is_enough_and_speaks_for_the_program() {
        let learned = Learned::new(false);
        let (one, two, other) = (process(1, "/bin/a"), process(2, "/bin/a"), process(3, "/bin/b"));
        assert!(!learned.leaves_alone(&one, &name(), at(0)));
        assert!(learned.learn(&one, &name(), Reaction::Refuses, at(0)));
        assert!(learned.leaves_alone(&one, &name(), at(1)));
        assert!(learned.leaves_alone(&two, &name(), at(1)));
        assert!(!learned.leaves_alone(&other, &name(), at(1)));
        assert!(!learned.leaves_alone(&one, &"b.test".into(), at(1)));
    }

    #[test]
    fn the_program_is_tried_again_but_not_the_process() {
        let learned = Learned::new(false);
        let (one, two) = (process(1, "/bin/a"), process(2, "/bin/a"));
        learned.learn(&one, &name(), Reaction::Refuses, at(0));
        let later = at(MEMORY.as_secs() + 1);
        assert!(learned.leaves_alone(&one, &name(), later));
        assert!(!learned.leaves_alone(&two, &name(), later));
    }

    #[test]
    fn a_break_without_a_reason_counts_from_the_second_on() {
        let learned = Learned::new(false);
        let (one, two) = (process(1, "/bin/a"), process(2, "/bin/a"));
        assert!(!learned.learn(&one, &name(), Reaction::BrokeOff, at(0)));
        assert!(!learned.leaves_alone(&one, &name(), at(0)));
        assert!(learned.learn(&two, &name(), Reaction::BrokeOff, at(1)));
        assert!(learned.leaves_alone(&two, &name(), at(1)));
    }

    #[test]
    fn whoever_trusts_is_never_left_alone() {
        let learned = Learned::new(false);
        let (one, two, three) = (process(1, "/bin/a"), process(2, "/bin/a"), process(3, "/bin/a"));
        learned.learn(&one, &name(), Reaction::Trusts, at(0));
        assert!(!learned.learn(&one, &name(), Reaction::Refuses, at(1)));
        // Another process of the program, told otherwise, speaks for itself.
        assert!(learned.learn(&two, &name(), Reaction::Refuses, at(2)));
        assert!(learned.leaves_alone(&two, &name(), at(3)));
        assert!(!learned.leaves_alone(&one, &name(), at(3)) && !learned.leaves_alone(&three, &name(), at(3)));
    }

    #[test]
    fn strict_learns_nothing_and_memory_is_bounded() {
        let learned = Learned::new(true);
        assert!(!learned.learn(&process(1, "/bin/a"), &name(), Reaction::Refuses, at(0)));
        assert!(!learned.leaves_alone(&process(1, "/bin/a"), &name(), at(0)));
        let learned = Learned::new(false);
        for pid in 0..10_000 {
            learned.learn(&process(pid, "/bin/a"), &name(), Reaction::Refuses, at(0));
        }
        assert_eq!(learned.forgotten(), 10_001 - MAX_REMEMBERED.get() as u64);
    }
}
