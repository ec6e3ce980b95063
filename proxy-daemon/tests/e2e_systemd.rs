//! The package on a booted system: installed, started, serving a unit,
//! reloaded, stalled, restarted, upgraded, removed.
mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use common::{Machine, TestCa, Upstream, ca::Leaf, clients, machine::links, until};
use serde_json::Value;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
/// Where the upstream is, in the machine's network.
const UPSTREAM: &str = "127.0.0.9";
const LATER: std::time::Duration = std::time::Duration::from_secs(60);

/// What `systemd-analyze security` says of both units: an exposure of at most
/// 3.0 of 10.
#[test]
fn units_are_hardened() {
    for unit in ["retryscope.service", "retryscope@.service"] {
        let mut command = Command::new(clients::need("systemd-analyze", "systemd"));
        command.args(["security", "--offline=yes", "--threshold=30"]).arg(Path::new(DEPLOY).join("systemd").join(unit));
        let finished = clients::bare(&mut command).finish(LATER);
        assert_eq!(finished.code, 0, "{unit} is exposed more than it may be: {finished}");
        assert!(finished.text().contains("Overall exposure level"), "{finished}");
    }
}

/// The package of the binary under test.
fn package(version: &str, folder: &Path) -> PathBuf {
    let tool = std::env::var_os("RETRYSCOPE_TEST_CARGO_DEB").map(PathBuf::from);
    let tool = tool.unwrap_or_else(|| clients::target().join("tools/bin/cargo-deb"));
    assert!(tool.exists(), "{} is missing: `cargo xtask test` installs it", tool.display());
    let package = folder.join(format!("retryscope_{version}.deb"));
    let mut command = Command::new(tool);
    command.args(["--no-build", "--fast", "--profile", "dev", "--offline", "--deb-version", version]);
    command.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).arg("-o").arg(&package);
    // Where the toolchain is; and no build folder of anybody else's.
    command.env_remove("CARGO_TARGET_DIR").env("CARGO", env!("CARGO"));
    let finished = common::Running::start(&mut command).finish(LATER * 3);
    assert_eq!(finished.code, 0, "the package cannot be made: {finished}");
    package
}

struct Site {
    machine: Machine,
    ca: TestCa,
    _upstream: Upstream,
}

impl Site {
    fn new() -> Self {
        let (machine, ca) = (Machine::boot(), TestCa::new());
        let upstream =
            Upstream::at(machine.listen(&format!("{UPSTREAM}:443")), &ca, Leaf::Good, &[common::NAME], &["http/1.1"]);
        std::fs::copy(ca.pem(), machine.shared("ca.pem")).expect("copied");
        std::fs::copy(clients::script("steady.py"), machine.shared("steady.py")).expect("copied");
        Self { machine, ca, _upstream: upstream }
    }

    /// A service that asks without a pause.
    fn service(&self, unit: &str) {
        self.service_with(unit, &[]);
    }

    fn service_with(&self, unit: &str, options: &[&str]) {
        let script = format!("sleep infinity | exec python3 -u /test/steady.py {UPSTREAM} >/test/{unit}.jsonl");
        let words = [&["systemd-run", "--quiet", "--unit", unit], options, &["/bin/sh", "-c", &script]].concat();
        self.machine.run(&words).ok();
    }

    /// A service in a network of its own is served there; and where the
    /// administrator grants less, that is said, and it goes direct.
    fn serves_other_networks(&self) {
        let machine = &self.machine;
        self.service_with("away", &["-p", "PrivateNetwork=yes"]);
        // Once it is in its own network.
        until("the service asks", LATER, || (!self.rows("away").is_empty()).then_some(()));
        let listener = machine.listen_in("away.service", &format!("{UPSTREAM}:443"));
        let upstream = Upstream::at(listener, &self.ca, Leaf::Good, &[common::NAME], &["http/1.1"]);
        self.goes("away", false);
        self.config("[targets]\nunits = [\"web.service\", \"away.service\"]");
        machine.run(&["systemctl", "reload", "retryscope"]).ok();
        self.goes("away", true);
        let journal = machine.journal("retryscope");
        assert!(journal.contains("listening in the network namespace of process"), "{journal}");
        let drop_in = "mkdir -p /run/systemd/system/retryscope.service.d && \
            printf '[Service]\\nCapabilityBoundingSet=~CAP_SYS_ADMIN CAP_SYS_PTRACE\\n' \
            >/run/systemd/system/retryscope.service.d/test.conf && systemctl daemon-reload && systemctl restart retryscope";
        machine.sh(drop_in).ok();
        self.goes("web", true);
        self.goes("away", false);
        let journal = machine.journal("retryscope");
        assert!(journal.contains("go direct: CAP_SYS_PTRACE and CAP_SYS_ADMIN are missing"), "{journal}");
        machine.sh("rm -r /run/systemd/system/retryscope.service.d && systemctl daemon-reload").ok();
        self.config("[targets]\nunits = [\"web.service\"]");
        machine.run(&["systemctl", "restart", "retryscope"]).ok();
        machine.run(&["systemctl", "stop", "away"]).ok();
        self.goes("web", true);
        drop(upstream);
    }

