//! The document for a person: a sentence per process, then a table per
//! operation, then what else matters. Every shown value is escaped.
use super::{
    AssertionEntry, CountsEntry, OperationEntry, OutcomesEntry, ProcessEntry, Report, RuleWaitEntry,
    words::{GLUE, bytes, count, duration, fit, number, plain, wrap},
};
use crate::proxy::holds::BY_HAND;

/// Processes, operations, problems and rules shown in full; the document has
/// them all.
const MAX_PROCESSES: usize = 20;
const MAX_OPERATIONS: usize = 12;
const MAX_LISTED: usize = 12;
/// Codes of errors shown in one sentence.
const MAX_CODES: usize = 6;
/// Fewer waits than these have no spread worth telling.
const MIN_SPREAD: u64 = 10;

/// Below this the table has no room for names.
const MIN_WIDTH: usize = 72;
/// Sentences are not set wider than they are easily read.
const MAX_PROSE: usize = 100;
/// The widest a command is shown within a sentence.
const MAX_COMMAND: usize = 48;

/// The report in lines of at most `width` columns (72 at least), the last one
/// ended too. `color`: with ANSI colours.
pub fn text(report: &Report, width: usize, color: bool) -> String {
    let mut page = Page { out: String::new(), width: width.max(MIN_WIDTH), color };
    let shown = report.processes.len().min(MAX_PROCESSES);
    for process in &report.processes[..shown] {
        page.process(process);
    }
    let hidden = report.totals.processes.saturating_sub(shown as u64);
    if hidden > 0 {
        page.prose(
            Style::Plain,
            &format!("and {} (all in the JSON report).", count(hidden, "more process", "more processes")),
        );
        page.gap();
    }
    if report.totals.processes == 0 {
        page.prose(Style::Strong, &nothing_seen(report));
        page.gap();
    } else if report.totals.processes > 1 {
        page.prose(Style::Strong, &whole(report));
        page.gap();
    }
    page.closing(report);
    page.out.truncate(page.out.trim_end().len());
    page.out.push('\n');
    page.out
}

#[derive(Clone, Copy)]
enum Style {
    Plain,
    Strong,
    Faint,
    Warning,
}

struct Page {
    out: String,
    width: usize,
    color: bool,
}

impl Page {
    fn line(&mut self, style: Style, line: &str) {
        let line = line.trim_end();
        let code = match style {
            Style::Plain => "",
            Style::Strong => "\x1b[1m",
            Style::Faint => "\x1b[2m",
            Style::Warning => "\x1b[33m",
        };
        if self.color && !code.is_empty() && !line.is_empty() {
            self.out.extend([code, line, "\x1b[0m\n"]);
        } else {
            self.out.extend([line, "\n"]);
        }
    }

    fn gap(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    fn prose(&mut self, style: Style, text: &str) {
        for line in wrap(text, self.width.min(MAX_PROSE), 0) {
            self.line(style, &line);
        }
    }

    fn process(&mut self, process: &ProcessEntry) {
        self.prose(Style::Strong, &verdict(process));
        if !process.operations.is_empty() {
            self.gap();
            self.operations(&process.operations);
        }
        let found = findings(process);
        if !found.is_empty() {
            self.gap();
        }
        for (style, sentence) in found {
            self.prose(style, &sentence);
        }
        let connections = &process.connections;
        let apart = apart(connections.tunnelled, connections.refused).filter(|_| process.counts.attempts > 0);
        if !process.operations.is_empty() && (apart.is_some() || !process.problems.is_empty()) {
            self.gap();
        }
        if let Some(sentence) = apart {
            self.prose(Style::Plain, &sentence);
        }
        for problem in process.problems.iter().take(MAX_LISTED) {
            let times =
                if problem.count > 1 { format!(" ({}{GLUE}times)", number(problem.count)) } else { String::new() };
            let (kind, name, hint) = (plain(&problem.kind), plain(&problem.name), plain(&problem.hint));
            let of = if name.is_empty() { String::new() } else { format!(" for {name}") };
            self.prose(Style::Warning, &format!("Problem: {kind}{of}{times}. {hint}"));
        }
        if let Some(more) = process.problems.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
            self.prose(Style::Warning, &format!("and {}.", count(more as u64, "more problem", "more problems")));
        }
        self.gap();
    }

