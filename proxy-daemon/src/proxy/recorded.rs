//! What is captured of an exchange for a recording.
//!
//! In: heads and bytes as they pass, framed as HTTP/1 frames them. Out: a
//! [`Captured`] without the framing.
use super::h1::Unchunking;
use crate::{
    flow::{Captured, Headers, Moment, Request, Response, capture::Kept},
    rules::{Field, Reply, describes_body},
};

#[derive(Debug)]
pub(super) struct Recorded {
    captured: Box<Captured>,
    request: Option<Unchunking>,
    response: Option<Unchunking>,
}

fn chunked(headers: &Headers) -> Option<Unchunking> {
    headers.get("transfer-encoding").map(|_| Unchunking::default())
}

impl Recorded {
    pub(super) fn new(captured: Box<Captured>, request: &Request) -> Self {
        Self { captured, request: chunked(&request.headers), response: None }
    }

    /// Bytes of the request's body.
    pub(super) fn sent(&mut self, bytes: &[u8], now: Moment) {
        if bytes.is_empty() {
            return;
        }
        self.captured.uploaded = Some(now);
        if let Some(bodies) = self.captured.bodies() {
            keep(&mut bodies.request, &mut self.request, bytes);
        }
    }

    /// The upstream's final response.
    pub(super) fn answered(&mut self, response: Option<&Response>, now: Moment) {
        self.captured.answered = Some(now);
        self.response = response.and_then(|response| chunked(&response.headers));
    }

    /// What a rule tells the client instead.
    pub(super) fn told(&mut self, reply: &Reply, genuine: Option<&Response>, now: Moment) {
        if reply.body.is_some() {
            self.response = None;
        }
        self.captured.answered.get_or_insert(now);
        let length = reply.body.as_ref().map(|body| body.len().to_string());
        let gone = |name: &[u8]| {
            let changed = |field: &Field| match field {
                Field::Set(it, _) | Field::Remove(it) => name.eq_ignore_ascii_case(it.as_bytes()),
                Field::Add(..) => false,
            };
            let framing =
                name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding");
            reply.headers.iter().any(changed)
                || super::exchange::belies(name, reply.status)
                || reply.body.is_some() && (framing || describes_body(name))
        };
        let kept = genuine.iter().flat_map(|genuine| genuine.headers.iter()).filter(|(name, _)| !gone(name));
        let measured = length.iter().map(|length| (&b"content-length"[..], length.as_bytes()));
        let added = reply.headers.iter().filter_map(|field| match field {
            Field::Set(name, value) | Field::Add(name, value) => Some((name.as_bytes(), value.as_bytes())),
            Field::Remove(_) => None,
        });
        let rule = reply.signature.iter().map(|rule| (super::exchange::RULE_HEADER.as_bytes(), rule.as_bytes()));
        let reason = match (&reply.reason, genuine) {
            (Some(reason), _) => reason.to_string(),
            (None, Some(genuine)) if genuine.status == reply.status => genuine.reason.clone(),
            (None, _) => {
                let status = http::StatusCode::from_u16(reply.status).ok();
                status.and_then(|status| status.canonical_reason()).unwrap_or_default().to_owned()
            }
        };
        let headers = Headers::copied(kept.chain(measured).chain(added).chain(rule));
        self.captured.told = Some(Response { status: reply.status, reason, headers });
    }

    /// Bytes of the response's body, as the client gets them.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        if let Some(bodies) = self.captured.bodies() {
            keep(&mut bodies.response, &mut self.response, bytes);
        }
    }

    pub(super) fn finish(self) -> Captured {
        *self.captured
    }
}

fn keep(kept: &mut Kept, chunked: &mut Option<Unchunking>, bytes: &[u8]) {
    match chunked {
        _ if kept.is_off() => {}
        Some(chunked) => chunked.feed(bytes, |data| kept.add(data)),
        None => kept.add(bytes),
    }
}
