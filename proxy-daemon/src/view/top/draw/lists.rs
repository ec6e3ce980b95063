//! Lists: processes, their operations, calls, a call's attempts, what is
//! held, rules.
use ratatui::{style::Style, text::Span};

use super::{
    Drawn, Look,
    pane::{self, Cell, Pane, Table, amount, cell, number, word},
    top::spark,
};
use crate::{
    control::{HeldView, HoldAt},
    flow::redact,
    history::AttemptEntry,
    report::words::{fit, plain},
    view::{
        top::{
            lane::{Ink, lane},
            model::{Key, Link, Model, ProcessKey, Scope, Sort, held_of},
            rows::{self, CallRow},
        },
        words::{asked, left, outcome, share, short, time},
    },
};

/// What stands where there are no rows.
fn empty(model: &Model, look: Look, pane: &mut Pane<'_>, what: &str) {
    pane.skip();
    let text = match model.link {
        Link::Starting => "Asking the instance ...",
        _ => what,
    };
    pane.wrapped(text, look.dim());
}

pub(super) fn processes(model: &Model, look: Look, pane: &mut Pane<'_>, drawn: &mut Drawn) {
    let width = pane.width();
    let mut columns =
        vec![number("PID", 7, 1), word("COMMAND", 0, Some(2)), number("CALLS", 7, 3), number("ATTEMPTS", 8, 4)];
    if width >= 100 {
        columns.push(number("RATE", 7, 7));
    }
    columns.extend([number("RETRIES", 7, 5), number("THROTTLED", 9, 6), number("STALLED", 8, 0)]);
    if width >= 100 {
        columns.push(amount("FOR", 8));
    }
    let seconds = (width / 8).clamp(10, 60);
    columns.push(word("LATELY", seconds, None));
    let table = Table::new(columns, width);
    table.head(look, pane, model.place().sort, Some(&mut drawn.hits));
    let list = rows::processes(model);
    if list.is_empty() {
        let what = match (&model.filter, &model.counts) {
            (Some(filter), Some((of, _))) if filter == of => "No attempt that is kept matches the filter.",
            (Some(_), _) => "Asking for what matches ...",
            (None, _) => "Nothing was seen yet: processes appear here with their first connection.",
        };
        return empty(model, look, pane, what);
    }
    let keys: Vec<Key> = list.iter().map(|row| Key::Process(row.key)).collect();
    let selected = rows::selected(model, &keys);
    let others = model.report.as_ref().and_then(|report| report.others.as_ref()).filter(|_| model.filter.is_none());
    let table = &table;
    pane::rows(pane, &keys, Some(selected), Some(drawn), |at| {
        let row = &list[at];
        let gone = row.entry.is_none_or(|entry| entry.exited);
        table.row(|head, width| match head {
            "PID" => cell(row.key.pid.to_string(), if gone { look.dim() } else { Style::new() }),
            "COMMAND" => cell(&row.name, if gone { look.dim() } else { look.name() }),
            "CALLS" => cell(row.calls.map(short).unwrap_or_default(), Style::new()),
            "ATTEMPTS" => cell(short(row.attempts), Style::new()),
            "RATE" => {
                let rate = model.rates.per_second(Some(&row.key), model.now);
                cell(per_second(rate), if rate > 0.0 { Style::new() } else { look.dim() })
            }
            "RETRIES" => cell(short(row.retries), look.count(row.retries, look.bold())),
            "THROTTLED" => cell(short(row.throttled), look.count(row.throttled, look.warn())),
            "STALLED" => match row.share {
                Some(of) => {
                    cell(share(of), if of >= 0.1 { look.warn() } else { look.count(u64::from(of > 0.0), look.bold()) })
                }
                // Under a filter, waits are known and not what they are a part of.
                None => cell(time(row.stalled_ms), look.dim()),
            },
            "FOR" => cell(time(row.stalled_ms), look.dim()),
            _ => Cell::Spans(match &row.parts {
                Some(parts) => spark(look, parts, width),
                None => spark(look, &model.rates.of(&row.key, width, model.now), width),
            }),
        })
    });
    if let Some(others) = others {
        let text = format!("and {} more processes, with {} attempts", others.processes, short(others.counts.attempts));
        pane.text(&text, look.dim());
    }
}

