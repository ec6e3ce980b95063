//! The JSON Schema of rule files, from types that say what the reader takes.
#![allow(dead_code, reason = "the types are there for their shape")]
use std::collections::BTreeMap;

use schemars::JsonSchema;

/// A file of rules for retryscope.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RuleFile {
    /// What chance is drawn from.
    seed: Option<u64>,
    /// Whether an answer that a rule changed names the rule in the field
    /// `x-retryscope-rule`; it does unless this is false.
    rule_header: Option<bool>,
    guard: Option<GuardTable>,
    /// Asked in this order; the first that acts is the last, unless it says `continue`.
    rule: Option<Vec<RuleTable>>,
}

/// What holds for all rules together.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct GuardTable {
    /// No rule acts any more once rules have acted on so many attempts.
    max_injections: Option<u64>,
    /// No rule acts any more once more than so many attempts have ended like this.
    stop_when: Option<StopTable>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StopTable {
    /// Which attempts, such as `~genuine & ~c 500..599`.
    filter: String,
    /// More than this are too many, such as `10/m`.
    rate: String,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct RuleTable {
    name: Option<String>,
    /// A filter, such as `~svc s3 & ~attempt ..2`.
    when: String,
    then: Then,
    phase: Option<PhaseName>,
    /// On the first so many attempts of each call, process, operation or rule.
    times: Option<TimesTable>,
    /// On each N-th attempt that matches.
    #[schemars(range(min = 1))]
    every: Option<u32>,
    /// On this share, drawn from the seed.
    chance: Option<Share>,
    /// Not before so long, such as `30s`.
    after: Option<String>,
    /// For so long, such as `10m`.
    #[schemars(rename = "for")]
    window: Option<String>,
    max_hits: Option<u64>,
    /// On never more than this share of what matches.
    max_share: Option<Share>,
    enabled: Option<bool>,
    /// Later rules are asked as well.
    #[schemars(rename = "continue")]
    go_on: Option<bool>,
}

/// `request`: the upstream never sees it. `response`: it did happen.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum PhaseName {
    Request,
    Response,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TimesTable {
    #[schemars(range(min = 1))]
    count: u32,
    per: PerName,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum PerName {
    Call,
    Process,
    Operation,
    Rule,
}

/// 0 to 1, or a percentage such as `5%`.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Share {
    Number(#[schemars(range(min = 0, max = 1))] f64),
    Text(String),
}

/// What is done: a table, or one line as after `=>` on the command line.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Then {
    Line(String),
    Table(Box<ThenTable>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ThenTable {
    #[schemars(range(min = 200, max = 599))]
    status: Option<u16>,
    reason: Option<String>,
    /// Seconds.
    retry_after: Option<u64>,
    headers: Option<HeadersTable>,
    body: Option<Body>,
    /// A name of `retryscope rules presets`, or `throttle`.
    preset: Option<String>,
    delay: Option<DelayKind>,
    abort: Option<AbortKind>,
    continue_then: Option<bool>,
    limit: Option<LimitKind>,
    pass: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct HeadersTable {
    set: Option<BTreeMap<String, String>>,
    add: Option<BTreeMap<String, String>>,
    remove: Option<Vec<String>>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Body {
    /// A text, with places to fill in such as `{{request_id}}`.
    Text(String),
    File(FileBody),
    Merge(MergeBody),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FileBody {
    /// Relative to the rule file.
    file: String,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct MergeBody {
    /// An RFC 7396 merge patch to a JSON body.
    merge: serde_json::Value,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum DelayKind {
    /// Such as `200ms`.
    Fixed(String),
    Table(DelayTable),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DelayTable {
    fixed: Option<String>,
    /// From and to.
    #[schemars(length(min = 2, max = 2))]
    uniform: Option<Vec<String>>,
    normal: Option<NormalTable>,
    cap: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct NormalTable {
    mean: String,
    deviation: String,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum AbortKind {
    /// `reset`, `close`, `stall`, `tls-alert`, `goaway`, `refused-stream` or `rst-stream`.
    Name(String),
    Table(AbortTable),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename_all = "kebab-case")]
struct AbortTable {
    /// Bytes of the body.
    truncate: Option<u64>,
    stall: Option<String>,
    goaway: Option<String>,
    rst_stream: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum LimitKind {
    /// Such as `100/s`.
    Rate(String),
    Table(LimitTable),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct LimitTable {
    rate: String,
    per: Option<RateKeyName>,
    #[schemars(range(min = 1))]
    burst: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum RateKeyName {
    Rule,
    Host,
    Operation,
    Process,
    Bucket,
    Prefix,
}

/// The JSON Schema (draft 2020-12) of rule files.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(RuleFile).to_value()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The schema and the reader know the same keys.
    #[test]
    fn keys_are_the_readers() {
        let schema = schema();
        let of = |table: &str| -> BTreeSet<String> {
            let table = if table.is_empty() { &schema } else { &schema["$defs"][table] };
            table["properties"].as_object().expect("a table has properties").keys().cloned().collect()
        };
        for (name, keys) in super::super::file::KEYS {
            let table = match *name {
                "file" => "",
                "guard" => "GuardTable",
                "stop_when" => "StopTable",
                "rule" => "RuleTable",
                "then" => "ThenTable",
                "times" => "TimesTable",
                "headers" => "HeadersTable",
                "limit" => "LimitTable",
                other => panic!("no table {other}"),
            };
            assert_eq!(of(table), keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>(), "{name}");
        }
    }

    /// What is published is what the types give.
    #[test]
    fn published_schema_is_up_to_date() {
        let published = include_str!("schema-1.json");
        let made = format!("{:#}\n", schema());
        if std::env::var_os("RETRYSCOPE_BLESS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/rules/schema-1.json"), &made).expect("writing");
            return;
        }
        assert!(published == made, "run this test with RETRYSCOPE_BLESS=1 to write schema-1.json anew");
    }
}
