//! Bodies that are streams: each piece passes when it is there, and what an
//! upload has in it arrives as it was cut.
mod common;

use std::process::Command;

use common::{
    NAME, Run, TestCa, Wire, clients, own_address,
    report::number,
    servers::{self, Moto},
    sha256,
    wire::Face,
};
use serde_json::{Value, json};

/// Pieces of a stream.
const PIECES: usize = 200;

/// A stream of which each piece is sent only when the client has the one
/// before: nothing may be held back on the way.
fn in_step(what: &str, direct: bool) -> (Value, common::Outcome) {
    let ca = TestCa::new();
    let address = own_address(443);
    let files = ca.files("lockstep", &[NAME], &[address.ip()]);
    let mut server = Command::new(clients::node());
    server.arg(clients::script("lockstep_server.mjs")).arg(address.to_string()).args([&files.cert, &files.key]);
    let server = clients::bare(server.arg(PIECES.to_string()));
    server.line("ready");
    let command = words![clients::python(), clients::script("lockstep.py"), what, NAME];
    let outcome = Run::via(direct).to(NAME, address, &ca).go(command).ok();
    (outcome.json(), outcome)
}

#[track_caller]
fn same_in_step(what: &str) {
    let (direct, _) = in_step(what, true);
    let (through, outcome) = in_step(what, false);
    assert_eq!(through, direct, "{what}");
    assert_eq!(through["pieces"], PIECES, "{what}: {through}");
    let report = outcome.report();
    // The stream, and what tells that its pieces have come.
    assert_eq!(report.count("statuses", "200"), PIECES as u64 + 1, "{what}: {report}");
    assert!(report.counts("errors").is_empty(), "{what}: {report}");
}

/// Server-sent events: an event is there before the next one is sent.
#[test]
fn server_sent_events() {
    same_in_step("events");
    same_in_step("events2");
}

/// AWS event streams, which are binary: boto3 has each message, checksums and
/// all, before the next one is sent.
#[test]
fn aws_event_streams() {
    same_in_step("bedrock");
}

/// `aws-chunked` uploads with a checksum in their trailer: the upstream reads
/// the bytes that it reads directly.
#[test]
fn trailing_checksums_by_the_byte() {
    let received = [true, false].map(|direct| {
        let ca = TestCa::new();
        let face = Face { names: &[servers::S3], ..Face::default() };
        let wire = Wire::with(&ca, face, |mut conn| async move {
            loop {
                let head = conn.head().await?.to_ascii_lowercase();
                if head.contains("expect: 100-continue") {
                    conn.send("HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
                let mut body = Vec::new();
                match length {
                    Some(length) => body = conn.exact(length).await?,
                    None => {
                        while !body.ends_with(b"\r\n0\r\n\r\n") {
                            body.extend(conn.some().await?);
                        }
                    }
                }
                let trailing = String::from_utf8_lossy(&body).contains("\r\nx-amz-checksum-");
                conn.keep(&format!("{} bytes, {}, trailing={trailing}", body.len(), sha256(&body)));
                conn.send("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\n\r\n").await?;
            }
        });
        let command = words![clients::python(), clients::script("s3_uploads.py"), "put", "still"];
        // A set of words in the user agent has no order of its own.
        let run = Run::via(direct).to(servers::S3, wire.address, &ca).env("PYTHONHASHSEED", "0");
        let outcome = run.go(command).ok();
        if !direct {
            let report = outcome.report();
            assert_eq!(report.count("statuses", "200"), 12, "{report}");
            assert_eq!(number(report.processes().first().expect("a process"), "retries"), 0, "{report}");
        }
        wire.heads()
    });
    assert_eq!(received[0], received[1], "what the upstream read");
    let trailing = received[0].iter().filter(|kept| kept.ends_with("trailing=true")).count();
    assert_eq!(trailing, 12, "{:?}", received[0]);
}

/// The same against an S3 that checks them, and read back.
#[test]
fn trailing_checksums() {
    let moto = Moto::shared();
    let found = [true, false].map(|direct| {
        let command = words![clients::python(), clients::script("s3_uploads.py"), "put"];
        let outcome = Run::via(direct).to(servers::S3, moto.address, &moto.ca).go(command).ok();
        if !direct {
            let report = outcome.report();
            let process = report.process("s3_uploads.py");
            for name in ["PutObject", "GetObject"] {
                assert_eq!(number(common::Report::operation(process, "s3", name), "attempts"), 12, "{report}");
            }
        }
        outcome.json()
    });
    assert_eq!(found[0], found[1]);
}

/// A multipart upload with its parts at once, read back in ranges at once.
#[test]
fn multipart() {
    let moto = Moto::shared();
    for direct in [true, false] {
        let command = words![clients::python(), clients::script("s3_uploads.py"), "multipart"];
        let outcome = Run::via(direct).to(servers::S3, moto.address, &moto.ca).go(command).ok();
        assert_eq!(outcome.json(), json!({"same": true, "length": 3 * 8 * 1024 * 1024 + 12_345}), "direct={direct}");
        if !direct {
            let report = outcome.report();
            let process = report.process("s3_uploads.py");
            for (name, attempts) in
                [("CreateMultipartUpload", 1), ("UploadPart", 4), ("CompleteMultipartUpload", 1), ("GetObject", 4)]
            {
                let row = common::Report::operation(process, "s3", name);
                assert_eq!(number(row, "attempts"), attempts, "{name}: {report}");
            }
            assert!(report.counts("errors").is_empty(), "{report}");
        }
    }
}
