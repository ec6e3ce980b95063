//! The machine: the repository's folders, who we are, what is installed, and
//! running other programs so that a person can see what happens.
use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// Variables that tell a client whom to trust or which way to go. What runs
/// under test must find none: it would no longer be an unprepared program.
const STEERING: &[&str] = &[
    "APT_CONFIG",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "JAVA_TOOL_OPTIONS",
    "NIX_SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PERL_LWP_SSL_CA_FILE",
    "PHP_INI_SCAN_DIR",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "WGETRC",
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
];

/// Where Debian's programs are; a search here passes over version managers.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where Cargo keeps what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A path as a person in the repository would type it.
pub(crate) fn short(path: &Path) -> PathBuf {
    path.strip_prefix(root()).unwrap_or(path).into()
}

/// Says what begins.
pub(crate) fn step(what: &str) {
    println!("== {what}");
}

pub(crate) fn is_root() -> bool {
    // The owner of a process's folder is its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The path of a program, system folders first.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let user = env::var_os("PATH").unwrap_or_default();
    env::split_paths(SYSTEM_PATH)
        .chain(env::split_paths(&user))
        .map(|dir| dir.join(program))
        .find(|path| std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0))
}

/// `program` to be run as root: as it is where we are root, else under sudo.
pub(crate) fn privileged(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    ensure!(find("sudo").is_some(), "eBPF and cgroups need root, and there is no sudo here: run this as root");
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// `program` as root with `keep` of our environment, which sudo would drop.
pub(crate) fn privileged_with(program: impl AsRef<OsStr>, keep: impl Fn(&str) -> bool) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let mut command = privileged("env")?;
    for (name, value) in env::vars_os() {
        if name.to_str().is_some_and(&keep) {
            let mut pair = name;
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
    }
    command.arg(program);
    Ok(command)
}

/// Takes the variables away that steer clients.
pub(crate) fn unsteered(command: &mut Command) -> &mut Command {
    for name in STEERING {
        command.env_remove(name);
    }
    command
}

/// Whether an unprepared program may inherit this variable.
pub(crate) fn steers(name: &str) -> bool {
    STEERING.contains(&name)
}

pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    // Set for xtask by the cargo that runs it; they would confuse the next.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// Runs unseen; whether it exited with 0.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command as it would be typed in a shell.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Installs Debian packages, each for what it gives; says which are missing
/// where this is no Debian.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!("missing: what Debian packages as {}; install it and run this again", packages.join(", "));
    }
    step(&format!("Installing {}", packages.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut command = privileged("env")?;
        // Another installation under way is waited for.
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]);
        command.args(arguments).stdin(Stdio::null());
        run(command.stdout(Stdio::null()))
    };
    // A fresh machine has no package lists, an old one stale lists.
    // One source that cannot be reached need not be the one that is needed.
    if let Err(error) = apt(&["update"]) {
        step(&format!("Going on with the package lists there are ({error:#})"));
    }
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("retryscope");
        command.args(["run", "--rule", "~s & ~attempt ..2 => 429 \"it's\"", "", "--map-host", "a.b=127.0.0.1:1"]);
        assert_eq!(
            shown(&command),
            r#"retryscope run --rule '~s & ~attempt ..2 => 429 "it'\''s"' '' --map-host a.b=127.0.0.1:1"#
        );
    }

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program-here"), None);
    }
}
