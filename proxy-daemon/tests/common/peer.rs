//! A TLS upstream that records what each connection offered and came to.
//!
//! It answers one request over HTTP/1.1 and closes.
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

use rcgen::KeyPair;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::LazyConfigAcceptor;

use super::{NAME, TestCa, own_listener, sha256, show, wire::runtime};

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    No,
    /// Goes on without.
    Wishes,
    Demands,
}

/// How a peer presents itself.
pub struct Manner<'a> {
    pub port: u16,
    pub names: &'a [&'a str],
    /// None: the address is in the certificate.
    pub addresses: Option<&'a [IpAddr]>,
    pub versions: Vec<&'static SupportedProtocolVersion>,
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub alpn: &'a [&'a str],
    pub key: KeyPair,
    pub asks: Asks,
    /// Sessions can be resumed.
    pub tickets: bool,
}

impl Default for Manner<'_> {
    fn default() -> Self {
        Self {
            port: 443,
            names: &[NAME],
            addresses: None,
            versions: rustls::ALL_VERSIONS.to_vec(),
            groups: aws_lc_rs::default_provider().kx_groups,
            alpn: &[],
            key: KeyPair::generate().expect("a key"),
            asks: Asks::No,
            tickets: true,
        }
    }
}

/// One connection, as this side saw it.
#[derive(Clone, Debug, Default)]
pub struct Meeting {
    /// The beginning of what came, as bytes.
    pub hello: Vec<u8>,
    pub server_name: Option<String>,
    pub offered_alpn: Vec<String>,
    pub offered_groups: Vec<String>,
    pub version: String,
    pub group: Option<String>,
    pub kind: String,
    pub alpn: Option<String>,
    /// The common name of the client's certificate.
    pub client: Option<String>,
    /// What the client sent.
    pub request: String,
    pub error: Option<String>,
}

#[derive(Default)]
struct Shared {
    meetings: Mutex<Vec<Meeting>>,
    changed: Condvar,
}

pub struct Peer {
    pub address: SocketAddr,
    /// SHA-256 of the certificate.
    pub certificate: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Peer {
    pub fn start(ca: &TestCa, manner: Manner<'_>) -> Self {
        let listener = own_listener(manner.port);
        let address = listener.local_addr().expect("a bound address");
        listener.set_nonblocking(true).expect("non-blocking");
        let own = [address.ip()];
        let pem = ca.issue(&manner.key, manner.names, manner.addresses.unwrap_or(&own));
        let (config, certificate) = configuration(ca, &manner, &pem);
        let config = Arc::new(config);
        let shared = Arc::new(Shared::default());
        let runtime = runtime();
        let state = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registering the listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (config, state) = (Arc::clone(&config), Arc::clone(&state));
                tokio::spawn(async move {
                    let mut meeting = Meeting::default();
                    if let Err(error) = meet(stream, config, &mut meeting).await {
                        meeting.error = Some(error.to_string());
                    }
                    state.meetings.lock().expect("not poisoned").push(meeting);
                    state.changed.notify_all();
                });
            }
        });
        Self { address, certificate, shared, runtime: Some(runtime) }
    }

    /// Connections that have ended, in the order of their ends.
    pub fn meetings(&self) -> Vec<Meeting> {
        self.shared.meetings.lock().expect("not poisoned").clone()
    }

    /// Those on which a request came.
    pub fn asked(&self) -> Vec<Meeting> {
        self.meetings().into_iter().filter(|meeting| !meeting.request.is_empty()).collect()
    }

    /// Waits until so many connections have ended.
    #[track_caller]
    pub fn wait(&self, count: usize) -> Vec<Meeting> {
        let end = Instant::now() + super::SOON;
        let mut meetings = self.shared.meetings.lock().expect("not poisoned");
        while meetings.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the upstream met no {count} clients, only {meetings:?}");
            meetings = self.shared.changed.wait_timeout(meetings, left).expect("not poisoned").0;
        }
        meetings.clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn configuration(ca: &TestCa, manner: &Manner<'_>, pem: &str) -> (ServerConfig, String) {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("our own certificate");
    let digest = sha256(&certificate);
    let provider = CryptoProvider { kx_groups: manner.groups.clone(), ..aws_lc_rs::default_provider() };
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.pem()).expect("the authority")).expect("an authority");
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let clients = match manner.asks {
        Asks::No => WebPkiClientVerifier::no_client_auth(),
        Asks::Wishes => clients.allow_unauthenticated().build().expect("a verifier"),
        Asks::Demands => clients.build().expect("a verifier"),
    };
    let key = PrivateKeyDer::try_from(manner.key.serialize_der()).expect("our own key");
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&manner.versions)
        .expect("versions")
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .expect("a server config");
    config.alpn_protocols = manner.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    if manner.tickets {
        config.ticketer = aws_lc_rs::Ticketer::new().expect("a ticket key");
    } else {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    }
    (config, digest)
}

async fn meet(stream: TcpStream, config: Arc<ServerConfig>, meeting: &mut Meeting) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut peeked = vec![0; 16 << 10];
    let length = stream.peek(&mut peeked).await?;
    peeked.truncate(length);
    meeting.hello = peeked;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    meeting.server_name = hello.server_name().map(str::to_owned);
    meeting.offered_alpn = hello.alpn().into_iter().flatten().map(show).collect();
    meeting.offered_groups =
        hello.named_groups().unwrap_or_default().iter().map(|group| format!("{group:?}")).collect();
    let mut stream = match start.into_stream(config).into_fallible().await {
        Ok(stream) => stream,
        Err((error, mut io)) => {
            // What is left unread at the end would make a reset of it, and
            // that may overtake the alert.
            io.shutdown().await?;
            while io.read(&mut [0; 4096]).await? != 0 {}
            return Err(error);
        }
    };
    let (_, session) = stream.get_ref();
    meeting.version = format!("{:?}", session.protocol_version().expect("after the handshake"));
    meeting.kind = format!("{:?}", session.handshake_kind().expect("after the handshake"));
    meeting.group = session.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    meeting.alpn = session.alpn_protocol().map(show);
    meeting.client = session.peer_certificates().and_then(<[_]>::first).map(|der| common_name(der));
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        meeting.request = show(&request);
        if meeting.request.ends_with("\r\n\r\n") {
            break;
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nyes").await?;
    stream.shutdown().await
}

/// The common name in a certificate of the harness: its subject is nothing
/// else.
fn common_name(der: &[u8]) -> String {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(der).expect("a certificate");
    parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect()
}
