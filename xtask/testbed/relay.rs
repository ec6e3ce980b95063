//! A bare TLS-to-TLS relay: what terminating and re-encrypting costs where
//! nobody looks at the HTTP inside. The bench measures against it.
//!
//! It does the daemon's work minus what the daemon is for: reads the client
//! hello, connects upstream with the client's ALPN list, answers the client
//! with the protocol that the upstream chose, and copies bytes both ways.
//! Upstream sessions resume, and TCP_NODELAY is set on both legs.
use std::{collections::HashMap, io, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::ServerName,
    server::{Acceptor, ClientHello},
};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::{
    certificates::{self, Identity},
    net::Listen,
};

/// The protocols that are mirrored, and none.
const PROTOCOLS: [Option<&[u8]>; 3] = [Some(b"h2"), Some(b"http/1.1"), None];

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    identity: Identity,
    /// Where every connection goes
    #[arg(long, value_name = "ADDR:PORT")]
    upstream: SocketAddr,
    /// An authority that the upstream's certificate may come from
    #[arg(long = "ca", value_name = "PEM", required = true)]
    authorities: Vec<PathBuf>,
    /// Bytes per direction and connection; a TLS record carries 16 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024)]
    buffer: usize,
}

struct Relay {
    upstream: SocketAddr,
    buffer: usize,
    roots: Arc<rustls::RootCertStore>,
    /// One per ALPN list that clients offer, so that sessions resume; an
    /// entry per distinct list of the few clients that a bench has.
    clients: std::sync::Mutex<HashMap<Vec<Vec<u8>>, TlsConnector>>,
    servers: HashMap<Option<&'static [u8]>, Arc<ServerConfig>>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut servers = HashMap::new();
    for protocol in PROTOCOLS {
        servers.insert(protocol, Arc::new(options.identity.server(protocol.as_slice())?));
    }
    let relay = Arc::new(Relay {
        upstream: options.upstream,
        buffer: options.buffer,
        roots: certificates::roots(&options.authorities)?,
        clients: std::sync::Mutex::default(),
        servers,
    });
    options
        .listen
        .accept(|stream| {
            let relay = relay.clone();
            async move {
                // A failed connection shows at the load client, which counts.
                let _ = relay.carry(stream).await;
            }
        })
        .await
}

impl Relay {
    async fn carry(&self, stream: TcpStream) -> Result<()> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let (name, connector) = self.upstream_side(&start.client_hello())?;

        let stream = TcpStream::connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        let mut upstream = connector.connect(name, stream).await?;

        let chosen = upstream.get_ref().1.alpn_protocol();
        let server = self.servers.get(&chosen).context("the upstream chose a protocol that nobody offered")?;
        let mut client = start.into_stream(server.clone()).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, self.buffer, self.buffer).await?;
        Ok(())
    }

    fn upstream_side(&self, hello: &ClientHello<'_>) -> Result<(ServerName<'static>, TlsConnector)> {
        let name = match hello.server_name() {
            Some(name) => ServerName::try_from(name.to_owned())?,
            None => ServerName::IpAddress(self.upstream.ip().into()),
        };
        let offered: Vec<Vec<u8>> = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let mut clients = self.clients.lock().map_err(|_| io::Error::other("a connection's task panicked"))?;
        let connector = clients.entry(offered).or_insert_with_key(|offered| {
            let mut config = ClientConfig::builder().with_root_certificates(self.roots.clone()).with_no_client_auth();
            config.alpn_protocols.clone_from(offered);
            TlsConnector::from(Arc::new(config))
        });
        Ok((name, connector.clone()))
    }
}