fn per_second(rate: f32) -> String {
    if rate < 9.95 { format!("{rate:.1}/s") } else { format!("{}/s", short(rate.round() as u64)) }
}

pub(super) fn operations(model: &Model, look: Look, pane: &mut Pane<'_>, key: ProcessKey, drawn: Option<&mut Drawn>) {
    let active = drawn.is_some();
    let Some(process) = model.process(&key) else {
        return empty(model, look, pane, "This process is no longer told of.");
    };
    pane.beginning(&process.command, if active { 1 } else { 2 }, look.name());
    let place = process.container_name.as_ref().or(process.container.as_ref()).map(|it| format!("container {it}"));
    let place = place.or_else(|| process.unit.clone());
    let mut facts = format!("pid {}, uid {}", process.pid, process.uid);
    facts.extend(place.map(|place| format!(", {place}")));
    facts.push_str(if process.exited { ", has exited" } else { "" });
    facts.push_str(&format!("; stalled for {} of {}", time(process.stalled_ms), time(process.observed_ms)));
    if process.stalled_injected_ms > 0.0 {
        facts.push_str(&format!(", {} of it by rules", time(process.stalled_injected_ms)));
    }
    pane.text(&facts, look.dim());
    let width = pane.width();
    let mut columns = vec![word("OPERATION", 0, Some(1)), number("CALLS", 7, 2)];
    if active {
        columns.push(number("ATTEMPTS", 8, 3));
    }
    columns.push(number("RETRIES", 7, 4));
    if active {
        columns.extend([number("THROTTLED", 9, 5), number("GAVE UP", 7, 6)]);
    }
    columns.push(number("BACKOFF", 8, 0));
    if width >= 110 {
        columns.extend([amount("p50", 8), amount("p99", 8), amount("MOST", 8)]);
    }
    let table = Table::new(columns, width);
    let sort = if active { model.place().sort } else { Sort::default() };
    let mut drawn = drawn;
    table.head(look, pane, sort, drawn.as_mut().map(|drawn| &mut drawn.hits));
    let list = rows::operations(process, sort);
    if list.is_empty() {
        return empty(model, look, pane, "None of its requests were seen: what it does is passed on untouched.");
    }
    let keys: Vec<Key> = list.iter().map(|row| Key::Operation(row.service.clone(), row.operation.clone())).collect();
    let selected = active.then(|| rows::selected(model, &keys));
    pane::rows(pane, &keys, selected, drawn, |at| {
        let row = list[at];
        let counts = &row.counts;
        let throttled = rows::throttled(counts);
        table.row(|head, _| match head {
            "OPERATION" => cell(rows::operation_name(row), look.name()),
            "CALLS" => cell(short(counts.calls), Style::new()),
            "ATTEMPTS" => cell(short(counts.attempts), Style::new()),
            "RETRIES" => cell(short(counts.retries), look.count(counts.retries, look.bold())),
            "THROTTLED" => cell(short(throttled), look.count(throttled, look.warn())),
            "GAVE UP" => cell(short(counts.give_ups), look.count(counts.give_ups, look.bad())),
            "BACKOFF" => cell(time(counts.backoff.total_ms), look.count(counts.backoff.count, look.bold())),
            "p50" => cell(time(counts.backoff.p50_ms), look.count(counts.backoff.count, Style::new())),
            "p99" => cell(time(counts.backoff.p99_ms), look.count(counts.backoff.count, Style::new())),
            _ => cell(time(counts.backoff.max_ms), look.count(counts.backoff.count, Style::new())),
        })
    });
}

