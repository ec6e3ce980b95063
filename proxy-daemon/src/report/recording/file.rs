//! A recording's file: readable at any time, also after a kill.
//!
//! In: entries, each a line. Out: a file that ends as its form has it after
//! every write. HAR's end is written anew behind the entries, in one write
//! with them. A kill can tear a write in two, between pages; what is torn is
//! then cut off down to the last whole entry, and the end written again.
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use serde::{Serialize, de::IgnoredAny};

use crate::{
    flow::record::{Form, Place, behind},
    report::events::{Start, VERSION},
};

/// The end is looked for within so many bytes first.
const WINDOW: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it is there already; add to it with --save-append, or choose another")]
    Exists,
    #[error("it is a symbolic link; name the file itself")]
    Link,
    #[error("it is no file; name one on a disk")]
    NoFile,
    #[error("another retryscope is recording to it; choose another")]
    Busy,
    #[error("what is in it was not recorded by retryscope; choose another")]
    Foreign,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens the file for this process alone: a new one, readable by its owner
/// alone; or one of ours that is added to.
pub fn open(path: &Path, form: Form, append: bool) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    let opened = match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && append => options.open(path),
        opened => opened,
    };
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EEXIST) if path.is_symlink() => OpenError::Link,
        Some(nix::libc::EEXIST) => OpenError::Exists,
        Some(nix::libc::ELOOP) => OpenError::Link,
        Some(nix::libc::ENXIO) => OpenError::NoFile,
        _ => OpenError::Io(error),
    })?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(OpenError::NoFile);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Busy),
        Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
    }
    if about.size() > 0 {
        let start = form.start();
        let mut found = vec![0; start.len()];
        let whole = file.read_exact_at(&mut found, 0);
        if whole.is_err() || found != start.as_bytes() {
            return Err(OpenError::Foreign);
        }
    }
    Ok(file)
}

