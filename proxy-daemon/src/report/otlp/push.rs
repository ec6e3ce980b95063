//! The POSTs: one connection, kept; tries again where OTLP says so.
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    metrics::v1::ExportMetricsServiceResponse, trace::v1::ExportTraceServiceResponse,
};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Batch, Settings, Signal};
use crate::{
    proxy::{Gate, connect},
    redirect::Network,
};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between the tries of a batch: from the first, doubled, to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

type Sender = SendRequest<Full<Bytes>>;

pub(super) struct Pusher {
    settings: Settings,
    gate: Arc<dyn Gate>,
    connection: Option<Sender>,
    /// Drives the connection.
    driving: JoinSet<()>,
    dropped: Arc<AtomicU64>,
    warned: bool,
}

#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer in time")]
    TimedOut,
    /// To be tried again, not before the time that was asked for.
    #[error("it answered {0}")]
    Busy(StatusCode, Duration),
    #[error("it answered {0}; what was sent is lost")]
    Refused(StatusCode),
}

impl Pusher {
    pub(super) fn new(settings: Settings, gate: Arc<dyn Gate>, dropped: Arc<AtomicU64>) -> Self {
        Self { settings, gate, connection: None, driving: JoinSet::new(), dropped, warned: false }
    }

    /// Sends everything that comes. Once `closing` is true nothing is tried
    /// again.
    pub(super) async fn run(mut self, mut batches: mpsc::Receiver<Batch>, mut closing: watch::Receiver<bool>) {
        while let Some(batch) = batches.recv().await {
            let mut pause = FIRST_PAUSE;
            loop {
                // Read before the try: a try that began before the end is
                // followed by a last one.
                let last = *closing.borrow();
                let error = match self.push(&batch).await {
                    Ok(()) => break,
                    Err(error) => error,
                };
                self.note(&error);
                let asked = match error {
                    PushError::Refused(_) => None,
                    PushError::Busy(_, asked) => Some(asked),
                    _ => Some(Duration::ZERO),
                };
                let Some(asked) = asked.filter(|_| !last) else {
                    self.dropped.fetch_add(batch.items, Ordering::Relaxed);
                    break;
                };
                tokio::select! {
                    () = sleep(pause.max(asked.min(LONGEST_PAUSE))) => {}
                    // A sender that is gone is the end as well.
                    _ = closing.wait_for(|closing| *closing) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn note(&mut self, error: &PushError) {
        self.connection = None;
        let to = format!("{}:{}", self.settings.host, self.settings.port);
        if std::mem::replace(&mut self.warned, true) {
            tracing::debug!(%error, to, "the OTLP collector does not take what is sent");
        } else {
            tracing::warn!(%error, to, "the OTLP collector does not take what is sent; it is tried again, silently");
        }
    }

    async fn push(&mut self, batch: &Batch) -> Result<(), PushError> {
        timeout(TIMEOUT, self.post(batch)).await.unwrap_or(Err(PushError::TimedOut))
    }

    async fn post(&mut self, batch: &Batch) -> Result<(), PushError> {
        let kept = match self.connection.take() {
            // The collector may have closed it meanwhile: that is no failure.
            Some(mut sender) => sender.send_request(self.request(batch)?).await.ok().map(|response| (sender, response)),
            None => None,
        };
        let (sender, response) = match kept {
            Some(kept) => kept,
            None => {
                let mut sender = self.connect().await?;
                let response = sender.send_request(self.request(batch)?).await?;
                (sender, response)
            }
        };
        let (status, asked) = (response.status(), retry_after(response.headers()));
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
        self.connection = Some(sender);
        match status {
            status if status.is_success() => {
                self.dropped.fetch_add(rejected(batch.signal, &body.to_bytes()), Ordering::Relaxed);
                Ok(())
            }
            // OTLP/HTTP, "Failures": these may be tried again, no others.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(PushError::Busy(status, asked)),
            status => Err(PushError::Refused(status)),
        }
    }

    fn request(&self, batch: &Batch) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::post(self.settings.path(batch.signal))
            .header(header::HOST, self.settings.authority.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("retryscope/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(batch.body.clone())).map_err(io::Error::other)
    }

    async fn connect(&mut self) -> Result<Sender, PushError> {
        let mut failure = io::Error::other("the name has no address");
        let to = (self.settings.host.clone(), self.settings.port);
        let addresses: Vec<_> = tokio::net::lookup_host(to).await?.collect();
        for address in addresses {
            match connect(&self.gate, Network::default(), address).await {
                Ok(stream) => {
                    return match self.settings.tls.clone() {
                        None => self.handshake(stream).await,
                        Some(name) => {
                            let alpn = [b"http/1.1".to_vec()];
                            let stream = self.settings.upstream.connect(stream, name, &alpn).await?;
                            self.handshake(stream).await
                        }
                    };
                }
                Err(error) => failure = error,
            }
        }
        Err(failure.into())
    }

    async fn handshake(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Sender, PushError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.driving.shutdown().await;
        self.driving.spawn(async move {
            // How it ended is told to the request.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// In seconds; a date is no collector's way.
fn retry_after(headers: &http::HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// How much of what was sent the collector did not accept.
fn rejected(signal: Signal, body: &[u8]) -> u64 {
    let rejected = match signal {
        Signal::Metrics => ExportMetricsServiceResponse::decode(body)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| partial.rejected_data_points),
        Signal::Traces => ExportTraceServiceResponse::decode(body)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| partial.rejected_spans),
    };
    rejected.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}
