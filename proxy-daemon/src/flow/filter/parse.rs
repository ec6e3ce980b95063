//! The parser: text to tree, or what is wrong and where.
//!
//! mitmproxy's grammar: `!` binds before `&`, `&` before `|`, and what simply
//! stands side by side is joined last of all, so that `a | b c` is
//! `(a | b) & c`. A word runs to white space, a parenthesis, a quote or a
//! tilde, so `a|b` without spaces is one regular expression.
//!
//! Two places differ, both where mitmproxy's reading surprises: inside quotes
//! a backslash escapes the quote and itself and otherwise stays (there `"\d"`
//! silently becomes `d`), and words that run into a quote, a parenthesis or a
//! tilde, or end in an operator, are refused instead of split.
use std::ops::Range;

use super::{
    FilterError, matcher,
    operator::{self, Named, Operator, Takes},
    pattern,
    syntax::{Argument, Expr, Kind, Leaf, Numbers, Times, ends_word},
};

/// The longest filter, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// The deepest nesting of parentheses and `!`.
pub const MAX_DEPTH: usize = 64;

pub(super) fn parse(text: &str) -> Result<Expr, FilterError> {
    if text.len() > MAX_LENGTH {
        let message = format!("the filter is longer than {MAX_LENGTH} bytes");
        return Err(FilterError::new(MAX_LENGTH..text.len(), message));
    }
    let mut parser = Parser { text, at: 0, depth: 0 };
    parser.skip_space();
    if parser.peek().is_none() {
        return Err(FilterError::new(0..text.len(), "the filter is empty").help("write ~all to match every attempt"));
    }
    let expr = parser.side_by_side()?;
    match parser.peek() {
        // What is printed has to be readable again: it has parentheses where
        // precedence did without.
        None if printed_depth(&expr) > MAX_DEPTH => Err(too_deep(expr.span)),
        None => Ok(expr),
        Some(_) => Err(FilterError::new(parser.here(), "this ) closes nothing")),
    }
}

fn too_deep(span: Range<usize>) -> FilterError {
    FilterError::new(span, format!("the filter is nested more than {MAX_DEPTH} deep"))
}

