//! The model played with keys and answers, and looked at on a terminal that
//! is none.
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, style::Color};
use serde_json::{Value, json};

use super::{
    draw::{Drawn, Hit, draw},
    model::{Answer, Effect, Key, Link, Model, ProcessKey, Question, Tab, Trouble, View},
};
use crate::{
    control::{About, Act, Completed, HeldInFull, HeldView, InterceptView, Offer, RulesView, Verdict},
    history::{AttemptDetail, AttemptEntry, CallEntry, CallsPage},
    report::{BoundsEntry, Report},
};

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 60)];

fn counts(calls: u64, attempts: u64, throttled: u64, backoff_ms: f64) -> Value {
    let retries = attempts.saturating_sub(calls);
    json!({
        "calls": calls, "calls_retried": retries.min(calls), "attempts": attempts, "attempts_unlinked": 0,
        "retries": retries, "retries_exact": retries, "retries_inferred": 0, "give_ups": 3,
        "classes": {"throttled": {"genuine": 0, "injected": throttled}},
        "backoff": {"count": retries, "total_ms": backoff_ms, "max_ms": 1_204.0, "injected_count": 0, "injected_ms": 0.0},
        "statuses": {"200": attempts.saturating_sub(throttled)}, "injected": {"429": throttled}, "replaced": {}, "errors": {},
    })
}

