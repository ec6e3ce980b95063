//! The HTTP/1 exchange: two halves that pass bytes as they came and watch
//! where messages begin and end.
//!
//! In: both TLS streams after their handshakes. Out: the same bytes on the
//! other side, but for responses that a rule rewrites; one [`Exchange`] per
//! request. The *up* half reads requests and queues their exchanges; the
//! *down* half reads responses and takes them off in order, so pipelining,
//! early responses and every 1xx pass as they happen. What is not understood
//! (upgrades, other protocols, framing in doubt) passes opaquely.
//!
//! No buffer is held while a connection is idle.
mod body;
mod head;
mod wire;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, watch},
};

use self::{
    body::{Body, Progress},
    head::{Framing, Parsed, RequestHead, ResponseHead},
    wire::{read_head, read_some, write_two},
};
use super::{
    exchange::{Account, Exchange, Peer, RULE_HEADER, belies, lock},
    failure,
};
pub(in crate::proxy) use head::intern;

use crate::{flow::Failure, rules::Decision};

/// One read while a body streams. A TLS record holds 16 KiB at most.
const BODY_BUFFER: usize = 64 * 1024;
/// Requests a client may have under way at once; past it the client's next
/// one is not read until an answer has passed. Servers allow far fewer.
const MAX_PIPELINED: usize = 1024;
/// How long one side is heard after the other has closed: what a direct
/// connection's kernel grants a closed socket (`tcp_fin_timeout`).
const AFTER_CLOSE: Duration = Duration::from_secs(60);

/// How an exchange came to its end; the caller shows it on both sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides said goodbye, or it makes no difference any more.
    Closed,
    /// The upstream vanished without its TLS goodbye: neither says one.
    Cut,
    /// One side was reset: so is the other.
    Reset,
}

/// What the two halves share. Both live in one task, so the lock is never
/// waited for.
struct Shared {
    queue: Mutex<Queue>,
    /// The down half has taken an exchange, finished one, or decided on an
    /// upgrade.
    taken: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Pending>,
    /// The exchange whose final response is passing.
    answering: Option<Arc<Mutex<Exchange>>>,
    /// From here on bytes pass without being understood.
    opaque: bool,
    /// Decided by the down half: the upgrade that the up half waits for was
    /// accepted or not.
    upgrade: Option<bool>,
}

struct Pending {
    exchange: Arc<Mutex<Exchange>>,
    leaves_http: bool,
}

impl Queue {
    fn take(&mut self) -> Option<Pending> {
        let next = self.waiting.pop_front();
        self.answering = next.as_ref().map(|next| Arc::clone(&next.exchange));
        next
    }

    /// Nothing is outstanding that a close could cut.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.answering.is_none() && !self.opaque
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a half stopped.
enum Stop {
    /// The side it reads from ended cleanly.
    Eof,
    /// The side it reads from failed.
    Read(io::Error),
    /// The side it writes to failed.
    Write(io::Error),
    /// The client's connection must end after what was sent (a refused
    /// upgrade, a drain).
    Finish,
}

/// Serves one intercepted connection until it ends.
pub(super) async fn serve<C, U>(
    client: &mut C,
    upstream: &mut U,
    account: &Arc<Account>,
    peer: &Peer,
    drain: watch::Receiver<bool>,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared { queue: Mutex::default(), taken: Notify::new() };
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);

    let up = up(&mut client_read, &mut upstream_write, &shared, account, peer);
    let down = down(&mut upstream_read, &mut client_write, &shared);
    tokio::pin!(up, down);
    let mut draining = std::pin::pin!(drained(drain, &shared));

