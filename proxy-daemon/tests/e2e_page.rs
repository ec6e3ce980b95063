//! The page of a running instance in a real browser: the talk's scene, all
//! that can be done with it, and what hostile upstreams make of it.
//! `RETRYSCOPE_TEST_PICTURES` names a folder for screenshots.
mod common;

use std::io;

use common::{
    Browser, NAME, Page, Run, TestCa, Upstream, Wire, WireConn,
    browser::{clean, contains},
    clients,
    run::RunningRun,
    servers::{AWS, Moto},
};
use serde_json::{Value, json};

#[test]
fn the_talks_scene() {
    let moto = Moto::shared();
    let mut run = Run::new().upstream_ca(&moto.ca.pem()).option("--page");
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let mut app = run.start(words![clients::python(), clients::script("scene.py")]);
    app.line("ready");
    let page = Page::of(app.pid);
    let seen = Browser::open(&page, "scene").through(|wanted| {
        match wanted {
            "ask" => app.write(b"\n"),
            _ => drop(app.line("done: ")),
        }
        String::new()
    });
    clean(&seen, &page);
    let steps = &seen["steps"];
    assert_eq!((&steps["empty"], &steps["unended"]), (&json!([]), &json!([])), "{seen:#}");
    assert_eq!(steps["editor"]["status"], "200");
    contains(&steps["editor"]["headers"], &["ontent-"]);
    contains(&steps["editor"]["body"], &["ListAllMyBucketsResult"]);
    contains(&steps["held"], &["s3.ListBuckets: attempt 1 of 5, response 200", "goes on by itself in"]);
    let flows = steps["flows"].as_array().expect("rows");
    let told: Vec<_> = flows.iter().map(|row| (row["attempt"].as_str(), row["outcome"].as_str())).collect();
    assert_eq!(
        told,
        [(Some("3 of 5"), Some("200")), (Some("2 of 5"), Some("200 → 429")), (Some("1 of 5"), Some("200 → 429"))],
        "{seen:#}"
    );
    assert!(flows[..2].iter().all(|row| row["waited"] != "") && flows[2]["waited"] == "", "{seen:#}");
    contains(&steps["detail"], &["Its call: 3 attempts", "in backoff", "3: 200, after a wait of"]);
    contains(
        &steps["past"],
        &["attempt 3 went on as it was", "attempt 2 went on, changed", "attempt 1 went on, changed"],
    );
    contains(&steps["overview"], &["s3.ListBuckets call was retried", "spent in backoff"]);
    app.close_stdin();
    let outcome = app.finish().ok();
    contains(&json!(outcome.text()), &["buckets after 429,429,200"]);
}

/// Asks for a path, or what the line says, and tells the status.
const ASKS: &str = "import http.client, ssl, sys, threading, time\n\
    context = ssl.create_default_context()\n\
    connection = http.client.HTTPSConnection(sys.argv[1], context=context)\n\
    calls = [0]\n\
    def ask(path, attempt=1, again=False, over=None):\n\
    \x20   over = over or connection\n\
    \x20   calls[0] += not again\n\
    \x20   over.request('GET', path, headers={'amz-sdk-invocation-id': str(calls[0]), 'amz-sdk-request': f'attempt={attempt}; max=3'})\n\
    \x20   answer = over.getresponse()\n\
    \x20   answer.read()\n\
    \x20   return answer.status\n\
    for n in range(6):\n\
    \x20   ask('/hello')\n\
    ask('/status/404')\n\
    for n in range(2):\n\
    \x20   ask('/status/503')\n\
    \x20   time.sleep(0.05)\n\
    \x20   ask('/hello', 2, True)\n\
    print('ready', flush=True)\n\
    for line in sys.stdin:\n\
    \x20   word = line.strip()\n\
    \x20   if word == 'hold':\n\
    \x20       other = http.client.HTTPSConnection(sys.argv[1], context=context)\n\
    \x20       threading.Thread(target=ask, args=('/held', 1, False, other), daemon=True).start()\n\
    \x20       print('answered', 0, flush=True)\n\
    \x20   elif word == 'retry':\n\
    \x20       ask('/status/503')\n\
    \x20       print('answered', ask('/hello', 2, True), flush=True)\n\
    \x20   else:\n\
    \x20       print('answered', ask(word.split(' ')[1]), flush=True)\n";

