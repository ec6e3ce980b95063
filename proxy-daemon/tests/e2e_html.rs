//! The HTML report in a real browser: what it shows, what can be done with
//! it, and that nothing in it comes alive.
mod common;

use std::path::{Path, PathBuf};

use common::{NAME, Run, SOON, TestCa, Upstream, clients, run::retryscope};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What would show that something became markup or script.
const HOSTILE: &str = "</script><img/src=x/onerror=alert(1)><!--";

/// What a browser makes of a page. `RETRYSCOPE_TEST_PICTURES` names a folder
/// for screenshots.
fn seen(page: &Path) -> Value {
    clients::need("chromium", "chromium");
    let mut command = std::process::Command::new(clients::node());
    command.arg(clients::script("page.mjs")).arg(clients::node_modules()).arg(page);
    command.args(std::env::var_os("RETRYSCOPE_TEST_PICTURES"));
    let finished = clients::bare(&mut command).finish(3 * SOON).code(0);
    finished.json()
}

/// Calls of two processes: some retried after a rule's answers, one with a
/// wait, one that tries to be markup.
fn page() -> (TempDir, PathBuf) {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.html");
    let ask = |call: &str, attempt: u32, path: &str| {
        let headers = json!({"amz-sdk-invocation-id": call, "amz-sdk-request": format!("attempt={attempt}; max=3")});
        json!(["GET", format!("https://{NAME}{path}"), headers, 1])
    };
    let plan = json!([
        ask("a", 1, "/hello?token=hush"),
        ask("a", 2, "/hello?token=hush"),
        ask("b", 1, &format!("/other{HOSTILE}")),
        ask("c", 1, "/status/404"),
        ask("d", 1, "/status/500"),
    ]);
    let script = "\"$1\" \"$2\" \"$3\" >/dev/null & curl -sS --retry 2 --retry-delay 1 \"$4\" >/dev/null; wait";
    let url = format!("https://{NAME}/curl");
    let words = words!["sh", "-c", script, "sh", clients::python(), clients::script("ask.py"), plan.to_string(), url];
    let run = Run::new().no_report().to(NAME, upstream.address, &ca);
    let run = run.rule("~u /hello & ~attempt 1 => 503").rule("~u /curl & ~attempt 1 => 429");
    run.option("--report").option("html").option("--report-file").option(&file).go(words).ok();
    (folder, file)
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("no number {field}: {value:#}"))
}

#[test]
fn a_page_shows_the_run_and_runs_nothing_else() {
    let (_folder, file) = page();
    let text = std::fs::read_to_string(&file).expect("the page");
    assert!(text.contains("\"url\":\"https://upstream.test/hello?token=REDACTED\""), "URLs tell no secret");
    let seen = seen(&file);
    assert_eq!(seen["errors"], json!([]), "{seen:#}");
    assert_eq!(seen["requests"], json!([]), "nothing is asked of any network");
    assert_eq!((&seen["dialogs"], &seen["blocked"]), (&json!(0), &json!(true)));
    assert_eq!(seen["elements"], json!({"images": 0, "scripts": 3}), "{seen:#}");
    let shown = seen["text"].as_str().unwrap_or_default();
    for part in ["were spent in backoff", "GET upstream.test/hello", HOSTILE, "by rule 503", "Rule \"", "Calls"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    // The timeline has every attempt, and tells of each.
    assert_eq!(number(&seen, "drawn"), 7.0, "{seen:#}");
    let hovered = seen["hovered"].as_str().unwrap_or_default();
    for part in ["attempt", "outcome", "took", "request", "process"] {
        assert!(hovered.contains(part), "{part}: {hovered}");
    }
    assert!(number(&seen, "zoomed") < 0.9 && number(&seen, "keyZoomed") < 0.9, "{seen:#}");
    assert!(number(&seen, "dragged") > 20.0, "{seen:#}");
    assert!((number(&seen, "reset") - 1.0).abs() < 1e-9, "{seen:#}");
    assert_eq!(seen["closed"], true);
    assert_eq!(number(&seen, "retriedOnly"), 4.0, "{seen:#}");
    let keys = seen["keys"].as_array().cloned().unwrap_or_default();
    assert!(keys.len() == 4 && keys.iter().all(Value::is_string) && keys[0] != keys[1], "{seen:#}");
    let told = format!("{hovered}{}", seen["keys"]);
    assert!(told.contains("by rule"), "{told}");
}

#[test]
fn saved_and_running_reports_are_pages_too() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let url = format!("https://{NAME}/hello");
    let script = "curl -sS \"$1\" > /dev/null; echo asked; read line";
    let mut started = Run::new().to(NAME, upstream.address, &ca).start(words!["sh", "-c", script, "sh", url]);
    started.line("asked");
    let pid = started.pid.to_string();
    let running = path("running.html");
    let words = words!["report", "--instance", pid, "--report", "html", "--report-file", running];
    retryscope(words).finish(SOON).code(0);
    started.write(b"\n");
    started.close_stdin();
    let report = started.finish().ok().report();
    std::fs::write(path("saved.json"), report.0.to_string()).expect("writing");
    let page = retryscope(words!["report", path("saved.json"), "--report", "html"]).finish(SOON).code(0);
    std::fs::write(path("saved.html"), &page.stdout).expect("writing");
    for name in ["running.html", "saved.html"] {
        let seen = seen(&path(name));
        assert_eq!(seen["errors"], json!([]), "{name}: {seen:#}");
        let shown = seen["text"].as_str().unwrap_or_default();
        for part in ["its only GET upstream.test/hello call was not retried", "There is no timeline here"] {
            assert!(shown.contains(part), "{name}, {part}: {shown}");
        }
    }
}

#[test]
fn what_is_no_page_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("a.json");
    std::fs::write(&saved, "{}").expect("writing");
    let cases = [
        (words!["run", "--report", "html", "--", "true"], 64, "add --report-file"),
        (words!["report", "--diff", &saved, &saved, "--report", "html"], 64, "--diff compares as text or json"),
        (words!["report", "--watch", "--report", "html"], 64, "--watch shows text or json"),
        (words!["report", &saved, "--report", "html"], 65, "is no report of retryscope"),
    ];
    for (words, code, part) in cases {
        let said = retryscope(words).finish(SOON).code(code);
        assert!(said.stderr.contains(part) && said.stderr.lines().count() == 1, "{said}");
    }
    // A page that cannot be written is told as text.
    let full = retryscope(words!["run", "--report", "html", "--report-file", "/dev/full", "--", "true"]);
    let said = full.finish(SOON).code(0);
    assert!(said.stderr.contains("cannot write the report to /dev/full"), "{said}");
    assert!(said.stderr.contains("made no TCP connection") && !said.stderr.contains("<html"), "{said}");
}
