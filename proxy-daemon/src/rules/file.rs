//! A file of rules, in TOML or JSON. Every error is told, each with its place,
//! and nothing is guessed: an unknown key is an error.
use std::{collections::BTreeMap, ops::Range, path::Path};

use super::{
    Abort, Answer, BodyEdit, Draft, Guard, HeaderEdit, Names, Phase, Rate, Spread, StopWhen, Template, Times,
    text::{self, Clauses},
    tree::{self, Entry, Node, Value, unknown},
};
use crate::flow::filter::{Filter, FilterError};

/// The largest file, in bytes.
const MAX_FILE: usize = 1 << 20;

const TOP_KEYS: &[&str] = &["guard", "rule", "rule_header", "seed"];
const GUARD_KEYS: &[&str] = &["max_injections", "stop_when"];
const STOP_KEYS: &[&str] = &["filter", "rate"];
const RULE_KEYS: &[&str] = &[
    "after",
    "chance",
    "continue",
    "enabled",
    "every",
    "for",
    "max_hits",
    "max_share",
    "name",
    "phase",
    "then",
    "times",
    "when",
];
const THEN_KEYS: &[&str] = &[
    "abort",
    "body",
    "continue_then",
    "delay",
    "headers",
    "limit",
    "pass",
    "preset",
    "reason",
    "retry_after",
    "status",
];
const TIMES_KEYS: &[&str] = &["count", "per"];
const HEADER_KEYS: &[&str] = &["add", "remove", "set"];
const BODY_KEYS: &[&str] = &["file", "merge"];
const DELAY_KEYS: &[&str] = &["cap", "fixed", "normal", "uniform"];
const NORMAL_KEYS: &[&str] = &["deviation", "mean"];
const LIMIT_KEYS: &[&str] = &["burst", "per", "rate"];

/// What every key of a table may be called, by the table's name; the schema is
/// held to it.
#[cfg(test)]
pub(super) const KEYS: &[(&str, &[&str])] = &[
    ("file", TOP_KEYS),
    ("guard", GUARD_KEYS),
    ("stop_when", STOP_KEYS),
    ("rule", RULE_KEYS),
    ("then", THEN_KEYS),
    ("times", TIMES_KEYS),
    ("headers", HEADER_KEYS),
    ("limit", LIMIT_KEYS),
];

type Errors<'a> = dyn FnMut(FilterError) + 'a;
type Read<T> = Result<T, FilterError>;

/// Adds the file's rules to `drafts`, its settings to `guard`, and what is
/// wrong to `errors`. Files named in it lie in `folder`.
pub(super) fn parse(
    content: &str,
    folder: Option<&Path>,
    names: &mut Names,
    drafts: &mut Vec<Draft>,
    guard: &mut Guard,
    errors: &mut Errors<'_>,
) {
    if content.len() > MAX_FILE {
        errors(FilterError::new(0..0, format!("the file is larger than {MAX_FILE} bytes")));
        return;
    }
    let root = match tree::read(content) {
        Ok(root) => root,
        Err(wrong) => return wrong.into_iter().for_each(errors),
    };
    let Value::Table(entries) = &root.value else {
        return errors(wants("a rule file", "a table", &root));
    };
    if entries.is_empty() {
        errors(FilterError::new(0..0, "there is no rule in this file").help("begin each rule with [[rule]]"));
    }
    for Entry { key, place, node } in entries {
        match key.as_str() {
            "rule" => {
                let Value::List(rules) = &node.value else {
                    let error = FilterError::new(node.span.clone(), "`rule` is a list of tables");
                    errors(error.help("begin each rule with [[rule]], in two brackets"));
                    continue;
                };
                for rule in rules {
                    drafts.extend(one(content, folder, rule, names, errors));
                }
            }
            "seed" => match whole("`seed`", node) {
                Ok(seed) => guard.seed = Some(seed),
                Err(error) => errors(error),
            },
            "rule_header" => match yes("`rule_header`", node) {
                Ok(named) => guard.rule_header = Some(named),
                Err(error) => errors(error),
            },
            "guard" => {
                if let Err(error) = guards(content, node, guard, errors) {
                    errors(error);
                }
            }
            other => errors(unknown("a rule file", other, place.clone(), TOP_KEYS)),
        }
    }
}