/// Has the program do it; what came of it.
fn have(app: &mut RunningRun, at: &mut usize, word: &str) -> String {
    app.write(format!("{word}\n").as_bytes());
    let (line, after) = app.line_after(*at, "answered");
    *at = after;
    line.trim().rsplit(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn everything_that_the_page_can_do() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).option("--page");
    let mut app = Some(run.start(words![clients::python(), "-c", ASKS, NAME]));
    let page = app.as_mut().map(|app| (app.line("ready"), Page::of(app.pid)).1).expect("running");
    let mut at = 0;
    let seen = Browser::open(&page, "tour").through(|wanted| {
        if wanted == "end" {
            let mut app = app.take().expect("running");
            app.close_stdin();
            app.finish().ok();
            return String::new();
        }
        have(app.as_mut().expect("running"), &mut at, wanted)
    });
    clean(&seen, &page);
    assert_eq!(seen["axe"], json!([]), "{:#}", seen["axe"]);
    let steps = &seen["steps"];
    contains(&steps["verdict"], &["calls were retried"]);
    assert_eq!(steps["charts"].as_array().map(Vec::len), Some(4));
    contains(&steps["help"], &["Shortcuts", "type a filter"]);
    let tabs = steps["tabs"].as_array().expect("stops");
    assert!(tabs.iter().all(|stop| stop["visible"] == true), "every stop is seen: {tabs:#?}");
    contains(&steps["tabs"], &["Overview", "Flows", "Timeline", "Rules", "Intercepts"]);

    contains(&steps["wrongRule"], &["~dd", "^"]);
    assert_eq!(
        (&steps["ruled"], &steps["unruled"], &steps["again"], &steps["removed"]),
        (&json!("503"), &json!("200"), &json!("503"), &json!("200")),
        "{steps:#}"
    );
    contains(&steps["offers"], &["~retry"]);
    contains(&steps["completed"], &["~retry"]);
    let retries = steps["retries"].as_array().expect("rows");
    assert!(retries.len() == 2 && retries.iter().all(|row| row["attempt"] == "2 of 3"), "{retries:#?}");
    contains(&steps["wrongFilter"], &["~d"]);
    assert!(steps["found"].as_array().is_some_and(|rows| rows.len() == 1 && rows[0]["outcome"] == "404"), "{steps:#}");
    contains(&steps["linked"], &["#/flows?filter=%7Ec+404"]);
    contains(&steps["opened"], &["URL", "https://upstream.test/", "Process", "python"]);
    contains(&steps["curl"], &["curl", "https://upstream.test/"]);

    let number = |name: &str| steps[name].as_f64().unwrap_or(f64::NAN);
    assert!(number("zoomed") < 0.9 && number("keyZoomed") < 0.9, "{steps:#}");
    assert!((0.9..1.5).contains(&number("reset")), "{steps:#}");
    contains(&steps["hovered"], &["attempt", "took", "python"]);
    let stepped = steps["stepped"].as_array().expect("steps");
    assert!(
        stepped.iter().all(Value::is_string) && stepped[0] != stepped[1] && stepped[0] == stepped[2],
        "{stepped:#?}"
    );
    contains(&steps["motion"], &["0s"]);
    let reloaded = steps["reloaded"].as_str().unwrap_or_default();
    assert!(reloaded.ends_with("#/flows"), "{reloaded}");
    assert_eq!(steps["blocked"], json!({"ran": false, "typed": true, "markup": true, "out": "refused"}));
    assert!(steps["ended"].as_array().is_some_and(|rows| rows.len() > 8), "what was known stays: {steps:#}");
}

/// What would show that something became markup or script.
const MARKUP: &str = "</script><img/src=x/onerror=window.pwned=1><svg/onload=alert(1)>";

