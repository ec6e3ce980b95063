//! Reads and writes of the HTTP/1 exchange, without a buffer while idle.
use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::head::{self, Parsed};

/// One read while a head is awaited; lies on the stack for that long only.
const HEAD_READ: usize = 16 * 1024;

/// Reads until `parse` knows what it sees. `None` at the end of the stream
/// before a first byte; bytes of an unfinished head at the end are opaque.
pub(super) async fn read_head<R, T>(
    from: &mut R,
    pending: &mut Bytes,
    parse: impl Fn(&Bytes) -> Parsed<T>,
) -> io::Result<Option<Parsed<T>>>
where
    R: AsyncRead + Unpin,
{
    let mut look = !pending.is_empty();
    loop {
        if look {
            match parse(pending) {
                Parsed::Partial => {}
                known => return Ok(Some(known)),
            }
        }
        let more = read_some(from).await?;
        if more.is_empty() {
            return Ok(if pending.is_empty() { None } else { Some(Parsed::Opaque) });
        }
        // A head is complete only with a line's end; a first byte may already
        // show that this is no head at all.
        look = pending.is_empty() || more.contains(&b'\n') || pending.len() + more.len() >= head::MAX_HEAD;
        *pending = if pending.is_empty() {
            more
        } else {
            let mut joined = BytesMut::with_capacity(pending.len() + more.len());
            joined.extend_from_slice(pending);
            joined.extend_from_slice(&more);
            joined.freeze()
        };
    }
}

/// One read of whatever is there, into a buffer of just that size: while
/// nothing is there, none is held. Empty at the end of the stream.
pub(super) async fn read_some<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Bytes> {
    poll_fn(|context| {
        let mut space = [MaybeUninit::<u8>::uninit(); HEAD_READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *from).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
    })
    .await
}

/// Writes both parts, as one where the stream can, and flushes.
pub(super) async fn write_two<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut first: &[u8],
    mut second: &[u8],
) -> io::Result<()> {
    while !first.is_empty() && !second.is_empty() {
        let written = to.write_vectored(&[io::IoSlice::new(first), io::IoSlice::new(second)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let here = written.min(first.len());
        first = &first[here..];
        second = &second[written - here..];
    }
    to.write_all(if first.is_empty() { second } else { first }).await?;
    to.flush().await
}
