//! What a person changes of a held message, and whether it can be.
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, Method, Uri};

use super::{BY_HAND, Decision, Held};
use crate::{
    flow::{Attempt, Content, MAX_CONTENT, Protocol, content},
    rules::{Abort, Field, Phase, Reply, Ruling, describes_body},
};

/// Changes to a message; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Of a request.
    pub method: Option<String>,
    /// Path and query of a request.
    pub target: Option<String>,
    /// Of a response.
    pub status: Option<u16>,
    /// The status's usual phrase where only that is given.
    pub reason: Option<String>,
    /// In order.
    pub headers: Vec<Field>,
    /// Without any coding.
    pub body: Option<Bytes>,
}

/// Why a decision cannot be carried out. The attempt stays held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("this attempt's response has not come yet; `answer` tells the client something in the upstream's place")]
    NoResponse,
    #[error("this attempt is held at its response: it is too late for another method or target")]
    TooLate,
    #[error("this attempt is held at its response, and the upstream has seen it: resume it with another status")]
    Answered,
    #[error("an answer needs a status")]
    NoStatus,
    #[error("a status is a number from 200 to 599")]
    Status,
    #[error("a response with status {0} has no body")]
    Bodiless(u16),
    #[error("a reason phrase is printable ASCII: clients may refuse anything else")]
    Reason,
    #[error("`{0}` is no name of a header field")]
    Name(String),
    #[error("the value of {0} may hold printable ASCII only")]
    Value(String),
    #[error("{0} is retryscope's own to set: it follows from the body and the connection")]
    Framing(String),
    #[error("a body may be {} KiB long at most", MAX_CONTENT / 1024)]
    TooLong,
    #[error("this request's body is too long, or still on its way: it can only pass as it is")]
    Beyond,
    #[error("`{0}` is no method that a request can be changed to")]
    Method(String),
    #[error("a request with the method {0} cannot be changed to another")]
    FixedMethod(String),
    #[error("`{0}` is no target; write path and query, such as /bucket?list-type=2")]
    Target(String),
}

