//! Both sides of an intercepted connection: versions, sessions, key exchange,
//! certificates and names, as the client and the upstream see them.
mod common;

use std::{net::IpAddr, path::Path};

use common::{
    NAME, Outcome, Peer, Run, SOON, TestCa, clients,
    peer::{Manner, Meeting},
};
use rcgen::KeyPair;
use rustls::{
    crypto::{SupportedKxGroup, aws_lc_rs::kx_group},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};

/// The client of the testbed, to [`NAME`].
fn client(more: &[&str]) -> Vec<std::ffi::OsString> {
    let mut words = words![clients::testbed(), "tls", "--connect", format!("{NAME}:443"), "--name", NAME];
    words.extend(more.iter().map(Into::into));
    words
}

/// What the client tells of its connections.
fn told(outcome: &Outcome) -> Vec<Value> {
    outcome.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Runs the client; what it tells, and what the upstream met.
#[track_caller]
fn meet(direct: bool, ca: &TestCa, manner: Manner<'_>, more: &[&str]) -> (Vec<Value>, Vec<Meeting>, Outcome, Peer) {
    let peer = Peer::start(ca, manner);
    let outcome = Run::via(direct).to(NAME, peer.address, ca).go(client(more)).ok();
    let told = told(&outcome);
    let meetings = peer.wait(told.len());
    (told, meetings, outcome, peer)
}

#[track_caller]
fn intercepted(outcome: &Outcome, count: u64) {
    let report = outcome.report();
    assert_eq!(report.connections("intercepted"), count, "{report}");
    assert_eq!((report.connections("tunnelled"), report.connections("refused")), (0, 0), "{report}");
}

/// TLS 1.2 and 1.3 on each side. The upstream meets what the client offers;
/// where they have no version in common they have none through retryscope
/// either, and the client hears so.
#[test]
fn versions() {
    for (speaks, versions) in [("1.2", vec![&TLS12]), ("1.3", vec![&TLS13]), ("1.2,1.3", vec![&TLS12, &TLS13])] {
        for offers in ["1.2", "1.3", "1.2,1.3"] {
            let common = if offers.contains("1.3") && speaks.contains("1.3") {
                Some("TLSv1_3")
            } else {
                (offers.contains("1.2") && speaks.contains("1.2")).then_some("TLSv1_2")
            };
            let mut errors = Vec::new();
            for direct in [true, false] {
                let ca = TestCa::new();
                let manner = Manner { versions: versions.clone(), ..Manner::default() };
                let (told, meetings, outcome, peer) = meet(direct, &ca, manner, &["--version", offers]);
                let what = format!("offers {offers}, speaks {speaks}, direct={direct}: {told:?}");
                match common {
                    Some(version) => {
                        assert_eq!(meetings[0].version, version, "{what}");
                        // Towards the client, the best that it offers.
                        let best = if offers.contains("1.3") { "TLSv1_3" } else { "TLSv1_2" };
                        assert_eq!(told[0]["version"], if direct { version } else { best }, "{what}");
                        assert!(told[0]["answer"].as_str().is_some_and(|answer| answer.ends_with("yes")), "{what}");
                        assert_eq!(told[0]["certificate"] == peer.certificate, direct, "{what}");
                        if !direct {
                            intercepted(&outcome, 1);
                        }
                    }
                    None => errors.push(told[0]["error"].as_str().expect("an error").to_owned()),
                }
            }
            assert!(errors.windows(2).all(|pair| pair[0] == pair[1]), "{errors:?}");
        }
    }
}

/// A later connection resumes, at the client and at the upstream.
#[test]
fn sessions_are_resumed_on_both_sides() {
    for version in ["1.2", "1.3"] {
        for direct in [true, false] {
            let ca = TestCa::new();
            let (told, meetings, outcome, _) =
                meet(direct, &ca, Manner::default(), &["--version", version, "--count", "3"]);
            let kinds =
                |kinds: Vec<String>| assert_eq!(kinds, ["Full", "Resumed", "Resumed"], "{version} direct={direct}");
            kinds(told.iter().map(|row| row["kind"].as_str().unwrap_or_default().to_owned()).collect());
            kinds(meetings.iter().map(|meeting| meeting.kind.clone()).collect());
            if !direct {
                intercepted(&outcome, 3);
            }
        }
    }
}

/// Where the client offers the post-quantum hybrid, so do we, in the same
/// rank; where it does not, neither do we. Both sides agree on it.
#[test]
fn post_quantum_key_exchange() {
    const HYBRID: &str = "X25519MLKEM768";
    let hybrid_only: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::X25519MLKEM768];
    let everything: Vec<&'static dyn SupportedKxGroup> =
        vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    for (offers, groups, came, retried) in [
        ("x25519mlkem768,x25519", &everything, HYBRID, false),
        ("x25519mlkem768,x25519", &hybrid_only, HYBRID, false),
        // For a server that insists.
        ("x25519,x25519mlkem768", &hybrid_only, HYBRID, true),
        ("x25519,x25519mlkem768", &everything, "X25519", false),
        ("x25519,secp256r1", &everything, "X25519", false),
    ] {
        for direct in [true, false] {
            let ca = TestCa::new();
            let manner = Manner { groups: groups.clone(), ..Manner::default() };
            let (told, meetings, outcome, _) = meet(direct, &ca, manner, &["--group", offers]);
            let what = format!("{offers} direct={direct}: {told:?} {meetings:?}");
            assert_eq!(meetings[0].group.as_deref(), Some(came), "{what}");
            assert_eq!(meetings[0].kind == "FullWithHelloRetryRequest", retried, "{what}");
            let place = |name: &str| meetings[0].offered_groups.iter().position(|group| group == name);
            let hybrid_first = place(HYBRID).zip(place("X25519")).map(|(hybrid, plain)| hybrid < plain);
            assert_eq!(hybrid_first, offers.contains("mlkem").then_some(offers.starts_with("x25519mlkem")), "{what}");
            // Towards the client, its first choice.
            let first = if offers.starts_with("x25519mlkem") { HYBRID } else { "X25519" };
            let own = if direct { came } else { first };
            assert_eq!(told[0]["group"], own, "{what}");
            if !direct {
                intercepted(&outcome, 1);
            }
        }
    }
}

