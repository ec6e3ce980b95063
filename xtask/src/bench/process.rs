//! What the kernel says a process used: processor time and resident memory.
use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Of `sysconf(_SC_CLK_TCK)`; it is part of Linux's ABI on every platform
/// that eBPF and this project run on.
const TICKS_PER_SECOND: u64 = 100;

/// utime + stime of all its threads, those that ended included.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has it ended?"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} has not the form of proc(5)"))?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field, the command in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// VmRSS in KiB.
pub(super) fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has it ended?"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no VmRSS line"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_after_a_command_with_parentheses() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 250 75 9 9 20 0 3 0 1 1 1";
        assert_eq!(ticks(stat), Some(325));
        assert_eq!(ticks("7 (short) S 1"), None);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(resident(std::process::id()).expect("our own status") > 100.0);
        cpu(std::process::id()).expect("our own stat");
    }
}
