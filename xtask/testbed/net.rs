//! What every server here shares: the listener, the ready line, the leash.
use std::{
    future::Future,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result};
use clap::Args;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// The loopback port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Stop when standard input closes, so that nothing outlives the program that started this
    #[arg(long)]
    leash: bool,
}

impl Listen {
    /// Accepts connections until the process is told to stop, each in a task
    /// of `serve`. A connection's own failure ends that connection only.
    pub(crate) async fn accept<F>(self, serve: impl Fn(TcpStream) -> F) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
            .await
            .with_context(|| format!("cannot listen on 127.0.0.1:{}", self.port))?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "ready {}", listener.local_addr()?)?;
        stdout.flush()?;
        drop(stdout);

        let mut stop = std::pin::pin!(stopped(self.leash));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                accepted = listener.accept() => {
                    let (stream, _) = accepted.context("cannot accept a connection: too many open files?")?;
                    stream.set_nodelay(true)?;
                    connections.spawn(serve(stream));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn stopped(leash: bool) {
    let closed = async {
        let mut stdin = tokio::io::stdin();
        let mut sink = [0; 256];
        while matches!(stdin.read(&mut sink).await, Ok(read) if read > 0) {}
    };
    if leash {
        tokio::select! {
            () = closed => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    } else {
        let _ = tokio::signal::ctrl_c().await;
    }
}
