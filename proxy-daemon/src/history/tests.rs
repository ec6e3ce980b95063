//! What holds of the store.
#![allow(clippy::unwrap_used)]
use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    flow::{
        Attempt, CallId, Evidence, Headers, Injected, Link, Moment, Response, Wait,
        filter::{Filter, tests::attempt},
    },
    process::{Facts, Process, ProcessKey},
};

/// The `number`-th attempt of a call, which ended `at` ms after the start.
fn of(call: u64, number: u32, at: u64, status: u16) -> Attempt {
    let ms = |ms: u64| Moment(ms * 1_000_000);
    let waited = (number > 1).then(|| Wait { from: ms(at - 5), to: ms(at - 2), injected: false });
    let mut it = attempt();
    it.link = Link { call: CallId(call), number, max: None, evidence: Evidence::Exact, waited };
    (it.started, it.ended) = (ms(at - 2), Some(ms(at)));
    it.response.as_mut().unwrap().status = status;
    it
}

fn filled(keep: usize, attempts: impl IntoIterator<Item = Attempt>) -> Arc<History> {
    let history = Arc::new(History::new(Clock::start(), keep));
    attempts.into_iter().for_each(|attempt| history.add(&attempt));
    history
}

fn ids(page: &Page) -> Vec<u64> {
    page.attempts.iter().map(|attempt| attempt.id).collect()
}

fn query(filter: &Filter) -> Query<'_> {
    Query { filter: Some(filter), ..Query::default() }
}

#[test]
fn newest_first_page_by_page() {
    let history = filled(1_000, (1..=25).map(|at| of(at, 1, at * 10, 200)));
    let (mut before, mut seen) = (None, Vec::new());
    loop {
        let page = history.attempts(&Query { limit: 10, before, ..Query::default() });
        seen.extend(ids(&page));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, (1..=25).rev().collect::<Vec<_>>());
    let page = history.attempts(&Query { after: Some(22), ..Query::default() });
    assert_eq!((ids(&page), page.next), (vec![25, 24, 23], None));
    assert_eq!((page.oldest, page.newest, page.dropped), (1, 25, 0));
}

#[test]
fn the_latest_are_kept_to_the_number() {
    for keep in [1, 2, 15, 16, 17, 100, 1_000] {
        let history = filled(keep, (1..=2_345).map(|at| of(at, 1, at * 10, 200)));
        let page = history.attempts(&Query { limit: MAX_LIMIT, ..Query::default() });
        let kept: Vec<u64> = (1..=2_345).rev().take(keep).collect();
        assert_eq!((ids(&page), page.next), (kept, None), "{keep}");
        let oldest = 2_345 - keep as u64 + 1;
        assert_eq!((page.oldest, page.newest), (oldest, 2_345));
        assert!(history.attempt(oldest).is_some() && history.attempt(oldest - 1).is_none());
        assert!(history.attempt(2_346).is_none() && history.attempt(0).is_none());
    }
    let none = filled(0, [of(1, 1, 10, 200)]);
    assert_eq!(none.attempts(&Query::default()), Page { oldest: 1, ..Page::default() });
    assert!(!none.is_kept());
}

#[test]
fn a_row_says_what_the_attempt_was() {
    let mut it = of(7, 2, 100, 503);
    it.injected = Some(Injected { status: Some(429), abort: None, rule: "twice".into() });
    it.complaint.code = Some("SlowDown".into());
    it.complaint.wait = Some(Duration::from_secs(2));
    (it.held, it.sent, it.received) = (Duration::from_millis(3), 5, 6);
    let detail = filled(10, [it]).attempt(1).unwrap();
    let entry = &detail.attempt;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    assert_eq!((entry.id, entry.call, entry.attempt, entry.pid), (1, 7, 2, 42));
    assert_eq!((entry.at_ms, entry.took_ms, entry.waited_ms, entry.held_ms), (98.0, 2.0, Some(3.0), 3.0));
    assert_eq!((entry.status, entry.told, &*entry.class), (Some(503), Some(429), "throttled"));
    assert_eq!((text(&entry.rule), text(&entry.code)), ("twice".into(), "SlowDown".into()));
    assert_eq!((entry.retry_after_ms, entry.sent, entry.received), (Some(2000.0), 5, 6));
    assert_eq!((text(&entry.service), text(&entry.operation)), ("s3".into(), "GetObject".into()));
    assert_eq!(entry.url, "https://s3.eu-west-1.amazonaws.com/bucket/key?x-id=GetObject");
    assert_eq!((&*entry.comm, &*entry.command), ("python3", "python3 app.py --fast"));
    assert_eq!((&*detail.client, &*detail.origin), ("127.0.0.1:50000", "203.0.113.1:443"));
    assert_eq!(detail.request_headers.unwrap().len(), 2);
    assert_eq!(detail.response_headers.unwrap()[1].name, "x-amz-request-id");
}

