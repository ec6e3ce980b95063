//! Everything TLS: the authority and its leaves, the client's hello, the
//! verified upstream, and what makes a target trust the authority.
//!
//! In: bytes from clients, names, certificates of upstreams, files of roots.
//! Out: configurations and certificates for rustls, the alert that mirrors a
//! failure, and the files and variables a target needs.
//!
//! Invariants: no private key is ever written but by [`Authority::init`]; the
//! upstream is always verified; every cache is bounded; no input panics.
pub mod authority;
mod files;
pub mod hello;
pub mod leaf;
mod offer;
mod remedy;
pub mod server;
mod show;
mod signer;
mod system;
pub mod trust;
pub mod upstream;
pub mod witness;

use std::{io, path::PathBuf};

pub use authority::Authority;
pub use hello::{ClientHello, Hello, Opaque, Parsed};
pub use leaf::Leaves;
pub use offer::{Offer, PostQuantum};
pub use remedy::remedy;
pub use server::{Servers, is_broken_off, refused_by_client, shows_certificate};
pub use show::show;
pub use signer::RemoteKey;
pub use system::bundles;
pub use trust::{Bind, TrustInput, TrustPlan, prepare, share};
pub use upstream::{
    Asked, CertificateRequest, Identity, Upstream, alert_record, beyond, explain, is_distrust, is_raised_here,
    mirror_alert,
};
pub use witness::Witness;

/// Why this room could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("cannot read {what} {}: {source}; check the path and its permissions", path.display())]
    Read { what: &'static str, path: PathBuf, source: io::Error },

    #[error("cannot write {}: {source}; check that the folder exists and is writable", path.display())]
    Write { path: PathBuf, source: io::Error },

    #[error("{} holds no certificate; give a PEM file with at least one BEGIN CERTIFICATE block", path.display())]
    NoCertificate { path: PathBuf },

    #[error("{} holds something that is not a certificate ({reason}); is the file complete, and PEM rather than DER?", path.display())]
    BadCertificate { path: PathBuf, reason: String },

    #[error(
        "the authority's key {} can be read by others (mode {mode:04o}): whoever reads it can impersonate any server to whoever trusts it; run `chmod 600 {}`, or make a new authority if it may have leaked",
        path.display(), path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },

    #[error(
        "the authority's key {} belongs to uid {owner}, not to uid {expected} or root; run `chown {expected} {}` if that is meant",
        path.display(), path.display()
    )]
    KeyOwner { path: PathBuf, owner: u32, expected: u32 },

    #[error("{} is not a private key that can be used ({reason}); make a pair with `retryscope ca init`", path.display())]
    BadKey { path: PathBuf, reason: String },

    #[error(
        "{} holds no key for the client certificate that can be used: {reason}; give its unencrypted key in PEM with `--client-key FILE`, or in the same file (`openssl pkey -in KEY` decrypts one)",
        path.display()
    )]
    BadClientKey { path: PathBuf, reason: String },

    #[error(
        "the key {} does not belong to the certificate {}; make a pair with `retryscope ca init`",
        key.display(), certificate.display()
    )]
    KeyMismatch { key: PathBuf, certificate: PathBuf },

    #[error(
        "the certificate {} cannot be used as an authority: {reason}; make one with `retryscope ca init`",
        path.display()
    )]
    NotAnAuthority { path: PathBuf, reason: &'static str },

    #[error("{} exists already; remove it (and its key) first if a new authority is meant", path.display())]
    Exists { path: PathBuf },

    #[error("{name:?} is not a domain name an authority can be limited to; write it like `example.com`")]
    BadDomain { name: String },

    #[error(
        "no root certificates were found on this system, so no upstream could be verified; install the ca-certificates package or name a file with `--upstream-ca`"
    )]
    NoRoots,

    #[error("cannot make {what}: {reason}; this is an error in retryscope or its cryptography library")]
    Crypto { what: &'static str, reason: String },
}

impl TlsError {
    /// What the process exits with where this ends it: 64 for a
    /// configuration that cannot be used, 77 for a permission, 70 for a fault
    /// of our own.
    pub fn exit_code(&self) -> u8 {
        match self {
            TlsError::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 77,
            TlsError::Write { .. } => 73,
            TlsError::Crypto { .. } => 70,
            _ => 64,
        }
    }

    fn crypto(what: &'static str) -> impl FnOnce(rcgen::Error) -> TlsError {
        move |error| TlsError::Crypto { what, reason: error.to_string() }
    }
}
