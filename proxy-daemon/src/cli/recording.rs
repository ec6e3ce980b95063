//! Recordings, read: `retryscope show`, and what `report`, `export` and
//! `replay` have in common with it.
use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use super::{Failure, flows, output::columns};
use crate::{
    flow::{
        filter::Filter,
        record::{self, Recorded, Recording},
    },
    history::AttemptEntry,
    report::recorded,
};

/// The largest recording that is read, in bytes.
const MAX_RECORDING: u64 = 1 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A recording: HAR, or JSON lines; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Only attempts that match, as in rules: '~svc s3 & ~c 503'
    #[arg(value_name = "FILTER")]
    filter: Option<String>,

    /// A line of JSON for each, as `retryscope flows --json` has them
    #[arg(long)]
    json: bool,

    /// One attempt in full, by its number
    #[arg(long, value_name = "N", conflicts_with_all = ["filter", "json"])]
    id: Option<u64>,
}

pub(super) fn show(args: &Args) -> Result<ExitCode, Failure> {
    let filter = filter(args.filter.as_deref())?;
    let recording = load(&args.file)?;
    let started = recording.started;
    if let Some(id) = args.id {
        let recorded = by_id(&recording, id)?;
        say(&recorded::full(id, recorded, started));
        return Ok(ExitCode::SUCCESS);
    }
    let terminal = io::stdout().is_terminal();
    let look = flows::Look {
        color: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        // A pipe has no end.
        width: if terminal { columns(io::stdout()) } else { usize::MAX },
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let head = (terminal && !args.json).then(|| format!("{:>5} {}", "ID", look.less(6).head()));
    let lines = matching(&recording, filter.as_ref()).map(|(id, recorded)| {
        let entry = AttemptEntry::recorded(id, &recorded.attempt, started.unwrap_or(SystemTime::UNIX_EPOCH));
        match args.json {
            true => serde_json::to_string(&entry).unwrap_or_default(),
            false => format!("{id:>5} {}", look.less(6).line(&entry)),
        }
    });
    for line in head.into_iter().chain(lines) {
        // A reader that has gone away has decided not to read it.
        if writeln!(out, "{line}").is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let _ = out.flush();
    if !args.json {
        for note in recorded::notes(&recording, &args.file.display().to_string()).iter().skip(1) {
            let _ = writeln!(io::stderr(), "{note}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// A filter, with its caret where it is wrong.
pub(super) fn filter(text: Option<&str>) -> Result<Option<Filter>, Failure> {
    let parse = |text: &str| Filter::parse(text).map_err(|error| Failure::usage(error.render(text).trim_end()));
    text.map(parse).transpose()
}

/// Attempts with their numbers, from 1.
pub(super) fn matching<'a>(
    recording: &'a Recording,
    filter: Option<&'a Filter>,
) -> impl Iterator<Item = (u64, &'a Recorded)> {
    let numbered = (1..).zip(&recording.attempts);
    numbered.filter(move |(_, recorded)| filter.is_none_or(|filter| filter.matches(&recorded.attempt)))
}

pub(super) fn by_id(recording: &Recording, id: u64) -> Result<&Recorded, Failure> {
    let found = id.checked_sub(1).and_then(|at| recording.attempts.get(usize::try_from(at).ok()?));
    found.ok_or_else(|| {
        let count = recording.attempts.len();
        Failure::usage(format!("there is no attempt {id} in the recording; it has {count}, from 1 on"))
    })
}

/// The bytes of a recording, or of what else a file may be.
pub(super) fn bytes(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let unreadable =
        |error: io::Error| Failure::usage(format!("cannot read the {what} {shown} ({error}); check the path"));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_RECORDING + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        File::open(path).and_then(|file| file.take(MAX_RECORDING + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    }
    if bytes.len() as u64 > MAX_RECORDING {
        return Err(Failure::usage(format!("the {what} {shown} is larger than {MAX_RECORDING} bytes; split it")));
    }
    Ok(bytes)
}

pub(super) fn load(path: &Path) -> Result<Recording, Failure> {
    parse(&bytes(path, "recording")?, path)
}

pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Recording, Failure> {
    record::load(bytes).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}
