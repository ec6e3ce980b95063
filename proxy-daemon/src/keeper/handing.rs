//! What the keeper attaches goes to the server, and where it is attached is
//! told to the porter.
use std::{collections::BTreeMap, io, os::fd::AsFd, path::PathBuf};

use super::{Place, Said};
use crate::{
    process::channel::Channel,
    redirect::{Attaching, Attachment, Holder, Patterns},
};

/// Attaches, and hands over.
#[derive(Debug)]
pub(super) struct Handing {
    pub(super) attaching: Attaching,
    patterns: Patterns,
    porter: Option<Channel>,
    /// What the porter was told.
    told: BTreeMap<u64, PathBuf>,
}

impl Handing {
    pub(super) fn new(attaching: Attaching, patterns: Patterns, porter: Option<Channel>) -> Self {
        Self { attaching, patterns, porter, told: BTreeMap::new() }
    }

    pub(super) fn set_patterns(&mut self, patterns: Patterns) {
        self.patterns = patterns;
    }

    /// Looks around, and brings what is attached in line. `Err` where the
    /// server is gone.
    pub(super) fn follow(&mut self, server: &mut Channel) -> io::Result<()> {
        self.attaching.follow(&self.patterns, &mut Server(server))?;
        self.tell_porter(false);
        Ok(())
    }

    /// Tells the porter where to look: of changes, and at first in any case.
    pub(super) fn tell_porter(&mut self, first: bool) {
        let Some(porter) = &mut self.porter else { return };
        let now = self.attaching.attached();
        if !first && self.told == *now {
            return;
        }
        let over = self.told.keys().filter(|number| !now.contains_key(number));
        let over = over.map(|number| Place::Detached { number: *number });
        let new = now.iter().filter(|(number, _)| !self.told.contains_key(number));
        let new = new.map(|(number, path)| Place::Attached { number: *number, path: path.clone() });
        let said = over.chain(new).chain([Place::All]).try_for_each(|place| porter.send(&place, &[]));
        self.told.clone_from(now);
        if said.is_err() {
            // It is gone, which the server notices as well.
            self.porter = None;
        }
    }
}

/// Holds what is attached.
struct Server<'a>(&'a mut Channel);

impl Holder for Server<'_> {
    type Error = io::Error;

    /// Hands an attachment over; this process's own descriptors are closed.
    fn attached(&mut self, number: u64, name: &str, attachment: Attachment) -> io::Result<()> {
        let (diverting, serving) = attachment.into_parts();
        let descriptors: Vec<_> = diverting.iter().chain(&serving).map(AsFd::as_fd).collect();
        self.0.send(&Said::Attached { number, name: name.to_owned(), diverting: diverting.len() }, &descriptors)
    }

    fn detached(&mut self, number: u64, _: &str, gone: bool) -> io::Result<()> {
        self.0.send(&Said::Detached { number, gone }, &[])
    }

    fn refused(&mut self, name: &str, why: &str) -> io::Result<()> {
        self.0.send(&Said::Refused { name: name.to_owned(), why: why.to_owned() }, &[])
    }
}
