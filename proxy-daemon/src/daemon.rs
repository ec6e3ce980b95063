//! One running instance: the only place that knows every part.
//!
//! In: [`Settings`], checked already. Out: traffic served from
//! [`Instance::start`] to [`Instance::finish`], and what it came to.
//! Invariants: the listeners accept before anything is redirected; nothing
//! outlives the instance.
use std::{
    collections::HashSet,
    fs::File,
    io,
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::MissedTickBehavior,
};

use crate::{
    control::{self, About, Controlled, Shown},
    flow::{Capture, Clock, Moment},
    history::History,
    process::{
        self, Memory, Process, ProcessKey, ProcessTable,
        launch::NONCE,
        warden::{Post, Warden},
    },
    proxy::{
        self, Account, Answered, Answers, Beacon, Bypass, Capacity, Counted, Gate, Learned, Proxy, Refusal, Routes,
    },
    redirect::{self, Door, Listeners, Network, Pending, RedirectError, Redirected, Redirection, Target},
    report::{
        Timeline,
        events::{self, Start, Written},
        otlp::{self, Otlp},
        own::Lives,
        recording, statsd, timeline,
    },
    retry::{Folded, Ledger, Limits, Snapshot},
    rules::{self, GuardState, RuleSet, RuleStatus, Rules},
    tls::{Authority, Leaves, Servers, TlsError, Upstream},
    view::page::{self, Page},
};

/// How many living processes' ends are waited for; one file descriptor each.
/// Past it a process counts as living until the report.
const MAX_WATCHED: usize = 4096;

/// How many listeners in other network namespaces may wait to be served.
const MAX_DOORS: usize = 64;
/// How soon it is noticed that somebody is in a network namespace where nobody
/// listens; at the start sooner, since a command that is run may just be on its
/// way there.
const GLANCE: Duration = Duration::from_millis(500);
const FIRST: Duration = Duration::from_millis(10);
/// How long those who follow may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often it is looked whether there is still somebody where we listen.
const SURVEY: Duration = Duration::from_secs(10);

/// What an instance is made of.
#[derive(Debug)]
pub struct Settings {
    /// The ports whose connections are redirected; none stands for every port.
    pub ports: Vec<u16>,
    /// Refuse what cannot be carried, also once this process has died; the
    /// cgroup tells when nobody is left to be refused.
    pub closed: Option<PathBuf>,
    /// The same, by who was started while this process could: and whether it
    /// needs CAP_BPF.
    pub warden: Option<(Warden, bool)>,
    pub rules: RuleSet,
    pub rule_settings: rules::Settings,
    /// Files that a reload reads again.
    pub rule_files: Vec<PathBuf>,
    /// From the start on, rules act for this long.
    pub rules_for: Option<Duration>,
    /// The instance's own folder; the control socket goes there.
    pub folder: PathBuf,
    /// What is watched, for people.
    pub target: String,
    /// The command that is run, if one is.
    pub command: Option<String>,
    pub routes: Routes,
    /// A client that refuses the certificate fails each time.
    pub strict: bool,
    pub upstream: Upstream,
    /// Where every attempt is written as it ends.
    pub events: Option<File>,
    /// Where every attempt is recorded, with heads and bodies.
    pub recording: Option<recording::Settings>,
    /// Answers out of a recording; upstreams are not asked.
    pub answers: Option<Arc<Answers>>,
    /// Where a line for each retry is sent.
    pub statsd: Option<SocketAddr>,
    /// Where metrics and traces are pushed.
    pub otlp: Option<otlp::Settings>,
    /// Keep the latest attempts for the report.
    pub timeline: bool,
    /// How many ended attempts are kept for whoever looks.
    pub keep: usize,
    /// Where metrics are served.
    pub metrics: Option<std::net::TcpListener>,
    /// Where the page is served.
    pub page: Option<page::Opened>,
    pub authority: Arc<Authority>,
    /// What a daemon adds to the local API.
    pub host: Option<Arc<dyn control::Host>>,
    /// The control socket and who may use it; where there is none, one for
    /// root in the folder.
    pub control: Option<(std::os::unix::net::UnixListener, control::Access)>,
    /// What earlier instances came to.
    pub earlier: Option<Earlier>,
    /// It begins with connections going direct: the redirect is bypassed
    /// already.
    pub bypassed: bool,
    /// Every process that could ask is redirected: what is answered at an
    /// address that shows it.
    pub beacon: Option<[u8; NONCE]>,
    /// Listeners in other network namespaces, where another process opens
    /// them.
    pub doors: Option<mpsc::Receiver<Door>>,
}

