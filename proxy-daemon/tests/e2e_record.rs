//! Recordings: what is in them, for us and for other readers; what is not;
//! and that a kill, a full disk or a flood leaves them readable.
mod common;

use std::{
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    Finished, Loop, NAME, Outcome, Report, Run, SOON, Site, TestCa, TestCgroup, Upstream, clients,
    run::retryscope,
    servers::{AWS, Moto},
    until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder")
}

/// Requests by a client that sends what it is told: [METHOD, PATH, HEADERS].
fn asks(run: Run, plan: &[(&str, &str, Value)]) -> Outcome {
    let requests: Vec<Value> = plan
        .iter()
        .map(|(method, path, headers)| json!([method, format!("https://{NAME}{path}"), headers, 1]))
        .collect();
    run.go(words![clients::python(), clients::script("ask.py"), Value::from(requests).to_string()]).ok()
}

fn call(id: &str, attempt: u32) -> Value {
    json!({"amz-sdk-invocation-id": id, "amz-sdk-request": format!("attempt={attempt}; max=3")})
}

fn save(run: Run, file: &Path) -> Run {
    run.option("--save").option(file)
}

fn har(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the recording");
    let har: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(har["log"]["version"], "1.2");
    har["log"]["entries"].as_array().expect("entries").clone()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the recording");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    lines.filter(|line: &Value| line["type"] == "attempt").collect()
}

fn told(words: Vec<OsString>) -> Finished {
    let mut running = retryscope(words);
    running.close_stdin();
    running.finish(SOON)
}

/// Everything that a report says of calls and attempts, and of time but to
/// what microseconds are lost.
fn essence(report: &Value) -> Value {
    let totals = &report["totals"];
    let mut kept = serde_json::Map::new();
    for name in [
        "processes",
        "calls",
        "calls_retried",
        "attempts",
        "attempts_unlinked",
        "retries",
        "retries_exact",
        "retries_inferred",
        "give_ups",
        "classes",
        "codes",
        "statuses",
        "injected",
        "replaced",
        "aborted",
        "errors",
        "sent_bytes",
        "received_bytes",
        "retry_after",
    ] {
        kept.insert(name.to_owned(), totals[name].clone());
    }
    kept.insert("backoff".into(), json!(totals["backoff"]["count"]));
    let operations = report["processes"].as_array().into_iter().flatten().flat_map(|it| it["operations"].as_array());
    let mut names: Vec<_> = operations.flatten().map(|it| format!("{} {}", it["service"], it["operation"])).collect();
    names.sort();
    kept.insert("operations".into(), json!(names));
    Value::Object(kept)
}

/// Of an instance and of its recording, the report is the same.
#[track_caller]
fn reports_the_same(file: &Path, report: &Report) {
    let again = told(words!["report", file, "--report", "json"]).ok().json();
    assert_eq!(essence(&again), essence(&report.0), "{again}\n{report}");
    let backoff = |report: &Value| report["totals"]["backoff"]["total_ms"].as_f64().expect("a time");
    let stalled = |report: &Value| report["totals"]["stalled_ms"].as_f64().expect("a time");
    let close = |a: f64, b: f64| (a - b).abs() < 0.1;
    assert!(
        close(backoff(&again), backoff(&report.0)) && close(stalled(&again), stalled(&report.0)),
        "{again}\n{report}"
    );
}

fn boto(run: Run, address: std::net::SocketAddr, rules: &[&str]) -> Outcome {
    let run = AWS.iter().fold(run, |run, name| run.map_host(name, address));
    let run = rules.iter().fold(run, |run, rule| run.rule(rule));
    let plan = json!({
        "sleep_scale": 0.1,
        "clients": {"s3": {"retries": {"mode": "standard"}}},
        "calls": [
            ["s3", "list_buckets", {}],
            ["s3", "put_object", {"Bucket": "bucket", "Key": "written", "Body": "some words"}],
            ["dynamodb", "put_item", {"TableName": "table", "Item": {"id": {"S": "second"}}}],
        ],
    });
    run.go(words![clients::python(), clients::script("boto_truth.py"), plan.to_string()]).ok()
}

/// The README's scene with boto3: both forms hold what the report tells.
#[test]
fn boto3_is_recorded() {
    let (folder, moto) = (folder(), Moto::shared());
    for name in ["a.har", "a.jsonl"] {
        let file = folder.path().join(name);
        let run = save(Run::new().upstream_ca(&moto.ca.pem()), &file).option("--save-bodies");
        let outcome = boto(run, moto.address, &["~svc s3 & ~s & ~attempt ..2 => 429"]);
        let report = outcome.report();
        reports_the_same(&file, &report);
        let shown = told(words!["show", &file]).ok().text();
        assert_eq!(shown.lines().count() as u64, report.total("attempts"), "{shown}");
        assert!(shown.contains("s3.ListBuckets") && shown.contains("200→429"), "{shown}");
        let third = told(words!["show", &file, "~op ListBuckets & ~attempt 3"]).ok().text();
        assert!(third.lines().count() == 1 && third.contains(" +") && !third.contains("429"), "{third}");
        let id: usize = third.split_whitespace().next().expect("a number").parse().expect("a number");
        let full = told(words!["show", &file, "--id", id.to_string()]).ok().text();
        for part in
            ["of call", "boto_truth.py", "because of a rule", "AWS4-HMAC-SHA256 REDACTED", "ListAllMyBucketsResult"]
        {
            assert!(full.contains(part), "{part}: {full}");
        }
    }
}

