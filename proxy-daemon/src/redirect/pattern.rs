//! Which cgroups are meant: by path, by systemd unit, by container.
//!
//! In: patterns as people write them. Out: whether a cgroup, named by its path
//! in the hierarchy, is one. A function of the path alone.
use regex::Regex;

use crate::process;

/// Longer patterns name nothing.
const MAX_PATTERN: usize = 4096;

/// Patterns of cgroups; a cgroup that matches any is meant.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    cgroups: Vec<Regex>,
    units: Vec<Regex>,
    containers: Vec<Regex>,
}

/// A pattern that names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error(
        "`{0}` is no path of a cgroup; write it as /proc/PID/cgroup does after 0::, as in `/system.slice/web.service`"
    )]
    Cgroup(String),
    #[error("`{0}` is no name of a systemd unit; write it in full, as in `web.service` or `worker@*.service`")]
    Unit(String),
    #[error("`{0}` is no container's id; write hexadecimal digits, as `docker ps` shows them, and * for any others")]
    Container(String),
}

impl Patterns {
    pub fn new(cgroups: &[String], units: &[String], containers: &[String]) -> Result<Self, PatternError> {
        Ok(Self {
            cgroups: cgroups.iter().map(|text| cgroup(text)).collect::<Result<_, _>>()?,
            units: units.iter().map(|text| unit(text)).collect::<Result<_, _>>()?,
            containers: containers.iter().map(|text| container(text)).collect::<Result<_, _>>()?,
        })
    }

    /// Nothing is meant.
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.units.is_empty() && self.containers.is_empty()
    }

    /// Whether the cgroup is meant itself; those below one that is are part of
    /// it, and need not be asked about.
    pub fn matches(&self, path: &str) -> bool {
        let any = |patterns: &[Regex], text: &str| patterns.iter().any(|pattern| pattern.is_match(text));
        let name = path.rsplit('/').next().unwrap_or_default();
        any(&self.cgroups, path)
            || (is_unit(name) && any(&self.units, name))
            || process::container(name).is_some_and(|id| any(&self.containers, id))
    }
}

/// A unit that has a cgroup.
fn is_unit(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(stem, kind)| !stem.is_empty() && matches!(kind, "service" | "scope" | "socket" | "slice"))
}

fn cgroup(text: &str) -> Result<Regex, PatternError> {
    let wrong = || PatternError::Cgroup(text.into());
    let trimmed = if text.len() > 1 { text.trim_end_matches('/') } else { text };
    if !trimmed.starts_with('/') || trimmed.len() > MAX_PATTERN || trimmed.contains(['\n', '\0']) {
        return Err(wrong());
    }
    let body = regex::escape(trimmed).replace(r"\*\*", ".*").replace(r"\*", "[^/]*");
    Regex::new(&format!("^{body}$")).map_err(|_| wrong())
}

fn unit(text: &str) -> Result<Regex, PatternError> {
    let wrong = || PatternError::Unit(text.into());
    let kind = text.rsplit_once('.').map(|(_, kind)| kind);
    let named = kind.is_some_and(|kind| kind.contains('*') || is_unit(text));
    if text.len() > MAX_PATTERN || text.contains(['/', '\n', '\0']) || !(named || text.ends_with('*')) {
        return Err(wrong());
    }
    let body = regex::escape(text).replace(r"\*", ".*");
    Regex::new(&format!("^{body}$")).map_err(|_| wrong())
}

/// As a beginning: tools show twelve digits of sixty-four.
fn container(text: &str) -> Result<Regex, PatternError> {
    let wrong = || PatternError::Container(text.into());
    let fits = |byte: u8| byte.is_ascii_hexdigit() || byte == b'*';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
        return Err(wrong());
    }
    Regex::new(&format!("(?i)^{}", text.replace('*', ".*"))).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(cgroups: &[&str], units: &[&str], containers: &[&str]) -> Patterns {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Patterns::new(&owned(cgroups), &owned(units), &owned(containers)).expect("valid")
    }

    #[test]
    fn paths() {
        let one = patterns(&["/a.slice/job-*.service"], &[], &[]);
        assert!(one.matches("/a.slice/job-1.service"));
        for other in ["/a.slice/job-1.service/sub", "/a.slice/x/job-1.service", "/a.slice", "/b/a.slice/job-1.service"]
        {
            assert!(!one.matches(other), "{other}");
        }
        let deep = patterns(&["/batch.slice/**", "/x/"], &[], &[]);
        assert!(deep.matches("/batch.slice/a") && deep.matches("/batch.slice/a/b") && deep.matches("/x"));
        assert!(!deep.matches("/batch.slice") && !deep.matches("/x/y"));
        assert!(patterns(&["/"], &[], &[]).matches("/"));
        assert!(patterns(&["/a.b"], &[], &[]).matches("/a.b") && !patterns(&["/a.b"], &[], &[]).matches("/axb"));
    }

    #[test]
    fn units() {
        let units = patterns(&[], &["web.service", "worker@*.service", "batch.slice", "app-*"], &[]);
        for path in [
            "/system.slice/web.service",
            "/system.slice/system-worker.slice/worker@7.service",
            "/user.slice/user-1.slice/user@1.service/app.slice/app-x.scope",
            "/batch.slice",
        ] {
            assert!(units.matches(path), "{path}");
        }
        for path in ["/system.slice/web.service/child", "/system.slice/other.service", "/app-x", "/"] {
            assert!(!units.matches(path), "{path}");
        }
    }

    #[test]
    fn containers() {
        let id = "3f4a".repeat(16);
        for pattern in ["3f4a3f4a3f4a", "3F4A*", "*4a", &id] {
            let one = patterns(&[], &[], &[pattern]);
            assert!(one.matches(&format!("/system.slice/docker-{id}.scope")), "{pattern}");
            assert!(one.matches(&format!("/kubepods/burstable/pod1/{id}")), "{pattern}");
            assert!(!one.matches(&format!("/kubepods/burstable/pod1/{id}/init")), "{pattern}");
        }
        assert!(!patterns(&[], &[], &["4a"]).matches(&format!("/docker/{id}")));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let strings = |text: &str| vec![text.to_owned()];
        for wrong in ["", "relative", "a\n/b"] {
            assert!(Patterns::new(&strings(wrong), &[], &[]).is_err(), "{wrong}");
        }
        for wrong in ["", "web", "web.timer", "a/b.service"] {
            assert!(Patterns::new(&[], &strings(wrong), &[]).is_err(), "{wrong}");
        }
        for wrong in ["", "web", "3f4a/", &"a".repeat(65)] {
            assert!(Patterns::new(&[], &[], &strings(wrong)).is_err(), "{wrong}");
        }
        assert!(Patterns::default().is_empty());
    }
}
