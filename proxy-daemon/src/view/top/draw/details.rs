//! Texts that are scrolled: one attempt in full, what is held in full.
use ratatui::{
    style::Style,
    text::{Line, Span},
};

use super::{
    Drawn, Look,
    lists::{held_name, held_status},
    pane::{Pane, scrolled, wrapped},
};
use crate::{
    control::{Message, Verdict},
    flow::redact,
    view::{
        top::{
            lane::Ink,
            model::{Link, Model},
        },
        words::{asked, left, outcome, time},
    },
};

/// The longest value that is shown, in bytes, and the most lines of a body.
const LONGEST: usize = 8 * 1024;
const BODY_LINES: usize = 500;
/// Columns of what facts are called.
const NAMES: usize = 12;

/// Lines of a text.
struct Page {
    lines: Vec<Line<'static>>,
    width: usize,
    look: Look,
}

impl Page {
    fn head(&mut self, text: &str) {
        if !self.lines.is_empty() {
            self.lines.push(Line::raw(""));
        }
        self.lines.push(Line::styled(left(text, self.width), self.look.bold()));
    }

    /// A name and what there is to say, below one another where it is long.
    fn fact(&mut self, name: &str, value: &str, style: Style) {
        let room = self.width.saturating_sub(NAMES + 1).max(8);
        let mut name = Span::styled(format!("{} ", left(name, NAMES)), self.look.dim());
        for line in wrapped(cut(value), room) {
            self.lines.push(Line::from(vec![name, Span::styled(line, style)]));
            name = Span::raw(" ".repeat(NAMES + 1));
        }
    }

    fn text(&mut self, text: &str, style: Style) {
        let lines = wrapped(cut(text), self.width).into_iter().map(|line| Line::styled(line, style));
        self.lines.extend(lines);
    }

    fn field(&mut self, name: &str, value: &str) {
        let text = format!("{}: {}", crate::report::words::plain(cut(name)), crate::report::words::plain(cut(value)));
        let name = crate::report::words::plain(cut(name)).chars().count() + 1;
        let mut first = true;
        for line in wrapped(&text, self.width) {
            let split = if first { line.char_indices().nth(name).map_or(line.len(), |(at, _)| at) } else { 0 };
            let (name, value) = line.split_at(split);
            self.lines
                .push(Line::from(vec![Span::styled(name.to_owned(), self.look.name()), Span::raw(value.to_owned())]));
            first = false;
        }
    }
}

/// As much as is shown of a value.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn attempt(model: &Model, look: Look, pane: &mut Pane<'_>, id: u64, drawn: &mut Drawn) {
    let mut page = Page { lines: Vec::new(), width: pane.width(), look };
    let Some(detail) = model.attempt.as_ref().filter(|detail| detail.attempt.id == id) else {
        let text = match model.link {
            Link::Lost(..) => "This attempt was not asked for in time.",
            _ => "Asking for the attempt; it may not be kept any more.",
        };
        pane.text(text, look.dim());
        return;
    };
    let it = &detail.attempt;
    let ink = look.ink(Ink::of(&it.class));
    page.fact("what", &asked(it.service.as_deref(), it.operation.as_deref(), &it.method, &it.url), look.name());
    page.fact("url", &format!("{} {}", it.method, it.url), Style::new());
    let mut status = format!("{} ({})", outcome(it), it.class);
    if let Some(reason) = &it.reason {
        status.push_str(&format!(", reason {reason}"));
    }
    page.fact("outcome", &status, ink);
    if let Some(code) = &it.code {
        page.fact("code", code, ink);
    }
    if let Some(rule) = &it.rule {
        page.fact("rule", rule, look.warn());
    }
    let most = it.max.map(|most| format!(" of {most}")).unwrap_or_default();
    page.fact("attempt", &format!("{}{most} of call {} ({})", it.attempt, it.call, it.evidence), Style::new());
    let mut timing = format!("began {}, took {}", it.time, time(it.took_ms));
    if let Some(waited) = it.waited_ms {
        timing.push_str(&format!("; waited {} before", time(waited)));
        timing.push_str(if it.waited_for_rule { ", because of a rule" } else { "" });
    }
    if let Some(asked) = it.retry_after_ms {
        timing.push_str(&format!("; the client was asked to wait {}", time(asked)));
    }
    if it.held_ms > 0.0 {
        timing.push_str(&format!("; held up for {}", time(it.held_ms)));
    }
    page.fact("time", &timing, Style::new());
    page.fact("process", &format!("pid {}: {}", it.pid, it.command), Style::new());
    let place = it.container_name.as_ref().or(it.container.as_ref()).or(it.unit.as_ref()).or(it.cgroup.as_ref());
    if let Some(place) = place {
        page.fact("in", place, look.dim());
    }
    let connection = format!("{}, {} to {}, {}", it.connection, detail.client, detail.origin, it.protocol);
    page.fact("connection", &connection, look.dim());
    page.fact("bodies", &format!("{} bytes sent, {} received", it.sent, it.received), look.dim());
    for (name, fields) in
        [("Request", &detail.request_headers), ("Response, as the upstream sent it", &detail.response_headers)]
    {
        page.head(name);
        match fields {
            Some(fields) => fields.iter().for_each(|field| page.field(&field.name, &field.value)),
            None => page.text("Not there, or not kept any more.", look.dim()),
        }
    }
    for (name, fields) in
        [("Request, after its body", &detail.request_trailers), ("Response, after its body", &detail.response_trailers)]
    {
        if let Some(fields) = fields {
            page.head(name);
            fields.iter().for_each(|field| page.field(&field.name, &field.value));
        }
    }
    scrolled(pane, &page.lines, Some(drawn));
}

