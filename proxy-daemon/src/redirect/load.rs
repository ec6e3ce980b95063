//! Loading the kernel side into the kernel, and attaching it.
use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use super::{
    RedirectError,
    btf::Layout,
    link::{self, Hook},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData},
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};

/// The kernel side as committed beside its source. `cargo xtask ebpf verify`
/// proves that it is what the source gives.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/retryscope.bpf.o"));

/// Programs by the function's name in the kernel side.
pub(super) const DIVERTING: [&str; 4] = ["rs_sendmsg4", "rs_sendmsg6", "rs_connect4", "rs_connect6"];
pub(super) const NAMING: [&str; 2] = ["rs_getpeername4", "rs_getpeername6"];
pub(super) const HANDOVER: &str = "rs_handover";
pub(super) const TRACKING: [(&str, &CStr); 2] =
    [("rs_fork", c"sched_process_fork"), ("rs_exit", c"sched_process_exit")];

const LOADING: &str = "loading the eBPF programs";
const ATTACHING: &str = "attaching the eBPF programs to the cgroup";

/// What the kernel side is told before it is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) listener_v4: u32,
    /// 0 for none.
    pub(super) listener_v6: u32,
    pub(super) netns_cookie: u64,
    pub(super) every_port: bool,
    pub(super) refuse_udp: bool,
    pub(super) only_processes: bool,
    pub(super) layout: Layout,
}

