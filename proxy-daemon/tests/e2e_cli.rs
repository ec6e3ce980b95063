//! The command line: what is refused and how, as whom a command runs, and
//! the shape of the report.
mod common;

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};

use common::{Finished, NAME, Run, Running, SOON, TestCa, Upstream, cgroup, clients, run::retryscope};
use serde_json::Value;

/// The sentence is for a person: no panic, no debug output, not a page.
#[track_caller]
fn one_clear_sentence(finished: &Finished, hints: &[&str]) {
    let said = &finished.stderr;
    assert!(finished.stdout.is_empty(), "nothing belongs on stdout: {finished}");
    for bad in ["panicked", "RUST_BACKTRACE", "Err(", "Os {", "stack backtrace"] {
        assert!(!said.contains(bad), "'{bad}' is not for a person: {finished}");
    }
    assert!((1..=12).contains(&said.lines().count()), "one clear sentence, please: {finished}");
    for hint in hints {
        assert!(said.to_lowercase().contains(&hint.to_lowercase()), "'{hint}' should be said: {finished}");
    }
}

fn refused(words: Vec<std::ffi::OsString>, code: i32, hints: &[&str]) {
    let said = format!("{words:?}");
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(common::run::RETRYSCOPE);
    command.args(words).env_clear().envs(clients::environment()).env("TMPDIR", temporary.path());
    let running = Running::start(&mut command);
    let pid = running.pid.to_string();
    let finished = running.finish(SOON);
    assert_eq!(finished.code, code, "{said}: {finished}");
    one_clear_sentence(&finished, hints);
    let entries = |path: &Path| -> Vec<String> {
        let names = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let left: Vec<String> = entries(&cgroup::mount()).into_iter().filter(|name| name.contains(&pid)).collect();
    assert!(left.is_empty(), "{said} left the cgroup {left:?}");
    assert!(entries(temporary.path()).is_empty(), "{said} left {:?}", entries(temporary.path()));
}

/// Bad input of every kind: the right exit code and a sentence that names
/// what is wrong.
#[test]
fn bad_input() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("writing");
        path
    };
    let not_pem = file("not.pem", "this is no certificate\n");
    let bad_rules = file("rules.toml", "[[rule]]\nname = \"x\"\nwhen = \"~q ~~\"\nthen = { status = 429 }\n");
    let bad_toml = file("broken.toml", "[[rule]\n");
    let ca = dir.path().join("ca");
    retryscope(words!["ca", "init", "--ca-dir", ca.clone()]).finish(SOON).ok();
    let attach = |words: Vec<std::ffi::OsString>| -> Vec<std::ffi::OsString> {
        words!["attach", "--ca-dir", ca.clone(), "--for", "1s"].into_iter().chain(words).collect()
    };
    let cases = [
        (words!["run", "--frobnicate", "--", "true"], &["--frobnicate"][..]),
        (words!["frobnicate"], &["frobnicate"]),
        (words!["run"], &["command"]),
        (words!["run", "--"], &["command"]),
        (words!["run", "--rule", "~d a &", "--", "true"], &["^", "~d a &"]),
        (words!["run", "--rule", "~nosuch x => 429", "--", "true"], &["^", "~nosuch"]),
        (words!["run", "--rule", "~d a => 1000", "--", "true"], &["1000", "^"]),
        (words!["run", "--rule", "~d a", "--", "true"], &["=>"]),
        (words!["run", "--rule", "~attempt x => 429", "--", "true"], &["^", "~attempt"]),
        (words!["run", "--rule", "(~d a => 429", "--", "true"], &["^"]),
        (words!["run", "--rules", dir.path().join("absent.toml"), "--", "true"], &["absent.toml"]),
        (words!["run", "--rules", bad_rules.clone(), "--", "true"], &["rules.toml", "^"]),
        (words!["run", "--rules", bad_toml, "--", "true"], &["broken.toml"]),
        (words!["run", "--port", "0", "--", "true"], &["port"]),
        (words!["run", "--port", "65536", "--", "true"], &["65536"]),
        (words!["run", "--port", "https", "--", "true"], &["https"]),
        (words!["run", "--upstream-ca", dir.path().join("absent.pem"), "--", "true"], &["absent.pem"]),
        (words!["run", "--upstream-ca", not_pem, "--", "true"], &["not.pem"]),
        (words!["run", "--map-host", "nothing", "--", "true"], &["nothing"]),
        (words!["run", "--map-host", "a=b=c", "--", "true"], &["map-host"]),
        (words!["run", "--map-host", "a=127.0.0.1:99999", "--", "true"], &["99999"]),
        (words!["run", "--user", "no-such-user-here", "--", "true"], &["no-such-user-here"]),
        (words!["run", "--report", "xml", "--", "true"], &["xml"]),
        (words!["attach"], &["--cgroup", "--pid"]),
        (words!["attach", "--pid", "x"], &["pid"]),
        (attach(words!["--cgroup", "/sys/fs/cgroup/no-such-group"]), &["no-such-group"]),
        (attach(words!["--cgroup", dir.path()]), &["cgroup"]),
        (attach(words!["--pid", "999999999"]), &["999999999"]),
        (words!["attach", "--pid", "1", "--cgroup", "/", "--for", "1s"], &["--cgroup", "--pid"]),
        (words!["attach", "--pid", "1", "--for", "soon"], &["soon"]),
        (words!["ca", "frobnicate"], &["frobnicate"]),
    ];
    for (words, hints) in cases {
        refused(words, 64, hints);
    }
    refused(words!["run", "--report-file", "/no/such/folder/report", "--", "true"], 73, &["/no/such/folder/report"]);
}

