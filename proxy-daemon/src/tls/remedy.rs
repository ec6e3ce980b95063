//! What would make a client trust the authority that has refused it: the
//! variable or file that this very kind of client reads.
//!
//! In: the client's executable, and its environment. Out: a clause for the
//! report. Where the variable is set already, the client pins its server or
//! brings its own trust, and no variable helps: that is said instead.

/// How a kind of client learns whom to trust.
struct Kind {
    /// Executables, without folder and version.
    names: &'static [&'static str],
    /// How it is called in a sentence.
    shown: &'static str,
    /// Variables that it reads, the best first.
    variables: &'static [&'static str],
    /// What takes a variable's place, or goes with it.
    besides: &'static str,
}

/// A bundle of the system's roots and the authority, but for Node and Deno,
/// which take the authority's certificate alone.
const KINDS: &[Kind] = &[
    Kind {
        names: &["curl"],
        shown: "curl",
        variables: &["CURL_CA_BUNDLE", "SSL_CERT_FILE"],
        besides: "or give it --cacert",
    },
    Kind {
        names: &["wget"],
        shown: "wget",
        variables: &["WGETRC"],
        besides: "to a file that says ca_certificate=BUNDLE, or give it --ca-certificate",
    },
    Kind {
        names: &["git", "git-remote-https", "git-remote-http"],
        shown: "git",
        variables: &["GIT_SSL_CAINFO"],
        besides: "or set http.sslCAInfo",
    },
    Kind {
        names: &["python", "pypy", "aws", "gunicorn", "uvicorn", "celery"],
        shown: "Python",
        variables: &["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"],
        besides: "(ssl, httpx and aiohttp read the first, requests the second, boto3 the third)",
    },
    Kind {
        names: &["pip"],
        shown: "pip",
        variables: &["PIP_CERT", "REQUESTS_CA_BUNDLE"],
        besides: "or give it --cert",
    },
    Kind {
        names: &["node", "nodejs", "npm"],
        shown: "Node",
        variables: &["NODE_EXTRA_CA_CERTS"],
        besides: "(the authority's certificate alone)",
    },
    Kind { names: &["deno"], shown: "Deno", variables: &["DENO_CERT"], besides: "(the authority's certificate alone)" },
    Kind {
        names: &["java", "javaw"],
        shown: "Java",
        variables: &["JAVA_TOOL_OPTIONS"],
        besides: "to -Djavax.net.ssl.trustStore=STORE, a copy of its cacerts with the authority imported by keytool",
    },
    Kind { names: &["ruby", "puma", "unicorn"], shown: "Ruby", variables: &["SSL_CERT_FILE"], besides: "" },
    Kind {
        names: &["php", "php-fpm", "php-cgi"],
        shown: "PHP",
        variables: &["SSL_CERT_FILE", "PHP_INI_SCAN_DIR"],
        besides: "(the second names a folder with an .ini file that sets curl.cainfo and openssl.cafile)",
    },
    Kind { names: &["perl"], shown: "Perl", variables: &["PERL_LWP_SSL_CA_FILE", "SSL_CERT_FILE"], besides: "" },
    Kind {
        names: &["cargo"],
        shown: "cargo",
        variables: &["CARGO_HTTP_CAINFO"],
        besides: "or set http.cainfo in its configuration",
    },
    Kind {
        names: &["chrome", "chromium", "google-chrome", "msedge", "firefox", "firefox-esr"],
        shown: "a browser",
        variables: &[],
        besides: "import the authority into its own store (`certutil -d sql:$HOME/.pki/nssdb -A -t C -n retryscope -i \
                  CERTIFICATE`): it reads no variable",
    },
];

/// A client of no known kind: OpenSSL, Go, and what rustls uses on Linux read
/// this.
const ANY: Kind = Kind {
    names: &[],
    shown: "a client of OpenSSL's, Go's or rustls's kind",
    variables: &["SSL_CERT_FILE"],
    besides: "",
};

/// What makes `program` (its executable without folder and version) trust the
/// authority. `variable` tells what the client's environment holds: `None`
/// where that is not known.
pub fn remedy(program: &str, name: &str, variable: impl Fn(&str) -> Option<Option<String>>) -> String {
    let kind = KINDS.iter().find(|kind| kind.names.contains(&program)).unwrap_or(&ANY);
    let leave = format!("`--passthrough {name}` leaves the host alone from the start");
    let Some(first) = kind.variables.first() else {
        return format!("to look into it, {}; {leave}", kind.besides);
    };
    let states: Vec<_> = kind.variables.iter().map(|name| (*name, variable(name))).collect();
    let known = states.iter().all(|(_, state)| state.is_some());
    let unset: Vec<&str> =
        states.iter().filter(|(_, state)| matches!(state, Some(None))).map(|(name, _)| *name).collect();
    if known && unset.is_empty() {
        let set = states.iter().filter_map(|(name, state)| Some(format!("{name}={}", state.as_ref()?.as_deref()?)));
        let set = set.collect::<Vec<_>>().join(", ");
        return format!(
            "its environment has {set}: if that file holds the authority, the client pins its server or brings its \
             own trust, and nothing outside of it can change that; {leave}"
        );
    }
    // Whatever is set already was not enough: the rest is what is left to set.
    let wanted = if known { unset.join(" and ") } else { (*first).to_owned() };
    let besides = if kind.besides.is_empty() { String::new() } else { format!(" {}", kind.besides) };
    let told = if known { " (not set in its environment)" } else { "" };
    format!("to look into it, set {wanted}{told} for {}{besides}; `retryscope ca show` tells more; {leave}", kind.shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_this_client_reads() {
        let unset = |_: &str| Some(None);
        for (program, wanted) in [
            ("curl", "set CURL_CA_BUNDLE and SSL_CERT_FILE (not set in its environment) for curl or give it --cacert"),
            ("node", "set NODE_EXTRA_CA_CERTS"),
            ("java", "javax.net.ssl.trustStore"),
            ("wget", "set WGETRC (not set in its environment) for wget to a file that says ca_certificate=BUNDLE"),
            ("chromium", "certutil"),
            ("my-service", "set SSL_CERT_FILE"),
        ] {
            let said = remedy(program, "s3.test", unset);
            assert!(said.contains(wanted), "{program}: {said}");
            assert!(said.contains("--passthrough s3.test"), "{program}: {said}");
        }
    }

    #[test]
    fn knows_when_no_variable_helps() {
        let set = |_: &str| Some(Some("/run/x/bundle.pem".to_owned()));
        let said = remedy("curl", "s3.test", set);
        assert!(said.contains("CURL_CA_BUNDLE=/run/x/bundle.pem") && said.contains("pins its server"), "{said}");
        let some = |name: &str| Some((name == "SSL_CERT_FILE").then(|| "x".to_owned()));
        assert!(remedy("python", "a", some).contains("set REQUESTS_CA_BUNDLE and AWS_CA_BUNDLE"));
    }

    #[test]
    fn says_the_usual_where_nothing_is_known() {
        let said = remedy("curl", "a", |_| None);
        assert!(said.contains("set CURL_CA_BUNDLE for curl") && !said.contains("not set"), "{said}");
    }
}
