//! What containers are called: their engines keep that in files, which are
//! read and never written.
//!
//! In: ids as cgroups have them. Out: names as the engines' own commands show
//! them. An engine whose files cannot be read has nothing to tell.
use std::{
    fs,
    io::Read,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use lru::LruCache;
use serde::Deserialize;

use super::cgroups;

/// How much of a state file is read: of podman's there is one for all
/// containers.
const MAX_FILE: u64 = 16 << 20;
/// How many containers' names are remembered, those included that have none.
const MAX_NAMES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// A container that an engine has a name for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub id: String,
    pub name: String,
}

/// The files of the engines on this machine.
#[derive(Clone, Debug)]
pub struct Engines {
    root: PathBuf,
}

impl Default for Engines {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Engines {
    /// Every container that has a name, running or not. `users` are those
    /// whose own engines are asked as well.
    pub fn names(&self, users: &[u32]) -> Vec<Named> {
        let mut found = Vec::new();
        for folder in self.docker(users) {
            found.extend(entries(&folder).into_iter().filter_map(|id| Some(Named { name: docker(&folder, &id)?, id })));
        }
        for file in self.podman(users) {
            found.extend(podman(&file));
        }
        found.extend(self.nerdctl());
        found.extend(self.kubernetes());
        found.sort();
        found.dedup();
        found
    }

    /// One container's name; `user` as for [`names`](Self::names).
    pub fn name(&self, id: &str, user: Option<u32>) -> Option<String> {
        let users: Vec<u32> = user.into_iter().collect();
        let by_docker = || self.docker(&users).iter().find_map(|folder| docker(folder, id));
        let listed = |list: Vec<Named>| list.into_iter().find(|named| named.id == id).map(|named| named.name);
        // What the kubelet says is what people say; the engine below it only
        // glues that together.
        listed(self.kubernetes())
            .or_else(by_docker)
            .or_else(|| self.podman(&users).iter().find_map(|file| listed(podman(file))))
            .or_else(|| listed(self.nerdctl()))
    }

    /// Where all of that is, of root's own engines; for whoever may read no
    /// other files.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders = ["etc/docker", "etc/containers", "var/lib/nerdctl", "var/log/containers"]
            .map(|folder| self.root.join(folder))
            .to_vec();
        folders.extend(self.docker(&[]));
        folders.extend(self.podman(&[]).iter().filter_map(|file| Some(file.parent()?.to_owned())));
        folders.push(self.root.join("var/lib/containers/storage"));
        folders
    }

    /// A folder for each container, by its id.
    fn docker(&self, users: &[u32]) -> Vec<PathBuf> {
        #[derive(Deserialize)]
        struct Settings {
            #[serde(rename = "data-root")]
            root: Option<PathBuf>,
        }
        let settings = read(&self.root.join("etc/docker/daemon.json"))
            .and_then(|text| serde_json::from_slice::<Settings>(&text).ok());
        let mut roots = vec![self.root.join("var/lib/docker")];
        roots.extend(settings.and_then(|settings| settings.root).map(|root| self.within(&root)));
        roots.extend(self.homes(users).map(|home| home.join(".local/share/docker")));
        roots.into_iter().map(|root| root.join("containers")).collect()
    }

    /// One file for all containers of a store; CRI-O keeps its there as well.
    fn podman(&self, users: &[u32]) -> Vec<PathBuf> {
        #[derive(Deserialize)]
        struct Settings {
            storage: Storage,
        }
        #[derive(Deserialize)]
        struct Storage {
            graphroot: Option<PathBuf>,
        }
        let settings = read(&self.root.join("etc/containers/storage.conf"))
            .and_then(|text| String::from_utf8(text).ok())
            .and_then(|text| toml::from_str::<Settings>(&text).ok());
        let mut roots = vec![self.root.join("var/lib/containers/storage")];
        roots.extend(settings.and_then(|settings| settings.storage.graphroot).map(|root| self.within(&root)));
        roots.extend(self.homes(users).map(|home| home.join(".local/share/containers/storage")));
        let stores = roots.iter().flat_map(|root| {
            // One folder per driver: `overlay-containers`, `vfs-containers`.
            let drivers = entries(root).into_iter().filter(|name| name.ends_with("-containers"));
            drivers.map(|driver| root.join(driver)).collect::<Vec<_>>()
        });
        let files = ["containers.json", "volatile-containers.json"];
        stores.flat_map(|store| files.map(|file| store.join(file))).filter(|file| file.exists()).collect()
    }

    /// `nerdctl/ADDRESS/names/NAMESPACE/NAME`, each a file that holds the id.
    fn nerdctl(&self) -> Vec<Named> {
        let mut found = Vec::new();
        let top = self.root.join("var/lib/nerdctl");
        for names in entries(&top).iter().map(|address| top.join(address).join("names")) {
            for namespace in entries(&names).iter().map(|namespace| names.join(namespace)) {
                for name in entries(&namespace) {
                    let Some(id) = read(&namespace.join(&name)).and_then(|id| String::from_utf8(id).ok()) else {
                        continue;
                    };
                    found.push(Named { id: id.trim().to_owned(), name });
                }
            }
        }
        found
    }

