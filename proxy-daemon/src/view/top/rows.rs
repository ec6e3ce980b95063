//! Lists as they are shown: which rows, in which order.
//!
//! In: the model. Out: rows, the same for whoever draws and whoever presses a
//! key. Everything is sorted by a column of the view; 0 is the view's own
//! order, and the heads say what each column is.
use std::cmp::{Ordering, Reverse};

use super::model::{Key, Model, ProcessKey, Scope, Sort, View, held_of};
use crate::{
    control::HeldView,
    history::{AttemptEntry, CallEntry},
    report::{CountsEntry, OperationEntry, ProcessEntry},
};

/// A process, as a row: out of the report, or what a filter takes of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ProcessRow<'a> {
    pub(super) key: ProcessKey,
    pub(super) entry: Option<&'a ProcessEntry>,
    pub(super) name: String,
    /// Absent under a filter, which is asked of attempts.
    pub(super) calls: Option<u64>,
    pub(super) attempts: u64,
    pub(super) retries: u64,
    pub(super) throttled: u64,
    pub(super) share: Option<f64>,
    pub(super) stalled_ms: f64,
    /// Under a filter, attempts over time.
    pub(super) parts: Option<Vec<super::rates::Slot>>,
}

pub(super) fn throttled(counts: &CountsEntry) -> u64 {
    counts.classes.get("throttled").map_or(0, |class| class.genuine + class.injected)
}

/// A command line without what tells nothing apart, as in `/usr/bin/python3
/// /srv/app/sync.py`.
pub(super) fn without_folders(command: &str) -> String {
    let words = command.split(' ').filter(|word| !word.is_empty());
    let words = words.map(|word| if word.starts_with('/') { word.rsplit('/').next().unwrap_or(word) } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// What a process is called: what runs, and with what.
pub(super) fn name_of(process: &ProcessEntry) -> String {
    let name = without_folders(&process.command);
    if name.is_empty() { process.comm.clone() } else { name }
}

/// The heads of the columns that processes are sorted by.
pub(super) const PROCESS_SORTS: [&str; 8] =
    ["STALLED", "PID", "COMMAND", "CALLS", "ATTEMPTS", "RETRIES", "THROTTLED", "RATE"];

pub(super) fn processes(model: &Model) -> Vec<ProcessRow<'_>> {
    let Some(report) = &model.report else { return Vec::new() };
    let mut rows: Vec<ProcessRow<'_>> = match (&model.filter, &model.counts) {
        (Some(filter), Some((of, series))) if filter == of => series
            .processes
            .iter()
            .map(|series| {
                let key = ProcessKey { pid: series.pid, start_ticks: series.start_ticks };
                let entry = report.processes.iter().find(|process| ProcessKey::of(process) == key);
                let sum = |of: fn(&crate::history::Bucket) -> u64| series.buckets.iter().map(of).sum();
                let part = |bucket: &crate::history::Bucket| super::rates::Slot {
                    attempts: bucket.attempts as f32,
                    retries: bucket.retries as f32,
                    throttled: bucket.throttled as f32,
                };
                ProcessRow {
                    key,
                    entry,
                    name: entry.map_or_else(|| series.comm.clone(), name_of),
                    calls: None,
                    attempts: series.attempts,
                    retries: sum(|bucket| bucket.retries),
                    throttled: sum(|bucket| bucket.throttled),
                    share: None,
                    stalled_ms: series.buckets.iter().map(|bucket| bucket.backoff_ms).sum(),
                    parts: Some(series.buckets.iter().map(part).collect()),
                }
            })
            .collect(),
        (Some(_), _) => Vec::new(),
        (None, _) => report
            .processes
            .iter()
            .map(|process| ProcessRow {
                key: ProcessKey::of(process),
                entry: Some(process),
                name: name_of(process),
                calls: Some(process.counts.calls),
                attempts: process.counts.attempts,
                retries: process.counts.retries,
                throttled: throttled(&process.counts),
                share: Some(process.stalled_share),
                stalled_ms: process.stalled_ms,
                parts: None,
            })
            .collect(),
    };
    let rate = |row: &ProcessRow<'_>| (model.rates.per_second(Some(&row.key), model.now) * 1e3) as u64;
    order(&mut rows, model.place().sort, |column, one, other| match column {
        1 => one.key.pid.cmp(&other.key.pid),
        2 => one.name.cmp(&other.name),
        3 => Reverse(one.calls).cmp(&Reverse(other.calls)),
        4 => Reverse(one.attempts).cmp(&Reverse(other.attempts)),
        5 => Reverse(one.retries).cmp(&Reverse(other.retries)),
        6 => Reverse(one.throttled).cmp(&Reverse(other.throttled)),
        7 => rate(other).cmp(&rate(one)),
        _ => other.stalled_ms.total_cmp(&one.stalled_ms).then(other.attempts.cmp(&one.attempts)),
    });
    rows
}