/// A command that is not there, or not a program, ends as in a shell.
#[test]
fn commands_that_cannot_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let plain = dir.path().join("plain-file");
    std::fs::write(&plain, "not a program").expect("writing");
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    for (command, code, hint) in [
        (words!["no-such-command-here"], 127, "no-such-command-here"),
        (words!["/no/such/command"], 127, "/no/such/command"),
        (words![plain], 126, "plain-file"),
        (words![dir.path()], 126, "command"),
    ] {
        let outcome = Run::new().no_report().go(&command).code(code);
        let hint = if hint == "command" { "" } else { hint };
        one_clear_sentence(&outcome.finished, &[hint]);
    }
}

/// Without root: what is missing, and the exact line that adds it and keeps
/// the user's PATH and environment.
#[test]
fn without_root() {
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let binary = dir.path().join("retryscope");
    std::fs::copy(common::run::RETRYSCOPE, &binary).expect("copying the binary");
    let setpriv = clients::need("setpriv", "util-linux");
    let nobody = |words: &[&str]| {
        let mut command = Command::new(&setpriv);
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&binary).args(words);
        clients::bare(command.current_dir("/")).finish(SOON)
    };
    let finished = nobody(&["run", "--rule", "~d s3 & ~s => 429", "--", "python3", "my app.py"]).code(77);
    one_clear_sentence(&finished, &["root", "sudo", "PATH"]);
    let line = finished.stderr.lines().find(|line| line.contains("sudo ")).expect("the line to type");
    for part in ["run", "'~d s3 & ~s => 429'", "python3", "'my app.py'"] {
        assert!(line.contains(part), "the line to type lacks {part}: {finished}");
    }
    // The offered line is one that a shell takes, word for word.
    let words = Command::new("/bin/sh")
        .args(["-c", &format!("sudo() {{ printf '%s\\n' \"$@\"; }}; {}", &line[line.find("sudo ").expect("found")..])])
        .output()
        .expect("a shell");
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    for word in ["~d s3 & ~s => 429", "python3", "my app.py"] {
        assert!(words.lines().any(|it| it == word), "'{word}' is not one word of: {line}\n{words}");
    }
    one_clear_sentence(&nobody(&["attach", "--pid", "1"]).code(77), &["root", "sudo"]);
    // Bad input is told first: nobody should become root to learn of a typing error.
    nobody(&["run", "--frobnicate", "--", "true"]).code(64);
}

/// `--help` and `--version` are answers, not errors.
#[test]
fn help_and_version() {
    let help = retryscope(["--help"]).finish(SOON).ok();
    for word in ["run", "attach", "ca", "doctor"] {
        assert!(help.text().contains(word), "{help}");
    }
    let help = retryscope(["run", "--help"]).finish(SOON).ok();
    let options = [
        "--rule",
        "--rules",
        "--port",
        "--upstream-ca",
        "--map-host",
        "--intercept",
        "--passthrough",
        "--no-mount",
        "--allow-quic",
        "--user",
        "--report",
        "--report-file",
    ];
    for option in options {
        assert!(help.text().contains(option), "{option}: {help}");
    }
    assert!(retryscope(["--version"]).finish(SOON).ok().text().starts_with("retryscope "));
}

