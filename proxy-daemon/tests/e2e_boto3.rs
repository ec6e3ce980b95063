//! boto3 against moto under AWS's own names: what botocore's hooks saw inside
//! the process must be what the report says, to the number.
mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    Report, Run, TestCa, clients,
    report::{amount, number},
    servers::{self, AWS, Moto, S3},
};
use serde_json::{Value, json};

/// The rules of the README's story, and one for a service with other codes.
const TWICE_429: &str = "~d s3.eu-west-1.amazonaws.com & ~s & ~attempt ..2 => 429";
const TWICE_503: &str = "~svc dynamodb & ~attempt ..2 => 503";

/// Statuses after which a client that gives up could have tried again.
const RETRYABLE: &[u64] = &[408, 425, 429, 500, 502, 503, 504, 509, 529];

struct Case<'a> {
    name: &'a str,
    old: bool,
    plan: Value,
    rules: &'a [&'a str],
}

/// One operation, as the process itself saw it.
#[derive(Debug, Default)]
struct Seen {
    calls: u64,
    attempts: u64,
    retries: u64,
    give_ups: u64,
    statuses: BTreeMap<String, u64>,
}

fn every_call() -> Value {
    json!([
        ["s3", "list_buckets", {}],
        ["s3", "put_object", {"Bucket": "bucket", "Key": "written", "Body": "some words"}],
        ["s3", "get_object", {"Bucket": "bucket", "Key": "object"}],
        ["dynamodb", "put_item", {"TableName": "table", "Item": {"id": {"S": "second"}}}],
        ["dynamodb", "get_item", {"TableName": "table", "Key": {"id": {"S": "first"}}}],
    ])
}

/// What the hooks told, per (service, operation).
fn seen(truth: &Value) -> BTreeMap<(String, String), Seen> {
    let mut calls: BTreeMap<(String, String, String), Vec<(u64, Value)>> = BTreeMap::new();
    for row in truth["attempts"].as_array().expect("attempts") {
        let text = |at: usize| row[at].as_str().expect("text").to_owned();
        let attempt = (row[3].as_u64().expect("an attempt's number"), row[4].clone());
        calls.entry((text(0), text(1), text(2))).or_default().push(attempt);
    }
    let mut operations: BTreeMap<_, Seen> = BTreeMap::new();
    for ((service, operation, _), mut attempts) in calls {
        attempts.sort_by_key(|attempt| attempt.0);
        let row = operations.entry((service, operation)).or_default();
        row.calls += 1;
        row.attempts += attempts.len() as u64;
        row.retries += attempts.last().map_or(0, |last| last.0 - 1);
        let last = attempts.last().and_then(|last| last.1.as_u64());
        row.give_ups += u64::from(last.is_none_or(|status| RETRYABLE.contains(&status)));
        for (_, outcome) in attempts {
            let key = outcome.as_u64().map_or_else(|| outcome.as_str().unwrap_or_default().into(), |it| it.to_string());
            *row.statuses.entry(key).or_default() += 1;
        }
    }
    operations
}

/// Runs the plan and holds the report against the process's own account.
fn check(moto: &Moto, case: &Case<'_>) -> (Report, Value) {
    let mut run = Run::new().upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    check_in(run, Some(moto), case)
}

