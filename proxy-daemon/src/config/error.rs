//! What is wrong with a file, told so that it can be mended: file, line,
//! column, and carets under the place.
use std::{fmt, path::Path};

use crate::{
    flow::filter::{Excerpt, FilterError, excerpt},
    rules::{RuleError, RuleErrors},
};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Empty where it concerns several.
    file: String,
    message: String,
    place: Option<Excerpt>,
}

/// Everything that is wrong. Nothing of the file is in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// What a program ends with because of them.
    pub fn exit_code(&self) -> u8 {
        64
    }

    pub(super) fn general(path: &Path, message: String) -> Self {
        Self(vec![ConfigError { file: path.display().to_string(), message, place: None }])
    }

    pub(super) fn add(&mut self, path: &Path, message: String) {
        self.0.extend(Self::general(path, message).0);
    }

    /// Errors whose spans lie in the file's text.
    pub(super) fn of(path: &Path, text: &str, errors: Vec<FilterError>) -> Self {
        let file = path.display().to_string();
        let error = |error: FilterError| ConfigError {
            file: file.clone(),
            message: error.to_string(),
            place: Some(excerpt(text, error.span)),
        };
        Self(errors.into_iter().map(error).collect())
    }
}

impl From<RuleErrors> for ConfigErrors {
    fn from(errors: RuleErrors) -> Self {
        let error = |error: RuleError| ConfigError {
            file: error.file.unwrap_or_default(),
            message: error.message,
            place: error.place,
        };
        Self(errors.0.into_iter().map(error).collect())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => {
                write!(f, "error: {}:{}:{}: {}", self.file, place.line, place.column, self.message)?;
                write!(f, "\n  {}\n  {}", place.text, place.marks)
            }
            None if self.file.is_empty() => write!(f, "error: {}", self.message),
            None => write!(f, "error: {}: {}", self.file, self.message),
        }
    }
}

impl fmt::Display for ConfigErrors {
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
