//! Bodies as people mean them: without their content codings.
//!
//! In: a body as it was read, and the head that describes it. Out: at most
//! [`MAX_CONTENT`] bytes; what cannot be decoded stays as it is.
use std::{borrow::Cow, io::Read};

use super::{Content, Headers, MAX_CONTENT};

/// The most codings that are taken off one body.
const MAX_CODINGS: usize = 4;

/// `None` where the body was not read whole.
pub fn decoded<'a>(content: &'a Content, headers: &Headers) -> Option<Cow<'a, [u8]>> {
    let Content::Whole(body) = content else { return None };
    let codings = codings(headers);
    Some(match decode(body, &codings) {
        Some(plain) => Cow::Owned(plain),
        None => Cow::Borrowed(body),
    })
}

/// As [`decoded`], and `None` too where a coding cannot be taken off.
pub fn plain<'a>(content: &'a Content, headers: &Headers) -> Option<Cow<'a, [u8]>> {
    let Content::Whole(body) = content else { return None };
    let codings = codings(headers);
    if codings.is_empty() { Some(Cow::Borrowed(body)) } else { decode(body, &codings).map(Cow::Owned) }
}

/// Whether a coding is on the body that a head describes.
pub fn is_coded(headers: &Headers) -> bool {
    !codings(headers).is_empty()
}

/// In the order in which they were put on.
fn codings(headers: &Headers) -> Vec<String> {
    headers
        .all("content-encoding")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(|coding| String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity" && coding != "aws-chunked")
        .collect()
}

fn decode(body: &[u8], codings: &[String]) -> Option<Vec<u8>> {
    if codings.is_empty() || codings.len() > MAX_CODINGS {
        return None;
    }
    let mut plain: Option<Vec<u8>> = None;
    for coding in codings.iter().rev() {
        plain = Some(one(plain.as_deref().unwrap_or(body), coding)?);
    }
    plain
}

fn one(body: &[u8], coding: &str) -> Option<Vec<u8>> {
    match coding {
        "gzip" | "x-gzip" => bounded(flate2::read::MultiGzDecoder::new(body)),
        // With zlib's wrapper as the standard has it, or without as some send it.
        "deflate" => {
            bounded(flate2::read::ZlibDecoder::new(body)).or_else(|| bounded(flate2::read::DeflateDecoder::new(body)))
        }
        "br" => brotli(body),
        "zstd" => zstd(body),
        _ => None,
    }
}

/// RFC 7932 only: with "large windows" a few bytes could ask for a gigabyte.
fn brotli(body: &[u8]) -> Option<Vec<u8>> {
    use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
    let (a, b, c) = (StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
    let mut state = BrotliState::new_strict(a, b, c);
    let mut plain = vec![0; MAX_CONTENT];
    let (mut left, mut read, mut room, mut written, mut total) = (body.len(), 0, plain.len(), 0, 0);
    let result =
        BrotliDecompressStream(&mut left, &mut read, body, &mut room, &mut written, &mut plain, &mut total, &mut state);
    plain.truncate(written);
    plain.shrink_to_fit();
    matches!(result, BrotliResult::ResultSuccess).then_some(plain)
}

/// The largest window of zstd as a content coding (RFC 9659, section 3).
const ZSTD_WINDOW: u64 = 8 << 20;

/// Any number of frames, one after the other.
fn zstd(mut body: &[u8]) -> Option<Vec<u8>> {
    use ruzstd::decoding::{
        StreamingDecoder,
        errors::{FrameDecoderError, ReadFrameHeaderError},
    };
    let mut plain = Vec::new();
    while !body.is_empty() {
        match StreamingDecoder::new_with_max_window_size(&mut body, ZSTD_WINDOW) {
            Ok(frame) => {
                let room = (MAX_CONTENT - plain.len()) as u64;
                frame.take(room + 1).read_to_end(&mut plain).ok()?;
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                body = body.get(usize::try_from(length).ok()?..)?;
            }
            Err(_) => return None,
        }
        if plain.len() > MAX_CONTENT {
            return None;
        }
    }
    Some(plain)
}

/// `None` for what is broken or too long: a small body can stand for a huge
/// one.
fn bounded(mut from: impl Read) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    from.by_ref().take(MAX_CONTENT as u64 + 1).read_to_end(&mut plain).ok()?;
    (plain.len() <= MAX_CONTENT).then_some(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;

    use super::*;

    fn headers(coding: &str) -> Headers {
        [("Content-Encoding", coding)].into_iter().collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn codings_are_taken_off_in_turn() {
        let twice = Content::Whole(gzip(&gzip(b"needle")).into());
        assert_eq!(decoded(&twice, &headers("gzip, GZIP")).as_deref(), Some(&b"needle"[..]));
        let brotli = Bytes::from_static(b"\x0b\x02\x80hello\x03");
        assert_eq!(decoded(&Content::Whole(brotli), &headers("br")).as_deref(), Some(&b"hello"[..]));
    }

    /// A frame of runs, each of 128 KiB, with this window descriptor.
    fn zstd_runs(window: u8, runs: usize) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
        for run in 1..=runs {
            let header = (131_072_u32 << 3 | 1 << 1 | u32::from(run == runs)).to_le_bytes();
            frame.extend_from_slice(&header[..3]);
            frame.push(b'a');
        }
        frame
    }

    #[test]
    fn zstd_in_frames() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let mut body = compress_to_vec(&b"need"[..], CompressionLevel::Fastest);
        // A frame to be skipped.
        body.extend_from_slice(b"\x50\x2a\x4d\x18\x03\0\0\0abc");
        body.extend(compress_to_vec(&b"le"[..], CompressionLevel::Fastest));
        let plain_of = |body: Vec<u8>| plain(&Content::Whole(body.into()), &headers("zstd")).map(Cow::into_owned);
        assert_eq!(plain_of(body.clone()).as_deref(), Some(&b"needle"[..]));
        assert_eq!(plain_of(body[..body.len() - 1].to_vec()), None);
        // A megabyte is the most, and eight the largest window.
        assert_eq!(plain_of(zstd_runs(0x50, 8)).map(|plain| plain.len()), Some(MAX_CONTENT));
        assert_eq!(plain_of(zstd_runs(0x50, 9)), None);
        assert!(plain_of(zstd_runs(0x68, 1)).is_some());
        assert_eq!(plain_of(zstd_runs(0x70, 1)), None);
    }

    #[test]
    fn brotli_without_large_windows() {
        // 0x11: the code that says a large window follows.
        let large = Content::Whole(Bytes::from_static(b"\x11\x1e\x03"));
        assert_eq!(plain(&large, &headers("br")), None);
        let cut = Content::Whole(Bytes::from_static(b"\x0b\x02\x80hel"));
        assert_eq!(plain(&cut, &headers("br")), None);
    }

    #[test]
    fn what_cannot_be_decoded_stays() {
        let body = Content::Whole(Bytes::from_static(b"plain"));
        assert_eq!(decoded(&body, &headers("gzip")).as_deref(), Some(&b"plain"[..]));
        assert_eq!(plain(&body, &headers("gzip")), None);
        assert_eq!(plain(&body, &headers("identity")).as_deref(), Some(&b"plain"[..]));
        assert_eq!(decoded(&Content::Beyond, &headers("gzip")), None);
        let bomb = Content::Whole(gzip(&vec![0; MAX_CONTENT + 1]).into());
        assert_eq!(plain(&bomb, &headers("gzip")), None);
    }
}
