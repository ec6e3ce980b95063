//! Rules at the wire: what a rewritten response keeps, whom a rule meets, and
//! how often.
mod common;

use common::{NAME, Run, TestCa, Upstream, Wire, clients, pattern, sha256};
use serde_json::json;

/// Three GETs by one curl, each printed with its head.
fn three(flag: &str, path: &str) -> Vec<std::ffi::OsString> {
    let url = format!("https://{NAME}{path}");
    words![clients::curl(), "-sSi", flag, url.clone(), url.clone(), url]
}

/// The head and the body of each response in a dump of `curl -i`.
fn responses(bytes: &[u8], size: usize) -> Vec<(String, Vec<u8>)> {
    let mut left = bytes;
    let mut found = Vec::new();
    while let Some(at) = left.windows(4).position(|part| part == b"\r\n\r\n") {
        let (head, rest) = left.split_at(at + 4);
        let (body, rest) = rest.split_at(size.min(rest.len()));
        found.push((common::show(head), body.to_vec()));
        left = rest;
    }
    found
}

fn lines(head: &str) -> Vec<String> {
    head.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// The first two answers become 429; status, reason and one header apart
/// they are what the upstream sent, on both protocols.
#[test]
fn two_refused_then_through() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (flag, version) in [("--http1.1", "HTTP/1.1 "), ("--http2", "HTTP/2 ")] {
        let direct = Run::direct().to(NAME, upstream.address, &ca).go(three(flag, "/bytes/5000")).ok();
        let outcome = Run::new()
            .to(NAME, upstream.address, &ca)
            .rule("~m GET & ~u /bytes/ & ~s => 429 \"Rate limit exceeded\" times 2 per process")
            .go(three(flag, "/bytes/5000"))
            .ok();
        let (genuine, got) = (responses(&direct.stdout, 5000), responses(&outcome.stdout, 5000));
        assert_eq!(got.len(), 3, "{flag}: {}", outcome.finished);
        for (index, (head, body)) in got.iter().enumerate() {
            let first = head.lines().next().unwrap_or_default();
            assert_eq!(*body, pattern(5000), "{flag}: body {index}");
            let mut fields = lines(head);
            if index < 2 {
                let expected =
                    if flag == "--http2" { "HTTP/2 429 ".into() } else { format!("{version}429 Rate limit exceeded") };
                assert_eq!(first, expected, "{flag}");
                let named = fields.iter().position(|line| line.starts_with("x-retryscope-rule:"));
                fields.remove(named.unwrap_or_else(|| panic!("{flag}: no rule is named in {head}")));
            } else {
                assert!(first.starts_with(&format!("{version}200")), "{flag}: {first}");
            }
            let strip = |fields: Vec<String>| -> Vec<String> {
                fields.into_iter().filter(|line| !line.starts_with("date:")).collect()
            };
            assert_eq!(strip(fields), strip(lines(&genuine[index].0)), "{flag}: the other headers of {index}");
            assert!(head.to_ascii_lowercase().contains("content-length: 5000"), "{flag}: {head}");
        }
        let report = outcome.report();
        assert_eq!(report.count("injected", "429"), 2, "{report}");
        assert_eq!(report.count("statuses", "200"), 1, "{report}");
    }
}

/// How often a rule acts: by attempt, by call, by process; each curl here is
/// a process and each of its plain GETs a call.
#[test]
fn how_often() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for (rule, expected) in [
        ("~s => 503", [503, 503, 503]),
        ("~s => 503 times 1 per process", [503, 200, 200]),
        ("~s => 503 times 2 per rule", [503, 503, 200]),
        ("~s => 503 times 1 per operation", [503, 200, 200]),
        ("~c 404 => 503", [200, 200, 200]),
        ("~c 200 => 503", [503, 503, 503]),
    ] {
        let url = format!("https://{NAME}/hello?n=[1-3]");
        let command = words![clients::curl(), "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", url];
        let outcome = Run::new().to(NAME, upstream.address, &ca).rule(rule).go(command).ok();
        let got: Vec<u16> = outcome.text().lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(got, expected, "{rule}: {}", outcome.finished);
    }
}

