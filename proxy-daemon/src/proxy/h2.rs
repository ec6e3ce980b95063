//! The HTTP/2 exchange: every stream of the client becomes one of the
//! upstream's, with its frames, trailers, resets and flow control.
//!
//! In: both TLS streams, both having agreed on `h2`. Out: the same streams on
//! the other side, but for responses that a rule rewrites; one [`Exchange`]
//! per stream. A window is opened only for what the other side has taken, so
//! that back-pressure is the peers' own. All of a connection's streams live
//! in its one task.
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
    time::{Duration, SystemTime},
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
    exchange::{Account, Exchange, MAX_BODY_START, Peer, RULE_HEADER, belies, lock, stall},
    failure,
    h1::{End, intern},
};
use crate::{
    flow::{Content, Failure, Headers, MAX_CONTENT, Protocol, Request, Response},
    rules::{Abort, Field, Phase, Reply, Ruling, describes_body},
};

/// What a stream may have under way before its receiver has taken it. On a
/// fast link with a long way a smaller window would be felt.
const STREAM_WINDOW: u32 = 1 << 20;
/// The most there is: a stream that nobody reads must not hold up the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Frames of ours; the protocol's least and everybody's default.
const FRAME: u32 = 16 * 1024;
/// How long a body is waited for that somebody wants to see whole.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
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
            Turn::Over(end) | Turn::Break(Break::End(end)) => return end,
            Turn::Break(Break::GoAway(reason)) => {
                server.abrupt_shutdown(reason);
                (accepting, aborted) = (false, true);
            }
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
    mut exchange: Exchange,
    peer: &Peer,
) -> Option<Break> {
    let (mut parts, mut request_body) = request.into_parts();
    name_authority(&mut parts, peer);
    let mut ahead = Ahead::default();
    let expects = parts.headers.contains_key(http::header::EXPECT);
    if exchange.wants_start() && !expects {
        ahead.read(&mut request_body, MAX_BODY_START).await;
        exchange.start(&ahead.content());
    }
    if exchange.wants_body(Phase::Request) {
        if !expects {
            ahead.read(&mut request_body, MAX_CONTENT).await;
        }
        let whole = request_body.is_end_stream() || ahead.ended;
        exchange.read(Phase::Request, if whole { Content::Whole(ahead.content().into()) } else { Content::Beyond });
    }
    let ruling = exchange.ruling(Phase::Request);
    let exchange = Mutex::new(exchange);
    if let Some(ruling) = ruling {
        let hold = lock(&exchange).hold(ruling.delay);
        tokio::select! {
            () = hold => {}
            _ = poll_fn(|context| respond.poll_reset(context)) => return None,
        }
        if ruling.reply.is_some() || ruling.abort.is_some() {
            return told(&ruling, respond, request_body, ahead, expects, &exchange).await;
        }
    }
    let method = parts.method.clone();
    let bodiless = request_body.is_end_stream() && ahead.is_empty();

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
            return None;
        }
    };
    let over = {
        let upload = Upload {
            running: !bodiless,
            body: pin!(pass(
                ahead,
                &mut request_body,
                &mut upstream_body,
                |bytes, _| lock(&exchange).sent(bytes),
                |_| ()
            )),
        };
        pass_response(respond, response, upload, &exchange, &method).await
    };
    match over {
        Over::Done => None,
        Over::ClientGone(reason) => {
            upstream_body.send_reset(reason);
            lock(&exchange).end(Some(Failure::Cancelled));
            None
        }
        Over::Broken(broken) => {
            upstream_body.send_reset(Reason::CANCEL);
            broken
        }
    }
}

/// A body as far as it was read before it was passed on.
#[derive(Debug, Default)]
struct Ahead {
    parts: VecDeque<Bytes>,
    length: usize,
    /// The body's data is there whole; trailers may follow.
    ended: bool,
}

