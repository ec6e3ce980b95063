//! Other projects' own suites, with interception and without: what comes of
//! each of their tests must be the same.
//!
//! The suites come from the package index, in pinned versions. Each runs in a
//! network namespace of its own, where every TCP port is watched: the suites'
//! servers are on its loopback. Where a test comes out otherwise, it is named
//! here with the reason; one that is named and does not differ fails as well.
mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    NAME, Report, Run, Running, SOON, TestCa, TestCgroup, clients, pattern, run::RETRYSCOPE, servers::Nginx, until,
};
use nix::sys::signal::Signal;

/// A suite takes some ten seconds, on a busy machine some more.
const DEADLINE: Duration = Duration::from_secs(240);

/// A network namespace with a loopback.
const ALONE: &str = r#"ip link set lo up && exec "$@""#;

/// A suite, and what of it is run.
struct Suite {
    package: &'static str,
    version: &'static str,
    files: &'static [&'static str],
    /// Connections that have to be looked into, and tests that have to pass
    /// directly, for the comparison to mean something.
    intercepted: u64,
    passing: usize,
    /// Tests that are a matter of luck directly, and so are not run.
    left_out: &'static [&'static str],
    /// Why tests come out otherwise, and which.
    differ: &'static [(&'static str, &'static [&'static str])],
}

type Outcomes = BTreeMap<String, (String, String)>;

impl Suite {
    /// Its sources, and the authority that its servers and ours use.
    fn unpack(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let archive = clients::source(self.package, self.version);
        let unpacked = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(folder).status();
        assert!(unpacked.is_ok_and(|status| status.success()), "unpacking {}", self.package);
        let sources = folder.join(format!("{}-{}", self.package, self.version));
        let authority = folder.join("ca");
        let theirs = sources.join("dummyserver/certs");
        if theirs.is_dir() {
            // Some of its tests know the digests of its certificates.
            std::fs::create_dir(&authority).expect("a folder");
            std::fs::copy(theirs.join("cacert.pem"), certificate(&authority)).expect("a certificate");
            let mut convert = Command::new(clients::need("openssl", "openssl"));
            convert.arg("pkey").arg("-in").arg(theirs.join("cacert.key")).arg("-out").arg(key(&authority));
            clients::bare(&mut convert).finish(SOON).ok();
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(key(&authority), private).expect("a private key");
        } else {
            common::run::retryscope(words!["ca", "init", "--ca-dir", &authority]).finish(SOON).ok();
        }
        (sources, authority)
    }

    fn pytest(
        &self,
        mut command: Command,
        sources: &Path,
        authority: &Path,
        outcomes: &Path,
        tests: &[&str],
    ) -> Running {
        command.arg(clients::suites_python()).args([
            "-m",
            "pytest",
            "-q",
            "--tb=native",
            "-p",
            "suite",
            "-p",
            "no:cacheprovider",
        ]);
        command.args(self.left_out.iter().flat_map(|test| ["--deselect", test]));
        command.args(tests).current_dir(sources).env_clear().envs(clients::environment());
        command.env("PYTHONPATH", clients::script("suites")).env("SUITE_OUTCOMES", outcomes);
        command.env("SUITE_AUTHORITY", certificate(authority)).env("SUITE_AUTHORITY_KEY", key(authority));
        Running::start(&mut command)
    }

    fn direct(&self, sources: &Path, authority: &Path, tests: &[&str]) -> Outcomes {
        let folder = tempfile::tempdir().expect("a folder");
        let outcomes = folder.path().join("outcomes");
        let finished = self.pytest(alone(), sources, authority, &outcomes, tests).finish(DEADLINE);
        read(&outcomes).unwrap_or_else(|| panic!("{}: {finished}", self.package))
    }