    let first = tokio::select! {
        stop = &mut up => Ok(stop),
        stop = &mut down => Err(stop),
        () = &mut draining => Err(Stop::Finish),
    };
    match first {
        // The client has finished sending.
        Ok(Stop::Eof | Stop::Finish) => {
            let (idle, opaque) = {
                let queue = shared.queue();
                (queue.is_idle(), queue.opaque)
            };
            if idle {
                End::Closed
            } else if opaque {
                let stop = down.await;
                down_end(&stop, &shared)
            } else {
                // It waits for nothing any more, and may be asking again
                // elsewhere by now.
                abandon(&shared);
                match tokio::time::timeout(AFTER_CLOSE, &mut down).await {
                    Ok(stop) => down_end(&stop, &shared),
                    Err(_) => End::Closed,
                }
            }
        }
        Ok(Stop::Read(error)) if failure::of(&error) == Failure::Closed => End::Cut,
        Ok(Stop::Read(_)) => End::Reset,
        // The upstream takes no more, but may have answered already.
        Ok(Stop::Write(error)) => match down.await {
            Stop::Eof | Stop::Finish if failure::of(&error) == Failure::Reset => {
                fail(&shared, Failure::Reset);
                End::Reset
            }
            stop => down_end(&stop, &shared),
        },
        Err(Stop::Finish) => End::Closed,
        Err(stop @ Stop::Eof) => {
            // The upstream has said goodbye, and so have we. What it has
            // not answered, it will not. Closing while the client still
            // sends would reset it, and could take from it what it has
            // not yet read.
            let end = down_end(&stop, &shared);
            let opaque = shared.queue().opaque;
            if opaque {
                let _ = up.await;
            } else {
                let _ = tokio::time::timeout(AFTER_CLOSE, up).await;
                // A request that crossed the goodbye.
                fail(&shared, Failure::Closed);
            }
            end
        }
        Err(stop) => down_end(&stop, &shared),
    }
}

/// Ends when the instance drains and no answer is outstanding.
async fn drained(mut drain: watch::Receiver<bool>, shared: &Shared) {
    if drain.wait_for(|draining| *draining).await.is_err() {
        // No instance, no drain: tests run without one.
        return std::future::pending().await;
    }
    loop {
        let taken = shared.taken.notified();
        let idle = shared.queue().is_idle();
        if idle {
            return;
        }
        taken.await;
    }
}

fn down_end(stop: &Stop, shared: &Shared) -> End {
    match stop {
        Stop::Eof => {
            fail(shared, Failure::Closed);
            End::Closed
        }
        Stop::Finish => End::Closed,
        // The client is gone; its attempts were cancelled.
        Stop::Write(_) => End::Reset,
        Stop::Read(error) => {
            let failure = failure::of(error);
            fail(shared, failure);
            if failure == Failure::Closed { End::Cut } else { End::Reset }
        }
    }
}

/// Ends every exchange under way as the client's own doing. They stay in the
/// queue, since their responses may still pass.
fn abandon(shared: &Shared) {
    let queue = shared.queue();
    for exchange in queue.waiting.iter().map(|pending| &pending.exchange).chain(&queue.answering) {
        lock(exchange).end(Some(Failure::Cancelled));
    }
}

/// Ends every exchange that still waits for its response.
fn fail(shared: &Shared, failure: Failure) {
    for pending in shared.queue().waiting.drain(..) {
        lock(&pending.exchange).end(Some(failure));
    }
}

/// Passes requests to the upstream until the client has no more, then says
/// goodbye.
async fn up<R, W>(from: &mut R, to: &mut W, shared: &Shared, account: &Arc<Account>, peer: &Peer) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let stop = requests(from, to, shared, account, peer).await;
    goodbye(to, stop).await
}

