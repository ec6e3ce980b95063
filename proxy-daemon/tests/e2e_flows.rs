//! `retryscope flows`: what it shows of real clients' attempts, as they end.
mod common;

use std::{process::Command, time::Duration};

use common::{
    Finished, NAME, Run, Running, SOON, TestCa, Upstream, Wire, clients,
    run::{RETRYSCOPE, RunningRun, retryscope},
    servers::{AWS, Moto},
    show, until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const RULE: &str = "~svc s3 & ~op ListBuckets & ~attempt ..2 => 429 name \"twice\"";

/// boto3 against moto, waiting for what to call.
fn boto(moto: &Moto, run: Run) -> RunningRun {
    let mut run = run.upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let started = run.start(words![clients::python(), clients::script("boto_steps.py")]);
    started.line_within(Duration::from_secs(60), "ready");
    started
}

fn call(boto: &mut RunningRun, at: usize, method: &str) -> usize {
    boto.write(format!("{method}\n").as_bytes());
    boto.line_after(at, &format!("{method} ")).1
}

fn flows(pid: i32, words: &[&str]) -> Running {
    let pid = pid.to_string();
    let mut running = retryscope(["flows", "--instance", &pid].iter().chain(words));
    running.close_stdin();
    running
}

fn finish(running: Running) -> Finished {
    running.finish(SOON)
}

/// Lines of JSON, once so many attempts are kept.
fn attempts(pid: i32, words: &[&str], count: usize) -> Vec<Value> {
    until(&format!("{count} attempts are kept"), SOON, || {
        let words: Vec<&str> = ["--json"].iter().chain(words).copied().collect();
        let shown = finish(flows(pid, &words)).ok().text();
        let lines: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (lines.len() >= count).then_some(lines)
    })
}

#[test]
fn boto3_is_seen_as_it_retries() {
    let moto = Moto::shared();
    let mut boto = boto(&moto, Run::new().rule(RULE));
    let pid = boto.pid;
    let followed = flows(pid, &["--follow"]);
    let throttled = flows(pid, &["~c 429", "--follow", "--json"]);
    // Before they follow, nothing of theirs is there to wait for: the history
    // and what follows are one sequence, whenever they begin.
    let at = call(&mut boto, 0, "list_buckets");
    let first = followed.line("200→429");
    assert!(first.contains("s3.ListBuckets") && first.contains("1/4"), "{first}");
    let third = followed.line(" 3/4 ");
    assert!(third.contains(" 200 ") && third.contains('+'), "the wait before it: {third}");
    throttled.line("\"attempt\":2");

    let lines = attempts(pid, &[], 3);
    let numbers: Vec<u64> = lines.iter().map(|line| line["attempt"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, [1, 2, 3], "oldest first: {lines:?}");
    for line in &lines[..2] {
        assert_eq!((&line["status"], &line["told"], &line["rule"]), (&200.into(), &429.into(), &"twice".into()));
        assert_eq!(
            (&line["service"], &line["operation"], &line["max"]),
            (&"s3".into(), &"ListBuckets".into(), &4.into())
        );
    }
    assert!(lines[1]["waited_ms"].as_f64().is_some_and(|waited| waited > 0.0), "{}", lines[1]);
    assert_eq!(lines[1]["waited_for_rule"], true);
    assert_eq!(attempts(pid, &["--limit", "1"], 1)[0]["attempt"], 3, "the latest");
    assert_eq!(attempts(pid, &["~retry"], 2).len(), 2);
    let wrong = finish(flows(pid, &["~dd s3"])).code(64);
    assert!(wrong.stderr.contains("did you mean ~d?") && wrong.stderr.contains("^^^"), "{wrong}");

    call(&mut boto, at, "list_buckets");
    until("the second call is followed", SOON, || {
        (show(&followed.stdout.bytes()).matches(" 3/4 ").count() == 2).then_some(())
    });
    boto.close_stdin();
    let report = boto.finish().ok().report();
    // Whoever follows ends with the instance, and has seen every attempt.
    let (followed, throttled) = (finish(followed).ok(), finish(throttled).ok());
    assert_eq!(followed.text().lines().count() as u64, report.total("attempts"), "{followed}");
    assert_eq!(throttled.text().lines().count(), 4, "{throttled}");
    for shown in [followed.text(), throttled.text()] {
        assert!(!shown.contains("hush") && !shown.contains("AKIDEXAMPLE") && !shown.contains('\u{1b}'), "{shown}");
    }
}

#[test]
fn it_ends_with_its_reader_and_when_asked() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca);
    let mut started = run.start(words!["/bin/sh", "-c", "curl -sS -o /dev/null https://$0/one; echo asked; cat", NAME]);
    started.line("asked");
    let pid = started.pid.to_string();
    let one = attempts(started.pid, &[], 1);
    assert_eq!((&one[0]["method"], &one[0]["url"]), (&"GET".into(), &format!("https://{NAME}/one").into()));
    assert_eq!(one[0]["comm"], "curl");

    let asked = flows(started.pid, &["--follow"]);
    asked.line("/one");
    asked.signal(Signal::SIGINT);
    assert_eq!(finish(asked).ok().stderr, "");

    // Nothing more comes, and still it ends when nobody reads.
    let mut piped = clients::bare(
        Command::new("/bin/sh")
            .arg("-c")
            .arg("\"$0\" flows --instance \"$1\" --follow | head -n 1")
            .arg(RETRYSCOPE)
            .arg(&pid),
    );
    piped.close_stdin();
    let piped = finish(piped).ok();
    assert!(piped.text().contains("/one") && piped.stderr.is_empty(), "{piped}");

    started.close_stdin();
    started.finish().ok();
    let gone = finish(retryscope(["flows", "--instance", &pid]));
    // Others' instances may be running.
    assert!([64, 69].contains(&gone.code) && gone.stderr.contains("running"), "{gone}");
}

