//! Real clients against a leaf of ours: who trusts it by the files bound over
//! the system's, who by the variables, and who by neither.
//!
//! Each client runs with nothing in its environment but what the plan sets,
//! and in a mount namespace of its own. Needs root, and the programs it names.
#![allow(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
};

use retryscope::tls::{Authority, Bind, Leaves, Parsed, Servers, TrustInput, TrustPlan, hello, prepare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the Python clients need; a folder that has more will do.
const PACKAGES: [&str; 3] = ["boto3", "requests", "httpx"];

/// Longer than any client takes on a busy machine, in seconds.
const DEADLINE: &str = "100";

const URLLIB: &str = "import ssl, sys, urllib.request
context = ssl.create_default_context()
context.verify_flags |= ssl.VERIFY_X509_STRICT
print(urllib.request.urlopen(sys.argv[1], context=context).status)";

const REQUESTS: &str = "import requests, sys
print(requests.get(sys.argv[1]).status_code)";

const HTTPX: &str = "import httpx, sys
print(httpx.get(sys.argv[1]).status_code)";

const PIP: &str = "import sys
from pip._vendor import requests
print(requests.get(sys.argv[1]).status_code)";

const BOTO3: &str = "import boto3, botocore.config, sys
once = botocore.config.Config(retries={'total_max_attempts': 1})
client = boto3.client('s3', endpoint_url=sys.argv[1], region_name='eu-west-1', config=once,
                      aws_access_key_id='a', aws_secret_access_key='b')
print(client.list_buckets()['ResponseMetadata']['HTTPStatusCode'])";

const NODE: &str = "fetch(process.argv[1]).then(r => r.text()).then(() => console.log('200'))
.catch(e => { console.error(e.cause ?? e); process.exit(1) })";

const JAVA: &str = r#"import java.net.URI;
import java.net.http.*;
class Get {
    public static void main(String[] a) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(a[0])).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}"#;

/// Go checks as strictly as anyone, and needs no library.
const GO: &str = r#"package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		os.Exit(2)
	}
	fmt.Println(answer.StatusCode)
}
"#;

struct Client {
    name: &'static str,
    argv: Vec<OsString>,
}

/// A TLS server that answers every request, with leaves minted as the data
/// path mints them.
struct Server {
    url: String,
    port: u16,
    authority_pem: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(authority: Authority) -> Self {
        let authority = Arc::new(authority);
        let authority_pem = authority.certificate_pem().to_owned();
        let leaves = Arc::new(Leaves::new(authority).unwrap());
        let servers = Arc::new(Servers::new().unwrap());
        // What the upstream would show. Java sends no name for `localhost`,
        // so that these are what its leaf is made of.
        let theirs =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "*.upstream.test".to_owned()]).unwrap();
        let theirs = theirs.cert.der().clone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut io, _)) = listener.accept().await {
                let (leaves, servers, theirs) = (Arc::clone(&leaves), Arc::clone(&servers), theirs.clone());
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    let hello = loop {
                        match hello::parse(&bytes) {
                            Parsed::Hello(hello) => break hello,
                            Parsed::Opaque(why) => panic!("a client sent {why}"),
                            Parsed::NeedMore => {}
                        }
                        if io.read_buf(&mut bytes).await? == 0 {
                            return Err(std::io::ErrorKind::UnexpectedEof.into());
                        }
                    };
                    let name = hello.client.server_name.as_deref();
                    let leaf = leaves.for_upstream(name, &theirs).unwrap();
                    let alpn = hello.client.alpn.iter().any(|offered| offered == b"http/1.1").then_some(&b"http/1.1"[..]);
                    let config = servers.config(&leaf, alpn).unwrap();
                    let rest = bytes.split_off(hello.length);
                    let mut stream = hello.accept(config, io, &rest)?.await?;
                    let mut head = Vec::new();
                    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await? == 0 {
                            break;
                        }
                    }
                    let body = if head.windows(9).any(|part| part == b"info/refs") { "" } else { "<ListAllMyBucketsResult/>" };
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await?;
                    stream.shutdown().await
                });
            }
        });
        Self { url: format!("https://localhost:{port}/"), port, authority_pem, _runtime: runtime }
    }
}

