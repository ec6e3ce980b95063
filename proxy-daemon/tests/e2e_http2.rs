//! HTTP/2, frame by frame: what passes is the peers' own, and what one of them
//! says of its connection the other is told. Each script runs directly and
//! through retryscope.
mod common;

use std::{io, process::Command};

use common::{
    NAME, Run, Running, TestCa, Wire, clients,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, OK, PING, RST_STREAM, SETTINGS, frame, frames, get,
        greet, next, next_of, post, status,
    },
    own_address,
    report::number,
    wire::WireConn,
};
use serde_json::{Value, json};

const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;

/// Settings that are an upstream's to make: how many streams, how long heads,
/// whether extended CONNECT.
const PASSED_ON: [u64; 3] = [3, 6, 8];

fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        all.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

fn hex(bytes: &[u8]) -> String {
    common::hex(bytes)
}

/// What the client was told of its upstream in each SETTINGS, in order.
fn told(got: &Value) -> Vec<Vec<(u64, u64)>> {
    let frames = got["settings"].as_array().into_iter().flatten();
    frames
        .map(|frame| {
            let all = frame.as_array().into_iter().flatten();
            let pair = |pair: &Value| (pair[0].as_u64().expect("a name"), pair[1].as_u64().expect("a value"));
            let mut told: Vec<(u64, u64)> = all.map(pair).filter(|(name, _)| PASSED_ON.contains(name)).collect();
            told.sort_unstable();
            told
        })
        .collect()
}

/// Begins as a server, with settings of its own.
async fn greet_with(conn: &mut WireConn, all: &[(u16, u32)]) -> io::Result<()> {
    conn.until("SM\r\n\r\n").await?;
    conn.send(settings(all)).await
}

/// An answer to a whole request.
fn answer(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, OK), frame(DATA, END_STREAM, stream, b"answer")].concat()
}

/// How many streams it takes, how long heads may be and whether it knows
/// extended CONNECT: the client is told by its upstream, as soon as that one
/// says it, and again when that changes; what the upstream says nothing of,
/// neither do we.
#[test]
fn settings_are_the_upstreams() {
    const OFFERS: [&[(u16, u32)]; 4] =
        [&[], &[(3, 7)], &[(1, 0), (3, 100), (4, 65_535), (5, 16_384), (6, 40_000), (8, 1)], &[(6, 1), (0xabab, 5)]];
    for offer in OFFERS {
        let steps = json!([
            {"settled": 1}, {"open": 1, "fields": get("/first")}, {"ended": 1},
            {"settled": 2}, {"open": 3, "fields": get("/second")}, {"ended": 3},
        ]);
        let got = [true, false].map(|direct| {
            let ca = TestCa::new();
            let wire = Wire::with(&ca, H2, move |mut conn| async move {
                greet_with(&mut conn, offer).await?;
                let stream = next_of(&mut conn, HEADERS).await?;
                conn.send(answer(stream)).await?;
                // Once the last has been taken note of.
                conn.send(settings(&[(3, 55), (8, 1)])).await?;
                let stream = next_of(&mut conn, HEADERS).await?;
                conn.send(answer(stream)).await?;
                conn.ended().await
            });
            frames(direct, wire.address, &ca, &steps).0
        });
        let [direct, through] = got.map(|got| told(&got));
        assert_eq!(direct[0], through[0], "{offer:?}");
        // A change tells all that holds; one that changes nothing need not be told.
        let last = |told: &[Vec<(u64, u64)>]| {
            let mut all: Vec<(u64, u64)> = Vec::new();
            for (name, value) in told.iter().flatten() {
                all.retain(|known| known.0 != *name);
                all.push((*name, *value));
            }
            all.sort_unstable();
            all
        };
        assert_eq!(last(&direct), last(&through), "{offer:?}");
    }
}

