//! `daemon` and processes in network namespaces of their own, as containers
//! have them: listeners where they are, upstreams reached from there.
mod common;

use std::{
    fs::File,
    net::TcpListener,
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use common::{Daemon, Loop, NAME, SOON, Site, TestCa, TestCgroup, Upstream, alive, ca::Leaf, clients, until};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
};

/// A client in a cgroup and a network namespace of its own, as in a container,
/// with servers that only it can reach.
struct Away {
    cgroup: PathBuf,
    client: Option<Loop>,
    _upstreams: Vec<Upstream>,
}

impl Away {
    fn start(group: &TestCgroup, ca: &TestCa, host: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cgroup = group.path().join(format!("away-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&cgroup).expect("a cgroup");
        let script = r#"echo $$ >"$1/cgroup.procs" && shift && exec unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@""#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(&cgroup).arg(clients::python());
        let client = Loop::to(command, host);
        let namespace = File::open(format!("/proc/{}/ns/net", client.running.pid)).expect("the namespace");
        let listening = std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace: run as root");
            ["127.0.0.1:443", "[::1]:443"].map(|address| TcpListener::bind(address).expect("a listener"))
        });
        let listeners = listening.join().expect("listeners");
        let at = |listener| Upstream::at(listener, ca, Leaf::Good, &[NAME], &["http/1.1"]);
        Self { cgroup, client: Some(client), _upstreams: listeners.map(at).into() }
    }

    fn connects(&mut self) -> bool {
        self.client.as_mut().expect("it runs").connects("go")
    }

    fn pid(&self) -> i32 {
        self.client.as_ref().expect("it runs").running.pid
    }

    fn leave(&mut self) {
        self.client.take().expect("it runs").end();
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = std::panic::catch_unwind(|| {
            until("the cgroup is gone", SOON, || {
                let _ = std::fs::remove_dir(&self.cgroup);
                (!self.cgroup.exists()).then_some(())
            });
        });
    }
}

fn targets(site: &Site, group: &TestCgroup, top: &str) {
    let path = group.path().strip_prefix(common::cgroup::mount()).expect("below the mount");
    site.write(top, &format!("[targets]\ncgroups = [\"/{}\"]", path.display()));
}

/// Namespaces that a process holds on to by a descriptor.
fn held(pid: i32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten();
    files
        .filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().starts_with("net:")))
        .count()
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").count()
}

/// Those that are there at the start are served from their first connection
/// on, and those that come later from a moment after they have come; a door is
/// closed behind the last.
#[test]
fn doors_open_and_close() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    targets(&site, &group, "");
    let mut there = Away::start(&group, &ca, "127.0.0.1");
    let mut daemon = site.start();
    assert!(there.connects(), "there before the daemon");
    let porter = daemon.porter().expect("a porter");
    let before = threads(porter);
    assert_eq!(held(porter), 0);

    let mut later = Away::start(&group, &ca, "::1");
    daemon.said(&format!("listening in the network namespace of process {}", later.pid()));
    assert!(later.connects() && later.connects(), "one that came later, by IPv6");
    let mut home = Loop::in_cgroup(&group, &upstream);
    assert!(home.connects("go"), "in our own as ever");
    assert!(there.connects());

    let report = daemon.report();
    assert_eq!((report.total("attempts"), report.count("statuses", "200")), (5, 5), "{report}");
    let of = |pid: i32| {
        let processes = report.0["processes"].as_array().expect("processes");
        let row = processes.iter().find(|process| process["pid"] == pid).expect("the process");
        row["attempts"].as_u64().expect("a number")
    };
    assert_eq!((of(there.pid()), of(later.pid()), of(home.running.pid)), (2, 2, 1), "{report}");

    later.leave();
    daemon.said("nobody is left there");
    until("its thread has ended", SOON, || (threads(porter) < before + 1).then_some(()));
    assert!(there.connects(), "the other is still served");
    // Another comes and goes, more than once.
    for _ in 0..3 {
        let mut again = Away::start(&group, &ca, "127.0.0.1");
        daemon.said(&format!("listening in the network namespace of process {}", again.pid()));
        assert!(again.connects());
        again.leave();
    }
    daemon.end().ok();
    assert!(!there.connects(), "direct after the end");
    there.leave();
    home.end();
    until("the porter has ended", SOON, || (!alive(porter)).then_some(()));
}

/// However it ends, nothing is left that diverts; and without its porter a
/// daemon ends, so that whoever watches it starts all of it.
#[test]
fn none_after_a_kill() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let site = Site::new(&ca);
    targets(&site, &group, "");
    let mut there = Away::start(&group, &ca, "127.0.0.1");
    let start = || -> Daemon { site.start() };
    let mut daemon = start();
    let porter = daemon.porter().expect("a porter");
    assert!(there.connects());
    daemon.signal(Signal::SIGKILL);
    daemon.running.take().expect("running").finish(SOON);
    assert!(!there.connects(), "direct after the kill");
    until("the porter has ended", SOON, || (!alive(porter)).then_some(()));

    let mut daemon = start();
    assert!(there.connects());
    let keeper = daemon.keeper();
    kill(nix::unistd::Pid::from_raw(daemon.porter().expect("a porter")), Signal::SIGKILL).expect("killed");
    let finished = daemon.running.take().expect("running").finish(SOON).code(70);
    assert!(finished.stderr.contains("so does this one"), "{finished}");
    assert!(!there.connects(), "direct after the end");
    until("the keeper has ended", SOON, || (!alive(keeper)).then_some(()));
    there.leave();
}

/// Switched off, or without what it takes: said once, and connections there go
/// direct, while those in our own namespace come here.
#[test]
fn without() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    targets(&site, &group, "namespaces = false");
    let mut there = Away::start(&group, &ca, "127.0.0.1");
    let mut home = Loop::in_cgroup(&group, &upstream);
    let daemon = site.start();
    assert_eq!(daemon.porter(), None);
    assert!(home.connects("go") && !there.connects());
    let report = daemon.report();
    assert!(report.0["notes"].to_string().contains("network namespace in which nobody listened"), "{report}");
    daemon.end().ok();

    targets(&site, &group, "");
    for (lacking, why) in [("-sys_admin", "cannot be entered"), ("-sys_ptrace", "cannot be told")] {
        let mut command = Command::new(clients::need("setpriv", "util-linux"));
        command.args(["--bounding-set", lacking, "--inh-caps", lacking]);
        let daemon_command = site.command();
        command.arg(daemon_command.get_program()).args(daemon_command.get_args());
        let mut daemon = site.started(command);
        let name = format!("CAP_{}", lacking[1..].to_uppercase());
        let log = daemon.log();
        assert_eq!(log.matches("other network namespaces").count(), 1, "{log}");
        assert!(log.contains(&format!("go direct: {name} is missing")), "{log}");
        daemon.said(why);
        assert!(home.connects("go") && !there.connects(), "{lacking}");
        let log = daemon.end().ok().stderr;
        assert_eq!(log.matches(why).count(), 1, "told once: {log}");
    }
    there.leave();
    home.end();
}
