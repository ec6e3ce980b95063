//! What a client talks to: an HTTPS server that answers by a handler, and
//! keeps every request it received as a line of text.
//!
//! A line has the method, the target, the protocol's version, every header
//! field in its order, and the body's length and digest; values that differ
//! from one direct run to the next are masked. Two runs were alike to the
//! server if their lines are equal.
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

use crate::common::{self, NAME, TestCa, ca::Leaf, own_listener, sha256};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Header fields whose values differ from run to run: times, signatures over
/// them, and random names.
const MASKED: [&str; 8] = [
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "authorization",
    "date",
    "npm-session",
    "sec-websocket-key",
    "x-amz-date",
    "x-retryscope-rule",
];

/// An answer, before it is one of hyper's.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(&'static str, &'static str)>,
}

impl Answer {
    pub(crate) fn ok(kind: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Self { status: 200, headers, body: body.into(), trailers: Vec::new() }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), trailers: Vec::new() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// From a request and its body to an answer.
pub(crate) type Handler = Box<dyn Fn(&Parts, &Bytes) -> Answer + Send + Sync>;

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    runtime: Option<Runtime>,
}

impl Site {
    pub(crate) fn start(ca: &TestCa, handler: Handler) -> Self {
        let listener = own_listener(443);
        let address = listener.local_addr().expect("a bound address");
        listener.set_nonblocking(true).expect("non-blocking");
        let tls = TlsAcceptor::from(ca.server(Leaf::Good, &[NAME], &[address.ip()], &["h2", "http/1.1"]));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler = Arc::new(handler);
        let runtime = common::wire::runtime();
        let lines = Arc::clone(&seen);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registering the listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, lines, handler) = (tls.clone(), Arc::clone(&lines), Arc::clone(&handler));
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    // A client that does not trust is the client's business.
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(move |request| serve(request, Arc::clone(&lines), Arc::clone(&handler)));
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, runtime: Some(runtime) }
    }

    /// What was received since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().expect("not poisoned"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(
    request: Request<Incoming>,
    lines: Arc<Mutex<Vec<String>>>,
    handler: Arc<Handler>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let collected = body.collect().await.ok();
    let trailers = collected.as_ref().and_then(|body| body.trailers().map(fields)).unwrap_or_default();
    let body = collected.map(http_body_util::Collected::to_bytes);
    lines.lock().expect("not poisoned").push(line(&head, body.as_ref(), &trailers));
    let body = body.unwrap_or_default();
    // A handler may wait for a program.
    let answer = tokio::task::spawn_blocking(move || handler(&head, &body)).await;
    Ok(answer.map_or_else(|_| response(Answer::status(500)), response))
}

fn line(head: &Parts, body: Option<&Bytes>, trailers: &str) -> String {
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = body.map_or_else(|| "broken off".into(), |body| format!("{} {}", body.len(), sha256(body)));
    format!("{} {target} {:?} [{}] {body} [{trailers}]", head.method, head.version, fields(&head.headers))
}

fn fields(map: &HeaderMap) -> String {
    let fields = map.iter().map(|(name, value)| {
        let masked = MASKED.contains(&name.as_str());
        let value = if masked { "…".into() } else { common::show(value.as_bytes()) };
        format!("{name}: {value}")
    });
    fields.collect::<Vec<_>>().join("; ")
}

fn response(answer: Answer) -> Response<Body> {
    let mut response = Response::new(if answer.trailers.is_empty() {
        Full::from(answer.body).boxed_unsync()
    } else {
        let trailers = answer
            .trailers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().expect("a name"), value.parse().expect("a value")));
        let frames = [Frame::data(Bytes::from(answer.body)), Frame::trailers(trailers.collect())];
        StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed_unsync()
    });
    *response.status_mut() = StatusCode::from_u16(answer.status).expect("a status");
    for (name, value) in answer.headers {
        let name = name.parse::<http::HeaderName>().expect("a name");
        response.headers_mut().append(name, value.parse().expect("a value"));
    }
    response
}
