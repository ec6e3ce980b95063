//! Without rules nothing changes: every body byte, and on HTTP/1 every byte
//! of the heads, is what a direct run gives.
mod common;

use common::{
    NAME, Run, TestCa, Upstream, Wire,
    both::{both, same},
    clients, pattern,
    servers::Nginx,
    sha256,
    wire::Face,
};
use serde_json::json;

const SMALL: &[usize] = &[0, 1, 16_383, 16_384, 16_385];
const MIB: usize = 1024 * 1024;

fn file(run: &Run, length: usize) -> std::path::PathBuf {
    let path = run.dir().join("upload");
    std::fs::write(&path, pattern(length)).expect("writing the upload");
    path
}

/// Downloads of every size, with a length and chunked, over both protocols.
#[test]
fn downloads() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for direct in [true, false] {
        for flag in ["--http1.1", "--http2"] {
            for query in ["", "?chunked"] {
                // One connection for all sizes: what one body leaves behind would spoil the next.
                let run = Run::via(direct).to(NAME, upstream.address, &ca);
                let mut command = words![clients::curl(), "-sS", flag];
                let sizes: Vec<usize> = SMALL.iter().copied().chain([MIB]).collect();
                for size in &sizes {
                    let url = format!("https://{NAME}/bytes/{size}{query}");
                    command.extend(words!["-o", run.dir().join(format!("{size}")), url]);
                }
                let folder = run.dir().to_path_buf();
                let script = "\"$@\" && cd \"$FOLDER\" && sha256sum [0-9]*";
                let shell = words!["/bin/sh", "-c", script, "sh"].into_iter().chain(command);
                let outcome = run.env("FOLDER", folder).go(shell).ok();
                for size in sizes {
                    let line = format!("{}  {size}\n", sha256(&pattern(size)));
                    assert!(
                        outcome.text().contains(&line),
                        "{flag} {query} {size} direct={direct}: {}",
                        outcome.finished
                    );
                }
            }
        }
    }
}

/// Uploads of every size, with a length and chunked, over both protocols.
#[test]
fn uploads() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for direct in [true, false] {
        for flag in ["--http1.1", "--http2"] {
            for chunked in [false, true] {
                for &size in SMALL.iter().chain(&[MIB]) {
                    let run = Run::via(direct).to(NAME, upstream.address, &ca);
                    let path = file(&run, size);
                    let mut command = words![clients::curl(), "-sS", flag, "-T"];
                    // From a pipe curl knows no length.
                    let from = if chunked { "-".into() } else { path.clone().into_os_string() };
                    command.extend([from, format!("https://{NAME}/sink").into()]);
                    let script = words!["/bin/sh", "-c", "cat \"$UPLOAD\" | \"$@\"", "sh"];
                    let outcome = run.env("UPLOAD", path).go(script.into_iter().chain(command)).ok();
                    let expected = json!({"length": size, "sha256": sha256(&pattern(size))});
                    assert_eq!(outcome.json(), expected, "{flag} chunked={chunked} {size} direct={direct}");
                }
            }
        }
    }
}

/// 64 MiB down and up, over both protocols.
#[test]
fn sixty_four_mebibytes() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let size = 64 * MIB;
    let digest = sha256(&pattern(size));
    for flag in ["--http1.1", "--http2"] {
        for query in ["", "?chunked"] {
            let url = format!("https://{NAME}/bytes/{size}{query}");
            let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sS", flag, url]).ok();
            assert_eq!(outcome.stdout.len(), size, "{flag} {query}");
            assert_eq!(sha256(&outcome.stdout), digest, "{flag} {query}");
        }
        for header in ["X-Plain: 1", "Transfer-Encoding: chunked"] {
            if flag == "--http2" && header.starts_with("Transfer") {
                continue;
            }
            let run = Run::new().to(NAME, upstream.address, &ca);
            let path = file(&run, size);
            let command =
                words![clients::curl(), "-sS", flag, "-H", header, "-T", path, format!("https://{NAME}/sink")];
            let outcome = run.go(command).ok();
            assert_eq!(outcome.json(), json!({"length": size, "sha256": digest}), "{flag} {header}");
        }
    }
}