/// A client's own limit on heads reaches its upstream, and no other setting
/// of its connection.
#[test]
fn the_clients_limit_on_heads_is_told() {
    let steps = json!([{"first": [[6, 12_345], [2, 0], [0xabab, 5]]}, {"open": 1, "fields": get("/")}, {"ended": 1}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            conn.until("SM\r\n\r\n").await?;
            conn.send(settings(&[])).await?;
            loop {
                let frame = next(&mut conn).await?;
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => {
                        let limit = frame.payload.chunks(6).find(|pair| pair[..2] == [0, 6]);
                        conn.keep(&format!("limit {limit:?}"));
                    }
                    HEADERS => conn.send(answer(frame.stream)).await?,
                    _ => {}
                }
            }
        });
        frames(direct, wire.address, &ca, &steps);
        let limit = format!("limit {:?}", Some([0, 6, 0, 0, 48, 57]));
        assert!(wire.heads().contains(&limit), "direct={direct}: {:?}", wire.heads());
    }
}

/// Requests do not wait for the upstream's greeting; and one that takes fewer
/// than there are refuses the rest itself.
#[test]
fn requests_do_not_wait_for_a_greeting() {
    let ids = [1, 3, 5, 7, 9];
    let mut steps: Vec<Value> = ids.iter().map(|id| json!({"open": id, "fields": get("/")})).collect();
    steps.extend([json!({"ended": 1}), json!({"ended": 3})]);
    steps.extend([5, 7, 9].map(|id| json!({"reset": id})));
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            conn.until("SM\r\n\r\n").await?;
            let mut asked = Vec::new();
            while asked.len() < 5 {
                asked.push(next_of(&mut conn, HEADERS).await?);
            }
            conn.send(settings(&[(3, 2)])).await?;
            for (at, stream) in asked.into_iter().enumerate() {
                let refused = frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes());
                conn.send(if at < 2 { answer(stream) } else { refused }).await?;
            }
            conn.ended().await
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &json!(steps));
        for id in [5, 7, 9] {
            assert_eq!(got["streams"][id.to_string()]["reset"], 7, "direct={direct}: {got}");
        }
        if !direct {
            let report = outcome.report();
            assert_eq!((report.count("statuses", "200"), report.count("errors", "reset")), (2, 3), "{report}");
        }
    }
}

/// A ping is answered by the end that it was meant for, and by it alone.
#[test]
fn pings_are_answered_by_the_other_end() {
    let (asked, again) = (hex(b"clients!"), hex(b"go ahead"));
    let steps = json!([
        {"settled": 1}, {"say": [PING, 0, 0, asked]}, {"say": [PING, 0, 0, asked]},
        {"open": 1, "fields": get("/")}, {"ended": 1}, {"pong": asked}, {"pinged": hex(b"upstream")},
        {"say": [PING, 0, 0, again]}, {"open": 3, "fields": get("/")}, {"ended": 3}, {"pong": again},
    ]);
    let events = [true, false].map(|direct| {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let (mut pings, mut asked, mut expected) = (Vec::new(), Vec::new(), 2);
            loop {
                let head = conn.exact(9).await?;
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                let payload = conn.exact(length).await?;
                match (head[3], head[4] & ACK) {
                    (SETTINGS, 0) => conn.send(frame(SETTINGS, ACK, 0, b"")).await?,
                    (PING, 0) => pings.push(payload),
                    (PING, _) => conn.keep(&format!("pong {}", hex(&payload))),
                    (HEADERS, _) => asked.push(u32::from_be_bytes([head[5], head[6], head[7], head[8]])),
                    _ => {}
                }
                // A ping is answered only after the request beside it.
                if pings.len() < expected || asked.is_empty() {
                    continue;
                }
                for stream in asked.drain(..) {
                    conn.send(answer(stream)).await?;
                }
                for payload in pings.drain(..) {
                    conn.keep(&format!("ping {}", hex(&payload)));
                    conn.send(frame(PING, ACK, 0, &payload)).await?;
                }
                if expected == 2 {
                    conn.send(frame(PING, 0, 0, b"upstream")).await?;
                }
                expected = 1;
            }
        });
        let (got, _) = frames(direct, wire.address, &ca, &steps);
        let pong = format!("pong {}", hex(b"upstream"));
        assert!(wire.heads().contains(&pong), "direct={direct}: {:?}", wire.heads());
        let pings: Vec<String> = wire.heads().into_iter().filter(|head| head.starts_with("ping ")).collect();
        assert_eq!(pings.len(), 3, "direct={direct}: {pings:?}");
        let events = got["events"].as_array().into_iter().flatten();
        events.filter(|event| *event != "settings").cloned().collect::<Vec<Value>>()
    });
    assert_eq!(events[0], events[1], "what the client saw, in its order");
}

