//! Servers and a load client for the demo, the bench and the end-to-end tests.
//!
//! In: a subcommand. Out: a server prints `ready ADDR:PORT` on its standard
//! output once it accepts connections; the load client prints one JSON object
//! per job. Everything listens on loopback only.
mod certificates;
mod load;
mod net;
mod relay;
#[cfg(feature = "testbed")]
mod s3;
mod serve;
mod stats;
mod storm;
mod tls;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "retryscope-testbed", about, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an authority and a server certificate in a folder
    Certs(certificates::Options),
    /// S3 over TLS, kept in a folder
    #[cfg(feature = "testbed")]
    S3(s3::Options),
    /// A bare TLS-to-TLS relay: the bench's yardstick
    Relay(relay::Options),
    /// The bench's upstream, over HTTP/1.1 and HTTP/2
    Serve(serve::Options),
    /// Make requests and time them
    Load(load::Options),
    /// Start thousands of processes that make one request each
    Storm(storm::Options),
    /// Connect as told, and tell what was negotiated
    Tls(tls::Options),
}

fn main() -> Result<()> {
    let options = Options::parse();
    // It forks, so there must be no other threads.
    if let Command::Storm(options) = &options.command {
        return storm::run(options);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        match options.command {
            Command::Certs(options) => certificates::run(&options),
            #[cfg(feature = "testbed")]
            Command::S3(options) => s3::run(options).await,
            Command::Relay(options) => relay::run(options).await,
            Command::Serve(options) => serve::run(options).await,
            Command::Load(options) => load::run(options).await,
            Command::Storm(_) => Ok(()),
            Command::Tls(options) => tls::run(options).await,
        }
    });
    // A read of standard input may still be blocked in its thread.
    runtime.shutdown_background();
    done
}
