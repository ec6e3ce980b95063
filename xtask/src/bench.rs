//! `cargo xtask bench`: what retryscope costs, next to a direct connection
//! and to a bare TLS-to-TLS relay, all measured in the same run.
//!
//! The same load client makes the same requests over the three paths in turn,
//! several rounds over, each round beginning with another path; what is told
//! is the median of the rounds. Processor time is that of the relay's and
//! retryscope's own process (utime + stime of all threads), so neither the
//! client's nor the upstream's work is in it; the kernel counts it in ticks of
//! 10 ms, so it is told as the mean of all rounds. Everything is on loopback, and
//! every count is fixed. Out: tables, and `bench.json` in the target folder.
mod process;
mod report;
mod table;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use self::table::median;
use crate::{
    system::{self, is_root, step},
    testbed::{self, Binaries, Profile, Server, Session},
};

const HOST: &str = "bench.retryscope.test";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// One short round: shows that the bench works, not what things cost
    #[arg(long)]
    quick: bool,
    /// Fail where a target is missed
    #[arg(long)]
    strict: bool,
    /// Leave retryscope out: the yardstick alone, which needs no root
    #[arg(long)]
    yardstick: bool,
    /// The ledger alone, without sockets: time and memory of ten million attempts
    #[arg(long)]
    ledger: bool,
    /// The store behind the views alone: what a million attempts take, and how
    /// soon questions about them are answered
    #[arg(long)]
    history: bool,
    /// The views: how soon the page shows what one does on a million attempts, and
    /// what the terminal view takes
    #[arg(long)]
    page: bool,
    /// The binaries are built; set where the bench becomes root
    #[arg(long, hide = true)]
    built: bool,
}

/// What a case is about, which decides the target that holds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Processor time per request, at most this many times the relay's.
    Requests { cpu: Option<f64> },
    /// Bytes per second, at least this many times the relay's.
    Bodies { throughput: f64 },
}

#[derive(Debug)]
struct Case {
    name: &'static str,
    job: String,
    kind: Kind,
}

/// One way to the upstream.
#[derive(Debug)]
struct Route {
    name: &'static str,
    session: Session,
    /// Whose processor time and memory count.
    watched: Option<u32>,
}

/// One job over one route.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests_per_s: f64,
    bytes_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: Option<f64>,
}

/// What a bench found out.
#[derive(Debug)]
struct Findings {
    cases: Vec<Case>,
    routes: Vec<&'static str>,
    /// By case, then by route: one for each round.
    samples: Vec<Vec<Vec<Sample>>>,
    memory: Vec<Memory>,
    /// By route: milliseconds from start to the first answer.
    start: Vec<(&'static str, f64)>,
    rules: Vec<RuleCost>,
}

/// What rules add to a request.
#[derive(Clone, Copy, Debug)]
struct RuleCost {
    rules: &'static str,
    added_us: f64,
    /// At most this much.
    target_us: f64,
}

/// What a process takes.
#[derive(Debug)]
struct Memory {
    route: &'static str,
    rest_kib: f64,
    idle_connection_kib: f64,
}

/// The servers of a bench, and how the load client reaches them.
#[derive(Debug)]
struct Bench {
    binaries: Binaries,
    ca: String,
    upstream: Server,
    relay: Server,
    report: PathBuf,
    yardstick: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(alone) = options.ledger.then_some("ledger").or(options.history.then_some("history")) {
        let mut cargo = system::cargo();
        cargo.args(["bench", "--locked", "-p", "retryscope", "--bench", alone]);
        return system::run(
            cargo.args(options.quick.then_some("--").into_iter().chain(options.quick.then_some("--quick"))),
        );
    }
    if options.page {
        return crate::test::views(options.quick, options.strict);
    }
    let binaries = if options.built {
        Binaries::of(Profile::Release)
    } else {
        step("Building with optimisation (a first build takes some minutes)");
        testbed::build(Profile::Release)?
    };
    if !options.yardstick && !is_root() {
        return become_root(options);
    }

