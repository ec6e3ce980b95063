//! `--fail closed`, once the daemon is gone: a small process of ours outlives
//! it and holds on to what is attached, so that the target's connects are
//! refused where otherwise the kernel would let them go direct.
//!
//! In: descriptors, by messages over a socket ([`Message`]), then the socket's
//! end. Out: nothing after a goodbye; without one the gate is shut at once
//! (the listeners stay open until then, so that no connect meets a stranger on
//! their ports), it says so, and stays until the target's cgroup is gone or
//! somebody ends it: `retryscope bypass`, or the instance that follows.
use std::{
    ffi::CStr,
    fs,
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_name,
        signal::{SigSet, SigmaskHow, sigprocmask},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
            socketpair,
        },
    },
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use super::{
    Role,
    confine::{Needs, confine},
};

/// The hidden first argument that makes this binary the warden.
pub const WARDEN: &str = "__warden";
/// Descriptors in one message; an attachment is eight.
const MAX_DESCRIPTORS: usize = 32;
const MAX_MESSAGE: usize = 16 * 1024;
/// What a warden is called that refuses connections.
const SHUT: &CStr = c"retryscope-shut";
/// How long one may take to end.
const PATIENCE: u16 = 5000;
/// How often it is looked after the target's cgroup; the kernel tells of its
/// processes, not of its end.
const LOOK: u16 = 1000;

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// The gate's map, and the listeners.
    Begin {
        ports: Vec<u16>,
        target: String,
        cgroup: Option<PathBuf>,
        /// To give up what it does not need; with CAP_BPF where that says so.
        confined: Option<bool>,
    },
    /// Wardens that earlier instances have left, to be ended.
    Relieve,
    /// What is attached in one place.
    Hold {
        number: u64,
    },
    LetGo {
        number: u64,
    },
    Goodbye,
}

/// The daemon's handle. Dropping it ends the warden, and with it what only it
/// holds.
#[derive(Debug)]
pub struct Warden {
    child: Child,
    socket: OwnedFd,
}

/// What a warden is told of what it watches over.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// For what it says.
    pub ports: &'a [u16],
    pub target: &'a str,
    /// Once it is gone, nobody is left to be refused. `None`: somebody ends
    /// the warden.
    pub cgroup: Option<&'a Path>,
    /// It is to give up what it does not need; `Some(true)`: but for CAP_BPF.
    pub confined: Option<bool>,
}