/// Python's clients up and down, with pieces of uneven sizes.
#[test]
fn python_clients() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for library in ["requests", "urllib", "httpx", "httpx-chunked", "httpx-h2", "httpx-h2-chunked"] {
        for size in [0, 16_385, MIB] {
            let run = Run::new().to(NAME, upstream.address, &ca);
            let path = file(&run, size);
            let url = format!("https://{NAME}/echo");
            let command = words![clients::python(), clients::script("fetch.py"), library, url, path];
            let got = run.go(command).ok().json();
            assert_eq!(got["sha256"], sha256(&pattern(size)), "{library} {size}: {got}");
        }
    }
}

/// nginx, whose HTTP/2 frames and TLS records are cut in its own ways.
#[test]
fn nginx_serves_the_same() {
    let ca = TestCa::new();
    let nginx = Nginx::start(&ca);
    nginx.put("file", &pattern(8 * MIB + 3));
    for flag in ["--http1.1", "--http2"] {
        let url = format!("https://{NAME}/file");
        let outcome = Run::new()
            .to(NAME, nginx.address, &ca)
            .go(words![clients::curl(), "-sS", flag, "-r", "7-", url.clone()])
            .ok();
        assert_eq!(sha256(&outcome.stdout), sha256(&pattern(8 * MIB + 3)[7..]), "{flag}");
        assert_eq!(outcome.report().count("statuses", "206"), 1, "{flag}");
    }
}

/// Responses without a body: HEAD with a length, 204, 304, and an empty 200.
#[test]
fn bodiless_responses() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        let mut dumps = Vec::new();
        for direct in [true, false] {
            let mut all = Vec::new();
            let url = |path: &str| format!("https://{NAME}{path}");
            let commands = [
                words!["-I", url("/bytes/12345"), url("/bytes/12345")],
                words!["-i", url("/empty/204"), url("/empty/304"), url("/bytes/0"), url("/hello")],
            ];
            for words in commands {
                let command = words![clients::curl(), "-sS", flag, "-m", "10"].into_iter().chain(words);
                let outcome = Run::via(direct).to(NAME, upstream.address, &ca).go(command).ok();
                all.extend(outcome.text().lines().filter(|line| !line.starts_with("date:")).map(ToOwned::to_owned));
            }
            dumps.push(all);
        }
        assert_eq!(dumps[0], dumps[1], "{flag}: direct and through retryscope");
        assert!(dumps[0].iter().any(|line| line == "content-length: 12345"), "{flag}: {dumps:?}");
    }
}

/// HTTP/1.1 heads pass byte for byte: case, order, repeats, spacing, odd
/// methods and targets, reason phrases.
#[test]
fn heads_pass_byte_for_byte() {
    let request = "pUT /a%2fb//c?x=1&&y HTTP/1.1\r\nhOsT: upstream.test\r\nX-B: 2\r\nx-a: 1\r\nX-A:   spaced \r\n\
                   Empty:\r\nContent-LENGTH: 3\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n";
    let response = "HTTP/1.1 299 A Reason, Oddly\r\nX-CaSe: Kept\r\nset-COOKIE: a\r\nSet-Cookie: b\r\nZ: \t z\r\n\
                    content-length: 2\r\nDate: yesterday\r\n\r\n";
    let steps = json!([
        {"send": request}, {"send": "abc"}, {"until": "\r\n\r\n"}, {"read": 2},
        {"send": "OPTIONS * HTTP/1.1\r\nHost: upstream.test\r\n\r\n"}, {"until": "\r\n\r\n"},
    ]);
    let results = both(Face::default(), &steps, move |mut conn| async move {
        conn.head().await?;
        conn.exact(3).await?;
        conn.send(response).await?;
        conn.send("ok").await?;
        conn.head().await?;
        conn.send("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").await?;
        conn.ended().await
    });
    let (_, heads) = same(&results);
    assert_eq!(heads[0], request);
}