const PLAN: &[(&str, &str)] =
    &[("GET", "/hello?a=1"), ("POST", "/echo"), ("GET", "/bytes/70000?chunked"), ("GET", "/status/404")];

/// One entry of each kind of end, by four clients and two protocols.
#[test]
fn other_readers_find_the_same() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.har");
    let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies=1k");
    // Nobody listens there.
    let nobody = common::own_address(443);
    let run = run
        .map_host("nobody.test", nobody)
        .rule("~u /told => 503 retry-after 2")
        .rule("~u /broken => reset")
        .rule("~u /synthetic => s3-slowdown");
    let script = format!(
        "set -u; c() {{ curl -sS -o /dev/null \"$@\"; }}; \
         c --http1.1 'https://{NAME}/hello?a=1'; c https://{NAME}/bytes/5000; c -d some=words https://{NAME}/echo; \
         c --http1.1 --compressed https://{NAME}/status/404; c https://{NAME}/told; c --http1.1 https://{NAME}/broken; \
         c https://{NAME}/synthetic; c -I https://{NAME}/bytes/100; c https://nobody.test/; \
         c --max-time 0.5 https://{NAME}/drip; \
         \"$1\" \"$2\" https://{NAME}/bytes/70000?chunked; \"$3\" \"$4\" \"$5\"; true"
    );
    let requests: Vec<Value> =
        PLAN.iter().map(|(method, path)| json!([method, format!("https://{NAME}{path}"), {}, 1])).collect();
    let words = words![
        "/bin/sh",
        "-c",
        script,
        "sh",
        clients::node(),
        clients::script("fetch.mjs"),
        clients::python(),
        clients::script("ask.py"),
        Value::from(requests).to_string(),
    ];
    let outcome = run.go(words).ok();
    let report = outcome.report();
    let entries = har(&file);
    assert_eq!(entries.len() as u64, report.total("attempts"), "{report}");
    assert_eq!(entries.len(), 11 + PLAN.len(), "{}", outcome.finished);
    reports_the_same(&file, &report);

    let ours: Vec<(String, String, u64, f64, f64)> = entries
        .iter()
        .map(|entry| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let began = humantime::parse_rfc3339(&text(&entry["startedDateTime"])).expect("a time");
            let began = began.duration_since(std::time::UNIX_EPOCH).expect("later").as_secs_f64();
            let parts = ["send", "wait", "receive"].map(|part| entry["timings"][part].as_f64().expect("a time"));
            let took = entry["time"].as_f64().expect("a time");
            assert!(
                parts.iter().all(|part| *part >= 0.0) && (parts.iter().sum::<f64>() - took).abs() < 1e-3,
                "{entry}"
            );
            let method = text(&entry["request"]["method"]);
            let url = if method == "CONNECT" { String::new() } else { text(&entry["request"]["url"]) };
            (method, url, entry["response"]["status"].as_u64().expect("a status"), began, took)
        })
        .collect();
    let read = clients::bare(Command::new(clients::readers_python()).arg(clients::script("har_readers.py")).arg(&file));
    let read = read.finish(Duration::from_secs(60)).ok().json();
    for reader in ["mitmproxy", "haralyzer"] {
        let theirs = read[reader].as_array().expect("entries");
        assert_eq!(theirs.len(), ours.len(), "{reader}: {read}");
        for (their, our) in theirs.iter().zip(&ours) {
            assert_eq!((&their[0], &their[1], &their[2]), (&json!(our.0), &json!(our.1), &json!(our.2)), "{reader}");
            let close = |value: &Value, ours: f64, to: f64| (value.as_f64().expect("a number") - ours).abs() < to;
            assert!(close(&their[3], our.3, 2e-6) && close(&their[4], our.4, 2e-3), "{reader}: {their} {our:?}");
        }
    }
    // What the bodies are, also to mitmproxy.
    let bodies = read["bodies"].as_array().expect("bodies");
    assert!(bodies.contains(&json!("hello from /hello\n")) && bodies.contains(&json!("some=words")), "{bodies:?}");

    let find = |path: &str| {
        let found = entries.iter().find(|entry| entry["request"]["url"] == format!("https://{NAME}{path}"));
        found.unwrap_or_else(|| panic!("no {path}: {entries:?}"))
    };
    let told = find("/told");
    assert_eq!((&told["response"]["status"], &told["_retryscope"]["status"]), (&json!(503), &json!(200)));
    let names = |entry: &Value| entry["response"]["headers"].to_string();
    assert!(names(told).contains("retry-after") && names(told).contains("x-retryscope-rule"), "{told}");
    assert_eq!(find("/broken")["response"]["status"], 0);
    assert_eq!(find("/broken")["response"]["_error"], "reset");
    assert_eq!(find("/synthetic")["response"]["status"], 503);
    assert_eq!(find("/synthetic")["_retryscope"]["status"], Value::Null);
    assert!(find("/synthetic")["response"]["content"]["text"].as_str().expect("a body").contains("SlowDown"));
    assert_eq!(
        (&find("/drip")["response"]["status"], &find("/drip")["response"]["_error"]),
        (&json!(200), &json!("cancelled"))
    );
    assert_eq!(find("/bytes/5000")["request"]["httpVersion"], "HTTP/2");
    assert_eq!(find("/hello?a=1")["request"]["httpVersion"], "HTTP/1.1");
    let cut = find("/bytes/70000?chunked");
    assert_eq!(cut["_retryscope"]["response_body"]["missing"], 70_000 - 1024, "{}", cut["_retryscope"]);
    assert_eq!(cut["response"]["content"]["encoding"], "base64");
    let connect = entries.iter().find(|entry| entry["request"]["method"] == "CONNECT").expect("nobody.test");
    assert_eq!(connect["response"]["_error"], "refused");
    assert!(entries.iter().all(|entry| entry["_retryscope"]["pid"].as_u64().is_some_and(|pid| pid > 1)));
}

