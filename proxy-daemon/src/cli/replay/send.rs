//! Requests out of a recording, on their way again.
//!
//! In: a recorded attempt. Out: its request as it can be sent, or why it
//! cannot; then what came. Connections are kept for as long as they last: of
//! HTTP/2 one for each host, of HTTP/1 as many as are in use at a time.
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::{
    Given,
    compare::{Answer, Came},
};
use crate::{
    cli::Failure,
    flow::{Headers, MAX_CONTENT, Protocol, record::Recorded, redact::REDACTED},
    proxy::Routes,
    tls::{ClientHello, Upstream},
};

/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(30);
/// How long an answer may take, whole.
const ANSWERING: Duration = Duration::from_secs(120);

/// Fields of a connection, and those that go with the body as it is sent.
const OF_THE_CONNECTION: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A request that can be sent.
#[derive(Debug)]
pub(super) struct Request {
    protocol: Protocol,
    host: String,
    port: u16,
    head: http::Request<()>,
    body: Bytes,
    /// What was left out of the recording, and so of this.
    pub(super) without: Vec<String>,
}

/// As it was, but for what the recording does not have.
pub(super) fn request(recorded: &Recorded, given: &Given) -> Result<Request, &'static str> {
    let attempt = &recorded.attempt;
    let it = &attempt.request;
    if &*it.method == "CONNECT" {
        return Err("these are connections that could not be made, without a request");
    }
    let body = &recorded.request_body;
    let body_bytes = match body.whole() {
        Some(bytes) => bytes.clone(),
        None => return Err("their bodies are not in the recording, or not whole (--save-bodies)"),
    };
    if body_bytes.windows(REDACTED.len()).any(|part| part == REDACTED.as_bytes()) {
        return Err("secrets were left out of their bodies (--save-secrets keeps them)");
    }
    let mut without = Vec::new();
    let target = target(&it.target, &mut without);
    let authority: http::uri::Authority = it.authority.parse().map_err(|_| UNSPEAKABLE)?;
    let port = authority.port_u16().unwrap_or(443);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let uri = match attempt.protocol {
        Protocol::Http2 => Uri::builder().scheme("https").authority(authority).path_and_query(target).build(),
        Protocol::Http10 | Protocol::Http11 => Uri::builder().path_and_query(target).build(),
    };
    let mut head = http::Request::new(());
    *head.uri_mut() = uri.map_err(|_| UNSPEAKABLE)?;
    *head.method_mut() = it.method.parse().map_err(|_| UNSPEAKABLE)?;
    *head.version_mut() = match attempt.protocol {
        Protocol::Http10 => Version::HTTP_10,
        Protocol::Http11 => Version::HTTP_11,
        Protocol::Http2 => Version::HTTP_2,
    };
    if attempt.protocol != Protocol::Http2 {
        let value = HeaderValue::from_str(&it.authority).map_err(|_| UNSPEAKABLE)?;
        head.headers_mut().insert(header::HOST, value);
    }
    for (name, value) in it.headers.iter() {
        let (name, value) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(UNSPEAKABLE) };
        let decoded = body.decoded && name == header::CONTENT_ENCODING;
        if OF_THE_CONNECTION.contains(&name.as_str()) || given.contains_key(&name) || decoded {
            continue;
        }
        if value.as_bytes().windows(REDACTED.len()).any(|part| part == REDACTED.as_bytes()) {
            without.push(name.as_str().to_owned());
            continue;
        }
        head.headers_mut().append(name, value);
    }
    for (name, value) in given {
        head.headers_mut().insert(name, value.clone());
    }
    Ok(Request { protocol: attempt.protocol, host, port, head, body: body_bytes, without })
}

const UNSPEAKABLE: &str = "their heads have something in them that cannot be sent";

/// Without pairs of the query that were left out of the recording.
fn target(target: &str, without: &mut Vec<String>) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((name, REDACTED)) => without.push(format!("{name} in the URL")),
            _ => kept.push(pair),
        }
    }
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

