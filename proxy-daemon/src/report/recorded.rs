//! What a recording comes to: the report that its instance would have made,
//! and its attempts as a person reads them.
//!
//! In: a [`Recording`]. Out: the same report as of an instance, as far as
//! attempts tell; and one attempt in full.
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::{
    Meta, Report, Timeline,
    build::{self, ms},
    timeline,
    words::{bytes, count, duration, plain},
};
use crate::{
    flow::{
        Attempt, Evidence, Failure, Headers, Moment, Response, Wait,
        record::{Body, Recorded, Recording},
    },
    retry::{Fingerprint, Hint, Ledger, Limits},
};

/// The report of a recording, and the timeline of its latest attempts.
pub fn report(mut recording: Recording, name: &str) -> (Report, Timeline) {
    let started = recording.started.unwrap_or(SystemTime::UNIX_EPOCH);
    let mut ledger = Ledger::new(Limits::default(), Moment::default());
    // As they happened: begins and ends, in order of time.
    let mut steps = Vec::with_capacity(recording.attempts.len() * 2);
    for (at, Recorded { attempt, .. }) in recording.attempts.iter().enumerate() {
        let ended = attempt.ended.unwrap_or(attempt.started);
        steps.push((attempt.started, 1, at));
        // What ends at the moment at which another begins has ended before it.
        steps.push((ended, if ended == attempt.started { 2 } else { 0 }, at));
    }
    steps.sort_unstable();
    let latest = steps.last().map(|(moment, ..)| *moment).unwrap_or_default();
    let mut order = Vec::with_capacity(recording.attempts.len());
    for (moment, kind, at) in steps {
        let Some(Recorded { attempt, linked, .. }) = recording.attempts.get_mut(at) else { continue };
        if kind != 1 {
            attempt.link = ledger.finish(attempt);
            order.push(at);
        } else if *linked {
            attempt.link = ledger.begin_linked(&attempt.process, attempt.link, moment);
        } else {
            let hint = Hint::of(attempt.process.key, &attempt.request);
            attempt.link = ledger.begin(&attempt.process, &hint, attempt.request.host(), moment);
            attempt.print = hint.print.map(Fingerprint::number);
        }
    }
    let mut rules: BTreeMap<String, u64> = BTreeMap::new();
    for injected in recording.attempts.iter().filter_map(|it| it.attempt.injected.as_ref()) {
        *rules.entry(injected.rule.to_string()).or_default() += 1;
    }
    let ended = order.iter().filter_map(|at| recording.attempts.get(*at)).map(|it| &it.attempt);
    let timeline = timeline::of(ended, started);
    let report = build::build(
        &ledger.snapshot(latest),
        &Meta {
            seed: recording.seed.unwrap_or_default(),
            started,
            ended: started + Duration::from_nanos(latest.0),
            command: None,
            ports: Vec::new(),
            rules: rules.into_iter().collect(),
            redirect: serde_json::Value::Null,
            assertions: Vec::new(),
            differences: Vec::new(),
            notes: notes(&recording, name),
        },
    );
    (report, timeline)
}

/// What there is to say of a recording as such.
pub fn notes(recording: &Recording, name: &str) -> Vec<String> {
    let mut notes = vec![format!(
        "This is of the recording {name}: connections that were not looked into, and problems, are not in it."
    )];
    if recording.torn {
        notes.push("The recording was torn at its end, as by a kill; what is whole counts.".to_owned());
    } else if recording.unfinished {
        notes.push("The instance that recorded it had not ended in order when this was read.".to_owned());
    }
    if recording.dropped > 0 {
        notes.push(format!("The disk was too slow: {} attempts are not in the recording.", recording.dropped));
    }
    notes
}

/// `200`, `200→429`, `reset`, `200→reset`, `200 closed`.
fn outcome(attempt: &Attempt) -> String {
    let genuine = attempt.response.as_ref().map(|response| response.status.to_string());
    match (&attempt.injected, attempt.failure) {
        (Some(injected), _) => {
            let told = injected.abort.map(str::to_owned).or(injected.status.map(|status| status.to_string()));
            format!("{}→{}", genuine.as_deref().unwrap_or("-"), told.as_deref().unwrap_or("-"))
        }
        (None, Some(failure)) => match genuine {
            Some(genuine) => format!("{genuine} {failure}"),
            None => failure.name().to_owned(),
        },
        (None, None) => genuine.unwrap_or_else(|| "-".to_owned()),
    }
}

