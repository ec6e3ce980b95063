//! A client that asks without a pause, and what it saw.
use serde_json::Value;

use super::{Running, SOON, TestCgroup, Upstream, clients, until};

/// A row for each request so far.
pub fn rows(running: &Running) -> Vec<Value> {
    let said = running.stdout.bytes();
    let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    said[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// One connection for each request, or with `keep` one for as many as it
/// lasts.
pub fn steady(group: &TestCgroup, upstream: &Upstream, keep: bool) -> Running {
    let mut command = group.command(&clients::python());
    command.arg(clients::script("steady.py")).arg(upstream.address.ip().to_string());
    if keep {
        command.arg("keep");
    }
    clients::bare(&mut command)
}

/// Waits for some more requests of a kind.
#[track_caller]
pub fn more(running: &Running, wanted: impl Fn(&Value) -> bool) {
    let before = rows(running).len();
    until("the client goes on", SOON, || {
        (rows(running).iter().skip(before).filter(|row| wanted(row)).count() >= 5).then_some(())
    });
}

/// Requests that failed.
pub fn errors(running: &Running) -> Vec<Value> {
    rows(running).into_iter().filter(|row| !row["error"].is_null() || row["status"] != 200).collect()
}
