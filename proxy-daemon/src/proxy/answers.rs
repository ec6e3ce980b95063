//! Answers out of a recording, in the upstream's place (`--answer-from`).
//!
//! In: a recording, then requests. Out: what was answered to the same request,
//! in the order of the recording, the last answer again and again. Requests
//! are the same by method, authority and target without what signs them, and
//! by their body where the recording has it. What is not there is said to be
//! so, never made up, or asked of the real upstream. A connection's upstream is then a server in this
//! process, so that rules act, and attempts are counted, as ever.
mod real;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::DuplexStream;

pub(super) use self::real::Connector;
use self::real::{Body, Real};

use crate::{
    flow::{
        Failure, MAX_CONTENT, Protocol, Request,
        record::{Recorded, Recording},
        redact, secrets,
    },
    retry::stable_query,
};

/// Names the attempt of the recording that an answer is of, or that there is
/// none.
const HEADER: HeaderName = HeaderName::from_static("x-retryscope-recording");
/// What a request is answered that is not in the recording: clients do not
/// try it again, and take it for no answer of the service's.
const MISSING: StatusCode = StatusCode::NOT_IMPLEMENTED;
/// Bytes under way to and from a connection's own server.
const PIPE: usize = 64 * 1024;

/// Fields of the connection on which an answer came, and of its time.
const OF_THE_CONNECTION: &[&str] =
    &["connection", "date", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// What becomes of a request that is not in the recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It is answered 501.
    #[default]
    Error,
    /// The upstream is asked.
    Upstream,
}

#[derive(Debug)]
pub struct Answers {
    missing: Missing,
    groups: HashMap<String, Vec<Group>>,
    /// Hosts of which HTTP/2 was recorded.
    two: std::collections::HashSet<String>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    given: AtomicU64,
    missing: AtomicU64,
    passed: AtomicU64,
}

/// What came of answering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub given: u64,
    /// Requests that were not in the recording, or whose answers' bodies were
    /// not.
    pub missing: u64,
    /// The same, where the upstream was asked instead.
    pub passed: u64,
}

/// Equal requests.
#[derive(Debug)]
struct Group {
    /// Of the requests; `None`: not recorded, any will do.
    body: Option<Bytes>,
    answers: Vec<Answer>,
    next: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Answer {
    /// The attempt's number in the recording.
    id: usize,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Response(Box<(http::Response<Bytes>, Option<http::HeaderMap>)>),
    /// The connection ends without one.
    Broken,
    /// Its body is not in the recording.
    Bodiless,
}

impl Answers {
    pub fn new(recording: &Recording, missing: Missing) -> Self {
        let mut groups: HashMap<String, Vec<Group>> = HashMap::new();
        let mut two = std::collections::HashSet::new();
        for (id, recorded) in (1..).zip(&recording.attempts) {
            let attempt = &recorded.attempt;
            // A client that left was answered nothing.
            let left = attempt.failure == Some(Failure::Cancelled) && attempt.injected.is_none();
            if &*attempt.request.method == "CONNECT" || left {
                continue;
            }
            if attempt.protocol == Protocol::Http2 {
                two.insert(attempt.request.host().to_ascii_lowercase());
            }
            let body = recorded.request_body.whole().cloned();
            let group = groups.entry(key(&attempt.request)).or_default();
            let answer = Answer { id, what: What::of(recorded) };
            match group.iter_mut().find(|group| group.body == body) {
                Some(group) => group.answers.push(answer),
                None => group.push(Group { body, answers: vec![answer], next: AtomicUsize::new(0) }),
            }
        }
        Self { missing, groups, two, counts: Counts::default() }
    }

    pub fn counts(&self) -> Answered {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { given, missing, passed } = &self.counts;
        Answered { given: read(given), missing: read(missing), passed: read(passed) }
    }

