//! What is passed on untouched since nothing else would serve the client: TLS
//! that retryscope does not speak or cannot judge, and protocols that are not
//! HTTP. The client fares as it does directly, and the report says why.
mod common;

use std::{ffi::OsString, io, net::SocketAddr, process::Command, sync::Arc};

use common::{
    NAME, Outcome, Peer, Report, Run, Running, TestCa, Wire,
    ca::Leaf,
    clients, own_address, own_listener,
    peer::Manner,
    wire::{Face, runtime},
};
use rcgen::KeyPair;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

const OLD_CLIENT: &str = "the client offers no TLS version or cipher that retryscope speaks";
const UNSPOKEN: &str = "the upstream speaks no TLS version or cipher that retryscope does";
const UNJUDGED: &str = "the upstream's certificate is of a kind that clients judge differently";

fn connections(report: &Report) -> [u64; 3] {
    ["intercepted", "tunnelled", "refused"].map(|kind| report.connections(kind))
}

/// Why connections were passed on untouched, each with its count.
fn tunnels(report: &Report) -> Vec<(String, u64)> {
    let rows = report.tunnels().into_iter();
    rows.map(|row| (row["why"].as_str().unwrap_or_default().to_owned(), row["connections"].as_u64().unwrap_or(0)))
        .collect()
}

/// OpenSSL's own server, which answers with a page about the session.
struct OpenSsl {
    address: SocketAddr,
    process: Running,
}

impl OpenSsl {
    fn start(ca: &TestCa, more: &[&str]) -> Self {
        let address = own_address(443);
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
        let (cert, private) = (ca.dir().join("openssl.pem"), ca.dir().join("openssl.key"));
        std::fs::write(&cert, ca.issue(&key, &[NAME], &[address.ip()])).expect("written");
        std::fs::write(&private, key.serialize_pem()).expect("written");
        let process = clients::bare(
            Command::new(clients::need("openssl", "openssl"))
                .args(["s_server", "-www", "-accept", &address.to_string(), "-cert"])
                .arg(cert)
                .arg("-key")
                .arg(private)
                .args(more),
        );
        process.line("ACCEPT");
        Self { address, process }
    }

    /// Handshakes that did not come to an end.
    fn failed(&self) -> usize {
        String::from_utf8_lossy(&self.process.stderr.bytes()).matches(":error:").count()
    }
}

fn curl(ca: &TestCa, more: &[&str]) -> Vec<OsString> {
    let mut words = words![clients::curl(), "-sS", "-m", "20", "--cacert", ca.pem()];
    words.extend(more.iter().map(Into::into));
    words.push(format!("https://{NAME}/").into());
    words
}

/// What a page of OpenSSL's server says of the session.
fn session(page: &str) -> (String, String) {
    let of = |mark: &str| {
        page.lines()
            .find_map(|line| line.trim_start().strip_prefix(mark))
            .unwrap_or_else(|| panic!("no '{mark}' in {page}"))
            .trim_matches([' ', ':'])
            .to_owned()
    };
    (of("Protocol  "), of("Cipher    "))
}

/// Nothing that a present-day library speaks: TLS 1.1, key exchange by RSA,
/// CBC, a curve of its own; on the client's side.
#[test]
fn clients_that_offer_nothing_we_speak() {
    for (offers, version) in [
        (&["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"][..], "TLSv1.1"),
        (&["--tls-max", "1.2", "--ciphers", "AES128-SHA"], "TLSv1.2"),
        (&["--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES256-SHA384"], "TLSv1.2"),
        // Our leaf is not of RSA.
        (&["--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256"], "TLSv1.2"),
        (&["--tlsv1.3", "--curves", "secp521r1"], "TLSv1.3"),
    ] {
        let sessions = [true, false].map(|direct| {
            let ca = TestCa::new();
            let server = OpenSsl::start(&ca, &["-cipher", "ALL:@SECLEVEL=0"]);
            let outcome = Run::via(direct).to(NAME, server.address, &ca).go(curl(&ca, offers)).ok();
            if !direct {
                let report = outcome.report();
                assert_eq!(connections(&report), [0, 1, 0], "{offers:?}: {report}");
                assert_eq!(tunnels(&report), [(OLD_CLIENT.to_owned(), 1)], "{offers:?}: {report}");
                assert_eq!(report.tunnels()[0]["name"], NAME, "{offers:?}: {report}");
            }
            assert_eq!(server.failed(), 0, "{offers:?} direct={direct}");
            session(&outcome.text())
        });
        assert_eq!(sessions[0], sessions[1], "{offers:?}");
        assert_eq!(sessions[0].0, version, "{offers:?}");
    }
}

