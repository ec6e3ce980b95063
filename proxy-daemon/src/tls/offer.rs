//! What a client's hello offers, beyond what rustls tells of it.
//!
//! In: the hello's message, whole. Out: the versions and the key exchange
//! that the upstream is to meet in the client's place, whether the client
//! goes on with an earlier session, and the name it asks for where rustls
//! does not read the hello. A function of the bytes; none of them is trusted.
use rustls::{
    NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite,
    crypto::aws_lc_rs::{DEFAULT_CIPHER_SUITES, DEFAULT_KX_GROUPS},
    server::ClientHello,
};

const SERVER_NAME: u16 = 0;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;

/// The parts of an offer that the upstream meets as the client made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub tls12: bool,
    pub tls13: bool,
    pub post_quantum: PostQuantum,
}

/// How a client offers X25519MLKEM768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostQuantum {
    No,
    /// After X25519: without a key share, for a server that insists.
    Listed,
    /// Before X25519, with a key share.
    Preferred,
}

impl Default for Offer {
    fn default() -> Self {
        Self { tls12: true, tls13: true, post_quantum: PostQuantum::Listed }
    }
}

/// What is read out of a hello here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) server_name: Option<String>,
    pub(super) tls12: bool,
    pub(super) tls13: bool,
    /// Goes on with an earlier session, as TLS 1.3 does it.
    pub(super) resumes: bool,
}

/// Reads a ClientHello (RFC 8446 §4.1.2, the same in every version), from its
/// message header on. `None` where it is malformed.
pub(super) fn read(message: &[u8]) -> Option<Fields> {
    let mut rest = message.get(4..)?;
    let legacy = u16::from_be_bytes(take(&mut rest, 2)?.try_into().ok()?);
    take(&mut rest, 32)?;
    let session = length(&mut rest, 1)?;
    take(&mut rest, session)?;
    let suites = length(&mut rest, 2)?;
    take(&mut rest, suites)?;
    let compressions = length(&mut rest, 1)?;
    take(&mut rest, compressions)?;

    let mut fields = Fields { tls12: legacy >= u16::from(ProtocolVersion::TLSv1_2), ..Fields::default() };
    // Hellos of before TLS 1.2 may end here.
    if rest.is_empty() {
        return Some(fields);
    }
    let all = length(&mut rest, 2)?;
    let mut extensions = take(&mut rest, all)?;
    while !extensions.is_empty() {
        let kind = u16::from_be_bytes(take(&mut extensions, 2)?.try_into().ok()?);
        let size = length(&mut extensions, 2)?;
        let mut body = take(&mut extensions, size)?;
        match kind {
            SERVER_NAME => fields.server_name = host_name(body),
            PRE_SHARED_KEY => fields.resumes = true,
            SUPPORTED_VERSIONS => {
                let size = length(&mut body, 1)?;
                let versions = take(&mut body, size)?;
                let offers = |version: ProtocolVersion| {
                    versions.chunks_exact(2).any(|offered| offered == u16::from(version).to_be_bytes())
                };
                fields.tls12 = offers(ProtocolVersion::TLSv1_2);
                fields.tls13 = offers(ProtocolVersion::TLSv1_3);
            }
            _ => {}
        }
    }
    Some(fields)
}

/// The first host name of a list of server names (RFC 6066 §3).
fn host_name(mut body: &[u8]) -> Option<String> {
    let size = length(&mut body, 2)?;
    let mut names = take(&mut body, size)?;
    let [0] = take(&mut names, 1)? else { return None };
    let size = length(&mut names, 2)?;
    let name = std::str::from_utf8(take(&mut names, size)?).ok()?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(legal)).then(|| name.to_ascii_lowercase())
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// A length of one or two bytes.
fn length(bytes: &mut &[u8], size: usize) -> Option<usize> {
    Some(take(bytes, size)?.iter().fold(0, |so_far, byte| so_far << 8 | usize::from(*byte)))
}

