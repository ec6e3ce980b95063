//! Trust for programs that are not started from here: those in other
//! containers, which see a folder of ours and whose environment somebody else
//! sets.
//!
//! In: the authority's certificate, a folder that both sides see under one
//! path. Out: in the folder `ca.pem` (the authority alone), `bundle.pem` (the
//! system's roots as well), stores and settings for clients that read neither,
//! and the variables that name all these: `env` for container engines, `env.sh`
//! for shells. Which variables, and their values, depends on the folder's path
//! alone, so that they can be written down beforehand.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use super::{TlsError, TrustInput, TrustPlan, Work, environment, files, java, settings, write};

/// The variables, as `NAME=VALUE` lines.
const ENV: &str = "env";
/// The same, for a shell to read.
const SCRIPT: &str = "env.sh";
/// The store of Java machines.
const STORE: &str = "store.jks";

/// Writes everything into the folder, which is made where it does not exist.
/// What `more` names (authorities besides the system's) is trusted as well. The
/// variables come back, and notes on what could not be read.
pub fn share(authority_pem: &str, more: &[PathBuf], folder: &Path) -> Result<TrustPlan, TlsError> {
    let failed = |source| TlsError::Write { path: folder.into(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    // Others read it, whatever the mask of new files is.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let mut certificates = String::new();
    for path in more {
        let read = |source| TlsError::Read { what: "the authorities in", path: path.clone(), source };
        certificates.push_str(&files::certificate_blocks(&files::read_bounded(path).map_err(read)?));
    }
    certificates.push_str(authority_pem);
    let environment = BTreeMap::new();
    let input = TrustInput {
        authority_pem: &certificates,
        folder,
        argv: &[],
        environment: &environment,
        mount: false,
        cwd: Path::new("/"),
    };
    let mut work = Work::start(&input)?;
    let mut variables = environment::variables(&mut work)?;
    variables.extend(settings::variables(&mut work)?);
    let store = folder.join(STORE);
    write(&store, &java::of_system(&files::certificates(work.ours.as_bytes())))?;
    variables.push(java::option(&environment, &store));
    write(&folder.join(ENV), &lines(&variables, <[u8]>::to_vec))?;
    write(&folder.join(SCRIPT), &script(&variables))?;
    Ok(TrustPlan { environment: variables, binds: Vec::new(), notes: work.notes })
}

fn lines(variables: &[(OsString, OsString)], quoted: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in variables {
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend(quoted(value.as_bytes()));
        text.push(b'\n');
    }
    text
}

fn script(variables: &[(OsString, OsString)]) -> Vec<u8> {
    let quote = |value: &[u8]| {
        let mut text = vec![b'\''];
        for byte in value {
            match byte {
                b'\'' => text.extend_from_slice(br"'\''"),
                byte => text.push(*byte),
            }
        }
        text.push(b'\'');
        text
    };
    let mut text = lines(variables, quote);
    text.extend_from_slice(b"export");
    for (name, _) in variables {
        text.push(b' ');
        text.extend_from_slice(name.as_bytes());
    }
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, process::Command};

    use super::*;
    use crate::tls::Authority;

    #[test]
    fn a_shell_reads_what_was_said() {
        let dir = tempfile::Builder::new().prefix("it's a ").tempdir().expect("a folder");
        let (folder, more) = (dir.path().join("trust"), dir.path().join("more.pem"));
        let (authority, corporate) =
            (Authority::in_memory().expect("an authority"), Authority::in_memory().expect("another"));
        fs::write(&more, corporate.certificate_pem()).expect("written");
        let plan = share(authority.certificate_pem(), &[more], &folder).expect("shared");
        assert_eq!(plan.notes, Vec::<String>::new());
        let variables = plan.environment;
        let said = Command::new("/bin/sh")
            .args(["-c", ". \"$0\"/env.sh && exec env", folder.to_str().expect("a path")])
            .env_clear()
            .output()
            .expect("a shell");
        let said = String::from_utf8(said.stdout).expect("text");
        for (name, value) in &variables {
            let line = format!("{}={}", name.display(), value.display());
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
            assert!(fs::read_to_string(folder.join(ENV)).expect("a file").lines().any(|said| said == line), "{line}");
        }
        let value = |name: &str| &variables.iter().find(|(known, _)| known == OsStr::new(name)).expect("a variable").1;
        assert_eq!(value("AWS_CA_BUNDLE"), folder.join("bundle.pem").as_os_str());
        let bundle = fs::read_to_string(value("SSL_CERT_FILE")).expect("the bundle");
        for certificate in [&authority, &corporate] {
            assert!(bundle.contains(certificate.certificate_pem()), "{bundle}");
        }
        // Again, as after a restart: nothing but the same.
        let before: Vec<_> = fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path()).collect();
        share(authority.certificate_pem(), &[], &folder).expect("shared again");
        let mut after: Vec<_> = fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path()).collect();
        after.retain(|path| !before.contains(path));
        assert_eq!(after, Vec::<PathBuf>::new());
        for path in before.iter().filter(|path| path.is_file()) {
            let text = fs::read(path).expect("a file");
            assert!(!text.windows(11).any(|part| part == b"PRIVATE KEY"), "{}", path.display());
        }
    }
}
