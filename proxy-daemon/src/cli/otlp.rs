//! The options of OTLP, and what they come to.
use std::time::Duration;

use super::Failure;
use crate::{report::otlp::Settings, tls::Upstream};

#[derive(Debug, clap::Args)]
pub(super) struct Otlp {
    /// Push metrics and a trace of each call to an OpenTelemetry collector, by OTLP over HTTP
    ///
    /// Without a URL: to where OTEL_EXPORTER_OTLP_ENDPOINT says, with the
    /// headers of OTEL_EXPORTER_OTLP_HEADERS, or else to http://localhost:4318.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    otlp: Option<String>,

    /// Send this header with what is pushed; may be given more than once
    #[arg(long, value_name = "NAME=VALUE", requires = "otlp")]
    otlp_header: Vec<String>,

    /// Push metrics this often
    #[arg(long, value_name = "TIME", requires = "otlp", default_value = "10s", value_parser = humantime::parse_duration)]
    otlp_interval: Duration,
}

impl Otlp {
    pub(super) fn check(&self, upstream: &Upstream) -> Result<Option<Settings>, Failure> {
        let Some(url) = self.otlp.as_deref() else { return Ok(None) };
        let variable = |name: &str| std::env::var(name).ok();
        Settings::new(url, &self.otlp_header, self.otlp_interval, upstream.clone(), variable)
            .map(Some)
            .map_err(|error| Failure::usage(error.to_string()))
    }
}
