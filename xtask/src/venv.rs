//! Python virtual environments under `target/venvs`, made once per list of
//! packages.
use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::system::{self, find, install, run, step, succeeds};

/// The environment's Python, with `packages` installed.
pub(crate) fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = system::target().join("venvs").join(name);
    let python = dir.join("bin/python");
    let (stamp, wanted) = (dir.join(".complete"), packages.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) && succeeds(Command::new(&python).arg("-V")) {
        return Ok(python);
    }

    step(&format!("Making the Python environment {} with {wanted}", system::short(&dir).display()));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    create(&dir)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    run(&mut pip).context("pip could not install the packages: is the package index reachable?")?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

fn create(dir: &PathBuf) -> Result<()> {
    if find("python3").is_none() {
        install(&["python3", "python3-venv"])?;
    }
    let Some(python) = find("python3") else { bail!("python3 is not installed") };
    // Debian splits off the part of the venv module that brings pip.
    if !succeeds(Command::new(&python).args(["-c", "import venv, ensurepip"])) {
        install(&["python3-venv"])?;
    }
    run(Command::new(&python).args(["-m", "venv"]).arg(dir))
}
