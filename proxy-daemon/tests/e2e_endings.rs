//! Ends that are out of order, early, one-sided or never come: each side
//! still gets what the other had said, and every attempt is counted as what
//! it was.
mod common;

use std::{sync::Arc, time::Instant};

use common::{
    NAME, Run, SOON, TestCa, Upstream, Wire,
    by_hand::ByHand,
    clients,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, OK, RST_STREAM, SETTINGS, frame, frames, get, greet,
        next, next_of, post, status,
    },
    report::{amount, number},
    until,
    wire::Face,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// `:status: 413`, of which the table has the name alone.
const TOO_LARGE: &[u8] = b"\x08\x03413";
/// `:status: 304` with `content-length: 1234`.
const NOT_MODIFIED: &[u8] = b"\x8b\x0f\x0d\x041234";

const INTERNAL_ERROR: u32 = 2;

/// Streams that the client leaves unread, with all of their windows used up,
/// hold up none of the others.
#[test]
fn unread_streams_hold_up_no_others() {
    let size = 2 * 1024 * 1024;
    let unread = [1, 3, 5, 7, 9, 11, 13, 15];
    let mut steps = vec![json!({"unread": unread})];
    steps.extend(unread.map(|id| json!({"open": id, "fields": get(&format!("/bytes/{size}"))})));
    // The client grants each stream the protocol's ordinary window.
    steps.extend(unread.map(|id| json!({"got": [id, 65_535]})));
    steps.push(json!({"open": 17, "fields": get(&format!("/bytes/{size}"))}));
    steps.push(json!({"ended": 17}));
    steps.push(json!({"open": 19, "fields": get("/hello")}));
    steps.push(json!({"ended": 19}));
    for direct in [true, false] {
        let ca = TestCa::new();
        let upstream = Upstream::start(&ca);
        let (got, outcome) = frames(direct, upstream.address, &ca, &json!(steps));
        assert_eq!(got["streams"]["17"]["length"], size, "direct={direct}: {got}");
        assert_eq!(got["streams"]["19"]["start"], "hello from /hello\n", "direct={direct}: {got}");
        for id in unread {
            assert_eq!(got["streams"][id.to_string()]["length"], 65_535, "direct={direct}: {got}");
        }
        if !direct {
            let report = outcome.report();
            assert_eq!((report.total("attempts"), report.count("statuses", "200")), (10, 10), "{report}");
            assert_eq!(report.connections("intercepted"), 1, "{report}");
        }
    }
}

/// An upstream that answers before it has the whole request, and with the
/// same write wants no more of it: the client gets the answer, its body, and
/// the reset that is no error.
#[test]
fn an_early_answer_arrives_although_its_stream_is_reset() {
    let steps = json!([
        {"open": 1, "fields": post("/upload"), "end": false},
        {"upload": [1, 4 * 1024 * 1024]}, {"ended": 1}, {"reset": 1},
    ]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let stream = next_of(&mut conn, HEADERS).await?;
            next_of(&mut conn, DATA).await?;
            let answer = [
                frame(HEADERS, END_HEADERS, stream, TOO_LARGE),
                frame(DATA, END_STREAM, stream, b"too large"),
                frame(RST_STREAM, 0, stream, &0_u32.to_be_bytes()),
            ];
            conn.send(answer.concat()).await?;
            conn.ended().await
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        let stream = &got["streams"]["1"];
        assert_eq!(status(&got, 1), "413", "direct={direct}: {got}");
        assert_eq!((&stream["start"], &stream["reset"]), (&json!("too large"), &json!(0)), "direct={direct}: {got}");
        if !direct {
            let report = outcome.report();
            assert_eq!(report.count("statuses", "413"), 1, "{report}");
            assert!(report.counts("errors").is_empty(), "{report}");
        }
    }
}