/// The same in a prepared run, whose server may keep no record.
fn check_in(mut run: Run, moto: Option<&Moto>, case: &Case<'_>) -> (Report, Value) {
    for rule in case.rules {
        run = run.rule(rule);
    }
    let python = if case.old { clients::old_python() } else { clients::python() };
    let outcome = run.go(words![python, clients::script("boto_truth.py"), case.plan.to_string()]).ok();
    let (truth, report, name) = (outcome.json(), outcome.report(), case.name);
    let process = report.process("boto_truth.py");
    let context = format!("{name}\ntruth: {truth}\nreport: {report}");

    let seen = seen(&truth);
    let rows = process["operations"].as_array().expect("operations");
    assert_eq!(rows.len(), seen.len(), "operations of {context}");
    let mut all = Seen::default();
    for ((service, operation), expected) in &seen {
        let row = Report::operation(process, service, operation);
        for (field, value) in [
            ("calls", expected.calls),
            ("attempts", expected.attempts),
            ("retries", expected.retries),
            ("give_ups", expected.give_ups),
        ] {
            assert_eq!(number(row, field), value, "{field} of {service}.{operation} in {context}");
        }
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        for map in ["statuses", "injected"] {
            for (status, count) in row[map].as_object().expect("a map of counts") {
                *told.entry(status.clone()).or_default() += count.as_u64().expect("a count");
            }
        }
        assert_eq!(told, expected.statuses, "statuses and injected of {service}.{operation} in {context}");
        all.calls += expected.calls;
        all.attempts += expected.attempts;
        all.retries += expected.retries;
        all.give_ups += expected.give_ups;
    }
    for place in [process, &report.0["totals"]] {
        for (field, value) in
            [("calls", all.calls), ("attempts", all.attempts), ("retries", all.retries), ("give_ups", all.give_ups)]
        {
            assert_eq!(number(place, field), value, "{field} in {context}");
        }
    }
    assert_eq!(number(process, "retries_exact"), all.retries, "the SDK's headers link every retry: {context}");
    assert_eq!(number(process, "retries_inferred"), 0, "nothing is left to deduce: {context}");

    // What left the process is what reached the server: each attempt once.
    let pairs = |rows: &Value, at: usize| -> BTreeSet<(String, u64)> {
        rows.as_array()
            .expect("rows")
            .iter()
            .map(|row| (row[at].as_str().expect("an id").to_owned(), row[at + 1].as_u64().expect("a number")))
            .collect()
    };
    let sent = pairs(&truth["sent"], 0);
    assert_eq!(sent, pairs(&truth["attempts"], 2), "hooks disagree in {context}");
    assert_eq!(sent.len() as u64, all.attempts, "an (invocation id, attempt) pair came twice in {context}");
    if let Some(moto) = moto {
        let arrived: Vec<(String, u64)> = moto
            .received()
            .into_iter()
            .filter_map(|(id, request)| {
                let number = request.split(';').find_map(|part| part.trim().strip_prefix("attempt="))?.parse().ok()?;
                sent.iter().any(|(sent, _)| *sent == id).then_some((id, number))
            })
            .collect();
        assert_eq!(arrived.iter().cloned().collect::<BTreeSet<_>>(), sent, "what reached the server in {context}");
        assert_eq!(arrived.len(), sent.len(), "an attempt reached the server twice in {context}");
    }

    // Backoff on the wire holds the sleep, and little else.
    let sum = |name: &str| truth[name].as_array().expect("times").iter().filter_map(Value::as_f64).sum::<f64>();
    let backoff = &process["backoff"];
    assert_eq!(number(backoff, "count"), all.retries, "one backoff per retry in {context}");
    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    let count = all.retries as f64;
    let total = amount(backoff, "total_ms");
    // The answer's last byte may reach the client a moment before the daemon notes it.
    assert!(total + 5.0 * count >= sum("sleeps"), "backoff {total} is less than the sleeps of {context}");
    // Nor can it be longer than from the end of one attempt to the end of the next.
    assert!(total <= sum("spans") + 250.0 * count + 1.0, "backoff {total} exceeds the spans of {context}");
    assert!(amount(backoff, "max_ms") <= total + 0.5, "longest backoff in {context}");
    (report, truth)
}

/// Without rules nothing is retried, and the report agrees with botocore's
/// hooks, in every retry mode.
#[test]
fn no_rule_in_every_mode() {
    let moto = Moto::shared();
    for mode in ["legacy", "standard", "adaptive"] {
        let plan = json!({"retries": {"mode": mode}, "calls": every_call()});
        let (report, truth) = check(&moto, &Case { name: mode, old: false, plan, rules: &[] });
        assert_eq!(report.total("retries"), 0, "{mode}: {report}");
        assert_eq!(report.counts("injected").values().sum::<u64>(), 0, "{mode}: {report}");
        assert_eq!(truth["calls"][2]["body"], "what was put there first", "{mode}: {truth}");
    }
}