fn guards(content: &str, node: &Node, guard: &mut Guard, errors: &mut Errors<'_>) -> Read<()> {
    for Entry { key, place, node } in entries("`guard`", node)? {
        match key.as_str() {
            "max_injections" => guard.max_injections = Some(whole("`max_injections`", node)?),
            "stop_when" => guard.stop_when = Some(stop_when(content, node)?),
            other => errors(unknown("`guard`", other, place.clone(), GUARD_KEYS)),
        }
    }
    Ok(())
}

fn stop_when(content: &str, node: &Node) -> Read<StopWhen> {
    const EXAMPLE: &str = "for example { filter = \"~genuine & ~c 500..599\", rate = \"10/m\" }";
    let (mut filter, mut rate) = (None, None);
    for Entry { key, place, node } in entries("`stop_when`", node)? {
        match key.as_str() {
            "filter" => filter = Some(condition(content, "`filter`", node)?),
            "rate" => rate = Some(at(node, text::rate(words("`rate`", node)?))?),
            other => return Err(unknown("`stop_when`", other, place.clone(), STOP_KEYS)),
        }
    }
    match (filter, rate) {
        (Some(filter), Some(Rate { count, per, .. })) if count >= 1.0 && count <= f64::from(u32::MAX) => {
            Ok(StopWhen { filter, count: count as u32, per })
        }
        (Some(_), Some(_)) => Err(FilterError::new(node.span.clone(), "the rate must be 1 or more").help(EXAMPLE)),
        _ => Err(FilterError::new(node.span.clone(), "`stop_when` needs both `filter` and `rate`").help(EXAMPLE)),
    }
}

/// One rule, unless something is wrong with it.
fn one(content: &str, folder: Option<&Path>, rule: &Node, names: &mut Names, errors: &mut Errors<'_>) -> Option<Draft> {
    let Value::Table(found) = &rule.value else {
        errors(wants("a rule", "a table", rule));
        return None;
    };
    let keys: BTreeMap<&str, &Node> = found.iter().map(|entry| (entry.key.as_str(), &entry.node)).collect();
    let mut fine = true;
    let mut failed = |error: FilterError| {
        fine = false;
        errors(error);
    };
    for Entry { key, place, .. } in found {
        if !RULE_KEYS.contains(&key.as_str()) {
            failed(unknown("a rule", key, place.clone(), RULE_KEYS));
        }
    }
    let head = rule.span.clone();
    let end = content.get(head.clone()).and_then(|text| text.find('\n')).map_or(head.end, |at| head.start + at);
    let head = head.start..end;

    let mut filter = None;
    match keys.get("when") {
        Some(node) => match condition(content, "`when`", node) {
            Ok(found) => filter = Some(found),
            Err(error) => failed(error),
        },
        None => failed(
            FilterError::new(head.clone(), "this rule has no `when`")
                .help("write when = \"~all\" to act on every attempt"),
        ),
    }
    let mut clauses = Clauses::default();
    let mut place = head.clone();
    match keys.get("then") {
        Some(node) => {
            place = node.span.clone();
            match then(content, folder, node, &mut failed) {
                Ok(found) => clauses = found,
                Err(error) => failed(error),
            }
        }
        None => failed(FilterError::new(head, "this rule has no `then`").help("for example then = { status = 429 }")),
    }
    if let Some(name) = &clauses.name
        && !names.take(name)
    {
        failed(FilterError::new(place.clone(), "another rule has this name"));
    }
    for (key, node) in &keys {
        let read = match *key {
            "times" => times(node, &mut failed).map(|times| clauses.limits.times = times),
            key => limit(key, node, names, &mut clauses),
        };
        if let Err(error) = read {
            failed(error);
        }
    }
    let filter = filter?;
    if !fine {
        return None;
    }
    clauses.finish(filter, place).map_err(errors).ok()
}

