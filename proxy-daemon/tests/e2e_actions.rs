//! What rules do beyond a status, as clients see it: answers in the
//! upstream's place, aborts of every kind, delays, bodies and headers; on
//! HTTP/1.1 and HTTP/2, in both phases.
mod common;

use std::time::Duration;

use common::{NAME, Outcome, Run, TestCa, Upstream, clients};
use serde_json::Value;

const FLAGS: [&str; 2] = ["--http1.1", "--http2"];

fn run(upstream: &Upstream, ca: &TestCa, rules: &[&str]) -> Run {
    rules.iter().fold(Run::new().to(NAME, upstream.address, ca), |run, rule| run.rule(rule))
}

fn url(path: &str) -> String {
    format!("https://{NAME}{path}")
}

/// One GET by curl; its exit code and what it wrote.
fn curl(run: Run, flag: &str, path: &str) -> Outcome {
    run.go(words![clients::curl(), "-sSi", "-m", "15", flag, url(path)])
}

fn paths(upstream: &Upstream) -> Vec<String> {
    upstream.received().iter().map(|request| request.target.clone()).collect()
}

/// Each abort is the failure that curl knows, told by its own exit code.
#[test]
fn aborts_as_curl_sees_them() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    // 16 HTTP/2 framing, 18 partial file, 28 time-out, 52 empty reply, 55 and
    // 56 sending and receiving failed,
    // 92 stream error.
    for (action, codes) in [
        ("reset", [&[55, 56][..], &[55, 56]]),
        ("close", [&[52], &[16, 18, 52, 56]]),
        ("tls-alert", [&[56], &[56]]),
        ("goaway", [&[52], &[16, 18, 52, 56, 92]]),
        ("goaway no-error", [&[52], &[16, 18, 52, 56, 92]]),
        ("refused-stream", [&[56], &[92, 16, 56]]),
        ("rst-stream", [&[56], &[92]]),
        ("rst-stream cancel", [&[56], &[92]]),
        ("stall 300ms", [&[52], &[92]]),
    ] {
        for phase in ["request", "response"] {
            for (flag, codes) in FLAGS.iter().zip(codes) {
                let rule = format!("~u /bytes => {action} in {phase}");
                let seen = paths(&upstream).len();
                let outcome = curl(run(&upstream, &ca, &[&rule]), flag, "/bytes/4000");
                assert!(codes.contains(&outcome.finished.code), "{rule} {flag}: {}", outcome.finished);
                let reached = paths(&upstream).len() > seen;
                assert_eq!(reached, phase == "response", "{rule} {flag}: whether the upstream saw it");
                let report = outcome.report();
                let name = action.split(' ').next().unwrap_or_default();
                assert!(report.count("aborted", name) >= 1, "{rule} {flag}: {report}");
                assert_eq!(report.counts("errors").len(), 0, "{rule} {flag}: {report}");
            }
        }
    }
}

/// A stall holds until the client gives up, and no longer.
#[test]
fn a_stall_lasts_until_the_client_leaves() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        for phase in ["request", "response"] {
            let rule = format!("~u /bytes => stall in {phase}");
            let outcome = run(&upstream, &ca, &[&rule])
                .deadline(Duration::from_secs(30))
                .go(words![clients::curl(), "-sS", "-m", "1", flag, url("/bytes/10")])
                .code(28);
            let report = outcome.report();
            assert_eq!(report.count("aborted", "stall"), 1, "{rule} {flag}: {report}");
        }
    }
}

/// A truncated answer is short, and curl says so.
#[test]
fn truncated_answers() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (flag, code) in FLAGS.iter().zip([18, 92]) {
        for rule in [
            "~u /bytes => truncate 1000",
            "~u /bytes => 200 body \"0123456789\" truncate 4 in request",
            "~u /bytes => 200 body \"0123456789\" truncate 4 in response",
        ] {
            let outcome = run(&upstream, &ca, &[rule]).go(words![clients::curl(), "-sS", flag, url("/bytes/4000")]);
            assert_eq!(outcome.finished.code, code, "{rule} {flag}: {}", outcome.finished);
            let expected = if rule.contains("body") { 4 } else { 1000 };
            assert_eq!(outcome.stdout.len(), expected, "{rule} {flag}");
            assert_eq!(outcome.report().count("aborted", "truncate"), 1);
        }
    }
}