/// What outlives an instance, for the next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Earlier {
    pub ledger: Folded,
    /// Clients that will not trust the authority.
    pub refusals: Vec<Refusal>,
    /// How often there was one, and how they ended.
    #[serde(default)]
    pub lives: Lives,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot serve the listeners ({0}); the limit of open files may be too low (`ulimit -n`)")]
    Listen(#[source] io::Error),
    #[error("cannot record ({0}); choose another --save file")]
    Recording(#[source] io::Error),
    #[error("cannot start the process that --fail closed needs ({0}); `--fail open` does without")]
    Warden(#[source] io::Error),
}

impl StartError {
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Redirect(error) => error.exit_code(),
            StartError::Tls(error) => error.exit_code(),
            StartError::Listen(_) => 69,
            StartError::Recording(_) => 73,
            StartError::Warden(_) => 70,
        }
    }
}

/// The kernel's redirect, as the data path wants it.
#[derive(Debug)]
struct KernelGate(Arc<Redirection>);

impl Gate for KernelGate {
    fn origin_of(&self, accepted: BorrowedFd<'_>) -> Option<Redirected> {
        self.0.origin_of(&accepted).unwrap_or_else(|error| {
            tracing::warn!(%error, "the record of a connection could not be read");
            None
        })
    }

    fn counters(&self) -> redirect::Counters {
        self.0.counters()
    }

    fn socket_in(&self, network: Network, v6: bool) -> Option<Pending> {
        self.0.socket_in(network, v6)
    }

    fn exempt(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.exempt(&socket).map_err(io::Error::other)
    }

    fn bypass(&self, on: bool) -> io::Result<()> {
        self.0.bypass(on).map_err(io::Error::other)
    }
}

/// What an instance came to.
#[derive(Debug)]
pub struct Finished {
    pub snapshot: Snapshot,
    pub started: SystemTime,
    pub ended: SystemTime,
    /// Those in force at the end, then those that were removed or changed.
    pub rules: Vec<RuleStatus>,
    pub guard: GuardState,
    pub redirect: redirect::Counters,
    pub way: redirect::Way,
    pub proxy: Counted,
    pub events: Option<Written>,
    pub recording: Option<Written>,
    /// What came of answering out of a recording.
    pub answered: Option<Answered>,
    pub timeline: Option<Timeline>,
    /// Connections were cut that had not finished in time.
    pub hurried: bool,
    /// Clients that will not trust the authority, for the next instance.
    pub refusals: Vec<Refusal>,
    /// For the next instance.
    pub lives: Lives,
}

