//! Which attempts belong to one call, and what the retrying costs.
//!
//! In: the heads of requests ([`read`] finds what the client says of the
//! attempt), then each attempt's beginning and end. Out: a [`flow::Link`] at
//! the beginning, and the [`Snapshot`] that every report is made of.
//!
//! Everything here is a function of values: time is passed in, nothing does
//! I/O, and what comes from outside can neither panic nor grow it without
//! bound.
//!
//! [`flow::Link`]: crate::flow::Link
mod class;
mod fingerprint;
mod ledger;
mod signals;

pub use class::Class;
pub use fingerprint::{BodyDigest, Fingerprint, stable_query};
pub use ledger::{
    Asked, Backoff, Bounds, ByHand, Classes, Codes, ConnectionKind, Connections, Counts, Folded, HerdCount, Ledger,
    Limits, OperationName, Outcome, Passed, Problem, ProblemCount, ProcessShare, Quantiles, RuleWait, Series, Snapshot,
    Tally, TunnelCount, Wasted,
};
pub use signals::{CallKey, Family, Grammar, Id, Row, Signal, TABLE, read};

use crate::{flow::Request, process::ProcessKey};

/// What there is to link an attempt by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// What the client says.
    pub signal: Option<Signal>,
    /// What the request is, where the client does not name its call.
    pub print: Option<Fingerprint>,
    /// No body follows that could tell it apart yet.
    pub bodiless: bool,
}

impl Hint {
    pub fn of(process: ProcessKey, request: &Request) -> Self {
        let signal = read(&request.headers);
        let named = signal.is_some_and(|signal| signal.call.is_some() && !signal.family.is_weak());
        let print = (!named).then(|| Fingerprint::of(process, request));
        let header = |name: &str| request.headers.get(name);
        let empty = header("content-length").is_none_or(|length| length.trim_ascii() == b"0");
        let bodiless = header("transfer-encoding").is_none()
            && empty
            && (header("content-length").is_some()
                || matches!(&*request.method, "GET" | "HEAD" | "DELETE" | "OPTIONS"));
        Self { signal, print, bodiless }
    }
}

impl From<Option<Signal>> for Hint {
    fn from(signal: Option<Signal>) -> Self {
        Self { signal, print: None, bodiless: true }
    }
}
