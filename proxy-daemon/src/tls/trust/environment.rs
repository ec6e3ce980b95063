//! The variables by which clients are told of a certificate bundle.
//!
//! `SSL_CERT_DIR` is left alone: whoever reads it reads `SSL_CERT_FILE` too,
//! and that one is always set.
use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use super::{TlsError, Work};

/// What a client makes of its variable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// The roots: it must have the system's as well as ours.
    All,
    /// Roots in addition to the client's own: ours alone is enough.
    Extra,
}

struct Variable {
    name: &'static str,
    holds: Holds,
    /// What its client reads where it is not set. If the user has set one of
    /// these, that is what we must extend, or the client would lose it.
    otherwise: &'static [&'static str],
}

const fn all(name: &'static str, otherwise: &'static [&'static str]) -> Variable {
    Variable { name, holds: Holds::All, otherwise }
}

const VARIABLES: [Variable; 14] = [
    all("SSL_CERT_FILE", &[]), // OpenSSL: Python's ssl, urllib, httpx, aiohttp, Ruby, PHP; Go; rustls-native-certs
    all("CURL_CA_BUNDLE", &["SSL_CERT_FILE"]), // the curl program
    all("REQUESTS_CA_BUNDLE", &["CURL_CA_BUNDLE"]), // Python requests
    all("AWS_CA_BUNDLE", &["REQUESTS_CA_BUNDLE"]), // botocore, AWS CLI, AWS SDKs for Go and others
    all("PIP_CERT", &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]), // pip
    all("GIT_SSL_CAINFO", &[]), // git
    all("CARGO_HTTP_CAINFO", &["SSL_CERT_FILE"]), // cargo
    all("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", &[]), // gRPC's C core: Python, Ruby, PHP
    all("NIX_SSL_CERT_FILE", &["SSL_CERT_FILE"]), // programs built by Nix
    all("HTTPLIB2_CA_CERTS", &[]), // Python httplib2
    all("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", &[]), // gcloud
    all("PERL_LWP_SSL_CA_FILE", &["SSL_CERT_FILE"]), // Perl's LWP
    Variable { name: "DENO_CERT", holds: Holds::Extra, otherwise: &[] }, // Deno
    Variable { name: "NODE_EXTRA_CA_CERTS", holds: Holds::Extra, otherwise: &[] }, // Node, Bun
];

/// Every variable with the file it is to name.
pub(super) fn variables(work: &mut Work<'_>) -> Result<Vec<(OsString, OsString)>, TlsError> {
    let mut set = Vec::with_capacity(VARIABLES.len());
    for variable in &VARIABLES {
        let mut value = match variable.holds {
            Holds::All => work.bundle.clone(),
            Holds::Extra => work.alone.clone(),
        };
        let named = [variable.name].iter().chain(variable.otherwise).find_map(|name| {
            let theirs = work.input.environment.get(OsStr::new(name))?;
            (!theirs.is_empty()).then(|| (*name, PathBuf::from(theirs)))
        });
        if let Some((name, theirs)) = named
            && let Some(extended) =
                work.extended(&theirs, &format!("{name} names"), "the system's roots stand in for it")?
        {
            value = extended;
        }
        set.push((variable.name.into(), value.into_os_string()));
    }
    Ok(set)
}