pub(super) const OPERATION_SORTS: [&str; 7] =
    ["BACKOFF", "OPERATION", "CALLS", "ATTEMPTS", "RETRIES", "THROTTLED", "GAVE UP"];

pub(super) fn operation_name(operation: &OperationEntry) -> String {
    match &operation.service {
        Some(service) => format!("{service}.{}", operation.operation),
        None => operation.operation.clone(),
    }
}

pub(super) fn operations(process: &ProcessEntry, sort: Sort) -> Vec<&OperationEntry> {
    let mut rows: Vec<&OperationEntry> = process.operations.iter().collect();
    order(&mut rows, sort, |column, one, other| {
        let (a, b) = (&one.counts, &other.counts);
        match column {
            1 => operation_name(one).cmp(&operation_name(other)),
            2 => b.calls.cmp(&a.calls),
            3 => b.attempts.cmp(&a.attempts),
            4 => b.retries.cmp(&a.retries),
            5 => throttled(b).cmp(&throttled(a)),
            6 => b.give_ups.cmp(&a.give_ups),
            _ => b.backoff.total_ms.total_cmp(&a.backoff.total_ms).then(b.attempts.cmp(&a.attempts)),
        }
    });
    rows
}

/// A call: what has ended of it, and what is held.
#[derive(Clone, Debug)]
pub(super) struct CallRow<'a> {
    pub(super) call: u64,
    pub(super) attempts: &'a [AttemptEntry],
    pub(super) earlier: u64,
    pub(super) took_ms: f64,
    pub(super) waited_ms: f64,
    pub(super) held: Option<&'a HeldView>,
}

impl<'a> CallRow<'a> {
    pub(super) fn of(entry: &'a CallEntry, held: &'a [HeldView]) -> Self {
        Self {
            call: entry.call,
            attempts: &entry.attempts,
            earlier: entry.earlier,
            took_ms: entry.took_ms,
            waited_ms: entry.waited_ms,
            held: held_of(held, entry.call),
        }
    }

    /// All backoff, with the one before what is held.
    pub(super) fn waited(&self) -> f64 {
        self.waited_ms + self.held.and_then(|held| held.backoff_ms).unwrap_or_default()
    }

    /// How many attempts were begun.
    pub(super) fn tries(&self) -> u32 {
        let ended = self.attempts.last().map_or(0, |last| last.attempt);
        self.held.map_or(ended, |held| held.attempt.max(ended))
    }
}

pub(super) const CALL_SORTS: [&str; 5] = ["TIME", "TRIES", "TOOK", "WAITED", "OPERATION"];

pub(super) fn calls<'a>(model: &'a Model, scope: &Scope) -> Vec<CallRow<'a>> {
    let wanted = model.calls_filter(scope);
    let page = model.calls.as_ref().filter(|(of, _)| *of == wanted).map(|(_, page)| page);
    let mut rows: Vec<CallRow<'_>> =
        page.into_iter().flat_map(|page| &page.calls).map(|call| CallRow::of(call, &model.held)).collect();
    let sort = model.place().sort;
    order(&mut rows, sort, |column, one, other| match column {
        1 => other.tries().cmp(&one.tries()),
        2 => other.took_ms.total_cmp(&one.took_ms),
        3 => other.waited().total_cmp(&one.waited()),
        4 => operation_of(one).cmp(&operation_of(other)),
        // As they came: the latest first.
        _ => Ordering::Equal,
    });
    // Calls of which nothing has ended yet, the latest first.
    let new = model.held.iter().rev().filter(|held| in_scope(held, scope));
    let new: Vec<_> = new.filter(|held| rows.iter().all(|row| row.call != held.call)).collect();
    let mut seen = Vec::new();
    let mut first: Vec<CallRow<'_>> = Vec::new();
    for held in new {
        if !seen.contains(&held.call) {
            seen.push(held.call);
            first.push(CallRow {
                call: held.call,
                attempts: &[],
                earlier: u64::from(held.attempt.saturating_sub(1)),
                took_ms: 0.0,
                waited_ms: 0.0,
                held: Some(held),
            });
        }
    }
    first.append(&mut rows);
    // What waits for a person comes first.
    first.sort_by_key(|row| row.held.is_none());
    first
}