/// An upstream's goodbye brings its code and its reason at once. What it
/// leaves out was not looked at, and the client may ask for it again; what it
/// does not goes on.
#[test]
fn an_upstreams_goodbye_keeps_its_reason() {
    let steps = json!([
        {"open": 1, "fields": post("/long"), "end": false}, {"open": 3, "fields": get("/late")},
        {"goodbye": true}, {"finish": 1}, {"ended": 1}, {"eof": true},
    ]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let first = next_of(&mut conn, HEADERS).await?;
            next_of(&mut conn, HEADERS).await?;
            let calm = [&first.to_be_bytes()[..], &11_u32.to_be_bytes(), b"too_many_pings"].concat();
            conn.send(frame(GOAWAY, 0, 0, &calm)).await?;
            next_of(&mut conn, DATA).await?;
            conn.send(answer(first)).await?;
            conn.close().await;
            Ok(())
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        let all = |name: &str, value: Value| got[name].as_array().is_some_and(|all| all.iter().all(|it| *it == value));
        assert!(all("goodbyes", json!(11)) && all("reasons", json!("too_many_pings")), "direct={direct}: {got}");
        assert_eq!(status(&got, 1), "200", "direct={direct}: {got}");
        let left_out = if direct { Value::Null } else { json!(7) };
        assert_eq!(got["streams"]["3"]["reset"], left_out, "direct={direct}: {got}");
        if !direct {
            let report = outcome.report();
            assert_eq!((report.count("statuses", "200"), report.count("errors", "closed")), (1, 1), "{report}");
        }
    }
}

/// A client's goodbye reaches its upstream with its code and its reason, and
/// what is under way goes on.
#[test]
fn a_clients_goodbye_keeps_its_reason() {
    let why = [&0_u32.to_be_bytes()[..], &2_u32.to_be_bytes(), b"had enough"].concat();
    let steps = json!([
        {"open": 1, "fields": get("/")}, {"say": [GOAWAY, 0, 0, hex(&why)]}, {"ended": 1},
    ]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let expected = why.clone();
        let wire = Wire::with(&ca, H2, move |mut conn| {
            let expected = expected.clone();
            async move {
                greet(&mut conn).await?;
                let stream = next_of(&mut conn, HEADERS).await?;
                loop {
                    let goodbye = next(&mut conn).await?;
                    if goodbye.kind == GOAWAY {
                        assert_eq!(goodbye.payload, expected);
                        conn.keep("goodbye");
                        break;
                    }
                }
                conn.send(answer(stream)).await?;
                conn.ended().await
            }
        });
        let (got, _) = frames(direct, wire.address, &ca, &steps);
        assert_eq!(status(&got, 1), "200", "direct={direct}: {got}");
        assert!(wire.heads().contains(&"goodbye".to_owned()), "direct={direct}: {:?}", wire.heads());
    }
}

/// A stream that the client resets is reset for its upstream with the same
/// code: before its answer, in its answer, and in its own body.
#[test]
fn a_clients_resets_keep_their_codes() {
    let codes: [(u32, u32); 6] = [(1, 8), (3, 0), (5, 2), (7, 11), (9, 0xdead), (11, 5)];
    let mut steps = Vec::new();
    for (id, code) in codes {
        let reset = json!({"say": [RST_STREAM, 0, id, hex(&code.to_be_bytes())]});
        let open = json!({"open": id, "fields": post("/"), "end": id % 4 == 3});
        // The first ones have begun to be answered.
        let wait = if id < 6 { json!({"got": [id, 6]}) } else { json!({"unread": []}) };
        steps.extend([open, wait, reset]);
    }
    steps.extend([json!({"open": 13, "fields": get("/")}), json!({"ended": 13})]);
    let kept = [true, false].map(|direct| {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let mut asked = 0;
            loop {
                let got = next(&mut conn).await?;
                match got.kind {
                    HEADERS => {
                        asked += 1;
                        if asked == 7 {
                            conn.send(answer(got.stream)).await?;
                        } else if asked < 4 {
                            let begun =
                                [frame(HEADERS, END_HEADERS, got.stream, OK), frame(DATA, 0, got.stream, b"answer")];
                            conn.send(begun.concat()).await?;
                        }
                    }
                    RST_STREAM => conn.keep(&format!("{} {}", got.stream, hex(&got.payload))),
                    _ => {}
                }
            }
        });
        frames(direct, wire.address, &ca, &json!(steps));
        wire.heads()
    });
    assert_eq!(kept[0], kept[1], "what the upstream received");
    assert_eq!(kept[0].len(), 1 + codes.len(), "{kept:?}");
}

