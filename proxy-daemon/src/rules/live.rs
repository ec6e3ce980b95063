//! The rules in force, and what they decide.
//!
//! In: attempts, once in each phase. Out: at most one [`Ruling`] for each. A
//! set in force never changes: a change puts another in its place, and an
//! attempt keeps to the set that it began with. A rule that is in both keeps
//! its counters. No lock is taken but by a rule that is limited, and once for
//! each attempt where something is drawn.
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::{
    Abort, Answer, BodyEdit, Delay, Entry, Field, Guard, GuardState, HeaderEdit, MAX_DELAY, Phase, PresetChoice, Reply,
    Rule, RuleSet, Ruling, Source, Spread, StopWhen, Template,
    draw::{self, Calls, Draws, Purpose},
    guard::Watch,
    presets::{self, Preset},
    state::{Ask, RuleState},
};
use crate::flow::{
    Attempt, Content, Moment, content,
    filter::{Screen, View},
};

/// How many rules that are no longer in force are kept for the report.
const MAX_RETIRED: usize = 1000;

/// What holds as long as the instance runs. Options of the command line win
/// over files.
#[derive(Debug, Default)]
pub struct Settings {
    pub guard: Guard,
    /// Count what would have been done, and do nothing.
    pub dry_run: bool,
    /// From this moment on no rule acts any more.
    pub until: Option<Moment>,
}

/// The rules of an instance.
#[derive(Debug)]
pub struct Rules {
    active: ArcSwap<Active>,
    shared: Arc<Shared>,
    /// Held while a set takes another's place.
    retired: Mutex<VecDeque<(Entry, Arc<RuleState>)>>,
}

/// What every set of an instance has in common.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    seed: u64,
    watch: Watch,
    calls: Mutex<Calls>,
}

/// The set that is in force; an attempt keeps to the one it began with.
#[derive(Debug)]
pub struct Active {
    set: Arc<RuleSet>,
    entries: Vec<Armed>,
    /// What is switched on, by phase.
    request: Asked,
    response: Asked,
    /// Rules of the response phase that look at the request's body: once the
    /// response has come it is too late to read it.
    late: Vec<usize>,
    /// Some rule of the phase may want to see the body that comes in it.
    reads_request: bool,
    reads_response: bool,
    /// Some rule that is switched on draws.
    draws: bool,
    shared: Arc<Shared>,
}

/// The rules of a phase.
#[derive(Debug)]
struct Asked {
    /// Places in `Active::entries`.
    places: Vec<usize>,
    /// Over the filters of `places`.
    screen: Screen,
}

impl Asked {
    fn new(phase: Phase, entries: &[Armed]) -> Self {
        let on = |armed: &Armed| armed.entry.enabled && armed.entry.rule.phase == phase;
        let on = || entries.iter().enumerate().filter(|(_, armed)| on(armed));
        let places = on().map(|(place, _)| place).collect();
        Self { places, screen: Screen::new(on().map(|(_, armed)| &armed.entry.rule.filter)) }
    }

    fn rules<'a>(&self, entries: &'a [Armed]) -> impl Iterator<Item = (usize, &'a Rule)> {
        self.places.iter().filter_map(|place| Some((*place, &*entries.get(*place)?.entry.rule)))
    }
}

/// A rule with what belongs to it.
#[derive(Debug)]
struct Armed {
    entry: Entry,
    state: Arc<RuleState>,
    draws: Draws,
}

/// How far rules have come with one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Rules from here on are no longer asked: an earlier one has acted.
    ceiling: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { ceiling: usize::MAX }
    }
}

/// A rule as lists show it.
#[derive(Clone, Debug)]
pub struct RuleStatus {
    pub name: Arc<str>,
    pub text: String,
    pub source: Source,
    pub enabled: bool,
    /// How often it acted; on a dry run, would have.
    pub hits: u64,
    /// How often it should have acted and could not: the body that it merges
    /// into is no JSON, is too long, or is compressed.
    pub failed: u64,
    /// Calls, processes or operations forgotten before their time.
    pub forgotten: u64,
}

