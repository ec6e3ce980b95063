//! Hand intercept with real clients: attempts held, seen, changed, answered,
//! broken off and let go.
mod common;

use std::{ffi::OsString, path::PathBuf};

use common::{
    Loop, NAME, Outcome, Report, Run, Running, SOON, TestCa, TestCgroup, Upstream, clients,
    hand::{Hand, curl, gated},
    pattern,
    report::amount,
    run::{RunningRun, retryscope},
    servers::{AWS, Moto},
    show, until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const PROTOCOLS: [&str; 2] = ["--http1.1", "--http2"];

struct Scene {
    app: RunningRun,
    hand: Hand,
    upstream: Upstream,
    ca: TestCa,
    dir: tempfile::TempDir,
}

/// A command in `run` that waits to be told to begin.
fn scene(command: impl IntoIterator<Item = OsString>) -> Scene {
    scene_with(command, &[])
}

fn scene_with(command: impl IntoIterator<Item = OsString>, options: &[&str]) -> Scene {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut run = Run::new().to(NAME, upstream.address, &ca);
    for option in options {
        run = run.option(option);
    }
    let app = run.start(gated(command));
    let hand = Hand::on(&app);
    until("the instance answers", SOON, || hand.type_in(&["held"]).code.eq(&0).then_some(()));
    let dir = tempfile::tempdir().expect("a folder");
    Scene { app, hand, upstream, ca, dir }
}

impl Scene {
    fn go(&mut self) {
        self.app.write(b"go\n");
    }

    fn finish(mut self) -> Outcome {
        self.app.close_stdin();
        self.app.finish()
    }
}

/// A command whose shell stays until it is told to end.
fn staying(command: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    words!["sh", "-c", "\"$@\"; read end", "sh"].into_iter().chain(command).collect()
}

fn url(path: &str) -> String {
    format!("https://{NAME}{path}")
}

/// The kinds of differences that a report tells, with their counts.
fn differences(report: &Report) -> Vec<(String, u64)> {
    let all = report.0["fidelity"].as_array().into_iter().flatten();
    all.map(|row| (row["kind"].as_str().unwrap_or_default().to_owned(), row["count"].as_u64().unwrap_or_default()))
        .collect()
}

/// Ctrl-C; it may have ended with its instance.
fn interrupt(running: Running) -> String {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid), Signal::SIGINT);
    running.finish(SOON).ok().stderr
}

