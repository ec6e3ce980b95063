//! `--fail closed`, once the daemon is gone: a small process of ours outlives
//! it and holds on to what is attached, so that the target's connects are
//! refused where otherwise the kernel would let them go direct.
//!
//! In: descriptors, by messages over a socket ([`Message`]), then the socket's
//! end. Out: nothing after a goodbye; without one the gate is shut at once
//! (the listeners stay open until then, so that no connect meets a stranger on
//! their ports), it says so, and stays until the target's cgroup is gone or
//! somebody ends it.
use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
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
        signal::{SigSet, SigmaskHow, sigprocmask},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
            socketpair,
        },
    },
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

/// The hidden first argument that makes this binary the warden.
pub const WARDEN: &str = "__warden";
/// Descriptors in one message; an attachment is eight.
const MAX_DESCRIPTORS: usize = 32;
const MAX_MESSAGE: usize = 16 * 1024;
/// How often it is looked after the target's cgroup; the kernel tells of its
/// processes, not of its end.
const LOOK: u16 = 1000;

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// The gate's map, and the listeners.
    Begin {
        ports: Vec<u16>,
        target: String,
        cgroup: PathBuf,
    },
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

impl Warden {
    pub fn start(
        gate: BorrowedFd<'_>,
        listeners: &[BorrowedFd<'_>],
        ports: &[u16],
        target: &str,
        cgroup: &Path,
    ) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(WARDEN)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        let warden = Self { child, socket };
        let begin = Message::Begin { ports: ports.to_vec(), target: target.to_owned(), cgroup: cgroup.to_owned() };
        let mut descriptors = vec![gate];
        descriptors.extend(listeners);
        warden.send(&begin, &descriptors)?;
        Ok(warden)
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

/// The warden's own life. `shut` closes the gate whose map it is given, and
/// says whether it did: what is bypassed is not to be refused.
pub fn main(shut: impl FnOnce(OwnedFd) -> Result<bool, String>) -> ExitCode {
    // Signals for the terminal's foreground are not meant for this; but the
    // one that ends it is, also where the daemon has kept it back.
    let _ = setsid();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let socket = io::stdin();
    let Ok((Some(Message::Begin { ports, target, cgroup }), descriptors)) = receive(socket.as_raw_fd()) else {
        return ExitCode::from(64);
    };
    let mut descriptors = descriptors.into_iter();
    let Some(gate) = descriptors.next() else { return ExitCode::from(64) };
    let listeners: Vec<OwnedFd> = descriptors.collect();
    let mut held: Vec<(u64, Vec<OwnedFd>)> = Vec::new();
    loop {
        match receive(socket.as_raw_fd()) {
            Ok((Some(Message::Hold { number }), descriptors)) => held.push((number, descriptors)),
            Ok((Some(Message::LetGo { number }), _)) => held.retain(|(held, _)| *held != number),
            Ok((Some(Message::Goodbye), _)) => return ExitCode::SUCCESS,
            Ok((Some(Message::Begin { .. }), _)) => {}
            Ok((None, _)) | Err(_) => break,
        }
    }
    match shut(gate) {
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
    drop(listeners);
    let ports = match &ports[..] {
        [] => "any port".to_owned(),
        ports => format!("port {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    };
    say(&format!(
        "retryscope has died; as --fail closed asks, new connections of {target} to {ports} are refused. \
         `kill {}` lets them go direct.",
        std::process::id()
    ));
    wait_gone(&cgroup);
    drop(held);
    ExitCode::SUCCESS
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
