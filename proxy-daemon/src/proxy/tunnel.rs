//! Bytes passed untouched, both ways, until both sides have ended.
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{failure, h1::End};
use crate::{flow::Failure, tls::Witness};

/// Sends `first` (what was read while classifying) and then whatever comes.
/// Half-closes pass as such; a failure of one side is the other's reset.
pub(super) async fn run(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &mut TcpStream,
    first: &[u8],
) -> End {
    let passed = async {
        upstream.write_all(first).await?;
        tokio::io::copy_bidirectional(client, upstream).await
    };
    match passed.await {
        Ok(_) => End::Closed,
        Err(error) if failure::of(&error) == Failure::Closed => End::Cut,
        Err(_) => End::Reset,
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
