//! A redirection ends with its process, however that ends, and leaves nothing.
use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use retryscope::redirect::{Redirect, cgroup, probe};
use serde_json::json;

use crate::world::{Daemon, accept, attached_programs, kill_all, options, server, world};

/// Set for a process of this test's that only holds a redirection: the
/// target's cgroup, then the daemon's.
const HOLD: &str = "RETRYSCOPE_TEST_HOLD";

#[test]
fn detached_lets_go_but_serves_what_it_has() {
    world(|world| {
        let daemon = world.daemon();
        let direct = server("127.0.0.1:443");
        let mut client = world.client();
        client.run("old = connect('192.0.2.1')");
        daemon.redirect.detach();
        assert_eq!(client.run("new = connect('127.0.0.1'); result = peer(new)"), json!(["127.0.0.1", 443]));
        accept(&direct);
        client.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))");
        assert_eq!(client.run("result = peer(old)"), json!(["192.0.2.1", 443]));
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.1:443");
    });
}

#[test]
fn two_redirections_of_one_cgroup() {
    world(|world| {
        let first = world.daemon();
        let second = world.daemon();
        let mut client = world.client();
        client.run("s = connect('192.0.2.1')");
        first.redirected();
        drop(first);
        client.run("s = connect('192.0.2.2')");
        assert_eq!(second.redirected().origin.to_string(), "192.0.2.2:443");
    });
}

/// Runs in a process of its own (see [`killed_holder_leaves_nothing`]); does
/// nothing as a test.
#[test]
fn holder() {
    let Ok(cgroups) = std::env::var(HOLD) else { return };
    let (target, own) = cgroups.split_once(' ').expect("two cgroups");
    cgroup::join(Path::new(own), std::process::id()).expect("join the daemon's cgroup");
    let daemon = Daemon::start(&options(Path::new(target)), Path::new(own));
    println!("attached");
    let seen = daemon.redirected();
    println!("origin {}", seen.origin);
    // Until it is killed.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn killed_holder_leaves_nothing() {
    world(|world| {
        let direct = server("127.0.0.1:443");
        // As the product lays it out: the daemon beside the target.
        let own = world.target.join("daemon");
        let target = world.target.join("target");
        cgroup::create(&own).unwrap();
        cgroup::create(&target).unwrap();
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifetime::holder", "--nocapture"])
            .env(HOLD, format!("{} {}", target.display(), own.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let mut wait_for = |what: &str| {
            let found = lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
            found.unwrap_or_else(|| panic!("the holder never said {what}"))
        };
        wait_for("attached");
        let mut client = world.stranger();
        cgroup::join(&target, client.pid()).unwrap();
        assert_eq!(client.run("s = connect('192.0.2.1'); result = peer(s)"), json!(["192.0.2.1", 443]));
        wait_for("origin 192.0.2.1:443");
        assert_eq!((attached_programs(&target), attached_programs(&own)), (7, 1));
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(client.run("s = connect('127.0.0.1'); result = peer(s)"), json!(["127.0.0.1", 443]));
        accept(&direct);
        assert_eq!((attached_programs(&target), attached_programs(&own)), (0, 0));
        drop(client);
        kill_all(&world.target);
    });
}

#[test]
fn doctor_finds_this_machine_fit() {
    let findings = probe();
    let failed: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(findings.iter().any(|finding| finding.name == "connect4"));
}

#[test]
#[allow(unsafe_code)]
fn unprivileged_caller_is_told_so() {
    world(|world| {
        let own = cgroup::own().unwrap();
        // SAFETY: changes the credentials of this thread alone (which is why
        // it is not done by the C library), and with them its capabilities.
        let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 65534, -1) };
        assert_eq!(result, 0);
        let error = Redirect::start(&world.options(), &own).unwrap_err();
        assert_eq!(error.exit_code(), 77, "{error}");
        assert!(error.to_string().contains("sudo"), "{error}");
        let lacking: Vec<_> = probe().into_iter().filter(|finding| !finding.ok).collect();
        assert!(lacking.iter().any(|finding| finding.name == "capabilities"), "{lacking:#?}");
        assert!(lacking.iter().all(|finding| finding.remedy.is_some()));
        // SAFETY: as above; the saved user id is still root's.
        unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 0, -1) };
    });
}
