//! The API's client: what `retryscope rules …` speaks to a running instance.
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::report::Report;

use super::{About, Added, Changed, FOLDER, NewRule, Refused, RulesView, SOCKET, Switch};

/// An instance that answers does so at once.
const PATIENCE: Duration = Duration::from_secs(10);

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
}

impl ClientError {
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::Refused(_) | ClientError::SeveralInstances(_) | ClientError::NoSuchInstance(..) => 64,
            ClientError::Permission => 77,
            ClientError::NoInstance | ClientError::Broken(_) => 69,
        }
    }
}

/// The sockets of running instances, by pid.
fn instances(roots: &[PathBuf]) -> Result<Vec<(u32, PathBuf)>, ClientError> {
    let mut found = Vec::new();
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
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(ClientError::Permission),
            Ok(_) | Err(_) => {}
        }
    }
    found.sort();
    Ok(found)
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
pub struct Client(PathBuf);

impl Client {
    pub async fn about(&self) -> Result<About, ClientError> {
        self.call(Method::GET, "/v1/instance", None::<&()>).await
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

    pub async fn reload(&self) -> Result<usize, ClientError> {
        self.change(Method::POST, "/v1/reload", None::<&()>).await
    }

    async fn change(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<usize, ClientError> {
        let changed: Changed = self.call(method, path, body).await?;
        Ok(changed.rules)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Broken(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = UnixStream::connect(&self.0).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission,
            _ => broken(&error),
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let mut request = Request::builder().method(method).uri(path).header("host", "retryscope");
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                serde_json::to_vec(body).map_err(|error| broken(&error))?
            }
            None => Vec::new(),
        };
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| broken(&error))?;
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
        let error = serde_json::from_slice::<Refused>(&bytes)
            .map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |refused| refused.error);
        Err(if status == StatusCode::INTERNAL_SERVER_ERROR {
            ClientError::Broken(error)
        } else {
            ClientError::Refused(error)
        })
    }
}

/// A rule's path; names may hold any printable character.
fn rule_path(name: &str) -> String {
    let mut path = "/v1/rules/".to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}
