//! What goes wrong upstream goes wrong in kind at the client; what is not the
//! target's is not touched; and however retryscope ends, the command goes on
//! and nothing is left.
mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    NAME, Run, SOON, TestCa, TestCgroup, Upstream, Wire,
    ca::Leaf,
    cgroup, clients,
    process::{alive, descendants},
    run::RunningRun,
    until,
    wire::{Face, WireConn},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Kills what a test left running, also on panic.
struct Leftover(i32);

impl Drop for Leftover {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    ResetBeforeAnswer,
    CloseBeforeAnswer,
    CutBeforeAnswer,
    CloseInBody,
    CutInBody,
    CloseInChunks,
    ResetInHead,
}

async fn misbehave(mut conn: WireConn, ending: Ending) -> std::io::Result<()> {
    use Ending::*;
    conn.head().await?;
    match ending {
        ResetBeforeAnswer | CloseBeforeAnswer | CutBeforeAnswer => {}
        ResetInHead => conn.send("HTTP/1.1 200 OK\r\nContent-Le").await?,
        CloseInChunks => {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await?;
        }
        CloseInBody | CutInBody => {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello").await?;
        }
    }
    match ending {
        ResetBeforeAnswer | ResetInHead => conn.reset(),
        CloseBeforeAnswer | CloseInBody | CloseInChunks => conn.close().await,
        CutBeforeAnswer | CutInBody => conn.cut(),
    }
    Ok(())
}

/// Resets, orderly and truncated ends, before and within the answer: the
/// client sees what a direct run shows it, and the report names it.
#[test]
fn upstream_failures_are_mirrored() {
    use Ending::*;
    for (ending, error) in [
        (ResetBeforeAnswer, "reset"),
        (CloseBeforeAnswer, "closed"),
        (CutBeforeAnswer, "closed"),
        (ResetInHead, "reset"),
        (CloseInBody, "closed"),
        (CutInBody, "closed"),
        (CloseInChunks, "closed"),
    ] {
        let codes = [true, false].map(|direct| {
            let ca = TestCa::new();
            let wire = Wire::start(&ca, move |conn| misbehave(conn, ending));
            let command = words![clients::curl(), "-sS", "--http1.1", "-m", "20", format!("https://{NAME}/")];
            let outcome = Run::via(direct).to(NAME, wire.address, &ca).go(command);
            if !direct {
                let report = outcome.report();
                assert_eq!(report.count("errors", error), 1, "{ending:?}: {report}");
                assert_eq!(report.counts("statuses").get("502"), None, "{ending:?}: {report}");
                assert_eq!(report.total("attempts"), 1, "{ending:?}: {report}");
            }
            (outcome.finished.code, outcome.text())
        });
        assert_ne!(codes[0].0, 0, "{ending:?}: a direct curl should fail");
        assert_eq!(codes[1], codes[0], "{ending:?}: through retryscope and direct");
    }
}

/// Reads by the socket itself: Python's TLS takes a reset for an end.
const UNTIL_THE_END: &str = r#"
import socket, ssl
context = ssl.create_default_context()
sock = socket.create_connection(("upstream.test", 443), timeout=20)
came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(came, goes, server_hostname="upstream.test")
plain = b""

def until(step):
    while True:
        try:
            result = step()
            sock.sendall(goes.read())
            return result
        except ssl.SSLWantReadError:
            sock.sendall(goes.read())
            piece = sock.recv(65536)
            if not piece:
                raise EOFError("FIN")
            came.write(piece)

until(tls.do_handshake)
until(lambda: tls.write(b"PUT / HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 4\r\n\r\n"))
while b"hello" not in plain:
    plain += until(lambda: tls.read(1000))
until(lambda: tls.write(b"more"))
try:
    print("data or close_notify", until(lambda: tls.read(1000)))
except (OSError, EOFError) as error:
    print(type(error).__name__)
"#;

