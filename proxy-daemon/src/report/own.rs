//! What an instance tells of itself (`--metrics`): whether it gets and can
//! take connections, what it needs, and how its earlier lives have ended.
//!
//! In: numbers that the data path has anyway, and `/proc`. Out: families for
//! Prometheus, those of a process by their usual names.
use prometheus::proto::{MetricFamily, MetricType};
use serde::{Deserialize, Serialize};

use super::metrics::{counter, extend, gauge, pair};
use crate::proxy::Load;

/// What the kernel does with the target's new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They come here.
    Open,
    /// There is no room: they go direct, or are refused.
    Full,
    /// They are to go direct.
    Bypassed,
}

impl Gate {
    const ALL: [(Self, &str); 3] = [(Self::Open, "open"), (Self::Full, "full"), (Self::Bypassed, "bypassed")];
}

/// How often an instance was started with what it keeps, this time included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lives {
    pub starts: u64,
    /// Those that did not end in order: by a crash, a kill, or the machine's
    /// end.
    pub unclean: u64,
    /// The last one did.
    ended: bool,
}

impl Lives {
    /// The life that begins now.
    #[must_use]
    pub fn next(self) -> Self {
        let unclean = self.unclean + u64::from(self.starts > 0 && !self.ended);
        Self { starts: self.starts + 1, unclean, ended: false }
    }

