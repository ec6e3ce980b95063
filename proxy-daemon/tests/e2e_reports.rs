//! Reports in every form: events as they happen, the report of a running
//! instance, of a file, and of two.
mod common;

use std::path::Path;

use common::{Finished, NAME, Outcome, Run, SOON, TestCa, Upstream, clients, run::retryscope};
use serde_json::{Value, json};

/// GETs that say which attempt of which call they are, by a real client.
fn asks(run: Run, plan: &[(&str, u32, &str)]) -> Outcome {
    let requests: Vec<Value> = plan
        .iter()
        .map(|(call, attempt, path)| {
            let headers =
                json!({"amz-sdk-invocation-id": call, "amz-sdk-request": format!("attempt={attempt}; max=3")});
            json!(["GET", format!("https://{NAME}{path}"), headers, 1])
        })
        .collect();
    run.go(words![clients::python(), clients::script("ask.py"), Value::from(requests).to_string()]).ok()
}

const PLAN: &[(&str, u32, &str)] = &[
    ("a", 1, "/hello?token=secret&a=1"),
    ("a", 2, "/hello?token=secret&a=1"),
    ("b", 1, "/other"),
    ("c", 1, "/status/404"),
];

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the events");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn every_attempt_is_an_event() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("events.jsonl");
    // What an earlier run left is no part of this one.
    std::fs::write(&file, "old\n".repeat(1000)).expect("writing");
    let run = Run::new().to(NAME, upstream.address, &ca).rule("~u /hello & ~attempt 1 => 503 retry-after 2");
    let outcome = asks(run.option("--events").option(&file), PLAN);
    let events = lines(&file);
    let report = outcome.report();
    assert_eq!(events.len() as u64, report.total("attempts") + 2);
    assert_eq!((&events[0]["type"], &events[0]["seed"]), (&json!("start"), &report.0["seed"]));
    assert_eq!(events[5], json!({"v": 1, "type": "end", "attempts": 4, "dropped": 0}));
    let url = format!("https://{NAME}/hello?token=REDACTED&a=1");
    let first = &events[1];
    for (field, expected) in [
        ("type", json!("attempt")),
        ("url", json!(url)),
        ("attempt", json!(1)),
        ("status", json!(200)),
        ("told", json!(503)),
        ("class", json!("server_error")),
        ("retry_after_ms", json!(2000.0)),
        ("evidence", json!("exact")),
        ("waited_ms", Value::Null),
    ] {
        assert_eq!(first[field], expected, "{field}: {first}");
    }
    let second = &events[2];
    assert_eq!((&second["call"], &second["attempt"]), (&first["call"], &json!(2)));
    let waited = second["waited_ms"].as_f64().expect("a wait");
    assert!((waited - report.0["totals"]["backoff"]["total_ms"].as_f64().unwrap_or(-1.0)).abs() < 0.01, "{second}");
    assert_eq!(second["waited_for_rule"], true);
    assert_eq!(events[4]["class"], "client_error");

    // Rules can be tried on it.
    let rules = folder.path().join("rules.toml");
    std::fs::write(&rules, "[[rule]]\nwhen = \"~attempt 2\"\nthen = { status = 500 }\n").expect("writing");
    let tried = retryscope([Path::new("rules"), Path::new("try"), &rules, &file]).finish(SOON).code(0);
    assert!(tried.text().contains("1 of 4 attempts would have been acted on"), "{tried}");
}

#[test]
fn events_that_cannot_be_written() {
    let outcome = Run::new().no_report().option("--events").option("/nowhere/events").go(["echo", "started"]).code(73);
    assert!(outcome.stderr.contains("/nowhere/events") && outcome.stderr.contains("--events"), "{}", outcome.finished);
    assert!(outcome.stdout.is_empty());
    // A full disk harms nobody but the file.
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option("--events").option("/dev/full");
    let report = asks(run, PLAN).report();
    assert_eq!(report.total("attempts"), 4);
    let notes = report.0["notes"].to_string();
    assert!(notes.contains("The file of --events is not complete"), "{notes}");
}

fn shown(words: &[&str]) -> Finished {
    let mut running = retryscope([&["report"], words].concat());
    running.close_stdin();
    running.finish(SOON)
}

#[test]
fn a_running_instance_is_asked() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/hello");
    let script = "curl -sS \"$1\" > /dev/null; echo asked; read line; curl -sS \"$1\" > /dev/null";
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words!["sh", "-c", script, "sh", url]);
    started.line("asked");
    let pid = started.pid.to_string();
    let text = shown(&["--instance", &pid]).code(0).text();
    assert!(text.contains("GET upstream.test/hello") || text.contains("/hello"), "{text}");
    assert!(text.contains(&format!("the instance with pid {pid} is running")), "{text}");
    let document = shown(&["--instance", &pid, "--report", "json"]).code(0).json();
    assert_eq!(document["totals"]["attempts"], 1, "{document}");
    assert_eq!(document["command"].as_str().map(|command| command.contains("read line")), Some(true));

    // Watched until its end.
    let watching = retryscope(["report", "--watch", "1", "--instance", &pid]);
    watching.line("is running");
    started.write(b"\n");
    started.close_stdin();
    started.finish().ok();
    let watched = watching.finish(SOON).code(0).text();
    assert!(watched.ends_with("The instance has ended; it has told its report.\n"), "{watched}");
    let nobody = shown(&["--instance", &pid]);
    assert!([64, 69].contains(&nobody.code), "{nobody}");
}

#[test]
fn files_are_shown_and_compared() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for (name, rules) in [("before.json", &["~u /hello & ~attempt 1 => 429"][..]), ("after.json", &[])] {
        let run = rules.iter().fold(Run::new().to(NAME, upstream.address, &ca), |run, rule| run.rule(rule));
        let plan = if rules.is_empty() { &PLAN[2..] } else { PLAN };
        let path = folder.path().join(name);
        std::fs::write(&path, asks(run, plan).report().0.to_string()).expect("writing a report");
        files.push(path.to_string_lossy().into_owned());
    }
    let text = shown(&[&files[0]]).code(0).text();
    assert!(text.contains("1 of 3 calls was") && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let diff = shown(&["--diff", &files[0], &files[1]]).code(0).text();
    assert!(diff.starts_with("Retries fell from 1 to 0 (-100 %);"), "{diff}");
    assert!(diff.lines().all(|line| line.chars().count() <= 80), "{diff}");
    let document = shown(&["--diff", &files[0], &files[1], "--report", "json"]).code(0).json();
    assert_eq!(document["totals"]["throttled"]["before"], 1.0, "{document}");
    assert_eq!(document["operations"][0]["retries"], json!({"before": 1.0, "after": 0.0}), "{document}");

    let broken = folder.path().join("broken.json");
    for (content, code, part) in [
        ("{", 65, "is no report of retryscope"),
        ("{\"schema\": 99}", 65, "has the form 99"),
        ("{\"schema\": 1}", 65, "is no report of retryscope"),
    ] {
        std::fs::write(&broken, content).expect("writing");
        let said = shown(&[&broken.to_string_lossy()]).code(code);
        assert!(said.stderr.contains(part) && said.stderr.lines().count() == 1, "{said}");
    }
    let missing = shown(&["/nowhere.json"]).code(64);
    assert!(missing.stderr.contains("cannot read the report /nowhere.json"), "{missing}");
}
