//! Instances beside each other in one network namespace: each has a number,
//! and everything it leaves in the kernel goes by it.
//!
//! Pure. The numbers stay clear of the bits that others are known to use in
//! marks (kube-proxy 0xc000, Cilium 0x0f00, the AWS network plugin 0x80,
//! Calico and Tailscale the upper half).
use std::fmt;

/// On the daemon's own sockets, whichever instance's.
pub(super) const OWN_MARK: u32 = 0x1070;
/// How many there can be; a power of two.
pub(super) const INSTANCES: u8 = 16;

const MARKS: u32 = 0x1060;
/// Priorities of rules and numbers of routing tables: before those of VPNs
/// (Tailscale's begin at 5210, WireGuard's are the last).
const ROUTES: u32 = 1060;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u8);

impl Number {
    pub(super) const FIRST: Self = Self(0);

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..INSTANCES).map(Self)
    }

    /// The table of nf_tables.
    pub(super) fn table(self) -> String {
        format!("retryscope_{}", self.0)
    }

    /// On packets that are to come to the daemon.
    pub(super) fn mark(self) -> u32 {
        MARKS | u32::from(self.0)
    }

    /// The routing table.
    pub(super) fn routes(self) -> u32 {
        ROUTES + u32::from(self.0)
    }

    /// The priority of the rule that leads there.
    pub(super) fn priority(self) -> u32 {
        ROUTES + u32::from(self.0)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_apart() {
        let others = 0xffff_0000 | 0xc000 | 0x0f00 | 0x80;
        for number in Number::all() {
            assert_eq!(number.mark() & !(u32::from(INSTANCES) - 1), MARKS);
            assert_eq!(number.mark() & others, 0);
        }
        assert_ne!(OWN_MARK & !(u32::from(INSTANCES) - 1), MARKS);
        assert_eq!(OWN_MARK & others, 0);
        assert_eq!(Number::all().last().expect("some").table(), "retryscope_15");
    }
}
