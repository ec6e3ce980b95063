//! A rule in one line: `FILTER => STATUS ["reason"] [times N per SCOPE]`.
use std::ops::Range;

use super::{Action, Draft, Per, Times};
use crate::flow::filter::{Filter, FilterError, Stage};

/// Actions of other versions, and words people try.
pub(super) const LATER: &[&str] = &[
    "abort",
    "body",
    "close",
    "continue-then",
    "delay",
    "goaway",
    "headers",
    "limit",
    "pass",
    "preset",
    "reset",
    "stall",
    "throttle",
    "timeout",
    "truncate",
];
const LONGEST_REASON: usize = 128;

pub(super) fn parse(text: &str) -> Result<Draft, FilterError> {
    let arrow = arrow(text)?;
    let (when, then) = (&text[..arrow], &text[arrow + 2..]);
    if when.trim().is_empty() {
        return Err(FilterError::new(arrow..arrow + 2, "there is no filter before =>")
            .help("write ~all => ... to act on every attempt"));
    }
    let filter = filter(when)?;
    let (action, times) = Tail { text: then, at: 0 }.parse().map_err(|mut error| {
        let shift = arrow + 2;
        error.span = error.span.start + shift..error.span.end + shift;
        error
    })?;
    Ok(Draft { name: None, filter, text: text.trim().to_owned(), action, times, enabled: true })
}

/// A filter that a rule which rewrites responses can use.
pub(super) fn filter(text: &str) -> Result<Filter, FilterError> {
    let filter = Filter::parse(text)?;
    if filter.can_match(Stage::Answered) {
        return Ok(filter);
    }
    let whole = filter.expr().span.clone();
    let leaves = filter.expr().leaves();
    let of = |code| leaves.iter().find(|(leaf, _)| leaf.operator.code == code).map(|(_, span)| span.clone());
    let early = filter.can_match(Stage::Requested);
    Err(if let (true, Some(place)) = (early, of("q")) {
        FilterError::new(place, "~q matches only before a response has come, and a status is rewritten when it has")
            .help("write ~s, or leave it out")
    } else if early {
        FilterError::new(whole, "this matches only before a response has come, and a status is rewritten when it has")
            .help("write ~s, or leave it out")
    } else if let Some(place) = of("e") {
        FilterError::new(place, "an attempt that failed has no response whose status could be rewritten")
    } else if let Some(place) = of("injected") {
        FilterError::new(place, "when rules are asked, no rule has acted on the attempt yet")
            .help("leave ~injected to reports")
    } else {
        FilterError::new(whole, "this filter contradicts itself: no attempt can ever match it")
    })
}

/// Where `=>` stands outside quotes.
fn arrow(text: &str) -> Result<usize, FilterError> {
    let mut found: Option<usize> = None;
    let mut quote: Option<(char, usize)> = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match (quote, char) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some((open, _)), _) => quote = quote.filter(|_| char != open),
            (None, '"' | '\'') => quote = Some((char, at)),
            (None, '=') if chars.peek().is_some_and(|(_, next)| *next == '>') => {
                if found.is_some() {
                    return Err(FilterError::new(at..at + 2, "there is a second => in this rule")
                        .help("quote it if it belongs to a pattern"));
                }
                found = Some(at);
            }
            (None, _) => {}
        }
    }
    match (found, quote) {
        (Some(at), _) => Ok(at),
        (None, Some((open, at))) => Err(FilterError::new(at..at + 1, format!("this {open} is never closed"))),
        (None, None) => {
            // The filter's own error is the more useful one.
            if !text.trim().is_empty() {
                Filter::parse(text)?;
            }
            Err(FilterError::new(text.len()..text.len(), "the rule has no =>").help("for example ~d s3 => 429"))
        }
    }
}

