//! What is written and set for which environment.
use super::*;
use crate::tls::Authority;

struct Target {
    folder: tempfile::TempDir,
    pem: String,
    environment: BTreeMap<OsString, OsString>,
}

impl Target {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["plan", "home"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        let pem = Authority::in_memory().expect("an authority").certificate_pem().to_owned();
        let environment = [("PATH".into(), "/nowhere".into())].into();
        Self { folder, pem, environment }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.home().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.environment.insert(name.into(), value.as_ref().into());
    }

    fn plan(&self, mount: bool) -> TrustPlan {
        let plan = self.folder.path().join("plan");
        prepare(&TrustInput {
            authority_pem: &self.pem,
            folder: &plan,
            argv: &["curl".into()],
            environment: &self.environment,
            mount,
            cwd: &self.home(),
        })
        .expect("a plan")
    }
}

/// The file that a variable names.
fn named(plan: &TrustPlan, name: &str) -> String {
    let (_, path) = plan.environment.iter().find(|(set, _)| set == name).expect("set");
    fs::read_to_string(path).expect("readable")
}

fn other() -> String {
    Authority::in_memory().expect("an authority").certificate_pem().to_owned()
}

#[test]
fn variables_name_roots_and_ours() {
    let target = Target::new();
    let plan = target.plan(true);
    let ours = target.pem.as_str();
    for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO"]
    {
        let file = named(&plan, name);
        assert!(file.ends_with(ours) && file.len() > ours.len(), "{name}");
    }
    assert_eq!(named(&plan, "NODE_EXTRA_CA_CERTS"), ours);
    assert!(plan.environment.iter().all(|(name, _)| name != "SSL_CERT_DIR"));
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);

    let mut targets: Vec<_> = plan.binds.iter().map(|bind| &bind.target).collect();
    for (bind, target) in plan.binds.iter().zip(&targets) {
        assert_eq!(fs::canonicalize(target).expect("exists"), bind.target);
        let mode = bind.source.metadata().expect("written").permissions().mode();
        let expected = if bind.target.is_dir() { 0o755 } else { 0o644 };
        assert_eq!(mode & 0o7777, expected, "{}", bind.source.display());
    }
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), plan.binds.len());
    assert!(target.plan(false).binds.is_empty());
}

#[test]
fn what_the_user_set_is_extended() {
    let mut target = Target::new();
    let (corporate, extra) = (other(), other());
    let key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    // A relative path, and a file that has a key in it.
    target.file("corporate.pem", &format!("{key}{corporate}"));
    target.set("REQUESTS_CA_BUNDLE", "corporate.pem");
    let extra = target.file("extra.pem", &extra);
    target.set("NODE_EXTRA_CA_CERTS", &extra);
    target.set("GIT_SSL_CAINFO", "");
    let plan = target.plan(true);
    // Also where a client would have fallen back to what was set.
    for name in ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PIP_CERT"] {
        assert_eq!(named(&plan, name), format!("{corporate}{}", target.pem), "{name}");
    }
    assert!(!named(&plan, "CURL_CA_BUNDLE").contains(&corporate));
    assert!(named(&plan, "GIT_SSL_CAINFO").ends_with(&target.pem));
    assert_eq!(named(&plan, "NODE_EXTRA_CA_CERTS"), fs::read_to_string(extra).expect("readable") + &target.pem);
    for entry in fs::read_dir(target.folder.path().join("plan")).expect("a folder").flatten() {
        if entry.path().is_dir() {
            // A browser's policies.
            continue;
        }
        let bytes = fs::read(entry.path()).expect("readable");
        assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"), "{:?}", entry.path());
    }
}

#[test]
fn folder_of_certificates_is_joined() {
    let mut target = Target::new();
    let (one, two) = (other(), other());
    target.file("one.pem", &one);
    target.file("both.pem", &format!("{one}{two}"));
    target.file("readme", "nothing");
    std::os::unix::fs::symlink("one.pem", target.home().join("0a0a0a0a.0")).expect("linked");
    target.set("REQUESTS_CA_BUNDLE", target.home());
    let file = named(&target.plan(false), "REQUESTS_CA_BUNDLE");
    assert_eq!(file.matches("BEGIN CERTIFICATE").count(), 3);
    assert!(file.contains(&one) && file.contains(&two) && file.ends_with(&target.pem));
}

