//! The HTTP/2 exchange: every stream of the client becomes one of the
//! upstream's, with its frames, trailers, resets and flow control.
//!
//! In: both TLS streams, both having agreed on `h2`. Out: the same streams on
//! the other side, but for responses that a rule rewrites; one [`Exchange`]
//! per stream. A window is opened only for what the other side has taken, so
//! that back-pressure is the peers' own. All of a connection's streams live
//! in its one task.
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use super::{
    exchange::{Account, Exchange, Peer, RULE_HEADER, belies, lock},
    failure,
    h1::{End, intern},
};
use crate::flow::{Failure, Headers, Protocol, Request, Response};

/// What a stream may have under way before its receiver has taken it. On a
/// fast link with a long way a smaller window would be felt.
const STREAM_WINDOW: u32 = 1 << 20;
/// The most there is: a stream that nobody reads must not hold up the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Frames of ours; the protocol's least and everybody's default.
const FRAME: u32 = 16 * 1024;
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
    let handshake = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .enable_push(false)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(None)
        .handshake::<_, Bytes>(upstream);
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
        .handshake::<_, Bytes>(client);
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
                end = &mut connection, if upstream_end.is_none() => upstream_end = Some(end),
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
        let turn = poll_fn(|context| {
            if upstream_end.is_none()
                && let Poll::Ready(end) = Pin::new(&mut connection).poll(context)
            {
                return Poll::Ready(Turn::UpstreamEnded(end));
            }
            loop {
                while let Poll::Ready(Some(())) = streams.poll_next_unpin(context) {}
                let mut accepted = false;
                while let Poll::Ready(next) = server.poll_accept(context) {
                    match next {
                        Some(Ok((request, respond))) => {
                            // Begun here, so that it counts even if the
                            // client leaves at once.
                            let exchange = begin(&request, account, peer);
                            streams.push(stream(request, respond, sender.clone(), exchange, peer));
                            accepted = true;
                        }
                        // The client broke the connection or said goodbye.
                        Some(Err(error)) if error.is_io() => return Poll::Ready(Turn::Over(end_of(&error))),
                        Some(Err(_)) | None => return Poll::Ready(Turn::Over(End::Closed)),
                    }
                }
                if !accepted {
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
        });
        match turn.await {
            Turn::Over(end) => return end,
            Turn::UpstreamEnded(end) => upstream_end = Some(end),
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

/// What a connection does next.
enum Turn {
    Over(End),
    UpstreamEnded(Result<(), h2::Error>),
    /// The upstream wants no more requests; those under way may finish.
    Goodbye,
    /// Nothing is under way any more.
    Settled,
    Drain,
}

/// Lets the streams see the failure that their connection has met.
async fn finish_streams<F: Future<Output = ()>>(streams: &mut FuturesUnordered<F>) {
    // Each ends at its next step, since both of its halves now fail; whoever
    // would not is cancelled by being dropped.
    poll_fn(|context| {
        while let Poll::Ready(Some(())) = streams.poll_next_unpin(context) {}
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

/// h2 calls a stream whose connection has ended a broken pipe.
fn io_failure(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Failure::Closed } else { failure::of(error) }
}

/// The failure that an upstream's stream error stands for.
fn failure_of(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => io_failure(error),
        None if error.is_reset() && error.is_remote() => Failure::Reset,
        None if error.is_go_away() => Failure::Closed,
        None => Failure::Protocol,
    }
}

/// Passes one stream, from its request to its last trailer.
async fn stream(
    request: http::Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    sender: client::SendRequest<Bytes>,
    exchange: Exchange,
    peer: &Peer,
) {
    let (mut parts, mut request_body) = request.into_parts();
    name_authority(&mut parts, peer);
    let exchange = Mutex::new(exchange);
    let method = parts.method.clone();
    let bodiless = request_body.is_end_stream();

    let sent = match sender.ready().await {
        Ok(mut sender) => sender.send_request(http::Request::from_parts(parts, ()), bodiless),
        Err(error) => Err(error),
    };
    let (response, mut upstream_body) = match sent {
        Ok(pair) => pair,
        Err(error) => {
            lock(&exchange).end(Some(failure_of(&error)));
            // Not sent: the client may safely ask again, unless what it asked
            // cannot be said.
            let unspeakable = !error.is_io() && !error.is_go_away() && error.reason().is_none();
            let refused = if unspeakable { Reason::PROTOCOL_ERROR } else { Reason::REFUSED_STREAM };
            respond.send_reset(error.reason().filter(|_| !error.is_go_away()).unwrap_or(refused));
            return;
        }
    };
    let over = {
        let upload = Upload {
            running: !bodiless,
            body: pin!(pass(&mut request_body, &mut upstream_body, |bytes, _| lock(&exchange).sent(bytes))),
        };
        pass_response(respond, response, upload, &exchange, &method).await
    };
    match over {
        Over::Done => {}
        Over::ClientGone(reason) => {
            upstream_body.send_reset(reason);
            lock(&exchange).end(Some(Failure::Cancelled));
        }
    }
}

/// The request's body on its way up, beside whatever else happens.
struct Upload<'a, F> {
    running: bool,
    body: Pin<&'a mut F>,
}

/// How a stream came to its end.
enum Over {
    /// It was passed whole, or its failure was.
    Done,
    ClientGone(Reason),
}

/// Passes what comes down, while the request's body goes up.
async fn pass_response<F: Future<Output = Result<(), Cut>>>(
    mut respond: server::SendResponse<Bytes>,
    response: client::ResponseFuture,
    mut upload: Upload<'_, F>,
    exchange: &Mutex<Exchange>,
    method: &Method,
) -> Over {
    let mut response = pin!(response);
    // h2 takes an interim response for the final one, and from then on
    // refuses to tell of the client's reset; the upload or the response's
    // own sending meets it then.
    let mut resets_told = true;
    let head = loop {
        tokio::select! {
            biased;
            step = next_head(response.as_mut()) => match step {
                Step::Interim(interim) => {
                    // A client that is gone is noticed below.
                    let _ = respond.send_informational(interim);
                }
                Step::Final(head) => break head,
            },
            reset = poll_fn(|context| respond.poll_reset(context)), if resets_told => match reset {
                Ok(reason) => return Over::ClientGone(reason),
                Err(_) => resets_told = false,
            },
            outcome = &mut upload.body, if upload.running => {
                upload.running = false;
                if let Err(Cut::Source(reason)) = outcome {
                    return Over::ClientGone(reason);
                }
            }
        }
    };
    let head = match head {
        Ok(head) => head,
        Err(error) => {
            lock(exchange).end(Some(failure_of(&error)));
            respond.send_reset(reason_for(&error));
            return Over::Done;
        }
    };

    let (mut parts, mut response_body) = head.into_parts();
    let decision = lock(exchange).responded(Response {
        status: parts.status.as_u16(),
        reason: String::new(),
        headers: fields(&parts.headers),
    });
    let mut keep_body = true;
    if let Some(decision) = &decision {
        // A status that a rule may give is a valid one.
        parts.status = StatusCode::from_u16(decision.status).unwrap_or(parts.status);
        if let Ok(name) = HeaderValue::from_str(&decision.rule) {
            parts.headers.append(HeaderName::from_static(RULE_HEADER), name);
        }
        let belying: Vec<HeaderName> =
            parts.headers.keys().filter(|name| belies(name.as_str().as_bytes(), decision.status)).cloned().collect();
        for name in belying {
            parts.headers.remove(name);
        }
        if response_body.is_end_stream() && *method != Method::HEAD {
            // A 304 may tell a length that no other bodiless status may.
            parts.headers.remove(http::header::CONTENT_LENGTH);
        }
        if matches!(decision.status, 204 | 304) && *method != Method::HEAD {
            parts.headers.remove(http::header::CONTENT_LENGTH);
            keep_body = false;
        }
    }
    let ends = response_body.is_end_stream() || !keep_body;
    if ends {
        // The client may ask again as soon as it has this.
        lock(exchange).end(None);
    }
    let Ok(mut client_body) = respond.send_response(http::Response::from_parts(parts, ()), ends) else {
        return Over::ClientGone(Reason::CANCEL);
    };

    let outcome = {
        let mut download = pin!(async {
            if keep_body && !ends {
                pass(&mut response_body, &mut client_body, |bytes, last| {
                    let mut exchange = lock(exchange);
                    exchange.received(bytes.len());
                    if last {
                        exchange.end(None);
                    }
                })
                .await
            } else {
                swallow(&mut response_body).await
            }
        });
        loop {
            tokio::select! {
                outcome = &mut download => break outcome,
                outcome = &mut upload.body, if upload.running => {
                    upload.running = false;
                    if let Err(Cut::Source(reason)) = outcome {
                        return Over::ClientGone(reason);
                    }
                }
            }
        }
    };
    match outcome {
        Ok(()) => {
            lock(exchange).end(None);
            // A response that ends before its request: the upstream says by a
            // reset of its own that it wants no more, and that has to pass.
            if upload.running {
                match upload.body.await {
                    Ok(()) => {}
                    // Let go of, the stream says this itself, after what is
                    // still to be sent.
                    Err(Cut::Sink(Reason::NO_ERROR)) => {}
                    Err(Cut::Sink(reason)) => {
                        flushed().await;
                        client_body.send_reset(reason);
                    }
                    Err(Cut::Source(reason)) => return Over::ClientGone(reason),
                }
            }
            Over::Done
        }
        Err(Cut::Source(reason)) => {
            lock(exchange).end(Some(if reason == Reason::NO_ERROR { Failure::Closed } else { Failure::Reset }));
            flushed().await;
            client_body.send_reset(reason);
            Over::Done
        }
        Err(Cut::Sink(reason)) => Over::ClientGone(reason),
    }
}

enum Step {
    Interim(http::Response<()>),
    Final(Result<http::Response<RecvStream>, h2::Error>),
}

async fn next_head(mut response: Pin<&mut client::ResponseFuture>) -> Step {
    poll_fn(|context| {
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
            return Poll::Ready(Step::Interim(interim));
        }
        response.as_mut().poll(context).map(Step::Final)
    })
    .await
}

/// Which side ended a body early, and how it put it.
enum Cut {
    Source(Reason),
    Sink(Reason),
}

fn reason_for(error: &h2::Error) -> Reason {
    error.reason().unwrap_or(Reason::INTERNAL_ERROR)
}

/// Passes a body and its trailers, no faster than `to` takes them. `seen` is
/// told of bytes before they are sent, and of the last ones that they are.
async fn pass(from: &mut RecvStream, to: &mut SendStream<Bytes>, mut seen: impl FnMut(&[u8], bool)) -> Result<(), Cut> {
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            reset = poll_fn(|context| to.poll_reset(context)) => {
                return Err(Cut::Sink(reset.unwrap_or(Reason::CANCEL)));
            }
        };
        let data = match data {
            Some(Ok(data)) => data,
            Some(Err(error)) => return Err(Cut::Source(reason_for(&error))),
            None => break,
        };
        let last = from.is_end_stream();
        seen(&data, last);
        if last {
            // Data that needs no further window goes with the end's flag.
            let length = data.len();
            send(to, data, true).await?;
            let _ = from.flow_control().release_capacity(length);
            return Ok(());
        }
        let length = data.len();
        send(to, data, false).await?;
        // The window opens once the other side has taken what came.
        let _ = from.flow_control().release_capacity(length);
    }
    let trailers = from.trailers().await;
    if trailers.is_ok() {
        seen(&[], true);
    }
    match trailers {
        Ok(Some(trailers)) => to.send_trailers(trailers).map_err(|error| Cut::Sink(reason_for(&error))),
        Ok(None) => to.send_data(Bytes::new(), true).map_err(|error| Cut::Sink(reason_for(&error))),
        Err(error) => Err(Cut::Source(reason_for(&error))),
    }
}

