//! The tree compiled, and what can be known of it without an attempt.
use super::{
    FilterError, Stage,
    operator::{Named, Takes},
    pattern::{NameGlob, Pattern},
    syntax::{Argument, Expr, Kind, Leaf, Numbers},
    view::{Text, View},
};
use crate::flow::Attempt;

/// A filter without text. Parts of `All` and `Any` are ordered by their cost;
/// no part has an effect, so the order cannot be seen.
#[derive(Debug)]
pub(super) enum Matcher {
    All(Box<[Matcher]>),
    Any(Box<[Matcher]>),
    Not(Box<Matcher>),
    Fact(fn(&Attempt) -> bool),
    Number { of: fn(&Attempt) -> Option<u32>, within: Numbers },
    Name(NameGlob),
    Search { texts: &'static [Text], pattern: Box<Pattern> },
}

impl Matcher {
    pub(super) fn is_match(&self, view: &View<'_>) -> bool {
        match self {
            Matcher::All(parts) => parts.iter().all(|part| part.is_match(view)),
            Matcher::Any(parts) => parts.iter().any(|part| part.is_match(view)),
            Matcher::Not(part) => !part.is_match(view),
            Matcher::Fact(fact) => fact(view.attempt),
            Matcher::Number { of, within } => of(view.attempt).is_some_and(|number| within.contains(number)),
            Matcher::Name(glob) => glob.is_match(&view.attempt.operation),
            Matcher::Search { texts, pattern } => {
                texts.iter().any(|text| view.text(*text).is_some_and(|hay| pattern.is_match(hay)))
            }
        }
    }

    fn cost(&self) -> u32 {
        match self {
            Matcher::Fact(_) | Matcher::Number { .. } => 1,
            Matcher::Name(_) => 3,
            Matcher::Search { texts, pattern } => {
                let long = u32::from(texts.iter().any(|text| text.has_lines()));
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
    Ok(match (&leaf.operator.takes, &leaf.argument) {
        (Takes::Nothing(fact), Argument::None) => Matcher::Fact(*fact),
        (Takes::Number { of, .. }, Argument::Numbers(within)) => Matcher::Number { of: *of, within: *within },
        (Takes::Glob(Named::Service), Argument::Text(text)) => Matcher::Name(NameGlob::service(text)),
        (Takes::Glob(Named::Operation), Argument::Text(text)) => Matcher::Name(NameGlob::operation(text)),
        (Takes::Regex(texts), Argument::Text(text)) => {
            let lines = texts.iter().any(|text| text.has_lines());
            let pattern = Pattern::new(text, lines).map_err(|wrong| wrong.message)?;
            Matcher::Search { texts, pattern: Box::new(pattern) }
        }
        // Not made by the parser.
        _ => return Err(format!("{leaf} has the wrong kind of argument")),
    })
}

/// What the filter says of every attempt at this stage, if that is known.
pub(super) fn known(expr: &Expr, stage: Stage) -> Option<bool> {
    match &expr.kind {
        Kind::And(parts) => decided(parts, stage, false),
        Kind::Or(parts) => decided(parts, stage, true),
        Kind::Not(part) => known(part, stage).map(|known| !known),
        Kind::Leaf(leaf) if leaf.operator.code == "all" => Some(true),
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
