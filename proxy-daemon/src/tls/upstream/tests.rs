//! Real handshakes in memory: what surfaces for each way a certificate can
//! fail, and what the client is told.
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    AlertDescription, CertificateError, Error, HandshakeKind, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::tls::{Authority, Leaves, Opaque, Parsed, Servers, hello, refused_by_client};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// An authority of the test's, for upstreams.
struct Issues {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Issues {
    fn new() -> Self {
        Self::named("upstreams' authority")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("a certificate").into();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn trusted(&self) -> Upstream {
        Upstream::with_roots(Vec::new(), vec![self.certificate.clone()], None).expect("an upstream")
    }

    fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .expect("parameters");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").into();
        serving(certificate, &key)
    }
}

fn serving(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a configuration")
}

fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(["a.test".to_owned()]).expect("parameters");
    // As `openssl req -x509` makes it.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    (params.self_signed(&key).expect("a certificate").into(), key)
}

fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).expect("a name")
}

/// One handshake; the server writes a byte, so that the client sees what
/// comes with it (tickets, late alerts).
async fn meet(
    upstream: &Upstream,
    server: &Arc<ServerConfig>,
    to: &str,
    alpn: &[&[u8]],
) -> io::Result<TlsStream<DuplexStream>> {
    let (near, far) = duplex(64 << 10);
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let serve = async move {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        io::Result::Ok(stream)
    };
    let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let connect = async {
        let mut stream = upstream.connect(near, name(to), &alpn).await?;
        stream.read_u8().await?;
        io::Result::Ok(stream)
    };
    let (served, connected) = tokio::join!(serve, connect);
    drop(served);
    connected
}

async fn failure(upstream: &Upstream, server: ServerConfig, to: &str) -> (Option<u8>, String) {
    let error = meet(upstream, &Arc::new(server), to, &[]).await.expect_err("refused");
    (mirror_alert(&error), explain(&error, to, &Asked::No))
}