async fn requests<R, W>(from: &mut R, to: &mut W, shared: &Shared, account: &Arc<Account>, peer: &Peer) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut pending = Bytes::new();
    loop {
        let parse = |bytes: &Bytes| {
            if shared.queue().opaque { Parsed::Opaque } else { head::request(bytes, &peer.name) }
        };
        let head = match read_head(from, &mut pending, parse).await {
            Ok(Some(Parsed::Head(head))) => head,
            Ok(Some(_)) => {
                turn_opaque(shared);
                return opaque(from, to, pending).await;
            }
            Ok(None) => return Stop::Eof,
            Err(error) => return Stop::Read(error),
        };
        let RequestHead { length, request, protocol, framing, leaves_http } = head;
        let expects = request.headers.get("expect").is_some();
        let exchange = Arc::new(Mutex::new(Exchange::begin(account, peer, protocol, request)));
        let head = pending.split_to(length);

        // A place in the queue.
        loop {
            let taken = shared.taken.notified();
            {
                let mut queue = shared.queue();
                if queue.waiting.len() < MAX_PIPELINED {
                    queue.waiting.push_back(Pending { exchange: Arc::clone(&exchange), leaves_http });
                    break;
                }
            }
            taken.await;
        }

        let mut body = Body::new(framing);
        let first = match body.feed(&pending) {
            Progress::Done(length) => length,
            Progress::More => pending.len(),
            // Let the upstream say what it thinks of it.
            Progress::Broken => {
                turn_opaque(shared);
                if let Err(error) = write_two(to, &head, &pending).await {
                    return Stop::Write(error);
                }
                return opaque(from, to, Bytes::new()).await;
            }
        };
        let first = pending.split_to(first);
        lock(&exchange).sent(&first);
        if let Err(error) = write_two(to, &head, &first).await {
            return Stop::Write(error);
        }
        drop((head, first));
        if leaves_http && body.is_done() {
            let accepted = loop {
                tokio::select! {
                    accepted = upgraded(shared) => break accepted,
                    // A client that leaves meanwhile is noticed.
                    read = read_some(from), if pending.is_empty() => match read {
                        Ok(bytes) if bytes.is_empty() => return Stop::Eof,
                        Ok(bytes) => pending = bytes,
                        Err(error) => return Stop::Read(error),
                    },
                }
            };
            if accepted {
                return opaque(from, to, pending).await;
            }
            continue;
        }
        if expects && !body.is_done() && pending.is_empty() {
            match read_some(from).await {
                Ok(bytes) if bytes.is_empty() => return Stop::Eof,
                Ok(bytes) => pending = bytes,
                Err(error) => return Stop::Read(error),
            }
            // An answer in place of `100 Continue`: the client may keep its
            // body and go on with another request.
            if lock(&exchange).answered() && matches!(parse(&pending), Parsed::Head(_)) {
                continue;
            }
            match pass_pending(to, &mut pending, &mut body, |bytes, _| lock(&exchange).sent(bytes)).await {
                Ok(true) => {}
                Ok(false) => {
                    turn_opaque(shared);
                    return opaque(from, to, pending).await;
                }
                Err(stop) => return stop,
            }
        }
        match pass_body(from, to, &mut body, |bytes, _| lock(&exchange).sent(bytes)).await {
            Ok(Passed::Whole(rest)) => {
                if !rest.is_empty() {
                    pending = rest;
                }
            }
            Ok(Passed::Broken) => {
                turn_opaque(shared);
                return opaque(from, to, Bytes::new()).await;
            }
            Err(stop) => return stop,
        }
    }
}

/// Waits for the down half to say whether the upstream left HTTP.
async fn upgraded(shared: &Shared) -> bool {
    loop {
        let taken = shared.taken.notified();
        {
            let mut queue = shared.queue();
            if queue.opaque {
                return true;
            }
            if let Some(accepted) = queue.upgrade.take() {
                return accepted;
            }
        }
        taken.await;
    }
}

/// Passes responses to the client until the upstream has no more, then says
/// goodbye.
async fn down<R, W>(from: &mut R, to: &mut W, shared: &Shared) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let stop = responses(from, to, shared).await;
    goodbye(to, stop).await
}

