//! The cgroups that patterns mean, as they come and go.
//!
//! In: patterns, and the kernel's word (inotify) that a directory of the
//! hierarchy has appeared or gone. Out: the outermost cgroups that match, by
//! number. The kernel's word may be lost (its queue is bounded, and so are the
//! watches): a look around from time to time finds what was missed.
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::{
    Patterns,
    cgroup::{CgroupError, Mount},
    inhabitants::hear,
};
use crate::process::Engines;

/// How many cgroups are looked at.
const MAX_SEEN: usize = 32_768;
/// How many cgroups may be targets at once; each takes seven descriptors.
const MAX_TARGETS: usize = 2_048;
/// How deep they may lie; the kernel's own default bound is far above it, and
/// real ones far below.
const MAX_DEPTH: usize = 64;
/// How many containers' names are remembered.
const MAX_NAMES: usize = 4_096;
/// How soon a container that has no name is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// The cgroup hierarchy, watched.
#[derive(Debug)]
pub struct Forest {
    mount: Mount,
    news: Inotify,
    watched: HashMap<PathBuf, WatchDescriptor>,
    names: Names,
}

/// What containers are called, as far as was asked.
#[derive(Debug, Default)]
struct Names {
    engines: Engines,
    known: HashMap<String, Option<String>>,
    /// When those without a name were last looked up: an engine may name one
    /// only once it runs.
    asked: Option<Instant>,
}

impl Names {
    /// Before a look around.
    fn begin(&mut self) {
        if self.asked.is_none_or(|asked| asked.elapsed() >= AGAIN) {
            self.known.retain(|_, name| name.is_some());
            self.asked = Some(Instant::now());
        }
        // Those that are gone are asked for anew should they come back.
        if self.known.len() > MAX_NAMES {
            self.known.clear();
        }
    }

    fn of(&mut self, id: &str) -> Option<String> {
        if let Some(known) = self.known.get(id) {
            return known.clone();
        }
        let name = self.engines.name(id, None);
        self.known.insert(id.to_owned(), name.clone());
        name
    }
}

/// What a look around has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Outermost matching cgroups: directory by inode number, by which the
    /// kernel tells cgroups apart, also where one takes another's path.
    pub targets: BTreeMap<u64, PathBuf>,
    /// There was more than is looked at.
    pub cut: bool,
}

impl Forest {
    pub fn new() -> Result<Self, CgroupError> {
        let mount = Mount::find()?;
        let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|error| CgroupError::Io {
            doing: "watching",
            path: mount.point().into(),
            cause: error.into(),
        })?;
        Ok(Self { mount, news, watched: HashMap::new(), names: Names::default() })
    }

    /// Readable when something has changed; [`Forest::hear`] empties it.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes note that something has changed.
    pub fn hear(&self) -> io::Result<()> {
        hear(&self.news)
    }

    /// Looks around.
    pub fn look(&mut self, patterns: &Patterns) -> Found {
        let mut found = Found::default();
        if patterns.is_empty() {
            for (_, watch) in self.watched.drain() {
                let _ = self.news.rm_watch(watch);
            }
            return found;
        }
        self.names.begin();
        let mut seen = HashMap::new();
        let mut next = vec![(self.mount.point().to_owned(), String::from("/"), 0)];
        while let Some((directory, path, depth)) = next.pop() {
            if seen.len() >= MAX_SEEN || found.targets.len() >= MAX_TARGETS || depth > MAX_DEPTH {
                found.cut = true;
                continue;
            }
            if patterns.matches(&path, |id| self.names.of(id)) {
                if let Ok(about) = fs::metadata(&directory) {
                    found.targets.insert(about.ino(), directory);
                }
                continue;
            }
            // Watched before it is read: what comes in between is told.
            if let Some(watch) = self.watch(&directory) {
                seen.insert(directory.clone(), watch);
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Only names that are text can be meant.
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) else {
                    continue;
                };
                let path = if path == "/" { format!("/{name}") } else { format!("{path}/{name}") };
                next.push((entry.path(), path, depth + 1));
            }
        }
        // The kernel forgets directories that are gone; the others are no
        // longer of interest.
        for (directory, watch) in std::mem::replace(&mut self.watched, seen) {
            if !self.watched.contains_key(&directory) {
                let _ = self.news.rm_watch(watch);
            }
        }
        found
    }

    fn watch(&self, directory: &Path) -> Option<WatchDescriptor> {
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        // Watching what is watched gives the same descriptor. Past the
        // system's bound the next look around has to find it.
        self.news.add_watch(directory, what).ok()
    }

    /// The path of a cgroup's directory, as people know it.
    pub fn path(&self, directory: &Path) -> String {
        let below = directory.strip_prefix(self.mount.point()).unwrap_or(directory);
        format!("/{}", below.display())
    }
}
