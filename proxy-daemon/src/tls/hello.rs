//! The client's hello, read before anything is decided.
//!
//! In: the bytes a client has sent so far, which the caller keeps. Out: not
//! enough yet; not for us (tunnel the bytes as they are); or the hello, from
//! which the handshake can go on.
//!
//! [`parse`] is a function of the bytes: how they were split on their way
//! does not matter. Nothing is consumed, so that a connection can be tunnelled
//! after its hello has been looked at.
use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    server::{Accepted, Acceptor},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, StartHandshake};

use super::offer::{self, Offer};

/// The most bytes a hello may take, record headers included; RFC 8446 lets a
/// handshake message be longer, no client's hello is.
pub const MAX_HELLO: usize = 64 << 10;

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// RFC 8446 §5.1 bounds the plaintext of a record.
const MAX_RECORD: usize = 1 << 14;

/// What the bytes so far are.
#[derive(Debug)]
pub enum Parsed {
    /// The beginning of a hello: read more.
    NeedMore,
    /// Not to be intercepted: tunnel the bytes untouched.
    Opaque(Opaque),
    Hello(Box<Hello>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    /// The bytes are no TLS.
    NotTls,
    /// The hello is longer than [`MAX_HELLO`].
    TooLong,
    /// TLS, but nothing that our server side could go on with: a version
    /// before 1.2, no cipher, key exchange or signature that rustls has, or a
    /// malformed hello, which only the upstream should judge.
    Unsupported,
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Opaque::NotTls => "not TLS",
            Opaque::TooLong => "a TLS hello of more than 64 KiB",
            Opaque::Unsupported => "a TLS version or hello that is not supported",
        })
    }
}

/// What a client says of itself before it knows who answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name asked for (SNI).
    pub server_name: Option<String>,
    /// Application protocols, in the client's order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// What the upstream is offered in the client's place.
    pub offer: Offer,
    /// The client goes on with an earlier session, as TLS 1.3 does it.
    pub resumes: bool,
}

/// A complete hello.
pub struct Hello {
    pub client: ClientHello,
    /// How many of the bytes are the hello's. What follows it (early data,
    /// say) goes to [`Hello::accept`].
    pub length: usize,
    accepted: Accepted,
}

impl Hello {
    /// Goes on with the handshake. `rest` is what the caller has read past
    /// [`Hello::length`].
    pub fn accept<IO>(self, config: Arc<ServerConfig>, io: IO, mut rest: &[u8]) -> io::Result<Accept<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut fed = Ok(());
        let accept = StartHandshake::from_parts(self.accepted, io).into_stream_with(config, |connection| {
            while !rest.is_empty() && fed.is_ok() {
                fed = match connection.read_tls(&mut rest) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error),
                };
                // What is wrong with the bytes comes up again, with its
                // alert, when the handshake is driven.
                if connection.process_new_packets().is_err() {
                    break;
                }
            }
        });
        fed.map(|()| accept)
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello").field("client", &self.client).field("length", &self.length).finish_non_exhaustive()
    }
}

/// Looks at everything the client has sent so far.
pub fn parse(bytes: &[u8]) -> Parsed {
    let length = match measure(bytes) {
        Measured::NeedMore => return Parsed::NeedMore,
        Measured::Opaque(why) => return Parsed::Opaque(why),
        Measured::Complete(length) => length,
    };
    let mut acceptor = Acceptor::default();
    let mut hello = bytes.get(..length).unwrap_or_default();
    let unsupported = Parsed::Opaque(Opaque::Unsupported);
    loop {
        match acceptor.read_tls(&mut hello as &mut dyn Read) {
            Ok(0) | Err(_) => return unsupported,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let said = accepted.client_hello();
                let Some(fields) = offer::read(&message(bytes)) else { return unsupported };
                let offer = offer::of(&fields, &said);
                if !offer::answerable(offer, &said) {
                    return unsupported;
                }
                let client = ClientHello {
                    server_name: said.server_name().map(str::to_owned),
                    alpn: said.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                    offer,
                    resumes: fields.resumes,
                };
                return Parsed::Hello(Box::new(Hello { client, length: length - hello.len(), accepted }));
            }
            Ok(None) => {}
            Err(_) => return unsupported,
        }
    }
}

/// The name that a hello asks for, also where it is [`Opaque::Unsupported`].
pub fn server_name(bytes: &[u8]) -> Option<String> {
    offer::read(&message(bytes))?.server_name
}

/// The hello's message without the headers of its records.
fn message(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut joined = Cow::Borrowed(&[][..]);
    let mut rest = bytes;
    while let Some((header, content)) = rest.split_at_checked(RECORD_HEADER) {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (content, more) = content.split_at_checked(length).unwrap_or((content, &[]));
        if header[0] != CONTENT_HANDSHAKE {
            break;
        }
        if joined.is_empty() {
            joined = Cow::Borrowed(content);
        } else {
            joined.to_mut().extend(content);
        }
        rest = more;
        if let [_, high, middle, low, ..] = joined[..]
            && joined.len() >= MESSAGE_HEADER + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
        {
            break;
        }
    }
    joined
}

