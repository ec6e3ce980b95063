//! The forms that recordings have, and where their last whole entry ends: a
//! kill may have torn what comes after it.
use std::path::Path;

use serde::de::IgnoredAny;

/// How a HAR file of ours begins.
const HAR_START: &str = r#"{"log":{"version":"1.2","creator":{"name":"retryscope""#;
/// How a line of one of its entries begins, but for a comma.
const HAR_ENTRY: &str = r#"{"startedDateTime":"#;
/// How JSONL of ours begins.
const JSONL_START: &str = r#"{"v":1,"type":"#;

/// How a recording is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// HAR 1.2: what browsers and mitmproxy read.
    Har,
    /// One attempt a line.
    Jsonl,
}

impl Form {
    /// By the name of the file.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "har" => Some(Form::Har),
            "jsonl" | "ndjson" => Some(Form::Jsonl),
            _ => None,
        }
    }

    /// How a file of ours begins.
    pub fn start(self) -> &'static str {
        match self {
            Form::Har => HAR_START,
            Form::Jsonl => JSONL_START,
        }
    }
}

/// Where the next entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: u64,
    /// There is no entry before it.
    pub empty: bool,
}

/// Behind the last whole entry in these bytes; `whole`: they are all of the
/// file, and not its end alone.
pub fn behind(bytes: &[u8], form: Form, whole: bool) -> Option<Place> {
    let mut end = bytes.len();
    loop {
        let start = bytes.get(..end)?.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        let line = bytes.get(start.unwrap_or(0)..end)?;
        // What is in front of the first line's end may be half a line.
        if start.is_some() || whole {
            let is_json = |line: &[u8]| serde_json::from_slice::<IgnoredAny>(line).is_ok();
            match form {
                Form::Har => {
                    let bare = line.strip_prefix(b",").unwrap_or(line);
                    if bare.starts_with(HAR_ENTRY.as_bytes()) && is_json(bare) {
                        return Some(Place { at: end as u64, empty: false });
                    }
                    if bare.starts_with(HAR_START.as_bytes()) && bare.ends_with(br#""entries":["#) {
                        return Some(Place { at: end as u64, empty: true });
                    }
                }
                // A line's end is written with it.
                Form::Jsonl => {
                    if end < bytes.len() && is_json(line) {
                        return Some(Place { at: end as u64 + 1, empty: false });
                    }
                }
            }
        }
        end = start?.checked_sub(1)?;
    }
}
