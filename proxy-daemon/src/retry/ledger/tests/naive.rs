//! Random histories, played and counted a second time by a naive reference.
use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

/// One attempt of a random history.
#[derive(Clone, Debug)]
struct Event {
    process: u32,
    call: u8,
    /// 0: no signal; 1: a signal without a number; else one more than the
    /// number that the client gives.
    number: u32,
    from: u64,
    length: u64,
    end: End,
}

fn event() -> impl Strategy<Value = Event> {
    let end = prop_oneof![
        4 => Just(Status(200)),
        3 => Just(Status(503)),
        1 => Just(Status(400)),
        1 => Just(Status(404)),
        1 => Just(Status(307)),
        3 => Just(Rule(429)),
        1 => Just(Fails(Failure::Reset)),
        1 => Just(Fails(Failure::Cancelled)),
    ];
    (1..4_u32, 0..4_u8, 0..6_u32, 0..100_u64, 0..40_u64, end)
        .prop_map(|(process, call, number, from, length, end)| Event { process, call, number, from, length, end })
}

/// The counting rules written down a second time, over the whole history at
/// once and without regard to cost.
fn naive(events: &[Event], pid: u32) -> (Tally, Duration) {
    let mut tally = Tally::default();
    let mut stalled = std::collections::BTreeSet::new();
    let mut calls: BTreeMap<u8, Vec<&Event>> = BTreeMap::new();
    let retryable = |end: End| match end {
        Status(status) | Rule(status) => status == 503 || status == 429,
        Fails(failure) => failure != Failure::Cancelled,
    };
    let class = |end: End| match end {
        Status(status) | Rule(status) => match status {
            429 => Class::Throttled,
            500.. => Class::ServerError,
            400.. => Class::ClientError,
            _ => Class::Success,
        },
        Fails(Failure::Cancelled) => Class::Cancelled,
        Fails(Failure::TimedOut) => Class::Timeout,
        Fails(_) => Class::Connection,
    };
    let told = |end: End| match end {
        Status(status) | Rule(status) => Some(status),
        Fails(_) => None,
    };
    for event in events.iter().filter(|event| event.process == pid) {
        tally.attempts += 1;
        tally.classes.add(class(event.end), matches!(event.end, Rule(_)));
        if class(event.end) != Class::Success {
            tally.wasted.time += Duration::from_millis(event.length);
        }
        if event.number == 0 {
            tally.calls += 1;
            tally.unlinked += 1;
            tally.give_ups += u64::from(retryable(event.end));
        } else {
            calls.entry(event.call).or_default().push(event);
        }
    }
    for events in calls.values_mut() {
        events.sort_by_key(|event| event.from);
        tally.calls += 1;
        // By the client's number, or by arrival where it gives none.
        let first = |(at, event): (usize, &&Event)| event.number == 2 || (event.number == 1 && at == 0);
        let retries = events.len() as u64 - u64::from(events.iter().enumerate().any(first));
        tally.retries_exact += retries;
        tally.calls_retried += u64::from(retries > 0);
        for (at, event) in events.iter().enumerate() {
            let before = &events[..at];
            if before.iter().any(|other| other.from + other.length > event.from) {
                continue;
            }
            let Some(last) = before.iter().max_by_key(|other| other.from + other.length) else { continue };
            if matches!(last.end, Fails(Failure::Cancelled)) {
                tally.classes.was_timeout();
            }
            if told(last.end).is_some_and(|status| (300..400).contains(&status)) {
                continue;
            }
            let from = last.from + last.length;
            tally.backoff.add(ms(event.from).since(ms(from)), matches!(last.end, Rule(_)));
            stalled.extend(from..event.from);
        }
        // The attempts that ran side by side at the end.
        let mut tail = 0;
        for at in 1..events.len() {
            if events[..at].iter().all(|other| other.from + other.length <= events[at].from) {
                tail = at;
            }
        }
        let won = events[tail..].iter().any(|event| told(event.end).is_some_and(|status| status < 400));
        let last_of =
            |events: &[&Event]| events.iter().max_by_key(|event| event.from + event.length).map(|last| last.end);
        let last = last_of(events).expect("an attempt");
        let again = last_of(&events[..tail]).is_some_and(|before| match (before, last) {
            (Fails(before), Fails(last)) => before == last,
            _ => told(before).is_some() && told(before) == told(last),
        });
        tally.give_ups +=
            u64::from(!won && (retryable(last) || again && told(last).is_none_or(|status| status >= 400)));
    }
    (tally, Duration::from_millis(stalled.len() as u64))
}

/// Plays a history in order of time and gives each process's tally.
fn play(events: &[Event], limits: Limits) -> Snapshot {
    let processes: BTreeMap<u32, _> = (1..4).map(|pid| (pid, process(pid))).collect();
    let mut ledger = Ledger::new(limits, ms(0));
    // At one and the same moment ends come before beginnings, as on a wire.
    let mut steps: Vec<_> = (0..events.len())
        .flat_map(|at| [(events[at].from, true, at), (events[at].from + events[at].length, false, at)])
        .collect();
    steps.sort();
    let mut links = BTreeMap::new();
    for (at, begins, index) in steps {
        let event = &events[index];
        let process = &processes[&event.process];
        if begins {
            let number = event.number.checked_sub(1).filter(|number| *number > 0);
            let signal = (event.number > 0).then(|| signal(&event.call.to_string(), number, None));
            links.insert(index, ledger.begin(process, &Hint::from(signal), "api.test", ms(at)));
        } else {
            let operation = if event.call.is_multiple_of(2) { "PutObject" } else { "GetObject" };
            let link = links.remove(&index).expect("begun before it ends");
            ledger.finish(&attempt(process, link, (ms(event.from), ms(at)), event.end, operation));
        }
    }
    ledger.snapshot(ms(1_000))
}

/// Makes every beginning and end a moment of its own, so that no order among
/// equals is left open.
fn spread(mut events: Vec<Event>) -> Vec<Event> {
    let count = events.len() as u64;
    for (at, event) in (0..).zip(&mut events) {
        event.from = (event.from * count + at) * 2;
        event.length = (event.length * count + 1).next_multiple_of(2) - 1;
    }
    let mut ends: Vec<_> = events.iter().map(|event| event.from + event.length).collect();
    ends.sort_unstable();
    ends.dedup();
    if ends.len() == events.len() { events } else { Vec::new() }
}

proptest! {
    #[test]
    fn equals_the_naive_ledger(events in prop::collection::vec(event(), 0..24)) {
        let events = spread(events);
        let snapshot = play(&events, Limits::default());
        check_sums(&snapshot);
        for share in &snapshot.processes {
            let (expected, stalled) = naive(&events, share.process.key.pid);
            let told = &share.tally;
            let got = Tally {
                statuses: Counts::default(), injected: Counts::default(), replaced: Counts::default(),
                errors: Counts::default(), ..told.clone()
            };
            prop_assert_eq!(got, expected);
            prop_assert_eq!(share.stalled, stalled);
        }
    }

    #[test]
    fn sums_hold_and_memory_is_bounded_under_tight_limits(
        events in prop::collection::vec(event(), 0..60), calls in 1..4_usize, processes in 1..3_usize,
    ) {
        let limits = Limits { calls, settled: 1, tracks: 1, processes, operations: 1, problems: 1, rules: 1, spans: 1 };
        let events = spread(events);
        let snapshot = play(&events, limits);
        check_sums(&snapshot);
        prop_assert_eq!(snapshot.totals.attempts, events.len() as u64);
        prop_assert!(snapshot.processes.len() <= processes);
    }
}