fn with(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

fn process(pid: u32, command: &str, calls: u64, attempts: u64, share: f64) -> Value {
    let operation = |name: &str, calls, attempts| {
        with(counts(calls, attempts, attempts - calls, 38_200.0), json!({"service": "s3", "operation": name}))
    };
    with(
        counts(calls, attempts, attempts - calls, 38_200.0),
        json!({
            "pid": pid, "start_ticks": 7, "parent": 1, "uid": 1000, "command": command, "comm": "python3",
            "exited": false, "stalled_ms": 61_000.0 * share, "stalled_injected_ms": 0.0, "observed_ms": 61_000.0,
            "stalled_share": share, "connections": {"intercepted": 1, "tunnelled": 0, "refused": 0},
            "operations": [operation("PutObject", calls, attempts), operation("ListBuckets", 1, 1)],
            "rules": [], "problems": [],
        }),
    )
}

fn report(processes: &[Value], attempts: u64) -> Box<Report> {
    let totals = with(
        counts(1_204, attempts, 412, 38_200.0),
        json!({
            "processes": processes.len(), "stalled_ms": 38_000.0, "stalled_injected_ms": 0.0, "observed_ms": 61_000.0,
            "connections": {"intercepted": 1, "tunnelled": 0, "refused": 0},
        }),
    );
    let report = json!({
        "schema": 1, "version": "0.1.0", "seed": 0, "started": "2026-11-26T17:33:00Z",
        "ended": "2026-11-26T17:34:01Z", "ports": [443], "totals": totals, "processes": processes, "rules": [],
        "bounds": serde_json::to_value(BoundsEntry::default()).expect("JSON"), "notes": [],
    });
    Box::new(serde_json::from_value(report).expect("a report"))
}

fn attempt(id: u64, call: u64, number: u32, told: u16) -> AttemptEntry {
    let class = if told < 400 { "success" } else { "throttled" };
    AttemptEntry {
        id,
        time: "2026-11-26T17:33:45.123Z".into(),
        at_ms: 1_000.0 * id as f64,
        took_ms: 120.0,
        pid: 4242,
        start_ticks: 7,
        comm: "python3".into(),
        command: "/usr/bin/python3 /srv/app/sync.py --all".into(),
        call,
        attempt: number,
        max: Some(5),
        evidence: "exact".into(),
        waited_ms: (number > 1).then_some(880.0),
        service: Some("s3".into()),
        operation: Some("ListBuckets".into()),
        protocol: "http/1.1".into(),
        method: "GET".into(),
        url: "https://s3.eu-west-1.amazonaws.com/".into(),
        status: Some(200),
        told: Some(told),
        rule: (told != 200).then(|| "twice".into()),
        class: class.into(),
        ..AttemptEntry::default()
    }
}

fn call(call: u64, statuses: &[u16]) -> CallEntry {
    let attempts =
        (1..).zip(statuses).map(|(number, told)| attempt(call * 10 + u64::from(number), call, number, *told));
    let attempts: Vec<_> = attempts.collect();
    let waited_ms = 880.0 * (attempts.len() as f64 - 1.0);
    CallEntry { call, took_ms: 120.0 + 1_000.0 * (attempts.len() as f64 - 1.0), attempts, earlier: 0, waited_ms }
}

fn page(calls: Vec<CallEntry>) -> CallsPage {
    CallsPage { calls, ..CallsPage::default() }
}

fn held(id: u64, call: u64, number: u32) -> HeldView {
    HeldView {
        id,
        intercept: 1,
        phase: "response".into(),
        since: "2026-11-26T17:33:50.000Z".into(),
        waited_ms: 12_000,
        deadline: "2026-11-26T17:38:50.000Z".into(),
        left_ms: 288_000,
        pid: 4242,
        comm: "python3".into(),
        command: "/usr/bin/python3 /srv/app/sync.py --all".into(),
        service: Some("s3".into()),
        operation: Some("ListBuckets".into()),
        protocol: "http/1.1".into(),
        method: "GET".into(),
        url: "https://s3.eu-west-1.amazonaws.com/".into(),
        call,
        attempt: number,
        attempts_max: Some(5),
        backoff_ms: (number > 1).then_some(880.0),
        status: Some(200),
        told: None,
        abort: None,
        rule: None,
    }
}

fn in_full(held: &HeldView) -> Box<HeldInFull> {
    let full = json!({
        "held": serde_json::to_value(held).expect("JSON"),
        "request": {"method": "GET", "target": "/", "status": null, "reason": null,
            "headers": [["Host", "s3.eu-west-1.amazonaws.com"]], "body": {"text": ""}},
        "response": {"method": null, "target": null, "status": 200, "reason": "OK",
            "headers": [["Content-Type", "application/xml"]], "body": {"text": "<Buckets/>"}},
        "told": null,
    });
    Box::new(serde_json::from_value(full).expect("what is held"))
}

fn fields<T: serde::de::DeserializeOwned>(name: &str, value: &str) -> T {
    serde_json::from_value(json!([{"name": name, "value": value}])).expect("fields")
}

fn rules() -> RulesView {
    serde_json::from_value(json!({
        "seed": 7, "dry_run": false, "injections": 412, "stopped": null,
        "rules": [
            {"name": "twice", "rule": "~svc s3 & ~attempt ..2 => 429", "source": "command line", "enabled": true, "hits": 412},
            {"name": "slow", "rule": "~d example.com => delay 2s", "source": "added", "enabled": false, "hits": 0},
        ],
    }))
    .expect("rules")
}

/// An instance as it is after a minute.
fn model() -> Model {
    let mut model = Model::new(true);
    model.tick(0, "17:34:01".into());
    model.answered(Answer::About(About {
        pid: 4240,
        version: "0.1.0".into(),
        target: "python3".into(),
        command: Some("python3 /srv/app/sync.py --all".into()),
        targets: Vec::new(),
        bypassed: None,
        ready: true,
        beacon: None,
    }));
    let processes = |attempts| {
        vec![
            process(4242, "/usr/bin/python3 /srv/app/sync.py --all", 1_200, attempts, 0.62),
            process(4250, "curl https://example.com/", 4, 4, 0.0),
        ]
    };
    model.answered(Answer::Report(report(&processes(1_200), 1_204)));
    model.tick(10_000, "17:34:11".into());
    model.answered(Answer::Report(report(&processes(1_612), 1_616)));
    model
}

fn press(model: &mut Model, key: KeyCode) -> Vec<Effect> {
    model.key(KeyEvent::from(key))
}

fn types(model: &mut Model, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|char| press(model, KeyCode::Char(char))).collect()
}

