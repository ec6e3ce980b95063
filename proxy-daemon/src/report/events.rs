//! Every attempt as a line of JSON, as it ends (`--events FILE`).
//!
//! In: the feed. Out: a file that begins with a line of type `start`, holds
//! one of type `attempt` for each, and ends with one of type `end` that says
//! how many there were and how many were dropped; `events-1.json` describes
//! them. A thread of its own writes, so that a slow disk holds up nothing but
//! the file. `retryscope rules try` reads such a file.
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    thread::JoinHandle,
    time::SystemTime,
};

use serde::Serialize;

use super::build::{ms, time};
use crate::{
    flow::{Attempt, Clock, Evidence, Protocol, redact},
    process::{Facts, container, unit},
    proxy::Subscription,
    retry::Class,
};

/// The version of the lines' shape: fields are added, never renamed.
pub const VERSION: u32 = 1;
/// The JSON Schema of a line.
pub const JSON_SCHEMA: &str = include_str!("events-1.json");
/// How far the file may be behind, in attempts.
pub const ROOM: usize = 65_536;

/// The first line.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    pub v: u32,
    pub r#type: &'static str,
    pub time: String,
    /// Of the program.
    pub version: &'static str,
    pub seed: u64,
    pub ports: Vec<u16>,
    /// What is watched.
    pub target: String,
}

impl Start {
    pub fn new(at: SystemTime, seed: u64, ports: &[u16], target: &str) -> Self {
        let (ports, target) = (ports.to_vec(), target.to_owned());
        Self { v: VERSION, r#type: "start", time: time(at), version: env!("CARGO_PKG_VERSION"), seed, ports, target }
    }
}

/// One attempt. Durations are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Event<'a> {
    v: u32,
    r#type: &'static str,
    /// When it began.
    time: String,
    took_ms: f64,
    pid: u32,
    start_ticks: u64,
    comm: &'a str,
    command: &'a str,
    cgroup: Option<&'a str>,
    unit: Option<&'a str>,
    container: Option<&'a str>,
    container_name: Option<&'a str>,
    connection: u64,
    /// Which call; attempts of one call have one number.
    call: u64,
    /// Which attempt of its call, from 1.
    attempt: u32,
    /// The most that the client said it would make.
    max: Option<u32>,
    /// `exact`, `inferred`, or `alone` for a call's first without a signal.
    evidence: &'static str,
    /// The backoff before it, and whether a rule had caused it.
    waited_ms: Option<f64>,
    waited_for_rule: bool,
    service: Option<&'a str>,
    operation: Option<&'a str>,
    protocol: &'static str,
    method: &'a str,
    /// Without the values that sign it.
    url: String,
    /// The upstream's.
    status: Option<u16>,
    reason: Option<&'a str>,
    /// What the client was told.
    told: Option<u16>,
    rule: Option<&'a str>,
    abort: Option<&'a str>,
    failure: Option<&'a str>,
    class: &'static str,
    code: Option<&'a str>,
    retry_after_ms: Option<f64>,
    sent: u64,
    received: u64,
    held_ms: f64,
}

/// The last line.
#[derive(Clone, Copy, Debug, Serialize)]
struct End {
    v: u32,
    r#type: &'static str,
    attempts: u64,
    dropped: u64,
}

/// One attempt's line, without its end.
pub fn line(attempt: &Attempt, clock: &Clock) -> String {
    let facts = attempt.process.facts();
    let event =
        event(attempt, &facts, redact::url(&attempt.request.url()).into_owned(), time(clock.wall(attempt.started)));
    // A struct of strings and numbers always serialises.
    serde_json::to_string(&event).unwrap_or_default()
}

