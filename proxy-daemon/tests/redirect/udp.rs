//! UDP to a watched port (QUIC) is refused as if nobody listened there.
use nix::libc::ECONNREFUSED;

use crate::world::world;

const WAYS: [(&str, &str); 3] =
    [("AF_INET", "192.0.2.1"), ("AF_INET6", "2001:db8::7"), ("AF_INET6", "::ffff:192.0.2.1")];

#[test]
fn connect_and_send_are_refused() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        for (family, host) in WAYS {
            client.run(&format!("u = socket.socket(socket.{family}, socket.SOCK_DGRAM)"));
            for call in [format!("u.connect(('{host}', 443))"), format!("u.sendto(b'x', ('{host}', 443))")] {
                assert_eq!(client.errno(&call), i64::from(ECONNREFUSED), "{family} {call}");
            }
        }
        assert_eq!(daemon.counters().udp_refused, 6);
        assert_eq!(daemon.counters().redirected, 0);
    });
}

#[test]
fn others_are_left_alone() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let mut stranger = world.stranger();
        client.run(
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 53)); u.send(b'x')\n\
             v = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); v.sendto(b'x', ('::1', 444))",
        );
        stranger.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))");
        assert_eq!(daemon.counters().udp_refused, 0);
    });
}

#[test]
fn allowed_where_wanted() {
    world(|world| {
        let mut options = world.options();
        options.allow_quic = true;
        let daemon = world.daemon_with(&options);
        let mut client = world.client();
        client.run(
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('127.0.0.1', 443))\n\
             v = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); v.connect(('::1', 443))",
        );
        client.run("s = connect('192.0.2.1')");
        daemon.redirected();
        assert_eq!(daemon.counters().udp_refused, 0);
    });
}
