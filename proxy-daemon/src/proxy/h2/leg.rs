//! One connection of an HTTP/2 exchange as `h2` reads and writes it. What is
//! between the two ends, and not ours, is taken out or put in on the way:
//! pings, goodbyes, and the settings that a side is told of the other
//! ([`Link`]).
//!
//! In: the frames of a peer, and those that `h2` sends to it. Out: the same
//! without what has passed beside `h2`. A connection that has said all there
//! is holds no buffer.
use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frame::{self, GOAWAY, HEAD, Head, PING_FRAME, Place, SETTINGS},
    link::{Link, Side},
};

/// The longest SETTINGS and GOAWAY that are looked into.
const MAX_GATHERED: usize = 16 * 1024;
/// What `h2` may have sent to a side that is not greeted yet.
const MAX_HELD: usize = 64 * 1024;
/// Less room than this is not read into directly.
const LITTLE: usize = 64;

#[derive(Debug)]
pub(super) struct Leg<'l, S> {
    stream: S,
    side: Side,
    link: &'l Link,
    coming: Coming,
    going: Going,
}

/// What is read.
#[derive(Debug)]
struct Coming {
    place: Place,
    /// The start of a frame of which more must come before it can be told
    /// whether it passes: less than a PING.
    start: [u8; PING_FRAME],
    started: usize,
    /// A frame that is looked into while it passes: its head, and its payload
    /// so far.
    gathered: Option<(Head, Vec<u8>)>,
    /// Ready for `h2`, which had no room for it.
    ready: VecDeque<u8>,
}

/// What is written.
#[derive(Debug)]
struct Going {
    place: Place,
    /// Frames of `h2`'s that are changed, or may not go yet.
    part: BytesMut,
    held: Vec<BytesMut>,
    /// To be sent before anything else.
    queue: BytesMut,
    greeted: bool,
    /// The socket takes no more for now.
    blocked: bool,
}

impl<'l, S> Leg<'l, S> {
    pub(super) fn new(stream: S, side: Side, link: &'l Link) -> Self {
        // The preface is the client's to send, and ours to the upstream.
        let (coming, going) = match side {
            Side::Client => (Place::before_preface(), Place::default()),
            Side::Upstream => (Place::default(), Place::before_preface()),
        };
        Self {
            stream,
            side,
            link,
            coming: Coming {
                place: coming,
                start: [0; PING_FRAME],
                started: 0,
                gathered: None,
                ready: VecDeque::new(),
            },
            going: Going {
                place: going,
                part: BytesMut::new(),
                held: Vec::new(),
                queue: BytesMut::new(),
                greeted: false,
                blocked: false,
            },
        }
    }

