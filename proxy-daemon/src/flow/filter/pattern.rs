//! A regular expression, compiled for many short texts.
//!
//! Most filters are a piece of a host or a URL. Those (letters and dots,
//! perhaps anchored, perhaps a few of them between bars) are searched for in
//! the lower-case copy of an ASCII text, without the machinery of a regular
//! expression. The others are asked only if the text holds the words without
//! which they cannot match. A property test holds all ways to one answer.
use std::ops::Range;

use memchr::memmem::Finder;
use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::hir::{Dot, Hir, HirKind, Look};

use super::{
    glob::Glob,
    view::{Form, Gram, Hay},
};

/// Bounds of one compiled expression, in bytes.
const MAX_PROGRAM: usize = 1 << 20;
const MAX_CACHE: usize = 1 << 20;
/// More alternatives than these are left to the regular expression.
const MAX_PLAIN: usize = 8;
/// Words of an expression that are looked for on their own.
const MAX_NEEDED: usize = 4;
/// Pairs of bytes that are looked at, from the start and as many from the end.
const MAX_GRAMS: usize = 8;

#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    plain: Option<Box<[Plain]>>,
    /// What every match contains.
    needed: Box<[Needle]>,
}

/// A word in lower case.
#[derive(Debug)]
struct Needle {
    finder: Finder<'static>,
    grams: Box<[Gram]>,
}

impl Needle {
    fn new(word: &[u8]) -> Self {
        let pairs = word.windows(2).map(|pair| Gram::of(pair[0], pair[1])).collect();
        Self { finder: Finder::new(word).into_owned(), grams: ends(pairs) }
    }
}

fn ends(mut grams: Vec<Gram>) -> Box<[Gram]> {
    if grams.len() > 2 * MAX_GRAMS {
        grams.drain(MAX_GRAMS..grams.len() - MAX_GRAMS);
    }
    grams.into()
}

/// What is wrong with an expression, and where in it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

/// Whether it is a regular expression at all, without the cost of compiling.
pub(super) fn check(pattern: &str, form: Form) -> Result<(), Wrong> {
    parse(pattern, form).map(drop)
}

fn parse(pattern: &str, form: Form) -> Result<Hir, Wrong> {
    let mut parser = regex_syntax::ParserBuilder::new()
        .utf8(false)
        .multi_line(form == Form::Lines)
        .dot_matches_new_line(form == Form::Body)
        .build();
    parser.parse(pattern).map_err(|error| syntax(pattern, &error))
}

impl Pattern {
    pub(super) fn new(pattern: &str, form: Form) -> Result<Self, Wrong> {
        let whole = |message: String| Wrong { span: 0..pattern.len(), message };
        let hir = parse(pattern, form)?;
        let regex = RegexBuilder::new(pattern)
            .case_insensitive(true)
            .multi_line(form == Form::Lines)
            .dot_matches_new_line(form == Form::Body)
            .size_limit(MAX_PROGRAM)
            .dfa_size_limit(MAX_CACHE)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => {
                    whole("this regular expression is too large once compiled; make its repetitions smaller".into())
                }
                other => whole(format!("this regular expression cannot be used: {other}")),
            })?;
        // Flags inside the pattern may switch what is assumed here.
        let (mut plain_parts, mut words) = (None, Vec::new());
        if !pattern.contains("(?") {
            plain_parts = plain(&hir);
            needed(&hir, &mut words);
        }
        let needed = words.iter().take(MAX_NEEDED).map(|word| Needle::new(word)).collect();
        Ok(Self { regex, plain: plain_parts, needed })
    }

    pub(super) fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// In lower case: every match in an ASCII text contains one of these.
    /// Absent where nothing of the kind is known.
    pub(super) fn words(&self) -> Option<Vec<&[u8]>> {
        match &self.plain {
            Some(plain) => Some(plain.iter().map(|plain| plain.finder.needle()).collect()),
            None => {
                let longest = self.needed.iter().max_by_key(|word| word.finder.needle().len())?;
                Some(vec![longest.finder.needle()])
            }
        }
    }

    pub(super) fn is_match(&self, hay: &Hay) -> bool {
        match &self.plain {
            Some(plain) if hay.ascii => plain.iter().any(|plain| plain.is_in(hay)),
            None if hay.ascii && !self.may_match(hay) => false,
            _ => self.regex.is_match(&hay.raw),
        }
    }
}

