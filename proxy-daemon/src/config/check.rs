//! From a file's text to what can be run.
//!
//! Nothing is guessed: a key that is not known, or a value that means nothing,
//! is an error with its place, and all of them are told at once.
use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use retryscope_ebpf::MAX_PORTS;

use super::{By, Config, ConfigErrors, Fail, File, table};
use crate::{
    flow::filter::FilterError,
    history,
    process::confine::{Account, find_group},
    proxy::{Mapping, Routes},
    redirect::{PatternError, Patterns},
    report::{otlp, statsd},
    rules::{
        self, Guard, RuleSet, StopWhen,
        tree::{self, Entry, Node, Value},
    },
    tls::{Identity, Upstream},
};

/// JSON keeps numbers exactly up to here.
const MAX_SEED: u64 = (1 << 53) - 1;

/// Who may use the control socket besides root; by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    pub readers: Option<u32>,
    pub admins: Option<u32>,
}

/// What can be put in force while the daemon runs.
#[derive(Debug)]
pub struct Changeable {
    pub config: Config,
    pub rules: RuleSet,
    pub routes: Routes,
    pub patterns: Patterns,
}

/// Everything that an instance is started with.
#[derive(Debug)]
pub struct Prepared {
    pub changeable: Changeable,
    pub rule_settings: rules::Settings,
    pub upstream: Upstream,
    pub metrics: Option<SocketAddr>,
    pub page: Option<SocketAddr>,
    pub statsd: Option<SocketAddr>,
    pub otlp: Option<otlp::Settings>,
    pub account: Account,
    pub groups: Groups,
}

/// A file being checked.
struct Checked<'a> {
    file: &'a File,
    root: Node,
    errors: Vec<FilterError>,
    /// Of defaults: they stand nowhere in the file.
    general: Vec<String>,
}

impl File {
    /// The keys and their values, each of its kind; not what they mean.
    pub fn parse(&self) -> Result<Config, ConfigErrors> {
        Ok(self.open()?.1)
    }

    fn open(&self) -> Result<(Checked<'_>, Config), ConfigErrors> {
        let of = |errors| ConfigErrors::of(&self.path, &self.text, errors);
        let root = tree::toml(&self.text).map_err(of)?;
        let mut checked = Checked { file: self, root, errors: Vec::new(), general: Vec::new() };
        checked.keys();
        if !checked.errors.is_empty() {
            return Err(of(checked.errors));
        }
        let config = toml::from_str(&self.text).map_err(|error| {
            let message = error.message().replace('\n', ", ");
            of(vec![FilterError::new(error.span().unwrap_or(0..0), message)])
        })?;
        Ok((checked, config))
    }

    /// The files of rules that the file names.
    pub fn rule_files(&self, config: &Config) -> Vec<PathBuf> {
        config.rules.files.iter().map(|path| self.resolve(path)).collect()
    }

    /// Reads the files of rules that the file names.
    pub fn read_rules(&self, config: &Config) -> Result<Vec<(PathBuf, String)>, ConfigErrors> {
        let mut texts = Vec::new();
        for path in self.rule_files(config) {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigErrors::general(&path, format!("cannot be read ({error}); check the path")))?;
            texts.push((path, text));
        }
        Ok(texts)
    }

    /// What can be put in force at any time.
    pub fn changeable(&self, rule_files: &[(PathBuf, String)]) -> Result<Changeable, ConfigErrors> {
        let (mut checked, config) = self.open()?;
        let changeable = checked.changeable(config, rule_files)?;
        checked.done().map(|()| changeable)
    }

    /// Everything that an instance is started with.
    pub fn prepare(&self) -> Result<Prepared, ConfigErrors> {
        let (mut checked, config) = self.open()?;
        let rule_files = self.read_rules(&config)?;
        let prepared = checked.prepare(&config, &rule_files);
        checked.done()?;
        prepared
    }
}

