//! `daemon`: several targets from a file, reloads, privileges, what is kept.
mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    Daemon, Loop, Running, SOON, Site, TestCa, TestCgroup, Upstream, alive, clients,
    run::retryscope,
    steady::{errors, more, rows, steady},
    until,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// A cgroup below a test's own.
struct Below(PathBuf);

impl Below {
    fn new(group: &TestCgroup, name: &str) -> Self {
        let path = group.path().join(name);
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// A client in it.
    fn client(&self, upstream: &Upstream) -> Loop {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&self.0).arg(clients::python());
        Loop::started(command, upstream)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let _ = std::panic::catch_unwind(|| {
            until("the cgroup is gone", SOON, || {
                let _ = std::fs::remove_dir(&self.0);
                (!self.0.exists()).then_some(())
            });
        });
    }
}

/// A cgroup's path in the hierarchy.
fn path_of(group: &Path) -> String {
    format!("/{}", group.strip_prefix(common::cgroup::mount()).expect("below the mount").display())
}

/// Cgroups by path, units and containers by pattern, those that are there and
/// those that come later; one that goes away is no burden; and after the end
/// everything is as before.
#[test]
fn targets_by_pattern_that_come_and_go() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let base = path_of(group.path());
    let unit = format!("worker{}@*.service", std::process::id());
    let id = format!("{:064x}", std::process::id());
    site.write(
        "",
        &format!("[targets]\ncgroups = [\"{base}/there-*\"]\nunits = [\"{unit}\"]\ncontainers = [\"{}\"]", &id[..62]),
    );
    let there = Below::new(&group, "there-1");
    let other = Below::new(&group, "other");
    let daemon = site.start();
    daemon.watches(&there.0);
    let (mut first, mut stranger) = (there.client(&upstream), other.client(&upstream));
    assert!(first.connects("go") && first.connects("fork"));
    assert!(!stranger.connects("go"), "another's connection is direct");

    let later = Below::new(&group, "there-2");
    let service = Below::new(&group, &unit.replace('*', "7"));
    let container = Below::new(&group, &format!("docker-{id}.scope"));
    for below in [&later, &service, &container] {
        daemon.watches(&below.0);
        let mut client = below.client(&upstream);
        assert!(client.connects("go"), "{}", below.0.display());
        client.end();
    }
    // What lies in one that is attached is part of it.
    let within = Below(later.0.join("there-3"));
    std::fs::create_dir(&within.0).expect("a cgroup");
    let mut client = within.client(&upstream);
    assert!(client.connects("go"));
    assert!(common::cgroup::links(common::cgroup::id(&within.0)).is_empty(), "attached twice");
    client.end();
    drop((within, later));
    let again = Below::new(&group, "there-2");
    daemon.watches(&again.0);
    let mut client = again.client(&upstream);
    assert!(client.connects("go"), "a cgroup of an earlier one's name");
    client.end();

    let report = daemon.report();
    assert_eq!(report.total("attempts"), 7, "{report}");
    daemon.end().ok();
    assert!(!first.connects("go"), "after the end");
    for below in [&there, &service, &container, &again] {
        assert!(common::cgroup::links(common::cgroup::id(&below.0)).is_empty(), "links are left");
    }
    until("nothing is left in /run", SOON, || (!site.runtime().exists()).then_some(()));
    first.end();
    stranger.end();
}

