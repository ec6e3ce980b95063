//! What makes two requests the same request, where the client names no call.
//!
//! In: a request's head, and the body as it passes. Out: a [`Fingerprint`]
//! over everything that stays equal when a client sends a request again, and
//! nothing that may change: signatures, dates and nonces are left out, in
//! headers and in the query. What tells like requests apart is in it: ranges,
//! conditions, the body's length and stated digests, an idempotency key.
use std::{hash::Hasher, sync::LazyLock};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::{flow::Request, process::ProcessKey};

/// How much of a body is taken in; its length says the rest.
const MAX_BODY: u64 = 1 << 20;
/// Longer queries are compared as they stand.
const MAX_PAIRS: usize = 128;

/// A request's identity within one process, as a keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u128);

impl From<u128> for Fingerprint {
    fn from(number: u128) -> Self {
        Self(number)
    }
}

/// Parts of a query that change from attempt to attempt, in lower case.
const CHANGING: &[&[u8]] = &[
    b"x-amz-date",
    b"x-amz-signature",
    b"x-amz-security-token",
    b"x-amz-expires",
    b"x-amz-credential",
    b"x-goog-date",
    b"x-goog-signature",
    b"signature",
    b"expires",
    b"sig",
    b"se",
    b"st",
    b"nonce",
    b"oauth_nonce",
    b"oauth_timestamp",
    b"oauth_signature",
    b"timestamp",
    b"ts",
    b"_",
];

/// Fields that tell requests to the same place apart.
const TELLING: &[&str] = &[
    "range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "content-length",
    "content-md5",
    "content-digest",
    "x-amz-content-sha256",
    "x-amz-target",
    "soapaction",
    "idempotency-key",
    "x-idempotency-key",
];

static KEY: LazyLock<[u8; 16]> = LazyLock::new(|| {
    let mut key = [0; 16];
    for half in key.chunks_mut(8) {
        let drawn = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
        half.copy_from_slice(&drawn.to_ne_bytes());
    }
    key
});

impl Fingerprint {
    pub fn of(process: ProcessKey, request: &Request) -> Self {
        let mut hash = SipHasher13::new_with_key(&KEY);
        hash.write_u32(process.pid);
        hash.write_u64(process.start_ticks);
        let mut part = |bytes: &[u8]| {
            hash.write_usize(bytes.len());
            hash.write(bytes);
        };
        part(request.method.as_bytes());
        part(request.authority.to_ascii_lowercase().as_bytes());
        part(request.path().as_bytes());
        for pair in stable_query(request.query().unwrap_or_default()) {
            part(pair);
        }
        // The client's product, without what it tells of one attempt.
        part(
            request
                .headers
                .get("user-agent")
                .unwrap_or_default()
                .split(|byte| *byte == b' ')
                .next()
                .unwrap_or_default(),
        );
        part(media_type(request.headers.get("content-type").unwrap_or_default()));
        for name in TELLING {
            part(request.headers.get(name).unwrap_or_default());
        }
        Self(hash.finish128().as_u128())
    }

    /// Stands for the connections that were not made to a host.
    pub fn of_connecting(process: ProcessKey, authority: &str) -> Self {
        let mut hash = SipHasher13::new_with_key(&KEY);
        hash.write_u32(process.pid);
        hash.write_u64(process.start_ticks);
        hash.write(b"\0connect\0");
        hash.write(host(authority).to_ascii_lowercase().as_bytes());
        Self(hash.finish128().as_u128())
    }

    /// As a plain number, for records of rooms below.
    pub fn number(self) -> u128 {
        self.0
    }

    #[cfg(test)]
    pub(super) fn test(number: u128) -> Self {
        Self(number)
    }
}