#[tokio::test]
async fn good_certificate_holds_and_the_next_connection_resumes() {
    let issues = Issues::new();
    let mut server = issues.server(&["a.test", "192.0.2.1"], |_| {});
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (server, upstream) = (Arc::new(server), issues.trusted());
    let first = meet(&upstream, &server, "a.test", &[b"http/1.1", b"spdy/3"]).await.expect("connected");
    assert_eq!(first.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    let second = meet(&upstream, &server, "a.test", &[b"http/1.1", b"h2"]).await.expect("connected");
    assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(second.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(first.get_ref().1.peer_certificates(), second.get_ref().1.peer_certificates());

    let unnamed = meet(&upstream, &server, "192.0.2.1", &[]).await.expect("connected");
    assert_eq!(unnamed.get_ref().1.alpn_protocol(), None);
}

#[tokio::test]
async fn bad_certificates_are_refused_in_kind() {
    let issues = Issues::new();
    let upstream = issues.trusted();
    let now = SystemTime::now();

    let expired = issues.server(&["a.test"], |params| params.not_after = (now - DAY).into());
    let (alert, why) = failure(&upstream, expired, "a.test").await;
    assert_eq!(alert, Some(45), "{why}");
    assert!(why.contains("a.test has expired"), "{why}");

    let early = issues.server(&["a.test"], |params| params.not_before = (now + DAY).into());
    let (alert, why) = failure(&upstream, early, "a.test").await;
    assert_eq!(alert, Some(45), "{why}");
    assert!(why.contains("clock"), "{why}");

    let (alert, why) = failure(&upstream, issues.server(&["b.test", "c.test"], |_| {}), "a.test").await;
    assert_eq!(alert, Some(42), "{why}");
    assert!(why.contains("b.test") && why.contains("--passthrough a.test"), "{why}");

    let (alert, why) = failure(&upstream, issues.server(&["a.test"], |_| {}), "192.0.2.1").await;
    assert_eq!(alert, Some(42), "{why}");

    let (alert, why) = failure(&upstream, Issues::named("other").server(&["a.test"], |_| {}), "a.test").await;
    assert_eq!(alert, Some(48), "{why}");
    assert!(why.contains("--upstream-ca FILE"), "{why}");

    // An authority of the same name with another key.
    let (alert, why) = failure(&upstream, Issues::new().server(&["a.test"], |_| {}), "a.test").await;
    assert_eq!(alert, Some(51), "{why}");
    assert!(why.contains("another key"), "{why}");

    let (certificate, key) = self_signed(|_| {});
    let (alert, why) = failure(&upstream, serving(certificate, &key), "a.test").await;
    assert_eq!(alert, Some(48), "{why}");
    assert!(why.contains("--upstream-ca FILE"), "{why}");
}

#[tokio::test]
async fn self_signed_certificate_that_was_named_holds() {
    for change in [|_: &mut CertificateParams| {}, |params: &mut CertificateParams| params.is_ca = IsCa::NoCa] {
        let (certificate, key) = self_signed(change);
        let upstream = Upstream::with_roots(Vec::new(), vec![certificate.clone()], None).expect("an upstream");
        let server = Arc::new(serving(certificate, &key));
        meet(&upstream, &server, "a.test", &[]).await.expect("connected");
        let error = meet(&upstream, &server, "b.test", &[]).await.expect_err("another name");
        assert_eq!(mirror_alert(&error), Some(42));
        let (other, key) = self_signed(change);
        let error = meet(&upstream, &Arc::new(serving(other, &key)), "a.test", &[]).await.expect_err("another one");
        assert!(mirror_alert(&error).is_some());
    }
    let (certificate, key) = self_signed(|params| params.not_after = (SystemTime::now() - DAY).into());
    let upstream = Upstream::with_roots(Vec::new(), vec![certificate.clone()], None).expect("an upstream");
    assert_eq!(failure(&upstream, serving(certificate, &key), "a.test").await.0, Some(45));
}

#[tokio::test]
async fn alert_of_the_upstream_is_passed_on() {
    let issues = Issues::new();
    let mut roots = RootCertStore::empty();
    roots.add(issues.certificate.clone()).expect("added");
    let demands = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().expect("a verifier");
    for version in [&TLS12, &TLS13] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["a.test".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &issues.issuer).expect("a certificate").into();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_client_cert_verifier(Arc::clone(&demands))
            .with_single_cert(vec![certificate], der)
            .expect("a configuration");
        let (alert, why) = failure(&issues.trusted(), server, "a.test").await;
        assert_eq!(alert, Some(116), "{why}");
        assert!(why.contains("client certificate") && why.contains("--client-cert"), "{why}");
    }
}

/// A client certificate with its key, in one file.
fn identity(issues: &Issues, folder: &Path, name: &str) -> PathBuf {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &issues.issuer).expect("a certificate");
    let path = folder.join(name);
    std::fs::write(&path, certificate.pem() + &key.serialize_pem()).expect("written");
    path
}

/// A server that asks, and may demand.
fn asking(issues: &Issues, clients: &Issues, demands: bool) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(clients.certificate.clone()).expect("added");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = if demands { verifier } else { verifier.allow_unauthenticated() };
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["a.test".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issues.issuer).expect("a certificate").into();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![certificate], der)
        .expect("a configuration")
}

/// A handshake for a client that offers this, and what was asked for.
async fn greet(upstream: &Upstream, server: &Arc<ServerConfig>, client: &ClientHello) -> (io::Result<()>, Asked) {
    let (near, far) = duplex(64 << 10);
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let serve = async move { acceptor.accept(far).await.map(drop) };
    let to = client.server_name.as_deref().unwrap_or("192.0.2.1");
    let (_, (greeted, asked)) = tokio::join!(serve, upstream.greet(near, name(to), client));
    (greeted.map(drop), asked)
}

fn client(name: Option<&str>, tls12: bool, tls13: bool) -> ClientHello {
    let offer = Offer { tls12, tls13, ..Offer::default() };
    ClientHello { server_name: name.map(str::to_owned), offer, ..ClientHello::default() }
}

