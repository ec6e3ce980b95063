//! The file that `retryscope daemon` runs from, and its validation.
//!
//! In: TOML. Out: a [`Config`] that can be run, or everything that is wrong
//! with it, each with its place. The types below are the one source of truth:
//! what the default file says of a key is the key's own documentation.
mod check;
mod error;
mod print;
mod table;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};

pub use check::{Changeable, Groups, Prepared, some_path};
pub use error::{ConfigError, ConfigErrors};
pub use print::default_file;

use crate::{history, redirect::Taking};
use table::table;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where the daemon looks unless it is told otherwise.
pub const DEFAULT_FILE: &str = "/etc/retryscope/config.toml";

table! {
    /// What runs, and as whom.
    pub struct Config in "" {
        /// Connections to these ports are redirected. Empty: those to any TCP port.
        ports: Vec<u16> = vec![443] => default "[443]";
        /// Look only into connections to matching hosts; * stands for any characters. Empty: all.
        /// An authority limited to these domains is safer: `retryscope ca init --domain NAME`.
        intercept: Vec<String> = Vec::new() => example "[\"*.amazonaws.com\"]";
        /// Leave connections to matching hosts alone.
        passthrough: Vec<String> = Vec::new() => example "[\"*.internal.example\"]";
        /// Names that lead to an address, as NAME=ADDR[:PORT].
        map_host: Vec<String> = Vec::new() => example "[\"s3.example.com=127.0.0.1:8443\"]";
        /// PEM files with authorities to trust when connecting to upstreams, besides the system's.
        upstream_ca: Vec<PathBuf> = Vec::new() => example "[\"/etc/ssl/corporate.pem\"]";
        /// Show this certificate (and its chain) to upstreams that ask for one. Without it, a client that
        /// shows a certificate of its own is left alone. Empty: none.
        client_cert: PathBuf = PathBuf::new() => example "\"/etc/retryscope/client.pem\"";
        /// Its key, where it is not in the same file.
        client_key: PathBuf = PathBuf::new() => example "\"/etc/retryscope/client.key\"";
        /// Never leave a client alone that refuses the certificate: it fails each time.
        strict: bool = false => default "false";
        /// What becomes of connections that the daemon cannot carry, because it is stalled or out of room:
        /// open (they go direct) or closed (they are refused, also once it has died, until it is started
        /// again or stopped in order, or `retryscope bypass` is typed).
        fail: Fail = Fail::Open => default "\"open\"";
        /// Leave UDP to the watched ports (QUIC, HTTP/3) alone instead of refusing it.
        allow_quic: bool = false => default "false";
        /// How connections come here: ebpf (the kernel rewrites connects of cgroups), tproxy (nf_tables marks
        /// packets of a network namespace or from an interface), or auto (whichever the targets need).
        redirect: By = By::Auto => default "\"auto\"";
        /// Take connections that are made in other network namespaces as well, such as containers'. For it a
        /// process of the daemon keeps CAP_SYS_ADMIN and CAP_SYS_PTRACE; docs/security.md tells more.
        namespaces: bool = true => default "true";
        /// The folder of the authority's certificate and key. Only root may be able to read the key.
        ca_dir: PathBuf = "/etc/retryscope".into() => default "\"/etc/retryscope\"";
        /// Whom the part that serves connections becomes, once everything is attached.
        user: String = "retryscope".into() => default "\"retryscope\"";
        /// Keep so many of the latest attempts for `retryscope flows` and other views, at most 1000000; 0 keeps none.
        keep: usize = history::KEPT => default "100000";
        /// What outlives a restart goes here, into a folder named after the instance. Empty: nothing does.
        state_dir: PathBuf = "/var/lib/retryscope".into() => default "\"/var/lib/retryscope\"";
        /// The control socket goes here, into a folder named after the instance.
        runtime_dir: PathBuf = "/run/retryscope".into() => default "\"/run/retryscope\"";
        /// Serve a page to watch and steer the daemon by at this address; `retryscope page` prints it with the
        /// token that lets a browser in, for whoever may change rules. Empty: none.
        page: String = String::new() => example "\"127.0.0.1:8460\"";
        /// How long exchanges under way may take to finish after the end is asked for.
        drain: Span = Span(Duration::from_secs(10)) => default "\"10s\"";
    }
    tables {
        targets: Targets,
        rules: Rules,
        control: Control,
        log: Log,
        metrics: Metrics,
        statsd: Statsd,
        otlp: Otlp,
        events: Events,
        recording: Recording,
    }
}

table! {
    /// Whose connections are redirected: every process in a matching cgroup and in those below it, also in
    /// cgroups that appear later. Only connections made from then on are seen.
    pub struct Targets in "targets" {
        /// By path, as in /proc/PID/cgroup: * stands for any characters but /, ** for any at all.
        cgroups: Vec<String> = Vec::new() => example "[\"/batch.slice/**\"]";
        /// By the name of the systemd unit (a service, scope, socket or slice); * stands for any characters.
        units: Vec<String> = Vec::new() => example "[\"worker@*.service\"]";
        /// By the container's name (Kubernetes: NAMESPACE/POD/CONTAINER), or by its id or how that begins;
        /// * stands for any characters. Names are known of engines that root runs.
        containers: Vec<String> = Vec::new() => example "[\"web-*\", \"3f4a\"]";
        /// Instead of cgroups, by TPROXY: every process in the daemon's own network namespace.
        netns: bool = false => default "false";
        /// Instead of cgroups, by TPROXY: what arrives on these interfaces on its way elsewhere (a gateway).
        ingress: Vec<String> = Vec::new() => example "[\"eth0\"]";
    }
}

