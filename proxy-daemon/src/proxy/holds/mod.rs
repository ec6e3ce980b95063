//! Hand intercept: attempts that wait for a person.
//!
//! In: intercepts (a filter, and where an attempt that matches it is stopped),
//! attempts as they come to their request or their response, and what somebody
//! decides about each. Out: the decision, to the attempt that waits for it, and
//! word of both to whoever follows.
//!
//! Rules come first, in either phase: what is held is what would be told, the
//! upstream's or a rule's, and a decision that changes it takes the rule's
//! place under the name [`BY_HAND`]. A rule that answers or breaks off in the
//! request phase leaves nothing to hold at the response.
//!
//! Nothing is held for ever: an attempt goes on as it would have, untouched,
//! once its intercept's time is over, once the intercept is withdrawn, and when
//! the instance ends; and a client that leaves takes its attempt with it. Past
//! [`MAX_HELD`] attempts pass, and are counted. While there is no intercept, an
//! attempt costs one look at a flag.
mod edit;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
pub(super) use edit::outcome;
pub use edit::{Edit, EditError};
use tokio::sync::{broadcast, oneshot};

use crate::{
    flow::{
        Attempt, Clock, Content, Moment,
        filter::{Filter, View},
    },
    rules::{Phase, Ruling},
};

/// What stands in a rule's place where a person has decided.
pub const BY_HAND: &str = "by hand";
/// Intercepts in force at once.
pub const MAX_INTERCEPTS: usize = 64;
/// Attempts held at once.
pub const MAX_HELD: usize = 256;
/// Bytes of bodies of held attempts: past it, attempts are held by their heads.
const MAX_BODIES: usize = 64 << 20;
/// How long an attempt is held where nobody says otherwise, and at most.
pub const MAX_WAIT: Duration = Duration::from_secs(5 * 60);
pub const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);
/// Words that a slow follower may be behind.
const WORDS: usize = 1024;

/// Where attempts are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Before the upstream sees the request.
    Request,
    /// Once the response has come, before the client sees it.
    Response,
    Both,
}

impl At {
    fn includes(self, phase: Phase) -> bool {
        match self {
            At::Request => phase == Phase::Request,
            At::Response => phase == Phase::Response,
            At::Both => true,
        }
    }
}

/// What somebody wants held.
#[derive(Debug)]
pub struct Intercept {
    pub id: u64,
    pub filter: Filter,
    /// As it was typed.
    pub text: String,
    pub at: At,
    pub max_wait: Duration,
    /// It is over after so many.
    pub count: Option<u64>,
    held: AtomicU64,
}

impl Intercept {
    /// How many attempts it has held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// One more; false if it has had all that it wanted.
    fn take(&self) -> bool {
        let most = self.count.unwrap_or(u64::MAX);
        let next = |held: u64| (held < most).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn is_spent(&self) -> bool {
        self.count.is_some_and(|count| self.held() >= count)
    }
}

/// An attempt that waits.
#[derive(Debug)]
pub struct Held {
    pub id: u64,
    pub intercept: u64,
    pub phase: Phase,
    pub since: Moment,
    /// When it goes on by itself.
    pub until: Moment,
    /// As it was then.
    pub attempt: Attempt,
    /// What rules would have it told.
    pub ruling: Option<Ruling>,
}

impl Held {
    /// The body that is held with the head, in this phase.
    pub fn content(&self) -> &Content {
        match self.phase {
            Phase::Request => &self.attempt.request_content,
            Phase::Response => &self.attempt.response_content,
        }
    }
}

/// What becomes of a held attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It goes on, with these changes; the default is none.
    Resume(Edit),
    /// At the request: the client is told this, and the upstream nothing.
    Answer(Edit),
    /// It is broken off: reset, or closed.
    Drop { close: bool },
}

impl Decision {
    /// What followers are told of it.
    fn how(&self) -> How {
        match self {
            Decision::Resume(edit) if edit.is_empty() => How::Resumed,
            Decision::Resume(_) => How::Changed,
            Decision::Answer(_) => How::Answered,
            Decision::Drop { .. } => How::Dropped,
        }
    }
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Resumed,
    Changed,
    Answered,
    Dropped,
    /// The client went away.
    Left,
    /// Nobody has decided in time.
    Late,
    /// The intercept was withdrawn.
    Off,
    /// The instance ends.
    Ended,
}

impl How {
    pub const ALL: [How; 8] =
        [How::Resumed, How::Changed, How::Answered, How::Dropped, How::Left, How::Late, How::Off, How::Ended];

    pub fn name(self) -> &'static str {
        match self {
            How::Resumed => "resumed",
            How::Changed => "changed",
            How::Answered => "answered",
            How::Dropped => "dropped",
            How::Left => "left",
            How::Late => "late",
            How::Off => "off",
            How::Ended => "ended",
        }
    }
}

