//! What services really answer when they throttle or fail.
//!
//! In: `presets.json`, read once. Out: presets by name; and for an attempt
//! the throttle that its own service would answer with. The form of an error
//! follows the request's protocol, never the service alone: an SDK that
//! speaks query cannot read JSON.
use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{model::HeaderEdit, template::Template};
use crate::flow::Attempt;

/// One service's answer.
#[derive(Debug)]
pub struct Preset {
    pub name: &'static str,
    pub aliases: Vec<&'static str>,
    /// One line for the list.
    pub about: &'static str,
    pub status: u16,
    pub reason: &'static str,
    pub headers: Vec<HeaderEdit>,
    pub body: Content,
}

/// A preset's body.
#[derive(Debug)]
pub enum Content {
    /// The genuine body stays; in the request phase: none.
    Keep,
    Text(Template),
    Bytes(&'static [u8]),
}

impl PartialEq for Preset {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A row of `presets.json`.
#[derive(Deserialize)]
struct Row {
    name: &'static str,
    aliases: Vec<&'static str>,
    about: &'static str,
    status: u16,
    reason: &'static str,
    headers: BTreeMap<&'static str, &'static str>,
    content_type: Option<&'static str>,
    body: Option<String>,
    base64: Option<&'static str>,
}

impl Row {
    fn preset(self) -> Option<Preset> {
        let content_type = self.content_type.map(|value| ("Content-Type", value));
        let fields = self.headers.into_iter().chain(content_type);
        let headers = fields.map(|(name, value)| Some(HeaderEdit::Set(name.into(), Template::parse(value).ok()?)));
        Some(Preset {
            name: self.name,
            aliases: self.aliases,
            about: self.about,
            status: self.status,
            reason: self.reason,
            headers: headers.collect::<Option<_>>()?,
            body: match (self.body, self.base64) {
                (Some(text), _) => Content::Text(Template::parse(&text).ok()?),
                (None, Some(bytes)) => Content::Bytes(BASE64_STANDARD.decode(bytes).ok()?.leak()),
                (None, None) => Content::Keep,
            },
        })
    }
}

/// Every preset, in the order of the list.
pub fn all() -> &'static [Preset] {
    static ALL: LazyLock<Vec<Preset>> = LazyLock::new(|| {
        // The file is part of the program; a test holds it to its form.
        let rows: Vec<Row> = serde_json::from_str(include_str!("presets.json")).unwrap_or_default();
        rows.into_iter().filter_map(Row::preset).collect()
    });
    &ALL
}

/// By name or alias.
pub fn find(name: &str) -> Option<&'static Preset> {
    all().iter().find(|preset| preset.name == name || preset.aliases.contains(&name))
}

/// What the attempt's own service answers when it throttles.
pub fn throttle(attempt: &Attempt) -> Option<&'static Preset> {
    find(throttle_name(attempt))
}

fn throttle_name(attempt: &Attempt) -> &'static str {
    let request = &attempt.request;
    let headers = &request.headers;
    let service = attempt.operation.service.as_deref().unwrap_or_default();
    let content_type = headers.text("content-type").unwrap_or_default();
    if content_type.starts_with("application/grpc") {
        return "grpc-unavailable";
    }
    if headers.text("smithy-protocol").is_some_and(|protocol| protocol.starts_with("rpc-v2")) {
        return "rpcv2cbor-throttling";
    }
    if headers.get("x-amz-target").is_some() {
        return match service {
            "dynamodb" => "dynamodb-provisioned-throughput",
            "kinesis" => "kinesis-provisioned-throughput",
            "sqs" => "sqs-request-throttled-json",
            _ => "aws-json-generic-throttling",
        };
    }
    match service {
        "" if !has_action(request.query()) && attempt.operation.name.is_none() => by_host(request.host()),
        "s3" | "s3express" | "s3-object-lambda" | "s3-outposts" => {
            if &*request.method == "HEAD" {
                "s3-head-503"
            } else {
                "s3-slowdown"
            }
        }
        "ec2" => "ec2-request-limit",
        "route53" | "cloudfront" | "s3control" => "route53-throttling",
        "lambda" => "lambda-too-many-requests",
        "apigateway" => "apigateway-control",
        "execute-api" => "apigateway-execute-throttle",
        _ if content_type.starts_with("application/x-www-form-urlencoded") || has_action(request.query()) => {
            match service {
                "sqs" => "sqs-throttling-query",
                "sns" => "sns-throttled",
                "sts" => "sts-throttling",
                "monitoring" | "cloudwatch" => "cloudwatch-throttling-query",
                _ => "aws-query-generic-throttling",
            }
        }
        _ => "aws-restjson-generic-throttling",
    }
}

fn has_action(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("Action=")))
}

fn by_host(host: &str) -> &'static str {
    let below = |name: &str| host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    [
        ("storage.googleapis.com", "gcs-429"),
        ("blob.core.windows.net", "azure-blob-server-busy"),
        ("documents.azure.com", "azure-cosmos-429"),
        ("management.azure.com", "azure-arm-429"),
        ("api.openai.com", "openai-429"),
        ("api.anthropic.com", "anthropic-429"),
        ("api.stripe.com", "stripe-429"),
    ]
    .into_iter()
    .find(|(name, _)| below(name))
    .map_or("generic-429", |(_, preset)| preset)
}

