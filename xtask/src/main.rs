//! What a contributor runs: `cargo xtask demo`, `test`, `bench`, `ebpf`,
//! `aws-models`, `vendor-chart`.
//!
//! Each command is one module. They say what they do as they do it, and end
//! with a non-zero exit code where it failed.
mod aws_models;
mod bench;
mod demo;
mod ebpf;
mod machine;
mod packages;
mod system;
mod test;
mod testbed;
mod vendor_chart;
mod venv;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what boto3 does when S3 throttles it: builds everything, needs no account
    Demo,
    /// Set up what the tests need, and run them all
    Test(test::Options),
    /// Measure against a direct connection and a bare TLS-to-TLS relay
    Bench(bench::Options),
    /// Make the table of AWS's operations anew, out of botocore's models
    AwsModels(aws_models::Options),
    /// Make the chart library of the HTML report anew, out of its packages
    VendorChart(vendor_chart::Options),
    /// The kernel side
    #[command(subcommand)]
    Ebpf(Ebpf),
    /// Run a program as root in the tests' environment; cargo's runner for `test`
    #[command(hide = true)]
    AsRoot(test::Runner),
}

#[derive(Debug, Subcommand)]
enum Ebpf {
    /// Build the object and write it beside its source
    Build,
    /// Prove that the committed object is what its source gives
    Verify,
}

fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Demo => demo::run(),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::AwsModels(options) => aws_models::run(&options),
        Command::VendorChart(options) => vendor_chart::run(&options),
        Command::Ebpf(Ebpf::Build) => ebpf::build(),
        Command::Ebpf(Ebpf::Verify) => ebpf::verify(),
        Command::AsRoot(runner) => test::as_root(&runner),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
