//! `retryscope page`, and what `--page` says.
use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    process::ExitCode,
};

use super::{Failure, run::say};
use crate::{control, view::page::Opened};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID")]
    pid: Option<u32>,
}

/// Prints the address of a running instance's page, with its token.
pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let client = control::find(args.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    let address = runtime.block_on(client.page())?;
    // Nobody there, nobody to tell.
    let _ = writeln!(io::stdout(), "{}", address.url);
    Ok(ExitCode::SUCCESS)
}

/// Opens the page's address.
pub(super) fn open(address: SocketAddr) -> Result<Opened, Failure> {
    Opened::at(address).map_err(|error| {
        Failure::new(69, format!("cannot serve a page at {address} ({error}); name another with --page=ADDRESS:PORT"))
    })
}

/// Says where the page is. Its token is told to a person at a terminal, and to
/// nothing that could be a log.
pub(super) fn tell(opened: &Opened) {
    if let Some(warning) = opened.warning() {
        say(&warning);
    }
    if io::stderr().is_terminal() {
        say(&format!("the page is at {}", opened.url().0));
    } else {
        say(&format!(
            "the page is at {}; `retryscope page` prints its address with the token that lets a browser in",
            opened.place()
        ));
    }
}
