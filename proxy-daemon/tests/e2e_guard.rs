//! What holds for all rules of an instance together: how much they may do,
//! what stops them, what chance is drawn from, and what answers say of them.
mod common;

use common::{NAME, Outcome, Run, SOON, TestCa, Upstream, clients, run::retryscope};
use serde_json::{Value, json};

struct Scene {
    ca: TestCa,
    upstream: Upstream,
}

impl Scene {
    fn new() -> Self {
        let ca = TestCa::new();
        let upstream = Upstream::start(&ca);
        Self { ca, upstream }
    }

    fn run(&self, options: &[&str]) -> Run {
        options.iter().fold(Run::new().to(NAME, self.upstream.address, &self.ca), Run::option)
    }
}

/// The statuses of so many GETs.
fn gets(run: Run, path: &str, count: u32) -> (Vec<u64>, Outcome) {
    let requests = json!([["GET", format!("https://{NAME}{path}"), {}, count]]).to_string();
    let outcome = run.go(words![clients::python(), clients::script("ask.py"), requests]).ok();
    let answers = outcome.json().as_array().cloned().unwrap_or_default();
    (answers.iter().filter_map(|answer| answer[0].as_u64()).collect(), outcome)
}

fn note(outcome: &Outcome, part: &str) {
    let report = outcome.report();
    let notes: Vec<Value> = report.0["notes"].as_array().cloned().unwrap_or_default();
    assert!(notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains(part))), "{part}: {report}");
}

#[test]
fn no_more_than_so_many_injections() {
    let scene = Scene::new();
    let options = ["--max-injections", "3", "--rule", "~u /a => 503", "--rule", "~u / => 500"];
    let (statuses, outcome) = gets(scene.run(&options), "/a", 6);
    assert_eq!(statuses, [503, 503, 503, 200, 200, 200]);
    note(&outcome, "Rules stopped acting: rules have acted 3 times");
}

#[test]
fn genuine_failures_stop_the_rules() {
    let scene = Scene::new();
    let options = ["--stop-when", "~genuine & ~c 500 > 2/1h", "--rule", "~u /hello => 503"];
    let requests = |path: &str, count: u32| json!(["GET", format!("https://{NAME}{path}"), {}, count]);
    let all = json!([
        requests("/hello", 1),
        requests("/status/500", 2),
        requests("/hello", 1),
        requests("/status/500", 1),
        requests("/hello", 2)
    ]);
    let outcome = scene.run(&options).go(words![clients::python(), clients::script("ask.py"), all.to_string()]).ok();
    let statuses: Vec<u64> =
        outcome.json().as_array().into_iter().flatten().filter_map(|answer| answer[0].as_u64()).collect();
    assert_eq!(statuses, [503, 500, 500, 503, 500, 200, 200]);
    note(&outcome, "Rules stopped acting:");
}

/// Asks until nothing is injected any more.
#[test]
fn rules_end_by_themselves() {
    const UNTIL: &str = "import http.client, ssl, sys\n\
        connection, seen = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context()), []\n\
        while 200 not in seen:\n\
        \x20   connection.request('GET', '/hello')\n\
        \x20   answer = connection.getresponse()\n\
        \x20   answer.read()\n\
        \x20   seen.append(answer.status)\n\
        print(seen[0], seen[-1])\n";
    let scene = Scene::new();
    let run = scene.run(&["--for", "2s", "--rule", "~u /hello => 503"]);
    let outcome = run.go(words![clients::python(), "-c", UNTIL, NAME]).ok();
    assert_eq!(outcome.text(), "503 200\n");
    note(&outcome, "Rules stopped acting: the time");
}

#[test]
fn a_seed_repeats_a_run() {
    let scene = Scene::new();
    let rule = ["--rule", "~u /hello => 503 chance 50%"];
    let (first, outcome) = gets(scene.run(&rule), "/hello", 60);
    assert!(first.contains(&503) && first.contains(&200), "{first:?}");
    let seed = outcome.report().0["seed"].to_string();
    let again = [&["--seed", &seed][..], &rule].concat();
    assert_eq!(gets(scene.run(&again), "/hello", 60).0, first, "the same seed");
    let other = [&["--seed", "12345678"][..], &rule].concat();
    assert_ne!(gets(scene.run(&other), "/hello", 60).0, first, "another seed");
}