/// Everything a scenario needs.
struct Setting {
    server: Server,
    folder: tempfile::TempDir,
    python: PathBuf,
    go: PathBuf,
}

impl Setting {
    fn new(authority: Authority) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make mount namespaces: run them as root");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Get.java"), JAVA).unwrap();
        Self { server: Server::start(authority), folder, python: python(), go: go() }
    }

    fn clients(&self) -> Vec<Client> {
        let url = self.server.url.as_str();
        let python = self.python.to_str().unwrap();
        let java = self.folder.path().join("Get.java");
        let refs = format!("{url}x.git");
        let address = format!("localhost:{}", self.server.port);
        let of = |name, argv: &[&str]| Client { name, argv: argv.iter().map(OsString::from).collect() };
        vec![
            of("java", &["java", "-XX:TieredStopAtLevel=1", java.to_str().unwrap(), url]),
            of("boto3", &[python, "-c", BOTO3, url]),
            of("requests", &[python, "-c", REQUESTS, url]),
            of("httpx", &[python, "-c", HTTPX, url]),
            of("pip", &[python, "-c", PIP, url]),
            of("urllib", &[python, "-c", URLLIB, url]),
            of("go", &[self.go.to_str().unwrap(), url]),
            of("node", &["node", "-e", NODE, url]),
            of("curl", &["curl", "-sS", "--fail", url]),
            of("wget", &["wget", "-q", "-O", "-", "--tries=1", url]),
            of("git", &["git", "ls-remote", &refs]),
            of(
                "openssl",
                &[
                    "openssl",
                    "s_client",
                    "-connect",
                    &address,
                    "-servername",
                    "localhost",
                    "-verify_hostname",
                    "localhost",
                    "-verify_return_error",
                    "-x509_strict",
                    "-brief",
                ],
            ),
        ]
    }

    fn plan(&self, mount: bool) -> TrustPlan {
        let files = self.folder.path().join(if mount { "mount" } else { "no-mount" });
        std::fs::create_dir(&files).unwrap();
        let environment: BTreeMap<OsString, OsString> = environment().into_iter().collect();
        let input = TrustInput {
            authority_pem: &self.server.authority_pem,
            folder: &files,
            argv: &[self.python.clone().into(), "app.py".into()],
            environment: &environment,
            mount,
            cwd: self.folder.path(),
        };
        let started = std::time::Instant::now();
        let plan = prepare(&input).unwrap();
        println!("prepared in {:?}: {} binds, notes {:?}", started.elapsed(), plan.binds.len(), plan.notes);
        assert_eq!(plan.notes, Vec::<String>::new());
        plan
    }
}

fn environment() -> Vec<(OsString, OsString)> {
    [("PATH", SYSTEM_PATH), ("HOME", "/nonexistent"), ("LANG", "C.UTF-8"), ("PYTHONDONTWRITEBYTECODE", "1")]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
}

/// Python with the packages: the one given, the one all tests share, or one
/// made here.
fn python() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(make_python).clone()
}

fn make_python() -> PathBuf {
    if let Some(given) = std::env::var_os("RETRYSCOPE_TEST_VENV") {
        return Path::new(&given).join("bin/python");
    }
    // …/target/debug/retryscope
    let venvs = Path::new(env!("CARGO_BIN_EXE_retryscope")).ancestors().nth(2).unwrap().join("venvs");
    let shared = venvs.join("clients");
    if shared.join(".complete").exists() {
        return shared.join("bin/python");
    }
    let own = venvs.join("tls");
    let python = own.join("bin/python");
    if !own.join(".complete").exists() {
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}; it needs python3-venv and a package index");
        };
        run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&own));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES));
        std::fs::write(own.join(".complete"), PACKAGES.join(" ")).unwrap();
    }
    python
}

