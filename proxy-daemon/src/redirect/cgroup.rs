//! cgroup v2: where it is mounted, which cgroup a process is in, and making
//! cgroups of our own.
//!
//! A cgroup has two names. `/proc/PID/cgroup` gives its path from the root of
//! the hierarchy, such as `/user.slice/a.scope`; everything here takes and
//! gives its directory, such as `/sys/fs/cgroup/user.slice/a.scope`. The mount
//! may show only a part of the hierarchy (a bind mount, a cgroup namespace):
//! [`Mount`] translates.
use std::{
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    #[error(
        "no cgroup2 file system is mounted: mount it (`mount -t cgroup2 none /sys/fs/cgroup`), or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NotMounted,
    #[error("there is no process {pid}: it has ended, or it is in another pid namespace")]
    NoProcess { pid: u32 },
    #[error("cgroup {cgroup} lies outside of what is mounted at {mount}: run where the whole hierarchy is visible", mount = mount.display())]
    Hidden { cgroup: String, mount: PathBuf },
    #[error("{doing} {path} failed ({cause}): {remedy}", path = path.display(), remedy = remedy(cause))]
    Io { doing: &'static str, path: PathBuf, cause: io::Error },
}

impl CgroupError {
    /// 64 usage, 69 the system lacks something, 77 permission.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoProcess { .. } => 64,
            Self::Io { cause, .. } if is_refusal(cause) => 77,
            Self::NotMounted | Self::Hidden { .. } | Self::Io { .. } => 69,
        }
    }
}

fn is_refusal(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::PermissionDenied
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "run as root (sudo), or in a cgroup that is delegated to you",
        io::ErrorKind::ReadOnlyFilesystem => "remount the cgroup2 file system read-write",
        io::ErrorKind::ResourceBusy => "processes are still in it, or controllers are enabled for its children",
        io::ErrorKind::NotFound => "it does not exist (any more)",
        _ => "see `retryscope doctor`",
    }
}

/// A mounted cgroup2 file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    point: PathBuf,
    /// The part of the hierarchy that is seen at `point`.
    root: PathBuf,
}

impl Mount {
    /// The mount that this process sees; the one that shows most of the
    /// hierarchy, where there are several.
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read(path).map_err(|cause| io_error("reading", path, cause))?;
        Self::parse(&text).ok_or(CgroupError::NotMounted)
    }

    /// From the bytes of a mountinfo file (proc_pid_mountinfo(5)).
    fn parse(mountinfo: &[u8]) -> Option<Self> {
        let mounts = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let (root, point) = (fields.nth(3)?, fields.next()?);
            // Optional fields end with a dash; the file system type follows.
            let mut rest = fields.skip_while(|field| *field != b"-");
            let kind = rest.nth(1)?;
            (kind == b"cgroup2").then(|| Self { point: unescape(point), root: unescape(root) })
        });
        mounts.min_by_key(|mount| mount.root.components().count())
    }

    /// The directory of the whole visible hierarchy.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// How deep a cgroup (its directory) lies below the top of the hierarchy.
    /// `None` if it is not below this mount, or the top cannot be told from
    /// here.
    pub fn depth(&self, directory: &Path) -> Option<u32> {
        let below = directory.strip_prefix(&self.point).ok()?;
        let path = self.root.strip_prefix("/").ok()?.components().chain(below.components());
        path.map(|part| matches!(part, Component::Normal(_)).then_some(1)).sum()
    }

    /// The directory of a cgroup as `/proc/PID/cgroup` names it; `None` if the
    /// mount does not show it.
    pub fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        // Outside of the reader's cgroup namespace, paths begin with `/..`.
        (!below.components().any(|part| part == Component::ParentDir))
            .then(|| if below.as_os_str().is_empty() { self.point.clone() } else { self.point.join(below) })
    }

    /// The path in the hierarchy of a directory below this mount.
    pub fn path_of(&self, directory: &Path) -> Option<String> {
        let path = self.root.join(directory.strip_prefix(&self.point).ok()?);
        path.to_str().map(|path| if path.len() > 1 { path.trim_end_matches('/') } else { path }.to_owned())
    }
}

/// Undoes the octal escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The path in the hierarchy, from the text of `/proc/PID/cgroup`.
fn path_in(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// The directory of this process's cgroup.
pub fn own() -> Result<PathBuf, CgroupError> {
    of_process(std::process::id())
}

/// The directory of a process's cgroup.
pub fn of_process(pid: u32) -> Result<PathBuf, CgroupError> {
    let mount = Mount::find()?;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| CgroupError::NoProcess { pid })?;
    let path = path_in(&text).ok_or(CgroupError::NotMounted)?;
    mount.directory(path).ok_or_else(|| CgroupError::Hidden { cgroup: path.into(), mount: mount.point })
}

/// Makes a cgroup; its parent must exist, itself not.
pub fn create(cgroup: &Path) -> Result<(), CgroupError> {
    fs::create_dir(cgroup).map_err(|cause| io_error("making the cgroup", cgroup, cause))
}

