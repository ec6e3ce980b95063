//! A private authority and one server certificate, as files in a folder.
//!
//! In: a folder and the names to certify. Out: `ca.pem`, `cert.pem` and
//! `key.pem`. The authority's key is forgotten as soon as it has signed.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use clap::Args;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where ca.pem, cert.pem and key.pem go; made if it does not exist
    #[arg(long, value_name = "DIR")]
    certs: PathBuf,
    /// A DNS name or an address to certify, beside localhost and 127.0.0.1
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
}

/// The certificate of a server: given, or made on the spot.
#[derive(Debug, Args)]
pub(crate) struct Identity {
    /// A folder with cert.pem and key.pem; filled, with ca.pem, where they are missing
    #[arg(long, value_name = "DIR", required_unless_present = "cert")]
    certs: Option<PathBuf>,
    /// A name or address to certify where the folder is filled, beside localhost and 127.0.0.1
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The certificate chain, instead of the folder's
    #[arg(long, value_name = "PEM", requires = "key", conflicts_with = "certs")]
    cert: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "PEM", requires = "cert")]
    key: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    make(&options.certs, &options.names)
}

impl Identity {
    /// A server's side of TLS that offers `alpn`, most preferred first.
    pub(crate) fn server(&self, alpn: &[&[u8]]) -> Result<ServerConfig> {
        let (cert, key) = match (&self.certs, &self.cert, &self.key) {
            (Some(dir), ..) => {
                if !dir.join("cert.pem").exists() {
                    make(dir, &self.names)?;
                }
                (dir.join("cert.pem"), dir.join("key.pem"))
            }
            (None, Some(cert), Some(key)) => (cert.clone(), key.clone()),
            _ => anyhow::bail!("give either --certs, or --cert and --key"),
        };
        let chain = read_certificates(&cert)?;
        let secret =
            PrivateKeyDer::from_pem_file(&key).with_context(|| format!("cannot read the key in {}", key.display()))?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .with_context(|| format!("{} and {} are no usable pair", cert.display(), key.display()))?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

/// The authorities in `files`; one that cannot be parsed is passed over, as
/// system bundles contain some.
pub(crate) fn roots(files: &[PathBuf]) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for file in files {
        store.add_parsable_certificates(read_certificates(file)?);
    }
    anyhow::ensure!(!store.is_empty(), "no authority to trust: give --ca, or set SSL_CERT_FILE");
    Ok(Arc::new(store))
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", file.display()))
}

fn make(dir: &Path, names: &[String]) -> Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "retryscope testbed authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);

    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    all.extend(names.iter().filter(|name| !matches!(name.as_str(), "localhost" | "127.0.0.1")).cloned());
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, &issuer)?;

    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, content) in [("ca.pem", authority.pem()), ("cert.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
