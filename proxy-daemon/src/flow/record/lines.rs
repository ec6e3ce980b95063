//! What stands in recordings, as it is read: lines of JSONL, entries of HAR.
use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;

use super::{super::Headers, Body};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    /// Files of events have lines of other types too.
    pub(super) r#type: Option<String>,
    /// Of the last line: attempts for which there was no room.
    pub(super) dropped: Option<u64>,
    pub(super) complete: Option<bool>,
    pub(super) seed: Option<u64>,
    /// Call numbers are an instance's own.
    pub(super) instance: Option<String>,
    pub(super) connection: Option<u64>,
    pub(super) call: Option<u64>,
    pub(super) attempt: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) evidence: Option<String>,
    pub(super) waited_ms: Option<f64>,
    pub(super) waited_for_rule: bool,
    pub(super) service: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) time: Option<String>,
    pub(super) took_ms: Option<f64>,
    pub(super) send_ms: Option<f64>,
    pub(super) wait_ms: Option<f64>,
    pub(super) receive_ms: Option<f64>,
    pub(super) pid: Option<u32>,
    pub(super) start_ticks: Option<u64>,
    pub(super) parent: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) comm: Option<String>,
    pub(super) command: Option<String>,
    pub(super) exe: Option<String>,
    pub(super) cgroup: Option<String>,
    pub(super) container_name: Option<String>,
    pub(super) client: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) method: Option<String>,
    pub(super) url: String,
    pub(super) protocol: Option<String>,
    pub(super) request_headers: Option<Fields>,
    pub(super) request_body: Option<Text>,
    pub(super) status: Option<u16>,
    pub(super) reason: Option<String>,
    pub(super) response_headers: Option<Fields>,
    pub(super) response_body: Option<Text>,
    pub(super) request_trailers: Option<Fields>,
    pub(super) response_trailers: Option<Fields>,
    pub(super) told: Option<u16>,
    pub(super) told_reason: Option<String>,
    pub(super) told_headers: Option<Fields>,
    pub(super) rule: Option<String>,
    pub(super) abort: Option<String>,
    pub(super) failure: Option<String>,
    pub(super) code: Option<String>,
    pub(super) retry_after_ms: Option<f64>,
    pub(super) sent: Option<u64>,
    pub(super) received: Option<u64>,
    pub(super) held_ms: Option<f64>,
    pub(super) body_digest: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Fields {
    Pairs(Vec<(String, String)>),
    Map(BTreeMap<String, String>),
    Har(Vec<HarField>),
}

impl Fields {
    pub(super) fn headers(&self) -> Headers {
        let pairs: Vec<(&str, &str)> = match self {
            Fields::Pairs(pairs) => pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            Fields::Map(map) => map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            Fields::Har(fields) => fields.iter().map(|field| (field.name.as_str(), field.value.as_str())).collect(),
        };
        // HTTP/2's pseudo fields, as some programs record them.
        pairs.into_iter().filter(|(name, _)| !name.starts_with(':')).collect()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct HarField {
    name: String,
    value: String,
}

/// A body: its text, or what retryscope says of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    Plain(String),
    Saved(Saved),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Saved {
    pub(super) text: Option<String>,
    pub(super) base64: Option<String>,
    pub(super) missing: u64,
    pub(super) decoded: bool,
    pub(super) withheld: Option<String>,
}

impl Text {
    pub(super) fn body(self) -> Result<Body, String> {
        let saved = match self {
            Text::Plain(text) => Saved { text: Some(text), ..Saved::default() },
            Text::Saved(saved) => saved,
        };
        let bytes = match (saved.base64, saved.text) {
            (Some(base64), _) => {
                Some(STANDARD.decode(base64).map_err(|error| format!("its body is no base64: {error}"))?)
            }
            (None, text) => text.map(String::into_bytes),
        };
        let known = bytes.is_some();
        Ok(Body {
            bytes: Bytes::from(bytes.unwrap_or_default()),
            known,
            missing: saved.missing,
            decoded: saved.decoded,
            withheld: saved.withheld,
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Har<E> {
    pub(super) log: HarLog<E>,
}

#[derive(Debug, Deserialize)]
pub(super) struct HarLog<E> {
    pub(super) entries: Vec<E>,
    #[serde(default, rename = "_start")]
    pub(super) start: Option<Line>,
    #[serde(default, rename = "_end")]
    pub(super) end: Option<Line>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HarEntry {
    #[serde(default)]
    started_date_time: Option<String>,
    #[serde(default)]
    time: Option<f64>,
    request: HarRequest,
    #[serde(default)]
    response: Option<HarResponse>,
    #[serde(default, rename = "_retryscope")]
    own: Option<Line>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HarRequest {
    method: String,
    url: String,
    #[serde(default)]
    http_version: Option<String>,
    #[serde(default)]
    headers: Option<Fields>,
    #[serde(default)]
    post_data: Option<HarText>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HarResponse {
    status: i32,
    #[serde(default)]
    status_text: String,
    #[serde(default)]
    headers: Option<Fields>,
    #[serde(default)]
    content: Option<HarText>,
}

#[derive(Debug, Deserialize)]
struct HarText {
    #[serde(default)]
    text: Option<String>,
    #[serde(default, alias = "_encoding")]
    encoding: Option<String>,
}

impl HarText {
    fn into_text(self, rest: Option<Text>) -> Option<Text> {
        let rest = match rest {
            Some(Text::Saved(saved)) => saved,
            // HAR's text is the decoded body.
            _ => Saved { decoded: true, ..Saved::default() },
        };
        Some(Text::Saved(match self.encoding.as_deref() {
            _ if rest.withheld.is_some() => rest,
            None => Saved { text: Some(self.text?), ..rest },
            Some("base64") => Saved { base64: Some(self.text?), ..rest },
            Some(_) => return None,
        }))
    }
}

impl HarEntry {
    pub(super) fn into_line(self) -> Line {
        let HarEntry { started_date_time, time, request, response, own } = self;
        let ours = own.is_some();
        let mut line = own.unwrap_or_default();
        line.time = started_date_time;
        line.took_ms = time.filter(|time| *time >= 0.0);
        line.method = Some(request.method);
        line.url = request.url;
        line.protocol = request.http_version;
        line.request_headers = request.headers;
        line.request_body = match (request.post_data, line.request_body.take()) {
            (Some(post), rest) => post.into_text(rest),
            // A request without a body; ours say what they sent.
            (None, _) if !ours => Some(Text::Plain(String::new())),
            (None, rest) => rest,
        };
        // Browsers write status 0 where no response came.
        let response = response.and_then(|response| Some((u16::try_from(response.status).ok()?, response)));
        let Some((status, response)) = response else { return line };
        line.response_body = match (response.content, line.response_body.take()) {
            (Some(content), rest) => content.into_text(rest),
            (None, rest) => rest,
        };
        if status < 100 {
            return line;
        }
        if line.response_headers.is_some() || (line.rule.is_some() && line.status.is_none()) {
            // What the entry shows is what a rule told.
            line.told = Some(status);
            line.told_reason = Some(response.status_text);
            line.told_headers = response.headers;
        } else {
            line.status.get_or_insert(status);
            line.told = line.rule.is_some().then_some(status);
            line.reason = Some(response.status_text);
            line.response_headers = response.headers;
        }
        line
    }
}