/// An upload goes as far as the upstream's windows let it, to the byte, and
/// on as far as they are opened.
#[test]
fn uploads_keep_to_the_upstreams_windows() {
    let steps =
        json!([{"open": 1, "fields": post("/"), "end": false}, {"settled": 1}, {"upload": [1, 100_000]}, {"ended": 1}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet_with(&mut conn, &[(4, 1000)]).await?;
            let (mut came, mut allowed) = (0, 1000);
            let mut grants = [1_u32, 10, 60_000].into_iter();
            loop {
                let got = next(&mut conn).await?;
                if got.kind != DATA {
                    continue;
                }
                came += got.payload.len();
                assert!(came <= allowed, "{came} bytes, where {allowed} were allowed");
                if came == allowed {
                    // A ping is a round trip: what had been sent in excess would be there.
                    conn.send(frame(PING, 0, 0, b"and now?")).await?;
                    loop {
                        let got = next(&mut conn).await?;
                        assert_ne!(got.kind, DATA, "more than {allowed} bytes");
                        if got.kind == PING && got.flags & ACK != 0 {
                            break;
                        }
                    }
                    conn.keep(&format!("held at {came}"));
                    let Some(more) = grants.next() else { break };
                    allowed += more as usize;
                    conn.send(frame(WINDOW_UPDATE, 0, got.stream, &more.to_be_bytes())).await?;
                }
            }
            conn.send(answer(1)).await?;
            conn.ended().await
        });
        frames(direct, wire.address, &ca, &steps);
        assert_eq!(
            wire.heads()[1..],
            ["held at 1000", "held at 1001", "held at 1011", "held at 61011"],
            "direct={direct}"
        );
    }
}

/// A client that reads no more holds its upstream up: after a window's worth,
/// not more.
#[test]
fn downloads_are_held_up_with_their_client() {
    let ca = TestCa::new();
    let wire = Wire::with(&ca, H2, |mut conn| async move {
        greet(&mut conn).await?;
        let (mut connection, mut stream) = (65_535_u64, 65_535_u64);
        let (mut asked, mut sent) = (0, 0_u64);
        loop {
            // With a round trip behind each window: what is granted has come.
            let piece = connection.min(stream).min(16_384);
            if asked != 0 && piece > 0 {
                let bytes = vec![b'x'; usize::try_from(piece).expect("a frame")];
                conn.send(frame(DATA, 0, asked, &bytes)).await?;
                (connection, stream, sent) = (connection - piece, stream - piece, sent + piece);
                if connection.min(stream) > 0 {
                    continue;
                }
                conn.send(frame(PING, 0, 0, b"and now?")).await?;
            }
            let got = next(&mut conn).await?;
            let grant = |payload: &[u8]| payload.first_chunk().map_or(0, |grant| u64::from(u32::from_be_bytes(*grant)));
            match got.kind {
                SETTINGS => {
                    for pair in got.payload.chunks(6).filter(|pair| pair[..2] == [0, 4]) {
                        stream = grant(&pair[2..]);
                    }
                }
                WINDOW_UPDATE if got.stream == 0 => connection += grant(&got.payload),
                WINDOW_UPDATE => stream += grant(&got.payload),
                HEADERS => {
                    asked = got.stream;
                    conn.send(frame(HEADERS, END_HEADERS, asked, OK)).await?;
                }
                PING if got.flags & ACK != 0 && connection.min(stream) == 0 => {
                    conn.keep(&format!("held at {sent}"));
                    conn.send(frame(PING, 0, 0, b"go ahead")).await?;
                    return conn.ended().await;
                }
                _ => {}
            }
        }
    });
    let steps = json!([{"unread": [1]}, {"open": 1, "fields": get("/")}, {"pinged": hex(b"go ahead")}]);
    let (got, _) = frames(false, wire.address, &ca, &steps);
    // What the client granted, and one window between.
    assert_eq!(got["streams"]["1"]["length"], 65_535, "{got}");
    let held = wire.heads().pop().expect("held");
    let held: u64 = held.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    assert!((65_535..=65_535 + (1 << 20)).contains(&held), "held at {held}");
}

