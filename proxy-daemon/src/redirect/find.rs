//! Cgroups by what people call them: a systemd unit, a container.
//!
//! In: a name as typed. Out: the one cgroup that it means, or a sentence that
//! lists what it could mean. What decides is pure: the paths of all cgroups,
//! and the names that engines have for containers.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::cgroup::{CgroupError, Mount};
use crate::process::{Engines, Named, container, container_of, is_unit, unescape, user};

/// How many cgroups are looked at.
const MAX_CGROUPS: usize = 65_536;
/// How many candidates an answer lists.
const MAX_LISTED: usize = 10;
/// Where unit files are, the administrator's first.
const UNIT_FILES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    #[error("{0:?} is no name of a unit: give one as `systemctl` does, such as nginx or nginx.service")]
    BadUnit(String),
    #[error("the unit {0} is not running: start it (`systemctl start {0}`), then attach")]
    NotRunning(String),
    #[error("the template {0} has no running instance: start one (`systemctl start {example}`), then attach", example = .0.replacen('@', "@NAME", 1))]
    NoInstance(String),
    #[error("there is no unit {unit}{hint}; `systemctl list-units` tells which run")]
    NoUnit { unit: String, hint: String },
    #[error("{unit} could be any of these: {among}; name one by --cgroup PATH")]
    Units { unit: String, among: String },
    #[error(
        "no container runs here: start it, then attach (a container without a cgroup of its own cannot be told from others)"
    )]
    NothingRuns,
    #[error("no running container has an id or a name that begins with {wanted:?}; running: {running}")]
    NoContainer { wanted: String, running: String },
    #[error("the container {name} is not running; running: {running}")]
    Stopped { name: String, running: String },
    #[error("{wanted:?} could be any of these: {among}; type more of the id, or the whole name")]
    Containers { wanted: String, among: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl FindError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Cgroup(error) => error.exit_code(),
            _ => 64,
        }
    }
}

/// What a name meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The cgroup's directory.
    pub directory: PathBuf,
    /// What to call it: `unit nginx.service`, `container web (0123456789ab)`.
    pub shown: String,
}

/// The cgroup of a systemd unit that runs: of the system's, or where it has
/// none of the name, of a user's. For a template (`worker@`), what all its
/// instances are in.
pub fn unit(typed: &str) -> Result<Found, FindError> {
    let unit = unit_name(typed)?;
    let mount = Mount::find()?;
    let paths = cgroups(&mount);
    let path = unit_among(&paths, &unit, |file| UNIT_FILES.iter().any(|folder| Path::new(folder).join(file).exists()))?;
    Ok(Found { directory: directory(&mount, &path)?, shown: format!("unit {unit}") })
}

/// The cgroup of a container that runs, by the beginning of its id or its
/// name.
pub fn container_named(typed: &str) -> Result<Found, FindError> {
    let mount = Mount::find()?;
    let paths = cgroups(&mount);
    let users: BTreeSet<u32> = paths.iter().filter_map(|path| user(path)).collect();
    let names = Engines::default().names(&users.into_iter().collect::<Vec<_>>());
    let (path, shown) = container_among(&paths, &names, typed)?;
    Ok(Found { directory: directory(&mount, &path)?, shown: format!("container {shown}") })
}

fn directory(mount: &Mount, path: &str) -> Result<PathBuf, FindError> {
    let hidden = || CgroupError::Hidden { cgroup: path.into(), mount: mount.point().into() };
    Ok(mount.directory(path).ok_or_else(hidden)?)
}