    fn intercepted(&self, sources: &Path, authority: &Path, tests: &[&str]) -> (Outcomes, Report) {
        let folder = tempfile::tempdir().expect("a folder");
        let (outcomes, report) = (folder.path().join("outcomes"), folder.path().join("report.json"));
        let group = TestCgroup::new();
        let mut command = alone();
        command
            .args([RETRYSCOPE, "attach", "--port", "any", "--strict", "--report", "json", "--report-file"])
            .arg(&report);
        command.arg("--cgroup").arg(group.path()).arg("--ca-dir").arg(authority);
        for pem in [certificate(authority), sources.join("upstream-ca.pem")].iter().filter(|pem| pem.exists()) {
            command.arg("--upstream-ca").arg(pem);
        }
        let daemon = clients::bare(&mut command);
        until("it watches", SOON, || common::show(&daemon.stderr.bytes()).contains("any port").then_some(()));
        let mut inside = group.command(&clients::need("nsenter", "util-linux"));
        inside.arg(format!("--net=/proc/{}/ns/net", daemon.pid));
        let finished = self.pytest(inside, sources, authority, &outcomes, tests).finish(DEADLINE);
        daemon.signal(Signal::SIGINT);
        daemon.finish(SOON).ok();
        let outcomes = read(&outcomes).unwrap_or_else(|| panic!("{}: {finished}", self.package));
        (outcomes, Report::parse(&std::fs::read_to_string(&report).expect("a report")))
    }

    /// Both ways at once, each in its own network.
    fn both(&self, sources: &Path, authority: &Path, tests: &[&str]) -> (Outcomes, Outcomes, Report) {
        std::thread::scope(|scope| {
            let direct = scope.spawn(|| self.direct(sources, authority, tests));
            let (intercepted, report) = self.intercepted(sources, authority, tests);
            (direct.join().expect("the direct run"), intercepted, report)
        })
    }

    fn check(&self) {
        clients::root();
        let folder = tempfile::Builder::new().prefix("retryscope-suite-").tempdir().expect("a folder");
        let (sources, authority) = self.unpack(folder.path());
        if self.package == "httpcore" {
            let theirs = "import pytest_httpbin.certs as c, shutil, sys; shutil.copy(c.where(), sys.argv[1])";
            let mut copy = Command::new(clients::suites_python());
            clients::bare(copy.args(["-c", theirs]).arg(sources.join("upstream-ca.pem"))).finish(SOON).ok();
        }
        let (direct, intercepted, report) = self.both(&sources, &authority, self.files);
        let passing = direct.values().filter(|(outcome, _)| outcome == "passed").count();
        println!(
            "{} {}: {} tests, {passing} pass directly; intercepted {}, tunnelled {}, refused {}",
            self.package,
            self.version,
            direct.len(),
            report.connections("intercepted"),
            report.connections("tunnelled"),
            report.connections("refused"),
        );
        assert!(passing >= self.passing, "only {passing} of {} tests pass directly", self.package);
        assert!(report.connections("intercepted") >= self.intercepted, "{report}");

        let mut differing = difference(&direct, &intercepted);
        // Some tests of time-outs are a matter of luck on a busy machine: what
        // differs, or should and does not, is tried again by itself.
        let expected: Vec<&str> = self.differ.iter().flat_map(|(_, tests)| tests.iter().copied()).collect();
        let again: Vec<String> = differing
            .keys()
            .filter(|test| !expected.contains(&test.as_str()))
            .cloned()
            .chain(expected.iter().filter(|test| !differing.contains_key(**test)).map(|test| (*test).to_owned()))
            .collect();
        if !again.is_empty() {
            let tests: Vec<&str> = again.iter().map(String::as_str).collect();
            let (direct, intercepted, _) = self.both(&sources, &authority, &tests);
            let found = difference(&direct, &intercepted);
            differing.retain(|test, _| !again.contains(test) || found.contains_key(test));
            differing.extend(found);
        }
        let unexpected: Vec<String> = differing
            .iter()
            .filter(|(test, _)| !expected.contains(&test.as_str()))
            .map(|(test, how)| format!("{test}: {how}"))
            .collect();
        let stale: Vec<&&str> = expected.iter().filter(|test| !differing.contains_key(**test)).collect();
        assert!(
            unexpected.is_empty() && stale.is_empty(),
            "{} tests of {} come out otherwise:\n{}\nnamed here, but the same: {stale:#?}",
            unexpected.len(),
            self.package,
            unexpected.join("\n")
        );
    }
}

