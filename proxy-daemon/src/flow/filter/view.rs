//! An attempt as filters look at it: each text is put together at most once,
//! however many filters ask, in buffers that are used again.
use std::{
    cell::{Cell, OnceCell, RefCell},
    sync::Arc,
};

use crate::{
    flow::{Attempt, Content, Headers, Protocol, content},
    process::{self, Facts},
};

/// A text that a regular expression may be looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Host,
    Method,
    Url,
    /// `Name: value` lines, without the request line.
    RequestHead,
    ResponseHead,
    Comm,
    Command,
    Exe,
    Cgroup,
    Unit,
    Container,
    ContainerName,
    Source,
    Destination,
    Protocol,
    RequestType,
    ResponseType,
    /// Without content codings; absent unless it was read whole.
    RequestBody,
    ResponseBody,
}

/// What `.`, `^` and `$` mean in a text; as in mitmproxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `^` and `$` are the text's ends.
    Name,
    /// `^` and `$` are those of any line.
    Lines,
    /// `.` is any character, a line's end too; `^` and `$` are the text's ends.
    Body,
}

const TEXTS: usize = Text::ResponseBody as usize + 1;

impl Text {
    pub(super) fn form(self) -> Form {
        match self {
            Text::RequestHead | Text::ResponseHead => Form::Lines,
            Text::RequestBody | Text::ResponseBody => Form::Body,
            _ => Form::Name,
        }
    }

    /// It is of a body that nobody has asked for, and that can still be read:
    /// the request's until the response has come, the response's from then on.
    pub(super) fn is_unread(self, attempt: &Attempt) -> bool {
        let answered = attempt.response.is_some();
        match self {
            Text::RequestBody => !answered && attempt.request_content == Content::Unread,
            Text::ResponseBody => answered && attempt.response_content == Content::Unread,
            _ => false,
        }
    }

    pub(super) fn is_of_response(self) -> bool {
        matches!(self, Text::ResponseHead | Text::ResponseType | Text::ResponseBody)
    }
}

/// A text to search, also in lower case where that is a matter of bytes.
#[derive(Debug, Default)]
pub(super) struct Hay {
    pub(super) raw: Vec<u8>,
    /// Empty unless `ascii`.
    pub(super) lower: Vec<u8>,
    pub(super) ascii: bool,
    /// How often a piece has been looked for.
    asked: Cell<u32>,
    grams: OnceCell<Box<Grams>>,
}

/// The pairs of bytes that occur in a text; some may share a bit. Rules come
/// in dozens that differ in a word: most words are ruled out by one bit.
#[derive(Debug)]
pub(super) struct Grams([u64; 64]);

/// Where a pair of bytes has its bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gram(u16);

impl Gram {
    pub(super) fn of(first: u8, second: u8) -> Self {
        Self(u16::from(first & 63) << 6 | u16::from(second & 63))
    }
}

/// Searches in one text after which its pairs are worth collecting.
const WORTH: u32 = 4;

impl Hay {
    pub(super) fn fill(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        self.raw.clear();
        self.lower.clear();
        self.asked.set(0);
        self.grams.take();
        fill(&mut self.raw);
        self.ascii = self.raw.is_ascii();
        if self.ascii {
            self.lower.extend_from_slice(&self.raw);
            self.lower.make_ascii_lowercase();
        }
    }

    /// False if these pairs do not all occur in `lower`, as far as is known.
    pub(super) fn may_hold(&self, grams: &[Gram]) -> bool {
        let asked = self.asked.get();
        if asked < WORTH {
            self.asked.set(asked + 1);
            return true;
        }
        let held = self.grams.get_or_init(|| {
            let mut held = [0; 64];
            for pair in self.lower.windows(2) {
                let Gram(at) = Gram::of(pair[0], pair[1]);
                held[usize::from(at >> 6)] |= 1_u64 << (at & 63);
            }
            Box::new(Grams(held))
        });
        grams.iter().all(|Gram(at)| held.0[usize::from(at >> 6)] >> (at & 63) & 1 == 1)
    }
}

/// Buffers kept for the next attempt on this thread, and the largest kept.
const SPARE: usize = TEXTS;
const SPARE_BYTES: usize = 64 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<Hay>> = const { RefCell::new(Vec::new()) };
}

/// One attempt, ready to be asked by any number of filters.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) attempt: &'a Attempt,
    heads_gone: bool,
    facts: OnceCell<Arc<Facts>>,
    texts: [OnceCell<Option<Hay>>; TEXTS],
}