/// The Go client, built once.
fn go() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        // …/target/debug/retryscope
        let folder = Path::new(env!("CARGO_BIN_EXE_retryscope")).ancestors().nth(2).unwrap().join("go");
        std::fs::create_dir_all(&folder).unwrap();
        // Another run may build it at the same time: into its own file first.
        let own = tempfile::tempdir_in(&folder).unwrap();
        let (source, built, program) = (own.path().join("get.go"), own.path().join("get"), folder.join("get"));
        std::fs::write(&source, GO).unwrap();
        let output = Command::new("go")
            .args(["build", "-o"])
            .args([&built, &source])
            .env_clear()
            .envs(environment())
            .env("GOCACHE", folder.join("cache"))
            .env("GOPATH", folder.join("path"))
            .env("CGO_ENABLED", "0")
            .output();
        let output = output.expect("go is not installed: `apt-get install golang-go`");
        assert!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(built, &program).unwrap();
        program
    };
    BUILT.get_or_init(build).clone()
}

/// Runs a client; what went wrong, if anything did.
fn run(client: &Client, variables: &[(OsString, OsString)], binds: &[Bind]) -> Result<(), String> {
    let mut script = String::from("set -e\n");
    for (at, _) in binds.iter().enumerate() {
        script.push_str(&format!("mount --bind \"$SOURCE{at}\" \"$TARGET{at}\"; unset SOURCE{at} TARGET{at}\n"));
    }
    script.push_str("exec timeout \"$@\"\n");
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script, "sh", DEADLINE]).args(&client.argv);
    command.env_clear().envs(environment()).envs(variables.iter().cloned());
    for (at, bind) in binds.iter().enumerate() {
        command.env(format!("SOURCE{at}"), &bind.source).env(format!("TARGET{at}"), &bind.target);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{}: {} {}", client.name, output.status, String::from_utf8_lossy(&said).trim()))
}

/// The clients that got an answer, a few at a time; every failure must be one
/// of trust.
fn trusting(clients: &[Client], variables: &[(OsString, OsString)], binds: &[Bind]) -> Vec<&'static str> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results = std::sync::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(client) = clients.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let result = run(client, variables, binds);
                    results.lock().unwrap().insert(client.name, result);
                }
            });
        }
    });
    let mut trusting = Vec::new();
    for (name, result) in results.into_inner().unwrap() {
        match result {
            Ok(()) => trusting.push(name),
            Err(said) => {
                let said_so = ["certif", "SSLHandshake", "CERT", "PKIX", "permitted subtree", "x509:"]
                    .iter()
                    .any(|word| said.contains(word));
                // wget -q says nothing; 5 is its "SSL verification failure".
                assert!(said_so || said.contains("exit status: 5"), "not about trust: {said}");
            }
        }
    }
    trusting
}

fn all_but(clients: &[Client], without: &[&str]) -> Vec<&'static str> {
    let mut names: Vec<_> = clients.iter().map(|client| client.name).filter(|name| !without.contains(name)).collect();
    names.sort_unstable();
    names
}

#[test]
fn clients_trust_by_binds_and_by_variables() {
    let setting = Setting::new(Authority::in_memory().unwrap());
    let clients = setting.clients();

    // Without either nobody does: the rest of the test means something.
    assert_eq!(trusting(&clients, &[], &[]), Vec::<&str>::new());

    let mounted = setting.plan(true);
    assert_eq!(trusting(&clients, &[], &mounted.binds), all_but(&clients, &["node"]));
    assert!(mounted.environment.iter().all(|(name, _)| name != "JAVA_TOOL_OPTIONS"), "it would be announced on stderr");

    let unmounted = setting.plan(false);
    assert_eq!(unmounted.binds, []);
    assert_eq!(trusting(&clients, &unmounted.environment, &[]), all_but(&clients, &[]));

    // As `run` does it: everyone.
    assert_eq!(trusting(&clients, &mounted.environment, &mounted.binds), all_but(&clients, &[]));

    // Each variable alone.
    for (name, expected) in [
        ("SSL_CERT_FILE", &["curl", "go", "httpx", "openssl", "urllib"][..]),
        ("CURL_CA_BUNDLE", &["curl", "pip", "requests"]),
        ("REQUESTS_CA_BUNDLE", &["boto3", "pip", "requests"]),
        ("AWS_CA_BUNDLE", &["boto3"]),
        ("GIT_SSL_CAINFO", &["git"]),
        ("NODE_EXTRA_CA_CERTS", &["node"]),
    ] {
        let variable = mounted.environment.iter().find(|(set, _)| set == OsStr::new(name)).unwrap();
        // Java is slow to start, and reads none of them.
        let clients: Vec<Client> = setting.clients().into_iter().filter(|client| client.name != "java").collect();
        assert_eq!(trusting(&clients, std::slice::from_ref(variable), &[]), expected, "{name} alone");
    }
}

