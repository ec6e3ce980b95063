//! `retryscope config`: the daemon's configuration file.
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::Failure;
use crate::config::{self, ConfigErrors, File};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print the default file: every key with what it means, commented out
    Default,
    /// Say whether a file is right, and everything that is wrong with it
    Check {
        #[arg(value_name = "FILE", default_value = config::DEFAULT_FILE)]
        file: PathBuf,
    },
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::new(errors.exit_code(), errors.to_string())
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let text = match &args.action {
        Action::Default => config::default_file(),
        Action::Check { file } => check(file)?,
    };
    // A reader that has gone away has decided not to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path) -> Result<String, Failure> {
    let prepared = File::read(path)?.prepare()?;
    let targets = match prepared.changeable.patterns.is_empty() {
        true => "; it names no targets, so nothing is watched",
        false => "",
    };
    let rules = prepared.changeable.rules.len();
    let rules = if rules == 1 { "1 rule".to_owned() } else { format!("{rules} rules") };
    Ok(format!("all right, with {rules}{targets}\n"))
}
