//! `attach` by what people call things: containers, with network and pid
//! namespaces of their own, and units.
mod common;

use std::{
    ffi::OsString,
    fs::File,
    net::TcpListener,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    NAME, Report, Running, SOON, TestCa, TestCgroup, Upstream, ca, clients, podman::Container, run::retryscope, until,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};
use serde_json::Value;

/// The server's address, in a namespace that only the container is wired to.
const SERVER: &str = "198.51.100.1";
const CLIENT: &str = "198.51.100.2";
const LOOP: &str = include_str!("clients/loop.py");

/// A network namespace, held by a process in it.
struct Network {
    holder: Running,
}

impl Network {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep 600"]);
        let holder = clients::bare(&mut command);
        holder.line("ready");
        Self { holder }
    }

    fn listener(&self, address: &str) -> TcpListener {
        listener_in(self.holder.pid, address)
    }
}

/// A server's socket in the network namespace of a process.
fn listener_in(pid: i32, address: &str) -> TcpListener {
    let (namespace, address) = (format!("/proc/{pid}/ns/net"), address.to_owned());
    std::thread::spawn(move || {
        let namespace = File::open(namespace).expect("the namespace");
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace: run as root");
        TcpListener::bind(address).expect("a listener")
    })
    .join()
    .expect("a listener")
}

/// `ip ARGUMENTS` in the network namespace of a process.
#[track_caller]
fn ip(pid: i32, arguments: &str) {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "ip"]).args(arguments.split(' '));
    clients::bare(&mut command).finish(SOON).ok();
}

/// A wire between a container and a network, with an address at each end.
fn wire(container: &Container, network: &Network) {
    let (here, there) = (container.pid, network.holder.pid);
    ip(here, &format!("link add c0 type veth peer name s0 netns {there}"));
    for (pid, device, address) in [(here, "c0", CLIENT), (there, "s0", SERVER)] {
        ip(pid, &format!("address add {address}/24 dev {device}"));
        ip(pid, &format!("link set {device} up"));
    }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    retryscope(words!["ca", "init", "--ca-dir", dir.path().join("ca")]).finish(SOON).ok();
    dir
}

/// Starts `attach` and waits until it is in force.
fn attach(upstream_ca: &TestCa, dir: &Path, words: Vec<OsString>) -> Running {
    let all = words!["attach", "--ca-dir", dir.join("ca"), "--upstream-ca", upstream_ca.pem(), "--report", "json"];
    let mut running = retryscope(all.into_iter().chain(words!["--report-file", dir.join("report")]).chain(words));
    until("attach says that it watches", SOON, || {
        let said = common::show(&running.stderr.bytes());
        assert!(!running.ended(), "attach ended: {said}");
        said.contains("now on").then_some(())
    });
    running
}

fn end(running: Running, dir: &Path) -> (Report, String) {
    running.signal(Signal::SIGTERM);
    let said = running.finish(SOON).ok().stderr;
    (Report::parse(&std::fs::read_to_string(dir.join("report")).expect("the report")), said)
}

/// The answer of a loop to a line; whether it was intercepted.
fn connects(running: &mut Running, at: &mut usize) -> (bool, Value) {
    running.write(b"go\n");
    let (line, end) = running.line_after(*at, "issuer");
    *at = end;
    let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
    let issuer = row["issuer"].as_str().unwrap_or_default();
    assert_ne!(issuer, "none", "the connection failed: {row}");
    (!issuer.contains("retryscope test authority"), row)
}

/// Of the processes in a cgroup, the one that has this number in its own pid
/// namespace.
fn outer(cgroup: &Path, inner: u64) -> u64 {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("the processes");
    let is = |pid: &&str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default().to_owned();
        numbers.split_whitespace().nth(1) == Some(&inner.to_string())
    };
    pids.lines().find(is).and_then(|pid| pid.parse().ok()).expect("the process")
}