/// The command runs as whoever called sudo, with that user's groups, in the
/// caller's folder, with the caller's environment.
#[test]
fn runs_as_the_invoking_user() {
    let show = "id -u; id -g; id -G; pwd; echo $MY_VARIABLE";
    let groups = |user: &str| {
        let output = Command::new("id").args(["-G", user]).output().expect("id");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let run = || Run::new().no_report().cwd(Path::new("/usr")).env("MY_VARIABLE", "kept as it is");
    let shell = || words!["/bin/sh", "-c", show];
    let expect = |outcome: &common::Outcome, uid: &str, gid: &str, groups: &str| {
        let sorted = |text: &str| {
            let mut all: Vec<String> = text.split(' ').map(Into::into).collect();
            all.sort();
            all
        };
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(&lines[..2], [uid, gid], "{}", outcome.finished);
        assert_eq!(sorted(lines[2]), sorted(groups), "{}", outcome.finished);
        assert_eq!(&lines[3..], ["/usr", "kept as it is"], "{}", outcome.finished);
    };
    expect(&run().go(shell()).ok(), "0", "0", &groups("root"));
    let sudo = run().env("SUDO_UID", "65534").env("SUDO_GID", "65534").env("SUDO_USER", "nobody");
    expect(&sudo.go(shell()).ok(), "65534", "65534", &groups("nobody"));
    expect(&run().option("--user").option("daemon").go(shell()).ok(), "1", "1", &groups("daemon"));
    expect(&run().option("--user").option("1").go(shell()).ok(), "1", "1", &groups("daemon"));
    expect(&run().option("--user").option("1:7").go(shell()).ok(), "1", "7", "7");
}

/// The user that is not root is intercepted like root, and trusts by the
/// files that only it and root may read.
#[test]
fn another_user_is_intercepted() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for mount in [true, false] {
        let mut run = Run::new().to(NAME, upstream.address, &ca).env("SUDO_UID", "65534").env("SUDO_GID", "65534");
        let mut host = NAME.to_owned();
        if !mount {
            // Without the mount the name does not resolve.
            run = run.option("--no-mount");
            host = upstream.address.ip().to_string();
        }
        let outcome = run.go(words![clients::curl(), "-sS", format!("https://{host}/hello")]).ok();
        assert_eq!(outcome.text(), "hello from /hello\n");
        assert_eq!(outcome.report().connections("intercepted"), 1);
    }
}

/// No capability is left to the command, and no descriptor of ours leaks into
/// it.
#[test]
fn the_command_has_no_powers() {
    let script = "grep -E '^Cap(Eff|Prm|Amb|Inh)' /proc/self/status | cut -f2 | sort -u";
    let run = || Run::new().no_report().option("--user").option("nobody");
    let outcome = run().go(words!["/bin/sh", "-c", script]).ok();
    assert_eq!(outcome.text(), "0000000000000000\n", "{}", outcome.finished);
    let list = || words!["/bin/ls", "-l", "/proc/self/fd"];
    let descriptors = |outcome: &common::Outcome| -> Vec<String> {
        let text = outcome.text();
        let names = text.lines().filter_map(|line| line.split(" -> ").next()?.split(' ').next_back());
        names.map(ToOwned::to_owned).collect()
    };
    let (direct, through) = (Run::direct().go(list()).ok(), run().go(list()).ok());
    assert_eq!(descriptors(&through), descriptors(&direct), "{}", through.finished);
}

/// A command that connects to nothing: said in a sentence, with reasons.
#[test]
fn no_connections_is_said() {
    let outcome = Run::new().no_report().go(words!["true"]).ok();
    let said = outcome.stderr.to_lowercase();
    assert!(said.contains("no tcp connection") || said.contains("no connection"), "{}", outcome.finished);
    assert!(said.contains("443"), "the reasons should name the watched port: {}", outcome.finished);
    assert!(outcome.stdout.is_empty());
}

