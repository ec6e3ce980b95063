//! HTTP/1, message by message: what the ends of the other tests leave out.
//! Both ends read the same as in a direct run.
mod common;

use common::{
    NAME, Run, SOON, TestCa, Wire,
    both::{both, same},
    by_hand::ByHand,
    report::number,
    until,
    wire::Face,
};
use serde_json::{Value, json};

/// A response that its request frames.
fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Targets in every form (RFC 9112 §3.2), and what `CONNECT` makes of a
/// connection.
#[test]
fn every_form_of_target() {
    let refused = "CONNECT elsewhere.test:443 HTTP/1.1\r\nHost: elsewhere.test:443\r\n\r\n";
    let steps = json!([
        {"send": "GET https://elsewhere.test/a?b=c#d HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n"}, {"until": "absolute"},
        {"send": "OPTIONS * HTTP/1.1\r\nHost: upstream.test\r\n\r\n"}, {"until": "asterisk"},
        {"send": "GET /%20%zz?{}|\\^`\u{e9} HTTP/1.1\r\nHost: upstream.test\r\n\r\n"}, {"until": "origin"},
        {"send": refused}, {"until": "refused"},
        {"send": refused}, {"until": "\r\n\r\n"}, {"send": "\u{0}tunnelled\r\n\r\n"}, {"until": "\u{0}too"},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        for form in ["absolute", "asterisk", "origin"] {
            conn.head().await?;
            conn.send(ok(form)).await?;
        }
        conn.head().await?;
        conn.send("HTTP/1.1 405 Not Here\r\nContent-Length: 7\r\n\r\nrefused").await?;
        conn.head().await?;
        // A 2xx to CONNECT has no body, whatever it says (RFC 9112 §6.3, 2).
        conn.send("HTTP/1.1 200 Connected\r\nContent-Length: 5\r\n\r\n").await?;
        conn.until("\0tunnelled\r\n\r\n").await?;
        conn.send("\0too").await?;
        conn.ended().await
    });
    same(&results);
}

/// HTTP/1.0 with and without a connection that is kept; a response of the
/// other version than its request.
#[test]
fn http10() {
    let get = |fields: &str| format!("GET / HTTP/1.0\r\n{fields}\r\n");
    let kept = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nkept";
    let steps = json!([
        {"send": get("Connection: keep-alive\r\n")}, {"until": "kept"},
        {"send": get("Connection: Keep-Alive\r\nHost: upstream.test\r\n")}, {"until": "kept"},
        {"send": "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nend"}, {"eof": true},
        {"connect": true},
        {"send": get("")}, {"eof": true},
    ]);
    let results = both(Face::default(), &steps, move |mut conn| async move {
        if conn.number == 0 {
            for _ in 0..2 {
                conn.head().await?;
                conn.send(kept).await?;
            }
            conn.head().await?;
            conn.until("end").await?;
        } else {
            conn.head().await?;
        }
        conn.send("HTTP/1.1 200 OK\r\n\r\nuntil the end").await?;
        conn.close().await;
        Ok(())
    });
    same(&results);
}

/// Every interim status that there can be passes, and before its request's
/// body has; 101 alone ends HTTP, and only where it was asked for.
#[test]
fn every_interim_response() {
    let interim: Vec<u16> = (100..200).filter(|&status| status != 101).collect();
    let mut steps = vec![json!({"send": "POST / HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 4\r\n\r\n"})];
    steps.extend(interim.iter().map(|status| json!({"until": format!("X-Of: {status}\r\n\r\n")})));
    steps.extend([json!({"send": "body"}), json!({"until": "final"})]);
    // Once more, behind a request that is still to be answered.
    let get = "GET / HTTP/1.1\r\nHost: upstream.test\r\n\r\n";
    steps.extend([json!({"send": format!("{get}{get}")}), json!({"until": "first"}), json!({"until": "second"})]);
    let results = both(Face::default(), &json!(steps), move |mut conn| {
        let interim = interim.clone();
        async move {
            conn.head().await?;
            for status in interim {
                conn.send(format!("HTTP/1.1 {status} Interim {status}\r\nX-Of: {status}\r\n\r\n")).await?;
            }
            conn.until("body").await?;
            conn.send(ok("final")).await?;
            for answer in ["first", "second"] {
                conn.head().await?;
                conn.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 199\r\n\r\n").await?;
                conn.send(ok(answer)).await?;
            }
            conn.ended().await
        }
    });
    same(&results);
}

