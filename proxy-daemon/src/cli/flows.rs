//! `retryscope flows`: a running instance's attempts, a line for each as it
//! ends.
//!
//! In: the local API. Out: lines for a person, or of JSON in the API's shape.
//! What is shown comes from both ends of strangers' connections, so nothing
//! of it reaches the terminal unescaped.
use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    process::ExitCode,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unicode_width::UnicodeWidthStr;

use super::{Failure, output::columns, run::say};
use crate::{
    control::{self, Client, Following, Told, Wanted},
    flow::filter::Filter,
    history::{AttemptEntry, MAX_LIMIT},
    report::words::{duration, plain},
    view::words::{left, outcome as status, right},
};

/// How many are shown that have ended already, unless told otherwise.
const SHOWN: usize = 1_000;
const MAX_SHOWN: u64 = 100_000;
/// How soon it is noticed that nobody reads any more.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only attempts that match, as in '~svc s3 & ~retry'; docs/rules.md tells the language
    filter: Option<String>,

    /// Go on with attempts as they end, until the instance ends
    #[arg(short, long)]
    follow: bool,

    /// Of those that have ended already, show the latest N
    #[arg(short = 'n', long, value_name = "N", default_value_t = SHOWN as u64, value_parser = clap::value_parser!(u64).range(0..=MAX_SHOWN))]
    limit: u64,

    /// A line of JSON for each, in the shape of /v1/attempts
    #[arg(long)]
    json: bool,

    /// The instance's pid, where several are running
    #[arg(long = "instance", value_name = "PID", conflicts_with = "name")]
    pid: Option<u32>,

    /// The daemon of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some(text) = &args.filter {
        Filter::parse(text).map_err(|error| Failure::usage(error.render(text).trim_end()))?;
    }
    let client = match &args.name {
        Some(name) => control::named(name)?,
        None => control::find(args.pid)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    runtime.block_on(async {
        tokio::select! {
            shown = show(&client, args) => shown,
            // Asked for: the end is in order.
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is written to, and how.
struct Screen {
    out: io::BufWriter<io::Stdout>,
    json: bool,
    color: bool,
    terminal: bool,
    /// Somebody still reads.
    open: bool,
}

async fn show(client: &Client, args: &Args) -> Result<(), Failure> {
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut screen = Screen { out: io::BufWriter::new(stdout), json: args.json, color, terminal, open: true };
    let filter = args.filter.as_deref();
    // Followed from here, so that nothing is missed in between.
    let mut newest = None;
    let (mut attempts, mut unknown, mut before) = (Vec::new(), 0, None);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    loop {
        let wanted = (limit - attempts.len()).clamp(1, MAX_LIMIT);
        let page = client.attempts(&Wanted { filter, limit: Some(wanted), before, after: None }).await?;
        newest = newest.or(Some(page.newest));
        before = page.next;
        unknown += page.unknown;
        attempts.extend(page.attempts);
        if before.is_none() || attempts.len() >= limit {
            break;
        }
    }
    attempts.truncate(limit);
    let older = before.is_some() && limit > 0;
    if older {
        say(&format!("older attempts are left out; --limit N shows more than the latest {limit}"));
    }
    if unknown > 0 {
        say(&format!(
            "of {unknown} attempts it is not known whether they match: bodies are not kept, and header fields of the latest alone"
        ));
    }
    screen.head();
    attempts.iter().rev().for_each(|attempt| screen.attempt(attempt));
    drop(attempts);
    screen.flush();
    if args.follow {
        follow(client.follow(filter, newest).await?, &mut screen).await?;
    }
    Ok(())
}

async fn follow(mut following: Following, screen: &mut Screen) -> Result<(), Failure> {
    let mut glances = tokio::time::interval(GLANCE);
    while screen.open {
        let told = tokio::select! {
            told = following.next() => told?,
            _ = glances.tick() => {
                screen.glance();
                continue;
            }
        };
        match told {
            Some(Told::Attempt(attempt)) => screen.attempt(&attempt),
            Some(Told::Skipped(skipped)) => screen.skipped(skipped),
            None => {
                screen.flush();
                if screen.terminal && screen.open {
                    say("the instance has ended");
                }
                return Ok(());
            }
        }
        if !following.is_behind() {
            screen.flush();
        }
    }
    Ok(())
}

impl Screen {
    fn line(&mut self, line: &str) {
        self.open = self.open && writeln!(self.out, "{line}").is_ok();
    }

    fn flush(&mut self) {
        self.open = self.open && self.out.flush().is_ok();
    }

    /// A pipe tells that its reader is gone without being written to.
    fn glance(&mut self) {
        let stdout = io::stdout();
        let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        if poll(&mut polled, PollTimeout::ZERO).is_ok() {
            let gone = polled[0].revents().unwrap_or(PollFlags::empty());
            self.open = self.open && !gone.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        }
    }

    fn width(&self) -> usize {
        // A pipe has no end.
        if self.terminal { columns(io::stdout()) } else { usize::MAX }
    }

    fn look(&self) -> Look {
        Look { width: self.width(), color: self.color }
    }

    fn head(&mut self) {
        if self.terminal && !self.json {
            let head = self.look().head();
            self.line(&head);
        }
    }

    fn attempt(&mut self, attempt: &AttemptEntry) {
        if self.json {
            let line = serde_json::to_string(attempt).unwrap_or_default();
            return self.line(&line);
        }
        let line = self.look().line(attempt);
        self.line(&line);
    }

    fn skipped(&mut self, skipped: u64) {
        let line = if self.json {
            format!("{{\"skipped\":{skipped}}}")
        } else {
            format!("... {skipped} attempts are not shown: they came faster than they were read")
        };
        self.line(&line);
    }
}

/// How lines are shown, also those of a recording.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Columns; `usize::MAX` for no end.
    pub(super) width: usize,
    pub(super) color: bool,
}

impl Look {
    /// With so much of its width taken.
    pub(super) fn less(self, columns: usize) -> Self {
        let width = if self.width == usize::MAX { self.width } else { self.width.saturating_sub(columns) };
        Self { width, ..self }
    }

    pub(super) fn head(self) -> String {
        let head = Cells::head().line(self.width);
        if self.color { format!("\x1b[2m{head}\x1b[0m") } else { head }
    }

    pub(super) fn line(self, attempt: &AttemptEntry) -> String {
        Cells::of(attempt).painted(self.width, self.color.then(|| color(attempt)))
    }
}

/// The colour of an outcome.
fn color(attempt: &AttemptEntry) -> &'static str {
    match attempt.class.as_str() {
        "success" => "\x1b[32m",
        "throttled" => "\x1b[33m",
        "cancelled" => "\x1b[2m",
        _ => "\x1b[31m",
    }
}

/// What a line shows, safe for a terminal.
#[derive(Debug, PartialEq, Eq)]
struct Cells {
    time: String,
    pid: String,
    comm: String,
    what: String,
    number: String,
    status: String,
    took: String,
    waited: String,
}

/// Columns of all but what was asked for.
const COMM: usize = 9;
const NUMBER: usize = 5;
const STATUS: usize = 9;
const TOOK: usize = 7;
const WAITED: usize = 8;
/// The least that there is for what was asked for.
const LEAST: usize = 12;

impl Cells {
    fn head() -> Self {
        Self {
            time: "UTC".into(),
            pid: "PID".into(),
            comm: "COMMAND".into(),
            what: "OPERATION".into(),
            number: "TRY".into(),
            status: "STATUS".into(),
            took: "TOOK".into(),
            waited: "WAITED".into(),
        }
    }

    fn of(it: &AttemptEntry) -> Self {
        let what = match (&it.service, &it.operation) {
            (Some(service), Some(operation)) => format!("{service}.{operation}"),
            (None, Some(operation)) => operation.clone(),
            _ => format!("{} {}", it.method, it.url.strip_prefix("https://").unwrap_or(&it.url)),
        };
        let number = match it.max {
            Some(max) => format!("{}/{max}", it.attempt),
            None => it.attempt.to_string(),
        };
        let waited = it.waited_ms.map(|ms| format!("+{}", duration(ms))).unwrap_or_default();
        Self {
            // 2026-11-26T17:33:45.123Z
            time: it.time.get(11..19).unwrap_or_default().to_owned(),
            pid: it.pid.to_string(),
            comm: plain(&it.comm),
            what: plain(&what),
            number,
            status: plain(&status(it)),
            took: plain(&duration(it.took_ms)),
            waited: plain(&waited),
        }
    }

    fn line(&self, width: usize) -> String {
        self.painted(width, None)
    }

    /// Within so many columns; without any bound, what was asked for is told
    /// in full, at the line's end.
    fn painted(&self, width: usize, color: Option<&str>) -> String {
        let pid = self.pid.len().max(6);
        let others = 8 + 1 + pid + 1 + COMM + 1 + 1 + NUMBER + 1 + STATUS + 1 + TOOK + 1 + WAITED;
        let (paint, end) = color.map_or(("", ""), |color| (color, "\x1b[0m"));
        let retry = if color.is_some() && !self.waited.is_empty() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let start = format!(
            "{:8} {:>pid$} {}",
            self.time,
            self.pid,
            left(&self.comm, if width == usize::MAX { self.comm.width().max(COMM) } else { COMM })
        );
        let end = format!(
            "{}{}{} {paint}{}{end} {} {}",
            retry.0,
            right(&self.number, NUMBER),
            retry.1,
            left(&self.status, STATUS),
            right(&self.took, TOOK),
            right(&self.waited, WAITED),
        );
        if width == usize::MAX {
            return format!("{start} {end} {}", self.what);
        }
        let room = width.saturating_sub(others).max(LEAST);
        format!("{start} {} {end}", left(&self.what, room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AttemptEntry {
        AttemptEntry {
            id: 1,
            time: "2026-11-26T17:33:45.123Z".into(),
            took_ms: 120.0,
            pid: 4242,
            comm: "python3".into(),
            attempt: 2,
            max: Some(5),
            waited_ms: Some(1_204.0),
            service: Some("s3".into()),
            operation: Some("PutObject".into()),
            method: "PUT".into(),
            url: "https://s3.eu-west-1.amazonaws.com/bucket/key".into(),
            status: Some(200),
            told: Some(429),
            rule: Some("twice".into()),
            class: "throttled".into(),
            ..AttemptEntry::default()
        }
    }

    #[test]
    fn a_line_at_80_columns() {
        let line = Cells::of(&entry()).line(80);
        assert_eq!(line, "17:33:45   4242 python3   s3.PutObject            2/5 200→429    120 ms  +1.20 s");
        assert_eq!(line.width(), 80);
        assert_eq!(Cells::head().line(80).width(), 80);
    }

    #[test]
    fn without_a_name_method_and_url() {
        let it = AttemptEntry { service: None, operation: None, ..entry() };
        let line = Cells::of(&it).line(usize::MAX);
        assert!(line.ends_with(" PUT s3.eu-west-1.amazonaws.com/bucket/key"), "{line}");
        assert_eq!(Cells::of(&it).line(120).width(), 120);
    }

    #[test]
    fn outcomes() {
        let shown = |change: fn(&mut AttemptEntry)| {
            let mut it = AttemptEntry { rule: None, told: Some(200), ..entry() };
            change(&mut it);
            status(&it)
        };
        assert_eq!(shown(|_| ()), "200");
        assert_eq!(shown(|it| (it.status, it.failure) = (None, Some("reset".into()))), "reset");
        assert_eq!(shown(|it| it.failure = Some("closed".into())), "200 closed");
        assert_eq!(shown(|it| (it.status, it.rule, it.told) = (None, Some("r".into()), Some(503))), "-→503");
        assert_eq!(
            shown(|it| (it.rule, it.abort, it.told) = (Some("r".into()), Some("reset".into()), None)),
            "200→reset"
        );
        assert_eq!(shown(|it| it.rule = Some("r".into())), "200");
    }

    #[test]
    fn nothing_drives_the_terminal() {
        let odd = "a\x1b]0;x\x07\u{9b}2J\r\n\u{202e}\u{fffd}日本語".repeat(20);
        let it = AttemptEntry {
            comm: odd.clone(),
            service: None,
            operation: None,
            method: odd.clone(),
            url: format!("https://{odd}"),
            abort: Some(odd),
            ..entry()
        };
        for width in [40, 80, 81, 200, usize::MAX] {
            let line = Cells::of(&it).line(width);
            assert!(!line.contains(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
            assert!(width < 80 || width == usize::MAX || line.width() == width, "{width}: {line}");
        }
    }

    #[test]
    fn colour_takes_no_room() {
        let painted = Cells::of(&entry()).painted(80, Some("\x1b[33m"));
        let bare = painted.replace("\x1b[33m", "").replace("\x1b[1m", "").replace("\x1b[0m", "");
        assert_eq!(bare, Cells::of(&entry()).line(80));
        assert!(painted.contains("\x1b[33m200→429"), "{painted}");
    }
}
