//! The record's way from the client's socket to the one that the daemon
//! accepts.
//!
//! 1. The client's SYN is about to leave: its source port is final now. The
//!    record goes from the socket's storage into `HANDSHAKES`.
//! 2. The daemon's side is established, before it can be accepted: the record
//!    goes into the accepted socket's storage, out of `HANDSHAKES`. It stays
//!    there as long as the socket lives, also if the client is gone by then.
//!
//! A connect that fails takes its record back. Where the client was told that
//! it is connected and the daemon's side never got there (a full accept queue,
//! and a client that gave up), the entry stays until it is the least recently
//! used: taking it away when the client closes would race with step 2.
use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
    },
    helpers::generated::bpf_sock_ops_cb_flags_set,
    macros::sock_ops,
    programs::SockOpsContext,
};
use retryscope_ebpf::{Address, Counter, Handshake, Listening};

use crate::{
    context::{Ops, store, stored},
    maps::{self, ACCEPTED, CLIENTS, HANDSHAKES, NETWORKS, count},
};

#[sock_ops]
pub(crate) fn rs_handover(context: SockOpsContext) -> u32 {
    let ops = Ops::new(&context);
    match ops.event() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => deliver(&ops),
        BPF_SOCK_OPS_STATE_CB => withdraw(&ops),
        _ => {}
    }
    1
}

/// Step 1, on the client's side.
#[inline(always)]
fn publish(ops: &Ops) {
    if !is_listener(ops.remote(), ops.remote_port()) {
        return;
    }
    let socket = ops.socket();
    if socket.is_null() {
        return;
    }
    let record = stored(&CLIENTS, socket.cast());
    if record.is_null() {
        return;
    }
    // SAFETY: not null; the storage lives as long as the socket.
    if HANDSHAKES.insert(from_client(ops), unsafe { &*record }, 0).is_err() {
        count(Counter::HandoverFailed);
        return;
    }
    let callbacks = ops.callbacks() | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: a helper on the hook's own context. Without the callback an
    // entry of a failed connect stays until it is the least recently used.
    unsafe { bpf_sock_ops_cb_flags_set(ops.0, callbacks as i32) };
}

/// Step 2, on the daemon's side.
#[inline(always)]
fn deliver(ops: &Ops) {
    if !is_listener(ops.local(), ops.local_port()) {
        return;
    }
    let key = Handshake { client: ops.remote(), client_port: ops.remote_port(), listener_port: ops.local_port() };
    // SAFETY: the value is copied at once.
    let Some(mut record) = (unsafe { HANDSHAKES.get(&key) }).copied() else {
        return count(Counter::Unmatched);
    };
    let socket = ops.socket();
    if socket.is_null() || !store(&ACCEPTED, socket.cast(), &mut record) {
        count(Counter::HandoverFailed);
    } else {
        count(Counter::HandedOver);
    }
    let _ = HANDSHAKES.remove(&key);
}

/// A connect has failed.
#[inline(always)]
fn withdraw(ops: &Ops) {
    if ops.change() == (BPF_TCP_SYN_SENT, BPF_TCP_CLOSE) && is_listener(ops.remote(), ops.remote_port()) {
        let _ = HANDSHAKES.remove(from_client(ops));
    }
}

#[inline(always)]
fn from_client(ops: &Ops) -> Handshake {
    Handshake { client: ops.local(), client_port: ops.local_port(), listener_port: ops.remote_port() }
}

/// Whether this is the address of one of the daemon's listeners.
#[inline(always)]
pub(crate) fn is_listener(address: Address, port: u32) -> bool {
    let (v4, v6) = (address == Address::LOOPBACK_V4, address == Address::LOOPBACK_V6);
    if !v4 && !v6 {
        return false;
    }
    if v4 && port == maps::listener_v4() || v6 && maps::listener_v6() != 0 && port == maps::listener_v6() {
        return true;
    }
    // SAFETY: the value is not looked at.
    unsafe { NETWORKS.get(Listening::key(port)) }.is_some()
}