/// Chunk extensions and trailers of HTTP/1.1, in both directions.
#[test]
fn chunks_and_trailers() {
    let body = "5;name=\"value\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nx-more: 2\r\n\r\n";
    let head = "POST /t HTTP/1.1\r\nHost: upstream.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    let steps = json!([
        {"send": head}, {"send": body},
        {"until": "\r\n\r\n"}, {"until": "x-more: 2\r\n\r\n"},
        {"send": "GET /next HTTP/1.1\r\nHost: upstream.test\r\n\r\n"}, {"until": "\r\n\r\n"},
    ]);
    let results = both(Face::default(), &steps, move |mut conn| async move {
        conn.head().await?;
        conn.until("x-more: 2\r\n\r\n").await?;
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await?;
        conn.send(body).await?;
        conn.head().await?;
        conn.send("HTTP/1.1 204 No Content\r\n\r\n").await?;
        conn.ended().await
    });
    let [direct, through] = &results;
    assert_eq!(direct.0["ended"], "done", "{direct:?}");
    assert_eq!(through.0["ended"], "done", "{through:?}");
    // Where chunks are cut is the sender's affair; the content and the trailers are not.
    let content = |text: &str| -> (String, String) {
        let (mut data, mut left) = (String::new(), text);
        while let Some((size, rest)) = left.split_once("\r\n") {
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).expect("a size");
            if size == 0 {
                return (data, rest.to_owned());
            }
            data.push_str(&rest[..size]);
            left = &rest[size + 2..];
        }
        panic!("no last chunk in {text:?}");
    };
    for (name, text) in [("down", through.0["got"][1].as_str()), ("up", through.1.get(1).map(String::as_str))] {
        let text = text.unwrap_or_else(|| panic!("{name}: {through:?}"));
        assert_eq!(content(text), content(body), "{name}: {text:?}");
    }
    assert_eq!(through.1[0], head);
    assert_eq!(through.0["got"][2], "HTTP/1.1 204 No Content\r\n\r\n");
}

/// HTTP/2 trailers, in both directions.
#[test]
fn http2_trailers() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let command = words![clients::python(), clients::script("h2_trailers.py"), NAME, "/trailers"];
    let got = Run::new().to(NAME, upstream.address, &ca).go(command).ok().json();
    assert_eq!(got["trailers"], json!([["x-checksum", "abc123"], ["x-second", "two"]]), "{got}");
    assert_eq!(got["body"], 1000, "{got}");
    let received = upstream.received();
    assert_eq!(received[0].trailers, [("x-client-checksum".into(), "beef".into()), ("x-more".into(), "1".into())]);
}

/// Requests sent without waiting are answered in order, all of them.
#[test]
fn pipelined_requests() {
    let get = |n: u32| format!("GET /{n} HTTP/1.1\r\nHost: upstream.test\r\n\r\n");
    let post = "POST /3 HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 4\r\n\r\nbody";
    let steps = json!([
        {"send": format!("{}{}{post}{}", get(1), get(2), get(4))},
        {"until": "answer 1"}, {"until": "answer 2"}, {"until": "answer 3"}, {"until": "answer 4"},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        for n in 1..=4 {
            conn.head().await?;
            if n == 3 {
                conn.exact(4).await?;
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nanswer {n}")).await?;
        }
        conn.ended().await
    });
    same(&results);
}

/// `Expect: 100-continue` is the upstream's to answer: its 100 comes back
/// before the body is sent; a 503 instead of it reaches a client that has
/// sent no body.
#[test]
fn expect_continue() {
    let head = "PUT /big HTTP/1.1\r\nHost: upstream.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let steps = json!([{"send": head}, {"until": "\r\n\r\n"}, {"send": "BODY!"}, {"until": "\r\n\r\n"}]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 100 Go On\r\nX-Interim: yes\r\n\r\n").await?;
        conn.exact(5).await?;
        conn.send("HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n").await?;
        conn.ended().await
    });
    let (got, _) = same(&results);
    assert_eq!(got["got"][0], "HTTP/1.1 100 Go On\r\nX-Interim: yes\r\n\r\n");

    let steps = json!([{"send": head}, {"until": "\r\n\r\n"}, {"read": 7}, {"eof": true}]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        let refusal = "HTTP/1.1 503 Not Now\r\nContent-Length: 7\r\nConnection: close\r\n\r\nnot now";
        conn.send(refusal).await?;
        conn.close().await;
        Ok(())
    });
    let (got, _) = same(&results);
    assert!(got["got"][0].as_str().is_some_and(|head| head.starts_with("HTTP/1.1 503 Not Now\r\n")), "{got}");

    // The same by a real client, whose body stays unsent.
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        let [direct, through] = [true, false].map(|direct| {
            let run = Run::via(direct).to(NAME, upstream.address, &ca);
            let path = file(&run, 3 * MIB);
            let url = format!("https://{NAME}/refuse");
            let command = words![
                clients::curl(),
                "-sS",
                flag,
                "-H",
                "Expect: 100-continue",
                "--expect100-timeout",
                "20",
                "-T",
                path,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{size_upload}",
                url
            ];
            let outcome = run.go(command);
            (outcome.finished.code, outcome.text())
        });
        if flag == "--http1.1" {
            assert_eq!(direct, (0, "503 0".into()), "the body was sent although the upstream refused");
            assert_eq!(through, direct);
        } else {
            // HTTP/2 clients send anyway; how far they get is a matter of windows.
            assert_eq!(through.0, direct.0, "{through:?} {direct:?}");
            assert_eq!(through.1.get(..4), direct.1.get(..4), "{through:?} {direct:?}");
        }
    }
}

