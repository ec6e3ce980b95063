//! The porter's own life.
//!
//! It alone may enter network namespaces, and decides which: those in which
//! there are processes of the cgroups that the keeper has attached. The server
//! is handed the listeners that were opened there, and may ask for sockets in
//! the namespaces whose doors are open, by the numbers that it was told;
//! nothing else is understood of what it says. Of configurations and of what
//! comes from the network the porter sees nothing.
//!
//! Or, where connections are redirected by TPROXY, it holds the packet filter's
//! table: what it takes was decided before the server gave up what it had, and
//! it can only be asked to take nothing for a while.
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc::sync_channel},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::setsid,
};

use super::{Asked, Place, Post, Told, What, Work};
use crate::{
    process::{
        Role,
        channel::Channel,
        confine::{self, Account, Needs},
        release_memory,
    },
    redirect::{Changes, Held, Inhabitants, Networks, Tally, inhabited},
};

/// Between looks around where much is told; and the first pause after news:
/// who has come into a cgroup may yet go into a namespace.
const BREATH: Duration = Duration::from_millis(20);
/// The pause that this grows to. After it the kernel is asked whether somebody
/// could not come here.
const GLANCE: Duration = Duration::from_millis(500);
/// How often it is looked whether there is still somebody where we listen.
const SURVEY: Duration = Duration::from_secs(10);
/// Connections whose owners wait to be looked up; and how many are at a time.
const MAX_WAITING: usize = 256;
const LOOKING: usize = 16;
/// A look around may take this part of the time.
const SHARE: u32 = 10;

/// What the looking and the answering share.
#[derive(Debug)]
struct Shared {
    networks: RwLock<Networks>,
    server: Mutex<Channel>,
}

impl Shared {
    fn tell(&self, told: &Told, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).send(told, descriptors)
    }
}

/// Runs until the server is gone.
pub fn main() -> ExitCode {
    // A terminal's signals are for the server, who then ends us.
    let _ = setsid();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::from(70) };
    let mut server = Channel::new(input);
    match open(&mut server) {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, code)) => {
            // Nobody is there to be told where that fails.
            let _ = server.send(&Told::Failed { message, code }, &[]);
            ExitCode::from(code)
        }
    }
}

fn open(server: &mut Channel) -> Result<(), (String, u8)> {
    let gone = |error: io::Error| (format!("cannot speak to the server or the keeper ({error})"), 70);
    let failed = |error: crate::redirect::RedirectError| (error.to_string(), error.exit_code());
    let Some((post, descriptors)) = server.receive::<Post>().map_err(gone)? else { return Ok(()) };
    let ports = match post.work {
        Work::Doors { ports } => ports,
        Work::Filter { ports, allow_quic, taking } => {
            let held = Held::start(&ports, allow_quic, &taking).map_err(failed)?;
            return filter(server, held, post.account);
        }
    };
    let [keeper] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| ("no way to the keeper came".to_owned(), 70))?;
    let mut keeper = Channel::new(keeper);
    // It loads; where it cannot, the server hears of it.
    let Some((Place::Maps, maps)) = keeper.receive::<Place>().map_err(gone)? else { return Ok(()) };
    let [map, tally] = <[OwnedFd; 2]>::try_from(maps).map_err(|_| ("no maps came".to_owned(), 70))?;
    let mut networks = Networks::new(Some(map)).map_err(failed)?;
    networks.own_ports(ports);
    let tally = Tally::new(tally).map_err(failed)?;
    let inhabitants = Inhabitants::new().map_err(|error| (format!("cannot watch cgroups ({error})"), 69))?;
    let missing = confine::missing(Role::Porter);
    let less = confine::confine(&Needs {
        role: Role::Porter,
        account: Some(post.account),
        bpf: confine::wants_capability(|| tally.try_use()),
        read: Vec::new(),
        write: Vec::new(),
    })
    .map_err(|error| (error.to_string(), error.exit_code()))?;
    let shared =
        Arc::new(Shared { networks: RwLock::new(networks), server: Mutex::new(server.try_clone().map_err(gone)?) });
    let mut looking =
        Looking { shared: Arc::clone(&shared), inhabitants, tally, places: BTreeMap::new(), cost: Duration::ZERO };
    // Its start is over; it has little to do from now on.
    release_memory();
    // Only now, so that it is confined as well.
    std::thread::spawn(move || {
        // An end is the keeper's or the server's, and then soon ours.
        let _ = looking.begin(&mut keeper, less, missing).and_then(|()| looking.go_on(&mut keeper));
    });
    // From here on an error means that the server is gone.
    let _ = answer(server, &shared);
    Ok(())
}