/// A lane, painted.
fn painted(model: &Model, look: Look, row: &CallRow<'_>, width: usize) -> Cell {
    let held = row.held.map(|held| (held_status(model, held), held_ms(model, Some(held))));
    let pieces = lane(row, held, width).into_iter();
    Cell::Spans(pieces.map(|(text, ink)| Span::styled(text, look.ink(ink))).collect())
}

fn held_ms(model: &Model, held: Option<&HeldView>) -> f64 {
    held.map_or(0.0, |held| model.since_held(held.waited_ms) as f64)
}

pub(super) fn calls(model: &Model, look: Look, pane: &mut Pane<'_>, scope: &Scope, drawn: &mut Drawn) {
    let width = pane.width();
    let mut columns = vec![word("TIME", 8, Some(0))];
    // Where there is one process, its pid tells nothing.
    let several = model.report.as_ref().is_some_and(|report| report.processes.len() > 1);
    if scope.process.is_none() && several {
        columns.push(amount("PID", 7));
        if width >= 110 {
            columns.push(word("COMMAND", 12, None));
        }
    }
    let operation = if scope.operation.is_some() && width < 110 { 0 } else { width.saturating_sub(62).clamp(16, 44) };
    if operation > 0 {
        columns.push(word("OPERATION", operation, Some(4)));
    }
    columns.extend([
        number("TRIES", 5, 1),
        number("TOOK", 7, 2),
        number("WAITED", 7, 3),
        word("ATTEMPTS AND WAITS", 0, None),
    ]);
    let table = Table::new(columns, width);
    table.head(look, pane, model.place().sort, Some(&mut drawn.hits));
    let list = rows::calls(model, scope);
    if list.is_empty() {
        let asked = model.calls.as_ref().is_some_and(|(of, _)| *of == model.calls_filter(scope));
        let what = match (asked, &model.filter) {
            (false, _) => "Asking for calls ...",
            (true, Some(_)) => "No call that is kept has an attempt that matches the filter.",
            (true, None) => "No call has ended yet.",
        };
        return empty(model, look, pane, what);
    }
    let keys: Vec<Key> = list.iter().map(|row| Key::Call(row.call)).collect();
    let selected = rows::selected(model, &keys);
    pane::rows(pane, &keys, Some(selected), Some(drawn), |at| {
        let row = &list[at];
        let first = row.attempts.first();
        let last = row.attempts.last();
        let held = row.held;
        let begun = first.map_or_else(|| held.map(|held| held.since.as_str()), |first| Some(first.time.as_str()));
        let pid = last.map_or_else(|| held.map_or(0, |held| held.pid), |last| last.pid);
        table.row(|head, width| match head {
            "TIME" => cell(begun.and_then(|time| time.get(11..19)).unwrap_or_default(), look.dim()),
            "PID" => cell(pid.to_string(), look.dim()),
            "COMMAND" => {
                let comm = last.map_or_else(|| held.map(|held| held.comm.clone()), |last| Some(last.comm.clone()));
                cell(comm.unwrap_or_default(), look.dim())
            }
            "OPERATION" => cell(call_name(row), look.name()),
            "TRIES" => {
                let most = last.and_then(|last| last.max).or_else(|| held.and_then(|held| held.attempts_max));
                let tries = row.tries();
                let text = most.map_or_else(|| tries.to_string(), |most| format!("{tries}/{most}"));
                cell(text, if tries > 1 { look.bold() } else { look.dim() })
            }
            "TOOK" => match held {
                Some(held) if first.is_none() => cell(time(model.since_held(held.waited_ms) as f64), look.held()),
                _ => cell(time(row.took_ms), Style::new()),
            },
            "WAITED" => {
                let waited = row.waited();
                cell(if waited > 0.0 { time(waited) } else { String::new() }, look.bold())
            }
            _ => painted(model, look, row, width),
        })
    });
}

fn call_name(row: &CallRow<'_>) -> String {
    match (row.attempts.last(), row.held) {
        (Some(it), _) => asked(it.service.as_deref(), it.operation.as_deref(), &it.method, &it.url),
        (None, Some(it)) => held_name(it),
        (None, None) => String::new(),
    }
}

