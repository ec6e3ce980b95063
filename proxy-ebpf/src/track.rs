//! The process tree that is the target, where one process is: children come
//! in as they are forked, a process goes when its last thread does.
//!
//! The daemon attaches these before it reads `/proc` for the children that
//! are there already. Both run for every process of the machine and return
//! early for strangers.
use core::ffi::c_void;

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use retryscope_ebpf::Counter;

use crate::{
    maps::{PROCESSES, count},
    owner::{Task, current_tgid, is_watched},
};

/// Arguments: the task that forks, its child.
#[raw_tracepoint]
pub(crate) fn rs_fork(context: RawTracePointContext) -> i32 {
    if !is_watched() {
        return 0;
    }
    let child = Task::new(context.arg::<*const c_void>(1));
    let tgid = child.tgid();
    // A thread is in its group's entry.
    if tgid == current_tgid() {
        return 0;
    }
    if PROCESSES.insert(tgid, child.start_ticks(), 0).is_err() {
        count(Counter::ProcessNotTracked);
    }
    0
}

/// Argument: the task that exits, which is the current one.
#[raw_tracepoint]
pub(crate) fn rs_exit(context: RawTracePointContext) -> i32 {
    // The group's leader may go before other threads.
    if Task::new(context.arg::<*const c_void>(0)).living_threads() == 0 {
        let _ = PROCESSES.remove(current_tgid());
    }
    0
}
