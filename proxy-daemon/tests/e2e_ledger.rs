//! What the ledger says of real runs, held against what the clients measured
//! themselves, and what runs can be held to.
mod common;

use std::time::Duration;

use common::{
    Run, TestCa, Upstream,
    ca::Leaf,
    clients,
    report::{amount, number},
    servers::{self, AWS, Moto},
};

/// A token bucket stands for the service: it takes 40 PutObject at once and a
/// few each second, so each round of 64 has its losers.
#[test]
fn an_outage_is_measured_as_its_threads_feel_it() {
    let ca = TestCa::new();
    let upstream = Upstream::with(&ca, Leaf::Good, &[servers::BUCKET], &["http/1.1"]);
    let outcome = Run::new()
        .to(servers::BUCKET, upstream.address, &ca)
        .rule("~svc s3 & ~op PutObject => limit 20/s per bucket burst 40 throttle")
        .deadline(Duration::from_secs(120))
        .go(words![clients::python(), clients::script("outage.py"), "4", "8"])
        .ok();
    let (got, report) = (outcome.json(), outcome.report());
    let process = report.process("outage.py");
    assert_eq!(number(process, "calls"), number(&got, "calls"), "{report}");
    assert_eq!(number(process, "retries_exact"), number(&got, "retries"), "{report}");
    assert_eq!(number(process, "give_ups"), number(&got, "failed"), "{report}");
    assert!(number(&got, "retries") > 60, "the outage was none: {got}");

    let felt = amount(&got, "stalled") / amount(&got, "observed");
    let told = amount(process, "stalled_share");
    assert!((0.05..0.95).contains(&felt), "the outage should come and go: {got}");
    assert!((felt - told).abs() <= 0.02, "felt {felt:.4}, told {told:.4}: {got}\n{report}");
    assert_eq!(number(&process["classes"]["throttled"], "injected"), report.count("injected", "503"));
    assert_eq!(number(&process["codes"], "SlowDown"), report.count("injected", "503"));
}

/// A throttle by a code alone, a wait that was asked for, a plain error.
#[test]
fn failures_are_told_apart() {
    let moto = Moto::shared();
    let program = r#"
import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
keys = dict(region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test")
db = boto3.client("dynamodb", config=Config(retries={"mode": "standard"}), **keys)
db.get_item(TableName="table", Key={"id": {"S": "first"}})
s3 = boto3.client("s3", config=Config(retries={"mode": "standard"}), **keys)
s3.list_buckets()
try:
    s3.get_object(Bucket="bucket", Key="nowhere")
except ClientError as error:
    assert error.response["Error"]["Code"] == "NoSuchKey", error
"#;
    let mut run = Run::new()
        .upstream_ca(&moto.ca.pem())
        .rule("~svc dynamodb & ~attempt 1 => dynamodb-throttling")
        .rule("~op ListBuckets & ~attempt 1 => 503 retry-after 60 body ''");
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let report = run.go(words![clients::python(), "-c", program]).ok().report();
    let process = report.process("-c");
    let class = |name: &str, origin: &str| number(&process["classes"][name], origin);
    assert_eq!(class("throttled", "injected"), 1, "{report}");
    assert_eq!(class("server_error", "injected"), 1, "{report}");
    assert_eq!(class("client_error", "genuine"), 1, "{report}");
    assert_eq!(class("success", "genuine"), 2, "{report}");
    assert_eq!(number(&process["codes"], "ThrottlingException"), 1, "{report}");
    assert_eq!(number(&process["codes"], "NoSuchKey"), 1, "{report}");
    let asked = &process["retry_after"];
    assert_eq!((number(asked, "asked"), number(asked, "followed"), number(asked, "honoured")), (1, 1, 0), "{report}");
    assert_eq!(amount(asked, "asked_ms"), 60_000.0);
    assert!(number(process, "received_bytes") > 0 && amount(&process["wasted"], "ms") > 0.0, "{report}");
}

/// A client whose time-out is shorter than the answer: it goes away and tries
/// again, which makes of its going away a time-out.
#[test]
fn a_clients_own_timeout_is_one() {
    let moto = Moto::shared();
    let program = r#"
import boto3
from botocore.config import Config
client = boto3.client("s3", region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test",
                      config=Config(retries={"mode": "standard"}, read_timeout=1))
client.list_buckets()
"#;
    let mut run = Run::new().upstream_ca(&moto.ca.pem()).rule("~op ListBuckets & ~attempt 1 => delay 30s");
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let report = run.go(words![clients::python(), "-c", program]).ok().report();
    let process = report.process("-c");
    assert_eq!(number(&process["classes"]["timeout"], "genuine"), 1, "{report}");
    assert_eq!(number(&process["classes"]["success"], "genuine"), 1, "{report}");
    assert_eq!((number(process, "retries"), number(process, "give_ups")), (1, 0), "{report}");
}

/// One boto3 call that is throttled once, held to the assertions.
fn held_to(assertions: &[&str], more: &str) -> (common::Outcome, String) {
    let moto = Moto::shared();
    let program = format!(
        r#"
import boto3, sys
boto3.client("s3", region_name="eu-west-1", aws_access_key_id="test", aws_secret_access_key="test").list_buckets()
{more}"#
    );
    let mut run = Run::new().upstream_ca(&moto.ca.pem()).rule("~op ListBuckets & ~attempt 1 => s3-slowdown");
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let results = folder.path().join("junit.xml");
    for assertion in assertions {
        run = run.option("--assert").option(assertion);
    }
    let outcome = run.option("--junit").option(&results).go(words![clients::python(), "-c", program]);
    let xml = std::fs::read_to_string(&results).unwrap_or_default();
    (outcome, xml)
}

#[test]
fn assertions_decide_the_exit_code() {
    let (outcome, xml) = held_to(&["retries{op=s3.ListBuckets} == 1", "amplification <= 2"], "");
    outcome.ok();
    assert!(xml.contains("tests=\"2\" failures=\"0\""), "{xml}");

    let (outcome, xml) = held_to(&["retries <= 0", "give_ups <= 0"], "");
    let outcome = outcome.code(3);
    let report = outcome.report();
    assert_eq!(report.0["assertions"][0]["holds"], false, "{report}");
    assert_eq!(report.0["assertions"][0]["explanation"], "it is 1, not <= 0", "{report}");
    assert_eq!(report.0["assertions"][1]["holds"], true, "{report}");
    assert!(xml.contains("tests=\"2\" failures=\"1\"") && xml.contains("it is 1, not &lt;= 0"), "{xml}");

    let (outcome, _) = held_to(&["retries <= 0"], "sys.exit(7)");
    outcome.code(7);
}

#[test]
fn bad_assertions_start_nothing() {
    for (option, part) in [
        (&["--assert", "retris <= 0"][..], "did you mean retries?"),
        (&["--assert", "max(backoff) < 5"], "write it as in 200ms"),
        (&["--junit", "results.xml"], "--assert"),
    ] {
        let mut run = Run::new().no_report();
        for word in option {
            run = run.option(word);
        }
        let outcome = run.go(["echo", "started"]).code(64);
        let said = outcome.stderr.clone();
        assert!(said.contains(part), "{said}");
        assert!(outcome.stdout.is_empty(), "{said}");
    }
    let outcome = Run::new()
        .no_report()
        .option("--assert")
        .option("retries <= 0")
        .option("--junit")
        .option("/nowhere/results.xml")
        .go(["echo", "started"])
        .code(73);
    let said = outcome.stderr.clone();
    assert!(said.contains("/nowhere/results.xml") && outcome.stdout.is_empty(), "{said}");
}
