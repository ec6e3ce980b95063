//! The table: what is marked, where it goes, and what is left alone.
//!
//! Pure: a [`Plan`] in, messages out. Invariants:
//!
//! - A connection is ours from its first packet on, or never: one that was
//!   open before, or that began while we do not take any, stands in the sets
//!   `direct4` and `direct6` and passes untouched to its end.
//! - Connections that others make to servers here are none of ours: the
//!   servers' ports stand in the set `serving` from their first answer on.
//! - What carries the daemon's own mark, or another instance's, is left alone.
//! - Connections begin here only while the daemon answers: its packets to
//!   itself (the pulse) keep the families in the set `alive`, from which they
//!   fall by themselves. No change to the table is needed for that; changes
//!   every few moments would hold up others who change the packet filter.
//! - Nothing but the pulse is dropped. Where a step does not work, packets go
//!   on as if the table were not there.
//!
//! docs/tproxy.md shows the whole as `nft` prints it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    expression::{Change, Family, Rule},
    number::{INSTANCES, Number, OWN_MARK},
    wire::{APPEND, Attributes, CREATE, EXCLUSIVE, Kind, Message},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// What packets are counted.
pub(super) const TAKEN: &str = "taken";
pub(super) const REFUSED: &str = "refused";
pub(super) const STALLED: &str = "stalled";
pub(super) const NO_ROOM: &str = "no_room";

const OUT: &str = "out";
const TAKE: &str = "take";
const IN: &str = "in_lo";
const ARRIVE: &str = "arrive";
const ENTER: &str = "enter";

/// Sets have a name, and a number within the batch that makes them.
const PORTS: (&str, u32) = ("ports", 1);
const DIRECT_V4: (&str, u32) = ("direct4", 2);
const DIRECT_V6: (&str, u32) = ("direct6", 3);
const SERVING: (&str, u32) = ("serving", 4);
const ALIVE: (&str, u32) = ("alive", 5);

/// How many connections that pass untouched are known at once, at most; past
/// it a connection that was open before is broken, and counted.
pub(super) const MAX_DIRECT: usize = 1 << 18;
/// And at least: the kernel takes the room of a set at once.
const MIN_DIRECT: usize = 1 << 13;
/// How long a daemon that says nothing is believed to answer, in ms; and from
/// its start to the first it says.
const BELIEF: u64 = 2_000;
const GRACE: u64 = 60_000;
/// Ports of servers.
const MAX_SERVING: usize = 1 << 13;
/// Tuples in one message: it must stay below 64 KiB.
const TUPLES: usize = 500;

/// Whose packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those of processes in a cgroup and below: its id, and its depth.
    Cgroup { id: u64, level: u32 },
    /// Those of every process in this network namespace.
    Everybody,
    /// Those that arrive on these interfaces, to be forwarded.
    Arriving(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) number: Number,
    pub(super) whose: Whose,
    /// None stands for every TCP port, and no UDP port.
    pub(super) ports: Vec<u16>,
    pub(super) refuse_udp: bool,
    /// How many connections can be left alone; see [`room`].
    pub(super) room: usize,
    /// The listeners' ports.
    pub(super) v4: u16,
    pub(super) v6: Option<u16>,
}

/// What becomes of a connection that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is noted, and passes: before the connections that are open already
    /// are known.
    Noting,
    /// It is ours.
    Taking,
    /// It is counted and noted, and passes: there is no room for it.
    Full,
    /// It is noted, and passes; those that are ours stay ours.
    Draining,
    /// As when there is no room; UDP passes as well.
    Bypassed,
}

/// A connection by its two ends, as its packets from here have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
}

/// For connections that are open, and those that may begin while we do not
/// take any.
pub(super) fn room(open: usize) -> usize {
    open.saturating_mul(2).clamp(MIN_DIRECT, MAX_DIRECT)
}

/// The claim: fails where another holds the number. The table goes when the
/// socket that made it is closed.
pub(super) fn claim(number: Number) -> Message {
    const OWNER: u32 = 2;
    let attributes = Attributes::new().text(1, &number.table()).u32(2, OWNER);
    Message { what: "a table of our own (nf_tables)", kind: Kind::NewTable, flags: CREATE | EXCLUSIVE, attributes }
}

