//! What `retryscope ca show` prints: the certificate, and how each kind of
//! client is told to trust it.
use std::path::Path;

use super::{
    TlsError,
    authority::{Authority, fingerprint},
    files, system,
};

/// The certificate in `folder`, as text for a person. Only the certificate is
/// read, so that whoever may see it may run this.
pub fn show(folder: &Path) -> Result<String, TlsError> {
    let path = Authority::certificate_path(folder);
    let bytes = files::read_bounded(&path).map_err(|source| TlsError::Read {
        what: "the authority's certificate",
        path: path.clone(),
        source,
    })?;
    let found = files::certificates(&bytes);
    let Some(der) = found.first() else { return Err(TlsError::NoCertificate { path }) };
    Ok(format!(
        "{pem}
SHA-256 {fingerprint}
File    {file}

Whoever trusts this certificate trusts whoever holds its key. Give it to the processes
you watch, not to the whole machine, unless that is meant.

`retryscope run` needs none of this: it makes an authority of its own for one command.

One process, by variables. BUNDLE is a file with the system's roots and this certificate:
  cat {system} {file} > BUNDLE

  curl                       CURL_CA_BUNDLE=BUNDLE (or SSL_CERT_FILE, or --cacert)
  OpenSSL, Python ssl/urllib SSL_CERT_FILE=BUNDLE
  Python httpx, aiohttp      SSL_CERT_FILE=BUNDLE
  Python requests            REQUESTS_CA_BUNDLE=BUNDLE
  boto3, AWS CLI             AWS_CA_BUNDLE=BUNDLE
  pip                        PIP_CERT=BUNDLE
  gRPC (C core)              GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=BUNDLE
  Go                         SSL_CERT_FILE=BUNDLE
  Ruby                       SSL_CERT_FILE=BUNDLE
  git                        GIT_SSL_CAINFO=BUNDLE
  cargo                      CARGO_HTTP_CAINFO=BUNDLE
  Deno                       DENO_CERT={file}
  Node                       NODE_EXTRA_CA_CERTS={file}
  Perl (LWP)                 PERL_LWP_SSL_CA_FILE=BUNDLE
  httplib2                   HTTPLIB2_CA_CERTS=BUNDLE
  wget                       ca_certificate = BUNDLE in the file that WGETRC names
  apt                        Acquire::https::CaInfo \"BUNDLE\"; in the file that APT_CONFIG names
  PHP                        curl.cainfo = BUNDLE, openssl.cafile = BUNDLE in a *.ini of PHP_INI_SCAN_DIR
  Java                       keytool -importcert -noprompt -alias retryscope -file {file} \\
                               -keystore COPY-OF-CACERTS -storepass changeit
                             JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=COPY-OF-CACERTS

The whole machine:
  Debian, Ubuntu, Alpine     cp {file} /usr/local/share/ca-certificates/retryscope.crt && update-ca-certificates
  RHEL, Fedora, Amazon       cp {file} /etc/pki/ca-trust/source/anchors/retryscope.pem && update-ca-trust

The system's store reaches curl, wget, git, OpenSSL, Go, Ruby and Python's ssl, and Java where the
distribution builds its store from it. It does not reach requests, httpx, boto3 and pip (they carry
the certifi or botocore bundle) nor Node: these need their variable.
Clients that pin certificates cannot be told: leave their hosts alone with --passthrough NAME.
",
        pem = system::encode(der).trim_end(),
        fingerprint = fingerprint(der),
        file = path.display(),
        system = system::bundles()
            .first()
            .map_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into(), |bundle| bundle.display().to_string()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_certificate_and_never_the_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Authority::init(folder.path(), &[]).expect("a pair");
        std::fs::remove_file(&made.key).expect("the key is not needed");
        let text = show(folder.path()).expect("text");
        assert!(text.starts_with("-----BEGIN CERTIFICATE-----\n"));
        assert!(text.contains(&made.fingerprint));
        assert!(!text.contains("PRIVATE KEY"));
        for client in ["curl", "requests", "boto3", "httpx", "Node", "Java", "Go ", "Ruby", "git", "Debian", "RHEL"] {
            assert!(text.contains(client), "{client}");
        }
        assert!(matches!(show(Path::new("/nowhere")), Err(TlsError::Read { .. })));
    }
}
