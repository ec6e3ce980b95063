//! Attempts that wait for a person: what holds them, what is held, and what
//! becomes of it.
use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Shared,
    extract::{Absent, Given, Named, Problem, Wrong, WrongBody},
};
use crate::{
    control::{
        Controlled, HeldInFull, HeldList, HeldView, HoldEvent, InterceptView, Intercepts, NewIntercept, Over, Refused,
        Released, Skipped, Verdict, Withdrawn,
    },
    flow::{Clock, filter::Filter},
    proxy::holds::{Held, HoldError, Intercept, LONGEST_WAIT, MAX_WAIT, Word},
};

/// The longest decision, in bytes: a body of 1 MiB, however it is escaped.
const MAX_VERDICT: usize = 8 << 20;

pub(super) fn routes() -> OpenApiRouter<Arc<Controlled>> {
    let one = OpenApiRouter::new().routes(routes!(one, decide)).layer(DefaultBodyLimit::max(MAX_VERDICT));
    OpenApiRouter::new()
        .routes(routes!(intercepts, intercept))
        .routes(routes!(bound))
        .routes(routes!(withdraw))
        .routes(routes!(held))
        .routes(routes!(follow))
        .merge(one)
}

fn wrong(error: &HoldError) -> Problem {
    let status = match error {
        HoldError::NotHeld(_) | HoldError::NoIntercept(_) => StatusCode::NOT_FOUND,
        HoldError::TooMany | HoldError::Closed => StatusCode::CONFLICT,
        HoldError::Edit(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Problem::new(status, error.to_string())
}

fn meaningless(error: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error)
}

/// What has attempts wait for a person.
#[utoipa::path(get, path = "/v1/intercepts", responses((status = 200, body = Intercepts), Wrong))]
async fn intercepts(State(it): Shared) -> Json<Intercepts> {
    let intercepts = it.account.holds.intercepts();
    Json(Intercepts { intercepts: intercepts.iter().map(|it| InterceptView::of(it)).collect() })
}

/// Has attempts that a filter takes wait, from the next on.
#[utoipa::path(
    post,
    path = "/v1/intercepts",
    request_body = NewIntercept,
    responses(
        (status = 201, body = InterceptView),
        WrongBody,
        (status = 409, description = "There are too many already, or the instance ends.", body = Refused),
    )
)]
async fn intercept(
    State(it): Shared,
    Given(new): Given<NewIntercept>,
) -> Result<(StatusCode, Json<InterceptView>), Problem> {
    let added = put_in_force(&it, new)?;
    Ok((StatusCode::CREATED, Json(InterceptView::of(&added))))
}

fn put_in_force(it: &Controlled, new: NewIntercept) -> Result<Arc<Intercept>, Problem> {
    let filter = Filter::parse(&new.filter).map_err(|error| meaningless(error.render(&new.filter).trim_end()))?;
    let wait = new.max_wait_ms.map_or(MAX_WAIT, Duration::from_millis);
    if wait.is_zero() || wait > LONGEST_WAIT {
        let longest = LONGEST_WAIT.as_secs() / 60;
        return Err(meaningless(format!("an attempt is held for more than 0 s and at most {longest} minutes")));
    }
    if new.count == Some(0) {
        return Err(meaningless("an intercept that holds 0 attempts does nothing"));
    }
    it.account.holds.add((filter, new.filter), new.at.into(), wait, new.count).map_err(|error| wrong(&error))
}

/// Has attempts that a filter takes wait for as long as the answer is read.
///
/// The answer is that of `/v1/held/follow`, with an event `intercept` first,
/// which has the shape of `/v1/intercepts`. Once its reader is gone, however
/// that comes, the intercept ends, and what it holds goes on untouched.
#[utoipa::path(
    post,
    path = "/v1/intercepts/follow",
    request_body = NewIntercept,
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        WrongBody,
        (status = 409, description = "There are too many already, or the instance ends.", body = Refused),
    )
)]
async fn bound(
    State(it): Shared,
    Given(new): Given<NewIntercept>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    // Followed first: no word of it is missed.
    let mut told = Telling::begin(&it);
    let added = put_in_force(&it, new)?;
    told.first = Some(InterceptView::of(&added));
    told.bound = Some(Bound { it, id: added.id });
    Ok(told.stream())
}

/// An intercept that ends with whoever follows it.
struct Bound {
    it: Arc<Controlled>,
    id: u64,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.it.account.holds.remove(self.id);
    }
}

/// Ends one: what it holds goes on untouched.
#[utoipa::path(
    delete,
    path = "/v1/intercepts/{id}",
    params(("id" = u64, Path, description = "The intercept's number.")),
    responses((status = 200, body = Withdrawn), Wrong, Absent)
)]
async fn withdraw(State(it): Shared, Named(id): Named<u64>) -> Result<Json<Withdrawn>, Problem> {
    let released = it.account.holds.remove(id).map_err(|error| wrong(&error))?;
    Ok(Json(Withdrawn { released }))
}

