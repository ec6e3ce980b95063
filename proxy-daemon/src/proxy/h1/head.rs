//! HTTP/1 heads and body framing: a function from bytes to what they mean.
//!
//! In: the bytes of a connection. Out: the head's length, its fields (sharing
//! the buffer) and how the body after it is delimited (RFC 9112 §6.3). The
//! bytes themselves are forwarded as they came; nothing is normalised.
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use crate::flow::{Headers, Protocol, Request, Response};

/// Heads longer than this are not understood but passed on opaquely. Servers
/// refuse far shorter ones.
pub(super) const MAX_HEAD: usize = 256 * 1024;

const USUAL_FIELDS: usize = 64;
const MAX_FIELDS: usize = 4096;

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Responses only: the body ends with the connection.
    UntilClose,
}

/// What the first bytes of a message are.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    Partial,
    /// Not HTTP/1, or HTTP/1 whose framing is in doubt.
    Opaque,
    Head(T),
}

#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) length: usize,
    pub(super) request: Request,
    pub(super) protocol: Protocol,
    pub(super) framing: Framing,
    /// The client asked to leave HTTP: `Upgrade`, or `CONNECT`.
    pub(super) leaves_http: bool,
}

#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) length: usize,
    pub(super) response: Response,
    /// What the header fields alone say; see [`ResponseHead::framing`].
    declared: Option<Framing>,
}

/// Parses a request head at the start of `bytes`; `fallback` names the
/// authority where the request does not (HTTP/1.0).
pub(super) fn request(bytes: &Bytes, fallback: &Arc<str>) -> Parsed<RequestHead> {
    let mut usual = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    let mut head = httparse::Request::new(&mut usual);
    let mut many;
    let mut outcome = head.parse(bytes);
    if outcome == Err(httparse::Error::TooManyHeaders) {
        many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        head = httparse::Request::new(&mut many);
        outcome = head.parse(bytes);
    }
    let length = match outcome {
        Ok(httparse::Status::Complete(length)) => length,
        unfinished => return without_head(unfinished, bytes),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Parsed::Opaque;
    };
    let headers = fields(bytes.slice(..length), head.headers);
    let framing = match declared(&headers) {
        Ok(framing) => framing.unwrap_or(Framing::None),
        Err(Doubtful) => return Parsed::Opaque,
    };
    if framing == Framing::UntilClose {
        // A request cannot end with the connection (RFC 9112 §6.3, 4).
        return Parsed::Opaque;
    }
    let (authority, target) = match absolute(target) {
        Some((authority, target)) => (Arc::from(authority), target),
        None => (
            headers.text("host").filter(|host| !host.is_empty()).map_or_else(|| Arc::clone(fallback), Arc::from),
            target,
        ),
    };
    let leaves_http = method == "CONNECT" || headers.get("upgrade").is_some();
    Parsed::Head(RequestHead {
        length,
        request: Request { method: intern(method), authority, target: target.into(), headers },
        protocol: if minor == 0 { Protocol::Http10 } else { Protocol::Http11 },
        framing,
        leaves_http,
    })
}

/// The start of a head that is longer than [`MAX_HEAD`], up to its last whole
/// line, as if it ended there. `None` where that is not what is in the way.
fn cut(bytes: &Bytes) -> Option<Bytes> {
    let bytes = bytes.get(..bytes.len().min(MAX_HEAD)).filter(|_| bytes.len() >= MAX_HEAD)?;
    let end = bytes.windows(2).rposition(|pair| pair == b"\r\n")? + 2;
    Some([&bytes[..end], b"\r\n"].concat().into())
}

/// What is known of a request whose head is too long to be read whole: its first
/// fields, and, where not even its target has come whole, its method.
pub(super) fn cut_request(bytes: &Bytes, peer: &Arc<str>) -> Option<(Request, Protocol)> {
    if bytes.len() < MAX_HEAD {
        return None;
    }
    if let Some(Parsed::Head(head)) = cut(bytes).map(|start| request(&start, peer)) {
        return Some((head.request, head.protocol));
    }
    let mut words = bytes.split(|byte| *byte == b' ');
    let method = std::str::from_utf8(words.next()?).ok()?;
    let target = String::from_utf8_lossy(words.next()?.get(..SHOWN)?).into_owned();
    let known = target.starts_with('/') && !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    let request = Request {
        method: intern(method),
        authority: Arc::clone(peer),
        target: format!("{target}…").into(),
        headers: Headers::default(),
    };
    known.then_some((request, Protocol::Http11))
}

/// What is told of a target that is too long, in bytes.
const SHOWN: usize = 200;

/// The same of a response.
pub(super) fn cut_response(bytes: &Bytes) -> Option<Response> {
    match response(&cut(bytes)?) {
        Parsed::Head(head) => Some(head.response),
        _ => None,
    }
}

