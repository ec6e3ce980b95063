//! The table of operators. An operator is one row here, and nothing else.
use super::{Needs, syntax::Expr, view::Text};
use crate::flow::Attempt;

/// An operator of the language, such as `~d`.
#[derive(Debug)]
pub struct Operator {
    /// As written after the tilde.
    pub code: &'static str,
    /// One line for `--help` and the manual.
    pub help: &'static str,
    pub(super) takes: Takes,
    /// What it says of every attempt whose response has not come yet, and of
    /// every attempt whose response has just come; `None` where that depends.
    pub(super) before: Option<bool>,
    pub(super) answered: Option<bool>,
    /// What people write when they mean it. Suggested, never accepted.
    pub(super) also: &'static [&'static str],
}

/// What an operator is given, and what it looks at.
#[derive(Debug)]
pub(super) enum Takes {
    Nothing(fn(&Attempt) -> bool),
    Number {
        of: fn(&Attempt) -> Option<u32>,
        bounds: (u32, u32),
        unit: &'static str,
    },
    /// A time and which side of it.
    Time(fn(&Attempt) -> Option<std::time::Duration>),
    /// A regular expression, searched for in any of these.
    Regex(&'static [Text]),
    Glob(Named),
}

/// What a glob is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Service,
    Operation,
}

impl PartialEq for Operator {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code
    }
}

impl Eq for Operator {}

const fn row(code: &'static str, help: &'static str, takes: Takes) -> Operator {
    Operator { code, help, takes, before: None, answered: None, also: &[] }
}

impl Operator {
    /// The operator is settled by how far the attempt is.
    const fn phase(mut self, before: bool, answered: Option<bool>) -> Self {
        self.before = Some(before);
        self.answered = answered;
        self
    }

    const fn also(mut self, names: &'static [&'static str]) -> Self {
        self.also = names;
        self
    }
}

