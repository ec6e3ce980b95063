//! The rules in force: seen, added, removed, switched.
use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Shared,
    extract::{Absent, Given, Named, Problem, Wrong, WrongBody},
};
use crate::{
    control::{Added, Changed, CheckedRule, Controlled, NewRule, RulesView, Switch},
    rules::{RuleErrors, RuleSet},
};

pub(super) fn routes() -> OpenApiRouter<Arc<Controlled>> {
    OpenApiRouter::new()
        .routes(routes!(rules, add))
        .routes(routes!(check, remove_check))
        .routes(routes!(remove))
        .routes(routes!(switch))
        .routes(routes!(switch_all))
}

fn changed(rules: Option<usize>, name: &str) -> Result<Json<Changed>, Problem> {
    let unknown = || format!("there is no rule named \"{name}\"; `retryscope rules list` shows the names");
    rules.map(|rules| Json(Changed { rules })).ok_or_else(|| Problem::absent(unknown()))
}

fn broken(errors: &RuleErrors) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, errors.to_string())
}

/// The rules in force and what they have done.
#[utoipa::path(get, path = "/v1/rules", responses((status = 200, body = RulesView), Wrong))]
async fn rules(State(it): Shared) -> Json<RulesView> {
    Json(it.rules())
}

/// Adds a rule after those that are there; it acts from the next attempt on.
#[utoipa::path(
    post,
    path = "/v1/rules",
    request_body = NewRule,
    responses((status = 201, body = Added), WrongBody)
)]
async fn add(State(it): Shared, Given(new): Given<NewRule>) -> Result<(StatusCode, Json<Added>), Problem> {
    let mut name = String::new();
    it.edit(|set| {
        let (set, given) = set.with_added(&new.rule)?;
        name = given;
        Ok(set)
    })
    .map_err(|errors| broken(&errors))?;
    Ok((StatusCode::CREATED, Json(Added { name })))
}

/// Says whether a rule could be added, and changes nothing.
#[utoipa::path(
    post,
    path = "/v1/rules/check",
    request_body = NewRule,
    responses((status = 200, body = CheckedRule), WrongBody)
)]
async fn check(State(it): Shared, Given(new): Given<NewRule>) -> Result<Json<CheckedRule>, Problem> {
    let mut checked = None;
    // What is refused changes nothing.
    let _ = it.edit(|set| {
        checked = Some(set.with_added(&new.rule));
        Err::<RuleSet, ()>(())
    });
    match checked {
        Some(Ok((set, name))) => {
            let rule = set.iter().last().map(|entry| entry.rule.text.clone()).unwrap_or_default();
            Ok(Json(CheckedRule { name, rule }))
        }
        Some(Err(errors)) => Err(broken(&errors)),
        None => Err(Problem::fault("the rules could not be seen")),
    }
}

/// Removes a rule.
#[utoipa::path(
    delete,
    path = "/v1/rules/{name}",
    params(("name" = String, Path, description = "The rule's name.")),
    responses((status = 200, body = Changed), Wrong, Absent)
)]
async fn remove(State(it): Shared, Named(name): Named<String>) -> Result<Json<Changed>, Problem> {
    changed(it.edit(|set| set.without(&name).ok_or(())).ok(), &name)
}

/// Removes the rule of this name, which would otherwise be taken for a check.
#[utoipa::path(
    delete,
    path = "/v1/rules/check",
    responses((status = 200, body = Changed), Wrong, Absent)
)]
async fn remove_check(it: Shared) -> Result<Json<Changed>, Problem> {
    remove(it, Named("check".into())).await
}

/// Switches a rule off or on.
#[utoipa::path(
    put,
    path = "/v1/rules/{name}/enabled",
    params(("name" = String, Path, description = "The rule's name.")),
    request_body = Switch,
    responses((status = 200, body = Changed), WrongBody, Absent)
)]
async fn switch(
    State(it): Shared,
    Named(name): Named<String>,
    Given(to): Given<Switch>,
) -> Result<Json<Changed>, Problem> {
    changed(it.edit(|set| set.switched(&name, to.enabled).ok_or(())).ok(), &name)
}

/// Switches all rules off or on.
#[utoipa::path(
    put,
    path = "/v1/enabled",
    request_body = Switch,
    responses((status = 200, body = Changed), WrongBody)
)]
async fn switch_all(State(it): Shared, Given(to): Given<Switch>) -> Result<Json<Changed>, Problem> {
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
