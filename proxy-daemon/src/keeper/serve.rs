//! The keeper's own life.
use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::setsid,
};

use super::{Place, Request, Said, Start, Targets, handing::Handing};
use crate::{
    config::File,
    process::{
        Engines, Role,
        channel::Channel,
        confine::{self, Needs},
        release_memory,
    },
    redirect::{Attacher, Attaching, Forest, Listeners, Patterns, Watched, cgroup::Mount},
    tls::Authority,
};

/// Between looks around where nothing was told: what was missed is found then.
const ROUND: Duration = Duration::from_secs(5);
/// Between looks around where much is told.
const BREATH: Duration = Duration::from_millis(20);

/// Why the keeper cannot do its work: a sentence and an exit code.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, message: &impl ToString) -> Self {
        Self { message: message.to_string(), code }
    }
}

/// Runs until the server is gone.
pub fn main() -> ExitCode {
    // A terminal's signals are for the server, who then ends us.
    let _ = setsid();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::from(70) };
    let mut server = Channel::new(input);
    match keep(&mut server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            // Nobody is there to be told where that fails.
            let _ = server.send(&Said::Failed { message, code }, &[]);
            ExitCode::from(code)
        }
    }
}

fn keep(server: &mut Channel) -> Result<(), Failure> {
    let gone = |error: io::Error| Failure::new(70, &format!("cannot speak to the server ({error})"));
    let Some((start, descriptors)) = server.receive::<Start>().map_err(gone)? else { return Ok(()) };
    let mut descriptors = descriptors.into_iter();
    let signing = descriptors.next().map(Channel::new).ok_or_else(|| Failure::new(70, &"no signing channel came"))?;
    let porter = start.porter.and_then(|_| descriptors.next()).map(Channel::new);
    let mut listeners = descriptors.map(TcpListener::from);
    let (patterns, rule_files) = read(&start)?;
    let authority = Authority::load_from(&start.ca_dir).map_err(|error| Failure::new(error.exit_code(), &error))?;
    let mount = Mount::find().map_err(|error| Failure::new(error.exit_code(), &error))?;
    let needs = |bpf| Needs {
        role: Role::Keeper,
        // Who owns the configuration can read it, and needs no capability.
        account: None,
        bpf,
        read: readable(&start.config, &rule_files, mount.point()),
        write: Vec::new(),
    };
    let said = Said::Started { authority: authority.certificate_der().to_vec(), pid: std::process::id() };
    if start.taking.is_some() {
        // There is nothing to be loaded or attached.
        server.send(&said, &[]).map_err(gone)?;
        let less = confine::confine(&needs(false)).map_err(|error| Failure::new(error.exit_code(), &error))?;
        std::thread::spawn(move || sign(signing, &authority));
        server.send(&Said::Ready { less }, &[]).map_err(gone)?;
        let _ = run(server, None, &start);
        return Ok(());
    }
    let v4 = listeners.next().ok_or_else(|| Failure::new(70, &"no listener came"))?;
    let listeners = Listeners { v4, v6: listeners.next() };

    let watched = Watched { ports: start.ports.clone(), allow_quic: start.allow_quic };
    let redirect = |error: crate::redirect::RedirectError| Failure::new(error.exit_code(), &error);
    let mut attacher = Attacher::load(&watched, &listeners, &start.cgroup).map_err(redirect)?;
    attacher.load_all().map_err(redirect)?;
    let maps = attacher.maps().map_err(redirect)?;
    // Nobody connects to a listener that outlives the server.
    drop(listeners);
    let forest = Forest::new().map_err(|error| Failure::new(error.exit_code(), &error))?;
    let bpf = confine::wants_capability(|| attacher.try_use());
    let handed = [&maps.accepted, &maps.exempt, &maps.tally, &maps.commands, &maps.gate].map(AsFd::as_fd);
    server.send(&said, &handed).map_err(gone)?;
    let porter = porter.zip(maps.networks).and_then(|(mut porter, networks)| {
        // One that is gone is missed by the server.
        porter.send(&Place::Maps, &[networks.as_fd(), maps.tally.as_fd()]).ok().map(|()| porter)
    });
    let mut handing = Handing::new(Attaching::new(attacher, forest), patterns, porter);
    // Reading the kernel's types takes tens of megabytes for a moment.
    release_memory();

    let less = confine::confine(&needs(bpf)).map_err(|error| Failure::new(error.exit_code(), &error))?;
    // Only now, so that it is confined as well.
    std::thread::spawn(move || sign(signing, &authority));
    handing.follow(server).map_err(gone)?;
    handing.tell_porter(true);
    server.send(&Said::Ready { less }, &[]).map_err(gone)?;
    // From here on an error means that the server is gone.
    let _ = run(server, Some(&mut handing), &start);
    Ok(())
}

