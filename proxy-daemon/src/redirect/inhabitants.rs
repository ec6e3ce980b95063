//! Who is in cgroups, and the kernel's word that this may have changed.
//!
//! In: directories of cgroups. Out: the processes in them and below; and from
//! then on news (inotify) when the first process comes into one of them, the
//! last goes, or a cgroup is made. News may be lost, and there is none of a
//! process that joins others or changes its namespaces: a look around from time
//! to time finds what was missed.
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

use super::cgroup;

/// How many cgroups are looked into.
const MAX_SEEN: usize = 32_768;

#[derive(Debug)]
pub struct Inhabitants {
    news: Inotify,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Inhabitants {
    pub fn new() -> io::Result<Self> {
        let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { news, watched: HashMap::new() })
    }

    /// Readable when something may have changed; [`hear`](Self::hear) empties it.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes note of the news.
    pub fn hear(&self) -> io::Result<()> {
        hear(&self.news)
    }

    /// The processes in these cgroups and below, whose news is heard from now
    /// on.
    pub fn look<'a>(&mut self, cgroups: impl IntoIterator<Item = &'a Path>) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut seen = HashMap::new();
        for directory in cgroups {
            cgroup::walk(directory, |directory| {
                if seen.len() < MAX_SEEN {
                    // Watched before they are read: what comes in between is told.
                    let events = directory.join("cgroup.events");
                    let what = [
                        (events, AddWatchFlags::IN_MODIFY),
                        (directory.to_owned(), AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR),
                    ];
                    for (path, what) in what {
                        // Past the system's bound, a later look has to find it.
                        if let Ok(watch) = self.news.add_watch(&path, what) {
                            seen.insert(path, watch);
                        }
                    }
                }
                // One that has just been removed is empty.
                pids.extend(cgroup::processes(directory).unwrap_or_default());
            });
        }
        for (path, watch) in std::mem::replace(&mut self.watched, seen) {
            if !self.watched.contains_key(&path) {
                // The kernel forgets what is gone.
                let _ = self.news.rm_watch(watch);
            }
        }
        pids
    }
}

/// Empties a queue of news.
pub(super) fn hear(news: &Inotify) -> io::Result<()> {
    loop {
        match news.read_events() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
