//! Whether an upstream's certificate holds.
//!
//! In: its chain, and the name the client asked for. Out: it holds; it does
//! not; or it is of a kind that other clients judge otherwise ([`Unjudged`]).
use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The usual verification, and three cases more:
///
/// - A server that shows the very certificate that `--upstream-ca` names. Such
///   a self-signed certificate (as `openssl req -x509` makes it) says of
///   itself that it is an authority, which webpki takes for an error where
///   every other client accepts it.
/// - A client that asked for no name: the chain must hold, and the name is
///   the client's to check. The leaf has the upstream's names and no other.
/// - A certificate without subject alternative names, which some clients
///   still take by its common name.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) extra: Arc<[CertificateDer<'static>]>,
    /// The client asked for no name.
    pub(super) unnamed: bool,
}

/// A certificate that webpki does not read as other libraries do: whether it
/// holds, only the client can tell.
#[derive(Debug, thiserror::Error)]
#[error("it names its host in the common name alone")]
pub(super) struct Unjudged;

impl Verifier {
    fn verify(
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
        let verified = self.verify(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Names are looked at last: all else holds.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let named = X509Certificate::from_der(end_entity)
                    .is_ok_and(|(_, parsed)| !matches!(parsed.subject_alternative_name(), Ok(None)));
                match (named, self.unnamed) {
                    (false, _) => Err(CertificateError::Other(OtherError(Arc::new(Unjudged))).into()),
                    (true, true) => Ok(ServerCertVerified::assertion()),
                    (true, false) => verified,
                }
            }
            verified => verified,
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
