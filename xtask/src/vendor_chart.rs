//! `cargo xtask vendor-chart`: the chart library of the HTML report, made
//! anew out of its pinned packages.
//!
//! In: `package-lock.json` and `entry.js` beside the file. Out: one script
//! that defines `chart`, with the licences of all that is in it at its head.
use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::system;

const FOLDER: &str = "proxy-daemon/src/report/html/vendor";
const FILE: &str = "chart.min.js";
/// Builds, but is not built in.
const BUILDER: &str = "esbuild";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tell whether the file is what its source gives
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let source = system::root().join(FOLDER);
    let work = system::target().join("node/chart");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    for name in ["package.json", "package-lock.json", "entry.js"] {
        fs::copy(source.join(name), work.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&work);
    system::run(&mut npm).context("npm could not install the packages: is the package registry reachable?")?;
    let mut build = Command::new(work.join("node_modules/.bin").join(BUILDER));
    build.args(["entry.js", "--bundle", "--minify", "--format=iife", "--global-name=chart", "--target=es2020"]);
    build.args(["--charset=ascii", "--log-level=warning", "--outfile=built.js"]).current_dir(&work);
    system::run(&mut build)?;

    let built = fs::read_to_string(work.join("built.js")).context("cannot read what was built")?;
    let made = format!("{}{built}", licences(&work.join("node_modules"))?);
    let file = source.join(FILE);
    if options.check {
        let kept = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(kept == made, "{FOLDER}/{FILE} is not what its source gives; `cargo xtask vendor-chart` makes it anew");
        return Ok(());
    }
    fs::write(&file, made).with_context(|| format!("cannot write {}", file.display()))
}

/// Every package's licence as a comment; packages with the same share one.
fn licences(modules: &Path) -> Result<String> {
    let mut shared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(modules).context("there is no node_modules")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == BUILDER || name.starts_with(['.', '@']) {
            continue;
        }
        let licence = modules.join(&name).join("LICENSE");
        let text = fs::read_to_string(&licence).with_context(|| format!("{name} has no LICENSE"))?;
        ensure!(!text.contains("*/"), "the licence of {name} would end the comment that it goes into");
        shared.entry(text.trim().to_owned()).or_default().push(name);
    }
    let mut all: Vec<_> = shared.into_iter().map(|(text, mut names)| (names_sorted(&mut names), text)).collect();
    all.sort();
    Ok(all.into_iter().map(|(names, text)| format!("/*! {names}\n\n{text}\n*/\n")).collect())
}

fn names_sorted(names: &mut [String]) -> String {
    names.sort();
    names.join(", ")
}
