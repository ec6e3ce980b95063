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
mod told;
mod wire;

use std::{
    collections::VecDeque,
    io,
    pin::pin,
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
    exchange::{Account, Exchange, MAX_BODY_START, Peer, lock, stall},
    failure,
};
pub(in crate::proxy) use head::intern;

use crate::{
    flow::{Content, Failure, MAX_CONTENT},
    rules::{Abort, Phase, Ruling},
};

/// The data in the start of a chunked body.
pub(in crate::proxy) fn unchunked(bytes: &[u8]) -> Vec<u8> {
    body::content(Framing::Chunked, bytes)
}

/// A chunked body whose data is taken out as it passes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Unchunking {
    coding: body::Chunked,
    over: bool,
}

impl Unchunking {
    /// Hands on the data within these bytes.
    pub(in crate::proxy) fn feed(&mut self, bytes: &[u8], data: impl FnMut(&[u8])) {
        self.over |= !matches!(self.coding.scan(bytes, data), Progress::More);
    }

    /// The last chunk has come.
    pub(in crate::proxy) fn is_done(&self) -> bool {
        self.over
    }
}

/// One read while a body streams. A TLS record holds 16 KiB at most.
const BODY_BUFFER: usize = 64 * 1024;
/// The most of a genuine body that is read only to be dropped.
const MAX_SWALLOWED: u64 = 1 << 20;
/// How long a body is waited for that somebody wants to see whole.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
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
    /// A rule wants a fatal TLS alert.
    Alert,
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
    /// The client was told that the connection ends: no further request of
    /// it is heard.
    closing: bool,
    /// The client will say nothing more, and may be gone.
    gone: bool,
}

struct Pending {
    exchange: Arc<Mutex<Exchange>>,
    leaves_http: bool,
    /// What a rule answers in the upstream's place.
    told: Option<Told>,
}

/// A ruling of the request phase.
struct Told {
    ruling: Ruling,
    /// The client waits for `100 Continue`.
    expects: bool,
}

impl Queue {
    /// The exchange that the upstream answers next, unless it never saw it.
    fn take(&mut self) -> Option<Pending> {
        if self.is_told() {
            return None;
        }
        self.pop()
    }

    fn is_told(&self) -> bool {
        self.waiting.front().is_some_and(|pending| pending.told.is_some())
    }