pub(super) struct Sender {
    upstream: Upstream,
    routes: Routes,
    /// Everything goes there.
    to: Option<SocketAddr>,
    /// Of HTTP/1: those that are not in use.
    idle: Mutex<HashMap<Place, Vec<http1::SendRequest<Full<Bytes>>>>>,
    /// Of HTTP/2. Each is made once, while others wait for it.
    shared: tokio::sync::Mutex<HashMap<Place, http2::SendRequest<Full<Bytes>>>>,
}

type Place = (String, u16);

impl Sender {
    pub(super) async fn new(upstream: Upstream, routes: Routes, to: Option<&str>) -> Result<Self, Failure> {
        let to = match to {
            None => None,
            Some(to) => {
                let found = tokio::net::lookup_host(to).await;
                let wrong = |why: String| Failure::usage(format!("--to {to}: {why}; write it as HOST:PORT"));
                Some(
                    found
                        .map_err(|error| wrong(error.to_string()))?
                        .next()
                        .ok_or_else(|| wrong("no address".into()))?,
                )
            }
        };
        Ok(Self { upstream, routes, to, idle: Mutex::default(), shared: tokio::sync::Mutex::default() })
    }

    /// Sends it, and takes the answer in.
    pub(super) async fn send(&self, request: &Request) -> Answer {
        // A connection that was kept may have been closed meanwhile: once more
        // on a new one, where nothing of an answer had come.
        for again in [true, false] {
            let (mut connection, kept) = match self.connection(request, again).await {
                Ok(connection) => connection,
                Err(why) => return Answer::Failed(why),
            };
            match exchange(&mut connection, request).await {
                Ok(came) => {
                    self.keep(request, connection);
                    return Answer::Came(came);
                }
                Err((_, false)) if kept && again => {}
                Err((why, _)) => return Answer::Failed(why),
            }
        }
        Answer::Failed("no connection lasts".into())
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Place, Vec<http1::SendRequest<Full<Bytes>>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection, and whether others have used it before.
    async fn connection(&self, request: &Request, used: bool) -> Result<(Connection, bool), String> {
        let place = (request.host.clone(), request.port);
        if request.protocol != Protocol::Http2 {
            if used && let Some(idle) = self.idle().get_mut(&place).and_then(Vec::pop) {
                return Ok((Connection::One(idle), true));
            }
            return Ok((self.connect(request).await?, false));
        }
        let mut shared = self.shared.lock().await;
        if let Some(open) = shared.get(&place).filter(|open| !open.is_closed()) {
            return Ok((Connection::Two(open.clone()), true));
        }
        let made = self.connect(request).await?;
        if let Connection::Two(made) = &made {
            shared.insert(place, made.clone());
        }
        Ok((made, false))
    }

    fn keep(&self, request: &Request, connection: Connection) {
        if let Connection::One(idle) = connection {
            self.idle().entry((request.host.clone(), request.port)).or_default().push(idle);
        }
    }

    async fn connect(&self, request: &Request) -> Result<Connection, String> {
        tokio::time::timeout(CONNECTING, self.connected(request))
            .await
            .unwrap_or_else(|_| Err("no connection in time".into()))
    }

    async fn connected(&self, request: &Request) -> Result<Connection, String> {
        let (host, port) = (request.host.as_str(), request.port);
        let address = match self.to.or_else(|| self.routes.mapped(host, port)) {
            Some(address) => address,
            None => {
                let found = tokio::net::lookup_host((host, port)).await;
                let found = found.map_err(|error| format!("{host} cannot be found ({error})"))?.next();
                found.ok_or_else(|| format!("{host} has no address"))?
            }
        };
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("no connection to {address} ({error})"))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name of a host"))?;
        let two = request.protocol == Protocol::Http2;
        let hello = ClientHello {
            server_name: matches!(name, ServerName::DnsName(_)).then(|| host.to_owned()),
            alpn: vec![if two { b"h2".to_vec() } else { b"http/1.1".to_vec() }],
            ..ClientHello::default()
        };
        let (greeted, asked) = self.upstream.greet(stream, name, &hello).await;
        let stream = TokioIo::new(greeted.map_err(|error| crate::tls::explain(&error, host, &asked))?);
        if two {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| said(&error))?;
            tokio::spawn(connection);
            return Ok(Connection::Two(sender));
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(|error| said(&error))?;
        tokio::spawn(connection);
        Ok(Connection::One(sender))
    }
}

