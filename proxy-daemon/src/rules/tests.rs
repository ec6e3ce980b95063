#![allow(clippy::unwrap_used)]
use std::{collections::HashMap, path::PathBuf, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    flow::{CallId, Operation, filter::tests::attempt},
    process::{Facts, Process, ProcessKey},
};

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

fn nth(call: u64, number: u32) -> Attempt {
    let mut it = attempt();
    it.link.call = CallId(call);
    it.link.number = number;
    it
}

fn of_process(pid: u32) -> Attempt {
    let mut it = attempt();
    it.process = Arc::new(Process::new(ProcessKey { pid, start_ticks: 1 }, 1, 0, Facts::default()));
    it
}

#[test]
fn first_match_decides() {
    let rules = set(&["~d nowhere => 500", "~d s3 & ~attempt ..2 => 429 \"Slow \\\"down\\\"\"", "~all => 503"]);
    let state = RuleState::new(&rules);
    let decision = rules.decide(&nth(1, 1), &state).unwrap();
    assert_eq!((decision.index, decision.status, decision.reason.as_deref()), (1, 429, Some("Slow \"down\"")));
    assert_eq!(&*decision.rule, "~d s3 & ~attempt ..2 => 429 \"Slow \\\"down\\\"\"");
    let decision = rules.decide(&nth(1, 3), &state).unwrap();
    assert_eq!((decision.status, decision.reason), (503, None));
    let hits: Vec<u64> = rules.rules(&state).map(|(_, hits)| hits).collect();
    assert_eq!(hits, [0, 1, 1]);
    assert_eq!((rules.len(), rules.is_empty()), (3, false));
    assert!(rules.to_string().starts_with("~d nowhere => 500\n~d s3 & "));
}

#[test]
fn nothing_is_rewritten_without_a_response() {
    let rules = set(&["~all => 503"]);
    let state = RuleState::new(&rules);
    let mut waiting = attempt();
    waiting.response = None;
    assert_eq!(rules.decide(&waiting, &state), None);
    assert_eq!(RuleSet::default().decide(&attempt(), &RuleState::new(&RuleSet::default())), None);
}

#[test]
fn times_per_scope() {
    let acts = |rule: &str, attempts: &[Attempt]| {
        let rules = set(&[rule]);
        let state = RuleState::new(&rules);
        attempts.iter().map(|attempt| rules.decide(attempt, &state).is_some()).collect::<Vec<_>>()
    };
    // A call's k-th matching attempt, wherever other calls come between.
    let calls = [nth(1, 1), nth(2, 1), nth(1, 2), nth(1, 3), nth(2, 2), nth(2, 3)];
    assert_eq!(acts("~s => 429 times 2 per call", &calls), [true, true, true, false, true, false]);
    // Only attempts that match are counted.
    assert_eq!(acts("~attempt 2.. => 429 times 1 per call", &calls), [false, false, true, false, true, false]);
    assert_eq!(acts("~s => 429 times 2 per rule", &calls), [true, true, false, false, false, false]);
    let processes = [of_process(1), of_process(2), of_process(1), of_process(2)];
    assert_eq!(acts("~s => 429 times 1 per process", &processes), [true, true, false, false]);
    let mut put = attempt();
    put.operation.name = Some("PutObject".into());
    let mut plain = attempt();
    plain.operation = Operation::default();
    let mut post = plain.clone();
    post.request.method = "POST".into();
    let operations = [attempt(), put.clone(), plain.clone(), post, attempt(), put, plain];
    assert_eq!(acts("~s => 429 times 1 per operation", &operations), [true, true, true, true, false, false, false]);
}

#[test]
fn a_spent_rule_leaves_the_attempt_to_the_next() {
    let rules = set(&["~s => 429 times 1 per call", "~s => 503 times 1 per call"]);
    let state = RuleState::new(&rules);
    let told: Vec<_> = (1..4).map(|number| rules.decide(&nth(1, number), &state).map(|d| d.status)).collect();
    assert_eq!(told, [Some(429), Some(503), None]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let rules = set(&["~s => 429 times 1 per call"]);
    let state = RuleState::new(&rules);
    for call in 0..20_000 {
        assert!(rules.decide(&nth(call, 1), &state).is_some());
    }
    assert_eq!(state.forgotten(), 20_000 - 16_384);
    // The latest are remembered.
    assert!(rules.decide(&nth(19_999, 2), &state).is_none());
}

#[test]
fn shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<RuleSet>();
    shared::<RuleState>();
    let rules = set(&["~s => 429 times 100 per rule"]);
    let state = RuleState::new(&rules);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| drop(rules.decide(&attempt(), &state))));
        }
    });
    assert_eq!(state.hits(0), 100);
}

#[test]
fn another_sets_state_is_harmless() {
    let rules = set(&["~d x => 429", "~s => 429 times 1 per call"]);
    let state = RuleState::new(&set(&[]));
    assert_eq!(rules.decide(&attempt(), &state), None);
}

#[test]
fn names_fit_a_header() {
    let long = format!("~u {} => 503", "x".repeat(200));
    let rules = set(&["~d s3   =>  429", "~d s3 => 429", &long, "~u \"caf\u{e9}\" => 503"]);
    let names: Vec<&str> = rules.iter().map(|rule| &**rule.name()).collect();
    assert_eq!(names[0], "~d s3 => 429");
    assert_eq!(names[1], "~d s3 => 429 #2");
    assert!(names[2].ends_with("xx...") && names[2].len() == 72);
    assert_eq!(names[3], "~u \"caf%C3%A9\" => 503");
    for name in names {
        assert!(http::HeaderValue::from_str(name).is_ok());
    }
}

