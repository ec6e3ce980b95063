//! The record of an attempt, the filter language over it, and the names of
//! services and operations.
//!
//! In: heads as the data path read them, and the process they belong to.
//! Out: [`Attempt`], the one record that rules, the ledger and every view
//! share. Nothing here does I/O or reads a clock.
pub mod aws;
pub mod capture;
pub mod complaint;
pub mod content;
pub mod filter;
mod headers;
pub mod record;
pub mod redact;
pub mod route;
pub mod secrets;

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
pub use capture::{Capture, Captured};
pub use complaint::Complaint;
pub use headers::Headers;

use crate::process::Process;

/// Nanoseconds since the instance started, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The instance's one clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    wall: SystemTime,
}

impl Clock {
    pub fn start() -> Self {
        Self { started: Instant::now(), wall: SystemTime::now() }
    }

    pub fn now(&self) -> Moment {
        Moment(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The wall-clock time of a moment.
    pub fn wall(&self, at: Moment) -> SystemTime {
        self.wall + Duration::from_nanos(at.0)
    }
}

/// A redirected connection, numbered from 1 as they are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A call, numbered from 1 as their first attempts are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The protocol between client and daemon, which is also the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

/// How an attempt was linked to its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The client said so.
    Exact,
    /// Deduced.
    Inferred,
    /// Nothing to link by: the attempt is a call of its own.
    Alone,
}

/// Which attempt of which call this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub call: CallId,
    /// From 1.
    pub number: u32,
    /// The most attempts the client said it would make.
    pub max: Option<u32>,
    pub evidence: Evidence,
    /// The backoff before this attempt: from the end of the call's previous,
    /// failed attempt to the start of this one.
    pub waited: Option<Wait>,
}

/// A span of backoff; `from` is never after `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub from: Moment,
    pub to: Moment,
    /// The failure before it was a rule's doing.
    pub injected: bool,
}

impl Wait {
    pub fn length(&self) -> Duration {
        self.to.since(self.from)
    }
}

/// The name of what was asked for, such as `s3.ListBuckets`. Either half may
/// be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Lower case, as SigV4 scopes spell it: `s3`, `dynamodb`.
    pub service: Option<Arc<str>>,
    /// As the service's model spells it: `ListBuckets`.
    pub name: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: Arc<str>,
    /// Host, and the port where the client gave one.
    pub authority: Arc<str>,
    /// Path and query as sent, undecoded; begins with `/` (or is `*`).
    pub target: Arc<str>,
    pub headers: Headers,
}

impl Request {
    /// The host without its port, in lower case where the client sent so.
    pub fn host(&self) -> &str {
        let authority: &str = &self.authority;
        match authority.rfind(':') {
            // An IPv6 literal without a port ends in a bracket.
            Some(at) if !authority[at..].contains(']') => &authority[..at],
            _ => authority,
        }
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    pub fn url(&self) -> String {
        format!("https://{}{}", self.authority, self.target)
    }
}

/// A response as the upstream gave it.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// HTTP/1's reason phrase; empty on HTTP/2.
    pub reason: String,
    pub headers: Headers,
}

/// The fields that came after bodies (RFC 9110 §6.5).
#[derive(Clone, Debug, Default)]
pub struct Trailers {
    pub request: Headers,
    /// As the client got them.
    pub response: Headers,
}

/// What a rule made of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// What the client was told; it may be the genuine status, where only
    /// headers or the body were changed. `None`: broken off before one.
    pub status: Option<u16>,
    /// How it was broken off, as rules name it (`reset`, `truncate`).
    pub abort: Option<&'static str>,
    pub rule: Arc<str>,
}

/// What people have done to an attempt by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hand {
    /// How often they have held it: at the request, at the response.
    pub holds: u32,
    /// For how long; a part of [`Attempt::held`].
    pub time: Duration,
    /// The upstream was asked something else than the client had sent.
    pub asked: bool,
    /// What the client was told is theirs, as [`Attempt::injected`] says.
    pub told: bool,
}

