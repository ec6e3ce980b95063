//! Attempts out of a recording: a HAR file, or JSONL with one attempt a line.
//!
//! In: bytes. Out: [`Attempt`]s in order of their start, each the first and
//! only one of its call until somebody links them. Nothing is guessed at: a
//! line that is no attempt is an error that names the line.
//!
//! A line of JSONL is an object with `url`; and, where known, `time` (RFC
//! 3339), `took_ms`, `method`, `protocol` (`http/1.1`, `h2`), `pid`, `comm`,
//! `command`, `service`, `operation`, `call` and `attempt` (which attempt of
//! which call; otherwise the headers tell), `request_headers` and `response_headers` (a list of pairs, or an
//! object), `request_body`, `status`, `reason`, `response_body`.
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Deserialize;

use super::{
    Attempt, CallId, Content, Evidence, Headers, Link, MAX_CONTENT, Moment, Operation, Protocol, Request, Response, aws,
};
use crate::process::{Facts, Process, ProcessKey};

/// The most attempts that are read of one recording.
const MAX_ATTEMPTS: usize = 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("there is no attempt in it; it should be a HAR file, or JSONL with one attempt a line")]
    Empty,
    #[error("line {line} is not an attempt ({why}); each line is a JSON object with at least a url")]
    Line { line: usize, why: String },
    #[error("it is not a HAR file ({0}); HAR is what browsers and mitmproxy export")]
    Har(String),
    #[error("entry {entry} of the HAR file is not an attempt: {why}")]
    Entry { entry: usize, why: String },
    #[error("there are more than {MAX_ATTEMPTS} attempts in it; split it")]
    TooMany,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    /// Files of events have lines of other types too.
    r#type: Option<String>,
    /// What events know already of an attempt.
    call: Option<u64>,
    attempt: Option<u32>,
    service: Option<String>,
    operation: Option<String>,
    time: Option<String>,
    took_ms: Option<f64>,
    pid: Option<u32>,
    comm: Option<String>,
    command: Option<String>,
    method: Option<String>,
    url: String,
    protocol: Option<String>,
    request_headers: Fields,
    request_body: Option<String>,
    status: Option<u16>,
    reason: Option<String>,
    response_headers: Fields,
    response_body: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Fields {
    Pairs(Vec<(String, String)>),
    Map(BTreeMap<String, String>),
    Har(Vec<HarField>),
}

impl Default for Fields {
    fn default() -> Self {
        Fields::Pairs(Vec::new())
    }
}

impl Fields {
    fn headers(&self) -> Headers {
        let pairs: Vec<(&str, &str)> = match self {
            Fields::Pairs(pairs) => pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            Fields::Map(map) => map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            Fields::Har(fields) => fields.iter().map(|field| (field.name.as_str(), field.value.as_str())).collect(),
        };
        // HTTP/2's pseudo fields, as some programs record them.
        pairs.into_iter().filter(|(name, _)| !name.starts_with(':')).collect()
    }
}

