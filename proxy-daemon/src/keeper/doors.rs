//! The server's side: the porter's handle.
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use retryscope_ebpf::MAX_NETWORKS;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Asked, KeeperError, PORTER, Post, Told, What};
use crate::{
    process::{Owner, channel::Channel},
    redirect::{Counters, Door, Elsewhere, Far, Filter, Listeners, Pending, Turn},
};

/// How long an answer is waited for that holds others up.
const PATIENCE: Duration = Duration::from_secs(2);

/// A porter that has been started.
#[derive(Debug)]
pub(super) struct Hired {
    pub(super) child: Child,
    channel: Channel,
    pub(super) doors: Doors,
    opened: (mpsc::Sender<Door>, mpsc::Receiver<Door>),
}

/// What is known of the porter's doors, and the way to ask for sockets there.
#[derive(Clone, Debug)]
pub(super) struct Doors(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asking: Mutex<Channel>,
    asked: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Namespaces with doors; what closes them is dropped with its entry.
    open: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    /// Who waits for an answer; the porter gives one to each.
    waiting: HashMap<u64, Waiting>,
    /// The porter is gone.
    over: bool,
}

#[derive(Debug)]
enum Waiting {
    Socket(oneshot::Sender<io::Result<OwnedFd>>),
    /// For what is said, whatever it is.
    Word(SyncSender<Told>),
}

/// A porter at work.
#[derive(Debug)]
pub struct Porter {
    pub pid: u32,
    doors: Doors,
    gone: watch::Receiver<bool>,
}

/// What it has made.
#[derive(Debug)]
pub(super) struct Working {
    pub(super) porter: Porter,
    pub(super) child: Child,
    /// Doors, those of the start and later ones.
    pub(super) opened: mpsc::Receiver<Door>,
    /// By TPROXY.
    pub(super) filtering: Option<(Far, Listeners)>,
    /// In what it is confined less than it could be.
    pub(super) less: Vec<String>,
}

impl Hired {
    /// Starts the porter. `keeper` is its way to the keeper.
    pub(super) fn start(post: &Post, keeper: Option<&Channel>) -> io::Result<Self> {
        let (mut channel, theirs) = Channel::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(PORTER)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs.as_fd().try_clone_to_owned()?))
            .stdout(Stdio::null())
            .spawn()?;
        drop(theirs);
        channel.send(post, &keeper.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        let (asking, state) = (Mutex::new(channel.try_clone()?), Mutex::default());
        let doors = Doors(Arc::new(Inner { asking, asked: AtomicU64::new(0), state }));
        // Never full, so that the porter is always heard: before anybody takes
        // them there are as many as there can be namespaces.
        let opened = mpsc::channel(2 * MAX_NETWORKS);
        Ok(Self { child, channel, doors, opened })
    }

    /// Waits for the doors of those who are there at the start; from here on
    /// they come by themselves. Starts a thread.
    pub(super) fn run(self) -> Result<Working, KeeperError> {
        let Self { child, mut channel, doors, opened: (opening, opened) } = self;
        let mut filtering = None;
        let (pid, less) = loop {
            match channel.receive::<Told>().map_err(KeeperError::Start)? {
                Some((Told::Ready { pid, less, missing }, _)) => {
                    if !missing.is_empty() {
                        tracing::warn!(
                            "connections made in other network namespaces, such as containers', go direct: {} missing; \
                             see CapabilityBoundingSet= of the service, or set `namespaces = false`",
                            are(&missing)
                        );
                    }
                    break (pid, less);
                }
                Some((Told::Failed { message, code }, _)) => return Err(KeeperError::Failed { message, code }),
                Some((Told::Filtering, descriptors)) => filtering = Some(descriptors),
                Some((told, descriptors)) => doors.follow(told, descriptors, &opening),
                None => return Err(KeeperError::Gone),
            }
        };
        let (tell, gone) = watch::channel(false);
        let known = doors.clone();
        std::thread::spawn(move || {
            while let Ok(Some((told, descriptors))) = channel.receive::<Told>() {
                known.follow(told, descriptors, &opening);
            }
            known.end();
            tell.send_replace(true);
        });
        let filtering = filtering.map(|opened| Far::new(Box::new(doors.clone()), opened)).transpose();
        let filtering = filtering.map_err(KeeperError::Start)?;
        Ok(Working { porter: Porter { pid, doors, gone }, child, opened, filtering, less })
    }
}