/// Parentheses and `!` around the innermost part, as printed.
fn printed_depth(expr: &Expr) -> usize {
    let inside = |part: &Expr| printed_depth(part) + usize::from(matches!(part.kind, Kind::And(_) | Kind::Or(_)));
    match &expr.kind {
        Kind::And(parts) | Kind::Or(parts) => parts.iter().map(inside).max().unwrap_or(0),
        Kind::Not(part) => inside(part) + 1,
        Kind::Leaf(_) => 0,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// A pattern as read: its value, its place, and whether the place holds the
/// value literally, so that offsets into one are offsets into the other.
struct Word {
    value: String,
    span: Range<usize>,
    /// Where the value begins in the text, if it stands there as it is.
    literal: Option<usize>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn advance(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.advance();
        }
    }

    /// The character at hand.
    fn here(&self) -> Range<usize> {
        self.at..self.at + self.peek().map_or(0, char::len_utf8)
    }

    fn side_by_side(&mut self) -> Result<Expr, FilterError> {
        let mut parts = Vec::new();
        loop {
            parts.push(self.or()?);
            if matches!(self.peek(), None | Some(')')) {
                return Ok(joined(parts, Kind::And));
            }
        }
    }

    fn or(&mut self) -> Result<Expr, FilterError> {
        let mut parts = vec![self.and()?];
        while self.operator('|') {
            parts.push(self.and()?);
        }
        Ok(joined(parts, Kind::Or))
    }

    fn and(&mut self) -> Result<Expr, FilterError> {
        let mut parts = vec![self.not()?];
        while self.operator('&') {
            parts.push(self.not()?);
        }
        Ok(joined(parts, Kind::And))
    }

    fn operator(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(sign);
        if found {
            self.advance();
            self.skip_space();
        }
        found
    }

    fn not(&mut self) -> Result<Expr, FilterError> {
        let start = self.at;
        if !self.operator('!') {
            return self.atom();
        }
        let part = self.deeper(start, Self::not)?;
        let span = start..part.span.end;
        Ok(Expr { kind: Kind::Not(Box::new(part)), span })
    }

    fn deeper(
        &mut self,
        start: usize,
        then: impl FnOnce(&mut Self) -> Result<Expr, FilterError>,
    ) -> Result<Expr, FilterError> {
        if self.depth == MAX_DEPTH {
            return Err(too_deep(start..start + 1));
        }
        self.depth += 1;
        let part = then(self);
        self.depth -= 1;
        part
    }

    fn atom(&mut self) -> Result<Expr, FilterError> {
        let start = self.at;
        match self.peek() {
            Some('(') => {
                self.advance();
                self.skip_space();
                if self.peek() == Some(')') {
                    return Err(FilterError::new(start..self.at + 1, "there is nothing between these parentheses"));
                }
                let mut inner = self.deeper(start, Self::side_by_side)?;
                if self.peek() != Some(')') {
                    return Err(FilterError::new(start..start + 1, "this ( is never closed"));
                }
                self.advance();
                inner.span = start..self.at;
                self.skip_space();
                Ok(inner)
            }
            Some('~') => self.leaf(),
            Some(sign @ ('&' | '|')) => {
                let doubled = self.text[..start].trim_end().ends_with(sign);
                let error = if doubled {
                    FilterError::new(start..start + 1, format!("{sign}{sign} is not an operator"))
                        .help(format!("write a single {sign}"))
                } else {
                    FilterError::new(start..start + 1, format!("{sign} needs something before it"))
                };
                Err(error)
            }
            None | Some(')') => {
                let before = self.text[..start].trim_end();
                let sign = before.chars().next_back().unwrap_or(' ');
                let place = before.len().saturating_sub(1)..before.len();
                Err(if matches!(sign, '&' | '|' | '!') {
                    FilterError::new(place, format!("{sign} needs something after it"))
                } else if self.peek().is_some() {
                    FilterError::new(self.here(), "this ) closes nothing")
                } else {
                    FilterError::new(self.here(), "the filter ends where something should follow")
                })
            }
            Some(_) => {
                let quoted = matches!(self.peek(), Some('"' | '\''));
                let word = self.word()?;
                let lower = word.value.to_ascii_lowercase();
                let sign = [("and", '&'), ("or", '|'), ("not", '!')].into_iter().find(|(name, _)| *name == lower);
                if let Some((_, sign)) = sign.filter(|_| !quoted) {
                    return Err(FilterError::new(word.span, format!("`{}` is not an operator", word.value)).help(
                        format!("write {sign}, or \"{}\" in quotes if it is looked for in the URL", word.value),
                    ));
                }
                let url = operator::find("u").ok_or_else(|| FilterError::new(start..start, "no operator ~u"))?;
                self.with_argument(url, start, word)
            }
        }
    }

    /// `~code`, and its argument if it takes one.
    fn leaf(&mut self) -> Result<Expr, FilterError> {
        let start = self.at;
        self.advance();
        while self.peek().is_some_and(|char| char.is_alphanumeric() || char == '_') {
            self.advance();
        }
        let span = start..self.at;
        let code = &self.text[start + 1..self.at];
        if code.is_empty() {
            return Err(FilterError::new(span, "a ~ begins an operator such as ~d, but none follows")
                .help("quote a pattern that contains ~"));
        }
        let Some(operator) = operator::find(code) else {
            let (message, help) = operator::unknown(code);
            return Err(FilterError { span, message, help });
        };
        self.skip_space();
        if matches!(operator.takes, Takes::Nothing(_)) {
            return Ok(Expr { kind: Kind::Leaf(Leaf { operator, argument: Argument::None }), span });
        }
        let missing = match self.peek() {
            None | Some(')' | '~') => true,
            Some('&' | '|' | '!') => true,
            Some(_) => false,
        };
        if missing {
            let what = match operator.takes {
                Takes::Nothing(_) => "nothing",
                Takes::Number { .. } => "a number or a range",
                Takes::Time(_) => "a time",
                Takes::Regex(_) => "a regular expression",
                Takes::Glob(_) => "a name",
            };
            let error = FilterError::new(span, format!("~{code} needs {what} after it"));
            return Err(match self.peek() {
                Some(sign @ ('&' | '|' | '!')) => error.help(format!("quote a pattern that begins with {sign}")),
                _ => error.help(example(operator)),
            });
        }
        if self.peek() == Some('(') {
            return Err(FilterError::new(self.here(), format!("~{code} needs its pattern here"))
                .help("quote a pattern that contains parentheses"));
        }
        let word = self.word()?;
        self.with_argument(operator, start, word)
    }

    fn with_argument(&mut self, operator: &'static Operator, start: usize, word: Word) -> Result<Expr, FilterError> {
        let span = start..word.span.end;
        if word.value.is_empty() {
            return Err(
                FilterError::new(word.span, "an empty pattern matches everything").help("write ~all if that is meant")
            );
        }
        let argument = match &operator.takes {
            Takes::Nothing(_) => Argument::None,
            Takes::Number { bounds, unit, .. } => Argument::Numbers(numbers(&word, *bounds, unit)?),
            Takes::Time(_) => Argument::Times(times(&word)?),
            Takes::Regex(texts) => {
                pattern::check(&word.value, matcher::form(texts)).map_err(|wrong| {
                    let place = word.literal.map(|at| at + wrong.span.start..at + wrong.span.end);
                    FilterError::new(place.unwrap_or(word.span.clone()), wrong.message)
                })?;
                Argument::Text(word.value)
            }
            Takes::Glob(named) => {
                check_glob(&word, *named)?;
                Argument::Text(word.value)
            }
        };
        Ok(Expr { kind: Kind::Leaf(Leaf { operator, argument }), span })
    }

    /// A quoted or a bare pattern.
    fn word(&mut self) -> Result<Word, FilterError> {
        let start = self.at;
        let word = match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
            _ => {
                while self.peek().is_some_and(|char| !ends_word(char)) {
                    self.advance();
                }
                let value = &self.text[start..self.at];
                if let Some(char @ ('(' | '~' | '"' | '\'')) = self.peek() {
                    return Err(FilterError::new(
                        self.here(),
                        format!("{char} cannot stand inside a pattern without quotes"),
                    )
                    .help("quote the whole pattern, or put a space before it"));
                }
                if let Some(sign @ ('&' | '|')) = value.chars().next_back() {
                    return Err(FilterError::new(
                        self.at - 1..self.at,
                        format!("this {sign} is read as part of the pattern before it"),
                    )
                    .help(format!("put a space before the {sign}, or quote the pattern")));
                }
                Word { value: value.to_owned(), span: start..self.at, literal: Some(start) }
            }
        };
        self.skip_space();
        Ok(word)
    }

    fn quoted(&mut self, quote: char) -> Result<Word, FilterError> {
        let start = self.at;
        self.advance();
        let mut value = String::new();
        while let Some(char) = self.peek() {
            self.advance();
            match char {
                _ if char == quote => {
                    let plain = value == self.text[start + 1..self.at - 1];
                    return Ok(Word { value, span: start..self.at, literal: plain.then_some(start + 1) });
                }
                '\\' => match self.peek() {
                    Some(next) if next == quote || next == '\\' => {
                        value.push(next);
                        self.advance();
                    }
                    _ => value.push('\\'),
                },
                _ => value.push(char),
            }
        }
        Err(FilterError::new(start..start + 1, format!("this {quote} is never closed")))
    }
}