/// The scene that this is for: an attempt is held with its 200, told 429, and
/// boto3 tries again; a second 429; the third is let through.
#[test]
fn boto3_is_told_429_twice() {
    let moto = Moto::shared();
    let mut run = Run::new().upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let mut app = run.start(words![clients::python(), clients::script("scene.py")]);
    app.line("ready");
    let hand = Hand::on(&app);
    let watcher = hand.intercept(&["~op ListBuckets"]);
    app.write(b"go\n");
    let first = watcher.line("#1 held at its response: 200");
    assert!(first.contains("200, s3.ListBuckets, attempt 1 of 5, python"), "{first}");
    // Held for longer than boto3 ever waits before its first retries.
    let held = until("it has been held for a while", SOON, || {
        let held = hand.held().remove(0);
        (held["waited_ms"].as_u64() > Some(2500)).then_some(held)
    });
    assert_eq!((&held["status"], &held["attempt"], &held["backoff_ms"]), (&200.into(), &1.into(), &Value::Null));
    assert!(hand.types(&["resume", "1", "--status", "429"]).starts_with("#1 went on, changed, after 2."));
    let second = watcher.line("#2 held at its response: 200");
    assert!(second.contains("attempt 2 of 5 after a wait of "), "{second}");
    hand.types(&["resume", "2", "--status", "429", "--reason", "Slow down, please"]);
    let third = watcher.line("#3 held at its response: 200");
    assert!(third.contains("attempt 3 of 5 after a wait of "), "{third}");
    assert!(hand.types(&["resume", "3"]).starts_with("#3 went on as it was"));
    let done = app.line("done: ");
    assert!(done.contains("after 429,429,200; waited "), "{done}");
    let waits = done.rsplit_once("waited ").expect("waits").1.trim_end_matches(" ms").split(',');
    let waited: f64 = waits.map(|wait| wait.parse::<f64>().expect("a number")).sum();
    let said = interrupt(watcher);
    assert!(said.contains("ended; nothing was held"), "{said}");
    app.close_stdin();
    let outcome = app.finish().ok();
    let report = outcome.report();
    let process = report.process("scene.py");
    let row = Report::operation(process, "s3", "ListBuckets");
    assert_eq!((&row["attempts"], &row["retries"], &row["calls"]), (&3.into(), &2.into(), &1.into()), "{report}");
    assert_eq!((&row["injected"]["429"], &row["replaced"]["200"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(row["statuses"]["200"], 1, "{report}");
    // Backoff is what the client waited, without what it was kept waiting.
    let backoff = amount(&row["backoff"], "total_ms");
    assert!(
        (waited - 50.0..waited + 1500.0).contains(&backoff),
        "backoff {backoff} ms, boto3 waited {waited} ms: {report}"
    );
    assert!(amount(row, "held_by_hand_ms") > 2500.0, "{report}");
    assert!(amount(&row["wasted"], "ms") < 2500.0, "{report}");
    assert_eq!(differences(&report), [("changed-answer".to_owned(), 2), ("delayed".to_owned(), 3)], "{report}");
}

/// Status, reason, fields and body of a response, on both protocols.
#[test]
fn a_response_is_changed() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, "-i", &url("/status/200")]));
        let watcher = scene.hand.intercept(&["~u /status", "--count", "1"]);
        scene.go();
        watcher.line("#1 held");
        let full = scene.hand.type_in(&["held", "--json"]).ok().json();
        assert_eq!(full["held"][0]["url"], url("/status/200"), "{full}");
        let changes = ["--status", "503", "--reason", "Not now", "--header", "Retry-After: 7", "--header", "x-path: b"];
        let more = ["--header", "content-type: text/css", "--remove-header", "set-cookie", "--body", "words"];
        let words: Vec<&str> = ["resume", "1"].into_iter().chain(changes).chain(more).collect();
        scene.hand.types(&words);
        // It has had its one attempt.
        watcher.finish(SOON).ok();
        let outcome = scene.finish().ok();
        let text = outcome.text();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, "words", "{protocol}: {text}");
        let expected = if protocol == "--http2" { "HTTP/2 503 " } else { "HTTP/1.1 503 Not now" };
        assert_eq!(head.lines().next(), Some(expected), "{text}");
        let lower = head.to_ascii_lowercase();
        for field in ["retry-after: 7", "x-path: b", "content-length: 5", "content-type: text/css", "server: test"] {
            assert_eq!(lower.matches(field).count(), 1, "{protocol} {field}: {text}");
        }
        assert!(lower.contains("x-retryscope-rule: by hand"), "{text}");
        assert!(!lower.contains("set-cookie"), "{text}");
        let report = outcome.report();
        assert_eq!((report.count("injected", "503"), report.count("replaced", "200")), (1, 1), "{report}");
        assert_eq!(differences(&report), [("changed-answer".to_owned(), 1), ("delayed".to_owned(), 1)], "{report}");
    }
}

/// What is resumed untouched arrives as it does directly.
#[test]
fn untouched_is_untouched() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, "-i", &url("/bytes/70000?chunked"), &url("/trailers")]));
        let direct = Run::direct().to(NAME, scene.upstream.address, &scene.ca);
        let direct = direct.go(curl(&[protocol, "-i", &url("/bytes/70000?chunked"), &url("/trailers")])).ok();
        let watcher = scene.hand.intercept(&["~all", "--at", "both"]);
        scene.go();
        for id in ["1", "2", "3", "4"] {
            watcher.line(&format!("#{id} held"));
            scene.hand.types(&["resume", id]);
        }
        interrupt(watcher);
        let outcome = scene.finish().ok();
        let without_date = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let lines = text.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(without_date(&outcome.stdout) == without_date(&direct.stdout), "{protocol}: {}", outcome.finished);
        let report = outcome.report();
        assert_eq!(differences(&report), [("delayed".to_owned(), 2)], "{report}");
        assert_eq!(report.count("statuses", "200"), 2, "{report}");
    }
}

