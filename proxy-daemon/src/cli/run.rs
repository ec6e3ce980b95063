//! `retryscope run -- COMMAND…`: from nothing to a report, around one command.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, Uid, getpid, getsid},
};
use tokio::sync::oneshot;

use super::{
    Failure, log_to_stderr,
    options::{Checked, Fail, Options, RedirectBy, told},
    output::{ASSERTION_FAILED, Output, hold, open_events, open_junit, report_of},
    page, runtime,
    scene::Scene,
    signals::{Signals, Stream},
    user::{Environment, Who, find_program, sudo_line},
};
use crate::{
    daemon::{Finished, Instance, Settings},
    process::{
        self,
        launch::{Launcher, NONCE, Refusal, Spec},
    },
    proxy::Mapping,
    redirect::{Reach, Redirection, Target},
    report::recording,
    tls::{self, Authority, TlsError, TrustInput},
};

/// How long connections may outlive the command; they are its own, so they
/// end with it unless processes of it go on.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,

    /// Do not give the command a mount namespace; trust then rests on variables alone
    #[arg(long)]
    no_mount: bool,

    /// Rules act for this long, as in 30s, 10m, 2h; then everything passes
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// Run the command as this user [default: the user who called sudo]
    #[arg(long, value_name = "NAME|UID[:GID]")]
    user: Option<String>,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    log_to_stderr(args.options.verbose);
    let checked = args.options.check()?;
    tracing::debug!("the options are checked");
    require_root()?;
    let ours: Environment = std::env::vars_os().collect();
    let who = Who::find(args.user.as_deref(), &ours)?;
    let environment = who.environment(&ours);
    let cwd = std::env::current_dir().map_err(|error| {
        Failure::usage(format!("the current directory cannot be used ({error}); change to another"))
    })?;
    let name = args.command.first().ok_or_else(|| Failure::usage("no command was given"))?;
    let program = find_program(name, &environment, &cwd)?;
    let caller = Who::find(None, &ours)?;
    let output = Output::open(args.options.report_file.as_deref(), caller.owner())?;
    let junit = open_junit(&args.options, caller.owner())?;
    let events = open_events(&args.options, caller.owner())?;
    let recording = args.options.save.open(caller.owner())?;
    let assertions = checked.assertions.clone();

    // Blocked before any thread starts, so that every thread leaves them to
    // the descriptor.
    let signals = Signals::block().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
    // The first key takes the cryptography library tens of milliseconds.
    let authority = std::thread::spawn(Authority::in_memory);

    let runtime = runtime()?;
    let job = Job { args, checked, events, recording, who, environment, cwd, program, authority };
    let (options, outcome, mut finished, mut notes, scene) = runtime.block_on(job.serve(signals))?;

    let left = scene.left_behind();
    if !left.is_empty() {
        notes.push(still_running(&left));
    }
    let verdicts = hold(&assertions, &finished, &outcome.command, junit);
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    let timeline = finished.timeline.take();
    let report = report_of(&options, finished, verdicts, Some(outcome.command), notes);
    output.write(&report, timeline.as_ref(), &options);
    scene.clear();
    Ok(ExitCode::from(match outcome.code {
        0 if !holds => ASSERTION_FAILED,
        code => code,
    }))
}

fn still_running(left: &[u32]) -> String {
    let shown: Vec<String> = left.iter().take(5).map(u32::to_string).collect();
    let more = if left.len() > 5 { ", …" } else { "" };
    format!(
        "The command ended, but left {} running (pid {}{more}); from now on {} direct, unobserved.",
        if left.len() == 1 { "a process".to_owned() } else { format!("{} processes", left.len()) },
        shown.join(", "),
        if left.len() == 1 { "it connects" } else { "they connect" },
    )
}

pub(super) fn require_root() -> Result<(), Failure> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    Err(Failure::new(
        77,
        format!(
            "root is needed, to load eBPF programs and make a cgroup; the command itself still runs as you. Type:\n  {}",
            sudo_line(&arguments)
        ),
    ))
}

