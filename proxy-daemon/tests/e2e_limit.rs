//! A token bucket under load: what is accepted keeps to the rate, what
//! exceeds it is a valid throttle.
mod common;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use common::{Run, TestCa, Upstream, ca::Leaf, clients, report::number, servers};

/// One at a time: each wants the machine for itself.
static LOAD: Mutex<()> = Mutex::new(());

/// 16 threads that ask as fast as they can, for ten seconds.
#[test]
fn a_rate_is_kept_under_load() {
    let _load = LOAD.lock().unwrap_or_else(PoisonError::into_inner);
    let ca = TestCa::new();
    let upstream = Upstream::with(&ca, Leaf::Good, &[servers::BUCKET], &["http/1.1"]);
    let outcome = Run::new()
        .to(servers::BUCKET, upstream.address, &ca)
        .rule("~svc s3 & ~op PutObject => limit 100/s per bucket burst 15 throttle")
        .deadline(Duration::from_secs(90))
        .go(words![clients::python(), clients::script("put_load.py"), servers::BUCKET, "10"])
        .ok();
    let got = outcome.json();
    assert_eq!(got["other"].as_array().map(Vec::len), Some(0), "{got}");
    let (accepted, slowed) = (number(&got, "accepted"), number(&got, "slowed"));
    assert!((980..=1020).contains(&accepted), "{got}");
    assert!(slowed > 200, "the load was no load: {got}");
    let report = outcome.report();
    assert_eq!(report.count("injected", "503"), slowed, "{report}");
    assert_eq!(report.count("statuses", "200"), accepted, "{report}");
    assert_eq!(upstream.received().len() as u64, accepted, "the upstream never saw the rest");
}

/// boto3's adaptive mode finds the rate and stays below it.
#[test]
fn adaptive_clients_settle_below_the_rate() {
    let _load = LOAD.lock().unwrap_or_else(PoisonError::into_inner);
    let ca = TestCa::new();
    let upstream = Upstream::with(&ca, Leaf::Good, &[servers::BUCKET], &["http/1.1"]);
    let outcome = Run::new()
        .to(servers::BUCKET, upstream.address, &ca)
        .rule("~svc s3 & ~op PutObject => limit 100/s per bucket throttle")
        .deadline(Duration::from_secs(120))
        .go(words![clients::python(), clients::script("adaptive_load.py"), "30"])
        .ok();
    let got = outcome.json();
    let last = |at: usize| got["last"][at].as_f64().unwrap_or_default();
    let rate = last(0) / got["third"].as_f64().unwrap_or(1.0);
    assert!(last(0) > 0.0 && rate <= 100.0 * 1.05, "{rate} attempts a second at the end: {got}");
    assert!(last(1) <= last(0) * 0.2, "it goes on being throttled: {got}");
}