/// A request that is answered here never reaches the upstream.
#[test]
fn a_request_is_answered() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, "-i", "-d", "some words", &url("/echo")]));
        let watcher = scene.hand.intercept(&["~m POST", "--at", "request"]);
        scene.go();
        watcher.line("#1 held at its request, attempt 1, curl");
        let wrong = scene.hand.type_in(&["resume", "1", "--status", "200"]).code(64);
        assert!(wrong.stderr.contains("has not come yet"), "{wrong}");
        let answered = ["answer", "1", "--status", "418", "--body", "no", "--header", "x-a: 1", "--header", "x-a: 2"];
        assert!(scene.hand.types(&answered).starts_with("#1 was answered, after"));
        interrupt(watcher);
        assert!(scene.upstream.received().is_empty());
        let outcome = scene.finish().ok();
        let text = outcome.text();
        assert!(text.contains(" 418") && text.ends_with("\r\n\r\nno"), "{text}");
        assert!(text.contains("x-a: 1\r\nx-a: 2\r\n"), "{text}");
        let report = outcome.report();
        assert_eq!(differences(&report), [("synthetic-answer".to_owned(), 1), ("delayed".to_owned(), 1)], "{report}");
    }
}

/// The upstream is asked what a person wrote, body and all.
#[test]
fn a_request_is_changed() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, "-d", "some words", "-H", "x-old: 1", &url("/echo")]));
        let watcher = scene.hand.intercept(&["~u /echo", "--at", "request"]);
        scene.go();
        watcher.line("#1 held");
        let body: PathBuf = scene.hand_file("other words, and more");
        let (body, target) = (format!("@{}", body.display()), "/echo?changed=1");
        let words = ["resume", "1", "--method", "PUT", "--target", target, "--body", &body, "--header", "x-new: 2"];
        let words: Vec<&str> = words.into_iter().chain(["--remove-header", "x-old"]).collect();
        scene.hand.types(&words);
        interrupt(watcher);
        let received = scene.upstream.wait_for("the request", |_| true);
        assert_eq!((received.method.as_str(), received.target.as_str()), ("PUT", target), "{protocol}");
        assert_eq!((received.header("x-new"), received.header("x-old")), (Some("2"), None), "{received:?}");
        assert_eq!(received.header("content-length"), Some("21"), "{received:?}");
        let outcome = scene.finish().ok();
        assert_eq!(outcome.text(), "other words, and more");
        let report = outcome.report();
        assert_eq!(differences(&report), [("changed-request".to_owned(), 1), ("delayed".to_owned(), 1)], "{report}");
    }
}

impl Scene {
    /// A file with these words.
    fn hand_file(&self, words: &str) -> PathBuf {
        let path = self.dir.path().join("words");
        std::fs::write(&path, words).expect("writing");
        path
    }
}

/// Broken off: a reset, or the connection's proper end; on HTTP/2 the stream
/// alone, unless it is closed.
#[test]
fn an_attempt_is_dropped() {
    for at in ["request", "response"] {
        for (protocol, close, code, aborted) in [
            ("--http1.1", false, 56, "reset"),
            ("--http1.1", true, 52, "close"),
            ("--http2", false, 92, "rst-stream"),
            ("--http2", true, 16, "close"),
        ] {
            let mut scene = scene(curl(&[protocol, &url("/hello")]));
            let watcher = scene.hand.intercept(&["~u /hello", "--at", at]);
            scene.go();
            watcher.line("#1 held");
            let words: &[&str] = if close { &["drop", "1", "--close"] } else { &["drop", "1"] };
            assert!(scene.hand.types(words).starts_with("#1 was broken off"));
            interrupt(watcher);
            let outcome = scene.finish();
            let got = outcome.code;
            // curl's word for a closed HTTP/2 connection differs with its version.
            assert!(
                got == code || (close && [16, 18, 52, 55, 56, 92].contains(&got)),
                "{at} {protocol}: {}",
                outcome.finished
            );
            let report = outcome.report();
            assert_eq!(report.count("aborted", aborted), 1, "{at} {protocol}: {report}");
            assert_eq!(differences(&report), [("injected-fault".to_owned(), 1), ("delayed".to_owned(), 1)], "{report}");
        }
    }
}

