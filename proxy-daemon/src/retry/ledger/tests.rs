//! The ledger against stories told by hand, and ([`naive`]) against a
//! reference.
#![allow(clippy::unwrap_used)]
mod naive;

use std::time::Duration;

use super::*;
use crate::{
    flow::{Complaint, ConnectionId, Content, Failure, Headers, Injected, Operation, Protocol, Request, Response},
    process::Facts,
    retry::{CallKey, Family},
};

fn process(pid: u32) -> Arc<Process> {
    let facts = Facts { comm: "app".into(), command: format!("app {pid}"), ..Facts::default() };
    Arc::new(Process::new(ProcessKey { pid, start_ticks: 7 }, 1, 0, facts))
}

fn ms(at: u64) -> Moment {
    Moment(at * 1_000_000)
}

fn signal(call: &str, number: impl Into<Option<u32>>, max: impl Into<Option<u32>>) -> Signal {
    Signal { family: Family::Aws, call: Some(CallKey::of(call.as_bytes())), number: number.into(), max: max.into() }
}

/// An attempt with a complaint, and what it moved.
fn complaining(story: &mut Story, call: &str, number: u32, at: (u64, u64), change: impl FnOnce(&mut Attempt)) {
    let (link, _) = story.begin(Some(signal(call, number, 5)), at.0);
    let mut attempt = attempt(&story.process, link, (ms(at.0), ms(at.1)), Status(400), "GetItem");
    change(&mut attempt);
    story.ledger.finish(&attempt);
}

#[test]
fn a_throttle_told_by_its_code_alone_is_one() {
    let mut story = Story::new();
    complaining(&mut story, "a", 1, (0, 10), |attempt| {
        attempt.complaint.code = Some("ThrottlingException".into());
        (attempt.sent, attempt.received) = (7, 50);
    });
    let tally = story.tally();
    assert_eq!((tally.classes.genuine(Class::Throttled), tally.give_ups), (1, 1));
    assert_eq!(
        tally.codes.iter().map(|(code, count)| (&**code, count)).collect::<Vec<_>>(),
        [("ThrottlingException", 1)]
    );
    assert_eq!(tally.wasted, Wasted { time: Duration::from_millis(10), sent: 7, received: 50 });
}

#[test]
fn a_wait_that_was_asked_for_is_honoured_or_not() {
    let mut story = Story::new();
    let asks = |attempt: &mut Attempt| {
        attempt.complaint.wait = Some(Duration::from_secs(1));
        attempt.response.as_mut().unwrap().status = 503;
    };
    complaining(&mut story, "a", 1, (0, 10), asks);
    complaining(&mut story, "a", 2, (1_015, 1_020), asks);
    complaining(&mut story, "a", 3, (1_200, 1_210), asks);
    let asked = story.tally().asked;
    assert_eq!((asked.count, asked.followed, asked.honoured, asked.total), (3, 2, 1, Duration::from_secs(3)));
}

#[test]
fn a_client_that_left_and_came_back_had_waited_in_vain() {
    let mut story = Story::new();
    story.attempt(signal("a", 1, 3), (0, 1_000), Fails(Failure::Cancelled));
    assert_eq!(story.tally().classes.genuine(Class::Cancelled), 1);
    story.attempt(signal("a", 2, 3), (1_050, 1_060), Status(200));
    let classes = story.tally().classes;
    let of = |class| classes.genuine(class);
    assert_eq!((of(Class::Cancelled), of(Class::Timeout), of(Class::Success)), (0, 1, 1));
}

#[test]
fn writes_that_were_done_and_are_done_again_are_counted() {
    let mut story = Story::new();
    let lost = |method: &'static str, operation: &'static str| {
        move |attempt: &mut Attempt| {
            attempt.request.method = method.into();
            attempt.operation.name = Some(operation.into());
            attempt.response.as_mut().unwrap().status = 200;
            attempt.failure = Some(Failure::Reset);
        }
    };
    for (call, method, operation) in
        [("a", "POST", "PutItem"), ("b", "POST", "GetItem"), ("c", "PUT", "PutObject"), ("d", "POST", "Publish")]
    {
        complaining(&mut story, call, 1, (0, 10), lost(method, operation));
        complaining(&mut story, call, 2, (20, 30), lost(method, operation));
    }
    assert_eq!(story.tally().repeated, 2);
}

