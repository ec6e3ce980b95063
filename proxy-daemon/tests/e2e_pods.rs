//! `attach --pod`: the pods of a node, chosen by namespace and labels.
//!
//! There is no cluster here: the API server is played by a script that answers
//! lists and watches as the real one documents them, and cgroups are made with
//! the names that the kubelet gives them. Everything else is real: processes
//! in network namespaces of their own, and what becomes of their connections.
mod common;

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
};

use common::{
    NAME, Report, Running, SOON, TestCa, TestCgroup, Upstream, ca::Leaf, clients, own_address, run::RETRYSCOPE, until,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};
use serde_json::{Value, json};

const LOOP: &str = include_str!("clients/loop.py");
const TOKEN: &str = "a token";

/// The cluster's API server, as far as pods go.
struct Api {
    address: SocketAddr,
    running: Running,
    /// As in every pod: `token` and `ca.crt`.
    account: tempfile::TempDir,
}

impl Api {
    fn start() -> Self {
        let (ca, address) = (TestCa::new(), own_address(6443));
        let files = ca.files("api", &["kubernetes.default.svc"], &[address.ip()]);
        let account = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        std::fs::write(account.path().join("token"), format!("{TOKEN}\n")).expect("a token");
        std::fs::copy(ca.pem(), account.path().join("ca.crt")).expect("the authority");
        let mut command = Command::new(clients::python());
        command.arg(clients::script("kube_api.py")).args([address.ip().to_string(), address.port().to_string()]);
        let running = clients::bare(command.args([&files.cert, &files.key]).arg(TOKEN));
        running.line("ready");
        Self { address, running, account }
    }

    fn says(&mut self, pod: &Value) {
        self.running.write(format!("{pod}\n").as_bytes());
    }
}

/// A pod on the node: its cgroups as the kubelet and containerd name them, and
/// a process in them and in a network namespace, with a server beside it.
struct Pod {
    uid: String,
    name: &'static str,
    container: String,
    /// Children before parents.
    cgroups: Vec<PathBuf>,
    running: Option<Running>,
    at: usize,
    upstream: Option<Upstream>,
}

