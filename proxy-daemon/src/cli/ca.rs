//! `retryscope ca`: the authority that `attach` uses.
use std::{io::Write, path::PathBuf, process::ExitCode};

use super::Failure;
use crate::tls::{self, Authority, TlsError};

pub(super) const DEFAULT_FOLDER: &str = "/etc/retryscope";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make an authority: a certificate, and a key that only its owner can read
    Init {
        /// The folder to write to
        #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
        ca_dir: PathBuf,
        /// Limit the authority to this domain and those below; may be given more than once
        #[arg(long = "domain", value_name = "NAME")]
        domains: Vec<String>,
    },
    /// Print the certificate, and how each kind of client is told to trust it
    Show {
        /// The folder to read from
        #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
        ca_dir: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let failed = |error: TlsError| Failure::new(error.exit_code(), explain(&error));
    let text = match &args.action {
        Action::Init { ca_dir, domains } => {
            let made = Authority::init(ca_dir, domains).map_err(failed)?;
            format!(
                "Made an authority.\n  certificate  {}\n  key          {}  (only its owner can read it: keep it so)\n  SHA-256      {}\n\nNext: let the target trust it; `retryscope ca show` tells how.\n",
                made.certificate.display(),
                made.key.display(),
                made.fingerprint
            )
        }
        Action::Show { ca_dir } => tls::show(ca_dir).map_err(failed)?,
    };
    // A reader that has gone away has decided not to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// What went wrong with the authority's files, and what to do.
pub(super) fn explain(error: &TlsError) -> String {
    match error {
        TlsError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            format!("{error}; `retryscope ca init` makes an authority")
        }
        _ => error.to_string(),
    }
}
