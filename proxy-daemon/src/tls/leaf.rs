//! Leaf certificates, minted for the names clients ask for.
//!
//! In: the name a client asked for, if it did, and the upstream's own
//! (verified) certificate. Out: a key with a certificate that carries the
//! same names, signed by the authority.
//!
//! A client that asked for no name finds the upstream's names and no other:
//! whether one of them is what it meant to reach, it decides itself, as it
//! would without us.
//!
//! One key serves every leaf of the process; it is never the authority's. A
//! name is minted once however many ask at the same time, the cache is
//! bounded, and a leaf lives for days.
use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use lru::LruCache;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::{
    Authority, TlsError,
    authority::{BACKDATED, serial},
};

/// How many leaves are kept; about 2 KiB each.
const MAX_LEAVES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Names taken over from one upstream certificate. Certificates in use have
/// at most a few hundred; a client that asked for one past this still finds
/// it, since the name asked for is always in.
const MAX_NAMES: usize = 500;

/// Within this time, moments of several threads may be told in any order.
const TOGETHER: Duration = Duration::from_secs(10);
/// From its minting; with the backdating a leaf spans seven days.
pub(super) const LIFE: Duration = Duration::from_secs(5 * 24 * 60 * 60);

/// A cached leaf older than this is minted anew.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// X.520's upper bound for a common name.
const MAX_COMMON_NAME: usize = 64;

/// What the cache did since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafCounters {
    pub minted: u64,
    pub hits: u64,
    /// Leaves dropped because the cache was full.
    pub evicted: u64,
}

/// What a leaf depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    /// In lower case; none where no name was asked for.
    name: Option<Box<str>>,
    /// SHA-256 of the upstream's certificate.
    upstream: [u8; 32],
}

#[derive(PartialEq, Eq, Hash)]
enum Name {
    /// In lower case.
    Dns(Box<str>),
    Address(IpAddr),
}

/// Filled by whoever asks first; the others wait for it.
#[derive(Debug)]
struct Slot {
    made: SystemTime,
    leaf: OnceLock<Arc<CertifiedKey>>,
    /// Held while minting, so that it happens once.
    minting: Mutex<()>,
}

/// Mints leaves and keeps them.
#[derive(Debug)]
pub struct Leaves {
    authority: Arc<Authority>,
    key: KeyPair,
    signer: Arc<dyn rustls::sign::SigningKey>,
    kept: Mutex<LruCache<Asked, Arc<Slot>>>,
    minted: AtomicU64,
    hits: AtomicU64,
    evicted: AtomicU64,
}

