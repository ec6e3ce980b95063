//! `retryscope intercept`: have attempts wait for a person.
use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use super::{
    Failure,
    held::{show, told},
    rules::{Instance, with},
    signals::Signals,
};
use crate::{
    control::{Client, ClientError, HoldAt, HoldEvent, InterceptView, NewIntercept},
    flow::filter::Filter,
    report::words::{duration, plain},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    instance: Instance,

    /// Which attempts: the filter language of rules
    #[arg(required_unless_present_any = ["list", "off"])]
    filter: Option<String>,

    /// Where they wait: before the upstream sees the request, or before the client sees the response
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = At::Response)]
    at: At,

    /// How long each waits at most; then it goes on untouched
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    max_wait: Duration,

    /// Hold so many attempts, and then no more
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Leave it in force and return; `--off` ends it. Without, it ends with this command
    #[arg(long)]
    detach: bool,

    /// As JSON, a line for each event
    #[arg(long)]
    json: bool,

    /// List what is in force
    #[arg(long, conflicts_with_all = ["filter", "off", "detach"])]
    list: bool,

    /// End one, or all of them: what they hold goes on untouched
    #[arg(long, value_name = "ID", num_args = 0..=1, conflicts_with_all = ["filter", "detach"])]
    #[expect(clippy::option_option, reason = "absent, alone, with a number")]
    off: Option<Option<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum At {
    Request,
    Response,
    Both,
}

impl From<At> for HoldAt {
    fn from(at: At) -> Self {
        match at {
            At::Request => HoldAt::Request,
            At::Response => HoldAt::Response,
            At::Both => HoldAt::Both,
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let say = |text: String| {
        // A reader that has gone away has decided not to read it.
        let _ = io::stdout().lock().write_all(text.as_bytes());
        Ok(ExitCode::SUCCESS)
    };
    if args.list {
        let all = with(&args.instance, async |client| client.intercepts().await)?;
        return say(if args.json { super::held::json(&all) } else { list(&all) });
    }
    if let Some(which) = args.off {
        return say(with(&args.instance, async |client| off(client, which).await)?);
    }
    let Some(text) = args.filter else { return Err(Failure::usage("name a filter")) };
    // Seen here already, so that a caret may point at it.
    Filter::parse(&text).map_err(|error| Failure::usage(error.render(&text).trim_end()))?;
    let max_wait_ms = Some(u64::try_from(args.max_wait.as_millis()).unwrap_or(u64::MAX));
    let new = NewIntercept { filter: text, at: args.at.into(), max_wait_ms, count: args.count };
    if args.detach {
        let added = with(&args.instance, async |client| client.intercept(&new).await)?;
        return say(if args.json {
            super::held::json(&added)
        } else {
            format!("{}; `retryscope intercept --off {}` ends it\n", in_force(&added), added.id)
        });
    }
    let signals = Signals::block().map_err(|error| Failure::new(70, format!("cannot wait for signals ({error})")))?;
    with(&args.instance, async |client| watch(client, &new, signals, args.json).await)
}

fn in_force(intercept: &InterceptView) -> String {
    let at = match intercept.at {
        HoldAt::Request => "at their request",
        HoldAt::Response => "at their response",
        HoldAt::Both => "at their request and their response",
    };
    let most = match intercept.count {
        Some(1) => "The first attempt that matches waits".to_owned(),
        Some(count) => format!("The first {count} attempts that match wait"),
        None => "Attempts that match wait".to_owned(),
    };
    format!("intercept {}: {most} {at}, {} at most", intercept.id, duration(intercept.max_wait_ms as f64))
        .replace('\u{a0}', " ")
}

/// Stays until it is interrupted, and takes the intercept away with it.
async fn watch(client: &Client, new: &NewIntercept, signals: Signals, json: bool) -> Result<ExitCode, Failure> {
    let signals = signals.listen().map_err(|error| Failure::new(70, format!("cannot wait for signals ({error})")))?;
    // It lasts as long as this connection: also a kill ends it.
    let (added, mut events) = client.intercept_followed(new).await?;
    let id = added.id;
    if !json {
        let help = "`retryscope resume ID` lets one go; Ctrl-C ends this and lets all go";
        let _ = writeln!(io::stderr(), "{}. {help}.", in_force(&added));
    }
    let (mut waiting, mut over) = (0_u64, false);
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = signals.next() => break,
        };
        let Some(event) = event else {
            let _ = writeln!(io::stderr(), "retryscope: the instance has ended");
            return Ok(ExitCode::SUCCESS);
        };
        let mine = match &event {
            HoldEvent::Held(held) => held.intercept == id,
            HoldEvent::Released(released) => released.intercept == id,
            HoldEvent::Over(over) => over.intercept == id,
            HoldEvent::Skipped(_) => true,
            HoldEvent::Intercept(_) => false,
        };
        if !mine {
            continue;
        }
        match &event {
            HoldEvent::Held(_) => waiting += 1,
            HoldEvent::Released(_) => waiting = waiting.saturating_sub(1),
            HoldEvent::Over(_) => over = true,
            HoldEvent::Skipped(_) | HoldEvent::Intercept(_) => {}
        }
        if show(&event, json).is_err() {
            // Nobody reads it any more.
            break;
        }
        if over && waiting == 0 {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let released = match client.withdraw(id).await {
        Ok(released) => released,
        // Somebody else has ended it, or it had all that it wanted.
        Err(ClientError::Refused(_)) => 0,
        // It has let go of everything.
        Err(ClientError::Broken(_)) => return Ok(ExitCode::SUCCESS),
        Err(error) => return Err(error.into()),
    };
    if !json {
        let _ = writeln!(io::stderr(), "intercept {id} ended; {}", went_on(released));
    }
    Ok(ExitCode::SUCCESS)
}

fn went_on(released: usize) -> String {
    match released {
        0 => "nothing was held".to_owned(),
        1 => "1 held attempt went on untouched".to_owned(),
        several => format!("{several} held attempts went on untouched"),
    }
}

async fn off(client: &Client, which: Option<u64>) -> Result<String, ClientError> {
    if let Some(id) = which {
        let released = client.withdraw(id).await?;
        return Ok(format!("intercept {id} ended; {}\n", went_on(released)));
    }
    let mut ids: Vec<u64> = client.intercepts().await?.iter().map(|it| it.id).collect();
    // Those that had all they wanted are on no list, and may hold some yet.
    ids.extend(client.held().await?.held.iter().map(|held| held.intercept));
    ids.sort_unstable();
    ids.dedup();
    let mut released = 0;
    for id in &ids {
        match client.withdraw(*id).await {
            Ok(some) => released += some,
            // Just ended.
            Err(ClientError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match ids.len() {
        0 => "there was no intercept\n".to_owned(),
        1 => format!("1 intercept ended; {}\n", went_on(released)),
        several => format!("{several} intercepts ended; {}\n", went_on(released)),
    })
}

fn list(all: &[InterceptView]) -> String {
    if all.is_empty() {
        return "There are no intercepts; `retryscope intercept FILTER` holds attempts.\n".to_owned();
    }
    let mut text = String::new();
    for it in all {
        let at = match it.at {
            HoldAt::Request => "request",
            HoldAt::Response => "response",
            HoldAt::Both => "both",
        };
        let count = it.count.map_or_else(String::new, |count| format!(" of {count}"));
        let wait = told(it.max_wait_ms as f64);
        text.push_str(&format!(
            "{:>4}  {at:8}  {wait} at most  {}{count} held  {}\n",
            it.id,
            it.held,
            plain(&it.filter)
        ));
    }
    text
}
