//! The fields of the hooks' contexts.
//!
//! Every access is volatile and one field wide: the verifier refuses the wider
//! accesses into which LLVM would merge neighbours.
use core::{
    ffi::c_void,
    ptr::{addr_of, addr_of_mut, null_mut, read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    btf_maps::SkStorage,
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    programs::{SockAddrContext, SockOpsContext},
};
use retryscope_ebpf::Address;

use crate::maps;

pub(crate) const AF_INET: u32 = 2;

/// A `bpf_sock`, or for MPTCP the kernel's own parent socket: what socket
/// storage can hang on.
pub(crate) type Socket = *mut c_void;

/// Reads one field.
macro_rules! get {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands a valid context to every program, and the
        // verifier checks the access.
        unsafe { read_volatile(addr_of!((*$context).$($field)+)) }
    };
}

/// Writes one field.
macro_rules! set {
    ($context:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for `get`.
        unsafe { write_volatile(addr_of_mut!((*$context).$($field)+), $value) }
    };
}

/// What `connect`, `sendmsg` and `getpeername` hooks see.
pub(crate) struct Addressed<'a>(pub(crate) &'a SockAddrContext);

impl Addressed<'_> {
    pub(crate) fn protocol(&self) -> u32 {
        get!(self.0.sock_addr, protocol)
    }

    /// Host byte order.
    pub(crate) fn port(&self) -> u32 {
        // Network byte order in the low half.
        u16::from_be(get!(self.0.sock_addr, user_port) as u16) as u32
    }

    pub(crate) fn set_port(&self, port: u32) {
        set!(self.0.sock_addr, (port as u16).to_be() as u32, user_port);
    }

    pub(crate) fn v4(&self) -> Address {
        Address::v4(get!(self.0.sock_addr, user_ip4))
    }

    /// `address` must be an IPv4 one.
    pub(crate) fn set_v4(&self, address: Address) {
        set!(self.0.sock_addr, address.0[3], user_ip4);
    }

    pub(crate) fn v6(&self) -> Address {
        let context = self.0.sock_addr;
        Address([
            get!(context, user_ip6[0]),
            get!(context, user_ip6[1]),
            get!(context, user_ip6[2]),
            get!(context, user_ip6[3]),
        ])
    }

    pub(crate) fn set_v6(&self, address: Address) {
        let context = self.0.sock_addr;
        set!(context, address.0[0], user_ip6[0]);
        set!(context, address.0[1], user_ip6[1]);
        set!(context, address.0[2], user_ip6[2]);
        set!(context, address.0[3], user_ip6[3]);
    }

    pub(crate) fn socket(&self) -> *mut bpf_sock {
        get!(self.0.sock_addr, __bindgen_anon_1.sk)
    }

    /// Index of the device that the socket is bound to; 0 for none.
    pub(crate) fn device(&self) -> u32 {
        get!(self.socket(), bound_dev_if)
    }

    /// The socket is bound to an IPv4 address (in mapped form).
    pub(crate) fn bound_to_v4(&self) -> bool {
        let socket = self.socket();
        Address([get!(socket, src_ip6[0]), get!(socket, src_ip6[1]), get!(socket, src_ip6[2]), 0]).is_v4()
    }
}

/// What `sock_ops` sees.
pub(crate) struct Ops(pub(crate) *mut bpf_sock_ops);

impl Ops {
    pub(crate) fn new(context: &SockOpsContext) -> Self {
        Self(context.ops)
    }

    pub(crate) fn event(&self) -> u32 {
        get!(self.0, op)
    }

    pub(crate) fn callbacks(&self) -> u32 {
        get!(self.0, bpf_sock_ops_cb_flags)
    }

    /// Null for a socket that cannot carry storage.
    pub(crate) fn socket(&self) -> *mut bpf_sock {
        get!(self.0, __bindgen_anon_2.sk)
    }