#[test]
fn quantiles_are_of_the_waits() {
    let mut story = Story::new();
    for call in 0..100 {
        let name = call.to_string();
        story.attempt(signal(&name, 1, 3), (0, 10), Status(503));
        story.attempt(signal(&name, 2, 3), (10 + call * 10, 1_200), Status(200));
    }
    let quantiles = story.tally().backoff.quantiles;
    let at = |q| quantiles.at(q).unwrap().as_millis();
    assert!((490..=500).contains(&at(0.5)) && (980..=999).contains(&at(0.99)), "{} {}", at(0.5), at(0.99));
}

/// A request without a name: `print` tells which, `body` what it sent.
fn nameless(story: &mut Story, print: u128, at: (u64, u64), end: End, body: Option<u64>) -> Link {
    let hint = Hint { signal: None, print: Some(Fingerprint::from(print)), bodiless: body.is_none() };
    let link = story.ledger.begin(&story.process, &hint, "api.test", ms(at.0));
    let mut attempt = attempt(&story.process, link, (ms(at.0), ms(at.1)), end, "");
    (attempt.print, attempt.body_digest) = (Some(print), body);
    story.ledger.finish(&attempt)
}

#[test]
fn a_client_without_signals_is_inferred() {
    let mut story = Story::new();
    assert_eq!(nameless(&mut story, 1, (0, 10), Status(503), None).evidence, Evidence::Alone);
    let link = nameless(&mut story, 1, (510, 520), Status(503), None);
    assert_eq!((link.number, link.evidence), (2, Evidence::Inferred));
    assert_eq!(link.waited.map(|wait| wait.length()), Some(Duration::from_millis(500)));
    assert_eq!(nameless(&mut story, 1, (1_520, 1_530), Status(200), None).number, 3);
    nameless(&mut story, 1, (1_600, 1_610), Status(200), None);
    let tally = story.tally();
    assert_eq!((tally.calls, tally.attempts, tally.retries_inferred, tally.retries_exact), (2, 4, 2, 0));
    assert_eq!((tally.give_ups, tally.calls_retried, tally.unlinked), (0, 1, 4));
    assert_eq!(tally.backoff.total, Duration::from_millis(1_500));
    assert_eq!(story.share().stalled, Duration::from_millis(1_500));
}

#[test]
fn another_body_is_another_request() {
    let mut story = Story::new();
    nameless(&mut story, 1, (0, 10), Status(503), Some(7));
    let other = nameless(&mut story, 1, (500, 510), Status(200), Some(8));
    assert_eq!((other.number, other.evidence, other.waited), (1, Evidence::Alone, None));
    let again = nameless(&mut story, 1, (700, 710), Status(200), Some(7));
    assert_eq!((again.number, again.evidence), (2, Evidence::Inferred));
    let tally = story.tally();
    assert_eq!((tally.calls, tally.retries(), tally.give_ups, tally.backoff.count), (2, 1, 0, 1));
}

#[test]
fn a_number_without_a_name_goes_on_with_the_same_request() {
    let mut story = Story::new();
    let mut numbered = |number, at: (u64, u64), status| {
        let signal = Signal { family: Family::Stainless, call: None, number: Some(number), max: None };
        let hint = Hint { signal: Some(signal), print: Some(Fingerprint::from(5)), bodiless: false };
        let link = story.ledger.begin(&story.process, &hint, "api.test", ms(at.0));
        let mut attempt = attempt(&story.process, link, (ms(at.0), ms(at.1)), Status(status), "");
        attempt.print = Some(5);
        story.ledger.finish(&attempt)
    };
    for (number, at, status) in
        [(1, (0, 10), 409), (1, (2, 12), 429), (2, (500, 510), 500), (2, (600, 610), 200), (3, (900, 910), 200)]
    {
        let link = numbered(number, at, status);
        assert_eq!((link.number, link.evidence), (number, Evidence::Exact));
    }
    let tally = story.tally();
    assert_eq!((tally.calls, tally.retries_exact, tally.calls_retried, tally.give_ups), (2, 3, 2, 0));
}

