//! `retryscope report`: of a running instance, of a file, or of two.
use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{
    Failure,
    options::Form,
    output::{DEFAULT_WIDTH, columns},
    recording,
};
use crate::{
    control::{self, Client, ClientError},
    flow::record,
    report::{self, Report, Timeline, diff, recorded},
};

/// What is no report.
const NO_REPORT: u8 = 65;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A JSON report or a recording, instead of a running instance
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

    /// Write the report to a file instead of standard output
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    report_file: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    check(args)?;
    let file = args.report_file.as_deref();
    if let [before, after] = args.diff.as_slice() {
        let diff = diff::diff(&load(before)?, &load(after)?);
        let width = if file.is_some() { DEFAULT_WIDTH } else { columns(io::stdout()) };
        return tell(
            &match args.report {
                Form::Json => format!("{:#}\n", serde_json::to_value(&diff).unwrap_or_default()),
                Form::Text | Form::Html => diff::text(&diff, width),
            },
            file,
        );
    }
    if let Some(path) = &args.file {
        let (report, timeline) = of_file(path)?;
        return tell(&render(&report, timeline.as_ref(), args), file);
    }
    let client = control::find(args.pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    match args.watch {
        None => tell(&render(&runtime.block_on(client.report())?, None, args), file),
        Some(seconds) => {
            runtime.block_on(watch(&client, Duration::from_secs(seconds), args))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What cannot be shown.
fn check(args: &Args) -> Result<(), Failure> {
    if args.report != Form::Html {
        return Ok(());
    }
    Err(Failure::usage(if !args.diff.is_empty() {
        "--diff compares as text or json; leave --report html out"
    } else if args.watch.is_some() {
        "--watch shows text or json; leave --report html out, or --watch"
    } else if args.report_file.is_none() && io::stdout().is_terminal() {
        "--report html makes a page for a browser; add --report-file report.html"
    } else {
        return Ok(());
    }))
}

/// To the file, or to standard output.
fn tell(text: &str, file: Option<&Path>) -> Result<ExitCode, Failure> {
    match file {
        None => {
            show(text);
        }
        Some(path) => fs::write(path, text).map_err(|error| {
            let shown = path.display();
            Failure::new(73, format!("cannot write the report to {shown} ({error}); choose another --report-file"))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the instance ends, or nobody reads any more.
async fn watch(client: &Client, every: Duration, args: &Args) -> Result<(), Failure> {
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
        let clear = if io::stdout().is_terminal() && args.report == Form::Text { "\x1b[2J\x1b[H" } else { "" };
        if !show(&format!("{clear}{}", render(&report, None, args))) {
            return Ok(());
        }
    }
}

fn render(report: &Report, timeline: Option<&Timeline>, args: &Args) -> String {
    if args.report_file.is_some() {
        return args.report.render(report, timeline, DEFAULT_WIDTH, false);
    }
    let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    args.report.render(report, timeline, columns(io::stdout()), color)
}

/// False if nobody reads any more.
fn show(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// The report in a file, or of a recording.
fn of_file(path: &Path) -> Result<(Report, Option<Timeline>), Failure> {
    let bytes = recording::bytes(path, "report")?;
    if serde_json::from_slice::<Marked>(&bytes).is_ok_and(|marked| marked.schema.is_some()) {
        return Ok((load(path)?, None));
    }
    let shown = path.display();
    let recording = record::load(&bytes).map_err(|error| {
        Failure::new(
            NO_REPORT,
            format!(
                "{shown} is no report of retryscope (`--report json --report-file FILE` writes one), and no recording: {error}"
            ),
        )
    })?;
    let (report, timeline) = recorded::report(recording, &shown.to_string());
    Ok((report, Some(timeline)))
}

/// What tells a report.
#[derive(serde::Deserialize)]
struct Marked {
    schema: Option<u64>,
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
