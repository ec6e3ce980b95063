//! The rules in force: seen, added, removed, switched.
use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, put},
};

use super::{Shared, refused};
use crate::control::{Added, Changed, Controlled, NewRule, Switch};

pub(super) fn routes() -> Router<Arc<Controlled>> {
    Router::new()
        .route("/v1/rules", get(rules).post(add))
        .route("/v1/rules/{name}", delete(remove))
        .route("/v1/rules/{name}/enabled", put(switch))
        .route("/v1/enabled", put(switch_all))
}

fn changed(rules: Option<usize>, name: &str) -> Response {
    match rules {
        Some(rules) => Json(Changed { rules }).into_response(),
        None => refused(
            StatusCode::NOT_FOUND,
            &format!("there is no rule named \"{name}\"; `retryscope rules list` shows the names"),
        ),
    }
}

async fn rules(State(it): Shared) -> Response {
    Json(it.rules()).into_response()
}

async fn add(State(it): Shared, Json(new): Json<NewRule>) -> Response {
    let mut name = String::new();
    let added = it.edit(|set| {
        let (set, given) = set.with_added(&new.rule)?;
        name = given;
        Ok::<_, crate::rules::RuleErrors>(set)
    });
    match added {
        Ok(_) => (StatusCode::CREATED, Json(Added { name })).into_response(),
        Err(errors) => refused(StatusCode::UNPROCESSABLE_ENTITY, &errors),
    }
}

async fn remove(State(it): Shared, Path(name): Path<String>) -> Response {
    changed(it.edit(|set| set.without(&name).ok_or(())).ok(), &name)
}

async fn switch(State(it): Shared, Path(name): Path<String>, Json(to): Json<Switch>) -> Response {
    changed(it.edit(|set| set.switched(&name, to.enabled).ok_or(())).ok(), &name)
}

async fn switch_all(State(it): Shared, Json(to): Json<Switch>) -> Response {
    let switched = it.edit(|set| {
        let names: Vec<_> = set.iter().map(|entry| Arc::clone(&entry.rule.name)).collect();
        let mut set = set.clone();
        for name in names {
            set = set.switched(&name, to.enabled).ok_or(())?;
        }
        Ok::<_, ()>(set)
    });
    changed(switched.ok(), "")
}