/// Parses a response head at the start of `bytes`.
pub(super) fn response(bytes: &Bytes) -> Parsed<ResponseHead> {
    let mut usual = [httparse::EMPTY_HEADER; USUAL_FIELDS];
    let mut head = httparse::Response::new(&mut usual);
    let mut many;
    let mut outcome = head.parse(bytes);
    if outcome == Err(httparse::Error::TooManyHeaders) {
        many = vec![httparse::EMPTY_HEADER; MAX_FIELDS];
        head = httparse::Response::new(&mut many);
        outcome = head.parse(bytes);
    }
    let length = match outcome {
        Ok(httparse::Status::Complete(length)) => length,
        unfinished => return without_head(unfinished, bytes),
    };
    let Some(status) = head.code else { return Parsed::Opaque };
    let headers = fields(bytes.slice(..length), head.headers);
    let Ok(declared) = declared(&headers) else { return Parsed::Opaque };
    let reason = head.reason.unwrap_or_default().to_owned();
    Parsed::Head(ResponseHead { length, response: Response { status, reason, headers }, declared })
}

/// What bytes are that hold no whole head.
fn without_head<T>(outcome: httparse::Result<usize>, bytes: &Bytes) -> Parsed<T> {
    match outcome {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Parsed::Partial,
        _ => Parsed::Opaque,
    }
}

fn fields(head: Bytes, parsed: &[httparse::Header<'_>]) -> Headers {
    Headers::within(head, parsed.iter().map(|field| (field.name.as_bytes(), field.value)))
}

impl ResponseHead {
    /// How the body is delimited, given the request's method (RFC 9112 §6.3).
    pub(super) fn framing(&self, method: &str) -> Framing {
        let status = self.response.status;
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Framing::None;
        }
        if method == "CONNECT" && status < 300 {
            return Framing::None;
        }
        self.declared.unwrap_or(Framing::UntilClose)
    }
}

/// The fields contradict each other or carry what we do not know, so that
/// where the message ends cannot be told.
struct Doubtful;

fn declared(headers: &Headers) -> Result<Option<Framing>, Doubtful> {
    let mut codings = headers.all("transfer-encoding").peekable();
    if codings.peek().is_some() {
        let last = codings.last().unwrap_or_default();
        let last = last.rsplit(|&byte| byte == b',').next().unwrap_or_default().trim_ascii();
        return Ok(Some(if last.eq_ignore_ascii_case(b"chunked") { Framing::Chunked } else { Framing::UntilClose }));
    }
    let mut length = None;
    // A list of equal values is one value (RFC 9110 §8.6).
    for value in headers.all("content-length").flat_map(|value| value.split(|&byte| byte == b',')) {
        let value = value.trim_ascii();
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(Doubtful);
        }
        let value = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).ok_or(Doubtful)?;
        if length.is_some_and(|known| known != value) {
            return Err(Doubtful);
        }
        length = Some(value);
    }
    Ok(length.map(Framing::Length))
}

/// Splits an absolute-form target into authority and path.
fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit('@').next().unwrap_or_default();
    Some((authority, if path.is_empty() { "/" } else { path }))
}

/// The common methods, made once.
pub(in crate::proxy) fn intern(method: &str) -> Arc<str> {
    static COMMON: LazyLock<[Arc<str>; 7]> =
        LazyLock::new(|| ["GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH"].map(Arc::from));
    COMMON.iter().find(|known| ***known == *method).cloned().unwrap_or_else(|| Arc::from(method))
}

/// The head of a response with another status, and everything else as it
/// was: field order, case and bytes. Fields that `drop` holds for unwanted
/// are left out, `extra` ones go last.
pub(super) fn rewrite(
    head: &[u8],
    status: u16,
    reason: &str,
    drop: impl Fn(&[u8]) -> bool,
    extra: &[(&str, String)],
) -> Vec<u8> {
    let (line, rest) = first_line(head);
    let version = line.split(|&byte| byte == b' ').next().unwrap_or(b"HTTP/1.1");
    let line = [version, format!(" {status} {reason}\r\n").as_bytes()].concat();
    with_line(line, rest, drop, extra)
}

/// The same of a request's head.
pub(super) fn request_anew(
    head: &[u8],
    method: Option<&str>,
    target: Option<&str>,
    drop: impl Fn(&[u8]) -> bool,
    extra: &[(&str, String)],
) -> Vec<u8> {
    let (line, rest) = first_line(head);
    let mut words = line.trim_ascii_end().split(|&byte| byte == b' ');
    let mut word = |instead: Option<&str>| {
        let word = words.next().unwrap_or_default();
        instead.map_or_else(|| word.to_vec(), |instead| instead.as_bytes().to_vec())
    };
    let line = [&word(method)[..], b" ", &word(target), b" ", &word(None), b"\r\n"].concat();
    with_line(line, rest, drop, extra)
}

/// The first line, with its end, and what follows.
fn first_line(head: &[u8]) -> (&[u8], &[u8]) {
    let empty = head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let head = &head[empty..];
    head.split_at(head.iter().position(|&byte| byte == b'\n').map_or(head.len(), |at| at + 1))
}