/// Held attempts come as they are; a URL may be signed.
pub(super) fn held_name(it: &HeldView) -> String {
    asked(it.service.as_deref(), it.operation.as_deref(), &it.method, &redact::url(&it.url))
}

/// One call: its attempts one below the other, on one scale of time.
pub(super) fn call(model: &Model, look: Look, pane: &mut Pane<'_>, id: u64, drawn: Option<&mut Drawn>) {
    let page = model.calls.iter().flat_map(|(_, page)| &page.calls);
    let entry = model.call.iter().chain(page).find(|call| call.call == id);
    let held = held_of(&model.held, id);
    if entry.is_none() && held.is_none() {
        return empty(model, look, pane, "Nothing of this call is kept any more.");
    }
    let none = Vec::new();
    let attempts: &Vec<AttemptEntry> = entry.map_or(&none, |entry| &entry.attempts);
    let row = CallRow {
        call: id,
        attempts,
        earlier: entry.map_or(0, |entry| entry.earlier),
        took_ms: entry.map_or(0.0, |entry| entry.took_ms),
        waited_ms: entry.map_or(0.0, |entry| entry.waited_ms),
        held,
    };
    let (command, pid) = match (attempts.last(), held) {
        (Some(it), _) => (it.command.clone(), it.pid),
        (None, Some(it)) => (it.command.clone(), it.pid),
        (None, None) => (String::new(), 0),
    };
    let (method, url) = match (attempts.last(), held) {
        (Some(it), _) => (it.method.as_str(), it.url.as_str()),
        (None, Some(it)) => (it.method.as_str(), it.url.as_str()),
        (None, None) => ("", ""),
    };
    pane.text(&format!("{}  {method} {}", call_name(&row), redact::url(url)), look.name());
    pane.text(&format!("pid {pid}  {command}"), look.dim());
    let mut sums = format!("{} in all", time(row.took_ms));
    if row.waited() > 0.0 {
        sums.push_str(&format!(", {} of it waited", time(row.waited())));
    }
    if row.earlier > 0 {
        sums.push_str(&format!("; {} earlier attempts are not kept", row.earlier));
    }
    pane.text(&sums, look.dim());
    let width = pane.width();
    let mut columns = vec![amount("TRY", 4), amount("WAITED", 8), amount("TOOK", 8), word("STATUS", 11, None)];
    if width >= 70 {
        columns.push(word("CODE", if width >= 110 { 20 } else { 12 }, None));
    }
    if width >= 110 {
        columns.push(word("RULE", 16, None));
    }
    columns.push(word("TIME", 0, None));
    let table = Table::new(columns, width);
    table.head(look, pane, Sort { column: usize::MAX, reversed: false }, None);
    let keys: Vec<Key> =
        attempts.iter().map(|attempt| Key::Attempt(attempt.id)).chain(held.map(|held| Key::Held(held.id))).collect();
    let selected = drawn.is_some().then(|| rows::selected(model, &keys));
    let start = attempts.first().map_or(0.0, |first| first.at_ms - first.waited_ms.unwrap_or_default());
    let now = attempts.last().map_or(0.0, |last| last.at_ms + last.took_ms - start);
    let held_wait = held.and_then(|held| held.backoff_ms).unwrap_or_default();
    let span = now + if held.is_some() { held_wait + held_ms(model, held) } else { 0.0 };
    pane::rows(pane, &keys, selected, drawn, |at| match (attempts.get(at), held) {
        (Some(attempt), _) => table.row(|head, width| attempt_cell(look, attempt, head, width, (start, span))),
        (None, Some(held)) => table.row(|head, width| match head {
            "TRY" => cell(held.attempt.to_string(), look.held()),
            "WAITED" => cell(held.backoff_ms.map(|wait| format!("+{}", time(wait))).unwrap_or_default(), look.bold()),
            "TOOK" => cell(time(held_ms(model, Some(held))), look.held()),
            "STATUS" => cell(held_status(model, held), look.held()),
            "CODE" => cell("held", look.held()),
            "RULE" => cell(held.rule.clone().unwrap_or_default(), look.dim()),
            _ => bar(look, (now, now + held_wait, span, span), Ink::Held, width),
        }),
        (None, None) => table.row(|_, _| cell("", Style::new())),
    });
}