#[derive(Debug)]
pub struct Instance {
    proxy: Arc<Proxy>,
    redirect: Arc<Redirection>,
    listeners: Option<(TcpListener, Option<TcpListener>)>,
    ports: Vec<u16>,
    /// Where the listener for IPv4 is.
    own: SocketAddr,
    /// Connections of our own that showed that the data path lives.
    heartbeats: AtomicU64,
    /// What was counted before traffic began: the self-test.
    before: redirect::Counters,
    serving: Option<JoinHandle<()>>,
    pulse: Option<JoinHandle<()>>,
    /// Where listeners in other network namespaces go, and come from.
    doors: (mpsc::Sender<Door>, Option<mpsc::Receiver<Door>>),
    looking: Option<JoinHandle<()>>,
    watching: Option<JoinHandle<()>>,
    events: Option<std::thread::JoinHandle<Written>>,
    recording: Option<std::thread::JoinHandle<Written>>,
    timeline: Option<std::thread::JoinHandle<Timeline>>,
    /// Fills the history.
    filling: Option<std::thread::JoinHandle<()>>,
    controlled: Arc<Controlled>,
    /// `None` where the socket could not be made.
    control: Option<control::Server>,
    metrics: Option<control::MetricsServer>,
    page: Option<Page>,
    statsd: Option<std::thread::JoinHandle<()>>,
    otlp: Option<Otlp>,
    lives: Lives,
    drain: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

impl Instance {
    /// Takes over a redirect in force. Nothing is answered before
    /// [`Instance::serve`]; connections wait until then.
    pub fn start(settings: Settings, redirected: (impl Into<Redirection>, Listeners)) -> Result<Self, StartError> {
        let clock = Clock::start();
        let leaves = Leaves::new(settings.authority)?;
        let servers = Servers::new()?;
        let ports = settings.ports;
        let (redirect, listeners) = redirected;
        let redirect: Arc<Redirection> = Arc::new(redirect.into());
        let cgroup = settings.closed.as_deref();
        let warden = match (settings.warden, cgroup) {
            (Some((warden, bpf)), _) => Some((warden, Some(bpf))),
            (None, Some(_)) => Some((Warden::start("").map_err(StartError::Warden)?, None)),
            (None, None) => None,
        };
        if let Some((warden, confined)) = warden {
            let post = Post { ports: &ports, target: &settings.target, cgroup, confined };
            redirect.guard(warden, &listeners, &post).map_err(StartError::Warden)?;
        }
        let own = listeners.v4.local_addr().map_err(StartError::Listen)?;
        let v4 = TcpListener::from_std(listeners.v4).map_err(StartError::Listen)?;
        let v6 = listeners.v6.map(TcpListener::from_std).transpose().map_err(StartError::Listen)?;

        let now = clock.now();
        let mut rule_settings = settings.rule_settings;
        rule_settings.until = settings.rules_for.map(|time| Moment(now.0.saturating_add(nanos(time))));
        let rules = Rules::new(settings.rules, rule_settings, now);
        let mut ledger = Ledger::new(Limits::default(), clock.now());
        let earlier = settings.earlier.unwrap_or_default();
        ledger.continues(earlier.ledger);
        let lives = earlier.lives.next();
        let learned = Learned::new(settings.strict);
        learned.remember(earlier.refusals, now);
        let (newcomers, arrivals) = mpsc::channel(MAX_WATCHED);
        let mut account = Account::new(clock, rules, ledger);
        account.capture = settings.recording.as_ref().map(|it| Capture::new(it.bodies.unwrap_or_default()));
        let gate: Arc<dyn Gate> = Arc::new(KernelGate(Arc::clone(&redirect)));
        let proxy = Arc::new(Proxy {
            account: Arc::new(account),
            bypass: Arc::new(Bypass::new(Arc::clone(&gate), clock, settings.bypassed)),
            gate,
            processes: ProcessTable::new(newcomers, Arc::clone(&redirect) as Arc<dyn Memory>),
            leaves,
            servers,
            upstream: settings.upstream,
            routes: settings.routes,
            learned,
            findings: crate::proxy::Findings::default(),
            answers: settings.answers,
            counters: crate::proxy::Counters::default(),
            capacity: Capacity::of_files(),
            beacon: settings.beacon.map(|nonce| Beacon::new(probed_port(&ports), nonce)),
            page: settings.page.as_ref().map(page::Opened::address),
        });
        let shown = proxy.beacon.as_ref().map(|beacon| Shown { address: beacon.address, nonce: beacon.nonce });
        let events = settings.events.map(|file| {
            let account = &proxy.account;
            let start = Start::new(clock.wall(now), account.rules.seed(), &ports, &settings.target);
            events::write(file, start, account.feed.subscribe(events::ROOM), clock)
        });
        let recording = settings.recording.map(|recording| {
            let account = &proxy.account;
            let start = Start::new(clock.wall(now), account.rules.seed(), &ports, &settings.target);
            recording::write(recording, start, account.feed.subscribe(recording::ROOM), Arc::clone(account))
        });
        let recording = recording.transpose().map_err(StartError::Recording)?;
        let statsd = settings.statsd.map(|to| statsd::send(to, proxy.account.feed.subscribe(statsd::ROOM)));
        let statsd = statsd.transpose().map_err(StartError::Listen)?;
        let otlp = settings.otlp.map(|settings| Otlp::start(settings, &proxy.account, &proxy.gate));
        let timeline = settings.timeline.then(|| timeline::keep(&proxy.account.feed, clock));
        let history = Arc::new(History::new(clock, settings.keep));
        let filling = history.is_kept().then(|| history.fill(&proxy.account.feed));
        let controlled = Arc::new(Controlled {
            account: Arc::clone(&proxy.account),
            history,
            gate: Arc::clone(&proxy.gate),
            bypass: Arc::clone(&proxy.bypass),
            work: Arc::clone(&proxy) as Arc<dyn control::Work>,
            // Of others nothing is known but this life.
            lives: settings.host.is_some().then_some(lives),
            files: settings.rule_files,
            about: About {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                target: settings.target,
                command: settings.command,
                targets: Vec::new(),
                bypassed: None,
                ready: false,
                beacon: shown,
            },
            ports: ports.clone(),
            host: settings.host,
            ready: watch::Sender::new(false),
            page: settings.page.as_ref().map(page::Opened::url),
        });
        let bound = match settings.control {
            Some((listener, access)) => UnixListener::from_std(listener).map(|listener| (listener, access)),
            None => control::bind(&settings.folder).map(|listener| (listener, control::Access::default())),
        };
        let control = match bound {
            Ok((listener, access)) => Some(control::Server::start(listener, Arc::clone(&controlled), access)),
            Err(error) => {
                tracing::warn!(%error, "there is no control socket: rules cannot be changed while this runs");
                None
            }
        };
        let metrics = settings.metrics.map(TcpListener::from_std).transpose().map_err(StartError::Listen)?;
        let metrics = metrics.map(|listener| control::MetricsServer::start(listener, Arc::clone(&controlled)));
        let page = settings.page.map(|opened| Page::start(opened, &controlled)).transpose();
        let page = page.map_err(StartError::Listen)?;
        let watching = tokio::spawn(watch_ends(arrivals, Arc::clone(&proxy.account)));
        let (doors, mut coming) = mpsc::channel(MAX_DOORS);
        if let Some(others) = settings.doors {
            coming = others;
        }
        Ok(Self {
            proxy,
            redirect,
            listeners: Some((v4, v6)),
            ports,
            own,
            heartbeats: AtomicU64::new(0),
            before: redirect::Counters::default(),
            serving: None,
            pulse: None,
            doors: (doors, Some(coming)),
            looking: None,
            watching: Some(watching),
            events,
            recording,
            timeline,
            filling,
            controlled,
            control,
            metrics,
            page,
            statsd,
            otlp,
            lives,
            drain: watch::Sender::new(false),
            cut: watch::Sender::new(false),
        })
    }