/// What a reload puts in force: rules, names, targets, by the command and by
/// a hang-up; a broken file changes nothing and is told with its place.
#[test]
fn reloads() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let (one, two) = (Below::new(&group, "one"), Below::new(&group, "two"));
    let base = path_of(group.path());
    let targets = |names: &str| format!("[targets]\ncgroups = [\"{base}/{names}\"]");
    std::fs::write(site.path("rules.toml"), "[[rule]]\nname = \"a\"\nwhen = \"~s\"\nthen = { status = 500 }\n")
        .expect("rules");
    site.write("", &format!("{}\n[rules]\nfiles = [\"rules.toml\"]", targets("one")));
    let mut daemon = site.start();
    daemon.watches(&one.0);
    let (mut first, mut second) = (one.client(&upstream), two.client(&upstream));
    assert!(first.connects("go") && !second.connects("go"));

    std::fs::write(site.path("rules.toml"), "[[rule]]\nname = \"b\"\nwhen = \"~s\"\nthen = { status = 418 }\n")
        .expect("rules");
    site.write("", &format!("{}\n[rules]\nfiles = [\"rules.toml\"]", targets("*")));
    assert!(site.reload().ok().text().contains("rules: 1"));
    daemon.watches(&two.0);
    assert!(second.connects("go"));

    for broken in ["prots = [1]", "intercept = [\"a b\"]"] {
        site.write(broken, &targets("one"));
        let refused = site.reload().code(64);
        assert!(refused.stderr.contains("config.toml:5:") && refused.stderr.contains('^'), "{refused}");
        assert!(refused.stderr.contains("what was in force stays"), "{refused}");
    }
    std::fs::write(site.path("rules.toml"), "[[rule]]\nwhen = \"~dd\"\nthen = { status = 418 }\n").expect("rules");
    site.write("", &format!("{}\n[rules]\nfiles = [\"rules.toml\"]", targets("one")));
    assert!(site.reload().code(64).stderr.contains("did you mean ~d?"));
    assert!(second.connects("go"), "after files that are refused");

    // The rest needs a restart, and that is said.
    site.write("ports = [443, 8443]", &format!("{}\n[metrics]\nlisten = \"127.0.0.1:1\"", targets("one")));
    let said = site.reload().ok().text();
    assert!(said.contains("only after a restart: ports, metrics"), "{said}");
    assert!(!second.connects("go") && first.connects("go"), "targets are those of the file");
    site.write("passthrough = [\"*\"]", &targets("one"));
    daemon.signal(Signal::SIGHUP);
    until("names are left alone", SOON, || (!first.connects("go")).then_some(()));
    daemon.said("the configuration was read again");

    let report = daemon.report();
    assert_eq!(report.count("injected", "500"), 1, "{report}");
    assert_eq!(report.count("injected", "418"), 2, "{report}");
    daemon.end().ok();
    first.end();
    second.end();
}

/// The lines of `/proc/PID/task/TID/status` that say what a thread may do.
fn may(status: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(status).expect("the status");
    let telling = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let line = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("a line");
        (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    telling.into_iter().map(line).collect()
}

fn threads(pid: i32) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    tasks.map(|task| task.expect("a thread").path().join("status")).collect()
}

/// After the start every thread of each process has exactly what
/// docs/security.md says, and no way to get more; and what
/// serves connections can do none of what would matter.
#[test]
fn privileges_are_gone() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]", path_of(group.path())));
    let daemon = site.start();
    daemon.watches(group.path());
    let mut client = Loop::in_cgroup(&group, &upstream);
    assert!(client.connects("go"), "it serves all the same");

    let nobody = nix::unistd::User::from_name(common::daemon::USER).expect("users").expect("nobody");
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    let none = "0000000000000000";
    // CAP_SYS_PTRACE and CAP_SYS_ADMIN.
    let enters = "0000000000280000";
    let porter = daemon.porter().expect("a porter");
    for (pid, uid, gid, groups, kept) in [
        (daemon.pid(), uid, gid, Some(gid.to_string()), none),
        (daemon.keeper(), 0, 0, None, none),
        (porter, uid, gid, Some(gid.to_string()), enters),
    ] {
        let threads = threads(pid);
        assert!(threads.len() > 1, "{threads:?}");
        for status in threads {
            for (name, value) in may(&status) {
                let expected = match name.as_str() {
                    "Uid" => format!("{uid} {uid} {uid} {uid}"),
                    "Gid" => format!("{gid} {gid} {gid} {gid}"),
                    "Groups" => match &groups {
                        Some(groups) => groups.clone(),
                        None => continue,
                    },
                    "NoNewPrivs" => "1".into(),
                    "Seccomp" => "2".into(),
                    "CapPrm" | "CapEff" => kept.into(),
                    _ => none.into(),
                };
                assert_eq!(value, expected, "{name} of {}", status.display());
            }
        }
    }

    // As seen from within the process that parses bytes from the network.
    let finished = retryscope(["doctor", "--json"]).finish(SOON);
    let found: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    let instances = found["instances"].as_array().expect("instances");
    let own = instances.iter().find(|instance| instance["pid"] == daemon.pid()).expect("this daemon");
    assert_eq!(own["possible"], serde_json::json!([]), "{own}");
    let key = site.path("ca/retryscope-ca.key");
    assert!(key.is_file());
    let refused: Vec<&str> = own["refused"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for what in
        [format!("open {}", key.display()).as_str(), "open a raw IPv4 socket", "open a packet socket", "run a program"]
    {
        assert!(refused.contains(&what), "{what}: {own}");
    }
    assert_eq!(own["processes"][1]["role"], "keeper", "{own}");
    assert_eq!(own["processes"][1]["pid"], daemon.keeper(), "{own}");
    assert_eq!(own["processes"][2]["role"], "porter", "{own}");
    assert_eq!(own["processes"][2]["pid"], porter, "{own}");
    let text = retryscope(["doctor"]).finish(SOON);
    assert!(text.text().contains("CapEff 0, CapBnd 0"), "{text}");
    daemon.end().ok();
    client.end();
}