/// Chunks pass as they are cut, with their extensions and trailers, both ways
/// at once.
#[test]
fn chunks_by_the_byte() {
    let body =
        "5;a=\"b;\\\"c\"\r\nhello\r\n00000000A \r\n0123456789\r\n1\r\n!\r\n000;last\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n";
    let head = "Transfer-Encoding: gzip, Chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n\r\n";
    let steps = json!([
        {"send": format!("POST /t HTTP/1.1\r\nHost: upstream.test\r\n{head}")},
        {"until": "\r\n\r\n"}, {"send": body}, {"until": "x-sum: 2\r\n\r\n"},
        {"send": format!("POST /t HTTP/1.1\r\nHost: upstream.test\r\n{head}{body}")}, {"until": "x-sum: 2\r\n\r\n"},
    ]);
    let results = both(Face::default(), &steps, move |mut conn| async move {
        conn.head().await?;
        conn.send(format!("HTTP/1.1 200 OK\r\n{head}")).await?;
        conn.until("x-sum: 2\r\n\r\n").await?;
        conn.send(body).await?;
        conn.head().await?;
        conn.until("x-sum: 2\r\n\r\n").await?;
        conn.send(format!("HTTP/1.1 200 OK\r\n{head}{body}")).await?;
        conn.ended().await
    });
    same(&results);
}

/// Heads of 200 KiB are understood; longer ones pass all the same.
#[test]
fn large_heads() {
    for kib in [200, 400] {
        let fields: String = (0..kib).map(|n| format!("X-Field-{n}: {}\r\n", "v".repeat(1024 - 20))).collect();
        let steps = json!([
            {"send": format!("GET / HTTP/1.1\r\nHost: upstream.test\r\n{fields}\r\n")}, {"until": "large"},
            {"send": "GET /next HTTP/1.1\r\nHost: upstream.test\r\n\r\n"}, {"until": "small"},
        ]);
        let results = both(Face::default(), &steps, move |mut conn| {
            let fields = fields.clone();
            async move {
                conn.head().await?;
                conn.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\nlarge")).await?;
                conn.head().await?;
                conn.send(ok("small")).await?;
                conn.ended().await
            }
        });
        let (_, heads) = same(&results);
        assert!(heads[0].len() > kib * 1000, "{}", heads[0].len());
    }
}

/// An upstream that says `Connection: close` to one of several requests under
/// way answers none of those after it; and one that closes a connection which
/// it had promised to keep may meet a request on its way.
#[test]
fn closes_that_cross_requests() {
    let get = |n: u32| format!("GET /{n} HTTP/1.1\r\nHost: upstream.test\r\n\r\n");
    let three = format!("{}{}{}", get(1), get(2), get(3));
    let announced = json!([{"send": three}, {"until": "answer 1"}, {"eof": true}]);
    let results = both(Face::default(), &announced, |mut conn| async move {
        for _ in 0..3 {
            conn.head().await?;
        }
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8\r\n\r\nanswer 1").await?;
        conn.close().await;
        Ok(())
    });
    let (got, _) = same(&results);
    assert_eq!(got["got"][1], "", "{got}");

    let crossed = json!([
        {"send": get(1)}, {"until": "answer 1"}, {"send": get(2)}, {"eof": true},
        {"connect": true}, {"send": get(3)}, {"until": "answer 3"},
    ]);
    let results = both(Face::default(), &crossed, |mut conn| async move {
        if conn.number == 0 {
            conn.head().await?;
            conn.send(ok("answer 1")).await?;
            // It has the next one already, and ends in spite of it.
            conn.head().await?;
            conn.close().await;
            return Ok(());
        }
        conn.head().await?;
        conn.send(ok("answer 3")).await?;
        conn.ended().await
    });
    same(&results);

    // The goodbye is there before the request is.
    let late = json!([{"send": get(1)}, {"until": "answer 1"}, {"eof": true}, {"connect": true}, {"send": get(2)},
                      {"until": "answer 2"}]);
    let results = both(Face::default(), &late, |mut conn| async move {
        conn.head().await?;
        conn.send(ok(&format!("answer {}", conn.number + 1))).await?;
        if conn.number == 0 {
            conn.close().await;
            return Ok(());
        }
        conn.ended().await
    });
    same(&results);
}

