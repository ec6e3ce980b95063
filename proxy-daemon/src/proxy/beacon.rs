//! An address that answers everybody who comes here by the redirect: whoever
//! connects to it learns that its connections are redirected.
//!
//! In: origins of connections. Out: what the instance's API says is answered
//! there, and nothing else. Such a connection is none of the target's.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{process::launch::NONCE, redirect};

#[derive(Debug)]
pub struct Beacon {
    pub address: SocketAddr,
    pub nonce: [u8; NONCE],
    answered: AtomicU64,
}

impl Beacon {
    /// At the given port, which is redirected.
    pub fn new(port: u16, nonce: [u8; NONCE]) -> Self {
        Self { address: SocketAddr::from((redirect::BEACON, port)), nonce, answered: AtomicU64::default() }
    }

    /// How often it was asked.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Answers a connection that was made to it.
    pub(super) async fn answer(&self, mut client: TcpStream) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        // Who has gone away has no question any more.
        if client.write_all(&self.nonce).await.is_ok() {
            let _ = client.shutdown().await;
        }
    }
}
