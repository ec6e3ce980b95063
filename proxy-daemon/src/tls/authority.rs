//! The authority whose certificates a target trusts.
//!
//! In: nothing (an authority for one command, in memory), or the pair of
//! files that `retryscope ca init` makes. Out: its certificate, and leaves
//! signed by it (see [`super::leaf`]).
//!
//! The key is written only by [`Authority::init`], with mode 0600, and read
//! only from a file that nobody else can read.
use std::{
    fmt, fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::{TlsError, files, signer::Signer};

/// Clocks differ: a certificate made now must hold on a machine that is
/// behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// An authority in memory ends with its command; the date only has to outlast
/// the longest one.
const IN_MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const ON_DISK: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// File names inside the folder of `ca init`.
const CERTIFICATE_FILE: &str = "retryscope-ca.pem";
const KEY_FILE: &str = "retryscope-ca.key";

/// A key and the certificate that says it may sign others.
pub struct Authority {
    pub(super) issuer: Issuer<'static, Signer>,
    pub(super) expires: SystemTime,
    der: CertificateDer<'static>,
    pem: String,
    /// Domains to which the certificate limits what it signs; none = all.
    permitted: Vec<String>,
}

/// What [`Authority::init`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initialised {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// SHA-256 of the certificate, in the form browsers and OpenSSL show.
    pub fingerprint: String,
}

impl Authority {
    /// An authority that exists only in this process.
    pub fn in_memory() -> Result<Self, TlsError> {
        Self::make("retryscope for one command", &[], SystemTime::now(), IN_MEMORY)
    }

    /// The same for a program that runs for months, limited to domains as
    /// [`Authority::init`] says.
    pub fn in_memory_for(permitted_domains: &[String]) -> Result<Self, TlsError> {
        Self::make("retryscope authority", permitted_domains, SystemTime::now(), ON_DISK)
    }

    /// Reads the pair in `folder`, or makes one there.
    pub fn kept_in(folder: &Path, permitted_domains: &[String]) -> Result<Self, TlsError> {
        if folder.join(CERTIFICATE_FILE).symlink_metadata().is_err() {
            // A key without its certificate is of no use to anyone: whoever
            // wrote it was stopped in between.
            fs::remove_file(folder.join(KEY_FILE)).ok();
            Self::init(folder, permitted_domains)?;
        }
        Self::load_from(folder)
    }

