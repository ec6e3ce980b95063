//! Two reports side by side: before and after.
//!
//! In: two documents. Out: [`Diff`], the totals and every operation of both,
//! and a text of it. Processes are not compared one by one: a program that is
//! run again has other pids.
use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    CountsEntry, Report,
    words::{GLUE, count, duration, fit, number, plain, wrap},
};

/// Operations shown in the text; the document has them all.
const MAX_SHOWN: usize = 15;

/// A number before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    pub before: f64,
    pub after: f64,
}

impl Change {
    fn by(self) -> f64 {
        self.after - self.before
    }
}

/// What is compared, of all or of one operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// `service.operation`; empty for the totals.
    pub operation: String,
    pub calls: Change,
    pub attempts: Change,
    pub retries: Change,
    pub amplification: Change,
    pub throttled: Change,
    pub failed: Change,
    pub give_ups: Change,
    pub backoff_ms: Change,
    pub backoff_p99_ms: Change,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    pub schema: u32,
    pub totals: Row,
    pub stalled_ms: Change,
    /// Of the time that processes were observed.
    pub stalled_share: Change,
    /// Those whose retries changed most come first, then by backoff.
    pub operations: Vec<Row>,
}

/// One operation's counts over all processes of a report.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    calls: f64,
    attempts: f64,
    retries: f64,
    throttled: f64,
    failed: f64,
    give_ups: f64,
    backoff: f64,
    p99: f64,
}

impl Sum {
    fn add(&mut self, counts: &CountsEntry) {
        let class = |name: &str| counts.classes.get(name).map_or(0, |class| class.genuine + class.injected) as f64;
        self.calls += counts.calls as f64;
        self.attempts += counts.attempts as f64;
        self.retries += counts.retries as f64;
        self.throttled += class("throttled");
        self.failed += counts.attempts as f64 - class("success");
        self.give_ups += counts.give_ups as f64;
        self.backoff += counts.backoff.total_ms;
        // Quantiles do not add up: that of the process that waited longest.
        self.p99 = self.p99.max(counts.backoff.p99_ms);
    }

    fn amplification(&self) -> f64 {
        if self.calls > 0.0 { self.attempts / self.calls } else { 1.0 }
    }
}

fn row(operation: &str, before: Sum, after: Sum) -> Row {
    let of = |value: fn(&Sum) -> f64| Change { before: value(&before), after: value(&after) };
    Row {
        operation: operation.to_owned(),
        calls: of(|sum| sum.calls),
        attempts: of(|sum| sum.attempts),
        retries: of(|sum| sum.retries),
        amplification: of(Sum::amplification),
        throttled: of(|sum| sum.throttled),
        failed: of(|sum| sum.failed),
        give_ups: of(|sum| sum.give_ups),
        backoff_ms: of(|sum| sum.backoff),
        backoff_p99_ms: of(|sum| sum.p99),
    }
}

pub fn diff(before: &Report, after: &Report) -> Diff {
    let mut operations: BTreeMap<String, [Sum; 2]> = BTreeMap::new();
    let mut totals = [Sum::default(); 2];
    for (at, report) in [before, after].into_iter().enumerate() {
        totals[at].add(&report.totals.counts);
        for operation in report.processes.iter().flat_map(|process| &process.operations) {
            let name = match &operation.service {
                Some(service) => format!("{service}.{}", operation.operation),
                None => operation.operation.clone(),
            };
            operations.entry(name).or_default()[at].add(&operation.counts);
        }
    }
    let mut rows: Vec<Row> = operations.iter().map(|(name, [before, after])| row(name, *before, *after)).collect();
    rows.sort_by(|a, b| {
        let weight = |row: &Row| (row.retries.by().abs(), row.backoff_ms.by().abs());
        weight(b)
            .partial_cmp(&weight(a))
            .unwrap_or(std::cmp::Ordering::Equal)
            .then_with(|| a.operation.cmp(&b.operation))
    });
    let share = |report: &Report| {
        if report.totals.observed_ms > 0.0 { report.totals.stalled_ms / report.totals.observed_ms } else { 0.0 }
    };
    Diff {
        schema: super::SCHEMA,
        totals: row("", totals[0], totals[1]),
        stalled_ms: Change { before: before.totals.stalled_ms, after: after.totals.stalled_ms },
        stalled_share: Change { before: share(before), after: share(after) },
        operations: rows,
    }
}

/// For a person, in lines of at most `width` columns (72 at least).
pub fn text(diff: &Diff, width: usize) -> String {
    let width = width.max(72);
    let totals = &diff.totals;
    let mut out = String::new();
    let verb = match totals.retries.by() {
        by if by > 0.0 => "rose",
        by if by < 0.0 => "fell",
        _ => "stayed",
    };
    let percent = |share: f64| format!("{:.0}{GLUE}%", share * 100.0);
    let sentence = format!(
        "Retries {verb} from {} to {}{}; stalled time from {} ({}) to {} ({}); calls from {} to {}.",
        number(totals.retries.before as u64),
        number(totals.retries.after as u64),
        relative(totals.retries),
        duration(diff.stalled_ms.before),
        percent(diff.stalled_share.before),
        duration(diff.stalled_ms.after),
        percent(diff.stalled_share.after),
        number(totals.calls.before as u64),
        number(totals.calls.after as u64),
    );
    wrap(&sentence, width.min(100), 0).into_iter().for_each(|line| out.extend([line.as_str(), "\n"]));
    let arrow = |change: Change, show: fn(f64) -> String| {
        let (before, after) = (show(change.before), show(change.after));
        if before == after { after } else { format!("{before} → {after}") }
    };
    let whole = |value: f64| number(value as u64);
    let heads = ["calls", "retries", "throttled", "gave up", "backoff"];
    let cells: Vec<[String; 5]> = diff
        .operations
        .iter()
        .take(MAX_SHOWN)
        .map(|row| {
            [
                arrow(row.calls, whole),
                arrow(row.retries, whole),
                arrow(row.throttled, whole),
                arrow(row.give_ups, whole),
                arrow(row.backoff_ms, |ms| if ms > 0.0 { duration(ms) } else { "-".to_owned() }),
            ]
        })
        .collect();
    if cells.is_empty() {
        return out;
    }
    let columns: Vec<usize> = (0..heads.len())
        .map(|at| cells.iter().map(|row| row[at].chars().count()).fold(heads[at].len(), usize::max))
        .collect();
    let room = width.saturating_sub(2 + columns.iter().map(|column| column + 2).sum::<usize>()).max(12);
    let mut line = |name: &str, cells: &[&str]| {
        let mut line = format!("  {name}{}", " ".repeat(room.saturating_sub(name.chars().count())));
        for (cell, width) in cells.iter().zip(&columns) {
            line.push_str(&" ".repeat(2 + width.saturating_sub(cell.chars().count())));
            line.push_str(cell);
        }
        out.push_str(line.replace(GLUE, " ").trim_end());
        out.push('\n');
    };
    line("", &[]);
    line("operation", &heads);
    for (row, cells) in diff.operations.iter().zip(&cells) {
        line(&fit(&plain(&row.operation), room), &cells.each_ref().map(String::as_str));
    }
    if diff.operations.len() > MAX_SHOWN {
        let more = (diff.operations.len() - MAX_SHOWN) as u64;
        out.push_str(&format!("  and {}\n", count(more, "more operation", "more operations").replace(GLUE, " ")));
    }
    out
}

fn relative(change: Change) -> String {
    if change.before == 0.0 || change.by() == 0.0 {
        return String::new();
    }
    format!(" ({:+.0}{GLUE}%)", change.by() / change.before * 100.0)
}
