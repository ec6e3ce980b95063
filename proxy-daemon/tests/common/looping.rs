//! A client that lives through a test, and connects when it is told to.
use std::process::Command;

use serde_json::Value;

use super::{Running, SOON, TestCgroup, Upstream, clients};

/// A process that connects when told to.
pub struct Loop {
    pub running: Running,
    at: usize,
}

impl Loop {
    pub fn in_cgroup(group: &TestCgroup, upstream: &Upstream) -> Self {
        Self::started(group.command(&clients::python()), upstream)
    }

    /// By a command that becomes Python, wherever it is.
    pub fn started(command: Command, upstream: &Upstream) -> Self {
        Self::to(command, &upstream.address.ip().to_string())
    }

    /// That connects to an address.
    pub fn to(mut command: Command, host: &str) -> Self {
        command.arg(clients::script("loop.py")).arg(host);
        let running = clients::bare(&mut command);
        running.line("ready");
        Self { running, at: 0 }
    }

    /// Makes one connection ("go", or "fork" for one by a child); tells
    /// whether it was intercepted.
    pub fn connects(&mut self, how: &str) -> bool {
        self.running.write(format!("{how}\n").as_bytes());
        let (line, end) = self.running.line_after(self.at, "issuer");
        self.at = end;
        let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
        let issuer = row["issuer"].as_str().unwrap_or_default();
        assert_ne!(issuer, "none", "the connection failed: {row}");
        !issuer.contains("retryscope test authority")
    }

    pub fn end(mut self) {
        self.running.close_stdin();
        self.running.finish(SOON).ok();
    }
}