/// A client whose first choice we lack, but not its second: it is asked for
/// its hello again.
#[test]
fn a_second_hello() {
    for direct in [true, false] {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, Manner::default());
        let url = format!("https://{NAME}/");
        let words = words![clients::curl(), "-sS", "-m", "20", "--tlsv1.3", "--curves", "secp521r1:prime256v1", url];
        let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words).ok();
        assert_eq!(outcome.text(), "yes", "direct={direct}");
        assert_eq!(peer.wait(1)[0].kind == "FullWithHelloRetryRequest", direct);
        if !direct {
            intercepted(&outcome, 1);
        }
    }
}

/// Upstreams with keys of every kind in use.
#[test]
fn upstream_keys() {
    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA512, RsaKeySize};
    let ca = TestCa::new();
    for (kind, key) in [
        ("RSA 2048", KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)),
        ("RSA 4096", KeyPair::generate_rsa_for(&PKCS_RSA_SHA512, RsaKeySize::_4096)),
        ("P-256", KeyPair::generate()),
        ("P-384", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)),
        ("Ed25519", KeyPair::generate_for(&PKCS_ED25519)),
    ] {
        let pem = key.expect("a key").serialize_pem();
        for version in ["1.2", "1.3"] {
            let key = KeyPair::from_pem(&pem).expect("the key");
            let (told, meetings, outcome, peer) =
                meet(false, &ca, Manner { key, ..Manner::default() }, &["--version", version]);
            assert_eq!(meetings[0].error, None, "{kind} {version}");
            assert_ne!(told[0]["certificate"], peer.certificate.as_str(), "{kind} {version}");
            assert!(told[0]["answer"].as_str().is_some_and(|answer| answer.ends_with("yes")), "{kind}: {told:?}");
            intercepted(&outcome, 1);
        }
    }
}