impl RuleStatus {
    fn of(entry: &Entry, state: &RuleState) -> Self {
        Self {
            name: Arc::clone(&entry.rule.name),
            text: entry.rule.text.clone(),
            source: entry.rule.source.clone(),
            enabled: entry.enabled,
            hits: state.hits(),
            failed: state.failed(),
            forgotten: state.forgotten(),
        }
    }
}

impl Rules {
    pub fn new(set: RuleSet, settings: Settings, now: Moment) -> Self {
        let seed = settings.guard.seed.or(set.guard.seed).unwrap_or_else(draw::random_seed);
        let shared = Arc::new(Shared { settings, seed, watch: Watch::default(), calls: Mutex::default() });
        let active = Active::arm(Arc::new(set), &shared, now, &HashMap::new());
        Self { active: ArcSwap::from_pointee(active), shared, retired: Mutex::default() }
    }

    /// The seed that every draw is made from.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    pub fn load(&self) -> Arc<Active> {
        self.active.load_full()
    }

    /// The set in force.
    pub fn current(&self) -> Arc<RuleSet> {
        Arc::clone(&self.active.load().set)
    }

    /// Puts another set in force, from the next attempt on. What stopped the
    /// rules keeps them stopped, and the seed stays.
    pub fn replace(&self, set: RuleSet, now: Moment) {
        self.put(set, now, &mut self.retired_lock());
    }

    /// Puts in force what `change` makes of the current set; changes never
    /// miss one another. After an error the current set stays.
    pub fn edit<E>(&self, change: impl FnOnce(&RuleSet) -> Result<RuleSet, E>, now: Moment) -> Result<(), E> {
        let mut retired = self.retired_lock();
        let set = change(&self.current())?;
        self.put(set, now, &mut retired);
        Ok(())
    }

    fn put(&self, set: RuleSet, now: Moment, retired: &mut VecDeque<(Entry, Arc<RuleState>)>) {
        let old = self.active.load_full();
        let mut known: HashMap<_, _> = old
            .entries
            .iter()
            .map(|armed| ((&*armed.entry.rule.name, armed.entry.rule.text.as_str()), &armed.state))
            .collect();
        let active = Active::arm(Arc::new(set), &self.shared, now, &known);
        if stop_text(old.stop_when()) != stop_text(active.stop_when()) {
            self.shared.watch.forget_ends();
        }
        for Armed { entry, .. } in &active.entries {
            known.remove(&(&*entry.rule.name, entry.rule.text.as_str()));
        }
        for Armed { entry, state, .. } in &old.entries {
            if known.contains_key(&(&*entry.rule.name, entry.rule.text.as_str())) {
                if retired.len() >= MAX_RETIRED {
                    retired.pop_front();
                }
                retired.push_back((entry.clone(), Arc::clone(state)));
            }
        }
        self.active.store(Arc::new(active));
    }

    fn retired_lock(&self) -> MutexGuard<'_, VecDeque<(Entry, Arc<RuleState>)>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt has ended: the guard looks at it.
    pub fn ended(&self, attempt: &Attempt, now: Moment) {
        let active = self.active.load();
        if let Some(limit) = active.stop_when() {
            self.shared.watch.ended(limit, attempt, now);
        }
    }

    /// The rules in force.
    pub fn list(&self) -> Vec<RuleStatus> {
        self.active.load().entries.iter().map(|armed| RuleStatus::of(&armed.entry, &armed.state)).collect()
    }

    /// The last rules that were removed or changed, as they were; the latest
    /// is the last.
    pub fn retired(&self) -> Vec<RuleStatus> {
        self.retired_lock().iter().map(|(entry, state)| RuleStatus::of(entry, state)).collect()
    }

    /// What holds for all rules.
    pub fn state(&self) -> GuardState {
        let shared = &self.shared;
        GuardState {
            stopped: shared.watch.reason(),
            injections: shared.watch.injections(),
            dry_run: shared.settings.dry_run,
            seed: shared.seed,
            forgotten: shared.calls().forgotten(),
        }
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No rule may act now.
    fn is_over(&self, now: Moment) -> bool {
        if !self.watch.is_stopped() && self.settings.until.is_some_and(|until| now >= until) {
            self.watch.stop(|| "the time that rules were to act for is over".to_owned());
        }
        self.watch.is_stopped()
    }
}

