//! From the ledger's snapshot to the document.
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::{
    AssertionEntry, BackoffEntry, BoundsEntry, ClassEntry, ConnectionsEntry, CountsEntry, HerdsEntry, Meta,
    OperationEntry, OutcomesEntry, ProblemEntry, ProcessEntry, Report, RetryAfterEntry, RuleEntry, RuleWaitEntry,
    SCHEMA, TimelineEntry, Totals, TunnelEntry, WastedEntry, fidelity,
};
use crate::{
    process::{container, unit},
    retry::{Bounds, Class, Connections, Counts, HerdCount, OperationName, ProcessShare, Snapshot, Tally},
};

/// The document for a snapshot.
pub fn build(snapshot: &Snapshot, meta: &Meta) -> Report {
    let mut shares: Vec<_> = snapshot.processes.iter().collect();
    shares.sort_by_key(|share| (Reverse((share.stalled, share.tally.attempts)), share.process.key));

    let folded = &snapshot.folded;
    let others = Totals {
        processes: folded.processes,
        counts: counts(&folded.tally),
        outcomes: outcomes(&folded.tally),
        stalled_ms: ms(folded.stalled),
        stalled_injected_ms: ms(folded.stalled_injected),
        observed_ms: ms(folded.observed),
        synchronised: herds(&folded.herds),
        connections: connections(&folded.connections),
    };
    let mut all_connections = folded.connections;
    shares.iter().for_each(|share| all_connections.add_all(&share.connections));
    let mut all_herds = folded.herds;
    shares.iter().for_each(|share| all_herds.add_all(&share.herds));
    let sum = |of: fn(&ProcessShare) -> Duration, rest: Duration| {
        ms(shares.iter().map(|share| of(share)).fold(rest, Duration::saturating_add))
    };
    let totals = Totals {
        processes: folded.processes + shares.len() as u64,
        counts: counts(&snapshot.totals),
        outcomes: outcomes(&snapshot.totals),
        stalled_ms: sum(|share| share.stalled, folded.stalled),
        stalled_injected_ms: sum(|share| share.stalled_injected, folded.stalled_injected),
        observed_ms: sum(ProcessShare::observed, folded.observed),
        synchronised: herds(&all_herds),
        connections: connections(&all_connections),
    };
    Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: meta.seed,
        started: time(meta.started),
        ended: time(meta.ended),
        command: meta.command.clone(),
        ports: meta.ports.clone(),
        totals,
        processes: shares.into_iter().map(process).collect(),
        others: (folded.processes > 0).then_some(others),
        rules: meta.rules.iter().map(|(name, hits)| RuleEntry { name: name.clone(), hits: *hits }).collect(),
        redirect: meta.redirect.clone(),
        bounds: bounds(&snapshot.bounds),
        fidelity: fidelity::all(snapshot, &meta.differences),
        assertions: meta
            .assertions
            .iter()
            .map(|verdict| AssertionEntry {
                assertion: verdict.assertion.clone(),
                holds: verdict.holds,
                explanation: verdict.explanation.clone(),
            })
            .collect(),
        notes: meta.notes.clone(),
    }
}

fn process(share: &ProcessShare) -> ProcessEntry {
    let facts = share.process.facts();
    let mut operations: Vec<_> = share.operations.iter().filter(|(_, tally)| *tally != Tally::default()).collect();
    operations.sort_by(|(a, x), (b, y)| {
        let order = |name: &OperationName| (name.service.clone(), name.operation.clone());
        (y.backoff.total, y.attempts).cmp(&(x.backoff.total, x.attempts)).then_with(|| order(a).cmp(&order(b)))
    });
    let mut rules: Vec<_> = share.rules.iter().collect();
    rules.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.rule.cmp(&b.rule)));
    ProcessEntry {
        pid: share.process.key.pid,
        start_ticks: share.process.key.start_ticks,
        parent: share.process.parent,
        uid: share.process.uid,
        command: facts.command.clone(),
        comm: facts.comm.clone(),
        exe: facts.exe.clone(),
        cgroup: facts.cgroup.clone(),
        unit: facts.cgroup.as_deref().and_then(unit).map(str::to_owned),
        container: facts.cgroup.as_deref().and_then(container).map(str::to_owned),
        container_name: facts.container_name.clone(),
        inner_pid: share.process.inner,
        exited: share.exited,
        counts: counts(&share.tally),
        stalled_ms: ms(share.stalled),
        stalled_injected_ms: ms(share.stalled_injected),
        observed_ms: ms(share.observed()),
        stalled_share: ratio(share.stalled.as_secs_f64(), share.observed().as_secs_f64()).min(1.0),
        synchronised: herds(&share.herds),
        timeline: TimelineEntry {
            slot_ms: ms(share.series.slot_until(share.until)),
            retries: share.series.counts(share.until),
        },
        connections: connections(&share.connections),
        operations: operations.into_iter().map(|(name, tally)| operation(name, tally)).collect(),
        rules: rules
            .into_iter()
            .map(|wait| RuleWaitEntry { name: wait.rule.to_string(), count: wait.count, total_ms: ms(wait.total) })
            .collect(),
        problems: share
            .problems
            .iter()
            .map(|problem| ProblemEntry {
                kind: problem.kind.to_owned(),
                name: problem.name.clone(),
                hint: problem.hint.clone(),
                count: problem.count,
            })
            .collect(),
        tunnels: share
            .tunnels
            .iter()
            .map(|tunnel| TunnelEntry {
                name: tunnel.name.clone(),
                why: tunnel.why.to_owned(),
                connections: tunnel.connections,
                sent_bytes: tunnel.sent,
                received_bytes: tunnel.received,
                open_ms: ms(tunnel.open),
                longest_ms: ms(tunnel.longest),
            })
            .collect(),
    }
}

