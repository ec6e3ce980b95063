//! Attempts out of a recording: a HAR file, or JSONL with one attempt a line.
//!
//! In: bytes. Out: a [`Recording`], its attempts in order of their start. Those
//! that retryscope has recorded know their call; each other one is the first
//! and only one of its call until somebody links them. Nothing is guessed at:
//! a line that is no attempt is an error that names the line. What a kill has
//! torn off at the end is left out, and told.
//!
//! A line of JSONL is an object with `url`; and, where known, `time` (RFC
//! 3339), `took_ms`, `method`, `protocol` (`http/1.1`, `h2`), `pid`, `comm`,
//! `command`, `service`, `operation`, `call` and `attempt` (which attempt of
//! which call; otherwise the headers tell), `request_headers` and `response_headers` (a list of pairs, or an
//! object), `request_body`, `status`, `reason`, `response_body`.
mod form;
mod lines;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
pub use form::{Form, Place, behind};

use self::lines::{Fields, Har, HarEntry, Line, Text};
use super::{
    Attempt, CallId, Complaint, ConnectionId, Content, Evidence, Failure, Injected, Link, MAX_CONTENT, Moment,
    Operation, Protocol, Request, Response, Trailers, Wait, aws,
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

/// A recording, read.
#[derive(Debug, Default)]
pub struct Recording {
    /// In order of their start.
    pub attempts: Vec<Recorded>,
    /// When the first began: what moments count from. `None`: nothing tells.
    pub started: Option<SystemTime>,
    /// Attempts that were too fast for the disk.
    pub dropped: u64,
    /// What its chance was drawn from.
    pub seed: Option<u64>,
    /// retryscope has recorded it, and was not at its end when it ended.
    pub unfinished: bool,
    /// Something was torn off at its end.
    pub torn: bool,
}

/// An attempt, and what a recording has besides.
#[derive(Debug)]
pub struct Recorded {
    pub attempt: Attempt,
    /// Its call and number are known.
    pub linked: bool,
    /// The head that a rule told the client.
    pub told: Option<Response>,
    pub request_body: Body,
    /// As the client got it.
    pub response_body: Body,
    /// How long it took to send, to wait and to receive.
    pub timings: [Option<Duration>; 3],
}

/// A body, as far as it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub bytes: Bytes,
    /// The bytes are there, as far as they go.
    pub known: bool,
    /// How many are missing at its end.
    pub missing: u64,
    /// Without the content coding that its head names.
    pub decoded: bool,
    /// Why it was left out.
    pub withheld: Option<String>,
}

impl Body {
    /// It is there whole.
    pub fn whole(&self) -> Option<&Bytes> {
        (self.known && self.missing == 0 && self.withheld.is_none()).then_some(&self.bytes)
    }

    fn content(&self) -> Content {
        match self.whole() {
            Some(bytes) if bytes.len() <= MAX_CONTENT => Content::Whole(bytes.clone()),
            _ => Content::Beyond,
        }
    }
}

impl Recorded {
    /// The head that the client was told.
    pub fn answer(&self) -> Option<&Response> {
        match &self.attempt.injected {
            Some(injected) => self.told.as_ref().filter(|_| injected.status.is_some()),
            None => self.attempt.response.as_ref(),
        }
    }
}

/// The attempts of a recording.
pub fn read(bytes: &[u8]) -> Result<Vec<Attempt>, RecordError> {
    Ok(load(bytes)?.attempts.into_iter().map(|recorded| recorded.attempt).collect())
}

/// Reads a recording.
pub fn load(bytes: &[u8]) -> Result<Recording, RecordError> {
    let mut recording = Recording::default();
    let lines = if is_har(bytes) { har(bytes, &mut recording)? } else { jsonl(bytes, &mut recording)? };
    if lines.is_empty() && !recording.unfinished {
        return Err(RecordError::Empty);
    }
    if lines.len() > MAX_ATTEMPTS {
        return Err(RecordError::TooMany);
    }
    let first = lines.iter().filter_map(|(line, _)| line.time.as_deref().and_then(wall)).min();
    recording.started = first;
    let mut reading = Reading { first, calls: HashMap::new(), last_call: 0, processes: HashMap::new() };
    for (line, number) in lines {
        recording.attempts.push(reading.attempt(line, number)?);
    }
    recording.attempts.sort_by_key(|recorded| recorded.attempt.started);
    Ok(recording)
}

fn is_har(bytes: &[u8]) -> bool {
    let trimmed = bytes.trim_ascii_start();
    trimmed.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\"log\""))
}

type Lines = Vec<(Line, usize)>;

