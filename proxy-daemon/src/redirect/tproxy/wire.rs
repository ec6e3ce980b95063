//! nfnetlink as bytes: attributes, messages, and batches of them.
//!
//! Pure: values in, bytes out, and back. Of the protocol it knows what our
//! table takes. (Format: linux/netlink.h, linux/netfilter/nfnetlink.h; names
//! of attributes and their numbers: linux/netfilter/nf_tables.h.)

/// Messages of the nf_tables subsystem carry its number in the upper byte.
const SUBSYSTEM: u16 = 10;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NESTED: u16 = 0x8000;
const TYPE: u16 = 0x3fff;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// Lengths of heads: nlmsghdr, and nfgenmsg behind it.
const HEAD: usize = 16;
const FAMILY: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    NewChain = 3,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    NewElement = 12,
    NewObject = 18,
    GetObject = 19,
}

/// A row of attributes. Numbers are big-endian, as the kernel wants them here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value)
    }

    pub(super) fn u8(self, kind: u16, value: u8) -> Self {
        self.put(kind, &[value])
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(super) fn nest(self, kind: u16, inner: &Attributes) -> Self {
        self.put(kind | NESTED, &inner.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        // What is built here is far shorter; a longer value would be cut, and
        // refused by the kernel.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The attribute of a kind in a row of them, as the kernel sent it.
pub(super) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((head, _)) = attributes.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// One change to make, and what it is for, should the kernel refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) what: &'static str,
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) attributes: Attributes,
}

impl Message {
    /// The message alone: a question.
    pub(super) fn bytes(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, self.flags, sequence);
        bytes
    }

    fn write(&self, to: &mut Vec<u8>, flags: u16, sequence: u32) {
        let kind = SUBSYSTEM << 8 | self.kind as u16;
        head(to, kind, REQUEST | flags, sequence, NFPROTO_INET, 0, self.attributes.len());
        to.extend_from_slice(&self.attributes.0);
    }
}

/// Messages that take effect together or not at all. The batch's own head has
/// the number `first`, its messages those that follow; the last is answered in
/// any case, the others where they are refused.
pub(super) fn batch(messages: &[Message], first: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    head(&mut bytes, BATCH_BEGIN, REQUEST, first, NFPROTO_UNSPEC, SUBSYSTEM, 0);
    let mut sequence = first;
    for (index, message) in messages.iter().enumerate() {
        sequence = sequence.wrapping_add(1);
        let ack = if index + 1 == messages.len() { ACK } else { 0 };
        message.write(&mut bytes, message.flags | ack, sequence);
    }
    head(&mut bytes, BATCH_END, REQUEST, sequence.wrapping_add(1), NFPROTO_UNSPEC, SUBSYSTEM, 0);
    bytes
}

fn head(to: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, payload: usize) {
    let length = u32::try_from(HEAD + FAMILY + payload).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(&flags.to_ne_bytes());
    to.extend_from_slice(&sequence.to_ne_bytes());
    // The port: the kernel fills in the socket's own.
    to.extend_from_slice(&[0; 4]);
    // Its version is 0.
    to.extend_from_slice(&[family, 0]);
    to.extend_from_slice(&resource.to_be_bytes());
}

/// What the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// An acknowledgement (0), or why not (an errno).
    Code { sequence: u32, code: i32 },
    /// The attributes behind a family's head.
    Data { sequence: u32, attributes: &'a [u8] },
}

/// The answers in what was received at once; what is no netlink ends them.
pub(super) fn answers(mut received: &[u8]) -> Vec<Answer<'_>> {
    const ERROR: u16 = 2;
    let mut answers = Vec::new();
    while let Some(length) = word(received, 0) {
        let length = length as usize;
        let (Some(message), Some(sequence)) = (received.get(..length), word(received, 8)) else { break };
        let kind = u16::from_ne_bytes([received[4], received[5]]);
        if kind == ERROR {
            let Some(code) = word(message, HEAD) else { break };
            answers.push(Answer::Code { sequence, code: code.cast_signed().wrapping_neg() });
        } else if let Some(attributes) = message.get(HEAD + FAMILY..) {
            answers.push(Answer::Data { sequence, attributes });
        }
        received = received.get(length.next_multiple_of(4).max(HEAD)..).unwrap_or_default();
    }
    answers
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Message {
        let attributes = Attributes::new().text(1, "t").u32(2, 2);
        Message { what: "the table", kind: Kind::NewTable, flags: CREATE | EXCLUSIVE, attributes }
    }

    #[test]
    fn a_batch_byte_for_byte() {
        #[rustfmt::skip]
        let expected = [
            // The batch's begin, for nf_tables.
            20, 0, 0, 0,  0x10, 0,  1, 0,  7, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 10,
            // NEWTABLE, to be created and acknowledged.
            36, 0, 0, 0,  0, 10,  5, 6,  8, 0, 0, 0,  0, 0, 0, 0,  1, 0, 0, 0,
            6, 0, 1, 0,  b't', 0, 0, 0,
            8, 0, 2, 0,  0, 0, 0, 2,
            // Its end.
            20, 0, 0, 0,  0x11, 0,  1, 0,  9, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 10,
        ];
        assert_eq!(batch(&[table()], 7), expected);
        // Only the last is acknowledged.
        let two = batch(&[table(), table()], 1);
        assert_eq!((two[20 + 6], two[56 + 6]), (1, 5));
    }

    #[test]
    fn nests_and_finds() {
        let inner = Attributes::new().u64(2, 3).u8(1, 9);
        let outer = Attributes::new().text(5, "abc").nest(4, &inner);
        let found = find(&outer.0, 4).expect("the nest");
        assert_eq!(find(found, 2), Some(&3_u64.to_be_bytes()[..]));
        assert_eq!(find(found, 1), Some(&[9][..]));
        assert_eq!(find(found, 3), None);
        // A length that says more than there is.
        assert_eq!(find(&[200, 0, 1, 0, 1], 1), None);
        assert_eq!(find(&[0, 0, 1, 0], 1), None);
    }

    #[test]
    fn reads_answers() {
        let mut received = Vec::new();
        head(&mut received, 2, 0, 5, 0, 0, 0);
        received[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        let data = table().bytes(6);
        received.extend(&data);
        assert_eq!(
            answers(&received),
            [Answer::Code { sequence: 5, code: 17 }, Answer::Data { sequence: 6, attributes: &data[20..] }]
        );
        assert!(answers(&received[..10]).is_empty());
        assert!(answers(&[0; 64]).len() <= 4);
    }
}