/// A reset in the middle of a body is one for the client as well; an end
/// without close_notify is one without.
#[test]
fn reset_in_the_middle_of_a_body() {
    for (reset, error, name) in [(true, "ConnectionResetError\n", "reset"), (false, "EOFError\n", "closed")] {
        for direct in [true, false] {
            let ca = TestCa::new();
            let wire = Wire::start(&ca, move |mut conn| async move {
                conn.head().await?;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello").await?;
                // The client must have the first bytes: a reset overtakes what is on its way.
                conn.until("more").await?;
                if reset {
                    conn.reset();
                } else {
                    conn.cut();
                }
                Ok(())
            });
            let command = words![clients::python(), "-c", UNTIL_THE_END];
            let outcome = Run::via(direct).to(NAME, wire.address, &ca).go(command).ok();
            assert_eq!(outcome.text(), error, "direct={direct}: {}", outcome.finished);
            if !direct {
                assert_eq!(outcome.report().count("errors", name), 1, "{}", outcome.report());
            }
        }
    }
}

/// HTTP/2: a stream that the upstream resets is reset for the client with the
/// same code, and the connection lives on.
#[test]
fn http2_stream_errors_keep_their_code() {
    for code in [2_u32, 7, 8, 11] {
        let ca = TestCa::new();
        let face = Face { alpn: &["h2"], ..Face::default() };
        let wire = Wire::with(&ca, face, move |mut conn| async move {
            conn.until("SM\r\n\r\n").await?;
            conn.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            loop {
                let head = conn.exact(9).await?;
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                conn.exact(length).await?;
                match head[3] {
                    // SETTINGS that are not an acknowledgement
                    4 if head[4] & 1 == 0 => conn.send([0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
                    // HEADERS
                    1 => {
                        let mut frame = vec![0, 0, 4, 3, 0];
                        frame.extend_from_slice(&head[5..9]);
                        frame.extend_from_slice(&code.to_be_bytes());
                        conn.send(frame).await?;
                    }
                    _ => {}
                }
            }
        });
        let command = words![clients::python(), clients::script("h2_trailers.py"), NAME, "/"];
        let outcome = Run::new().to(NAME, wire.address, &ca).go(command).ok();
        assert_eq!(outcome.json()["reset"], code, "{}", outcome.finished);
        assert_eq!(outcome.report().count("errors", "reset"), 1, "{}", outcome.report());
    }
}

/// Nobody listens upstream: the client sees its connection reset, not a page
/// of ours, and the report counts a refused connection.
#[test]
fn refused_upstream() {
    let ca = TestCa::new();
    let nobody = common::own_address(443);
    let command = words![clients::curl(), "-sS", "-m", "20", format!("https://{NAME}/")];
    let outcome = Run::new().to(NAME, nobody, &ca).go(command).code(35);
    assert!(outcome.stdout.is_empty(), "{}", outcome.finished);
    assert!(outcome.stderr.to_lowercase().contains("reset"), "{}", outcome.finished);
    let report = outcome.report();
    assert_eq!((report.total("attempts"), report.count("errors", "refused")), (1, 1), "{report}");
    assert_eq!(report.connections("intercepted"), 0, "{report}");
    assert_eq!(report.connections("refused"), 1, "{report}");
}

/// A certificate that a direct client would not take is refused towards the
/// client with a TLS alert, whatever the client would have accepted from us.
#[test]
fn bad_upstream_certificates() {
    for leaf in [Leaf::Expired, Leaf::WrongName, Leaf::UnknownIssuer] {
        let ca = TestCa::new();
        let upstream = Upstream::with(&ca, leaf, &[NAME], &["h2", "http/1.1"]);
        let url = format!("https://{NAME}/hello");
        let direct =
            Run::direct().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sS", url.clone()]).code(60);
        assert!(direct.stdout.is_empty());
        for flag in ["-sS", "-sSk"] {
            let command = words![clients::curl(), flag, url.clone()];
            let outcome = Run::new().to(NAME, upstream.address, &ca).go(command);
            // curl has a sentence of its own for the alert `certificate_expired`.
            let (code, said) = if leaf == Leaf::Expired { (60, "verification failed") } else { (35, "alert") };
            let outcome = outcome.code(code);
            assert!(outcome.stdout.is_empty(), "{leaf:?}: {}", outcome.finished);
            assert!(outcome.stderr.contains(said), "{leaf:?}: {}", outcome.finished);
            let report = outcome.report();
            assert_eq!(report.connections("intercepted"), 0, "{leaf:?}: {report}");
            assert_eq!(report.connections("refused"), 1, "{leaf:?}: {report}");
            assert_eq!((report.total("attempts"), report.count("errors", "tls")), (1, 1), "{leaf:?}: {report}");
        }
        assert!(
            upstream.received().is_empty(),
            "{leaf:?}: a request was sent to an upstream that could not be trusted"
        );
        // A person is told, too.
        let outcome = Run::new().no_report().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sS", url]);
        assert!(outcome.stderr.contains("certificate"), "{leaf:?}: {}", outcome.finished);
        assert!(outcome.stderr.contains(NAME), "{leaf:?}: {}", outcome.finished);
    }
}

/// A client that goes away in the middle takes its upstream connection along.
#[test]
fn the_clients_end_reaches_the_upstream() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nhello").await?;
        // An error is as good an end as an orderly one.
        let _ = conn.ended().await;
        conn.note("the client is gone");
        Ok(())
    });
    let script = format!("curl -sN https://{NAME}/ | head -c 5 >/dev/null & wait; echo over; read x");
    let mut started = Run::new().to(NAME, wire.address, &ca).start(words!["/bin/bash", "-c", script]);
    until("the client has its first bytes", SOON, || (!wire.heads().is_empty()).then_some(()));
    // curl notices that nobody reads only when it writes again; it is ended here by pid.
    for pid in descendants(started.pid) {
        let is_curl = procfs::process::Process::new(pid).and_then(|it| it.stat()).is_ok_and(|it| it.comm == "curl");
        if is_curl {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    wire.wait_for("the client is gone");
    started.line("over");
    started.write(b"x\n");
    let outcome = started.finish();
    // That the client lost interest is no failure of the upstream's.
    let report = outcome.report();
    assert_eq!((report.count("statuses", "200"), report.counts("errors").len()), (1, 0), "{report}");
}

fn looping() -> Vec<std::ffi::OsString> {
    words![clients::python(), clients::script("loop.py"), NAME]
}

/// Asks a loop for one connection.
fn once(running: &mut common::Running, from: &mut usize, what: &str) -> Value {
    running.write(format!("{what}\n").as_bytes());
    let (line, end) = running.line_after(*from, "issuer");
    *from = end;
    serde_json::from_str(&line).expect("JSON from the loop")
}

fn intercepted(row: &Value) -> bool {
    let issuer = row["issuer"].as_str().unwrap_or_default();
    assert_ne!(issuer, "none", "the connection failed: {row}");
    !issuer.contains("retryscope test authority")
}

/// A process outside the cgroup is not touched, while one inside is.
#[test]
fn outside_the_cgroup() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut inside = Run::new().to(NAME, upstream.address, &ca).start(looping());
    let mut outside = clients::bare(
        Command::new(clients::python()).arg(clients::script("loop.py")).arg(upstream.address.ip().to_string()),
    );
    let (mut at_inside, mut at_outside) = (0, 0);
    for _ in 0..3 {
        assert!(intercepted(&once(&mut inside, &mut at_inside, "go")));
        assert!(!intercepted(&once(&mut outside, &mut at_outside, "go")));
    }
    outside.close_stdin();
    outside.finish(SOON).ok();
    inside.close_stdin();
    let report = inside.finish().ok().report();
    assert_eq!(report.connections("intercepted"), 3, "{report}");
    assert_eq!(report.processes().len(), 1, "{report}");
}

