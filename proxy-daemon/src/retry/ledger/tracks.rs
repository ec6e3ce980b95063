//! Which call a request goes on with, where the client names none.
//!
//! Requests with the same fingerprint are on one *track*. An attempt that
//! failed so that a client may try again waits there for the attempt that
//! follows; a new request takes the newest that waits, once, if all of this
//! holds:
//!
//! - it began after that one had ended, within a window: 30 s, or one and a
//!   half times the wait that was asked for, but at most 125 s;
//! - it is not simply the next turn of a loop. A loop shows in the time from
//!   one end to the next start, and from one start to the next: where requests
//!   followed each other at such a distance before without a failure, another
//!   one at the same distance is no retry;
//! - it does not come at once while others of the same track are under way:
//!   workers that all ask for the same go on with their next turn then.
//!
//! Precision goes before recall: what could as well be something else is a
//! call of its own. Where the client numbers its attempts the number decides
//! instead, and none of this is asked.
use std::{collections::VecDeque, net::IpAddr, time::Duration};

use lru::LruCache;

use crate::{
    flow::{CallId, Moment},
    retry::fingerprint::Fingerprint,
};

/// How long after a failure a retry may begin, unless a longer wait was asked
/// for: no common client waits longer by itself.
const WINDOW: Duration = Duration::from_secs(30);
/// No client waits longer, whatever it is asked for.
const MAX_WINDOW: Duration = Duration::from_secs(125);
/// Failed attempts that wait on one track.
const MAX_WAITING: usize = 64;
/// Distances that differ less are the same.
const SAME: Duration = Duration::from_millis(10);
/// With others under way, what comes sooner is their next turn.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Addresses of one name are tried within this (RFC 8305, section 5).
const RACE: Duration = Duration::from_millis(300);

/// An attempt that may be followed by another of its call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) call: CallId,
    /// The attempt's number in its call.
    pub(super) number: u32,
    pub(super) started: Moment,
    pub(super) ended: Moment,
    pub(super) asked: Option<Duration>,
    /// It failed so that clients try again.
    pub(super) retryable: bool,
}

#[derive(Debug, Default)]
struct Track {
    waiting: VecDeque<Waiting>,
    in_flight: u32,
    last_start: Option<Moment>,
    /// The end of the last attempt, if nothing was to be tried again.
    last_success: Option<Moment>,
    /// From start to start, and from a success's end to the next start.
    turn: Option<Duration>,
    pause: Option<Duration>,
    /// Where it was last tried to connect to, from when to when.
    address: Option<(IpAddr, Moment, Moment)>,
}

pub(super) struct Tracks {
    tracks: LruCache<Fingerprint, Track>,
    limit: usize,
    /// Tracks that were forgotten while attempts waited on them.
    pub(super) forgotten: u64,
}

impl Tracks {
    pub(super) fn new(limit: usize) -> Self {
        Self { tracks: LruCache::unbounded(), limit: limit.max(1), forgotten: 0 }
    }

    /// A request begins. The attempt that it follows; `number`: the client
    /// says that it is this attempt of its call.
    pub(super) fn begin(&mut self, print: Fingerprint, number: Option<u32>, at: Moment) -> Option<Waiting> {
        let track = self.track(print);
        let found = track.take(number, at);
        if found.is_none() {
            track.turn = track.last_start.map(|last| at.since(last));
            track.pause = track.last_success.map(|last| at.since(last)).or(track.pause);
            track.last_start = Some(at);
        }
        track.last_success = None;
        track.in_flight = track.in_flight.saturating_add(1);
        found
    }

    /// A connection to some address of the track's host could not be made:
    /// whether that is an attempt of its own. Clients that know several
    /// addresses try one after the other, or side by side (RFC 8305).
    pub(super) fn connects(&mut self, print: Fingerprint, address: IpAddr, started: Moment, ended: Moment) -> bool {
        let track = self.track(print);
        let same = track.address.is_some_and(|(known, from, to)| {
            known != address && (started <= to || started.since(to) < RACE || started.since(from) < RACE)
        });
        if !same {
            track.address = Some((address, started, ended));
        }
        !same
    }

    /// A request of a call that is known begins: nothing has to be found.
    pub(super) fn pass(&mut self, print: Fingerprint) -> Option<Waiting> {
        let track = self.tracks.get_mut(&print)?;
        track.in_flight = track.in_flight.saturating_add(1);
        None
    }

    fn track(&mut self, print: Fingerprint) -> &mut Track {
        if !self.tracks.contains(&print) {
            while self.tracks.len() >= self.limit {
                let Some((_, track)) = self.tracks.pop_lru() else { break };
                self.forgotten += u64::from(!track.waiting.is_empty());
            }
        }
        self.tracks.get_or_insert_mut(print, Track::default)
    }

    /// The call goes on by its name: none of its attempts waits any more.
    pub(super) fn followed(&mut self, print: Fingerprint, call: CallId) {
        if let Some(track) = self.tracks.get_mut(&print) {
            track.waiting.retain(|waiting| waiting.call != call);
        }
    }

    /// An attempt has ended: `failed`, so that another may follow; or not.
    pub(super) fn finish(&mut self, print: Fingerprint, ended: Moment, failed: Option<Waiting>) {
        // Forgotten meanwhile: nothing can follow it.
        let Some(track) = self.tracks.get_mut(&print) else { return };
        track.in_flight = track.in_flight.saturating_sub(1);
        match failed {
            None => track.last_success = Some(ended),
            Some(waiting) => {
                if track.waiting.len() >= MAX_WAITING {
                    track.waiting.pop_front();
                    self.forgotten += 1;
                }
                track.waiting.push_back(waiting);
            }
        }
    }