/// 103 Early Hints, and several interim responses, pass before the final one.
#[test]
fn early_hints() {
    let steps = json!([
        {"send": "GET / HTTP/1.1\r\nHost: upstream.test\r\n\r\n"},
        {"until": "\r\n\r\n"}, {"mark": "hinted"}, {"until": "\r\n\r\n"}, {"until": "\r\n\r\n"}, {"read": 2},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n").await?;
        conn.send("HTTP/1.1 102 Processing\r\n\r\n").await?;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
        conn.ended().await
    });
    let (got, _) = same(&results);
    assert!(got["got"][0].as_str().is_some_and(|head| head.contains("Link: </a.css>; rel=preload")), "{got}");
}

/// A connection is kept as long as both ends keep it: one upstream
/// connection per client connection, and `Connection: close` ends both.
#[test]
fn keep_alive_and_close() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    for flag in ["--http1.1", "--http2"] {
        let before = upstream.accepted();
        let url = format!("https://{NAME}/hello?[1-5]");
        let outcome = Run::new().to(NAME, upstream.address, &ca).go(words![clients::curl(), "-sS", flag, url]).ok();
        assert_eq!(upstream.accepted() - before, 1, "{flag}: connections made upstream");
        let report = outcome.report();
        assert_eq!(report.connections("intercepted"), 1, "{flag}: {report}");
        assert_eq!(report.total("attempts"), 5, "{flag}: {report}");
        let before = upstream.accepted();
        let command = words![
            clients::curl(),
            "-sS",
            flag,
            format!("https://{NAME}/a"),
            "--next",
            "-sS",
            flag,
            "--no-keepalive",
            "-H",
            "Connection: close",
            format!("https://{NAME}/b")
        ];
        Run::new().to(NAME, upstream.address, &ca).go(command).ok();
        assert!(upstream.accepted() > before);
    }
    let steps = json!([
        {"send": "GET /1 HTTP/1.1\r\nHost: upstream.test\r\nConnection: close\r\n\r\n"}, {"eof": true},
        {"connect": true},
        {"send": "GET /2 HTTP/1.0\r\n\r\n"}, {"eof": true},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nend").await?;
        conn.close().await;
        Ok(())
    });
    same(&results);
}

/// A response that ends with its connection, on HTTP/1.1 and HTTP/1.0.
#[test]
fn response_until_close() {
    for version in ["1.1", "1.0"] {
        let steps = json!([{"send": format!("GET / HTTP/{version}\r\nHost: upstream.test\r\n\r\n")}, {"eof": true}]);
        let results = both(Face::default(), &steps, move |mut conn| async move {
            conn.head().await?;
            conn.send(format!("HTTP/{version} 200 OK\r\nX-No-Length: 1\r\n\r\n")).await?;
            conn.send(pattern(200_000).iter().map(|byte| byte & 0x7f).collect::<Vec<u8>>()).await?;
            conn.close().await;
            Ok(())
        });
        let (got, _) = same(&results);
        assert!(got["got"][0].as_str().is_some_and(|text| text.chars().count() > 200_000), "HTTP/{version}");
    }
}

/// After 101 the connection belongs to another protocol: bytes pass as they
/// are, either end first.
#[test]
fn upgrades() {
    let steps = json!([
        {"send": "GET /chat HTTP/1.1\r\nHost: upstream.test\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nEARLY"},
        {"until": "\r\n\r\n"}, {"until": "hello\u{0}\u{ff}"}, {"send": "ping\u{0}\u{fe}"}, {"until": "echo ping\u{0}\u{fe}"},
        {"send": "HTTP/1.1 200 OK\r\n\r\n"}, {"until": "echo HTTP/1.1 200 OK\r\n\r\n"},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n").await?;
        assert_eq!(conn.exact(5).await?, b"EARLY");
        conn.send(b"hello\0\xff").await?;
        loop {
            let bytes = conn.some().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            conn.send([b"echo ".as_slice(), &bytes].concat()).await?;
        }
    });
    same(&results);
}

