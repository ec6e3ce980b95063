//! Which pods of a Kubernetes node are meant, by namespace and labels.
//!
//! In: selections as people write them, and the word of the cluster's API
//! server, which follows pods as they come and go. Out: patterns of the
//! cgroups that the kubelet makes for the chosen pods.
mod api;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use tokio::{sync::watch, task::JoinSet};

pub use api::{Account, ApiError};

use crate::redirect::{Patterns, Redirect};

/// Pods of a node that are looked at; the kubelet runs some hundred.
const MAX_PODS: usize = 4096;

/// A namespace, or all, and labels that a pod there must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    /// `None`: every namespace.
    namespace: Option<String>,
    /// As `kubectl get pods -l` takes it; empty: any labels.
    labels: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` chooses no pods; write NAMESPACE or NAMESPACE/LABELS, as in shop, shop/app=web,tier!=db or */retryscope=on"
)]
pub struct SelectionError(String);

impl Selection {
    pub fn parse(text: &str) -> Result<Self, SelectionError> {
        let (namespace, labels) = text.split_once('/').unwrap_or((text, ""));
        let is_name = |name: &str| {
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !name.is_empty() && name.len() <= 63 && name.bytes().all(legal) && !name.starts_with('-')
        };
        if !(namespace == "*" || is_name(namespace)) || labels.chars().any(char::is_control) || labels.len() > 4096 {
            return Err(SelectionError(text.into()));
        }
        Ok(Self { namespace: (namespace != "*").then(|| namespace.to_owned()), labels: labels.trim().to_owned() })
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_deref().unwrap_or("*");
        if self.labels.is_empty() { f.write_str(namespace) } else { write!(f, "{namespace}/{}", self.labels) }
    }
}

/// A pod, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    /// As the kubelet names the cgroup after.
    uid: String,
    /// `NAMESPACE/NAME`, for people.
    name: String,
}

/// The cgroups of pods: `kubepods-burstable-podUID.slice` with underscores for
/// dashes where systemd manages them, `podUID` where the kubelet does, and
/// `SLICE:cri-containerd:ID` where they disagree.
fn patterns(pods: &BTreeSet<Pod>) -> Patterns {
    let of = |pod: &Pod| {
        let (uid, slice) = (&pod.uid, pod.uid.replace('-', "_"));
        [
            format!("/**kubepods**-pod{slice}.slice"),
            format!("/**kubepods**-pod{slice}.slice:**"),
            format!("/**kubepods**/pod{uid}"),
        ]
    };
    let patterns: Vec<String> = pods.iter().take(MAX_PODS).flat_map(of).collect();
    Patterns::new(&patterns, &[], &[]).unwrap_or_else(|error| {
        tracing::error!(%error, "pods cannot be told from their cgroups");
        Patterns::default()
    })
}

/// Follows the pods of this node that any selection means. Returns once it is
/// known which they are now; they are followed as long as the set of tasks
/// lives.
///
/// # Errors
/// The API server could not be asked: whatever keeps it from answering is
/// there from the start.
pub async fn follow(
    account: Account,
    selections: &[Selection],
    redirect: &Arc<Redirect>,
) -> Result<(watch::Receiver<Patterns>, JoinSet<()>), ApiError> {
    let account = Arc::new(account);
    let (told, patterns_told) = watch::channel(Patterns::default());
    let known: Arc<std::sync::Mutex<BTreeMap<usize, BTreeSet<Pod>>>> = Arc::default();
    let mut tasks = JoinSet::new();
    let mut first = Vec::new();
    for (number, selection) in selections.iter().enumerate() {
        let client = api::Client::new(Arc::clone(&account), selection.clone(), Arc::clone(redirect));
        let (known, told) = (Arc::clone(&known), told.clone());
        let changed = move |pods: &BTreeSet<Pod>| {
            let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            known.insert(number, pods.clone());
            let all: BTreeSet<Pod> = known.values().flatten().cloned().collect();
            tracing::info!(pods = all.len(), "pods are chosen");
            if all.len() > MAX_PODS {
                tracing::warn!("more than {MAX_PODS} pods are chosen; the others go direct");
            }
            told.send_replace(patterns(&all));
        };
        let (pods, version) = client.list().await?;
        changed(&pods);
        first.push((client, pods, version, changed));
    }
    for (client, pods, version, changed) in first {
        tasks.spawn(client.follow(pods, version, changed));
    }
    Ok((patterns_told, tasks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_as_people_write_them() {
        let of = |text: &str| Selection::parse(text).map(|it| (it.namespace, it.labels));
        assert_eq!(of("shop"), Ok((Some("shop".into()), String::new())));
        assert_eq!(of("shop/app=web,tier!=db"), Ok((Some("shop".into()), "app=web,tier!=db".into())));
        assert_eq!(of("*/example.com/on"), Ok((None, "example.com/on".into())));
        assert_eq!(of("*"), Ok((None, String::new())));
        for wrong in ["", "/app=web", "Shop", "shop web", "-x", "shop/a\n"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pods_have_these_cgroups() {
        let uid = "0f3d1b0e-2c9a-4d5e-8f70-112233445566";
        let (slice, id) = (uid.replace('-', "_"), "ab".repeat(32));
        let one = patterns(&[Pod { uid: uid.into(), name: "shop/web".into() }].into());
        for path in [
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice"),
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slice}.slice"),
            format!("/kubepods/besteffort/pod{uid}"),
            format!("/kubepods/pod{uid}"),
            format!("/system.slice/containerd.service/kubepods-besteffort-pod{slice}.slice:cri-containerd:{id}"),
            format!("/a-test/kubepods.slice/kubepods-pod{slice}.slice"),
        ] {
            assert!(one.matches(&path, |_| None), "{path}");
        }
        let other = slice.replace("0f3d", "0f3e");
        for path in [
            format!("/kubepods.slice/kubepods-pod{other}.slice"),
            "/kubepods.slice/kubepods-burstable.slice".into(),
            format!("/user.slice/pod{uid}"),
        ] {
            assert!(!one.matches(&path, |_| None), "{path}");
        }
        assert!(patterns(&BTreeSet::new()).is_empty());
    }
}