/// The keys beside `when` and `then`.
fn limit(key: &str, node: &Node, names: &mut Names, to: &mut Clauses) -> Read<()> {
    let limits = &mut to.limits;
    match key {
        "name" => {
            let name = at(node, text::rule_name(words("`name`", node)?))?;
            if !names.take(&name) {
                return Err(FilterError::new(node.span.clone(), "another rule has this name"));
            }
            to.name = Some(name);
        }
        "enabled" => to.off = !yes("`enabled`", node)?,
        "continue" => to.go_on = yes("`continue`", node)?,
        "phase" => {
            to.phase = Some(match words("`phase`", node)? {
                "request" => Phase::Request,
                "response" => Phase::Response,
                _ => return Err(wants("`phase`", "\"request\" or \"response\"", node)),
            });
        }
        "every" => {
            let number = u32::try_from(whole("`every`", node)?).ok().and_then(std::num::NonZeroU32::new);
            limits.every = Some(number.ok_or_else(|| wants("`every`", "a number from 1", node))?);
        }
        "chance" => limits.chance = Some(share("`chance`", node)?),
        "max_share" => limits.max_share = Some(share("`max_share`", node)?),
        "max_hits" => limits.max_hits = Some(whole("`max_hits`", node)?),
        "after" => limits.after = Some(at(node, text::duration(words("`after`", node)?))?),
        "for" => limits.window = Some(at(node, text::duration(words("`for`", node)?))?),
        _ => {}
    }
    Ok(())
}

/// `Ok(None)` if what is wrong has been told already.
fn times(node: &Node, failed: &mut Errors<'_>) -> Read<Option<Times>> {
    const EXAMPLE: &str = "for example times = { count = 2, per = \"call\" }";
    let found = entries("`times`", node).map_err(|error| error.help(EXAMPLE))?;
    let (mut count, mut per) = (None, None);
    let mut fine = true;
    for Entry { key, place, node } in found {
        let read = match key.as_str() {
            "count" => whole("`count`", node).and_then(|number| {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                at(node, text::check_count(number)).map(|()| count = Some(number))
            }),
            "per" => words("`per`", node).and_then(|word| at(node, text::per(word))).map(|found| per = Some(found)),
            other => Err(unknown("`times`", other, place.clone(), TIMES_KEYS)),
        };
        if let Err(error) = read {
            fine = false;
            failed(error);
        }
    }
    match (count, per) {
        _ if !fine => Ok(None),
        (Some(count), Some(per)) => Ok(Some(Times { count, per })),
        _ => Err(FilterError::new(node.span.clone(), "`times` needs both `count` and `per`").help(EXAMPLE)),
    }
}

fn then(content: &str, folder: Option<&Path>, node: &Node, failed: &mut Errors<'_>) -> Read<Clauses> {
    if let Value::Text(text) = &node.value {
        return text::clauses(text, folder).map_err(|mut error| {
            error.span = within(content, node.span.clone(), text, error.span);
            error
        });
    }
    let found = entries("`then`", node).map_err(|error| error.help("for example then = { status = 429 }"))?;
    if found.is_empty() {
        return Err(FilterError::new(node.span.clone(), "`then` is empty").help("for example { status = 429 }"));
    }
    let mut to = Clauses::default();
    for Entry { key, place, node } in found {
        let read = match key.as_str() {
            "delay" => delay(node, &mut to),
            "abort" => abort(node).map(|found| to.abort = Some(found)),
            "limit" => rate(node).map(|found| to.limit = Some(found)),
            "pass" => yes("`pass`", node).map(|pass| to.pass = pass),
            other if THEN_KEYS.contains(&other) => answer(content, folder, other, node, &mut to.answer),
            other => Err(unknown("`then`", other, place.clone(), THEN_KEYS)),
        };
        if let Err(error) = read {
            failed(error);
        }
    }
    // In the file's order, whatever the table's.
    Ok(to)
}

fn answer(content: &str, folder: Option<&Path>, key: &str, node: &Node, to: &mut Answer) -> Read<()> {
    match key {
        "status" => {
            let number = integer("`status`", node)?;
            to.status = Some(at(node, text::check_status(number))?);
        }
        "reason" => {
            let reason = words("`reason`", node)?;
            at(node, text::check_reason(reason))?;
            to.reason = Some(reason.into());
        }
        "retry_after" => {
            let seconds = whole("`retry_after`", node)?.to_string();
            to.headers.push(HeaderEdit::Set("Retry-After".into(), template(&seconds, node)?));
        }
        "headers" => headers(node, to)?,
        "body" => to.body = Some(body(content, folder, node)?),
        "preset" => {
            let name = words("`preset`", node)?;
            to.preset = Some(text::preset(name).ok_or_else(|| text::no_preset(name, node.span.clone()))?);
        }
        "continue_then" => to.continue_then = yes("`continue_then`", node)?,
        _ => {}
    }
    Ok(())
}