fn in_scope(held: &HeldView, scope: &Scope) -> bool {
    let process = scope.process.is_none_or(|process| process.pid == held.pid);
    let operation = scope.operation.as_ref().is_none_or(|(service, operation)| match service {
        Some(_) => *service == held.service && held.operation.as_ref() == Some(operation),
        None => held.operation.is_none(),
    });
    process && operation
}

fn operation_of(row: &CallRow<'_>) -> String {
    let last = row.attempts.last();
    let held = row.held.and_then(|held| held.operation.clone());
    last.and_then(|last| last.operation.clone()).or(held).unwrap_or_default()
}

pub(super) const RULE_SORTS: [&str; 3] = ["ORDER", "HITS", "NAME"];

/// The rows of the view that is shown.
pub(super) fn keys(model: &Model) -> Vec<Key> {
    match model.view() {
        View::Processes => processes(model).into_iter().map(|row| Key::Process(row.key)).collect(),
        View::Operations(process) => model.process(process).map_or_else(Vec::new, |process| {
            let rows = operations(process, model.place().sort);
            rows.into_iter().map(|row| Key::Operation(row.service.clone(), row.operation.clone())).collect()
        }),
        View::Calls(scope) => calls(model, scope).into_iter().map(|row| Key::Call(row.call)).collect(),
        View::Call(call) => {
            let ended = model.call.iter().flat_map(|call| &call.attempts).map(|attempt| Key::Attempt(attempt.id));
            ended.chain(held_of(&model.held, *call).map(|held| Key::Held(held.id))).collect()
        }
        View::Held => {
            let held = model.held.iter().map(|held| Key::Held(held.id));
            held.chain(model.intercepts.iter().map(|intercept| Key::Intercept(intercept.id))).collect()
        }
        View::Rules => rules(model).into_iter().map(|rule| Key::Rule(rule.name.clone())).collect(),
        View::Attempt(_) | View::Hold(_) => Vec::new(),
    }
}

pub(super) fn rules(model: &Model) -> Vec<&crate::control::RuleView> {
    let mut rows: Vec<_> = model.rules.iter().flat_map(|rules| &rules.rules).collect();
    order(&mut rows, model.place().sort, |column, one, other| match column {
        1 => other.hits.cmp(&one.hits),
        2 => one.name.cmp(&other.name),
        _ => Ordering::Equal,
    });
    rows
}

/// What the columns of a view are called, in the order of their numbers.
pub(super) fn sorts(view: &View) -> &'static [&'static str] {
    match view {
        View::Processes => &PROCESS_SORTS,
        View::Operations(_) => &OPERATION_SORTS,
        View::Calls(_) => &CALL_SORTS,
        View::Rules => &RULE_SORTS,
        View::Call(_) | View::Attempt(_) | View::Held | View::Hold(_) => &[],
    }
}

/// Where the row is that is selected.
pub(super) fn selected(model: &Model, keys: &[Key]) -> usize {
    let wanted = model.place().selected.as_ref();
    wanted.and_then(|wanted| keys.iter().position(|key| key == wanted)).unwrap_or(0)
}

fn order<T>(rows: &mut [T], sort: Sort, compare: impl Fn(usize, &T, &T) -> Ordering) {
    rows.sort_by(|one, other| compare(sort.column, one, other));
    if sort.reversed {
        rows.reverse();
    }
}
