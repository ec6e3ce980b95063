//! The command line: what was typed becomes one call.
//!
//! In: the arguments. Out: an exit code, and what went wrong as one sentence
//! on standard error. Exit codes: 3 an assertion
//! that does not hold, 65 a file that is no report, 64 usage or configuration, 69 something the
//! system lacks, 70 a fault of our own, 73 a file that cannot be written, 77
//! permission; `run` passes on its command's.
mod attach;
mod bypass;
mod ca;
mod config;
mod daemon;
mod doctor;
mod export;
mod flows;
mod held;
mod intercept;
mod log;
mod options;
mod otlp;
mod output;
mod page;
mod place;
mod recording;
mod reload;
mod replay;
mod report;
mod rules;
mod run;
mod save;
mod scene;
mod sidecar;
mod signals;
mod top;
mod user;
mod wait;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand, error::ErrorKind};

use crate::{
    keeper,
    process::{janitor, launch, warden},
    redirect,
};

const USAGE: u8 = 64;

/// Shows, per process, how many requests are retries and how long they wait,
/// and provokes them on purpose.
#[derive(Debug, Parser)]
#[command(name = "retryscope", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command and report what it retried
    ///
    /// The command runs as the user who called sudo, with that user's
    /// environment, its own standard streams, and exits with its own code. The
    /// report follows on standard error.
    Run(run::Args),
    /// Watch what already runs: a unit, a container, a cgroup, or a process and what it starts
    ///
    /// Only connections made from now on are seen. The target has to trust the
    /// authority of `retryscope ca init`.
    Attach(attach::Args),
    /// Watch everything in this network namespace, as a container beside an application's
    ///
    /// It makes an authority, and puts what an application needs to trust it
    /// into a folder that both share. deploy/container tells more.
    Sidecar(sidecar::Args),
    /// Return once a daemon or sidecar is ready, or fail after a time
    Wait(wait::Args),
    /// Do the same for months, from a configuration file
    ///
    /// What serves connections gives up every privilege once it has started.
    Daemon(daemon::Args),
    /// Have a daemon read its configuration again, without dropping a connection
    Reload(reload::Args),
    /// Let connections go direct at once, and take that back: for when an application breaks
    ///
    /// What runs is left as it is, and so are connections under way.
    Bypass(bypass::Args),
    /// Print the daemon's default configuration, or check one
    Config(config::Args),
    /// Make or show the authority that `attach` uses
    Ca(ca::Args),
    /// Show the report of a running instance, of a recording, or of a file; compare two
    Report(report::Args),
    /// Show what `--save` has recorded, a line for each attempt
    Show(recording::Args),
    /// Print an attempt as a command
    Export(export::Args),
    /// Send recorded requests again, and tell what is answered otherwise
    Replay(replay::Args),
    /// Print the address of a running instance's page, with the token that lets a browser in
    Page(page::Args),
    /// Show a running instance's attempts, a line for each as it ends
    Flows(flows::Args),
    /// Watch a running instance: processes, calls, what is held, rules
    Top(top::Args),
    /// Check and try rules, and change those of a running instance
    Rules(rules::Args),
    /// Have attempts wait for you, at their request or their response
    ///
    /// Lists what comes to wait until it is interrupted; then, and after
    /// --max-wait in any case, attempts go on untouched. The client waits
    /// meanwhile, and may give up.
    Intercept(intercept::Args),
    /// List the attempts that wait
    Held(held::List),
    /// Let a held attempt go on, as it is or changed
    Resume(held::Resume),
    /// Break a held attempt off
    Drop(held::BreakOff),
    /// Answer a held request in the upstream's place
    Answer(held::Answer),
    /// Tell whether this machine has what is needed, and what to do if not
    Doctor(doctor::Args),
}

/// Why a subcommand could not do its work: one sentence and an exit code.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }
}

/// Rooms whose errors say themselves what the process exits with.
macro_rules! failure_from {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.exit_code(), error.to_string())
            }
        })*
    };
}

failure_from!(
    crate::daemon::StartError,
    crate::pods::ApiError,
    crate::redirect::RedirectError,
    crate::redirect::cgroup::CgroupError,
    crate::redirect::find::FindError,
    crate::tls::TlsError,
    crate::view::ViewError
);

/// The runtime of an instance. The data path is light; more threads than
/// these only cost memory.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(8);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(workers)
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))
}

/// Runs what the arguments say.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).take(4).collect();
    match arguments.as_slice() {
        [hidden, descriptor, cgroup] if hidden == launch::LAUNCH => {
            return launch::main(&descriptor.to_string_lossy(), Path::new(cgroup));
        }
        [hidden] if hidden == janitor::JANITOR => {
            return janitor::main(crate::redirect::sweep, |recording| drop(crate::report::recording::mend(recording)));
        }
        [hidden, ..] if hidden == warden::WARDEN => {
            return warden::main(|gate| {
                let shut = redirect::shutter(gate).map_err(|error| error.to_string())?;
                Ok(move || shut().map_err(|error| error.to_string()))
            });
        }
        [hidden] if hidden == keeper::KEEPER => return keeper::main(),
        [hidden] if hidden == keeper::PORTER => return keeper::porter::main(),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                _ => USAGE,
            };
            // A closed standard stream leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Attach(args) => attach::run(&args),
        Command::Sidecar(args) => sidecar::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Daemon(args) => daemon::run(args),
        Command::Reload(args) => reload::run(&args),
        Command::Bypass(args) => bypass::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Ca(args) => ca::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Show(args) => recording::show(&args),
        Command::Export(args) => export::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Page(args) => page::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Rules(args) => rules::run(args),
        Command::Intercept(args) => intercept::run(args),
        Command::Held(args) => held::list(&args),
        Command::Resume(args) => held::resume(args),
        Command::Drop(args) => held::break_off(&args),
        Command::Answer(args) => held::answer(args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            // An excerpt with a caret says itself what it is.
            let who = if failure.message.starts_with("error: ") { "" } else { "retryscope: " };
            let _ = writeln!(std::io::stderr(), "{who}{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Sends our own events to standard error: warnings, or more with `-v`.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "retryscope=info,warn",
        2 => "retryscope=debug,info",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::new(std::env::var("RETRYSCOPE_LOG").unwrap_or_else(|_| level.into()));
    // Set once per process; a second call has nothing to add.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}