/// The same on the upstream's side, where the client would speak it: its first
/// connection already works, and the next ones are passed on at once.
#[test]
fn upstreams_that_speak_nothing_we_do() {
    for speaks in [&["-tls1_1"][..], &["-tls1_2", "-cipher", "AES128-SHA"], &["-tls1_3", "-groups", "P-521"]] {
        let sessions = [true, false].map(|direct| {
            let ca = TestCa::new();
            let mut words = vec!["-cipher", "ALL:@SECLEVEL=0"];
            words.extend(speaks);
            let server = OpenSsl::start(&ca, &words);
            let one = "curl -sS -m 20 --tlsv1.0 --ciphers DEFAULT@SECLEVEL=0";
            let script =
                format!("for n in 1 2 3; do {one} --cacert {} https://{NAME}/ || exit; done", ca.pem().display());
            let outcome = Run::via(direct).to(NAME, server.address, &ca).go(words!["/bin/sh", "-c", script]).ok();
            assert_eq!(outcome.text().matches("SSL-Session").count(), 3, "{speaks:?} direct={direct}");
            // It is tried once.
            assert_eq!(server.failed(), usize::from(!direct), "{speaks:?} direct={direct}");
            if !direct {
                let report = outcome.report();
                assert_eq!(connections(&report), [0, 3, 0], "{speaks:?}: {report}");
                assert_eq!(tunnels(&report), vec![(UNSPOKEN.to_owned(), 1); 3], "{speaks:?}: {report}");
            }
            session(&outcome.text())
        });
        assert_eq!(sessions[0], sessions[1], "{speaks:?}");
    }
}

/// A certificate that names its host in the common name alone: some clients
/// take it, others do not. Each decides as it does directly.
#[test]
fn certificates_that_only_the_client_can_judge() {
    for (program, takes) in [("curl", true), ("tls", false)] {
        for direct in [true, false] {
            let ca = TestCa::new();
            let address = own_address(443);
            let listener = std::net::TcpListener::bind(address).expect("a listener");
            drop(listener);
            let (cert, key) = ca.named_in_common(NAME);
            let process = clients::bare(
                Command::new(clients::need("openssl", "openssl"))
                    .args(["s_server", "-www", "-accept", &address.to_string(), "-cert"])
                    .arg(cert)
                    .arg("-key")
                    .arg(key),
            );
            process.line("ACCEPT");
            let words = if program == "curl" {
                curl(&ca, &[])
            } else {
                let at = format!("{NAME}:443");
                words![clients::testbed(), "tls", "--connect", at, "--name", NAME, "--ca", ca.pem()]
            };
            let outcome = Run::via(direct).to(NAME, address, &ca).go(words).ok();
            assert_eq!(
                outcome.text().contains("SSL-Session"),
                takes,
                "{program} direct={direct}: {}",
                outcome.finished
            );
            if !direct {
                let report = outcome.report();
                assert_eq!(connections(&report), [0, 1, 0], "{program}: {report}");
                assert_eq!(tunnels(&report), [(UNJUDGED.to_owned(), 1)], "{program}: {report}");
            }
        }
    }
}