#[test]
fn an_id_that_means_nothing_if_it_is_new() {
    let mut story = Story::new();
    let mut azure = |id: &str, at: (u64, u64), status| {
        let call = Some(CallKey::of(id.as_bytes()));
        let signal = Signal { family: Family::Azure, call, number: None, max: None };
        let hint = Hint { signal: Some(signal), print: Some(Fingerprint::from(5)), bodiless: true };
        let link = story.ledger.begin(&story.process, &hint, "api.test", ms(at.0));
        let mut attempt = attempt(&story.process, link, (ms(at.0), ms(at.1)), Status(status), "");
        attempt.print = Some(5);
        story.ledger.finish(&attempt)
    };
    azure("a", (0, 10), 503);
    let same = azure("a", (500, 510), 503);
    assert_eq!((same.number, same.evidence), (2, Evidence::Exact));
    let new = azure("b", (18_000, 18_010), 200);
    assert_eq!((new.number, new.evidence), (3, Evidence::Inferred));
    // What was followed by its name waits for nobody else.
    let next = azure("c", (19_000, 19_010), 200);
    assert_eq!(next.number, 1);
    let tally = story.tally();
    assert_eq!((tally.calls, tally.retries_exact, tally.retries_inferred), (2, 1, 1));
}

/// A connection that could not be made, at some address of the host.
fn unmade(story: &mut Story, address: &str, at: (u64, u64)) -> Option<Link> {
    let print = Fingerprint::of_connecting(story.process.key, "api.test");
    let (from, to) = (ms(at.0), ms(at.1));
    if !story.ledger.connects(print, address.parse().unwrap(), from, to) {
        return None;
    }
    let hint = Hint { signal: None, print: Some(print), bodiless: true };
    let link = story.ledger.begin(&story.process, &hint, "", from);
    let mut attempt = attempt(&story.process, link, (from, to), Fails(Failure::Refused), "");
    attempt.print = Some(print.number());
    Some(story.ledger.finish(&attempt))
}

#[test]
fn connections_that_were_not_made_are_attempts_of_the_call_that_follows() {
    let mut story = Story::new();
    assert_eq!(unmade(&mut story, "192.0.2.1", (0, 1)).unwrap().number, 1);
    assert!(unmade(&mut story, "2001:db8::1", (2, 3)).is_none(), "the same attempt at another address");
    assert_eq!(unmade(&mut story, "192.0.2.1", (600, 601)).unwrap().number, 2);
    assert_eq!(story.tally().give_ups, 1);
    // Numbered and named: the first two were the connections'.
    story.attempt(signal("a", 3, 5), (1_700, 1_710), Status(200));
    let tally = story.tally();
    assert_eq!((tally.calls, tally.attempts, tally.give_ups), (1, 3, 0));
    assert_eq!((tally.retries_exact, tally.retries_inferred), (1, 1));
    assert_eq!(tally.backoff.total, Duration::from_millis(599 + 1_099));
    // Nameless: inferred.
    unmade(&mut story, "192.0.2.1", (50_000, 50_001));
    let link = nameless(&mut story, 9, (50_500, 50_510), Status(200), None);
    assert_eq!((link.number, link.evidence), (2, Evidence::Inferred));
}

/// How an attempt of the stories ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Status(u16),
    /// What a rule told in place of 200.
    Rule(u16),
    Fails(Failure),
}
use End::{Fails, Rule, Status};

/// The ledger and a way to tell it a story in milliseconds.
struct Story {
    ledger: Ledger,
    process: Arc<Process>,
}

impl Story {
    fn new() -> Self {
        Self::within(Limits::default())
    }

    fn within(limits: Limits) -> Self {
        Self { ledger: Ledger::new(limits, ms(0)), process: process(1) }
    }

    fn begin(&mut self, signal: Option<Signal>, at: u64) -> (Link, u64) {
        (self.ledger.begin(&self.process, &Hint::from(signal), "api.test", ms(at)), at)
    }