/// What followers are told.
#[derive(Clone, Debug)]
pub enum Word {
    Held(Arc<Held>),
    Released {
        held: Arc<Held>,
        how: How,
        at: Moment,
    },
    /// It holds nothing more.
    Over(u64),
    /// Nothing is held any more, and these were the last words.
    End,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    #[error("no attempt with the number {0} is held; `retryscope held` lists those that are")]
    NotHeld(u64),
    #[error("there is no intercept with the number {0}; `retryscope intercept --list` lists them")]
    NoIntercept(u64),
    #[error("there are {MAX_INTERCEPTS} intercepts, which is the most; `retryscope intercept --off ID` removes one")]
    TooMany,
    #[error("the instance is ending: nothing is held any more")]
    Closed,
    #[error(transparent)]
    Edit(#[from] EditError),
}

#[derive(Debug)]
struct Waiting {
    held: Arc<Held>,
    decide: oneshot::Sender<Decision>,
}

#[derive(Debug, Default)]
struct State {
    last_intercept: u64,
    last_held: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Bytes of the bodies of those.
    bodies: usize,
    closed: bool,
}

/// The intercepts of an instance, and what they hold.
#[derive(Debug)]
pub struct Holds {
    /// There is an intercept.
    watched: AtomicBool,
    intercepts: ArcSwap<Vec<Arc<Intercept>>>,
    state: Mutex<State>,
    words: broadcast::Sender<Word>,
    clock: Clock,
}

impl Holds {
    pub fn new(clock: Clock) -> Self {
        Self {
            watched: AtomicBool::new(false),
            intercepts: ArcSwap::default(),
            state: Mutex::default(),
            words: broadcast::Sender::new(WORDS),
            clock,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the list; to be called with the state's lock held, so that
    /// changes never miss one another.
    fn put(&self, intercepts: Vec<Arc<Intercept>>) {
        self.watched.store(!intercepts.is_empty(), Ordering::Relaxed);
        self.intercepts.store(Arc::new(intercepts));
    }

    /// Puts an intercept in force, from the next attempt on.
    pub fn add(
        &self,
        (filter, text): (Filter, String),
        at: At,
        max_wait: Duration,
        count: Option<u64>,
    ) -> Result<Arc<Intercept>, HoldError> {
        let mut state = self.state();
        if state.closed {
            return Err(HoldError::Closed);
        }
        let mut intercepts = Vec::clone(&self.intercepts.load());
        if intercepts.len() >= MAX_INTERCEPTS {
            return Err(HoldError::TooMany);
        }
        state.last_intercept += 1;
        let id = state.last_intercept;
        let max_wait = max_wait.min(LONGEST_WAIT);
        let added = Arc::new(Intercept { id, filter, text, at, max_wait, count, held: AtomicU64::new(0) });
        intercepts.push(Arc::clone(&added));
        self.put(intercepts);
        Ok(added)
    }

    /// Withdraws an intercept. What it holds goes on untouched; says how many
    /// those were.
    pub fn remove(&self, id: u64) -> Result<usize, HoldError> {
        let mut state = self.state();
        let held = |state: &State| -> Vec<u64> {
            let mine = state.waiting.values().filter(|waiting| waiting.held.intercept == id);
            mine.map(|waiting| waiting.held.id).collect()
        };
        let there = self.withdraw(id);
        let held = held(&state);
        if !there && held.is_empty() {
            return Err(HoldError::NoIntercept(id));
        }
        for id in &held {
            self.let_go(&mut state, *id, Decision::Resume(Edit::default()), How::Off);
        }
        Ok(held.len())
    }

    /// Takes it off the list, with the state's lock held.
    fn withdraw(&self, id: u64) -> bool {
        let mut intercepts = Vec::clone(&self.intercepts.load());
        let before = intercepts.len();
        intercepts.retain(|intercept| intercept.id != id);
        let there = intercepts.len() < before;
        if there {
            self.put(intercepts);
            let _ = self.words.send(Word::Over(id));
        }
        there
    }

    /// Lets go of everything; from now on nothing is held.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.put(Vec::new());
        let held: Vec<u64> = state.waiting.keys().copied().collect();
        for id in held {
            self.let_go(&mut state, id, Decision::Resume(Edit::default()), How::Ended);
        }
        let _ = self.words.send(Word::End);
    }

    pub fn intercepts(&self) -> Vec<Arc<Intercept>> {
        Vec::clone(&self.intercepts.load())
    }

    /// Those that wait, the longest first.
    pub fn waiting(&self) -> Vec<Arc<Held>> {
        self.state().waiting.values().map(|waiting| Arc::clone(&waiting.held)).collect()
    }

    pub fn get(&self, id: u64) -> Result<Arc<Held>, HoldError> {
        let state = self.state();
        state.waiting.get(&id).map(|waiting| Arc::clone(&waiting.held)).ok_or(HoldError::NotHeld(id))
    }

    /// Those that wait now, and word of everything from then on.
    pub fn follow(&self) -> (Vec<Arc<Held>>, broadcast::Receiver<Word>) {
        // Words are sent with the lock held: none is missed, and none comes twice.
        let state = self.state();
        let waiting = state.waiting.values().map(|waiting| Arc::clone(&waiting.held)).collect();
        (waiting, self.words.subscribe())
    }

    /// Decides about a held attempt.
    pub fn decide(&self, id: u64, decision: Decision) -> Result<How, HoldError> {
        let mut state = self.state();
        let held = &state.waiting.get(&id).ok_or(HoldError::NotHeld(id))?.held;
        edit::check(held, &decision)?;
        let how = decision.how();
        if self.let_go(&mut state, id, decision, how) { Ok(how) } else { Err(HoldError::NotHeld(id)) }
    }

    /// False where it no longer waits.
    fn let_go(&self, state: &mut State, id: u64, decision: Decision, how: How) -> bool {
        let Some(Waiting { held, decide }) = state.waiting.remove(&id) else { return false };
        state.bodies = state.bodies.saturating_sub(size(&held.attempt));
        // Who no longer listens has left, and says so no more.
        let heard = decide.send(decision).is_ok();
        let how = if heard { how } else { How::Left };
        let _ = self.words.send(Word::Released { held, how, at: self.clock.now() });
        heard
    }

    /// The one thing that every attempt is asked.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Whether somebody may want the attempt held, in this phase or by what is
    /// read in it, so that its body has to be there.
    pub(super) fn wants_body(&self, phase: Phase, attempt: &Attempt) -> bool {
        let intercepts = self.intercepts.load();
        let view = View::new(attempt);
        let wants = |intercept: &Arc<Intercept>| {
            let here = intercept.at.includes(phase) && intercept.filter.without_body(&view) != Some(false);
            here || (phase == Phase::Request
                && intercept.at.includes(Phase::Response)
                && intercept.filter.wants_request_body(&view))
        };
        intercepts.iter().any(wants) && self.state().bodies < MAX_BODIES
    }

    /// Holds an attempt that somebody wants held.
    pub(super) fn hold(self: &Arc<Self>, phase: Phase, attempt: &Attempt, ruling: Option<&Ruling>) -> Asked {
        let intercepts = self.intercepts.load();
        let view = View::new(attempt);
        let wants = |intercept: &&Arc<Intercept>| {
            intercept.at.includes(phase) && !intercept.is_spent() && intercept.filter.matches_view(&view)
        };
        let Some(intercept) = intercepts.iter().find(wants) else { return Asked::Unwanted };
        let mut state = self.state();
        if state.closed {
            return Asked::Unwanted;
        }
        if state.waiting.len() >= MAX_HELD {
            return Asked::Full;
        }
        if !intercept.take() {
            return Asked::Unwanted;
        }
        state.last_held += 1;
        let id = state.last_held;
        let since = self.clock.now();
        let wait = u64::try_from(intercept.max_wait.as_nanos()).unwrap_or(u64::MAX);
        let held = Arc::new(Held {
            id,
            intercept: intercept.id,
            phase,
            since,
            until: Moment(since.0.saturating_add(wait)),
            attempt: attempt.clone(),
            ruling: ruling.cloned(),
        });
        let (decide, decided) = oneshot::channel();
        state.bodies += size(attempt);
        state.waiting.insert(id, Waiting { held: Arc::clone(&held), decide });
        let _ = self.words.send(Word::Held(held));
        if intercept.is_spent() {
            self.withdraw(intercept.id);
        }
        Asked::Held(Hold { holds: Arc::clone(self), id, since, wait: intercept.max_wait, decided })
    }
}

/// What a held attempt keeps in memory that would otherwise be gone.
fn size(attempt: &Attempt) -> usize {
    [&attempt.request_content, &attempt.response_content]
        .into_iter()
        .map(|content| if let Content::Whole(bytes) = content { bytes.len() } else { 0 })
        .sum()
}

/// Whether an attempt is held.
pub(super) enum Asked {
    Held(Hold),
    Unwanted,
    /// Somebody wants it, and too many are.
    Full,
}

/// An attempt's own end of its wait. Dropped before the wait is over, it says
/// that the client has left.
#[derive(Debug)]
pub(super) struct Hold {
    holds: Arc<Holds>,
    id: u64,
    pub(super) since: Moment,
    wait: Duration,
    decided: oneshot::Receiver<Decision>,
}

impl Hold {
    /// Waits for a decision, at most for the intercept's time.
    pub(super) async fn decided(&mut self) -> Decision {
        let untouched = || Decision::Resume(Edit::default());
        tokio::select! {
            biased;
            decision = &mut self.decided => decision.unwrap_or_else(|_| untouched()),
            () = tokio::time::sleep(self.wait) => {
                let mut state = self.holds.state();
                self.holds.let_go(&mut state, self.id, untouched(), How::Late);
                drop(state);
                // Somebody may have been faster.
                self.decided.try_recv().unwrap_or_else(|_| untouched())
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.decided.close();
        let mut state = self.holds.state();
        self.holds.let_go(&mut state, self.id, Decision::Resume(Edit::default()), How::Left);
    }
}