/// Only the stream that is held waits.
#[test]
fn other_streams_go_on() {
    let urls = [url("/hello?held"), url("/hello?free"), url("/hello?other")];
    let parallel = [
        "--http2",
        "--parallel",
        "--parallel-max",
        "3",
        "--no-progress-meter",
        "-w",
        "%{stderr}%{urlnum} %{http_code}\n",
        "-o",
        "/dev/null",
    ];
    let rest = ["-o", "/dev/null", "-o", "/dev/null", &urls[0], &urls[1], &urls[2]];
    let mut scene = scene(curl(&parallel.into_iter().chain(rest).collect::<Vec<_>>()));
    let watcher = scene.hand.intercept(&["~u held"]);
    scene.go();
    watcher.line("#1 held");
    scene.app.error_line("1 200");
    scene.app.error_line("2 200");
    assert_eq!(scene.hand.held().len(), 1);
    scene.hand.types(&["resume", "all", "--status", "503"]);
    scene.app.error_line("0 503");
    interrupt(watcher);
    assert_eq!(scene.upstream.accepted(), 1, "one connection");
    scene.finish().ok();
}

/// A client that leaves takes its attempt with it, at once.
#[test]
fn the_client_leaves() {
    for protocol in PROTOCOLS {
        for at in ["request", "response"] {
            for body in ["-G", "--globoff"] {
                // With a body, the socket is not read while it is held.
                let data = if body == "-G" { "@/dev/null" } else { "some words" };
                let mut scene = scene(staying(curl(&[protocol, body, "-d", data, &url("/echo")])));
                let watcher = scene.hand.intercept(&["~all", "--at", at]);
                scene.go();
                watcher.line("#1 held");
                let pid = scene.hand.held()[0]["pid"].as_i64().expect("a pid");
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL).expect("killing curl");
                watcher.line("#1 is gone: the client left, after");
                assert!(scene.hand.held().is_empty());
                let gone = scene.hand.type_in(&["resume", "1"]).code(64);
                assert!(gone.stderr.contains("no attempt with the number 1 is held"), "{gone}");
                interrupt(watcher);
                let outcome = scene.finish().code(1);
                let report = outcome.report();
                assert_eq!(report.count("errors", "cancelled"), 1, "{protocol} {at}: {report}");
                assert_eq!(report.total("attempts"), 1, "{report}");
            }
        }
    }
}

/// Nobody decides: it goes on untouched when its time is over.
#[test]
fn time_is_bounded() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, &url("/hello")]));
        let watcher = scene.hand.intercept(&["~all", "--at", "both", "--max-wait", "300ms"]);
        scene.go();
        for id in [1, 2] {
            let line = watcher.line(&format!("#{id} went on as it was: nobody decided in time, after "));
            assert!(line.contains("after 30") || line.contains("after 3"), "{line}");
        }
        interrupt(watcher);
        let outcome = scene.finish().ok();
        assert_eq!(outcome.text(), "hello from /hello\n");
        let report = outcome.report();
        let held: f64 = report.processes().iter().map(|row| amount(row, "held_by_hand_ms")).sum();
        assert!((600.0..5000.0).contains(&held), "{report}");
    }
}

/// 256 are held; the others pass, and are counted.
#[test]
fn number_is_bounded() {
    const MANY: &str = "const http2 = require('node:http2');\n\
        let passed = 0, ended = 0;\n\
        const sessions = [0, 1].map(() => http2.connect('https://' + process.argv[1]));\n\
        const asked = (session, path) => {\n\
        \x20 const request = session.request({ ':path': path });\n\
        \x20 request.on('response', (head) => { passed += head[':status'] === 200; });\n\
        \x20 request.on('end', () => {\n\
        \x20   if (++ended === 260) { console.log('passed', passed); sessions.forEach((it) => it.close()); }\n\
        \x20 });\n\
        \x20 request.resume();\n\
        };\n\
        sessions.forEach((session, at) => {\n\
        \x20 for (let n = 0; n < 130; n++) asked(session, `/hello?n=${at}.${n}`);\n\
        });\n";
    let mut scene = scene(words![clients::node(), "-e", MANY, NAME]);
    scene.hand.types(&["intercept", "~all", "--at", "request", "--detach"]);
    scene.go();
    let passed = |scene: &Scene| scene.upstream.received().len();
    until("four have passed", SOON * 3, || (passed(&scene) == 4 && scene.hand.held().len() == 256).then_some(()));
    let off = scene.hand.types(&["intercept", "--off"]);
    assert_eq!(off, "1 intercept ended; 256 held attempts went on untouched\n");
    scene.app.line("passed 260");
    let outcome = scene.finish().ok();
    let report = outcome.report();
    assert_eq!(report.0["bounds"]["attempts_unheld"], 4, "{report}");
}