/// A client that asks for no name: it finds the upstream's names, and decides
/// itself whether they are right.
#[test]
fn without_a_name() {
    let none: &[IpAddr] = &[];
    for direct in [true, false] {
        let ca = TestCa::new();
        let manner = || Manner { addresses: Some(none), ..Manner::default() };
        let (told, meetings, outcome, _) = meet(direct, &ca, manner(), &["--no-sni"]);
        assert!(told[0]["answer"].is_string(), "direct={direct}: {told:?}");
        assert_eq!(meetings[0].server_name, None, "direct={direct}");
        if !direct {
            intercepted(&outcome, 1);
        }

        // The address is not in the certificate: a client that wants it there
        // does not find it there.
        let peer = Peer::start(&ca, manner());
        let address = peer.address.ip().to_string();
        let words = words![clients::testbed(), "tls", "--connect", peer.address.to_string(), "--name", address];
        let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words).ok();
        let error = told_error(&outcome);
        assert!(error.contains("not valid for name"), "direct={direct}: {error}");
        assert_eq!(peer.asked().len(), 0, "direct={direct}");
    }
}

fn told_error(outcome: &Outcome) -> String {
    told(outcome)[0]["error"].as_str().unwrap_or_default().to_owned()
}

/// A certificate for an address, asked for by that address.
#[test]
fn address_certificates() {
    for direct in [true, false] {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, Manner::default());
        let url = format!("https://{}/", peer.address.ip());
        let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words![clients::curl(), "-sS", "-m", "20", url]);
        assert_eq!(outcome.ok().text(), "yes", "direct={direct}");
        assert_eq!(peer.wait(1)[0].server_name, None, "direct={direct}");
    }
}

/// The name in the handshake and the one in the request may differ: the
/// upstream gets both as they are, and the report goes by the request.
#[test]
fn the_name_asked_for_is_not_the_host() {
    for direct in [true, false] {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, Manner::default());
        let url = format!("https://{NAME}/fronted");
        let words = words![clients::curl(), "-sS", "-m", "20", "-H", "Host: behind.test", url];
        let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words).ok();
        assert_eq!(outcome.text(), "yes", "direct={direct}");
        let meeting = &peer.wait(1)[0];
        assert_eq!(meeting.server_name.as_deref(), Some(NAME), "direct={direct}");
        assert!(meeting.request.contains("\r\nHost: behind.test\r\n"), "direct={direct}: {meeting:?}");
        if !direct {
            let report = outcome.report();
            let operations: Vec<&Value> = report.operations().map(|row| &row["operation"]).collect();
            assert_eq!(operations, ["GET behind.test/fronted"], "{report}");
        }
    }
}

/// Browsers carry an ECH extension that means nothing (RFC 9849 §6.2): it is
/// passed over.
#[test]
fn ech_grease_is_passed_over() {
    const ECH: [u8; 2] = [0xfe, 0x0d];
    for direct in [true, false] {
        let ca = TestCa::new();
        let (told, meetings, outcome, _) = meet(direct, &ca, Manner::default(), &["--ech-grease", "--count", "2"]);
        assert!(told.iter().all(|row| row["version"] == "TLSv1_3"), "direct={direct}: {told:?}");
        let carried = meetings.iter().all(|meeting| meeting.hello.windows(2).any(|part| part == ECH));
        assert!(carried || !direct, "the client is to carry it");
        if !direct {
            intercepted(&outcome, 2);
        }
    }
}