impl<'a> View<'a> {
    pub fn new(attempt: &'a Attempt) -> Self {
        Self { attempt, heads_gone: false, facts: OnceCell::new(), texts: Default::default() }
    }

    /// One whose heads are kept no longer, but for the fields that tell its
    /// content types and a protocol asked for.
    pub fn without_heads(attempt: &'a Attempt) -> Self {
        let mut view = Self::new(attempt);
        view.heads_gone = true;
        view
    }

    /// The text is of a body that could not be read, or of a head that is
    /// gone.
    pub(super) fn is_beyond(&self, text: Text) -> bool {
        match text {
            Text::RequestBody => self.attempt.request_content == Content::Beyond,
            Text::ResponseBody => self.attempt.response_content == Content::Beyond,
            Text::RequestHead | Text::ResponseHead => self.heads_gone,
            _ => false,
        }
    }

    /// The text, unless the attempt has none of the kind (yet).
    pub(super) fn text(&self, text: Text) -> Option<&Hay> {
        self.texts.get(text as usize)?.get_or_init(|| self.read(text)).as_ref()
    }

    fn read(&self, text: Text) -> Option<Hay> {
        let request = &self.attempt.request;
        let facts = || self.facts.get_or_init(|| self.attempt.process.facts());
        let hay = match text {
            Text::Host => hay(&[request.host().as_bytes()]),
            Text::Method => hay(&[request.method.as_bytes()]),
            Text::Url => hay(&[b"https://", request.authority.as_bytes(), request.target.as_bytes()]),
            Text::RequestHead => head(&request.headers),
            Text::ResponseHead => head(&self.attempt.response.as_ref()?.headers),
            Text::Comm => hay(&[facts().comm.as_bytes()]),
            Text::Command => hay(&[facts().command.as_bytes()]),
            Text::Exe => hay(&[facts().exe.as_ref()?.as_bytes()]),
            Text::Cgroup => hay(&[facts().cgroup.as_ref()?.as_bytes()]),
            Text::Unit => hay(&[process::unit(facts().cgroup.as_ref()?)?.as_bytes()]),
            Text::Container => hay(&[process::container(facts().cgroup.as_ref()?)?.as_bytes()]),
            Text::ContainerName => hay(&[facts().container_name.as_ref()?.as_bytes()]),
            Text::Source => hay(&[self.attempt.client.to_string().as_bytes()]),
            Text::Destination => hay(&[self.attempt.origin.to_string().as_bytes()]),
            Text::Protocol => hay(&[match self.attempt.protocol {
                Protocol::Http10 => &b"http/1.0"[..],
                Protocol::Http11 => b"http/1.1",
                Protocol::Http2 => b"h2",
            }]),
            Text::RequestType => hay(&[request.headers.get("content-type")?]),
            Text::ResponseType => hay(&[self.attempt.response.as_ref()?.headers.get("content-type")?]),
            Text::RequestBody => hay(&[&content::decoded(&self.attempt.request_content, &request.headers)?]),
            Text::ResponseBody => {
                let response = self.attempt.response.as_ref()?;
                hay(&[&content::decoded(&self.attempt.response_content, &response.headers)?])
            }
        };
        Some(hay)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // A thread that is ending has nowhere to keep them.
        let _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            for text in &mut self.texts {
                if let Some(Some(hay)) = text.take()
                    && buffers.len() < SPARE
                    && hay.raw.capacity() + hay.lower.capacity() <= SPARE_BYTES
                {
                    buffers.push(hay);
                }
            }
        });
    }
}

fn hay(parts: &[&[u8]]) -> Hay {
    filled(|raw| parts.iter().for_each(|part| raw.extend_from_slice(part)))
}

fn head(headers: &Headers) -> Hay {
    filled(|raw| {
        for (name, value) in headers.iter() {
            if !raw.is_empty() {
                raw.push(b'\n');
            }
            raw.extend_from_slice(name);
            raw.extend_from_slice(b": ");
            raw.extend_from_slice(value);
        }
    })
}

fn filled(fill: impl FnOnce(&mut Vec<u8>)) -> Hay {
    let mut hay = BUFFERS.try_with(|buffers| buffers.borrow_mut().pop()).ok().flatten().unwrap_or_default();
    hay.fill(fill);
    hay
}
