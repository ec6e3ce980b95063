//! In what a run differed from a direct one: every way, each with its count,
//! so that what else the report says can be trusted. Nothing is the normal
//! case.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::words::{GLUE, count, duration, number};
use crate::{
    proxy::Answered,
    redirect::Counters,
    retry::{ByHand, Snapshot, Tally},
};

/// Differences listed one by one; the rest is one entry.
const MAX_LISTED: usize = 256;

/// One way in which the run differed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DifferenceEntry {
    /// What sort of difference it is, one of `KINDS`.
    pub kind: String,
    /// The host, or another name, that it concerns; empty for all.
    pub name: String,
    /// Connections, attempts or datagrams.
    pub count: u64,
    /// A sentence.
    pub text: String,
}

/// What [`DifferenceEntry::kind`] may say.
const KINDS: &[&str] = &[
    "tunnelled",
    "changed-request",
    "changed-answer",
    "synthetic-answer",
    "injected-fault",
    "delayed",
    "failure",
    "quic-refused",
    "blocked",
    "bypassed",
    "cut",
    "other",
];

impl DifferenceEntry {
    pub fn new(kind: &'static str, name: impl Into<String>, count: u64, text: impl Into<String>) -> Self {
        debug_assert!(KINDS.contains(&kind), "{kind} is told to nobody");
        Self { kind: kind.to_owned(), name: name.into(), count, text: text.into() }
    }
}

/// All of a run's differences: those that the ledger knows, then those that
/// the instance adds.
pub(super) fn all(snapshot: &Snapshot, others: &[DifferenceEntry]) -> Vec<DifferenceEntry> {
    let mut all = by_rules(&snapshot.totals);
    all.extend(by_hand(&snapshot.totals.hand));
    all.extend(tunnels(snapshot));
    all.extend(failures(snapshot));
    all.extend_from_slice(others);
    if all.len() > MAX_LISTED {
        let rest = all.split_off(MAX_LISTED - 1);
        let sum = rest.iter().map(|difference| difference.count).sum();
        all.push(DifferenceEntry::new(
            "other",
            "",
            sum,
            format!("{} of other kinds or names.", count(rest.len() as u64, "more difference", "more differences")),
        ));
    }
    all
}

/// What the ledger does not know: what became of connections on their way
/// here, and whether some had to be cut at the end.
pub fn differences(redirect: &Counters, hurried: bool) -> Vec<DifferenceEntry> {
    let mut found = Vec::new();
    let quic = redirect.udp_refused;
    if quic > 0 {
        let text = format!(
            "QUIC (HTTP/3) was refused {}, so that clients fall back to TCP; --allow-quic leaves it alone.",
            if quic == 1 { "once".to_owned() } else { format!("{} times", number(quic)) }
        );
        found.push(DifferenceEntry::new("quic-refused", "", quic, text));
    }
    let blocked = redirect.blocked;
    if blocked > 0 {
        let text = format!(
            "{} refused that retryscope could not carry, as --fail closed asks.",
            if blocked == 1 { "1 connection was".to_owned() } else { format!("{} connections were", number(blocked)) }
        );
        found.push(DifferenceEntry::new("blocked", "", blocked, text));
    }
    let bypassed = redirect.direct_bypassed;
    if bypassed > 0 {
        let text = format!(
            "{} direct while retryscope was bypassed; what the report says is of the others.",
            count(bypassed, "connection went", "connections went")
        );
        found.push(DifferenceEntry::new("bypassed", "", bypassed, text));
    }
    let lost = redirect.handover_failed;
    if lost > 0 {
        let text = format!(
            "{} closed, since the kernel had lost what it knew of {}.",
            if lost == 1 { "1 connection was".to_owned() } else { format!("{} connections were", number(lost)) },
            if lost == 1 { "it" } else { "them" }
        );
        found.push(DifferenceEntry::new("cut", "", lost, text));
    }
    if hurried {
        let text = "Connections were still open when the time to finish had passed; they were cut.";
        found.push(DifferenceEntry::new("cut", "", 1, text));
    }
    found
}

