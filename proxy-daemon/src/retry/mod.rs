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
mod ledger;
mod signals;

pub use ledger::{
    Backoff, Bounds, ConnectionKind, Connections, Counts, Folded, Ledger, Limits, OperationName, Outcome, Problem,
    ProblemCount, ProcessShare, RuleWait, Snapshot, Tally,
};
pub use signals::{CallKey, Family, Grammar, Row, Signal, TABLE, read};
