use std::time::Duration;

use bytes::Bytes;

use super::{edit::outcome, *};
use crate::{
    flow::{Protocol, record},
    rules::{Abort, Field, Reply},
};

fn attempt(path: &str) -> Attempt {
    let line = format!(
        r#"{{"url":"https://a.example{path}","status":200,"reason":"Fine","response_headers":{{"content-type":"text/xml"}},"response_body":"<a/>"}}"#
    );
    record::read(line.as_bytes()).expect("an attempt").remove(0)
}

fn holds() -> Arc<Holds> {
    Arc::new(Holds::new(Clock::start()))
}

fn filter(text: &str) -> (Filter, String) {
    (Filter::parse(text).expect("a filter"), text.to_owned())
}

fn hold(holds: &Arc<Holds>, path: &str) -> Option<Hold> {
    match holds.hold(Phase::Response, &attempt(path), None) {
        Asked::Held(hold) => Some(hold),
        Asked::Unwanted | Asked::Full => None,
    }
}

fn status(status: u16) -> Decision {
    Decision::Resume(Edit { status: Some(status), ..Edit::default() })
}

#[test]
fn both_numbers_are_bounded() {
    let holds = holds();
    assert!(!holds.is_watched());
    for _ in 0..MAX_INTERCEPTS {
        holds.add(filter("~s"), At::Response, MAX_WAIT, None).expect("room");
    }
    assert!(holds.is_watched());
    assert_eq!(holds.add(filter("~s"), At::Response, MAX_WAIT, None).err(), Some(HoldError::TooMany));
    let held: Vec<Hold> = (0..MAX_HELD).map(|_| hold(&holds, "/x").expect("room")).collect();
    assert!(matches!(holds.hold(Phase::Response, &attempt("/x"), None), Asked::Full));
    drop(held);
    assert!(holds.waiting().is_empty());
    assert!(hold(&holds, "/x").is_some());
}

#[test]
fn bodies_are_bounded_in_all() {
    let holds = holds();
    holds.add(filter("~s"), At::Response, MAX_WAIT, None).expect("room");
    let mut large = attempt("/x");
    large.response_content = Content::Whole(Bytes::from(vec![0; 1 << 20]));
    let mut unread = attempt("/x");
    unread.response_content = Content::Unread;
    let mut held = Vec::new();
    for _ in 0..MAX_BODIES >> 20 {
        assert!(holds.wants_body(Phase::Response, &unread));
        held.push(holds.hold(Phase::Response, &large, None));
    }
    assert!(!holds.wants_body(Phase::Response, &unread));
    held.pop();
    assert!(holds.wants_body(Phase::Response, &unread));
}

#[test]
fn an_intercept_stops_at_its_place_and_after_its_number() {
    let holds = holds();
    let first = holds.add(filter("~u /one"), At::Response, MAX_WAIT, Some(2)).expect("room");
    assert!(matches!(holds.hold(Phase::Request, &attempt("/one"), None), Asked::Unwanted));
    assert!(hold(&holds, "/two").is_none());
    let (one, two) = (hold(&holds, "/one"), hold(&holds, "/one"));
    assert!(one.is_some() && two.is_some());
    assert!(hold(&holds, "/one").is_none());
    assert_eq!((first.held(), holds.intercepts().len(), holds.is_watched()), (2, 0, false));
    // What it holds can still be let go with it.
    assert_eq!(holds.remove(first.id), Ok(2));
    assert_eq!(holds.remove(first.id), Err(HoldError::NoIntercept(first.id)));
}

#[tokio::test]
async fn each_end_is_told_once() {
    let holds = holds();
    let id = holds.add(filter("~s"), At::Response, Duration::from_millis(1), None).expect("room").id;
    let (_, mut words) = holds.follow();
    let how = |word: Word| match word {
        Word::Released { held, how, .. } => Some((held.id, how.name())),
        _ => None,
    };
    let mut told = async || loop {
        if let Some(told) = how(words.recv().await.expect("a word")) {
            return told;
        }
    };
    let mut late = hold(&holds, "/x").expect("held");
    assert_eq!(late.decided().await, Decision::Resume(Edit::default()));
    drop(late);
    assert_eq!(told().await, (1, "late"));
    drop(hold(&holds, "/x"));
    assert_eq!(told().await, (2, "left"));
    let mut changed = hold(&holds, "/x").expect("held");
    assert_eq!(holds.decide(3, status(429)), Ok(How::Changed));
    assert_eq!(holds.decide(3, status(429)), Err(HoldError::NotHeld(3)));
    assert_eq!(changed.decided().await, status(429));
    assert_eq!(told().await, (3, "changed"));
    let off = hold(&holds, "/x");
    assert_eq!(holds.remove(id), Ok(1));
    assert_eq!(told().await, (4, "off"));
    drop(off);
    holds.add(filter("~s"), At::Response, MAX_WAIT, None).expect("room");
    let ended = hold(&holds, "/x");
    holds.close();
    assert_eq!(told().await, (5, "ended"));
    drop(ended);
    assert!(hold(&holds, "/x").is_none() && !holds.is_watched());
    assert_eq!(holds.add(filter("~s"), At::Response, MAX_WAIT, None).err(), Some(HoldError::Closed));
}