#[test]
fn what_cannot_be_read_is_noted_once() {
    let mut target = Target::new();
    let pipe = target.home().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    target.set("REQUESTS_CA_BUNDLE", &pipe);
    target.set("SSL_CERT_FILE", "/nowhere/at/all");
    target.set("GIT_SSL_CAINFO", target.file("empty", "nothing"));
    target.set("JAVA_HOME", "\u{7f}");
    target.set("PYENV_VERSION", "../../..");
    let plan = target.plan(true);
    assert_eq!(plan.notes.len(), 3, "{:?}", plan.notes);
    assert_eq!(plan.notes.iter().filter(|note| note.contains("cannot be read")).count(), 2);
    assert_eq!(plan.notes.iter().filter(|note| note.contains("no certificate")).count(), 1);
    assert!(named(&plan, "REQUESTS_CA_BUNDLE").ends_with(&target.pem));
    assert!(named(&plan, "SSL_CERT_FILE").len() > target.pem.len());
}

#[test]
fn planning_again_replaces_and_no_link_is_followed() {
    let target = Target::new();
    let precious = target.file("precious", "precious");
    let link = target.folder.path().join("plan/bundle.pem");
    std::os::unix::fs::symlink(&precious, &link).expect("linked");
    target.plan(true);
    target.plan(true);
    assert_eq!(fs::read_to_string(precious).expect("readable"), "precious");
    assert!(link.symlink_metadata().expect("written").is_file());
}

#[test]
fn folder_that_is_absent_is_an_error() {
    let target = Target::new();
    fs::remove_dir(target.folder.path().join("plan")).expect("removed");
    let error = prepare(&TrustInput {
        authority_pem: &target.pem,
        folder: &target.folder.path().join("plan"),
        argv: &[],
        environment: &target.environment,
        mount: true,
        cwd: Path::new("/"),
    })
    .expect_err("no folder");
    assert!(matches!(error, TlsError::Write { .. }), "{error}");
}

/// Clients that are told by a file of settings: the user's own are kept.
#[test]
fn settings_are_kept() {
    let mut target = Target::new();
    let ours = target.pem.clone();
    let theirs = other();
    let path = target.file("roots.pem", &theirs);
    target.file(".wgetrc", &format!("tries = 1\n# ca_certificate = /x\nCA_certificate = {}", path.display()));
    target.set("HOME", target.home());
    let config = target.file("apt.conf", "APT::Get::Yes \"1\";");
    target.set("APT_CONFIG", config);
    target.set("PHP_INI_SCAN_DIR", "/their/folder");

    let plan = target.plan(false);
    let wget = named(&plan, "WGETRC");
    assert!(wget.starts_with("tries = 1\n"), "{wget}");
    let bundle = wget.trim_end().rsplit(" = ").next().expect("a value");
    let bundle = fs::read_to_string(bundle).expect("a bundle");
    assert!(bundle.starts_with(&theirs) && bundle.ends_with(&ours));
    let apt = named(&plan, "APT_CONFIG");
    assert!(apt.starts_with("APT::Get::Yes \"1\";\nAcquire::https::CaInfo \""), "{apt}");
    let (_, folders) = plan.environment.iter().find(|(name, _)| name == "PHP_INI_SCAN_DIR").expect("set");
    let folder = folders.to_str().and_then(|value| value.strip_prefix("/their/folder:")).expect("theirs first");
    let php = fs::read_to_string(Path::new(folder).join("retryscope.ini")).expect("a file");
    assert!(php.contains("curl.cainfo") && php.contains("openssl.cafile"), "{php}");

    let mounted = target.plan(true);
    for name in ["WGETRC", "APT_CONFIG", "PHP_INI_SCAN_DIR", "JAVA_TOOL_OPTIONS"] {
        assert!(mounted.environment.iter().all(|(set, _)| set != name), "{name}");
    }
    // They may hold passwords: what not everybody may read is not copied.
    fs::set_permissions(target.home().join(".wgetrc"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let private = target.plan(false);
    assert!(private.environment.iter().all(|(set, _)| set != "WGETRC"));
    assert!(private.notes.iter().any(|note| note.contains("wget") && note.contains(".wgetrc")), "{:?}", private.notes);
}
