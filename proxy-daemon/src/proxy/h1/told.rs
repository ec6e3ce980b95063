//! What a rule tells an HTTP/1 client: heads written anew, and heads changed.
use std::time::SystemTime;

use bytes::Bytes;

use super::{
    super::exchange::{RULE_HEADER, belies},
    head::{self, Framing},
};
use crate::{
    flow::{Headers, Protocol, Request},
    proxy::holds::Edit,
    rules::{Field, Reply, describes_body},
};

/// A rule's message, ready to be written.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) head: Vec<u8>,
    /// `None`: the genuine body follows.
    pub(super) body: Option<Bytes>,
    /// The connection ends with it.
    pub(super) closes: bool,
}

/// Whether the client expects the connection to end with the answer.
pub(super) fn is_last(request: &Request, protocol: Protocol) -> bool {
    let says = |word: &[u8]| lists(&request.headers, word);
    says(b"close") || (protocol == Protocol::Http10 && !says(b"keep-alive"))
}

fn lists(headers: &Headers, word: &[u8]) -> bool {
    headers
        .all("connection")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
}

fn has_no_body(status: u16) -> bool {
    matches!(status, 204 | 304)
}

fn usual_reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}

/// An answer that no upstream has given.
pub(super) fn answer(reply: &Reply, request: &Request, protocol: Protocol) -> Message {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nDate: {}\r\n",
        reply.status,
        reply.reason.as_deref().unwrap_or_else(|| usual_reason(reply.status)),
        httpdate::fmt_http_date(SystemTime::now())
    );
    let mut closes = is_last(request, protocol);
    let body = if has_no_body(reply.status) { Bytes::new() } else { reply.body.clone().unwrap_or_default() };
    for field in &reply.headers {
        if let Field::Set(name, value) | Field::Add(name, value) = field {
            closes |= name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close");
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    if closes && !reply.headers.iter().any(|field| sets(field, b"connection")) {
        head.push_str("Connection: close\r\n");
    }
    if &*request.method != "HEAD" && !has_no_body(reply.status) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if let Some(rule) = &reply.signature {
        head.push_str(&format!("{RULE_HEADER}: {rule}\r\n"));
    }
    head.push_str("\r\n");
    let body = if &*request.method == "HEAD" { Bytes::new() } else { body };
    Message { head: head.into_bytes(), body: Some(body), closes }
}

/// A request's head as a person has changed it; a body that takes the genuine
/// one's place is told of.
pub(super) fn asked(head: &[u8], edit: &Edit) -> Vec<u8> {
    let mut extra: Vec<(&str, String)> = Vec::new();
    let mut drop: Vec<&str> = Vec::new();
    for field in &edit.headers {
        if let Field::Set(name, _) | Field::Remove(name) = field {
            drop.push(name);
            extra.retain(|(it, _)| !it.eq_ignore_ascii_case(name));
        }
        if let Field::Set(name, value) | Field::Add(name, value) = field {
            extra.push((name, value.to_string()));
        }
    }
    if let Some(body) = &edit.body {
        drop.extend(["content-length", "transfer-encoding", "trailer", "content-encoding"]);
        extra.push(("Content-Length", body.len().to_string()));
    }
    let unwanted = |name: &[u8]| drop.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()));
    head::request_anew(head, edit.method.as_deref(), edit.target.as_deref(), unwanted, &extra)
}

fn sets(field: &Field, name: &[u8]) -> bool {
    match field {
        Field::Set(it, _) | Field::Add(it, _) => it.as_bytes().eq_ignore_ascii_case(name),
        Field::Remove(_) => false,
    }
}

/// What becomes of a genuine response's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Genuine<'a> {
    pub(super) head: &'a [u8],
    pub(super) status: u16,
    pub(super) reason: &'a str,
    pub(super) framing: Framing,
    pub(super) method: &'a str,
    /// It would leave HTTP.
    pub(super) leaves: bool,
}

