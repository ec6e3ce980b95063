//! A run of boto3 with rules that has done its work and is still there, so
//! that somebody can ask what came of it.
use serde_json::{Value, json};

use super::{
    Run, clients,
    run::RunningRun,
    servers::{AWS, Moto},
};

/// Does what a plan says, tells so, and stays until standard input ends.
const LINGER: &str = r#""$0" "$1" "$2" > truth.json && echo done && read -r _ || :"#;

pub const RULES: [&str; 3] =
    ["~op ListBuckets & ~attempt ..2 => 429", "~op GetObject & ~attempt 1 => 503", "~op PutItem => 503"];

fn plan() -> Value {
    json!({"retries": {"mode": "standard"}, "sleep_scale": 0.2, "calls": [
        ["s3", "list_buckets", {}],
        ["s3", "list_buckets", {}],
        ["s3", "put_object", {"Bucket": "bucket", "Key": "written", "Body": "some words"}],
        ["s3", "get_object", {"Bucket": "bucket", "Key": "object"}],
        ["dynamodb", "put_item", {"TableName": "table", "Item": {"id": {"S": "second"}}}],
    ]})
}

/// A run of the plan that has done its work and is still there; and how many
/// attempts it made, by its own account.
pub fn lingering(moto: &Moto, options: &[&str]) -> (RunningRun, f64) {
    let mut run = Run::new().upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    for rule in RULES {
        run = run.rule(rule);
    }
    for option in options {
        run = run.option(option);
    }
    let folder = run.dir().to_owned();
    let run = run.cwd(&folder).start(crate::words![
        "sh",
        "-c",
        LINGER,
        clients::python(),
        clients::script("boto_truth.py"),
        plan().to_string()
    ]);
    run.line("done");
    let truth = std::fs::read(folder.join("truth.json")).expect("the client's account");
    let truth: Value = serde_json::from_slice(&truth).expect("JSON");
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let attempts = truth["attempts"].as_array().expect("attempts").len() as f64;
    (run, attempts)
}
