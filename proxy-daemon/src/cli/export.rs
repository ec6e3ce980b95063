//! `retryscope export curl`: an attempt as a command to type, out of a
//! recording or of a running instance.
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use super::{Failure, recording};
use crate::{
    control,
    history::{AttemptDetail, Curl},
    report::words::plain,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    form: Form,
}

#[derive(Debug, clap::Subcommand)]
enum Form {
    /// As a command for curl
    Curl {
        /// A recording, instead of a running instance; - for standard input
        #[arg(value_name = "FILE", conflicts_with = "pid")]
        file: Option<PathBuf>,

        /// The attempt's number, as `retryscope show FILE` or `flows --json` tells it
        #[arg(long, value_name = "N")]
        id: u64,

        /// The instance's pid, where several are running
        #[arg(long = "instance", value_name = "PID")]
        pid: Option<u32>,
    },
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Form::Curl { file, id, pid } = &args.form;
    let Curl { command, notes } = match file {
        Some(file) => {
            let recording = recording::load(file)?;
            let recorded = recording::by_id(&recording, *id)?;
            let started = recording.started.unwrap_or(SystemTime::UNIX_EPOCH);
            let detail = AttemptDetail::recorded(*id, &recorded.attempt, started);
            Curl::with_body(&detail, recorded.request_body.whole().map(|body| &body[..]))
        }
        None => {
            let client = control::find(*pid)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
            runtime.block_on(client.curl(*id))?
        }
    };
    for note in notes {
        let _ = writeln!(io::stderr(), "retryscope: {}", plain(&note));
    }
    // A reader that has gone away has decided not to read it.
    let _ = writeln!(io::stdout(), "{command}");
    Ok(ExitCode::SUCCESS)
}
