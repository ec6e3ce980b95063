//! Who gets what of the page: nobody without its token, no other site, no name
//! that leads to its address, and nobody by way of the intercepted path.
mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use common::{NAME, Page, Run, Running, SOON, Site, TestCa, TestCgroup, Upstream, clients, run::retryscope, until};
use serde_json::json;

/// An instance with a page, that runs until its command's input ends.
fn started(options: &[&str]) -> (common::run::RunningRun, Page) {
    let run = options.iter().fold(Run::new(), Run::option);
    let started = run.start(words!["sh", "-c", "echo ready; cat"]);
    started.line("ready");
    let page = Page::of(started.pid);
    (started, page)
}

fn rules(page: &Page) -> usize {
    page.ask("GET", "/v1/rules", "").json()["rules"].as_array().map_or(0, Vec::len)
}

const RULE: &str = r#"{"rule": "~u /never => 503"}"#;

#[test]
fn nothing_is_told_or_changed_without_the_token() {
    let (started, page) = started(&["--page"]);
    let host = format!("Host: {}\r\n", page.address);
    let typed = "Content-Type: application/json\r\n";
    let wrong = format!("{}A", &page.token[..42]);
    let wrong = if wrong == page.token { format!("{}E", &page.token[..42]) } else { wrong };
    for fields in [
        String::new(),
        "Authorization: Bearer \r\n".into(),
        format!("Authorization: Bearer {wrong}\r\n"),
        format!("Authorization: Bearer {}x\r\n", page.token),
        format!("Authorization: Bearer {}\r\n", &page.token[..42]),
        format!("Authorization: Basic {}\r\n", page.token),
        format!("Authorization: {}\r\n", page.token),
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n", token = page.token),
        // What a browser would send by itself, or a log would keep.
        format!("Cookie: token={token}; retryscope-token={token}\r\n", token = page.token),
        format!("X-Token: {}\r\n", page.token),
    ] {
        let fields = format!("{host}{typed}{fields}");
        for path in ["/v1/instance", "/v1/report", "/v1/overview", "/v1/rules", "/v1/attempts", "/v1/follow"] {
            page.send("GET", path, &fields, "").is(401, "token");
        }
        page.send("GET", &format!("/v1/rules?token={}", page.token), &fields, "").is(401, "token");
        page.send("POST", "/v1/rules", &fields, RULE).is(401, "token");
        page.send("PUT", "/v1/enabled", &fields, r#"{"enabled": false}"#).is(401, "token");
    }
    assert_eq!(rules(&page), 0);
    page.ask("POST", "/v1/rules", RULE).is(201, "~u /never");
    assert_eq!(rules(&page), 1);
    // The page's own address is told to whoever may use the socket alone.
    page.ask("POST", "/v1/page", "").is(404, "");
    // The files hold nothing of the instance.
    let file = page.send("GET", "/", &host, "");
    file.is(200, "<!doctype html>");
    assert!(!file.body.contains(&page.token));
    drop(started);
}

#[test]
fn a_name_that_leads_here_gets_nothing() {
    let (_started, page) = started(&["--page"]);
    let port = page.address.port();
    let holder = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", page.token);
    for host in [
        "attacker.test".to_owned(),
        format!("attacker.test:{port}"),
        format!("localhost.attacker.test:{port}"),
        format!("127.0.0.1.attacker.test:{port}"),
        format!("127.0.0.1:{}", port ^ 1),
        format!("127.0.0.2:{port}"),
        format!("[::1]:{port}"),
        format!("2130706433:{port}"),
        format!("127.0.0.1:{port}@attacker.test"),
        "127.0.0.1".into(),
        String::new(),
    ] {
        for path in ["/", "/main.js", "/v1/rules"] {
            page.send("GET", path, &format!("Host: {host}\r\n{holder}"), "").is(421, "by that address");
        }
        page.send("POST", "/v1/rules", &format!("Host: {host}\r\n{holder}"), RULE).is(421, "by that address");
    }
    let ours = format!("Host: {}\r\n", page.address);
    page.send("GET", "/v1/rules", &format!("{ours}Host: attacker.test\r\n{holder}"), "").is(421, "");
    page.send("GET", "/v1/rules", &holder, "").is(421, "");
    // As a proxy would be asked.
    page.send("GET", "http://attacker.test/v1/rules", &format!("{ours}{holder}"), "").is(421, "no proxy");
    page.send("GET", &format!("http://{}/v1/rules", page.address), &format!("{ours}{holder}"), "").is(421, "no proxy");
    page.send("CONNECT", "attacker.test:443", &ours, "").is(421, "no proxy");
    assert_eq!(rules(&page), 0);
    page.send("GET", "/v1/rules", &format!("Host: localhost:{port}\r\n{holder}"), "").is(200, "rules");
}

#[test]
fn another_site_gets_nothing() {
    let (_started, page) = started(&["--page"]);
    let ours =
        format!("Host: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n", page.address, page.token);
    for said in [
        "Origin: http://attacker.test\r\n".to_owned(),
        "Origin: null\r\n".into(),
        format!("Origin: https://{}\r\n", page.address),
        format!("Origin: http://127.0.0.1:{}\r\n", page.address.port() ^ 1),
        format!("Origin: http://{0}\r\nOrigin: http://{0}\r\n", page.address),
        "Sec-Fetch-Site: cross-site\r\n".into(),
        "Sec-Fetch-Site: same-site\r\n".into(),
        format!("Origin: http://{}\r\nSec-Fetch-Site: cross-site\r\n", page.address),
    ] {
        let fields = format!("{ours}{said}");
        page.send("POST", "/v1/rules", &fields, RULE).is(403, "another site");
        page.send("GET", "/v1/rules", &fields, "").is(403, "another site");
        page.send("GET", "/main.js", &fields, "").is(403, "another site");
        page.send("OPTIONS", "/v1/rules", &format!("{fields}Access-Control-Request-Method: POST\r\n"), "")
            .is(403, "another site");
    }
    // A form of another site can send this, but no JSON.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let fields = ours.replace("application/json", kind);
        page.send("POST", "/v1/rules", &fields, RULE).is(415, "");
    }
    assert_eq!(rules(&page), 0);
    let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    page.send("GET", "/", &format!("Host: {}\r\n{link}", page.address), "").is(200, "<!doctype html>");
    let frame = link.replace("document", "iframe");
    page.send("GET", "/", &format!("Host: {}\r\n{frame}", page.address), "").is(403, "another site");
    let own = format!("{ours}Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", page.address);
    page.send("POST", "/v1/rules", &own, RULE).is(201, "");
}

