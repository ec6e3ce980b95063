//! `--save`: a recording of every attempt, opened before anything starts.
use std::{os::unix::fs::fchown, path::PathBuf};

use super::Failure;
use crate::report::recording::{self, BODIES, Form, MAX_BODIES, OpenError};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Save {
    /// Record every attempt to this file: HAR if it ends in .har, JSON lines if it ends in .jsonl
    ///
    /// Credentials are left out: what authorises a request, cookies, tokens,
    /// signatures in URLs. `retryscope show` and `replay` read it.
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,

    /// Record bodies as well, up to so many bytes of each (as in 4096, 64k, 1m)
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, require_equals = true, default_missing_value = "64k", value_parser = size, requires = "save")]
    save_bodies: Option<usize>,

    /// Record credentials as they are; whoever can read the file can use them
    #[arg(long, requires = "save")]
    save_secrets: bool,

    /// Add to a recording that is there already
    #[arg(long, requires = "save")]
    save_append: bool,
}

/// A number of bytes, as people write it.
fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("write a number of bytes up to {MAX_BODIES}, as in 4096, {}k or 1m", BODIES >> 10);
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches("ib").trim_end_matches(['k', 'm']);
    let shift = match &lower[digits.len()..] {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        _ => return Err(wrong()),
    };
    let number: usize = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes <= MAX_BODIES).ok_or_else(wrong)
}

impl Save {
    /// Opens the file, owned by `owner` (uid, gid) if it is new.
    pub(super) fn open(&self, owner: Option<(u32, u32)>) -> Result<Option<recording::Settings>, Failure> {
        let Some(path) = &self.save else { return Ok(None) };
        let settings = open(path, self.save_append, owner)?;
        Ok(Some(recording::Settings { secrets: self.save_secrets, bodies: self.save_bodies, ..settings }))
    }

    /// What is to be mended should this process be killed.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.save.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    }
}

/// A recording without bodies and credentials.
pub(super) fn open(
    path: &std::path::Path,
    append: bool,
    owner: Option<(u32, u32)>,
) -> Result<recording::Settings, Failure> {
    let shown = path.display();
    let form = Form::of(path).ok_or_else(|| {
        Failure::usage(format!("what form {shown} is to have cannot be told; name it FILE.har or FILE.jsonl"))
    })?;
    let new = !path.exists();
    let file = recording::open(path, form, append).map_err(|error| match error {
        OpenError::Io(error) => Failure::new(73, format!("cannot record to {shown} ({error}); choose another --save")),
        error => Failure::new(73, format!("cannot record to {shown}: {error}")),
    })?;
    if let Some((uid, gid)) = owner.filter(|_| new) {
        // On file systems without owners it stays root's.
        let _ = fchown(&file, Some(uid), Some(gid));
    }
    Ok(recording::Settings { file, path: path.to_owned(), form, secrets: false, bodies: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_people_write_them() {
        assert_eq!((size("4096"), size("64k"), size("1MiB")), (Ok(4096), Ok(65_536), Ok(1 << 20)));
        for wrong in ["", "k", "2m", "1g", "-1", "99999999999999999999", "64kb"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
