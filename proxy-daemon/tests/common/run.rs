//! `retryscope run`, as a builder; and the same command run directly.
use std::{
    ffi::{OsStr, OsString},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{Finished, Report, Running, TestCa, clients};

/// The binary under test.
pub const RETRYSCOPE: &str = env!("CARGO_BIN_EXE_retryscope");

/// Makes the target's names resolve and its TLS libraries trust the test
/// authority, for a run without retryscope.
const DIRECT: &str = r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/ssl/certs/ca-certificates.crt || exit 99
shift 2
exec "$@""#;

pub struct Run {
    direct: bool,
    binary: PathBuf,
    options: Vec<OsString>,
    hosts: Vec<(String, SocketAddr)>,
    authorities: Vec<PathBuf>,
    report: bool,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
    dir: TempDir,
}

/// What a finished run left.
#[derive(Debug)]
pub struct Outcome {
    pub finished: Finished,
    report: Option<String>,
}

impl std::ops::Deref for Outcome {
    type Target = Finished;

    fn deref(&self) -> &Finished {
        &self.finished
    }
}

impl Outcome {
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert!(self.finished.code == code, "expected exit code {code}: {}", self.finished);
        self
    }

    #[track_caller]
    pub fn report(&self) -> Report {
        match &self.report {
            Some(text) => Report::parse(text),
            None => panic!("no report was written: {}", self.finished),
        }
    }
}

/// A run that is under way.
pub struct RunningRun {
    pub running: Running,
    report: PathBuf,
    deadline: Duration,
    _dir: TempDir,
}

impl std::ops::Deref for RunningRun {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl std::ops::DerefMut for RunningRun {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

impl RunningRun {
    #[track_caller]
    pub fn finish(self) -> Outcome {
        let finished = self.running.finish(self.deadline);
        Outcome { finished, report: std::fs::read_to_string(&self.report).ok() }
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    /// Through retryscope, with a JSON report.
    pub fn new() -> Self {
        clients::root();
        Self {
            direct: false,
            binary: RETRYSCOPE.into(),
            options: Vec::new(),
            hosts: Vec::new(),
            authorities: Vec::new(),
            report: true,
            env: clients::environment(),
            cwd: None,
            stdin: None,
            deadline: Duration::from_secs(60),
            dir: tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a temporary folder"),
        }
    }

    /// The same command without retryscope, for comparison.
    pub fn direct() -> Self {
        Self { direct: true, ..Self::new() }
    }

    /// One or the other, for tests that do both.
    pub fn via(direct: bool) -> Self {
        if direct { Self::direct() } else { Self::new() }
    }

    /// To an upstream of the harness under its name, trusting its authority.
    pub fn to(self, name: &str, address: SocketAddr, ca: &TestCa) -> Self {
        self.map_host(name, address).upstream_ca(&ca.pem())
    }

    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = path.into();
        self
    }

    pub fn rule(self, text: &str) -> Self {
        self.option("--rule").option(text)
    }

    pub fn map_host(mut self, name: &str, address: SocketAddr) -> Self {
        self.hosts.push((name.into(), address));
        self
    }

    pub fn upstream_ca(mut self, pem: &Path) -> Self {
        self.authorities.push(pem.into());
        self
    }

    /// One word of the command line, as it is.
    pub fn option(mut self, word: impl AsRef<OsStr>) -> Self {
        self.options.push(word.as_ref().into());
        self
    }

    /// Leaves out `--report json --report-file F`.
    pub fn no_report(mut self) -> Self {
        self.report = false;
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        self
    }

    pub fn cwd(mut self, path: &Path) -> Self {
        self.cwd = Some(path.into());
        self
    }

    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// A folder that lives as long as the run.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn report_file(&self) -> PathBuf {
        self.dir.path().join("report.json")
    }

    /// The command line up to the words of the command.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut put = |word: &dyn AsRef<OsStr>| words.push(word.as_ref().into());
        if self.direct {
            self.write_direct_files();
            for word in ["unshare", "--mount", "--propagation", "private", "sh", "-c", DIRECT, "sh"] {
                put(&word);
            }
            put(&self.dir.path().join("hosts"));
            put(&self.dir.path().join("bundle.pem"));
            return words;
        }
        put(&self.binary);
        put(&"run");
        for pem in &self.authorities {
            put(&"--upstream-ca");
            put(&pem);
        }
        for (name, address) in &self.hosts {
            put(&"--map-host");
            // Port 443 at the mapped address needs no naming.
            let target = if address.port() == 443 { address.ip().to_string() } else { address.to_string() };
            put(&format!("{name}={target}"));
        }
        if self.report {
            put(&"--report");
            put(&"json");
            put(&"--report-file");
            put(&self.report_file());
        }
        for option in &self.options {
            put(&option);
        }
        put(&"--");
        words
    }

    fn write_direct_files(&self) {
        let mut hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        for (name, address) in &self.hosts {
            hosts.push_str(&format!("\n{} {name}\n", address.ip()));
        }
        let mut bundle = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").unwrap_or_default();
        for pem in &self.authorities {
            bundle.push('\n');
            bundle.push_str(&std::fs::read_to_string(pem).expect("the test authority"));
        }
        std::fs::write(self.dir.path().join("hosts"), hosts).expect("writing hosts");
        std::fs::write(self.dir.path().join("bundle.pem"), bundle).expect("writing bundle.pem");
    }

    /// What a direct run must tell the clients that do not read the system's
    /// bundle.
    fn direct_env(&self) -> Vec<(OsString, OsString)> {
        let bundle = self.dir.path().join("bundle.pem");
        let mut env: Vec<(OsString, OsString)> =
            ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"]
                .iter()
                .map(|name| (name.into(), bundle.clone().into()))
                .collect();
        if let Some(authority) = self.authorities.first() {
            env.push(("RETRYSCOPE_TEST_AUTHORITY".into(), authority.into()));
        }
        env
    }

    /// Starts it.
    pub fn start<W: AsRef<OsStr>>(self, command: impl IntoIterator<Item = W>) -> RunningRun {
        let words = self.words();
        let mut child = Command::new(&words[0]);
        child.args(&words[1..]).args(command).env_clear().envs(self.env.iter().cloned());
        if self.direct {
            child.envs(self.direct_env());
        }
        if let Some(cwd) = &self.cwd {
            child.current_dir(cwd);
        }
        let mut running = Running::start(&mut child);
        if let Some(bytes) = &self.stdin {
            running.write(bytes);
            running.close_stdin();
        }
        RunningRun { running, report: self.report_file(), deadline: self.deadline, _dir: self.dir }
    }

    /// Starts it, with nothing on stdin, and waits for its end.
    #[track_caller]
    pub fn go<W: AsRef<OsStr>>(self, command: impl IntoIterator<Item = W>) -> Outcome {
        let mut started = self.start(command);
        started.close_stdin();
        started.finish()
    }
}

/// `retryscope` with other words than `run`'s.
pub fn retryscope<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Running {
    clients::root();
    let mut command = Command::new(RETRYSCOPE);
    command.args(words).env_clear().envs(clients::environment());
    Running::start(&mut command)
}
