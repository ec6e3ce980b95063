//! Network namespaces of a test's own, joined by cables; servers and clients
//! in them; and `attach` in one of them. All of it is gone with its guard.
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        socket::{Shutdown, shutdown},
    },
    unistd::Pid,
};
use serde_json::Value;

use crate::common::{
    Report, Running, SOON, TestCa, Upstream, ca::Leaf, clients, process::descendants, run::RETRYSCOPE, show, until,
};

/// Where the servers are, and which port echoes plain bytes.
pub(crate) const SERVER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub(crate) const ECHO: u16 = 8443;

/// A network namespace, by name.
pub(crate) struct Net(String);

impl Net {
    pub(crate) fn new(what: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        clients::root();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let net = Self(format!("retryscope-test-{}-{number}-{what}", std::process::id()));
        run(Command::new(clients::need("ip", "iproute2")).args(["netns", "add", &net.0]));
        net.ip("link set lo up");
        net
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// A program to be run in the namespace, and nothing else of it: `ip netns
    /// exec` would hide the cgroups as well.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(clients::need("nsenter", "util-linux"));
        let mut net = OsString::from("--net=");
        net.push(self.path());
        command.arg(net).arg("--").arg(program).env_clear().envs(clients::environment());
        command
    }

    /// `ip WORDS` there; its output.
    pub(crate) fn ip(&self, words: &str) -> String {
        run(self.command("ip").args(words.split(' ')))
    }

    pub(crate) fn nft(&self, words: &str) -> String {
        run(self.command(clients::need("nft", "nftables")).args(words.split(' ')))
    }

    pub(crate) fn set(&self, setting: &str) {
        run(self.command("sysctl").args(["-q", "-w", setting]));
    }

    /// Does something in the namespace; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let file = File::open(self.path()).expect("the namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            there.join().expect("work in the namespace")
        })
    }

    /// A cable to another namespace: our end's name and addresses, then its.
    fn cable(&self, ours: (&str, u8), other: &Net, theirs: (&str, u8), subnet: u8) {
        let (name, peer) = (ours.0, theirs.0);
        let words = format!("link add {name} type veth peer name {peer} netns {}", other.0);
        self.ip(&words);
        for (net, (name, host)) in [(self, ours), (other, theirs)] {
            net.ip(&format!("addr add 10.9.{subnet}.{host}/24 dev {name}"));
            net.ip(&format!("addr add fd00:{subnet}::{host}/64 dev {name} nodad"));
            net.ip(&format!("link set dev {name} up"));
        }
    }

    fn default_via(&self, subnet: u8, host: u8) {
        self.ip(&format!("route add default via 10.9.{subnet}.{host}"));
        self.ip(&format!("-6 route add default via fd00:{subnet}::{host}"));
    }

    /// The names of the tables of nf_tables here that are retryscope's.
    pub(crate) fn tables(&self) -> Vec<String> {
        let tables = self.nft("list tables");
        tables.lines().filter(|line| line.contains("retryscope")).map(ToOwned::to_owned).collect()
    }

    /// Routing rules and routes besides the kernel's own.
    pub(crate) fn rules(&self) -> Vec<String> {
        let own = ["lookup local", "lookup main", "lookup default"];
        let mut rules = Vec::new();
        for family in ["-4", "-6"] {
            let list = self.ip(&format!("{family} rule list"));
            rules.extend(list.lines().filter(|line| !own.iter().any(|own| line.contains(own))).map(ToOwned::to_owned));
            let list = self.ip(&format!("{family} route show table all"));
            rules.extend(list.lines().filter(|line| line.contains("table 10")).map(ToOwned::to_owned));
        }
        rules
    }

    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        until("nothing of retryscope is left", SOON, || {
            (self.tables().is_empty() && self.rules().is_empty()).then_some(())
        });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Runs to the end, and tells its output.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", show(&output.stderr));
    show(&output.stdout)
}

/// A client's namespace and the servers', with a gateway between them or not.
pub(crate) struct World {
    pub(crate) ca: TestCa,
    pub(crate) client: Net,
    pub(crate) gateway: Option<Net>,
    pub(crate) upstreams: Vec<Upstream>,
    _echoes: Vec<Echo>,
    pub(crate) server: Net,
}

