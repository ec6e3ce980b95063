//! `retryscope sidecar`: what `attach --netns` does, as a container beside an
//! application's.
//!
//! It adds what containers lack: an authority of its own, trust for the
//! application in a folder that both see, a control socket at a place that is
//! known beforehand, and proof that redirection works before it says that it
//! is ready (`retryscope wait`).
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use super::{
    Failure,
    attach::wait,
    daemon::{DEFAULT_NAME, lock, name},
    log_to_stderr,
    options::{Options, told},
    output::{ASSERTION_FAILED, Output, hold, open_events, open_junit, report_of},
    page,
    run::{nonce, say},
    runtime,
    signals::Signals,
};
use crate::{
    control::{self, Access},
    daemon::{Instance, Settings},
    process::{
        self,
        confine::find_group,
        janitor::{Chores, Janitor},
        launch::{self, NONCE},
    },
    redirect::{Reach, Redirection},
    tls::{self, Authority},
};

/// How long the self-test may take: it never leaves this machine.
const PROOF: Duration = Duration::from_secs(5);
/// How long the end waits for what cleans up.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the application finds whom to trust; both have to see it under this path
    ///
    /// The authority's certificate (never its key), bundles that hold it, and
    /// the variables that name them: `env` for container engines, `env.sh` for
    /// a shell.
    #[arg(long, value_name = "FOLDER", default_value = "/run/retryscope/trust")]
    share: PathBuf,

    /// Keep the authority here, so that it stays the same when this is started again
    ///
    /// Nobody else may see this folder. Without it the key is in memory alone,
    /// and an application that has read the certificate has to read it again
    /// after a restart.
    #[arg(long, value_name = "FOLDER")]
    ca_dir: Option<PathBuf>,

    /// Limit the authority to this domain and those below; may be given more than once
    #[arg(long = "domain", value_name = "NAME")]
    domains: Vec<String>,

    /// Tells sidecars apart that share a folder; the control socket is below it
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = name)]
    name: String,

    /// Members of this group may look at everything over the control socket, besides root
    #[arg(long, value_name = "GROUP", value_parser = group)]
    readers: Option<u32>,

    /// Members of this group may also change rules
    #[arg(long, value_name = "GROUP", value_parser = group)]
    admins: Option<u32>,

    /// How long exchanges under way may take to finish after the end is asked for
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    drain: Duration,

    #[command(flatten)]
    options: Options,
}

fn group(text: &str) -> Result<u32, String> {
    find_group(text).ok_or_else(|| "there is no such group here; a number does as well".into())
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let options = &args.options;
    log_to_stderr(options.verbose);
    let checked = options.check()?;
    if args.ca_dir.as_ref().is_some_and(|key| key.starts_with(&args.share)) {
        return Err(Failure::usage("--ca-dir holds the authority's key: it may not lie in --share"));
    }
    let wanted = options.wanted(Reach::Namespace);
    let authority = match &args.ca_dir {
        Some(folder) => Authority::kept_in(folder, &args.domains)?,
        None => Authority::in_memory_for(&args.domains)?,
    };
    let trust = tls::share(authority.certificate_pem(), options.upstream_ca(), &args.share)?;
    trust.notes.iter().for_each(|note| say(note));
    let output = Output::open(options.report_file.as_deref(), None)?;
    let junit = open_junit(options, None)?;
    let events = open_events(options, None)?;
    let recording = options.save.open(None)?;
    let signals = Signals::block().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
    let place = Place::take(&args.name)?;
    process::raise_file_limit();
    let socket = place.folder.join(control::SOCKET);
    let listener = control::bind_at(&socket)
        .map_err(|error| Failure::new(73, format!("cannot open the control socket {} ({error})", socket.display())))?;
    let nonce = nonce();
    let shown = "this network namespace";
    if let Some(page) = &checked.page {
        page::tell(page);
    }
    let settings = Settings {
        closed: None,
        warden: None,
        ports: wanted.ports.clone(),
        rules: checked.rules,
        rule_settings: checked.rule_settings,
        rule_files: checked.rule_files,
        rules_for: None,
        folder: place.folder.clone(),
        target: shown.into(),
        command: None,
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
        control: Some((listener, Access { readers: args.readers, admins: args.admins })),
        earlier: None,
        bypassed: false,
        beacon: Some(nonce),
        doors: None,
    };
    let mut finished = runtime()?.block_on(async {
        let redirect = Redirection::start(&wanted, None)?;
        if let Some(told) = told(redirect.0.way()).filter(|_| options.verbose > 0) {
            say(&told);
        }
        let mut instance = Instance::start(settings, redirect)?;
        let signals =
            signals.listen().map_err(|error| Failure::new(70, format!("cannot listen for signals ({error})")))?;
        if let Err(what) = prove(&instance, nonce).await {
            instance.finish(Duration::ZERO, std::future::pending()).await;
            return Err(Failure::new(
                69,
                format!("redirection does not work here: {what}; `retryscope doctor` tells what is missing"),
            ));
        }
        instance.serve();
        say(&format!(
            "ready: connections of every process in {shown} come here from now on; whom to trust is told in {}",
            args.share.display()
        ));
        wait(None, &signals, || match instance.reload() {
            Ok(reloaded) => say(&format!("the rule files were read again; rules in force: {}", reloaded.rules)),
            Err(error) => say(&error.to_string()),
        })
        .await;
        Ok::<_, Failure>(instance.finish(args.drain, wait(None, &signals, || ())).await)
    })?;
    let verdicts = hold(&checked.assertions, &finished, shown, junit);
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    let timeline = finished.timeline.take();
    let report = report_of(options, finished, verdicts, None, Vec::new());
    output.write(&report, timeline.as_ref(), options);
    place.leave();
    Ok(ExitCode::from(if holds { 0 } else { ASSERTION_FAILED }))
}

/// Connects from here, as any other process of the namespace would, and sees
/// whether that comes here.
async fn prove(instance: &Instance, nonce: [u8; NONCE]) -> Result<(), String> {
    let probes = instance.probes();
    let asking = tokio::task::spawn_blocking(move || {
        probes.into_iter().try_for_each(|probe| launch::probed(probe, &nonce, PROOF))
    });
    let mut asking = std::pin::pin!(asking);
    // Whoever asks gives up by itself.
    tokio::select! {
        answered = instance.answer_probes(nonce) => answered.map_err(|error| error.to_string())?,
        asked = &mut asking => return asked.unwrap_or_else(|error| Err(error.to_string())),
    }
    asking.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The folder of the control socket; it goes away with this, and so do routes
/// should this be killed.
struct Place {
    folder: PathBuf,
    _lock: fs::File,
    janitor: Janitor,
}

impl Place {
    fn take(name: &str) -> Result<Self, Failure> {
        let folder = Path::new(control::DAEMONS).join(name);
        let failed = |error| {
            let hint = "with a read-only root, mount a volume at /run/retryscope";
            Failure::new(73, format!("cannot make the folder {} ({error}); {hint}", folder.display()))
        };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(failed)?;
        let lock = lock(&folder, name)?;
        let chores = Chores { folder: Some(folder.clone()), routes: true, ..Chores::default() };
        let janitor = Janitor::start(&chores)
            .map_err(|error| Failure::new(70, format!("cannot start the process that cleans up ({error})")))?;
        Ok(Self { folder, _lock: lock, janitor })
    }

    fn leave(self) {
        self.janitor.finish(PATIENCE);
    }
}
