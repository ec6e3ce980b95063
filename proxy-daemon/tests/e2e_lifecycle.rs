//! From start to end in surroundings that are not the usual ones: masks and
//! limits of the caller's, names that are not text, report files that cannot
//! be written, a terminal that goes away, and what earlier instances left.
mod common;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    Finished, NAME, Report, Run, Running, SOON, TestCa, Upstream, cgroup, clients, run::RETRYSCOPE, servers::Echo,
    until,
};

/// `retryscope run` from a shell that does `before` first.
fn run_after(before: &str, words: Vec<OsString>) -> Running {
    clients::root();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{before} && exec \"$@\""), "sh", RETRYSCOPE, "run"]).args(words);
    clients::bare(&mut shell)
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a temporary folder")
}

/// Text without its line breaks, which are where the terminal's width has
/// them.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn gone(path: &Path) {
    until(&format!("{} is gone", path.display()), SOON, || (!path.exists()).then_some(()));
}

/// A mask that lets nobody else read new files holds for the command's files,
/// not for those that the command has to read.
#[test]
fn a_strict_umask() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let script = format!(
        "umask; id -u; head -c 5 \"$SSL_CERT_FILE\"; echo; \
         getent ahostsv4 {NAME} | cut -d' ' -f1 | sort -u; getent ahostsv4 localhost | cut -d' ' -f1 | sort -u; \
         curl -sS https://{NAME}/hello"
    );
    let map = format!("{NAME}={}", upstream.address.ip());
    let words = words![
        "--user",
        "nobody",
        "--map-host",
        map,
        "--upstream-ca",
        ca.pem(),
        "--",
        "/bin/sh",
        "-c",
        script.as_str()
    ];
    let finished = run_after("umask 077", words).finish(SOON).ok();
    let expected = format!("0077\n65534\n-----\n{}\n127.0.0.1\nhello from /hello\n", upstream.address.ip());
    assert_eq!(finished.text(), expected, "{finished}");
}

/// A hosts file with bytes that are not UTF-8, in a comment or in a name,
/// keeps its other names.
#[test]
fn a_hosts_file_in_another_encoding() {
    let dir = folder();
    let hosts = dir.path().join("hosts");
    let text = b"127.0.0.1 localhost\n# caf\xe9\n10.1.2.3 before.test\n10.1.2.4 \xff.test beside.test\n10.1.2.5 after.test\n10.1.2.6 mapped.test sibling.test # \xe9\n";
    std::fs::write(&hosts, text).expect("writing hosts");
    // The machine's own file is left alone: this one lies over it in a mount
    // namespace that ends with the command.
    let before = "mount --bind \"$1\" /etc/hosts && shift";
    let names = [
        ("localhost", "127.0.0.1"),
        ("before.test", "10.1.2.3"),
        ("beside.test", "10.1.2.4"),
        ("after.test", "10.1.2.5"),
        ("sibling.test", "10.1.2.6"),
        ("mapped.test", "127.9.8.7"),
    ];
    let script = "for name; do echo $name $(getent ahostsv4 $name | cut -d' ' -f1 | sort -u); done";
    clients::root();
    let mut command = Command::new(clients::need("unshare", "util-linux"));
    command
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", &format!("{before} && exec \"$@\""), "sh"])
        .arg(&hosts)
        .args([RETRYSCOPE, "run", "--map-host", "mapped.test=127.9.8.7", "--", "/bin/sh", "-c", script, "sh"])
        .args(names.map(|(name, _)| name));
    let finished = clients::bare(&mut command).finish(SOON).ok();
    let expected: String = names.iter().map(|(name, address)| format!("{name} {address}\n")).collect();
    assert_eq!(finished.text(), expected, "{finished}");
}

/// Without a mount namespace mapped names resolve as they always did, and the
/// report says so; where that is not so, it does not.
#[test]
fn unmapped_names_are_said() {
    for (mount, map, said) in [(false, true, true), (true, true, false), (false, false, false)] {
        let mut run = Run::new().no_report();
        if !mount {
            run = run.option("--no-mount");
        }
        if map {
            run = run.option("--map-host").option(format!("{NAME}=127.0.0.1"));
        }
        let outcome = run.go(words!["true"]).ok();
        let text = flat(&outcome.stderr);
        let sentence = "The names of --map-host have to resolve by themselves: --no-mount";
        assert_eq!(text.contains(sentence), said, "mount={mount} map={map}: {}", outcome.finished);
    }
}