fn stop_text(stop: Option<&StopWhen>) -> Option<(String, u32, Duration)> {
    stop.map(|stop| (stop.filter.to_string(), stop.count, stop.per))
}

impl Active {
    fn arm(
        set: Arc<RuleSet>,
        shared: &Arc<Shared>,
        now: Moment,
        known: &HashMap<(&str, &str), &Arc<RuleState>>,
    ) -> Self {
        let arm = |entry: &Entry| {
            let rule = &entry.rule;
            let state = known.get(&(&*rule.name, rule.text.as_str()));
            let state = state.map_or_else(|| Arc::new(RuleState::new(rule, now)), |state| Arc::clone(state));
            Armed { entry: entry.clone(), state, draws: Draws::new(shared.seed, &rule.name) }
        };
        let entries: Vec<Armed> = set.iter().map(arm).collect();
        let (request, response) = (Asked::new(Phase::Request, &entries), Asked::new(Phase::Response, &entries));
        let reads_request_body = |rule: &Rule| rule.filter.needs().request_body;
        let late = response.rules(&entries).filter(|(_, rule)| reads_request_body(rule));
        let late = late.map(|(place, _)| place).collect();
        let reads_request = request.rules(&entries).any(|(_, rule)| reads_request_body(rule));
        let reads_response = |rule: &Rule| rule.filter.needs().response_body || merge_patch(rule).is_some();
        let reads_response = response.rules(&entries).any(|(_, rule)| reads_response(rule));
        let draws = entries.iter().any(|armed| armed.entry.enabled && draws(&armed.entry.rule));
        Self { set, request, response, late, reads_request, reads_response, draws, shared: Arc::clone(shared), entries }
    }

    fn stop_when(&self) -> Option<&StopWhen> {
        self.shared.settings.guard.stop_when.as_ref().or(self.set.guard.stop_when.as_ref())
    }

    fn asked(&self, phase: Phase) -> &Asked {
        match phase {
            Phase::Request => &self.request,
            Phase::Response => &self.response,
        }
    }

    /// Every rule of a phase that is still to be asked and may match, with its
    /// place, until `then` answers false.
    fn ask(&self, phase: Phase, progress: Progress, view: &View<'_>, mut then: impl FnMut(usize, &Armed) -> bool) {
        let Asked { places, screen } = self.asked(phase);
        screen.each(view, |at| match places.get(at).filter(|place| **place < progress.ceiling) {
            Some(place) => self.entries.get(*place).is_none_or(|armed| then(*place, armed)),
            None => false,
        });
    }

    /// An answer that is not the upstream's says whose it is.
    pub fn signs(&self) -> bool {
        self.shared.settings.guard.rule_header.or(self.set.guard.rule_header).unwrap_or(true)
    }

    /// No rule can act: nothing has to be asked.
    pub fn is_idle(&self) -> bool {
        self.request.places.is_empty() && self.response.places.is_empty() || self.shared.watch.is_stopped()
    }

    /// What stands for the attempt's call in draws; to be asked once, when
    /// the attempt begins, and kept in [`Attempt::call_key`].
    pub fn call_key(&self, attempt: &Attempt) -> u64 {
        if !self.draws {
            return 0;
        }
        let fingerprint = draw::fingerprint(attempt);
        self.shared.calls().key(attempt, fingerprint)
    }

