//! Assertions against a small run.
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    flow::{self, Attempt, Complaint, Injected, Link, Moment},
    process::{Facts, Process, ProcessKey},
    retry::{CallKey, Family, Hint, Ledger, Limits, Signal},
};

fn at(ms: u64) -> Moment {
    Moment(ms * 1_000_000)
}

/// 10 calls of PutObject, of which 4 are throttled once (by a rule where
/// even) and wait 100 ms each; 10 of GetObject without a retry.
fn snapshot() -> Snapshot {
    let facts = Facts { comm: "py".into(), command: "py app".into(), ..Facts::default() };
    let process = Arc::new(Process::new(ProcessKey { pid: 7, start_ticks: 1 }, 1, 0, facts));
    let mut ledger = Ledger::new(Limits::default(), at(0));
    let mut one = |name: &str, operation: &str, number, from, status: u16, rule: bool| {
        let signal =
            Signal { family: Family::Aws, call: Some(CallKey::of(name.as_bytes())), number: Some(number), max: None };
        let link: Link = ledger.begin(&process, &Hint::from(Some(signal)), "api.test", at(from));
        let mut attempt: Attempt = flow::filter::tests::attempt();
        attempt.process = Arc::clone(&process);
        (attempt.link, attempt.started, attempt.ended) = (link, at(from), Some(at(from + 10)));
        attempt.operation.name = Some(operation.into());
        attempt.complaint = Complaint::default();
        attempt.response.as_mut().expect("a response").status = status;
        attempt.injected = rule.then(|| Injected { status: Some(503), abort: None, rule: "r".into() });
        if status == 503 || rule {
            attempt.complaint.code = Some("SlowDown".into());
        }
        ledger.finish(&attempt);
    };
    for call in 0..10_u64 {
        let (name, from) = (format!("put {call}"), call * 1_000);
        if call < 4 {
            one(&name, "PutObject", 1, from, if call % 2 == 0 { 200 } else { 503 }, call % 2 == 0);
            one(&name, "PutObject", 2, from + 110, 200, false);
        } else {
            one(&name, "PutObject", 1, from, 200, false);
        }
        one(&format!("get {call}"), "GetObject", 1, from, 200, false);
    }
    ledger.snapshot(at(10_000))
}

fn verdict(text: &str) -> Verdict {
    Assertion::parse(text).unwrap_or_else(|error| panic!("{}", error.render(text))).check(&snapshot())
}

#[test]
fn what_holds_and_what_does_not() {
    for (text, holds) in [
        ("retries <= 4", true),
        ("retries<=3", false),
        ("retries == 4", true),
        ("retries != 4", false),
        ("attempts >= 24", true),
        ("calls > 20", false),
        ("retries{op=s3.PutObject} == 4", true),
        ("retries{op=PutObject} == 4", true),
        ("retries{op=Get*, svc=s3} == 0", true),
        ("retries{svc=dynamodb} == 0", true),
        ("retries{pid=7,comm=py,command='py *'} == 4", true),
        ("throttled == 4", true),
        ("throttled{origin=injected} == 2", true),
        ("throttled{origin=genuine} == 2", true),
        ("amplification{op=s3.PutObject} <= 1.4", true),
        ("amplification{op=s3.PutObject} < 1.4", false),
        ("amplification < 1.21", true),
        ("retried_share{op=s3.PutObject} <= 40%", true),
        ("p99(backoff) < 102ms", true),
        ("p50(backoff) > 99ms", true),
        ("max(backoff) <= 0.1s", true),
        ("sum(backoff) == 400ms", true),
        ("avg(backoff) == 100ms", true),
        ("backoff < 1m 30s", true),
        ("stalled <= 400ms", true),
        ("stalled_share < 5%", true),
        ("stalled_share < 3.9%", false),
        ("give_ups == 0", true),
        ("wasted_bytes <= 10MiB", true),
        ("synchronised_retries == 0", true),
    ] {
        assert_eq!(verdict(text).holds, holds, "{text}: {}", verdict(text).explanation);
    }
}

#[test]
fn a_failed_one_says_what_was_measured_and_where() {
    assert_eq!(verdict("attempts < 3").explanation, "it is 24, not < 3; most of it s3.PutObject in py app (7): 14");
    assert_eq!(verdict("p99(backoff) < 5ms").explanation, "it is 100 ms, not < 5ms");
    assert_eq!(verdict("retries{op=Nothing} <= 0").explanation, "nothing matched its labels, so it is 0");
    assert!(verdict("retries{op=Nothing} <= 0").empty);
    assert_eq!(verdict("retried_share > 50%").explanation, "it is 20.0 %, not > 50%");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, message) in [
        ("retris <= 0", "there is no retris; did you mean retries?"),
        ("<= 0", "a metric is missing here"),
        ("retries", "an operator is missing here; write <=, <, >=, >, == or !="),
        ("retries <= ", "`` is no such value; write it as in 3 or 1.2"),
        ("retries <= many", "`many` is no such value; write it as in 3 or 1.2"),
        ("max(backoff) < 5", "`5` is no such value; write it as in 200ms, 5s or 1m 30s"),
        ("stalled_share < 40", "`40` is no such value; write it as in 40% or 0.4"),
        (
            "q99(backoff) < 5s",
            "there is no function q99(); there are max, sum, avg, p50, p90, p95, p99, and any other pNN",
        ),
        ("p99(latency) < 5s", "p99() is taken of backoff alone; write p99(backoff)"),
        (
            "retries{ops=x} < 1",
            "there is no label ops; there are op, svc, comm, command, unit, container, pid and origin",
        ),
        ("stalled{op=x} < 1s", "this is told per process: it has no op and no svc"),
        ("retries{origin=injected} < 1", "only kinds of outcomes (throttled, timeouts, …) have an origin"),
        ("retries{op=x < 1", "a comma or a closing brace is missing here"),
    ] {
        let error = Assertion::parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert!(error.to_string().starts_with(message), "{text}: {error}");
        assert!(error.render(text).contains('^'), "{text}");
    }
}

#[test]
fn junit_tells_failures() {
    let verdicts = [verdict("retries <= 0"), verdict("give_ups <= 0")];
    let xml = junit(&verdicts, "py <app>", Duration::from_secs(10)).expect("XML");
    assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
    assert!(xml.contains("name=\"retries &lt;= 0\"") && xml.contains("py &lt;app&gt;"), "{xml}");
    assert!(xml.contains("it is 4, not &lt;= 0"), "{xml}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = Assertion::parse(&text).map_err(|error| error.render(&text));
    }

    #[test]
    fn pieces_do_not_panic(
        parts in prop::collection::vec(prop::sample::select(vec![
            "retries", "p99", "(", ")", "backoff", "{", "}", "op", "=", ",", "<=", "<", " ", "é", "5s", "40%", "'", "\"",
        ]), 0..12),
    ) {
        let text = parts.concat();
        if let Ok(assertion) = Assertion::parse(&text) {
            assertion.check(&snapshot());
        }
    }
}
