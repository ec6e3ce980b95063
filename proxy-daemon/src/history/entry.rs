//! What is told of an attempt and of a call: the shapes of the local API.
//! Fields are added, never renamed or given another meaning.
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    chunk::{Chunk, Row},
    store::Heads,
};
use crate::{
    flow::{Attempt, Clock, Failure, Headers, Moment},
    process::{container, unit},
    report::{
        build::{ms, time},
        events::{evidence, protocol},
    },
    retry::Class,
};

/// One attempt that has ended. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptEntry {
    /// Numbered from 1 in the order in which attempts ended.
    pub id: u64,
    /// When it began (RFC 3339).
    pub time: String,
    /// The same, counted from the instance's start.
    pub at_ms: f64,
    pub took_ms: f64,
    pub pid: u32,
    /// With the pid, the process beyond doubt.
    pub start_ticks: u64,
    pub comm: String,
    pub command: String,
    pub cgroup: Option<String>,
    pub unit: Option<String>,
    pub container: Option<String>,
    pub container_name: Option<String>,
    pub connection: u64,
    /// Which call; attempts of one call have one number.
    pub call: u64,
    /// Which attempt of its call, from 1.
    pub attempt: u32,
    /// The most that the client said it would make.
    pub max: Option<u32>,
    /// `exact`, `inferred`, or `alone` for a call's first without a signal.
    pub evidence: String,
    /// The backoff before it, and whether a rule had caused it.
    pub waited_ms: Option<f64>,
    pub waited_for_rule: bool,
    pub service: Option<String>,
    pub operation: Option<String>,
    /// `http/1.0`, `http/1.1` or `h2`.
    pub protocol: String,
    pub method: String,
    /// Without what signs it or lets somebody in, and at most 1 KiB of it.
    pub url: String,
    /// The upstream's.
    pub status: Option<u16>,
    pub reason: Option<String>,
    /// What the client was told.
    pub told: Option<u16>,
    /// The rule that changed what the client was told.
    pub rule: Option<String>,
    /// How a rule broke it off.
    pub abort: Option<String>,
    /// Why there is no response, or only part of one.
    pub failure: Option<String>,
    /// The kind of outcome: `success`, `throttled`, `server_error`, `timeout`,
    /// `connection`, `client_error` or `cancelled`.
    pub class: String,
    /// The service's own error code.
    pub code: Option<String>,
    /// How long the client was asked to wait.
    pub retry_after_ms: Option<f64>,
    /// Bytes of bodies.
    pub sent: u64,
    pub received: u64,
    /// How long rules have held it up.
    pub held_ms: f64,
}

impl AttemptEntry {
    pub(super) fn of(id: u64, chunk: &Chunk, row: &Row, clock: &Clock) -> Self {
        let process = chunk.process(row);
        let facts = process.map(|process| process.facts()).unwrap_or_default();
        let key = process.map(|process| process.key);
        let cgroup = facts.cgroup.as_deref();
        let owned = |at| chunk.text(at).map(str::to_owned);
        let started = Moment(row.started);
        let (authority, target) = (chunk.text(row.authority), chunk.text(row.target));
        Self {
            id,
            time: time(clock.wall(started)),
            at_ms: ms(started.since(Moment::default())),
            took_ms: ms(Moment(row.ended).since(started)),
            pid: key.map_or(0, |key| key.pid),
            start_ticks: key.map_or(0, |key| key.start_ticks),
            comm: facts.comm.clone(),
            command: facts.command.clone(),
            cgroup: cgroup.map(str::to_owned),
            unit: cgroup.and_then(unit).map(str::to_owned),
            container: cgroup.and_then(container).map(str::to_owned),
            container_name: facts.container_name.clone(),
            connection: row.connection,
            call: row.call,
            attempt: row.number,
            max: row.max(),
            evidence: evidence(row.evidence).to_owned(),
            waited_ms: row.wait().map(ms),
            waited_for_rule: row.waited_for_rule(),
            service: owned(row.service),
            operation: owned(row.operation),
            protocol: protocol(row.protocol).to_owned(),
            method: owned(row.method).unwrap_or_default(),
            url: format!("https://{}{}", authority.unwrap_or_default(), target.unwrap_or_default()),
            status: row.status(),
            reason: owned(row.reason),
            told: if row.is_injected() { row.told() } else { row.status() },
            rule: owned(row.rule),
            abort: chunk.abort(row).map(str::to_owned),
            failure: row.failure.map(|failure| Failure::name(failure).to_owned()),
            class: row.class.name().to_owned(),
            code: owned(row.code),
            retry_after_ms: row.asked().map(ms),
            sent: row.sent,
            received: row.received,
            held_ms: ms(row.held()),
        }
    }
}