/// Port 80 is not touched, nor counted.
#[test]
fn port_80() {
    let ca = TestCa::new();
    let face = Face { port: 80, leaf: None, ..Face::default() };
    let wire = Wire::with(&ca, face, |mut conn| async move {
        conn.head().await?;
        let peer = conn.peer;
        conn.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{peer}")).await?;
        conn.close().await;
        Ok(())
    });
    let url = format!("http://{}/", wire.address);
    let command = words![clients::curl(), "-sS", "-w", "|%{local_ip}:%{local_port}", url];
    let outcome = Run::new().go(command).ok();
    let text = outcome.text();
    let (seen, own) = text.split_once('|').expect("two addresses");
    assert_eq!(seen, own, "the upstream's peer is the client itself");
    let report = outcome.report();
    assert_eq!(report.connections("intercepted") + report.connections("tunnelled"), 0, "{report}");
    assert_eq!(report.total("attempts"), 0, "{report}");
}

/// Addresses at which a process or its descendants listen.
fn listeners(pid: i32) -> Vec<SocketAddr> {
    let inodes: Vec<u64> = std::iter::once(pid)
        .chain(descendants(pid))
        .filter_map(|pid| procfs::process::Process::new(pid).ok()?.fd().ok())
        .flatten()
        .filter_map(|fd| match fd.ok()?.target {
            procfs::process::FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entries = tables.into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.state == procfs::net::TcpState::Listen && inodes.contains(&entry.inode))
        .map(|entry| entry.local_address)
        .collect()
}

/// The daemon's listeners close a connection that no redirect explains: they
/// are nobody's open proxy. They are on loopback alone.
#[test]
fn a_stray_connection_is_refused() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut run = Run::new().to(NAME, upstream.address, &ca).start(looping());
    run.line("ready");
    let found = listeners(run.pid);
    assert!(!found.is_empty(), "the daemon listens nowhere?");
    for address in found {
        assert!(address.ip().is_loopback(), "{address} can be reached from elsewhere");
        let mut stream = TcpStream::connect(address).expect("a connection to the listener");
        stream.set_read_timeout(Some(SOON)).expect("a deadline");
        // Closed without a word, before or while we speak.
        let _ = stream.write_all(b"\x16\x03\x01\x00\x05hello");
        let mut answer = [0; 100];
        match stream.read(&mut answer) {
            Ok(read) => assert_eq!(read, 0, "{address} answered a stray: {:?}", &answer[..read]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{address}: {error}"),
        }
    }
    run.close_stdin();
    let report = run.finish().ok().report();
    assert_eq!(report.connections("intercepted"), 0, "{report}");
}

/// What a run has made for its command, as the command itself sees it.
struct Traces {
    command: i32,
    cgroup: PathBuf,
    cgroup_id: u64,
    folder: PathBuf,
}

fn traces(run: &RunningRun) -> Traces {
    let line: Value = serde_json::from_str(&run.line("ready")).expect("JSON from the loop");
    let command = i32::try_from(line["ready"].as_i64().expect("a pid")).expect("a pid");
    let cgroup = cgroup::of(command).expect("the command's cgroup");
    let environment = procfs::process::Process::new(command).and_then(|it| it.environ()).expect("its environment");
    let bundle = environment.get(std::ffi::OsStr::new("SSL_CERT_FILE")).expect("SSL_CERT_FILE is set for the command");
    let folder = Path::new(bundle).parent().expect("a folder").to_path_buf();
    let cgroup_id = cgroup::id(&cgroup);
    assert!(folder.exists() && cgroup_id != 0);
    assert!(
        !cgroup::links(cgroup_id).is_empty(),
        "no BPF link is seen at {}, so its end would not be",
        cgroup.display()
    );
    Traces { command, cgroup, cgroup_id, folder }
}

fn nothing_left(traces: &Traces) {
    until("the command's cgroup is gone", SOON, || (!traces.cgroup.exists()).then_some(()));
    until("the folder with the certificate is gone", SOON, || (!traces.folder.exists()).then_some(()));
    assert!(cgroup::links(traces.cgroup_id).is_empty(), "BPF links are left");
    let above = traces.cgroup.parent().expect("a parent");
    if above.file_name().is_some_and(|name| name.to_string_lossy().contains("retryscope")) {
        until("the cgroup above is gone", SOON, || (!above.exists()).then_some(()));
    }
}

/// An ordinary end leaves nothing.
#[test]
fn an_ordinary_end_leaves_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut run = Run::new().to(NAME, upstream.address, &ca).start(looping());
    let traces = traces(&run);
    let mut at = 0;
    assert!(intercepted(&once(&mut run, &mut at, "go")));
    run.close_stdin();
    run.finish().ok();
    // At once, not in a while.
    assert!(!traces.cgroup.exists(), "{} is left", traces.cgroup.display());
    assert!(!traces.folder.exists(), "{} is left", traces.folder.display());
    nothing_left(&traces);
}

