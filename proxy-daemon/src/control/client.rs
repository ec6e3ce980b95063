//! The API's client: what `retryscope rules …` speaks to a running instance.
mod held;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
pub use held::FollowingHeld;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::report::Report;

use super::{
    About, Added, BypassWish, Changed, DAEMONS, FOLDER, NewRule, PID, PageAddress, Privileges, Refused, Reloaded,
    RulesView, SOCKET, Switch,
};

/// An instance that answers does so at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// A daemon reads its configuration and attaches what it names.
const RELOAD_PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no instance of retryscope is running here; start one with `retryscope run` or `attach`")]
    NoInstance,
    #[error("there is no instance of retryscope with pid {0}; those running: {1}")]
    NoSuchInstance(u32, String),
    #[error("several instances are running ({0}); name one with --instance PID")]
    SeveralInstances(String),
    #[error("the control socket may be opened by root only; type the same with sudo")]
    Permission,
    #[error("cannot speak to the instance ({0}); it may just have ended")]
    Broken(String),
    /// In the instance's own words.
    #[error("{0}")]
    Refused(String),
    /// The same, of who may not ask.
    #[error("{0}")]
    Forbidden(String),
    #[error("there is no daemon named `{0}` here; `systemctl status retryscope` may tell why")]
    NoDaemon(String),
}

impl ClientError {
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::Refused(_) | ClientError::SeveralInstances(_) | ClientError::NoSuchInstance(..) => 64,
            ClientError::Permission | ClientError::Forbidden(_) => 77,
            ClientError::NoInstance | ClientError::NoDaemon(_) | ClientError::Broken(_) => 69,
        }
    }
}

/// The sockets of running instances, by pid.
fn instances(roots: &[PathBuf]) -> Result<Vec<(u32, PathBuf)>, ClientError> {
    let mut found = Vec::new();
    let mut hidden = false;
    for entry in roots.iter().flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten()) {
        let name = entry.file_name();
        let Some(pid) =
            name.to_str().and_then(|name| name.strip_prefix("retryscope-")?.split_once('-')?.0.parse().ok())
        else {
            continue;
        };
        let socket = entry.path().join(FOLDER).join(SOCKET);
        match fs::symlink_metadata(&socket) {
            Ok(_) if Path::new("/proc").join(u32::to_string(&pid)).exists() => found.push((pid, socket)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden = true,
            Ok(_) | Err(_) => {}
        }
    }
    for entry in fs::read_dir(DAEMONS).into_iter().flatten().flatten() {
        let pid = fs::read_to_string(entry.path().join(PID)).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let socket = entry.path().join(SOCKET);
        if let Some(pid) = pid
            && socket.exists()
            && Path::new("/proc").join(pid.to_string()).exists()
        {
            found.push((pid, socket));
        }
    }
    // Another's may be hidden beside one that is not.
    if hidden && found.is_empty() {
        return Err(ClientError::Permission);
    }
    found.sort();
    Ok(found)
}

/// Every running instance.
pub fn all() -> Result<Vec<Client>, ClientError> {
    let found = instances(&[PathBuf::from("/run"), std::env::temp_dir()])?;
    Ok(found.into_iter().map(|(_, socket)| Client(socket)).collect())
}

/// The daemon of this name.
pub fn named(name: &str) -> Result<Client, ClientError> {
    let socket = socket(name);
    if socket.exists() { Ok(Client(socket)) } else { Err(ClientError::NoDaemon(name.to_owned())) }
}

/// The socket of a daemon of this name, whether there is one or not.
pub fn socket(name: &str) -> PathBuf {
    Path::new(DAEMONS).join(name).join(SOCKET)
}

/// Whatever listens there.
pub fn at(socket: PathBuf) -> Client {
    Client(socket)
}

/// The socket of the instance that is meant: the only one, or the named one.
pub fn find(pid: Option<u32>) -> Result<Client, ClientError> {
    let found = instances(&[PathBuf::from("/run"), std::env::temp_dir()])?;
    let pids = || found.iter().map(|(pid, _)| pid.to_string()).collect::<Vec<_>>().join(", ");
    match (pid, found.as_slice()) {
        (_, []) => Err(ClientError::NoInstance),
        (None, [(_, socket)]) => Ok(Client(socket.clone())),
        (None, _) => Err(ClientError::SeveralInstances(pids())),
        (Some(pid), several) => match several.iter().find(|(it, _)| *it == pid) {
            Some((_, socket)) => Ok(Client(socket.clone())),
            None => Err(ClientError::NoSuchInstance(pid, pids())),
        },
    }
}