/// Mends what a kill has torn. False where there was nothing to mend, or
/// somebody else has the file.
pub fn mend(path: &Path) -> io::Result<bool> {
    let Some(form) = Form::of(path) else { return Ok(false) };
    match open(path, form, true) {
        Ok(file) => mend_file(&file, form),
        Err(OpenError::Io(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

fn mend_file(file: &File, form: Form) -> io::Result<bool> {
    let Some(Place { at, .. }) = place(file, form)? else {
        // Not even its beginning was written.
        file.set_len(0)?;
        return Ok(true);
    };
    let length = file.metadata()?.len();
    let mut rest = vec![0; usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut rest, at)?;
    let whole = match form {
        Form::Har => {
            let document = [br#"{"log":{"entries":[0"#, rest.as_slice()].concat();
            serde_json::from_slice::<IgnoredAny>(&document).is_ok()
        }
        Form::Jsonl => rest.is_empty(),
    };
    if whole {
        return Ok(false);
    }
    if form == Form::Har {
        let end = har_end(&End { attempts: None, dropped: None, complete: false });
        file.write_all_at(&end, at)?;
        file.set_len(at + end.len() as u64)?;
    } else {
        file.set_len(at)?;
    }
    Ok(true)
}

/// Behind the last whole entry. `None`: the file has no beginning.
fn place(file: &File, form: Form) -> io::Result<Option<Place>> {
    let length = file.metadata()?.len();
    let mut window = WINDOW;
    loop {
        let from = length.saturating_sub(window);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, from)?;
        if let Some(found) = behind(&bytes, form, from == 0) {
            return Ok(Some(Place { at: from + found.at, ..found }));
        }
        if from == 0 {
            return Ok(None);
        }
        window = window.saturating_mul(4);
    }
}

/// What the file says of itself at its end.
#[derive(Debug, Serialize)]
struct End {
    /// Of the last instance that has recorded to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    /// The instance has ended in order.
    complete: bool,
}

fn har_end(end: &End) -> Vec<u8> {
    format!("\n],\"_end\":{}}}}}\n", serde_json::to_string(end).unwrap_or_default()).into_bytes()
}

/// A file that is written to.
#[derive(Debug)]
pub(super) struct Out {
    file: File,
    form: Form,
    place: Place,
    attempts: u64,
}

impl Out {
    pub(super) fn begin(file: File, form: Form, start: &Start) -> io::Result<Self> {
        if file.metadata()?.len() > 0 {
            mend_file(&file, form)?;
        }
        let start = serde_json::to_string(start)?;
        let known = place(&file, form)?;
        let head = match (form, known) {
            (Form::Har, Some(_)) => String::new(),
            (Form::Har, None) => {
                let version = env!("CARGO_PKG_VERSION");
                format!("{},\"version\":\"{version}\"}},\"_start\":{start},\"entries\":[", form.start())
            }
            (Form::Jsonl, _) => format!("{start}\n"),
        };
        let place = known.unwrap_or(Place { at: 0, empty: true });
        let mut out = Self { file, form, place, attempts: 0 };
        out.write(head.as_bytes(), 0, 0)?;
        Ok(out)
    }

    /// Adds an entry to what is written next.
    pub(super) fn entry(&mut self, batch: &mut Vec<u8>, line: &str) {
        match self.form {
            Form::Har => {
                batch.extend_from_slice(if self.place.empty { b"\n" } else { b"\n," });
                batch.extend_from_slice(line.as_bytes());
            }
            Form::Jsonl => {
                batch.extend_from_slice(line.as_bytes());
                batch.push(b'\n');
            }
        }
        self.place.empty = false;
    }

    /// Entries, and the end behind them. Where they do not fit, the file stays
    /// as it was.
    pub(super) fn write(&mut self, batch: &[u8], attempts: u64, dropped: u64) -> io::Result<()> {
        let end = |attempts| End { attempts: Some(attempts), dropped: Some(dropped), complete: false };
        self.put(batch, &end(self.attempts + attempts)).inspect_err(|_| {
            let end = if self.form == Form::Har { har_end(&end(self.attempts)) } else { Vec::new() };
            // These bytes have their place on the disk already.
            let mended = self.file.write_all_at(&end, self.place.at);
            let _ = mended.and_then(|()| self.file.set_len(self.place.at + end.len() as u64));
        })?;
        self.attempts += attempts;
        self.place.at += batch.len() as u64;
        Ok(())
    }

    fn put(&self, batch: &[u8], end: &End) -> io::Result<()> {
        match self.form {
            Form::Har => self.file.write_all_at(&[batch, &har_end(end)].concat(), self.place.at),
            Form::Jsonl => self.file.write_all_at(batch, self.place.at),
        }
    }

    /// The instance has ended in order.
    pub(super) fn finish(&mut self, dropped: u64) -> io::Result<()> {
        let end = End { attempts: Some(self.attempts), dropped: Some(dropped), complete: true };
        match self.form {
            Form::Har => {
                self.put(&[], &end)?;
                self.file.set_len(self.place.at + har_end(&end).len() as u64)
            }
            Form::Jsonl => {
                #[derive(Serialize)]
                struct Line<'a> {
                    v: u32,
                    r#type: &'static str,
                    #[serde(flatten)]
                    end: &'a End,
                }
                let mut line = serde_json::to_vec(&Line { v: VERSION, r#type: "end", end: &end })?;
                line.push(b'\n');
                self.write(&line, 0, dropped)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn start() -> Start {
        Start::new(std::time::SystemTime::UNIX_EPOCH, 1, &[443], "a test")
    }

    fn entry(number: usize) -> String {
        format!(r#"{{"startedDateTime":"2026-01-01T00:00:00Z","number":{number},"text":"a,\n{{]"}}"#)
    }

    fn numbers(text: &str) -> Vec<u64> {
        let har: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let entries = har["log"]["entries"].as_array().expect("entries");
        entries.iter().map(|entry| entry["number"].as_u64().expect("a number")).collect()
    }

    /// Two entries in a first write, two in a second; then a whole file.
    fn recorded(path: &Path, form: Form) -> [Vec<u8>; 2] {
        let mut out = Out::begin(open(path, form, false).expect("opened"), form, &start()).expect("begun");
        let mut states = Vec::new();
        for first in [1, 3] {
            let mut batch = Vec::new();
            out.entry(&mut batch, &entry(first));
            out.entry(&mut batch, &entry(first + 1));
            out.write(&batch, 2, 0).expect("written");
            states.push(std::fs::read(path).expect("read"));
        }
        out.finish(0).expect("finished");
        states.try_into().expect("two")
    }

    #[test]
    fn a_har_file_that_is_torn_anywhere_is_mended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.har");
        let [before, after] = recorded(&path, Form::Har);
        assert_eq!(numbers(&String::from_utf8_lossy(&before)), [1, 2]);
        assert_eq!(numbers(&std::fs::read_to_string(&path).expect("read")), [1, 2, 3, 4]);
        let same = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
        let torn = folder.path().join("torn.har");
        for written in same..=after.len() {
            // What the second write had put there, over what was there before.
            let rest = before.get(written..).unwrap_or_default();
            std::fs::write(&torn, [&after[..written], rest].concat()).expect("written");
            mend(&torn).expect("mended");
            let found = numbers(&std::fs::read_to_string(&torn).expect("read"));
            assert!([&[1, 2][..], &[1, 2, 3], &[1, 2, 3, 4]].contains(&&*found), "{written}: {found:?}");
        }
        // And of the very first ones.
        for written in Form::Har.start().len()..before.len() {
            std::fs::write(&torn, &before[..written]).expect("written");
            mend(&torn).expect("mended");
            let text = std::fs::read_to_string(&torn).expect("read");
            assert!(text.is_empty() || numbers(&text).len() <= 2, "{written}: {text}");
        }
    }

    #[test]
    fn lines_that_are_torn_are_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.jsonl");
        let [before, after] = recorded(&path, Form::Jsonl);
        let torn = folder.path().join("torn.jsonl");
        for written in before.len()..=after.len() {
            std::fs::write(&torn, &after[..written]).expect("written");
            mend(&torn).expect("mended");
            let text = std::fs::read_to_string(&torn).expect("read");
            assert!(text.ends_with('\n') && text.lines().count() >= 3);
            assert!(text.lines().all(|line| serde_json::from_str::<IgnoredAny>(line).is_ok()), "{text}");
        }
    }

    #[test]
    fn a_recording_is_added_to() {
        let folder = tempfile::tempdir().expect("a folder");
        for form in [Form::Har, Form::Jsonl] {
            let path = folder.path().join(if form == Form::Har { "a.har" } else { "a.jsonl" });
            recorded(&path, form);
            assert!(matches!(open(&path, form, false), Err(OpenError::Exists)));
            // As a kill may leave it.
            File::options().append(true).open(&path).expect("opened").write_all(b"\n,{\"star").expect("torn");
            let file = open(&path, form, true).expect("opened");
            assert!(matches!(open(&path, form, true), Err(OpenError::Busy)));
            let mut out = Out::begin(file, form, &start()).expect("begun");
            let mut batch = Vec::new();
            out.entry(&mut batch, &entry(5));
            out.write(&batch, 1, 0).expect("written");
            drop(out);
            let text = std::fs::read_to_string(&path).expect("read");
            match form {
                Form::Har => assert_eq!(numbers(&text), [1, 2, 3, 4, 5]),
                Form::Jsonl => assert_eq!(text.lines().filter(|line| line.contains("startedDateTime")).count(), 5),
            }
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.har");
        std::fs::write(&path, r#"{"log":{"version":"1.2","creator":{"name":"a browser"}}}"#).expect("written");
        assert!(matches!(open(&path, Form::Har, true), Err(OpenError::Foreign)));
        assert!(!mend(&path).expect("looked at"));
        let link = folder.path().join("link.har");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        for append in [false, true] {
            assert!(matches!(open(&link, Form::Har, append), Err(OpenError::Link)));
        }
        let pipe = folder.path().join("pipe.har");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(matches!(open(&pipe, Form::Har, true), Err(OpenError::NoFile)));
        assert!(matches!(open(folder.path(), Form::Har, true), Err(OpenError::Io(_) | OpenError::NoFile)));
        assert_eq!(Form::of(Path::new("a/b.HAR")), Some(Form::Har));
        assert_eq!(Form::of(Path::new("a/har")), None);
    }
}