/// What rules have made of answers.
fn by_rules(totals: &Tally) -> Vec<DifferenceEntry> {
    let mut found = Vec::new();
    let hand = &totals.hand;
    let (told, changed) = (totals.injected.sum(), totals.replaced.sum());
    let synthetic = told.saturating_sub(changed).saturating_sub(hand.made);
    let changed = changed.saturating_sub(hand.changed);
    let aborted = totals.aborted.sum().saturating_sub(hand.aborted);
    let mut add = |kind, count: u64, text: String| {
        if count > 0 {
            found.push(DifferenceEntry::new(kind, "", count, text));
        }
    };
    add(
        "changed-answer",
        changed,
        format!("{} {} changed by rules.", count(changed, "answer", "answers"), were(changed)),
    );
    add(
        "synthetic-answer",
        synthetic,
        format!(
            "{} {} made by rules; the upstream never saw the {}.",
            count(synthetic, "answer", "answers"),
            were(synthetic),
            if synthetic == 1 { "request" } else { "requests" }
        ),
    );
    add(
        "injected-fault",
        aborted,
        format!("{} {} broken off by rules.", count(aborted, "attempt", "attempts"), were(aborted)),
    );
    let unread = totals.unread;
    add(
        "other",
        unread,
        format!(
            "{} a head that is too long to be read whole (256 KiB): it passed as it came, rules of its phase did not apply, and what followed on its connection was not looked at.",
            count(unread, "attempt had", "attempts had"),
        ),
    );
    let held = totals.held.saturating_sub(hand.time).as_secs_f64() * 1000.0;
    add("delayed", u64::from(held > 0.0), format!("Rules held attempts up, for {} in all.", duration(held)));
    found
}

/// Answers that were a recording's, and those that it did not have.
pub fn from_recording(answered: &Answered) -> Vec<DifferenceEntry> {
    let Answered { given, missing, passed } = *answered;
    let given_text = format!(
        "{} came out of the recording of --answer-from; no upstream was asked for them.",
        count(given, "answer", "answers"),
    );
    let missing_text = format!(
        "{} {} not in the recording of --answer-from, and {} answered 501.",
        count(missing, "request", "requests"),
        were(missing),
        were(missing)
    );
    let passed_text = format!(
        "{} {} not in the recording of --answer-from, and {} passed on to the upstream, written anew.",
        count(passed, "request", "requests"),
        were(passed),
        were(passed)
    );
    [(given, given_text), (missing, missing_text), (passed, passed_text)]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, text)| DifferenceEntry::new("synthetic-answer", "", count, text))
        .collect()
}

fn were(count: u64) -> &'static str {
    if count == 1 { "was" } else { "were" }
}

/// What people have made of attempts that they held.
fn by_hand(hand: &ByHand) -> Vec<DifferenceEntry> {
    let mut found = Vec::new();
    let mut add = |kind, number: u64, (one, many), what: &str| {
        if number > 0 {
            let text = format!("{} {} {what}.", count(number, one, many), were(number));
            found.push(DifferenceEntry::new(kind, "", number, text));
        }
    };
    let answers = ("answer", "answers");
    let attempts = ("attempt", "attempts");
    add("changed-request", hand.asked, ("request", "requests"), "changed by hand on the way to the upstream");
    add("changed-answer", hand.changed, answers, "changed by hand");
    add("synthetic-answer", hand.made, answers, "given by hand in the upstream's place");
    add("injected-fault", hand.aborted, attempts, "broken off by hand");
    let held = format!("held by hand, for {} in all", duration(hand.time.as_secs_f64() * 1000.0));
    add("delayed", hand.held, attempts, &held);
    found
}

/// What was passed on untouched, and so could not be read.
fn tunnels(snapshot: &Snapshot) -> Vec<DifferenceEntry> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut listed = 0;
    for tunnel in snapshot.processes.iter().flat_map(|share| &share.tunnels) {
        *sums.entry((&tunnel.name, tunnel.why)).or_default() += tunnel.connections;
        listed += tunnel.connections;
    }
    let all = snapshot.folded.connections.tunnelled
        + snapshot.processes.iter().map(|share| share.connections.tunnelled).sum::<u64>();
    let said = |connections: u64, to: &str, why: &str| {
        format!(
            "{}{to} {} passed on untouched, unread{why}.",
            count(connections, "connection", "connections"),
            if connections == 1 { "was" } else { "were" },
        )
    };
    let mut found: Vec<_> = sums
        .into_iter()
        .map(|((name, why), connections)| {
            let text = said(connections, &format!(" to {name}"), &format!(": {why}"));
            DifferenceEntry::new("tunnelled", name, connections, text)
        })
        .collect();
    let rest = all.saturating_sub(listed);
    if rest > 0 {
        found.push(DifferenceEntry::new("tunnelled", "", rest, said(rest, " to other names", "")));
    }
    found
}

/// Failures that the client met in another form than it would have directly.
fn failures(snapshot: &Snapshot) -> Vec<DifferenceEntry> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for problem in snapshot.processes.iter().flat_map(|share| &share.problems) {
        if let Some(differs) = problem.differs {
            *sums.entry((&problem.name, differs)).or_default() += problem.count;
        }
    }
    sums.into_iter()
        .map(|((name, differs), connections)| {
            let times = if connections == 1 { String::new() } else { format!(" ({}{GLUE}times)", number(connections)) };
            DifferenceEntry::new("failure", name, connections, format!("{name}: {differs}{times}."))
        })
        .collect()
}
