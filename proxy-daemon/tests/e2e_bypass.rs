//! `bypass`: the kill switch of a running instance, under load.
mod common;

use common::{
    Finished, Loop, NAME, Report, Run, Running, SOON, Site, TestCa, TestCgroup, Upstream, alive, clients,
    run::retryscope,
    steady::{errors, more, rows, steady},
    until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn bypass(words: &[&str]) -> Finished {
    retryscope(["bypass"].iter().chain(words)).finish(SOON)
}

fn through(row: &Value) -> bool {
    row["intercepted"] == true
}

fn direct(row: &Value) -> bool {
    row["intercepted"] == false
}

fn path_of(group: &TestCgroup) -> String {
    format!("/{}", group.path().strip_prefix(common::cgroup::mount()).expect("below the mount").display())
}

fn bypassed(report: &Report) -> u64 {
    report.0["redirect"]["direct_bypassed"].as_u64().expect("a counter")
}

/// Under load, with new connections and with one that is kept: no request
/// fails on either switch, however often; new connections go direct from the
/// very switch on; the report and the log say so.
#[test]
fn no_request_fails_on_either_switch() {
    for fail in ["open", "closed"] {
        let (ca, group) = (TestCa::new(), TestCgroup::new());
        let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
        site.write(&format!("fail = \"{fail}\""), &format!("[targets]\ncgroups = [\"{}\"]", path_of(&group)));
        let mut daemon = site.start();
        daemon.watches(group.path());
        let pid = daemon.pid().to_string();
        let mut load: Vec<Running> = [false, false, true].map(|keep| steady(&group, &upstream, keep)).into();
        load.iter().for_each(|client| more(client, through));
        let mut switched = 0;
        for _ in 0..5 {
            let said = bypass(&["--instance", &pid]).ok().text();
            assert!(said.contains("is bypassed") && said.contains("and so does a restart"), "{said}");
            // The kernel knows it by now.
            let mut fresh = Loop::in_cgroup(&group, &upstream);
            assert!(!fresh.connects("go"), "direct from the switch on");
            load[..2].iter().for_each(|client| more(client, direct));
            more(&load[2], through);
            let shown = bypass(&["show", "--name", &site.name]).ok().text();
            assert!(shown.contains("is bypassed since 20"), "{shown}");
            bypass(&["off", "--instance", &pid]).ok();
            assert!(fresh.connects("go"), "here again from the switch on");
            fresh.end();
            load.iter().for_each(|client| more(client, through));
            switched += 1;
        }
        for client in &load {
            assert_eq!(errors(client), Vec::<Value>::new(), "fail {fail}");
        }
        daemon.said("bypassed: new connections go direct");
        daemon.said("no longer bypassed");
        let report = daemon.report();
        let went =
            load[..2].iter().map(|client| rows(client).iter().filter(|row| direct(row)).count() as u64).sum::<u64>();
        assert!(bypassed(&report) >= went + switched, "{went}: {report}");
        assert_eq!(report.0["redirect"]["blocked"], 0, "{report}");
        let fidelity = report.0["fidelity"].as_array().expect("differences");
        let told = fidelity.iter().find(|difference| difference["kind"] == "bypassed").expect("told");
        assert_eq!(told["count"], bypassed(&report), "{report}");
        load.iter_mut().for_each(Running::close_stdin);
        load.into_iter().for_each(|client| drop(client.finish(SOON).ok()));
        daemon.end().ok();
    }
}

/// `--now`: connections under way leave as they do at an end, each after its
/// answer; then everything is direct.
#[test]
fn now_ends_what_is_under_way() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]", path_of(&group)));
    let daemon = site.start();
    daemon.watches(group.path());
    let mut kept = steady(&group, &upstream, true);
    more(&kept, through);
    let said = bypass(&["--now", "--name", &site.name]).ok().text();
    assert!(said.contains("end as they become idle"), "{said}");
    more(&kept, direct);
    bypass(&["--off", "--name", &site.name]).ok();
    // It has a connection of its own to the upstream now, and keeps it.
    more(&kept, direct);
    let mut fresh = steady(&group, &upstream, true);
    more(&fresh, through);
    more(&fresh, through);
    for client in [&mut kept, &mut fresh] {
        client.close_stdin();
    }
    for client in [kept, fresh] {
        // Whoever keeps a connection may meet its end, as with any server; but
        // for that one request nothing fails.
        assert!(errors(&client).len() <= 1, "{:?}", errors(&client));
        client.finish(SOON).ok();
    }
    daemon.end().ok();
}

