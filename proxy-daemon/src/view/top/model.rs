//! What the terminal view knows: a value that events change.
//!
//! In: answers of the instance, keys, moments. Out: which questions to ask
//! ([`Model::wants`]) and what to do ([`Effect`]). Nothing here does I/O.
use std::collections::HashMap;

use super::{line::Typed, rates::Rates};
use crate::{
    control::{About, Completed, HeldInFull, HeldView, InterceptView, Offer, RuleView, RulesView, Verdict},
    flow::filter::Filter,
    history::{AttemptDetail, CallEntry, CallsPage, Series, Span},
    report::{ProcessEntry, Report},
};

/// How many calls are asked for at most, and in which steps.
const CALLS: usize = 300;
const STEP: usize = 50;
/// How much of the past is asked for at the start.
const PAST_MS: f64 = 60_000.0;
/// Counts under a filter come in so many parts.
const PARTS: usize = 60;

/// A process beyond doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProcessKey {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
}

impl ProcessKey {
    pub(super) fn of(process: &ProcessEntry) -> Self {
        Self { pid: process.pid, start_ticks: process.start_ticks }
    }
}

/// Of which calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) process: Option<ProcessKey>,
    /// As the report names it.
    pub(super) operation: Option<(Option<String>, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    Processes,
    Operations(ProcessKey),
    Calls(Scope),
    Call(u64),
    Attempt(u64),
    Held,
    Hold(u64),
    Rules,
}

impl View {
    /// It shows text that is scrolled, and no list.
    pub(super) fn is_text(&self) -> bool {
        matches!(self, View::Attempt(_) | View::Hold(_))
    }
}

/// A row, whatever place it has at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Process(ProcessKey),
    Operation(Option<String>, String),
    Call(u64),
    Attempt(u64),
    Held(u64),
    Intercept(u64),
    Rule(String),
}

/// Which column a list is sorted by; 0 is the view's own order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) reversed: bool,
}

/// A view, and where one is in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) view: View,
    /// The top row, as long as nobody has gone elsewhere.
    pub(super) selected: Option<Key>,
    /// The first row or line that is shown.
    pub(super) offset: usize,
    pub(super) sort: Sort,
}

impl Place {
    pub(super) fn new(view: View) -> Self {
        Self { view, selected: None, offset: 0, sort: Sort::default() }
    }
}

/// The tabs, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Processes,
    Calls,
    Held,
    Rules,
}

impl Tab {
    pub(super) const ALL: [Tab; 4] = [Tab::Processes, Tab::Calls, Tab::Held, Tab::Rules];

    fn root(self) -> View {
        match self {
            Tab::Processes => View::Processes,
            Tab::Calls => View::Calls(Scope::default()),
            Tab::Held => View::Held,
            Tab::Rules => View::Rules,
        }
    }
}

/// What a line is typed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Filter,
    Intercept,
    Rule,
    /// The first line of what is held.
    First(u64),
    Header(u64),
    Body(u64),
    Answer(u64),
    /// To be confirmed by `y`.
    RemoveRule(String),
    Drop(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prompt {
    pub(super) purpose: Purpose,
    pub(super) typed: Typed,
    pub(super) offers: Option<Offers>,
    /// What is wrong with it, once it was entered.
    pub(super) wrong: Option<String>,
}

/// What may come at the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) replace: usize,
    pub(super) items: Vec<Offer>,
    pub(super) chosen: Option<usize>,
}

/// Whether the instance answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Starting,
    Up,
    /// Since when it does not, as told, and why.
    Lost(String, String),
}

/// What an instance is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Question {
    About,
    Report,
    /// What was before the first report.
    Past(Past),
    /// Counts of what a filter takes.
    Counts(String),
    /// Of what a filter takes, so many.
    Calls(Option<String>, usize),
    Attempt(u64),
    Held,
    Hold(u64),
    Intercepts,
    Rules,
}

impl Question {
    /// How many kinds there are.
    pub(super) const KINDS: usize = 10;

