//! Recordings: every attempt in a file, with heads, and bodies where they are
//! asked for (`--save FILE`).
//!
//! In: the feed. Out: a HAR 1.2 file, or JSONL. A thread of its own writes;
//! it may be behind by so many attempts, and what there was no room for is
//! counted in the file. Invariants: what is in the file can be read at any
//! time, by any reader of its form: each write carries the form's end with
//! it, and one that is torn by a kill is mended ([`mend`]). Credentials are
//! replaced, unless they are asked for.
mod entry;
mod file;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

pub use file::{OpenError, mend, open};

pub use crate::flow::record::Form;

use self::{
    entry::{Commands, Style, line},
    file::Out,
};
use super::events::{Start, Written};
use crate::{
    flow::{Clock, secrets},
    proxy::{Account, Subscription},
};

/// How far the file may be behind, in attempts.
pub const ROOM: usize = 16_384;
/// What is written at once, in bytes, while more is waiting.
const BATCH: usize = 256 * 1024;
/// What is kept of a body unless told otherwise, in bytes.
pub const BODIES: usize = 64 * 1024;
/// The most that can be asked for.
pub const MAX_BODIES: usize = 1 << 20;

/// What is recorded, and where.
#[derive(Debug)]
pub struct Settings {
    /// Opened by [`open`].
    pub file: File,
    pub path: PathBuf,
    pub form: Form,
    /// Credentials stay as they are.
    pub secrets: bool,
    /// The most that is kept of a body; none where there is nothing.
    pub bodies: Option<usize>,
}

/// Writes all that comes, until the feed is closed, or the file takes no more.
pub fn write(
    settings: Settings,
    mut start: Start,
    feed: Subscription,
    account: Arc<Account>,
) -> io::Result<JoinHandle<Written>> {
    if !settings.secrets {
        start.target = secrets::command(&start.target);
    }
    let out = Out::begin(settings.file, settings.form, &start)?;
    let mut instance = [0; 8];
    aws_lc_rs::rand::fill(&mut instance).map_err(io::Error::other)?;
    let instance = format!("{:016x}", u64::from_ne_bytes(instance));
    let style = Style { form: settings.form, secrets: settings.secrets, instance };
    let path = settings.path;
    std::thread::Builder::new().name("recording".into()).spawn(move || {
        let clock = account.clock;
        let written = run(out, &style, feed, &clock);
        if let Some(capture) = &account.capture {
            capture.stop();
        }
        if let Some(error) = &written.error {
            tracing::warn!("{}", stopped(&path, error));
        }
        written
    })
}

/// Why a file takes no more.
pub fn stopped(path: &Path, error: &io::Error) -> String {
    format!(
        "the recording {} has ended before its time ({error}); what is in it can be read, and the target goes on",
        path.display()
    )
}

fn run(mut out: Out, style: &Style, mut feed: Subscription, clock: &Clock) -> Written {
    let mut written = Written::default();
    let mut batch = Vec::new();
    let mut commands = Commands::default();
    let mut waiting = 0;
    loop {
        let next = match feed.try_next() {
            Some(attempt) => Some(attempt),
            // What is there is written at once when nothing more is to come
            // for now.
            None if waiting > 0 => None,
            None => match feed.wait() {
                Some(attempt) => Some(attempt),
                None => break,
            },
        };
        if let Some(attempt) = &next {
            out.entry(&mut batch, &line(attempt, clock, style, &mut commands));
            waiting += 1;
        }
        if waiting > 0 && (next.is_none() || batch.len() >= BATCH) {
            if let Err(error) = out.write(&batch, waiting, feed.dropped()) {
                written.error = Some(error);
                break;
            }
            written.attempts += waiting;
            waiting = 0;
            batch.clear();
        }
    }
    written.dropped = feed.dropped();
    if written.error.is_none() {
        written.error = out.finish(written.dropped).err();
    }
    written
}
