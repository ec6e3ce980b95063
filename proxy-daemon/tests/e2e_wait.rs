//! `wait`: nobody has to start before an instance is ready, nor ask twice.
mod common;

use std::{process::Command, time::Duration};

use common::{Loop, Running, SOON, Site, TestCa, TestCgroup, Upstream, clients, run::RETRYSCOPE};
use nix::sys::signal::Signal;

fn wait(site: &Site, timeout: &str) -> Running {
    let mut command = Command::new(RETRYSCOPE);
    clients::bare(command.args(["wait", "--name", &site.name, "--timeout", timeout]))
}

/// The same as a user of a group.
fn wait_as(group: &str, site: &Site) -> Running {
    let mut command = Command::new(clients::need("setpriv", "util-linux"));
    command.args(["--reuid", "65534", "--regid", group, "--clear-groups", RETRYSCOPE]);
    clients::bare(command.args(["wait", "--name", &site.name, "--timeout", "20s"]))
}

fn targets(group: &TestCgroup) -> String {
    let path = group.path().strip_prefix(common::cgroup::mount()).expect("below the mount").display();
    format!("[targets]\ncgroups = [\"/{path}\"]\n")
}

/// Begun before there is anything to wait for, it ends when the target's
/// connections are redirected: the first one that follows is.
#[test]
fn for_a_daemon_that_is_yet_to_start() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (site, upstream) = (Site::new(&ca), Upstream::start(&ca));
    site.write("", &targets(&group));
    let mut client = Loop::in_cgroup(&group, &upstream);
    assert!(!client.connects("go"), "nothing is redirected yet");
    let waiting = wait(&site, "120s");
    let running = clients::bare(&mut site.command());
    waiting.finish(SOON * 4).ok();
    assert!(client.connects("go"), "it was ready");
    // And for one that has started long since.
    wait(&site, "1s").finish(SOON).ok();
    running.signal(Signal::SIGTERM);
    running.finish(SOON).ok();
    // Its socket may be left for a moment.
    let refused = wait(&site, "50ms").finish(SOON).code(69);
    assert!(refused.stderr.starts_with("retryscope: retryscope is not ready after 50ms: "), "{refused}");
    client.end();
}

/// One that does not answer is not ready, however long its socket has been
/// there.
#[test]
fn for_a_daemon_that_is_stalled() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let site = Site::new(&ca);
    site.write("", &targets(&group));
    let daemon = site.start();
    daemon.signal(Signal::SIGSTOP);
    let refused = wait(&site, "300ms").finish(SOON);
    let waiting = wait(&site, "60s");
    daemon.signal(Signal::SIGCONT);
    waiting.finish(SOON * 3).ok();
    let refused = refused.code(69);
    assert!(
        refused.stderr.contains("does not say that it is ready (cannot speak to the instance (no answer"),
        "{refused}"
    );
    daemon.end().ok();
}

/// Who may not look is told so at once.
#[test]
fn as_somebody_else_than_root() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let site = Site::new(&ca);
    site.write("", &format!("{}[control]\nreaders = \"4711\"\n", targets(&group)));
    let daemon = site.start();
    wait_as("4711", &site).finish(SOON).ok();
    let started = std::time::Instant::now();
    let refused = wait_as("4712", &site).finish(SOON).code(77);
    assert!(refused.stderr.contains("you may not see anything here"), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(15), "it does not wait for what will not be");
    daemon.end().ok();
}
