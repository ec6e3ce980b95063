//! Beside others: what they have in the packet filter, and other instances.
use std::{io::Write, process::Stdio};

use crate::{
    common::{SOON, clients},
    words,
    world::{Attached, Client, Net, SERVER, World, run},
};

/// A host's firewall: filters, marks, address translation, a chain at our own
/// priority, sets and named counters.
pub(crate) const FOREIGN: &str = r#"
table inet firewall {
    set blocked { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 } }
    counter web { }
    chain input { type filter hook input priority filter; policy accept;
        ct state established,related accept
        ip saddr @blocked drop
    }
    chain output { type filter hook output priority filter; policy accept;
        tcp dport 443 counter name web
        tcp dport 25 reject
    }
    chain marks { type route hook output priority mangle; policy accept;
        tcp dport 22 meta mark set 0x00000022
    }
}
table ip translation {
    chain post { type nat hook postrouting priority srcnat; policy accept;
        oifname "eth1" masquerade
    }
    chain out { type nat hook output priority -100; policy accept;
        ip daddr 203.0.113.7 tcp dport 443 dnat to 192.0.2.1:443
    }
}
table ip6 other {
    chain pre { type filter hook prerouting priority raw; policy accept;
        udp dport 53 notrack
    }
}
"#;

pub(crate) fn load(net: &Net, ruleset: &str) {
    let mut child = net.command(clients::need("nft", "nftables")).args(["-f", "-"]).stdin(Stdio::piped()).spawn();
    let child = child.as_mut().expect("nft");
    child.stdin.take().expect("a pipe").write_all(ruleset.as_bytes()).expect("writing");
    assert!(child.wait().expect("nft").success());
}

/// With handles, without what counters have counted.
pub(crate) fn listed(net: &Net) -> String {
    net.nft("--stateless --handle list ruleset")
}

/// What was in the packet filter before is the same, byte for byte, during and
/// after; and it works on.
#[test]
fn the_rules_of_others_are_untouched() {
    let world = World::near();
    let net = &world.client;
    load(net, FOREIGN);
    for (program, words) in [
        ("iptables-nft", "-t mangle -A OUTPUT -p tcp --dport 80 -j MARK --set-xmark 0x50/0xff"),
        ("iptables-nft", "-A OUTPUT -p tcp --dport 443 -m comment --comment kept -j ACCEPT"),
        ("ip6tables-nft", "-t nat -A POSTROUTING -o eth1 -j MASQUERADE"),
    ] {
        run(net.command(clients::need(program, "iptables")).args(words.split(' ')));
    }
    let before = listed(net);
    let mut client = Client::in_net(net);
    assert!(!client.asks(SERVER[0]));
    let attached = Attached::start(net, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    let during = listed(net);
    let (foreign, own) = during.split_once("table inet retryscope_0").expect("our table, behind the others");
    assert_eq!(foreign, before, "during");
    assert!(own.starts_with(" {") && own.contains("flags owner"), "{own}");
    // Address translation still has its turn.
    assert!(client.does("tls 203.0.113.7 443")["issuer"] != "none");
    attached.finish();
    assert_eq!(listed(net), before, "after");
    net.nothing_left();
}

/// `run` inside of a namespace that another instance takes as a whole: its
/// command is its own, everything else the other's.
#[test]
fn a_run_inside_of_a_namespace_that_is_taken() {
    let world = World::near();
    let net = &world.client;
    let mut outside = Client::in_net(net);
    let attached = Attached::start(net, &world.ca, words!["--netns"]);
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let report = dir.path().join("report.json");
    let mut command = net.command(crate::common::run::RETRYSCOPE);
    command.args(["run", "--redirect", "tproxy", "--report", "json", "--report-file"]).arg(&report);
    command.arg("--upstream-ca").arg(world.ca.pem()).arg("--").arg(clients::python());
    let mut inside = Client::start(&mut command);
    assert_eq!(net.tables().len(), 2);
    for host in SERVER {
        assert!(inside.asks(host) && outside.asks(host), "{host}");
    }
    assert_eq!(world.requests(), 4);
    inside.running.close_stdin();
    inside.running.finish(SOON).ok();
    assert!(outside.asks(SERVER[0]));
    let of_run = crate::common::Report::parse(&std::fs::read_to_string(report).expect("the report"));
    assert_eq!(of_run.connections("intercepted"), 2, "{of_run}");
    let of_all = attached.finish();
    assert_eq!(of_all.connections("intercepted"), 3, "{of_all}");
    net.nothing_left();
}

/// All of a namespace is taken once; a second instance is refused, and the
/// first does not notice.
#[test]
fn all_of_a_namespace_is_taken_once() {
    let world = World::near();
    let net = &world.client;
    let mut client = Client::in_net(net);
    let attached = Attached::start(net, &world.ca, words!["--netns"]);
    let mut second = net.command(crate::common::run::RETRYSCOPE);
    let authority = attached.authority();
    second.args(["attach", "--netns", "--for", "1s", "--ca-dir"]).arg(authority.parent().expect("its folder"));
    let refused = crate::common::Running::start(&mut second).finish(SOON).code(69);
    assert!(refused.stderr.contains("another instance already takes all of this network namespace"), "{refused}");
    assert!(client.asks(SERVER[0]));
    assert_eq!(attached.finish().connections("intercepted"), 1);
    net.nothing_left();
}

/// What a killed instance left in the routing tables, its janitor killed with
/// it, is replaced by the next and gone after it.
#[test]
fn leftovers_are_replaced() {
    let world = World::near();
    let net = &world.client;
    for (number, family) in [(0, "-4"), (3, "-6")] {
        net.ip(&format!(
            "{family} rule add fwmark {} iif lo priority {} lookup {}",
            0x1060 + number,
            1060 + number,
            1060 + number
        ));
        net.ip(&format!("{family} route add local default dev lo table {}", 1060 + number));
    }
    // Somebody else's, at a priority of ours.
    net.ip("rule add fwmark 7 priority 1060 lookup main");
    let mut client = Client::in_net(net);
    let attached = Attached::start(net, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    attached.finish();
    assert!(net.rules().is_empty(), "{:?}", net.rules());
    assert!(net.ip("rule list").contains("1060:"), "another's rule is gone");
}