    /// Addresses for a self-test, one per listener: loopback addresses that
    /// hardly anybody serves.
    pub fn probes(&self) -> Vec<SocketAddr> {
        let port = probed_port(&self.ports);
        let mut probes = vec![SocketAddr::from((redirect::BEACON, port))];
        if matches!(&self.listeners, Some((_, Some(_)))) {
            probes.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        probes
    }

    /// Answers the self-test's connections, and leaves no trace of them.
    pub async fn answer_probes(&self, nonce: [u8; NONCE]) -> io::Result<()> {
        let Some((v4, v6)) = &self.listeners else { return Ok(()) };
        let expected = self.probes();
        self.answer_probe(v4, expected.first(), nonce).await?;
        match v6 {
            Some(v6) => self.answer_probe(v6, expected.get(1), nonce).await,
            None => Ok(()),
        }
    }

    async fn answer_probe(
        &self,
        listener: &TcpListener,
        expected: Option<&SocketAddr>,
        nonce: [u8; NONCE],
    ) -> io::Result<()> {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let redirected = self.redirect.origin_of(&stream).map_err(io::Error::other)?;
            // Anything else gets no answer, and the prober tells what it saw.
            if redirected.is_some_and(|redirected| Some(&redirected.origin) == expected) {
                stream.write_all(&nonce).await?;
                return stream.shutdown().await;
            }
        }
    }

    /// Reads the rule files again; the rules in force stay where they are
    /// broken.
    pub fn reload(&self) -> Result<control::Reloaded, control::ReloadError> {
        self.controlled.reload()
    }

    /// Ends the wardens that earlier instances have left: this one serves.
    pub fn relieve(&self, left: &[OwnedFd]) {
        self.redirect.relieve(left);
    }

    pub fn account(&self) -> &Arc<Account> {
        &self.proxy.account
    }