fn joined(mut parts: Vec<Expr>, kind: fn(Vec<Expr>) -> Kind) -> Expr {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return only;
    }
    let span = parts.first().map_or(0, |part| part.span.start)..parts.last().map_or(0, |part| part.span.end);
    Expr { kind: kind(parts), span }
}

fn example(operator: &Operator) -> String {
    let example = match operator.takes {
        Takes::Number { .. } if operator.code == "c" => "429",
        Takes::Number { .. } => "2",
        Takes::Time(_) => ">200ms",
        Takes::Glob(Named::Service) => "s3",
        Takes::Glob(Named::Operation) => "s3.List*",
        Takes::Nothing(_) | Takes::Regex(_) => match operator.code {
            "d" => "s3.eu-west-1.amazonaws.com",
            "m" => "PUT",
            "u" => "/bucket/",
            "h" | "hq" => "user-agent:.*boto3",
            "hs" => "retry-after",
            _ => "python",
        },
    };
    format!("for example ~{} {example}", operator.code)
}

/// `2`, `..2`, `2..` or `2..5`.
fn numbers(word: &Word, (least, most): (u32, u32), unit: &str) -> Result<Numbers, FilterError> {
    let text = word.value.as_str();
    let wrong = |message: String| FilterError::new(word.span.clone(), message);
    let one = |part: &str| match part.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        // A plus sign is accepted by the standard library, not by people.
        _ => Err(()),
    };
    let part = |part: &str| if part.is_empty() { Ok(None) } else { one(part).map(Some) };
    let not_a_number = || {
        let error = wrong(format!("`{text}` is not a number or a range"));
        match instead(text) {
            Some(better) => error.help(format!("did you mean {better}?")),
            None => error.help(unit.to_owned()),
        }
    };
    if text.contains('+') {
        return Err(not_a_number());
    }
    let Some((from, to)) = text.split_once("..") else {
        let number = one(text).map_err(|()| not_a_number())?;
        return Ok(Numbers { from: Some(number), to: Some(number) });
    };
    // Rust's own spelling of a closed range.
    let to = to.strip_prefix('=').unwrap_or(to);
    let (Ok(from), Ok(to)) = (part(from), part(to)) else { return Err(not_a_number()) };
    match (from, to) {
        (None, None) => Err(wrong("the range has no end on either side".into()).help(unit.to_owned())),
        (Some(from), Some(to)) if from > to => {
            Err(wrong(format!("the range {from}..{to} is empty")).help(format!("did you mean {to}..{from}?")))
        }
        _ => Ok(Numbers { from, to }),
    }
}

