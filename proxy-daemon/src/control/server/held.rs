//! Attempts that wait for a person: what holds them, what is held, and what
//! becomes of it.
use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{delete, get},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::error::RecvError;

use super::{Shared, refused};
use crate::{
    control::{
        Controlled, HeldInFull, HeldList, HeldView, HoldEvent, InterceptView, Intercepts, NewIntercept, Released,
        Verdict, Withdrawn,
    },
    flow::filter::Filter,
    proxy::holds::{HoldError, LONGEST_WAIT, MAX_WAIT, Word},
};

/// The longest decision, in bytes: a body of 1 MiB, however it is escaped.
const MAX_VERDICT: usize = 8 << 20;

pub(super) fn routes() -> Router<Arc<Controlled>> {
    Router::new()
        .route("/v1/intercepts", get(intercepts).post(intercept))
        .route("/v1/intercepts/{id}", delete(withdraw))
        .route("/v1/held", get(held))
        .route("/v1/held/follow", get(follow))
        .route("/v1/held/{id}", get(one).post(decide).layer(DefaultBodyLimit::max(MAX_VERDICT)))
}

fn wrong(error: &HoldError) -> Response {
    let status = match error {
        HoldError::NotHeld(_) | HoldError::NoIntercept(_) => StatusCode::NOT_FOUND,
        HoldError::TooMany | HoldError::Closed => StatusCode::CONFLICT,
        HoldError::Edit(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    refused(status, error)
}

async fn intercepts(State(it): Shared) -> Response {
    let intercepts = it.account.holds.intercepts();
    Json(Intercepts { intercepts: intercepts.iter().map(|it| InterceptView::of(it)).collect() }).into_response()
}

async fn intercept(State(it): Shared, Json(new): Json<NewIntercept>) -> Response {
    let filter = match Filter::parse(&new.filter) {
        Ok(filter) => filter,
        Err(error) => return refused(StatusCode::UNPROCESSABLE_ENTITY, &error.render(&new.filter).trim_end()),
    };
    let wait = new.max_wait_ms.map_or(MAX_WAIT, Duration::from_millis);
    let longest = LONGEST_WAIT.as_secs() / 60;
    if wait.is_zero() || wait > LONGEST_WAIT {
        let error = format!("an attempt is held for more than 0 s and at most {longest} minutes");
        return refused(StatusCode::UNPROCESSABLE_ENTITY, &error);
    }
    if new.count == Some(0) {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, &"an intercept that holds 0 attempts does nothing");
    }
    match it.account.holds.add((filter, new.filter), new.at.into(), wait, new.count) {
        Ok(added) => (StatusCode::CREATED, Json(InterceptView::of(&added))).into_response(),
        Err(error) => wrong(&error),
    }
}

async fn withdraw(State(it): Shared, Path(id): Path<u64>) -> Response {
    match it.account.holds.remove(id) {
        Ok(released) => Json(Withdrawn { released }).into_response(),
        Err(error) => wrong(&error),
    }
}

async fn held(State(it): Shared) -> Response {
    let account = &it.account;
    let held = account.holds.waiting().iter().map(|held| HeldView::of(held, account.clock)).collect();
    Json(HeldList { held }).into_response()
}

async fn one(State(it): Shared, Path(id): Path<u64>) -> Response {
    match it.account.holds.get(id) {
        Ok(held) => Json(HeldInFull::of(&held, it.account.clock)).into_response(),
        Err(error) => wrong(&error),
    }
}

async fn decide(State(it): Shared, Path(id): Path<u64>, Json(verdict): Json<Verdict>) -> Response {
    let decision = match verdict.decision() {
        Ok(decision) => decision,
        Err(error) => return refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
    };
    let held = it.account.holds.get(id);
    let decided = held.and_then(|held| Ok((it.account.holds.decide(id, decision)?, held)));
    match decided {
        Ok((how, held)) => Json(Released::of(&held, how, it.account.clock.now())).into_response(),
        Err(error) => wrong(&error),
    }
}

/// What waits now, then everything that begins or ends to.
async fn follow(State(it): Shared) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let clock = it.account.clock;
    let (waiting, words) = it.account.holds.follow();
    let waiting = waiting.into_iter().map(move |held| HoldEvent::Held(Box::new(HeldView::of(&held, clock))));
    let words = stream::unfold(words, move |mut words| async move {
        let event = match words.recv().await {
            Ok(Word::Held(held)) => HoldEvent::Held(Box::new(HeldView::of(&held, clock))),
            Ok(Word::Released { held, how, at }) => HoldEvent::Released(Released::of(&held, how, at)),
            Ok(Word::Over(id)) => HoldEvent::Over(id),
            Err(RecvError::Lagged(missed)) => HoldEvent::Skipped(missed),
            Ok(Word::End) | Err(RecvError::Closed) => return None,
        };
        Some((event, words))
    });
    let events = stream::iter(waiting).chain(words).map(|event| Ok(sent(&event)));
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn sent(event: &HoldEvent) -> Event {
    let (name, data) = match event {
        HoldEvent::Held(held) => ("held", serde_json::to_string(held)),
        HoldEvent::Released(released) => ("released", serde_json::to_string(released)),
        HoldEvent::Over(id) => ("over", serde_json::to_string(id)),
        HoldEvent::Skipped(events) => ("skipped", serde_json::to_string(events)),
    };
    Event::default().event(name).data(data.unwrap_or_default())
}
