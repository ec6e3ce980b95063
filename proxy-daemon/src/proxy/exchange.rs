//! One attempt as it passes: what HTTP/1 and HTTP/2 have in common.
//!
//! In: the heads and byte counts that a protocol's driver reads. Out: the
//! rules' decision, and one record in the ledger. An [`Exchange`] that is
//! dropped before its end is an attempt that was cancelled: none is lost.
use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    Feed,
    holds::{self, Asked, BY_HAND, Decision, Edit, Hold, Holds},
    recorded::Recorded,
};

use crate::{
    flow::{
        self, Attempt, Capture, Clock, Complaint, ConnectionId, Content, Failure, Headers, Injected, Link, Moment,
        Protocol, Request, Response, complaint, content,
    },
    process::Process,
    retry::{BodyDigest, Fingerprint, Hint, Ledger},
    rules::{Abort, Active, Field, Phase, Progress, Rules, Ruling},
};

/// Names the rule that rewrote a response.
pub(super) const RULE_HEADER: &str = "x-retryscope-rule";
/// How much of a body is looked at to name an operation.
pub(super) const MAX_BODY_START: usize = 8 * 1024;

/// Whether a response field belies the error that a rule makes of a success:
/// S3 sends an object's checksum with the object alone, and botocore, which
/// verifies it against what it takes for a stream, breaks where it finds one
/// on an error (`botocore/httpchecksum.py`).
pub(super) fn belies(field: &[u8], status: u16) -> bool {
    const CHECKSUM: &[u8] = b"x-amz-checksum-";
    status >= 400 && field.get(..CHECKSUM.len()).is_some_and(|start| start.eq_ignore_ascii_case(CHECKSUM))
}

/// What all connections share once traffic flows.
#[derive(Debug)]
pub struct Account {
    pub clock: Clock,
    pub rules: Rules,
    /// Ended attempts, for whoever watches.
    pub feed: Feed,
    /// Where somebody records.
    pub capture: Option<Capture>,
    /// Attempts that wait for a person.
    pub holds: Arc<Holds>,
    ledger: Mutex<Ledger>,
    connections: AtomicU64,
}

impl Account {
    pub fn new(clock: Clock, rules: Rules, ledger: Ledger) -> Self {
        Self {
            clock,
            rules,
            feed: Feed::default(),
            capture: None,
            holds: Arc::new(Holds::new(clock)),
            ledger: Mutex::new(ledger),
            connections: AtomicU64::new(0),
        }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// The client's end of a connection: what its attempts have in common.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) connection: ConnectionId,
    pub(super) process: Arc<Process>,
    pub(super) client: SocketAddr,
    pub(super) origin: SocketAddr,
    /// The name asked for in the handshake, or the origin's address.
    pub(super) name: Arc<str>,
}

/// The digest of a request's body, without its framing.
#[derive(Debug)]
struct Digest {
    body: BodyDigest,
    chunked: Option<super::h1::Unchunking>,
    /// The length that the head promises, for bodies that stop short.
    length: Option<u64>,
}

impl Digest {
    fn of(request: &Request) -> Option<Self> {
        let chunked = request.headers.get("transfer-encoding").map(|_| super::h1::Unchunking::default());
        let length = request.headers.text("content-length").and_then(|text| text.trim().parse().ok());
        Some(Self { body: BodyDigest::of(request)?, chunked, length })
    }

    fn add(&mut self, bytes: &[u8]) {
        match &mut self.chunked {
            Some(chunked) => chunked.feed(bytes, |data| self.body.add(data)),
            None => self.body.add(bytes),
        }
    }

