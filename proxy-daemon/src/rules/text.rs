//! A rule in one line: `FILTER => CLAUSE…`. docs/rules.md lists the clauses.
pub(super) mod write;

use std::{
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Abort, Action, Answer, BodyEdit, Delay, Draft, HeaderEdit, Limits, MAX_NAME, Per, Phase, PresetChoice, Rate,
    RateKey, Source, Spread, Template, Times, presets,
};
use crate::flow::filter::{Filter, FilterError, Stage};

const LONGEST_REASON: usize = 128;

pub(super) fn parse(text: &str) -> Result<Draft, FilterError> {
    let arrow = arrow(text)?;
    let (when, then) = (&text[..arrow], &text[arrow + 2..]);
    if when.trim().is_empty() {
        return Err(FilterError::new(arrow..arrow + 2, "there is no filter before =>")
            .help("write ~all => ... to act on every attempt"));
    }
    let filter = Filter::parse(when)?;
    let clauses = clauses(then, None).map_err(|mut error| {
        let shift = arrow + 2;
        error.span = error.span.start + shift..error.span.end + shift;
        error
    })?;
    let from = text.len() - then.trim_start().len();
    let mut draft = clauses.finish(filter, from..text.trim_end().len())?;
    draft.typed = Some(text.trim().to_owned());
    Ok(draft)
}