    /// The protocol to speak with a client that offers these.
    pub(super) fn protocol(&self, name: &str, offered: &[Vec<u8>]) -> Option<&'static [u8]> {
        let offers = |name: &[u8]| offered.iter().any(|offered| offered == name);
        let two = self.two.contains(&name.to_ascii_lowercase()) || !offers(b"http/1.1");
        match two && offers(b"h2") {
            true => Some(b"h2"),
            false => offers(b"http/1.1").then_some(b"http/1.1"),
        }
    }

    fn find(&self, request: &Request, body: Option<&[u8]>) -> Option<&Answer> {
        let groups = self.groups.get(&key(request))?;
        let equal = |known: &Bytes| body.is_some_and(|body| body == known || secrets::redacted(body) == &known[..]);
        let group = groups
            .iter()
            .find(|group| group.body.as_ref().is_some_and(equal))
            .or_else(|| groups.iter().find(|group| group.body.is_none()))?;
        let at = group.next.fetch_add(1, Ordering::Relaxed).min(group.answers.len() - 1);
        group.answers.get(at)
    }

    /// A connection's upstream: the near end of a pipe, and the server at its
    /// other end. `real` leads to the real one.
    pub(super) fn upstream(
        self: &Arc<Self>,
        name: Arc<str>,
        two: bool,
        real: Connector,
    ) -> (DuplexStream, impl Future<Output = ()> + use<>) {
        let (near, far) = tokio::io::duplex(PIPE);
        let answers = Arc::clone(self);
        let real = (self.missing == Missing::Upstream).then(|| Arc::new(Real::new(real)));
        let service = service_fn(move |request| {
            let (answers, name, real) = (Arc::clone(&answers), Arc::clone(&name), real.clone());
            async move { answers.answer(request, &name, real.as_deref()).await }
        });
        let serve = async move {
            let io = TokioIo::new(far);
            // How it ends is the client's to see.
            if two {
                let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            } else {
                let _ = http1::Builder::new().serve_connection(io, service).await;
            }
        };
        (near, serve)
    }

    async fn answer(
        &self,
        request: http::Request<Incoming>,
        name: &Arc<str>,
        real: Option<&Real>,
    ) -> Result<http::Response<Body>, Broken> {
        let (head, mut incoming) = request.into_parts();
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = head.uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or(name);
        let asked = Request {
            method: head.method.as_str().into(),
            authority: authority.into(),
            target: head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).into(),
            headers: crate::flow::Headers::default(),
        };
        let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        let pass = async |real: &Real, read: Read, rest: Incoming| {
            count(&self.counts.passed);
            let mut response = real.ask(http::Request::from_parts(head, read.and(rest)), name).await?;
            response.headers_mut().insert(HEADER, HeaderValue::from_static("upstream"));
            Ok(response)
        };
        // What needs no look at its body streams.
        if let Some(real) = real.filter(|_| !self.groups.contains_key(&key(&asked))) {
            return pass(real, Read::default(), incoming).await;
        }
        let read = Read::of(&mut incoming).await?;
        let answer = self.find(&asked, read.whole());
        let lacks = answer.is_none_or(|answer| matches!(answer.what, What::Bodiless));
        if let Some(real) = real.filter(|_| lacks) {
            return pass(real, read, incoming).await;
        }
        if !read.ended {
            drop(read);
            while let Some(frame) = incoming.frame().await {
                frame.map_err(|_| Broken)?;
            }
        }
        let Some(answer) = answer else {
            count(&self.counts.missing);
            return Ok(missing(&format!("{} {} is not in the recording", asked.method, redact::url(&asked.url()))));
        };
        match &answer.what {
            What::Bodiless => {
                count(&self.counts.missing);
                let url = asked.url();
                Ok(missing(&format!(
                    "the answer to {} {} has a body that is not in the recording (--save-bodies)",
                    asked.method,
                    redact::url(&url)
                )))
            }
            What::Broken => {
                count(&self.counts.given);
                Err(Broken)
            }
            What::Response(given) => {
                let (response, trailers) = &**given;
                count(&self.counts.given);
                let mut response = response.clone().map(|body| match trailers {
                    None => whole(body),
                    Some(trailers) => followed(body, trailers.clone()),
                });
                response.headers_mut().insert(HEADER, HeaderValue::from(answer.id));
                Ok(response)
            }
        }
    }
}

