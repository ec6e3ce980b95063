//! The conformance matrix: the real clients, each in every way, and the page
//! that tells what they need (docs/clients.md).
//!
//! `RETRYSCOPE_TEST_CLIENTS=curl,Ruby` tries some of them and leaves the page
//! alone; `RETRYSCOPE_BLESS=1` writes it anew.
#[path = "../common/mod.rs"]
mod common;
mod handlers;
mod page;
mod rows;
mod site;
mod trial;

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use common::TestCa;
use trial::Found;

/// Clients tried at the same time. Most of a trial is start-up of one process
/// after the other.
const WORKERS: usize = 4;

#[test]
fn clients_behave_as_the_page_says() {
    common::clients::root();
    let ca = TestCa::new();
    let every = rows::all();
    let chosen = std::env::var("RETRYSCOPE_TEST_CLIENTS").ok();
    let chosen: Option<Vec<&str>> = chosen.as_deref().map(|names| names.split(',').collect());
    let rows: Vec<_> = every
        .iter()
        .filter(|row| chosen.as_ref().is_none_or(|names| names.iter().any(|name| row.name.contains(name))))
        .collect();
    assert!(!rows.is_empty(), "no client is called {chosen:?}");

    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<Result<Found, String>>>> = Mutex::new(vec![None; rows.len()]);
    // The slowest first, so that none of them is left for the end.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&at| !rows[at].slow);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A panic of one trial must not hide what the others found.
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trial::of(rows[at], &ca)));
                    let result = tried.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        Err(format!("{}: {text}", rows[at].name))
                    });
                    found.lock().expect("not poisoned")[at] = Some(result);
                }
            });
        }
    });

    let found = found.into_inner().expect("not poisoned");
    let mut wrong = Vec::new();
    let mut right = Vec::new();
    for (row, result) in rows.into_iter().zip(found) {
        match result {
            Some(Ok(found)) => right.push((row, found)),
            Some(Err(how)) => wrong.push(how),
            None => wrong.push(format!("{}: not tried", row.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    if chosen.is_some() {
        return;
    }
    let made = page::render(&right);
    if std::env::var_os("RETRYSCOPE_BLESS").is_some() {
        std::fs::write(page::path(), &made).expect("docs/clients.md can be written");
    }
    let published = std::fs::read_to_string(page::path()).unwrap_or_default();
    let difference = made.lines().filter(|line| !published.lines().any(|other| other == *line)).collect::<Vec<_>>();
    assert!(
        published == made,
        "clients behave otherwise than docs/clients.md says:\n{}\nIf that is right, run this test with \
         RETRYSCOPE_BLESS=1 to write it anew",
        difference.join("\n")
    );
}