    /// What the next instance is to know, should this one end now.
    pub fn earlier(&self) -> Earlier {
        let account = &self.proxy.account;
        let now = account.clock.now();
        let ledger = account.ledger().snapshot(now).fold();
        Earlier { ledger, refusals: self.proxy.learned.refusals(now), lives: self.lives }
    }

    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Whether the data path does its work: it closes a connection that no
    /// redirect explains, and the ledger can be had.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        let account = Arc::clone(&self.proxy.account);
        let ledger = tokio::task::spawn_blocking(move || drop(account.ledger()));
        let closed = async {
            self.heartbeats.fetch_add(1, Ordering::Relaxed);
            // A reset, since nothing was ever said; it may come at once.
            match TcpStream::connect(self.own).await {
                Ok(mut stream) => matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)),
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            }
        };
        let both = async { ledger.await.is_ok() && closed.await };
        tokio::time::timeout(patience, both).await.unwrap_or(false)
    }

    /// What the kernel side has counted since [`serve`](Self::serve), without
    /// what this process has done itself, or others to see that it lives.
    fn without_own(&self, heartbeats: u64) -> redirect::Counters {
        let mut counters = self.redirect.counters().since(&self.before);
        let asked = self.proxy.beacon.as_ref().map_or(0, Beacon::answered);
        counters.unmatched = counters.unmatched.saturating_sub(heartbeats);
        counters.redirected = counters.redirected.saturating_sub(asked);
        counters.handed_over = counters.handed_over.saturating_sub(asked);
        counters
    }

    /// Begins to answer.
    pub fn serve(&mut self) {
        if let (Some((v4, v6)), Some(doors)) = (self.listeners.take(), self.doors.1.take()) {
            // Reading the kernel's types has taken tens of megabytes for a moment.
            process::release_memory();
            self.before = self.redirect.counters();
            let proxy = Arc::clone(&self.proxy);
            self.pulse = Some(tokio::spawn(pulse(Arc::clone(&proxy), Arc::clone(&self.redirect), &v4, v6.as_ref())));
            self.serving = Some(tokio::spawn(proxy.serve(v4, v6, doors, self.drain.subscribe(), self.cut.subscribe())));
            self.controlled.ready.send_replace(true);
        }
    }

    /// Listens in the network namespaces that the target's processes are in,
    /// now and from now on. When this returns, their connections come here.
    pub async fn look_around(&mut self, target: Target) {
        let (redirect, doors) = (Arc::clone(&self.redirect), self.doors.0.clone());
        look(&redirect, &target, &doors).await;
        self.looking = Some(tokio::spawn(async move {
            let mut seen = redirect.counters().direct_other_netns;
            let mut looked = Instant::now();
            let moving = matches!(target, Target::Several(_));
            let mut pause = FIRST;
            loop {
                tokio::time::sleep(pause).await;
                let early = pause < GLANCE;
                pause = (pause * 2).min(GLANCE);
                let direct = redirect.counters().direct_other_netns;
                // Somebody could not come here; or nobody may be left there; or
                // the target may have more processes in other places.
                if early || moving || direct != seen || (redirect.listens_elsewhere() && looked.elapsed() >= SURVEY) {
                    (seen, looked) = (direct, Instant::now());
                    look(&redirect, &target, &doors).await;
                }
            }
        }));
    }

    /// Stops redirecting, lets what is under way finish (within `patience`, or
    /// until `hurry` is over), and closes the books.
    pub async fn finish(mut self, patience: Duration, hurry: impl Future<Output = ()>) -> Finished {
        self.redirect.detach();
        for task in [self.pulse.take(), self.looking.take()].into_iter().flatten() {
            task.abort();
        }
        // What waits for a person goes on as it is.
        self.proxy.account.holds.close();
        drop((self.control.take(), self.metrics.take()));
        self.drain.send_replace(true);
        let mut hurried = false;
        if let Some(mut serving) = self.serving.take() {
            hurried = tokio::select! {
                _ = &mut serving => false,
                () = tokio::time::sleep(patience) => true,
                () = hurry => true,
            };
            if hurried {
                self.cut.send_replace(true);
                // Once it has ended, every attempt is in the ledger.
                let _ = serving.await;
            }
        }
        if let Some(watching) = self.watching.take() {
            watching.abort();
            let _ = watching.await;
        }
        let account = &self.proxy.account;
        account.feed.close();
        // What is on its way to the disk is waited for, however slow it is.
        let events = joined(self.events.take()).await;
        let recording = joined(self.recording.take()).await;
        let timeline = joined(self.timeline.take()).await;
        joined(self.filling.take()).await;
        // Whoever follows is told of the end.
        self.controlled.history.left(FAREWELL).await;
        drop(self.page.take());
        joined(self.statsd.take()).await;
        if let Some(otlp) = self.otlp.take() {
            otlp.finish().await;
        }
        let now = account.clock.now();
        let snapshot = account.ledger().snapshot(now);
        let heartbeats = self.heartbeats.load(Ordering::Relaxed);
        Finished {
            snapshot,
            started: account.clock.wall(Moment::default()),
            ended: account.clock.wall(now),
            rules: account.rules.list().into_iter().chain(account.rules.retired()).collect(),
            guard: account.rules.state(),
            redirect: self.without_own(heartbeats),
            way: self.redirect.way().clone(),
            proxy: self.proxy.counters.read().without(heartbeats),
            events,
            recording,
            answered: self.proxy.answers.as_ref().map(|answers| answers.counts()),
            timeline,
            hurried,
            refusals: self.proxy.learned.refusals(now),
            lives: self.lives.over(),
        }
    }
}

