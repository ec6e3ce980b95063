//! HTTP/2 frames as they pass (RFC 9113 §4.1): their heads, where in them the
//! bytes of a connection are, and the few that are made anew.

/// What a client says before its first frame.
pub(super) const PREFACE: usize = 24;
pub(super) const HEAD: usize = 9;
/// The whole of a PING.
pub(super) const PING_FRAME: usize = HEAD + 8;

pub(super) const HEADERS: u8 = 1;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

/// On SETTINGS and PING.
pub(super) const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0: the connection itself.
    pub(super) stream: u32,
}

impl Head {
    /// `None` while it is not there whole.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) })
    }

    /// A PING in order; `h2` says what is to be said to others.
    pub(super) fn is_ping(self) -> bool {
        self.kind == PING && self.length == PING_FRAME - HEAD && self.stream == 0
    }

    pub(super) fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }
}

/// A frame of the connection's own, on no stream.
pub(super) fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + payload.len());
    // Nothing here makes one that is longer than three bytes can tell.
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind, flags, 0, 0, 0, 0]);
    frame.extend_from_slice(payload);
    frame
}

/// Where the next byte of a connection belongs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The head that is under way, as far as it has come.
    head: [u8; HEAD],
    have: usize,
    /// Of a payload, or the preface.
    left: usize,
    /// A header block goes on in the next frame; none may come between.
    in_block: bool,
}

impl Place {
    pub(super) fn before_preface() -> Self {
        Self { left: PREFACE, ..Self::default() }
    }

    /// The next byte begins a head.
    pub(super) fn is_at_head(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// Another frame may come in here.
    pub(super) fn is_between_frames(&self) -> bool {
        self.is_at_head() && !self.in_block
    }

    /// What is left of a payload, or of the preface.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// A head has passed.
    pub(super) fn begin(&mut self, head: Head) {
        self.left = head.length;
        if matches!(head.kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
            self.in_block = head.flags & END_HEADERS == 0;
        }
    }

    /// These bytes have passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let here = if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                here
            } else {
                let here = (HEAD - self.have).min(bytes.len());
                self.head[self.have..self.have + here].copy_from_slice(&bytes[..here]);
                self.have += here;
                if let (HEAD, Some(head)) = (self.have, Head::parse(&self.head)) {
                    self.have = 0;
                    self.begin(head);
                }
                here
            };
            bytes = &bytes[here..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_not_interrupted() {
        let mut place = Place::before_preface();
        place.pass(&[b'x'; PREFACE]);
        assert!(place.is_between_frames());
        let mut headers = frame(HEADERS, 0, b"abc");
        place.pass(&headers);
        assert!(place.is_at_head() && !place.is_between_frames());
        place.pass(&frame(CONTINUATION, 0, b""));
        assert!(!place.is_between_frames());
        place.pass(&frame(CONTINUATION, END_HEADERS, b"d"));
        assert!(place.is_between_frames());
        headers[4] = END_HEADERS;
        place.pass(&headers);
        assert!(place.is_between_frames());
    }

    proptest! {
        #[test]
        fn any_split_comes_to_the_same_place(lengths in proptest::collection::vec(0_usize..40, 1..8), cut in 0_usize..400) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|&length| frame(0, 0, &vec![7; length])).collect();
            let cut = cut.min(bytes.len());
            let (mut whole, mut split) = (Place::default(), Place::default());
            whole.pass(&bytes);
            split.pass(&bytes[..cut]);
            prop_assert_eq!(split.is_at_head(), {
                let mut ends = lengths.iter().scan(0, |at, length| { *at += HEAD + length; Some(*at) });
                cut == 0 || ends.any(|end| end == cut)
            });
            split.pass(&bytes[cut..]);
            prop_assert!(whole.is_between_frames() && split.is_between_frames());
        }
    }
}
