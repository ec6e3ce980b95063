//! `attach`: the same for what already runs; and the authority that it uses.
mod common;

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use common::{Loop, NAME, Report, Running, SOON, TestCa, TestCgroup, Upstream, clients, run::retryscope, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// An authority in a folder of its own.
fn authority() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    retryscope(words!["ca", "init", "--ca-dir", dir.path().join("ca")]).finish(SOON).ok();
    dir
}

/// Starts `attach` and waits until it is in force, as `probe` tells.
fn attach(ca: &TestCa, authority: &Path, report: &Path, words: Vec<std::ffi::OsString>) -> Running {
    let all = words![
        "attach",
        "--ca-dir",
        authority.join("ca"),
        "--upstream-ca",
        ca.pem(),
        "--report",
        "json",
        "--report-file",
        report
    ];
    let mut running = retryscope(all.into_iter().chain(words));
    until("attach says that it watches", SOON, || {
        let said = common::show(&running.stderr.bytes());
        assert!(!running.ended(), "attach ended: {said}");
        said.contains("now on").then_some(())
    });
    running
}

/// A running loop's cgroup: its connections from then on are intercepted,
/// trusted by nobody but seen; after SIGTERM they are direct, and the report
/// has them.
#[test]
fn by_cgroup() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
        let upstream = Upstream::start(&ca);
        let report = authority.path().join("report.json");
        let mut inside = Loop::in_cgroup(&group, &upstream);
        assert!(!inside.connects("go"), "before attaching");
        let running = attach(&ca, authority.path(), &report, words!["--cgroup", group.path()]);
        assert!(inside.connects("go") && inside.connects("fork"), "while attached");
        running.signal(signal);
        running.finish(SOON).ok();
        assert!(!inside.connects("go"), "after the end");
        let report = Report::parse(&std::fs::read_to_string(&report).expect("the report"));
        assert_eq!(report.connections("intercepted"), 2, "{report}");
        assert_eq!(report.total("attempts"), 2, "{report}");
        assert_eq!(report.processes().len(), 2, "the loop and its child: {report}");
        inside.end();
    }
}

/// A process by pid: it and what it starts from then on, and not its
/// neighbour in the same cgroup.
#[test]
fn by_pid() {
    let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
    let upstream = Upstream::start(&ca);
    let report = authority.path().join("report.json");
    let mut target = Loop::in_cgroup(&group, &upstream);
    let mut neighbour = Loop::in_cgroup(&group, &upstream);
    let pid = target.running.pid;
    // A rule by pid meets the process and not its child.
    let words = words!["--pid", pid.to_string(), "--rule", format!("~pid {pid} & ~s => 418")];
    let running = attach(&ca, authority.path(), &report, words);
    for how in ["go", "fork", "go"] {
        assert!(target.connects(how), "{how}");
        assert!(!neighbour.connects(how), "the neighbour's {how}");
    }
    running.signal(Signal::SIGTERM);
    running.finish(SOON).ok();
    assert!(!target.connects("go"), "after the end");
    let report = Report::parse(&std::fs::read_to_string(&report).expect("the report"));
    assert_eq!(report.connections("intercepted"), 3, "{report}");
    assert_eq!(report.count("injected", "418"), 2, "{report}");
    assert_eq!(report.count("statuses", "200"), 1, "{report}");
    let children: Vec<&Value> = report.processes().iter().filter(|row| row["pid"] != pid).collect();
    assert_eq!(children.len(), 1, "{report}");
    assert_eq!(children[0]["parent"], pid, "{report}");
    target.end();
    neighbour.end();
}

/// `--for` ends by itself, and the cgroup is as it was.
#[test]
fn for_some_time() {
    let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
    let upstream = Upstream::start(&ca);
    let report = authority.path().join("report.json");
    let mut inside = Loop::in_cgroup(&group, &upstream);
    let running = attach(&ca, authority.path(), &report, words!["--cgroup", group.path(), "--for", "2s"]);
    assert!(inside.connects("go"));
    let finished = running.finish(SOON).ok();
    assert!((1.9..15.0).contains(&finished.elapsed.as_secs_f64()), "{finished}");
    assert!(!inside.connects("go"));
    assert!(common::cgroup::links(common::cgroup::id(group.path())).is_empty(), "links are left");
    inside.end();
}

