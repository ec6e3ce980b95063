#![allow(clippy::unwrap_used)]
use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{
    operator::{Named, Takes},
    view::{Form, Text},
    *,
};
use crate::{
    flow::{
        CallId, Complaint, ConnectionId, Content, Evidence, Failure, Headers, Injected, Link, Moment, Operation,
        Protocol, Request, Response,
    },
    process::{Facts, Process, ProcessKey},
};

/// An attempt to change to taste: the second of an S3 call, answered 200.
pub(crate) fn attempt() -> Attempt {
    let facts = Facts {
        comm: "python3".into(),
        command: "python3 app.py --fast".into(),
        exe: Some("/usr/bin/python3.12".into()),
        cgroup: Some("/user.slice".into()),
        container_name: None,
    };
    Attempt {
        connection: ConnectionId(1),
        process: Arc::new(Process::new(ProcessKey { pid: 42, start_ticks: 7 }, 1, 1000, facts)),
        client: ([127, 0, 0, 1], 50_000).into(),
        origin: ([203, 0, 113, 1], 443).into(),
        protocol: Protocol::Http11,
        request: Request {
            method: "GET".into(),
            authority: "s3.eu-west-1.amazonaws.com".into(),
            target: "/bucket/key?x-id=GetObject".into(),
            headers: [("Host", "s3.eu-west-1.amazonaws.com"), ("User-Agent", "Boto3/1.44")].into_iter().collect(),
        },
        operation: Operation { service: Some("s3".into()), name: Some("GetObject".into()) },
        link: Link { call: CallId(1), number: 2, max: Some(5), evidence: Evidence::Exact, waited: None },
        started: Moment(1),
        response: Some(Response {
            status: 200,
            reason: "OK".into(),
            headers: [("Content-Type", "application/xml"), ("x-amz-request-id", "A1B2")].into_iter().collect(),
        }),
        injected: None,
        failure: None,
        ended: None,
        request_content: Content::Unread,
        response_content: Content::Unread,
        call_key: 0,
        print: None,
        body_digest: None,
        held: Duration::ZERO,
        hand: crate::flow::Hand::default(),
        complaint: Complaint::default(),
        sent: 0,
        received: 0,
        trailers: None,
        captured: None,
    }
}

fn matches(filter: &str, attempt: &Attempt) -> bool {
    Filter::parse(filter).unwrap_or_else(|error| panic!("{}", error.render(filter))).matches(attempt)
}

fn waiting_told(it: &Attempt) -> Attempt {
    let mut told = it.clone();
    told.response = None;
    told.injected = Some(Injected { status: Some(429), abort: None, rule: "r".into() });
    told
}

