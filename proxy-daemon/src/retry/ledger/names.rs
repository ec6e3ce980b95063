//! Counts by name, written down and read again.
//!
//! The names are few and the program's own, so they are kept as what lives
//! for ever. Read back, one that is known is itself again, and a few others
//! (of another version) are remembered; past that they count as `unknown`.
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Counts;

/// How many names are remembered, and how long one may be, in bytes.
const MAX_NAMES: usize = 64;
const MAX_LENGTH: usize = 64;

static KNOWN: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn known(name: &str, known: &mut Vec<&'static str>) -> &'static str {
    if let Some(found) = known.iter().find(|known| **known == name) {
        return found;
    }
    if known.len() >= MAX_NAMES || name.len() > MAX_LENGTH {
        return "unknown";
    }
    let kept: &'static str = String::from(name).leak();
    known.push(kept);
    kept
}

pub(super) fn serialize<S: Serializer>(counts: &Counts<&'static str>, serializer: S) -> Result<S::Ok, S::Error> {
    counts.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Counts<&'static str>, D::Error> {
    let read = Counts::<String>::deserialize(deserializer)?;
    let mut counts = Counts::default();
    let mut names = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    read.into_pairs().for_each(|(name, count)| counts.add(known(&name, &mut names), count));
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Tally;

    #[test]
    fn a_tally_comes_back_as_it_was() {
        let mut tally = Tally { calls: 3, ..Tally::default() };
        tally.statuses.add(429, 2);
        tally.errors.add("reset", 1);
        tally.aborted.add("goaway", 4);
        tally.backoff.add(std::time::Duration::from_millis(1500), true);
        let text = serde_json::to_string(&tally).expect("written");
        assert_eq!(serde_json::from_str::<Tally>(&text).expect("read"), tally);
    }

    #[test]
    fn names_are_bounded() {
        let mut names = Vec::new();
        assert_eq!(known(&"x".repeat(MAX_LENGTH + 1), &mut names), "unknown");
        for number in 0..2 * MAX_NAMES {
            known(&format!("name {number}"), &mut names);
        }
        assert_eq!(known("one more", &mut names), "unknown");
        assert_eq!(known("name 7", &mut names), "name 7");
        assert_eq!(names.len(), MAX_NAMES);
    }
}
