//! `retryscope top`: a running instance on a terminal.
//!
//! In: the local API, asked a few times a second for what is shown and for
//! nothing else; keys and the mouse. Out: a screen, and what a person decides.
//!
//! [`model`] is a value that events change ([`keys`], [`Model::answered`]);
//! [`draw`] shows it; this file has the I/O. Invariants: a question is asked
//! again no sooner than [`REST`] times what its answer took, so that looking
//! costs an instance a small part of a core at most; at most one question of
//! a kind is under way; the terminal is left as it was, however this ends.
mod draw;
mod keys;
mod lane;
mod line;
mod model;
mod rates;
mod rows;
mod terminal;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crossterm::event::Event;
use nix::sys::signal::Signal;
use ratatui::layout::Rect;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    draw::{Drawn, Hit},
    model::{Answer, Effect, Model, Question, Trouble},
    terminal::{Input, Screen},
};
use super::{ViewError, edit, words};
use crate::control::{Client, ClientError, HoldAt, NewIntercept, Wanted};

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How many times what an answer took passes before the same is asked again.
const REST: u64 = 20;
/// Answers that wait to be shown.
const ANSWERS: usize = 32;

/// What came of a question, or of something that was to be done.
struct Answered {
    question: Option<Question>,
    took: Duration,
    answer: Result<Answer, Trouble>,
}

/// When the questions of a kind are asked.
#[derive(Clone, Debug, Default)]
struct Turn {
    last: Option<Question>,
    due: u64,
    busy: bool,
}

/// Shows the instance until a person has seen enough.
pub async fn run(client: Client, color: bool) -> Result<(), ViewError> {
    // What is wrong from the start is told on the terminal as it was.
    let about = client.about().await?;
    let broken = |error: std::io::Error| ViewError::new(70, format!("cannot wait for signals ({error})"));
    let mut ends = signal(SignalKind::terminate()).map_err(broken)?;
    let mut hangs = signal(SignalKind::hangup()).map_err(broken)?;
    let mut quits = signal(SignalKind::quit()).map_err(broken)?;
    let mut interrupts = signal(SignalKind::interrupt()).map_err(broken)?;
    let mut resizes = signal(SignalKind::window_change()).map_err(broken)?;
    let mut continues = signal(SignalKind::from_raw(Signal::SIGCONT as i32)).map_err(broken)?;
    let unusable = |error: std::io::Error| ViewError::new(70, format!("cannot use the terminal ({error})"));
    let input = Input::new().map_err(unusable)?;
    let mut screen = Screen::enter().map_err(unusable)?;
    let mut view = Running::new(client, color);
    view.model.answered(Answer::About(about));
    let mut ticks = tokio::time::interval(TICK);
    loop {
        view.tick();
        view.ask();
        if view.model.dirty {
            view.draw(&mut screen).map_err(unusable)?;
        }
        let events = tokio::select! {
            biased;
            _ = ends.recv() => return Ok(()),
            _ = hangs.recv() => return Ok(()),
            _ = quits.recv() => return Ok(()),
            _ = interrupts.recv() => return Ok(()),
            events = input.events() => match events {
                Ok(events) => events,
                // The terminal is gone.
                Err(_) => return Ok(()),
            },
            Some(answered) = view.answers.recv() => {
                view.take(answered);
                continue;
            }
            _ = resizes.recv() => {
                view.model.dirty = true;
                match input.come() {
                    Ok(events) => events,
                    Err(_) => return Ok(()),
                }
            }
            _ = continues.recv() => {
                screen.again().map_err(unusable)?;
                view.model.dirty = true;
                continue;
            }
            _ = ticks.tick() => continue,
        };
        for event in events {
            for effect in view.event(event) {
                match effect {
                    Effect::Quit => return Ok(()),
                    Effect::Suspend => {
                        screen.leave();
                        let _ = nix::sys::signal::raise(Signal::SIGTSTP);
                        screen.again().map_err(unusable)?;
                    }
                    Effect::Redraw => screen.again().map_err(unusable)?,
                    Effect::Edit(id) => {
                        screen.leave();
                        input.wait(true).map_err(unusable)?;
                        let edited = edit::edit(&view.client, id).await;
                        input.wait(false).map_err(unusable)?;
                        screen.again().map_err(unusable)?;
                        // A Ctrl-C in the editor was not meant for us.
                        while tokio::time::timeout(Duration::ZERO, interrupts.recv()).await.is_ok() {}
                        view.edited(id, edited);
                    }
                    effect => view.act(effect),
                }
            }
        }
    }
}

/// The model, and who speaks to the instance for it.
struct Running {
    client: Arc<Client>,
    model: Model,
    hits: Vec<(Rect, Hit)>,
    turns: [Turn; Question::KINDS],
    began: Instant,
    tell: mpsc::Sender<Answered>,
    answers: mpsc::Receiver<Answered>,
}

