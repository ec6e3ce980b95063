//! Bytes on their way from one side to the other, as far as a message goes or
//! until the connection ends.
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    Stop,
    body::{Body, Progress},
    wire::{read_some, write_two},
};

/// One read while a body streams. A TLS record holds 16 KiB at most.
const BODY_BUFFER: usize = 64 * 1024;

/// Feeds what was read already, then the rest. `seen` is told of bytes, and with
/// the last ones of the body's trailers. `Ok(false)`: the body's coding
/// is broken, and so is whatever follows.
pub(super) async fn pass_pending_and_body<R, W>(
    from: &mut R,
    to: &mut W,
    pending: &mut Bytes,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<bool, Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if !pass_pending(to, pending, body, &mut seen).await? {
        return Ok(false);
    }
    match pass_body(from, to, body, seen).await? {
        Passed::Whole(rest) => {
            if !rest.is_empty() {
                *pending = rest;
            }
            Ok(true)
        }
        Passed::Broken => Ok(false),
    }
}

/// Passes what was read already, as far as it belongs to the body.
/// `Ok(false)`: the body's coding is broken.
pub(super) async fn pass_pending<W: AsyncWrite + Unpin>(
    to: &mut W,
    pending: &mut Bytes,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<bool, Stop> {
    if pending.is_empty() || body.is_done() {
        return Ok(true);
    }
    let length = match body.feed(pending) {
        Progress::Done(length) => length,
        Progress::More => pending.len(),
        Progress::Broken => return Ok(false),
    };
    let first = pending.split_to(length);
    seen(&first, body.over());
    write_two(to, &first, &[]).await.map_err(Stop::Write)?;
    Ok(true)
}

pub(super) enum Passed {
    /// The body's end was reached; these bytes came after it.
    Whole(Bytes),
    Broken,
}

/// Streams the rest of a body, as fast as the slower side.
pub(super) async fn pass_body<R, W>(
    from: &mut R,
    to: &mut W,
    body: &mut Body,
    mut seen: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<Passed, Stop>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if body.is_done() {
        return Ok(Passed::Whole(Bytes::new()));
    }
    let mut buffer = BytesMut::with_capacity(BODY_BUFFER);
    loop {
        buffer.clear();
        match from.read_buf(&mut buffer).await {
            Ok(0) => return Err(Stop::Eof),
            Ok(_) => {}
            Err(error) => {
                // What has passed must arrive before the failure does.
                let _ = to.flush().await;
                return Err(Stop::Read(error));
            }
        }
        let (length, after) = match body.feed(&buffer) {
            Progress::More => (buffer.len(), None),
            Progress::Done(length) => (length, Some(true)),
            Progress::Broken => (buffer.len(), Some(false)),
        };
        seen(&buffer[..length], body.over());
        write_two(to, &buffer[..length], &[]).await.map_err(Stop::Write)?;
        match after {
            None => {}
            Some(true) => return Ok(Passed::Whole(Bytes::copy_from_slice(&buffer[length..]))),
            Some(false) => return Ok(Passed::Broken),
        }
    }
}

/// Passes whatever comes until it ends.
pub(super) async fn opaque<R, W>(from: &mut R, to: &mut W, first: Bytes) -> Stop
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if let Err(error) = write_two(to, &first, &[]).await {
        return Stop::Write(error);
    }
    drop(first);
    loop {
        let bytes = match read_some(from).await {
            Ok(bytes) if bytes.is_empty() => return Stop::Eof,
            Ok(bytes) => bytes,
            Err(error) => {
                let _ = to.flush().await;
                return Stop::Read(error);
            }
        };
        if let Err(error) = write_two(to, &bytes, &[]).await {
            return Stop::Write(error);
        }
    }
}

/// Says goodbye to the side that is written to, after a clean end of the one
/// that is read from.
pub(super) async fn goodbye<W: AsyncWrite + Unpin>(to: &mut W, stop: Stop) -> Stop {
    if matches!(stop, Stop::Eof | Stop::Last) {
        // Whoever is gone already needs none.
        let _ = to.shutdown().await;
    }
    stop
}
