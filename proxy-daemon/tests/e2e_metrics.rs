//! The metrics of a running instance, as a real Prometheus scrapes them.
mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use common::{Finished, NAME, Run, Running, TestCa, Upstream, clients, until};
use serde_json::Value;

/// Free at the moment, and hardly wanted by anybody else.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

fn get(address: SocketAddr, target: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_owned(), body.to_owned()))
}

/// The sum of a query's values, once Prometheus has any.
fn query(prometheus: SocketAddr, text: &str) -> Option<f64> {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (_, body) = get(prometheus, &format!("/api/v1/query?query={encoded}"))?;
    // The body may be chunked; the document has no line ends.
    let document = body.lines().find(|line| line.starts_with('{'))?;
    let value: Value = serde_json::from_str(document).ok()?;
    let rows = value["data"]["result"].as_array()?;
    let values = rows.iter().filter_map(|row| row["value"][1].as_str()?.parse::<f64>().ok());
    (!rows.is_empty()).then(|| values.sum())
}

/// Prometheus takes the query, whether or not it finds anything.
fn is_answered(prometheus: SocketAddr, text: &str) -> bool {
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    get(prometheus, &format!("/api/v1/query?query={encoded}"))
        .is_some_and(|(_, body)| body.contains("\"status\":\"success\""))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").into()
}

#[test]
fn alerts_are_rules_of_prometheus() {
    let output = Command::new(clients::need("promtool", "prometheus"))
        .args(["check", "rules"])
        .arg(root().join("deploy/prometheus/alerts.yml"))
        .output()
        .expect("promtool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 rules found"));
}

const ASK: &str = "import http.client, ssl, sys\n\
    connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context())\n\
    for call in range(5):\n\
    \x20   for attempt in (1, 2):\n\
    \x20       connection.request('GET', '/hello', headers={'amz-sdk-invocation-id': str(call), 'amz-sdk-request': f'attempt={attempt}'})\n\
    \x20       connection.getresponse().read()\n\
    print('asked', flush=True)\n\
    sys.stdin.read()\n";

#[test]
fn prometheus_sees_what_the_report_says() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let (metrics, prometheus) = (free(), free());
    let run = Run::new().to(NAME, upstream.address, &ca).rule("~attempt 1 => 503 name \"first\"");
    let mut started = run.option(format!("--metrics={metrics}")).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("asked");

    let (head, text) = get(metrics, "/metrics").expect("metrics");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    for own in ["\nretryscope_bypassed 0\n", "\nretryscope_gate_state{state=\"open\"} 1\n", "\nprocess_open_fds "] {
        assert!(text.contains(own), "{own}: {text}");
    }
    let promtool = clients::need("promtool", "prometheus");
    let mut lint = Command::new(promtool);
    let mut lint =
        lint.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    lint.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("writing to promtool");
    let linted = lint.wait_with_output().expect("promtool");
    assert!(linted.status.success() && linted.stderr.is_empty(), "{}\n{text}", String::from_utf8_lossy(&linted.stderr));
    assert!(get(metrics, "/other").is_some_and(|(head, _)| head.starts_with("HTTP/1.1 404 ")));

    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("prometheus.yml");
    let scraped = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: retryscope, static_configs: [{{targets: ['{metrics}']}}]}}]\n"
    );
    std::fs::write(&config, scraped).expect("writing");
    let mut server = Command::new(clients::need("prometheus", "prometheus"));
    server
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={prometheus}"))
        .env_clear()
        .envs(clients::environment());
    let server = Running::start(&mut server);
    let patience = Duration::from_secs(60);
    let of = |text: &str| until(text, patience, || query(prometheus, text));
    assert_eq!(of("sum(retryscope_attempts_total)"), 10.0);
    assert_eq!(of("sum(retryscope_attempts_total{outcome=\"server_error\",origin=\"injected\"})"), 5.0);
    assert_eq!(of("sum(retryscope_retries_total{evidence=\"exact\"})"), 5.0);
    assert_eq!(of("sum(retryscope_calls_total{command=~\"python.*\",operation=~\"GET .*\"})"), 5.0);
    assert_eq!(of("retryscope_rule_hits_total{rule=\"first\"}"), 5.0);
    assert_eq!(of("sum(retryscope_backoff_seconds_count)"), 5.0);
    let waited = of("sum(retryscope_backoff_seconds_sum)");
    assert!(of("histogram_quantile(0.9, sum by (le) (retryscope_backoff_seconds_bucket))") <= 0.01);
    assert!(of("sum(retryscope_stalled_seconds_total) / sum(retryscope_observed_seconds_total)") > 0.0);

    // What is deployed with it asks for nothing else.
    let dashboard = root().join("deploy/grafana/retryscope.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(dashboard).expect("a dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let asked: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str())
        .collect();
    assert!(asked.len() >= panels.len() && panels.len() > 8, "{asked:?}");
    for asked in asked {
        let asked = asked.replace("$__rate_interval", "1m").replace("$command", ".*");
        for name in
            asked.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("retryscope_"))
        {
            assert!(text.contains(&format!("\n{name}{{")), "there is no {name}");
        }
        assert!(is_answered(prometheus, &asked), "{asked}");
    }

    started.close_stdin();
    let report = started.finish().ok().report();
    let total = report.0["totals"]["backoff"]["total_ms"].as_f64().unwrap_or_default() / 1000.0;
    assert!((waited - total).abs() < 1e-4, "{waited} s by Prometheus: {report}");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.finish(Duration::from_secs(20));
}

#[test]
fn statsd_hears_of_every_retry() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    server.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    let address = server.local_addr().expect("an address").to_string();
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let run = Run::new().to(NAME, upstream.address, &ca).rule("~attempt 1 => 503");
    let mut started = run.option("--statsd").option(&address).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("asked");
    started.close_stdin();
    started.finish().ok();
    let (mut retries, mut waits) = (0, 0);
    let mut buffer = [0; 65_536];
    while retries + waits < 10 {
        let length = server.recv(&mut buffer).expect("a datagram");
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            let (metric, tags) = line.split_once("|#").expect(line);
            let operation = format!("service:none,operation:GET_{NAME}/hello,command:python");
            assert!(tags.starts_with(&operation), "{line}");
            assert!(tags.ends_with(",evidence:exact,cause:rule"), "{line}");
            match metric {
                "retryscope.retry:1|c" => retries += 1,
                wait if wait.starts_with("retryscope.backoff:") && wait.ends_with("|ms") => waits += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((retries, waits), (5, 5));
    let outcome = Run::new().no_report().option("--statsd").option("nowhere").go(["echo", "started"]).code(64);
    assert!(outcome.stderr.contains("write HOST:PORT") && outcome.stdout.is_empty(), "{}", outcome.finished);
}

#[test]
fn an_address_that_cannot_be_used() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let said: Finished = {
        let run = Run::new().no_report().option(format!("--metrics={address}"));
        run.go(["echo", "started"]).code(69).finished
    };
    assert!(said.stderr.contains(&address.to_string()) && said.stderr.contains("--metrics="), "{said}");
    assert!(said.stdout.is_empty(), "{said}");
    Run::new().no_report().option("--metrics=nowhere").go(["echo", "started"]).code(64);
}
