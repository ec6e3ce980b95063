//! The store behind the views: what an attempt costs the data path and the
//! store, what a million take, and how soon questions about them are answered.
//!
//! `--quick` makes it a twentieth.
#![allow(clippy::print_stdout, reason = "a program that tells what it measured")]
use std::{sync::Arc, time::Instant};

use retryscope::{
    flow::{Attempt, CallId, Clock, Evidence, Headers, Link, Moment, Operation, Request, Response, filter::Filter},
    history::{History, MAX_KEPT, Query, Span},
    process::{Facts, Process, ProcessKey},
    proxy::Feed,
};

/// Resident memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn headers(fields: usize) -> Headers {
    let names: Vec<_> = (0..fields).map(|at| (format!("x-field-{at}"), "v".repeat(40))).collect();
    let kind = [("content-type", "application/xml"), ("authorization", "AWS4-HMAC-SHA256 Credential=x")];
    names.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(kind).collect()
}

/// The `number`-th attempt of all: of ten processes, every tenth throttled.
fn attempt(number: u64, processes: &[Arc<Process>], request: &Headers, response: &Headers) -> Attempt {
    let throttled = number.is_multiple_of(10);
    let target = format!("/bucket-of-some-team/folder/object-{number:08}?x-id=GetObject");
    let link = Link {
        call: CallId(number / 2),
        number: 1 + u32::from(!number.is_multiple_of(2)),
        max: Some(5),
        evidence: Evidence::Exact,
        waited: None,
    };
    let head = Request {
        method: "GET".into(),
        authority: "s3.eu-west-1.amazonaws.com".into(),
        target: target.into(),
        headers: request.clone(),
    };
    let process = &processes[usize::try_from(number).unwrap_or(0) % processes.len()];
    let started = Moment(number * 100_000);
    let mut it = Attempt::new(Arc::clone(process), head, link, started);
    it.operation = Operation { service: Some("s3".into()), name: Some("GetObject".into()) };
    it.ended = Some(Moment(started.0 + 5_000_000));
    let status = if throttled { 503 } else { 200 };
    it.response = Some(Response { status, reason: "OK".into(), headers: response.clone() });
    it
}

fn timed<T>(what: &str, ask: impl Fn() -> T) -> T {
    let mut best = f64::MAX;
    let mut answer = ask();
    for _ in 0..5 {
        let started = Instant::now();
        answer = ask();
        best = best.min(started.elapsed().as_secs_f64() * 1000.0);
    }
    println!("{what:<44} {best:>8.2} ms");
    answer
}

fn main() {
    let quick = std::env::args().any(|word| word == "--quick");
    let count = if quick { MAX_KEPT / 20 } else { MAX_KEPT } as u64;
    let processes: Vec<_> = (1..=10)
        .map(|pid| {
            let facts = Facts { comm: "app".into(), command: format!("app {pid}"), ..Facts::default() };
            Arc::new(Process::new(ProcessKey { pid, start_ticks: 1 }, 1, 0, facts))
        })
        .collect();
    let (request, response) = (headers(12), headers(8));

    let feed = Feed::default();
    let one = Arc::new(attempt(1, &processes, &request, &response));
    let rounds = count.min(50_000);
    let nanos = |started: Instant, rounds: u64| started.elapsed().as_nanos() as f64 / rounds as f64;
    let started = Instant::now();
    (0..rounds).for_each(|_| feed.publish(&one));
    println!("an attempt that nobody hears of            {:>8.0} ns", nanos(started, rounds));
    let heard = feed.subscribe(rounds as usize);
    let started = Instant::now();
    (0..rounds).for_each(|_| feed.publish(&one));
    println!("an attempt that one subscriber is told of  {:>8.0} ns", nanos(started, rounds));
    drop(heard);

    let history = History::new(Clock::start(), MAX_KEPT);
    let before = resident();
    let mut spent = 0.0;
    for number in 1..=count {
        let it = attempt(number, &processes, &request, &response);
        let started = Instant::now();
        history.add(&it);
        spent += started.elapsed().as_nanos() as f64;
    }
    let grown = resident().saturating_sub(before);
    let (rows, heads) = history.bytes();
    println!("the store takes an attempt in              {:>8.0} ns", spent / count as f64);
    println!(
        "{count} attempts: {:.1} MiB of rows ({} B each), {:.1} MiB of heads, resident {:.1} MiB more",
        rows as f64 / 1048576.0,
        rows / count as usize,
        heads as f64 / 1048576.0,
        grown as f64 / 1048576.0
    );

    let filter = |text: &str| Filter::parse(text).expect("a filter");
    timed("100 latest", || history.attempts(&Query::default()));
    for text in ["~c 503", "~u object-00000001", "~c 500 & ~svc s3", "~hq 'x-field-3'", "~hs nowhere"] {
        let filter = filter(text);
        let page = timed(&format!("100 that match {text}"), || {
            history.attempts(&Query { filter: Some(&filter), ..Query::default() })
        });
        println!("{:44} {} found, {} looked at", "", page.attempts.len(), page.scanned);
    }
    timed("100 latest calls", || history.calls(&Query::default()));
    let rare = filter("~c 500");
    timed("100 calls that match ~c 500", || history.calls(&Query { filter: Some(&rare), ..Query::default() }));
    let span = Span { buckets: 100, to_ms: Some(count as f64), ..Span::default() };
    timed("counts over all of the time", || history.series(&span, None));
    let each = Span { processes: true, ..span };
    timed("the same, and of each process", || history.series(&each, None));
    let part = Span { from_ms: Some(1_000.0), to_ms: Some(1_100.0), ..span };
    timed("counts over a part of it, long ago", || history.series(&part, None));
    timed("counts over time that match ~c 503", || history.series(&span, Some(&filter("~c 503"))));
    timed("what a filter may be completed with", || history.known());
}