fn told(outcome: &Outcome) -> Value {
    serde_json::from_str(outcome.text().lines().next().unwrap_or_default()).expect("a line of JSON")
}

/// Protocols other than HTTP, by what the client offers; also where the
/// client would speak HTTP and the upstream does not.
#[test]
fn protocols_other_than_http() {
    for (offers, speaks) in
        [("mqtt", "mqtt"), ("acme-tls/1", "acme-tls/1"), ("h2,mqtt", "mqtt"), ("postgresql,imap", "imap")]
    {
        for direct in [true, false] {
            let ca = TestCa::new();
            let peer = Peer::start(&ca, Manner { alpn: &[speaks], ..Manner::default() });
            let at = format!("{NAME}:443");
            let words = words![
                clients::testbed(),
                "tls",
                "--connect",
                at,
                "--name",
                NAME,
                "--ca",
                ca.pem(),
                "--alpn",
                offers,
                "--say",
                "\u{10}\u{1}anything but HTTP\r\n\r\n"
            ];
            let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words).ok();
            let told = told(&outcome);
            let what = format!("{offers} {speaks} direct={direct}: {told}");
            assert_eq!(
                (&told["alpn"], &told["certificate"]),
                (&speaks.into(), &peer.certificate.as_str().into()),
                "{what}"
            );
            let asked = peer.asked();
            assert_eq!(asked[0].offered_alpn.join(","), offers, "{what}");
            assert_eq!(asked[0].request, "\u{10}\u{1}anything but HTTP\r\n\r\n", "{what}");
            if !direct {
                assert_eq!(connections(&outcome.report()), [0, 1, 0], "{what}");
            }
        }
    }
}

/// A mail server; it takes one message per connection, and notes it.
struct Mail {
    address: SocketAddr,
    noted: Arc<std::sync::Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Mail {
    /// With TLS from the first byte on, or by STARTTLS.
    fn start(ca: &TestCa, port: u16, implicit: bool) -> Self {
        let listener = own_listener(port);
        let address = listener.local_addr().expect("a bound address");
        listener.set_nonblocking(true).expect("non-blocking");
        let tls = TlsAcceptor::from(ca.server(Leaf::Good, &[NAME], &[], &[]));
        let noted = Arc::new(std::sync::Mutex::new(Vec::new()));
        let runtime = runtime();
        let notes = Arc::clone(&noted);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registering the listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, notes) = (tls.clone(), Arc::clone(&notes));
                tokio::spawn(async move {
                    if implicit {
                        return Self::serve(tls.accept(stream).await?, &notes, true).await.map(drop);
                    }
                    match Self::serve(stream, &notes, true).await? {
                        Some(stream) => Self::serve(tls.accept(stream).await?, &notes, false).await.map(drop),
                        None => Ok(()),
                    }
                });
            }
        });
        Self { address, noted, _runtime: runtime }
    }

    /// Until the client leaves, or wants TLS.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        stream: S,
        notes: &std::sync::Mutex<Vec<String>>,
        greets: bool,
    ) -> io::Result<Option<S>> {
        let mut stream = BufReader::new(stream);
        if greets {
            stream.write_all(b"220 upstream.test ready\r\n").await?;
            stream.flush().await?;
        }
        let (mut line, mut data) = (String::new(), false);
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(None);
            }
            let word = line.split_whitespace().next().unwrap_or_default().to_uppercase();
            let answer = match word.as_str() {
                "." if data => {
                    data = false;
                    "250 taken"
                }
                _ if data => {
                    notes.lock().expect("not poisoned").push(line.trim_end().to_owned());
                    continue;
                }
                "EHLO" => "250-upstream.test\r\n250 STARTTLS",
                "DATA" => {
                    data = true;
                    "354 go on"
                }
                "STARTTLS" => "220 go on",
                "QUIT" => "221 goodbye",
                _ => "250 fine",
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            stream.flush().await?;
            if word == "STARTTLS" {
                return Ok(Some(stream.into_inner()));
            }
            if word == "QUIT" {
                return Ok(None);
            }
        }
    }
}