#[test]
fn credentials_are_not_kept() {
    let mut it = of(1, 1, 10, 200);
    it.request.authority = "me:hush@a.test".into();
    it.request.target = "/b?X-Amz-Signature=hush&x=1".into();
    it.request.headers = [("Authorization", "Bearer hush"), ("Cookie", "s=hush")].into_iter().collect();
    it.response.as_mut().unwrap().headers = [("Set-Cookie", "s=hush; Path=/")].into_iter().collect();
    let after = || [("X-Api-Key", "hush"), ("grpc-status", "0")].into_iter().collect();
    it.trailers = Some(Box::new(crate::flow::Trailers { request: after(), response: after() }));
    let history = filled(10, [it]);
    let shown = format!("{}{}", serde_json::to_string(&history.attempt(1)).unwrap(), history.curl(1).unwrap().command);
    assert!(!shown.contains("hush") && shown.contains("REDACTED"), "{shown}");
    let detail = history.attempt(1).unwrap();
    for trailers in [detail.request_trailers, detail.response_trailers] {
        assert_eq!(trailers.unwrap().last().map(|field| field.value.clone()), Some("0".into()));
    }
    // Nor can a question find out.
    for text in ["~hq hush", "~u hush", "~hs hush", "~d me"] {
        assert!(history.attempts(&query(&Filter::parse(text).unwrap())).attempts.is_empty(), "{text}");
    }
    assert_eq!(history.attempts(&query(&Filter::parse("~hq 'Bearer REDACTED'").unwrap())).attempts.len(), 1);
}

/// Every operator that looks at what a row has says of the row what it says of
/// the attempt.
#[test]
fn filters_say_the_same_of_rows() {
    let mut odd = of(3, 1, 40, 404);
    odd.failure = Some(crate::flow::Failure::Closed);
    odd.request.headers = [("Upgrade", "websocket"), ("Content-Type", "text/css")].into_iter().collect();
    odd.operation = crate::flow::Operation::default();
    let mut told = of(2, 2, 30, 200);
    told.injected = Some(Injected { status: Some(503), abort: None, rule: "r".into() });
    let mut broken = of(4, 1, 50, 200);
    broken.injected = Some(Injected { status: None, abort: Some("reset"), rule: "r".into() });
    broken.response = None;
    let all = [of(1, 1, 10, 200), of(2, 1, 20, 429), told, odd, broken];
    // Far fewer heads are kept than attempts.
    let history = filled(10, all.clone());
    history.lock().forget_heads();
    for text in [
        "~a",
        "~all",
        "~attempt 2",
        "~attempt ..1",
        "~c 429",
        "~c 500..",
        "~cgroup user",
        "~cmd fast",
        "~comm python",
        "~container x",
        "~d amazonaws",
        "~dst 203",
        "~e",
        "~exe bin",
        "~genuine",
        "~injected",
        "~m GET",
        "~op GetObject",
        "~op s3.*",
        "~pid 42",
        "~proto h",
        "~q",
        "~retry",
        "~s",
        "~src 50000",
        "~svc s3",
        "~t xml",
        "~took >1ms",
        "~tq css",
        "~ts xml",
        "~u bucket",
        "~uid 1000",
        "~unit x",
        "~websocket",
        "bucket & !~retry",
        "~c 200 | ~e",
    ] {
        let filter = Filter::parse(text).unwrap();
        let page = history.attempts(&query(&filter));
        let expected: Vec<u64> = (1..).zip(&all).filter(|(_, it)| filter.matches(it)).map(|(id, _)| id).collect();
        let found: Vec<u64> = ids(&page).into_iter().rev().collect();
        assert_eq!((found, page.unknown), (expected, 0), "{text}");
    }
}