    /// Reads a pair of files. The key is refused where anyone but its owner
    /// can read it, or where the owner is neither this user nor root.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let signer = read_key(key)?;
        let read = |source| TlsError::Read { what: "the authority's certificate", path: certificate.into(), source };
        let bytes = files::read_bounded(certificate).map_err(read)?;
        let der = files::certificates(&bytes)
            .into_iter()
            .next()
            .ok_or_else(|| TlsError::NoCertificate { path: certificate.into() })?;
        let unusable = |reason| TlsError::NotAnAuthority { path: certificate.into(), reason };
        let bad = |reason: String| TlsError::BadCertificate { path: certificate.into(), reason };

        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| bad(error.to_string()))?;
        if parsed.public_key().raw != signer.subject_public_key_info() {
            return Err(TlsError::KeyMismatch { key: key.into(), certificate: certificate.into() });
        }
        if !parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca) {
            return Err(unusable("it is not a certificate authority's"));
        }
        if parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(unusable("it may not sign certificates"));
        }
        if !parsed.validity().is_valid() {
            return Err(unusable("it has expired or is not valid yet"));
        }
        Self::of(der.into_owned(), Signer::Key(signer)).map_err(bad)
    }

    /// Whoever signs, under a certificate that is known to be an authority's.
    pub(super) fn of(der: CertificateDer<'static>, signer: Signer) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let permitted = permitted_domains(&parsed);
        let issuer = Issuer::from_ca_cert_der(&der, signer).map_err(|error| error.to_string())?;
        Ok(Self {
            issuer,
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
            pem: super::system::encode(&der),
            permitted,
            der,
        })
    }

    /// Makes an authority and writes its pair of files into `folder`, which
    /// is made (0755: others read the certificate there, the key they cannot)
    /// where it does not exist. Nothing is overwritten. Where
    /// domains are listed, the authority can vouch for them and their
    /// subdomains and for nothing else: no other name, no address. (Java does
    /// not heed the limits of a certificate in its store; OpenSSL, GnuTLS and
    /// Node do.)
    pub fn init(folder: &Path, permitted_domains: &[String]) -> Result<Initialised, TlsError> {
        let authority = Self::make("retryscope authority", permitted_domains, SystemTime::now(), ON_DISK)?;
        let certificate = folder.join(CERTIFICATE_FILE);
        let key = folder.join(KEY_FILE);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(|source| TlsError::Write { path: folder.into(), source })?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
                .map_err(|source| TlsError::Write { path: folder.into(), source })?;
        }
        if certificate.symlink_metadata().is_ok() {
            return Err(TlsError::Exists { path: certificate });
        }
        write_new(&key, 0o600, authority.issuer.key().pem().as_bytes())?;
        if let Err(error) = write_new(&certificate, 0o644, authority.pem.as_bytes()) {
            // A key without its certificate is of no use to anyone.
            fs::remove_file(&key).ok();
            return Err(error);
        }
        Ok(Initialised { certificate, key, fingerprint: authority.fingerprint() })
    }

    /// Reads the pair that [`Authority::init`] wrote into `folder`.
    pub fn load_from(folder: &Path) -> Result<Self, TlsError> {
        Self::load(&folder.join(CERTIFICATE_FILE), &folder.join(KEY_FILE))
    }

    /// The certificate's file inside the folder of [`Authority::init`].
    pub fn certificate_path(folder: &Path) -> PathBuf {
        folder.join(CERTIFICATE_FILE)
    }

    /// The key's.
    pub fn key_path(folder: &Path) -> PathBuf {
        folder.join(KEY_FILE)
    }

    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate: `AB:CD:…`.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Whether a leaf of this authority would be accepted for the name.
    pub fn permits(&self, name: &str) -> bool {
        self.permitted.is_empty()
            || self.permitted.iter().any(|domain| {
                let name = name.strip_prefix("*.").unwrap_or(name).as_bytes();
                let domain = domain.as_bytes();
                name.len() >= domain.len() && {
                    let (front, end) = name.split_at(name.len() - domain.len());
                    end.eq_ignore_ascii_case(domain) && (front.is_empty() || front.ends_with(b"."))
                }
            })
    }

    /// Whether it may vouch for any name at all.
    pub fn is_unlimited(&self) -> bool {
        self.permitted.is_empty()
    }

    /// Whether a leaf of this authority may carry an address.
    pub fn permits_addresses(&self) -> bool {
        self.permitted.is_empty()
    }

    fn make(purpose: &str, domains: &[String], now: SystemTime, life: Duration) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::crypto("the authority's key"))?;
        let permitted = domains.iter().map(|name| domain(name)).collect::<Result<Vec<_>, _>>()?;

        // The mark keeps two authorities of one day apart: stores look
        // issuers up by name.
        let mark = digest(&SHA256, &key.subject_public_key_info());
        let mark: String = mark.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "retryscope");
        params.not_before = now.into();
        let today = params.not_before.date();
        name.push(DnType::CommonName, format!("{purpose}, {} ({mark})", today));
        params.distinguished_name = name;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + life).into();
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Python's and OpenSSL's strict modes want one wherever the issuer
        // is not plainly the certificate itself.
        params.use_authority_key_identifier_extension = true;
        if !permitted.is_empty() {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: permitted.iter().cloned().map(GeneralSubtree::DnsName).collect(),
                // A list of names alone would leave every address permitted.
                excluded_subtrees: vec![
                    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
                    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)),
                ],
            });
        }
        let certificate = params.self_signed(&key).map_err(TlsError::crypto("the authority's certificate"))?;
        Ok(Self {
            issuer: Issuer::new(params, Signer::Key(key)),
            expires: now + life,
            pem: super::system::encode(certificate.der()),
            der: certificate.into(),
            permitted,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .field("permitted", &self.permitted)
            .finish_non_exhaustive()
    }
}

pub(super) fn fingerprint(der: &[u8]) -> String {
    let hash = digest(&SHA256, der);
    hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

/// A positive serial number of 16 random bytes (RFC 5280 §4.1.2.2 allows 20).
pub(super) fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| TlsError::Crypto { what: "a serial number", reason: "no randomness".into() })?;
    // Neither negative nor with a leading zero byte.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A domain as name constraints spell it: no wildcard, no dots around it.
fn domain(given: &str) -> Result<String, TlsError> {
    let name = given.strip_prefix("*.").unwrap_or(given).trim_matches('.').to_ascii_lowercase();
    let legal = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > 253 || !name.split('.').all(legal) || name.parse::<IpAddr>().is_ok() {
        return Err(TlsError::BadDomain { name: given.into() });
    }
    Ok(name)
}