impl Running {
    fn new(client: Client, color: bool) -> Self {
        let (tell, answers) = mpsc::channel(ANSWERS);
        Self {
            client: Arc::new(client),
            model: Model::new(color),
            hits: Vec::new(),
            turns: std::array::from_fn(|_| Turn::default()),
            began: Instant::now(),
            tell,
            answers,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tick(&mut self) {
        let clock = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let clock = clock.get(11..19).unwrap_or_default().to_owned();
        self.model.tick(self.now(), clock);
    }

    fn draw(&mut self, screen: &mut Screen) -> std::io::Result<()> {
        let mut drawn = Drawn::default();
        screen.draw(|frame| drawn = draw::draw(&self.model, frame))?;
        self.model.place_mut().offset = drawn.offset;
        (self.model.page, self.model.lines, self.model.wide) = (drawn.page, drawn.lines, drawn.wide);
        self.hits = drawn.hits;
        self.model.dirty = false;
        Ok(())
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Key(key) => self.model.key(key),
            Event::Mouse(mouse) => self.model.mouse(mouse, &self.hits),
            Event::Paste(text) => self.model.paste(&text),
            Event::Resize(..) => {
                self.model.dirty = true;
                Vec::new()
            }
            Event::FocusGained | Event::FocusLost => Vec::new(),
        }
    }

    /// Asks what is wanted and due.
    fn ask(&mut self) {
        let now = self.now();
        for question in self.model.wants() {
            let turn = &mut self.turns[question.kind()];
            let other = turn.last.as_ref() != Some(&question);
            if turn.busy || (now < turn.due && !other) {
                continue;
            }
            turn.busy = true;
            turn.last = Some(question.clone());
            let (client, tell) = (Arc::clone(&self.client), self.tell.clone());
            tokio::spawn(async move {
                let began = Instant::now();
                let answer = asked(&client, &question).await.map_err(|error| trouble(&error));
                // Nobody is there to hear it once this has ended.
                let _ = tell.send(Answered { question: Some(question), took: began.elapsed(), answer }).await;
            });
        }
    }

    fn take(&mut self, Answered { question, took, answer }: Answered) {
        self.tick();
        if let Some(question) = &question {
            let now = self.now();
            let turn = &mut self.turns[question.kind()];
            turn.busy = false;
            let rest = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).saturating_mul(REST);
            turn.due = now.saturating_add(question.period().max(rest));
        }
        match answer {
            Ok(answer) => self.model.answered(answer),
            Err(trouble) => self.model.failed(question.as_ref(), trouble),
        }
    }

    /// Has something done, and what came of it told.
    fn act(&mut self, effect: Effect) {
        // Seen at once, and not when it would have been asked for again.
        for kind in [Question::Held, Question::Rules, Question::Intercepts] {
            self.turns[kind.kind()].due = 0;
        }
        let (client, tell) = (Arc::clone(&self.client), self.tell.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let answer = done(&client, effect).await.map_err(|error| trouble(&error));
            let _ = tell.send(Answered { question: None, took: began.elapsed(), answer }).await;
        });
    }

    fn edited(&mut self, id: u64, edited: Result<Option<crate::control::Released>, ViewError>) {
        match edited {
            Ok(Some(released)) => {
                self.model.changes.remove(&id);
                self.model.say(words::released(&released), false);
            }
            Ok(None) => self.model.say(format!("nothing was decided: #{id} stays held"), false),
            Err(error) => self.model.say(error.to_string(), true),
        }
        self.turns[Question::Held.kind()].due = 0;
    }
}

fn trouble(error: &ClientError) -> Trouble {
    match error {
        ClientError::Refused(_) | ClientError::Forbidden(_) => Trouble::Refused(error.to_string()),
        _ => Trouble::Gone(error.to_string()),
    }
}

async fn asked(client: &Client, question: &Question) -> Result<Answer, ClientError> {
    Ok(match question {
        Question::About => Answer::About(client.about().await?),
        Question::Report => Answer::Report(Box::new(client.report().await?)),
        Question::Past(past) => Answer::Past(client.timeline(&past.span(), None).await?),
        Question::Counts(filter) => {
            Answer::Counts(filter.clone(), client.timeline(&model::parts(), Some(filter)).await?)
        }
        Question::Calls(filter, limit) => {
            let wanted = Wanted { filter: filter.as_deref(), limit: Some(*limit), ..Wanted::default() };
            Answer::Calls(filter.clone(), client.calls(&wanted).await?)
        }
        Question::Attempt(id) => Answer::Attempt(Box::new(client.attempt(*id).await?)),
        Question::Held => Answer::Held(client.held().await?.held),
        Question::Hold(id) => Answer::Hold(Box::new(client.held_in_full(*id).await?)),
        Question::Intercepts => Answer::Intercepts(client.intercepts().await?),
        Question::Rules => Answer::Rules(client.rules().await?),
    })
}

async fn done(client: &Client, effect: Effect) -> Result<Answer, ClientError> {
    let told = match effect {
        Effect::Complete(text) => {
            let completed = client.complete(&text).await?;
            return Ok(Answer::Completed(text, completed));
        }
        Effect::Decide(id, verdict) => words::released(&client.decide(id, &verdict).await?),
        Effect::Intercept(filter) => {
            let new = NewIntercept { filter, at: HoldAt::Response, max_wait_ms: None, count: None };
            let added = client.intercept(&new).await?;
            format!(
                "intercept {}: attempts that match wait for you, {} at most",
                added.id,
                words::time(added.max_wait_ms as f64)
            )
        }
        Effect::Withdraw(id) => {
            let released = client.withdraw(id).await?;
            format!("intercept {id} has ended; {released} held attempts went on")
        }
        Effect::AddRule(rule) => format!("added \"{}\"; it acts from the next attempt on", client.add(&rule).await?),
        Effect::RemoveRule(name) => {
            client.remove(&name).await?;
            format!("removed \"{name}\"")
        }
        Effect::Switch(name, enabled) => {
            client.switch(&name, enabled).await?;
            format!("\"{name}\" is {} from the next attempt on", if enabled { "on" } else { "off" })
        }
        Effect::SwitchAll(enabled) => {
            client.switch_all(enabled).await?;
            format!("all rules are {} from the next attempt on", if enabled { "on" } else { "off" })
        }
        // Done where the terminal is.
        Effect::Quit | Effect::Suspend | Effect::Redraw | Effect::Edit(_) => String::new(),
    };
    Ok(Answer::Done(told))
}