/// A response that breaks off arrives as far as it went, and then its reset
/// with the upstream's own code, even if all came at once.
#[test]
fn a_reset_does_not_overtake_what_came_before() {
    let steps = json!([{"open": 1, "fields": get("/half")}, {"reset": 1}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let stream = next_of(&mut conn, HEADERS).await?;
            let answer = [
                frame(HEADERS, END_HEADERS, stream, OK),
                frame(DATA, 0, stream, b"the first half"),
                frame(RST_STREAM, 0, stream, &INTERNAL_ERROR.to_be_bytes()),
            ];
            conn.send(answer.concat()).await?;
            conn.ended().await
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        let stream = &got["streams"]["1"];
        assert_eq!(status(&got, 1), "200", "direct={direct}: {got}");
        assert_eq!(stream["start"], "the first half", "direct={direct}: {got}");
        assert_eq!(
            (&stream["reset"], &stream["ended"]),
            (&json!(INTERNAL_ERROR), &json!(false)),
            "direct={direct}: {got}"
        );
        if !direct {
            assert_eq!(outcome.report().count("errors", "reset"), 1, "{}", outcome.report());
        }
    }
}

/// The upstream's goodbye reaches the client while a long stream is still
/// open, and that stream goes on to its end.
#[test]
fn a_goodbye_passes_while_a_stream_goes_on() {
    let steps = json!([
        {"open": 1, "fields": post("/long"), "end": false},
        {"got": [1, 5]}, {"goodbye": true}, {"finish": 1}, {"ended": 1}, {"eof": true},
    ]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let stream = next_of(&mut conn, HEADERS).await?;
            let goodbye = [stream.to_be_bytes(), 0_u32.to_be_bytes()].concat();
            let begun = [
                frame(HEADERS, END_HEADERS, stream, OK),
                frame(DATA, 0, stream, b"begun"),
                frame(GOAWAY, 0, 0, &goodbye),
            ];
            conn.send(begun.concat()).await?;
            // The client ends its request once it knows of the goodbye.
            loop {
                let frame = next(&mut conn).await?;
                if frame.kind == DATA && frame.flags & END_STREAM != 0 {
                    break;
                }
            }
            conn.send(frame(DATA, END_STREAM, stream, b" and done")).await?;
            conn.close().await;
            Ok(())
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        assert_eq!(got["goodbyes"][0], 0, "direct={direct}: {got}");
        assert_eq!(got["streams"]["1"]["start"], "begun and done", "direct={direct}: {got}");
        assert_eq!(got["streams"]["1"]["reset"], Value::Null, "direct={direct}: {got}");
        if !direct {
            let report = outcome.report();
            assert_eq!((report.total("attempts"), report.count("statuses", "200")), (1, 1), "{report}");
            assert!(report.counts("errors").is_empty(), "{report}");
        }
    }
}

/// A whole response and the abrupt end of its connection in one segment: the
/// response counts.
#[test]
fn a_response_survives_the_end_that_comes_with_it() {
    let steps = json!([{"open": 1, "fields": get("/last")}, {"ended": 1}, {"eof": true}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            // What is left unread at the end would make a reset of it.
            let (mut stream, mut acknowledged) = (0, false);
            while stream == 0 || !acknowledged {
                let frame = next(&mut conn).await?;
                match frame.kind {
                    HEADERS => stream = frame.stream,
                    SETTINGS if frame.flags & ACK != 0 => acknowledged = true,
                    _ => {}
                }
            }
            conn.cork();
            let answer = [frame(HEADERS, END_HEADERS, stream, OK), frame(DATA, END_STREAM, stream, b"last words")];
            conn.send(answer.concat()).await?;
            conn.cut();
            Ok(())
        });
        // Whether a client reads an end without close_notify as one is its own affair.
        let outcome = Run::via(direct)
            .to(NAME, wire.address, &ca)
            .stdin(steps.to_string().as_bytes())
            .start(words![clients::python(), clients::script("h2_frames.py"), NAME])
            .finish()
            .ok();
        let got = outcome.json();
        let stream = &got["streams"]["1"];
        assert_eq!(status(&got, 1), "200", "direct={direct}: {got}");
        assert_eq!(
            (&stream["start"], &stream["ended"]),
            (&json!("last words"), &json!(true)),
            "direct={direct}: {got}"
        );
        if !direct {
            let report = outcome.report();
            assert_eq!(report.count("statuses", "200"), 1, "{report}");
            assert!(report.counts("errors").is_empty(), "{report}");
        }
    }
}

