//! The rules' part in an HTTP/1 exchange: what they are shown of a request,
//! and what becomes of a message that they decide on.
use std::{
    future::Future,
    io,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    End, Pending, Shared, Stop,
    body::{self, Body, Progress},
    head::{self, Framing, Parsed},
    pass::{pass_pending, pass_pending_and_body},
    sent,
    side::{Departure, Presence},
    told,
    wire::{read_some, write_two},
};
use crate::{
    flow::{Content, Failure, MAX_CONTENT},
    proxy::{
        exchange::{Exchange, MAX_BODY_START, lock, stall},
        holds::Edit,
    },
    rules::{Abort, Phase, Ruling},
};

/// The most of a genuine body that is read only to be dropped.
pub(super) const MAX_SWALLOWED: u64 = 1 << 20;
/// How long a body is waited for that somebody wants to see whole.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// A ruling of the request phase.
pub(super) struct Told {
    ruling: Ruling,
    /// The client waits for `100 Continue`.
    expects: bool,
}

/// What becomes of a request.
#[derive(Default)]
pub(super) struct Asked {
    /// The client is told something in the upstream's place.
    pub(super) told: Option<Told>,
    /// A person wants the upstream asked something else.
    pub(super) edit: Option<Edit>,
}

/// Asks the rules of the request phase, and waits as long as they, or a
/// person, say before the upstream may see the request.
pub(super) async fn ask<R: AsyncRead + Presence + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    exchange: &mut Exchange,
    framing: Framing,
    expects: bool,
) -> Result<Asked, Stop> {
    // A client that waits for `100 Continue` sends no body yet.
    if exchange.wants_start() && !expects {
        let ahead = read_ahead(from, pending, framing, MAX_BODY_START).await;
        exchange.start(&body::content(framing, pending));
        ahead.stop.map_or(Ok(()), Err)?;
    }
    if exchange.wants_body(Phase::Request) {
        let content = if expects {
            Content::Beyond
        } else {
            let ahead = read_ahead(from, pending, framing, MAX_CONTENT).await;
            ahead.stop.map_or(Ok(()), Err)?;
            ahead
                .whole
                .map_or(Content::Beyond, |length| Content::Whole(body::content(framing, &pending[..length]).into()))
        };
        exchange.read(Phase::Request, content);
    }
    let mut ruling = exchange.ruling(Phase::Request);
    let told = |ruling: Option<Ruling>| {
        let ruling = ruling.filter(|ruling| ruling.reply.is_some() || ruling.abort.is_some());
        ruling.map(|ruling| Told { ruling, expects })
    };
    if let Some(Ruling { delay, reply: None, abort: None, .. }) = &ruling {
        wait(from, pending, exchange.delay(*delay)).await?;
    }
    let mut edit = None;
    if let Some(mut hold) = exchange.hold(Phase::Request, ruling.as_ref()) {
        let decision = tokio::select! {
            biased;
            decision = hold.decided() => decision,
            departure = from.departure() => return Err(match departure {
                Departure::Lost => Stop::Read(io::ErrorKind::ConnectionReset.into()),
                Departure::Closed => Stop::Eof,
            }),
        };
        (ruling, edit) = exchange.decided(Phase::Request, decision, ruling);
    }
    Ok(Asked { told: told(ruling), edit })
}

/// Waits for a rule's delay to be over.
async fn wait<R: AsyncRead + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    over: impl Future<Output = ()>,
) -> Result<(), Stop> {
    let mut over = pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return Ok(()),
            // A client that leaves meanwhile is noticed.
            read = read_some(from), if pending.is_empty() => match read {
                Ok(bytes) if bytes.is_empty() => return Err(Stop::Eof),
                Ok(bytes) => *pending = bytes,
                Err(error) => return Err(Stop::Read(error)),
            },
        }
    }
}

/// Holds a response that a person wants held; what rules would make of it is
/// what a person sees, and what becomes of it otherwise.
pub(super) async fn held<W: Presence>(
    to: &W,
    shared: &Shared,
    exchange: &Mutex<Exchange>,
    ruling: Option<Ruling>,
) -> Option<Ruling> {
    let Some(mut hold) = lock(exchange).hold(Phase::Response, ruling.as_ref()) else { return ruling };
    let decision = tokio::select! {
        biased;
        decision = hold.decided() => decision,
        _ = to.departure() => {
            // What has come may still pass.
            lock(exchange).left();
            return ruling;
        }
        () = gone(shared) => {
            lock(exchange).left();
            return ruling;
        }
    };
    lock(exchange).decided(Phase::Response, decision, ruling).0
}

