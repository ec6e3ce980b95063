//! One exchange by the byte, directly and through retryscope: what each end
//! read is compared.
use std::{future::Future, io};

use serde_json::Value;

use super::{
    NAME, Run, TestCa, Wire, clients,
    wire::{Face, WireConn},
};

/// Runs the wire client's steps directly and through retryscope against a
/// fresh upstream each; returns what the client got and the upstream read.
pub fn both<F>(
    face: Face<'_>,
    steps: &Value,
    script: impl Fn(WireConn) -> F + Clone + Send + Sync + 'static,
) -> [(Value, Vec<String>); 2]
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    [true, false].map(|direct| {
        let ca = TestCa::new();
        let wire = Wire::with(&ca, face, script.clone());
        let outcome = Run::via(direct)
            .to(NAME, wire.address, &ca)
            // A tunnelled connection shows the upstream's own certificate.
            .env("SSL_CERT_FILE", ca.pem())
            .stdin(steps.to_string().as_bytes())
            .start(crate::words![clients::python(), clients::script("wire.py"), NAME, "443"])
            .finish()
            .ok();
        if !direct {
            let report = outcome.report();
            let seen = report.connections("intercepted") + report.connections("tunnelled");
            assert!(seen >= 1, "the connection was not redirected: {report}");
        }
        (outcome.json(), wire.heads())
    })
}

/// The same at both ends, directly and through retryscope.
#[track_caller]
pub fn same(results: &[(Value, Vec<String>); 2]) -> &(Value, Vec<String>) {
    let [direct, through] = results;
    assert_eq!(
        through.0["got"], direct.0["got"],
        "what the client got ({} / {})",
        through.0["ended"], direct.0["ended"]
    );
    assert_eq!(through.1, direct.1, "what the upstream read");
    assert_eq!(direct.0["ended"], "done", "the direct run itself: {direct:?}");
    through
}