fn headers(node: &Node, to: &mut Answer) -> Read<()> {
    for Entry { key, place, node } in entries("`headers`", node)? {
        match key.as_str() {
            "set" | "add" => {
                for Entry { key: name, place, node } in entries(&format!("`{key}`"), node)? {
                    let name = text::header_name(name, place)?;
                    let value = template(words("a header", node)?, node)?;
                    to.headers.push(if key == "set" {
                        HeaderEdit::Set(name, value)
                    } else {
                        HeaderEdit::Add(name, value)
                    });
                }
            }
            "remove" => {
                let Value::List(names) = &node.value else { return Err(wants("`remove`", "a list of names", node)) };
                for node in names {
                    let name = text::header_name(words("a header's name", node)?, &node.span)?;
                    to.headers.push(HeaderEdit::Remove(name));
                }
            }
            other => return Err(unknown("`headers`", other, place.clone(), HEADER_KEYS)),
        }
    }
    Ok(())
}

fn body(_content: &str, folder: Option<&Path>, node: &Node) -> Read<BodyEdit> {
    if let Value::Text(text) = &node.value {
        return Ok(BodyEdit::Text(template(text, node)?));
    }
    let kind = "a text, { file = \"...\" } or { merge = { ... } }";
    match entries("`body`", node).map_err(|_| wants("`body`", kind, node))? {
        [Entry { key, node, .. }] if key == "file" => at(node, text::file(words("`file`", node)?, folder)),
        [Entry { key, node, .. }] if key == "merge" => Ok(BodyEdit::Merge(node.json())),
        [Entry { key, place, .. }, ..] if !BODY_KEYS.contains(&key.as_str()) => {
            Err(unknown("`body`", key, place.clone(), BODY_KEYS))
        }
        _ => Err(wants("`body`", kind, node)),
    }
}

fn delay(node: &Node, to: &mut Clauses) -> Read<()> {
    let time = |node: &Node| at(node, text::duration(words("a time", node)?));
    if let Value::Text(_) = &node.value {
        to.delay = Some(Spread::Fixed(time(node)?));
        return Ok(());
    }
    for Entry { key, place, node } in entries("`delay`", node)? {
        match key.as_str() {
            "fixed" => to.delay = Some(Spread::Fixed(time(node)?)),
            "uniform" => {
                let Value::List(ends) = &node.value else {
                    return Err(wants("`uniform`", "a list of two times", node));
                };
                let [from, to_node] = ends.as_slice() else {
                    return Err(wants("`uniform`", "a list of two times", node));
                };
                let (from, end) = (time(from)?, time(to_node)?);
                if from > end {
                    return Err(FilterError::new(node.span.clone(), "this range of times is empty")
                        .help("the shorter time comes first"));
                }
                to.delay = Some(Spread::Uniform { from, to: end });
            }
            "normal" => {
                let (mut mean, mut deviation) = (None, None);
                for Entry { key, place, node } in entries("`normal`", node)? {
                    match key.as_str() {
                        "mean" => mean = Some(time(node)?),
                        "deviation" => deviation = Some(time(node)?),
                        other => return Err(unknown("`normal`", other, place.clone(), NORMAL_KEYS)),
                    }
                }
                let (Some(mean), Some(deviation)) = (mean, deviation) else {
                    return Err(FilterError::new(node.span.clone(), "`normal` needs both `mean` and `deviation`"));
                };
                to.delay = Some(Spread::Normal { mean, deviation });
            }
            "cap" => to.cap = Some(time(node)?),
            other => return Err(unknown("`delay`", other, place.clone(), DELAY_KEYS)),
        }
    }
    Ok(())
}

