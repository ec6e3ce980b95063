//! `connect()` and `sendmsg()`: what leaves the target is redirected, refused
//! or let go.
use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use retryscope_ebpf::{Address, Counter, Listening};

use crate::{
    context::{Addressed, mptcp_parent, store, stored, unstore},
    gate,
    handover::is_listener,
    maps::{self, CLIENTS, EXEMPT, NETWORKS, PORTS, count},
    owner,
};

const PROCEED: i32 = 1;
const REFUSE: i32 = 0;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ECONNREFUSED: i32 = 111;
/// The loopback has this index in every network namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// A destination as the client gave it to its socket.
#[derive(Clone, Copy)]
struct Destination {
    address: Address,
    /// The socket speaks IPv6 (and the address may still be a mapped one).
    v6_socket: bool,
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn rs_connect4(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    let address = context.v4().or_loopback(true);
    connect(&context, Destination { address, v6_socket: false })
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn rs_connect6(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    // The kernel takes "any" for the loopback of the family in use.
    let address = context.v6().or_loopback(context.bound_to_v4());
    connect(&context, Destination { address, v6_socket: true })
}

/// Also runs for a mapped address on an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn rs_sendmsg4(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    udp(&context, context.v4())
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn rs_sendmsg6(context: SockAddrContext) -> i32 {
    let context = Addressed(&context);
    udp(&context, context.v6())
}

#[inline(always)]
fn connect(context: &Addressed, to: Destination) -> i32 {
    match context.protocol() {
        TCP => match redirect(context, to) {
            Way::Here => PROCEED,
            Way::Direct => {
                forget(context);
                PROCEED
            }
            Way::Nowhere => {
                forget(context);
                refused()
            }
        },
        UDP => udp(context, to.address),
        _ => PROCEED,
    }
}

/// Where a connect goes.
enum Way {
    /// To the daemon.
    Here,
    /// Where the client meant.
    Direct,
    /// It is refused.
    Nowhere,
}

/// Sends a connect to the daemon, if it is the target's.
#[inline(always)]
fn redirect(context: &Addressed, to: Destination) -> Way {
    if !watched(context, to.address) || !concerns(context) {
        return Way::Direct;
    }
    let listening = match listening(context, to.address) {
        Ok(listening) => listening,
        Err(reason) => {
            count(reason);
            return Way::Direct;
        }
    };
    match gate::enter() {
        Ok(()) => {}
        // Not looked at again: it may be over by then.
        Err(reason @ Counter::DirectBypassed) => {
            count(reason);
            return Way::Direct;
        }
        Err(reason) => return amiss(reason),
    }
    if !remember(context, to.address) {
        return amiss(Counter::DirectNoRecord);
    }
    rewrite(context, to, listening);
    count(Counter::Redirected);
    Way::Here
}

/// The daemon should have had this connect, and cannot.
#[inline(always)]
fn amiss(reason: Counter) -> Way {
    if gate::is_closed() {
        count(Counter::Blocked);
        return Way::Nowhere;
    }
    count(reason);
    Way::Direct
}

/// What a client gets from a port where nobody listens; on older kernels it
/// gets EPERM.
#[inline(always)]
fn refused() -> i32 {
    if maps::has_set_retval() != 0 {
        // SAFETY: a helper without conditions.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

#[inline(always)]
fn udp(context: &Addressed, to: Address) -> i32 {
    if maps::refuse_udp() == 0
        || gate::is_bypassed()
        || !listed(context)
        || !concerns(context)
        || listening(context, to).is_err()
    {
        return PROCEED;
    }
    count(Counter::UdpRefused);
    refused()
}

/// Whether the port is among the watched ones.
#[inline(always)]
fn listed(context: &Addressed) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { PORTS.get(context.port()) }.is_some()
}

/// Whether TCP to this destination is to be seen. Where every port is, there
/// are two exceptions: port 0, to which no connect may succeed, and the
/// daemon's own listeners, since it would only meet itself there.
#[inline(always)]
fn watched(context: &Addressed, to: Address) -> bool {
    let port = context.port();
    listed(context) || (maps::every_port() != 0 && port != 0 && !is_listener(to, port))
}

/// Whether the socket is the target's.
#[inline(always)]
fn concerns(context: &Addressed) -> bool {
    owner::is_target() && stored(&EXEMPT, context.socket().cast()).is_null()
}

/// The listeners that a socket can reach. Or why it must go direct although it
/// is the target's: the daemon could not be reached by it, or could not reach
/// the destination for it.
#[inline(always)]
fn listening(context: &Addressed, to: Address) -> Result<Listening, Counter> {
    // SAFETY: a helper on the hook's own context.
    let cookie = unsafe { bpf_get_netns_cookie(context.0.as_ptr()) };
    let listening = if cookie == maps::netns_cookie() {
        Listening { v4: maps::listener_v4(), v6: maps::listener_v6() }
    } else {
        // SAFETY: the value is copied at once.
        match unsafe { NETWORKS.get(cookie) } {
            Some(listening) => *listening,
            None => return Err(Counter::DirectOtherNetns),
        }
    };
    if context.device() > LOOPBACK_DEVICE {
        return Err(Counter::DirectBoundDevice);
    }
    if to.is_link_local() {
        return Err(Counter::DirectLinkLocal);
    }
    if !to.is_v4() && listening.v6 == 0 {
        return Err(Counter::DirectNoListener);
    }
    Ok(listening)
}

/// Leaves the record on the socket: where it was meant to go, and whose it
/// is. False if the kernel cannot store it.
#[inline(always)]
fn remember(context: &Addressed, to: Address) -> bool {
    let mut record = owner::record(to, context.port());
    owner::keep_command(&record);
    let parent = mptcp_parent(context.socket());
    if !parent.is_null() && !store(&CLIENTS, parent, &mut record) {
        return false;
    }
    store(&CLIENTS, context.socket().cast(), &mut record)
}

/// A socket may be connected again, elsewhere: what is left of its earlier
/// life must not answer for it.
#[inline(always)]
fn forget(context: &Addressed) {
    unstore(&CLIENTS, context.socket().cast());
    let parent = mptcp_parent(context.socket());
    if !parent.is_null() {
        unstore(&CLIENTS, parent);
    }
}

#[inline(always)]
fn rewrite(context: &Addressed, to: Destination, listening: Listening) {
    if !to.v6_socket {
        context.set_v4(Address::LOOPBACK_V4);
        context.set_port(listening.v4);
    } else if to.address.is_v4() {
        context.set_v6(Address::LOOPBACK_V4);
        context.set_port(listening.v4);
    } else {
        context.set_v6(Address::LOOPBACK_V6);
        context.set_port(listening.v6);
    }
}