    /// Whether what rules decide in this phase depends on the body (the
    /// request's, or the response's), and it has to be read first.
    pub fn wants_body(&self, phase: Phase, attempt: &Attempt, progress: Progress) -> bool {
        let unread = match phase {
            Phase::Request => &attempt.request_content,
            Phase::Response => &attempt.response_content,
        };
        // Filters are asked here only where a body can matter: they will be
        // asked again for the ruling.
        let reads = match phase {
            Phase::Request => self.reads_request || !self.late.is_empty(),
            Phase::Response => self.reads_response,
        };
        if !reads || *unread != Content::Unread || self.is_idle() {
            return false;
        }
        // A little late at worst: a window that opens while the head comes.
        let now = attempt.started;
        let view = View::new(attempt);
        let wants = |place: &usize| {
            self.entries.get(*place).is_some_and(|armed| armed.entry.rule.filter.wants_request_body(&view))
        };
        if phase == Phase::Request && self.late.iter().any(wants) {
            return true;
        }
        let mut reads = false;
        self.ask(phase, progress, &view, |_, Armed { entry, state, draws }| {
            let rule = &*entry.rule;
            let known = rule.filter.without_body(&view);
            let merges = phase == Phase::Response && merge_patch(rule).is_some() && is_drawn(rule, draws, attempt);
            reads = known.is_none() || (known == Some(true) && merges);
            // Only what is sure to act hides what comes after it.
            let sure = rule.limits == super::Limits::default() && rule.action.limit.is_none();
            let hides = known == Some(true) && sure && !rule.go_on && state.is_due(rule, now);
            !reads && !hides
        });
        reads
    }

    /// What becomes of the attempt in this phase. Counts hits.
    pub fn rule(&self, phase: Phase, attempt: &Attempt, progress: &mut Progress, now: Moment) -> Option<Ruling> {
        let first = self.asked(phase).places.first();
        if first.is_none_or(|place| *place >= progress.ceiling) || self.shared.is_over(now) {
            return None;
        }
        let shared = &*self.shared;
        let most = shared.settings.guard.max_injections.or(self.set.guard.max_injections);
        let view = View::new(attempt);
        let mut joint = Joint::default();
        let mut ceiling = progress.ceiling;
        self.ask(phase, *progress, &view, |place, Armed { entry, state, draws }| {
            let rule = &*entry.rule;
            if !state.is_due(rule, now) || !rule.filter.matches_view(&view) {
                return true;
            }
            if rule.limits.max_share.is_some() {
                state.matched();
            }
            if !is_drawn(rule, draws, attempt) {
                return true;
            }
            // Before anything is counted: what cannot be merged uses up no
            // limit.
            let mut merged = None;
            if let Some(patch) = merge_patch(rule)
                && state.admits(rule, attempt, now, Ask::Look)
            {
                merged = merge_into(attempt, patch);
                if merged.is_none() {
                    state.fail();
                    return true;
                }
            }
            if !state.admits(rule, attempt, now, Ask::Take) || (merge_patch(rule).is_some() && merged.is_none()) {
                return true;
            }
            if passes(rule) {
                state.count();
                ceiling = place;
                return false;
            }
            if !shared.watch.inject(most) {
                return false;
            }
            state.count();
            joint.add(rule, attempt, draws, merged);
            if !rule.go_on {
                ceiling = place;
            }
            rule.go_on
        });
        progress.ceiling = ceiling;
        if shared.settings.dry_run { None } else { joint.ruling(phase, attempt, self.signs()) }
    }
}

/// The body without its content codings, where they can be removed.
fn decoded(attempt: &Attempt) -> Option<Cow<'_, [u8]>> {
    content::plain(&attempt.response_content, &attempt.response.as_ref()?.headers)
}

fn merge_into(attempt: &Attempt, patch: &serde_json::Value) -> Option<Bytes> {
    let mut value = serde_json::from_slice(&decoded(attempt)?).ok()?;
    merge(&mut value, patch);
    serde_json::to_vec(&value).ok().map(Bytes::from)
}

