//! `getpeername()` gives what the client asked for, and never lies.
use serde_json::json;

use crate::world::{accept, server, world};

#[test]
fn every_family() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        assert_eq!(client.run("a = connect('192.0.2.1'); result = peer(a)"), json!(["192.0.2.1", 443]));
        assert_eq!(client.run("b = connect('2001:db8::7'); result = peer(b)"), json!(["2001:db8::7", 443]));
        assert_eq!(client.run("c = connect('::ffff:192.0.2.9'); result = peer(c)"), json!(["::ffff:192.0.2.9", 443]));
        drop(daemon);
    });
}

#[test]
fn mptcp() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let made = "connect(host, protocol=262)";
        for host in ["192.0.2.1", "::ffff:192.0.2.9"] {
            let peer = client.run(&format!("host = '{host}'; s = {made}; result = peer(s)"));
            assert_eq!(peer, json!([host, 443]));
            assert_eq!(daemon.redirected().owner.key.pid, client.pid());
        }
        assert_eq!(
            client.run("s = connect('2001:db8::7', protocol=262); result = peer(s)"),
            json!(["2001:db8::7", 443])
        );
        assert!(daemon.accept_v6().1.is_some());
        // A direct one, beside it.
        let direct = server("127.0.0.1:8080");
        assert_eq!(
            client.run("s = connect('127.0.0.1', 8080, protocol=262); result = peer(s)"),
            json!(["127.0.0.1", 8080])
        );
        accept(&direct);
    });
}

/// A socket that connects again, elsewhere, carries nothing of its past.
#[test]
fn reused_socket() {
    const AGAIN: &str = "libc = __import__('ctypes').CDLL(None); \
        assert libc.connect(s.fileno(), b'\\0' * 16, 16) == 0";
    world(|world| {
        let daemon = world.daemon();
        let direct = server("127.0.0.1:8080");
        let mut client = world.client();
        for protocol in [0, 262] {
            client.run(&format!("s = connect('192.0.2.1', protocol={protocol}); {AGAIN}"));
            let first = daemon.redirected();
            assert_eq!(first.origin.to_string(), "192.0.2.1:443");
            // Redirected again: the new destination.
            let peer = client.run(&format!("s.connect(('192.0.2.2', 443)); result = peer(s); {AGAIN}"));
            assert_eq!(peer, json!(["192.0.2.2", 443]), "protocol {protocol}");
            assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.2:443");
            // Direct.
            let peer = client.run(&format!("s.connect(('127.0.0.1', 8080)); result = peer(s); {AGAIN}"));
            assert_eq!(peer, json!(["127.0.0.1", 8080]), "protocol {protocol}");
            accept(&direct);
            // To the listener itself: an honest answer, and no record.
            let port = daemon.port();
            let peer = client.run(&format!("s.connect(('127.0.0.1', {port})); result = peer(s)"));
            assert_eq!(peer, json!(["127.0.0.1", port]), "protocol {protocol}");
            assert_eq!(daemon.accept().1, None);
        }
        assert_eq!(daemon.counters().unmatched, 2);
    });
}

#[test]
fn failed_connect_leaves_nothing() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let port = daemon.port();
        let redirect = daemon.redirect;
        // Nobody listens any more: the connect fails.
        drop(daemon.listeners);
        assert_eq!(
            client.errno("s = tcp(); s.bind(('127.0.0.1', 0)); mine = s.getsockname(); s.connect(('192.0.2.1', 443))"),
            i64::from(nix::libc::ECONNREFUSED)
        );
        // A stray connect from the same place to the same place is no one's.
        let listener = server(&format!("127.0.0.1:{port}"));
        let mut stranger = world.stranger();
        let mine = client.run("s.close(); result = mine");
        stranger.run(&format!(
            "s = tcp(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); \
             s.bind(('127.0.0.1', {})); s.connect(('127.0.0.1', {port}))",
            mine[1]
        ));
        let stream = accept(&listener);
        assert_eq!(redirect.origin_of(&stream).unwrap(), None);
        assert_eq!(redirect.counters().unmatched, 1);
    });
}