/// `kill -9` during traffic: the command goes on, its next connection goes
/// direct, and once it has ended no cgroup, folder or link is left.
#[test]
fn killed_during_traffic() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let script = format!("curl -sN https://{NAME}/drip >/dev/null & exec \"$@\"");
    let command = words!["/bin/sh", "-c", script, "sh"].into_iter().chain(looping());
    let mut run = Run::new().to(NAME, upstream.address, &ca).start(command);
    let traces = traces(&run);
    let _command = Leftover(traces.command);
    upstream.wait_for("the stream's request", |request| request.target == "/drip");
    let mut at = 0;
    assert!(intercepted(&once(&mut run, &mut at, "go")));
    run.signal(Signal::SIGKILL);
    until("retryscope is gone", SOON, || run.ended().then_some(()));
    for _ in 0..3 {
        assert!(!intercepted(&once(&mut run, &mut at, "go")), "a connection after the kill was still intercepted");
    }
    assert!(alive(traces.command), "the command goes on");
    assert!(cgroup::links(traces.cgroup_id).is_empty(), "BPF links are left although their owner is gone");
    run.close_stdin();
    until("the command has ended", SOON, || (!alive(traces.command)).then_some(()));
    nothing_left(&traces);
}

/// The command's exit code is retryscope's own; a signal's is 128 and its
/// number.
#[test]
fn exit_codes() {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -HUP $$", 129),
    ] {
        let outcome = Run::new().go(words!["/bin/sh", "-c", script]).code(code);
        assert!(outcome.stdout.is_empty(), "{script}: {}", outcome.finished);
        outcome.report();
    }
}