/// One attempt, under a URL and a time as they are to be shown.
pub(super) fn event<'a>(attempt: &'a Attempt, facts: &'a Facts, url: String, time: String) -> Event<'a> {
    let cgroup = facts.cgroup.as_deref();
    let injected = attempt.injected.as_ref();
    let response = attempt.response.as_ref();
    Event {
        v: VERSION,
        r#type: "attempt",
        time,
        took_ms: ms(attempt.ended.unwrap_or(attempt.started).since(attempt.started)),
        pid: attempt.process.key.pid,
        start_ticks: attempt.process.key.start_ticks,
        comm: &facts.comm,
        command: &facts.command,
        cgroup,
        unit: cgroup.and_then(unit),
        container: cgroup.and_then(container),
        container_name: facts.container_name.as_deref(),
        connection: attempt.connection.0,
        call: attempt.link.call.0,
        attempt: attempt.link.number,
        max: attempt.link.max,
        evidence: evidence(attempt.link.evidence),
        waited_ms: attempt.link.waited.map(|wait| ms(wait.length())),
        waited_for_rule: attempt.link.waited.is_some_and(|wait| wait.injected),
        service: attempt.operation.service.as_deref(),
        operation: attempt.operation.name.as_deref(),
        protocol: protocol(attempt.protocol),
        method: &attempt.request.method,
        url,
        status: response.map(|response| response.status),
        reason: response.map(|response| response.reason.as_str()).filter(|reason| !reason.is_empty()),
        told: attempt.status(),
        rule: injected.map(|injected| &*injected.rule),
        abort: injected.and_then(|injected| injected.abort),
        failure: attempt.failure.map(crate::flow::Failure::name),
        class: Class::of(attempt).name(),
        code: attempt.complaint.code.as_deref(),
        retry_after_ms: attempt.complaint.wait.map(ms),
        sent: attempt.sent,
        received: attempt.received,
        held_ms: ms(attempt.held),
    }
}

pub(crate) fn evidence(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Exact => "exact",
        Evidence::Inferred => "inferred",
        Evidence::Alone => "alone",
    }
}

pub(crate) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http10 => "http/1.0",
        Protocol::Http11 => "http/1.1",
        Protocol::Http2 => "h2",
    }
}

/// What came of the file.
#[derive(Debug, Default)]
pub struct Written {
    pub attempts: u64,
    /// There was no room for these: the disk was too slow.
    pub dropped: u64,
    pub error: Option<io::Error>,
}

/// Writes all that comes, until the feed is closed.
pub fn write(file: File, start: Start, mut feed: Subscription, clock: Clock) -> JoinHandle<Written> {
    std::thread::spawn(move || {
        let mut written = Written::default();
        let mut out = BufWriter::new(file);
        let first = serde_json::to_string(&start).unwrap_or_default();
        let mut result = writeln!(out, "{first}");
        loop {
            // What is there is written at once when nothing more is to come
            // for now: a reader follows the file.
            let attempt = match feed.try_next() {
                Some(attempt) => Some(attempt),
                None => {
                    result = result.and_then(|()| out.flush());
                    feed.wait()
                }
            };
            let Some(attempt) = attempt else { break };
            if result.is_ok() {
                result = writeln!(out, "{}", line(&attempt, &clock));
                written.attempts += u64::from(result.is_ok());
            }
        }
        written.dropped = feed.dropped();
        let end = End { v: VERSION, r#type: "end", attempts: written.attempts, dropped: written.dropped };
        let last = serde_json::to_string(&end).unwrap_or_default();
        written.error = result.and_then(|()| writeln!(out, "{last}")).and_then(|()| out.flush()).err();
        written
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::tests::attempt;

    #[test]
    fn a_line_says_what_happened_and_no_secret() {
        let mut it = attempt();
        it.request.target = "/b/k?X-Amz-Signature=abc&versionId=3&TOKEN=x&empty=&token=".into();
        let value: serde_json::Value = serde_json::from_str(&line(&it, &Clock::start())).expect("JSON");
        assert_eq!(
            value["url"],
            "https://s3.eu-west-1.amazonaws.com/b/k?X-Amz-Signature=REDACTED&versionId=3&TOKEN=REDACTED&empty=&token="
        );
        let expected: [(&str, serde_json::Value); 7] = [
            ("service", "s3".into()),
            ("operation", "GetObject".into()),
            ("attempt", 2.into()),
            ("evidence", "exact".into()),
            ("status", 200.into()),
            ("told", 200.into()),
            ("class", "success".into()),
        ];
        for (field, expected) in expected {
            assert_eq!(value[field], expected, "{field}");
        }
        let schema: serde_json::Value = serde_json::from_str(JSON_SCHEMA).expect("JSON");
        let known = schema["$defs"]["attempt"]["properties"].as_object().expect("properties");
        let fields = value.as_object().expect("an object");
        assert_eq!(fields.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>(), "the schema names every field");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let lines =
            [line(&attempt(), &Clock::start()), "{\"v\":1,\"type\":\"end\",\"attempts\":1,\"dropped\":0}".into()];
        let read = crate::flow::record::read(lines.join("\n").as_bytes()).expect("a recording");
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].link.number, read[0].operation.clone()), (2, attempt().operation));
    }
}
