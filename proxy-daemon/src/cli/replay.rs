//! `retryscope replay`: sends recorded requests again, and says what is
//! answered otherwise.
//!
//! In: a recording. Out: a line for each request, and an exit code: 0 where
//! everything was answered as before, 1 where something was not. Nothing is
//! sent that may not be done twice, unless it is asked for, and nothing that
//! the recording does not have whole. The upstream is verified as ever.
mod compare;
mod send;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use self::{
    compare::{Answer, differences},
    send::{Sender, request},
};
use super::{Failure, recording, run::say};
use crate::{
    flow::{Moment, record::Recorded},
    proxy::{Mapping, Routes},
    report::words::plain,
    tls::Upstream,
};

/// What differs exits with this.
const DIFFERS: u8 = 1;
/// Methods that may be done again (RFC 9110, section 9.2.2).
const IDEMPOTENT: &[&str] = &["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
/// What can be asked for at once.
const MAX_TIMES: u64 = 1_000_000;
/// Requests under way at a time, at most.
const MAX_PARALLEL: i64 = 256;
/// Hosts that are named when it is asked whether to send.
const MAX_NAMED: usize = 5;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A recording: HAR, or JSON lines; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Only attempts that match, as in rules: '~svc s3 & ~m GET & ~attempt 1'
    #[arg(value_name = "FILTER")]
    filter: Option<String>,

    /// Send all of it to this server instead; its certificate still has to be the recorded host's
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "map_host")]
    to: Option<String>,

    /// Let this name lead to that address
    #[arg(long, value_name = "NAME=ADDR[:PORT]")]
    map_host: Vec<String>,

    /// Trust the authorities in this file, besides the system's
    #[arg(long, value_name = "PEM")]
    upstream_ca: Vec<PathBuf>,

    /// Send this field as well, in the place of a recorded one: 'NAME: VALUE'
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,

    /// Send all of it so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_TIMES))]
    times: u64,

    /// Have at most so many requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_PARALLEL))]
    parallel: u16,

    /// Begin at most so many requests a second, as far as --parallel lets them
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// Begin each as long after the first as it was recorded, as far as --parallel lets it
    #[arg(long, conflicts_with = "rate")]
    as_recorded: bool,

    /// Send also what may have done something, and would do it again (POST, PATCH)
    #[arg(long)]
    all_methods: bool,

    /// Do not ask before sending
    #[arg(long)]
    yes: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "write how many a second, as in 10 or 0.5".to_owned())
}

/// Fields that the user gives.
type Given = http::HeaderMap;