/// Opens connections, uses each, holds them until told, and uses each again.
const HOLD: &str = r#"
import socket, sys
address, count = sys.argv[1], int(sys.argv[2])
held = []
def use(sock, number):
    said = b"number %d\n" % number
    sock.sendall(said)
    heard = b""
    while len(heard) < len(said):
        piece = sock.recv(100)
        if not piece:
            raise EOFError(f"connection {number} has ended")
        heard += piece
    assert heard == said, (heard, said)
for number in range(count):
    held.append(socket.create_connection((address, 443), timeout=20))
    use(held[-1], number)
print("held", len(held), flush=True)
sys.stdin.read()
for number, sock in enumerate(held):
    use(sock, number)
print("used", len(held), flush=True)
"#;

/// The caller's limit of open files is the command's, per process; together
/// the connections of its processes may be more than that.
#[test]
fn more_connections_than_the_limit_of_open_files() {
    let server = Echo::start();
    let dir = folder();
    let report = dir.path().join("report.json");
    // A shell gives background commands no input; this one does.
    let script = "ulimit -Sn; exec 3<&0; for i in 1 2 3; do \"$@\" <&3 & done; exec 3<&- </dev/null; wait";
    let words = words!["--report", "json", "--report-file", &report, "--", "/bin/sh", "-c", script, "sh"]
        .into_iter()
        .chain(words![clients::need("python3", "python3"), "-c", HOLD, server.address.ip().to_string(), "200"])
        .collect();
    let mut running = run_after("ulimit -Sn 256", words);
    let mut at = 0;
    for _ in 0..3 {
        at = running.line_after(at, "held 200").1;
    }
    running.close_stdin();
    let finished = running.finish(Duration::from_secs(60)).ok();
    let text = finished.text();
    assert_eq!(text.lines().next(), Some("256"), "the command's own limit: {finished}");
    assert_eq!(text.lines().filter(|line| *line == "used 200").count(), 3, "{finished}");
    let report = Report::parse(&std::fs::read_to_string(&report).expect("a report"));
    assert_eq!(report.connections("tunnelled"), 600, "{report}");
    assert_eq!(report.connections("refused"), 0, "{report}");
}

/// Names and arguments are bytes: they reach the command as they are.
#[test]
fn names_that_are_not_text() {
    let dir = folder();
    let odd = dir.path().join(OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir(&odd).expect("making a folder");
    std::os::unix::fs::symlink("/bin/sh", odd.join("tool")).expect("a link");
    let argument = OsString::from_vec(b"\xff\xfe and \xc3".to_vec());
    let mut path = odd.clone().into_os_string();
    path.push(":/usr/bin:/bin");
    let script = "printf '%s|%s|' \"$1\" \"$ODD\"; pwd";
    let mut expected = [argument.as_bytes(), b"|", argument.as_bytes(), b"|", odd.as_os_str().as_bytes()].concat();
    expected.push(b'\n');
    for program in [odd.join("tool"), "./tool".into(), "tool".into()] {
        let run = Run::new().cwd(&odd).env("PATH", &path).env("ODD", &argument);
        let outcome = run.go(words![program.clone(), "-c", script, "sh", argument.clone()]).ok();
        assert_eq!(outcome.stdout, expected, "{}: {}", program.display(), outcome.finished);
        outcome.report();
    }
}

/// Without root such arguments are no reason for a crash.
#[test]
fn names_that_are_not_text_without_root() {
    clients::root();
    let dir = folder();
    // Another process writes the program: one that is written to, also by a
    // child of another test's just before its exec, cannot be started.
    let script = "chmod 755 \"$2\" && cp \"$1\" \"$2/retryscope\" && cd / && exec \"$3\" --reuid=65534 --regid=65534 \
                  --clear-groups -- \"$2/retryscope\" run -- \"$4\" \"$5\"";
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script, "sh", RETRYSCOPE])
        .arg(dir.path())
        .arg(clients::need("setpriv", "util-linux"))
        .arg(OsStr::from_bytes(b"/no/caf\xe9/tool"))
        .arg(OsStr::from_bytes(b"\xff"));
    let finished = clients::bare(&mut command).finish(SOON).code(77);
    assert!(finished.stdout.is_empty(), "{finished}");
    assert!(!finished.stderr.contains("panicked"), "{finished}");
    assert!(finished.stderr.contains("sudo"), "{finished}");
}

