//! Starting the command: the steps between our own start and its `exec`,
//! done by a fresh process of ours so that nothing is done between a fork
//! and an exec in a process with threads.
//!
//! In: a [`Spec`] on a socket. Out: the command in the same pid, in its
//! cgroup, with its view of the trust stores, as its user. If a step fails,
//! one [`Refusal`] on the same socket; success closes it.
use std::{
    ffi::{CString, OsString},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use serde::{Deserialize, Serialize};

/// The hidden first argument that makes this binary the launcher.
pub const LAUNCH: &str = "__launch";
/// What the launcher says just before it turns into the command.
const MARK: u8 = b'!';
/// What the daemon says on a connection of the self-test.
pub const NONCE: usize = 16;
/// How long the self-test may take: it never leaves this machine.
const PROBE: Duration = Duration::from_secs(5);
/// A specification is a few kilobytes; the environment is the largest part.
const MAX_MESSAGE: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Addresses that are redirected if redirection works, and what is then
    /// said there.
    pub probes: Vec<SocketAddr>,
    pub nonce: [u8; NONCE],
    /// Files to lay over others, in a mount namespace of the command's own.
    /// `None`: no namespace.
    pub binds: Option<Vec<(OsString, OsString)>>,
    /// `None`: stay who we are.
    pub user: Option<Credentials>,
    pub program: OsString,
    /// The command's arguments, its name first.
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Why the command was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub message: String,
    /// What the caller should exit with.
    pub code: u8,
}

/// A launcher that waits for its specification.
#[derive(Debug)]
pub struct Launcher {
    pub child: Child,
    socket: UnixStream,
}

impl Launcher {
    /// Starts the launcher, which joins the command's cgroup (its directory),
    /// if it has one, at once: the kernel takes its time for that. Standard
    /// input and output are the caller's.
    pub fn start(cgroup: Option<&Path>) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // Only this descriptor crosses; the launcher closes it on exec.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = Command::new("/proc/self/exe")
            .arg0("retryscope")
            .arg(LAUNCH)
            .arg(theirs.as_raw_fd().to_string())
            .arg(cgroup.unwrap_or(Path::new("")))
            .stdin(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, socket: ours })
    }

    /// Ends a launcher that is not needed after all.
    pub fn stop(self) -> std::io::Result<()> {
        let Self { mut child, socket } = self;
        // Without a specification it ends by itself.
        drop(socket);
        child.wait().map(|_| ())
    }

    /// Hands over what to do.
    pub fn send(&mut self, spec: &Spec) -> std::io::Result<()> {
        let mut message = serde_json::to_vec(spec)?;
        message.push(b'\n');
        self.socket.write_all(&message)
    }

    /// Waits until the command runs, or cannot.
    pub fn wait_started(&mut self) -> Result<(), Refusal> {
        let mut answer = Vec::new();
        let read = Read::by_ref(&mut self.socket).take(MAX_MESSAGE).read_to_end(&mut answer);
        let marked = answer.first() == Some(&MARK);
        if read.is_ok() && marked && answer.len() == 1 {
            return Ok(());
        }
        let refusal = answer.get(usize::from(marked)..).unwrap_or_default();
        Err(serde_json::from_slice(refusal).unwrap_or_else(|_| Refusal {
            message: "the launcher ended before it could start the command".into(),
            code: 70,
        }))
    }
}

/// The launcher's own life; returns only where the command was not started.
pub fn main(descriptor: &str, cgroup: &Path) -> ExitCode {
    let Some(mut socket) = descriptor.parse::<RawFd>().ok().filter(|number| *number > 2).and_then(adopt) else {
        eprintln!("retryscope: {LAUNCH} is for retryscope's own use");
        return ExitCode::from(64);
    };
    let joined = if cgroup.as_os_str().is_empty() { Ok(()) } else { join(cgroup) };
    let mut line = Vec::new();
    let read = BufReader::new(Read::by_ref(&mut socket).take(MAX_MESSAGE)).read_until(b'\n', &mut line);
    if !read.is_ok_and(|length| length > 0) {
        // The daemon is gone or has changed its mind.
        return ExitCode::from(70);
    }
    let refusal = match (joined, serde_json::from_slice::<Spec>(&line)) {
        (Ok(()), Ok(spec)) => launch(&spec, &mut socket),
        (Ok(()), Err(error)) => refuse(70, format!("the launcher was told something it cannot read ({error})")),
        (Err(refusal), _) => refusal,
    };
    let code = refusal.code;
    if let Ok(message) = serde_json::to_vec(&refusal) {
        // A daemon that is gone needs no answer.
        let _ = socket.write_all(&message);
    }
    ExitCode::from(code)
}