fn shown(model: &Model, (width, height): (u16, u16)) -> (String, Buffer, Drawn) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    let mut drawn = Drawn::default();
    terminal.draw(|frame| drawn = draw(model, frame)).expect("drawing");
    let buffer = terminal.backend().buffer().clone();
    let mut text = String::new();
    for y in 0..height {
        let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    (text, buffer, drawn)
}

#[track_caller]
fn says(model: &Model, size: (u16, u16), parts: &[&str]) -> String {
    let (text, ..) = shown(model, size);
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in\n{text}");
    }
    text
}

/// Puts the model into each of its views, with something in it.
fn every_view(look: impl Fn(&mut Model, &str)) {
    let mut it = model();
    look(&mut it, "processes");
    press(&mut it, KeyCode::Enter);
    assert!(matches!(it.view(), View::Operations(_)));
    look(&mut it, "operations");
    press(&mut it, KeyCode::Enter);
    let filter = it.wants().into_iter().find_map(|question| match question {
        Question::Calls(filter, _) => Some(filter),
        _ => None,
    });
    let filter = filter.expect("calls are asked for");
    assert_eq!(filter.as_deref(), Some("~pid 4242 & ~svc \"s3\" & ~op \"PutObject\""));
    it.answered(Answer::Calls(filter, page(vec![call(2, &[429, 429, 200]), call(1, &[200])])));
    it.answered(Answer::Held(vec![held(3, 9, 1)]));
    look(&mut it, "calls of an operation");
    let mut it = model();
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(vec![call(2, &[429, 429, 200]), call(1, &[200])])));
    it.answered(Answer::Held(vec![held(3, 9, 1)]));
    look(&mut it, "calls");
    it.answered(Answer::Held(Vec::new()));
    press(&mut it, KeyCode::Enter);
    assert_eq!(*it.view(), View::Call(2));
    look(&mut it, "a call");
    press(&mut it, KeyCode::Enter);
    assert_eq!(*it.view(), View::Attempt(21));
    assert!(it.wants().contains(&Question::Attempt(21)));
    it.answered(Answer::Attempt(Box::new(AttemptDetail {
        attempt: attempt(21, 2, 1, 429),
        client: "127.0.0.1:50000".into(),
        origin: "127.64.0.1:443".into(),
        request_headers: fields("Host", "s3.eu-west-1.amazonaws.com"),
        response_headers: fields("Server", "moto"),
        next: Some(22),
        ..AttemptDetail::default()
    })));
    look(&mut it, "an attempt");
    let mut it = model();
    press(&mut it, KeyCode::Char('3'));
    look(&mut it, "nothing held");
    it.answered(Answer::Held(vec![held(3, 9, 1), held(4, 10, 2)]));
    it.answered(Answer::Intercepts(vec![
        serde_json::from_value::<InterceptView>(
            json!({"id": 1, "filter": "~op ListBuckets", "at": "response", "max_wait_ms": 300_000, "held": 4}),
        )
        .expect("an intercept"),
    ]));
    it.answered(Answer::Hold(in_full(&held(3, 9, 1))));
    look(&mut it, "held");
    press(&mut it, KeyCode::Enter);
    assert_eq!(*it.view(), View::Hold(3));
    it.answered(Answer::Hold(in_full(&held(3, 9, 1))));
    look(&mut it, "one held");
    let mut it = model();
    press(&mut it, KeyCode::Char('4'));
    it.answered(Answer::Rules(rules()));
    look(&mut it, "rules");
    press(&mut it, KeyCode::Char('?'));
    look(&mut it, "help");
}

