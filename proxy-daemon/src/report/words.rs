//! Numbers, durations and names as a person reads them.
use std::{fmt::Write, time::Duration};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Joins what a line must not break between; shown as a space.
pub(super) const GLUE: char = '\u{a0}';

/// `1,204`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 call`, `1,204 calls`.
pub(super) fn count(count: u64, one: &str, many: &str) -> String {
    format!("{}{GLUE}{}", number(count), if count == 1 { one } else { many })
}

/// `0.4 ms`, `812 ms`, `38.2 s`, `4m 05s`, `2h 05m`, `3d 04h`; zero is `0 s`.
pub(crate) fn duration(ms: f64) -> String {
    let whole = Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default();
    let seconds = whole.as_secs_f64();
    // Rounded first, so that what rounds up to the next unit is told in it.
    if whole.is_zero() {
        format!("0{GLUE}s")
    } else if seconds < 0.000_1 {
        format!("<0.1{GLUE}ms")
    } else if seconds < 0.009_95 {
        format!("{:.1}{GLUE}ms", seconds * 1000.0)
    } else if seconds < 0.999_5 {
        format!("{:.0}{GLUE}ms", seconds * 1000.0)
    } else if seconds < 9.995 {
        format!("{seconds:.2}{GLUE}s")
    } else if seconds < 59.95 {
        format!("{seconds:.1}{GLUE}s")
    } else {
        let seconds = whole.saturating_add(Duration::from_millis(500)).as_secs();
        match (seconds / 60, seconds / 3600, seconds / 86_400) {
            (minutes, 0, _) => format!("{minutes}m{GLUE}{:02}s", seconds % 60),
            (minutes, hours, 0..2) => format!("{hours}h{GLUE}{:02}m", minutes % 60),
            (_, hours, days) => format!("{days}d{GLUE}{:02}h", hours % 24),
        }
    }
}

/// `512 B`, `3.4 KiB`, `12 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 9.95 { format!("{value:.0}{GLUE}{unit}") } else { format!("{value:.1}{GLUE}{unit}") }
}

/// The text with everything escaped that could drive a terminal or reorder
/// what it shows.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{a0}' => out.push(' '),
            c if c.is_control() || invisible(c) => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Format characters that change how their neighbours are shown.
fn invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text within so many columns; what does not fit is taken out of its
/// middle, since both ends tell names apart.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let head = take(text.chars(), room - room / 2);
    let tail = take(text.chars().rev(), room / 2);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

fn take(chars: impl Iterator<Item = char>, columns: usize) -> Vec<char> {
    let mut left = columns;
    chars
        .take_while(|c| {
            let width = c.width().unwrap_or(0);
            let fits = width <= left;
            left = left.saturating_sub(width);
            fits
        })
        .collect()
}

/// Lines of at most `width` columns, broken at spaces; all but the first are
/// indented. A word that is longer than a line is cut in its middle.
pub(super) fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let word = fit(word, width.saturating_sub(indent).max(1));
        if !line.trim_start().is_empty() && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !line.trim_start().is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines.into_iter().map(|line| line.replace(GLUE, " ")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(ms: f64) -> String {
        duration(ms).replace(GLUE, " ")
    }

    #[test]
    fn numbers_have_thousands() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_204), "1,204");
        assert_eq!(number(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn durations_at_their_edges() {
        for (ms, text) in [
            (0.0, "0 s"),
            (0.04, "<0.1 ms"),
            (0.4, "0.4 ms"),
            (9.94, "9.9 ms"),
            (9.96, "10 ms"),
            (812.4, "812 ms"),
            (999.6, "1.00 s"),
            (9_240.0, "9.24 s"),
            (9_996.0, "10.0 s"),
            (38_200.0, "38.2 s"),
            (59_960.0, "1m 00s"),
            (245_000.0, "4m 05s"),
            (3_599_700.0, "1h 00m"),
            (7_500_000.0, "2h 05m"),
            (273_600_000.0, "3d 04h"),
            (-1.0, "0 s"),
            (f64::NAN, "0 s"),
        ] {
            assert_eq!(shown(ms), text, "{ms}");
        }
    }

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\n\u{9b}\u{202e}é"), "a\\u{1b}[2Jb\\n\\u{9b}\\u{202e}é");
    }

    #[test]
    fn names_lose_their_middle() {
        assert_eq!(fit("python", 6), "python");
        assert_eq!(fit("python app.py --long", 11), "pytho…-long");
        assert_eq!(fit("日本語のコマンド", 7), "日…ド");
        assert_eq!(fit("abc", 1), "…");
    }

    #[test]
    fn lines_break_at_spaces_and_keep_units() {
        let text = format!("one two three 38{GLUE}s four");
        assert_eq!(wrap(&text, 15, 2), ["one two three", "  38 s four"]);
        assert_eq!(wrap("", 10, 2), [""]);
    }

    proptest! {
        #[test]
        fn no_line_is_too_wide(text in "\\PC{0,200}", width in 10..100_usize, indent in 0..8_usize) {
            for line in wrap(&plain(&text), width, indent) {
                prop_assert!(line.width() <= width, "{line:?}");
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