/// A reset is not held up behind a window: a client that reads no more has it
/// at once, after what there was room for.
#[test]
fn a_reset_passes_a_window_that_is_used_up() {
    let steps = json!([{"unread": [1]}, {"open": 1, "fields": get("/")}, {"reset": 1}]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            let mut window = 65_535;
            let stream = loop {
                let got = next(&mut conn).await?;
                for pair in got.payload.chunks(6).filter(|pair| got.kind == SETTINGS && pair[..2] == [0, 4]) {
                    window = u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]);
                }
                if got.kind == HEADERS {
                    break got.stream;
                }
            };
            conn.send(frame(HEADERS, END_HEADERS, stream, OK)).await?;
            let all = vec![b'x'; window.min(300_000) as usize];
            for piece in all.chunks(16_384) {
                conn.send(frame(DATA, 0, stream, piece)).await?;
            }
            conn.send(frame(RST_STREAM, 0, stream, &11_u32.to_be_bytes())).await?;
            conn.ended().await
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        let stream = &got["streams"]["1"];
        assert_eq!((&stream["length"], &stream["reset"]), (&json!(65_535), &json!(11)), "direct={direct}: {got}");
        if !direct {
            assert_eq!(outcome.report().count("errors", "reset"), 1, "{}", outcome.report());
        }
    }
}

/// Priorities, and frames and settings that nobody knows, change nothing.
#[test]
fn priorities_and_unknown_frames_change_nothing() {
    let on = |other: u32, weight: u8| hex(&[&other.to_be_bytes()[..], &[weight]].concat());
    let steps = json!([
        {"first": [[0x1a1a, 1], [9, 1]]},
        {"say": [PRIORITY, 0, 3, on(0, 200)]}, {"say": [PRIORITY, 0, 5, on(3 | 1 << 31, 1)]},
        {"say": [0x10, 0, 0, hex(b"\0\0\0\x01u=0, i")]}, {"say": [0xfa, 0xff, 0, hex(b"grease")]},
        {"open": 1, "fields": get("/")}, {"say": [PRIORITY, 0, 1, on(5, 16)]}, {"say": [0xbb, 0, 1, ""]}, {"ended": 1},
        // HEADERS with a priority.
        {"open": 3, "fields": get("/"), "on": on(1, 255)}, {"ended": 3},
        {"open": 5, "fields": get("/")}, {"ended": 5},
    ]);
    for direct in [true, false] {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, H2, |mut conn| async move {
            greet(&mut conn).await?;
            loop {
                let stream = next_of(&mut conn, HEADERS).await?;
                // And what nobody knows, the other way.
                conn.send(frame(0xfa, 0xff, 0, b"grease")).await?;
                conn.send(answer(stream)).await?;
            }
        });
        let (got, outcome) = frames(direct, wire.address, &ca, &steps);
        for id in [1, 3, 5] {
            assert_eq!(got["streams"][id.to_string()]["start"], "answer", "direct={direct}: {got}");
        }
        if !direct {
            assert_eq!(outcome.report().count("statuses", "200"), 3, "{}", outcome.report());
        }
    }
}