    fn rows(&self, unit: &str) -> Vec<Value> {
        let said = std::fs::read_to_string(self.machine.shared(&format!("{unit}.jsonl"))).unwrap_or_default();
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until the service's next connections go this way.
    #[track_caller]
    fn goes(&self, unit: &str, intercepted: bool) {
        let before = self.rows(unit).len();
        until(&format!("{unit} connects, intercepted: {intercepted}"), LATER, || {
            let rows = self.rows(unit);
            let tail = rows.get(rows.len().saturating_sub(3)..)?;
            (rows.len() >= before + 3 && tail.iter().all(|row| row["intercepted"] == intercepted)).then_some(())
        });
    }

    fn errors_since(&self, unit: &str, from: usize) -> Vec<Value> {
        let wrong = |row: &Value| !row["error"].is_null() || row["status"] != 200;
        self.rows(unit).into_iter().skip(from).filter(wrong).collect()
    }

    fn config(&self, tables: &str) {
        let text = format!("upstream_ca = [\"/test/ca.pem\"]\n{tables}\n");
        std::fs::write(self.machine.file("/etc/retryscope/config.toml"), text).expect("the configuration");
    }

    /// `fail = "closed"`: a daemon that dies keeps connections from going
    /// direct until it is started again; a stop lets them go.
    fn refuses_once_it_has_died(&self) {
        let machine = &self.machine;
        let text = "upstream_ca = [\"/test/ca.pem\"]\nfail = \"closed\"\n[targets]\nunits = [\"web.service\"]\n";
        std::fs::write(machine.file("/etc/retryscope/config.toml"), text).expect("the configuration");
        // Long enough to be seen.
        let drop_in = "mkdir -p /run/systemd/system/retryscope.service.d && \
            printf '[Service]\\nRestartSec=3s\\n' >/run/systemd/system/retryscope.service.d/test.conf && \
            systemctl daemon-reload && systemctl restart retryscope";
        machine.sh(drop_in).ok();
        self.goes("web", true);
        let from = self.rows("web").len();
        let before = self.main_pid();
        machine.sh(&format!("kill -KILL {before}")).ok();
        until("connections are refused", LATER, || {
            let refused = |row: &Value| row["error"].as_str().is_some_and(|error| error.contains("ConnectionRefused"));
            (self.rows("web").iter().skip(from).filter(|row| refused(row)).count() >= 5).then_some(())
        });
        until("it is started again", LATER, || {
            let now = self.main_pid();
            (now != before && now != "0" && machine.property("retryscope", "SubState") == "running").then_some(())
        });
        self.goes("web", true);
        let rows = self.rows("web");
        let direct: Vec<&Value> = rows.iter().skip(from).filter(|row| row["intercepted"] == false).collect();
        assert_eq!(direct, Vec::<&Value>::new(), "went direct after the death");
        until("the warden of the one that died has ended", LATER, || {
            (machine.sh("grep -lx retryscope-shut /proc/[0-9]*/comm | wc -l").text().trim() == "0").then_some(())
        });
        // A stop is an end in order.
        machine.run(&["systemctl", "stop", "retryscope"]).ok();
        self.goes("web", false);
        // Also of one that does not answer, once systemd has lost patience.
        machine.sh("printf '[Service]\\nTimeoutStopSec=2s\\n' >/run/systemd/system/retryscope.service.d/test.conf; systemctl daemon-reload").ok();
        machine.run(&["systemctl", "start", "retryscope"]).ok();
        self.goes("web", true);
        machine.sh(&format!("kill -STOP {}", self.main_pid())).ok();
        machine.run(&["systemctl", "stop", "retryscope"]);
        self.goes("web", false);
        until("no process is left", LATER, || {
            (machine.sh("grep -l '^retryscope' /proc/[0-9]*/comm | wc -l").text().trim() == "0").then_some(())
        });
        machine.sh("rm -r /run/systemd/system/retryscope.service.d && systemctl daemon-reload").ok();
        self.config("[targets]\nunits = [\"web.service\"]");
        machine.run(&["systemctl", "reset-failed", "retryscope"]);
        machine.run(&["systemctl", "start", "retryscope"]).ok();
        self.goes("web", true);
    }

    /// By TPROXY, with what the drop-in beside the unit adds.
    fn serves_by_tproxy(&self) {
        let machine = &self.machine;
        let folder = machine.file("/run/systemd/system/retryscope.service.d");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(Path::new(DEPLOY).join("systemd/tproxy.conf"), folder.join("tproxy.conf")).expect("copied");
        self.config("[targets]\nnetns = true");
        machine.sh("systemctl daemon-reload && systemctl restart retryscope").ok();
        self.goes("web", true);
        assert!(machine.property("retryscope", "StatusText").contains("TPROXY"));
        let report = machine.run(&["retryscope", "report", "--report", "json"]).ok().json();
        let processes = report["processes"].as_array().expect("processes");
        let found = |row: &&Value| row["unit"] == "web.service" && row["pid"].as_u64().is_some_and(|pid| pid > 1);
        assert!(processes.iter().any(|row| found(&row)), "{report}");
        machine.sh("rm -r /run/systemd/system/retryscope.service.d && systemctl daemon-reload").ok();
        self.config("[targets]\nunits = [\"web.service\"]");
        machine.run(&["systemctl", "restart", "retryscope"]).ok();
        self.goes("web", true);
    }

    fn main_pid(&self) -> String {
        self.machine.property("retryscope", "MainPID")
    }

    #[track_caller]
    fn is_active(&self) {
        let state = self.machine.run(&["systemctl", "is-active", "retryscope"]);
        assert_eq!(state.text().trim(), "active", "{}", self.machine.journal("retryscope"));
    }
}

/// What of a process's status says what it may do.
fn status(text: &str) -> Vec<(&str, &str)> {
    let telling = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let line = |name: &'static str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some((name, value.trim()))
    };
    telling.into_iter().filter_map(line).collect()
}

