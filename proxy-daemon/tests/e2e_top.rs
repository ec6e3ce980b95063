//! `retryscope top` on a terminal, over real instances and real clients: each
//! step is told by what the screen says.
mod common;

use std::time::Instant;

use common::{
    NAME, Run, SOON, TestCa, Upstream, Wire, alive, clients,
    process::descendants,
    run::{RunningRun, retryscope},
    servers::{AWS, Moto},
    tmux::{Pane, Tmux},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// One request for each line of standard input, over one connection.
const ASK: &str = "import http.client, ssl, sys\n\
    connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context())\n\
    print('ready', flush=True)\n\
    for line in sys.stdin:\n\
    \x20   connection.request('GET', line.strip())\n\
    \x20   answer = connection.getresponse()\n\
    \x20   answer.read()\n\
    \x20   print(line.strip(), answer.status, flush=True)\n";

fn asks(started: &mut RunningRun, path: &str) {
    started.write(format!("{path}\n").as_bytes());
    started.line(&format!("{path} "));
}

/// The rows of a screen, without their empty ends.
fn rows(screen: &str) -> Vec<&str> {
    screen.lines().map(str::trim_end).collect()
}

/// The row that says this, from 1.
#[track_caller]
fn row_of(screen: &str, part: &str) -> usize {
    let at = screen.lines().position(|row| row.contains(part));
    at.unwrap_or_else(|| panic!("no row says '{part}':\n{screen}")) + 1
}

/// Waits until the screen is so.
#[track_caller]
fn until_screen(pane: &Pane<'_>, what: &str, so: impl Fn(&str) -> bool) -> String {
    let mut last = String::new();
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until(what, SOON * 2, || {
            last = pane.screen();
            so(&last).then_some(())
        });
    }));
    assert!(seen.is_ok(), "the screen was never so ({what}):\n{last}");
    last
}

/// `retryscope top` in a pane, over an instance.
fn top<'t>(tmux: &'t Tmux, instance: i32) -> Pane<'t> {
    let pane = tmux.first();
    pane.types(&format!("retryscope top --instance {instance}"));
    pane.shows("1 Processes");
    pane
}

/// The program itself, in a pane's shell.
fn program(pane: &Pane<'_>) -> i32 {
    until("top runs", SOON, || {
        descendants(pane.pid()).into_iter().find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|&byte| byte == 0).nth(1) == Some(b"top")
        })
    })
}

/// The terminal is as it was: its modes, its screen, its cursor, its mouse.
#[track_caller]
fn given_back(pane: &Pane<'_>, before: &str) {
    until_screen(pane, "the shell is there again", |_| pane.tells("#{alternate_on}") == "0");
    until_screen(pane, "the mouse and the cursor are the shell's", |_| {
        pane.tells("#{mouse_any_flag}#{mouse_sgr_flag}#{cursor_flag}") == "001"
    });
    until_screen(pane, "the terminal's modes are the shell's", |_| stty(pane) == before);
}