/// The presets in columns.
pub fn list() -> String {
    let width = all().iter().map(|preset| preset.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for preset in all() {
        text.push_str(&format!("{:width$}  {}  {}", preset.name, preset.status, preset.about));
        if !preset.aliases.is_empty() {
            text.push_str(&format!(" (also: {})", preset.aliases.join(", ")));
        }
        text.push('\n');
    }
    text.push_str(&format!("{:width$}       what the attempt's own service answers when it throttles\n", "throttle"));
    text
}

/// One preset in full, as it would be sent; ids are examples.
///
/// # Errors
/// One sentence: there is none of this name.
pub fn show(name: &str) -> Result<String, String> {
    if name == "throttle" {
        return Ok("throttle picks, by the attempt's own service and protocol, one of those that \
                   `retryscope rules presets` lists\n"
            .into());
    }
    let preset = find(name)
        .ok_or_else(|| format!("there is no preset `{name}`; `retryscope rules presets` lists those there are"))?;
    let mut text = format!("{}\n\nHTTP/1.1 {} {}\n", preset.about, preset.status, preset.reason);
    let service = preset.name.split('-').next().unwrap_or_default();
    for header in &preset.headers {
        if let HeaderEdit::Set(name, value) = header {
            text.push_str(&format!("{name}: {}\n", value.sample(service)));
        }
    }
    text.push('\n');
    match &preset.body {
        Content::Keep => text.push_str("(the genuine body)\n"),
        Content::Text(body) if body.to_string().is_empty() => text.push_str("(no body)\n"),
        Content::Text(body) => text.push_str(&format!("{}\n", body.sample(service))),
        Content::Bytes(bytes) => text.push_str(&format!("({} bytes: {})\n", bytes.len(), bytes.escape_ascii())),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Operation, filter::tests::attempt};

    #[test]
    fn every_preset_is_read_and_named_once() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(include_str!("presets.json")).expect("JSON");
        assert_eq!(rows.len(), all().len());
        let mut names: Vec<&str> =
            all().iter().flat_map(|preset| preset.aliases.iter().copied().chain([preset.name])).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for name in ["s3-slowdown", "dynamodb-throughput", "lambda-429", "ec2-request-limit", "sqs", "sns", "sts"] {
            assert!(find(name).is_some(), "{name}");
            assert!(show(name).is_ok_and(|text| text.contains("HTTP/1.1 ")), "{name}");
        }
        assert!(list().lines().count() > 40 && show("nonsense").is_err());
    }

    #[test]
    fn bodies_are_what_their_type_says() {
        for preset in all() {
            let is = |kind: &str| {
                preset.headers.iter().any(|header| {
                    matches!(header, HeaderEdit::Set(name, value) if &**name == "Content-Type" && value.to_string().contains(kind))
                })
            };
            let Content::Text(body) = &preset.body else { continue };
            let text = body.render(&attempt(), 3);
            assert!(!text.contains("{{"), "{text}");
            if is("json") {
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}: {text}", preset.name);
            } else if is("xml") && !text.is_empty() {
                assert!(text.starts_with('<') && text.ends_with('>'), "{}: {text}", preset.name);
            }
        }
    }

    #[test]
    fn the_cbor_body_is_a_map_that_names_its_type() {
        let preset = find("rpcv2cbor-throttling").expect("the preset");
        let Content::Bytes(bytes) = &preset.body else { panic!("text") };
        let value: ciborium::Value = ciborium::from_reader(*bytes).expect("CBOR");
        let fields: Vec<(&str, &str)> = value
            .as_map()
            .expect("a map")
            .iter()
            .filter_map(|(name, value)| Some((name.as_text()?, value.as_text()?)))
            .collect();
        assert!(fields.iter().any(|(name, value)| *name == "__type" && value.contains("Throttling")), "{fields:?}");
        assert!(fields.iter().any(|(name, value)| *name == "message" && !value.is_empty()), "{fields:?}");
    }

    #[test]
    fn throttle_speaks_the_requests_protocol() {
        let named = |service: &str, host: &str, method: &str, headers: &[(&str, &str)]| {
            let mut it = attempt();
            it.operation = Operation { service: (!service.is_empty()).then(|| service.into()), name: None };
            it.request.authority = host.into();
            it.request.method = method.into();
            it.request.headers = headers.iter().copied().collect();
            throttle(&it).expect("a preset").name
        };
        let target = [("X-Amz-Target", "X.Y")];
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        for (service, host, method, headers, expected) in [
            ("s3", "s3.amazonaws.com", "PUT", &[][..], "s3-slowdown"),
            ("s3", "s3.amazonaws.com", "HEAD", &[], "s3-head-503"),
            ("dynamodb", "x", "POST", &target, "dynamodb-provisioned-throughput"),
            ("sqs", "x", "POST", &target, "sqs-request-throttled-json"),
            ("sqs", "x", "POST", &form, "sqs-throttling-query"),
            ("logs", "x", "POST", &target, "aws-json-generic-throttling"),
            ("sts", "x", "POST", &form, "sts-throttling"),
            ("iam", "x", "POST", &form, "aws-query-generic-throttling"),
            ("ec2", "x", "POST", &form, "ec2-request-limit"),
            ("bedrock", "x", "POST", &[], "aws-restjson-generic-throttling"),
            ("", "storage.googleapis.com", "GET", &[], "gcs-429"),
            ("", "a.blob.core.windows.net", "GET", &[], "azure-blob-server-busy"),
            ("", "api.openai.com", "POST", &[], "openai-429"),
            ("", "example.com", "GET", &[], "generic-429"),
            ("x", "x", "POST", &[("smithy-protocol", "rpc-v2-cbor")], "rpcv2cbor-throttling"),
            ("", "x", "POST", &[("content-type", "application/grpc+proto")], "grpc-unavailable"),
        ] {
            assert_eq!(named(service, host, method, headers), expected, "{service} {host} {method} {headers:?}");
        }
    }
}
