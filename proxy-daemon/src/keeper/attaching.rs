//! Which cgroups are attached, and what has to change.
//!
//! In: the cgroups that are meant, as they come and go. Out: messages to the
//! server, in an order in which it can follow them: what lies in another is
//! let go before the other is attached, and the hand-over of our own cgroup
//! is never missing.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::Said;
use crate::{
    process::channel::Channel,
    redirect::{Attacher, Attachment, Forest, Patterns},
};

/// The number of our own cgroup's hand-over; no directory has it.
const OWN: u64 = 0;

#[derive(Debug)]
pub(super) struct Attaching {
    attacher: Attacher,
    forest: Forest,
    patterns: Patterns,
    attached: BTreeMap<u64, PathBuf>,
    /// Our own hand-over is attached by itself.
    own: bool,
    /// Told once, until they are gone.
    refused: BTreeSet<u64>,
    cut: bool,
}

impl Attaching {
    pub(super) fn new(attacher: Attacher, forest: Forest, patterns: Patterns) -> Self {
        Self { attacher, forest, patterns, attached: BTreeMap::new(), own: false, refused: BTreeSet::new(), cut: false }
    }

    pub(super) fn forest(&self) -> &Forest {
        &self.forest
    }

    pub(super) fn set_patterns(&mut self, patterns: Patterns) {
        self.patterns = patterns;
    }

    /// Looks around, and brings what is attached in line. `Err` where the
    /// server is gone.
    pub(super) fn follow(&mut self, server: &mut Channel) -> io::Result<()> {
        let found = self.forest.look(&self.patterns);
        if found.cut && !std::mem::replace(&mut self.cut, found.cut) {
            let why = "there are more cgroups than are looked at; name fewer".to_owned();
            server.send(&Said::Refused { name: "some cgroups".into(), why }, &[])?;
        }
        self.refused.retain(|number| found.targets.contains_key(number));
        let over: Vec<(u64, PathBuf)> = self
            .attached
            .iter()
            .filter(|(number, _)| !found.targets.contains_key(number))
            .map(|(number, path)| (*number, path.clone()))
            .collect();
        for (number, path) in over {
            if !self.own && self.attacher.holds_daemon(&path) {
                self.attach_own(server)?;
            }
            self.attached.remove(&number);
            server.send(&Said::Detached { number, gone: !is(&path, number) }, &[])?;
        }
        if !self.own && !self.attached.values().any(|path| self.attacher.holds_daemon(path)) {
            self.attach_own(server)?;
        }
        for (number, path) in found.targets {
            if self.attached.contains_key(&number) || self.refused.contains(&number) {
                continue;
            }
            let name = self.forest.path(&path);
            match self.attacher.attach(&path) {
                Ok(attachment) => {
                    send(server, number, name, attachment)?;
                    if self.own && self.attacher.holds_daemon(&path) {
                        self.own = false;
                        server.send(&Said::Detached { number: OWN, gone: true }, &[])?;
                    }
                    self.attached.insert(number, path);
                }
                // It was removed meanwhile.
                Err(_) if !is(&path, number) => {}
                Err(error) => {
                    self.refused.insert(number);
                    server.send(&Said::Refused { name, why: error.to_string() }, &[])?;
                }
            }
        }
        Ok(())
    }

    fn attach_own(&mut self, server: &mut Channel) -> io::Result<()> {
        let attachment = self.attacher.attach_daemon().map_err(io::Error::other)?;
        send(server, OWN, String::new(), attachment)?;
        self.own = true;
        Ok(())
    }
}

/// Hands an attachment over; this process's own descriptors are closed.
fn send(server: &mut Channel, number: u64, name: String, attachment: Attachment) -> io::Result<()> {
    let (diverting, serving) = attachment.into_parts();
    let descriptors: Vec<_> = diverting.iter().chain(&serving).map(AsFd::as_fd).collect();
    server.send(&Said::Attached { number, name, diverting: diverting.len() }, &descriptors)
}

/// The directory is there, and still the same.
fn is(path: &Path, number: u64) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|about| about.ino() == number)
}
