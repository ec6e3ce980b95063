//! Where a Linux system keeps its root certificates.
//!
//! The files are read where distributions put them. `SSL_CERT_FILE` and
//! `SSL_CERT_DIR` are left out on purpose: they are the invoking user's word
//! (kept by `sudo -E`), and whom the daemon trusts upstream must not depend
//! on it. `--upstream-ca` is the way to add roots.
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::files;

/// Bundles, in the order in which the first that exists is taken as the
/// system's roots.
const BUNDLES: [&str; 10] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Arch, Gentoo, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",   // RHEL 6, Amazon Linux
    "/etc/ssl/ca-bundle.pem",             // openSUSE
    "/var/lib/ca-certificates/ca-bundle.pem", // SLES
    "/etc/ssl/certs/ca-bundle.crt",       // NixOS
    "/etc/pki/tls/cert.pem",              // RHEL's OpenSSL
    "/etc/ssl/cert.pem",                  // Alpine's OpenSSL
    "/usr/lib/ssl/cert.pem",              // Debian's OpenSSL
    "/usr/local/ssl/cert.pem",            // OpenSSL built by hand
];

/// Looked into where no bundle exists.
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// The system's bundles: every one that exists, symbolic links resolved, each
/// file once.
pub fn bundles() -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    BUNDLES
        .iter()
        .filter_map(|path| Path::new(path).canonicalize().ok())
        .filter(|path| path.is_file() && seen.insert(path.clone()))
        .collect()
}

/// The system's roots as certificates.
pub(super) fn roots() -> Vec<CertificateDer<'static>> {
    if let Some(bundle) = bundles().first() {
        let found = rustls_native_certs::load_certs_from_paths(Some(bundle), None).certs;
        if !found.is_empty() {
            return found;
        }
    }
    DIRECTORIES
        .iter()
        .map(|directory| rustls_native_certs::load_certs_from_paths(None, Some(Path::new(directory))).certs)
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// The system's roots as PEM blocks.
pub(super) fn roots_pem() -> String {
    for bundle in bundles() {
        if let Ok(bytes) = files::read_bounded(&bundle) {
            let blocks = files::certificate_blocks(&bytes);
            if !blocks.is_empty() {
                return blocks;
            }
        }
    }
    roots().iter().map(|der| encode(der)).collect()
}

/// A certificate as a PEM block.
pub(super) fn encode(der: &[u8]) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_what_can_be_decoded() {
        for length in 0..200_usize {
            let der: Vec<u8> = (0..length).map(|at| u8::try_from(at * 37 % 256).expect("a byte")).collect();
            let back = files::certificates(encode(&der).as_bytes());
            assert_eq!(back.first().map(|der| der.to_vec()), Some(der));
        }
    }
}
