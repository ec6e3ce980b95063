//! S3 over TLS with a file store, by s3s and s3s-fs.
//!
//! Signatures are verified, so a request that was changed on its way is
//! refused. `BUCKET.NAME` is a bucket's host for every `--name` that is not a
//! wildcard; every other host, such as an address, is the service itself.
use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{
    S3Result,
    auth::SimpleAuth,
    host::{S3Host, VirtualHost},
    service::S3ServiceBuilder,
};
use tokio_rustls::TlsAcceptor;

use crate::{certificates::Identity, net::Listen};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    identity: Identity,
    /// A bucket to begin with
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,
    /// Where objects are kept; a temporary folder unless given
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[arg(long, default_value = "AKIDEXAMPLE")]
    access_key: String,
    #[arg(long, default_value = "example-secret")]
    secret_key: String,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let store = options.store.unwrap_or_else(|| temporary.path().to_owned());
    for bucket in &options.buckets {
        fs::create_dir_all(store.join(bucket)).with_context(|| format!("cannot make the bucket {bucket}"))?;
    }

    let files = s3s_fs::FileSystem::new(&store)
        .map_err(|error| anyhow::anyhow!("cannot open the store {}: {error:?}", store.display()))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(options.access_key, options.secret_key));
    builder.set_host(Names(options.identity.names.iter().filter(|name| !name.starts_with('*')).cloned().collect()));
    let service = builder.build();

    let tls = TlsAcceptor::from(Arc::new(options.identity.server(&[b"h2", b"http/1.1"])?));
    let http = auto::Builder::new(TokioExecutor::new());
    options
        .listen
        .accept(|stream| {
            let (tls, http, service) = (tls.clone(), http.clone(), service.clone());
            async move {
                if let Ok(stream) = tls.accept(stream).await {
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            }
        })
        .await
}

struct Names(Vec<String>);

impl S3Host for Names {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let name = host.split(':').next().unwrap_or_default();
        let bucket =
            self.0.iter().find_map(|domain| Some((domain, name.strip_suffix(domain.as_str())?.strip_suffix('.')?)));
        Ok(match bucket {
            Some((domain, bucket)) => VirtualHost::new(domain).with_bucket(bucket),
            None => VirtualHost::new(name),
        })
    }
}