    fn finish(&mut self, begun: (Link, u64), end: End, at: u64) {
        self.finish_as(begun, end, at, "PutObject");
    }

    fn finish_as(&mut self, (link, started): (Link, u64), end: End, at: u64, operation: &str) {
        let attempt = attempt(&self.process, link, (ms(started), ms(at)), end, operation);
        self.ledger.finish(&attempt);
    }

    /// One attempt from beginning to end; how long it was waited for.
    fn attempt(&mut self, signal: Signal, (from, to): (u64, u64), end: End) -> Option<Wait> {
        let begun = self.begin(Some(signal), from);
        self.finish(begun, end, to);
        begun.0.waited
    }

    fn share(&self) -> ProcessShare {
        let snapshot = self.ledger.snapshot(ms(100_000));
        check_sums(&snapshot);
        snapshot.processes.into_iter().find(|share| share.process.key == self.process.key).expect("a share")
    }

    fn tally(&self) -> Tally {
        self.share().tally
    }
}

fn attempt(process: &Arc<Process>, link: Link, span: (Moment, Moment), end: End, operation: &str) -> Attempt {
    let response = |status| Some(Response { status, reason: String::new(), headers: Headers::default() });
    let (response, injected, failure) = match end {
        Status(status) => (response(status), None, None),
        Rule(status) => {
            (response(200), Some(Injected { status: Some(status), abort: None, rule: Arc::from("throttle") }), None)
        }
        Fails(failure) => (None, None, Some(failure)),
    };
    Attempt {
        connection: ConnectionId(1),
        process: Arc::clone(process),
        client: ([127, 0, 0, 1], 50_000).into(),
        origin: "192.0.2.1:443".parse().expect("an address"),
        protocol: Protocol::Http11,
        request: Request {
            method: Arc::from("PUT"),
            authority: Arc::from("s3.test:443"),
            target: Arc::from("/"),
            headers: Headers::default(),
        },
        operation: Operation {
            service: Some(Arc::from("s3")).filter(|_| !operation.is_empty()),
            name: Some(Arc::from(operation)).filter(|_| !operation.is_empty()),
        },
        link,
        started: span.0,
        response,
        injected,
        failure,
        ended: Some(span.1),
        request_content: Content::Unread,
        response_content: Content::Unread,
        call_key: 0,
        print: None,
        body_digest: None,
        held: Duration::ZERO,
        hand: crate::flow::Hand::default(),
        complaint: Complaint::default(),
        sent: 0,
        received: 0,
        trailers: None,
        captured: None,
    }
}

/// What holds of every snapshot.
fn check_sums(snapshot: &Snapshot) {
    let mut whole = snapshot.folded.tally.clone();
    for share in &snapshot.processes {
        let mut sum = Tally::default();
        share.operations.iter().for_each(|(_, tally)| sum.add_all(tally));
        assert_eq!(sum, share.tally, "a process is the sum of its operations");
        // A wait after a failure that has been folded away counts there.
        assert!(share.stalled <= share.tally.backoff.total || snapshot.folded.processes > 0);
        assert!(share.stalled_injected <= share.stalled);
        whole.add_all(&share.tally);
    }
    assert_eq!(whole, snapshot.totals, "the whole is the sum of its processes");
    let all = &snapshot.totals;
    assert_eq!(all.statuses.sum() + all.injected.sum() + all.errors.sum(), all.attempts);
    assert!(all.calls <= all.attempts);
    assert!(all.retries() <= all.attempts);
    assert!(all.calls_retried <= all.retries());
    assert!(all.replaced.sum() <= all.injected.sum());
}