/// Every operator, as the manual lists them.
pub static OPERATORS: &[Operator] = &[
    row("a", "asset: the response is a style sheet, script, image or font", Takes::Nothing(is_asset))
        .phase(false, None)
        .also(&["asset"]),
    row("all", "every attempt", Takes::Nothing(|_| true)).also(&["any", "true"]),
    row("attempt", "number of the attempt in its call: 2, ..2, 2.. or 2..5", {
        Takes::Number {
            of: |attempt| Some(attempt.link.number),
            bounds: (1, u32::MAX),
            unit: "attempts are numbered from 1: 2, ..2, 2.. or 2..5",
        }
    })
    .also(&["n", "try", "number"]),
    row("b", "body of the request or the response", Takes::Regex(&[Text::RequestBody, Text::ResponseBody]))
        .also(&["body"]),
    row("bq", "body of the request", Takes::Regex(&[Text::RequestBody])),
    row("bs", "body of the response", Takes::Regex(&[Text::ResponseBody])).phase(false, None),
    row("c", "status: 429 or 500..599", {
        Takes::Number {
            of: |attempt| attempt.status().map(u32::from),
            bounds: (100, 999),
            unit: "a status has three digits: 429, 500..599 or 500..",
        }
    })
    .phase(false, None)
    .also(&["code", "status"]),
    row("cgroup", "path of the cgroup", Takes::Regex(&[Text::Cgroup])),
    row("cmd", "command line", Takes::Regex(&[Text::Command])).also(&["command", "args"]),
    row("comm", "name of the process, as the kernel has it", Takes::Regex(&[Text::Comm])).also(&["process", "proc"]),
    row("container", "id or name of the container", Takes::Regex(&[Text::Container, Text::ContainerName])),
    row("d", "host", Takes::Regex(&[Text::Host])).also(&["domain", "host"]),
    row("dst", "address of the upstream, as 192.0.2.1:443", Takes::Regex(&[Text::Destination])).also(&["dest"]),
    row("e", "no response, or only part of one", Takes::Nothing(|attempt| attempt.failure.is_some()))
        .phase(false, Some(false))
        .also(&["error", "err", "failure", "failed"]),
    row("exe", "path of the executable", Takes::Regex(&[Text::Exe])).also(&["executable", "path"]),
    row("genuine", "the outcome is the upstream's own", {
        Takes::Nothing(|attempt| {
            attempt.injected.is_none() && (attempt.response.is_some() || attempt.failure.is_some())
        })
    })
    .phase(false, Some(true)),
    row("h", "header line of the request or the response", Takes::Regex(&[Text::RequestHead, Text::ResponseHead]))
        .also(&["header", "headers"]),
    row("hq", "header line of the request", Takes::Regex(&[Text::RequestHead])),
    row("hs", "header line of the response", Takes::Regex(&[Text::ResponseHead])).phase(false, None),
    row("http", "every attempt", Takes::Nothing(|_| true)),
    row("injected", "the outcome is a rule's doing", Takes::Nothing(|attempt| attempt.injected.is_some()))
        .phase(false, Some(false))
        .also(&["inj", "fake"]),
    row("m", "method", Takes::Regex(&[Text::Method])).also(&["method", "verb"]),
    row("op", "operation: ListBuckets, s3.List*", Takes::Glob(Named::Operation)).also(&["operation", "action"]),
    row("pid", "process id", {
        Takes::Number {
            of: |attempt| Some(attempt.process.key.pid),
            bounds: (1, u32::MAX),
            unit: "a process id is a number from 1: 42 or 100..200",
        }
    }),
    row("proto", "protocol: http/1.0, http/1.1 or h2", Takes::Regex(&[Text::Protocol])).also(&["protocol"]),
    row(
        "q",
        "request without a response yet",
        Takes::Nothing(|attempt| attempt.response.is_none() && !is_told(attempt)),
    )
    .phase(true, Some(false))
    .also(&["req", "request"]),
    row("retry", "every attempt of a call after its first", Takes::Nothing(|attempt| attempt.link.number > 1))
        .also(&["retries", "retried"]),
    row("s", "has a response", Takes::Nothing(|attempt| attempt.response.is_some() || is_told(attempt)))
        .phase(false, Some(true))
        .also(&["resp", "response"]),
    row("src", "address of the client, as 127.0.0.1:50000", Takes::Regex(&[Text::Source])).also(&["source"]),
    row("svc", "service: s3, dynamodb", Takes::Glob(Named::Service)).also(&["service"]),
    row("t", "content type of either side", Takes::Regex(&[Text::RequestType, Text::ResponseType])).also(&["type"]),
    row("took", "how long it took: >200ms, <=1s or 200ms..1s", {
        Takes::Time(|attempt| attempt.ended.map(|ended| ended.since(attempt.started)))
    })
    .phase(false, Some(false))
    .also(&["time", "duration"]),
    row("tq", "content type of the request", Takes::Regex(&[Text::RequestType])),
    row("ts", "content type of the response", Takes::Regex(&[Text::ResponseType])).phase(false, None),
    row("u", "URL", Takes::Regex(&[Text::Url])).also(&["url", "uri"]),
    row("uid", "user id of the process", {
        Takes::Number {
            of: |attempt| Some(attempt.process.uid),
            bounds: (0, u32::MAX),
            unit: "a user id is a number: 1000 or 1000..2000",
        }
    })
    .also(&["user"]),
    row("unit", "systemd unit", Takes::Regex(&[Text::Unit])),
    row("websocket", "asks for a WebSocket", Takes::Nothing(is_websocket)).also(&["ws"]),
];

/// A rule told a status in the upstream's place.
fn is_told(attempt: &Attempt) -> bool {
    attempt.injected.as_ref().is_some_and(|told| told.status.is_some())
}

