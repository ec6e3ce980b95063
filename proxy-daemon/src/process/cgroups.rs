//! What a cgroup's path says of who runs in it: the systemd unit, the
//! container.

/// The innermost systemd unit, such as `nginx.service` or
/// `session-3.scope`; slices are no units of anybody's.
pub fn unit(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find(|part| {
        part.rsplit_once('.')
            .is_some_and(|(name, kind)| !name.is_empty() && matches!(kind, "service" | "scope" | "socket"))
    })
}

/// The innermost container's id: what docker, podman, containerd, CRI-O and
/// Kubernetes name by 64 hexadecimal digits.
pub fn container(cgroup: &str) -> Option<&str> {
    cgroup.rsplit(['/', ':']).find_map(|part| {
        let name = part.strip_suffix(".scope").unwrap_or(part);
        // `docker-ID`, `cri-containerd-ID`, `libpod-ID`, or the ID alone;
        // `SLICE:cri-containerd:ID` where containerd and the kubelet
        // disagree on who manages cgroups.
        let id = name.rsplit('-').next().unwrap_or(name);
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    })
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
            ("/", None, None),
            ("/system.slice", None, None),
            (&format!("/system.slice/docker-{id}.scope"), Some(&*format!("docker-{id}.scope")), Some(&*id)),
            (&format!("/docker/{id}"), None, Some(&*id)),
            (&format!("/machine.slice/libpod-{id}.scope/container"), Some(&*format!("libpod-{id}.scope")), Some(&*id)),
            (
                &format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                Some(&*format!("cri-containerd-{id}.scope")),
                Some(&*id),
            ),
            (&format!("/kubepods/burstable/pod1/{id}"), None, Some(&*id)),
            (
                &format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}"),
                Some("containerd.service"),
                Some(&*id),
            ),
        ] {
            assert_eq!((unit(path), container(path)), (expected_unit, expected), "{path}");
        }
    }
}
