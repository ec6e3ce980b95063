//! The ledger shown to a person or a program.
//!
//! In: a [`Snapshot`] and what only the instance knows ([`Meta`]). Out: a
//! [`Report`], which is also the JSON document (`schema-1.json` describes
//! it), [`text`], the same for a person, and [`html`], a page. All come out
//! equal for equal input: order is fixed here, nothing reads a clock.
pub mod assert;
pub(crate) mod build;
pub mod diff;
pub mod events;
mod fidelity;
mod html;
pub mod metrics;
pub mod otlp;
pub mod own;
pub mod recorded;
pub mod recording;
mod said;
pub mod statsd;
mod text;
pub mod timeline;
pub mod trial;
pub(crate) mod words;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::SystemTime};

pub use build::build;
pub use fidelity::{DifferenceEntry, differences, from_recording};
pub use html::html;
pub use said::Said;
use serde::{Deserialize, Serialize};
pub use text::text;
pub use timeline::Timeline;
use utoipa::ToSchema;

/// The version of the document's shape. Fields are added under the same
/// version, never renamed or given another meaning.
pub const SCHEMA: u32 = 1;

/// The JSON Schema of the document.
pub const JSON_SCHEMA: &str = include_str!("schema-1.json");

/// What the instance adds to the ledger's numbers.
#[derive(Clone, Debug)]
pub struct Meta {
    pub seed: u64,
    pub started: SystemTime,
    pub ended: SystemTime,
    /// The command that was run; absent when attached to what already ran.
    pub command: Option<String>,
    /// The ports whose connections are redirected; none stands for every port.
    pub ports: Vec<u16>,
    /// Each rule's name and how often it acted.
    pub rules: Vec<(String, u64)>,
    /// Counters of the redirection, as the report shall carry them; null for
    /// none.
    pub redirect: serde_json::Value,
    pub assertions: Vec<assert::Verdict>,
    /// In what the run differed from a direct one, besides what the ledger
    /// knows.
    pub differences: Vec<DifferenceEntry>,
    /// Sentences for the reader, shown last.
    pub notes: Vec<String>,
}

/// The document. Durations are in milliseconds, times in RFC 3339 (UTC).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    pub schema: u32,
    /// Of the program that wrote it.
    pub version: String,
    pub seed: u64,
    pub started: String,
    pub ended: String,
    pub command: Option<String>,
    pub ports: Vec<u16>,
    pub totals: Totals,
    /// Longest stalled first, then by attempts, then by pid.
    pub processes: Vec<ProcessEntry>,
    /// Processes past the limit, as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Totals>,
    pub rules: Vec<RuleEntry>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub redirect: serde_json::Value,
    pub bounds: BoundsEntry,
    /// In what the run differed from a direct one; nothing is the normal case.
    #[serde(default)]
    pub fidelity: Vec<DifferenceEntry>,
    /// What the run was held to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<AssertionEntry>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssertionEntry {
    /// As it was typed.
    pub assertion: String,
    pub holds: bool,
    /// What was measured, and where most of it comes from.
    pub explanation: String,
}

/// Sums over processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    pub processes: u64,
    #[serde(flatten)]
    pub counts: CountsEntry,
    #[serde(flatten)]
    pub outcomes: OutcomesEntry,
    pub stalled_ms: f64,
    pub stalled_injected_ms: f64,
    pub observed_ms: f64,
    #[serde(default)]
    pub synchronised: HerdsEntry,
    pub connections: ConnectionsEntry,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessEntry {
    pub pid: u32,
    /// Start time in clock ticks since boot: tells a recycled pid apart.
    pub start_ticks: u64,
    pub parent: u32,
    pub uid: u32,
    pub command: String,
    pub comm: String,
    pub exe: Option<String>,
    pub cgroup: Option<String>,
    /// The systemd unit that it runs in.
    #[serde(default)]
    pub unit: Option<String>,
    /// The id of the container that it runs in.
    #[serde(default)]
    pub container: Option<String>,
    /// What the container's engine calls it.
    #[serde(default)]
    pub container_name: Option<String>,
    /// Its pid as it is seen in there, where that is another one.
    #[serde(default)]
    pub inner_pid: Option<u32>,
    pub exited: bool,
    #[serde(flatten)]
    pub counts: CountsEntry,
    /// The union of the process's waits: time during which at least one call
    /// was in backoff.
    pub stalled_ms: f64,
    /// The same for the waits after an outcome that a rule made.
    pub stalled_injected_ms: f64,
    /// From its first connection to its exit or the report.
    pub observed_ms: f64,
    /// `stalled_ms` as a part of `observed_ms`, from 0 to 1.
    #[serde(default)]
    pub stalled_share: f64,
    /// Retries that woke together.
    #[serde(default)]
    pub synchronised: HerdsEntry,
    /// Retries that followed a wait, over the time observed.
    #[serde(default)]
    pub timeline: TimelineEntry,
    pub connections: ConnectionsEntry,
    /// Longest backoff first, then by attempts, then by name.
    pub operations: Vec<OperationEntry>,
    /// The waits that each rule caused, longest first.
    pub rules: Vec<RuleWaitEntry>,
    pub problems: Vec<ProblemEntry>,
    /// Connections that were passed on untouched, by name and reason.
    #[serde(default)]
    pub tunnels: Vec<TunnelEntry>,
}