fn permitted_domains(certificate: &X509Certificate<'_>) -> Vec<String> {
    certificate
        .iter_extensions()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => constraints.permitted_subtrees.as_deref(),
            _ => None,
        })
        .flatten()
        .filter_map(|subtree| match subtree.base {
            GeneralName::DNSName(name) => Some(name.trim_start_matches('.').to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn read_key(path: &Path) -> Result<KeyPair, TlsError> {
    let unreadable = |source| TlsError::Read { what: "the authority's key", path: path.into(), source };
    let file = fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    // Asked of the open file, so that what is checked is what is read.
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    if about.mode() & 0o077 != 0 {
        return Err(TlsError::KeyExposed { path: path.into(), mode: about.mode() & 0o7777 });
    }
    let expected = nix::unistd::geteuid().as_raw();
    if about.uid() != expected && about.uid() != 0 {
        return Err(TlsError::KeyOwner { path: path.into(), owner: about.uid(), expected });
    }
    let mut text = String::new();
    file.take(64 << 10).read_to_string(&mut text).map_err(unreadable)?;
    KeyPair::from_pem(&text).map_err(|error| TlsError::BadKey { path: path.into(), reason: error.to_string() })
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), TlsError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => TlsError::Exists { path: path.into() },
        _ => TlsError::Write { path: path.into(), source },
    };
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    // The mode given to open() is narrowed by the umask; this one is not.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_memory_says_what_it_is() {
        let authority = Authority::in_memory().expect("an authority");
        let (_, parsed) = X509Certificate::from_der(authority.certificate_der()).expect("a certificate");
        let subject = parsed.subject().to_string();
        assert!(subject.contains("retryscope for one command, 20"), "{subject}");
        let constraints = parsed.basic_constraints().expect("readable").expect("present");
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = parsed.key_usage().expect("readable").expect("present");
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let start = u64::try_from(parsed.validity().not_before.timestamp()).expect("after 1970");
        assert!((age - start).abs_diff(BACKDATED.as_secs()) < 60);
        assert!(parsed.raw_serial().len() <= 20 && parsed.raw_serial()[0] < 0x80);
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }

    #[test]
    fn pair_is_private_and_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("new");
        let made = Authority::init(&folder, &[]).expect("a pair");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
        assert_eq!((mode(&made.key), mode(&made.certificate), mode(&folder)), (0o600, 0o644, 0o755));
        assert_eq!(Authority::load_from(&folder).expect("loads").fingerprint(), made.fingerprint);

        let key = fs::read(&made.key).expect("the key");
        assert!(matches!(Authority::init(&folder, &[]), Err(TlsError::Exists { .. })));
        fs::remove_file(&made.certificate).expect("removed");
        assert!(matches!(Authority::init(&folder, &[]), Err(TlsError::Exists { .. })));
        assert_eq!(fs::read(&made.key).expect("the key"), key);
    }

    #[test]
    fn key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Authority::init(folder.path(), &[]).expect("a pair");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&made.key, fs::Permissions::from_mode(mode)).expect("chmod");
            let error = Authority::load_from(folder.path()).expect_err("exposed");
            assert!(matches!(error, TlsError::KeyExposed { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
            assert_eq!(error.exit_code(), 64);
        }
        fs::set_permissions(&made.key, fs::Permissions::from_mode(0o400)).expect("chmod");
        Authority::load_from(folder.path()).expect("0400 is private too");
    }

    #[test]
    fn pair_that_does_not_belong_together_is_refused() {
        let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let first = Authority::init(one.path(), &[]).expect("a pair");
        let second = Authority::init(two.path(), &[]).expect("a pair");
        assert!(matches!(Authority::load(&first.certificate, &second.key), Err(TlsError::KeyMismatch { .. })));
        assert!(matches!(Authority::load(&first.certificate, &first.certificate), Err(TlsError::KeyExposed { .. })));
        fs::write(&first.certificate, "nothing").expect("written");
        assert!(matches!(Authority::load_from(one.path()), Err(TlsError::NoCertificate { .. })));
        fs::write(&first.certificate, super::super::system::encode(b"junk")).expect("written");
        assert!(matches!(Authority::load_from(one.path()), Err(TlsError::BadCertificate { .. })));
        fs::write(&second.key, "junk").expect("written");
        assert!(matches!(Authority::load_from(two.path()), Err(TlsError::BadKey { .. })));
        assert!(matches!(Authority::load_from(Path::new("/nowhere")), Err(TlsError::Read { .. })));
    }

    #[test]
    fn listed_domains_limit_it() {
        let folder = tempfile::tempdir().expect("a folder");
        Authority::init(folder.path(), &["*.Example.com".into(), "b.test".into()]).expect("a pair");
        let authority = Authority::load_from(folder.path()).expect("loads");
        for name in ["example.com", "a.EXAMPLE.com", "*.example.com", "x.b.test"] {
            assert!(authority.permits(name), "{name}");
        }
        for name in ["badexample.com", "com", "test", "", "*.com"] {
            assert!(!authority.permits(name), "{name}");
        }
        assert!(!authority.permits_addresses());
        for name in ["", "a b", "10.0.0.1", "*", "a..b", "é.com"] {
            assert!(
                matches!(Authority::init(folder.path(), &[name.into()]), Err(TlsError::BadDomain { .. })),
                "{name}"
            );
        }
    }
}
