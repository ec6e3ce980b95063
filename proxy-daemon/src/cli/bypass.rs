//! `retryscope bypass`: the kill switch of running instances.
use std::{io::Write, process::ExitCode};

use super::{Failure, daemon::name};
use crate::{
    control::{self, About, BypassWish, Client, ClientError},
    process::warden,
};

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

    /// For the service manager, once the daemon has ended: if that was asked for, nothing of it is
    /// to refuse connections
    #[arg(long, hide = true, requires = "name")]
    after_stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum To {
    On,
    Off,
    Show,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.after_stop {
        // A crash or a watchdog is none that was asked for.
        if std::env::var("SERVICE_RESULT").is_ok_and(|result| matches!(&*result, "success" | "timeout")) {
            warden::end_all(&warden::left(args.name.as_deref()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let found = match (&args.name, args.all) {
        (_, true) => control::all(),
        (Some(name), _) => control::named(name).map(|client| vec![client]),
        (None, _) => control::find(args.pid).map(|client| vec![client]),
    };
    let on = args.to == To::On && !args.off;
    // What a died one has left is no instance any more, and refuses all the same.
    let freed = if on && args.pid.is_none() { warden::end_all(&warden::left(args.name.as_deref())) } else { 0 };
    let left = match freed {
        0 => "",
        _ => "what an instance that has died had left no longer refuses connections: they go direct\n",
    };
    let clients = match found {
        Err(ClientError::NoInstance | ClientError::NoDaemon(_)) if freed > 0 => Vec::new(),
        found => found.map_err(all_instead)?,
    };
    if clients.is_empty() && freed == 0 {
        return Err(ClientError::NoInstance.into());
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
    let (mut text, mut failed) = (left.to_owned(), None);
    for client in &clients {
        let asked = async |client: &Client| match to {
            To::Show => client.about().await,
            To::On | To::Off => client.bypass(wish).await,
        };
        // One that does not answer must not spare the others.
        match runtime.block_on(asked(client)) {
            Ok(about) => text.push_str(&told(&about, &wish, to == To::Show)),
            // Its socket outlived the one that died.
            Err(ClientError::Broken(_)) if freed > 0 => {}
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

fn all_instead(error: ClientError) -> Failure {
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
