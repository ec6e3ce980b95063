//! What a response says of its failure: the service's own error code, and how
//! long the client is asked to wait.
//!
//! In: the fields of a head and the first bytes of its body, as the client
//! was told them. Out: at most one [`Complaint`]. Bodies are searched, not
//! parsed: they may be cut short, be chunked, or be of any service's form.
//! Nothing is believed that is not spelled like a code.
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use memchr::memmem;

use super::Operation;

/// How much of a body is looked at, in bytes.
pub const BODY_START: usize = 4 * 1024;
/// The longest code that is believed, in bytes.
const MAX_CODE: usize = 96;
/// Longer waits are taken for this.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaint {
    /// As the service spells it, without namespace: `SlowDown`,
    /// `ThrottlingException`, `rate_limit_error`, `RESOURCE_EXHAUSTED`.
    pub code: Option<Arc<str>>,
    /// How long the client is asked to wait before it tries again.
    pub wait: Option<Duration>,
}

/// Whether the body's start can tell more than the head: errors, and the
/// operations of S3 that answer 200 before they know.
pub fn in_body(status: u16, operation: &Operation) -> bool {
    let late = || {
        operation.service.as_deref() == Some("s3")
            && matches!(
                operation.name.as_deref(),
                Some("CopyObject" | "CompleteMultipartUpload" | "UploadPartCopy" | "DeleteObjects")
            )
    };
    status >= 400 || (status == 200 && late())
}

/// `field`: a head's value by name, without case. `status`: as told.
pub fn read<'a>(status: u16, field: impl Fn(&str) -> Option<Cow<'a, [u8]>>, body: &[u8]) -> Complaint {
    let code = from_head(&field).or_else(|| from_body(status, body));
    Complaint { code, wait: wait(&field) }
}

fn from_head<'a>(field: &impl Fn(&str) -> Option<Cow<'a, [u8]>>) -> Option<Arc<str>> {
    // AWS JSON (`Code:http://…`), AWS query compatibility (`Code;Sender`),
    // Azure.
    for name in ["x-amzn-errortype", "x-amzn-query-error", "x-ms-error-code"] {
        if let Some(code) = field(name).and_then(|value| code(&value)) {
            return Some(code);
        }
    }
    let status = field("grpc-status")?;
    grpc(std::str::from_utf8(&status).ok()?.trim().parse().ok()?).map(Arc::from)
}

/// The name of a gRPC status other than OK (grpc.io, "Status codes").
pub fn grpc(status: u16) -> Option<&'static str> {
    const NAMES: [&str; 16] = [
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(status).checked_sub(1)?).copied()
}

fn from_body(status: u16, body: &[u8]) -> Option<Arc<str>> {
    let body = &body[..body.len().min(BODY_START)];
    if status < 400 {
        // S3's late errors: the root of the document tells them from success.
        memmem::find(body, b"<Error>")?;
    }
    // S3, query and EC2 protocols, Azure.
    if let Some(at) = memmem::find(body, b"<Code>") {
        let rest = &body[at + b"<Code>".len()..];
        return code(&rest[..memchr::memchr(b'<', rest)?]);
    }
    // AWS JSON; Google's `status`; OpenAI's and Anthropic's `error.type`. The
    // one that says most comes first.
    for key in ["__type", "status", "reason", "code", "Code", "type"] {
        if let Some(code) = value_of(body, key) {
            return Some(code);
        }
    }
    cbor(body)
}

/// The first string under a key of a JSON text, wherever it stands.
fn value_of(body: &[u8], key: &str) -> Option<Arc<str>> {
    let quoted = format!("\"{key}\"");
    memmem::find_iter(body, quoted.as_bytes()).find_map(|at| {
        let rest = body[at + quoted.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let rest = rest.strip_prefix(b"\"")?;
        let text = &rest[..memchr::memchr(b'"', rest)?];
        // `error` is a kind of document, not of error (Anthropic).
        code(text).filter(|code| &**code != "error")
    })
}

/// The text under `__type` in a CBOR map (RFC 8949 §3: major type 3).
fn cbor(body: &[u8]) -> Option<Arc<str>> {
    let at = memmem::find(body, b"\x66__type")?;
    let rest = &body[at + 7..];
    let (head, rest) = rest.split_first()?;
    let (length, rest) = match head {
        0x60..=0x77 => (usize::from(head - 0x60), rest),
        0x78 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        _ => return None,
    };
    code(rest.get(..length)?)
}

/// Without namespace (`com.amazonaws#Code`) and what may follow it.
fn code(text: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(text.get(..text.len().min(4 * MAX_CODE))?).ok()?.trim();
    let text = text.split([':', ';', ',']).next().unwrap_or_default();
    let text = text.rsplit('#').next().unwrap_or_default().trim();
    let spelled = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let named = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(spelled);
    (named && text.len() <= MAX_CODE).then(|| Arc::from(text))
}

/// `retry-after-ms` and its like in milliseconds; `Retry-After` in seconds, or
/// as a date (RFC 9110 §10.2.3), which counts from the response's own.
fn wait<'a>(field: &impl Fn(&str) -> Option<Cow<'a, [u8]>>) -> Option<Duration> {
    let text = |name: &str| {
        let value = field(name)?;
        Some(std::str::from_utf8(&value).ok()?.trim().to_owned())
    };
    for name in ["retry-after-ms", "x-ms-retry-after-ms", "x-amz-retry-after", "grpc-retry-pushback-ms"] {
        if let Some(ms) = text(name).and_then(|text| text.parse().ok()) {
            return seconds(ms, 1e-3);
        }
    }
    let value = text("retry-after")?;
    if let Ok(number) = value.parse() {
        return seconds(number, 1.0);
    }
    let date = |text: String| httpdate::parse_http_date(&text).ok();
    let (until, from): (SystemTime, SystemTime) = (date(value)?, date(text("date")?)?);
    Some(until.duration_since(from).unwrap_or_default().min(MAX_WAIT))
}