async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Cut> {
    if data.is_empty() {
        return if end { to.send_data(data, true).map_err(|error| Cut::Sink(reason_for(&error))) } else { Ok(()) };
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let capacity = match poll_fn(|context| to.poll_capacity(context)).await {
            Some(Ok(capacity)) => capacity,
            Some(Err(error)) => return Err(Cut::Sink(reason_for(&error))),
            // The stream was reset; the code is the peer's.
            None => {
                let reason = poll_fn(|context| {
                    Poll::Ready(match to.poll_reset(context) {
                        Poll::Ready(Ok(reason)) => reason,
                        _ => Reason::CANCEL,
                    })
                });
                return Err(Cut::Sink(reason.await));
            }
        };
        let part = data.split_to(capacity.min(data.len()));
        let last = end && data.is_empty();
        to.send_data(part, last).map_err(|error| Cut::Sink(reason_for(&error)))?;
    }
    Ok(())
}

async fn swallow(from: &mut RecvStream) -> Result<(), Cut> {
    while let Some(data) = from.data().await {
        let length = data.map_err(|error| Cut::Source(reason_for(&error)))?.len();
        let _ = from.flow_control().release_capacity(length);
    }
    from.trailers().await.map(|_| ()).map_err(|error| Cut::Source(reason_for(&error)))
}