/// Everything in the table but the claim, in the phase [`Phase::Noting`].
pub(super) fn fill(plan: &Plan) -> Vec<Message> {
    let table = Table(plan);
    let mut messages: Vec<Message> = [TAKEN, REFUSED, STALLED, NO_ROOM].map(|name| table.counter(name)).into();
    messages.extend(table.ports());
    messages.extend(table.alive());
    messages.push(table.serving());
    messages.push(table.tuples(DIRECT_V4, 0x1cd1cd, 16));
    messages.push(table.tuples(DIRECT_V6, 0x20d20d, 40));
    match &plan.whose {
        Whose::Arriving(interfaces) => {
            messages.push(table.chain(ENTER));
            messages.push(table.chain(ARRIVE));
            messages.push(table.hooked(IN, "filter", PREROUTING));
            messages.extend(table.arriving());
            for interface in interfaces {
                let rule = Rule::new().arriving_on(interface).jump(ARRIVE);
                messages.push(table.rule(IN, "a rule for an interface", &rule));
            }
        }
        Whose::Cgroup { .. } | Whose::Everybody => {
            messages.push(table.chain(TAKE));
            messages.push(table.hooked(OUT, "route", OUTPUT));
            messages.push(table.hooked(IN, "filter", PREROUTING));
            messages.extend(table.leaving());
            messages.extend(table.looped());
        }
    }
    messages.push(table.pulse());
    messages.extend(table.beginning(Phase::Noting));
    messages
}

/// From one phase to another, at once.
pub(super) fn turn(plan: &Plan, phase: Phase) -> Vec<Message> {
    let table = Table(plan);
    let mut messages = vec![table.flush(table.chain_of_beginnings())];
    messages.extend(table.beginning(phase));
    messages
}

/// As [`turn`], where UDP passes from now on or does no longer: at once as
/// well.
pub(super) fn turn_besides_udp(plan: &Plan, phase: Phase) -> Vec<Message> {
    let plan = Plan { refuse_udp: plan.refuse_udp && phase != Phase::Bypassed, ..plan.clone() };
    let table = Table(&plan);
    let mut messages = turn(&plan, phase);
    let (chain, rules) = match plan.whose {
        Whose::Arriving(_) => (ARRIVE, table.arriving()),
        Whose::Cgroup { .. } | Whose::Everybody => (OUT, table.leaving()),
    };
    messages.push(table.flush(chain));
    messages.extend(rules);
    messages
}

/// Connections that pass untouched.
pub(super) fn leave_alone(plan: &Plan, tuples: &[Tuple]) -> Vec<Message> {
    let table = Table(plan);
    let of = |family: Family| -> Vec<Vec<u8>> { tuples.iter().filter_map(|tuple| tuple.key(family)).collect() };
    let mut messages = Vec::new();
    for (keys, set) in [(of(Family::V4), DIRECT_V4), (of(Family::V6), DIRECT_V6)] {
        messages.extend(keys.chunks(TUPLES).map(|keys| table.elements(set, keys.iter().map(Vec::as_slice))));
    }
    messages
}

/// Asks for a counter.
pub(super) fn ask(number: Number, counter: &str) -> Message {
    let attributes = Attributes::new().text(1, &number.table()).text(2, counter).u32(3, COUNTER);
    Message { what: "a counter", kind: Kind::GetObject, flags: 0, attributes }
}

/// A message that the kernel cannot carry out: what stands in a batch with it
/// is checked, and none of it done.
pub(super) fn poison(number: Number) -> Message {
    let attributes = Attributes::new().text(1, &number.table()).text(2, "no_such_chain");
    Message { what: POISON, kind: Kind::DeleteRule, flags: 0, attributes }
}

pub(super) const POISON: &str = "nothing";

/// NFT_OBJECT_COUNTER.
const COUNTER: u32 = 1;
/// `inet_service`, in nft's numbering.
const SERVICE: u32 = 13;
/// NFT_SET_EVAL.
const CHANGED_BY_RULES: u32 = 0x20;
/// NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT.
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;

