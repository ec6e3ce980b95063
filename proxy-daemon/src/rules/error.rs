//! What is wrong with rules, told so that it can be mended: file, line,
//! column, and carets under the place.
use std::{fmt, path::Path};

use crate::flow::filter::{Excerpt, FilterError, excerpt};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RuleError {
    /// The file, unless the rule came from the command line.
    pub file: Option<String>,
    pub message: String,
    /// The place, unless it concerns no place in particular.
    pub place: Option<Excerpt>,
}

/// Everything that is wrong. None of the rules is in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RuleErrors(pub Vec<RuleError>);

impl RuleErrors {
    /// `EX_USAGE`: what a program ends with because of them.
    pub const EXIT_CODE: u8 = 64;
}

/// Where a text came from.
pub(super) struct Source<'a> {
    file: Option<&'a Path>,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn command_line(text: &'a str) -> Self {
        Self { file: None, text }
    }

    pub(super) fn file(path: &'a Path, text: &'a str) -> Self {
        Self { file: Some(path), text }
    }

    /// An error whose span lies in this text.
    pub(super) fn error(&self, error: FilterError) -> RuleError {
        RuleError {
            file: self.file.map(|path| path.display().to_string()),
            message: error.to_string(),
            place: Some(excerpt(self.text, error.span)),
        }
    }
}

impl RuleError {
    pub(super) fn general(message: String) -> Self {
        Self { file: None, message, place: None }
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("error: ")?;
        match (&self.file, &self.place) {
            (Some(file), Some(place)) => write!(f, "{file}:{}:{}: ", place.line, place.column)?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        f.write_str(&self.message)?;
        match &self.place {
            Some(place) => write!(f, "\n  {}\n  {}", place.text, place.marks),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