#[test]
fn what_is_not_known_is_told() {
    let history = filled(10, (1..=4).map(|at| of(at, 1, at * 10, 200)));
    let ask = |text: &str| {
        let page = history.attempts(&query(&Filter::parse(text).unwrap()));
        (page.attempts.len(), page.unknown)
    };
    assert_eq!((ask("~hq Boto3"), ask("~hs Boto3"), ask("~b words")), ((4, 0), (0, 0), (0, 4)));
    history.lock().forget_heads();
    assert_eq!((ask("~hq Boto3"), ask("!~hq Boto3"), ask("~h Boto9")), ((0, 4), (0, 4), (0, 4)));
    // What is known otherwise decides.
    assert_eq!((ask("~hq Boto3 & ~c 503"), ask("~hq Boto3 | ~c 200")), ((0, 0), (4, 0)));
}

#[test]
fn heads_of_a_flood_have_no_credentials_either() {
    let mut store = Store::new(10, 1 << 20);
    let mut it = of(1, 1, 10, 200);
    it.request.headers = [("Authorization", "Bearer hush"), ("Host", "a.test")].into_iter().collect();
    store.add(Arc::new(it), true);
    let shown = store.heads(1).unwrap().shown();
    assert_eq!(shown.request.text("host"), Some("a.test"));
    assert!(!shown.request.text("authorization").unwrap().contains("hush"));
}

#[test]
fn heads_keep_within_their_bytes() {
    let mut store = Store::new(1_000, 20_000);
    let mut it = of(1, 1, 10, 200);
    it.request.headers = [("X-Long", &*"x".repeat(3_000))].into_iter().collect::<Headers>();
    for _ in 0..100 {
        store.add(Arc::new(it.clone()), false);
    }
    let (_, heads) = store.bytes();
    assert!((10_000..=20_000).contains(&heads), "{heads}");
    assert!(store.heads(100).is_some() && store.heads(98).is_some() && store.heads(90).is_none());
}

#[test]
fn long_urls_are_whole_as_long_as_heads_are_kept() {
    let mut it = of(1, 1, 10, 200);
    it.request.target = format!("/{}", "ä".repeat(2_000)).into();
    let history = filled(10, [it.clone()]);
    assert_eq!(history.attempt(1).unwrap().attempt.url, it.request.url());
    history.lock().forget_heads();
    let url = history.attempt(1).unwrap().attempt.url;
    assert!(url.len() < 1_100 && it.request.url().starts_with(&url));
}

#[test]
fn calls_have_their_attempts() {
    let all = [of(1, 1, 10, 503), of(2, 1, 20, 200), of(1, 2, 30, 503), of(3, 1, 40, 200), of(1, 3, 50, 200)];
    let history = filled(10, all);
    let page = history.calls(&Query::default());
    let lanes = |call: &CallEntry| call.attempts.iter().map(|attempt| attempt.id).collect::<Vec<_>>();
    assert_eq!(page.calls.iter().map(lanes).collect::<Vec<_>>(), [vec![1, 3, 5], vec![4], vec![2]]);
    assert_eq!((page.calls[0].call, page.calls[0].waited_ms, page.calls[0].took_ms), (1, 6.0, 42.0));
    // One attempt that matches is enough.
    let filter = Filter::parse("~c 503").unwrap();
    let page = history.calls(&query(&filter));
    assert_eq!(page.calls.iter().map(lanes).collect::<Vec<_>>(), [vec![1, 3, 5]]);
    let first = history.calls(&Query { limit: 1, ..Query::default() });
    let second = history.calls(&Query { limit: 1, before: first.next, ..Query::default() });
    assert_eq!((first.calls[0].call, second.calls[0].call), (1, 3));
    let detail = history.attempt(3).unwrap();
    assert_eq!((detail.previous, detail.next), (Some(1), Some(5)));
    // The first ones are not kept.
    let some = filled(2, [of(1, 1, 10, 503), of(1, 2, 20, 503), of(1, 3, 30, 200)]);
    let page = some.calls(&Query::default());
    assert_eq!((lanes(&page.calls[0]), page.calls[0].earlier), (vec![2, 3], 1));
}