/// What `stty` says of a pane's terminal.
fn stty(pane: &Pane<'_>) -> String {
    let terminal = pane.tells("#{pane_tty}");
    let said = std::process::Command::new("stty").args(["-a", "-F", &terminal]).output().expect("stty");
    assert!(said.status.success(), "{said:?}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// The talk that this program goes back to: a list that is empty, a program
/// that is started, its request held with the answer in hand, 429 typed over
/// the 200, and the program trying again.
#[test]
fn the_talk() {
    let moto = Moto::shared();
    let mut run = Run::new().upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let mut app = run.start(words![clients::python(), clients::script("scene.py")]);
    app.line_within(SOON * 3, "ready");
    let tmux = Tmux::start(80, 24);
    let pane = top(&tmux, app.pid);

    // The list is empty.
    pane.key("2");
    pane.shows("No call has ended yet.");
    pane.key("i");
    pane.shows("attempts that match wait for you at their response;");
    // As it is typed, it is completed.
    pane.writes("~op");
    pane.shows("operation: ListBuckets, s3.List*");
    pane.writes(" ListBuckets");
    pane.key("Enter");
    pane.shows("intercept 1: attempts that match wait for you, 5m 00s at most");

    // The program asks, and is held with its 200 in hand.
    app.write(b"\n");
    let screen = pane.shows("200 held");
    let row = rows(&screen)[row_of(&screen, "200 held") - 1].to_owned();
    assert!(row.contains("s3.ListBuckets") && row.contains(" 1/5 "), "{screen}");
    assert!(screen.contains("3 Held 1") && screen.contains("r let go"), "{screen}");

    // 429 is typed over it, and it is let go.
    pane.key("t");
    pane.shows("#1 first line: 200 OK");
    pane.writes("429 Too Many Requests");
    pane.shows("#1 first line: 429 Too Many Requests");
    pane.key("Enter");
    pane.shows("200→429* held");
    pane.key("r");
    pane.shows("#1 went on, changed, after ");

    // Attempt 2 appears, with the wait before it.
    let screen = until_screen(&pane, "attempt 2 is held", |screen| {
        [" 2/5 ", "200 held", "→429"].iter().all(|part| screen.contains(part))
    });
    let row = rows(&screen)[row_of(&screen, "200 held") - 1].to_owned();
    assert!(row.contains("→429") && row.contains('·') && row.contains("ms"), "its wait: {screen}");
    assert_eq!(screen.matches("s3.ListBuckets").count(), 1, "one call is one row: {screen}");

    // A second 429, in the other view.
    pane.key("3");
    let screen = until_screen(&pane, "its intercept", |screen| screen.contains("~op ListBuckets"));
    assert!(screen.contains("#2") && screen.contains("GOES ON IN"), "{screen}");
    pane.key("t");
    pane.shows("#2 first line: 200 OK");
    pane.writes("429");
    pane.key("Enter");
    pane.shows("200→429*");
    pane.key("r");
    pane.shows("#2 went on, changed, after ");
    pane.shows("#3");

    // The third is let through.
    pane.key("Enter");
    let screen = pane.shows("200 OK");
    assert!(
        screen.contains("#3 waits at its response for ") && screen.contains("3 of 5, after a wait of "),
        "{screen}"
    );
    pane.key("r");
    pane.shows("#3 went on as it was, after ");
    let line = app.line("done: ");
    assert!(line.contains("buckets after 429,429,200; waited "), "{line}");

    // The call, from its start to its end.
    pane.key("2");
    let screen = until_screen(&pane, "the call is over", |screen| screen.contains(" 3/5 ") && !screen.contains("held"));
    let row = rows(&screen)[row_of(&screen, "s3.ListBuckets") - 1].to_owned();
    assert_eq!(row.matches("→429").count(), 2, "{row}");
    assert!(row.trim_end_matches('━').ends_with("200"), "{row}");
    pane.key("Enter");
    let screen = until_screen(&pane, "its attempts", |screen| screen.matches("200→429").count() == 2);
    assert_eq!(screen.matches(" +").count(), 2, "two waits: {screen}");
    pane.key("Enter");
    let screen = pane.shows("1 of 5 of call");
    assert!(screen.contains("200→429 (throttled)") && screen.contains("by hand"), "{screen}");
    pane.key("PageDown");
    let screen = pane.shows("Authorization: AWS4-HMAC-SHA256 REDACTED");
    assert!(!screen.contains("Credential="), "{screen}");

    // Its process.
    pane.key("1");
    until_screen(&pane, "the process is told of", |screen| {
        ["scene.py", "3 attempts", "2 retries", "2 throttled"].iter().all(|part| screen.contains(part))
    });
    pane.key("Enter");
    pane.shows("s3.ListBuckets");

    // It ends, and its last state stays to be read.
    app.close_stdin();
    app.finish().ok();
    let screen = pane.shows("the instance has ended");
    assert!(screen.contains("ENDED") && screen.contains("s3.ListBuckets"), "{screen}");
    pane.key("q");
    until_screen(&pane, "the shell is there again", |_| pane.tells("#{alternate_on}") == "0");
}

/// The held answer is changed in an editor, which has the terminal to itself.
#[test]
fn an_editor_has_the_terminal_to_itself() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    let tmux = Tmux::start(100, 30);
    let pane = tmux.first();
    pane.types(&format!("EDITOR='vim.tiny -u NONE' retryscope top --instance {}", started.pid));
    pane.shows("1 Processes");
    pane.key("3");
    pane.key("i");
    pane.writes("~u /one");
    pane.key("Enter");
    pane.shows("intercept 1:");
    started.write(b"/one\n");
    pane.shows("#1");
    pane.key("e");
    let screen = pane.shows("hello from /one");
    assert!(screen.contains("# Save and leave: #1 goes on with what stands below."), "{screen}");
    pane.types(":%s/^200 OK/503 Busy/");
    pane.shows("\n503 Busy");
    pane.types(":wq");
    pane.shows("#1 went on, changed, after ");
    assert!(started.line("/one ").ends_with(" 503"));
    // Keys come here again, and a resize is seen.
    pane.key("4");
    pane.shows("There are no rules.");
    pane.key("a");
    pane.writes("~dd => 429");
    pane.key("Enter");
    let screen = pane.shows("did you mean ~d?");
    assert!(screen.contains("^^^"), "{screen}");
    pane.key("C-u");
    pane.writes("~u /two => 429 name \"two\"");
    pane.key("Enter");
    pane.shows("added \"two\"");
    asks(&mut started, "/two");
    until_screen(&pane, "the rule has acted", |screen| screen.contains("on          1 two"));
    pane.key("Space");
    pane.shows("\"two\" is off from the next attempt on");
    pane.shows("off         1 two");
    pane.key("q");
    started.close_stdin();
    started.finish();
}

#[test]
fn sizes_and_the_mouse() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    for path in ["/first", "/second", "/status/503"] {
        asks(&mut started, path);
    }
    let tmux = Tmux::start(80, 24);
    let pane = top(&tmux, started.pid);
    let screen = until_screen(&pane, "three attempts", |screen| screen.contains("3 attempts"));
    assert!(!screen.contains("BACKOFF"), "{screen}");
    tmux.resize(160, 40);
    let screen = pane.shows("BACKOFF");
    assert!(screen.contains("attempts a second, of the latest 160 seconds"), "{screen}");
    assert!(screen.contains(&format!("GET {NAME}/first")), "operations stand beside: {screen}");
    // The first key after it is not lost.
    pane.key("?");
    pane.shows("freeze what is shown");
    pane.key("Escape");
    tmux.resize(60, 15);
    until_screen(&pane, "a small screen", |screen| !screen.contains("BACKOFF") && screen.contains("q quit"));
    tmux.resize(90, 30);
    // The tab is clicked, then a row, then once more.
    let screen = until_screen(&pane, "the size is taken", |screen| {
        rows(screen).get(29).is_some_and(|row| row.contains("q quit"))
    });
    let tabs = row_of(&screen, "2 Calls");
    let at = rows(&screen)[tabs - 1].find("Calls").expect("there");
    pane.clicks(at + 1, tabs);
    let screen = pane.shows("/second");
    let second = row_of(&screen, "/second");
    assert!(row_of(&screen, "/status/503") < second && second < row_of(&screen, "/first"), "newest first: {screen}");
    pane.clicks(20, second);
    pane.clicks(20, second);
    let screen = pane.shows(" in all");
    assert!(screen.contains("/second") && !screen.contains("/first"), "{screen}");
    pane.key("Escape");
    pane.shows("/first");
    // A click on a head sorts by it; the filter takes the rest away.
    let screen = pane.screen();
    let heads = row_of(&screen, "TOOK");
    let at = rows(&screen)[heads - 1].find("TOOK").expect("there");
    pane.clicks(at + 1, heads);
    pane.shows("TOOK▾");
    pane.key("/");
    pane.writes("~c 503");
    pane.key("Enter");
    until_screen(&pane, "the filter acts", |screen| screen.contains("/status/503") && !screen.contains("/first"));
    pane.key("q");
    started.close_stdin();
    started.finish().ok();
}

