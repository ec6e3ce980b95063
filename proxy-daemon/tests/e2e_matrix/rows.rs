//! The clients: how each is run, what answers it, and which variables are
//! expected to be enough for it.
use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{
    common::{NAME, Running, TestCa, clients, own_address, sha256},
    handlers::{self, made},
    site::{Handler, Site},
    words,
};

/// A line of the page.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    /// What the report calls the process: the end of its program's path, or a
    /// part of its command line.
    pub(crate) process: &'static str,
    /// The variables that are tried alone; all others together must not be
    /// enough.
    pub(crate) variables: &'static [&'static str],
    /// What it speaks, where that is more than HTTP.
    pub(crate) protocol: Option<&'static str>,
    /// It asks for several things at once.
    pub(crate) unordered: bool,
    /// Nobody can tell it whom to trust.
    pub(crate) closed: bool,
    /// What it says on standard error has times and numbers in it.
    pub(crate) noisy: bool,
    pub(crate) slow: bool,
    /// Makes it, in a folder of its own.
    pub(crate) make: fn(&Path, &TestCa) -> (Client, Server),
}

/// A client, ready to be run again and again; each time in the folder that
/// has an empty `work` in it, which is its home.
#[derive(Default)]
pub(crate) struct Client {
    pub(crate) command: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Fills `work` before each run.
    pub(crate) prepare: Option<Prepare>,
    /// Names of files that it makes below `work`.
    pub(crate) artifacts: &'static [&'static str],
}

type Prepare = Box<dyn Fn(&Path) + Send + Sync>;

pub(crate) enum Server {
    Site(Site),
    /// A program that writes a line for each request.
    Program {
        address: SocketAddr,
        log: PathBuf,
        _process: Running,
    },
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Site(site) => site.address,
            Self::Program { address, .. } => *address,
        }
    }

    /// What was received since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        match self {
            Self::Site(site) => site.take(),
            Self::Program { log, .. } => {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let _ = std::fs::remove_file(log);
                text.lines().map(str::to_owned).collect()
            }
        }
    }
}

const ROW: Row = Row {
    group: "",
    name: "",
    process: "",
    variables: &[],
    protocol: None,
    unordered: false,
    closed: false,
    noisy: false,
    slow: false,
    make: |_, _| unreachable!("every row makes its client"),
};

fn origin() -> String {
    format!("https://{NAME}")
}

fn url(path: &str) -> String {
    format!("https://{NAME}{path}")
}

fn against(ca: &TestCa, handler: Handler, command: Vec<OsString>) -> (Client, Server) {
    (Client { command, ..Client::default() }, Server::Site(Site::start(ca, handler)))
}

fn script(name: &str) -> PathBuf {
    clients::script(&format!("matrix/{name}"))
}

pub(crate) fn all() -> Vec<Row> {
    [programs(), python(), node(), languages(), package_managers()].concat()
}

fn programs() -> Vec<Row> {
    let group = "Programs";
    vec![
        Row {
            group,
            name: "curl",
            process: "/curl",
            variables: &["CURL_CA_BUNDLE", "SSL_CERT_FILE"],
            make: |folder, ca| curl(folder, ca, "--http2"),
            ..ROW
        },
        Row {
            group,
            name: "curl --http1.1",
            process: "/curl",
            variables: &["CURL_CA_BUNDLE", "SSL_CERT_FILE"],
            make: |folder, ca| curl(folder, ca, "--http1.1"),
            ..ROW
        },
        Row {
            group,
            name: "wget",
            process: "/wget",
            variables: &["WGETRC"],
            make: |folder, ca| {
                let script = format!(
                    "wget -qO- {} | sha256sum; wget -qO- --post-file={}/body {} | sha256sum",
                    url("/bytes/70000"),
                    folder.display(),
                    url("/echo")
                );
                let checked = format!("set -o pipefail; {script}").replace(';', " &&");
                clients::need("wget", "wget");
                against(ca, handlers::plain(), words!["bash", "-c", checked])
            },
            ..ROW
        },
        Row { group, name: "git clone", process: "/git-remote-http", variables: &["GIT_SSL_CAINFO"], make: git, ..ROW },
        Row {
            group,
            name: "Chromium (headless)",
            process: "chromium",
            unordered: true,
            noisy: true,
            slow: true,
            make: |folder, ca| {
                let profile = folder.join("work/profile");
                let mut command = words![clients::need("chromium", "chromium"), "--headless", "--no-sandbox"];
                for flag in [
                    "disable-gpu",
                    "no-first-run",
                    "disable-background-networking",
                    "disable-component-update",
                    "disable-sync",
                ] {
                    command.push(format!("--{flag}").into());
                }
                command.extend(words![format!("--user-data-dir={}", profile.display()), "--dump-dom", url("/page")]);
                against(ca, handlers::plain(), command)
            },
            ..ROW
        },
    ]
}