/// By name and by id: a client that trusts the authority notices nothing,
/// its server is one that only the container can reach, and the report knows
/// whose connections these were.
#[test]
fn container_with_namespaces_of_its_own() {
    let authority = TestCa::new();
    let network = Network::new();
    let container = Container::start("retryscope-web", &["sleep", "600"]);
    wire(&container, &network);
    let listener = network.listener(&format!("{SERVER}:443"));
    let upstream = Upstream::at(listener, &authority, ca::Leaf::Good, &[NAME], &["h2", "http/1.1"]);
    for wanted in [&container.name[..container.name.len() - 1], &container.id[..12]] {
        let dir = folder();
        let running = attach(&authority, dir.path(), words!["--container", wanted]);
        let pem = std::fs::read_to_string(ca::certificate(&dir.path().join("ca"))).expect("the certificate");
        container.write("/authority.pem", &pem);
        let (resolve, url) = (format!("{NAME}:443:{SERVER}"), format!("https://{NAME}/hello"));
        let curl = ["curl", "-sS", "--cacert", "/authority.pem", "--resolve", &resolve, &url];
        assert_eq!(container.exec(curl).finish(SOON).ok().text(), "hello from /hello\n");
        let mut python = container.exec(["python3", "-I", "-c", LOOP, SERVER]);
        let (intercepted, row) = connects(&mut python, &mut 0);
        assert!(intercepted, "{row}");
        let inner = row["pid"].as_u64().expect("a pid");
        let pid = outer(&container.cgroup(), inner);
        python.close_stdin();
        python.finish(SOON).ok();
        let (report, said) = end(running, dir.path());

        assert_eq!(report.connections("intercepted"), 2, "{report}");
        for part in ["curl -sS --cacert", "python3 -I -c"] {
            let row = report.process(part);
            assert_eq!(
                (&row["container"], &row["container_name"]),
                (&container.id.clone().into(), &container.name.clone().into())
            );
            assert!(row["inner_pid"].as_u64().is_some_and(|inner| inner > 1), "{row}");
        }
        let row = report.process("python3 -I -c");
        assert_eq!((row["pid"].as_u64(), row["inner_pid"].as_u64()), (Some(pid), Some(inner)), "{row}");
        assert!(said.contains(&format!("watching container {} ({})", container.name, &container.id[..12])), "{said}");
        let text = retryscope(words!["report", dir.path().join("report")]).finish(SOON).ok().text();
        // Lines are broken where they are full.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&format!("({pid}, container {})", container.name)), "{text}");
    }
    // Direct again, and nobody listens there any more.
    let mut python = container.exec(["python3", "-I", "-c", LOOP, SERVER]);
    assert!(!connects(&mut python, &mut 0).0);
    python.close_stdin();
    python.finish(SOON).ok();
    let listening = std::fs::read_to_string(format!("/proc/{}/net/tcp", container.pid)).expect("its sockets");
    assert_eq!(listening.lines().filter(|line| line.split_whitespace().nth(3) == Some("0A")).count(), 0, "{listening}");
    drop(upstream);
}

/// What could be meant is listed.
#[test]
fn names_that_mean_no_container_or_several() {
    let containers = [0, 1].map(|_| Container::start("retryscope-twin", &["sleep", "600"]));
    let dir = folder();
    let refused = |wanted: &str| {
        let finished =
            retryscope(words!["attach", "--ca-dir", dir.path().join("ca"), "--container", wanted]).finish(SOON);
        assert_eq!(finished.code, 64, "{finished}");
        finished.stderr
    };
    for wanted in ["retryscope-twin", "no-such-container"] {
        let said = refused(wanted);
        assert!(containers.iter().all(|container| said.contains(&container.name)), "{said}");
        assert!(containers.iter().all(|container| said.contains(&container.id[..12])), "{said}");
    }
}

/// A loop in a network namespace and the cgroup, and a server beside it.
fn isolated(group: &TestCgroup, authority: &TestCa) -> (Running, Upstream) {
    let script = "ip link set lo up && exec \"$@\"";
    let mut command = group.command(Path::new("/usr/bin/unshare"));
    command.args(["--net", "sh", "-c", script, "sh", "/usr/bin/python3", "-I", "-c", LOOP, "127.0.0.1"]);
    let running = clients::bare(&mut command);
    running.line("ready");
    let listener = listener_in(running.pid, "127.0.0.1:443");
    (running, Upstream::at(listener, authority, ca::Leaf::Good, &[NAME], &["http/1.1"]))
}

/// A process that is somewhere else from the start, and one that comes later.
#[test]
fn processes_in_network_namespaces() {
    let (authority, group, dir) = (TestCa::new(), TestCgroup::new(), folder());
    let (mut first, upstream) = isolated(&group, &authority);
    let running = attach(&authority, dir.path(), words!["--pid", first.pid.to_string()]);
    assert!(connects(&mut first, &mut 0).0);
    let (report, _) = end(running, dir.path());
    assert_eq!(report.connections("intercepted"), 1, "{report}");
    drop((first, upstream));

    let running = attach(&authority, dir.path(), words!["--cgroup", group.path()]);
    let (mut later, upstream) = isolated(&group, &authority);
    let (mut at, mut before) = (0, 0);
    until("the new namespace has been noticed", SOON, || {
        let intercepted = connects(&mut later, &mut at).0;
        before += u64::from(!intercepted);
        intercepted.then_some(())
    });
    let (report, _) = end(running, dir.path());
    assert_eq!(report.connections("intercepted"), 1, "{report}");
    assert_eq!(report.0["redirect"]["direct_other_netns"], before, "those before were counted: {report}");
    drop((later, upstream));
}

