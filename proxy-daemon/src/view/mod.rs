//! What people watch: clients of the local API, and nothing else.
//!
//! In: what the API answers, and keys. Out: a terminal that shows it
//! ([`top`]); a held message in an editor ([`edit`]); a page that is served
//! beside the API ([`page`]). What is shown comes from both ends of strangers'
//! connections: nothing of it reaches the terminal unescaped ([`words`]), and
//! on the page it is text.
pub(crate) mod edit;
pub mod page;
pub mod top;
pub(crate) mod words;

use crate::control::ClientError;

/// Why a view could not do its work: one sentence, and an exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ViewError {
    message: String,
    code: u8,
}

impl ViewError {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    /// What was typed means nothing, or cannot be done.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(64, message)
    }

    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

impl From<ClientError> for ViewError {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}