/// The story: the first two answers of each call become 429 (S3) or 503
/// (DynamoDB), the third goes through, in every retry mode.
#[test]
fn twice_refused_in_every_mode() {
    let moto = Moto::shared();
    for mode in ["legacy", "standard", "adaptive"] {
        let plan = json!({"retries": {"mode": mode}, "calls": every_call(), "sleep_scale": 0.1});
        let rules = [TWICE_429, TWICE_503];
        let (report, truth) = check(&moto, &Case { name: mode, old: false, plan, rules: &rules });
        for call in truth["calls"].as_array().expect("calls") {
            assert_eq!(call["status"], 200, "{mode}: {truth}");
            assert_eq!(call["retries"], 2, "{mode}: {truth}");
        }
        assert_eq!(report.count("injected", "429"), 6, "{mode}: {report}");
        assert_eq!(report.count("injected", "503"), 4, "{mode}: {report}");
        assert_eq!(report.count("statuses", "200"), 5, "{mode}: {report}");
        assert_eq!(truth["calls"][2]["body"], "what was put there first", "the body is the genuine one: {truth}");
    }
}

/// The same with botocore's own sleeps, not shortened.
#[test]
fn backoff_is_the_real_one() {
    let moto = Moto::shared();
    let plan = json!({"calls": [["s3", "list_buckets", {}]]});
    check(&moto, &Case { name: "default mode", old: false, plan, rules: &[TWICE_429] });
}

/// A call that is refused to the end is a give-up after as many attempts as
/// the mode makes.
#[test]
fn refused_to_the_end_is_a_give_up() {
    let moto = Moto::shared();
    for (retries, attempts) in [
        (json!({"mode": "standard"}), 3),
        (json!({"mode": "legacy"}), 5),
        (json!({"mode": "standard", "total_max_attempts": 2}), 2),
        (json!({"mode": "standard", "total_max_attempts": 1}), 1),
    ] {
        let plan = json!({"retries": retries, "calls": [["s3", "list_buckets", {}]], "sleep_scale": 0.1});
        let name = retries.to_string();
        let (report, truth) = check(&moto, &Case { name: &name, old: false, plan, rules: &["~svc s3 => 503"] });
        assert_eq!(report.total("give_ups"), 1, "{name}: {report}");
        assert_eq!(report.total("attempts"), attempts, "{name}: {report}");
        assert_eq!(truth["calls"][0]["status"], 503, "{name}: {truth}");
    }
}

/// Where a client does not retry a status, the one attempt is a give-up: a
/// bare 429 before botocore 1.44's standard mode, 509 in standard mode.
#[test]
fn not_retried_is_a_give_up_of_one_attempt() {
    let moto = Moto::shared();
    let cases = [
        (true, "standard", "~op ListBuckets & ~attempt ..2 => 429"),
        (true, "adaptive", "~op ListBuckets & ~attempt ..2 => 429"),
        (false, "standard", "~op ListBuckets & ~attempt ..2 => 509"),
    ];
    for (old, mode, rule) in cases {
        let plan = json!({"retries": {"mode": mode}, "calls": [["s3", "list_buckets", {}]]});
        let name = format!("{mode} {rule}");
        let (report, truth) = check(&moto, &Case { name: &name, old, plan, rules: &[rule] });
        assert_eq!(report.total("attempts"), 1, "{name}: {report}");
        assert_eq!(report.total("give_ups"), 1, "{name}: {report}");
        assert!(truth["calls"][0]["error"].is_string(), "{name}: {truth}");
    }
}

/// A botocore of before the change in legacy mode, whose first attempt says
/// no maximum, is linked as exactly.
#[test]
fn old_botocore_legacy() {
    let moto = Moto::shared();
    let plan = json!({"calls": every_call(), "sleep_scale": 0.1});
    let (report, _) = check(&moto, &Case { name: "1.38", old: true, plan, rules: &[TWICE_429, TWICE_503] });
    assert_eq!(report.total("retries"), 10, "{report}");
}

