//! Bytes passed untouched, both ways, until both sides have ended.
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{failure, h1::End};
use crate::flow::Failure;

/// Sends `first` (what was read while classifying) and then whatever comes.
/// Half-closes pass as such; a failure of one side is the other's reset.
pub(super) async fn run(client: &mut TcpStream, upstream: &mut TcpStream, first: &[u8]) -> End {
    let passed = async {
        upstream.write_all(first).await?;
        tokio::io::copy_bidirectional(client, upstream).await
    };
    match passed.await {
        Ok(_) => End::Closed,
        Err(error) if failure::of(&error) == Failure::Closed => End::Cut,
        Err(_) => End::Reset,
    }
}
