//! `retryscope held`, `resume`, `drop`, `answer`: what waits for a person, and
//! what becomes of it.
use std::{
    fs,
    io::{self, Read, Write},
    process::ExitCode,
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    Failure,
    rules::{Instance, with},
};
use crate::{
    control::{Act, Client, ClientError, HeldView, HoldEvent, Released, Verdict},
    report::words::{duration, plain},
    view,
};

/// The longest body that is sent, in bytes: the instance's own bound.
const MAX_BODY: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    instance: Instance,

    /// As JSON; with --follow, a line for each event
    #[arg(long)]
    json: bool,

    /// Stay, and tell what comes to wait and what goes on
    #[arg(long, short)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,

    /// At a request: another method
    #[arg(long)]
    method: Option<String>,

    /// At a request: another path and query
    #[arg(long, value_name = "PATH")]
    target: Option<String>,

    /// At a response: another status
    #[arg(long)]
    status: Option<u16>,

    #[command(flatten)]
    message: Message,

    /// Change head and body in $EDITOR
    #[arg(long, conflicts_with_all = ["method", "target", "status", "reason", "header", "remove_header", "body"])]
    edit: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Answer {
    #[command(flatten)]
    which: Which,

    /// The status that the client is told
    #[arg(long)]
    status: u16,

    #[command(flatten)]
    message: Message,
}

#[derive(Debug, clap::Args)]
pub(super) struct BreakOff {
    #[command(flatten)]
    which: Which,

    /// Close the connection instead of resetting it; on HTTP/2, not the stream alone
    #[arg(long)]
    close: bool,
}

#[derive(Debug, clap::Args)]
struct Which {
    #[command(flatten)]
    instance: Instance,

    /// The attempt's number, as `retryscope held` tells it; or all
    #[arg(value_name = "ID|all")]
    id: Id,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Message {
    /// The reason phrase; without it, the status's usual one
    #[arg(long)]
    reason: Option<String>,

    /// A field in place of all of its name; more of one name are all there
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,

    /// Leave a field out
    #[arg(long, value_name = "NAME")]
    remove_header: Vec<String>,

    /// Another body; @FILE for a file's content, @- for standard input
    #[arg(long, value_name = "TEXT|@FILE")]
    body: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    All,
    One(u64),
}

impl FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = text.trim_start_matches('#').parse();
        number.map(Self::One).map_err(|_| "write a number that `retryscope held` tells, or all")
    }
}

