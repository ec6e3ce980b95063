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
mod ledger;
mod signals;

pub use class::Class;
pub use ledger::{
    Asked, Backoff, Bounds, Classes, Codes, ConnectionKind, Connections, Counts, Folded, HerdCount, Ledger, Limits,
    OperationName, Outcome, Problem, ProblemCount, ProcessShare, Quantiles, RuleWait, Series, Snapshot, Tally, Wasted,
};
pub use signals::{CallKey, Family, Grammar, Row, Signal, TABLE, read};
