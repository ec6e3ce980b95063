//! What lets a browser in: 256 random bits, new at every start.
use std::{fmt, io};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

pub(super) struct Token(String);

impl Token {
    pub(super) fn new() -> io::Result<Self> {
        let mut bits = [0; 32];
        rand::fill(&mut bits).map_err(|_| io::Error::other("the system gave no random numbers"))?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bits)))
    }

    /// Takes as long whatever is offered, as long as it has the right length.
    pub(super) fn is(&self, offered: &[u8]) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), offered).is_ok()
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// Nothing that is printed for a log may hold it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        let token = Token::new().expect("random numbers");
        let text = token.text().to_owned();
        assert!(token.is(text.as_bytes()));
        let wrong = text.replace(&text[..1], if text.starts_with('A') { "B" } else { "A" });
        for wrong in ["", " ", &text[1..], &format!("{text}A"), &wrong] {
            assert!(!token.is(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token");
    }
}