/// The clauses after the arrow. Files named in them lie in `folder`.
pub(super) fn clauses(text: &str, folder: Option<&Path>) -> Result<Clauses, FilterError> {
    if text.trim().is_empty() {
        return Err(
            FilterError::new(text.len()..text.len(), "nothing follows =>").help("write what to do, for example => 429")
        );
    }
    let mut tail = Tail { text, at: 0, folder };
    let mut clauses = Clauses::default();
    while let Some((word, span)) = tail.word() {
        tail.clause(word, span, &mut clauses)?;
    }
    Ok(clauses)
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

/// The largest body that a rule may hold, in bytes.
const MAX_BODY: u64 = 1 << 20;

/// Everything that can follow the arrow, as far as it was given.
#[derive(Debug, Default)]
pub(super) struct Clauses {
    pub(super) name: Option<String>,
    pub(super) phase: Option<Phase>,
    pub(super) pass: bool,
    pub(super) delay: Option<Spread>,
    pub(super) cap: Option<Duration>,
    pub(super) limit: Option<Rate>,
    pub(super) answer: Answer,
    pub(super) abort: Option<Abort>,
    pub(super) limits: Limits,
    pub(super) go_on: bool,
    pub(super) off: bool,
}

impl Clauses {
    /// The rule that they make with a filter, if they go together. `whole` is
    /// where they stand.
    pub(super) fn finish(self, filter: Filter, whole: Range<usize>) -> Result<Draft, FilterError> {
        let wrong = |message: &str, help: &str| Err(FilterError::new(whole.clone(), message).help(help));
        let answers = self.answer != Answer::default();
        let truncates = matches!(self.abort, Some(Abort::Truncate(_)));
        if !answers && self.abort.is_none() && self.delay.is_none() && !self.pass {
            return if self.limit.is_some() {
                wrong(
                    "this limit does not say what becomes of what exceeds it",
                    "add an answer, for example throttle or 429",
                )
            } else {
                wrong("this rule does nothing", "write what to do, for example 429, throttle, reset or pass")
            };
        }
        if self.pass && (answers || self.abort.is_some() || self.delay.is_some() || self.limit.is_some()) {
            return wrong("`pass` leaves the attempt alone, so nothing else can be done to it", "make two rules of it");
        }
        if self.cap.is_some() && self.delay.is_none() {
            return wrong("`cap` caps a delay, and there is none", "write for example delay 200ms~50ms cap 1s");
        }
        if answers && self.abort.is_some() && !truncates {
            return wrong("an attempt that is broken off gets no answer", "leave out one of them");
        }
        let (early, late) = (filter.can_match(Stage::Requested), filter.can_match(Stage::Answered));
        if !early && !late {
            return Err(never(&filter));
        }
        let answer = &self.answer;
        let complete = answer.status.is_some() || answer.preset.is_some();
        let before = answer.preset.is_some()
            || answer.continue_then
            || (self.abort.is_some() && !truncates)
            || (!answers && !truncates);
        let phase = self.phase.unwrap_or(if (before && early) || !late { Phase::Request } else { Phase::Response });
        if phase == Phase::Request && !early {
            return wrong("this filter matches only once a response has come", "leave out `in request`");
        }
        if phase == Phase::Response && !late {
            return wrong("this filter matches only before a response has come", "leave out `in response`, or the ~q");
        }
        if phase == Phase::Request && (answers || truncates) && !complete {
            // Where the filter alone rules the response out, say so.
            return Err(match filter.expr().leaves().iter().find(|(leaf, _)| leaf.operator.code == "q") {
                Some((_, place)) if !late => {
                    FilterError::new(place.clone(), "~q matches only before a response has come, and this changes one")
                        .help("write ~s, or give a whole answer such as 503 body \"...\" in request")
                }
                _ => FilterError::new(whole.clone(), "an answer in the request phase needs a status")
                    .help("add one, for example 503, or a preset"),
            });
        }
        if phase == Phase::Request && matches!(answer.body, Some(BodyEdit::Merge(_))) {
            return wrong("there is no body to patch before the response has come", "leave out `in request`");
        }
        if phase == Phase::Response && answer.continue_then {
            return wrong("once the response has come it is too late for 100 Continue", "leave out `in response`");
        }
        if answer.continue_then && !complete {
            return wrong("`continue-then` does not say what then", "for example continue-then 503");
        }
        let action = Action {
            delay: self.delay.map(|of| Delay { of, cap: self.cap }),
            limit: self.limit,
            answer: answers.then_some(self.answer),
            abort: self.abort,
        };
        let mut draft = Draft {
            name: self.name,
            typed: None,
            text: String::new(),
            filter,
            phase,
            action,
            limits: self.limits,
            go_on: self.go_on,
            enabled: !self.off,
            source: Source::CommandLine,
        };
        draft.text = write::rule(&draft);
        Ok(draft)
    }
}

/// Why no attempt that rules can act on ever matches.
fn never(filter: &Filter) -> FilterError {
    let leaves = filter.expr().leaves();
    let of = |code| leaves.iter().find(|(leaf, _)| leaf.operator.code == code).map(|(_, span)| span.clone());
    if let Some(place) = of("e") {
        FilterError::new(place, "an attempt that failed has no response whose status could be rewritten")
    } else if let Some(place) = of("injected") {
        FilterError::new(place, "when rules are asked, no rule has acted on the attempt yet")
            .help("leave ~injected to reports")
    } else if let Some(place) = of("took") {
        FilterError::new(place, "when rules are asked, the attempt has not ended yet").help("leave ~took to reports")
    } else {
        let whole = filter.expr().span.clone();
        FilterError::new(whole, "this filter contradicts itself: no attempt can ever match it")
    }
}

/// What follows the arrow.
struct Tail<'a> {
    text: &'a str,
    at: usize,
    folder: Option<&'a Path>,
}

/// The words that begin a clause, for suggestions.
const WORDS: &[&str] = &[
    "add",
    "after",
    "body",
    "cap",
    "chance",
    "close",
    "continue",
    "continue-then",
    "delay",
    "every",
    "for",
    "goaway",
    "in",
    "limit",
    "max-hits",
    "max-share",
    "merge",
    "name",
    "off",
    "pass",
    "preset",
    "refused-stream",
    "remove",
    "reset",
    "retry-after",
    "rst-stream",
    "set",
    "stall",
    "status",
    "times",
    "tls-alert",
    "truncate",
];