#[test]
fn two_throttles_by_a_rule_then_success() {
    let mut story = Story::new();
    assert_eq!(story.attempt(signal("a", 1, 3), (0, 10), Rule(429)), None);
    let second = story.attempt(signal("a", 2, 3), (110, 120), Rule(429)).expect("a wait");
    assert_eq!((second.length(), second.injected), (Duration::from_millis(100), true));
    let third = story.attempt(signal("a", 3, 3), (420, 430), Status(200)).expect("a wait");
    assert_eq!(third.length(), Duration::from_millis(300));
    let share = story.share();
    let tally = &share.tally;
    assert_eq!((tally.calls, tally.calls_retried, tally.attempts, tally.retries_exact), (1, 1, 3, 2));
    assert_eq!((tally.give_ups, tally.unlinked, tally.retries_inferred), (0, 0, 0));
    assert_eq!((tally.injected.get(429), tally.replaced.get(200), tally.statuses.get(200)), (2, 2, 1));
    assert_eq!((tally.backoff.count, tally.backoff.injected_count), (2, 2));
    assert_eq!(tally.backoff.total, Duration::from_millis(400));
    assert_eq!(tally.backoff.max, Duration::from_millis(300));
    assert_eq!((share.stalled, share.stalled_injected), (tally.backoff.total, tally.backoff.total));
    assert_eq!(share.rules, [RuleWait { rule: Arc::from("throttle"), count: 2, total: tally.backoff.total }]);
}

#[test]
fn links_say_what_the_client_said() {
    let mut story = Story::new();
    let (one, _) = story.begin(Some(signal("a", 1, None)), 0);
    let (two, _) = story.begin(Some(signal("a", 2, 5)), 1);
    let (other, _) = story.begin(Some(signal("b", 4, 3)), 2);
    let (none, _) = story.begin(None, 3);
    assert_eq!((one.call, one.number, one.max, one.evidence), (CallId(1), 1, None, Evidence::Exact));
    assert_eq!((two.call, two.number, two.max), (CallId(1), 2, Some(5)));
    assert_eq!((other.call, other.number), (CallId(2), 4));
    assert_eq!((none.call, none.number, none.evidence, none.waited), (CallId(3), 1, Evidence::Alone, None));
}

#[test]
fn attempts_without_number_are_numbered_as_they_arrive() {
    let mut story = Story::new();
    for number in 1..=3 {
        let begun = story.begin(Some(signal("ruby", None, None)), u64::from(number) * 10);
        assert_eq!(begun.0.number, number);
        story.finish(begun, Status(503), u64::from(number) * 10 + 1);
    }
    let tally = story.tally();
    assert_eq!((tally.calls, tally.attempts, tally.retries_exact, tally.give_ups), (1, 3, 2, 1));
}

#[test]
fn a_retry_whose_first_attempt_never_came_is_a_retry() {
    let mut story = Story::new();
    assert_eq!(story.attempt(signal("a", 2, 3), (50, 60), Status(200)), None);
    let tally = story.tally();
    assert_eq!((tally.calls, tally.calls_retried, tally.attempts, tally.retries_exact), (1, 1, 1, 1));
}

#[test]
fn an_attempt_sent_again_under_its_number_is_a_retry() {
    let mut story = Story::new();
    story.attempt(signal("a", 1, 3), (0, 10), Fails(Failure::Reset));
    story.attempt(signal("a", 1, 3), (10, 20), Status(200));
    let tally = story.tally();
    assert_eq!((tally.calls, tally.attempts, tally.retries_exact), (1, 2, 1));
    assert_eq!((tally.errors.get("reset"), tally.backoff.count, tally.give_ups), (1, 1, 0));
}

#[test]
fn hedged_attempts_overlap_without_backoff_and_one_success_is_enough() {
    let mut story = Story::new();
    let one = story.begin(Some(signal("a", 1, 3)), 0);
    let two = story.begin(Some(signal("a", 2, 3)), 5);
    story.finish(two, Status(200), 8);
    story.finish(one, Status(503), 12);
    assert_eq!((one.0.waited, two.0.waited), (None, None));
    let tally = story.tally();
    assert_eq!((tally.calls, tally.retries_exact, tally.backoff.count, tally.give_ups), (1, 1, 0, 0));
}