/// Starts its arguments as the leader of a session on a terminal of its own,
/// takes the terminal away when they are ready, tells how they ended, and
/// waits for all that they started.
const TERMINAL: &str = r#"
import ctypes, os, pty, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
while b"ready" not in seen:
    seen += os.read(master, 1000)
os.close(master)
print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"#;

/// When the terminal goes away the kernel tells the session's leader alone;
/// that is retryscope, and the command hears of it, once.
#[test]
fn a_terminal_that_goes_away() {
    clients::root();
    let dir = folder();
    let (heard, place, report) = (dir.path().join("heard"), dir.path().join("place"), dir.path().join("report"));
    let script = "trap 'echo HUP >>\"$1\"; kill $!; exit 9' HUP; dirname \"$SSL_CERT_FILE\" >\"$2\"; \
                  sed -n 's/^0:://p' /proc/self/cgroup >>\"$2\"; sleep 1000 & echo ready; wait";
    let mut host = Command::new(clients::need("python3", "python3"));
    host.args(["-c", TERMINAL, RETRYSCOPE, "run", "--report-file"])
        .arg(&report)
        .args(["--", "/bin/sh", "-c", script, "sh"])
        .args([&heard, &place]);
    let finished = clients::bare(&mut host).finish(SOON).ok();
    assert_eq!(finished.text(), "ended 9\n", "{finished}");
    assert_eq!(std::fs::read_to_string(&heard).expect("the command heard of it"), "HUP\n");
    assert!(std::fs::metadata(&report).is_ok_and(|data| data.len() > 0), "the report is written all the same");
    let place = std::fs::read_to_string(&place).expect("the command told its places");
    let (certificates, group) = place.trim().split_once('\n').expect("two lines");
    gone(Path::new(certificates));
    gone(cgroup::from_line(group).parent().expect("the instance's own cgroup"));
}

