//! The clients: where they are, and the environment they run in.
//!
//! Whatever is missing fails the test with a sentence that says what to
//! install; nothing is skipped.
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use super::Running;

#[path = "../../../xtask/src/packages.rs"]
mod packages;
use packages::{API, CLIENTS, KUBERNETES, MATRIX, OLD_CLIENTS, OTLP, READERS, SUITES};

pub const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A client of a stranger's, for Python's `-c`: its name and its request say
/// more than they should. It asks once, says so, and waits for its input's end.
pub const STRANGER: &str = "import os, socket, ssl, sys\n\
    open('/proc/self/comm', 'wb').write(b'x\\x1b[2J\\xff')\n\
    raw = socket.create_connection((sys.argv[1], 443))\n\
    tls = ssl.create_default_context().wrap_socket(raw, server_hostname=sys.argv[1])\n\
    tls.sendall(b'GET /\\xc2\\x9b2J<script>\\xe2\\x80\\xae HTTP/1.1\\r\\nHost: ' + sys.argv[1].encode() + b'\\r\\n\\r\\n')\n\
    tls.recv(65536)\n\
    print('asked', flush=True)\n\
    sys.stdin.read()\n";

/// Fails unless the tests run as root, which cgroups and BPF need.
#[track_caller]
pub fn root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "the end-to-end tests load eBPF and make cgroups: run them as root, for example with `sudo -E cargo xtask test`"
    );
}

/// What a client finds set: nothing that could tell it whom to trust.
pub fn environment() -> Vec<(OsString, OsString)> {
    [
        ("PATH", SYSTEM_PATH),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONUNBUFFERED", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect()
}

/// The path of a program, or the sentence that says how to get it.
#[track_caller]
pub fn need(program: &str, package: &str) -> PathBuf {
    SYSTEM_PATH
        .split(':')
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is not installed: `apt-get install {package}`"))
}

#[track_caller]
pub fn curl() -> PathBuf {
    need("curl", "curl")
}

#[track_caller]
pub fn node() -> PathBuf {
    need("node", "nodejs")
}

#[track_caller]
pub fn java() -> PathBuf {
    need("java", "default-jdk-headless")
}

/// The servers and clients of this repository.
#[track_caller]
pub fn testbed() -> PathBuf {
    let given = std::env::var_os("RETRYSCOPE_TESTBED").map(PathBuf::from);
    let program = given.unwrap_or_else(|| target().join("debug/retryscope-testbed"));
    assert!(
        program.exists(),
        "{} is not built: `cargo build -p xtask --features testbed`, or name it by RETRYSCOPE_TESTBED",
        program.display()
    );
    program
}

/// Python with the current clients.
#[track_caller]
pub fn python() -> PathBuf {
    venv("RETRYSCOPE_TEST_VENV", "clients", CLIENTS)
}

/// Python with a boto3 of before the change of retry modes.
#[track_caller]
pub fn old_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_OLD_VENV", "clients-old", OLD_CLIENTS)
}

/// Python with the SDKs of other services, which `cargo xtask test` makes.
#[track_caller]
pub fn sdk_python() -> PathBuf {
    let folder = std::env::var_os("RETRYSCOPE_TEST_SDK_VENV").map(PathBuf::from);
    let python = folder.unwrap_or_else(|| target().join("venvs/sdks")).join("bin/python");
    assert!(python.exists(), "there is no {}: `cargo xtask test` makes it", python.display());
    python
}

/// A folder whose `node_modules` holds the clients for Node.
#[track_caller]
pub fn node_modules() -> PathBuf {
    let folder = std::env::var_os("RETRYSCOPE_TEST_NODE_MODULES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| target().join("node/clients"));
    assert!(
        folder.join("node_modules").is_dir(),
        "{} has no node_modules: `cargo xtask test` installs them",
        folder.display()
    );
    folder
}

/// Python with OpenTelemetry's own message types.
#[track_caller]
pub fn otlp_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_OTLP_VENV", "otlp", OTLP)
}

/// Python with what holds the local API to its description.
#[track_caller]
pub fn api_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_API_VENV", "api", API)
}

/// Python with the clients of the matrix.
#[track_caller]
pub fn matrix_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_MATRIX_VENV", "matrix", MATRIX)
}

/// Python with what other projects' suites need.
#[track_caller]
pub fn suites_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_SUITES_VENV", "suites", SUITES)
}

/// Python with other readers of HAR files.
#[track_caller]
pub fn readers_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_READERS_VENV", "readers", READERS)
}