/// Signals to retryscope reach the command, once; the command decides what
/// becomes of them, and the report is still written.
#[test]
fn signals_are_forwarded() {
    let script = "import signal, sys\ncount = 0\n\
        def got(number, frame):\n    global count\n    count += 1\n    print('got', number, flush=True)\n\
        for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1'): signal.signal(getattr(signal, name), got)\n\
        print('ready', flush=True)\nsys.stdin.read()\nprint('count', count)\nsys.exit(5)\n";
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        let mut run = Run::new().start(words![clients::need("python3", "python3"), "-c", script]);
        run.line("ready");
        run.signal(signal);
        run.line(&format!("got {}", signal as i32));
        run.close_stdin();
        let outcome = run.finish().code(5);
        assert!(outcome.text().ends_with("count 1\n"), "{signal}: {}", outcome.finished);
        outcome.report();
    }
    let run = Run::new().start(words!["/bin/sh", "-c", "echo ready; exec sleep 1000"]);
    run.line("ready");
    run.signal(Signal::SIGTERM);
    run.finish().code(143).report();
}

/// stdin, stdout and stderr are the command's own, byte for byte, and nothing
/// of retryscope's is on stdout.
#[test]
fn standard_streams() {
    let bytes = common::pattern(1_000_000);
    let outcome = Run::new().stdin(&bytes).start(words!["cat"]).finish().ok();
    assert!(outcome.stdout == bytes, "stdout is not what went into stdin");
    let outcome = Run::new().go(words!["/bin/sh", "-c", "echo to-out; echo to-err >&2"]).ok();
    assert_eq!(outcome.text(), "to-out\n");
    assert!(outcome.stderr.contains("to-err\n"), "{}", outcome.finished);
    // With nobody to read stdout the command is told as usual.
    let line = format!("{} run -- yes | head -c 2", common::run::RETRYSCOPE);
    let mut shell = Command::new("/bin/sh");
    let finished = clients::bare(shell.args(["-c", &line])).finish(SOON).ok();
    assert_eq!(finished.text(), "y\n");
}

