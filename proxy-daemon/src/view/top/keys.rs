//! What keys and the mouse mean.
//!
//! In: the model and a key. Out: the model, changed, and what is to be done.
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};

use super::{
    draw::Hit,
    line::Typed,
    model::{Effect, Key, Model, Place, Prompt, Purpose, Scope, Sort, Tab, View, checked, held_of},
    rows,
};
use crate::control::{Act, HeldView, Verdict};

/// How many rows a turn of the wheel goes.
const WHEEL: usize = 3;

impl Model {
    pub(super) fn key(&mut self, key: KeyEvent) -> Vec<Effect> {
        if key.kind == KeyEventKind::Release {
            return Vec::new();
        }
        self.dirty = true;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return vec![Effect::Quit],
            KeyCode::Char('z') if control => return vec![Effect::Suspend],
            KeyCode::Char('l') if control => return vec![Effect::Redraw],
            _ => {}
        }
        if self.prompt.is_some() {
            return self.prompt_key(key);
        }
        if self.help {
            self.help = false;
            return Vec::new();
        }
        if control {
            return Vec::new();
        }
        if let Some(effects) = self.view_key(key.code) {
            return effects;
        }
        match key.code {
            KeyCode::Char('q') => return vec![Effect::Quit],
            KeyCode::Char('?') | KeyCode::F(1) => self.help = true,
            KeyCode::Char(digit @ '1'..='4') => self.go(Tab::ALL[digit as usize - '1' as usize]),
            KeyCode::Tab => self.go(Tab::ALL[(self.tab as usize + 1) % 4]),
            KeyCode::BackTab => self.go(Tab::ALL[(self.tab as usize + 3) % 4]),
            KeyCode::Char('/') => self.ask(Purpose::Filter, Typed::with(self.filter.as_deref().unwrap_or_default())),
            KeyCode::Char('i') => {
                let typed = Typed::over(self.filter.as_deref().unwrap_or_default());
                self.ask(Purpose::Intercept, typed);
            }
            KeyCode::Char('f') => {
                self.frozen = if self.frozen.is_some() { None } else { Some(self.clock.clone()) };
            }
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('S') => {
                let sort = &mut self.place_mut().sort;
                sort.reversed = !sort.reversed;
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(self.leap()),
            KeyCode::PageUp => self.step(-self.leap()),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Enter | KeyCode::Right => self.enter(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => {
                let is_back = self.back();
                self.filter.take_if(|_| !is_back && key.code == KeyCode::Esc);
            }
            _ => {}
        }
        Vec::new()
    }

    pub(super) fn mouse(&mut self, event: MouseEvent, hits: &[(ratatui::layout::Rect, Hit)]) -> Vec<Effect> {
        if self.prompt.is_some() {
            return Vec::new();
        }
        match event.kind {
            MouseEventKind::ScrollDown => self.step(WHEEL.cast_signed()),
            MouseEventKind::ScrollUp => self.step(-WHEEL.cast_signed()),
            MouseEventKind::Down(MouseButton::Left) => {
                if std::mem::take(&mut self.help) {
                    self.dirty = true;
                    return Vec::new();
                }
                let place = ratatui::layout::Position { x: event.column, y: event.row };
                let Some((_, hit)) = hits.iter().find(|(area, _)| area.contains(place)) else { return Vec::new() };
                match hit {
                    Hit::Tab(tab) => self.go(*tab),
                    Hit::Column(column) => {
                        let sort = &mut self.place_mut().sort;
                        *sort = Sort { column: *column, reversed: sort.column == *column && !sort.reversed };
                    }
                    Hit::Row(key) => {
                        let keys = rows::keys(self);
                        let at = rows::selected(self, &keys);
                        if keys.get(at) == Some(key) {
                            self.enter();
                        } else {
                            self.place_mut().selected = Some(key.clone());
                        }
                    }
                }
            }
            // Where it only moves, nothing changes.
            _ => return Vec::new(),
        }
        self.dirty = true;
        Vec::new()
    }

    /// What was pasted goes into the line that is typed.
    pub(super) fn paste(&mut self, text: &str) -> Vec<Effect> {
        let Some(prompt) = &mut self.prompt else { return Vec::new() };
        prompt.typed.insert(text);
        self.dirty = true;
        self.complete()
    }

    fn go(&mut self, tab: Tab) {
        if self.tab == tab {
            // Once more: the tab's own view.
            while self.back() {}
        }
        self.tab = tab;
    }

    fn leap(&self) -> isize {
        self.page.saturating_sub(1).max(1).cast_signed()
    }

    fn step(&mut self, by: isize) {
        let (page, lines) = (self.page, self.lines);
        if self.view().is_text() {
            let place = self.place_mut();
            place.offset = place.offset.saturating_add_signed(by).min(lines.saturating_sub(page));
            return;
        }
        let keys = rows::keys(self);
        let at = rows::selected(self, &keys).saturating_add_signed(by).min(keys.len().saturating_sub(1));
        // The top is whatever comes to be there.
        self.place_mut().selected = keys.get(at).filter(|_| at > 0).cloned();
    }

    fn sort_by_next(&mut self) {
        let columns = rows::sorts(self.view()).len();
        if columns > 0 {
            let sort = &mut self.place_mut().sort;
            *sort = Sort { column: (sort.column + 1) % columns, reversed: false };
        }
    }

    /// The row that is selected.
    pub(super) fn here(&self) -> Option<Key> {
        let keys = rows::keys(self);
        let at = rows::selected(self, &keys);
        keys.into_iter().nth(at)
    }

    fn enter(&mut self) {
        let Some(key) = self.here() else { return };
        let view = match (self.view().clone(), key) {
            (_, Key::Process(process)) if self.filter.is_some() => {
                View::Calls(Scope { process: Some(process), operation: None })
            }
            (_, Key::Process(process)) => View::Operations(process),
            (View::Operations(process), Key::Operation(service, operation)) => {
                View::Calls(Scope { process: Some(process), operation: Some((service, operation)) })
            }
            (_, Key::Call(call)) => View::Call(call),
            (_, Key::Attempt(id)) => View::Attempt(id),
            (_, Key::Held(id)) => View::Hold(id),
            _ => return,
        };
        self.open(view);
    }

    /// What is held at the selected row, or shown.
    pub(super) fn held_here(&self) -> Option<&HeldView> {
        let by_id = |id: u64| self.held.iter().find(|held| held.id == id);
        if let View::Hold(id) = self.view() {
            return by_id(*id);
        }
        match self.here()? {
            Key::Held(id) => by_id(id),
            Key::Call(call) => held_of(&self.held, call),
            _ => None,
        }
    }

    /// Keys that mean something to what is shown alone.
    fn view_key(&mut self, code: KeyCode) -> Option<Vec<Effect>> {
        if let View::Attempt(_) = self.view()
            && let KeyCode::Char(way @ ('n' | 'p')) = code
        {
            let shown = self.attempt.as_ref();
            let other = shown.and_then(|shown| if way == 'n' { shown.next } else { shown.previous });
            match other {
                Some(other) => *self.place_mut() = Place::new(View::Attempt(other)),
                None if way == 'n' => self.say("this is the call's last attempt so far", false),
                None => self.say("this is the call's first attempt that is kept", false),
            }
            return Some(Vec::new());
        }
        if *self.view() == View::Rules {
            return self.rules_key(code);
        }
        if let (KeyCode::Char('x') | KeyCode::Delete, Some(Key::Intercept(id))) = (code, self.here()) {
            return Some(vec![Effect::Withdraw(id)]);
        }
        let held = self.held_here()?.clone();
        self.held_key(code, &held)
    }

    fn rules_key(&mut self, code: KeyCode) -> Option<Vec<Effect>> {
        match code {
            KeyCode::Char('a') => {
                self.ask(Purpose::Rule, Typed::default());
                return Some(Vec::new());
            }
            KeyCode::Char('o') => {
                let rules = &self.rules.as_ref()?.rules;
                let any = rules.iter().any(|rule| rule.enabled);
                return Some(vec![Effect::SwitchAll(!any)]);
            }
            _ => {}
        }
        let Some(Key::Rule(name)) = self.here() else { return None };
        match code {
            KeyCode::Char(' ') | KeyCode::Enter => {
                let enabled = self.rule(&name)?.enabled;
                Some(vec![Effect::Switch(name, !enabled)])
            }
            KeyCode::Char('x') | KeyCode::Delete => {
                self.ask(Purpose::RemoveRule(name), Typed::default());
                Some(Vec::new())
            }
            _ => None,
        }
    }

    fn held_key(&mut self, code: KeyCode, held: &HeldView) -> Option<Vec<Effect>> {
        let id = held.id;
        let KeyCode::Char(letter) = code else { return None };
        let is_request = held.phase == "request";
        match letter {
            'r' => {
                let verdict = self.changes.get(&id).cloned().unwrap_or_default();
                // What is not held any more has nothing to show.
                if matches!(self.view(), View::Hold(_)) {
                    self.back();
                }
                return Some(vec![Effect::Decide(id, verdict)]);
            }
            'e' => return Some(vec![Effect::Edit(id)]),
            't' => self.ask(Purpose::First(id), Typed::over(&self.first_line(held))),
            'h' => self.ask(Purpose::Header(id), Typed::default()),
            'b' => {
                let typed = self.changes.get(&id).and_then(|changes| changes.body.clone());
                self.ask(Purpose::Body(id), Typed::with(&typed.unwrap_or_default()));
            }
            'x' => self.ask(Purpose::Drop(id), Typed::default()),
            'a' if is_request => self.ask(Purpose::Answer(id), Typed::over("503 Service Unavailable")),
            'a' => self.say("only what is held at its request can be answered in the upstream's place", true),
            _ => return None,
        }
        Some(Vec::new())
    }

    /// The first line of what is held, as it would go on.
    fn first_line(&self, held: &HeldView) -> String {
        let changes = self.changes.get(&held.id);
        if held.phase == "request" {
            let method = changes.and_then(|changes| changes.method.clone());
            let target = changes.and_then(|changes| changes.target.clone());
            let url = held.url.split_once("://").map_or(held.url.as_str(), |(_, rest)| rest);
            let path = url.find('/').map_or("/", |at| &url[at..]);
            return format!(
                "{} {}",
                method.unwrap_or_else(|| held.method.clone()),
                target.unwrap_or_else(|| path.to_owned())
            );
        }
        let status = changes.and_then(|changes| changes.status).or(held.told).or(held.status).unwrap_or(200);
        match changes.and_then(|changes| changes.reason.clone()) {
            Some(reason) => format!("{status} {reason}"),
            None => match http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()) {
                Some(reason) => format!("{status} {reason}"),
                None => status.to_string(),
            },
        }
    }

