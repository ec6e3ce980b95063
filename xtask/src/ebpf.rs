//! The kernel side: building the object that is committed beside its source,
//! and proving that it is what the source gives.
//!
//! The bytes depend on the compiler, the linker and LLVM, and on nothing else:
//! profile, flags and paths are fixed here, and no symbol carries a hash of
//! cargo's. `retryscope.bpf.toml` names what made the committed object.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

const LINKER_VERSION: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";
/// A compiler that comes with `core` for BPF. It is not the `rustc` of most
/// paths: rustup's goes first.
const PACKAGED_RUSTC: &str = "/usr/bin/rustc";
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"];
/// What is built: the package, its binary, and where its object is committed.
const PACKAGE: &str = "retryscope-ebpf";
const OBJECT: &str = "proxy-ebpf/retryscope.bpf.o";
const MADE_BY: &str = "proxy-ebpf/retryscope.bpf.toml";

/// Builds the object and writes it, and what made it, beside its source.
pub(crate) fn build() -> Result<()> {
    let tools = Tools::find()?;
    let object = tools.object()?;
    let root = root()?;
    fs::copy(&object, root.join(OBJECT)).with_context(|| format!("writing {OBJECT}"))?;
    fs::write(root.join(MADE_BY), tools.made_by(&root.join(OBJECT))?.to_string())
        .with_context(|| format!("writing {MADE_BY}"))?;
    say(&format!("wrote {OBJECT} and {MADE_BY}: commit both"));
    Ok(())
}

/// Fails unless the committed object is what its source gives. With another
/// compiler than the one named beside it the bytes differ: then the kernel
/// tests judge the fresh object.
pub(crate) fn verify() -> Result<()> {
    let root = root()?;
    let named = MadeBy::read(&root.join(MADE_BY))?;
    ensure!(
        sha256(&root.join(OBJECT))? == named.sha256,
        "{OBJECT} is not the object that {MADE_BY} describes: build it by `cargo xtask ebpf build`, commit both"
    );
    let tools = Tools::find()?;
    let object = tools.object()?;
    let fresh = tools.made_by(&object)?;
    if fresh.sha256 == named.sha256 {
        say(&format!("{OBJECT} is what the source gives, byte for byte"));
        return Ok(());
    }
    if fresh.same_tools(&named) {
        bail!(
            "{OBJECT} is not what the source gives: the source was changed without `cargo xtask ebpf build`, \
             or the object was changed by hand"
        );
    }
    say("the compiler that made the committed object is not to be had here:");
    say(&format!("  committed: {}, bpf-linker {}, LLVM {}", named.compiler, named.linker, named.llvm));
    say(&format!("  here:      {}, bpf-linker {}, LLVM {}", fresh.compiler, fresh.linker, fresh.llvm));
    say("its bytes cannot be compared; the kernel tests judge the fresh object instead (they need root)");
    test(&object)?;
    say("the kernel tests pass with the fresh object; THE COMMITTED BYTES WERE NOT COMPARED");
    Ok(())
}

/// Runs the kernel tests against an object.
fn test(object: &Path) -> Result<()> {
    // Compiled as the user, run as root: so that root owns nothing in target/.
    let args = ["test", "--locked", "--package", "retryscope", "--test", "redirect"];
    run(Command::new(cargo()).args(args).arg("--no-run"))?;
    let built = output(Command::new(cargo()).args(args).args(["--no-run", "--message-format=json"]))?;
    let program = built
        .lines()
        .rfind(|line| line.contains("\"name\":\"redirect\"") && line.contains("\"executable\":\""))
        .and_then(|line| line.split("\"executable\":\"").nth(1)?.split('"').next())
        .context("cargo did not name the kernel tests' program")?;
    let variable = format!("RETRYSCOPE_BPF_OBJECT={}", object.display());
    run(as_root("env").arg(variable).arg(program).current_dir(root()?.join("proxy-daemon")))
}

/// What made an object, as the file beside it says.
struct MadeBy {
    compiler: String,
    linker: String,
    llvm: String,
    sha256: String,
}

