//! The down half: responses on their way to the client, each taken off the
//! queue of those that are awaited.
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    Pending, Shared, Stop,
    body::{self, Body, Progress},
    fail,
    head::{self, Framing, Parsed, ResponseHead},
    pass::{goodbye, opaque, pass_pending_and_body},
    ruled::{Ahead, MAX_SWALLOWED, break_off, drop_body, held, pass_cut, read_ahead, tell, told},
    side::Presence,
    told, turn_opaque,
    wire::{read_head, write_two},
};
use crate::{
    flow::{Content, Failure, MAX_CONTENT},
    proxy::{
        exchange::{Exchange, lock},
        failure,
    },
    rules::{Abort, Phase},
};

/// Passes responses to the client until the upstream has no more, then says
/// goodbye.
pub(super) async fn down<R, W>(from: &mut R, to: &mut W, shared: &Shared) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Presence + Unpin,
{
    let stop = responses(from, to, shared).await;
    goodbye(to, stop).await
}

pub(super) async fn responses<R, W>(from: &mut R, to: &mut W, shared: &Shared) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Presence + Unpin,
{
    let mut pending = Bytes::new();
    loop {
        let read = tokio::select! {
            biased;
            told = told(shared) => {
                let done = tell(to, shared, &told).await;
                shared.queue().answering = None;
                shared.taken.notify_waiters();
                match done {
                    Ok(()) => continue,
                    Err(stop) => return stop,
                }
            }
            read = read_head(from, &mut pending, head::response) => read,
        };
        let head = match read {
            Ok(Some(Parsed::Head(head))) => head,
            Ok(Some(_)) => {
                // Not a response we understand: no attempt can be told apart
                // from here on.
                if let Some(response) = head::cut_response(&pending)
                    && let Some(Pending { exchange, .. }) = shared.queue().take()
                {
                    let mut exchange = lock(&exchange);
                    exchange.responded(response);
                    exchange.unread = true;
                    exchange.end(None);
                }
                fail(shared, Failure::Protocol);
                turn_opaque(shared);
                return opaque(from, to, pending).await;
            }
            Ok(None) => return Stop::Eof,
            Err(error) => {
                // What came of a head is the client's to see.
                if !pending.is_empty() && to.write_all(&pending).await.is_ok() {
                    let _ = to.flush().await;
                }
                return Stop::Read(error);
            }
        };
        let interim = head.response.status < 200 && head.response.status != 101;
        let next = if interim { None } else { shared.queue().take() };
        let Some(Pending { exchange, leaves_http, .. }) = next else {
            // An interim response, or one that nobody asked for (a server
            // that closes an idle connection may say 408 first).
            let framing = head.framing("GET");
            let head = pending.split_to(head.length);
            if let Err(error) = write_two(to, &head, &[]).await {
                return Stop::Write(error);
            }
            if !interim {
                let mut body = Body::new(framing);
                match pass_pending_and_body(from, to, &mut pending, &mut body, |_, _| ()).await {
                    Ok(true) => {}
                    Ok(false) => {
                        turn_opaque(shared);
                        return opaque(from, to, pending).await;
                    }
                    Err(stop) => return stop,
                }
            }
            continue;
        };
        shared.taken.notify_waiters();
        let answered = answer(from, to, shared, &mut pending, head, &exchange, leaves_http).await;
        shared.queue().answering = None;
        shared.taken.notify_waiters();
        if let Err(stop) = answered {
            return stop;
        }
    }
}

