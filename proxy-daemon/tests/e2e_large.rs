//! Bodies of 5 GiB, both ways and over both protocols, in constant memory.
mod common;

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{NAME, Run, Running, TestCa, clients, own_address};
use serde_json::{Value, json};

const LENGTH: u64 = 5 << 30;
/// What the daemon may ever have had resident, in KiB.
const MEMORY: u64 = 64 * 1024;

/// A minute is plenty on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(300);
/// One at a time: each wants the machine for itself.
static LOAD: Mutex<()> = Mutex::new(());

/// The most that a process has had resident so far, in KiB.
fn peak(pid: i32) -> u64 {
    let status = procfs::process::Process::new(pid).and_then(|process| process.status()).expect("the daemon's status");
    status.vmhwm.expect("VmHWM")
}

/// One body, by curl from or to Node: the same bytes at both ends, and the
/// daemon has never held much of them.
#[track_caller]
fn flood(way: &str, flag: &str) {
    let _load = LOAD.lock().unwrap_or_else(PoisonError::into_inner);
    let ca = TestCa::new();
    let address = own_address(443);
    let files = ca.files("flood", &[NAME], &[address.ip()]);
    let mut server = Command::new(clients::node());
    server.arg(clients::script("flood_server.mjs")).arg(address.to_string()).args([&files.cert, &files.key]);
    let server: Running = clients::bare(&mut server);
    server.line("ready");

    let path = if way == "down" { LENGTH.to_string() } else { String::new() };
    let command = words![
        clients::python(),
        clients::script("flood.py"),
        way,
        flag,
        format!("https://{NAME}/{path}"),
        LENGTH.to_string()
    ];
    let started = Instant::now();
    let run = Run::new().to(NAME, address, &ca).deadline(PATIENCE).start(command);
    let line = run.line_within(PATIENCE, "sha256");
    let took = started.elapsed();
    let got: Value = serde_json::from_str(&line).expect("JSON from the client");
    let peak = peak(run.pid);
    assert_eq!((&got["code"], &got["length"]), (&json!(0), &json!(LENGTH)), "{got}");
    let other: Value =
        serde_json::from_str(&server.line(if way == "down" { "sent" } else { "taken" })).expect("JSON from the server");
    assert_eq!((&got["length"], &got["sha256"]), (&other["length"], &other["sha256"]), "{way} {flag}");
    assert!(peak < MEMORY, "{way} {flag}: {peak} KiB were resident at most");
    println!("{way} {flag}: {took:?}, {peak} KiB resident at most");
    let report = run.finish().ok().report();
    assert_eq!((report.total("attempts"), report.count("statuses", "200")), (1, 1), "{way} {flag}: {report}");
}

#[test]
fn a_download_over_http1() {
    flood("down", "--http1.1");
}

#[test]
fn an_upload_over_http1() {
    flood("up", "--http1.1");
}

#[test]
fn a_download_over_http2() {
    flood("down", "--http2");
}

#[test]
fn an_upload_over_http2() {
    flood("up", "--http2");
}
