//! Bodies and trailers on their way from one side to the other, no faster than
//! they are taken.
use std::{collections::VecDeque, future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::{
    STREAM_WINDOW,
    link::{Link, Side},
};
use crate::flow::Headers;

/// How long a body is waited for that somebody wants to see whole.
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// A body as far as it was read before it was passed on.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) parts: VecDeque<Bytes>,
    pub(super) length: usize,
    /// The body's data is there whole; trailers may follow.
    pub(super) ended: bool,
}

impl Ahead {
    /// Reads until the body's end, past `limit`, or for as long as patience
    /// lasts. A failure is met again by whoever reads on.
    pub(super) async fn read(&mut self, from: &mut RecvStream, limit: usize) {
        let all = async {
            // Not given back to the window before it is passed on.
            while self.length <= limit.min(STREAM_WINDOW as usize - 1) && !self.ended {
                match from.data().await {
                    Some(Ok(data)) => {
                        self.length += data.len();
                        self.parts.push_back(data);
                        self.ended = from.is_end_stream();
                    }
                    Some(Err(_)) => return,
                    None => self.ended = true,
                }
            }
        };
        // Late: whoever wanted to see it does not.
        let _ = tokio::time::timeout(BODY_PATIENCE, all).await;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn content(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.length);
        self.parts.iter().for_each(|part| content.extend_from_slice(part));
        content
    }
}

/// Which side ended a body early, and how it put it.
pub(super) enum Cut {
    Source(Reason),
    Sink(Reason),
}

/// A stream that the upstream's goodbye leaves out was not looked at: it may
/// be asked for again (RFC 9113 §8.7).
pub(super) fn reason_for(error: &h2::Error) -> Reason {
    if error.is_go_away() && error.is_remote() {
        return Reason::REFUSED_STREAM;
    }
    error.reason().unwrap_or(Reason::INTERNAL_ERROR)
}

/// Passes a body and its trailers, no faster than `to`, which leads to `side`,
/// takes them. `seen` is told of bytes before they are sent, and of the last
/// ones that they are.
pub(super) async fn pass(
    mut ahead: Ahead,
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    (link, side): (&Link, Side),
    mut seen: impl FnMut(&[u8], bool),
    trailed: impl FnOnce(Headers),
) -> Result<(), Cut> {
    let mut failed = None;
    loop {
        let data = match (ahead.parts.pop_front(), failed) {
            (Some(data), _) => data,
            (None, Some(reason)) => return Err(Cut::Source(reason)),
            (None, None) if ahead.ended => break,
            (None, None) => tokio::select! {
                data = from.data() => match data {
                    Some(Ok(data)) => data,
                    Some(Err(error)) => return Err(Cut::Source(reason_for(&error))),
                    None => break,
                },
                reset = poll_fn(|context| to.poll_reset(context)) => {
                    return Err(Cut::Sink(reset.unwrap_or(Reason::CANCEL)));
                }
            },
        };
        // Data that needs no further window goes with the end's flag.
        let last = ahead.is_empty() && failed.is_none() && from.is_end_stream();
        let length = data.len();
        seen(&data, last);
        {
            let mut sending = pin!(send(to, data, last));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => break sent?,
                    // A reset is not held up by a window: what comes before it
                    // is taken as far as the source's own window goes.
                    next = from.data(), if !ahead.ended && failed.is_none() => match next {
                        Some(Ok(data)) => ahead.parts.push_back(data),
                        Some(Err(error)) => failed = Some(reason_for(&error)),
                        None => ahead.ended = true,
                    },
                    () = flushed(link, side), if failed.is_some() => {
                        return Err(Cut::Source(failed.unwrap_or(Reason::CANCEL)));
                    }
                }
            }
        }
        // The window opens once the other side has taken what came.
        let _ = from.flow_control().release_capacity(length);
        if last {
            return Ok(());
        }
    }
    let trailers = from.trailers().await;
    if let Ok(Some(trailers)) = &trailers {
        trailed(Headers::copied(trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))));
    }
    if trailers.is_ok() {
        seen(&[], true);
    }
    match trailers {
        Ok(Some(trailers)) => to.send_trailers(trailers).map_err(|error| Cut::Sink(reason_for(&error))),
        Ok(None) => to.send_data(Bytes::new(), true).map_err(|error| Cut::Sink(reason_for(&error))),
        Err(error) => Err(Cut::Source(reason_for(&error))),
    }
}

pub(super) async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Cut> {
    if data.is_empty() {
        return if end { to.send_data(data, true).map_err(|error| Cut::Sink(reason_for(&error))) } else { Ok(()) };
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let capacity = match poll_fn(|context| to.poll_capacity(context)).await {
            Some(Ok(capacity)) => capacity,
            Some(Err(error)) => return Err(Cut::Sink(reason_for(&error))),
            // The stream was reset; the code is the peer's.
            None => {
                let reason = poll_fn(|context| {
                    Poll::Ready(match to.poll_reset(context) {
                        Poll::Ready(Ok(reason)) => reason,
                        _ => Reason::CANCEL,
                    })
                });
                return Err(Cut::Sink(reason.await));
            }
        };
        let part = data.split_to(capacity.min(data.len()));
        let last = end && data.is_empty();
        to.send_data(part, last).map_err(|error| Cut::Sink(reason_for(&error)))?;
    }
    Ok(())
}

pub(super) async fn swallow(from: &mut RecvStream) -> Result<(), Cut> {
    while let Some(data) = from.data().await {
        let length = data.map_err(|error| Cut::Source(reason_for(&error)))?.len();
        let _ = from.flow_control().release_capacity(length);
    }
    from.trailers().await.map(|_| ()).map_err(|error| Cut::Source(reason_for(&error)))
}

/// Waits until a side has what its streams have left for it, as far as their
/// windows go: a reset takes back whatever has not been sent.
pub(super) async fn flushed(link: &Link, side: Side) {
    // The connection has its turn.
    tokio::task::yield_now().await;
    link.settled(side).await;
}
