//! What the sites answer: bytes and echoes, an object store, a folder of
//! files, a git repository, gRPC.
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    common::{clients, pattern},
    site::{Answer, Handler},
};

/// `/bytes/N`, `/echo`, and `/page`, whose script asks for both.
pub(crate) fn plain() -> Handler {
    Box::new(|head, body| {
        let path = head.uri.path();
        if let Some(length) = path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            return Answer::ok("application/octet-stream", pattern(length));
        }
        match path {
            "/echo" => Answer::ok("application/octet-stream", body.to_vec()),
            "/page" => Answer::ok("text/html", std::fs::read(clients::script("matrix/page.html")).expect("the page")),
            _ => Answer::status(404),
        }
    })
}

/// Takes every object, and has one of 70,000 bytes under each name.
pub(crate) fn s3() -> Handler {
    Box::new(|head, _| {
        let answer = match head.method {
            http::Method::PUT => Answer::status(200),
            _ => Answer::ok("application/octet-stream", pattern(70_000))
                .header("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
        };
        answer.header("etag", "\"0123456789abcdef0123456789abcdef\"").header("x-amz-request-id", "0123456789ABCDEF")
    })
}

/// STS, asked who is asking.
pub(crate) fn sts() -> Handler {
    const BODY: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:iam::123456789012:user/Alice</Arn><UserId>AIDACKCEVSQ6C2EXAMPLE</UserId><Account>123456789012</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"#;
    Box::new(|_, _| Answer::ok("text/xml", BODY))
}

/// The files below a folder; a folder in it is answered by its `index.html`.
pub(crate) fn files(root: &Path) -> Handler {
    let root = root.to_owned();
    Box::new(move |head, _| {
        let path = head.uri.path().trim_start_matches('/');
        let mut file = root.join(path);
        if path.contains("..") {
            return Answer::status(404);
        }
        if file.is_dir() {
            file = file.join("index.html");
        }
        let kind = match file.extension().and_then(|name| name.to_str()) {
            Some("html") => "text/html",
            Some("json") => "application/json",
            _ => "application/octet-stream",
        };
        std::fs::read(&file).map_or_else(|_| Answer::status(404), |bytes| Answer::ok(kind, bytes))
    })
}

/// The repositories below a folder, by git's own `http-backend`.
pub(crate) fn git(root: &Path) -> Handler {
    let git = clients::need("git", "git");
    let root = root.to_owned();
    Box::new(move |head, body| cgi(&git, &root, head, body).unwrap_or_else(|_| Answer::status(500)))
}

fn cgi(git: &Path, root: &Path, head: &http::request::Parts, body: &[u8]) -> std::io::Result<Answer> {
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut child = Command::new(git)
        .arg("http-backend")
        .env_clear()
        .envs(clients::environment())
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REQUEST_METHOD", head.method.as_str())
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may answer without reading all of it.
        let _ = stdin.write_all(body);
    }
    let output = child.wait_with_output()?.stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(output.len());
    let mut answer = Answer::status(200);
    answer.body = output.get(end + 4..).unwrap_or_default().to_vec();
    for (name, value) in String::from_utf8_lossy(&output[..end]).lines().filter_map(|line| line.split_once(": ")) {
        match name {
            "Status" => answer.status = value.get(..3).and_then(|code| code.parse().ok()).unwrap_or(500),
            _ => answer.headers.push((name.to_ascii_lowercase(), value.to_owned())),
        }
    }
    Ok(answer)
}

/// A unary gRPC call, answered by what it said.
pub(crate) fn grpc() -> Handler {
    Box::new(|_, body| {
        let mut answer = Answer::ok("application/grpc", body.to_vec());
        answer.trailers = vec![("grpc-status", "0"), ("x-note", "from the server")];
        answer
    })
}

/// Makes what a client is to fetch; the programs must succeed.
pub(crate) fn made(folder: &Path, commands: &[&[&str]]) -> PathBuf {
    for words in commands {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(folder).env_clear().envs(clients::environment());
        let output = command.output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    folder.into()
}
