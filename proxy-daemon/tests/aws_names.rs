//! Names of AWS operations: every operation of every service, as botocore
//! itself builds and signs it, has to be named by what is on the wire.
mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use common::clients;
use retryscope::flow::{Request, aws};
use serde::Deserialize;

/// Service, signing name, endpoint prefix, operation, method, URL, headers,
/// start of the body.
#[derive(Deserialize)]
struct Row(String, String, String, String, String, String, BTreeMap<String, String>, String);

/// Old and new names of one and the same call on the wire.
const SAME: &[(&str, &str)] = &[
    ("PutBucketLifecycle", "PutBucketLifecycleConfiguration"),
    ("GetBucketLifecycle", "GetBucketLifecycleConfiguration"),
    ("PutBucketNotification", "PutBucketNotificationConfiguration"),
    ("GetBucketNotification", "GetBucketNotificationConfiguration"),
];

#[derive(Default)]
struct Score {
    all: usize,
    right: usize,
}

#[test]
fn every_operation_of_every_service() {
    let output = Command::new(clients::python())
        .arg(clients::script("aws_names.py"))
        .env_clear()
        .envs(clients::environment())
        .stdin(Stdio::null())
        .output()
        .expect("running Python");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{}", said.lines().next().unwrap_or_default());

    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    let mut wrong = BTreeSet::new();
    let mut services = BTreeSet::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Row(service, signing, endpoint, operation, method, url, headers, body) =
            serde_json::from_slice(line).expect("a row");
        let rest = url.split_once("://").expect("a URL").1;
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let request = Request {
            method: method.as_str().into(),
            authority: authority.into(),
            target: if target.starts_with('/') { target.into() } else { format!("/{target}").into() },
            headers: headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        };
        let start = aws::needs_body(&request).then_some(body.as_bytes());
        let named = aws::name(&request, start);
        let name = named.name.as_deref().unwrap_or("?");
        let expected = SAME.iter().find(|(old, _)| *old == operation).map_or(operation.as_str(), |(_, new)| new);
        let score = scores.entry(service.clone()).or_default();
        score.all += 1;
        let told = named.service.as_deref().unwrap_or("?");
        if name == expected && told != "?" {
            score.right += 1;
        } else {
            wrong.insert(format!("{service}.{operation}: {told}.{name} ({method} {target})", target = request.path()));
        }
        let known = [signing.to_ascii_lowercase(), endpoint.to_ascii_lowercase(), service.clone()];
        if !known.iter().any(|known| known == told) {
            services.insert(format!("{service} is called {told}, signed {signing}"));
        }
    }
    let all: usize = scores.values().map(|score| score.all).sum();
    let right: usize = scores.values().map(|score| score.right).sum();
    println!(
        "{right} of {all} requests of {} services are named: {:.2} %",
        scores.len(),
        right as f64 / all as f64 * 1e2
    );
    println!("not named:");
    wrong.iter().for_each(|line| println!("  {line}"));
    println!("named after neither signature nor endpoint:");
    services.iter().for_each(|line| println!("  {line}"));

    assert!(all > 19_000, "{all} requests were made");
    assert!(right as f64 >= 0.99 * all as f64, "{right} of {all}");
    for service in ["s3", "dynamodb"] {
        let score = &scores[service];
        assert_eq!(score.right, score.all, "{service}");
    }
}