    /// Unless the body was not sent whole.
    fn finish(self, sent: u64) -> Option<u64> {
        let whole = match (&self.chunked, self.length) {
            (Some(chunked), _) => chunked.is_done(),
            (None, Some(length)) => sent >= length,
            // HTTP/2: its end is not told here.
            (None, None) => true,
        };
        whole.then(|| self.body.finish())
    }
}

impl Peer {
    /// An attempt of this client's.
    fn attempt(&self, request: Request, link: Link, started: Moment) -> Attempt {
        let mut attempt = Attempt::new(Arc::clone(&self.process), request, link, started);
        (attempt.connection, attempt.client, attempt.origin) = (self.connection, self.client, self.origin);
        attempt
    }
}

#[derive(Debug)]
pub(super) struct Exchange {
    account: Arc<Account>,
    /// In force when the attempt began.
    rules: Arc<Active>,
    progress: Progress,
    /// Its own until it has ended, and everybody's from then on.
    attempt: Arc<Attempt>,
    body_start: Option<Vec<u8>>,
    /// Of the request's body, where nothing else may tell requests apart.
    digest: Option<Digest>,
    /// What rules changed of the head that the client was told.
    told: Vec<Field>,
    /// The body that the client is told is that of the status it is told.
    body_told: bool,
    /// It is a rule's own.
    body_replaced: bool,
    /// The start of a failure's body, as framed.
    complaint: Vec<u8>,
    grpc_status: Option<Vec<u8>>,
    /// A head was too long to be read whole.
    pub(super) unread: bool,
    /// Where somebody records.
    recorded: Option<Box<Recorded>>,
    /// Held by hand since then.
    holding: Option<Moment>,
    /// The request's body has been taken in where the upstream never sees it.
    pub(super) body_taken: bool,
    ended: bool,
}

impl Exchange {
    pub(super) fn begin(account: &Arc<Account>, peer: &Peer, protocol: Protocol, request: Request) -> Self {
        let hint = Hint::of(peer.process.key, &request);
        let started = account.clock.now();
        let link = account.ledger().begin(&peer.process, &hint, request.host(), started);
        let digest = hint.print.filter(|_| !hint.bodiless).and_then(|_| Digest::of(&request));
        let body_start = flow::aws::needs_body(&request).then(Vec::new);
        let operation = flow::aws::name(&request, None);
        let mut attempt = Attempt {
            protocol,
            operation,
            print: hint.print.map(Fingerprint::number),
            ..peer.attempt(request, link, started)
        };
        let rules = account.rules.load();
        attempt.call_key = rules.call_key(&attempt);
        let attempt = Arc::new(attempt);
        let progress = Progress::default();
        let recorded = account.capture.as_ref().and_then(Capture::begin);
        let recorded = recorded.map(|captured| Box::new(Recorded::new(captured, &attempt.request)));
        Self {
            account: Arc::clone(account),
            rules,
            progress,
            attempt,
            body_start,
            digest,
            told: Vec::new(),
            body_told: true,
            body_replaced: false,
            complaint: Vec::new(),
            grpc_status: None,
            unread: false,
            recorded,
            holding: None,
            body_taken: false,
            ended: false,
        }
    }

    fn record(&mut self) -> &mut Attempt {
        Arc::make_mut(&mut self.attempt)
    }

    pub(super) fn method(&self) -> &Arc<str> {
        &self.attempt.request.method
    }

    /// A final response has come.
    pub(super) fn answered(&self) -> bool {
        self.attempt.response.is_some()
    }

