//! A file of rules, in TOML. Every error is told, each with its place, and
//! nothing is guessed: an unknown key is an error.
use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Action, Draft, MAX_NAME, Names, Times, text};
use crate::flow::filter::FilterError;

/// The largest file, in bytes.
const MAX_FILE: usize = 1 << 20;

const RULE_KEYS: &[&str] = &["name", "when", "then", "times", "enabled"];
/// Keys of a rule in other versions.
const RULE_LATER: &[&str] =
    &["after", "chance", "continue", "every", "for", "max_hits", "max_share", "phase", "preset", "seed"];

type Errors<'a> = dyn FnMut(FilterError) + 'a;

/// Adds the file's rules to `drafts`, and what is wrong to `errors`.
pub(super) fn parse(content: &str, names: &mut Names, drafts: &mut Vec<Draft>, errors: &mut Errors<'_>) {
    if content.len() > MAX_FILE {
        errors(FilterError::new(0..0, format!("the file is larger than {MAX_FILE} bytes")));
        return;
    }
    let (root, broken) = DeTable::parse_recoverable(content);
    if !broken.is_empty() {
        // What is read past them would be guesswork.
        for error in broken {
            let message = format!("not TOML: {}", error.message().replace('\n', ", "));
            errors(FilterError::new(error.span().unwrap_or(0..0), message));
        }
        return;
    }
    let mut found = false;
    for (key, value) in root.get_ref() {
        if key.get_ref() != "rule" {
            errors(unknown("a rule file", key.get_ref(), key.span(), &["rule"], &["seed"]));
            continue;
        }
        found = true;
        let Some(list) = value.get_ref().as_array() else {
            let error = FilterError::new(value.span(), "`rule` is a list of tables");
            errors(error.help("begin each rule with [[rule]], in two brackets"));
            continue;
        };
        for rule in list.iter() {
            if let Some(draft) = one(content, rule, names, errors) {
                drafts.push(draft);
            }
        }
    }
    if !found && root.get_ref().is_empty() {
        errors(FilterError::new(0..0, "there is no rule in this file").help("begin each rule with [[rule]]"));
    }
}

fn one(content: &str, rule: &Spanned<DeValue<'_>>, names: &mut Names, errors: &mut Errors<'_>) -> Option<Draft> {
    let Some(table) = rule.get_ref().as_table() else {
        errors(wants("a rule", "a table", rule));
        return None;
    };
    let (mut name, mut when, mut then, mut times, mut enabled) = (None, None, None, None, true);
    let mut fine = true;
    let mut has_when = false;
    let mut has_then = false;
    for (key, value) in table {
        let read = match key.get_ref().as_ref() {
            "name" => naming(value, names).map(|found| name = Some(found)),
            "when" => {
                has_when = true;
                condition(content, value).map(|found| when = Some(found))
            }
            "then" => {
                has_then = true;
                action(value, errors).map(|found| then = found)
            }
            "times" => limit(value, errors).map(|found| times = found),
            "enabled" => match value.get_ref().as_bool() {
                Some(found) => {
                    enabled = found;
                    Ok(())
                }
                None => Err(wants("`enabled`", "true or false", value)),
            },
            other => Err(unknown("a rule", other, key.span(), RULE_KEYS, RULE_LATER)),
        };
        if let Err(error) = read {
            fine = false;
            errors(error);
        }
    }
    let head = rule.span();
    let head =
        head.start..content.get(head.clone()).and_then(|text| text.find('\n')).map_or(head.end, |at| head.start + at);
    if !has_when {
        errors(
            FilterError::new(head.clone(), "this rule has no `when`")
                .help("write when = \"~all\" to act on every attempt"),
        );
    }
    if !has_then {
        errors(FilterError::new(head, "this rule has no `then`").help("for example then = { status = 429 }"));
    }
    let ((when, filter), action) = (when?, then?);
    let text = text::write(&when, &action, times);
    fine.then_some(Draft { name, filter, text, action, times, enabled })
}

fn naming(value: &Spanned<DeValue<'_>>, names: &mut Names) -> Result<String, FilterError> {
    let name = value.get_ref().as_str().ok_or_else(|| wants("`name`", "a string", value))?.trim();
    let wrong = |message: String| Err(FilterError::new(value.span(), message));
    if name.is_empty() {
        return wrong("a rule's name cannot be empty".into());
    }
    if name.len() > MAX_NAME {
        return wrong(format!("a rule's name is at most {MAX_NAME} bytes long"));
    }
    if !names.take(name) {
        return wrong("another rule has this name".into());
    }
    Ok(name.to_owned())
}

