//! The API server of the cluster, asked for pods: a list, then what changes.
//!
//! In: a service account's folder and the address that every pod finds in its
//! environment. Out: sets of pods. Only their metadata is asked for. A watch
//! that breaks off goes on from where it was; where the server has forgotten
//! that point, or anything else goes wrong, the list is read anew, ever more
//! seldom.
use std::{
    collections::BTreeSet,
    ffi::OsString,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::Deserialize;
use tokio::{net::TcpSocket, task::JoinHandle};
use tokio_rustls::TlsConnector;

use super::{Pod, Selection};
use crate::redirect::Redirect;

/// Pods in one answer to a list.
const PAGE: usize = 500;
/// The largest answer to a list, and the largest event: metadata of a pod has
/// some kilobytes, and no object has more than a few megabytes.
const MAX_ANSWER: usize = 32 << 20;
const MAX_EVENT: usize = 4 << 20;
/// How long the server may take to answer; a watch then goes on for longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A watch that says nothing for so long is begun again. The server ends it
/// before that by itself.
const WATCH: Duration = Duration::from_secs(290);
const SILENCE: Duration = Duration::from_secs(330);
/// Between tries while it cannot be had.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Metadata alone, of a list and of each event.
const LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const EVENTS: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "{0} is not set: pods are chosen from within a cluster (deploy/kubernetes); elsewhere name a --container or --cgroup"
    )]
    Elsewhere(&'static str),
    #[error("cannot read {}: {cause}; does the pod have a service account's token (automountServiceAccountToken)?", path.display())]
    Account { path: PathBuf, cause: io::Error },
    #[error("the API server at {server} cannot be asked ({cause}); is there a NetworkPolicy that forbids it?")]
    Unreachable { server: String, cause: String },
    #[error(
        "the API server does not let this service account see pods ({0}); bind the ClusterRole of deploy/kubernetes/node to it"
    )]
    Forbidden(String),
    #[error(
        "the API server does not understand the question ({0}); are the labels written as `kubectl get pods -l` takes them?"
    )]
    Refused(String),
    #[error("the API server has forgotten where the watch was")]
    Gone,
}

impl ApiError {
    pub fn exit_code(&self) -> u8 {
        match self {
            ApiError::Elsewhere(_) | ApiError::Account { .. } | ApiError::Refused(_) => 64,
            ApiError::Forbidden(_) => 77,
            ApiError::Unreachable { .. } | ApiError::Gone => 69,
        }
    }
}

/// Where the API server is, and who asks.
#[derive(Debug)]
pub struct Account {
    host: String,
    port: u16,
    /// `token` and `ca.crt`.
    folder: PathBuf,
    node: String,
}

impl Account {
    /// The folder in every pod that has a service account.
    pub const FOLDER: &'static str = "/var/run/secrets/kubernetes.io/serviceaccount";

    /// From the environment of a pod.
    pub fn find(folder: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ApiError> {
        let get = |name: &'static str| {
            variable(name)
                .and_then(|value| value.into_string().ok())
                .filter(|value| !value.is_empty())
                .ok_or(ApiError::Elsewhere(name))
        };
        let port = get("KUBERNETES_SERVICE_PORT")?;
        Ok(Self {
            host: get("KUBERNETES_SERVICE_HOST")?,
            port: port.parse().map_err(|_| ApiError::Elsewhere("KUBERNETES_SERVICE_PORT"))?,
            folder: folder.into(),
            node: get("NODE_NAME")?,
        })
    }

    fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ApiError> {
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|cause| ApiError::Account { path, cause })
    }

    fn unreachable(&self, cause: &dyn std::fmt::Display) -> ApiError {
        ApiError::Unreachable { server: self.server(), cause: cause.to_string() }
    }
}

/// What was heard on a connection, and what keeps it.
struct Asked {
    response: Response<Incoming>,
    connection: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Asks for the pods of one selection.
pub(super) struct Client {
    account: Arc<Account>,
    selection: Selection,
    redirect: Arc<Redirect>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    uid: String,
    name: String,
    namespace: String,
    resource_version: String,
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: serde_json::Value,
}

impl Object {
    fn pod(self) -> Option<Pod> {
        let Meta { uid, name, namespace, mut annotations, .. } = self.metadata;
        // The kubelet names the cgroup of a pod of its own after this.
        let uid = annotations.remove("kubernetes.io/config.hash").unwrap_or(uid);
        let fits =
            uid.len() >= 32 && uid.len() <= 64 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        fits.then(|| Pod { uid, name: format!("{namespace}/{name}") })
    }
}

impl Client {
    pub(super) fn new(account: Arc<Account>, selection: Selection, redirect: Arc<Redirect>) -> Self {
        Self { account, selection, redirect }
    }