impl Checked<'_> {
    fn done(self) -> Result<(), ConfigErrors> {
        let mut errors = ConfigErrors::of(&self.file.path, &self.file.text, self.errors);
        self.general.into_iter().for_each(|message| errors.add(&self.file.path, message));
        if errors.0.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Every key is one that is known.
    fn keys(&mut self) {
        let tables = table::all();
        let names: Vec<&str> = tables.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
        let keys = |name: &str| -> Vec<&str> {
            let found = tables.iter().find(|(table, ..)| *table == name);
            found.map(|(_, _, keys)| keys.iter().map(|key| key.name).collect()).unwrap_or_default()
        };
        let Value::Table(entries) = &self.root.value else { return };
        for Entry { key, place, node } in entries {
            if !names.contains(&key.as_str()) {
                let known: Vec<&str> = keys("").into_iter().chain(names.iter().copied()).collect();
                if !known.contains(&key.as_str()) {
                    self.errors.push(tree::unknown("the file", key, place.clone(), &known));
                }
                continue;
            }
            let Value::Table(inner) = &node.value else {
                self.errors.push(FilterError::new(node.span.clone(), format!("`{key}` is a table: write [{key}]")));
                continue;
            };
            let known = keys(key);
            for Entry { key: inner, place, .. } in inner {
                if !known.contains(&inner.as_str()) {
                    self.errors.push(tree::unknown(&format!("[{key}]"), inner, place.clone(), &known));
                }
            }
        }
    }

    /// Where a value stands: a key's, or an item's of its list.
    fn place(&self, table: &str, key: &str, item: Option<usize>) -> Option<Range<usize>> {
        fn find<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
            let Value::Table(entries) = &node.value else { return None };
            entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
        }
        let table = if table.is_empty() { Some(&self.root) } else { find(&self.root, table) };
        let node = table.and_then(|table| find(table, key))?;
        let item = item.and_then(|item| match &node.value {
            Value::List(items) => items.get(item),
            _ => None,
        });
        Some(item.unwrap_or(node).span.clone())
    }

    fn wrong(&mut self, (table, key): (&str, &str), item: Option<usize>, message: impl Into<String>) {
        match self.place(table, key, item) {
            Some(place) => self.errors.push(FilterError::new(place, message)),
            None => self.general.push(format!("`{key}` is not set, and its default does not do: {}", message.into())),
        }
    }

    /// What each of a list's texts means; those that mean nothing are errors.
    fn each<T, E: ToString>(
        &mut self,
        at: (&str, &str),
        texts: &[String],
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for (item, text) in texts.iter().enumerate() {
            match read(text) {
                Ok(value) => found.push(value),
                // Options of the command line are keys here.
                Err(error) => self.wrong(at, Some(item), error.to_string().replace("--map-host", "map_host")),
            }
        }
        found
    }

    fn changeable(&mut self, config: Config, rule_files: &[(PathBuf, String)]) -> Result<Changeable, ConfigErrors> {
        let one = |text: &str| [text.to_owned()];
        self.each(("", "intercept"), &config.intercept, |text| Routes::new(Vec::new(), &one(text), &[]));
        self.each(("", "passthrough"), &config.passthrough, |text| Routes::new(Vec::new(), &[], &one(text)));
        let mappings = self.each(("", "map_host"), &config.map_host, Mapping::parse);
        let routes = Routes::new(mappings, &config.intercept, &config.passthrough).unwrap_or_default();
        let targets = &config.targets;
        type Read = fn(&[String]) -> Result<Patterns, PatternError>;
        let lists: [(&str, &[String], Read); 3] = [
            ("cgroups", &targets.cgroups, |list| Patterns::new(list, &[], &[])),
            ("units", &targets.units, |list| Patterns::new(&[], list, &[])),
            ("containers", &targets.containers, |list| Patterns::new(&[], &[], list)),
        ];
        for (key, texts, read) in lists {
            self.each(("targets", key), texts, |text| read(&one(text)));
        }
        let patterns = Patterns::new(&targets.cgroups, &targets.units, &targets.containers).unwrap_or_default();
        for (item, text) in config.rules.rules.iter().enumerate() {
            let Err(errors) = RuleSet::parse(&one(text), &[]) else { continue };
            for error in errors.0 {
                let Some(place) = self.place("rules", "rules", Some(item)) else { continue };
                let within = error.place.map_or(place.clone(), |excerpt| self.within(&place, text, &excerpt));
                self.errors.push(FilterError::new(within, error.message));
            }
        }
        let rules = if self.errors.is_empty() {
            RuleSet::parse(&config.rules.rules, rule_files).map_err(ConfigErrors::from)?
        } else {
            RuleSet::default()
        };
        Ok(Changeable { config, rules, routes, patterns })
    }

    /// Where a place in a string's value stands in the file, if that can be
    /// said: the value stands there as it is.
    fn within(&self, place: &Range<usize>, value: &str, excerpt: &crate::flow::filter::Excerpt) -> Range<usize> {
        let raw = self.file.text.get(place.clone()).unwrap_or_default();
        let (Some(at), 1) = (raw.find(value), excerpt.line) else { return place.clone() };
        let before: usize = value.chars().take(excerpt.column.saturating_sub(1)).map(char::len_utf8).sum();
        let carets = excerpt.marks.trim_start().chars().count();
        let length: usize = value[before..].chars().take(carets).map(char::len_utf8).sum();
        let start = place.start + at + before;
        start..start + length
    }

    /// The targets, the way to them and what it can do fit together.
    fn ways(&mut self, config: &Config) {
        let targets = &config.targets;
        let key = if targets.netns { "netns" } else { "ingress" };
        if config.taking().is_none() {
            if config.redirect == By::Tproxy {
                let message = "TPROXY takes a network namespace or interfaces, not cgroups: set `netns` or `ingress` \
                               in [targets], or write auto";
                self.wrong(("", "redirect"), None, message);
            }
            return;
        }
        if targets.netns && !targets.ingress.is_empty() {
            self.wrong(("targets", "ingress"), None, "a daemon takes `netns` or `ingress`, not both: start another");
        }
        if !(targets.cgroups.is_empty() && targets.units.is_empty() && targets.containers.is_empty()) {
            let message = format!("`{key}` stands in the place of cgroups, units and containers: start another daemon");
            self.wrong(("targets", key), None, message);
        }
        if config.redirect == By::Ebpf {
            let message = format!("eBPF takes cgroups; `{key}` in [targets] is for TPROXY: write auto or tproxy");
            self.wrong(("", "redirect"), None, message);
        }
        if config.fail == Fail::Closed {
            let message = "what TPROXY redirects goes direct as soon as the daemon is gone: write open";
            self.wrong(("", "fail"), None, message);
        }
    }

    fn prepare(&mut self, config: &Config, rule_files: &[(PathBuf, String)]) -> Result<Prepared, ConfigErrors> {
        let changeable = self.changeable(config.clone(), rule_files)?;
        let ports = config.ports.len();
        if ports > MAX_PORTS {
            self.wrong(("", "ports"), None, format!("at most {MAX_PORTS} ports can be watched; or every one, by []"));
        }
        for (item, _) in config.ports.iter().enumerate().filter(|(_, port)| **port == 0) {
            self.wrong(("", "ports"), Some(item), "a port is a number from 1 to 65535");
        }
        self.ways(config);
        if config.keep > history::MAX_KEPT {
            self.wrong(("", "keep"), None, format!("at most {} attempts can be kept", history::MAX_KEPT));
        }
        let extra: Vec<PathBuf> = config.upstream_ca.iter().map(|path| self.file.resolve(path)).collect();
        for (item, path) in extra.iter().enumerate() {
            if let Err(error) = Upstream::new(std::slice::from_ref(path)) {
                self.wrong(("", "upstream_ca"), Some(item), error.to_string());
            }
        }
        let rules = &config.rules;
        if rules.seed.is_some_and(|seed| seed > MAX_SEED) {
            self.wrong(("rules", "seed"), None, format!("a seed is a number from 0 to {MAX_SEED}"));
        }
        let mut guard = Guard { seed: rules.seed, max_injections: rules.max_injections, ..Guard::default() };
        guard.rule_header = rules.rule_header;
        if !rules.stop_when.is_empty() {
            match StopWhen::parse(&rules.stop_when) {
                Ok(stop) => guard.stop_when = Some(stop),
                Err(error) => self.wrong(("rules", "stop_when"), None, error.to_string()),
            }
        }
        let metrics = self.some(("metrics", "listen"), &config.metrics.listen, |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("`{text}` is no address to listen at; write ADDRESS:PORT, as in 127.0.0.1:9464"))
        });
        let page = self.some(("", "page"), &config.page, |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("`{text}` is no address to listen at; write ADDRESS:PORT, as in 127.0.0.1:8460"))
        });
        let statsd = self.some(("statsd", "server"), &config.statsd.server, statsd::resolve);
        let account = match Account::find(&config.user) {
            Some(Account { uid: 0, .. }) => {
                self.wrong(("", "user"), None, "root is whom the daemon must not stay; name another user");
                None
            }
            Some(account) => Some(account),
            None => {
                let message = format!(
                    "there is no user `{}` here; `useradd --system --no-create-home {}` makes it",
                    config.user, config.user
                );
                self.wrong(("", "user"), None, message);
                None
            }
        };
        let group = |text: &str| find_group(text).ok_or_else(|| format!("there is no group `{text}` here"));
        let groups = Groups {
            readers: self.some(("control", "readers"), &config.control.readers, group),
            admins: self.some(("control", "admins"), &config.control.admins, group),
        };
        let level = config.log.level.parse::<tracing_subscriber::EnvFilter>();
        if let Err(error) = level {
            self.wrong(("log", "level"), None, format!("{error}; write error, warn, info, debug or trace"));
        }
        let key = some_path(&config.client_key).map(|path| self.file.resolve(path));
        let identity = some_path(&config.client_cert).map(|path| self.file.resolve(path));
        let identity = match identity.map(|path| Identity::load(&path, key.as_deref())).transpose() {
            Ok(identity) => identity,
            Err(error) => {
                self.wrong(("", "client_cert"), None, error.to_string());
                None
            }
        };
        let upstream = Upstream::presenting(if self.errors.is_empty() { &extra } else { &[] }, identity)
            .map_err(|error| ConfigErrors::general(&self.file.path, error.to_string()))?;
        let pushed = otlp::Settings::new(
            &config.otlp.endpoint,
            &config.otlp.headers,
            config.otlp.interval.0,
            upstream.clone(),
            |_| None,
        );
        let otlp = match pushed {
            _ if config.otlp.endpoint.is_empty() => None,
            Ok(settings) => Some(settings),
            Err(error) => {
                let key = match error {
                    otlp::SettingsError::Url(_) => "endpoint",
                    otlp::SettingsError::Header(_) => "headers",
                    otlp::SettingsError::Interval => "interval",
                };
                let message = error.to_string();
                let message = message.replace("--otlp-", "").replace("--otlp ", "");
                self.wrong(("otlp", key), None, message);
                None
            }
        };
        Ok(Prepared {
            changeable,
            rule_settings: rules::Settings { guard, dry_run: config.rules.dry_run, until: None },
            upstream,
            metrics,
            page,
            statsd,
            otlp,
            // Without one there is an error.
            account: account.unwrap_or(Account { uid: u32::MAX, gid: u32::MAX }),
            groups,
        })
    }

    /// What a text means, unless it is empty.
    fn some<T, E: ToString>(&mut self, at: (&str, &str), text: &str, read: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        match read(text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(at, None, error.to_string());
                None
            }
        }
    }
}