/// A browser, which checks certificates by its own rules, greases its hello
/// and offers the post-quantum hybrid first. It has a store of its own, where
/// the authority is put.
#[test]
fn a_browser() {
    const SCRIPT: &str = r#"set -e
export HOME=$(mktemp -d)
trap 'rm -rf "$HOME"' EXIT
mkdir -p "$HOME/.pki/nssdb"
certutil -N --empty-password -d "sql:$HOME/.pki/nssdb"
certutil -A -t C,, -n authority -i "${RETRYSCOPE_TEST_AUTHORITY:-$NODE_EXTRA_CA_CERTS}" -d "sql:$HOME/.pki/nssdb"
chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking \
    --disable-component-update --user-data-dir="$HOME/profile" --timeout=20000 --dump-dom "$1"
"#;
    clients::need("certutil", "libnss3-tools");
    clients::need("chromium", "chromium");
    for direct in [true, false] {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, Manner { alpn: &["http/1.1"], ..Manner::default() });
        let words = words!["/bin/bash", "-c", SCRIPT, "bash", format!("https://{NAME}/")];
        let outcome = Run::via(direct).to(NAME, peer.address, &ca).deadline(SOON * 4).go(words).ok();
        assert!(outcome.text().contains("yes"), "direct={direct}: {}", outcome.finished);
        let asked = peer.asked();
        let meeting = asked.first().expect("a request");
        assert_eq!(meeting.group.as_deref(), Some("X25519MLKEM768"), "direct={direct}: {meeting:?}");
        assert_eq!(meeting.version, "TLSv1_3", "direct={direct}");
        let greased = meeting.hello.windows(2).any(|part| part == [0xfe, 0x0d]);
        assert_eq!(greased, direct, "the browser's own hello has ECH, ours has not");
        if !direct {
            let report = outcome.report();
            assert_eq!(report.count("statuses", "200"), peer.asked().len() as u64, "{report}");
        }
    }
}

/// A hello of some 16 KiB, in two records, that comes byte by byte; and one in
/// pieces of odd sizes.
#[test]
fn a_long_hello_in_pieces() {
    for size in ["1", "977"] {
        for direct in [true, false] {
            let ca = TestCa::new();
            let peer = Peer::start(&ca, Manner { alpn: &["http/1.1"], ..Manner::default() });
            let words = words![clients::python(), clients::script("long_hello.py"), NAME, size];
            let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(words).ok();
            let got = outcome.json();
            assert!(got["hello"].as_u64().is_some_and(|length| length > 16 << 10), "{got}");
            assert_eq!((&got["alpn"], &got["answer"]), (&json!("http/1.1"), &json!("yes")), "direct={direct}: {got}");
            let offered = peer.wait(1)[0].offered_alpn.len();
            assert_eq!(offered > 100, direct, "{offered}");
            if !direct {
                intercepted(&outcome, 1);
            }
        }
    }
}

/// Whoever may be listed as a file of certificates for `--client-cert` and
/// cannot be used is named, with the remedy.
#[test]
fn bad_client_certificates_are_refused() {
    let ca = TestCa::new();
    let bare = ca.pem();
    let good = ca.identity("good");
    let cases: [(&[&Path], &str); 4] = [
        (&[Path::new("/nowhere.pem")], "/nowhere.pem"),
        (&[&bare], "--client-key"),
        (&[&good, &bare], "--client-key"),
        (&[&good, Path::new("/nowhere.key")], "/nowhere.key"),
    ];
    for (files, part) in cases {
        let mut run = Run::new().no_report();
        for (option, file) in ["--client-cert", "--client-key"].iter().zip(files) {
            run = run.option(option).option(file);
        }
        let outcome = run.go(words!["true"]).code(64);
        assert!(outcome.stderr.contains(part), "{}", outcome.finished);
    }
    let alone = Run::new().no_report().option("--client-key").option(&good).go(words!["true"]).code(64);
    assert!(alone.stderr.contains("--client-cert"), "{}", alone.finished);
}