#[test]
fn a_dry_run_counts_and_does_nothing() {
    let scene = Scene::new();
    let (statuses, outcome) = gets(scene.run(&["--dry-run", "--rule", "~u /hello => 503"]), "/hello", 3);
    assert_eq!(statuses, [200; 3]);
    assert_eq!(outcome.report().0["rules"][0]["hits"], 3);
    note(&outcome, "A dry run");
}

/// Answers say which rule changed them, unless they shall not; in both
/// protocols and both phases.
#[test]
fn the_rules_header_can_be_left_out() {
    let scene = Scene::new();
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    std::fs::write(&file, "rule_header = false\n").expect("writing rules");
    let path = file.path().to_string_lossy().into_owned();
    for (options, named) in [(&[][..], true), (&["--no-rule-header"], false), (&["--rules", &path], false)] {
        for (flag, phase) in
            [("--http1.1", "request"), ("--http1.1", "response"), ("--http2", "request"), ("--http2", "response")]
        {
            let rule = format!("~u /hello => 503 in {phase}");
            let run = scene.run(options).rule(&rule);
            let outcome = run.go(words![clients::curl(), "-sSi", flag, format!("https://{NAME}/hello")]).ok();
            let text = outcome.text().to_ascii_lowercase();
            assert!(text.contains(" 503"), "{text}");
            assert_eq!(text.contains("x-retryscope"), named, "{options:?} {flag} {phase}: {text}");
        }
    }
}

/// The guard of a file goes with the file's next reading; what has stopped
/// the rules keeps them stopped.
#[test]
fn a_reload_brings_its_own_guard() {
    const ASK: &str = "import http.client, ssl, sys\n\
        print('ready', flush=True)\n\
        for line in sys.stdin:\n\
        \x20   connection = http.client.HTTPSConnection(sys.argv[1], context=ssl.create_default_context())\n\
        \x20   connection.request('GET', line.strip())\n\
        \x20   print(line.strip(), connection.getresponse().status, flush=True)\n";
    let scene = Scene::new();
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    let rule = "[[rule]]\nname = \"it\"\nwhen = \"~u /hello\"\nthen = { status = 503 }\n";
    let guarded =
        |count: u32| format!("guard = {{ stop_when = {{ filter = \"~c 500\", rate = \"{count}/h\" }} }}\n{rule}");
    std::fs::write(&file, guarded(1)).expect("writing rules");
    let path = file.path().to_string_lossy().into_owned();
    let mut started = scene.run(&["--rules", &path]).start(words![clients::python(), "-c", ASK, NAME]);
    started.line("ready");
    let pid = started.pid.to_string();
    let mut asked = 0;
    let mut ask = |path: &str| {
        asked += 1;
        let path = format!("{path}?{asked}.");
        started.write(format!("{path}\n").as_bytes());
        started.line(&format!("{path} ")).trim().rsplit(' ').next().unwrap_or_default().to_owned()
    };
    let reload = || retryscope(["rules", "reload", "--instance", &pid]).finish(SOON).code(0);
    assert_eq!(ask("/status/500"), "500");
    assert_eq!(ask("/hello"), "503", "one failure is within the rate");
    std::fs::write(&file, rule).expect("writing rules");
    reload();
    for _ in 0..3 {
        assert_eq!(ask("/status/500"), "500");
    }
    assert_eq!(ask("/hello"), "503", "nothing guards them now");
    std::fs::write(&file, guarded(2)).expect("writing rules");
    reload();
    for _ in 0..2 {
        ask("/status/500");
    }
    assert_eq!(ask("/hello"), "503", "failures before the guard do not count");
    ask("/status/500");
    assert_eq!(ask("/hello"), "200", "the third is too many");
    std::fs::write(&file, rule).expect("writing rules");
    reload();
    assert_eq!(ask("/hello"), "200", "and stays so");
    started.close_stdin();
    started.finish().ok();
}