/// Answers each request with what could be markup, steer something, or is no
/// text at all.
async fn answers(mut conn: WireConn) -> io::Result<()> {
    loop {
        let head = conn.head().await?;
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let long = |length| format!("X-Long: {}\r\n", "A".repeat(length)).into_bytes();
        let fields: Vec<u8> = if target.contains("long") {
            long(200 * 1024)
        } else if target.contains("huge") {
            long(1 << 20)
        } else {
            let mut fields = format!("X-Markup: {MARKUP}\r\nX-'*: 1\r\n").into_bytes();
            fields.extend_from_slice(
                b"X-Bytes: \xff\xfe\xc3(\xf0\x28\x8c\x28\r\nX-Steers: \xe2\x80\xae \xc2\x9b31m\ttab\r\n",
            );
            if target.contains("steers") {
                // No HTTP any more: it is passed on unread.
                fields.extend_from_slice(b"X-Escape: \x1b[31m\x07\r\n");
            }
            fields
        };
        let body = format!("{MARKUP}\u{202e}\u{1}<!--");
        let mut answer =
            format!("HTTP/1.1 503 {MARKUP}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n", body.len())
                .into_bytes();
        answer.extend_from_slice(&fields);
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(body.as_bytes());
        conn.send(answer).await?;
    }
}

/// A client that is no better: its name, its command, its paths, its headers.
const HOSTILE: &str = "import ctypes, socket, ssl, sys\n\
    ctypes.CDLL(None).prctl(15, b'<b>\\x1b[31m\\xff', 0, 0, 0)\n\
    markup = sys.argv[2]\n\
    def ask(path):\n\
    \x20   raw = socket.create_connection((sys.argv[1], 443))\n\
    \x20   over = ssl.create_default_context().wrap_socket(raw, server_hostname=sys.argv[1])\n\
    \x20   over.sendall(b'GET ' + path + b' HTTP/1.1\\r\\nHost: ' + sys.argv[1].encode() + b'\\r\\nUser-Agent: ' + markup.encode() + b'\\r\\nX-Own: \\xff\\xe2\\x80\\xae\\x9b1m\\r\\n\\r\\n')\n\
    \x20   came = b''\n\
    \x20   while not came.endswith(b'<!--'):\n\
    \x20       came += over.recv(65536)\n\
    for path in (markup.encode(), b'%3Cscript%3E', b'long', b'huge', b'steers'):\n\
    \x20   ask(b'/' + path)\n\
    print('ready', flush=True)\n\
    for line in sys.stdin:\n\
    \x20   ask(b'/held/' + markup.encode())\n\
    \x20   print('answered', flush=True)\n";

#[test]
fn nothing_that_upstreams_and_clients_say_comes_alive() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, answers);
    let rule = format!("~u /hello => 503 name \"{}\"", MARKUP.replace('"', ""));
    let run = Run::new().to(NAME, wire.address, &ca).option("--page").rule(&rule);
    let mut app = run.start(words![clients::python(), "-c", HOSTILE, NAME, MARKUP]);
    app.line("ready");
    let page = Page::of(app.pid);
    let seen = Browser::open(&page, "hostile").through(|wanted| {
        match wanted {
            "ask" => app.write(b"\n"),
            _ => drop(app.line("answered")),
        }
        String::new()
    });
    clean(&seen, &page);
    assert_eq!((&seen["elements"]["frames"], &seen["elements"]["scripts"]), (&json!(0), &json!(2)), "{seen:#}");
    let steps = &seen["steps"];
    // It is all there, as text.
    contains(&steps["editor"], &[MARKUP, "\u{fffd}"]);
    contains(&steps["held"], &["onerror"]);
    let details = steps["details"].to_string();
    for part in ["onerror=window.pwned", "\\\\u{1b}", "\\\\u{202e}", "\u{fffd}", "alert(1)"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    assert!(steps["longest"].as_u64().is_some_and(|length| length >= 200 * 1024), "{}", steps["longest"]);
    contains(&steps["Rules"], &["onerror"]);
    contains(&steps["Overview"], &["onerror"]);
    for raw in ['\u{1b}', '\u{202e}', '\u{9b}'] {
        let shown = format!("{}{}{}", steps["flows"], steps["details"], steps["Overview"]);
        assert!(!shown.contains(raw), "{raw:?} is shown as it came");
    }
    app.close_stdin();
    app.finish().ok();
}
