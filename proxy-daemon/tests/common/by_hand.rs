//! TLS connections that a test makes and ends step by step.
use serde_json::Value;

use super::{NAME, Report, Run, TestCa, Wire, clients, run::RunningRun};

/// The client that makes its connections by hand, one line at a time.
pub struct ByHand {
    run: RunningRun,
    at: usize,
}

impl ByHand {
    pub fn start(wire: &Wire, ca: &TestCa) -> Self {
        let run = Run::new().to(NAME, wire.address, ca);
        Self { run: run.start(crate::words![clients::python(), clients::script("tls_by_hand.py"), NAME]), at: 0 }
    }

    #[track_caller]
    pub fn step(&mut self, step: &Value) -> Value {
        self.run.write(format!("{step}\n").as_bytes());
        let (line, at) = self.run.line_after(self.at, step[0].as_str().expect("a word"));
        self.at = at;
        serde_json::from_str(&line).expect("JSON from the client")
    }

    #[track_caller]
    pub fn finish(mut self) -> Report {
        self.run.close_stdin();
        self.run.finish().ok().report()
    }
}
