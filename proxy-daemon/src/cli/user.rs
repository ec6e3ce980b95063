//! As whom a command runs, and with which environment: those of the person
//! who typed it, also behind sudo.
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User, getppid};

use super::Failure;
use crate::process::launch::{Credentials, credentials_of, is_program};

pub(super) type Environment = BTreeMap<OsString, OsString>;

/// Variables that sudo sets itself, and so hides the user's.
const SET_BY_SUDO: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "USERNAME", "SHELL", "MAIL", "TERM"];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whom the command runs as.
#[derive(Debug)]
pub(super) struct Who {
    /// `None`: as whoever we are.
    pub(super) credentials: Option<Credentials>,
    account: Option<User>,
    by_sudo: bool,
}

impl Who {
    /// `--user`, else the user who called sudo, else whoever we are.
    pub(super) fn find(asked: Option<&str>, environment: &Environment) -> Result<Self, Failure> {
        if let Some(asked) = asked {
            return Self::asked(asked);
        }
        let number = |name: &str| environment.get(OsStr::new(name))?.to_str()?.parse::<u32>().ok();
        let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID")) else {
            return Ok(Self { credentials: None, account: None, by_sudo: false });
        };
        let account = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let credentials = credentials_of(uid, gid, account.as_ref().map(|account| account.name.as_str()));
        Ok(Self { credentials: Some(credentials), account, by_sudo: true })
    }

    /// `NAME`, `UID`, or `UID:GID`.
    fn asked(text: &str) -> Result<Self, Failure> {
        let unknown =
            || Failure::usage(format!("--user '{text}' is no user of this system; give a name, a uid, or UID:GID"));
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group.parse::<u32>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        let account = match user.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(user),
        }
        .ok()
        .flatten();
        let credentials = match (&account, user.parse::<u32>(), group) {
            (Some(account), ..) => {
                credentials_of(account.uid.as_raw(), group.unwrap_or(account.gid.as_raw()), Some(&account.name))
            }
            // A uid without an account needs its group said.
            (None, Ok(uid), Some(gid)) => Credentials { uid, gid, groups: vec![gid] },
            _ => return Err(unknown()),
        };
        Ok(Self { credentials: Some(credentials), account, by_sudo: false })
    }

    /// The owner of what is made on the user's behalf.
    pub(super) fn owner(&self) -> Option<(u32, u32)> {
        self.credentials.as_ref().map(|credentials| (credentials.uid, credentials.gid))
    }

    /// The command's environment: ours, but behind sudo the one that the user
    /// typed the command in, with what was added on the way.
    pub(super) fn environment(&self, ours: &Environment) -> Environment {
        let mut environment = ours.clone();
        if self.by_sudo {
            if let Some(theirs) = behind_sudo() {
                environment = merged(ours, theirs.environment, &theirs.set);
            }
            environment.retain(|name, _| !name.as_bytes().starts_with(b"SUDO_"));
        }
        if let Some(account) = &self.account {
            let mut set = |name: &str, value: OsString, always: bool| {
                // What the user's own environment says stays; what root's
                // says is not the user's.
                let name = OsString::from(name);
                let roots = environment.get(&name).is_none_or(|known| known == "root" || known == "/root");
                if always || roots {
                    environment.insert(name, value);
                }
            };
            set("USER", account.name.clone().into(), true);
            set("LOGNAME", account.name.clone().into(), true);
            set("HOME", account.dir.clone().into(), !self.by_sudo);
        }
        environment
    }
}

/// What sudo was called with.
struct Sudo {
    environment: Environment,
    /// Variables that the line after `sudo` sets: `sudo X=1 …`, `sudo env X=1 …`.
    set: Vec<OsString>,
}

/// Finds sudo among our ancestors: our parent, or its parent where sudo gives
/// the command a terminal of its own or another program times it.
fn behind_sudo() -> Option<Sudo> {
    const BETWEEN: [&str; 3] = ["sudo", "timeout", "time"];
    let mut pid = getppid().as_raw();
    let mut found = None;
    for _ in 0..4 {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if !BETWEEN.contains(&name.trim_end()) {
            break;
        }
        if name.trim_end() == "sudo" {
            found = Some(pid);
        }
        pid = procfs::process::Process::new(pid).ok()?.stat().ok()?.ppid;
    }
    let environment = parse_environ(&fs::read(format!("/proc/{}/environ", found?)).ok()?)?;
    let ours = std::env::args_os().next()?;
    Some(Sudo { environment, set: set_by(&fs::read(format!("/proc/{}/cmdline", found?)).ok()?, ours.as_bytes()) })
}

/// The names that a command line sets before it comes to `program`.
fn set_by(command_line: &[u8], program: &[u8]) -> Vec<OsString> {
    command_line
        .split(|&byte| byte == 0)
        .take_while(|word| *word != program)
        .filter_map(|word| {
            let name = word.split(|&byte| byte == b'=').next().filter(|name| name.len() < word.len())?;
            let valid = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') && !name.is_empty();
            valid.then(|| OsString::from_vec(name.to_vec()))
        })
        .collect()
}

