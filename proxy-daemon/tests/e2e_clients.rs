//! Unmodified clients: each succeeds through interception under `run`, and
//! the report counts its one connection.
mod common;

use std::ffi::OsString;

use common::{NAME, Outcome, Run, SOON, TestCa, Upstream, Wire, clients, pattern, sha256, until};

struct Client {
    name: &'static str,
    command: Vec<OsString>,
    http2: bool,
    /// Prints JSON with a digest, rather than the body itself.
    json: bool,
}

const SIZE: usize = 70_000;

fn url() -> String {
    format!("https://{NAME}/bytes/{SIZE}")
}

fn curl() -> Vec<Client> {
    let one = |flag: &str| words![clients::curl(), "-sS", flag, url()];
    vec![
        Client { name: "curl --http1.1", command: one("--http1.1"), http2: false, json: false },
        Client { name: "curl --http2", command: one("--http2"), http2: true, json: false },
    ]
}

fn python() -> Vec<Client> {
    [("requests", false), ("urllib", false), ("httpx", false), ("httpx-h2", true)]
        .into_iter()
        .map(|(name, http2)| Client {
            name,
            command: words![clients::python(), clients::script("fetch.py"), name, url()],
            http2,
            json: true,
        })
        .collect()
}

fn node() -> Client {
    let command = words![clients::node(), clients::script("fetch.mjs"), url()];
    Client { name: "Node's fetch", command, http2: false, json: true }
}

fn java() -> Client {
    let command = words![clients::java(), clients::script("Fetch.java"), url()];
    Client { name: "Java's HttpClient", command, http2: true, json: true }
}

fn wget() -> Client {
    Client { name: "wget", command: words![clients::need("wget", "wget"), "-qO-", url()], http2: false, json: false }
}

/// How the client comes to trust.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trust {
    /// By variables and by the mount namespace.
    Both,
    /// By variables; names do not resolve then either, so by address.
    Variables,
}

/// The client got the genuine bytes, by the protocol it would have spoken,
/// and the report counts one intercepted connection.
fn check(client: &Client, trust: Trust, prepare: impl Fn(Run) -> Run) {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut run = prepare(Run::new()).to(NAME, upstream.address, &ca);
    let mut command = client.command.clone();
    if trust == Trust::Variables {
        run = run.option("--no-mount");
        let last = command.last_mut().expect("the URL is the last word");
        *last = url().replace(NAME, &upstream.address.ip().to_string()).into();
    }
    let outcome: Outcome = run.go(&command).ok();
    let name = client.name;
    let digest =
        if client.json { outcome.json()["sha256"].as_str().expect("a digest").into() } else { sha256(&outcome.stdout) };
    assert_eq!(digest, sha256(&pattern(SIZE)), "{name}: {}", outcome.finished);
    let received = upstream.received();
    assert_eq!(received.len(), 1, "{name}: {received:?}");
    assert_eq!(received[0].http2, client.http2, "{name} changed its protocol");
    let report = outcome.report();
    assert_eq!(report.connections("intercepted"), 1, "{name}: {report}");
    assert_eq!(report.connections("tunnelled") + report.connections("refused"), 0, "{name}: {report}");
    for field in ["calls", "attempts"] {
        assert_eq!(report.total(field), 1, "{name}: {report}");
    }
    assert_eq!(report.count("statuses", "200"), 1, "{name}: {report}");
    assert!(outcome.stderr.is_empty() || name.contains("Java"), "{name} printed on stderr: {}", outcome.stderr);
}

/// curl over HTTP/1.1 and HTTP/2, Python's requests, urllib and httpx: by
/// default, and with variables alone.
#[test]
fn curl_and_python() {
    for client in curl().iter().chain(&python()) {
        check(client, Trust::Both, |run| run);
        check(client, Trust::Variables, |run| run);
    }
}

/// Node needs its variable, and has it with and without the mount.
#[test]
fn node_fetch() {
    check(&node(), Trust::Both, |run| run);
    check(&node(), Trust::Variables, |run| run);
}

/// Java, by its variable alone too.
#[test]
fn java_http_client() {
    check(&java(), Trust::Both, |run| run);
    check(&java(), Trust::Variables, |run| run);
}

/// wget reads no variable: the mount alone serves it.
#[test]
fn wget_by_the_mount() {
    check(&wget(), Trust::Both, |run| run);
}