/// Holds the packet filter's table.
fn filter(server: &mut Channel, mut held: Held, account: Account) -> Result<(), (String, u8)> {
    let gone = |error: io::Error| (format!("cannot speak to the server ({error})"), 70);
    let needs = Needs { role: Role::Filter, account: Some(account), bpf: false, read: Vec::new(), write: Vec::new() };
    let less = confine::confine(&needs).map_err(|error| (error.to_string(), error.exit_code()))?;
    server.send(&Told::Filtering, &held.opened()).map_err(gone)?;
    // Nobody connects to a listener that outlives the server.
    held.let_go();
    let ready = Told::Ready { pid: std::process::id(), less, missing: Vec::new() };
    server.send(&ready, &[]).map_err(gone)?;
    release_memory();
    let held = Arc::new(held);
    let telling = Arc::new(Mutex::new(server.try_clone().map_err(gone)?));
    let tell = |told: &Told, descriptors: &[BorrowedFd<'_>]| -> io::Result<()> {
        telling.lock().unwrap_or_else(PoisonError::into_inner).send(told, descriptors)
    };
    // To look up owners takes a moment, which sockets need not wait for; and
    // connections that come together share one look.
    let (asking, asked) = sync_channel::<(u64, SocketAddr, SocketAddr)>(MAX_WAITING);
    let asked = Arc::new(Mutex::new(asked));
    let look_up = || {
        let (held, telling, asked) = (Arc::clone(&held), Arc::clone(&telling), Arc::clone(&asked));
        move || {
            let next = || asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
            while let Ok((id, client, origin)) = next() {
                let told = Told::Owner { id, owner: Box::new(held.owner(client, origin)) };
                if telling.lock().unwrap_or_else(PoisonError::into_inner).send(&told, &[]).is_err() {
                    return;
                }
            }
        }
    };
    let looking: Vec<_> = (0..LOOKING).map(|_| std::thread::spawn(look_up())).collect();
    let mut server = server.try_clone().map_err(gone)?.at_most(Asked::LENGTH);
    let mut answer = || -> io::Result<()> {
        while let Some((asked, _)) = server.receive_bytes()? {
            let Some(Asked { id, what }) = Asked::from_bytes(&asked) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match what {
                What::Ping => tell(&Told::Pong { id }, &[])?,
                What::Socket { v6, .. } => match held.socket(v6) {
                    Ok(socket) => tell(&Told::Made { id }, &[socket.as_fd()])?,
                    Err(error) => tell(&Told::NotMade { id, code: code_of(&error) }, &[])?,
                },
                What::Owner { client, origin } => {
                    if asking.try_send((id, client, origin)).is_err() {
                        // It is told by its address then.
                        tell(&Told::NotMade { id, code: nix::libc::EAGAIN }, &[])?;
                    }
                }
                What::Turn(to) => {
                    let error = held.turn(to).err().map(|error| error.to_string());
                    tell(&Told::Turned { id, error }, &[])?;
                }
                What::Counters => tell(&Told::Counted { id, counters: Box::new(held.counters()) }, &[])?,
            }
        }
        Ok(())
    };
    // However it ends, the server is gone: the table and the routes go first.
    let _ = answer();
    drop(asking);
    looking.into_iter().for_each(|looking| drop(looking.join()));
    drop(held);
    Ok(())
}

fn code_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::WouldBlock => nix::libc::EAGAIN,
        _ => nix::libc::ENETDOWN,
    })
}

