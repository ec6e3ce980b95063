//! What a target needs so that it trusts the authority.
//!
//! In: the authority's certificate, the command and its environment. Out:
//! variables to set, and files to bind over others inside the target's own
//! mount namespace. The files are written here, into a folder that the caller
//! gives; nothing is mounted here.
//!
//! Invariants: only certificates are written, never a key, even where a file
//! that is extended holds one; what the user has set is extended, not
//! replaced; a file that cannot be read becomes a note, not a failure.
//!
//! docs/clients.md tells who needs what; `tests/e2e_matrix` writes it, by
//! running the real clients. Set without a test of their own:
//! `NIX_SSL_CERT_FILE`, `CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE`, `DENO_CERT`.
//!
//! Set only where there are no mounts: `JAVA_TOOL_OPTIONS`, which every Java
//! machine announces on standard error, and the variables of `settings`, which
//! stand in for a file of the user's.
mod browsers;
mod environment;
mod java;
mod jks;
mod python;
mod settings;
mod share;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{TlsError, files, system};

/// Files bound at most; past it a note says so.
const MAX_BINDS: usize = 128;

/// Bytes of certificates taken from one folder of them.
const MAX_FOLDER: usize = 16 << 20;

/// What the target is, and what it may be given.
#[derive(Debug)]
pub struct TrustInput<'a> {
    /// The authority's certificate.
    pub authority_pem: &'a str,
    /// Where files are written: owned by root, readable by the target (0755).
    pub folder: &'a Path,
    pub argv: &'a [OsString],
    /// The target's environment.
    pub environment: &'a BTreeMap<OsString, OsString>,
    /// Whether the target gets a mount namespace of its own.
    pub mount: bool,
    pub cwd: &'a Path,
}

#[derive(Clone, Debug, Default)]
pub struct TrustPlan {
    /// To set in the target's environment, over what is there.
    pub environment: Vec<(OsString, OsString)>,
    /// To bind in the target's mount namespace. Targets exist, are regular
    /// files or folders as their sources are, without symbolic links on the
    /// way, and each appears once.
    pub binds: Vec<Bind>,
    /// For the user: what could not be read, what is not covered.
    pub notes: Vec<String>,
}

/// A file to show in the place of another; or a folder, with all that is in
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
}

pub use share::share;

/// Writes the files and says how they are to be used.
pub fn prepare(input: &TrustInput<'_>) -> Result<TrustPlan, TlsError> {
    let mut work = Work::start(input)?;
    let mut plan = TrustPlan { environment: environment::variables(&mut work)?, ..TrustPlan::default() };
    let stores = java::stores(input);
    if input.mount {
        for bundle in system::bundles() {
            work.bind_extended(&bundle)?;
        }
        for bundle in python::bundles(input, &mut work.notes) {
            work.bind_extended(&bundle)?;
        }
        for store in &stores {
            work.bind_store(store)?;
        }
        let browsers = browsers::binds(&mut work)?;
        work.binds.extend(browsers);
    } else {
        plan.environment.extend(settings::variables(&mut work)?);
        if let Some(store) = stores.first() {
            let copy = work.store(store)?;
            plan.environment.push(java::option(input.environment, &copy));
        }
    }
    plan.binds = work.binds;
    plan.notes = work.notes;
    Ok(plan)
}

/// The files written so far.
struct Work<'a> {
    input: &'a TrustInput<'a>,
    /// The authority's certificate, as one clean block.
    ours: String,
    /// `ca.pem`: ours alone.
    alone: PathBuf,
    /// `bundle.pem`: the system's roots and ours.
    bundle: PathBuf,
    /// Extended copies by the (resolved) file they extend.
    copies: HashMap<PathBuf, PathBuf>,
    binds: Vec<Bind>,
    notes: Vec<String>,
    full: bool,
}

impl<'a> Work<'a> {
    fn start(input: &'a TrustInput<'a>) -> Result<Self, TlsError> {
        let ours = files::certificate_blocks(input.authority_pem.as_bytes());
        let alone = input.folder.join("ca.pem");
        let bundle = input.folder.join("bundle.pem");
        let mut notes = Vec::new();
        write(&alone, ours.as_bytes())?;
        let roots = system::roots_pem();
        if roots.is_empty() {
            notes.push(
                "this system has no bundle of root certificates: clients will trust retryscope's authority only".into(),
            );
        }
        write(&bundle, [roots.as_bytes(), ours.as_bytes()].concat().as_slice())?;
        let copies = system::bundles().into_iter().take(1).map(|system| (system, bundle.clone())).collect();
        Ok(Self { input, ours, alone, bundle, copies, binds: Vec::new(), notes, full: false })
    }

