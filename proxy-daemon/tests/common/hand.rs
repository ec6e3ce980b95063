//! Hand intercept from the command line: what a person types in a second
//! terminal.
use std::ffi::OsString;

use serde_json::Value;

use super::{Finished, Running, SOON, clients, run::retryscope};

/// Who speaks to one instance.
pub struct Hand {
    instance: String,
}

impl Hand {
    pub fn on(running: &Running) -> Self {
        Self { instance: running.pid.to_string() }
    }

    pub fn start(&self, words: &[&str]) -> Running {
        let mut all = vec![words[0], "--instance", &self.instance];
        all.extend(&words[1..]);
        retryscope(all)
    }

    #[track_caller]
    pub fn type_in(&self, words: &[&str]) -> Finished {
        let mut running = self.start(words);
        running.close_stdin();
        running.finish(SOON)
    }

    #[track_caller]
    pub fn types(&self, words: &[&str]) -> String {
        self.type_in(words).ok().text()
    }

    /// `intercept` in the foreground, once it is in force.
    #[track_caller]
    pub fn intercept(&self, words: &[&str]) -> Running {
        let mut all = vec!["intercept"];
        all.extend(words);
        let running = self.start(&all);
        running.error_line("at most");
        running
    }

    /// What is held.
    #[track_caller]
    pub fn held(&self) -> Vec<Value> {
        let all = self.type_in(&["held", "--json"]).ok().json();
        all["held"].as_array().expect("a list").clone()
    }
}

/// A command that begins once a line comes.
pub fn gated(command: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let gate = crate::words!["sh", "-c", "read go; exec \"$@\"", "sh"];
    gate.into_iter().chain(command).collect()
}

/// curl, without words of its own.
pub fn curl(words: &[&str]) -> Vec<OsString> {
    let curl = crate::words![clients::curl(), "-sS", "--max-time", "60"];
    curl.into_iter().chain(words.iter().map(OsString::from)).collect()
}
