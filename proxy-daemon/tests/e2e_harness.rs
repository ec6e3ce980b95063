//! The harness itself: every server and every client script works without
//! retryscope, so that a failure elsewhere is retryscope's.
mod common;

use common::{
    NAME, Run, TestCa, TestCgroup, Upstream, Wire, cgroup, clients, pattern,
    servers::{AWS, Moto, Nginx},
    sha256,
};
use serde_json::json;

/// Every client fetches from the in-process upstream directly, and the
/// upstream's routes answer as the tests expect of them.
#[test]
fn clients_reach_the_upstream() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let url = format!("https://{NAME}/bytes/70000");
    let script = |name: &str| clients::script(name).into_os_string();
    let direct = || Run::direct().to(NAME, upstream.address, &ca);
    let expected = sha256(&pattern(70_000));
    for flag in ["--http1.1", "--http2"] {
        let got = direct().go([clients::curl().as_os_str(), "-sS".as_ref(), flag.as_ref(), url.as_ref()]).ok();
        assert_eq!(sha256(&got.stdout), expected, "curl {flag}");
    }
    for library in ["requests", "urllib", "httpx", "httpx-h2"] {
        let command = [clients::python().into(), script("fetch.py"), library.into(), url.clone().into()];
        assert_eq!(direct().go(command).ok().json()["sha256"], expected, "{library}");
    }
    let got = direct().go([clients::node().into(), script("fetch.mjs"), url.clone().into()]).ok();
    assert_eq!(got.json()["sha256"], expected, "node");
    let store = clients::java_trust(ca.dir(), &ca.pem());
    let got = direct()
        .env("JAVA_TOOL_OPTIONS", format!("-Djavax.net.ssl.trustStore={}", store.display()))
        .go([clients::java().into(), script("Fetch.java"), url.clone().into()])
        .ok();
    assert_eq!(got.json()["sha256"], expected, "java");
    let got = direct().go([clients::need("wget", "wget").into(), "-qO-".into(), url.into()] as [std::ffi::OsString; 3]);
    assert_eq!(sha256(&got.ok().stdout), expected, "wget");
    assert_eq!(upstream.received().len(), 9);
    assert_eq!(upstream.received().iter().filter(|it| it.http2).count(), 3, "curl, httpx and Java speak HTTP/2");
}

/// HTTP/2 trailers go both ways, and the wire client and server agree.
#[test]
fn exact_bytes_and_trailers() {
    let ca = TestCa::new();
    let upstream = Upstream::start(&ca);
    let python = clients::python();
    let got = Run::direct()
        .to(NAME, upstream.address, &ca)
        .go([python.clone().into(), clients::script("h2_trailers.py").into(), NAME.into(), "/trailers".into()]
            as [std::ffi::OsString; 4])
        .ok()
        .json();
    assert_eq!(got["trailers"], json!([["x-checksum", "abc123"], ["x-second", "two"]]));
    assert_eq!(upstream.received()[0].trailers[0], ("x-client-checksum".into(), "beef".into()));

    let wire = Wire::start(&ca, |mut conn| async move {
        conn.head().await?;
        conn.send("HTTP/1.1 299 Odd Reason\r\nX-CaSe: 1\r\n\r\nbody").await?;
        conn.close().await;
        Ok(())
    });
    let steps = json!([{"send": "GET / HTTP/1.1\r\nhOsT: a\r\n\r\n"}, {"until": "\r\n\r\n"}, {"eof": true}]);
    let got = Run::direct()
        .to(NAME, wire.address, &ca)
        .stdin(steps.to_string().as_bytes())
        .start([python.into(), clients::script("wire.py").into(), NAME.into(), "443".into()] as [std::ffi::OsString; 4])
        .finish()
        .ok()
        .json();
    assert_eq!(got["got"], json!(["HTTP/1.1 299 Odd Reason\r\nX-CaSe: 1\r\n\r\n", "body"]), "{got}");
    assert_eq!(wire.heads(), ["GET / HTTP/1.1\r\nhOsT: a\r\n\r\n"]);
}

/// moto answers boto3 under AWS's own names, and nginx serves files.
#[test]
fn real_servers_answer() {
    let moto = Moto::shared();
    let plan = json!({
        "calls": [["s3", "create_bucket", {"Bucket": "bucket", "CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}],
                  ["s3", "put_object", {"Bucket": "bucket", "Key": "k", "Body": "hello"}],
                  ["s3", "get_object", {"Bucket": "bucket", "Key": "k"}]]});
    let mut run = Run::direct().upstream_ca(&moto.ca.pem());
    for name in AWS {
        run = run.map_host(name, moto.address);
    }
    for python in [clients::python(), clients::old_python()] {
        let mut run = Run::direct().upstream_ca(&moto.ca.pem());
        for name in AWS {
            run = run.map_host(name, moto.address);
        }
        let command = [python.into(), clients::script("boto_truth.py").into(), plan.to_string().into()];
        let truth = run.go(command as [std::ffi::OsString; 3]).ok().json();
        assert_eq!(truth["calls"][2]["body"], "hello", "{truth}");
        assert_eq!(truth["attempts"].as_array().map(Vec::len), Some(3));
        assert_eq!(truth["sent"].as_array().map(Vec::len), Some(3));
        let id = truth["sent"][0][0].as_str().expect("an id").to_owned();
        assert!(moto.received().iter().any(|(seen, request)| *seen == id && request.contains("attempt=1")));
    }
    drop(run);

    let ca = TestCa::new();
    let nginx = Nginx::start(&ca);
    nginx.put("file", &pattern(100_000));
    let got = Run::direct().to(NAME, nginx.address, &ca).go([
        clients::curl().into(),
        "-sS".into(),
        "--http2".into(),
        format!("https://{NAME}/file").into(),
    ] as [std::ffi::OsString; 4]);
    assert_eq!(sha256(&got.ok().stdout), sha256(&pattern(100_000)));
}

/// A test's cgroup holds the process put into it and is gone afterwards.
#[test]
fn cgroups_come_and_go() {
    let group = TestCgroup::new();
    let path = group.path().to_path_buf();
    let child = clients::bare(&mut group.command(&clients::need("cat", "coreutils")));
    common::until("the child has entered", common::SOON, || (cgroup::of(child.pid)? == path).then_some(()));
    drop(child);
    drop(group);
    assert!(!path.exists());
}
