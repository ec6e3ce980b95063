//! The expressions that rules are made of, as the kernel knows them.
//!
//! Pure. Each is one step of a small machine: load into a register, compare,
//! set. Attributes stand in the order in which `nft` writes them, so that a
//! rule can be held against its bytes. Numbers that the kernel keeps as it
//! computes with them (marks, ids) are in the machine's byte order; what is
//! compared with a packet is in the network's.
use std::net::IpAddr;

use super::wire::Attributes;

/// Registers 1 to 4 hold 16 bytes each; the same room counts from 8 on in
/// steps of 4 bytes.
const R1: u32 = 1;
const R2: u32 = 2;
/// The register that holds a verdict.
const VERDICT: u32 = 0;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const EQUAL: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// NFPROTO_IPV4, NFPROTO_IPV6.
    pub(super) fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }
}

/// What a set is told to do with the tuple of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add = 0,
    /// Adds it, or makes it last longer.
    Renew = 1,
    Delete = 2,
}

/// A rule's expressions, in the order in which they are carried out: the first
/// that does not hold ends the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule(Attributes);

impl Rule {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn expressions(&self) -> &Attributes {
        &self.0
    }

    /// `meta mark VALUE`
    pub(super) fn marked(self, mark: u32) -> Self {
        self.load_meta(META_MARK).compare(&mark.to_ne_bytes())
    }

    /// `meta mark and MASK == VALUE`
    pub(super) fn marked_within(self, mask: u32, mark: u32) -> Self {
        self.load_meta(META_MARK).mask(&mask.to_ne_bytes()).compare(&mark.to_ne_bytes())
    }

    /// `iifname NAME`
    pub(super) fn arriving_on(self, interface: &str) -> Self {
        let mut name = [0; 16];
        for (place, byte) in name.iter_mut().zip(interface.bytes()) {
            *place = byte;
        }
        self.load_meta(META_IIFNAME).compare(&name)
    }

    /// `meta nfproto ipv4`
    pub(super) fn of(self, family: Family) -> Self {
        self.load_meta(META_NFPROTO).compare(&[family.number()])
    }

    /// `meta l4proto PROTOCOL`
    pub(super) fn protocol(self, protocol: u8) -> Self {
        self.load_meta(META_L4PROTO).compare(&[protocol])
    }

    /// `th dport @SET`
    pub(super) fn port_in(self, set: &str, id: u32) -> Self {
        self.load_payload(R1, TRANSPORT, 2, 2).look_up(set, id)
    }

    /// `tcp flags & (fin|syn|rst|ack) == FLAGS`
    pub(super) fn tcp_flags(self, flags: u8) -> Self {
        self.load_payload(R1, TRANSPORT, 13, 1).mask(&[0x17]).compare(&[flags])
    }

    /// `ip6 daddr fe80::/10`
    pub(super) fn going_link_local(self) -> Self {
        let (mut mask, mut prefix) = ([0; 16], [0; 16]);
        (mask[0], mask[1]) = (0xff, 0xc0);
        (prefix[0], prefix[1]) = (0xfe, 0x80);
        self.of(Family::V6).load_payload(R1, NETWORK, 24, 16).mask(&mask).compare(&prefix)
    }

    /// `ip saddr . tcp sport . ip daddr . tcp dport @SET`
    pub(super) fn tuple_in(self, family: Family, set: &str, id: u32) -> Self {
        self.load_tuple(family).look_up(set, id)
    }

    /// `add @SET { ip saddr . tcp sport . ip daddr . tcp dport }`
    pub(super) fn change_tuple(self, change: Change, family: Family, set: &str, id: u32) -> Self {
        self.load_tuple(family).change(change, set, id)
    }

    /// `tcp sport @SET`
    pub(super) fn source_port_in(self, set: &str, id: u32) -> Self {
        self.load_payload(R1, TRANSPORT, 0, 2).look_up(set, id)
    }

    /// `add @SET { tcp sport }`
    pub(super) fn change_source_port(self, change: Change, set: &str, id: u32) -> Self {
        self.load_payload(R1, TRANSPORT, 0, 2).change(change, set, id)
    }

    /// `socket cgroupv2 level LEVEL ID`
    pub(super) fn in_cgroup(self, level: u32, id: u64) -> Self {
        const CGROUP: u32 = 3;
        let data = Attributes::new().u32(1, CGROUP).u32(2, R1).u32(3, level);
        self.expression("socket", &data).compare(&id.to_ne_bytes())
    }

    /// `socket transparent 1`
    pub(super) fn of_a_transparent_socket(self) -> Self {
        const TRANSPARENT: u32 = 0;
        self.expression("socket", &Attributes::new().u32(1, TRANSPARENT).u32(2, R1).u32(3, 0)).compare(&[1])
    }

    /// `fib daddr type local`
    pub(super) fn going_to_this_machine(self) -> Self {
        const ADDRESS_TYPE: u32 = 3;
        const DESTINATION: u32 = 2;
        /// RTN_LOCAL.
        const LOCAL: u32 = 2;
        let data = Attributes::new().u32(3, DESTINATION).u32(2, ADDRESS_TYPE).u32(1, R1);
        self.expression("fib", &data).compare(&LOCAL.to_ne_bytes())
    }

