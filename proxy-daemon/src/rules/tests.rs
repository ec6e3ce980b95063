#![allow(clippy::unwrap_used)]
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn set(rules: &[&str]) -> RuleSet {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    RuleSet::parse(&rules, &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refusal(rule: &str) -> String {
    RuleSet::parse(&[rule.to_owned()], &[]).expect_err(rule).to_string()
}

fn file(content: &str) -> Result<RuleSet, RuleErrors> {
    RuleSet::parse(&[], &[(PathBuf::from("rules.toml"), content.to_owned())])
}

fn lines(set: &RuleSet) -> Vec<String> {
    set.iter().map(|entry| entry.rule.text.clone()).collect()
}

#[test]
fn names_fit_a_header() {
    let long = format!("~u {} => 503", "x".repeat(200));
    let rules = set(&["~d s3   =>  429", "~d s3 => 429", &long, "~u \"caf\u{e9}\" => 503"]);
    let names: Vec<&str> = rules.iter().map(|entry| &*entry.rule.name).collect();
    assert_eq!(names[0], "~d s3 => 429");
    assert_eq!(names[1], "~d s3 => 429 #2");
    assert!(names[2].ends_with("xx...") && names[2].len() == 72);
    assert_eq!(names[3], "~u \"caf%C3%A9\" => 503");
    for name in names {
        assert!(http::HeaderValue::from_str(name).is_ok());
    }
}

/// Every clause, in the line that means the same.
#[test]
fn every_clause() {
    for (rule, canonical) in [
        ("~s => 429", "~s => 429 in response"),
        ("~s => status 429 'Slow down'", "~s => 429 \"Slow down\" in response"),
        ("~m GET => 429 in request", "~m GET => 429 in request"),
        ("~m GET => throttle", "~m GET => throttle in request"),
        ("~s => throttle", "~s => throttle in response"),
        ("~m GET => s3-slowdown", "~m GET => preset s3-slowdown in request"),
        ("~m GET => preset dynamodb-throughput", "~m GET => preset dynamodb-provisioned-throughput in request"),
        ("~all => 503 retry-after 2", "~all => 503 set \"Retry-After: 2\" in response"),
        ("~all => set \"A: b\" add 'C: d' remove E", "~all => set \"A: b\" add \"C: d\" remove E in response"),
        ("~all => body \"say \\\"hi\\\"\"", "~all => body \"say \\\"hi\\\"\" in response"),
        ("~all => merge '{\"a\": null}'", "~all => merge \"{\\\"a\\\":null}\" in response"),
        ("~all => delay 200ms", "~all => delay 200ms in request"),
        ("~s => delay 100ms..1s", "~s => delay 100ms..1s in response"),
        ("~all => delay 1s~50ms cap 1500ms", "~all => delay 1s~50ms cap 1s500ms in request"),
        ("~all => reset", "~all => reset in request"),
        ("~all => stall", "~all => stall in request"),
        ("~all => stall 30s", "~all => stall 30s in request"),
        ("~all => truncate 10", "~all => truncate 10 in response"),
        ("~all => goaway", "~all => goaway enhance-your-calm in request"),
        ("~all => goaway no-error", "~all => goaway no-error in request"),
        ("~all => rst-stream 8", "~all => rst-stream cancel in request"),
        ("~all => continue-then 503", "~all => continue-then 503 in request"),
        ("~all => limit 100/s per host burst 20 throttle", "~all => limit 100/s per host burst 20 throttle in request"),
        ("~all => limit 0.5/m 429 in request", "~all => limit 0.5/m per rule 429 in request"),
        ("~all => pass", "~all => pass in request"),
        (
            "~all => 429 times 2 per call every 3 chance 5% after 30s for 10m max-hits 7 max-share 0.5 continue",
            "~all => 429 after 30s for 10m chance 0.05 every 3 times 2 per call max-share 0.5 max-hits 7 continue in response",
        ),
    ] {
        let rules = set(&[rule]);
        assert_eq!(lines(&rules), [canonical], "{rule}");
        assert_eq!(lines(&set(&[canonical])), [canonical], "{rule}");
    }
    let rules = set(&["~all => 429 name \"a name\" off"]);
    let entry = rules.iter().next().unwrap();
    assert_eq!((&*entry.rule.name, entry.enabled), ("a name", false));
}

#[test]
fn mistakes_in_a_line() {
    for (rule, marks, message) in [
        ("~dd s3 => 429", "^^^", "unknown operator ~dd; did you mean ~d?"),
        ("~d s3", "     ^", "the rule has no =>; for example ~d s3 => 429"),
        ("~dd s3", "^^^", "unknown operator ~dd; did you mean ~d?"),
        ("=> 429", "^^", "there is no filter before =>; write ~all => ... to act on every attempt"),
        ("~s =>", "     ^", "nothing follows =>; write what to do, for example => 429"),
        ("~s => 42", "      ^^", "42 is not a status; a status has three digits, 200 to 599"),
        ("~s => 600", "      ^^^", "600 is not a status; a status has three digits, 200 to 599"),
        (
            "~s => 100",
            "      ^^^",
            "100 only announces another answer, so it cannot be the answer; a status has three digits, 200 to 599",
        ),
        (
            "~s => slow",
            "      ^^^^",
            "`slow` is neither an action nor a limit; for example 429, s3-slowdown, delay 200ms, reset, times 2 per call",
        ),
        ("~s => delya 3s", "      ^^^^^", "`delya` is neither an action nor a limit; did you mean delay?"),
        (
            "~s => s3-slowdwn",
            "      ^^^^^^^^^^",
            "`s3-slowdwn` is neither an action nor a limit; did you mean s3-slowdown?",
        ),
        ("~s => 429 => 503", "          ^^", "there is a second => in this rule; quote it if it belongs to a pattern"),
        (
            "~s => 429 Slow",
            "          ^^^^",
            "`Slow` is neither an action nor a limit; for example 429, s3-slowdown, delay 200ms, reset, times 2 per call",
        ),
        ("~s => 429 \"Slow", "          ^", "this \" is never closed"),
        (
            "~s => 429 \"a\u{7}\"",
            "          ^^^^",
            "a reason phrase is printable ASCII: clients may refuse anything else",
        ),
        ("~u \"x => 429", "   ^", "this \" is never closed"),
        ("~s => 429 times", "          ^^^^^", "times needs a number after it; write times 2 per call"),
        ("~s => 429 times two", "                ^^^", "`two` is not a number of times; write times 2 per call"),
        ("~s => 429 times 0 per call", "                ^", "a rule that acts 0 times does nothing; leave it out"),
        (
            "~s => 429 times 2",
            "          ^^^^^^^",
            "times 2 does not say per what; per is one of call, process, operation, rule",
        ),
        (
            "~s => 429 times 2 per host",
            "                      ^^^^",
            "`host` is nothing to count by; per is one of call, process, operation, rule",
        ),
        (
            "~s => 429 times 2 per call x",
            "                           ^",
            "`x` is neither an action nor a limit; for example 429, s3-slowdown, delay 200ms, reset, times 2 per call",
        ),
        (
            "~s => 429 in request",
            "      ^^^^^^^^^^^^^^",
            "this filter matches only once a response has come; leave out `in request`",
        ),
        (
            "~q => 429 in response",
            "      ^^^^^^^^^^^^^^^",
            "this filter matches only before a response has come; leave out `in response`, or the ~q",
        ),
        ("~s => reset 429", "      ^^^^^^^^^", "an attempt that is broken off gets no answer; leave out one of them"),
        (
            "~s => pass 429",
            "      ^^^^^^^^",
            "`pass` leaves the attempt alone, so nothing else can be done to it; make two rules of it",
        ),
        (
            "~s => times 2 per call",
            "      ^^^^^^^^^^^^^^^^",
            "this rule does nothing; write what to do, for example 429, throttle, reset or pass",
        ),
        (
            "~s => limit 5/s",
            "      ^^^^^^^^^",
            "this limit does not say what becomes of what exceeds it; add an answer, for example throttle or 429",
        ),
        ("~s => limit fast 429", "            ^^^^", "`fast` is not a rate; for example 100/s, 30/m or 0.5/s"),
        (
            "~s => 429 chance 50",
            "                 ^^",
            "`50` is not a share; for example 0.05 or 5%; at most 1 or 100%",
        ),
        (
            "~s => body \"{{requestid}}\"",
            "           ^^^^^^^^^^^^^^^",
            "nothing is called {{requestid}}; did you mean {{request_id}}?",
        ),
        (
            "~s => set \"Content-Length: 3\"",
            "          ^^^^^^^^^^^^^^^^^^^",
            "`Content-Length` follows from the body, and cannot be set",
        ),
        ("~s & ~q => 429", "^^^^^^^", "this filter contradicts itself: no attempt can ever match it"),
        ("~e => 429", "^^", "an attempt that failed has no response whose status could be rewritten"),
    ] {
        assert_eq!(refusal(rule), format!("error: {message}\n  {}\n  {marks}", rule.replace('\u{7}', "?")), "{rule}");
    }
    assert_eq!(RuleErrors::EXIT_CODE, 64);
}

/// The text after the arrow is marked without the space before it.
#[test]
fn arrows_and_quotes() {
    let rules = set(&["~u \"a=>b\" => 429", "~u 'it\\'s => x' => 503 'why => not'", "~d s3=>429"]);
    let statuses: Vec<_> =
        rules.iter().filter_map(|entry| entry.rule.action.answer.as_ref().and_then(|answer| answer.status)).collect();
    assert_eq!(statuses, [429, 503, 429]);
}

#[test]
fn all_mistakes_at_once() {
    let errors = RuleSet::parse(&["~dd x => 1".into(), "~s => 429".into(), "~c => 429".into()], &[]).unwrap_err();
    assert_eq!(errors.0.len(), 2);
}

const FILE: &str = r#"
seed = 7
guard = { max_injections = 9, stop_when = { filter = "~e", rate = "3/m" } }

[[rule]]
name = "S3 lists are throttled twice"
when = "~svc s3 & ~op GetObject"
times = { count = 2, per = "call" }
then = { status = 429, reason = "Rate limit exceeded" }

[[rule]]
when = '''
    ~all'''
enabled = false
then.status = 0x1F7

[[rule]]
when = "~d a"
phase = "response"
chance = "5%"
every = 3
after = "1s"
for = "2m"
max_hits = 4
max_share = 1
continue = true
then = { preset = "s3-slowdown", headers = { set = { A = "b" }, remove = ["C"] }, body = "x", retry_after = 3 }

[[rule]]
when = "~d b"
then = { delay = { normal = { mean = "1s", deviation = "10ms" }, cap = "2s" }, abort = { truncate = 5 } }

[[rule]]
when = "~d c"
then = { limit = { rate = "5/s", per = "bucket", burst = 2 }, preset = "throttle" }

[[rule]]
when = "~d d"
then = "continue-then 503 body 'x'"

[[rule]]
when = "~d e"
then = { body = { merge = { a = 1 } } }

[[rule]]
when = "~d f"
then = { pass = true }
"#;

#[test]
fn a_file() {
    let rules = file(FILE).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(
        lines(&rules),
        [
            "~svc s3 & ~op GetObject => 429 \"Rate limit exceeded\" times 2 per call in response",
            "~all => 503 in response",
            "~d a => preset s3-slowdown remove C set \"A: b\" set \"Retry-After: 3\" body \"x\" after 1s for 2m chance 0.05 every 3 max-share 1 max-hits 4 continue in response",
            "~d b => delay 1s~10ms cap 2s truncate 5 in response",
            "~d c => limit 5/s per bucket burst 2 throttle in request",
            "~d d => continue-then 503 body \"x\" in request",
            "~d e => merge \"{\\\"a\\\":1}\" in response",
            "~d f => pass in request",
        ]
    );
    assert_eq!(&*rules.iter().next().unwrap().rule.name, "S3 lists are throttled twice");
    assert_eq!(rules.iter().filter(|entry| !entry.enabled).count(), 1);
    assert_eq!((rules.guard.seed, rules.guard.max_injections), (Some(7), Some(9)));
    assert_eq!(rules.guard.stop_when.as_ref().map(|stop| (stop.count, stop.per.as_secs())), Some((3, 60)));
}

/// The same in JSON.
#[test]
fn a_json_file() {
    let toml: toml::Value = toml::from_str(FILE).unwrap();
    let json = serde_json::to_string_pretty(&toml).unwrap();
    let (one, other) = (file(FILE).unwrap(), file(&json).unwrap_or_else(|errors| panic!("{errors}")));
    let sorted = |set: &RuleSet| {
        let mut lines = lines(set);
        lines.retain(|line| !line.contains("Retry-After"));
        lines
    };
    assert_eq!(sorted(&one), sorted(&other));
    let error = file("{\"rule\": [{\"when\": \"~dd x\", \"then\": \"429\"}]}").unwrap_err().to_string();
    assert!(error.starts_with("error: rules.toml:1:21: unknown operator ~dd"), "{error}");
    let error = file("{\"rule\": [,]}").unwrap_err().to_string();
    assert!(error.contains("not JSON"), "{error}");
}

/// What a running instance does with its set.
#[test]
fn sets_are_edited() {
    let typed = set(&["~d a => 429"]);
    let (both, name) = typed.with_added("~d b => 503 name 'b'").unwrap();
    assert_eq!((name.as_str(), both.len(), typed.len()), ("b", 2, 1));
    assert!(both.with_added("~d b => 503 name 'b'").unwrap_err().to_string().contains("another rule has this name"));
    assert!(both.with_added("~dd").is_err());
    assert!(both.without("nobody").is_none() && both.switched("nobody", false).is_none());
    assert!(!both.switched("b", false).unwrap().iter().nth(1).unwrap().enabled);
    let files = |text: &str| [(PathBuf::from("f.toml"), text.to_owned())];
    let three = both.with_files(&files("[[rule]]\nname='f'\nwhen='~d f'\nthen={status=500}")).unwrap();
    let names = |set: &RuleSet| set.iter().map(|entry| entry.rule.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&three), ["~d a => 429", "f", "b"]);
    let again = three.with_files(&files("[[rule]]\nname='g'\nwhen='~d g'\nthen={status=500}")).unwrap();
    assert_eq!(names(&again), ["~d a => 429", "g", "b"]);
    assert!(three.with_files(&files("[[rule]]\nname='b'\nwhen='~d g'\nthen={status=500}")).is_err());
    assert_eq!(names(&again.without("b").unwrap()), ["~d a => 429", "g"]);
}

#[test]
fn mistakes_in_a_file() {
    let errors = file(
        "[[rule]]\nname = \"one\"\nwhen = \"~svc s3 & ~dd x\"\nthen = { stauts = 429 }\n\n\
         [[rule]]\nname = \"one\"\nchance = 1.5\nthen = { delay = \"soon\" }\n\n\
         [[rule]]\nwhen = 3\ntimes = { count = 0, per = \"host\" }\nthen = { status = 100, reason = \"a\\tb\" }\nenabled = \"no\"\n\n\
         [other]\n",
    )
    .unwrap_err();
    let heads: Vec<String> =
        errors.0.iter().map(|error| error.to_string().lines().next().unwrap_or_default().to_owned()).collect();
    let expected = [
        "error: rules.toml:3:19: unknown operator ~dd; did you mean ~d?",
        "error: rules.toml:4:10: `then` has no key `stauts`; did you mean `status`?",
        "error: rules.toml:6:1: this rule has no `when`; write when = \"~all\" to act on every attempt",
        "error: rules.toml:7:8: another rule has this name",
        "error: rules.toml:8:10: `chance` must be a number from 0 to 1, or a string such as \"5%\", not a number",
        "error: rules.toml:9:18: `soon` is not a time; for example 200ms, 30s, 10m or 2h",
        "error: rules.toml:12:8: `when` must be a filter in quotes, not a whole number",
        "error: rules.toml:13:19: a rule that acts 0 times does nothing; leave it out",
        "error: rules.toml:13:28: `host` is nothing to count by; per is one of call, process, operation, rule",
        "error: rules.toml:14:19: 100 only announces another answer, so it cannot be the answer; a status has three digits, 200 to 599",
        "error: rules.toml:14:33: a reason phrase is printable ASCII: clients may refuse anything else",
        "error: rules.toml:15:11: `enabled` must be true or false, not a string",
        "error: rules.toml:17:2: a rule file has no key `other`; it may have: guard, rule, rule_header, seed",
    ];
    let mut sorted = heads.clone();
    sorted.sort_by_key(|head| expected.iter().position(|line| line == head));
    assert_eq!(sorted, expected, "{errors}");
    assert!(errors.to_string().contains("\n  when = \"~svc s3 & ~dd x\"\n                    ^^^\n"), "{errors}");
}

#[test]
fn files_that_are_no_rules() {
    let message = |content: &str| file(content).unwrap_err().to_string();
    assert!(message("[[rule]\nwhen = ").starts_with("error: rules.toml:1:"), "{}", message("[[rule]\nwhen = "));
    assert!(message("rule = 3").contains("`rule` is a list of tables"));
    assert!(message("[rule]\nwhen = 'a'").contains("begin each rule with [[rule]]"));
    assert!(message("rules = []").contains("did you mean `rule`?"));
    assert!(message("").contains("there is no rule in this file"));
    assert!(message("[[rule]]\nwhen='~s'\nthen=429").contains("for example then = { status = 429 }"));
    assert!(
        message("[[rule]]\nwhen='~s'\nwhen='~s'").contains("duplicate key"),
        "{}",
        message("[[rule]]\nwhen='~s'\nwhen='~s'")
    );
    // A place behind an escape cannot be told: the whole string is marked.
    let escaped = message("[[rule]]\nwhen=\"~u \\\"a\\\" ~dd x\"\nthen={status=429}");
    assert!(escaped.contains("\n       ^^^^^^^^^^^^^^^^"), "{escaped}");
}

#[test]
fn too_many() {
    let rules = vec!["~s => 429".to_owned(); MAX_RULES + 1];
    assert!(RuleSet::parse(&rules, &[]).is_err());
    assert!(RuleSet::parse(&rules[1..], &[]).is_ok());
}

proptest! {
    #[test]
    fn no_text_panics(text in "[~a-z0-9 =>\"'\\\\(&|!\u{e9}\n]{0,40}") {
        let _ = RuleSet::parse(&[text], &[]).map_err(|errors| errors.to_string());
    }

    #[test]
    fn no_file_panics(
        content in "(\\[\\[rule\\]\\]|when|then|times|name|=|\\{|\\}|\"|'|~s|~dd|status|count|per|call|429|\\.|,|\n| |\u{e9}){0,24}",
    ) {
        let _ = file(&content).map_err(|errors| errors.to_string());
    }

    #[test]
    fn every_name_is_a_header(name in any::<String>()) {
        prop_assert!(http::HeaderValue::from_str(&header_value(&name)).is_ok());
    }

    /// The canonical line of a rule says what the rule says.
    #[test]
    fn lines_round_trip(
        filter in prop::sample::select(vec!["~all", "~d s3 & !~retry", "~u \"a b\"", "~c 500..599"]),
        clauses in prop::sample::subsequence(
            vec![
                "503 \"Slow \\\"down\\\"\"", "set \"A: {{attempt}}\"", "remove B", "body \"a\\\\b \\\"c\\\"\"",
                "delay 1s250ms..2s", "truncate 7", "limit 2.5/m per prefix burst 3", "times 2 per operation", "every 4",
                "chance 12.5%", "after 90s", "for 1h1s", "max-hits 3", "max-share 0.25", "continue", "retry-after 9",
            ],
            0..16,
        ),
    ) {
        let text = format!("{filter} => {}", clauses.join(" "));
        if let Ok(first) = RuleSet::parse(&[text], &[]) {
            let line = lines(&first);
            let second = RuleSet::parse(&line, &[]).unwrap_or_else(|errors| panic!("{errors}"));
            let (one, other) = (&first.iter().next().unwrap().rule, &second.iter().next().unwrap().rule);
            prop_assert_eq!(&one.action, &other.action);
            prop_assert_eq!(&one.limits, &other.limits);
            prop_assert_eq!((one.phase, one.go_on), (other.phase, other.go_on));
            prop_assert_eq!(&one.text, &other.text);
        }
    }
}

/// Every example of the manual is a rule.
#[test]
fn the_manuals_examples() {
    let manual = include_str!("../../../docs/rules.md");
    let blocks = |kind: &str| {
        let open = format!("```{kind}\n");
        let parts = manual.split(open.as_str()).skip(1);
        parts.map(|part| part.split("```").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let rules = blocks("rule");
    assert!(rules.len() > 8);
    for rule in rules {
        set(&[rule.trim()]);
    }
    for content in blocks("toml") {
        assert!(file(&content).is_ok_and(|set| set.len() == 3), "{content}");
    }
}