#[tokio::test]
async fn certificate_is_shown_to_those_who_ask_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (issues, ours, others) = (Issues::new(), Issues::named("clients"), Issues::named("others"));
    let identity = Identity::load(&identity(&ours, folder.path(), "me"), None).expect("loads");
    let upstream =
        Upstream::with_roots(Vec::new(), vec![issues.certificate.clone()], Some(identity)).expect("an upstream");
    for (tls12, tls13) in [(true, false), (false, true)] {
        let client = client(Some("a.test"), tls12, tls13);
        let demands = Arc::new(asking(&issues, &ours, true));
        let (greeted, asked) = greet(&upstream, &demands, &client).await;
        greeted.expect("greeted");
        assert_eq!(asked, Asked::Shown);
        // It is not what these ask for.
        let (greeted, asked) = greet(&upstream, &Arc::new(asking(&issues, &others, false)), &client).await;
        greeted.expect("greeted");
        let Asked::Unanswered(request) = asked else { panic!("{asked:?}") };
        assert_eq!(request.authorities.len(), 1);
        // Without one of ours, the request is told.
        let (_, asked) = greet(&issues.trusted(), &demands, &client).await;
        assert!(matches!(asked, Asked::Unanswered(_)), "{asked:?}");
        let (greeted, asked) = greet(&issues.trusted(), &Arc::new(issues.server(&["a.test"], |_| {})), &client).await;
        greeted.expect("greeted");
        assert_eq!(asked, Asked::No);
    }
}

#[test]
fn client_certificates_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let issues = Issues::new();
    let (one, two) = (identity(&issues, folder.path(), "one"), identity(&issues, folder.path(), "two"));
    Identity::load(&one, Some(&one)).expect("loads");
    let said = |certificate: &Path, key: Option<&Path>| {
        let error = Identity::load(certificate, key).expect_err("refused");
        assert_eq!(error.exit_code(), 64);
        error.to_string()
    };
    assert!(said(&one, Some(&two)).contains("does not belong"), "{}", said(&one, Some(&two)));
    let bare = folder.path().join("bare");
    std::fs::write(&bare, system::encode(&issues.certificate)).expect("written");
    assert!(said(&bare, None).contains("--client-key"), "{}", said(&bare, None));
    std::fs::write(&bare, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nQUJD\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .expect("written");
    assert!(said(&one, Some(&bare)).contains("encrypted"), "{}", said(&one, Some(&bare)));
    assert!(said(&bare, None).contains("no certificate"), "{}", said(&bare, None));
    assert!(said(Path::new("/nowhere"), None).contains("client certificate"));
}

/// The upstream meets the versions that the client offers, and no others.
#[tokio::test]
async fn versions_are_the_clients() {
    let issues = Issues::new();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["a.test".to_owned()]).expect("parameters");
    let certificate: CertificateDer<'static> = params.signed_by(&key, &issues.issuer).expect("a certificate").into();
    for (speaks, tls12, tls13, meets) in [
        (&TLS12, true, false, true),
        (&TLS12, true, true, true),
        (&TLS12, false, true, false),
        (&TLS13, true, false, false),
        (&TLS13, true, true, true),
        (&TLS13, false, true, true),
    ] {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[speaks])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], der)
            .expect("a configuration");
        let (greeted, _) = greet(&issues.trusted(), &Arc::new(server), &client(Some("a.test"), tls12, tls13)).await;
        match greeted {
            Ok(()) => assert!(meets, "{speaks:?} {tls12} {tls13}"),
            Err(error) => {
                assert!(!meets, "{speaks:?} {tls12} {tls13}: {error}");
                assert!(beyond(&error).is_some_and(|why| why.contains("TLS version")), "{error}");
            }
        }
    }
}

/// A client that asks for no name judges the name itself; the rest must hold.
#[tokio::test]
async fn without_a_name_the_names_are_the_clients_affair() {
    let issues = Issues::new();
    let unnamed = client(None, true, true);
    let server = |change: fn(&mut CertificateParams)| Arc::new(issues.server(&["a.test"], change));
    greet(&issues.trusted(), &server(|_| {}), &unnamed).await.0.expect("greeted");
    let expired = server(|params| params.not_after = (SystemTime::now() - DAY).into());
    let error = greet(&issues.trusted(), &expired, &unnamed).await.0.expect_err("expired");
    assert_eq!((mirror_alert(&error), beyond(&error)), (Some(45), None));
    let stranger = Arc::new(Issues::named("other").server(&["a.test"], |_| {}));
    let error = greet(&issues.trusted(), &stranger, &unnamed).await.0.expect_err("a stranger");
    assert_eq!(mirror_alert(&error), Some(48));
    // A connection of our own takes nothing but the address itself.
    let error = meet(&issues.trusted(), &server(|_| {}), "192.0.2.1", &[]).await.expect_err("another name");
    assert_eq!(mirror_alert(&error), Some(42));
}

