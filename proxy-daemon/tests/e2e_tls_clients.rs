//! Client certificates: shown in the client's place, or the client's own.
mod common;

use common::{
    NAME, Outcome, Peer, Report, Run, TestCa, clients,
    peer::{Asks, Manner},
};
use rustls::version::{TLS12, TLS13};
use serde_json::Value;

const ASKED: &str = "the upstream asks for a client certificate (--client-cert shows one)";

/// The client of the testbed, which trusts the test's authority as well.
fn client(ca: &TestCa, more: &[&str]) -> Vec<std::ffi::OsString> {
    let mut words =
        words![clients::testbed(), "tls", "--connect", format!("{NAME}:443"), "--name", NAME, "--ca", ca.pem()];
    words.extend(more.iter().map(Into::into));
    words
}

fn told(outcome: &Outcome) -> Vec<Value> {
    outcome.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn connections(report: &Report) -> [u64; 3] {
    ["intercepted", "tunnelled", "refused"].map(|kind| report.connections(kind))
}

/// Why connections were passed on untouched, each with its count.
fn tunnels(report: &Report) -> Vec<(String, u64)> {
    let rows = report.tunnels().into_iter();
    rows.map(|row| (row["why"].as_str().unwrap_or_default().to_owned(), row["connections"].as_u64().unwrap_or(0)))
        .collect()
}

const EACH: [&str; 2] = ["1.2", "1.3"];

fn asking(version: &str, asks: Asks) -> Manner<'static> {
    let versions = vec![if version == "1.2" { &TLS12 } else { &TLS13 }];
    Manner { asks, versions, ..Manner::default() }
}

/// `--client-cert` is shown to an upstream that asks, whether or not it
/// insists; the client itself needs none, and is looked into. Its sessions
/// are resumed as others are.
#[test]
fn the_certificate_given_is_shown() {
    for version in EACH {
        for asks in [Asks::Wishes, Asks::Demands] {
            let ca = TestCa::new();
            let peer = Peer::start(&ca, asking(version, asks));
            let run = Run::new().to(NAME, peer.address, &ca).option("--client-cert").option(ca.identity("given"));
            let outcome = run.go(client(&ca, &["--count", "2"])).ok();
            let what = format!("{version} {asks:?}: {}", outcome.finished);
            assert!(told(&outcome).iter().all(|row| row["answer"].is_string()), "{what}");
            let meetings = peer.wait(2);
            assert!(meetings.iter().all(|meeting| meeting.client.as_deref() == Some("given")), "{what} {meetings:?}");
            assert_eq!(meetings[1].kind, "Resumed", "{what}");
            let report = outcome.report();
            assert_eq!(connections(&report), [2, 0, 0], "{what} {report}");
            assert_eq!(tunnels(&report), [], "{what}");
        }
    }
}

/// The key may be in a file of its own; who asks for nothing is shown nothing.
#[test]
fn nothing_is_shown_unasked() {
    let ca = TestCa::new();
    let peer = Peer::start(&ca, Manner::default());
    let both = std::fs::read_to_string(ca.identity("given")).expect("the identity");
    let at = both.find("-----BEGIN PRIVATE KEY").expect("a key");
    let (cert, key) = (ca.dir().join("alone.pem"), ca.dir().join("alone.key"));
    std::fs::write(&cert, &both[..at]).expect("written");
    std::fs::write(&key, &both[at..]).expect("written");
    let run = Run::new().to(NAME, peer.address, &ca);
    let run = run.option("--client-cert").option(cert).option("--client-key").option(key);
    let outcome = run.go(client(&ca, &[])).ok();
    assert!(told(&outcome)[0]["answer"].is_string(), "{}", outcome.finished);
    assert_eq!(peer.wait(1)[0].client, None);
    assert_eq!(connections(&outcome.report()), [1, 0, 0]);
}

