//! `retryscope daemon`: what `attach` does, from a file, for months.
//!
//! It starts as root, opens and loads what needs that, and then gives it up:
//! what goes on here parses bytes from the network and may do nothing else.
//! The keeper (`keeper/`) has the rest. docs/security.md tells which part may
//! do what, and when it stops to.
use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sd_notify::NotifyState;

use super::{
    Failure,
    log::{self, Level},
    place::Place,
    run::require_root,
    runtime,
    signals::{Signals, Stream},
};
use crate::{
    config::{self, Config, File, Prepared},
    control::{self, Access},
    daemon::{Earlier, Finished, Instance, Settings, StartError},
    keeper::{self, KeeperError, Starting, Taken, Targets},
    process::{
        self, Role,
        confine::{self, ConfineError, Needs},
        warden::{self, Warden},
    },
    redirect::{self, Taking},
    report::{own, recording},
    tls::Authority,
    view::page,
};

mod host;
mod manager;
mod state;

use host::Host;

/// Of a daemon that is given no other.
pub(super) const DEFAULT_NAME: &str = "main";
/// How often what outlives a restart is written.
const SAVE: Duration = Duration::from_secs(60);
/// How often the service manager is told what goes on.
const STATUS: Duration = Duration::from_secs(10);
/// How long whoever cleans up after an earlier daemon may take for its folder.
const CLEANING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);
/// How long the data path may take to show that it lives.
const ALIVE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration; `retryscope config default` prints one
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,

    /// Tells daemons of one machine apart: their sockets and what they keep
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = name)]
    name: String,

    /// Watch this cgroup instead of the file's targets; a pattern, may be given more than once
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<String>,

    /// Watch this systemd unit or slice instead; a pattern, may be given more than once
    #[arg(long = "unit", value_name = "UNIT")]
    units: Vec<String>,

    /// Watch this container instead, by its name or id; a pattern, may be given more than once
    #[arg(long = "container", value_name = "ID")]
    containers: Vec<String>,
}

/// A name that can be a folder's.
pub(super) fn name(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@\\:".contains(&byte);
    if text.is_empty() || text.starts_with('.') || text.len() > 200 || !text.bytes().all(legal) {
        return Err("use letters, digits, -, _, ., @ and \\".into());
    }
    Ok(text.to_owned())
}

