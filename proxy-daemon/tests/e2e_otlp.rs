//! Traces and metrics of real runs, as OpenTelemetry's own message types
//! decode them: the same attempts, waits and numbers as in the report.
mod common;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Command};

use common::{
    Report, Run, Running, SOON, TestCgroup, clients,
    lingering::{RULES, lingering},
    own_address,
    report::amount,
    run::{RETRYSCOPE, retryscope},
    servers::Moto,
    until,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

struct Receiver {
    address: SocketAddr,
    path: PathBuf,
    _process: Running,
    _dir: TempDir,
}

impl Receiver {
    /// Refuses so many requests first.
    fn start(refused: u32) -> Self {
        let address = own_address(4318);
        let dir = tempfile::Builder::new().prefix("retryscope-test-otlp-").tempdir().expect("a folder");
        let path = dir.path().join("received.jsonl");
        let mut command = Command::new(clients::otlp_python());
        command.arg(clients::script("otlp_receiver.py")).arg(address.ip().to_string()).arg(address.port().to_string());
        let process = clients::bare(command.arg(&path).arg(refused.to_string()));
        process.line("ready");
        Self { address, path, _process: process, _dir: dir }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came to a path so far.
    fn received(&self, path: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        // The last line may be half written.
        let rows = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let rows = rows.map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        rows.filter(|row| row["path"] == path).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
        let mut spans = Vec::new();
        for row in self.received("/v1/traces") {
            for resource in list(&row["message"], "resourceSpans") {
                let owner = attributes(&resource["resource"]);
                for scope in list(&resource, "scopeSpans") {
                    assert_eq!(scope["scope"]["name"], "retryscope");
                    spans.extend(list(&scope, "spans").iter().map(|span| Span::of(span, &owner)));
                }
            }
        }
        spans
    }
}

type Attributes = BTreeMap<String, String>;

/// Values as text: integers are strings in OTLP's JSON anyway.
fn attributes(of: &Value) -> Attributes {
    let pair = |pair: &Value| {
        let value = pair["value"].as_object()?.values().next()?;
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((pair["key"].as_str()?.to_owned(), value))
    };
    of["attributes"].as_array().into_iter().flatten().filter_map(pair).collect()
}

#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: String,
    from: u64,
    to: u64,
    failed: bool,
    attributes: Attributes,
    owner: Attributes,
}

impl Span {
    fn of(span: &Value, owner: &Attributes) -> Self {
        let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
        let time = |name: &str| text(name).parse().expect("nanoseconds");
        Self {
            trace: text("traceId"),
            id: text("spanId"),
            parent: text("parentSpanId"),
            name: text("name"),
            kind: text("kind"),
            from: time("startTimeUnixNano"),
            to: time("endTimeUnixNano"),
            failed: span["status"]["code"] == "STATUS_CODE_ERROR",
            attributes: attributes(span),
            owner: owner.clone(),
        }
    }

    fn has(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    #[allow(clippy::cast_precision_loss, reason = "milliseconds")]
    fn ms(&self) -> f64 {
        (self.to - self.from) as f64 / 1e6
    }
}

/// Every span of a run is there once the roots of its five calls are.
fn five_calls(receiver: &Receiver) -> Vec<Span> {
    until("five traces came", SOON, || {
        let spans = receiver.spans();
        (spans.iter().filter(|span| span.parent.is_empty()).count() == 5).then_some(spans)
    })
}

/// The children of a root, in order of their beginning.
fn children<'a>(spans: &'a [Span], root: &Span) -> Vec<&'a Span> {
    let mut children: Vec<_> = spans.iter().filter(|span| span.parent == root.id && span.trace == root.trace).collect();
    children.sort_by_key(|span| span.from);
    children
}