/// An authority on disk that may vouch for one domain only: strict clients
/// read its limits, and must find the leaf within them.
#[test]
fn clients_accept_an_authority_with_limits() {
    let folder = tempfile::tempdir().unwrap();
    for (domain, permitted) in [("localhost", true), ("elsewhere.test", false)] {
        let folder = folder.path().join(domain);
        Authority::init(&folder, &[domain.to_owned()]).unwrap();
        let setting = Setting::new(Authority::load_from(&folder).unwrap());
        let plan = setting.plan(true);
        let clients: Vec<Client> = setting
            .clients()
            .into_iter()
            .filter(|client| ["java", "urllib", "go", "node", "curl", "wget", "openssl"].contains(&client.name))
            .collect();
        let found = trusting(&clients, &plan.environment, &plan.binds);
        // Java does not read limits in a certificate that it trusts outright.
        assert_eq!(found, if permitted { all_but(&clients, &[]) } else { vec!["java"] }, "{domain}");
    }
}

/// Java's own tool reads what is written in the place of each kind of store.
#[test]
fn keytool_reads_the_stores() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keytool = |arguments: &[&str]| {
        let output = Command::new("keytool").args(arguments).env_clear().envs(environment()).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "keytool {arguments:?}: {said}");
        said
    };
    let theirs = folder.join("theirs.pem");
    std::fs::write(&theirs, Authority::in_memory().unwrap().certificate_pem()).unwrap();
    let home = folder.join("home/lib/security");
    std::fs::create_dir_all(&home).unwrap();
    let store = home.join("cacerts");
    for (kind, expected) in [
        // As Java ships it since 18: neither encrypted nor sealed.
        (
            &[
                "-storetype",
                "PKCS12",
                "-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE",
                "-J-Dkeystore.pkcs12.macAlgorithm=NONE",
            ][..],
            Some(2),
        ),
        (&["-storetype", "JKS"], Some(2)),
        // Encrypted: the system's roots stand in.
        (&["-storetype", "PKCS12"], None),
    ] {
        let import = ["-importcert", "-noprompt", "-alias", "theirs", "-storepass", "changeit", "-file"];
        let (theirs, path) = (theirs.to_str().unwrap(), store.to_str().unwrap());
        keytool(&[&import[..], &[theirs, "-keystore", path], kind].concat());
        let environment: BTreeMap<OsString, OsString> = [("JAVA_HOME".into(), folder.join("home").into())].into();
        let plan = folder.join("plan");
        std::fs::create_dir_all(&plan).unwrap();
        let plan = prepare(&TrustInput {
            authority_pem: Authority::in_memory().unwrap().certificate_pem(),
            folder: &plan,
            argv: &["java".into()],
            environment: &environment,
            mount: true,
            cwd: folder,
        })
        .unwrap();
        let real = store.canonicalize().unwrap();
        let bind = plan.binds.iter().find(|bind| bind.target == real).unwrap();
        let said = keytool(&["-list", "-storepass", "changeit", "-keystore", bind.source.to_str().unwrap()]);
        let count = said.matches("trustedCertEntry").count();
        assert!(said.contains("retryscope-0"), "{said}");
        match expected {
            Some(expected) => assert_eq!((count, plan.notes.len()), (expected, 0), "{kind:?}: {said}"),
            None => assert!(count > 50 && plan.notes.len() == 1, "{kind:?}: {count}, {:?}", plan.notes),
        }
        std::fs::remove_file(&store).unwrap();
    }
}