#[test]
fn attempts_may_end_out_of_order() {
    let mut story = Story::new();
    let one = story.begin(Some(signal("a", 1, 3)), 0);
    let two = story.begin(Some(signal("a", 2, 3)), 5);
    story.finish(one, Status(503), 30);
    // Reported later, but ended earlier: the wait counts from the later end.
    story.finish(two, Status(503), 20);
    assert_eq!(story.tally().give_ups, 1);
    let wait = story.attempt(signal("a", 3, 3), (40, 50), Status(200)).expect("a wait");
    assert_eq!(wait.length(), Duration::from_millis(10));
    assert_eq!(story.tally().give_ups, 0);
}

#[test]
fn a_beginning_before_the_last_end_is_no_backoff() {
    let mut story = Story::new();
    story.attempt(signal("a", 1, 3), (0, 30), Status(503));
    assert_eq!(story.attempt(signal("a", 2, 3), (29, 40), Status(200)), None);
    assert_eq!(story.tally().backoff, Backoff::default());
}

#[test]
fn a_redirect_is_no_backoff_but_a_false_success_is() {
    let mut story = Story::new();
    story.attempt(signal("region", 1, 3), (0, 10), Status(301));
    assert_eq!(story.attempt(signal("region", 2, 3), (12, 20), Status(200)), None);
    story.attempt(signal("error in a 200", 1, 3), (30, 40), Status(200));
    assert!(story.attempt(signal("error in a 200", 2, 3), (60, 70), Status(200)).is_some());
    let tally = story.tally();
    assert_eq!((tally.calls, tally.retries_exact, tally.backoff.count, tally.give_ups), (2, 2, 1, 0));
}

#[test]
fn what_is_given_up() {
    for (ends, given_up) in [
        (&[Status(503)][..], 1),
        (&[Status(503), Status(200)], 0),
        (&[Status(200)], 0),
        (&[Status(404)], 0),
        (&[Status(503), Status(404)], 0),
        (&[Rule(429), Rule(429), Rule(429)], 1),
        (&[Fails(Failure::Reset)], 1),
        (&[Fails(Failure::Closed)], 1),
        (&[Fails(Failure::TimedOut)], 1),
        (&[Fails(Failure::Protocol)], 1),
        (&[Status(503), Fails(Failure::Cancelled)], 0),
        // Throttled in the body of a 400: the client's retry tells.
        (&[Status(400)], 0),
        (&[Status(400), Status(400)], 1),
        (&[Status(400), Status(400), Status(200)], 0),
        (&[Status(400), Status(503), Status(400)], 0),
        (&[Status(403), Rule(403)], 1),
        // A client's own time-out, tried again; going away once is not that.
        (&[Fails(Failure::Cancelled)], 0),
        (&[Fails(Failure::Cancelled), Fails(Failure::Cancelled)], 1),
        (&[Fails(Failure::Reset), Fails(Failure::Cancelled)], 0),
        (&[Status(200), Status(200)], 0),
        (&[Status(529), Status(509), Status(425)], 1),
    ] {
        let mut story = Story::new();
        for (at, end) in (0..).zip(ends) {
            story.attempt(signal("a", at + 1, 3), (u64::from(at) * 100, u64::from(at) * 100 + 10), *end);
        }
        assert_eq!(story.tally().give_ups, given_up, "{ends:?}");
    }
}

#[test]
fn a_client_that_leaves_with_a_status_in_hand_has_it() {
    let mut story = Story::new();
    let (link, _) = story.begin(None, 0);
    let mut record = attempt(&story.process, link, (ms(0), ms(5)), Status(503), "PutObject");
    record.failure = Some(Failure::Cancelled);
    story.ledger.finish(&record);
    record.failure = Some(Failure::Reset);
    story.ledger.finish(&record);
    record.response = None;
    record.failure = None;
    story.ledger.finish(&record);
    let tally = story.tally();
    assert_eq!((tally.statuses.get(503), tally.errors.get("reset"), tally.errors.get("unknown")), (1, 1, 1));
}

#[test]
fn without_a_signal_each_attempt_is_a_call() {
    let mut story = Story::new();
    for at in 0..3 {
        let begun = story.begin(None, at * 10);
        story.finish_as(begun, Status(503), at * 10 + 1, "");
    }
    let share = story.share();
    let tally = &share.tally;
    assert_eq!((tally.calls, tally.attempts, tally.unlinked, tally.retries(), tally.give_ups), (3, 3, 3, 0, 3));
    assert_eq!(share.operations.len(), 1);
    let name = &share.operations[0].0;
    assert_eq!((name.service.as_deref(), &*name.operation), (None, "PUT s3.test"));
}

