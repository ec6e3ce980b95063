//! Clients that retry, of every family: the requests that their own libraries
//! count are the attempts that the report tells, and nobody is told to be
//! exact who was not.
mod common;

use std::ffi::OsString;

use common::{
    Outcome, Run, Running, SOON, TestCa, Upstream,
    ca::Leaf,
    clients, own_address,
    report::number,
    servers::{AWS, Moto},
};

const API: &str = "api.example.com";
const NAMES: [&str; 7] = [
    API,
    "api.openai.com",
    "api.anthropic.com",
    "api.stripe.com",
    "storage.googleapis.com",
    "acct.blob.core.windows.net",
    "management.azure.com",
];

/// How the report knows of the retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Signal,
    Inference,
}
use By::{Inference, Signal};

struct Truth {
    ca: TestCa,
    upstream: Upstream,
}

impl Truth {
    fn new() -> Self {
        let ca = TestCa::new();
        let upstream = Upstream::with(&ca, Leaf::Good, &NAMES, &["h2", "http/1.1"]);
        Self { ca, upstream }
    }

    /// Runs one call that `rules` make fail twice, and holds the report
    /// against what the client says.
    fn check(&self, rules: &[&str], command: Vec<OsString>, by: By) {
        let names = NAMES
            .iter()
            .fold(Run::new().upstream_ca(&self.ca.pem()), |run, name| run.map_host(name, self.upstream.address));
        let outcome = rules.iter().fold(names, |run, rule| run.rule(rule)).go(command).ok();
        let sent = outcome.json()["sent"].as_u64().unwrap_or_default();
        assert_eq!(sent, 3, "{}", outcome.finished);
        agrees(&outcome, sent, by);
    }
}

fn agrees(outcome: &Outcome, sent: u64, by: By) {
    let report = outcome.report();
    let process = report.processes().first().expect("a process");
    let told = |name: &str| number(process, name);
    assert_eq!((told("attempts"), told("calls"), told("calls_retried")), (sent, 1, 1), "{report}");
    let (exact, inferred) = if by == Signal { (sent - 1, 0) } else { (0, sent - 1) };
    assert_eq!((told("retries_exact"), told("retries_inferred")), (exact, inferred), "{report}");
    assert_eq!(number(&process["backoff"], "count"), sent - 1, "{report}");
    assert_eq!(told("give_ups"), 0, "{report}");
}

fn python(client: &str) -> Vec<OsString> {
    words![clients::sdk_python(), clients::script("truth.py"), client]
}

const TWICE_503: &str = "~all => 503 times 2 per rule";

#[test]
fn python_without_signals() {
    let truth = Truth::new();
    for client in ["urllib3_retry", "requests_retry", "tenacity_httpx"] {
        truth.check(&[TWICE_503], python(client), Inference);
    }
    truth.check(&["~all => reset times 2 per rule"], python("urllib3_reset"), Inference);
}

#[test]
fn node_without_signals() {
    let truth = Truth::new();
    for client in ["axios_retry", "got"] {
        let command = words![clients::node(), clients::script("truth.mjs"), clients::node_modules(), client];
        truth.check(&[TWICE_503], command, Inference);
    }
}

/// Every way to fail, in every mode.
#[test]
fn boto3_in_every_mode() {
    let moto = Moto::shared();
    for mode in ["legacy", "standard", "adaptive"] {
        for (fault, class, origin) in [
            ("s3-slowdown", "throttled", "injected"),
            ("500 in request", "server_error", "injected"),
            ("reset", "connection", "injected"),
            ("stall", "timeout", "injected"),
        ] {
            let rule = format!("~op ListBuckets & ~attempt ..2 => {fault}");
            let run = AWS
                .iter()
                .fold(Run::new().upstream_ca(&moto.ca.pem()).rule(&rule), |run, name| run.map_host(name, moto.address));
            let outcome = run.go(words![clients::python(), clients::script("truth.py"), "boto3_list", mode]).ok();
            assert_eq!(outcome.json()["sent"], 3, "{mode} {fault}: {}", outcome.finished);
            agrees(&outcome, 3, Signal);
            let report = outcome.report();
            let process = report.processes().first().expect("a process");
            assert_eq!(number(&process["classes"][class], origin), 2, "{mode} {fault}: {report}");
        }
    }
}

