//! Where the report goes: standard error, or a file that is opened before
//! anything starts, so that a wrong path costs nothing.
use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, fchown},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    Failure,
    options::{Form, Options, told},
    run::say,
};
use crate::{
    daemon::Finished,
    report::{
        self, Meta, Report, Timeline,
        assert::{Assertion, Verdict},
    },
};

pub(super) const DEFAULT_WIDTH: usize = 80;

#[derive(Debug)]
pub(super) enum Output {
    Stderr,
    File(File, PathBuf),
}

impl Output {
    /// Opens the file, owned by `owner` (uid, gid) if it is new.
    pub(super) fn open(path: Option<&Path>, owner: Option<(u32, u32)>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Output::Stderr) };
        let new = !path.exists();
        // Not emptied before there is something to write; and a pipe that
        // nobody reads is an error, not a wait.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .and_then(|file| {
                fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
                Ok(file)
            })
            .map_err(|error| {
                let remedy = "choose another --report-file";
                Failure::new(73, format!("cannot write the report to {} ({error}); {remedy}", path.display()))
            })?;
        if let Some((uid, gid)) = owner.filter(|_| new) {
            // On file systems without owners it stays root's.
            let _ = fchown(&file, Some(uid), Some(gid));
        }
        Ok(Output::File(file, path.to_owned()))
    }

    /// Writes the report; to standard error where the file cannot take it.
    pub(super) fn write(self, report: &Report, timeline: Option<&Timeline>, options: &Options) {
        let mut form = options.report;
        if let Output::File(mut file, path) = self {
            let text = form.render(report, timeline, DEFAULT_WIDTH, false);
            // What cannot be emptied (a pipe, a device) holds nothing older.
            let _ = file.set_len(0);
            match file.write_all(text.as_bytes()).and_then(|()| file.flush()) {
                Ok(()) => return,
                Err(error) => say(&format!("cannot write the report to {} ({error}); here it is:", path.display())),
            }
            // A page is nothing to read on a terminal.
            if form == Form::Html {
                form = Form::Text;
            }
        }
        let mut stderr = io::stderr().lock();
        let color = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let text = form.render(report, timeline, width(), color);
        // A reader that has gone away has decided not to read it.
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

/// What a run exits with that does not hold to what was asserted of it.
pub(super) const ASSERTION_FAILED: u8 = 3;

/// Where the assertions' results go as XML; opened before anything starts.
pub(super) fn open_junit(options: &Options, owner: Option<(u32, u32)>) -> Result<Option<File>, Failure> {
    open_for("--junit", options.junit.as_deref(), owner)
}

/// Where every attempt goes; emptied, since it is followed from its start.
pub(super) fn open_events(options: &Options, owner: Option<(u32, u32)>) -> Result<Option<File>, Failure> {
    let file = open_for("--events", options.events.as_deref(), owner)?;
    if let Some(file) = &file {
        // A pipe or a device holds nothing older.
        let _ = file.set_len(0);
    }
    Ok(file)
}

fn open_for(option: &str, path: Option<&Path>, owner: Option<(u32, u32)>) -> Result<Option<File>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let output = Output::open(Some(path), owner).map_err(|failure| {
        let message = failure.message.replace("the report ", "").replace("--report-file", &format!("{option} file"));
        Failure::new(failure.code, message)
    })?;
    Ok(match output {
        Output::File(file, _) => Some(file),
        Output::Stderr => None,
    })
}

/// Holds the run to what was asserted of it; true if all of it holds.
pub(super) fn hold(assertions: &[Assertion], finished: &Finished, name: &str, junit: Option<File>) -> Vec<Verdict> {
    let verdicts: Vec<_> = assertions.iter().map(|assertion| assertion.check(&finished.snapshot)).collect();
    if let Some(mut file) = junit {
        let took = finished.ended.duration_since(finished.started).unwrap_or_default();
        let written = report::assert::junit(&verdicts, name, took).map_err(io::Error::other).and_then(|xml| {
            let _ = file.set_len(0);
            file.write_all(xml.as_bytes())
        });
        if let Err(error) = written {
            say(&format!("cannot write the assertions' results ({error})"));
        }
    }
    verdicts
}

/// The report of a finished instance.
pub(super) fn report_of(
    options: &Options,
    finished: Finished,
    assertions: Vec<Verdict>,
    command: Option<String>,
    mut notes: Vec<String>,
) -> Report {
    notes.extend(told(&finished.way));
    notes.extend(finished.redirect.sentences());
    let mut differences = report::differences(&finished.redirect, finished.hurried);
    differences.extend(finished.answered.iter().flat_map(report::from_recording));
    notes.extend(rule_notes(&finished));
    if let Some(events) = &finished.events {
        if let Some(error) = &events.error {
            notes.push(format!("The file of --events is not complete: {error}."));
        }
        if events.dropped > 0 {
            notes.push(format!("The disk was too slow for --events: {} attempts are not in the file.", events.dropped));
        }
    }
    if let (Some(recording), Some(path)) = (&finished.recording, options.save.path()) {
        notes.extend(recording.error.as_ref().map(|error| {
            let mut sentence = report::recording::stopped(&path, error);
            sentence.replace_range(..1, "T");
            format!("{sentence}.")
        }));
        if recording.dropped > 0 {
            notes
                .push(format!("The disk was too slow for --save: {} attempts are not in the file.", recording.dropped));
        }
    }
    let mut redirect = serde_json::to_value(finished.redirect).unwrap_or_default();
    if let (Some(redirect), Ok(serde_json::Value::Object(proxy))) =
        (redirect.as_object_mut(), serde_json::to_value(finished.proxy))
    {
        redirect.extend(proxy);
        redirect.insert("way".into(), finished.way.name.into());
    }
    report::build(
        &finished.snapshot,
        &Meta {
            seed: finished.guard.seed,
            started: finished.started,
            ended: finished.ended,
            command,
            ports: options.ports(),
            rules: finished.rules.into_iter().map(|rule| (rule.name.to_string(), rule.hits)).collect(),
            redirect,
            assertions,
            differences,
            notes,
        },
    )
}

/// What there is to say of the rules besides their hits.
fn rule_notes(finished: &Finished) -> Vec<String> {
    let mut notes = Vec::new();
    if finished.guard.dry_run && !finished.rules.is_empty() {
        notes.push("A dry run: hits are what rules would have done; nothing was done.".into());
    }
    if let Some(why) = &finished.guard.stopped {
        notes.push(format!("Rules stopped acting: {why}."));
    }
    for rule in finished.rules.iter().filter(|rule| rule.failed > 0) {
        notes.push(format!(
            "Rule \"{}\" could not act {} times: the body was no JSON, too long, too slow, or in an unknown coding.",
            rule.name, rule.failed
        ));
    }
    let forgotten = finished.guard.forgotten + finished.rules.iter().map(|rule| rule.forgotten).sum::<u64>();
    if forgotten > 0 {
        notes.push(format!(
            "Rules forgot {forgotten} calls or processes before their time, and may have acted on them anew."
        ));
    }
    notes
}

fn width() -> usize {
    columns(io::stderr())
}

/// Columns of the terminal behind a stream.
pub(super) fn columns(stream: impl AsFd) -> usize {
    rustix::termios::tcgetwinsize(stream)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns >= 40)
        .unwrap_or(DEFAULT_WIDTH)
}
