//! Which cgroups are attached, and what has to change.
//!
//! In: the cgroups that are meant, as they come and go. Out: changes, told to a
//! [`Holder`] in an order in which it can follow them: what lies in another is
//! let go before the other is attached, and the hand-over of our own cgroup is
//! never missing.
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Attacher, Attachment, Forest, Patterns};

/// The number of our own cgroup's hand-over; no directory has it.
const OWN: u64 = 0;

/// Who holds what is attached.
pub trait Holder {
    type Error;
    /// From now on this holds it. Without a name it is no target, but what
    /// serves them.
    fn attached(&mut self, number: u64, name: &str, attachment: Attachment) -> Result<(), Self::Error>;
    /// To be let go; `gone`: the cgroup does not exist any more.
    fn detached(&mut self, number: u64, name: &str, gone: bool) -> Result<(), Self::Error>;
    /// Something cannot be attached; told once.
    fn refused(&mut self, name: &str, why: &str) -> Result<(), Self::Error>;
}

/// What attaches.
#[derive(Debug)]
pub struct Attaching {
    attacher: Attacher,
    forest: Forest,
    attached: BTreeMap<u64, PathBuf>,
    /// Our own hand-over is attached by itself.
    own: bool,
    /// Told once, until they are gone.
    refused: BTreeSet<u64>,
    cut: bool,
}

impl Attaching {
    pub fn new(attacher: Attacher, forest: Forest) -> Self {
        Self { attacher, forest, attached: BTreeMap::new(), own: false, refused: BTreeSet::new(), cut: false }
    }

    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Directories by number.
    pub fn attached(&self) -> &BTreeMap<u64, PathBuf> {
        &self.attached
    }

    /// Looks around, and brings what is attached in line.
    pub fn follow<H: Holder>(&mut self, patterns: &Patterns, holder: &mut H) -> Result<(), H::Error> {
        let found = self.forest.look(patterns);
        if found.cut && !std::mem::replace(&mut self.cut, found.cut) {
            holder.refused("some cgroups", "there are more than are looked at; name fewer")?;
        }
        self.refused.retain(|number| *number == OWN || found.targets.contains_key(number));
        let over: Vec<u64> =
            self.attached.keys().filter(|number| !found.targets.contains_key(number)).copied().collect();
        for number in over {
            let Some(path) = self.attached.remove(&number) else { continue };
            if !self.own && self.attacher.holds_daemon(&path) {
                self.attach_own(holder)?;
            }
            holder.detached(number, &self.forest.path(&path), !is(&path, number))?;
        }
        if !self.own && !self.attached.values().any(|path| self.attacher.holds_daemon(path)) {
            self.attach_own(holder)?;
            if !self.own {
                // Connects that are diverted would come here unknown.
                return Ok(());
            }
        }
        for (number, path) in found.targets {
            if self.attached.contains_key(&number) || self.refused.contains(&number) {
                continue;
            }
            let name = self.forest.path(&path);
            match self.attacher.attach(&path) {
                Ok(attachment) => {
                    holder.attached(number, &name, attachment)?;
                    if self.own && self.attacher.holds_daemon(&path) {
                        self.own = false;
                        holder.detached(OWN, "", true)?;
                    }
                    self.attached.insert(number, path);
                }
                // It was removed meanwhile.
                Err(_) if !is(&path, number) => {}
                Err(error) => {
                    self.refused.insert(number);
                    holder.refused(&name, &error.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn attach_own<H: Holder>(&mut self, holder: &mut H) -> Result<(), H::Error> {
        match self.attacher.attach_daemon() {
            Ok(attachment) => {
                holder.attached(OWN, "", attachment)?;
                self.refused.remove(&OWN);
                self.own = true;
            }
            Err(error) if self.refused.insert(OWN) => {
                holder.refused(&self.forest.path(self.attacher.place()), &error.to_string())?;
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// The directory is there, and still the same.
fn is(path: &Path, number: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.ino() == number)
}