/// An instance that ends lets go of what it holds.
#[test]
fn the_instance_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let ca = TestCa::new();
        let authority = tempfile::tempdir().expect("a folder");
        retryscope(words!["ca", "init", "--ca-dir", authority.path().join("ca")]).finish(SOON).ok();
        let group = TestCgroup::new();
        let upstream = Upstream::start(&ca);
        let report = authority.path().join("report.json");
        let words = words!["attach", "--ca-dir", authority.path().join("ca"), "--upstream-ca", ca.pem()];
        let more = words!["--report", "json", "--report-file", &report, "--cgroup", group.path()];
        let running = retryscope(words.into_iter().chain(more));
        running.error_line("now on");
        let hand = Hand::on(&running);
        let watcher = hand.intercept(&["~all"]);
        let mut inside = Loop::in_cgroup(&group, &upstream);
        inside.running.write(b"go\n");
        watcher.line("#1 held");
        running.signal(signal);
        watcher.line("#1 went on as it was: the instance ends, after");
        let ended = watcher.finish(SOON).ok();
        assert!(ended.stderr.contains("the instance has ended"), "{ended}");
        running.finish(SOON).ok();
        let report = Report::parse(&std::fs::read_to_string(&report).expect("the report"));
        assert_eq!(report.count("statuses", "200"), 1, "{report}");
        inside.end();
    }
}

/// Two requests in one write: the second's answer waits for the first's.
#[test]
fn pipelined_answers_keep_their_order() {
    const PIPELINE: &str = "import socket, ssl, sys\n\
        name = sys.argv[1]\n\
        raw = socket.create_connection((name, 443))\n\
        secure = ssl.create_default_context().wrap_socket(raw, server_hostname=name)\n\
        one = 'GET /%s HTTP/1.1\\r\\nHost: ' + name + '\\r\\n%s\\r\\n'\n\
        secure.sendall((one % ('first', '') + one % ('second', 'Connection: close\\r\\n')).encode())\n\
        everything = b''\n\
        while part := secure.recv(65536): everything += part\n\
        print(everything.decode())\n";
    for at in ["request", "response"] {
        let mut scene = scene(words![clients::python(), "-c", PIPELINE, NAME]);
        let watcher = scene.hand.intercept(&["~u /first", "--at", at]);
        scene.go();
        watcher.line("#1 held");
        if at == "response" {
            // The second is on its way; its answer waits for its turn.
            scene.upstream.wait_for("the second", |it| it.target == "/second");
        }
        assert_eq!(scene.hand.held().len(), 1);
        if at == "request" {
            scene.hand.types(&["answer", "1", "--status", "503", "--body", "first!"]);
        } else {
            scene.hand.types(&["resume", "1", "--status", "503", "--body", "first!"]);
        }
        interrupt(watcher);
        let outcome = scene.finish().ok();
        let text = outcome.text();
        let (first, second) = (text.find("first!"), text.find("hello from /second"));
        assert!(first.is_some() && first < second, "{at}: {text}");
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("HTTP/1.1 200 OK"), "{at}: {text}");
    }
}

/// A body that is too long, or endless, is held by its head and passes.
#[test]
fn a_body_over_the_bound() {
    for protocol in PROTOCOLS {
        let mut scene = scene(curl(&[protocol, "-i", &url("/bytes/3000000")]));
        let watcher = scene.hand.intercept(&["~u /bytes"]);
        scene.go();
        watcher.line("#1 held");
        let editor = editor(&scene, "s/^200.*/429 Slow/");
        let edited = scene.edit(&editor, "1").ok();
        assert!(edited.text().starts_with("#1 went on, changed"), "{edited}");
        assert!(edited.stderr.contains("The body is not here (longer than 1 MiB"), "{edited}");
        interrupt(watcher);
        let outcome = scene.finish().ok();
        let at = outcome.stdout.windows(4).position(|part| part == b"\r\n\r\n").expect("a head") + 4;
        assert!(outcome.stdout[at..] == pattern(3_000_000), "{protocol}: another body");
        assert!(show(&outcome.stdout[..at]).contains(" 429"), "{protocol}");

        let mut scene = scene_with(curl(&[protocol, "-w", "%{http_code}", "-m", "8", &url("/drip")]), &[]);
        let watcher = scene.hand.intercept(&["~u /drip"]);
        scene.go();
        watcher.line("#1 held");
        scene.hand.types(&["resume", "1", "--status", "299"]);
        scene.app.line("drop");
        interrupt(watcher);
        let outcome = scene.finish().code(28);
        assert!(outcome.text().ends_with("299"), "{protocol}: {}", outcome.finished);
    }
}