#[test]
fn every_answer_says_what_may_be_done_with_it() {
    let (_started, page) = started(&["--page"]);
    let host = format!("Host: {}\r\n", page.address);
    for answer in [
        page.send("GET", "/", &host, ""),
        page.send("GET", "/main.js", &host, ""),
        page.send("GET", "/nowhere", &host, ""),
        page.send("GET", "/v1/rules", &host, ""),
        page.send("GET", "/", "Host: attacker.test\r\n", ""),
        page.ask("GET", "/v1/rules", ""),
        page.ask("GET", "/v1/nowhere", ""),
    ] {
        for field in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(answer.head.contains(field), "{field}: {answer:?}");
        }
        assert!(!answer.head.contains("access-control") && !answer.head.contains("set-cookie"), "{answer:?}");
        assert!(!answer.head.contains("unsafe"), "{answer:?}");
    }
}

/// GET tells, and never changes.
#[test]
fn nothing_is_changed_by_get() {
    let (_started, page) = started(&["--page", "--rule", "~u /a => 503 name \"a\""]);
    for path in ["/v1/enabled", "/v1/rules/a/enabled", "/v1/rules/a", "/v1/reload", "/v1/rules/check"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(page.ask(method, &format!("{path}?enabled=false"), "").status, 405, "{method} {path}");
        }
    }
    let told = page.ask("GET", "/v1/rules?rule=~s+%3D%3E+500", "");
    assert!(told.status == 400 || told.json()["rules"].as_array().map(Vec::len) == Some(1), "{told:?}");
    assert_eq!(page.ask("GET", "/v1/rules", "").json()["rules"][0]["enabled"], true);
}

