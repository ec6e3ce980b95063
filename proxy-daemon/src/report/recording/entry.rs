//! One attempt as a line of a recording: an object of JSONL, or an entry of a
//! HAR file.
//!
//! In: an ended attempt. Out: one line without its end. Both forms say the
//! same: what HAR has no place for stands in `_retryscope`, under the names
//! that the lines of JSONL have. `flow/record.rs` reads both.
use std::{borrow::Cow, collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use lru::LruCache;
use serde::Serialize;

use super::Form;
use crate::{
    flow::{
        Attempt, Captured, Clock, Content, Failure, Headers, Moment, Protocol, capture::Kept, content, redact, secrets,
    },
    process::{Facts, ProcessKey},
    report::events,
};

/// How entries are written.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) form: Form,
    /// Credentials stay as they are.
    pub(super) secrets: bool,
    /// Stands for the instance: its calls' numbers are its own.
    pub(super) instance: String,
}

/// What a recording says of an attempt besides what events say.
#[derive(Debug, Serialize)]
struct Extra {
    instance: String,
    parent: u32,
    uid: u32,
    exe: Option<String>,
    client: String,
    origin: String,
    /// Milliseconds until the request had passed, until the response's head
    /// came, and until its end; null where that was not seen.
    send_ms: Option<f64>,
    wait_ms: Option<f64>,
    receive_ms: Option<f64>,
    body_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_headers: Option<Pairs>,
    /// Of the genuine response, where the entry has no other place for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_headers: Option<Pairs>,
    /// The head that a rule told, where there is no other place for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    told_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    told_headers: Option<Pairs>,
    /// The fields after bodies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_trailers: Pairs,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    response_trailers: Pairs,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_body: Option<Saved>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<Saved>,
}

type Pairs = Vec<(String, String)>;

/// A body as it is written.
#[derive(Debug, Default, Serialize)]
struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Of what is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// Bytes that are missing at its end.
    #[serde(skip_serializing_if = "is_zero")]
    missing: u64,
    /// Without the content coding that its head names.
    #[serde(skip_serializing_if = "is_false")]
    decoded: bool,
    /// Why it is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    withheld: Option<&'static str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// How many processes' command lines are known.
const MAX_COMMANDS: usize = 1024;

const HIDDEN: &str = "it is compressed and not whole, so that secrets in it could not be found";

/// Command lines whose secrets have been taken out: looked through once, and
/// not for each attempt.
#[derive(Debug)]
pub(super) struct Commands(LruCache<ProcessKey, (Arc<Facts>, Arc<Facts>)>);

impl Default for Commands {
    fn default() -> Self {
        Self(LruCache::new(NonZeroUsize::MIN.saturating_add(MAX_COMMANDS)))
    }
}

impl Commands {
    fn without_secrets(&mut self, key: ProcessKey, facts: Arc<Facts>) -> Arc<Facts> {
        match self.0.get(&key) {
            Some((known, shown)) if Arc::ptr_eq(known, &facts) => Arc::clone(shown),
            _ => {
                let command = secrets::command(&facts.command);
                let shown = Arc::new(Facts { command, ..(*facts).clone() });
                self.0.put(key, (facts, Arc::clone(&shown)));
                shown
            }
        }
    }
}

/// One attempt's line.
pub(super) fn line(attempt: &Attempt, clock: &Clock, style: &Style, commands: &mut Commands) -> String {
    let facts = attempt.process.facts();
    let facts = if style.secrets { facts } else { commands.without_secrets(attempt.process.key, facts) };
    let url = attempt.request.url();
    let url = if style.secrets { url } else { redact::url(&url).into_owned() };
    let time = time(clock, attempt.started);
    let extra = extra(attempt, &facts, style);
    let line = match style.form {
        Form::Jsonl => serde_json::to_string(&Line { event: events::event(attempt, &facts, url, time), extra }),
        Form::Har => serde_json::to_string(&entry(attempt, &facts, &url, time, extra, style)),
    };
    // Structs of strings and numbers always serialise.
    line.unwrap_or_default()
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: events::Event<'a>,
    #[serde(flatten)]
    extra: Extra,
}

/// To the microsecond; HAR's readers take six digits at most.
fn time(clock: &Clock, at: Moment) -> String {
    humantime::format_rfc3339_micros(clock.wall(at)).to_string()
}