fn with_line(line: Vec<u8>, mut rest: &[u8], drop: impl Fn(&[u8]) -> bool, extra: &[(&str, String)]) -> Vec<u8> {
    let mut out = line;
    out.reserve(rest.len() + 128);
    let mut dropping = false;
    loop {
        let end = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1);
        let (field, after) = rest.split_at(end);
        if matches!(field, b"\r\n" | b"\n" | b"") {
            break;
        }
        // A folded line belongs to the field before it.
        if !matches!(field.first(), Some(b' ' | b'\t')) {
            let name = field.split(|&byte| byte == b':').next().unwrap_or_default();
            dropping = drop(name);
        }
        if !dropping {
            out.extend_from_slice(field);
        }
        rest = after;
    }
    for (name, value) in extra {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_request(text: &str) -> Parsed<RequestHead> {
        request(&Bytes::copy_from_slice(text.as_bytes()), &Arc::from("fallback"))
    }

    fn parse_response(text: &str) -> Parsed<ResponseHead> {
        response(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn request_framing() {
        for (fields, expected) in [
            ("", Some(Framing::None)),
            ("Content-Length: 5\r\n", Some(Framing::Length(5))),
            ("content-length: 5, 5\r\n", Some(Framing::Length(5))),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", None),
            ("Content-Length: +5\r\n", None),
            ("Content-Length: 99999999999999999999\r\n", None),
            ("Transfer-Encoding: chunked\r\n", Some(Framing::Chunked)),
            ("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 3\r\n", Some(Framing::Chunked)),
            ("Transfer-Encoding: gzip\r\n", None),
        ] {
            let got = match parse_request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")) {
                Parsed::Head(head) => Some(head.framing),
                Parsed::Opaque => None,
                Parsed::Partial => panic!("complete head taken as partial: {fields}"),
            };
            assert_eq!(got, expected, "{fields}");
        }
    }

    #[test]
    fn response_framing_depends_on_the_request() {
        for (method, status, fields, expected) in [
            ("GET", 200, "Content-Length: 5\r\n", Framing::Length(5)),
            ("HEAD", 200, "Content-Length: 5\r\n", Framing::None),
            ("GET", 204, "", Framing::None),
            ("GET", 304, "Content-Length: 5\r\n", Framing::None),
            ("GET", 103, "", Framing::None),
            ("CONNECT", 200, "", Framing::None),
            ("GET", 200, "Transfer-Encoding: chunked\r\n", Framing::Chunked),
            ("GET", 200, "Transfer-Encoding: gzip\r\n", Framing::UntilClose),
            ("GET", 200, "", Framing::UntilClose),
        ] {
            let Parsed::Head(head) = parse_response(&format!("HTTP/1.1 {status} X\r\n{fields}\r\n")) else {
                panic!("not parsed: {status} {fields}")
            };
            assert_eq!(head.framing(method), expected, "{method} {status} {fields}");
        }
    }

    #[test]
    fn authority_comes_from_the_target_then_host_then_the_connection() {
        for (text, authority, target) in [
            ("GET https://b.example/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "b.example", "/x?y"),
            ("GET https://b.example HTTP/1.1\r\nHost: a\r\n\r\n", "b.example", "/"),
            ("GET /x HTTP/1.1\r\nHost: a:8443\r\n\r\n", "a:8443", "/x"),
            ("GET /x HTTP/1.0\r\n\r\n", "fallback", "/x"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "a", "*"),
        ] {
            let Parsed::Head(head) = parse_request(text) else { panic!("not parsed: {text}") };
            assert_eq!((&*head.request.authority, &*head.request.target), (authority, target), "{text}");
        }
    }

    #[test]
    fn what_is_not_http_is_opaque() {
        assert!(matches!(parse_request("\x00\x01\x02"), Parsed::Opaque));
        assert!(matches!(parse_request("EHLO x\r\n"), Parsed::Opaque));
        assert!(matches!(parse_request("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Parsed::Opaque));
        assert!(matches!(parse_request("GET / HT"), Parsed::Partial));
        assert!(matches!(parse_request(&format!("GET /{} ", "x".repeat(MAX_HEAD))), Parsed::Opaque));
    }

    #[test]
    fn rewrite_changes_the_status_line_only() {
        let head = b"HTTP/1.1 200 Fine\r\nX-Case: One\r\nx-case:two\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(
            String::from_utf8(rewrite(
                head,
                429,
                "Too Many Requests",
                |_| false,
                &[("x-retryscope-rule", "r".to_owned())]
            ))
            .expect("text"),
            "HTTP/1.1 429 Too Many Requests\r\nX-Case: One\r\nx-case:two\r\nContent-Length: 3\r\nx-retryscope-rule: r\r\n\r\n"
        );
        assert_eq!(
            String::from_utf8(rewrite(head, 299, "Odd one", |name| name == b"Content-Length", &[])).expect("text"),
            "HTTP/1.1 299 Odd one\r\nX-Case: One\r\nx-case:two\r\n\r\n"
        );
        assert_eq!(
            String::from_utf8(rewrite(
                b"HTTP/1.0 200\nA: b\n folded\nC: d\n\n",
                503,
                "Service Unavailable",
                |name| name == b"A",
                &[]
            ))
            .expect("text"),
            "HTTP/1.0 503 Service Unavailable\r\nC: d\n\r\n"
        );
    }
}