    /// All that is known of it has come.
    pub(super) fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// Body bytes on their way to the upstream.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        if self.ended {
            return;
        }
        self.record().sent += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.add(bytes);
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.sent(bytes, self.account.clock.now());
        }
        let Some(start) = &mut self.body_start else { return };
        let room = MAX_BODY_START - start.len();
        start.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let attempt = Arc::make_mut(&mut self.attempt);
        attempt.operation = flow::aws::name(&attempt.request, Some(start));
        if start.len() == MAX_BODY_START || attempt.operation.name.is_some() {
            self.body_start = None;
        }
    }

    /// The upstream's final response has come.
    pub(super) fn responded(&mut self, response: Response) {
        if let Some(recorded) = &mut self.recorded {
            recorded.answered(Some(&response), self.account.clock.now());
        }
        self.record().response = Some(response);
    }

    /// The body has to be read before rules can decide in this phase, or
    /// before a person can see it.
    pub(super) fn wants_body(&self, phase: Phase) -> bool {
        (!self.rules.is_idle() && self.rules.wants_body(phase, &self.attempt, self.progress))
            || (self.account.holds.is_watched() && self.account.holds.wants_body(phase, &self.attempt))
    }

    /// A body, read because somebody wanted it.
    pub(super) fn read(&mut self, phase: Phase, content: Content) {
        match phase {
            Phase::Request => self.record().request_content = content,
            Phase::Response => self.record().response_content = content,
        }
    }

    /// What rules make of the attempt now. Asked once in each phase.
    pub(super) fn ruling(&mut self, phase: Phase) -> Option<Ruling> {
        if self.rules.is_idle() {
            return None;
        }
        let ruling = self.rules.rule(phase, &self.attempt, &mut self.progress, self.account.clock.now())?;
        self.ruled(&ruling);
        Some(ruling)
    }

    /// Notes what the client is told in the upstream's place.
    fn ruled(&mut self, ruling: &Ruling) {
        if ruling.reply.is_some() || ruling.abort.is_some() {
            self.record().injected = Some(Injected {
                status: ruling.reply.as_ref().map(|reply| reply.status),
                abort: ruling.abort.map(Abort::name),
                rule: Arc::clone(&ruling.rule),
            });
        }
        if let Some(reply) = &ruling.reply {
            let genuine = self.attempt.response.as_ref().map(|response| response.status);
            self.body_told = reply.body.is_some() || genuine == Some(reply.status);
            self.body_replaced = reply.body.is_some();
            self.told.clone_from(&reply.headers);
            if let Some(recorded) = &mut self.recorded {
                recorded.told(reply, self.attempt.response.as_ref(), self.account.clock.now());
            }
        }
    }

    /// The attempt waits for a person, if one wants it; rules would make this
    /// of it. To be asked after them, once in each phase.
    pub(super) fn hold(&mut self, phase: Phase, ruling: Option<&Ruling>) -> Option<Hold> {
        if !self.account.holds.is_watched() {
            return None;
        }
        match self.account.holds.hold(phase, &self.attempt, ruling) {
            Asked::Held(hold) => {
                self.record().hand.holds += 1;
                self.holding = Some(hold.since);
                Some(hold)
            }
            Asked::Unwanted => None,
            Asked::Full => {
                self.account.ledger().unheld();
                None
            }
        }
    }

    fn let_go(&mut self, now: Moment) {
        if let Some(since) = self.holding.take() {
            let held = now.since(since);
            let attempt = self.record();
            attempt.held += held;
            attempt.hand.time += held;
        }
    }

    /// What becomes of an attempt that was held: what the client is told, and
    /// how the request is changed.
    pub(super) fn decided(
        &mut self,
        phase: Phase,
        decision: Decision,
        ruling: Option<Ruling>,
    ) -> (Option<Ruling>, Option<Edit>) {
        self.let_go(self.account.clock.now());
        let outcome = holds::outcome(decision, phase, &self.attempt, ruling, self.rules.signs());
        if let Some(ruling) = outcome.ruling.as_ref().filter(|_| outcome.told) {
            let attempt = self.record();
            attempt.hand.told = true;
            attempt.injected = None;
            self.ruled(ruling);
        }
        self.record().hand.asked |= outcome.request.is_some();
        (outcome.ruling, outcome.request)
    }

    /// The client has left while it was held.
    pub(super) fn left(&mut self) {
        self.end(Some(Failure::Cancelled));
    }

    /// A wait that rules impose.
    pub(super) fn delay(&mut self, time: Duration) -> impl Future<Output = ()> + use<> {
        self.record().held += time;
        async move {
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
        }
    }

    /// Rules are there that may ask for the operation's name, and only the
    /// start of the request's body tells it.
    pub(super) fn wants_start(&self) -> bool {
        self.body_start.is_some() && !self.rules.is_idle()
    }

    /// The start of the request's body, before it is on its way.
    pub(super) fn start(&mut self, content: &[u8]) {
        let start = &content[..content.len().min(MAX_BODY_START)];
        let attempt = self.record();
        attempt.operation = flow::aws::name(&attempt.request, Some(start));
        self.body_start = None;
    }

    pub(super) fn request(&self) -> &Request {
        &self.attempt.request
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.attempt.protocol
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended
    }

    /// Body bytes on their way to the client.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        if self.ended {
            return;
        }
        self.record().received += bytes.len() as u64;
        if let Some(recorded) = &mut self.recorded {
            recorded.received(bytes);
        }
        let room = complaint::BODY_START - self.complaint.len();
        if room > 0
            && self.body_told
            && self.attempt.status().is_some_and(|status| complaint::in_body(status, &self.attempt.operation))
        {
            self.complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    /// The trailers of the response: gRPC says in them how it ended.
    pub(super) fn trailed(&mut self, trailers: Headers) {
        self.grpc_status = trailers.get("grpc-status").map(<[u8]>::to_vec);
        if !self.ended && !trailers.is_empty() {
            self.record().trailers.get_or_insert_default().response = trailers;
        }
    }

    /// Those of the request.
    pub(super) fn request_trailed(&mut self, trailers: Headers) {
        if !self.ended && !trailers.is_empty() {
            self.record().trailers.get_or_insert_default().request = trailers;
        }
    }

    /// What the client was told of a failure.
    fn complain(&self) -> Complaint {
        let Some(status) = self.attempt.status() else { return Complaint::default() };
        let headers = self.attempt.response.as_ref().map(|response| &response.headers);
        let field = |name: &str| {
            let changed = self.told.iter().rev().find(|field| field.name().eq_ignore_ascii_case(name));
            match changed {
                Some(Field::Set(_, value) | Field::Add(_, value)) => Some(Cow::Borrowed(value.as_bytes())),
                Some(Field::Remove(_)) => None,
                None => match headers?.get(name) {
                    None if name == "grpc-status" => self.grpc_status.as_deref().map(Cow::Borrowed),
                    value => value.map(Cow::Borrowed),
                },
            }
        };
        let genuine = headers.filter(|_| !self.body_replaced);
        let start = match genuine.and_then(|headers| headers.get("transfer-encoding")) {
            Some(_) => Bytes::from(super::h1::unchunked(&self.complaint)),
            None => Bytes::copy_from_slice(&self.complaint),
        };
        let start = Content::Whole(start);
        let plain = match genuine {
            Some(headers) => content::decoded(&start, headers),
            None => content::decoded(&start, &Headers::default()),
        };
        complaint::read(status, field, plain.as_deref().unwrap_or_default())
    }

    /// The attempt is over; only the first call counts.
    pub(super) fn end(&mut self, failure: Option<Failure>) {
        if self.ended {
            return;
        }
        self.ended = true;
        let failure = failure.or(self.unread.then_some(Failure::Unread));
        let now = self.account.clock.now();
        let unheld = self.holding.is_some();
        self.let_go(now);
        let complaint = if unheld { Complaint::default() } else { self.complain() };
        let digest = self.digest.take();
        let captured = self.recorded.take().map(|recorded| recorded.finish().into());
        let attempt = Arc::make_mut(&mut self.attempt);
        if unheld {
            // The client was told nothing, whatever has come for it.
            attempt.injected = Some(Injected { status: None, abort: None, rule: Arc::from(BY_HAND) });
        }
        attempt.failure = failure;
        attempt.ended = Some(now);
        attempt.complaint = complaint;
        attempt.body_digest = digest.and_then(|digest| digest.finish(attempt.sent));
        attempt.captured = captured;
        attempt.link = self.account.ledger().finish(attempt);
        self.account.rules.ended(attempt, now);
        // Bodies that rules had read are nobody's any more.
        (attempt.request_content, attempt.response_content) = (Content::Unread, Content::Unread);
        self.account.feed.publish(&self.attempt);
        tracing::debug!(
            pid = self.attempt.process.key.pid,
            method = &*self.attempt.request.method,
            url = %self.attempt.request.url(),
            number = self.attempt.link.number,
            genuine = self.attempt.response.as_ref().map(|response| response.status),
            told = self.attempt.status(),
            failure = failure.map(Failure::name),
            "attempt"
        );
    }
}