fn certificate(authority: &Path) -> PathBuf {
    authority.join("retryscope-ca.pem")
}

fn key(authority: &Path) -> PathBuf {
    authority.join("retryscope-ca.key")
}

fn alone() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", ALONE, "sh"]);
    command
}

fn read(outcomes: &Path) -> Option<Outcomes> {
    serde_json::from_str(&std::fs::read_to_string(outcomes).ok()?).ok()
}

fn difference(direct: &Outcomes, intercepted: &Outcomes) -> BTreeMap<String, String> {
    let none = (String::from("did not run"), String::new());
    let names: std::collections::BTreeSet<&String> = direct.keys().chain(intercepted.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let ((one, _), (other, said)) = (direct.get(name).unwrap_or(&none), intercepted.get(name).unwrap_or(&none));
            (one != other).then(|| (name.clone(), format!("{one} directly, {other} here\n{said}")))
        })
        .collect()
}

/// A test of urllib3 that runs for each version of TLS.
macro_rules! each_version {
    ($($test:literal),* $(,)?) => {
        &[$(
            concat!("test/with_dummyserver/test_https.py::TestHTTPS_TLSv1_2::", $test),
            concat!("test/with_dummyserver/test_https.py::TestHTTPS_TLSv1_3::", $test),
        )*]
    };
}

/// Those of its tests that come out otherwise.
const URLLIB3: &[(&str, &[&str])] = &[
    (
        "they know the digest of the server's own certificate",
        each_version![
            "test_assert_fingerprint_md5",
            "test_assert_fingerprint_sha1",
            "test_assert_fingerprint_sha256",
            "test_assert_invalid_fingerprint",
            "test_enhanced_ssl_connection",
            "test_good_fingerprint_and_hostname_mismatch",
            "test_verify_none_and_good_fingerprint",
        ],
    ),
    (
        "they know the digest of the server's own certificate",
        &["test/with_dummyserver/test_socketlevel.py::TestSSL::test_ssl_failed_fingerprint_verification"],
    ),
    (
        "connect() has succeeded where directly it fails",
        each_version!["test_enhanced_timeout", "test_https_timeout", "test_http2_probe_no_result_in_connect_error"],
    ),
    (
        "a certificate for another name ends the handshake with an alert, where directly the client judges the name",
        &[
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_assert_hostname_invalid_cn",
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_assert_hostname_invalid_san",
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_common_name_without_san_fails[localhost]",
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_common_name_without_san_with_different_common_name",
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_hostname_checks_common_name_respected[localhost-False]",
            "test/with_dummyserver/test_https.py::TestHTTPS_Hostname::test_hostname_checks_common_name_respected[localhost-True]",
        ],
    ),
    (
        "a client's own certificate cannot be passed on",
        &[
            "test/with_dummyserver/test_socketlevel.py::TestClientCerts::test_client_cert_with_bytes_password",
            "test/with_dummyserver/test_socketlevel.py::TestClientCerts::test_client_cert_with_string_password",
            "test/with_dummyserver/test_socketlevel.py::TestClientCerts::test_client_certs_one_file",
            "test/with_dummyserver/test_socketlevel.py::TestClientCerts::test_client_certs_two_files",
        ],
    ),
    (
        "what is no TLS in answer to a hello, or between records, comes as an alert or an end",
        &[
            "test/with_dummyserver/test_socketlevel.py::TestProxyManager::test_https_proxymanager_connected_to_http_proxy[http]",
            "test/with_dummyserver/test_socketlevel.py::TestProxyManager::test_https_proxymanager_connected_to_http_proxy[https]",
            "test/with_dummyserver/test_socketlevel.py::TestSSL::test_ssl_failure_midway_through_conn",
        ],
    ),
    (
        "the server does not get the alert of a client that does not trust",
        &["test/with_dummyserver/test_socketlevel.py::TestSSL::test_ssl_custom_validation_failure_terminates"],
    ),
];

