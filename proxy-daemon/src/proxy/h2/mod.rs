//! The HTTP/2 exchange: every stream of the client becomes one of the
//! upstream's, with its frames, trailers, resets and flow control.
//!
//! In: both TLS streams, both having agreed on `h2`. Out: the same streams on
//! the other side, but for responses that a rule rewrites; one [`Exchange`]
//! per stream. A window is opened only for what the other side has taken, so
//! that back-pressure is the peers' own. What is no stream's (settings, pings,
//! goodbyes) passes beside `h2`, in the legs that it reads and writes. All of a
//! connection's streams live in its one task.
mod frame;
mod leg;
mod link;
mod pass;
mod ruled;
mod stream;
mod wakes;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, client, server};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use self::{
    leg::Leg,
    link::{Link, Side},
    stream::{begin, io_failure, stream},
    wakes::Wakes,
};
use super::{
    exchange::{Account, Peer},
    h1::End,
};
use crate::flow::Failure;

/// What a stream may have under way before its receiver has taken it. On a
/// fast link with a long way a smaller window would be felt.
const STREAM_WINDOW: u32 = 1 << 20;
/// The most there is: a stream that nobody reads must not hold up the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Frames of ours; the protocol's least and everybody's default.
const FRAME: u32 = 16 * 1024;
/// Streams before the upstream has said how many it takes. How many those are
/// is the client's own choice until then, and so it is here.
const MANY: usize = usize::MAX >> 1;
/// Resets a client may have under way: the upstream is the one to call it
/// abuse, so this is far above what servers allow.
const MAX_RESETS: usize = 4096;