/// A refusal that comes while the body is still being sent, and with which
/// the upstream closes: the client has it all, whatever it still sends.
#[test]
fn a_refusal_in_the_middle_of_a_body() {
    let head = "POST / HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 1000000\r\n\r\nfirst part";
    let steps = json!([
        {"send": head}, {"until": "too large"}, {"send": "x".repeat(100_000)}, {"eof": true},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.until("first part").await?;
        conn.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large").await?;
        conn.exact(100_000).await?;
        conn.close().await;
        Ok(())
    });
    same(&results);
}

/// An upload to an upstream that takes no more, given up with a reset: the
/// upstream has the reset at once, although the client's bytes before it were
/// never taken.
#[test]
fn a_held_up_upload_is_reset() {
    for upgraded in [false, true] {
        let ca = TestCa::new();
        let wire = Wire::start(&ca, move |mut conn| async move {
            conn.head().await?;
            if upgraded {
                conn.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: upgrade\r\n\r\n").await?;
            }
            conn.note("reads no more");
            let error = conn.reset_comes().await?;
            conn.note(&format!("reset: {:?}", error.kind()));
            Ok(())
        });
        let mut client = ByHand::start(&wire, &ca);
        client.step(&json!(["open", "upload"]));
        let framing = if upgraded { "Connection: Upgrade\r\nUpgrade: raw" } else { "Content-Length: 1000000000" };
        client.step(&json!(["send", "upload", format!("PUT /big HTTP/1.1\r\nHost: {NAME}\r\n{framing}\r\n\r\n")]));
        if upgraded {
            client.step(&json!(["head", "upload"]));
        }
        wire.wait_for("reads no more");
        let sent = client.step(&json!(["flood", "upload"]));
        assert!(sent[1].as_u64().is_some_and(|sent| sent < 100_000_000), "nothing was held up: {sent}");
        client.step(&json!(["reset", "upload"]));
        // The command itself is still there.
        assert_eq!(wire.wait_for("reset: "), "reset: ConnectionReset", "upgraded={upgraded}");
        let report = client.finish();
        assert_eq!(report.total("attempts"), 1, "{report}");
        let (statuses, errors) = if upgraded {
            ([("101".into(), 1)].into(), [].into())
        } else {
            ([].into(), [("cancelled".into(), 1)].into())
        };
        assert_eq!((report.counts("statuses"), report.counts("errors")), (statuses, errors), "{report}");
    }
}

/// What lies unread at our end of the client's connection.
fn unread(client_port: u64) -> u32 {
    let entries = procfs::net::tcp().expect("/proc/net/tcp");
    let mut ours = entries.iter().filter(|entry| u64::from(entry.remote_address.port()) == client_port);
    ours.next().map_or(0, |entry| entry.rx_queue)
}