impl Warden {
    /// Starts one, which waits for its post. A name tells it apart from those
    /// of others ([`left`]).
    pub fn start(name: &str) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(WARDEN)
            .args((!name.is_empty()).then_some(name))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, socket })
    }

    pub fn begin(&mut self, gate: BorrowedFd<'_>, listeners: &[BorrowedFd<'_>], post: &Post<'_>) -> io::Result<()> {
        let begin = Message::Begin {
            ports: post.ports.to_vec(),
            target: post.target.to_owned(),
            cgroup: post.cgroup.map(Into::into),
            confined: post.confined,
        };
        let mut descriptors = vec![gate];
        descriptors.extend(listeners);
        self.send(&begin, &descriptors)
    }

    /// Has it end others, by descriptors of their processes.
    pub fn relieve(&mut self, others: &[OwnedFd]) -> io::Result<()> {
        others.chunks(MAX_DESCRIPTORS).try_for_each(|some| {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            self.send(&Message::Relieve, &some)
        })
    }

    /// Holds on to what is attached in a place.
    pub fn hold(&mut self, number: u64, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&Message::Hold { number }, descriptors)
    }

    /// Lets go of a place.
    pub fn let_go(&mut self, number: u64) {
        // One that is gone holds nothing.
        let _ = self.send(&Message::LetGo { number }, &[]);
    }

    fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        if self.send(&Message::Goodbye, &[]).is_err() {
            // It hears nothing any more; what it holds must not stay.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// The warden's own life. `open` opens the gate whose map it is given, to be
/// shut; that says whether it was: what is bypassed is not to be refused.
pub fn main<S: FnOnce() -> Result<bool, String>>(open: impl FnOnce(OwnedFd) -> Result<S, String>) -> ExitCode {
    // Signals for the terminal's foreground are not meant for this; but the
    // one that ends it is, also where the daemon has kept it back.
    let _ = setsid();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let socket = io::stdin();
    let Ok((Some(Message::Begin { ports, target, cgroup, confined }), descriptors)) = receive(socket.as_raw_fd())
    else {
        return ExitCode::from(64);
    };
    let mut descriptors = descriptors.into_iter();
    let Some(gate) = descriptors.next() else { return ExitCode::from(64) };
    let listeners: Vec<OwnedFd> = descriptors.collect();
    let shut = open(gate);
    if let Some(bpf) = confined {
        let needs = Needs { role: Role::Warden, account: None, bpf, read: Vec::new(), write: Vec::new() };
        if let Err(error) = confine(&needs) {
            // It works all the same.
            say(&format!("the process that refuses connections should retryscope die keeps its privileges: {error}"));
        }
    }
    let mut held: Vec<(u64, Vec<OwnedFd>)> = Vec::new();
    loop {
        match receive(socket.as_raw_fd()) {
            Ok((Some(Message::Hold { number }), descriptors)) => held.push((number, descriptors)),
            Ok((Some(Message::LetGo { number }), _)) => held.retain(|(held, _)| *held != number),
            Ok((Some(Message::Relieve), others)) => others.iter().for_each(end),
            Ok((Some(Message::Goodbye), _)) => return ExitCode::SUCCESS,
            Ok((Some(Message::Begin { .. }), _)) => {}
            Ok((None, _)) | Err(_) => break,
        }
    }
    match shut.and_then(|shut| shut()) {
        Ok(true) => {}
        Ok(false) => {
            say("retryscope has died; since it was bypassed, connections go direct");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // Then they cannot be refused; better that they go direct.
            say(&format!("retryscope has died, and --fail closed cannot be kept ({error}): connections go direct"));
            return ExitCode::FAILURE;
        }
    }
    // How others tell it from one whose instance lives.
    let _ = set_name(SHUT);
    drop(listeners);
    let ports = match &ports[..] {
        [] => "any port".to_owned(),
        ports => format!("port {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    };
    say(&format!(
        "retryscope has died; as --fail closed asks, new connections of {target} to {ports} are refused. \
         `retryscope bypass` or `kill {}` lets them go direct.",
        std::process::id()
    ));
    match &cgroup {
        Some(cgroup) => wait_gone(cgroup),
        None => loop {
            // A signal ends this.
            let _ = poll(&mut [], PollTimeout::NONE);
        },
    }
    drop(held);
    ExitCode::SUCCESS
}

/// Ends a warden: the kernel lets go of what it alone holds.
fn end(warden: &OwnedFd) {
    // One that is gone is what is wanted.
    let _ = rustix::process::pidfd_send_signal(warden, rustix::process::Signal::TERM);
}

/// The wardens that refuse connections since their instances have died, as
/// descriptors: those of a name, or all.
pub fn left(name: Option<&str>) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        let Some(descriptor) = rustix::process::Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        else {
            continue;
        };
        // Looked at once it is held: it is this process, and no later one.
        if is_left(pid, name) {
            found.push(descriptor);
        }
    }
    found
}

/// Whether a process is one of those that [`left`] finds.
pub fn is_left(pid: i32, name: Option<&str>) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = read("cmdline");
    let mut words = line.split(|byte| *byte == 0).skip(1);
    words.next() == Some(WARDEN.as_bytes())
        && name.is_none_or(|name| words.next() == Some(name.as_bytes()))
        && read("comm").trim_ascii() == SHUT.to_bytes()
}

/// Ends wardens, and waits until they have ended. How many there were.
pub fn end_all(wardens: &[OwnedFd]) -> usize {
    for warden in wardens {
        end(warden);
        let mut ended = [PollFd::new(warden.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ended, PollTimeout::from(PATIENCE));
    }
    wardens.len()
}

fn say(text: &str) {
    // Nobody there, nobody to tell.
    let _ = writeln!(io::stderr(), "retryscope: {text}");
}

/// The next message; `None` at the socket's end.
fn receive(socket: RawFd) -> io::Result<(Option<Message>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, descriptors) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let mut descriptors = Vec::new();
                for control in received.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(found) = control {
                        // SAFETY: the kernel has just opened these for us.
                        #[allow(unsafe_code)]
                        descriptors.extend(found.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                    }
                }
                break (received.bytes, descriptors);
            }
        }
    };
    if length == 0 {
        return Ok((None, descriptors));
    }
    Ok((Some(serde_json::from_slice(&bytes[..length])?), descriptors))
}

/// Waits until a cgroup has been removed, or no process is left that could
/// come back to it.
fn wait_gone(cgroup: &Path) {
    let Ok(directory) = fs::File::open(cgroup.join("cgroup.events")) else { return };
    while cgroup.exists() {
        let mut events = [PollFd::new(std::os::fd::AsFd::as_fd(&directory), PollFlags::POLLPRI)];
        // What woke us is looked at above.
        let _ = poll(&mut events, PollTimeout::from(LOOK));
        let _ = fs::read(cgroup.join("cgroup.events"));
    }
}
