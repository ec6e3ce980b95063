//! Who may do what over the control socket, by what the kernel says of whoever
//! connected.
use axum::{
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::Method,
    middleware::Next,
    response::Response,
    serve::IncomingStream,
};
use tokio::net::UnixListener;

use super::server::refused;
use crate::process::peer_groups;

/// What is asked by POST, since it is long, and changes nothing.
const HARMLESS: &str = "/v1/rules/check";

/// Groups whose members may use the socket besides root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// See everything, change nothing.
    pub readers: Option<u32>,
    /// Change rules and ask for reloads as well.
    pub admins: Option<u32>,
}

/// Whoever is at the other end, as of when it connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// Absent where the kernel does not say.
    uid: Option<u32>,
    groups: Vec<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let Ok(credentials) = stream.io().peer_cred() else { return Self::default() };
        let mut groups = peer_groups(stream.io()).unwrap_or_default();
        groups.push(credentials.gid());
        Self { uid: Some(credentials.uid()), groups }
    }
}

impl Access {
    fn permits(self, peer: &Peer, changes: bool) -> bool {
        let member = |group: Option<u32>| group.is_some_and(|group| peer.groups.contains(&group));
        peer.uid == Some(0) || member(self.admins) || (!changes && member(self.readers))
    }
}

/// Lets through what the peer may ask for.
pub(super) async fn authorise(
    State(access): State<Access>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let changes = request.method() != Method::GET && request.uri().path() != HARMLESS;
    if access.permits(&peer, changes) {
        return next.run(request).await;
    }
    let what = if changes { "change anything here" } else { "see anything here" };
    let group = if changes { "admins" } else { "readers" };
    let error = format!(
        "you may not {what}; type the same with sudo, or have the group named by `{group}` in [control] of the daemon's configuration (of a sidecar: --{group})"
    );
    refused(axum::http::StatusCode::FORBIDDEN, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_groups_named() {
        let peer = |uid, groups: &[u32]| Peer { uid: Some(uid), groups: groups.to_vec() };
        let access = Access { readers: Some(10), admins: Some(20) };
        for (peer, reads, changes) in [
            (peer(0, &[0]), true, true),
            (peer(1000, &[1000]), false, false),
            (peer(1000, &[1000, 10]), true, false),
            (peer(1000, &[20]), true, true),
            (Peer::default(), false, false),
        ] {
            assert_eq!(access.permits(&peer, false), reads, "{peer:?}");
            assert_eq!(access.permits(&peer, true), changes, "{peer:?}");
        }
        assert!(!Access::default().permits(&peer(1000, &[10, 20]), false));
        assert!(Access::default().permits(&peer(0, &[]), true));
    }
}
