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

/// Command lines are kept in pieces of this many bytes: what fits on the
/// programs' stack, where nobody else can write meanwhile.
pub const PIECE_LEN: usize = 128;

/// How many pieces of one command line are kept; the rest is cut off.
pub const MAX_PIECES: u32 = 16;

/// How many pieces are kept in all. Past it those of the process that has not
/// connected for longest are forgotten; the daemon then asks `/proc`.
pub const MAX_PIECES_KEPT: usize = 16_384;

/// How many network namespaces beside the daemon's own may have listeners.
pub const MAX_NETWORKS: usize = 256;

/// The ports of the daemon's listeners in one network namespace, in host byte
/// order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// On 127.0.0.1.
    pub v4: u32,
    /// On ::1; 0 where there is none.
    pub v6: u32,
}

impl Listening {
    /// Under which key a listener's port is entered beside the namespaces'
    /// cookies, which count from 1: no two listeners have the same port,
    /// wherever they are.
    #[inline(always)]
    pub const fn key(port: u32) -> u64 {
        !(port as u64)
    }
}

/// Where a redirected connection was meant to go, and who opened it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Start of the thread group leader, ns since boot; 0 where the kernel's
    /// layout is not known.
    pub start_boottime: u64,
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// How often the process has called `exec`, its ancestors' calls
    /// included: with pid and start, which program it was. 0 where not known.
    pub image: u64,
    /// Where the program's arguments begin in its memory; another address
    /// after an `exec`. 0 where not known.
    pub arguments: u64,
    pub origin: Address,
    /// NUL-terminated name of the process: of its first thread. Of the thread
    /// that called `connect()` where the kernel's layout is not known.
    pub comm: [u8; COMM_LEN],
    pub tgid: u32,
    pub tid: u32,
    /// Thread group id of the real parent; 0 where not known.
    pub parent: u32,
    pub uid: u32,
    pub gid: u32,
    /// Host byte order.
    pub origin_port: u32,
    /// Bytes of the whole command line; 0 where not known.
    pub command_len: u32,
    /// Thread group id in the process's own pid namespace; 0 where not known.
    pub inner: u32,
}

/// A piece of the command line of a process, in the words of [`Record`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceKey {
    pub start_boottime: u64,
    pub image: u64,
    pub tgid: u32,
    /// From 0.
    pub number: u32,
}

/// Bytes as they lie in the process's memory, arguments parted by NULs. The
/// last piece is filled up with zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece(pub [u64; PIECE_LEN / 8]);

impl Piece {
    pub fn bytes(&self) -> [u8; PIECE_LEN] {
        let mut bytes = [0; PIECE_LEN];
        for (word, place) in self.0.iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
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

    /// This address, or the loopback where this is the "any" of its family; of
    /// IPv4's family also `::`, if the socket is bound to an IPv4 address.
    /// Without a branch, so that the verifier has one way to follow from here.
    #[inline(always)]
    pub const fn or_loopback(self, bound_to_v4: bool) -> Self {
        let [a, b, c, d] = self.0;
        let zeros = a | b | d;
        let any_v4 = all_if_zero(zeros | (c ^ 0xffff_u32.to_be()));
        let any_v6 = all_if_zero(zeros | c);
        let v4 = any_v4 | (any_v6 & all_if_zero(!bound_to_v4 as u32));
        let v6 = any_v6 & !v4;
        Self([
            a,
            b,
            c | (v4 & Self::LOOPBACK_V4.0[2]),
            d | (v4 & Self::LOOPBACK_V4.0[3]) | (v6 & Self::LOOPBACK_V6.0[3]),
        ])
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
    /// [`Gate::CLOSED`], [`Gate::BYPASSED`].
    pub flags: u64,
}

impl Gate {
    /// What the daemon cannot take is refused, instead of going direct.
    pub const CLOSED: u64 = 1;
    /// Everything goes direct, whatever else stands here.
    pub const BYPASSED: u64 = 2;
}

/// All bits of 0, none of other numbers.
#[inline(always)]
const fn all_if_zero(number: u32) -> u32 {
    (((number | number.wrapping_neg()) >> 31) ^ 1).wrapping_neg()
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
    /// The daemon is bypassed; direct.
    DirectBypassed = 14,
}

/// How many counters there are.
pub const COUNTERS: usize = 15;

// SAFETY: `repr(C)`, integers only and without padding (see the tests), so
// every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Record {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Gate {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Listening {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PieceKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Piece {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_no_padding() {
        assert_eq!(size_of::<Record>(), 4 * 8 + 16 + COMM_LEN + 8 * 4);
        assert_eq!(size_of::<PieceKey>(), 2 * 8 + 2 * 4);
        assert_eq!(size_of::<Piece>(), PIECE_LEN);
        assert_eq!(size_of::<Handshake>(), 16 + 2 * 4);
        assert_eq!(size_of::<Gate>(), 3 * 8);
    }

    #[test]
    fn knows_its_addresses() {
        assert!(Address::LOOPBACK_V4.is_v4() && !Address::LOOPBACK_V6.is_v4());
        let v4 = |octets| Address::v4(u32::from_ne_bytes(octets));
        for (address, bound, expected) in [
            (Address([0; 4]), false, Address::LOOPBACK_V6),
            (Address([0; 4]), true, Address::LOOPBACK_V4),
            (v4([0; 4]), false, Address::LOOPBACK_V4),
            (v4([0; 4]), true, Address::LOOPBACK_V4),
            (v4([1, 0, 0, 0]), true, v4([1, 0, 0, 0])),
            (Address([0, 0, 0, 1 << 31]), true, Address([0, 0, 0, 1 << 31])),
            (Address([0, 0, 1, 0]), true, Address([0, 0, 1, 0])),
            (Address([1, 0, 0, 0]), false, Address([1, 0, 0, 0])),
        ] {
            assert_eq!(address.or_loopback(bound), expected, "{address:?} {bound}");
        }
        assert!(Address([0; 4]).is_any() && Address::v4(0).is_any() && !Address::LOOPBACK_V6.is_any());
        assert!(Address([u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0, 0, 1]).is_link_local());
        assert!(Address([u32::from_ne_bytes([0xfe, 0xbf, 0, 0]), 0, 0, 1]).is_link_local());
        assert!(!Address([u32::from_ne_bytes([0xfe, 0xc0, 0, 0]), 0, 0, 1]).is_link_local());
        assert_eq!(Address::LOOPBACK_V6.octets()[15], 1);
    }
}