    /// Goes through bytes that have come. What passes is moved to their
    /// start; tells how much that is.
    fn sift(&mut self, bytes: &mut [u8]) -> usize {
        let Coming { place, start, started, gathered, .. } = &mut self.coming;
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let passing = if place.left() > 0 {
                let here = place.left().min(rest.len());
                if let Some((_, payload)) = gathered {
                    payload.extend_from_slice(&rest[..here]);
                }
                place.pass(&rest[..here]);
                here
            } else {
                let head = Head::parse(rest);
                let ping = head.is_some_and(Head::is_ping);
                if head.is_none() || (ping && rest.len() < PING_FRAME) {
                    start[..rest.len()].copy_from_slice(rest);
                    *started = rest.len();
                    return kept;
                }
                let (Some(head), Some((_, payload))) = (head, rest.split_at_checked(HEAD)) else { return kept };
                if ping
                    && let Some(payload) = payload.first_chunk()
                    && self.link.pinged(self.side, head, *payload)
                {
                    at += PING_FRAME;
                    continue;
                }
                let gathers = (head.kind == SETTINGS && !head.is_ack()) || head.kind == GOAWAY;
                *gathered = (gathers && head.length <= MAX_GATHERED).then(|| (head, Vec::new()));
                place.begin(head);
                HEAD
            };
            if place.left() == 0
                && let Some((head, payload)) = gathered.take()
            {
                match head.kind {
                    SETTINGS => self.link.has_said(self.side, &payload),
                    _ => self.link.said_goodbye(self.side, &payload),
                }
            }
            bytes.copy_within(at..at + passing, kept);
            at += passing;
            kept += passing;
        }
        kept
    }

    /// A whole frame of `h2`'s, or its preface, on its way.
    fn queue(&mut self, mut part: BytesMut) {
        let going = &mut self.going;
        if !going.greeted {
            return going.held.push(part);
        }
        match Head::parse(&part) {
            Some(head) if head.kind == SETTINGS && !head.is_ack() => {
                let told = self.link.greeting(self.side, &part.split_off(HEAD));
                going.queue.extend_from_slice(&frame::frame(SETTINGS, head.flags, &told));
            }
            Some(head) if head.kind == GOAWAY && self.side == Side::Client => {
                let told = self.link.goodbye(&part.split_off(HEAD));
                going.queue.extend_from_slice(&frame::frame(GOAWAY, head.flags, &told));
            }
            _ => going.queue.unsplit(part),
        }
    }

    /// Whether a frame of `h2`'s is changed on its way.
    fn changes(&self, head: Head) -> bool {
        (head.kind == SETTINGS && !head.is_ack()) || (head.kind == GOAWAY && self.side == Side::Client)
    }

    /// How many of the bytes go as they are, before something that does not.
    fn plain(&self, parts: &[io::IoSlice<'_>]) -> usize {
        let going = &self.going;
        if !going.greeted || !going.part.is_empty() {
            return 0;
        }
        let (mut place, mut plain) = (going.place, 0);
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                let here = match Head::parse(rest) {
                    Some(head) if place.is_at_head() => {
                        if self.changes(head) {
                            return plain;
                        }
                        HEAD
                    }
                    _ if place.left() > 0 => place.left().min(rest.len()),
                    _ => 1,
                };
                place.pass(&rest[..here]);
                plain += here;
                rest = &rest[here..];
            }
        }
        plain
    }

    /// Takes in a frame of `h2`'s that does not go as it is.
    fn take_in(&mut self, parts: &[io::IoSlice<'_>]) -> usize {
        let mut taken = 0;
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                let going = &mut self.going;
                // The rest of a payload, or else of a head.
                let wanted = match going.place.left() {
                    0 => HEAD - going.part.len().min(HEAD - 1),
                    left => left,
                };
                let here = wanted.min(rest.len());
                going.part.extend_from_slice(&rest[..here]);
                going.place.pass(&rest[..here]);
                taken += here;
                rest = &rest[here..];
                if going.place.is_at_head() && !going.part.is_empty() {
                    let whole = std::mem::take(&mut going.part);
                    self.queue(whole);
                    if self.going.greeted {
                        return taken;
                    }
                }
            }
        }
        taken
    }

    /// Notes what became of a write, or a flush.
    fn noted<T>(&mut self, done: Poll<T>, all_sent: bool) -> Poll<T> {
        let blocked = done.is_pending() || (self.going.blocked && !all_sent);
        if blocked != self.going.blocked {
            self.going.blocked = blocked;
            self.link.blocks(self.side, blocked);
        }
        done
    }

    fn held(&self) -> usize {
        self.going.held.iter().map(BytesMut::len).sum::<usize>() + self.going.part.len()
    }
}