/// Each secret stands for itself in the file, or does not.
#[test]
fn secrets_are_left_out() {
    const HUSH: &str = "hushhush";
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let fields: &[(&str, &str)] = &[
        ("Authorization", "Bearer hushhush-bearer"),
        ("Authorization", "AWS4-HMAC-SHA256 Credential=hushhush-key/1/s3/aws4_request, Signature=hushhush-sig"),
        ("Proxy-Authorization", "Basic hushhush-basic"),
        ("Cookie", "session=hushhush-cookie; theme=hushhush-theme"),
        ("X-Amz-Security-Token", "hushhush-token"),
        ("X-Api-Key", "hushhush-apikey"),
        ("X-Goog-Api-Key", "hushhush-google"),
        ("Api-Key", "hushhush-azure"),
        ("X-Auth-Token", "hushhush-auth"),
        ("Referer", "https://a.test/?sig=hushhush-referer"),
    ];
    let queries = [
        "X-Amz-Signature=hushhush-1&X-Amz-Credential=hushhush-2&X-Amz-Security-Token=hushhush-3",
        "sig=hushhush-4&se=2026",
        "AWSAccessKeyId=hushhush-5&Signature=hushhush-6",
        "access_token=hushhush-7&api_key=hushhush-8",
        "key=hushhush-9",
    ];
    let bodies: &[(&str, &str)] = &[
        ("application/json", r#"{"access_token": "hushhush-a", "refresh_token": "hushhush-b", "user": "me"}"#),
        ("application/json", r#"{"Credentials": {"SecretAccessKey": "hushhush-c", "SessionToken": "hushhush-d"}}"#),
        ("application/json", r#"{"password": "hushhush-e"}"#),
        (
            "text/xml",
            "<Credentials><SecretAccessKey>hushhush-f</SecretAccessKey><SessionToken>hushhush-g</SessionToken></Credentials>",
        ),
        ("application/x-www-form-urlencoded", "grant_type=password&password=hushhush-h&client_secret=hushhush-i"),
    ];
    let mut script = "set -eu; c() { curl -sS -o /dev/null \"$@\"; }\n".to_owned();
    for http in ["--http1.1", "--http2"] {
        for (name, value) in fields {
            script.push_str(&format!("c {http} -H '{name}: {value}' https://{NAME}/field\n"));
        }
        for query in queries {
            script.push_str(&format!("c {http} 'https://{NAME}/query?a=1&{query}'\n"));
        }
        for (kind, body) in bodies {
            // The answer has it as well; once in pieces.
            script.push_str(&format!("c {http} -H 'Content-Type: {kind}' -d '{body}' https://{NAME}/echo\n"));
            script.push_str(&format!(
                "printf %s '{body}' | c {http} -H 'Content-Type: {kind}' -H 'Transfer-Encoding: chunked' -X POST -T - https://{NAME}/echo\n"
            ));
        }
        script.push_str(&format!("c {http} -u me:hushhush-user https://{NAME}/field\n"));
    }
    let asked = 2 * (fields.len() + queries.len() + 2 * bodies.len() + 1);
    for name in ["a.har", "a.jsonl"] {
        let file = folder.path().join(name);
        let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies");
        run.go(["/bin/sh", "-c", &script]).ok();
        let text = std::fs::read_to_string(&file).expect("the recording");
        let count = if name == "a.har" { har(&file).len() } else { lines(&file).len() };
        assert_eq!(count, asked);
        let left: Vec<&str> = text.match_indices(HUSH).map(|(at, _)| &text[at.saturating_sub(60)..at + 20]).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
        // What is no secret stays, and what is one has its place.
        for part in [
            "Bearer REDACTED",
            "AWS4-HMAC-SHA256 REDACTED",
            "session=REDACTED",
            "sig=REDACTED&se=2026",
            "grant_type=password",
        ] {
            assert!(text.contains(part), "{name}: {part}");
        }
        // The upstream's own cookies.
        assert!(text.contains("a=REDACTED") && !text.contains("\"a=1\""), "{name}");
        let mode = std::fs::metadata(&file).expect("the recording").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let file = folder.path().join("all.har");
    let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies").option("--save-secrets");
    run.go(["/bin/sh", "-c", &script]).ok();
    let text = std::fs::read_to_string(&file).expect("the recording");
    for secret in ["bearer", "sig", "cookie", "token", "apikey", "1", "5", "9", "a", "c", "g", "i"] {
        assert!(text.contains(&format!("{HUSH}-{secret}")), "{secret}");
    }
    assert!(!text.contains("REDACTED"));
}

/// Under load, at any moment: what is in the file can be read.
#[test]
fn a_kill_leaves_a_readable_file() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let rounds = std::env::var("RETRYSCOPE_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    for round in 0..rounds {
        let name = if round % 3 == 2 { "jsonl" } else { "har" };
        let file = folder.path().join(format!("{round}.{name}"));
        let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies=1m").no_report();
        let script = format!(
            "while :; do curl -sS -Z --http1.1 $(for i in 1 2 3 4 5 6 7 8 9; do echo -o /dev/null https://{NAME}/bytes/${{i}}0007; done); done"
        );
        let mut run = run.start(["/bin/sh", "-c", &script]);
        until("there are attempts in the file", SOON, || {
            std::fs::metadata(&file).is_ok_and(|about| about.len() > 500_000 + round * 100_003).then_some(())
        });
        let command = common::process::descendants(run.pid);
        run.signal(Signal::SIGKILL);
        run.close_stdin();
        // The command goes on without us, until it is ended as well.
        let shells = command
            .iter()
            .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/bin/sh")));
        shells.for_each(|pid| {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        });
        run.finish();
        let mut attempts = 0;
        // Whoever cleans up after a kill mends what it has torn.
        until("the file can be read", SOON, || {
            let text = std::fs::read_to_string(&file).expect("the recording");
            attempts = match name {
                "har" => serde_json::from_str::<Value>(&text).ok()?["log"]["entries"].as_array()?.len(),
                _ => {
                    let lines: Option<Vec<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
                    lines.filter(|_| text.ends_with('\n'))?.len() - 1
                }
            };
            Some(())
        });
        assert!(attempts >= 4, "{attempts}");
        let shown = told(words!["show", &file]).ok();
        assert_eq!(shown.text().lines().count(), attempts, "{shown}");
        assert!(shown.stderr.contains("had not ended in order"), "{shown}");
    }
}

/// A disk that is full harms nobody but the file, and that can be read.
#[test]
fn a_full_disk() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let small = Mounted::new(folder.path().join("small"));
    for name in ["a.har", "a.jsonl"] {
        let file = small.0.join(name);
        let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies=1m");
        let script =
            format!("for i in 1 2 3 4 5 6 7 8 9; do curl -sS -o /dev/null --http1.1 https://{NAME}/bytes/30000; done");
        let outcome = run.go(["/bin/sh", "-c", &script]).ok();
        let report = outcome.report();
        assert_eq!(report.total("attempts"), 9);
        let said: Vec<&str> =
            outcome.stderr.lines().filter(|line| line.contains("has ended before its time")).collect();
        assert_eq!(said.len(), 1, "{}", outcome.finished);
        assert!(report.0["notes"].to_string().contains("No space left on device"), "{report}");
        let kept = if name == "a.har" { har(&file).len() } else { lines(&file).len() };
        assert!((1..9).contains(&kept), "{kept}");
        std::fs::remove_file(&file).expect("removed");
    }
}

/// A file system of 128 KiB.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir(&path).expect("a folder");
        let kind: Option<&str> = Some("tmpfs");
        nix::mount::mount(kind, &path, kind, nix::mount::MsFlags::empty(), Some("size=128k")).expect("a tmpfs");
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Files that are there already, or are none.
#[test]
fn files_that_are_not_recorded_to() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("old.har"), "old").expect("written");
    std::os::unix::fs::symlink(path("old.har"), path("link.har")).expect("a link");
    std::os::unix::fs::symlink(path("nothing.har"), path("dangling.har")).expect("a link");
    for (file, code, part) in [
        (path("old.har"), 73, "it is there already"),
        (path("link.har"), 73, "symbolic link"),
        (path("dangling.har"), 73, "symbolic link"),
        (path("no/folder.har"), 73, "No such file"),
        (path("recording.txt"), 64, "name it FILE.har or FILE.jsonl"),
    ] {
        let said = told(words!["run", "--save", &file, "--", "echo", "started"]).code(code);
        assert!(said.stderr.contains(part) && said.stderr.lines().count() == 1 && said.stdout.is_empty(), "{said}");
    }
    let said = told(words!["run", "--save", path("old.har"), "--save-append", "--", "echo", "started"]).code(73);
    assert!(said.stderr.contains("was not recorded by retryscope"), "{said}");
    assert_eq!(std::fs::read_to_string(path("old.har")).expect("read"), "old");
    assert!(!path("nothing.har").exists());
    let said = told(words!["run", "--save", path("a.har"), "--save-bodies=9m", "--", "true"]).code(64);
    assert!(said.stderr.contains("a number of bytes"), "{said}");
}

