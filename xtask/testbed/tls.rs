//! A TLS client that offers what it is told to, and tells what came of it.
//!
//! In: a host, what to offer, how many connections. Out: one JSON object per
//! connection on standard output: what was negotiated and which certificate
//! was shown (its SHA-256), then the answer to a request; or the error. All
//! connections share one configuration, so that later ones resume.
use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustls::{
    ClientConfig, NamedGroup,
    client::{EchGreaseConfig, EchMode},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::certificates;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to connect
    #[arg(long, value_name = "HOST:PORT")]
    connect: String,
    /// The name to ask for and to verify
    #[arg(long, value_name = "HOST")]
    name: String,
    /// Do not ask for the name, only verify it
    #[arg(long)]
    no_sni: bool,
    /// Versions to offer [default: both]
    #[arg(long, value_delimiter = ',')]
    version: Vec<Version>,
    /// Groups to offer, in this order
    #[arg(long, value_delimiter = ',', default_value = "x25519,secp256r1,secp384r1")]
    group: Vec<Group>,
    /// Protocols to offer
    #[arg(long, value_delimiter = ',')]
    alpn: Vec<String>,
    /// Carry an ECH extension that means nothing, as browsers do
    #[arg(long)]
    ech_grease: bool,
    /// A certificate of the client's own, with its key in the same file
    #[arg(long, value_name = "PEM")]
    cert: Option<PathBuf>,
    /// An authority to trust, beside those of SSL_CERT_FILE
    #[arg(long = "ca", value_name = "PEM")]
    authorities: Vec<PathBuf>,
    /// How many connections, one after the other
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Wait for a line of standard input before each connection
    #[arg(long)]
    step: bool,
    /// What to send instead of a request
    #[arg(long)]
    say: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "lower")]
enum Group {
    X25519,
    Secp256r1,
    Secp384r1,
    X25519Mlkem768,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let connector = TlsConnector::from(Arc::new(config(&options)?));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    for _ in 0..options.count {
        if options.step && lines.next_line().await?.is_none() {
            break;
        }
        let told = once(&options, &connector).await.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        println!("{told}");
    }
    Ok(())
}

fn config(options: &Options) -> Result<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = options
        .group
        .iter()
        .map(|group| match group {
            Group::X25519 => aws_lc_rs::kx_group::X25519,
            Group::Secp256r1 => aws_lc_rs::kx_group::SECP256R1,
            Group::Secp384r1 => aws_lc_rs::kx_group::SECP384R1,
            Group::X25519Mlkem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        })
        .collect();
    let mut authorities = options.authorities.clone();
    authorities.extend(std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    let roots = certificates::roots(&authorities)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = if options.ech_grease {
        let suite = aws_lc_rs::hpke::ALL_SUPPORTED_SUITES.first().context("no suite for ECH")?;
        let (key, _) = suite.generate_key_pair()?;
        builder.with_ech(EchMode::Grease(EchGreaseConfig::new(*suite, key)))?
    } else {
        let versions: Vec<_> = options
            .version
            .iter()
            .map(|version| match version {
                Version::Tls12 => &TLS12,
                Version::Tls13 => &TLS13,
            })
            .collect();
        builder.with_protocol_versions(if versions.is_empty() { rustls::ALL_VERSIONS } else { &versions })?
    };
    let builder = builder.with_root_certificates(roots);
    let mut config = match &options.cert {
        Some(path) => {
            let chain = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(path)?)?
        }
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = !options.no_sni;
    config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

async fn once(options: &Options, connector: &TlsConnector) -> Result<Value> {
    let stream = TcpStream::connect(&options.connect).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(options.name.clone()).context("--name is neither a name nor an address")?;
    let mut stream = connector.connect(name, stream).await.context("handshake")?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let digest = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut told = json!({
        "version": format!("{:?}", session.protocol_version().context("no version")?),
        "group": session.negotiated_key_exchange_group().map(|group| shown(group.name())),
        "kind": format!("{:?}", session.handshake_kind().context("no handshake")?),
        "alpn": session.alpn_protocol().map(String::from_utf8_lossy),
        "certificate": digest,
    });
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", options.name);
    stream.write_all(options.say.as_ref().unwrap_or(&request).as_bytes()).await.context("asking")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await.context("reading")?;
    if answer.is_empty() {
        bail!("no answer");
    }
    told["answer"] = json!(String::from_utf8_lossy(&answer));
    Ok(told)
}

fn shown(group: NamedGroup) -> String {
    format!("{group:?}")
}
