//! What the kernel side and the cgroup tree still tell of a process that is
//! gone from `/proc`.
use std::{
    fs, io,
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::maps::{HashMap, MapData};
use lru::LruCache;
use nix::libc;
use retryscope_ebpf::{MAX_PIECES, PIECE_LEN, Piece, PieceKey};

use super::cgroup::Mount;
use crate::process::{CommandLine, Memory, Owner};

/// How many cgroups' paths are remembered. Past it the one that was asked for
/// longest ago is looked up anew.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// How many directories are looked at where the kernel does not open one by
/// its number.
const MAX_WALK: usize = 65_536;

#[derive(Debug)]
pub(super) struct Remembered {
    commands: HashMap<MapData, PieceKey, Piece>,
    /// `None` where no tree is mounted.
    tree: Option<(Mount, OwnedFd)>,
    paths: Mutex<LruCache<u64, String>>,
}

impl Remembered {
    pub(super) fn new(commands: HashMap<MapData, PieceKey, Piece>) -> Self {
        Self { commands, tree: tree(), paths: Mutex::new(LruCache::new(MAX_PATHS)) }
    }
}

/// The directory of a cgroup by its inode number.
pub(super) fn directory(mount: &Mount, tree: &OwnedFd, id: u64) -> Option<PathBuf> {
    let opened = match open_by_id(tree, id) {
        Ok(opened) => opened,
        // Not for us to open so; it may still be found.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return walk(mount.point(), id),
        Err(_) => return None,
    };
    fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()
}

/// The cgroup tree as far as it is mounted, and its top, opened.
pub(super) fn tree() -> Option<(Mount, OwnedFd)> {
    let mount = Mount::find().ok()?;
    let directory = fs::File::open(mount.point()).ok()?;
    Some((mount, directory.into()))
}

impl Memory for Remembered {
    fn command(&self, owner: &Owner) -> Option<CommandLine> {
        let length = usize::try_from(owner.command_len).ok().filter(|length| *length > 0)?;
        let kept = length.min(MAX_PIECES as usize * PIECE_LEN);
        let mut bytes = Vec::with_capacity(kept);
        for number in 0..MAX_PIECES {
            if bytes.len() >= kept {
                break;
            }
            let key =
                PieceKey { start_boottime: owner.start_boottime, image: owner.image, tgid: owner.key.pid, number };
            let Ok(piece) = self.commands.get(&key, 0) else { break };
            bytes.extend_from_slice(&piece.bytes());
        }
        bytes.truncate(kept);
        (!bytes.is_empty()).then_some(CommandLine { cut: bytes.len() < length, bytes })
    }

    fn cgroup(&self, id: u64) -> Option<String> {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = paths.get(&id) {
            return Some(known.clone());
        }
        let (mount, tree) = self.tree.as_ref()?;
        let path = mount.path_of(&directory(mount, tree, id)?)?;
        paths.put(id, path.clone());
        Some(path)
    }
}

/// Opens a directory of the cgroup tree by its number, which is what the file
/// handles of that file system are made of.
fn open_by_id(tree: &OwnedFd, id: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle`, with room for what kernfs puts into it.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        id: [u8; 8],
    }
    /// FILEID_KERNFS (include/linux/exportfs.h).
    const KERNFS: libc::c_int = 0xfe;
    let mut handle = Handle { bytes: 8, kind: KERNFS, id: id.to_ne_bytes() };
    // SAFETY: the handle outlives the call and is as long as it says.
    let opened =
        unsafe { libc::open_by_handle_at(tree.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Looks for a directory by its number.
fn walk(top: &Path, id: u64) -> Option<PathBuf> {
    let mut left = vec![top.to_owned()];
    let mut seen = 0;
    while let Some(directory) = left.pop() {
        seen += 1;
        if seen > MAX_WALK {
            return None;
        }
        if fs::metadata(&directory).is_ok_and(|data| data.ino() == id) {
            return Some(directory);
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways lead to the same directory.
    #[test]
    fn cgroups_are_found_by_their_number() {
        let mount = Mount::find().expect("a cgroup2 mount");
        let own = super::super::cgroup::own().expect("own cgroup");
        let id = super::super::cgroup::id(&own).expect("its id");
        assert_eq!(walk(mount.point(), id).as_ref(), Some(&own));
        let tree = fs::File::open(mount.point()).expect("the tree").into();
        if let Ok(opened) = open_by_id(&tree, id) {
            let path = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).expect("a path");
            assert_eq!(path, own);
        }
        assert_eq!(walk(mount.point(), u64::MAX), None);
        assert!(open_by_id(&tree, u64::MAX).is_err());
    }
}