impl Message {
    fn into_verdict(self, action: Act, status: Option<u16>) -> Result<Verdict, Failure> {
        let mut headers = Vec::new();
        for field in &self.header {
            let (name, value) = field
                .split_once(':')
                .ok_or_else(|| Failure::usage(format!("--header {field:?} is no field; write 'Name: value'")))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        let body = self.body.map(|body| read(&body)).transpose()?;
        let (body, body_base64) = match body.map(String::from_utf8) {
            Some(Ok(text)) => (Some(text), None),
            Some(Err(bytes)) => (None, Some(STANDARD.encode(bytes.as_bytes()))),
            None => (None, None),
        };
        Ok(Verdict {
            action,
            status,
            reason: self.reason,
            remove: self.remove_header,
            headers,
            body,
            body_base64,
            ..Verdict::default()
        })
    }
}

fn read(body: &str) -> Result<Vec<u8>, Failure> {
    let Some(path) = body.strip_prefix('@') else { return Ok(body.as_bytes().to_vec()) };
    let unreadable =
        |error: io::Error| Failure::usage(format!("cannot read the body in {path} ({error}); check the path"));
    let mut bytes = Vec::new();
    if path == "-" {
        io::stdin().lock().take(MAX_BODY + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_BODY + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if bytes.len() as u64 > MAX_BODY {
        return Err(Failure::usage(format!("the body in {path} is longer than 1 MiB, which is the most")));
    }
    Ok(bytes)
}

/// Indented, with a newline at the end.
pub(super) fn json(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default())
}

/// A time without the space that does not break.
pub(super) fn told(ms: f64) -> String {
    duration(ms).replace('\u{a0}', " ")
}

fn say(text: &str) -> Result<ExitCode, Failure> {
    // A reader that has gone away has decided not to read it.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(args: &List) -> Result<ExitCode, Failure> {
    if args.follow {
        return with(&args.instance, async |client| follow(client, args.json).await);
    }
    let held = with(&args.instance, async |client| client.held().await)?;
    if args.json {
        return say(&json(&held));
    }
    if held.held.is_empty() {
        return say("Nothing is held; `retryscope intercept FILTER` holds attempts.\n");
    }
    say(&held.held.iter().map(|held| block(held, true)).collect::<String>())
}

async fn follow(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let mut events = client.follow_held().await?;
    while let Some(event) = events.next().await? {
        if show(&event, json).is_err() {
            // Nobody reads it any more.
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells of one event.
pub(super) fn show(event: &HoldEvent, json: bool) -> io::Result<()> {
    let text = match event {
        event if json => format!("{}\n", serde_json::to_string(event).unwrap_or_default()),
        HoldEvent::Intercept(_) => String::new(),
        HoldEvent::Held(held) => block(held, false),
        HoldEvent::Released(released) => line(released),
        HoldEvent::Over(over) => format!("intercept {} holds no more attempts\n", over.intercept),
        HoldEvent::Skipped(events) => format!("({} events are missing here: this was too slow)\n", events.skipped),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What waits, in three lines.
fn block(held: &HeldView, now: bool) -> String {
    let mut what = format!("#{} held at its {}", held.id, held.phase);
    if let Some(status) = held.status {
        what.push_str(&format!(": {status}"));
    }
    let told = held.told.map(|told| told.to_string()).or_else(|| held.abort.clone());
    if let Some(told) = told {
        what.push_str(&format!(" -> {told} by rule \"{}\"", plain(held.rule.as_deref().unwrap_or_default())));
    }
    if let Some(operation) = &held.operation {
        let service = held.service.as_ref().map(|service| format!("{service}.")).unwrap_or_default();
        what.push_str(&format!(", {}{}", plain(&service), plain(operation)));
    }
    what.push_str(&format!(", attempt {}", held.attempt));
    if let Some(max) = held.attempts_max {
        what.push_str(&format!(" of {max}"));
    }
    if let Some(backoff) = held.backoff_ms {
        what.push_str(&format!(" after a wait of {}", self::told(backoff)));
    }
    what.push_str(&format!(", {} (pid {})\n", plain(&held.comm), held.pid));
    what.push_str(&format!("    {} {}\n", plain(&held.method), plain(&held.url)));
    let left = self::told(held.left_ms as f64);
    if now {
        let waited = self::told(held.waited_ms as f64);
        what.push_str(&format!("    for {waited} by now; goes on by itself in {left}\n"));
    } else {
        what.push_str(&format!("    goes on by itself in {left}\n"));
    }
    what
}

fn line(released: &Released) -> String {
    format!("{}\n", view::words::released(released))
}

pub(super) fn resume(args: Resume) -> Result<ExitCode, Failure> {
    let Resume { which, method, target, status, message, edit } = args;
    if edit {
        let Id::One(id) = which.id else {
            return Err(Failure::usage("--edit opens one attempt; name it by its number"));
        };
        return with(&which.instance, async |client| match view::edit::edit(client, id).await? {
            Some(released) => say(&if which.json { json(&released) } else { line(&released) }),
            None => say(&format!("nothing was decided: #{id} stays held\n")),
        });
    }
    let verdict = Verdict { method, target, ..message.into_verdict(Act::Resume, status)? };
    decide(&which, &verdict)
}

pub(super) fn answer(args: Answer) -> Result<ExitCode, Failure> {
    let verdict = args.message.into_verdict(Act::Answer, Some(args.status))?;
    decide(&args.which, &verdict)
}

pub(super) fn break_off(args: &BreakOff) -> Result<ExitCode, Failure> {
    decide(&args.which, &Verdict { action: Act::Drop, close: args.close, ..Verdict::default() })
}

fn decide(which: &Which, verdict: &Verdict) -> Result<ExitCode, Failure> {
    let released = with(&which.instance, async |client| match which.id {
        Id::One(id) => Ok(vec![client.decide(id, verdict).await?]),
        Id::All => all(client, verdict).await,
    })?;
    if which.json {
        return say(&json(&released));
    }
    if released.is_empty() {
        return say("nothing was held\n");
    }
    say(&released.iter().map(line).collect::<String>())
}

async fn all(client: &Client, verdict: &Verdict) -> Result<Vec<Released>, ClientError> {
    let mut released = Vec::new();
    for held in client.held().await?.held {
        match client.decide(held.id, verdict).await {
            Ok(one) => released.push(one),
            // It has gone on meanwhile, unless it says why it cannot.
            Err(error @ ClientError::Refused(_)) => {
                if client.held_in_full(held.id).await.is_ok() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(released)
}