/// What webpki does not judge as other libraries do is left to the client.
#[tokio::test]
async fn names_in_the_common_name_alone_are_left_to_the_client() {
    let issues = Issues::new();
    let server = Arc::new(issues.server(&[], |params| params.distinguished_name.push(DnType::CommonName, "a.test")));
    for name in [Some("a.test"), None] {
        let error = greet(&issues.trusted(), &server, &client(name, true, true)).await.0.expect_err("not judged");
        assert!(is_distrust(&error));
        assert!(beyond(&error).is_some_and(|why| why.contains("judge")), "{error}");
    }
    let other = CertificateError::UnsupportedSignatureAlgorithmContext {
        signature_algorithm_id: Vec::new(),
        supported_algorithms: Vec::new(),
    };
    let error = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
    assert!(beyond(&error(other.into())).is_some());
    for tls in [
        CertificateError::Expired.into(),
        CertificateError::UnknownIssuer.into(),
        CertificateError::NotValidForName.into(),
        Error::AlertReceived(AlertDescription::InternalError),
        Error::AlertReceived(AlertDescription::UnrecognisedName),
    ] {
        assert_eq!(beyond(&error(tls)), None);
    }
    assert_eq!(beyond(&io::ErrorKind::ConnectionReset.into()), None);
}

#[tokio::test]
async fn what_is_no_tls_failure_has_no_alert() {
    let upstream = Issues::new().trusted();
    let (near, far) = duplex(1024);
    drop(far);
    let error = upstream.connect(near, name("a.test"), &[]).await.expect_err("closed");
    assert_eq!(mirror_alert(&error), None);
    assert!(explain(&error, "a.test", &Asked::No).contains("a.test"));

    let (near, mut far) = duplex(1024);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("written");
    let error = upstream.connect(near, name("a.test"), &[]).await.expect_err("no TLS");
    assert!(mirror_alert(&error).is_some());
    assert!(
        explain(&error, "a.test", &Asked::No).contains("does not speak TLS"),
        "{}",
        explain(&error, "a.test", &Asked::No)
    );
    assert_eq!(mirror_alert(&io::ErrorKind::ConnectionReset.into()), None);
}

#[test]
fn files_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let good = file("good", &system::encode(&Issues::new().certificate));
    assert!(Upstream::new(&[good]).is_ok());
    let error = Upstream::new(&[folder.path().join("absent")]).expect_err("absent");
    assert!(matches!(error, TlsError::Read { .. }) && error.exit_code() == 64, "{error}");
    assert!(matches!(Upstream::new(&[file("empty", "")]), Err(TlsError::NoCertificate { .. })));
    assert!(matches!(Upstream::new(&[file("junk", &system::encode(b"junk"))]), Err(TlsError::BadCertificate { .. })));
    assert!(matches!(Upstream::with_roots(Vec::new(), Vec::new(), None), Err(TlsError::NoRoots)));
}

#[test]
fn protocols_are_the_clients_own_that_we_speak() {
    let of = |alpn: &[&[u8]]| spoken(&alpn.iter().map(|protocol| protocol.to_vec()).collect::<Vec<_>>());
    assert_eq!(of(&[b"http/1.1", b"h2", b"http/1.1", b"h3"]), [&b"http/1.1"[..], b"h2"]);
    assert!(of(&[b"mqtt"]).is_empty() && of(&[]).is_empty());
}

/// Our side of a client's connection, as the data path drives it.
struct Ours {
    leaves: Leaves,
    servers: Servers,
}

impl Ours {
    fn new() -> Self {
        let authority = Arc::new(Authority::in_memory().expect("an authority"));
        Self { leaves: Leaves::new(authority).expect("leaves"), servers: Servers::new().expect("servers") }
    }