/// Without its port.
fn host(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

/// In order, without what changes.
pub fn stable_query(query: &str) -> Vec<&[u8]> {
    let pairs: Vec<&[u8]> = query.as_bytes().split(|byte| *byte == b'&').collect();
    if pairs.len() > MAX_PAIRS {
        return vec![query.as_bytes()];
    }
    let changes = |pair: &&[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        CHANGING.iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    let mut pairs: Vec<&[u8]> = pairs.into_iter().filter(|pair| !changes(pair)).collect();
    pairs.sort_unstable();
    pairs
}

/// Without parameters: a multipart body has a new boundary each time.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// The digest of a request's body as it passes, framing already removed.
#[derive(Clone, Debug)]
pub struct BodyDigest {
    hash: SipHasher13,
    length: u64,
    /// A gzip header holds the time at which it was written.
    gzip: bool,
}

impl BodyDigest {
    /// `None` for a body that differs from attempt to attempt though it says
    /// the same: multipart, whose boundary is new each time.
    pub fn of(request: &Request) -> Option<Self> {
        let value = |name: &str| request.headers.get(name).unwrap_or_default();
        if media_type(value("content-type")).to_ascii_lowercase().starts_with(b"multipart/") {
            return None;
        }
        let gzip = value("content-encoding").eq_ignore_ascii_case(b"gzip");
        Some(Self { hash: SipHasher13::new_with_key(&KEY), length: 0, gzip })
    }

    pub fn add(&mut self, bytes: &[u8]) {
        const TIME: std::ops::Range<u64> = 4..8;
        let mut rest = bytes;
        while self.gzip && self.length < TIME.end && !rest.is_empty() {
            self.hash.write_u8(if TIME.contains(&self.length) { 0 } else { rest[0] });
            self.length += 1;
            rest = &rest[1..];
        }
        let room = usize::try_from(MAX_BODY.saturating_sub(self.length)).unwrap_or(usize::MAX);
        self.hash.write(&rest[..rest.len().min(room)]);
        self.length += rest.len() as u64;
    }

    pub fn finish(&self) -> u64 {
        let mut hash = self.hash;
        hash.write_u64(self.length);
        hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROCESS: ProcessKey = ProcessKey { pid: 1, start_ticks: 2 };

    fn print(method: &str, url: &str, headers: &[(&str, &str)]) -> Fingerprint {
        let (authority, target) = url.split_once('/').expect("a path");
        let request = Request {
            method: method.into(),
            authority: authority.into(),
            target: format!("/{target}").into(),
            headers: headers.iter().copied().collect(),
        };
        Fingerprint::of(PROCESS, &request)
    }

    #[test]
    fn what_changes_between_attempts_does_not_count() {
        let one = print(
            "GET",
            "Api.test/a?b=1&a=2&X-Amz-Date=1&X-Amz-Signature=2",
            &[("Date", "x"), ("User-Agent", "c/1 m/a")],
        );
        let other = print(
            "GET",
            "api.test/a?a=2&X-Amz-Signature=9&b=1",
            &[("Date", "y"), ("User-Agent", "c/1 m/b"), ("Authorization", "z")],
        );
        assert_eq!(one, other);
        let multipart = |boundary: &str| {
            print(
                "POST",
                "a.test/",
                &[("content-type", &format!("multipart/form-data; boundary={boundary}")), ("content-length", "9")],
            )
        };
        assert_eq!(multipart("a"), multipart("b"));
    }

    #[test]
    fn what_tells_requests_apart_counts() {
        let plain = print("GET", "a.test/x?p=1", &[]);
        for other in [
            print("HEAD", "a.test/x?p=1", &[]),
            print("GET", "b.test/x?p=1", &[]),
            print("GET", "a.test/y?p=1", &[]),
            print("GET", "a.test/x?p=2", &[]),
            print("GET", "a.test/x?p=1", &[("Range", "bytes=0-9")]),
            print("GET", "a.test/x?p=1", &[("If-None-Match", "\"e\"")]),
            print("GET", "a.test/x?p=1", &[("User-Agent", "curl/8")]),
            print("GET", "a.test/x?p=1", &[("Content-Length", "5")]),
            print("GET", "a.test/x?p=1", &[("Idempotency-Key", "5")]),
        ] {
            assert_ne!(plain, other);
        }
    }

    fn digest(headers: &[(&str, &str)], pieces: &[&[u8]]) -> Option<u64> {
        let request = Request {
            method: "POST".into(),
            authority: "a".into(),
            target: "/".into(),
            headers: headers.iter().copied().collect(),
        };
        let mut digest = BodyDigest::of(&request)?;
        pieces.iter().for_each(|piece| digest.add(piece));
        Some(digest.finish())
    }

    #[test]
    fn a_gzip_headers_time_does_not_count() {
        let gzip = [("Content-Encoding", "gzip")];
        let one = digest(&gzip, &[b"\x1f\x8b\x08\x00\x01\x02\x03\x04rest"]);
        assert_eq!(one, digest(&gzip, &[b"\x1f\x8b\x08\x00", b"\x09", b"\x09\x09\x09re", b"st"]));
        assert_ne!(one, digest(&[], &[b"\x1f\x8b\x08\x00\x01\x02\x03\x04rest"]));
        assert_ne!(one, digest(&gzip, &[b"\x1f\x8b\x08\x00\x01\x02\x03\x04Rest"]));
        assert_eq!(digest(&[("Content-Type", "multipart/form-data; boundary=x")], &[b"x"]), None);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(body: Vec<u8>, cuts in prop::collection::vec(0..64_usize, 0..5)) {
            let mut pieces = Vec::new();
            let mut rest = &body[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(digest(&[], &pieces), digest(&[], &[&body]));
        }

        #[test]
        fn any_target_is_taken(target: String) {
            print("GET", &format!("a/{target}"), &[]);
        }
    }
}
