//! What the API says of intercepts and of what they hold, as JSON.
use std::{borrow::Cow, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    flow::{Clock, Content, Headers, Moment, Protocol},
    proxy::holds::{At, Decision, Edit, Held, How, Intercept},
    rules::{Field, Phase, describes_body},
};

/// Where attempts are stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HoldAt {
    /// Before the upstream sees the request.
    Request,
    /// Before the client sees the response.
    #[default]
    Response,
    Both,
}

impl From<HoldAt> for At {
    fn from(at: HoldAt) -> Self {
        match at {
            HoldAt::Request => At::Request,
            HoldAt::Response => At::Response,
            HoldAt::Both => At::Both,
        }
    }
}

/// An intercept that is to be put in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewIntercept {
    /// In the filter language.
    pub filter: String,
    #[serde(default)]
    pub at: HoldAt,
    /// How long an attempt is held at most; 5 minutes unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3_600_000, default = 300_000)]
    pub max_wait_ms: Option<u64>,
    /// It is over after so many attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub count: Option<u64>,
}

/// An intercept in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterceptView {
    pub id: u64,
    pub filter: String,
    pub at: HoldAt,
    pub max_wait_ms: u64,
    pub count: Option<u64>,
    /// How many attempts it has held so far.
    pub held: u64,
}

impl InterceptView {
    pub(super) fn of(intercept: &Intercept) -> Self {
        Self {
            id: intercept.id,
            filter: intercept.text.clone(),
            at: match intercept.at {
                At::Request => HoldAt::Request,
                At::Response => HoldAt::Response,
                At::Both => HoldAt::Both,
            },
            max_wait_ms: millis(intercept.max_wait),
            count: intercept.count,
            held: intercept.held(),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Intercepts {
    pub intercepts: Vec<InterceptView>,
}

/// What came of withdrawing an intercept.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Withdrawn {
    /// Attempts that were held and went on.
    pub released: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HeldList {
    pub held: Vec<HeldView>,
}

/// A held attempt, in short.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    pub id: u64,
    pub intercept: u64,
    /// `request` or `response`.
    pub phase: String,
    /// RFC 3339.
    pub since: String,
    pub waited_ms: u64,
    /// When it goes on by itself, and in how long.
    pub deadline: String,
    pub left_ms: u64,
    pub pid: u32,
    pub comm: String,
    pub command: String,
    pub service: Option<String>,
    pub operation: Option<String>,
    pub protocol: String,
    pub method: String,
    pub url: String,
    pub call: u64,
    /// Which attempt of its call it is.
    pub attempt: u32,
    /// The most that the client makes, where it says so.
    pub attempts_max: Option<u32>,
    /// How long the call has waited for it since its last attempt.
    pub backoff_ms: Option<f64>,
    /// The upstream's status.
    pub status: Option<u16>,
    /// What a rule tells the client in its place, and which rule.
    pub told: Option<u16>,
    pub abort: Option<String>,
    pub rule: Option<String>,
}

impl HeldView {
    pub(super) fn of(held: &Held, clock: Clock) -> Self {
        let (attempt, now) = (&held.attempt, clock.now());
        let process = &attempt.process;
        let facts = process.facts();
        let reply = held.ruling.as_ref().and_then(|ruling| ruling.reply.as_ref());
        let acts = held.ruling.as_ref().filter(|ruling| ruling.reply.is_some() || ruling.abort.is_some());
        Self {
            id: held.id,
            intercept: held.intercept,
            phase: match held.phase {
                Phase::Request => "request".to_owned(),
                Phase::Response => "response".to_owned(),
            },
            since: time(clock, held.since),
            waited_ms: millis(now.since(held.since)),
            deadline: time(clock, held.until),
            left_ms: millis(held.until.since(now)),
            pid: process.key.pid,
            comm: facts.comm.clone(),
            command: facts.command.clone(),
            service: attempt.operation.service.as_deref().map(str::to_owned),
            operation: attempt.operation.name.as_deref().map(str::to_owned),
            protocol: match attempt.protocol {
                Protocol::Http10 => "http/1.0",
                Protocol::Http11 => "http/1.1",
                Protocol::Http2 => "h2",
            }
            .to_owned(),
            method: attempt.request.method.to_string(),
            url: attempt.request.url(),
            call: attempt.link.call.0,
            attempt: attempt.link.number,
            attempts_max: attempt.link.max,
            backoff_ms: attempt.link.waited.map(|wait| wait.length().as_micros() as f64 / 1000.0),
            status: attempt.response.as_ref().map(|response| response.status),
            told: reply.map(|reply| reply.status),
            abort: held.ruling.as_ref().and_then(|ruling| ruling.abort).map(|abort| abort.name().to_owned()),
            rule: acts.map(|ruling| ruling.rule.to_string()),
        }
    }
}

/// A held attempt, in full.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HeldInFull {
    pub held: HeldView,
    pub request: Message,
    /// As the upstream gave it.
    pub response: Option<Message>,
    /// What the client would be told, where a rule changes it.
    pub told: Option<Message>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Of a request.
    pub method: Option<String>,
    pub target: Option<String>,
    /// Of a response.
    pub status: Option<u16>,
    pub reason: Option<String>,
    /// In order; bytes that are no UTF-8 are shown as U+FFFD.
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

/// A body without its codings. Either `text` or `base64` is there, or neither.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Body {
    /// Where it is UTF-8.
    pub text: Option<String>,
    pub base64: Option<String>,
    /// Why it is not here: it was not read, or it is too long or endless.
    pub absent: Option<String>,
}

impl Body {
    fn of(bytes: Option<Cow<'_, [u8]>>, content: &Content) -> Self {
        let Some(bytes) = bytes else {
            let why = match content {
                Content::Beyond => "longer than 1 MiB, or not there within 5 s: it passes as it is",
                Content::Unread | Content::Whole(_) => "it was not read",
            };
            return Self { absent: Some(why.to_owned()), ..Self::default() };
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self { text: Some(text.to_owned()), ..Self::default() },
            Err(_) => Self { base64: Some(STANDARD.encode(&bytes)), ..Self::default() },
        }
    }