/// A way to end the program in a pane.
type End<'a> = &'a dyn Fn(&Pane<'_>);

/// However it ends, the terminal is as it was.
#[test]
fn the_terminal_is_given_back() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    let tmux = Tmux::start(80, 24);
    let pane = tmux.first();
    until_screen(&pane, "the shell asks", |screen| screen.trim_end().ends_with(['#', '$']));
    pane.types("echo before");
    pane.shows("\nbefore");
    let before = stty(&pane);
    let ends: [(&str, End<'_>); 6] = [
        ("q", &|pane| pane.key("q")),
        ("Ctrl-C", &|pane| pane.key("C-c")),
        ("SIGTERM", &|pane| kill(Pid::from_raw(program(pane)), Signal::SIGTERM).expect("a signal")),
        ("SIGTERM after a half of a key", &|pane| {
            pane.presses(b"\x1b[");
            // Its clock goes on.
            for _ in 0..2 {
                let clock = pane.screen().lines().next().map(str::to_owned);
                until_screen(pane, "time goes on", |screen| screen.lines().next() != clock.as_deref());
            }
            kill(Pid::from_raw(program(pane)), Signal::SIGTERM).expect("a signal");
        }),
        ("SIGINT", &|pane| kill(Pid::from_raw(program(pane)), Signal::SIGINT).expect("a signal")),
        ("SIGHUP", &|pane| kill(Pid::from_raw(program(pane)), Signal::SIGHUP).expect("a signal")),
    ];
    for (how, end) in ends {
        pane.types(&format!("retryscope top --instance {}", started.pid));
        pane.shows("1 Processes");
        until_screen(&pane, "the alternate screen", |_| pane.tells("#{alternate_on}") == "1");
        assert_ne!(stty(&pane), before, "{how}");
        end(&pane);
        given_back(&pane, &before);
        let screen = pane.shows("\nbefore");
        assert!(!screen.contains("1 Processes"), "{how}: {screen}");
    }
    // Suspended, and brought back.
    pane.types(&format!("retryscope top --instance {}", started.pid));
    pane.shows("1 Processes");
    pane.key("C-z");
    until_screen(&pane, "the shell is there", |_| pane.tells("#{alternate_on}") == "0");
    pane.types("fg");
    pane.shows("1 Processes");
    pane.key("q");
    given_back(&pane, &before);
    // Where the terminal itself goes away, it goes as well.
    pane.types(&format!("retryscope top --instance {}", started.pid));
    pane.shows("1 Processes");
    let pid = program(&pane);
    drop(tmux);
    until("it ends with its terminal", SOON, || (!alive(pid)).then_some(()));
    started.close_stdin();
    started.finish().ok();
}

/// An instance that is killed is told of, and what was seen stays.
#[test]
fn the_instance_is_killed() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    asks(&mut started, "/one");
    let tmux = Tmux::start(80, 24);
    let pane = tmux.first();
    let before = stty(&pane);
    pane.types(&format!("retryscope top --instance {}", started.pid));
    until_screen(&pane, "one attempt", |screen| screen.contains("1 attempt "));
    started.signal(Signal::SIGKILL);
    let screen = pane.shows("the instance has ended, or cannot be reached since ");
    assert!(screen.contains("ENDED") && screen.contains("1 attempt "), "{screen}");
    pane.key("q");
    given_back(&pane, &before);
}

