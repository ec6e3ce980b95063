//! Where to, and how often: what was typed, checked.
use std::{fmt, time::Duration};

use http::{HeaderName, HeaderValue, Uri, uri::Scheme};
use rustls::pki_types::ServerName;

use super::Signal;
use crate::tls::Upstream;

/// Where collectors listen for OTLP over HTTP.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";

#[derive(Clone)]
pub struct Settings {
    pub(super) tls: Option<ServerName<'static>>,
    pub(super) host: String,
    pub(super) port: u16,
    /// For the `host` field.
    pub(super) authority: HeaderValue,
    /// Begins with `/`, does not end with one unless it is all.
    path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) interval: Duration,
    pub(super) upstream: Upstream,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("--otlp {0}: this is no address of a collector; write http://HOST:4318 or https://HOST")]
    Url(String),
    #[error("--otlp-header {0}: write NAME=VALUE")]
    Header(String),
    #[error("--otlp-interval has to be between 100ms and 1h")]
    Interval,
}

impl Settings {
    /// `url` empty: what OpenTelemetry's variables name, which `variable`
    /// looks up. `headers`: `NAME=VALUE` each.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(
        url: &str,
        headers: &[String],
        interval: Duration,
        upstream: Upstream,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Url(url.to_owned());
        let (endpoint, mut all) = match url {
            "" => {
                let endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|value| !value.is_empty());
                let listed = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
                let listed = listed.split(',').filter(|pair| !pair.trim().is_empty());
                (endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.into()), listed.map(decoded).collect::<Vec<_>>())
            }
            url => (url.to_owned(), Vec::new()),
        };
        all.extend(headers.iter().cloned());
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) {
            return Err(SettingsError::Interval);
        }
        let wrong = || if url.is_empty() { SettingsError::Url(endpoint.clone()) } else { wrong() };
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.query().is_some() {
            return Err(wrong());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        Ok(Self {
            tls: secure.then_some(name),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            host,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
            path: uri.path().trim_end_matches('/').to_owned(),
            headers: all.iter().map(|text| header(text)).collect::<Result<_, _>>()?,
            interval,
            upstream,
        })
    }

    pub(super) fn path(&self, signal: Signal) -> String {
        let signal = match signal {
            Signal::Metrics => "metrics",
            Signal::Traces => "traces",
        };
        format!("{}/v1/{signal}", self.path)
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), SettingsError> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    });
    // The value may be a secret.
    let shown = || text.split_once('=').map_or(text, |(name, _)| name).to_owned();
    parsed.ok_or_else(|| SettingsError::Header(shown()))
}

/// Percent-encoding, as variables have it (W3C Baggage).
fn decoded(pair: &str) -> String {
    let bytes = pair.trim().as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, headers: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
        let upstream = Upstream::new(&[]).expect("the system's roots");
        let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
        let variable = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1.to_owned());
        Settings::new(url, &headers, Duration::from_secs(10), upstream, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn where_to() {
        for (url, host, port, secure, path) in [
            ("http://localhost:4318", "localhost", 4318, false, "/v1/traces"),
            ("https://otlp.test/base/", "otlp.test", 443, true, "/base/v1/traces"),
            ("http://[::1]:4318/", "::1", 4318, false, "/v1/traces"),
            ("http://10.0.0.1", "10.0.0.1", 80, false, "/v1/traces"),
        ] {
            let it = settings(url, &[], &[]).expect(url);
            assert_eq!((&*it.host, it.port, it.tls.is_some()), (host, port, secure), "{url}");
            assert_eq!(it.path(Signal::Traces), path, "{url}");
        }
        for wrong in ["localhost:4318", "grpc://a", "http://u:p@a", "http://", "http://a/?b=c", "http://a b"] {
            assert!(settings(wrong, &[], &[]).expect_err(wrong).contains("no address of a collector"), "{wrong}");
        }
    }

    #[test]
    fn variables_count_where_no_url_is_given() {
        let variables =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otlp.test:1"), ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d=e")];
        let it = settings("", &["f=g"], &variables).expect("settings");
        let headers: Vec<_> = it.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!((&*it.host, it.port), ("otlp.test", 1));
        assert_eq!(headers, [("a", &b"b c"[..]), ("d", b"e"), ("f", b"g")]);
        let it = settings("http://other.test", &[], &variables).expect("settings");
        assert!(it.host == "other.test" && it.headers.is_empty());
        assert_eq!(settings("", &[], &[]).expect("settings").port, 4318);
    }

    #[test]
    fn a_header_is_refused_without_its_value() {
        assert_eq!(settings("", &["nothing"], &[]).expect_err("no value"), "--otlp-header nothing: write NAME=VALUE");
        assert_eq!(settings("", &["key=sec\nret"], &[]).expect_err("a newline"), "--otlp-header key: write NAME=VALUE");
    }
}