impl<'a> Tail<'a> {
    fn clause(&mut self, word: &'a str, span: Range<usize>, to: &mut Clauses) -> Result<(), FilterError> {
        let twice = |given: bool| {
            if given {
                return Err(FilterError::new(span.clone(), format!("`{word}` comes too late: that is given already")));
            }
            Ok(())
        };
        let abort = |to: &mut Clauses, abort| {
            twice(to.abort.is_some())?;
            to.abort = Some(abort);
            Ok(())
        };
        if word.bytes().all(|byte| byte.is_ascii_digit()) {
            twice(to.answer.status.is_some())?;
            return self.status(word, span, to);
        }
        match word {
            "status" => {
                twice(to.answer.status.is_some())?;
                let (word, span) = self.value(&span, "a status", "for example status 429")?;
                return self.status(word, span, to);
            }
            "retry-after" => {
                let (value, at) = self.value(&span, "seconds", "for example retry-after 3")?;
                if value.parse::<u32>().is_err() {
                    return Err(FilterError::new(at, format!("`{value}` is not a number of seconds")));
                }
                to.answer.headers.push(HeaderEdit::Set("Retry-After".into(), template(value, at)?));
            }
            "throttle" => {
                twice(to.answer.preset.is_some())?;
                to.answer.preset = Some(PresetChoice::Throttle);
            }
            "preset" => {
                twice(to.answer.preset.is_some())?;
                let (name, at) = self.value(&span, "a preset's name", "`retryscope rules presets` lists them")?;
                to.answer.preset = Some(preset(name).ok_or_else(|| no_preset(name, at))?);
            }
            "set" | "add" => {
                let (line, at) = self.quoted_value(&span, "\"Name: value\"")?;
                let (name, value) = header(&line, &at)?;
                let edit = if word == "set" { HeaderEdit::Set } else { HeaderEdit::Add };
                to.answer.headers.push(edit(name, template(&value, at)?));
            }
            "remove" => {
                let (name, at) = self.value(&span, "a header's name", "for example remove Server")?;
                to.answer.headers.push(HeaderEdit::Remove(header_name(name, &at)?));
            }
            "body" => {
                twice(to.answer.body.is_some())?;
                self.skip_space();
                to.answer.body = Some(if self.text[self.at..].starts_with('@') {
                    let (path, at) = self.value(&span, "a file", "for example body @error.json")?;
                    file(path.trim_start_matches('@'), self.folder).map_err(|error| error.at(at))?
                } else {
                    let (text, at) = self.quoted_value(&span, "\"text\" or @FILE")?;
                    BodyEdit::Text(template(&text, at)?)
                });
            }
            "merge" => {
                twice(to.answer.body.is_some())?;
                let (text, at) = self.quoted_value(&span, "'{\"key\": null}'")?;
                let patch = serde_json::from_str(&text)
                    .map_err(|error| FilterError::new(at, format!("this is not JSON: {error}")))?;
                to.answer.body = Some(BodyEdit::Merge(patch));
            }
            "continue-then" => to.answer.continue_then = true,
            "delay" => {
                twice(to.delay.is_some())?;
                let (value, at) = self.value(&span, "a time", "for example 200ms, 100ms..300ms or 200ms~50ms")?;
                to.delay = Some(spread(value).map_err(|error| error.at(at))?);
            }
            "cap" => to.cap = Some(self.time(&span)?),
            "reset" => abort(to, Abort::Reset)?,
            "close" => abort(to, Abort::Close)?,
            "tls-alert" => abort(to, Abort::TlsAlert)?,
            "refused-stream" => abort(to, Abort::RefusedStream)?,
            "stall" => {
                let time = self.optional(|word| duration(word).ok());
                abort(to, Abort::Stall(time))?;
            }
            "goaway" => {
                let code = self.optional(code).unwrap_or(ENHANCE_YOUR_CALM);
                abort(to, Abort::GoAway(code))?;
            }
            "rst-stream" => {
                let code = self.optional(code).unwrap_or(INTERNAL_ERROR);
                abort(to, Abort::RstStream(code))?;
            }
            "truncate" => {
                let bytes = self.number(&span, "truncate 1000")?;
                abort(to, Abort::Truncate(bytes))?;
            }
            "limit" => {
                twice(to.limit.is_some())?;
                to.limit = Some(self.rate(&span)?);
            }
            "pass" => to.pass = true,
            "times" => {
                twice(to.limits.times.is_some())?;
                to.limits.times = Some(self.times(&span)?);
            }
            "every" => {
                let number = self.number(&span, "every 10")?;
                to.limits.every = Some(nonzero(number).ok_or_else(|| zero(&span, word))?);
            }
            "chance" => to.limits.chance = Some(self.share(&span)?),
            "max-share" => to.limits.max_share = Some(self.share(&span)?),
            "max-hits" => to.limits.max_hits = Some(self.number(&span, "max-hits 100")?),
            "after" => to.limits.after = Some(self.time(&span)?),
            "for" => to.limits.window = Some(self.time(&span)?),
            "continue" => to.go_on = true,
            "off" => to.off = true,
            "in" => {
                let (value, at) = self.value(&span, "request or response", "write in request, or in response")?;
                to.phase = Some(match value {
                    "request" => Phase::Request,
                    "response" => Phase::Response,
                    _ => {
                        return Err(FilterError::new(at, format!("`{value}` is no phase"))
                            .help("write in request, or in response"));
                    }
                });
            }
            "name" => {
                let (name, at) = self.quoted_value(&span, "\"a name\"")?;
                to.name = Some(rule_name(&name).map_err(|error| error.at(at))?);
            }
            other => match preset(other) {
                Some(found) => {
                    twice(to.answer.preset.is_some())?;
                    to.answer.preset = Some(found);
                }
                None => return Err(unknown(other, span)),
            },
        }
        Ok(())
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

    fn value(&mut self, of: &Range<usize>, what: &str, help: &str) -> Result<(&'a str, Range<usize>), FilterError> {
        let name = &self.text[of.clone()];
        self.word().ok_or_else(|| FilterError::new(of.clone(), format!("{name} needs {what} after it")).help(help))
    }

    /// A word in quotes, with its place.
    fn quoted(&mut self) -> Result<Option<(String, Range<usize>)>, FilterError> {
        self.skip_space();
        let start = self.at;
        let Some(quote @ ('"' | '\'')) = self.text[start..].chars().next() else { return Ok(None) };
        let mut value = String::new();
        let mut chars = self.text[start + 1..].char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                _ if char == quote => {
                    self.at = start + 1 + at + 1;
                    return Ok(Some((value, start..self.at)));
                }
                '\\' => match chars.next() {
                    // JSON and templates have escapes of their own.
                    Some((_, next)) if next == quote || next == '\\' => value.push(next),
                    Some((_, next)) => value.extend(['\\', next]),
                    None => {}
                },
                _ => value.push(char),
            }
        }
        Err(FilterError::new(start..start + 1, format!("this {quote} is never closed")))
    }

    fn quoted_value(&mut self, of: &Range<usize>, what: &str) -> Result<(String, Range<usize>), FilterError> {
        let name = &self.text[of.clone()];
        self.quoted()?.ok_or_else(|| FilterError::new(of.clone(), format!("{name} needs {what} after it, in quotes")))
    }

    /// The next word, if it is one of these.
    fn optional<T>(&mut self, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let start = self.at;
        let found = self.word().and_then(|(word, _)| read(word));
        if found.is_none() {
            self.at = start;
        }
        found
    }

    fn number(&mut self, of: &Range<usize>, example: &str) -> Result<u64, FilterError> {
        let (word, span) = self.value(of, "a number", &format!("for example {example}"))?;
        word.parse().map_err(|_| {
            FilterError::new(span, format!("`{word}` is not a whole number")).help(format!("for example {example}"))
        })
    }

    fn time(&mut self, of: &Range<usize>) -> Result<Duration, FilterError> {
        let (word, span) = self.value(of, "a time", "for example 30s, 10m or 2h")?;
        duration(word).map_err(|error| error.at(span))
    }

    fn share(&mut self, of: &Range<usize>) -> Result<f64, FilterError> {
        let (word, span) = self.value(of, "a share", "for example 0.05 or 5%")?;
        share(word).map_err(|error| error.at(span))
    }

    fn status(&mut self, word: &str, span: Range<usize>, to: &mut Clauses) -> Result<(), FilterError> {
        to.answer.status = Some(status(word).map_err(|error| error.at(span))?);
        if let Some((reason, at)) = self.quoted()? {
            check_reason(&reason).map_err(|error| error.at(at))?;
            to.answer.reason = Some(reason.into());
        }
        Ok(())
    }

    fn times(&mut self, of: &Range<usize>) -> Result<Times, FilterError> {
        let example = "write times 2 per call";
        let Some((word, span)) = self.word() else {
            return Err(FilterError::new(of.clone(), "times needs a number after it").help(example));
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
                return Err(FilterError::new(of.start..self.at, message).help(scopes()));
            }
        }
        let Some((word, span)) = self.word() else {
            let message = format!("times {count} does not say per what");
            return Err(FilterError::new(of.start..self.at, message).help(scopes()));
        };
        let per = per(word).map_err(|error| error.at(span))?;
        Ok(Times { count, per })
    }

    fn rate(&mut self, of: &Range<usize>) -> Result<Rate, FilterError> {
        let (word, span) = self.value(of, "a rate", "for example limit 100/s")?;
        let mut rate = rate(word).map_err(|error| error.at(span))?;
        loop {
            let start = self.at;
            match self.word() {
                Some(("per", at)) => {
                    let (word, span) = self.value(&at, "what has a rate of its own", &rate_keys())?;
                    rate.key = rate_key(word).map_err(|error| error.at(span))?;
                }
                Some(("burst", at)) => {
                    let number = self.number(&at, "burst 20")?;
                    rate.burst = Some(nonzero(number).ok_or_else(|| zero(&at, "burst"))?);
                }
                _ => {
                    self.at = start;
                    return Ok(rate);
                }
            }
        }
    }
}

