//! `cargo xtask demo`: what boto3 does when S3 throttles it, on this machine,
//! with no account and no internet beyond the package registries.
//!
//! In: nothing. Out: the story on the terminal, and an error unless it
//! happened: each call was answered 429, 429, 200, and the report says so.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::{
    system::{self, is_root, short, step},
    testbed::{self, Profile, Server},
    venv,
};

const S3: &str = "s3.eu-west-1.amazonaws.com";
const BUCKET: &str = "retryscope-demo";
const RULE: &str = "~d s3.eu-west-1.amazonaws.com & ~s & ~attempt ..2 => 429";
/// What app.py calls, in order.
const OPERATIONS: [&str; 3] = ["ListBuckets", "PutObject", "GetObject"];

pub(crate) fn run() -> Result<()> {
    step("Building retryscope, and an S3 server to talk to (a first build takes some minutes)");
    let binaries = testbed::build(Profile::Dev)?;
    let python = venv::python("demo", &["boto3>=1.34,<2"])?;

    let certs = system::target().join("demo");
    if certs.exists() {
        fs::remove_dir_all(&certs).with_context(|| format!("cannot replace {}", certs.display()))?;
    }
    let certs_text = certs.to_string_lossy();
    let wildcard = format!("*.{S3}");
    let server = Server::start(
        &binaries.testbed,
        ["s3", "--certs", &*certs_text, "--name", S3, "--name", &wildcard, "--bucket", BUCKET],
    )?;
    step(&format!("An S3 server listens on {}, as {S3}", server.address));

    let mut command = system::privileged(short(&binaries.retryscope))?;
    command.args(["run", "--rule", RULE]);
    command.arg("--map-host").arg(format!("{S3}={}", server.address));
    // boto3 reaches a bucket by a name of its own.
    command.arg("--map-host").arg(format!("{BUCKET}.{S3}={}", server.address));
    command.arg("--upstream-ca").arg(short(&certs).join("ca.pem")).arg("--").arg(short(&python));
    command.arg("xtask/demo/app.py").current_dir(system::root());
    if is_root() {
        step("The story: each answer to the first two attempts of a call becomes a 429");
    } else {
        step(
            "The story: each answer to the first two attempts of a call becomes a 429 (sudo may ask for your password)",
        );
    }
    println!("$ {}\n", system::shown(&command));
    let (told, report) = watch(&mut command)?;

    for operation in OPERATIONS {
        let seen: Vec<_> = told.lines().filter_map(|line| outcome(line, operation)).collect();
        ensure!(
            seen == ["429", "429", "200"],
            "the story did not happen: the app's attempts at {operation} were answered {seen:?} instead of 429, 429, 200"
        );
        ensure!(report.contains(operation), "the story did not happen: the report does not name {operation}");
    }
    println!();
    step("That is it: app.py is unchanged, and nothing else on this machine was touched");
    println!(
        "   Try your own: {}target/debug/retryscope run -- COMMAND; README.md tells more",
        if is_root() { "" } else { "sudo " }
    );
    Ok(())
}

/// Runs with both outputs shown as they come; what was said on each.
fn watch(command: &mut Command) -> Result<(String, String)> {
    // The app's client must find its own way: no profile, no endpoint.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
    }
    let mut child = system::unsteered(command)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", system::shown(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (told, report) = thread::scope(|scope| {
        let report = scope.spawn(|| echo(stderr, &mut std::io::stderr()));
        (echo(stdout, &mut std::io::stdout()), report.join().unwrap_or_default())
    });
    let status = child.wait().context("waiting for retryscope")?;
    ensure!(status.success(), "retryscope run failed: {status}");
    Ok((told, report))
}

fn echo(from: Option<impl Read>, to: &mut impl Write) -> String {
    let mut all = String::new();
    let Some(from) = from else { return all };
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let _ = writeln!(to, "{line}");
        all.push_str(&line);
        all.push('\n');
    }
    all
}

/// The status in a line of app.py about an attempt of `operation`.
fn outcome<'a>(line: &'a str, operation: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    (words.next() == Some(operation) && words.next() == Some("attempt")).then(|| words.nth(1)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_the_apps_lines() {
        assert_eq!(outcome("ListBuckets  attempt 1  429", "ListBuckets"), Some("429"));
        assert_eq!(outcome("ListBuckets  attempt 1  429", "PutObject"), None);
        assert_eq!(outcome("buckets: attempt 1 2", "ListBuckets"), None);
    }
}