pub(super) fn hold(model: &Model, look: Look, pane: &mut Pane<'_>, id: u64, drawn: Option<&mut Drawn>) {
    let mut page = Page { lines: Vec::new(), width: pane.width(), look };
    let Some(held) = model.held.iter().find(|held| held.id == id) else {
        pane.text("It is not held any more.", look.dim());
        return;
    };
    let mut what = format!("#{id} waits at its {} for {}", held.phase, time(model.since_held(held.waited_ms) as f64));
    what.push_str(&format!("; goes on by itself in {}", time(model.left_of(held.left_ms) as f64)));
    page.text(&what, look.held());
    page.fact("what", &held_name(held), look.name());
    page.fact("url", &format!("{} {}", held.method, redact::url(&held.url)), Style::new());
    if held.phase != "request" {
        page.fact("status", &held_status(model, held), look.held());
    }
    if let Some(rule) = &held.rule {
        page.fact("rule", rule, look.warn());
    }
    let mut attempt = held.attempt.to_string();
    attempt.extend(held.attempts_max.map(|most| format!(" of {most}")));
    attempt.extend(held.backoff_ms.map(|waited| format!(", after a wait of {}", time(waited))));
    page.fact("attempt", &attempt, Style::new());
    page.fact("process", &format!("pid {}: {}", held.pid, held.command), Style::new());
    if let Some(changes) = model.changes.get(&id) {
        changed(&mut page, changes);
    }
    match model.hold.as_ref().filter(|hold| hold.held.id == id) {
        None => page.text("Asking for its head and body ...", look.dim()),
        Some(full) => {
            let parts = [
                ("What the client is told, unless you change it", full.told.as_ref()),
                ("Response", full.response.as_ref()),
                ("Request", Some(&full.request)),
            ];
            for (name, part) in parts {
                if let Some(part) = part {
                    page.head(name);
                    message(&mut page, part);
                }
            }
        }
    }
    scrolled(pane, &page.lines, drawn);
}

/// What was typed and is not sent yet.
fn changed(page: &mut Page, changes: &Verdict) {
    page.head("Typed by you; r lets it go with this");
    let style = page.look.held();
    if let Some(status) = changes.status {
        page.fact("status", &format!("{status} {}", changes.reason.as_deref().unwrap_or_default()), style);
    }
    if let (Some(method), Some(target)) = (&changes.method, &changes.target) {
        page.fact("request", &format!("{method} {target}"), style);
    }
    for name in &changes.remove {
        page.fact("without", name, style);
    }
    for (name, value) in &changes.headers {
        page.fact("header", &format!("{name}: {value}"), style);
    }
    if let Some(body) = &changes.body {
        page.fact("body", body, style);
    }
}

fn message(page: &mut Page, message: &Message) {
    let first = match (&message.method, message.status) {
        (Some(method), _) => format!("{method} {}", redact::url(message.target.as_deref().unwrap_or_default())),
        (None, Some(status)) => format!("{status} {}", message.reason.as_deref().unwrap_or_default()),
        (None, None) => String::new(),
    };
    page.text(&first, page.look.bold());
    for (name, value) in &message.headers {
        // An editor has them as they are; who looks over a shoulder has not.
        let value = redact::header(name.as_bytes(), value.as_bytes());
        page.field(name, &String::from_utf8_lossy(&value));
    }
    let dim = page.look.dim();
    match (&message.body.text, &message.body.absent) {
        (Some(text), _) if text.is_empty() => {}
        (Some(text), _) => {
            page.lines.push(Line::raw(""));
            for line in cut(text).lines().take(BODY_LINES) {
                page.text(line, Style::new());
            }
            if text.len() > LONGEST {
                page.text(&format!("(cut; it has {} bytes, and e shows all of them)", text.len()), dim);
            }
        }
        (None, Some(why)) => page.text(&format!("(no body here: {why})"), dim),
        (None, None) => page.text("(the body is no text)", dim),
    }
}
