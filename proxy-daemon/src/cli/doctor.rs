//! `retryscope doctor`: whether this machine has what is needed.
use std::{io::Write, process::ExitCode};

use super::Failure;
use crate::{
    control::{self, Client, ClientError},
    redirect, tls,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut findings: Vec<Finding> = redirect::probe().into_iter().map(Finding::from).collect();
    findings.push(mounts());
    findings.extend(stores());
    let running = running()?;
    let failed = findings.iter().filter(|finding| !finding.ok && finding.required).count();
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&serde_json::json!({ "machine": findings, "instances": running }))
            .map_err(|error| Failure::new(70, format!("cannot print the findings ({error})")))?;
        text.push('\n');
        text
    } else {
        let mut text = String::new();
        for finding in &findings {
            let mark = match (finding.ok, finding.required) {
                (true, _) => "ok  ",
                (false, true) => "FAIL",
                (false, false) => "less",
            };
            text.push_str(&format!("{mark}  {}: {}\n", finding.name, finding.detail));
            if let Some(remedy) = finding.remedy.as_deref().filter(|_| !finding.ok) {
                text.push_str(&format!("      → {remedy}\n"));
            }
        }
        text.push_str(&match failed {
            0 => "\nEverything retryscope needs is here.\n".to_owned(),
            1 => "\nOne thing is missing.\n".to_owned(),
            _ => format!("\n{failed} things are missing.\n"),
        });
        running.iter().for_each(|instance| text.push_str(&instance.to_string()));
        text
    };
    // A reader that has gone away has decided not to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(69) })
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    name: String,
    ok: bool,
    /// Nothing works without it; else something is less good.
    required: bool,
    detail: String,
    remedy: Option<String>,
}

impl From<redirect::Probe> for Finding {
    fn from(probe: redirect::Probe) -> Self {
        Self {
            name: probe.name.to_string(),
            ok: probe.ok,
            required: probe.required,
            detail: probe.detail,
            remedy: probe.remedy.map(Into::into),
        }
    }
}

/// A running instance, and what its processes may do at the moment.
#[derive(Debug, serde::Serialize)]
struct Running {
    pid: u32,
    target: String,
    processes: Vec<Process>,
    /// What the process that serves connections could do that it should not.
    possible: Vec<String>,
    /// What it tried in vain.
    refused: Vec<String>,
}

/// A process as `/proc` tells of it.
#[derive(Debug, serde::Serialize)]
struct Process {
    role: String,
    pid: u32,
    /// Lines of `/proc/PID/status`, by name.
    status: Vec<(String, String)>,
}

/// What of `/proc/PID/status` says what a process may do.
const TELLING: [&str; 8] = ["Uid", "Gid", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];

impl Process {
    fn read(role: String, pid: u32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some((name.to_owned(), value.split_whitespace().next().unwrap_or_default().to_owned()))
        };
        Self { role, pid, status: TELLING.into_iter().filter_map(line).collect() }
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\nRunning: {} (pid {})", self.target, self.pid)?;
        for process in &self.processes {
            let values: Vec<String> =
                process.status.iter().map(|(name, value)| format!("{name} {}", short(value))).collect();
            writeln!(f, "      {} (pid {}): {}", process.role, process.pid, values.join(", "))?;
        }
        for what in &self.possible {
            writeln!(f, "less  the server can {what}")?;
        }
        if !self.refused.is_empty() {
            writeln!(f, "      the server cannot: {}", self.refused.join(", "))?;
        }
        Ok(())
    }
}

/// A set without its leading zeros.
fn short(value: &str) -> &str {
    match value.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// Those that may be asked; nothing to say where there is none.
fn running() -> Result<Vec<Running>, Failure> {
    let clients = match control::all() {
        Ok(clients) => clients,
        // That is another's to see.
        Err(ClientError::Permission) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    let one = async |client: &Client| {
        let about = client.about().await.ok()?;
        let privileges = client.privileges().await.ok()?;
        let (refused, possible): (Vec<_>, Vec<_>) =
            privileges.attempts.into_iter().partition(|attempt| attempt.refused.is_some());
        let target = if about.targets.is_empty() { about.target } else { about.targets.join(", ") };
        Some(Running {
            pid: about.pid,
            target,
            processes: privileges.processes.into_iter().map(|part| Process::read(part.role, part.pid)).collect(),
            possible: possible.into_iter().map(|attempt| attempt.what).collect(),
            refused: refused.into_iter().map(|attempt| attempt.what).collect(),
        })
    };
    Ok(runtime.block_on(async {
        let mut found = Vec::new();
        for client in &clients {
            // One that has just ended is none.
            found.extend(one(client).await);
        }
        found
    }))
}

/// Tried by a thread: what it does to its mounts ends with it.
fn mounts() -> Finding {
    let tried = std::thread::spawn(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)).join();
    let (ok, detail) = match tried {
        Ok(Ok(())) => (true, "a private one can be made".to_owned()),
        Ok(Err(error)) => (false, format!("a private one cannot be made ({error})")),
        Err(_) => (false, "trying failed".to_owned()),
    };
    Finding {
        name: "mount namespace".into(),
        ok,
        // `--no-mount` does without.
        required: false,
        detail,
        remedy: Some(
            "run as root with CAP_SYS_ADMIN, or use `run --no-mount` (clients then need their variables)".into(),
        ),
    }
}

fn stores() -> Vec<Finding> {
    let bundles = tls::bundles();
    let shown: Vec<String> = bundles.iter().map(|path| path.display().to_string()).collect();
    let roots = tls::Upstream::new(&[]).map(|upstream| upstream.roots());
    vec![
        Finding {
            name: "trust bundles".into(),
            ok: !bundles.is_empty(),
            required: true,
            detail: if shown.is_empty() { "none found".into() } else { shown.join(", ") },
            remedy: Some("install the package ca-certificates".into()),
        },
        Finding {
            name: "upstream roots".into(),
            ok: roots.is_ok(),
            required: true,
            detail: match &roots {
                Ok(count) => format!("{count} authorities"),
                Err(error) => error.to_string(),
            },
            remedy: Some("install the package ca-certificates, or name a file with --upstream-ca".into()),
        },
    ]
}
