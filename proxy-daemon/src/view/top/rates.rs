//! How much came in each second, of everything and of each process.
//!
//! In: counters as reports tell them, and when. Out: slots of a second, the
//! latest last. What came between two reports is shared out evenly over the
//! seconds between them.
use std::collections::{HashMap, VecDeque};

use super::model::ProcessKey;
use crate::{history::Series, report::Report};

/// How many seconds are kept.
pub(super) const SECONDS: usize = 180;

/// What came within a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slot {
    pub(super) attempts: f32,
    pub(super) retries: f32,
    pub(super) throttled: f32,
}

impl Slot {
    fn add(&mut self, other: Slot, part: f32) {
        self.attempts += other.attempts * part;
        self.retries += other.retries * part;
        self.throttled += other.throttled * part;
    }
}

/// Counters as last told.
type Counters = [u64; 3];

#[derive(Debug, Default)]
struct Track {
    last: Counters,
    slots: VecDeque<Slot>,
    /// The second of the latest slot.
    at: u64,
}

impl Track {
    /// Makes room up to this second, from another on where there is none yet.
    fn reach(&mut self, from: u64, second: u64) {
        if self.slots.is_empty() {
            self.at = from;
            self.slots.push_back(Slot::default());
        }
        let missing = second.saturating_sub(self.at).min(SECONDS as u64);
        for _ in 0..missing {
            self.slots.push_back(Slot::default());
        }
        self.at = self.at.max(second);
        while self.slots.len() > SECONDS {
            self.slots.pop_front();
        }
    }

    fn slot(&mut self, second: u64) -> Option<&mut Slot> {
        let back = usize::try_from(self.at.checked_sub(second)?).ok()?;
        let at = self.slots.len().checked_sub(back + 1)?;
        self.slots.get_mut(at)
    }

    /// Shares out what came from one moment to another, in ms.
    fn share(&mut self, counters: Counters, from: u64, to: u64) {
        let came = |at: usize| counters[at].saturating_sub(self.last[at]) as f32;
        let came = Slot { attempts: came(0), retries: came(1), throttled: came(2) };
        self.last = counters;
        if came == Slot::default() {
            return;
        }
        let to = to.max(from + 1);
        // Up to the moment before `to`: a second that has just begun is not reached.
        self.reach(from / 1_000, (to - 1) / 1_000);
        for second in from / 1_000..=(to - 1) / 1_000 {
            let part = (to.min((second + 1) * 1_000) - from.max(second * 1_000)) as f32 / (to - from) as f32;
            if let Some(slot) = self.slot(second) {
                slot.add(came, part);
            }
        }
    }

    /// The latest `count` seconds up to `second`, which may be past the last.
    fn latest(&self, count: usize, second: u64) -> Vec<Slot> {
        let mut slots = vec![Slot::default(); count];
        if self.slots.is_empty() {
            return slots;
        }
        let behind = usize::try_from(second.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let Some(room) = count.checked_sub(behind) else { return slots };
        let ahead = usize::try_from(self.at.saturating_sub(second)).unwrap_or(usize::MAX);
        for (to, from) in slots[..room].iter_mut().rev().zip(self.slots.iter().rev().skip(ahead)) {
            *to = *from;
        }
        slots
    }
}

/// The rates of an instance.
#[derive(Debug, Default)]
pub(super) struct Rates {
    all: Track,
    processes: HashMap<ProcessKey, Track>,
    /// When the last report came, in ms.
    told: Option<u64>,
}

impl Rates {
    /// Takes a report that came at this moment, in ms.
    pub(super) fn take(&mut self, report: &Report, now: u64) {
        let from = self.told.replace(now);
        let throttled = |counts: &crate::report::CountsEntry| {
            counts.classes.get("throttled").map_or(0, |class| class.genuine + class.injected)
        };
        let one = |track: &mut Track, counts: &crate::report::CountsEntry| {
            let counters = [counts.attempts, counts.retries, throttled(counts)];
            match from {
                Some(from) => track.share(counters, from, now),
                None => track.last = counters,
            }
        };
        one(&mut self.all, &report.totals.counts);
        let there: std::collections::HashSet<_> = report.processes.iter().map(ProcessKey::of).collect();
        self.processes.retain(|key, _| there.contains(key));
        for process in &report.processes {
            one(self.processes.entry(ProcessKey::of(process)).or_default(), &process.counts);
        }
    }

    /// Takes what came before the first report, in buckets of a second that
    /// end at this moment.
    pub(super) fn fill(&mut self, series: &Series, now: u64) {
        let second = last_whole(now);
        let fill = |track: &mut Track, buckets: &[crate::history::Bucket]| {
            if track.slots.iter().any(|slot| *slot != Slot::default()) {
                return;
            }
            track.slots = buckets
                .iter()
                .map(|bucket| Slot {
                    attempts: bucket.attempts as f32,
                    retries: bucket.retries as f32,
                    throttled: bucket.throttled as f32,
                })
                .collect();
            track.at = second;
        };
        fill(&mut self.all, &series.buckets);
        for process in &series.processes {
            let key = ProcessKey { pid: process.pid, start_ticks: process.start_ticks };
            fill(self.processes.entry(key).or_default(), &process.buckets);
        }
    }

    /// The latest seconds that are over at this moment.
    pub(super) fn all(&self, count: usize, now: u64) -> Vec<Slot> {
        self.all.latest(count, last_whole(now))
    }

    pub(super) fn of(&self, process: &ProcessKey, count: usize, now: u64) -> Vec<Slot> {
        self.processes.get(process).map_or_else(Vec::new, |track| track.latest(count, last_whole(now)))
    }

    /// Attempts a second, over the latest five.
    pub(super) fn per_second(&self, process: Option<&ProcessKey>, now: u64) -> f32 {
        let slots = process.map_or_else(|| self.all(5, now), |process| self.of(process, 5, now));
        slots.iter().map(|slot| slot.attempts).sum::<f32>() / 5.0
    }
}

/// The second before this one: this one is not over.
fn last_whole(now: u64) -> u64 {
    (now / 1_000).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_shared_out() {
        let mut track = Track { last: [10, 0, 0], ..Track::default() };
        track.share([20, 4, 0], 10_500, 12_500);
        let attempts: Vec<_> = track.latest(4, 12).iter().map(|slot| slot.attempts).collect();
        assert_eq!(attempts, [0.0, 2.5, 5.0, 2.5]);
        assert_eq!(track.last, [20, 4, 0]);
        track.share([20, 4, 0], 12_500, 13_500);
        let attempts: Vec<_> = track.latest(4, 14).iter().map(|slot| slot.attempts).collect();
        assert_eq!(attempts, [5.0, 2.5, 0.0, 0.0], "nothing came since");
        assert_eq!(track.latest(2, 1_000), [Slot::default(); 2]);
    }

    #[test]
    fn a_long_silence_costs_no_memory() {
        let mut track = Track::default();
        track.share([1, 0, 0], 0, 1_000);
        track.share([2, 0, 0], 9_999_000, 10_000_000);
        assert_eq!(track.slots.len(), SECONDS);
        assert_eq!(track.latest(1, 9_999)[0].attempts, 1.0);
    }
}