    let bench = Bench::start(binaries, options.yardstick)?;
    let began = Instant::now();
    let start = bench.first_answers(if options.quick { 2 } else { 9 })?;
    let memory = bench.memory(if options.quick { 50 } else { 250 })?;
    let rules = if options.yardstick { Vec::new() } else { bench.rules(if options.quick { 1 } else { 7 })? };
    let findings = bench.rounds(cases(options.quick), if options.quick { 1 } else { 5 }, (memory, start, rules))?;
    println!("   {:.0} s\n\n{}\n", began.elapsed().as_secs_f64(), report::machine());

    let verdicts = report::verdicts(&findings);
    println!("{}", report::tables(&findings, &verdicts));
    let file = system::target().join("bench.json");
    // It may be root's from the time before.
    let _ = fs::remove_file(&file);
    fs::write(&file, format!("{:#}\n", report::json(&findings, &verdicts)))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("Written to {}", system::short(&file).display());
    if options.quick {
        println!("One short round is a look, not a measurement: run without --quick for numbers.");
    }
    let missed = verdicts.iter().filter(|verdict| !verdict.pass()).count();
    ensure!(!options.strict || missed == 0, "{missed} targets were missed");
    Ok(())
}

/// The same again under sudo, so that the process we start is retryscope's
/// own and not sudo's.
fn become_root(options: &Options) -> Result<()> {
    step("Measuring needs root (sudo may ask for your password)");
    // Ours, so that we can clear it although root fills it.
    fs::create_dir_all(folder()).with_context(|| format!("cannot make {}", folder().display()))?;
    let me = std::env::current_exe().context("cannot tell where xtask is")?;
    let mut command = system::privileged_with(me, |name| matches!(name, "PATH" | "CARGO_TARGET_DIR"))?;
    command.args(["bench", "--built"]);
    command.args(options.quick.then_some("--quick")).args(options.strict.then_some("--strict"));
    system::run(&mut command)
}

/// Certificates, and retryscope's report.
fn folder() -> PathBuf {
    system::target().join("bench")
}

fn cases(quick: bool) -> Vec<Case> {
    let scale = if quick { 20 } else { 1 };
    let requests = |cpu| Kind::Requests { cpu };
    let bodies = Kind::Bodies { throughput: 0.9 };
    let case = |name, job: String, kind| Case { name, job, kind };
    let body = |direction, protocol| {
        format!(
            "{direction} --protocol {protocol} --bytes {} --count {}",
            (64 << 20) / scale,
            if quick { 1 } else { 4 }
        )
    };
    vec![
        case(
            "HTTP/1.1 keep-alive",
            format!("requests --count {} --connections 8", 30_000 / scale),
            requests(Some(1.5)),
        ),
        case(
            "HTTP/2",
            format!("requests --protocol h2 --count {} --connections 2 --streams 16", 80_000 / scale),
            requests(Some(3.0)),
        ),
        case("fresh connections", format!("fresh --count {} --concurrency 4", 1_000 / scale), requests(Some(1.2))),
        case("HTTP/1.1, one at a time", format!("requests --count {}", 4_000 / scale), requests(None)),
        case("HTTP/2, one at a time", format!("requests --protocol h2 --count {}", 4_000 / scale), requests(None)),
        case("64 MiB down, HTTP/1.1", body("download", "h1"), bodies),
        case("64 MiB up, HTTP/1.1", body("upload", "h1"), bodies),
        case("64 MiB down, HTTP/2", body("download", "h2"), bodies),
        case("64 MiB up, HTTP/2", body("upload", "h2"), bodies),
    ]
}

impl Bench {
    fn start(binaries: Binaries, yardstick: bool) -> Result<Self> {
        let dir = folder();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let certs = dir.to_string_lossy().into_owned();
        let ca = format!("{certs}/ca.pem");
        let upstream = Server::start(&binaries.testbed, ["serve", "--certs", &certs, "--name", HOST])?;
        let relay = Self::relay(&binaries, &certs, &ca, &upstream.address)?;
        let report = dir.join("report.json");
        Ok(Self { binaries, ca, upstream, relay, report, yardstick })
    }

    fn relay(binaries: &Binaries, certs: &str, ca: &str, upstream: &str) -> Result<Server> {
        Server::start(&binaries.testbed, ["relay", "--certs", certs, "--upstream", upstream, "--ca", ca])
    }

