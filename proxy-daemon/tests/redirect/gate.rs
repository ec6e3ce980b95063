//! What the daemon has no room or no time for.
use std::time::Duration;

use nix::libc::ECONNREFUSED;
use retryscope::redirect::{Fail, queue};

use crate::world::{accept, server, world};

const LONG: Duration = Duration::from_secs(600);

#[test]
fn past_its_room_connects_go_direct() {
    world(|world| {
        let daemon = world.daemon();
        let direct = server("127.0.0.1:443");
        let mut client = world.client();
        daemon.redirect.renew(LONG, 2);
        client.run("s = [connect('127.0.0.1') for _ in range(3)]");
        accept(&direct);
        assert_eq!((daemon.counters().redirected, daemon.counters().direct_no_room), (2, 1));
        daemon.redirect.renew(LONG, 1);
        client.run("s.append(connect('127.0.0.1'))");
        for _ in 0..3 {
            daemon.redirected();
        }
    });
}

#[test]
fn past_its_time_connects_go_direct() {
    world(|world| {
        let daemon = world.daemon();
        let direct = server("[::1]:443");
        let mut client = world.client();
        daemon.redirect.renew(Duration::ZERO, 1000);
        client.run("s = connect('::1'); peer(s)");
        accept(&direct);
        assert_eq!(daemon.counters().direct_stalled, 1);
        daemon.redirect.renew(LONG, 1000);
        client.run("s = connect('::1')");
        daemon.accept_v6().1.expect("a record");
    });
}

/// Refused as if nobody listened, on either family, whatever was amiss; a
/// socket that was refused can be used elsewhere.
#[test]
fn closed_refuses_what_cannot_be_taken() {
    world(|world| {
        let mut options = world.options();
        options.fail = Fail::Closed;
        let daemon = world.daemon_with(&options);
        let (direct, other) = (server("127.0.0.1:443"), server("127.0.0.1:80"));
        let mut client = world.client();
        for (time, room) in [(LONG, 0), (Duration::ZERO, 10)] {
            daemon.redirect.renew(time, room);
            for address in ["127.0.0.1", "192.0.2.1", "::1"] {
                assert_eq!(client.errno(&format!("connect('{address}')")), i64::from(ECONNREFUSED), "{address}");
            }
        }
        client.run("s = tcp()\ntry: s.connect(('127.0.0.1', 443))\nexcept OSError: pass\ns.connect(('127.0.0.1', 80))");
        accept(&other);
        let counters = daemon.counters();
        assert_eq!((counters.blocked, counters.redirected), (7, 0));
        assert_eq!((counters.direct_no_room, counters.direct_stalled), (0, 0));
        // Other ports, and other processes, are none of its business.
        world.stranger().run("connect('127.0.0.1')");
        accept(&direct);
        daemon.redirect.renew(LONG, 10);
        client.run("s = connect('127.0.0.1')");
        daemon.redirected();
    });
}

/// A bypass lets everything go direct, whatever else is the case, UDP as well;
/// what came here before stays, and afterwards all is as it was.
#[test]
fn bypassed_everything_goes_direct() {
    for fail in [Fail::Open, Fail::Closed] {
        world(move |world| {
            let mut options = world.options();
            options.fail = fail;
            let daemon = world.daemon_with(&options);
            let direct = [server("127.0.0.1:443"), server("[::1]:443")];
            let mut client = world.client();
            daemon.redirect.renew(LONG, 1000);
            client.run("s = connect('127.0.0.1')");
            let (before, record) = daemon.accept();
            record.expect("a record");
            daemon.redirect.bypass(true).expect("bypassed");
            for (time, room) in [(None, 0), (Some(LONG), 1000), (Some(LONG), 0), (Some(Duration::ZERO), 1000)] {
                if let Some(time) = time {
                    daemon.redirect.renew(time, room);
                }
                for (address, server) in ["127.0.0.1", "::1"].iter().zip(&direct) {
                    client.run(&format!("d = connect('{address}')"));
                    accept(server);
                }
            }
            client.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))");
            let counters = daemon.counters();
            assert_eq!((counters.direct_bypassed, counters.redirected), (8, 1));
            assert_eq!((counters.blocked, counters.direct_stalled, counters.direct_no_room), (0, 0, 0));
            assert_eq!(counters.udp_refused, 0);
            client.run("s.sendall(b'still here')");
            let mut heard = [0; 10];
            std::io::Read::read_exact(&mut &before, &mut heard).expect("what was under way goes on");

            daemon.redirect.renew(LONG, 1000);
            daemon.redirect.bypass(false).expect("no longer");
            client.run("s = connect('::1')");
            daemon.accept_v6().1.expect("a record");
            let refused = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))";
            assert_eq!(client.errno(refused), i64::from(ECONNREFUSED));
        });
    }
}

#[test]
fn the_accept_queue_can_be_asked() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let (waiting, most) = queue(&daemon.listeners.v4).expect("the queue");
        assert!(waiting == 0 && most >= 100, "{waiting} of {most}");
        client.run("s = [connect('127.0.0.1') for _ in range(5)]");
        assert_eq!(queue(&daemon.listeners.v4).expect("the queue").0, 5);
        daemon.redirected();
        assert_eq!(queue(&daemon.listeners.v4).expect("the queue").0, 4);
    });
}