/// On a terminal the command has it: it reads from it, and Ctrl-C reaches it
/// once.
#[test]
fn the_terminal_is_the_commands() {
    let script = "import os, signal, sys\ncount = 0\n\
        def got(number, frame):\n    global count\n    count += 1\n    print('got', number, flush=True)\n\
        signal.signal(signal.SIGINT, got)\n\
        print('tty', os.isatty(0), os.isatty(1), os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n\
        while True:\n\x20   line = sys.stdin.readline().strip()\n    print('read', line, 'count', count, flush=True)\n\
        \x20   if line == 'end': sys.exit(3)\n";
    let dir = tempfile::tempdir().expect("a folder");
    let (program, report) = (dir.path().join("program.py"), dir.path().join("report"));
    std::fs::write(&program, script).expect("writing the program");
    let host = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut terminal = clients::bare(
        Command::new(clients::need("python3", "python3"))
            .args(["-c", host, common::run::RETRYSCOPE, "run", "--report-file"])
            .arg(&report)
            .args(["--", "python3"])
            .arg(&program),
    );
    terminal.line("tty True True True");
    terminal.write(b"hello\n");
    terminal.line("read hello count 0");
    terminal.write(b"\x03");
    terminal.line("got 2");
    terminal.write(b"again\n");
    terminal.line("read again count 1");
    terminal.write(b"end\n");
    terminal.line("read end count 1");
    terminal.finish(SOON).code(3);
    assert!(report.exists());
}

/// A child that outlives the command goes on, directly, and the report does
/// not wait for it.
#[test]
fn a_background_child_is_left_alone() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new();
    let dir = run.dir().to_path_buf();
    let keep = tempfile::tempdir().expect("a folder");
    let (fifo, out) = (keep.path().join("in"), keep.path().join("out"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let script = "exec 3<>\"$IN\"; \"$@\" <&3 >\"$OUT\" 2>&1 & echo $!; exit 4";
    let command = words!["/bin/sh", "-c", script, "sh"].into_iter().chain(looping());
    let outcome = run.to(NAME, upstream.address, &ca).env("IN", &fifo).env("OUT", &out).go(command).code(4);
    assert!(!dir.exists());
    let child = Leftover(outcome.text().trim().parse().expect("the child's pid"));
    assert!(alive(child.0), "the background child was ended");
    let group = cgroup::of(child.0).expect("its cgroup");
    std::fs::write(&fifo, "go\n").expect("asking the child");
    let line = until("the child has answered", SOON, || {
        let text = std::fs::read_to_string(&out).ok()?;
        text.lines().find(|line| line.contains("issuer")).map(ToOwned::to_owned)
    });
    let row: Value = serde_json::from_str(&line).expect("JSON from the loop");
    assert!(!intercepted(&row), "{row}");
    drop(child);
    until("its cgroup is gone with it", SOON, || (!group.exists() || group == cgroup::mount()).then_some(()));
}

/// retryscope started inside a cgroup of its own is not caught by its own
/// redirection, and nested runs work.
#[test]
fn inside_another_cgroup_and_nested() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let group = TestCgroup::new();
    let mut command = group.command(Path::new(common::run::RETRYSCOPE));
    let map = format!("{NAME}={}", upstream.address.ip());
    command
        .args(["run", "--map-host", &map, "--upstream-ca"])
        .arg(ca.pem())
        .args(["--"])
        .arg(clients::curl())
        .args(["-sS", &format!("https://{NAME}/hello")]);
    let finished = clients::bare(&mut command).finish(Duration::from_secs(60)).ok();
    assert_eq!(finished.text(), "hello from /hello\n", "{finished}");
}