/// Connections to one name that were passed on untouched, for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TunnelEntry {
    /// The name asked for, or the address where none was.
    pub name: String,
    pub why: String,
    pub connections: u64,
    /// Bytes from and to the client, of connections that have ended.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// How long those were open, in all.
    pub open_ms: f64,
    pub longest_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationEntry {
    pub service: Option<String>,
    /// As the service names it; where it has no name, `METHOD host/path`
    /// with ids replaced by `{}`.
    pub operation: String,
    #[serde(flatten)]
    pub counts: CountsEntry,
    #[serde(flatten)]
    pub outcomes: OutcomesEntry,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CountsEntry {
    pub calls: u64,
    /// Calls with at least one retry.
    pub calls_retried: u64,
    pub attempts: u64,
    /// Of `attempts`, those whose client says nothing of calls: what they are
    /// linked to is inferred.
    pub attempts_unlinked: u64,
    pub retries: u64,
    pub retries_exact: u64,
    pub retries_inferred: u64,
    pub give_ups: u64,
    /// Attempts ÷ calls; 1 where there are none.
    #[serde(default)]
    pub amplification: f64,
    /// Attempts by kind of outcome; every attempt is in one of them.
    #[serde(default)]
    pub classes: BTreeMap<String, ClassEntry>,
    /// Services' own codes of errors.
    #[serde(default)]
    pub codes: BTreeMap<String, u64>,
    #[serde(default)]
    pub retry_after: RetryAfterEntry,
    /// Body bytes to and from the upstream or the rule that stood for it.
    #[serde(default)]
    pub sent_bytes: u64,
    #[serde(default)]
    pub received_bytes: u64,
    #[serde(default)]
    pub wasted: WastedEntry,
    /// Retries of requests that are not idempotent and that the upstream had
    /// carried out.
    #[serde(default)]
    pub repeated_writes: u64,
    /// How long rules and people have held attempts up.
    #[serde(default)]
    pub held_ms: f64,
    /// Of that, people by hand.
    #[serde(default)]
    pub held_by_hand_ms: f64,
    pub backoff: BackoffEntry,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClassEntry {
    pub genuine: u64,
    pub injected: u64,
}

/// How long responses asked clients to wait, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RetryAfterEntry {
    /// Failed attempts whose response asked for a wait.
    pub asked: u64,
    pub asked_ms: f64,
    /// Of `asked`, those that another attempt followed.
    pub followed: u64,
    /// Of `followed`, those that were waited for long enough.
    pub honoured: u64,
}

/// What failed attempts have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WastedEntry {
    pub ms: f64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// Retries that woke together: at least ten within a tenth of a second, after
/// fewer in the half second before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HerdsEntry {
    pub herds: u64,
    pub retries: u64,
    pub largest: u64,
}

/// Every attempt is in exactly one of `statuses`, `injected`, `aborted` and
/// `errors`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutcomesEntry {
    /// Told as the upstream gave them.
    pub statuses: BTreeMap<String, u64>,
    /// Told by a rule.
    pub injected: BTreeMap<String, u64>,
    /// The upstream's statuses beneath `injected`.
    pub replaced: BTreeMap<String, u64>,
    /// Broken off by a rule.
    #[serde(default)]
    pub aborted: BTreeMap<String, u64>,
    /// No response, or one that broke off.
    pub errors: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackoffEntry {
    pub count: u64,
    pub total_ms: f64,
    pub max_ms: f64,
    /// The parts that followed an outcome that a rule made.
    pub injected_count: u64,
    pub injected_ms: f64,
    /// Quantiles, to 1 %; zero where nothing waited.
    #[serde(default)]
    pub p50_ms: f64,
    #[serde(default)]
    pub p90_ms: f64,
    #[serde(default)]
    pub p99_ms: f64,
}

/// Counts in slots of equal length, at most 48.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimelineEntry {
    pub slot_ms: f64,
    pub retries: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionsEntry {
    pub intercepted: u64,
    pub tunnelled: u64,
    pub refused: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleEntry {
    pub name: String,
    /// How often it acted.
    pub hits: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RuleWaitEntry {
    pub name: String,
    pub count: u64,
    pub total_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemEntry {
    pub kind: String,
    pub name: String,
    pub hint: String,
    pub count: u64,
}

/// What the ledger's limits have cost; all zero below them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoundsEntry {
    pub calls_forgotten: u64,
    pub processes_folded: u64,
    pub operations_folded: u64,
    pub problems_dropped: u64,
    /// Attempts that passed though somebody wanted them held.
    #[serde(default)]
    pub attempts_unheld: u64,
    pub waits_cut_ms: f64,
}

/// The document as indented JSON, ending in a newline. Safe to show on a
/// terminal: control characters are escaped.
pub fn json(report: &Report) -> String {
    // A tree of strings, numbers and maps with string keys always serialises.
    let mut document = serde_json::to_string_pretty(report).unwrap_or_default();
    // JSON leaves DEL and the C1 controls as they are. They can stand only
    // within strings, where an escape means the same.
    if document.chars().any(|c| c.is_control() && c != '\n') {
        let escape = |c: char| match c {
            '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        document = document.chars().map(escape).collect();
    }
    document.push('\n');
    document
}
