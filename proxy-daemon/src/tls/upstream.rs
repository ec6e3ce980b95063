//! The verified connection to the upstream.
//!
//! In: a connected stream, the name the client asked for, what its hello
//! offers. Out: TLS to a peer whose certificate holds, and whether that peer
//! asked for a client certificate; or why not, as the alert that the client
//! gets in the upstream's place and as a sentence for the person at the
//! keyboard.
//!
//! Verification is always on. Trusted are the system's roots (see
//! [`super::system`]: not what `SSL_CERT_FILE` names) and the files given.
//!
//! The upstream meets the versions that the client offers, its protocols, and
//! its wish for a post-quantum key exchange: an upstream that would refuse the
//! client refuses us, and one that treats it apart treats us so.
//!
//! A client certificate is shown where `--client-cert` names one that the
//! upstream's request asks for. Otherwise the handshake goes on without, and
//! the request is told: what the client itself would have shown, only the
//! client knows.
mod explain;
mod identity;
mod verify;

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore,
    client::{ResolvesClientCert, Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs, aws_lc_rs::kx_group},
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(super) use explain::tls_error;
pub use explain::{alert_record, beyond, explain, is_distrust, is_raised_here, mirror_alert};
pub use identity::{Asked, CertificateRequest, Identity};

use super::{ClientHello, Offer, PostQuantum, TlsError, files, system};

/// Names for which sessions are kept, so that a later connection to the same
/// name resumes. A name's tickets take some 8 KiB.
const MAX_SESSIONS: usize = 256;

/// The protocols of an exchange, in no order: the client's counts.
const SPOKEN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Connects to upstreams.
#[derive(Clone)]
pub struct Upstream {
    connectors: Arc<[TlsConnector]>,
    roots: usize,
}

impl Upstream {
    /// Trusts the system's roots and every certificate in the PEM files.
    pub fn new(extra_ca_files: &[PathBuf]) -> Result<Self, TlsError> {
        Self::presenting(extra_ca_files, None)
    }

    /// The same, and shows a certificate to upstreams that ask for it.
    pub fn presenting(extra_ca_files: &[PathBuf], identity: Option<Identity>) -> Result<Self, TlsError> {
        let mut extra = Vec::new();
        for path in extra_ca_files {
            let bytes = files::read_bounded(path).map_err(|source| TlsError::Read {
                what: "the upstream's authority",
                path: path.clone(),
                source,
            })?;
            let found = files::certificates(&bytes);
            if found.is_empty() {
                return Err(TlsError::NoCertificate { path: path.clone() });
            }
            for certificate in &found {
                if let Err(error) = X509Certificate::from_der(certificate) {
                    return Err(TlsError::BadCertificate { path: path.clone(), reason: error.to_string() });
                }
            }
            extra.extend(found);
        }
        Self::with_roots(system::roots(), extra, identity)
    }

