//! What ends all rules' doings at once.
//!
//! In: injections, attempts that have ended, the time. Out: whether rules may
//! act. Once stopped it stays so, for a reason that is kept; a change of rules
//! does not start it again.
use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::StopWhen;
use crate::flow::{
    Attempt, Moment,
    filter::{Filter, FilterError},
};

/// The most ends of attempts that are remembered; more are not needed to
/// stop.
const MAX_ENDS: u32 = 65_536;

/// The guard as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardState {
    /// Why no rule acts any more.
    pub stopped: Option<String>,
    /// How often rules have acted, `pass` left out; on a dry run, would have.
    pub injections: u64,
    pub dry_run: bool,
    pub seed: u64,
    /// Calls forgotten before their time, whose draws began anew.
    pub forgotten: u64,
}

impl StopWhen {
    /// `FILTER > N/TIME`.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        const FORM: &str = "write a filter and a rate, as in '~genuine & ~c 500..599 > 10/1m'";
        let wrong = || FilterError::new(0..text.len(), "there is no rate at its end").help(FORM);
        let (filter, rate) = text.rsplit_once('>').ok_or_else(wrong)?;
        let (count, per) = rate.trim().split_once('/').ok_or_else(wrong)?;
        let count = count.trim().parse::<u32>().ok().filter(|count| *count > 0).ok_or_else(wrong)?;
        let per = per.trim();
        let per = if per.starts_with(|char: char| char.is_ascii_digit()) { per.to_owned() } else { format!("1{per}") };
        let per = humantime::parse_duration(&per).ok().filter(|per| !per.is_zero()).ok_or_else(wrong)?;
        Ok(Self { filter: Filter::parse(filter)?, count, per })
    }
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    stopped: AtomicBool,
    reason: Mutex<Option<String>>,
    injections: AtomicU64,
    ends: Mutex<VecDeque<Moment>>,
}

impl Watch {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first reason stays.
    pub(super) fn stop(&self, reason: impl FnOnce() -> String) {
        let mut kept = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            let reason = reason();
            tracing::warn!(reason, "no rule acts any more");
            *kept = Some(reason);
        }
        drop(kept);
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn injections(&self) -> u64 {
        self.injections.load(Ordering::Relaxed)
    }

    /// One more injection, unless there were enough.
    pub(super) fn inject(&self, most: Option<u64>) -> bool {
        let Some(most) = most else {
            self.injections.fetch_add(1, Ordering::Relaxed);
            return true;
        };
        let more = |count: u64| (count < most).then_some(count + 1);
        let before = self.injections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if before.map_or(true, |before| before + 1 >= most) {
            self.stop(|| format!("rules have acted {most} times, the most that max_injections allows"));
        }
        before.is_ok()
    }

    /// An attempt has ended.
    pub(super) fn ended(&self, limit: &StopWhen, attempt: &Attempt, now: Moment) {
        if self.is_stopped() || !limit.filter.matches(attempt) {
            return;
        }
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.push_back(now);
        while ends.front().is_some_and(|end| now.since(*end) > limit.per) {
            ends.pop_front();
        }
        let most = limit.count.clamp(1, MAX_ENDS);
        if ends.len() > most as usize {
            ends.clear();
            drop(ends);
            self.stop(|| {
                format!(
                    "more than {most} attempts within {} ended as stop_when says: {}",
                    time(limit.per),
                    limit.filter
                )
            });
        }
    }

    /// Another limit is in force: what was counted for the last is nothing to
    /// it.
    pub(super) fn forget_ends(&self) {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn time(time: std::time::Duration) -> impl std::fmt::Display {
    humantime::format_duration(time)
}
