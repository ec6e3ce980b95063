//! What a test needs around it: a network namespace and a cgroup of its own,
//! clients in and out of the cgroup, and the daemon's side of the redirection.
//!
//! Everything is gone when the test is over, also after a panic: the namespace
//! with its thread, the rest by `Drop`.
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
};
use retryscope::redirect::{Counters, Fail, Listeners, Options, Redirect, Redirected, Target, cgroup};
use serde_json::Value;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test in a world of its own.
pub(crate) fn world(test: impl FnOnce(&World) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // Fails loudly without root: these tests prove nothing elsewhere.
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run the kernel tests as root");
        ip("link set lo up");
        test(&World::new());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip ARGUMENTS` in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 (ip) is installed");
    assert!(status.success(), "ip {arguments}");
}

pub(crate) struct World {
    pub(crate) target: PathBuf,
}

impl World {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let own = cgroup::own().expect("a cgroup2 mount");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let target = own.join(format!("retryscope-test-{}-{number}", std::process::id()));
        cgroup::create(&target).expect("a cgroup");
        Self { target }
    }

    /// A client in the target's cgroup.
    pub(crate) fn client(&self) -> Client {
        let client = self.stranger();
        cgroup::join(&self.target, client.pid()).expect("join the target");
        client
    }

    /// A client outside of it.
    pub(crate) fn stranger(&self) -> Client {
        Client::start()
    }

    pub(crate) fn options(&self) -> Options {
        options(&self.target)
    }

    pub(crate) fn daemon(&self) -> Daemon {
        self.daemon_with(&self.options())
    }

    pub(crate) fn daemon_with(&self, options: &Options) -> Daemon {
        Daemon::start(options, &cgroup::own().expect("own cgroup"))
    }
}

/// A whole cgroup's port 443.
pub(crate) fn options(target: &Path) -> Options {
    Options { ports: vec![443], allow_quic: false, fail: Fail::Open, target: Target::Cgroup(target.into()) }
}

impl Drop for World {
    fn drop(&mut self) {
        kill_all(&self.target);
        if let Err(error) = cgroup::remove(&self.target) {
            eprintln!("left behind: {error}");
        }
    }
}

/// Kills what is in a cgroup and waits until it is empty.
pub(crate) fn kill_all(target: &Path) {
    let _ = std::fs::write(target.join("cgroup.kill"), "1");
    let Ok(events) = std::fs::File::open(target.join("cgroup.events")) else { return };
    let begun = Instant::now();
    while cgroup::populated(target).unwrap_or(false) && begun.elapsed() < DEADLINE {
        let mut wait = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        let _ = poll(&mut wait, PollTimeout::from(100_u8));
    }
}

/// The redirection under test, and its listeners.
pub(crate) struct Daemon {
    pub(crate) redirect: Arc<Redirect>,
    pub(crate) listeners: Listeners,
}

impl Daemon {
    pub(crate) fn start(options: &Options, daemon_cgroup: &Path) -> Self {
        let started = match std::env::var_os("RETRYSCOPE_BPF_OBJECT") {
            Some(path) => {
                let object = std::fs::read(&path).expect("the object named by RETRYSCOPE_BPF_OBJECT");
                Redirect::start_with(&object, options, daemon_cgroup)
            }
            None => Redirect::start(options, daemon_cgroup),
        };
        let (redirect, listeners) = started.expect("a redirection: run the kernel tests as root");
        Self { redirect: Arc::new(redirect), listeners }
    }

    /// The next connection on the IPv4 listener.
    pub(crate) fn accept(&self) -> (TcpStream, Option<Redirected>) {
        self.accept_on(&self.listeners.v4)
    }

    pub(crate) fn accept_v6(&self) -> (TcpStream, Option<Redirected>) {
        self.accept_on(self.listeners.v6.as_ref().expect("an IPv6 listener"))
    }

    /// The next connection, which must have been redirected.
    pub(crate) fn redirected(&self) -> Redirected {
        self.accept().1.expect("a record on the accepted socket")
    }

    fn accept_on(&self, listener: &TcpListener) -> (TcpStream, Option<Redirected>) {
        let stream = accept(listener);
        let found = self.redirect.origin_of(&stream).expect("read the record");
        (stream, found)
    }

    pub(crate) fn port(&self) -> u16 {
        self.listeners.v4.local_addr().expect("an address").port()
    }

    pub(crate) fn counters(&self) -> Counters {
        self.redirect.counters()
    }
}

/// Accepts with a deadline.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).expect("a timeout");
    assert_eq!(poll(&mut wait, timeout), Ok(1), "nobody connected");
    listener.accept().expect("a connection").0
}

/// A server that clients reach directly.
pub(crate) fn server(address: &str) -> TcpListener {
    TcpListener::bind(address.parse::<SocketAddr>().expect("an address")).expect("a server's socket")
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// How many programs the kernel lists at a cgroup, of the kinds that the
/// product attaches (BPF_PROG_QUERY).
#[allow(unsafe_code)]
pub(crate) fn attached_programs(cgroup: &Path) -> usize {
    /// As in linux/bpf.h.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target: u32,
        kind: u32,
        flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        unused: u32,
    }
    const BPF_PROG_QUERY: i32 = 16;
    // sock_ops, connect4/6, sendmsg4/6, getpeername4/6.
    const KINDS: [u32; 7] = [3, 10, 11, 14, 15, 29, 30];
    let directory = std::fs::File::open(cgroup).expect("the cgroup");
    let count = |kind| {
        let target = u32::try_from(directory.as_raw_fd()).expect("a descriptor");
        let mut query = Query { target, kind, ..Query::default() };
        // SAFETY: the attributes outlive the call and are as long as told.
        let result =
            unsafe { nix::libc::syscall(nix::libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        assert_eq!(result, 0, "BPF_PROG_QUERY: {}", std::io::Error::last_os_error());
        query.count as usize
    };
    KINDS.into_iter().map(count).sum()
}

/// A Python process that runs the snippets it is sent.
pub(crate) struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start() -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-I", "-S", "-c", include_str!("agent.py")])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("/usr/bin/python3 is installed");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a snippet, which must succeed; gives its `result`.
    #[track_caller]
    pub(crate) fn run(&mut self, snippet: &str) -> Value {
        let reply = self.ask(snippet);
        assert!(reply.get("ok").is_some(), "{snippet}: {reply}");
        reply["ok"].clone()
    }

    /// Runs a snippet, which must fail with an `OSError`; gives its number.
    #[track_caller]
    pub(crate) fn errno(&mut self, snippet: &str) -> i64 {
        let reply = self.ask(snippet);
        reply["errno"].as_i64().unwrap_or_else(|| panic!("{snippet}: {reply}"))
    }

    /// Sends a snippet without waiting for its end; [`Client::answer`] does.
    pub(crate) fn send(&mut self, snippet: &str) {
        writeln!(self.input, "{}", Value::from(snippet)).expect("the client lives");
    }

    pub(crate) fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the client answers");
        serde_json::from_str(&line).expect("the client answers in JSON")
    }

    fn ask(&mut self, snippet: &str) -> Value {
        self.send(snippet);
        self.answer()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