fn operation(name: &OperationName, tally: &Tally) -> OperationEntry {
    OperationEntry {
        service: name.service.as_deref().map(str::to_owned),
        operation: name.operation.to_string(),
        counts: counts(tally),
        outcomes: outcomes(tally),
    }
}

fn counts(tally: &Tally) -> CountsEntry {
    CountsEntry {
        calls: tally.calls,
        calls_retried: tally.calls_retried,
        attempts: tally.attempts,
        attempts_unlinked: tally.unlinked,
        retries: tally.retries(),
        retries_exact: tally.retries_exact,
        retries_inferred: tally.retries_inferred,
        give_ups: tally.give_ups,
        amplification: if tally.calls == 0 { 1.0 } else { ratio(tally.attempts as f64, tally.calls as f64) },
        classes: Class::ALL
            .into_iter()
            .filter(|class| tally.classes.all(*class) > 0)
            .map(|class| {
                let (genuine, injected) = (tally.classes.genuine(class), tally.classes.injected(class));
                (class.name().to_owned(), ClassEntry { genuine, injected })
            })
            .collect(),
        codes: tally.codes.iter().map(|(code, count)| (code.to_string(), count)).collect(),
        retry_after: RetryAfterEntry {
            asked: tally.asked.count,
            asked_ms: ms(tally.asked.total),
            followed: tally.asked.followed,
            honoured: tally.asked.honoured,
        },
        sent_bytes: tally.sent,
        received_bytes: tally.received,
        wasted: WastedEntry {
            ms: ms(tally.wasted.time),
            sent_bytes: tally.wasted.sent,
            received_bytes: tally.wasted.received,
        },
        repeated_writes: tally.repeated,
        held_ms: ms(tally.held),
        held_by_hand_ms: ms(tally.hand.time),
        backoff: BackoffEntry {
            count: tally.backoff.count,
            total_ms: ms(tally.backoff.total),
            max_ms: ms(tally.backoff.max),
            injected_count: tally.backoff.injected_count,
            injected_ms: ms(tally.backoff.injected_total),
            p50_ms: quantile(tally, 0.5),
            p90_ms: quantile(tally, 0.9),
            p99_ms: quantile(tally, 0.99),
        },
    }
}

fn outcomes(tally: &Tally) -> OutcomesEntry {
    fn named<K: Ord + Copy>(counts: &Counts<K>, name: impl Fn(K) -> String) -> BTreeMap<String, u64> {
        counts.iter().map(|(key, count)| (name(key), count)).collect()
    }
    let status = |status| if status == 0 { "other".to_owned() } else { u16::to_string(&status) };
    OutcomesEntry {
        statuses: named(&tally.statuses, status),
        injected: named(&tally.injected, status),
        replaced: named(&tally.replaced, status),
        aborted: named(&tally.aborted, str::to_owned),
        errors: named(&tally.errors, str::to_owned),
    }
}

/// Never above the longest wait, which is known exactly.
fn quantile(tally: &Tally, q: f64) -> f64 {
    ms(tally.backoff.quantiles.at(q).unwrap_or_default().min(tally.backoff.max))
}

/// To the fourth digit; 0 where there is nothing to compare with.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 1e4).round() / 1e4 } else { 0.0 }
}

fn herds(count: &HerdCount) -> HerdsEntry {
    let HerdCount { herds, retries, largest } = *count;
    HerdsEntry { herds, retries, largest }
}

fn connections(connections: &Connections) -> ConnectionsEntry {
    let Connections { intercepted, tunnelled, refused } = *connections;
    ConnectionsEntry { intercepted, tunnelled, refused }
}

fn bounds(bounds: &Bounds) -> BoundsEntry {
    BoundsEntry {
        calls_forgotten: bounds.calls_forgotten,
        processes_folded: bounds.processes_folded,
        operations_folded: bounds.operations_folded,
        problems_dropped: bounds.problems_dropped,
        attempts_unheld: bounds.attempts_unheld,
        waits_cut_ms: ms(bounds.waits_cut),
    }
}

/// Milliseconds to the microsecond.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

pub(crate) fn time(at: SystemTime) -> String {
    // Out of range only past the year 9999, which humantime refuses to print.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(at.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}
