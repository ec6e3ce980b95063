//! What the daemon can take, and what becomes of the rest.
//!
//! The daemon says several times a second until when it will answer and how
//! many connects it has room for. So a daemon that is stopped, starved or full
//! is noticed here, at the connect, before a client has to wait for it; and
//! neither its accept queue nor the table of handshakes can run over.
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use retryscope_ebpf::{Counter, Gate};

use crate::maps::GATE;

/// Takes a place for a connect; or why there is none.
#[inline(always)]
pub(crate) fn enter() -> Result<(), Counter> {
    let Some(gate) = gate() else { return Ok(()) };
    if is_bypassed() {
        return Err(Counter::DirectBypassed);
    }
    // SAFETY: an entry of an array, which lives as long as its map. The daemon
    // writes while we read: either value will do.
    let (until, room) = unsafe { (read_volatile(addr_of!((*gate).until)), read_volatile(addr_of!((*gate).room))) };
    // SAFETY: a helper without conditions.
    if unsafe { bpf_ktime_get_ns() } > until {
        return Err(Counter::DirectStalled);
    }
    if room <= 0 {
        return Err(Counter::DirectNoRoom);
    }
    // SAFETY: as above. Two CPUs at once may count as one: the target has no
    // atomic operations, and the daemon leaves a margin.
    unsafe { write_volatile(addr_of_mut!((*gate).room), room - 1) };
    Ok(())
}

/// Whether what cannot be taken is refused.
#[inline(always)]
pub(crate) fn is_closed() -> bool {
    flags() & Gate::CLOSED != 0
}

/// Whether the daemon is to be left aside.
#[inline(always)]
pub(crate) fn is_bypassed() -> bool {
    flags() & Gate::BYPASSED != 0
}

#[inline(always)]
fn flags() -> u64 {
    // SAFETY: as above.
    gate().map_or(0, |gate| unsafe { read_volatile(addr_of!((*gate).flags)) })
}

#[inline(always)]
fn gate() -> Option<*mut Gate> {
    GATE.get_ptr_mut(0)
}