/// A connection that was not to be is an attempt too: its request never came
/// to be sent. Where the client then tries another address of the same name,
/// that is one and the same attempt.
pub(super) fn unmade(account: &Account, peer: &Peer, started: Moment, failure: Failure) {
    let request = Request {
        method: Arc::from("CONNECT"),
        authority: Arc::clone(&peer.name),
        target: Arc::from(""),
        headers: Headers::default(),
    };
    let key = peer.process.key;
    let print = Fingerprint::of_connecting(key, &peer.name);
    let ended = account.clock.now();
    let mut ledger = account.ledger();
    if !ledger.connects(print, peer.origin.ip(), started, ended) {
        return;
    }
    let hint = Hint { signal: None, print: Some(print), bodiless: true };
    let link = ledger.begin(&peer.process, &hint, "", started);
    let mut attempt = Attempt {
        print: Some(print.number()),
        failure: Some(failure),
        ended: Some(ended),
        ..peer.attempt(request, link, started)
    };
    attempt.link = ledger.finish(&attempt);
    drop(ledger);
    account.feed.publish(&Arc::new(attempt));
}

/// Neither an answer nor an end, for this time or for ever.
pub(super) async fn stall(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// An exchange that the halves of one task share; never waited for.
pub(super) fn lock(exchange: &Mutex<Exchange>) -> MutexGuard<'_, Exchange> {
    exchange.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(Some(Failure::Cancelled));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_no_checksum_of_an_object() {
        assert!(belies(b"x-amz-checksum-crc32", 429));
        assert!(belies(b"X-Amz-Checksum-Type", 503));
        assert!(!belies(b"x-amz-checksum-crc32", 206));
        assert!(!belies(b"x-amz-request-id", 503));
        assert!(!belies(b"x-amz", 503));
    }
}