/// A genuine response, told otherwise. `close`: the connection cannot go on
/// after it.
pub(super) fn otherwise(genuine: Genuine<'_>, reply: &Reply, close: bool) -> Message {
    let to_head = genuine.method == "HEAD";
    let bodiless = has_no_body(reply.status);
    let mut body = reply.body.clone();
    let mut drop: Vec<&str> = Vec::new();
    let mut extra: Vec<(&str, String)> = Vec::new();
    let mut closes = close || genuine.leaves;
    if genuine.leaves || (body.is_none() && bodiless && !to_head) {
        body.get_or_insert_default();
    }
    if body.is_some() {
        drop.extend(["content-length", "transfer-encoding", "trailer"]);
        if bodiless {
            body = Some(Bytes::new());
        } else if !to_head {
            extra.push(("Content-Length", body.as_ref().map_or(0, Bytes::len).to_string()));
        }
    } else if genuine.framing == Framing::None && !to_head {
        // A 204 or 304 says nothing of a length; any other status must.
        drop.extend(["content-length", "transfer-encoding"]);
        extra.push(("Content-Length", "0".into()));
    }
    if genuine.leaves {
        drop.push("upgrade");
    }
    if closes {
        drop.push("connection");
        extra.push(("Connection", "close".into()));
    }
    for field in &reply.headers {
        match field {
            Field::Set(name, value) => {
                drop.push(name);
                extra.push((name, value.to_string()));
            }
            Field::Add(name, value) => extra.push((name, value.to_string())),
            Field::Remove(name) => drop.push(name),
        }
        closes |= sets(field, b"connection");
    }
    extra.extend(reply.signature.as_ref().map(|rule| (RULE_HEADER, rule.to_string())));
    let replaced = reply.body.is_some();
    let unwanted = |name: &[u8]| {
        drop.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes()))
            || belies(name, reply.status)
            || (replaced && describes_body(name))
    };
    let reason = match &reply.reason {
        Some(reason) => reason,
        None if reply.status == genuine.status => genuine.reason,
        None => usual_reason(reply.status),
    };
    let head = head::rewrite(genuine.head, reply.status, reason, unwanted, &extra);
    let body = if to_head { body.map(|_| Bytes::new()) } else { body };
    Message { head, body, closes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: Option<&'static str>) -> Reply {
        Reply {
            signature: Some("r".into()),
            status,
            reason: None,
            headers: vec![Field::Set("content-type".into(), "text/plain".into()), Field::Remove("X-Gone".into())],
            body: body.map(|text| Bytes::from_static(text.as_bytes())),
            continue_then: false,
        }
    }

    fn told(method: &str, framing: Framing, reply: &Reply) -> (String, Option<Bytes>) {
        let head =
            b"HTTP/1.1 200 Fine\r\nContent-Length: 9\r\nContent-Type: a/b\r\nETag: x\r\nX-Gone: 1\r\nX-Kept: 2\r\n\r\n";
        let genuine = Genuine { head, status: 200, reason: "Fine", framing, method, leaves: false };
        let message = otherwise(genuine, reply, false);
        (String::from_utf8(message.head).expect("text"), message.body)
    }

    #[test]
    fn another_body_takes_its_description_with_it() {
        let (head, body) = told("GET", Framing::Length(9), &reply(503, Some("slow")));
        assert_eq!(
            head,
            "HTTP/1.1 503 Service Unavailable\r\nX-Kept: 2\r\nContent-Length: 4\r\ncontent-type: text/plain\r\nx-retryscope-rule: r\r\n\r\n"
        );
        assert_eq!(body.as_deref(), Some(&b"slow"[..]));
    }

    #[test]
    fn the_genuine_body_keeps_its_description() {
        let (head, body) = told("GET", Framing::Length(9), &reply(200, None));
        assert_eq!(
            head,
            "HTTP/1.1 200 Fine\r\nContent-Length: 9\r\nETag: x\r\nX-Kept: 2\r\ncontent-type: text/plain\r\nx-retryscope-rule: r\r\n\r\n"
        );
        assert_eq!(body, None);
    }

    #[test]
    fn nothing_follows_a_204_or_an_answer_to_head() {
        let (head, body) = told("GET", Framing::Length(9), &reply(204, None));
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        assert_eq!(body.as_deref(), Some(&b""[..]));
        let (head, body) = told("HEAD", Framing::None, &reply(503, Some("slow")));
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        assert_eq!(body.as_deref(), Some(&b""[..]));
    }
}
