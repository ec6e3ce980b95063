//! Retries that wake together.
//!
//! Clients without jitter, or with one clock, fall on a service that has just
//! throttled them all at the same instant. A *herd* is at least [`LEAST`]
//! retries of one process that begin one close after the other, after a time
//! in which fewer began: a steady stream of retries, however dense, is none.
use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::flow::Moment;

/// Retries further apart than this are not together.
const GAP: Duration = Duration::from_millis(20);
/// A herd is no longer than this.
const SPAN: Duration = Duration::from_millis(100);
/// The time before it in which fewer retries began.
const QUIET: Duration = Duration::from_millis(500);
/// The fewest retries that are a herd.
const LEAST: u64 = 10;
/// Groups that are remembered: as many as fit into the time that is looked at.
const MAX_GROUPS: usize = 26;

/// What herds there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HerdCount {
    pub herds: u64,
    /// The retries in them.
    pub retries: u64,
    /// Those of the largest.
    pub largest: u64,
}

impl HerdCount {
    pub fn add_all(&mut self, other: &Self) {
        self.herds += other.herds;
        self.retries += other.retries;
        self.largest = self.largest.max(other.largest);
    }
}

/// Retries that began one close after the other.
#[derive(Clone, Copy, Debug)]
struct Group {
    from: Moment,
    to: Moment,
    size: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Herds {
    count: HerdCount,
    groups: VecDeque<Group>,
}

impl Herds {
    /// A retry begins; moments ascend, but for what threads make of them.
    pub(super) fn woke(&mut self, at: Moment) {
        if let Some(group) = self.groups.back_mut()
            && at.since(group.to) <= GAP
            && at.since(group.from) <= SPAN
        {
            group.to = group.to.max(at);
            group.size += 1;
            return;
        }
        self.count = self.counted();
        self.groups.push_back(Group { from: at, to: at, size: 1 });
        while self.groups.len() > MAX_GROUPS {
            self.groups.pop_front();
        }
    }

    /// With the group that may yet grow.
    pub(super) fn counted(&self) -> HerdCount {
        let mut count = self.count;
        let Some(last) = self.groups.back() else { return count };
        let before = self.groups.iter().rev().skip(1).take_while(|group| last.from.since(group.to) <= QUIET);
        let before: u64 = before.map(|group| group.size).sum();
        if last.size >= LEAST && before < last.size {
            count.herds += 1;
            count.retries += last.size;
            count.largest = count.largest.max(last.size);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(wakes: impl IntoIterator<Item = u64>) -> HerdCount {
        let mut herds = Herds::default();
        wakes.into_iter().for_each(|ms| herds.woke(Moment(ms * 1_000_000)));
        herds.counted()
    }

    #[test]
    fn those_that_wake_at_once_are_a_herd() {
        let thrice = (0..3).flat_map(|round| (0..30).map(move |at| round * 1_000 + at / 3));
        assert_eq!(count(thrice), HerdCount { herds: 3, retries: 90, largest: 30 });
        assert_eq!(count((0..9).map(|_| 5)), HerdCount::default());
    }

    #[test]
    fn a_steady_stream_is_none() {
        // The first group comes out of the quiet, the others do not.
        assert!(count((0..2_000).map(|at| at * 2)).herds <= 1);
        assert_eq!(count((0..200).map(|at| at * 30)), HerdCount::default());
    }

    #[test]
    fn memory_is_bounded() {
        let mut herds = Herds::default();
        (0..10_000).for_each(|at| herds.woke(Moment(at * 25_000_000)));
        assert!(herds.groups.len() <= MAX_GROUPS);
    }
}