/// A client with a certificate of its own works from its first connection on:
/// the upstream sees that certificate, the client the upstream's own. It is
/// left alone, and the report says why and what would help.
#[test]
fn a_clients_own_certificate_reaches_the_upstream() {
    for version in EACH {
        for asks in [Asks::Wishes, Asks::Demands] {
            let ca = TestCa::new();
            let peer = Peer::start(&ca, asking(version, asks));
            let own = ca.identity("own");
            let words = client(&ca, &["--count", "3", "--cert", &own.to_string_lossy()]);
            let outcome = Run::new().to(NAME, peer.address, &ca).go(words).ok();
            let what = format!("{version} {asks:?}: {}", outcome.finished);
            let told = told(&outcome);
            assert_eq!(told.len(), 3, "{what}");
            assert!(told.iter().all(|row| row["certificate"] == peer.certificate.as_str()), "{what}");
            assert!(told.iter().all(|row| row["answer"].is_string()), "{what}");
            let asked = peer.asked();
            assert_eq!(asked.len(), 3, "{what} {asked:?}");
            assert!(asked.iter().all(|meeting| meeting.client.as_deref() == Some("own")), "{what} {asked:?}");
            // Looked for once: the later ones are passed on at once.
            assert_eq!(peer.meetings().len(), 4, "{what} {:?}", peer.meetings());
            let report = outcome.report();
            assert_eq!(connections(&report), [0, 3, 0], "{what} {report}");
            assert_eq!(tunnels(&report), [(ASKED.to_owned(), 3)], "{what}");
        }
    }
}

/// An upstream that asks and goes on without: a client that has none is looked
/// into from its second connection on, and asked as the upstream asks; also
/// where sessions are resumed, which asks nobody, and where they cannot be, so
/// that the upstream says nothing of how it took the answer.
#[test]
fn a_client_without_a_certificate_is_looked_into() {
    for (version, tickets) in [("1.2", true), ("1.3", true), ("1.2", false), ("1.3", false)] {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, Manner { tickets, ..asking(version, Asks::Wishes) });
        let outcome = Run::new().to(NAME, peer.address, &ca).go(client(&ca, &["--count", "4"])).ok();
        let what = format!("{version} {tickets}: {}", outcome.finished);
        let told = told(&outcome);
        assert!(told.iter().all(|row| row["answer"].is_string()), "{what}");
        let genuine: Vec<bool> = told.iter().map(|row| row["certificate"] == peer.certificate.as_str()).collect();
        assert_eq!(genuine, [true, false, false, false], "{what}");
        let asked = peer.asked();
        assert!(asked.iter().all(|meeting| meeting.client.is_none()), "{what}");
        assert_eq!(asked.iter().any(|meeting| meeting.kind == "Resumed"), tickets, "{what}");
        let report = outcome.report();
        assert_eq!(connections(&report), [3, 1, 0], "{what} {report}");
        assert_eq!(tunnels(&report), [(ASKED.to_owned(), 1)], "{what}");
    }
}

/// An upstream that insists: a client that has none fails as it does
/// directly, each time, by the upstream's own alert.
#[test]
fn a_client_without_a_certificate_fails_in_kind() {
    for version in EACH {
        for direct in [true, false] {
            let ca = TestCa::new();
            let peer = Peer::start(&ca, asking(version, Asks::Demands));
            let outcome = Run::via(direct).to(NAME, peer.address, &ca).go(client(&ca, &["--count", "3"])).ok();
            assert!(peer.asked().is_empty(), "{version} direct={direct}");
            let errors: Vec<String> =
                told(&outcome).iter().map(|row| row["error"].as_str().unwrap_or_default().to_owned()).collect();
            let alerts = errors.iter().filter(|error| error.ends_with("received fatal alert: CertificateRequired"));
            assert_eq!((alerts.count(), errors.len()), (3, 3), "{version} direct={direct}: {errors:?}");
            if !direct {
                let report = outcome.report();
                assert_eq!(connections(&report), [0, 3, 0], "{version}: {report}");
                assert_eq!(tunnels(&report), [(ASKED.to_owned(), 3)], "{version}: {report}");
            }
        }
    }
}

