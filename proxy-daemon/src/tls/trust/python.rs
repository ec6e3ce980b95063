//! Certificate bundles that Python packages carry.
//!
//! In: the target's command and environment. Out: every `cacert.pem` (and the
//! like) in reach of the Python interpreters that the command may run.
//!
//! Nothing is run to find out: interpreters are read from the command line,
//! from `#!` lines, from virtual environments and from pyenv's files. What
//! the command starts later cannot be known; the interpreters on `PATH` stand
//! in for it. All searches are bounded in depth and count.
use std::{
    collections::{BTreeMap, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    io::Read,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{TrustInput, which};

/// Words of the command that are looked at.
const MAX_WORDS: usize = 32;

/// Interpreters that are searched.
const MAX_INTERPRETERS: usize = 8;

/// Entries read of one folder of libraries or of pyenv's versions.
const MAX_ENTRIES: usize = 4096;

/// How often a `#!` line may lead to another.
const MAX_HOPS: usize = 4;

/// Bundles inside a folder of packages. A list rather than a search: looking
/// into each of some hundred packages takes half a second on a cold disk, and
/// the variables reach what is missing here.
const PLACES: [&str; 13] = [
    "certifi/cacert.pem",
    "botocore/cacert.pem",
    "pip/_vendor/certifi/cacert.pem",
    "awscli/botocore/cacert.pem",
    "requests/cacert.pem",                   // before 2.16
    "botocore/vendored/requests/cacert.pem", // before 1.13
    "pipenv/patched/pip/_vendor/certifi/cacert.pem",
    "conda/_vendor/certifi/cacert.pem",
    "httplib2/cacerts.txt",
    "grpc/_cython/_credentials/roots.pem",
    "stripe/data/ca-certificates.crt",
    "dropbox/trusted-certs.crt",
    "oci/_vendor/certifi/cacert.pem",
];

/// Bundles beside a frozen program (PyInstaller), such as AWS CLI 2.
const BESIDE: [&str; 5] = [
    "awscli/botocore/cacert.pem",
    "botocore/cacert.pem",
    "certifi/cacert.pem",
    "_internal/certifi/cacert.pem",
    "_internal/botocore/cacert.pem",
];

/// Every bundle found, each path once.
pub(super) fn bundles(input: &TrustInput<'_>, notes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut search = Search { input, interpreters: Vec::new(), programs: Vec::new() };
    let named = search.command();
    search.fallback();
    if !named && let Some(shell) = search.programs.first().filter(|program| is_shell(program)) {
        notes.push(format!(
            "{} may start any program: of Python's interpreters only those on PATH and in VIRTUAL_ENV were found",
            shell.display()
        ));
    }
    let mut folders = Folders { input, found: Vec::new(), seen: HashSet::new() };
    for interpreter in &search.interpreters {
        folders.of(interpreter);
    }
    if let Some(path) = input.environment.get(OsStr::new("PYTHONPATH")) {
        for folder in std::env::split_paths(path).take(16) {
            folders.add(input.cwd.join(folder));
        }
    }
    let mut bundles: Vec<PathBuf> = Vec::new();
    for program in &search.programs {
        let real = program.canonicalize().unwrap_or_else(|_| program.clone());
        if let Some(folder) = real.parent() {
            bundles.extend(BESIDE.iter().map(|place| folder.join(place)).filter(|path| path.is_file()));
        }
    }
    for folder in folders.found {
        bundles.extend(PLACES.iter().map(|place| folder.join(place)).filter(|path| path.is_file()));
    }
    let mut seen = HashSet::new();
    bundles.retain(|path| path.canonicalize().is_ok_and(|real| seen.insert(real)));
    bundles
}

/// Collects the interpreters that the command may run.
struct Search<'a> {
    input: &'a TrustInput<'a>,
    interpreters: Vec<PathBuf>,
    /// Programs that the command names, in its order.
    programs: Vec<PathBuf>,
}

impl Search<'_> {
    /// Interpreters that the command line leads to; whether it named any.
    fn command(&mut self) -> bool {
        let mut environment = self.input.environment.clone();
        for word in self.input.argv.iter().take(MAX_WORDS) {
            // `env PATH=… python` and `PATH=… python` in a shell's text.
            if let Some(path) = word.as_bytes().strip_prefix(b"PATH=") {
                environment.insert("PATH".into(), OsString::from_vec(path.to_vec()));
            }
            self.word(word, &environment, MAX_HOPS);
            // `sh -c 'exec python3.12 app.py'`, `env -S 'python3 -u'`.
            if word.as_bytes().contains(&b' ') {
                let inner = word.as_bytes().split(|byte| !byte.is_ascii_alphanumeric() && !b"_-./+".contains(byte));
                for inner in inner.filter(|inner| !inner.is_empty()).take(MAX_WORDS) {
                    if is_python(inner) {
                        self.word(OsStr::from_bytes(inner), &environment, MAX_HOPS);
                    }
                }
            }
        }
        !self.interpreters.is_empty()
    }

    /// One word of the command: a program, a script, or something else.
    fn word(&mut self, word: &OsStr, environment: &BTreeMap<OsString, OsString>, hops: usize) {
        if word.is_empty() || word.as_bytes().starts_with(b"-") || word.as_bytes().contains(&b'=') {
            return;
        }
        let Some(program) = which(word, environment, self.input.cwd) else { return };
        if is_python(word.as_bytes()) {
            self.interpreter(&program, environment);
        } else if let Some(line) = shebang(&program)
            && hops > 0
        {
            for part in line.iter().take(MAX_WORDS) {
                self.word(part, environment, hops - 1);
            }
        }
        if self.programs.len() < MAX_WORDS {
            self.programs.push(program);
        }
    }

    /// What a command that we cannot see through would most likely run.
    fn fallback(&mut self) {
        let environment = self.input.environment;
        for root in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            if let Some(root) = environment.get(OsStr::new(root)).filter(|root| !root.is_empty()) {
                self.interpreter(&self.input.cwd.join(root).join("bin/python"), environment);
            }
        }
        for name in ["python3", "python"] {
            if let Some(program) = which(OsStr::new(name), environment, self.input.cwd) {
                self.interpreter(&program, environment);
            }
        }
    }

    fn interpreter(&mut self, program: &Path, environment: &BTreeMap<OsString, OsString>) {
        for program in behind_shim(program, environment, self.input.cwd) {
            if self.interpreters.len() < MAX_INTERPRETERS && !self.interpreters.contains(&program) {
                self.interpreters.push(program);
            }
        }
    }
}