    /// The pods now, and as of which version.
    pub(super) async fn list(&self) -> Result<(BTreeSet<Pod>, String), ApiError> {
        let mut pods = BTreeSet::new();
        let mut next = String::new();
        loop {
            let query = format!("limit={PAGE}&continue={}", escaped(&next));
            let mut asked = self.ask(&query, LIST).await?;
            let body = http_body_util::Limited::new(asked.response.body_mut(), MAX_ANSWER).collect();
            let body = tokio::time::timeout(PATIENCE, body).await.map_err(|error| self.account.unreachable(&error))?;
            let bytes = body.map_err(|error| self.account.unreachable(&error))?.to_bytes();
            let list: List = serde_json::from_slice(&bytes).map_err(|error| self.account.unreachable(&error))?;
            pods.extend(list.items.into_iter().filter_map(Object::pod));
            next = list.metadata.r#continue;
            if next.is_empty() || pods.len() > super::MAX_PODS {
                return Ok((pods, list.metadata.resource_version));
            }
        }
    }

    /// Follows the pods from there on, for good.
    pub(super) async fn follow(self, mut pods: BTreeSet<Pod>, mut version: String, changed: impl Fn(&BTreeSet<Pod>)) {
        let mut wait = FIRST_WAIT;
        loop {
            let (before, begun) = (version.clone(), Instant::now());
            match self.watch(&mut pods, &mut version, &changed).await {
                // The server ends a watch from time to time.
                Ok(()) => tokio::time::sleep(FIRST_WAIT.saturating_sub(begun.elapsed())).await,
                Err(error) => {
                    if !matches!(error, ApiError::Gone) {
                        tracing::warn!(%error, "pods that come are not noticed for a moment");
                    }
                    tokio::time::sleep(wait).await;
                    wait = if version == before { (wait * 2).min(LAST_WAIT) } else { FIRST_WAIT };
                    match self.list().await {
                        Ok((now, at)) => {
                            version = at;
                            if now != pods {
                                pods = now;
                                changed(&pods);
                            }
                        }
                        Err(error) => tracing::warn!(%error, "pods that come are not noticed for a moment"),
                    }
                }
            }
        }
    }

    /// Follows changes until the server ends that.
    async fn watch(
        &self,
        pods: &mut BTreeSet<Pod>,
        version: &mut String,
        changed: impl Fn(&BTreeSet<Pod>),
    ) -> Result<(), ApiError> {
        let query = format!(
            "watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            WATCH.as_secs(),
            escaped(version)
        );
        let mut asked = self.ask(&query, EVENTS).await?;
        let mut left = Vec::new();
        loop {
            let frame = tokio::time::timeout(SILENCE, asked.response.body_mut().frame()).await;
            let frame = match frame {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(self.account.unreachable(&error)),
                Err(error) => return Err(self.account.unreachable(&error)),
            };
            let Some(data) = frame.data_ref() else { continue };
            left.extend_from_slice(data);
            if left.len() > MAX_EVENT {
                return Err(self.account.unreachable(&"an event is too large"));
            }
            while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = left.drain(..=end).collect();
                let event: Event = serde_json::from_slice(&line).map_err(|error| self.account.unreachable(&error))?;
                if take(event, pods, version)? {
                    changed(pods);
                }
            }
        }
    }