/// What an upstream and a client say drives no terminal.
#[test]
fn a_hostile_upstream() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        while conn.head().await.is_ok() {
            let mut answer =
                b"HTTP/1.1 503 \x9b2J\xff\xfe No\r\nContent-Length: 0\r\nX-Odd: \xff\xc0\x80\r\nX-Long: ".to_vec();
            answer.extend_from_slice(&[b'x'; 100_000]);
            answer.extend_from_slice(b"\r\nX-Last: Slow\xc2\x9b2JDown\xc2\x9d0;mine\xc2\x9c\r\n\r\n");
            conn.send(answer).await?;
        }
        Ok(())
    });
    let mut started = Run::new().to(NAME, wire.address, &ca).start(words![
        clients::python(),
        "-c",
        clients::STRANGER,
        NAME,
        "\u{1b}[2Jodd\u{202e}"
    ]);
    started.line("asked");
    let tmux = Tmux::start(80, 24);
    let pane = top(&tmux, started.pid);
    let title = pane.tells("#{pane_title}");
    // Every view still has its first line, its tabs and its keys.
    let whole = |screen: &str| {
        assert!(screen.starts_with("retryscope top ") && screen.contains("1 Processes"), "{screen}");
        assert!(screen.contains("q quit"), "{screen}");
        assert!(!screen.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{screen:?}");
    };
    whole(&until_screen(&pane, "one attempt", |screen| screen.contains("1 attempt ")));
    pane.key("Enter");
    whole(&pane.shows("OPERATION"));
    pane.key("2");
    whole(&pane.shows("503"));
    pane.key("Enter");
    whole(&pane.shows(" in all"));
    pane.key("Enter");
    let screen = pane.shows("Request");
    whole(&screen);
    pane.key("End");
    let screen = pane.shows("X-Last: Slow\\u{9b}2JDown\\u{9d}0;mine\\u{9c}");
    whole(&screen);
    assert_eq!(pane.tells("#{pane_title}"), title);
    pane.key("q");
    started.close_stdin();
    started.finish();
}