    fn operations(&mut self, operations: &[OperationEntry]) {
        let shown = &operations[..operations.len().min(MAX_OPERATIONS)];
        let rows: Vec<[String; 6]> = shown.iter().map(|operation| cells(&operation.counts)).collect();
        let heads = ["calls", "attempts", "retries", "gave up", "backoff", "longest"];
        let widths: Vec<usize> = (0..heads.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).fold(heads[column].len(), usize::max))
            .collect();
        let taken = 2 + widths.iter().map(|width| width + 2).sum::<usize>();
        let room = self.width.saturating_sub(taken).max(8);
        let names: Vec<String> = shown.iter().map(|operation| fit(&plain(&name(operation)), room)).collect();
        let first = names.iter().map(|name| columns(name)).fold("operation".len(), usize::max).min(room);

        let row = |name: &str, cells: &[&str]| {
            let mut line = format!("  {name}{}", " ".repeat(first.saturating_sub(columns(name))));
            for (cell, width) in cells.iter().zip(&widths) {
                line.push_str("  ");
                line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count())));
                line.push_str(cell);
            }
            line.replace(GLUE, " ")
        };
        self.line(Style::Faint, &row(&fit("operation", room), &heads));
        for ((operation, name), cells) in shown.iter().zip(&names).zip(&rows) {
            self.line(Style::Plain, &row(name, &cells.each_ref().map(String::as_str)));
            for line in wrap(&outcomes(&operation.outcomes), self.width - 4, 2) {
                self.line(Style::Faint, &format!("    {line}"));
            }
        }
        if operations.len() > shown.len() {
            let more = (operations.len() - shown.len()) as u64;
            self.line(
                Style::Faint,
                &format!("  and {} (all in the JSON report)", count(more, "more operation", "more operations"))
                    .replace(GLUE, " "),
            );
        }
    }

    fn closing(&mut self, report: &Report) {
        let totals = &report.totals.counts;
        if totals.retries > 0 {
            self.prose(Style::Plain, &evidence(totals));
        }
        for rule in report.rules.iter().take(MAX_LISTED) {
            let name = quoted(&rule.name);
            if rule.hits > 0 {
                self.prose(Style::Plain, &format!("Rule {name} acted {}.", times(rule.hits)));
            } else {
                self.prose(Style::Warning, &format!("Rule {name} never acted: no attempt matched it."));
            }
        }
        if let Some(more) = report.rules.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
            self.prose(Style::Plain, &format!("and {}.", count(more as u64, "more rule", "more rules")));
        }
        self.fidelity(&report.fidelity);
        for AssertionEntry { assertion, holds, explanation } in &report.assertions {
            let (style, verb) = if *holds { (Style::Plain, "holds") } else { (Style::Warning, "FAILED") };
            self.prose(style, &format!("Assertion {} {verb}: {}.", quoted(assertion), plain(explanation)));
        }
        let bounds = &report.bounds;
        let costs = [
            (bounds.processes_folded, "process without a row of its own", "processes without rows of their own"),
            (bounds.calls_forgotten, "call forgotten before its end", "calls forgotten before their end"),
            (bounds.operations_folded, "attempt under no operation's name", "attempts under no operation's name"),
            (bounds.problems_dropped, "problem not listed", "problems not listed"),
            (bounds.attempts_unheld, "attempt let go that was to be held", "attempts let go that were to be held"),
        ];
        let costs: Vec<_> =
            costs.iter().filter(|cost| cost.0 > 0).map(|(cost, one, many)| count(*cost, one, many)).collect();
        if !costs.is_empty() {
            self.prose(Style::Warning, &format!("Limits were reached (totals hold): {}.", costs.join(", ")));
        }
        for note in &report.notes {
            self.prose(Style::Plain, &plain(note));
        }
    }
}

