//! Connections to the page, bounded in number and in the time that a request
//! may take to come.
use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower_service::Service;

use super::guard::CameTo;

/// How many connections are open at once; the others wait in the kernel's
/// queue. A browser opens six.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take, and a connection be silent.
const HEAD: Duration = Duration::from_secs(15);
/// The longest head, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Between tries to accept while the system is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    let mut full = false;
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(one(stream, router.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "the page could not accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
        // Said once, however often it happens.
        if !full && connections.len() >= MAX_CONNECTIONS {
            full = true;
            tracing::warn!("the page has {MAX_CONNECTIONS} connections open; others wait until some have closed");
        }
    }
}

async fn one(stream: TcpStream, router: Router) {
    if let Err(error) = exchange(stream, router).await {
        tracing::debug!(%error, "a connection to the page has ended");
    }
}

async fn exchange(stream: TcpStream, router: Router) -> io::Result<()> {
    let came_to: SocketAddr = stream.local_addr()?;
    stream.set_nodelay(true)?;
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(CameTo(came_to));
        // A router is always ready.
        router.clone().call(Request::from(request))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}