#[test]
fn what_cannot_be_is_refused_and_stays_held() {
    let holds = holds();
    holds.add(filter("~all"), At::Both, MAX_WAIT, None).expect("room");
    let mut asked = attempt("/x");
    asked.response = None;
    let Asked::Held(_request) = holds.hold(Phase::Request, &asked, None) else { panic!("not held") };
    let Asked::Held(_response) = holds.hold(Phase::Response, &attempt("/x"), None) else { panic!("not held") };
    let edit = Edit::default;
    let field = |name: &str, value: &str| vec![Field::Set(name.into(), value.into())];
    for (id, decision, why) in [
        (1, status(429), "has not come yet"),
        (1, Decision::Answer(edit()), "needs a status"),
        (2, Decision::Answer(Edit { status: Some(429), ..edit() }), "the upstream has seen it"),
        (2, status(199), "from 200 to 599"),
        (2, status(600), "from 200 to 599"),
        (2, Decision::Resume(Edit { reason: Some("a\r\nb".into()), ..edit() }), "printable"),
        (2, Decision::Resume(Edit { headers: field("a b", "c"), ..edit() }), "no name of a header"),
        (2, Decision::Resume(Edit { headers: field("x", "a\nb: c"), ..edit() }), "printable ASCII only"),
        (2, Decision::Resume(Edit { headers: field("Content-Length", "1"), ..edit() }), "retryscope's own"),
        (2, Decision::Resume(Edit { method: Some("PUT".into()), ..edit() }), "too late"),
        (2, Decision::Resume(Edit { body: Some(vec![0; (1 << 20) + 1].into()), ..edit() }), "1024 KiB"),
        (2, Decision::Resume(Edit { status: Some(204), body: Some("x".into()), ..edit() }), "has no body"),
        (1, Decision::Resume(Edit { method: Some("HEAD".into()), ..edit() }), "no method"),
        (1, Decision::Resume(Edit { method: Some("G T".into()), ..edit() }), "no method"),
        (1, Decision::Resume(Edit { target: Some("x".into()), ..edit() }), "no target"),
        (1, Decision::Resume(Edit { target: Some("/a b".into()), ..edit() }), "no target"),
        (3, status(429), "no attempt with the number 3"),
    ] {
        let error = holds.decide(id, decision.clone()).expect_err(why).to_string();
        assert!(error.contains(why), "{decision:?}: {error}");
    }
    assert_eq!(holds.waiting().len(), 2);
}

#[test]
fn a_decision_goes_on_top_of_the_rules() {
    let attempt = attempt("/x");
    let ruled = Ruling {
        rule: "slow".into(),
        delay: Duration::ZERO,
        reply: Some(Reply {
            signature: Some("slow".into()),
            status: 503,
            reason: Some("Slow Down".into()),
            headers: vec![Field::Set("retry-after".into(), "1".into())],
            body: Some("<slow/>".into()),
            continue_then: false,
        }),
        abort: None,
    };
    let after = |decision, ruling| outcome(decision, Phase::Response, &attempt, ruling, true);
    let untouched = after(Decision::Resume(Edit::default()), Some(ruled.clone()));
    assert_eq!((untouched.ruling, untouched.told), (Some(ruled.clone()), false));

    let changed = after(status(429), Some(ruled)).ruling.expect("a ruling");
    let reply = changed.reply.expect("a reply");
    assert_eq!((&*changed.rule, reply.signature.as_deref(), reply.status), (BY_HAND, Some(BY_HAND), 429));
    assert_eq!((reply.reason, reply.body), (None, Some("<slow/>".into())));
    assert_eq!(reply.headers, [Field::Set("retry-after".into(), "1".into())]);

    let body = Edit { body: Some("<b/>".into()), ..Edit::default() };
    let reply = after(Decision::Resume(body), None).ruling.and_then(|ruling| ruling.reply).expect("a reply");
    assert_eq!((reply.status, reply.reason.as_deref()), (200, Some("Fine")));
    assert_eq!(reply.headers, [Field::Set("content-type".into(), "text/xml".into())]);

    let abort = |attempt: &Attempt, close| {
        outcome(Decision::Drop { close }, Phase::Response, attempt, None, true).ruling.and_then(|it| it.abort)
    };
    assert_eq!(abort(&attempt, false), Some(Abort::Reset));
    assert_eq!(abort(&attempt, true), Some(Abort::Close));
    let http2 = Attempt { protocol: Protocol::Http2, ..attempt };
    assert_eq!(abort(&http2, false), Some(Abort::RstStream(2)));
}