    /// The load client over one route, ready for its last arguments.
    fn client(&self, route: &str) -> Command {
        let address = match route {
            "direct" => &self.upstream.address,
            "relay" => &self.relay.address,
            _ => "127.0.0.1:443",
        };
        let mut command = if route == "retryscope" {
            let mut command = Command::new(&self.binaries.retryscope);
            command.args(["run", "--map-host", &format!("{HOST}={}", self.upstream.address)]);
            command.args(["--upstream-ca", &self.ca, "--report", "json", "--report-file"]).arg(&self.report);
            command.arg("--").arg(&self.binaries.testbed);
            command
        } else {
            Command::new(&self.binaries.testbed)
        };
        command.args(["load", "--connect", address, "--name", HOST, "--ca", &self.ca]);
        command
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names = vec!["direct", "relay"];
        if !self.yardstick {
            names.push("retryscope");
        }
        names
    }

    fn route(&self, name: &'static str) -> Result<Route> {
        let mut session = Session::start(self.client(name).arg("--session"))?;
        // The first answer says that everything has started.
        session.job("requests --count 1")?;
        let watched = match name {
            "relay" => Some(self.relay.program.pid()),
            "retryscope" => Some(session.program.pid()),
            _ => None,
        };
        Ok(Route { name, session, watched })
    }

    /// Milliseconds from starting a command to the answer to its only
    /// request; per route, the median of several starts.
    fn first_answers(&self, times: usize) -> Result<Vec<(&'static str, f64)>> {
        step("First answer from start");
        let mut samples = vec![Vec::new(); self.names().len()];
        for _ in 0..times {
            for (route, samples) in self.names().iter().zip(&mut samples) {
                let mut command = self.client(route);
                system::unsteered(command.args(["requests", "--count", "1"]));
                let began = SystemTime::now();
                let output = command.output().with_context(|| format!("cannot run {}", system::shown(&command)))?;
                ensure!(
                    output.status.success(),
                    "{} failed: {}",
                    system::shown(&command),
                    String::from_utf8_lossy(&output.stderr)
                );
                let told: Value = serde_json::from_slice(&output.stdout).context("the load client's answer")?;
                let first = Duration::from_micros(told["first_answer_unix_us"].as_u64().unwrap_or(0));
                let took = (SystemTime::UNIX_EPOCH + first).duration_since(began).context("the clock was set back")?;
                samples.push(took.as_secs_f64() * 1e3);
            }
        }
        Ok(self.names().into_iter().zip(samples.into_iter().map(median)).collect())
    }