#[test]
fn every_view_says_what_matters() {
    every_view(|model, view| {
        for size in SIZES {
            let always =
                ["retryscope top python3 sync.py --all (instance 4240)", "1,616 attempts", "1 Processes", "q quit"];
            says(model, size, &always);
            let parts: &[&str] = match view {
                "processes" => &["PID", "STALLED▾", "4242 python3", "1,612", "412", "62 %", "█", "curl", "Enter open"],
                "operations" => &["OPERATION", "BACKOFF▾", "s3.PutObject", "s3.ListBuckets", "38.2 s", "Esc back"],
                "calls of an operation" => &["› s3.PutObject", "TRIES", "17:33:45", "3/5", "→429", "1.76 s"],
                "calls" => &["ATTEMPTS AND WAITS", "s3.ListBuckets", "3/5", "→429", "200", "200 held", "r let go"],
                "a call" => &["call 2", "200→429", "+880 ms", "━", "··", "1.76 s of it waited"],
                "an attempt" => &["url", "rule", "twice", "1 of 5 of call 2 (exact)", "Server: moto", "n next"],
                "nothing held" => &["Nothing is held. Press i"],
                "held" => {
                    &["#3", "#4", "s3.ListBuckets", "12.0 s", "4m 48s", "INTERCEPTS", "~op ListBuckets", "Held 2"]
                }
                "one held" => &["#3 waits at its response", "200 OK", "Content-Type: application/xml", "<Buckets/>"],
                "rules" => &["on", "off", "412", "twice", "~svc s3 & ~attempt", "Space on/off"],
                _ => &["Esc", "freeze what is shown", "answer a request"],
            };
            says(model, size, parts);
        }
    });
}

#[test]
fn wide_terminals_show_what_is_selected_beside_the_list() {
    let it = model();
    says(
        &it,
        (200, 60),
        &["s3.PutObject", "BACKOFF▾", "attempts a second", "pid 4242, uid 1000; stalled for 37.8 s of 1m 01s"],
    );
    let (narrow, ..) = shown(&it, (80, 24));
    assert!(!narrow.contains("s3.PutObject"), "{narrow}");
}

#[test]
fn no_size_is_too_small() {
    every_view(|model, _| {
        for width in [1, 5, 20, 39, 79, 141] {
            for height in [1, 2, 5, 9, 35] {
                shown(model, (width, height));
            }
        }
    });
}

#[test]
fn nothing_drives_the_terminal() {
    let odd = "a\x1b]0;x\x07\x1b[2J\u{9b}2J\r\n\u{202e}\u{fffd}日本語<script>".repeat(40);
    let mut it = model();
    it.answered(Answer::Report(report(&[process(1, &odd, 2, 3, 0.5)], 2_000)));
    let bad = |mut entry: AttemptEntry| {
        entry.comm.clone_from(&odd);
        entry.command.clone_from(&odd);
        entry.service = None;
        entry.operation = None;
        entry.method.clone_from(&odd);
        entry.url = format!("https://{odd}");
        entry.reason = Some(odd.clone());
        entry.code = Some(odd.clone());
        entry.rule = Some(odd.clone());
        entry.abort = Some(odd.clone());
        entry
    };
    let mut strange = call(2, &[429, 200]);
    strange.attempts = strange.attempts.into_iter().map(bad).collect();
    let mut waits = held(3, 2, 3);
    waits.url.clone_from(&odd);
    waits.operation = Some(odd.clone());
    waits.rule = Some(odd.clone());
    let mut full = in_full(&waits);
    full.request.headers = vec![(odd.clone(), odd.repeat(10))];
    full.request.body.text = Some(odd.clone());
    it.answered(Answer::Held(vec![waits]));
    let mut seen = 0;
    let mut look = |it: &Model| {
        for size in SIZES {
            let (text, buffer, _) = shown(it, size);
            seen += usize::from(text.contains("\\u{1b}"));
            for cell in buffer.content() {
                assert!(!cell.symbol().chars().any(|c| c.is_control() || c == '\u{202e}'), "{:?}", cell.symbol());
            }
        }
    };
    look(&it);
    press(&mut it, KeyCode::Enter);
    look(&it);
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(vec![strange])));
    look(&it);
    press(&mut it, KeyCode::Enter);
    look(&it);
    press(&mut it, KeyCode::Enter);
    it.answered(Answer::Attempt(Box::new(AttemptDetail {
        attempt: bad(attempt(21, 2, 1, 429)),
        response_headers: fields(&odd, &odd.repeat(1_000)),
        ..AttemptDetail::default()
    })));
    look(&it);
    press(&mut it, KeyCode::Char('3'));
    press(&mut it, KeyCode::Enter);
    it.answered(Answer::Hold(full));
    look(&it);
    it.failed(None, Trouble::Refused(odd.clone()));
    it.filter = Some(odd.clone());
    look(&it);
    press(&mut it, KeyCode::Char('/'));
    look(&it);
    it.failed(None, Trouble::Gone(odd.clone()));
    look(&it);
    assert!(seen >= 12, "it was shown {seen} times, and escaped");
}