fn given(texts: &[String]) -> Result<Given, Failure> {
    let parse = |text: &String| {
        let (name, value) = text.split_once(':')?;
        Some((name.trim().parse::<http::HeaderName>().ok()?, value.trim().parse().ok()?))
    };
    let field = |text| parse(text).ok_or_else(|| Failure::usage(format!("--header '{text}' is not 'NAME: VALUE'")));
    texts.iter().map(field).collect()
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let filter = recording::filter(args.filter.as_deref())?;
    let given = given(&args.headers)?;
    let mappings = args.map_host.iter().map(|text| Mapping::parse(text)).collect::<Result<Vec<_>, _>>();
    let routes = mappings.and_then(|mappings| Routes::new(mappings, &[], &[]));
    let routes = routes.map_err(|error| Failure::usage(error.to_string()))?;
    let upstream = Upstream::new(&args.upstream_ca)?;
    let recording = recording::load(&args.file)?;
    let chosen: Vec<(u64, &Recorded)> = recording::matching(&recording, filter.as_ref()).collect();
    if chosen.is_empty() {
        return Err(Failure::usage("no attempt matches; `retryscope show FILE` lists them"));
    }
    refuse_repeats(&chosen, args.all_methods)?;

    let mut ready = Vec::new();
    let mut unsent: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    let mut without = BTreeSet::new();
    for (id, recorded) in chosen {
        match request(recorded, &given) {
            Ok(request) => {
                without.extend(request.without.iter().cloned());
                ready.push((id, recorded, request));
            }
            Err(why) => unsent.entry(why).or_default().push(id),
        }
    }
    if !without.is_empty() {
        let names: Vec<&str> = without.iter().map(String::as_str).collect();
        say(&plain(&format!(
            "credentials were left out of the recording, so requests go without: {}. --header 'NAME: VALUE' gives one anew",
            names.join(", ")
        )));
    }
    for (why, ids) in &unsent {
        let shown: Vec<String> = ids.iter().take(10).map(u64::to_string).collect();
        let more = if ids.len() > 10 { ", …" } else { "" };
        say(&format!("not sent: {}{more}: {why}", shown.join(", ")));
    }
    if ready.is_empty() {
        return Err(Failure::usage("there is nothing left to send"));
    }
    let hosts: BTreeSet<&str> = ready.iter().map(|(_, recorded, _)| &*recorded.attempt.request.authority).collect();
    ask(args, ready.len() as u64 * args.times, &hosts)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    if args.as_recorded {
        ready.sort_by_key(|(_, recorded, _)| recorded.attempt.started);
    }
    let due = due(args, ready.iter().map(|(_, recorded, _)| recorded.attempt.started).collect());
    let (same, other) = runtime.block_on(async {
        let sender = Sender::new(upstream, routes, args.to.as_deref()).await?;
        let mut counts = (0_u64, 0_u64);
        let began = Instant::now();
        let all = (0..args.times).flat_map(|time| ready.iter().enumerate().map(move |(at, ready)| (time, at, ready)));
        // They begin in the order of the recording, and are told of as they are answered.
        let mut answers = stream::iter(all)
            .map(|(time, at, (id, recorded, request))| {
                let (due, sender) = (due(time, at), &sender);
                async move {
                    if let Some(due) = due {
                        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
                    }
                    (*id, *recorded, sender.send(request).await)
                }
            })
            .buffer_unordered(usize::from(args.parallel));
        while let Some((id, recorded, answer)) = answers.next().await {
            let found = differences(recorded, &answer);
            if found.is_empty() {
                counts.0 += 1;
            } else {
                counts.1 += 1;
            }
            if !show(id, recorded, &answer, &found) {
                break;
            }
        }
        Ok::<_, Failure>(counts)
    })?;
    say(&format!(
        "{} sent: {same} answered as recorded, {other} otherwise",
        if same + other == 1 { "1 request".to_owned() } else { format!("{} requests", same + other) }
    ));
    Ok(if other == 0 { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// How long after the first of all each is to begin: by which time of sending
/// all, and by its place among them.
fn due(args: &Args, began: Vec<Moment>) -> impl Fn(u64, usize) -> Option<Duration> + use<> {
    let (rate, as_recorded) = (args.rate, args.as_recorded);
    let first = began.first().copied().unwrap_or_default();
    let all = began.last().copied().unwrap_or_default().since(first);
    move |time, at| {
        if as_recorded {
            let within = began.get(at).copied().unwrap_or_default().since(first);
            return Some(all.saturating_mul(u32::try_from(time).unwrap_or(u32::MAX)).saturating_add(within));
        }
        let before = time * began.len() as u64 + at as u64;
        Some(Duration::try_from_secs_f64(before as f64 / rate?).unwrap_or(Duration::MAX))
    }
}

/// What may not be done twice is not, unless it is asked for.
fn refuse_repeats(chosen: &[(u64, &Recorded)], all: bool) -> Result<(), Failure> {
    if all {
        return Ok(());
    }
    let method = |recorded: &Recorded| recorded.attempt.request.method.to_string();
    let risky: Vec<String> = chosen
        .iter()
        .map(|(_, recorded)| method(recorded))
        .filter(|method| method != "CONNECT" && !IDEMPOTENT.contains(&method.as_str()))
        .collect();
    if risky.is_empty() {
        return Ok(());
    }
    let methods: BTreeSet<&str> = risky.iter().map(String::as_str).collect();
    let methods = methods.into_iter().collect::<Vec<_>>().join(", ");
    Err(Failure::usage(plain(&format!(
        "{} of the {} attempts are {methods}: what they did would be done again. Narrow the filter (& ~m GET), or add --all-methods",
        risky.len(),
        chosen.len()
    ))))
}

fn ask(args: &Args, count: u64, hosts: &BTreeSet<&str>) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    let named: Vec<&str> = hosts.iter().take(MAX_NAMED).copied().collect();
    let more = if hosts.len() > MAX_NAMED { " and others" } else { "" };
    let to = args.to.as_ref().map_or_else(String::new, |to| format!(" at {to}"));
    let requests = if count == 1 { "1 request".to_owned() } else { format!("{count} requests") };
    let what = plain(&format!("{requests} to {}{more}{to}", named.join(", ")));
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("this would send {what}; add --yes")));
    }
    let mut answer = String::new();
    let _ = write!(io::stderr(), "Send {what}? [y/N] ");
    let read = io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::usage("nothing was sent")),
    }
}

/// One line. False if nobody reads any more.
fn show(id: u64, recorded: &Recorded, answer: &Answer, found: &[String]) -> bool {
    let request = &recorded.attempt.request;
    let now = match answer {
        Answer::Came(response) => response.status.to_string(),
        Answer::Failed(why) => why.clone(),
    };
    let verdict = if found.is_empty() { "same".to_owned() } else { format!("differs: {}", found.join("; ")) };
    let line = format!("{id:>5} {} {} {now}  {verdict}", request.method, request.url());
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plain(&line)).and_then(|()| out.flush()).is_ok()
}
