//! The options that `run` and `attach` share, and what they come to.
use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use clap::Args;

use super::Failure;
use crate::{
    control, history,
    proxy::{Answers, Mapping, Missing, Routes},
    redirect::{self, Choice, Reach, Wanted, Way},
    report::{self, Report, Timeline, assert::Assertion},
    rules::{self, Guard, RuleSet, StopWhen},
    tls::{Identity, Upstream},
    view::page,
};

/// JSON keeps numbers exactly up to here.
const MAX_SEED: u64 = (1 << 53) - 1;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Act on matching attempts: 'FILTER => ACTION [LIMITS]'
    ///
    /// Examples: '~svc s3 & ~op PutObject & ~attempt ..2 => s3-slowdown',
    /// '~d api.example.com => 503 retry-after 2 chance 10%'. May be given more
    /// than once; the first that matches wins. docs/rules.md tells all of it.
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<String>,

    /// Read rules from a TOML or JSON file
    #[arg(long = "rules", value_name = "FILE")]
    rule_files: Vec<PathBuf>,

    /// What chance is drawn from; the report tells it, so that a run can be repeated
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_SEED))]
    seed: Option<u64>,

    /// Count what rules would do, and do none of it
    #[arg(long)]
    dry_run: bool,

    /// Do not name the rule in the answers that it changed (x-retryscope-rule)
    #[arg(long)]
    no_rule_header: bool,

    /// No rule acts any more once rules have acted on so many attempts
    #[arg(long, value_name = "N")]
    max_injections: Option<u64>,

    /// No rule acts any more once more than N attempts have ended like this: 'FILTER > N/TIME'
    ///
    /// An example: '~genuine & ~c 500..599 > 10/1m'.
    #[arg(long, value_name = "CONDITION")]
    stop_when: Option<String>,

    /// Watch this port; may be given more than once. `any` watches every TCP port
    #[arg(long = "port", value_name = "N|any", default_value = "443", value_parser = watched_port)]
    ports: Vec<u16>,

    /// Trust the authorities in this file when connecting to upstreams, besides the system's
    #[arg(long, value_name = "PEM")]
    upstream_ca: Vec<PathBuf>,

    /// Show this certificate (and its chain) to upstreams that ask for one
    ///
    /// Without it, a client that shows a certificate of its own is left alone.
    #[arg(long, value_name = "PEM")]
    client_cert: Option<PathBuf>,

    /// The client certificate's key, where it is not in the same file
    #[arg(long, value_name = "PEM", requires = "client_cert")]
    client_key: Option<PathBuf>,

    /// Let this name lead to that address
    #[arg(long, value_name = "NAME=ADDR[:PORT]")]
    map_host: Vec<String>,

    /// Look only into connections to matching hosts (* stands for any characters)
    #[arg(long, value_name = "PATTERN")]
    intercept: Vec<String>,

    /// Leave connections to matching hosts alone
    #[arg(long, value_name = "PATTERN")]
    passthrough: Vec<String>,

    /// Never leave a client alone that refuses retryscope's certificate: it fails each time
    ///
    /// Without this such a client's next connections to the host are passed
    /// on unread, so that it works; the report names it.
    #[arg(long)]
    pub(super) strict: bool,

    /// What becomes of connections that retryscope cannot carry: they go direct, or are refused
    ///
    /// It cannot where it has died, does not answer in time, or is out of
    /// open files or other room. Closed refuses connections also after it has
    /// been killed, until the target is gone; after an orderly end they go
    /// direct in any case.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Fail::Open)]
    pub(super) fail: Fail,

    /// Leave UDP to the watched ports (QUIC, HTTP/3) alone instead of refusing it
    #[arg(long)]
    pub(super) allow_quic: bool,

    /// How connections come here; auto takes eBPF where it can, else TPROXY, and says so
    #[arg(long, value_enum, value_name = "WAY", default_value_t = RedirectBy::Auto)]
    pub(super) redirect: RedirectBy,

    /// The report's form
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Form::Text)]
    pub(super) report: Form,

    /// Write the report to a file instead of standard error; html needs one
    #[arg(long, value_name = "FILE")]
    pub(super) report_file: Option<PathBuf>,

    /// Write every attempt to a file as it ends, as a line of JSON
    #[arg(long, value_name = "FILE")]
    pub(super) events: Option<PathBuf>,

    #[command(flatten)]
    pub(super) save: super::save::Save,

    /// Answer from this recording instead of connecting to anybody
    ///
    /// Requests are found by method, host, URL and body; in the order of the
    /// recording, the last answer again and again. What is not in it is
    /// answered 501, unless --answer-missing says otherwise.
    #[arg(long, value_name = "FILE")]
    answer_from: Option<PathBuf>,

    /// What becomes of a request that is not in the recording: it is answered 501, or the upstream is asked
    #[arg(long, value_enum, value_name = "HOW", default_value_t, requires = "answer_from")]
    answer_missing: AnswerMissing,

    /// Keep the latest N attempts for `retryscope flows` and other views; 0 keeps none
    ///
    /// They take 256 bytes each at most, and 32 MiB for the header fields of
    /// the latest.
    #[arg(long, value_name = "N", default_value_t = history::KEPT, value_parser = kept)]
    pub(super) keep: usize,

    /// Serve Prometheus metrics at this address, under /metrics
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:9464")]
    metrics: Option<SocketAddr>,

    /// Serve a page to watch and steer this by, for a browser
    ///
    /// At a free port of 127.0.0.1 unless an address is given. The address with
    /// the token that lets a browser in is told on a terminal, and by
    /// `retryscope page`.
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, require_equals = true, default_missing_value = page::DEFAULT)]
    page: Option<SocketAddr>,

    /// Send a line for each retry to this statsd server, by UDP
    #[arg(long, value_name = "HOST:PORT")]
    statsd: Option<String>,

    #[command(flatten)]
    otlp: super::otlp::Otlp,

    /// Fail unless this holds of the run: 'METRIC{LABEL=GLOB} <= VALUE'
    ///
    /// Examples: 'retries <= 0', 'p99(backoff) < 5s',
    /// 'amplification{op=s3.PutObject} < 1.2'. May be given more than once. One
    /// that fails is explained, and the exit code is 3 (the command's own
    /// failure has precedence). docs/reports.md lists the metrics.
    #[arg(long = "assert", value_name = "CONDITION")]
    assertions: Vec<String>,

    /// Write the assertions' results to a file as JUnit XML
    #[arg(long, value_name = "FILE", requires = "assertions")]
    pub(super) junit: Option<PathBuf>,

    /// Say more about what happens; twice for every attempt
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Fail {
    /// They go direct, unobserved, and are counted
    Open,
    /// They are refused, and counted
    Closed,
}

