//! The verified connection to the upstream.
//!
//! In: a connected stream, the name the client asked for, the protocols it
//! offers. Out: TLS to a peer whose certificate holds; or why not, as the
//! alert that the client gets in the upstream's place and as a sentence for
//! the person at the keyboard.
//!
//! Verification is always on. Trusted are the system's roots (see
//! [`super::system`]: not what `SSL_CERT_FILE` names) and the files given.
use std::{future::Future, io, path::PathBuf, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, files, system};

/// Names for which sessions are kept, so that a later connection to the same
/// name resumes. A name's tickets take some 8 KiB.
const MAX_SESSIONS: usize = 256;

/// The protocols of an exchange, in no order: the client's counts.
const SPOKEN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Connects to upstreams.
#[derive(Clone)]
pub struct Upstream {
    connector: TlsConnector,
    roots: usize,
}

impl Upstream {
    /// Trusts the system's roots and every certificate in the PEM files.
    pub fn new(extra_ca_files: &[PathBuf]) -> Result<Self, TlsError> {
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
        Self::with_roots(system::roots(), extra)
    }

    fn with_roots(roots: Vec<CertificateDer<'static>>, extra: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.into_iter().chain(extra.iter().cloned()));
        if store.is_empty() {
            return Err(TlsError::NoRoots);
        }
        let roots = store.len();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let crypto = |reason: String| TlsError::Crypto { what: "the upstream's verifier", reason };
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|error| crypto(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| crypto(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { inner, extra }))
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), roots })
    }

    /// How many roots are trusted.
    pub fn roots(&self) -> usize {
        self.roots
    }

    /// TLS over `io` to the peer of this name, offering what the client
    /// offers and an exchange can speak, in the client's order. An address as
    /// the name is verified against the certificate's addresses, and no name
    /// is sent (RFC 6066 §3).
    pub fn connect<IO>(
        &self,
        io: IO,
        name: ServerName<'static>,
        alpn: &[Vec<u8>],
    ) -> impl Future<Output = io::Result<TlsStream<IO>>> + Send + use<IO>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.connector.with_alpn(spoken(alpn)).connect(name, io)
    }
}

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

/// The usual verification, and one case more: a server that shows the very
/// certificate that `--upstream-ca` names. Such a self-signed certificate
/// (as `openssl req -x509` makes it) says of itself that it is an authority,
/// which webpki takes for an error where every other client accepts it.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    extra: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match usual {
            Err(Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer)) => {
                let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
                let (_, parsed) = X509Certificate::from_der(end_entity).map_err(bad)?;
                if self.extra.iter().all(|named| named != end_entity) {
                    // Whatever webpki calls it, a stranger that vouches for
                    // itself is an unknown issuer.
                    let itself = parsed.subject().as_raw() == parsed.issuer().as_raw();
                    return if itself { Err(CertificateError::UnknownIssuer.into()) } else { usual };
                }
                let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                if now > parsed.validity().not_after.timestamp() {
                    return Err(CertificateError::Expired.into());
                }
                if now < parsed.validity().not_before.timestamp() {
                    return Err(CertificateError::NotValidYet.into());
                }
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// rustls's error inside one of the stream's.
pub(super) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The alert a client would have sent itself, had it met this upstream; none
/// where the failure is not TLS's (a reset, an end of stream) and is to be
/// mirrored as what it is.
pub fn mirror_alert(error: &io::Error) -> Option<u8> {
    let alert = match tls_error(error)? {
        Error::AlertReceived(AlertDescription::CloseNotify) => return None,
        Error::AlertReceived(theirs) => *theirs,
        Error::InvalidCertificate(reason) => AlertDescription::from(reason.clone()),
        Error::NoCertificatesPresented => AlertDescription::DecodeError,
        Error::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
        Error::PeerIncompatible(_) => AlertDescription::HandshakeFailure,
        Error::PeerMisbehaved(_) => AlertDescription::IllegalParameter,
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            AlertDescription::UnexpectedMessage
        }
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        _ => AlertDescription::InternalError,
    };
    Some(u8::from(alert))
}

/// Whether the failure is our judgement of the upstream, and not what the
/// upstream said: a client by itself might have judged otherwise.
pub fn is_raised_here(error: &io::Error) -> bool {
    tls_error(error).is_some_and(|error| !matches!(error, Error::AlertReceived(_)))
}

/// A fatal alert as a record of its own, in the clear: what a server may send
/// before its hello, in TLS 1.2 (RFC 5246 §7.2) and 1.3 (RFC 8446 §6) alike.
pub fn alert_record(description: u8) -> [u8; 7] {
    const CONTENT_ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [CONTENT_ALERT, 3, 3, 0, 2, FATAL, description]
}

/// One sentence on why there is no TLS to the upstream `name`: the cause, and
/// what can be done where something can.
pub fn explain(error: &io::Error, name: &str) -> String {
    let Some(tls) = tls_error(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("{name} closed the connection during the TLS handshake"),
            _ => format!("the TLS handshake with {name} ended: {error}"),
        };
    };
    match tls {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the certificate of {name} has expired; the client got the alert it would have raised itself")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the certificate of {name} is not valid yet; is this machine's clock right?")
            }
            CertificateError::UnknownIssuer => format!(
                "the certificate of {name} was issued by an authority this system does not know; if it is yours, name its certificate with `--upstream-ca FILE`, or leave the host alone with `--passthrough {name}`"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let shown = match reason {
                    CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                        format!(" (it is for {})", some_of(presented))
                    }
                    _ => String::new(),
                };
                format!(
                    "the certificate of {name} is not valid for that name{shown}; if the client does not mind, leave the host alone with `--passthrough {name}`"
                )
            }
            CertificateError::BadSignature => format!(
                "the certificate of {name} names an authority that is known, but was signed with another key; was that authority made anew? Name its present certificate with `--upstream-ca FILE`"
            ),
            CertificateError::Revoked => format!("the certificate of {name} has been revoked"),
            other => format!(
                "the certificate of {name} does not hold: {other}; `--passthrough {name}` leaves the host alone"
            ),
        },
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} asks for a client certificate, which retryscope cannot have; use `--passthrough {name}`")
        }
        Error::AlertReceived(alert) => format!(
            "{name} ended the TLS handshake with the alert {alert:?}; if it asks for a client certificate, use `--passthrough {name}`"
        ),
        Error::PeerIncompatible(reason) => format!(
            "{name} speaks no TLS version or cipher that retryscope does ({reason:?}); use `--passthrough {name}`"
        ),
        Error::InvalidMessage(_) => {
            format!("what answers at {name} does not speak TLS; is it the right port?")
        }
        other => format!("the TLS handshake with {name} failed: {other}"),
    }
}

/// A certificate may carry hundreds of names, and its owner chooses them.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<String> =
        names.iter().take(SHOWN).map(|name| name.chars().filter(|c| !c.is_control()).take(80).collect()).collect();
    if names.len() > SHOWN {
        text.push(format!("{} more", names.len() - SHOWN));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests;
