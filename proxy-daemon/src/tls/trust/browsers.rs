//! Chromium and Chrome, which trust neither the system's bundle nor any
//! variable, but the certificates that the machine's administrator gives them
//! by policy (`CACertificates`, since version 133).
//!
//! Out: a copy of the folder that their policies are in, with one more policy,
//! to be laid over that folder. Where there is no such folder, there is
//! nothing to lay it over, and the browser stays as it is.
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Bind, TlsError, Work, files, write};

/// Where a browser's policies are, which folder has to be there for that, and
/// what tells that the browser is.
const BROWSERS: [(&str, &str, &[&str]); 2] = [
    ("/etc/chromium", "policies/managed", &["/usr/bin/chromium", "/usr/lib/chromium/chromium"]),
    // The browser's package brings no folder of its own.
    ("/etc/opt", "chrome/policies/managed", &["/opt/google/chrome/chrome"]),
];

const POLICY: &str = "CACertificates";

/// What a folder of settings may hold; past it, it is left alone.
const MAX_FILES: usize = 256;
const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 6;

/// The folders to lay over others.
pub(super) fn binds(work: &mut Work<'_>) -> Result<Vec<Bind>, TlsError> {
    let mut binds = Vec::new();
    for (folder, policies, programs) in BROWSERS {
        if programs.iter().any(|program| Path::new(program).exists()) {
            binds.extend(extended(work, Path::new(folder), policies)?);
        }
    }
    Ok(binds)
}

fn extended(work: &mut Work<'_>, original: &Path, policies: &str) -> Result<Option<Bind>, TlsError> {
    let Ok(target) = original.canonicalize() else { return Ok(None) };
    let copy = work.input.folder.join(format!("policies-{}", work.copies.len() + work.binds.len()));
    let failed = |path: &Path, source| TlsError::Write { path: path.into(), source };
    let mut left = Left { files: MAX_FILES, bytes: MAX_BYTES };
    // One of an earlier run of ours.
    let _ = fs::remove_dir_all(&copy);
    if let Err(error) = left.copy(&target, &copy, MAX_DEPTH) {
        let _ = fs::remove_dir_all(&copy);
        work.notes.push(format!(
            "{} cannot be extended ({error}): a browser whose policies are there will not trust retryscope",
            target.display()
        ));
        return Ok(None);
    }
    let policies = copy.join(policies);
    fs::create_dir_all(&policies).map_err(|error| failed(&policies, error))?;
    for folder in policies.ancestors().take_while(|folder| folder.starts_with(&copy)) {
        // Whatever the caller's mask of new files.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(|error| failed(folder, error))?;
    }
    let ours: Vec<Value> = pem::parse_many(&work.ours)
        .unwrap_or_default()
        .iter()
        .map(|block| {
            use base64::Engine;
            Value::from(base64::engine::general_purpose::STANDARD.encode(block.contents()))
        })
        .collect();
    let mut told = false;
    for entry in fs::read_dir(&policies).into_iter().flatten().flatten() {
        told |= add(&entry.path(), &ours)?;
    }
    if !told {
        write(&policies.join("retryscope.json"), json!({POLICY: ours}).to_string().as_bytes())?;
    }
    Ok(Some(Bind { source: copy, target }))
}

/// Adds certificates to those that a file of policies gives; false if it gives
/// none. Of two files that give some, a browser would heed one alone.
fn add(path: &Path, ours: &[Value]) -> Result<bool, TlsError> {
    let bytes = files::read_bounded(path).unwrap_or_default();
    let Ok(mut policies) = serde_json::from_slice::<Value>(&bytes) else { return Ok(false) };
    let Some(Value::Array(given)) = policies.get_mut(POLICY) else { return Ok(false) };
    given.extend_from_slice(ours);
    write(path, policies.to_string().as_bytes())?;
    Ok(true)
}

/// What may still be copied.
struct Left {
    files: usize,
    bytes: u64,
}

impl Left {
    fn copy(&mut self, from: &Path, to: &Path, depth: usize) -> io::Result<()> {
        fs::create_dir(to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (about, path) = (entry.metadata()?, to.join(entry.file_name()));
            self.files = self.files.checked_sub(1).ok_or_else(|| io::Error::other("it has too many files"))?;
            if about.is_symlink() {
                symlink(absolute(from, fs::read_link(entry.path())?), path)?;
            } else if about.is_dir() {
                let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("its folders are too deep"))?;
                self.copy(&entry.path(), &path, depth)?;
            } else if about.is_file() {
                let bytes = files::read_bounded(&entry.path())?;
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.bytes = self.bytes.checked_sub(length).ok_or_else(|| io::Error::other("it is too large"))?;
                fs::write(&path, bytes)?;
                fs::set_permissions(&path, about.permissions())?;
            }
        }
        Ok(())
    }
}

/// Where a link leads that moves into the copy.
fn absolute(folder: &Path, link: PathBuf) -> PathBuf {
    folder.join(link)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::TrustInput, *};
    use crate::tls::Authority;

    fn work_in<'a>(input: &'a TrustInput<'a>) -> Work<'a> {
        Work::start(input).expect("a start")
    }

    fn policies(bind: &Bind, file: &str) -> Value {
        let text = fs::read_to_string(bind.source.join("policies/managed").join(file)).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn policy_is_added_and_nothing_lost() {
        let place = tempfile::tempdir().expect("a folder");
        let (etc, plan) = (place.path().join("etc"), place.path().join("plan"));
        fs::create_dir_all(etc.join("sub")).expect("made");
        fs::create_dir(&plan).expect("made");
        fs::write(etc.join("sub/preferences"), "kept").expect("written");
        symlink("sub/preferences", etc.join("link")).expect("linked");
        let authority = Authority::in_memory().expect("an authority");
        let environment = BTreeMap::new();
        let input = TrustInput {
            authority_pem: authority.certificate_pem(),
            folder: &plan,
            argv: &[],
            environment: &environment,
            mount: true,
            cwd: place.path(),
        };
        let bind = extended(&mut work_in(&input), &etc, "policies/managed").expect("written").expect("a folder");
        assert_eq!(bind.target, etc.canonicalize().expect("a path"));
        for name in ["sub/preferences", "link"] {
            assert_eq!(fs::read_to_string(bind.source.join(name)).expect("copied"), "kept", "{name}");
        }
        let ours = policies(&bind, "retryscope.json")[POLICY].clone();
        assert_eq!(ours.as_array().map(Vec::len), Some(1));

        // One that gives certificates already is extended.
        fs::create_dir_all(etc.join("policies/managed")).expect("made");
        let theirs = r#"{"CACertificates": ["theirs"], "HomepageLocation": "x"}"#;
        fs::write(etc.join("policies/managed/a.json"), theirs).expect("written");
        let bind = extended(&mut work_in(&input), &etc, "policies/managed").expect("written").expect("a folder");
        let found = policies(&bind, "a.json");
        assert_eq!((&found[POLICY][0], &found["HomepageLocation"]), (&"theirs".into(), &"x".into()));
        assert_eq!(found[POLICY][1], ours[0]);
        assert!(!bind.source.join("policies/managed/retryscope.json").exists());

        fs::write(etc.join("large"), vec![0; 2 << 20]).expect("written");
        let mut work = work_in(&input);
        assert_eq!(extended(&mut work, &etc, "policies/managed").expect("no failure"), None);
        assert!(work.notes.iter().any(|note| note.contains("too large")), "{:?}", work.notes);
        assert_eq!(extended(&mut work, &etc.join("nothing"), "policies/managed").expect("no failure"), None);
    }
}