/// Per call: a client that says which attempt it makes is linked exactly; the
/// wait between its attempts is backoff.
#[test]
fn per_call() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/hello");
    for (rule, statuses) in [
        ("~s => 503 times 1 per call", "503\n200\n"),
        ("~s => 503 times 2 per call", "503\n503\n200\n"),
        ("~s & ~attempt 1 => 503", "503\n200\n"),
        ("~s & ~attempt ..2 => 503", "503\n503\n200\n"),
        ("~s & !~retry => 503", "503\n200\n"),
        ("~s & (~attempt 1 | ~attempt 3) => 503", "503\n200\n"),
    ] {
        let command = words![clients::python(), clients::script("signalled.py"), url.clone(), "4", "0.3"];
        let outcome = Run::new().to(NAME, upstream.address, &ca).rule(rule).go(command).ok();
        assert_eq!(outcome.text(), statuses, "{rule}: {}", outcome.finished);
        let report = outcome.report();
        let retries = statuses.lines().count() as u64 - 1;
        let fields = ["calls", "attempts", "retries", "retries_exact", "retries_inferred", "give_ups"];
        let got: Vec<u64> = fields.iter().map(|field| report.sum(field)).collect();
        assert_eq!(got, [1, retries + 1, retries, retries, 0, 0], "{rule} {fields:?}: {report}");
        let backoff = &report.process("signalled.py")["backoff"];
        let waited = common::report::amount(backoff, "total_ms");
        assert!(waited >= 300.0 * retries as f64 - 5.0, "{rule}: it sleeps 0.3 s each time: {report}");
    }
}

/// A client that says nothing: what cannot be linked is not guessed at; each
/// attempt is the first of a call.
#[test]
fn without_a_signal() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/hello");
    let command = words![clients::curl(), "-sS", "--retry", "1", "--retry-delay", "1", "-w", "|%{http_code}", url];
    let rule = "~s & ~attempt 1 => 503 times 1 per process";
    let outcome = Run::new().to(NAME, upstream.address, &ca).rule(rule).go(command).ok();
    assert!(outcome.text().ends_with("|200"), "{}", outcome.finished);
    let report = outcome.report();
    assert_eq!((report.sum("attempts"), report.sum("retries_exact")), (2, 0), "{report}");
    assert_eq!(report.count("injected", "503"), 1, "{report}");
}

/// Whom a rule meets: by name, method, URL, header, process.
#[test]
fn filters() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/hello?mark=7");
    for (filter, meets) in [
        ("~d upstream.test", true),
        ("~d other.test", false),
        ("~m GET", true),
        ("~m POST", false),
        ("~u mark=7", true),
        ("mark=7", true),
        ("nowhere", false),
        ("~h x-probe:.*yes", true),
        ("~h x-probe:.*no", false),
        ("~comm curl", true),
        ("~comm python", false),
        ("~pid 1", false),
        ("! ~comm python & (~m PUT | ~m GET)", true),
        ("~m PUT | ~m POST", false),
        ("~attempt 2", false),
        ("~retry", false),
    ] {
        let command =
            words![clients::curl(), "-sS", "-H", "X-Probe: yes", "-o", "/dev/null", "-w", "%{http_code}", url.clone()];
        let rule = format!("{filter} & ~s => 418");
        let rule = if filter.contains('|') { format!("({filter}) & ~s => 418") } else { rule };
        let outcome = Run::new().to(NAME, upstream.address, &ca).rule(&rule).go(command).ok();
        assert_eq!(outcome.text(), if meets { "418" } else { "200" }, "{rule}: {}", outcome.finished);
    }
}

/// A HEAD response has no body before and after, and keeps its length field.
#[test]
fn head_request() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        let outcome = Run::new()
            .to(NAME, upstream.address, &ca)
            .rule("~m HEAD => 503")
            .go(words![clients::curl(), "-sSI", flag, format!("https://{NAME}/bytes/777")])
            .ok();
        let head = outcome.text().to_ascii_lowercase();
        assert!(head.lines().next().is_some_and(|line| line.contains(" 503")), "{flag}: {head}");
        assert!(head.contains("content-length: 777"), "{flag}: {head}");
        assert!(head.contains("x-retryscope-rule:"), "{flag}: {head}");
    }
}

