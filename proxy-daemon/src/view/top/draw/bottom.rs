//! What stands below every view: what was said, which keys there are, or the
//! line that is typed.
use ratatui::{
    layout::Position,
    style::Modifier,
    text::{Line, Span},
};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Look, pane::Pane};
use crate::{
    report::words::{fit, plain},
    view::{
        top::model::{Key, Link, Model, Prompt, Purpose, View, checked},
        words::left,
    },
};

/// How many offers are seen at once.
const OFFERS: usize = 6;

pub(super) fn height(model: &Model) -> u16 {
    let lines = match &model.prompt {
        Some(prompt) => {
            let offers = prompt.offers.as_ref().map_or(0, |offers| offers.items.len().min(OFFERS));
            offers + 2 + wrong(prompt).map_or(0, |why| why.lines().count().min(4))
        }
        None => 1 + usize::from(model.said.is_some()) + usize::from(matches!(model.link, Link::Lost(..))),
    };
    u16::try_from(lines).unwrap_or(u16::MAX)
}

/// Draws it, and tells where the cursor is to be seen.
pub(super) fn draw(model: &Model, look: Look, pane: &mut Pane<'_>) -> Option<Position> {
    if let Some(prompt) = &model.prompt {
        return self::prompt(look, pane, prompt);
    }
    if let Link::Lost(since, why) = &model.link {
        let mut text = format!("the instance has ended, or cannot be reached since {since} UTC; its last state");
        if pane.width() >= 140 {
            text.push_str(&format!(" ({why})"));
        }
        pane.text(&text, look.bad().add_modifier(Modifier::BOLD));
    }
    if let Some(said) = &model.said {
        let style = if said.is_trouble { look.bad() } else { look.bold() };
        // An excerpt with a caret has its sentence first.
        pane.text(said.text.lines().next().unwrap_or_default(), style);
    }
    hints(model, look, pane);
    None
}

fn hints(model: &Model, look: Look, pane: &mut Pane<'_>) {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    if model.held_here().is_some() {
        keys.extend([
            ("r", "let go"),
            ("t", "first line"),
            ("h", "header"),
            ("b", "body"),
            ("e", "editor"),
            ("x", "break off"),
        ]);
        if model.held_here().is_some_and(|held| held.phase == "request") {
            keys.push(("a", "answer"));
        }
    }
    match model.view() {
        View::Rules => keys.extend([("Space", "on/off"), ("o", "all on/off"), ("a", "add"), ("x", "remove")]),
        View::Attempt(_) => keys.extend([("n", "next"), ("p", "previous")]),
        _ => {}
    }
    if matches!(model.here(), Some(Key::Intercept(_))) {
        keys.push(("x", "end it"));
    }
    if !matches!(model.view(), View::Rules | View::Attempt(_) | View::Hold(_)) {
        keys.push(("Enter", "open"));
    }
    if model.path().len() > 1 {
        keys.push(("Esc", "back"));
    }
    keys.extend([
        ("/", "filter"),
        ("i", "intercept"),
        ("s", "sort"),
        ("f", if model.frozen.is_some() { "go on" } else { "freeze" }),
    ]);
    let last = [("?", "help"), ("q", "quit")];
    let width = |keys: &[(&str, &str)]| keys.iter().map(|(key, what)| key.width() + what.width() + 3).sum::<usize>();
    while !keys.is_empty() && width(&keys) + width(&last) > pane.width() + 2 {
        keys.pop();
    }
    let mut spans = Vec::new();
    for (key, what) in keys.into_iter().chain(last) {
        spans.push(Span::styled(key.to_owned(), look.bold()));
        spans.push(Span::styled(format!(" {what}  "), look.dim()));
    }
    pane.put(&Line::from(spans));
}

/// What the line is for, and what is to be known of it.
fn purpose(prompt: &Prompt) -> (String, &'static str) {
    match &prompt.purpose {
        Purpose::Filter => ("filter: ".into(), "Enter applies it, empty takes it away; Tab completes, Esc leaves"),
        Purpose::Intercept => {
            ("intercept: ".into(), "attempts that match wait for you at their response; Tab completes, Esc leaves")
        }
        Purpose::Rule => ("rule: ".into(), "FILTER => ACTION, such as ~svc s3 & ~attempt ..2 => 429; Esc leaves"),
        Purpose::First(id) => (format!("#{id} first line: "), "type over it; then r lets it go. Esc leaves"),
        Purpose::Header(id) => {
            (format!("#{id} header: "), "Name: value, or -Name to leave one out; then r lets it go. Esc leaves")
        }
        Purpose::Body(id) => {
            (format!("#{id} body: "), "takes the place of the whole body; then r lets it go. Esc leaves")
        }
        Purpose::Answer(id) => {
            (format!("#{id} answer: "), "the client is told this, and the upstream nothing. Esc leaves")
        }
        Purpose::RemoveRule(name) => {
            (format!("remove the rule \"{}\"? ", plain(name)), "y removes it, any other key does not")
        }
        Purpose::Drop(id) => (format!("break off #{id}? "), "y resets the client's connection, any other key does not"),
    }
}