fn har(bytes: &[u8], recording: &mut Recording) -> Result<Lines, RecordError> {
    let ours = bytes.starts_with(Form::Har.start().as_bytes());
    let parsed = serde_json::from_slice::<Har<HarEntry>>(bytes).or_else(|error| {
        // Torn by a kill: what is whole counts.
        let place = behind(bytes, Form::Har, true).filter(|_| ours);
        let whole = place.and_then(|place| bytes.get(..usize::try_from(place.at).ok()?));
        let mended = whole.and_then(|whole| serde_json::from_slice::<Har<HarEntry>>(&[whole, b"]}}"].concat()).ok());
        recording.torn = mended.is_some();
        mended.ok_or(error)
    });
    let log = match parsed {
        Ok(har) => har.log,
        Err(error) => return Err(wrong_entry(bytes).unwrap_or_else(|| RecordError::Har(error.to_string()))),
    };
    let end = log.end.unwrap_or_default();
    recording.dropped = end.dropped.unwrap_or_default();
    recording.unfinished = ours && end.complete != Some(true);
    recording.seed = log.start.and_then(|start| start.seed);
    Ok(log.entries.into_iter().map(HarEntry::into_line).zip(1..).collect())
}

/// Which entry is wrong, if it is one.
fn wrong_entry(bytes: &[u8]) -> Option<RecordError> {
    let har: Har<serde_json::Value> = serde_json::from_slice(bytes).ok()?;
    har.log.entries.into_iter().zip(1..).find_map(|(value, entry)| {
        let error = serde_json::from_value::<HarEntry>(value).err()?;
        Some(RecordError::Entry { entry, why: error.to_string() })
    })
}

fn jsonl(bytes: &[u8], recording: &mut Recording) -> Result<Lines, RecordError> {
    let ours = bytes.starts_with(Form::Jsonl.start().as_bytes());
    recording.unfinished = ours;
    let text = String::from_utf8_lossy(bytes);
    let mut lines = Vec::new();
    for (at, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed: Line = match serde_json::from_str(line) {
            Ok(parsed) => parsed,
            // The last line's end is written with it.
            Err(_) if ours && !line.ends_with('\n') => {
                recording.torn = true;
                break;
            }
            Err(error) => return Err(RecordError::Line { line: at + 1, why: error.to_string() }),
        };
        match parsed.r#type.as_deref() {
            None | Some("attempt") => lines.push((parsed, at + 1)),
            Some("start") => {
                recording.seed = recording.seed.or(parsed.seed);
                recording.unfinished = true;
            }
            Some("end") => {
                recording.dropped += parsed.dropped.unwrap_or_default();
                recording.unfinished = false;
            }
            Some(_) => {}
        }
    }
    Ok(lines)
}

fn wall(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339_weak(text).ok().or_else(|| {
        // HAR's times may have an offset; only the differences count.
        let (time, _) = text.rsplit_once(['+', '-']).filter(|(time, _)| time.len() >= 19)?;
        humantime::parse_rfc3339_weak(time).ok()
    })
}

fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How aborts are called, as rules name them.
const ABORTS: &[&str] = &["reset", "close", "truncate", "stall", "tls-alert", "goaway", "refused-stream", "rst-stream"];

const FAILURES: &[Failure] = &[
    Failure::Reset,
    Failure::Closed,
    Failure::TimedOut,
    Failure::Refused,
    Failure::Unreachable,
    Failure::Tls,
    Failure::Protocol,
    Failure::Cancelled,
    Failure::Unread,
];

/// What is known while lines are read.
struct Reading {
    first: Option<SystemTime>,
    /// By instance and its number there.
    calls: HashMap<(Option<String>, u64), CallId>,
    last_call: u64,
    processes: HashMap<(ProcessKey, Facts), Arc<Process>>,
}

impl Reading {
    fn call(&mut self) -> CallId {
        self.last_call += 1;
        CallId(self.last_call)
    }

    fn link(&mut self, line: &Line, started: Moment) -> (Link, bool) {
        let (Some(call), Some(number)) = (line.call, line.attempt) else {
            let call = self.call();
            return (Link { call, number: 1, max: None, evidence: Evidence::Alone, waited: None }, false);
        };
        let place = (line.instance.clone(), call);
        let call = match self.calls.get(&place) {
            Some(call) => *call,
            None => {
                let call = self.call();
                self.calls.insert(place, call);
                call
            }
        };
        let evidence = match line.evidence.as_deref() {
            Some("inferred") => Evidence::Inferred,
            Some("alone") => Evidence::Alone,
            _ => Evidence::Exact,
        };
        let waited = line.waited_ms.map(|ms| Wait {
            from: Moment(started.0.saturating_sub(nanos(duration(ms)))),
            to: started,
            injected: line.waited_for_rule,
        });
        (Link { call, number, max: line.max, evidence, waited }, true)
    }

