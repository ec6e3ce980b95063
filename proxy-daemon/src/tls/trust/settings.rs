//! Clients that no variable tells of a bundle, but of a file of settings in
//! which the bundle can be named: wget, apt, and PHP's curl.
//!
//! In: the target's environment. Out: such files, with the user's own settings
//! kept, and the variables that name them. They are for targets without mounts
//! of their own: with these, the clients trust by the bundle they read anyway.
use std::{
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{TlsError, Work, files, write};

/// The largest file of settings that is kept; a person's has some lines.
const MAX_SETTINGS: usize = 256 << 10;

/// Every variable with its value.
pub(super) fn variables(work: &mut Work<'_>) -> Result<Vec<(OsString, OsString)>, TlsError> {
    let mut set = Vec::new();
    set.extend(wget(work)?);
    set.extend(apt(work)?);
    set.push(php(work)?);
    Ok(set)
}

/// wget reads the file that `WGETRC` names in the place of `~/.wgetrc`. The
/// last of several settings counts.
fn wget(work: &mut Work<'_>) -> Result<Option<(OsString, OsString)>, TlsError> {
    let home = || work.input.environment.get(OsStr::new("HOME")).map(|home| Path::new(home).join(".wgetrc"));
    let path = named(work, "WGETRC").or_else(home);
    let Some(kept) = kept(work, path, "wget") else { return Ok(None) };
    let extended = match last(&kept, "ca_certificate") {
        Some(theirs) => work.extended(&theirs, "wget's settings name", "the system's roots stand in for it")?,
        None => None,
    };
    let bundle = extended.unwrap_or_else(|| work.bundle.clone());
    let path = settings(work, "wgetrc", &format!("{kept}ca_certificate = {}\n", bundle.display()))?;
    Ok(Some(("WGETRC".into(), path)))
}

/// apt reads the file that `APT_CONFIG` names, then the system's.
fn apt(work: &mut Work<'_>) -> Result<Option<(OsString, OsString)>, TlsError> {
    let path = named(work, "APT_CONFIG");
    let Some(kept) = kept(work, path, "apt") else { return Ok(None) };
    let text = format!("{kept}Acquire::https::CaInfo \"{}\";\n", work.bundle.display());
    let path = settings(work, "apt.conf", &text)?;
    Ok(Some(("APT_CONFIG".into(), path)))
}

/// PHP reads the `*.ini` files of the folders that `PHP_INI_SCAN_DIR` names;
/// an empty name stands for the folder built in.
fn php(work: &mut Work<'_>) -> Result<(OsString, OsString), TlsError> {
    let folder = work.input.folder.join("php");
    std::fs::create_dir_all(&folder).map_err(|source| TlsError::Write { path: folder.clone(), source })?;
    let bundle = work.bundle.display();
    settings(work, "php/retryscope.ini", &format!("curl.cainfo = \"{bundle}\"\nopenssl.cafile = \"{bundle}\"\n"))?;
    let mut value = work.input.environment.get(OsStr::new("PHP_INI_SCAN_DIR")).cloned().unwrap_or_default();
    value.push(":");
    value.push(folder);
    Ok(("PHP_INI_SCAN_DIR".into(), value))
}

/// The file that the user has named by a variable.
fn named(work: &Work<'_>, variable: &str) -> Option<PathBuf> {
    work.input.environment.get(OsStr::new(variable)).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The user's own settings, ending in a newline; empty where there are none.
/// `None`, and a note, where they must not be copied: what we write can be read
/// by everybody, and settings may hold passwords.
fn kept(work: &mut Work<'_>, path: Option<PathBuf>, client: &str) -> Option<String> {
    let Some(path) = path.map(|path| work.input.cwd.join(path)) else { return Some(String::new()) };
    let Ok(about) = path.metadata() else { return Some(String::new()) };
    let public = about.permissions().mode() & 0o004 != 0;
    let bytes = files::read_bounded(&path).ok().filter(|bytes| public && bytes.len() <= MAX_SETTINGS);
    let Some(bytes) = bytes else {
        work.notes.push(format!(
            "{client} will not trust retryscope: its settings in {} are not for everybody to read, so that they \
             are left alone",
            path.display()
        ));
        return None;
    };
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !text.is_empty() {
        text.push('\n');
    }
    Some(text)
}

/// The value of the last `name = value` in wget's settings, whose names are
/// in any case.
fn last(settings: &str, wanted: &str) -> Option<PathBuf> {
    settings
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .rfind(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))
        .map(|(_, value)| PathBuf::from(value.trim()))
}

fn settings(work: &Work<'_>, name: &str, text: &str) -> Result<OsString, TlsError> {
    let path = work.input.folder.join(name);
    write(&path, text.as_bytes())?;
    Ok(path.into_os_string())
}
