//! A call as a lane: its attempts and the waits between them, in proportion,
//! within so many columns.
//!
//! An attempt has at least the room of its outcome, a wait that of a dot; what
//! is left is shared out by how long each took. Where that is too much, the
//! oldest attempts give way.
use unicode_width::UnicodeWidthStr;

use super::rows::CallRow;
use crate::{
    history::AttemptEntry,
    view::words::{outcome, time},
};

/// What a piece of a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Good,
    Throttled,
    Bad,
    Quiet,
    Held,
    Wait,
}

impl Ink {
    /// Of an attempt's outcome.
    pub(super) fn of(class: &str) -> Self {
        match class {
            "success" => Ink::Good,
            "throttled" => Ink::Throttled,
            "cancelled" => Ink::Quiet,
            _ => Ink::Bad,
        }
    }
}

#[derive(Debug)]
struct Piece {
    label: String,
    ink: Ink,
    ms: f64,
}

impl Piece {
    fn least(&self) -> usize {
        if self.ink == Ink::Wait { 1 } else { self.label.width().max(1) }
    }
}

/// The outcome as the client was told it, with an arrow where that is not the
/// upstream's own.
pub(super) fn told(attempt: &AttemptEntry) -> String {
    let outcome = outcome(attempt);
    let short = match outcome.split_once('→') {
        Some((_, told)) => format!("→{told}"),
        None => outcome,
    };
    crate::report::words::fit(&crate::report::words::plain(&short), 10)
}

fn pieces(row: &CallRow<'_>, held: Option<(String, f64)>) -> Vec<Vec<Piece>> {
    let wait = |ms: Option<f64>| ms.map(|ms| Piece { label: time(ms), ink: Ink::Wait, ms });
    let mut all: Vec<Vec<Piece>> = row
        .attempts
        .iter()
        .map(|attempt| {
            let piece = Piece { label: told(attempt), ink: Ink::of(&attempt.class), ms: attempt.took_ms };
            wait(attempt.waited_ms).into_iter().chain([piece]).collect()
        })
        .collect();
    if let Some((it, (status, ms))) = row.held.zip(held) {
        let piece = Piece { label: format!("{status} held"), ink: Ink::Held, ms };
        all.push(wait(it.backoff_ms).into_iter().chain([piece]).collect());
    }
    all
}

/// The lane, as texts that fill the columns together. Of what is held, its
/// status and for how long.
pub(super) fn lane(row: &CallRow<'_>, held: Option<(String, f64)>, columns: usize) -> Vec<(String, Ink)> {
    let mut attempts = pieces(row, held);
    let mut out = Vec::new();
    let least = |attempts: &[Vec<Piece>]| -> usize {
        let pieces: usize = attempts.iter().flatten().map(Piece::least).sum();
        // Attempts that nothing lies between need a gap.
        pieces + attempts.iter().skip(1).filter(|attempt| attempt.len() < 2).count()
    };
    let mut earlier = usize::try_from(row.earlier).unwrap_or(usize::MAX);
    while attempts.len() > 1 && least(&attempts) + usize::from(earlier > 0) > columns {
        attempts.remove(0);
        earlier = earlier.saturating_add(1);
    }
    let mut room = columns;
    if earlier > 0 && room > 1 {
        out.push(("…".to_owned(), Ink::Quiet));
        room -= 1;
    }
    let spare = room.saturating_sub(least(&attempts));
    let total: f64 = attempts.iter().flatten().map(|piece| piece.ms.max(0.0)).sum();
    // Where the bars end in exact arithmetic, so that rounding never adds up.
    let (mut ms, mut given) = (0.0, 0);
    for (at, attempt) in attempts.iter().enumerate() {
        if at > 0 && attempt.len() < 2 {
            out.push((" ".to_owned(), Ink::Wait));
        }
        for piece in attempt {
            ms += piece.ms.max(0.0);
            let until = if total > 0.0 { (spare as f64 * ms / total).round() as usize } else { 0 };
            let more = until.saturating_sub(given);
            given = until.max(given);
            let width = piece.least() + more;
            let text = match piece.ink {
                Ink::Wait if width >= piece.label.width() + 2 => {
                    let dots = width - piece.label.width();
                    format!("{}{}{}", "·".repeat(dots / 2), piece.label, "·".repeat(dots - dots / 2))
                }
                Ink::Wait => "·".repeat(width),
                _ => format!("{}{}", piece.label, "━".repeat(more)),
            };
            out.push((text, piece.ink));
        }
    }
    let mut left = columns;
    for (text, _) in &mut out {
        *text = if left > 0 { crate::report::words::fit(text, left) } else { String::new() };
        left = left.saturating_sub(text.width());
    }
    out.push((" ".repeat(left), Ink::Wait));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(status: u16, took_ms: f64, waited_ms: Option<f64>) -> AttemptEntry {
        let class = if status < 400 { "success" } else { "throttled" };
        AttemptEntry {
            status: Some(200),
            told: Some(status),
            rule: (status != 200).then(|| "twice".to_owned()),
            took_ms,
            waited_ms,
            class: class.to_owned(),
            ..AttemptEntry::default()
        }
    }

    fn drawn(attempts: &[AttemptEntry], columns: usize) -> String {
        let row = CallRow { call: 1, attempts, earlier: 0, took_ms: 0.0, waited_ms: 0.0, held: None };
        lane(&row, None, columns).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn in_proportion_to_time() {
        let attempts =
            [attempt(429, 100.0, None), attempt(429, 100.0, Some(400.0)), attempt(200, 100.0, Some(1_300.0))];
        assert_eq!(drawn(&attempts, 40), "→429━·······→429━······1.30 s·······200━");
        assert_eq!(drawn(&attempts, 20), "→429···→429······200");
        assert_eq!(drawn(&attempts, 10), "…·→429·200");
    }

    #[test]
    fn any_width_is_kept() {
        let attempts: Vec<_> = (0..30).map(|at| attempt(429, 5.0, (at > 0).then_some(50.0 * f64::from(at)))).collect();
        for columns in 1..200 {
            assert_eq!(drawn(&attempts, columns).width(), columns, "{columns}");
            assert_eq!(drawn(&attempts[..1], columns).width(), columns, "{columns}");
            assert_eq!(drawn(&[], columns).width(), columns, "{columns}");
        }
    }
}