fn curl(folder: &Path, ca: &TestCa, protocol: &str) -> (Client, Server) {
    let body = format!("@{}/body", folder.display());
    let get = words![clients::curl(), "-sS", "--fail", protocol, url("/bytes/70000")];
    let post = words!["--next", "-sS", "--fail", protocol, "--data-binary", body, url("/echo")];
    against(ca, handlers::plain(), [get, post].concat())
}

fn git(folder: &Path, ca: &TestCa) -> (Client, Server) {
    let origin = folder.join("served");
    let commands: &[&[&str]] = &[
        &["git", "init", "-q", "--bare", "served/hello.git"],
        &["git", "init", "-q", "-b", "main", "source"],
        &["sh", "-c", "seq 20000 >source/numbers && echo hello >source/hello"],
        &["git", "-C", "source", "add", "."],
        &["git", "-C", "source", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all of it"],
        &["git", "-C", "source", "push", "-q", "../served/hello.git", "main"],
        &["git", "-C", "served/hello.git", "symbolic-ref", "HEAD", "refs/heads/main"],
    ];
    made(folder, commands);
    let clone = folder.join("work/clone");
    let command = words![clients::need("git", "git"), "clone", "-q", url("/hello.git"), clone];
    let (client, server) = against(ca, handlers::git(&origin), command);
    (Client { artifacts: &["numbers", "hello"], ..client }, server)
}

/// Python with the clients of the matrix.
fn matrix_python() -> PathBuf {
    clients::matrix_python()
}

fn python_get(ca: &TestCa, library: &str) -> (Client, Server) {
    against(ca, handlers::plain(), words![matrix_python(), script("get.py"), library, origin()])
}

fn python() -> Vec<Row> {
    let group = "Python";
    let process = "/python3";
    let row = Row { group, process, ..ROW };
    let openssl: &[&str] = &["SSL_CERT_FILE"];
    let requests: &[&str] = &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    let botocore: &[&str] = &["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"];
    vec![
        Row {
            name: "ssl, urllib",
            process: "get.py",
            variables: openssl,
            make: |_, ca| python_get(ca, "urllib"),
            ..row
        },
        Row {
            name: "requests",
            process: "get.py",
            variables: requests,
            make: |_, ca| python_get(ca, "requests"),
            ..row
        },
        Row { name: "httpx", process: "get.py", variables: openssl, make: |_, ca| python_get(ca, "httpx"), ..row },
        Row {
            name: "httpx with HTTP/2",
            process: "get.py",
            variables: openssl,
            make: |_, ca| python_get(ca, "httpx-h2"),
            ..row
        },
        Row { name: "aiohttp", process: "get.py", variables: openssl, make: |_, ca| python_get(ca, "aiohttp"), ..row },
        Row {
            name: "httplib2",
            process: "get.py",
            variables: &["HTTPLIB2_CA_CERTS"],
            make: |_, ca| python_get(ca, "httplib2"),
            ..row
        },
        Row {
            name: "boto3",
            process: "s3.py",
            variables: botocore,
            make: |_, ca| against(ca, handlers::s3(), words![matrix_python(), script("s3.py"), origin()]),
            ..row
        },
        Row { name: "AWS CLI (1)", process: "/aws ", variables: botocore, slow: true, make: aws_cli, ..row },
        Row {
            name: "grpcio",
            process: "grpc_say.py",
            variables: &["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"],
            protocol: Some("gRPC"),
            make: |_, ca| against(ca, handlers::grpc(), words![matrix_python(), script("grpc_say.py"), NAME]),
            ..row
        },
        Row {
            name: "websockets",
            process: "websocket.py",
            variables: openssl,
            protocol: Some("WebSocket"),
            make: websocket,
            ..row
        },
    ]
}

fn aws_cli(folder: &Path, ca: &TestCa) -> (Client, Server) {
    let settings = folder.join("aws-config");
    std::fs::write(&settings, "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n").expect("a file");
    let aws = matrix_python().with_file_name("aws");
    let object = ["s3api", "put-object", "--bucket", "bucket", "--key", "up", "--body"];
    let mut command = words![aws, "--endpoint-url", origin()];
    command.extend(object.map(OsString::from));
    command.push(folder.join("body").into());
    let (client, server) = against(ca, handlers::s3(), command);
    let environment = vec![
        ("AWS_ACCESS_KEY_ID".into(), "key".into()),
        ("AWS_SECRET_ACCESS_KEY".into(), "secret".into()),
        ("AWS_CONFIG_FILE".into(), settings.into()),
    ];
    (Client { environment, ..client }, server)
}

fn websocket(folder: &Path, ca: &TestCa) -> (Client, Server) {
    let address = own_address(443);
    let files = ca.files(&format!("websocket-{}", address.ip()), &[NAME], &[address.ip()]);
    let log = folder.join("log");
    let process =
        clients::bare(Command::new(matrix_python()).arg(script("websocket.py")).arg(address.ip().to_string()).args([
            &files.cert,
            &files.key,
            &log,
        ]));
    process.line("ready");
    let command = words![matrix_python(), script("websocket.py"), format!("wss://{NAME}/talk?a=b")];
    (Client { command, ..Client::default() }, Server::Program { address, log, _process: process })
}

fn node_get(ca: &TestCa, library: &str) -> (Client, Server) {
    let handler = if library == "aws-sdk" { handlers::s3() } else { handlers::plain() };
    let (client, server) = against(ca, handler, words![clients::node(), script("get.mjs"), library, origin()]);
    let environment = vec![("NODE_PATH".into(), clients::node_modules().join("node_modules").into())];
    (Client { environment, ..client }, server)
}

fn node() -> Vec<Row> {
    let row = Row { group: "Node.js", process: "/node", variables: &["NODE_EXTRA_CA_CERTS"], ..ROW };
    vec![
        Row { name: "fetch", make: |_, ca| node_get(ca, "fetch"), ..row },
        Row { name: "https", make: |_, ca| node_get(ca, "https"), ..row },
        Row { name: "axios", make: |_, ca| node_get(ca, "axios"), ..row },
        Row { name: "AWS SDK for JavaScript (3), S3", slow: true, make: |_, ca| node_get(ca, "aws-sdk"), ..row },
    ]
}

fn languages() -> Vec<Row> {
    let group = "Other languages";
    let row = Row { group, variables: &["SSL_CERT_FILE"], ..ROW };
    vec![
        Row {
            name: "Go, net/http",
            process: "/get",
            slow: true,
            make: |folder, ca| {
                clients::need("go", "golang-go");
                let source = script("get.go");
                let program = folder.join("get");
                let cache = format!("GOCACHE={}", clients::target().join("go-cache").display());
                let output = program.display().to_string();
                let build = ["env", &cache, "go", "build", "-o", &output, &source.display().to_string()];
                made(folder, &[&build]);
                against(ca, handlers::plain(), words![program, origin()])
            },
            ..row
        },
        Row {
            name: "Java, HttpClient",
            process: "/java",
            variables: &["JAVA_TOOL_OPTIONS"],
            slow: true,
            make: |folder, ca| {
                let output = folder.join("classes").display().to_string();
                clients::need("javac", "default-jdk-headless");
                made(folder, &[&["javac", "-d", &output, &script("Get.java").display().to_string()]]);
                let options = words!["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", output, "Get", origin()];
                against(ca, handlers::plain(), [words![clients::java()], options].concat())
            },
            ..row
        },
        Row {
            name: "Rust, reqwest with rustls",
            process: "/rust-clients",
            make: |_, ca| against(ca, handlers::plain(), words![rust(), "reqwest", origin()]),
            ..row
        },
        Row {
            name: "Rust, reqwest with compiled-in roots",
            process: "/rust-clients",
            variables: &[],
            closed: true,
            make: |_, ca| against(ca, handlers::plain(), words![rust(), "built-in", origin()]),
            ..row
        },
        Row {
            name: "Rust, AWS SDK (STS)",
            process: "/rust-clients",
            make: |_, ca| against(ca, handlers::sts(), words![rust(), "aws-sdk", origin()]),
            ..row
        },
        Row {
            name: "Ruby, Net::HTTP",
            process: "get.rb",
            make: |_, ca| {
                against(ca, handlers::plain(), words![clients::need("ruby", "ruby"), script("get.rb"), origin()])
            },
            ..row
        },
        Row {
            name: "PHP, curl",
            process: "get.php",
            variables: &["PHP_INI_SCAN_DIR"],
            make: |_, ca| php(ca, "curl"),
            ..row
        },
        Row {
            name: "PHP, streams",
            process: "get.php",
            variables: &["PHP_INI_SCAN_DIR", "SSL_CERT_FILE"],
            make: |_, ca| php(ca, "streams"),
            ..row
        },
        Row {
            name: "Perl, LWP",
            process: "get.pl",
            variables: &["PERL_LWP_SSL_CA_FILE"],
            make: |_, ca| {
                against(ca, handlers::plain(), words![clients::need("perl", "perl"), script("get.pl"), origin()])
            },
            ..row
        },
    ]
}

fn php(ca: &TestCa, library: &str) -> (Client, Server) {
    let php = clients::need("php", "php-cli");
    against(ca, handlers::plain(), words![php, script("get.php"), library, origin()])
}

/// The program with the clients written in Rust.
fn rust() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(clients::rust_clients).clone()
}