fn check_spans(spans: &[Span], report: &Report) {
    let context = format!("{spans:#?}\n{report}");
    let process = report.process("boto_truth.py");
    let attempts = spans.iter().filter(|span| span.kind == "SPAN_KIND_CLIENT").count();
    assert_eq!(attempts as u64, report.total("attempts"), "{context}");
    for (service, operation) in
        [("s3", "GetObject"), ("dynamodb", "PutItem"), ("s3", "PutObject"), ("s3", "ListBuckets")]
    {
        let backoff = &Report::operation(process, service, operation)["backoff"];
        let roots: Vec<_> = spans.iter().filter(|span| span.name == format!("{service}.{operation}")).collect();
        let waits: Vec<f64> = roots
            .iter()
            .flat_map(|root| children(spans, root))
            .filter(|span| span.name == "backoff")
            .map(Span::ms)
            .collect();
        assert_eq!(Some(waits.len() as u64), backoff["count"].as_u64(), "{operation}: {context}");
        assert!((waits.iter().sum::<f64>() - amount(backoff, "total_ms")).abs() < 1.0, "{operation}: {context}");
        let longest = waits.iter().copied().fold(0.0, f64::max);
        assert!((longest - amount(backoff, "max_ms")).abs() < 1.0, "{operation}: {context}");
    }
    let mut ids: Vec<_> = spans.iter().map(|span| &span.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), spans.len(), "ids are unique: {context}");

    let roots: Vec<_> = spans.iter().filter(|span| span.name == "s3.ListBuckets").collect();
    assert_eq!(roots.len(), 2, "{context}");
    for root in roots {
        assert!(root.parent.is_empty() && root.kind == "SPAN_KIND_INTERNAL" && !root.failed, "{context}");
        assert_eq!((root.has("retryscope.attempts"), root.has("retryscope.evidence")), ("3", "exact"), "{context}");
        assert!(root.owner["service.name"].ends_with(" boto_truth.py"), "{context}");
        assert_eq!(root.owner["process.pid"], process["pid"].to_string(), "{context}");
        let children = children(spans, root);
        let names: Vec<_> = children.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["GET", "backoff", "GET", "backoff", "GET"], "{context}");
        // One follows the other without a gap.
        assert!(children.windows(2).all(|pair| pair[0].to == pair[1].from), "{context}");
        assert_eq!((root.from, root.to), (children[0].from, children[4].to), "{context}");
        for (at, attempt) in children.iter().step_by(2).enumerate() {
            let refused = at < 2;
            assert_eq!(attempt.failed, refused, "{context}");
            let status = if refused { "429" } else { "200" };
            assert_eq!(attempt.has("http.response.status_code"), status, "{context}");
            assert_eq!(attempt.has("error.type"), if refused { "429" } else { "" }, "{context}");
            assert_eq!(attempt.has("http.request.resend_count"), ["", "1", "2"][at], "{context}");
            assert_eq!(attempt.has("retryscope.rule"), if refused { RULES[0] } else { "" }, "{context}");
            assert_eq!(attempt.has("retryscope.genuine_status"), if refused { "200" } else { "" }, "{context}");
            assert_eq!(attempt.has("server.address"), common::servers::S3, "{context}");
            assert!(attempt.has("url.full").starts_with("https://s3.eu-west-1.amazonaws.com/"), "{context}");
        }
    }
    let given_up = spans.iter().find(|span| span.name == "dynamodb.PutItem").expect("a root");
    assert!(given_up.failed, "{context}");
}

/// The last of a metric's points that came, summed over series.
fn last_sum(receiver: &Receiver, name: &str) -> Option<f64> {
    let rows = receiver.received("/v1/metrics");
    let metrics = rows.last()?["message"]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array()?.clone();
    let metric = metrics.iter().find(|metric| metric["name"] == name)?;
    let data = ["sum", "gauge", "histogram"].iter().find_map(|kind| metric.get(kind))?;
    if metric.get("gauge").is_none() {
        assert_eq!(data["aggregationTemporality"], "AGGREGATION_TEMPORALITY_CUMULATIVE", "{metric}");
    }
    let value = |point: &Value| {
        let value = ["asInt", "asDouble", "sum"].iter().find_map(|kind| point.get(kind))?;
        value.as_f64().or_else(|| value.as_str()?.parse().ok())
    };
    Some(data["dataPoints"].as_array()?.iter().filter_map(value).sum())
}