/// A target that was told to trust the authority by `ca show`'s certificate
/// verifies as usual.
#[test]
fn a_target_that_trusts_the_authority() {
    let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
    let upstream = Upstream::start(&ca);
    let report = authority.path().join("report.json");
    let shown = retryscope(words!["ca", "show", "--ca-dir", authority.path().join("ca")]).finish(SOON).ok();
    let begin = shown.text().find("-----BEGIN CERTIFICATE-----").expect("the certificate is shown");
    let end = shown.text().find("-----END CERTIFICATE-----").expect("the certificate is shown");
    let pem = authority.path().join("shown.pem");
    std::fs::write(&pem, format!("{}-----END CERTIFICATE-----\n", &shown.text()[begin..end])).expect("writing");
    for hint in ["NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "JAVA"] {
        assert!(shown.text().contains(hint), "{hint}: {shown}");
    }
    assert!(!shown.text().contains("PRIVATE KEY"), "{shown}");
    let running = attach(&ca, authority.path(), &report, words!["--cgroup", group.path()]);
    let mut command = group.command(&clients::curl());
    command.arg("-sS").arg("--cacert").arg(&pem).arg(format!("https://{}/hello", upstream.address.ip()));
    assert_eq!(clients::bare(&mut command).finish(SOON).ok().text(), "hello from /hello\n");
    let mut command = group.command(&clients::curl());
    let resolve = format!("{NAME}:443:{}", upstream.address.ip());
    command.arg("-sS").arg("--cacert").arg(&pem).args(["--resolve", &resolve]).arg(format!("https://{NAME}/hello"));
    assert_eq!(clients::bare(&mut command).finish(SOON).ok().text(), "hello from /hello\n");
    running.signal(Signal::SIGTERM);
    running.finish(SOON).ok();
}

/// `ca init` makes a key that only its owner can read and never overwrites
/// one; `attach` refuses one that others can read, or none at all.
#[test]
fn the_authoritys_files() {
    let (dir, group) = (authority(), TestCgroup::new());
    let folder = dir.path().join("ca");
    let files: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    let key = files
        .iter()
        .find(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("PRIVATE KEY")))
        .expect("a key file");
    assert_eq!(std::fs::metadata(key).expect("the key").mode() & 0o7777, 0o600);
    let before = std::fs::read_to_string(key).expect("the key");

    let again = retryscope(words!["ca", "init", "--ca-dir", folder.clone()]).finish(SOON);
    assert_ne!(again.code, 0, "an existing authority must not be replaced: {again}");
    assert_eq!(std::fs::read_to_string(key).expect("the key"), before);

    let try_attach = |folder: &Path| {
        let mut command = Command::new(common::run::RETRYSCOPE);
        command.args(["attach", "--for", "1s", "--cgroup"]).arg(group.path()).arg("--ca-dir").arg(folder);
        clients::bare(&mut command).finish(SOON)
    };
    for mode in [0o640, 0o604, 0o660] {
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let refused = try_attach(&folder);
        assert!([64, 77].contains(&refused.code), "{mode:o}: {refused}");
        assert!(refused.stderr.contains("chmod") || refused.stderr.contains("600"), "the remedy: {refused}");
    }
    let none = try_attach(&dir.path().join("nothing-here"));
    assert!([64, 77].contains(&none.code), "{none}");
    assert!(none.stderr.contains("retryscope ca init"), "the remedy: {none}");
}

/// `attach` says that connections already open are not seen.
#[test]
fn says_what_it_cannot_see() {
    let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
    let report = authority.path().join("report.json");
    let running = attach(&ca, authority.path(), &report, words!["--cgroup", group.path()]);
    let said = common::show(&running.stderr.bytes());
    assert!(said.contains("already open"), "{said}");
    running.signal(Signal::SIGTERM);
    let finished = running.finish(SOON).ok();
    assert!(finished.stdout.is_empty(), "{finished}");
}

/// SIGHUP reads the rule files again; a broken one changes nothing, and the
/// instance goes on.
#[test]
fn hang_up_reads_the_rules_again() {
    let (ca, authority, group) = (TestCa::new(), authority(), TestCgroup::new());
    let upstream = Upstream::start(&ca);
    let report = authority.path().join("report.json");
    let file = authority.path().join("rules.toml");
    let write = |text: &str| std::fs::write(&file, text).expect("writing rules");
    write("[[rule]]\nname = \"one\"\nwhen = \"~s\"\nthen = { status = 500 }\n");
    let running = attach(&ca, authority.path(), &report, words!["--cgroup", group.path(), "--rules", &file]);
    let said = |part: &str| {
        until(part, SOON, || common::show(&running.stderr.bytes()).contains(part).then_some(()));
    };
    write("[[rule]]\nname = \"two\"\nwhen = \"~s\"\nthen = { status = 500 }\n");
    running.signal(Signal::SIGHUP);
    said("the rule files were read again");
    write("[[rule]]\nwhen = \"~dd\"\nthen = { status = 500 }\n");
    running.signal(Signal::SIGHUP);
    said("did you mean ~d?");
    running.signal(Signal::SIGTERM);
    running.finish(SOON).ok();
    let report = Report::parse(&std::fs::read_to_string(&report).expect("a report"));
    assert_eq!(report.0["rules"][0]["name"], "two", "{report}");
    drop(upstream);
}
