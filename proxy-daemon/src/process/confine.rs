//! Giving up what is no longer needed: user, capabilities, new privileges,
//! files, system calls.
//!
//! In: what a process has yet to do. Out: a process that can do that and
//! nothing else, and cannot get back. To be called while there is one thread:
//! capabilities and Landlock hold for a thread and those that it starts.
use std::{io, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::unistd::{Gid, Group, Uid, User, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use serde::{Deserialize, Serialize};

use super::calls::{self, Role};

/// Whom a process becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// By name or number.
    pub fn find(text: &str) -> Option<Self> {
        let user = match text.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(text),
        };
        let user = user.ok().flatten()?;
        Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }
}

/// A group's number, by name or number.
pub fn find_group(text: &str) -> Option<u32> {
    if let Ok(gid) = text.parse() {
        return Some(gid);
    }
    Some(Group::from_name(text).ok().flatten()?.gid.as_raw())
}

/// What a process has yet to do.
#[derive(Clone, Debug)]
pub struct Needs {
    pub role: Role,
    /// `None`: stays who it is.
    pub account: Option<Account>,
    /// On kernels that want it for every use of BPF (before 5.19).
    pub bpf: bool,
    /// Files, or everything below folders. Not heeded for the porter, which can
    /// open what its user can, to read.
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
#[error("{doing} failed ({cause}): {remedy}")]
pub struct ConfineError {
    doing: &'static str,
    cause: String,
    remedy: &'static str,
}

impl ConfineError {
    /// What the process exits with: the system lacks something.
    pub fn exit_code(&self) -> u8 {
        69
    }

    fn of(doing: &'static str, remedy: &'static str) -> impl FnOnce(String) -> Self {
        move |cause| Self { doing, cause, remedy }
    }
}

/// Gives up everything else. What the kernel does not know (Landlock before
/// 5.13, parts of it later) is told as a sentence each.
pub fn confine(needs: &Needs) -> Result<Vec<String>, ConfineError> {
    const START: &str = "start the daemon as root, with CAP_SETUID, CAP_SETGID and CAP_SETPCAP";
    let mut less = Vec::new();
    become_account(needs).map_err(|error| ConfineError::of("giving up privileges", START)(error.to_string()))?;
    set_no_new_privs(true).map_err(|error| ConfineError::of("giving up new privileges", START)(error.to_string()))?;
    // Landlock keeps a process from knowing which namespaces others are in,
    // whatever its capabilities are.
    let confined =
        if matches!(needs.role, Role::Porter | Role::Filter) { Ok(RulesetStatus::FullyEnforced) } else { files(needs) };
    match confined {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(RulesetStatus::PartiallyEnforced) => {
            less.push("this kernel knows a part of Landlock only; the rest is not confined".to_owned());
        }
        Ok(RulesetStatus::NotEnforced) => {
            less.push("this kernel has no Landlock: which files can be opened rests on their owners alone".to_owned());
        }
        Err(error) => {
            let remedy = "a folder in the configuration may be missing";
            return Err(ConfineError::of("confining files (Landlock)", remedy)(error.to_string()));
        }
    }
    calls::confine(needs.role).map_err(ConfineError::of(
        "confining system calls (seccomp)",
        "a kernel with CONFIG_SECCOMP_FILTER is needed",
    ))?;
    Ok(less)
}

/// What a part keeps.
fn of_role(role: Role) -> CapabilitySet {
    match role {
        Role::Server | Role::Keeper | Role::Warden => CapabilitySet::empty(),
        // To enter network namespaces; to know which ones others are in.
        Role::Porter => CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE,
        // To change its table and mark sockets; to find the process that has
        // a socket among others' files.
        Role::Filter => CapabilitySet::NET_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH,
    }
}

/// The names of capabilities that a part keeps, and that this process does not
/// have.
pub fn missing(role: Role) -> Vec<String> {
    let permitted = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    (of_role(role) - permitted).iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

fn become_account(needs: &Needs) -> io::Result<()> {
    let mut kept = of_role(needs.role) & capabilities(None)?.permitted;
    kept.set(CapabilitySet::BPF, needs.bpf);
    clear_ambient_capability_set()?;
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that the kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(Account { uid, gid }) = needs.account {
        set_keep_capabilities(true)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[gid])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        set_keep_capabilities(false)?;
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(Into::into)
}

/// Nothing but what is needed can be opened, and no TCP port be bound.
fn files(needs: &Needs) -> Result<RulesetStatus, landlock::RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write =
        read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate | AccessFs::Refer;
    // What the fifth and sixth versions know; newer ones know more kinds of
    // access that nothing here needs to have taken away.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp)?;
    if needs.role != Role::Warden {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    // The service manager may be reached by an abstract socket.
    let abstract_manager =
        std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"));
    if !abstract_manager {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
    }
    let confined = ruleset
        .create()?
        .add_rules(path_beneath_rules(&needs.read, read))?
        .add_rules(path_beneath_rules(&needs.write, write))?
        .restrict_self()?;
    Ok(confined.ruleset)
}

/// Whether this kernel asks for CAP_BPF also of who only uses a map: tried by
/// a thread that has nothing.
pub fn wants_capability(try_it: impl FnOnce() -> bool + Send) -> bool {
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let none = CapabilitySet::empty();
            let given_up =
                set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
            given_up.is_ok() && try_it()
        });
        !tried.join().unwrap_or(false)
    })
}

/// What can be tried of what a confined process must not be able to do, from
/// within it. Each is what the kernel answered.
pub fn attempts(key: &std::path::Path) -> Vec<(String, Option<io::Error>)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let raw = |family| socket(family, SockType::Raw, SockFlag::empty(), None).map(drop).map_err(io::Error::from);
    let packet = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).map(drop);
    let results = [
        (format!("open {}", key.display()), std::fs::File::open(key).map(drop)),
        ("open /etc/shadow".to_owned(), std::fs::File::open("/etc/shadow").map(drop)),
        ("open a raw IPv4 socket".to_owned(), raw(AddressFamily::Inet)),
        ("open a raw IPv6 socket".to_owned(), raw(AddressFamily::Inet6)),
        ("open a packet socket".to_owned(), packet().map_err(io::Error::from)),
        ("run a program".to_owned(), std::process::Command::new("/bin/true").status().map(drop)),
        ("listen on a TCP port".to_owned(), std::net::TcpListener::bind(("127.0.0.1", 0)).map(drop)),
        ("become root".to_owned(), nix::unistd::setuid(Uid::from_raw(0)).map_err(io::Error::from)),
    ];
    results.into_iter().map(|(what, result)| (what, result.err())).collect()
}