    /// Old and new state, in a change of state.
    pub(crate) fn change(&self) -> (u32, u32) {
        (get!(self.0, __bindgen_anon_1.args[0]), get!(self.0, __bindgen_anon_1.args[1]))
    }

    /// Host byte order.
    pub(crate) fn local_port(&self) -> u32 {
        get!(self.0, local_port)
    }

    /// Host byte order.
    pub(crate) fn remote_port(&self) -> u32 {
        // Network byte order, over all four bytes.
        u32::from_be(get!(self.0, remote_port))
    }

    /// Both are read and one is taken: a choice before reading becomes a
    /// computed pointer into the context, which the verifier refuses.
    #[inline(always)]
    fn choose(&self, v4: u32, v6: [u32; 4]) -> Address {
        if get!(self.0, family) == AF_INET { Address::v4(v4) } else { Address(v6) }
    }

    pub(crate) fn local(&self) -> Address {
        let v4 = get!(self.0, local_ip4);
        let v6 = [
            get!(self.0, local_ip6[0]),
            get!(self.0, local_ip6[1]),
            get!(self.0, local_ip6[2]),
            get!(self.0, local_ip6[3]),
        ];
        self.choose(v4, v6)
    }

    pub(crate) fn remote(&self) -> Address {
        let v4 = get!(self.0, remote_ip4);
        let v6 = [
            get!(self.0, remote_ip6[0]),
            get!(self.0, remote_ip6[1]),
            get!(self.0, remote_ip6[2]),
            get!(self.0, remote_ip6[3]),
        ];
        self.choose(v4, v6)
    }
}

/// The MPTCP socket above this one: the connect hook sees the TCP subflow,
/// the getpeername hook the MPTCP socket. Null for plain TCP, and where the
/// kernel cannot tell.
pub(crate) fn mptcp_parent(socket: *mut bpf_sock) -> Socket {
    if maps::has_mptcp() == 0 {
        return null_mut();
    }
    // SAFETY: a helper on the context's socket; the verifier checks both.
    unsafe { bpf_skc_to_mptcp_sock(socket.cast()).cast() }
}

/// The value in a socket's storage; null if there is none.
#[inline(always)]
pub(crate) fn stored<T>(map: &'static SkStorage<T>, socket: Socket) -> *mut T {
    // SAFETY: a helper on a map and a socket of which the verifier knows both.
    unsafe { bpf_sk_storage_get(addr_of!(*map) as *mut c_void, socket, null_mut(), 0).cast() }
}

/// Puts a value into a socket's storage, new or in place of an old one. False
/// where the kernel has no memory (or the socket no allowance) for it.
#[inline(always)]
pub(crate) fn store<T: Copy>(map: &'static SkStorage<T>, socket: Socket, value: &mut T) -> bool {
    const CREATE: u64 = 1;
    const { assert!(size_of::<T>() % size_of::<u64>() == 0 && align_of::<T>() == align_of::<u64>()) };
    // SAFETY: as above.
    let place: *mut T =
        unsafe { bpf_sk_storage_get(addr_of!(*map) as *mut c_void, socket, (value as *mut T).cast(), CREATE).cast() };
    if place.is_null() {
        return false;
    }
    // An existing value is kept by the helper, so it is written here too: word
    // by word, since LLVM would make it a loop over bytes.
    let words = size_of::<T>() / size_of::<u64>();
    let mut at = 0;
    while at < words {
        // SAFETY: both are that long, and aligned so.
        unsafe {
            write_volatile(
                place.cast::<u64>().wrapping_add(at),
                read_volatile((value as *const T).cast::<u64>().wrapping_add(at)),
            )
        };
        at += 1;
    }
    true
}

/// Empties a socket's storage.
#[inline(always)]
pub(crate) fn unstore<T>(map: &'static SkStorage<T>, socket: Socket) {
    // SAFETY: a helper on a socket that the verifier knows. That there was
    // nothing to delete is no error.
    let _ = unsafe { map.delete(socket.cast()) };
}
