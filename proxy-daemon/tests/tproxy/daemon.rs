//! `daemon` by TPROXY, from its file: the process that serves may change no
//! packet filter, and another holds the table.
use nix::sys::signal::Signal;

use crate::{
    beside::{FOREIGN, listed, load},
    common::{Daemon, SOON, Site, TestCa, alive, clients, daemon::USER, run::RETRYSCOPE, until},
    words,
    world::{Client, Net, SERVER, World},
};

/// A daemon in a namespace.
fn start(site: &Site, net: &Net, top: &str, targets: &str) -> Daemon {
    site.write(&format!("ports = [443, 8443]\n{top}"), &format!("[targets]\n{targets}"));
    let mut command = net.command(RETRYSCOPE);
    command.args(site.command().get_args());
    site.started(command)
}

fn bypass(site: &Site, words: &[&str]) {
    let words = words!["bypass"].into_iter().chain(words.iter().map(Into::into));
    crate::common::run::retryscope(words.chain(words!["--name", &site.name])).finish(SOON).ok();
}

/// What each thread of a process may do: capabilities that it has, and user.
fn may(pid: i32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let mut found = Vec::new();
    for task in tasks {
        let text = std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("the status");
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.split_whitespace().next().expect("a value").to_owned()
        };
        for other in ["CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(of(other), "0000000000000000", "{other} of {pid}");
        }
        assert_eq!((of("NoNewPrivs:"), of("Seccomp:"), of("CapPrm:")), ("1".into(), "2".into(), of("CapEff:")));
        found.push((of("Uid:"), of("CapEff:")));
    }
    found.dedup();
    found
}

/// Every process of the namespace, by IPv4 and IPv6, with whose it is; the
/// rules of others stay as they are, byte for byte; reloads and bypasses; and
/// what each process may do.
#[test]
fn everybody_in_the_namespace() {
    let world = World::near();
    let net = &world.client;
    load(net, FOREIGN);
    let before = listed(net);
    let site = Site::new(&world.ca);
    let mut client = Client::in_net(net);
    assert!(!client.asks(SERVER[0]));
    let mut daemon = start(&site, net, "redirect = \"tproxy\"", "netns = true");
    daemon.said("connections are redirected by TPROXY");
    for host in SERVER {
        client.is_taken(host);
        assert!(client.asks(host), "{host}");
    }
    let during = listed(net);
    let (foreign, own) = during.split_once("table inet retryscope_0").expect("our table, behind the others");
    assert_eq!(foreign, before, "during");
    assert!(own.contains("flags owner"), "{own}");

    let uid = nix::unistd::User::from_name(USER).expect("users").expect("nobody").uid.to_string();
    let none = "0000000000000000".to_owned();
    // CAP_DAC_READ_SEARCH, CAP_NET_ADMIN and CAP_SYS_PTRACE.
    let filters = "0000000000081004".to_owned();
    let porter = daemon.porter().expect("a porter");
    assert_eq!(may(daemon.pid()), [(uid.clone(), none.clone())]);
    assert_eq!(may(daemon.keeper()), [("0".to_owned(), none)]);
    assert_eq!(may(porter), [(uid, filters)]);

    // A reload puts names in force, without a break.
    client.keeps(SERVER[0]);
    site.write("ports = [443, 8443]\nredirect = \"tproxy\"\npassthrough = [\"*\"]", "[targets]\nnetns = true");
    site.reload().ok();
    assert!(!client.asks(SERVER[1]), "left alone");
    site.write("ports = [443, 8443]\nredirect = \"tproxy\"", "[targets]\nnetns = true");
    let said = site.reload().ok().text();
    assert!(!said.contains("only after a restart"), "{said}");
    assert!(client.asks(SERVER[1]));
    for _ in 0..3 {
        bypass(&site, &[]);
        assert!(!client.asks(SERVER[0]) && !client.asks(SERVER[1]), "direct from the switch on");
        bypass(&site, &["off"]);
        assert!(client.asks(SERVER[0]) && client.asks(SERVER[1]), "here again from the switch on");
    }
    assert_eq!(client.says(), ["word"], "what was under way goes on");

    let report = daemon.report();
    assert_eq!(report.0["redirect"]["direct_bypassed"], 6, "{report}");
    let row = report.process("net.py");
    assert_eq!(row["pid"], client.running.pid, "{report}");
    daemon.end().ok();
    for host in SERVER {
        assert!(!client.asks(host), "after: {host}");
    }
    assert_eq!(listed(net), before, "after");
    net.nothing_left();
    until("the porter has ended", SOON, || (!alive(porter)).then_some(()));
}