/// `NAME=value` texts, each ended by a zero byte.
fn parse_environ(bytes: &[u8]) -> Option<Environment> {
    let environment: Environment = bytes
        .split(|&byte| byte == 0)
        .filter_map(|text| {
            let at = text.iter().position(|&byte| byte == b'=')?;
            Some((OsString::from_vec(text[..at].to_vec()), OsString::from_vec(text[at + 1..].to_vec())))
        })
        .collect();
    (!environment.is_empty()).then_some(environment)
}

/// The user's environment, with what sudo let through or was told to set.
fn merged(ours: &Environment, mut theirs: Environment, set: &[OsString]) -> Environment {
    for (name, value) in ours {
        if set.contains(name) || !SET_BY_SUDO.iter().any(|own| name == own) {
            theirs.insert(name.clone(), value.clone());
        }
    }
    theirs
}

/// The file that a command names, as a shell finds it.
pub(super) fn find_program(name: &OsStr, environment: &Environment, cwd: &Path) -> Result<PathBuf, Failure> {
    let shown = name.to_string_lossy();
    if name.as_bytes().contains(&b'/') {
        let path = cwd.join(name);
        return match fs::metadata(&path) {
            Err(_) => Err(Failure::new(127, format!("{shown}: no such file"))),
            Ok(_) if is_program(&path) => Ok(path),
            Ok(_) => Err(Failure::new(126, format!("{shown} cannot be run: it is not an executable file"))),
        };
    }
    let path = environment.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path)
        .map(|folder| cwd.join(folder).join(name))
        .find(|path| is_program(path))
        .ok_or_else(|| Failure::new(127, format!("{shown}: command not found in {}", path.to_string_lossy())))
}

/// What to type instead where root is needed: sudo, with the user's own
/// environment and search path.
pub(super) fn sudo_line(arguments: &[String]) -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "retryscope".into(), |path| path.to_string_lossy().into_owned());
    let words = std::iter::once(program.as_str()).chain(arguments.iter().map(String::as_str));
    let quoted: Vec<String> = words
        .map(|word| shlex::try_quote(word).map_or_else(|_| word.to_owned(), std::borrow::Cow::into_owned))
        .collect();
    format!("sudo --preserve-env env \"PATH=$PATH\" {}", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn the_users_environment_comes_back_from_behind_sudo() {
        let theirs = parse_environ(b"PATH=/home/u/bin\0AWS_PROFILE=dev\0EMPTY=\0ODD\0").expect("an environment");
        let ours = environment(&[
            ("PATH", "/sbin"),
            ("HOME", "/root"),
            ("AWS_PROFILE", "prod"),
            ("FOO", "1"),
            ("SUDO_UID", "1"),
        ]);
        let set = set_by(b"sudo\0-E\0env\0HOME=/tmp/h\0--x=y\0rs\0run\0PATH=/no\0", b"rs");
        assert_eq!(set, [OsString::from("HOME")]);
        let merged = merged(&ours, theirs, &set);
        let get = |name: &str| merged.get(OsStr::new(name)).and_then(|value| value.to_str());
        assert_eq!(get("PATH"), Some("/home/u/bin"));
        assert_eq!(get("AWS_PROFILE"), Some("prod"), "set on sudo's command line");
        assert_eq!(get("FOO"), Some("1"));
        assert_eq!(get("HOME"), Some("/root"), "set on sudo's command line");
        assert_eq!(get("EMPTY"), Some(""));
    }

    #[test]
    fn users_are_found_by_name_uid_or_both() {
        let uid =
            |text: &str| Who::find(Some(text), &environment(&[])).map(|who| who.credentials.expect("credentials").uid);
        assert_eq!(uid("root").ok(), Some(0));
        assert_eq!(uid("0").ok(), Some(0));
        assert_eq!(uid("12345:678").ok(), Some(12345));
        for wrong in ["no-such-user-here", "12345", "root:x", ""] {
            assert_eq!(uid(wrong).map_err(|failure| failure.code), Err(64), "{wrong}");
        }
        let who = Who::find(None, &environment(&[("SUDO_UID", "0"), ("SUDO_GID", "0")])).expect("a user");
        assert_eq!(who.owner(), Some((0, 0)));
        assert!(Who::find(None, &environment(&[])).expect("ourselves").credentials.is_none());
    }

    #[test]
    fn programs_are_found_as_a_shell_does() {
        let path = environment(&[("PATH", "/nowhere:/bin:/usr/bin")]);
        let find = |name: &str| find_program(OsStr::new(name), &path, Path::new("/")).map_err(|failure| failure.code);
        assert!(find("sh").expect("sh").ends_with("sh"));
        assert!(find("bin/sh").is_ok());
        assert_eq!(find("no-such-command"), Err(127));
        assert_eq!(find("/no/such/command"), Err(127));
        assert_eq!(find("/etc/passwd"), Err(126));
        assert_eq!(find("/etc"), Err(126));
    }
}