/// As [`create`], for a name that is this process's alone (by its pid): what an
/// earlier process of that pid has left is taken away first, if it is empty.
pub fn create_own(cgroup: &Path) -> Result<(), CgroupError> {
    match create(cgroup) {
        Err(CgroupError::Io { cause, .. }) if cause.kind() == io::ErrorKind::AlreadyExists => {
            remove(cgroup)?;
            create(cgroup)
        }
        made => made,
    }
}

/// Moves a process, all its threads, into a cgroup. Only sockets that it opens
/// from then on belong there.
pub fn join(cgroup: &Path, pid: u32) -> Result<(), CgroupError> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
        .map_err(|cause| io_error("moving a process into the cgroup", cgroup, cause))
}

/// The id by which the kernel side names a cgroup.
pub fn id(cgroup: &Path) -> Result<u64, CgroupError> {
    fs::metadata(cgroup).map(|data| data.ino()).map_err(|cause| io_error("reading the cgroup", cgroup, cause))
}

/// The cgroups directly below.
pub fn children(cgroup: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |cause| io_error("reading the cgroup", cgroup, cause);
    let mut children = Vec::new();
    for entry in fs::read_dir(cgroup).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// A cgroup and all below it, those above first. One that has just been removed
/// has nothing below.
pub fn walk(cgroup: &Path, mut each: impl FnMut(&Path)) {
    let mut left = vec![cgroup.to_owned()];
    while let Some(directory) = left.pop() {
        each(&directory);
        left.extend(children(&directory).unwrap_or_default());
    }
}

/// The processes in a cgroup itself, not in those below it.
pub fn processes(cgroup: &Path) -> Result<Vec<u32>, CgroupError> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map_err(|cause| io_error("reading the processes of the cgroup", cgroup, cause))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Whether any process is in a cgroup or below it.
pub fn populated(cgroup: &Path) -> Result<bool, CgroupError> {
    let text = fs::read_to_string(cgroup.join("cgroup.events"))
        .map_err(|cause| io_error("reading the state of the cgroup", cgroup, cause))?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// Removes a cgroup and those below it; none may hold a process any more. One
/// that is gone already is no error.
pub fn remove(cgroup: &Path) -> Result<(), CgroupError> {
    match children(cgroup) {
        Ok(below) => below.iter().try_for_each(|child| remove(child))?,
        Err(CgroupError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match fs::remove_dir(cgroup) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("removing the cgroup", cgroup, cause)),
        _ => Ok(()),
    }
}

fn io_error(doing: &'static str, path: &Path, cause: io::Error) -> CgroupError {
    CgroupError::Io { doing, path: path.into(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
        28 25 0:25 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n\
        29 28 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
        30 28 0:27 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,name=systemd\n";

    #[test]
    fn finds_the_mount_on_hybrid_and_unified_hosts() {
        let hybrid = Mount::parse(HYBRID).expect("a cgroup2 mount");
        assert_eq!(hybrid.directory("/a.scope"), Some("/sys/fs/cgroup/unified/a.scope".into()));
        assert_eq!(hybrid.directory("/"), Some("/sys/fs/cgroup/unified".into()));
        let unified = Mount::parse(b"31 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw").expect("a cgroup2 mount");
        assert_eq!(unified.point(), Path::new("/sys/fs/cgroup"));
        assert_eq!(Mount::parse(b"28 25 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro"), None);
        assert_eq!(Mount::parse(b"nonsense - cgroup2\n\n-"), None);
    }

    #[test]
    fn minds_the_part_that_is_mounted() {
        let bound = Mount::parse(b"31 25 0:26 /pod/one /cg rw - cgroup2 cgroup rw").expect("a cgroup2 mount");
        assert_eq!(bound.directory("/pod/one/app"), Some("/cg/app".into()));
        assert_eq!(bound.directory("/pod/one"), Some("/cg".into()));
        assert_eq!(bound.directory("/pod/onemore"), None);
        assert_eq!(bound.directory("/other"), None);
        assert_eq!(bound.path_of(Path::new("/cg/app")).as_deref(), Some("/pod/one/app"));
        assert_eq!(bound.path_of(Path::new("/cg")).as_deref(), Some("/pod/one"));
        assert_eq!(bound.path_of(Path::new("/elsewhere")), None);
        let namespaced = Mount::parse(b"31 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw").expect("a mount");
        assert_eq!(namespaced.path_of(Path::new("/sys/fs/cgroup")).as_deref(), Some("/"));
        assert_eq!(namespaced.directory("/../outside"), None);
    }

    #[test]
    fn prefers_the_mount_that_shows_most() {
        let two = b"40 25 0:26 /pod/one /bound rw - cgroup2 cgroup rw\n31 25 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n";
        assert_eq!(Mount::parse(two).expect("a mount").point(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn reads_escaped_paths() {
        assert_eq!(unescape(br"/a\040b\134c\1"), Path::new(r"/a b\c\1"));
    }

    #[test]
    fn finds_the_path_of_a_process() {
        assert_eq!(path_in("9:name=systemd:/x\n0::/user.slice/a.scope\n"), Some("/user.slice/a.scope"));
        assert_eq!(path_in("0::/gone (deleted)\n"), Some("/gone"));
        assert_eq!(path_in("9:name=systemd:/\n"), None);
    }
}
