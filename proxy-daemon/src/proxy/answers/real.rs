//! What a recording does not have, asked of the real upstream.
//!
//! In: a connection's requests, one after the other or side by side. Out: the
//! upstream's answers, streamed. One upstream connection for each client
//! connection, made with the first request that needs it, and again where it
//! has ended. Heads are written anew.
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Uri, Version, header, uri::PathAndQuery};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Mutex, task::JoinSet};
use tokio_rustls::client::TlsStream;

use super::{Broken, OF_THE_CONNECTION};

/// A body under way, in either direction.
pub(super) type Body = UnsyncBoxBody<Bytes, Broken>;
/// Makes a connection to the upstream that the client meant.
pub(in crate::proxy) type Connector =
    Box<dyn Fn() -> BoxFuture<'static, std::io::Result<TlsStream<TcpStream>>> + Send + Sync>;

#[derive(Clone)]
enum Sender {
    One,
    Two(http2::SendRequest<Body>),
}

#[derive(Default)]
struct State {
    one: Option<http1::SendRequest<Body>>,
    two: Option<http2::SendRequest<Body>>,
    /// What drives the connections; ends with the client's.
    tasks: JoinSet<()>,
}

pub(super) struct Real {
    connect: Connector,
    state: Mutex<State>,
}

impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Real").finish_non_exhaustive()
    }
}

impl Real {
    pub(super) fn new(connect: Connector) -> Self {
        Self { connect, state: Mutex::default() }
    }

    /// Asks, and gives the answer as it comes.
    pub(super) async fn ask(&self, request: http::Request<Body>, name: &str) -> Result<http::Response<Body>, Broken> {
        let mut state = self.state.lock().await;
        let response = match self.sender(&mut state).await? {
            Sender::Two(mut two) => {
                // Side by side.
                drop(state);
                let request = in_two(request, name)?;
                two.ready().await.map_err(|_| Broken)?;
                two.send_request(request).await
            }
            Sender::One => {
                let Some(one) = state.one.as_mut() else { return Err(Broken) };
                one.send_request(in_one(request, name)?).await
            }
        };
        let response = response.map_err(|error| {
            tracing::debug!(%error, "the upstream did not answer");
            Broken
        })?;
        let mut response = response.map(|body| body.map_err(|_| Broken).boxed_unsync());
        without_hops(response.headers_mut());
        Ok(response)
    }

    /// A connection on which a request can be sent.
    async fn sender(&self, state: &mut State) -> Result<Sender, Broken> {
        if let Some(two) = state.two.as_ref().filter(|two| !two.is_closed()) {
            return Ok(Sender::Two(two.clone()));
        }
        if let Some(one) = &mut state.one
            && one.ready().await.is_ok()
        {
            return Ok(Sender::One);
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::debug!(%error, "the upstream cannot be asked");
            Broken
        };
        let stream = (self.connect)().await.map_err(|error| failed(&error))?;
        let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if two {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.map_err(|error| failed(&error))?;
            state.tasks.spawn(async move { drop(connection.await) });
            state.two = Some(sender.clone());
            return Ok(Sender::Two(sender));
        }
        let builder = http1::Builder::new().preserve_header_case(true).handshake(io);
        let (sender, connection) = builder.await.map_err(|error| failed(&error))?;
        state.tasks.spawn(async move { drop(connection.await) });
        state.one = Some(sender);
        Ok(Sender::One)
    }
}

/// Fields of a connection stay on it.
fn without_hops(headers: &mut http::HeaderMap) {
    for name in OF_THE_CONNECTION.iter().filter(|name| !["date", "te", "trailer"].contains(*name)) {
        headers.remove(*name);
    }
    headers.remove(header::EXPECT);
}

fn authority(request: &http::Request<Body>, name: &str) -> String {
    let host = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(http::uri::Authority::as_str).or_else(host).unwrap_or(name).to_owned()
}

fn in_one(mut request: http::Request<Body>, name: &str) -> Result<http::Request<Body>, Broken> {
    let authority = authority(&request, name);
    without_hops(request.headers_mut());
    if !request.headers().contains_key(header::HOST) {
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(&authority).map_err(|_| Broken)?);
    }
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = Version::HTTP_11;
    Ok(request)
}

fn in_two(mut request: http::Request<Body>, name: &str) -> Result<http::Request<Body>, Broken> {
    let authority = authority(&request, name);
    without_hops(request.headers_mut());
    request.headers_mut().remove(header::HOST);
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme("https").authority(authority).path_and_query(target).build();
    *request.uri_mut() = uri.map_err(|_| Broken)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(request)
}
