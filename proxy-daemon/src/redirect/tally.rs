//! What the kernel side counts, summed over the CPUs.
use std::os::fd::OwnedFd;

use aya::maps::{MapData, PerCpuArray};
use retryscope_ebpf::Counter;
use serde::{Deserialize, Serialize};

use super::RedirectError;

/// Sockets, unless said otherwise, since the redirection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sent to the daemon.
    pub redirected: u64,
    /// Accepted (or acceptable) here with a record.
    pub handed_over: u64,
    /// Direct: the kernel could not store a record on the socket.
    pub direct_no_record: u64,
    /// Direct: bound to a device other than the loopback.
    pub direct_bound_device: u64,
    /// Direct: in another network namespace.
    pub direct_other_netns: u64,
    /// Direct: IPv6, on a host without `::1`.
    pub direct_no_listener: u64,
    /// Direct: the destination is link-local.
    pub direct_link_local: u64,
    /// UDP connects and messages refused.
    pub udp_refused: u64,
    /// Connections to the listeners that no redirect explains.
    pub unmatched: u64,
    /// Records lost between the two ends; the daemon closes these.
    pub handover_failed: u64,
    /// Processes of the target's tree for which the table had no room.
    pub process_not_tracked: u64,
    /// Direct: this process did not answer in time.
    pub direct_stalled: u64,
    /// Direct: this process had no room for it.
    pub direct_no_room: u64,
    /// Direct: it was asked for, by `retryscope bypass`.
    pub direct_bypassed: u64,
    /// Refused by `--fail closed`.
    pub blocked: u64,
    /// TPROXY: connections that were open before, and too many to be left
    /// alone.
    pub broken_before: u64,
    /// TPROXY: connections of processes that were not found; told by their
    /// cgroup.
    pub told_by_cgroup: u64,
    /// TPROXY: connections of nobody here; told by where they came from.
    pub told_by_address: u64,
}

impl Counters {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let less = u64::saturating_sub;
        Self {
            redirected: less(self.redirected, earlier.redirected),
            handed_over: less(self.handed_over, earlier.handed_over),
            direct_no_record: less(self.direct_no_record, earlier.direct_no_record),
            direct_bound_device: less(self.direct_bound_device, earlier.direct_bound_device),
            direct_other_netns: less(self.direct_other_netns, earlier.direct_other_netns),
            direct_no_listener: less(self.direct_no_listener, earlier.direct_no_listener),
            direct_link_local: less(self.direct_link_local, earlier.direct_link_local),
            udp_refused: less(self.udp_refused, earlier.udp_refused),
            unmatched: less(self.unmatched, earlier.unmatched),
            handover_failed: less(self.handover_failed, earlier.handover_failed),
            process_not_tracked: less(self.process_not_tracked, earlier.process_not_tracked),
            direct_stalled: less(self.direct_stalled, earlier.direct_stalled),
            direct_no_room: less(self.direct_no_room, earlier.direct_no_room),
            direct_bypassed: less(self.direct_bypassed, earlier.direct_bypassed),
            blocked: less(self.blocked, earlier.blocked),
            broken_before: self.broken_before,
            told_by_cgroup: less(self.told_by_cgroup, earlier.told_by_cgroup),
            told_by_address: less(self.told_by_address, earlier.told_by_address),
        }
    }

    /// A sentence for each way in which connections did not come here.
    pub fn sentences(&self) -> Vec<String> {
        let direct = [
            (
                self.direct_no_record,
                "the kernel could not store a record on the socket (net.core.optmem_max may be too low)",
            ),
            (
                self.direct_bound_device,
                "the socket was bound to a network device, from which the loopback cannot be reached",
            ),
            (self.direct_other_netns, "the process was in a network namespace in which nobody listened (yet)"),
            (self.direct_no_listener, "it was IPv6, and this machine has no ::1"),
            (self.direct_link_local, "the destination was link-local"),
            (self.direct_stalled, "retryscope did not answer in time (it was stopped, or starved of processor time)"),
            (
                self.direct_no_room,
                "retryscope had no room for more (its accept queue or its limit of open files, `ulimit -n`, was used up)",
            ),
            (self.direct_bypassed, "retryscope was bypassed"),
        ];
        let mut sentences: Vec<String> = direct
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{} went direct, unobserved: {why}.", connections(*count)))
            .collect();
        if self.process_not_tracked > 0 {
            sentences.push(format!(
                "{} processes of the tree were not followed: there were too many.",
                self.process_not_tracked
            ));
        }
        if self.told_by_cgroup > 0 {
            sentences.push(format!(
                "{} came from processes that could not be found (in another pid namespace, or ended): rows without a pid are all processes of a cgroup.",
                connections(self.told_by_cgroup)
            ));
        }
        if self.told_by_address > 0 {
            sentences.push(format!(
                "{} came from other machines, or had ended before being looked up: rows named by an address are whatever connects from there.",
                connections(self.told_by_address)
            ));
        }
        if self.broken_before > 0 {
            sentences.push(format!(
                "{} that had been open before were broken: there were too many to be left alone.",
                connections(self.broken_before)
            ));
        }
        sentences
    }
}

fn connections(count: u64) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}

/// The kernel side's counts, read by who does not serve connections.
pub struct Tally(PerCpuArray<MapData, u64>);

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tally").field(&read(&self.0)).finish()
    }
}

impl Tally {
    pub fn new(map: OwnedFd) -> Result<Self, RedirectError> {
        super::opened(map).map(Self)
    }

    /// Whether who calls this may use the map.
    pub fn try_use(&self) -> bool {
        self.0.get(&0, 0).is_ok()
    }

    /// Connections that went direct since nobody listened where they were.
    pub fn elsewhere(&self) -> u64 {
        of(&self.0, Counter::DirectOtherNetns)
    }
}

fn of(tally: &PerCpuArray<MapData, u64>, counter: Counter) -> u64 {
    // Reading an existing slot of an array cannot fail.
    tally.get(&(counter as u32), 0).map_or(0, |slots| slots.iter().sum())
}

pub(super) fn read(tally: &PerCpuArray<MapData, u64>) -> Counters {
    let of = |counter| of(tally, counter);
    Counters {
        redirected: of(Counter::Redirected),
        handed_over: of(Counter::HandedOver),
        direct_no_record: of(Counter::DirectNoRecord),
        direct_bound_device: of(Counter::DirectBoundDevice),
        direct_other_netns: of(Counter::DirectOtherNetns),
        direct_no_listener: of(Counter::DirectNoListener),
        direct_link_local: of(Counter::DirectLinkLocal),
        udp_refused: of(Counter::UdpRefused),
        unmatched: of(Counter::Unmatched),
        handover_failed: of(Counter::HandoverFailed),
        process_not_tracked: of(Counter::ProcessNotTracked),
        direct_stalled: of(Counter::DirectStalled),
        direct_no_room: of(Counter::DirectNoRoom),
        direct_bypassed: of(Counter::DirectBypassed),
        blocked: of(Counter::Blocked),
        ..Counters::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_said() {
        let counters = Counters { redirected: 9, direct_bound_device: 1, ..Counters::default() };
        let said = counters.sentences();
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("1 connection went direct, unobserved: the socket was bound"));
        let later = Counters { redirected: 11, ..counters };
        assert_eq!(later.since(&counters), Counters { redirected: 2, ..Counters::default() });
        assert!(later.since(&counters).sentences().is_empty());
    }
}
