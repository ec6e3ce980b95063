//! What becomes of connections that retryscope cannot carry: where it is
//! stopped, has no room, or has been killed. By `--fail open` they go direct,
//! by `--fail closed` they are refused; both are counted and said.
mod common;

use std::time::Duration;

use common::{NAME, Run, SOON, TestCa, TestCgroup, Upstream, clients, run::RunningRun, run::retryscope, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Longer than the kernel side believes a daemon that says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a connection of the target went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    Through,
    Direct,
    Refused,
    /// Broken off, or never answered.
    Lost,
}

/// `run` around a process that connects when told to.
struct Job {
    run: Option<RunningRun>,
    at: usize,
    /// Stopped: to go on in any case.
    daemon: Pid,
}

impl Job {
    fn start(run: Run, address: std::net::SocketAddr) -> Self {
        let words = words![clients::python(), clients::script("loop.py"), address.ip().to_string()];
        let run = run.start(words);
        run.line("ready");
        let daemon = Pid::from_raw(run.pid);
        Self { run: Some(run), at: 0, daemon }
    }

    fn run(&mut self) -> &mut RunningRun {
        self.run.as_mut().expect("under way")
    }

    fn connects(&mut self) -> Went {
        let at = self.at;
        self.run().write(b"go\n");
        let (line, end) = self.run().line_after(at, "issuer");
        self.at = end;
        let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
        let error = row["error"].as_str().unwrap_or_default();
        match row["issuer"].as_str().unwrap_or_default() {
            "none" if error.contains("ConnectionRefused") => Went::Refused,
            "none" => Went::Lost,
            issuer if issuer.contains("retryscope test authority") => Went::Direct,
            _ => Went::Through,
        }
    }

    /// Connects until it goes like this; what is under way when things change
    /// may be lost.
    fn connects_until(&mut self, wanted: Went) {
        until(&format!("a connection goes {wanted:?}"), PATIENCE, || (self.connects() == wanted).then_some(()));
    }

    fn stop(&self) {
        kill(self.daemon, Signal::SIGSTOP).expect("the daemon is there");
    }

    fn go_on(&self) {
        kill(self.daemon, Signal::SIGCONT).expect("the daemon is there");
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Also on panic: a stopped process would stay.
        let _ = kill(self.daemon, Signal::SIGCONT);
    }
}

fn counter(report: &common::Report, name: &str) -> u64 {
    report.0["redirect"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {report}"))
}

/// A daemon that does not answer: connections go direct, or are refused, and
/// come here again once it answers.
#[test]
fn a_stalled_daemon() {
    for (how, wanted) in [("open", Went::Direct), ("closed", Went::Refused)] {
        let ca = TestCa::new();
        let upstream = Upstream::start(&ca);
        let run = Run::new().to(NAME, upstream.address, &ca).option("--fail").option(how);
        let mut job = Job::start(run, upstream.address);
        assert_eq!(job.connects(), Went::Through, "{how}");
        job.stop();
        job.connects_until(wanted);
        assert_eq!(job.connects(), wanted, "{how}");
        job.go_on();
        job.connects_until(Went::Through);
        job.run().close_stdin();
        let report = job.run.take().expect("under way").finish().ok().report();
        let (direct, blocked) = (counter(&report, "direct_stalled"), counter(&report, "blocked"));
        let fidelity = report.0["fidelity"].to_string();
        let notes = report.0["notes"].to_string();
        if how == "open" {
            assert!(direct >= 2 && blocked == 0, "{report}");
            assert!(notes.contains("retryscope did not answer in time"), "{notes}");
        } else {
            assert!(direct == 0 && blocked >= 2, "{report}");
            assert!(fidelity.contains("as --fail closed asks"), "{fidelity}");
        }
    }
}

/// Killed, the daemon leaves its target connections that are refused, and a
/// process that says so and lets them go when it is ended.
#[test]
fn a_killed_daemon_with_fail_closed() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option("--fail").option("closed");
    let mut job = Job::start(run, upstream.address);
    assert_eq!(job.connects(), Went::Through);
    job.run().signal(Signal::SIGKILL);
    job.connects_until(Went::Refused);
    for _ in 0..20 {
        assert_eq!(job.connects(), Went::Refused);
    }
    let said = job.run().error_line("retryscope has died");
    assert!(said.contains("as --fail closed asks") && said.contains("to port 443 are refused"), "{said}");
    let warden = said.split('`').find_map(|it| it.strip_prefix("kill ")).expect("what to type");
    kill(Pid::from_raw(warden.parse().expect("a pid")), Signal::SIGTERM).expect("the warden is there");
    job.connects_until(Went::Direct);
    job.run().close_stdin();
}