impl Ahead {
    /// Reads until the body's end, past `limit`, or for as long as patience
    /// lasts. A failure is met again by whoever reads on.
    async fn read(&mut self, from: &mut RecvStream, limit: usize) {
        let all = async {
            // Not given back to the window before it is passed on.
            while self.length <= limit.min(STREAM_WINDOW as usize - 1) && !self.ended {
                match from.data().await {
                    Some(Ok(data)) => {
                        self.length += data.len();
                        self.parts.push_back(data);
                        self.ended = from.is_end_stream();
                    }
                    Some(Err(_)) => return,
                    None => self.ended = true,
                }
            }
        };
        // Late: whoever wanted to see it does not.
        let _ = tokio::time::timeout(BODY_PATIENCE, all).await;
    }

    fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn content(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.length);
        self.parts.iter().for_each(|part| content.extend_from_slice(part));
        content
    }
}

/// Answers in the upstream's place, or breaks off.
async fn told(
    ruling: &Ruling,
    mut respond: server::SendResponse<Bytes>,
    mut body: RecvStream,
    ahead: Ahead,
    expects: bool,
    exchange: &Mutex<Exchange>,
) -> Option<Break> {
    {
        let mut exchange = lock(exchange);
        ahead.parts.iter().for_each(|part| exchange.sent(part));
    }
    let _ = body.flow_control().release_capacity(ahead.length);
    drop(ahead);
    let Some(reply) = &ruling.reply else {
        let abort = ruling.abort?;
        return break_off(abort, &mut respond, exchange).await;
    };
    if reply.continue_then {
        if expects {
            let mut interim = http::Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            // A client that is gone is noticed below.
            let _ = respond.send_informational(interim);
        }
        take_in(&mut body, exchange).await;
    }
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        head.headers_mut().insert(http::header::DATE, date);
    }
    edit(head.headers_mut(), reply);
    let to_head = &**lock(exchange).method() == "HEAD";
    let content = reply.body.clone().unwrap_or_default();
    if !to_head && !matches!(reply.status, 204 | 304) && !content.is_empty() {
        head.headers_mut().insert(http::header::CONTENT_LENGTH, content.len().into());
    }
    let content = if to_head || matches!(reply.status, 204 | 304) { Bytes::new() } else { content };
    let sent = tell(&mut respond, head, content, ruling.abort, exchange).await;
    if sent {
        // The client may go on sending; it is heard out.
        take_in(&mut body, exchange).await;
    }
    None
}