impl Leaves {
    pub fn new(authority: Arc<Authority>) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::crypto("the leaf key"))?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)
            .map_err(|error| TlsError::Crypto { what: "the leaf key", reason: error.to_string() })?;
        Ok(Self {
            authority,
            key,
            signer,
            kept: Mutex::new(LruCache::new(MAX_LEAVES)),
            minted: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The leaf for a client that asked for `sni`, or for no name, and whose
    /// upstream showed `upstream_cert`.
    pub fn for_upstream(
        &self,
        sni: Option<&str>,
        upstream_cert: &CertificateDer<'_>,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        self.at(SystemTime::now(), sni, upstream_cert)
    }

    /// A certificate and its key for the name that a client asked for, or for
    /// the address where it asked for none: there is no upstream.
    pub fn without_upstream(&self, sni: Option<&str>, origin: IpAddr) -> Result<Arc<CertifiedKey>, TlsError> {
        if let Some(sni) = sni {
            return self.for_upstream(Some(sni), &CertificateDer::from(Vec::new()));
        }
        // As if an upstream had shown this.
        let shown = rcgen::CertificateParams::new(vec![origin.to_string()])
            .and_then(|params| params.self_signed(&self.key))
            .map_err(TlsError::crypto("a leaf"))?;
        self.for_upstream(None, shown.der())
    }

    pub fn counters(&self) -> LeafCounters {
        LeafCounters {
            minted: self.minted.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    fn at(
        &self,
        now: SystemTime,
        sni: Option<&str>,
        upstream_cert: &CertificateDer<'_>,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        let mut upstream = [0; 32];
        upstream.copy_from_slice(digest(&SHA256, upstream_cert).as_ref());
        let asked = Asked { name: sni.map(|name| name.to_ascii_lowercase().into()), upstream };
        let slot = self.slot(now, &asked);
        if let Some(leaf) = slot.leaf.get() {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(leaf));
        }
        let _minting = slot.minting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = slot.leaf.get() {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(leaf));
        }
        let leaf = Arc::new(self.mint(now, asked.name.as_deref(), upstream_cert)?);
        self.minted.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(slot.leaf.get_or_init(|| leaf)))
    }

    fn slot(&self, now: SystemTime, asked: &Asked) -> Arc<Slot> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = kept.get(asked) {
            // A clock that was set back makes the leaf look like it comes
            // from the future: mint anew then too. But who asks at the same
            // time may have looked at the clock a moment earlier.
            let fits = match now.duration_since(slot.made) {
                Ok(age) => age < RENEW_AFTER,
                Err(ahead) => ahead.duration() < TOGETHER,
            };
            if fits {
                return Arc::clone(slot);
            }
        }
        let slot = Arc::new(Slot { made: now, leaf: OnceLock::new(), minting: Mutex::new(()) });
        if kept.push(asked.clone(), Arc::clone(&slot)).is_some_and(|(old, _)| old != *asked) {
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        slot
    }

    fn mint(
        &self,
        now: SystemTime,
        name: Option<&str>,
        upstream: &CertificateDer<'_>,
    ) -> Result<CertifiedKey, TlsError> {
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LIFE).min(self.authority.expires).into();
        params.serial_number = Some(serial()?);
        params.subject_alt_names = self.names(name, upstream);
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "retryscope");
        // Some clients fall back to the common name where there are no
        // subject alternative names: it must not say more than they do.
        let common = params.subject_alt_names.first().map(|first| match first {
            SanType::DnsName(name) => name.to_string(),
            SanType::IpAddress(address) => address.to_string(),
            _ => String::new(),
        });
        if let Some(common) = common.filter(|common| (1..=MAX_COMMON_NAME).contains(&common.len())) {
            subject.push(DnType::CommonName, common);
        }
        params.distinguished_name = subject;
        // Writes the subject's key identifier as well as the plain "not an
        // authority".
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.key, &self.authority.issuer).map_err(TlsError::crypto("a leaf"))?;
        Ok(CertifiedKey::new(vec![leaf.into()], Arc::clone(&self.signer)))
    }

    /// The name asked for, then the upstream's own, each once. Of the
    /// upstream's, what the authority may not vouch for is left out: one such
    /// name would make the whole leaf invalid. The host name asked for stays
    /// in even so: the client shall see the limit and refuse.
    fn names(&self, asked: Option<&str>, upstream: &CertificateDer<'_>) -> Vec<SanType> {
        let mut names = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut add = |name: Name, permitted: bool| {
            let san = match &name {
                Name::Dns(text)
                    if !text.is_empty() && text.len() <= 253 && (permitted || self.authority.permits(text)) =>
                {
                    text.to_string().try_into().ok().map(SanType::DnsName)
                }
                Name::Address(address) if self.authority.permits_addresses() => Some(SanType::IpAddress(*address)),
                _ => None,
            };
            if let Some(san) = san
                && names.len() < MAX_NAMES
                && seen.insert(name)
            {
                names.push(san);
            }
        };
        if let Some(asked) = asked {
            add(Name::Dns(asked.into()), true);
        }
        if let Ok((_, certificate)) = X509Certificate::from_der(upstream)
            && let Ok(Some(subjects)) = certificate.subject_alternative_name()
        {
            for subject in &subjects.value.general_names {
                match subject {
                    GeneralName::DNSName(name) => add(Name::Dns(name.to_ascii_lowercase().into()), false),
                    GeneralName::IPAddress(bytes) => {
                        if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                            add(Name::Address(four.into()), false);
                        } else if let Ok(sixteen) = <[u8; 16]>::try_from(*bytes) {
                            add(Name::Address(sixteen.into()), false);
                        }
                    }
                    _ => {}
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::ParsedExtension;

    use super::*;

    fn leaves() -> Leaves {
        Leaves::new(Arc::new(Authority::in_memory().expect("an authority"))).expect("leaves")
    }

    fn upstream(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::generate_simple_self_signed(names).expect("a certificate").cert.into()
    }

    fn names_of(leaf: &CertifiedKey) -> Vec<String> {
        let (_, parsed) = X509Certificate::from_der(&leaf.cert[0]).expect("a certificate");
        let names = parsed.subject_alternative_name().expect("readable").expect("present");
        names
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::DNSName(name) => (*name).to_owned(),
                GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn takes_over_the_upstreams_names() {
        let leaves = leaves();
        let theirs = upstream(&["*.b.test", "a.test", "192.0.2.9", "B.test"]);
        let leaf = leaves.for_upstream(Some("A.test"), &theirs).expect("a leaf");
        assert_eq!(names_of(&leaf), ["a.test", "*.b.test", "[192, 0, 2, 9]", "b.test"]);
        leaf.keys_match().expect("the key is the certificate's");

        // No name was asked for: none that the upstream does not have.
        let unnamed = leaves.for_upstream(None, &theirs).expect("a leaf");
        assert_eq!(names_of(&unnamed), ["*.b.test", "a.test", "[192, 0, 2, 9]", "b.test"]);
    }

    #[test]
    fn is_a_leaf_by_the_book() {
        let leaves = leaves();
        let leaf = leaves.for_upstream(Some("a.test"), &upstream(&["a.test"])).expect("a leaf");
        let (_, parsed) = X509Certificate::from_der(&leaf.cert[0]).expect("a certificate");
        let (_, issuer) = X509Certificate::from_der(leaves.authority().certificate_der()).expect("a certificate");
        assert!(!parsed.is_ca());
        let constraints = parsed.basic_constraints().expect("readable").expect("present");
        assert!(constraints.critical && !constraints.value.ca);
        // What strict clients compare: each one's own key, and its issuer's.
        let identifiers = |certificate: &X509Certificate<'_>| {
            let (mut own, mut issuers) = (None, None);
            for extension in certificate.extensions() {
                match extension.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(key) => own = Some(key.0.to_vec()),
                    ParsedExtension::AuthorityKeyIdentifier(key) => {
                        issuers = key.key_identifier.as_ref().map(|key| key.0.to_vec());
                    }
                    _ => {}
                }
            }
            (own.expect("present"), issuers.expect("present"))
        };
        let (own, issuers) = identifiers(&parsed);
        assert_eq!((&issuers, &identifiers(&issuer).1), (&identifiers(&issuer).0, &issuers));
        assert_ne!(own, issuers);
        let usage = parsed.extended_key_usage().expect("readable").expect("present");
        assert!(usage.value.server_auth && !usage.value.any && !usage.value.client_auth);
        assert_eq!(parsed.issuer(), issuer.subject());
        assert!(parsed.key_usage().expect("readable").expect("present").value.digital_signature());
        assert!(parsed.raw_serial().len() <= 20 && parsed.raw_serial()[0] < 0x80);
        let span = parsed.validity().not_after - parsed.validity().not_before;
        assert!(span.is_some_and(|span| span.whole_days() <= 7));
        assert!(parsed.validity().not_before >= issuer.validity().not_before);
        assert!(parsed.validity().not_after <= issuer.validity().not_after);
        assert_ne!(parsed.public_key().raw, issuer.public_key().raw);
        let other = leaves.for_upstream(Some("b.test"), &upstream(&["b.test"])).expect("a leaf");
        let (_, other) = X509Certificate::from_der(&other.cert[0]).expect("a certificate");
        assert_ne!(parsed.raw_serial(), other.raw_serial());
        assert_eq!(parsed.public_key().raw, other.public_key().raw);
    }

    #[test]
    fn long_and_odd_names_are_survived() {
        let leaves = leaves();
        let long = format!("{}.test", "a".repeat(70));
        let leaf = leaves.for_upstream(Some(&long), &upstream(&["a.test"])).expect("a leaf");
        let (_, parsed) = X509Certificate::from_der(&leaf.cert[0]).expect("a certificate");
        assert_eq!(parsed.subject().iter_common_name().count(), 0);
        assert_eq!(names_of(&leaf)[0], long);

        let junk = CertificateDer::from(b"not a certificate".to_vec());
        let leaf = leaves.for_upstream(Some("under_score.test"), &junk).expect("a leaf");
        assert_eq!(names_of(&leaf), ["under_score.test"]);
    }

    #[test]
    fn names_taken_over_are_bounded() {
        let many: Vec<String> = (0..900).map(|at| format!("h{at}.test")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let leaf = leaves().for_upstream(Some("h899.test"), &upstream(&many)).expect("a leaf");
        assert_eq!(names_of(&leaf).len(), MAX_NAMES);
        assert_eq!(names_of(&leaf)[0], "h899.test");
    }

    #[test]
    fn authority_with_limits_is_obeyed() {
        let folder = tempfile::tempdir().expect("a folder");
        Authority::init(folder.path(), &["b.test".into()]).expect("a pair");
        let authority = Authority::load_from(folder.path()).expect("loads");
        let leaves = Leaves::new(Arc::new(authority)).expect("leaves");
        let theirs = upstream(&["x.b.test", "a.test", "192.0.2.9"]);
        let leaf = leaves.for_upstream(Some("b.test"), &theirs).expect("a leaf");
        assert_eq!(names_of(&leaf), ["b.test", "x.b.test"]);
        // What was asked for is shown, so that the client refuses it.
        let leaf = leaves.for_upstream(Some("c.test"), &theirs).expect("a leaf");
        assert_eq!(names_of(&leaf), ["c.test", "x.b.test"]);
        // Where nothing is left, the common name must not stand in for it.
        let leaf = leaves.for_upstream(None, &upstream(&["a.test", "192.0.2.9"])).expect("a leaf");
        let (_, parsed) = X509Certificate::from_der(&leaf.cert[0]).expect("a certificate");
        assert!(parsed.subject_alternative_name().expect("readable").is_none());
        assert_eq!(parsed.subject().iter_common_name().count(), 0);
    }

    #[test]
    fn minted_once_when_many_ask() {
        let leaves = leaves();
        let theirs = upstream(&["a.test"]);
        let start = std::sync::Barrier::new(16);
        let got: Vec<Arc<CertifiedKey>> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        leaves.for_upstream(Some("a.test"), &theirs).expect("a leaf")
                    })
                })
                .collect();
            asking.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(got.iter().all(|leaf| Arc::ptr_eq(leaf, &got[0])));
        assert_eq!(leaves.counters(), LeafCounters { minted: 1, hits: 15, evicted: 0 });
    }

    #[test]
    fn another_upstream_certificate_is_another_leaf() {
        let leaves = leaves();
        leaves.for_upstream(Some("a.test"), &upstream(&["a.test"])).expect("a leaf");
        leaves.for_upstream(Some("a.test"), &upstream(&["a.test"])).expect("a leaf");
        assert_eq!(leaves.counters().minted, 2);
    }

    #[test]
    fn cache_is_bounded_and_renewed() {
        let leaves = leaves();
        let theirs = upstream(&["a.test"]);
        let now = SystemTime::now();
        for at in 0..MAX_LEAVES.get() + 3 {
            leaves.slot(now, &Asked { name: Some(format!("{at}.test").into()), upstream: [0; 32] });
        }
        assert_eq!(leaves.counters().evicted, 3);

        let first = leaves.at(now, Some("a.test"), &theirs).expect("a leaf");
        let soon = leaves.at(now + RENEW_AFTER / 2, Some("a.test"), &theirs).expect("a leaf");
        let later = leaves.at(now + RENEW_AFTER * 2, Some("a.test"), &theirs).expect("a leaf");
        let back = leaves.at(now, Some("a.test"), &theirs).expect("a leaf");
        assert!(Arc::ptr_eq(&first, &soon) && !Arc::ptr_eq(&first, &later) && !Arc::ptr_eq(&later, &back));
        assert_eq!(leaves.counters().evicted, 4, "a renewal is not an eviction");
    }
}
