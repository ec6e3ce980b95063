//! The local API of a running instance: HTTP and JSON over a Unix socket.
//!
//! In: requests of whoever may use the socket: root, and where a daemon is
//! told so, the members of a group ([`Access`]). Out: the rules in force, changed for the next attempt. A
//! change that is refused changes nothing, and says why in `error`.
//!
//! What there is, is told by `GET /v1/openapi.json`, which is made of the
//! handlers and their types; `docs/openapi.json` is the same.
mod access;
mod client;
mod held;
mod scraped;
mod server;
mod watch;

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use access::Access;
pub use client::{Client, ClientError, FollowingHeld, all, at, find, named, socket};
pub use held::{
    Act, Body, HeldInFull, HeldList, HeldView, HoldAt, HoldEvent, InterceptView, Intercepts, Message, NewIntercept,
    Over, Released, Skipped, Verdict, Withdrawn,
};
pub use scraped::{MetricsServer, listen};
pub use server::{Server, api, bind, bind_at, document, refused};
pub use watch::{Following, Told, Wanted};

use crate::{
    flow::Moment,
    history::History,
    process::{confine, launch::NONCE},
    proxy::{Account, Bypass, Counted, Gate, Load, Proxy},
    report::{
        self, Meta, Report, Said, differences,
        own::{Gate as GateState, Lives, Own},
    },
    rules::{RuleErrors, RuleSet, RuleStatus, Source},
};

/// The socket below an instance's folder; the folder in between is root's.
const FOLDER: &str = "control";
pub const SOCKET: &str = "api.sock";
/// Below it, a folder for each daemon, by name.
pub const DAEMONS: &str = "/run/retryscope";
/// In that folder: the daemon's pid.
pub const PID: &str = "pid";

/// Which instance this is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct About {
    pub pid: u32,
    pub version: String,
    /// What it watches, for people.
    pub target: String,
    /// The command that it runs; absent where it watches what ran already.
    #[serde(default)]
    pub command: Option<String>,
    /// What a daemon watches at the moment.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Present where new connections go direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypassed: Option<Bypassed>,
    /// Connections are redirected, and served.
    #[serde(default)]
    pub ready: bool,
    /// Where everybody can see that their connections are redirected.
    #[serde(default)]
    pub beacon: Option<Shown>,
}

/// Of an instance that is bypassed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bypassed {
    /// As RFC 3339 has it.
    pub since: String,
    /// A restart does not end it.
    pub kept: bool,
}

/// What is to become of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BypassWish {
    pub bypassed: bool,
    /// Those under way are to leave, too.
    #[serde(default)]
    pub now: bool,
    /// Also after a restart.
    #[serde(default)]
    pub keep: bool,
}

/// What tells whoever connects to an address that its connections are
/// redirected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Shown {
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// What is answered there, byte by byte.
    #[schema(value_type = Vec<u8>)]
    pub nonce: [u8; NONCE],
}

/// What a daemon adds.
pub trait Host: fmt::Debug + Send + Sync {
    /// Reads the configuration again and puts it in force. May take a moment.
    fn reload(&self, account: &Account) -> Result<Reloaded, String>;
    /// What is watched now.
    fn targets(&self) -> Vec<String>;
    /// The process that stays privileged.
    fn keeper(&self) -> u32;
    /// The process that may enter network namespaces, if there is one.
    fn porter(&self) -> Option<u32>;
    /// The authority's key.
    fn key(&self) -> &Path;
    /// Has a bypass outlive a restart, or no longer.
    fn keep_bypass(&self, keep: bool) -> Result<(), String>;
    /// Whether one would.
    fn keeps_bypass(&self) -> bool;
    /// Whether the last reload was taken, if there was one.
    fn reloaded(&self) -> Option<bool>;
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// How many rules are in force now.
    pub rules: usize,
    /// What is to be known besides, a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What an instance may do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Privileges {
    pub processes: Vec<Part>,
    /// What the process that serves connections tried just now.
    pub attempts: Vec<Attempted>,
}

/// A process of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// `server`, `keeper` or `porter`.
    pub role: String,
    pub pid: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attempted {
    pub what: String,
    /// How the kernel refused it; absent where it could be done.
    pub refused: Option<String>,
}