    /// The same, ended in order.
    #[must_use]
    pub fn over(self) -> Self {
        Self { ended: true, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub gate: Gate,
    pub load: Load,
    /// Connections that no redirect explains.
    pub strays: u64,
    pub accept_failures: u64,
    /// Ended attempts that watchers were too slow for.
    pub feed_dropped: u64,
    /// Cgroups that a daemon watches.
    pub targets: Option<u64>,
    /// Whether a daemon's last reload was taken.
    pub reload: Option<bool>,
    /// A daemon's other processes.
    pub keeper: Option<u32>,
    pub porter: Option<u32>,
    pub lives: Option<Lives>,
}

/// All of it that is known.
pub fn families(own: &Own) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let mut told = |kind, name: &str, help: &str, value: f64| {
        let row = if kind == MetricType::COUNTER { counter(Vec::new(), value) } else { gauge(Vec::new(), value) };
        extend(&mut families, name, help, kind, vec![row]);
    };
    let (gauges, counters) = (MetricType::GAUGE, MetricType::COUNTER);
    let Load { open, most, room, waiting } = own.load;
    let bypassed = own.gate == Gate::Bypassed;
    told(gauges, "retryscope_bypassed", "1 while new connections go direct by `retryscope bypass`.", truth(bypassed));
    told(gauges, "retryscope_open_connections", "Connections under way here.", open as f64);
    told(gauges, "retryscope_open_connections_limit", "How many there may be (by open files).", most as f64);
    let help = "How many more connections the kernel was told that there is room for.";
    told(gauges, "retryscope_room_connections", help, room as f64);
    told(gauges, "retryscope_accept_queue_connections", "Connections that wait to be accepted.", waiting as f64);
    let help = "Connections to the listeners that no redirect explains; closed.";
    told(counters, "retryscope_stray_connections_total", help, own.strays as f64);
    let help = "Connections that could not be accepted at once, since the system was out of something.";
    told(counters, "retryscope_accept_failures_total", help, own.accept_failures as f64);
    let help = "Ended attempts that watchers (events, statsd, OTLP, live views) were too slow for.";
    told(counters, "retryscope_feed_dropped_total", help, own.feed_dropped as f64);
    if let Some(targets) = own.targets {
        told(gauges, "retryscope_watched_cgroups", "Cgroups whose connections come here.", targets as f64);
    }
    if let Some(reload) = own.reload {
        told(gauges, "retryscope_reload_successful", "Whether the last reload was taken.", truth(reload));
    }
    if let Some(lives) = own.lives {
        let help = "Starts with what the state folder keeps.";
        told(counters, "retryscope_starts_total", help, lives.starts as f64);
        let help = "Starts before which the last instance had not ended in order.";
        told(counters, "retryscope_unclean_ends_total", help, lives.unclean as f64);
    }
    let states = Gate::ALL.map(|(state, name)| gauge(vec![pair("state", name)], truth(state == own.gate)));
    let help = "What the kernel does with new connections: 1 at what it is.";
    extend(&mut families, "retryscope_gate_state", help, MetricType::GAUGE, states.into());
    families.extend(process("", std::process::id()));
    families.extend(own.keeper.into_iter().flat_map(|pid| process("retryscope_keeper_", pid)));
    families.extend(own.porter.into_iter().flat_map(|pid| process("retryscope_porter_", pid)));
    families
}

/// Numbers of the machine that are asked for once, by ways that a confined
/// process has no longer.
pub fn warm_up() {
    let _ = (procfs::ticks_per_second(), procfs::page_size());
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// What is told of any process, as far as we may know it.
fn process(prefix: &str, pid: u32) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let Ok(process) = i32::try_from(pid).map_err(drop).and_then(|pid| procfs::process::Process::new(pid).map_err(drop))
    else {
        return families;
    };
    let Ok(stat) = process.stat() else { return families };
    let mut told = |kind, name: &str, help: &str, value: f64| {
        let row = if kind == MetricType::COUNTER { counter(Vec::new(), value) } else { gauge(Vec::new(), value) };
        extend(&mut families, &format!("{prefix}{name}"), help, kind, vec![row]);
    };
    let ticks = procfs::ticks_per_second() as f64;
    let (gauges, counters) = (MetricType::GAUGE, MetricType::COUNTER);
    let used = (stat.utime + stat.stime) as f64 / ticks;
    told(counters, "process_cpu_seconds_total", "Processor time used.", used);
    let resident = stat.rss.saturating_mul(procfs::page_size());
    told(gauges, "process_resident_memory_bytes", "Memory in use.", resident as f64);
    told(gauges, "process_virtual_memory_bytes", "Addresses in use.", stat.vsize as f64);
    told(gauges, "process_threads", "Threads.", stat.num_threads as f64);
    if let Ok(boot) = procfs::boot_time_secs() {
        let started = boot as f64 + stat.starttime as f64 / ticks;
        told(gauges, "process_start_time_seconds", "Since 1970.", started);
    }
    // Of our own alone.
    if let Ok(open) = process.fd_count() {
        told(gauges, "process_open_fds", "Open files.", open as f64);
    }
    if let Ok(limits) = process.limits()
        && let procfs::process::LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        told(gauges, "process_max_fds", "How many files may be open.", most as f64);
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_did_not_end_in_order_are_counted() {
        let first = Lives::default().next();
        assert_eq!((first.starts, first.unclean), (1, 0));
        let second = first.over().next();
        assert_eq!((second.starts, second.unclean), (2, 0));
        let third = second.next().next();
        assert_eq!((third.starts, third.unclean), (4, 2));
    }

    #[test]
    fn tells_of_this_process() {
        let own = Own {
            gate: Gate::Full,
            load: Load { open: 7, most: 9, room: 0, waiting: 2 },
            strays: 0,
            accept_failures: 1,
            feed_dropped: 3,
            targets: None,
            reload: Some(false),
            keeper: None,
            porter: None,
            lives: None,
        };
        let text = super::super::metrics::text(&families(&own));
        for line in [
            "retryscope_bypassed 0",
            "retryscope_gate_state{state=\"full\"} 1",
            "retryscope_gate_state{state=\"open\"} 0",
            "retryscope_open_connections 7",
            "retryscope_reload_successful 0",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
            line.parse().expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") >= 3.0);
        assert!(!text.contains("retryscope_starts_total") && !text.contains("keeper"), "{text}");
    }
}
