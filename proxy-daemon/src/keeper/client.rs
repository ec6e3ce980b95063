//! The server's side: the keeper's handle.
use std::{
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::{KEEPER, Porter, Post, Request, Said, Start, Work, doors::Hired};
use crate::{
    process::channel::Channel,
    redirect::{Attachment, Door, Elsewhere, Fail, Listeners, Maps, Redirect, RedirectError, Redirection},
    tls::RemoteKey,
};

/// How long a signature is waited for. It takes a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);
/// Reading a configuration and attaching what it names may take longer.
const LONG: Duration = Duration::from_secs(30);
/// Connections that are diverted when a cgroup is no longer a target keep
/// what serves them for so long.
const LINGER: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot start the process that keeps what is privileged ({0})")]
    Start(#[source] io::Error),
    #[error("the process that keeps what is privileged has ended")]
    Gone,
    /// In its own words.
    #[error("{message}")]
    Failed { message: String, code: u8 },
    #[error(transparent)]
    Redirect(#[from] RedirectError),
}

impl KeeperError {
    pub fn exit_code(&self) -> u8 {
        match self {
            KeeperError::Start(_) | KeeperError::Gone => 70,
            KeeperError::Failed { code, .. } => *code,
            KeeperError::Redirect(error) => error.exit_code(),
        }
    }
}

/// A keeper that is loading.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    channel: Channel,
    signing: Channel,
    hired: Option<Hired>,
    fail: Fail,
    /// What TPROXY takes, for people.
    taking: Option<String>,
}

/// A keeper that has loaded everything and attached nothing yet.
#[derive(Debug)]
pub struct Started {
    child: Child,
    channel: Channel,
    signing: Channel,
    hired: Option<Hired>,
    pub pid: u32,
    /// The authority's certificate.
    pub authority: Vec<u8>,
    by: By,
}

#[derive(Debug)]
enum By {
    Ebpf(Box<Redirect>),
    /// By TPROXY, which takes this.
    Tproxy(String),
}

/// What the keeper answers to a reload.
#[derive(Debug)]
pub enum Answer {
    Reloaded { config: String, rules: Vec<(PathBuf, String)> },
    Broken { why: String },
}

/// What is in force.
#[derive(Debug)]
pub struct Taken {
    pub keeper: Keeper,
    pub signer: Authorised,
    pub redirect: Redirection,
    /// Where connections come to, if they do not come to those that this was
    /// started with.
    pub listeners: Option<Listeners>,
    /// Doors to other network namespaces, those of the start and later ones.
    pub doors: Option<mpsc::Receiver<Door>>,
    /// In what the others are confined less than they could be.
    pub less: Vec<String>,
}

/// A running keeper, and the porter where there is one. They end when this is
/// dropped.
#[derive(Debug)]
pub struct Keeper {
    asking: Mutex<(Channel, Receiver<Reply>)>,
    /// True once it has ended.
    gone: watch::Receiver<bool>,
    /// Names of what is attached.
    targets: Arc<Mutex<Vec<(u64, String)>>>,
    children: Mutex<Vec<Child>>,
    porter: Option<Porter>,
}

#[derive(Debug)]
enum Reply {
    Pong,
    Reload(Answer),
}

/// The keeper signs what this asks for.
#[derive(Debug)]
pub struct Authorised(Mutex<Channel>);

impl Starting {
    /// Starts the keeper, and the porter where one is wanted; `listeners` are where connects are diverted to. It
    /// takes a moment to load, in which there is other work.
    /// Where TPROXY takes connections there are none yet.
    pub fn start(start: &Start, listeners: Option<&Listeners>, fail: Fail) -> Result<Self, KeeperError> {
        let (mut channel, theirs) = Channel::pair().map_err(KeeperError::Start)?;
        let (signing, signer) = Channel::pair().map_err(KeeperError::Start)?;
        let input = theirs.as_fd().try_clone_to_owned().map_err(KeeperError::Start)?;
        let child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(KEEPER)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .spawn()
            .map_err(KeeperError::Start)?;
        drop(theirs);
        let (from_keeper, to_porter) = Channel::pair().map_err(KeeperError::Start)?;
        let listening: Vec<_> =
            listeners.iter().flat_map(|listeners| [Some(&listeners.v4), listeners.v6.as_ref()]).flatten().collect();
        let hire = |account| {
            let ports = listening.iter().map(|listener| Ok(u32::from(listener.local_addr()?.port())));
            let work = match &start.taking {
                None => Work::Doors { ports: ports.collect::<io::Result<_>>()? },
                Some(taking) => {
                    Work::Filter { ports: start.ports.clone(), allow_quic: start.allow_quic, taking: taking.clone() }
                }
            };
            let keeper = matches!(work, Work::Doors { .. }).then_some(&from_keeper);
            Hired::start(&Post { account, work }, keeper)
        };
        let hired = start.porter.map(hire).transpose().map_err(KeeperError::Start)?;
        let mut descriptors = vec![signer.as_fd()];
        descriptors.extend(hired.as_ref().map(|_| to_porter.as_fd()));
        descriptors.extend(listening.iter().map(AsFd::as_fd));
        channel.send(start, &descriptors).map_err(KeeperError::Start)?;
        let taking = start.taking.as_ref().map(ToString::to_string);
        Ok(Self { child, channel, signing, hired, fail, taking })
    }

    /// Waits until it has loaded.
    pub fn loaded(self) -> Result<Started, KeeperError> {
        let Self { child, mut channel, signing, hired, fail, taking } = self;
        match channel.receive::<Said>().map_err(KeeperError::Start)? {
            Some((Said::Started { authority, pid }, maps)) => {
                if let Some(taking) = taking {
                    return Ok(Started { child, channel, signing, hired, pid, authority, by: By::Tproxy(taking) });
                }
                let Ok([accepted, exempt, tally, commands, gate]) = <[_; 5]>::try_from(maps) else {
                    return Err(KeeperError::Gone);
                };
                let elsewhere = hired.as_ref().map(|hired| Box::new(hired.doors.clone()) as Box<dyn Elsewhere>);
                let maps = Maps { accepted, exempt, tally, commands, networks: None, gate };
                let by = By::Ebpf(Box::new(Redirect::new(maps, fail, elsewhere)?));
                Ok(Started { child, channel, signing, hired, pid, authority, by })
            }
            Some((Said::Failed { message, code }, _)) => Err(KeeperError::Failed { message, code }),
            _ => Err(KeeperError::Gone),
        }
    }
}

impl Started {
    /// Whether maps can be used by who calls this.
    pub fn try_use(&self) -> bool {
        match &self.by {
            By::Ebpf(redirect) => redirect.is_usable(),
            By::Tproxy(_) => true,
        }
    }

    /// Lets everything go direct that will be attached.
    pub fn bypass(&self) -> Result<(), KeeperError> {
        match &self.by {
            By::Ebpf(redirect) => Ok(redirect.bypass(true)?),
            // Nobody has said yet that we answer, so everything does.
            By::Tproxy(_) => Ok(()),
        }
    }

    /// Takes over what is attached at the start; from here on cgroups come and
    /// go by themselves. To be called once this process is confined: it starts
    /// threads.
    pub fn run(self) -> Result<Taken, KeeperError> {
        let Self { child, mut channel, signing, hired, by, .. } = self;
        signing.set_patience(PATIENCE).map_err(KeeperError::Start)?;
        let (redirect, taken) = match by {
            By::Ebpf(redirect) => (Some(Arc::new(*redirect)), None),
            By::Tproxy(taking) => (None, Some(taking)),
        };
        let targets = Arc::new(Mutex::new(taken.into_iter().map(|taking| (0, taking)).collect()));
        let mut less = None;
        while less.is_none() {
            match channel.receive::<Said>().map_err(KeeperError::Start)? {
                Some((Said::Ready { less: told }, _)) => less = Some(told),
                Some((Said::Failed { message, code }, _)) => return Err(KeeperError::Failed { message, code }),
                Some((said, descriptors)) => {
                    if let Some(redirect) = &redirect {
                        follow(said, descriptors, redirect, &targets);
                    }
                }
                None => return Err(KeeperError::Gone),
            }
        }
        let asking = channel.try_clone().map_err(KeeperError::Start)?;
        let (told, gone) = watch::channel(false);
        let (answer, answers) = sync_channel(1);
        let mine = redirect.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let known = Arc::clone(&targets);
        std::thread::spawn(move || {
            hear(&mut channel, &answer, &mine, &known);
            told.send_replace(true);
        });
        let (mut children, mut less) = (vec![child], less.unwrap_or_default());
        let (mut porter, mut doors, mut filtering) = (None, None, None);
        if let Some(hired) = hired {
            let working = hired.run()?;
            children.push(working.child);
            less.extend(working.less);
            (porter, doors, filtering) = (Some(working.porter), Some(working.opened), working.filtering);
        }
        let (redirect, listeners) = match (redirect, filtering) {
            (Some(redirect), _) => (Redirection::from(redirect), None),
            (None, Some((far, listeners))) => (Redirection::far(far), Some(listeners)),
            (None, None) => return Err(KeeperError::Gone),
        };
        let (asking, children) = (Mutex::new((asking, answers)), Mutex::new(children));
        let keeper = Keeper { asking, gone, targets, children, porter };
        Ok(Taken { keeper, signer: Authorised(Mutex::new(signing)), redirect, listeners, doors, less })
    }
}

/// Hears the keeper until it, or the redirect, is gone.
fn hear(
    channel: &mut Channel,
    answer: &SyncSender<Reply>,
    redirect: &Weak<Redirect>,
    targets: &Mutex<Vec<(u64, String)>>,
) {
    while let Ok(Some((said, descriptors))) = channel.receive::<Said>() {
        // A reply that nobody waits for any more is dropped.
        let _ = match said {
            Said::Pong => answer.try_send(Reply::Pong),
            Said::Reloaded { config, rules } => answer.try_send(Reply::Reload(Answer::Reloaded { config, rules })),
            Said::Broken { why } => answer.try_send(Reply::Reload(Answer::Broken { why })),
            said => {
                let Some(redirect) = redirect.upgrade() else { return };
                follow(said, descriptors, &redirect, targets);
                Ok(())
            }
        };
    }
}

/// Brings the redirect in line with what the keeper has done.
fn follow(
    said: Said,
    mut descriptors: Vec<std::os::fd::OwnedFd>,
    redirect: &Arc<Redirect>,
    targets: &Mutex<Vec<(u64, String)>>,
) {
    let mut targets = targets.lock().unwrap_or_else(PoisonError::into_inner);
    match said {
        Said::Attached { number, name, diverting } if diverting <= descriptors.len() => {
            let serving = descriptors.split_off(diverting);
            redirect.add(number, Attachment::from_parts(descriptors, serving));
            if !name.is_empty() {
                tracing::info!(cgroup = name, "watching the cgroup {name}");
                targets.push((number, name));
            }
        }
        Said::Detached { number, gone } => {
            if let Some(at) = targets.iter().position(|(known, _)| *known == number) {
                let (_, name) = targets.swap_remove(at);
                tracing::info!(cgroup = name, "no longer watching the cgroup {name}");
            }
            if gone {
                redirect.remove(number);
            } else {
                redirect.retire_for(number, LINGER);
            }
        }
        Said::Refused { name, why } => tracing::warn!(cgroup = name, why, "the cgroup {name} cannot be watched: {why}"),
        _ => tracing::warn!("the keeper said something that is out of place"),
    }
}

impl Keeper {
    /// Asks for the configuration to be read again. Waits for the answer: not
    /// to be called where tasks run.
    pub fn reload(&self) -> Result<Answer, KeeperError> {
        match self.ask(&Request::Reload, LONG)? {
            Reply::Reload(answer) => Ok(answer),
            Reply::Pong => Err(KeeperError::Gone),
        }
    }

    pub fn porter(&self) -> Option<&Porter> {
        self.porter.as_ref()
    }

    /// Whether the keeper answers, and the porter. Waits for them.
    pub fn answers(&self, patience: Duration) -> bool {
        self.porter.as_ref().is_none_or(|porter| porter.answers(patience)) && self.keeper_answers(patience)
    }

    fn keeper_answers(&self, patience: Duration) -> bool {
        // One that is reading a configuration is alive.
        let Ok(mut asking) = self.asking.try_lock() else { return true };
        matches!(exchange(&mut asking, &Request::Ping, patience), Ok(Reply::Pong))
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Reply, KeeperError> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        exchange(&mut asking, request, patience)
    }

    /// What is watched now.
    pub fn targets(&self) -> Vec<String> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = targets.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    /// Ends when the keeper has, or the porter.
    pub async fn ended(&self) {
        let mut gone = self.gone.clone();
        let porter = async {
            match &self.porter {
                Some(porter) => porter.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A sender that is gone is a thread that is.
            _ = gone.wait_for(|gone| *gone) => {}
            () = porter => {}
        }
    }
}

fn exchange(
    (channel, answers): &mut (Channel, Receiver<Reply>),
    request: &Request,
    patience: Duration,
) -> Result<Reply, KeeperError> {
    // What an earlier request came too late for.
    while answers.try_recv().is_ok() {}
    channel.send(request, &[]).map_err(|_| KeeperError::Gone)?;
    answers.recv_timeout(patience).map_err(|_| KeeperError::Gone)
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let asking = self.asking.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It ends when nobody is at the other end; the hearing thread is.
        let _ = rustix::net::shutdown(asking.0.as_fd(), rustix::net::Shutdown::Both);
        if let Some(porter) = &self.porter {
            porter.end();
        }
        let children = self.children.get_mut().unwrap_or_else(PoisonError::into_inner);
        for child in children {
            let _ = child.wait();
        }
    }
}

impl RemoteKey for Authorised {
    fn sign(&self, leaf: &[u8]) -> io::Result<Vec<u8>> {
        let mut channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send_bytes(leaf, &[])?;
        let (answer, _) = channel.receive_bytes()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match answer.split_first() {
            Some((0, signature)) => Ok(signature.to_vec()),
            Some((_, why)) => Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
