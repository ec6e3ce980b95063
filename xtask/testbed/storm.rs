//! Thousands of processes that live for one request each.
//!
//! In: where to connect, how many processes, and how many at a time; with
//! `--wait`, a line on standard input as the word to begin. Out: a log with
//! one line of JSON for each process: its number (which it asks for as
//! `/NUMBER`), pid, start and command line, as it sees them itself, and what
//! it got. Most processes are forked and nothing else; one in `--exec-every`
//! is this program started anew, with arguments of its own.
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork},
};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use serde_json::json;

use crate::certificates;

/// For how long a connect that is refused is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Where to connect
    #[arg(long, value_name = "ADDR:PORT")]
    connect: SocketAddr,
    /// The name to ask for, in TLS and in HTTP
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    name: String,
    /// An authority to trust, beside that of NODE_EXTRA_CA_CERTS, the variable with the shortest list
    #[arg(long = "ca", value_name = "PEM")]
    authorities: Vec<PathBuf>,
    /// The number of the first process
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// How many processes
    #[arg(long, default_value_t = 1)]
    processes: u32,
    /// How many at a time
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// One process in so many is started anew; 0 for none
    #[arg(long, default_value_t = 0)]
    exec_every: u32,
    /// Where the log goes; it is added to
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Wait for a line on standard input
    #[arg(long)]
    wait: bool,
    /// Make the request here, in no process of its own
    #[arg(long, hide = true)]
    alone: bool,
}

/// A process that was started.
enum Started {
    Forked(Pid),
    Anew(Child),
}

/// Must be called while the process has one thread: it forks.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut authorities = options.authorities.clone();
    authorities.extend(std::env::var_os("NODE_EXTRA_CA_CERTS").map(PathBuf::from));
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // The cheapest: it is not the cryptography that is to be tried.
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        // Its sessions can be resumed any number of times.
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_root_certificates(certificates::roots(&authorities)?)
        .with_no_client_auth();
    let client = Client {
        address: options.connect,
        name: options.name.clone(),
        config: Arc::new(config),
        log: OpenOptions::new().append(true).create(true).open(&options.log).context("the log cannot be opened")?,
    };
    if options.alone {
        return client.visit(options.first, client.session()?);
    }
    if options.wait {
        println!("ready {}", std::process::id());
        ensure!(std::io::stdin().read_line(&mut String::new())? > 0, "standard input has ended");
    }
    client.prime()?;
    let mut running = std::collections::VecDeque::new();
    for number in options.first..options.first + options.processes {
        if running.len() >= options.parallel.max(1)
            && let Some(oldest) = running.pop_front()
        {
            end(oldest)?;
        }
        let anew = options.exec_every > 0 && number.is_multiple_of(options.exec_every);
        running.push_back(if anew { start(options, number)? } else { client.fork(number)? });
    }
    running.into_iter().try_for_each(end)
}

/// This program again, for one request.
fn start(options: &Options, number: u32) -> Result<Started> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["storm", "--alone", "--first", &number.to_string()]);
    command.arg("--connect").arg(options.connect.to_string()).arg("--name").arg(&options.name);
    command.arg("--log").arg(&options.log);
    for authority in &options.authorities {
        command.arg("--ca").arg(authority);
    }
    Ok(Started::Anew(command.spawn().context("cannot start a process")?))
}

fn end(started: Started) -> Result<()> {
    match started {
        Started::Anew(mut child) => {
            let status = child.wait()?;
            ensure!(status.success(), "a process failed: {status}");
        }
        Started::Forked(pid) => loop {
            match waitpid(pid, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => break,
                other => bail!("a process failed: {other:?}"),
            }
        },
    }
    Ok(())
}

struct Client {
    address: SocketAddr,
    name: String,
    config: Arc<ClientConfig>,
    log: File,
}

impl Client {
    /// A session that has its hello ready. All that TLS needs of randomness is
    /// used by then: a process of its own would first have to gather some,
    /// which takes the library ten times as long as the whole request.
    fn session(&self) -> Result<ClientConnection> {
        let name = ServerName::try_from(self.name.clone()).context("--name is neither a name nor an address")?;
        Ok(ClientConnection::new(Arc::clone(&self.config), name)?)
    }

    /// A request of its own (for `/prime`): all others resume its session, so
    /// that the test is of processes and not of cryptography.
    fn prime(&self) -> Result<()> {
        self.request("prime", self.session()?).map(drop)
    }

    /// The answer.
    fn request(&self, path: &str, session: ClientConnection) -> Result<Vec<u8>> {
        let mut stream = StreamOwned::new(session, self.connect().context("cannot connect")?);
        write!(stream, "GET /{path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.name)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("cannot read the answer")?;
        Ok(answer)
    }

    /// As a client that tries again: with `--fail closed`, a connect is refused
    /// while a busy machine keeps the daemon from answering.
    fn connect(&self) -> std::io::Result<TcpStream> {
        let began = Instant::now();
        loop {
            match TcpStream::connect(self.address) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied && began.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }

    fn fork(&self, number: u32) -> Result<Started> {
        let session = self.session()?;
        // SAFETY: this process has one thread (see `run`), so the child may do
        // whatever the parent may.
        #[allow(unsafe_code, reason = "a process that only forks is what this is for")]
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Parent { child } => Ok(Started::Forked(child)),
            ForkResult::Child => {
                // Every other one asks from a thread with a name of its own.
                let done = if number.is_multiple_of(2) {
                    self.visit(number, session)
                } else {
                    thread::scope(|scope| {
                        let thread = thread::Builder::new().name(format!("thread {number}"));
                        let visit = thread.spawn_scoped(scope, || self.visit(number, session))?;
                        visit.join().unwrap_or_else(|_| bail!("panicked"))
                    })
                };
                if let Err(error) = &done {
                    eprintln!("process {number}: {error:#}");
                }
                std::process::exit(i32::from(done.is_err()));
            }
        }
    }

    /// One request, and its line in the log.
    fn visit(&self, number: u32, session: ClientConnection) -> Result<()> {
        let answer = self.request(&number.to_string(), session)?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // Field 22, counted from behind the name.
        let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).unwrap_or_default();
        let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = json!({
            "number": number,
            "pid": std::process::id(),
            "start_ticks": start.parse::<u64>().unwrap_or_default(),
            "command": words.join(" "),
            "status": String::from_utf8_lossy(&answer).split(' ').nth(1),
        });
        // One write, so that lines do not mix.
        (&self.log).write_all(format!("{line}\n").as_bytes()).context("the log cannot be written")
    }
}
