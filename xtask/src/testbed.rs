//! The testbed's programs as children: servers that have said `ready`, and
//! sessions of the load client.
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::system;

/// More than any job takes; a job that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// What [`build`] made.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    pub(crate) retryscope: PathBuf,
    pub(crate) testbed: PathBuf,
}

impl Binaries {
    pub(crate) fn of(profile: Profile) -> Self {
        let dir = system::target().join(if profile == Profile::Release { "release" } else { "debug" });
        Self { retryscope: dir.join("retryscope"), testbed: dir.join("retryscope-testbed") }
    }
}

/// Builds the daemon and the testbed, with cargo's own lines as progress. In
/// the dev profile the features are those that `cargo xtask test` builds with,
/// so that nothing is compiled twice; a release is for the bench, without S3.
pub(crate) fn build(profile: Profile) -> Result<Binaries> {
    let mut cargo = system::cargo();
    cargo.args(["build", "--locked", "--workspace", "--bin", "retryscope", "--bin", "retryscope-testbed"]);
    match profile {
        Profile::Dev => cargo.args(["--features", "xtask/testbed"]),
        Profile::Release => cargo.args(["--features", "xtask/load", "--release"]),
    };
    system::run(&mut cargo)?;
    Ok(Binaries::of(profile))
}

/// A child whose lines are read in a thread, so that waiting has a deadline.
/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    shown: String,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let shown = system::shown(command);
        let mut child = system::unsteered(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {shown}"))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        // Ends when the child's output does.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines, shown })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("no answer within {} s from {}", DEADLINE.as_secs(), self.shown)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().context("waiting for a child")?;
                bail!("ended early ({status}): {}", self.shown)
            }
        }
    }

    /// Closes its standard input, on which it ends, and waits for that.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        while self.lines.recv_timeout(DEADLINE).is_ok() {}
        let status = self.child.wait().context("waiting for a child")?;
        ensure!(status.success(), "failed ({status}): {}", self.shown);
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A server on loopback.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) program: Program,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start<'a>(testbed: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut program = Program::start(Command::new(testbed).args(arguments).arg("--leash"))?;
        let line = program.line()?;
        let address = line.strip_prefix("ready ").with_context(|| format!("unexpected first line {line:?}"))?.into();
        Ok(Self { program, address })
    }
}

/// A load client that takes jobs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) program: Program,
}

impl Session {
    /// `command` ends in `load … --session`, perhaps under `retryscope run`.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self { program: Program::start(command)? })
    }

    pub(crate) fn job(&mut self, job: &str) -> Result<Value> {
        let stdin = self.program.stdin.as_mut().context("the session is over")?;
        // A session that has ended says why when its answer is read.
        let _ = writeln!(stdin, "{job}").and_then(|()| stdin.flush());
        let line = self.program.line().with_context(|| format!("the job `{job}`"))?;
        let told: Value = serde_json::from_str(&line).with_context(|| format!("not an answer to `{job}`: {line}"))?;
        ensure!(told["error"].is_null(), "the job `{job}` failed: {}", told["error"]);
        Ok(told)
    }
}
