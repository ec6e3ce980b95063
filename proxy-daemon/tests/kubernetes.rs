//! The manifests in deploy/kubernetes, rendered by kubectl's Kustomize, against
//! the published schemas; and against what this program takes and writes.
mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use common::{SOON, clients, run::retryscope};
use serde_json::Value;

/// From the first version in which a sidecar needs no feature gate to the
/// newest whose schemas there are.
const VERSIONS: [&str; 3] = ["1.29.1", "1.33.1", "1.37.0"];

/// Prints every object of a file of YAML as a JSON array.
const TO_JSON: &str = "import json, sys, yaml
print(json.dumps([it for it in yaml.safe_load_all(open(sys.argv[1])) if it]))";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Objects, and the file that has them.
struct Rendered {
    objects: Vec<Value>,
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Rendered {
    fn of(folder: &str) -> Self {
        let mut kubectl = Command::new(clients::kubernetes_tools().join("kubectl"));
        let text = clients::bare(kubectl.arg("kustomize").arg(deploy("kubernetes").join(folder))).finish(SOON * 3).ok();
        Self::from(&text.text())
    }

    fn from(text: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        let file = dir.path().join("rendered.yaml");
        std::fs::write(&file, text).expect("writing what was rendered");
        let mut python = Command::new(clients::kubernetes_python());
        let objects = clients::bare(python.args(["-c", TO_JSON]).arg(&file)).finish(SOON).ok().json();
        Self { objects: objects.as_array().cloned().expect("objects"), _dir: dir, file }
    }

    /// What is wrong by the schemas of a version of Kubernetes; strictly, so
    /// that no key is unknown.
    fn complaints(&self, version: &str) -> String {
        let program = clients::kubernetes_python().with_file_name("kubernetes-validate");
        let mut command = Command::new(program);
        command.args(["--strict", "--quiet", "--no-warn", "-k", version]).arg(&self.file);
        let finished = clients::bare(&mut command).finish(SOON * 3);
        if finished.code == 0 { String::new() } else { finished.to_string() }
    }

    fn custom(&self) -> Vec<&Value> {
        self.objects.iter().filter(|it| it["apiVersion"] == "monitoring.coreos.com/v1").collect()
    }

    fn object(&self, kind: &str) -> &Value {
        let found: Vec<_> = self.objects.iter().filter(|it| it["kind"] == kind).collect();
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        found[0]
    }
}

/// One line for each: `ok`, or what is wrong.
fn monitors(objects: &[&Value]) -> Vec<String> {
    let mut node = Command::new(clients::node());
    node.arg(clients::script("monitors.mjs")).arg(clients::kubernetes_tools());
    let mut running = clients::bare(&mut node);
    running.write(serde_json::to_string(objects).expect("JSON").as_bytes());
    running.close_stdin();
    running.finish(SOON * 2).ok().text().lines().map(str::to_owned).collect()
}

#[test]
fn every_manifest_is_valid() {
    for folder in ["overlays/example", "overlays/node", "node", "monitoring/sidecar", "monitoring/node"] {
        let rendered = Rendered::of(folder);
        for version in VERSIONS {
            assert_eq!(rendered.complaints(version), "", "{folder}, Kubernetes {version}");
        }
        let custom = rendered.custom();
        let verdicts = monitors(&custom);
        assert!(verdicts.len() == custom.len() && verdicts.iter().all(|it| it == "ok"), "{folder}: {verdicts:?}");
    }
    // Every file is part of what was rendered, or it is a patch.
    let valid = Rendered::of("overlays/example");
    assert_eq!(valid.custom().len(), 1);
    assert_eq!(Rendered::of("overlays/node").custom().len(), 1);
}

/// The judges see mistakes.
#[test]
fn broken_manifests_are_refused() {
    let text = std::fs::read_to_string(Rendered::of("overlays/node").file).expect("what was rendered");
    for (right, wrong) in [
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: sure"),
        ("hostPID: true", "hostPid: true"),
        ("maxUnavailable: 10%", "maxUnavailable: [10]"),
    ] {
        assert!(text.contains(right), "{text}");
        let broken = Rendered::from(&text.replace(right, wrong));
        assert!(!broken.complaints("1.37.0").is_empty(), "{wrong}");
    }
    let broken: Value = serde_json::from_str(
        r#"{"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "x"},
            "spec": {"selector": {}, "podMetricsEndpoints": [{"port": "x", "interval": 30}]}}"#,
    )
    .expect("JSON");
    assert!(monitors(&[&broken])[0].contains("interval must be string"));
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Arguments are those of this program: what it does not know it refuses
/// before it gets to `--help`.
#[track_caller]
fn takes(arguments: &[&str]) {
    let finished = retryscope(arguments.iter().copied().chain(["--help"])).finish(SOON);
    assert_eq!(finished.code, 0, "{arguments:?}: {finished}");
}

/// The sidecar comes first, and nothing else starts before it is ready and has
/// been tried; the application has the variables that the sidecar writes, and
/// no way to the key or the control socket.
#[test]
fn sidecars_are_as_they_should_be() {
    let rendered = Rendered::of("overlays/example");
    let pod = &rendered.object("Deployment")["spec"]["template"]["spec"];
    let first = &pod["initContainers"][0];
    assert_eq!((&first["name"], &first["restartPolicy"]), (&"retryscope".into(), &"Always".into()), "{first}");
    let probe = strings(&first["startupProbe"]["exec"]["command"]);
    assert_eq!(probe.first(), Some(&"/usr/bin/retryscope"));
    takes(&probe[1..]);
    takes(&strings(&first["args"]));
    let capabilities = &first["securityContext"]["capabilities"];
    assert_eq!((strings(&capabilities["drop"]), strings(&capabilities["add"])), (vec!["ALL"], vec!["NET_ADMIN"]));

    let second = &pod["initContainers"][1];
    assert_eq!(second["name"], "retryscope-check");
    takes(&strings(&second["args"]));
    assert_eq!(second["securityContext"]["capabilities"], serde_json::json!({"drop": ["ALL"]}));

    let app = &pod["containers"][0];
    let written = std::fs::read_to_string(deploy("container/trust.env")).expect("deploy/container/trust.env");
    let expected: Vec<&str> = written.lines().filter(|line| !line.starts_with('#')).collect();
    let set = app["env"].as_array().expect("variables").iter();
    let set: Vec<String> = set
        .map(|it| format!("{}={}", it["name"].as_str().unwrap_or_default(), it["value"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(set, expected);
    let mounts = app["volumeMounts"].as_array().expect("mounts");
    assert_eq!(mounts.len(), 1, "{app}");
    assert_eq!((&mounts[0]["mountPath"], &mounts[0]["readOnly"]), (&"/run/retryscope/trust".into(), &true.into()));
}

#[test]
fn the_node_wide_instance_is_as_it_should_be() {
    let rendered = Rendered::of("overlays/node");
    let pod = &rendered.object("DaemonSet")["spec"]["template"]["spec"];
    let arguments = strings(&pod["containers"][0]["args"]);
    assert!(arguments.contains(&"--pod=shop/app=web") && arguments.contains(&"--pod=billing"), "{arguments:?}");
    takes(&arguments);
    let rules = rendered.object("ClusterRole")["rules"].to_string();
    assert_eq!(rules, r#"[{"apiGroups":[""],"resources":["pods"],"verbs":["list","watch"]}]"#);
    // What it has to know of the node.
    let names: Vec<&str> = pod["containers"][0]["env"]
        .as_array()
        .expect("variables")
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    assert_eq!(names, ["NODE_NAME"]);
}
