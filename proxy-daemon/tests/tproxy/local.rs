//! Processes of the network namespace that retryscope is in.
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{
    common::{Run, SOON, TestCa, TestCgroup, Upstream, clients, run::retryscope},
    words,
    world::{Attached, Client, ECHO, Echo, Net, SERVER, World, upstream},
};

/// Every process of the namespace, by IPv4 and IPv6: intercepted with its own
/// pid in the report, direct again afterwards, and nothing is left.
#[test]
fn everybody_in_the_namespace() {
    let world = World::near();
    let (mut one, mut other) = (Client::in_net(&world.client), Client::in_net(&world.client));
    assert!(!one.asks(SERVER[0]) && !one.asks(SERVER[1]), "before");
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(one.asks(host) && one.asks_by("fork", host) && other.asks(host), "{host}");
    }
    let pids = [one.running.pid, other.running.pid];
    let report = attached.finish();
    for host in SERVER {
        assert!(!one.asks(host), "after: {host}");
    }
    assert_eq!(report.connections("intercepted"), 6, "{report}");
    assert_eq!(report.0["redirect"]["way"], "tproxy", "{report}");
    assert_eq!(report.0["redirect"]["told_by_address"], 0, "{report}");
    for pid in pids {
        let row = report.processes().iter().find(|row| row["pid"] == pid);
        let row = row.unwrap_or_else(|| panic!("{pid} is not in the report: {report}"));
        assert_eq!(row["attempts"], 2, "{report}");
        assert!(row["command"].as_str().is_some_and(|command| command.contains("net.py")), "{report}");
    }
    world.client.nothing_left();
}

/// The command of `run` alone, told by its cgroup, with its descendants.
#[test]
fn the_command_of_a_run() {
    let world = World::near();
    let mut outside = Client::in_net(&world.client);
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let report = dir.path().join("report.json");
    let mut command = world.client.command(crate::common::run::RETRYSCOPE);
    command.args(["run", "--redirect", "tproxy", "--report", "json", "--report-file"]).arg(&report);
    command.arg("--upstream-ca").arg(world.ca.pem()).arg("--").arg(clients::python());
    let mut inside = Client::start(&mut command);
    for host in SERVER {
        assert!(inside.asks(host) && inside.asks_by("fork", host), "{host}");
        assert!(!outside.asks(host), "{host}");
    }
    inside.running.close_stdin();
    inside.running.finish(SOON).ok();
    let report = crate::common::Report::parse(&std::fs::read_to_string(report).expect("the report"));
    assert_eq!(report.connections("intercepted"), 4, "{report}");
    assert_eq!(report.processes().len(), 3, "the client and two children: {report}");
    world.client.nothing_left();
}

/// The same on the machine's own loopback, where the harness's servers are;
/// with the trust that `run` gives, so that clients verify as usual.
#[test]
fn on_the_loopback_with_trust() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().option("--redirect").option("tproxy").to(crate::common::NAME, upstream.address, &ca);
    let url = format!("https://{}/hello", crate::common::NAME);
    let outcome = run.go(words![clients::curl(), "-sS", url]).ok();
    assert_eq!(outcome.text(), "hello from /hello\n");
    let report = outcome.report();
    assert_eq!(report.connections("intercepted"), 1, "{report}");
    assert!(report.process("curl")["pid"].as_u64().is_some_and(|pid| pid > 1), "{report}");
}

/// A daemon that does not answer: connections go direct, and come here again
/// once it does.
#[test]
fn a_stalled_daemon() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    assert!(client.asks(SERVER[0]) && client.asks(SERVER[1]));
    let daemon = Pid::from_raw(attached.pid());
    kill(daemon, Signal::SIGSTOP).expect("stopping the daemon");
    for host in SERVER {
        client.goes_direct(host);
        client.keeps(host);
    }
    kill(daemon, Signal::SIGCONT).expect("letting it go on");
    for host in SERVER {
        client.is_taken(host);
    }
    assert_eq!(client.says(), ["word"; 2], "what went direct goes on so");
    let report = attached.finish();
    assert!(report.0["redirect"]["direct_stalled"].as_u64().is_some_and(|count| count >= 4), "{report}");
    assert!(report.0["notes"].to_string().contains("retryscope did not answer in time"), "{report}");
    world.client.nothing_left();
}

