//! Metrics and traces to an OpenTelemetry collector: OTLP over HTTP, in
//! protobuf.
//!
//! In: the metrics' families, every so often, and ended attempts. Out: a
//! POST for each batch. A trace is a call: a span for it, one for each attempt
//! and one for each wait.
//!
//! The messages are the official ones (`opentelemetry-proto`). The SDK is not
//! used: its histograms are made of single values, while the ledger has them
//! ready; and its HTTP clients bring sockets of their own, which the redirect
//! would send back to this daemon where it lives in the target's cgroup.
//!
//! A collector that is slow or gone costs the target nothing: batches wait in
//! a bounded queue and are tried again with growing pauses; what there is no
//! room for is dropped, and counted.
mod calls;
mod encode;
mod program;
mod push;
mod settings;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use calls::{Call, Calls};
use encode::Encoder;
use push::Pusher;
pub use settings::{Settings, SettingsError};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval_at},
};

use super::metrics::Metrics;
use crate::proxy::{Account, Gate, Subscription};

/// Attempts that may wait to be taken in.
const ROOM: usize = 8192;
/// Batches that may wait to be sent.
const QUEUE: usize = 64;
/// Calls in one batch, about.
const BATCH: usize = 256;
/// Spans are no older than this when they are sent first.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the end waits for the collector to take the rest.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Metrics,
    Traces,
}

#[derive(Clone, Debug)]
struct Batch {
    signal: Signal,
    body: Bytes,
    /// Data points, or spans.
    items: u64,
}

/// It ends once the feed is closed and everything is sent.
#[derive(Debug)]
pub struct Otlp {
    gathering: JoinHandle<()>,
    pushing: JoinHandle<()>,
    closing: watch::Sender<bool>,
    dropped: Arc<AtomicU64>,
}

impl Otlp {
    pub fn start(settings: Settings, account: &Arc<Account>, gate: &Arc<dyn Gate>) -> Self {
        let (queue, batches) = mpsc::channel(QUEUE);
        let closing = watch::Sender::new(false);
        let dropped = Arc::new(AtomicU64::new(0));
        let gatherer = Gatherer {
            account: Arc::clone(account),
            gate: Arc::clone(gate),
            metrics: Metrics::here(),
            encoder: Encoder::new(account.clock),
            calls: Calls::default(),
            ready: Vec::new(),
            queue,
            dropped: Arc::clone(&dropped),
        };
        let interval = settings.interval;
        let pusher = Pusher::new(settings, Arc::clone(gate), Arc::clone(&dropped));
        let subscription = account.feed.subscribe(ROOM);
        Self {
            gathering: tokio::spawn(gatherer.run(subscription, interval)),
            pushing: tokio::spawn(pusher.run(batches, closing.subscribe())),
            closing,
            dropped,
        }
    }

    /// To be called once the feed is closed.
    pub async fn finish(mut self) {
        let rest = async {
            let _ = (&mut self.gathering).await;
            self.closing.send_replace(true);
            let _ = (&mut self.pushing).await;
        };
        let late = tokio::time::timeout(PATIENCE, rest).await.is_err();
        self.gathering.abort();
        self.pushing.abort();
        let dropped = self.dropped.load(Ordering::Relaxed);
        if late || dropped > 0 {
            tracing::warn!(dropped, late, "the OTLP collector did not get everything");
        }
    }
}

struct Gatherer {
    account: Arc<Account>,
    gate: Arc<dyn Gate>,
    metrics: Metrics,
    encoder: Encoder,
    calls: Calls,
    /// Calls that have come to an end.
    ready: Vec<Call>,
    queue: mpsc::Sender<Batch>,
    dropped: Arc<AtomicU64>,
}

impl Gatherer {
    async fn run(mut self, mut subscription: Subscription, interval: Duration) {
        let now = tokio::time::Instant::now();
        let [mut flush, mut measure] = [FLUSH, interval].map(|period| {
            let mut ticks = interval_at(now + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        loop {
            tokio::select! {
                attempt = subscription.next() => {
                    let Some(attempt) = attempt else { break };
                    self.ready.extend(self.calls.add(attempt));
                    if self.ready.len() >= BATCH {
                        self.traces();
                    }
                }
                _ = flush.tick() => {
                    self.ready.extend(self.calls.expire(self.encoder.now()));
                    self.traces();
                }
                _ = measure.tick() => self.metrics(),
            }
        }
        self.ready.extend(self.calls.drain());
        self.traces();
        self.metrics();
        self.dropped.fetch_add(subscription.dropped(), Ordering::Relaxed);
        if self.calls.cut() > 0 {
            tracing::warn!(
                calls = self.calls.cut(),
                "some calls' traces were sent before their end: too many were open"
            );
        }
    }

    fn traces(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for calls in ready.chunks(BATCH) {
            let (body, items) = self.encoder.traces(calls);
            self.send(Batch { signal: Signal::Traces, body, items });
        }
    }

    fn metrics(&mut self) {
        let account = &self.account;
        let snapshot = account.ledger().snapshot(account.clock.now());
        let families = self.metrics.collect(&snapshot, &account.rules.list(), &self.gate.counters());
        let (body, items) = self.encoder.metrics(&families);
        self.send(Batch { signal: Signal::Metrics, body, items });
    }

    fn send(&self, batch: Batch) {
        if let Err(mpsc::error::TrySendError::Full(batch) | mpsc::error::TrySendError::Closed(batch)) =
            self.queue.try_send(batch)
        {
            self.dropped.fetch_add(batch.items, Ordering::Relaxed);
        }
    }
}