table! {
    /// What is done to matching attempts; docs/rules.md tells all of it.
    pub struct Rules in "rules" {
        /// Rules as on the command line. The first that matches wins.
        rules: Vec<String> = Vec::new() => example "[\"~svc s3 & ~attempt ..2 => s3-slowdown chance 1%\"]";
        /// Files of rules, in TOML or JSON, relative to this one.
        files: Vec<PathBuf> = Vec::new() => example "[\"rules.toml\"]";
        /// What chance is drawn from.
        seed: Option<u64> = None => example "42";
        /// Count what rules would do, and do none of it.
        dry_run: bool = false => default "false";
        /// Name the rule in the answers that it changed (x-retryscope-rule).
        rule_header: Option<bool> = None => example "true";
        /// No rule acts any more once rules have acted on so many attempts.
        max_injections: Option<u64> = None => example "1000";
        /// No rule acts any more once more attempts have ended like this: FILTER > N/TIME.
        stop_when: String = String::new() => example "\"~genuine & ~c 500..599 > 10/1m\"";
    }
}

table! {
    /// Who may use the control socket besides root (`retryscope report`, `rules`, `reload`, ...).
    pub struct Control in "control" {
        /// Members of this group may see everything and change nothing. Empty: nobody.
        readers: String = String::new() => example "\"retryscope\"";
        /// Members of this group may also change rules and ask for a reload. Empty: nobody.
        admins: String = String::new() => example "\"adm\"";
    }
}

table! {
    /// What the daemon says of itself.
    pub struct Log in "log" {
        /// error, warn, info, debug or trace; or a filter as of RUST_LOG.
        level: String = "info".into() => default "\"info\"";
        /// journal, stderr, or auto: the journal where systemd has started us.
        to: LogTo = LogTo::Auto => default "\"auto\"";
    }
}

table! {
    /// Prometheus metrics, under /metrics.
    pub struct Metrics in "metrics" {
        /// Serve them at this address. Empty: do not.
        listen: String = String::new() => example "\"127.0.0.1:9464\"";
    }
}

table! {
    /// A line for each retry, by UDP.
    pub struct Statsd in "statsd" {
        /// The server, as HOST:PORT. Empty: none.
        server: String = String::new() => example "\"127.0.0.1:8125\"";
    }
}

table! {
    /// Metrics and a trace of each call for an OpenTelemetry collector, by OTLP over HTTP.
    pub struct Otlp in "otlp" {
        /// The collector. Empty: none.
        endpoint: String = String::new() => example "\"http://127.0.0.1:4318\"";
        /// Sent with what is pushed, as NAME=VALUE.
        headers: Vec<String> = Vec::new() => example "[\"api-key=secret\"]";
        /// Push metrics this often.
        interval: Span = Span(Duration::from_secs(10)) => default "\"10s\"";
    }
}

table! {
    /// Every attempt as a line of JSON.
    pub struct Events in "events" {
        /// The file; emptied when the daemon starts. Empty: none.
        file: PathBuf = PathBuf::new() => example "\"/var/log/retryscope/events.jsonl\"";
    }
}

table! {
    /// Every attempt with its heads, for `retryscope show` and `replay`.
    pub struct Recording in "recording" {
        /// The file: HAR if it ends in .har, JSON lines if it ends in .jsonl. Added to where it is there
        /// already. Empty: none.
        file: PathBuf = PathBuf::new() => example "\"/var/log/retryscope/attempts.jsonl\"";
        /// Record bodies as well, up to so many bytes of each. 0: none.
        bodies: u64 = 0 => default "0";
        /// Record credentials as they are; whoever can read the file can use them.
        secrets: bool = false => default "false";
    }
}

/// A time as people write it: `10s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map(Span)
            .map_err(|_| D::Error::custom(format!("`{text}` is no time; write it as in 10s, 2m or 1h")))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTo {
    Auto,
    Journal,
    Stderr,
}

/// How connections come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Auto,
    Ebpf,
    Tproxy,
}

impl Config {
    /// What TPROXY is to take; `None` where the targets are cgroups.
    pub fn taking(&self) -> Option<Taking> {
        match &self.targets {
            Targets { netns: true, .. } => Some(Taking::Namespace),
            Targets { ingress, .. } if !ingress.is_empty() => Some(Taking::Ingress(ingress.clone())),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    Open,
    Closed,
}

impl From<Fail> for crate::redirect::Fail {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Open => Self::Open,
            Fail::Closed => Self::Closed,
        }
    }
}

/// A file, as it was read.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
}

impl File {
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let failed =
            |why: String| ConfigErrors::general(path, format!("{why}; `retryscope config default` prints one"));
        let read = || {
            let about = fs::metadata(path)?;
            if about.len() > MAX_FILE {
                return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
            }
            fs::read_to_string(path)
        };
        let text = read().map_err(|error| failed(format!("cannot be read ({error})")))?;
        Ok(Self { path: path.into(), text })
    }

    /// A path in the file: relative to its folder.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        std::path::absolute(folder.join(path)).unwrap_or_else(|_| path.into())
    }
}