/// Python with the schemas of Kubernetes.
#[track_caller]
pub fn kubernetes_python() -> PathBuf {
    venv("RETRYSCOPE_TEST_KUBERNETES_VENV", "kubernetes", KUBERNETES)
}

/// A folder with `kubectl`, and the schemas of what the operator of Prometheus
/// adds to Kubernetes in `node_modules`.
#[track_caller]
pub fn kubernetes_tools() -> PathBuf {
    let folder = std::env::var_os("RETRYSCOPE_TEST_KUBERNETES_TOOLS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| target().join("node/kubernetes"));
    let kubectl = folder.join("kubectl");
    assert!(kubectl.is_file(), "there is no {}: `cargo xtask test` makes it", kubectl.display());
    folder
}

/// The sources of a Python package, from the package index; fetched once.
#[track_caller]
pub fn source(package: &str, version: &str) -> PathBuf {
    let folder = target().join("sources");
    let archive = folder.join(format!("{package}-{version}.tar.gz"));
    if !archive.exists() {
        let options = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"];
        let mut pip = Command::new(suites_python());
        pip.args(["-m", "pip"]).args(options).arg("--dest").arg(&folder).arg(format!("{package}=={version}"));
        let output = pip.stdin(Stdio::null()).output().expect("running pip");
        assert!(output.status.success(), "{package}'s sources: {}", String::from_utf8_lossy(&output.stderr));
    }
    archive
}

/// The clients written in Rust (`tests/clients/rust`), as `cargo xtask test`
/// builds them, or as they are built now.
#[track_caller]
pub fn rust_clients() -> PathBuf {
    if let Some(given) = std::env::var_os("RETRYSCOPE_TEST_RUST_CLIENTS") {
        return given.into();
    }
    let folder = target().join("rust-clients");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(script("rust/Cargo.toml"))
        .arg("--target-dir")
        .arg(&folder)
        .output()
        .expect("running cargo");
    assert!(output.status.success(), "building tests/clients/rust: {}", String::from_utf8_lossy(&output.stderr));
    folder.join("debug/rust-clients")
}

/// A script of `tests/clients`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Where Cargo keeps what it builds.
pub fn target() -> PathBuf {
    // …/target/debug/retryscope
    Path::new(super::run::RETRYSCOPE).ancestors().nth(2).expect("a target folder").into()
}

#[track_caller]
fn venv(variable: &str, name: &str, packages: &[&str]) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let given = std::env::var_os(variable).map(PathBuf::from);
    let folder = given.clone().unwrap_or_else(|| target().join("venvs").join(name));
    let python = folder.join("bin/python");
    let stamp = folder.join(".complete");
    if given.is_some() {
        assert!(python.exists(), "{variable} names {}, where there is no bin/python", folder.display());
        return python;
    }
    // One thread here, one process on the machine.
    let _making = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == packages.join(" ")) {
        return python;
    }
    std::fs::create_dir_all(folder.parent().expect("not the root")).expect("making target/venvs");
    let lock = std::fs::File::create(folder.with_extension("lock")).expect("a lock file");
    lock.lock().expect("locking");
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == packages.join(" ")) {
        return python;
    }
    let make = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output();
        let said = match output {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        panic!(
            "the clients' virtual environment cannot be made ({command:?}): {said}\n\
             It needs `apt-get install python3-venv` and a package index, or {variable} naming one that has: {}",
            packages.join(" ")
        );
    };
    let system_python = need("python3", "python3 python3-venv");
    make(Command::new(system_python).args(["-m", "venv"]).arg(&folder));
    make(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages));
    std::fs::write(stamp, packages.join(" ")).expect("writing the stamp");
    python
}

/// A copy of the system's Java trust store with `authority` added, for runs
/// without retryscope.
pub fn java_trust(folder: &Path, authority: &Path) -> PathBuf {
    let store = folder.join("java-trust.jks");
    let output = Command::new(need("keytool", "default-jdk-headless"))
        .args(["-importcert", "-noprompt", "-storetype", "JKS", "-storepass", "changeit", "-alias", "test"])
        .arg("-file")
        .arg(authority)
        .arg("-keystore")
        .arg(&store)
        .output()
        .expect("running keytool");
    assert!(output.status.success(), "keytool: {}", String::from_utf8_lossy(&output.stdout));
    store
}

/// A client started outside of retryscope, in the cleaned environment.
pub fn bare(command: &mut Command) -> Running {
    Running::start(command.env_clear().envs(environment()))
}