fn exact(duration: std::time::Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

fn extra(attempt: &Attempt, facts: &Facts, style: &Style) -> Extra {
    let captured = attempt.captured.as_deref();
    let [send, wait, receive] = timings(attempt, captured);
    let genuine = attempt.response.as_ref().map(|response| &response.headers);
    let told = captured.and_then(|captured| captured.told.as_ref());
    let bodies = captured.and_then(Captured::take_bodies);
    let none = Headers::default();
    let request_body = bodies.as_ref().and_then(|bodies| saved(&bodies.request, &attempt.request.headers, style));
    let of_response = told.map(|told| &told.headers).or(genuine).unwrap_or(&none);
    let response_body = bodies.as_ref().and_then(|bodies| saved(&bodies.response, of_response, style));
    let lines = style.form == Form::Jsonl;
    let trailers = attempt.trailers.as_deref();
    Extra {
        instance: style.instance.clone(),
        parent: attempt.process.parent,
        uid: attempt.process.uid,
        exe: facts.exe.clone(),
        client: attempt.client.to_string(),
        origin: attempt.origin.to_string(),
        send_ms: send,
        wait_ms: wait,
        receive_ms: receive,
        body_digest: attempt.body_digest.map(|digest| format!("{digest:016x}")),
        request_headers: lines.then(|| pairs(&attempt.request.headers, style)),
        response_headers: genuine.filter(|_| lines || attempt.injected.is_some()).map(|headers| pairs(headers, style)),
        told_reason: told.filter(|_| lines).map(|told| told.reason.clone()),
        told_headers: told.filter(|_| lines).map(|told| pairs(&told.headers, style)),
        request_trailers: trailers.map(|it| pairs(&it.request, style)).unwrap_or_default(),
        response_trailers: trailers.map(|it| pairs(&it.response, style)).unwrap_or_default(),
        request_body,
        response_body,
    }
}

/// How long it took to send, to wait and to receive.
fn timings(attempt: &Attempt, captured: Option<&Captured>) -> [Option<f64>; 3] {
    let ended = attempt.ended.unwrap_or(attempt.started);
    let uploaded = captured.and_then(|captured| captured.uploaded);
    let answered = captured.and_then(|captured| captured.answered);
    // An answer may come before the request's last byte.
    let sent = uploaded.unwrap_or(attempt.started).min(answered.unwrap_or(ended));
    let send = captured.map(|_| exact(sent.since(attempt.started)));
    let wait = captured.map(|_| exact(answered.unwrap_or(ended).since(sent)));
    let receive = answered.map(|answered| exact(ended.since(answered)));
    [send, wait, receive]
}

fn pairs(headers: &Headers, style: &Style) -> Pairs {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        // As HTTP once had it: ISO 8859-1.
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    headers
        .iter()
        .map(|(name, value)| {
            let value = if style.secrets { Cow::Borrowed(value) } else { redact::header(name, value) };
            (text(name), text(&value))
        })
        .collect()
}

/// `None`: nobody asked for bodies, or there was none.
fn saved(kept: &Kept, headers: &Headers, style: &Style) -> Option<Saved> {
    if kept.is_off() || (kept.bytes().is_empty() && kept.missing() == 0) {
        return None;
    }
    let mut saved = Saved { missing: kept.missing(), ..Saved::default() };
    let wire = Content::Whole(Bytes::copy_from_slice(kept.bytes()));
    let plain = if kept.missing() == 0 || !content::is_coded(headers) { content::plain(&wire, headers) } else { None };
    let plain = match plain {
        Some(plain) => {
            saved.decoded = content::is_coded(headers);
            plain
        }
        None if style.secrets => Cow::Borrowed(kept.bytes()),
        None => {
            saved.missing = kept.missing() + kept.bytes().len() as u64;
            saved.withheld = Some(HIDDEN);
            return Some(saved);
        }
    };
    let shown = if style.secrets { plain } else { Cow::Owned(secrets::redacted(&plain).into_owned()) };
    // A character may be cut in two.
    let whole = match std::str::from_utf8(&shown) {
        Ok(_) => Some(shown.len()),
        Err(error) if error.error_len().is_none() && saved.missing > 0 => Some(error.valid_up_to()),
        Err(_) => None,
    };
    match whole.and_then(|end| Some((end, std::str::from_utf8(shown.get(..end)?).ok()?))) {
        Some((end, text)) => {
            saved.missing += (shown.len() - end) as u64;
            saved.text = Some(text.to_owned());
        }
        None => saved.base64 = Some(STANDARD.encode(&shown)),
    }
    Some(saved)
}

/// HAR 1.2 (<http://www.softwareishard.com/blog/har-12-spec/>).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    // First, by which entries are told from other lines.
    started_date_time: String,
    time: f64,
    request: HarRequest<'a>,
    response: HarResponse<'a>,
    cache: BTreeMap<(), ()>,
    timings: Timings,
    #[serde(rename = "serverIPAddress")]
    server_ip_address: String,
    connection: String,
    #[serde(rename = "_retryscope")]
    own: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HarRequest<'a> {
    method: &'a str,
    url: String,
    http_version: &'static str,
    cookies: [(); 0],
    headers: Vec<Field>,
    query_string: Vec<Field>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_data: Option<PostData>,
    headers_size: i64,
    body_size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PostData {
    mime_type: String,
    text: String,
    /// As the response's content has it; HAR has no word for requests.
    #[serde(rename = "_encoding", skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HarResponse<'a> {
    status: u16,
    status_text: String,
    http_version: &'static str,
    cookies: [(); 0],
    headers: Vec<Field>,
    content: HarContent,
    #[serde(rename = "redirectURL")]
    redirect_url: String,
    headers_size: i64,
    body_size: i64,
    /// As browsers say why there is no response, or only part of one.
    #[serde(rename = "_error", skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HarContent {
    size: u64,
    mime_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

#[derive(Serialize)]
struct Field {
    name: String,
    value: String,
}

/// Milliseconds; -1: not known. Their sum is the entry's time.
#[derive(Serialize)]
struct Timings {
    blocked: i8,
    dns: i8,
    connect: i8,
    ssl: i8,
    send: f64,
    wait: f64,
    receive: f64,
}

fn fields(pairs: Pairs) -> Vec<Field> {
    pairs.into_iter().map(|(name, value)| Field { name, value }).collect()
}

fn entry<'a>(
    attempt: &'a Attempt,
    facts: &'a Facts,
    url: &str,
    time: String,
    mut extra: Extra,
    style: &Style,
) -> Entry<'a> {
    let version = match attempt.protocol {
        Protocol::Http10 => "HTTP/1.0",
        Protocol::Http11 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
    };
    let query = url.split_once('?').map(|(_, query)| query.split('&')).into_iter().flatten();
    let query = query.filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Field { name: name.to_owned(), value: value.to_owned() }
    });
    let post = extra.request_body.take();
    let post = post.map(|saved| saved.parted(&attempt.request.headers)).map(|(body, mime_type, rest)| {
        extra.request_body = rest;
        PostData { mime_type, text: body.0.unwrap_or_default(), encoding: body.1 }
    });
    let request = HarRequest {
        method: &attempt.request.method,
        query_string: query.collect(),
        url: url.to_owned(),
        http_version: version,
        cookies: [],
        headers: fields(pairs(&attempt.request.headers, style)),
        post_data: post,
        headers_size: -1,
        body_size: attempt.sent,
    };
    let none = Headers::default();
    let captured = attempt.captured.as_deref();
    let told = captured.and_then(|captured| captured.told.as_ref()).or(attempt.response.as_ref());
    // Broken off by a rule: there was a response, and not for the client.
    let status = attempt.status();
    let told = told.filter(|_| status.is_some());
    let headers = told.map_or(&none, |told| &told.headers);
    let (mut text, mut encoding, mut comment) = (None, None, None);
    if let Some(saved) = extra.response_body.take() {
        comment = saved.comment();
        let ((shown, coded), _, rest) = saved.parted(headers);
        (text, encoding) = (shown, coded);
        extra.response_body = rest;
    }
    let aborted = attempt.injected.as_ref().and_then(|injected| injected.abort);
    let response = HarResponse {
        status: status.unwrap_or(0),
        status_text: told.map(|told| told.reason.clone()).unwrap_or_default(),
        http_version: version,
        cookies: [],
        content: HarContent {
            size: text.as_ref().filter(|_| encoding.is_none()).map_or(attempt.received, |text| text.len() as u64),
            mime_type: mime_type(headers),
            text,
            encoding,
            comment,
        },
        redirect_url: headers.text("location").map_or_else(String::new, |url| match style.secrets {
            true => url.to_owned(),
            false => redact::url(url).into_owned(),
        }),
        headers: fields(pairs(headers, style)),
        headers_size: -1,
        body_size: if status.is_some() { i64::try_from(attempt.received).unwrap_or(-1) } else { -1 },
        error: attempt.failure.map(Failure::name).or(aborted),
    };
    let took = attempt.ended.unwrap_or(attempt.started).since(attempt.started);
    let [send, wait, receive] = [extra.send_ms, extra.wait_ms, extra.receive_ms].map(Option::unwrap_or_default);
    let timings = Timings {
        blocked: -1,
        dns: -1,
        connect: -1,
        ssl: -1,
        send,
        wait: if captured.is_some() { wait } else { exact(took) },
        receive,
    };
    let line = Line { event: events::event(attempt, facts, String::new(), String::new()), extra };
    let own = match serde_json::to_value(&line) {
        Ok(serde_json::Value::Object(mut own)) => {
            // Said already, or nothing.
            own.retain(|name, value| {
                !value.is_null()
                    && !["v", "type", "time", "took_ms", "url", "method", "protocol", "told"].contains(&name.as_str())
            });
            own
        }
        _ => serde_json::Map::new(),
    };
    Entry {
        started_date_time: time,
        time: exact(took),
        request,
        response,
        cache: BTreeMap::new(),
        timings,
        server_ip_address: attempt.origin.ip().to_string(),
        connection: attempt.connection.0.to_string(),
        own,
    }
}

fn mime_type(headers: &Headers) -> String {
    headers.get("content-type").map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

impl Saved {
    /// The text and its coding, the media type, and what HAR has no place for.
    fn parted(mut self, headers: &Headers) -> ((Option<String>, Option<&'static str>), String, Option<Self>) {
        let (text, encoding) = match self.base64.take() {
            Some(base64) => (Some(base64), Some("base64")),
            None => (self.text.take(), None),
        };
        let rest = self.missing > 0 || self.decoded || self.withheld.is_some();
        ((text, encoding), mime_type(headers), rest.then_some(self))
    }

    fn comment(&self) -> Option<String> {
        match self.withheld {
            Some(why) => Some(format!("left out: {why}")),
            None if self.missing > 0 => Some(format!("cut: {} more bytes are not here", self.missing)),
            None => None,
        }
    }
}