impl Edit {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Fields that follow from how a message is carried.
fn is_framing(name: &str) -> bool {
    const OWN: &[&str] = &[
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// Whether a decision fits what is held.
pub(super) fn check(held: &Held, decision: &Decision) -> Result<(), EditError> {
    let edit = match decision {
        Decision::Drop { .. } => return Ok(()),
        Decision::Answer(_) if held.phase == Phase::Response => return Err(EditError::Answered),
        Decision::Answer(edit) if edit.status.is_none() => return Err(EditError::NoStatus),
        Decision::Answer(edit) => edit,
        Decision::Resume(edit) if held.phase == Phase::Request && (edit.status.is_some() || edit.reason.is_some()) => {
            return Err(EditError::NoResponse);
        }
        Decision::Resume(edit) => edit,
    };
    let asks = held.phase == Phase::Request && matches!(decision, Decision::Resume(_));
    if !asks && (edit.method.is_some() || edit.target.is_some()) {
        return Err(EditError::TooLate);
    }
    if edit.status.is_some_and(|status| !(200..=599).contains(&status)) {
        return Err(EditError::Status);
    }
    if edit.reason.as_deref().is_some_and(|reason| !is_printable(reason)) {
        return Err(EditError::Reason);
    }
    for field in &edit.headers {
        let name = field.name();
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(EditError::Name(name.to_owned()));
        }
        if is_framing(name) {
            return Err(EditError::Framing(name.to_owned()));
        }
        match field {
            Field::Set(_, value) | Field::Add(_, value) if !is_printable(value) => {
                return Err(EditError::Value(name.to_owned()));
            }
            _ => {}
        }
    }
    if let Some(body) = &edit.body {
        if body.len() > MAX_CONTENT {
            return Err(EditError::TooLong);
        }
        if asks && !matches!(held.attempt.request_content, Content::Whole(_)) {
            return Err(EditError::Beyond);
        }
        if let Some(status @ (204 | 304)) = edit.status
            && !body.is_empty()
        {
            return Err(EditError::Bodiless(status));
        }
    }
    if let Some(method) = &edit.method {
        // How a response ends depends on the method, on either side.
        let fixed = |method: &str| matches!(method, "HEAD" | "CONNECT");
        let genuine = &held.attempt.request.method;
        if fixed(genuine) {
            return Err(EditError::FixedMethod(genuine.to_string()));
        }
        if fixed(method) || Method::from_bytes(method.as_bytes()).is_err() {
            return Err(EditError::Method(method.clone()));
        }
    }
    if let Some(target) = &edit.target {
        let fits = target.starts_with('/') && is_printable(target) && !target.contains([' ', '#']);
        if !fits || target.parse::<Uri>().is_err() {
            return Err(EditError::Target(target.clone()));
        }
    }
    Ok(())
}

/// What comes of a decision: what the client is told, or what the upstream is
/// asked.
#[derive(Debug, Default, PartialEq)]
pub(in crate::proxy) struct Outcome {
    pub(in crate::proxy) ruling: Option<Ruling>,
    pub(in crate::proxy) request: Option<Edit>,
    /// The ruling is a person's.
    pub(in crate::proxy) told: bool,
}

/// A decision about an attempt that `ruling` would have been made of.
pub(in crate::proxy) fn outcome(
    decision: Decision,
    phase: Phase,
    attempt: &Attempt,
    ruling: Option<Ruling>,
    signs: bool,
) -> Outcome {
    let by_hand = |reply, abort| Ruling { rule: Arc::from(BY_HAND), delay: std::time::Duration::ZERO, reply, abort };
    let told = |ruling| Outcome { ruling: Some(ruling), request: None, told: true };
    match decision {
        Decision::Resume(edit) if edit.is_empty() => Outcome { ruling, ..Outcome::default() },
        // A rule's own answer is not sent on, however the request is changed.
        Decision::Resume(edit) if phase == Phase::Request => Outcome { ruling, request: Some(edit), told: false },
        Decision::Resume(edit) => {
            let base = ruling.and_then(|ruling| ruling.reply);
            told(by_hand(Some(reply(edit, base, attempt, signs)), None))
        }
        Decision::Answer(edit) => told(by_hand(Some(reply(edit, None, attempt, signs)), None)),
        Decision::Drop { close } => {
            let abort = match attempt.protocol {
                _ if close => Abort::Close,
                // Of this stream alone.
                Protocol::Http2 => Abort::RstStream(h2::Reason::INTERNAL_ERROR.into()),
                Protocol::Http10 | Protocol::Http11 => Abort::Reset,
            };
            told(by_hand(None, Some(abort)))
        }
    }
}

/// What the client is told where a person changes what it would have been.
fn reply(edit: Edit, base: Option<Reply>, attempt: &Attempt, signs: bool) -> Reply {
    let genuine = attempt.response.as_ref();
    let ruled = base.is_some();
    let mut reply = base.unwrap_or_else(|| Reply {
        signature: None,
        status: genuine.map_or(200, |response| response.status),
        reason: genuine.filter(|response| !response.reason.is_empty()).map(|response| response.reason.as_str().into()),
        headers: Vec::new(),
        body: None,
        continue_then: false,
    });
    reply.signature = signs.then(|| Arc::from(BY_HAND));
    match (edit.status, edit.reason) {
        (status, Some(reason)) => {
            reply.status = status.unwrap_or(reply.status);
            reply.reason = Some(reason.into());
        }
        (Some(status), None) if status != reply.status => (reply.status, reply.reason) = (status, None),
        _ => {}
    }
    if let Some(body) = edit.body {
        let kind = genuine.filter(|_| !ruled || reply.body.is_none());
        let kind = kind.and_then(|response| response.headers.text("content-type")).filter(|kind| is_printable(kind));
        reply.headers.retain(|field| !describes_body(field.name().as_bytes()) || is_type(field));
        if let Some(kind) = kind
            && !reply.headers.iter().any(is_type)
        {
            // Another text is still of the genuine one's kind.
            reply.headers.insert(0, Field::Set(Arc::from("content-type"), kind.into()));
        }
        reply.body = Some(body);
    } else if genuine.is_none() && reply.body.is_none() {
        reply.body = Some(Bytes::new());
    }
    reply.headers.extend(edit.headers);
    reply
}

fn is_type(field: &Field) -> bool {
    field.name().eq_ignore_ascii_case("content-type")
}

impl Held {
    /// What is held of the body, as people read it: without content codings
    /// where they can be removed. `None` where it was not read whole.
    pub fn body(&self) -> Option<std::borrow::Cow<'_, [u8]>> {
        let told = self.ruling.as_ref().and_then(|ruling| ruling.reply.as_ref()).and_then(|reply| reply.body.as_ref());
        if let Some(body) = told {
            return Some(std::borrow::Cow::Borrowed(body));
        }
        let headers = match self.phase {
            Phase::Request => Some(&self.attempt.request.headers),
            Phase::Response => self.attempt.response.as_ref().map(|response| &response.headers),
        };
        content::decoded(self.content(), headers?)
    }
}