#[test]
fn what_comes_is_bounded() {
    let (_started, page) = started(&["--page"]);
    let long = "x".repeat(200_000);
    let answer = page.raw(&format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Long: {long}\r\n\r\n", page.address));
    assert!(answer.as_ref().map_or(true, |answer| answer.status == 431), "{answer:?}");
    let rule = json!({ "rule": format!("~u {} => 503", "x".repeat(70_000)) }).to_string();
    assert_eq!(page.ask("POST", "/v1/rules", &rule).status, 413);

    // So many at once are served; the next waits until one has gone.
    let mut open: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(page.address).expect("connected");
            write!(stream, "GET /icon.svg HTTP/1.1\r\nHost: {}\r\n\r\n", page.address).expect("asked");
            let mut first = [0; 16];
            stream.read_exact(&mut first).expect("answered");
            stream
        })
        .collect();
    let mut next = TcpStream::connect(page.address).expect("queued");
    write!(next, "GET /icon.svg HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", page.address).expect("asked");
    next.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("a time-out");
    assert!(next.read(&mut [0; 16]).is_err(), "more are served than should be");
    open.pop();
    next.set_read_timeout(Some(SOON)).expect("a time-out");
    assert!(matches!(next.read(&mut [0; 16]), Ok(1..)), "what waited is served");
}

/// Whatever is logged, however much.
#[test]
fn the_token_is_in_no_log_and_no_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let events = folder.path().join("events.jsonl");
    let (ca, url) = (TestCa::new(), format!("https://{NAME}/hello"));
    let upstream = Upstream::start(&ca);
    let run =
        Run::new().to(NAME, upstream.address, &ca).option("--page").option("-vvv").option("--events").option(&events);
    let mut started = run.start(words!["sh", "-c", "curl -sS \"$1\"; echo ready; cat", "sh", url]);
    started.line("ready");
    let page = Page::of(started.pid);
    page.ask("GET", "/v1/overview", "").is(200, "report");
    page.send("GET", "/v1/rules", &format!("Host: {}\r\n", page.address), "").is(401, "");
    page.ask("POST", "/v1/rules", "{").is(400, "");
    page.ask("POST", "/v1/rules", RULE).is(201, "");
    started.close_stdin();
    let outcome = started.finish().ok();
    let place = format!("the page is at http://{}/;", page.address);
    assert!(outcome.stderr.contains(&place) && outcome.stderr.contains("TRACE"), "{}", outcome.finished);
    let report = outcome.report().0.to_string();
    let events = std::fs::read_to_string(events).expect("events");
    for (what, text) in [("stderr", &outcome.stderr), ("the report", &report), ("events", &events)] {
        assert!(!text.contains(&page.token), "the token is in {what}: {text}");
    }
}

/// A person at a terminal is told the whole of it, once.
#[test]
fn a_terminal_is_told_the_token() {
    let mut command = Command::new(clients::need("script", "bsdutils"));
    let line = format!("{} run --page -- sh -c 'echo ready; cat'", common::run::RETRYSCOPE);
    command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    let mut running: Running = clients::bare(&mut command);
    running.line("ready");
    let shown = common::show(&running.stdout.bytes());
    let told: Vec<&str> = shown.lines().filter(|line| line.contains("#token=")).collect();
    let [told] = told.as_slice() else { panic!("told once: {shown}") };
    let url = told.trim().rsplit(' ').next().expect("an address");
    Page::parse(url).ask("GET", "/v1/instance", "").is(200, "\"pid\"");
    running.write(b"\x04");
    running.finish(SOON).ok();
}

/// A daemon's log has where the page is, and not its token; who may only read
/// is not told it.
#[test]
fn a_daemon_tells_its_page_to_those_who_may_change_it() {
    let (ca, group) = (TestCa::new(), TestCgroup::new());
    let site = Site::new(&ca);
    let base = group.path().strip_prefix(common::cgroup::mount()).expect("below the mount").display().to_string();
    let tables = format!(
        "[targets]\ncgroups = [\"/{base}\"]\n[control]\nreaders = \"games\"\nadmins = \"mail\"\n[log]\nlevel = \"trace\""
    );
    site.write("page = \"127.0.0.1:0\"", &tables);
    let daemon = site.start();
    let pid = daemon.pid().to_string();
    let page = Page::of(daemon.pid());
    page.ask("GET", "/v1/overview", "").is(200, "report");
    page.ask("POST", "/v1/rules", RULE).is(201, "");
    let by = |group: &str| {
        let mut command = Command::new(clients::need("setpriv", "util-linux"));
        command.args(["--reuid=65534", "--clear-groups", &format!("--regid={group}"), common::run::RETRYSCOPE]);
        clients::bare(command.args(["page", "--instance", &pid])).finish(SOON)
    };
    let told = by("mail").ok().text();
    assert_eq!(told.trim(), page.url());
    let refused = by("games").code(77);
    assert!(!refused.stderr.contains(&page.token) && refused.stdout.is_empty(), "{refused}");
    let log = daemon.log();
    assert!(log.contains(&format!("the page is at http://{}/", page.address)), "{log}");
    assert!(!log.contains(&page.token), "{log}");
    // Changing the address needs a restart, and that is said.
    site.write("page = \"127.0.0.1:1\"", &tables);
    let reloaded = site.reload().ok();
    assert!(reloaded.text().contains("page") || reloaded.stderr.contains("page"), "{reloaded}");
    daemon.end().ok();
    let gone = TcpStream::connect(page.address);
    assert!(gone.is_err(), "the page has ended with its instance");
}