#[test]
fn without_colour_there_is_none() {
    every_view(|model, _| {
        model.color = false;
        let (_, buffer, _) = shown(model, (80, 24));
        model.color = true;
        assert!(buffer.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        let (_, buffer, _) = shown(model, (80, 24));
        assert!(buffer.content().iter().any(|cell| cell.fg != Color::Reset));
    });
}

/// 429 is typed over the 200, and the attempt goes on with it.
#[test]
fn a_status_is_typed_over_what_is_held() {
    let mut it = model();
    it.answered(Answer::Held(vec![held(1, 9, 1)]));
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(Vec::new())));
    says(&it, (80, 24), &["200 held", "1/5", "t first line"]);
    press(&mut it, KeyCode::Char('t'));
    says(&it, (80, 24), &["#1 first line: 200 OK"]);
    types(&mut it, "429 Slow down");
    press(&mut it, KeyCode::Enter);
    assert!(it.prompt.is_none());
    press(&mut it, KeyCode::Char('h'));
    types(&mut it, "Retry-After: 1");
    press(&mut it, KeyCode::Enter);
    press(&mut it, KeyCode::Char('3'));
    says(&it, (80, 24), &["200→429*"]);
    let verdict = Verdict {
        status: Some(429),
        reason: Some("Slow down".into()),
        headers: vec![("Retry-After".into(), "1".into())],
        ..Verdict::default()
    };
    assert_eq!(press(&mut it, KeyCode::Char('r')), [Effect::Decide(1, verdict)]);
    // It has gone on; what was typed goes with it.
    it.answered(Answer::Held(Vec::new()));
    assert!(it.changes.is_empty());
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(vec![call(9, &[429])])));
    it.answered(Answer::Held(vec![held(2, 9, 2)]));
    let text = says(&it, (80, 24), &["→429", "200 held", "2/5", "880 ms"]);
    assert_eq!(text.matches("s3.ListBuckets").count(), 1, "one call, one row: {text}");
}

#[test]
fn held_attempts_are_dropped_edited_and_answered() {
    let mut it = model();
    let mut request = held(5, 9, 1);
    request.phase = "request".into();
    request.status = None;
    it.answered(Answer::Held(vec![request]));
    press(&mut it, KeyCode::Char('3'));
    assert_eq!(press(&mut it, KeyCode::Char('e')), [Effect::Edit(5)]);
    press(&mut it, KeyCode::Char('x'));
    says(&it, (80, 24), &["break off #5?"]);
    assert_eq!(press(&mut it, KeyCode::Char('n')), []);
    press(&mut it, KeyCode::Char('x'));
    let dropped = Verdict { action: Act::Drop, ..Verdict::default() };
    assert_eq!(press(&mut it, KeyCode::Char('y')), [Effect::Decide(5, dropped)]);
    press(&mut it, KeyCode::Char('t'));
    says(&it, (80, 24), &["#5 first line: GET /"]);
    types(&mut it, "nonsense");
    press(&mut it, KeyCode::Enter);
    says(&it, (80, 24), &["write a method and a target"]);
    press(&mut it, KeyCode::Esc);
    press(&mut it, KeyCode::Char('a'));
    types(&mut it, "503");
    let answer = Verdict { action: Act::Answer, status: Some(503), ..Verdict::default() };
    assert_eq!(press(&mut it, KeyCode::Enter), [Effect::Decide(5, answer)]);
}