/// Tells how many times it was hung up by the time that a signal sent to its
/// parent afterwards has come back: by then every hang-up sent on is here.
const HUNG_UP: &str = r#"
import os, signal, sys
came, goes = os.pipe()
os.set_blocking(goes, False)
# One byte for each signal; handlers of Python's own may run once for two.
signal.set_wakeup_fd(goes)
for number in (signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
os.write(1, b"ready\n")
seen = b""
while signal.SIGUSR1 not in seen:
    before, seen = seen, seen + os.read(came, 100)
    if not before and seen:
        os.kill(os.getppid(), signal.SIGUSR1)
with open(sys.argv[1], "w") as file:
    file.write(str(seen.count(signal.SIGHUP)))
"#;

/// Below a shell that leads the session the kernel tells everybody in the
/// foreground: retryscope must not tell the command again.
#[test]
fn a_terminal_that_goes_away_from_a_shell() {
    clients::root();
    let dir = folder();
    let (count, report) = (dir.path().join("count"), dir.path().join("report"));
    let python = clients::need("python3", "python3");
    // Two signals are one where the second comes before the first was taken.
    for round in 0..5 {
        let mut host = Command::new(&python);
        // The last command keeps the shell from becoming the first.
        host.args(["-c", TERMINAL, "/bin/sh", "-c", "\"$@\"; true", "sh", RETRYSCOPE, "run", "--report-file"])
            .arg(&report)
            .arg("--")
            .arg(&python)
            .args(["-c", HUNG_UP])
            .arg(&count);
        let finished = clients::bare(&mut host).finish(SOON).ok();
        let told = std::fs::read_to_string(&count).expect("the command has told its count");
        assert_eq!(told, "1", "round {round}: {finished}");
        assert!(std::fs::metadata(&report).is_ok_and(|data| data.len() > 0), "round {round}: {finished}");
        for path in [&count, &report] {
            std::fs::remove_file(path).expect("making room for the next round");
        }
    }
}

/// A report that its file does not take is not lost, and the exit code stays
/// the command's.
#[test]
fn a_report_file_that_is_full() {
    let run = Run::new().no_report().option("--report-file").option("/dev/full");
    let outcome = run.go(words!["/bin/sh", "-c", "exit 3"]).code(3);
    let (why, report) = outcome.stderr.split_once('\n').expect("a sentence, then the report");
    for part in ["cannot write the report", "/dev/full", "No space left"] {
        assert!(why.contains(part), "{part}: {}", outcome.finished);
    }
    assert!(flat(report).to_lowercase().contains("connection"), "{}", outcome.finished);
    let json = Run::new().no_report().option("--report").option("json").option("--report-file").option("/dev/full");
    let outcome = json.go(words!["/bin/sh", "-c", "exit 3"]).code(3);
    Report::parse(&outcome.stderr[outcome.stderr.find('{').expect("a report")..]);
}

/// A report of before is there until there is a new one.
#[test]
fn a_report_file_outlives_what_cannot_be_started() {
    let dir = folder();
    let (report, broken) = (dir.path().join("report"), dir.path().join("broken"));
    // A shell writes it: what this process has open a child of another test's may still hold.
    let script = "printf '#!/no/such/interpreter\\n' >\"$1\" && chmod 755 \"$1\"";
    clients::bare(Command::new("/bin/sh").args(["-c", script, "sh"]).arg(&broken)).finish(SOON).ok();
    let older = "an older report, longer than what an empty run has to say\n".repeat(200);
    std::fs::write(&report, &older).expect("writing");
    let run = |command: OsString| Run::new().no_report().option("--report-file").option(&report).go([command]).finished;
    // Found missing before anything starts, and only by the kernel.
    for command in [OsString::from("no-such-command-here"), "/no/such/command".into(), broken.into()] {
        let finished: Finished = run(command.clone()).code(127);
        assert_eq!(std::fs::read_to_string(&report).expect("it is kept"), older, "{command:?}: {finished}");
    }
    let finished = run("true".into()).ok();
    let new = std::fs::read_to_string(&report).expect("a report");
    assert!(!new.is_empty() && !new.contains("an older report"), "{new}\n{finished}");
}

/// A pipe that nobody reads is refused at once instead of waited for.
#[test]
fn a_report_pipe_without_a_reader() {
    let dir = folder();
    let fifo = dir.path().join("pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let started = Run::new().no_report().option("--report-file").option(&fifo).start(words!["echo", "started"]);
    // Well below the deadline of a run.
    let finished = started.running.finish(SOON).code(73);
    assert!(finished.stdout.is_empty(), "the command was started: {finished}");
    assert!(finished.stderr.contains(fifo.to_str().expect("text")), "{finished}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
}

/// Cgroups that the command makes below its own and leaves are removed with
/// it, and at once.
#[test]
fn cgroups_of_the_commands_own() {
    let script = "own=\"$1$(sed -n 's/^0:://p' /proc/self/cgroup)\"; mkdir -p \"$own/one/two\" \"$own/three\" && \
                  sh -c 'echo $$ >\"$0/one/two/cgroup.procs\"' \"$own\" && \
                  echo \"$own\" && dirname \"$SSL_CERT_FILE\"";
    let outcome = Run::new().no_report().go(words!["/bin/sh", "-c", script, "sh", cgroup::mount()]).ok();
    let text = outcome.text();
    let (group, certificates) = text.trim().split_once('\n').expect("two lines");
    let base = Path::new(group).parent().expect("the instance's own cgroup");
    assert!(base.to_string_lossy().contains("/retryscope-"), "{base:?}");
    let remains = Remains { folder: certificates.into(), cgroup: base.into() };
    assert_eq!(remains.left(), [false, false], "a folder and a cgroup at {base:?}: {}", outcome.finished);
}

/// Pids come again: an empty cgroup that an earlier process of ours with this
/// one's pid has left is no obstacle.
#[test]
fn a_cgroup_that_was_left_by_the_same_pid() {
    let own = retryscope::redirect::cgroup::own().expect("our own cgroup");
    for left in ["", "/daemon", "/target/deeper"] {
        let before = format!("mkdir -p \"{}/retryscope-$$\"{left}", own.display());
        let started = run_after(&before, words!["--", "/bin/sh", "-c", "cat /proc/self/cgroup"]);
        let place = own.join(format!("retryscope-{}", started.pid));
        let finished = started.finish(SOON).ok();
        let ran_in = format!("/retryscope-{}/target", place.to_string_lossy().rsplit('-').next().expect("a pid"));
        assert!(finished.text().contains(&ran_in), "{left}: {finished}");
        gone(&place);
    }
}

/// What an instance leaves when it is killed together with its janitor.
struct Remains {
    folder: PathBuf,
    cgroup: PathBuf,
}

impl Remains {
    /// A cgroup called `retryscope-PID` and `after` of an instance that
    /// cannot be alive, since no pid is as high.
    fn cgroup(number: u32, after: &str) -> Self {
        clients::root();
        let pid = 5_000_000 + std::process::id() * 10 + number;
        let cgroup = cgroup::mount().join(format!("retryscope-{pid}{after}"));
        std::fs::create_dir_all(cgroup.join("target")).expect("making a cgroup");
        Self { folder: format!("/run/retryscope-{pid}-x").into(), cgroup }
    }

    /// The folder comes last: from then on any instance on this machine may
    /// remove both.
    fn and_folder(&self) {
        // Under another name, so that nobody sees it half made.
        let new = self.folder.with_file_name(format!(".{}", self.folder.file_name().expect("a name").display()));
        std::fs::create_dir(&new).expect("making a folder");
        std::fs::write(new.join("cgroup"), self.cgroup.as_os_str().as_bytes()).expect("writing");
        std::fs::write(new.join("ca.pem"), "left behind").expect("writing");
        std::fs::rename(&new, &self.folder).expect("renaming");
    }

    fn left(&self) -> [bool; 2] {
        [self.folder.exists(), self.cgroup.exists()]
    }
}

/// A cgroup and those below it, as far as they are empty.
fn remove_cgroups(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

impl Drop for Remains {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        let gone = || {
            remove_cgroups(&self.cgroup);
            (!self.cgroup.exists()).then_some(())
        };
        // The kernel counts a process that was killed a moment longer. A
        // second panic would abort and hide the first.
        let look = std::panic::AssertUnwindSafe(|| until("the cgroup is gone", SOON, gone));
        let removed = std::panic::catch_unwind(look);
        assert!(removed.is_ok() || std::thread::panicking(), "{} is left", self.cgroup.display());
    }
}

/// The next run removes what a dead instance left, unless somebody still
/// lives in it or it is not the instance's.
#[test]
fn what_dead_instances_left() {
    let (empty, used, other) = (Remains::cgroup(0, ""), Remains::cgroup(1, ""), Remains::cgroup(2, "-other"));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "echo $$ >\"$0/target/cgroup.procs\" && echo inside && exec cat"]).arg(&used.cgroup);
    let mut inhabitant = clients::bare(&mut shell);
    inhabitant.line("inside");
    for remains in [&empty, &used, &other] {
        remains.and_folder();
    }
    let run = || Run::new().no_report().go(words!["true"]).ok();
    run();
    assert_eq!(empty.left(), [false, false], "an empty one is removed");
    assert_eq!(used.left(), [true, true], "one in use is kept");
    assert_eq!(other.left(), [true, true], "a cgroup by another name is somebody else's");
    inhabitant.close_stdin();
    inhabitant.finish(SOON).ok();
    until("it counts as empty", SOON, || {
        let events = std::fs::read_to_string(used.cgroup.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    });
    run();
    assert_eq!(used.left(), [false, false], "one that is no longer in use is removed");
}

/// Behind a real sudo: what its line sets wins, also over the variables that
/// sudo sets itself; of those, the others are the user's own.
#[test]
fn variables_behind_sudo() {
    clients::root();
    let sudo = clients::need("sudo", "sudo");
    let user = "/users/own:/usr/bin:/bin";
    let set = "/set/in/between:/usr/bin:/bin";
    let path = |value: &str| OsString::from(format!("PATH={value}"));
    let home = || OsString::from("HOME=/nowhere/set");
    for (between, expected) in [
        (words!["env", path(set), home(), "X=1"], [set, "/nowhere/set", "1"]),
        (words!["env", path(set)], [set, "/nowhere/own", ""]),
        (words!["X=1"], [user, "/nowhere/own", "1"]),
        (words![], [user, "/nowhere/own", ""]),
    ] {
        let script = "printf '%s\\n' \"$PATH\" \"$HOME\" \"$X\"";
        let mut command = Command::new(&sudo);
        command.arg("-n").args(&between).args([RETRYSCOPE, "run", "--", "/bin/sh", "-c", script]);
        command.env_clear().envs(clients::environment()).env("PATH", user).env("HOME", "/nowhere/own");
        let finished = Running::start(&mut command).finish(SOON).ok();
        assert_eq!(finished.text().lines().collect::<Vec<_>>(), expected, "{between:?}: {finished}");
    }
}