async fn responses<R, W>(from: &mut R, to: &mut W, shared: &Shared) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut pending = Bytes::new();
    loop {
        let head = match read_head(from, &mut pending, head::response).await {
            Ok(Some(Parsed::Head(head))) => head,
            Ok(Some(_)) => {
                // Not a response we understand: no attempt can be told apart
                // from here on.
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
        let Some(Pending { exchange, leaves_http }) = next else {
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
async fn answer<R, W>(
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
    W: AsyncWrite + Unpin,
{
    let method = Arc::clone(lock(exchange).method());
    let framing = head.framing(&method);
    let status = head.response.status;
    let ResponseHead { length, response, .. } = head;
    let decision = lock(exchange).responded(response);
    let bytes = pending.split_to(length);

    let leaves = leaves_http && (status == 101 || (&*method == "CONNECT" && (200..300).contains(&status)));
    if leaves_http && !(leaves && decision.is_none()) {
        shared.queue().upgrade = Some(false);
        shared.taken.notify_waiters();
    }
    let mut body = Body::new(framing);
    let told = decision.as_ref().map(|decision| retold(&bytes, decision, framing, &method, leaves));
    let (head, keep_body) = told.as_ref().map_or((&bytes[..], true), |(head, keep_body)| (head, *keep_body));

    if leaves {
        let written = write_two(to, head, &[]).await;
        lock(exchange).end(written.as_ref().err().map(|_| Failure::Cancelled));
        written.map_err(Stop::Write)?;
        if decision.is_some() {
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
    let received = |bytes: &[u8], last: bool| {
        let mut exchange = lock(exchange);
        exchange.received(bytes.len());
        if last {
            exchange.end(None);
        }
    };
    let outcome = if keep_body {
        let (first, broken) = match body.feed(pending) {
            Progress::Done(length) => (length, false),
            Progress::More => (pending.len(), false),
            Progress::Broken => (pending.len(), true),
        };
        let first = pending.split_to(first);
        received(&first, body.is_done());
        match write_two(to, head, &first).await {
            Ok(()) if broken => Ok(false),
            Ok(()) => pass_pending_and_body(from, to, pending, &mut body, received).await,
            Err(error) => Err(Stop::Write(error)),
        }
    } else {
        lock(exchange).end(None);
        match write_two(to, head, &[]).await {
            Ok(()) => pass_pending_and_body(from, &mut tokio::io::sink(), pending, &mut body, |_, _| ()).await,
            Err(error) => Err(Stop::Write(error)),
        }
    };
    match outcome {
        Ok(true) => {
            lock(exchange).end(None);
            Ok(())
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
                Stop::Write(_) | Stop::Finish => Failure::Cancelled,
            }));
            Err(stop)
        }
    }
}

/// From here on bytes pass without being understood, both ways.
fn turn_opaque(shared: &Shared) {
    shared.queue().opaque = true;
    shared.taken.notify_waiters();
}

fn ended(stop: &Stop) -> bool {
    match stop {
        Stop::Eof => true,
        Stop::Read(error) => failure::of(error) == Failure::Closed,
        Stop::Write(_) | Stop::Finish => false,
    }
}

/// The rewritten head, and whether the genuine body goes with it.
fn retold(head: &[u8], decision: &Decision, framing: Framing, method: &str, leaves: bool) -> (Vec<u8>, bool) {
    let bodiless = matches!(decision.status, 204 | 304);
    let mut drop: Vec<&str> = Vec::new();
    let mut extra: Vec<(&str, &str)> = Vec::new();
    if leaves {
        drop.extend(["upgrade", "connection", "content-length", "transfer-encoding"]);
        extra.extend([("Connection", "close"), ("Content-Length", "0")]);
    } else if bodiless && method != "HEAD" {
        drop.extend(["content-length", "transfer-encoding", "trailer"]);
    } else if framing == Framing::None && method != "HEAD" {
        // A 204 or 304 says nothing of a length; any other status must.
        drop.extend(["content-length", "transfer-encoding"]);
        extra.push(("Content-Length", "0"));
    }
    extra.push((RULE_HEADER, &decision.rule));
    let unwanted = |name: &[u8]| {
        drop.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes())) || belies(name, decision.status)
    };
    (head::rewrite(head, decision.status, decision.reason.as_deref(), unwanted, &extra), !bodiless && !leaves)
}

/// Feeds what was read already, then the rest. `Ok(false)`: the body's coding
/// is broken, and so is whatever follows.
async fn pass_pending_and_body<R, W>(
    from: &mut R,
    to: &mut W,
    pending: &mut Bytes,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], bool),
) -> Result<bool, Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if !pass_pending(to, pending, body, &mut seen).await? {
        return Ok(false);
    }
    match pass_body(from, to, body, seen).await? {
        Passed::Whole(rest) => {
            if !rest.is_empty() {
                *pending = rest;
            }
            Ok(true)
        }
        Passed::Broken => Ok(false),
    }
}

