//! The options that `run` and `attach` share, and what they come to.
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::{
    proxy::{Mapping, Routes},
    report::Report,
    rules::RuleSet,
    tls::Upstream,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Rewrite matching responses: 'FILTER => STATUS ["reason"] [times N per call]'
    ///
    /// An example: '~d s3.eu-west-1.amazonaws.com & ~s & ~attempt ..2 => 429'.
    /// May be given more than once; the first that matches wins.
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<String>,

    /// Read rules from a TOML file
    #[arg(long = "rules", value_name = "FILE")]
    rule_files: Vec<PathBuf>,

    /// Watch this port; may be given more than once
    #[arg(long = "port", value_name = "N", default_value = "443", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) ports: Vec<u16>,

    /// Trust the authorities in this file when connecting to upstreams, besides the system's
    #[arg(long, value_name = "PEM")]
    upstream_ca: Vec<PathBuf>,

    /// Let this name lead to that address
    #[arg(long, value_name = "NAME=ADDR[:PORT]")]
    map_host: Vec<String>,

    /// Look only into connections to matching hosts (* stands for any characters)
    #[arg(long, value_name = "PATTERN")]
    intercept: Vec<String>,

    /// Leave connections to matching hosts alone
    #[arg(long, value_name = "PATTERN")]
    passthrough: Vec<String>,

    /// Leave UDP to the watched ports (QUIC, HTTP/3) alone instead of refusing it
    #[arg(long)]
    pub(super) allow_quic: bool,

    /// The report's form
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    pub(super) report: Form,

    /// Write the report to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(super) report_file: Option<PathBuf>,

    /// Say more about what happens; twice for every attempt
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    Text,
    Json,
}

/// The options, checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) rules: RuleSet,
    pub(super) routes: Routes,
    pub(super) upstream: Upstream,
}

impl Options {
    /// Checks everything that can be checked before anything is touched.
    pub(super) fn check(&self) -> Result<Checked, Failure> {
        let mut files = Vec::new();
        for path in &self.rule_files {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::usage(format!("cannot read the rules in {} ({error}); check the path", path.display()))
            })?;
            files.push((path.clone(), text));
        }
        let rules = RuleSet::parse(&self.rules, &files).map_err(|errors| Failure::usage(errors.to_string()))?;
        let mappings = self.map_host.iter().map(|text| Mapping::parse(text)).collect::<Result<Vec<_>, _>>();
        let routes = mappings
            .and_then(|mappings| Routes::new(mappings, &self.intercept, &self.passthrough))
            .map_err(|error| Failure::usage(error.to_string()))?;
        let upstream = Upstream::new(&self.upstream_ca)?;
        Ok(Checked { rules, routes, upstream })
    }

    /// What chance is drawn from. Nothing draws yet; the report names it so
    /// that a run can be told from another.
    pub(super) fn seed(&self) -> u64 {
        use std::hash::BuildHasher;
        std::hash::RandomState::new().hash_one(0) >> 11
    }

    pub(super) fn render(&self, report: &Report, width: usize, color: bool) -> String {
        match self.report {
            Form::Text => crate::report::text(report, width, color),
            Form::Json => crate::report::json(report),
        }
    }
}