    /// `meta nfproto != @SET`
    pub(super) fn of_family_not_in(self, set: &str, id: u32) -> Self {
        const INVERTED: u32 = 1;
        let data = Attributes::new().u32(2, R1).text(1, set).u32(4, id).u32(5, INVERTED);
        self.load_meta(META_NFPROTO).expression("lookup", &data)
    }

    /// `update @SET { meta nfproto }`
    pub(super) fn change_family(self, change: Change, set: &str, id: u32) -> Self {
        self.load_meta(META_NFPROTO).change(change, set, id)
    }

    /// `counter name NAME`
    pub(super) fn count(self, name: &str) -> Self {
        const COUNTER: u32 = 1;
        self.expression("objref", &Attributes::new().u32(1, COUNTER).bytes(2, name.as_bytes()))
    }

    /// `meta mark set VALUE`
    pub(super) fn mark(self, mark: u32) -> Self {
        self.load_value(R1, &mark.to_ne_bytes()).expression("meta", &Attributes::new().u32(2, META_MARK).u32(3, R1))
    }

    /// `tproxy ip to ADDRESS:PORT`
    pub(super) fn tproxy(self, family: Family, address: IpAddr, port: u16) -> Self {
        let loaded = match address {
            IpAddr::V4(address) => self.load_value(R1, &address.octets()),
            IpAddr::V6(address) => self.load_value(R1, &address.octets()),
        };
        let data = Attributes::new().u32(1, u32::from(family.number())).u32(2, R1).u32(3, R2);
        loaded.load_value(R2, &port.to_be_bytes()).expression("tproxy", &data)
    }

    /// `reject with icmpx port-unreachable`
    pub(super) fn reject(self) -> Self {
        const ICMPX: u32 = 2;
        const PORT_UNREACHABLE: u8 = 1;
        self.expression("reject", &Attributes::new().u32(1, ICMPX).u8(2, PORT_UNREACHABLE))
    }

    /// `accept`
    pub(super) fn accept(self) -> Self {
        const ACCEPT: i32 = 1;
        self.verdict(&code(ACCEPT))
    }

    /// `drop`
    pub(super) fn drop(self) -> Self {
        const DROP: i32 = 0;
        self.verdict(&code(DROP))
    }

    /// `return`
    pub(super) fn done(self) -> Self {
        const RETURN: i32 = -5;
        self.verdict(&code(RETURN))
    }

    /// `jump CHAIN`
    pub(super) fn jump(self, chain: &str) -> Self {
        const JUMP: i32 = -3;
        self.verdict(&code(JUMP).text(2, chain))
    }

    fn verdict(self, verdict: &Attributes) -> Self {
        let value = Attributes::new().nest(2, verdict);
        self.expression("immediate", &Attributes::new().u32(1, VERDICT).nest(2, &value))
    }

    fn load_value(self, register: u32, value: &[u8]) -> Self {
        let value = Attributes::new().bytes(1, value);
        self.expression("immediate", &Attributes::new().u32(1, register).nest(2, &value))
    }

    fn load_meta(self, key: u32) -> Self {
        self.expression("meta", &Attributes::new().u32(2, key).u32(1, R1))
    }

    fn load_payload(self, register: u32, base: u32, offset: u32, length: u32) -> Self {
        let data = Attributes::new().u32(1, register).u32(2, base).u32(3, offset).u32(4, length);
        self.expression("payload", &data)
    }

    /// Source and destination, one behind the other in the registers.
    fn load_tuple(self, family: Family) -> Self {
        let (source, destination, length, registers) = match family {
            Family::V4 => (12, 16, 4, [R1, 9, 10, 11]),
            Family::V6 => (8, 24, 16, [R1, 2, 13, 17]),
        };
        self.load_payload(registers[0], NETWORK, source, length)
            .load_payload(registers[1], TRANSPORT, 0, 2)
            .load_payload(registers[2], NETWORK, destination, length)
            .load_payload(registers[3], TRANSPORT, 2, 2)
    }

    fn look_up(self, set: &str, id: u32) -> Self {
        self.expression("lookup", &Attributes::new().u32(2, R1).text(1, set).u32(4, id))
    }

    fn change(self, change: Change, set: &str, id: u32) -> Self {
        let data = Attributes::new().u32(4, R1).u32(3, change as u32).text(1, set).u32(2, id);
        self.expression("dynset", &data)
    }

    fn mask(self, mask: &[u8]) -> Self {
        const AND_XOR: u32 = 0;
        let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
        let nothing = vec![0; mask.len()];
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let data = Attributes::new().u32(1, R1).u32(2, R1);
        // It is what is done unless told otherwise; `nft` does not say it of
        // prefixes.
        let data = if mask.len() > 4 { data } else { data.u32(6, AND_XOR) };
        let data = data.u32(3, length).nest(4, &value(mask)).nest(5, &value(&nothing));
        self.expression("bitwise", &data)
    }

    fn compare(self, value: &[u8]) -> Self {
        let value = Attributes::new().bytes(1, value);
        self.expression("cmp", &Attributes::new().u32(1, R1).u32(2, EQUAL).nest(3, &value))
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nest(2, data);
        Self(self.0.nest(1, &expression))
    }
}

fn code(verdict: i32) -> Attributes {
    Attributes::new().u32(1, verdict.cast_unsigned())
}
