//! Presets as the SDKs take them: each provokes the error and the number of
//! attempts that the service's own answer provokes, in every retry mode; and
//! the report counts the same. The SDKs' own hooks are the ground truth.
mod common;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use common::{Run, TestCa, Upstream, ca::Leaf, clients, report::number};
use serde_json::{Value, json};

/// Every endpoint that the rows below call.
const HOSTS: &[&str] = &[
    "s3.eu-west-1.amazonaws.com",
    "dynamodb.eu-west-1.amazonaws.com",
    "kinesis.eu-west-1.amazonaws.com",
    "sqs.eu-west-1.amazonaws.com",
    "sns.eu-west-1.amazonaws.com",
    "sts.eu-west-1.amazonaws.com",
    "ec2.eu-west-1.amazonaws.com",
    "lambda.eu-west-1.amazonaws.com",
    "apigateway.eu-west-1.amazonaws.com",
    "logs.eu-west-1.amazonaws.com",
    "monitoring.eu-west-1.amazonaws.com",
    "bedrock-runtime.eu-west-1.amazonaws.com",
    "route53.amazonaws.com",
    "iam.amazonaws.com",
    "ssm.eu-west-1.amazonaws.com",
    "eks.eu-west-1.amazonaws.com",
    "eventsv2.eu-west-1.amazonaws.com",
];

/// A preset, the call it answers, and what comes of it.
struct Row {
    preset: &'static str,
    service: &'static str,
    operation: &'static str,
    arguments: &'static str,
    /// Attempts in legacy mode, and in standard and adaptive mode.
    attempts: (u64, u64),
    code: &'static str,
}

