//! The tree compiled, and what can be known of it without an attempt.
use std::time::Duration;

use super::{
    FilterError, Stage,
    operator::{Named, Takes},
    pattern::{NameGlob, Pattern},
    syntax::{Argument, Expr, Kind, Leaf, Numbers, Times},
    view::{Form, Text, View},
};
use crate::flow::Attempt;

/// What counts as unknown, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unknown {
    /// Bodies that were too long, or too late; heads that are gone.
    Beyond,
    /// Bodies that nobody has read yet.
    Unread,
    /// All of the response.
    Response,
}

/// A filter without text. Parts of `All` and `Any` are ordered by their cost;
/// no part has an effect, so the order cannot be seen.
#[derive(Debug)]
pub(super) enum Matcher {
    All(Box<[Matcher]>),
    Any(Box<[Matcher]>),
    Not(Box<Matcher>),
    /// `late`: a response can change the answer.
    Fact {
        fact: fn(&Attempt) -> bool,
        late: bool,
    },
    Number {
        of: fn(&Attempt) -> Option<u32>,
        within: Numbers,
        late: bool,
    },
    Time {
        of: fn(&Attempt) -> Option<Duration>,
        within: Times,
    },
    Name(NameGlob),
    Search {
        texts: &'static [Text],
        pattern: Box<Pattern>,
    },
}

impl Matcher {
    pub(super) fn is_match(&self, view: &View<'_>) -> bool {
        match self {
            Matcher::All(parts) => parts.iter().all(|part| part.is_match(view)),
            Matcher::Any(parts) => parts.iter().any(|part| part.is_match(view)),
            Matcher::Not(part) => !part.is_match(view),
            Matcher::Fact { fact, .. } => fact(view.attempt),
            Matcher::Number { of, within, .. } => of(view.attempt).is_some_and(|number| within.contains(number)),
            Matcher::Time { of, within } => of(view.attempt).is_some_and(|time| within.contains(time)),
            Matcher::Name(glob) => glob.is_match(&view.attempt.operation),
            Matcher::Search { texts, pattern } => {
                texts.iter().any(|text| view.text(*text).is_some_and(|hay| pattern.is_match(hay)))
            }
        }
    }

    /// As [`Self::is_match`], but `None` where the answer depends on a body
    /// that could not be read, or on a head that is gone.
    pub(super) fn judge(&self, view: &View<'_>) -> Option<bool> {
        self.settled(view, Unknown::Beyond)
    }

    /// As [`Self::judge`], and `None` too where the answer depends on a body
    /// that nobody has read yet.
    pub(super) fn without_body(&self, view: &View<'_>) -> Option<bool> {
        self.settled(view, Unknown::Unread)
    }

    /// As [`Self::without_body`], and `None` too where the answer depends on
    /// the response, which is to come.
    pub(super) fn before_response(&self, view: &View<'_>) -> Option<bool> {
        self.settled(view, Unknown::Response)
    }

    fn settled(&self, view: &View<'_>, unknown: Unknown) -> Option<bool> {
        let all = |parts: &[Matcher], decides: bool| {
            let mut open = false;
            for part in parts {
                match part.settled(view, unknown) {
                    Some(found) if found == decides => return Some(decides),
                    Some(_) => {}
                    None => open = true,
                }
            }
            (!open).then_some(!decides)
        };
        match self {
            Matcher::All(parts) => all(parts, false),
            Matcher::Any(parts) => all(parts, true),
            Matcher::Not(part) => part.settled(view, unknown).map(|found| !found),
            Matcher::Search { texts, .. } => {
                let found = self.is_match(view);
                let open = |text: &Text| {
                    view.is_beyond(*text)
                        || (unknown >= Unknown::Unread && text.is_unread(view.attempt))
                        || (unknown >= Unknown::Response && text.is_of_response())
                };
                (found || !texts.iter().any(open)).then_some(found)
            }
            Matcher::Fact { late: true, .. } | Matcher::Number { late: true, .. } | Matcher::Time { .. }
                if unknown == Unknown::Response =>
            {
                None
            }
            other => Some(other.is_match(view)),
        }
    }

