//! The listeners in other network namespaces: they come and go.
use std::{io, net::SocketAddr, task::Poll};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};

use crate::redirect::Door;

/// Accepts from all of them.
#[derive(Debug)]
pub(super) struct Doors {
    coming: mpsc::Receiver<Door>,
    open: Vec<(TcpListener, oneshot::Receiver<()>)>,
    /// Where the next look begins: no door may keep others waiting.
    next: usize,
}

impl Doors {
    pub(super) fn new(coming: mpsc::Receiver<Door>) -> Self {
        Self { coming, open: Vec::new(), next: 0 }
    }

    /// The next connection through any door. May be given up and called anew
    /// without losing one.
    pub(super) async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        std::future::poll_fn(|context| {
            while let Poll::Ready(Some(door)) = self.coming.poll_recv(context) {
                match TcpListener::from_std(door.listener) {
                    Ok(listener) => self.open.push((listener, door.over)),
                    Err(error) => tracing::warn!(%error, "a listener cannot be served; connections to it wait in vain"),
                }
            }
            // What is over has a sender that is gone.
            self.open.retain_mut(|(_, over)| Future::poll(std::pin::Pin::new(over), context).is_pending());
            let count = self.open.len();
            for at in (0..count).map(|step| (self.next + step) % count) {
                if let Poll::Ready(accepted) = self.open[at].0.poll_accept(context) {
                    self.next = at + 1;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }
}
