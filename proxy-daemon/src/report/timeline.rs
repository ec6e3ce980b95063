//! The latest attempts, for the HTML report's timeline.
//!
//! In: the feed. Out: at most [`KEPT`] attempts, oldest first, and how many
//! came before those. They are kept small: what a page shows of one, names
//! cut at [`MAX_TEXT`].
use std::{
    collections::{BTreeMap, VecDeque},
    thread::JoinHandle,
    time::SystemTime,
};

use serde::Serialize;

use super::{
    build::{ms, time},
    events::{evidence, protocol},
};
use crate::{
    flow::{Attempt, Clock, Failure, Moment, redact},
    process::ProcessKey,
    proxy::{Feed, Subscription},
    retry::{Class, OperationName},
};

/// How many attempts are kept.
pub const KEPT: usize = 20_000;
/// How far keeping may be behind, in attempts.
const ROOM: usize = 65_536;
/// The longest URL or name that is kept, in characters.
const MAX_TEXT: usize = 200;

/// One attempt. Times are in milliseconds, `at` since the instance's start;
/// what is empty or zero is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pid: u32,
    start_ticks: u64,
    at: f64,
    took: f64,
    call: u64,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
    evidence: &'static str,
    /// The backoff before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited: Option<f64>,
    #[serde(skip_serializing_if = "is_false")]
    waited_for_rule: bool,
    /// `service.Operation`, or a route.
    operation: String,
    method: String,
    url: String,
    protocol: &'static str,
    /// The upstream's status, and what the client was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    abort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'static str>,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<f64>,
    #[serde(skip_serializing_if = "is_zero")]
    held: f64,
    sent: u64,
    received: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Row {
    fn new(attempt: &Attempt) -> Self {
        let ProcessKey { pid, start_ticks } = attempt.process.key;
        let injected = attempt.injected.as_ref();
        let ended = attempt.ended.unwrap_or(attempt.started);
        Self {
            pid,
            start_ticks,
            at: ms(attempt.started.since(Moment::default())),
            took: ms(ended.since(attempt.started)),
            call: attempt.link.call.0,
            attempt: attempt.link.number,
            max: attempt.link.max,
            evidence: evidence(attempt.link.evidence),
            waited: attempt.link.waited.map(|wait| ms(wait.length())),
            waited_for_rule: attempt.link.waited.is_some_and(|wait| wait.injected),
            operation: cut(&named(attempt)),
            method: cut(&attempt.request.method),
            url: cut(&redact::url(&attempt.request.url())),
            protocol: protocol(attempt.protocol),
            status: attempt.response.as_ref().map(|response| response.status),
            told: attempt.status(),
            rule: injected.map(|injected| cut(&injected.rule)),
            abort: injected.and_then(|injected| injected.abort),
            failure: attempt.failure.map(Failure::name),
            class: Class::of(attempt).name(),
            code: attempt.complaint.code.as_deref().map(cut),
            retry_after: attempt.complaint.wait.map(ms),
            held: ms(attempt.held),
            sent: attempt.sent,
            received: attempt.received,
        }
    }
}

fn named(attempt: &Attempt) -> String {
    match OperationName::of(attempt) {
        Some(OperationName { service: Some(service), operation }) => format!("{service}.{operation}"),
        Some(OperationName { service: None, operation }) => operation.to_string(),
        None => format!("{} {}", attempt.request.method, attempt.request.host()),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// What was kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// The instance's start, which times count from.
    pub started: String,
    /// Attempts that came before those kept.
    pub older: u64,
    /// Attempts that came too fast to be kept.
    pub dropped: u64,
    /// Commands by `pid:start_ticks`.
    pub commands: BTreeMap<String, String>,
    /// In the order in which they ended.
    pub attempts: VecDeque<Row>,
}

impl Timeline {
    fn add(&mut self, attempt: &Attempt, kept: usize) {
        if self.attempts.len() >= kept {
            self.attempts.pop_front();
            self.older += 1;
        }
        self.attempts.push_back(Row::new(attempt));
        // A process that executes another program goes by its last name.
        let ProcessKey { pid, start_ticks } = attempt.process.key;
        let key = format!("{pid}:{start_ticks}");
        if self.commands.len() < kept || self.commands.contains_key(&key) {
            self.commands.insert(key, cut(&attempt.process.facts().command));
        }
    }
}

/// The latest of those that have ended, in the order in which they did.
pub fn of<'a>(attempts: impl Iterator<Item = &'a Attempt>, started: SystemTime) -> Timeline {
    let mut timeline = Timeline { started: time(started), ..Timeline::default() };
    attempts.for_each(|attempt| timeline.add(attempt, KEPT));
    timeline
}

/// Keeps the latest of all that comes, until the feed is closed.
pub fn keep(feed: &Feed, clock: Clock) -> JoinHandle<Timeline> {
    let mut subscription: Subscription = feed.subscribe(ROOM);
    std::thread::spawn(move || {
        let mut timeline = Timeline { started: time(clock.wall(Moment::default())), ..Timeline::default() };
        while let Some(attempt) = subscription.wait() {
            timeline.add(&attempt, KEPT);
        }
        timeline.dropped = subscription.dropped();
        timeline
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::filter::tests::attempt;

    #[test]
    fn the_latest_are_kept_and_the_others_counted() {
        let mut timeline = Timeline::default();
        for number in 1..=5 {
            let mut it = attempt();
            it.link.number = number;
            timeline.add(&it, 3);
        }
        let kept: Vec<u32> = timeline.attempts.iter().map(|row| row.attempt).collect();
        assert_eq!((kept, timeline.older, timeline.commands.len()), (vec![3, 4, 5], 2, 1));
    }

    #[test]
    fn nothing_kept_is_long_or_secret() {
        let mut it = attempt();
        it.request.target = format!("/b?token=hush&x={}", "ä".repeat(10_000)).into();
        let row = Row::new(&it);
        assert_eq!(row.url.chars().count(), MAX_TEXT + 1);
        assert!(row.url.contains("token=REDACTED&x=ä") && row.url.ends_with('…'), "{}", row.url);
        assert_eq!((row.operation.as_str(), row.status, row.told), ("s3.GetObject", Some(200), Some(200)));
    }
}