/// With every variable forgotten, the mount namespace is enough for curl and
/// for Python's libraries with bundles of their own.
#[test]
fn the_mount_is_enough() {
    for client in python() {
        check(&client, Trust::Both, |run| run.env("RETRYSCOPE_TEST_FORGET", "1"));
    }
    let forget = words!["/usr/bin/env", "-u", "SSL_CERT_FILE", "-u", "SSL_CERT_DIR", "-u", "CURL_CA_BUNDLE"];
    for mut client in curl() {
        client.command = forget.iter().cloned().chain(client.command).collect();
        check(&client, Trust::Both, |run| run);
    }
}

/// A variable that the user has set is extended, not replaced: what was
/// trusted through it still is, on a connection that passes untouched.
#[test]
fn the_users_own_bundle_is_extended() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (variable, library) in [("SSL_CERT_FILE", "urllib"), ("REQUESTS_CA_BUNDLE", "requests")] {
        for passthrough in [false, true] {
            let mut run = Run::new().to(NAME, upstream.address, &ca).env(variable, ca.pem());
            if passthrough {
                run = run.option("--passthrough").option(NAME);
            }
            let outcome = run.go(words![clients::python(), clients::script("fetch.py"), library, url()]).ok();
            let report = outcome.report();
            let (intercepted, tunnelled) = if passthrough { (0, 1) } else { (1, 0) };
            assert_eq!(report.connections("intercepted"), intercepted, "{variable}: {report}");
            assert_eq!(report.connections("tunnelled"), tunnelled, "{variable}: {report}");
        }
    }
}

/// Interception by name: what `--intercept` does not name is tunnelled and
/// shows the upstream's own certificate; what it names is not.
#[test]
fn intercept_and_passthrough_patterns() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let cases: &[(&[&str], bool)] = &[
        (&[], true),
        (&["--intercept", "*.test"], true),
        (&["--intercept", "*.example"], false),
        (&["--passthrough", "*.test"], false),
        (&["--intercept", "*.test", "--passthrough", "upstream.*"], false),
    ];
    for (options, intercepted) in cases {
        let mut run = Run::new().to(NAME, upstream.address, &ca);
        for option in *options {
            run = run.option(option);
        }
        let outcome = run.go(words![clients::curl(), "-sSk", "-o", "/dev/null", "-w", "%{certs}", url()]).ok();
        let own = outcome.text().contains("retryscope test authority") && outcome.text().contains("test upstream");
        let report = outcome.report();
        assert_eq!(report.connections("intercepted"), u64::from(*intercepted), "{options:?}: {report}");
        assert_eq!(report.connections("tunnelled"), u64::from(!*intercepted), "{options:?}: {report}");
        if !intercepted {
            assert!(own || outcome.text().is_empty(), "{options:?}: {}", outcome.finished);
        }
    }
}

/// IPv4, IPv6, an IPv4-mapped address, an address without a name, and a port
/// of the user's choice are all intercepted.
#[test]
fn addresses_and_ports() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let port = upstream_port(&ca);
    let v6 = std::net::TcpListener::bind("[::1]:0").expect("an IPv6 loopback");
    let v6 = Upstream::at(v6, &ca, common::ca::Leaf::Good, &[NAME], &["h2", "http/1.1"]);
    let v4 = upstream.address.ip();
    let cases = [
        ("by address", format!("https://{v4}/hello"), 443, None),
        ("another port", format!("https://{}/hello", port.address), port.address.port(), None),
        ("IPv6", format!("https://[::1]:{}/hello", v6.address.port()), v6.address.port(), None),
        ("IPv4-mapped", format!("https://{NAME}/hello"), 443, Some(format!("{NAME}:443:[::ffff:{v4}]"))),
    ];
    for (name, url, watched, resolve) in cases {
        let mut command = words![clients::curl(), "-sS", url];
        if let Some(resolve) = resolve {
            command.extend(words!["--resolve", resolve]);
        }
        let mut run = Run::new().upstream_ca(&ca.pem());
        if watched != 443 {
            run = run.option("--port").option(watched.to_string());
        }
        let outcome = run.go(command).ok();
        assert_eq!(outcome.text(), "hello from /hello\n", "{name}");
        let report = outcome.report();
        assert_eq!(report.connections("intercepted"), 1, "{name}: {report}");
    }
}

fn upstream_port(ca: &TestCa) -> Upstream {
    let listener = std::net::TcpListener::bind((common::own_address(0).ip(), 0)).expect("a free port");
    Upstream::at(listener, ca, common::ca::Leaf::Good, &[NAME], &["h2", "http/1.1"])
}

