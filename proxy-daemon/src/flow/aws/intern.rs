//! Names that are seen again and again, stored once.
use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

/// AWS has some twenty thousand operations; one host's processes use few.
/// Past this a name is simply allocated for each attempt.
const MAX_NAMES: usize = 8192;

static NAMES: LazyLock<RwLock<HashSet<Arc<str>>>> = LazyLock::new(RwLock::default);

pub(super) fn intern(name: &str) -> Arc<str> {
    if let Some(known) = NAMES.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Arc::clone(known);
    }
    let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
    // Another thread may have been first.
    if let Some(known) = names.get(name) {
        return Arc::clone(known);
    }
    let new: Arc<str> = name.into();
    if names.len() < MAX_NAMES {
        names.insert(Arc::clone(&new));
    }
    new
}