/// Passes one final response. `Err` where the connection cannot go on.
pub(super) async fn answer<R, W>(
    from: &mut R,
    to: &mut W,
    shared: &Shared,
    pending: &mut Bytes,
    head: ResponseHead,
    exchange: &Arc<Mutex<Exchange>>,
    leaves_http: bool,
) -> Result<(), Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Presence + Unpin,
{
    let method = Arc::clone(lock(exchange).method());
    let framing = head.framing(&method);
    let status = head.response.status;
    let ResponseHead { length, response, .. } = head;
    let reason = response.reason.clone();
    let bytes = pending.split_to(length);
    let leaves = leaves_http && (status == 101 || (&*method == "CONNECT" && (200..300).contains(&status)));
    let wants_body = {
        let mut exchange = lock(exchange);
        exchange.responded(response);
        exchange.wants_body(Phase::Response)
    };
    // How the upstream has ended, where that was met too early.
    let mut ended_early = None;
    if wants_body {
        let ahead = if leaves {
            Ahead { whole: None, stop: None }
        } else {
            read_ahead(from, pending, framing, MAX_CONTENT).await
        };
        let content = ahead
            .whole
            .map_or(Content::Beyond, |length| Content::Whole(body::content(framing, &pending[..length]).into()));
        lock(exchange).read(Phase::Response, content);
        ended_early = ahead.stop;
    }
    let mut ruling = lock(exchange).ruling(Phase::Response);
    if let Some(ruling) = &mut ruling {
        let delay = lock(exchange).delay(std::mem::take(&mut ruling.delay));
        delay.await;
    }
    let ruling = held(to, shared, exchange, ruling).await;

    let meddled = ruling.as_ref().is_some_and(|ruling| ruling.reply.is_some() || ruling.abort.is_some());
    if leaves_http && (!leaves || meddled) {
        shared.queue().upgrade = Some(false);
        shared.taken.notify_waiters();
    }
    let mut body = Body::new(framing);
    let (mut told, mut cut) = (None, None);
    if let Some(ruling) = &ruling {
        cut = match ruling.abort {
            Some(Abort::Truncate(after)) => Some(after),
            Some(abort) => return Err(break_off(abort, shared, exchange).await),
            None => None,
        };
        // What is long or endless is not waited for.
        let long = match framing {
            Framing::None => false,
            Framing::Length(length) => length > MAX_SWALLOWED,
            Framing::Chunked => false,
            Framing::UntilClose => true,
        };
        told = ruling.reply.as_ref().map(|reply| {
            let genuine = told::Genuine { head: &bytes, status, reason: &reason, framing, method: &method, leaves };
            told::otherwise(genuine, reply, reply.body.is_some() && long)
        });
    }

    if leaves {
        let (head, body) =
            told.as_ref().map_or((&bytes[..], &[][..]), |told| (&told.head, told.body.as_deref().unwrap_or_default()));
        let written = write_two(to, head, body).await;
        lock(exchange).end(written.as_ref().err().map(|_| Failure::Cancelled));
        written.map_err(Stop::Write)?;
        if told.is_some() {
            // The client was told that nothing changed; the upstream believes
            // otherwise. They cannot go on together.
            return Err(Stop::Finish);
        }
        {
            let mut queue = shared.queue();
            queue.opaque = true;
            queue.upgrade = Some(true);
        }
        shared.taken.notify_waiters();
        return Err(opaque(from, to, std::mem::take(pending)).await);
    }

    // The attempt ends before its last byte is on its way: the client may ask
    // again as soon as it has that.
    let received = |bytes: &[u8], over: Option<&[u8]>| {
        let mut exchange = lock(exchange);
        exchange.received(bytes);
        if let Some(trailers) = over {
            if !trailers.is_empty() {
                exchange.trailed(body::trailers(trailers));
            }
            exchange.end(None);
        }
    };
    let head = told.as_ref().map_or(&bytes[..], |told| &told.head);
    let outcome = if let Some(replaced) = told.as_ref().and_then(|told| told.body.as_ref()) {
        let cut = cut.map_or(usize::MAX, |cut| usize::try_from(cut).unwrap_or(usize::MAX));
        let cutting = cut < replaced.len();
        let replaced = replaced.slice(..replaced.len().min(cut));
        {
            let mut exchange = lock(exchange);
            exchange.received(&replaced);
            exchange.end(None);
        }
        match write_two(to, head, &replaced).await {
            Ok(()) if cutting || told.as_ref().is_some_and(|told| told.closes) => Err(Stop::Last),
            Ok(()) => drop_body(from, pending, &mut body, ended_early).await,
            Err(error) => Err(Stop::Write(error)),
        }
    } else if let Some(cut) = cut {
        pass_cut(from, to, head, pending, &mut body, cut, received).await
    } else {
        let (first, broken) = match body.feed(pending) {
            Progress::Done(length) => (length, false),
            Progress::More => (pending.len(), false),
            Progress::Broken => (pending.len(), true),
        };
        let first = pending.split_to(first);
        received(&first, body.over());
        match (write_two(to, head, &first).await, ended_early) {
            (Ok(()), _) if broken => Ok(false),
            (Ok(()), Some(stop)) if !body.is_done() => Err(stop),
            (Ok(()), _) => pass_pending_and_body(from, to, pending, &mut body, received).await,
            (Err(error), _) => Err(Stop::Write(error)),
        }
    };
    let closes = told.as_ref().is_some_and(|told| told.closes);
    match outcome {
        Ok(true) => {
            lock(exchange).end(None);
            if closes { Err(Stop::Last) } else { Ok(()) }
        }
        Ok(false) => {
            lock(exchange).end(Some(Failure::Protocol));
            turn_opaque(shared);
            Err(opaque(from, to, std::mem::take(pending)).await)
        }
        // Many servers end such a body without a TLS goodbye.
        Err(stop) if body.ends_with_connection() && ended(&stop) => {
            lock(exchange).end(None);
            Err(stop)
        }
        Err(stop) => {
            lock(exchange).end(Some(match &stop {
                Stop::Eof => Failure::Closed,
                Stop::Read(error) => failure::of(error),
                Stop::Last => Failure::Closed,
                Stop::Write(_) | Stop::Finish | Stop::Break(_) => Failure::Cancelled,
            }));
            Err(stop)
        }
    }
}

pub(super) fn ended(stop: &Stop) -> bool {
    match stop {
        Stop::Eof => true,
        Stop::Read(error) => failure::of(error) == Failure::Closed,
        Stop::Write(_) | Stop::Finish | Stop::Last | Stop::Break(_) => false,
    }
}
