//! The metrics at an address of their own: `GET /metrics`, and nothing else.
//!
//! In: whoever can reach the address, which is of the loopback unless told
//! otherwise. Out: Prometheus' text. Nothing can be changed here.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use tokio::{net::TcpListener, task::JoinHandle};

use super::Controlled;
use crate::report::{
    metrics::{self, Metrics},
    own,
};

struct Scraped {
    controlled: Arc<Controlled>,
    metrics: Mutex<Metrics>,
}

/// The address being served; it ends when this is dropped.
#[derive(Debug)]
pub struct MetricsServer(JoinHandle<()>);

impl MetricsServer {
    pub fn start(listener: TcpListener, controlled: Arc<Controlled>) -> Self {
        let scraped = Arc::new(Scraped { controlled, metrics: Mutex::new(Metrics::here()) });
        let router = Router::new().route("/metrics", get(scrape)).with_state(scraped);
        Self(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "the metrics are no longer served");
            }
        }))
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn scrape(State(it): State<Arc<Scraped>>) -> impl IntoResponse {
    let account = &it.controlled.account;
    let now = account.clock.now();
    // One scrape after the other: each takes what has been added.
    let mut metrics = it.metrics.lock().unwrap_or_else(PoisonError::into_inner);
    let snapshot = account.ledger().snapshot(now);
    let mut families = metrics.collect(&snapshot, &account.rules.list(), &it.controlled.gate.counters());
    drop(snapshot);
    // Files of /proc: a moment.
    families.extend(own::families(&it.controlled.own()));
    let text = metrics::text(&families);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// A socket for the metrics, before anything is started.
pub fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
