//! A place in a text, shown to a person: the line, and carets under the place.
use std::ops::Range;

use unicode_width::UnicodeWidthChar;

/// Columns of source text shown; a longer line is cut around the place.
const WINDOW: usize = 96;
/// Columns kept before the place when a line is cut.
const BEFORE: usize = 32;

/// One line of a text with a place marked in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line, without control characters, cut to about a hundred columns.
    pub text: String,
    /// Spaces, then carets, to be printed under `text`.
    pub marks: String,
}

/// Marks `span` (byte offsets into `text`; any offsets are safe). A span over
/// several lines is marked to the end of its first; an empty one gets one caret.
pub fn excerpt(text: &str, span: Range<usize>) -> Excerpt {
    let start = floor(text, span.start);
    let end = floor(text, span.end).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let line = &text[line_start..line_end];
    let place = start - line_start..end.min(line_end) - line_start;

    let column_of = |at: usize| line[..at].chars().map(width).sum::<usize>();
    let first = column_of(place.start);
    let cut_left = if column_of(line.len()) > WINDOW { first.saturating_sub(BEFORE) } else { 0 };

    let mut shown = String::new();
    let mut indent = 0;
    let mut carets = 0;
    if cut_left > 0 {
        shown.push_str("...");
        indent = 3;
    }
    let mut column = 0;
    let mut used = 0;
    for (at, char) in line.char_indices() {
        let wide = width(char);
        column += wide;
        if column - wide < cut_left {
            continue;
        }
        if used + wide > WINDOW {
            shown.push_str("...");
            break;
        }
        used += wide;
        shown.push(visible(char));
        if at < place.start {
            indent += wide;
        } else if at < place.end {
            carets += wide;
        }
    }
    Excerpt {
        line: text[..start].matches('\n').count() + 1,
        column: line[..place.start].chars().count() + 1,
        text: shown,
        marks: format!("{}{}", " ".repeat(indent), "^".repeat(carets.max(1))),
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// What a terminal may be sent: no control character gets through.
fn visible(char: char) -> char {
    match char {
        '\t' => ' ',
        _ if char.is_control() => '?',
        _ => char,
    }
}

fn width(char: char) -> usize {
    visible(char).width().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_the_place() {
        let found = excerpt("~dd s3 => 429", 0..3);
        assert_eq!((found.text.as_str(), found.marks.as_str()), ("~dd s3 => 429", "^^^"));
        let found = excerpt("one\ntwo three\nfour", 8..13);
        assert_eq!((found.line, found.column), (2, 5));
        assert_eq!((found.text.as_str(), found.marks.as_str()), ("two three", "    ^^^^^"));
        assert_eq!(excerpt("ab", 2..2).marks, "  ^");
    }

    #[test]
    fn counts_columns_as_a_terminal_does() {
        // Two columns each.
        let found = excerpt("漢字 ~x", 7..9);
        assert_eq!(found.marks, "     ^^");
        assert_eq!(found.column, 4);
        assert_eq!(excerpt("\u{1b}[31m~x", 5..7).text, "?[31m~x");
    }

    #[test]
    fn cuts_long_lines_around_the_place() {
        let text = format!("{}HERE{}", "a".repeat(500), "b".repeat(500));
        let found = excerpt(&text, 500..504);
        assert!(found.text.len() <= 102, "{found:?}");
        let at = found.marks.find('^').expect("a caret");
        assert_eq!(&found.text[at..at + 4], "HERE");
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>(), start in 0_usize..80, end in 0_usize..80) {
            let found = excerpt(&text, start..end);
            prop_assert!(found.marks.ends_with('^'));
        }
    }
}