/// What is wrong with the line, with a mark below the place where it is.
fn wrong(prompt: &Prompt) -> Option<String> {
    if let Some(why) = &prompt.wrong {
        return Some(why.clone());
    }
    let text = prompt.typed.text();
    let is_filter = matches!(prompt.purpose, Purpose::Filter | Purpose::Intercept);
    // What is not finished is not called wrong while it has offers.
    if !is_filter || text.trim().is_empty() || prompt.offers.is_some() {
        return None;
    }
    checked(&text).err().map(|(why, _)| why)
}

fn prompt(look: Look, pane: &mut Pane<'_>, prompt: &Prompt) -> Option<Position> {
    let width = pane.width();
    if let Some(offers) = &prompt.offers {
        let shown = offers.items.len().min(OFFERS);
        let first = offers.chosen.map_or(0, |chosen| (chosen + 1).saturating_sub(shown));
        for (at, item) in offers.items.iter().enumerate().skip(first).take(shown) {
            let text = format!("  {}  ", left(&item.text, 24.min(width / 3)));
            let help = fit(&plain(&item.help), width.saturating_sub(text.width()));
            let style =
                if offers.chosen == Some(at) { look.bold().add_modifier(Modifier::REVERSED) } else { look.name() };
            pane.put(&Line::from(vec![Span::styled(text, style), Span::styled(help, look.dim())]));
        }
    }
    let (label, help) = purpose(prompt);
    let label = fit(&label, width / 2);
    let room = width.saturating_sub(label.width() + 1).max(1);
    // As much before the cursor as there is room for.
    let text: Vec<char> = prompt.typed.text().chars().collect();
    let wide = |char: &char| plain(&char.to_string()).width();
    let (mut first, mut used) = (prompt.typed.cursor(), 0);
    while first > 0 && used + wide(&text[first - 1]) <= room.saturating_sub(1) {
        first -= 1;
        used += wide(&text[first]);
    }
    let shown: String = text[first..].iter().collect();
    let mut style = look.bold();
    if prompt.typed.is_fresh() {
        style = style.add_modifier(Modifier::REVERSED);
    }
    let place = pane.put(&Line::from(vec![
        Span::styled(label.clone(), look.name()),
        Span::styled(take(&plain(&shown), room), style),
    ]));
    if let Some(why) = wrong(prompt) {
        let text = prompt.typed.text();
        if let Err((_, span)) = checked(&text).as_ref().map(|_| ()).map_err(Clone::clone)
            && matches!(prompt.purpose, Purpose::Filter | Purpose::Intercept)
        {
            let before: usize =
                prompt.typed.text().chars().skip(first).take(span.start.saturating_sub(first)).map(|c| wide(&c)).sum();
            let marks =
                format!("{}{} {}", " ".repeat(label.width() + before), "^".repeat(span.len().min(room)), plain(&why));
            if marks.width() <= width {
                pane.put(&Line::styled(marks, look.bad()));
            } else {
                pane.put(&Line::styled(
                    take(&format!("{}{}", " ".repeat(label.width() + before), "^".repeat(span.len().min(room))), width),
                    look.bad(),
                ));
                pane.put(&Line::styled(fit(&plain(&why), width), look.bad()));
            }
        } else {
            for line in why.lines().take(4) {
                pane.put(&Line::styled(fit(&plain(line), width), look.bad()));
            }
        }
    }
    pane.put(&Line::styled(fit(help, width), look.dim()));
    place.map(|place| Position { x: place.x + u16::try_from(label.width() + used).unwrap_or(u16::MAX), y: place.y })
}

fn take(text: &str, columns: usize) -> String {
    let mut left = columns;
    text.chars()
        .take_while(|char| {
            let wide = char.width().unwrap_or(0);
            let fits = wide <= left;
            left = left.saturating_sub(wide);
            fits
        })
        .collect()
}

const HELP: &[(&str, &str)] = &[
    ("1 2 3 4, Tab", "processes, calls, held attempts, rules"),
    ("↑ ↓ PgUp PgDn Home End", "move; at the top, whatever is newest stays selected"),
    ("Enter, click", "open: operations, their calls, attempts, one attempt in full"),
    ("Esc", "back; at the top, take the filter away"),
    ("/", "show only what matches: ~svc s3 & ~retry; docs/rules.md has the language"),
    ("s, S, click on a head", "sort by the next column, the other way round, by that one"),
    ("f", "freeze what is shown, and go on"),
    ("i", "intercept: hold attempts at their response"),
    ("Of a held attempt", ""),
    ("t", "type its first line: 429 over 200 OK"),
    ("h, b", "type a header, the body"),
    ("r", "let it go, with what was typed"),
    ("e", "change all of it in $EDITOR, and let it go"),
    ("x", "break it off"),
    ("a", "answer a request in the upstream's place"),
    ("Of rules", ""),
    ("Space, o", "switch the selected one, or all, off and on"),
    ("a, x", "add one, remove one"),
    ("q, Ctrl-C", "quit; Ctrl-Z suspends, Ctrl-L draws anew"),
];

pub(super) fn help(_model: &Model, look: Look, pane: &mut Pane<'_>) {
    for (keys, what) in HELP {
        if what.is_empty() {
            pane.text(keys, look.bold());
            continue;
        }
        let text = format!("  {}  ", left(keys, 24));
        let what = fit(what, pane.width().saturating_sub(text.width()));
        pane.put(&Line::from(vec![Span::styled(text, look.name()), Span::raw(what)]));
    }
}