/// The kill switch: new connections go direct at once, and UDP; those under
/// way go on; and back.
#[test]
fn a_bypass() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    let pid = attached.pid().to_string();
    let bypass = |to: &str| retryscope(words!["bypass", to, "--instance", &pid]).finish(SOON).ok();
    for host in SERVER {
        assert!(client.asks(host), "{host}");
        client.keeps(host);
    }
    bypass("on");
    for host in SERVER {
        assert!(!client.asks(host) && !client.asks(host), "bypassed: {host}");
        client.keeps(host);
        assert_eq!(client.does(&format!("udp {host} 443"))["answer"], "hello");
    }
    bypass("off");
    for host in SERVER {
        assert!(client.asks(host), "again: {host}");
        let row = client.does(&format!("udp {host} 443"));
        assert!(["PermissionError", "ConnectionRefusedError"].iter().any(|name| row["error"] == *name), "{row}");
    }
    assert_eq!(client.says(), ["word"; 4], "what was under way goes on");
    bypass("on");
    assert!(!client.asks(SERVER[0]));
    client.does("let-go");
    let report = attached.finish();
    // Two times three, and one.
    assert_eq!(report.0["redirect"]["direct_bypassed"], 7, "{report}");
    assert_eq!(report.0["redirect"]["direct_no_room"], 0, "{report}");
    assert_eq!(report.connections("intercepted"), 4, "{report}");
    assert!(report.0["fidelity"].to_string().contains("while retryscope was bypassed"), "{report}");
    world.client.nothing_left();
}

/// More connections than the limit of open files leaves room for: those that
/// are carried stay whole, the rest goes direct, and later ones come here
/// again.
#[test]
fn out_of_open_files() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let mut command = world.client.command(clients::need("prlimit", "util-linux"));
    command.args(["--nofile=192:192", crate::common::run::RETRYSCOPE]);
    // What may raise its own limit is not limited.
    let attached = Attached::start_by(without_resource(&world.client, &command), &world.ca, words!["--netns"]);
    let row = client.does(&format!("fill {} {ECHO} 120", SERVER[0]));
    assert_eq!(row["kept"], 120, "{row}");
    assert!(!client.asks(SERVER[1]), "there is no room");
    assert!(client.says().iter().all(|answer| answer == "word"));
    client.does("let-go");
    client.is_taken(SERVER[1]);
    let report = attached.finish();
    let direct = report.0["redirect"]["direct_no_room"].as_u64().unwrap_or_default();
    let tunnelled = report.connections("tunnelled");
    assert!(direct >= 40 && (30..=64).contains(&tunnelled), "{report}");
    assert!(direct + tunnelled >= 120, "{report}");
}

/// Without the capability to raise limits.
fn without_resource(net: &Net, command: &std::process::Command) -> std::process::Command {
    let mut whole = net.command(clients::need("setpriv", "util-linux"));
    whole.arg("--bounding-set=-sys_resource").arg(command.get_program()).args(command.get_args());
    whole
}

/// Processes that come and go, many at a time: each is told by its pid.
#[test]
fn many_short_lived_processes() {
    let world = World::near();
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let report = dir.path().join("report.json");
    let mut command = world.client.command(crate::common::run::RETRYSCOPE);
    command.args(["run", "--redirect", "tproxy", "--report", "json", "--report-file"]).arg(&report);
    command.arg("--upstream-ca").arg(world.ca.pem()).args(["--", "sh", "-c"]);
    let script = "for n in $(seq 20); do for host in \"$@\"; do curl -sS https://$host/$n & done; done; wait";
    command.args([script, "sh", SERVER[0], "[2001:db8::1]"]);
    let finished = crate::common::Running::start(&mut command).finish(SOON * 3).ok();
    assert_eq!(finished.text().lines().count(), 40, "{finished}");
    let report = crate::common::Report::parse(&std::fs::read_to_string(report).expect("the report"));
    assert_eq!(report.processes().len(), 40, "{report}");
    for row in report.processes() {
        assert!(row["pid"].as_u64().is_some_and(|pid| pid > 1), "{report}");
        assert!(row["command"].as_str().is_some_and(|command| command.starts_with("curl -sS https://")), "{report}");
        assert_eq!(row["attempts"], 1, "{report}");
    }
    world.client.nothing_left();
}