impl Page {
    fn fidelity(&mut self, differences: &[super::DifferenceEntry]) {
        if differences.is_empty() {
            return;
        }
        self.gap();
        self.prose(Style::Strong, "Different from a direct run:");
        for difference in differences.iter().take(MAX_LISTED) {
            let sentence = format!("- {}", plain(&difference.text));
            for line in wrap(&sentence, self.width.min(MAX_PROSE), 2) {
                self.line(Style::Plain, &line);
            }
        }
        if let Some(more) = differences.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
            let more = count(more as u64, "more difference", "more differences");
            self.prose(Style::Plain, &format!("- and {more} (all in the JSON report)"));
        }
        self.gap();
    }
}

/// What is said of a process, its verdict first.
pub(super) fn said(process: &ProcessEntry) -> Vec<String> {
    let apart = apart(process.connections.tunnelled, process.connections.refused);
    std::iter::once(verdict(process))
        .chain(findings(process).into_iter().map(|(_, sentence)| sentence))
        .chain(apart.filter(|_| process.counts.attempts > 0))
        .collect()
}

/// What is said of all processes together.
pub(super) fn said_of_all(report: &Report) -> Vec<String> {
    let first = match report.totals.processes {
        0 => Some(nothing_seen(report)),
        1 => None,
        _ => Some(whole(report)),
    };
    let totals = &report.totals.counts;
    first.into_iter().chain((totals.retries > 0).then(|| evidence(totals))).collect()
}

/// What one process's numbers come to.
fn verdict(process: &ProcessEntry) -> String {
    let container = match (&process.container_name, &process.container) {
        (Some(name), _) => format!(", container {}", plain(name)),
        (None, Some(id)) => format!(", container {}", plain(id.get(..12).unwrap_or(id))),
        (None, None) => String::new(),
    };
    let who = fit(&plain(&process.command), MAX_COMMAND);
    // What stands for a group of processes has no pid.
    let who = if process.pid == 0 { who } else { format!("{who} ({}{container})", process.pid) };
    let counts = &process.counts;
    if counts.attempts == 0 {
        return format!("{who}: {}", unread(process));
    }
    let mut clauses = vec![retried(counts.calls, process)];
    clauses.extend(stalled(process));
    match counts.attempts_unlinked {
        0 => {}
        1 if counts.attempts == 1 => clauses.push("it carried no retry signal".to_owned()),
        1 => clauses.push(format!("1{GLUE}request carried no retry signal")),
        all if all == counts.attempts => {
            clauses.push("this is inferred: no request carried a retry signal".to_owned());
        }
        some => clauses.push(format!(
            "retries of {} are inferred: they carried no retry signal",
            count(some, "request", "requests")
        )),
    }
    match counts.give_ups {
        0 => {}
        1 => clauses.push(format!("1{GLUE}call was given up")),
        many => clauses.push(format!("{}{GLUE}calls were given up", number(many))),
    }
    format!("{who}: {}.", clauses.join("; "))
}

fn unread(process: &ProcessEntry) -> String {
    let connections = &process.connections;
    let all = connections.intercepted + connections.tunnelled + connections.refused;
    match all {
        0 => "no request was seen.".to_owned(),
        _ if connections.intercepted == 0 => {
            let parts: Vec<_> = [(connections.tunnelled, "tunnelled"), (connections.refused, "refused")]
                .into_iter()
                .filter(|part| part.0 > 0)
                .map(|(count, how)| format!("{}{GLUE}{how}", number(count)))
                .collect();
            format!("{}, none of them readable ({}).", count(all, "connection", "connections"), parts.join(", "))
        }
        _ => format!("{}, but no request.", count(all, "connection", "connections")),
    }
}

