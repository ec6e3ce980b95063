//! The bench's upstream: answers that cost little to make, over HTTP/1.1 and
//! HTTP/2.
//!
//! | path | answer |
//! |---|---|
//! | `/small` | 100 bytes |
//! | `/bytes/N` | N bytes with their length; `?chunked` leaves the length out |
//! | `/sink` | swallows the body, says how many bytes it had |
//! | `/hash` | the same, with the body's SHA-256 |
//! | `/status/N` | that status, with an empty body |
use std::{convert::Infallible, fmt::Write, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::{certificates::Identity, net::Listen};

const BLOCK: usize = 64 * 1024;
static SMALL: [u8; 100] = [b'.'; 100];
static PATTERN: [u8; BLOCK] = pattern();

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    identity: Identity,
}

type Body = BoxBody<Bytes, Infallible>;

pub(crate) async fn run(options: Options) -> Result<()> {
    let tls = TlsAcceptor::from(Arc::new(options.identity.server(&[b"h2", b"http/1.1"])?));
    let http = auto::Builder::new(TokioExecutor::new());
    options
        .listen
        .accept(|stream| {
            let (tls, http) = (tls.clone(), http.clone());
            async move {
                if let Ok(stream) = tls.accept(stream).await {
                    let _ = http.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                }
            }
        })
        .await
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path();
    if path == "/small" {
        return Ok(response(StatusCode::OK, Full::from(&SMALL[..]).boxed()));
    }
    if let Some(length) = path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
        let mut response = response(StatusCode::OK, bytes(length));
        if request.uri().query() != Some("chunked") {
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        return Ok(response);
    }
    if let Some(status) = path.strip_prefix("/status/").and_then(|status| status.parse().ok()) {
        return Ok(response(status, Full::default().boxed()));
    }
    let hashed = match path {
        "/sink" => false,
        "/hash" => true,
        _ => return Ok(response(StatusCode::NOT_FOUND, Full::from("no such path\n").boxed())),
    };

    let (mut length, mut hasher) = (0, Sha256::new());
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            length += data.len();
            if hashed {
                hasher.update(data);
            }
        }
    }
    let told = if hashed {
        let sha256 = hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        serde_json::json!({ "bytes": length, "sha256": sha256 })
    } else {
        serde_json::json!({ "bytes": length })
    };
    Ok(response(StatusCode::OK, Full::from(told.to_string()).boxed()))
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// `length` bytes of a fixed pattern, a block at a time.
fn bytes(length: u64) -> Body {
    let blocks = stream::unfold(length, |left| async move {
        let now = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        (now > 0).then(|| (Ok(Frame::data(Bytes::from_static(&PATTERN[..now]))), left - now as u64))
    });
    BodyExt::boxed(StreamBody::new(blocks))
}

/// Bytes that a shift, a repeat or a cut would change.
const fn pattern() -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let (mut state, mut at) = (1_u32, 0);
    while at < BLOCK {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        block[at] = (state >> 24) as u8;
        at += 1;
    }
    block
}