/// A protocol that is not HTTP inside TLS passes untouched.
#[test]
fn not_http_inside_tls() {
    for alpn in [&[][..], &["imap"], &["http/1.1"]] {
        let mut steps = vec![
            json!({"send": "\u{1}\u{2}binary\u{0}\r\n"}),
            json!({"until": "got \u{1}\u{2}binary\u{0}\r\n"}),
            json!({"send": "a1 LOGIN\r\n"}),
            json!({"until": "got a1 LOGIN\r\n"}),
        ];
        if !alpn.is_empty() {
            steps.insert(0, json!({"alpn": alpn}));
        }
        let face = Face { alpn, ..Face::default() };
        let results = both(face, &json!(steps), |mut conn| async move {
            loop {
                let line = conn.until("\r\n").await?;
                let bytes: Vec<u8> = line.bytes().collect();
                conn.send([b"got ".as_slice(), &bytes].concat()).await?;
            }
        });
        same(&results);
    }
}

/// Inside TLS too the server may speak first.
#[test]
fn server_speaks_first_inside_tls() {
    let steps = json!([{"until": "220 ready\r\n"}, {"send": "EHLO\r\n"}, {"until": "250 ok\r\n"}]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.send("220 ready\r\n").await?;
        conn.until("\r\n").await?;
        conn.send("250 ok\r\n").await?;
        conn.ended().await
    });
    same(&results);
}

/// What is not TLS is tunnelled, whoever speaks first, and half-closed
/// connections stay half open.
#[test]
fn not_tls_is_tunnelled() {
    let face = Face { leaf: None, ..Face::default() };
    let steps = json!([
        {"plain": true}, {"send": "GET / HTTP/1.0\r\n\r\n"}, {"shutdown": true}, {"eof": true},
        {"connect": true}, {"send": "\u{16}\u{3}not a hello after all\r\n\r\n"}, {"until": "you said"},
    ]);
    let results = both(face, &steps, |mut conn| async move {
        conn.head().await?;
        conn.send("you said something").await?;
        conn.close().await;
        Ok(())
    });
    same(&results);

    let steps =
        json!([{"plain": true}, {"until": "SSH-2.0-test\r\n"}, {"send": "SSH-2.0-me\r\n\r\n"}, {"until": "bye"}]);
    let results = both(face, &steps, |mut conn| async move {
        conn.send("SSH-2.0-test\r\n").await?;
        conn.head().await?;
        conn.send("bye").await?;
        conn.ended().await
    });
    same(&results);
}

/// An answer may come while the request's body is still being sent, and both
/// go on to their ends.
#[test]
fn early_response() {
    let steps = json!([
        {"send": "POST / HTTP/1.1\r\nHost: upstream.test\r\nContent-Length: 10\r\n\r\nhello"},
        {"until": "\r\n\r\n"}, {"until": "first"}, {"send": "world"}, {"until": "last!"},
    ]);
    let results = both(Face::default(), &steps, |mut conn| async move {
        conn.head().await?;
        conn.exact(5).await?;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst").await?;
        conn.exact(5).await?;
        conn.send("last!").await?;
        conn.ended().await
    });
    same(&results);
}

/// A slow reader slows the sender: nothing is piled up in between.
#[test]
fn back_pressure() {
    let ca = TestCa::new();
    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n").await?;
        let block = vec![b'x'; 1 << 20];
        for sent in 0..256 {
            let sending = tokio::time::timeout(std::time::Duration::from_secs(2), conn.send(&block));
            match sending.await {
                Ok(done) => done?,
                Err(_) => {
                    conn.note(&format!("stalled after {sent} MiB"));
                    return conn.ended().await;
                }
            }
        }
        conn.note("stalled after 256 MiB");
        conn.ended().await
    });
    let run = Run::new().to(NAME, wire.address, &ca);
    let hold = "import socket,ssl,sys\nc=ssl.create_default_context()\n\
         s=c.wrap_socket(socket.create_connection(('upstream.test',443)),server_hostname='upstream.test')\n\
         s.sendall(b'GET / HTTP/1.1\\r\\nHost: upstream.test\\r\\n\\r\\n')\ns.recv(10)\nprint('reading no more',flush=True)\n\
         sys.stdin.read()\n";
    let started = run.start(words![clients::python(), "-c", hold]);
    started.line("reading no more");
    let note = wire.wait_for("stalled after");
    let sent: u64 = note.split(' ').nth(2).and_then(|text| text.parse().ok()).expect("a number");
    assert!(sent < 48, "{sent} MiB were taken from the upstream although nobody read them");
    started.finish();
}