/// `python`, `python3.12`, `/opt/py/bin/python3`, `pypy3`.
fn is_python(word: &[u8]) -> bool {
    let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or(word);
    let rest = name.strip_prefix(b"python").or_else(|| name.strip_prefix(b"pypy"));
    rest.is_some_and(|rest| rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.' || *byte == b't'))
}

fn is_shell(program: &Path) -> bool {
    const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "fish"];
    program.file_name().and_then(OsStr::to_str).is_some_and(|name| SHELLS.contains(&name))
}

/// The words of a script's `#!` line.
fn shebang(program: &Path) -> Option<Vec<OsString>> {
    /// The kernel's own limit (BINPRM_BUF_SIZE).
    const MAX_LINE: u64 = 256;
    let mut line = Vec::new();
    File::open(program).ok()?.take(MAX_LINE).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Some(words.map(|word| OsString::from_vec(word.to_vec())).collect())
}

/// The interpreters behind pyenv's shim, which is a shell script of the same
/// name: the version chosen by PYENV_VERSION, a `.python-version` file or
/// pyenv's own setting. Any other program stands for itself.
fn behind_shim(program: &Path, environment: &BTreeMap<OsString, OsString>, cwd: &Path) -> Vec<PathBuf> {
    let Some(folder) = program.parent().filter(|folder| folder.ends_with("shims")) else { return vec![program.into()] };
    let (Some(root), Some(name)) = (folder.parent(), program.file_name()) else { return vec![program.into()] };
    let versions = root.join("versions");
    if !versions.is_dir() {
        return vec![program.into()];
    }
    let setting = |path: PathBuf| {
        super::files::read_bounded(&path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let chosen = environment
        .get(OsStr::new("PYENV_VERSION"))
        .map(|version| version.to_string_lossy().replace(':', "\n"))
        .or_else(|| cwd.ancestors().take(64).find_map(|folder| setting(folder.join(".python-version"))))
        .or_else(|| setting(root.join("version")))
        .unwrap_or_default();
    let mut behind = Vec::new();
    for version in chosen.split_whitespace().take(MAX_INTERPRETERS) {
        // `3.11` stands for the newest 3.11.x.
        let exact = versions.join(version).join("bin").join(name);
        if exact.is_file() {
            behind.push(exact);
            continue;
        }
        let mut close: Vec<PathBuf> = std::fs::read_dir(&versions)
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_ENTRIES)
            .filter(|entry| {
                entry.file_name().to_string_lossy().strip_prefix(version).is_some_and(|rest| rest.starts_with('.'))
            })
            .map(|entry| entry.path().join("bin").join(name))
            .filter(|path| path.is_file())
            .collect();
        close.sort();
        behind.extend(close);
    }
    if behind.is_empty() {
        // `system`: the next one on PATH that is no shim.
        let others = environment.get(OsStr::new("PATH")).into_iter().flat_map(std::env::split_paths);
        let next = others.filter(|place| place != folder).map(|place| place.join(name)).find(|path| path.is_file());
        behind.extend(next);
    }
    behind
}

/// The folders of packages that interpreters import from.
struct Folders<'a> {
    input: &'a TrustInput<'a>,
    found: Vec<PathBuf>,
    seen: HashSet<PathBuf>,
}

