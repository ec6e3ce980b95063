//! Our own events: to standard error, or to the journal.
use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::LogTo;

/// How much is said, changed while the daemon runs.
#[derive(Clone, Debug)]
pub(super) struct Level(Option<reload::Handle<EnvFilter, Registry>>);

impl Level {
    pub(super) fn set(&self, level: &str) {
        if let Some(handle) = &self.0 {
            // Gone only when nothing is said any more.
            let _ = handle.reload(filter(level));
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    // A bare level is meant for us; libraries speak up when something is wrong.
    let plain = ["error", "warn", "info", "debug", "trace"].contains(&level);
    EnvFilter::new(if plain { format!("retryscope={level},warn") } else { level.to_owned() })
}

/// Begins to say what the daemon does.
pub(super) fn start(to: LogTo, level: &str) -> Level {
    let (filter, handle) = reload::Layer::new(filter(level));
    let by_manager = std::env::var_os("JOURNAL_STREAM").is_some();
    let journal = match to {
        LogTo::Stderr => None,
        LogTo::Auto if !by_manager => None,
        LogTo::Auto | LogTo::Journal => tracing_journald::layer()
            .map(|layer| {
                let layer = layer.with_syslog_identifier("retryscope".to_owned());
                layer.with_field_prefix(Some("RETRYSCOPE".to_owned()))
            })
            .ok(),
    };
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
    });
    // Set once per process; a second call has nothing to add.
    let set = tracing_subscriber::registry().with(filter).with(journal).with(stderr).try_init();
    Level(set.is_ok().then_some(handle))
}