/// As systemd would name the cgroup.
#[test]
fn unit() {
    let (authority, group, dir) = (TestCa::new(), TestCgroup::of_kind(".service"), folder());
    let upstream = Upstream::start(&authority);
    let name = group.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let mut command = group.command(&PathBuf::from("/usr/bin/python3"));
    command.args(["-I", "-c", LOOP]).arg(upstream.address.ip().to_string());
    let mut target = clients::bare(&mut command);
    let running = attach(&authority, dir.path(), words!["--unit", name.trim_end_matches(".service")]);
    assert!(connects(&mut target, &mut 0).0);
    let (report, said) = end(running, dir.path());
    assert!(said.contains(&format!("watching unit {name}")), "{said}");
    assert!(!report.0["notes"].to_string().contains("went away"), "{report}");
    assert_eq!(report.process("python3")["unit"], *name, "{report}");

    let refused = retryscope(words!["attach", "--ca-dir", dir.path().join("ca"), "--unit", format!("x{name}")]);
    let refused = refused.finish(Duration::from_secs(20)).code(64);
    assert!(refused.stderr.contains(&format!("there is no unit x{name}; did you mean {name}?")), "{refused}");

    // As when it is restarted.
    target.close_stdin();
    target.finish(SOON).ok();
    let running = attach(&authority, dir.path(), words!["--unit", &name]);
    until("the cgroup can be removed", SOON, || std::fs::remove_dir(group.path()).ok());
    std::fs::create_dir(group.path()).expect("the cgroup anew");
    let (report, _) = end(running, dir.path());
    assert!(report.0["notes"].to_string().contains(&format!("unit {name} went away")), "{report}");
}

/// A daemon takes containers by patterns of their names, those that are there
/// and those that come later; its keeper reads the engine's files, confined.
#[test]
fn a_daemon_takes_containers_by_name() {
    let site = common::Site::new(&TestCa::new());
    let prefix = format!("rs-named-{}", std::process::id());
    let (there, other) =
        (Container::start(&format!("{prefix}-a"), &["sleep", "600"]), Container::start("rs-other", &["sleep", "600"]));
    site.write("", &format!("[targets]\ncontainers = [\"{prefix}-*\"]"));
    let daemon = site.start();
    daemon.watches(&there.cgroup());
    let later = Container::start(&format!("{prefix}-b"), &["sleep", "600"]);
    daemon.watches(&later.cgroup());
    assert!(common::cgroup::links(common::cgroup::id(&other.cgroup())).is_empty(), "another's");
    site.write("", &format!("[targets]\ncontainers = [\"{}\"]", other.name));
    site.reload().ok();
    daemon.watches(&other.cgroup());
    until("the others are let go", SOON, || {
        // What serves connections under way stays a moment longer.
        (common::cgroup::links(common::cgroup::id(&there.cgroup())).len() <= 3).then_some(())
    });
    daemon.end().ok();
}

/// A daemon listens in a container that comes, before it connects, and reaches
/// its server from there; the door closes behind it.
#[test]
fn a_daemon_serves_a_container() {
    let authority = TestCa::new();
    let (network, site) = (Network::new(), common::Site::new(&authority));
    let prefix = format!("rs-served-{}", std::process::id());
    site.write("", &format!("[targets]\ncontainers = [\"{prefix}-*\"]"));
    let mut daemon = site.start();
    let container = Container::start(&format!("{prefix}-a"), &["sleep", "600"]);
    daemon.said(&format!("listening in the network namespace of process {}", container.pid));
    wire(&container, &network);
    let listener = network.listener(&format!("{SERVER}:443"));
    let _upstream = Upstream::at(listener, &authority, ca::Leaf::Good, &[NAME], &["h2", "http/1.1"]);
    let mut python = container.exec(["python3", "-I", "-c", LOOP, SERVER]);
    let (intercepted, row) = connects(&mut python, &mut 0);
    assert!(intercepted, "{row}");
    let report = daemon.report();
    let row = report.process("python3 -I -c");
    assert_eq!(row["container"], container.id, "{row}");
    assert_eq!(report.0["redirect"]["direct_other_netns"], 0, "{report}");
    python.close_stdin();
    python.finish(SOON).ok();
    drop(container);
    daemon.said("nobody is left there");
    daemon.end().ok();
}

/// A command that `run` starts and that goes into a namespace of its own is
/// followed there.
#[test]
fn a_command_in_a_network_of_its_own() {
    let (authority, dir) = (TestCa::new(), folder());
    let script = "ip link set lo up && exec python3 -c \"$0\" 127.0.0.1";
    let words = words!["run", "--no-mount", "--upstream-ca", authority.pem(), "--report", "json"];
    let words = words.into_iter().chain(words!["--report-file", dir.path().join("report"), "--"]);
    let mut running = retryscope(words.chain(words!["unshare", "--net", "sh", "-c", script, LOOP]));
    let (line, mut at) = running.line_after(0, "ready");
    let pid = serde_json::from_str::<Value>(&line).expect("JSON")["ready"].as_i64().expect("a pid");
    let listener = listener_in(i32::try_from(pid).expect("a pid"), "127.0.0.1:443");
    let _upstream = Upstream::at(listener, &authority, ca::Leaf::Good, &[NAME], &["http/1.1"]);
    until("it is listened to there", SOON, || connects(&mut running, &mut at).0.then_some(()));
    running.close_stdin();
    running.finish(SOON).ok();
    let report = Report::parse(&std::fs::read_to_string(dir.path().join("report")).expect("the report"));
    assert_eq!(report.total("attempts"), 1, "{report}");
    let processes = report.0["processes"].as_array().expect("processes");
    assert!(processes.iter().any(|process| process["pid"] == pid), "{report}");
}
