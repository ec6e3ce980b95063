//! WebSockets: what is upgraded passes untouched, to the last byte.
mod common;

use std::process::Command;

use common::{NAME, Run, TestCa, clients, own_address};
use serde_json::{Value, json};

/// Connections that the client makes.
const CONNECTIONS: usize = 2 + 7 + 8 + 1;

/// Runs the client against a server of its own: what it found, and what the
/// server had of each connection.
fn talk(direct: bool) -> (Value, Vec<Value>, common::Outcome) {
    let ca = TestCa::new();
    let address = own_address(443);
    let files = ca.files("websocket", &[NAME], &[address.ip()]);
    let mut server = Command::new(clients::sdk_python());
    server.arg(clients::script("websocket_server.py")).arg(address.to_string()).args([&files.cert, &files.key]);
    let server = clients::bare(&mut server);
    server.line("ready");
    let command = words![clients::sdk_python(), clients::script("websocket.py"), NAME];
    let outcome = Run::via(direct).to(NAME, address, &ca).go(command).ok();
    let (mut had, mut at) = (Vec::new(), 0);
    while had.len() < CONNECTIONS {
        let (line, end) = server.line_after(at, "sha256");
        had.push(serde_json::from_str(&line).expect("JSON from the server"));
        at = end;
    }
    (outcome.json(), had, outcome)
}

/// 10,000 frames of every kind and their echoes, plain and compressed, and
/// every way to close: the server has the bytes that it has directly.
#[test]
fn every_frame_is_untouched() {
    let (found_directly, had_directly, _) = talk(true);
    let (found, had, outcome) = talk(false);
    assert_eq!(found, found_directly, "what the client found");
    assert_eq!(had, had_directly, "what the server received");
    let first = &had[0];
    assert_eq!(found["plain"]["frames"], 10_010, "{found}");
    assert_eq!(first["closed"], json!([1000, "enough"]), "{first}");
    for kind in ["TEXT", "TEXT begun", "BINARY", "BINARY begun", "CONT", "CONT begun", "PING", "PONG", "CLOSE"] {
        assert!(first["frames"][kind].as_u64().is_some_and(|count| count > 0), "no {kind}: {first}");
    }
    let report = outcome.report();
    let attempts = CONNECTIONS as u64;
    assert_eq!((report.total("attempts"), report.count("statuses", "101")), (attempts, attempts), "{report}");
    assert!(report.counts("errors").is_empty(), "{report}");
}