/// The paths of all cgroups, parents before children.
fn cgroups(mount: &Mount) -> Vec<String> {
    let mut paths = Vec::new();
    let mut left = vec![mount.point().to_owned()];
    while let Some(directory) = left.pop() {
        if paths.len() >= MAX_CGROUPS {
            tracing::warn!("there are more cgroups than are looked at");
            break;
        }
        paths.extend(mount.path_of(&directory));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        left.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    paths.sort();
    paths
}

/// A unit's full name, from what was typed: `nginx` means `nginx.service`, and
/// what no unit's name may hold is escaped as `systemctl` does.
fn unit_name(typed: &str) -> Result<String, FindError> {
    let bad = || FindError::BadUnit(typed.into());
    if typed.is_empty() || typed.len() > 255 || typed.starts_with('.') || typed.contains('\0') {
        return Err(bad());
    }
    let mut name = String::new();
    for byte in typed.bytes() {
        match byte {
            b'/' => name.push('-'),
            b':' | b'-' | b'_' | b'.' | b'\\' | b'@' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => name.push_str(&format!(r"\x{byte:02x}")),
        }
    }
    let known = is_unit(&name)
        || name.rsplit_once('.').is_some_and(|(name, kind)| {
            !name.is_empty() && matches!(kind, "slice" | "target" | "timer" | "path" | "device" | "automount")
        });
    if !known {
        name.push_str(".service");
    }
    Ok(name)
}

/// Whose unit a cgroup is: the system's come first, then users', then those of
/// systemd in a container.
fn rank(path: &str) -> u8 {
    if container(path).is_some() { 2 } else { u8::from(path.contains("/user@")) }
}

fn unit_among(paths: &[String], unit: &str, exists: impl Fn(&str) -> bool) -> Result<String, FindError> {
    let name_of = |path: &'_ str| unescape(path.rsplit('/').next().unwrap_or_default()).to_owned();
    let template = unit.split_once("@.");
    let fits = |name: &str| match template {
        Some((before, after)) => name
            .strip_prefix(before)
            .and_then(|rest| rest.strip_prefix('@')?.strip_suffix(after)?.strip_suffix('.'))
            .is_some_and(|instance| !instance.is_empty()),
        None => name == unit,
    };
    let mut found: Vec<&String> = paths.iter().filter(|path| fits(&name_of(path))).collect();
    let Some(best) = found.iter().map(|path| rank(path)).min() else {
        let file =
            unit.split_once('@').zip(unit.rsplit_once('.')).map(|((before, _), (_, kind))| format!("{before}@.{kind}"));
        return Err(if template.is_some() && exists(unit) {
            FindError::NoInstance(unit.into())
        } else if exists(unit) || file.is_some_and(|file| exists(&file)) {
            FindError::NotRunning(unit.into())
        } else {
            let near = paths.iter().map(|path| name_of(path)).filter(|name| is_unit(name)).map(|name| {
                let distance = strsim::damerau_levenshtein(&name, unit);
                (distance, name)
            });
            let near = near.min().filter(|(distance, _)| *distance <= 3).map(|(_, name)| name);
            let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            FindError::NoUnit { unit: unit.into(), hint }
        });
    };
    found.retain(|path| rank(path) == best);
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        // A template's instances are in a slice of their own, unless told
        // otherwise.
        [first, ..] if template.is_some() => {
            let parent = first.rsplit_once('/').map(|(parent, _)| parent).unwrap_or_default();
            let strangers = |path: &&String| {
                path.strip_prefix(parent)
                    .and_then(|rest| rest.strip_prefix('/'))
                    .is_some_and(|rest| !rest.contains('/'))
                    && !fits(&name_of(path))
            };
            let together = !parent.is_empty()
                && found.iter().all(|path| path.rsplit_once('/').is_some_and(|(of, _)| of == parent))
                && !paths.iter().any(|path| strangers(&path));
            if together { Ok(parent.to_owned()) } else { Err(units(unit, &found)) }
        }
        _ => Err(units(unit, &found)),
    }
}

fn units(unit: &str, found: &[&String]) -> FindError {
    FindError::Units { unit: unit.into(), among: listed(found.iter().map(|path| (*path).clone())) }
}

