//! The local API: what it says of itself is what it does.
mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use common::{
    NAME, Run, SOON, TestCa, Upstream, clients,
    run::RunningRun,
    servers::{AWS, Moto},
    until,
};
use serde_json::{Value, json};

/// Where a running `retryscope run` has its socket.
fn socket(pid: i32) -> PathBuf {
    let prefix = format!("retryscope-{pid}-");
    let found = ["/run".into(), std::env::temp_dir()]
        .iter()
        .filter_map(|root: &PathBuf| std::fs::read_dir(root).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    found.expect("the instance's folder").join("control/api.sock")
}

/// One exchange: the status and what was answered.
fn ask(socket: &Path, method: &str, target: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).expect("the control socket");
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    (
        head[9..12].parse().expect("a status"),
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")),
    )
}

fn get(socket: &Path, target: &str) -> Value {
    let (status, answer) = ask(socket, "GET", target, "");
    assert_eq!(status, 200, "{target}: {answer}");
    answer
}

/// boto3's throttled call has been made, and its attempts are kept.
fn throttled(moto: &Moto) -> (RunningRun, PathBuf) {
    let mut run = Run::new().upstream_ca(&moto.ca.pem()).rule("~op ListBuckets & ~attempt ..2 => 429 name \"twice\"");
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    let mut started = run.start(words![clients::python(), clients::script("boto_steps.py")]);
    started.line_within(Duration::from_secs(60), "ready");
    started.write(b"list_buckets\n");
    started.line("list_buckets ok");
    let socket = socket(started.pid);
    until("the attempts are kept", SOON, || (get(&socket, "/v1/attempts")["newest"] == 3).then_some(()));
    (started, socket)
}

#[test]
fn attempts_calls_and_counts() {
    let (mut started, socket) = throttled(&Moto::shared());
    let page = get(&socket, "/v1/attempts?limit=2");
    let numbers: Vec<_> = page["attempts"].as_array().expect("attempts").iter().map(|it| &it["attempt"]).collect();
    assert_eq!((numbers, &page["next"]), (vec![&json!(3), &json!(2)], &json!(2)), "{page}");
    let rest = get(&socket, "/v1/attempts?limit=2&before=2");
    assert_eq!((&rest["attempts"][0]["id"], &rest["next"]), (&json!(1), &Value::Null), "{rest}");
    let one = get(&socket, "/v1/attempts/1");
    assert_eq!(
        (&one["status"], &one["told"], &one["rule"], &one["next"]),
        (&json!(200), &json!(429), &json!("twice"), &json!(2))
    );
    let field = |name: &str| {
        let fields = one["request_headers"].as_array().expect("fields");
        let found = fields.iter().find(|it| it["name"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)));
        found.unwrap_or_else(|| panic!("{name} in {one}"))["value"].clone()
    };
    assert_eq!(
        (field("authorization"), field("x-amz-security-token")),
        (json!("AWS4-HMAC-SHA256 REDACTED"), json!("REDACTED"))
    );
    let curl = get(&socket, "/v1/attempts/1/curl");
    let command = curl["command"].as_str().expect("a command");
    assert!(command.contains("REDACTED") && command.contains("https://s3."), "{command}");
    // A shell reads it, and it asks for the same.
    let echoed =
        clients::bare(Command::new("/bin/sh").arg("-c").arg(format!("printf '%s\\n' {command}"))).finish(SOON).ok();
    assert!(echoed.text().contains("\namz-sdk-request: attempt=1; max=4\n"), "{echoed}");
    assert_eq!(ask(&socket, "GET", "/v1/attempts/4", "").0, 404);

    let calls = get(&socket, "/v1/calls?filter=~c%20200");
    let call = &calls["calls"][0];
    assert_eq!((call["attempts"].as_array().expect("attempts").len(), &call["earlier"]), (3, &json!(0)), "{calls}");
    let waited: f64 = [1, 2].iter().filter_map(|at| call["attempts"][at]["waited_ms"].as_f64()).sum();
    assert!(waited > 0.0 && (call["waited_ms"].as_f64().expect("a time") - waited).abs() < 0.01, "{call}");

    let series = get(&socket, "/v1/timeline?buckets=10");
    let sum = |name: &str| {
        series["buckets"].as_array().expect("buckets").iter().filter_map(|it| it[name].as_f64()).sum::<f64>()
    };
    assert_eq!((sum("attempts"), sum("retries"), sum("throttled"), sum("injected")), (3.0, 2.0, 2.0, 2.0), "{series}");
    assert!((sum("backoff_ms") - waited).abs() < 0.1, "{series}");
    assert_eq!(series["processes"][0]["attempts"], 3);

    let offered = get(&socket, "/v1/filters/complete?text=~op%20L");
    assert_eq!((&offered["replace"], &offered["items"][0]["text"]), (&json!(1), &json!("ListBuckets")), "{offered}");
    let (status, checked) = ask(&socket, "POST", "/v1/rules/check", "{\"rule\":\"~svc s3 => 503\"}");
    assert_eq!((status, &checked["name"]), (200, &json!("~svc s3 => 503")), "{checked}");
    assert_eq!(get(&socket, "/v1/rules")["rules"].as_array().expect("rules").len(), 1, "a check adds nothing");
    started.close_stdin();
    started.finish().ok();
}

