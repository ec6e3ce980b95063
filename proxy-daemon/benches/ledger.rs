//! The ledger alone, without sockets: what an attempt costs, what a call that
//! may go on takes, and whether memory stays flat.
//!
//! Ten million attempts from ten thousand processes, of which every tenth
//! call is retried once; half of the clients name their calls, the others are
//! inferred. `--quick` makes it a hundredth.
#![allow(clippy::print_stdout, reason = "a program that tells what it measured")]
use std::{sync::Arc, time::Instant};

use retryscope::{
    flow::{Attempt, Headers, Link, Moment, Operation, Request, Response},
    process::{Facts, Process, ProcessKey},
    retry::{CallKey, Family, Fingerprint, Hint, Ledger, Limits, Signal},
};

const PROCESSES: u32 = 10_000;
const OPERATIONS: usize = 8;

/// Resident memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn process(pid: u32) -> Arc<Process> {
    let facts = Facts {
        comm: "app".into(),
        command: format!("app --number {pid}"),
        cgroup: Some("/app.slice".into()),
        ..Facts::default()
    };
    Arc::new(Process::new(ProcessKey { pid, start_ticks: 1 }, 1, 0, facts))
}

fn template(process: &Arc<Process>, link: Link) -> Attempt {
    let request = Request {
        method: "PUT".into(),
        authority: "s3.eu-west-1.amazonaws.com".into(),
        target: "/bucket/key".into(),
        headers: Headers::default(),
    };
    let mut attempt = Attempt::new(Arc::clone(process), request, link, Moment(0));
    attempt.response = Some(Response { status: 200, reason: String::new(), headers: Headers::default() });
    (attempt.sent, attempt.received) = (100, 1_000);
    attempt
}

struct Load {
    ledger: Ledger,
    processes: Vec<Arc<Process>>,
    operations: Vec<Operation>,
    attempt: Attempt,
    now: u64,
    calls: u64,
}

impl Load {
    fn new() -> Self {
        let processes: Vec<_> = (0..PROCESSES).map(process).collect();
        let mut ledger = Ledger::new(Limits::default(), Moment(0));
        let link = ledger.begin(&processes[0], &Hint::default(), "", Moment(0));
        let operations = (0..OPERATIONS)
            .map(|at| Operation { service: Some("s3".into()), name: Some(format!("Operation{at}").into()) })
            .collect();
        let mut attempt = template(&processes[0], link);
        attempt.ended = Some(Moment(0));
        ledger.finish(&attempt);
        Self { ledger, processes, operations, attempt, now: 0, calls: 0 }
    }

    /// One attempt of the present call.
    fn attempt(&mut self, number: u32, status: u16) {
        let at = self.calls as usize;
        let process = &self.processes[at.wrapping_mul(7_919) % self.processes.len()];
        let named = at.is_multiple_of(2);
        let hint = if named {
            let call = Some(CallKey::of(&self.calls.to_ne_bytes()));
            Hint {
                signal: Some(Signal { family: Family::Aws, call, number: Some(number), max: Some(3) }),
                ..Hint::default()
            }
        } else {
            Hint { print: Some(Fingerprint::from(u128::from(self.calls))), bodiless: true, signal: None }
        };
        self.attempt.link = self.ledger.begin(process, &hint, "s3.eu-west-1.amazonaws.com", Moment(self.now));
        if !Arc::ptr_eq(&self.attempt.process, process) {
            self.attempt.process = Arc::clone(process);
        }
        self.attempt.operation.clone_from(&self.operations[at % OPERATIONS]);
        self.attempt.print = hint.print.map(Fingerprint::number);
        self.attempt.started = Moment(self.now);
        self.now += 1_000;
        self.attempt.ended = Some(Moment(self.now));
        if let Some(response) = &mut self.attempt.response {
            response.status = status;
        }
        self.ledger.finish(&self.attempt);
        self.now += 60_000_000 * u64::from(status == 503);
    }

    /// So many attempts; every tenth call has two.
    fn run(&mut self, attempts: u64) {
        let mut left = attempts;
        while left > 0 {
            if self.calls.is_multiple_of(10) && left > 1 {
                self.attempt(1, 503);
                self.attempt(2, 200);
                left -= 2;
            } else {
                self.attempt(1, 200);
                left -= 1;
            }
            self.calls += 1;
        }
    }
}

fn main() {
    // Under `cargo test` a bench is only to be built.
    if std::env::args().any(|word| word == "--test") {
        return;
    }
    let quick = std::env::args().any(|word| word == "--quick");
    let all: u64 = if quick { 100_000 } else { 10_000_000 };
    let mut load = Load::new();
    println!("{all} attempts from {PROCESSES} processes");
    println!("{:>12} {:>14} {:>14}", "attempts", "ns each", "MiB resident");
    let mut after_warm_up = 0;
    for part in 1..=10 {
        let began = Instant::now();
        load.run(all / 10);
        let each = began.elapsed().as_nanos() / u128::from(all / 10);
        let now = resident();
        if part == 3 {
            after_warm_up = now;
        }
        println!("{:>12} {each:>14} {:>14.1}", part * all / 10, now as f64 / 1_048_576.0);
    }
    let grown = resident().saturating_sub(after_warm_up) as f64 / 1_048_576.0;
    println!("grown since the third part: {grown:.1} MiB");

    // Calls that may go on: failed so far, nobody has followed yet.
    let live: u64 = if quick { 6_000 } else { 60_000 };
    let mut ledger = Ledger::new(Limits::default(), Moment(0));
    let one = process(1);
    let mut attempt = load.attempt.clone();
    attempt.process = Arc::clone(&one);
    attempt.ended = Some(Moment(1));
    if let Some(response) = &mut attempt.response {
        response.status = 503;
    }
    let before = resident();
    for call in 0..live {
        let key = Some(CallKey::of(&call.to_ne_bytes()));
        let signal = Signal { family: Family::Aws, call: key, number: Some(1), max: Some(3) };
        attempt.link = ledger.begin(&one, &Hint::from(Some(signal)), "", Moment(0));
        attempt.print = None;
        ledger.finish(&attempt);
    }
    println!("{} bytes for a call that may go on", resident().saturating_sub(before) / live);
    let totals = load.ledger.snapshot(Moment(load.now)).totals;
    assert_eq!(totals.attempts, all + 1, "every attempt is counted");
    println!("{} calls, {} retries, all counted", totals.calls, totals.retries());
}