/// Root may do everything; others what the configuration gives their groups.
#[test]
fn who_may_use_the_control_socket() {
    let ca = TestCa::new();
    let site = Site::new(&ca);
    site.write("", "[control]\nreaders = \"daemon\"\nadmins = \"sys\"");
    let daemon = site.start();
    let gid = |name: &str| nix::unistd::Group::from_name(name).expect("groups").expect(name).gid.to_string();
    let pid = daemon.pid().to_string();
    let as_group = |group: &str, words: &[&str]| {
        let mut command = Command::new(clients::need("setpriv", "util-linux"));
        command.args(["--reuid", "65534", "--regid", "65534", "--groups", group]);
        command.arg(common::run::RETRYSCOPE).args(words).args(["--instance", &pid]);
        clients::bare(&mut command).finish(SOON)
    };
    let (list, add): (&[&str], &[&str]) = (&["rules", "list"], &["rules", "add", "~s => 429"]);
    let none = as_group("65534", list).code(77);
    assert!(none.stderr.contains("`readers` in [control]"), "{none}");
    as_group(&gid("daemon"), list).ok();
    let reader = as_group(&gid("daemon"), add).code(77);
    assert!(reader.stderr.contains("`admins` in [control]"), "{reader}");
    as_group(&gid("sys"), list).ok();
    as_group(&gid("sys"), add).ok();
    assert!(retryscope(["rules", "list", "--instance", &pid]).finish(SOON).ok().text().contains("429"));
    daemon.end().ok();
}

/// Sums go on over a restart, and a file that cannot be read is told.
#[test]
fn sums_outlive_a_restart() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]\n[rules]\nrules = [\"~s => 503\"]", path_of(group.path())));
    let mut client = Loop::in_cgroup(&group, &upstream);
    for round in 1..=3 {
        let daemon = site.start();
        daemon.watches(group.path());
        assert!(client.connects("go"));
        let report = daemon.report();
        assert_eq!(report.total("attempts"), round, "{report}");
        assert_eq!(report.0["totals"]["connections"]["intercepted"], round, "{report}");
        daemon.end().ok();
    }
    let kept = site.path("state").join(&site.name).join("ledger.json");
    std::fs::write(&kept, "{\"version\": 1, \"ledger\": 7}").expect("a broken file");
    let mut daemon = site.start();
    daemon.said("counting begins anew");
    assert_eq!(daemon.report().total("attempts"), 0);
    daemon.end().ok();
    client.end();
}

/// A client that will not trust the authority fails once, and not once more
/// because of a restart.
#[test]
fn refusals_outlive_a_restart() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]", path_of(group.path())));
    let ask = || {
        let mut command = group.command(&clients::curl());
        command.arg("-sS").arg("--cacert").arg(ca.pem()).arg(format!("https://{}/hello", upstream.address.ip()));
        clients::bare(&mut command).finish(SOON)
    };
    let daemon = site.start();
    daemon.watches(group.path());
    assert_ne!(ask().code, 0, "it does not trust the authority");
    assert_eq!(ask().ok().text(), "hello from /hello\n", "passed on");
    daemon.end().ok();
    let daemon = site.start();
    daemon.watches(group.path());
    assert_eq!(ask().ok().text(), "hello from /hello\n", "passed on by the next as well");
    assert_eq!(daemon.report().0["totals"]["connections"]["tunnelled"], 2);
    daemon.end().ok();
}