impl Tuple {
    /// As the sets have it: each part padded to 4 bytes.
    fn key(&self, family: Family) -> Option<Vec<u8>> {
        let (source, destination) = (self.source.0.to_canonical(), self.destination.0.to_canonical());
        let (source, destination) = match (family, source, destination) {
            (Family::V4, IpAddr::V4(source), IpAddr::V4(destination)) => {
                (source.octets().to_vec(), destination.octets().to_vec())
            }
            (Family::V6, IpAddr::V6(source), IpAddr::V6(destination)) => {
                (source.octets().to_vec(), destination.octets().to_vec())
            }
            _ => return None,
        };
        let mut key = source;
        key.extend(self.source.1.to_be_bytes());
        key.extend([0; 2]);
        key.extend(destination);
        key.extend(self.destination.1.to_be_bytes());
        key.extend([0; 2]);
        Some(key)
    }
}

struct Table<'a>(&'a Plan);

impl Table<'_> {
    fn named(&self) -> Attributes {
        Attributes::new().text(1, &self.0.number.table())
    }

    fn counter(&self, name: &str) -> Message {
        let zero = Attributes::new().u64(1, 0).u64(2, 0);
        let attributes = self.named().text(2, name).u32(3, COUNTER).nest(4, &zero);
        Message { what: "a counter", kind: Kind::NewObject, flags: CREATE, attributes }
    }

    /// A set's keys are big-endian; the note is `nft`'s own, so that it can
    /// print them.
    fn set(&self, (name, id): (&str, u32), flags: u32, kind: u32, length: u32, size: usize, note: &[u8]) -> Message {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let attributes = self.named().text(2, name).u32(3, flags).u32(4, kind).u32(5, length).u32(10, id);
        let attributes = attributes.nest(9, &Attributes::new().u32(1, size)).bytes(13, note);
        Message { what: "a set", kind: Kind::NewSet, flags: CREATE, attributes }
    }

    fn elements<'k>(&self, (name, id): (&str, u32), keys: impl Iterator<Item = &'k [u8]>) -> Message {
        let elements = keys.zip(1..).fold(Attributes::new(), |elements, (key, number)| {
            let value = Attributes::new().bytes(1, key);
            elements.nest(number, &Attributes::new().nest(1, &value))
        });
        let attributes = self.named().text(2, name).u32(4, id).nest(3, &elements);
        Message { what: "the elements of a set", kind: Kind::NewElement, flags: CREATE, attributes }
    }

    fn ports(&self) -> Vec<Message> {
        const CONSTANT: u32 = 2;
        let ports: Vec<[u8; 2]> = self.0.ports.iter().map(|port| port.to_be_bytes()).collect();
        if ports.is_empty() {
            return Vec::new();
        }
        vec![
            self.set(PORTS, CONSTANT, SERVICE, 2, ports.len(), &[0, 4, 2, 0, 0, 0]),
            self.elements(PORTS, ports.iter().map(<[u8; 2]>::as_slice)),
        ]
    }

    fn serving(&self) -> Message {
        self.set(SERVING, CHANGED_BY_RULES, SERVICE, 2, MAX_SERVING, &[0, 4, 2, 0, 0, 0])
    }

    fn tuples(&self, set: (&str, u32), kind: u32, length: u32) -> Message {
        let note = [0, 4, 0, 0, 0, 0, 3, 8, 0, 4, 13, 0, 0, 0, 1, 0];
        self.set(set, CHANGED_BY_RULES, kind, length, self.0.room, &note)
    }

    fn chain(&self, name: &str) -> Message {
        let attributes = self.named().text(3, name);
        Message { what: "a chain", kind: Kind::NewChain, flags: CREATE, attributes }
    }

    /// Families whose connections may begin here, each for a time.
    fn alive(&self) -> [Message; 2] {
        /// `nf_proto`, in nft's numbering.
        const FAMILY: u32 = 2;
        const EXPIRES: u32 = 0x10;
        let room = Attributes::new().u32(1, 16);
        let set = self.named().text(2, ALIVE.0).u32(3, CHANGED_BY_RULES | EXPIRES).u32(4, FAMILY).u32(5, 1);
        let set = set.u32(10, ALIVE.1).nest(9, &room).u64(11, BELIEF).bytes(13, &[0, 4, 0, 0, 0, 0]);
        let elements =
            [Family::V4, Family::V6].into_iter().zip(1..).fold(Attributes::new(), |elements, (family, at)| {
                let value = Attributes::new().u8(1, family.number());
                elements.nest(at, &Attributes::new().u64(4, GRACE).nest(1, &value))
            });
        let elements = self.named().text(2, ALIVE.0).u32(4, ALIVE.1).nest(3, &elements);
        [
            Message { what: "a set that forgets", kind: Kind::NewSet, flags: CREATE, attributes: set },
            Message { what: "the elements of a set", kind: Kind::NewElement, flags: CREATE, attributes: elements },
        ]
    }

    /// What the daemon says to itself.
    fn pulse(&self) -> Message {
        let pulse = Rule::new().arriving_on("lo").marked(self.0.number.mark()).protocol(UDP);
        let pulse = pulse.change_family(Change::Renew, ALIVE.0, ALIVE.1).drop();
        self.rule(IN, "a rule for the daemon's pulse", &pulse)
    }

    /// A chain that the kernel enters.
    fn hooked(&self, name: &str, kind: &str, hook: u32) -> Message {
        const ACCEPT: u32 = 1;
        let hook = Attributes::new().u32(1, hook).u32(2, self.priority().cast_unsigned());
        let attributes = self.named().text(3, name).text(7, kind).u32(5, ACCEPT).nest(4, &hook);
        Message { what: "a chain for packets", kind: Kind::NewChain, flags: CREATE, attributes }
    }

    /// After connection tracking (-200) and before addresses are translated
    /// (-100): marks are what this step is for, and the destination is still
    /// what the client asked for. A cgroup is asked before a whole namespace:
    /// who names less wins, and whoever comes first.
    fn priority(&self) -> i32 {
        const MANGLE: i32 = -150;
        if matches!(self.0.whose, Whose::Cgroup { .. }) { MANGLE - 1 } else { MANGLE }
    }

    fn rule(&self, chain: &str, what: &'static str, rule: &Rule) -> Message {
        let attributes = self.named().text(2, chain).nest(4, rule.expressions());
        Message { what, kind: Kind::NewRule, flags: CREATE | APPEND, attributes }
    }

    fn flush(&self, chain: &str) -> Message {
        Message { what: "a chain", kind: Kind::DeleteRule, flags: 0, attributes: self.named().text(2, chain) }
    }

    /// The families that there is a listener for.
    fn families(&self) -> Vec<(Family, IpAddr, u16)> {
        let v4 = (Family::V4, IpAddr::V4(Ipv4Addr::LOCALHOST), self.0.v4);
        let v6 = self.0.v6.map(|port| (Family::V6, IpAddr::V6(Ipv6Addr::LOCALHOST), port));
        [Some(v4), v6].into_iter().flatten().collect()
    }

    fn start(&self) -> Rule {
        match self.0.whose {
            Whose::Cgroup { id, level } => Rule::new().in_cgroup(level, id),
            Whose::Everybody | Whose::Arriving(_) => Rule::new(),
        }
    }

    /// Packets that leave processes here.
    fn leaving(&self) -> Vec<Message> {
        const WHAT: &str = "a rule for outgoing packets (NFT_SOCKET, NFT_REJECT)";
        let mut rules = vec![
            Rule::new().marked(OWN_MARK).done(),
            Rule::new().marked_within(!(u32::from(INSTANCES) - 1), Number::FIRST.mark()).done(),
            Rule::new().going_link_local().done(),
        ];
        // Servers here have clients whose port may be a watched one.
        let answered = self.watched(Rule::new(), TCP).tcp_flags(SYN_ACK);
        rules.push(answered.change_source_port(Change::Add, SERVING.0, SERVING.1).done());
        rules.push(self.watched(self.start(), TCP).jump(TAKE));
        if self.refuses_udp() {
            rules.push(self.watched(self.start(), UDP).count(REFUSED).reject());
        }
        rules.iter().map(|rule| self.rule(OUT, WHAT, rule)).collect()
    }

    /// The same packets, coming back by the loopback since they are marked.
    fn looped(&self) -> Vec<Message> {
        const WHAT: &str = "a rule that hands connections over (NFT_TPROXY)";
        let looped = |(family, address, port)| {
            let ours = Rule::new().arriving_on("lo").marked(self.0.number.mark()).of(family).protocol(TCP);
            self.rule(IN, WHAT, &ours.tproxy(family, address, port).accept())
        };
        self.families().into_iter().map(looped).collect()
    }

    /// Packets that arrive on an interface, to be forwarded.
    fn arriving(&self) -> Vec<Message> {
        const WHAT: &str = "a rule for packets that are forwarded (NFT_FIB_INET, NFT_SOCKET, NFT_REJECT)";
        let mut rules = vec![
            Rule::new().going_to_this_machine().done(),
            Rule::new().going_link_local().done(),
            // What began here goes on here.
            self.watched(Rule::new(), TCP).of_a_transparent_socket().mark(self.0.number.mark()).accept(),
            self.watched(Rule::new(), TCP).tcp_flags(SYN).jump(ENTER),
        ];
        if self.refuses_udp() {
            rules.push(self.watched(Rule::new(), UDP).count(REFUSED).reject());
        }
        rules.iter().map(|rule| self.rule(ARRIVE, WHAT, rule)).collect()
    }

    /// To a watched port.
    fn watched(&self, rule: Rule, protocol: u8) -> Rule {
        let rule = rule.protocol(protocol);
        if self.0.ports.is_empty() { rule } else { rule.port_in(PORTS.0, PORTS.1) }
    }

    fn refuses_udp(&self) -> bool {
        self.0.refuse_udp && !self.0.ports.is_empty()
    }

    fn chain_of_beginnings(&self) -> &'static str {
        if matches!(self.0.whose, Whose::Arriving(_)) { ENTER } else { TAKE }
    }

    /// What becomes of connections, depending on the phase.
    fn beginning(&self, phase: Phase) -> Vec<Message> {
        const WHAT: &str = "a rule that takes connections (NFT_TPROXY)";
        let chain = self.chain_of_beginnings();
        let mark = self.0.number.mark();
        if matches!(self.0.whose, Whose::Arriving(_)) {
            // Only first packets come to that chain.
            let families = match phase {
                Phase::Taking => self.families(),
                Phase::Full | Phase::Bypassed => return vec![self.rule(chain, WHAT, &Rule::new().count(NO_ROOM))],
                Phase::Noting | Phase::Draining => return Vec::new(),
            };
            let stalled = Rule::new().of_family_not_in(ALIVE.0, ALIVE.1).count(STALLED).done();
            let enter = |(family, address, port)| {
                let taken = Rule::new().of(family).protocol(TCP).tproxy(family, address, port);
                self.rule(chain, WHAT, &taken.count(TAKEN).mark(mark).accept())
            };
            let stalled = self.rule(chain, WHAT, &stalled);
            return std::iter::once(stalled).chain(families.into_iter().map(enter)).collect();
        }
        // Who begins a connection is no server at that port (any more).
        let beginning = Rule::new().protocol(TCP).tcp_flags(SYN);
        let mut rules = vec![
            beginning.change_source_port(Change::Delete, SERVING.0, SERVING.1),
            Rule::new().protocol(TCP).source_port_in(SERVING.0, SERVING.1).done(),
        ];
        for (family, set) in TUPLES_OF {
            let first = Rule::new().of(family).protocol(TCP).tcp_flags(SYN);
            let passes = |rule: Rule| rule.change_tuple(Change::Add, family, set.0, set.1).done();
            match phase {
                Phase::Taking => {
                    rules.push(passes(first.clone().of_family_not_in(ALIVE.0, ALIVE.1).count(STALLED)));
                    rules.push(first.change_tuple(Change::Delete, family, set.0, set.1));
                }
                Phase::Full | Phase::Bypassed => rules.push(passes(first.count(NO_ROOM))),
                Phase::Noting | Phase::Draining => rules.push(passes(first)),
            }
        }
        if phase != Phase::Noting {
            for (family, set) in TUPLES_OF {
                rules.push(Rule::new().of(family).protocol(TCP).tuple_in(family, set.0, set.1).done());
            }
            for (family, ..) in self.families() {
                let ours = Rule::new().of(family).protocol(TCP);
                rules.push(ours.clone().tcp_flags(SYN).count(TAKEN));
                rules.push(ours.mark(mark));
            }
        }
        rules.iter().map(|rule| self.rule(chain, WHAT, rule)).collect()
    }
}