    /// What was taken was something else after all: it waits again.
    pub(super) fn put_back(&mut self, print: Fingerprint, waiting: Waiting) {
        if let Some(track) = self.tracks.get_mut(&print) {
            track.waiting.push_back(waiting);
        }
    }

    /// The newest that waits, whatever it is, if it ended within the window.
    pub(super) fn take_newest(&mut self, print: Fingerprint, at: Moment) -> Option<Waiting> {
        let track = self.tracks.get_mut(&print)?;
        let place = track.waiting.iter().rposition(|waiting| waiting.is_open(at))?;
        track.waiting.remove(place)
    }
}

impl Waiting {
    fn is_open(&self, at: Moment) -> bool {
        let asked = self.asked.map_or(Duration::ZERO, |asked| asked.saturating_mul(3) / 2);
        self.ended <= at && at.since(self.ended) <= WINDOW.max(asked).min(MAX_WINDOW)
    }
}

impl Track {
    fn take(&mut self, number: Option<u32>, at: Moment) -> Option<Waiting> {
        let place = match number {
            Some(number) => {
                self.waiting.iter().rposition(|waiting| waiting.number + 1 == number && waiting.is_open(at))?
            }
            None => {
                let newest = self.waiting.iter().rposition(|waiting| waiting.retryable && waiting.is_open(at))?;
                let waiting = self.waiting.get(newest)?;
                if self.goes_round(waiting, at) {
                    // The loop has gone on without it.
                    self.waiting.remove(newest);
                    return None;
                }
                if self.in_flight > 0 && at.since(waiting.ended) < AT_ONCE {
                    return None;
                }
                newest
            }
        };
        self.waiting.remove(place)
    }

    /// The request is likelier the next turn of a loop.
    fn goes_round(&self, waiting: &Waiting, at: Moment) -> bool {
        let pause = at.since(waiting.ended);
        let same = |one: Duration, other: Duration| one.abs_diff(other) <= SAME.max(other / 10);
        self.pause.is_some_and(|usual| same(pause, usual))
            || self.turn.is_some_and(|usual| same(at.since(waiting.started), usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: u128 = 7;

    fn ms(at: u64) -> Moment {
        Moment(at * 1_000_000)
    }

    struct Story(Tracks);

    impl Story {
        fn new() -> Self {
            Self(Tracks::new(8))
        }

        /// One attempt; whether it follows another.
        fn attempt(&mut self, from: u64, to: u64, retryable: bool) -> bool {
            let follows = self.0.begin(Fingerprint::test(PRINT), None, ms(from)).is_some();
            self.end(from, to, retryable);
            follows
        }

        fn end(&mut self, from: u64, to: u64, retryable: bool) {
            let waiting =
                Waiting { call: CallId(from), number: 1, started: ms(from), ended: ms(to), asked: None, retryable };
            self.0.finish(Fingerprint::test(PRINT), ms(to), retryable.then_some(waiting));
        }
    }

    #[test]
    fn a_failure_is_followed_once() {
        let mut story = Story::new();
        assert!(!story.attempt(0, 10, true));
        assert!(story.attempt(500, 510, true));
        assert!(story.attempt(1_500, 1_510, false));
        assert!(!story.attempt(2_000, 2_010, false), "nothing waits any more");
    }

    #[test]
    fn a_loop_goes_round() {
        let mut story = Story::new();
        for turn in 0..5 {
            assert!(!story.attempt(turn * 2_000, turn * 2_000 + 10, turn == 3), "turn {turn}");
        }
        assert!(!story.attempt(10_000, 10_010, true));
        assert!(story.attempt(10_500, 10_510, false), "sooner than the loop's next turn");
    }

    #[test]
    fn workers_go_on_with_their_next_turn() {
        let mut story = Story::new();
        let print = Fingerprint::test(PRINT);
        for _ in 0..4 {
            assert!(story.0.begin(print, None, ms(0)).is_none());
        }
        story.end(0, 10, true);
        assert!(story.0.begin(print, None, ms(11)).is_none(), "the worker's next turn");
        assert!(story.0.begin(print, None, ms(311)).is_some(), "after a wait");
    }

    #[test]
    fn windows_close() {
        let mut story = Story::new();
        story.attempt(0, 10, true);
        assert!(!story.attempt(30_011, 30_020, false));
        let asked = Waiting {
            call: CallId(1),
            number: 1,
            started: ms(0),
            ended: ms(0),
            asked: Some(Duration::from_secs(60)),
            retryable: true,
        };
        assert!(asked.is_open(ms(90_000)) && !asked.is_open(ms(90_001)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut tracks = Tracks::new(3);
        for number in 0..10 {
            let print = Fingerprint::test(number);
            tracks.begin(print, None, ms(0));
            for _ in 0..200 {
                let waiting =
                    Waiting { call: CallId(1), number: 1, started: ms(0), ended: ms(1), asked: None, retryable: true };
                tracks.finish(print, ms(1), Some(waiting));
            }
        }
        assert_eq!(tracks.tracks.len(), 3);
        assert!(tracks.tracks.iter().all(|(_, track)| track.waiting.len() <= MAX_WAITING) && tracks.forgotten > 7);
    }
}
