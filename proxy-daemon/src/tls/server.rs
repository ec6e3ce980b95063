//! Our side towards the client.
//!
//! In: a leaf and the application protocol that the upstream chose. Out: a
//! configuration for rustls, the same one each time, so that a client can
//! resume; and what a client meant when it refused our certificate.
//!
//! Tickets carry the session (nothing is kept per client), under one key that
//! all configurations share. Only clients of TLS 1.2 without tickets take a
//! place in the bounded session cache.
//!
//! Memory: with a read pending on both sides, the two TLS ends of an idle
//! connection hold 14 KiB of heap together (measured: 6.3 KiB towards the
//! client, 6.9 KiB towards the upstream, the streams themselves included).
//! rustls gives back the room of a large record when the next read is begun,
//! so that a side nobody reads from may hold 36 KiB.
use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lru::LruCache;
use rustls::{
    AlertDescription, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions,
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use super::{CertificateRequest, TlsError, upstream::tls_error};

/// How many configurations are kept; under 1 KiB each.
const MAX_CONFIGURATIONS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Sessions of TLS 1.2 clients that take no tickets.
const MAX_SESSIONS: usize = 1024;

/// One ticket resumes any number of connections here, so that a second one
/// would only be bytes.
const TICKETS: usize = 1;

/// Makes and keeps configurations.
#[derive(Debug)]
pub struct Servers {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
    kept: Mutex<LruCache<Key, Kept>>,
    evicted: AtomicU64,
}

/// The leaf by its address: [`Kept`] holds the leaf, so that the address
/// stays its own.
type Key = (usize, Option<Box<[u8]>>);

#[derive(Debug)]
struct Kept {
    _leaf: Arc<CertifiedKey>,
    config: Arc<ServerConfig>,
}

impl Servers {
    pub fn new() -> Result<Self, TlsError> {
        let tickets = aws_lc_rs::Ticketer::new()
            .map_err(|error| TlsError::Crypto { what: "the ticket key", reason: error.to_string() })?;
        Ok(Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            tickets,
            sessions: ServerSessionMemoryCache::new(MAX_SESSIONS),
            kept: Mutex::new(LruCache::new(MAX_CONFIGURATIONS)),
            evicted: AtomicU64::new(0),
        })
    }

    /// The configuration that shows `leaf` and speaks `alpn`. Without `alpn`
    /// whatever the client offers goes unanswered, as it does where the
    /// upstream chose none.
    pub fn config(&self, leaf: &Arc<CertifiedKey>, alpn: Option<&[u8]>) -> Result<Arc<ServerConfig>, TlsError> {
        let key = (Arc::as_ptr(leaf).addr(), alpn.map(Into::into));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&key) {
            return Ok(Arc::clone(&known.config));
        }
        let config = Arc::new(self.make(leaf, alpn, WebPkiClientVerifier::no_client_auth())?);
        // The key is new, so that whatever comes back was pushed out.
        if kept.push(key, Kept { _leaf: Arc::clone(leaf), config: Arc::clone(&config) }).is_some() {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(config)
    }

    /// The same, and passes on that the upstream asks for a client
    /// certificate. A client may show any or none: see
    /// [`shows_certificate`]. Not kept: few upstreams ask.
    pub fn asking(
        &self,
        leaf: &Arc<CertifiedKey>,
        alpn: Option<&[u8]>,
        request: &CertificateRequest,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let authorities = request.authorities.iter().map(|name| DistinguishedName::from(name.clone())).collect();
        let supported = self.provider.signature_verification_algorithms;
        self.make(leaf, alpn, Arc::new(Anyone { authorities, supported })).map(Arc::new)
    }

    fn make(
        &self,
        leaf: &Arc<CertifiedKey>,
        alpn: Option<&[u8]>,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Crypto { what: "a server configuration", reason: error.to_string() })?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(Only(Arc::clone(leaf))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = Arc::clone(&self.tickets);
        config.session_storage = Arc::clone(&self.sessions);
        config.send_tls13_tickets = TICKETS;
        Ok(config)
    }

    /// Configurations dropped because the cache was full.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

/// Shows one leaf whatever is asked: the choice was made before.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Asks for a client certificate as the upstream does. None can be passed on,
/// so that none is judged either.
#[derive(Debug)]
struct Anyone {
    authorities: Vec<DistinguishedName>,
    supported: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Anyone {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.supported.supported_schemes()
    }
}

/// Whether a client that was asked has a certificate of its own.
pub fn shows_certificate(session: &rustls::ServerConnection) -> bool {
    session.peer_certificates().is_some_and(|chain| !chain.is_empty())
}

/// If a client ended a handshake (or its connection, right after it) since it
/// does not trust our certificate: its reason, in a few words.
///
/// A client that pins certificates, or has a trust store of its own, is told
/// from one that failed otherwise by the alert it sends (RFC 8446 §6.2).
pub fn refused_by_client(error: &io::Error) -> Option<&'static str> {
    let Some(rustls::Error::AlertReceived(alert)) = tls_error(error) else { return None };
    Some(match alert {
        AlertDescription::UnknownCA => "it does not know our authority",
        AlertDescription::BadCertificate => "it holds our certificate for bad",
        AlertDescription::CertificateUnknown => "it does not accept our certificate",
        AlertDescription::UnsupportedCertificate => "it does not support our certificate",
        AlertDescription::CertificateExpired => "it holds our certificate for expired",
        AlertDescription::CertificateRevoked => "it holds our certificate for revoked",
        AlertDescription::AccessDenied => "it denies access to our certificate",
        AlertDescription::DecryptError => "it could not verify our signature",
        AlertDescription::BadCertificateStatusResponse => "it demands a proof of our certificate's status",
        _ => return None,
    })
}

/// Whether a client broke its handshake off without saying why.
pub fn is_broken_off(error: &io::Error) -> bool {
    tls_error(error).is_none()
        && matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Leaves};

    fn leaf(leaves: &Leaves, name: &str) -> Arc<CertifiedKey> {
        let theirs = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate").cert.into();
        leaves.for_upstream(Some(name), &theirs).expect("a leaf")
    }

    #[test]
    fn one_configuration_per_leaf_and_protocol() {
        let leaves = Leaves::new(Arc::new(Authority::in_memory().expect("an authority"))).expect("leaves");
        let servers = Servers::new().expect("servers");
        let (one, two) = (leaf(&leaves, "a.test"), leaf(&leaves, "b.test"));
        let first = servers.config(&one, Some(b"h2")).expect("a configuration");
        assert!(Arc::ptr_eq(&first, &servers.config(&one, Some(b"h2")).expect("a configuration")));
        assert!(!Arc::ptr_eq(&first, &servers.config(&one, None).expect("a configuration")));
        assert!(!Arc::ptr_eq(&first, &servers.config(&two, Some(b"h2")).expect("a configuration")));
        assert!(servers.config(&one, None).expect("a configuration").alpn_protocols.is_empty());
        assert_eq!(first.alpn_protocols, [b"h2"]);
    }

    #[test]
    fn refusals_are_told_from_other_failures() {
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        assert!(refused_by_client(&alert(AlertDescription::UnknownCA)).is_some());
        assert!(refused_by_client(&alert(AlertDescription::CertificateUnknown)).is_some());
        assert!(refused_by_client(&alert(AlertDescription::ProtocolVersion)).is_none());
        assert!(refused_by_client(&io::ErrorKind::ConnectionReset.into()).is_none());
    }
}