/// Each abort is the exception that Python's own client raises for it.
#[test]
fn aborts_as_python_sees_them() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (library, action, name, words) in [
        // Its own name for a reset, a kind of ConnectionResetError.
        ("http.client", "reset", "RemoteDisconnected", "without response"),
        ("http.client", "close", "RemoteDisconnected", "without response"),
        ("http.client", "tls-alert", "SSLError", "alert"),
        ("http.client", "truncate 5", "IncompleteRead", "5 bytes read"),
        ("http.client", "stall", "TimeoutError", "timed out"),
        ("httpx", "reset", "RemoteProtocolError", "disconnected without"),
        ("httpx", "close", "RemoteProtocolError", "disconnected without"),
        // Whichever it does first: reading, or writing its settings.
        ("httpx2", "reset", "RemoteProtocolError|WriteError|ReadError", "disconnected|EOF|reset"),
        ("httpx2", "refused-stream", "RemoteProtocolError", "error_code:7,"),
        ("httpx2", "rst-stream internal-error", "RemoteProtocolError", "error_code:2,"),
        ("httpx2", "goaway enhance-your-calm", "RemoteProtocolError", "error_code:11,"),
        ("httpx2", "stall", "ReadTimeout", "timed out"),
    ] {
        let patience = if action == "stall" { "1" } else { "15" };
        let rule = format!("~u /bytes => {action}");
        let outcome = run(&upstream, &ca, &[&rule])
            .go(words![clients::python(), clients::script("broken.py"), library, url("/bytes/4000"), patience])
            .ok();
        let got: Value = outcome.json();
        let has = |key: &str, words: &str| {
            let is = |it: &Value| it.as_str().is_some_and(|it| words.split('|').any(|word| it.contains(word)));
            got[key].as_array().is_some_and(|all| all.iter().any(is))
        };
        assert!(has("names", name) && has("said", words), "{library} {action}: {got}");
    }
}

/// An answer in the request phase: the upstream never sees the request, and
/// the connection stays in step for the next one, body or not.
#[test]
fn answers_in_the_upstreams_place() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        let seen = paths(&upstream).len();
        let run = run(
            &upstream,
            &ca,
            &[
                "~u /hello & ~q => 503 \"Slow Down\" set \"X-One: {{attempt}}\" body \"no\" in request times 2 per process",
            ],
        );
        let body = run.dir().join("body");
        std::fs::write(&body, common::pattern(3_000)).expect("a body");
        let mut data = std::ffi::OsString::from("@");
        data.push(&body);
        let command = words![
            clients::curl(),
            "-sS",
            flag,
            "-H",
            "Expect:",
            "-w",
            "|%{http_code} %{num_connects} %header{x-one} %header{content-length}\n",
            "--data-binary",
            data,
            url("/hello?1"),
            url("/hello?2"),
            url("/sink"),
        ];
        let outcome = run.go(command).ok();
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "no|503 1 1 2", "{flag}: {}", outcome.finished);
        assert_eq!(lines[1], "no|503 0 1 2", "{flag}: {}", outcome.finished);
        assert!(lines[2].contains("3000") && lines[2].contains("|200 0 "), "{flag}: {}", outcome.finished);
        assert_eq!(paths(&upstream)[seen..], ["/sink"], "{flag}");
        let report = outcome.report();
        assert_eq!(report.count("injected", "503"), 2, "{report}");
        assert_eq!(report.counts("replaced").len(), 0, "{report}");
    }
}

/// The error in place of `100 Continue`, and the error after it.
#[test]
fn errors_in_place_of_and_after_continue() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (rule, interim) in
        [("~m PUT => 503 body \"x\" in request", false), ("~m PUT => continue-then 503 body \"x\"", true)]
    {
        let run = run(&upstream, &ca, &[rule]);
        let body = run.dir().join("body");
        std::fs::write(&body, common::pattern(100_000)).expect("a body");
        let command = words![
            clients::curl(),
            "-sSv",
            "--http1.1",
            "--expect100-timeout",
            "30",
            "-H",
            "Expect: 100-continue",
            "-T",
            body,
            url("/sink")
        ];
        let outcome = run.go(command).ok();
        let said = &outcome.finished.stderr;
        assert_eq!(said.contains("HTTP/1.1 100"), interim, "{rule}: {}", outcome.finished);
        assert!(said.contains("HTTP/1.1 503"), "{rule}: {}", outcome.finished);
    }
    assert_eq!(paths(&upstream).len(), 0);
}