/// Sixteen threads, one client for all or one for each: not one attempt is
/// miscounted.
#[test]
fn sixteen_threads() {
    let moto = Moto::shared();
    let call = |index: usize| match index % 3 {
        0 => json!(["s3", "list_buckets", {}]),
        1 => json!(["s3", "get_object", {"Bucket": "bucket", "Key": "object"}]),
        _ => json!(["dynamodb", "get_item", {"TableName": "table", "Key": {"id": {"S": "first"}}}]),
    };
    let calls: Vec<Value> = (0..6).map(call).collect();
    for per_thread in [false, true] {
        let plan = json!({
            "retries": {"mode": "standard"}, "threads": 16, "client_per_thread": per_thread,
            "calls": calls, "sleep_scale": 0.2,
        });
        let rules = ["~svc s3 & ~attempt 1 => 503", "~svc dynamodb & ~attempt ..2 => 500"];
        let name = if per_thread { "a client per thread" } else { "one client" };
        let (report, _) = check(&moto, &Case { name, old: false, plan, rules: &rules });
        assert_eq!(report.total("calls"), 96, "{name}: {report}");
    }
}

/// Services that name their operation in the body (`Action=`) or a header
/// (`X-Amz-Target`) are told apart, and retried.
#[test]
fn query_and_json_services() {
    let moto = Moto::shared();
    let calls = json!([["sts", "get_caller_identity", {}], ["sqs", "list_queues", {}], ["sqs", "create_queue", {"QueueName": "q"}]]);
    for mode in ["legacy", "standard"] {
        let plan = json!({"retries": {"mode": mode}, "calls": calls, "sleep_scale": 0.1});
        let rules = ["(~op sts.GetCallerIdentity | ~op sqs.*) & ~attempt ..2 => 503"];
        let (report, truth) = check(&moto, &Case { name: mode, old: false, plan, rules: &rules });
        assert_eq!(report.count("injected", "503"), 6, "{mode}: {report}");
        for call in truth["calls"].as_array().expect("calls") {
            assert_eq!(call["status"], 200, "{mode}: {truth}");
        }
    }
}

/// An S3 server that verifies signatures, at a port of its own: what passes
/// through is what was signed, and the story holds there as well.
#[test]
fn signed_requests_to_s3s() {
    let ca = TestCa::new();
    let (address, _server) = servers::s3s(&ca);
    for (rules, retries) in [(&[][..], 0), (&[TWICE_429], 2)] {
        let plan = json!({"sleep_scale": 0.1, "calls": [
            ["s3", "list_buckets", {}],
            ["s3", "put_object", {"Bucket": "bucket", "Key": "a/b c+d", "Body": "signed words"}],
            ["s3", "get_object", {"Bucket": "bucket", "Key": "a/b c+d"}],
            ["s3", "head_object", {"Bucket": "bucket", "Key": "a/b c+d"}],
            ["s3", "list_objects_v2", {"Bucket": "bucket", "Prefix": "a/"}],
        ]});
        let run = Run::new().to(S3, address, &ca);
        let (report, truth) = check_in(run, None, &Case { name: "s3s", old: false, plan, rules });
        assert_eq!(report.total("retries"), 5 * retries, "{report}");
        for call in truth["calls"].as_array().expect("calls") {
            assert_eq!(call["status"], 200, "{truth}");
        }
    }
}

/// A bucket's own host name counts as S3 too.
#[test]
fn virtual_hosted_bucket() {
    let moto = Moto::shared();
    let plan = json!({
        "addressing": "virtual", "sleep_scale": 0.1,
        "calls": [["s3", "get_object", {"Bucket": "bucket", "Key": "object"}],
                  ["s3", "head_object", {"Bucket": "bucket", "Key": "object"}]],
    });
    let (report, truth) =
        check(&moto, &Case { name: "virtual", old: false, plan, rules: &["~d bucket.s3 & ~attempt 1 => 503"] });
    assert_eq!(report.count("injected", "503"), 2, "{report}");
    assert_eq!(truth["calls"][0]["body"], "what was put there first", "{truth}");
}