#[test]
fn calls_of_two_processes_and_families_are_apart() {
    let mut story = Story::new();
    let (mine, _) = story.begin(Some(signal("a", 1, 3)), 0);
    let php = Signal { family: Family::AwsPhp, ..signal("a", 1, 3) };
    let (php, _) = story.begin(Some(php), 0);
    story.process = process(2);
    let (other, _) = story.begin(Some(signal("a", 1, 3)), 0);
    assert_ne!(mine.call, php.call);
    assert_ne!(mine.call, other.call);
}

#[test]
fn overlapping_waits_stall_a_process_once() {
    let mut story = Story::new();
    story.attempt(signal("a", 1, 3), (0, 10), Status(503));
    story.attempt(signal("b", 1, 3), (0, 20), Status(503));
    story.attempt(signal("a", 2, 3), (50, 60), Status(200));
    story.attempt(signal("b", 2, 3), (70, 80), Status(200));
    let share = story.share();
    assert_eq!(share.tally.backoff.total, Duration::from_millis(90));
    assert_eq!(share.stalled, Duration::from_millis(60));
}

#[test]
fn observed_runs_from_first_sight_to_exit() {
    let mut story = Story::new();
    let process = Arc::clone(&story.process);
    story.ledger.connection(&process, ConnectionKind::Intercepted, ms(1_000));
    story.ledger.tunnel(&process, "a", "not TLS", ms(1_100));
    story.ledger.connection(&process, ConnectionKind::Refused, ms(1_200));
    assert_eq!(story.share().observed(), Duration::from_millis(99_000));
    story.ledger.exited(process.key, ms(3_000));
    story.ledger.exited(process.key, ms(9_000));
    let share = story.share();
    assert!(share.exited);
    assert_eq!(share.observed(), Duration::from_millis(2_000));
    assert_eq!(share.connections, Connections { intercepted: 1, tunnelled: 1, refused: 1 });
    // What is reported after the exit still counts.
    story.attempt(signal("a", 1, 3), (2_900, 3_010), Status(200));
    assert_eq!(story.share().observed(), Duration::from_millis(2_010));
}