/// What the upstream is to be offered for this client.
pub(super) fn of(fields: &Fields, said: &ClientHello<'_>) -> Offer {
    let groups = said.named_groups().unwrap_or_default();
    let place = |group| groups.iter().position(|offered| *offered == group);
    let post_quantum = match (place(NamedGroup::X25519MLKEM768), place(NamedGroup::X25519)) {
        (None, _) => PostQuantum::No,
        (Some(hybrid), Some(plain)) if plain < hybrid => PostQuantum::Listed,
        (Some(_), _) => PostQuantum::Preferred,
    };
    Offer { tls12: fields.tls12, tls13: fields.tls13, post_quantum }
}

/// Whether our side of the handshake could answer the hello, with a leaf of
/// P-256: rustls would choose the newest version, and must then find a cipher
/// suite, a key exchange and a signature in common.
pub(super) fn answerable(offer: Offer, said: &ClientHello<'_>) -> bool {
    let version = if offer.tls13 { ProtocolVersion::TLSv1_3 } else { ProtocolVersion::TLSv1_2 };
    let suite = |suite: &SupportedCipherSuite| {
        said.cipher_suites().contains(&suite.suite())
            && match suite {
                SupportedCipherSuite::Tls13(_) => offer.tls13,
                SupportedCipherSuite::Tls12(suite) => {
                    !offer.tls13 && offer.tls12 && suite.sign.contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
                }
            }
    };
    let groups = said.named_groups().unwrap_or_default();
    DEFAULT_CIPHER_SUITES.iter().any(suite)
        && DEFAULT_KX_GROUPS.iter().any(|group| group.usable_for_version(version) && groups.contains(&group.name()))
        && said.signature_schemes().contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A hello with these extensions, as little as there may be.
    fn hello(legacy: u16, extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = legacy.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        let listed: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, content)| {
                let size = u16::try_from(content.len()).expect("short").to_be_bytes();
                [&kind.to_be_bytes()[..], &size, content].concat()
            })
            .collect();
        body.extend(u16::try_from(listed.len()).expect("short").to_be_bytes());
        body.extend(listed);
        let mut message = vec![1];
        message.extend(&u32::try_from(body.len()).expect("short").to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    #[test]
    fn versions_are_those_listed_or_the_legacy_one() {
        let of = |legacy, extensions: &[(u16, &[u8])]| {
            let fields = read(&hello(legacy, extensions)).expect("a hello");
            (fields.tls12, fields.tls13)
        };
        assert_eq!(of(0x0303, &[]), (true, false));
        assert_eq!(of(0x0302, &[]), (false, false));
        assert_eq!(of(0x0303, &[(43, &[4, 3, 4, 3, 3])]), (true, true));
        // As a browser greases it, and without TLS 1.2.
        assert_eq!(of(0x0303, &[(43, &[4, 0x2a, 0x2a, 3, 4])]), (false, true));
        assert_eq!(of(0x0303, &[(43, &[4, 3, 2, 3, 1])]), (false, false));
    }

    #[test]
    fn names_are_read_whatever_the_version() {
        let name = |content: &[u8]| read(&hello(0x0301, &[(0, content)])).expect("a hello").server_name;
        assert_eq!(name(b"\x00\x09\x00\x00\x06A.test"), Some("a.test".into()));
        for junk in [&b""[..], b"\x00\x09\x01\x00\x06A.test", b"\x00\x09\x00\x00\x06A test", b"\x00\xff\x00"] {
            assert_eq!(name(junk), None, "{junk:?}");
        }
        let ends_early = &hello(0x0301, &[])[..4 + 2 + 32 + 1 + 4 + 2];
        assert_eq!(read(ends_early), Some(Fields::default()));
    }

    #[test]
    fn sessions_gone_on_with_are_told() {
        assert!(read(&hello(0x0303, &[(41, b"whatever")])).expect("a hello").resumes);
        assert!(!read(&hello(0x0303, &[])).expect("a hello").resumes);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0_usize..60, cut in 0_usize..60) {
            read(&bytes);
            let mut message = hello(0x0303, &[(0, b"\x00\x09\x00\x00\x06a.test"), (43, &[4, 3, 4, 3, 3])]);
            let at = at % message.len();
            message.splice(at..at, bytes);
            read(&message);
            read(&message[..cut.min(message.len())]);
        }
    }
}
