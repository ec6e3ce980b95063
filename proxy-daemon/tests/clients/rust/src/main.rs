//! Clients written in Rust: `rust-clients reqwest|built-in|aws-sdk ORIGIN`.
//!
//! The first two fetch and post, and print a line for each answer: its status,
//! length and digest. `built-in` trusts the roots compiled into it and no
//! others. The last asks AWS's STS who is asking.
use std::error::Error;

use aws_credential_types::Credentials;
use aws_sdk_sts::config::Region;
use reqwest::{Certificate, Client, Response};
use sha2::{Digest, Sha256};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(kind), Some(origin)) = (words.next(), words.next()) else { return Err("KIND ORIGIN".into()) };
    match kind.as_str() {
        "reqwest" => fetch(&Client::new(), &origin).await,
        "built-in" => {
            let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der));
            fetch(&Client::builder().tls_certs_only(roots.collect::<Result<Vec<_>, _>>()?).build()?, &origin).await
        }
        "aws-sdk" => identify(&origin).await,
        other => Err(format!("there is no client {other}").into()),
    }
}

async fn fetch(client: &Client, origin: &str) -> Result<(), Box<dyn Error>> {
    tell(client.get(format!("{origin}/bytes/70000")).send().await?).await?;
    tell(client.post(format!("{origin}/echo")).body("0123456789".repeat(5000)).send().await?).await
}

async fn tell(answer: Response) -> Result<(), Box<dyn Error>> {
    let status = answer.status().as_u16();
    let body = answer.bytes().await?;
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{status} {} {digest}", body.len());
    Ok(())
}

async fn identify(origin: &str) -> Result<(), Box<dyn Error>> {
    let config = aws_sdk_sts::Config::builder()
        .endpoint_url(origin)
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::from_keys("key", "secret", None))
        .build();
    let answer = aws_sdk_sts::Client::from_conf(config).get_caller_identity().send().await?;
    println!("{:?} {:?}", answer.account(), answer.arn());
    Ok(())
}