#[test]
fn aws_sdk_for_javascript() {
    let moto = Moto::shared();
    for fault in ["s3-slowdown", "500 in request", "429 in response", "reset"] {
        let rule = format!("~op ListBuckets & ~attempt ..2 => {fault}");
        let run = AWS
            .iter()
            .fold(Run::new().upstream_ca(&moto.ca.pem()).rule(&rule), |run, name| run.map_host(name, moto.address));
        let command = words![clients::node(), clients::script("truth.mjs"), clients::node_modules(), "aws_sdk"];
        let outcome = run.go(command).ok();
        assert_eq!(outcome.json()["sent"], 3, "{fault}: {}", outcome.finished);
        agrees(&outcome, 3, Signal);
    }
}

#[test]
fn stainless_sdks() {
    let truth = Truth::new();
    let chat = r#"~all => 200 set "content-type: application/json" body '{"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}]}' in request"#;
    truth.check(&["~all => openai-429 times 2 per rule", chat], python("openai_chat"), Signal);
    let message = r#"~all => 200 set "content-type: application/json" body '{"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": "end_turn", "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1}}' in request"#;
    truth.check(&["~all => anthropic-429 times 2 per rule", message], python("anthropic_messages"), Signal);
}

#[test]
fn other_services() {
    let truth = Truth::new();
    let json =
        r#"~all => 200 set "content-type: application/json" body '{"id": "x", "object": "customer"}' in request"#;
    truth.check(&["~all => 500 body '{}' in request times 2 per rule", json], python("stripe_customer"), Signal);
    truth.check(&["~all => gcs-429 times 2 per rule", json], python("google_storage"), Signal);
    truth.check(&["~all => 503 in request times 2 per rule", json], python("azure_core"), Signal);
    // A new id for each attempt: it proves nothing.
    truth.check(&["~all => azure-blob-server-busy times 2 per rule", json], python("azure_blob"), Inference);
}

#[test]
fn curl() {
    let truth = Truth::new();
    let url = format!("https://{API}/status/200");
    let command = words![clients::curl(), "-sS", "--retry", "4", url];
    let run = Run::new().to(API, truth.upstream.address, &truth.ca).rule(TWICE_503);
    let outcome = run.go(command).ok();
    // curl does not tell how often it asked; its answer is the upstream's third.
    agrees(&outcome, 3, Inference);
    let refused = words![
        clients::curl(),
        "-sS",
        "--retry",
        "2",
        "--retry-connrefused",
        "--retry-all-errors",
        "--retry-delay",
        "1",
        format!("https://{API}/")
    ];
    let outcome = Run::new().to(API, own_address(443), &truth.ca).go(refused).code(35);
    let report = outcome.report();
    let process = report.processes().first().expect("a process");
    let told = |name: &str| number(process, name);
    assert_eq!((told("attempts"), told("calls"), told("retries_inferred"), told("give_ups")), (3, 1, 2, 1), "{report}");
    assert_eq!(report.count("errors", "refused"), 3, "{report}");
}

/// Against a real server, whose trailers say how often it was asked.
#[test]
fn grpc() {
    let ca = TestCa::new();
    let address = own_address(443);
    let files = ca.files("grpc", &[API], &[]);
    let mut server = std::process::Command::new(clients::sdk_python());
    server.arg(clients::script("grpc_server.py")).arg(address.to_string()).args([&files.cert, &files.key]);
    server.env_clear().envs(clients::environment());
    let server = Running::start(&mut server);
    server.line("ready");
    let outcome = Run::new().to(API, address, &ca).go(python("grpc_unary")).ok();
    assert_eq!(outcome.json()["sent"], 3);
    agrees(&outcome, 3, Signal);
    let report = outcome.report();
    let process = report.processes().first().expect("a process");
    assert_eq!(number(&process["classes"]["server_error"], "genuine"), 2, "{report}");
    assert_eq!(number(&process["codes"], "UNAVAILABLE"), 2, "{report}");
    // A status that comes in the trailers, after a response that had begun.
    let outcome = Run::new().to(API, address, &ca).go(python("grpc_late")).ok();
    assert_eq!(outcome.json()["sent"], 1);
    let report = outcome.report();
    let process = report.processes().first().expect("a process");
    assert_eq!(number(&process["classes"]["throttled"], "genuine"), 1, "{report}");
    assert_eq!(number(&process["codes"], "RESOURCE_EXHAUSTED"), 1, "{report}");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.finish(SOON);
}
