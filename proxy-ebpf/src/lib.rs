//! The ABI between the kernel side and the daemon: the records that travel
//! in socket storage and in maps, and the numbers of the counters.
//!
//! Both sides include this very file; everything here is `repr(C)`, has no
//! padding, and no reader may assume more of it than its fields say.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_op_in_unsafe_fn)]

/// Length of a thread's name, with its closing NUL.
pub const COMM_LEN: usize = 16;

/// How many ports may be watched.
pub const MAX_PORTS: usize = 64;

/// How many connects may be between their SYN and the daemon's side of the
/// handshake at once. Past it the oldest is forgotten (and the daemon closes
/// that connection), so that no insertion ever fails.
pub const MAX_HANDSHAKES: usize = 16_384;

/// How many processes one `--pid` tree may hold.
pub const MAX_PROCESSES: usize = 16_384;

/// Where a redirected connection was meant to go, and who opened it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Start of the thread group leader, ns since boot; 0 where the kernel's
    /// layout is not known.
    pub start_boottime: u64,
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    pub origin: Address,
    /// NUL-terminated name of the thread that called `connect()`.
    pub comm: [u8; COMM_LEN],
    pub tgid: u32,
    pub tid: u32,
    /// Thread group id of the real parent; 0 where not known.
    pub parent: u32,
    pub uid: u32,
    pub gid: u32,
    /// Host byte order.
    pub origin_port: u32,
}

/// An IPv6 address, or an IPv4 one in its mapped form, as four words in
/// network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub [u32; 4]);

impl Address {
    pub const LOOPBACK_V4: Self = Self::v4(u32::from_be_bytes([127, 0, 0, 1]).to_be());
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 1u32.to_be()]);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), address])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// 0.0.0.0 or ::, which `connect()` takes for the loopback.
    #[inline(always)]
    pub const fn is_any(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[3] == 0 && (self.0[2] == 0 || self.is_v4())
    }

    /// fe80::/10: means nothing without an interface, which the hooks cannot
    /// see.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// The sixteen bytes as on the wire.
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (word, place) in self.0.iter().zip(octets.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

/// What the daemon can take. It renews this several times a second; whatever
/// exceeds it goes direct, or is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// In ns of CLOCK_MONOTONIC. Past it the daemon is taken for stalled.
    pub until: u64,
    /// How many more connects it has room for until it renews this; the
    /// kernel side counts it down.
    pub room: i64,
    /// 1: what the daemon cannot take is refused. 0: it goes direct.
    pub closed: u64,
}

/// A connection between its SYN and the daemon's side of the handshake, named
/// by what both ends see alike. Ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub client: Address,
    pub client_port: u32,
    pub listener_port: u32,
}

/// What the kernel side counts. The numbers are places in a per-CPU array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connects sent to the daemon.
    Redirected = 0,
    /// Connections whose record reached the accepted socket.
    HandedOver = 1,
    /// The socket could not carry a record; it went direct.
    DirectNoRecord = 2,
    /// The socket is bound to a device other than the loopback; direct.
    DirectBoundDevice = 3,
    /// The socket lives in another network namespace; direct.
    DirectOtherNetns = 4,
    /// IPv6, and the host has no `::1` to listen on; direct.
    DirectNoListener = 5,
    /// A link-local destination, whose interface is not told; direct.
    DirectLinkLocal = 6,
    /// UDP to a watched port, refused.
    UdpRefused = 7,
    /// Connections to the listener that no redirect explains.
    Unmatched = 8,
    /// Connects whose record could not be published; the daemon closes them.
    HandoverFailed = 9,
    /// Children of a watched process that found the table full; direct.
    ProcessNotTracked = 10,
    /// The daemon did not answer in time; direct.
    DirectStalled = 11,
    /// The daemon had no room; direct.
    DirectNoRoom = 12,
    /// Refused, where otherwise it would have gone direct since the daemon was
    /// stalled or gone, had no room, or its record could not be stored.
    Blocked = 13,
}

/// How many counters there are.
pub const COUNTERS: usize = 14;

// SAFETY: `repr(C)`, integers only and without padding (see the tests), so
// every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Record {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Gate {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_no_padding() {
        assert_eq!(size_of::<Record>(), 2 * 8 + 16 + COMM_LEN + 6 * 4);
        assert_eq!(size_of::<Handshake>(), 16 + 2 * 4);
        assert_eq!(size_of::<Gate>(), 3 * 8);
    }

    #[test]
    fn knows_its_addresses() {
        assert!(Address::LOOPBACK_V4.is_v4() && !Address::LOOPBACK_V6.is_v4());
        assert!(Address([0; 4]).is_any() && Address::v4(0).is_any() && !Address::LOOPBACK_V6.is_any());
        assert!(Address([u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0, 0, 1]).is_link_local());
        assert!(Address([u32::from_ne_bytes([0xfe, 0xbf, 0, 0]), 0, 0, 1]).is_link_local());
        assert!(!Address([u32::from_ne_bytes([0xfe, 0xc0, 0, 0]), 0, 0, 1]).is_link_local());
        assert_eq!(Address::LOOPBACK_V6.octets()[15], 1);
    }
}