/// A second daemon of one name is refused; one of another name is not. After
/// a `kill -9` nothing is left that diverts, and another can start.
#[test]
fn one_of_a_name_and_none_after_a_kill() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    site.write("", &format!("[targets]\ncgroups = [\"{}\"]", path_of(group.path())));
    let mut daemon = site.start();
    daemon.watches(group.path());
    let refused = clients::bare(&mut site.command()).finish(SOON).code(69);
    assert!(refused.stderr.contains("is running already") && refused.stderr.contains("--name"), "{refused}");
    let keeper = daemon.keeper();
    let mut client = Loop::in_cgroup(&group, &upstream);
    assert!(client.connects("go"));

    daemon.signal(Signal::SIGKILL);
    daemon.running.take().expect("running").finish(SOON);
    assert!(!client.connects("go"), "direct after the kill");
    until("the keeper has ended", SOON, || (!alive(keeper)).then_some(()));
    assert!(common::cgroup::links(common::cgroup::id(group.path())).is_empty(), "links are left");
    until("nothing is left in /run", SOON, || (!site.runtime().exists()).then_some(()));

    // Without its keeper a daemon ends, so that whoever watches it starts both.
    let mut daemon = site.start();
    daemon.watches(group.path());
    assert!(client.connects("go"));
    kill(nix::unistd::Pid::from_raw(daemon.keeper()), Signal::SIGKILL).expect("killed");
    let finished = daemon.running.take().expect("running").finish(SOON).code(70);
    assert!(finished.stderr.contains("so does this one"), "{finished}");
    assert!(!client.connects("go"), "direct after the end");
    client.end();
}

