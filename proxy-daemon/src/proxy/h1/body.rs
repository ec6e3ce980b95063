//! Where a body ends: a scanner that looks at bytes as they pass.
//!
//! It holds a few words of state and never a byte of the body but its trailers;
//! what it has seen can be forwarded at once.
use super::head::Framing;
use crate::flow::Headers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All of the bytes belong to the body, and more will come.
    More,
    /// The body ended after this many of the bytes.
    Done(usize),
    /// The chunked coding is broken.
    Broken,
}

/// A body under way.
#[derive(Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Body::Length(0),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunked::default()),
            Framing::UntilClose => Body::UntilClose,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Body::Length(0) | Body::Chunked(Chunked { state: State::Done, .. }))
    }

    /// Once it is over: its trailers, as they came.
    pub(super) fn over(&self) -> Option<&[u8]> {
        let trailers = match self {
            Body::Chunked(chunked) => &chunked.trailers[..],
            Body::Length(_) | Body::UntilClose => &[],
        };
        self.is_done().then_some(trailers)
    }

    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Body::UntilClose)
    }

    /// Looks at the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Progress {
        match self {
            Body::UntilClose => Progress::More,
            Body::Length(left) => {
                let here = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(*left);
                *left -= here;
                // `here` is at most the slice's length.
                if *left == 0 { Progress::Done(here as usize) } else { Progress::More }
            }
            Body::Chunked(chunked) => chunked.feed(bytes),
        }
    }
}

/// Trailers as they came, as fields. What is no list of fields, or too long,
/// gives none.
pub(super) fn trailers(lines: &[u8]) -> Headers {
    let mut places = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let whole = [lines, b"\r\n"].concat();
    match httparse::parse_headers(&whole, &mut places) {
        Ok(httparse::Status::Complete((_, fields))) if lines.len() <= MAX_TRAILERS => {
            Headers::copied(fields.iter().map(|field| (field.name.as_bytes(), field.value)))
        }
        _ => Headers::default(),
    }
}

/// The most fields of trailers.
const MAX_FIELDS: usize = 64;

/// What a body holds without its transfer coding, from as much of it as is
/// there.
pub(super) fn content(framing: Framing, bytes: &[u8]) -> Vec<u8> {
    match framing {
        Framing::None => Vec::new(),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            bytes[..length.min(bytes.len())].to_vec()
        }
        Framing::Chunked => {
            let mut content = Vec::with_capacity(bytes.len());
            Chunked::default().scan(bytes, |data| content.extend_from_slice(data));
            content
        }
        Framing::UntilClose => bytes.to_vec(),
    }
}

/// The chunked transfer coding (RFC 9112 §7.1), trailers included.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    /// Bytes left of the chunk's data, or the size read so far.
    size: u64,
    /// Lines of trailers, up to [`MAX_TRAILERS`] bytes.
    trailers: Vec<u8>,
}

/// What is kept of trailers, in bytes; where there is more, nothing is.
const MAX_TRAILERS: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At the start of a size line.
    #[default]
    SizeStart,
    Size,
    /// In an extension, up to the line's end.
    Extension,
    Data,
    /// After a chunk's data: CR, LF.
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    /// In a trailer line.
    TrailerLine,
    /// After a CR at the start of a trailer line.
    End,
    Done,
}

impl Chunked {
    fn feed(&mut self, bytes: &[u8]) -> Progress {
        self.scan(bytes, |_| ())
    }