/// A port that is free at the moment, and hardly wanted by anybody else.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A target that connects to the page where its port is watched comes to
/// nothing; what it asks of others in the page's name is theirs to answer; and
/// where the port is not watched it has no token.
#[test]
fn the_intercepted_path_does_not_lead_to_it() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let port = free();
    let page = format!("--page=127.0.0.1:{port}");
    let run = Run::new().to(NAME, upstream.address, &ca).option(&page).option("--port").option(port.to_string());
    let script = "curl -sS --max-time 10 \"http://127.0.0.1:$1/\"; echo \"plain $?\"; \
        curl -sS --max-time 10 --insecure \"https://127.0.0.1:$1/\"; echo \"tls $?\"; echo done; cat";
    let mut started = run.option("--port").option("443").start(words!["sh", "-c", script, "sh", port.to_string()]);
    started.line("done");
    let shown = common::show(&started.stdout.bytes());
    // A reset before anything was said, which may be there before curl looks.
    let ends = |name: &str, codes: &[&str]| codes.iter().any(|code| shown.contains(&format!("{name} {code}\n")));
    let reset = ends("plain", &["56", "7"]) && ends("tls", &["35", "7"]);
    assert!(reset, "{shown}: {}", common::show(&started.stderr.bytes()));
    assert!(!shown.contains("doctype"), "{shown}");
    // Meanwhile it is served to whoever is no target.
    let page = Page::of(started.pid);
    page.ask("GET", "/v1/instance", "").is(200, "\"pid\"");
    started.close_stdin();
    started.finish().ok();

    let (ca, port) = (TestCa::new(), free());
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option(format!("--page=127.0.0.1:{port}"));
    let script = "curl -sS --http1.1 --max-time 10 -H \"Host: 127.0.0.1:$1\" \"https://upstream.test/v1/rules\"; echo \" named\"; \
        curl -sS --max-time 10 \"http://127.0.0.1:$1/v1/rules\"; echo \" direct\"; echo done; cat";
    let started = run.start(words!["sh", "-c", script, "sh", port.to_string()]);
    started.line("done");
    let shown = common::show(&started.stdout.bytes());
    let asked =
        until("the upstream has it", SOON, || upstream.received().into_iter().find(|it| it.target == "/v1/rules"));
    assert_eq!(asked.header("host"), Some(format!("127.0.0.1:{port}").as_str()));
    assert!(shown.contains("needs the token") && !shown.contains("\"rules\":["), "{shown}");
    drop(started);
}

#[test]
fn an_address_that_cannot_be_had_is_said_in_a_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let said = retryscope(words!["run", format!("--page={address}"), "--", "true"]).finish(SOON).code(69);
    assert!(
        said.stderr.contains(&format!("cannot serve a page at {address}")) && said.stderr.lines().count() == 1,
        "{said}"
    );
    let said = retryscope(words!["run", "--page=nowhere", "--", "true"]).finish(SOON).code(64);
    assert!(said.stderr.contains("nowhere"), "{said}");
    let said = retryscope(words!["run", "--page=0.0.0.0:0", "--", "true"]).finish(SOON).code(0);
    assert!(said.stderr.contains("can be reached from other machines, without encryption"), "{said}");
    let none = Run::new().start(words!["sh", "-c", "echo ready; cat"]);
    none.line("ready");
    let said = retryscope(words!["page", "--instance", none.pid.to_string()]).finish(SOON).code(64);
    assert!(said.stderr.contains("serves no page; start it with --page"), "{said}");
}