/// The rules in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RulesView {
    pub seed: u64,
    pub dry_run: bool,
    /// Rewritten, broken off or held up so far; on a dry run, would have been.
    pub injections: u64,
    /// Why no rule acts any more.
    pub stopped: Option<String>,
    pub rules: Vec<RuleView>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleView {
    pub name: String,
    /// As on the command line.
    pub rule: String,
    /// `command line`, `added`, or the path of a file.
    pub source: String,
    pub enabled: bool,
    pub hits: u64,
}

impl RuleView {
    fn of(status: &RuleStatus) -> Self {
        Self {
            name: status.name.to_string(),
            rule: status.text.clone(),
            source: match &status.source {
                Source::CommandLine => "command line".into(),
                Source::File(path) => path.display().to_string(),
                Source::Added => "added".into(),
            },
            enabled: status.enabled,
            hits: status.hits,
        }
    }
}

/// The report so far, and what it says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    pub report: Report,
    #[serde(flatten)]
    pub said: Said,
}

/// Where the page is.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct PageAddress {
    /// With the token.
    pub url: String,
}

/// A text that lets somebody in, and so is no log's.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Debug for PageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageAddress")
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRule {
    /// `FILTER => ACTION [LIMITS]`, as on the command line.
    rule: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Added {
    name: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Switch {
    enabled: bool,
}

/// What a change came to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Changed {
    /// How many rules are in force now.
    rules: usize,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Refused {
    /// One sentence: what is wrong, and what to do about it.
    error: String,
}

/// A rule that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckedRule {
    /// What it would be called.
    pub name: String,
    /// As it would be listed.
    pub rule: String,
}

/// What may come at the end of a filter that is typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Completed {
    /// How many characters at the end of the text an item takes the place of.
    pub replace: usize,
    /// Likeliest first.
    pub items: Vec<Offer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    pub text: String,
    /// What an operator means; empty for values.
    pub help: String,
}

/// What the data path has to do.
pub trait Work: fmt::Debug + Send + Sync {
    fn told(&self) -> (Load, Counted);
}

impl Work for Proxy {
    fn told(&self) -> (Load, Counted) {
        (self.capacity.load(), self.counters.read())
    }
}

/// What the API works on.
#[derive(Debug)]
pub struct Controlled {
    pub account: Arc<Account>,
    /// Ended attempts.
    pub history: Arc<History>,
    pub gate: Arc<dyn Gate>,
    pub bypass: Arc<Bypass>,
    pub work: Arc<dyn Work>,
    /// Told where it is known.
    pub lives: Option<Lives>,
    /// Rule files, in their order; read again by a reload.
    pub files: Vec<PathBuf>,
    pub about: About,
    pub ports: Vec<u16>,
    pub host: Option<Arc<dyn Host>>,
    /// Turns true when connections are served.
    pub ready: tokio::sync::watch::Sender<bool>,
    /// The page's address with its token.
    pub page: Option<Secret>,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("no rule file was given when this instance started, so there is nothing to read again; use `rules add`")]
    NoFiles,
    #[error("cannot read the rules in {} ({error}); the rules in force stay", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{0}\nthe rules in force stay")]
    Broken(RuleErrors),
    /// A daemon's, in its own words.
    #[error("{0}\nwhat was in force stays")]
    Refused(String),
}

