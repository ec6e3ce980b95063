//! The process tree that is there already when one process is the target.
use std::{collections::HashSet, os::unix::fs::MetadataExt};

use aya::maps::{HashMap, MapData};
use procfs::process::{Process, all_processes};

use super::{RedirectError, btf::Layout};

/// Whether the kernel side can follow processes by the numbers and start times
/// that are seen here.
pub(super) fn can_follow(layout: &Layout) -> Result<(), RedirectError> {
    let cannot = |cause: &str, remedy| RedirectError::Kernel {
        what: "following one process and its children",
        cause: cause.into(),
        remedy,
    };
    if !layout.knows_tasks() {
        return Err(cannot(
            "the kernel does not publish the layout of its structures in /sys/kernel/btf/vmlinux",
            "Choose a cgroup instead (--cgroup), or boot a kernel with CONFIG_DEBUG_INFO_BTF",
        ));
    }
    if !is_initial_namespace("pid") || !is_initial_namespace("time") {
        return Err(cannot(
            "this is a pid or time namespace of its own, and the kernel names processes as the host does",
            "Choose a cgroup instead (--cgroup), or run on the host (docker run --pid=host)",
        ));
    }
    Ok(())
}

/// Whether this process is in the host's namespace of a kind. One that the
/// kernel does not know is.
pub(super) fn is_initial_namespace(kind: &str) -> bool {
    /// The kernel's fixed numbers (include/linux/proc_ns.h).
    const PID: u64 = 0xEFFF_FFFC;
    const TIME: u64 = 0xEFFF_FFFA;
    let initial = if kind == "time" { TIME } else { PID };
    std::fs::metadata(format!("/proc/self/ns/{kind}")).map_or(true, |data| data.ino() == initial)
}

/// Enters a process and all its descendants, with their start times. The fork
/// tracepoint must be attached: a child of a process that is entered comes in
/// by itself from then on, and one forked before is found by the next look.
pub(super) fn seed(processes: &mut HashMap<&mut MapData, u32, u64>, pid: u32) -> Result<(), RedirectError> {
    let root = stat(pid).ok_or(RedirectError::NoProcess { pid })?;
    let mut known = HashSet::from([pid]);
    enter(processes, pid, root.starttime)?;
    loop {
        let mut found = false;
        for process in all_processes().into_iter().flatten().flatten() {
            let Ok(stat) = process.stat() else { continue };
            let (Ok(pid), Ok(parent)) = (u32::try_from(stat.pid), u32::try_from(stat.ppid)) else { continue };
            if known.contains(&parent) && known.insert(pid) {
                enter(processes, pid, stat.starttime)?;
                found = true;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Start time of a process in ticks since boot, as `/proc` has it.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.starttime)
}

fn stat(pid: u32) -> Option<procfs::process::Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}

fn enter(processes: &mut HashMap<&mut MapData, u32, u64>, pid: u32, start_ticks: u64) -> Result<(), RedirectError> {
    processes
        .insert(pid, start_ticks, 0)
        .map_err(|error| RedirectError::of("entering the target's processes (the table may be full)", &error))
}