impl From<ConfineError> for Failure {
    fn from(error: ConfineError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<KeeperError> for Failure {
    fn from(error: KeeperError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let path = std::path::absolute(&args.config).unwrap_or_else(|_| args.config.clone());
    let file = File::read(&path)?;
    let prepared = file.prepare()?;
    require_root()?;
    let config = prepared.changeable.config.clone();
    let level = log::start(config.log.to, &config.log.level);
    let targets = Targets { cgroups: args.cgroups, units: args.units, containers: args.containers };
    let failed = |what: &str, error: std::io::Error| Failure::new(73, format!("cannot {what} ({error})"));

    let folder = config.runtime_dir.join(&args.name);
    let lock = lock(&folder, &args.name)?;
    let signals = Signals::block().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
    let taking = config.taking();
    let place = Place::take(&folder, taking.is_some())?;
    process::raise_file_limit();
    if taking.is_some() && !targets.is_empty() {
        return Err(Failure::usage(
            "the file says that a network namespace or interfaces are taken (`netns`, `ingress`): leave out --cgroup, --unit and --container, or choose another file",
        ));
    }
    // Accepts wait until the data path serves; nothing is attached before.
    let own = taking.is_none().then(redirect::listeners).transpose()?;
    // What an instance before this one has left refuses connections until this
    // one serves; or at once no longer, where nothing is to be refused.
    let left = warden::left(Some(&args.name));
    let closed = config.fail == config::Fail::Closed;
    if !closed {
        warden::end_all(&left);
    }
    let warden = closed.then(|| Warden::start(&args.name)).transpose().map_err(StartError::Warden)?;
    let starting = Starting::start(
        &keeper::Start {
            config: path.clone(),
            targets: targets.clone(),
            cgroup: place.cgroup().to_owned(),
            ports: config.ports.clone(),
            allow_quic: config.allow_quic,
            ca_dir: file.resolve(&config.ca_dir),
            porter: (config.namespaces || taking.is_some()).then_some(prepared.account),
            taking: taking.clone(),
        },
        own.as_ref(),
        config.fail.into(),
    )?;
    let metrics = prepared
        .metrics
        .map(|address| {
            control::listen(address)
                .map_err(|error| Failure::new(69, format!("cannot serve metrics at {address} ({error})")))
        })
        .transpose()?;
    let page = prepared.page.map(super::page::open).transpose()?;
    let events = config::some_path(&config.events.file).map(|path| events(&file.resolve(path))).transpose()?;
    let recording = recording(&config.recording, &file)?;
    // What takes a moment here as well, while the keeper loads.
    warm_up();
    let started = starting.loaded()?;
    let socket = folder.join(control::SOCKET);
    let control = control::bind_at(&socket)
        .map_err(|error| failed(&format!("open the control socket {}", socket.display()), error))?;
    let state = config::some_path(&config.state_dir)
        .map(|state| state::Kept::open(&state.join(&args.name), &prepared.account))
        .transpose()?;

    // The last that is done as root.
    let bpf = confine::wants_capability(|| started.try_use());
    let less = confine::confine(&Needs {
        role: Role::Server,
        account: Some(prepared.account),
        bpf,
        read: readable(redirect::cgroup::Mount::find()?.point()),
        write: state.iter().map(|state| state.folder().to_owned()).collect(),
    })?;
    let certificate = started.authority.clone();
    let keeper_pid = started.pid;
    let bypassed = state.as_ref().is_some_and(state::Kept::keeps_bypass);
    if bypassed {
        // Before anything is attached.
        started.bypass()?;
        tracing::warn!(
            "bypassed, as it was before: new connections go direct, unobserved, until `retryscope bypass off`"
        );
    }
    let Taken { keeper, signer, redirect, listeners, doors, less: theirs } = started.run()?;
    let listeners = listeners.or(own).ok_or(KeeperError::Gone)?;
    if bypassed && taking.is_some() {
        // Before anybody says that we answer.
        redirect.bypass(true)?;
    }
    tracing::info!("connections are redirected by {}", by(taking.as_ref()));
    for what in less.iter().chain(&theirs) {
        tracing::warn!("less is confined than could be: {what}");
    }
    let authority = Authority::remote(&certificate, Box::new(signer))?;
    if authority.is_unlimited()
        && let Some(limits) = limits(&config.intercept)
    {
        tracing::warn!(
            "the authority can vouch for any name, and only some are looked into; make one that is limited: retryscope ca init {limits}"
        );
    }
    let key = Authority::key_path(&file.resolve(&config.ca_dir));
    let access = Access { readers: prepared.groups.readers, admins: prepared.groups.admins };
    let earlier = state.as_ref().and_then(state::Kept::read);

    let Prepared { changeable, rule_settings, upstream, statsd, otlp, .. } = prepared;
    let host = Arc::new(Host::new(file, targets, keeper, keeper_pid, key, level, state.clone()));
    let settings = Settings {
        ports: config.ports.clone(),
        closed: None,
        warden: warden.map(|warden| (warden, bpf)),
        strict: config.strict,
        rules: changeable.rules,
        rule_settings,
        rule_files: Vec::new(),
        rules_for: None,
        folder,
        target: taking.as_ref().map_or_else(|| format!("the targets of {}", path.display()), ToString::to_string),
        command: None,
        routes: changeable.routes,
        upstream,
        events,
        recording,
        answers: None,
        timeline: false,
        keep: config.keep,
        metrics,
        page,
        statsd,
        otlp,
        authority: Arc::new(authority),
        host: Some(Arc::clone(&host) as Arc<dyn control::Host>),
        control: Some((control, access)),
        earlier,
        bypassed,
        beacon: None,
        doors,
    };
    let runtime = runtime()?;
    let place_of_page = settings.page.as_ref().map(page::Opened::place);
    if let Some(warning) = settings.page.as_ref().and_then(page::Opened::warning) {
        tracing::warn!("{warning}");
    }
    let code = runtime.block_on(async {
        let mut instance = Instance::start(settings, (redirect, listeners))?;
        if let Some(place) = place_of_page {
            tracing::info!("the page is at {place}; `retryscope page` prints its address with its token");
        }
        host.knows(Arc::clone(instance.proxy()));
        let signals =
            signals.listen().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
        instance.serve();
        if closed {
            instance.relieve(&left);
        }
        let serving = Serving { instance, host: &host, state, config: &config };
        Ok::<_, Failure>(serving.until_the_end(&signals).await)
    })?;
    // Files that are ours alone; the folders stay where we may not remove them.
    drop((lock, host));
    if code != ExitCode::SUCCESS {
        place.abandon();
    }
    Ok(code)
}

/// Makes the folder, for one daemon of a name at a time: held as long as it
/// runs. Whoever cleans up after the last one may still be at it, and holds the
/// same lock meanwhile.
pub(super) fn lock(folder: &Path, name: &str) -> Result<fs::File, Failure> {
    let path = folder.join(control::PID);
    let failed = |error: std::io::Error| Failure::new(73, format!("cannot write {} ({error})", path.display()));
    let deadline = Instant::now() + CLEANING;
    let mut file = loop {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(|error| Failure::new(73, format!("cannot make the folder {} ({error})", folder.display())))?;
        let opened = fs::File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match opened {
            // The folder has just gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && Instant::now() < deadline => continue,
            opened => opened.map_err(failed)?,
        };
        match file.try_lock() {
            Ok(()) if is_same(&file, &path) => break file,
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                if Path::new("/proc").join(pid.trim()).join("exe").exists() || Instant::now() >= deadline {
                    return Err(Failure::new(
                        69,
                        format!(
                            "a daemon named `{name}` is running already (pid {}); stop it, or start this one with another --name",
                            pid.trim()
                        ),
                    ));
                }
                std::thread::sleep(LOOK);
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
    };
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// What was opened is still what the path leads to.
fn is_same(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn events(path: &Path) -> Result<fs::File, Failure> {
    fs::File::create(path)
        .map_err(|error| Failure::new(73, format!("cannot write every attempt to {} ({error})", path.display())))
}

/// A daemon goes on where its predecessor ended.
fn recording(config: &config::Recording, file: &File) -> Result<Option<recording::Settings>, Failure> {
    let Some(path) = config::some_path(&config.file) else { return Ok(None) };
    let settings = super::save::open(&file.resolve(path), true, None)?;
    let bodies = (config.bodies > 0).then(|| usize::try_from(config.bodies).unwrap_or(usize::MAX));
    let bodies = bodies.map(|bodies| bodies.min(recording::MAX_BODIES));
    Ok(Some(recording::Settings { secrets: config.secrets, bodies, ..settings }))
}

/// The options that limit an authority to the hosts that are looked into, if
/// that can be said: by what follows the last star of each pattern.
fn limits(intercept: &[String]) -> Option<String> {
    let domain = |pattern: &String| {
        let end = pattern.rsplit('*').next()?.trim_start_matches('.');
        (end.contains('.') && end.parse::<std::net::IpAddr>().is_err()).then(|| format!("--domain {end}"))
    };
    let domains: Option<std::collections::BTreeSet<String>> = intercept.iter().map(domain).collect();
    let domains: Vec<String> = domains?.into_iter().collect();
    (!domains.is_empty()).then(|| domains.join(" "))
}

/// The way, and why it is that one.
fn by(taking: Option<&Taking>) -> String {
    match taking {
        None => "eBPF: the targets are cgroups".to_owned(),
        Some(taking) => format!("TPROXY: the target is {taking}, not a cgroup"),
    }
}

/// What libraries load or look up when it is first needed.
fn warm_up() {
    use std::net::ToSocketAddrs;
    // What looks names up comes in by files that cannot be opened later.
    let _ = ("localhost", 0).to_socket_addrs();
    let mut random = [0; 1];
    let _ = aws_lc_rs::rand::fill(&mut random);
    own::warm_up();
}

/// What the server has to read: who processes are and were, and how names
/// resolve.
fn readable(cgroups: &Path) -> Vec<PathBuf> {
    [
        "/proc",
        "/sys/devices/system/cpu",
        "/etc/gai.conf",
        "/etc/host.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/resolv.conf",
        "/run/NetworkManager",
        "/run/resolvconf",
        "/run/systemd/resolve",
    ]
    .into_iter()
    .map(PathBuf::from)
    .chain([cgroups.to_owned()])
    .collect()
}

/// A running daemon.
struct Serving<'a> {
    instance: Instance,
    host: &'a Host,
    state: Option<state::Kept>,
    config: &'a Config,
}

impl Serving<'_> {
    async fn until_the_end(self, signals: &Stream) -> ExitCode {
        manager::tell(&[NotifyState::Ready]);
        tracing::info!(pid = std::process::id(), "serving");
        let heartbeat = manager::heartbeat();
        let mut beats = tokio::time::interval(heartbeat.unwrap_or(ALIVE));
        let mut statuses = tokio::time::interval(STATUS);
        let mut saves = tokio::time::interval(SAVE);
        let mut code = ExitCode::SUCCESS;
        loop {
            tokio::select! {
                heard = signals.next() => match heard.signal {
                    Signal::SIGHUP if !heard.from_terminal => self.reload().await,
                    Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                    _ => break,
                },
                () = self.host.keeper().ended() => {
                    tracing::error!("the process that keeps what is privileged has ended; so does this one");
                    code = ExitCode::from(70);
                    break;
                }
                _ = beats.tick() => self.beat(heartbeat.is_some()).await,
                _ = statuses.tick() => self.tell_status(),
                _ = saves.tick() => self.save(),
            }
        }
        manager::tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is under way")]);
        let Self { instance, state, config, .. } = self;
        let hurry = async {
            loop {
                match signals.next().await.signal {
                    Signal::SIGHUP | Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                    _ => return,
                }
            }
        };
        let finished = instance.finish(config.drain.0, hurry).await;
        if let Some(state) = state {
            state.write(&Earlier {
                ledger: finished.snapshot.fold(),
                refusals: finished.refusals.clone(),
                lives: finished.lives,
            });
        }
        farewell(&finished);
        code
    }

    async fn reload(&self) {
        let (host, account) = (self.host.shared(), Arc::clone(self.instance.account()));
        let reloaded = tokio::task::spawn_blocking(move || control::Host::reload(&host, &account)).await;
        // The host says itself what came of it.
        if let Err(error) = reloaded {
            tracing::error!(%error, "the reload broke off");
        }
    }

    /// Tells the service manager that all is well, if it is.
    async fn beat(&self, watched: bool) {
        let keeper = self.host.shared();
        let answers = tokio::task::spawn_blocking(move || keeper.keeper().answers(ALIVE));
        let (alive, answers) = tokio::join!(self.instance.is_alive(ALIVE), answers);
        match (alive, answers.unwrap_or(false)) {
            (true, true) if watched => manager::tell(&[NotifyState::Watchdog]),
            (true, true) => {}
            (false, _) => tracing::error!("the data path does not answer"),
            (_, false) => tracing::error!("the process that keeps what is privileged does not answer"),
        }
    }

    fn tell_status(&self) {
        let account = self.instance.account();
        let snapshot = account.ledger().snapshot(account.clock.now());
        let watched = self.host.keeper().targets().len();
        let cgroups = match watched {
            _ if self.config.taking().is_some() => "connections are taken by TPROXY".to_owned(),
            0 => "no cgroup is watched yet".to_owned(),
            1 => "1 cgroup is watched".to_owned(),
            many => format!("{many} cgroups are watched"),
        };
        let (attempts, retries) = (snapshot.totals.attempts, snapshot.totals.retries());
        let bypassed = if self.instance.proxy().bypass.since().is_some() { "bypassed; " } else { "" };
        manager::tell(&[NotifyState::Status(&format!(
            "{bypassed}{cgroups}; attempts {attempts}, of them retries {retries}"
        ))]);
    }

    fn save(&self) {
        if let Some(state) = &self.state {
            state.write(&self.instance.earlier());
        }
    }
}

fn farewell(finished: &Finished) {
    let totals = &finished.snapshot.totals;
    if finished.hurried {
        tracing::warn!("connections were still open when the time to finish had passed; they were cut");
    }
    tracing::info!(
        calls = totals.calls,
        attempts = totals.attempts,
        retries = totals.retries(),
        stalled_s = totals.backoff.total.as_secs_f64(),
        "ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_patterns_have_in_common() {
        let limits = |patterns: &[&str]| limits(&patterns.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            limits(&["*.amazonaws.com", "s3.*.amazonaws.com", "api.example.com"]).as_deref(),
            Some("--domain amazonaws.com --domain api.example.com")
        );
        for none in [&[][..], &["*"], &["a.example.com", "127.0.0.1"], &["api.*"], &["*.com"]] {
            assert_eq!(limits(none), None, "{none:?}");
        }
    }

    #[test]
    fn names_are_a_folders() {
        assert!(name("main").is_ok() && name("web@1.service").is_ok() && name("a\\x2db").is_ok());
        for wrong in ["", "..", ".a", "a/b", "a b"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