    fn with_roots(
        roots: Vec<CertificateDer<'static>>,
        extra: Vec<CertificateDer<'static>>,
        identity: Option<Identity>,
    ) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.into_iter().chain(extra.iter().cloned()));
        if store.is_empty() {
            return Err(TlsError::NoRoots);
        }
        let roots = store.len();
        let crypto = |error: &dyn std::fmt::Display| TlsError::Crypto {
            what: "the upstream's verifier",
            reason: error.to_string(),
        };
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), aws_lc_rs::default_provider().into())
            .build()
            .map_err(|error| crypto(&error))?;
        let extra: Arc<[_]> = extra.into();
        let verifiers = [false, true].map(|unnamed| {
            Arc::new(verify::Verifier { inner: Arc::clone(&inner), extra: Arc::clone(&extra), unnamed })
        });
        // One of each for all: sessions are resumed under the verifier and
        // the certificate that they were made with.
        let answers: Arc<dyn ResolvesClientCert> = Arc::new(identity::Answers(identity));
        let resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
        let mut connectors = Vec::with_capacity(verifiers.len() * GROUPS.len() * VERSIONS.len());
        for verifier in verifiers {
            for groups in GROUPS {
                let provider = Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() });
                for versions in VERSIONS {
                    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                        .with_protocol_versions(versions)
                        .map_err(|error| crypto(&error))?
                        .dangerous()
                        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
                        .with_client_cert_resolver(Arc::clone(&answers));
                    config.resumption = resumption.clone();
                    connectors.push(TlsConnector::from(Arc::new(config)));
                }
            }
        }
        Ok(Self { connectors: connectors.into(), roots })
    }

    /// How many roots are trusted.
    pub fn roots(&self) -> usize {
        self.roots
    }

    /// TLS over `io` to the peer of this name, offering what the client
    /// offers and an exchange can speak, in the client's order. Where the
    /// client asked for no name, none is sent, and the certificate must hold
    /// but for its names.
    pub async fn greet<IO>(
        &self,
        io: IO,
        name: ServerName<'static>,
        client: &ClientHello,
    ) -> (io::Result<TlsStream<IO>>, Asked)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let connector = self.connector(client.offer, client.server_name.is_none());
        identity::noting(connector.with_alpn(spoken(&client.alpn)).connect(name, io)).await
    }

    /// Waits until an upstream that has asked for a client certificate takes
    /// the answer. In TLS 1.2 it has by now. In TLS 1.3 the handshake ends
    /// with the client's answer: the upstream's tickets, or its first words,
    /// tell that it was taken, an alert or an end that it was not. One that
    /// stays silent for so long as `patience` has as likely as not.
    pub async fn settled(stream: &mut TlsStream<TcpStream>, patience: Duration) -> io::Result<()> {
        if stream.get_ref().1.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Ok(());
        }
        let settled = async {
            loop {
                let (socket, session) = stream.get_mut();
                if session.tls13_tickets_received() > 0 {
                    return Ok(());
                }
                socket.readable().await?;
                match session.read_tls(&mut Ready(socket)) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                }
                let state =
                    session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if state.plaintext_bytes_to_read() > 0 {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(patience, settled).await.unwrap_or(Ok(()))
    }

    /// TLS over `io` for a connection of our own. An address as the name is
    /// verified against the certificate's addresses, and no name is sent
    /// (RFC 6066 §3).
    pub fn connect<IO>(
        &self,
        io: IO,
        name: ServerName<'static>,
        alpn: &[Vec<u8>],
    ) -> impl Future<Output = io::Result<TlsStream<IO>>> + Send + use<IO>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.connector(Offer::default(), false).with_alpn(spoken(alpn)).connect(name, io)
    }

    fn connector(&self, offer: Offer, unnamed: bool) -> &TlsConnector {
        let versions = match (offer.tls12, offer.tls13) {
            (false, true) => 0,
            (true, false) => 1,
            _ => 2,
        };
        let groups = match offer.post_quantum {
            PostQuantum::No => 0,
            PostQuantum::Listed => 1,
            PostQuantum::Preferred => 2,
        };
        &self.connectors[(usize::from(unnamed) * GROUPS.len() + groups) * VERSIONS.len() + versions]
    }
}

/// Reads what is there.
struct Ready<'a>(&'a TcpStream);

impl io::Read for Ready<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

/// In the order of [`Upstream::connector`].
const VERSIONS: [&[&rustls::SupportedProtocolVersion]; 3] = [&[&TLS13], &[&TLS12], &[&TLS12, &TLS13]];

/// In the order of [`Upstream::connector`]; of each list, the first comes with
/// a key share.
static GROUPS: [&[&dyn SupportedKxGroup]; 3] = [
    &[kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
    &[kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768],
    &[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
];

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("roots", &self.roots).finish_non_exhaustive()
    }
}

/// Those of a client's protocols that an exchange speaks, in the client's
/// order. Empty where the client offers none at all, or only others: such a
/// connection can only be tunnelled.
pub fn spoken(alpn: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for protocol in alpn {
        if SPOKEN.contains(&protocol.as_slice()) && !kept.contains(protocol) {
            kept.push(protocol.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests;
