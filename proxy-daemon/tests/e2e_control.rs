//! Rules of a running instance: listed, added, removed, switched, read again;
//! while traffic flows, without touching a connection.
mod common;

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use common::{Finished, NAME, Run, SOON, TestCa, Upstream, clients, run::retryscope, until};
use serde_json::Value;

/// A command that asks once for each line on its standard input, over one
/// connection, and prints the status.
const ASK: &str = "import http.client, ssl, sys\n\
    connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context())\n\
    print('ready', flush=True)\n\
    for line in sys.stdin:\n\
    \x20   connection.request('GET', line.strip())\n\
    \x20   answer = connection.getresponse()\n\
    \x20   answer.read()\n\
    \x20   print(line.strip(), answer.status, flush=True)\n";

fn rules(words: &[&str]) -> Finished {
    let mut running = retryscope(["rules"].iter().chain(words));
    running.close_stdin();
    running.finish(SOON)
}

/// Asks for a path, which nothing asked for before, and tells the status.
fn ask(running: &mut common::Running, path: &str) -> String {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let path = format!("{path}?{}.", ASKED.fetch_add(1, Ordering::Relaxed));
    running.write(format!("{path}\n").as_bytes());
    let line = running.line(&format!("{path} "));
    line.rsplit(' ').next().unwrap_or_default().trim().to_owned()
}

#[test]
fn rules_change_for_the_next_attempt() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca);
    let file = run.dir().join("rules.toml");
    let write = |status: u16| {
        let rule = format!("[[rule]]\nname = \"of the file\"\nwhen = \"~u /file\"\nthen = {{ status = {status} }}\n");
        std::fs::write(&file, rule).expect("writing rules");
    };
    write(500);
    let mut started =
        run.option("--rules").option(&file).rule("~u /typed => 501").start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    let pid = started.pid.to_string();
    let on = |words: &[&str]| {
        let mut all = vec![words[0], "--instance", &pid];
        all.extend(&words[1..]);
        rules(&all)
    };
    assert_eq!(ask(&mut started, "/file"), "500");
    assert_eq!(ask(&mut started, "/typed"), "501");
    assert_eq!(ask(&mut started, "/hello"), "200");

    let added = on(&["add", "~u /hello => 503 name \"added\""]).code(0);
    assert_eq!(added.text(), "added \"added\"; it acts from the next attempt on\n");
    assert_eq!(ask(&mut started, "/hello"), "503");
    on(&["off", "added"]).code(0);
    assert_eq!(ask(&mut started, "/hello"), "200");
    on(&["on", "added"]).code(0);
    assert_eq!(ask(&mut started, "/hello"), "503");
    on(&["off"]).code(0);
    assert_eq!(ask(&mut started, "/file"), "200");
    on(&["on"]).code(0);

    write(502);
    assert_eq!(ask(&mut started, "/file"), "500");
    on(&["reload"]).code(0);
    assert_eq!(ask(&mut started, "/file"), "502");
    std::fs::write(&file, "[[rule]]\nwhen = \"~dd x\"\nthen = { status = 500 }\n").expect("writing rules");
    let broken = on(&["reload"]).code(64);
    assert!(broken.stderr.contains("did you mean ~d?") && broken.stderr.contains("stay"), "{broken}");
    assert_eq!(ask(&mut started, "/file"), "502");

    let listed = on(&["list", "--json"]).code(0);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let hits: Vec<(&str, u64)> = listed["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| (rule["name"].as_str().unwrap_or_default(), rule["hits"].as_u64().unwrap_or_default()))
        .collect();
    assert_eq!(hits, [("~u /typed => 501", 1), ("of the file", 2), ("added", 2)], "{listed}");
    let text = on(&["list"]).code(0).text();
    assert!(text.contains("       2      added\n"), "{text}");

    on(&["remove", "added"]).code(0);
    assert_eq!(ask(&mut started, "/hello"), "200");
    let unknown = on(&["remove", "added"]).code(64);
    assert!(unknown.stderr.contains("there is no rule named \"added\""), "{unknown}");
    let wrong = on(&["add", "~dd => 503"]).code(64);
    assert!(wrong.stderr.contains("^^^"), "{wrong}");

    started.close_stdin();
    let outcome = started.finish().ok();
    assert_eq!(upstream.accepted(), 1, "one connection throughout");
    drop(outcome);
    let nobody = rules(&["list", "--instance", &pid]);
    assert!([64, 69].contains(&nobody.code), "{nobody}");
}