/// The longest body that is kept for filters and merge patches, in bytes.
pub const MAX_CONTENT: usize = 1 << 20;

/// A body, as far as somebody asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Nobody asked.
    #[default]
    Unread,
    /// Without transfer coding, trailers left out; content codings (gzip) are
    /// still on it.
    Whole(Bytes),
    /// Longer than [`MAX_CONTENT`], or not there in time: filters that look
    /// at it do not match.
    Beyond,
}

/// Why an attempt has no response, or only part of one. The names are those
/// of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// The upstream reset the connection or the stream.
    Reset,
    /// The upstream closed before the response was complete.
    Closed,
    /// The kernel gave up on the connection.
    TimedOut,
    /// The connection was refused.
    Refused,
    /// There is no way to the upstream.
    Unreachable,
    /// The TLS handshake failed.
    Tls,
    /// The upstream broke the protocol.
    Protocol,
    /// The client went away first; not the upstream's failure.
    Cancelled,
    /// No failure of anybody: a head was too long for us to read whole, and
    /// passed as it came.
    Unread,
}

impl Failure {
    pub fn name(self) -> &'static str {
        match self {
            Failure::Reset => "reset",
            Failure::Closed => "closed",
            Failure::TimedOut => "timeout",
            Failure::Refused => "refused",
            Failure::Unreachable => "unreachable",
            Failure::Tls => "tls",
            Failure::Protocol => "protocol",
            Failure::Cancelled => "cancelled",
            Failure::Unread => "unread",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One HTTP request and its outcome. While it is under way `response` and
/// `ended` are empty; filters see it in that state in the request phase.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub connection: ConnectionId,
    pub process: Arc<Process>,
    /// The client's own end of the connection.
    pub client: SocketAddr,
    pub origin: SocketAddr,
    pub protocol: Protocol,
    pub request: Request,
    pub operation: Operation,
    pub link: Link,
    pub started: Moment,
    /// As the upstream answered.
    pub response: Option<Response>,
    /// Read only where rules ask for them.
    pub request_content: Content,
    pub response_content: Content,
    /// What stands for the request where the client names no call, and the
    /// digest of the body that it sent, where that was sent whole.
    pub print: Option<u128>,
    pub body_digest: Option<u64>,
    /// What stands for the call where chance is drawn; 0 where nothing draws.
    pub call_key: u64,
    /// Set where a rule changed what the client saw.
    pub injected: Option<Injected>,
    /// How long rules and people have held it up, in all.
    pub held: Duration,
    pub hand: Hand,
    /// What the client was told of its failure; empty until it has ended.
    pub complaint: Complaint,
    pub failure: Option<Failure>,
    pub ended: Option<Moment>,
    /// Body bytes, as framed by HTTP (after transfer coding is removed on
    /// HTTP/1 with a length, before it where chunked).
    pub sent: u64,
    pub received: u64,
    /// The fields after bodies, where there were any.
    pub trailers: Option<Box<Trailers>>,
    /// What a recording has besides; empty until it has ended.
    pub captured: Option<Arc<Captured>>,
}

impl Attempt {
    /// One that has just begun, between nowhere and nowhere until told.
    pub fn new(process: Arc<Process>, request: Request, link: Link, started: Moment) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            connection: ConnectionId(0),
            process,
            client: nowhere,
            origin: nowhere,
            protocol: Protocol::Http11,
            request,
            operation: Operation::default(),
            link,
            started,
            response: None,
            request_content: Content::Unread,
            response_content: Content::Unread,
            print: None,
            body_digest: None,
            call_key: 0,
            injected: None,
            held: Duration::ZERO,
            hand: Hand::default(),
            complaint: Complaint::default(),
            failure: None,
            ended: None,
            sent: 0,
            received: 0,
            trailers: None,
            captured: None,
        }
    }

    /// The status that the client saw.
    pub fn status(&self) -> Option<u16> {
        match &self.injected {
            Some(told) => told.status,
            None => self.response.as_ref().map(|response| response.status),
        }
    }
}
