//! The ledger as Prometheus metrics (`--metrics ADDRESS`).
//!
//! In: a snapshot for each scrape. Out: Prometheus' text format. Rows are
//! summed by what stays the same when a process is started again: command
//! name, unit, container, and the operation. Counters never fall, although
//! processes come to be folded into one row in the ledger: what each has added
//! since the last scrape is added here, and what no row accounts for is
//! counted under `(other)`, so totals are exact. The number of label sets is
//! bounded, and those that had to be folded are counted.
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use prometheus::{
    Encoder, TEXT_FORMAT, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{
    process::{container, in_pod, unit},
    redirect::Counters,
    retry::{Class, OperationName, ProcessShare, Snapshot, Tally},
    rules::RuleStatus,
};

/// What the metrics are served as.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;
/// Different label sets of one family.
const MAX_ROWS: usize = 2_000;
/// Bounds of the histogram of waits, in milliseconds.
const BOUNDS: [u64; 12] = [10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000];
const OTHER: &str = "(other)";

/// Who did it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Owner {
    comm: String,
    unit: String,
    /// Of a pod its name, else its id.
    container: String,
    pod: String,
    namespace: String,
}

/// The pod that all of it is in, where this is a sidecar: the pod is told so.
#[derive(Clone, Debug, Default)]
struct Here {
    namespace: String,
    pod: String,
    container: String,
}

impl Here {
    fn find() -> Self {
        let get = |name| std::env::var(name).unwrap_or_default();
        Self {
            namespace: get("RETRYSCOPE_NAMESPACE"),
            pod: get("RETRYSCOPE_POD"),
            container: get("RETRYSCOPE_CONTAINER"),
        }
    }
}

/// What a row is for; the empty operation stands for the process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Row {
    owner: Owner,
    service: String,
    operation: String,
}

/// Counts of an operation, in the order of [`FAMILIES`]' readers; a fixed
/// number of them, so that they can be subtracted.
#[derive(Clone, Debug, PartialEq)]
struct Counts {
    plain: [f64; FAMILIES.len()],
    genuine: [f64; Class::ALL.len()],
    injected: [f64; Class::ALL.len()],
    waits: [f64; BOUNDS.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            plain: [0.0; FAMILIES.len()],
            genuine: [0.0; Class::ALL.len()],
            injected: [0.0; Class::ALL.len()],
            waits: [0.0; BOUNDS.len()],
        }
    }
}

/// A counter of each operation: its name, its labels, what it means.
struct Family {
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
    of: fn(&Tally) -> f64,
}

const fn family(name: &'static str, help: &'static str, of: fn(&Tally) -> f64) -> Family {
    Family { name, labels: &[], help, of }
}

const CALLS: usize = 0;
const WAITS: usize = 1;
const WAITED: usize = 2;

const FAMILIES: [Family; 17] = [
    family("retryscope_calls_total", "Calls; one may take several attempts.", |tally| tally.calls as f64),
    family("retryscope_backoff_seconds_count", "", |tally| tally.backoff.count as f64),
    family("retryscope_backoff_seconds_sum", "", |tally| tally.backoff.total.as_secs_f64()),
    family("retryscope_calls_retried_total", "Calls with at least one retry.", |tally| tally.calls_retried as f64),
    Family {
        name: "retryscope_retries_total",
        labels: &[("evidence", "exact")],
        help: "Attempts of a call after its first.",
        of: |tally| tally.retries_exact as f64,
    },
    Family {
        name: "retryscope_retries_total",
        labels: &[("evidence", "inferred")],
        help: "Attempts of a call after its first.",
        of: |tally| tally.retries_inferred as f64,
    },
    family("retryscope_backoff_injected_seconds_total", "Backoff after an outcome that a rule made.", |tally| {
        tally.backoff.injected_total.as_secs_f64()
    }),
    family("retryscope_retry_after_asked_total", "Failed attempts whose response asked for a wait.", |tally| {
        tally.asked.count as f64
    }),
    family("retryscope_retry_after_followed_total", "Those that another attempt followed.", |tally| {
        tally.asked.followed as f64
    }),
    family("retryscope_retry_after_honoured_total", "Those that were waited for long enough.", |tally| {
        tally.asked.honoured as f64
    }),
    family("retryscope_repeated_writes_total", "Retries of what the upstream had carried out already.", |tally| {
        tally.repeated as f64
    }),
    family("retryscope_held_seconds_total", "How long rules have held attempts up.", |tally| tally.held.as_secs_f64()),
    family("retryscope_failed_seconds_total", "Time spent in failed attempts.", |tally| {
        tally.wasted.time.as_secs_f64()
    }),
    Family {
        name: "retryscope_failed_bytes_total",
        labels: &[("direction", "sent")],
        help: "Body bytes of failed attempts.",
        of: |tally| tally.wasted.sent as f64,
    },
    Family {
        name: "retryscope_failed_bytes_total",
        labels: &[("direction", "received")],
        help: "Body bytes of failed attempts.",
        of: |tally| tally.wasted.received as f64,
    },
    Family {
        name: "retryscope_bytes_total",
        labels: &[("direction", "sent")],
        help: "Body bytes of all attempts.",
        of: |tally| tally.sent as f64,
    },
    Family {
        name: "retryscope_bytes_total",
        labels: &[("direction", "received")],
        help: "Body bytes of all attempts.",
        of: |tally| tally.received as f64,
    },
];