/// Everything that was decided before anything was touched.
struct Job {
    args: Args,
    checked: Checked,
    events: Option<fs::File>,
    recording: Option<recording::Settings>,
    who: Who,
    environment: Environment,
    cwd: PathBuf,
    program: PathBuf,
    authority: JoinHandle<Result<Authority, TlsError>>,
}

/// The result of a thread.
fn joined<T>(result: std::thread::Result<T>) -> Result<T, Failure> {
    result.map_err(|_| Failure::new(70, "a part of the start-up has failed; this is a fault of retryscope's own"))
}

struct Outcome {
    code: u8,
    command: String,
}

impl Job {
    async fn serve(self, signals: Signals) -> Result<(Options, Outcome, Finished, Vec<String>, Scene), Failure> {
        let fault = |error: std::io::Error| Failure::new(70, format!("cannot run the command's launcher ({error})"));
        let Job {
            args: Args { options, no_mount, command, duration: rules_for, .. },
            checked,
            events,
            recording,
            who,
            environment,
            cwd,
            program,
            authority,
        } = self;
        let scene = set(options.redirect, options.save.path())?;
        tracing::debug!("the scene is set");
        let mut launcher = Launcher::start(scene.target()).map_err(fault)?;
        let pid = Pid::from_raw(launcher.child.id().cast_signed());
        process::raise_file_limit();
        let reach = scene.target().map_or(Reach::Namespace, |target| Reach::Target(Target::Cgroup(target.to_owned())));
        let wanted = options.wanted(reach);
        let (mut notes, mut trust_notes) = (Vec::new(), Vec::new());
        // The kernel side loads while the rest is prepared; on this thread,
        // since only its memory goes back to the system afterwards.
        let (redirect, prepared) = std::thread::scope(|scope| {
            let preparing = scope.spawn(|| {
                let authority = joined(authority.join())??;
                let mappings = &checked.routes.mappings();
                let mut trust =
                    prepare_trust(&scene, &authority, &command, environment, &cwd, !no_mount, &mut trust_notes)?;
                trust.1.extend(prepare_names(&scene, mappings, !no_mount, &mut notes));
                tracing::debug!("trust is prepared");
                Ok::<_, Failure>((authority, trust))
            });
            let redirect = Redirection::start(&wanted, scene.daemon());
            tracing::debug!("the redirect is in force");
            (redirect, joined(preparing.join()))
        });
        let shown = command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let started = redirect.map_err(Failure::from).and_then(|redirect| {
            if let Some(told) = told(redirect.0.way()) {
                say(&told);
            }
            let (authority, trust) = prepared??;
            if let Some(page) = &checked.page {
                page::tell(page);
            }
            let settings = Settings {
                ports: options.ports(),
                closed: (options.fail == Fail::Closed).then(|| scene.target().map(Into::into)).flatten(),
                warden: None,
                rules: checked.rules,
                rule_settings: checked.rule_settings,
                rule_files: checked.rule_files,
                rules_for,
                folder: scene.folder.clone(),
                target: shown.clone(),
                command: Some(shown),
                routes: checked.routes,
                strict: options.strict,
                upstream: checked.upstream,
                events,
                recording,
                timeline: options.wants_timeline(),
                keep: options.keep,
                metrics: checked.metrics,
                page: checked.page,
                statsd: checked.statsd,
                otlp: checked.otlp,
                answers: checked.answers,
                authority: Arc::new(authority),
                host: None,
                control: None,
                earlier: None,
                bypassed: false,
                beacon: None,
                doors: None,
            };
            let instance = Instance::start(settings, redirect)?;
            Ok((instance, trust))
        });
        let (mut instance, (environment, binds)) = match started {
            Ok(started) => started,
            Err(failure) => {
                drop(launcher.stop());
                return Err(failure);
            }
        };
        tracing::debug!("the instance has started");
        let nonce = nonce();
        launcher
            .send(&Spec {
                probes: instance.probes(),
                nonce,
                binds: (!no_mount)
                    .then(|| binds.into_iter().map(|(source, target)| (source.into(), target.into())).collect()),
                user: who.credentials.clone(),
                program: program.into(),
                arguments: command.clone(),
                environment: environment.into_iter().collect(),
            })
            .map_err(fault)?;
        let signals = signals.listen().map_err(fault)?;
        let (started, starting) = oneshot::channel();
        let ended = watch_child(launcher, pid, started);

        // Until the launcher has been answered, or has given up.
        let mut starting = starting;
        let refusal = tokio::select! {
            answered = instance.answer_probes(nonce) => {
                if let Err(error) = answered {
                    tracing::warn!(%error, "the self-test could not be answered");
                }
                instance.serve();
                (&mut starting).await.ok().flatten()
            }
            refusal = &mut starting => {
                instance.serve();
                refusal.ok().flatten()
            }
        };
        if let Reach::Target(target) = &wanted.reach {
            // The command may go into a network namespace of its own.
            instance.look_around(target.clone()).await;
        }
        tracing::debug!("the command was started, or refused");
        if refusal.is_none() && std::io::stderr().is_terminal() {
            let line = ["top".to_owned(), "--instance".into(), std::process::id().to_string()];
            say(&format!("to watch it from a second terminal: {}", sudo_line(&line)));
        }
        if let Some(Refusal { message, code }) = refusal {
            let _ = ended.await;
            instance.finish(Duration::ZERO, std::future::pending()).await;
            return Err(Failure::new(code, message));
        }
        let code = wait(pid, ended, &signals).await;
        let finished = instance.finish(DRAIN, std::future::pending()).await;
        // How trust was arranged matters where it failed.
        let failed = finished.snapshot.processes.iter().any(|process| process.connections.refused > 0);
        if failed || options.verbose > 0 {
            notes.extend(trust_notes);
        }
        let command = command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Ok((options, Outcome { code, command }, finished, notes, scene))
    }
}