/// What was read of a body before it was passed on.
pub(super) struct Ahead {
    /// How many of the pending bytes are the body, if it is there whole.
    pub(super) whole: Option<usize>,
    /// The side it comes from has ended or failed.
    pub(super) stop: Option<Stop>,
}

/// Reads a body into `pending` until it is whole, longer than `limit`, or
/// late.
pub(super) async fn read_ahead<R: AsyncRead + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    framing: Framing,
    limit: usize,
) -> Ahead {
    let mut body = Body::new(framing);
    let mut seen = 0;
    let mut late = pin!(tokio::time::sleep(BODY_PATIENCE));
    loop {
        if body.is_done() && seen == 0 {
            return Ahead { whole: Some(0), stop: None };
        }
        if seen < pending.len() || body.is_done() {
            match body.feed(&pending[seen..]) {
                Progress::Done(length) => return Ahead { whole: Some(seen + length), stop: None },
                Progress::More => seen = pending.len(),
                Progress::Broken => return Ahead { whole: None, stop: None },
            }
        }
        if pending.len() > limit {
            return Ahead { whole: None, stop: None };
        }
        let read = tokio::select! {
            read = read_some(from) => read,
            () = &mut late => return Ahead { whole: None, stop: None },
        };
        match read {
            Ok(bytes) if bytes.is_empty() => {
                let whole = body.ends_with_connection().then_some(seen);
                return Ahead { whole, stop: Some(Stop::Eof) };
            }
            Ok(bytes) => {
                let mut joined = BytesMut::with_capacity((pending.len() + bytes.len()).max(2 * pending.len()));
                joined.extend_from_slice(pending);
                joined.extend_from_slice(&bytes);
                *pending = joined.freeze();
            }
            Err(error) => return Ahead { whole: None, stop: Some(Stop::Read(error)) },
        }
    }
}

/// Takes in the body of a request that the upstream never sees.
pub(super) async fn swallow<R: AsyncRead + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    body: &mut Body,
    exchange: &Mutex<Exchange>,
    expects: bool,
) -> Result<(), Stop> {
    if expects && !body.is_done() && pending.is_empty() {
        match read_some(from).await {
            Ok(bytes) if bytes.is_empty() => return Err(Stop::Eof),
            Ok(bytes) => *pending = bytes,
            Err(error) => return Err(Stop::Read(error)),
        }
        // An answer in place of `100 Continue`: the client may keep its body
        // and go on with another request.
        let next = matches!(head::request(pending, &Arc::from("")), Parsed::Head(_));
        if next && lock(exchange).is_over() {
            return Ok(());
        }
    }
    let seen = |bytes: &[u8], over: Option<&[u8]>| sent(exchange, bytes, over);
    match pass_pending_and_body(from, &mut tokio::io::sink(), pending, body, seen).await? {
        true => Ok(()),
        // Where the next request begins cannot be told.
        false => Err(Stop::Break(End::Closed)),
    }
}

/// Waits for a rule's answer whose turn has come.
pub(super) async fn told(shared: &Shared) -> Pending {
    loop {
        let taken = shared.taken.notified();
        {
            let mut queue = shared.queue();
            if queue.is_told()
                && let Some(pending) = queue.pop()
            {
                return pending;
            }
        }
        taken.await;
    }
}

/// Waits until the client has nothing more to say.
pub(super) async fn gone(shared: &Shared) {
    loop {
        let taken = shared.taken.notified();
        if shared.queue().gone {
            return;
        }
        taken.await;
    }
}

/// Waits until the up half has taken the request's body in, or never will.
pub(super) async fn taken(shared: &Shared, exchange: &Mutex<Exchange>) {
    loop {
        let taken = shared.taken.notified();
        if lock(exchange).body_taken || shared.queue().gone {
            return;
        }
        taken.await;
    }
}