impl Counts {
    fn of(tally: &Tally) -> Self {
        let mut counts = Self::default();
        for (count, family) in counts.plain.iter_mut().zip(&FAMILIES) {
            *count = (family.of)(tally);
        }
        for class in Class::ALL {
            counts.genuine[class as usize] = tally.classes.genuine(class) as f64;
            counts.injected[class as usize] = tally.classes.injected(class) as f64;
        }
        counts.waits = tally.backoff.quantiles.cumulative(BOUNDS.map(Duration::from_millis)).map(|count| count as f64);
        counts
    }

    fn each(&mut self, other: &Self, change: fn(&mut f64, f64)) {
        let pairs =
            |ours: &mut [f64], theirs: &[f64]| ours.iter_mut().zip(theirs).for_each(|(our, their)| change(our, *their));
        pairs(&mut self.plain, &other.plain);
        pairs(&mut self.genuine, &other.genuine);
        pairs(&mut self.injected, &other.injected);
        pairs(&mut self.waits, &other.waits);
    }
}

/// What is told of a process as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Whole([f64; WHOLES.len()]);

/// Name, labels, and what it means.
type Told = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const WHOLES: [Told; 7] = [
    ("retryscope_stalled_seconds_total", &[], "Time during which at least one call of a process was in backoff."),
    ("retryscope_observed_seconds_total", &[], "Time during which processes were observed, each by itself."),
    ("retryscope_synchronised_retries_total", &[], "Retries that woke together with many others."),
    ("retryscope_connections_total", &[("kind", "intercepted")], "Connections by what became of them."),
    ("retryscope_connections_total", &[("kind", "tunnelled")], "Connections by what became of them."),
    ("retryscope_connections_total", &[("kind", "refused")], "Connections by what became of them."),
    ("retryscope_processes_total", &[], "Processes that were seen."),
];

impl Whole {
    fn of(share: &ProcessShare) -> Self {
        let connections = &share.connections;
        Self([
            share.stalled.as_secs_f64(),
            share.observed().as_secs_f64(),
            share.herds.retries as f64,
            connections.intercepted as f64,
            connections.tunnelled as f64,
            connections.refused as f64,
            1.0,
        ])
    }

    fn each(&mut self, other: &Self, change: fn(&mut f64, f64)) {
        self.0.iter_mut().zip(other.0).for_each(|(our, their)| change(our, their));
    }
}

fn add(to: &mut f64, value: f64) {
    *to += value;
}

fn subtract(from: &mut f64, value: f64) {
    *from -= value;
}

fn raise(to: &mut f64, value: f64) {
    *to = to.max(value);
}

/// The serial of a process as it was entered in the ledger: it may have been
/// folded and entered anew.
type Entry = u64;

/// What was told so far.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Of each process and operation, at the last scrape.
    seen: HashMap<(Entry, OperationName), Counts>,
    seen_wholes: HashMap<Entry, Whole>,
    /// What is told: sums that never fall, and the true sums behind them (a
    /// time-out was a cancelled attempt before its client came back).
    rows: BTreeMap<Row, (Counts, Counts)>,
    owners: BTreeMap<Owner, (Whole, Whole)>,
    /// Rows that had to be folded.
    folded: f64,
    given_up: BTreeMap<Owner, f64>,
    here: Here,
}