impl Config {
    /// Keys whose values differ and that hold from the start of an instance
    /// to its end.
    pub fn unchangeable(&self, new: &Self) -> Vec<&'static str> {
        let differs = [
            ("ports", self.ports != new.ports),
            ("upstream_ca", self.upstream_ca != new.upstream_ca),
            ("client_cert", self.client_cert != new.client_cert),
            ("client_key", self.client_key != new.client_key),
            ("strict", self.strict != new.strict),
            ("fail", self.fail != new.fail),
            ("allow_quic", self.allow_quic != new.allow_quic),
            ("redirect", self.redirect != new.redirect),
            ("targets.netns", self.targets.netns != new.targets.netns),
            ("targets.ingress", self.targets.ingress != new.targets.ingress),
            ("namespaces", self.namespaces != new.namespaces),
            ("ca_dir", self.ca_dir != new.ca_dir),
            ("user", self.user != new.user),
            ("state_dir", self.state_dir != new.state_dir),
            ("runtime_dir", self.runtime_dir != new.runtime_dir),
            ("page", self.page != new.page),
            ("drain", self.drain != new.drain),
            ("rules.seed", self.rules.seed != new.rules.seed),
            ("rules.dry_run", self.rules.dry_run != new.rules.dry_run),
            ("rules.rule_header", self.rules.rule_header != new.rules.rule_header),
            ("rules.max_injections", self.rules.max_injections != new.rules.max_injections),
            ("rules.stop_when", self.rules.stop_when != new.rules.stop_when),
            ("control", self.control != new.control),
            ("log.to", self.log.to != new.log.to),
            ("metrics", self.metrics != new.metrics),
            ("statsd", self.statsd != new.statsd),
            ("otlp", self.otlp != new.otlp),
            ("events", self.events != new.events),
            ("recording", self.recording != new.recording),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// A path that is not empty.
pub fn some_path(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File { path: "/etc/retryscope/config.toml".into(), text: text.to_owned() }
    }

    fn wrong(text: &str) -> String {
        match file(text).prepare() {
            Ok(_) => panic!("accepted: {text}"),
            Err(errors) => errors.to_string(),
        }
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let said = wrong("prots = [443]\n[targets]\nunit = [\"a.service\"]\n[nothing]\n");
        assert!(
            said.contains("config.toml:1:1: the file has no key `prots`; did you mean `ports`?\n  prots"),
            "{said}"
        );
        assert!(said.contains("config.toml:3:1: [targets] has no key `unit`; did you mean `units`?"), "{said}");
        assert!(said.contains(":4:2: the file has no key `nothing`"), "{said}");
        assert!(said.contains("  ^^^^^"), "{said}");
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        for (text, place, message) in [
            ("ports = [443, 0]", ":1:15:", "1 to 65535"),
            ("client_cert = \"/no/such.pem\"", ":1:15:", "/no/such.pem"),
            ("fail = \"shut\"", ":1:8:", "unknown variant"),
            ("ports = \"443\"", ":1:9:", "invalid type"),
            ("ports = [99999]", ":1:10:", "invalid value"),
            ("intercept = [\"a\", \"b c\"]", ":1:19:", "host pattern"),
            ("map_host = [\"a\"]", ":1:13:", "map_host 'a' is not"),
            ("drain = \"soon\"", ":1:9:", "is no time"),
            ("upstream_ca = [\"/no/such.pem\"]", ":1:16:", "/no/such.pem"),
            ("user = \"no-such-user-here\"", ":1:8:", "useradd"),
            ("user = \"root\"", ":1:8:", "another user"),
            ("[targets]\ncgroups = [\"rel\"]", ":2:12:", "no path of a cgroup"),
            ("[targets]\nunits = [\"web\"]", ":2:10:", "no name of a systemd unit"),
            ("[rules]\nrules = [\"~s => 429\", \"~dd x => 429\"]", ":2:24:", "did you mean ~d?"),
            ("[rules]\nstop_when = \"~s\"", ":2:13:", "rate"),
            ("[metrics]\nlisten = \"9464\"", ":2:10:", "127.0.0.1:9464"),
            ("[statsd]\nserver = \"host\"", ":2:10:", "HOST:PORT"),
            ("[otlp]\nendpoint = \"ftp://x\"", ":2:12:", "no address of a collector"),
            ("[otlp]\nendpoint = \"http://x\"\nheaders = [\"bad\"]", ":3:11:", "NAME=VALUE"),
            ("[control]\nadmins = \"no-such-group-here\"", ":2:10:", "no group"),
            ("[log]\nto = \"syslog\"", ":2:6:", "unknown variant"),
            ("[log]\nlevel = \"a=b=c\"", ":2:9:", "write error"),
            ("targets = 1", ":1:11:", "[targets]"),
            ("ports = [443", ":1:", "not TOML"),
        ] {
            let text = if text.contains("user =") { text.to_owned() } else { format!("{text}\n") };
            let said = wrong(&text);
            assert!(said.contains(place) && said.contains(message), "{text}: {said}");
            assert!(said.contains('^'), "{said}");
        }
    }

    #[test]
    fn defaults_can_be_wrong_too() {
        let said = wrong("ports = [0]\n");
        if Account::find("retryscope").is_none() {
            assert!(
                said.contains("config.toml: `user` is not set, and its default does not do: there is no"),
                "{said}"
            );
        }
        assert!(said.contains(":1:10: a port"), "{said}");
    }

    #[test]
    fn what_needs_a_restart_is_known() {
        let (old, mut new) = (Config::default(), Config::default());
        assert!(old.unchangeable(&new).is_empty());
        new.targets.units.push("a.service".into());
        new.rules.rules.push("~s => 429".into());
        new.intercept.push("*.test".into());
        new.log.level = "debug".into();
        assert!(old.unchangeable(&new).is_empty(), "these are put in force at once");
        new.ports.push(8443);
        new.metrics.listen = "127.0.0.1:1".into();
        assert_eq!(old.unchangeable(&new), ["ports", "metrics"]);
    }
}