fn said(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// `Err`: why, and whether anything of an answer had come.
async fn exchange(connection: &mut Connection, request: &Request) -> Result<Came, (String, bool)> {
    let head = request.head.clone();
    let (parts, ()) = head.into_parts();
    let message = http::Request::from_parts(parts, Full::new(request.body.clone()));
    let answering = async {
        let sent = match connection {
            Connection::One(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(message).await,
                Err(error) => Err(error),
            },
            Connection::Two(sender) => match sender.ready().await {
                Ok(()) => sender.send_request(message).await,
                Err(error) => Err(error),
            },
        };
        let response = sent.map_err(|error| (said(&error), false))?;
        let (parts, mut body) = response.into_parts();
        let headers =
            Headers::copied(parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())));
        let (mut kept, mut length) = (BytesMut::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| (format!("the answer broke off: {}", said(&error)), true))?;
            if let Some(data) = frame.data_ref() {
                length += data.len() as u64;
                let room = MAX_CONTENT.saturating_sub(kept.len());
                kept.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        Ok(Came { status: parts.status.as_u16(), headers, body: kept.freeze(), length })
    };
    let late = |_| Err((io::Error::from(io::ErrorKind::TimedOut).to_string(), true));
    tokio::time::timeout(ANSWERING, answering).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::record;

    fn recorded(line: &str) -> Recorded {
        record::load(line.as_bytes()).expect("a recording").attempts.pop().expect("one")
    }

    #[test]
    fn credentials_that_were_left_out_are_not_made_up() {
        let it = recorded(
            r#"{"url":"https://a.test/k?a=1&X-Amz-Signature=REDACTED","protocol":"h2","request_headers":{"authorization":"Bearer REDACTED","x-api-key":"REDACTED","x-a":"1"}}"#,
        );
        let given = Given::from_iter([(HeaderName::from_static("x-api-key"), HeaderValue::from_static("mine"))]);
        let request = request(&it, &given).expect("a request");
        assert_eq!(request.without, ["X-Amz-Signature in the URL", "authorization"]);
        assert_eq!(request.head.uri(), "https://a.test/k?a=1");
        let names: Vec<_> =
            request.head.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(names, [("x-a", &b"1"[..]), ("x-api-key", b"mine")]);
    }

    #[test]
    fn what_is_not_there_whole_is_not_sent() {
        let none = Given::new();
        let cut = r#"{"url":"https://a.test/","method":"PUT","request_body":{"text":"a","missing":3}}"#;
        assert!(request(&recorded(cut), &none).expect_err("cut").contains("not whole"));
        let secret = r#"{"url":"https://a.test/","method":"PUT","request_body":"password=REDACTED"}"#;
        assert!(request(&recorded(secret), &none).expect_err("secret").contains("secrets"));
        let connect = r#"{"url":"https://a.test","method":"CONNECT"}"#;
        assert!(request(&recorded(connect), &none).expect_err("no request").contains("connections"));
        let length = r#"{"url":"https://a.test/","method":"PUT","request_headers":{"Content-Length":"1","Host":"a.test"},"request_body":"x"}"#;
        let sent = request(&recorded(length), &none).expect("a request");
        assert_eq!((sent.head.headers().len(), &sent.body[..]), (1, &b"x"[..]));
    }
}
