//! `retryscope report`: of a running instance, of a file, or of two.
use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{Failure, options::Form, output::columns};
use crate::{
    control::{self, Client, ClientError},
    report::{self, Report, diff},
};

/// What is no report.
const NO_REPORT: u8 = 65;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A JSON report, instead of a running instance's
    #[arg(value_name = "FILE", conflicts_with_all = ["pid", "watch", "diff"])]
    file: Option<PathBuf>,

    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID")]
    pid: Option<u32>,

    /// Show it again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,

    /// Compare two JSON reports: before and after
    #[arg(long, value_names = ["BEFORE", "AFTER"], num_args = 2, conflicts_with_all = ["pid", "watch"])]
    diff: Vec<PathBuf>,

    /// The report's form
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    report: Form,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let [before, after] = args.diff.as_slice() {
        let diff = diff::diff(&load(before)?, &load(after)?);
        show(&match args.report {
            Form::Text => diff::text(&diff, columns(io::stdout())),
            Form::Json => format!("{:#}\n", serde_json::to_value(&diff).unwrap_or_default()),
        });
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &args.file {
        show(&render(&load(path)?, args.report));
        return Ok(ExitCode::SUCCESS);
    }
    let client = control::find(args.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    match args.watch {
        None => {
            show(&render(&runtime.block_on(client.report())?, args.report));
        }
        Some(seconds) => runtime.block_on(watch(&client, Duration::from_secs(seconds), args.report))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the instance ends, or nobody reads any more.
async fn watch(client: &Client, every: Duration, form: Form) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(every);
    let mut seen = false;
    loop {
        ticks.tick().await;
        let report = match client.report().await {
            Ok(report) => report,
            Err(ClientError::Broken(_) | ClientError::NoInstance) if seen => {
                show("The instance has ended; it has told its report.\n");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        seen = true;
        // On a terminal the new one takes the old one's place.
        let clear = if io::stdout().is_terminal() && form == Form::Text { "\x1b[2J\x1b[H" } else { "" };
        if !show(&format!("{clear}{}", render(&report, form))) {
            return Ok(());
        }
    }
}

fn render(report: &Report, form: Form) -> String {
    let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match form {
        Form::Text => report::text(report, columns(io::stdout()), color),
        Form::Json => report::json(report),
    }
}

/// False if nobody reads any more.
fn show(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn load(path: &Path) -> Result<Report, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the report {shown} ({error}); check the path")))?;
    let version = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|value| value["schema"].as_u64());
    match version {
        Some(version) if version != u64::from(report::SCHEMA) => Err(Failure::new(
            NO_REPORT,
            format!(
                "{shown} has the form {version}, and this retryscope reads {}; use the one that wrote it",
                report::SCHEMA
            ),
        )),
        _ => serde_json::from_str(&text).map_err(|error| {
            Failure::new(
                NO_REPORT,
                format!("{shown} is no report of retryscope ({error}); `--report json --report-file FILE` writes one"),
            )
        }),
    }
}