impl MadeBy {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("{} is missing: run `cargo xtask ebpf build`", path.display()))?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='))
                .map(|value| value.trim().trim_matches('"').to_owned())
                .with_context(|| format!("{} does not say `{key}`", path.display()))
        };
        Ok(Self {
            compiler: value("compiler")?,
            linker: value("bpf-linker")?,
            llvm: value("llvm")?,
            sha256: value("sha256")?,
        })
    }

    fn same_tools(&self, other: &Self) -> bool {
        (&self.compiler, &self.linker, &self.llvm) == (&other.compiler, &other.linker, &other.llvm)
    }
}

impl std::fmt::Display for MadeBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "# What made retryscope.bpf.o; written by `cargo xtask ebpf build`, read by `verify`.")?;
        writeln!(f, "compiler = \"{}\"", self.compiler)?;
        writeln!(f, "bpf-linker = \"{}\"", self.linker)?;
        writeln!(f, "llvm = \"{}\"", self.llvm)?;
        writeln!(f, "sha256 = \"{}\"", self.sha256)
    }
}

/// A compiler that can compile for BPF, and what belongs to it.
struct Tools {
    rustc: PathBuf,
    /// Where LLVM's programs are.
    llvm: PathBuf,
    linker: PathBuf,
    /// `core` has to be built too.
    build_core: bool,
}

impl Tools {
    /// Finds them, or installs what is missing: the distribution's compiler
    /// first, since that one gives the committed bytes.
    fn find() -> Result<Self> {
        if !has_core(Path::new(PACKAGED_RUSTC)) || llvm_of(Path::new(PACKAGED_RUSTC)).is_err() {
            install_packages();
        }
        if has_core(Path::new(PACKAGED_RUSTC)) {
            return Self::with(PACKAGED_RUSTC.into(), false);
        }
        say("no packaged compiler knows BPF here; looking for a nightly one");
        Self::with(nightly()?, true)
    }

    fn with(rustc: PathBuf, build_core: bool) -> Result<Self> {
        say(&format!("compiler: {} ({})", version(&rustc)?, rustc.display()));
        let llvm = llvm_of(&rustc)?;
        let linker = linker(&llvm)?;
        say(&format!("linker: {} (LLVM in {})", linker.display(), llvm.display()));
        Ok(Self { rustc, llvm, linker, build_core })
    }