impl<S: AsyncWrite + Unpin> Leg<'_, S> {
    /// Sends what is to be sent before anything of `h2`'s that is still to
    /// come; and, where `h2` has sent all it had, what the other side has left:
    /// that must not overtake what came before it.
    fn poll_queue(&mut self, context: &mut Context<'_>, all_sent: bool) -> Poll<io::Result<()>> {
        if !self.going.greeted {
            if !self.link.may_greet(self.side, context) {
                return Poll::Ready(Ok(()));
            }
            self.going.greeted = true;
            for part in std::mem::take(&mut self.going.held) {
                self.queue(part);
            }
        }
        if !all_sent && self.going.queue.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut sent = false;
        loop {
            let between = self.going.place.is_between_frames() && self.going.part.is_empty();
            if all_sent && between && self.going.queue.is_empty() {
                self.going.queue = self.link.take_waiting(self.side, context);
            }
            if self.going.queue.is_empty() {
                break;
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.going.queue))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.going.queue.advance(written);
            sent = true;
        }
        self.going.queue = BytesMut::new();
        if sent { Pin::new(&mut self.stream).poll_flush(context) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Leg<'_, S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        // A greeting may have become due while `h2` has nothing to send. What
        // fails is met by whoever sends next.
        let _ = me.poll_queue(context, false);
        loop {
            if !me.coming.ready.is_empty() {
                let (ready, _) = me.coming.ready.as_slices();
                let here = ready.len().min(buffer.remaining());
                buffer.put_slice(&ready[..here]);
                me.coming.ready.drain(..here);
                if me.coming.ready.is_empty() {
                    me.coming.ready = VecDeque::new();
                }
                return Poll::Ready(Ok(()));
            }
            let started = me.coming.started;
            if buffer.remaining() < LITTLE {
                let mut space = [MaybeUninit::uninit(); PING_FRAME + LITTLE];
                let mut little = ReadBuf::uninit(&mut space);
                little.put_slice(&me.coming.start[..started]);
                ready!(Pin::new(&mut me.stream).poll_read(context, &mut little))?;
                let ended = little.filled().len() == started;
                me.coming.started = 0;
                let kept = if ended { started } else { me.sift(little.filled_mut()) };
                me.coming.ready.extend(&little.filled()[..kept]);
                if ended && kept == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let from = buffer.filled().len();
            buffer.put_slice(&me.coming.start[..started]);
            let read = Pin::new(&mut me.stream).poll_read(context, buffer);
            if !matches!(read, Poll::Ready(Ok(()))) {
                buffer.set_filled(from);
                return read;
            }
            me.coming.started = 0;
            if buffer.filled().len() == from + started {
                // The end, perhaps within a frame.
                return Poll::Ready(Ok(()));
            }
            let kept = me.sift(&mut buffer.filled_mut()[from..]);
            buffer.set_filled(from + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Leg<'_, S> {
    fn poll_parts(&mut self, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_queue(context, false))?;
        if !self.going.greeted && self.held() >= MAX_HELD {
            return Poll::Pending;
        }
        let plain = self.plain(parts);
        if plain == 0 {
            return Poll::Ready(Ok(self.take_in(parts)));
        }
        let whole: usize = parts.iter().map(|part| part.len()).sum();
        let written = if plain == whole {
            ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?
        } else {
            let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
            ready!(Pin::new(&mut self.stream).poll_write(context, &first[..first.len().min(plain)]))?
        };
        let mut left = written;
        for part in parts {
            let here = left.min(part.len());
            self.going.place.pass(&part[..here]);
            left -= here;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_all(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_queue(context, true))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Leg<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let done = me.poll_parts(context, parts);
        me.noted(done, false)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let done = me.poll_all(context);
        me.noted(done, true)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.side == Side::Client {
            // What ends the connection may be ours, and its goodbye with it.
            me.link.greet(me.side);
        }
        ready!(me.poll_all(context))?;
        Pin::new(&mut me.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{
        super::frame::{ACK, HEADERS, PING, frame},
        *,
    };

    /// What a client of these frames says, and what of it is `h2`'s to see.
    fn said(kinds: &[(u8, usize)]) -> (Vec<u8>, Vec<u8>, usize) {
        let (mut all, mut passes, mut pings) = (vec![b'p'; frame::PREFACE], vec![b'p'; frame::PREFACE], 0);
        for &(kind, length) in kinds {
            let part = match kind {
                // Answers to pings that nobody asked.
                0 => frame(PING, ACK, &[7; 8]),
                1 => frame(SETTINGS, 0, &[0, 6, 0, 0, 1, 0].repeat(length % 4)),
                2 => frame(GOAWAY, 0, &[0; 9]),
                3 => frame(PING, 0, &[1; 8]),
                // With the flag that ends a block.
                _ => frame(HEADERS, 4, &vec![3; length]),
            };
            all.extend_from_slice(&part);
            if kind == 3 {
                pings += 1;
            } else {
                passes.extend_from_slice(&part);
            }
        }
        (all, passes, pings)
    }

    proptest! {
        /// However the bytes are cut, and however little is read at once.
        #[test]
        fn all_passes_but_what_is_taken_out(
            kinds in proptest::collection::vec((0_u8..6, 0_usize..200), 0..30),
            cut in 1_usize..50,
            room in 1_usize..200,
        ) {
            let (all, passes, pings) = said(&kinds);
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (came, waiting) = runtime.block_on(async {
                let link = Link::default();
                let (mut peer, ours) = tokio::io::duplex(cut);
                let mut leg = Leg::new(ours, Side::Client, &link);
                let saying = async {
                    peer.write_all(&all).await.expect("room");
                    peer.shutdown().await.expect("an end");
                };
                let hearing = async {
                    let mut came = Vec::new();
                    loop {
                        let mut space = vec![0; room];
                        match leg.read(&mut space).await.expect("no failure") {
                            0 => return came,
                            read => came.extend_from_slice(&space[..read]),
                        }
                    }
                };
                let ((), came) = tokio::join!(saying, hearing);
                (came, link.take_waiting(Side::Upstream, &Context::from_waker(std::task::Waker::noop())))
            });
            prop_assert_eq!(came, passes);
            let passed_on = waiting.windows(PING_FRAME).filter(|part| **part == frame(PING, 0, &[1; 8])).count();
            prop_assert_eq!(passed_on, pings);
        }

        /// What `h2` sends goes as it is, but for its settings, and not before
        /// the other side is known.
        #[test]
        fn all_goes_but_what_is_changed(
            lengths in proptest::collection::vec(0_usize..400, 0..20),
            cut in 1_usize..50,
            early in 0_usize..20,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let first = frame(SETTINGS, 0, &[0, 4, 0, 0, 0, 9, 0, 8, 0, 0, 0, 1]);
            let rest: Vec<Vec<u8>> = lengths.iter().map(|&length| frame(0, 0, &vec![5; length])).collect();
            let told = frame(SETTINGS, 0, &[0, 4, 0, 0, 0, 9, 0, 3, 0, 0, 0, 7]);
            let expected = [told, rest.concat()].concat();
            let came = runtime.block_on(async {
                let link = Link::default();
                let (mut peer, ours) = tokio::io::duplex(cut);
                let mut leg = Leg::new(ours, Side::Client, &link);
                let sending = async {
                    leg.write_all(&first).await.expect("held");
                    for (at, part) in rest.iter().enumerate() {
                        if at == early {
                            link.has_said(Side::Upstream, &[0, 3, 0, 0, 0, 7]);
                        }
                        leg.write_all(part).await.expect("held, or sent");
                        leg.flush().await.expect("held, or sent");
                    }
                    if early >= rest.len() {
                        link.has_said(Side::Upstream, &[0, 3, 0, 0, 0, 7]);
                    }
                    leg.flush().await.expect("sent");
                    leg.shutdown().await.expect("an end");
                };
                let hearing = async {
                    let mut came = Vec::new();
                    peer.read_to_end(&mut came).await.expect("no failure");
                    came
                };
                tokio::join!(sending, hearing).1
            });
            prop_assert_eq!(came, expected);
        }
    }
}
