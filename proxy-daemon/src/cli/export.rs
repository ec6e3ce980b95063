//! `retryscope export curl`: a recorded attempt as a command to type.
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use super::{Failure, recording};
use crate::flow::{Protocol, record::Recorded, redact::REDACTED};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    form: Form,
}

#[derive(Debug, clap::Subcommand)]
enum Form {
    /// As a command for curl
    Curl {
        /// A recording: HAR, or JSON lines; - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// The attempt's number; `retryscope show FILE` tells it
        #[arg(long, value_name = "N")]
        id: usize,
    },
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Form::Curl { file, id } = &args.form;
    let recording = recording::load(file)?;
    let (command, notes) = curl(recording::by_id(&recording, *id)?).map_err(Failure::usage)?;
    for note in notes {
        let _ = writeln!(io::stderr(), "retryscope: {note}");
    }
    // A reader that has gone away has decided not to read it.
    let _ = writeln!(io::stdout(), "{command}");
    Ok(ExitCode::SUCCESS)
}

/// The command, and what to know of it.
pub(super) fn curl(recorded: &Recorded) -> Result<(String, Vec<String>), String> {
    let attempt = &recorded.attempt;
    let request = &attempt.request;
    if &*request.method == "CONNECT" {
        return Err("that attempt is a connection that could not be made; there is no request to export".to_owned());
    }
    let mut notes = Vec::new();
    // curl's own quoting; a NUL cannot be in an argument.
    let quoted = |text: &str| match shlex::try_quote(text) {
        Ok(quoted) => Ok(quoted.into_owned()),
        Err(_) => Err("the request has a NUL in it, which no command line can carry".to_owned()),
    };
    let mut words = vec!["curl".to_owned()];
    match attempt.protocol {
        Protocol::Http10 => words.push("--http1.0".into()),
        Protocol::Http11 => words.push("--http1.1".into()),
        Protocol::Http2 => words.push("--http2".into()),
    }
    if &*request.method == "HEAD" {
        words.push("--head".into());
    } else {
        words.push(format!("--request {}", quoted(&request.method)?));
    }
    let mut missing = Vec::new();
    for (name, value) in request.headers.iter() {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        let lower = name.to_ascii_lowercase();
        // What curl says itself, of the connection and of the body.
        if matches!(&*lower, "content-length" | "transfer-encoding" | "connection" | "expect")
            || (lower == "host" && *value == *request.authority)
        {
            continue;
        }
        if value.contains(REDACTED) {
            missing.push(name.into_owned());
            continue;
        }
        // curl sends an empty field only where a semicolon says so.
        let field = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        words.push(format!("--header {}", quoted(&field)?));
    }
    let url = request.url();
    if url.contains(REDACTED) {
        notes.push("what signs the URL is not in the recording: sign it anew".to_owned());
    }
    if !missing.is_empty() {
        notes.push(format!("not in the recording, so add them yourself: {}", missing.join(", ")));
    }
    let body = &recorded.request_body;
    let mut before = String::new();
    if attempt.sent > 0 || !body.bytes.is_empty() {
        match body.whole() {
            None => notes.push(format!("the request's body of {} bytes is not in the recording", attempt.sent)),
            Some(bytes) => {
                if bytes.windows(REDACTED.len()).any(|part| part == REDACTED.as_bytes()) {
                    notes.push("secrets in the request's body are not in the recording".to_owned());
                }
                match std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0') && !text.starts_with('@')) {
                    Some(text) => words.push(format!("--data-binary {}", quoted(text)?)),
                    None => {
                        use base64::{Engine as _, engine::general_purpose::STANDARD};
                        before = format!("echo {} | base64 -d | ", STANDARD.encode(bytes));
                        words.push("--data-binary @-".into());
                    }
                }
            }
        }
    }
    words.push(quoted(&url)?);
    Ok((format!("{before}{}", words.join(" \\\n  ")), notes))
}