/// A second run adds to the first one's file, and calls stay apart.
#[test]
fn a_recording_is_added_to() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    for name in ["a.har", "a.jsonl"] {
        let file = folder.path().join(name);
        for append in [false, true] {
            let run = save(Run::new().to(NAME, upstream.address, &ca), &file).rule("~attempt 1 => 503");
            let run = if append { run.option("--save-append") } else { run };
            let plan = [("GET", "/hello", call("a", 1)), ("GET", "/hello", call("a", 2))];
            asks(run, &plan);
        }
        let report = Report(told(words!["report", &file, "--report", "json"]).ok().json());
        assert_eq!((report.total("calls"), report.total("attempts"), report.total("retries")), (2, 4, 2), "{report}");
    }
}

/// What botocore's hooks saw: operation, number and outcome of each attempt.
fn seen(outcome: &Outcome) -> Vec<Value> {
    let truth = outcome.json();
    let rows = truth["attempts"].as_array().expect("attempts").iter();
    rows.map(|row| json!([row[1], row[3], row[4]])).collect()
}

/// boto3 cannot tell: no server runs, and it sees what it saw before.
#[test]
fn boto3_is_answered_from_a_recording() {
    let (folder, moto) = (folder(), Moto::shared());
    let nobody = common::own_address(443);
    for name in ["a.har", "a.jsonl"] {
        let file = folder.path().join(name);
        let run = save(Run::new().upstream_ca(&moto.ca.pem()), &file).option("--save-bodies");
        let first = boto(run, moto.address, &["~svc s3 & ~s & ~attempt ..2 => 429"]);
        let again = boto(Run::new().option("--answer-from").option(&file), nobody, &[]);
        assert_eq!(seen(&again), seen(&first), "{}", again.finished);
        let (report, before) = (again.report(), first.report());
        for total in ["calls", "attempts", "retries"] {
            assert_eq!(report.total(total), before.total(total), "{report}");
        }
        let fidelity = report.0["fidelity"].to_string();
        assert!(
            fidelity.contains("came out of the recording of --answer-from") && !fidelity.contains("501"),
            "{fidelity}"
        );
    }
}

