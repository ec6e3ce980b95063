//! Clients that will not trust retryscope: they fail once, are left alone from
//! then on, and the report says which, why, and what would help; and in what
//! a run differed from a direct one, the report says too.
mod common;

use common::{NAME, Run, TestCa, Upstream, Wire, clients, run::Outcome};
use serde_json::Value;

/// What the report tells of the run's differences, by kind.
fn differences(outcome: &Outcome, kind: &str) -> Vec<Value> {
    let report = outcome.report();
    let all = report.0["fidelity"].as_array().expect("a list").clone();
    all.into_iter().filter(|difference| difference["kind"] == kind).collect()
}

fn url() -> String {
    format!("https://{NAME}/bytes/1000")
}

/// A shell that runs the words `times` times and prints each exit code.
fn repeated(times: usize, words: &str) -> Vec<std::ffi::OsString> {
    let script = format!("for i in $(seq {times}); do {words} >/dev/null 2>&1; echo \"$?\"; done");
    words!["sh", "-c", script]
}

/// A curl that pins the upstream's key (and minds nothing else: the test's
/// authority is not in its store), in the words of a shell.
fn pinning(ca: &TestCa, more: &str) -> String {
    let pin = ca.pin();
    format!("{} -sSk {more} --pinnedpubkey sha256//{pin} {}", clients::curl().display(), url())
}

/// Whoever pins the upstream's key fails with our certificate once; the next
/// connection of the program is the upstream's own.
#[test]
fn a_pinned_client_fails_once_and_then_works() {
    for more in ["--http1.1", "--http2", "--tls-max 1.2"] {
        let ca = TestCa::new();
        let upstream = Upstream::start(&ca);
        let outcome = Run::new().to(NAME, upstream.address, &ca).go(repeated(3, &pinning(&ca, more))).ok();
        assert_eq!(outcome.text(), "90\n0\n0\n", "{more}");
        let report = outcome.report();
        assert_eq!(report.connections("tunnelled"), 2, "{more}: {report}");
        let problem = report.problem("the client refused the certificate");
        let hint = problem["hint"].as_str().expect("a hint");
        assert!(problem["name"] == NAME && hint.contains("pins its server's certificate"), "{more}: {hint}");
        assert!(hint.contains("nothing outside of it can change that"), "{hint}");
        assert!(hint.contains("From its next connection on it is left alone"), "{hint}");
        let tunnels = report.tunnels();
        let (connections, sent, received) = tunnels.iter().fold((0, 0, 0), |sum, tunnel| {
            let number = |key: &str| tunnel[key].as_u64().expect("a number");
            assert!(tunnel["name"] == NAME && tunnel["why"].as_str().is_some_and(|why| why.contains("refuses")));
            assert!(tunnel["open_ms"].as_f64().expect("a time") > 0.0);
            (sum.0 + number("connections"), sum.1 + number("sent_bytes"), sum.2 + number("received_bytes"))
        });
        assert_eq!(connections, 2, "{more}: {report}");
        // Handshakes and a request each; an answer of 1000 bytes each.
        assert!(sent > 600 && received > 2_000, "{more}: {sent} up, {received} down");
        assert_eq!(differences(&outcome, "tunnelled")[0]["count"], 2, "{more}: {report}");
        assert_eq!(differences(&outcome, "failure")[0]["name"], NAME, "{more}: {report}");
    }
}

#[test]
fn a_pinned_client_fails_each_time_with_strict() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = Run::new().to(NAME, upstream.address, &ca).option("--strict").go(repeated(3, &pinning(&ca, ""))).ok();
    assert_eq!(outcome.text(), "90\n90\n90\n");
    let report = outcome.report();
    assert_eq!(report.connections("tunnelled"), 0, "{report}");
    let hint = report.problem("the client refused the certificate")["hint"].to_string();
    assert!(hint.contains("With --strict it fails each time"), "{hint}");
}

/// One process with a trust store of its own: its second connection works.
#[test]
fn a_client_with_its_own_store_is_told_what_would_help() {
    const PROGRAM: &str = r#"
import http.client, os, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
for attempt in range(3):
    connection = http.client.HTTPSConnection("upstream.test", context=context, timeout=20)
    try:
        connection.request("GET", "/bytes/10")
        print(connection.getresponse().status)
    except ssl.SSLError as error:
        print(error.reason)
"#;
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for cleared in [false, true] {
        let unset = if cleared { "-uSSL_CERT_FILE" } else { "-uNOTHING" };
        let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![
            "env",
            unset,
            clients::python(),
            "-c",
            PROGRAM,
            ca.pem()
        ]);
        let outcome = outcome.ok();
        assert_eq!(outcome.text(), "CERTIFICATE_VERIFY_FAILED\n200\n200\n");
        let report = outcome.report();
        let hint = report.problem("the client refused the certificate")["hint"].to_string();
        assert!(hint.contains("it does not know our authority"), "{hint}");
        let wanted =
            if cleared { "set SSL_CERT_FILE (not set in its environment) for Python" } else { "SSL_CERT_FILE=" };
        assert!(hint.contains(wanted), "{hint}");
        assert_eq!(report.connections("tunnelled"), 2, "{report}");
    }
}

