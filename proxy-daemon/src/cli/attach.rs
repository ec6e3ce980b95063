//! `retryscope attach`: the same for what already runs.
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    Failure, ca, log_to_stderr,
    options::{Fail, Options, told},
    output::{ASSERTION_FAILED, Output, hold, open_events, open_junit, report_of},
    page,
    run::{require_root, say},
    runtime,
    scene::Scene,
    signals::{Signals, Stream},
    user::Who,
};
use crate::{
    daemon::{Instance, Settings},
    pods::{self, Account, Selection},
    process,
    redirect::{
        self, Choice, Listeners, Places, Reach, RedirectError, Redirection, Several, Target, Wanted, Watched, find,
    },
    tls::Authority,
};

/// How long exchanges under way may take to finish after the end is asked
/// for. A second signal cuts them at once.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: Which,

    /// End by itself after this time, as in 30s, 10m, 2h
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,

    /// The folder of the authority's certificate and key
    #[arg(long, value_name = "FOLDER", default_value = ca::DEFAULT_FOLDER)]
    ca_dir: PathBuf,

    /// Whom the API server is asked as, for --pod: a folder with `token` and `ca.crt`
    #[arg(long, value_name = "FOLDER", default_value = Account::FOLDER)]
    service_account: PathBuf,

    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Every process in this cgroup and below, now and later
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,

    /// The processes of this systemd unit; `nginx` means nginx.service, `worker@` all instances
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,

    /// The processes of this container, by its name or id or how either begins
    #[arg(long, value_name = "NAME|ID")]
    container: Option<String>,

    /// This process and what it starts from now on
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,

    /// The pods of this node in a namespace (* for all), with these labels where any are given
    ///
    /// As in shop, shop/app=web,tier!=db or */retryscope=on; may be given more
    /// than once. Pods that come later are picked up. For a DaemonSet, by the
    /// word of the cluster's API server; deploy/kubernetes tells more.
    #[arg(long = "pod", value_name = "NAMESPACE[/LABELS]", value_parser = Selection::parse)]
    pods: Vec<Selection>,

    /// Every process in this network namespace but retryscope, by TPROXY: for a container that shares it
    #[arg(long)]
    netns: bool,

    /// What arrives on this interface on its way elsewhere, by TPROXY; may be given more than once
    #[arg(long, value_name = "INTERFACE")]
    ingress: Vec<String>,
}