/// Where no cgroup can be made, `run` takes the whole namespace if it is asked
/// for TPROXY by name, says so, and does not otherwise.
#[test]
fn a_run_without_cgroups() {
    let world = World::near();
    let mut outside = Client::in_net(&world.client);
    let start = |words: &[&str]| {
        let mut command = world.client.command(clients::need("unshare", "util-linux"));
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(r#"umount -R -l /sys/fs/cgroup; exec "$@""#).args(["sh", crate::common::run::RETRYSCOPE, "run"]);
        command.args(words).arg("--upstream-ca").arg(world.ca.pem()).arg("--").arg(clients::python());
        command
    };
    let mut inside = Client::start(&mut start(&["--redirect", "tproxy"]));
    for host in SERVER {
        assert!(inside.asks(host) && outside.asks(host), "{host}");
    }
    inside.running.close_stdin();
    let finished = inside.running.finish(SOON).ok();
    assert!(finished.stderr.contains("every process of this network namespace is redirected"), "{finished}");
    assert!(!outside.asks(SERVER[0]));
    let refused = crate::common::Running::start(&mut start(&[])).finish(SOON).code(69);
    assert!(refused.stderr.contains("no cgroup2 file system is mounted"), "{refused}");
    world.client.nothing_left();
}

/// A cgroup and those below it, and not its neighbours.
#[test]
fn a_cgroup() {
    let (world, group) = (World::near(), TestCgroup::new());
    let below = group.path().join("below");
    std::fs::create_dir(&below).expect("a cgroup");
    let start_in = |group: &std::path::Path| {
        let mut command = world.client.command("/bin/sh");
        command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(group).arg(clients::python());
        Client::start(&mut command)
    };
    let (mut inside, mut deep) = (start_in(group.path()), start_in(&below));
    let mut outside = Client::in_net(&world.client);
    let words = words!["--redirect", "tproxy", "--cgroup", group.path()];
    let attached = Attached::start(&world.client, &world.ca, words);
    for host in SERVER {
        assert!(inside.asks(host) && deep.asks(host), "{host}");
        assert!(!outside.asks(host), "{host}");
    }
    let report = attached.finish();
    assert_eq!(report.connections("intercepted"), 4, "{report}");
    assert!(!inside.asks(SERVER[0]) && !deep.asks(SERVER[1]));
    for mut client in [inside, deep] {
        client.running.close_stdin();
        client.running.finish(SOON).ok();
    }
    std::fs::remove_dir(below).expect("an empty cgroup");
}

/// However the daemon ends: the table goes with it, the next connection goes
/// direct, and the routes, which mean nothing by then, are removed too.
#[test]
fn a_killed_daemon_leaves_nothing() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    assert_eq!(world.client.tables(), ["table inet retryscope_0"]);
    assert_eq!(world.client.rules().len(), 4, "{:?}", world.client.rules());
    let killed = Instant::now();
    kill(Pid::from_raw(attached.running.pid), Signal::SIGKILL).expect("killing the daemon");
    attached.running.finish(SOON).code(128 + 9);
    println!("the daemon was gone after {:?}", killed.elapsed());
    // Whoever clears the routes holds the number meanwhile, with an empty table.
    assert!(!world.client.nft("list ruleset").contains("tproxy"), "a table is left");
    for host in SERVER {
        assert!(!client.asks(host), "{host}");
    }
    world.client.nothing_left();
}

/// Connections that are open when it begins go on, those that it has taken go
/// on while it ends, and those that begin meanwhile go direct.
#[test]
fn open_connections_go_on() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    for host in SERVER {
        client.keeps(host);
    }
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    assert_eq!(client.says(), ["word", "word"], "those of before");
    for host in SERVER {
        client.keeps(host);
    }
    assert_eq!(client.says(), ["word", "word", "word", "word"]);
    attached.running.signal(Signal::SIGTERM);
    // The table takes nothing any more; what is open has its time to end.
    client.goes_direct(SERVER[0]);
    assert_eq!(client.says(), ["word", "word", "word", "word"], "while it ends");
    client.keeps(SERVER[1]);
    // A second signal cuts those that it has.
    attached.running.signal(Signal::SIGTERM);
    let report = attached.finish();
    let after = client.says();
    assert_eq!([&after[..2], &after[4..]].concat(), ["word", "word", "word"], "{after:?}");
    assert!(!after[2..4].iter().any(|answer| answer == "word"), "{after:?}");
    assert_eq!(report.connections("tunnelled"), 2, "{report}");
    world.client.nothing_left();
}

