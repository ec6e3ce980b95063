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
mod down;
mod head;
mod pass;
mod ruled;
mod side;
mod told;
mod up;
mod wire;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, watch},
};

use self::{
    body::Progress,
    down::down,
    head::Framing,
    ruled::Told,
    side::{OverSocket, Side, Watching},
    up::up,
};
use super::{
    exchange::{Account, Exchange, Peer, lock},
    failure,
};
pub(in crate::proxy) use head::intern;

use crate::flow::Failure;

/// The data in the start of a chunked body.
pub(in crate::proxy) fn unchunked(bytes: &[u8]) -> Vec<u8> {
    body::content(Framing::Chunked, bytes)
}

/// Tells the exchange of what has passed of a request's body.
fn sent(exchange: &Mutex<Exchange>, bytes: &[u8], over: Option<&[u8]>) {
    let mut exchange = lock(exchange);
    exchange.sent(bytes);
    if let Some(trailers) = over.filter(|lines| !lines.is_empty()).map(body::trailers) {
        exchange.request_trailed(trailers);
    }
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
    C: AsyncRead + AsyncWrite + OverSocket + Send + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared { queue: Mutex::default(), taken: Notify::new() };
    let client = Side::new(client);
    let (mut client_read, mut client_write) = (client.half(), client.half());
    let (mut upstream_read, upstream_write) = tokio::io::split(upstream);
    let mut upstream_write = Watching::new(upstream_write, &client, &shared);

    let up = async {
        let stop = up(&mut client_read, &mut upstream_write, &shared, account, peer).await;
        if upstream_write.has_lost_its_client() { Stop::Read(io::ErrorKind::ConnectionReset.into()) } else { stop }
    };
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

/// Once the instance drains, a client that is about to ask (it has only just
/// connected, or its request is on its way) is heard for so long.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Ends when the instance drains, no answer is outstanding, and the client
/// has had its last one or asks for none.
async fn drained(mut drain: watch::Receiver<bool>, shared: &Shared) {
    if drain.wait_for(|draining| *draining).await.is_err() {
        // No instance, no drain: tests run without one.
        return std::future::pending().await;
    }
    let mut answered = false;
    loop {
        let taken = shared.taken.notified();
        let idle = shared.queue().is_idle();
        if !idle {
            taken.await;
            answered = true;
        } else if answered || tokio::time::timeout(LAST_WORD, taken).await.is_err() {
            // Looked at once more: what has come in meanwhile tells nobody.
            if shared.queue().is_idle() {
                return;
            }
        }
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

/// From here on bytes pass without being understood, both ways.
fn turn_opaque(shared: &Shared) {
    shared.queue().opaque = true;
    shared.taken.notify_waiters();
}