/// Nobody ends the warden: it goes with the target, and so do the cgroups.
#[test]
fn the_warden_goes_with_the_target() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option("--fail").option("closed");
    let mut job = Job::start(run, upstream.address);
    let daemon = job.daemon.as_raw();
    job.run().signal(Signal::SIGKILL);
    job.connects_until(Went::Refused);
    let said = job.run().error_line("retryscope has died");
    let warden: i32 = said.split('`').find_map(|it| it.strip_prefix("kill ")?.parse().ok()).expect("what to type");
    job.run().close_stdin();
    until("the warden is gone", SOON, || (!common::process::alive(warden)).then_some(()));
    let cgroup = common::cgroup::mount().join(format!("retryscope-{daemon}"));
    until("the cgroups are gone", SOON, || (!cgroup.exists()).then_some(()));
}

/// An orderly end lets everything go direct, whatever was asked for.
#[test]
fn an_orderly_end_with_fail_closed() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let authority = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    retryscope(words!["ca", "init", "--ca-dir", authority.path()]).finish(SOON).ok();
    let group = TestCgroup::new();
    let mut command = group.command(&clients::python());
    command.arg(clients::script("loop.py")).arg(upstream.address.ip().to_string());
    let mut target = clients::bare(&mut command);
    target.line("ready");
    let attached = retryscope(words![
        "attach",
        "--ca-dir",
        authority.path(),
        "--upstream-ca",
        ca.pem(),
        "--cgroup",
        group.path(),
        "--fail",
        "closed"
    ]);
    attached.error_line("watching");
    let mut at = 0;
    let mut issuer = || {
        target.write(b"go\n");
        let (line, end) = target.line_after(at, "issuer");
        at = end;
        line
    };
    let first = issuer();
    assert!(first.contains("200 OK") && !first.contains("retryscope test authority"), "{first}");
    attached.signal(Signal::SIGTERM);
    attached.finish(SOON).ok();
    let second = issuer();
    assert!(second.contains("retryscope test authority"), "{second}");
    target.close_stdin();
    target.finish(SOON).ok();
}

/// Opens connections beyond what there is room for; tells how each went.
const MANY: &str = r#"
import socket, sys, time
held, went = [], {"open": 0, "refused": 0}
deadline = time.monotonic() + 60
wanted = sys.argv[2]
# Until the kernel has been told that there is no room.
while time.monotonic() < deadline and went[wanted] < 30:
    try:
        sock = socket.create_connection((sys.argv[1], 443), timeout=20)
        sock.sendall(b"not TLS\n")
        assert sock.recv(100) == b"not TLS\n"
        held.append(sock)
        if len(held) > 400:
            break
        went["open"] += wanted != "open"
        if wanted == "open" and len(held) > 100:
            went["open"] += 1
    except ConnectionRefusedError:
        went["refused"] += 1
print(len(held), went["refused"], flush=True)
for sock in held:
    sock.sendall(b"again\n")
    assert sock.recv(100) == b"again\n"
"#;

/// More connections than the limit of open files leaves room for: those that
/// were carried stay whole, the rest goes direct or is refused.
#[test]
fn out_of_open_files() {
    for how in ["open", "closed"] {
        let server = common::servers::Echo::start();
        let wanted = if how == "open" { "open" } else { "refused" };
        let program = words![
            "--fail",
            how,
            "--report",
            "json",
            "--",
            clients::python(),
            "-c",
            MANY,
            server.address.ip().to_string(),
            wanted
        ];
        // Root may lift its limits unless it is kept from that.
        let mut command = std::process::Command::new(clients::need("setpriv", "util-linux"));
        let kept = "-sys_resource";
        command
            .args(["--bounding-set", kept, "--inh-caps", kept, "--", "/bin/sh", "-c"])
            .args(["ulimit -Sn 160; ulimit -Hn 160; exec \"$@\"", "sh", common::run::RETRYSCOPE, "run"])
            .args(program);
        let finished = clients::bare(&mut command).finish(Duration::from_secs(90)).ok();
        let report = common::Report::parse(&finished.stderr[finished.stderr.find("{\n").unwrap_or_default()..]);
        let text = finished.text();
        let (held, refused) = text.trim().split_once(' ').expect("two numbers");
        let (held, refused): (u64, u64) = (held.parse().expect("a number"), refused.parse().expect("a number"));
        let tunnelled = report.connections("tunnelled");
        assert!((20..=48).contains(&tunnelled), "{how}: {tunnelled} of {held}: {report}");
        if how == "open" {
            assert_eq!(counter(&report, "direct_no_room"), held - tunnelled, "{report}");
            assert!(report.0["notes"].to_string().contains("had no room for more"), "{report}");
        } else {
            assert!(refused >= 30 && counter(&report, "blocked") == refused && held == tunnelled, "{report}");
        }
        assert_eq!(report.connections("refused"), 0, "{how}: {report}");
    }
}

/// The words are checked before anything starts.
#[test]
fn another_word_is_refused() {
    let finished = retryscope(words!["run", "--fail", "sometimes", "--", "true"]).finish(SOON).code(64);
    assert!(finished.stderr.contains("[possible values: open, closed]"), "{finished}");
}
