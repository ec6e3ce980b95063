//! One stream, from its request to its last trailer.
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, Method, StatusCode};

use super::{
    Break,
    link::{Asking, Link, Side},
    pass::{Ahead, Cut, flushed, pass, reason_for, swallow},
    ruled::{ask_otherwise, break_off, edit, pass_cut, tell, told},
};
use crate::{
    flow::{Content, Failure, Headers, MAX_CONTENT, Protocol, Request, Response},
    proxy::{
        exchange::{Account, Exchange, MAX_BODY_START, Peer, lock},
        failure,
        h1::intern,
    },
    rules::{Abort, Phase},
};

/// h2 calls a stream whose connection has ended a broken pipe.
pub(super) fn io_failure(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Failure::Closed } else { failure::of(error) }
}

/// The failure that an upstream's stream error stands for.
pub(super) fn failure_of(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(error) => io_failure(error),
        None if error.is_reset() && error.is_remote() => Failure::Reset,
        None if error.is_go_away() => Failure::Closed,
        None => Failure::Protocol,
    }
}

/// Passes one stream, from its request to its last trailer.
pub(super) async fn stream(
    request: http::Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    sender: client::SendRequest<Bytes>,
    exchange: Box<Mutex<Exchange>>,
    peer: &Peer,
    link: &Link,
    asking: Asking<'_>,
) -> Option<Break> {
    let (mut parts, mut request_body) = request.into_parts();
    name_authority(&mut parts, peer);
    let mut ahead = Ahead::default();
    let expects = parts.headers.contains_key(http::header::EXPECT);
    let wants_start = lock(&exchange).wants_start();
    if wants_start && !expects {
        Box::pin(ahead.read(&mut request_body, MAX_BODY_START)).await;
        lock(&exchange).start(&ahead.content());
    }
    let wants_body = lock(&exchange).wants_body(Phase::Request);
    if wants_body {
        if !expects {
            Box::pin(ahead.read(&mut request_body, MAX_CONTENT)).await;
        }
        let whole = request_body.is_end_stream() || ahead.ended;
        let content = if whole { Content::Whole(ahead.content().into()) } else { Content::Beyond };
        lock(&exchange).read(Phase::Request, content);
    }
    let mut ruling = lock(&exchange).ruling(Phase::Request);
    if let Some(ruling) = &ruling {
        let delay = Box::pin(lock(&exchange).delay(ruling.delay));
        tokio::select! {
            () = delay => {}
            _ = poll_fn(|context| respond.poll_reset(context)) => return None,
        }
    }
    let mut edited = false;
    let hold = lock(&exchange).hold(Phase::Request, ruling.as_ref());
    if let Some(mut hold) = hold {
        let decision = tokio::select! {
            biased;
            decision = hold.decided() => decision,
            _ = poll_fn(|context| respond.poll_reset(context)) => return None,
        };
        let edit;
        (ruling, edit) = lock(&exchange).decided(Phase::Request, decision, ruling);
        if let Some(edit) = edit {
            edited = ask_otherwise(&edit, &mut parts, &mut ahead, &mut request_body, &exchange);
        }
    }
    if let Some(ruling) = ruling
        && (ruling.reply.is_some() || ruling.abort.is_some())
    {
        drop(asking);
        return Box::pin(told(&ruling, respond, request_body, ahead, expects, &exchange, link)).await;
    }
    let method = parts.method.clone();
    let bodiless = request_body.is_end_stream() && ahead.is_empty();

    let sent = match sender.ready().await {
        Ok(mut sender) => sender.send_request(http::Request::from_parts(parts, ()), bodiless),
        Err(error) => Err(error),
    };
    drop(asking);
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
        let sent = |bytes: &[u8], _| {
            // The client's own has been told of where another took its place.
            if !edited {
                lock(&exchange).sent(bytes);
            }
        };
        let side = (link, Side::Upstream);
        let upload = Upload {
            running: !bodiless,
            body: if bodiless {
                // Takes no room, and is never looked at.
                Box::pin(std::future::pending())
            } else {
                let trailed = |trailers| lock(&exchange).request_trailed(trailers);
                Box::pin(pass(ahead, &mut request_body, &mut upstream_body, side, sent, trailed))
            },
        };
        pass_response(respond, response, upload, &exchange, &method, link).await
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

/// The request's body on its way up, beside whatever else happens.
pub(super) struct Upload<'a> {
    running: bool,
    body: Pin<Box<dyn Future<Output = Result<(), Cut>> + Send + 'a>>,
}

/// How a stream came to its end.
pub(super) enum Over {
    /// It was passed whole, or its failure was.
    Done,
    ClientGone(Reason),
    /// A rule broke it off.
    Broken(Option<Break>),
}

