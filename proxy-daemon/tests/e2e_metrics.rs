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

/// Runs promtool in the folder of what is deployed for Prometheus.
fn promtool(words: &[&str]) -> String {
    let mut command = Command::new(clients::need("promtool", "prometheus"));
    let output = command.args(words).current_dir(root().join("deploy/prometheus")).output().expect("promtool");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn alerts_are_rules_of_prometheus() {
    assert!(promtool(&["check", "rules", "alerts.yml"]).contains("12 rules found"));
    assert!(promtool(&["check", "rules", "rules.yml"]).contains("5 rules found"));
    assert!(promtool(&["test", "rules", "tests.yml"]).contains("SUCCESS"));
}

/// A Prometheus that scrapes these every second, with the rules that are
/// deployed.
fn start_prometheus(address: SocketAddr, instances: &[SocketAddr]) -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("prometheus.yml");
    let targets: Vec<String> = instances.iter().map(|instance| format!("'{instance}'")).collect();
    let scraped = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{0}/rules.yml', '{0}/alerts.yml']\n\
         scrape_configs: [{{job_name: retryscope, static_configs: [{{targets: [{1}]}}]}}]\n",
        root().join("deploy/prometheus").display(),
        targets.join(", "),
    );
    std::fs::write(&config, scraped).expect("writing");
    let mut server = Command::new(clients::need("prometheus", "prometheus"));
    server
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .env_clear()
        .envs(clients::environment());
    (Running::start(&mut server), folder)
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

    let (server, _folder) = start_prometheus(prometheus, &[metrics]);
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

/// For each line `HOST N` on standard input: N calls with one retry each.
const ASK_OF: &str = "import http.client, ssl, sys, uuid\n\
    for line in sys.stdin:\n\
    \x20   host, calls = line.split()\n\
    \x20   connection = http.client.HTTPSConnection(host, context=ssl.create_default_context())\n\
    \x20   for _ in range(int(calls)):\n\
    \x20       call = str(uuid.uuid4())\n\
    \x20       for attempt in (1, 2):\n\
    \x20           connection.request('GET', '/bucket/key', headers={'amz-sdk-invocation-id': call, 'amz-sdk-request': f'attempt={attempt}'})\n\
    \x20           connection.getresponse().read()\n\
    \x20   connection.close()\n\
    \x20   print('asked', host, calls, flush=True)\n";

/// \"Retries per second by service across the fleet\": a real Prometheus scrapes
/// two instances, and the rule that is deployed gives what they report.
#[test]
fn retries_by_service_across_the_fleet() {
    const S3: &str = "s3.eu-west-1.amazonaws.com";
    const DYNAMODB: &str = "dynamodb.eu-west-1.amazonaws.com";
    let ca = TestCa::new();
    let upstream = Upstream::with(&ca, common::ca::Leaf::Good, &[S3, DYNAMODB], &["http/1.1"]);
    let (metrics, prometheus) = ([free(), free()], free());
    let mut instances = metrics.map(|address| {
        let run = Run::new().to(S3, upstream.address, &ca).map_host(DYNAMODB, upstream.address);
        let run = run.rule("~attempt 1 => 503").option(format!("--metrics={address}"));
        run.start(words![clients::python(), "-c", ASK_OF])
    });
    let mut ask = |at: usize, host: &str, calls: u32| {
        instances[at].write(format!("{host} {calls}\n").as_bytes());
        instances[at].line(&format!("asked {host} {calls}"));
    };
    // Counters are there before what is measured: Prometheus adds up what it
    // sees grow.
    let first = [(0, S3, 1), (0, DYNAMODB, 1), (1, S3, 1)];
    first.iter().for_each(|(at, host, calls)| ask(*at, host, *calls));
    let (server, _folder) = start_prometheus(prometheus, &metrics);
    let patience = Duration::from_secs(60);
    until("every counter is scraped", patience, || {
        (query(prometheus, "count(count_over_time(retryscope_retries_total{evidence='exact'}[1m]) >= 2)")? >= 3.0)
            .then_some(())
    });
    let then = [(0, S3, 30), (0, DYNAMODB, 20), (1, S3, 50)];
    then.iter().for_each(|(at, host, calls)| ask(*at, host, *calls));
    let grown = |service: &str| -> f64 {
        then.iter().filter(|(_, host, _)| host.starts_with(service)).map(|(_, _, calls)| f64::from(*calls)).sum()
    };
    // A rate over a minute, of which less than a minute has passed.
    for service in ["s3", "dynamodb"] {
        let rule = format!("service:retryscope_retries:rate1m{{service='{service}'}} * 60");
        let wanted = grown(service);
        until(&format!("{rule} comes to {wanted}"), patience, || {
            let found = query(prometheus, &rule)?;
            ((found - wanted).abs() <= wanted * 0.15).then_some(())
        });
        let rule = format!("service:retryscope_amplification:ratio1m{{service='{service}'}}");
        let amplification = until(&rule, patience, || query(prometheus, &rule).filter(|found| found.is_finite()));
        assert!((1.8..=2.2).contains(&amplification), "{rule}: {amplification}");
        // All of it, as the instances told it.
        let total = format!("sum(retryscope_retries_total{{service='{service}'}})");
        let warm = first.iter().filter(|(_, host, _)| host.starts_with(service)).count();
        assert_eq!(query(prometheus, &total), Some(wanted + warm as f64), "{total}");
    }
    assert_eq!(query(prometheus, "count(service:retryscope_retries:rate1m)"), Some(2.0), "no other service");
    let mut reported = std::collections::BTreeMap::<String, u64>::new();
    for mut instance in instances {
        instance.close_stdin();
        let report = instance.finish().ok().report();
        for operation in report.operations() {
            let service = operation["service"].as_str().unwrap_or_default().to_owned();
            *reported.entry(service).or_default() += operation["retries"].as_u64().expect("a number");
        }
    }
    assert_eq!(reported, [("dynamodb".to_owned(), 21), ("s3".to_owned(), 82)].into());
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
