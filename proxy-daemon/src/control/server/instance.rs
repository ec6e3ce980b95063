//! The instance itself: which it is, its report so far, what it may do.
use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::{Shared, refused};
use crate::control::Controlled;

pub(super) fn routes() -> Router<Arc<Controlled>> {
    Router::new()
        .route("/v1/instance", get(instance))
        .route("/v1/report", get(report))
        .route("/v1/overview", get(overview))
        .route("/v1/reload", post(reload))
        .route("/v1/privileges", get(privileges))
}

async fn instance(State(it): Shared) -> Response {
    Json(it.about()).into_response()
}

async fn report(State(it): Shared) -> Response {
    Json(it.report()).into_response()
}

async fn overview(State(it): Shared) -> Response {
    Json(it.overview()).into_response()
}

async fn reload(State(it): Shared) -> Response {
    // Reading files, and a daemon's waiting for its keeper, may take a moment.
    match tokio::task::spawn_blocking(move || it.reload()).await {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(error)) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn privileges(State(it): Shared) -> Response {
    match tokio::task::spawn_blocking(move || it.privileges()).await {
        Ok(privileges) => Json(privileges).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}
