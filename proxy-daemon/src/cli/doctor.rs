//! `retryscope doctor`: whether this machine has what is needed.
use std::{io::Write, process::ExitCode};

use super::Failure;
use crate::{redirect, tls};

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
    let failed = findings.iter().filter(|finding| !finding.ok && finding.required).count();
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&findings)
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
