//! Authorities and leaves for test upstreams: a good one, one that nobody
//! trusts, an expired leaf, a leaf for another name.
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tempfile::TempDir;

pub struct TestCa {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    unknown: Issuer<'static, KeyPair>,
    pin: Mutex<String>,
}

/// Which leaf an upstream shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Good,
    /// Signed by an authority that is given to nobody.
    UnknownIssuer,
    /// Its last day was years ago.
    Expired,
    /// Good, but for `elsewhere.test` alone.
    WrongName,
}

/// The certificate in a folder of `retryscope ca init`.
#[track_caller]
pub fn certificate(folder: &std::path::Path) -> PathBuf {
    let files = std::fs::read_dir(folder).expect("the folder").flatten().map(|entry| entry.path());
    let is_certificate = |path: &PathBuf| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("CERTIFICATE") && !text.contains("PRIVATE KEY"))
    };
    files.into_iter().find(is_certificate).expect("a certificate")
}

/// A leaf as files, for servers that are not ours.
pub struct LeafFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("an authority").pem();
    (Issuer::new(params, key), pem)
}

impl TestCa {
    pub fn new() -> Self {
        // TLS libraries ask for one process-wide provider; a second call is refused and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("retryscope-test-ca-").tempdir().expect("a temporary folder");
        let (issuer, pem) = authority("retryscope test authority");
        let (unknown, unknown_pem) = authority("unknown authority");
        std::fs::write(dir.path().join("ca.pem"), &pem).expect("writing ca.pem");
        std::fs::write(dir.path().join("unknown.pem"), unknown_pem).expect("writing unknown.pem");
        Self { dir, issuer, unknown, pin: Mutex::default() }
    }

    /// The certificate that `--upstream-ca` is given.
    pub fn pem(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The key of the newest leaf, as those name it who pin it: SHA-256 of its
    /// public key info, in base64.
    pub fn pin(&self) -> String {
        self.pin.lock().expect("not poisoned").clone()
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    fn leaf(&self, kind: Leaf, names: &[&str], addresses: &[IpAddr]) -> (String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        (self.leaf_of(&key, kind, names, addresses), key)
    }

    /// A good leaf with a key of the test's choice, as PEM.
    pub fn issue(&self, key: &KeyPair, names: &[&str], addresses: &[IpAddr]) -> String {
        self.leaf_of(key, Leaf::Good, names, addresses)
    }

    /// A leaf without subject alternative names, as files.
    pub fn named_in_common(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a leaf");
        let paths = (self.dir.path().join("common.pem"), self.dir.path().join("common.key"));
        std::fs::write(&paths.0, cert.pem()).expect("writing a certificate");
        std::fs::write(&paths.1, key.serialize_pem()).expect("writing a key");
        paths
    }

    /// A client's certificate and its key, in one file.
    pub fn identity(&self, name: &str) -> PathBuf {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = self.dir.path().join(format!("{name}-identity.pem"));
        std::fs::write(&path, cert.pem() + &key.serialize_pem()).expect("writing an identity");
        path
    }

    fn leaf_of(&self, key: &KeyPair, kind: Leaf, names: &[&str], addresses: &[IpAddr]) -> String {
        let pin =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &rcgen::PublicKeyData::subject_public_key_info(key));
        *self.pin.lock().expect("not poisoned") = BASE64_STANDARD.encode(pin);
        let names: Vec<String> = if kind == Leaf::WrongName {
            vec!["elsewhere.test".into()]
        } else {
            names.iter().map(|&n| n.into()).collect()
        };
        let mut params = CertificateParams::new(names).expect("names");
        if kind != Leaf::WrongName {
            params.subject_alt_names.extend(addresses.iter().map(|&address| SanType::IpAddress(address)));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test upstream");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = if kind == Leaf::Expired { date_time_ymd(2021, 1, 1) } else { date_time_ymd(2099, 1, 1) };
        let issuer = if kind == Leaf::UnknownIssuer { &self.unknown } else { &self.issuer };
        params.signed_by(key, issuer).expect("a leaf").pem()
    }

    /// The TLS side of an in-process upstream.
    pub fn server(&self, kind: Leaf, names: &[&str], addresses: &[IpAddr], alpn: &[&str]) -> Arc<ServerConfig> {
        use rustls::pki_types::pem::PemObject;
        let (pem, key) = self.leaf(kind, names, addresses);
        let cert = CertificateDer::from_pem_slice(pem.as_bytes()).expect("our own certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("our own key");
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert], key).expect("a server config");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub fn files(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> LeafFiles {
        let (cert, key) = self.leaf(Leaf::Good, names, addresses);
        let files = LeafFiles {
            cert: self.dir.path().join(format!("{name}.pem")),
            key: self.dir.path().join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, cert).expect("writing a certificate");
        std::fs::write(&files.key, key.serialize_pem()).expect("writing a key");
        files
    }
}