/// A program that shows a certificate after it has shown none: that one
/// connection is reset, and the program left alone from then on.
#[test]
fn a_client_that_changes_its_mind() {
    for version in EACH {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, asking(version, Asks::Wishes));
        let own = ca.identity("own");
        let program = clients::testbed().display().to_string();
        let client = format!("{program} tls --connect {NAME}:443 --name {NAME} --ca {}", ca.pem().display());
        let script = format!("{client} --count 2; {client} --count 3 --cert {}", own.display());
        let outcome = Run::new().to(NAME, peer.address, &ca).go(words!["/bin/sh", "-c", script]).ok();
        let what = format!("{version}: {}", outcome.finished);
        let told = told(&outcome);
        let answered: Vec<bool> = told.iter().map(|row| row["answer"].is_string()).collect();
        assert_eq!(answered, [true, true, false, true, true], "{what}");
        let shown: Vec<Option<String>> = peer.asked().into_iter().map(|meeting| meeting.client).collect();
        assert_eq!(shown, [None, None, Some("own".into()), Some("own".into())], "{what}");
        let report = outcome.report();
        assert_eq!(connections(&report), [1, 3, 1], "{what} {report}");
        assert_eq!(report.problem("the client showed a certificate")["count"], 1, "{what} {report}");
    }
}

/// A certificate that the upstream does not take: the client hears it, and a
/// person which certificate was meant.
#[test]
fn a_certificate_that_is_not_taken() {
    for version in EACH {
        let ca = TestCa::new();
        // It names its issuer as the right authority does.
        let other = TestCa::new();
        let peer = Peer::start(&ca, asking(version, Asks::Demands));
        let run = Run::new().to(NAME, peer.address, &ca).option("--client-cert").option(other.identity("given"));
        let outcome = run.go(client(&ca, &[])).ok();
        let error = told(&outcome)[0]["error"].clone();
        assert!(error.as_str().is_some_and(|error| error.contains("received fatal alert")), "{version}: {error}");
        let report = outcome.report();
        assert_eq!(connections(&report), [0, 0, 1], "{version}: {report}");
        let hint = &report.process("retryscope-testbed")["problems"][0]["hint"];
        assert!(hint.as_str().is_some_and(|hint| hint.contains("--client-cert")), "{version}: {hint}");
    }
}

/// Nothing of this depends on the client's being the testbed's: curl with a
/// certificate of its own, and without.
#[test]
fn curl_with_and_without_a_certificate() {
    for version in EACH {
        let ca = TestCa::new();
        let peer = Peer::start(&ca, asking(version, Asks::Wishes));
        let curl = format!("curl -sS -m 20 https://{NAME}/");
        let script = format!("{curl} --cacert {} && {curl} && {curl}", ca.pem().display());
        let outcome = Run::new().to(NAME, peer.address, &ca).go(words!["/bin/bash", "-c", script]).ok();
        let report = outcome.report();
        assert_eq!(outcome.text(), "yesyesyes", "{version}");
        assert_eq!(connections(&report), [2, 1, 0], "{version}: {report}");

        let own = ca.identity("own");
        let peer = Peer::start(&ca, asking(version, Asks::Demands));
        let url = format!("https://{NAME}/");
        let words = words![clients::curl(), "-sS", "-m", "20", "--cacert", ca.pem(), "--cert", own, url];
        let outcome = Run::new().to(NAME, peer.address, &ca).go(words).ok();
        assert_eq!(outcome.text(), "yes", "{version}");
        assert_eq!(peer.asked()[0].client.as_deref(), Some("own"), "{version}");
        assert_eq!(connections(&outcome.report()), [0, 1, 0], "{version}");
    }
}
