//! A browser that looks at the page of a running instance
//! (`tests/clients/live_page.mjs`), with somebody who does what it asks for.
use std::{process::Command, time::Duration};

use serde_json::{Value, json};

use super::{Page, Running, SOON, clients};

/// How long a browser may take between two steps: it looks at everything, in
/// every size.
const PATIENCE: Duration = Duration::from_secs(180);

/// A browser that looks at a page.
pub struct Browser {
    running: Running,
    at: usize,
}

impl Browser {
    pub fn open(page: &Page, scenario: &str) -> Self {
        clients::need("chromium", "chromium");
        let mut command = Command::new(clients::node());
        command.arg(clients::script("live_page.mjs")).arg(clients::node_modules()).arg(page.url()).arg(scenario);
        command.args(std::env::var_os("RETRYSCOPE_TEST_PICTURES"));
        Self { running: clients::bare(&mut command), at: 0 }
    }

    /// That is done; what came of it.
    fn done(&mut self, what: &str) {
        self.running.write(format!("{what}\n").as_bytes());
    }

    /// Does what is wanted until nothing is; what was seen.
    #[track_caller]
    pub fn through(mut self, mut act: impl FnMut(&str) -> String) -> Value {
        loop {
            let (line, at) = self.running.find_line(PATIENCE, self.at, "");
            self.at = at;
            match line.trim().strip_prefix('>') {
                Some(wanted) => {
                    let came = act(wanted);
                    self.done(&came);
                }
                None => {
                    let seen: Value =
                        serde_json::from_str(line.trim()).unwrap_or_else(|error| panic!("{error}: {line}"));
                    assert!(seen["failed"].is_null(), "{seen:#}");
                    self.running.finish(SOON).ok();
                    return seen;
                }
            }
        }
    }
}

/// No fault of the page's, nothing asked of others, nothing that came alive.
#[track_caller]
pub fn clean(seen: &Value, page: &Page) {
    assert_eq!(seen["errors"], json!([]), "{seen:#}");
    assert_eq!((&seen["requests"], &seen["dialogs"]), (&json!([]), &json!(0)), "{seen:#}");
    let elements = &seen["elements"];
    assert_eq!((&elements["images"], &elements["pwned"]), (&json!(0), &Value::Null), "{seen:#}");
    assert_eq!(seen["storage"], json!({"cookies": "", "local": 0}), "{seen:#}");
    let address = seen["address"].as_str().unwrap_or_default();
    assert!(!address.contains("token") && !address.contains(&page.token), "the token is out of the address: {address}");
}

#[track_caller]
pub fn contains(seen: &Value, parts: &[&str]) {
    let text = seen.as_str().map_or_else(|| seen.to_string(), str::to_owned);
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}