fn is_websocket(attempt: &Attempt) -> bool {
    let mut asked = attempt.request.headers.all("upgrade").flat_map(|value| value.split(|byte| *byte == b','));
    asked.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// mitmproxy's assets (`mitmproxy/flowfilter.py`).
fn is_asset(attempt: &Attempt) -> bool {
    const ASSETS: &[&str] = &[
        "text/javascript",
        "application/x-javascript",
        "application/javascript",
        "text/css",
        "image/",
        "font/",
        "application/font",
        "application/x-font-",
        "application/x-shockwave-flash",
    ];
    let Some(kind) = attempt.response.as_ref().and_then(|response| response.headers.text("content-type")) else {
        return false;
    };
    let kind = kind.trim().to_ascii_lowercase();
    ASSETS.iter().any(|asset| kind.starts_with(asset))
}

pub(super) fn needs(expr: &Expr) -> Needs {
    let mut needs = Needs::default();
    for (leaf, _) in expr.leaves() {
        if let Takes::Regex(texts) = &leaf.operator.takes {
            needs.request_body |= texts.contains(&Text::RequestBody);
            needs.response_body |= texts.contains(&Text::ResponseBody);
        }
    }
    needs
}

pub(super) fn needs_heads(expr: &Expr) -> bool {
    expr.leaves().iter().any(|(leaf, _)| match &leaf.operator.takes {
        Takes::Regex(texts) => texts.contains(&Text::RequestHead) || texts.contains(&Text::ResponseHead),
        _ => false,
    })
}

pub(super) fn find(code: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.code == code)
}

/// What to say of a code that is not in the table.
pub(super) fn unknown(code: &str) -> (String, Option<String>) {
    let suggestion = meant(code).map(|operator| format!("did you mean ~{}?", operator.code)).or_else(|| {
        // `~c429`
        let digits = code.find(|char: char| char.is_ascii_digit())?;
        let (head, tail) = code.split_at(digits);
        let operator = find(head).filter(|operator| !matches!(operator.takes, Takes::Nothing(_)))?;
        Some(format!("did you mean ~{} {tail}?", operator.code))
    });
    (format!("unknown operator ~{code}"), suggestion)
}

fn meant(code: &str) -> Option<&'static Operator> {
    let code = code.to_ascii_lowercase();
    if let Some(same) = OPERATORS.iter().find(|operator| operator.code == code || operator.also.contains(&&*code)) {
        return Some(same);
    }
    // One letter is one edit away from every other: no guess is better.
    let reach = match code.chars().count() {
        0 | 1 => return None,
        2 | 3 => 1,
        _ => 2,
    };
    let near = |name: &str| {
        let distance = strsim::damerau_levenshtein(name, &code);
        // Between equals, one that begins alike is likelier meant.
        (distance <= reach && distance < name.len().max(2)).then(|| (distance, !code.starts_with(name), name.len()))
    };
    OPERATORS
        .iter()
        .flat_map(|operator| {
            let names = std::iter::once(&operator.code).chain(operator.also);
            names.filter_map(move |name| near(name).map(|rank| (rank, operator)))
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, operator)| operator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_meant() {
        let suggestion = |code| unknown(code).1.unwrap_or_default();
        for (code, meant) in [
            ("dd", "~d?"),
            ("D", "~d?"),
            ("host", "~d?"),
            ("domian", "~d?"),
            ("atempt", "~attempt?"),
            ("attempts", "~attempt?"),
            ("retrys", "~retry?"),
            ("status", "~c?"),
            ("servcie", "~svc?"),
            ("svv", "~svc?"),
            ("com", "~comm?"),
            ("c429", "~c 429?"),
            ("attempt2", "~attempt?"),
            ("injectd", "~injected?"),
        ] {
            assert_eq!(suggestion(code), format!("did you mean {meant}"), "{code}");
        }
        for code in ["x", "zzz", "frobnicate", ""] {
            assert_eq!(suggestion(code), "", "{code}");
        }
    }

    #[test]
    fn rows_are_unique_and_sorted() {
        assert!(OPERATORS.is_sorted_by(|one, next| one.code < next.code));
    }
}
