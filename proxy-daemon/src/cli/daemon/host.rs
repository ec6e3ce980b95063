//! What a daemon adds to the local API: its targets, and reloads.
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use sd_notify::NotifyState;

use super::{Level, manager, state::Kept};
use crate::{
    config::File,
    control::{self, Reloaded},
    keeper::{Answer, Keeper, Targets},
    proxy::{Account, Proxy},
};

#[derive(Clone, Debug)]
pub(super) struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// In force. Held while another is being read, so that one comes after
    /// the other.
    file: Mutex<File>,
    /// Those of the command line.
    targets: Targets,
    keeper: Keeper,
    keeper_pid: u32,
    key: PathBuf,
    level: Level,
    state: Option<Kept>,
    reloaded: Mutex<Option<bool>>,
    proxy: OnceLock<Arc<Proxy>>,
}

impl Host {
    pub(super) fn new(
        file: File,
        targets: Targets,
        keeper: Keeper,
        keeper_pid: u32,
        key: PathBuf,
        level: Level,
        state: Option<Kept>,
    ) -> Self {
        let file = Mutex::new(file);
        Self(Arc::new(Inner {
            file,
            targets,
            keeper,
            keeper_pid,
            key,
            level,
            state,
            reloaded: Mutex::default(),
            proxy: OnceLock::new(),
        }))
    }

    pub(super) fn shared(&self) -> Self {
        self.clone()
    }

    pub(super) fn keeper(&self) -> &Keeper {
        &self.0.keeper
    }

    /// The data path whose wishes about names a reload changes.
    pub(super) fn knows(&self, proxy: Arc<Proxy>) {
        // Set once.
        let _ = self.0.proxy.set(proxy);
    }

    fn change(&self, account: &Account) -> Result<Reloaded, String> {
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, rules) = match self.0.keeper.reload().map_err(|error| error.to_string())? {
            Answer::Reloaded { config, rules } => (config, rules),
            Answer::Broken { why } => return Err(why),
        };
        let new = File { path: file.path.clone(), text };
        let changeable = new.changeable(&rules).map_err(|error| error.to_string())?;
        let now = account.clock.now();
        account.rules.edit(|set| set.succeeded_by(changeable.rules), now).map_err(|error| error.to_string())?;
        if let Some(proxy) = self.0.proxy.get() {
            proxy.routes.replace(changeable.routes);
        }
        self.0.level.set(&changeable.config.log.level);
        let mut notes = Vec::new();
        if let Ok(old) = file.parse() {
            let later = old.unchangeable(&changeable.config);
            if !later.is_empty() {
                notes.push(format!(
                    "These hold only after a restart: {}. The file says otherwise than what is in force.",
                    later.join(", ")
                ));
            }
        }
        if !self.0.targets.is_empty() {
            notes.push("The targets are those of the command line; the file's are not heeded.".into());
        }
        // What needs a restart is compared with what the daemon started with.
        if notes.is_empty() {
            *file = new;
        }
        Ok(Reloaded { rules: account.rules.list().len(), notes })
    }
}

impl control::Host for Host {
    fn reload(&self, account: &Account) -> Result<Reloaded, String> {
        manager::reloading();
        let result = self.change(account);
        *self.0.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(result.is_ok());
        match &result {
            Ok(reloaded) => {
                tracing::info!(rules = reloaded.rules, "the configuration was read again");
                reloaded.notes.iter().for_each(|note| tracing::warn!("{note}"));
            }
            Err(why) => tracing::error!("the configuration is not in force; what was stays: {why}"),
        }
        manager::tell(&[NotifyState::Ready]);
        result
    }

    fn targets(&self) -> Vec<String> {
        self.0.keeper.targets()
    }

    fn keeper(&self) -> u32 {
        self.0.keeper_pid
    }

    fn porter(&self) -> Option<u32> {
        self.0.keeper.porter().map(|porter| porter.pid)
    }

    fn key(&self) -> &Path {
        &self.0.key
    }

    fn keep_bypass(&self, keep: bool) -> Result<(), String> {
        match &self.0.state {
            Some(state) => state.keep_bypass(keep),
            None if keep => {
                Err("this daemon keeps nothing over a restart: set `state_dir` in its configuration".into())
            }
            None => Ok(()),
        }
    }

    fn reloaded(&self) -> Option<bool> {
        *self.0.reloaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeps_bypass(&self) -> bool {
        self.0.state.as_ref().is_some_and(Kept::keeps_bypass)
    }
}