/// By both protocols, in order, with what is missing said to be so; and rules
/// act on it.
#[test]
fn answers_come_from_a_recording() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.jsonl");
    let get = "g() { curl -sS -w '%{http_code} %{http_version}\n' \"$@\"; echo; }\n".to_owned();
    let script = format!(
        "{get}g https://{NAME}/hello; g --http1.1 https://{NAME}/hello; g -I https://{NAME}/bytes/100 | grep -i content-length; \
         g -d a=b https://{NAME}/echo; g --compressed -o /dev/null https://{NAME}/bytes/70000?chunked; g https://{NAME}/status/404; \
         g --http1.1 https://{NAME}/broken; g --http1.1 https://{NAME}/empty/204; true"
    );
    let recorded = save(Run::new().to(NAME, upstream.address, &ca), &file)
        .rule("~u /hello => 503 times 1 per rule")
        .rule("~u /broken => reset")
        .option("--save-bodies=1m");
    let before = recorded.go(["/bin/sh", "-c", &script]).ok();
    drop(upstream);
    let nobody = common::own_address(443);
    let answering = || Run::new().map_host(NAME, nobody).option("--answer-from").option(&file);
    let again = answering().go(["/bin/sh", "-c", &script]).ok();
    // Only how the broken one is told differs: by which library.
    assert_eq!(again.text(), before.text(), "{}\n{}", again.finished, before.finished);
    assert!(before.text().contains("503") && before.text().contains("hello from /hello\n200"), "{}", before.text());

    let missing = format!(
        "{get}g https://{NAME}/other; g --http1.1 -d b=c https://{NAME}/echo; g https://{NAME}/status/404; true"
    );
    let outcome = answering().rule("~c 404 => 418").go(["/bin/sh", "-c", &missing]).ok();
    let text = outcome.text();
    assert!(text.contains(&format!("GET https://{NAME}/other is not in the recording.\n501 2")), "{text}");
    assert!(text.contains("/echo is not in the recording.\n501 1.1") && text.contains("418 2"), "{text}");
    let report = outcome.report();
    let fidelity = report.0["fidelity"].to_string();
    assert!(
        fidelity.contains("2\u{a0}requests were not in the recording") || fidelity.contains("2 requests were not"),
        "{fidelity}"
    );
    assert_eq!(report.total("attempts"), 3);
}

