//! A line for each retry, to a statsd server (`--statsd ADDRESS`).
//!
//! In: the feed. Out: UDP datagrams in DogStatsD's form,
//! `retryscope.retry:1|c|#service:s3,operation:PutObject,…`, and the wait
//! before it as `retryscope.backoff:812|ms|#…`. Whether anybody receives them
//! is not known, and nothing waits for it.
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    thread::JoinHandle,
};

use cadence::{BufferedUdpMetricSink, Counted, StatsdClient, Timed};

use crate::{
    flow::{Attempt, Evidence},
    proxy::Subscription,
    retry::OperationName,
};

/// How far sending may be behind, in attempts.
pub const ROOM: usize = 8_192;
/// The longest value of a tag, in bytes.
const MAX_VALUE: usize = 120;

/// A server's address, by name or number.
///
/// # Errors
/// Why it is none, as a sentence.
pub fn resolve(text: &str) -> Result<SocketAddr, String> {
    let wrong =
        |why: &str| format!("cannot send to the statsd server `{text}` ({why}); write HOST:PORT, as in 127.0.0.1:8125");
    let mut found = text.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address"))
}

/// Sends what comes until the feed is closed.
///
/// # Errors
/// There is no socket for it.
pub fn send(to: SocketAddr, mut feed: Subscription) -> io::Result<JoinHandle<()>> {
    let own: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(own)?;
    socket.set_nonblocking(true)?;
    let sink = BufferedUdpMetricSink::from(to, socket).map_err(io::Error::other)?;
    let client = StatsdClient::from_sink("retryscope", sink);
    Ok(std::thread::spawn(move || {
        loop {
            let attempt = match feed.try_next() {
                Some(attempt) => Some(attempt),
                None => {
                    // Nobody has to be there.
                    let _ = client.flush();
                    feed.wait()
                }
            };
            let Some(attempt) = attempt else { break };
            tell(&client, &attempt);
        }
        let _ = client.flush();
    }))
}

fn tell(client: &StatsdClient, attempt: &Attempt) {
    if attempt.link.number < 2 {
        return;
    }
    let tags = tags(attempt);
    let mut retry = client.count_with_tags("retry", 1);
    for (name, value) in &tags {
        retry = retry.with_tag(name, value);
    }
    retry.send();
    if let Some(wait) = attempt.link.waited {
        let mut backoff = client.time_with_tags("backoff", wait.length());
        for (name, value) in &tags {
            backoff = backoff.with_tag(name, value);
        }
        backoff.send();
    }
}

fn tags(attempt: &Attempt) -> Vec<(&'static str, String)> {
    let name = OperationName::of(attempt).unwrap_or_else(OperationName::other);
    let evidence = if attempt.link.evidence == Evidence::Exact { "exact" } else { "inferred" };
    let injected = attempt.link.waited.is_some_and(|wait| wait.injected);
    vec![
        ("service", plain(name.service.as_deref().unwrap_or_default())),
        ("operation", plain(&name.operation)),
        ("command", plain(&attempt.process.facts().comm)),
        ("evidence", evidence.to_owned()),
        ("cause", if injected { "rule" } else { "genuine" }.to_owned()),
    ]
}

/// Without what ends a tag or a line; never empty.
fn plain(value: &str) -> String {
    let ends = |c: char| c.is_control() || matches!(c, ',' | '|' | '#' | ':' | ' ');
    let mut text: String = value.chars().map(|c| if ends(c) { '_' } else { c }).collect();
    text.truncate(text.floor_char_boundary(MAX_VALUE));
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_hold_nothing_that_ends_them() {
        assert_eq!(plain("GET api.test/v1:x,y|z"), "GET_api.test/v1_x_y_z");
        assert_eq!(plain(""), "none");
        assert!(plain(&"é".repeat(200)).len() <= MAX_VALUE);
    }
}