const fn row(
    preset: &'static str,
    [service, operation, arguments]: [&'static str; 3],
    attempts: (u64, u64),
    code: &'static str,
) -> Row {
    Row { preset, service, operation, arguments, attempts, code }
}

/// botocore's usual number of attempts, and DynamoDB's.
const USUAL: (u64, u64) = (5, 3);
const DYNAMODB: (u64, u64) = (10, 4);

const GET_OBJECT: [&str; 3] = ["s3", "get_object", r#"{"Bucket": "bucket", "Key": "key"}"#];
const PUT_OBJECT: [&str; 3] = ["s3", "put_object", r#"{"Bucket": "bucket", "Key": "key", "Body": "words"}"#];
const HEAD_OBJECT: [&str; 3] = ["s3", "head_object", r#"{"Bucket": "bucket", "Key": "key"}"#];
const COPY_OBJECT: [&str; 3] =
    ["s3", "copy_object", r#"{"Bucket": "bucket", "Key": "key", "CopySource": "bucket/other"}"#];
const GET_ITEM: [&str; 3] = ["dynamodb", "get_item", r#"{"TableName": "table", "Key": {"id": {"S": "1"}}}"#];
const LIST_TABLES: [&str; 3] = ["dynamodb", "list_tables", "{}"];
const TRANSACT: [&str; 3] = [
    "dynamodb",
    "transact_write_items",
    r#"{"TransactItems": [{"Delete": {"TableName": "table", "Key": {"id": {"S": "1"}}}}]}"#,
];
const PUT_RECORD: [&str; 3] =
    ["kinesis", "put_record", r#"{"StreamName": "stream", "Data": "words", "PartitionKey": "key"}"#];
const LIST_STREAMS: [&str; 3] = ["kinesis", "list_streams", "{}"];
const LIST_QUEUES: [&str; 3] = ["sqs", "list_queues", "{}"];
const LIST_TOPICS: [&str; 3] = ["sns", "list_topics", "{}"];
const IDENTITY: [&str; 3] = ["sts", "get_caller_identity", "{}"];
const REGIONS: [&str; 3] = ["ec2", "describe_regions", "{}"];
const FUNCTIONS: [&str; 3] = ["lambda", "list_functions", "{}"];
const REST_APIS: [&str; 3] = ["apigateway", "get_rest_apis", "{}"];
const LOG_GROUPS: [&str; 3] = ["logs", "describe_log_groups", "{}"];
const METRICS: [&str; 3] = ["cloudwatch", "list_metrics", "{}"];
const MODEL: [&str; 3] = ["bedrock-runtime", "invoke_model", r#"{"modelId": "model", "body": "{}"}"#];
const ZONES: [&str; 3] = ["route53", "list_hosted_zones", "{}"];
const USERS: [&str; 3] = ["iam", "list_users", "{}"];
const PARAMETERS: [&str; 3] = ["ssm", "describe_parameters", "{}"];
const BUSES: [&str; 3] = ["eventbridgev2", "list_event_buses", "{}"];
const CLUSTERS: [&str; 3] = ["eks", "list_clusters", "{}"];

/// The numbers are those of botocore 1.44.5 against a server that always
/// gives the service's answer.
const ROWS: &[Row] = &[
    row("s3-slowdown", GET_OBJECT, USUAL, "SlowDown"),
    row("s3-slowdown", PUT_OBJECT, USUAL, "SlowDown"),
    row("s3-slowdown-429", GET_OBJECT, USUAL, "SlowDown"),
    row("s3-head-503", HEAD_OBJECT, USUAL, "503"),
    row("s3-head-429", HEAD_OBJECT, USUAL, "429"),
    row("s3-internal-error", GET_OBJECT, USUAL, "InternalError"),
    row("s3-request-timeout", PUT_OBJECT, USUAL, "RequestTimeout"),
    row("s3-copy-200-error", COPY_OBJECT, USUAL, "SlowDown"),
    row("dynamodb-throughput", GET_ITEM, DYNAMODB, "ProvisionedThroughputExceededException"),
    row("dynamodb-throttling", LIST_TABLES, DYNAMODB, "ThrottlingException"),
    // Legacy mode does not know this code for DynamoDB.
    row("dynamodb-request-limit", GET_ITEM, (1, 4), "RequestLimitExceeded"),
    row("dynamodb-transaction-in-progress", TRANSACT, DYNAMODB, "TransactionInProgressException"),
    row("dynamodb-unavailable", GET_ITEM, DYNAMODB, "ServiceUnavailable"),
    row("kinesis", PUT_RECORD, USUAL, "ProvisionedThroughputExceededException"),
    row("kinesis-limit-exceeded", LIST_STREAMS, USUAL, "LimitExceededException"),
    row("sqs", LIST_QUEUES, USUAL, "RequestThrottled"),
    row("sqs-throttling-json", LIST_QUEUES, USUAL, "ThrottlingException"),
    row("sns", LIST_TOPICS, USUAL, "Throttling"),
    row("sns-throttled-429", LIST_TOPICS, USUAL, "Throttled"),
    row("sts", IDENTITY, USUAL, "Throttling"),
    row("ec2-request-limit", REGIONS, USUAL, "RequestLimitExceeded"),
    row("lambda-429", FUNCTIONS, USUAL, "TooManyRequestsException"),
    row("apigateway-429", REST_APIS, USUAL, "TooManyRequestsException"),
    row("logs-throttling", LOG_GROUPS, USUAL, "ThrottlingException"),
    row("cloudwatch-throttling-json", METRICS, USUAL, "ThrottlingException"),
    // This SDK asks in JSON: what it cannot read it does not retry.
    row("cloudwatch-throttling-query", METRICS, (1, 1), "400"),
    row("bedrock-throttling", MODEL, USUAL, "ThrottlingException"),
    row("bedrock-unavailable", MODEL, USUAL, "ServiceUnavailableException"),
    row("route53-throttling", ZONES, USUAL, "Throttling"),
    row("rpcv2cbor-throttling", BUSES, USUAL, "ThrottlingException"),
    row("aws-json-generic-throttling", PARAMETERS, USUAL, "ThrottlingException"),
    row("aws-query-generic-throttling", USERS, USUAL, "Throttling"),
    row("aws-restjson-generic-throttling", CLUSTERS, USUAL, "ThrottlingException"),
    row("empty-503", HEAD_OBJECT, USUAL, "503"),
    row("empty-503", GET_ITEM, DYNAMODB, "503"),
    // The throttle of whoever is asked, in the form in which it was asked.
    row("throttle", GET_OBJECT, USUAL, "SlowDown"),
    row("throttle", HEAD_OBJECT, USUAL, "503"),
    row("throttle", GET_ITEM, DYNAMODB, "ProvisionedThroughputExceededException"),
    row("throttle", PUT_RECORD, USUAL, "ProvisionedThroughputExceededException"),
    row("throttle", LIST_QUEUES, USUAL, "RequestThrottled"),
    row("throttle", LIST_TOPICS, USUAL, "Throttling"),
    row("throttle", IDENTITY, USUAL, "Throttling"),
    row("throttle", REGIONS, USUAL, "RequestLimitExceeded"),
    row("throttle", FUNCTIONS, USUAL, "TooManyRequestsException"),
    row("throttle", REST_APIS, USUAL, "TooManyRequestsException"),
    row("throttle", LOG_GROUPS, USUAL, "ThrottlingException"),
    row("throttle", METRICS, USUAL, "ThrottlingException"),
    row("throttle", MODEL, USUAL, "ThrottlingException"),
    row("throttle", ZONES, USUAL, "Throttling"),
    row("throttle", BUSES, USUAL, "ThrottlingException"),
    row("throttle", USERS, USUAL, "Throttling"),
    row("throttle", PARAMETERS, USUAL, "ThrottlingException"),
    row("throttle", CLUSTERS, USUAL, "ThrottlingException"),
];

/// One rule per preset; a request says in a header which it wants.
fn run<'a>(upstream: &Upstream, ca: &TestCa, presets: impl Iterator<Item = &'a str>) -> Run {
    let mut names: Vec<&str> = presets.collect();
    names.sort_unstable();
    names.dedup();
    let run = Run::new().upstream_ca(&ca.pem()).deadline(Duration::from_secs(180));
    let run = HOSTS.iter().fold(run, |run, host| run.map_host(host, upstream.address));
    names.iter().fold(run, |run, name| run.rule(&format!("~hq \"x-preset: _{name}_\" => preset {name}")))
}

fn upstream(ca: &TestCa) -> Upstream {
    Upstream::with(ca, Leaf::Good, HOSTS, &["http/1.1"])
}

/// Calls and attempts of each service. Not of each operation: REST services
/// other than S3 have no names for theirs on the wire.
type Counts = BTreeMap<String, (u64, u64)>;

fn count(counts: &mut Counts, service: &Value, calls: u64, attempts: u64) {
    let sum = counts.entry(service.as_str().unwrap_or_default().to_owned()).or_default();
    *sum = (sum.0 + calls, sum.1 + attempts);
}

/// What the report says of each service is what the client said of it.
fn compare(process: &Value, expected: &Counts, context: &str) {
    let mut told = Counts::new();
    for row in process["operations"].as_array().expect("operations") {
        let injected: u64 = row["injected"].as_object().into_iter().flatten().filter_map(|(_, it)| it.as_u64()).sum();
        assert_eq!(injected, number(row, "attempts"), "every attempt was a rule's to answer: {row} in {context}");
        assert_eq!(number(row, "retries"), injected - number(row, "calls"), "{row} in {context}");
        count(&mut told, &row["service"], number(row, "calls"), injected);
    }
    assert_eq!(told, *expected, "(calls, attempts) of each service in {context}");
}

fn boto3_in(mode: &str) {
    let ca = TestCa::new();
    let upstream = upstream(&ca);
    let rows: Vec<Value> = ROWS
        .iter()
        .map(|row| {
            let arguments: Value = serde_json::from_str(row.arguments).expect("arguments");
            json!([row.preset, row.service, row.operation, arguments, row.code])
        })
        .collect();
    let plan = json!({"mode": mode, "rows": rows});
    let outcome = run(&upstream, &ca, ROWS.iter().map(|row| row.preset))
        .go(words![clients::python(), clients::script("presets_boto.py"), plan.to_string()])
        .ok();
    let told = outcome.json();
    let told = told.as_array().expect("rows");
    assert_eq!(told.len(), ROWS.len());

    let mut wrong = Vec::new();
    let mut expected = Counts::new();
    for (row, told) in ROWS.iter().zip(told) {
        let attempts = if mode == "legacy" { row.attempts.0 } else { row.attempts.1 };
        let counted = told["attempts"].as_array().map_or(0, Vec::len) as u64;
        // An answer that cannot be parsed reports nothing.
        let reported = told["reported"].as_u64().unwrap_or(counted);
        let good = told["code"] == row.code
            && told["class"] == told["modelled"]
            && (counted, reported, told["number"].as_u64()) == (attempts, attempts, Some(attempts));
        if !good {
            wrong.push(format!("{} for {}: not {attempts} times {} but {told}", row.preset, row.service, row.code));
        }
        count(&mut expected, &told["service"], 1, counted);
    }
    assert!(wrong.is_empty(), "{mode}:\n{}", wrong.join("\n"));
    let report = outcome.report();
    compare(report.process("presets_boto.py"), &expected, &format!("{mode}: {report}"));
    assert_eq!(upstream.received().len(), 0, "{mode}: nothing reaches the services");
}

#[test]
fn boto3_in_legacy_mode() {
    boto3_in("legacy");
}

#[test]
fn boto3_in_standard_mode() {
    boto3_in("standard");
}

#[test]
fn boto3_in_adaptive_mode() {
    boto3_in("adaptive");
}

/// The folder that holds the SDK for JavaScript's `node_modules`.
fn javascript() -> PathBuf {
    let folder = std::env::var_os("RETRYSCOPE_TEST_NODE_MODULES")
        .map_or_else(|| clients::target().join("node").join("clients"), PathBuf::from);
    assert!(
        folder.join("node_modules/@aws-sdk/client-s3").exists(),
        "there is no AWS SDK for JavaScript in {}: `cargo xtask test` installs it, or let \
         RETRYSCOPE_TEST_NODE_MODULES name a folder where `npm install @aws-sdk/client-s3 @aws-sdk/client-dynamodb` ran",
        folder.display()
    );
    folder
}

/// The SDK for JavaScript, in its default mode.
#[test]
fn javascript_on_s3_and_dynamodb() {
    let ca = TestCa::new();
    let upstream = upstream(&ca);
    let object = json!({"Bucket": "bucket", "Key": "key"});
    let item = json!({"TableName": "table", "Key": {"id": {"S": "1"}}});
    let mut rows = Vec::new();
    for (preset, name, status) in [
        ("s3-slowdown", "SlowDown", 503),
        ("s3-slowdown-429", "SlowDown", 429),
        ("s3-internal-error", "InternalError", 500),
        ("throttle", "SlowDown", 503),
    ] {
        rows.push((json!([preset, "s3", "GetObjectCommand", object]), name, 3, status));
    }
    for (preset, name, status) in [
        ("dynamodb-throughput", "ProvisionedThroughputExceededException", 400),
        ("dynamodb-throttling", "ThrottlingException", 400),
        ("dynamodb-request-limit", "RequestLimitExceeded", 400),
        ("dynamodb-transaction-in-progress", "TransactionInProgressException", 400),
        ("dynamodb-unavailable", "ServiceUnavailable", 503),
        ("throttle", "ProvisionedThroughputExceededException", 400),
    ] {
        rows.push((json!([preset, "dynamodb", "GetItemCommand", item]), name, 4, status));
    }
    let plan: Vec<&Value> = rows.iter().map(|row| &row.0).collect();
    let outcome = run(&upstream, &ca, plan.iter().filter_map(|row| row[0].as_str()))
        .go(words![clients::node(), clients::script("presets.mjs"), javascript(), json!(plan).to_string()])
        .ok();
    let told = outcome.json();
    let mut wrong = Vec::new();
    let mut expected = Counts::new();
    for ((row, name, attempts, status), told) in rows.iter().zip(told.as_array().expect("rows")) {
        if told["name"] != *name || told["attempts"] != *attempts || told["status"] != *status {
            wrong.push(format!("{row}: not {attempts} times {status} {name} but {told}"));
        }
        count(&mut expected, &told["service"], 1, told["attempts"].as_u64().unwrap_or_default());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let report = outcome.report();
    compare(report.process("presets.mjs"), &expected, &report.to_string());
    assert_eq!(upstream.received().len(), 0, "nothing reaches the services");
}
