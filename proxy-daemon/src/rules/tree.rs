//! A TOML or JSON document as one kind of tree, in which every key and value
//! knows its place.
use std::ops::Range;

use jsonc_parser::ast;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::flow::filter::FilterError;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    /// Byte offsets into the document.
    pub(crate) span: Range<usize>,
}

#[derive(Debug)]
pub(crate) enum Value {
    /// In no particular order.
    Table(Vec<Entry>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Of a kind that rules have no use for.
    Other(&'static str),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Range<usize>,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Table(_) => "a table",
            Value::List(_) => "a list",
            Value::Text(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Other(kind) => kind,
        }
    }

    /// As JSON, for merge patches.
    pub(crate) fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Table(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Value::List(items) => items.iter().map(Node::json).collect::<Vec<_>>().into(),
            Value::Text(text) => text.clone().into(),
            Value::Integer(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Bool(it) => (*it).into(),
            Value::Other(_) => serde_json::Value::Null,
        }
    }
}

/// Reads a document; what begins with a brace is JSON.
pub(crate) fn read(text: &str) -> Result<Node, Vec<FilterError>> {
    if text.trim_start().starts_with('{') { json(text) } else { toml(text) }
}

/// Reads a TOML document.
pub(crate) fn toml(text: &str) -> Result<Node, Vec<FilterError>> {
    let (root, broken) = DeTable::parse_recoverable(text);
    if broken.is_empty() {
        return Ok(Node { span: root.span(), value: table(root.get_ref()) });
    }
    // What is read past them would be guesswork.
    Err(broken
        .into_iter()
        .map(|error| {
            let message = format!("not TOML: {}", error.message().replace('\n', ", "));
            FilterError::new(error.span().unwrap_or(0..0), message)
        })
        .collect())
}

fn table(table: &DeTable<'_>) -> Value {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &Spanned<std::borrow::Cow<'_, str>> = key;
        Entry { key: key.get_ref().to_string(), place: key.span(), node: toml_node(value) }
    };
    Value::Table(table.iter().map(entry).collect())
}

fn toml_node(value: &Spanned<DeValue<'_>>) -> Node {
    let found = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number out of range"), Value::Integer),
        DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("a number out of range"), Value::Float),
        DeValue::Boolean(it) => Value::Bool(*it),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.iter().map(toml_node).collect()),
        DeValue::Table(entries) => table(entries),
    };
    Node { span: value.span(), value: found }
}

/// JSON as RFC 8259 has it.
const STRICT: jsonc_parser::ParseOptions = jsonc_parser::ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

fn json(text: &str) -> Result<Node, Vec<FilterError>> {
    let wrong = |message: String, span| vec![FilterError::new(span, format!("not JSON: {message}"))];
    let parsed = jsonc_parser::parse_to_ast(text, &jsonc_parser::CollectOptions::default(), &STRICT)
        .map_err(|error| wrong(error.kind().to_string(), error.range().start..error.range().end))?;
    match parsed.value {
        Some(value) => Ok(json_node(&value)),
        None => Err(wrong("there is nothing in it".into(), 0..0)),
    }
}

fn json_node(value: &ast::Value<'_>) -> Node {
    use jsonc_parser::common::Ranged;
    let range = |it: jsonc_parser::common::Range| it.start..it.end;
    let found = match value {
        ast::Value::StringLit(text) => Value::Text(text.value.to_string()),
        ast::Value::NumberLit(number) => match (number.value.parse::<i64>(), number.value.parse::<f64>()) {
            (Ok(whole), _) => Value::Integer(whole),
            (_, Ok(number)) => Value::Float(number),
            _ => Value::Other("a number out of range"),
        },
        ast::Value::BooleanLit(it) => Value::Bool(it.value),
        ast::Value::Array(items) => Value::List(items.elements.iter().map(json_node).collect()),
        ast::Value::Object(object) => Value::Table(
            object
                .properties
                .iter()
                .map(|property| Entry {
                    key: property.name.as_str().to_owned(),
                    place: range(property.name.range()),
                    node: json_node(&property.value),
                })
                .collect(),
        ),
        ast::Value::NullKeyword(_) => Value::Other("null"),
    };
    Node { span: range(value.range()), value: found }
}

/// A key that a table does not have, and the one that was meant, if any is
/// near.
pub(crate) fn unknown(of: &str, key: &str, span: Range<usize>, known: &[&str]) -> FilterError {
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