/// One instance's API.
#[derive(Debug)]
pub struct Client(pub(super) PathBuf);

impl Client {
    pub async fn about(&self) -> Result<About, ClientError> {
        self.call(Method::GET, "/v1/instance", None::<&()>).await
    }

    /// As [`about`](Self::about), once connections are served.
    pub async fn ready(&self, patience: Duration) -> Result<About, ClientError> {
        self.call_for(patience, Method::GET, "/v1/ready", None::<&()>).await
    }

    /// The report so far.
    pub async fn report(&self) -> Result<Report, ClientError> {
        self.call(Method::GET, "/v1/report", None::<&()>).await
    }

    pub async fn rules(&self) -> Result<RulesView, ClientError> {
        self.call(Method::GET, "/v1/rules", None::<&()>).await
    }

    /// The new rule's name.
    pub async fn add(&self, rule: &str) -> Result<String, ClientError> {
        let added: Added = self.call(Method::POST, "/v1/rules", Some(&NewRule { rule: rule.to_owned() })).await?;
        Ok(added.name)
    }

    /// How many rules are left.
    pub async fn remove(&self, name: &str) -> Result<usize, ClientError> {
        self.change(Method::DELETE, &rule_path(name), None::<&()>).await
    }

    pub async fn switch(&self, name: &str, enabled: bool) -> Result<usize, ClientError> {
        self.change(Method::PUT, &format!("{}/enabled", rule_path(name)), Some(&Switch { enabled })).await
    }

    pub async fn switch_all(&self, enabled: bool) -> Result<usize, ClientError> {
        self.change(Method::PUT, "/v1/enabled", Some(&Switch { enabled })).await
    }

    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.call_for(RELOAD_PATIENCE, Method::POST, "/v1/reload", None::<&()>).await
    }

    /// What it then tells of itself.
    pub async fn bypass(&self, wish: BypassWish) -> Result<About, ClientError> {
        self.call(Method::PUT, "/v1/bypass", Some(&wish)).await
    }

    /// Where the page is, with its token.
    pub async fn page(&self) -> Result<PageAddress, ClientError> {
        self.call(Method::POST, "/v1/page", None::<&()>).await
    }

    pub async fn privileges(&self) -> Result<Privileges, ClientError> {
        self.call(Method::GET, "/v1/privileges", None::<&()>).await
    }

    async fn change(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<usize, ClientError> {
        let changed: Changed = self.call(method, path, body).await?;
        Ok(changed.rules)
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.call_for(PATIENCE, method, path, body).await
    }

    async fn call_for<T: DeserializeOwned>(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(patience, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Broken(format!("no answer within {:.1} s", patience.as_secs_f64()))),
        }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.0).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission,
            _ => ClientError::Broken(error.to_string()),
        })
    }

    /// An answer that comes bit by bit.
    async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // Ends with the answer, which has its other end.
        tokio::spawn(connection);
        let response = sender.send_request(request(method, path, body)?).await;
        let response = response.map_err(|error| broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
        Err(refusal(status, &bytes))
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = request(method, path, body)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let mut answer = std::pin::pin!(answer);
        let mut connection = std::pin::pin!(connection);
        let (status, bytes) = tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        }
        .map_err(|error| broken(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| broken(&error));
        }
        Err(refusal(status, &bytes))
    }
}

fn request(method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut request = Request::builder().method(method).uri(path).header("host", "retryscope");
    let body = match body {
        Some(body) => {
            request = request.header("content-type", "application/json");
            serde_json::to_vec(body).map_err(|error| ClientError::Broken(error.to_string()))?
        }
        None => Vec::new(),
    };
    request.body(Full::new(Bytes::from(body))).map_err(|error| ClientError::Broken(error.to_string()))
}

/// What the instance answered instead.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let error = serde_json::from_slice::<Refused>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |refused| refused.error);
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => ClientError::Broken(error),
        StatusCode::FORBIDDEN => ClientError::Forbidden(error),
        _ => ClientError::Refused(error),
    }
}

/// A rule's path; names may hold any printable character.
fn rule_path(name: &str) -> String {
    let mut path = "/v1/rules/".to_owned();
    escape(&mut path, name);
    path
}

/// Adds a part of a path or a parameter's value.
pub(super) fn escape(path: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
}