#[test]
fn problems_are_counted_and_bounded() {
    let mut story = Story::within(Limits { problems: 2, ..Limits::default() });
    let process = Arc::clone(&story.process);
    for name in ["a", "b", "a", "c", "d"] {
        let problem = Problem { kind: "refused", name: name.into(), hint: "é".repeat(5_000), differs: None };
        story.ledger.problem(&process, problem, ms(1));
    }
    let snapshot = story.ledger.snapshot(ms(2));
    assert_eq!(snapshot.bounds.problems_dropped, 2);
    let problems = &snapshot.processes[0].problems;
    assert_eq!(problems.iter().map(|known| (&*known.name, known.count)).collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
    assert!(problems[0].hint.len() <= 512);
}

#[test]
fn tunnels_are_counted_by_name_and_reason() {
    let mut story = Story::within(Limits { problems: 2, ..Limits::default() });
    let process = Arc::clone(&story.process);
    let passed = |sent, open| Passed { sent, received: 10 * sent, open: Duration::from_millis(open) };
    for (name, why) in [("a", "not TLS"), ("a", "not TLS"), ("a", "pinned"), ("b", "pinned")] {
        story.ledger.tunnel(&process, name, why, ms(1));
    }
    story.ledger.passed(&process, "a", "not TLS", passed(5, 40));
    story.ledger.passed(&process, "a", "not TLS", passed(7, 30));
    story.ledger.passed(&process, "b", "pinned", passed(1, 1));
    let snapshot = story.ledger.snapshot(ms(2));
    assert_eq!(snapshot.processes[0].connections.tunnelled, 4);
    assert_eq!(snapshot.bounds.problems_dropped, 1);
    let tunnel = |name: &str, why, connections, sent, open, longest| TunnelCount {
        name: name.into(),
        why,
        connections,
        sent,
        received: 10 * sent,
        open: Duration::from_millis(open),
        longest: Duration::from_millis(longest),
    };
    assert_eq!(
        snapshot.processes[0].tunnels,
        [tunnel("a", "not TLS", 2, 12, 70, 40), tunnel("a", "pinned", 1, 0, 0, 0)]
    );
}

#[test]
fn operations_past_the_limit_share_a_row() {
    let mut story = Story::within(Limits { operations: 2, ..Limits::default() });
    for operation in ["A", "B", "C", "D", "A", &"x".repeat(10_000)] {
        let begun = story.begin(None, 0);
        story.finish_as(begun, Status(200), 1, operation);
    }
    let share = story.share();
    let rows: Vec<_> = share.operations.iter().map(|(name, tally)| (&*name.operation, tally.attempts)).collect();
    assert_eq!(rows, [("A", 2), ("B", 1), ("(other)", 3)]);
    assert_eq!(story.ledger.snapshot(ms(2)).bounds.operations_folded, 3);
}

#[test]
fn processes_past_the_limit_are_folded_with_all_they_had() {
    let mut story = Story::within(Limits { processes: 2, ..Limits::default() });
    for pid in 1..=5 {
        story.process = process(pid);
        let process = Arc::clone(&story.process);
        story.ledger.connection(&process, ConnectionKind::Intercepted, ms(u64::from(pid)));
        story.attempt(signal("a", 1, 3), (10, 20), Rule(429));
        story.attempt(signal("a", 2, 3), (30, 40), Rule(429));
    }
    // The first comes back: what it does to its old rows lands in the fold.
    story.process = process(1);
    story.attempt(signal("a", 3, 3), (60, 70), Status(200));
    let snapshot = story.ledger.snapshot(ms(100));
    check_sums(&snapshot);
    assert_eq!((snapshot.processes.len(), snapshot.folded.processes), (2, 4));
    assert_eq!((snapshot.totals.calls, snapshot.totals.attempts, snapshot.totals.retries()), (5, 11, 6));
    assert_eq!((snapshot.totals.backoff.count, snapshot.totals.give_ups), (6, 4));
    assert_eq!(snapshot.folded.connections.intercepted, 4);
    assert_eq!(snapshot.bounds.processes_folded, 4);
}

#[test]
fn a_flood_of_successes_never_drives_out_a_waiting_call() {
    let mut story = Story::within(Limits { calls: 4, settled: 4, ..Limits::default() });
    story.attempt(signal("waiting", 1, 3), (0, 10), Status(503));
    for call in 0..100 {
        story.attempt(signal(&format!("fine {call}"), 1, 3), (20, 30), Status(200));
    }
    assert!(story.attempt(signal("waiting", 2, 3), (40, 50), Status(200)).is_some());
    assert_eq!(story.ledger.snapshot(ms(99)).bounds.calls_forgotten, 0);
    assert!(story.ledger.calls.len() <= 8);
}

#[test]
fn forgotten_calls_leave_the_totals_right() {
    let mut story = Story::within(Limits { calls: 2, ..Limits::default() });
    let begun: Vec<_> = (0..5).map(|call| story.begin(Some(signal(&format!("call {call}"), 1, 3)), call)).collect();
    for begun in begun {
        story.finish(begun, Status(503), 10);
    }
    let snapshot = story.ledger.snapshot(ms(20));
    check_sums(&snapshot);
    assert_eq!((snapshot.totals.calls, snapshot.totals.attempts, snapshot.totals.give_ups), (5, 5, 5));
    assert_eq!(snapshot.bounds.calls_forgotten, 3);
}

#[test]
fn a_finish_without_its_beginning_is_counted_all_the_same() {
    let mut story = Story::new();
    let link = Link { call: CallId(99), number: 2, max: None, evidence: Evidence::Exact, waited: None };
    story.finish((link, 0), Status(200), 1);
    let tally = story.tally();
    assert_eq!((tally.attempts, tally.retries_exact), (1, 1));
}