/// curl with a message from its standard input.
fn sends_mail(url: &str) -> Vec<OsString> {
    let addresses = ["--mail-from", "a@one.test", "--mail-rcpt", "b@two.test"];
    let mut words = words![clients::curl(), "-sS", "-m", "20", "-T", "-", url];
    words.extend(addresses.map(OsString::from));
    words
}

/// The server speaks first, in the clear, and TLS comes later: passed on
/// untouched, TLS and all.
#[test]
fn mail_with_starttls() {
    for direct in [true, false] {
        let ca = TestCa::new();
        let mail = Mail::start(&ca, 25, false);
        let mut words = sends_mail(&format!("smtp://{NAME}:25"));
        words.extend(words!["--ssl-reqd", "--cacert", ca.pem()]);
        let mut run = Run::via(direct).map_host(NAME, SocketAddr::new(mail.address.ip(), 443));
        if !direct {
            run = run.option("--port").option("25");
        }
        let outcome = run.stdin(b"Subject: hello\r\n\r\nby STARTTLS\r\n").start(words).finish().ok();
        assert_eq!(*mail.noted.lock().expect("not poisoned"), ["Subject: hello", "", "by STARTTLS"], "direct={direct}");
        if !direct {
            let report = outcome.report();
            assert_eq!(connections(&report), [0, 1, 0], "{report}");
            assert_eq!(report.total("attempts"), 0, "{report}");
        }
    }
}

/// TLS from the first byte on, no word of what is spoken in it, and the server
/// speaks first.
#[test]
fn mail_within_tls() {
    for direct in [true, false] {
        let ca = TestCa::new();
        let mail = Mail::start(&ca, 465, true);
        let words = sends_mail(&format!("smtps://{NAME}:465"));
        let mut run = Run::via(direct).map_host(NAME, SocketAddr::new(mail.address.ip(), 465)).upstream_ca(&ca.pem());
        if !direct {
            run = run.option("--port").option("465");
        }
        let outcome = run.stdin(b"Subject: hello\r\n\r\nwithin TLS\r\n").start(words).finish().ok();
        assert_eq!(*mail.noted.lock().expect("not poisoned"), ["Subject: hello", "", "within TLS"], "direct={direct}");
        if !direct {
            assert_eq!(connections(&outcome.report())[2], 0, "{}", outcome.report());
        }
    }
}

/// A database's greeting, in binary: every byte passes, both ways, though the
/// client's answer begins as TLS does.
#[test]
fn a_server_that_speaks_first_in_binary() {
    const GREETING: &[u8] = b"\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00abcdefgh\x00\xff\xff\xff\x02\x00";
    const LOGIN: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03login\x00\xff";
    const CLIENT: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], 3306), timeout=20)
greeting = s.recv(1000)
s.sendall(bytes.fromhex(sys.argv[2]))
print(greeting.hex(), s.recv(1000).hex(), s.recv(1).hex())";
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, Face { port: 3306, leaf: None, ..Face::default() }, |mut conn| async move {
            conn.send(GREETING).await?;
            let login = conn.exact(LOGIN.len()).await?;
            conn.note(&common::hex(&login));
            conn.send(b"\x07\x00\x00\x02\x00\x00\x00").await?;
            conn.close().await;
            Ok(())
        });
        let words = words![clients::python(), "-c", CLIENT, wire.address.ip().to_string(), common::hex(LOGIN)];
        let mut run = Run::via(direct);
        if !direct {
            run = run.option("--port").option("3306");
        }
        let outcome = run.go(words).ok();
        assert_eq!(outcome.text().trim_end(), format!("{} 07000002000000", common::hex(GREETING)), "direct={direct}");
        wire.wait_for(&common::hex(LOGIN));
        if !direct {
            assert_eq!(connections(&outcome.report()), [0, 1, 0]);
        }
    }
}
