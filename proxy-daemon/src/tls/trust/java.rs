//! Java's store of trusted certificates.
//!
//! In: the target's command and environment. Out: the stores that a Java
//! machine started by it would read, and extended copies of them. A copy is
//! always JKS: every Java reads that under either name
//! (`keystore.type.compat`), and without a password. `keytool` would take a
//! second per call, so it is not used.
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TrustInput, files, jks, system, which};

const PROPERTY: &str = "-Djavax.net.ssl.trustStore=";
const PASSWORD: &str = "-Djavax.net.ssl.trustStorePassword=";
const USUAL_PASSWORD: &str = "changeit";

/// Options that a Java machine takes from its environment.
const OPTION_VARIABLES: [&str; 3] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"];

/// Where distributions put Java machines; each is looked into one level deep.
const HOMES: [&str; 3] = ["/usr/lib/jvm", "/usr/java", "/opt/java"];

/// Java machines looked at under one of [`HOMES`].
const MAX_HOMES: usize = 32;

/// A store that a Java machine would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Store {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    password: String,
}

/// The stores in reach of the command, the likeliest first: named by an
/// option, of `JAVA_HOME`, of the `java` on `PATH`, of the system.
pub(super) fn stores(input: &TrustInput<'_>) -> Vec<Store> {
    let mut found: Vec<Store> = Vec::new();
    let mut add = |path: &Path, password: &str| {
        if let Ok(path) = path.canonicalize()
            && path.is_file()
            && found.iter().all(|store| store.path != path)
        {
            found.push(Store { path, password: password.into() });
        }
    };
    let options = options(input);
    let value = |property: &str| options.iter().rev().find_map(|option| option.strip_prefix(property));
    if let Some(named) = value(PROPERTY) {
        add(&input.cwd.join(named), value(PASSWORD).unwrap_or(USUAL_PASSWORD));
    }
    let mut homes: Vec<PathBuf> = Vec::new();
    homes.extend(input.environment.get(OsStr::new("JAVA_HOME")).map(|home| input.cwd.join(home)));
    let named = input.argv.first().filter(|name| Path::new(name).file_name() == Some(OsStr::new("java")));
    for java in named.map(OsString::as_os_str).into_iter().chain([OsStr::new("java")]) {
        // `…/bin/java`, behind whatever links lead there.
        let java = which(java, input.environment, input.cwd).and_then(|java| java.canonicalize().ok());
        homes.extend(java.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_owned));
    }
    for parent in HOMES {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        homes.extend(entries.take(MAX_HOMES).map(|entry| entry.path()));
    }
    for home in homes {
        for place in ["lib/security", "jre/lib/security"] {
            // The first that exists is the one that Java reads.
            let place = home.join(place);
            let store = ["jssecacerts", "cacerts"].map(|name| place.join(name)).into_iter().find(|path| path.exists());
            if let Some(store) = store {
                add(&store, USUAL_PASSWORD);
            }
        }
    }
    add(Path::new("/etc/ssl/certs/java/cacerts"), USUAL_PASSWORD);
    add(Path::new("/etc/pki/java/cacerts"), USUAL_PASSWORD);
    add(Path::new("/etc/pki/ca-trust/extracted/java/cacerts"), USUAL_PASSWORD);
    found
}

