//! What must not be redirected goes where it was meant to, and is counted.
use std::net::TcpListener;

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use crate::world::{accept, ip, server, world};

#[test]
fn process_outside_of_the_cgroup() {
    world(|world| {
        let daemon = world.daemon();
        let direct = server("127.0.0.1:443");
        let mut stranger = world.stranger();
        assert_eq!(stranger.run("s = connect('127.0.0.1'); result = peer(s)"), json!(["127.0.0.1", 443]));
        accept(&direct);
        assert_eq!(daemon.counters().redirected, 0);
    });
}

#[test]
fn stray_connect_to_the_listener_has_no_record() {
    world(|world| {
        let daemon = world.daemon();
        let port = daemon.port();
        let mut stranger = world.stranger();
        stranger.run(&format!("s = connect('127.0.0.1', {port})"));
        assert_eq!(daemon.accept().1, None);
        let mut client = world.client();
        client.run(&format!("s = connect('127.0.0.1', {port})"));
        assert_eq!(daemon.accept().1, None);
        assert_eq!(daemon.counters().unmatched, 2);
    });
}

/// The daemon itself may be in the target's cgroup.
#[test]
fn exempt_socket_in_the_target() {
    world(|world| {
        let direct = server("127.0.0.1:443");
        let mut options = world.options();
        let own = retryscope::redirect::cgroup::own().unwrap();
        // This test's own cgroup as the target: others share it, so only a
        // port of this test's own is watched.
        options.target = retryscope::redirect::Target::Cgroup(own);
        let daemon = world.daemon_with(&options);
        let socket = || {
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(socket2::Protocol::TCP)).unwrap()
        };
        let to = "127.0.0.1:443".parse::<std::net::SocketAddr>().unwrap().into();
        let ours = socket();
        daemon.redirect.exempt(&ours).unwrap();
        ours.connect(&to).unwrap();
        accept(&direct);
        let other = socket();
        other.connect(&to).unwrap();
        assert_eq!(daemon.redirected().owner.key.pid, std::process::id());
    });
}

#[test]
fn socket_bound_to_another_device() {
    world(|world| {
        ip("link add va type veth peer name vb");
        ip("address add 198.51.100.1/24 dev va");
        ip("link set va up");
        ip("link set vb up");
        let daemon = world.daemon();
        let direct = server("198.51.100.1:443");
        let mut client = world.client();
        let bound = "s = tcp(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'@')";
        client.run(&format!("{}; s.connect(('192.0.2.1', 443))", bound.replace('@', "lo")));
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.1:443");
        // Direct, through that device: nobody answers there, or an answer
        // comes; either way it is not the daemon's.
        client.run(&format!(
            "{}; s.settimeout(0.05); s.connect_ex(('198.51.100.1', 443)); s.close()",
            bound.replace('@', "va")
        ));
        assert_eq!(daemon.counters().direct_bound_device, 1);
        assert_eq!(daemon.counters().redirected, 1);
        drop(direct);
    });
}

#[test]
fn socket_in_another_network_namespace() {
    world(|world| {
        let daemon = world.daemon();
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        let direct = server("127.0.0.1:443");
        let mut client = world.client();
        client.run("s = connect('127.0.0.1')");
        accept(&direct);
        assert_eq!(daemon.counters().direct_other_netns, 1);
        setns(here, CloneFlags::CLONE_NEWNET).unwrap();
        let mut client = world.client();
        client.run("s = connect('192.0.2.1')");
        daemon.redirected();
    });
}

#[test]
fn host_without_v6() {
    world(|world| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        let daemon = world.daemon();
        assert!(daemon.listeners.v6.is_none());
        let mut client = world.client();
        client.run("s = connect('192.0.2.1')");
        daemon.redirected();
        client.run("s = connect('::ffff:192.0.2.1')");
        daemon.redirected();
        // Fails as it would without us.
        let without = i64::from(nix::libc::EADDRNOTAVAIL);
        let direct = world.stranger().errno("s = connect('2001:db8::7')");
        assert_eq!(client.errno("s = connect('2001:db8::7')"), direct, "{without}");
        assert_eq!(daemon.counters().direct_no_listener, 1);
    });
}

#[test]
fn link_local_destination() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = tcp(socket.AF_INET6); s.settimeout(0.05); s.connect_ex(('fe80::1', 443, 0, 1)); s.close()");
        assert_eq!((daemon.counters().direct_link_local, daemon.counters().redirected), (1, 0));
    });
}

/// The kernel gives a socket no memory for the record.
#[test]
fn record_that_cannot_be_stored() {
    world(|world| {
        let daemon = world.daemon();
        let direct: TcpListener = server("127.0.0.1:443");
        let mut client = world.client();
        std::fs::write("/proc/sys/net/core/optmem_max", "0").unwrap();
        let peer = client.run("s = connect('127.0.0.1'); result = peer(s)");
        assert_eq!(peer, json!(["127.0.0.1", 443]));
        accept(&direct);
        assert_eq!((daemon.counters().direct_no_record, daemon.counters().redirected), (1, 0));
        client.run("s = connect('127.0.0.1', protocol=262)");
        accept(&direct);
        assert_eq!((daemon.counters().direct_no_record, daemon.counters().redirected), (2, 0));
    });
}
