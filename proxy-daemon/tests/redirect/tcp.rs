//! Every way to connect is redirected, with its origin and owner.
use std::io::{BufRead, BufReader, Write};

use nix::unistd::{getgid, getuid};
use retryscope::redirect::cgroup;

use crate::world::{address, world};

#[test]
fn v4_with_its_owner() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let start = client.run("s = connect('192.0.2.1'); result = start_ticks(os.getpid())");
        let seen = daemon.redirected();
        assert_eq!(seen.origin, address("192.0.2.1:443"));
        let owner = seen.owner;
        assert_eq!(owner.key.pid, client.pid());
        assert_eq!(Some(owner.key.start_ticks), start.as_u64());
        assert_eq!(owner.tid, client.pid());
        assert_eq!(owner.parent, std::process::id());
        assert_eq!((owner.uid, owner.gid), (getuid().as_raw(), getgid().as_raw()));
        assert_eq!(owner.cgroup_id, cgroup::id(&world.target).unwrap());
        assert_eq!(owner.comm, "python3");
        assert_eq!((daemon.counters().redirected, daemon.counters().handed_over), (1, 1));
    });
}

#[test]
fn user_and_thread() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let tid = client.run(
            "def work():\n    global result, s\n    result = threading.get_native_id(); s = connect('192.0.2.1')\n\
             t = threading.Thread(target=work); t.start(); t.join()",
        );
        let owner = daemon.redirected().owner;
        assert_eq!((owner.key.pid, Some(u64::from(owner.tid))), (client.pid(), tid.as_u64()));
        assert_ne!(owner.tid, owner.key.pid);
        client.run("os.setresgid(33, 33, 33); os.setresuid(12345, 12345, 12345); s = connect('192.0.2.1')");
        let owner = daemon.redirected().owner;
        assert_eq!((owner.uid, owner.gid), (12345, 33));
    });
}

#[test]
fn v6_native_and_loopback() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        for host in ["2001:db8::7", "::1"] {
            client.run(&format!("s = connect('{host}')"));
            let (_, seen) = daemon.accept_v6();
            assert_eq!(seen.unwrap().origin, address(&format!("[{host}]:443")));
        }
    });
}

#[test]
fn v4_mapped() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = connect('::ffff:192.0.2.9')");
        assert_eq!(daemon.redirected().origin, address("192.0.2.9:443"));
    });
}

/// No port named: all are watched, but for 0, to which no connect may
/// succeed, and the listeners' own. Of UDP only QUIC's is refused.
#[test]
fn every_port() {
    world(|world| {
        let mut options = world.options();
        options.ports.clear();
        let daemon = world.daemon_with(&options);
        let mut client = world.client();
        for port in [1, 443, 8443, 65_535] {
            client.run(&format!("s = connect('192.0.2.1', {port})"));
            assert_eq!(daemon.redirected().origin, address(&format!("192.0.2.1:{port}")));
            client.run(&format!("s = connect('2001:db8::7', {port})"));
            assert_eq!(daemon.accept_v6().1.unwrap().origin, address(&format!("[2001:db8::7]:{port}")));
        }
        assert_eq!(client.errno("connect('127.0.0.1', 0)"), i64::from(nix::libc::ECONNREFUSED));
        client.run(&format!("s = connect('127.0.0.1', {})", daemon.port()));
        assert_eq!(daemon.accept().1, None);
        client.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 53)); u.send(b'x')");
        assert_eq!(client.errno("u.connect(('127.0.0.1', 443))"), i64::from(nix::libc::ECONNREFUSED));
        let mut stranger = world.stranger();
        let direct = crate::world::server("127.0.0.1:8443");
        stranger.run("s = connect('127.0.0.1', 8443)");
        crate::world::accept(&direct);
        assert_eq!((daemon.counters().redirected, daemon.counters().udp_refused), (8, 1));
    });
}

#[test]
fn any_address_means_the_loopback() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = connect('0.0.0.0')");
        assert_eq!(daemon.redirected().origin, address("127.0.0.1:443"));
        client.run("s = connect('::')");
        assert_eq!(daemon.accept_v6().1.unwrap().origin, address("[::1]:443"));
        client.run("s = tcp(socket.AF_INET6); s.bind(('::ffff:127.0.0.1', 0)); s.connect(('::', 443))");
        assert_eq!(daemon.redirected().origin, address("127.0.0.1:443"));
    });
}

#[test]
fn non_blocking() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        let result = client.run(
            "import select\n\
             s = tcp(); s.setblocking(False); first = s.connect_ex(('192.0.2.1', 443))\n\
             select.select([], [s], [], TIMEOUT)\n\
             result = [first, s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.connect_ex(('192.0.2.1', 443))]",
        );
        // In progress, then connected: no error; connecting once more says so
        // and changes nothing.
        assert_eq!(result.as_array().unwrap()[0], nix::libc::EINPROGRESS);
        assert_eq!(result.as_array().unwrap()[1], 0);
        assert_eq!(daemon.redirected().origin, address("192.0.2.1:443"));
        assert_eq!(client.run("result = peer(s)"), serde_json::json!(["192.0.2.1", 443]));
    });
}