impl AttemptEntry {
    /// One out of a recording; `started` is what its moments count from.
    pub fn recorded(id: u64, attempt: &Attempt, started: SystemTime) -> Self {
        let facts = attempt.process.facts();
        let cgroup = facts.cgroup.as_deref();
        let injected = attempt.injected.as_ref();
        let owned = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        let response = attempt.response.as_ref();
        Self {
            id,
            time: time(started + Duration::from_nanos(attempt.started.0)),
            at_ms: ms(attempt.started.since(Moment::default())),
            took_ms: ms(attempt.ended.unwrap_or(attempt.started).since(attempt.started)),
            pid: attempt.process.key.pid,
            start_ticks: attempt.process.key.start_ticks,
            comm: facts.comm.clone(),
            command: facts.command.clone(),
            cgroup: cgroup.map(str::to_owned),
            unit: cgroup.and_then(unit).map(str::to_owned),
            container: cgroup.and_then(container).map(str::to_owned),
            container_name: facts.container_name.clone(),
            connection: attempt.connection.0,
            call: attempt.link.call.0,
            attempt: attempt.link.number,
            max: attempt.link.max,
            evidence: evidence(attempt.link.evidence).to_owned(),
            waited_ms: attempt.link.waited.map(|wait| ms(wait.length())),
            waited_for_rule: attempt.link.waited.is_some_and(|wait| wait.injected),
            service: owned(&attempt.operation.service),
            operation: owned(&attempt.operation.name),
            protocol: protocol(attempt.protocol).to_owned(),
            method: attempt.request.method.to_string(),
            url: attempt.request.url(),
            status: response.map(|response| response.status),
            reason: response.map(|response| response.reason.clone()).filter(|reason| !reason.is_empty()),
            told: attempt.status(),
            rule: injected.map(|injected| injected.rule.to_string()),
            abort: injected.and_then(|injected| injected.abort).map(str::to_owned),
            failure: attempt.failure.map(|failure| failure.name().to_owned()),
            class: Class::of(attempt).name().to_owned(),
            code: owned(&attempt.complaint.code),
            retry_after_ms: attempt.complaint.wait.map(ms),
            sent: attempt.sent,
            received: attempt.received,
            held_ms: ms(attempt.held),
        }
    }
}

/// A header field. What is no UTF-8 has `�` in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Field {
    pub name: String,
    pub value: String,
}

fn fields(headers: &Headers) -> Vec<Field> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    headers.iter().map(|(name, value)| Field { name: text(name), value: text(value) }).collect()
}

fn some_fields(headers: &Headers) -> Option<Vec<Field>> {
    (!headers.is_empty()).then(|| fields(headers))
}

/// One attempt in full. Credentials read `REDACTED`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptDetail {
    #[serde(flatten)]
    pub attempt: AttemptEntry,
    /// The client's own end of the connection.
    pub client: String,
    /// The address that the client meant to reach.
    pub origin: String,
    /// Absent where they are not kept any more.
    pub request_headers: Option<Vec<Field>>,
    /// As the upstream sent them; absent where there was no response, or they
    /// are not kept any more.
    pub response_headers: Option<Vec<Field>>,
    /// The fields after bodies; absent where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_trailers: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_trailers: Option<Vec<Field>>,
    /// The call's attempts that ended before this one and after it.
    pub previous: Option<u64>,
    pub next: Option<u64>,
}

impl AttemptDetail {
    /// One out of a recording.
    pub fn recorded(id: u64, attempt: &Attempt, started: SystemTime) -> Self {
        Self {
            attempt: AttemptEntry::recorded(id, attempt, started),
            client: attempt.client.to_string(),
            origin: attempt.origin.to_string(),
            request_headers: Some(fields(&attempt.request.headers)),
            response_headers: attempt.response.as_ref().map(|response| fields(&response.headers)),
            request_trailers: attempt.trailers.as_ref().and_then(|it| some_fields(&it.request)),
            response_trailers: attempt.trailers.as_ref().and_then(|it| some_fields(&it.response)),
            previous: None,
            next: None,
        }
    }

    pub(super) fn of(id: u64, chunk: &Chunk, row: &Row, heads: Option<&Heads>, clock: &Clock) -> Self {
        let mut attempt = AttemptEntry::of(id, chunk, row, clock);
        let heads = heads.map(Heads::shown);
        if let Some(target) = heads.and_then(|heads| heads.target.as_deref()) {
            attempt.url = format!("https://{}{target}", chunk.text(row.authority).unwrap_or_default());
        }
        let trailers = heads.and_then(|heads| heads.trailers.as_deref());
        Self {
            attempt,
            client: chunk.client(row).to_string(),
            origin: chunk.origin(row).to_string(),
            request_headers: heads.map(|heads| fields(&heads.request)),
            response_headers: heads.and_then(|heads| heads.response.as_ref()).map(fields),
            request_trailers: trailers.and_then(|it| some_fields(&it.request)),
            response_trailers: trailers.and_then(|it| some_fields(&it.response)),
            previous: id.checked_sub(u64::from(row.previous)).filter(|_| row.previous > 0),
            next: row.next().map(|distance| id + u64::from(distance)),
        }
    }
}

/// What a question found, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    pub attempts: Vec<AttemptEntry>,
    /// How many attempts were looked at.
    pub scanned: u64,
    /// Of how many of them the filter's answer is not known, because it
    /// depends on a body or on heads that are not kept.
    pub unknown: u64,
    /// Ask again with `before` set to this for what comes next; absent at the
    /// end of what is kept. A page may have few attempts, or none, and go on.
    pub next: Option<u64>,
    /// What is kept: from this attempt to that. None where `oldest` is past
    /// `newest`.
    pub oldest: u64,
    pub newest: u64,
    /// Attempts that came too fast to be kept at all.
    pub dropped: u64,
}

/// One call with its attempts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CallEntry {
    pub call: u64,
    /// In the order in which they ended; at most the latest 100.
    pub attempts: Vec<AttemptEntry>,
    /// Attempts of it that ended before those and are not shown, as far as
    /// that is known.
    pub earlier: u64,
    /// From the beginning of the first shown to the end of the last.
    pub took_ms: f64,
    /// All backoff before the attempts shown.
    pub waited_ms: f64,
}

/// Calls, the one whose latest attempt ended last first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CallsPage {
    pub calls: Vec<CallEntry>,
    /// As of attempts.
    pub scanned: u64,
    pub unknown: u64,
    pub next: Option<u64>,
    pub oldest: u64,
    pub newest: u64,
    pub dropped: u64,
}