    /// Its bytes, where they are here.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let text = self.text.as_ref().map(|text| text.as_bytes().to_vec());
        text.or_else(|| STANDARD.decode(self.base64.as_ref()?).ok())
    }
}

impl HeldInFull {
    pub(super) fn of(held: &Held, clock: Clock) -> Self {
        let attempt = &held.attempt;
        let body =
            |content: &Content, headers: &Headers| Body::of(crate::flow::content::decoded(content, headers), content);
        let request = Message {
            method: Some(attempt.request.method.to_string()),
            target: Some(attempt.request.target.to_string()),
            status: None,
            reason: None,
            headers: pairs(&attempt.request.headers),
            body: body(&attempt.request_content, &attempt.request.headers),
        };
        let response = attempt.response.as_ref().map(|response| Message {
            method: None,
            target: None,
            status: Some(response.status),
            reason: Some(response.reason.clone()).filter(|reason| !reason.is_empty()),
            headers: pairs(&response.headers),
            body: body(&attempt.response_content, &response.headers),
        });
        let reply = held.ruling.as_ref().and_then(|ruling| ruling.reply.as_ref());
        let told = reply.map(|reply| {
            let mut headers = response.as_ref().map(|response| response.headers.clone()).unwrap_or_default();
            if reply.body.is_some() {
                headers.retain(|(name, _)| !describes_body(name.as_bytes()));
            }
            for field in &reply.headers {
                if !matches!(field, Field::Add(..)) {
                    headers.retain(|(name, _)| !name.eq_ignore_ascii_case(field.name()));
                }
                if let Field::Set(name, value) | Field::Add(name, value) = field {
                    headers.push((name.to_string(), value.to_string()));
                }
            }
            Message {
                method: None,
                target: None,
                status: Some(reply.status),
                reason: reply.reason.as_deref().map(str::to_owned),
                headers,
                body: match (&reply.body, &response) {
                    (Some(body), _) => Body::of(Some(Cow::Borrowed(body)), &Content::Unread),
                    (None, Some(response)) => response.body.clone(),
                    (None, None) => Body { text: Some(String::new()), ..Body::default() },
                },
            }
        });
        Self { held: HeldView::of(held, clock), request, response, told }
    }

