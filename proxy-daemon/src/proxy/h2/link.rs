//! What the two connections of an HTTP/2 exchange tell each other beside their
//! streams: settings that are the peers' own affair, pings, and goodbyes.
//!
//! Invariants: a side is greeted only when the other has greeted us, and with
//! what that one has said; a ping is answered by whom it was meant for.
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::frame::{self, ACK, GOAWAY, Head, PING};

/// Pings that wait for their answers, each way; past it they are answered
/// here. Servers take far fewer for an attack.
const MAX_PINGS: usize = 256;
/// Frames that wait for room, each way.
const MAX_WAITING: usize = 64 * 1024;

const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }

    /// Settings of this side that the other is told as they are. All others
    /// are about one connection alone.
    fn passes_on(self, name: u16) -> bool {
        match self {
            Side::Client => name == MAX_HEADER_LIST_SIZE,
            Side::Upstream => {
                matches!(name, MAX_CONCURRENT_STREAMS | MAX_HEADER_LIST_SIZE | ENABLE_CONNECT_PROTOCOL)
            }
        }
    }
}

/// Names and values, as in a SETTINGS frame.
fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload
        .as_chunks::<6>()
        .0
        .iter()
        .map(|&[a, b, c, d, e, f]| (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
}

/// One side, as the other sees it.
#[derive(Debug, Default)]
struct End {
    /// What of its settings is passed on; `None` until it has said them.
    said: Option<Vec<(u16, u32)>>,
    /// Whole frames to be sent to it, after all that is on its way.
    waiting: BytesMut,
    /// Pings of the other side's that it has not answered.
    pings: VecDeque<[u8; 8]>,
    /// Why it goes: a GOAWAY's code and debug data.
    goodbye: Option<Bytes>,
    gone: bool,
    /// Its socket takes no more for now.
    blocked: bool,
    /// The task that sends to it.
    waker: Option<Waker>,
}

impl End {
    fn watch(&mut self, context: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
struct Both {
    client: End,
    upstream: End,
    /// The upstream has changed what it had said.
    changed: bool,
    /// Requests of the client's that are not on their way yet. Its goodbye
    /// comes after them.
    asking: usize,
}

impl Both {
    /// An upstream learns of its client's goodbye as it is, since that one
    /// names no stream.
    fn pass_goodbye(&mut self) {
        if self.asking > 0 {
            return;
        }
        if let Some(why) = self.client.goodbye.take() {
            self.upstream.waiting.extend_from_slice(&frame::frame(GOAWAY, 0, &[&[0; 4], &why[..]].concat()));
            self.upstream.wake();
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Upstream => &mut self.upstream,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Link {
    /// Used in one task; never waited for.
    both: Mutex<Both>,
    /// A side has been sent all that there was.
    settled: Notify,
}

impl Link {
    fn both(&self) -> MutexGuard<'_, Both> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a side's socket takes no more.
    pub(super) fn blocks(&self, side: Side, blocked: bool) {
        self.both().end(side).blocked = blocked;
        if !blocked {
            self.settled.notify_waiters();
        }
    }

    /// Waits until a side's socket has taken all that was there for it.
    pub(super) async fn settled(&self, side: Side) {
        loop {
            let settled = self.settled.notified();
            if !self.both().end(side).blocked {
                return;
            }
            settled.await;
        }
    }

    /// Whether a side can be greeted; if not, the task is woken when it can.
    pub(super) fn may_greet(&self, side: Side, context: &Context<'_>) -> bool {
        let mut both = self.both();
        both.end(side).watch(context);
        both.end(side.other()).said.is_some()
    }

    /// A side has said its settings.
    pub(super) fn has_said(&self, side: Side, payload: &[u8]) {
        let mut both = self.both();
        let before = both.end(side).said.take();
        let mut said = before.clone().unwrap_or_default();
        for (name, value) in settings(payload).filter(|&(name, _)| side.passes_on(name)) {
            match said.iter_mut().find(|known| known.0 == name) {
                Some(known) => known.1 = value,
                None => said.push((name, value)),
            }
        }
        both.changed |= side == Side::Upstream && before.is_some_and(|before| before != said);
        both.end(side).said = Some(said);
        both.end(side.other()).wake();
    }

    /// What the client was told of its upstream's settings is out of date.
    /// Told once.
    pub(super) fn has_changed(&self) -> bool {
        std::mem::take(&mut self.both().changed)
    }

    /// It could not be told yet.
    pub(super) fn still_changed(&self) {
        self.both().changed = true;
    }

    /// Has a side greeted with what is known of the other: something is to be
    /// said to it that the other has no part in. What is learned later is told
    /// later.
    pub(super) fn greet(&self, side: Side) {
        let mut both = self.both();
        if both.end(side.other()).said.is_none() {
            both.end(side.other()).said = Some(Vec::new());
            both.end(side).wake();
        }
    }

    /// Our settings for a side, with what the other has said in place of ours.
    pub(super) fn greeting(&self, side: Side, payload: &[u8]) -> Vec<u8> {
        let mut both = self.both();
        let other = side.other();
        let said = both.end(other).said.clone().unwrap_or_default();
        let ours = settings(payload).filter(|&(name, _)| !other.passes_on(name));
        let all: Vec<(u16, u32)> = ours.chain(said).collect();
        all.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
    }

    /// A ping has come from a side. False where it is ours to deal with.
    pub(super) fn pinged(&self, by: Side, head: Head, payload: [u8; 8]) -> bool {
        let mut both = self.both();
        if head.is_ack() {
            let pings = &mut both.end(by).pings;
            let Some(at) = pings.iter().position(|ping| *ping == payload) else { return false };
            pings.remove(at);
        } else {
            let end = both.end(by.other());
            if end.gone || end.pings.len() >= MAX_PINGS || end.waiting.len() >= MAX_WAITING {
                return false;
            }
            end.pings.push_back(payload);
        }
        let to = both.end(by.other());
        to.waiting.extend_from_slice(&frame::frame(PING, head.flags & ACK, &payload));
        to.wake();
        true
    }

    /// A side says goodbye. What it says of streams is about its own numbers.
    pub(super) fn said_goodbye(&self, side: Side, payload: &[u8]) {
        let Some((_, why)) = payload.split_at_checked(4) else { return };
        let mut both = self.both();
        both.end(side).goodbye = Some(Bytes::copy_from_slice(why));
        if both.upstream.waiting.len() < MAX_WAITING {
            both.pass_goodbye();
        }
    }

    /// A request has come from the client; it is on its way, or over, when
    /// what is returned is dropped.
    pub(super) fn asked(&self) -> Asking<'_> {
        self.both().asking += 1;
        Asking(self)
    }

    /// A goodbye of ours for the client, with the upstream's reason where that
    /// is what it passes on.
    pub(super) fn goodbye(&self, payload: &[u8]) -> Vec<u8> {
        let both = self.both();
        match (&both.upstream.goodbye, payload.split_at_checked(4)) {
            (Some(why), Some((last, ours))) if ours == [0; 4] || why.starts_with(ours) => [last, why].concat(),
            _ => payload.to_vec(),
        }
    }

    /// Whole frames that are to be sent to a side now; the task is woken when
    /// there are more.
    pub(super) fn take_waiting(&self, side: Side, context: &Context<'_>) -> BytesMut {
        let mut both = self.both();
        let end = both.end(side);
        end.watch(context);
        std::mem::take(&mut end.waiting)
    }

    /// The upstream is there no more: nothing is waited for from it.
    pub(super) fn upstream_has_gone(&self) {
        let mut both = self.both();
        both.upstream.gone = true;
        drop(both);
        self.greet(Side::Client);
    }
}

/// A request that is not on its way yet.
#[derive(Debug)]
pub(super) struct Asking<'l>(&'l Link);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut both = self.0.both();
        both.asking -= 1;
        both.pass_goodbye();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(all: &[(u16, u32)]) -> Vec<u8> {
        all.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
    }

    fn may_greet(link: &Link, side: Side) -> bool {
        link.may_greet(side, &Context::from_waker(Waker::noop()))
    }

    fn take_waiting(link: &Link, side: Side) -> BytesMut {
        link.take_waiting(side, &Context::from_waker(Waker::noop()))
    }

    fn ping(flags: u8) -> Head {
        Head { length: 8, kind: PING, flags, stream: 0 }
    }

    #[test]
    fn a_side_is_told_what_the_other_has_said() {
        let link = Link::default();
        assert!(!may_greet(&link, Side::Client));
        link.has_said(Side::Upstream, &payload(&[(1, 0), (3, 7), (4, 99), (6, 1000)]));
        assert!(may_greet(&link, Side::Client) && !may_greet(&link, Side::Upstream));
        let told = link.greeting(Side::Client, &payload(&[(4, 5), (8, 1), (3, 1)]));
        assert_eq!(settings(&told).collect::<Vec<_>>(), [(4, 5), (3, 7), (6, 1000)]);
        assert!(!link.has_changed());
        link.has_said(Side::Upstream, &payload(&[(3, 8), (8, 1)]));
        assert!(link.has_changed() && !link.has_changed());
        let told = link.greeting(Side::Client, &payload(&[(4, 5)]));
        assert_eq!(settings(&told).collect::<Vec<_>>(), [(4, 5), (3, 8), (6, 1000), (8, 1)]);
        link.has_said(Side::Client, &payload(&[(2, 1), (3, 100), (6, 10)]));
        let told = link.greeting(Side::Upstream, &payload(&[(2, 0), (4, 5)]));
        assert_eq!(settings(&told).collect::<Vec<_>>(), [(2, 0), (4, 5), (6, 10)]);
    }

    #[test]
    fn a_ping_is_answered_by_whom_it_was_meant_for() {
        let link = Link::default();
        assert!(link.pinged(Side::Client, ping(0), [1; 8]));
        assert_eq!(take_waiting(&link, Side::Upstream)[..], frame::frame(PING, 0, &[1; 8]));
        // One of our own, as a graceful end asks for.
        assert!(!link.pinged(Side::Client, ping(ACK), [1; 8]));
        assert!(!link.pinged(Side::Upstream, ping(ACK), [2; 8]));
        assert!(link.pinged(Side::Upstream, ping(ACK), [1; 8]));
        assert_eq!(take_waiting(&link, Side::Client)[..], frame::frame(PING, ACK, &[1; 8]));
        assert!(!link.pinged(Side::Upstream, ping(ACK), [1; 8]));
    }

    #[test]
    fn pings_are_bounded() {
        let link = Link::default();
        for _ in 0..MAX_PINGS {
            assert!(link.pinged(Side::Client, ping(0), [1; 8]));
        }
        assert!(!link.pinged(Side::Client, ping(0), [1; 8]));
        link.upstream_has_gone();
        assert!(may_greet(&link, Side::Client));
    }

    #[test]
    fn what_is_learned_later_is_told_later() {
        let link = Link::default();
        link.greet(Side::Client);
        assert!(may_greet(&link, Side::Client) && !link.has_changed());
        link.has_said(Side::Upstream, &payload(&[(4, 1)]));
        assert!(!link.has_changed());
        link.has_said(Side::Upstream, &payload(&[(3, 1)]));
        link.greet(Side::Client);
        assert!(link.has_changed());
    }

    #[test]
    fn a_goodbye_keeps_its_reason() {
        let link = Link::default();
        let ours = |code: u32| [&[0, 0, 0, 9][..], &code.to_be_bytes()].concat();
        assert_eq!(link.goodbye(&ours(0)), ours(0));
        link.said_goodbye(Side::Upstream, b"\0\0\0\x01\0\0\0\x0btoo_many_pings");
        assert_eq!(link.goodbye(&ours(0)), b"\0\0\0\x09\0\0\0\x0btoo_many_pings");
        assert_eq!(link.goodbye(&ours(11)), b"\0\0\0\x09\0\0\0\x0btoo_many_pings");
        // A rule's.
        assert_eq!(link.goodbye(&ours(2)), ours(2));
        let asked = link.asked();
        link.said_goodbye(Side::Client, b"\0\0\0\x01\0\0\0\x02why");
        assert!(take_waiting(&link, Side::Upstream).is_empty());
        drop(asked);
        assert_eq!(take_waiting(&link, Side::Upstream)[..], frame::frame(GOAWAY, 0, b"\0\0\0\0\0\0\0\x02why"));
        link.said_goodbye(Side::Client, b"");
    }
}
