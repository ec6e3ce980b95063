//! The sidecar for real: its image, built from deploy/container, in a
//! container beside an application's. Both share a network namespace and a
//! folder, and nothing else unless a test says so.
mod common;
#[path = "tproxy/world.rs"]
#[allow(dead_code)]
mod world;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use common::{
    Finished, Report, Running, SOON, TestCa, clients,
    podman::Engine,
    run::RETRYSCOPE,
    servers::{AWS, S3},
    until,
};
use serde_json::{Value, json};
use world::Net;

/// Throttles each list once.
const RULE: &str = "~op ListBuckets & ~attempt 1 => s3-slowdown";
/// Where the folder is in every container.
const SHARED: &str = "/run/retryscope";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// The image; one for the tests that run at the same time, gone with the last
/// of them.
struct Image(String);

impl Image {
    fn shared() -> Arc<Self> {
        static CURRENT: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = current.upgrade() {
            return image;
        }
        let image = Arc::new(Self::build());
        *current = Arc::downgrade(&image);
        image
    }

    fn build() -> Self {
        let engine = Engine::new();
        let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir_in(clients::target()).expect("a folder");
        let program = dir.path().join("retryscope");
        // What only debuggers read is five times the rest.
        let mut strip = Command::new(clients::need("strip", "binutils"));
        clients::bare(strip.arg(RETRYSCOPE).arg("-o").arg(&program)).finish(SOON * 3).ok();
        let context = dir.path().join("image");
        let mut lay = Command::new(deploy("container/lay.sh"));
        clients::bare(lay.arg(&program).arg(context.join("rootfs"))).finish(SOON).ok();
        let image = Self(format!("localhost/{}", Engine::name("retryscope-test")));
        let mut build = engine.podman();
        build.args(["build", "--format", "docker", "--tag", &image.0, "--file"]);
        clients::bare(build.arg(deploy("container/laid.Containerfile")).arg(&context)).finish(SOON * 6).ok();
        image
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let removed = Engine::new().podman().args(["rmi", "--force", &self.0]).output();
        if !removed.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("left behind: the image {} ({removed:?})", self.0);
        }
    }
}

/// What containers of a pod share, and the S3 that its application uses.
struct Pod {
    engine: Engine,
    image: Arc<Image>,
    name: String,
    dir: tempfile::TempDir,
    _s3: Running,
    net: Net,
}