/// What has been read of a request's body.
#[derive(Debug, Default)]
struct Read {
    /// As it came, with trailers.
    frames: Vec<Frame<Bytes>>,
    bytes: BytesMut,
    /// That was all.
    ended: bool,
}

impl Read {
    /// As far as it can be compared.
    async fn of(incoming: &mut Incoming) -> Result<Self, Broken> {
        let mut read = Self::default();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|_| Broken)?;
            let data = frame.data_ref().cloned().unwrap_or_default();
            read.frames.push(frame);
            if read.bytes.len() + data.len() > MAX_CONTENT {
                return Ok(read);
            }
            read.bytes.extend_from_slice(&data);
        }
        read.ended = true;
        Ok(read)
    }

    fn whole(&self) -> Option<&[u8]> {
        self.ended.then_some(&*self.bytes)
    }

    /// The body again: what was read, then the rest.
    fn and(self, rest: Incoming) -> Body {
        if self.ended && self.frames.iter().all(Frame::is_data) {
            return whole(self.bytes.freeze());
        }
        if self.frames.is_empty() && !self.ended {
            return rest.map_err(|_| Broken).boxed_unsync();
        }
        let read = stream::iter(self.frames.into_iter().map(Ok));
        let rest = BodyStream::new(rest).map(|frame| frame.map_err(|_| Broken));
        BodyExt::boxed_unsync(StreamBody::new(read.chain(rest)))
    }
}

/// A body with trailers; on HTTP/1 in chunks.
fn followed(bytes: Bytes, trailers: http::HeaderMap) -> Body {
    let data = (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)));
    let frames = data.into_iter().chain([Ok(Frame::trailers(trailers))]);
    BodyExt::boxed_unsync(StreamBody::new(stream::iter(frames)))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(Broken::from).boxed_unsync()
}

/// The connection, or the stream, ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the recording has no answer here either")]
struct Broken;

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

