//! A held message as a text that a person changes in an editor of their own.
//!
//! In: the message, and what came back from the editor. Out: what has changed,
//! and nothing else: what a text cannot hold (bytes, a body that never came)
//! stays as it is unless something is written in its place.
use std::{fs, io, path::Path, process::Command};

use super::ViewError;
use crate::control::{Client, ClientError, HeldInFull, Message, Released, Verdict};

/// Fields that follow from body and connection: not shown, since they cannot
/// be changed.
const OWN: &[&str] =
    &["connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// Lets a person edit what is held, until it is right. `None`: they have
/// decided nothing.
pub(crate) async fn edit(client: &Client, id: u64) -> Result<Option<Released>, ViewError> {
    let held = client.held_in_full(id).await?;
    let message = held.message();
    let mut text = format!("{}{}", introduction(&held), written(message));
    let file = tempfile::Builder::new()
        .prefix("retryscope-")
        .suffix(".http")
        .tempfile()
        .map_err(|error| ViewError::new(73, format!("cannot make a file to edit ({error}); check $TMPDIR")))?;
    let unwritable = |error: io::Error| ViewError::new(73, format!("cannot write the file to edit ({error})"));
    let mut wrong = None;
    loop {
        // By its path: an editor may have put another file in this one's place.
        fs::write(file.path(), &text).map_err(unwritable)?;
        let path = file.path().to_owned();
        launch(&path)?;
        let edited = fs::read_to_string(&path).map_err(|error| {
            ViewError::usage(format!("cannot read {} after it was edited ({error}); #{id} stays held", path.display()))
        })?;
        if let Some(why) = wrong.filter(|_| edited == text) {
            // Nobody is there who would change it.
            return Err(kept(file, &format!("{why}; #{id} stays held")));
        }
        let verdict = match parsed(&edited, message) {
            Ok(None) => return Ok(None),
            Ok(Some(verdict)) => verdict,
            Err(why) => {
                text = with_error(&edited, &why);
                wrong = Some(why);
                continue;
            }
        };
        match client.decide(id, &verdict).await {
            Ok(released) => return Ok(Some(released)),
            // It may be right with other words, as long as it is held.
            Err(ClientError::Refused(why)) if client.held_in_full(id).await.is_ok() => {
                text = with_error(&edited, &why);
                wrong = Some(why);
            }
            Err(error) => return Err(kept(file, &error.to_string())),
        }
    }
}

/// What was written is not lost.
fn kept(file: tempfile::NamedTempFile, why: &str) -> ViewError {
    match file.keep() {
        Ok((_, path)) => ViewError::usage(format!("{why}; what you wrote is in {}", path.display())),
        Err(_) => ViewError::usage(why),
    }
}

/// Runs the editor and waits for its end.
fn launch(path: &Path) -> Result<(), ViewError> {
    let set = |name: &str| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // It may have words of its own.
    let status = Command::new("/bin/sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(ViewError::usage(format!(
            "the editor `{editor}` ended with {status}, so nothing was decided; set EDITOR to choose another"
        ))),
        Err(error) => Err(ViewError::new(69, format!("cannot start the editor `{editor}` ({error}); set EDITOR"))),
    }
}

/// What stands above the message.
fn introduction(held: &HeldInFull) -> String {
    let id = held.held.id;
    let mut text = format!(
        "# Save and leave: #{id} goes on with what stands below. Unchanged it goes on as it was.\n\
         # Empty the file, and it stays held. Lines like these, above the first other, are left out.\n"
    );
    let body = &held.message().body;
    if let Some(why) = &body.absent {
        text.push_str(&format!("# The body is not here ({why}). What you write below the head takes its place.\n"));
    } else if body.text.is_none() {
        text.push_str("# The body is no text. It stays, unless you write something below the head.\n");
    }
    text
}

/// The message as text: a first line, the fields, an empty line, the body.
fn written(message: &Message) -> String {
    let mut text = first(message);
    for (name, value) in shown(message) {
        text.push_str(&format!("{name}: {}\n", value.replace(['\r', '\n'], " ")));
    }
    text.push('\n');
    text.push_str(message.body.text.as_deref().unwrap_or_default());
    text
}

