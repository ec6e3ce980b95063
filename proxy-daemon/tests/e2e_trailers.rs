//! Fields after bodies: recorded, shown, and given back.
mod common;

use std::{ffi::OsString, path::Path, process::Command};

use common::{NAME, Run, SOON, TestCa, Upstream, clients, own_address, run::retryscope};
use serde_json::{Value, json};

fn told(words: Vec<OsString>) -> String {
    let mut running = retryscope(words);
    running.close_stdin();
    running.finish(SOON).ok().text()
}

/// What the recording says beside what HAR has places for, of each attempt.
fn recorded(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("the recording");
    if file.extension().is_some_and(|it| it == "har") {
        let har: Value = serde_json::from_str(&text).expect("JSON");
        return har["log"]["entries"].as_array().expect("entries").iter().map(|it| it["_retryscope"].clone()).collect();
    }
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["type"] == "attempt").collect()
}

/// gRPC says in trailers how a call ended: so does the recording, and who is
/// answered from it.
#[test]
fn of_grpc() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().expect("a folder"));
    let files = ca.files("grpc", &[NAME], &[]);
    for name in ["a.har", "a.jsonl"] {
        let file = folder.path().join(name);
        let address = own_address(443);
        let mut server = Command::new(clients::sdk_python());
        server.arg(clients::script("grpc_server.py")).arg(address.to_string()).args([&files.cert, &files.key]);
        let server = clients::bare(&mut server);
        server.line("ready");
        let command = || words![clients::sdk_python(), clients::script("grpc_trailers.py"), NAME];
        let run = Run::new().to(NAME, address, &ca).option("--save").option(&file).option("--save-bodies=1m");
        let first = run.go(command()).ok();
        server.signal(nix::sys::signal::Signal::SIGTERM);
        server.finish(SOON);
        let text = first.text();
        assert!(text.contains("Ask OK ") && text.contains("key='asked', value='3'"), "{text}");
        assert!(text.contains("Late RESOURCE_EXHAUSTED too much"), "{text}");

        let all = recorded(&file);
        assert_eq!(all.len(), 4, "{all:?}");
        let has =
            |at: usize, field: Value| all[at]["response_trailers"].as_array().is_some_and(|it| it.contains(&field));
        assert!(has(2, json!(["grpc-status", "0"])) && has(2, json!(["asked", "3"])), "{all:#?}");
        assert!(has(3, json!(["grpc-status", "8"])) && has(3, json!(["grpc-message", "too much"])), "{all:#?}");
        // These ended with their heads.
        assert!(all[0]["response_trailers"].is_null() && all[0]["request_trailers"].is_null(), "{all:#?}");
        let shown = told(words!["show", &file, "--id", "3"]);
        assert!(shown.contains("< (trailers)") && shown.contains("< grpc-status: 0"), "{shown}");

        let nobody = own_address(443);
        let again = Run::new().map_host(NAME, nobody).option("--answer-from").option(&file).go(command()).ok();
        assert_eq!(again.text(), text, "{}", again.finished);
        let codes = |outcome: &common::Outcome| outcome.report().processes()[0]["codes"].clone();
        assert_eq!(codes(&again), codes(&first));
    }
}

/// In both directions, by both protocols; what is secret in them is left out.
#[test]
fn of_both_directions() {
    let (ca, folder) = (TestCa::new(), tempfile::tempdir().expect("a folder"));
    let upstream = Upstream::start(&ca);
    for (protocol, script) in [("http/1.1", "h1_trailers.py"), ("h2", "h2_trailers.py")] {
        for name in ["a.har", "a.jsonl"] {
            let file = folder.path().join(format!("{}-{name}", script));
            let python = if protocol == "h2" { clients::sdk_python() } else { clients::python() };
            let command = || words![&python, clients::script(script), NAME, "/trailers"];
            let run = Run::new().to(NAME, upstream.address, &ca).option("--save").option(&file);
            let first = run.option("--save-bodies=1m").go(command()).ok();
            let received = upstream.received().pop().expect("a request");
            assert!(received.trailers.contains(&("x-client-checksum".into(), "beef".into())), "{received:?}");
            let all = recorded(&file);
            let fields = |which: &str| {
                let pairs = all[0][which].as_array().cloned().unwrap_or_default();
                let text = |it: &Value| it.as_str().unwrap_or_default().to_ascii_lowercase();
                pairs.iter().map(|pair| format!("{}: {}", text(&pair[0]), text(&pair[1]))).collect::<Vec<_>>()
            };
            assert_eq!(fields("response_trailers"), ["x-checksum: abc123", "x-second: two"], "{all:#?}");
            let secret = if protocol == "h2" { "x-more: 1" } else { "x-api-key: redacted" };
            assert_eq!(fields("request_trailers"), ["x-client-checksum: beef", secret], "{all:#?}");
            let text = std::fs::read_to_string(&file).expect("the recording");
            assert!(!text.contains("hushhush"), "{text}");
            let shown = told(words!["show", &file, "--id", "1"]).to_ascii_lowercase();
            assert!(shown.contains("> (trailers)\n> x-client-checksum: beef"), "{shown}");
            assert!(shown.contains("< (trailers)\n< x-checksum: abc123"), "{shown}");

            let answering = Run::new().map_host(NAME, own_address(443)).option("--answer-from").option(&file);
            let again = answering.go(command()).ok();
            let trailers = |outcome: &common::Outcome| match protocol {
                "h2" => outcome.json()["trailers"].to_string(),
                _ => outcome.text().to_ascii_lowercase(),
            };
            assert!(trailers(&first).contains("abc123"), "{}", first.finished);
            assert_eq!(trailers(&again), trailers(&first), "{}", again.finished);
        }
    }
}
