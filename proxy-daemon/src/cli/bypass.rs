//! `retryscope bypass`: the kill switch of running instances.
use std::{io::Write, process::ExitCode};

use super::{Failure, daemon::name};
use crate::control::{self, About, BypassWish, Client};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Let connections go direct, or no longer, or only tell which it is
    #[arg(value_enum, default_value_t = To::On)]
    to: To,

    /// The same as `off`
    #[arg(long, conflicts_with_all = ["now", "keep"])]
    off: bool,

    /// Connections under way are ended, too, as they become idle
    #[arg(long)]
    now: bool,

    /// A daemon begins with it when it is started again; `bypass off` ends it
    #[arg(long)]
    keep: bool,

    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID", conflicts_with_all = ["name", "all"])]
    pid: Option<u32>,

    /// The daemon's name
    #[arg(long, value_name = "NAME", value_parser = name, conflicts_with = "all")]
    name: Option<String>,

    /// Every instance of this machine
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum To {
    On,
    Off,
    Show,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let clients = match (&args.name, args.all) {
        (_, true) => control::all()?,
        (Some(name), _) => vec![control::named(name)?],
        (None, _) => vec![control::find(args.pid).map_err(all_instead)?],
    };
    if clients.is_empty() {
        return Err(control::ClientError::NoInstance.into());
    }
    let to = if args.off { To::Off } else { args.to };
    if to != To::On && (args.now || args.keep) {
        return Err(Failure::usage("--now and --keep are for switching a bypass on"));
    }
    let wish = BypassWish { bypassed: to == To::On, now: args.now, keep: args.keep };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    let (mut text, mut failed) = (String::new(), None);
    for client in &clients {
        let asked = async |client: &Client| match to {
            To::Show => client.about().await,
            To::On | To::Off => client.bypass(wish).await,
        };
        // One that does not answer must not spare the others.
        match runtime.block_on(asked(client)) {
            Ok(about) => text.push_str(&told(&about, &wish, to == To::Show)),
            Err(error) => failed = Some(error),
        }
    }
    // A reader that has gone away has decided not to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn all_instead(error: control::ClientError) -> Failure {
    let mut failure = Failure::from(error);
    failure.message = failure.message.replace("name one with --instance PID", "name one with --instance PID, or --all");
    failure
}

fn told(about: &About, wish: &BypassWish, only_shown: bool) -> String {
    let pid = about.pid;
    let Some(bypassed) = &about.bypassed else {
        return if only_shown {
            format!("pid {pid} is not bypassed: new connections come to it\n")
        } else {
            format!("pid {pid} is no longer bypassed: new connections come to it again\n")
        };
    };
    let since = if only_shown { format!(" since {}", bypassed.since) } else { String::new() };
    let under_way = match (only_shown, wish.now) {
        (true, _) => "",
        (false, true) => "; those under way end as they become idle",
        (false, false) => "; those under way go on (--now ends them as they become idle)",
    };
    let until = if bypassed.kept {
        "`retryscope bypass off` ends it; a restart does not"
    } else {
        "`retryscope bypass off` ends it, and so does a restart"
    };
    format!("pid {pid} is bypassed{since}: new connections go direct, unobserved{under_way}. {until}\n")
}
