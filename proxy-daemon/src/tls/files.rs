//! Files of certificates, read with bounds.
//!
//! In: a path somebody named. Out: its certificate blocks and nothing else,
//! so that a private key that lies in the same file is never copied along.
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

/// The largest file of roots that is read. The biggest bundle in use has
/// about 300 KiB.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// Reads a regular file. A pipe or device, which might never end, is refused.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe without a writer would otherwise wait for one.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if about.len() > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0).saturating_add(1));
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The certificate blocks of a PEM file, verbatim, each ending in a newline;
/// comments, keys and broken blocks are left out.
pub(super) fn certificate_blocks(bytes: &[u8]) -> String {
    const KINDS: [&str; 3] = ["CERTIFICATE-----", "X509 CERTIFICATE-----", "TRUSTED CERTIFICATE-----"];
    let mut blocks = String::with_capacity(bytes.len());
    let mut open: Option<(&str, usize)> = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else {
            // Comments may be in any encoding; a block may not.
            if let Some((_, start)) = open.take() {
                blocks.truncate(start);
            }
            continue;
        };
        let line = line.trim();
        if let Some(label) = line.strip_prefix("-----BEGIN ") {
            if let Some((_, start)) = open.take() {
                blocks.truncate(start);
            }
            if let Some(kind) = KINDS.into_iter().find(|kind| *kind == label) {
                open = Some((kind, blocks.len()));
            }
        }
        let Some((kind, _)) = open else { continue };
        blocks.push_str(line);
        blocks.push('\n');
        if line.strip_prefix("-----END ") == Some(kind) {
            open = None;
        }
    }
    if let Some((_, start)) = open {
        blocks.truncate(start);
    }
    blocks
}

/// The certificates among the blocks of a PEM file; unreadable ones are left
/// out.
pub(super) fn certificates(bytes: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(bytes).filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_certificates_and_nothing_else() {
        let file = b"# caf\xe9\r\n-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n\
            -----BEGIN CERTIFICATE-----\r\nQUJD\r\n-----END CERTIFICATE-----\r\n\
            -----BEGIN CERTIFICATE-----\nbroken\n-----BEGIN TRUSTED CERTIFICATE-----\nREVG\n-----END TRUSTED CERTIFICATE-----\n\
            -----BEGIN CERTIFICATE-----\ncut off";
        assert_eq!(
            certificate_blocks(file),
            "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n\
             -----BEGIN TRUSTED CERTIFICATE-----\nREVG\n-----END TRUSTED CERTIFICATE-----\n"
        );
    }

    #[test]
    fn refuses_what_might_never_end() {
        assert!(read_bounded(Path::new("/dev/zero")).is_err());
        assert!(read_bounded(Path::new("/")).is_err());
        assert!(read_bounded(Path::new("/nowhere/at/all")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, cut in 0_usize..400) {
            let mut file = b"-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n".repeat(4);
            let at = cut.min(file.len());
            file.splice(at..at, bytes);
            let blocks = certificate_blocks(&file);
            proptest::prop_assert!(!blocks.contains("PRIVATE KEY"));
            certificates(&file);
        }
    }
}