/// `CAP_A is`, `CAP_A and CAP_B are`.
fn are(names: &[String]) -> String {
    format!("{} {}", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
}

impl Doors {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, told: Told, descriptors: Vec<OwnedFd>, opening: &mpsc::Sender<Door>) {
        match told {
            Told::Opened { cookie, pid } => {
                let (mut doors, mut ends) = (Vec::new(), Vec::new());
                for listener in descriptors.into_iter().map(TcpListener::from) {
                    let (end, over) = oneshot::channel();
                    doors.push(Door { listener, over });
                    ends.push(end);
                }
                // First known, then served.
                self.state().open.insert(cookie, ends);
                tracing::info!(pid, cookie, "listening in the network namespace of process {pid}");
                for door in doors {
                    // Who serves them has ended: so do we.
                    let _ = opening.blocking_send(door);
                }
            }
            Told::Closed { cookie } => {
                if self.state().open.remove(&cookie).is_some() {
                    tracing::info!(cookie, "no longer listening in a network namespace: nobody is left there");
                }
            }
            Told::Refused { pid, why } => tracing::warn!(pid, "{why}; connections there go direct"),
            Told::Made { id } => {
                let socket = descriptors.into_iter().next();
                self.answered(id, socket.ok_or_else(|| io::ErrorKind::InvalidData.into()));
            }
            Told::NotMade { id, code } => self.answered(id, Err(io::Error::from_raw_os_error(code))),
            Told::Pong { id } | Told::Owner { id, .. } | Told::Turned { id, .. } | Told::Counted { id, .. } => {
                if let Some(Waiting::Word(tell)) = self.state().waiting.remove(&id) {
                    // Whoever asked may have given up.
                    let _ = tell.try_send(told);
                }
            }
            Told::Ready { .. } | Told::Failed { .. } | Told::Filtering => {
                tracing::warn!("the porter said something that is out of place");
            }
        }
    }

    fn answered(&self, id: u64, made: io::Result<OwnedFd>) {
        // Whoever waits for a word is told by the end of the wait.
        if let Some(Waiting::Socket(tell)) = self.state().waiting.remove(&id) {
            // Whoever asked may have given up.
            let _ = tell.send(made);
        }
    }

    fn end(&self) {
        let mut state = self.state();
        state.over = true;
        state.open.clear();
        state.waiting.clear();
    }

    /// Asks; whoever waits is dropped where nobody will answer.
    fn ask(&self, waiting: Waiting, what: What) {
        let id = self.0.asked.fetch_add(1, Ordering::Relaxed);
        {
            let mut state = self.state();
            if state.over {
                return;
            }
            state.waiting.insert(id, waiting);
        }
        let mut asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.send_bytes(&Asked { id, what }.to_bytes(), &[]).is_err() {
            drop(asking);
            self.state().waiting.remove(&id);
        }
    }

    /// The answer, if one comes in time. Waits for it.
    fn hear(&self, what: What, patience: Duration) -> Option<Told> {
        let (tell, told) = sync_channel(1);
        self.ask(Waiting::Word(tell), what);
        told.recv_timeout(patience).ok()
    }
}

impl Filter for Doors {
    fn owner(&self, client: SocketAddr, origin: SocketAddr) -> Option<Owner> {
        match self.hear(What::Owner { client, origin }, PATIENCE)? {
            Told::Owner { owner, .. } => Some(*owner),
            _ => None,
        }
    }

    fn socket(&self, v6: bool) -> Pending {
        Elsewhere::socket(self, 0, v6)
    }

    fn turn(&self, to: Turn) -> Result<(), String> {
        match self.hear(What::Turn(to), PATIENCE) {
            Some(Told::Turned { error, .. }) => error.map_or(Ok(()), Err),
            _ => Err("it does not answer".into()),
        }
    }

    fn counters(&self) -> Counters {
        match self.hear(What::Counters, PATIENCE) {
            Some(Told::Counted { counters, .. }) => *counters,
            _ => Counters::default(),
        }
    }
}

impl Elsewhere for Doors {
    fn is_empty(&self) -> bool {
        self.state().open.is_empty()
    }

    fn socket(&self, cookie: u64, v6: bool) -> Pending {
        let (tell, pending) = oneshot::channel();
        self.ask(Waiting::Socket(tell), What::Socket { cookie, v6 });
        pending
    }
}

impl Porter {
    /// Whether it answers. Waits for it.
    pub fn answers(&self, patience: Duration) -> bool {
        self.doors.hear(What::Ping, patience).is_some()
    }

    /// Has it end.
    pub(super) fn end(&self) {
        let asking = self.doors.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::net::shutdown(asking.as_fd(), rustix::net::Shutdown::Both);
    }

    /// Ends when the porter has.
    pub async fn ended(&self) {
        let mut gone = self.gone.clone();
        // A sender that is gone is a thread that is.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}
