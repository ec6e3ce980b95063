//! Client certificates: what an upstream asks for, and what is shown to it.
//!
//! In: the files of `--client-cert`, and an upstream's request in the middle
//! of a handshake. Out: the certificate, where it is one of those asked for;
//! else nothing, and the request is kept for whoever made the connection.
use std::{
    cell::RefCell,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::{TlsError, files};

/// Longer lists of authorities are taken for none, which asks for any.
const MAX_AUTHORITIES: usize = 8 << 10;

/// The certificate that upstreams are shown when they ask, with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// Who issued each certificate of the chain.
    issuers: Vec<Vec<u8>>,
}

/// What an upstream asks of its client (RFC 8446 §4.3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Names of the authorities it accepts, as DER; none = any.
    pub authorities: Vec<Vec<u8>>,
}

/// What became of an upstream's request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// There was none (or a session was resumed, which has none).
    #[default]
    No,
    /// It was shown the certificate of `--client-cert`.
    Shown,
    /// There was nothing to show.
    Unanswered(Arc<CertificateRequest>),
}

impl Identity {
    /// Reads a PEM file with the certificate and the chain above it, and the
    /// key from a file of its own, or from the same one.
    pub fn load(certificate: &Path, key: Option<&Path>) -> Result<Self, TlsError> {
        let read = |what, path: &Path| {
            files::read_bounded(path).map_err(|source| TlsError::Read { what, path: path.into(), source })
        };
        let bytes = read("the client certificate", certificate)?;
        let chain = files::certificates(&bytes);
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: certificate.into() });
        }
        let issuer = |der: &rustls::pki_types::CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(der)
                .map_err(|error| TlsError::BadCertificate { path: certificate.into(), reason: error.to_string() })?;
            Ok(parsed.issuer().as_raw().to_vec())
        };
        let issuers = chain.iter().map(issuer).collect::<Result<_, TlsError>>()?;

        let path = key.unwrap_or(certificate);
        let key_bytes = if key.is_some() { read("the client certificate's key", path)? } else { bytes };
        let unusable = |reason: &str| TlsError::BadClientKey { path: PathBuf::from(path), reason: reason.into() };
        let key = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| {
            let sealed = key_bytes.windows(9).any(|part| part == b"ENCRYPTED");
            unusable(if sealed { "it is encrypted" } else { "there is none in it" })
        })?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => unusable("it does not belong to the certificate"),
            other => unusable(&other.to_string()),
        })?;
        Ok(Self { key: Arc::new(key), issuers })
    }

    /// Whether this is what was asked for: of an authority listed, signed
    /// with an algorithm listed.
    fn answers(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> bool {
        (authorities.is_empty() || self.issuers.iter().any(|issuer| authorities.contains(&issuer.as_slice())))
            && self.key.key.choose_scheme(schemes).is_some()
    }
}

tokio::task_local! {
    /// rustls asks for a certificate without telling for which connection;
    /// but it does so while that connection's future is polled.
    static ASKED: RefCell<Asked>;
}

/// Runs a handshake, and tells what its server asked for.
pub(super) async fn noting<T>(handshake: impl Future<Output = T>) -> (T, Asked) {
    ASKED.scope(RefCell::default(), async { (handshake.await, ASKED.with(RefCell::take)) }).await
}

/// Answers requests.
#[derive(Debug)]
pub(super) struct Answers(pub(super) Option<Identity>);

impl ResolvesClientCert for Answers {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.as_ref().filter(|identity| identity.answers(authorities, schemes));
        let asked = if shown.is_some() {
            Asked::Shown
        } else {
            let few = authorities.iter().map(|name| name.len()).sum::<usize>() <= MAX_AUTHORITIES;
            let kept = if few { authorities } else { &[] };
            Asked::Unanswered(Arc::new(CertificateRequest {
                authorities: kept.iter().map(|name| name.to_vec()).collect(),
            }))
        };
        // Outside of `noting` nobody wants to know.
        let _ = ASKED.try_with(|noted| noted.replace(asked));
        shown.map(|identity| Arc::clone(&identity.key))
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}
