//! Which program a process is an instance of, and what it was told by its
//! environment.
use std::{collections::HashMap, ffi::OsString};

use super::{Facts, ProcessKey};

/// Programs that run others: which one, their command line tells.
const INTERPRETERS: &[&str] = &["bash", "dash", "java", "node", "nodejs", "perl", "php", "python", "ruby", "sh"];

/// What stays the same from one process of a program to the next: the
/// executable, and for an interpreter the first word that names what it runs.
/// Its other arguments do not tell programs apart.
pub fn program(facts: &Facts) -> String {
    let exe = facts.exe.as_deref().unwrap_or(&facts.comm);
    // A package upgrade must not make another program of it.
    let exe = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    if !INTERPRETERS.contains(&bare(exe)) {
        return exe.to_owned();
    }
    let mut words = facts.command.split(' ').skip(1);
    let mut script = words.find(|word| !word.starts_with('-') || matches!(*word, "-m" | "-c" | "-e" | "-jar"));
    if let Some(word) = script.filter(|word| word.starts_with('-')) {
        // A module or an archive is named by what follows; so is a text that
        // is given in place of a file.
        script = words.next().or(Some(word));
    }
    match script {
        Some(script) => format!("{exe} {script}"),
        None => exe.to_owned(),
    }
}

/// The executable's name without its folder and its version: `python3.11` is
/// `python`.
pub fn bare(exe: &str) -> &str {
    let name = exe.rsplit('/').next().unwrap_or(exe);
    let trimmed = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
    if trimmed.is_empty() { name } else { trimmed }
}

/// The environment with which the process was started; `None` where it cannot
/// be read (any more).
pub fn environment(key: ProcessKey) -> Option<Environment> {
    let proc = procfs::process::Process::new(i32::try_from(key.pid).ok()?).ok()?;
    if proc.stat().ok()?.starttime != key.start_ticks {
        return None;
    }
    proc.environ().ok()
}

pub type Environment = HashMap<OsString, OsString>;

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn of(exe: &str, command: &str) -> String {
        program(&Facts { comm: "comm".into(), command: command.into(), exe: Some(exe.into()), ..Facts::default() })
    }

    #[test]
    fn arguments_make_no_other_program() {
        assert_eq!(of("/usr/bin/curl", "curl -s https://a/"), of("/usr/bin/curl", "curl https://b/ -o x"));
        assert_eq!(of("/usr/bin/curl (deleted)", "curl"), "/usr/bin/curl");
        assert_eq!(program(&Facts { comm: "gone".into(), ..Facts::default() }), "gone");
    }

    #[test]
    fn an_interpreter_is_what_it_runs() {
        assert_eq!(of("/usr/bin/python3.11", "python3 -u app.py --fast"), "/usr/bin/python3.11 app.py");
        assert_eq!(of("/usr/bin/python3.11", "python3 -m http.server"), "/usr/bin/python3.11 http.server");
        assert_eq!(of("/usr/lib/jvm/17/bin/java", "java -Xmx1g -jar app.jar x"), "/usr/lib/jvm/17/bin/java app.jar");
        assert_eq!(of("/usr/bin/node", "node"), "/usr/bin/node");
        assert_ne!(of("/usr/bin/node", "node a.js"), of("/usr/bin/node", "node b.js"));
    }

    #[test]
    fn names_lose_their_version() {
        for (exe, name) in [
            ("/usr/bin/python3.11", "python"),
            ("/usr/bin/ruby3.1", "ruby"),
            ("curl", "curl"),
            ("/opt/7", "7"),
            ("git-remote-https", "git-remote-https"),
        ] {
            assert_eq!(bare(exe), name);
        }
    }

    #[test]
    fn reads_the_environment_of_the_very_process() {
        let me = procfs::process::Process::myself().and_then(|proc| proc.stat()).expect("own stat");
        let mut key = ProcessKey { pid: std::process::id(), start_ticks: me.starttime };
        let found = environment(key).expect("our own");
        assert_eq!(found.get(OsStr::new("PATH")).cloned(), std::env::var_os("PATH"));
        key.start_ticks -= 1;
        assert_eq!(environment(key), None);
    }
}