fn nonzero(number: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(number).ok()?)
}

fn zero(span: &Range<usize>, word: &str) -> FilterError {
    FilterError::new(span.clone(), format!("`{word}` needs a number from 1 to {}", u32::MAX))
}

impl FilterError {
    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span = span;
        self
    }
}

/// A message whose place the caller knows.
fn wrong(message: impl Into<String>) -> FilterError {
    FilterError::new(0..0, message)
}

fn template(text: &str, at: Range<usize>) -> Result<Template, FilterError> {
    Template::parse(text).map_err(|message| FilterError::new(at, message))
}

pub(super) fn preset(name: &str) -> Option<PresetChoice> {
    if name == "throttle" { Some(PresetChoice::Throttle) } else { presets::find(name).map(PresetChoice::Named) }
}

fn near<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (strsim::damerau_levenshtein(name, word), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

pub(super) fn no_preset(name: &str, at: Range<usize>) -> FilterError {
    let error = FilterError::new(at, format!("there is no preset `{name}`"));
    match near(name, presets::all().iter().map(|preset| preset.name)) {
        Some(name) => error.help(format!("did you mean {name}?")),
        None => error.help("`retryscope rules presets` lists them"),
    }
}

fn unknown(word: &str, span: Range<usize>) -> FilterError {
    if word.starts_with(['"', '\'']) {
        return FilterError::new(span, "this text belongs to nothing")
            .help("a reason follows its status: 429 \"Slow down\"; a body is written body \"...\"");
    }
    let error = FilterError::new(span, format!("`{word}` is neither an action nor a limit"));
    let names = WORDS.iter().copied().chain(presets::all().iter().map(|preset| preset.name));
    match near(word, names) {
        Some(name) => error.help(format!("did you mean {name}?")),
        None if word.contains(['=', ':', '(']) => error.help("words and values are separated by spaces: delay 200ms"),
        None => error.help("for example 429, s3-slowdown, delay 200ms, reset, times 2 per call"),
    }
}

pub(super) fn rule_name(name: &str) -> Result<String, FilterError> {
    let name = name.trim();
    if name.is_empty() {
        return Err(wrong("a rule's name cannot be empty"));
    }
    if name.len() > MAX_NAME {
        return Err(wrong(format!("a rule's name is at most {MAX_NAME} bytes long")));
    }
    Ok(name.to_owned())
}

fn header(line: &str, at: &Range<usize>) -> Result<(Arc<str>, String), FilterError> {
    let Some((name, value)) = line.split_once(':') else {
        return Err(FilterError::new(at.clone(), "a header is written \"Name: value\""));
    };
    Ok((header_name(name.trim(), at)?, value.trim().to_owned()))
}

pub(super) fn header_name(name: &str, at: &Range<usize>) -> Result<Arc<str>, FilterError> {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(FilterError::new(at.clone(), format!("`{name}` is not a header's name")));
    }
    if ["content-length", "transfer-encoding"].iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(FilterError::new(at.clone(), format!("`{name}` follows from the body, and cannot be set")));
    }
    Ok(name.into())
}