/// What the recording has comes out of it; everything else is the service's own,
/// whole in both directions, and counted.
#[test]
fn what_a_recording_lacks_is_asked_of_the_upstream() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.jsonl");
    let script = format!("curl -sS https://{NAME}/hello; curl -sS --http1.1 -d known https://{NAME}/echo");
    let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies=1m");
    run.go(["/bin/sh", "-c", &script]).ok();
    let before = upstream.received().len();
    std::fs::write(folder.path().join("big"), common::pattern(3_000_000)).expect("a file");
    let get = "g() { curl -sS -w '%{http_code} %{http_version} %header{x-retryscope-recording}\n' \"$@\"; }\n";
    let mut script = get.to_owned();
    for protocol in ["--http1.1", "--http2"] {
        for words in [
            "{N}/hello",
            "-d known {N}/echo",
            "-d other {N}/echo",
            "--data-binary @big -o big-again {N}/echo",
            "-o some {N}/bytes/2000000?chunked",
            "{N}/status/404",
            "-I {N}/bytes/100",
            "{N}/trailers -o /dev/null",
        ] {
            script += &format!("g {protocol} {}\n", words.replace("{N}", &format!("https://{NAME}")));
        }
        script += "cmp big big-again && wc -c <some\n";
    }
    // Several at a time, on one connection.
    script +=
        &format!("curl -sS --http2 -Z -o /dev/null -o /dev/null -o /dev/null https://{NAME}/bytes/[100000-100002]");
    let run = Run::new().to(NAME, upstream.address, &ca).option("--answer-from").option(&file);
    let outcome = run.option("--answer-missing=upstream").cwd(folder.path()).go(["/bin/sh", "-c", &script]).ok();
    let text = outcome.text();
    for version in ["1.1", "2"] {
        for part in [
            "hello from /hello\n200 {V} 1",
            "known200 {V} 2",
            "other200 {V} upstream",
            "this is /status/404\n404 {V} upstream",
        ] {
            assert!(text.contains(&part.replace("{V}", version)), "{part}: {text}");
        }
    }
    assert_eq!((text.matches("2000000\n").count(), text.matches("content-length: 100\r\n").count()), (2, 2), "{text}");
    let received = upstream.received().split_off(before);
    // Per protocol all but the first two.
    assert_eq!(received.len(), 2 * 6 + 3, "{received:?}");
    assert!(received.iter().all(|it| it.target != "/hello"), "{received:?}");
    let big = common::sha256(&common::pattern(3_000_000));
    assert_eq!(received.iter().filter(|it| it.body_sha256 == big).count(), 2);
    let report = outcome.report();
    let count = |part: &str| {
        let rows = report.0["fidelity"].as_array().into_iter().flatten();
        let mut rows = rows.filter(|row| row["text"].as_str().is_some_and(|text| text.contains(part)));
        rows.next().and_then(|row| row["count"].as_u64())
    };
    assert_eq!(
        (count("came out of the recording"), count("passed on to the upstream")),
        (Some(4), Some(15)),
        "{report}"
    );
    assert_eq!(report.total("attempts"), 19, "{report}");

    // Nobody there: as where a recording has a failure.
    drop(upstream);
    let run = Run::new().map_host(NAME, common::own_address(443)).option("--answer-from").option(&file);
    let refused =
        run.option("--answer-missing=upstream").go(words![clients::curl(), "-sS", format!("https://{NAME}/x")]);
    assert!(refused.finished.code != 0 && refused.report().total("attempts") == 1, "{}", refused.finished);
    let alone = told(words!["run", "--answer-missing=upstream", "--", "true"]).code(64);
    assert!(alone.stderr.contains("--answer-from"), "{alone}");
}