    /// The same requests without rules, with 200 that do not match, and with
    /// one that does, in turn; what is told is the difference.
    fn rules(&self, rounds: usize) -> Result<Vec<RuleCost>> {
        step("What rules add");
        let file = folder().join("rules.toml");
        let mut text = String::new();
        for number in 0..200 {
            let when = match number % 5 {
                0 => format!("~d host{number}.example & ~m PUT"),
                1 => format!("~u /path{number}/ & ~attempt ..2"),
                2 => format!("~svc s3 & ~op Put{number}*"),
                3 => format!("~hq \"x-tenant: t{number}$\""),
                _ => format!("~c 5{:02} & ~hs server", number % 100),
            };
            text.push_str(&format!("[[rule]]\nwhen = '{when}'\nthen = {{ status = 503 }}\n\n"));
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let file = file.to_string_lossy();
        let kinds: [&[&str]; 3] = [&[], &["--rules", &file], &["--rule", "~s => 200 \"Fine\""]];
        let mut sessions = Vec::new();
        for options in kinds {
            let mut command = Command::new(&self.binaries.retryscope);
            command.args(["run", "--map-host", &format!("{HOST}={}", self.upstream.address)]);
            command.args(["--upstream-ca", &self.ca, "--report", "json", "--report-file"]);
            command.arg(folder().join("rules-report.json")).args(options).arg("--").arg(&self.binaries.testbed);
            command.args(["load", "--connect", "127.0.0.1:443", "--name", HOST, "--ca", &self.ca, "--session"]);
            let mut session = Session::start(&mut command)?;
            session.job("requests --count 200")?;
            sessions.push(session);
        }
        let count = if rounds == 1 { 1_000 } else { 20_000 };
        let mut used = [Duration::ZERO; 3];
        for round in 0..rounds {
            for turn in 0..sessions.len() {
                let at = (turn + round) % sessions.len();
                let session = &mut sessions[at];
                let before = process::cpu(session.program.pid())?;
                session.job(&format!("requests --count {count} --connections 8"))?;
                used[at] += process::cpu(session.program.pid())?.saturating_sub(before);
            }
        }
        for session in sessions {
            session.program.finish()?;
        }
        let each = |at: usize| used[at].as_secs_f64() * 1e6 / (f64::from(count) * rounds as f64);
        Ok(vec![
            RuleCost { rules: "200 rules, none matching", added_us: each(1) - each(0), target_us: 5.0 },
            RuleCost { rules: "one matching status rule", added_us: each(2) - each(0), target_us: 10.0 },
        ])
    }

    /// Of fresh processes, as freed memory would hide what connections take.
    fn memory(&self, connections: u32) -> Result<Vec<Memory>> {
        step(&format!("Memory at rest and with {connections} idle connections"));
        let mut told = Vec::new();
        for name in self.names() {
            let mut route = self.route(name)?;
            let Some(pid) = route.watched else { continue };
            let rest = process::resident(pid)?;
            route.session.job(&format!("idle --connections {connections}"))?;
            let held = process::resident(pid)?;
            told.push(Memory {
                route: name,
                rest_kib: rest,
                idle_connection_kib: (held - rest) / f64::from(connections),
            });
            route.session.job("release")?;
            route.session.program.finish()?;
        }
        Ok(told)
    }

    fn rounds(
        &self,
        cases: Vec<Case>,
        rounds: usize,
        (memory, start, rules): (Vec<Memory>, Vec<(&'static str, f64)>, Vec<RuleCost>),
    ) -> Result<Findings> {
        let mut routes = self.names().into_iter().map(|name| self.route(name)).collect::<Result<Vec<_>>>()?;
        let names: Vec<_> = routes.iter().map(|route| route.name).collect();
        let mut samples = vec![vec![Vec::new(); routes.len()]; cases.len()];
        let mut made = 1;
        for round in 0..rounds {
            step(&format!("Round {} of {rounds}", round + 1));
            for (case, samples) in cases.iter().zip(&mut samples) {
                for turn in 0..routes.len() {
                    let at = (turn + round) % routes.len();
                    let (sample, requests) = routes[at].measure(case)?;
                    samples[at].push(sample);
                    made += if at + 1 == names.len() { requests } else { 0 };
                }
            }
        }
        for route in routes {
            route.session.program.finish()?;
        }
        if !self.yardstick {
            self.check_report(made)?;
        }
        Ok(Findings { cases, routes: names, samples, memory, start, rules })
    }

    /// A bench that retryscope did not see would measure nothing.
    fn check_report(&self, made: u64) -> Result<()> {
        let text = fs::read_to_string(&self.report)
            .with_context(|| format!("retryscope wrote no report to {}", self.report.display()))?;
        let report: Value = serde_json::from_str(&text).context("the report is not JSON")?;
        let counted = &report["totals"]["attempts"];
        ensure!(*counted == made, "{made} requests went through retryscope, its report counts {counted}");
        Ok(())
    }
}

impl Route {
    fn measure(&mut self, case: &Case) -> Result<(Sample, u64)> {
        let cpu = |watched: Option<u32>| watched.map(process::cpu).transpose();
        let before = cpu(self.watched)?;
        let told = self.session.job(&case.job).with_context(|| format!("{} over {}", case.name, self.name))?;
        let after = cpu(self.watched)?;
        let field = |name: &str| told[name].as_f64().with_context(|| format!("the load client told no {name}"));
        let (requests, seconds) = (field("requests")?, field("seconds")?);
        if requests == 0.0 || seconds == 0.0 {
            bail!("{} over {} measured nothing", case.name, self.name);
        }
        let used = after.zip(before).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
        let sample = Sample {
            requests_per_s: requests / seconds,
            bytes_per_s: field("bytes")? / seconds,
            p50_us: field("p50_us")?,
            p99_us: field("p99_us")?,
            cpu_us: used.map(|seconds| seconds * 1e6 / requests),
        };
        Ok((sample, told["requests"].as_u64().unwrap_or(0)))
    }
}
