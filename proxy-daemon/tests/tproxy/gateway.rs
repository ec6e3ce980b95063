//! Traffic of other machines, forwarded by the one that retryscope is on.
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::SOON,
    words,
    world::{Attached, Client, SERVER, World, upstream},
};

/// What arrives on the interface, by IPv4 and IPv6: intercepted, and told by
/// the client's address, which is said plainly.
#[test]
fn what_arrives_on_an_interface() {
    let world = World::behind_gateway();
    let gateway = world.here();
    let mut client = Client::in_net(&world.client);
    assert!(!client.asks(SERVER[0]) && !client.asks(SERVER[1]), "before");
    let attached = Attached::start(gateway, &world.ca, words!["--ingress", "lan"]);
    for host in SERVER {
        assert!(client.asks(host) && client.asks(host), "{host}");
    }
    // The gateway's own connections are its own.
    let mut own = Client::in_net(gateway);
    assert!(!own.asks(SERVER[0]) && !own.asks(SERVER[1]));
    let report = attached.finish();
    for host in SERVER {
        assert!(!client.asks(host), "after: {host}");
    }
    assert_eq!(report.connections("intercepted"), 4, "{report}");
    for address in ["10.9.1.1", "fd00:1::1"] {
        let row = report.process(address);
        assert_eq!((&row["pid"], &row["attempts"]), (&0.into(), &2.into()), "{report}");
        assert_eq!(row["exited"], false, "{report}");
    }
    let notes = report.0["notes"].to_string();
    assert!(notes.contains("4 connections came from other machines"), "{notes}");
    assert!(notes.contains("redirected by TPROXY"), "{notes}");
    gateway.nothing_left();
}

#[test]
fn a_killed_daemon_leaves_nothing() {
    let world = World::behind_gateway();
    let gateway = world.here();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(gateway, &world.ca, words!["--ingress", "lan"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    assert_eq!(gateway.tables(), ["table inet retryscope_1"]);
    kill(Pid::from_raw(attached.running.pid), Signal::SIGKILL).expect("killing the daemon");
    attached.running.finish(SOON).code(128 + 9);
    // Whoever clears the routes holds the number meanwhile, with an empty table.
    assert!(!gateway.nft("list ruleset").contains("tproxy"), "a table is left");
    for host in SERVER {
        assert!(!client.asks(host), "{host}");
    }
    gateway.nothing_left();
}

/// As for local processes.
#[test]
fn open_connections_go_on() {
    let world = World::behind_gateway();
    let gateway = world.here();
    let mut client = Client::in_net(&world.client);
    for host in SERVER {
        client.keeps(host);
    }
    let attached = Attached::start(gateway, &world.ca, words!["--ingress", "lan"]);
    for host in SERVER {
        client.keeps(host);
    }
    assert_eq!(client.says(), ["word"; 4]);
    attached.running.signal(Signal::SIGTERM);
    client.goes_direct(SERVER[0]);
    assert_eq!(client.says(), ["word"; 4], "while it ends");
    attached.running.signal(Signal::SIGTERM);
    let report = attached.finish();
    assert_eq!(client.says()[..2], ["word"; 2]);
    assert_eq!(report.connections("tunnelled"), 2, "{report}");
}

/// As for local processes.
#[test]
fn a_stalled_daemon() {
    let world = World::behind_gateway();
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(world.here(), &world.ca, words!["--ingress", "lan"]);
    let daemon = Pid::from_raw(attached.pid());
    kill(daemon, Signal::SIGSTOP).expect("stopping the daemon");
    for host in SERVER {
        client.goes_direct(host);
    }
    kill(daemon, Signal::SIGCONT).expect("letting it go on");
    for host in SERVER {
        client.is_taken(host);
    }
    let report = attached.finish();
    assert!(report.0["redirect"]["direct_stalled"].as_u64().is_some_and(|count| count >= 2), "{report}");
}

/// QUIC is refused as by a closed port; the gateway's own servers are reached.
#[test]
fn quic_and_the_gateways_own_servers() {
    let world = World::behind_gateway();
    let gateway = world.here();
    let own = ["10.9.1.2", "fd00:1::2"];
    let _upstreams = own.map(|host| upstream(gateway, host, &world.ca));
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(gateway, &world.ca, words!["--ingress", "lan"]);
    for (host, own) in SERVER.into_iter().zip(own) {
        assert_eq!(client.does(&format!("udp {host} 443"))["error"], "ConnectionRefusedError", "{host}");
        assert!(!client.asks(own), "{own}");
        assert!(client.asks(host), "{host}");
    }
    let report = attached.finish();
    assert_eq!(report.0["redirect"]["udp_refused"], 2, "{report}");
    assert_eq!(client.does(&format!("udp {} 443", SERVER[0]))["answer"], "hello");
}

/// Systems that are strict about where packets come from.
#[test]
fn strict_about_sources() {
    let world = World::behind_gateway();
    let gateway = world.here();
    for name in ["all", "wan", "lan", "lo"] {
        gateway.set(&format!("net.ipv4.conf.{name}.rp_filter=1"));
    }
    gateway.set("net.ipv4.conf.all.src_valid_mark=1");
    let mut client = Client::in_net(&world.client);
    let attached = Attached::start(gateway, &world.ca, words!["--ingress", "lan"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    assert_eq!(attached.finish().connections("intercepted"), 2);
}