/// What follows the arrow.
struct Tail<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tail<'a> {
    fn parse(mut self) -> Result<(Action, Option<Times>), FilterError> {
        let (word, span) = self.word().ok_or_else(|| {
            FilterError::new(self.text.len()..self.text.len(), "nothing follows =>")
                .help("write the status to answer with, for example => 429")
        })?;
        let status = status(word).map_err(|error| error.at(span))?;
        let reason = self.reason()?;
        let times = self.times()?;
        if let Some((word, span)) = self.word() {
            let error = FilterError::new(span, format!("`{word}` is not understood here"));
            return Err(if times.is_some() {
                error.help("nothing follows `times N per ...`")
            } else if reason.is_some() {
                error.help("only `times N per call` may follow the reason")
            } else {
                error.help("a reason is written in quotes: => 429 \"Slow down\"")
            });
        }
        Ok((Action { status, reason }, times))
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    /// The next run of characters that are not white space.
    fn word(&mut self) -> Option<(&'a str, Range<usize>)> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let start = self.at;
        self.at += end;
        (end > 0).then(|| (&rest[..end], start..start + end))
    }

    fn reason(&mut self) -> Result<Option<std::sync::Arc<str>>, FilterError> {
        self.skip_space();
        let start = self.at;
        let Some(quote @ ('"' | '\'')) = self.text[start..].chars().next() else { return Ok(None) };
        let mut value = String::new();
        let mut chars = self.text[start + 1..].char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                _ if char == quote => {
                    self.at = start + 1 + at + 1;
                    check_reason(&value).map_err(|error| error.at(start..self.at))?;
                    return Ok(Some(value.into()));
                }
                '\\' => value.extend(chars.next().map(|(_, char)| char)),
                _ => value.push(char),
            }
        }
        Err(FilterError::new(start..start + 1, format!("this {quote} is never closed")))
    }

    fn times(&mut self) -> Result<Option<Times>, FilterError> {
        let start = self.at;
        let Some(("times", times_span)) = self.word() else {
            self.at = start;
            return Ok(None);
        };
        let example = "write times 2 per call";
        let Some((word, span)) = self.word() else {
            return Err(FilterError::new(times_span, "times needs a number after it").help(example));
        };
        let count = word
            .parse()
            .map_err(|_| FilterError::new(span.clone(), format!("`{word}` is not a number of times")).help(example))?;
        check_count(count).map_err(|error| error.at(span))?;
        match self.word() {
            Some(("per", _)) => {}
            Some((word, span)) => {
                return Err(FilterError::new(span, format!("`per` should stand here, not `{word}`")).help(example));
            }
            None => {
                let message = format!("times {count} does not say per what");
                return Err(FilterError::new(times_span.start..self.at, message).help(scopes()));
            }
        }
        let Some((word, span)) = self.word() else {
            return Err(FilterError::new(times_span.start..self.at, format!("times {count} does not say per what"))
                .help(scopes()));
        };
        let per = per(word).map_err(|error| error.at(span))?;
        Ok(Some(Times { count, per }))
    }
}

impl FilterError {
    fn at(mut self, span: Range<usize>) -> Self {
        self.span = span;
        self
    }
}

/// A message whose place the caller knows.
fn wrong(message: impl Into<String>) -> FilterError {
    FilterError::new(0..0, message)
}

fn status(word: &str) -> Result<u16, FilterError> {
    let name = word.split(['(', '=', ':', ' ']).next().unwrap_or_default().to_ascii_lowercase();
    if LATER.contains(&name.as_str()) {
        return Err(later(&name));
    }
    if name == "status" {
        return Err(wrong("the status stands alone after =>").help("for example => 429"));
    }
    let digits = word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    match word.parse::<i64>().ok().filter(|_| digits) {
        Some(number) => check_status(number),
        None if word.parse::<u64>().is_ok() => Err(wrong(format!("{word} is not a status")).help(STATUS_RANGE)),
        None => Err(wrong(format!("`{word}` is not a status")).help("for example => 429")),
    }
}

const STATUS_RANGE: &str = "a status has three digits, 200 to 599";

pub(super) fn check_status(number: i64) -> Result<u16, FilterError> {
    match u16::try_from(number) {
        Ok(status @ 200..=599) => Ok(status),
        Ok(100..=199) => {
            Err(wrong(format!("{number} only announces another answer, so it cannot be the answer")).help(STATUS_RANGE))
        }
        _ => Err(wrong(format!("{number} is not a status")).help(STATUS_RANGE)),
    }
}

pub(super) fn check_reason(text: &str) -> Result<(), FilterError> {
    if text.len() > LONGEST_REASON {
        return Err(wrong(format!("the reason is longer than {LONGEST_REASON} characters")));
    }
    let fits = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if fits { Ok(()) } else { Err(wrong("a reason phrase is printable ASCII: clients may refuse anything else")) }
}

pub(super) fn check_count(count: u32) -> Result<(), FilterError> {
    if count == 0 {
        return Err(wrong("a rule that acts 0 times does nothing").help("leave it out"));
    }
    Ok(())
}

pub(super) fn per(word: &str) -> Result<Per, FilterError> {
    Per::ALL
        .into_iter()
        .find(|per| per.name() == word)
        .ok_or_else(|| wrong(format!("`{word}` is nothing to count by")).help(scopes()))
}

fn scopes() -> String {
    let names = Per::ALL.map(Per::name);
    format!("per is one of {}", names.join(", "))
}

pub(super) fn later(name: &str) -> FilterError {
    wrong(format!("the action `{name}` is not there in this version")).help("a rule answers with a status, such as 429")
}

/// The line that means the same as a rule from a file.
pub(super) fn write(when: &str, action: &Action, times: Option<Times>) -> String {
    let mut text = format!("{} => {}", when.trim(), action.status);
    if let Some(reason) = &action.reason {
        text.push_str(&format!(" \"{}\"", reason.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    if let Some(Times { count, per }) = times {
        text.push_str(&format!(" times {count} per {}", per.name()));
    }
    text
}