fn missing(why: &str) -> http::Response<Body> {
    let mut response = http::Response::new(whole(Bytes::from(format!("retryscope --answer-from: {why}.\n"))));
    *response.status_mut() = MISSING;
    response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b"Not in the recording"));
    response.headers_mut().insert(HEADER, HeaderValue::from_static("none"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// A field that can be sent.
fn field((name, value): (&[u8], &[u8])) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// What makes requests the same, but for their bodies.
fn key(request: &Request) -> String {
    let target = redact::url(&request.target);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = stable_query(query);
    let query: Vec<_> = query.into_iter().map(String::from_utf8_lossy).collect();
    let authority = request.authority.to_ascii_lowercase();
    let authority = authority.strip_suffix(":443").unwrap_or(&authority);
    format!("{} {authority}{path}?{}", request.method, query.join("&"))
}

impl What {
    fn of(recorded: &Recorded) -> Self {
        let attempt = &recorded.attempt;
        let Some(answer) = recorded.answer().filter(|_| attempt.failure.is_none() || attempt.injected.is_some()) else {
            return What::Broken;
        };
        let to_head = &*attempt.request.method == "HEAD";
        let silent = to_head || matches!(answer.status, 204 | 304);
        let body = match recorded.response_body.whole() {
            Some(body) => body.clone(),
            None if silent || attempt.received == 0 => Bytes::new(),
            None => return What::Bodiless,
        };
        let mut response = http::Response::new(body);
        let Ok(status) = StatusCode::from_u16(answer.status) else { return What::Broken };
        *response.status_mut() = status;
        if let Ok(reason) = hyper::ext::ReasonPhrase::try_from(answer.reason.clone().into_bytes()) {
            response.extensions_mut().insert(reason);
        }
        let trailers = attempt.trailers.as_ref().map(|it| &it.response).filter(|it| !it.is_empty() && !silent);
        let trailers: Option<http::HeaderMap> = trailers.map(|fields| fields.iter().filter_map(field).collect());
        if let Some(trailers) = &trailers {
            // Without it, they would not be sent on HTTP/1.
            let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
            response
                .headers_mut()
                .extend(HeaderValue::from_str(&names.join(", ")).ok().map(|it| (header::TRAILER, it)));
        }
        for (name, value) in answer.headers.iter().filter_map(field) {
            let of_the_body = (name == header::CONTENT_LENGTH && !silent)
                || (name == header::CONTENT_ENCODING && recorded.response_body.decoded);
            if !of_the_body && !OF_THE_CONNECTION.contains(&name.as_str()) {
                response.headers_mut().append(name, value);
            }
        }
        What::Response(Box::new((response, trailers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Headers, record};

    fn answers(lines: &[&str]) -> Answers {
        Answers::new(&record::load(lines.join("\n").as_bytes()).expect("a recording"), Missing::Error)
    }

    fn request(method: &str, target: &str) -> Request {
        Request {
            method: method.into(),
            authority: "a.test".into(),
            target: target.into(),
            headers: Headers::default(),
        }
    }

    fn status(answers: &Answers, method: &str, target: &str, body: &str) -> Option<u16> {
        let answer = answers.find(&request(method, target), Some(body.as_bytes()))?;
        match &answer.what {
            What::Response(given) => Some(given.0.status().as_u16()),
            What::Broken => Some(0),
            What::Bodiless => None,
        }
    }

    #[test]
    fn in_the_order_of_the_recording_the_last_again() {
        let it = answers(&[
            r#"{"url":"https://a.test/x?b=1&a=2","time":"2026-01-01T00:00:01Z","status":503,"response_body":"no"}"#,
            r#"{"url":"https://A.test:443/x?a=2&b=1&X-Amz-Signature=REDACTED","time":"2026-01-01T00:00:02Z","status":200,"response_body":"yes"}"#,
        ]);
        let next = || status(&it, "GET", "/x?a=2&X-Amz-Signature=new&b=1", "");
        assert_eq!([next(), next(), next()], [Some(503), Some(200), Some(200)]);
        assert_eq!((status(&it, "PUT", "/x?a=2&b=1", ""), status(&it, "GET", "/x", "")), (None, None));
    }

    #[test]
    fn bodies_tell_requests_apart_where_they_are_known() {
        let it = answers(&[
            r#"{"url":"https://a.test/","method":"POST","request_body":"one","status":201,"response_body":""}"#,
            r#"{"url":"https://a.test/","method":"POST","request_body":"password=REDACTED","status":202,"response_body":""}"#,
        ]);
        assert_eq!(status(&it, "POST", "/", "one"), Some(201));
        assert_eq!(status(&it, "POST", "/", "password=mine"), Some(202));
        assert_eq!(status(&it, "POST", "/", "two"), None);
    }

    #[test]
    fn what_is_not_there_is_not_made_up() {
        let it = answers(&[
            r#"{"url":"https://a.test/long","status":200,"received":9}"#,
            r#"{"url":"https://a.test/cut","status":200,"received":9,"response_body":{"text":"a","missing":8}}"#,
            r#"{"url":"https://a.test/empty","status":204,"received":0}"#,
            r#"{"url":"https://a.test/reset","failure":"reset"}"#,
            r#"{"url":"https://a.test/left","failure":"cancelled"}"#,
        ]);
        let all = ["/long", "/cut", "/empty", "/reset", "/left"].map(|target| status(&it, "GET", target, ""));
        assert_eq!(all, [None, None, Some(204), Some(0), None]);
        assert!(
            it.find(&request("GET", "/long"), Some(b"")).is_some()
                && it.find(&request("GET", "/left"), Some(b"")).is_none()
        );
    }
}