/// Passes what was read already, as far as it belongs to the body.
/// `Ok(false)`: the body's coding is broken.
async fn pass_pending<W: AsyncWrite + Unpin>(
    to: &mut W,
    pending: &mut Bytes,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], bool),
) -> Result<bool, Stop> {
    if pending.is_empty() || body.is_done() {
        return Ok(true);
    }
    let length = match body.feed(pending) {
        Progress::Done(length) => length,
        Progress::More => pending.len(),
        Progress::Broken => return Ok(false),
    };
    let first = pending.split_to(length);
    seen(&first, body.is_done());
    write_two(to, &first, &[]).await.map_err(Stop::Write)?;
    Ok(true)
}

enum Passed {
    /// The body's end was reached; these bytes came after it.
    Whole(Bytes),
    Broken,
}

/// Streams the rest of a body, as fast as the slower side.
async fn pass_body<R, W>(
    from: &mut R,
    to: &mut W,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], bool),
) -> Result<Passed, Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if body.is_done() {
        return Ok(Passed::Whole(Bytes::new()));
    }
    let mut buffer = BytesMut::with_capacity(BODY_BUFFER);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(0) => return Err(Stop::Eof),
            Ok(_) => {}
            Err(error) => {
                // What has passed must arrive before the failure does.
                let _ = to.flush().await;
                return Err(Stop::Read(error));
            }
        }
        let (length, after) = match body.feed(&buffer) {
            Progress::More => (buffer.len(), None),
            Progress::Done(length) => (length, Some(true)),
            Progress::Broken => (buffer.len(), Some(false)),
        };
        seen(&buffer[..length], after == Some(true));
        write_two(to, &buffer[..length], &[]).await.map_err(Stop::Write)?;
        match after {
            None => {}
            Some(true) => return Ok(Passed::Whole(Bytes::copy_from_slice(&buffer[length..]))),
            Some(false) => return Ok(Passed::Broken),
        }
    }
}

/// Passes whatever comes until it ends.
async fn opaque<R, W>(from: &mut R, to: &mut W, first: Bytes) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if let Err(error) = write_two(to, &first, &[]).await {
        return Stop::Write(error);
    }
    drop(first);
    loop {
        let bytes = match read_some(from).await {
            Ok(bytes) if bytes.is_empty() => return Stop::Eof,
            Ok(bytes) => bytes,
            Err(error) => {
                let _ = to.flush().await;
                return Stop::Read(error);
            }
        };
        if let Err(error) = write_two(to, &bytes, &[]).await {
            return Stop::Write(error);
        }
    }
}

/// Says goodbye to the side that is written to, after a clean end of the one
/// that is read from.
async fn goodbye<W: AsyncWrite + Unpin>(to: &mut W, stop: Stop) -> Stop {
    if matches!(stop, Stop::Eof) {
        // Whoever is gone already needs none.
        let _ = to.shutdown().await;
    }
    stop
}
