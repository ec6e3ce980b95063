//! Which cgroups are meant: by path, by systemd unit, by container.
//!
//! In: patterns as people write them. Out: whether a cgroup, named by its path
//! in the hierarchy, is one. A function of the path, and of what its container
//! is called.
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
    /// Of containers' names.
    names: Vec<Regex>,
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
    #[error(
        "`{0}` names no container; write its id, or how that begins, or its name as `docker ps` shows it, with * for any characters"
    )]
    Container(String),
}

impl Patterns {
    pub fn new(cgroups: &[String], units: &[String], containers: &[String]) -> Result<Self, PatternError> {
        Ok(Self {
            cgroups: cgroups.iter().map(|text| cgroup(text)).collect::<Result<_, _>>()?,
            units: units.iter().map(|text| unit(text)).collect::<Result<_, _>>()?,
            containers: containers.iter().filter_map(|text| container(text).transpose()).collect::<Result<_, _>>()?,
            names: containers.iter().map(|text| container_name(text)).collect::<Result<_, _>>()?,
        })
    }

    /// Nothing is meant.
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.units.is_empty() && self.names.is_empty()
    }

    /// Whether it has to be known what containers are called.
    pub fn wants_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether the cgroup is meant itself; those below one that is are part of
    /// it, and need not be asked about. `named` is asked what a container is
    /// called, by its id, where that makes the difference.
    pub fn matches(&self, path: &str, named: impl FnOnce(&str) -> Option<String>) -> bool {
        let any = |patterns: &[Regex], text: &str| patterns.iter().any(|pattern| pattern.is_match(text));
        let name = path.rsplit('/').next().unwrap_or_default();
        any(&self.cgroups, path)
            || (is_unit(name) && any(&self.units, name))
            || process::container(name).is_some_and(|id| {
                any(&self.containers, id)
                    || (self.wants_names() && named(id).is_some_and(|name| any(&self.names, &name)))
            })
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

/// As a beginning of an id: tools show twelve digits of sixty-four. None where
/// it can only be a name.
fn container(text: &str) -> Result<Option<Regex>, PatternError> {
    let fits = |byte: u8| byte.is_ascii_hexdigit() || byte == b'*';
    if text.len() > 64 || !text.bytes().all(fits) {
        return Ok(None);
    }
    let id = Regex::new(&format!("(?i)^{}", text.replace('*', ".*")));
    id.map(Some).map_err(|_| PatternError::Container(text.into()))
}

/// The whole of a name; Kubernetes' are `NAMESPACE/POD/CONTAINER`.
fn container_name(text: &str) -> Result<Regex, PatternError> {
    let wrong = || PatternError::Container(text.into());
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*/".contains(&byte);
    if text.is_empty() || text.len() > MAX_PATTERN || text.starts_with('/') || text.ends_with('/') {
        return Err(wrong());
    }
    if !text.bytes().all(fits) {
        return Err(wrong());
    }
    Regex::new(&format!("^{}$", regex::escape(text).replace(r"\*", ".*"))).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(cgroups: &[&str], units: &[&str], containers: &[&str]) -> Patterns {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Patterns::new(&owned(cgroups), &owned(units), &owned(containers)).expect("valid")
    }

    fn nameless(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn paths() {
        let one = patterns(&["/a.slice/job-*.service"], &[], &[]);
        assert!(one.matches("/a.slice/job-1.service", nameless));
        for other in ["/a.slice/job-1.service/sub", "/a.slice/x/job-1.service", "/a.slice", "/b/a.slice/job-1.service"]
        {
            assert!(!one.matches(other, nameless), "{other}");
        }
        let deep = patterns(&["/batch.slice/**", "/x/"], &[], &[]);
        assert!(
            deep.matches("/batch.slice/a", nameless)
                && deep.matches("/batch.slice/a/b", nameless)
                && deep.matches("/x", nameless)
        );
        assert!(!deep.matches("/batch.slice", nameless) && !deep.matches("/x/y", nameless));
        assert!(patterns(&["/"], &[], &[]).matches("/", nameless));
        assert!(
            patterns(&["/a.b"], &[], &[]).matches("/a.b", nameless)
                && !patterns(&["/a.b"], &[], &[]).matches("/axb", nameless)
        );
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
            assert!(units.matches(path, nameless), "{path}");
        }
        for path in ["/system.slice/web.service/child", "/system.slice/other.service", "/app-x", "/"] {
            assert!(!units.matches(path, nameless), "{path}");
        }
    }

    #[test]
    fn containers() {
        let id = "3f4a".repeat(16);
        for pattern in ["3f4a3f4a3f4a", "3F4A*", "*4a", &id] {
            let one = patterns(&[], &[], &[pattern]);
            assert!(one.matches(&format!("/system.slice/docker-{id}.scope"), nameless), "{pattern}");
            assert!(one.matches(&format!("/kubepods/burstable/pod1/{id}"), nameless), "{pattern}");
            assert!(!one.matches(&format!("/kubepods/burstable/pod1/{id}/init"), nameless), "{pattern}");
        }
        assert!(!patterns(&[], &[], &["4a"]).matches(&format!("/docker/{id}"), nameless));
    }

    #[test]
    fn containers_by_their_names() {
        let id = "3f4a".repeat(16);
        let path = format!("/machine.slice/libpod-{id}.scope");
        let one = |pattern: &str, name: &str| {
            patterns(&[], &[], &[pattern]).matches(&path, |asked| {
                assert_eq!(asked, id);
                Some(name.to_owned())
            })
        };
        for (pattern, name) in [("web", "web"), ("web-*", "web-7"), ("shop/*/app", "shop/cart-1/app"), ("cafe", "cafe")]
        {
            assert!(one(pattern, name), "{pattern}");
        }
        for (pattern, name) in [("web", "web-7"), ("web-*", "my-web-7"), ("w.b", "web"), ("shop/*/app", "shop/a/b")] {
            assert!(!one(pattern, name), "{pattern}");
        }
        assert!(!patterns(&[], &["a.service"], &[]).matches(&path, |_| unreachable!("nobody wants to know")));
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
        for wrong in ["", "a b", "3f4a/", "/web", "web:1", "*\n"] {
            assert!(Patterns::new(&[], &[], &strings(wrong)).is_err(), "{wrong}");
        }
        assert!(Patterns::default().is_empty());
    }
}
