//! Whose each connection is, where processes are many and short-lived: held
//! against what the processes say of themselves.
mod common;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use common::{NAME, Report, Run, SOON, TestCa, TestCgroup, Upstream, ca, clients, run::retryscope, until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file of lines");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// What processes say of themselves, by the number that they asked for.
fn log(path: &Path) -> BTreeMap<u64, Value> {
    let rows = lines(path);
    let count = rows.len();
    let by_number: BTreeMap<u64, Value> =
        rows.into_iter().map(|row| (row["number"].as_u64().expect("a number"), row)).collect();
    assert_eq!(by_number.len(), count, "each process wrote one line");
    by_number
}

/// Every attempt in the events is the log's process's: pid, start, command.
#[track_caller]
fn compare(events: &Path, log: &BTreeMap<u64, Value>) {
    let mut seen = HashSet::new();
    for event in lines(events) {
        if event["type"] != "attempt" {
            continue;
        }
        let url = event["url"].as_str().expect("a URL");
        if url.ends_with("/prime") {
            continue;
        }
        let number: u64 = url.rsplit('/').next().and_then(|last| last.parse().ok()).expect("a number in the URL");
        let own = log.get(&number).unwrap_or_else(|| panic!("nobody asked for {url}"));
        for field in ["pid", "start_ticks", "command"] {
            assert_eq!(event[field], own[field], "{field} of process {number}: {event} is not {own}");
        }
        assert!(seen.insert(number), "{url} was asked for once");
    }
    assert_eq!(seen.len(), log.len(), "an attempt for each process");
}

/// A shell line that runs `count` storms side by side, each with arguments of
/// its own.
fn storms(count: u32, processes: u32) -> String {
    let each = processes / count;
    let mut line = String::new();
    for number in 0..count {
        let first = number * each;
        line.push_str(&format!("\"$@\" --first {first} --processes {each} & p{number}=$!; "));
    }
    for number in 0..count {
        line.push_str(&format!("wait $p{number} || exit 1; "));
    }
    line
}

/// Everything waits to be accepted until its owner is gone: the daemon is
/// stopped meanwhile. Where a busy machine makes that longer than the kernel
/// believes a silent daemon, a connection goes direct, and is counted.
#[test]
fn accepted_when_they_are_gone() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let address = upstream.address.ip().to_string();
    let words = words!["/usr/bin/python3", "-I", "-S", clients::script("leave.py"), address, NAME, "12"];
    let mut run = Run::new().to(NAME, upstream.address, &ca).start(words);
    run.line("ready");
    let mut told: Vec<Value> = Vec::new();
    for round in 0..12 {
        run.signal(Signal::SIGSTOP);
        run.write(b"go\n");
        let mark = format!("told {round} ");
        let line = run.line(&mark);
        run.signal(Signal::SIGCONT);
        told.extend(serde_json::from_str::<Vec<Value>>(line.trim_start_matches(&mark)).expect("JSON"));
    }
    run.write(b"end\n");
    let report = run.finish().ok().report();
    assert_eq!(told.len(), 24);
    let seen = |own: &Value| report.processes().iter().any(|row| row["pid"] == own["pid"]);
    let direct = told.iter().filter(|own| !seen(own)).count() as u64;
    assert_eq!(report.0["redirect"]["direct_stalled"], direct, "{report}");
    assert!(direct < 12, "{report}");
    told.retain(seen);
    for own in told {
        let rows: Vec<&Value> = report.processes().iter().filter(|row| row["pid"] == own["pid"]).collect();
        assert_eq!(rows.len(), 1, "a row for {own}: {report}");
        assert_eq!(rows[0]["command"], own["command"]);
        assert!(rows[0]["cgroup"].as_str().is_some_and(|path| path.ends_with("/target")), "{}", rows[0]);
    }
}

