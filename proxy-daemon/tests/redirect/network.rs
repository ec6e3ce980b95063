//! Processes in network namespaces of their own, as in containers.
use std::{fs::File, net::TcpStream, os::fd::AsFd};

use nix::sched::{CloneFlags, setns, unshare};
use retryscope::redirect::{Door, Network, Target};
use serde_json::json;

use crate::world::{Client, Daemon, World, accept, address, ip, server, world};

/// A client of the target in a namespace of its own, and that namespace.
fn elsewhere(world: &World) -> (Client, File) {
    let here = File::open("/proc/thread-self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    let there = File::open("/proc/thread-self/ns/net").unwrap();
    let client = world.client();
    setns(here, CloneFlags::CLONE_NEWNET).unwrap();
    (client, there)
}

/// Does something in a namespace.
fn within<T>(namespace: &File, act: impl FnOnce() -> T) -> T {
    let here = File::open("/proc/thread-self/ns/net").unwrap();
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    let result = act();
    setns(here, CloneFlags::CLONE_NEWNET).unwrap();
    result
}

fn look(world: &World, daemon: &Daemon) -> Vec<Door> {
    daemon.redirect.look_around(&Target::Cgroup(world.target.clone()))
}

/// A socket in the namespace, connected.
fn upstream(daemon: &Daemon, network: Network, to: &str) -> TcpStream {
    let pending = daemon.redirect.socket_in(network, to.starts_with('[')).expect("another namespace");
    let socket = socket2::Socket::from(pending.blocking_recv().expect("an answer").expect("a socket"));
    socket.set_nonblocking(false).unwrap();
    socket.connect(&address(to).into()).expect("a server is there");
    socket.into()
}

#[test]
fn connects_come_here_and_go_on_from_there() {
    world(|world| {
        let (mut client, there) = elsewhere(world);
        let daemon = world.daemon();
        // Before anybody has looked.
        let direct = within(&there, || server("127.0.0.1:443"));
        client.run("s = connect('127.0.0.1')");
        accept(&direct);
        assert_eq!(daemon.counters().direct_other_netns, 1);

        let doors = look(world, &daemon);
        assert_eq!(doors.len(), 2, "IPv4 and IPv6");
        assert!(look(world, &daemon).is_empty(), "once each");
        for (to, door) in [("192.0.2.1", 0), ("::ffff:192.0.2.1", 0), ("2001:db8::7", 1)] {
            let peer = client.run(&format!("s = connect('{to}'); result = peer(s)"));
            assert_eq!(peer, json!([to, 443]));
            let stream = accept(&doors[door].listener);
            let found = daemon.redirect.origin_of(&stream).unwrap().expect("a record");
            assert_eq!(found.origin.ip().to_string(), to.trim_start_matches("::ffff:"));
            assert_eq!(found.owner.key.pid, client.pid());
            assert_ne!(found.network, Network::default());
        }
        // What listens there only is reached, and by nobody from here.
        client.run("s = connect('127.0.0.1')");
        let stream = accept(&doors[0].listener);
        let found = daemon.redirect.origin_of(&stream).unwrap().expect("a record");
        let made = upstream(&daemon, found.network, "127.0.0.1:443");
        assert_eq!(accept(&direct).peer_addr().unwrap(), made.local_addr().unwrap());
        let direct6 = within(&there, || server("[::1]:443"));
        let made = upstream(&daemon, found.network, "[::1]:443");
        assert_eq!(accept(&direct6).peer_addr().unwrap(), made.local_addr().unwrap());
        TcpStream::connect("127.0.0.1:443").expect_err("nobody listens here");
        // UDP is refused there as well, and strangers to the record are strays.
        assert_eq!(
            client.errno("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))"),
            i64::from(nix::libc::ECONNREFUSED)
        );
        let port = doors[0].listener.local_addr().unwrap().port();
        let stray = within(&there, || TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!(daemon.redirect.origin_of(&accept(&doors[0].listener)).unwrap(), None);
        drop(stray);
        // Our own namespace is as ever.
        world.client().run("s = connect('192.0.2.1')");
        assert_eq!(daemon.redirected().network, Network::default());
    });
}

/// The same source port at the same time, in two namespaces.
#[test]
fn namespaces_are_told_apart() {
    world(|world| {
        let (mut one, _) = elsewhere(world);
        let (mut two, _) = elsewhere(world);
        let daemon = world.daemon();
        let mut doors = look(world, &daemon);
        assert_eq!(doors.len(), 4);
        doors.retain(|door| door.listener.local_addr().unwrap().is_ipv4());
        let ports: Vec<u16> = doors.iter().map(|door| door.listener.local_addr().unwrap().port()).collect();
        assert!(ports[0] != ports[1] && !ports.contains(&daemon.port()), "{ports:?}");
        let bound = |to: &str| format!("s = tcp(); s.bind(('127.0.0.1', 40000)); s.connect(('{to}', 443))");
        let mut home = world.client();
        home.run(&bound("192.0.2.3"));
        one.run(&bound("192.0.2.1"));
        two.run(&bound("192.0.2.2"));
        let found: Vec<_> = doors
            .iter()
            .map(|door| daemon.redirect.origin_of(&accept(&door.listener)).unwrap().expect("a record"))
            .collect();
        for (client, to) in [(&one, "192.0.2.1:443"), (&two, "192.0.2.2:443")] {
            let its: Vec<_> = found.iter().filter(|found| found.owner.key.pid == client.pid()).collect();
            assert_eq!((its.len(), its[0].origin.to_string()), (1, to.to_owned()));
        }
        assert_ne!(found[0].network, found[1].network);
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.3:443");
    });
}

/// A namespace is left with its last process, and one that comes is entered.
#[test]
fn they_come_and_go() {
    world(|world| {
        let daemon = world.daemon();
        assert!(look(world, &daemon).is_empty(), "nobody is elsewhere");
        let (mut client, _) = elsewhere(world);
        let mut doors = look(world, &daemon);
        assert!(daemon.redirect.listens_elsewhere());
        client.run("s = connect('192.0.2.1')");
        let found = daemon.redirect.origin_of(&accept(&doors[0].listener)).unwrap().expect("a record");
        assert!(doors[0].over.try_recv().is_err());
        drop(client);
        assert!(look(world, &daemon).is_empty());
        assert!(!daemon.redirect.listens_elsewhere());
        assert_eq!(doors[0].over.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed));
        let pending = daemon.redirect.socket_in(found.network, false).expect("another namespace");
        let failed = pending.blocking_recv().expect("an answer").expect_err("nobody is there to make it");
        assert_eq!(failed.kind(), std::io::ErrorKind::NetworkDown);
        let (_again, _) = elsewhere(world);
        assert_eq!(look(world, &daemon).len(), 2);
    });
}

/// Where the loopback is down there is nothing to listen on, and connects go
/// where they were meant to.
#[test]
fn without_a_loopback() {
    world(|world| {
        let (mut client, there) = elsewhere(world);
        within(&there, || ip("link set lo down"));
        let daemon = world.daemon();
        assert!(look(world, &daemon).is_empty());
        assert_eq!(client.errno("connect('192.0.2.1')"), i64::from(nix::libc::ENETUNREACH));
    });
}
