//! Bytes passed untouched, both ways, until both sides have ended; counted as
//! they pass.
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{failure, h1::End};
use crate::{flow::Failure, tls::Witness};

/// How long a client may take for the last that its upstream has said.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How many bytes have come from each side so far.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// Sends `first` (what was read while classifying) and then whatever comes.
/// Half-closes pass as such; a failure of one side is the other's reset.
pub(super) async fn run(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &mut TcpStream,
    first: &[u8],
    count: &Count,
) -> End {
    let passed = async {
        upstream.write_all(first).await?;
        count.sent.fetch_add(first.len() as u64, Ordering::Relaxed);
        let mut client = Counted { stream: client, read: &count.sent };
        let mut upstream = Counted { stream: upstream, read: &count.received };
        tokio::io::copy_bidirectional(&mut client, &mut upstream).await
    };
    let Err(error) = passed.await else { return End::Closed };
    // An upstream may answer and leave before it has heard all; sending fails
    // then, and what it had said is still the client's.
    let _ = tokio::time::timeout(LAST_WORDS, last_words(client, upstream, count)).await;
    if failure::of(&error) == Failure::Closed { End::Cut } else { End::Reset }
}

/// Passes on what has come from an upstream that is gone.
async fn last_words(client: &mut (impl AsyncWrite + Unpin), upstream: &TcpStream, count: &Count) {
    let mut bytes = [0; 8192];
    while let Ok(length @ 1..) = upstream.try_read(&mut bytes) {
        count.received.fetch_add(length as u64, Ordering::Relaxed);
        if client.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

/// A socket whose reads are counted.
struct Counted<'a, S> {
    stream: &'a mut S,
    read: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *this.stream).poll_read(context, buffer);
        this.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_shutdown(context)
    }
}

/// A client that is watched for the certificate it shows; `told` is called
/// once, when that is known.
pub(super) struct Watched<'a, F> {
    pub(super) client: &'a mut TcpStream,
    pub(super) witness: Witness,
    pub(super) told: F,
}

impl<F: Fn(bool) + Unpin> AsyncRead for Watched<'_, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.client).poll_read(cx, buffer))?;
        if let Some(shown) = self.witness.see(buffer.filled().get(before..).unwrap_or_default()) {
            (self.told)(shown);
        }
        Poll::Ready(Ok(()))
    }
}

impl<F: Unpin> AsyncWrite for Watched<'_, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.client).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_shutdown(cx)
    }
}
