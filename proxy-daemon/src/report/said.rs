//! What a report says, in sentences, for those that show it in their own way.
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Report, text, words::GLUE};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Said {
    /// Of each process, in the order of the report; the verdict first.
    pub said: Vec<Vec<String>>,
    /// Of all of them.
    pub whole: Vec<String>,
}

impl Said {
    pub fn of(report: &Report) -> Self {
        let spaced = |sentences: Vec<String>| -> Vec<String> {
            sentences.into_iter().map(|sentence| sentence.replace(GLUE, " ")).collect()
        };
        Self {
            said: report.processes.iter().map(|process| spaced(text::said(process))).collect(),
            whole: spaced(text::said_of_all(report)),
        }
    }
}