/// Takes over an inherited socket; it will not survive the next exec.
fn adopt(number: RawFd) -> Option<UnixStream> {
    // SAFETY: the number was given to this process by its parent for this
    // very purpose, and nothing else here uses it. A wrong number is caught
    // by the next call.
    #[allow(unsafe_code)]
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(UnixStream::from(descriptor))
}

/// Does everything up to the exec; what returns is why it could not.
fn launch(spec: &Spec, socket: &mut UnixStream) -> Refusal {
    match prepare(spec) {
        Err(refusal) => refusal,
        Ok(()) => {
            let mut command = Command::new(&spec.program);
            if let Some((name, arguments)) = spec.arguments.split_first() {
                command.arg0(name).args(arguments);
            }
            command.env_clear().envs(spec.environment.iter().map(|(name, value)| (name, value)));
            // A daemon that is gone leaves the command to itself.
            let _ = socket.write_all(&[MARK]);
            let error = command.exec();
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            refuse(code, format!("cannot run {}: {error}", Path::new(&spec.program).display()))
        }
    }
}

fn refuse(code: u8, message: String) -> Refusal {
    Refusal { message, code }
}

fn join(cgroup: &Path) -> Result<(), Refusal> {
    std::fs::write(cgroup.join("cgroup.procs"), "0")
        .map_err(|error| refuse(77, format!("cannot move the command into {}: {error}", cgroup.display())))
}

fn prepare(spec: &Spec) -> Result<(), Refusal> {
    for address in &spec.probes {
        probe(*address, &spec.nonce)?;
    }
    if let Some(binds) = &spec.binds {
        own_mounts(binds)?;
    }
    if let Some(user) = &spec.user {
        become_user(user)
            .map_err(|error| refuse(77, format!("cannot become uid {} and gid {}: {error}", user.uid, user.gid)))?;
    }
    // The daemon blocks signals to read them; the command starts with none
    // blocked.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|error| refuse(70, format!("cannot unblock signals: {error}")))
}

/// As [`probed`], for a command that is not started where it fails.
pub fn probe(address: SocketAddr, nonce: &[u8]) -> Result<(), Refusal> {
    probed(address, nonce, PROBE).map_err(|what| {
        refuse(
            69,
            format!(
                "redirection does not work here: {what}; the command was not started (`retryscope doctor` tells what is missing)"
            ),
        )
    })
}

/// Proves that a connection from here is redirected, and that it cannot tell;
/// else says what is wrong.
pub fn probed(address: SocketAddr, nonce: &[u8], patience: Duration) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)
        .map_err(|error| format!("a test connection to {address} failed ({error})"))?;
    let there = stream.peer_addr().map_err(|error| format!("the test connection has no peer ({error})"))?;
    let mut said = [0; NONCE];
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.read_exact(&mut said))
        .map_err(|error| format!("nobody answered a test connection to {address} ({error})"))?;
    if said != *nonce {
        return Err(format!("a test connection to {address} reached another program"));
    }
    if there != address {
        return Err(format!("a test connection to {address} sees its peer as {there}"));
    }
    Ok(())
}

/// A mount namespace of its own, in which some files lie over others.
/// Mounts that appear outside later still appear inside.
fn own_mounts(binds: &[(OsString, OsString)]) -> Result<(), Refusal> {
    let failed = |what: &str, error: nix::Error| {
        refuse(77, format!("cannot {what}: {error}; `--no-mount` does without (trust then rests on variables alone)"))
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| failed("make a mount namespace for the command", error))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| failed("detach the command's mounts from the system's", error))?;
    for (source, target) in binds {
        let (source, target) = (Path::new(source), Path::new(target));
        mount(Some(source), target, none, MsFlags::MS_BIND, none)
            .map_err(|error| failed(&format!("lay {} over {}", source.display(), target.display()), error))?;
    }
    Ok(())
}

fn become_user(user: &Credentials) -> nix::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(user.gid))?;
    setuid(Uid::from_raw(user.uid))
}

/// The credentials of a user, with every group the system knows for it.
pub fn credentials_of(uid: u32, gid: u32, name: Option<&str>) -> Credentials {
    let groups = name
        .and_then(|name| CString::new(name.as_bytes()).ok())
        .and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok())
        .map_or_else(|| vec![gid], |groups| groups.into_iter().map(Gid::as_raw).collect());
    Credentials { uid, gid, groups }
}

/// Whether a path's file could be run by somebody: a file with an execute bit.
pub fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    !path.as_os_str().as_bytes().is_empty()
        && std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