fn first(message: &Message) -> String {
    match (&message.method, message.status) {
        (Some(method), _) => format!("{method} {}\n", message.target.as_deref().unwrap_or_default()),
        (None, Some(status)) => match &message.reason {
            Some(reason) => format!("{status} {reason}\n"),
            None => format!("{status}\n"),
        },
        (None, None) => "\n".to_owned(),
    }
}

fn shown(message: &Message) -> impl Iterator<Item = &(String, String)> {
    message.headers.iter().filter(|(name, _)| !OWN.iter().any(|own| name.eq_ignore_ascii_case(own)))
}

/// The text again, with what is wrong with it on top.
fn with_error(text: &str, why: &str) -> String {
    let rest = without_comments(text);
    let why: String = why.lines().map(|line| format!("# {line}\n")).collect();
    format!("# This cannot be done:\n{why}# Mend it below and save, or empty the file and it stays held.\n{rest}")
}

fn without_comments(text: &str) -> &str {
    let mut rest = text;
    while rest.starts_with('#') {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest
}

/// What has changed. `None` where nothing is written.
fn parsed(text: &str, message: &Message) -> Result<Option<Verdict>, String> {
    let above = text.len() - without_comments(text).len();
    let above = text[..above].lines().count();
    let text = without_comments(text);
    if text.trim().is_empty() {
        return Ok(None);
    }
    let mut verdict = Verdict::default();
    let (line, mut rest) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.trim_end();
    let mut words = line.splitn(2, ' ').map(str::trim);
    let (one, two) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let Some(method) = &message.method {
        if two.is_empty() {
            return Err(format!("line {}: the first line is a method and a target, such as GET /path", above + 1));
        }
        verdict.method = Some(one.to_owned()).filter(|new| new != method);
        verdict.target = Some(two.to_owned()).filter(|new| Some(new) != message.target.as_ref());
    } else if line != first(message).trim_end() {
        // As a status line may be written.
        let (one, two) = if one.starts_with("HTTP") { two.split_once(' ').unwrap_or((two, "")) } else { (one, two) };
        let status = one.parse::<u16>().ok().filter(|status| (200..=599).contains(status)).ok_or_else(|| {
            format!("line {}: the first line is a status from 200 to 599, and perhaps a reason", above + 1)
        })?;
        let same = Some(status) == message.status;
        verdict.status = Some(status);
        // The reason that stood beside another status was that one's.
        let reason = Some(two.to_owned()).filter(|reason| !reason.is_empty());
        verdict.reason = reason.filter(|reason| same || Some(reason) != message.reason.as_ref());
    }
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut number = above + 1;
    loop {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        number += 1;
        rest = after;
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').filter(|(name, _)| !name.trim().is_empty()).ok_or_else(|| {
            format!("line {number}: a field is written `Name: value`, and an empty line ends the head")
        })?;
        fields.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    compare(message, &fields, &mut verdict);
    verdict.body = body(message, rest);
    Ok(Some(verdict))
}

/// Fields that are there no more, and those whose values have changed.
fn compare(message: &Message, fields: &[(String, String)], verdict: &mut Verdict) {
    let old: Vec<(String, String)> = shown(message)
        .map(|(name, value)| (name.clone(), value.replace(['\r', '\n'], " ").trim().to_owned()))
        .collect();
    let values = |of: &[(String, String)], name: &str| -> Vec<String> {
        of.iter().filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone()).collect()
    };
    let mut seen: Vec<&str> = Vec::new();
    for (name, _) in old.iter().chain(fields) {
        if seen.iter().any(|it| it.eq_ignore_ascii_case(name)) {
            continue;
        }
        seen.push(name);
        let (before, after) = (values(&old, name), values(fields, name));
        if before == after {
            continue;
        }
        if after.is_empty() {
            verdict.remove.push(name.clone());
        }
        verdict.headers.extend(after.into_iter().map(|value| (name.clone(), value)));
    }
}