#[test]
fn what_is_wrong_gets_one_sentence() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words!["/bin/sh", "-c", "echo ready; cat"]);
    started.line("ready");
    let socket = socket(started.pid);
    let long = format!("{{\"rule\":\"{}\"}}", "x".repeat(70_000));
    for (method, target, body, status, part) in [
        ("GET", "/v1/attempts?limit=0", "", 400, "`limit` is wrong: 0 is not within 1 and 1000"),
        ("GET", "/v1/attempts?limit=many", "", 400, "`limit` is wrong"),
        ("GET", "/v1/attempts?limits=1", "", 400, "expected one of `filter`, `limit`"),
        ("GET", "/v1/attempts?before=0", "", 400, "numbered from 1"),
        ("GET", "/v1/attempts?filter=~svc%20s3%20%26%20~dd", "", 400, "did you mean ~d? (at character 11)"),
        ("GET", "/v1/attempts/x", "", 400, "the path is wrong"),
        ("GET", "/v1/attempts/7", "", 404, "attempt 7 is not kept"),
        ("GET", "/v1/calls?filter=(", "", 400, "`filter` is wrong"),
        ("GET", "/v1/timeline?from=5&to=5", "", 400, "later than `from`"),
        ("GET", "/v1/timeline?from=NaN", "", 400, "`from` is wrong"),
        ("GET", "/v1/timeline?buckets=1001", "", 400, "within 1 and 1000"),
        ("GET", "/v1/follow?filter=~dd", "", 400, "did you mean ~d?"),
        ("POST", "/v1/rules/check", "{\"rule\":\"~dd => 503\"}", 422, "did you mean ~d?"),
        ("POST", "/v1/rules/check", "{}", 422, "missing field `rule`"),
        ("POST", "/v1/rules/check", "{", 400, "the body is wrong"),
        ("POST", "/v1/rules/check", "", 415, "application/json"),
        ("POST", "/v1/rules/check", &long, 413, "length limit"),
        ("DELETE", "/v1/rules/check", "", 404, "no rule named \"check\""),
        ("PUT", "/v1/rules/check/enabled", "{\"enabled\":true}", 404, "no rule named \"check\""),
        ("GET", "/v2/attempts", "", 404, "/v1/openapi.json"),
        ("DELETE", "/v1/attempts", "", 405, "DELETE means nothing at /v1/attempts"),
    ] {
        let (found, answer) = ask(&socket, method, target, body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(found == status && error.contains(part), "{method} {target}: {found} {answer}");
    }
    started.close_stdin();
    started.finish().ok();
}

/// Server-sent events, as any client reads them.
#[test]
fn attempts_are_followed() {
    let moto = Moto::shared();
    let (mut started, socket) = throttled(&moto);
    let mut stream = UnixStream::connect(&socket).expect("the control socket");
    stream.set_read_timeout(Some(SOON)).expect("a time-out");
    stream.write_all(b"GET /v1/follow?filter=~retry HTTP/1.0\r\nLast-Event-ID: 1\r\n\r\n").expect("a request");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line within the time"));
    let mut event = |name: &str| {
        let name = format!("event: {name}");
        lines.by_ref().find(|line| *line == name).unwrap_or_else(|| panic!("no {name}"));
        let rest: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let field = |name: &str| rest.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        let data: Value = serde_json::from_str(&field("data: ")).expect("JSON");
        (field("id: "), data)
    };
    // What had ended already, after the attempt that was read last.
    for id in ["2", "3"] {
        let (found, data) = event("attempt");
        assert_eq!((found.as_str(), data["id"].to_string().as_str()), (id, id));
    }
    started.write(b"list_buckets\n");
    assert_eq!(event("attempt").1["id"], 5, "the fourth is no retry");
    assert_eq!(event("attempt").1["told"], 200);
    started.close_stdin();
    started.finish().ok();
    event("end");
}

/// The description against the implementation, by what makes requests out of
/// it: every operation, with what it allows and what it does not.
#[test]
fn schemathesis_finds_no_difference() {
    let (mut started, socket) = throttled(&Moto::shared());
    let described = get(&socket, "/v1/openapi.json");
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json")).expect("the file");
    assert_eq!(described, serde_json::from_str::<Value>(&kept).expect("JSON"), "what is documented is what is served");
    // It speaks TCP alone.
    let bridge = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = bridge.local_addr().expect("an address");
    std::thread::spawn(move || {
        for client in bridge.incoming().map_while(Result::ok) {
            let Ok(server) = UnixStream::connect(&socket) else { return };
            let (mut up, mut down) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up, &mut &server);
                let _ = server.shutdown(std::net::Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut down, &mut &client);
                let _ = client.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let python = clients::api_python();
    let mut schemathesis = Command::new(python.with_file_name("schemathesis"));
    schemathesis
        .args(["run", &format!("http://{address}/v1/openapi.json"), "--seed", "1", "--no-shrink"])
        .args(["--max-examples", "20", "--continue-on-failure"])
        // They never end.
        .args(["--exclude-path", "/v1/follow", "--exclude-path", "/v1/intercepts/follow"])
        // That a text is a rule or a filter cannot be said in a schema.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .current_dir(folder.path());
    let mut running = clients::bare(&mut schemathesis);
    running.close_stdin();
    let finished = running.finish(Duration::from_secs(240)).ok();
    let operations: usize = described["paths"]
        .as_object()
        .expect("paths")
        .values()
        .filter_map(Value::as_object)
        .map(serde_json::Map::len)
        .sum();
    // Without what never ends, and the description, which it has.
    let tested = format!("Tested: {}", operations - 3);
    assert!(finished.text().contains(&tested), "every operation: {finished}");
    started.close_stdin();
    started.finish().ok();
}