impl Pattern {
    fn may_match(&self, hay: &Hay) -> bool {
        // The cheap question first, of every word.
        self.needed.iter().all(|word| hay.may_hold(&word.grams))
            && self.needed.iter().all(|word| word.finder.find(&hay.lower).is_some())
    }
}

fn syntax(pattern: &str, error: &regex_syntax::Error) -> Wrong {
    let (span, message) = match error {
        regex_syntax::Error::Parse(error) => (*error.span(), error.kind().to_string()),
        regex_syntax::Error::Translate(error) => (*error.span(), error.kind().to_string()),
        // The type may grow.
        other => return Wrong { span: 0..pattern.len(), message: other.to_string() },
    };
    let mut message = format!("not a regular expression: {message}");
    // A glob is the likeliest mistake.
    if pattern.starts_with('*') {
        message.push_str("; write .* for anything");
    }
    Wrong { span: span.start.offset..span.end.offset, message }
}

/// Lower-case bytes, and places where any byte but a line feed will do.
#[derive(Debug)]
struct Plain {
    cells: Box<[Option<u8>]>,
    /// The longest run of bytes, looked for first, and where it begins.
    finder: Finder<'static>,
    at: usize,
    grams: Box<[Gram]>,
    /// Bound to the start and the end of the text.
    start: bool,
    end: bool,
}

impl Plain {
    fn is_in(&self, hay: &Hay) -> bool {
        let text = hay.lower.as_slice();
        let spare = text.len().checked_sub(self.cells.len());
        match (self.start, self.end, spare) {
            (_, _, None) => false,
            (true, true, Some(spare)) => spare == 0 && self.is_at(text, 0),
            (true, false, Some(_)) => self.is_at(text, 0),
            (false, true, Some(spare)) => self.is_at(text, spare),
            (false, false, Some(spare)) => {
                hay.may_hold(&self.grams)
                    && self
                        .finder
                        .find_iter(text)
                        .filter_map(|found| found.checked_sub(self.at))
                        .any(|start| start <= spare && self.is_at(text, start))
            }
        }
    }

    fn is_at(&self, text: &[u8], start: usize) -> bool {
        text.get(start..start + self.cells.len()).is_some_and(|part| {
            part.iter().zip(&self.cells).all(|(byte, cell)| cell.map_or(*byte != b'\n', |cell| cell == *byte))
        })
    }
}

/// Words of at least two bytes that every match contains, in lower case.
fn needed(hir: &Hir, words: &mut Vec<Vec<u8>>) {
    match hir.kind() {
        HirKind::Literal(literal) if literal.0.is_ascii() && literal.0.len() > 1 => {
            words.push(literal.0.to_ascii_lowercase());
        }
        HirKind::Concat(parts) => parts.iter().for_each(|part| needed(part, words)),
        HirKind::Capture(group) => needed(&group.sub, words),
        HirKind::Repetition(repeated) if repeated.min > 0 => needed(&repeated.sub, words),
        _ => {}
    }
}

fn plain(hir: &Hir) -> Option<Box<[Plain]>> {
    match hir.kind() {
        HirKind::Alternation(parts) if parts.len() <= MAX_PLAIN => parts.iter().map(plain_one).collect(),
        HirKind::Capture(group) => plain(&group.sub),
        _ => Some(Box::new([plain_one(hir)?])),
    }
}

