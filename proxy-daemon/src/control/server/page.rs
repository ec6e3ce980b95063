//! Where the page is, for whoever may change things here: who has its address
//! may do so there. So it is asked for by POST, and the page itself does not
//! tell it.
use std::sync::Arc;

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Shared,
    extract::{Absent, Problem, Wrong},
};
use crate::control::{Controlled, PageAddress};

pub(super) fn routes() -> OpenApiRouter<Arc<Controlled>> {
    OpenApiRouter::new().routes(routes!(page))
}

/// The page's address with its token. Of the control socket alone.
#[utoipa::path(post, path = "/v1/page", responses((status = 200, body = PageAddress), Wrong, Absent))]
async fn page(State(it): Shared) -> Result<Json<PageAddress>, Problem> {
    let none = "this instance serves no page; start it with --page (a daemon: `page` in its configuration)";
    match &it.page {
        Some(url) => Ok(Json(PageAddress { url: url.0.clone() })),
        None => Err(Problem::absent(none)),
    }
}
