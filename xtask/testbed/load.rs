//! The load client: makes requests, times them, and says so as JSON.
//!
//! In: where to connect and one job, or with `--session` one job per line of
//! standard input. Out: one JSON object per job on standard output; a job
//! that failed says `{"error": …}`. A session reaches every path (direct,
//! relay, retryscope) with the same process and the same code, so that what
//! differs is the path alone. Connections are opened before the clock starts,
//! except where opening them is what is measured.
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use futures_util::stream;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::{certificates, stats::quantile};

const BLOCK: usize = 64 * 1024;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

type Body = BoxBody<Bytes, std::convert::Infallible>;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to connect
    #[arg(long, value_name = "ADDR:PORT")]
    connect: SocketAddr,
    /// The name to ask for, in TLS and in HTTP
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    name: String,
    /// An authority to trust, beside those of SSL_CERT_FILE
    #[arg(long = "ca", value_name = "PEM")]
    authorities: Vec<PathBuf>,
    /// Read jobs from standard input, one a line, until it closes
    #[arg(long)]
    session: bool,
    #[command(subcommand)]
    job: Option<Job>,
}

/// A session's line is parsed as this.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    job: Job,
}

#[derive(Clone, Debug, Subcommand)]
enum Job {
    /// Small requests over connections that are kept
    Requests {
        #[arg(long, default_value = "h1")]
        protocol: Protocol,
        #[arg(long, default_value_t = 1000)]
        count: u64,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Requests at a time on one connection; more than one on HTTP/2 only
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Small requests, each over a new connection
    Fresh {
        #[arg(long, default_value = "h1")]
        protocol: Protocol,
        #[arg(long, default_value_t = 100)]
        count: u64,
        #[arg(long, default_value_t = 1)]
        concurrency: usize,
    },
    /// Bodies from the server
    Download(Bodies),
    /// Bodies to the server
    Upload(Bodies),
    /// Open connections that are held until `release`; each made one request
    Idle {
        #[arg(long, default_value_t = 200)]
        connections: usize,
    },
    /// Let the idle connections go
    Release,
}

#[derive(Args, Clone, Debug)]
struct Bodies {
    #[arg(long, default_value = "h1")]
    protocol: Protocol,
    /// How many, one after the other, on one connection
    #[arg(long, default_value_t = 1)]
    count: u64,
    #[arg(long, default_value_t = 64 * 1024 * 1024)]
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    H1,
    H2,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut authorities = options.authorities;
    authorities.extend(std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    let mut client = Client::new(options.connect, &options.name, &certificates::roots(&authorities)?)?;

    match (options.job, options.session) {
        (Some(job), false) => {
            println!("{}", client.run(job).await?);
            return Ok(());
        }
        (None, true) => {}
        _ => bail!("give either a job or --session"),
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.context("cannot read standard input")? {
        let told = match Line::try_parse_from(line.split_whitespace()) {
            Ok(line) => client.run(line.job).await.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })),
            Err(error) => json!({ "error": error.to_string() }),
        };
        println!("{told}");
    }
    Ok(())
}

#[derive(Clone)]
struct Target {
    address: SocketAddr,
    host: Arc<str>,
    name: ServerName<'static>,
    h1: TlsConnector,
    h2: TlsConnector,
}

struct Client {
    target: Target,
    idle: Vec<Connection>,
}

/// What the tasks of a job add up to.
#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    bytes: u64,
    first: Option<SystemTime>,
}

impl Client {
    fn new(address: SocketAddr, host: &str, roots: &Arc<RootCertStore>) -> Result<Self> {
        let tls = |alpn: &[u8]| {
            let mut config = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            // As most SDKs' clients: each connection is a full handshake.
            config.resumption = Resumption::disabled();
            TlsConnector::from(Arc::new(config))
        };
        let target = Target {
            address,
            host: host.into(),
            name: ServerName::try_from(host.to_owned()).context("--name is neither a name nor an address")?,
            h1: tls(b"http/1.1"),
            h2: tls(b"h2"),
        };
        Ok(Self { target, idle: Vec::new() })
    }

    async fn run(&mut self, job: Job) -> Result<Value> {
        match job {
            Job::Requests { protocol, count, connections, streams } => {
                ensure!(streams == 1 || protocol == Protocol::H2, "HTTP/1.1 has one request at a time");
                let mut lanes = Vec::new();
                for _ in 0..connections {
                    let connection = self.target.open(protocol).await?;
                    // The HTTP/1.1 sender is the connection; HTTP/2's is shared.
                    for _ in 1..streams {
                        lanes.extend(connection.share());
                    }
                    lanes.push(connection);
                }
                self.drive(count, lanes, |mut lane, target| async move {
                    let bytes = lane.small(&target).await?;
                    Ok((lane, bytes))
                })
                .await
            }
            Job::Fresh { protocol, count, concurrency } => {
                self.drive(count, vec![(); concurrency], move |(), target| async move {
                    Ok(((), target.open(protocol).await?.small(&target).await?))
                })
                .await
            }
            Job::Download(bodies) => {
                let connection = self.target.open(bodies.protocol).await?;
                self.drive(bodies.count, vec![connection], move |mut lane, target| async move {
                    let got = lane.ask(&target, "GET", &format!("/bytes/{}", bodies.bytes), empty()).await?;
                    ensure!(got == bodies.bytes, "asked for {} bytes and got {got}", bodies.bytes);
                    Ok((lane, got))
                })
                .await
            }
            Job::Upload(bodies) => {
                let connection = self.target.open(bodies.protocol).await?;
                self.drive(bodies.count, vec![connection], move |mut lane, target| async move {
                    lane.upload(&target, bodies.bytes).await?;
                    Ok((lane, bodies.bytes))
                })
                .await
            }
            Job::Idle { connections } => {
                for _ in 0..connections {
                    let mut connection = self.target.open(Protocol::H1).await?;
                    connection.small(&self.target).await?;
                    self.idle.push(connection);
                }
                Ok(json!({ "connections": self.idle.len() }))
            }
            Job::Release => {
                self.idle.clear();
                Ok(json!({ "connections": 0 }))
            }
        }
    }