/// A thousand changes under load lose no request.
#[test]
fn a_thousand_reloads_lose_nothing() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).deadline(Duration::from_secs(120));
    let file = run.dir().join("rules.toml");
    std::fs::write(&file, "[[rule]]\nwhen = \"~u nowhere\"\nthen = { status = 500 }\n").expect("writing rules");
    const LOAD: &str = "import http.client, ssl, sys, threading\n\
        count, wrong, over = [0], [], threading.Event()\n\
        def work():\n\
        \x20   connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context())\n\
        \x20   while not over.is_set():\n\
        \x20       connection.request('GET', '/hello')\n\
        \x20       answer = connection.getresponse()\n\
        \x20       answer.read()\n\
        \x20       count[0] += 1\n\
        \x20       if answer.status != 200: wrong.append(answer.status)\n\
        threads = [threading.Thread(target=work) for _ in range(4)]\n\
        for thread in threads: thread.start()\n\
        print('ready', flush=True)\n\
        sys.stdin.read()\n\
        over.set()\n\
        for thread in threads: thread.join()\n\
        print('done', len(wrong), flush=True)\n";
    let mut started = run.option("--rules").option(&file).start(words![clients::python(), "-c", LOAD, NAME]);
    started.line("ready");
    let pid = started.pid;
    let open = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default();
    let socket = std::fs::read_dir("/run")
        .expect("/run")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("retryscope-{pid}-")))
        })
        .expect("the instance's folder")
        .join("control/api.sock");
    reload(&socket);
    until("every thread has its connection", SOON, || (upstream.received().len() > 200).then_some(()));
    let before = open(pid);
    for _ in 0..1000 {
        reload(&socket);
    }
    // Sockets of the control connections are closed as soon as the server
    // has seen their ends.
    until("no descriptor is left behind", SOON, || (open(pid) <= before + 1).then_some(()));
    started.close_stdin();
    let outcome = started.finish().ok();
    assert!(outcome.text().ends_with("done 0\n"), "{}", outcome.finished);
    let report = outcome.report();
    assert_eq!(report.counts("errors").len(), 0, "{report}");
    assert_eq!(report.count("statuses", "200"), report.sum("attempts"), "{report}");
    assert_eq!(report.sum("attempts"), upstream.received().len() as u64);
}

/// One reload, spoken by hand.
fn reload(socket: &Path) {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the control socket");
    stream
        .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Without an instance everything that needs none works, and the rest says so.
#[test]
fn without_an_instance() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = dir.path().join("good.toml");
    std::fs::write(&good, "[[rule]]\nwhen = \"~svc s3 & ~attempt 1\"\nthen = { preset = \"throttle\" }\n")
        .expect("rules");
    let bad = dir.path().join("bad.json");
    std::fs::write(&bad, "{\"rule\": [{\"when\": \"~dd\", \"then\": \"4290\"}]}").expect("rules");
    let har = dir.path().join("one.jsonl");
    std::fs::write(
        &har,
        "{\"url\":\"https://s3.eu-west-1.amazonaws.com/\",\"status\":200}\n{\"url\":\"https://x.example/\"}\n",
    )
    .expect("a recording");
    let (good, bad, har) = (good.to_string_lossy(), bad.to_string_lossy(), har.to_string_lossy());
    assert_eq!(rules(&["check", &good]).code(0).text(), "1 rule, all right\n");
    let wrong = rules(&["check", &bad]).code(64);
    assert_eq!(wrong.stderr.matches("error: ").count(), 2, "{wrong}");
    assert!(rules(&["presets"]).code(0).text().contains("s3-slowdown"));
    assert!(rules(&["presets", "s3-slowdown"]).code(0).text().contains("HTTP/1.1 503 Slow Down"));
    assert!(rules(&["presets", "s4"]).code(64).stderr.contains("no preset `s4`"));
    let schema: Value = serde_json::from_slice(&rules(&["schema"]).code(0).stdout).expect("JSON");
    assert_eq!(schema["title"], "RuleFile");
    let tried = rules(&["try", &good, &har]).code(0).text();
    assert!(tried.starts_with("GET https://s3.eu-west-1.amazonaws.com/ attempt 1: 200 -> 503"), "{tried}");
    assert!(tried.contains("1 of 2 attempts would have been acted on"), "{tried}");
    assert!(rules(&["try", &good, "/nonexistent"]).code(64).stderr.contains("cannot read the recording"));
}
