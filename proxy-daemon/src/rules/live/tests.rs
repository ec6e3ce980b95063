#![allow(clippy::unwrap_used)]
use std::{collections::BTreeMap, num::NonZeroU32};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::flow::filter::Filter;
use crate::{
    flow::{CallId, filter::tests::attempt},
    rules::{Action, Limits, Per, Rate, RateKey, Times},
};

const SECOND: u64 = 1_000_000_000;

fn rule(name: &str, filter: &str, action: Action) -> Rule {
    Rule {
        name: name.into(),
        text: format!("{filter} => {action:?}"),
        source: Source::CommandLine,
        filter: Filter::parse(filter).unwrap(),
        phase: Phase::Response,
        action,
        limits: Limits::default(),
        go_on: false,
    }
}

fn status(status: u16) -> Action {
    Action { answer: Some(Answer { status: Some(status), ..Answer::default() }), ..Action::default() }
}

fn limited(name: &str, limits: Limits) -> Rule {
    Rule { limits, ..rule(name, "~all", status(503)) }
}

fn delay(seconds: u64) -> Action {
    let of = Spread::Fixed(Duration::from_secs(seconds));
    Action { delay: Some(Delay { of, cap: None }), ..Action::default() }
}

fn set(rules: Vec<Rule>) -> RuleSet {
    let entries = rules.into_iter().map(|rule| Entry { rule: Arc::new(rule), enabled: true }).collect();
    RuleSet { entries, guard: Arc::default() }
}

fn live(rules: Vec<Rule>) -> Rules {
    guarded(rules, Settings::default())
}

fn guarded(rules: Vec<Rule>, settings: Settings) -> Rules {
    Rules::new(set(rules), settings, Moment(0))
}

fn seeded(rules: Vec<Rule>, seed: u64) -> Rules {
    guarded(rules, Settings { guard: Guard { seed: Some(seed), ..Guard::default() }, ..Settings::default() })
}

fn ask_at(rules: &Rules, attempt: &Attempt, now: u64) -> Option<Ruling> {
    rules.load().rule(Phase::Response, attempt, &mut Progress::default(), Moment(now))
}

fn ask(rules: &Rules, attempt: &Attempt) -> Option<Ruling> {
    ask_at(rules, attempt, 0)
}

fn told(rules: &Rules, attempt: &Attempt) -> Option<u16> {
    Some(ask(rules, attempt)?.reply?.status)
}

fn acted(rules: &Rules, times: usize) -> Vec<bool> {
    (0..times).map(|_| ask(rules, &attempt()).is_some()).collect()
}

fn nth(call: u64, number: u32) -> Attempt {
    let mut it = attempt();
    it.link.call = CallId(call);
    it.link.number = number;
    it
}

fn hits(rules: &Rules) -> Vec<u64> {
    rules.list().iter().map(|rule| rule.hits).collect()
}

fn share(chance: f64) -> Limits {
    Limits { chance: Some(chance), ..Limits::default() }
}

#[test]
fn the_first_that_acts_is_the_last() {
    let rules = live(vec![
        rule("no", "~d nowhere", status(500)),
        rule("yes", "~d s3", status(429)),
        rule("late", "~all", status(503)),
    ]);
    assert_eq!(told(&rules, &attempt()), Some(429));
    assert_eq!(hits(&rules), [0, 1, 0]);
}

#[test]
fn what_acted_on_the_request_hides_later_rules_from_the_response() {
    let request = |go_on| Rule { phase: Phase::Request, go_on, ..rule("request", "~all", delay(1)) };
    for (go_on, expected) in [(false, None), (true, Some(503))] {
        let rules = live(vec![request(go_on), rule("response", "~all", status(503))]);
        let active = rules.load();
        let mut progress = Progress::default();
        let ruling = active.rule(Phase::Request, &attempt(), &mut progress, Moment(0)).unwrap();
        assert_eq!((ruling.delay, ruling.reply), (Duration::from_secs(1), None));
        let ruling = active.rule(Phase::Response, &attempt(), &mut progress, Moment(0));
        assert_eq!(ruling.and_then(|ruling| ruling.reply).map(|reply| reply.status), expected);
    }
}

#[test]
fn pass_ends_it_and_counts() {
    let rules = live(vec![rule("pass", "~all", Action::default()), rule("later", "~all", status(503))]);
    assert_eq!(ask(&rules, &attempt()), None);
    assert_eq!(hits(&rules), [1, 0]);
    assert_eq!(rules.state().injections, 0);
}