/// Serves one intercepted connection until it ends.
pub(super) async fn serve<C, U>(
    client: &mut C,
    upstream: &mut U,
    account: &Arc<Account>,
    peer: &Peer,
    mut drain: watch::Receiver<bool>,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let link = Link::default();
    let handshake = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .enable_push(false)
        .initial_max_send_streams(MANY)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(None)
        .handshake::<_, Bytes>(Leg::new(upstream, Side::Upstream, &link));
    let (sender, mut connection) = match handshake.await {
        Ok(pair) => pair,
        Err(error) => return end_of(&error),
    };
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(None)
        // Told to the client only where the upstream says so (RFC 8441 §3).
        .enable_connect_protocol()
        .handshake::<_, Bytes>(Leg::new(client, Side::Client, &link));
    // The upstream's side must move while the client's preface is awaited.
    let mut upstream_end = None;
    let mut server = {
        let mut handshake = pin!(handshake);
        loop {
            tokio::select! {
                done = &mut handshake => match done {
                    Ok(server) => break server,
                    Err(error) => return end_of(&error),
                },
                end = &mut connection, if upstream_end.is_none() => {
                    link.upstream_has_gone();
                    upstream_end = Some(end);
                }
            }
        }
    };

    let mut streams = FuturesUnordered::new();
    let mut drained = pin!(async {
        if drain.wait_for(|draining| *draining).await.is_err() {
            // No instance, no drain: tests run without one.
            std::future::pending::<()>().await;
        }
    });
    let mut draining = false;
    let mut accepting = true;
    let mut aborted = false;
    // Knows of the upstream's goodbye before its last stream has ended.
    let mut probe = sender.clone();
    let wakes = Wakes::new();
    loop {
        match &upstream_end {
            // A goodbye: what is under way may finish.
            Some(Ok(())) if accepting => {
                server.graceful_shutdown();
                accepting = false;
            }
            Some(Err(error)) if error.is_io() => {
                finish_streams(&mut streams).await;
                // What they have left leaves first.
                send_out(&mut server).await;
                return end_of(error);
            }
            Some(Err(error)) if streams.is_empty() && !aborted => {
                send_out(&mut server).await;
                server.abrupt_shutdown(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
                (accepting, aborted) = (false, true);
            }
            _ => {}
        }
        // In this order what one side has brought leaves the other in one
        // write: the upstream's frames wake streams, whose answers the
        // server's side sends; its new requests go up together.
        let mut look = |context: &mut Context<'_>| {
            if upstream_end.is_none()
                && let Poll::Ready(end) = Pin::new(&mut connection).poll(context)
            {
                return Poll::Ready(Turn::UpstreamEnded(end));
            }
            wakes.begin_look();
            loop {
                while let Poll::Ready(Some(ended)) = streams.poll_next_unpin(context) {
                    if let Some(broken) = ended {
                        return Poll::Ready(Turn::Break(broken));
                    }
                }
                let mut accepted = false;
                while let Poll::Ready(next) = server.poll_accept(context) {
                    match next {
                        Some(Ok((request, respond))) => {
                            // Begun here, so that it counts even if the
                            // client leaves at once.
                            let exchange = begin(&request, account, peer);
                            streams.push(stream(request, respond, sender.clone(), exchange, peer, &link, link.asked()));
                            accepted = true;
                        }
                        // The client broke the connection or said goodbye.
                        Some(Err(error)) if error.is_io() => return Poll::Ready(Turn::Over(end_of(&error))),
                        Some(Err(_)) | None => return Poll::Ready(Turn::Over(End::Closed)),
                    }
                }
                if !accepted {
                    // Settings change one after the other, each when the last
                    // has been acknowledged.
                    if link.has_changed() {
                        if server.set_initial_window_size(STREAM_WINDOW).is_ok() {
                            continue;
                        }
                        link.still_changed();
                    }
                    break;
                }
            }
            if upstream_end.is_none()
                && let Poll::Ready(end) = Pin::new(&mut connection).poll(context)
            {
                return Poll::Ready(Turn::UpstreamEnded(end));
            }
            if accepting
                && upstream_end.is_none()
                && let Poll::Ready(Err(error)) = probe.poll_ready(context)
                && error.is_go_away()
            {
                return Poll::Ready(Turn::Goodbye);
            }
            // The upstream broke off, and the last of its streams is done.
            if matches!(&upstream_end, Some(Err(_))) && streams.is_empty() && !aborted {
                return Poll::Ready(Turn::Settled);
            }
            if !draining && drained.as_mut().poll(context).is_ready() {
                return Poll::Ready(Turn::Drain);
            }
            Poll::Pending
        };
        match poll_fn(|context| wakes.poll(context, &mut look)).await {
            Turn::Over(end) | Turn::Break(Break::End(end)) => {
                if upstream_end.is_none() {
                    // The client's goodbye, and its last resets.
                    poll_fn(|context| {
                        let _ = Pin::new(&mut connection).poll(context);
                        Poll::Ready(())
                    })
                    .await;
                }
                return end;
            }
            Turn::Break(Break::GoAway(reason)) => {
                server.abrupt_shutdown(reason);
                (accepting, aborted) = (false, true);
            }
            Turn::UpstreamEnded(end) => {
                link.upstream_has_gone();
                upstream_end = Some(end);
            }
            Turn::Settled => {}
            Turn::Goodbye => {
                server.graceful_shutdown();
                accepting = false;
            }
            Turn::Drain => {
                draining = true;
                accepting = false;
                if streams.is_empty() {
                    // Nothing to wait for; and an idle client may not even
                    // read what a graceful end asks of it.
                    server.abrupt_shutdown(Reason::NO_ERROR);
                } else {
                    server.graceful_shutdown();
                }
            }
        }
    }
}

/// Sends what lies ready for the client, as far as its socket takes it now.
async fn send_out<C: AsyncRead + AsyncWrite + Unpin>(server: &mut server::Connection<C, Bytes>) {
    poll_fn(|context| {
        // Requests that come with it find no upstream any more.
        let _ = server.poll_accept(context);
        Poll::Ready(())
    })
    .await;
}

/// How a rule ends the whole connection.
#[derive(Clone, Copy, Debug)]
enum Break {
    End(End),
    GoAway(Reason),
}

/// What a connection does next.
enum Turn {
    Break(Break),
    Over(End),
    UpstreamEnded(Result<(), h2::Error>),
    /// The upstream wants no more requests; those under way may finish.
    Goodbye,
    /// Nothing is under way any more.
    Settled,
    Drain,
}

/// Lets the streams see the failure that their connection has met.
async fn finish_streams<F: Future<Output = Option<Break>>>(streams: &mut FuturesUnordered<F>) {
    // Each ends at its next step, since both of its halves now fail; whoever
    // would not is cancelled by being dropped.
    poll_fn(|context| {
        while let Poll::Ready(Some(_)) = streams.poll_next_unpin(context) {}
        Poll::Ready(())
    })
    .await;
}

fn end_of(error: &h2::Error) -> End {
    match error.get_io().map(io_failure) {
        Some(Failure::Closed) => End::Cut,
        Some(_) => End::Reset,
        None => End::Closed,
    }
}