impl From<Fail> for redirect::Fail {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Open => Self::Open,
            Fail::Closed => Self::Closed,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum AnswerMissing {
    /// It is answered 501, with what it was
    #[default]
    Error,
    /// The upstream is asked, and the report counts it
    Upstream,
}

impl From<AnswerMissing> for Missing {
    fn from(missing: AnswerMissing) -> Self {
        match missing {
            AnswerMissing::Error => Missing::Error,
            AnswerMissing::Upstream => Missing::Upstream,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RedirectBy {
    Auto,
    /// Programs attached to the target's cgroup
    Ebpf,
    /// Packets marked by nf_tables; where a cgroup cannot be attached to, and for gateways
    Tproxy,
}

impl From<RedirectBy> for Choice {
    fn from(by: RedirectBy) -> Self {
        match by {
            RedirectBy::Auto => Choice::Auto,
            RedirectBy::Ebpf => Choice::Ebpf,
            RedirectBy::Tproxy => Choice::Tproxy,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    Text,
    Json,
    /// One page for a browser; of `run` and `attach` with a timeline of the latest attempts
    Html,
}

impl Form {
    pub(super) fn render(self, report: &Report, timeline: Option<&Timeline>, width: usize, color: bool) -> String {
        match self {
            Form::Text => report::text(report, width, color),
            Form::Json => report::json(report),
            Form::Html => report::html(report, timeline),
        }
    }
}

/// The options, checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) rules: RuleSet,
    pub(super) rule_settings: rules::Settings,
    pub(super) rule_files: Vec<PathBuf>,
    pub(super) routes: Routes,
    pub(super) upstream: Upstream,
    pub(super) assertions: Vec<Assertion>,
    pub(super) metrics: Option<TcpListener>,
    pub(super) page: Option<page::Opened>,
    pub(super) statsd: Option<SocketAddr>,
    pub(super) otlp: Option<report::otlp::Settings>,
    pub(super) answers: Option<Arc<Answers>>,
}

/// What `--port any` is kept as; no port has that number.
const ANY: u16 = 0;

fn watched_port(text: &str) -> Result<u16, String> {
    match text {
        "any" => Ok(ANY),
        _ => text.parse().ok().filter(|port| *port != ANY).ok_or("write a number from 1 to 65535, or `any`".into()),
    }
}

fn kept(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number <= history::MAX_KEPT);
    number.ok_or_else(|| format!("write a number from 0 to {}", history::MAX_KEPT))
}

impl Options {
    /// The watched ports; none stands for every port.
    pub(super) fn ports(&self) -> Vec<u16> {
        if self.ports.contains(&ANY) { Vec::new() } else { self.ports.clone() }
    }

    /// Checks everything that can be checked before anything is touched.
    pub(super) fn check(&self) -> Result<Checked, Failure> {
        if self.report == Form::Html && self.report_file.is_none() {
            return Err(Failure::usage("--report html makes a page for a browser; add --report-file report.html"));
        }
        let rule_files = self.rule_files.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        let rule_files: Vec<PathBuf> = rule_files.collect();
        let files = super::rules::read(&self.rule_files)?;
        let rules = RuleSet::parse(&self.rules, &files)?;
        let stop_when =
            |text: &str| StopWhen::parse(text).map_err(|error| Failure::usage(error.render(text).trim_end()));
        let stop_when = self.stop_when.as_deref().map(stop_when).transpose()?;
        let rule_header = self.no_rule_header.then_some(false);
        let guard = Guard { seed: self.seed, max_injections: self.max_injections, stop_when, rule_header };
        let rule_settings = rules::Settings { guard, dry_run: self.dry_run, until: None };
        let mappings = self.map_host.iter().map(|text| Mapping::parse(text)).collect::<Result<Vec<_>, _>>();
        let routes = mappings
            .and_then(|mappings| Routes::new(mappings, &self.intercept, &self.passthrough))
            .map_err(|error| Failure::usage(error.to_string()))?;
        let identity = self.client_cert.as_deref().map(|path| Identity::load(path, self.client_key.as_deref()));
        let upstream = Upstream::presenting(&self.upstream_ca, identity.transpose()?)?;
        let assertions = self
            .assertions
            .iter()
            .map(|text| Assertion::parse(text).map_err(|error| Failure::usage(error.render(text).trim_end())));
        let assertions = assertions.collect::<Result<_, _>>()?;
        let listen = |address| {
            control::listen(address).map_err(|error| {
                Failure::new(
                    69,
                    format!("cannot serve metrics at {address} ({error}); name another with --metrics=ADDRESS:PORT"),
                )
            })
        };
        let metrics = self.metrics.map(listen).transpose()?;
        let page = self.page.map(super::page::open).transpose()?;
        let statsd = self.statsd.as_deref().map(report::statsd::resolve).transpose().map_err(Failure::usage)?;
        let otlp = self.otlp.check(&upstream)?;
        let answers = self.answer_from.as_deref().map(super::recording::load).transpose()?;
        let answers = answers.map(|recording| Arc::new(Answers::new(&recording, self.answer_missing.into())));
        Ok(Checked {
            rules,
            rule_settings,
            rule_files,
            routes,
            upstream,
            assertions,
            metrics,
            page,
            statsd,
            otlp,
            answers,
        })
    }

    /// What is to be redirected, of all that reach takes in.
    pub(super) fn wanted(&self, reach: Reach) -> Wanted {
        Wanted {
            ports: self.ports(),
            allow_quic: self.allow_quic,
            fail: self.fail.into(),
            reach,
            choice: self.redirect.into(),
        }
    }

    /// Authorities besides the system's.
    pub(super) fn upstream_ca(&self) -> &[PathBuf] {
        &self.upstream_ca
    }

    /// The latest attempts have to be kept for the report.
    pub(super) fn wants_timeline(&self) -> bool {
        self.report == Form::Html
    }
}

/// What there is to say of the way, where it is not the usual one.
pub(super) fn told(way: &Way) -> Option<String> {
    let why = way.why.as_ref()?;
    Some(format!("Connections are redirected by {}: {why}.", if way.name == "tproxy" { "TPROXY" } else { "eBPF" }))
}
