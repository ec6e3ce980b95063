//! What a cgroup's path says of who runs in it: the systemd unit, the
//! container, the pod.

/// The kinds of units that have processes of their own.
const UNITS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];

/// The innermost systemd unit, such as `nginx.service` or
/// `session-3.scope`; slices are no units of anybody's.
pub fn unit(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').map(unescape).find(|part| is_unit(part))
}

/// Whether a name is one of a unit that has processes.
pub fn is_unit(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(name, kind)| !name.is_empty() && UNITS.contains(&kind))
}

/// A unit's name, from the name of its directory: systemd puts an underscore
/// before names that could be the kernel's files (`cpu.service` beside
/// `cpu.max`).
pub fn unescape(directory: &str) -> &str {
    directory.strip_prefix('_').unwrap_or(directory)
}

/// The innermost container's id: the 64 hexadecimal digits of docker, podman,
/// containerd, CRI-O and Kubernetes; the name of an LXC container, or of a
/// machine that systemd knows.
pub fn container(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find_map(container_of)
}

/// The container that a cgroup is made for, by the last part of its path.
pub fn container_of(directory: &str) -> Option<&str> {
    let directory = unescape(directory);
    let name = directory.strip_suffix(".scope").unwrap_or(directory);
    // `docker-ID`, `cri-containerd-ID`, `libpod-ID`, `crio-ID`, or the ID
    // alone; `SLICE:cri-containerd:ID` where containerd and the kubelet
    // disagree on who manages cgroups.
    let (engine, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        // What watches over a container runs outside of it.
        return (!engine.ends_with("conmon")).then_some(id);
    }
    let lxc = directory.strip_prefix("lxc.payload.");
    // Virtual machines are none of ours: nothing in them connects here.
    let machine = || {
        let scope = directory.strip_suffix(".scope").and_then(|name| name.strip_prefix("machine-"));
        let service = || directory.strip_suffix(".service").and_then(|name| name.strip_prefix("systemd-nspawn@"));
        scope.or_else(service).filter(|name| !name.starts_with("qemu"))
    };
    lxc.or_else(machine).filter(|name| !name.is_empty())
}

/// The uid of the Kubernetes pod, where the kubelet manages the cgroup.
pub fn pod(cgroup: &str) -> Option<String> {
    if !cgroup.contains("kubepods") {
        return None;
    }
    cgroup.rsplit('/').find_map(|part| {
        // `kubepods-burstable-podUID.slice` with underscores for dashes, which
        // would mean a slice below; `podUID` without systemd; and as the first
        // part of `SLICE:cri-containerd:ID`.
        let part = part.split(':').next().unwrap_or(part);
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = part.rsplit_once("-pod").map_or(part.strip_prefix("pod"), |(_, uid)| Some(uid))?;
        let fits = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
        fits.then(|| uid.replace('_', "-"))
    })
}

/// The user in whose session or services a cgroup is.
pub fn user(cgroup: &str) -> Option<u32> {
    cgroup.split('/').find_map(|part| part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_containers() {
        let id = "0123456789abcdef".repeat(4);
        for (path, expected_unit, expected) in [
            ("/system.slice/nginx.service", Some("nginx.service"), None),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-a@1.service", Some("app-a@1.service"), None),
            ("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope"), None),
            ("/system.slice/_cpu.service", Some("cpu.service"), None),
            ("/", None, None),
            ("/system.slice", None, None),
            (&format!("/system.slice/docker-{id}.scope"), Some(&*format!("docker-{id}.scope")), Some(&*id)),
            (&format!("/docker/{id}"), None, Some(&*id)),
            (&format!("/machine.slice/libpod-{id}.scope/container"), Some(&*format!("libpod-{id}.scope")), Some(&*id)),
            (&format!("/libpod_parent/libpod-{id}"), None, Some(&*id)),
            (&format!("/machine.slice/libpod-conmon-{id}.scope"), Some(&*format!("libpod-conmon-{id}.scope")), None),
            (&format!("/default/{id}"), None, Some(&*id)),
            (
                &format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                Some(&*format!("cri-containerd-{id}.scope")),
                Some(&*id),
            ),
            (
                &format!("/kubepods.slice/kubepods-pod1.slice/crio-{id}.scope/container"),
                Some(&*format!("crio-{id}.scope")),
                Some(&*id),
            ),
            (&format!("/pod1.slice/crio-conmon-{id}.scope"), Some(&*format!("crio-conmon-{id}.scope")), None),
            (&format!("/kubepods/burstable/pod1/{id}"), None, Some(&*id)),
            (
                &format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}"),
                Some("containerd.service"),
                Some(&*id),
            ),
            ("/lxc.payload.web/system.slice/nginx.service", Some("nginx.service"), Some("web")),
            ("/lxc.monitor.web", None, None),
            ("/machine.slice/machine-debian.scope/payload/init.scope", Some("init.scope"), Some("debian")),
            ("/machine.slice/systemd-nspawn@web.service/payload", Some("systemd-nspawn@web.service"), Some("web")),
            (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", Some(r"machine-qemu\x2d1\x2dvm.scope"), None),
        ] {
            assert_eq!((unit(path), container(path)), (expected_unit, expected), "{path}");
        }
    }

    #[test]
    fn pods_and_users() {
        let uid = "0f3d1b0e-2c9a-4d5e-8f70-112233445566";
        let (slice, id) = (uid.replace('-', "_"), "ab".repeat(32));
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/crio-{id}.scope"),
            format!("/kubepods/besteffort/pod{uid}/{id}"),
            format!("/kubepods/pod{uid}/{id}"),
            format!("/system.slice/containerd.service/kubepods-besteffort-pod{slice}.slice:cri-containerd:{id}"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice}.slice/cri-containerd-{id}.scope"
            ),
        ] {
            assert_eq!((pod(&path).as_deref(), container(&path)), (Some(uid), Some(&*id)), "{path}");
        }
        // As static pods of the control plane are called.
        let digest = "8d4f0ff4fa1ee07d25de7f70a4d16bd2";
        assert_eq!(pod(&format!("/kubepods/burstable/pod{digest}/{id}")).as_deref(), Some(digest));
        for path in ["/kubepods", "/kubepods.slice/kubepods-burstable.slice", "/podcast/podman", "/kubepods/podcast/x"]
        {
            assert_eq!(pod(path), None, "{path}");
        }
        assert_eq!(user("/user.slice/user-1000.slice/session-3.scope"), Some(1000));
        assert_eq!(user("/system.slice/user-x.slice"), None);
    }
}
