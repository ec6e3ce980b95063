//! The client's side, which both halves use at once: one reads from it, the
//! other writes to it; and whoever waits for the upstream to take more keeps
//! an eye on it.
//!
//! A half that reads is told when the client leaves. One that is held up in a
//! write is not: what the client still said lies unread before its end. So the
//! socket itself is looked at.
use std::{
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::{AFTER_CLOSE, Shared, abandon};

/// A write that waits for longer looks whether the client is still there.
const HELD_UP: Duration = Duration::from_millis(100);

/// A stream that goes over a socket.
pub(in crate::proxy) trait OverSocket {
    fn socket(&self) -> BorrowedFd<'_>;
}

impl OverSocket for tokio_rustls::server::TlsStream<TcpStream> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.get_ref().0.as_fd()
    }
}

/// A stream that is read and written at once. Everything happens in one task,
/// so the lock is never waited for.
#[derive(Debug)]
pub(super) struct Side<'a, S>(Mutex<&'a mut S>);

impl<'a, S> Side<'a, S> {
    pub(super) fn new(stream: &'a mut S) -> Self {
        Self(Mutex::new(stream))
    }

    /// One for each half.
    pub(super) fn half(&self) -> Half<'_, 'a, S> {
        Half(self)
    }

    fn stream(&self) -> MutexGuard<'_, &'a mut S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: OverSocket> Side<'_, S> {
    /// The socket with a registration of its own: the stream's is lent to the
    /// halves.
    fn watch(&self) -> io::Result<TcpStream> {
        let socket = self.stream().socket().try_clone_to_owned()?;
        TcpStream::from_std(std::net::TcpStream::from(socket))
    }
}

#[derive(Debug)]
pub(super) struct Half<'s, 'a, S>(&'s Side<'a, S>);

impl<S: AsyncRead + Unpin> AsyncRead for Half<'_, '_, S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Half<'_, '_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.0.stream()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.0.stream()).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_shutdown(context)
    }
}

/// Somebody who may leave before it is answered.
pub(super) trait Presence {
    /// Ends when it does: it was lost, or says nothing more.
    fn departure(&self) -> Pin<Box<dyn Future<Output = Departure> + Send>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Lost,
    Closed,
}

impl<S: OverSocket> Presence for Half<'_, '_, S> {
    fn departure(&self) -> Pin<Box<dyn Future<Output = Departure> + Send>> {
        let watch = self.0.watch();
        Box::pin(async move {
            // Out of descriptors: then it is noticed as late as it would be without.
            let Ok(watch) = watch else { return std::future::pending().await };
            end(&watch).await
        })
    }
}

/// Waits for an end, and not for data, of which there may be some (nor for
/// urgent data, which TLS has none of).
async fn end(watch: &TcpStream) -> Departure {
    let lost = watch.ready(Interest::PRIORITY | Interest::ERROR).await.map_or(true, tokio::io::Ready::is_error);
    if lost { Departure::Lost } else { Departure::Closed }
}

/// Ends when the client's connection is lost, or has been closed for so long
/// that nothing comes of it any more.
async fn absence<S: OverSocket>(client: &Side<'_, S>, shared: &Shared) {
    tokio::time::sleep(HELD_UP).await;
    // Out of descriptors: then it is noticed as late as it would be without.
    let Ok(watch) = client.watch() else { return std::future::pending().await };
    if end(&watch).await == Departure::Closed {
        // It says nothing more, and may be asking again elsewhere by now; what
        // it has said is still passed on.
        abandon(shared);
        let _ = tokio::time::timeout(AFTER_CLOSE, watch.ready(Interest::ERROR)).await;
    }
}

/// The upstream's side as the up half writes to it: a write fails when the
/// client is lost meanwhile.
pub(super) struct Watching<'s, 'a, W, S> {
    to: W,
    client: &'s Side<'a, S>,
    shared: &'s Shared,
    /// While a write waits.
    absence: Option<Pin<Box<dyn Future<Output = ()> + Send + 's>>>,
    lost: bool,
}

impl<'s, 'a, W, S: OverSocket + Send> Watching<'s, 'a, W, S> {
    pub(super) fn new(to: W, client: &'s Side<'a, S>, shared: &'s Shared) -> Self {
        Self { to, client, shared, absence: None, lost: false }
    }

    /// It was the client, and not the upstream, that made a write fail.
    pub(super) fn has_lost_its_client(&self) -> bool {
        self.lost
    }

    fn or_absence<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.absence = None;
            return poll;
        }
        let (client, shared) = (self.client, self.shared);
        let absence = self.absence.get_or_insert_with(|| Box::pin(absence(client, shared)));
        ready!(absence.as_mut().poll(context));
        self.absence = None;
        self.lost = true;
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl<W: AsyncWrite + Unpin, S: OverSocket + Send> AsyncWrite for Watching<'_, '_, W, S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.to).poll_write(context, bytes);
        self.or_absence(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.to).poll_write_vectored(context, parts);
        self.or_absence(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.to.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.to).poll_flush(context);
        self.or_absence(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.to).poll_shutdown(context);
        self.or_absence(context, poll)
    }
}
