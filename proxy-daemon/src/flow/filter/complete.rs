//! What may come next in a filter that is being typed.
//!
//! In: the text up to the cursor, and values that attempts have had. Out:
//! what the last word may become, likeliest first. The text need not be a
//! filter yet.
use super::{
    OPERATORS, Operator,
    operator::{Named, Takes, find},
    view::Text,
};

/// How many are offered.
const MAX_OFFERED: usize = 50;

/// Values that attempts have had, each kind likeliest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub services: Vec<String>,
    pub operations: Vec<String>,
    pub comms: Vec<String>,
    pub hosts: Vec<String>,
    pub methods: Vec<String>,
    pub statuses: Vec<u16>,
    pub pids: Vec<u32>,
    pub containers: Vec<String>,
}

/// What the last word may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// To stand in the word's place.
    pub text: String,
    /// What it means; empty for values.
    pub help: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completions {
    /// How many characters at the text's end are the word.
    pub replace: usize,
    pub items: Vec<Completion>,
}

/// What may come at the end of `text`.
pub fn complete(text: &str, known: &Known) -> Completions {
    let (before, word) = split(text);
    let mut items = match (word.strip_prefix('~'), operator_before(before)) {
        (None, Some(operator)) => values(operator, word, known),
        (Some(code), _) => operators(code),
        (None, None) if word.is_empty() => operators(""),
        // A bare word is looked for in the URL.
        (None, None) => matching(&known.hosts, word),
    };
    items.truncate(MAX_OFFERED);
    Completions { replace: word.chars().count(), items }
}

/// The text and its last word, which quotes hold together.
fn split(text: &str) -> (&str, &str) {
    let mut start = 0;
    let mut quote = None;
    for (at, char) in text.char_indices() {
        match (quote, char) {
            (Some(open), _) if open == char => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(char),
            (None, '(' | ')' | '!' | '&' | '|') => start = at + 1,
            (None, _) if char.is_whitespace() => start = at + char.len_utf8(),
            (None, _) => {}
        }
    }
    text.split_at(start)
}

/// The operator that the text ends with, if it is given something.
fn operator_before(text: &str) -> Option<&'static Operator> {
    let (_, last) = split(text.trim_end());
    let operator = find(last.strip_prefix('~')?)?;
    // A word follows it, after a space.
    (text.ends_with(char::is_whitespace) && !matches!(operator.takes, Takes::Nothing(_))).then_some(operator)
}

fn operators(code: &str) -> Vec<Completion> {
    let code = code.to_ascii_lowercase();
    let meant = |operator: &&Operator| {
        let also = !code.is_empty() && operator.also.iter().any(|name| name.starts_with(&*code));
        operator.code.starts_with(&*code) || also
    };
    let mut found: Vec<_> = OPERATORS.iter().filter(meant).collect();
    found.sort_by_key(|operator| (!operator.code.starts_with(&*code), operator.code));
    let text = |operator: &Operator| match operator.takes {
        Takes::Nothing(_) => format!("~{}", operator.code),
        _ => format!("~{} ", operator.code),
    };
    found.into_iter().map(|operator| Completion { text: text(operator), help: operator.help }).collect()
}

fn values(operator: &Operator, word: &str, known: &Known) -> Vec<Completion> {
    let numbers = |numbers: &mut dyn Iterator<Item = u32>| {
        let texts: Vec<String> = numbers.map(|number| number.to_string()).collect();
        matching(&texts, word)
    };
    match &operator.takes {
        Takes::Glob(Named::Service) => matching(&known.services, word),
        Takes::Glob(Named::Operation) => matching(&known.operations, word),
        Takes::Regex(texts) => match texts.first() {
            Some(Text::Host | Text::Url) => matching(&known.hosts, word),
            Some(Text::Method) => matching(&known.methods, word),
            Some(Text::Comm) => matching(&known.comms, word),
            Some(Text::Container) => matching(&known.containers, word),
            Some(Text::Protocol) => matching(&["http/1.1".into(), "h2".into(), "http/1.0".into()], word),
            _ => Vec::new(),
        },
        Takes::Number { .. } if operator.code == "c" => numbers(&mut known.statuses.iter().map(|it| u32::from(*it))),
        Takes::Number { .. } if operator.code == "pid" => numbers(&mut known.pids.iter().copied()),
        Takes::Number { .. } if operator.code == "attempt" => numbers(&mut (1..=5)),
        Takes::Time(_) => matching(&[">200ms".into(), ">1s".into(), ">10s".into()], word),
        Takes::Number { .. } | Takes::Nothing(_) => Vec::new(),
    }
}

