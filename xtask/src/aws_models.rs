//! `cargo xtask aws-models`: the table of AWS's routes, made anew out of
//! botocore's models. What it holds, `aws_models.py` tells.
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{system, venv};

/// The models' version; the one of the tests' clients.
const BOTOCORE: &str = "botocore==1.44.5";
const TABLE: &str = "proxy-daemon/src/flow/aws/models.txt.gz";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tell whether the table is what the models give
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let python = venv::python("models", &[BOTOCORE])?;
    let root = system::root();
    let mut command = Command::new(python);
    command.arg(root.join("xtask/src/aws_models.py")).args(options.check.then_some("--check")).arg(root.join(TABLE));
    system::run(&mut command)
}
