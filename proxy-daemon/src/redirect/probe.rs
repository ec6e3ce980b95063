//! What `retryscope doctor` asks of the kernel. Each hook is probed by loading
//! the program that the product would load.
use std::fs;

use aya::util::KernelVersion;
use serde::Serialize;

use super::{
    btf::{KERNEL_BTF, Layout},
    cgroup, listen,
    load::{self, Loaded, Settings},
    tproxy, tree,
};

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub name: &'static str,
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; for a failure only.
    pub remedy: Option<&'static str>,
    /// Nothing works without it; else something is less good.
    pub required: bool,
}

impl Probe {
    fn new(name: &'static str, found: Result<String, String>, remedy: &'static str) -> Self {
        match found {
            Ok(detail) => Self { name, ok: true, detail, remedy: None, required: true },
            Err(detail) => Self { name, ok: false, detail, remedy: Some(remedy), required: true },
        }
    }

    fn optional(self) -> Self {
        Self { required: false, ..self }
    }
}

/// What the programs need, by number (linux/capability.h) and name.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const AS_ROOT: &str = "run as root (sudo), or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";

/// Asks the kernel for everything that a redirection needs. Changes nothing.
pub fn probe() -> Vec<Probe> {
    let mut probes = vec![
        kernel(),
        Probe::new("capabilities", capabilities(), AS_ROOT),
        Probe::new(
            "cgroup2",
            cgroup::Mount::find().map(|mount| mount.point().display().to_string()).map_err(|error| error.to_string()),
            "mount it: mount -t cgroup2 none /sys/fs/cgroup",
        ),
        Probe::new("own cgroup", own_cgroup(), "run where the whole cgroup hierarchy is visible"),
        Probe::new(
            "kernel types (BTF)",
            types(),
            "without it parents, process trees (--pid) and the commands of processes that end at once are not known; \
             CONFIG_DEBUG_INFO_BTF brings it",
        )
        .optional(),
        Probe::new(
            "pid namespace",
            pid_namespace(),
            "run in the host's pid namespace: the kernel names processes by its numbers",
        )
        .optional(),
        Probe::new(
            "network namespace cookie",
            listen::netns_cookie().map(|cookie| cookie.to_string()).map_err(|error| error.to_string()),
            "Linux 5.14 or newer is needed",
        ),
        Probe::new("listeners", listeners(), "bring the loopback up: ip link set lo up"),
    ];
    probes.extend(hooks());
    probes.push(
        Probe::new(
            "UDP refusal says ECONNREFUSED",
            yes(load::has_set_retval(), "bpf_set_retval"),
            "clients see EPERM instead, and fall back from QUIC all the same; Linux 5.18 brings it",
        )
        .optional(),
    );
    probes.push(
        Probe::new(
            "MPTCP clients see their peer",
            yes(load::has_mptcp() && Layout::of_kernel().mptcp, "bpf_skc_to_mptcp_sock"),
            "getpeername() of an MPTCP client shows the daemon; Linux 5.19 with BTF brings it",
        )
        .optional(),
    );
    let tproxy = Probe::new(
        "TPROXY",
        tproxy::rehearse().map_err(|error| error.to_string()),
        "without it, cgroups are redirected all the same, but no network namespace (--netns) and no gateway (--ingress)",
    );
    probes.push(tproxy.optional());
    let choice = choice(&mut probes);
    probes.push(choice);
    probes
}

/// What `--redirect auto` would take. Where it is TPROXY, what only eBPF needs
/// is no longer required.
fn choice(probes: &mut [Probe]) -> Probe {
    let shared = ["kernel", "listeners"];
    let missing: Vec<&str> =
        probes.iter().filter(|probe| probe.required && !probe.ok).map(|probe| probe.name).collect();
    let tproxy = probes.iter().any(|probe| probe.name == "TPROXY" && probe.ok);
    let way = if missing.is_empty() {
        Ok("eBPF".to_owned())
    } else if tproxy && !missing.iter().any(|name| shared.contains(name)) {
        let why = format!("TPROXY, since eBPF lacks: {}", missing.join(", "));
        for probe in probes.iter_mut().filter(|probe| !shared.contains(&probe.name)) {
            probe.required = false;
        }
        Ok(why)
    } else {
        Err(format!("neither eBPF nor TPROXY; missing: {}", missing.join(", ")))
    };
    Probe::new("redirect", way, "see the failures above")
}

/// Whether the capabilities that the programs need are in force.
pub(super) fn has_capabilities() -> bool {
    capabilities().is_ok()
}

fn kernel() -> Probe {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let new_enough = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 14, 0));
    Probe::new("kernel", if new_enough { Ok(release) } else { Err(release) }, "Linux 5.14 or newer is needed")
}

fn capabilities() -> Result<String, String> {
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/thread-self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .ok_or("/proc/thread-self/status tells no capabilities")?;
    let has = |number: u32| effective >> number & 1 == 1;
    // The old capability includes the two newer ones, not the network's.
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(number, name)| !has(*number) && (*name == "CAP_NET_ADMIN" || !has(SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() { Ok("sufficient".into()) } else { Err(format!("missing {}", missing.join(", "))) }
}

fn own_cgroup() -> Result<String, String> {
    cgroup::own().map(|path| path.display().to_string()).map_err(|error| error.to_string())
}

fn types() -> Result<String, String> {
    let layout = Layout::of_kernel();
    if layout.knows_tasks() && layout.knows_commands() {
        Ok(KERNEL_BTF.into())
    } else {
        Err(format!("{KERNEL_BTF} is missing or unknown"))
    }
}

fn pid_namespace() -> Result<String, String> {
    if tree::is_initial_namespace("pid") { Ok("the host's".into()) } else { Err("a container's".into()) }
}

fn listeners() -> Result<String, String> {
    let listeners = listen::open().map_err(|error| error.to_string())?;
    Ok(if listeners.v6.is_some() { "IPv4 and IPv6" } else { "IPv4 only; IPv6 goes direct" }.into())
}

fn yes(holds: bool, what: &str) -> Result<String, String> {
    if holds { Ok(what.into()) } else { Err(format!("{what} is not there")) }
}

fn hooks() -> Vec<Probe> {
    const REMEDY: &str = "Linux 5.14 or newer with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL is needed, and root";
    let settings = Settings {
        listener_v4: 1,
        listener_v6: 1,
        netns_cookie: 1,
        every_port: true,
        refuse_udp: true,
        only_processes: true,
        layout: Layout::of_kernel(),
    };
    let mut loaded = match Loaded::new(load::OBJECT, &settings) {
        Ok(loaded) => loaded,
        Err(error) => return vec![Probe::new("maps", Err(error.to_string()), REMEDY)],
    };
    let names = load::DIVERTING.into_iter().chain(load::NAMING).chain([load::HANDOVER]);
    names
        .chain(load::TRACKING.map(|(name, _)| name))
        .map(|name| {
            let found = loaded.load(name).map(|()| "loads".to_owned()).map_err(|error| error.to_string());
            Probe::new(hook_name(name), found, REMEDY)
        })
        .collect()
}

fn hook_name(program: &'static str) -> &'static str {
    program.strip_prefix("rs_").unwrap_or(program)
}