/// The path of the container's cgroup, and what to call it.
fn container_among(paths: &[String], names: &[Named], wanted: &str) -> Result<(String, String), FindError> {
    // The outermost cgroup of each: the container's own are below.
    let mut running: BTreeMap<&str, &str> = BTreeMap::new();
    for path in paths {
        if let Some(id) = path.rsplit('/').next().and_then(container_of) {
            running.entry(id).or_insert(path);
        }
    }
    let named = |id: &str| -> Vec<&str> {
        names.iter().filter(|named| named.id == id).map(|named| named.name.as_str()).collect()
    };
    let shown = |id: &str| {
        let short = if id.len() == 64 { &id[..12] } else { id };
        named(id).first().map_or_else(|| short.to_owned(), |name| format!("{name} ({short})"))
    };
    let all = || listed(running.keys().map(|id| shown(id)));
    if running.is_empty() {
        return Err(FindError::NothingRuns);
    }
    // A pod's container also goes by its last name, and by the pod's.
    let is = |name: &str| name == wanted || name.rsplit('/').any(|part| part == wanted);
    let exact: Vec<&str> = running.keys().copied().filter(|id| *id == wanted || named(id).contains(&wanted)).collect();
    let part: Vec<&str> = running.keys().copied().filter(|id| named(id).into_iter().any(is)).collect();
    let begins = |id: &&str| id.starts_with(wanted) || named(id).iter().any(|name| name.starts_with(wanted));
    let prefix: Vec<&str> = running.keys().copied().filter(begins).collect();
    let found = [exact, part, prefix].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match found.as_slice() {
        [one] => Ok((running.get(one).copied().unwrap_or_default().to_owned(), shown(one))),
        [] => match names.iter().find(|named| is(&named.name) || named.id.starts_with(wanted)) {
            Some(stopped) => Err(FindError::Stopped { name: stopped.name.clone(), running: all() }),
            None => Err(FindError::NoContainer { wanted: wanted.into(), running: all() }),
        },
        several => {
            Err(FindError::Containers { wanted: wanted.into(), among: listed(several.iter().map(|id| shown(id))) })
        }
    }
}