/// What one program refuses is looked into for another.
#[test]
fn what_one_program_refuses_another_may_trust() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let pinned = pinning(&ca, "");
    let script = format!(
        "{pinned} >/dev/null 2>&1; {pinned} -o /dev/null; {} -c 'import urllib.request as u; print(u.urlopen(\"{}\").status)'",
        clients::python().display(),
        url()
    );
    let outcome = Run::new().to(NAME, upstream.address, &ca).go(words!["sh", "-c", script]).ok();
    assert_eq!(outcome.text(), "200\n");
    let report = outcome.report();
    assert_eq!(report.connections("tunnelled"), 1, "{report}");
    assert_eq!(report.total("attempts"), 1, "{report}");
}

/// A connection that is opened ahead of need and never used is no refusal.
#[test]
fn an_unused_connection_of_a_client_that_trusts_teaches_nothing() {
    const PROGRAM: &str = r#"
import http.client, ssl
context = ssl.create_default_context()
def connect():
    connection = http.client.HTTPSConnection("upstream.test", context=context, timeout=20)
    connection.connect()
    return connection
def ask(connection):
    connection.request("GET", "/bytes/10")
    print(len(connection.getresponse().read()))
ask(connect())
for unused in range(3):
    connect().close()
ask(connect())
"#;
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![clients::python(), "-c", PROGRAM]).ok();
    let report = outcome.report();
    assert_eq!((report.total("attempts"), report.connections("tunnelled")), (2, 0), "{report}");
    assert_eq!(report.connections("intercepted"), 5, "{report}");
    assert_eq!(report.0["fidelity"], Value::Array(Vec::new()), "{report}");
}

/// An ordinary run differs in nothing, whatever the services answer.
#[test]
fn an_ordinary_run_differs_in_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for path in ["bytes/100000", "status/503", "empty/204"] {
        let address = format!("https://{NAME}/{path}");
        let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sS", address]).ok();
        assert_eq!(outcome.report().0["fidelity"], Value::Array(Vec::new()), "{path}");
    }
    let address = upstream.address;
    let outcome =
        Run::new().to(NAME, address, &ca).no_report().go(words![clients::curl(), "-sS", "-o", "/dev/null", url()]).ok();
    assert!(!outcome.finished.stderr.contains("Different from a direct run"), "{}", outcome.finished);
}

/// Everything that rules do is told.
#[test]
fn what_rules_did_is_told() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let get = |path: &str| format!("curl -s -o /dev/null https://{NAME}/{path}; ");
    let script = get("a") + &get("b") + &get("c") + &get("d") + &get("e") + "true";
    let outcome = Run::new()
        .to(NAME, upstream.address, &ca)
        .rule("~u /a => 503")
        .rule("~u /b => 503 in request")
        .rule("~u /c => reset")
        .rule("~u /d => delay 20ms")
        .go(words!["sh", "-c", script])
        .ok();
    for (kind, count) in
        [("changed-answer", 1), ("synthetic-answer", 1), ("injected-fault", 1), ("delayed", 1), ("tunnelled", 0)]
    {
        let found = differences(&outcome, kind);
        assert_eq!(found.iter().map(|it| it["count"].as_u64().unwrap_or_default()).sum::<u64>(), count, "{kind}");
    }
}

/// Failures that cannot be mirrored as they are, or that we have judged in
/// the client's place.
#[test]
fn failures_of_another_kind_are_told() {
    let ca = TestCa::new();
    // Nobody listens there.
    let refused = common::own_address(443);
    let outcome = Run::new().to(NAME, refused, &ca).go(words![clients::curl(), "-sS", url()]);
    let found = differences(&outcome, "failure");
    assert!(
        found[0]["text"].as_str().is_some_and(|text| text.contains("connect() itself would have failed")),
        "{found:?}"
    );

    // An upstream that nobody vouches for: a client that does not care would
    // have gone on.
    let stranger = TestCa::new();
    let upstream = Upstream::start(&stranger);
    let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sSk", url()]);
    assert_ne!(outcome.finished.code, 0);
    let found = differences(&outcome, "failure");
    assert!(found[0]["text"].as_str().is_some_and(|text| text.contains("would have judged")), "{found:?}");

    // What is mirrored in kind is no difference.
    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        conn.reset();
        Ok(())
    });
    let outcome = Run::new().to(NAME, wire.address, &ca).go(words![clients::curl(), "-sS", url()]);
    assert_eq!(differences(&outcome, "failure"), Vec::<Value>::new(), "{}", outcome.report());
}