/// What is wrong is said before anything is touched.
#[test]
fn what_is_refused_at_the_start() {
    let ca = TestCa::new();
    let site = Site::new(&ca);
    let start = || clients::bare(&mut site.command()).finish(SOON);
    let missing = start().code(64);
    assert!(missing.stderr.contains("config default"), "{missing}");
    site.write("user = \"root\"", "");
    assert!(start().code(64).stderr.contains("not TOML"), "a key given twice");
    site.write("", "[targets]\ncgroup = [\"/a\"]");
    let refused = start().code(64);
    assert!(refused.stderr.contains("did you mean `cgroups`?"), "{refused}");
    site.write("", "");
    let key = site.path("ca/retryscope-ca.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("chmod");
    assert!(start().code(64).stderr.contains("chmod 600"), "a key that others can read");
    std::fs::remove_file(&key).expect("removed");
    assert!(start().code(64).stderr.contains("retryscope-ca.key"), "no key");
    let mut command = Command::new(clients::need("setpriv", "util-linux"));
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(common::run::RETRYSCOPE);
    command.arg("daemon").arg("--config").arg(site.config());
    clients::bare(&mut command).finish(SOON).code(77);
    assert!(!site.runtime().join("api.sock").exists());
}

/// What else an instance can do, it can without privileges: metrics, lines for
/// statsd, OTLP to a name that has to be looked up, a file of attempts.
#[test]
fn what_is_told_to_others() {
    use std::io::{BufRead, BufReader, Read, Write};
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let metrics = free().local_addr().expect("an address");
    let statsd = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    statsd.set_read_timeout(Some(SOON)).expect("a timeout");
    let collector = free();
    let tables = format!(
        "[targets]\ncgroups = [\"{}\"]\n[rules]\nrules = [\"~attempt 1 => 503\"]\n[metrics]\nlisten = \"{metrics}\"\n\
         [statsd]\nserver = \"{}\"\n[otlp]\nendpoint = \"http://localhost:{}\"\ninterval = \"200ms\"\n[events]\nfile = \"events.jsonl\"",
        path_of(group.path()),
        statsd.local_addr().expect("an address"),
        collector.local_addr().expect("an address").port(),
    );
    // A limited choice of hosts, and an authority without limits.
    site.write(&format!("intercept = [\"*.example.com\", \"{}\"]", upstream.address.ip()), &tables);
    let daemon = site.start();
    daemon.watches(group.path());
    let mut client = Loop::in_cgroup(&group, &upstream);
    assert!(client.connects("go"));
    assert!(client.connects("go"), "again: a retry");

    let mut pushed = String::new();
    let (stream, _) = collector.accept().expect("the collector is spoken to");
    BufReader::new(stream).read_line(&mut pushed).expect("a request");
    assert!(pushed.starts_with("POST /v1/"), "{pushed}");
    let mut scrape = std::net::TcpStream::connect(metrics).expect("metrics");
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("asked");
    let mut text = String::new();
    scrape.read_to_string(&mut text).expect("metrics");
    assert!(text.contains("retryscope_attempts_total"), "{text}");
    let mut datagram = [0; 2048];
    let length = statsd.recv(&mut datagram).expect("a line for the retry");
    let line = common::show(&datagram[..length]);
    assert!(line.contains("retryscope.retry"), "{line}");
    daemon.end().ok();
    let events = std::fs::read_to_string(site.path("events.jsonl")).expect("the file");
    assert!(events.lines().count() >= 3, "{events}");
    client.end();
}

/// A metric without labels, or with the labels given.
fn metric(address: std::net::SocketAddr, name: &str) -> Option<f64> {
    use std::io::{Read, Write};
    let mut scrape = std::net::TcpStream::connect(address).expect("metrics");
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("asked");
    let mut text = String::new();
    scrape.read_to_string(&mut text).expect("metrics");

    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

/// What a daemon tells of itself: what it carries and could, what it needs,
/// whether it is bypassed, its last reload, and how earlier ones ended.
#[test]
fn metrics_of_itself() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let tables = format!("[targets]\ncgroups = [\"{}\"]\n[metrics]\nlisten = \"{address}\"", path_of(group.path()));
    site.write("", &tables);
    let mut daemon = site.start();
    daemon.watches(group.path());
    let of = |name: &str| metric(address, name);
    let mut kept = steady(&group, &upstream, true);
    more(&kept, |row| row["intercepted"] == true);
    assert_eq!(of("retryscope_open_connections"), Some(1.0));
    assert!(of("retryscope_room_connections").is_some_and(|room| room > 10.0));
    assert_eq!(of("retryscope_watched_cgroups"), Some(1.0));
    for prefix in ["", "retryscope_keeper_"] {
        let memory = of(&format!("{prefix}process_resident_memory_bytes")).expect("memory");
        assert!((1e6..1e9).contains(&memory), "{prefix}: {memory}");
        let started = of(&format!("{prefix}process_start_time_seconds")).expect("a start");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64();
        assert!((now - started).abs() < 300.0, "{prefix}: {started}");
    }
    assert!(of("process_open_fds").is_some_and(|files| files > 10.0));
    assert_eq!((of("retryscope_starts_total"), of("retryscope_unclean_ends_total")), (Some(1.0), Some(0.0)));
    assert_eq!(of("retryscope_reload_successful"), None, "nobody asked for one");
    site.reload().ok();
    assert_eq!(of("retryscope_reload_successful"), Some(1.0));
    site.write("prots = [1]", &tables);
    site.reload().code(64);
    assert_eq!(of("retryscope_reload_successful"), Some(0.0));
    site.write("", &tables);

    assert_eq!((of("retryscope_bypassed"), of("retryscope_gate_state{state=\"open\"}")), (Some(0.0), Some(1.0)));
    retryscope(words!["bypass", "--name", &site.name]).finish(SOON).ok();
    assert_eq!((of("retryscope_bypassed"), of("retryscope_gate_state{state=\"bypassed\"}")), (Some(1.0), Some(1.0)));
    let mut direct = Loop::in_cgroup(&group, &upstream);
    assert!(!direct.connects("go"));
    assert_eq!(of("retryscope_direct_connections_total{reason=\"bypassed\"}"), Some(1.0));

    daemon.signal(Signal::SIGKILL);
    daemon.running.take().expect("running").finish(SOON);
    let daemon = site.start();
    assert_eq!((of("retryscope_starts_total"), of("retryscope_unclean_ends_total")), (Some(2.0), Some(1.0)));
    assert_eq!(of("retryscope_bypassed"), Some(0.0), "not to be kept");
    daemon.end().ok();
    let daemon = site.start();
    assert_eq!((of("retryscope_starts_total"), of("retryscope_unclean_ends_total")), (Some(3.0), Some(1.0)));
    daemon.end().ok();
    kept.close_stdin();
    kept.finish(SOON).ok();
    direct.end();
}

/// `fail = "closed"`, and the daemon dies: connections are refused, and none
/// goes direct, until the next one serves; an end in order lets them go.
#[test]
fn refused_once_it_has_died() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let write = |fail: &str| {
        site.write(&format!("fail = \"{fail}\""), &format!("[targets]\ncgroups = [\"{}\"]", path_of(group.path())));
    };
    let refused = |row: &Value| row["error"].as_str().is_some_and(|error| error.contains("ConnectionRefused"));
    let through = |row: &Value| row["intercepted"] == true;
    let direct = |row: &Value| row["intercepted"] == false;
    let kill = |mut daemon: Daemon| {
        daemon.signal(Signal::SIGKILL);
        daemon.running.take().expect("running").finish(SOON)
    };
    write("closed");
    let daemon = site.start();
    daemon.watches(group.path());
    let mut client = steady(&group, &upstream, false);
    more(&client, through);
    let warden = common::process::descendants(daemon.pid());
    let is_warden = |pid: &&i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(format!("retryscope\0__warden\0{}\0", site.name).as_bytes())
    };
    let warden = *warden.iter().find(is_warden).expect("a warden");
    for status in threads(warden) {
        for (name, value) in may(&status) {
            let expected = match name.as_str() {
                "Uid" | "Gid" => "0 0 0 0",
                "Groups" => continue,
                "NoNewPrivs" => "1",
                "Seccomp" => "2",
                _ => "0000000000000000",
            };
            assert_eq!(value, expected, "{name} of the warden");
        }
    }

    // Started again after each kill: never direct in between.
    let from = rows(&client).len();
    let mut daemon = daemon;
    for _ in 0..3 {
        kill(daemon);
        more(&client, refused);
        daemon = site.start();
        more(&client, through);
    }
    assert!(!rows(&client).iter().skip(from).any(direct), "{:?}", rows(&client));
    until("the earlier ones' wardens have ended", SOON, || (!alive(warden)).then_some(()));

    // An end in order, and a kill with a bypass: nobody is kept out.
    daemon.end().ok();
    more(&client, direct);
    let daemon = site.start();
    more(&client, through);
    kill(daemon);
    more(&client, refused);
    let said = retryscope(words!["bypass", "--name", &site.name]).finish(SOON).ok().text();
    assert!(said.contains("no longer refuses"), "{said}");
    more(&client, direct);
    // Nor once that is no longer asked for.
    let daemon = site.start();
    more(&client, through);
    kill(daemon);
    more(&client, refused);
    write("open");
    let daemon = site.start();
    more(&client, through);
    kill(daemon);
    more(&client, direct);
    client.close_stdin();
    client.finish(SOON).ok();
    until("nothing is attached", SOON, || {
        common::cgroup::links(common::cgroup::id(group.path())).is_empty().then_some(())
    });
}

