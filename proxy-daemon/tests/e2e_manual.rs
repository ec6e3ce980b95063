//! Every example of docs/rules.md, run: rules and rule files against real
//! requests, commands as they stand there.
mod common;

use std::path::Path;

use common::{NAME, Outcome, Run, SOON, TestCa, Upstream, ca::Leaf, clients, run::retryscope, servers};
use serde_json::{Value, json};

const MANUAL: &str = include_str!("../../docs/rules.md");

const S3: &str = "s3.eu-west-1.amazonaws.com";
const DYNAMODB: &str = "dynamodb.eu-west-1.amazonaws.com";
const NAMES: [&str; 6] = [S3, servers::BUCKET, DYNAMODB, "api.example.com", "upload.example.com", NAME];

fn blocks(kind: &str) -> Vec<&'static str> {
    let parts = MANUAL.split("```").skip(1).step_by(2);
    parts.filter_map(|part| part.strip_prefix(kind)?.strip_prefix('\n')).map(str::trim).collect()
}

struct Scene {
    ca: TestCa,
    upstream: Upstream,
}

impl Scene {
    fn new() -> Self {
        let ca = TestCa::new();
        let upstream = Upstream::with(&ca, Leaf::Good, &NAMES, &["h2", "http/1.1"]);
        Self { ca, upstream }
    }

    fn run(&self) -> Run {
        NAMES.iter().fold(Run::new().upstream_ca(&self.ca.pem()), |run, name| run.map_host(name, self.upstream.address))
    }

    fn ask(&self, run: Run, requests: &Value) -> (Vec<Value>, Outcome) {
        let outcome = run.go(words![clients::python(), clients::script("ask.py"), requests.to_string()]).ok();
        let answers = outcome.json().as_array().cloned().unwrap_or_default();
        (answers, outcome)
    }
}

fn statuses(answers: &[Value]) -> Vec<u64> {
    answers.iter().filter_map(|answer| answer[0].as_u64()).collect()
}

/// One attempt of a call, as an AWS SDK marks it.
fn of_call(id: &str, attempt: u32) -> Value {
    json!({"amz-sdk-invocation-id": id, "amz-sdk-request": format!("attempt={attempt}; max=3")})
}

fn put_item(more: &Value) -> Value {
    let mut headers =
        json!({"X-Amz-Target": "DynamoDB_20120810.PutItem", "Content-Type": "application/x-amz-json-1.0"});
    if let (Some(headers), Some(more)) = (headers.as_object_mut(), more.as_object()) {
        headers.extend(more.clone());
    }
    headers
}