impl Folders<'_> {
    fn add(&mut self, folder: PathBuf) {
        if let Ok(real) = folder.canonicalize()
            && real.is_dir()
            && self.seen.insert(real)
        {
            self.found.push(folder);
        }
    }

    fn of(&mut self, interpreter: &Path) {
        // A virtual environment is told by the file beside its `bin`; its
        // interpreter is a link to the one it was made from.
        if let Some(root) = interpreter.parent().and_then(Path::parent)
            && let Ok(settings) = super::files::read_bounded(&root.join("pyvenv.cfg"))
        {
            self.under(root, None);
            if !shares_packages(&settings) {
                return;
            }
        }
        let real = interpreter.canonicalize().unwrap_or_else(|_| interpreter.into());
        let version = version(&real);
        if let Some(root) = real.parent().and_then(Path::parent) {
            self.under(root, version.as_deref());
            // Debian's own packages, and those of `pip install` beside them.
            self.add(root.join("lib/python3/dist-packages"));
            if root == Path::new("/usr") {
                self.under(Path::new("/usr/local"), version.as_deref());
            }
        }
        let environment = self.input.environment;
        let user = match environment.get(OsStr::new("PYTHONUSERBASE")) {
            Some(base) => Some(self.input.cwd.join(base)),
            None => environment.get(OsStr::new("HOME")).map(|home| Path::new(home).join(".local")),
        };
        if let Some(user) = user {
            self.under(&user, version.as_deref());
        }
    }

    /// `lib/python3.12/site-packages` and the like under a root, of one
    /// version or of all.
    fn under(&mut self, root: &Path, version: Option<&str>) {
        for lib in ["lib", "lib64"] {
            let lib = root.join(lib);
            for entry in std::fs::read_dir(&lib).into_iter().flatten().flatten().take(MAX_ENTRIES) {
                let name = entry.file_name();
                let wanted = match version {
                    Some(version) => name.as_bytes() == version.as_bytes(),
                    None => is_python(name.as_bytes()),
                };
                if wanted {
                    self.add(entry.path().join("site-packages"));
                    self.add(entry.path().join("dist-packages"));
                }
            }
        }
    }
}