    pub(super) fn kind(&self) -> usize {
        match self {
            Question::About => 0,
            Question::Report => 1,
            Question::Past(_) => 2,
            Question::Counts(_) => 3,
            Question::Calls(..) => 4,
            Question::Attempt(_) => 5,
            Question::Held => 6,
            Question::Hold(_) => 7,
            Question::Intercepts => 8,
            Question::Rules => 9,
        }
    }

    /// How soon the same is asked again, in ms.
    pub(super) fn period(&self) -> u64 {
        match self {
            Question::Held => 250,
            Question::Calls(..) | Question::Attempt(_) | Question::Rules | Question::Intercepts => 500,
            _ => 1_000,
        }
    }
}

/// A span before a report, in ms since the instance's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Past {
    from_ms: f64,
    to_ms: f64,
    seconds: usize,
}

impl Past {
    pub(super) fn span(self) -> Span {
        Span {
            from_ms: Some(self.from_ms),
            to_ms: Some(self.to_ms),
            buckets: self.seconds,
            before: None,
            processes: false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    About(About),
    Report(Box<Report>),
    Past(Series),
    Counts(String, Series),
    Calls(Option<String>, CallsPage),
    Attempt(Box<AttemptDetail>),
    Held(Vec<HeldView>),
    Hold(Box<HeldInFull>),
    Intercepts(Vec<InterceptView>),
    Rules(RulesView),
    /// What may come after this text.
    Completed(String, Completed),
    /// Something was done, as a sentence.
    Done(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// In the instance's own words.
    Refused(String),
    /// It cannot be spoken to.
    Gone(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    Quit,
    Suspend,
    Redraw,
    Complete(String),
    Decide(u64, Verdict),
    Edit(u64),
    Intercept(String),
    Withdraw(u64),
    AddRule(String),
    RemoveRule(String),
    Switch(String, bool),
    SwitchAll(bool),
}

/// A sentence at the bottom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) is_trouble: bool,
    /// When, in ms.
    at: u64,
}

/// How long a sentence stays, in ms.
const STAYS: u64 = 8_000;

#[derive(Debug)]
pub(super) struct Model {
    /// Since the start of this view, in ms.
    pub(super) now: u64,
    /// The time of day.
    pub(super) clock: String,
    pub(super) color: bool,
    pub(super) link: Link,
    pub(super) about: Option<About>,
    pub(super) report: Option<Box<Report>>,
    pub(super) rates: Rates,
    past: bool,
    pub(super) filter: Option<String>,
    /// Counts of what the filter takes.
    pub(super) counts: Option<(String, Series)>,
    /// Which calls they are, and they.
    pub(super) calls: Option<(Option<String>, CallsPage)>,
    /// Calls that are looked at, as last seen.
    pub(super) call: Option<CallEntry>,
    /// The attempt that comes after those of the call, and is not here yet.
    following: Option<u64>,
    pub(super) attempt: Option<Box<AttemptDetail>>,
    pub(super) held: Vec<HeldView>,
    /// When they were told, in ms.
    held_at: u64,
    pub(super) hold: Option<Box<HeldInFull>>,
    pub(super) intercepts: Vec<InterceptView>,
    pub(super) rules: Option<RulesView>,
    /// What was typed over held attempts and is not sent yet.
    pub(super) changes: HashMap<u64, Verdict>,
    pub(super) tab: Tab,
    stacks: [Vec<Place>; 4],
    pub(super) prompt: Option<Prompt>,
    pub(super) help: bool,
    /// Since when nothing is asked any more, as told.
    pub(super) frozen: Option<String>,
    pub(super) said: Option<Said>,
    /// Rows or lines that the view had room for when it was drawn.
    pub(super) page: usize,
    pub(super) lines: usize,
    /// There is room for what is selected beside a list.
    pub(super) wide: bool,
    pub(super) dirty: bool,
}

impl Model {
    pub(super) fn new(color: bool) -> Self {
        Self {
            now: 0,
            clock: String::new(),
            color,
            link: Link::Starting,
            about: None,
            report: None,
            rates: Rates::default(),
            past: false,
            filter: None,
            counts: None,
            calls: None,
            call: None,
            following: None,
            attempt: None,
            held: Vec::new(),
            held_at: 0,
            hold: None,
            intercepts: Vec::new(),
            rules: None,
            changes: HashMap::new(),
            tab: Tab::Processes,
            stacks: Tab::ALL.map(|tab| vec![Place::new(tab.root())]),
            prompt: None,
            help: false,
            frozen: None,
            said: None,
            page: 10,
            lines: 0,
            wide: false,
            dirty: true,
        }
    }

    pub(super) fn place(&self) -> &Place {
        let stack = &self.stacks[self.tab as usize];
        stack.last().unwrap_or(&stack[0])
    }

    pub(super) fn place_mut(&mut self) -> &mut Place {
        let stack = &mut self.stacks[self.tab as usize];
        let last = stack.len() - 1;
        &mut stack[last]
    }

    pub(super) fn view(&self) -> &View {
        &self.place().view
    }

    /// The views from the tab's own down to this one.
    pub(super) fn path(&self) -> &[Place] {
        &self.stacks[self.tab as usize]
    }

    pub(super) fn open(&mut self, view: View) {
        match &view {
            View::Call(call) => (self.call, self.following) = (self.found(*call), None),
            View::Attempt(id) => drop(self.attempt.take_if(|attempt| attempt.attempt.id != *id)),
            View::Hold(id) => drop(self.hold.take_if(|hold| hold.held.id != *id)),
            _ => {}
        }
        self.stacks[self.tab as usize].push(Place::new(view));
    }

    /// One view back; false at the tab's own.
    pub(super) fn back(&mut self) -> bool {
        let stack = &mut self.stacks[self.tab as usize];
        if stack.len() < 2 {
            return false;
        }
        stack.pop();
        true
    }

    pub(super) fn say(&mut self, text: impl Into<String>, is_trouble: bool) {
        self.said = Some(Said { text: text.into(), is_trouble, at: self.now });
        self.dirty = true;
    }

    /// Time goes on.
    pub(super) fn tick(&mut self, now: u64, clock: String) {
        self.now = now;
        // A second, or what is held waits on.
        self.dirty |= clock != self.clock;
        self.clock = clock;
        if self.said.as_ref().is_some_and(|said| now.saturating_sub(said.at) > STAYS) {
            self.said = None;
            self.dirty = true;
        }
    }

    /// How long something has been held by now, in ms, of so much when it was told.
    pub(super) fn since_held(&self, waited: u64) -> u64 {
        let more = if matches!(self.link, Link::Up) { self.now.saturating_sub(self.held_at) } else { 0 };
        waited.saturating_add(more)
    }

    pub(super) fn left_of(&self, left: u64) -> u64 {
        left.saturating_sub(self.since_held(0))
    }

    /// The filter of the calls in a scope, with the one that was typed.
    pub(super) fn calls_filter(&self, scope: &Scope) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(process) = &scope.process {
            parts.push(format!("~pid {}", process.pid));
        }
        match &scope.operation {
            Some((Some(service), operation)) => {
                parts.push(format!("~svc {} & ~op {}", quoted(service), quoted(operation)));
            }
            Some((None, route)) => parts.push(of_route(route)),
            None => {}
        }
        if let Some(typed) = &self.filter {
            parts.push(format!("({typed})"));
        }
        (!parts.is_empty()).then(|| parts.join(" & "))
    }

    /// The questions whose answers are shown at the moment.
    pub(super) fn wants(&self) -> Vec<Question> {
        if matches!(self.link, Link::Lost(..)) {
            return vec![Question::About];
        }
        let mut wanted = vec![Question::Held];
        if self.about.is_none() {
            wanted.push(Question::About);
        }
        let shown = match self.view() {
            View::Hold(_) => self.held_here(),
            View::Held if self.wide => self.held_here(),
            _ => None,
        };
        if let Some(id) = shown.map(|held| held.id)
            && self.hold.as_ref().is_none_or(|hold| hold.held.id != id)
        {
            wanted.push(Question::Hold(id));
        }
        if let View::Attempt(id) = self.view()
            && self.attempt.as_ref().is_none_or(|attempt| attempt.attempt.id != *id)
        {
            wanted.push(Question::Attempt(*id));
        }
        if self.frozen.is_some() {
            return wanted;
        }
        wanted.push(Question::Report);
        if let Some(report) = self.report.as_ref().filter(|_| !self.past) {
            wanted.push(Question::Past(past(report)));
        }
        match self.view() {
            View::Processes => wanted.extend(self.filter.clone().map(Question::Counts)),
            View::Calls(scope) => {
                // What is shown, and as much below it.
                let rows = (self.place().offset + 2 * self.page) / STEP * STEP + STEP;
                wanted.push(Question::Calls(self.calls_filter(scope), rows.min(CALLS)));
            }
            View::Call(_) => {
                // An attempt that came meanwhile follows the last one.
                let last = self.call.as_ref().and_then(|call| call.attempts.last());
                wanted.extend(self.following.or(last.map(|last| last.id)).map(Question::Attempt));
            }
            View::Held => wanted.push(Question::Intercepts),
            View::Rules => wanted.push(Question::Rules),
            _ => {}
        }
        wanted
    }

    /// Takes what an instance answered.
    pub(super) fn answered(&mut self, answer: Answer) {
        // That still nothing is held is nothing new.
        self.dirty |= !matches!(&answer, Answer::Held(held) if held.is_empty() && self.held.is_empty());
        if self.link != Link::Up {
            self.link = Link::Up;
            self.dirty = true;
        }
        let frozen = self.frozen.is_some();
        match answer {
            Answer::About(about) => {
                if self.about.as_ref().is_some_and(|old| old.pid != about.pid) {
                    self.start_anew();
                }
                self.about = Some(about);
            }
            Answer::Report(report) if !frozen => {
                self.rates.take(&report, self.now);
                self.report = Some(report);
            }
            Answer::Past(series) => {
                self.past = true;
                self.rates.fill(&series, self.now);
            }
            Answer::Counts(filter, series) if !frozen => self.counts = Some((filter, series)),
            Answer::Calls(filter, page) if !frozen => {
                self.calls = Some((filter, page));
                if let Some(call) = self.call.as_ref().and_then(|call| self.found(call.call)) {
                    self.call = Some(call);
                }
            }
            Answer::Attempt(detail) => self.took_attempt(detail),
            Answer::Held(held) => {
                self.held_at = self.now;
                self.changes.retain(|id, _| held.iter().any(|it| it.id == *id));
                self.held = held;
            }
            Answer::Hold(hold) => self.hold = Some(hold),
            Answer::Intercepts(intercepts) => self.intercepts = intercepts,
            Answer::Rules(rules) => self.rules = Some(rules),
            Answer::Completed(text, completed) => self.completed(&text, completed),
            Answer::Done(text) => {
                self.prompt.take_if(|prompt| prompt.purpose == Purpose::Rule);
                self.say(text, false);
            }
            Answer::Report(_) | Answer::Counts(..) | Answer::Calls(..) => {}
        }
    }

    /// Takes why a question has no answer.
    pub(super) fn failed(&mut self, question: Option<&Question>, trouble: Trouble) {
        match trouble {
            Trouble::Gone(why) => {
                if !matches!(self.link, Link::Lost(..)) {
                    self.link = Link::Lost(self.clock.clone(), why);
                    self.dirty = true;
                }
            }
            // What went on while it was asked for is no trouble.
            Trouble::Refused(_) if matches!(question, Some(Question::Hold(_))) => {}
            Trouble::Refused(why) => {
                // A rule that is refused may be mended.
                if let Some(prompt) = &mut self.prompt
                    && question.is_none()
                    && prompt.purpose == Purpose::Rule
                {
                    prompt.wrong = Some(why);
                    self.dirty = true;
                    return;
                }
                if matches!(question, Some(Question::Past(_))) {
                    self.past = true;
                }
                self.say(why, true);
            }
        }
    }

    /// Another instance answers in the place of the one before.
    fn start_anew(&mut self) {
        self.report = None;
        self.rates = Rates::default();
        self.past = false;
        (self.counts, self.calls, self.call, self.attempt) = (None, None, None, None);
        (self.hold, self.rules) = (None, None);
        self.stacks = Tab::ALL.map(|tab| vec![Place::new(tab.root())]);
    }

    fn took_attempt(&mut self, detail: Box<AttemptDetail>) {
        if let View::Call(id) = *self.view()
            && let Some(call) = self.call.as_mut().filter(|call| call.call == id && detail.attempt.call == id)
        {
            if call.attempts.iter().all(|attempt| attempt.id != detail.attempt.id) {
                call.took_ms = (detail.attempt.at_ms + detail.attempt.took_ms - call.attempts[0].at_ms).max(0.0);
                call.waited_ms += detail.attempt.waited_ms.unwrap_or_default();
                call.attempts.push(detail.attempt.clone());
            }
            self.following = detail.next.filter(|next| call.attempts.iter().all(|attempt| attempt.id != *next));
        }
        self.attempt = Some(detail);
    }

    /// A call as it is known.
    fn found(&self, call: u64) -> Option<CallEntry> {
        let in_page = self.calls.as_ref().and_then(|(_, page)| page.calls.iter().find(|it| it.call == call));
        in_page.cloned().or_else(|| self.call.clone().filter(|it| it.call == call))
    }

    /// Offers for a text, if that is still what stands before the cursor.
    fn completed(&mut self, text: &str, completed: Completed) {
        let Some(prompt) = self.prompt.as_mut().filter(|prompt| prompt.typed.before() == text) else { return };
        let Completed { replace, items } = completed;
        prompt.offers = (!items.is_empty()).then_some(Offers { replace, items, chosen: None });
    }

    pub(super) fn rule(&self, name: &str) -> Option<&RuleView> {
        self.rules.as_ref()?.rules.iter().find(|rule| rule.name == name)
    }

    pub(super) fn process(&self, key: &ProcessKey) -> Option<&ProcessEntry> {
        self.report.as_ref()?.processes.iter().find(|process| ProcessKey::of(process) == *key)
    }
}

/// The minute before a report.
fn past(report: &Report) -> Past {
    let at = |text: &str| humantime::parse_rfc3339(text).ok();
    let since = at(&report.started).zip(at(&report.ended)).and_then(|(from, to)| to.duration_since(from).ok());
    let to = since.map_or(PAST_MS, |since| since.as_secs_f64() * 1e3).max(1.0);
    // Whole seconds, also where it is younger than that.
    let seconds = (to / 1e3).ceil().clamp(1.0, PAST_MS / 1e3);
    Past { from_ms: (to - seconds * 1e3).max(0.0), to_ms: to, seconds: seconds as usize }
}

/// All that is kept, in parts.
pub(super) fn parts() -> Span {
    Span { from_ms: None, to_ms: None, buckets: PARTS, before: None, processes: false }
}

/// A word of the filter language, whatever is in it.
pub(super) fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A filter for what the report names by method, host and path, since no
/// table knows its name.
fn of_route(route: &str) -> String {
    let (method, rest) = route.split_once(' ').unwrap_or((route, ""));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut pattern = format!("^https?://{}(:[0-9]+)?", regex::escape(host));
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        pattern.push('/');
        match segment {
            "{}" => pattern.push_str("[^/?]+"),
            "…" => break,
            segment => pattern.push_str(&regex::escape(segment)),
        }
    }
    if !path.ends_with('…') {
        pattern.push_str("/?([?]|$)");
    }
    format!("~m {} & ~u {}", quoted(&format!("^{}$", regex::escape(method))), quoted(&pattern))
}

/// Whether a text is a filter, or what is wrong with it: the sentence, and
/// the columns it is about.
pub(super) fn checked(text: &str) -> Result<(), (String, std::ops::Range<usize>)> {
    Filter::parse(text).map(|_| ()).map_err(|error| {
        let column = |at: usize| text.get(..at).map_or(0, |before| before.chars().count());
        let (from, to) = (column(error.span.start), column(error.span.end));
        (error.to_string(), from..to.max(from + 1))
    })
}

/// The attempt that a held one will be.
pub(super) fn held_of(held: &[HeldView], call: u64) -> Option<&HeldView> {
    held.iter().find(|held| held.call == call)
}