    /// The kubelet's links to logs: `POD_NAMESPACE_CONTAINER-ID.log`. The name
    /// is made of all three, as `NAMESPACE/POD/CONTAINER`.
    fn kubernetes(&self) -> Vec<Named> {
        let files = entries(&self.root.join("var/log/containers"));
        let named = |file: &String| {
            let (name, id) = file.strip_suffix(".log")?.rsplit_once('-')?;
            let mut parts = name.splitn(3, '_');
            let (pod, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Named { id: id.to_owned(), name: format!("{namespace}/{pod}/{container}") })
        };
        files.iter().filter_map(named).collect()
    }

    fn homes(&self, users: &[u32]) -> impl Iterator<Item = PathBuf> {
        let home = |uid: &u32| nix::unistd::User::from_uid((*uid).into()).ok().flatten().map(|user| user.dir);
        users.iter().filter_map(home).map(|home| self.within(&home))
    }

    /// An absolute path as a settings file has it.
    fn within(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Namespace, pod and container, where the name of a container is the
/// kubelet's.
pub fn in_pod(name: &str) -> Option<[&str; 3]> {
    let mut parts = name.split('/');
    let found = [parts.next()?, parts.next()?, parts.next()?];
    (parts.next().is_none() && found.iter().all(|part| !part.is_empty())).then_some(found)
}

/// Names that were asked for before.
#[derive(Debug)]
pub(super) struct Names {
    engines: Engines,
    known: Mutex<LruCache<String, Option<String>>>,
}

impl Default for Names {
    fn default() -> Self {
        Self { engines: Engines::default(), known: Mutex::new(LruCache::new(MAX_NAMES)) }
    }
}

impl Names {
    /// The name of the container that a cgroup is in, if it has one.
    pub(super) fn of(&self, cgroup: &str) -> Option<String> {
        let id = cgroups::container(cgroup)?;
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return known.clone();
        }
        let name = self.engines.name(id, cgroups::user(cgroup));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).put(id.to_owned(), name.clone());
        name
    }
}

fn docker(folder: &Path, id: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "Name")]
        name: String,
    }
    let state: State = serde_json::from_slice(&read(&folder.join(id).join("config.v2.json"))?).ok()?;
    let name = state.name.trim_start_matches('/');
    (!name.is_empty()).then(|| name.to_owned())
}

fn podman(file: &Path) -> Vec<Named> {
    #[derive(Deserialize)]
    struct State {
        id: String,
        #[serde(default)]
        names: Vec<String>,
    }
    let states: Vec<State> = read(file).and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    states.into_iter().filter_map(|state| Some(Named { name: state.names.into_iter().next()?, id: state.id })).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(file).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    #[test]
    fn every_engine_tells_its_names() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        let id = |letter: &str| letter.repeat(64);
        let (a, b, c, d, e, f) = (id("a"), id("b"), id("c"), id("d"), id("e"), id("f"));
        write(root, &format!("var/lib/docker/containers/{a}/config.v2.json"), r#"{"ID":"x","Name":"/web"}"#);
        write(root, "etc/docker/daemon.json", r#"{"data-root": "/data/docker"}"#);
        write(root, &format!("data/docker/containers/{b}/config.v2.json"), r#"{"Name":"/moved"}"#);
        write(root, &format!("data/docker/containers/{}/config.v2.json", id("0")), "{");
        write(
            root,
            "var/lib/containers/storage/overlay-containers/containers.json",
            &format!(r#"[{{"id":"{c}","names":["job"],"image":""}},{{"id":"{}"}}]"#, id("1")),
        );
        write(root, "etc/containers/storage.conf", "[storage]\ndriver = \"vfs\"\ngraphroot = \"/data/pods\"\n");
        write(
            root,
            "data/pods/vfs-containers/containers.json",
            &format!(r#"[{{"id":"{d}","names":["k8s_app_web-1_shop_uid_0"]}}]"#),
        );
        write(root, "var/lib/nerdctl/1935db59/names/default/cache", &format!("{e}\n"));
        write(root, &format!("var/log/containers/web-1_shop_app-{d}.log"), "");
        write(root, &format!("var/log/containers/web-1_shop_my-side_car-{f}.log"), "");
        let engines = Engines { root: root.into() };
        let found = engines.names(&[]);
        let names: Vec<(&str, &str)> = found.iter().map(|named| (&named.id[..1], named.name.as_str())).collect();
        let expected = [
            ("a", "web"),
            ("b", "moved"),
            ("c", "job"),
            ("d", "k8s_app_web-1_shop_uid_0"),
            ("d", "shop/web-1/app"),
            ("e", "cache"),
            ("f", "shop/web-1/my-side_car"),
        ];
        assert_eq!(names, expected);
        for (id, name) in [(&a, "web"), (&b, "moved"), (&c, "job"), (&d, "shop/web-1/app"), (&e, "cache")] {
            assert_eq!(engines.name(id, None).as_deref(), Some(name));
        }
        assert_eq!(engines.name(&id("9"), None), None);
        assert_eq!(in_pod("shop/web-1/app"), Some(["shop", "web-1", "app"]));
        assert_eq!(["web", "a/b", "a//b", "a/b/c/d"].map(in_pod), [None; 4]);
    }

    #[test]
    fn no_engine_has_nothing_to_tell() {
        let dir = tempfile::tempdir().expect("a folder");
        let engines = Engines { root: dir.path().into() };
        assert_eq!(engines.names(&[0]), []);
        assert_eq!(engines.name("x", Some(0)), None);
        assert_eq!(Names::default().of("/system.slice/nginx.service"), None);
    }
}
