//! One client, tried in every way: directly, under `run`, by mounts alone, by
//! variables alone, by each variable alone.
//!
//! The client finds the same name at the same address each time, since all of
//! it happens in a mount namespace with a hosts file of its own; so what it
//! prints and what its server receives can be compared word for word.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use retryscope::tls::{Bind, TrustInput, TrustPlan, prepare};

use crate::{
    common::{Finished, NAME, Report, Running, TestCa, clients, run::RETRYSCOPE, sha256},
    rows::{Client, Row, Server},
};

/// Longer than any client takes, also where a machine is busy.
const DEADLINE: Duration = Duration::from_secs(100);

/// Lays files over others, given as pairs up to `--`, then becomes the rest.
const ENTER: &str = r#"while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 99; shift 2; done
shift
exec "$@""#;

/// What was found of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Under `run` as it is.
    pub(crate) works: bool,
    /// With no variable of ours at all.
    pub(crate) mounts: bool,
    /// With `--no-mount`.
    pub(crate) variables: bool,
    /// Of the variables, those that are enough alone.
    pub(crate) alone: Vec<String>,
    /// Whether it was HTTP/2.
    pub(crate) http2: bool,
}

/// What one run of a client came to.
#[derive(Debug)]
struct Told {
    finished: Finished,
    seen: Vec<String>,
    artifacts: Vec<String>,
    report: Option<Report>,
}

impl Told {
    /// All that must be equal in every way: what it printed, what it made,
    /// how it ended, and what its server received.
    fn essence(&self, row: &Row) -> String {
        let said = self.finished.stderr.lines().filter(|line| !line.starts_with("Picked up JAVA_TOOL_OPTIONS: "));
        let said = said.filter(|_| !row.noisy);
        format!(
            "exit {}\nout {}\nerr {}\nmade {:#?}\nreceived {:#?}",
            self.finished.code,
            if self.finished.stdout.len() > 4096 { sha256(&self.finished.stdout) } else { self.finished.text() },
            said.collect::<Vec<_>>().join("\n"),
            self.artifacts,
            self.seen
        )
    }
}

#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Direct,
    /// `run`, with or without mounts, and without some of its variables.
    Run {
        mount: bool,
        without: &'a [String],
    },
}

/// Whether it ends as it does directly.
enum Verdict {
    Alike,
    /// Nothing reached its server: it did not trust.
    Distrusts,
    Otherwise(String),
}

struct Trial<'a> {
    row: &'a Row,
    client: Client,
    server: Server,
    ca: &'a TestCa,
    authority: String,
    folder: PathBuf,
    environment: BTreeMap<OsString, OsString>,
}

/// Tries a client in every way. What is not as it should be in any row is
/// told; what rows differ in is found.
pub(crate) fn of(row: &Row, ca: &TestCa) -> Result<Found, String> {
    let started = Instant::now();
    let dir = tempfile::Builder::new().prefix("retryscope-matrix-").tempdir().expect("a temporary folder");
    let folder = dir.path().to_owned();
    let (client, server) = (row.make)(&folder, ca);
    let mut environment: BTreeMap<OsString, OsString> = clients::environment().into_iter().collect();
    environment.insert("HOME".into(), folder.join("work").into());
    // What would differ from run to run by itself: botocore names its features
    // in the order of a set, Node its pid in a warning.
    environment.insert("PYTHONHASHSEED".into(), "0".into());
    environment.insert("NODE_NO_WARNINGS".into(), "1".into());
    environment.extend(client.environment.iter().cloned());
    std::fs::write(folder.join("body"), "0123456789".repeat(5000)).expect("a body");
    let authority = std::fs::read_to_string(ca.pem()).expect("the test authority");
    let trial = Trial { row, client, server, ca, authority, folder, environment };
    let found = trial.find();
    println!("{:>6.1} s  {}  {found:?}", started.elapsed().as_secs_f32(), row.name);
    found.map_err(|wrong| format!("{}: {wrong}", row.name))
}