impl Metrics {
    /// With the labels of the pod that this is in, if the environment tells.
    pub fn here() -> Self {
        Self { here: Here::find(), ..Self::default() }
    }

    /// The text of one scrape.
    #[cfg(test)]
    pub fn scrape(&mut self, snapshot: &Snapshot, rules: &[RuleStatus], redirect: &Counters) -> String {
        text(&self.collect(snapshot, rules, redirect))
    }

    /// Every family that has rows.
    pub fn collect(&mut self, snapshot: &Snapshot, rules: &[RuleStatus], redirect: &Counters) -> Vec<MetricFamily> {
        self.take(snapshot);
        let mut families = self.families();
        families.extend(self.extras(snapshot, rules));
        families.extend(ways(redirect));
        families.retain(|family| !family.get_metric().is_empty());
        families
    }

    fn take(&mut self, snapshot: &Snapshot) {
        let mut seen = HashMap::new();
        let mut wholes = HashMap::new();
        self.given_up.clear();
        let (mut unaccounted, mut unaccounted_whole) = (Counts::of(&snapshot.totals), Whole::default());
        for share in &snapshot.processes {
            let owner = owner(share, &self.here);
            *self.given_up.entry(owner.clone()).or_default() += share.tally.give_ups as f64;
            let key = share.serial;
            let now = Whole::of(share);
            let mut grown = now;
            grown.each(&self.seen_wholes.get(&key).copied().unwrap_or_default(), subtract);
            wholes.insert(key, now);
            self.add_whole(&owner, &grown);
            for (name, tally) in &share.operations {
                let now = Counts::of(tally);
                let mut grown = now.clone();
                if let Some(before) = self.seen.get(&(key, name.clone())) {
                    grown.each(before, subtract);
                }
                seen.insert((key, name.clone()), now);
                let service = name.service.as_deref().unwrap_or_default().to_owned();
                self.add(Row { owner: owner.clone(), service, operation: name.operation.to_string() }, &grown);
            }
        }
        // Processes that were folded since: what nobody told of them.
        for (_, exact) in self.rows.values() {
            unaccounted.each(exact, subtract);
        }
        let folded = &snapshot.folded;
        unaccounted_whole.each(
            &Whole([
                folded.stalled.as_secs_f64(),
                folded.observed.as_secs_f64(),
                folded.herds.retries as f64,
                folded.connections.intercepted as f64,
                folded.connections.tunnelled as f64,
                folded.connections.refused as f64,
                folded.processes as f64,
            ]),
            add,
        );
        wholes.values().for_each(|whole| unaccounted_whole.each(whole, add));
        self.owners.values().for_each(|(_, exact)| unaccounted_whole.each(exact, subtract));
        if unaccounted.plain[CALLS] > 0.0
            || unaccounted.genuine.iter().chain(&unaccounted.injected).any(|count| *count > 0.0)
        {
            self.add(other(), &unaccounted);
        }
        if unaccounted_whole.0.iter().any(|value| *value > 1e-6) {
            self.add_whole(&other().owner, &unaccounted_whole);
        }
        (self.seen, self.seen_wholes) = (seen, wholes);
    }

    fn add(&mut self, row: Row, grown: &Counts) {
        let row = if self.rows.len() < MAX_ROWS || self.rows.contains_key(&row) {
            row
        } else {
            self.folded += 1.0;
            other()
        };
        let (told, exact) = self.rows.entry(row).or_default();
        exact.each(grown, add);
        let exact = exact.clone();
        told.each(&exact, raise);
    }