    /// Runs `once` `count` times, spread over one task per lane.
    async fn drive<L, F>(
        &self,
        count: u64,
        lanes: Vec<L>,
        once: impl Fn(L, Target) -> F + Clone + Send + 'static,
    ) -> Result<Value>
    where
        L: Send + 'static,
        F: Future<Output = Result<(L, u64)>> + Send,
    {
        let left = Arc::new(AtomicU64::new(count));
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for mut lane in lanes {
            let (left, once, target) = (left.clone(), once.clone(), self.target.clone());
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    let begun = Instant::now();
                    let (back, bytes) = once(lane, target.clone()).await?;
                    lane = back;
                    tally.first.get_or_insert_with(SystemTime::now);
                    tally.latencies.push(begun.elapsed());
                    tally.bytes += bytes;
                }
                Ok::<_, anyhow::Error>(tally)
            });
        }

        let mut total = Tally::default();
        while let Some(done) = tasks.join_next().await {
            let tally = done.context("a task of the load client panicked")??;
            total.latencies.extend(tally.latencies);
            total.bytes += tally.bytes;
            total.first = [total.first, tally.first].into_iter().flatten().min();
        }
        let seconds = started.elapsed().as_secs_f64();
        let first = total.first.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        let latencies = &mut total.latencies;
        Ok(json!({
            "requests": latencies.len(),
            "seconds": seconds,
            "bytes": total.bytes,
            "p50_us": quantile(latencies, 0.5).as_nanos() as f64 / 1e3,
            "p99_us": quantile(latencies, 0.99).as_nanos() as f64 / 1e3,
            "first_answer_unix_us": u64::try_from(first.as_micros()).unwrap_or(u64::MAX),
        }))
    }
}

enum Connection {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Target {
    async fn open(&self, protocol: Protocol) -> Result<Connection> {
        let stream =
            TcpStream::connect(self.address).await.with_context(|| format!("cannot connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        let connector = if protocol == Protocol::H1 { &self.h1 } else { &self.h2 };
        let stream = connector.connect(self.name.clone(), stream).await.context("the TLS handshake failed")?;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        ensure!(agreed == (protocol == Protocol::H2), "the other side did not agree to the protocol asked for");
        let stream = TokioIo::new(stream);
        // Each driver ends with its connection, which ends when the sender is dropped.
        Ok(match protocol {
            Protocol::H1 => {
                let (sender, driver) = http1::handshake(stream).await?;
                tokio::spawn(driver);
                Connection::H1(sender)
            }
            Protocol::H2 => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(driver);
                Connection::H2(sender)
            }
        })
    }
}

impl Connection {
    /// Another sender of the same HTTP/2 connection.
    fn share(&self) -> Option<Self> {
        match self {
            Connection::H1(_) => None,
            Connection::H2(sender) => Some(Connection::H2(sender.clone())),
        }
    }

    async fn small(&mut self, target: &Target) -> Result<u64> {
        self.ask(target, "GET", "/small", empty()).await
    }

    /// One request; the length of the answer's body. Anything but a 200 is an error.
    async fn ask(&mut self, target: &Target, method: &str, path: &str, body: Body) -> Result<u64> {
        let mut answer = self.send(target, method, path, body).await?;
        let mut length = 0;
        while let Some(frame) = answer.frame().await {
            length += frame.context("the answer broke off")?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(length)
    }

    async fn upload(&mut self, target: &Target, bytes: u64) -> Result<()> {
        let blocks = stream::unfold(bytes, |left| async move {
            let now = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            (now > 0).then(|| (Ok(Frame::data(Bytes::from_static(&ZEROS[..now]))), left - now as u64))
        });
        let answer = self.send(target, "PUT", "/sink", BodyExt::boxed(StreamBody::new(blocks))).await?;
        let told: Value = serde_json::from_slice(&answer.collect().await?.to_bytes())?;
        ensure!(told["bytes"] == bytes, "sent {bytes} bytes, of which {} arrived", told["bytes"]);
        Ok(())
    }

    async fn send(&mut self, target: &Target, method: &str, path: &str, body: Body) -> Result<Incoming> {
        let request = Request::builder().method(method);
        let answer = match self {
            Connection::H1(sender) => {
                let request = request.uri(path).header(header::HOST, &*target.host).body(body)?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Connection::H2(sender) => {
                let request = request.uri(format!("https://{}{path}", target.host)).body(body)?;
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        if answer.status() != StatusCode::OK {
            bail!("{method} {path} was answered with {}", answer.status());
        }
        Ok(answer.into_body())
    }
}

fn empty() -> Body {
    Empty::new().boxed()
}