#[test]
fn every_operator() {
    let it = attempt();
    let mut mixed = it.clone();
    mixed.request.authority = "Example.ORG:8443".into();
    mixed.request.method = "POST".into();
    for yes in [
        "~all",
        "~d s3",
        "~d S3.EU-WEST-1",
        "~d ^s3",
        "~d com$",
        "~m get",
        "~m G|P",
        "~u /bucket/",
        "~u ^https://s3",
        "/bucket/key",
        "bucket.*x-id",
        "~c 200",
        "~c 200..299",
        "~c ..200",
        "~c 200..",
        "~h user-agent:.*boto3",
        "~h content-type",
        "~h ^x-amz-request-id:",
        "~hq ^host",
        "~hs \"application/xml$\"",
        "~s",
        "~svc s3",
        "~svc S3",
        "~svc s?",
        "~op GetObject",
        "~op getobject",
        "~op s3.Get*",
        "~op *.GetObject",
        "~attempt 2",
        "~attempt ..2",
        "~attempt 2..",
        "~attempt 1..=5",
        "~retry",
        "~comm python",
        "~pid 42",
        "~pid 40..50",
        "~exe /bin/python",
        "~cmd app.py",
        "~genuine",
        "!~q",
        "!~e",
        "!~injected",
    ] {
        assert!(matches(yes, &it), "{yes}");
        assert!(!matches(&format!("!({yes})"), &it), "{yes}");
    }
    for no in [
        "~d s4",
        "~d ^3",
        "~m POST",
        "~c 201..299",
        "~hs user-agent",
        "~hq content-type",
        "~svc s",
        "~op Object",
        "~op dynamodb.GetObject",
        "~attempt 1",
        "~attempt 3..",
        "~pid 4",
        "~comm ^app",
    ] {
        assert!(!matches(no, &it), "{no}");
    }
    let mut more = it.clone();
    more.request_content = Content::Whole("a needle\nin hay".into());
    more.response_content = Content::Whole("other\nneedle".into());
    more.ended = Some(Moment(250_000_001));
    for yes in [
        "~b needle",
        "~bq ^a.*hay$",
        "!~bq ^in",
        "~bs needle$",
        "~http",
        "~src ^127.0.0.1:50000$",
        "~dst 203.0.113.1:443",
        "~t xml",
        "~ts xml",
        "!~tq .",
        "~proto 1.1",
        "!~websocket & !~a",
        "~uid 1000",
        "~uid 0..1000",
        "~cgroup user",
        "!~unit .",
        "!~container .",
        "~took >200ms",
        "~took <=250ms",
        "~took 100ms..1s",
        "!~took >1s",
        "!~took <250ms",
    ] {
        assert!(matches(yes, &more), "{yes}");
    }
    // Nobody has read the body, and the answer depends on it, or does not.
    let open = |text: &str| Filter::parse(text).unwrap().without_body(&View::new(&it));
    assert_eq!(open("~bs x"), None);
    assert_eq!(open("~bs x & ~d nowhere"), Some(false));
    assert_eq!(open("~bs x | ~d s3"), Some(true));
    assert_eq!(open("!~b x"), None);
    // The response has come: the request's body is gone.
    assert_eq!(open("~bq x"), Some(false));
    let mut asking = it.clone();
    asking.response = None;
    let early = |text: &str| {
        let filter = Filter::parse(text).unwrap();
        (filter.without_body(&View::new(&asking)), filter.wants_request_body(&View::new(&asking)))
    };
    assert_eq!(early("~bq x"), (None, true));
    assert_eq!(early("~bs x"), (Some(false), false));
    assert_eq!(early("~bq x & ~c 500"), (Some(false), true));
    assert_eq!(early("~bq x & ~c 500 & ~d nowhere"), (Some(false), false));
    assert_eq!(early("~bq x | ~d s3"), (Some(true), false));
    let needs = |text: &str| Filter::parse(text).unwrap().needs();
    assert_eq!(needs("~d x"), Needs::default());
    assert_eq!(needs("!~b x"), Needs { request_body: true, response_body: true });
    assert_eq!(needs("~bs x & ~c 500"), Needs { request_body: false, response_body: true });
    let mut told = waiting_told(&it);
    assert!(matches("~s & ~c 429 & !~q", &told));
    told.injected = None;
    assert!(matches("~q & !~s", &told));
    assert!(matches("~d ^example.org$ & ~u https://example.org:8443/", &mixed));

    let mut waiting = it.clone();
    waiting.response = None;
    assert!(matches("~q & !~s & !~c 100.. & !~hs . & !~genuine", &waiting));
    waiting.failure = Some(Failure::Reset);
    assert!(matches("~e & ~genuine & ~q", &waiting));

    let mut told = it;
    told.injected = Some(Injected { status: Some(429), abort: None, rule: "r".into() });
    // What the client saw is what counts.
    assert!(matches("~c 429 & ~injected & !~genuine & !~c 200", &told));
    told.operation = Operation::default();
    assert!(matches("!~op * & !~svc *", &told));
}