impl Pod {
    fn new() -> Self {
        let net = Net::new("pod");
        let ca = TestCa::new();
        let files = ca.files("s3s", AWS, &[]);
        let mut s3 = net.command(clients::testbed());
        s3.args(["s3", "--leash", "--port", "443", "--bucket", "bucket", "--secret-key", "secret", "--name", S3]);
        let s3 = Running::start(s3.arg("--cert").arg(files.cert).arg("--key").arg(files.key));
        s3.line("ready ");
        let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        for folder in ["shared", "key", "test"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        std::fs::copy(ca.pem(), dir.path().join("test/ca.pem")).expect("the authority of S3");
        Self {
            engine: Engine::new(),
            image: Image::shared(),
            name: Engine::name("retryscope-sidecar"),
            dir,
            _s3: s3,
            net,
        }
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    /// `podman run` in a network namespace, with the folder.
    fn run(&self, net: &Net, read_only: bool) -> Command {
        let mut command = self.engine.podman();
        command.arg("run").args(Engine::limits());
        command.arg("--network").arg(format!("ns:{}", net.path().display()));
        let mode = if read_only { ":ro" } else { "" };
        command.arg("--volume").arg(format!("{}:{SHARED}{mode}", self.dir.path().join("shared").display()));
        command
    }

    /// The sidecar, with one capability unless told of more; a read-only root
    /// as in Kubernetes.
    fn start(&self, more: &[&str]) -> Finished {
        let mut command = self.run(&self.net, false);
        command.arg("--cgroups=disabled").args([
            "--detach",
            "--name",
            &self.name,
            "--cap-drop",
            "all",
            "--cap-add",
            "net_admin",
            "--read-only",
        ]);
        command.args(more);
        for (folder, at) in [("key", "/var/lib/retryscope"), ("test", "/test:ro")] {
            command.arg("--volume").arg(format!("{}:{at}", self.dir.path().join(folder).display()));
        }
        command.args([
            self.image.0.as_str(),
            "sidecar",
            "--ca-dir",
            "/var/lib/retryscope",
            "--upstream-ca",
            "/test/ca.pem",
        ]);
        command.args(["--rule", RULE, "--report", "json", "--report-file", "/run/retryscope/report.json"]);
        clients::bare(&mut command).finish(SOON * 3).ok()
    }

    /// `retryscope wait` in a container of its own.
    fn wait(&self, net: &Net, timeout: &str) -> Running {
        let mut command = self.run(net, true);
        command.arg("--cgroups=disabled").args([
            "--rm",
            "--cap-drop",
            "all",
            &self.image.0,
            "wait",
            "--timeout",
            timeout,
        ]);
        clients::bare(&mut command)
    }

    /// The application: boto3 lists buckets twice, on files of its own.
    fn app(&self, more: &[&str], script: &str) -> Value {
        let plan = json!({"retries": {"mode": "standard"}, "sleep_scale": 0.05, "calls": [
            ["s3", "list_buckets", {}], ["s3", "list_buckets", {}],
        ]});
        let mut command = self.run(&self.net, true);
        // Privileged: see `Container::start`. A cgroup of its own comes with
        // it, as everywhere.
        command.args([
            "--privileged",
            "--rm",
            "--env",
            "PYTHONDONTWRITEBYTECODE=1",
            "--add-host",
            &format!("{S3}:127.0.0.1"),
        ]);
        command.args(more).args(["--rootfs", "/:O", "/bin/sh", "-c", script, "sh"]);
        command.arg(clients::python()).arg(clients::script("boto_truth.py")).arg(plan.to_string());
        let truth = clients::bare(&mut command).finish(SOON * 3).ok().json();
        for call in truth["calls"].as_array().expect("calls") {
            assert_eq!(call["status"], 200, "{truth}");
        }
        truth
    }

    /// Ends the sidecar as engines do, and reads its report.
    fn stop(&self) -> Report {
        let mut command = self.engine.podman();
        clients::bare(command.args(["stop", "--time", "30", &self.name])).finish(SOON * 4).ok();
        let told = self.ask(&["inspect", "--format", "{{.State.ExitCode}}", &self.name]);
        assert_eq!(told.trim(), "0", "{}", self.ask(&["logs", &self.name]));
        self.net.nothing_left();
        assert!(!self.shared("main").exists(), "the control socket's folder is left");
        self.engine.remove(&self.name);
        Report::parse(&std::fs::read_to_string(self.shared("report.json")).expect("the report"))
    }

    fn ask(&self, words: &[&str]) -> String {
        let finished = clients::bare(self.engine.podman().args(words)).finish(SOON * 3).ok();
        finished.text() + &finished.stderr
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.engine.podman().args(["rm", "--force", "--ignore", "--time", "0", &self.name]).output();
        // podman makes it and leaves it; others may be using it.
        let _ = std::fs::remove_dir(common::cgroup::mount().join("libpod_parent"));
    }
}

/// Reads the variables where the sidecar has put them.
const BY_SHELL: &str = r#". /run/retryscope/trust/env.sh && exec "$@""#;
const PLAIN: &str = r#"exec "$@""#;

fn attempts(truth: &Value) -> Option<usize> {
    truth["attempts"].as_array().map(Vec::len)
}

#[track_caller]
fn retried(row: &Value, report: &Report) {
    assert_eq!(row["operations"][0]["operation"], "ListBuckets", "{report}");
    assert_eq!((&row["calls"], &row["attempts"], &row["retries"]), (&2.into(), &4.into(), &2.into()), "{report}");
}

/// Who waits is let go when the sidecar is ready, and not before; the
/// application needs the folder and nothing else; a stop leaves nothing.
#[test]
fn beside_an_application_that_shares_its_processes() {
    let pod = Pod::new();
    // Nobody is there yet.
    let refused = pod.wait(&pod.net, "100ms").finish(SOON * 3).code(69);
    assert!(refused.stderr.contains("there is no socket /run/retryscope/main/api.sock"), "{refused}");
    let waiting = pod.wait(&pod.net, "120s");
    pod.start(&["--cap-add", "sys_ptrace"]);
    waiting.finish(SOON * 6).ok();

    let truth = pod.app(&["--pid", &format!("container:{}", pod.name)], BY_SHELL);
    assert_eq!(attempts(&truth), Some(4), "boto3's own account: {truth}");
    let report = pod.stop();
    let row = report.process("boto_truth.py");
    assert!(row["pid"].as_u64().is_some_and(|pid| pid > 1), "{report}");
    retried(row, &report);
    assert_eq!(report.processes().len(), 1, "who waited is nobody's client: {report}");
    // What the application was told stays right: the upstream's own
    // certificate, and no retry.
    let truth = pod.app(&[], BY_SHELL);
    assert_eq!(attempts(&truth), Some(2), "{truth}");
}

/// Variables that were written down beforehand, and a report that cannot see
/// the process, but its cgroup.
#[test]
fn beside_an_application_with_processes_of_its_own() {
    let pod = Pod::new();
    pod.start(&[]);
    pod.wait(&pod.net, "60s").finish(SOON * 6).ok();
    let file = deploy("container/trust.env");
    let written = std::fs::read_to_string(&file).expect("deploy/container/trust.env");
    let expected: String =
        written.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(std::fs::read_to_string(pod.shared("trust/env")).expect("the variables"), expected);
    let truth = pod.app(&["--env-file", file.to_str().expect("a path")], PLAIN);
    assert_eq!(attempts(&truth), Some(4), "boto3's own account: {truth}");

    // Who is elsewhere learns that it is: the folder alone does not do.
    let elsewhere = Net::new("elsewhere");
    let refused = pod.wait(&elsewhere, "300ms").finish(SOON * 3).code(69);
    assert!(refused.stderr.contains("connections from here do not come to it"), "{refused}");

    let report = pod.stop();
    assert_eq!(report.processes().len(), 1, "{report}");
    let row = &report.processes()[0];
    assert_eq!(row["pid"], 0, "{report}");
    let command = row["command"].as_str().unwrap_or_default();
    assert!(["cgroup ", "container "].iter().any(|kind| command.starts_with(kind)), "{report}");
    retried(row, &report);
    assert!(report.0["notes"].to_string().contains("came from processes that could not be found"), "{report}");
}

/// Killed, its application goes direct at once; started again, it is the same
/// authority to whoever has read the certificate before.
#[test]
fn killed_and_started_again() {
    let pod = Pod::new();
    let certificate = || std::fs::read(pod.shared("trust/ca.pem")).expect("the certificate");
    pod.start(&[]);
    pod.wait(&pod.net, "60s").finish(SOON * 6).ok();
    let before = certificate();
    pod.ask(&["kill", "--signal", "KILL", &pod.name]);
    until("the table is gone with its owner", SOON, || pod.net.tables().is_empty().then_some(()));
    assert_eq!(attempts(&pod.app(&[], BY_SHELL)), Some(2));
    // A socket is left that nobody answers at.
    let refused = pod.wait(&pod.net, "100ms").finish(SOON * 3).code(69);
    assert!(refused.stderr.contains("does not say that it is ready"), "{refused}");

    pod.engine.remove(&pod.name);
    pod.start(&[]);
    pod.wait(&pod.net, "60s").finish(SOON * 6).ok();
    assert_eq!(certificate(), before);
    assert_eq!(attempts(&pod.app(&[], BY_SHELL)), Some(4));
    let report = pod.stop();
    retried(&report.processes()[0], &report);
    let key = std::fs::read_dir(pod.dir.path().join("key")).expect("the key's folder").count();
    assert_eq!(key, 2, "a certificate and its key");
}

/// Both files that make the image agree on what it is.
#[test]
fn images_are_alike() {
    let last = |name: &str| {
        let text = std::fs::read_to_string(deploy("container").join(name)).expect(name);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let from = lines.iter().rposition(|line| line == "FROM scratch").expect("the last stage");
        lines[from + 2..].to_vec()
    };
    assert_eq!(last("Containerfile"), last("laid.Containerfile"));
    assert!(last("Containerfile").len() >= 4);
}
