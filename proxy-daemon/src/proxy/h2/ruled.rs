//! The rules' part in an HTTP/2 exchange: what becomes of a stream that they
//! decide on.
use std::{future::poll_fn, sync::Mutex, time::SystemTime};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    Break,
    link::{Link, Side},
    pass::{Ahead, Cut, flushed, pass, reason_for, send},
};
use crate::{
    flow::Failure,
    proxy::{
        exchange::{Exchange, RULE_HEADER, belies, lock, stall},
        h1::End,
        holds::Edit,
    },
    rules::{Abort, Field, Reply, Ruling, describes_body},
};

/// Answers in the upstream's place, or breaks off.
pub(super) async fn told(
    ruling: &Ruling,
    mut respond: server::SendResponse<Bytes>,
    mut body: RecvStream,
    ahead: Ahead,
    expects: bool,
    exchange: &Mutex<Exchange>,
    link: &Link,
) -> Option<Break> {
    link.greet(Side::Client);
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
    let sent = tell(&mut respond, head, content, ruling.abort, exchange, link).await;
    if sent {
        // The client may go on sending; it is heard out.
        take_in(&mut body, exchange).await;
    }
    None
}

/// Changes a request as a person wants it, and says whether another body took
/// the genuine one's place; that one has been taken in then.
pub(super) fn ask_otherwise(
    edit: &Edit,
    parts: &mut http::request::Parts,
    ahead: &mut Ahead,
    body: &mut RecvStream,
    exchange: &Mutex<Exchange>,
) -> bool {
    if let Some(method) = edit.method.as_ref().and_then(|method| method.parse().ok()) {
        parts.method = method;
    }
    if let Some(target) = &edit.target {
        let mut uri = parts.uri.clone().into_parts();
        uri.path_and_query = target.parse().ok().or(uri.path_and_query);
        if let Ok(uri) = http::Uri::from_parts(uri) {
            parts.uri = uri;
        }
    }
    change(&mut parts.headers, &edit.headers);
    let Some(content) = &edit.body else { return false };
    for part in ahead.parts.drain(..) {
        lock(exchange).sent(&part);
    }
    let _ = body.flow_control().release_capacity(ahead.length);
    ahead.length = content.len();
    ahead.parts.extend(Some(content.clone()).filter(|content| !content.is_empty()));
    for name in [http::header::CONTENT_ENCODING, http::header::TRAILER] {
        parts.headers.remove(name);
    }
    let had_length = parts.headers.remove(http::header::CONTENT_LENGTH).is_some();
    if had_length || !content.is_empty() {
        parts.headers.insert(http::header::CONTENT_LENGTH, content.len().into());
    }
    true
}

/// Reads a body that goes nowhere.
pub(super) async fn take_in(body: &mut RecvStream, exchange: &Mutex<Exchange>) {
    while let Some(Ok(data)) = body.data().await {
        lock(exchange).sent(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
}

/// Sends a whole response of a rule's. False if the client is gone, or was cut
/// off.
pub(super) async fn tell(
    respond: &mut server::SendResponse<Bytes>,
    head: http::Response<()>,
    mut content: Bytes,
    abort: Option<Abort>,
    exchange: &Mutex<Exchange>,
    link: &Link,
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
        flushed(link, Side::Client).await;
        body.send_reset(Reason::INTERNAL_ERROR);
    }
    !cut
}

/// How a rule's abort ends a stream, or its connection.
pub(super) async fn break_off(
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
pub(super) fn edit(headers: &mut HeaderMap, reply: &Reply) {
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
        let Ok(name) = HeaderName::from_bytes(field.name().as_bytes()) else { continue };
        if !matches!(field, Field::Add(..))
            && let Some(at) = unwanted.iter().position(|it| *it == name)
            && name != http::header::CONNECTION
        {
            unwanted.swap_remove(at);
            headers.remove(&name);
        }
        change(headers, std::slice::from_ref(field));
    }
    for name in unwanted {
        headers.remove(name);
    }
    if let Some(Ok(rule)) = reply.signature.as_deref().map(HeaderValue::from_str) {
        headers.append(HeaderName::from_static(RULE_HEADER), rule);
    }
}

fn change(headers: &mut HeaderMap, fields: &[Field]) {
    for field in fields {
        let (name, value, add) = match field {
            Field::Set(name, value) => (name, Some(value), false),
            Field::Add(name, value) => (name, Some(value), true),
            Field::Remove(name) => (name, None, false),
        };
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        match value.map(|value| HeaderValue::from_str(value)) {
            Some(Ok(value)) if add => drop(headers.append(name, value)),
            Some(Ok(value)) => drop(headers.insert(name, value)),
            Some(Err(_)) => {}
            None => drop(headers.remove(&name)),
        }
    }
}

/// Passes the start of a body and breaks the stream off after it; a shorter
/// body passes whole.
pub(super) async fn pass_cut(
    mut ahead: Ahead,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    link: &Link,
    mut left: usize,
    mut seen: impl FnMut(&[u8]),
) -> Result<(), Cut> {
    loop {
        let mut data = match ahead.parts.pop_front() {
            Some(data) => data,
            None => match from.data().await {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Err(Cut::Source(reason_for(&error))),
                None => return pass(ahead, from, to, (link, Side::Client), |_, _| (), |_| ()).await,
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