/// RFC 7396, section 2.
fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    use serde_json::Value;
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn merge_patch(rule: &Rule) -> Option<&serde_json::Value> {
    match rule.action.answer.as_ref()?.body.as_ref()? {
        BodyEdit::Merge(patch) => Some(patch),
        BodyEdit::Text(_) | BodyEdit::File(..) => None,
    }
}

fn passes(rule: &Rule) -> bool {
    rule.action.delay.is_none() && rule.action.answer.is_none() && rule.action.abort.is_none()
}

fn is_drawn(rule: &Rule, draws: &Draws, attempt: &Attempt) -> bool {
    rule.limits.chance.is_none_or(|chance| draws.unit(attempt, Purpose::Chance) < chance)
}

/// The rule's doings depend on a draw.
fn draws(rule: &Rule) -> bool {
    let by_chance = rule.limits.chance.is_some_and(|chance| chance > 0.0 && chance < 1.0);
    let delay = |delay: &Delay| !matches!(delay.of, Spread::Fixed(_));
    by_chance || rule.action.delay.as_ref().is_some_and(delay) || rule.action.answer.as_ref().is_some_and(has_ids)
}

/// Something is filled in.
fn has_ids(answer: &Answer) -> bool {
    let template = |template: &Template| template.to_string().contains("{{");
    let header = |edit: &HeaderEdit| match edit {
        HeaderEdit::Set(_, value) | HeaderEdit::Add(_, value) => template(value),
        HeaderEdit::Remove(_) => false,
    };
    let preset = match answer.preset {
        None => false,
        Some(PresetChoice::Throttle) => true,
        Some(PresetChoice::Named(preset)) => {
            preset.headers.iter().any(header) || matches!(&preset.body, presets::Content::Text(text) if template(text))
        }
    };
    preset || answer.headers.iter().any(header) || matches!(&answer.body, Some(BodyEdit::Text(text)) if template(text))
}

/// What several rules together make of an attempt. What an earlier one gave
/// stays; delays and header edits come on top.
#[derive(Debug, Default)]
struct Joint {
    rules: Vec<Arc<str>>,
    delay: Duration,
    answered: bool,
    status: Option<u16>,
    reason: Option<Arc<str>>,
    headers: Vec<Field>,
    body: Option<Bytes>,
    continue_then: bool,
    abort: Option<Abort>,
}

impl Joint {
    fn add(&mut self, rule: &Rule, attempt: &Attempt, draws: &Draws, merged: Option<Bytes>) {
        self.rules.push(Arc::clone(&rule.name));
        if let Some(delay) = &rule.action.delay {
            self.delay = self.delay.saturating_add(draws.delay(attempt, delay)).min(MAX_DELAY);
        }
        // Broken off without an answer: none can be given any more.
        let broken = self.abort.is_some_and(is_final);
        if let Some(answer) = rule.action.answer.as_ref().filter(|_| !broken) {
            self.answer(answer, attempt, draws.draw(attempt, Purpose::Ids), merged);
        }
        let told = self.status.is_some() || self.body.is_some();
        if let Some(abort) = rule.action.abort.filter(|abort| !is_final(*abort) || !told) {
            self.abort.get_or_insert(abort);
        }
    }