/// Answers in the upstream's place, or breaks off. `Err` where the connection
/// cannot go on.
pub(super) async fn tell<W: AsyncWrite + Unpin>(to: &mut W, shared: &Shared, pending: &Pending) -> Result<(), Stop> {
    let Pending { exchange, told: Some(Told { ruling, expects }), .. } = pending else { return Ok(()) };
    shared.taken.notify_waiters();
    let hold = lock(exchange).delay(ruling.delay);
    hold.await;
    let Some(reply) = &ruling.reply else {
        return match ruling.abort {
            Some(abort) => Err(break_off(abort, shared, exchange).await),
            None => Ok(()),
        };
    };
    if reply.continue_then {
        if *expects {
            write_two(to, b"HTTP/1.1 100 Continue\r\n\r\n", &[]).await.map_err(Stop::Write)?;
        }
        taken(shared, exchange).await;
    }
    let mut message = {
        let exchange = lock(exchange);
        told::answer(reply, exchange.request(), exchange.protocol())
    };
    let mut body = message.body.take().unwrap_or_default();
    if let Some(Abort::Truncate(after)) = ruling.abort {
        body.truncate(usize::try_from(after).unwrap_or(usize::MAX));
        message.closes = true;
    }
    {
        let mut exchange = lock(exchange);
        exchange.received(&body);
        // The client may ask again as soon as it has the answer.
        exchange.end(None);
    }
    write_two(to, &message.head, &body).await.map_err(Stop::Write)?;
    if message.closes { Err(Stop::Last) } else { Ok(()) }
}

/// How a rule's abort ends an HTTP/1 connection.
pub(super) async fn break_off(abort: Abort, shared: &Shared, exchange: &Mutex<Exchange>) -> Stop {
    let (end, failure) = match abort {
        Abort::Reset | Abort::RefusedStream | Abort::RstStream(_) => (End::Reset, Failure::Reset),
        Abort::Close | Abort::GoAway(_) | Abort::Truncate(_) => (End::Closed, Failure::Closed),
        Abort::TlsAlert => (End::Alert, Failure::Closed),
        Abort::Stall(time) => {
            tokio::select! {
                () = stall(time) => {}
                () = gone(shared) => {}
            }
            (End::Closed, Failure::TimedOut)
        }
    };
    lock(exchange).end(Some(failure));
    Stop::Break(end)
}

/// Takes the genuine body off an upstream whose client was told another; a
/// long or slow one is not waited for, and costs the connection.
pub(super) async fn drop_body<R: AsyncRead + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    body: &mut Body,
    ended_early: Option<Stop>,
) -> Result<bool, Stop> {
    if let Some(stop) = ended_early {
        return if body.ends_with_connection() { Err(stop) } else { Err(Stop::Last) };
    }
    let mut dropped = 0;
    let mut sink = tokio::io::sink();
    let whole = async {
        if !pass_pending(&mut sink, pending, body, |_, _| ()).await? {
            return Ok(false);
        }
        while !body.is_done() {
            let bytes = read_some(from).await.map_err(Stop::Read)?;
            if bytes.is_empty() {
                return Err(Stop::Eof);
            }
            dropped += bytes.len() as u64;
            *pending = bytes;
            if !pass_pending(&mut sink, pending, body, |_, _| ()).await? {
                return Ok(false);
            }
            if dropped > MAX_SWALLOWED {
                return Err(Stop::Last);
            }
        }
        Ok(true)
    };
    tokio::time::timeout(BODY_PATIENCE, whole).await.unwrap_or(Err(Stop::Last))
}

/// Passes a response, and breaks it off after so many bytes of its body as
/// they are on the wire. A shorter one passes whole.
pub(super) async fn pass_cut<R, W>(
    from: &mut R,
    to: &mut W,
    head: &[u8],
    pending: &mut Bytes,
    body: &mut Body,
    cut: u64,
    mut seen: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<bool, Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut left = usize::try_from(cut).unwrap_or(usize::MAX);
    write_two(to, head, &[]).await.map_err(Stop::Write)?;
    loop {
        let (length, done) = match body.feed(pending) {
            Progress::Done(length) => (length, true),
            Progress::More => (pending.len(), false),
            Progress::Broken => return Ok(false),
        };
        let part = pending.split_to(length.min(left));
        let whole = done && part.len() == length;
        seen(&part, body.over().filter(|_| whole));
        write_two(to, &part, &[]).await.map_err(Stop::Write)?;
        left -= part.len();
        if whole {
            return Ok(true);
        }
        if left == 0 {
            return Err(Stop::Last);
        }
        *pending = read_some(from).await.map_err(Stop::Read)?;
        if pending.is_empty() {
            return Err(Stop::Eof);
        }
    }
}