/// The text report: a verdict and the numbers, on stderr or in a file.
#[test]
fn text_report() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let command = || words![clients::curl(), "-sS", format!("https://{NAME}/hello")];
    let outcome = Run::new().no_report().to(NAME, upstream.address, &ca).rule("~s => 503").go(command()).ok();
    assert_eq!(outcome.text(), "hello from /hello\n", "stdout is the command's alone");
    for word in ["curl", "503", "1"] {
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.finished);
    }
    let run = Run::new().no_report().to(NAME, upstream.address, &ca);
    let file = run.dir().join("report.txt");
    let folder = run.dir().to_path_buf();
    let mut started = run.option("--report-file").option(&file).start(words![
        "/bin/sh",
        "-c",
        format!("curl -sS https://{NAME}/hello; echo done; cat")
    ]);
    started.line("done");
    assert!(folder.exists());
    let pid = started.pid;
    started.close_stdin();
    let reading = common::until("the report is written", SOON, || {
        std::fs::read_to_string(&file).ok().filter(|text| text.contains("curl"))
    });
    assert!(reading.contains("200"), "{reading}");
    let outcome = started.finish().ok();
    assert!(!outcome.stderr.contains("calls"), "the report went to the file ({pid}): {}", outcome.finished);
}

fn keys(value: &Value, expected: &[&str], place: &str) {
    for key in expected {
        assert!(value.get(key).is_some(), "'{key}' is missing in {place}: {value:#}");
    }
}

/// Every field of the JSON report is there, of its kind, and the totals are
/// the sums of the rows.
#[test]
fn json_report_has_its_shape() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/hello");
    let command = words![clients::python(), clients::script("signalled.py"), url, "2", "1"];
    let outcome = Run::new().to(NAME, upstream.address, &ca).rule("~s => 503").go(command).ok();
    let report = outcome.report();
    keys(&report.0, &["schema", "seed", "started", "ended", "totals", "processes"], "the report");
    keys(&report.0["totals"], &["calls", "attempts", "retries", "give_ups"], "totals");
    let row = report.process("signalled.py");
    let fields = [
        "pid",
        "parent",
        "command",
        "exe",
        "cgroup",
        "calls",
        "attempts",
        "retries",
        "retries_exact",
        "retries_inferred",
        "give_ups",
        "backoff",
        "stalled_ms",
        "observed_ms",
        "connections",
        "operations",
    ];
    keys(row, &fields, "a process");
    keys(&row["backoff"], &["count", "total_ms", "max_ms"], "backoff");
    keys(&row["connections"], &["intercepted", "tunnelled", "refused"], "connections");
    let fields = [
        "service",
        "operation",
        "calls",
        "attempts",
        "retries",
        "give_ups",
        "statuses",
        "injected",
        "errors",
        "backoff",
    ];
    let operation = &row["operations"][0];
    keys(operation, &fields, "an operation");
    keys(&operation["backoff"], &["count", "total_ms", "max_ms"], "an operation's backoff");
    for field in ["calls", "attempts", "retries", "give_ups"] {
        assert_eq!(report.total(field), report.sum(field), "{field}: {report}");
    }
    let numbers = ["calls", "attempts", "retries", "retries_exact", "give_ups"].map(|field| report.sum(field));
    assert_eq!(numbers, [1, 2, 1, 1, 1], "{report}");
    assert_eq!(report.counts("injected"), [("503".to_owned(), 2)].into(), "{report}");
    let [stalled, observed] = ["stalled_ms", "observed_ms"].map(|field| common::report::amount(row, field));
    assert!((900.0..=observed).contains(&stalled), "{report}");
    assert!(row["cgroup"].as_str().is_some_and(|path| path.starts_with('/')), "{report}");
}

/// On stderr, the JSON report is the last thing and stands by itself.
#[test]
fn json_report_on_stderr() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let outcome = Run::new()
        .no_report()
        .option("--report")
        .option("json")
        .to(NAME, upstream.address, &ca)
        .go(words![clients::curl(), "-sS", format!("https://{NAME}/hello")])
        .ok();
    let report = common::Report::parse(&outcome.stderr);
    assert_eq!(report.total("attempts"), 1);
    assert_eq!(outcome.text(), "hello from /hello\n");
}

/// `doctor` says what it found, and that this machine will do.
#[test]
fn doctor() {
    let mut command = Command::new(common::run::RETRYSCOPE);
    command.arg("doctor").env_clear().envs(clients::environment());
    let finished = Running::start(&mut command).finish(SOON).ok();
    let text = finished.text().to_lowercase() + &finished.stderr.to_lowercase();
    for word in ["kernel", "cgroup", "connect4", "connect6", "sendmsg4", "getpeername4", "mount", "ca-certificates"] {
        assert!(text.contains(word), "{word}: {finished}");
    }
}
