//! What the report says in a number of situations, literally, and that the
//! document keeps to its schema.
#![allow(clippy::unwrap_used)]
use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::*;
use crate::{
    flow::{
        Attempt, Complaint, ConnectionId, Content, Failure, Headers, Injected, Moment, Operation, Protocol, Request,
        Response,
    },
    process::{Facts, Process, ProcessKey},
    retry::{CallKey, ConnectionKind, Family, Hint, Ledger, Limits, Problem, Signal},
};

fn process(pid: u32, command: &str) -> Arc<Process> {
    let facts = Facts { comm: "app".into(), command: command.into(), cgroup: Some("/app".into()), ..Facts::default() };
    Arc::new(Process::new(ProcessKey { pid, start_ticks: 7 }, 1, 1000, facts))
}

fn ms(at: u64) -> Moment {
    Moment(at * 1_000_000)
}

fn meta() -> Meta {
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_424_400);
    Meta {
        seed: 42,
        started,
        ended: started + Duration::from_millis(61_000),
        command: Some("python app.py".into()),
        ports: vec![443],
        rules: Vec::new(),
        redirect: Value::Null,
        assertions: Vec::new(),
        differences: Vec::new(),
        notes: Vec::new(),
    }
}

struct Scene {
    ledger: Ledger,
    process: Arc<Process>,
    meta: Meta,
}

impl Scene {
    fn new(command: &str) -> Self {
        let mut scene =
            Self { ledger: Ledger::new(Limits::default(), ms(0)), process: process(4242, command), meta: meta() };
        scene.connect(ConnectionKind::Intercepted);
        scene
    }

    fn connect(&mut self, kind: ConnectionKind) {
        self.ledger.connection(&self.process, kind, ms(0));
    }

    /// One attempt. `call` empty: no signal; `rule`: what told the status.
    fn attempt(&mut self, operation: &str, call: &str, number: u32, span: (u64, u64), status: u16, rule: Option<&str>) {
        let signal = Signal {
            family: Family::Aws,
            call: Some(CallKey::of(call.as_bytes())),
            number: Some(number),
            max: Some(5),
        };
        let link = self.ledger.begin(
            &self.process,
            &Hint::from(Some(signal).filter(|_| !call.is_empty())),
            "api.test",
            ms(span.0),
        );
        let (service, name) = operation.split_once('.').unwrap_or(("", operation));
        let genuine = if rule.is_some() { 200 } else { status };
        self.ledger.finish(&Attempt {
            connection: ConnectionId(1),
            process: Arc::clone(&self.process),
            client: ([127, 0, 0, 1], 50_000).into(),
            origin: "192.0.2.1:443".parse().expect("an address"),
            protocol: Protocol::Http11,
            request: Request {
                method: Arc::from("GET"),
                authority: Arc::from("api.test"),
                target: Arc::from("/"),
                headers: Headers::default(),
            },
            operation: Operation {
                service: Some(Arc::from(service)).filter(|service: &Arc<str>| !service.is_empty()),
                name: Some(Arc::from(name)).filter(|name: &Arc<str>| !name.is_empty()),
            },
            link,
            started: ms(span.0),
            response: (status > 0).then(|| Response {
                status: genuine,
                reason: String::new(),
                headers: Headers::default(),
            }),
            injected: rule.map(|rule| Injected { status: Some(status), abort: None, rule: Arc::from(rule) }),
            failure: (status == 0).then_some(Failure::Reset),
            ended: Some(ms(span.1)),
            request_content: Content::Unread,
            response_content: Content::Unread,
            call_key: 0,
            print: None,
            body_digest: None,
            held: Duration::ZERO,
            hand: crate::flow::Hand::default(),
            complaint: Complaint::default(),
            sent: 0,
            received: 0,
            trailers: None,
            captured: None,
        });
    }

    fn report(&mut self) -> Report {
        self.ledger.exited(self.process.key, ms(61_000));
        let report = build(&self.ledger.snapshot(ms(61_000)), &self.meta);
        check(&report);
        report
    }

    fn text(&mut self) -> String {
        text(&self.report(), 80, false)
    }
}