/// A name is resolved and sent to an address and port of the user's choice.
#[test]
fn mapped_to_another_port() {
    let ca = TestCa::new();
    let upstream = upstream_port(&ca);
    let outcome = Run::new()
        .to(NAME, upstream.address, &ca)
        .go(words![clients::curl(), "-sS", format!("https://{NAME}/hello")])
        .ok();
    assert_eq!(outcome.text(), "hello from /hello\n");
    assert_eq!(outcome.report().connections("intercepted"), 1);
}

/// The client cannot tell: its socket shows the address it asked for.
#[test]
fn the_peer_is_the_one_asked_for() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = Run::new()
        .to(NAME, upstream.address, &ca)
        .stdin(br#"[{"send": "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"}, {"until": "\r\n\r\n"}]"#)
        .start(words![clients::python(), clients::script("wire.py"), NAME, "443"])
        .finish()
        .ok();
    let peer = &outcome.json()["peer"];
    assert_eq!(peer[0], upstream.address.ip().to_string(), "{}", outcome.finished);
    assert_eq!(peer[1], 443, "{}", outcome.finished);
}

/// QUIC's port is refused to the target alone and with one answer, unless
/// allowed; other UDP ports are left alone.
#[test]
fn quic_is_refused() {
    let probe = "import socket, sys\n\
        for port in (443, 4433):\n\
        \x20 for send in ('connect', 'sendto'):\n\
        \x20\x20  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        \x20\x20  try:\n\
        \x20\x20\x20   s.connect(('127.0.0.1', port)) if send == 'connect' else s.sendto(b'x', ('127.0.0.1', port))\n\
        \x20\x20\x20   print(port, send, 'passed')\n\
        \x20\x20  except OSError as error:\n\
        \x20\x20\x20   print(port, send, 'refused')\n";
    let passed = "443 connect passed\n443 sendto passed\n4433 connect passed\n4433 sendto passed\n";
    let python = || clients::need("python3", "python3");
    let refused = Run::new().go(words![python(), "-c", probe]).ok();
    assert_eq!(
        refused.text(),
        "443 connect refused\n443 sendto refused\n4433 connect passed\n4433 sendto passed\n",
        "{}",
        refused.finished
    );
    assert_eq!(Run::new().option("--allow-quic").go(words![python(), "-c", probe]).ok().text(), passed);
    assert_eq!(Run::direct().go(words![python(), "-c", probe]).ok().text(), passed);
}

/// A connection that says nothing and goes is seen by its server, as it is
/// directly: servers wait for such visits, as health checks make them.
#[test]
fn a_visit_without_a_word() {
    let ca = TestCa::new();
    for direct in [true, false] {
        let wire = Wire::start(&ca, |_| async { Ok(()) });
        let visit = "import socket, sys; socket.create_connection((sys.argv[1], 443)).close()";
        let python = clients::need("python3", "python3");
        Run::via(direct).go(words![python, "-c", visit, wire.address.ip().to_string()]).ok();
        until("the server has seen it", SOON, || (wire.accepted() == 1).then_some(()));
    }
}

/// Children and grandchildren are covered, each with a row of its own that
/// names its parent.
#[test]
fn every_process_has_its_row() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let curl = clients::curl().display().to_string();
    let get = |path: &str| format!("{curl} -sS https://{NAME}/{path}");
    let script = format!("{}; (sh -c '{}; true'; true); {}; true", get("one"), get("two"), get("three"));
    let outcome = Run::new().to(NAME, upstream.address, &ca).go(words!["/bin/sh", "-c", script]).ok();
    let report = outcome.report();
    for path in ["one", "two", "three"] {
        let rows: Vec<_> = report
            .processes()
            .iter()
            .filter(|row| {
                row["command"].as_str().is_some_and(|it| it.starts_with(&curl) && it.ends_with(&format!("/{path}")))
            })
            .collect();
        assert_eq!(rows.len(), 1, "{path}: {report}");
        assert_eq!(rows[0]["attempts"], 1, "{path}: {report}");
        assert!(rows[0]["parent"].as_u64().is_some_and(|parent| parent > 0), "{path}: {report}");
        assert!(rows[0]["exe"].as_str().is_some_and(|exe| exe.ends_with("curl")), "{path}: {report}");
    }
    assert_eq!(report.total("attempts"), 3, "{report}");
}
