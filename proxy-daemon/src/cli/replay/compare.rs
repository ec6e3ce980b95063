//! What is answered otherwise than it was recorded.
//!
//! In: a recorded attempt, and what came now. Out: the differences, each in a
//! few words. What differs from one answer to the next in any case (dates,
//! request ids) does not count, nor does what was left out of the recording.
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::flow::{Content, Headers, Response, content, record::Recorded, redact::REDACTED, secrets};

/// What came of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Came(Came),
    /// Why nothing came, or not all of it.
    Failed(String),
}

#[derive(Debug)]
pub(super) struct Came {
    pub(super) status: u16,
    pub(super) headers: Headers,
    /// As far as it is compared.
    pub(super) body: Bytes,
    /// In all.
    pub(super) length: u64,
}

/// Fields that are of one answer, or of its connection, alone.
const VOLATILE: &[&str] = &[
    "age",
    "alt-svc",
    "cf-ray",
    "connection",
    "content-length",
    "date",
    "expires",
    "keep-alive",
    "server-timing",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "x-request-id",
    "x-amz-cf-id",
    "x-amz-id-2",
    "x-amz-request-id",
    "x-amzn-requestid",
    "x-amzn-trace-id",
    "x-ms-request-id",
    "x-github-request-id",
    "x-retryscope-rule",
];
/// Fields that are named, at most.
const MAX_NAMED: usize = 8;

pub(super) fn differences(recorded: &Recorded, answer: &Answer) -> Vec<String> {
    let attempt = &recorded.attempt;
    let now = match (answer, &attempt.response) {
        (Answer::Failed(_), None) => return Vec::new(),
        (Answer::Failed(why), Some(before)) => return vec![format!("{} has become: {why}", before.status)],
        (Answer::Came(now), None) => {
            let before = match attempt.failure {
                Some(failure) => failure.name(),
                None => "an answer that the upstream was never asked for",
            };
            return vec![format!("{before} has become {}", now.status)];
        }
        (Answer::Came(now), Some(_)) => now,
    };
    let mut found = Vec::new();
    if let Some(before) = &attempt.response {
        if before.status != now.status {
            found.push(format!("status {} has become {}", before.status, now.status));
        }
        found.extend(fields(before, &now.headers));
    }
    found.extend(body(recorded, now));
    found
}

fn all(headers: &Headers) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        if !VOLATILE.contains(&name.as_str()) {
            all.entry(name).or_default().push(String::from_utf8_lossy(value).into_owned());
        }
    }
    all
}

fn fields(before: &Response, now: &Headers) -> Vec<String> {
    let (before, now) = (all(&before.headers), all(now));
    let mut found = Vec::new();
    for (name, values) in &before {
        match now.get(name) {
            None => found.push(format!("{name} is gone")),
            Some(others) if values != others && !values.iter().any(|value| value.contains(REDACTED)) => {
                found.push(format!("{name}: {} has become {}", values.join(", "), others.join(", ")));
            }
            Some(_) => {}
        }
    }
    found.extend(now.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{name} is new")));
    if found.len() > MAX_NAMED {
        let more = found.len() - MAX_NAMED;
        found.truncate(MAX_NAMED);
        found.push(format!("{more} more fields"));
    }
    found
}

fn body(recorded: &Recorded, now: &Came) -> Option<String> {
    let attempt = &recorded.attempt;
    // What the client got was a rule's, and not the upstream's.
    if attempt.injected.is_some() || attempt.failure.is_some() {
        return None;
    }
    let before = &recorded.response_body;
    let chunked = attempt.response.as_ref().is_some_and(|response| response.headers.get("transfer-encoding").is_some());
    if !before.known {
        // Of a chunked body, what was counted has its framing.
        let differs = !chunked && attempt.received != now.length;
        return differs.then(|| format!("the body's {} bytes have become {}", attempt.received, now.length));
    }
    let wire = Content::Whole(now.body.clone());
    let plain = content::plain(&wire, &now.headers).unwrap_or_else(|| now.body[..].into());
    let same = |now: &[u8]| match before.missing {
        0 => now == &before.bytes[..],
        _ => now.get(..before.bytes.len()) == Some(&before.bytes[..]),
    };
    if same(&plain) || same(&secrets::redacted(&plain)) {
        return None;
    }
    let length = before.bytes.len() as u64 + before.missing;
    Some(match length == plain.len() as u64 {
        true => format!("the body's {length} bytes are others"),
        false => format!("the body's {length} bytes have become {}", plain.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::record;

    fn recorded(response: &str) -> Recorded {
        let line = format!(r#"{{"url":"https://a.test/","took_ms":1,"received":5,{response}}}"#);
        record::load(line.as_bytes()).expect("a recording").attempts.pop().expect("one")
    }

    fn now(status: u16, fields: &[(&str, &str)], body: &'static str) -> Answer {
        let headers = fields.iter().copied().collect();
        Answer::Came(Came { status, headers, body: Bytes::from_static(body.as_bytes()), length: body.len() as u64 })
    }

    const BEFORE: &str = r#""status":200,"response_headers":{"etag":"a","date":"then","set-cookie":"s=REDACTED"},"response_body":"hello""#;

    #[test]
    fn the_same() {
        let before = recorded(BEFORE);
        let answer = now(200, &[("Date", "now"), ("ETag", "a"), ("Set-Cookie", "s=1")], "hello");
        assert_eq!(differences(&before, &answer), Vec::<String>::new());
        let secret = recorded(r#""status":200,"response_body":"{\"password\":\"REDACTED\"}""#);
        assert_eq!(differences(&secret, &now(200, &[], r#"{"password":"x"}"#)), Vec::<String>::new());
    }

    #[test]
    fn everything_that_differs() {
        let before = recorded(BEFORE);
        let found = differences(&before, &now(503, &[("ETag", "b"), ("Retry-After", "1")], "gone"));
        assert_eq!(
            found,
            [
                "status 200 has become 503",
                "etag: a has become b",
                "set-cookie is gone",
                "retry-after is new",
                "the body's 5 bytes have become 4"
            ]
        );
        let found = differences(&before, &now(200, &[("ETag", "a"), ("Set-Cookie", "s=1")], "other"));
        assert_eq!(found, ["the body's 5 bytes are others"]);
        let found = differences(&before, &Answer::Failed("reset".into()));
        assert_eq!(found, ["200 has become: reset"]);
    }

    #[test]
    fn what_was_not_recorded_does_not_count() {
        let lengths = recorded(r#""status":200"#);
        assert_eq!(differences(&lengths, &now(200, &[], "other")), Vec::<String>::new());
        assert_eq!(differences(&lengths, &now(200, &[], "more of it")), ["the body's 5 bytes have become 10"]);
        let cut = recorded(r#""status":200,"response_body":{"text":"hel","missing":2}"#);
        assert_eq!(differences(&cut, &now(200, &[], "hello")), Vec::<String>::new());
        assert_eq!(differences(&cut, &now(200, &[], "halloo")), ["the body's 5 bytes have become 6"]);
        let failed = recorded(r#""failure":"reset""#);
        assert_eq!(differences(&failed, &now(200, &[], "")), ["reset has become 200"]);
        assert!(differences(&failed, &Answer::Failed("refused".into())).is_empty());
    }
}