fn attempt_cell(look: Look, it: &AttemptEntry, head: &str, width: usize, (start, span): (f64, f64)) -> Cell {
    let ink = look.ink(Ink::of(&it.class));
    match head {
        "TRY" => cell(it.attempt.to_string(), Style::new()),
        "WAITED" => cell(it.waited_ms.map(|wait| format!("+{}", time(wait))).unwrap_or_default(), look.bold()),
        "TOOK" => cell(time(it.took_ms), Style::new()),
        "STATUS" => cell(outcome(it), ink),
        "CODE" => cell(it.code.clone().unwrap_or_default(), ink),
        "RULE" => cell(it.rule.clone().unwrap_or_default(), look.dim()),
        _ => {
            let at = it.at_ms - start;
            let wait = it.waited_ms.unwrap_or_default();
            bar(look, (at - wait, at, at + it.took_ms, span), Ink::of(&it.class), width)
        }
    }
}

/// A wait and what followed it, on a scale: from when, until when, and how
/// long all of it is.
fn bar(look: Look, (wait, from, to, span): (f64, f64, f64, f64), ink: Ink, width: usize) -> Cell {
    let place = |ms: f64| {
        let at = if span > 0.0 { ms / span * width as f64 } else { 0.0 };
        (at.clamp(0.0, width as f64).round() as usize).min(width.saturating_sub(1))
    };
    let (wait, from) = (place(wait), place(from));
    // However short, it is seen.
    let to = if to >= span { width } else { place(to) }.max(from + 1).min(width);
    let spans = [
        (" ".repeat(wait), Style::new()),
        ("·".repeat(from.saturating_sub(wait)), look.dim()),
        ("━".repeat(to.saturating_sub(from)), look.ink(ink)),
        (" ".repeat(width.saturating_sub(to)), Style::new()),
    ];
    Cell::Spans(spans.into_iter().map(|(text, style)| Span::styled(text, style)).collect())
}

/// The status that is held, and what it would be now.
pub(super) fn held_status(model: &Model, held: &HeldView) -> String {
    let genuine = held.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
    let typed = model.changes.get(&held.id).and_then(|changes| changes.status);
    let told = typed.or(held.told).map(|told| told.to_string()).or_else(|| held.abort.clone());
    let mark = if model.changes.contains_key(&held.id) { "*" } else { "" };
    match told {
        Some(told) if told != genuine => format!("{genuine}→{told}{mark}"),
        _ => format!("{genuine}{mark}"),
    }
}