#[test]
fn rules_that_go_on_are_joined() {
    let template = |text: &str| Template::parse(text).unwrap();
    let edit = |name: &str, status, value: &str| {
        let headers = vec![HeaderEdit::Add("x-a".into(), template(value))];
        let answer = Answer { status, headers, ..Answer::default() };
        let action = Action { answer: Some(answer), ..delay(3000) };
        Rule { go_on: true, ..rule(name, "~all", action) }
    };
    let rules = live(vec![edit("a", None, "1"), edit("b", Some(500), "2\r\n"), edit("c", Some(503), "3")]);
    let ruling = ask(&rules, &attempt()).unwrap();
    assert_eq!((&*ruling.rule, ruling.delay), ("a, b, c", MAX_DELAY));
    let reply = ruling.reply.unwrap();
    assert_eq!((reply.status, reply.body), (500, None));
    assert_eq!(reply.headers, ["1", "2", "3"].map(|value| Field::Add("x-a".into(), value.into())));

    let abort = |abort| Action { abort: Some(abort), ..Action::default() };
    let go_on = |action| Rule { go_on: true, ..rule("first", "~all", action) };
    let rules = live(vec![go_on(abort(Abort::Reset)), rule("answer", "~all", status(503))]);
    let ruling = ask(&rules, &attempt()).unwrap();
    assert_eq!((ruling.abort, ruling.reply), (Some(Abort::Reset), None));
    let rules = live(vec![go_on(status(503)), rule("abort", "~all", abort(Abort::Reset))]);
    let ruling = ask(&rules, &attempt()).unwrap();
    assert_eq!((ruling.abort, ruling.reply.map(|reply| reply.status)), (None, Some(503)));
}

#[test]
fn a_request_is_answered_with_a_body_even_if_it_is_empty() {
    let answer = Answer { preset: Some(PresetChoice::Throttle), ..Answer::default() };
    let action = Action { answer: Some(answer), ..Action::default() };
    let rules = live(vec![Rule { phase: Phase::Request, ..rule("r", "~d other", action) }]);
    let mut it = attempt();
    it.request.authority = "other.example".into();
    it.operation = crate::flow::Operation::default();
    it.response = None;
    let ruling = rules.load().rule(Phase::Request, &it, &mut Progress::default(), Moment(0)).unwrap();
    let reply = ruling.reply.unwrap();
    assert_eq!(reply.status, 429);
    assert!(reply.body.is_some());
}

#[test]
fn limits_that_count() {
    let every = Limits { every: NonZeroU32::new(3), ..Limits::default() };
    assert_eq!(acted(&live(vec![limited("r", every)]), 6), [false, false, true, false, false, true]);
    let hits = Limits { max_hits: Some(2), ..Limits::default() };
    assert_eq!(acted(&live(vec![limited("r", hits)]), 4), [true, true, false, false]);
    let share = Limits { max_share: Some(0.5), ..Limits::default() };
    assert_eq!(acted(&live(vec![limited("r", share)]), 6), [false, true, false, true, false, true]);
    let times = Limits { times: Some(Times { count: 2, per: Per::Call }), ..Limits::default() };
    let rules = live(vec![limited("r", times)]);
    let per_call = |call| (1..5).filter(|number| ask(&rules, &nth(call, *number)).is_some()).count();
    assert_eq!((per_call(1), per_call(2)), (2, 2));
}

#[test]
fn a_limit_that_says_no_uses_up_no_other() {
    let times = Some(Times { count: 1, per: Per::Rule });
    let rules = live(vec![limited("r", Limits { times, max_share: Some(0.3), ..Limits::default() })]);
    assert_eq!(acted(&rules, 6), [false, false, false, true, false, false]);
}

#[test]
fn a_rule_is_due_in_its_window() {
    let limits =
        Limits { after: Some(Duration::from_secs(2)), window: Some(Duration::from_secs(3)), ..Limits::default() };
    let rules = live(vec![limited("r", limits)]);
    let due = |second| ask_at(&rules, &attempt(), second * SECOND).is_some();
    assert_eq!((0..7).map(due).collect::<Vec<_>>(), [false, false, true, true, true, false, false]);
}

#[test]
fn only_what_exceeds_the_rate_is_acted_on() {
    let limit = Rate { count: 1.0, per: Duration::from_secs(1), burst: NonZeroU32::new(2), key: RateKey::Prefix };
    let rules = live(vec![rule("r", "~all", Action { limit: Some(limit), ..status(503) })]);
    assert_eq!(acted(&rules, 4), [false, false, true, true]);
    let mut other = attempt();
    other.request.target = "/bucket/folder/key".into();
    assert_eq!(ask(&rules, &other), None);
    assert_eq!(ask_at(&rules, &attempt(), SECOND), None);
    assert!(ask_at(&rules, &attempt(), SECOND).is_some());
    // Not S3's: there is no such bucket to exceed.
    other.request.authority = "example.org".into();
    assert!((0..5).all(|_| ask(&rules, &other).is_none()));
}