#[test]
fn bound_source() {
    world(|world| {
        crate::world::ip("address add 198.51.100.7/32 dev lo");
        crate::world::ip("address add 2001:db8::5/128 dev lo nodad");
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = tcp(); s.bind(('198.51.100.7', 0)); s.connect(('192.0.2.1', 443))");
        let (stream, seen) = daemon.accept();
        assert_eq!(stream.peer_addr().unwrap().ip(), address("198.51.100.7:0").ip());
        assert_eq!(seen.unwrap().origin, address("192.0.2.1:443"));
        client.run("s = tcp(socket.AF_INET6); s.bind(('2001:db8::5', 0)); s.connect(('2001:db8::9', 443))");
        assert_eq!(daemon.accept_v6().1.unwrap().origin, address("[2001:db8::9]:443"));
        client
            .run("s = tcp(socket.AF_INET6); s.bind(('::ffff:198.51.100.7', 0)); s.connect(('::ffff:192.0.2.2', 443))");
        assert_eq!(daemon.redirected().origin, address("192.0.2.2:443"));
    });
}

#[test]
fn fast_open() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = tcp(); s.settimeout(None); s.sendto(b'hello', socket.MSG_FASTOPEN, ('192.0.2.1', 443))");
        assert_eq!(daemon.redirected().origin, address("192.0.2.1:443"));
        // TCP_FASTOPEN_CONNECT = 30: the SYN leaves with the first write.
        client.run("s = tcp(); s.settimeout(None); s.setsockopt(socket.IPPROTO_TCP, 30, 1); s.connect(('192.0.2.2', 443)); s.send(b'hello')");
        assert_eq!(daemon.redirected().origin, address("192.0.2.2:443"));
    });
}

#[test]
fn several_ports_and_no_others() {
    world(|world| {
        let mut options = world.options();
        options.ports = vec![443, 8443, 443];
        let daemon = world.daemon_with(&options);
        let server = crate::world::server("127.0.0.1:8080");
        let mut client = world.client();
        client.run("a = connect('192.0.2.1', 8443)");
        assert_eq!(daemon.redirected().origin, address("192.0.2.1:8443"));
        client.run("b = connect('127.0.0.1', 8080); result = peer(b)");
        crate::world::accept(&server);
        assert_eq!(daemon.counters().redirected, 1);
    });
}

#[test]
fn late_accept_still_has_the_record() {
    world(|world| {
        let daemon = world.daemon();
        let mut client = world.client();
        client.run("s = connect('192.0.2.1'); s.close()");
        client.run(
            "s = connect('192.0.2.2'); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()",
        );
        assert_eq!(daemon.redirected().origin, address("192.0.2.1:443"));
        assert_eq!(daemon.redirected().origin, address("192.0.2.2:443"));
    });
}

/// Few source ports, so that each is used again at once; every second socket
/// is reset as soon as it is connected.
#[test]
fn no_record_is_missed_in_a_race() {
    const CLIENTS: usize = 3;
    const EACH: usize = 1000;
    world(|world| {
        crate::world::ip("address add 198.51.100.7/32 dev lo");
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40099").unwrap();
        let daemon = world.daemon();
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| world.client()).collect();
        for client in &mut clients {
            client.send(&format!(
                "for i in range({EACH}):\n\
                 \x20   while True:\n\
                 \x20       s = tcp()\n\
                 \x20       s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
                 \x20       try:\n\
                 \x20           s.connect((f'192.0.2.{{i % 200 + 1}}', 443)); break\n\
                 \x20       except OSError as e:\n\
                 \x20           if e.errno != errno.EADDRNOTAVAIL: raise\n\
                 \x20   if i % 2: s.send(b'%d %d\\n' % (os.getpid(), i % 200 + 1)); s.recv(1)\n\
                 \x20   s.close()"
            ));
        }
        let (mut missing, mut wrong, mut read) = (0, 0, 0);
        for _ in 0..CLIENTS * EACH {
            let (mut stream, seen) = daemon.accept();
            let Some(seen) = seen else {
                missing += 1;
                continue;
            };
            let mut said = String::new();
            if BufReader::new(&stream).read_line(&mut said).is_err() || said.is_empty() {
                continue;
            }
            stream.write_all(b"!").unwrap();
            read += 1;
            let last = seen.origin.ip().to_string().split('.').nth(3).unwrap().to_owned();
            let expected = format!("{} {last}\n", seen.owner.key.pid);
            wrong += usize::from(said != expected);
        }
        for client in &mut clients {
            assert!(client.answer().get("ok").is_some());
        }
        assert_eq!((missing, wrong, read), (0, 0, CLIENTS * EACH / 2), "{:?}", daemon.counters());
        let counters = daemon.counters();
        assert_eq!((counters.unmatched, counters.handover_failed, counters.direct_no_record), (0, 0, 0));
    });
}