/// Another body takes the genuine one's description with it; headers are set,
/// added and removed; JSON is patched.
#[test]
fn bodies_and_headers() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        let rules = [
            "~u /bytes => body \"{{method}} {{path}}\" set \"Content-Type: text/x\" remove Server add \"Set-Cookie: c=3\"",
            "~u /sink => merge '{\"length\":null,\"more\":{\"a\":1}}'",
        ];
        let outcome = curl(run(&upstream, &ca, &rules), flag, "/bytes/3000000").ok();
        let text = outcome.text().to_ascii_lowercase();
        assert!(text.ends_with("\r\n\r\nget /bytes/3000000"), "{flag}: {}", outcome.finished);
        assert!(text.contains("content-type: text/x\r\n") && text.contains("content-length: 18\r\n"), "{flag}: {text}");
        assert!(!text.contains("server:") && text.matches("set-cookie:").count() == 3, "{flag}: {text}");
        assert!(text.starts_with("http/") && text.lines().next().is_some_and(|line| line.contains(" 200")), "{text}");

        let outcome = run(&upstream, &ca, &rules).go(words![clients::curl(), "-sS", flag, url("/sink")]).ok();
        let merged: Value = serde_json::from_str(&outcome.text()).expect("JSON");
        assert!(merged.get("length").is_none() && merged["more"]["a"] == 1 && merged["sha256"].is_string(), "{merged}");
    }
}

/// A delay is felt, in either phase, and reported apart from backoff.
#[test]
fn delays() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        for phase in ["request", "response"] {
            let rule = format!("~u /hello => delay 400ms in {phase}");
            let command = words![clients::curl(), "-sS", flag, "-w", "|%{http_code} %{time_total}", url("/hello")];
            let outcome = run(&upstream, &ca, &[&rule]).go(command).ok();
            let text = outcome.text();
            let (status, took) = text.rsplit('|').next().and_then(|it| it.split_once(' ')).expect("what curl measured");
            assert_eq!(status, "200", "{rule} {flag}: {text}");
            assert!(took.trim().parse::<f64>().expect("seconds") >= 0.4, "{rule} {flag}: {text}");
            let report = outcome.report();
            let held = report.processes().iter().map(|row| common::report::amount(row, "held_ms")).sum::<f64>();
            assert_eq!(held.round(), 400.0, "{rule} {flag}: {report}");
            assert_eq!(report.count("statuses", "200"), 1, "{report}");
        }
    }
}

/// Filters that look at bodies read them, and only then.
#[test]
fn filters_on_bodies() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        for (rule, data, status) in [
            ("~bq needle => 503 in request", "hay needle hay", "503"),
            ("~bq needle => 503 in request", "hay", "200"),
            ("~bs hello => 503", "hay", "503"),
            ("~bs goodbye => 503", "hay", "200"),
            ("~b needle => 503", "a needle", "503"),
        ] {
            let command = words![
                clients::curl(),
                "-sS",
                flag,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-d",
                data,
                url("/hello")
            ];
            let outcome = run(&upstream, &ca, &[rule]).go(command).ok();
            assert_eq!(outcome.text(), status, "{rule} {flag} {data}: {}", outcome.finished);
        }
    }
}

/// A rule that is switched off changes no byte.
#[test]
fn a_disabled_rule_changes_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in FLAGS {
        let plain = curl(run(&upstream, &ca, &[]), flag, "/bytes/50000").ok();
        let off = curl(run(&upstream, &ca, &["~all => 503 body \"x\" in request off"]), flag, "/bytes/50000").ok();
        let dateless = |bytes: &[u8]| {
            let text = common::show(bytes);
            text.split("\r\n")
                .filter(|line| !line.to_ascii_lowercase().starts_with("date:"))
                .collect::<Vec<_>>()
                .join("\r\n")
        };
        assert_eq!(dateless(&plain.stdout), dateless(&off.stdout), "{flag}");
    }
}

/// A dry run counts, and does nothing.
#[test]
fn a_dry_run_does_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = run(&upstream, &ca, &["~u /hello => 503 in request"])
        .option("--dry-run")
        .go(words![clients::curl(), "-sS", url("/hello"), url("/hello")])
        .ok();
    assert_eq!(outcome.text(), "hello from /hello\nhello from /hello\n");
    let report = outcome.report();
    assert_eq!(report.0["rules"][0]["hits"], 2, "{report}");
    assert_eq!(report.counts("injected").len(), 0, "{report}");
}