/// What holds of every report: it keeps to the schema, comes back equal from
/// JSON, and its text fits.
fn check(report: &Report) {
    let document = json(report);
    assert!(!document.chars().any(|c| c.is_control() && c != '\n'));
    let value: Value = serde_json::from_str(&document).expect("JSON");
    let schema: Value = serde_json::from_str(JSON_SCHEMA).expect("a schema in JSON");
    let mut faults = Vec::new();
    validate(&schema, &schema, &value, "report", &mut faults);
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(&serde_json::from_str::<Report>(&document).expect("a report"), report);
    for (width, color) in [(80, false), (100, false), (40, false)] {
        for line in text(report, width, color).lines() {
            assert!(line.width() <= width.max(72), "{} columns: {line}", line.width());
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

/// The part of JSON Schema that the schema uses; an unknown keyword is a
/// fault, and so is a field of the document that the schema does not name.
fn validate(root: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let mut named = Vec::new();
    apply(root, schema, value, at, faults, &mut named);
    if let Value::Object(fields) = value
        && !named.is_empty()
    {
        faults.extend(
            fields.keys().filter(|name| !named.contains(name)).map(|name| format!("{at}.{name}: not in the schema")),
        );
    }
}

fn apply(root: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>, named: &mut Vec<String>) {
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "format" | "propertyNames" => true,
            "$ref" => {
                let pointer = rule.as_str().and_then(|path| path.strip_prefix('#')).expect("a local reference");
                apply(root, root.pointer(pointer).expect(pointer), value, at, faults, named);
                true
            }
            "allOf" => {
                rule.as_array().expect("schemas").iter().for_each(|part| apply(root, part, value, at, faults, named));
                true
            }
            "type" => {
                let is = |kind: &Value| match kind.as_str().expect("a type's name") {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    other => panic!("type {other}"),
                };
                rule.as_array().map_or_else(|| is(rule), |kinds| kinds.iter().any(is))
            }
            "const" => value == rule,
            "minimum" => value.as_f64() >= rule.as_f64(),
            "maximum" => value.as_f64() <= rule.as_f64(),
            "required" => {
                rule.as_array().expect("names").iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "properties" => {
                for (name, part) in rule.as_object().expect("properties") {
                    named.push(name.clone());
                    if let Some(field) = value.get(name) {
                        validate(root, part, field, &format!("{at}.{name}"), faults);
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, field) in value.as_object().expect("an object") {
                    validate(root, rule, field, &format!("{at}.{name}"), faults);
                }
                true
            }
            "enum" => rule.as_array().expect("a list").contains(value),
            "items" => {
                for (index, item) in value.as_array().expect("an array").iter().enumerate() {
                    validate(root, rule, item, &format!("{at}[{index}]"), faults);
                }
                true
            }
            other => panic!("the schema uses {other}, which this test does not know"),
        };
        if !fits {
            faults.push(format!("{at}: {keyword} {rule} does not hold of {value}"));
        }
    }
}

#[test]
fn one_call_throttled_twice_by_a_rule() {
    let mut scene = Scene::new("python app.py");
    scene.meta.rules = vec![("s3 throttled".into(), 2), ("idle".into(), 0)];
    scene.attempt("s3.ListBuckets", "a", 1, (0, 100), 429, Some("s3 throttled"));
    scene.attempt("s3.ListBuckets", "a", 2, (912, 1_000), 429, Some("s3 throttled"));
    scene.attempt("s3.ListBuckets", "a", 3, (2_430, 2_500), 200, None);
    assert_eq!(
        scene.text(),
        "\
python app.py (4242): its only s3.ListBuckets call was retried twice; 2.24 s of
1m 01s (4%) were spent in backoff, all of it because of rule \"s3 throttled\".

  operation       calls  attempts  retries  gave up  backoff  longest
  s3.ListBuckets      1         3        2        0   2.24 s   1.43 s
    200 ×1, by rule 429 ×2 (upstream 200 ×2)

Failed attempts: 2 throttled (by rules). They took 188 ms.

Retries are exact: taken from headers that the client sent.
Rule \"s3 throttled\" acted twice.
Rule \"idle\" never acted: no attempt matched it.

Different from a direct run:
- 2 answers were changed by rules.
"
    );
}

#[test]
fn many_calls_of_several_operations() {
    let mut scene = Scene::new("python app.py");
    scene.meta.rules = vec![("slow down".into(), 400)];
    for call in 0..1_000 {
        let (name, at) = (format!("put {call}"), call * 60);
        let retried = call < 400;
        let rule = (retried && call % 2 == 0).then_some("slow down");
        scene.attempt("s3.PutObject", &name, 1, (at, at + 5), if retried { 503 } else { 200 }, rule);
        if retried {
            scene.attempt("s3.PutObject", &name, 2, (at + 55, at + 58), if call < 3 { 503 } else { 200 }, None);
        }
    }
    for call in 0..204 {
        let name = format!("get {call}");
        scene.attempt("dynamodb.GetItem", &name, 1, (call, call + 1), if call < 12 { 0 } else { 200 }, None);
        if call < 12 {
            scene.attempt("dynamodb.GetItem", &name, 2, (call + 1, call + 2), 200, None);
        }
    }
    assert_eq!(
        scene.text(),
        "\
python app.py (4242): 412 of 1,204 calls were retried (s3.PutObject most: 400);
20.0 s of 1m 01s (33%) were spent in backoff, 10.0 s of it because of rule \"slow
down\"; 3 calls were given up.

  operation         calls  attempts  retries  gave up  backoff  longest
  s3.PutObject      1,000     1,400      400        3   20.0 s    50 ms
    200 ×997, 503 ×203, by rule 503 ×200 (upstream 200 ×200)
  dynamodb.GetItem    204       216       12        0      0 s      0 s
    200 ×204, reset ×12

Retries over time: █▆▆▆▆▆▆▆▆▆▆▆▆▆▆························ (1.60 s each).
Half of the waits were up to 50 ms, 99 % up to 50 ms.
Failed attempts: 403 server errors (200 by rules), 12 broken connections. They
took 2.02 s.

Retries are exact: taken from headers that the client sent.
Rule \"slow down\" acted 400 times.

Different from a direct run:
- 200 answers were changed by rules.
"
    );
}

#[test]
fn a_client_without_signals() {
    let mut scene = Scene::new("curl --retry 2 https://api.test/");
    for at in 0..3 {
        scene.attempt("", "", 1, (at * 10, at * 10 + 1), 503, None);
    }
    scene.ledger.tunnel(&scene.process, "mail.test", "it is not TLS", ms(1));
    assert_eq!(
        scene.text(),
        "\
curl --retry 2 https://api.test/ (4242): none of 3 GET api.test calls was
retried; this is inferred: no request carried a retry signal; 3 calls were given
up.

  operation     calls  attempts  retries  gave up  backoff  longest
  GET api.test      3         3        0        3        -        -
    503 ×3

Failed attempts: 3 server errors. They took 3.0 ms.

1 connection was tunnelled unread.

Different from a direct run:
- 1 connection to mail.test was passed on untouched, unread: it is not TLS.
"
    );
}

#[test]
fn nothing_retried() {
    let mut scene = Scene::new("node index.js");
    scene.attempt("s3.GetObject", "a", 1, (0, 1), 200, None);
    assert!(scene.text().starts_with("node index.js (4242): its only s3.GetObject call was not retried.\n"));
    scene.attempt("s3.GetObject", "b", 1, (0, 1), 200, None);
    scene.attempt("s3.PutObject", "c", 1, (0, 1), 404, None);
    scene.attempt("", "", 1, (0, 1), 204, None);
    assert_eq!(
        scene.text(),
        "\
node index.js (4242): none of 4 calls was retried; 1 request carried no retry
signal.

  operation     calls  attempts  retries  gave up  backoff  longest
  s3.GetObject      2         2        0        0        -        -
    200 ×2
  GET api.test      1         1        0        0        -        -
    204 ×1
  s3.PutObject      1         1        0        0        -        -
    404 ×1

Failed attempts: 1 client error. They took 1.0 ms.
"
    );
}

#[test]
fn a_client_that_does_not_trust_us() {
    let mut scene = Scene::new("java -jar app.jar");
    scene.ledger = Ledger::new(Limits::default(), ms(0));
    scene.connect(ConnectionKind::Refused);
    scene.connect(ConnectionKind::Tunnelled);
    for _ in 0..2 {
        let problem = Problem {
            kind: "the client refused our certificate",
            name: "s3.test".into(),
            hint: "Give it the authority with the option it has for that, or leave the host alone with --passthrough s3.test."
                .into(),
            differs: Some("the client failed its handshake"),
        };
        scene.ledger.problem(&scene.process, problem, ms(1));
    }
    scene.meta.notes = vec!["Detached cleanly.".into()];
    assert_eq!(
        scene.text(),
        "\
java -jar app.jar (4242): 2 connections, none of them readable (1 tunnelled,
1 refused).
Problem: the client refused our certificate for s3.test (2 times). Give it the
authority with the option it has for that, or leave the host alone with
--passthrough s3.test.

Different from a direct run:
- 1 connection to other names was passed on untouched, unread.
- s3.test: the client failed its handshake (2 times).

Detached cleanly.
"
    );
}

#[test]
fn no_connection_at_all() {
    let mut scene = Scene::new("true");
    scene.ledger = Ledger::new(Limits::default(), ms(0));
    assert_eq!(
        scene.text(),
        "\
The command made no TCP connection to port 443. Likely reasons: it sent nothing;
it uses a proxy (https_proxy), another port (--port), or QUIC; a daemon outside
of it makes its connections; or it was connected before and keeps that
connection.
"
    );
}

#[test]
fn several_processes_side_by_side() {
    let mut scene = Scene::new("worker one");
    for call in ["a", "b"] {
        scene.attempt("s3.PutObject", call, 1, (0, 100), 503, None);
    }
    for call in ["a", "b"] {
        scene.attempt("s3.PutObject", call, 2, (600, 700), 200, None);
    }
    scene.process = process(4243, "worker two");
    scene.attempt("s3.GetObject", "a", 1, (0, 100), 200, None);
    assert_eq!(
        scene.text(),
        "\
worker one (4242): 2 of 2 s3.PutObject calls were retried; for 500 ms of 1m 01s
(1%) at least one call was in backoff.

  operation     calls  attempts  retries  gave up  backoff  longest
  s3.PutObject      2         4        2        0   1.00 s   500 ms
    200 ×2, 503 ×2

Failed attempts: 2 server errors. They took 200 ms.

worker two (4243): its only s3.GetObject call was not retried.

  operation     calls  attempts  retries  gave up  backoff  longest
  s3.GetObject      1         1        0        0        -        -
    200 ×1

All 2 processes: 3 calls, 5 attempts, 2 retries, 0 given up, 1.00 s of backoff,
the longest 500 ms, 1 connection.

Retries are exact: taken from headers that the client sent.
"
    );
}

#[test]
fn many_processes_are_cut_short_in_the_text_only() {
    let mut scene = Scene::new("first");
    for pid in 1..=30 {
        scene.process = process(pid, "worker");
        scene.attempt("s3.PutObject", "a", 1, (0, 10), 200, None);
    }
    let report = scene.report();
    assert_eq!(report.processes.len(), 31);
    let text = text(&report, 80, false);
    assert!(text.contains("and 11 more processes (all in the JSON report).\n"), "{text}");
    assert!(text.contains("All 31 processes: 30 calls, 30 attempts, 0 retries"), "{text}");
}

#[test]
fn hostile_names_are_shown_harmlessly() {
    let mut scene = Scene::new("evil \x1b]0;owned\x07 \u{202e}\u{9b}2J\nsecond line");
    scene.meta.notes = vec!["note \x1b[31m".into()];
    scene.meta.rules = vec![("rule\r\n".into(), 1)];
    scene.attempt("s3.\x1b[2J", "a", 1, (0, 1), 503, Some("r\x07"));
    scene.attempt("s3.\x1b[2J", "a", 2, (9, 10), 200, None);
    let text = scene.text();
    assert!(text.contains("\\u{1b}"), "{text}");
    let document = json(&scene.report());
    assert!(document.contains("\\u009b"), "{document}");
}

#[test]
fn the_document_has_the_promised_shape() {
    let mut scene = Scene::new("python app.py");
    scene.attempt("s3.ListBuckets", "a", 1, (0, 100), 429, Some("r"));
    scene.attempt("s3.ListBuckets", "a", 2, (350, 400), 0, None);
    scene.attempt("s3.ListBuckets", "a", 3, (500, 600), 200, None);
    scene.meta.redirect = serde_json::json!({ "redirected": 1 });
    let value: Value = serde_json::from_str(&json(&scene.report())).expect("JSON");
    assert_eq!(value["schema"], 1);
    assert_eq!(value["seed"], 42);
    assert_eq!(value["started"], "2026-11-23T09:00:00.000Z");
    assert_eq!(value["ended"], "2026-11-23T09:01:01.000Z");
    let process = &value["processes"][0];
    for (field, expected) in [
        ("pid", 4242.into()),
        ("parent", 1.into()),
        ("command", "python app.py".into()),
        ("exe", Value::Null),
        ("cgroup", "/app".into()),
        ("calls", 1.into()),
        ("attempts", 3.into()),
        ("retries", 2.into()),
        ("retries_exact", 2.into()),
        ("retries_inferred", 0.into()),
        ("give_ups", 0.into()),
        ("stalled_ms", 350.0.into()),
        ("observed_ms", 61_000.0.into()),
        ("connections", serde_json::json!({ "intercepted": 1, "tunnelled": 0, "refused": 0 })),
    ] {
        assert_eq!(process[field], expected, "{field}");
    }
    assert_eq!(process["backoff"]["count"], 2);
    assert_eq!(process["backoff"]["total_ms"], 350.0);
    assert_eq!(process["backoff"]["max_ms"], 250.0);
    let operation = &process["operations"][0];
    assert_eq!((&operation["service"], &operation["operation"]), (&"s3".into(), &"ListBuckets".into()));
    assert_eq!(operation["statuses"], serde_json::json!({ "200": 1 }));
    assert_eq!(operation["injected"], serde_json::json!({ "429": 1 }));
    assert_eq!(operation["replaced"], serde_json::json!({ "200": 1 }));
    assert_eq!(operation["errors"], serde_json::json!({ "reset": 1 }));
    assert_eq!(value["totals"]["attempts"], 3);
    assert_eq!(value["totals"]["stalled_ms"], 350.0);
}

#[test]
fn colour_changes_nothing_but_colour() {
    let mut scene = Scene::new("python app.py");
    scene.attempt("s3.ListBuckets", "a", 1, (0, 100), 503, None);
    let report = scene.report();
    let colored = text(&report, 80, true);
    assert!(colored.starts_with("\x1b[1mpython app.py"));
    let bare = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[33m"].iter().fold(colored, |text, code| text.replace(code, ""));
    assert_eq!(bare, text(&report, 80, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_report_fits_and_keeps_to_the_schema(
        command in "\\PC{0,120}|.{0,30}",
        attempts in prop::collection::vec((".{0,60}", 0..4_u8, 1..4_u32, 0..60_000_u64, 0..5_000_u64,
            prop_oneof![Just(0_u16), Just(200), Just(503), 100..1000_u16], prop::option::of(".{0,30}")), 0..40),
    ) {
        let mut scene = Scene::new(&command);
        for (operation, call, number, from, length, status, rule) in &attempts {
            let call = if *call == 0 { String::new() } else { call.to_string() };
            let rule = rule.as_deref().filter(|_| *status > 0);
            scene.attempt(operation, &call, *number, (*from, from + length), *status, rule);
        }
        let report = scene.report();
        let all = &report.totals;
        let outcomes: u64 = [&all.outcomes.statuses, &all.outcomes.injected, &all.outcomes.errors]
            .iter().flat_map(|counts| counts.values()).sum();
        prop_assert_eq!(outcomes, attempts.len() as u64);
        prop_assert_eq!(all.counts.attempts, attempts.len() as u64);
    }
}
