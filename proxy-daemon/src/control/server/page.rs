//! Where the page is, for whoever may change things here: who has its address
//! may do so there. So it is asked for by POST, and the page itself does not
//! tell it.
use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};

use super::{Shared, refused};
use crate::control::{Controlled, PageAddress};

pub(super) fn routes() -> Router<Arc<Controlled>> {
    Router::new().route("/v1/page", post(page))
}

async fn page(State(it): Shared) -> Response {
    match &it.page {
        Some(url) => Json(PageAddress { url: url.0.clone() }).into_response(),
        None => refused(
            StatusCode::NOT_FOUND,
            &"this instance serves no page; start it with --page (a daemon: `page` in its configuration)",
        ),
    }
}