/// The first few, and how many more.
fn listed(of: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = of.collect();
    let shown = all.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(of: &[&str]) -> Vec<String> {
        of.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn units_are_named_as_systemctl_does() {
        for (typed, expected) in [
            ("nginx", "nginx.service"),
            ("nginx.service", "nginx.service"),
            ("org.example.App", "org.example.App.service"),
            ("ssh.socket", "ssh.socket"),
            ("session-3.scope", "session-3.scope"),
            ("app.slice", "app.slice"),
            ("worker@1", "worker@1.service"),
            ("worker@", "worker@.service"),
            (r"a\x2db", r"a\x2db.service"),
            ("a b", r"a\x20b.service"),
            ("var/lib", "var-lib.service"),
            ("ä", r"\xc3\xa4.service"),
        ] {
            assert_eq!(unit_name(typed).expect("a name"), expected);
        }
        for bad in ["", ".service", "a\0b", &"x".repeat(256)] {
            assert!(matches!(unit_name(bad), Err(FindError::BadUnit(_))), "{bad:?}");
        }
    }

    #[test]
    fn finds_the_unit_that_is_meant() {
        let tree = paths(&[
            "/",
            "/lxc.payload.web/system.slice/nginx.service",
            "/system.slice",
            "/system.slice/_cpu.service",
            "/system.slice/nginx.service",
            "/system.slice/system-worker.slice",
            "/system.slice/system-worker.slice/worker@1.service",
            "/system.slice/system-worker.slice/worker@2.service",
            "/system.slice/mixed@1.service",
            "/system.slice/mixed@2.service",
            "/system.slice/one@only.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/pipe.service",
            "/user.slice/user-1001.slice/user@1001.service/app.slice/pipe.service",
        ]);
        let find = |unit: &str| unit_among(&tree, unit, |file| file == "idle.service" || file == "idle@.service");
        assert_eq!(find("nginx.service").expect("found"), "/system.slice/nginx.service");
        assert_eq!(find("cpu.service").expect("found"), "/system.slice/_cpu.service");
        assert_eq!(find("system.slice").expect("found"), "/system.slice");
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service";
        assert_eq!(find("sync.service").expect("found"), user);
        assert_eq!(find("worker@2.service").expect("found"), "/system.slice/system-worker.slice/worker@2.service");
        assert_eq!(find("worker@.service").expect("found"), "/system.slice/system-worker.slice");
        assert_eq!(find("one@.service").expect("found"), "/system.slice/one@only.service");
        assert!(matches!(find("mixed@.service"), Err(FindError::Units { .. })));
        let several = find("pipe.service").expect_err("two users").to_string();
        assert!(several.contains("user-1000") && several.contains("user-1001"), "{several}");
        assert!(matches!(find("idle.service"), Err(FindError::NotRunning(_))));
        assert!(matches!(find("idle@7.service"), Err(FindError::NotRunning(_))));
        let none = find("idle@.service").expect_err("no instance").to_string();
        assert!(none.contains("systemctl start idle@NAME.service"), "{none}");
        let none = find("ngnix.service").expect_err("no unit").to_string();
        assert!(none.contains("did you mean nginx.service?"), "{none}");
    }

    #[test]
    fn finds_the_container_that_is_meant() {
        let ids = ["0abc", "0abd", "1fff", "2eee"].map(|start| format!("{start}{}", "0".repeat(60)));
        let tree = paths(&[
            &format!("/docker/{}", ids[0]),
            &format!("/docker/{}/init.scope", ids[0]),
            &format!("/machine.slice/libpod-{}.scope", ids[1]),
            &format!("/machine.slice/libpod-{}.scope/container", ids[1]),
            &format!("/machine.slice/libpod-conmon-{}.scope", ids[1]),
            &format!("/kubepods/besteffort/pod1/{}", ids[2]),
            &format!("/kubepods/besteffort/pod2/{}", ids[3]),
            "/lxc.payload.box/system.slice/nginx.service",
            "/lxc.payload.box",
        ]);
        let named = |id: &str, name: &str| Named { id: id.into(), name: name.into() };
        let names = [
            named(&ids[0], "web"),
            named(&ids[1], "web-cache"),
            named(&ids[2], "shop/cart-1/app"),
            named(&ids[3], "shop/cart-2/app"),
            named(&"9".repeat(64), "asleep"),
        ];
        let find = |wanted: &str| container_among(&tree, &names, wanted);
        let web = (format!("/docker/{}", ids[0]), "web (0abc00000000)".to_owned());
        let cache = (format!("/machine.slice/libpod-{}.scope", ids[1]), "web-cache (0abd00000000)".to_owned());
        // The whole name wins over the beginning of another.
        assert_eq!(find("web").expect("found"), web);
        assert_eq!(find("0abc").expect("found"), web);
        assert_eq!(find(&ids[0]).expect("found"), web);
        assert_eq!(find("web-").expect("found"), cache);
        assert_eq!(find("shop/cart-2").expect("found").0, format!("/kubepods/besteffort/pod2/{}", ids[3]));
        assert_eq!(find("cart-1").expect("found").0, format!("/kubepods/besteffort/pod1/{}", ids[2]));
        assert_eq!(find("box").expect("found"), ("/lxc.payload.box".to_owned(), "box".to_owned()));
        let several = find("0ab").expect_err("two").to_string();
        assert!(several.contains("web (0abc00000000)") && several.contains("web-cache (0abd"), "{several}");
        assert!(matches!(find("app"), Err(FindError::Containers { .. })));
        let stopped = find("asleep").expect_err("stopped").to_string();
        assert!(stopped.starts_with("the container asleep is not running; running: web (0abc"), "{stopped}");
        let none = find("other").expect_err("none").to_string();
        assert!(none.contains("running: ") && none.contains("box"), "{none}");
        assert!(matches!(container_among(&[], &names, "web"), Err(FindError::NothingRuns)));
    }
}