pub(super) fn held(model: &Model, look: Look, pane: &mut Pane<'_>, drawn: &mut Drawn) {
    let width = pane.width();
    let mut columns = vec![amount("ID", 5), word("AT", 8, None), word("STATUS", 10, None), word("OPERATION", 0, None)];
    columns.extend([amount("TRY", 4), amount("PID", 7)]);
    if width >= 100 {
        columns.push(word("COMMAND", 12, None));
    }
    columns.extend([amount("HELD", 8), amount("GOES ON IN", 10)]);
    let table = Table::new(columns, width);
    if model.held.is_empty() {
        let what = if model.intercepts.is_empty() {
            "Nothing is held. Press i and type a filter: attempts that match wait for you at their response."
        } else {
            "Nothing is held at the moment."
        };
        empty(model, look, pane, what);
        pane.skip();
    } else {
        table.head(look, pane, Sort { column: usize::MAX, reversed: false }, None);
    }
    let keys = rows::keys(model);
    let selected = rows::selected(model, &keys);
    let count = model.held.len();
    // Held ones first, then a gap with a head, then intercepts.
    let (held_keys, intercept_keys) = keys.split_at(count.min(keys.len()));
    let in_held = (selected < count).then_some(selected);
    let rest = pane.room();
    let most =
        rest.saturating_sub(if intercept_keys.is_empty() { 0 } else { (intercept_keys.len() + 2).min(rest / 2) });
    let mut part = pane.part(most.min(held_keys.len()));
    pane::rows(&mut part, held_keys, in_held, Some(drawn), |at| {
        let held = &model.held[at];
        table.row(|head, _| match head {
            "ID" => cell(format!("#{}", held.id), look.held()),
            "AT" => cell(held.phase.clone(), Style::new()),
            "STATUS" => cell(held_status(model, held), look.held()),
            "OPERATION" => cell(held_name(held), look.name()),
            "TRY" => cell(held.attempt.to_string(), Style::new()),
            "PID" => cell(held.pid.to_string(), look.dim()),
            "COMMAND" => cell(held.comm.clone(), look.dim()),
            "HELD" => cell(time(model.since_held(held.waited_ms) as f64), look.bold()),
            _ => cell(time(model.left_of(held.left_ms) as f64), look.dim()),
        })
    });
    pane.advance(most.min(held_keys.len()));
    if intercept_keys.is_empty() {
        return;
    }
    if count > 0 {
        pane.skip();
    }
    pane.text("INTERCEPTS", look.dim());
    let in_intercepts = selected.checked_sub(count);
    pane::rows(pane, intercept_keys, in_intercepts, Some(drawn), |at| {
        let intercept = &model.intercepts[at];
        let at = match intercept.at {
            HoldAt::Request => "at the request",
            HoldAt::Response => "at the response",
            HoldAt::Both => "at both",
        };
        let text = format!(
            "{:>3}  {}  {at}, {} at most, held {}",
            intercept.id,
            left(&intercept.filter, width.saturating_sub(50).clamp(10, 60)),
            time(intercept.max_wait_ms as f64),
            intercept.held
        );
        ratatui::text::Line::raw(fit(&plain(&text), width))
    });
}

pub(super) fn rules(model: &Model, look: Look, pane: &mut Pane<'_>, drawn: &mut Drawn) {
    let Some(view) = &model.rules else { return empty(model, look, pane, "Asking for rules ...") };
    let mut said = format!("{} injections so far; seed {}", short(view.injections), view.seed);
    if view.dry_run {
        said.push_str("; a dry run: hits are what rules would have done");
    }
    if let Some(why) = &view.stopped {
        said.push_str(&format!("; no rule acts any more: {why}"));
    }
    pane.text(&said, if view.stopped.is_some() { look.bad() } else { look.dim() });
    let width = pane.width();
    let name = (width / 4).clamp(12, 40);
    let columns = vec![
        word("ON", 4, Some(0)),
        number("HITS", 8, 1),
        word("NAME", name, Some(2)),
        word("RULE", 0, None),
        word("FROM", if width >= 110 { 24 } else { 12 }, None),
    ];
    let table = Table::new(columns, width);
    table.head(look, pane, model.place().sort, Some(&mut drawn.hits));
    let list = rows::rules(model);
    if list.is_empty() {
        return empty(model, look, pane, "There are no rules. Press a and type one: ~svc s3 & ~attempt ..2 => 429");
    }
    let keys: Vec<Key> = list.iter().map(|rule| Key::Rule(rule.name.clone())).collect();
    let selected = rows::selected(model, &keys);
    pane::rows(pane, &keys, Some(selected), Some(drawn), |at| {
        let rule = list[at];
        let style = if rule.enabled { Style::new() } else { look.dim() };
        table.row(|head, _| match head {
            "ON" => cell(if rule.enabled { "on" } else { "off" }, if rule.enabled { look.bold() } else { look.bad() }),
            "HITS" => cell(short(rule.hits), look.count(rule.hits, style)),
            "NAME" => cell(rule.name.clone(), if rule.enabled { look.name() } else { look.dim() }),
            "RULE" => cell(rule.rule.clone(), style),
            _ => cell(rule.source.clone(), look.dim()),
        })
    });
}