fn retried(calls: u64, process: &ProcessEntry) -> String {
    let counts = &process.counts;
    let called = |operation: &&OperationEntry| operation.counts.calls > 0;
    // With one operation alone its name stands for the kind of call.
    let only = match process.operations.iter().filter(called).collect::<Vec<_>>()[..] {
        [only] => format!("{} ", fit(&plain(&name(only)), MAX_COMMAND)),
        _ => String::new(),
    };
    match (counts.calls_retried, calls) {
        (0, 1) => return format!("its only {only}call was not retried"),
        (0, _) => return format!("none of {}{GLUE}{only}calls was retried", number(calls)),
        (1, 1) => return format!("its only {only}call was retried {}", times(counts.retries)),
        _ => {}
    }
    let verb = if counts.calls_retried == 1 { "was" } else { "were" };
    let most = process.operations.iter().max_by_key(|operation| operation.counts.calls_retried);
    // Several with as many: none of them has the most.
    let most = most.filter(|most| {
        process.operations.iter().filter(|other| other.counts.calls_retried == most.counts.calls_retried).count() == 1
    });
    let most = match most {
        Some(most) if only.is_empty() && most.counts.calls_retried == counts.calls_retried => {
            format!(" ({}{})", if counts.calls_retried > 1 { "all " } else { "" }, shown(most))
        }
        Some(most) if only.is_empty() => format!(" ({} most: {})", shown(most), number(most.counts.calls_retried)),
        _ => String::new(),
    };
    format!("{} of {}{GLUE}{only}calls {verb} retried{most}", number(counts.calls_retried), number(calls))
}

/// The time spent in backoff, and whose doing it was.
fn stalled(process: &ProcessEntry) -> Option<String> {
    let backoff = &process.counts.backoff;
    if process.counts.retries == 0 || backoff.count == 0 {
        return (process.counts.retries > 0).then(|| "no time was spent in backoff".to_owned());
    }
    let percent = match process.stalled_ms / process.observed_ms * 100.0 {
        percent if !percent.is_finite() => String::new(),
        percent if percent < 0.5 => " (<1%)".to_owned(),
        percent => format!(" ({percent:.0}%)"),
    };
    let share = format!("{} of {}{percent}", duration(process.stalled_ms), duration(process.observed_ms));
    // Where calls wait side by side the sum of their waits says little.
    let side_by_side = backoff.total_ms > process.stalled_ms * 1.01;
    let mut clause = if side_by_side {
        format!("for {share} at least one call was in backoff")
    } else {
        format!("{share} were spent in backoff")
    };
    if backoff.injected_count > 0 {
        let part = if backoff.injected_count == backoff.count {
            "all of it".to_owned()
        } else {
            format!("{} of it", duration(process.stalled_injected_ms))
        };
        clause.push_str(&format!(", {part} because of {}", cause(&process.rules)));
    }
    Some(clause)
}

fn cause(rules: &[RuleWaitEntry]) -> String {
    match rules {
        [] => "rules".to_owned(),
        [rule] if rule.name == BY_HAND => "what was done by hand".to_owned(),
        [rule] => format!("rule {}", quoted(&rule.name)),
        [most, ..] => format!("{}{GLUE}rules ({} most)", rules.len(), quoted(&most.name)),
    }
}