/// A storm below one process, with a neighbour in the same cgroup.
#[test]
fn attached_to_a_process_that_forks() {
    const PROCESSES: u64 = 600;
    let (authority, group) = (TestCa::new(), TestCgroup::new());
    let upstream = Upstream::start(&authority);
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    retryscope(words!["ca", "init", "--ca-dir", path("ca")]).finish(SOON).ok();
    let storm = |log: &str| {
        let mut command = group.command(&clients::testbed());
        let trusted = [authority.pem(), ca::certificate(&path("ca"))];
        command.args(["storm", "--wait", "--parallel", "6", "--exec-every", "30"]);
        command.args(["--connect", &upstream.address.to_string(), "--name", NAME]);
        command.arg("--processes").arg(PROCESSES.to_string()).arg("--log").arg(path(log));
        for pem in trusted {
            command.arg("--ca").arg(pem);
        }
        let running = clients::bare(&mut command);
        let pid: u32 = running.line("ready ")[6..].trim().parse().expect("a pid");
        (running, pid)
    };
    let ((mut target, pid), (mut neighbour, _)) = (storm("target"), storm("neighbour"));
    let words = words!["attach", "--ca-dir", path("ca"), "--upstream-ca", authority.pem(), "--pid", pid.to_string()];
    let files = words!["--events", path("events"), "--report", "json", "--report-file", path("report")];
    let mut attached = retryscope(words.into_iter().chain(files));
    until("attach says that it watches", SOON, || {
        assert!(!attached.ended(), "attach ended: {}", common::show(&attached.stderr.bytes()));
        common::show(&attached.stderr.bytes()).contains("now on").then_some(())
    });
    target.write(b"go\n");
    neighbour.write(b"go\n");
    target.finish(Duration::from_secs(300)).ok();
    neighbour.finish(Duration::from_secs(300)).ok();
    attached.signal(Signal::SIGTERM);
    attached.finish(SOON).ok();
    let (own, others) = (log(&path("target")), log(&path("neighbour")));
    assert_eq!((own.len() as u64, others.len() as u64), (PROCESSES, PROCESSES));
    compare(&path("events"), &own);
    let report = Report::parse(&std::fs::read_to_string(path("report")).expect("the report"));
    assert_eq!(
        (report.total("processes"), report.connections("intercepted")),
        (PROCESSES + 1, PROCESSES + 1),
        "{report}"
    );
}

/// Twenty thousand processes, each with one connection; most are gone by the
/// time that it is looked at who they were.
#[test]
fn twenty_thousand_processes() {
    const PROCESSES: u32 = 20_000;
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let dir = tempfile::tempdir().expect("a folder");
    let (log_file, events) = (dir.path().join("log"), dir.path().join("events"));
    let started = Instant::now();
    let run = Run::new().to(NAME, upstream.address, &ca).deadline(Duration::from_secs(600));
    // None may go past us while the machine is busy.
    let run = run.option("--fail").option("closed");
    let outcome = run.option("--events").option(&events).go(words![
        "sh",
        "-c",
        storms(4, PROCESSES),
        "sh",
        clients::testbed(),
        "storm",
        "--connect",
        upstream.address.to_string(),
        "--name",
        NAME,
        "--log",
        &log_file,
        "--parallel",
        "4",
        "--exec-every",
        "100",
    ]);
    println!("{PROCESSES} processes in {:.1} s", started.elapsed().as_secs_f64());
    let report = outcome.ok().report();
    let log = log(&log_file);
    compare(&events, &log);
    assert_eq!(log.len(), PROCESSES as usize);
    assert!(log.values().all(|row| row["status"] == "200"));
    let commands: HashSet<&str> = log.values().filter_map(|row| row["command"].as_str()).collect();
    assert_eq!(commands.len(), 4 + PROCESSES as usize / 100, "four storms, and programs with arguments of their own");
    // And one of each storm itself.
    assert_eq!(report.total("attempts"), u64::from(PROCESSES) + 4, "{report}");
    assert_eq!(report.total("processes"), u64::from(PROCESSES) + 4);
    // Those that have a row have their command there.
    for row in report.processes() {
        let command = row["command"].as_str().expect("a command");
        assert!(commands.contains(command), "{row}");
        assert_eq!(row["comm"], "retryscope-test", "{row}");
    }
}