impl Controlled {
    /// Reads the rule files again and puts their rules in force. Returns how
    /// many rules there are.
    ///
    /// # Errors
    /// The rules in force stay as they were.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        if let Some(host) = &self.host {
            return host.reload(&self.account).map_err(ReloadError::Refused);
        }
        if self.files.is_empty() {
            return Err(ReloadError::NoFiles);
        }
        let mut texts = Vec::new();
        for path in &self.files {
            let text =
                fs::read_to_string(path).map_err(|error| ReloadError::Unreadable { path: path.clone(), error })?;
            texts.push((path.clone(), text));
        }
        let rules = self.edit(|set| set.with_files(&texts)).map_err(ReloadError::Broken)?;
        Ok(Reloaded { rules, notes: Vec::new() })
    }

    fn edit<E>(&self, change: impl FnOnce(&RuleSet) -> Result<RuleSet, E>) -> Result<usize, E> {
        let now = self.account.clock.now();
        self.account.rules.edit(change, now)?;
        Ok(self.account.rules.list().len())
    }

    fn about(&self) -> About {
        let targets = self.host.as_ref().map(|host| host.targets()).unwrap_or_default();
        let bypassed = self.bypass.since().map(|since| Bypassed {
            since: humantime::format_rfc3339_seconds(self.account.clock.wall(since)).to_string(),
            kept: self.host.as_ref().is_some_and(|host| host.keeps_bypass()),
        });
        About { targets, bypassed, ready: *self.ready.borrow(), ..self.about.clone() }
    }

    /// Does what is wished, or nothing of it.
    fn switch_bypass(&self, wish: BypassWish) -> Result<About, String> {
        match &self.host {
            // What is taken back must not come again, and what cannot be kept
            // is not begun.
            Some(host) => host.keep_bypass(wish.bypassed && wish.keep)?,
            None if wish.keep => {
                return Err("this instance ends with its command or by a signal, and so does a bypass; \
                            only a daemon's can be kept over a restart"
                    .into());
            }
            None => {}
        }
        self.bypass.switch(wish.bypassed, wish.now).map_err(|error| error.to_string())?;
        Ok(self.about())
    }

    /// Tries what the process that serves connections must not be able to do.
    fn privileges(&self) -> Privileges {
        let part = |role: &str, pid| Part { role: role.to_owned(), pid };
        let mut processes = vec![part("server", self.about.pid)];
        let Some(host) = &self.host else { return Privileges { processes, attempts: Vec::new() } };
        processes.push(part("keeper", host.keeper()));
        processes.extend(host.porter().map(|pid| part("porter", pid)));
        let attempts = confine::attempts(host.key())
            .into_iter()
            .map(|(what, error)| Attempted { what, refused: error.map(|error| error.to_string()) });
        Privileges { processes, attempts: attempts.collect() }
    }

    /// What the instance tells of itself, for metrics.
    fn own(&self) -> Own {
        let (load, counted) = self.work.told();
        let bypassed = self.bypass.since().is_some();
        Own {
            gate: match load.room {
                _ if bypassed => GateState::Bypassed,
                0 => GateState::Full,
                _ => GateState::Open,
            },
            load,
            strays: counted.strays,
            accept_failures: counted.accept_failures,
            feed_dropped: self.account.feed.dropped(),
            targets: self.host.as_ref().map(|host| host.targets().len() as u64),
            reload: self.host.as_ref().and_then(|host| host.reloaded()),
            keeper: self.host.as_ref().map(|host| host.keeper()),
            porter: self.host.as_ref().and_then(|host| host.porter()),
            lives: self.lives,
        }
    }

    /// The report of the instance as it stands.
    fn report(&self) -> Report {
        let account = &self.account;
        let now = account.clock.now();
        let snapshot = account.ledger().snapshot(now);
        let mut notes = vec![format!("The report so far: the instance with pid {} is running.", self.about.pid)];
        let counters = self.gate.counters();
        notes.extend(counters.sentences());
        if self.bypass.since().is_some() {
            notes.push("It is bypassed at the moment: new connections go direct, unobserved.".into());
        }
        notes.extend(account.rules.state().stopped.map(|why| format!("Rules stopped acting: {why}.")));
        report::build(
            &snapshot,
            &Meta {
                seed: account.rules.seed(),
                started: account.clock.wall(Moment::default()),
                ended: account.clock.wall(now),
                command: self.about.command.clone(),
                ports: self.ports.clone(),
                rules: account.rules.list().into_iter().map(|rule| (rule.name.to_string(), rule.hits)).collect(),
                redirect: serde_json::to_value(counters).unwrap_or_default(),
                assertions: Vec::new(),
                differences: differences(&counters, false),
                notes,
            },
        )
    }

    fn overview(&self) -> Overview {
        let report = self.report();
        Overview { said: Said::of(&report), report }
    }

    fn rules(&self) -> RulesView {
        let rules = &self.account.rules;
        let state = rules.state();
        RulesView {
            seed: state.seed,
            dry_run: state.dry_run,
            injections: state.injections,
            stopped: state.stopped,
            rules: rules.list().iter().map(RuleView::of).collect(),
        }
    }
}