/// What else the counts come to, a sentence each.
fn findings(process: &ProcessEntry) -> Vec<(Style, String)> {
    let counts = &process.counts;
    let mut found = Vec::new();
    if counts.backoff.count >= MIN_SPREAD {
        let timeline = &process.timeline;
        if timeline.retries.len() >= 8 {
            let each = duration(timeline.slot_ms);
            found.push((Style::Plain, format!("Retries over time: {} ({each} each).", spark(&timeline.retries))));
        }
        let (half, most) = (duration(counts.backoff.p50_ms), duration(counts.backoff.p99_ms));
        found.push((Style::Plain, format!("Half of the waits were up to {half}, 99{GLUE}% up to {most}.")));
    }
    if let Some(failures) = failures(counts) {
        found.push((Style::Plain, failures));
    }
    let asked = &counts.retry_after;
    if asked.asked > 0 {
        let mut sentence = format!("Services asked for a wait {}", times(asked.asked));
        match (asked.followed, asked.honoured) {
            (0, _) => sentence.push_str("; no retry followed."),
            (1, 1) => sentence.push_str("; the retry that followed waited as long."),
            (1, _) => sentence.push_str("; the retry that followed did not wait as long."),
            (all, honoured) if all == honoured => {
                sentence.push_str(&format!("; all {} retries that followed waited as long.", number(all)));
            }
            (all, honoured) => sentence.push_str(&format!(
                "; of {} retries that followed, {} waited as long.",
                number(all),
                if honoured == 0 { "none".to_owned() } else { number(honoured) }
            )),
        }
        found.push((if asked.honoured < asked.followed { Style::Warning } else { Style::Plain }, sentence));
    }
    let herds = &process.synchronised;
    if herds.herds > 0 {
        found.push((
            Style::Warning,
            format!(
                "{} woke together in {} (the largest: {}): waits without jitter fall on the service at once.",
                count(herds.retries, "retry", "retries"),
                count(herds.herds, "herd", "herds"),
                number(herds.largest)
            ),
        ));
    }
    if counts.repeated_writes > 0 {
        found.push((
            Style::Warning,
            format!(
                "{} repeated what the upstream had carried out already (POST or PATCH, not idempotent).",
                count(counts.repeated_writes, "retry", "retries")
            ),
        ));
    }
    found
}

/// `Failed attempts: 203 throttled (200 by rules; SlowDown ×203), 12 broken
/// connections. They took 3.20 s and moved 12 MiB.`
fn failures(counts: &CountsEntry) -> Option<String> {
    let names = [
        ("throttled", "throttled", "throttled"),
        ("server_error", "server error", "server errors"),
        ("timeout", "time-out", "time-outs"),
        ("connection", "broken connection", "broken connections"),
        ("client_error", "client error", "client errors"),
        ("cancelled", "cancelled", "cancelled"),
    ];
    let parts: Vec<String> = names
        .into_iter()
        .filter_map(|(name, one, many)| {
            let class = counts.classes.get(name)?;
            let by_rules = match (class.genuine, class.injected) {
                (_, 0) => String::new(),
                (0, _) => " (by rules)".to_owned(),
                (_, some) => format!(" ({} by rules)", number(some)),
            };
            Some(format!("{}{by_rules}", count(class.genuine + class.injected, one, many)))
        })
        .collect();
    if parts.is_empty() {
        return None;
    }
    let codes: Vec<String> = counts
        .codes
        .iter()
        .take(MAX_CODES)
        .map(|(code, count)| format!("{}{GLUE}×{}", plain(code), number(*count)))
        .collect();
    let codes = if codes.is_empty() { String::new() } else { format!("; codes: {}", codes.join(", ")) };
    let moved = counts.wasted.sent_bytes + counts.wasted.received_bytes;
    let moved = if moved >= 1024 { format!(" and moved {}", bytes(moved)) } else { String::new() };
    Some(format!("Failed attempts: {}{codes}. They took {}{moved}.", parts.join(", "), duration(counts.wasted.ms)))
}

/// One column of a bar chart for each count.
fn spark(counts: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let bar = |count: &u64| match count {
        0 => '·',
        count => BARS[((count * 8).div_ceil(most) as usize).clamp(1, 8) - 1],
    };
    counts.iter().map(bar).collect()
}

/// Connections that were not read, for a process that has others.
fn apart(tunnelled: u64, refused: u64) -> Option<String> {
    let were = |count: u64| if count == 1 { "was" } else { "were" };
    let tunnels = format!("{} {} tunnelled unread", count(tunnelled, "connection", "connections"), were(tunnelled));
    let refusals = format!("{} {} refused", count(refused, "connection", "connections"), were(refused));
    match (tunnelled, refused) {
        (0, 0) => None,
        (_, 0) => Some(format!("{tunnels}.")),
        (0, _) => Some(format!("{refusals}.")),
        _ => Some(format!("{tunnels}, {refusals}.")),
    }
}