/// A store of the system's roots and `ours`, for a Java machine that is not
/// here.
pub(super) fn of_system(ours: &[CertificateDer<'_>]) -> Vec<u8> {
    extended(&Store { path: PathBuf::new(), password: USUAL_PASSWORD.into() }, ours).0
}

/// A copy of the store with `ours` added, and a note where the store itself
/// could not be read and the system's roots stand in for it.
pub(super) fn extended(store: &Store, ours: &[CertificateDer<'_>]) -> (Vec<u8>, Option<String>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = u64::try_from(now.as_millis()).unwrap_or(0);
    let entry = |alias: String, der: &[u8]| jks::Trusted { alias, since, certificate: der.to_vec() };
    let bytes = files::read_bounded(&store.path).unwrap_or_default();
    let mut note = None;
    let mut entries = match jks::decode(&bytes) {
        Some(entries) => entries,
        None => {
            let found = plain_pkcs12(&bytes);
            let certificates: Vec<&[u8]>;
            let roots;
            if found.is_empty() {
                note = Some(format!(
                    "Java's store {} could not be read; the system's roots stand in for it",
                    store.path.display()
                ));
                roots = system::roots();
                certificates = roots.iter().map(AsRef::as_ref).collect();
            } else {
                certificates = found;
            }
            certificates.iter().enumerate().map(|(at, der)| entry(format!("root-{at}"), der)).collect()
        }
    };
    entries.extend(ours.iter().enumerate().map(|(at, der)| entry(format!("retryscope-{at}"), der)));
    (jks::encode(&entries, &store.password), note)
}

/// The variable that names an extended store, kept together with the options
/// the user has set. Each Java machine says on stderr that it picked it up.
pub(super) fn option(environment: &BTreeMap<OsString, OsString>, store: &Path) -> (OsString, OsString) {
    let name = OsString::from("JAVA_TOOL_OPTIONS");
    let mut value = environment.get(&name).cloned().unwrap_or_default();
    if !value.is_empty() {
        value.push(" ");
    }
    value.push(PROPERTY);
    value.push(store);
    (name, value)
}

/// Options on the command line and in the environment, the latter first.
fn options(input: &TrustInput<'_>) -> Vec<String> {
    let set = OPTION_VARIABLES.iter().filter_map(|name| input.environment.get(OsStr::new(name))).flat_map(|value| {
        value
            .to_string_lossy()
            .split_whitespace()
            .map(|word| word.trim_matches(['"', '\'']).to_owned())
            .collect::<Vec<_>>()
    });
    set.chain(input.argv.iter().take(64).map(|word| word.to_string_lossy().into_owned())).collect()
}

/// The certificates of a PKCS #12 store that is not encrypted, which is what
/// Java ships since version 18: every `x509Certificate` bag (RFC 7292 §4.2.3),
/// found by its object identifier.
fn plain_pkcs12(bytes: &[u8]) -> Vec<&[u8]> {
    /// OID 1.2.840.113549.1.9.22.1.
    const X509_CERTIFICATE: [u8; 12] = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
    const EXPLICIT_0: u8 = 0xa0;
    const OCTET_STRING: u8 = 0x04;
    let mut found = Vec::new();
    for (at, window) in bytes.windows(X509_CERTIFICATE.len()).enumerate() {
        if window == X509_CERTIFICATE
            && let Some(rest) = bytes.get(at + X509_CERTIFICATE.len()..)
            && let Some(value) = contents(rest, EXPLICIT_0)
            && let Some(der) = contents(value, OCTET_STRING)
            && X509Certificate::from_der(der).is_ok()
        {
            found.push(der);
        }
    }
    found
}

/// The contents of a DER value of the tag given.
fn contents(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let [found, first, rest @ ..] = bytes else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_is_added_to_the_users() {
        let mut environment = BTreeMap::new();
        let store = Path::new("/run/store.jks");
        assert_eq!(option(&environment, store).1, "-Djavax.net.ssl.trustStore=/run/store.jks");
        environment.insert("JAVA_TOOL_OPTIONS".into(), "-Xmx1g".into());
        assert_eq!(option(&environment, store).1, "-Xmx1g -Djavax.net.ssl.trustStore=/run/store.jks");
    }

    #[test]
    fn store_named_by_an_option_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("a path");
        std::fs::write(folder.join("mine"), "junk").expect("written");
        let environment: BTreeMap<OsString, OsString> =
            [("JAVA_TOOL_OPTIONS".into(), "-Xmx1g -Djavax.net.ssl.trustStorePassword=secret".into())].into();
        let argv = ["java", "-Djavax.net.ssl.trustStore=mine", "Main"].map(OsString::from);
        let input = TrustInput {
            authority_pem: "",
            folder: &folder,
            argv: &argv,
            environment: &environment,
            mount: true,
            cwd: &folder,
        };
        let stores = stores(&input);
        assert_eq!(stores.first(), Some(&Store { path: folder.join("mine"), password: "secret".into() }));
        let (bytes, note) = extended(&stores[0], &[CertificateDer::from(b"ours".to_vec())]);
        assert!(note.is_some());
        let entries = jks::decode(&bytes).expect("a store");
        assert!(entries.iter().any(|entry| entry.certificate == b"ours"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes: Vec<u8>, at in 0_usize..100) {
            let at = at.min(bytes.len());
            bytes.splice(at..at, [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01, 0xa0, 0x84]);
            plain_pkcs12(&bytes);
        }
    }
}