enum Measured {
    NeedMore,
    Opaque(Opaque),
    /// So many bytes hold the whole hello.
    Complete(usize),
}

/// Finds the end of the hello by the lengths of its records.
fn measure(bytes: &[u8]) -> Measured {
    const NOT_TLS: Measured = Measured::Opaque(Opaque::NotTls);
    // The message's own bytes, as far as they decide anything: type, length.
    let mut front = [0_u8; MESSAGE_HEADER];
    let mut message = 0_usize;
    let mut at = 0_usize;
    loop {
        let record = bytes.get(at..).unwrap_or_default();
        // Each byte is judged as it comes: a peer that speaks something else
        // may say few bytes and wait.
        match record {
            [kind, ..] if *kind != CONTENT_HANDSHAKE => return NOT_TLS,
            [_, major, ..] if *major != 3 => return NOT_TLS,
            [_, _, minor, ..] if *minor > 4 => return NOT_TLS,
            _ => {}
        }
        let [_, _, _, high, low, content @ ..] = record else { return Measured::NeedMore };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > MAX_RECORD {
            return NOT_TLS;
        }
        let content = content.get(..length).unwrap_or(content);
        for (place, byte) in front.iter_mut().skip(message).zip(content) {
            *place = *byte;
        }
        message += content.len();
        if message > 0 && front[0] != CLIENT_HELLO {
            return NOT_TLS;
        }
        if message >= MESSAGE_HEADER {
            let whole =
                MESSAGE_HEADER + usize::from(front[1]) * 65_536 + usize::from(u16::from_be_bytes([front[2], front[3]]));
            if whole > MAX_HELLO - RECORD_HEADER {
                return Measured::Opaque(Opaque::TooLong);
            }
            if message >= whole && content.len() == length {
                return Measured::Complete(at + RECORD_HEADER + length);
            }
        }
        at += RECORD_HEADER + length;
        if content.len() < length {
            return if bytes.len() > MAX_HELLO { Measured::Opaque(Opaque::TooLong) } else { Measured::NeedMore };
        }
        if at > MAX_HELLO {
            return Measured::Opaque(Opaque::TooLong);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;
    use crate::tls::{Authority, Leaves, Servers};

    fn hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    /// The same message in records of at most `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        hello[RECORD_HEADER..]
            .chunks(size)
            .flat_map(|part| {
                let length = u16::try_from(part.len()).expect("short").to_be_bytes();
                [&[22, 3, 1], &length[..], part].concat()
            })
            .collect()
    }

    /// What matters of a result, comparable.
    fn outcome(bytes: &[u8]) -> (String, Option<ClientHello>, usize) {
        match parse(bytes) {
            Parsed::NeedMore => ("more".into(), None, 0),
            Parsed::Opaque(why) => (why.to_string(), None, 0),
            Parsed::Hello(hello) => ("hello".into(), Some(hello.client), hello.length),
        }
    }

    #[test]
    fn reads_name_and_protocols() {
        let bytes = hello("a.test", &[b"h2", b"http/1.1"]);
        let Parsed::Hello(read) = parse(&bytes) else { panic!("a hello") };
        assert_eq!(read.client.server_name.as_deref(), Some("a.test"));
        assert_eq!(read.client.alpn, [&b"h2"[..], b"http/1.1"]);
        assert_eq!(read.length, bytes.len());
        let Parsed::Hello(read) = parse(&hello("192.0.2.1", &[])) else { panic!("a hello") };
        assert_eq!(read.client, ClientHello::default());
    }

    #[test]
    fn other_protocols_are_told_by_their_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"S",
            b"\x16S",
            b"\x16\x03\x09",
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\x16\x03\x01\x00\x01\x02",
        ] {
            assert_eq!(outcome(bytes).0, "not TLS", "{bytes:?}");
        }
        assert_eq!(outcome(b"").0, "more");
        assert_eq!(outcome(b"\x16\x03\x01\x02").0, "more");
    }

    #[test]
    fn old_versions_are_left_to_the_upstream() {
        let mut bytes = hello("a.test", &[]);
        let versions = [0, 43, 0, 5, 4, 3, 4, 3, 3];
        let at = bytes.windows(versions.len()).position(|part| part == versions).expect("the versions offered");
        bytes[at + 5..at + versions.len()].copy_from_slice(&[3, 2, 3, 1]);
        assert_eq!(outcome(&bytes).0, Opaque::Unsupported.to_string());
        // Its name is known all the same.
        assert_eq!(server_name(&bytes).as_deref(), Some("a.test"));
        assert_eq!(server_name(&in_records(&bytes, 40)).as_deref(), Some("a.test"));
        bytes[RECORD_HEADER + MESSAGE_HEADER + 1] = 2;
        assert_eq!(outcome(&bytes).0, Opaque::Unsupported.to_string());
        for end in 0..bytes.len() {
            assert_eq!(outcome(&bytes[..end]).0, "more", "the name comes late");
        }
    }

    /// What is called unsupported is what rustls would refuse, given our
    /// leaf; and nothing else.
    #[test]
    fn unsupported_is_what_rustls_cannot_answer() {
        use rustls::{
            crypto::{CryptoProvider, aws_lc_rs},
            version::{TLS12, TLS13},
        };
        let leaves = Leaves::new(Arc::new(Authority::in_memory().expect("an authority"))).expect("leaves");
        let theirs = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert;
        let leaf = leaves.for_upstream(Some("a.test"), theirs.der()).expect("a leaf");
        let config = Servers::new().expect("servers").config(&leaf, None).expect("a configuration");
        let default = aws_lc_rs::default_provider();
        let mut refused = 0;
        for (suite, group) in
            default.cipher_suites.iter().flat_map(|suite| default.kx_groups.iter().map(move |group| (suite, group)))
        {
            for versions in [&[&TLS12][..], &[&TLS13], &[&TLS12, &TLS13]] {
                let provider =
                    CryptoProvider { cipher_suites: vec![*suite], kx_groups: vec![*group], ..default.clone() };
                let Ok(builder) =
                    ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions)
                else {
                    continue;
                };
                let client = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
                let name = ServerName::try_from("a.test").expect("a name");
                let Ok(mut client) = ClientConnection::new(Arc::new(client), name) else { continue };
                let mut bytes = Vec::new();
                client.write_tls(&mut bytes).expect("written");
                let mut acceptor = Acceptor::default();
                acceptor.read_tls(&mut &bytes[..]).expect("read");
                let answered = match acceptor.accept() {
                    Ok(accepted) => accepted.expect("whole").into_connection(Arc::clone(&config)).is_ok(),
                    // The hybrid is no group of TLS 1.2: its list is empty.
                    Err(_) => false,
                };
                assert_eq!(matches!(parse(&bytes), Parsed::Hello(_)), answered, "{suite:?} {group:?} {versions:?}");
                refused += usize::from(!answered);
            }
        }
        // Suites that need a certificate of RSA, and the hybrid in TLS 1.2.
        assert!(refused >= 3, "{refused}");
    }

    #[test]
    fn length_is_bounded() {
        // A message that announces 16 MiB.
        assert_eq!(outcome(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff").0, Opaque::TooLong.to_string());
        // Records so small that their headers make it long.
        let mut tiny = b"\x16\x03\x01\x00\x04\x01\x00\xf0\x00".to_vec();
        tiny.extend(b"\x16\x03\x01\x00\x01\x03".repeat(20_000));
        assert_eq!(outcome(&tiny).0, Opaque::TooLong.to_string());
    }

    #[test]
    fn long_hello_in_many_records_is_read() {
        // 900 protocols make a hello of some 18 KiB.
        let protocols: Vec<Vec<u8>> = (0..900).map(|at| format!("protocol-{at:09}").into_bytes()).collect();
        let protocols: Vec<&[u8]> = protocols.iter().map(Vec::as_slice).collect();
        let mut config = hello("a.test", &protocols);
        let first = usize::from(u16::from_be_bytes([config[3], config[4]]));
        if first + RECORD_HEADER < config.len() {
            // More than one record: join them for `in_records`.
            let (mut joined, mut at) = (config[..RECORD_HEADER].to_vec(), 0);
            while at < config.len() {
                let length = usize::from(u16::from_be_bytes([config[at + 3], config[at + 4]]));
                joined.extend(&config[at + RECORD_HEADER..at + RECORD_HEADER + length]);
                at += RECORD_HEADER + length;
            }
            config = joined;
        }
        for size in [700, 4096, 16_384] {
            let bytes = in_records(&config, size);
            let (kind, client, length) = outcome(&bytes);
            assert_eq!(
                (kind.as_str(), client.map(|client| client.alpn.len()), length),
                ("hello", Some(900), bytes.len())
            );
        }
    }

    proptest! {
        /// However the bytes arrive, nothing is decided before the end, and
        /// then the same.
        #[test]
        fn splits_do_not_matter(size in 1_usize..600, extra: Vec<u8>) {
            let whole = in_records(&hello("a.test", &[b"h2"]), size);
            let expected = outcome(&whole);
            prop_assert_eq!(expected.2, whole.len());
            for end in 0..whole.len() {
                prop_assert_eq!(outcome(&whole[..end]).0, "more");
            }
            let mut more = whole.clone();
            more.extend(extra);
            prop_assert_eq!(outcome(&more), expected);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            parse(&bytes);
        }

        #[test]
        fn broken_hellos_are_survived(at in 0_usize..600, byte: u8, size in 1_usize..600) {
            let mut bytes = hello("a.test", &[b"h2", b"http/1.1"]);
            let at = at % bytes.len();
            bytes[at] = byte;
            parse(&bytes);
            let mut pieces = in_records(&bytes, size);
            parse(&pieces);
            let at = at % pieces.len();
            pieces[at] = byte;
            parse(&pieces);
        }
    }
}
