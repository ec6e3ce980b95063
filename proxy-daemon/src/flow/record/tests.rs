//! Recordings, read.
use super::*;

#[test]
fn reads_lines_in_order_of_their_start() {
    let text = concat!(
        r#"{"time":"2026-01-01T00:00:02Z","url":"https://s3.eu-west-1.amazonaws.com/b/k","method":"PUT","status":503,"took_ms":12.5,"request_headers":{"amz-sdk-invocation-id":"x"}}"#,
        "\n\n",
        r#"{"time":"2026-01-01T00:00:01Z","url":"https://a.example?q=1","request_headers":[["User-Agent","curl"]]}"#,
    );
    let attempts = read(text.as_bytes()).expect("attempts");
    assert_eq!(attempts.len(), 2);
    assert_eq!((attempts[0].request.host(), &*attempts[0].request.target), ("a.example", "?q=1"));
    assert_eq!(attempts[0].request.headers.text("user-agent"), Some("curl"));
    assert_eq!(attempts[1].status(), Some(503));
    assert_eq!(attempts[1].started, Moment(1_000_000_000));
    assert_eq!(attempts[1].ended, Some(Moment(1_012_500_000)));
}

#[test]
fn reads_har() {
    let har = r#"{"log":{"version":"1.2","entries":[{"startedDateTime":"2026-01-01T00:00:00.000+01:00","time":5,
        "request":{"method":"GET","url":"https://a.example/x","httpVersion":"h2","headers":[{"name":":path","value":"/x"},{"name":"accept","value":"*/*"}]},
        "response":{"status":200,"statusText":"OK","headers":[],"content":{"text":"hi"}}}]}}"#;
    let attempts = read(har.as_bytes()).expect("attempts");
    assert_eq!((attempts[0].protocol, attempts[0].request.headers.len()), (Protocol::Http2, 1));
    assert_eq!(attempts[0].response_content, Content::Whole(Bytes::from_static(b"hi")));
}

#[test]
fn says_what_is_wrong_where() {
    let wrong = |text: &str| read(text.as_bytes()).expect_err(text).to_string();
    assert!(wrong("").contains("no attempt"));
    assert!(wrong("{\"url\":\"https://a/\"}\nnonsense").contains("line 2"));
    assert!(wrong("{\"url\":\"nowhere\"}").contains("not absolute"));
    assert!(wrong("{\"log\": {\"entries\": 3}}").contains("not a HAR file"));
    assert!(wrong("{\"log\": {\"entries\": [{}]}}").contains("entry 1"));
}