/// An HTTP/2 request may name its authority by `host` alone.
#[test]
fn host_stands_in_for_the_authority() {
    let fields = json!([[":method", "GET"], [":scheme", "https"], [":path", "/hello"], ["host", "elsewhere.test"]]);
    let steps = json!([{"open": 1, "fields": fields}, {"ended": 1}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let upstream = Upstream::start(&ca);
        let (got, outcome) = frames(direct, upstream.address, &ca, &steps);
        assert_eq!(status(&got, 1), "200", "direct={direct}: {got}");
        assert_eq!(got["streams"]["1"]["start"], "hello from /hello\n", "direct={direct}: {got}");
        assert_eq!(upstream.received()[0].header("host"), Some("elsewhere.test"), "direct={direct}");
        if !direct {
            let report = outcome.report();
            assert_eq!(report.count("statuses", "200"), 1, "{report}");
            let operations: Vec<&Value> = report.operations().map(|row| &row["operation"]).collect();
            assert_eq!(operations, ["GET elsewhere.test/hello"], "{report}");
        }
    }
}

/// A client that gives up on an answer in good order (close_notify), and asks
/// again elsewhere: its first attempt was cancelled then, whatever its
/// upstream still says, and the wait between the two counts once.
#[test]
fn asking_again_after_a_goodbye() {
    for stays in [true, false] {
        let ca = TestCa::new();
        let again = Arc::new(Notify::new());
        let wire = Wire::start(&ca, move |mut conn| {
            let again = Arc::clone(&again);
            async move {
                conn.head().await?;
                if conn.number > 0 {
                    conn.send("HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n").await?;
                    again.notify_one();
                    return conn.ended().await;
                }
                // An error is as good an end as an orderly one.
                let _ = conn.ended().await;
                conn.note("the client said goodbye");
                again.notified().await;
                // Too late, and perhaps to nobody.
                let _ = conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                conn.note("answered late");
                conn.close().await;
                Ok(())
            }
        });
        let request = |number: u32| {
            format!(
                "GET /slow HTTP/1.1\r\nHost: {NAME}\r\namz-sdk-invocation-id: 5f1c1f4e-0000-4000-8000-000000000001\r\n\
                 amz-sdk-request: attempt={number}; max=3\r\n\r\n"
            )
        };
        let mut client = ByHand::start(&wire, &ca);
        client.step(&json!(["open", "first"]));
        client.step(&json!(["send", "first", request(1)]));
        until("the first request has come", SOON, || (!wire.heads().is_empty()).then_some(()));
        client.step(&json!(["notify", "first"]));
        if !stays {
            client.step(&json!(["close", "first"]));
        }
        wire.wait_for("the client said goodbye");
        client.step(&json!(["open", "second"]));
        client.step(&json!(["send", "second", request(2)]));
        let head = client.step(&json!(["head", "second"]));
        assert!(head[1].as_str().is_some_and(|head| head.starts_with("HTTP/1.1 201 ")), "{head}");
        wire.wait_for("answered late");
        if stays {
            // Its late answer has passed, or been dropped, once this ends.
            client.step(&json!(["drain", "first"]));
        }
        let report = client.finish();
        assert_eq!((report.total("attempts"), report.total("retries")), (2, 1), "stays={stays}: {report}");
        assert_eq!(report.counts("statuses"), [("201".into(), 1)].into(), "stays={stays}: {report}");
        assert_eq!(report.counts("errors"), [("cancelled".into(), 1)].into(), "stays={stays}: {report}");
        let backoff = &report.process("tls_by_hand.py")["backoff"];
        assert_eq!(number(backoff, "count"), 1, "stays={stays}: {report}");
        assert!(amount(backoff, "total_ms") > 0.0, "stays={stays}: {report}");
    }
}

/// A client that closes while its upgrade is unanswered takes its upstream
/// connection along, at once.
#[test]
fn an_unanswered_upgrade_ends_with_its_client() {
    for notify in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::start(&ca, |mut conn| async move {
            conn.head().await?;
            // An error is as good an end as an orderly one.
            let _ = conn.ended().await;
            conn.note("the client is gone");
            Ok(())
        });
        let mut client = ByHand::start(&wire, &ca);
        client.step(&json!(["open", "chat"]));
        let request = format!("GET /chat HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
        client.step(&json!(["send", "chat", request]));
        until("the request has come", SOON, || (!wire.heads().is_empty()).then_some(()));
        if notify {
            client.step(&json!(["notify", "chat"]));
        }
        client.step(&json!(["close", "chat"]));
        // The command itself is still there.
        wire.wait_for("the client is gone");
        let ending = Instant::now();
        let report = client.finish();
        assert!(ending.elapsed() < SOON / 2, "notify={notify}: the run took {:?} to end", ending.elapsed());
        assert_eq!(report.total("attempts"), 1, "notify={notify}: {report}");
        assert_eq!(report.counts("errors"), [("cancelled".into(), 1)].into(), "notify={notify}: {report}");
        assert!(report.counts("statuses").is_empty(), "notify={notify}: {report}");
    }
}

/// An upstream that never answers the handshake is let go of as soon as its
/// client gives up, and the report tells of it.
#[test]
fn an_unanswered_handshake_ends_with_its_client() {
    let ca = TestCa::new();
    let wire = Wire::with(&ca, Face { leaf: None, ..Face::default() }, |mut conn| async move {
        conn.some().await?;
        conn.note("greeted");
        let _ = conn.ended().await;
        conn.note("the client is gone");
        Ok(())
    });
    let mut client = ByHand::start(&wire, &ca);
    client.step(&json!(["hello", "mute"]));
    wire.wait_for("greeted");
    client.step(&json!(["close", "mute"]));
    // The command itself is still there.
    wire.wait_for("the client is gone");
    let report = client.finish();
    assert_eq!((report.count("errors", "cancelled"), report.connections("refused")), (1, 1), "{report}");
    let problems = report.process("tls_by_hand.py")["problems"].as_array().cloned().unwrap_or_default();
    assert_eq!(problems.len(), 1, "{report}");
    assert_eq!((&problems[0]["name"], number(&problems[0], "count")), (&json!(NAME), 1), "{report}");
    assert_eq!(problems[0]["kind"], "the client left before the upstream had answered", "{report}");
}

/// A request that is still waiting when the run ends is counted all the same.
#[test]
fn a_request_under_way_at_the_end_is_counted() {
    for (flag, alpn) in [("--http1.1", &["http/1.1"][..]), ("--http2", &["h2"])] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, Face { alpn, ..Face::default() }, |mut conn| async move {
            if conn.alpn.as_deref() == Some("h2") {
                greet(&mut conn).await?;
                next_of(&mut conn, HEADERS).await?;
                conn.note("asked");
                loop {
                    next(&mut conn).await?;
                }
            }
            conn.head().await?;
            conn.note("asked");
            conn.ended().await
        });
        let script = format!("curl -sS -m 50 {flag} https://{NAME}/never >/dev/null 2>&1 </dev/null & read x");
        let mut started = Run::new().to(NAME, wire.address, &ca).start(words!["/bin/sh", "-c", script]);
        wire.wait_for("asked");
        let ending = Instant::now();
        started.write(b"x\n");
        let report = started.finish().ok().report();
        assert!(ending.elapsed() < SOON, "{flag}: the run took {:?} to end", ending.elapsed());
        assert_eq!(report.total("attempts"), 1, "{flag}: {report}");
        assert_eq!(report.counts("errors"), [("cancelled".into(), 1)].into(), "{flag}: {report}");
        assert!(report.counts("statuses").is_empty(), "{flag}: {report}");
    }
}