/// Passes what comes down, while the request's body goes up.
pub(super) async fn pass_response(
    mut respond: server::SendResponse<Bytes>,
    response: client::ResponseFuture,
    mut upload: Upload<'_>,
    exchange: &Mutex<Exchange>,
    method: &Method,
    link: &Link,
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
        Box::pin(beside(&mut upload, ahead.read(&mut response_body, MAX_CONTENT))).await;
        let whole = ahead.ended || response_body.is_end_stream();
        let content = if whole { Content::Whole(ahead.content().into()) } else { Content::Beyond };
        lock(exchange).read(Phase::Response, content);
    }
    let mut ruling = lock(exchange).ruling(Phase::Response);
    let mut keep_body = true;
    let mut cut = None;
    if let Some(ruling) = &ruling {
        let delay = lock(exchange).delay(ruling.delay);
        let delayed = Box::pin(unless_reset(&mut respond, &mut resets_told, beside(&mut upload, delay)));
        if let Some(reason) = delayed.await.err() {
            return Over::ClientGone(reason);
        }
    }
    let hold = lock(exchange).hold(Phase::Response, ruling.as_ref());
    if let Some(mut hold) = hold {
        let decided = beside(&mut upload, hold.decided());
        let decision = match Box::pin(unless_reset(&mut respond, &mut resets_told, decided)).await {
            Ok(decision) => decision,
            Err(reason) => return Over::ClientGone(reason),
        };
        ruling = lock(exchange).decided(Phase::Response, decision, ruling).0;
    }
    if let Some(ruling) = &ruling {
        match ruling.abort {
            Some(Abort::Truncate(after)) => cut = Some(usize::try_from(after).unwrap_or(usize::MAX)),
            Some(abort) => {
                return Over::Broken(Box::pin(break_off(abort, &mut respond, exchange)).await);
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
            let told = Box::pin(tell(&mut respond, head, content, ruling.abort, exchange, link)).await;
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
                let received = |bytes: &[u8]| lock(exchange).received(bytes);
                Box::pin(pass_cut(ahead, &mut response_body, &mut client_body, link, cut, received)).await
            } else if keep_body && !ends {
                pass(
                    ahead,
                    &mut response_body,
                    &mut client_body,
                    (link, Side::Client),
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
                        flushed(link, Side::Client).await;
                        client_body.send_reset(reason);
                    }
                    Err(Cut::Source(reason)) => return Over::ClientGone(reason),
                }
            }
            Over::Done
        }
        Err(Cut::Source(reason)) => {
            lock(exchange).end(Some(if reason == Reason::NO_ERROR { Failure::Closed } else { Failure::Reset }));
            flushed(link, Side::Client).await;
            client_body.send_reset(reason);
            Over::Done
        }
        Err(Cut::Sink(reason)) => Over::ClientGone(reason),
    }
}

/// Waits for `what`, unless the client resets the stream first. `told`: it can
/// be told whether it does.
async fn unless_reset<T>(
    respond: &mut server::SendResponse<Bytes>,
    told: &mut bool,
    what: impl Future<Output = T>,
) -> Result<T, Reason> {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return Ok(done),
            reset = poll_fn(|context| respond.poll_reset(context)), if *told => match reset {
                Ok(reason) => return Err(reason),
                Err(_) => *told = false,
            },
        }
    }
}

pub(super) enum Step {
    Interim(http::Response<()>),
    Final(Result<http::Response<RecvStream>, h2::Error>),
}

pub(super) async fn next_head(mut response: Pin<&mut client::ResponseFuture>) -> Step {
    poll_fn(|context| {
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(context) {
            return Poll::Ready(Step::Interim(interim));
        }
        response.as_mut().poll(context).map(Step::Final)
    })
    .await
}

/// Waits for `what`, while the upload goes on.
pub(super) async fn beside<T>(upload: &mut Upload<'_>, what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            done = &mut what => return done,
            // Its failure is the response's to show.
            _ = &mut upload.body, if upload.running => upload.running = false,
        }
    }
}

pub(super) fn begin(request: &http::Request<RecvStream>, account: &Arc<Account>, peer: &Peer) -> Box<Mutex<Exchange>> {
    Box::new(Mutex::new(Exchange::begin(account, peer, Protocol::Http2, record(request, peer))))
}

/// A client may name the authority by `host` alone (RFC 9113 §8.3.1), which
/// h2 takes and does not send.
pub(super) fn name_authority(parts: &mut http::request::Parts, peer: &Peer) {
    if parts.uri.authority().is_some() || parts.method == Method::CONNECT {
        return;
    }
    let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(&peer.name);
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    if let Ok(uri) = http::Uri::builder().scheme("https").authority(host).path_and_query(target).build() {
        parts.uri = uri;
    }
}

pub(super) fn record(request: &http::Request<RecvStream>, peer: &Peer) -> Request {
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

pub(super) fn fields(headers: &HeaderMap) -> Headers {
    Headers::copied(headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned<A, B, C, D, E, F, G, T>(_: impl Fn(A, B, C, D, E, F, G) -> T) -> usize {
        std::mem::size_of::<T>()
    }

    /// It is moved once for each request: what seldom happens is boxed.
    #[test]
    fn a_stream_is_small() {
        let bytes = returned(|a, b, c, d, peer: &'static Peer, link: &'static Link, asking: Asking<'static>| {
            stream(a, b, c, d, peer, link, asking)
        });
        assert!(bytes <= 3072, "{bytes}");
    }
}
