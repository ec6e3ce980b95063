//! `getpeername()`: a redirected client sees the address it asked for.
//!
//! Answers only for a socket that carries a record *and* is connected to the
//! listener, so that it cannot lie about a socket in a later life.
use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use retryscope_ebpf::{Address, Record};

use crate::{
    context::{Addressed, stored},
    handover::is_listener,
    maps::CLIENTS,
};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn rs_getpeername4(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    if let Some(record) = record(&context, context.v4()) {
        context.set_v4(record.origin);
        context.set_port(record.origin_port);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn rs_getpeername6(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    if let Some(record) = record(&context, context.v6()) {
        context.set_v6(record.origin);
        context.set_port(record.origin_port);
    }
    PROCEED
}

#[inline(always)]
fn record(context: &Addressed, peer: Address) -> Option<&'static Record> {
    if !is_listener(peer, context.port()) {
        return None;
    }
    let record = stored(&CLIENTS, context.socket().cast());
    // SAFETY: null or a value that lives as long as the socket, which outlives
    // the hook.
    unsafe { record.as_ref() }
}