/// A rule of the manual, and what it has to do.
type Story = (&'static str, fn(&Scene, Run));

fn answers(scene: &Scene, run: Run, requests: &Value, expected: &[u64]) -> Vec<Value> {
    let (answers, outcome) = scene.ask(run, requests);
    assert_eq!(statuses(&answers), expected, "{}", outcome.finished);
    answers
}

const STORIES: &[Story] = &[
    ("~d s3 & ~m PUT & !~retry => 503", |scene, run| {
        let url = format!("https://{S3}/bucket/key");
        let requests = json!([["PUT", url, of_call("a", 1), 1], ["PUT", url, of_call("a", 2), 1], ["GET", url, {}, 1]]);
        answers(scene, run, &requests, &[503, 200, 200]);
    }),
    ("~u \"/v1/(orders|carts)\" ~hq \"x-tenant: blue\" => 429 \"Slow down\"", |scene, run| {
        let url = format!("https://{NAME}/v1/carts");
        let requests = json!([["GET", url, {"X-Tenant": "blue"}, 1], ["GET", url, {"X-Tenant": "red"}, 1]]);
        let told = answers(scene, run, &requests, &[429, 200]);
        assert_eq!(told[0][1], "Slow down");
    }),
    ("~d api.example.com => 503 retry-after 2", |scene, run| {
        let requests = json!([["GET", "https://api.example.com/", {}, 1], ["GET", format!("https://{NAME}/"), {}, 1]]);
        let told = answers(scene, run, &requests, &[503, 200]);
        assert_eq!(told[0][2]["retry-after"], "2");
    }),
    ("~svc s3 & ~op PutObject => limit 100/s per bucket s3-slowdown", |scene, run| {
        let requests = json!([["PUT", format!("https://{S3}/bucket/key"), {}, 150]]);
        // The throttle closes the connection, and http.client opens another.
        let (told, _) = scene.ask(run, &requests);
        let slowed: Vec<_> = told.iter().filter(|answer| answer[0] == 503).collect();
        assert!(slowed.len() < 150 && !slowed.is_empty(), "{:?}", statuses(&told));
        assert!(slowed[0][3].as_str().is_some_and(|body| body.contains("<Code>SlowDown</Code>")), "{slowed:?}");
    }),
    ("~u /report => delay 200ms~50ms cap 1s", |scene, run| {
        let requests = json!([["GET", format!("https://{NAME}/report"), {}, 3]]);
        let (told, outcome) = scene.ask(run, &requests);
        assert_eq!(statuses(&told), [200, 200, 200]);
        let held = outcome.report().0["totals"]["held_ms"].as_f64().unwrap_or_default();
        assert!((100.0..=3_000.0).contains(&held), "{held}");
    }),
    ("~u /profile & ~ts json => merge '{\"quota\": {\"left\": 0}}'", |scene, run| {
        let requests = json!([["POST", format!("https://{NAME}/sink?of=/profile"), {}, 1]]);
        let told = answers(scene, run, &requests, &[200]);
        let body: Value = serde_json::from_str(told[0][3].as_str().unwrap_or_default()).expect("JSON");
        assert_eq!(body["quota"]["left"], 0, "{body}");
        assert_eq!(body["length"], 1, "what was there stays: {body}");
    }),
    ("~m PUT & ~d upload.example.com => continue-then 503 body \"try later\"", |_, run| {
        let outcome = run.stdin(b"a body").start(words![
            clients::curl(),
            "-sS",
            "--http1.1",
            "-m",
            "15",
            "-H",
            "Expect: 100-continue",
            "-T",
            "-",
            "-w",
            "%{http_code} %{size_upload}",
            "https://upload.example.com/object"
        ]);
        let outcome = outcome.finish().ok();
        assert!(outcome.text().starts_with("try later503 "), "{}", outcome.finished);
    }),
    ("~svc dynamodb & ~op PutItem => 500 in response", |scene, run| {
        let before = scene.upstream.received().len();
        answers(scene, run, &json!([["POST", format!("https://{DYNAMODB}/"), put_item(&json!({})), 1]]), &[500]);
        assert_eq!(scene.upstream.received().len(), before + 1);
    }),
    ("~svc dynamodb & ~op PutItem => 500 in request", |scene, run| {
        let before = scene.upstream.received().len();
        answers(scene, run, &json!([["POST", format!("https://{DYNAMODB}/"), put_item(&json!({})), 1]]), &[500]);
        assert_eq!(scene.upstream.received().len(), before);
    }),
    ("~svc dynamodb => throttle times 1 per call", |scene, run| {
        let url = format!("https://{DYNAMODB}/");
        let one = |id: &str, attempt| json!(["POST", url, put_item(&of_call(id, attempt)), 1]);
        let told =
            answers(scene, run, &json!([one("a", 1), one("a", 2), one("b", 1), one("b", 2)]), &[400, 200, 400, 200]);
        assert!(told[0][3].as_str().is_some_and(|body| body.contains("ProvisionedThroughputExceeded")), "{told:?}");
    }),
    ("~svc s3 => throttle chance 5% max-hits 100", |scene, run| {
        let requests = json!([["GET", format!("https://{S3}/bucket/key"), {}, 400]]);
        let (told, _) = scene.ask(run.option("--seed").option("7"), &requests);
        let slowed = statuses(&told).into_iter().filter(|status| *status == 503).count();
        // Five percent of 400 is 20; so far off it is about once in a million.
        assert!((3..=45).contains(&slowed), "{slowed}");
    }),
];

/// No block of a kind that nothing runs.
#[test]
fn every_block_is_run() {
    let all = MANUAL.split("```").skip(1).step_by(2).count();
    assert_eq!(blocks("rule").len() + blocks("toml").len() + blocks("sh").len(), all);
}

#[test]
fn rules() {
    let scene = Scene::new();
    let told = blocks("rule");
    for rule in &told {
        let (_, story) = STORIES.iter().find(|(known, _)| known == rule).unwrap_or_else(|| panic!("nobody ran {rule}"));
        story(&scene, scene.run().rule(rule));
    }
    assert_eq!(told.len(), STORIES.len(), "a story without its example");
}

#[test]
fn rule_files() {
    let scene = Scene::new();
    let files = blocks("toml");
    assert_eq!(files.len(), 1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rules.toml");
    std::fs::write(&path, files[0]).expect("writing rules");
    let checked = retryscope([Path::new("rules"), Path::new("check"), &path]).finish(SOON).code(0);
    assert_eq!(checked.text(), "3 rules, all right\n");

    let list = |attempt| json!(["GET", format!("https://{S3}/"), of_call("a", attempt), 1]);
    let requests = json!([
        list(1),
        list(2),
        list(3),
        ["GET", format!("https://{NAME}/report"), {}, 20],
        ["GET", "https://api.example.com/", {}, 1]
    ]);
    let (told, outcome) = scene.ask(scene.run().option("--rules").option(&path), &requests);
    let statuses = statuses(&told);
    assert_eq!(statuses[..3], [503, 503, 200]);
    assert_eq!(statuses[23], 200, "this rule is off");
    let report = outcome.report();
    assert_eq!(report.0["seed"], 7);
    let hits = report.0["rules"][1]["hits"].as_u64().unwrap_or_default();
    assert!((3..=17).contains(&hits), "half of twenty: {report}");
    assert!(report.0["totals"]["held_ms"].as_f64().unwrap_or_default() >= 100.0 * hits as f64, "{report}");
}

/// What a shell would make of a line, without `sudo`.
fn typed(line: &str) -> Vec<String> {
    let words = shlex::split(line).expect(line);
    let words = words.into_iter().skip_while(|word| word == "sudo");
    let mut words = words.peekable();
    assert_eq!(words.next().as_deref(), Some("retryscope"), "{line}");
    words.collect()
}

#[test]
fn commands() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("rules.toml"), blocks("toml")[0]).expect("writing rules");
    let recording = json!({"log": {"version": "1.2", "entries": [{
        "startedDateTime": "2026-11-24T10:00:00.000Z", "time": 12.5,
        "request": {"method": "GET", "url": format!("https://{S3}/"), "headers": []},
        "response": {"status": 200, "statusText": "OK", "headers": []}
    }]}});
    std::fs::write(folder.path().join("recording.har"), recording.to_string()).expect("writing a recording");

    let mut lines = blocks("sh").into_iter().flat_map(str::lines).map(typed).collect::<Vec<_>>();
    // `run`, with the words of the test in between, and a program that is there.
    let run = lines.remove(0);
    assert_eq!((run[0].as_str(), &run[3..]), ("run", &["--", "python", "app.py"].map(str::to_owned)[..]));
    let program = "import boto3\n\
        client = boto3.client('s3', region_name='eu-west-1', aws_access_key_id='a', aws_secret_access_key='b')\n\
        client.put_object(Bucket='bucket', Key='empty/200', Body=b'x')\n";
    let before = scene.upstream.received().len();
    let outcome = scene.run().option(&run[1]).option(&run[2]).go(words![clients::python(), "-c", program]).ok();
    assert_eq!(outcome.report().count("injected", "503"), 2, "{}", outcome.report());
    assert_eq!(scene.upstream.received().len(), before + 1, "S3 never sees the first two");

    // The others belong to an instance with the file's rules.
    let mut started = scene.run().option("--rules").option(folder.path().join("rules.toml")).start([
        "sh",
        "-c",
        "echo ready; read line",
    ]);
    started.line("ready");
    let pid = started.pid.to_string();
    for mut words in lines {
        let of_instance = words[1] != "try";
        if of_instance {
            words.extend(["--instance".to_owned(), pid.clone()]);
        } else {
            for word in &mut words[2..] {
                *word = folder.path().join(&*word).to_string_lossy().into_owned();
            }
        }
        let said = retryscope(&words).finish(SOON).code(0);
        let expected = match words[1].as_str() {
            "list" => "S3 lists are throttled twice",
            "add" => "acts from the next attempt on",
            "off" => "off from the next attempt on",
            "reload" => "4 rules in force",
            "try" => "1 of 1 attempts would have been acted on",
            other => panic!("nobody knows what {other} should say"),
        };
        assert!(said.text().contains(expected), "{words:?}: {said}");
    }
    started.write(b"\n");
    started.close_stdin();
    started.finish().ok();
}