#[test]
fn precedence_is_that_of_mitmproxy() {
    for (text, canonical) in [
        ("~s", "~s"),
        ("foo", "~u foo"),
        ("a|b", "~u a|b"),
        ("a&b", "~u a&b"),
        ("a | b & c", "~u a | (~u b & ~u c)"),
        ("a & b | c", "(~u a & ~u b) | ~u c"),
        ("!a & b", "!~u a & ~u b"),
        ("!!a", "!!~u a"),
        ("!(a | b)", "!(~u a | ~u b)"),
        // Side by side binds last.
        ("a | b c", "(~u a | ~u b) & ~u c"),
        ("a b | c", "~u a & (~u b | ~u c)"),
        ("~d s3 ~m PUT", "~d s3 & ~m PUT"),
        ("~s~q", "~s & ~q"),
        ("(~s)&(~q)", "~s & ~q"),
        ("(a b)", "~u a & ~u b"),
        ("a &b", "~u a & ~u b"),
        ("((a))", "~u a"),
        ("  ~d  'two words'  ", "~d \"two words\""),
        (r#""it's""#, r#"~u "it's""#),
        (r#""say \"x\" \\d""#, r#"~u "say \"x\" \\d""#),
        (r#"~u "\d+""#, r"~u \d+"),
        ("~c 500..599", "~c 500..599"),
        ("~c 429..429", "~c 429"),
        ("~attempt '2'", "~attempt 2"),
        ("~u and", "~u and"),
        ("\"and\"", "~u and"),
        ("~d \"a&\"", "~d \"a&\""),
        ("~d '!a'", "~d \"!a\""),
    ] {
        let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{}", error.render(text)));
        assert_eq!(filter.to_string(), canonical, "{text}");
        assert_eq!(Filter::parse(canonical).unwrap().expr(), filter.expr(), "{text}");
    }
}

#[test]
fn errors_point_at_their_place() {
    let cases: &[(&str, &str, &str)] = &[
        ("~dd s3", "^^^", "unknown operator ~dd; did you mean ~d?"),
        ("~d s3 & ~bx x", "        ^^^", "unknown operator ~bx; did you mean ~b?"),
        ("~took", "^^^^^", "~took needs a time after it; for example ~took >200ms"),
        ("~d", "^^", "~d needs a regular expression after it; for example ~d s3.eu-west-1.amazonaws.com"),
        ("~d & ~s", "^^", "~d needs a regular expression after it; quote a pattern that begins with &"),
        ("~c", "^^", "~c needs a number or a range after it; for example ~c 429"),
        ("~c 5xx", "   ^^^", "`5xx` is not a number or a range; did you mean 500..599?"),
        ("~c 500-599", "   ^^^^^^^", "`500-599` is not a number or a range; did you mean 500..599?"),
        ("~c 42", "   ^^", "`42` is not a number or a range; a status has three digits: 429, 500..599 or 500.."),
        ("~c 599..500", "   ^^^^^^^^", "the range 599..500 is empty; did you mean 500..599?"),
        ("~c ..", "   ^^", "the range has no end on either side; a status has three digits: 429, 500..599 or 500.."),
        (
            "~attempt 0",
            "         ^",
            "`0` is not a number or a range; attempts are numbered from 1: 2, ..2, 2.. or 2..5",
        ),
        (
            "~attempt +1",
            "         ^^",
            "`+1` is not a number or a range; attempts are numbered from 1: 2, ..2, 2.. or 2..5",
        ),
        (
            "~d a(b",
            "    ^",
            "( cannot stand inside a pattern without quotes; quote the whole pattern, or put a space before it",
        ),
        ("~u \"a(b\"", "     ^", "not a regular expression: unclosed group"),
        ("~d *.com", "   ^", "not a regular expression: repetition operator missing expression; write .* for anything"),
        ("(~s", "^", "this ( is never closed"),
        ("~s)", "  ^", "this ) closes nothing"),
        ("~s & )", "   ^", "& needs something after it"),
        ("~s &", "   ^", "& needs something after it"),
        ("!", "^", "! needs something after it"),
        ("& ~s", "^", "& needs something before it"),
        ("~s && ~q", "    ^", "&& is not an operator; write a single &"),
        (
            "~s and ~q",
            "   ^^^",
            "`and` is not an operator; write &, or \"and\" in quotes if it is looked for in the URL",
        ),
        (
            "a| b",
            " ^",
            "this | is read as part of the pattern before it; put a space before the |, or quote the pattern",
        ),
        ("~d \"s3", "   ^", "this \" is never closed"),
        ("~d ''", "   ^^", "an empty pattern matches everything; write ~all if that is meant"),
        ("", "^", "the filter is empty; write ~all to match every attempt"),
        ("()", "^^", "there is nothing between these parentheses"),
        ("~", "^", "a ~ begins an operator such as ~d, but none follows; quote a pattern that contains ~"),
        (
            "~op A|B",
            "    ^^^",
            "this takes a name in which * stands for anything, not a regular expression; for example s3.List*; several \
             are joined outside: (~op A | ~op B)",
        ),
        (
            "~op Put.*",
            "    ^^^^^",
            "this takes SERVICE.OPERATION, and no service is spelled so; write Put* for operations that begin with Put, \
             or ~svc put for a service",
        ),
    ];
    for (text, marks, message) in cases {
        let error = Filter::parse(text).expect_err(text);
        assert_eq!(error.to_string(), *message, "{text}");
        assert_eq!(excerpt(text, error.span.clone()).marks, *marks, "{text}");
    }
    assert_eq!(
        Filter::parse("~dd s3").unwrap_err().render("~dd s3 => 429"),
        "error: unknown operator ~dd; did you mean ~d?\n  ~dd s3 => 429\n  ^^^\n"
    );
}

#[test]
fn bounded() {
    let vast = r#"~s & ~u "(\w{99}){99}""#;
    let error = Filter::parse(vast).unwrap_err();
    assert_eq!(excerpt(vast, error.span.clone()).marks, "     ^^^^^^^^^^^^^^^^^");
    let deep = |depth: usize| format!("{}~s{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&deep(MAX_DEPTH)).is_ok());
    assert!(Filter::parse(&deep(MAX_DEPTH + 1)).is_err());
    assert!(Filter::parse(&"!".repeat(1000)).is_err());
    assert!(Filter::parse(&"(".repeat(4000)).is_err());
    assert!(Filter::parse(&format!("~d {}", "a".repeat(MAX_LENGTH))).is_err());
    // Precedence nests as parentheses do: what is printed is read again.
    for levels in 1..40 {
        let text = format!("{}x{}", "a b | c & (".repeat(levels), ")".repeat(levels));
        if let Ok(filter) = Filter::parse(&text) {
            assert_eq!(Filter::parse(&filter.to_string()).as_ref().map(Filter::expr), Ok(filter.expr()));
        }
    }
    let wide = vec!["~s"; MAX_LENGTH / 5].join(" | ");
    assert!(Filter::parse(&wide).unwrap().matches(&attempt()));
}

#[test]
fn knows_its_stage() {
    for (text, requested, answered) in [
        ("~d s3", true, true),
        ("~s", false, true),
        ("~q", true, false),
        ("!~s", true, false),
        ("!~q", false, true),
        ("~d s3 & ~s & ~attempt ..2", false, true),
        ("~s | ~d s3", true, true),
        ("~c 500..599", false, true),
        ("!~c 500..599", true, true),
        ("~hs x", false, true),
        ("~h x", true, true),
        ("~q & ~s", false, false),
        ("~e", false, false),
        ("~injected", false, false),
        ("~genuine", false, true),
        ("~bs x", false, true),
        ("~ts x", false, true),
        ("~a", false, true),
        ("~b x", true, true),
        ("~took >1s", false, false),
        ("!~took >1s", true, true),
        ("!~all", false, false),
        ("~all & ~q", true, false),
    ] {
        let filter = Filter::parse(text).unwrap();
        assert_eq!(filter.can_match(Stage::Requested), requested, "{text}");
        assert_eq!(filter.can_match(Stage::Answered), answered, "{text}");
        assert_eq!(filter.needs_response(), !requested, "{text}");
    }
}

/// The meaning of a filter, written down as plainly as can be.
fn naive(expr: &Expr, attempt: &Attempt) -> bool {
    naive_of(expr, attempt) == Some(true)
}

/// `None` where it is a matter of a body that could not be read.
fn naive_of(expr: &Expr, attempt: &Attempt) -> Option<bool> {
    let all = |parts: &[Expr], decides: bool| {
        let parts: Vec<_> = parts.iter().map(|part| naive_of(part, attempt)).collect();
        let open = parts.contains(&None);
        if parts.contains(&Some(decides)) { Some(decides) } else { (!open).then_some(!decides) }
    };
    match &expr.kind {
        Kind::And(parts) => all(parts, false),
        Kind::Or(parts) => all(parts, true),
        Kind::Not(part) => naive_of(part, attempt).map(|found| !found),
        Kind::Leaf(leaf) => {
            let found = naive_leaf(leaf, attempt);
            let beyond = |text: &Text| match text {
                Text::RequestBody => attempt.request_content == Content::Beyond,
                Text::ResponseBody => attempt.response_content == Content::Beyond,
                _ => false,
            };
            let unknown = matches!(&leaf.operator.takes, Takes::Regex(texts) if texts.iter().any(beyond));
            (found || !unknown).then_some(found)
        }
    }
}

fn naive_leaf(leaf: &Leaf, attempt: &Attempt) -> bool {
    match (&leaf.operator.takes, &leaf.argument) {
        (Takes::Nothing(fact), Argument::None) => fact(attempt),
        (Takes::Number { of, .. }, Argument::Numbers(numbers)) => of(attempt).is_some_and(|n| numbers.contains(n)),
        (Takes::Regex(texts), Argument::Text(pattern)) => texts.iter().any(|text| {
            let head = |headers: &Headers| {
                let lines: Vec<String> = headers
                    .iter()
                    .map(|(name, value)| {
                        format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                    })
                    .collect();
                lines.join("\n")
            };
            let facts = attempt.process.facts();
            let form = text.form();
            let text = match text {
                Text::Host => attempt.request.host().to_owned(),
                Text::Method => attempt.request.method.to_string(),
                Text::Url => attempt.request.url(),
                Text::RequestHead => head(&attempt.request.headers),
                Text::ResponseHead => match &attempt.response {
                    Some(response) => head(&response.headers),
                    None => return false,
                },
                Text::Comm => facts.comm.clone(),
                Text::Command => facts.command.clone(),
                Text::Exe => facts.exe.clone().unwrap_or_default(),
                Text::Cgroup => match &facts.cgroup {
                    Some(path) => path.clone(),
                    None => return false,
                },
                Text::Unit => match facts.cgroup.as_deref().and_then(crate::process::unit) {
                    Some(unit) => unit.to_owned(),
                    None => return false,
                },
                Text::Container => match facts.cgroup.as_deref().and_then(crate::process::container) {
                    Some(id) => id.to_owned(),
                    None => return false,
                },
                Text::ContainerName => match &facts.container_name {
                    Some(name) => name.clone(),
                    None => return false,
                },
                Text::Source => attempt.client.to_string(),
                Text::Destination => attempt.origin.to_string(),
                Text::Protocol => match attempt.protocol {
                    Protocol::Http10 => "http/1.0".to_owned(),
                    Protocol::Http11 => "http/1.1".to_owned(),
                    Protocol::Http2 => "h2".to_owned(),
                },
                Text::RequestType => match attempt.request.headers.text("content-type") {
                    Some(kind) => kind.to_owned(),
                    None => return false,
                },
                Text::ResponseType => {
                    match attempt.response.as_ref().and_then(|response| response.headers.text("content-type")) {
                        Some(kind) => kind.to_owned(),
                        None => return false,
                    }
                }
                Text::RequestBody => match &attempt.request_content {
                    Content::Whole(body) => String::from_utf8_lossy(body).into_owned(),
                    _ => return false,
                },
                Text::ResponseBody => match (&attempt.response, &attempt.response_content) {
                    (Some(_), Content::Whole(body)) => String::from_utf8_lossy(body).into_owned(),
                    _ => return false,
                },
            };
            regex::RegexBuilder::new(pattern)
                .case_insensitive(true)
                .multi_line(form == Form::Lines)
                .dot_matches_new_line(form == Form::Body)
                .build()
                .unwrap()
                .is_match(&text)
        }),
        (Takes::Time(of), Argument::Times(times)) => of(attempt).is_some_and(|time| times.contains(time)),
        (Takes::Glob(named), Argument::Text(pattern)) => {
            let glob = |pattern: &str, text: &Option<Arc<str>>| {
                let regex = regex::escape(pattern).replace(r"\*", ".*").replace(r"\?", ".");
                text.as_ref().is_some_and(|text| regex::Regex::new(&format!("(?i)^{regex}$")).unwrap().is_match(text))
            };
            let operation = &attempt.operation;
            match (named, pattern.split_once('.')) {
                (Named::Service, _) => glob(pattern, &operation.service),
                (Named::Operation, None) => glob(pattern, &operation.name),
                (Named::Operation, Some((service, name))) => {
                    glob(service, &operation.service) && glob(name, &operation.name)
                }
            }
        }
        other => panic!("{other:?}"),
    }
}

fn any_leaf() -> impl Strategy<Value = Leaf> {
    let text = prop_oneof![
        "[a-z3.*?&|!~\"'() é\\\\-]{1,8}",
        Just("s3".to_owned()),
        Just("GetObject".to_owned()),
        Just("put.*".to_owned()),
        Just("^content-type: .*ml$".to_owned()),
        Just("/bucket/|x".to_owned()),
    ];
    let numbers = (prop::option::of(100_u32..700), prop::option::of(0_u32..50), any::<bool>());
    ((0..OPERATORS.len()).prop_map(|at| &OPERATORS[at]), text, numbers).prop_filter_map(
        "not a pattern",
        |(operator, text, (from, more, one))| {
            let argument = match operator.takes {
                Takes::Nothing(_) => Argument::None,
                Takes::Number { .. } => {
                    let to = more.map(|more| from.unwrap_or(1) + 100 + more);
                    let to = if one { from.or(to) } else { to };
                    (from.is_some() || to.is_some()).then_some(())?;
                    Argument::Numbers(Numbers { from, to })
                }
                Takes::Time(_) => {
                    let from = from.map(|from| Duration::from_millis(u64::from(from)));
                    let to = more.map(|more| from.unwrap_or_default() + Duration::from_micros(u64::from(more)));
                    let both = from.is_some() && to.is_some();
                    (from.is_some() || to.is_some()).then_some(())?;
                    let end = |time: Option<Duration>| time.map(|time| (time, one || both));
                    Argument::Times(Times { from: end(from), to: end(to) })
                }
                Takes::Regex(_) | Takes::Glob(_) => Argument::Text(text),
            };
            let leaf = Leaf { operator, argument };
            // What the parser refuses is no filter.
            Filter::parse(&leaf.to_string()).is_ok().then_some(leaf)
        },
    )
}

fn any_expr() -> impl Strategy<Value = Expr> {
    let expr = |kind| Expr { kind, span: 0..0 };
    let leaf = any_leaf().prop_map(move |leaf| expr(Kind::Leaf(leaf)));
    leaf.prop_recursive(4, 16, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(move |parts| expr(Kind::And(parts))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(move |parts| expr(Kind::Or(parts))),
            inner.prop_map(move |part| expr(Kind::Not(Box::new(part)))),
        ]
    })
}

fn any_attempt() -> impl Strategy<Value = Attempt> {
    let text = |options: &'static [&'static str]| prop::sample::select(options).prop_map(Arc::<str>::from);
    let name = |options: &'static [&'static str]| prop::option::of(text(options));
    let body = || {
        prop_oneof![
            Just(Content::Unread),
            Just(Content::Beyond),
            "[a-z3é\n]{0,9}".prop_map(|body| Content::Whole(body.into())),
            Just(Content::Whole("s3 put\n/bucket/".into())),
        ]
    };
    let cgroup = prop::sample::select(vec![
        None,
        Some("/system.slice/s3.service".to_owned()),
        Some(format!("/docker/{}", "ab".repeat(32))),
    ]);
    let protocol = prop::sample::select(vec![Protocol::Http10, Protocol::Http11, Protocol::Http2]);
    let more = (body(), body(), cgroup, protocol, prop::option::of(0_u64..900_000_000), 0_u32..700);
    let request = (
        text(&["GET", "PUT", "post", "DELETE"]),
        text(&["s3.eu-west-1.amazonaws.com", "S3.Example.org:8443", "é.example", "[::1]:443", "x"]),
        text(&["/", "/bucket/key", "/é?put", "*", "/\"'()~&|!"]),
        prop::collection::vec(("[A-Za-z-]{1,6}", "[ -~é]{0,10}"), 0..4),
    );
    let outcome = (
        prop::option::of((prop::sample::select(vec![200_u16, 404, 429, 503]), "[a-zé ]{0,9}")),
        any::<bool>(),
        any::<bool>(),
    );
    let who = (1_u32..4, 1_u32..700, name(&["s3", "dynamodb", "x"]), name(&["GetObject", "PutObject", "put.*"]));
    (request, outcome, who, more).prop_map(
        |((method, authority, target, fields), (response, told, failed), who, more)| {
            let mut it = attempt();
            it.request = Request {
                method,
                authority,
                target,
                headers: fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            };
            it.response = response.map(|(status, value)| Response {
                status,
                reason: String::new(),
                headers: [("Content-Type", value.as_str()), ("x-s3", "put")].into_iter().collect(),
            });
            it.injected = told.then(|| Injected { status: Some(429), abort: None, rule: "r".into() });
            it.failure = failed.then_some(Failure::Reset);
            it.link.number = who.0;
            it.process = Arc::new(Process::new(
                ProcessKey { pid: who.1, start_ticks: 1 },
                1,
                more.5,
                Facts {
                    comm: "put".into(),
                    command: "s3 --put é".into(),
                    exe: Some("/s3".into()),
                    cgroup: more.2,
                    container_name: None,
                },
            ));
            it.operation = Operation { service: who.2, name: who.3 };
            (it.request_content, it.response_content, it.protocol) = (more.0, more.1, more.3);
            it.ended = more.4.map(Moment);
            it
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn printing_and_parsing_is_the_identity(expr in any_expr()) {
        let text = expr.to_string();
        let parsed = Filter::parse(&text);
        prop_assert_eq!(parsed.as_ref().map(Filter::expr), Ok(&expr), "{}", text);
    }

    #[test]
    fn compiled_and_naive_agree(expr in any_expr(), attempts in prop::collection::vec(any_attempt(), 4)) {
        let filter = Filter::parse(&expr.to_string()).unwrap();
        for attempt in &attempts {
            prop_assert_eq!(filter.matches(attempt), naive(&expr, attempt), "{} on {:?}", filter, attempt);
        }
    }

    /// What the screen leaves out cannot match, and it keeps the order.
    #[test]
    fn a_screen_hides_nothing_that_matches(exprs in prop::collection::vec(any_expr(), 0..12), attempt in any_attempt()) {
        let filters: Vec<Filter> = exprs.iter().map(|expr| Filter::parse(&expr.to_string()).unwrap()).collect();
        let view = View::new(&attempt);
        let mut shown = Vec::new();
        Screen::new(&filters).each(&view, |place| {
            shown.push(place);
            true
        });
        prop_assert!(shown.is_sorted());
        for (place, filter) in filters.iter().enumerate() {
            prop_assert!(
                shown.contains(&place) || filter.without_body(&view) == Some(false), "{} on {:?}", filter, attempt);
        }
    }

    /// What is known without a body holds whatever the body is.
    #[test]
    fn bodies_are_read_where_the_answer_depends_on_them(
        expr in any_expr(), mut attempt in any_attempt(), other in any_attempt(),
    ) {
        let filter = Filter::parse(&expr.to_string()).unwrap();
        attempt.request_content = Content::Unread;
        attempt.response_content = Content::Unread;
        let known = filter.without_body(&View::new(&attempt));
        let mut read = attempt.clone();
        match attempt.response {
            Some(_) => read.response_content = other.response_content.clone(),
            None => read.request_content = other.request_content.clone(),
        }
        if let Some(known) = known {
            prop_assert_eq!(filter.matches(&read), known, "{}", filter);
        }
        // As well as whatever the response is.
        let mut before = attempt.clone();
        (before.response, before.injected, before.failure, before.ended) = (None, None, None, None);
        if !filter.wants_request_body(&View::new(&before)) {
            let mut unread = attempt.clone();
            unread.response_content = other.response_content;
            let mut read = unread.clone();
            read.request_content = other.request_content;
            prop_assert_eq!(filter.matches(&unread), filter.matches(&read), "{}", filter);
        }
    }

    /// What is known of a stage holds for every attempt at it.
    #[test]
    fn stages_are_told_truly(expr in any_expr(), mut attempt in any_attempt()) {
        let filter = Filter::parse(&expr.to_string()).unwrap();
        attempt.injected = None;
        attempt.failure = None;
        attempt.ended = None;
        let stage = if attempt.response.is_some() { Stage::Answered } else { Stage::Requested };
        prop_assert!(filter.can_match(stage) || !filter.matches(&attempt), "{}", filter);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Filter::parse(&text).map_err(|error| error.render(&text));
    }

    #[test]
    fn nearly_filters_do_not_panic(text in "[~!&|() dcsqe'\"\\\\a.0-9*é+]{0,24}") {
        if let Ok(filter) = Filter::parse(&text) {
            let again = Filter::parse(&filter.to_string());
            prop_assert_eq!(again.as_ref().map(Filter::expr), Ok(filter.expr()));
            filter.matches(&attempt());
        }
    }
}