impl Which {
    /// What is taken, and what to call it.
    fn reach(&self) -> Result<(Reach, String), Failure> {
        if let Some(path) = &self.cgroup {
            return Ok((Reach::Target(Target::Cgroup(directory(path)?)), format!("cgroup {}", path.display())));
        }
        if let Some(pid) = self.pid {
            redirect::cgroup::of_process(pid)?;
            return Ok((Reach::Target(Target::Process { pid }), format!("process {pid} and what it starts")));
        }
        if self.netns {
            return Ok((Reach::Namespace, "this network namespace".to_owned()));
        }
        if !self.ingress.is_empty() {
            let shown = format!("what arrives on {}", self.ingress.join(", "));
            return Ok((Reach::Ingress(self.ingress.clone()), shown));
        }
        if !self.pods.is_empty() {
            let shown = self.pods.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Ok((Reach::Target(Target::Several(Places::default())), format!("the pods {shown}")));
        }
        let found = match (&self.unit, &self.container) {
            (Some(unit), _) => find::unit(unit)?,
            (None, Some(container)) => find::container_named(container)?,
            (None, None) => {
                return Err(Failure::usage(
                    "name a --unit, a --container, a --cgroup, a --pid, a --pod, --netns or an --ingress",
                ));
            }
        };
        Ok((Reach::Target(Target::Cgroup(found.directory)), found.shown))
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    log_to_stderr(args.options.verbose);
    let checked = args.options.check()?;
    let (reach, shown) = args.target.reach()?;
    let wanted = args.options.wanted(reach);
    // TPROXY needs neither root nor cgroups, only a capability.
    let by_tproxy = wanted.choice == Choice::Tproxy || !matches!(wanted.reach, Reach::Target(_));
    if !by_tproxy {
        require_root()?;
    }
    let authority =
        Authority::load_from(&args.ca_dir).map_err(|error| Failure::new(error.exit_code(), ca::explain(&error)))?;
    let owner = Who::find(None, &std::env::vars_os().collect())?.owner();
    let output = Output::open(args.options.report_file.as_deref(), owner)?;
    let junit = open_junit(&args.options, owner)?;
    let events = open_events(&args.options, owner)?;
    let recording = args.options.save.open(owner)?;
    let signals = Signals::block().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
    let runtime = runtime()?;

    let place_id = || place(&wanted.reach).ok().and_then(|path| redirect::cgroup::id(&path).ok());
    let begun_in = place_id();
    let recorded = args.options.save.path();
    let scene = match by_tproxy {
        true => Scene::without_cgroups(recorded)?,
        false => Scene::set(wanted.choice != Choice::Ebpf, recorded)?,
    };
    process::raise_file_limit();
    let account = match args.target.pods.as_slice() {
        [] => None,
        _ => Some(Account::find(&args.service_account, |name| std::env::var_os(name))?),
    };
    if let Some(page) = &checked.page {
        page::tell(page);
    }
    let closed = (args.options.fail == Fail::Closed).then(|| place(&wanted.reach)).transpose()?;
    let settings = Settings {
        closed,
        warden: None,
        ports: wanted.ports.clone(),
        rules: checked.rules,
        rule_settings: checked.rule_settings,
        rule_files: checked.rule_files,
        rules_for: None,
        folder: scene.folder.clone(),
        target: shown.clone(),
        command: None,
        routes: checked.routes,
        strict: args.options.strict,
        upstream: checked.upstream,
        events,
        recording,
        timeline: args.options.wants_timeline(),
        keep: args.options.keep,
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
    let mut finished = runtime.block_on(async {
        let (redirect, several) = match account {
            Some(_) => several(&wanted, &scene).map(|(redirect, several)| (redirect, Some(several)))?,
            None => (Redirection::start(&wanted, scene.daemon())?, None),
        };
        if let Some(told) = told(redirect.0.way()) {
            say(&told);
        }
        let mut instance = Instance::start(settings, redirect)
            ?;
        let signals =
            signals.listen().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
        instance.serve();
        // They end with the runtime.
        let mut following = tokio::task::JoinSet::new();
        if let (Some(several), Some(account)) = (several, account) {
            let places = several.places().clone();
            let (patterns, tasks) = pods::follow(account, &args.target.pods, several.redirect()).await?;
            following.spawn(async move {
                let _tasks = tasks;
                if let Err(error) = several.follow(patterns).await {
                    tracing::error!(%error, "pods that come are not noticed any more");
                }
            });
            instance.look_around(Target::Several(places)).await;
        } else if let Reach::Target(target) = &wanted.reach {
            instance.look_around(target.clone()).await;
        }
        say(&format!(
            "watching {shown}: connections made from now on to {}; those already open are not seen. Ctrl-C ends and reports.",
            ports_in_words(&wanted.ports)
        ));
        wait(args.duration, &signals, || match instance.reload() {
            Ok(reloaded) => say(&format!("the rule files were read again; rules in force: {}", reloaded.rules)),
            Err(error) => say(&error.to_string()),
        })
        .await;
        following.shutdown().await;
        let finish = instance.finish(DRAIN, wait(None, &signals, || ()));
        Ok::<_, Failure>(finish.await)
    })?;
    let verdicts = hold(&checked.assertions, &finished, &shown, junit);
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    let timeline = finished.timeline.take();
    let mut notes = Vec::new();
    if begun_in.is_some() && place_id() != begun_in {
        notes.push(format!(
            "The cgroup of {shown} went away while it was watched, as it does when a unit or a container is restarted: what has run since was not seen. Attach again, or let `retryscope daemon` take up what comes."
        ));
    }
    let report = report_of(&args.options, finished, verdicts, None, notes);
    output.write(&report, timeline.as_ref(), &args.options);
    scene.clear();
    Ok(ExitCode::from(if holds { 0 } else { ASSERTION_FAILED }))
}

/// The kernel side for cgroups that come and go.
fn several(wanted: &Wanted, scene: &Scene) -> Result<((Redirection, Listeners), Several), Failure> {
    if wanted.choice == Choice::Tproxy {
        return Err(RedirectError::NeedsEbpf.into());
    }
    let daemon = scene.daemon().ok_or(redirect::cgroup::CgroupError::NotMounted)?;
    let watched = Watched { ports: wanted.ports.clone(), allow_quic: wanted.allow_quic };
    let (several, listeners) = Several::load(&watched, wanted.fail, daemon)?;
    Ok(((Arc::clone(several.redirect()).into(), listeners), several))
}

fn ports_in_words(ports: &[u16]) -> String {
    match ports {
        [] => "any port".into(),
        ports => format!("port {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The cgroup that the target is in.
fn place(reach: &Reach) -> Result<PathBuf, Failure> {
    Ok(match reach {
        Reach::Target(Target::Cgroup(path)) => path.clone(),
        Reach::Target(Target::Process { pid }) => redirect::cgroup::of_process(*pid)?,
        Reach::Target(Target::Several(_)) => {
            return Err(Failure::usage("--fail closed takes one target that stays: leave it out with --pod"));
        }
        Reach::Namespace | Reach::Ingress(_) => return Err(RedirectError::NeedsEbpfToRefuse.into()),
    })
}

/// The directory of a cgroup that is named by its path in the file system, or
/// as `/proc/PID/cgroup` and systemd name it.
fn directory(path: &Path) -> Result<PathBuf, Failure> {
    let mount = redirect::cgroup::Mount::find()?;
    let shown = path.display();
    if path.starts_with(mount.point()) && path.join("cgroup.procs").exists() {
        return Ok(path.to_owned());
    }
    let below = mount.point().join(path.strip_prefix("/").unwrap_or(path));
    if below.join("cgroup.procs").exists() {
        return Ok(below);
    }
    Err(Failure::usage(format!(
        "there is no cgroup {shown} below {}; `cat /proc/PID/cgroup` tells a process's (the line that begins with 0::)",
        mount.point().display()
    )))
}

/// Until the time has passed, or somebody asks for the end. A hang-up that no
/// terminal sent asks for the rule files to be read again.
pub(super) async fn wait(duration: Option<Duration>, signals: &Stream, reload: impl Fn()) {
    let timer = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(timer);
    loop {
        tokio::select! {
            () = &mut timer => return,
            heard = signals.next() => match heard.signal {
                Signal::SIGUSR1 | Signal::SIGUSR2 => {}
                Signal::SIGHUP if !heard.from_terminal => reload(),
                _ => return,
            }
        }
    }
}
