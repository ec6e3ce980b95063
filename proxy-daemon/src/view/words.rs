//! Numbers, names and outcomes within so many columns, safe for a terminal.
use unicode_width::UnicodeWidthStr;

use crate::{
    control::Released,
    history::AttemptEntry,
    report::words::{duration, fit, plain},
};

/// A time, without the space that does not break.
pub(crate) fn time(ms: f64) -> String {
    duration(ms).replace('\u{a0}', " ")
}

/// `1,204`, `412 k`, `1.20 M`: at most seven columns.
pub(crate) fn short(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..100_000 => format!("{},{:03}", number / 1_000, number % 1_000),
        100_000..1_000_000 => format!("{} k", number / 1_000),
        1_000_000..1_000_000_000 => format!("{:.2} M", number as f64 / 1e6),
        _ => format!("{:.2} G", number as f64 / 1e9),
    }
}

/// `62 %`; what is less than a half of one is told apart from nothing.
pub(crate) fn share(share: f64) -> String {
    match share {
        share if share <= 0.0 => "0 %".to_owned(),
        share if share < 0.01 => "<1 %".to_owned(),
        share => format!("{:.0} %", share.min(1.0) * 100.0),
    }
}

/// Safe, and from the left within so many columns, filled up.
pub(crate) fn left(text: &str, columns: usize) -> String {
    let text = fit(&plain(text), columns);
    let pad = columns.saturating_sub(text.width());
    format!("{text}{}", " ".repeat(pad))
}

/// The same, from the right.
pub(crate) fn right(text: &str, columns: usize) -> String {
    let text = fit(&plain(text), columns);
    let pad = columns.saturating_sub(text.width());
    format!("{}{text}", " ".repeat(pad))
}

/// What was asked for: the service's own name of it, or method and URL.
pub(crate) fn asked(service: Option<&str>, operation: Option<&str>, method: &str, url: &str) -> String {
    match (service, operation) {
        (Some(service), Some(operation)) => format!("{service}.{operation}"),
        (None, Some(operation)) => operation.to_owned(),
        _ => format!("{method} {}", url.strip_prefix("https://").unwrap_or(url)),
    }
}

/// Genuine and told, or how it failed.
pub(crate) fn outcome(it: &AttemptEntry) -> String {
    let genuine = match (it.status, it.failure.as_deref()) {
        (Some(status), _) => status.to_string(),
        (None, Some(failure)) => failure.to_owned(),
        (None, None) => "-".to_owned(),
    };
    if it.rule.is_some() {
        let told = it.abort.clone().or(it.told.map(|told| told.to_string())).unwrap_or_default();
        return if told == genuine { genuine } else { format!("{genuine}→{told}") };
    }
    match (it.status, it.failure.as_deref()) {
        (Some(_), Some(failure)) => format!("{genuine} {failure}"),
        _ => genuine,
    }
}

/// What became of a held attempt, as a sentence.
pub(crate) fn released(released: &Released) -> String {
    let how = match released.how.as_str() {
        "resumed" => "went on as it was",
        "changed" => "went on, changed",
        "answered" => "was answered",
        "dropped" => "was broken off",
        "left" => "is gone: the client left",
        "late" => "went on as it was: nobody decided in time",
        "off" => "went on as it was: its intercept was ended",
        "ended" => "went on as it was: the instance ends",
        other => other,
    };
    format!("#{} {how}, after {}", released.id, time(released.waited_ms as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_seven_columns() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (99_999, "99,999"),
            (100_000, "100 k"),
            (999_999, "999 k"),
            (1_204_000, "1.20 M"),
            (2_500_000_000, "2.50 G"),
        ] {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn shares() {
        assert_eq!([0.0, 0.001, 0.01, 0.62, 1.2].map(share), ["0 %", "<1 %", "1 %", "62 %", "100 %"].map(String::from));
    }

    #[test]
    fn cells_are_as_wide_as_asked() {
        for text in ["a", "a\x1b[2J\n", "日本語の長いコマンド", "\u{202e}abc"] {
            for columns in [1, 5, 9, 40] {
                for cell in [left(text, columns), right(text, columns)] {
                    assert_eq!(cell.width(), columns, "{cell:?}");
                    assert!(!cell.contains(char::is_control) && !cell.contains('\u{202e}'), "{cell:?}");
                }
            }
        }
    }
}