fn package_managers() -> Vec<Row> {
    let group = "Package managers";
    vec![
        Row {
            group,
            name: "pip",
            process: "/pip",
            variables: &["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
            make: pip,
            ..ROW
        },
        Row { group, name: "npm", process: "npm", variables: &["NODE_EXTRA_CA_CERTS"], slow: true, make: npm, ..ROW },
        Row {
            group,
            name: "cargo",
            process: "/cargo",
            variables: &["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"],
            make: cargo,
            ..ROW
        },
        Row {
            group,
            name: "apt",
            process: "/methods/http",
            variables: &["APT_CONFIG"],
            unordered: true,
            make: apt,
            ..ROW
        },
    ]
}

fn pip(folder: &Path, ca: &TestCa) -> (Client, Server) {
    let python = clients::need("python3", "python3");
    made(folder, &[&["mkdir", "-p", "served/simple/demo"]]);
    made(folder, &[&[&python.display().to_string(), &script("wheel.py").display().to_string(), "served"]]);
    let index = "<!doctype html><a href=\"../../demo-1.0-py3-none-any.whl\">demo-1.0-py3-none-any.whl</a>";
    std::fs::write(folder.join("served/simple/demo/index.html"), index).expect("an index");
    let mut command = words![matrix_python().with_file_name("pip"), "download", "--quiet", "--no-deps"];
    command.extend(words!["--disable-pip-version-check", "--no-cache-dir", "--index-url", url("/simple"), "--dest"]);
    command.extend(words![folder.join("work"), "demo==1.0"]);
    let (client, server) = against(ca, handlers::files(&folder.join("served")), command);
    (Client { artifacts: &["demo-1.0-py3-none-any.whl"], ..client }, server)
}

fn npm(folder: &Path, ca: &TestCa) -> (Client, Server) {
    made(folder, &[&["mkdir", "-p", "served/demo", "package"]]);
    std::fs::write(folder.join("package/package.json"), r#"{"name": "demo", "version": "1.0.0", "main": "a.js"}"#)
        .expect("a package");
    std::fs::write(folder.join("package/a.js"), "console.log('hello from the package')\n").expect("a package");
    made(folder, &[&["tar", "czf", "served/demo/demo-1.0.0.tgz", "package"]]);
    let archive = std::fs::read(folder.join("served/demo/demo-1.0.0.tgz")).expect("an archive");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &archive);
    let integrity = {
        use base64::Engine;
        format!("sha512-{}", base64::engine::general_purpose::STANDARD.encode(digest))
    };
    let version = serde_json::json!({
        "name": "demo", "version": "1.0.0", "main": "a.js",
        "dist": {"tarball": url("/demo/demo-1.0.0.tgz"), "integrity": integrity},
    });
    let packument =
        serde_json::json!({"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}});
    let files = handlers::files(&folder.join("served"));
    let handler: Handler = Box::new(move |head, body| match head.uri.path() {
        "/demo" => crate::site::Answer::ok("application/json", packument.to_string()),
        _ => files(head, body),
    });
    let mut command = words![clients::need("npm", "npm"), "install", "--prefix", folder.join("work/app")];
    for flag in ["--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", "--fetch-retries=0", "--silent"] {
        command.push(flag.into());
    }
    command.extend(words!["--registry", url("/"), "demo@1.0.0"]);
    let (client, server) = against(ca, handler, command);
    let prepare: Prepare = Box::new(|work| std::fs::create_dir(work.join("app")).expect("a folder"));
    (Client { prepare: Some(prepare), artifacts: &["a.js", "package-lock.json"], ..client }, server)
}

fn cargo(folder: &Path, ca: &TestCa) -> (Client, Server) {
    made(folder, &[&["mkdir", "-p", "served/index/de/mo", "demo-1.0.0/src"]]);
    let manifest = "[package]\nname = \"demo\"\nversion = \"1.0.0\"\nedition = \"2021\"\n";
    std::fs::write(folder.join("demo-1.0.0/Cargo.toml"), manifest).expect("a manifest");
    std::fs::write(folder.join("demo-1.0.0/src/lib.rs"), "//! Hello.\n").expect("a source");
    made(folder, &[&["tar", "czf", "served/demo-1.0.0.crate", "demo-1.0.0"]]);
    let digest = sha256(&std::fs::read(folder.join("served/demo-1.0.0.crate")).expect("a crate"));
    let config = serde_json::json!({"dl": url("/{crate}-{version}.crate")});
    std::fs::write(folder.join("served/index/config.json"), config.to_string()).expect("a configuration");
    let entry = serde_json::json!({"name": "demo", "vers": "1.0.0", "deps": [], "cksum": digest, "features": {}, "yanked": false});
    std::fs::write(folder.join("served/index/de/mo/demo"), format!("{entry}\n")).expect("an index");
    let manifest = folder.join("work/app/Cargo.toml");
    let prepare: Prepare = Box::new(|work| {
        let app = work.join("app");
        std::fs::create_dir_all(app.join("src")).expect("a folder");
        std::fs::create_dir_all(app.join(".cargo")).expect("a folder");
        std::fs::write(app.join("src/lib.rs"), "").expect("a source");
        let manifest = "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n\
                        [dependencies]\ndemo = { version = \"1\", registry = \"local\" }\n";
        std::fs::write(app.join("Cargo.toml"), manifest).expect("a manifest");
        let config = format!("[registries.local]\nindex = \"sparse+{}\"\n", url("/index/"));
        std::fs::write(app.join(".cargo/config.toml"), config).expect("a configuration");
    });
    // The one of this tool chain; others stand for it and look for it first.
    let cargo = PathBuf::from(env!("CARGO"));
    let mut command = words!["/usr/bin/env", "-C", folder.join("work/app"), cargo, "fetch", "--quiet"];
    command.extend(words!["--manifest-path", manifest]);
    let (client, server) = against(ca, handlers::files(&folder.join("served")), command);
    let environment = vec![("CARGO_HOME".into(), folder.join("work/cargo").into())];
    (Client { environment, prepare: Some(prepare), artifacts: &["demo-1.0.0.crate", "Cargo.lock"], ..client }, server)
}

fn apt(folder: &Path, ca: &TestCa) -> (Client, Server) {
    made(folder, &[&["mkdir", "-p", "served", "demo/DEBIAN", "demo/usr/share/demo"]]);
    let control = "Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.test>\nDescription: a demo\n";
    std::fs::write(folder.join("demo/DEBIAN/control"), control).expect("a control file");
    std::fs::write(folder.join("demo/usr/share/demo/hello"), "hello from the package\n").expect("a file");
    made(folder, &[&["dpkg-deb", "--build", "--root-owner-group", "demo", "served/demo_1.0_all.deb"]]);
    let package = std::fs::read(folder.join("served/demo_1.0_all.deb")).expect("a package");
    let (length, digest) = (package.len(), sha256(&package));
    let listed = format!("{control}Filename: ./demo_1.0_all.deb\nSize: {length}\nSHA256: {digest}\n");
    std::fs::write(folder.join("served/Packages"), listed).expect("a list");
    let prepare: Prepare = Box::new(|work| {
        for folder in ["etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(work.join(folder)).expect("a folder");
        }
        std::fs::write(work.join("state/status"), "").expect("a file");
        let source = format!("deb [trusted=yes] {} ./\n", url("/"));
        std::fs::write(work.join("etc/sources.list"), source).expect("a file");
    });
    let work = folder.join("work");
    let at = |name: &str| work.join(name).display().to_string();
    let options = format!(
        "-qq -o Dir::Etc={} -o Dir::State={} -o Dir::State::status={} -o Dir::Cache={} -o APT::Sandbox::User=root \
         -o Acquire::Languages=none -o Acquire::Retries=0",
        at("etc"),
        at("state"),
        at("state/status"),
        at("cache"),
    );
    let script = format!("cd {} && apt-get {options} update && apt-get {options} download demo", work.display());
    clients::need("apt-get", "apt");
    let (client, server) = against(ca, handlers::files(&folder.join("served")), words!["sh", "-c", script]);
    (Client { prepare: Some(prepare), artifacts: &["demo_1.0_all.deb"], ..client }, server)
}