#[test]
fn counts_over_time() {
    let mut other = of(9, 1, 75, 503);
    let facts = Facts { comm: "other".into(), ..Facts::default() };
    other.process = Arc::new(Process::new(ProcessKey { pid: 43, start_ticks: 7 }, 1, 0, facts));
    let history = filled(100, [of(1, 1, 10, 429), of(1, 2, 30, 503), of(1, 3, 55, 200), other, of(2, 1, 100, 200)]);
    let span = Span { from_ms: Some(0.0), to_ms: Some(100.0), buckets: 2, before: None, processes: true };
    let series = history.series(&span, None);
    let shown = |bucket: &Bucket| (bucket.attempts, bucket.retries, bucket.throttled, bucket.failed, bucket.backoff_ms);
    // The third attempt's wait, from 50 to 53, lies in the second half.
    assert_eq!(series.buckets.iter().map(shown).collect::<Vec<_>>(), [(2, 1, 1, 2, 3.0), (2, 1, 0, 1, 3.0)]);
    assert_eq!((series.bucket_ms, series.scanned, series.next), (50.0, 5, None));
    let processes: Vec<_> = series.processes.iter().map(|it| (it.pid, &*it.comm, it.attempts)).collect();
    assert_eq!(processes, [(42, "python3", 3), (43, "other", 1)]);
    let filter = Filter::parse("~pid 43").unwrap();
    let span = Span { processes: false, ..span };
    let series = history.series(&span, Some(&filter));
    assert_eq!(series.processes, []);
    assert_eq!(series.buckets.iter().map(|bucket| bucket.attempts).sum::<u64>(), 1);
}