/// Attempts that wait, the longest first.
#[utoipa::path(get, path = "/v1/held", responses((status = 200, body = HeldList), Wrong))]
async fn held(State(it): Shared) -> Json<HeldList> {
    let account = &it.account;
    Json(HeldList { held: account.holds.waiting().iter().map(|held| HeldView::of(held, account.clock)).collect() })
}

/// One of them in full.
#[utoipa::path(
    get,
    path = "/v1/held/{id}",
    params(("id" = u64, Path, description = "The held attempt's number.")),
    responses((status = 200, body = HeldInFull), Wrong, Absent)
)]
async fn one(State(it): Shared, Named(id): Named<u64>) -> Result<Json<HeldInFull>, Problem> {
    let held = it.account.holds.get(id).map_err(|error| wrong(&error))?;
    Ok(Json(HeldInFull::of(&held, it.account.clock)))
}

/// Lets a held attempt go: as it is or changed, answered in the upstream's
/// place, or broken off. What cannot be done leaves it held.
#[utoipa::path(
    post,
    path = "/v1/held/{id}",
    params(("id" = u64, Path, description = "The held attempt's number.")),
    request_body = Verdict,
    responses((status = 200, body = Released), WrongBody, Absent)
)]
async fn decide(
    State(it): Shared,
    Named(id): Named<u64>,
    Given(verdict): Given<Verdict>,
) -> Result<Json<Released>, Problem> {
    let holds = &it.account.holds;
    let held = holds.get(id).map_err(|error| wrong(&error))?;
    let decision = verdict.decision().map_err(meaningless)?;
    let how = holds.decide(id, decision).map_err(|error| wrong(&error))?;
    Ok(Json(Released::of(&held, how, it.account.clock.now())))
}

/// What waits now, then what comes to wait and what goes on, as server-sent
/// events.
///
/// An event `held` for each attempt that waits, with the shape of
/// `/v1/held`; `released`, with how and after how long; `over`, with
/// `{"intercept": ID}`, where one holds nothing more that comes; `skipped`,
/// with `{"skipped": N}`, where N events came faster than they were read; and
/// `end` when the instance ends.
#[utoipa::path(
    get,
    path = "/v1/held/follow",
    responses((status = 200, content_type = "text/event-stream", body = String), Wrong)
)]
async fn follow(State(it): Shared) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Telling::begin(&it).stream()
}

/// What a follower is still to be told.
struct Telling {
    first: Option<InterceptView>,
    waiting: std::vec::IntoIter<Arc<Held>>,
    /// Until the end.
    words: Option<Receiver<Word>>,
    clock: Clock,
    bound: Option<Bound>,
}

impl Telling {
    fn begin(it: &Controlled) -> Self {
        let (waiting, words) = it.account.holds.follow();
        let clock = it.account.clock;
        Self { first: None, waiting: waiting.into_iter(), words: Some(words), clock, bound: None }
    }

    fn stream(self) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let events = stream::unfold(self, |mut told| async move {
            let event = told.next().await?;
            Some((Ok(event), told))
        });
        Sse::new(events).keep_alive(KeepAlive::default())
    }

    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(sent(&HoldEvent::Intercept(first)));
        }
        let held = |held: &Held| HoldEvent::Held(Box::new(HeldView::of(held, self.clock)));
        if let Some(waiting) = self.waiting.next() {
            return Some(sent(&held(&waiting)));
        }
        let event = match self.words.as_mut()?.recv().await {
            Ok(Word::Held(it)) => held(&it),
            Ok(Word::Released { held, how, at }) => HoldEvent::Released(Released::of(&held, how, at)),
            Ok(Word::Over(intercept)) => HoldEvent::Over(Over { intercept }),
            Err(RecvError::Lagged(skipped)) => HoldEvent::Skipped(Skipped { skipped }),
            Ok(Word::End) | Err(RecvError::Closed) => {
                self.words = None;
                return Some(Event::default().event("end").data("{}"));
            }
        };
        Some(sent(&event))
    }
}

fn sent(event: &HoldEvent) -> Event {
    let (name, data) = match event {
        HoldEvent::Intercept(intercept) => ("intercept", serde_json::to_string(intercept)),
        HoldEvent::Held(held) => ("held", serde_json::to_string(held)),
        HoldEvent::Released(released) => ("released", serde_json::to_string(released)),
        HoldEvent::Over(over) => ("over", serde_json::to_string(over)),
        HoldEvent::Skipped(skipped) => ("skipped", serde_json::to_string(skipped)),
    };
    Event::default().event(name).data(data.unwrap_or_default())
}