    fn process(&mut self, line: &mut Line) -> Arc<Process> {
        let comm = line.comm.take().unwrap_or_default();
        let facts = Facts {
            command: line.command.take().unwrap_or_else(|| comm.clone()),
            comm,
            exe: line.exe.take(),
            cgroup: line.cgroup.take(),
            container_name: line.container_name.take(),
        };
        let key = ProcessKey { pid: line.pid.unwrap_or_default(), start_ticks: line.start_ticks.unwrap_or_default() };
        let (parent, uid) = (line.parent.unwrap_or_default(), line.uid.unwrap_or_default());
        let made = |facts: &Facts| Arc::new(Process::new(key, parent, uid, facts.clone()));
        Arc::clone(self.processes.entry((key, facts)).or_insert_with_key(|(_, facts)| made(facts)))
    }

    fn attempt(&mut self, mut line: Line, number: usize) -> Result<Recorded, RecordError> {
        let wrong = |why: &str| RecordError::Line { line: number, why: why.to_owned() };
        let (_, rest) = line.url.split_once("://").ok_or_else(|| wrong("its url is not absolute"))?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.is_empty() {
            return Err(wrong("its url names no host"));
        }
        let method = line.method.as_deref().unwrap_or("GET");
        let headers = |fields: &Option<Fields>| fields.as_ref().map(Fields::headers).unwrap_or_default();
        let request = Request {
            method: method.into(),
            authority: authority.into(),
            target: if target.is_empty() && method != "CONNECT" { "/".into() } else { target.into() },
            headers: headers(&line.request_headers),
        };
        let body = |text: Option<Text>| text.map(Text::body).transpose().map(Option::unwrap_or_default);
        // A line that says nothing of a request's body means that there is none.
        let silent = line.request_body.is_none() && line.instance.is_none();
        let request_body = match body(line.request_body.take()).map_err(|why| wrong(&why))? {
            body if silent || (!body.known && line.sent == Some(0)) => Body { known: true, ..body },
            body => body,
        };
        let response_body = body(line.response_body.take()).map_err(|why| wrong(&why))?;
        let operation = match (line.service.take(), line.operation.take()) {
            (None, None) => aws::name(&request, request_body.known.then_some(&request_body.bytes[..])),
            (service, name) => Operation { service: service.map(Into::into), name: name.map(Into::into) },
        };
        let at = line.time.as_deref().and_then(wall).zip(self.first);
        let at = at.and_then(|(at, first)| at.duration_since(first).ok());
        let started = Moment(at.map_or(0, nanos));
        let took = line.took_ms.map(duration).unwrap_or_default();
        let (link, linked) = self.link(&line, started);
        let process = self.process(&mut line);
        let address = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let abort = line.abort.as_deref().and_then(|abort| ABORTS.iter().find(|known| **known == abort).copied());
        let failure = line.failure.as_deref();
        let failure = failure.and_then(|name| FAILURES.iter().find(|known| known.name() == name).copied());
        let injected = line.rule.as_deref().map(|rule| Injected {
            status: line.told.filter(|_| abort.is_none_or(|abort| abort == "truncate")),
            abort,
            rule: rule.into(),
        });
        let told = match (&injected, line.told) {
            (Some(_), Some(status)) => Some(Response {
                status,
                reason: line.told_reason.clone().or_else(|| line.reason.clone()).unwrap_or_default(),
                headers: headers(if line.told_headers.is_some() { &line.told_headers } else { &line.response_headers }),
            }),
            _ => None,
        };
        let trailers = (line.request_trailers.is_some() || line.response_trailers.is_some()).then(|| {
            Box::new(Trailers { request: headers(&line.request_trailers), response: headers(&line.response_trailers) })
        });
        let attempt = Attempt {
            trailers,
            connection: ConnectionId(line.connection.unwrap_or_default()),
            client: address(&line.client).unwrap_or(nowhere),
            origin: address(&line.origin).unwrap_or(nowhere),
            protocol: match line.protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
                Some("h2" | "http/2" | "http/2.0" | "h2c") => Protocol::Http2,
                Some("http/1.0") => Protocol::Http10,
                _ => Protocol::Http11,
            },
            operation,
            response: line.status.map(|status| Response {
                status,
                reason: line.reason.unwrap_or_default(),
                headers: headers(&line.response_headers),
            }),
            request_content: request_body.content(),
            response_content: response_body.content(),
            body_digest: line.body_digest.and_then(|digest| u64::from_str_radix(&digest, 16).ok()),
            injected,
            held: line.held_ms.map(duration).unwrap_or_default(),
            complaint: Complaint { code: line.code.map(Into::into), wait: line.retry_after_ms.map(duration) },
            failure,
            ended: Some(Moment(started.0.saturating_add(nanos(took)))),
            sent: line.sent.unwrap_or(request_body.bytes.len() as u64),
            received: line.received.unwrap_or(response_body.bytes.len() as u64),
            ..Attempt::new(process, request, link, started)
        };
        let timings = [line.send_ms, line.wait_ms, line.receive_ms].map(|ms| ms.map(duration));
        Ok(Recorded { attempt, linked, told, request_body, response_body, timings })
    }
}
