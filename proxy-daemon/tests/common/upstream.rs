//! An HTTP/1.1 and HTTP/2 upstream over TLS, with routes for what tests ask
//! of a server, and a record of every request it received.
//!
//! Routes: `/bytes/N` (`?chunked` without a length), `/sink` (length and
//! digest of what came), `/echo`, `/status/N`, `/trailers`, `/empty/N` (204,
//! 304), `/drip` (never ends), `/refuse` (503 without reading the body),
//! `/together/N` (each N of them are answered once all have come).
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

use super::{NAME, TestCa, ca::Leaf, hex, own_listener, pattern, wire::runtime};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub target: String,
    pub http2: bool,
    pub headers: Vec<(String, String)>,
    pub body_length: u64,
    pub body_sha256: String,
    pub trailers: Vec<(String, String)>,
    /// Which connection, from 0.
    pub connection: usize,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    changed: Condvar,
    handshakes_failed: Mutex<Vec<String>>,
    accepted: Mutex<usize>,
    together: tokio::sync::watch::Sender<usize>,
}

pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Upstream {
    /// Named [`NAME`], good certificate, both protocols.
    pub fn start(ca: &TestCa) -> Self {
        Self::with(ca, Leaf::Good, &[NAME], &["h2", "http/1.1"])
    }

    pub fn with(ca: &TestCa, leaf: Leaf, names: &[&str], alpn: &[&str]) -> Self {
        Self::at(own_listener(443), ca, leaf, names, alpn)
    }

    pub fn at(listener: std::net::TcpListener, ca: &TestCa, leaf: Leaf, names: &[&str], alpn: &[&str]) -> Self {
        let address = listener.local_addr().expect("a bound address");
        listener.set_nonblocking(true).expect("non-blocking");
        let tls = TlsAcceptor::from(ca.server(leaf, names, &[address.ip()], alpn));
        let shared = Arc::new(Shared::default());
        let runtime = runtime();
        let state = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registering the listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, state) = (tls.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let connection = {
                        let mut accepted = state.accepted.lock().expect("not poisoned");
                        *accepted += 1;
                        *accepted - 1
                    };
                    let stream = match tls.accept(stream).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            state.handshakes_failed.lock().expect("not poisoned").push(error.to_string());
                            state.changed.notify_all();
                            return;
                        }
                    };
                    let service = service_fn(move |request| answer(request, Arc::clone(&state), connection));
                    let mut server = auto::Builder::new(TokioExecutor::new());
                    server.http1().preserve_header_case(true);
                    // What the client did to the connection is the client's business.
                    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Complete requests so far, in the order in which they ended.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("not poisoned").clone()
    }

    /// TCP connections so far.
    pub fn accepted(&self) -> usize {
        *self.shared.accepted.lock().expect("not poisoned")
    }

    /// Why handshakes failed, as this side saw it.
    pub fn handshakes_failed(&self) -> Vec<String> {
        self.shared.handshakes_failed.lock().expect("not poisoned").clone()
    }

    /// Waits for a request that satisfies `wanted`.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Received) -> bool) -> Received {
        let end = Instant::now() + super::SOON;
        let mut received = self.shared.received.lock().expect("not poisoned");
        loop {
            if let Some(found) = received.iter().find(|it| wanted(it)) {
                return found.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the upstream never received {what}, only {received:?}");
            received = self.shared.changed.wait_timeout(received, left).expect("not poisoned").0;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body without a length, in pieces of odd sizes.
fn pieces(bytes: Vec<u8>, trailers: Option<HeaderMap>) -> Body {
    let mut bytes = Bytes::from(bytes);
    let mut frames = Vec::new();
    let mut size = 1;
    while !bytes.is_empty() {
        frames.push(Ok(Frame::data(bytes.split_to(size.min(bytes.len())))));
        size = (size * 3 + 1).min(60_000);
    }
    frames.extend(trailers.map(|map| Ok(Frame::trailers(map))));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn pairs(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter().map(|(name, value)| (name.to_string(), super::show(value.as_bytes()))).collect()
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    connection: usize,
) -> Result<Response<Body>, Infallible> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut received = Received {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        http2: head.version == Version::HTTP_2,
        headers: pairs(&head.headers),
        body_length: 0,
        body_sha256: String::new(),
        trailers: Vec::new(),
        connection,
    };
    let mut echo = BytesMut::new();
    if path != "/refuse" {
        let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        while let Some(Ok(frame)) = body.frame().await {
            match frame.into_data() {
                Ok(data) => {
                    digest.update(&data);
                    received.body_length += data.len() as u64;
                    if path == "/echo" {
                        echo.extend_from_slice(&data);
                    }
                }
                Err(frame) => {
                    received.trailers = frame.trailers_ref().map(pairs).unwrap_or_default();
                }
            }
        }
        received.body_sha256 = hex(digest.finish().as_ref());
    }
    let digest = json!({"length": received.body_length, "sha256": received.body_sha256});
    shared.received.lock().expect("not poisoned").push(received);
    shared.changed.notify_all();

    let asked_for_head = head.method == http::Method::HEAD;
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|text| text.parse::<usize>().ok());
    let mut response = Response::new(full(""));
    let fields = response.headers_mut();
    fields.insert("server", HeaderValue::from_static("test upstream"));
    fields.insert("x-path", HeaderValue::from_str(&path).expect("a path is a header value"));
    fields.append("set-cookie", HeaderValue::from_static("a=1"));
    fields.append("set-cookie", HeaderValue::from_static("b=2"));
    if let Some(length) = number("/bytes/") {
        let bytes = pattern(length);
        *response.body_mut() = if head.uri.query() == Some("chunked") { pieces(bytes, None) } else { full(bytes) };
    } else if let Some(status) = number("/status/").or_else(|| number("/empty/")) {
        let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
        *response.status_mut() = status.unwrap_or(StatusCode::BAD_REQUEST);
        if path.starts_with("/status/") {
            *response.body_mut() = full(format!("this is {path}\n"));
        }
    } else if path == "/sink" {
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        *response.body_mut() = full(digest.to_string());
    } else if path == "/echo" {
        *response.body_mut() = full(echo.freeze());
    } else if path == "/trailers" {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc123"));
        trailers.insert("x-second", HeaderValue::from_static("two"));
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum, x-second"));
        *response.body_mut() = pieces(pattern(1000), Some(trailers));
    } else if path == "/drip" {
        let drops = stream::unfold(tokio::time::interval(Duration::from_millis(20)), |mut ticks| async move {
            ticks.tick().await;
            Some((Ok(Frame::data(Bytes::from_static(b"drop\n"))), ticks))
        });
        *response.body_mut() = StreamBody::new(drops).boxed_unsync();
    } else if let Some(many) = number("/together/") {
        let mut come = shared.together.subscribe();
        let mut mine = 0;
        shared.together.send_modify(|come| {
            mine = *come;
            *come += 1;
        });
        let last = (mine / many + 1) * many;
        let _ = come.wait_for(|come| *come >= last).await;
        *response.body_mut() = full("all are here\n");
    } else if path == "/refuse" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        *response.body_mut() = full("not now\n");
    } else {
        *response.body_mut() = full(format!("hello from {path}\n"));
    }
    if asked_for_head {
        // The length that a GET would have; hyper leaves the rest to its user on HTTP/2.
        let length = hyper::body::Body::size_hint(response.body()).exact().unwrap_or_default();
        response.headers_mut().insert("content-length", length.into());
        *response.body_mut() = full("");
    }
    Ok(response)
}
