//! A million attempts, looked at on the page: that what one does shows what it
//! should, and how much the page asks for and draws for it.
//!
//! How long it takes until it is seen is told, too, and judged where
//! `cargo xtask bench --page --strict` asks for it: on a machine that has other
//! things to do it says little.
//!
//! The store and the ledger are those of the product, filled here attempt by
//! attempt as the data path fills them, and the page is served from this
//! process: a million real requests would take the test's time, and measure
//! something else.
mod common;

use std::{
    collections::BTreeMap,
    io,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use common::{Browser, Page, SOON, browser::clean, until};
use retryscope::{
    control::{About, Controlled, Work},
    flow::{Attempt, Clock, Headers, Link, Moment, Operation, Request, Response},
    history::{History, MAX_KEPT},
    process::{Facts, Process, ProcessKey},
    proxy::{Account, Bypass, Counted, Gate, Load},
    redirect::{Counters, Network, Pending, Redirected},
    retry::{CallKey, Family, Hint, Ledger, Limits, Signal},
    rules::{RuleSet, Rules, Settings},
    view::page::{Opened, Page as Served},
};

/// From one attempt to the next.
const APART: u64 = 20_000;
/// What one does is to be seen within this, in ms.
const AT_ONCE: f64 = 100.0;
/// Longer than this takes only what hangs, in ms.
const HANGS: f64 = 15_000.0;
/// What is kept takes at most this much, without heads.
const MIB: f64 = 164.0;
/// The most questions that one interaction asks (a filter over a million
/// attempts takes twenty), the most rows of an answer, and the most elements of
/// the page.
const QUESTIONS: u64 = 60;
const ROWS: u64 = 500;
const ELEMENTS: u64 = 2_500;

/// Nothing is redirected here: what is asked for is the counters.
#[derive(Debug)]
struct NoGate;

impl Gate for NoGate {
    fn origin_of(&self, _: BorrowedFd<'_>) -> Option<Redirected> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn socket_in(&self, _: Network, _: bool) -> Option<Pending> {
        None
    }

    fn exempt(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn bypass(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// And no connection is served.
#[derive(Debug)]
struct NoWork;

impl Work for NoWork {
    fn told(&self) -> (Load, Counted) {
        Default::default()
    }
}

fn process(pid: u32) -> Arc<Process> {
    let facts = Facts {
        comm: format!("worker-{pid}"),
        command: format!("/usr/bin/worker --number {pid}"),
        cgroup: Some("/batch.slice/worker.service".into()),
        ..Facts::default()
    };
    Arc::new(Process::new(ProcessKey { pid, start_ticks: 1 }, 1, 0, facts))
}

/// What there is to be seen.
#[derive(Debug, Default)]
struct Made {
    attempts: u64,
    retries: u64,
    throttled: u64,
    /// Of the process that hardly ever asks.
    rare: u64,
}

/// A million attempts of sixteen processes and one that hardly ever asks;
/// every tenth call is throttled once, some fail otherwise.
fn fill(account: &Account, history: &History) -> Made {
    let mut all = Made::default();
    let processes: Vec<_> = (100..116).map(process).collect();
    let rare = process(7);
    let headers = Headers::default;
    let template = |process: &Arc<Process>, link: Link, at: u64| {
        let request = Request {
            method: "PUT".into(),
            authority: "s3.eu-west-1.amazonaws.com".into(),
            target: format!("/bucket/key-{at}?part={}", at % 7).into(),
            headers: headers(),
        };
        Attempt::new(Arc::clone(process), request, link, Moment(0))
    };
    let (mut made, mut call) = (0_u64, 0_u64);
    while made < MAX_KEPT as u64 {
        call += 1;
        let process = if call.is_multiple_of(90_000) { &rare } else { &processes[(call % 16) as usize] };
        let statuses: &[u16] = match call % 50 {
            0 | 10 | 20 | 30 | 40 => &[429, 200],
            5 => &[503, 503, 200],
            7 => &[404],
            _ => &[200],
        };
        for (number, &status) in (1_u32..).zip(statuses) {
            let at = made * APART;
            let signal = Signal {
                family: Family::Aws,
                call: Some(CallKey::of(&call.to_ne_bytes())),
                number: Some(number),
                max: Some(3),
            };
            let hint = Hint { signal: Some(signal), ..Hint::default() };
            let mut ledger = account.ledger();
            let link = ledger.begin(process, &hint, "s3.eu-west-1.amazonaws.com", Moment(at));
            let mut attempt = template(process, link, made);
            attempt.operation = Operation {
                service: Some("s3".into()),
                name: Some(["PutObject", "GetObject", "ListBuckets"][(call % 3) as usize].into()),
            };
            attempt.started = Moment(at);
            attempt.ended = Some(Moment(at + APART / 2 + (call % 13) * 1_000));
            attempt.response = Some(Response { status, reason: String::new(), headers: headers() });
            (attempt.sent, attempt.received) = (100, 1_000);
            attempt.link = ledger.finish(&attempt);
            drop(ledger);
            history.add(&attempt);
            all.retries += u64::from(number > 1);
            all.throttled += u64::from(retryscope::retry::Class::of(&attempt) == retryscope::retry::Class::Throttled);
            all.rare += u64::from(process.key.pid == 7);
            made += 1;
        }
    }
    Made { attempts: made, ..all }
}

/// As the page writes it.
fn written(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).expect("digits")).collect();
    groups.join(",")
}

/// Each interaction showed what is there.
fn right(steps: &Value, made: &Made, kept: (u64, u64)) {
    let text = |name: &str| steps[name].as_str().unwrap_or_default();
    let (oldest, newest) = kept;
    assert!(text("kept").starts_with(&format!("{} kept", written(newest - oldest + 1))), "{steps:#}");
    assert_eq!((&steps["newest"], &steps["newestAgain"]), (&json!(newest), &json!(newest)), "{steps:#}");
    assert!(steps["far"].as_u64() > Some(100_000), "{steps:#}");
    // All of what is left of it.
    let few: u64 = text("few").split(' ').next().and_then(|found| found.parse().ok()).unwrap_or(0);
    assert!(few <= made.rare && few + 2 >= made.rare, "{few} of {} were found: {steps:#}", made.rare);
    let first_kept = newest - oldest + 1 == made.attempts;
    for (count, word) in [(made.attempts, "attempts"), (made.retries, "retries"), (made.throttled, "throttled")] {
        assert!(!first_kept || text("all").contains(&format!("{} {word}", written(count))), "{word}: {steps:#}");
    }
    // Attempts end one after the other: so many within so much time.
    let near = &steps["near"];
    let number = |name: &str| near[name].as_str().and_then(|it| it.parse::<f64>().ok()).unwrap_or(f64::NAN);
    assert_eq!(near["mode"], "attempts", "{near}");
    let said = near["said"].as_str().unwrap_or_default();
    let shown = said.split(" · ").find_map(|part| part.split_once(" attempts")).map_or("", |(count, _)| count);
    let shown: f64 = shown.replace(',', "").parse().unwrap_or(f64::NAN);
    let expected = number("span") * 1e6 / APART as f64;
    assert!((shown - expected).abs() <= 3.0 && number("drawn") > 0.0, "{expected} are to be seen: {near}");
}

#[test]
fn a_million_attempts_are_at_hand() {
    if common::times_count() {
        // What is measured is the page, and not the machine's other work. Threads
        // and the browser, which begin from here, have the same priority.
        rustix::process::setpriority_process(None, -15).expect("root may hurry");
    }
    let clock = Clock::start();
    let rules = RuleSet::parse(&[], &[]).expect("no rules");
    let account = Arc::new(Account::new(
        clock,
        Rules::new(rules, Settings::default(), Moment(0)),
        Ledger::new(Limits::default(), Moment(0)),
    ));
    let history = Arc::new(History::new(clock, MAX_KEPT));
    let began = Instant::now();
    let made = fill(&account, &history);
    let filled = began.elapsed();
    // Nothing that is kept has ended in the future.
    until("the last of them has ended", Duration::from_secs(60), || {
        (clock.now().0 > (MAX_KEPT as u64 + 2) * APART).then_some(())
    });

    let opened = Opened::at("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let page = Page::parse(&opened.url().0);
    let controlled = Arc::new(Controlled {
        account,
        history: Arc::clone(&history),
        gate: Arc::new(NoGate),
        bypass: Arc::new(Bypass::new(Arc::new(NoGate), clock, false)),
        work: Arc::new(NoWork),
        lives: None,
        ready: tokio::sync::watch::Sender::new(true),
        files: Vec::new(),
        about: About {
            pid: std::process::id(),
            version: "0".into(),
            target: "a million attempts".into(),
            command: None,
            targets: Vec::new(),
            bypassed: None,
            ready: true,
            beacon: None,
        },
        ports: vec![443],
        host: None,
        page: None,
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let served = runtime.block_on(async { Served::start(opened, &controlled) }).expect("served");
    let kept = page.ask("GET", "/v1/attempts?limit=1", "").json();
    let (oldest, newest) = (kept["oldest"].as_u64().unwrap_or(0), kept["newest"].as_u64().unwrap_or(0));
    assert!(made.attempts >= MAX_KEPT as u64 && newest - oldest + 1 == MAX_KEPT as u64, "{kept}");

    let seen = Browser::open(&page, "speed").through(|wanted| panic!("nothing is asked for: {wanted}"));
    clean(&seen, &page);
    let times: BTreeMap<String, Vec<f64>> = serde_json::from_value(seen["times"].clone()).expect("times");
    right(&seen["steps"], &made, (oldest, newest));
    let (rows, heads) = history.bytes();
    assert!(rows as f64 / 1_048_576.0 <= MIB && heads <= 32 << 20, "{rows} and {heads} bytes");
    println!(
        "{} attempts kept in {:.0} MiB (heads {:.0} MiB); filled in {:.1} s; {}",
        newest - oldest + 1,
        rows as f64 / 1_048_576.0,
        heads as f64 / 1_048_576.0,
        filled.as_secs_f64(),
        seen["steps"]
    );
    println!(
        "{:<28} {:>5} {:>9} {:>9} {:>9} {:>5} {:>8}   (ms until it is seen)",
        "interaction", "times", "median", "longest", "questions", "rows", "elements"
    );
    let (mut late, mut hung, mut much) = (Vec::new(), Vec::new(), Vec::new());
    for (name, taken) in &times {
        let mut sorted = taken.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, longest) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        let asked = |what: &str| seen["work"][name][what].as_u64().expect("it was counted");
        let work = [asked("questions"), asked("rows"), asked("elements")];
        let [questions, rows, elements] = work;
        println!("{name:<28} {:>5} {median:>9.1} {longest:>9.1} {questions:>9} {rows:>5} {elements:>8}", sorted.len());
        if questions > QUESTIONS || rows > ROWS || elements > ELEMENTS {
            much.push(format!("{name}: {work:?}"));
        }
        if median >= AT_ONCE {
            late.push(format!("{name}: {median} ms, at most {longest} ms"));
        }
        if longest >= HANGS {
            hung.push(format!("{name}: {longest} ms"));
        }
    }
    println!("longest task of the page: {} ms", seen["longest"]);
    assert!(much.is_empty(), "questions, rows, elements: {much:?}");
    assert!(hung.is_empty(), "not within {HANGS} ms: {hung:?}");
    assert!(!common::times_count() || late.is_empty(), "not at once: {late:?}");
    drop(served);
    runtime.shutdown_timeout(SOON);
}
