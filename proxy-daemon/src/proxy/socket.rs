//! The one place where sockets of ours are made and tuned.
use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc};

use tokio::net::{TcpSocket, TcpStream};

use crate::redirect::{Counters, Network, Pending, Redirected};

/// How connections come here and how ours avoid coming here: the kernel's
/// redirect, or a test's stand-in.
pub trait Gate: Send + Sync + std::fmt::Debug {
    /// Where an accepted connection was going, and whose it is. `None` where
    /// no redirect explains it.
    fn origin_of(&self, accepted: std::os::fd::BorrowedFd<'_>) -> Option<Redirected>;

    /// What was counted on the way here.
    fn counters(&self) -> Counters;

    /// A socket in a connection's network namespace; `None` where that is our
    /// own.
    fn socket_in(&self, network: Network, v6: bool) -> Option<Pending>;

    /// Marks a socket as ours before it connects.
    fn exempt(&self, socket: std::os::fd::BorrowedFd<'_>) -> io::Result<()>;

    /// Lets every new connection of the target go direct, or no longer.
    fn bypass(&self, on: bool) -> io::Result<()>;
}

/// Connects past the redirect: to an upstream, or to where traces go. From the
/// network namespace in which the client is.
///
/// # Errors
/// As `connect(2)`: the failure is the upstream's, to be mirrored.
pub async fn connect(gate: &Arc<dyn Gate>, network: Network, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match gate.socket_in(network, to.is_ipv6()) {
        None if to.is_ipv4() => TcpSocket::new_v4()?,
        None => TcpSocket::new_v6()?,
        Some(pending) => {
            // Nobody answers once the namespace's last process is gone.
            let made = pending.await.map_err(|_| io::ErrorKind::NetworkDown)??;
            TcpSocket::from_std_stream(made.into())
        }
    };
    gate.exempt(socket.as_fd())?;
    let stream = socket.connect(to).await?;
    // Without it every exchange of small writes waits for delayed
    // acknowledgements, some 40 ms.
    stream.set_nodelay(true)?;
    Ok(stream)
}