    fn answer(&mut self, answer: &Answer, attempt: &Attempt, ids: u64, merged: Option<Bytes>) {
        self.answered = true;
        self.continue_then |= answer.continue_then;
        let preset = match answer.preset {
            Some(PresetChoice::Named(preset)) => Some(preset),
            Some(PresetChoice::Throttle) => presets::throttle(attempt),
            None => None,
        };
        // No service's own answer fits: what HTTP says.
        let plain = preset.is_none() && answer.preset.is_some();
        let status = answer.status.or(preset.map(|preset| preset.status)).or(plain.then_some(429));
        if self.status.is_none() {
            let usual = || match preset {
                Some(preset) if !preset.reason.is_empty() => Some(preset.reason.into()),
                Some(_) => None,
                None => plain.then(|| "Too Many Requests".into()),
            };
            let usual = || answer.status.is_none().then(usual).flatten();
            if status.is_some() || self.reason.is_none() {
                self.reason = answer.reason.clone().or_else(usual);
            }
            self.status = status;
        }
        let body = match &answer.body {
            Some(BodyEdit::Text(text)) => Some(Bytes::from(text.render(attempt, ids))),
            Some(BodyEdit::File(_, bytes)) => Some(bytes.clone()),
            Some(BodyEdit::Merge(_)) => merged,
            None => preset.and_then(|preset| preset_body(preset, attempt, ids)).or(plain.then(Bytes::new)),
        };
        if let Some(body) = body
            && self.body.is_none()
        {
            // The head's word on the body goes with the genuine one; that it
            // is JSON still holds.
            let kind = attempt.response.as_ref().and_then(|response| response.headers.text("content-type"));
            if let (Some(BodyEdit::Merge(_)), Some(kind)) = (&answer.body, kind) {
                self.headers.push(Field::Set("content-type".into(), header_value(kind)));
            }
            self.body = Some(body);
        }
        let edits = preset.into_iter().flat_map(|preset| &preset.headers).chain(&answer.headers);
        self.headers.extend(edits.filter_map(|edit| field(edit, attempt, ids)));
    }

    fn ruling(self, phase: Phase, attempt: &Attempt, signs: bool) -> Option<Ruling> {
        if self.rules.is_empty() {
            return None;
        }
        let genuine = attempt.response.as_ref().map(|response| response.status);
        let body = match phase {
            // There is no genuine one.
            Phase::Request => Some(self.body.unwrap_or_default()),
            Phase::Response => self.body,
        };
        let answered = self.answered && !self.abort.is_some_and(is_final);
        let rule = match &*self.rules {
            [rule] => Arc::clone(rule),
            rules => rules.join(", ").into(),
        };
        let reply = answered.then(|| Reply {
            signature: signs.then(|| Arc::clone(&rule)),
            status: self.status.or(genuine).unwrap_or(200),
            reason: self.reason,
            headers: self.headers,
            body,
            continue_then: self.continue_then,
        });
        Some(Ruling { rule, delay: self.delay, reply, abort: self.abort })
    }
}

/// No answer goes together with it.
fn is_final(abort: Abort) -> bool {
    !matches!(abort, Abort::Truncate(_))
}

fn preset_body(preset: &Preset, attempt: &Attempt, ids: u64) -> Option<Bytes> {
    match &preset.body {
        presets::Content::Keep => None,
        presets::Content::Text(text) => Some(Bytes::from(text.render(attempt, ids))),
        presets::Content::Bytes(bytes) => Some(Bytes::from_static(bytes)),
    }
}

/// `None` for what is the data path's own.
fn field(edit: &HeaderEdit, attempt: &Attempt, ids: u64) -> Option<Field> {
    let (HeaderEdit::Set(name, _) | HeaderEdit::Add(name, _) | HeaderEdit::Remove(name)) = edit;
    if ["content-length", "transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return None;
    }
    let name = Arc::clone(name);
    Some(match edit {
        HeaderEdit::Set(_, value) => Field::Set(name, header_value(&value.render(attempt, ids))),
        HeaderEdit::Add(_, value) => Field::Add(name, header_value(&value.render(attempt, ids))),
        HeaderEdit::Remove(_) => Field::Remove(name),
    })
}

/// Without what a header's value cannot hold: what is filled in comes from
/// the client.
fn header_value(text: &str) -> Arc<str> {
    let text = text.trim();
    if text.contains(char::is_control) { text.replace(char::is_control, "").into() } else { text.into() }
}

#[cfg(test)]
mod tests;
