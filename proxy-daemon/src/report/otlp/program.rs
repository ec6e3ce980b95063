//! Names for what was seen, in words that stay few.
use crate::{process::Facts, report::words::plain};

/// Longer values are cut, in characters.
const MAX_VALUE: usize = 256;
/// Programs whose first argument says more than their name.
const INTERPRETERS: &[&str] = &["python", "node", "ruby", "perl", "php", "bash", "sh", "java", "deno", "bun"];

/// Text as an attribute's value: nothing that drives a terminal, and not too long.
pub(super) fn value(text: &str) -> String {
    let text = plain(text);
    match text.char_indices().nth(MAX_VALUE) {
        Some((at, _)) => text[..at].to_owned(),
        None => text,
    }
}

/// The program without its arguments, which may hold secrets: `nginx`,
/// `python app.py`, `python -m app`, `java app.jar`.
pub(super) fn program(facts: &Facts) -> String {
    let mut words = facts.command.split_whitespace();
    let Some(first) = words.next() else { return facts.comm.clone() };
    let name = file_name(first);
    // `python3.12` is a `python`.
    let plain = name.trim_end_matches(|char: char| char.is_ascii_digit() || char == '.');
    if !INTERPRETERS.contains(&plain) {
        // A process that names itself, as `nginx: worker process` does.
        return name.trim_end_matches(':').to_owned();
    }
    let words: Vec<&str> = words.collect();
    let script = match (plain, words.as_slice()) {
        ("python", ["-m", module, ..]) => Some(format!("-m {module}")),
        ("java", words) => words.iter().find(|word| word.ends_with(".jar")).map(|jar| file_name(jar).to_owned()),
        // After an option it could be that option's value, or a program in
        // itself (`sh -c`).
        (_, [script, ..]) if !script.starts_with('-') => Some(file_name(script).to_owned()),
        _ => None,
    };
    match script {
        Some(script) => format!("{name} {script}"),
        None => name.to_owned(),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_without_their_arguments() {
        for (command, expected) in [
            ("/usr/sbin/nginx -g daemon off;", "nginx"),
            ("nginx: worker process", "nginx"),
            ("/opt/venv/bin/python3.12 /srv/app.py --token secret", "python3.12 app.py"),
            ("python -m http.server 80", "python -m http.server"),
            ("python -c import os", "python"),
            ("sh -c curl https://user:secret@host/", "sh"),
            ("java -Xmx1g -jar /opt/app.jar --secret", "java app.jar"),
            ("java -cp lib com.example.Main", "java"),
            ("node ./server.js", "node server.js"),
            ("", "comm"),
        ] {
            let facts = Facts { comm: "comm".into(), command: command.into(), ..Facts::default() };
            assert_eq!(program(&facts), expected, "{command}");
        }
    }

    #[test]
    fn values_are_short_and_plain() {
        assert_eq!(value("a\nb\u{9b}"), "a\\nb\\u{9b}");
        assert_eq!(value(&"é".repeat(500)).chars().count(), MAX_VALUE);
    }
}