/// Blocks of rows are counted, or passed by, as a whole: with the same result
/// as each row for itself.
#[test]
fn sums_are_those_of_each_attempt() {
    let many = (1..=20_000_u64).map(|at| {
        let mut it = of(at / 3, 1 + (at % 3) as u32, 100 + at * 3 + at * at % 17, if at % 5 == 0 { 429 } else { 200 });
        // Some are under way for long, and some are waited for.
        if at % 1_000 == 0 {
            it.started = Moment(it.started.0.saturating_sub(9_000_000_000));
        }
        it.link.waited = it.link.waited.filter(|_| at % 7 == 0);
        it
    });
    let history = filled(20_000, many);
    let all = Filter::parse("~all").unwrap();
    for (from, to, buckets) in
        [(0.0, 70_000.0, 300), (0.0, 70_000.0, 1), (30_000.0, 30_500.0, 37), (59_000.0, 90_000.0, 9)]
    {
        let span = Span { from_ms: Some(from), to_ms: Some(to), buckets, before: None, processes: false };
        let by_block = history.series(&span, None);
        let by_row = history.series(&Span { processes: true, ..span }, Some(&all));
        for (one, other) in by_block.buckets.iter().zip(&by_row.buckets) {
            let counts = |it: &Bucket| (it.attempts, it.retries, it.throttled, it.failed, it.injected);
            assert_eq!(counts(one), counts(other), "{from} to {to}");
            assert!((one.backoff_ms - other.backoff_ms).abs() < 1e-6, "{one:?} {other:?}");
        }
        assert_eq!(by_block.next, None);
        let (mut before, mut found) = (None, Vec::new());
        loop {
            let query = Query { limit: 777, before, from_ms: Some(from), to_ms: Some(to), ..Query::default() };
            let page = history.attempts(&query);
            // What lies far from it is not looked at.
            assert!(page.scanned as usize <= page.attempts.len() + 6_000, "{} {}", page.scanned, page.attempts.len());
            found.extend(page.attempts);
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        let within = |it: &AttemptEntry| it.at_ms + it.took_ms >= from && it.at_ms - it.waited_ms.unwrap_or(0.0) <= to;
        let every =
            std::iter::successors(Some(history.attempts(&Query { limit: MAX_LIMIT, ..Query::default() })), |page| {
                page.next
                    .map(|next| history.attempts(&Query { limit: MAX_LIMIT, before: Some(next), ..Query::default() }))
            });
        let expected: Vec<u64> = every.flat_map(|page| page.attempts).filter(within).map(|it| it.id).collect();
        assert_eq!(found.iter().map(|it| it.id).collect::<Vec<_>>(), expected, "{from} to {to}");
    }
}

#[test]
fn values_for_whoever_types_a_filter() {
    let history = filled(10, [of(1, 1, 10, 429), of(2, 1, 20, 200), of(3, 1, 30, 200)]);
    let known = history.known();
    assert_eq!((known.services, known.operations), (vec!["s3".into()], vec!["GetObject".into()]));
    assert_eq!((known.statuses, known.pids), (vec![200, 429], vec![42]));
    assert_eq!(known.hosts, ["s3.eu-west-1.amazonaws.com"]);
}

#[tokio::test]
async fn followers_hear_of_what_they_asked_for() {
    let history = filled(100, [of(1, 1, 10, 200)]);
    let mut all = history.follow(None, None).unwrap();
    let mut failed = history.follow(Some(Filter::parse("~c 500..").unwrap()), None).unwrap();
    let mut earlier = history.follow(None, Some(0)).unwrap();
    history.add(&of(2, 1, 20, 200));
    history.add(&of(3, 1, 30, 503));
    let heard = |told: Vec<Followed>| -> Vec<u64> {
        let id = |it: Followed| match it {
            Followed::Attempt(attempt) => attempt.id,
            Followed::Skipped(_) => 0,
        };
        told.into_iter().map(id).collect()
    };
    assert_eq!(heard(all.next().await.unwrap()), [2, 3]);
    assert_eq!(heard(failed.next().await.unwrap()), [3]);
    assert_eq!(heard(earlier.next().await.unwrap()), [1, 2, 3]);
    history.close();
    assert_eq!(all.next().await, None);
    drop((all, failed));
    let left = history.left(Duration::from_secs(20));
    drop(earlier);
    left.await;
    assert_eq!(history.followers.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn slow_followers_are_told_what_they_missed() {
    let history = filled(50, []);
    let mut follower = history.follow(None, None).unwrap();
    (1..=200).for_each(|at| history.add(&of(at, 1, at * 10, 200)));
    let told = follower.next().await.unwrap();
    assert_eq!((told.len(), &told[0]), (51, &Followed::Skipped(150)));
    history.lock().dropped = 7;
    history.add(&of(201, 1, 5_000, 200));
    assert_eq!(follower.next().await.unwrap()[0], Followed::Skipped(7));
    let room: Vec<_> = (1..MAX_FOLLOWERS).map(|_| history.follow(None, None).unwrap()).collect();
    assert!(history.follow(None, None).is_none());
    drop(room);
    assert!(history.follow(None, None).is_some());
}

#[test]
fn the_feed_fills_it() {
    let feed = Feed::default();
    let history = Arc::new(History::new(Clock::start(), 100));
    let filling = history.fill(&feed);
    (1..=30).for_each(|at| feed.publish(&Arc::new(of(at, 1, at * 10, 200))));
    feed.close();
    filling.join().unwrap();
    assert_eq!(history.attempts(&Query::default()).newest, 30);
    assert!(history.progress.borrow().closed);
}

/// Attempts of a few processes and with URLs of their own: all that should be
/// kept are. `benches/history.rs` does the same with a million.
#[test]
fn attempts_keep_within_the_bound() {
    const KEPT: usize = 50_000;
    let mut store = Store::new(KEPT, HEADS);
    let mut it = of(1, 1, 10, 200);
    for number in 0..KEPT as u64 {
        it.link.call = CallId(number / 2);
        it.connection.0 = number / 100;
        it.request.target = format!("/bucket-of-some-team/folder/object-{number:08}?x-id=GetObject").into();
        store.add(Arc::new(it.clone()), false);
    }
    let (rows, heads) = store.bytes();
    assert_eq!((store.oldest(), store.newest()), (1, KEPT as u64));
    assert!(rows <= KEPT * ROW, "{} bytes for each", rows / KEPT);
    assert!(heads <= HEADS, "{heads}");
}

/// However long URLs are, and however many processes: the oldest go.
#[test]
fn long_ones_take_the_place_of_more() {
    let mut store = Store::new(20_000, 1 << 20);
    let mut it = of(1, 1, 10, 200);
    for number in 0..20_000_u32 {
        let facts = Facts { command: format!("job {number} {}", "x".repeat(2_000)), ..Facts::default() };
        it.process = Arc::new(Process::new(ProcessKey { pid: number + 1, start_ticks: 7 }, 1, 0, facts));
        it.request.target = format!("/{number}/{}", "y".repeat(5_000)).into();
        it.response = Some(Response { status: 200, reason: "z".repeat(500), headers: Headers::default() });
        store.add(Arc::new(it.clone()), false);
        let (rows, heads) = store.bytes();
        // The chunk that is being filled is never thrown away.
        assert!(rows <= 20_000 * ROW + 1250 * 8 * 1024 && heads <= 1 << 20, "{rows} {heads}");
    }
    assert!(store.oldest() > 15_000 && store.newest() == 20_000, "{}", store.oldest());
}