/// `>200ms`, `<=1s` or `200ms..1s`.
fn times(word: &Word) -> Result<Times, FilterError> {
    const FORMS: &str = "for example >200ms, <=1s or 200ms..1s";
    let text = word.value.as_str();
    let wrong = |message: String| FilterError::new(word.span.clone(), message).help(FORMS);
    let one = |part: &str| humantime::parse_duration(part.trim()).map_err(|_| wrong(format!("`{part}` is not a time")));
    if let Some((from, to)) = text.split_once("..") {
        let end = |part: &str| if part.is_empty() { Ok(None) } else { one(part).map(|time| Some((time, true))) };
        return match (end(from)?, end(to)?) {
            (None, None) => Err(wrong("the range has no end on either side".into())),
            (Some((from, _)), Some((to, _))) if from > to => Err(wrong("this range of times is empty".into())),
            (from, to) => Ok(Times { from, to }),
        };
    }
    let (sign, rest) = text.split_at(text.find(|char| !matches!(char, '<' | '>' | '=')).unwrap_or(text.len()));
    let time = one(rest)?;
    match sign {
        ">" => Ok(Times { from: Some((time, false)), to: None }),
        ">=" => Ok(Times { from: Some((time, true)), to: None }),
        "<" => Ok(Times { from: None, to: Some((time, false)) }),
        "<=" => Ok(Times { from: None, to: Some((time, true)) }),
        _ => Err(wrong(format!("`{text}` does not say whether longer or shorter"))),
    }
}

/// What `5xx`, `500-599` and `429|503` mean here.
fn instead(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if let Some(class) = lower.strip_suffix("xx").filter(|class| matches!(*class, "1" | "2" | "3" | "4" | "5")) {
        return Some(format!("{class}00..{class}99"));
    }
    let number = |part: &str| part.parse::<u32>().is_ok();
    if let Some((from, to)) = lower.split_once('-')
        && number(from)
        && number(to)
    {
        return Some(format!("{from}..{to}"));
    }
    if lower.contains(['|', ',']) && lower.split(['|', ',']).all(number) {
        return Some("several of these joined by |".into());
    }
    if let Some(rest) = lower.strip_prefix("<=").filter(|rest| number(rest)) {
        return Some(format!("..{rest}"));
    }
    if let Some(rest) = lower.strip_prefix(">=").filter(|rest| number(rest)) {
        return Some(format!("{rest}.."));
    }
    None
}

/// Refuses what looks like a regular expression: it would match nothing.
fn check_glob(word: &Word, named: Named) -> Result<(), FilterError> {
    let text = word.value.as_str();
    let wrong = |message: &str| FilterError::new(word.span.clone(), message);
    if text.contains(['|', ',', '(', '[', '^', '$', '\\']) || text.starts_with(".*") {
        return Err(wrong("this takes a name in which * stands for anything, not a regular expression").help(
            match named {
                Named::Operation => "for example s3.List*; several are joined outside: (~op A | ~op B)",
                Named::Service => "for example s3*; several are joined outside: (~svc A | ~svc B)",
            },
        ));
    }
    if named == Named::Operation
        && let Some(head) = text.strip_suffix(".*")
        && head.starts_with(|char: char| char.is_ascii_uppercase())
    {
        return Err(wrong("this takes SERVICE.OPERATION, and no service is spelled so").help(format!(
            "write {head}* for operations that begin with {head}, or ~svc {} for a service",
            head.to_ascii_lowercase()
        )));
    }
    Ok(())
}
