//! Servers that are not the harness's: moto and nginx, and the S3 server of
//! this repository's testbed.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use tempfile::TempDir;

use super::{Running, TestCa, clients, own_address, until};

/// The names of AWS endpoints that the test clients use.
pub const S3: &str = "s3.eu-west-1.amazonaws.com";
pub const DYNAMODB: &str = "dynamodb.eu-west-1.amazonaws.com";
pub const STS: &str = "sts.eu-west-1.amazonaws.com";
pub const SQS: &str = "sqs.eu-west-1.amazonaws.com";
pub const BUCKET: &str = "bucket.s3.eu-west-1.amazonaws.com";
pub const AWS: &[&str] = &[S3, BUCKET, DYNAMODB, STS, SQS];

/// One moto for the tests that run at the same time; it goes with the last
/// of them.
pub struct Moto {
    pub address: SocketAddr,
    pub ca: TestCa,
    /// One JSON object per request received.
    log: std::path::PathBuf,
    _process: Running,
    _dir: TempDir,
}

impl Moto {
    pub fn shared() -> Arc<Self> {
        static CURRENT: Mutex<Weak<Moto>> = Mutex::new(Weak::new());
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(moto) = current.upgrade() {
            return moto;
        }
        let moto = Arc::new(Self::start());
        *current = Arc::downgrade(&moto);
        moto
    }

    fn start() -> Self {
        Self::at(own_address(443), Command::new)
    }

    /// One of a test's own, by a command that begins with the given Python.
    pub fn at(address: SocketAddr, command: impl FnOnce(std::path::PathBuf) -> Command) -> Self {
        let ca = TestCa::new();
        let files = ca.files("moto", AWS, &[address.ip()]);
        let dir = tempfile::Builder::new().prefix("retryscope-test-moto-").tempdir().expect("a temporary folder");
        let log = dir.path().join("requests.jsonl");
        let process = clients::bare(
            command(clients::python())
                .arg(clients::script("moto_server.py"))
                .args([address.ip().to_string(), address.port().to_string()])
                .args([&files.cert, &files.key, &log])
                .current_dir(dir.path()),
        );
        process.line("ready");
        Self { address, ca, log, _process: process, _dir: dir }
    }

    /// What moto was asked, as (invocation id, amz-sdk-request).
    pub fn received(&self) -> Vec<(String, String)> {
        std::fs::read_to_string(&self.log)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|row| {
                let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
                (text("invocation"), text("request"))
            })
            .collect()
    }
}

/// The testbed's S3 server with a bucket named `bucket`, at a free port of
/// 127.0.0.1. It ends with its guard.
#[track_caller]
pub fn s3s(ca: &TestCa) -> (SocketAddr, Running) {
    let program = clients::testbed();
    let files = ca.files("s3s", AWS, &[]);
    let process = clients::bare(
        Command::new(program)
            .args(["s3", "--leash", "--bucket", "bucket", "--secret-key", "secret", "--name", S3, "--cert"])
            .arg(files.cert)
            .arg("--key")
            .arg(files.key),
    );
    let line = process.line("ready ");
    let address = line.trim_start_matches("ready ").trim().parse().expect("the server's address");
    (address, process)
}

/// nginx with TLS, HTTP/1.1 and HTTP/2, serving a folder.
pub struct Nginx {
    pub address: SocketAddr,
    dir: TempDir,
    _process: Running,
}

impl Nginx {
    pub fn start(ca: &TestCa) -> Self {
        let address = own_address(443);
        let dir = tempfile::Builder::new().prefix("retryscope-test-nginx-").tempdir().expect("a temporary folder");
        let files = ca.files("nginx", &[super::NAME], &[address.ip()]);
        let root = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               log_format told '$request $status $body_bytes_sent $http_user_agent $content_length';\n\
               access_log {root}/log told; client_max_body_size 0;\n\
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
               uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
               server {{\n\
                 listen {address} ssl http2;\n\
                 ssl_certificate {cert}; ssl_certificate_key {key};\n\
                 root {root}/files;\n\
                 location = /hello {{ default_type text/plain; return 200 \"hello from nginx\\n\"; }}\n\
                 location = /unavailable {{ return 503; }}\n\
                 location = /sink {{ proxy_pass http://unix:{root}/inner; }}\n\
               }}\n\
               server {{ listen unix:{root}/inner; access_log off; return 200 \"taken\\n\"; }}\n\
             }}\n",
            cert = files.cert.display(),
            key = files.key.display(),
        );
        std::fs::create_dir(dir.path().join("files")).expect("a folder");
        let path = dir.path().join("nginx.conf");
        std::fs::write(&path, config).expect("writing nginx.conf");
        let process = clients::bare(
            Command::new(clients::need("nginx", "nginx-light"))
                .arg("-c")
                .arg(&path)
                .arg("-p")
                .arg(dir.path())
                .args(["-e", "stderr"]),
        );
        let mut nginx = Self { address, dir, _process: process };
        until("nginx accepts", super::SOON, || {
            assert!(!nginx._process.ended(), "nginx: {}", super::show(&nginx._process.stderr.bytes()));
            std::net::TcpStream::connect(address).ok()
        });
        nginx
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join("files").join(name), bytes).expect("writing a file for nginx");
    }

    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// A line for each request of a client that has ended: what was asked,
    /// and how it was answered.
    pub fn take_log(&self, requests: usize) -> Vec<String> {
        let path = self.dir.path().join("log");
        // nginx writes a line once its last byte is out.
        let lines = until("nginx has logged all", super::SOON, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= requests).then_some(lines)
        });
        // It keeps the file open, at its end.
        std::fs::File::options().write(true).truncate(true).open(&path).expect("the log");
        lines
    }
}

/// A server that gives back what it gets.
pub struct Echo {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start() -> Self {
        super::clients::root();
        let listener = super::own_listener(443);
        let address = listener.local_addr().expect("its address");
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // Each ends with its client.
                std::thread::spawn(move || echo(stream));
            }
        });
        Self { address, over, accepting: Some(accepting) }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 256];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Wakes who waits for the next connection.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}