#[test]
fn requests_are_sent_again() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.har");
    let run = save(Run::new().to(NAME, upstream.address, &ca), &file).option("--save-bodies=1m");
    let script = format!(
        "c() {{ curl -sS -o /dev/null \"$@\"; }}; c https://{NAME}/hello; c --http1.1 https://{NAME}/bytes/5000; c https://{NAME}/status/404; \
         c -H 'Authorization: Bearer hushhush' 'https://{NAME}/hello?a=1&sig=hush'; c -d some=words https://{NAME}/echo; c -X PUT -d put https://{NAME}/sink"
    );
    run.go(["/bin/sh", "-c", &script]).ok();
    let map = format!("{NAME}={}", upstream.address);
    let replay = |file: &Path, more: &[&str]| {
        let mut words = words!["replay", file, "--map-host", &map, "--upstream-ca", ca.pem()];
        words.extend(more.iter().map(OsString::from));
        told(words)
    };
    let before = upstream.received().len();
    // What is dangerous is refused, before anything is sent.
    for (more, part) in [
        (&["--yes"][..], "1 of the 6 attempts are POST"),
        (&["!~m POST"], "add --yes"),
        (&["~m TRACE", "--yes"], "no attempt matches"),
        (&["--yes", "--header", "nonsense", "!~m POST"], "is not 'NAME: VALUE'"),
    ] {
        let said = replay(&file, more).code(64);
        assert!(said.stderr.contains(part), "{said}");
    }
    assert_eq!(upstream.received().len(), before);

    let same = replay(&file, &["--all-methods", "--yes", "--times", "2", "--rate", "1000"]).ok();
    assert!(same.stderr.contains("12 requests sent: 12 answered as recorded, 0 otherwise"), "{same}");
    assert!(same.stderr.contains("authorization, sig in the URL"), "{same}");
    assert_eq!(same.text().lines().filter(|line| line.ends_with("  same")).count(), 12, "{same}");
    let received = upstream.received().split_off(before);
    let sent: Vec<(&str, &str, bool, u64)> =
        received.iter().take(6).map(|it| (&*it.method, &*it.target, it.http2, it.body_length)).collect();
    let expected = [
        ("GET", "/hello", true, 0),
        ("GET", "/bytes/5000", false, 0),
        ("GET", "/status/404", true, 0),
        ("GET", "/hello?a=1", true, 0),
        ("POST", "/echo", true, 10),
        ("PUT", "/sink", true, 3),
    ];
    assert_eq!(sent, expected);
    assert!(received.iter().all(|it| it.header("authorization").is_none()));
    assert!(received[0].header("user-agent").is_some_and(|agent| agent.starts_with("curl/")), "{:?}", received[0]);

    let given = replay(&file, &["~u sig", "--yes", "--header", "Authorization: Bearer mine"]).ok();
    assert_eq!(
        upstream.received().last().and_then(|it| it.header("authorization").map(str::to_owned)).as_deref(),
        Some("Bearer mine"),
        "{given}"
    );

    // Somebody has changed the recording: then the answers are others.
    let other = folder.path().join("other.har");
    let text = std::fs::read_to_string(&file).expect("the recording");
    let changed = text.replace("hello from /hello", "hello from elsewhere").replace("\"status\":404", "\"status\":200");
    std::fs::write(&other, changed).expect("written");
    let differs = replay(&other, &["!~m POST & !~m PUT", "--yes"]).code(1);
    assert!(differs.stderr.contains("4 requests sent: 1 answered as recorded, 3 otherwise"), "{differs}");
    assert!(
        differs.text().contains("status 200 has become 404")
            && differs.text().contains("the body's 21 bytes have become 18"),
        "{differs}"
    );

    // Nobody is believed who cannot prove who he is.
    let distrusted = told(words!["replay", &file, "~u bytes", "--map-host", &map, "--yes"]).code(1);
    assert!(distrusted.text().contains("200 has become:") && distrusted.text().contains("certificate"), "{distrusted}");
    // Everything somewhere else, under the recorded name.
    let second = Upstream::start(&ca);
    let to = second.address.to_string();
    told(words!["replay", &file, "~u bytes", "--to", to, "--upstream-ca", ca.pem(), "--yes"]).ok();
    assert_eq!(second.received().len(), 1);

    // As a command: it asks for the same.
    let id = |path: &str| {
        let shown = told(words!["show", &file, "--json", path]).ok().text();
        let line: Value = serde_json::from_str(shown.lines().next().expect("one")).expect("JSON");
        line["id"].to_string()
    };
    let exported = told(words!["export", "curl", &file, "--id", id("~m PUT")]).ok().text();
    let script =
        format!("{} --resolve {NAME}:443:{} --cacert {}", exported.trim(), upstream.address.ip(), ca.pem().display());
    let ran = clients::bare(Command::new("/bin/sh").arg("-c").arg(script)).finish(SOON).ok();
    assert!(ran.text().contains("\"length\":3"), "{ran}");
    let last = upstream.received().pop().expect("a request");
    assert_eq!((&*last.method, &*last.target, last.body_length), ("PUT", "/sink", 3));
}

