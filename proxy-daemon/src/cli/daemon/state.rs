//! What outlives a restart: the sums of the ledger, which clients will not
//! trust the authority, and a bypass that is to.
//!
//! In: both, from time to time and at the end. Out: the same for the next
//! start, where sums go into the ledger's row for processes that have none of
//! their own. The file is written beside its place and then renamed: a crash leaves
//! the older one. One that cannot be read is left aside, and told.
use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, getgid, setegid};
use serde::{Deserialize, Serialize};

use super::{Failure, chown};
use crate::{daemon::Earlier, process::confine::Account};

const FILE: &str = "ledger.json";
const NEW: &str = "ledger.json.new";
/// There while a bypass is to outlive a restart.
const BYPASSED: &str = "bypassed";
const VERSION: u32 = 1;
/// Larger ones are not ours.
const MAX_FILE: u64 = 16 << 20;

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

/// Lets a user keep things in a folder: it becomes theirs; or without CAP_CHOWN,
/// which is not worth having for this, their group's, in which nobody can take
/// away what others have made.
fn give(folder: &Path, account: &Account) -> io::Result<()> {
    match chown(folder, Some(account.uid), Some(account.gid)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        given => return given,
    }
    let about = fs::metadata(folder)?;
    if about.uid() == account.uid {
        return Ok(());
    }
    // An owner may give a folder to a group of their own.
    setegid(Gid::from_raw(account.gid))?;
    let given = chown(folder, None, Some(account.gid))
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o1770)));
    setegid(getgid())?;
    given
}

#[derive(Serialize, Deserialize)]
struct Saved<E> {
    version: u32,
    #[serde(flatten)]
    earlier: E,
}

impl Kept {
    /// Makes the folder where it is missing, and gives it to the user whom the
    /// daemon becomes.
    pub(super) fn open(folder: &Path, account: &Account) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                73,
                format!("cannot keep anything in {} ({error}); choose another state_dir, or none", folder.display()),
            )
        };
        if let Some(above) = folder.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(above).map_err(failed)?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(failed)?;
        give(folder, account).map_err(failed)?;
        Ok(Self { folder: folder.into() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What earlier runs came to; to be read as the user whose it is.
    pub(super) fn read(&self) -> Option<Earlier> {
        let bytes = fs::File::open(self.folder.join(FILE)).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut bytes).map(|_| bytes)
        });
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, "what was kept cannot be read; counting begins anew");
                return None;
            }
        };
        match serde_json::from_slice::<Saved<Earlier>>(&bytes) {
            Ok(saved) if saved.version == VERSION => Some(saved.earlier),
            Ok(saved) => {
                tracing::warn!(version = saved.version, "what was kept is of another version; counting begins anew");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "what was kept cannot be read; counting begins anew");
                None
            }
        }
    }

    pub(super) fn keeps_bypass(&self) -> bool {
        self.folder.join(BYPASSED).exists()
    }

    pub(super) fn keep_bypass(&self, keep: bool) -> Result<(), String> {
        let path = self.folder.join(BYPASSED);
        let done = if keep { fs::File::create(&path).and_then(|file| file.sync_all()) } else { fs::remove_file(&path) };
        match done {
            Err(error) if keep || error.kind() != io::ErrorKind::NotFound => {
                Err(format!("what a restart is to find cannot be changed in {} ({error})", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what the next instance is to know.
    pub(super) fn write(&self, earlier: &Earlier) {
        let saved = Saved { version: VERSION, earlier };
        let (new, place) = (self.folder.join(NEW), self.folder.join(FILE));
        let written = serde_json::to_vec(&saved).map_err(io::Error::other).and_then(|bytes| {
            let mut file = fs::File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&new, &place)
        });
        if let Err(error) = written {
            tracing::warn!(%error, folder = %self.folder.display(), "what a restart should find is not kept");
        }
    }
}
