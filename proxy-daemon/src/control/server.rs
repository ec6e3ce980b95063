//! The API's server.
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path as Part, State},
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use tokio::{net::UnixListener, task::JoinHandle};

use super::{
    Access, Added, BypassWish, Changed, Controlled, FOLDER, NewRule, Refused, SOCKET, Switch,
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
        let router = Router::new()
            .route("/v1/instance", get(instance))
            .route("/v1/report", get(report))
            .route("/v1/rules", get(rules).post(add))
            .route("/v1/rules/{name}", delete(remove))
            .route("/v1/rules/{name}/enabled", put(switch))
            .route("/v1/enabled", put(switch_all))
            .route("/v1/reload", post(reload))
            .route("/v1/bypass", put(bypass))
            .route("/v1/privileges", get(privileges))
            .layer(middleware::from_fn_with_state(access, authorise))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(controlled);
        Self(tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<Peer>();
            if let Err(error) = axum::serve(listener, service).await {
                tracing::warn!(%error, "the control socket is no longer served");
            }
        }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Shared = State<Arc<Controlled>>;

pub(super) fn refused(status: StatusCode, error: &impl ToString) -> Response {
    (status, Json(Refused { error: error.to_string() })).into_response()
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

async fn instance(State(it): Shared) -> Response {
    Json(it.about()).into_response()
}

async fn report(State(it): Shared) -> Response {
    Json(it.report()).into_response()
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

async fn remove(State(it): Shared, Part(name): Part<String>) -> Response {
    changed(it.edit(|set| set.without(&name).ok_or(())).ok(), &name)
}

async fn switch(State(it): Shared, Part(name): Part<String>, Json(to): Json<Switch>) -> Response {
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

async fn reload(State(it): Shared) -> Response {
    // Reading files, and a daemon's waiting for its keeper, may take a moment.
    match tokio::task::spawn_blocking(move || it.reload()).await {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(error)) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn bypass(State(it): Shared, Json(wish): Json<BypassWish>) -> Response {
    // What is kept is written to the disk.
    match tokio::task::spawn_blocking(move || it.switch_bypass(wish)).await {
        Ok(Ok(about)) => Json(about).into_response(),
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