pub(super) fn file(path: &str, folder: Option<&Path>) -> Result<BodyEdit, FilterError> {
    let path = folder.map_or_else(|| PathBuf::from(path), |folder| folder.join(path));
    let unreadable = |error: &dyn std::fmt::Display| wrong(format!("cannot read {} ({error})", path.display()));
    let length = std::fs::metadata(&path).map_err(|error| unreadable(&error))?.len();
    if length > MAX_BODY {
        return Err(unreadable(&format!("it is larger than {MAX_BODY} bytes")));
    }
    let bytes = std::fs::read(&path).map_err(|error| unreadable(&error))?;
    Ok(BodyEdit::File(path, Bytes::from(bytes)))
}

pub(super) fn duration(word: &str) -> Result<Duration, FilterError> {
    humantime::parse_duration(word)
        .map_err(|_| wrong(format!("`{word}` is not a time")).help("for example 200ms, 30s, 10m or 2h"))
}

fn spread(word: &str) -> Result<Spread, FilterError> {
    if let Some((from, to)) = word.split_once("..") {
        let (from, to) = (duration(from)?, duration(to)?);
        if from > to {
            return Err(wrong("this range of times is empty").help("the shorter time comes first"));
        }
        return Ok(Spread::Uniform { from, to });
    }
    match word.split_once('~') {
        Some((mean, deviation)) => Ok(Spread::Normal { mean: duration(mean)?, deviation: duration(deviation)? }),
        None => Ok(Spread::Fixed(duration(word)?)),
    }
}

