//! What the tests of the package need: a Debian that systemd boots, and the
//! tool that makes the package.
use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::system::{self, step};

const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,python3,ca-certificates";
const CARGO_DEB: &str = "3.8.0";

/// A tree of files, made once; tests lay their own over it.
pub(crate) fn tree() -> Result<PathBuf> {
    let dir = system::target().join("systemd").join(SUITE);
    let (stamp, wanted) = (dir.with_extension("complete"), format!("{SUITE} {PACKAGES}"));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(dir);
    }
    step(&format!("Making a Debian to boot in {} (about a minute)", system::short(&dir).display()));
    system::run(system::privileged("rm")?.arg("-rf").arg(&dir))?;
    fs::create_dir_all(dir.parent().context("a folder has a parent")?)?;
    let mut make = system::privileged("debootstrap")?;
    make.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&dir);
    system::run(&mut make).context("debootstrap failed: is Debian's archive reachable?")?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(dir)
}

/// cargo-deb of the pinned version, in the target folder.
pub(crate) fn cargo_deb() -> Result<PathBuf> {
    let tools = system::target().join("tools");
    let (tool, stamp) = (tools.join("bin/cargo-deb"), tools.join("cargo-deb.version"));
    if tool.exists() && fs::read_to_string(&stamp).is_ok_and(|version| version == CARGO_DEB) {
        return Ok(tool);
    }
    step(&format!("Installing cargo-deb {CARGO_DEB} (a few minutes)"));
    let mut install = system::cargo();
    install.args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked", "--force", "--root"]).arg(&tools);
    system::run(&mut install).context("cargo-deb cannot be installed: is the package registry reachable?")?;
    fs::write(&stamp, CARGO_DEB).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(tool)
}
