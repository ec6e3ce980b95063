//! The filter language: one way to say *which attempt*, for rules, lists and
//! every view. It is mitmproxy's (`~d`, `~m`, `~u`, `&`, `|`, `!`, a bare word
//! is the URL), with operators for calls, operations and processes.
//!
//! In: text. Out: a [`Filter`], compiled once, or a [`FilterError`] that knows
//! its place. A filter is a function of an attempt alone: it reads no clock
//! and keeps no state. Regular expressions are searched for anywhere, without
//! case. Length, depth and the size of each expression are bounded.
mod caret;
mod complete;
mod glob;
mod matcher;
mod operator;
mod parse;
mod pattern;
mod screen;
mod syntax;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use std::{fmt, ops::Range, str::FromStr};

pub use caret::{Excerpt, excerpt};
pub use complete::{Completion, Completions, Known, complete};
pub use glob::Glob;
pub use operator::{OPERATORS, Operator};
pub use parse::{MAX_DEPTH, MAX_LENGTH};
pub use screen::Screen;
pub use syntax::{Argument, Expr, Kind, Leaf, Numbers, Times};
pub use view::View;

use super::{Attempt, Content};

/// What is wrong with a filter, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FilterError {
    /// Byte offsets into the filter's text.
    pub span: Range<usize>,
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl FilterError {
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span, message: printable(message.into()), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(help.into()));
        self
    }

    /// The error over the text it is about, with carets under the place.
    pub fn render(&self, text: &str) -> String {
        let place = excerpt(text, self.span.clone());
        format!("error: {self}\n  {}\n  {}\n", place.text, place.marks)
    }
}

/// Messages quote what they are about; a terminal gets no control characters.
fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "?") } else { text }
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.help {
            Some(help) => write!(f, "{}; {help}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// How far an attempt is when a filter looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The request is known, nothing has come back.
    Requested,
    /// The response's head has come from the upstream, untouched by any rule.
    Answered,
    /// The attempt is in the ledger.
    Ended,
}

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    expr: Expr,
    matcher: matcher::Matcher,
    needs: Needs,
}

/// Which bodies a filter looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub request_body: bool,
    pub response_body: bool,
}

impl Filter {
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let expr = parse::parse(text)?;
        let matcher = matcher::compile(&expr)?;
        let needs = operator::needs(&expr);
        Ok(Self { expr, matcher, needs })
    }

    pub fn matches(&self, attempt: &Attempt) -> bool {
        self.matches_view(&View::new(attempt))
    }

    /// As [`Self::matches`], where several filters look at the same attempt.
    pub fn matches_view(&self, view: &View<'_>) -> bool {
        if self.needs == Needs::default() {
            return self.matcher.is_match(view);
        }
        // Of a body that could not be read neither `~b x` nor `!~b x` is known.
        self.matcher.judge(view) == Some(true)
    }

    /// As [`Self::matches_view`], but `None` where the answer depends on a body
    /// that could not be read, or on a head that is gone.
    pub fn judge(&self, view: &View<'_>) -> Option<bool> {
        self.matcher.judge(view)
    }

    /// As [`Self::matches_view`], but `None` where the answer depends on a body
    /// that nobody has read and that can still be read: the request's until
    /// the response has come, the response's from then on. A body that was
    /// missed is one that does not match.
    pub fn without_body(&self, view: &View<'_>) -> Option<bool> {
        self.matcher.without_body(view)
    }

    /// It looks at header fields.
    pub fn needs_heads(&self) -> bool {
        operator::needs_heads(&self.expr)
    }

    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether the request's body has to be read before it is sent on, so that
    /// the filter can be asked once the response has come: it looks at that
    /// body, and what is known by now does not settle it.
    pub fn wants_request_body(&self, view: &View<'_>) -> bool {
        self.needs.request_body
            && view.attempt.request_content == Content::Unread
            && self.matcher.before_response(view).is_none()
    }

    /// False if no attempt at this stage can match, whatever it is about.
    pub fn can_match(&self, stage: Stage) -> bool {
        matcher::known(&self.expr, stage) != Some(false)
    }

    /// No attempt can match before its response has come.
    pub fn needs_response(&self) -> bool {
        !self.can_match(Stage::Requested)
    }

    pub fn expr(&self) -> &Expr {
        &self.expr
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Self::parse(text)
    }
}

/// In canonical form: one spelling for equal filters.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt(f)
    }
}
