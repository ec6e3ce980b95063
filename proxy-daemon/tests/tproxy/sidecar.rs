//! A sidecar beside an application, as a container engine would set them up:
//! one network namespace, and of everything else each its own.
use std::{ffi::OsString, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    common::{
        Report, Running, SOON, clients,
        servers::{AWS, Moto},
    },
    words,
    world::{Attached, Net},
};

/// Makes the names of the services resolve inside the container.
const CONTAINER: &str = r#"mount --bind "$1" /etc/hosts || exit 99
shift
exec "$@""#;

/// Mount, process, host name and IPC namespaces of its own, and a `/proc` of
/// its own processes.
fn container(net: &Net, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = net.command(clients::need("unshare", "util-linux"));
    command.args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "--mount-proc"]);
    command.arg("--").arg(program);
    command
}

struct Pod {
    net: Net,
    moto: Moto,
    dir: tempfile::TempDir,
}

impl Pod {
    fn new() -> Self {
        let net = Net::new("pod");
        let address = "127.64.0.1:443".parse().expect("an address");
        let moto = Moto::at(address, |python| net.command(python));
        let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        let hosts: String = AWS.iter().map(|name| format!("{} {name}\n", address.ip())).collect();
        std::fs::write(dir.path().join("hosts"), hosts).expect("writing hosts");
        Self { net, moto, dir }
    }

    /// The sidecar, throttling each call once.
    fn sidecar(&self, mut command: Command) -> Attached {
        command.arg(crate::common::run::RETRYSCOPE);
        let rule = "~op ListBuckets & ~attempt 1 => s3-slowdown";
        Attached::start_by(command, &self.moto.ca, words!["--netns", "--rule", rule])
    }

    /// The application's container: boto3 lists buckets twice.
    fn app(&self, authority: &Path, command: impl FnOnce(OsString) -> Command) -> Value {
        let plan = json!({"retries": {"mode": "standard"}, "sleep_scale": 0.05, "calls": [
            ["s3", "list_buckets", {}], ["s3", "list_buckets", {}],
        ]});
        let mut command = command("/bin/sh".into());
        command.args(["-c", CONTAINER, "sh"]).arg(self.dir.path().join("hosts"));
        command.arg(clients::python()).arg(clients::script("boto_truth.py")).arg(plan.to_string());
        command.env("AWS_CA_BUNDLE", authority).current_dir(self.dir.path());
        Running::start(&mut command).finish(SOON * 2).ok().json()
    }
}

/// The report names boto3's calls and retries, whatever it knows of whose they
/// are.
#[track_caller]
fn retried(report: &Report, row: &Value) {
    let operation = &row["operations"][0];
    assert_eq!(operation["operation"], "ListBuckets", "{report}");
    assert_eq!((&row["calls"], &row["attempts"], &row["retries"]), (&2.into(), &4.into(), &2.into()), "{report}");
}

/// Containers that share their processes: the report has the process.
#[test]
fn with_shared_processes() {
    let pod = Pod::new();
    let attached = pod.sidecar(pod.net.command("/usr/bin/env"));
    let truth = pod.app(&attached.authority(), |shell| {
        let mut command = pod.net.command(clients::need("unshare", "util-linux"));
        command.args(["--mount", "--uts", "--ipc", "--cgroup", "--"]).arg(shell);
        command
    });
    let report = attached.finish();
    let row = report.process("boto_truth.py");
    assert!(row["pid"].as_u64().is_some_and(|pid| pid > 1), "{report}");
    retried(&report, row);
    let attempts = truth["attempts"].as_array().map(Vec::len);
    assert_eq!(attempts, Some(4), "boto3's own account: {truth}");
    assert_eq!(report.processes().len(), 1, "{report}");
    pod.net.nothing_left();
}

/// Containers that do not: the sidecar cannot see the process, and tells it by
/// its cgroup.
#[test]
fn each_with_its_own_processes() {
    let pod = Pod::new();
    let attached = pod.sidecar(container(&pod.net, "/usr/bin/env"));
    pod.app(&attached.authority(), |shell| container(&pod.net, shell));
    let report = attached.finish();
    assert_eq!(report.processes().len(), 1, "{report}");
    let row = &report.processes()[0];
    assert_eq!(row["pid"], 0, "{report}");
    assert!(row["command"].as_str().is_some_and(|name| name.starts_with("cgroup ")), "{report}");
    retried(&report, row);
    assert!(report.0["notes"].to_string().contains("came from processes that could not be found"), "{report}");
    pod.net.nothing_left();
}
