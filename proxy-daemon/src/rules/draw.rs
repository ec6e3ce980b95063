//! Chance that can be repeated.
//!
//! In: the instance's seed, a rule's name, what stands for a call, the number
//! of the attempt, and what is drawn for. Out: always the same number for
//! them, on every machine and in every release. Nothing depends on the order
//! in which attempts arrive, except which of several calls that look alike is
//! called the first. What was deduced of an attempt plays no part, since that
//! depends on time: it draws as a call of its own.
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use lru::LruCache;
use siphasher::sip::SipHasher13;

use super::{Delay, MAX_DELAY, Spread};
use crate::flow::{Attempt, CallId, Evidence};

/// How many calls, and how many kinds of them, are remembered.
const MAX_CALLS: usize = 65_536;

/// Query keys that differ each time that the same thing is asked for.
const VOLATILE: &[&str] = &[
    "x-amz-signature",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-credential",
    "x-goog-signature",
    "x-goog-date",
    "x-goog-credential",
];

/// What a number is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Chance = 1,
    Delay = 2,
    /// The second number that a normal distribution takes.
    Angle = 3,
    Ids = 4,
}

/// One rule's draws.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    keys: (u64, u64),
}

impl Draws {
    pub(super) fn new(seed: u64, rule: &str) -> Self {
        let key = |half: u64| {
            let mut hash = SipHasher13::new_with_keys(seed, half);
            hash.write(rule.as_bytes());
            hash.finish()
        };
        Self { keys: (key(0), key(1)) }
    }

    pub(super) fn draw(&self, attempt: &Attempt, purpose: Purpose) -> u64 {
        let mut hash = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        hash.write(&attempt.call_key.to_le_bytes());
        let number = if is_named(attempt) { attempt.link.number } else { 1 };
        hash.write(&number.to_le_bytes());
        hash.write(&[purpose as u8]);
        hash.finish()
    }

