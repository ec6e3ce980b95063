//! The up half: requests on their way to the upstream, each queued for its
//! answer.
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Pending, Shared, Stop,
    body::{Body, Progress},
    head::{self, Parsed, RequestHead},
    pass::{Passed, goodbye, opaque, pass_body, pass_pending},
    ruled::{Asked, ask, swallow},
    sent,
    side::Presence,
    told, turn_opaque,
    wire::{read_head, read_some, write_two},
};
use crate::proxy::exchange::{Account, Exchange, Peer, lock};

/// Requests a client may have under way at once; past it the client's next
/// one is not read until an answer has passed. Servers allow far fewer.
const MAX_PIPELINED: usize = 1024;

/// Passes requests to the upstream until the client has no more, then says
/// goodbye.
pub(super) async fn up<R, W>(from: &mut R, to: &mut W, shared: &Shared, account: &Arc<Account>, peer: &Peer) -> Stop
where
    R: AsyncRead + Presence + Unpin,
    W: AsyncWrite + Unpin,
{
    let stop = requests(from, to, shared, account, peer).await;
    goodbye(to, stop).await
}

pub(super) async fn requests<R, W>(
    from: &mut R,
    to: &mut W,
    shared: &Shared,
    account: &Arc<Account>,
    peer: &Peer,
) -> Stop
where
    R: AsyncRead + Presence + Unpin,
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
                note_unread(shared, account, peer, &pending);
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
        let mut head = pending.split_to(length);
        let Asked { mut told, edit } = match ask(from, &mut pending, &mut exchange, framing, expects).await {
            Ok(asked) => asked,
            Err(stop) => return stop,
        };
        let exchange = Arc::new(Mutex::new(exchange));
        let leaves_http = leaves_http && told.is_none();
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
        let mut first = pending.split_to(first);
        sent(&exchange, &first, body.over());
        if let Some(edit) = edit {
            head = told::asked(&head, &edit).into();
            // It was there whole.
            first = edit.body.filter(|_| body.is_done()).unwrap_or(first);
        }
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
            match pass_pending(to, &mut pending, &mut body, |bytes, over| sent(&exchange, bytes, over)).await {
                Ok(true) => {}
                Ok(false) => {
                    turn_opaque(shared);
                    return opaque(from, to, pending).await;
                }
                Err(stop) => return stop,
            }
        }
        match pass_body(from, to, &mut body, |bytes, over| sent(&exchange, bytes, over)).await {
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

/// A request whose head is too long for us passes unread, with whatever follows;
/// it is an attempt all the same, and its response is told apart as ever.
fn note_unread(shared: &Shared, account: &Arc<Account>, peer: &Peer, pending: &Bytes) {
    if shared.queue().opaque {
        return;
    }
    let Some((request, protocol)) = head::cut_request(pending, &peer.name) else { return };
    let exchange = Exchange::begin(account, peer, protocol, request).unread();
    let exchange = Arc::new(Mutex::new(exchange));
    shared.queue().waiting.push_back(Pending { exchange, leaves_http: false, told: None });
    shared.taken.notify_waiters();
}

/// Waits for the down half to say whether the upstream left HTTP.
pub(super) async fn upgraded(shared: &Shared) -> bool {
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