/// Lets the connection send what its streams have left: a reset takes back
/// whatever has not been sent.
async fn flushed() {
    tokio::task::yield_now().await;
}

fn begin(request: &http::Request<RecvStream>, account: &Arc<Account>, peer: &Peer) -> Exchange {
    Exchange::begin(account, peer, Protocol::Http2, record(request, peer))
}

/// A client may name the authority by `host` alone (RFC 9113 §8.3.1), which
/// h2 takes and does not send.
fn name_authority(parts: &mut http::request::Parts, peer: &Peer) {
    if parts.uri.authority().is_some() || parts.method == Method::CONNECT {
        return;
    }
    let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(&peer.name);
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    if let Ok(uri) = http::Uri::builder().scheme("https").authority(host).path_and_query(target).build() {
        parts.uri = uri;
    }
}

fn record(request: &http::Request<RecvStream>, peer: &Peer) -> Request {
    let headers = request.headers();
    let authority = request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| headers.get(http::header::HOST).and_then(|host| host.to_str().ok()));
    Request {
        method: intern(request.method().as_str()),
        authority: authority.map_or_else(|| Arc::clone(&peer.name), Arc::from),
        target: request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).into(),
        headers: fields(headers),
    }
}

fn fields(headers: &HeaderMap) -> Headers {
    Headers::copied(headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
}
