//! `retryscope top`: a running instance, watched on the whole terminal.
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use super::Failure;
use crate::{control, view};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID", conflicts_with = "name")]
    pid: Option<u32>,

    /// The daemon of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::usage(
            "`top` needs a terminal for its keys and its screen; `retryscope flows` and `report` go anywhere",
        ));
    }
    let client = match &args.name {
        Some(name) => control::named(name)?,
        None => control::find(args.pid)?,
    };
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    runtime.block_on(view::top::run(client, color))?;
    Ok(ExitCode::SUCCESS)
}