pub(super) fn share(word: &str) -> Result<f64, FilterError> {
    let number = match word.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => word.parse::<f64>(),
    };
    number
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| wrong(format!("`{word}` is not a share")).help("for example 0.05 or 5%; at most 1 or 100%"))
}

pub(super) fn rate(word: &str) -> Result<Rate, FilterError> {
    let read = || {
        let (count, unit) = word.split_once('/')?;
        let count = count.parse::<f64>().ok().filter(|count| count.is_finite() && *count > 0.0)?;
        let per = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        Some(Rate { count, per: Duration::from_secs(per), burst: None, key: RateKey::Rule })
    };
    read().ok_or_else(|| wrong(format!("`{word}` is not a rate")).help("for example 100/s, 30/m or 0.5/s"))
}

const RATE_KEYS: [(&str, RateKey); 6] = [
    ("rule", RateKey::Rule),
    ("host", RateKey::Host),
    ("operation", RateKey::Operation),
    ("process", RateKey::Process),
    ("bucket", RateKey::Bucket),
    ("prefix", RateKey::Prefix),
];

fn rate_keys() -> String {
    format!("per is one of {}", RATE_KEYS.map(|(name, _)| name).join(", "))
}

pub(super) fn rate_key(word: &str) -> Result<RateKey, FilterError> {
    RATE_KEYS
        .into_iter()
        .find(|(name, _)| *name == word)
        .map(|(_, key)| key)
        .ok_or_else(|| wrong(format!("`{word}` has no rate of its own")).help(rate_keys()))
}

const INTERNAL_ERROR: u32 = 2;
const ENHANCE_YOUR_CALM: u32 = 11;

/// HTTP/2's error codes (RFC 9113 §7).
const CODES: [&str; 14] = [
    "no-error",
    "protocol-error",
    "internal-error",
    "flow-control-error",
    "settings-timeout",
    "stream-closed",
    "frame-size-error",
    "refused-stream",
    "cancel",
    "compression-error",
    "connect-error",
    "enhance-your-calm",
    "inadequate-security",
    "http-1-1-required",
];

pub(super) fn code(word: &str) -> Option<u32> {
    let named = CODES.iter().position(|name| *name == word).and_then(|at| u32::try_from(at).ok());
    // A number of three digits is a status.
    named.or_else(|| word.parse().ok().filter(|code| *code < 100))
}

fn status(word: &str) -> Result<u16, FilterError> {
    let digits = word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    match word.parse::<i64>().ok().filter(|_| digits) {
        Some(number) => check_status(number),
        None => Err(wrong(format!("{word} is not a status")).help(STATUS_RANGE)),
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