fn seconds(number: f64, unit: f64) -> Option<Duration> {
    (number.is_finite() && number >= 0.0)
        .then(|| Duration::try_from_secs_f64(number * unit).unwrap_or(MAX_WAIT).min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complaint(status: u16, fields: &[(&str, &str)], body: &str) -> Complaint {
        let field = |name: &str| {
            let found = fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            Some(Cow::Borrowed(found.1.as_bytes()))
        };
        read(status, field, body.as_bytes())
    }

    #[test]
    fn codes_as_services_send_them() {
        for (status, fields, body, code) in [
            (
                503,
                &[][..],
                "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>x</Message></Error>",
                "SlowDown",
            ),
            (
                503,
                &[],
                "<Response><Errors><Error><Code>RequestLimitExceeded</Code></Error></Errors></Response>",
                "RequestLimitExceeded",
            ),
            (
                400,
                &[],
                r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"m"}"#,
                "ProvisionedThroughputExceededException",
            ),
            (
                429,
                &[("x-amzn-ErrorType", "TooManyRequestsException:http://internal.amazon.com/")],
                "{}",
                "TooManyRequestsException",
            ),
            (400, &[("x-amzn-query-error", "RequestThrottled;Sender")], "", "RequestThrottled"),
            (
                429,
                &[],
                r#"{"error":{"message":"Rate limit","type":"requests","code":"rate_limit_exceeded"}}"#,
                "rate_limit_exceeded",
            ),
            (429, &[], r#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#, "rate_limit_error"),
            (429, &[], r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}"#, "RESOURCE_EXHAUSTED"),
            (503, &[("x-ms-error-code", "ServerBusy")], "", "ServerBusy"),
            (200, &[("grpc-status", "8")], "", "RESOURCE_EXHAUSTED"),
            (200, &[], "<Error><Code>InternalError</Code></Error>", "InternalError"),
            (400, &[], "\u{66}__typehaws#Thro", "Thro"),
        ] {
            assert_eq!(complaint(status, fields, body).code.as_deref(), Some(code), "{body}");
        }
        let cbor = b"\xbf\x66__type\x78\x1dcom.amazonaws#ThrottlingError\xff";
        assert_eq!(read(400, |_| None, cbor).code.as_deref(), Some("ThrottlingError"));
    }

    #[test]
    fn what_is_no_code() {
        for (status, fields, body) in [
            (200, &[][..], "<Contents><Code>SlowDown</Code></Contents>"),
            (500, &[], "<Code>two words</Code>"),
            (500, &[], "<Code>"),
            (500, &[], r#"{"__type": 5, "message": "x"}"#),
            (500, &[], ""),
            (200, &[("grpc-status", "0")], ""),
        ] {
            assert_eq!(complaint(status, fields, body).code, None, "{body}");
        }
    }

    #[test]
    fn waits_in_every_spelling() {
        let date = "Tue, 24 Nov 2026 12:00:00 GMT";
        for (fields, expected) in [
            (&[("Retry-After", "2")][..], Some(2_000)),
            (&[("retry-after", " 0.5 ")], Some(500)),
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(1_500)),
            (&[("x-ms-retry-after-ms", "20")], Some(20)),
            (&[("x-amz-retry-after", "900")], Some(900)),
            (&[("date", date), ("retry-after", "Tue, 24 Nov 2026 12:00:30 GMT")], Some(30_000)),
            (&[("date", date), ("retry-after", "Tue, 24 Nov 2026 11:00:30 GMT")], Some(0)),
            (&[("retry-after", "1e300")], Some(86_400_000)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "Tue, 24 Nov 2026 12:00:30 GMT")], None),
        ] {
            assert_eq!(complaint(503, fields, "").wait, expected.map(Duration::from_millis), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(status: u16, value: Vec<u8>, body: Vec<u8>) {
            let complaint = read(status, |_| Some(Cow::Borrowed(&value[..])), &body);
            prop_assert!(complaint.code.is_none_or(|code| code.len() <= MAX_CODE));
            prop_assert!(complaint.wait.is_none_or(|wait| wait <= MAX_WAIT));
        }
    }
}