    /// Builds the object; gives its path.
    fn object(&self) -> Result<PathBuf> {
        let root = root()?;
        let target_dir = target_dir()?;
        let out = target_dir.join(TARGET).join("release");
        let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
        flags.push(format!("-Clinker={}", self.linker.display()));
        flags.push(format!("--remap-path-prefix={}=/retryscope", root.display()));
        flags.push(format!("--remap-path-prefix={}=/cargo", cargo_home()?.display()));
        let sysroot = output(Command::new(&self.rustc).args(["--print", "sysroot"]))?;
        flags.push(format!("--remap-path-prefix={}=/rust", sysroot.trim()));
        let mut command = Command::new(cargo());
        command
            .current_dir(&root)
            .args(["build", "--locked", "--release", "--package", PACKAGE, "--bin", PACKAGE])
            .args(["--features", "programs", "--target", TARGET, "--target-dir"])
            .arg(&target_dir);
        if self.build_core {
            command.arg("-Zbuild-std=core");
        }
        for (name, _) in env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .env("RUSTC", &self.rustc)
            // aya-ebpf uses features of the unstable compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        // Whatever the workspace's profile says, the object stays the same.
        for (setting, value) in [
            ("OPT_LEVEL", "3"),
            ("DEBUG", "2"),
            ("SPLIT_DEBUGINFO", "off"),
            ("STRIP", "none"),
            ("DEBUG_ASSERTIONS", "false"),
            ("OVERFLOW_CHECKS", "false"),
            ("LTO", "false"),
            ("PANIC", "abort"),
            ("INCREMENTAL", "false"),
            ("CODEGEN_UNITS", "1"),
        ] {
            command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        run(&mut command)?;
        // The kernel wants the type information (BTF), not DWARF.
        let object = out.join("retryscope.bpf.o");
        run(Command::new(self.llvm.join("bin/llvm-objcopy")).arg("--strip-debug").arg(out.join(PACKAGE)).arg(&object))?;
        Ok(object)
    }

    fn made_by(&self, object: &Path) -> Result<MadeBy> {
        Ok(MadeBy {
            compiler: version(&self.rustc)?,
            linker: LINKER_VERSION.into(),
            llvm: output(Command::new(self.llvm.join("bin/llvm-config")).arg("--version"))?.trim().into(),
            sha256: sha256(object)?,
        })
    }
}

/// Variables that would change the build.
fn is_foreign(name: &str) -> bool {
    name.starts_with("CARGO_PROFILE_")
        || name.starts_with("CARGO_BUILD_")
        || name.starts_with("CARGO_TARGET_")
        || matches!(name, "RUSTFLAGS" | "CARGO_INCREMENTAL" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER")
}

/// Whether a compiler comes with `core` for BPF.
fn has_core(rustc: &Path) -> bool {
    let found = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    found.is_ok_and(|found| {
        let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        found.status.success() && fs::read_dir(path).is_ok_and(|mut files| files.next().is_some())
    })
}

fn install_packages() {
    if Command::new("apt-get").arg("--version").output().is_err() {
        return;
    }
    say(&format!("installing {} (apt-get)", PACKAGES.join(", ")));
    let updated = run(as_root("apt-get").args(["update", "--quiet"]));
    let installed = updated
        .and_then(|()| run(as_root("apt-get").args(["install", "-y", "--no-install-recommends"]).args(PACKAGES)));
    if let Err(error) = installed {
        say(&format!("that did not work: {error:#}"));
    }
}

/// rustup's nightly compiler with the source of `core`.
fn nightly() -> Result<PathBuf> {
    let help = "install rustup (https://rustup.rs), then: rustup toolchain install nightly --component rust-src";
    let which = || output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    let has_source = |rustc: &str| {
        let sysroot = Path::new(rustc).ancestors().nth(2);
        sysroot.is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
    };
    if !which().is_ok_and(|rustc| has_source(rustc.trim())) {
        say("installing the nightly compiler with rust-src (rustup)");
        let args = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        run(Command::new("rustup").args(args)).context(help)?;
    }
    Ok(which().context(help)?.trim().into())
}

/// The folder of the LLVM that a compiler uses: bitcode of a newer one cannot
/// be read by an older.
fn llvm_of(rustc: &Path) -> Result<PathBuf> {
    let text = output(Command::new(rustc).arg("-vV"))?;
    let major = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
        .with_context(|| format!("{} does not name its LLVM", rustc.display()))?;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    ensure!(prefix.join("bin/llvm-config").is_file(), "LLVM {major} is needed: apt-get install llvm-{major}-dev");
    Ok(prefix)
}

/// bpf-linker of the pinned version, for this LLVM; in the target folder.
fn linker(llvm: &Path) -> Result<PathBuf> {
    let major = llvm.to_string_lossy().rsplit('-').next().unwrap_or_default().to_owned();
    let tools = target_dir()?.join(format!("tools-llvm-{major}"));
    let linker = tools.join("bin/bpf-linker");
    if output(Command::new(&linker).arg("--version")).is_ok_and(|said| said.contains(LINKER_VERSION)) {
        return Ok(linker);
    }
    say(&format!("installing bpf-linker {LINKER_VERSION} for LLVM {major} (about a minute)"));
    let mut install = Command::new(cargo());
    install
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{major}"), "--root"])
        .arg(&tools)
        // Without it the linker looks in /usr/lib64.
        .env("LLVM_PREFIX", llvm);
    for (name, _) in env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
        install.env_remove(name);
    }
    run(&mut install)?;
    Ok(linker)
}

fn version(rustc: &Path) -> Result<String> {
    Ok(output(Command::new(rustc).arg("--version"))?.trim().into())
}

fn sha256(path: &Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg(path))?;
    Ok(text.split(' ').next().unwrap_or_default().into())
}

fn root() -> Result<PathBuf> {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(xtask.parent().context("xtask has no parent folder")?.to_owned())
}

/// A folder of its own: another compiler, other flags.
fn target_dir() -> Result<PathBuf> {
    Ok(root()?.join("target/ebpf"))
}

fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

fn cargo_home() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("neither CARGO_HOME nor HOME is set")
}

/// A command run as root: itself if we are, else by sudo.
fn as_root(program: &str) -> Command {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be run", program(command)))?;
    ensure!(status.success(), "{} failed ({status})", program(command));
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{} cannot be run", program(command)))?;
    ensure!(output.status.success(), "{} failed ({})", program(command), output.status);
    String::from_utf8(output.stdout).context("its output is not UTF-8")
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn say(line: &str) {
    eprintln!("ebpf: {line}");
}