    /// From 0 up to, but not including, 1.
    pub(super) fn unit(&self, attempt: &Attempt, purpose: Purpose) -> f64 {
        // The 53 bits that an f64 holds exactly.
        (self.draw(attempt, purpose) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// With mean 0 and deviation 1 (Box and Muller).
    fn normal(&self, attempt: &Attempt) -> f64 {
        // Not 0, whose logarithm is infinite.
        let radius = (-2.0 * (1.0 - self.unit(attempt, Purpose::Delay)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit(attempt, Purpose::Angle)).cos()
    }

    pub(super) fn delay(&self, attempt: &Attempt, delay: &Delay) -> Duration {
        let drawn = match delay.of {
            Spread::Fixed(time) => time,
            Spread::Uniform { from, to } => {
                from + seconds(to.saturating_sub(from).as_secs_f64() * self.unit(attempt, Purpose::Delay))
            }
            Spread::Normal { mean, deviation } => {
                seconds(mean.as_secs_f64() + deviation.as_secs_f64() * self.normal(attempt))
            }
        };
        drawn.min(delay.cap.unwrap_or(MAX_DELAY)).min(MAX_DELAY)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, MAX_DELAY.as_secs_f64())).unwrap_or(MAX_DELAY)
}

/// A seed for a run that was given none; short enough for JSON's numbers.
pub(super) fn random_seed() -> u64 {
    RandomState::new().hash_one(()) >> 11
}

/// Which attempt of which call it is, its client has said.
fn is_named(attempt: &Attempt) -> bool {
    attempt.link.evidence == Evidence::Exact
}

/// Gives each call what stands for it in draws: what the call looks like, and
/// how many have looked like it before. A later attempt keeps its call's.
#[derive(Debug)]
pub(super) struct Calls {
    alike: LruCache<u64, u64>,
    keys: LruCache<CallId, u64>,
    forgotten: u64,
}

impl Default for Calls {
    fn default() -> Self {
        Self { alike: LruCache::unbounded(), keys: LruCache::unbounded(), forgotten: 0 }
    }
}

impl Calls {
    pub(super) fn key(&mut self, attempt: &Attempt, fingerprint: u64) -> u64 {
        let named = is_named(attempt);
        if named && let Some(key) = self.keys.get(&attempt.link.call) {
            return *key;
        }
        let ordinal = match self.alike.get_mut(&fingerprint) {
            Some(count) => {
                *count += 1;
                *count
            }
            None => {
                self.forgotten += make_room(&mut self.alike, MAX_CALLS);
                self.alike.put(fingerprint, 0);
                0
            }
        };
        let mut hash = SipHasher13::new_with_keys(fingerprint, ordinal);
        hash.write(b"call");
        let key = hash.finish();
        if named {
            self.forgotten += make_room(&mut self.keys, MAX_CALLS);
            self.keys.put(attempt.link.call, key);
        }
        key
    }

    /// Calls, and kinds of calls, forgotten before their time: their draws
    /// begin anew.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// Makes room for one more; how many had to go.
pub(super) fn make_room<K: std::hash::Hash + Eq, V>(cache: &mut LruCache<K, V>, most: usize) -> u64 {
    u64::from(cache.len() >= most && cache.pop_lru().is_some())
}

/// What a call looks like, the same from run to run.
pub(super) fn fingerprint(attempt: &Attempt) -> u64 {
    let request = &attempt.request;
    let mut hash = SipHasher13::new_with_keys(0, 0);
    let mut put = |part: &[u8]| {
        hash.write(&(part.len() as u64).to_le_bytes());
        hash.write(part);
    };
    put(attempt.process.facts().comm.as_bytes());
    put(request.method.as_bytes());
    put(request.host().to_ascii_lowercase().as_bytes());
    put(request.path().as_bytes());
    for pair in request.query().unwrap_or_default().split('&') {
        let name = pair.split('=').next().unwrap_or_default();
        if !VOLATILE.iter().any(|volatile| name.eq_ignore_ascii_case(volatile)) {
            put(pair.as_bytes());
        }
    }
    put(attempt.operation.service.as_deref().unwrap_or_default().as_bytes());
    put(attempt.operation.name.as_deref().unwrap_or_default().as_bytes());
    // Otherwise it says how the body is signed, not what it is.
    let digest = request.headers.get("x-amz-content-sha256").filter(|digest| digest.len() == 64);
    put(digest.unwrap_or_default());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Link, filter::tests::attempt};

    fn many(mut each: impl FnMut(&Attempt)) {
        let mut it = attempt();
        for key in 0..20_000 {
            it.call_key = key;
            each(&it);
        }
    }

    #[test]
    fn draws_never_change() {
        // A report's seed repeats its run in every later release.
        let mut it = attempt();
        it.call_key = 1;
        assert_eq!(Draws::new(7, "rule").draw(&it, Purpose::Chance), 2_580_096_688_021_651_606);
    }

    #[test]
    fn draws_are_spread_evenly() {
        let draws = Draws::new(1, "a");
        let (mut low, mut sum, mut squares) = (0, 0.0, 0.0);
        many(|it| {
            low += u32::from(draws.unit(it, Purpose::Chance) < 0.25);
            let normal = draws.normal(it);
            sum += normal;
            squares += normal * normal;
        });
        assert!((4_700..5_300).contains(&low), "{low}");
        assert!((sum / 20_000.0_f64).abs() < 0.03, "{sum}");
        assert!((squares / 20_000.0_f64 - 1.0).abs() < 0.05, "{squares}");
    }

    #[test]
    fn delays_keep_to_their_bounds() {
        let draws = Draws::new(1, "a");
        let ms = Duration::from_millis;
        let uniform = Delay { of: Spread::Uniform { from: ms(100), to: ms(300) }, cap: None };
        let normal = Delay { of: Spread::Normal { mean: ms(50), deviation: ms(100) }, cap: Some(ms(120)) };
        let (mut zero, mut capped) = (0, 0);
        many(|it| {
            assert!((ms(100)..ms(300)).contains(&draws.delay(it, &uniform)));
            let drawn = draws.delay(it, &normal);
            assert!(drawn <= ms(120));
            zero += u32::from(drawn.is_zero());
            capped += u32::from(drawn == ms(120));
        });
        assert!(zero > 1_000 && capped > 1_000, "{zero} {capped}");
        let long = Delay { of: Spread::Fixed(MAX_DELAY * 3), cap: None };
        assert_eq!(draws.delay(&attempt(), &long), MAX_DELAY);
    }

    #[test]
    fn a_call_looks_the_same_whenever_it_was_signed() {
        let look = |target: &str| {
            let mut it = attempt();
            it.request.target = target.into();
            fingerprint(&it)
        };
        let one = look("/b/k?x-id=GetObject&X-Amz-Date=1&X-Amz-Signature=a&X-Amz-Credential=c");
        assert_eq!(one, look("/b/k?x-id=GetObject&X-Amz-Date=2&X-Amz-Signature=b&X-Amz-Security-Token=t"));
        assert_ne!(one, look("/b/k?x-id=PutObject"));
        assert_ne!(one, look("/b/k"));
    }

    #[test]
    fn what_was_deduced_plays_no_part() {
        let draw = |number: u32, call: u64, calls: &mut Calls| {
            let mut it = attempt();
            it.link = Link { number, call: CallId(call), evidence: Evidence::Inferred, ..it.link };
            it.call_key = calls.key(&it, 5);
            Draws::new(1, "a").draw(&it, Purpose::Chance)
        };
        let (mut one, mut other) = (Calls::default(), Calls::default());
        let linked: Vec<u64> = [(1, 1), (2, 1), (1, 2)].map(|(number, call)| draw(number, call, &mut one)).into();
        let apart: Vec<u64> = [(1, 1), (1, 2), (2, 2)].map(|(number, call)| draw(number, call, &mut other)).into();
        assert_eq!(linked, apart);
        assert!(linked[0] != linked[1] && linked[1] != linked[2]);
    }

    #[test]
    fn memory_of_calls_is_bounded() {
        let mut calls = Calls::default();
        let mut it = attempt();
        let most = MAX_CALLS as u64;
        let first = calls.key(&it, 0);
        for call in 2..=most + 10 {
            it.link.call = CallId(call);
            calls.key(&it, call);
        }
        assert_eq!((calls.keys.len(), calls.alike.len()), (MAX_CALLS, MAX_CALLS));
        assert_eq!(calls.forgotten(), 20);
        it.link.call = CallId(1);
        assert_eq!(calls.key(&it, 0), first);
    }
}
