//! The instance itself: which it is, its report so far, what it may do, and
//! the description of all this.
use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Shared,
    extract::{Given, Problem, Wrong, WrongBody},
};
use crate::{
    control::{About, BypassWish, Controlled, Overview, Privileges, Refused, Reloaded},
    report::Report,
};

pub(super) fn routes() -> OpenApiRouter<Arc<Controlled>> {
    OpenApiRouter::new()
        .routes(routes!(instance))
        .routes(routes!(ready))
        .routes(routes!(report))
        .routes(routes!(overview))
        .routes(routes!(reload))
        .routes(routes!(bypass))
        .routes(routes!(privileges))
        .routes(routes!(openapi))
}

/// Which instance this is.
#[utoipa::path(get, path = "/v1/instance", responses((status = 200, body = About), Wrong))]
async fn instance(State(it): Shared) -> Json<About> {
    Json(it.about())
}

/// Which instance this is, once connections are redirected and served. Whoever
/// asks says how long that may take.
#[utoipa::path(get, path = "/v1/ready", responses((status = 200, body = About), Wrong))]
async fn ready(State(it): Shared) -> Json<About> {
    // The sender lives as long as this does.
    let _ = it.ready.subscribe().wait_for(|ready| *ready).await;
    Json(it.about())
}

/// The report so far. `schema-1.json` describes it in full.
#[utoipa::path(get, path = "/v1/report", responses((status = 200, body = Report), Wrong))]
async fn report(State(it): Shared) -> Json<Report> {
    Json(it.report())
}

/// The report so far, with what it says of each process, in sentences.
#[utoipa::path(get, path = "/v1/overview", responses((status = 200, body = Overview), Wrong))]
async fn overview(State(it): Shared) -> Json<Overview> {
    Json(it.overview())
}

/// Reads the rule files (a daemon: its configuration) again.
#[utoipa::path(
    post,
    path = "/v1/reload",
    responses(
        (status = 200, body = Reloaded),
        Wrong,
        (status = 422, description = "What was in force stays.", body = Refused)
    )
)]
async fn reload(State(it): Shared) -> Result<Json<Reloaded>, Problem> {
    // Reading files, and a daemon's waiting for its keeper, may take a moment.
    let reloaded = tokio::task::spawn_blocking(move || it.reload()).await.map_err(Problem::fault)?;
    reloaded.map(Json).map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

/// Lets new connections of the target go direct, or no longer.
///
/// Those under way go on, or with `now` end as they become idle. With `keep` a
/// daemon begins with it when it is started again.
#[utoipa::path(
    put,
    path = "/v1/bypass",
    request_body = BypassWish,
    responses((status = 200, body = About), WrongBody)
)]
async fn bypass(State(it): Shared, Given(wish): Given<BypassWish>) -> Result<Json<About>, Problem> {
    // What is kept is written to the disk.
    let switched = tokio::task::spawn_blocking(move || it.switch_bypass(wish)).await.map_err(Problem::fault)?;
    switched.map(Json).map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error))
}

/// The instance's processes, and what the one that serves connections is
/// refused.
#[utoipa::path(get, path = "/v1/privileges", responses((status = 200, body = Privileges), Wrong))]
async fn privileges(State(it): Shared) -> Result<Json<Privileges>, Problem> {
    tokio::task::spawn_blocking(move || it.privileges()).await.map(Json).map_err(Problem::fault)
}

/// This description.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Wrong)
)]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}