/// A restart ends a bypass unless it was to be kept; one that is kept is in
/// force before the first connection, and `off` ends it for good.
#[test]
fn a_restart() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]", path_of(&group)));
    let mut client = Loop::in_cgroup(&group, &upstream);
    for (words, after) in [(&["on"][..], true), (&["on", "--keep"], false), (&["off"], true)] {
        let daemon = site.start();
        daemon.watches(group.path());
        let words: Vec<&str> = words.iter().copied().chain(["--name", &site.name]).collect();
        bypass(&words).ok();
        daemon.end().ok();
        let mut daemon = site.start();
        daemon.watches(group.path());
        assert_eq!(client.connects("go"), after, "{words:?}");
        if !after {
            daemon.said("bypassed, as it was before");
            let shown = bypass(&["show", "--name", &site.name]).ok().text();
            assert!(shown.contains("a restart does not"), "{shown}");
            // Not even a kill ends it.
            daemon.signal(Signal::SIGKILL);
            daemon.running.take().expect("running").finish(SOON);
            let daemon = site.start();
            daemon.watches(group.path());
            assert!(!client.connects("go"), "after a kill");
            daemon.end().ok();
            continue;
        }
        daemon.end().ok();
    }
    client.end();
}

/// `run`, also with `--fail closed`: the same switch; what cannot be kept is
/// refused; and should it be killed meanwhile, nobody is kept out.
#[test]
fn of_a_command() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for killed in [false, true] {
        let run = Run::new().to(NAME, upstream.address, &ca).option("--fail").option("closed");
        let words = words![clients::python(), clients::script("loop.py"), upstream.address.ip().to_string()];
        let mut started = run.start(words);
        started.line("ready");
        let pid = started.pid.to_string();
        let mut at = 0;
        let mut connects = |started: &mut common::run::RunningRun| {
            started.write(b"go\n");
            let (line, end) = started.line_after(at, "issuer");
            at = end;
            let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
            match row["issuer"].as_str().unwrap_or_default() {
                "none" => panic!("the connection failed: {row}"),
                issuer if issuer.contains("retryscope test authority") => "direct",
                _ => "through",
            }
        };
        assert_eq!(connects(&mut started), "through");
        let refused = bypass(&["--keep", "--instance", &pid]).code(64);
        assert!(refused.stderr.contains("only a daemon's can be kept"), "{refused}");
        assert_eq!(connects(&mut started), "through", "what is refused changes nothing");
        bypass(&["--instance", &pid]).ok();
        assert_eq!(connects(&mut started), "direct", "direct");
        if killed {
            let command = common::process::descendants(started.pid);
            started.signal(Signal::SIGKILL);
            assert!(command.iter().any(|pid| alive(*pid)), "the command goes on");
            until("the warden says that it lets go", SOON, || {
                common::show(&started.stderr.bytes()).contains("since it was bypassed").then_some(())
            });
            assert_eq!(connects(&mut started), "direct", "direct after the kill");
            started.close_stdin();
            drop(started);
            continue;
        }
        bypass(&["off", "--instance", &pid]).ok();
        assert_eq!(connects(&mut started), "through", "here again");
        started.close_stdin();
        let outcome = started.finish().ok();
        let report = outcome.report();
        assert_eq!((bypassed(&report), report.0["redirect"]["blocked"].as_u64()), (1, Some(0)), "{report}");
        assert!(report.0["fidelity"].to_string().contains("direct while retryscope was bypassed"), "{report}");
    }
}

/// What is typed wrongly, or has nobody to reach.
#[test]
fn what_is_refused() {
    for words in [&["off", "--now"][..], &["show", "--keep"], &["sideways"]] {
        let refused = bypass(words).code(64);
        assert!(!refused.stderr.is_empty(), "{refused}");
    }
    let refused = bypass(&["--name", "nobody-here"]).code(69);
    assert!(refused.stderr.contains("there is no daemon named `nobody-here`"), "{refused}");
}