impl World {
    /// The client's machine is next to the servers'.
    pub(crate) fn near() -> Self {
        let (client, server) = (Net::new("client"), Net::new("server"));
        client.cable(("eth0", 1), &server, ("eth0", 2), 1);
        client.default_via(1, 2);
        Self::with(client, None, server)
    }

    /// A gateway forwards between them; `lan` is its interface to the client.
    pub(crate) fn behind_gateway() -> Self {
        let (client, gateway, server) = (Net::new("client"), Net::new("gateway"), Net::new("server"));
        client.cable(("eth0", 1), &gateway, ("lan", 2), 1);
        gateway.cable(("wan", 1), &server, ("eth0", 2), 2);
        client.default_via(1, 2);
        gateway.default_via(2, 2);
        server.default_via(2, 1);
        gateway.set("net.ipv4.ip_forward=1");
        gateway.set("net.ipv6.conf.all.forwarding=1");
        Self::with(client, Some(gateway), server)
    }

    fn with(client: Net, gateway: Option<Net>, server: Net) -> Self {
        let ca = TestCa::new();
        server.ip("addr add 192.0.2.1/32 dev lo");
        server.ip("addr add 2001:db8::1/128 dev lo nodad");
        let upstreams = SERVER.map(|host| upstream(&server, host, &ca)).into();
        let echoes = SERVER.map(|host| Echo::start(&server, host)).into();
        Self { ca, client, gateway, upstreams, _echoes: echoes, server }
    }

    /// Where retryscope is.
    pub(crate) fn here(&self) -> &Net {
        self.gateway.as_ref().unwrap_or(&self.client)
    }

    /// Requests that the servers got over TLS.
    pub(crate) fn requests(&self) -> usize {
        self.upstreams.iter().map(|upstream| upstream.received().len()).sum()
    }
}

/// A TLS server at the usual port of an address in a namespace.
pub(crate) fn upstream(net: &Net, host: &str, ca: &TestCa) -> Upstream {
    let address = SocketAddr::new(host.parse().expect("an address"), 443);
    let listener = net.inside(|| TcpListener::bind(address).expect("a listener"));
    Upstream::at(listener, ca, Leaf::Good, &[], &["http/1.1"])
}

/// Sends plain bytes back, by TCP and by UDP (there at the TLS server's port).
pub(crate) struct Echo(TcpListener, UdpSocket);

