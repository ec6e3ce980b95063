//! A line that is typed.
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// The longest line, in characters.
const LONGEST: usize = 4_096;

/// The text, and where the next character goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    text: Vec<char>,
    /// In characters.
    cursor: usize,
    /// What stands there goes away with the first character that is typed.
    fresh: bool,
}

impl Typed {
    /// What stands there already is changed, with the cursor at its end.
    pub(super) fn with(text: &str) -> Self {
        let text: Vec<char> = text.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        Self { cursor: text.len(), text, fresh: false }
    }

    /// What stands there already is an example, to be typed over.
    pub(super) fn over(text: &str) -> Self {
        Self { fresh: !text.is_empty(), ..Self::with(text) }
    }

    pub(super) fn text(&self) -> String {
        self.text.iter().collect()
    }

    pub(super) fn cursor(&self) -> usize {
        self.cursor
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub(super) fn before(&self) -> String {
        self.text.iter().take(self.cursor).collect()
    }

    /// Takes a key; false where it means nothing to a line.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let fresh = std::mem::take(&mut self.fresh);
        match key.code {
            KeyCode::Char('a') if control => self.cursor = 0,
            KeyCode::Char('e') if control => self.cursor = self.text.len(),
            KeyCode::Char('u') if control => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            KeyCode::Char('k') if control => self.text.truncate(self.cursor),
            KeyCode::Char('w') if control => self.word_back(),
            KeyCode::Char(char) if !control && !key.modifiers.contains(KeyModifiers::ALT) => {
                if fresh {
                    self.text.clear();
                    self.cursor = 0;
                }
                self.insert(&char.to_string());
            }
            KeyCode::Backspace if fresh => {
                self.text.clear();
                self.cursor = 0;
            }
            KeyCode::Backspace => {
                if self.cursor > 0 {
                    self.cursor -= 1;
                    self.text.remove(self.cursor);
                }
            }
            KeyCode::Delete => {
                if self.cursor < self.text.len() {
                    self.text.remove(self.cursor);
                }
            }
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            _ => {
                self.fresh = fresh;
                return false;
            }
        }
        true
    }

    /// Puts text where the cursor is: pasted, or completed.
    pub(super) fn insert(&mut self, text: &str) {
        if std::mem::take(&mut self.fresh) {
            self.text.clear();
            self.cursor = 0;
        }
        for char in text.chars().filter(|c| !c.is_control()) {
            if self.text.len() >= LONGEST {
                return;
            }
            self.text.insert(self.cursor, char);
            self.cursor += 1;
        }
    }

    /// Takes so many characters before the cursor away.
    pub(super) fn back(&mut self, characters: usize) {
        let from = self.cursor.saturating_sub(characters);
        self.text.drain(from..self.cursor);
        self.cursor = from;
    }

    fn word_back(&mut self) {
        let before = &self.text[..self.cursor];
        let spaces = before.iter().rev().take_while(|c| c.is_whitespace()).count();
        let word = before.iter().rev().skip(spaces).take_while(|c| !c.is_whitespace()).count();
        self.back(spaces + word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &mut Typed, keys: &str) {
        for char in keys.chars() {
            line.key(KeyEvent::from(KeyCode::Char(char)));
        }
    }

    #[test]
    fn an_example_is_typed_over_or_changed() {
        let mut line = Typed::over("200 OK");
        typed(&mut line, "429");
        assert_eq!(line.text(), "429");
        let mut line = Typed::over("200 OK");
        line.key(KeyEvent::from(KeyCode::End));
        typed(&mut line, "!");
        assert_eq!(line.text(), "200 OK!");
        let mut line = Typed::over("200 OK");
        line.key(KeyEvent::from(KeyCode::Backspace));
        assert_eq!(line.text(), "");
    }

    #[test]
    fn the_cursor_goes_by_characters() {
        let mut line = Typed::with("añb");
        line.key(KeyEvent::from(KeyCode::Left));
        line.key(KeyEvent::from(KeyCode::Backspace));
        typed(&mut line, "日");
        assert_eq!((line.text().as_str(), line.cursor(), line.before().as_str()), ("a日b", 2, "a日"));
        line.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
        assert_eq!((line.text().as_str(), line.cursor()), ("b", 0));
        line.insert("~svc s3 ~dd\u{1b}\n ");
        line.key(KeyEvent::new(KeyCode::Char('w'), KeyModifiers::CONTROL));
        assert_eq!(line.text(), "~svc s3 b");
    }
}
