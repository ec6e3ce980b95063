//! Where it cannot be, it says why, and what to do.
use crate::{
    common::{Finished, Run, Running, SOON, TestCa, Upstream, clients, run::RETRYSCOPE},
    words,
    world::{Attached, Client, Net, SERVER, World},
};

/// `retryscope WORDS` in a namespace, without some capabilities.
fn without(net: &Net, capabilities: &str, words: Vec<std::ffi::OsString>) -> Finished {
    let mut command = net.command(clients::need("setpriv", "util-linux"));
    command.arg(format!("--bounding-set={capabilities}")).arg(RETRYSCOPE).args(words);
    Running::start(&mut command).finish(SOON)
}

fn authority(dir: &std::path::Path) {
    let mut command = std::process::Command::new(RETRYSCOPE);
    clients::bare(command.args(["ca", "init", "--ca-dir"]).arg(dir.join("ca"))).finish(SOON).ok();
}

#[test]
fn without_the_capability() {
    let net = Net::new("alone");
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    authority(dir.path());
    let attach = words!["attach", "--netns", "--for", "1s", "--ca-dir", dir.path().join("ca")];
    let refused = without(&net, "-net_admin,-net_raw", attach).code(77);
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused}");
    let refused = without(&net, "-net_admin", words!["run", "--redirect", "tproxy", "--", "true"]).code(77);
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused}");
    let doctor = without(&net, "-net_admin", words!["doctor"]).code(69);
    assert!(doctor.text().contains("less  TPROXY: "), "{doctor}");
    assert!(doctor.text().contains("neither eBPF nor TPROXY"), "{doctor}");
    net.nothing_left();
}

/// Neither root nor another capability: what a container's sidecar has.
#[test]
fn with_the_capability_alone() {
    let world = World::near();
    let mut client = Client::in_net(&world.client);
    let mut command = world.client.command(clients::need("setpriv", "util-linux"));
    command.args(["--bounding-set=-all,+net_admin", RETRYSCOPE]);
    let attached = Attached::start_by(command, &world.ca, words!["--netns"]);
    for host in SERVER {
        assert!(client.asks(host), "{host}");
    }
    assert_eq!(attached.finish().connections("intercepted"), 2);
    world.client.nothing_left();
}

/// Where eBPF is forbidden, auto takes TPROXY, and says so and why.
#[test]
fn auto_takes_what_there_is() {
    let world = World::near();
    let net = &world.client;
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let report = dir.path().join("report.json");
    let url = format!("https://{}/hello", SERVER[0]);
    let run = words![
        "run",
        "--no-mount",
        "--upstream-ca",
        world.ca.pem(),
        "--report",
        "json",
        "--report-file",
        &report,
        "--",
        clients::curl(),
        "-sS",
        url
    ];
    let finished = without(net, "-bpf,-perfmon,-sys_admin", run).ok();
    assert_eq!(finished.text(), "hello from /hello\n");
    assert!(finished.stderr.contains("redirected by TPROXY: eBPF cannot be used"), "{finished}");
    assert!(finished.stderr.contains("CAP_BPF"), "{finished}");
    let report = crate::common::Report::parse(&std::fs::read_to_string(&report).expect("the report"));
    assert_eq!(report.0["redirect"]["way"], "tproxy", "{report}");
    assert!(report.0["notes"].to_string().contains("eBPF cannot be used"), "{report}");
    assert_eq!(report.connections("intercepted"), 1, "{report}");
    let doctor = without(net, "-bpf,-perfmon,-sys_admin", words!["doctor"]).ok();
    assert!(doctor.text().contains("redirect: TPROXY, since eBPF lacks: capabilities"), "{doctor}");
    // With what is needed, it is eBPF, and there is nothing to say.
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = Run::new().to(crate::common::NAME, upstream.address, &ca).go(["true"]).ok();
    assert_eq!(outcome.report().0["redirect"]["way"], "ebpf");
    assert!(!outcome.stderr.contains("redirected by"), "{}", outcome.finished);
    net.nothing_left();
}

#[test]
fn what_makes_no_sense() {
    let net = Net::new("alone");
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    authority(dir.path());
    let attach = |words: Vec<std::ffi::OsString>| {
        let all = words!["attach", "--for", "1s", "--ca-dir", dir.path().join("ca")];
        let mut command = net.command(RETRYSCOPE);
        Running::start(command.args(all).args(words)).finish(SOON)
    };
    let pid = std::process::id().to_string();
    for (words, said) in [
        (words!["--ingress", "eth7"], "there is no network interface eth7"),
        (words!["--ingress", "lo"], "there is no network interface lo"),
        (words!["--netns", "--redirect", "ebpf"], "only TPROXY takes a network namespace"),
        (words!["--pid", &pid, "--redirect", "tproxy"], "TPROXY cannot tell one process from its neighbours"),
        (words!["--netns", "--pid", &pid], "cannot be used with"),
        (words![], "--netns"),
    ] {
        let refused = attach(words).code(64);
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    net.nothing_left();
}