/// Where the configuration and its rules may be, also after a change of them.
fn readable(config: &Path, rule_files: &[PathBuf], cgroups: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| path.parent().map(Path::to_owned);
    let mut folders: Vec<PathBuf> = rule_files.iter().filter_map(|path| folder(path)).collect();
    folders.extend(folder(config));
    folders.extend([cgroups.to_owned(), "/proc".into()]);
    // What containers are called.
    folders.extend(Engines::default().folders());
    folders
}

/// The targets that the configuration names, and its rule files.
fn read(start: &Start) -> Result<(Patterns, Vec<PathBuf>), Failure> {
    let broken = |error: crate::config::ConfigErrors| Failure::new(error.exit_code(), &error);
    let file = File::read(&start.config).map_err(broken)?;
    let config = file.parse().map_err(broken)?;
    let patterns = patterns(&start.targets, &config.targets).map_err(|error| Failure::new(64, &error))?;
    Ok((patterns, file.rule_files(&config)))
}

fn patterns(typed: &Targets, filed: &crate::config::Targets) -> Result<Patterns, crate::redirect::PatternError> {
    if typed.is_empty() {
        Patterns::new(&filed.cgroups, &filed.units, &filed.containers)
    } else {
        Patterns::new(&typed.cgroups, &typed.units, &typed.containers)
    }
}

/// Signs leaves until nobody asks any more.
fn sign(mut channel: Channel, authority: &Authority) {
    while let Ok(Some((leaf, _))) = channel.receive_bytes() {
        // The first byte tells a signature from a reason.
        let (mark, body) = match authority.sign_leaf(&leaf) {
            Ok(signature) => (0, signature),
            Err(why) => (1, why.into_bytes()),
        };
        let mut answer = vec![mark];
        answer.extend(body);
        if channel.send_bytes(&answer, &[]).is_err() {
            return;
        }
    }
}

/// Answers requests and follows cgroups, where any are attached; ends with the
/// server.
fn run(server: &mut Channel, mut handing: Option<&mut Handing>, start: &Start) -> io::Result<()> {
    let mut looked = Instant::now();
    let mut stirred = false;
    loop {
        let wait = if stirred { BREATH } else { ROUND }.saturating_sub(looked.elapsed());
        if let Some(handing) = &mut handing
            && wait.is_zero()
        {
            handing.follow(server)?;
            (looked, stirred) = (Instant::now(), false);
            continue;
        }
        // Rounded up: a wait of less than a millisecond would spin.
        let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let (asked, news) = match &handing {
            Some(handing) => wait_for([server.as_fd(), handing.attaching.forest().news()], timeout)?.into(),
            None => {
                let [asked] = wait_for([server.as_fd()], PollTimeout::NONE)?;
                (asked, false)
            }
        };
        if let Some(handing) = &mut handing
            && news
        {
            handing.attaching.forest().hear()?;
            // At once where it has been quiet.
            if looked.elapsed() >= BREATH {
                handing.follow(server)?;
                (looked, stirred) = (Instant::now(), false);
            } else {
                stirred = true;
            }
        }
        if asked {
            let Some((request, _)) = server.receive::<Request>()? else { return Ok(()) };
            match request {
                Request::Ping => server.send(&Said::Pong, &[])?,
                Request::Reload => match reload(start) {
                    Ok((patterns, said)) => {
                        if let Some(handing) = &mut handing {
                            handing.set_patterns(patterns);
                            handing.follow(server)?;
                        }
                        server.send(&said, &[])?;
                    }
                    Err(why) => server.send(&Said::Broken { why }, &[])?,
                },
            }
        }
    }
}

/// Which of them are readable, once one is or the time is over.
fn wait_for<const N: usize>(descriptors: [BorrowedFd<'_>; N], timeout: PollTimeout) -> io::Result<[bool; N]> {
    let mut ready = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
    match poll(&mut ready, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(ready.map(|descriptor| descriptor.any().unwrap_or(false)))
}

/// Reads the configuration and everything it names. Nothing is in force
/// unless all of it is right.
fn reload(start: &Start) -> Result<(Patterns, Said), String> {
    let broken = |error: crate::config::ConfigErrors| error.to_string();
    let file = File::read(&start.config).map_err(broken)?;
    let config = file.parse().map_err(broken)?;
    let rules = file.read_rules(&config).map_err(broken)?;
    let changeable = file.changeable(&rules).map_err(broken)?;
    let patterns = if start.targets.is_empty() {
        changeable.patterns
    } else {
        self::patterns(&start.targets, &config.targets).map_err(|error| error.to_string())?
    };
    Ok((patterns, Said::Reloaded { config: file.text, rules }))
}