#[test]
fn mistakes_in_a_line() {
    for (rule, marks, message) in [
        ("~dd s3 => 429", "^^^", "unknown operator ~dd; did you mean ~d?"),
        ("~d s3", "     ^", "the rule has no =>; for example ~d s3 => 429"),
        ("~dd s3", "^^^", "unknown operator ~dd; did you mean ~d?"),
        ("=> 429", "^^", "there is no filter before =>; write ~all => ... to act on every attempt"),
        ("~s =>", "     ^", "nothing follows =>; write the status to answer with, for example => 429"),
        ("~s => 42", "      ^^", "42 is not a status; a status has three digits, 200 to 599"),
        ("~s => 600", "      ^^^", "600 is not a status; a status has three digits, 200 to 599"),
        (
            "~s => 100",
            "      ^^^",
            "100 only announces another answer, so it cannot be the answer; a status has three digits, 200 to 599",
        ),
        ("~s => slow", "      ^^^^", "`slow` is not a status; for example => 429"),
        (
            "~s => delay 3s",
            "      ^^^^^",
            "the action `delay` is not there in this version; a rule answers with a status, such as 429",
        ),
        ("~s => 429 => 503", "          ^^", "there is a second => in this rule; quote it if it belongs to a pattern"),
        (
            "~s => 429 Slow",
            "          ^^^^",
            "`Slow` is not understood here; a reason is written in quotes: => 429 \"Slow down\"",
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
            "`x` is not understood here; nothing follows `times N per ...`",
        ),
        (
            "~d s3 & ~q => 429",
            "        ^^",
            "~q matches only before a response has come, and a status is rewritten when it has; write ~s, or leave it out",
        ),
        ("~s & ~q => 429", "^^^^^^^", "this filter contradicts itself: no attempt can ever match it"),
        ("~e => 429", "^^", "an attempt that failed has no response whose status could be rewritten"),
    ] {
        assert_eq!(refusal(rule), format!("error: {message}\n  {}\n  {marks}", rule.replace('\u{7}', "?")), "{rule}");
    }
    assert_eq!(RuleErrors::EXIT_CODE, 64);
}

#[test]
fn arrows_and_quotes() {
    let rules = set(&["~u \"a=>b\" => 429", "~u 'it\\'s => x' => 503 'why => not'", "~d s3=>429"]);
    assert_eq!(rules.iter().map(Rule::status).collect::<Vec<_>>(), [429, 503, 429]);
}

#[test]
fn all_mistakes_at_once() {
    let errors = RuleSet::parse(&["~dd x => 1".into(), "~s => 429".into(), "~c => 429".into()], &[]).unwrap_err();
    assert_eq!(errors.0.len(), 2);
}

#[test]
fn a_file() {
    let rules = file(
        r#"
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
        "#,
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(
        rules.to_string(),
        "~svc s3 & ~op GetObject => 429 \"Rate limit exceeded\" times 2 per call\n~all => 503  (disabled)\n"
    );
    assert_eq!(&**rules.iter().next().unwrap().name(), "S3 lists are throttled twice");
    let state = RuleState::new(&rules);
    let told: Vec<_> = (1..4).map(|number| rules.decide(&nth(1, number), &state).map(|d| d.status)).collect();
    assert_eq!(told, [Some(429), Some(429), None]);
}

#[test]
fn mistakes_in_a_file() {
    let errors = file(
        "[[rule]]\nname = \"one\"\nwhen = \"~svc s3 & ~dd x\"\nthen = { stauts = 429 }\n\n\
         [[rule]]\nname = \"one\"\nchance = 0.5\nthen = { delay = \"1s\" }\n\n\
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
        "error: rules.toml:8:1: the key `chance` of a rule is not there in this version",
        "error: rules.toml:9:10: the action `delay` is not there in this version; a rule answers with a status, such as 429",
        "error: rules.toml:12:8: `when` must be a filter in quotes, not an integer",
        "error: rules.toml:13:19: a rule that acts 0 times does nothing; leave it out",
        "error: rules.toml:13:28: `host` is nothing to count by; per is one of call, process, operation, rule",
        "error: rules.toml:14:19: 100 only announces another answer, so it cannot be the answer; a status has three digits, 200 to 599",
        "error: rules.toml:14:33: a reason phrase is printable ASCII: clients may refuse anything else",
        "error: rules.toml:15:11: `enabled` must be true or false, not a string",
        "error: rules.toml:17:2: a rule file has no key `other`; it may have: rule",
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

    /// Whatever the interleaving of calls, each call sees the same.
    #[test]
    fn order_of_calls_does_not_matter(mut order in prop::collection::vec(0_u64..5, 0..40), limit in 1_u32..4) {
        let rules = set(&[&format!("~attempt 2.. => 429 times {limit} per call")]);
        let run = |order: &[u64]| {
            let state = RuleState::new(&rules);
            let mut seen: HashMap<u64, Vec<bool>> = HashMap::new();
            for call in order {
                let told = seen.entry(*call).or_default();
                let number = u32::try_from(told.len()).unwrap() + 1;
                told.push(rules.decide(&nth(*call, number), &state).is_some());
            }
            seen
        };
        let interleaved = run(&order);
        order.sort_unstable();
        prop_assert_eq!(&interleaved, &run(&order));
        for told in interleaved.values() {
            for (at, told) in told.iter().enumerate() {
                prop_assert_eq!(*told, at >= 1 && at <= limit as usize);
            }
        }
    }

    #[test]
    fn every_name_is_a_header(name in any::<String>()) {
        prop_assert!(http::HeaderValue::from_str(&header_value(&name)).is_ok());
    }
}