/// A cgroup's directory, opened.
pub(super) fn open(path: &Path) -> Result<File, RedirectError> {
    match File::open(path) {
        Ok(file) if path.join("cgroup.procs").is_file() => Ok(file),
        Ok(_) => Err(RedirectError::NoCgroup { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(RedirectError::Permission { what: "opening the cgroup", cause: error.to_string() })
        }
        Err(_) => Err(RedirectError::NoCgroup { path: path.into() }),
    }
}

/// The kernel side, loaded; programs go into the kernel as they are attached.
#[derive(Debug)]
pub(super) struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    pub(super) fn new(object: &[u8], settings: &Settings) -> Result<Self, RedirectError> {
        let Settings { listener_v4, listener_v6, netns_cookie, layout, .. } = settings;
        let (set_retval, mptcp) = (u32::from(has_set_retval()), u32::from(layout.mptcp && has_mptcp()));
        let (refuse_udp, only_processes) = (u32::from(settings.refuse_udp), u32::from(settings.only_processes));
        let every_port = u32::from(settings.every_port);
        let mut loader = EbpfLoader::new();
        if !settings.only_processes {
            // Not used then, so it need not take its memory.
            loader.map_max_entries("PROCESSES", 1);
        }
        let ebpf = loader
            // Nothing is relocated against the kernel's types.
            .btf(None)
            .override_global("LISTENER_V4", listener_v4, true)
            .override_global("LISTENER_V6", listener_v6, true)
            .override_global("NETNS_COOKIE", netns_cookie, true)
            .override_global("EVERY_PORT", &every_port, true)
            .override_global("REFUSE_UDP", &refuse_udp, true)
            .override_global("HAS_SET_RETVAL", &set_retval, true)
            .override_global("HAS_MPTCP", &mptcp, true)
            .override_global("ONLY_PROCESSES", &only_processes, true)
            .override_global("TASK_TGID", &layout.task_tgid, true)
            .override_global("TASK_GROUP_LEADER", &layout.task_group_leader, true)
            .override_global("TASK_START_BOOTTIME", &layout.task_start_boottime, true)
            .override_global("TASK_REAL_PARENT", &layout.task_real_parent, true)
            .override_global("TASK_SIGNAL", &layout.task_signal, true)
            .override_global("SIGNAL_LIVE", &layout.signal_live, true)
            .override_global("TASK_COMM", &layout.task_comm, true)
            .override_global("TASK_EXEC_ID", &layout.task_exec_id, true)
            .override_global("TASK_MM", &layout.task_mm, true)
            .override_global("MM_ARG_START", &layout.mm_arg_start, true)
            .override_global("MM_ARG_END", &layout.mm_arg_end, true)
            .override_global("TASK_PID", &layout.task_pid, true)
            .override_global("PID_LEVEL", &layout.pid_level, true)
            .override_global("PID_NUMBERS", &layout.pid_numbers, true)
            .load(object)
            .map_err(|error| RedirectError::of(LOADING, &error))?;
        Ok(Self { ebpf })
    }

    /// Watches these ports.
    pub(super) fn watch(&mut self, ports: &[u16]) -> Result<(), RedirectError> {
        let mut watched: HashMap<_, u32, u32> = self.map_mut("PORTS")?;
        for port in ports {
            watched.insert(u32::from(*port), 1, 0).map_err(|error| RedirectError::of(LOADING, &error))?;
        }
        Ok(())
    }

    pub(super) fn processes(&mut self) -> Result<HashMap<&mut MapData, u32, u64>, RedirectError> {
        self.map_mut("PROCESSES")
    }

    /// What follows a process tree.
    pub(super) fn attach_tracking(&mut self) -> Result<Vec<OwnedFd>, RedirectError> {
        const FOLLOWING: &str = "following the target's children";
        TRACKING
            .into_iter()
            .map(|(name, tracepoint)| {
                self.load(name)?;
                let program = self.ebpf.program(name).ok_or_else(|| wrong_object(name))?;
                let program = program.fd().map_err(|error| RedirectError::of(FOLLOWING, &error))?;
                link::trace(program.as_fd(), tracepoint).map_err(|error| RedirectError::of(FOLLOWING, &error))
            })
            .collect()
    }

    /// Loads one program into the kernel, unless it is there.
    pub(super) fn load(&mut self, name: &str) -> Result<(), RedirectError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| wrong_object(name))?;
        let loaded = match program {
            aya::programs::Program::CgroupSockAddr(program) => program.load(),
            aya::programs::Program::SockOps(program) => program.load(),
            aya::programs::Program::RawTracePoint(program) => program.load(),
            _ => return Err(wrong_object(name)),
        };
        match loaded {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
            Err(error) => {
                if let ProgramError::LoadError { verifier_log, .. } = &error {
                    tracing::debug!(program = name, %verifier_log, "refused by the verifier");
                }
                Err(RedirectError::of(LOADING, &error))
            }
        }
    }

    /// A map's descriptor, which keeps it.
    pub(super) fn map(&self, name: &str) -> Result<OwnedFd, RedirectError> {
        let (Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) | Map::SkStorage(map) | Map::PerCpuArray(map)) =
            self.ebpf.map(name).ok_or_else(|| wrong_object(name))?
        else {
            return Err(wrong_object(name));
        };
        map.fd().as_fd().try_clone_to_owned().map_err(|error| RedirectError::of(LOADING, &error))
    }

    /// Attaches one program to a cgroup; it stays while the descriptor lives.
    pub(super) fn attach(&mut self, name: &str, cgroup: &File) -> Result<OwnedFd, RedirectError> {
        self.load(name)?;
        let hook = Hook::of(name).ok_or_else(|| wrong_object(name))?;
        let program = self.ebpf.program(name).ok_or_else(|| wrong_object(name))?;
        let program = program.fd().map_err(|error| RedirectError::of(ATTACHING, &error))?;
        link::create(program.as_fd(), cgroup.as_fd(), hook).map_err(|error| RedirectError::of(ATTACHING, &error))
    }

    fn map_mut<'a, M>(&'a mut self, name: &str) -> Result<M, RedirectError>
    where
        M: TryFrom<&'a mut Map>,
    {
        self.ebpf.map_mut(name).and_then(|map| M::try_from(map).ok()).ok_or_else(|| wrong_object(name))
    }
}

fn wrong_object(name: &str) -> RedirectError {
    RedirectError::Kernel {
        what: LOADING,
        cause: format!("the built-in object has no `{name}`"),
        remedy: "The program was built wrongly: run `cargo xtask ebpf build` and build it again",
    }
}

/// A refusal can say ECONNREFUSED (Linux 5.18); else it is EPERM.
pub(super) fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// `getpeername()` can be answered for MPTCP sockets (Linux 5.19).
pub(super) fn has_mptcp() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_skc_to_mptcp_sock).unwrap_or(false)
}
