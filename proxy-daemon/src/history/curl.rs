//! An attempt as a command for a shell.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AttemptDetail;

/// A command line that makes the attempt's request again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Curl {
    pub command: String,
    /// In what it differs from the request, a sentence each.
    pub notes: Vec<String>,
}

/// Fields that curl makes itself, or that are of the connection.
const OWN: &[&str] = &["host", "content-length", "connection", "transfer-encoding", "expect", "accept-encoding"];

impl Curl {
    pub(super) fn of(attempt: &AttemptDetail) -> Self {
        Self::with_body(attempt, None)
    }

    /// `body`: the request's, where all of it is known.
    pub fn with_body(attempt: &AttemptDetail, body: Option<&[u8]>) -> Self {
        let it = &attempt.attempt;
        let mut words: Vec<String> = vec!["curl".into()];
        let mut notes = Vec::new();
        match it.method.as_str() {
            "GET" => {}
            "HEAD" => words.push("--head".into()),
            method => words.extend(["--request".into(), method.to_owned()]),
        }
        match it.protocol.as_str() {
            "http/1.0" => words.push("--http1.0".into()),
            "http/1.1" => words.push("--http1.1".into()),
            _ => words.push("--http2".into()),
        }
        match &attempt.request_headers {
            Some(fields) => {
                for field in fields {
                    let name = field.name.to_ascii_lowercase();
                    if name == "accept-encoding" {
                        words.push("--compressed".into());
                    }
                    if OWN.contains(&&*name) || name.starts_with(':') {
                        continue;
                    }
                    words.push("--header".into());
                    // `Name;` is how curl sends a field without a value.
                    words.push(if field.value.is_empty() {
                        format!("{};", field.name)
                    } else {
                        format!("{}: {}", field.name, field.value)
                    });
                }
            }
            None => notes.push("The header fields are not kept any more.".to_owned()),
        }
        words.push(it.url.clone());
        if it.method == "CONNECT" && it.status.is_none() {
            notes.push("The connection could not be made: no request was sent.".to_owned());
        }
        let mut before = String::new();
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            match std::str::from_utf8(body).ok().filter(|text| !text.contains('\0')) {
                Some(text) => words.extend(["--data-raw".to_owned(), text.to_owned()]),
                None => {
                    before = format!("echo {} | base64 -d | ", STANDARD.encode(body));
                    words.extend(["--data-binary".to_owned(), "@-".to_owned()]);
                }
            }
        } else if it.sent > 0 {
            notes.push(format!("The body of {} bytes is not kept: add it with --data-binary @FILE.", it.sent));
        }
        if words.iter().any(|word| word.contains(crate::flow::redact::REDACTED)) {
            notes.push("Credentials were taken out: put your own where it says REDACTED.".to_owned());
        }
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        Self { command: format!("{before}{}", words.join(" ")), notes }
    }
}

/// The word for a shell and a terminal: control characters are escaped as
/// bash and zsh read them.
fn quoted(word: &str) -> String {
    if word.contains(char::is_control) {
        let mut text = String::from("$'");
        for byte in word.bytes() {
            match byte {
                b'\'' | b'\\' => text.extend(['\\', char::from(byte)]),
                0x20..=0x7e => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\x{byte:02x}")),
            }
        }
        text.push('\'');
        return text;
    }
    // It fails on NUL alone, which is a control character.
    shlex::try_quote(word).map_or_else(|_| String::from("''"), std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{AttemptEntry, entry::Field};

    fn detail(method: &str, fields: &[(&str, &str)]) -> AttemptDetail {
        AttemptDetail {
            attempt: AttemptEntry {
                method: method.into(),
                url: "https://a.test/x?y=it's".into(),
                protocol: "http/1.1".into(),
                ..AttemptEntry::default()
            },
            request_headers: Some(
                fields.iter().map(|(name, value)| Field { name: (*name).into(), value: (*value).into() }).collect(),
            ),
            ..AttemptDetail::default()
        }
    }

    #[test]
    fn a_shell_reads_it_as_it_was() {
        let fields =
            [("Host", "a.test"), ("X-Quote", "it's $(rm) `x` \"q\""), ("Empty", ""), ("Accept-Encoding", "gzip")];
        let curl = Curl::of(&detail("DELETE", &fields));
        let words = shlex::split(&curl.command).expect("words");
        let expected = [
            "curl",
            "--request",
            "DELETE",
            "--http1.1",
            "--header",
            "X-Quote: it's $(rm) `x` \"q\"",
            "--header",
            "Empty;",
            "--compressed",
            "https://a.test/x?y=it's",
        ];
        assert_eq!(words, expected);
        assert!(curl.notes.is_empty(), "{:?}", curl.notes);
    }

    #[test]
    fn control_characters_are_written_out() {
        let curl = Curl::of(&detail("GET", &[("X-Odd", "a\u{1b}[2J'b\\")]));
        assert!(curl.command.contains(r"$'X-Odd: a\x1b[2J\'b\\'"), "{}", curl.command);
        assert!(!curl.command.contains(char::is_control));
    }

    #[test]
    fn bodies_are_as_they_were() {
        let it = detail("POST", &[]);
        let words = shlex::split(&Curl::with_body(&it, Some(b"@a='b'")).command).expect("words");
        assert_eq!(&words[words.len() - 2..], ["--data-raw", "@a='b'"]);
        let curl = Curl::with_body(&it, Some(b"\xff\x00"));
        assert!(
            curl.command.starts_with("echo /wA= | base64 -d | curl ") && curl.command.ends_with("--data-binary @-")
        );
        assert!(curl.notes.is_empty());
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut it = detail("PUT", &[("Authorization", "Bearer REDACTED")]);
        it.attempt.sent = 12;
        assert_eq!(Curl::of(&it).notes.len(), 2);
        it.request_headers = None;
        assert!(Curl::of(&it).notes[0].contains("not kept any more"));
    }
}