#[test]
fn a_packages_life() {
    let site = Site::new();
    let machine = &site.machine;
    let folder = machine.shared("");
    let (first, second) = (package("0.1.0-1", &folder), package("0.1.0-2", &folder));
    let inside = |package: &Path| format!("/test/{}", package.file_name().expect("a name").to_string_lossy());

    // Installed: it runs, and watches nothing yet.
    machine.run(&["dpkg", "-i", &inside(&first)]).ok();
    site.is_active();
    assert_eq!(machine.property("retryscope", "UnitFileState"), "enabled");
    machine.run(&["getent", "passwd", "retryscope"]).ok();
    let key = machine.run(&["stat", "-c", "%U %a", "/etc/retryscope/retryscope-ca.key"]).ok();
    assert_eq!(key.text().trim(), "root 600");
    machine.run(&["retryscope", "config", "check"]).ok();

    // A unit that runs already becomes a target, and one that comes later.
    site.service("web");
    site.goes("web", false);
    site.config("[targets]\nunits = [\"web.service\", \"late@*.service\"]");
    machine.run(&["systemctl", "restart", "retryscope"]).ok();
    site.goes("web", true);
    site.service("late@1");
    site.goes("late@1", true);
    until("the status tells", LATER, || {
        machine.property("retryscope", "StatusText").starts_with("2 cgroups").then_some(())
    });
    machine.run(&["systemctl", "stop", "late@1"]).ok();

    // Not one privilege is left, seen from the machine.
    let report = machine.run(&["retryscope", "doctor"]).text();
    assert!(report.contains("the server cannot: open /etc/retryscope/retryscope-ca.key"), "{report}");
    let none = "0000000000000000";
    // One enters other networks: CAP_SYS_PTRACE and CAP_SYS_ADMIN.
    let enters = "0000000000280000";
    let mut porters = 0;
    for pid in machine.sh("cat /sys/fs/cgroup/system.slice/retryscope.service/cgroup.procs").ok().text().lines() {
        let text = machine.run(&["cat", &format!("/proc/{pid}/status")]).ok().text();
        let found = status(&text);
        let porter = machine.run(&["cat", &format!("/proc/{pid}/cmdline")]).ok().text().contains("__porter");
        porters += usize::from(porter);
        let kept = if porter { enters } else { none };
        let expected = [
            ("CapInh", none),
            ("CapPrm", kept),
            ("CapEff", kept),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
        ];
        assert_eq!(found[..6], expected, "{text}");
        assert_eq!(found[6].0, "Seccomp");
        assert_eq!(found[6].1, "2");
    }
    assert_eq!(porters, 1);
    let entries =
        machine.run(&["journalctl", "-u", "retryscope", "-o", "json", "RETRYSCOPE_CGROUP=/system.slice/web.service"]);
    assert!(entries.ok().text().lines().count() >= 1, "the journal has fields");

    // Reloaded under load: no request fails, and none goes direct.
    let from = site.rows("web").len();
    for _ in 0..5 {
        machine.run(&["systemctl", "reload", "retryscope"]).ok();
    }
    site.goes("web", true);
    assert_eq!(site.errors_since("web", from), Vec::<Value>::new(), "during reloads");
    assert!(site.rows("web").iter().skip(from).all(|row| row["intercepted"] == true));
    // A broken file changes nothing, and the service manager hears of it.
    site.config("[target]\n");
    assert_ne!(machine.run(&["systemctl", "reload", "retryscope"]).code, 0);
    site.is_active();
    site.goes("web", true);
    site.config("[targets]\nunits = [\"web.service\"]");

    // Restarted under load: only new connections go direct meanwhile.
    let from = site.rows("web").len();
    machine.run(&["systemctl", "restart", "retryscope"]).ok();
    site.goes("web", true);
    assert_eq!(site.errors_since("web", from), Vec::<Value>::new(), "during the restart");
    let rows = site.rows("web");
    let direct: Vec<&Value> = rows.iter().skip(from).filter(|row| row["intercepted"] == false).collect();
    if let (Some(first), Some(last)) = (direct.first(), direct.last()) {
        let time = |row: &Value, name: &str| row[name].as_f64().expect("a number");
        let gap = (time(last, "ended") - time(first, "began")) * 1e3;
        println!("the restart: {} connections went direct, within {gap:.0} ms", direct.len());
    }

    // Stalled: the watchdog has it killed and started again.
    let drop_in = "mkdir -p /run/systemd/system/retryscope.service.d && \
        printf '[Service]\\nWatchdogSec=3s\\n' >/run/systemd/system/retryscope.service.d/test.conf && \
        systemctl daemon-reload && systemctl restart retryscope";
    machine.sh(drop_in).ok();
    let before = site.main_pid();
    let began = Instant::now();
    machine.sh(&format!("kill -STOP {before}")).ok();
    until("the stalled daemon is restarted", LATER, || {
        let now = site.main_pid();
        (now != before && now != "0" && machine.property("retryscope", "SubState") == "running").then_some(())
    });
    println!("the watchdog: served again {} ms after the stall", began.elapsed().as_millis());
    assert!(machine.journal("retryscope").contains("Watchdog timeout"), "{}", machine.journal("retryscope"));
    assert_eq!(machine.property("retryscope", "NRestarts"), "1");
    site.goes("web", true);
    machine.sh("rm -r /run/systemd/system/retryscope.service.d && systemctl daemon-reload").ok();

    site.refuses_once_it_has_died();
    site.serves_other_networks();
    site.serves_by_tproxy();

    // Another, for one unit alone.
    site.service("other");
    site.goes("other", false);
    machine.run(&["systemctl", "start", "retryscope@other.service.service"]).ok();
    site.goes("other", true);
    machine.run(&["systemctl", "reload", "retryscope@other.service.service"]).ok();
    machine.run(&["systemctl", "stop", "retryscope@other.service.service"]).ok();
    site.goes("other", false);
    site.is_active();

    // Upgraded: another process, the same configuration.
    let before = site.main_pid();
    machine.run(&["dpkg", "-i", &inside(&second)]).ok();
    site.is_active();
    assert_ne!(site.main_pid(), before);
    site.goes("web", true);
    let report = machine.run(&["retryscope", "report", "--report", "json"]).ok().json();
    assert!(report["totals"]["attempts"].as_u64().is_some_and(|attempts| attempts > 50), "sums have gone on: {report}");

    // Stopped, then purged: nothing of it is left but the user.
    let web = machine.cgroup("web.service");
    assert_eq!(links(&web).len(), 7, "{}", web.display());
    machine.run(&["systemctl", "stop", "retryscope"]).ok();
    site.goes("web", false);
    assert_eq!(links(&web), Vec::<u64>::new());
    machine.run(&["systemctl", "start", "retryscope"]).ok();
    site.goes("web", true);
    machine.run(&["dpkg", "--purge", "retryscope"]).ok();
    site.goes("web", false);
    assert_eq!(links(&web), Vec::<u64>::new());
    assert_eq!(machine.run(&["systemctl", "is-active", "retryscope"]).text().trim(), "inactive");
    let left = machine.sh("find / /run -xdev -name '*retryscope*' -not -path '/proc/*' -not -path '/test/*'").text();
    assert_eq!(left, "", "left behind");
    assert_eq!(machine.run(&["systemctl", "list-units", "--all", "--no-legend", "retryscope*"]).text(), "");
    machine.run(&["getent", "passwd", "retryscope"]).ok();
    drop(site.ca);
}