    fn ask(&mut self, purpose: Purpose, typed: Typed) {
        self.prompt = Some(Prompt { purpose, typed, offers: None, wrong: None });
    }

    /// Asks for what may come next, where the line is a filter.
    fn complete(&mut self) -> Vec<Effect> {
        let Some(prompt) = &mut self.prompt else { return Vec::new() };
        prompt.offers = None;
        prompt.wrong = None;
        match prompt.purpose {
            Purpose::Filter | Purpose::Intercept => vec![Effect::Complete(prompt.typed.before())],
            // A rule begins with a filter.
            Purpose::Rule if !prompt.typed.text().contains("=>") => vec![Effect::Complete(prompt.typed.before())],
            _ => Vec::new(),
        }
    }

    fn prompt_key(&mut self, key: KeyEvent) -> Vec<Effect> {
        let Some(prompt) = &mut self.prompt else { return Vec::new() };
        if let Purpose::RemoveRule(_) | Purpose::Drop(_) = prompt.purpose {
            let purpose = prompt.purpose.clone();
            self.prompt = None;
            return match (key.code, purpose) {
                (KeyCode::Char('y'), Purpose::RemoveRule(name)) => vec![Effect::RemoveRule(name)],
                (KeyCode::Char('y'), Purpose::Drop(id)) => {
                    vec![Effect::Decide(id, Verdict { action: Act::Drop, ..Verdict::default() })]
                }
                _ => Vec::new(),
            };
        }
        match key.code {
            KeyCode::Esc => {
                self.prompt = None;
                Vec::new()
            }
            KeyCode::Enter => self.entered(),
            KeyCode::Tab | KeyCode::BackTab if prompt.offers.is_some() => {
                let Some(offers) = prompt.offers.take() else { return Vec::new() };
                if let Some(item) = offers.items.get(offers.chosen.unwrap_or(0)) {
                    prompt.typed.back(offers.replace);
                    prompt.typed.insert(&item.text);
                }
                self.complete()
            }
            KeyCode::Tab => self.complete(),
            KeyCode::Down | KeyCode::Up => {
                if let Some(offers) = &mut prompt.offers {
                    let last = offers.items.len().saturating_sub(1);
                    offers.chosen = match (offers.chosen, key.code) {
                        (None, KeyCode::Down) => Some(0),
                        (None, _) => Some(last),
                        (Some(at), KeyCode::Down) => Some((at + 1).min(last)),
                        (Some(at), _) => at.checked_sub(1),
                    };
                }
                Vec::new()
            }
            _ => {
                if prompt.typed.key(key) {
                    return self.complete();
                }
                Vec::new()
            }
        }
    }