    /// A copy of a bundle (a file, or a folder of certificates) with ours
    /// added. None, and a note of `who` and `then`, where it cannot be read.
    fn extended(&mut self, original: &Path, who: &str, then: &str) -> Result<Option<PathBuf>, TlsError> {
        let original = self.input.cwd.join(original);
        let resolved = original.canonicalize().unwrap_or_else(|_| original.clone());
        if let Some(copy) = self.copies.get(&resolved) {
            return Ok(Some(copy.clone()));
        }
        let blocks = if resolved.is_dir() {
            Ok(folder_blocks(&resolved))
        } else {
            files::read_bounded(&resolved).map(|bytes| files::certificate_blocks(&bytes))
        };
        let problem = match &blocks {
            Err(error) => format!("which cannot be read ({error})"),
            Ok(blocks) if blocks.is_empty() => "which holds no certificate".into(),
            Ok(_) => String::new(),
        };
        let blocks = blocks.unwrap_or_default();
        if blocks.is_empty() {
            let note = format!("{who} {}, {problem}: {then}", original.display());
            // One file may be named by several variables.
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
            return Ok(None);
        }
        let copy = self.input.folder.join(format!("extended-{}.pem", self.copies.len()));
        write(&copy, [blocks.as_bytes(), self.ours.as_bytes()].concat().as_slice())?;
        self.copies.insert(resolved, copy.clone());
        Ok(Some(copy))
    }

    fn bind_extended(&mut self, original: &Path) -> Result<(), TlsError> {
        let Some(target) = self.bindable(original) else { return Ok(()) };
        if let Some(source) = self.extended(&target, "there is", "clients that use it will not trust retryscope")? {
            self.binds.push(Bind { source, target });
        }
        Ok(())
    }

    fn bind_store(&mut self, store: &java::Store) -> Result<(), TlsError> {
        let Some(target) = self.bindable(&store.path) else { return Ok(()) };
        let source = self.store(store)?;
        self.binds.push(Bind { source, target });
        Ok(())
    }

    /// A Java store with what `store` trusts and ours.
    fn store(&mut self, store: &java::Store) -> Result<PathBuf, TlsError> {
        if let Some(copy) = self.copies.get(&store.path) {
            return Ok(copy.clone());
        }
        let ours = files::certificates(self.ours.as_bytes());
        let (bytes, note) = java::extended(store, &ours);
        self.notes.extend(note);
        let copy = self.input.folder.join(format!("store-{}.jks", self.copies.len()));
        write(&copy, &bytes)?;
        self.copies.insert(store.path.clone(), copy.clone());
        Ok(copy)
    }

    /// The path to bind over, unless it is bound already or there are too
    /// many.
    fn bindable(&mut self, original: &Path) -> Option<PathBuf> {
        let target = original.canonicalize().ok()?;
        let about = target.metadata().ok()?;
        if !about.is_file() || self.binds.iter().any(|bind| bind.target == target) {
            return None;
        }
        if self.binds.len() >= MAX_BINDS {
            if !self.full {
                self.full = true;
                self.notes.push(format!(
                    "more than {MAX_BINDS} certificate bundles were found; {} and others stay as they are",
                    target.display()
                ));
            }
            return None;
        }
        Some(target)
    }
}

/// The certificates in a folder of them, each file once.
fn folder_blocks(folder: &Path) -> String {
    /// A folder of roots has some hundreds of files, each under two names.
    const MAX_ENTRIES: usize = 4096;
    const END: &str = "-----END CERTIFICATE-----\n";
    let mut seen_files = HashSet::new();
    let mut seen = HashSet::new();
    let mut blocks = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES) {
        let path = entry.path();
        if let Ok(about) = path.metadata()
            && about.is_file()
            && seen_files.insert((about.dev(), about.ino()))
            && let Ok(bytes) = files::read_bounded(&path)
        {
            // The bundle lies in the same folder as what it was made of.
            for block in files::certificate_blocks(&bytes).split_inclusive(END) {
                if blocks.len() < MAX_FOLDER && seen.insert(block.to_owned()) {
                    blocks.push_str(block);
                }
            }
        }
    }
    blocks
}

/// Writes a file that anyone may read. An earlier one of ours is replaced, at
/// once for whoever reads it; a link is not followed.
fn write(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    let failed = |source| TlsError::Write { path: path.into(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map(|_| ()).map_err(|error| failed(error.error))
}

/// A program as `execvp` would find it.
fn which(name: &OsStr, environment: &BTreeMap<OsString, OsString>, cwd: &Path) -> Option<PathBuf> {
    let executable = |path: &Path| path.metadata().is_ok_and(|about| about.is_file() && about.mode() & 0o111 != 0);
    let path = Path::new(name);
    if path.components().count() > 1 || path.is_absolute() {
        return Some(cwd.join(path)).filter(|path| executable(path));
    }
    let search = environment.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&search).map(|folder| cwd.join(folder).join(path)).find(|path| executable(path))
}

#[cfg(test)]
mod tests;
