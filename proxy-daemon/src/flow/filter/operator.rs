//! The table of operators. An operator is one row here, and nothing else.
use super::view::Text;
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
    row("all", "every attempt", Takes::Nothing(|_| true)).also(&["any", "true"]),
    row("attempt", "number of the attempt in its call: 2, ..2, 2.. or 2..5", {
        Takes::Number {
            of: |attempt| Some(attempt.link.number),
            bounds: (1, u32::MAX),
            unit: "attempts are numbered from 1: 2, ..2, 2.. or 2..5",
        }
    })
    .also(&["n", "try", "number"]),
    row("c", "status: 429 or 500..599", {
        Takes::Number {
            of: |attempt| attempt.status().map(u32::from),
            bounds: (100, 999),
            unit: "a status has three digits: 429, 500..599 or 500..",
        }
    })
    .phase(false, None)
    .also(&["code", "status"]),
    row("cmd", "command line", Takes::Regex(&[Text::Command])).also(&["command", "args"]),
    row("comm", "name of the process, as the kernel has it", Takes::Regex(&[Text::Comm])).also(&["process", "proc"]),
    row("d", "host", Takes::Regex(&[Text::Host])).also(&["domain", "host"]),
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
    row("q", "request without a response yet", Takes::Nothing(|attempt| attempt.response.is_none()))
        .phase(true, Some(false))
        .also(&["req", "request"]),
    row("retry", "every attempt of a call after its first", Takes::Nothing(|attempt| attempt.link.number > 1))
        .also(&["retries", "retried"]),
    row("s", "has a response", Takes::Nothing(|attempt| attempt.response.is_some()))
        .phase(false, Some(true))
        .also(&["resp", "response"]),
    row("svc", "service: s3, dynamodb", Takes::Glob(Named::Service)).also(&["service"]),
    row("u", "URL", Takes::Regex(&[Text::Url])).also(&["url", "uri"]),
];

/// mitmproxy's operators, and our own, that this version does not have.
const LATER: &[&str] = &[
    "a",
    "b",
    "bq",
    "bs",
    "cgroup",
    "container",
    "dst",
    "http",
    "proto",
    "src",
    "t",
    "took",
    "tq",
    "ts",
    "uid",
    "unit",
    "websocket",
];

pub(super) fn find(code: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.code == code)
}

/// What to say of a code that is not in the table.
pub(super) fn unknown(code: &str) -> (String, Option<String>) {
    if LATER.contains(&code) {
        return (format!("~{code} is not there in this version"), None);
    }
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
        for code in ["x", "zzz", "frobnicate", "b", "bq", ""] {
            assert_eq!(suggestion(code), "", "{code}");
        }
        assert!(unknown("b").0.contains("not there in this version"));
    }

    #[test]
    fn rows_are_unique_and_sorted() {
        assert!(OPERATORS.is_sorted_by(|one, next| one.code < next.code));
        assert!(LATER.iter().all(|code| find(code).is_none()));
    }
}