#[derive(Debug, Deserialize)]
struct HarField {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
struct Har {
    log: HarLog,
}

#[derive(Debug, Deserialize)]
struct HarLog {
    entries: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HarEntry {
    #[serde(default)]
    started_date_time: Option<String>,
    #[serde(default)]
    time: Option<f64>,
    request: HarRequest,
    #[serde(default)]
    response: Option<HarResponse>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HarRequest {
    method: String,
    url: String,
    #[serde(default)]
    http_version: Option<String>,
    #[serde(default)]
    headers: Fields,
    #[serde(default)]
    post_data: Option<HarText>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HarResponse {
    status: i32,
    #[serde(default)]
    status_text: String,
    #[serde(default)]
    headers: Fields,
    #[serde(default)]
    content: Option<HarText>,
}

#[derive(Debug, Deserialize)]
struct HarText {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    encoding: Option<String>,
}

impl HarText {
    /// Binary bodies, which HAR writes in base64, are left unread.
    fn plain(self) -> Option<String> {
        self.text.filter(|_| self.encoding.is_none())
    }
}

/// Reads a recording.
pub fn read(bytes: &[u8]) -> Result<Vec<Attempt>, RecordError> {
    let mut lines = Vec::new();
    if let Ok(har) = serde_json::from_slice::<Har>(bytes) {
        for (at, value) in har.log.entries.into_iter().enumerate() {
            let wrong = |why: String| RecordError::Entry { entry: at + 1, why };
            let entry: HarEntry = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            lines.push((from_har(entry), at + 1));
        }
    } else {
        let text = String::from_utf8_lossy(bytes);
        if text.trim_start().starts_with('{') && text.trim_start()[1..].trim_start().starts_with("\"log\"") {
            let why = serde_json::from_slice::<Har>(bytes).err().map(|error| error.to_string()).unwrap_or_default();
            return Err(RecordError::Har(why));
        }
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| RecordError::Line { line: at + 1, why: error.to_string() })?;
            if line.r#type.as_deref().is_none_or(|kind| kind == "attempt") {
                lines.push((line, at + 1));
            }
        }
    }
    if lines.is_empty() {
        return Err(RecordError::Empty);
    }
    if lines.len() > MAX_ATTEMPTS {
        return Err(RecordError::TooMany);
    }
    let first = lines.iter().filter_map(|(line, _)| line.time.as_deref().and_then(wall)).min();
    let mut attempts = Vec::with_capacity(lines.len());
    for (line, number) in lines {
        attempts.push(attempt(line, number, first)?);
    }
    attempts.sort_by_key(|attempt| attempt.started);
    for (attempt, number) in attempts.iter_mut().zip(1..) {
        if attempt.link.evidence == Evidence::Alone {
            attempt.link.call = CallId(number);
        }
    }
    Ok(attempts)
}

fn from_har(entry: HarEntry) -> Line {
    let HarEntry { started_date_time, time, request, response } = entry;
    // Browsers write status 0 where no response came.
    let response = response.and_then(|response| Some((u16::try_from(response.status).ok()?, response)));
    let mut line = Line {
        time: started_date_time,
        took_ms: time.filter(|time| *time >= 0.0),
        method: Some(request.method),
        url: request.url,
        protocol: request.http_version,
        request_headers: request.headers,
        request_body: request.post_data.and_then(HarText::plain),
        ..Line::default()
    };
    if let Some((status, response)) = response.filter(|(status, _)| *status >= 100) {
        line.status = Some(status);
        line.reason = Some(response.status_text);
        line.response_headers = response.headers;
        line.response_body = response.content.and_then(HarText::plain);
    }
    line
}

fn wall(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339_weak(text).ok().or_else(|| {
        // HAR's times may have an offset; only the differences count.
        let (time, _) = text.rsplit_once(['+', '-']).filter(|(time, _)| time.len() >= 19)?;
        humantime::parse_rfc3339_weak(time).ok()
    })
}

fn content(text: Option<String>) -> Content {
    match text {
        None => Content::Beyond,
        Some(text) if text.len() > MAX_CONTENT => Content::Beyond,
        Some(text) => Content::Whole(Bytes::from(text)),
    }
}

fn attempt(line: Line, number: usize, first: Option<SystemTime>) -> Result<Attempt, RecordError> {
    let wrong = |why: &str| RecordError::Line { line: number, why: why.to_owned() };
    let (_, rest) = line.url.split_once("://").ok_or_else(|| wrong("its url is not absolute"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    if authority.is_empty() {
        return Err(wrong("its url names no host"));
    }
    let request = Request {
        method: line.method.as_deref().unwrap_or("GET").into(),
        authority: authority.into(),
        target: if target.is_empty() { "/".into() } else { target.into() },
        headers: line.request_headers.headers(),
    };
    let operation = match (line.service, line.operation) {
        (None, None) => aws::name(&request, line.request_body.as_deref().map(str::as_bytes)),
        (service, name) => Operation { service: service.map(Into::into), name: name.map(Into::into) },
    };
    let link = match (line.call, line.attempt) {
        (Some(call), Some(number)) => {
            Link { call: CallId(call), number, max: None, evidence: Evidence::Exact, waited: None }
        }
        _ => Link { call: CallId(0), number: 1, max: None, evidence: Evidence::Alone, waited: None },
    };
    let at = line.time.as_deref().and_then(wall).zip(first).and_then(|(at, first)| at.duration_since(first).ok());
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let started = Moment(at.map_or(0, nanos));
    let took = line.took_ms.map(|ms| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()).unwrap_or_default();
    let comm = line.comm.unwrap_or_default();
    let facts = Facts { command: line.command.unwrap_or_else(|| comm.clone()), comm, ..Facts::default() };
    let key = ProcessKey { pid: line.pid.unwrap_or_default(), start_ticks: 0 };
    Ok(Attempt {
        protocol: match line.protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("h2" | "http/2" | "http/2.0" | "h2c") => Protocol::Http2,
            Some("http/1.0") => Protocol::Http10,
            _ => Protocol::Http11,
        },
        operation,
        response: line.status.map(|status| Response {
            status,
            reason: line.reason.unwrap_or_default(),
            headers: line.response_headers.headers(),
        }),
        request_content: content(line.request_body.or_else(|| Some(String::new()))),
        response_content: content(line.response_body),
        ended: Some(Moment(started.0.saturating_add(nanos(took)))),
        ..Attempt::new(Arc::new(Process::new(key, 0, 0, facts)), request, link, started)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_in_order_of_their_start() {
        let text = concat!(
            r#"{"time":"2026-01-01T00:00:02Z","url":"https://s3.eu-west-1.amazonaws.com/b/k","method":"PUT","status":503,"took_ms":12.5,"request_headers":{"amz-sdk-invocation-id":"x"}}"#,
            "\n\n",
            r#"{"time":"2026-01-01T00:00:01Z","url":"https://a.example?q=1","request_headers":[["User-Agent","curl"]]}"#,
        );
        let attempts = read(text.as_bytes()).expect("attempts");
        assert_eq!(attempts.len(), 2);
        assert_eq!((attempts[0].request.host(), &*attempts[0].request.target), ("a.example", "?q=1"));
        assert_eq!(attempts[0].request.headers.text("user-agent"), Some("curl"));
        assert_eq!(attempts[1].status(), Some(503));
        assert_eq!(attempts[1].started, Moment(1_000_000_000));
        assert_eq!(attempts[1].ended, Some(Moment(1_012_500_000)));
    }

    #[test]
    fn reads_har() {
        let har = r#"{"log":{"version":"1.2","entries":[{"startedDateTime":"2026-01-01T00:00:00.000+01:00","time":5,
            "request":{"method":"GET","url":"https://a.example/x","httpVersion":"h2","headers":[{"name":":path","value":"/x"},{"name":"accept","value":"*/*"}]},
            "response":{"status":200,"statusText":"OK","headers":[],"content":{"text":"hi"}}}]}}"#;
        let attempts = read(har.as_bytes()).expect("attempts");
        assert_eq!((attempts[0].protocol, attempts[0].request.headers.len()), (Protocol::Http2, 1));
        assert_eq!(attempts[0].response_content, Content::Whole(Bytes::from_static(b"hi")));
    }

    #[test]
    fn says_what_is_wrong_where() {
        let wrong = |text: &str| read(text.as_bytes()).expect_err(text).to_string();
        assert!(wrong("").contains("no attempt"));
        assert!(wrong("{\"url\":\"https://a/\"}\nnonsense").contains("line 2"));
        assert!(wrong("{\"url\":\"nowhere\"}").contains("not absolute"));
        assert!(wrong("{\"log\": {\"entries\": 3}}").contains("not a HAR file"));
        assert!(wrong("{\"log\": {\"entries\": [{}]}}").contains("entry 1"));
    }
}