/// Opens what listeners are missing in other network namespaces.
async fn look(redirect: &Arc<Redirection>, target: &Target, doors: &mpsc::Sender<Door>) {
    let (redirect, target) = (Arc::clone(redirect), target.clone());
    let opened = tokio::task::spawn_blocking(move || redirect.look_around(&target)).await.unwrap_or_default();
    for door in opened {
        // Who serves them has ended: so do we.
        let _ = doors.send(door).await;
    }
}

/// Tells the kernel over and over how much this process can take.
fn pulse(
    proxy: Arc<Proxy>,
    redirect: Arc<Redirection>,
    v4: &TcpListener,
    v6: Option<&TcpListener>,
) -> impl Future<Output = ()> + Send + use<> {
    // Of their own, since the listeners go to whoever accepts.
    let listeners: Vec<OwnedFd> = [Some(v4.as_fd()), v6.map(AsFd::as_fd)]
        .into_iter()
        .flatten()
        .filter_map(|listener| listener.try_clone_to_owned().ok())
        .collect();
    async move {
        let mut pulse = tokio::time::interval(proxy::PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut full = false;
        loop {
            pulse.tick().await;
            let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
            let room = proxy.capacity.room(&listeners);
            redirect.renew(proxy::BELIEF, room);
            if full != (room == 0) {
                full = room == 0;
                if full {
                    tracing::warn!(
                        "no room for more connections: new ones are let go direct, or refused by --fail closed"
                    );
                } else {
                    tracing::info!("there is room for connections again");
                }
            }
        }
    }
}

/// What a thread came to.
async fn joined<T: Send + 'static>(thread: Option<std::thread::JoinHandle<T>>) -> Option<T> {
    let thread = thread?;
    tokio::task::spawn_blocking(|| thread.join().ok()).await.ok().flatten()
}

/// Of the watched ports, the one that is tried.
fn probed_port(ports: &[u16]) -> u16 {
    ports.first().copied().unwrap_or(443)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Notes when processes end, so that a report can tell a process's life from
/// the run's.
async fn watch_ends(mut arrivals: mpsc::Receiver<Arc<Process>>, account: Arc<Account>) {
    let mut ends = JoinSet::new();
    let mut watched: HashSet<ProcessKey> = HashSet::new();
    loop {
        tokio::select! {
            arrived = arrivals.recv() => {
                let Some(process) = arrived else { return };
                if ends.len() < MAX_WATCHED && watched.insert(process.key) {
                    ends.spawn(end_of(process.key));
                }
            }
            Some(ended) = ends.join_next(), if !ends.is_empty() => {
                if let Ok(key) = ended {
                    watched.remove(&key);
                    account.ledger().exited(key, account.clock.now());
                }
            }
        }
    }
}

/// Waits for the end of a process.
async fn end_of(key: ProcessKey) -> ProcessKey {
    // A process that cannot be waited for has ended.
    if let Some(descriptor) = ProcessTable::open(key)
        && let Ok(descriptor) = process::readable(descriptor)
    {
        let _ = descriptor.readable().await;
    }
    key
}