#[test]
fn a_collector_gets_every_call_and_the_reports_numbers() {
    let (moto, receiver) = (Moto::shared(), Receiver::start(0));
    let header = "x-key=some secret";
    let (run, _) = lingering(&moto, &["--otlp", &receiver.url(), "--otlp-header", header, "--otlp-interval", "200ms"]);
    let spans = five_calls(&receiver);
    until("metrics came more than once", SOON, || (receiver.received("/v1/metrics").len() > 2).then_some(()));
    let outcome = run.finish().ok();
    let report = outcome.report();
    check_spans(&spans, &report);
    assert_eq!(receiver.spans().len(), spans.len(), "nothing comes twice");

    let totals = &report.0["totals"];
    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    for (name, expected) in [
        ("retryscope.calls", report.total("calls") as f64),
        ("retryscope.retries", report.total("retries") as f64),
        ("retryscope.given_up_calls", report.total("give_ups") as f64),
        ("retryscope.attempts", report.total("attempts") as f64),
        ("retryscope.backoff", amount(&totals["backoff"], "total_ms") / 1000.0),
        ("retryscope.stalled", amount(totals, "stalled_ms") / 1000.0),
        ("retryscope.build_info", 1.0),
    ] {
        let told = last_sum(&receiver, name);
        assert!(told.is_some_and(|told| (told - expected).abs() < 1e-5), "{name}: {told:?}, not {expected}: {report}");
    }
    for row in receiver.received("/v1/metrics").iter().chain(&receiver.received("/v1/traces")) {
        assert_eq!(row["headers"]["x-key"], "some secret", "{row}");
    }
    assert_eq!(outcome.stderr, "", "{}", outcome.finished);
}

/// A collector that is busy for a while gets everything once.
#[test]
fn what_is_refused_for_now_is_sent_again() {
    let (moto, receiver) = (Moto::shared(), Receiver::start(2));
    let (run, _) = lingering(&moto, &["--otlp", &receiver.url()]);
    let spans = five_calls(&receiver);
    let outcome = run.finish().ok();
    check_spans(&spans, &outcome.report());
    assert_eq!(
        outcome.stderr.matches("the OTLP collector does not take what is sent").count(),
        1,
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("did not get everything"), "{}", outcome.stderr);
}

/// Nobody listens: the run is none the worse for it, and ends in time.
#[test]
fn a_collector_that_is_not_there_is_told_of_once() {
    let moto = Moto::shared();
    let nowhere = own_address(4318);
    let (run, _) = lingering(&moto, &["--otlp", &format!("http://{nowhere}")]);
    let outcome = run.finish().ok();
    assert_eq!(outcome.report().total("give_ups"), 1);
    let said = |part: &str| outcome.stderr.matches(part).count();
    assert_eq!(
        (said("the OTLP collector does not take what is sent"), said("did not get everything")),
        (1, 1),
        "{}",
        outcome.finished
    );
}

/// The daemon's own pushes are never redirected to itself, also where it is
/// among those that it watches.
#[test]
fn own_pushes_are_left_alone() {
    let (group, receiver) = (TestCgroup::new(), Receiver::start(0));
    let folder = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let (authority, report) = (folder.path().join("ca"), folder.path().join("report.json"));
    retryscope(words!["ca", "init", "--ca-dir", &authority]).finish(SOON).ok();
    let mut command = group.command(RETRYSCOPE.as_ref());
    command.args(words!["attach", "--ca-dir", &authority, "--cgroup", group.path()]);
    command.args(words!["--port", receiver.address.port().to_string(), "--report", "json", "--report-file", &report]);
    command.args(words!["--otlp", receiver.url(), "--otlp-interval", "100ms"]);
    let running = clients::bare(&mut command);
    until("metrics came", SOON, || last_sum(&receiver, "retryscope.build_info"));
    running.signal(Signal::SIGTERM);
    running.finish(SOON).ok();
    let report = Report::parse(&std::fs::read_to_string(&report).expect("a report"));
    assert_eq!(report.processes().len(), 0, "{report}");
    assert_eq!(last_sum(&receiver, "retryscope.connections").unwrap_or(0.0), 0.0);
}

#[test]
fn what_cannot_be_pushed_to_is_refused() {
    for (words, says) in [
        (&["--otlp", "localhost:4318"][..], "--otlp localhost:4318: this is no address of a collector"),
        (&["--otlp", "http://a", "--otlp-header", "key"][..], "--otlp-header key: write NAME=VALUE"),
        (&["--otlp", "http://a", "--otlp-interval", "1ms"][..], "--otlp-interval has to be between"),
    ] {
        let run = words.iter().fold(Run::new().no_report(), Run::option);
        let outcome = run.go(words!["true"]).code(64);
        assert!(outcome.stderr.contains(says) && outcome.stderr.lines().count() == 1, "{}", outcome.finished);
    }
}