#[test]
fn json_bodies_are_merged() {
    let answer = Answer { body: Some(BodyEdit::Merge(json!({"a": null, "b": {"c": 1}}))), ..Answer::default() };
    let action = Action { answer: Some(answer), ..Action::default() };
    let rules = live(vec![rule("merge", "~all", action), rule("late", "~all", status(503))]);
    let mut it = attempt();
    let active = rules.load();
    assert!(active.wants_body(Phase::Response, &it, Progress::default()));
    assert!(!active.wants_body(Phase::Request, &it, Progress::default()));
    it.response_content = Content::Whole(Bytes::from_static(br#"{"a":1,"b":{"d":2}}"#));
    assert!(!active.wants_body(Phase::Response, &it, Progress::default()));
    let reply = ask(&rules, &it).unwrap().reply.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&reply.body.unwrap()).unwrap();
    assert_eq!((reply.status, body), (200, json!({"b": {"c": 1, "d": 2}})));
    assert_eq!(reply.headers, [Field::Set("content-type".into(), "application/xml".into())]);
    for broken in [Content::Beyond, Content::Whole(Bytes::from_static(b"<xml/>"))] {
        it.response_content = broken;
        assert_eq!(told(&rules, &it), Some(503));
    }
    assert_eq!((rules.list()[0].hits, rules.list()[0].failed), (1, 2));
}

#[test]
fn no_body_is_wanted_behind_a_rule_that_is_sure_to_act() {
    let answer = Answer { body: Some(BodyEdit::Merge(json!({}))), ..Answer::default() };
    let merge = || rule("merge", "~all", Action { answer: Some(answer.clone()), ..Action::default() });
    let wants = |rules: Vec<Rule>| live(rules).load().wants_body(Phase::Response, &attempt(), Progress::default());
    assert!(!wants(vec![rule("sure", "~all", status(503)), merge()]));
    assert!(wants(vec![limited("perhaps", Limits { max_hits: Some(1), ..Limits::default() }), merge()]));
    assert!(!wants(vec![rule("other", "~d nowhere", status(503))]));
}

#[test]
fn the_guard_stops_after_so_many_injections() {
    let guard = Guard { max_injections: Some(2), ..Guard::default() };
    let rules = guarded(vec![rule("r", "~all", status(503))], Settings { guard, ..Settings::default() });
    assert_eq!(acted(&rules, 4), [true, true, false, false]);
    assert!(rules.state().stopped.unwrap().contains("max_injections"));
    assert!(rules.load().is_idle());
    rules.replace(set(vec![rule("new", "~all", status(500))]), Moment(0));
    assert_eq!(told(&rules, &attempt()), None);
}

#[test]
fn the_guard_stops_after_too_many_ends_in_a_time() {
    let stop = StopWhen { filter: Filter::parse("~c 500").unwrap(), count: 2, per: Duration::from_secs(10) };
    let guard = Guard { stop_when: Some(stop), ..Guard::default() };
    let rules = guarded(vec![rule("r", "~all", status(503))], Settings { guard, ..Settings::default() });
    let mut failed = attempt();
    failed.response.as_mut().unwrap().status = 500;
    for second in [0, 1, 12, 13] {
        rules.ended(&failed, Moment(second * SECOND));
        rules.ended(&attempt(), Moment(second * SECOND));
        assert_eq!(rules.state().stopped, None);
    }
    rules.ended(&failed, Moment(14 * SECOND));
    assert!(rules.state().stopped.unwrap().contains("stop_when"));
    assert_eq!(told(&rules, &attempt()), None);
}

#[test]
fn rules_end_with_their_time() {
    let rules =
        guarded(vec![rule("r", "~all", status(503))], Settings { until: Some(Moment(SECOND)), ..Settings::default() });
    assert!(ask_at(&rules, &attempt(), SECOND - 1).is_some());
    assert!(ask_at(&rules, &attempt(), SECOND).is_none());
    assert!(rules.state().stopped.is_some());
}

#[test]
fn a_dry_run_only_counts() {
    let rules = guarded(vec![rule("r", "~all", status(503))], Settings { dry_run: true, ..Settings::default() });
    assert_eq!(acted(&rules, 3), [false; 3]);
    assert_eq!(hits(&rules), [3]);
    assert!(rules.state().dry_run);
}

#[test]
fn a_rule_keeps_its_counters_in_another_set() {
    let once = || limited("once", Limits { max_hits: Some(1), ..Limits::default() });
    let rules = live(vec![once(), rule("other", "~all", status(500))]);
    let before = rules.load();
    assert_eq!((told(&rules, &attempt()), told(&rules, &attempt())), (Some(503), Some(500)));
    rules.replace(set(vec![once(), rule("other", "~all", status(502))]), Moment(5));
    assert_eq!(told(&rules, &attempt()), Some(502));
    assert_eq!(hits(&rules), [1, 1]);
    // An attempt that began before keeps to its set; its hit is not lost.
    before.rule(Phase::Response, &attempt(), &mut Progress::default(), Moment(6)).unwrap();
    let retired = rules.retired();
    assert_eq!((retired.len(), &*retired[0].name, retired[0].hits), (1, "other", 2));
}

#[test]
fn an_edit_that_fails_changes_nothing() {
    let rules = live(vec![rule("r", "~all", status(503))]);
    assert_eq!(rules.edit(|_| Err("no"), Moment(0)), Err("no"));
    assert_eq!(told(&rules, &attempt()), Some(503));
    let off = |set: &RuleSet| {
        let entries = set.iter().map(|entry| Entry { enabled: false, ..entry.clone() }).collect();
        Ok::<_, ()>(RuleSet { entries, guard: Arc::default() })
    };
    rules.edit(off, Moment(0)).unwrap();
    assert!(rules.load().is_idle());
    assert_eq!((hits(&rules), rules.retired().len()), (vec![1], 0));
    assert_eq!(rules.current().len(), 1);
}

#[test]
fn a_seed_is_short_enough_for_json() {
    assert!((0..100).all(|_| live(Vec::new()).seed() < 1 << 53));
    assert_eq!(seeded(Vec::new(), 7).seed(), 7);
}

#[test]
fn calls_have_no_key_where_nothing_is_drawn() {
    assert_eq!(live(vec![rule("r", "~all", status(503))]).load().call_key(&attempt()), 0);
    let rules = seeded(vec![limited("r", share(0.5))], 1);
    let first = rules.load().call_key(&attempt());
    // A later attempt may look otherwise.
    let mut later = nth(1, 3);
    later.request.target = "/elsewhere".into();
    assert_eq!(rules.load().call_key(&later), first);
    assert_ne!(rules.load().call_key(&nth(2, 1)), first);
}

/// Plays three attempts of each call, in an order in which each call's own
/// attempts stay in order. What a call is like is all that may matter.
fn play(seed: u64, kinds: &[u8], order: &[usize]) -> BTreeMap<u8, Vec<[Option<u16>; 3]>> {
    let rules = seeded(vec![limited("half", share(0.5)), limited("more", share(0.3))], seed);
    let mut numbers = vec![0_usize; kinds.len()];
    let mut decisions = vec![[None; 3]; kinds.len()];
    let mut ids = BTreeMap::new();
    for call in order {
        // Numbers are given as calls come.
        let next = ids.len() as u64 + 1;
        let id = *ids.entry(*call).or_insert(next);
        let number = numbers[*call];
        numbers[*call] += 1;
        let mut it = nth(id, u32::try_from(number).unwrap() + 1);
        it.request.target = format!("/bucket/{}?X-Amz-Date={number}", kinds[*call]).into();
        let active = rules.load();
        it.call_key = active.call_key(&it);
        let ruling = active.rule(Phase::Response, &it, &mut Progress::default(), Moment(0));
        decisions[*call][number] = ruling.map(|ruling| if &*ruling.rule == "half" { 1 } else { 2 });
    }
    let mut all: BTreeMap<u8, Vec<_>> = BTreeMap::new();
    for (kind, decisions) in kinds.iter().zip(decisions) {
        all.entry(*kind).or_default().push(decisions);
    }
    all.values_mut().for_each(|decisions| decisions.sort_unstable());
    all
}

fn calls_and_orders() -> impl Strategy<Value = (Vec<u8>, Vec<usize>, Vec<usize>)> {
    prop::collection::vec(0_u8..8, 1..24).prop_flat_map(|kinds| {
        let order: Vec<usize> = (0..kinds.len()).flat_map(|call| [call; 3]).collect();
        (Just(kinds), Just(order.clone()).prop_shuffle(), Just(order).prop_shuffle())
    })
}

proptest! {
    /// Distinct calls are kinds with one call in them: theirs is the same
    /// decision; of calls that look alike, the same decisions taken together.
    #[test]
    fn decisions_do_not_depend_on_the_order((kinds, one, other) in calls_and_orders(), seed in 0_u64..1 << 53) {
        prop_assert_eq!(play(seed, &kinds, &one), play(seed, &kinds, &other));
    }
}

#[test]
fn another_seed_draws_otherwise() {
    let kinds: Vec<u8> = (0..64).collect();
    let order: Vec<usize> = (0..64).flat_map(|call| [call; 3]).collect();
    assert_eq!(play(1, &kinds, &order), play(1, &kinds, &order));
    assert_ne!(play(1, &kinds, &order), play(2, &kinds, &order));
}