/// QUIC is refused, unless it is allowed; other ports are left alone.
#[test]
fn quic_is_refused() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    for host in SERVER {
        let row = client.does(&format!("udp {host} 443"));
        assert!(["PermissionError", "ConnectionRefusedError"].iter().any(|name| row["error"] == *name), "{row}");
    }
    let report = attached.finish();
    assert_eq!(report.0["redirect"]["udp_refused"], 2, "{report}");
    let attached = Attached::start(&world.client, &world.ca, words!["--netns", "--allow-quic"]);
    for host in SERVER {
        assert_eq!(client.does(&format!("udp {host} 443"))["answer"], "hello");
    }
    attached.finish();
}

/// Every port: clients' connections are taken, whatever their port; those that
/// others make to servers here are left alone, also where they were open
/// before.
#[test]
fn any_port() {
    let world = World::near();
    let net = &world.client;
    let _own = upstream(net, "10.9.1.1", &world.ca);
    let _echo = Echo::start(net, "10.9.1.1");
    let (mut inside, mut outside) = (Client::in_net(net), Client::in_net(&world.server));
    outside.keeps("10.9.1.1");
    let attached = Attached::start(net, &world.ca, words!["--netns", "--port", "any"]);
    outside.keeps("10.9.1.1");
    for host in SERVER {
        assert!(inside.asks(host), "{host}");
        inside.keeps(host);
        // QUIC has a port of its own, which is not watched by name.
        assert_eq!(inside.does(&format!("udp {host} 443"))["answer"], "hello");
    }
    for _ in 0..3 {
        assert!(!outside.asks("10.9.1.1"));
        assert_eq!(outside.says(), ["word"; 2]);
        assert_eq!(inside.says(), ["word"; 2]);
    }
    let report = attached.finish();
    assert_eq!((report.connections("intercepted"), report.connections("tunnelled")), (2, 2), "{report}");
    assert_eq!(outside.says(), ["word"; 2]);
    net.nothing_left();
}

/// Systems that are strict about where packets come from, as WireGuard's
/// set-up makes them.
#[test]
fn strict_about_sources() {
    let world = World::near();
    for name in ["all", "eth0", "lo"] {
        world.client.set(&format!("net.ipv4.conf.{name}.rp_filter=1"));
    }
    world.client.set("net.ipv4.conf.all.src_valid_mark=1");
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    assert_eq!(attached.finish().connections("intercepted"), 2);
}

/// A machine without IPv6.
#[test]
fn without_ipv6() {
    let world = World::near();
    world.client.set("net.ipv6.conf.all.disable_ipv6=1");
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    assert!(client.asks(SERVER[0]));
    assert_eq!(world.client.rules().len(), 2, "{:?}", world.client.rules());
    assert_eq!(attached.finish().connections("intercepted"), 1);
    world.client.nothing_left();
}

/// A socket that is bound to a device cannot be led to the loopback: it goes
/// direct.
#[test]
fn bound_to_a_device() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    for host in SERVER {
        let row = client.does(&format!("device {host} 443 eth0"));
        assert!(row["issuer"].as_str().is_some_and(|issuer| issuer.contains("retryscope test authority")), "{row}");
    }
    assert_eq!(attached.finish().connections("intercepted"), 0);
}

/// What connects to the listener itself was not redirected, and is closed.
#[test]
fn nobody_uses_the_listener_as_a_proxy() {
    let world = World::near();
    let attached = Attached::start(&world.client, &world.ca, words!["--netns"]);
    let port = listener_port(&world.client);
    let refused = world.client.inside(|| {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.read(&mut [0; 10]).map_or(true, |read| read == 0)
    });
    assert!(refused);
    let report = attached.finish();
    assert_eq!(report.0["redirect"]["unmatched"], 1, "{report}");
    assert_eq!(report.0["redirect"]["strays"], 1, "{report}");
}

/// As the table tells.
fn listener_port(net: &Net) -> u16 {
    let table = net.nft("list table inet retryscope_0");
    let (_, rest) = table.split_once("tproxy ip to 127.0.0.1:").expect("a listener");
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a port")
}