/// Processes that come and go, many at a time, of another user than root: each
/// is told by its pid.
#[test]
fn many_short_lived_processes() {
    let world = World::near();
    let site = Site::new(&world.ca);
    let daemon = start(&site, &world.client, "", "netns = true");
    Client::in_net(&world.client).is_taken(SERVER[0]);
    let mut command = world.client.command(clients::need("setpriv", "util-linux"));
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c"]);
    let script = "for n in $(seq 20); do for host in \"$@\"; do curl -ksS https://$host/$n & done; done; wait";
    command.args([script, "sh", SERVER[0], "[2001:db8::1]"]);
    let finished = crate::common::Running::start(&mut command).finish(SOON * 3).ok();
    assert_eq!(finished.text().lines().count(), 40, "{finished}");
    let report = daemon.report();
    let rows: Vec<_> = report.processes().iter().filter(|row| row["command"] != "net.py").collect();
    let told = rows.iter().filter(|row| row["command"].as_str().is_some_and(|it| it.starts_with("curl -ksS"))).count();
    assert_eq!(told, 40, "{report}");
    daemon.end().ok();
    world.client.nothing_left();
}

/// What a gateway forwards, as `auto` has it; a kill of the daemon leaves no
/// table and no route, and one of its porter ends it.
#[test]
fn what_arrives_on_an_interface() {
    let world = World::behind_gateway();
    let gateway = world.here();
    load(gateway, FOREIGN);
    let before = listed(gateway);
    let site = Site::new(&world.ca);
    let mut client = Client::in_net(&world.client);
    let mut daemon = start(&site, gateway, "", "ingress = [\"lan\"]");
    daemon.said("the target is what arrives on lan");
    for host in SERVER {
        client.is_taken(host);
    }
    let mut own = Client::in_net(gateway);
    assert!(!own.asks(SERVER[0]) && !own.asks(SERVER[1]), "the gateway's own");
    let report = daemon.report();
    for address in ["10.9.1.1", "fd00:1::1"] {
        assert_eq!(report.process(address)["pid"], 0, "{report}");
    }
    daemon.signal(Signal::SIGKILL);
    daemon.running.take().expect("running").finish(SOON);
    for host in SERVER {
        client.goes_direct(host);
    }
    gateway.nothing_left();
    assert_eq!(listed(gateway), before, "after a kill");

    let mut daemon = start(&site, gateway, "", "ingress = [\"lan\"]");
    client.is_taken(SERVER[0]);
    let porter = nix::unistd::Pid::from_raw(daemon.porter().expect("a porter"));
    nix::sys::signal::kill(porter, Signal::SIGKILL).expect("killed");
    daemon.running.take().expect("running").finish(SOON).code(70);
    client.goes_direct(SERVER[0]);
    gateway.nothing_left();
    assert_eq!(listed(gateway), before, "after the other's kill");
}

/// A daemon that does not answer lets connections go direct, whatever the
/// process that holds the table thinks.
#[test]
fn a_stalled_daemon() {
    let world = World::near();
    let net = &world.client;
    let site = Site::new(&world.ca);
    let mut client = Client::in_net(net);
    let daemon = start(&site, net, "", "netns = true");
    client.is_taken(SERVER[0]);
    daemon.signal(Signal::SIGSTOP);
    client.goes_direct(SERVER[0]);
    daemon.signal(Signal::SIGCONT);
    client.is_taken(SERVER[0]);
    assert!(daemon.report().0["redirect"]["direct_stalled"].as_u64().is_some_and(|count| count > 0));
    daemon.end().ok();
    net.nothing_left();
}

/// What does not fit together is said before anything is touched.
#[test]
fn what_is_refused() {
    let ca = TestCa::new();
    let site = Site::new(&ca);
    let start = |top: &str, targets: &str| {
        site.write(top, &format!("[targets]\n{targets}"));
        clients::bare(&mut site.command()).finish(SOON).code(64).stderr
    };
    for (top, targets, part) in [
        ("redirect = \"tproxy\"", "cgroups = [\"/a\"]", "not cgroups: set `netns` or `ingress`"),
        ("redirect = \"ebpf\"", "netns = true", "eBPF takes cgroups"),
        ("", "netns = true\nunits = [\"a.service\"]", "stands in the place of cgroups"),
        ("", "netns = true\ningress = [\"lan\"]", "not both"),
        ("fail = \"closed\"", "ingress = [\"lan\"]", "write open"),
        ("redirect = \"cgroups\"", "", "unknown variant"),
    ] {
        let said = start(top, targets);
        assert!(said.contains(part), "{part}: {said}");
    }
    site.write("", "[targets]\nnetns = true");
    let said = clients::bare(site.command().args(["--unit", "a"])).finish(SOON).code(64).stderr;
    assert!(said.contains("leave out --cgroup, --unit"), "{said}");
    site.write("", "[targets]\ningress = [\"nowhere0\"]");
    let said = clients::bare(&mut site.command()).finish(SOON).code(64).stderr;
    assert!(said.contains("no network interface nowhere0"), "{said}");
}