/// Values that hold the word, those that begin with it first.
fn matching(values: &[String], word: &str) -> Vec<Completion> {
    let typed = word.trim_matches(['"', '\'']).to_lowercase();
    let mut found: Vec<_> = values.iter().filter(|value| value.to_lowercase().contains(&typed)).collect();
    found.sort_by_key(|value| !value.to_lowercase().starts_with(&typed));
    found.into_iter().map(|value| Completion { text: written(value), help: "" }).collect()
}

/// The value as the language has it: names mean themselves, whatever takes
/// them; others have no meaning but as expressions.
fn written(value: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "-_.:/<>".contains(char);
    if value.chars().all(plain) { quoted(value) } else { quoted(&regex_syntax::escape(value)) }
}

/// The value as one word of the language.
fn quoted(value: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "-_.:/*<>".contains(char);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            services: vec!["s3".into(), "dynamodb".into()],
            operations: vec!["PutObject".into(), "ListBuckets".into(), "GetObject".into()],
            comms: vec!["python3".into(), "my job".into()],
            hosts: vec!["s3.eu-west-1.amazonaws.com".into(), "api.example.com".into()],
            statuses: vec![200, 429, 503],
            ..Known::default()
        }
    }

    fn offered(text: &str) -> (usize, Vec<String>) {
        let completions = complete(text, &known());
        (completions.replace, completions.items.into_iter().map(|item| item.text).collect())
    }

    #[test]
    fn operators_by_how_they_begin() {
        assert_eq!(offered("~sv"), (3, vec!["~svc ".into()]));
        assert_eq!(offered("~op x & ~attem"), (6, vec!["~attempt ".into()]));
        assert_eq!(offered("(~inj"), (4, vec!["~injected".into()]));
        // What people mean by it.
        assert_eq!(offered("~domain"), (7, vec!["~d ".into()]));
        let (replace, all) = offered("");
        assert_eq!((replace, all.len()), (0, OPERATORS.len().min(MAX_OFFERED)));
        assert_eq!(offered("~svc s3 & ").1.len(), OPERATORS.len().min(MAX_OFFERED));
    }

    #[test]
    fn values_that_attempts_have_had() {
        assert_eq!(offered("~svc "), (0, vec!["s3".into(), "dynamodb".into()]));
        assert_eq!(offered("~op obj"), (3, vec!["PutObject".into(), "GetObject".into()]));
        assert_eq!(offered("~op l"), (1, vec!["ListBuckets".into()]));
        assert_eq!(offered("~d exa").1, ["api.example.com"]);
        assert_eq!(offered("~c 4").1, ["429"]);
        assert_eq!(offered("!~comm \"my").1, ["\"my job\""]);
        assert_eq!(offered("example").1, ["api.example.com"]);
        // It takes nothing: this is another word, of the URL.
        assert_eq!(offered("~retry x").1, ["api.example.com"]);
    }

    /// What is offered can be typed.
    #[test]
    fn values_are_words_of_the_language() {
        for odd in ["a b", "a\"b", "a\\b", "a&b", "(x", "[", "~x", "ä-1", "*"] {
            let filter = format!("~comm {}", written(odd));
            assert!(super::super::Filter::parse(&filter).is_ok(), "{filter}");
        }
    }
}
