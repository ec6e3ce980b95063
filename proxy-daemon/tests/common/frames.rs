//! HTTP/2 by the frame: an upstream made of a script, and a client that does
//! what it is told.
use std::{io, net::SocketAddr};

use serde_json::{Value, json};

use super::{
    NAME, Outcome, Run, TestCa,
    ca::Leaf,
    clients,
    wire::{Face, WireConn},
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;

/// On DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// On SETTINGS and PING.
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `:status: 200`, as HPACK's table has it.
pub const OK: &[u8] = &[0x88];

pub const H2: Face<'static> = Face { port: 443, leaf: Some(Leaf::Good), names: &[NAME], alpn: &["h2"] };

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Begins as a server of HTTP/2.
pub async fn greet(conn: &mut WireConn) -> io::Result<()> {
    conn.until("SM\r\n\r\n").await?;
    conn.send(frame(SETTINGS, 0, 0, b"")).await
}

/// The next frame; what asks for an acknowledgement gets it.
pub async fn next(conn: &mut WireConn) -> io::Result<Frame> {
    let head = conn.exact(9).await?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = conn.exact(length).await?;
    let (kind, flags) = (head[3], head[4]);
    if matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
        let back: &[u8] = if kind == PING { &payload } else { b"" };
        conn.send(frame(kind, ACK, 0, back)).await?;
    }
    Ok(Frame { kind, flags, stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload })
}

/// Reads on to the next frame of a kind; tells its stream.
pub async fn next_of(conn: &mut WireConn, kind: u8) -> io::Result<u32> {
    loop {
        let frame = next(conn).await?;
        if frame.kind == kind {
            return Ok(frame.stream);
        }
    }
}

pub fn get(path: &str) -> Value {
    json!([[":method", "GET"], [":scheme", "https"], [":authority", NAME], [":path", path]])
}

pub fn post(path: &str) -> Value {
    json!([[":method", "POST"], [":scheme", "https"], [":authority", NAME], [":path", path]])
}

/// Runs the client of frames; its JSON is checked to tell of no failure.
#[track_caller]
pub fn frames(direct: bool, address: SocketAddr, ca: &TestCa, steps: &Value) -> (Value, Outcome) {
    let outcome = Run::via(direct)
        .to(NAME, address, ca)
        .stdin(steps.to_string().as_bytes())
        .start(crate::words![clients::python(), clients::script("h2_frames.py"), NAME])
        .finish()
        .ok();
    let got = outcome.json();
    assert_eq!(got["ended"], "done", "direct={direct}: {got}");
    (got, outcome)
}

#[track_caller]
pub fn status(got: &Value, stream: u32) -> &str {
    let fields = got["streams"][stream.to_string()]["fields"].as_array().into_iter().flatten();
    let mut found = fields.filter(|field| field[0] == ":status").filter_map(|field| field[1].as_str());
    found.next_back().unwrap_or_else(|| panic!("no status on stream {stream}: {got}"))
}
