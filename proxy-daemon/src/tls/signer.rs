//! Who signs leaves: a key of this process's, or another process that keeps
//! it.
//!
//! Whoever keeps the key for another looks at what it is to sign: leaves of
//! its own authority, for servers, that live for days. So a process that asks
//! for signatures and has been taken over cannot make an authority of its own,
//! nor anything that outlives it for long.
use std::{fmt, io, time::Duration};

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::TbsCertificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::{Authority, TlsError, authority::BACKDATED, leaf::LIFE};

/// Asks whoever has the key.
pub trait RemoteKey: fmt::Debug + Send + Sync {
    /// The signature over the DER of a leaf's contents (a TBSCertificate).
    fn sign(&self, leaf: &[u8]) -> io::Result<Vec<u8>>;
}

/// The authority's key, as rcgen wants it.
pub(super) enum Signer {
    Key(KeyPair),
    Remote { public: SubjectPublicKeyInfo, key: Box<dyn RemoteKey> },
}

impl Signer {
    /// The key as a file; of one that is kept elsewhere, nothing.
    pub(super) fn pem(&self) -> String {
        match self {
            Signer::Key(key) => key.serialize_pem(),
            Signer::Remote { .. } => String::new(),
        }
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Signer::Key(key) => key.der_bytes(),
            Signer::Remote { public, .. } => public.der_bytes(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Signer::Key(key) => key.algorithm(),
            Signer::Remote { public, .. } => public.algorithm(),
        }
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Signer::Key(key) => key.sign(message),
            Signer::Remote { key, .. } => key.sign(message).map_err(|error| {
                tracing::warn!(%error, "the process that keeps the authority's key did not sign");
                rcgen::Error::RemoteKeyError
            }),
        }
    }
}

/// Clocks of two processes of one machine agree; this is for the time in
/// between.
const LEEWAY: Duration = Duration::from_secs(60 * 60);

impl Authority {
    /// An authority whose key another process keeps.
    pub fn remote(certificate: &[u8], key: Box<dyn RemoteKey>) -> Result<Self, TlsError> {
        let unusable = |reason: String| TlsError::Crypto { what: "an authority whose key is kept elsewhere", reason };
        let der = CertificateDer::from(certificate.to_vec());
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unusable(error.to_string()))?;
        let public =
            SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(|error| unusable(error.to_string()))?;
        Self::of(der, Signer::Remote { public, key }).map_err(unusable)
    }

    /// Signs the contents of a leaf for another process.
    ///
    /// # Errors
    /// Why it is none that this authority would make.
    pub fn sign_leaf(&self, contents: &[u8]) -> Result<Vec<u8>, String> {
        self.check_leaf(contents)?;
        self.issuer.key().sign(contents).map_err(|error| error.to_string())
    }

    fn check_leaf(&self, contents: &[u8]) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("not a leaf of ours: {what}"));
        let (rest, leaf) = TbsCertificate::from_der(contents).map_err(|error| format!("no certificate: {error}"))?;
        let (_, own) = X509Certificate::from_der(self.certificate_der()).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return wrong("something follows it");
        }
        if leaf.issuer.as_raw() != own.subject().as_raw() {
            return wrong("it names another issuer");
        }
        let span = leaf.validity.not_after - leaf.validity.not_before;
        let longest = BACKDATED + LIFE + LEEWAY;
        if span.is_none_or(|span| span.unsigned_abs() > longest || span.is_negative()) {
            return wrong("it lives too long");
        }
        let now = x509_parser::time::ASN1Time::now().timestamp();
        let ahead = i64::try_from((LIFE + LEEWAY).as_secs()).unwrap_or(i64::MAX);
        if leaf.validity.not_after.timestamp() > now.saturating_add(ahead) {
            return wrong("it ends too late");
        }
        if leaf.public_key().raw == own.public_key().raw {
            return wrong("it is for the authority's own key");
        }
        let mut for_servers = false;
        for extension in leaf.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) if !constraints.ca => {}
                ParsedExtension::KeyUsage(usage) if !usage.key_cert_sign() && !usage.crl_sign() => {}
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    for_servers = usage.server_auth
                        && !(usage.any || usage.client_auth || usage.code_signing || usage.email_protection);
                    if !for_servers || !usage.other.is_empty() || usage.ocsp_signing || usage.time_stamping {
                        return wrong("it is for more than servers");
                    }
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        if !matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)) {
                            return wrong("it names something that is no server");
                        }
                    }
                }
                ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                _ => return wrong("it has an extension that leaves do not have"),
            }
        }
        if for_servers { Ok(()) } else { wrong("it does not say that it is for servers") }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

    use super::*;
    use crate::tls::Leaves;

    /// The key in another place, and what it was asked to sign.
    #[derive(Debug)]
    struct Elsewhere(Arc<Authority>);

    impl RemoteKey for Elsewhere {
        fn sign(&self, leaf: &[u8]) -> io::Result<Vec<u8>> {
            self.0.sign_leaf(leaf).map_err(io::Error::other)
        }
    }

    fn pair() -> (Arc<Authority>, Authority) {
        let own = Arc::new(Authority::in_memory().expect("an authority"));
        let remote = Authority::remote(own.certificate_der(), Box::new(Elsewhere(Arc::clone(&own))));
        (own, remote.expect("an authority"))
    }

    #[test]
    fn leaves_are_signed_elsewhere() {
        let (own, remote) = pair();
        assert_eq!(own.fingerprint(), remote.fingerprint());
        let leaves = Leaves::new(Arc::new(remote)).expect("leaves");
        let theirs = rcgen::generate_simple_self_signed(vec!["a.test".into()]).expect("a certificate").cert.into();
        let leaf = leaves.for_upstream(Some("a.test"), &theirs).expect("a leaf");
        let (_, leaf) = X509Certificate::from_der(&leaf.cert[0]).expect("a certificate");
        let (_, own) = X509Certificate::from_der(own.certificate_der()).expect("a certificate");
        assert_eq!(leaf.issuer(), own.subject());
    }

    #[test]
    fn nothing_but_leaves_is_signed() {
        let (own, remote) = pair();
        let key = KeyPair::generate().expect("a key");
        let attempt = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
            let now = std::time::SystemTime::now();
            params.not_before = (now - BACKDATED).into();
            params.not_after = (now + LIFE).into();
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            change(&mut params);
            params.signed_by(&key, &remote.issuer).is_ok()
        };
        assert!(attempt(&|_| {}));
        let now = std::time::SystemTime::now();
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(!attempt(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), "an authority");
        assert!(!attempt(&|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]), "may sign");
        assert!(!attempt(&|params| params.not_after = (now + day * 365).into()), "a year");
        assert!(
            !attempt(&|params| {
                params.not_before = (now + day * 300).into();
                params.not_after = (now + day * 301).into();
            }),
            "for later"
        );
        assert!(
            !attempt(&|params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning)),
            "signs code"
        );
        assert!(!attempt(&|params| params.extended_key_usages.clear()), "for anything");
        let person = rcgen::SanType::Rfc822Name("a@b.test".try_into().expect("ASCII"));
        assert!(!attempt(&|params| params.subject_alt_names.push(person.clone())), "a person");
        assert!(own.sign_leaf(b"anything at all").is_err());
        let other = Authority::in_memory().expect("an authority");
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let foreign = params.signed_by(&key, &other.issuer).expect("a leaf");
        let (_, foreign) = X509Certificate::from_der(foreign.der()).expect("a certificate");
        assert!(own.sign_leaf(foreign.tbs_certificate.as_ref()).is_err(), "another's leaf");
    }
}