#[test]
fn nothing_is_kept_where_nothing_may_be() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option("--keep").option("0");
    let mut started = run.start(words!["/bin/sh", "-c", "curl -sS -o /dev/null https://$0/one; echo asked; cat", NAME]);
    started.line("asked");
    assert_eq!(finish(flows(started.pid, &[])).ok().text(), "");
    let refused = finish(flows(started.pid, &["--follow"])).code(64);
    assert!(refused.stderr.contains("--keep 0"), "{refused}");
    started.close_stdin();
    let report = started.finish().ok().report();
    assert_eq!(report.total("attempts"), 1);
    let wrong = finish(retryscope(["run", "--keep", "1000001", "--", "true"])).code(64);
    assert!(wrong.stderr.contains("from 0 to 1000000"), "{wrong}");
}

/// A reason phrase, header fields and a URL that would drive a terminal.
#[test]
fn a_hostile_upstream_does_not_reach_the_terminal() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        while conn.head().await.is_ok() {
            let mut answer =
                b"HTTP/1.1 503 \x9b2J\xff\xfe No\r\nContent-Length: 0\r\nX-Odd: \xff\xc0\x80\r\nX-Code: ".to_vec();
            answer.extend_from_slice(&[b'x'; 100_000]);
            answer.extend_from_slice(b"\r\nx-amzn-errortype: Slow\x9b2JDown\r\n\r\n");
            conn.send(answer).await?;
        }
        Ok(())
    });
    let run = Run::new().to(NAME, wire.address, &ca);
    let mut started = run.start(words![clients::python(), "-c", clients::STRANGER, NAME]);
    started.line("asked");
    let kept = attempts(started.pid, &[], 1);
    assert_eq!((&kept[0]["status"], &kept[0]["code"]), (&503.into(), &Value::Null), "{}", kept[0]);
    let screen = Screen::start(80, 24, &format!("{RETRYSCOPE} flows --instance {}", started.pid));
    let shown = screen.shows("503");
    let lines: Vec<&str> = shown.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.len() == 2 && lines[0].contains("OPERATION"), "nothing was cleared or broken: {shown}");
    let piped = finish(flows(started.pid, &[])).ok().text();
    assert!(!piped.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{piped:?}");
    assert!(piped.contains("<script>") && piped.contains("x\\u{1b}[2J"), "told, not obeyed: {piped:?}");
    started.close_stdin();
    started.finish();
}

/// On a terminal of 80 columns: what tmux shows.
#[test]
fn a_terminal_of_80_columns() {
    let moto = Moto::shared();
    let mut boto = boto(&moto, Run::new().rule(RULE));
    let screen = Screen::start(80, 24, &format!("{RETRYSCOPE} flows --follow --instance {}", boto.pid));
    screen.shows("OPERATION");
    call(&mut boto, 0, "list_buckets");
    let shown = screen.shows(" 3/4 ");
    let lines: Vec<&str> = shown.lines().filter(|line| line.contains("s3.ListBuckets")).collect();
    assert_eq!(lines.len(), 3, "no line is broken in two: {shown}");
    assert!(lines[0].contains("200→429") && lines[2].contains('+'), "{shown}");
    boto.close_stdin();
    boto.finish().ok();
    screen.shows("the instance has ended");
}

/// A terminal of a server of its own, which goes with it.
struct Screen {
    socket: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Screen {
    fn start(width: u16, height: u16, command: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
        let screen = Self { socket: folder.path().join("tmux"), _folder: folder };
        let (width, height) = (width.to_string(), height.to_string());
        // It stays when the command ends.
        let command = format!("{command}; cat");
        screen.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &command]);
        screen
    }

    fn tmux(&self, words: &[&str]) -> Finished {
        let tmux = clients::need("tmux", "tmux");
        let mut command = Command::new(tmux);
        command.arg("-S").arg(&self.socket).arg("-u").args(words).env("TERM", "xterm-256color");
        let mut running = clients::bare(&mut command);
        running.close_stdin();
        running.finish(SOON)
    }

    /// Waits until the screen has this; returns all of it.
    #[track_caller]
    fn shows(&self, part: &str) -> String {
        until(&format!("the terminal shows `{part}`"), SOON, || {
            let shown = self.tmux(&["capture-pane", "-p"]).text();
            shown.contains(part).then_some(shown)
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