impl Echo {
    pub(crate) fn start(net: &Net, host: &str) -> Self {
        let host = host.parse().expect("an address");
        let bind = |port| SocketAddr::new(host, port);
        let (listener, datagrams) = net.inside(|| {
            (
                TcpListener::bind(bind(ECHO)).expect("a listener"),
                UdpSocket::bind(bind(443)).expect("a socket for datagrams"),
            )
        });
        let (accepting, answering) = (listener.try_clone().expect("a copy"), datagrams.try_clone().expect("a copy"));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 100];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((length @ 1.., from)) = answering.recv_from(&mut buffer) {
                let _ = answering.send_to(&buffer[..length], from);
            }
        });
        Self(listener, datagrams)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        for socket in [self.0.as_raw_fd(), self.1.as_raw_fd()] {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// A process that connects when it is told to.
pub(crate) struct Client {
    pub(crate) running: Running,
    at: usize,
}

impl Client {
    pub(crate) fn in_net(net: &Net) -> Self {
        Self::start(&mut net.command(clients::python()))
    }

    /// By a command that ends with a Python.
    pub(crate) fn start(command: &mut Command) -> Self {
        let running = Running::start(command.arg(clients::script("net.py")));
        let (_, at) = running.line_after(0, "ready");
        Self { running, at }
    }

    #[track_caller]
    pub(crate) fn does(&mut self, what: &str) -> Value {
        self.running.write(format!("{what}\n").as_bytes());
        let (line, end) = self.running.line_after(self.at, "done");
        self.at = end;
        serde_json::from_str(&line).expect("JSON from the client")
    }

    /// Makes a request; tells whether it was intercepted.
    #[track_caller]
    pub(crate) fn asks(&mut self, host: &str) -> bool {
        self.asks_by("tls", host)
    }

    #[track_caller]
    pub(crate) fn asks_by(&mut self, how: &str, host: &str) -> bool {
        let row = self.does(&format!("{how} {host} 443"));
        let issuer = row["issuer"].as_str().unwrap_or_default();
        assert_ne!(issuer, "none", "the connection failed: {row}");
        assert_eq!(row["peer"], host, "{row}");
        assert_eq!(row["answer"], "HTTP/1.1 200 OK", "{row}");
        !issuer.contains("retryscope test authority")
    }

    /// Waits until connections go direct. One that is just being taken may be
    /// closed instead, or wait.
    #[track_caller]
    pub(crate) fn goes_direct(&mut self, host: &str) {
        self.goes(host, "retryscope test authority");
    }

    /// Waits until connections are intercepted.
    #[track_caller]
    pub(crate) fn is_taken(&mut self, host: &str) {
        self.goes(host, "retryscope authority");
    }

    #[track_caller]
    fn goes(&mut self, host: &str, issuer: &str) {
        until(&format!("a connection meets the {issuer}"), SOON * 3, || {
            let row = self.does(&format!("tls {host} 443"));
            row["issuer"].as_str().is_some_and(|it| it.contains(issuer)).then_some(())
        });
    }

    #[track_caller]
    pub(crate) fn keeps(&mut self, host: &str) {
        let row = self.does(&format!("hold {host} {ECHO}"));
        assert!(row["kept"].is_u64(), "{row}");
    }

    /// What comes back over the connections that are kept.
    #[track_caller]
    pub(crate) fn says(&mut self) -> Vec<String> {
        let row = self.does("say");
        row["answers"].as_array().into_iter().flatten().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// `retryscope attach` in a namespace.
pub(crate) struct Attached {
    pub(crate) running: Running,
    dir: tempfile::TempDir,
}

impl Attached {
    /// Starts it, and waits until it is in force.
    #[track_caller]
    pub(crate) fn start<W: AsRef<OsStr>>(net: &Net, ca: &TestCa, words: impl IntoIterator<Item = W>) -> Self {
        Self::start_by(net.command(RETRYSCOPE), ca, words)
    }

    /// By a command that ends with retryscope.
    #[track_caller]
    pub(crate) fn start_by<W: AsRef<OsStr>>(
        mut command: Command,
        ca: &TestCa,
        words: impl IntoIterator<Item = W>,
    ) -> Self {
        let dir = folder_with_authority();
        command.arg("attach").arg("--ca-dir").arg(dir.path().join("ca")).arg("--upstream-ca").arg(ca.pem());
        let words: Vec<OsString> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        if !words.iter().any(|word| word == "--port") {
            command.args(["--port", "443", "--port"]).arg(ECHO.to_string());
        }
        command.args(["--report", "json", "--report-file"]).arg(dir.path().join("report.json")).args(words);
        let mut running = Running::start(&mut command);
        until("attach says that it watches", SOON, || {
            let said = show(&running.stderr.bytes());
            assert!(!running.ended(), "attach ended: {said}");
            said.contains("now on").then_some(())
        });
        Self { running, dir }
    }

    /// The authority's certificate, for a client that is to trust it.
    pub(crate) fn authority(&self) -> PathBuf {
        let found = std::fs::read_dir(self.dir.path().join("ca")).expect("the authority's folder").flatten();
        let is_certificate =
            |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains("BEGIN CERTIFICATE"));
        found.map(|entry| entry.path()).find(is_certificate).expect("the authority's certificate")
    }

    /// The daemon itself, behind what started it.
    pub(crate) fn pid(&self) -> i32 {
        let is_daemon = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(RETRYSCOPE.as_bytes())
        };
        let started = std::iter::once(self.running.pid).chain(descendants(self.running.pid));
        started.into_iter().find(is_daemon).expect("the daemon runs")
    }

    /// Ends it, and reads its report.
    #[track_caller]
    pub(crate) fn finish(self) -> Report {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("a signal to the daemon");
        self.running.finish(SOON).ok();
        Report::parse(&std::fs::read_to_string(self.dir.path().join("report.json")).expect("the report"))
    }
}

fn folder_with_authority() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a folder");
    let mut command = Command::new(RETRYSCOPE);
    clients::bare(command.args(["ca", "init", "--ca-dir"]).arg(dir.path().join("ca"))).finish(SOON).ok();
    dir
}