/// Its tests of HTTPS and of what sockets do.
#[test]
fn urllib3() {
    Suite {
        package: "urllib3",
        version: "2.8.0",
        files: &["test/with_dummyserver/test_https.py", "test/with_dummyserver/test_socketlevel.py"],
        intercepted: 100,
        passing: 240,
        // It fails where the system gives two threads the same number in turn.
        left_out: each_version!["test_http2_probe_blocked_per_thread"],
        differ: URLLIB3,
    }
    .check();
}

/// nghttp2's load client and curl against nginx, HTTP/2: the same number of
/// requests, answers and bytes, and in nginx's log the same lines.
#[test]
fn h2load_and_curl_with_nginx() {
    let ca = TestCa::new();
    let nginx = Nginx::start(&ca);
    nginx.put("small", &pattern(1_000));
    nginx.put("large", &pattern(3_000_000));
    let body = nginx.folder().join("upload");
    std::fs::write(&body, pattern(100_000)).expect("a body");
    let url = |path: &str| format!("https://{NAME}/{path}");
    let h2load = || clients::need("h2load", "nghttp2-client");
    let curl = clients::curl;
    let several: Vec<String> = (0..20).map(|number| url(&format!("small?{number}"))).collect();
    let words = |words: Vec<std::ffi::OsString>, urls: &[String]| {
        words.into_iter().chain(urls.iter().map(std::ffi::OsString::from)).collect::<Vec<_>>()
    };
    let commands = [
        (words!(h2load(), "-n", "3000", "-c", "6", "-m", "20", url("small")), 3000),
        (words!(h2load(), "-n", "20", "-c", "2", "-m", "10", url("large")), 20),
        (words!(h2load(), "-n", "100", "-c", "4", "-m", "5", "-d", &body, url("sink")), 100),
        (words!(h2load(), "--h1", "-n", "500", "-c", "4", url("small")), 500),
        (words!(curl(), "-sS", "--fail", "--http2", url("large")), 1),
        (words!(curl(), "-sS", "--http2", "--data-binary", format!("@{}", body.display()), url("sink")), 1),
        (words(words!(curl(), "-sS", "--fail", "--http2", "--parallel"), &several), 20),
    ];
    for (command, requests) in commands {
        let mut told = Vec::new();
        for direct in [true, false] {
            let outcome = Run::via(direct).to(NAME, nginx.address, &ca).deadline(DEADLINE).go(&command).ok();
            let mut log = nginx.take_log(requests);
            log.sort_unstable();
            // What is left of h2load's tables does not tell of time.
            let counts = |line: &&str| ["requests:", "status codes:"].iter().any(|start| line.starts_with(start));
            let text = outcome.text();
            let counted = text.lines().filter(counts).collect::<Vec<_>>().join("\n");
            let said = if counted.is_empty() { common::sha256(&outcome.stdout) } else { counted };
            told.push((said, log));
            if !direct {
                let report = outcome.report();
                assert_eq!(report.total("attempts"), requests as u64, "{command:?}: {report}");
                assert_eq!(report.connections("tunnelled") + report.connections("refused"), 0, "{report}");
            }
        }
        assert_eq!(told[0].1.len(), requests, "{command:?}");
        assert!(told[0] == told[1], "{command:?}: {}\n{}", told[0].0, told[1].0);
    }
}

/// Its tests against a server, which is made to speak TLS.
#[test]
fn httpx() {
    Suite {
        package: "httpx",
        version: "0.28.1",
        files: &[
            "tests/client/test_client.py",
            "tests/client/test_async_client.py",
            "tests/test_timeouts.py",
            "tests/test_api.py",
        ],
        intercepted: 50,
        passing: 80,
        left_out: &[],
        differ: &[],
    }
    .check();
}

/// The transport that httpx is made of, against an httpbin.
#[test]
fn httpcore() {
    Suite {
        package: "httpcore",
        version: "1.0.9",
        files: &["tests/_sync/test_integration.py", "tests/_async/test_integration.py"],
        intercepted: 4,
        passing: 8,
        left_out: &[],
        differ: &[],
    }
    .check();
}