impl Pod {
    fn start(group: &TestCgroup, ca: &TestCa, number: u8, name: &'static str) -> Self {
        let uid = format!("0f3d1b0e-2c9a-4d5e-8f70-{:06x}{number:06x}", std::process::id());
        let container = format!("{number:064x}");
        let mut path = group.path().to_owned();
        let mut cgroups = Vec::new();
        let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        let scope = format!("cri-containerd-{container}.scope");
        for part in ["kubepods.slice", "kubepods-burstable.slice", &slice, &scope] {
            path.push(part);
            if !path.exists() {
                std::fs::create_dir(&path).expect("a cgroup");
            }
            cgroups.insert(0, path.clone());
        }
        let script = r#"echo $$ >"$1/cgroup.procs" && shift && exec unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@""#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(&path).args(["/usr/bin/python3", "-I", "-c", LOOP, "127.0.0.1"]);
        let running = clients::bare(&mut command);
        running.line("ready");
        let namespace = File::open(format!("/proc/{}/ns/net", running.pid)).expect("the namespace");
        let listening = std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            TcpListener::bind("127.0.0.1:443").expect("a listener")
        });
        let listener = listening.join().expect("a listener");
        let upstream = Some(Upstream::at(listener, ca, Leaf::Good, &[NAME], &["http/1.1"]));
        Self { uid, name, container, cgroups, running: Some(running), at: 0, upstream }
    }

    fn metadata(&self, namespace: &str, labels: &Value) -> Value {
        json!({"uid": self.uid, "name": self.name, "namespace": namespace, "labels": labels})
    }

    /// Makes a connection; whether it was intercepted.
    fn connects(&mut self) -> bool {
        let running = self.running.as_mut().expect("it runs");
        running.write(b"go\n");
        let (line, end) = running.line_after(self.at, "issuer");
        self.at = end;
        let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
        let issuer = row["issuer"].as_str().unwrap_or_default();
        assert_ne!(issuer, "none", "the connection failed: {row}");
        !issuer.contains("retryscope test authority")
    }

    #[track_caller]
    fn comes_to_be(&mut self, intercepted: bool) {
        let what = format!("connections of {} are {}", self.name, if intercepted { "intercepted" } else { "direct" });
        until(&what, SOON * 2, || (self.connects() == intercepted).then_some(()));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop((self.running.take(), self.upstream.take()));
        for cgroup in &self.cgroups {
            // Those above may be another's as well; the kernel counts a process
            // that has ended a moment longer.
            let empty =
                || !std::fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default().contains("populated 1");
            let started = std::time::Instant::now();
            while !empty()
                && started.elapsed() < SOON
                && cgroup.ends_with(format!("cri-containerd-{}.scope", self.container))
            {
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}

struct Attached {
    running: Running,
    dir: tempfile::TempDir,
}

/// `attach --pod`, which sees a folder of its own where the kubelet's links to
/// logs are.
fn attach(api: &Api, upstream_ca: &TestCa, more: &[&str]) -> Attached {
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    std::fs::create_dir_all(dir.path().join("log/containers")).expect("a folder");
    let mut init = Command::new(RETRYSCOPE);
    clients::bare(init.args(["ca", "init", "--ca-dir"]).arg(dir.path().join("ca"))).finish(SOON).ok();
    let mut command = Command::new(clients::need("unshare", "util-linux"));
    command.args(["--mount", "sh", "-c", r#"mount --bind "$1" /var/log && shift && exec "$@""#, "sh"]);
    command.arg(dir.path().join("log")).arg(RETRYSCOPE).args(["attach", "--report", "json", "-v", "--report-file"]);
    command.arg(dir.path().join("report")).arg("--ca-dir").arg(dir.path().join("ca"));
    command.arg("--upstream-ca").arg(upstream_ca.pem()).arg("--service-account").arg(api.account.path()).args(more);
    command.env_clear().envs(clients::environment());
    command.env("KUBERNETES_SERVICE_HOST", api.address.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", api.address.port().to_string()).env("NODE_NAME", "node-1");
    Attached { running: Running::start(&mut command), dir }
}

impl Attached {
    #[track_caller]
    fn watches(&mut self) {
        until("attach says that it watches", SOON, || {
            let said = common::show(&self.running.stderr.bytes());
            assert!(!self.running.ended(), "attach ended: {said}");
            said.contains("now on").then_some(())
        });
    }

    /// As the kubelet does, for whoever wants to know the container's name.
    fn log(&self, namespace: &str, pod: &Pod) {
        let name = format!("{}_{namespace}_app-{}.log", pod.name, pod.container);
        std::fs::write(self.dir.path().join("log/containers").join(name), "").expect("a file");
    }
}

/// Pods come, are labelled and go; only those that are meant are seen, also
/// where each has its own network namespace; the report and the metrics know
/// them by their names.
#[test]
fn by_namespace_and_labels() {
    let (mut api, ca, group) = (Api::start(), TestCa::new(), TestCgroup::new());
    let mut web = Pod::start(&group, &ca, 1, "web-1");
    let mut database = Pod::start(&group, &ca, 2, "db-1");
    let mut elsewhere = Pod::start(&group, &ca, 3, "web-2");
    api.says(&web.metadata("shop", &json!({"app": "web"})));
    api.says(&database.metadata("shop", &json!({"app": "db"})));
    api.says(&elsewhere.metadata("other", &json!({"app": "web"})));
    let metrics = own_address(9464);
    let mut attached =
        attach(&api, &ca, &["--pod", "shop/app=web,tier!=old", "--pod", "*/watch", &format!("--metrics={metrics}")]);
    attached.log("shop", &web);
    attached.log("shop", &database);
    attached.watches();
    web.comes_to_be(true);
    assert!(!database.connects() && !elsewhere.connects());

    // A label is set, in whatever namespace.
    api.says(&database.metadata("shop", &json!({"app": "db", "watch": "1"})));
    database.comes_to_be(true);
    assert!(!elsewhere.connects());
    // One is taken away, and a pod goes.
    api.says(&web.metadata("shop", &json!({"app": "web", "tier": "old"})));
    web.comes_to_be(false);
    assert!(database.connects());
    let mut gone = database.metadata("shop", &json!({}));
    gone["gone"] = true.into();
    api.says(&gone);
    database.comes_to_be(false);

    let text = Command::new(clients::curl()).args(["-sS", &format!("http://{metrics}/metrics")]).output();
    let text = common::show(&text.expect("curl").stdout);
    for pod in ["web-1", "db-1"] {
        let labels = format!(
            r#"container="app",unit="cri-containerd-{}.scope",namespace="shop",pod="{pod}""#,
            if pod == "web-1" { &web.container } else { &database.container }
        );
        assert!(
            text.lines().any(|line| line.starts_with("retryscope_calls_total{") && line.contains(&labels)),
            "{labels}: {text}"
        );
    }
    attached.running.signal(Signal::SIGTERM);
    let said = attached.running.finish(SOON).ok().stderr;
    assert!(said.contains("watching the pods shop/app=web,tier!=old, */watch"), "{said}");
    let report = Report::parse(&std::fs::read_to_string(attached.dir.path().join("report")).expect("the report"));
    let names: Vec<&str> = report.processes().iter().filter_map(|row| row["container_name"].as_str()).collect();
    assert_eq!(names.len(), 2, "{report}");
    assert!(["shop/web-1/app", "shop/db-1/app"].iter().all(|name| names.contains(name)), "{report}");
}

/// What keeps the API server from answering ends it at once, with a sentence.
#[test]
fn without_a_word_from_the_api_server() {
    let (api, ca) = (Api::start(), TestCa::new());
    let refused = |attached: Attached, code: i32, part: &str| {
        let finished = attached.running.finish(SOON).code(code);
        assert!(finished.stderr.contains(part), "{finished}");
    };
    std::fs::write(api.account.path().join("token"), "another").expect("a token");
    refused(attach(&api, &ca, &["--pod", "shop"]), 77, "does not let this service account see pods (403 Forbidden)");
    // Not the cluster's own server.
    std::fs::copy(ca.pem(), api.account.path().join("ca.crt")).expect("another authority");
    refused(attach(&api, &ca, &["--pod", "shop"]), 69, &format!("the API server at {} cannot be asked", api.address));
    refused(attach(&api, &ca, &["--pod", "Shop"]), 64, "chooses no pods");
    refused(attach(&api, &ca, &["--pod", "shop", "--fail", "closed"]), 64, "--fail closed takes one target");
}