/// The places that the command needs. TPROXY can do without a cgroup; it then
/// takes all of the network namespace, which nobody is to find out afterwards.
fn set(by: RedirectBy, recording: Option<PathBuf>) -> Result<Scene, Failure> {
    match Scene::set(by != RedirectBy::Ebpf, recording.clone()) {
        Err(failure) if by == RedirectBy::Tproxy => {
            say(&format!(
                "the command has no cgroup of its own ({}), so every process of this network namespace is redirected",
                failure.message
            ));
            Scene::without_cgroups(recording)
        }
        scene => scene,
    }
}

type Binds = Vec<(PathBuf, PathBuf)>;

/// What makes the command trust the authority.
fn prepare_trust(
    scene: &Scene,
    authority: &Authority,
    command: &[OsString],
    environment: Environment,
    cwd: &Path,
    mount: bool,
    notes: &mut Vec<String>,
) -> Result<(Environment, Binds), Failure> {
    let plan = tls::prepare(&TrustInput {
        authority_pem: authority.certificate_pem(),
        folder: &scene.folder,
        argv: command,
        environment: &environment,
        mount,
        cwd,
    })?;
    notes.extend(plan.notes);
    let mut environment: BTreeMap<OsString, OsString> = environment;
    environment.extend(plan.environment);
    Ok((environment, plan.binds.into_iter().map(|bind| (bind.source, bind.target)).collect()))
}

/// What lets the command find mapped names: a hosts file of its own.
fn prepare_names(
    scene: &Scene,
    mappings: &[Mapping],
    mount: bool,
    notes: &mut Vec<String>,
) -> Option<(PathBuf, PathBuf)> {
    const HOSTS: &str = "/etc/hosts";
    if mappings.is_empty() {
        return None;
    }
    let mut unmapped = |why: &str| {
        notes.push(format!("The names of --map-host have to resolve by themselves: {why}."));
        None
    };
    if !mount {
        return unmapped("--no-mount leaves the command without a hosts file of its own");
    }
    let known = match fs::read(HOSTS) {
        Ok(known) => known,
        Err(error) => return unmapped(&format!("{HOSTS} cannot be read ({error})")),
    };
    let hosts = scene.folder.join("hosts");
    // Only comments may be in another encoding; names are ASCII.
    let text = hosts_file(mappings, &String::from_utf8_lossy(&known));
    let written = fs::write(&hosts, text).and_then(|()| fs::set_permissions(&hosts, fs::Permissions::from_mode(0o644)));
    match written {
        Ok(()) => Some((hosts, PathBuf::from(HOSTS))),
        Err(error) => unmapped(&format!("{} cannot be written ({error})", hosts.display())),
    }
}

