//! The talk that this program goes back to, played on a terminal: a list that
//! is empty, a program that is started, its request held with the answer in
//! hand, 429 typed over the 200, and the program trying again.
//!
//! Three panes: the program in `run`, the list of what is held, and a shell
//! for a person's hands. Each step is told by what the screen says.
mod common;

use common::{
    SOON, clients,
    process::descendants,
    servers::{AWS, Moto},
    tmux::{Pane, Tmux},
    until,
};

/// The instance that was started in a pane.
fn instance(pane: &Pane<'_>) -> i32 {
    until("retryscope runs", SOON, || {
        descendants(pane.pid()).into_iter().find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = words.split(|&byte| byte == 0);
            words.next().is_some_and(|word| word.ends_with(b"retryscope")) && words.next() == Some(b"run")
        })
    })
}

/// Rows of a screen that are not empty.
fn rows(screen: &str) -> Vec<&str> {
    screen.lines().map(str::trim_end).filter(|row| !row.is_empty()).collect()
}

#[test]
fn the_talk() {
    let moto = Moto::shared();
    let tmux = Tmux::start(100, 50);
    let app = tmux.first();
    let list = tmux.below(30);
    let hand = tmux.below(14);
    let script = tempfile::Builder::new().prefix("scene-").suffix(".sh").tempfile().expect("a file");
    let hosts = AWS.iter().map(|name| format!(" --map-host {name}={}", moto.address.ip()));
    let line = format!(
        "exec retryscope run --upstream-ca {}{} -- {} {}\n",
        moto.ca.pem().display(),
        hosts.collect::<String>(),
        clients::python().display(),
        clients::script("scene.py").display()
    );
    std::fs::write(script.path(), line).expect("writing");

    // The program is there, and has asked nothing; the list is empty.
    app.types(&format!("sh {}", script.path().display()));
    app.shows("ready");
    let on = format!("--instance {}", instance(&app));
    hand.types(&format!("retryscope held {on}"));
    hand.shows("Nothing is held; `retryscope intercept FILTER` holds attempts.");
    hand.types(&format!("retryscope intercept {on} '~op ListBuckets' --detach"));
    hand.shows("intercept 1: Attempts that match wait at their response, 5m 00s at most;");
    list.types(&format!("clear; retryscope held {on} --follow"));
    let empty = list.screen();
    assert!(!empty.contains("held at its") && rows(&empty).len() <= 2, "{empty}");

    // It asks, and is held with its 200 in hand.
    app.key("Enter");
    let screen = list.shows("#1 held at its response: 200, s3.ListBuckets, attempt 1 of 5, python");
    assert!(screen.contains(&format!("    GET https://{}/", AWS[0])), "{screen}");
    assert!(screen.contains("    goes on by itself in 5m 00s") || screen.contains("in 59."), "{screen}");
    assert!(!app.screen().contains("done:"), "{}", app.screen());
    hand.types(&format!("clear; retryscope held {on}"));
    hand.shows("; goes on by itself in ");

    // 429 is typed over it, in an editor.
    hand.types(&format!("clear; EDITOR='vim.tiny -u NONE' retryscope resume {on} 1 --edit"));
    let screen = hand.shows("200 OK");
    assert!(screen.starts_with("# Save and leave: #1 goes on with what stands below."), "{screen}");
    assert!(screen.contains("\ncontent-type: ") || screen.contains("\nContent-Type: "), "{screen}");
    hand.types(":%s/^200 OK/429 Too Many Requests/");
    hand.shows("\n429 Too Many Requests");
    hand.types(":wq");
    hand.shows("#1 went on, changed, after ");

    // The program waits, and tries again.
    let screen = list.shows("#2 held at its response: 200, s3.ListBuckets, attempt 2 of 5 after a wait of ");
    assert!(screen.contains("#1 went on, changed, after "), "{screen}");
    assert!(!app.screen().contains("done:"), "{}", app.screen());

    // A second 429.
    hand.types(&format!("clear; retryscope resume {on} 2 --status 429"));
    hand.shows("#2 went on, changed, after ");
    let screen = list.shows("#3 held at its response: 200, s3.ListBuckets, attempt 3 of 5 after a wait of ");
    assert!(screen.contains("#2 went on, changed, after "), "{screen}");

    // The third is let through.
    hand.types(&format!("clear; retryscope resume {on} 3"));
    hand.shows("#3 went on as it was, after ");
    list.shows("#3 went on as it was, after ");
    let screen = app.shows("done: ");
    assert!(screen.contains("buckets after 429,429,200; waited "), "{screen}");

    // The report knows all of it.
    hand.types(&format!("clear; retryscope intercept {on} --off"));
    hand.shows("1 intercept ended; nothing was held");
    app.key("C-d");
    let screen = app.ends();
    for part in [
        "its only s3.ListBuckets call was retried",
        "spent in backoff, all of it because of what was done by hand",
        "200 ×1, by rule 429 ×2 (upstream 200 ×2)",
        "- 2 answers were changed by hand.",
        "- 3 attempts were held by hand, for ",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
}
