//! What leads marked packets here: for each family a rule (a packet with our
//! mark is looked up in our table) and a route (every address is this
//! machine's).
//!
//! Rules name the interface, so that the answers' path is looked up without
//! them: where a system checks sources with the packet's mark
//! (`src_valid_mark`), packets would else count as spoofed. Without packets
//! that are marked, all of this means nothing; so what a killed instance
//! leaves does no harm, and goes at the next start.
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::{netlink::Netlink, number::Number};

/// The loopback has this number in every network namespace.
const LOOPBACK: u32 = 1;

#[derive(Debug)]
pub(super) struct Routes {
    kernel: Netlink,
    number: Number,
    families: Vec<AddressFamily>,
}

impl Routes {
    /// Adds them for packets from `interfaces`; what an earlier instance left
    /// under this number goes first.
    pub(super) fn add(number: Number, v6: bool, interfaces: &[String]) -> io::Result<Self> {
        let kernel = Netlink::open(NETLINK_ROUTE)?;
        let families = [Some(AddressFamily::Inet), v6.then_some(AddressFamily::Inet6)];
        let routes = Self { kernel, number, families: families.into_iter().flatten().collect() };
        routes.remove()?;
        for family in &routes.families {
            // The route first: a rule without one would lead nowhere.
            routes.make(RouteNetlinkMessage::NewRoute(route(*family, number)))?;
            for interface in interfaces {
                routes.make(RouteNetlinkMessage::NewRule(rule(*family, number, interface)))?;
            }
        }
        Ok(routes)
    }

    fn make(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.tell(message, flags)
    }

    fn tell(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        self.kernel.ask(message).map(|_| ())
    }

    /// Removes everything that goes by our number.
    fn remove(&self) -> io::Result<()> {
        for rule in all(&self.kernel)?.into_iter().filter(|rule| is_ours(rule, self.number)) {
            gone(self.tell(RouteNetlinkMessage::DelRule(rule), NLM_F_REQUEST | NLM_F_ACK))?;
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut route = route(family, self.number);
            // Whoever made it.
            route.header.protocol = RouteProtocol::Unspec;
            gone(self.tell(RouteNetlinkMessage::DelRoute(route), NLM_F_REQUEST | NLM_F_ACK))?;
        }
        Ok(())
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, number = %self.number, "the routes stay; they mean nothing without packets that are marked");
        }
    }
}

/// The numbers under which there are rules, whoever's.
pub(super) fn left() -> io::Result<Vec<Number>> {
    let rules = all(&Netlink::open(NETLINK_ROUTE)?)?;
    Ok(Number::all().filter(|number| rules.iter().any(|rule| is_ours(rule, *number))).collect())
}

/// Removes what goes by a number, which the caller holds.
pub(super) fn forget(number: Number) -> io::Result<()> {
    Routes { kernel: Netlink::open(NETLINK_ROUTE)?, number, families: Vec::new() }.remove()
}

/// The routing rules there are.
fn all(kernel: &Netlink) -> io::Result<Vec<RuleMessage>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetRule(question));
        question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let rules = match kernel.ask(question) {
            Err(error) if is_missing_family(&error) => continue,
            rules => rules?,
        };
        all.extend(rules.into_iter().filter_map(|rule| match rule {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        }));
    }
    Ok(all)
}

fn is_ours(rule: &RuleMessage, number: Number) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    has(&RuleAttribute::Priority(number.priority()))
        && has(&RuleAttribute::Table(number.routes()))
        && has(&RuleAttribute::FwMark(number.mark()))
}

fn rule(family: AddressFamily, number: Number, interface: &str) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Iifname(interface.to_owned()),
        RuleAttribute::Priority(number.priority()),
        RuleAttribute::FwMark(number.mark()),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(number.routes()),
    ];
    rule
}

/// `local default dev lo`
fn route(family: AddressFamily, number: Number) -> RouteMessage {
    let header = RouteHeader {
        address_family: family,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    let mut route = RouteMessage::default();
    route.header = header;
    route.attributes = vec![RouteAttribute::Table(number.routes()), RouteAttribute::Oif(LOOPBACK)];
    route
}

/// What is not there need not be removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) || is_missing_family(&error) => {
            Ok(())
        }
        other => other,
    }
}

/// Who may not change routes is told EPERM; EACCES is said of IPv6 that is
/// switched off.
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES))
}