/// A program that edits by a sed script, and tells on standard error what it
/// was given.
fn editor(scene: &Scene, sed: &str) -> String {
    let path = scene.hand_file(&format!("#!/bin/sh\ncat \"$1\" >&2\nsed -i '{sed}' \"$1\"\n"));
    format!("sh {}", path.display())
}

impl Scene {
    fn edit(&self, editor: &str, id: &str) -> common::Finished {
        let mut command = std::process::Command::new(common::run::RETRYSCOPE);
        command.args(["resume", "--edit", "--instance", &self.app.pid.to_string(), id]);
        command.env_clear().envs(clients::environment()).env("EDITOR", editor);
        let mut running = Running::start(&mut command);
        running.close_stdin();
        running.finish(SOON)
    }
}

/// `--edit`: unchanged, emptied, wrong and then right, wrong for good.
#[test]
fn an_editor() {
    let urls = [url("/hello?1"), url("/hello?2")];
    let mut scene = scene(curl(&["--http1.1", "-i", &urls[0], &urls[1]]));
    let watcher = scene.hand.intercept(&["~all"]);
    scene.go();
    watcher.line("#1 held");
    let emptied = scene.edit(&editor(&scene, "d"), "1").ok();
    assert_eq!(emptied.text(), "nothing was decided: #1 stays held\n");
    let failed = scene.edit("false", "1").code(64);
    assert!(failed.stderr.contains("ended with exit status: 1, so nothing was decided"), "{failed}");
    let missing = scene.edit("/nonexistent", "1").code(64);
    assert!(missing.stderr.contains("set EDITOR"), "{missing}");
    // Wrong each time: what was written is kept.
    let wrong = scene.edit(&editor(&scene, "s/^200.*/no/"), "1").code(64);
    assert!(wrong.stderr.contains("the first line is a status") && wrong.stderr.contains("#1 stays held"), "{wrong}");
    let kept = wrong.stderr.trim_end().rsplit(' ').next().expect("a path");
    assert!(std::fs::read_to_string(kept).expect("what was written").contains("\nno\n"), "{wrong}");
    std::fs::remove_file(kept).expect("removing it");
    // Wrong, then right, with the reason on top.
    let script = "/^no$/{s/no/429 Slow/;b};s/^200.*/no/;s/^hello.*/other words/";
    let mended = scene.edit(&editor(&scene, script), "1").ok();
    assert!(mended.stderr.contains("# This cannot be done:\n# line 3: the first line is a status"), "{mended}");
    assert!(mended.text().starts_with("#1 went on, changed"), "{mended}");
    watcher.line("#2 held");
    let unchanged = scene.edit("true", "2").ok();
    assert!(unchanged.text().starts_with("#2 went on as it was"), "{unchanged}");
    interrupt(watcher);
    let outcome = scene.finish().ok();
    let text = outcome.text();
    assert!(text.starts_with("HTTP/1.1 429 Slow\r\n") && text.contains("\r\n\r\nother words\n"), "{text}");
    assert!(text.ends_with("hello from /hello\n"), "{text}");
}

/// Rules come first: what is held is what they would tell, and a person's
/// word comes after theirs.
#[test]
fn rules_come_first() {
    let urls = [url("/hello?1"), url("/hello?2")];
    let rule = "~u /hello => 503 retry-after 9 in response name \"mine\"";
    let mut scene = scene_with(curl(&["-i", &urls[0], &urls[1]]), &["--rule", rule]);
    let watcher = scene.hand.intercept(&["~u /hello"]);
    scene.go();
    watcher.line("#1 held at its response: 200 -> 503 by rule \"mine\"");
    scene.hand.types(&["resume", "1", "--status", "429"]);
    watcher.line("#2 held");
    scene.hand.types(&["resume", "2"]);
    interrupt(watcher);
    let outcome = scene.finish().ok();
    let text = outcome.text();
    assert!(text.starts_with("HTTP/2 429"), "{text}");
    assert_eq!(text.matches("retry-after: 9").count(), 2, "{text}");
    assert_eq!(text.matches("x-retryscope-rule: by hand").count(), 1, "{text}");
    assert_eq!(text.matches("x-retryscope-rule: mine").count(), 1, "{text}");
    let report = outcome.report();
    let expected = [("changed-answer".to_owned(), 1), ("changed-answer".to_owned(), 1), ("delayed".to_owned(), 2)];
    assert_eq!(differences(&report), expected, "{report}");
}