    /// A client that trusts our authority alone.
    fn client(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.leaves.authority().certificate_der().clone()).expect("added");
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    async fn serve(&self, mut io: DuplexStream, alpn: Option<&[u8]>) -> io::Result<Option<HandshakeKind>> {
        let mut bytes = Vec::new();
        let hello = loop {
            match hello::parse(&bytes) {
                Parsed::NeedMore => {}
                Parsed::Opaque(why) => return Err(io::Error::other(why.to_string())),
                Parsed::Hello(hello) => break hello,
            }
            if io.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let theirs = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert;
        let leaf =
            self.leaves.for_upstream(hello.client.server_name.as_deref(), theirs.der()).map_err(io::Error::other)?;
        let config = self.servers.config(&leaf, alpn).map_err(io::Error::other)?;
        let rest = bytes.split_off(hello.length);
        let mut stream = hello.accept(config, io, &rest)?.await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(&byte).await?;
        stream.flush().await?;
        Ok(stream.get_ref().1.handshake_kind())
    }
}

async fn call(config: &Arc<ClientConfig>, io: DuplexStream, early: Option<&[u8]>) -> io::Result<u8> {
    let connector = TlsConnector::from(Arc::clone(config));
    let mut refused = Ok(());
    let mut stream = connector
        .connect_with(name("a.test"), io, |client| {
            if let (Some(bytes), Some(mut data)) = (early, client.early_data()) {
                refused = io::Write::write_all(&mut data, bytes);
            }
        })
        .await?;
    refused?;
    stream.write_all(b"?").await?;
    stream.read_u8().await
}

#[tokio::test]
async fn clients_trust_our_leaf_and_resume() {
    for version in [&TLS12, &TLS13] {
        let ours = Ours::new();
        let mut client = ours.client(&[version]);
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = Arc::new(client);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let (near, far) = duplex(64 << 10);
            // Each connection meets another leaf: the key of the tickets is
            // shared, so that it resumes all the same.
            let (kind, got) = tokio::join!(ours.serve(far, Some(b"h2")), call(&client, near, None));
            assert_eq!(got.expect("answered"), b'?');
            assert_eq!(kind.expect("served"), Some(expected));
        }
        assert_eq!(ours.leaves.counters().minted, 3);
    }
}

#[tokio::test]
async fn early_data_meant_for_the_upstream_is_survived() {
    let ours = Ours::new();
    let mut client = ours.client(&[&TLS13]);
    client.enable_early_data = true;
    let client = Arc::new(client);
    // The client's ticket comes from a server that allows early data, as the
    // genuine upstream may have before we came.
    let leaf = {
        let theirs = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert;
        ours.leaves.for_upstream(Some("a.test"), theirs.der()).expect("a leaf")
    };
    let mut generous = ServerConfig::clone(&ours.servers.config(&leaf, None).expect("a configuration"));
    generous.max_early_data_size = 1 << 14;
    let (near, far) = duplex(64 << 10);
    let acceptor = TlsAcceptor::from(Arc::new(generous));
    let serve = async move {
        let mut stream = acceptor.accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await
    };
    let (served, got) = tokio::join!(serve, call(&client, near, None));
    served.expect("served");
    assert_eq!(got.expect("answered"), b'?');

    let (near, far) = duplex(64 << 10);
    let (kind, got) = tokio::join!(ours.serve(far, None), call(&client, near, Some(&[7; 9000])));
    kind.expect("served");
    assert_eq!(got.expect("answered"), b'?');
}

#[tokio::test]
async fn alert_before_our_hello_reaches_the_client() {
    let ours = Ours::new();
    for version in [&TLS12, &TLS13] {
        for description in [40, 42, 45, 48, 112, 116, 120] {
            let (near, mut far) = duplex(64 << 10);
            far.write_all(&alert_record(description)).await.expect("written");
            let error = call(&Arc::new(ours.client(&[version])), near, None).await.expect_err("refused");
            let Some(Error::AlertReceived(alert)) = tls_error(&error) else { panic!("{error}") };
            assert_eq!(u8::from(*alert), description);
        }
    }
}

#[tokio::test]
async fn client_that_does_not_trust_us_is_recognised() {
    let ours = Ours::new();
    for version in [&TLS12, &TLS13] {
        let stranger = Arc::new(Ours::new().client(&[version]));
        let (near, far) = duplex(64 << 10);
        let (served, got) = tokio::join!(ours.serve(far, None), call(&stranger, near, None));
        got.expect_err("refused");
        let error = served.expect_err("refused");
        assert_eq!(refused_by_client(&error), Some("it does not know our authority"), "{error}");
    }
    assert_eq!(Opaque::NotTls.to_string(), "not TLS");
}