fn server(script: &str, ca: &TestCa, program: std::path::PathBuf, more: &[&str]) -> (std::net::SocketAddr, Running) {
    let address = own_address(443);
    let files = ca.files("server", &[NAME], &[address.ip()]);
    let mut server = Command::new(program);
    server.arg(clients::script(script)).arg(address.to_string()).args([&files.cert, &files.key]).args(more);
    let server = clients::bare(&mut server);
    server.line("ready");
    (address, server)
}

/// Every field of every head and trailer arrives, in its order, whatever its
/// size: 200 KiB each way, over many frames. Every interim response passes.
#[test]
fn heads_arrive_field_by_field() {
    let mut large: Vec<Value> = (0..200).map(|n| json!([format!("x-field-{n}"), "v".repeat(1000)])).collect();
    large.extend(
        ["x-twice", "x-between", "x-empty"].map(|name| json!([name, if name == "x-empty" { "" } else { "ä \t!" }])),
    );
    let mut mirror = post("/mirror");
    mirror.as_array_mut().expect("fields").extend(large.clone());
    let mut crumbs = get("/a%2f/..?q=%00&&{}|^`'[]");
    crumbs.as_array_mut().expect("fields").extend([
        json!(["cookie", "a=1"]),
        json!(["cookie", "b=2"]),
        json!(["te", "trailers"]),
    ]);
    let steps = json!([
        {"open": 1, "fields": mirror, "end": false}, {"upload": [1, 50_000]},
        {"open": 1, "fields": [["x-checksum", "1"], ["x-more", "2"]]}, {"ended": 1},
        {"open": 3, "fields": crumbs}, {"ended": 3}, {"open": 5, "fields": get("/interim")}, {"ended": 5},
    ]);
    let results = [true, false].map(|direct| {
        let ca = TestCa::new();
        let (address, server) = server("h2_peer.py", &ca, clients::python(), &[]);
        let (got, _) = frames(direct, address, &ca, &steps);
        let (mut asked, mut at) = (Vec::new(), 0);
        for _ in 0..3 {
            let (line, end) = server.line_after(at, "fields");
            asked.push(serde_json::from_str::<Value>(&line).expect("JSON from the server"));
            at = end;
        }
        (got["streams"].clone(), asked)
    });
    let [direct, through] = &results;
    for (direct, through) in direct.1.iter().zip(&through.1) {
        assert_eq!(through, direct, "what the upstream was asked");
    }
    for id in ["1", "3", "5"] {
        assert_eq!(through.0[id], direct.0[id], "what the client got on stream {id}");
    }
    assert_eq!(through.1[0]["trailers"], json!([["x-checksum", "1"], ["x-more", "2"]]));
    let interim: Vec<&Value> =
        through.0["5"]["fields"].as_array().into_iter().flatten().filter(|field| field[0] == ":status").collect();
    assert_eq!(interim.len(), 5, "{interim:?}");
}

/// Extended CONNECT is there exactly where the upstream has it; then bytes
/// pass both ways, in step, and one stream's end is no other's.
#[test]
fn extended_connect() {
    for offered in [true, false] {
        let results = [true, false].map(|direct| {
            let ca = TestCa::new();
            let (address, server) = server("connect_server.mjs", &ca, clients::node(), &[&offered.to_string(), "123"]);
            let command = words![clients::node(), clients::script("connect_client.mjs"), NAME];
            let outcome = Run::via(direct).to(NAME, address, &ca).go(command).ok();
            server.line(if offered { "/again  closed" } else { "/plain  closed" });
            if !direct {
                let report = outcome.report();
                let attempts = if offered { 4 } else { 1 };
                assert_eq!(report.count("statuses", "200"), attempts, "{report}");
                assert_eq!(number(report.processes().first().expect("a process"), "attempts"), attempts, "{report}");
            }
            let mut had: Vec<String> = common::show(&server.stdout.bytes()).lines().map(ToOwned::to_owned).collect();
            had.sort();
            (outcome.json(), had)
        });
        assert_eq!(results[0], results[1], "offered={offered}");
        let found = &results[1].0;
        assert_eq!((&found["offered"], &found["most"]), (&json!(offered), &json!(123)), "{found}");
        assert!(!offered || found["came"].as_u64().is_some_and(|came| came > 100_000), "{found}");
    }
}