    fn add_whole(&mut self, owner: &Owner, grown: &Whole) {
        let known = self.owners.len() < MAX_ROWS || self.owners.contains_key(owner);
        let (told, exact) = self.owners.entry(if known { owner.clone() } else { other().owner }).or_default();
        exact.each(grown, add);
        let exact = *exact;
        told.each(&exact, raise);
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut families: Vec<MetricFamily> = Vec::new();
        for (at, kind) in FAMILIES.iter().enumerate().filter(|(at, _)| ![WAITS, WAITED].contains(at)) {
            let rows = self.rows.iter().map(|(row, (told, _))| counter(row_labels(row, kind.labels), told.plain[at]));
            extend(&mut families, kind.name, kind.help, MetricType::COUNTER, rows.collect());
        }
        let mut attempts = Vec::new();
        for (row, (told, _)) in &self.rows {
            for class in Class::ALL {
                for (origin, counts) in [("genuine", &told.genuine), ("injected", &told.injected)] {
                    let count = counts[class as usize];
                    if count > 0.0 {
                        attempts
                            .push(counter(row_labels(row, &[("outcome", class.name()), ("origin", origin)]), count));
                    }
                }
            }
        }
        extend(
            &mut families,
            "retryscope_attempts_total",
            "Attempts by kind of outcome.",
            MetricType::COUNTER,
            attempts,
        );
        let waits = self.rows.iter().map(|(row, (told, _))| {
            let mut histogram = Histogram::default();
            histogram.set_sample_count(told.plain[WAITS] as u64);
            histogram.set_sample_sum(told.plain[WAITED]);
            let bucket = |(bound, count): (&u64, &f64)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound as f64 / 1000.0);
                bucket.set_cumulative_count(*count as u64);
                bucket
            };
            histogram.set_bucket(BOUNDS.iter().zip(&told.waits).map(bucket).collect());
            let mut metric = Metric::from_label(row_labels(row, &[]));
            metric.set_histogram(histogram);
            metric
        });
        let help = "Waits from the end of a failed attempt to the start of the call's next.";
        extend(&mut families, "retryscope_backoff_seconds", help, MetricType::HISTOGRAM, waits.collect());
        for (at, (name, labels, help)) in WHOLES.iter().enumerate() {
            let rows = self.owners.iter().map(|(owner, (told, _))| counter(owner_labels(owner, labels), told.0[at]));
            extend(&mut families, name, help, MetricType::COUNTER, rows.collect());
        }
        families
    }

    fn extras(&self, snapshot: &Snapshot, rules: &[RuleStatus]) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        let given_up = self.given_up.iter().map(|(owner, count)| gauge(owner_labels(owner, &[]), *count));
        let help = "Calls of living and remembered processes whose last attempt failed.";
        extend(&mut families, "retryscope_given_up_calls", help, MetricType::GAUGE, given_up.collect());
        let hits = rules.iter().map(|rule| counter(vec![pair("rule", &rule.name)], rule.hits as f64));
        extend(
            &mut families,
            "retryscope_rule_hits_total",
            "How often a rule acted.",
            MetricType::COUNTER,
            hits.collect(),
        );
        let bounds = &snapshot.bounds;
        let costs = [
            ("calls", bounds.calls_forgotten as f64),
            ("processes", bounds.processes_folded as f64),
            ("operations", bounds.operations_folded as f64),
            ("problems", bounds.problems_dropped as f64),
            ("unheld", bounds.attempts_unheld as f64),
            ("label_sets", self.folded),
        ];
        let costs = costs.map(|(what, count)| counter(vec![pair("what", what)], count));
        let help = "What limits have cost: forgotten, folded or dropped.";
        extend(&mut families, "retryscope_limited_total", help, MetricType::COUNTER, costs.to_vec());
        let version = gauge(vec![pair("version", env!("CARGO_PKG_VERSION"))], 1.0);
        extend(&mut families, "retryscope_build_info", "The program.", MetricType::GAUGE, vec![version]);
        families
    }
}