/// The same, given up by a plain close that the client's last bytes precede:
/// the attempt was cancelled then, and the next one is its retry.
#[test]
fn a_held_up_upload_is_given_up() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        if conn.number > 0 {
            conn.exact(1).await?;
            conn.send("HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n").await?;
            return conn.ended().await;
        }
        conn.note("reads no more");
        conn.reset_comes().await?;
        Ok(())
    });
    let request = |number: u32, length: u32| {
        format!(
            "PUT /big HTTP/1.1\r\nHost: {NAME}\r\namz-sdk-invocation-id: 5f1c1f4e-0000-4000-8000-000000000002\r\n\
             amz-sdk-request: attempt={number}; max=3\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut client = ByHand::start(&wire, &ca);
    client.step(&json!(["open", "first"]));
    client.step(&json!(["send", "first", request(1, 1_000_000_000)]));
    wire.wait_for("reads no more");
    let port = client.step(&json!(["port", "first"]))[1].as_u64().expect("a port");
    let piece = "x".repeat(60_000);
    until("something lies unread for good", SOON, || {
        client.step(&json!(["send", "first", piece]));
        let mut looks = 0;
        while looks < 40 && unread(port) > 0 {
            std::thread::park_timeout(std::time::Duration::from_millis(5));
            looks += 1;
        }
        (looks == 40).then_some(())
    });
    client.step(&json!(["close", "first"]));
    // Ours has the end, behind what it has not read.
    until("the end has come", SOON, || {
        let entries = procfs::net::tcp().expect("/proc/net/tcp");
        let mut ours = entries.iter().filter(|entry| u64::from(entry.remote_address.port()) == port);
        ours.next().filter(|entry| entry.state == procfs::net::TcpState::CloseWait).map(|_| ())
    });
    client.step(&json!(["open", "second"]));
    client.step(&json!(["send", "second", request(2, 1)]));
    client.step(&json!(["send", "second", "x"]));
    let head: Value = client.step(&json!(["head", "second"]));
    assert!(head[1].as_str().is_some_and(|head| head.starts_with("HTTP/1.1 201 ")), "{head}");
    let report = client.finish();
    assert_eq!((report.total("attempts"), report.total("retries")), (2, 1), "{report}");
    assert_eq!(report.counts("errors"), [("cancelled".into(), 1)].into(), "{report}");
    assert_eq!(number(&report.process("tls_by_hand.py")["backoff"], "count"), 1, "{report}");
}

/// Four requests, each on its own connection; prints what each is answered.
const LONG_HEADS: &str = "import socket, ssl, sys\n\
    host = sys.argv[1]\n\
    fields = ''.join(f'x-long-{at}: ' + 'y' * 8000 + '\\r\\n' for at in range(34))\n\
    for line, more in [('PUT /fields', fields), ('GET /target?' + 'z' * 300000, ''), ('GET /answer', ''), ('GET /short', '')]:\n\
    \x20   stream = socket.create_connection((host, 443), timeout=20)\n\
    \x20   stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host)\n\
    \x20   stream.sendall(f'{line} HTTP/1.1\\r\\nHost: {host}\\r\\n{more}\\r\\n'.encode())\n\
    \x20   answer = b''\n\
    \x20   while not answer.partition(b'\\r\\n\\r\\n')[2]: answer += stream.recv(65536) or sys.exit('cut')\n\
    \x20   print(answer.partition(b'\\r\\n\\r\\n')[2].decode(), flush=True)\n";

/// Heads that are too long for us pass whole, and are attempts with what is known
/// of them; nothing says that they failed.
#[test]
fn long_heads_are_attempts() {
    let ca = TestCa::new();
    let long: String = (0..34).map(|at| format!("x-long-{at}: {}\r\n", "y".repeat(8_000))).collect();
    let fields = long.clone();
    let upstream = Wire::start(&ca, move |mut conn| {
        let fields = fields.clone();
        async move {
            let head = conn.head().await?;
            let more = if head.starts_with("GET /answer ") { fields } else { String::new() };
            let length = head.len().to_string();
            conn.send(format!("HTTP/1.1 200 OK\r\n{more}content-length: {}\r\n\r\n{length}", length.len())).await?;
            conn.ended().await
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("https://{NAME}");
    let file = folder.path().join("a.jsonl");
    let run = Run::new().to(NAME, upstream.address, &ca).option("--save").option(&file);
    let outcome = run.go(words![common::clients::python(), "-c", LONG_HEADS, NAME]).ok();
    // As they were sent, to the byte.
    let heads: Vec<usize> = upstream.heads().iter().map(String::len).collect();
    assert!(heads[0] > 272_000 && heads[1] > 300_000, "{heads:?}");
    assert_eq!(outcome.text(), format!("{}\n{}\n{}\n{}\n", heads[0], heads[1], heads[2], heads[3]));

    let text = std::fs::read_to_string(&file).expect("the recording");
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let lines: Vec<_> = lines.filter(|line| line["type"] == "attempt").collect();
    assert_eq!(lines.len(), 4, "{text}");
    for (line, (method, start, unread)) in lines.iter().zip([
        ("PUT", "/fields", true),
        ("GET", "/target?zzz", true),
        ("GET", "/answer", true),
        ("GET", "/short", false),
    ]) {
        assert_eq!(
            (&line["method"], &line["status"], &line["class"]),
            (&method.into(), &200.into(), &"success".into())
        );
        assert!(line["url"].as_str().is_some_and(|it| it.starts_with(&format!("{url}{start}"))), "{}", line["url"]);
        assert_eq!(line["failure"] == "unread", unread, "{start}");
    }
    let show = |more: &[&str]| {
        let mut words = words!["show", &file];
        words.extend(more.iter().map(std::ffi::OsString::from));
        let mut show = common::run::retryscope(words);
        show.close_stdin();
        show.finish(SOON).ok().text()
    };
    assert_eq!(show(&["~c 200"]).lines().count(), 4);
    let shown = show(&["--id", "1"]);
    assert!(shown.contains("a head was too long to be read whole"), "{shown}");

    let report = outcome.report();
    assert_eq!((report.total("attempts"), report.count("statuses", "200")), (4, 4), "{report}");
    let rows = report.0["fidelity"].as_array().into_iter().flatten();
    let told: Vec<_> = rows.filter(|row| row["text"].to_string().contains("too long to be read whole")).collect();
    assert_eq!((told.len(), &told[0]["count"]), (1, &3.into()), "{report}");
}