/// Another body, if it is one. Editors end a file with a line's end; that does
/// not make it another.
fn body(message: &Message, text: &str) -> Option<String> {
    let ended = |text: &str| text.strip_suffix('\n').unwrap_or(text).to_owned();
    match &message.body.text {
        Some(old) if old == text => None,
        Some(old) if old.ends_with('\n') => Some(text.to_owned()),
        Some(old) => Some(ended(text)).filter(|text| text != old),
        None => Some(ended(text)).filter(|text| !text.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Body;

    fn message() -> Message {
        Message {
            method: None,
            target: None,
            status: Some(200),
            reason: Some("OK".to_owned()),
            headers: [("Content-Type", "text/xml"), ("Content-Length", "4"), ("Set-Cookie", "a"), ("set-cookie", "b")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            body: Body { text: Some("<a/>".to_owned()), ..Body::default() },
        }
    }

    fn edited(from: &str, to: &str) -> Result<Option<Verdict>, String> {
        let text = format!("# above\n# it\n{}", written(&message()));
        assert!(text.contains(from), "{from}: {text}");
        parsed(&text.replacen(from, to, 1), &message())
    }

    #[test]
    fn what_is_unchanged_is_not_told() {
        assert_eq!(edited("", ""), Ok(Some(Verdict::default())));
        // As editors do.
        assert_eq!(edited("<a/>", "<a/>\n"), Ok(Some(Verdict::default())));
        assert_eq!(edited("# above", "# of mine"), Ok(Some(Verdict::default())));
        assert!(!written(&message()).contains("Length"));
    }

    #[test]
    fn what_is_changed_is_told_alone() {
        let verdict = |from, to| edited(from, to).expect("right").expect("something");
        assert_eq!(verdict("200 OK", "429 OK"), Verdict { status: Some(429), ..Verdict::default() });
        let reasoned = Verdict { status: Some(429), reason: Some("Slow down".to_owned()), ..Verdict::default() };
        assert_eq!(verdict("200 OK", "HTTP/1.1 429 Slow down"), reasoned);
        assert_eq!(verdict("<a/>", "<b/>\n"), Verdict { body: Some("<b/>".to_owned()), ..Verdict::default() });
        assert_eq!(verdict("<a/>", ""), Verdict { body: Some(String::new()), ..Verdict::default() });
        let removed = Verdict { remove: vec!["Content-Type".to_owned()], ..Verdict::default() };
        assert_eq!(verdict("Content-Type: text/xml\n", ""), removed);
        let cookies =
            [("Set-Cookie", "a"), ("Set-Cookie", "c")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(verdict("cookie: b", "cookie: c"), Verdict { headers: cookies.to_vec(), ..Verdict::default() });
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let wrong = |from, to| edited(from, to).expect_err("wrong");
        assert!(wrong("200 OK", "no").starts_with("line 3: the first line is a status"));
        assert!(wrong("200 OK", "700").contains("200 to 599"));
        assert!(wrong("Content-Type:", "Content-Type").starts_with("line 4: a field is written"));
        let text = with_error("# old\n429\nx\n", "line 2: no\nmore");
        assert_eq!(
            text,
            "# This cannot be done:\n# line 2: no\n# more\n# Mend it below and save, or empty the file and it stays held.\n429\nx\n"
        );
    }

    #[test]
    fn an_emptied_file_decides_nothing() {
        assert_eq!(parsed("", &message()), Ok(None));
        assert_eq!(parsed("# only this\n\n", &message()), Ok(None));
    }

    #[test]
    fn a_request_has_a_method_and_a_target() {
        let request = Message {
            method: Some("GET".to_owned()),
            target: Some("/a?b".to_owned()),
            status: None,
            reason: None,
            body: Body { absent: Some("long".to_owned()), ..Body::default() },
            ..message()
        };
        let text = written(&request);
        assert_eq!(parsed(&text, &request), Ok(Some(Verdict::default())));
        let changed = parsed(&text.replace("GET /a?b", "POST /c"), &request).expect("right").expect("something");
        let expected = Verdict { method: Some("POST".to_owned()), target: Some("/c".to_owned()), ..Verdict::default() };
        assert_eq!(changed, expected);
        assert!(parsed(&text.replace("GET /a?b", "GET"), &request).is_err());
    }
}