/// A bodiless status that becomes one with a body, and the reverse, leaves
/// the connection in step: the next answer on it is the next request's.
#[test]
fn statuses_without_bodies_keep_the_connection_in_step() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        for (path, rule) in [
            ("/empty/204", "~c 204 => 503"),
            ("/empty/304", "~c 304 => 429"),
            ("/bytes/100", "~u bytes & ~s => 304"),
            ("/bytes/100", "~u bytes & ~s => 204"),
        ] {
            let next = format!("https://{NAME}/hello");
            let command = words![
                clients::curl(),
                "-sS",
                flag,
                "-m",
                "10",
                "-w",
                "|%{http_code}|",
                format!("https://{NAME}{path}"),
                next
            ];
            let outcome = Run::new().to(NAME, upstream.address, &ca).rule(rule).go(command).ok();
            let status = rule.rsplit(' ').next().expect("a status");
            assert!(outcome.text().contains(&format!("|{status}|")), "{flag} {rule}: {}", outcome.finished);
            assert!(outcome.text().ends_with("hello from /hello\n|200|"), "{flag} {rule}: {}", outcome.finished);
        }
    }
}

/// Several rules: the first that matches acts, each carries its name.
#[test]
fn rules_from_a_file() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca);
    let file = run.dir().join("rules.toml");
    std::fs::write(
        &file,
        "[[rule]]\nname = \"lists are throttled\"\nwhen = \"~u /list\"\nthen = { status = 429, reason = \"Slow down\" }\n\
         times = { count = 1, per = \"process\" }\n\n[[rule]]\nname = \"the rest fails\"\nwhen = \"~s\"\nthen = { status = 500 }\n",
    )
    .expect("writing rules");
    let url = |path: &str| format!("https://{NAME}{path}");
    let outcome = run
        .option("--rules")
        .option(&file)
        .go(words![clients::curl(), "-sSi", "--http1.1", url("/list"), url("/list"), url("/other")])
        .ok();
    let text = outcome.text();
    let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("HTTP/1.1")).map(str::trim).collect();
    assert_eq!(heads[0], "HTTP/1.1 429 Slow down", "{text}");
    assert!(heads[1].starts_with("HTTP/1.1 500") && heads[2].starts_with("HTTP/1.1 500"), "{text}");
    assert_eq!(text.matches("lists are throttled").count(), 1, "{text}");
    assert_eq!(text.matches("the rest fails").count(), 2, "{text}");
}

/// A chunked body and its trailers outlive the rewriting of its status.
#[test]
fn chunked_body_and_trailers_are_kept() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nX-One: 1\r\nTrailer: X-Sum\r\n\r\n").await?;
        conn.send("5;ext=1\r\nhello\r\n0\r\nX-Sum: 9\r\n\r\n").await?;
        conn.head().await.map(drop)
    });
    let steps =
        json!([{"send": "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"}, {"until": "\r\n\r\n"}, {"until": "X-Sum: 9\r\n\r\n"}]);
    let outcome = Run::new()
        .to(NAME, wire.address, &ca)
        .rule("~s => 503 \"Not Now\"")
        .stdin(steps.to_string().as_bytes())
        .start(words![clients::python(), clients::script("wire.py"), NAME, "443"])
        .finish()
        .ok();
    let got = outcome.json();
    let head = got["got"][0].as_str().unwrap_or_default();
    assert!(head.starts_with("HTTP/1.1 503 Not Now\r\nTransfer-Encoding: chunked\r\nX-One: 1\r\n"), "{got}");
    assert!(got["got"][1].as_str().is_some_and(|body| body.contains("hello\r\n0\r\n")), "{got}");
}

/// A large body under a rule is the genuine one.
#[test]
fn large_bodies_under_a_rule() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        for query in ["", "?chunked"] {
            let url = format!("https://{NAME}/bytes/3000000{query}");
            let outcome = Run::new()
                .to(NAME, upstream.address, &ca)
                .rule("~s => 503")
                .go(words![clients::curl(), "-sS", flag, url])
                .ok();
            assert_eq!(sha256(&outcome.stdout), sha256(&pattern(3_000_000)), "{flag} {query}");
            assert_eq!(outcome.report().count("injected", "503"), 1);
        }
    }
}