    pub(super) fn scan(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Progress {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Data => {
                    let here = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX).min(self.size);
                    self.size -= here;
                    let end = at + here as usize;
                    data(&bytes[at..end]);
                    at = end;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    continue;
                }
                State::SizeStart | State::Size => match (byte as char).to_digit(16) {
                    Some(digit) => {
                        if self.size >> 60 != 0 {
                            return Progress::Broken;
                        }
                        self.size = self.size << 4 | u64::from(digit);
                        self.state = State::Size;
                    }
                    None if self.state == State::SizeStart => return Progress::Broken,
                    None => match byte {
                        b'\n' => self.sized(),
                        b'\r' | b';' | b' ' | b'\t' => self.state = State::Extension,
                        _ => return Progress::Broken,
                    },
                },
                State::Extension => {
                    if byte == b'\n' {
                        self.sized();
                    }
                }
                State::DataCr => match byte {
                    b'\r' => self.state = State::DataLf,
                    b'\n' => self.state = State::SizeStart,
                    _ => return Progress::Broken,
                },
                State::DataLf => {
                    if byte != b'\n' {
                        return Progress::Broken;
                    }
                    self.state = State::SizeStart;
                }
                State::Trailer => match byte {
                    b'\r' => self.state = State::End,
                    b'\n' => self.state = State::Done,
                    _ => {
                        self.state = State::TrailerLine;
                        self.trailing(byte);
                    }
                },
                State::TrailerLine => {
                    self.trailing(byte);
                    if byte == b'\n' {
                        self.state = State::Trailer;
                    }
                }
                State::End => {
                    if byte != b'\n' {
                        return Progress::Broken;
                    }
                    self.state = State::Done;
                }
                State::Done => return Progress::Done(at),
            }
            at += 1;
        }
        if self.state == State::Done { Progress::Done(at) } else { Progress::More }
    }

    fn trailing(&mut self, byte: u8) {
        // One more than is kept tells that there was more.
        if self.trailers.len() <= MAX_TRAILERS {
            self.trailers.push(byte);
        }
    }

    /// The size line has ended.
    fn sized(&mut self) {
        self.state = if self.size == 0 { State::Trailer } else { State::Data };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &[u8] = b"5;ext=\"a\"\r\nhello\r\nA \r\n0123456789\r\n1\nx\n0\r\nTrailer: one\r\nX: y\r\n\r\n";

    #[test]
    fn finds_the_end_of_a_length() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!(body.feed(b"abc"), Progress::More);
        assert_eq!(body.feed(b"defg"), Progress::Done(2));
        assert!(body.is_done());
        assert!(Body::new(Framing::None).is_done());
    }

    #[test]
    fn finds_the_end_of_chunks() {
        let mut both = MESSAGE.to_vec();
        both.extend_from_slice(b"HTTP/1.1 200");
        assert_eq!(Body::new(Framing::Chunked).feed(&both), Progress::Done(MESSAGE.len()));
    }

    #[test]
    fn trailers_are_fields() {
        let mut body = Body::new(Framing::Chunked);
        body.feed(&MESSAGE[..MESSAGE.len() - 8]);
        assert_eq!(body.over(), None);
        body.feed(&MESSAGE[MESSAGE.len() - 8..]);
        let found = trailers(body.over().expect("over"));
        assert_eq!((found.len(), found.text("trailer"), found.text("x")), (2, Some("one"), Some("y")));
        assert_eq!(Body::new(Framing::None).over(), Some(&[][..]));
        // Neither what is none, nor what has no end.
        let long = format!("5\r\nhello\r\n0\r\nx: {}\r\n\r\n", "y".repeat(20_000));
        let mut body = Body::new(Framing::Chunked);
        assert_eq!(body.feed(long.as_bytes()), Progress::Done(long.len()));
        for lines in [body.over().expect("over"), b"no field\r\n"] {
            assert_eq!(trailers(lines).len(), 0);
        }
    }

    #[test]
    fn content_is_without_its_coding() {
        assert_eq!(content(Framing::Chunked, MESSAGE), b"hello0123456789x");
        assert_eq!(content(Framing::Length(3), b"abcdef"), b"abc");
        assert_eq!(content(Framing::UntilClose, b"abc"), b"abc");
        assert_eq!(content(Framing::None, b"abc"), b"");
    }

    #[test]
    fn refuses_broken_chunks() {
        for broken in [&b"x\r\n"[..], b"\r\n", b"1\r\nab", b"1\r\na\rb", b"0\r\n\rx", b"11111111111111111\r\n"] {
            assert_eq!(Body::new(Framing::Chunked).feed(broken), Progress::Broken, "{}", broken.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_end(cuts in proptest::collection::vec(0..MESSAGE.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, MESSAGE.len()]);
            cuts.sort_unstable();
            let mut body = Body::new(Framing::Chunked);
            for pair in cuts.windows(2) {
                let part = &MESSAGE[pair[0]..pair[1]];
                let expected = if pair[1] == MESSAGE.len() { Progress::Done(part.len()) } else { Progress::More };
                prop_assert_eq!(body.feed(part), expected);
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Body::new(Framing::Chunked).feed(&bytes);
        }
    }
}
