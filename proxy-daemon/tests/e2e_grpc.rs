//! gRPC, as gRPC's own interoperability tests have it: every kind of call, by
//! a real client to a real server, each of which finds what it finds directly.
mod common;

use std::process::Command;

use common::{NAME, Run, SOON, TestCa, clients, own_address};
use serde_json::{Value, json};

/// Runs the client against a server of its own; what it found, and the report.
fn interop(direct: bool) -> (Value, common::Outcome) {
    let ca = TestCa::new();
    let address = own_address(443);
    let files = ca.files("grpc", &[NAME], &[]);
    let mut server = Command::new(clients::sdk_python());
    server.arg(clients::script("grpc_interop_server.py")).arg(address.to_string()).args([&files.cert, &files.key]);
    let server = clients::bare(&mut server);
    server.line("ready");
    let command = words![clients::sdk_python(), clients::script("grpc_interop.py"), NAME];
    let outcome = Run::via(direct).to(NAME, address, &ca).go(command).ok();
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.finish(SOON);
    (outcome.json(), outcome)
}

/// All four kinds, streams of 1,000 messages each way, metadata, statuses,
/// deadlines and cancellations: client and server see what they see directly.
#[test]
fn every_kind_of_call() {
    let (direct, _) = interop(true);
    let (through, outcome) = interop(false);
    assert_eq!(through["found"], direct["found"], "what the client found");
    assert_eq!(through["seen"], direct["seen"], "what the server saw");
    // And that it is what the client asked for.
    let found = &through["found"];
    assert_eq!(found["client streaming"], "74922", "{found}");
    assert_eq!(found["server streaming"], json!([31415, 9, 2653, 58979]), "{found}");
    assert_eq!(found["ping pong"][0][0], 1000, "{found}");
    assert_eq!(found["at once"][0], 1000, "{found}");
    assert_eq!(found["deadline"], "DEADLINE_EXCEEDED", "{found}");
    assert_eq!(found["deadline, seen"], "called off", "{found}");
    assert_eq!(found["cancelled"], json!(["first", "CANCELLED", "called off"]), "{found}");
    assert_eq!(found["called off"], "called off", "{found}");
    assert_eq!(found["long"], json!(["first word", "last word", "OK"]), "{found}");

    let report = outcome.report();
    assert_eq!(report.connections("intercepted"), 1, "{report}");
    assert_eq!(Value::from(report.total("attempts")), through["made"], "{report}");
    // One was called off before its status; one met its deadline, which the
    // server tells of where the client does not leave first.
    let unanswered = report.count("errors", "cancelled");
    assert!((1..=2).contains(&unanswered), "{report}");
    assert_eq!(Value::from(report.count("statuses", "200") + unanswered), through["made"], "{report}");
}