/// One attempt in full.
pub fn full(id: u64, recorded: &Recorded, started: Option<SystemTime>) -> String {
    let attempt = &recorded.attempt;
    let facts = attempt.process.facts();
    let mut out = String::new();
    let mut put = |text: String| {
        out.push_str(&plain(&text));
        out.push('\n');
    };
    let evidence = match attempt.link.evidence {
        Evidence::Exact => "exact",
        Evidence::Inferred => "inferred",
        Evidence::Alone => "nothing says that it is a retry",
    };
    let max = attempt.link.max.map_or_else(String::new, |max| format!(" of at most {max}"));
    put(format!(
        "Attempt {} of call {}{max} ({evidence}); number {id} of the recording",
        attempt.link.number, attempt.link.call.0
    ));
    put(format!("  process   {} {}", attempt.process.key.pid, facts.command));
    if let Some(started) = started {
        let at = started + Duration::from_nanos(attempt.started.0);
        put(format!("  began     {}", humantime::format_rfc3339_micros(at)));
    }
    let took = attempt.ended.unwrap_or(attempt.started).since(attempt.started);
    let parts: Vec<String> = ["sending", "waiting", "receiving"]
        .into_iter()
        .zip(recorded.timings)
        .filter_map(|(what, time)| Some(format!("{what} {}", duration(ms(time?)))))
        .collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    put(format!("  took      {}{parts}", duration(ms(took))));
    if let Some(Wait { injected, .. }) = attempt.link.waited {
        let wait = attempt.link.waited.map(|wait| wait.length()).unwrap_or_default();
        put(format!(
            "  waited    {} before it{}",
            duration(ms(wait)),
            if injected { ", because of a rule" } else { "" }
        ));
    }
    put(format!("  outcome   {}", outcome(attempt)));
    if let Some(injected) = &attempt.injected {
        put(format!("  rule      {}", injected.rule));
    }
    if let Some(failure) = attempt.failure.filter(|_| attempt.injected.is_none()) {
        put(format!("  failure   {}", said(failure)));
    }
    if let Some(code) = &attempt.complaint.code {
        put(format!("  code      {code}"));
    }
    put(String::new());
    put(format!("> {} {}{}", attempt.request.method, attempt.request.authority, attempt.request.target));
    head('>', &attempt.request.headers, &mut put);
    body('>', &recorded.request_body, attempt.sent, &mut put);
    trailers('>', attempt.trailers.as_ref().map(|it| &it.request), &mut put);
    let response = |title: &str, response: &Response, put: &mut dyn FnMut(String)| {
        put(String::new());
        put(format!("< {} {}{title}", response.status, response.reason));
        head('<', &response.headers, put);
    };
    match (recorded.answer(), &attempt.response) {
        (Some(told), Some(genuine)) if attempt.injected.is_some() => {
            response("   (as the upstream answered)", genuine, &mut put);
            response("   (as the client was told)", told, &mut put);
        }
        (Some(answer), _) => response("", answer, &mut put),
        (None, Some(genuine)) => response("   (as the upstream answered; the client never saw it)", genuine, &mut put),
        (None, None) => {}
    }
    body('<', &recorded.response_body, attempt.received, &mut put);
    trailers('<', attempt.trailers.as_ref().map(|it| &it.response), &mut put);
    out
}

fn said(failure: Failure) -> &'static str {
    match failure {
        Failure::Reset => "the upstream reset it",
        Failure::Closed => "the upstream closed before it was complete",
        Failure::TimedOut => "the connection timed out",
        Failure::Refused => "the connection was refused",
        Failure::Unreachable => "there was no way to the upstream",
        Failure::Tls => "the TLS handshake failed",
        Failure::Protocol => "the upstream broke the protocol",
        Failure::Cancelled => "the client went away first",
        Failure::Unread => "none: a head was too long to be read whole, and passed as it came",
    }
}

fn head(mark: char, headers: &Headers, put: &mut dyn FnMut(String)) {
    for (name, value) in headers.iter() {
        put(format!("{mark} {}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    }
}

/// The fields after a body.
fn trailers(mark: char, fields: Option<&Headers>, put: &mut dyn FnMut(String)) {
    if let Some(fields) = fields.filter(|fields| !fields.is_empty()) {
        put(format!("{mark} (trailers)"));
        head(mark, fields, put);
    }
}

/// A text as it is, everything else by its length.
fn body(mark: char, body: &Body, length: u64, put: &mut dyn FnMut(String)) {
    if let Some(why) = &body.withheld {
        put(format!("{mark}"));
        return put(format!("{mark} [{} left out: {why}]", count(length, "byte", "bytes")));
    }
    if !body.known || body.bytes.is_empty() {
        if length > 0 && !body.known {
            put(format!("{mark}"));
            put(format!("{mark} [{} not recorded]", count(length, "byte", "bytes")));
        }
        return;
    }
    put(format!("{mark}"));
    match std::str::from_utf8(&body.bytes) {
        Ok(text) => text.lines().for_each(|line| put(format!("{mark} {line}"))),
        Err(_) => put(format!("{mark} [{} that are no text]", bytes(body.bytes.len() as u64))),
    }
    if body.missing > 0 {
        put(format!("{mark} [cut: {} more]", count(body.missing, "byte", "bytes")));
    }
}