#[test]
fn a_filter_is_typed_completed_and_marked_where_it_is_wrong() {
    let mut it = model();
    press(&mut it, KeyCode::Char('2'));
    press(&mut it, KeyCode::Char('/'));
    assert_eq!(types(&mut it, "~sv").last(), Some(&Effect::Complete("~sv".into())));
    let offer = |text: &str, help: &str| Offer { text: text.into(), help: help.into() };
    it.answered(Answer::Completed("~s".into(), Completed { replace: 2, items: vec![offer("~s", "late")] }));
    assert!(it.prompt.as_ref().is_some_and(|prompt| prompt.offers.is_none()), "of what was typed before");
    it.answered(Answer::Completed("~sv".into(), Completed { replace: 3, items: vec![offer("~svc ", "service")] }));
    says(&it, (80, 24), &["~svc", "service", "filter: ~sv"]);
    assert_eq!(press(&mut it, KeyCode::Tab), [Effect::Complete("~svc ".into())]);
    types(&mut it, "s3 & ~dd");
    says(&it, (80, 24), &["did you mean ~d?", "^^^"]);
    press(&mut it, KeyCode::Enter);
    assert!(it.prompt.is_some(), "it stays to be mended");
    it.key(KeyEvent::new(KeyCode::Char('w'), KeyModifiers::CONTROL));
    types(&mut it, "~retry");
    press(&mut it, KeyCode::Enter);
    assert_eq!(it.filter.as_deref(), Some("~svc s3 & ~retry"));
    assert!(it.wants().contains(&Question::Calls(Some("(~svc s3 & ~retry)".into()), 50)));
    says(&it, (80, 24), &["filter: ~svc s3 & ~retry"]);
    press(&mut it, KeyCode::Char('1'));
    assert!(it.wants().contains(&Question::Counts("~svc s3 & ~retry".into())));
    press(&mut it, KeyCode::Esc);
    assert_eq!(it.filter, None);
}

#[test]
fn rules_are_switched_added_and_removed() {
    let mut it = model();
    press(&mut it, KeyCode::Char('4'));
    it.answered(Answer::Rules(rules()));
    assert_eq!(press(&mut it, KeyCode::Char(' ')), [Effect::Switch("twice".into(), false)]);
    press(&mut it, KeyCode::Down);
    assert_eq!(press(&mut it, KeyCode::Enter), [Effect::Switch("slow".into(), true)]);
    assert_eq!(press(&mut it, KeyCode::Char('o')), [Effect::SwitchAll(false)]);
    press(&mut it, KeyCode::Char('x'));
    assert_eq!(press(&mut it, KeyCode::Char('y')), [Effect::RemoveRule("slow".into())]);
    press(&mut it, KeyCode::Char('a'));
    types(&mut it, "~dd => 429");
    assert_eq!(press(&mut it, KeyCode::Enter), [Effect::AddRule("~dd => 429".into())]);
    it.failed(None, Trouble::Refused("error: no such operator\n  ~dd => 429\n  ^^^".into()));
    says(&it, (80, 24), &["rule: ~dd => 429", "no such operator", "^^^"]);
    it.answered(Answer::Done("added \"r1\"".into()));
    assert!(it.prompt.is_none());
    says(&it, (80, 24), &["added \"r1\""]);
}

#[test]
fn frozen_nothing_changes_and_little_is_asked() {
    let mut it = model();
    press(&mut it, KeyCode::Char('f'));
    says(&it, (80, 24), &["FROZEN at 17:34:11", "f go on"]);
    assert_eq!(it.wants(), [Question::Held]);
    it.answered(Answer::Report(report(&[], 9_999)));
    says(&it, (80, 24), &["1,616 attempts", "4242"]);
    press(&mut it, KeyCode::Char('f'));
    it.answered(Answer::Report(report(&[], 9_999)));
    says(&it, (80, 24), &["9,999 attempts", "Nothing was seen yet"]);
}