/// Node's fetch sees another body.
#[test]
fn nodes_fetch() {
    let mut scene = scene(words![clients::node(), clients::script("fetch.mjs"), url("/hello")]);
    let watcher = scene.hand.intercept(&["~u /hello"]);
    scene.go();
    watcher.line("#1 held");
    scene.hand.types(&["resume", "1", "--status", "500", "--body", "{\"changed\": true}"]);
    interrupt(watcher);
    let outcome = scene.finish().ok();
    let told = outcome.json();
    assert_eq!((&told["status"], &told["text"]), (&500.into(), &"{\"changed\": true}".into()), "{told}");
}

/// Lists, `--json`, `--detach`, `--off`, and what follows.
#[test]
fn by_script() {
    let mut scene = scene(staying(curl(&["-o", "/dev/null", "-w", "%{http_code}\n", &url("/hello")])));
    let follower = scene.hand.start(&["held", "--follow", "--json"]);
    let added = scene.hand.type_in(&["intercept", "~u /hello", "--detach", "--json", "--max-wait", "1m"]).ok().json();
    assert_eq!((&added["id"], &added["at"], &added["max_wait_ms"]), (&1.into(), &"response".into(), &60_000.into()));
    let listed = scene.hand.types(&["intercept", "--list"]);
    assert_eq!(listed, "   1  response  1m 00s at most  0 held  ~u /hello\n");
    assert_eq!(scene.hand.types(&["held"]), "Nothing is held; `retryscope intercept FILTER` holds attempts.\n");
    scene.go();
    let event: Value = serde_json::from_str(&follower.line("\"held\"")).expect("JSON");
    assert_eq!((&event["event"], &event["data"]["status"]), (&"held".into(), &200.into()), "{event}");
    assert!(scene.hand.types(&["held"]).contains("goes on by itself in "));
    let released = scene.hand.type_in(&["resume", "#1", "--status", "404", "--json"]).ok().json();
    assert_eq!((&released[0]["how"], &released[0]["id"]), (&"changed".into(), &1.into()), "{released}");
    let event: Value = serde_json::from_str(&follower.line("\"released\"")).expect("JSON");
    assert_eq!(event["data"]["how"], "changed", "{event}");
    assert_eq!(scene.hand.types(&["intercept", "--off", "1"]), "intercept 1 ended; nothing was held\n");
    follower.line("\"over\"");
    assert_eq!(scene.hand.types(&["intercept", "--off"]), "there was no intercept\n");
    assert_eq!(scene.hand.types(&["resume", "all"]), "nothing was held\n");
    let outcome = scene.finish().code(1);
    assert_eq!(outcome.text(), "404\n");
    follower.finish(SOON).ok();
}

/// What is wrong is told in a sentence, and changes nothing.
#[test]
fn wrong_words() {
    let mut scene = scene(curl(&[&url("/hello")]));
    scene.hand.types(&["intercept", "~u /hello", "--detach"]);
    scene.go();
    until("it is held", SOON, || (scene.hand.held().len() == 1).then_some(()));
    for (words, why) in [
        (&["intercept", "~dd x"][..], "did you mean ~d?"),
        (&["intercept", "~u x", "--max-wait", "2h"], "at most 60 minutes"),
        (&["intercept", "~u x", "--max-wait", "soon"], "--max-wait"),
        (&["intercept", "~u x", "--count", "0"], "holds 0 attempts does nothing"),
        (&["intercept"], "<FILTER>"),
        (&["intercept", "--off", "7"], "there is no intercept with the number 7"),
        (&["resume", "7"], "no attempt with the number 7 is held"),
        (&["resume", "seven"], "write a number"),
        (&["resume", "1", "--status", "700"], "from 200 to 599"),
        (&["resume", "1", "--header", "no"], "write 'Name: value'"),
        (&["resume", "1", "--header", "content-length: 3"], "retryscope's own"),
        (&["resume", "1", "--header", "x: a\nb"], "printable ASCII only"),
        (&["resume", "1", "--body", "@/nonexistent"], "cannot read the body"),
        (&["resume", "1", "--target", "/x"], "too late"),
        (&["resume", "all", "--edit"], "name it by its number"),
        (&["resume", "1", "--edit", "--status", "429"], "cannot be used with"),
        (&["answer", "1", "--status", "429"], "the upstream has seen it"),
        (&["answer", "1"], "--status"),
    ] {
        let wrong = scene.hand.type_in(words).code(64);
        assert!(wrong.stderr.contains(why), "{words:?}: {wrong}");
    }
    assert_eq!(scene.hand.held().len(), 1);
    scene.hand.types(&["drop", "all"]);
    scene.finish();
}