    /// What is held: the request, or what the client would be told.
    pub fn message(&self) -> &Message {
        self.told.as_ref().or(self.response.as_ref()).unwrap_or(&self.request)
    }
}

fn pairs(headers: &Headers) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    headers.iter().map(|(name, value)| (text(name), text(value))).collect()
}

/// What becomes of a held attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub action: Act,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Fields that go first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Fields that take the place of all of their name; of those that are
    /// here more than once, all are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Of a drop: the connection is closed, and not reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub close: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// It goes on, with the changes that are told.
    #[default]
    Resume,
    /// It is broken off.
    Drop,
    /// The client gets this, and the upstream nothing.
    Answer,
}

impl Verdict {
    pub(super) fn decision(self) -> Result<Decision, String> {
        let body = match (self.body, self.body_base64) {
            (Some(_), Some(_)) => return Err("give `body` or `body_base64`, not both".to_owned()),
            (Some(text), None) => Some(Bytes::from(text)),
            (None, Some(coded)) => {
                let bytes = STANDARD.decode(coded).map_err(|error| format!("`body_base64` is no base64 ({error})"))?;
                Some(Bytes::from(bytes))
            }
            (None, None) => None,
        };
        let mut headers: Vec<Field> = self.remove.iter().map(|name| Field::Remove(name.as_str().into())).collect();
        for (at, (name, value)) in self.headers.iter().enumerate() {
            let again = self.headers[..at].iter().any(|(earlier, _)| earlier.eq_ignore_ascii_case(name));
            let (name, value): (Arc<str>, Arc<str>) = (name.as_str().into(), value.trim().into());
            headers.push(if again { Field::Add(name, value) } else { Field::Set(name, value) });
        }
        let edit =
            Edit { method: self.method, target: self.target, status: self.status, reason: self.reason, headers, body };
        match self.action {
            Act::Drop if !edit.is_empty() => Err("an attempt that is dropped cannot be changed as well".to_owned()),
            Act::Drop => Ok(Decision::Drop { close: self.close }),
            _ if self.close => Err("`close` is for an attempt that is dropped".to_owned()),
            Act::Resume => Ok(Decision::Resume(edit)),
            Act::Answer => Ok(Decision::Answer(edit)),
        }
    }
}

/// What became of a held attempt.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Released {
    pub id: u64,
    pub intercept: u64,
    /// One of the names of [`How`].
    pub how: String,
    pub waited_ms: u64,
}

impl Released {
    pub(super) fn of(held: &Held, how: How, at: Moment) -> Self {
        Self {
            id: held.id,
            intercept: held.intercept,
            how: how.name().to_owned(),
            waited_ms: millis(at.since(held.since)),
        }
    }
}

/// The intercept holds nothing more that comes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Over {
    pub intercept: u64,
}

/// Whoever follows was too slow: so many events are missing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Skipped {
    pub skipped: u64,
}

/// What whoever follows is told, one a server-sent event; `event` there is
/// the variant's name, `data` what it holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum HoldEvent {
    /// The intercept that lasts as long as this is followed; the first event
    /// where one was asked for.
    Intercept(InterceptView),
    Held(Box<HeldView>),
    Released(Released),
    Over(Over),
    Skipped(Skipped),
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn time(clock: Clock, at: Moment) -> String {
    humantime::format_rfc3339_millis(clock.wall(at)).to_string()
}