    async fn ask(&self, query: &str, accept: &str) -> Result<Asked, ApiError> {
        match tokio::time::timeout(PATIENCE, self.exchange(query, accept)).await {
            Ok(asked) => asked,
            Err(_) => Err(self.account.unreachable(&format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn exchange(&self, query: &str, accept: &str) -> Result<Asked, ApiError> {
        let account = &self.account;
        let unreachable = |error: &dyn std::fmt::Display| account.unreachable(error);
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((account.host.as_str(), account.port))
            .await
            .map_err(|error| unreachable(&error))?
            .collect();
        let address = *addresses.first().ok_or_else(|| unreachable(&"it has no address"))?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|error| unreachable(&error))?;
        // This pod may be one of those that are watched.
        self.redirect.exempt(&socket).map_err(|error| unreachable(&error))?;
        let stream = socket.connect(address).await.map_err(|error| unreachable(&error))?;
        let name = ServerName::try_from(account.host.clone()).map_err(|error| unreachable(&error))?;
        let stream =
            TlsConnector::from(self.tls()?).connect(name, stream).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        // It ends with the response, or with whoever reads that.
        let connection = tokio::spawn(async move { drop(connection.await) });
        // Tokens are renewed; the file always has a valid one.
        let token = String::from_utf8_lossy(&account.read("token")?).trim().to_owned();
        let request = Request::get(self.path(query))
            .header("host", account.server())
            .header("accept", accept)
            .header("authorization", format!("Bearer {token}"))
            .header("user-agent", concat!("retryscope/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| unreachable(&error))?;
        let response = sender.send_request(request).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                connection.abort();
                return Err(unreachable(&error));
            }
        };
        let status = response.status();
        let asked = Asked { response, connection };
        match status {
            StatusCode::OK => Ok(asked),
            StatusCode::GONE => Err(ApiError::Gone),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ApiError::Forbidden(status.to_string())),
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                Err(ApiError::Refused(status.to_string()))
            }
            status => Err(unreachable(&status)),
        }
    }

    fn path(&self, query: &str) -> String {
        let namespace = self.selection.namespace.as_ref().map_or(String::new(), |name| format!("/namespaces/{name}"));
        let field = escaped(&format!("spec.nodeName={}", self.account.node));
        let labels = escaped(&self.selection.labels);
        format!("/api/v1{namespace}/pods?fieldSelector={field}&labelSelector={labels}&{query}")
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, ApiError> {
        let mut roots = RootCertStore::empty();
        let bytes = self.account.read("ca.crt")?;
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| self.account.unreachable(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// Puts an event into force; true where pods have changed.
fn take(event: Event, pods: &mut BTreeSet<Pod>, version: &mut String) -> Result<bool, ApiError> {
    let kind = event.r#type;
    if kind == "ERROR" {
        // The point has been forgotten, or is to be found anew.
        return Err(ApiError::Gone);
    }
    let Ok(object) = serde_json::from_value::<Object>(event.object) else { return Ok(false) };
    if !object.metadata.resource_version.is_empty() {
        version.clone_from(&object.metadata.resource_version);
    }
    let Some(pod) = object.pod().filter(|_| kind != "BOOKMARK") else { return Ok(false) };
    Ok(if kind == "DELETED" { pods.remove(&pod) } else { pods.insert(pod) })
}

/// A value in a query.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        serde_json::from_str(text).expect("an event")
    }

    #[test]
    fn events_change_the_pods() {
        let uid = "0f3d1b0e-2c9a-4d5e-8f70-112233445566";
        let of = |kind: &str, version: u32| {
            event(&format!(
                r#"{{"type":"{kind}","object":{{"metadata":{{"uid":"{uid}","name":"web","namespace":"shop","resourceVersion":"{version}"}}}}}}"#
            ))
        };
        let (mut pods, mut version) = (BTreeSet::new(), "1".to_owned());
        let mut takes = |event| take(event, &mut pods, &mut version).map(|changed| (changed, version.clone())).ok();
        assert_eq!(takes(of("BOOKMARK", 2)), Some((false, "2".into())));
        assert_eq!(takes(of("ADDED", 3)), Some((true, "3".into())));
        assert_eq!(takes(of("MODIFIED", 4)), Some((false, "4".into())));
        assert_eq!(takes(of("DELETED", 5)), Some((true, "5".into())));
        assert_eq!(takes(event(r#"{"type":"ERROR","object":{"code":410}}"#)), None);
        assert_eq!(takes(event(r#"{"type":"ADDED","object":{"metadata":{"uid":"x*"}}}"#)), Some((false, "5".into())));
    }

    #[test]
    fn a_pod_of_the_kubelets_own_is_known_by_its_hash() {
        let object: Object = serde_json::from_str(
            r#"{"metadata":{"uid":"0f3d1b0e-2c9a-4d5e-8f70-112233445566","name":"etcd","namespace":"kube-system",
                "annotations":{"kubernetes.io/config.hash":"8d4f0ff4fa1ee07d25de7f70a4d16bd2"}}}"#,
        )
        .expect("a pod");
        assert_eq!(object.pod().map(|pod| pod.uid).as_deref(), Some("8d4f0ff4fa1ee07d25de7f70a4d16bd2"));
    }
}