    fn wrong(&mut self, why: impl Into<String>) -> Vec<Effect> {
        if let Some(prompt) = &mut self.prompt {
            prompt.wrong = Some(why.into());
        }
        Vec::new()
    }

    fn entered(&mut self) -> Vec<Effect> {
        let Some(prompt) = &self.prompt else { return Vec::new() };
        let text = prompt.typed.text();
        let line = text.trim();
        let effects = match prompt.purpose.clone() {
            Purpose::Filter | Purpose::Intercept if !line.is_empty() && checked(line).is_err() => {
                let why = checked(line).err().map(|(why, _)| why).unwrap_or_default();
                return self.wrong(why);
            }
            Purpose::Filter => {
                self.filter = (!line.is_empty()).then(|| line.to_owned());
                // Operations are counted by the instance, which asks no filter of them.
                if let View::Operations(process) = *self.view()
                    && self.filter.is_some()
                {
                    self.open(View::Calls(Scope { process: Some(process), operation: None }));
                }
                self.place_mut().selected = None;
                Vec::new()
            }
            Purpose::Intercept if line.is_empty() => return self.wrong("name a filter; ~all takes every attempt"),
            Purpose::Intercept => {
                vec![Effect::Intercept(line.to_owned())]
            }
            // It stays to be mended until it is taken.
            Purpose::Rule => return vec![Effect::AddRule(line.to_owned())],
            Purpose::First(id) => match first(line, self.is_request(id)) {
                Ok(first) => {
                    let changes = self.changes.entry(id).or_default();
                    (changes.status, changes.reason) = (first.status, first.reason);
                    (changes.method, changes.target) = (first.method, first.target);
                    Vec::new()
                }
                Err(why) => return self.wrong(why),
            },
            Purpose::Header(id) => {
                let line = line.to_owned();
                let changes = self.changes.entry(id).or_default();
                if let Some(name) = line.strip_prefix('-').map(str::trim).filter(|name| !name.is_empty()) {
                    changes.headers.retain(|(it, _)| !it.eq_ignore_ascii_case(name));
                    changes.remove.push(name.to_owned());
                } else if let Some((name, value)) = line.split_once(':').filter(|(name, _)| !name.trim().is_empty()) {
                    changes.remove.retain(|it| !it.eq_ignore_ascii_case(name.trim()));
                    changes.headers.push((name.trim().to_owned(), value.trim().to_owned()));
                } else {
                    return self.wrong("write `Name: value`, or `-Name` to leave a field out");
                }
                Vec::new()
            }
            Purpose::Body(id) => {
                self.changes.entry(id).or_default().body = Some(text.clone());
                Vec::new()
            }
            Purpose::Answer(id) => match first(line, false) {
                Ok(answer) => {
                    let changes = self.changes.get(&id).cloned().unwrap_or_default();
                    let verdict = Verdict {
                        action: Act::Answer,
                        status: answer.status,
                        reason: answer.reason,
                        method: None,
                        target: None,
                        ..changes
                    };
                    vec![Effect::Decide(id, verdict)]
                }
                Err(why) => return self.wrong(why),
            },
            Purpose::RemoveRule(_) | Purpose::Drop(_) => Vec::new(),
        };
        self.prompt = None;
        effects
    }

    fn is_request(&self, id: u64) -> bool {
        self.held.iter().any(|held| held.id == id && held.phase == "request")
    }
}

/// A first line: `429 Too Many Requests`, `HTTP/1.1 429`, or `GET /path`.
fn first(line: &str, is_request: bool) -> Result<Verdict, String> {
    let (one, two) = line.split_once(' ').map_or((line, ""), |(one, two)| (one, two.trim()));
    if is_request {
        if one.is_empty() || two.is_empty() {
            return Err("write a method and a target, such as GET /path".to_owned());
        }
        return Ok(Verdict { method: Some(one.to_owned()), target: Some(two.to_owned()), ..Verdict::default() });
    }
    let (one, two) = if one.starts_with("HTTP") { two.split_once(' ').unwrap_or((two, "")) } else { (one, two) };
    let status = one.parse::<u16>().ok().filter(|status| (200..=599).contains(status));
    let status = status.ok_or("write a status from 200 to 599, and perhaps a reason, such as 429 Slow down")?;
    let reason = Some(two.trim().to_owned()).filter(|reason| !reason.is_empty());
    Ok(Verdict { status: Some(status), reason, ..Verdict::default() })
}