impl Trial<'_> {
    fn find(&self) -> Result<Found, String> {
        let plan = self.plan();
        let every: Vec<String> = self.variables();
        if self.row.closed {
            return self.refuses(&plan);
        }
        let direct = self.go(Way::Direct, &plan);
        if direct.finished.code != 0 || direct.seen.is_empty() {
            return Err(format!("it does not work directly\n{}", direct.essence(self.row)));
        }
        let found = |mount: bool, without: &[String]| {
            let told = self.go(Way::Run { mount, without }, &plan);
            match self.judge(&direct, &told) {
                Verdict::Alike => Ok(true),
                Verdict::Distrusts => Ok(false),
                Verdict::Otherwise(how) => Err(format!("mounts {mount}, variables without {without:?}: {how}")),
            }
        };
        let works = found(true, &[])?;
        let mounts = found(true, &every)?;
        let variables = found(false, &[])?;
        let mut alone = Vec::new();
        for candidate in self.row.variables {
            let others: Vec<String> = every.iter().filter(|name| name != candidate).cloned().collect();
            if others.len() == every.len() {
                return Err(format!("{candidate} is not among the variables that are set"));
            }
            if found(false, &others)? {
                alone.push((*candidate).to_owned());
            }
        }
        let candidates: Vec<String> = self.row.variables.iter().map(|&name| name.to_owned()).collect();
        if variables && found(false, &candidates)? {
            return Err(format!("variables other than {candidates:?} are enough as well"));
        }
        let http2 = direct.seen.iter().any(|line| line.contains(" HTTP/2.0 "));
        Ok(Found { works, mounts, variables, alone, http2 })
    }

    /// A client that cannot be told: its handshakes fail, and the report says
    /// so by its name.
    fn refuses(&self, plan: &TrustPlan) -> Result<Found, String> {
        let told = self.go(Way::Run { mount: true, without: &[] }, plan);
        let report = told.report.as_ref().ok_or_else(|| format!("no report: {}", told.finished))?;
        let process = report.process(self.row.process);
        let told_so = process["problems"]
            .as_array()
            .is_some_and(|problems| problems.iter().any(|problem| problem.to_string().contains(NAME)));
        if told.finished.code == 0 || !told.seen.is_empty() || report.connections("refused") == 0 || !told_so {
            return Err(format!("it should refuse, and the report say so: {}\n{report}", told.finished));
        }
        Ok(Found { works: false, mounts: false, variables: false, alone: Vec::new(), http2: true })
    }

    /// What makes a client trust the harness's authority, for direct runs.
    fn plan(&self) -> TrustPlan {
        let folder = self.folder.join("direct");
        std::fs::create_dir(&folder).expect("a folder");
        prepare(&self.input(&folder, true)).expect("a plan")
    }

    /// Every variable that `run` sets, with mounts or without.
    fn variables(&self) -> Vec<String> {
        let folder = self.folder.join("other");
        std::fs::create_dir(&folder).expect("a folder");
        let plan = prepare(&self.input(&folder, false)).expect("a plan");
        plan.environment.into_iter().map(|(name, _)| name.into_string().expect("a name")).collect()
    }

    fn input<'a>(&'a self, folder: &'a Path, mount: bool) -> TrustInput<'a> {
        TrustInput {
            authority_pem: &self.authority,
            folder,
            argv: &self.client.command,
            environment: &self.environment,
            mount,
            cwd: &self.folder,
        }
    }

    fn go(&self, way: Way<'_>, plan: &TrustPlan) -> Told {
        let work = self.folder.join("work");
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir(&work).expect("a folder");
        if let Some(prepare) = &self.client.prepare {
            prepare(&work);
        }
        let hosts = self.folder.join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n::1 localhost\n{} {NAME}\n", self.server.address().ip()))
            .expect("a hosts file");
        let report = self.folder.join("report.json");
        let _ = std::fs::remove_file(&report);

        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]).arg(hosts).arg("/etc/hosts");
        command.env_clear().envs(&self.environment).current_dir(&self.folder);
        match way {
            Way::Direct => {
                for Bind { source, target } in &plan.binds {
                    command.arg(source).arg(target);
                }
                command.arg("--").envs(plan.environment.iter().cloned());
            }
            Way::Run { mount, without } => {
                command.args(["--", RETRYSCOPE, "run", "--report", "json", "--report-file"]).arg(&report);
                command.arg("--upstream-ca").arg(self.ca.pem());
                if !mount {
                    command.arg("--no-mount");
                }
                command.arg("--");
                if !without.is_empty() {
                    // One word: no more of the command is searched for
                    // interpreters than anybody would type.
                    let options: String = without.iter().map(|name| format!("-u {name} ")).collect();
                    command.arg("/usr/bin/env").arg(format!("-S{}", options.trim_end()));
                }
            }
        }
        let mut running = Running::start(command.args(&self.client.command));
        running.close_stdin();
        let finished = running.finish(DEADLINE);
        let mut seen = self.server.take();
        if self.row.unordered {
            seen.sort();
        }
        let report = std::fs::read_to_string(&report).ok().map(|text| Report::parse(&text));
        Told { finished, seen, artifacts: self.artifacts(&work), report }
    }

    /// The client's files by name and digest.
    fn artifacts(&self, work: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![work.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if self.client.artifacts.iter().any(|name| entry.file_name() == *name) {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    found.push(format!("{} {}", entry.file_name().to_string_lossy(), sha256(&bytes)));
                }
            }
        }
        found.sort();
        found
    }

    fn judge(&self, direct: &Told, told: &Told) -> Verdict {
        let Some(report) = &told.report else { return Verdict::Otherwise(format!("no report: {}", told.finished)) };
        let of = |kind| report.connections(kind);
        if told.seen.is_empty() {
            // Some libraries look at the certificate once the handshake is
            // complete: such a connection was intercepted, and carried nothing.
            let unused = report.count("statuses", "200") == 0;
            return if of("refused") + of("intercepted") > 0 && unused {
                Verdict::Distrusts
            } else {
                Verdict::Otherwise(format!("it failed, but not for want of trust: {}\n{report}", told.finished))
            };
        }
        if told.essence(self.row) != direct.essence(self.row) {
            return Verdict::Otherwise(format!(
                "it differs from the direct run\n=== direct\n{}\n=== here\n{}\n{report}",
                direct.essence(self.row),
                told.essence(self.row)
            ));
        }
        // WebSocket messages are noted by the server as well.
        let requests = told.seen.iter().filter(|line| !line.starts_with("message ")).count();
        let named = report.processes().iter().any(|row| {
            let exe = row["exe"].as_str().unwrap_or_default();
            let command = row["command"].as_str().unwrap_or_default();
            let attempts = row["attempts"].as_u64().unwrap_or_default();
            attempts > 0 && (exe.ends_with(self.row.process) || command.contains(self.row.process))
        });
        let counted = report.total("attempts") == requests as u64 && report.total("calls") == requests as u64;
        if of("intercepted") > 0 && of("tunnelled") + of("refused") == 0 && counted && named {
            Verdict::Alike
        } else {
            Verdict::Otherwise(format!("{requests} requests, but the report says\n{report}"))
        }
    }
}