    fn pop(&mut self) -> Option<Pending> {
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
    /// The client has its last answer; what it still sends is heard out.
    Last,
    /// A rule breaks the connection off.
    Break(End),
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
        Ok(Stop::Eof | Stop::Finish | Stop::Last) => {
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
        Ok(Stop::Break(end)) | Err(Stop::Break(end)) => end,
        Err(Stop::Finish) => End::Closed,
        Err(Stop::Last) => {
            // Closing while the client still sends would reset it, and could
            // take the answer from it.
            shared.queue().closing = true;
            let _ = tokio::time::timeout(AFTER_CLOSE, up).await;
            abandon(&shared);
            End::Closed
        }
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
        Stop::Finish | Stop::Last => End::Closed,
        Stop::Break(end) => *end,
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
    let mut queue = shared.queue();
    queue.gone = true;
    shared.taken.notify_waiters();
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
        if shared.queue().closing {
            return Stop::Last;
        }
        let RequestHead { length, request, protocol, framing, leaves_http } = head;
        let expects = request.headers.get("expect").is_some();
        let mut exchange = Exchange::begin(account, peer, protocol, request);
        let head = pending.split_to(length);
        let told = match ask(from, &mut pending, &mut exchange, framing, expects).await {
            Ok(told) => told,
            Err(stop) => return stop,
        };
        let exchange = Arc::new(Mutex::new(exchange));
        let leaves_http = leaves_http && told.is_none();
        let mut told = told;
        let is_told = told.is_some();

        // A place in the queue.
        loop {
            let taken = shared.taken.notified();
            {
                let mut queue = shared.queue();
                if queue.waiting.len() < MAX_PIPELINED {
                    queue.waiting.push_back(Pending {
                        exchange: Arc::clone(&exchange),
                        leaves_http,
                        told: told.take(),
                    });
                    break;
                }
            }
            taken.await;
        }

        let mut body = Body::new(framing);
        if is_told {
            shared.taken.notify_waiters();
            match swallow(from, &mut pending, &mut body, &exchange, expects).await {
                Ok(()) => {}
                Err(stop) => return stop,
            }
            lock(&exchange).body_taken = true;
            shared.taken.notify_waiters();
            continue;
        }
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

/// Asks the rules of the request phase, and waits as long as they say before
/// the upstream may see the request.
async fn ask<R: AsyncRead + Unpin>(
    from: &mut R,
    pending: &mut Bytes,
    exchange: &mut Exchange,
    framing: Framing,
    expects: bool,
) -> Result<Option<Told>, Stop> {
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
    let Some(ruling) = exchange.ruling(Phase::Request) else { return Ok(None) };
    if ruling.reply.is_some() || ruling.abort.is_some() {
        return Ok(Some(Told { ruling, expects }));
    }
    let mut over = pin!(exchange.hold(ruling.delay));
    loop {
        tokio::select! {
            () = &mut over => return Ok(None),
            // A client that leaves meanwhile is noticed.
            read = read_some(from), if pending.is_empty() => match read {
                Ok(bytes) if bytes.is_empty() => return Err(Stop::Eof),
                Ok(bytes) => *pending = bytes,
                Err(error) => return Err(Stop::Read(error)),
            },
        }
    }
}

/// What was read of a body before it was passed on.
struct Ahead {
    /// How many of the pending bytes are the body, if it is there whole.
    whole: Option<usize>,
    /// The side it comes from has ended or failed.
    stop: Option<Stop>,
}

/// Reads a body into `pending` until it is whole, longer than `limit`, or
/// late.
async fn read_ahead<R: AsyncRead + Unpin>(from: &mut R, pending: &mut Bytes, framing: Framing, limit: usize) -> Ahead {
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
async fn swallow<R: AsyncRead + Unpin>(
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
    let seen = |bytes: &[u8], _| lock(exchange).sent(bytes);
    match pass_pending_and_body(from, &mut tokio::io::sink(), pending, body, seen).await? {
        true => Ok(()),
        // Where the next request begins cannot be told.
        false => Err(Stop::Break(End::Closed)),
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

/// Waits for a rule's answer whose turn has come.
async fn told(shared: &Shared) -> Pending {
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
async fn gone(shared: &Shared) {
    loop {
        let taken = shared.taken.notified();
        if shared.queue().gone {
            return;
        }
        taken.await;
    }
}

/// Waits until the up half has taken the request's body in, or never will.
async fn taken(shared: &Shared, exchange: &Mutex<Exchange>) {
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
async fn tell<W: AsyncWrite + Unpin>(to: &mut W, shared: &Shared, pending: &Pending) -> Result<(), Stop> {
    let Pending { exchange, told: Some(Told { ruling, expects }), .. } = pending else { return Ok(()) };
    shared.taken.notify_waiters();
    let hold = lock(exchange).hold(ruling.delay);
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
async fn break_off(abort: Abort, shared: &Shared, exchange: &Mutex<Exchange>) -> Stop {
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
    let ruling = lock(exchange).ruling(Phase::Response);

    let meddled = ruling.as_ref().is_some_and(|ruling| ruling.reply.is_some() || ruling.abort.is_some());
    if leaves_http && (!leaves || meddled) {
        shared.queue().upgrade = Some(false);
        shared.taken.notify_waiters();
    }
    let mut body = Body::new(framing);
    let (mut told, mut cut) = (None, None);
    if let Some(ruling) = &ruling {
        let hold = lock(exchange).hold(ruling.delay);
        hold.await;
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
    let received = |bytes: &[u8], last: bool| {
        let mut exchange = lock(exchange);
        exchange.received(bytes);
        if last {
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
        received(&first, body.is_done());
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

/// From here on bytes pass without being understood, both ways.
fn turn_opaque(shared: &Shared) {
    shared.queue().opaque = true;
    shared.taken.notify_waiters();
}

fn ended(stop: &Stop) -> bool {
    match stop {
        Stop::Eof => true,
        Stop::Read(error) => failure::of(error) == Failure::Closed,
        Stop::Write(_) | Stop::Finish | Stop::Last | Stop::Break(_) => false,
    }
}

/// Takes the genuine body off an upstream whose client was told another; a
/// long or slow one is not waited for, and costs the connection.
async fn drop_body<R: AsyncRead + Unpin>(
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
async fn pass_cut<R, W>(
    from: &mut R,
    to: &mut W,
    head: &[u8],
    pending: &mut Bytes,
    body: &mut Body,
    cut: u64,
    mut seen: impl FnMut(&[u8], bool),
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
        seen(&part, whole);
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
    if matches!(stop, Stop::Eof | Stop::Last) {
        // Whoever is gone already needs none.
        let _ = to.shutdown().await;
    }
    stop
}