    fn cost(&self) -> u32 {
        match self {
            Matcher::Fact { .. } | Matcher::Number { .. } | Matcher::Time { .. } => 1,
            Matcher::Name(_) => 3,
            Matcher::Search { texts, pattern } => {
                let long = u32::from(texts.iter().any(|text| text.form() != Form::Name));
                (if pattern.is_plain() { 5 } else { 20 }) * (1 + 4 * long)
            }
            Matcher::Not(part) => part.cost(),
            Matcher::All(parts) | Matcher::Any(parts) => {
                parts.iter().fold(0, |sum, part| sum.saturating_add(part.cost()))
            }
        }
    }
}

pub(super) fn compile(expr: &Expr) -> Result<Matcher, FilterError> {
    Ok(match &expr.kind {
        Kind::And(parts) => Matcher::All(by_cost(parts)?),
        Kind::Or(parts) => Matcher::Any(by_cost(parts)?),
        Kind::Not(part) => Matcher::Not(Box::new(compile(part)?)),
        Kind::Leaf(leaf) => one(leaf).map_err(|message| FilterError::new(expr.span.clone(), message))?,
    })
}

fn by_cost(parts: &[Expr]) -> Result<Box<[Matcher]>, FilterError> {
    let mut parts = parts.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    parts.sort_by_key(Matcher::cost);
    Ok(parts.into())
}

fn one(leaf: &Leaf) -> Result<Matcher, String> {
    let late = leaf.operator.before.is_some();
    Ok(match (&leaf.operator.takes, &leaf.argument) {
        (Takes::Nothing(fact), Argument::None) => Matcher::Fact { fact: *fact, late },
        (Takes::Number { of, .. }, Argument::Numbers(within)) => Matcher::Number { of: *of, within: *within, late },
        (Takes::Time(of), Argument::Times(within)) => Matcher::Time { of: *of, within: *within },
        (Takes::Glob(Named::Service), Argument::Text(text)) => Matcher::Name(NameGlob::service(text)),
        (Takes::Glob(Named::Operation), Argument::Text(text)) => Matcher::Name(NameGlob::operation(text)),
        (Takes::Regex(texts), Argument::Text(text)) => {
            let pattern = Pattern::new(text, form(texts)).map_err(|wrong| wrong.message)?;
            Matcher::Search { texts, pattern: Box::new(pattern) }
        }
        // Not made by the parser.
        _ => return Err(format!("{leaf} has the wrong kind of argument")),
    })
}

/// The texts of one operator are all of one form.
pub(super) fn form(texts: &[Text]) -> Form {
    texts.first().map_or(Form::Name, |text| text.form())
}

/// What the filter says of every attempt at this stage, if that is known.
pub(super) fn known(expr: &Expr, stage: Stage) -> Option<bool> {
    match &expr.kind {
        Kind::And(parts) => decided(parts, stage, false),
        Kind::Or(parts) => decided(parts, stage, true),
        Kind::Not(part) => known(part, stage).map(|known| !known),
        Kind::Leaf(leaf) if matches!(leaf.operator.code, "all" | "http") => Some(true),
        Kind::Leaf(leaf) => match stage {
            Stage::Requested => leaf.operator.before,
            Stage::Answered => leaf.operator.answered,
            Stage::Ended => None,
        },
    }
}

/// One part that is `by` decides; all of them known decide the other way.
fn decided(parts: &[Expr], stage: Stage, by: bool) -> Option<bool> {
    let mut open = false;
    for part in parts {
        match known(part, stage) {
            Some(known) if known == by => return Some(by),
            Some(_) => {}
            None => open = true,
        }
    }
    (!open).then_some(!by)
}