fn condition(
    content: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<(String, crate::flow::filter::Filter), FilterError> {
    let when = value.get_ref().as_str().ok_or_else(|| wants("`when`", "a filter in quotes", value))?;
    match text::filter(when) {
        Ok(filter) => Ok((when.to_owned(), filter)),
        Err(mut error) => {
            error.span = within(content, value.span(), when, error.span);
            Err(error)
        }
    }
}

/// Where a place in a string's value stands in the file. With escapes in the
/// string that cannot be said, and the whole string is pointed at.
fn within(content: &str, span: Range<usize>, value: &str, place: Range<usize>) -> Range<usize> {
    let raw = content.get(span.clone()).unwrap_or_default();
    let open = ["\"\"\"\r\n", "'''\r\n", "\"\"\"\n", "'''\n", "\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|open| raw.strip_prefix(open).is_some_and(|rest| rest.starts_with(value)));
    match open {
        Some(open) => span.start + open.len() + place.start..span.start + open.len() + place.end,
        None => span,
    }
}

/// `Ok(None)` if what is wrong has been told already.
fn action(value: &Spanned<DeValue<'_>>, errors: &mut Errors<'_>) -> Result<Option<Action>, FilterError> {
    let Some(table) = value.get_ref().as_table() else {
        return Err(wants("`then`", "a table", value).help("for example then = { status = 429 }"));
    };
    let (mut status, mut reason): (Option<u16>, Option<Arc<str>>) = (None, None);
    let mut fine = true;
    for (key, value) in table {
        let at = |mut error: FilterError| {
            error.span = value.span();
            error
        };
        let read = match key.get_ref().as_ref() {
            "status" => integer("`status`", value)
                .and_then(|number| text::check_status(number).map_err(at))
                .map(|found| status = Some(found)),
            "reason" => value
                .get_ref()
                .as_str()
                .ok_or_else(|| wants("`reason`", "a string", value))
                .and_then(|text| text::check_reason(text).map(|()| text).map_err(at))
                .map(|found| reason = Some(found.into())),
            other if text::LATER.contains(&other) => {
                let mut error = text::later(other);
                error.span = key.span();
                Err(error)
            }
            other => Err(unknown("`then`", other, key.span(), &["status", "reason"], &[])),
        };
        if let Err(error) = read {
            fine = false;
            errors(error);
        }
    }
    match status {
        Some(status) if fine => Ok(Some(Action { status, reason })),
        None if fine => {
            Err(FilterError::new(value.span(), "`then` has no `status`").help("for example { status = 429 }"))
        }
        _ => Ok(None),
    }
}

/// `Ok(None)` if what is wrong has been told already.
fn limit(value: &Spanned<DeValue<'_>>, errors: &mut Errors<'_>) -> Result<Option<Times>, FilterError> {
    const EXAMPLE: &str = "for example times = { count = 2, per = \"call\" }";
    let Some(table) = value.get_ref().as_table() else {
        return Err(wants("`times`", "a table", value).help(EXAMPLE));
    };
    let (mut count, mut per) = (None, None);
    let mut fine = true;
    for (key, value) in table {
        let at = |mut error: FilterError| {
            error.span = value.span();
            error
        };
        let read = match key.get_ref().as_ref() {
            "count" => integer("`count`", value)
                .and_then(|number| {
                    u32::try_from(number).map_err(|_| wants("`count`", "a number of times from 1", value))
                })
                .and_then(|number| text::check_count(number).map(|()| number).map_err(at))
                .map(|found| count = Some(found)),
            "per" => value
                .get_ref()
                .as_str()
                .ok_or_else(|| wants("`per`", "a string", value))
                .and_then(|word| text::per(word).map_err(at))
                .map(|found| per = Some(found)),
            other => Err(unknown("`times`", other, key.span(), &["count", "per"], &[])),
        };
        if let Err(error) = read {
            fine = false;
            errors(error);
        }
    }
    match (count, per) {
        _ if !fine => Ok(None),
        (Some(count), Some(per)) => Ok(Some(Times { count, per })),
        _ => Err(FilterError::new(value.span(), "`times` needs both `count` and `per`").help(EXAMPLE)),
    }
}

fn integer(what: &str, value: &Spanned<DeValue<'_>>) -> Result<i64, FilterError> {
    value
        .get_ref()
        .as_integer()
        .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok())
        .ok_or_else(|| wants(what, "a whole number", value))
}

fn wants(what: &str, kind: &str, value: &Spanned<DeValue<'_>>) -> FilterError {
    FilterError::new(value.span(), format!("{what} must be {kind}, not {}", an(value.get_ref().type_str())))
}

fn an(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn unknown(of: &str, key: &str, span: Range<usize>, known: &[&str], later: &[&str]) -> FilterError {
    if later.contains(&key) {
        return FilterError::new(span, format!("the key `{key}` of {of} is not there in this version"));
    }
    let error = FilterError::new(span, format!("{of} has no key `{key}`"));
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(name, &key.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, name)) => error.help(format!("did you mean `{name}`?")),
        None => error.help(format!("it may have: {}", known.join(", "))),
    }
}