/// The system's hosts file, but mapped names lead where they are mapped to.
fn hosts_file(mappings: &[Mapping], known: &str) -> String {
    let mut text = String::new();
    for mapping in mappings {
        text.push_str(&format!("{} {}\n", mapping.address, mapping.name));
    }
    let mapped = |name: &str| mappings.iter().any(|mapping| mapping.name.eq_ignore_ascii_case(name));
    for line in known.lines() {
        let entry = line.split('#').next().unwrap_or_default();
        let mut words = entry.split_whitespace();
        let Some(address) = words.next() else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let names: Vec<&str> = words.collect();
        if names.iter().any(|name| mapped(name)) {
            let kept: Vec<&str> = names.into_iter().filter(|name| !mapped(name)).collect();
            if !kept.is_empty() {
                text.push_str(&format!("{address} {}\n", kept.join(" ")));
            }
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

pub(super) fn nonce() -> [u8; NONCE] {
    use std::hash::BuildHasher;
    let word = || std::hash::RandomState::new().hash_one(0).to_le_bytes();
    let mut nonce = [0; NONCE];
    nonce[..8].copy_from_slice(&word());
    nonce[8..].copy_from_slice(&word());
    nonce
}

/// Waits, on a thread of its own, first for the command's start and then for
/// its end.
fn watch_child(mut launcher: Launcher, pid: Pid, started: oneshot::Sender<Option<Refusal>>) -> oneshot::Receiver<u8> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let refusal = launcher.wait_started().err();
        // A receiver that is gone has failed otherwise, and says so itself.
        let _ = started.send(refusal);
        let code = loop {
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => break u8::try_from(code).unwrap_or(1),
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as u8,
                Ok(_) | Err(nix::Error::EINTR) => {}
                // Somebody else has taken the status; nothing is known of it.
                Err(_) => break 70,
            }
        };
        let _ = sender.send(code);
    });
    receiver
}

/// Waits for the command's end, and passes signals on to it meanwhile.
async fn wait(pid: Pid, mut ended: oneshot::Receiver<u8>, signals: &Stream) -> u8 {
    loop {
        tokio::select! {
            code = &mut ended => return code.unwrap_or(70),
            heard = signals.next() => {
                // What the terminal sends, the command has got as well; but its
                // hang-up goes to the session's leader alone, which may be us.
                let for_us_alone = heard.signal == Signal::SIGHUP && leads_session();
                if !heard.from_terminal || for_us_alone {
                    forward(pid, heard.signal);
                }
            }
        }
    }
}

fn leads_session() -> bool {
    getsid(None) == Ok(getpid())
}

fn forward(pid: Pid, signal: Signal) {
    // A command that has just ended needs no signal.
    let _ = kill(pid, signal);
}

/// Says something on standard error, outside the report.
pub(super) fn say(text: &str) {
    // Nobody there, nobody to tell.
    let _ = writeln!(std::io::stderr(), "retryscope: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_names_lead_where_they_are_mapped_to() {
        let mappings =
            [Mapping::parse("a.example=127.0.0.1:8443").expect("valid"), Mapping::parse("b=::1").expect("valid")];
        let known = "# comment\n127.0.0.1 localhost\n10.0.0.1 A.example other # note\n10.0.0.2 b\n";
        assert_eq!(
            hosts_file(&mappings, known),
            "127.0.0.1 a.example\n::1 b\n# comment\n127.0.0.1 localhost\n10.0.0.1 other\n"
        );
    }

    #[test]
    fn what_still_runs_is_said() {
        assert_eq!(
            still_running(&[7]),
            "The command ended, but left a process running (pid 7); from now on it connects direct, unobserved."
        );
        assert!(still_running(&[1, 2, 3, 4, 5, 6]).contains("6 processes running (pid 1, 2, 3, 4, 5, …)"));
    }
}