/// Several at a time, in both protocols: the server answers none of four before
/// all of them have come. And as far apart as they were.
#[test]
fn several_are_sent_at_a_time() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.jsonl");
    let line = |at: usize, protocol: &str| {
        format!(
            r#"{{"type":"attempt","url":"https://{NAME}/together/4?at={at}","protocol":"{protocol}","time":"2026-01-01T00:00:00.{:03}Z","status":200,"response_headers":[["server","test upstream"],["x-path","/together/4"],["set-cookie","a=1"],["set-cookie","b=2"]],"response_body":"all are here\n"}}"#,
            at * 25
        )
    };
    let map = format!("{NAME}={}", upstream.address);
    let replay = |more: &[&str]| {
        let mut words = words!["replay", &file, "--yes", "--map-host", &map, "--upstream-ca", ca.pem()];
        words.extend(more.iter().map(OsString::from));
        told(words)
    };
    for (protocol, connections) in [("http/1.1", 4), ("h2", 1)] {
        let before = (upstream.received().len(), upstream.accepted());
        let text: Vec<String> = (0..16).map(|at| line(at, protocol)).collect();
        std::fs::write(&file, text.join("\n")).expect("a file");
        let said = replay(&["--parallel", "4"]).ok();
        assert!(said.stderr.contains("16 requests sent: 16 answered as recorded"), "{said}");
        // Not more at a time than was said, and those in the order of the recording.
        let received = upstream.received().split_off(before.0);
        let at: Vec<usize> =
            received.iter().map(|it| it.target.rsplit('=').next().expect("a number").parse().expect("one")).collect();
        for (number, four) in at.chunks(4).enumerate() {
            let mut four = four.to_vec();
            four.sort_unstable();
            assert_eq!(four, (number * 4..number * 4 + 4).collect::<Vec<_>>(), "{at:?}");
        }
        assert_eq!(upstream.accepted() - before.1, connections, "{protocol}");
    }
    let began = std::time::Instant::now();
    replay(&["--parallel", "4", "--as-recorded", "--times", "2"]).ok();
    assert!(began.elapsed() >= Duration::from_millis(2 * 15 * 25), "{:?}", began.elapsed());
    let wrong = replay(&["--parallel", "0"]).code(64);
    assert!(wrong.stderr.contains("--parallel"), "{wrong}");
    let both = replay(&["--as-recorded", "--rate", "1"]).code(64);
    assert!(both.stderr.contains("--rate"), "{both}");
}

/// A daemon records without privileges, goes on where its predecessor ended,
/// and also where that was killed.
#[test]
fn a_daemon_records() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let cgroup = group.path().join("there");
    std::fs::create_dir(&cgroup).expect("a cgroup");
    let shown = cgroup.strip_prefix(common::cgroup::mount()).expect("below the mount");
    let file = site.path("attempts.har");
    let tables =
        format!("[targets]\ncgroups = [\"/{}\"]\n[recording]\nfile = \"attempts.har\"\nbodies = 100", shown.display());
    site.write("", &tables);
    for (round, ends) in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        let mut daemon = site.start();
        daemon.watches(&cgroup);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&cgroup).arg(clients::python());
        let mut client = Loop::started(command, &upstream);
        assert!(client.connects("go"));
        client.end();
        until("it is recorded", SOON, || {
            let text = std::fs::read_to_string(&file).ok()?;
            (text.matches("startedDateTime").count() == round + 1).then_some(())
        });
        let running = daemon.running.take().expect("running");
        running.signal(ends);
        running.finish(SOON);
        if ends == Signal::SIGKILL {
            // As if it had been torn.
            let mut torn = std::fs::File::options().append(true).open(&file).expect("opened");
            std::io::Write::write_all(&mut torn, b"\n,{\"startedDateTime\":").expect("written");
            let shown = told(words!["show", &file]).ok();
            assert!(shown.text().lines().count() == 2 && shown.stderr.contains("torn at its end"), "{shown}");
        }
    }
    let entries = har(&file);
    assert_eq!(entries.len(), 3);
    let report = Report(told(words!["report", &file, "--report", "json"]).ok().json());
    assert_eq!((report.total("calls"), report.total("attempts")), (3, 3), "{report}");
    let mode = std::fs::metadata(&file).expect("the recording").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    until("the cgroup is gone", SOON, || std::fs::remove_dir(&cgroup).is_ok().then_some(()));
}

/// Long bodies pass, many at a time, and only their starts are kept.
#[test]
fn long_bodies_take_no_memory() {
    /// Of bodies at one time, twice over, and what the rest takes.
    const MOST_KIB: u64 = 2 * 32 * 1024 + 96 * 1024;
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = folder();
    let file = folder.path().join("a.har");
    let big = std::fs::File::create(folder.path().join("big")).expect("a file");
    big.set_len(16 << 20).expect("a length");
    let script = format!(
        "for i in $(seq 48); do curl -sS -o /dev/null --http1.1 -T big https://{NAME}/sink & done; wait; echo sent; read end; true"
    );
    let run = save(Run::new().to(NAME, upstream.address, &ca), &file)
        .option("--save-bodies=1m")
        .option("--save-secrets")
        .cwd(folder.path());
    let mut run = run.deadline(Duration::from_secs(120)).start(["/bin/sh", "-c", &script]);
    run.line_within(Duration::from_secs(120), "sent");
    let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid)).expect("the daemon");
    let most =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(most.is_some_and(|most| most < MOST_KIB), "{status}");
    run.close_stdin();
    let report = run.finish().ok().report();
    let entries = har(&file);
    assert_eq!((entries.len() as u64, report.total("sent_bytes")), (48, 48 * (16 << 20)));
    for entry in &entries {
        let kept = entry["request"]["postData"]["text"].as_str().map_or(0, str::len) as u64;
        let missing = entry["_retryscope"]["request_body"]["missing"].as_u64().unwrap_or_default();
        assert!(kept <= 1 << 20 && kept + missing == 16 << 20, "{kept} {missing}");
    }
    assert_eq!(upstream.received().iter().filter(|it| it.body_length == 16 << 20).count(), 48);
}