/// A 304 tells the length of what it leaves out; the error that a rule makes
/// of it has no such body to leave out, and must not tell one.
#[test]
fn a_rewritten_304_tells_no_length() {
    let ca = TestCa::new();
    let wire = Wire::with(&ca, H2, |mut conn| async move {
        greet(&mut conn).await?;
        loop {
            let stream = next_of(&mut conn, HEADERS).await?;
            conn.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, NOT_MODIFIED)).await?;
        }
    });
    for (rule, status, length) in [(None, "304", true), (Some("~u /cached => 503"), "503", false)] {
        let mut run = Run::new().to(NAME, wire.address, &ca);
        if let Some(rule) = rule {
            run = run.rule(rule);
        }
        let url = format!("https://{NAME}/cached");
        // Twice: the connection is fit for another request.
        let outcome = run.go(words![clients::curl(), "-sSi", "-m", "20", "--http2", url.clone(), url]).ok();
        let text = outcome.text();
        let told = text.lines().filter(|line| line.trim_end() == format!("HTTP/2 {status}")).count();
        assert_eq!(told, 2, "{rule:?}: {}", outcome.finished);
        assert_eq!(text.contains("content-length: 1234"), length, "{rule:?}: {}", outcome.finished);
        let report = outcome.report();
        assert_eq!(report.counts("errors").len(), 0, "{rule:?}: {report}");
        assert_eq!(report.connections("intercepted"), 1, "{rule:?}: {report}");
    }
}
