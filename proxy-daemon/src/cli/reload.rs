//! `retryscope reload`: has a daemon read its configuration again.
use std::{io::Write, process::ExitCode};

use super::{Failure, daemon::DEFAULT_NAME};
use crate::control;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's name
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    name: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let client = control::named(&args.name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    let reloaded = runtime.block_on(client.reload())?;
    let mut text = format!("The configuration is in force; rules: {}\n", reloaded.rules);
    reloaded.notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
    // A reader that has gone away has decided not to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}
