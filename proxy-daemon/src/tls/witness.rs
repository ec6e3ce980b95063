//! Whether a client shows a certificate, seen from outside.
//!
//! In: what a client sends after its hello to a server that asked for a
//! certificate, while both speak past us. Out: the client has shown one, or
//! it has said that it has none; once, or never where it cannot be told.
//!
//! In TLS 1.2 the answer is in the clear (RFC 5246 §7.4.6). In TLS 1.3 it is
//! the first encrypted record of the client, and its length tells: an empty
//! answer takes some 25 bytes, or 80 with the Finished in the same record,
//! while a certificate takes hundreds. A record that was padded looks like a
//! certificate: the safe way to err, since such a client is left alone.
//!
//! A client that goes on with an earlier session is asked nothing; see
//! [`super::ClientHello::resumes`].

const HEADER: usize = 5;
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

const CLIENT_HELLO: u8 = 1;
const CERTIFICATE: u8 = 11;

/// A first encrypted record longer than this holds a certificate.
const EMPTY_ANSWER: usize = 128;

/// How much of a record is looked at: its header, a message's, and the length
/// of a list of certificates.
const LOOKED_AT: usize = HEADER + 4 + 3;

/// Watches one client.
#[derive(Debug, Default)]
pub struct Witness {
    /// The beginning of the present record.
    front: Vec<u8>,
    /// What of the present record is still to come, and is not looked at.
    skip: usize,
    /// The keys were changed: what is called handshake is encrypted, unless
    /// it is a second hello.
    changed: bool,
    over: bool,
}

impl Witness {
    /// Takes what the client sent next. `Some` once it can be told: whether
    /// the client has shown a certificate.
    pub fn see(&mut self, mut bytes: &[u8]) -> Option<bool> {
        while !bytes.is_empty() && !self.over {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            while let Some((first, rest)) = bytes.split_first()
                && !self.over
                && self.skip == 0
            {
                self.front.push(*first);
                bytes = rest;
                if let Some(answer) = self.judge() {
                    self.over = true;
                    return answer;
                }
            }
        }
        None
    }

    /// `None` while more is needed, `Some(None)` where nothing can be told.
    fn judge(&mut self) -> Option<Option<bool>> {
        let [kind, _, _, high, low, content @ ..] = self.front.as_slice() else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        match *kind {
            APPLICATION_DATA => return Some(Some(length > EMPTY_ANSWER)),
            CHANGE_CIPHER_SPEC => self.changed = true,
            HANDSHAKE => match content {
                [CERTIFICATE, _, _, _, list @ ..] if !self.changed => match list {
                    [a, b, c, ..] => return Some(Some([*a, *b, *c] != [0, 0, 0])),
                    _ if length < LOOKED_AT - HEADER => return Some(None),
                    _ => return None,
                },
                // After a HelloRetryRequest there is a second one.
                [CLIENT_HELLO, a, b, c, ..]
                    if usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c) == length.saturating_sub(4) => {}
                [_, _, _, _, ..] => return Some(None),
                _ if length < 4 => return Some(None),
                _ => return None,
            },
            // An alert, or no TLS at all.
            _ => return Some(None),
        }
        self.skip = length.saturating_sub(content.len());
        self.front.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("short").to_be_bytes();
        [&[kind, 3, 3], &length[..], content].concat()
    }

    /// What comes out, whole and byte by byte.
    fn seen(records: &[Vec<u8>]) -> Option<bool> {
        let bytes = records.concat();
        let whole = Witness::default().see(&bytes);
        let mut slow = Witness::default();
        let pieces = bytes.chunks(1).filter_map(|byte| slow.see(byte)).collect::<Vec<_>>();
        assert_eq!(pieces, Vec::from_iter(whole));
        whole
    }

    #[test]
    fn tls12_tells_in_the_clear() {
        let none = record(HANDSHAKE, &[CERTIFICATE, 0, 0, 3, 0, 0, 0]);
        let joined = record(HANDSHAKE, &[CERTIFICATE, 0, 0, 3, 0, 0, 0, 16, 0, 0, 33, 32]);
        let one = record(HANDSHAKE, &[CERTIFICATE, 0, 2, 0, 0, 1, 253, 0, 1, 250]);
        assert_eq!(seen(&[none]), Some(false));
        assert_eq!(seen(&[joined]), Some(false));
        assert_eq!(seen(&[one]), Some(true));
        // Not asked: the key exchange comes first. Resumed: the keys change.
        assert_eq!(seen(&[record(HANDSHAKE, &[16, 0, 0, 33, 32])]), None);
        let finished = record(HANDSHAKE, &[CERTIFICATE; 40]);
        assert_eq!(seen(&[record(CHANGE_CIPHER_SPEC, &[1]), finished]), None);
    }

    #[test]
    fn tls13_tells_by_its_length() {
        let change = record(CHANGE_CIPHER_SPEC, &[1]);
        for (length, shown) in [(25, false), (61, false), (77, false), (300, true), (4000, true)] {
            let answer = record(APPLICATION_DATA, &vec![7; length]);
            assert_eq!(seen(std::slice::from_ref(&answer)), Some(shown), "{length}");
            assert_eq!(seen(&[change.clone(), answer.clone()]), Some(shown), "{length}");
            // After a second hello.
            let hello = record(HANDSHAKE, &[&[CLIENT_HELLO, 0, 1, 0][..], &[9; 256]].concat());
            assert_eq!(seen(&[change.clone(), hello, answer]), Some(shown), "{length}");
        }
    }

    #[test]
    fn what_tells_nothing_tells_nothing() {
        assert_eq!(seen(&[record(21, &[2, 48])]), None);
        assert_eq!(seen(&[record(HANDSHAKE, &[CERTIFICATE, 0, 0])]), None);
        assert_eq!(seen(&[b"GET / HTTP/1.1\r\n".to_vec()]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(pieces: Vec<Vec<u8>>) {
            let mut witness = Witness::default();
            let told = pieces.iter().filter_map(|piece| witness.see(piece)).count();
            prop_assert!(told <= 1);
            prop_assert!(witness.front.len() <= LOOKED_AT);
        }
    }
}