fn plain_one(hir: &Hir) -> Option<Plain> {
    let parts = match hir.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(hir),
    };
    let (mut cells, mut start, mut end) = (Vec::new(), false, false);
    let dot = Hir::dot(Dot::AnyCharExceptLF);
    for part in parts {
        match part.kind() {
            HirKind::Literal(literal) if literal.0.is_ascii() && !end => {
                cells.extend(literal.0.iter().map(|byte| Some(byte.to_ascii_lowercase())));
            }
            _ if *part == dot && !end => cells.push(None),
            HirKind::Look(Look::Start) if cells.is_empty() => start = true,
            HirKind::Look(Look::End) => end = true,
            _ => return None,
        }
    }
    let mut best = 0..0;
    let mut from = 0;
    for (at, cell) in cells.iter().enumerate() {
        if cell.is_none() {
            from = at + 1;
        } else if at + 1 - from > best.len() {
            best = from..at + 1;
        }
    }
    let needle: Vec<u8> = cells.get(best.clone())?.iter().copied().flatten().collect();
    if needle.is_empty() {
        return None;
    }
    let pairs = cells.windows(2).filter_map(|pair| Some(Gram::of(pair[0]?, pair[1]?))).collect();
    Some(Plain {
        cells: cells.into(),
        finder: Finder::new(&needle).into_owned(),
        grams: ends(pairs),
        at: best.start,
        start,
        end,
    })
}

/// `SERVICE.OPERATION`, `OPERATION` or `SERVICE` with `*` and `?` in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameGlob {
    service: Option<Glob>,
    name: Option<Glob>,
}

impl NameGlob {
    pub(super) fn operation(text: &str) -> Self {
        match text.split_once('.') {
            Some((service, name)) => Self { service: Some(Glob::new(service)), name: Some(Glob::new(name)) },
            None => Self { service: None, name: Some(Glob::new(text)) },
        }
    }

    pub(super) fn service(text: &str) -> Self {
        Self { service: Some(Glob::new(text)), name: None }
    }

    pub(super) fn is_match(&self, operation: &crate::flow::Operation) -> bool {
        let half = |glob: &Option<Glob>, part: &Option<std::sync::Arc<str>>| match (glob, part) {
            (None, _) => true,
            (Some(glob), Some(part)) => glob.is_match(part),
            (Some(_), None) => false,
        };
        half(&self.name, &operation.name) && half(&self.service, &operation.service)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hay(text: &str) -> Hay {
        let mut hay = Hay::default();
        hay.fill(|raw| raw.extend_from_slice(text.as_bytes()));
        hay
    }

    #[test]
    fn common_patterns_are_plain() {
        for (pattern, form) in [
            ("s3", Form::Name),
            ("s3.eu-west-1.amazonaws.com", Form::Name),
            (r"^s3\.eu-west-1\.amazonaws\.com$", Form::Name),
            ("GET|PUT", Form::Name),
            ("(GET|PUT)", Form::Name),
            ("retry-after", Form::Lines),
        ] {
            assert!(Pattern::new(pattern, form).is_ok_and(|pattern| pattern.is_plain()), "{pattern}");
        }
        for (pattern, form) in [
            ("s3.*", Form::Name),
            ("(?-i)S3", Form::Name),
            ("^x-amz", Form::Lines),
            (".", Form::Name),
            ("é", Form::Name),
        ] {
            assert!(Pattern::new(pattern, form).is_ok_and(|pattern| !pattern.is_plain()), "{pattern}");
        }
    }

    #[test]
    fn says_what_is_wrong_where() {
        let wrong = Pattern::new("a(b", Form::Name).expect_err("unclosed");
        assert_eq!(wrong.span, 1..2);
        assert!(wrong.message.contains("unclosed group"), "{}", wrong.message);
        assert!(
            Pattern::new("*.amazonaws.com", Form::Name).is_err_and(|wrong| wrong.message.contains(".* for anything"))
        );
        assert!(
            Pattern::new(r"((\w{100}){100}){100}", Form::Name).is_err_and(|wrong| wrong.message.contains("too large"))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn plain_and_regex_agree(
            pattern in "\\^?([aAbkKsS.|\\n]|[.][*]|ab|(bs)+|(k|a)?){1,6}\\$?",
            text in "[aAbBkKsS.é\u{212a}\u{17f}\\n]{0,12}",
            form in prop::sample::select(vec![Form::Name, Form::Lines, Form::Body]),
        ) {
            let Ok(pattern) = Pattern::new(&pattern, form) else { return Ok(()) };
            let hay = hay(&text);
            // Often enough for every shortcut to be taken.
            for _ in 0..6 {
                prop_assert_eq!(pattern.is_match(&hay), pattern.regex.is_match(&hay.raw));
            }
        }
    }
}