#[test]
fn the_last_state_stays_to_be_read() {
    let mut it = model();
    it.failed(Some(&Question::Report), Trouble::Gone("cannot speak to the instance".into()));
    says(&it, (80, 24), &["ENDED", "since 17:34:11 UTC", "4242 python3", "1,616 attempts"]);
    assert_eq!(it.wants(), [Question::About]);
    press(&mut it, KeyCode::Enter);
    says(&it, (80, 24), &["s3.PutObject"]);
    it.answered(Answer::Held(Vec::new()));
    assert_eq!(it.link, Link::Up);
}

#[test]
fn the_mouse_selects_opens_sorts_and_changes_tabs() {
    let mut it = model();
    let (text, _, drawn) = shown(&it, (80, 24));
    let click = |it: &mut Model, drawn: &Drawn, x: usize, y: usize| {
        let (column, row) = (x as u16, y as u16);
        let kind = MouseEventKind::Down(MouseButton::Left);
        it.mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE }, &drawn.hits)
    };
    let row = text.lines().position(|line| line.contains("4250")).expect("a row");
    click(&mut it, &drawn, 10, row);
    assert_eq!(it.here(), Some(Key::Process(ProcessKey { pid: 4250, start_ticks: 7 })));
    assert_eq!(*it.view(), View::Processes);
    let head = text.lines().position(|line| line.contains("PID")).expect("heads");
    click(&mut it, &drawn, 5, head);
    assert_eq!((it.place().sort.column, it.place().sort.reversed), (1, false));
    click(&mut it, &drawn, 5, head);
    assert!(it.place().sort.reversed);
    says(&it, (80, 24), &["PID▴"]);
    click(&mut it, &drawn, 10, row);
    let (_, _, drawn) = shown(&it, (80, 24));
    let hit = drawn.hits.iter().find(|(_, hit)| *hit == Hit::Tab(Tab::Rules)).expect("a tab").0;
    click(&mut it, &drawn, hit.x.into(), hit.y.into());
    assert_eq!(it.tab, Tab::Rules);
    assert!(it.wants().contains(&Question::Rules));
}

#[test]
fn what_is_selected_stays_selected_as_calls_come() {
    let mut it = model();
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(vec![call(2, &[200]), call(1, &[200])])));
    assert_eq!(it.here(), Some(Key::Call(2)));
    it.answered(Answer::Calls(None, page(vec![call(3, &[200]), call(2, &[200]), call(1, &[200])])));
    assert_eq!(it.here(), Some(Key::Call(3)), "the top is whatever is newest");
    press(&mut it, KeyCode::Down);
    it.answered(Answer::Calls(None, page(vec![call(4, &[200]), call(3, &[200]), call(2, &[200]), call(1, &[200])])));
    assert_eq!(it.here(), Some(Key::Call(2)));
    let many = (1..200).rev().map(|number| call(number, &[200])).collect();
    it.answered(Answer::Calls(None, page(many)));
    let (text, _, drawn) = shown(&it, (80, 24));
    assert!(drawn.offset > 0 && text.contains("ATTEMPTS AND WAITS"), "{text}");
}

/// A call that is looked at goes on, also where it is no longer among the
/// latest.
#[test]
fn a_call_that_is_shown_grows() {
    let mut it = model();
    press(&mut it, KeyCode::Char('2'));
    it.answered(Answer::Calls(None, page(vec![call(2, &[429])])));
    press(&mut it, KeyCode::Enter);
    assert!(it.wants().contains(&Question::Attempt(21)));
    let detail = |id, number, told, next| {
        Answer::Attempt(Box::new(AttemptDetail {
            attempt: attempt(id, 2, number, told),
            next,
            ..AttemptDetail::default()
        }))
    };
    it.answered(detail(21, 1, 429, Some(22)));
    assert!(it.wants().contains(&Question::Attempt(22)));
    it.answered(detail(22, 2, 200, None));
    let text = says(&it, (80, 24), &["200→429", "+880 ms"]);
    assert!(text.contains("   2 "), "{text}");
    assert!(it.wants().contains(&Question::Attempt(22)), "and perhaps a third");
}