/// Under load no request fails: not by a reload, and not by a restart, during
/// which connections go direct.
#[test]
fn under_load() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let (upstream, site) = (Upstream::start(&ca), Site::new(&ca));
    let write = |top: &str| site.write(top, &format!("[targets]\ncgroups = [\"{}\"]", path_of(group.path())));
    write("");
    let start = || -> Daemon {
        let daemon = site.start();
        daemon.watches(group.path());
        daemon
    };
    let daemon = start();
    let mut load: Vec<Running> = [false, false, true].map(|keep| steady(&group, &upstream, keep)).into();
    let through = |row: &Value| row["intercepted"] == true;
    load.iter().for_each(|client| more(client, through));
    for round in 0..10 {
        write(if round % 2 == 0 { "passthrough = [\"elsewhere.test\"]" } else { "" });
        site.reload().ok();
    }
    load.iter().for_each(|client| more(client, through));
    for client in &load {
        assert_eq!(errors(client), Vec::<Value>::new(), "during reloads");
        assert!(rows(client).iter().all(through), "a reload lets nothing go direct");
    }

    // A connection that is kept is closed by a restart, as by any proxy's.
    let mut kept = load.pop().expect("a client");
    kept.close_stdin();
    kept.finish(SOON).ok();
    daemon.end().ok();
    let daemon = start();
    load.iter().for_each(|client| more(client, through));
    daemon.end().ok();
    load.iter_mut().for_each(Running::close_stdin);
    for client in load {
        assert_eq!(errors(&client), Vec::<Value>::new(), "during the restart");
        let rows = rows(&client);
        let gap: Vec<&Value> =
            rows.iter().skip_while(|row| through(row)).take_while(|row| row["intercepted"] == false).collect();
        let time = |row: &Value, name: &str| row[name].as_f64().expect("a number");
        let (first, last) = (
            gap.first().unwrap_or_else(|| panic!("some went direct: {rows:?}")),
            gap.last().expect("some went direct"),
        );
        let gap_ms = (time(last, "ended") - time(first, "began")) * 1e3;
        println!("the restart: {} requests went direct, within {gap_ms:.0} ms", gap.len());
        client.finish(SOON).ok();
    }
}
