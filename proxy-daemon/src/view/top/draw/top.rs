//! What stands above every view: which instance, its totals, the tabs.
use ratatui::{
    layout::Rect,
    style::Modifier,
    text::{Line, Span},
};
use unicode_width::UnicodeWidthStr;

use super::{Drawn, Hit, Look, pane::Pane};
use crate::{
    report::words::{fit, plain},
    view::{
        top::{
            model::{Link, Model, Scope, Tab, View},
            rates::{SECONDS, Slot},
            rows,
        },
        words::{share, short, time},
    },
};

/// How many lines it takes.
pub(super) fn height(model: &Model) -> u16 {
    3 + u16::from(path(model).is_some())
}

pub(super) fn draw(model: &Model, look: Look, pane: &mut Pane<'_>, drawn: &mut Drawn) {
    title(model, look, pane);
    totals(model, look, pane);
    tabs(model, look, pane, drawn);
    if let Some(path) = path(model) {
        pane.text(&path, look.bold());
    }
}

/// Left and right on one line; the left gives way.
fn both(pane: &mut Pane<'_>, left: Vec<Span<'static>>, right: Vec<Span<'static>>) {
    let width = pane.width();
    let of = |spans: &[Span<'_>]| spans.iter().map(|span| span.content.width()).sum::<usize>();
    let room = width.saturating_sub(of(&right) + 1);
    let (mut spans, mut used) = (Vec::new(), 0);
    for span in left {
        let text = fit(&span.content, room.saturating_sub(used));
        used += text.width();
        if !text.is_empty() {
            spans.push(Span::styled(text, span.style));
        }
    }
    spans.push(Span::raw(" ".repeat((room + 1).saturating_sub(used))));
    spans.extend(right);
    pane.put(&Line::from(spans));
}

fn title(model: &Model, look: Look, pane: &mut Pane<'_>) {
    let mut left = vec![Span::styled("retryscope top ", look.bold())];
    if let Some(about) = &model.about {
        let command = about.command.as_deref().map(rows::without_folders);
        let what = command
            .unwrap_or_else(|| if about.targets.is_empty() { about.target.clone() } else { about.targets.join(", ") });
        left.push(Span::styled(plain(&what), look.name()));
        left.push(Span::styled(format!(" (instance {})", about.pid), look.dim()));
    }
    let state = match (&model.link, &model.frozen) {
        (Link::Lost(..), _) => Span::styled(" ENDED ", look.bad().add_modifier(Modifier::BOLD | Modifier::REVERSED)),
        (_, Some(since)) => {
            Span::styled(format!(" FROZEN at {since} "), look.warn().add_modifier(Modifier::BOLD | Modifier::REVERSED))
        }
        (Link::Starting, None) => Span::styled("connecting", look.dim()),
        (Link::Up, None) => Span::raw(""),
    };
    both(pane, left, vec![state, Span::raw(" "), Span::styled(format!("{} UTC", model.clock), look.dim())]);
}

fn totals(model: &Model, look: Look, pane: &mut Pane<'_>) {
    let Some(report) = &model.report else {
        pane.text("", look.dim());
        return;
    };
    let totals = &report.totals;
    let counts = &totals.counts;
    let rate = model.rates.per_second(None, model.now);
    let mut spans = Vec::new();
    let mut put = |number: String, what: &str, style| {
        spans.push(Span::styled(number, style));
        spans.push(Span::styled(format!(" {what}  "), look.dim()));
    };
    put(short(counts.calls), if counts.calls == 1 { "call" } else { "calls" }, look.bold());
    put(short(counts.attempts), if counts.attempts == 1 { "attempt" } else { "attempts" }, look.bold());
    put(
        short(counts.retries),
        if counts.retries == 1 { "retry" } else { "retries" },
        look.count(counts.retries, look.bold()),
    );
    let throttled = rows::throttled(counts);
    put(short(throttled), "throttled", look.count(throttled, look.warn()));
    put(
        share(if totals.observed_ms > 0.0 { totals.stalled_ms / totals.observed_ms } else { 0.0 }),
        "stalled",
        look.bold(),
    );
    put(if rate < 9.95 { format!("{rate:.1}/s") } else { format!("{}/s", short(rate as u64)) }, "", look.bold());
    if pane.width() >= 110 {
        put(short(counts.give_ups), "gave up", look.count(counts.give_ups, look.bad()));
        put(time(counts.backoff.total_ms), "backoff", look.bold());
    }
    both(pane, spans, Vec::new());
}

fn tabs(model: &Model, look: Look, pane: &mut Pane<'_>, drawn: &mut Drawn) {
    let (mut spans, mut at) = (Vec::new(), 0);
    let mut places = Vec::new();
    for (number, tab) in Tab::ALL.into_iter().enumerate() {
        let name = match tab {
            Tab::Processes => "Processes".to_owned(),
            Tab::Calls => "Calls".to_owned(),
            Tab::Held if model.held.is_empty() => "Held".to_owned(),
            Tab::Held => format!("Held {}", model.held.len()),
            Tab::Rules => "Rules".to_owned(),
        };
        let text = format!(" {} {name} ", number + 1);
        let style = match (tab == model.tab, tab) {
            (true, _) => look.bold().add_modifier(Modifier::REVERSED),
            (false, Tab::Held) if !model.held.is_empty() => look.held(),
            _ => look.dim(),
        };
        places.push((at, text.width(), tab));
        at += text.width() + 1;
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    let filter = match &model.filter {
        Some(filter) => {
            let room = pane.width().saturating_sub(at + 10);
            vec![Span::styled("filter: ", look.dim()), Span::styled(fit(&plain(filter), room), look.warn())]
        }
        None => Vec::new(),
    };
    let width: usize = filter.iter().map(|span| span.content.width()).sum();
    spans.push(Span::raw(" ".repeat(pane.width().saturating_sub(at + width))));
    spans.extend(filter);
    let Some(place) = pane.put(&Line::from(spans)) else { return };
    for (at, width, tab) in places {
        let (x, width) = (place.x + u16::try_from(at).unwrap_or(u16::MAX), u16::try_from(width).unwrap_or(u16::MAX));
        drawn.hits.push((Rect { x, width, ..place }.intersection(place), Hit::Tab(tab)));
    }
}

/// Where one is, below a tab's own view.
fn path(model: &Model) -> Option<String> {
    let names: Vec<String> = model.path().iter().skip(1).map(|place| name(model, &place.view)).collect();
    (!names.is_empty()).then(|| names.join(" › "))
}

fn name(model: &Model, view: &View) -> String {
    match view {
        View::Operations(key) => match model.process(key) {
            Some(process) => format!("{} (pid {})", fit(&rows::name_of(process), 40), key.pid),
            None => format!("pid {}", key.pid),
        },
        View::Calls(Scope { operation: Some((service, operation)), .. }) => match service {
            Some(service) => format!("{service}.{operation}"),
            None => operation.clone(),
        },
        View::Calls(Scope { process: Some(process), .. }) => format!("calls of pid {}", process.pid),
        View::Call(call) => format!("call {call}"),
        View::Attempt(id) => match model.attempt.as_ref().filter(|attempt| attempt.attempt.id == *id) {
            Some(attempt) => format!("attempt {}", attempt.attempt.attempt),
            None => "attempt".to_owned(),
        },
        View::Hold(id) => format!("held #{id}"),
        View::Processes | View::Calls(_) | View::Held | View::Rules => String::new(),
    }
}

const EIGHTHS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// A column's style by what came in it.
fn style(look: Look, slot: &Slot) -> ratatui::style::Style {
    if slot.throttled > 0.0 {
        look.warn()
    } else if slot.retries > 0.0 {
        look.name()
    } else {
        look.with(ratatui::style::Color::Green)
    }
}

/// How full a slot is, in eighths of a line, of so many lines.
fn height_of(slot: &Slot, most: f32, lines: usize) -> usize {
    if slot.attempts <= 0.0 || most <= 0.0 {
        return 0;
    }
    ((slot.attempts / most * (lines * 8) as f32).round() as usize).clamp(1, lines * 8)
}

/// One line of bars.
pub(super) fn spark(look: Look, slots: &[Slot], width: usize) -> Vec<Span<'static>> {
    let most = slots.iter().map(|slot| slot.attempts).fold(0.0, f32::max);
    let missing = width.saturating_sub(slots.len());
    let mut spans = vec![Span::raw(" ".repeat(missing))];
    for slot in slots.iter().skip(slots.len().saturating_sub(width)) {
        spans.push(Span::styled(EIGHTHS[height_of(slot, most, 1)], style(look, slot)));
    }
    spans
}

/// Attempts of the latest seconds, over the whole width.
pub(super) fn chart(model: &Model, look: Look, pane: &mut Pane<'_>) {
    let lines = pane.room().saturating_sub(2);
    if lines == 0 {
        return;
    }
    let width = pane.width().min(SECONDS);
    let slots = model.rates.all(width, model.now);
    let most = slots.iter().map(|slot| slot.attempts).fold(0.0, f32::max);
    let text = format!("attempts a second, of the latest {width} seconds; at most {}", short(most.round() as u64));
    pane.text(&text, look.dim());
    for line in (0..lines).rev() {
        let mut spans = Vec::new();
        for slot in &slots {
            let full = height_of(slot, most, lines).saturating_sub(line * 8).min(8);
            spans.push(Span::styled(EIGHTHS[full], style(look, slot)));
        }
        pane.put(&Line::from(spans));
    }
    pane.skip();
}
