//! The API's server: the socket, and the routes of each idea in a file of its
//! own, which [`Server::start`] puts together.
mod attempts;
mod extract;
mod held;
mod instance;
mod page;
mod rules;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
};
use tokio::{net::UnixListener, task::JoinHandle};
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::{
    Access, Controlled, FOLDER, Refused, SOCKET,
    access::{Peer, authorise},
};

/// The longest request, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Opens the socket below an instance's folder, where only root gets in.
pub fn bind(folder: &Path) -> io::Result<UnixListener> {
    let folder = folder.join(FOLDER);
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    UnixListener::bind(folder.join(SOCKET))
}

/// Opens a daemon's socket: whoever may connect is told apart there.
pub fn bind_at(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The API being served; it ends when this is dropped.
#[derive(Debug)]
pub struct Server(JoinHandle<()>);

impl Server {
    pub fn start(listener: UnixListener, controlled: Arc<Controlled>, access: Access) -> Self {
        let router =
            router(routes().merge(page::routes()), controlled).layer(middleware::from_fn_with_state(access, authorise));
        Self(tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<Peer>();
            if let Err(error) = axum::serve(listener, service).await {
                tracing::warn!(%error, "the control socket is no longer served");
            }
        }))
    }
}

/// What every way to the API leads to. Whoever serves it says who may ask.
pub fn api(controlled: &Arc<Controlled>) -> Router {
    router(routes(), Arc::clone(controlled))
}

fn router(routes: OpenApiRouter<Arc<Controlled>>, controlled: Arc<Controlled>) -> Router {
    let (router, _) = routes.split_for_parts();
    router
        .fallback(unknown)
        .method_not_allowed_fallback(unable)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(controlled)
}

/// Every route, and its description.
fn routes() -> OpenApiRouter<Arc<Controlled>> {
    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .merge(instance::routes())
        .merge(rules::routes())
        .merge(attempts::routes())
        .merge(held::routes())
}

/// The description of all routes (OpenAPI 3.1).
pub fn document() -> OpenApi {
    routes().merge(page::routes()).into_openapi()
}

/// retryscope's local API: what its own views use. Within v1, fields and
/// routes are added, never renamed or given another meaning. Every refusal is
/// JSON with one sentence in `error`.
#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "retryscope",
    version = "1",
    license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
))]
struct ApiDoc;

async fn unknown(uri: Uri) -> Response {
    refused(StatusCode::NOT_FOUND, &format!("there is nothing at {}; /v1/openapi.json tells what there is", uri.path()))
}

async fn unable(method: Method, uri: Uri) -> Response {
    refused(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{method} means nothing at {}; /v1/openapi.json tells what does", uri.path()),
    )
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What every handler works on.
type Shared = State<Arc<Controlled>>;

/// A refusal, in a sentence.
pub fn refused(status: StatusCode, error: &impl ToString) -> Response {
    (status, Json(Refused { error: error.to_string() })).into_response()
}

#[cfg(test)]
mod tests {
    /// What is documented is what the handlers are.
    #[test]
    fn the_description_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let document = serde_json::to_value(super::document()).expect("JSON");
        let text = format!("{document:#}\n");
        if std::env::var_os("RETRYSCOPE_BLESS").is_some() {
            return std::fs::write(path, text).expect("writing");
        }
        let kept = std::fs::read_to_string(path).expect("the file");
        assert!(kept == text, "run this test with RETRYSCOPE_BLESS=1 to write {path} anew");
    }
}