/// Reads a body that goes nowhere.
async fn take_in(body: &mut RecvStream, exchange: &Mutex<Exchange>) {
    while let Some(Ok(data)) = body.data().await {
        lock(exchange).sent(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
}

/// Sends a whole response of a rule's. False if the client is gone, or was cut
/// off.
async fn tell(
    respond: &mut server::SendResponse<Bytes>,
    head: http::Response<()>,
    mut content: Bytes,
    abort: Option<Abort>,
    exchange: &Mutex<Exchange>,
) -> bool {
    let mut cut = false;
    if let Some(Abort::Truncate(after)) = abort {
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        cut = after < content.len();
        content.truncate(after);
    }
    {
        let mut exchange = lock(exchange);
        exchange.received(&content);
        // The client may ask again as soon as it has this.
        exchange.end(None);
    }
    let ends = content.is_empty() && !cut;
    let Ok(mut body) = respond.send_response(head, ends) else { return false };
    if !ends && send(&mut body, content, !cut).await.is_err() {
        return false;
    }
    if cut {
        flushed().await;
        body.send_reset(Reason::INTERNAL_ERROR);
    }
    !cut
}

/// How a rule's abort ends a stream, or its connection.
async fn break_off(
    abort: Abort,
    respond: &mut server::SendResponse<Bytes>,
    exchange: &Mutex<Exchange>,
) -> Option<Break> {
    let (broken, reset, failure) = match abort {
        Abort::Reset => (Some(Break::End(End::Reset)), None, Failure::Reset),
        Abort::Close => (Some(Break::End(End::Closed)), None, Failure::Closed),
        Abort::TlsAlert => (Some(Break::End(End::Alert)), None, Failure::Closed),
        Abort::GoAway(code) => (Some(Break::GoAway(Reason::from(code))), None, Failure::Closed),
        Abort::RefusedStream => (None, Some(Reason::REFUSED_STREAM), Failure::Reset),
        Abort::RstStream(code) => (None, Some(Reason::from(code)), Failure::Reset),
        Abort::Truncate(_) => (None, Some(Reason::INTERNAL_ERROR), Failure::Closed),
        Abort::Stall(time) => {
            tokio::select! {
                () = stall(time) => {}
                _ = poll_fn(|context| respond.poll_reset(context)) => {}
            }
            (None, Some(Reason::CANCEL), Failure::TimedOut)
        }
    };
    lock(exchange).end(Some(failure));
    if let Some(reason) = reset {
        respond.send_reset(reason);
    }
    broken
}

/// A rule's changes to a head.
fn edit(headers: &mut HeaderMap, reply: &Reply) {
    let mut unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str().as_bytes();
            belies(name, reply.status) || (reply.body.is_some() && describes_body(name))
        })
        .cloned()
        .collect();
    // HTTP/2 has no such field (RFC 9113 §8.2.2).
    unwanted.push(http::header::CONNECTION);
    for field in &reply.headers {
        let (name, value, add) = match field {
            Field::Set(name, value) => (name, Some(value), false),
            Field::Add(name, value) => (name, Some(value), true),
            Field::Remove(name) => (name, None, false),
        };
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        if !add
            && let Some(at) = unwanted.iter().position(|it| *it == name)
            && name != http::header::CONNECTION
        {
            unwanted.swap_remove(at);
            headers.remove(&name);
        }
        match value.map(|value| HeaderValue::from_str(value)) {
            Some(Ok(value)) if add => drop(headers.append(name, value)),
            Some(Ok(value)) => drop(headers.insert(name, value)),
            Some(Err(_)) => {}
            None => drop(headers.remove(&name)),
        }
    }
    for name in unwanted {
        headers.remove(name);
    }
    if let Some(Ok(rule)) = reply.signature.as_deref().map(HeaderValue::from_str) {
        headers.append(HeaderName::from_static(RULE_HEADER), rule);
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
    /// A rule broke it off.
    Broken(Option<Break>),
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
    let wants_body = {
        let mut exchange = lock(exchange);
        exchange.responded(Response {
            status: parts.status.as_u16(),
            reason: String::new(),
            headers: fields(&parts.headers),
        });
        exchange.wants_body(Phase::Response)
    };
    let mut ahead = Ahead::default();
    if wants_body {
        beside(&mut upload, ahead.read(&mut response_body, MAX_CONTENT)).await;
        let whole = ahead.ended || response_body.is_end_stream();
        let content = if whole { Content::Whole(ahead.content().into()) } else { Content::Beyond };
        lock(exchange).read(Phase::Response, content);
    }
    let ruling = lock(exchange).ruling(Phase::Response);
    let mut keep_body = true;
    let mut cut = None;
    if let Some(ruling) = &ruling {
        let hold = lock(exchange).hold(ruling.delay);
        let mut hold = pin!(beside(&mut upload, hold));
        loop {
            tokio::select! {
                biased;
                () = &mut hold => break,
                reset = poll_fn(|context| respond.poll_reset(context)), if resets_told => match reset {
                    Ok(reason) => return Over::ClientGone(reason),
                    Err(_) => resets_told = false,
                },
            }
        }
        match ruling.abort {
            Some(Abort::Truncate(after)) => cut = Some(usize::try_from(after).unwrap_or(usize::MAX)),
            Some(abort) => {
                return Over::Broken(break_off(abort, &mut respond, exchange).await);
            }
            None => {}
        }
    }
    if let Some((ruling, reply)) = ruling.as_ref().and_then(|ruling| Some((ruling, ruling.reply.as_ref()?))) {
        // A status that a rule may give is a valid one.
        parts.status = StatusCode::from_u16(reply.status).unwrap_or(parts.status);
        let empty = response_body.is_end_stream() && ahead.is_empty();
        edit(&mut parts.headers, reply);
        if let Some(content) = &reply.body {
            let silent = *method == Method::HEAD || matches!(reply.status, 204 | 304);
            let content = if silent { Bytes::new() } else { content.clone() };
            if !silent {
                parts.headers.insert(http::header::CONTENT_LENGTH, content.len().into());
            }
            let head = http::Response::from_parts(parts, ());
            let told = tell(&mut respond, head, content, ruling.abort, exchange).await;
            // The genuine body is let go of, and with it the upstream's
            // stream; what the client still sends is heard out first.
            if told && upload.running {
                let _ = upload.body.await;
            }
            return Over::Broken(None);
        }
        if empty && *method != Method::HEAD {
            // A 304 may tell a length that no other bodiless status may.
            parts.headers.remove(http::header::CONTENT_LENGTH);
        }
        if matches!(reply.status, 204 | 304) && *method != Method::HEAD {
            parts.headers.remove(http::header::CONTENT_LENGTH);
            keep_body = false;
        }
    }
    let ends = (response_body.is_end_stream() && ahead.is_empty()) || !keep_body;
    if ends {
        // The client may ask again as soon as it has this.
        lock(exchange).end(None);
    }
    let Ok(mut client_body) = respond.send_response(http::Response::from_parts(parts, ()), ends) else {
        return Over::ClientGone(Reason::CANCEL);
    };

    let outcome = {
        let mut download = pin!(async {
            if let Some(cut) = cut.filter(|_| keep_body && !ends) {
                pass_cut(ahead, &mut response_body, &mut client_body, cut, |bytes| lock(exchange).received(bytes)).await
            } else if keep_body && !ends {
                pass(
                    ahead,
                    &mut response_body,
                    &mut client_body,
                    |bytes, last| {
                        let mut exchange = lock(exchange);
                        exchange.received(bytes);
                        if last {
                            exchange.end(None);
                        }
                    },
                    |trailers| lock(exchange).trailed(trailers),
                )
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
async fn pass(
    mut ahead: Ahead,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut seen: impl FnMut(&[u8], bool),
    trailed: impl FnOnce(&HeaderMap),
) -> Result<(), Cut> {
    while let Some(data) = ahead.parts.pop_front() {
        let last = ahead.is_empty() && from.is_end_stream();
        let length = data.len();
        seen(&data, last);
        send(to, data, last).await?;
        let _ = from.flow_control().release_capacity(length);
        if last {
            return Ok(());
        }
    }
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
    if let Ok(Some(trailers)) = &trailers {
        trailed(trailers);
    }
    if trailers.is_ok() {
        seen(&[], true);
    }
    match trailers {
        Ok(Some(trailers)) => to.send_trailers(trailers).map_err(|error| Cut::Sink(reason_for(&error))),
        Ok(None) => to.send_data(Bytes::new(), true).map_err(|error| Cut::Sink(reason_for(&error))),
        Err(error) => Err(Cut::Source(reason_for(&error))),
    }
}

/// Passes the start of a body and breaks the stream off after it; a shorter
/// body passes whole.
async fn pass_cut(
    mut ahead: Ahead,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    mut left: usize,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), Cut> {
    loop {
        let mut data = match ahead.parts.pop_front() {
            Some(data) => data,
            None => match from.data().await {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Err(Cut::Source(reason_for(&error))),
                None => return pass(ahead, from, to, |_, _| (), |_| ()).await,
            },
        };
        let length = data.len();
        let whole = length <= left && ahead.is_empty() && from.is_end_stream();
        data.truncate(left);
        left -= data.len();
        seen(&data);
        send(to, data, whole).await?;
        let _ = from.flow_control().release_capacity(length);
        if whole {
            return Ok(());
        }
        if left == 0 {
            return Err(Cut::Source(Reason::INTERNAL_ERROR));
        }
    }
}

/// Waits for `what`, while the upload goes on.
async fn beside<F: Future<Output = Result<(), Cut>>>(upload: &mut Upload<'_, F>, what: impl Future<Output = ()>) {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            () = &mut what => return,
            // Its failure is the response's to show.
            _ = &mut upload.body, if upload.running => upload.running = false,
        }
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