/// Where it cannot be: one sentence, and what to type instead.
#[test]
fn where_there_is_no_terminal_or_no_instance() {
    let mut piped = retryscope(["top"]);
    piped.close_stdin();
    let piped = piped.finish(SOON).code(64);
    assert!(piped.stderr.contains("`top` needs a terminal") && piped.stderr.lines().count() == 1, "{piped}");
    let tmux = Tmux::start(100, 24);
    let pane = tmux.first();
    pane.types("retryscope top --name nobody; echo code $?");
    let screen = pane.shows("code 69");
    assert!(screen.contains("there is no daemon named `nobody` here"), "{screen}");
}

/// `run` tells what to type in a second terminal.
#[test]
fn run_tells_what_to_type() {
    let tmux = Tmux::start(100, 24);
    let pane = tmux.first();
    pane.types("retryscope run -- true");
    let screen = pane.shows("to watch it from a second terminal:");
    assert!(screen.contains(" top --instance "), "{screen}");
}

/// Processor time of a process so far, in seconds.
fn spent(pid: i32) -> f64 {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).expect("a process");
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

/// Under load it takes less than a twentieth of a core, in either of its busy
/// views (judged by `cargo xtask bench --page --strict`), and in the end has told
/// of every attempt.
#[test]
fn it_costs_little() {
    const COUNT: u64 = 30_000;
    let ca = TestCa::new();
    let files = ca.files("load", &["localhost"], &["127.0.0.1".parse().expect("an address")]);
    let mut serve = std::process::Command::new(clients::testbed());
    serve.args(["serve", "--leash", "--cert"]).arg(&files.cert).arg("--key").arg(&files.key);
    let upstream = clients::bare(&mut serve);
    let line = upstream.line("ready ");
    let address = line.trim_start_matches("ready ").trim().to_owned();
    let port = address.rsplit(':').next().expect("a port");
    let run = Run::new().upstream_ca(&ca.pem()).option("--port").option(port).deadline(SOON * 6);
    let load = words![clients::testbed(), "load", "--connect", &address, "--name", "localhost", "--session"];
    let mut started = run.start(load);
    let job = format!("requests --protocol h2 --count {COUNT} --connections 8 --streams 4\n");
    let mut at = 0;
    let mut go = |started: &mut RunningRun| -> Value {
        started.write(job.as_bytes());
        let found = until("the load is over", SOON * 6, || {
            let said = common::show(&started.stdout.bytes()[at..]);
            said.contains('\n').then_some(said)
        });
        at += found.len();
        serde_json::from_str(&found).expect("JSON")
    };
    // What is kept is full of attempts before anybody looks.
    go(&mut started);
    let tmux = Tmux::start(200, 60);
    let pane = top(&tmux, started.pid);
    let pid = program(&pane);
    for (view, shows) in [("1", "LATELY"), ("2", "ATTEMPTS AND WAITS")] {
        pane.key(view);
        pane.shows(shows);
        let (before, began) = (spent(pid), Instant::now());
        let told = go(&mut started);
        let share = (spent(pid) - before) / began.elapsed().as_secs_f64();
        let rate = COUNT as f64 / told["seconds"].as_f64().expect("seconds");
        eprintln!("view {view}: {:.2} % of a core at {rate:.0} attempts a second", share * 100.0);
        // A machine that has other things to do tells little of a share of time.
        let most = if common::times_count() { 0.05 } else { 0.5 };
        assert!(share < most, "view {view} took {:.2} % of a core", share * 100.0);
    }
    pane.shows(&format!("{},000 attempts", 3 * COUNT / 1_000));
    pane.key("q");
    started.close_stdin();
    started.finish().ok();
}