/// The name of the folder of an interpreter's library, if the interpreter's
/// own name tells: `python3.12`.
fn version(interpreter: &Path) -> Option<String> {
    let name = interpreter.file_name()?.to_str()?;
    (is_python(name.as_bytes()) && name.contains('.')).then(|| name.to_owned())
}

/// Whether a virtual environment sees the packages of the interpreter it was
/// made from.
fn shares_packages(settings: &[u8]) -> bool {
    String::from_utf8_lossy(settings)
        .lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, value)| key.trim() == "include-system-site-packages" && value.trim().eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A folder of made-up installations.
    struct Machine {
        _folder: tempfile::TempDir,
        root: PathBuf,
    }

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let root = folder.path().canonicalize().expect("a path");
            Self { _folder: folder, root }
        }

        fn file(&self, path: &str, content: &str) -> PathBuf {
            let path = self.root.join(path);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("made");
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
            path
        }

        fn search(&self, argv: &[&str], environment: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
            let argv: Vec<OsString> =
                argv.iter().map(|word| word.replace("ROOT", &self.root.to_string_lossy()).into()).collect();
            let environment = environment
                .iter()
                .map(|(name, value)| {
                    (OsString::from(name), OsString::from(value.replace("ROOT", &self.root.to_string_lossy())))
                })
                .collect();
            let input = TrustInput {
                authority_pem: "",
                folder: &self.root,
                argv: &argv,
                environment: &environment,
                mount: true,
                cwd: &self.root,
            };
            let mut notes = Vec::new();
            let mut found: Vec<String> = bundles(&input, &mut notes)
                .into_iter()
                .map(|path| path.strip_prefix(&self.root).expect("inside").to_string_lossy().into_owned())
                .collect();
            found.sort();
            (found, notes)
        }
    }

    const CERTIFI: &str = "lib/python3.12/site-packages/certifi/cacert.pem";

    #[test]
    fn virtual_environment_is_found_by_name_script_and_variable() {
        let machine = Machine::new();
        machine.file("base/bin/python3.12", "ELF");
        machine.file(&format!("base/{CERTIFI}"), "base");
        machine.file("venv/pyvenv.cfg", "home = base/bin\ninclude-system-site-packages = false\n");
        machine.file(&format!("venv/{CERTIFI}"), "venv");
        machine.file("venv/lib/python3.12/site-packages/pip/_vendor/certifi/cacert.pem", "pip");
        std::fs::create_dir_all(machine.root.join("venv/bin")).expect("made");
        symlink(machine.root.join("base/bin/python3.12"), machine.root.join("venv/bin/python")).expect("linked");
        machine.file("venv/bin/tool", &format!("#!{}/venv/bin/python\n", machine.root.display()));
        machine.file("script", "#!/usr/bin/env -S python -u\n");

        let expected =
            [format!("venv/{CERTIFI}"), "venv/lib/python3.12/site-packages/pip/_vendor/certifi/cacert.pem".to_owned()];
        for argv in [
            &["ROOT/venv/bin/python", "app.py"][..],
            &["venv/bin/tool"],
            &["nice", "-n", "5", "venv/bin/tool"],
            &["sh", "-c", "cd /; exec ROOT/venv/bin/python app.py"],
            &["timeout", "5", "env", "A=b", "venv/bin/python"],
        ] {
            assert_eq!(machine.search(argv, &[("PATH", "/nowhere")]).0, expected, "{argv:?}");
        }
        for argv in [&["./script"][..], &["python", "app.py"], &["make", "all"]] {
            assert_eq!(machine.search(argv, &[("PATH", "ROOT/venv/bin:/nowhere")]).0, expected, "{argv:?}");
        }
        assert_eq!(machine.search(&["env", "PATH=ROOT/venv/bin", "python"], &[("PATH", "/nowhere")]).0, expected);
        assert_eq!(machine.search(&["x"], &[("PATH", "/nowhere"), ("VIRTUAL_ENV", "ROOT/venv")]).0, expected);

        machine.file("venv/pyvenv.cfg", "include-system-site-packages = TRUE\n");
        let (found, _) = machine.search(&["venv/bin/python"], &[("PATH", "/nowhere")]);
        assert!(found.contains(&format!("base/{CERTIFI}")), "{found:?}");
    }

    #[test]
    fn user_packages_and_python_path_count() {
        let machine = Machine::new();
        machine.file("usr/bin/python3.12", "ELF");
        machine.file(&format!("home/.local/{CERTIFI}"), "user");
        machine.file("home/.local/lib/python3.9/site-packages/certifi/cacert.pem", "another version's");
        machine.file("vendored/botocore/cacert.pem", "on the path");
        let (found, _) = machine.search(
            &["usr/bin/python3.12"],
            &[("PATH", "/nowhere"), ("HOME", "ROOT/home"), ("PYTHONPATH", "vendored:/nowhere")],
        );
        assert_eq!(found, [format!("home/.local/{CERTIFI}"), "vendored/botocore/cacert.pem".into()]);
    }

    #[test]
    fn pyenv_is_seen_through() {
        let machine = Machine::new();
        machine.file("pyenv/shims/python3", "#!/usr/bin/env bash\nexec pyenv exec python3\n");
        for version in ["3.11.7", "3.12.1"] {
            machine.file(&format!("pyenv/versions/{version}/bin/python3"), "ELF");
            let library = &version[..4];
            machine.file(&format!("pyenv/versions/{version}/lib/python{library}/site-packages/certifi/cacert.pem"), "");
        }
        machine.file("pyenv/version", "3.12.1\n");
        let path = ("PATH", "ROOT/pyenv/shims");
        let of = |version: &str| {
            vec![format!("pyenv/versions/{version}/lib/python{}/site-packages/certifi/cacert.pem", &version[..4])]
        };
        assert_eq!(machine.search(&["python3"], &[path]).0, of("3.12.1"));
        assert_eq!(machine.search(&["python3"], &[path, ("PYENV_VERSION", "3.11")]).0, of("3.11.7"));
        machine.file(".python-version", "3.11.7\n");
        assert_eq!(machine.search(&["python3"], &[path]).0, of("3.11.7"));
    }

    #[test]
    fn frozen_program_has_them_beside_it() {
        let machine = Machine::new();
        machine.file("aws/dist/aws", "ELF");
        machine.file("aws/dist/awscli/botocore/cacert.pem", "");
        std::fs::create_dir_all(machine.root.join("bin")).expect("made");
        symlink(machine.root.join("aws/dist/aws"), machine.root.join("bin/aws")).expect("linked");
        let (found, _) = machine.search(&["aws", "s3", "ls"], &[("PATH", "ROOT/bin")]);
        assert_eq!(found, ["aws/dist/awscli/botocore/cacert.pem"]);
    }

    #[test]
    fn shell_is_noted_and_loops_end() {
        let machine = Machine::new();
        machine.file("bin/sh", "ELF");
        machine.file("loop", &format!("#!{}/loop\n", machine.root.display()));
        assert_eq!(machine.search(&["sh", "-c", "make"], &[("PATH", "ROOT/bin")]).1.len(), 1);
        assert_eq!(machine.search(&["./loop"], &[("PATH", "ROOT/bin")]), (Vec::new(), Vec::new()));
        assert_eq!(machine.search(&[], &[("PATH", "/nowhere")]).1, Vec::<String>::new());
        assert_eq!(machine.search(&["", "-x", "a=b", "\u{1}"], &[("PATH", "")]).1, Vec::<String>::new());
    }

    #[test]
    fn names_of_interpreters() {
        for name in ["python", "python3", "/a/python3.12", "pypy3", "python3.13t"] {
            assert!(is_python(name.as_bytes()), "{name}");
        }
        for name in ["pythonista", "ipython", "python3-config", "", "/python/x"] {
            assert!(!is_python(name.as_bytes()), "{name}");
        }
    }
}
