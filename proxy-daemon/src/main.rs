//! The command `retryscope`.
use std::process::ExitCode;

fn main() -> ExitCode {
    retryscope::cli::main()
}