fn nothing_seen(report: &Report) -> String {
    let ports = match &report.ports[..] {
        [] => "any port".to_owned(),
        [port] => format!("port{GLUE}{port}"),
        ports => format!("ports {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    };
    let who = if report.command.is_some() { "The command" } else { "The target" };
    format!(
        "{who} made no TCP connection to {ports}. Likely reasons: it sent nothing; it uses a proxy (https_proxy), another \
         port (--port), or QUIC; a daemon outside of it makes its connections; or it was connected before and keeps \
         that connection."
    )
}

fn whole(report: &Report) -> String {
    let (counts, totals) = (&report.totals.counts, &report.totals);
    let mut parts = vec![
        count(counts.calls, "call", "calls"),
        count(counts.attempts, "attempt", "attempts"),
        count(counts.retries, "retry", "retries"),
        format!("{}{GLUE}given up", number(counts.give_ups)),
    ];
    if counts.backoff.count > 0 {
        parts.push(format!(
            "{} of backoff, the longest {}",
            duration(counts.backoff.total_ms),
            duration(counts.backoff.max_ms)
        ));
    }
    let connections = &totals.connections;
    let all = connections.intercepted + connections.tunnelled + connections.refused;
    parts.push(count(all, "connection", "connections"));
    format!("All {}{GLUE}processes: {}.", number(totals.processes), parts.join(", "))
}

fn evidence(counts: &CountsEntry) -> String {
    match (counts.retries_exact, counts.retries_inferred) {
        (_, 0) => "Retries are exact: taken from headers that the client sent.".to_owned(),
        (0, _) => "Retries are inferred: the client sends nothing that would mark them.".to_owned(),
        (exact, inferred) => format!(
            "Of {} {} exact, taken from headers that the client sent, and {} inferred.",
            count(exact + inferred, "retry", "retries"),
            number(exact),
            number(inferred)
        ),
    }
}

fn cells(counts: &CountsEntry) -> [String; 6] {
    let wait = |ms| if counts.backoff.count == 0 { "-".to_owned() } else { duration(ms) };
    [
        number(counts.calls),
        number(counts.attempts),
        number(counts.retries),
        number(counts.give_ups),
        wait(counts.backoff.total_ms),
        wait(counts.backoff.max_ms),
    ]
}

/// `200 ×1,200, reset ×1, by rule 429 ×2 (upstream 200 ×2)`.
fn outcomes(outcomes: &OutcomesEntry) -> String {
    let list = |counts: &std::collections::BTreeMap<String, u64>| {
        counts
            .iter()
            .map(|(name, count)| format!("{}{GLUE}×{}", plain(name), number(*count)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut parts: Vec<String> =
        [list(&outcomes.statuses), list(&outcomes.errors)].into_iter().filter(|part| !part.is_empty()).collect();
    if !outcomes.injected.is_empty() {
        let beneath = match list(&outcomes.replaced) {
            beneath if beneath.is_empty() => String::new(),
            beneath => format!(" (upstream {beneath})"),
        };
        parts.push(format!("by rule {}{beneath}", list(&outcomes.injected)));
    }
    if !outcomes.aborted.is_empty() {
        parts.push(format!("broken off by rule {}", list(&outcomes.aborted)));
    }
    parts.join(", ")
}

fn name(operation: &OperationEntry) -> String {
    match &operation.service {
        Some(service) => format!("{service}.{}", operation.operation),
        None => operation.operation.clone(),
    }
}

fn shown(operation: &OperationEntry) -> String {
    fit(&plain(&name(operation)), MAX_COMMAND)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", fit(&plain(name), MAX_COMMAND))
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        many => format!("{}{GLUE}times", number(many)),
    }
}

fn columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}