/// Makes the sockets that are asked for.
fn answer(server: &Channel, shared: &Arc<Shared>) -> io::Result<()> {
    let mut asking = server.try_clone()?.at_most(Asked::LENGTH);
    while let Some((asked, _)) = asking.receive_bytes()? {
        let Some(Asked { id, what }) = Asked::from_bytes(&asked) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match what {
            What::Ping => shared.tell(&Told::Pong { id }, &[])?,
            What::Socket { cookie, v6 } => {
                let to = Arc::clone(shared);
                let deliver = move |made: io::Result<OwnedFd>| {
                    // Where that fails the server is gone.
                    let _ = match made {
                        Ok(socket) => to.tell(&Told::Made { id }, &[socket.as_fd()]),
                        Err(error) => to.tell(&Told::NotMade { id, code: code_of(&error) }, &[]),
                    };
                };
                let networks = shared.networks.read().unwrap_or_else(PoisonError::into_inner);
                networks.make(cookie, v6, Box::new(deliver));
            }
            // There is no table.
            What::Owner { .. } | What::Turn(_) | What::Counters => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

/// Looks for namespaces.
struct Looking {
    shared: Arc<Shared>,
    inhabitants: Inhabitants,
    tally: Tally,
    /// The cgroups that are attached.
    places: BTreeMap<u64, PathBuf>,
    /// How long the last look took.
    cost: Duration,
}

impl Looking {
    /// Opens the doors of those who are there at the start.
    fn begin(&mut self, keeper: &mut Channel, less: Vec<String>, missing: Vec<String>) -> io::Result<()> {
        while !self.hear(keeper)? {}
        self.look()?;
        self.shared.tell(&Told::Ready { pid: std::process::id(), less, missing }, &[])
    }

    fn go_on(&mut self, keeper: &mut Channel) -> io::Result<()> {
        let mut seen = self.tally.elsewhere();
        let (mut pause, mut looked) = (BREATH, Instant::now());
        let mut due = looked + BREATH;
        loop {
            let wait = (!self.places.is_empty()).then(|| due.saturating_duration_since(Instant::now()));
            let (said, news) = self.wait(keeper, wait)?;
            // A change of what is attached, or of who is there.
            let stirred = (said && self.hear(keeper)?) || news;
            if news {
                self.inhabitants.hear()?;
            }
            if stirred {
                pause = BREATH;
                // At once where it has been quiet.
                due = due.min(looked + BREATH.max(self.cost * SHARE));
            }
            if Instant::now() < due {
                continue;
            }
            let direct = self.tally.elsewhere();
            if pause < GLANCE || direct != seen || looked.elapsed() >= SURVEY {
                seen = direct;
                self.look()?;
                looked = Instant::now();
            }
            due = Instant::now() + pause.max(self.cost * SHARE);
            pause = (pause * 2).min(GLANCE);
        }
    }

    /// Whether the keeper has said something, and whether there is news.
    fn wait(&self, keeper: &Channel, wait: Option<Duration>) -> io::Result<(bool, bool)> {
        let mut ready =
            [PollFd::new(keeper.as_fd(), PollFlags::POLLIN), PollFd::new(self.inhabitants.news(), PollFlags::POLLIN)];
        // Rounded up: a wait of less than a millisecond would spin.
        let timeout = wait.map_or(PollTimeout::NONE, |wait| match wait {
            Duration::ZERO => PollTimeout::ZERO,
            wait => PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO),
        });
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Ok((is(&ready[0]), is(&ready[1])))
    }

    /// A word of the keeper's; true where it was the last for now.
    fn hear(&mut self, keeper: &mut Channel) -> io::Result<bool> {
        let Some((place, _)) = keeper.receive::<Place>()? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        match place {
            Place::Attached { number, path } => {
                self.places.insert(number, path);
            }
            Place::Detached { number } => {
                self.places.remove(&number);
            }
            Place::All => return Ok(true),
            Place::Maps => {}
        }
        Ok(false)
    }

    fn look(&mut self) -> io::Result<()> {
        let began = Instant::now();
        let pids = self.inhabitants.look(self.places.values().map(PathBuf::as_path));
        // Looked at before anybody has to wait for it.
        let inhabited = inhabited(pids);
        let changes = self.shared.networks.write().unwrap_or_else(PoisonError::into_inner).look(&inhabited);
        self.cost = began.elapsed();
        let Changes { left, opened, refused } = changes;
        for cookie in left {
            self.shared.tell(&Told::Closed { cookie }, &[])?;
        }
        for opened in opened {
            let doors: Vec<_> = opened.doors.iter().map(|door| door.listener.as_fd()).collect();
            self.shared.tell(&Told::Opened { cookie: opened.cookie, pid: opened.pid }, &doors)?;
        }
        for refused in refused {
            self.shared.tell(&Told::Refused { pid: refused.pid, why: refused.why }, &[])?;
        }
        Ok(())
    }
}