/// Families as Prometheus reads them; each has rows.
pub fn text(families: &[MetricFamily]) -> String {
    let mut text = Vec::new();
    // Into memory nothing fails but a family without rows, and none is.
    let _ = TextEncoder::new().encode(families, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Connections that did not come here.
fn ways(redirect: &Counters) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let direct = [
        ("bound_device", redirect.direct_bound_device),
        ("bypassed", redirect.direct_bypassed),
        ("link_local", redirect.direct_link_local),
        ("no_listener", redirect.direct_no_listener),
        ("no_record", redirect.direct_no_record),
        ("no_room", redirect.direct_no_room),
        ("other_netns", redirect.direct_other_netns),
        ("stalled", redirect.direct_stalled),
    ];
    let direct = direct.map(|(reason, count)| counter(vec![pair("reason", reason)], count as f64));
    let help = "Connections of the target that went direct, unobserved.";
    extend(&mut families, "retryscope_direct_connections_total", help, MetricType::COUNTER, direct.to_vec());
    let blocked = counter(Vec::new(), redirect.blocked as f64);
    let help = "Connections that were refused since they could not be carried (--fail closed).";
    extend(&mut families, "retryscope_blocked_connections_total", help, MetricType::COUNTER, vec![blocked]);
    let quic = counter(Vec::new(), redirect.udp_refused as f64);
    let help = "Datagrams and connects to QUIC's port that were refused.";
    extend(&mut families, "retryscope_quic_refused_total", help, MetricType::COUNTER, vec![quic]);
    families
}

fn other() -> Row {
    let owner = Owner { comm: OTHER.to_owned(), ..Owner::default() };
    Row { owner, service: String::new(), operation: OTHER.to_owned() }
}

fn owner(share: &ProcessShare, here: &Here) -> Owner {
    let facts = share.process.facts();
    let cgroup = facts.cgroup.as_deref();
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let (comm, unit) = (facts.comm.clone(), text(cgroup.and_then(unit)));
    if let Some([namespace, pod, container]) = facts.container_name.as_deref().and_then(in_pod) {
        let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
        return Owner { comm, unit, container, pod, namespace };
    }
    let container = cgroup.and_then(container).filter(|_| here.container.is_empty()).unwrap_or(&here.container);
    let (pod, namespace) = (here.pod.clone(), here.namespace.clone());
    Owner { comm, unit, container: container.to_owned(), pod, namespace }
}

pub(super) fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn owner_labels(owner: &Owner, more: &[(&str, &str)]) -> Vec<LabelPair> {
    let own = [("command", &*owner.comm), ("container", &owner.container), ("unit", &owner.unit)];
    // Outside of pods nobody expects them.
    let pods = [("namespace", &*owner.namespace), ("pod", &owner.pod)].into_iter().filter(|(_, name)| !name.is_empty());
    own.into_iter().chain(pods).chain(more.iter().copied()).map(|(name, value)| pair(name, value)).collect()
}

fn row_labels(row: &Row, more: &[(&str, &str)]) -> Vec<LabelPair> {
    let mut labels = owner_labels(&row.owner, more);
    labels.extend([pair("operation", &row.operation), pair("service", &row.service)]);
    labels
}

pub(super) fn counter(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

pub(super) fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_gauge(gauge);
    metric
}

/// Rows of a family that was begun before are added to it.
pub(super) fn extend(families: &mut Vec<MetricFamily>, name: &str, help: &str, kind: MetricType, rows: Vec<Metric>) {
    if let Some(known) = families.iter_mut().find(|family| family.name() == name) {
        known.mut_metric().extend(rows);
        return;
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(rows);
    families.push(family);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        flow::{self, Moment},
        process::{Facts, Process, ProcessKey},
        retry::{CallKey, Family as ClientFamily, Hint, Ledger, Limits, Signal},
    };

    /// Attempts (process, call, status) of a ledger that keeps few processes,
    /// a scrape after each; the last one's text.
    fn scrapes(attempts: &[(u32, u8, bool)], processes: usize) -> Vec<String> {
        let mut ledger = Ledger::new(Limits { processes, ..Limits::default() }, Moment(0));
        let mut metrics = Metrics::default();
        let mut now = 0;
        let known: Vec<_> = (0..8)
            .map(|pid| {
                let facts = Facts { comm: format!("app{}", pid % 3), ..Facts::default() };
                Arc::new(Process::new(ProcessKey { pid, start_ticks: 1 }, 1, 0, facts))
            })
            .collect();
        attempts
            .iter()
            .map(|(pid, call, fails)| {
                now += 1_000_000;
                let process = &known[*pid as usize % 8];
                let call = Some(CallKey::of(&[*call]));
                let signal = Signal { family: ClientFamily::Aws, call, number: None, max: None };
                let link = ledger.begin(process, &Hint::from(Some(signal)), "", Moment(now));
                let mut attempt = flow::filter::tests::attempt();
                (attempt.process, attempt.link) = (Arc::clone(process), link);
                (attempt.started, attempt.ended) = (Moment(now), Some(Moment(now + 500_000)));
                attempt.response.as_mut().expect("a response").status = if *fails { 503 } else { 200 };
                ledger.finish(&attempt);
                metrics.scrape(&ledger.snapshot(Moment(now + 600_000)), &[], &Counters::default())
            })
            .collect()
    }

    fn values(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
            .collect()
    }

    fn sum(text: &str, name: &str) -> f64 {
        values(text).iter().filter(|(key, _)| key.starts_with(&format!("{name}{{"))).map(|(_, value)| value).sum()
    }

    /// An attempt is entered once it has ended; it may have begun before all
    /// else of its process.
    #[test]
    fn a_process_that_turns_out_to_have_begun_earlier_is_the_same() {
        let mut ledger = Ledger::new(Limits::default(), Moment(0));
        let mut metrics = Metrics::default();
        let process = Arc::new(Process::new(ProcessKey { pid: 1, start_ticks: 1 }, 1, 0, Facts::default()));
        let mut enter = |started, ended| {
            let mut attempt = flow::filter::tests::attempt();
            attempt.process = Arc::clone(&process);
            attempt.link = ledger.begin(&process, &Hint::default(), "", started);
            (attempt.started, attempt.ended) = (started, Some(ended));
            ledger.finish(&attempt);
            metrics.scrape(&ledger.snapshot(ended), &[], &Counters::default())
        };
        enter(Moment(10), Moment(20));
        let text = enter(Moment(5), Moment(30));
        assert_eq!((sum(&text, "retryscope_calls_total"), sum(&text, "retryscope_processes_total")), (2.0, 1.0));
    }

    #[test]
    fn pods_have_their_names() {
        let name = |name: Option<&str>, here: &Here| {
            let id = "ab".repeat(32);
            let facts = Facts {
                comm: "app".into(),
                cgroup: Some(format!("/kubepods/pod1/{id}")),
                container_name: name.map(str::to_owned),
                ..Facts::default()
            };
            let mut ledger = Ledger::new(Limits::default(), Moment(0));
            let process = Arc::new(Process::new(ProcessKey { pid: 1, start_ticks: 1 }, 1, 0, facts));
            ledger.begin(&process, &Hint::default(), "", Moment(1));
            let mut attempt = flow::filter::tests::attempt();
            attempt.process = Arc::clone(&process);
            ledger.finish(&attempt);
            let owner = owner(&ledger.snapshot(Moment(2)).processes[0], here);
            let labels = owner_labels(&owner, &[]);
            let labels = labels.iter().map(|pair| format!("{}={}", pair.name(), pair.value()));
            labels.collect::<Vec<_>>().join(" ").replace(&id, "ID")
        };
        let here = Here { namespace: "shop".into(), pod: "web-2".into(), container: String::new() };
        assert_eq!(name(None, &Here::default()), "command=app container=ID unit=");
        assert_eq!(
            name(Some("shop/web-1/app"), &Here::default()),
            "command=app container=app unit= namespace=shop pod=web-1"
        );
        assert_eq!(name(None, &here), "command=app container=ID unit= namespace=shop pod=web-2");
        let here = Here { container: "app".into(), ..here };
        assert_eq!(name(None, &here), "command=app container=app unit= namespace=shop pod=web-2");
    }

    #[test]
    fn one_call_that_was_retried() {
        let text = scrapes(&[(0, 1, true), (0, 1, false)], 8).pop().expect("a scrape");
        for line in [
            r#"retryscope_calls_total{command="app0",container="",unit="",operation="GetObject",service="s3"} 1"#,
            r#"retryscope_retries_total{command="app0",container="",unit="",evidence="exact",operation="GetObject",service="s3"} 1"#,
            r#"retryscope_attempts_total{command="app0",container="",unit="",outcome="server_error",origin="genuine",operation="GetObject",service="s3"} 1"#,
            r#"retryscope_backoff_seconds_count{command="app0",container="",unit="",operation="GetObject",service="s3"} 1"#,
            "# TYPE retryscope_backoff_seconds histogram",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn counters_never_fall_and_totals_are_exact(
            attempts in prop::collection::vec((0..8_u32, 0..4_u8, any::<bool>()), 1..40), processes in 1..4_usize,
        ) {
            let texts = scrapes(&attempts, processes);
            let mut before: BTreeMap<String, f64> = BTreeMap::new();
            for text in &texts {
                let now = values(text);
                for (name, value) in &before {
                    if !name.starts_with("retryscope_given_up_calls") {
                        prop_assert!(now.get(name).is_some_and(|now| now >= value), "{name} fell from {value}");
                    }
                }
                before = now;
            }
            let last = texts.last().expect("a scrape");
            prop_assert_eq!(sum(last, "retryscope_attempts_total"), attempts.len() as f64);
        }
    }
}