/// Names that a hostile program chose drive no terminal.
#[test]
fn hostile_names_are_escaped() {
    let dir = tempfile::tempdir().expect("a folder");
    let evil = dir.path().join("\u{1b}[31mevil");
    std::fs::copy(clients::curl(), &evil).expect("copying curl");
    let mut scene = scene(words![&evil, "-sS", url("/hello")]);
    let watcher = scene.hand.intercept(&["~u /hello"]);
    scene.go();
    let line = watcher.line("#1 held");
    assert!(line.contains("\\u{1b}[31mevil") && !line.contains('\u{1b}'), "{line}");
    assert!(!scene.hand.types(&["held"]).contains('\u{1b}'));
    scene.hand.types(&["resume", "1"]);
    interrupt(watcher);
    scene.finish().ok();
}

/// A watcher that is interrupted takes its intercept along, and what it holds
/// goes on.
#[test]
fn an_interrupted_watcher_lets_go() {
    let mut scene = scene(staying(curl(&["-o", "/dev/null", "-w", "%{http_code}\n", &url("/hello")])));
    let watcher = scene.hand.intercept(&["~all"]);
    scene.go();
    watcher.line("#1 held");
    let said = interrupt(watcher);
    assert!(said.contains("intercept 1 ended; 1 held attempt went on untouched"), "{said}");
    assert_eq!(scene.hand.types(&["intercept", "--list", "--json"]), "[]\n");
    let outcome = scene.finish().code(1);
    assert_eq!(outcome.text(), "200\n");
}

/// Killed, so that it cannot say goodbye: its intercept ends, and what it holds
/// goes on as it came. One that was left in force stays.
#[test]
fn a_killed_watcher_holds_nothing_up() {
    let path = url("/bytes/100");
    let mut scene = scene(staying(curl(&["--http1.1", &path, &path])));
    let watcher = scene.hand.intercept(&["~u bytes"]);
    scene.hand.types(&["intercept", "--detach", "~u elsewhere"]);
    assert_eq!(scene.hand.types(&["intercept", "--list"]).lines().count(), 2);
    scene.go();
    watcher.line("#1 held at its response: 200");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(watcher.pid), Signal::SIGKILL).expect("it runs");
    let left = until("its intercept has ended", SOON, || {
        let list = scene.hand.types(&["intercept", "--list"]);
        (list.lines().count() == 1).then_some(list)
    });
    assert!(left.contains("elsewhere"), "{left}");
    // Neither the first nor the second waits any more.
    until("both have come", SOON, || (scene.app.stdout.bytes().len() >= 200).then_some(()));
    assert!(scene.hand.held().is_empty());
    scene.hand.types(&["intercept", "--off"]);
    let outcome = scene.finish().code(1);
    assert_eq!(outcome.stdout, [pattern(100), pattern(100)].concat());
}

/// gRPC's status is in a field: it is told as any other.
#[test]
fn a_status_in_a_field() {
    let mut scene = scene(curl(&["-i", "-H", "content-type: application/grpc", &url("/hello")]));
    let watcher = scene.hand.intercept(&["~all"]);
    scene.go();
    watcher.line("#1 held");
    scene.hand.types(&["resume", "1", "--header", "grpc-status: 14"]);
    interrupt(watcher);
    let outcome = scene.finish().ok();
    let text = outcome.text();
    assert!(text.starts_with("HTTP/2 200") && text.contains("grpc-status: 14"), "{text}");
    assert!(text.ends_with("\r\n\r\nhello from /hello\n"), "{text}");
}