fn abort(node: &Node) -> Read<Abort> {
    let line = match &node.value {
        Value::Text(text) => text.clone(),
        Value::Table(found) => match found.as_slice() {
            [Entry { key, node, .. }] => match &node.value {
                Value::Text(value) => format!("{key} {value}"),
                Value::Integer(value) => format!("{key} {value}"),
                _ => return Err(wants("an abort's value", "a number or a string", node)),
            },
            _ => return Err(wants("`abort`", "one kind, such as \"reset\" or { truncate = 1000 }", node)),
        },
        _ => return Err(wants("`abort`", "a string, such as \"reset\", or a table", node)),
    };
    let found = at(node, text::clauses(&line, None))?;
    found.abort.ok_or_else(|| wants("`abort`", "a kind of abort, such as \"reset\"", node))
}

fn rate(node: &Node) -> Read<Rate> {
    if let Value::Text(text) = &node.value {
        return at(node, text::rate(text));
    }
    let mut rate: Option<Rate> = None;
    let found = entries("`limit`", node)?;
    if let Some(entry) = found.iter().find(|entry| entry.key == "rate") {
        rate = Some(at(&entry.node, text::rate(words("`rate`", &entry.node)?))?);
    }
    let Some(mut rate) = rate else {
        return Err(
            FilterError::new(node.span.clone(), "`limit` has no `rate`").help("for example { rate = \"100/s\" }")
        );
    };
    for Entry { key, place, node } in found {
        match key.as_str() {
            "rate" => {}
            "per" => rate.key = at(node, text::rate_key(words("`per`", node)?))?,
            "burst" => {
                let number = u32::try_from(whole("`burst`", node)?).ok().and_then(std::num::NonZeroU32::new);
                rate.burst = Some(number.ok_or_else(|| wants("`burst`", "a number from 1", node))?);
            }
            other => return Err(unknown("`limit`", other, place.clone(), LIMIT_KEYS)),
        }
    }
    Ok(rate)
}

fn condition(content: &str, what: &str, node: &Node) -> Read<Filter> {
    let when = words(what, node).map_err(|_| wants(what, "a filter in quotes", node))?;
    Filter::parse(when).map_err(|mut error| {
        error.span = within(content, node.span.clone(), when, error.span);
        error
    })
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

/// An error of a value belongs where the value stands.
fn at<T>(node: &Node, read: Read<T>) -> Read<T> {
    read.map_err(|error| error.at(node.span.clone()))
}

fn template(text: &str, node: &Node) -> Read<Template> {
    Template::parse(text).map_err(|message| FilterError::new(node.span.clone(), message))
}

fn entries<'n>(what: &str, node: &'n Node) -> Read<&'n [Entry]> {
    match &node.value {
        Value::Table(entries) => Ok(entries),
        _ => Err(wants(what, "a table", node)),
    }
}

fn words<'n>(what: &str, node: &'n Node) -> Read<&'n str> {
    match &node.value {
        Value::Text(text) => Ok(text),
        _ => Err(wants(what, "a string", node)),
    }
}

fn yes(what: &str, node: &Node) -> Read<bool> {
    match node.value {
        Value::Bool(it) => Ok(it),
        _ => Err(wants(what, "true or false", node)),
    }
}

fn integer(what: &str, node: &Node) -> Read<i64> {
    match node.value {
        Value::Integer(number) => Ok(number),
        _ => Err(wants(what, "a whole number", node)),
    }
}

fn whole(what: &str, node: &Node) -> Read<u64> {
    u64::try_from(integer(what, node)?).map_err(|_| wants(what, "a number from 0", node))
}

fn share(what: &str, node: &Node) -> Read<f64> {
    let number = match &node.value {
        Value::Integer(0) => 0.0,
        Value::Integer(1) => 1.0,
        Value::Float(number) if (0.0..=1.0).contains(number) => *number,
        Value::Text(text) => return at(node, text::share(text)),
        _ => return Err(wants(what, "a number from 0 to 1, or a string such as \"5%\"", node)),
    };
    Ok(number)
}

fn wants(what: &str, kind: &str, node: &Node) -> FilterError {
    FilterError::new(node.span.clone(), format!("{what} must be {kind}, not {}", node.kind()))
}