const TUPLES_OF: [(Family, (&str, u32)); 2] = [(Family::V4, DIRECT_V4), (Family::V6, DIRECT_V6)];

#[cfg(test)]
mod tests {
    //! Held against what `nft` sends for the same table in its own language:
    //! `golden/*.nft`, and the bytes of its messages, `golden/*.hex`.
    use super::*;

    fn plan(number: usize, whose: Whose) -> Plan {
        let number = Number::all().nth(number).expect("a number");
        Plan { number, whose, ports: vec![443, 8443], refuse_udp: true, room: MAX_DIRECT, v4: 5555, v6: Some(5556) }
    }

    /// By message type and attributes, in an order of their own: `nft` sends
    /// chains before sets.
    fn sorted(messages: &[Message]) -> Vec<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut lines: Vec<String> = messages
            .iter()
            .map(|message| format!("{} {}", message.kind as u16, hex(&message.bytes(0)[20..])))
            .collect();
        lines.sort_unstable();
        lines
    }

    #[track_caller]
    fn same(messages: &[Message], golden: &str) {
        let mut expected: Vec<&str> = golden.lines().collect();
        expected.sort_unstable();
        let messages = sorted(messages);
        for (message, expected) in messages.iter().zip(&expected) {
            assert_eq!(message, expected);
        }
        assert_eq!(messages.len(), expected.len());
    }

    /// What stands in the table after a turn to a phase.
    fn table(plan: &Plan, phase: Phase) -> Vec<Message> {
        let noting = sorted(&Table(plan).beginning(Phase::Noting));
        let mut messages = fill(plan);
        messages.retain(|message| !noting.contains(&sorted(std::slice::from_ref(message))[0]));
        // The first flushes.
        messages.extend(turn(plan, phase).into_iter().skip(1));
        messages
    }

    #[test]
    fn byte_for_byte_as_nft() {
        let cgroup = plan(1, Whose::Cgroup { id: 1, level: 1 });
        same(&table(&cgroup, Phase::Taking), include_str!("golden/taking.hex"));
        let everybody = plan(0, Whose::Everybody);
        same(&fill(&everybody), include_str!("golden/noting.hex"));
        same(&table(&everybody, Phase::Draining), include_str!("golden/draining.hex"));
        let gateway = plan(2, Whose::Arriving(vec!["eth0".into(), "lan".into()]));
        same(&table(&gateway, Phase::Taking), include_str!("golden/gateway.hex"));
    }

    /// Nothing of the gateway's table takes connections that begin, unless it
    /// is in force.
    #[test]
    fn a_gateway_takes_in_its_phase_only() {
        let gateway = plan(2, Whose::Arriving(vec!["eth0".into()]));
        for phase in [Phase::Noting, Phase::Draining] {
            assert_eq!(turn(&gateway, phase).len(), 1, "{phase:?}");
        }
        assert_eq!(turn(&gateway, Phase::Full).len(), 2);
        assert_eq!(turn(&gateway, Phase::Taking).len(), 4);
    }

    #[test]
    fn without_ipv6_its_connections_are_left_alone() {
        let plan = Plan { v6: None, ..plan(0, Whose::Everybody) };
        let with = Table(&self::plan(0, Whose::Everybody)).beginning(Phase::Taking).len();
        assert_eq!(Table(&plan).beginning(Phase::Taking).len(), with - 2);
        assert_eq!(Table(&plan).looped().len(), 1);
    }

    /// As `nft` has it for `10.0.0.1 . 1025 . 192.0.2.1 . 443`.
    #[test]
    fn tuples_as_sets_have_them() {
        let tuple = Tuple {
            source: ("10.0.0.1".parse().expect("an address"), 1025),
            destination: ("::ffff:192.0.2.1".parse().expect("an address"), 443),
        };
        let key = tuple.key(Family::V4).expect("a key");
        assert_eq!(key, [10, 0, 0, 1, 4, 1, 0, 0, 192, 0, 2, 1, 1, 187, 0, 0]);
        assert_eq!(tuple.key(Family::V6), None);
        let six = Tuple {
            source: ("::1".parse().expect("an address"), 1),
            destination: ("2001:db8::1".parse().expect("an address"), 2),
        };
        assert_eq!(six.key(Family::V6).expect("a key").len(), 40);
        let plan = plan(0, Whose::Everybody);
        let messages = leave_alone(&plan, &[tuple, six, tuple]);
        assert_eq!(messages.len(), 2, "one for each family");
        assert!(leave_alone(&plan, &vec![six; 1001]).len() == 3);
    }
}
