//! The API's client, where it looks at attempts: what `retryscope flows` and
//! every live view speak.
use std::{collections::VecDeque, io, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, task::JoinHandle};

use super::{
    CheckedRule, Client, ClientError, Completed, NewRule,
    client::{escape, refusal},
};
use crate::history::{AttemptDetail, AttemptEntry, CallsPage, Curl, Page, Series, Span};

/// The longest event that is read, in bytes.
const MAX_EVENT: usize = 1 << 20;
/// How soon an instance begins to tell.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which attempts or calls are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    pub filter: Option<&'a str>,
    pub limit: Option<usize>,
    pub before: Option<u64>,
    pub after: Option<u64>,
}

/// A path with parameters.
struct Question(String);

impl Question {
    fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push('=');
            escape(&mut self.0, &value.to_string());
        }
        self
    }

    fn wanted(self, wanted: &Wanted<'_>) -> Self {
        self.with("filter", wanted.filter)
            .with("limit", wanted.limit)
            .with("before", wanted.before)
            .with("after", wanted.after)
    }
}

impl Client {
    async fn look<T: serde::de::DeserializeOwned>(&self, question: Question) -> Result<T, ClientError> {
        self.call(Method::GET, &question.0, None::<&()>).await
    }

    /// Ended attempts, newest first.
    pub async fn attempts(&self, wanted: &Wanted<'_>) -> Result<Page, ClientError> {
        self.look(Question::new("/v1/attempts").wanted(wanted)).await
    }

    pub async fn attempt(&self, id: u64) -> Result<AttemptDetail, ClientError> {
        self.look(Question::new(&format!("/v1/attempts/{id}"))).await
    }

    pub async fn curl(&self, id: u64) -> Result<Curl, ClientError> {
        self.look(Question::new(&format!("/v1/attempts/{id}/curl"))).await
    }

    /// Calls with their attempts, newest first.
    pub async fn calls(&self, wanted: &Wanted<'_>) -> Result<CallsPage, ClientError> {
        self.look(Question::new("/v1/calls").wanted(wanted)).await
    }

    /// Counts over time.
    pub async fn timeline(&self, span: &Span, filter: Option<&str>) -> Result<Series, ClientError> {
        let question = Question::new("/v1/timeline")
            .with("from", span.from_ms)
            .with("to", span.to_ms)
            .with("buckets", Some(span.buckets))
            .with("before", span.before)
            .with("processes", Some(span.processes))
            .with("filter", filter);
        self.look(question).await
    }

    /// What may come at the end of a filter that is typed.
    pub async fn complete(&self, text: &str) -> Result<Completed, ClientError> {
        self.look(Question::new("/v1/filters/complete").with("text", Some(text))).await
    }

    /// Says whether a rule could be added.
    pub async fn check(&self, rule: &str) -> Result<CheckedRule, ClientError> {
        self.call(Method::POST, "/v1/rules/check", Some(&NewRule { rule: rule.to_owned() })).await
    }

    /// Attempts as they end: from after this one, or from now on.
    pub async fn follow(&self, filter: Option<&str>, after: Option<u64>) -> Result<Following, ClientError> {
        let question = Question::new("/v1/follow").with("filter", filter).with("after", after);
        match tokio::time::timeout(PATIENCE, Following::start(self, &question.0)).await {
            Ok(following) => following,
            Err(_) => Err(ClientError::Broken(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }
}

/// What a follower is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Attempt(Box<AttemptEntry>),
    /// So many attempts are not told of: they came faster than they were read.
    Skipped(u64),
}

/// A connection on which attempts are told as they end.
#[derive(Debug)]
pub struct Following {
    body: Incoming,
    /// What has come of the next event.
    buffer: Vec<u8>,
    told: VecDeque<Told>,
    ended: bool,
    driver: JoinHandle<()>,
}

#[derive(Deserialize)]
struct Skipped {
    skipped: u64,
}

impl Following {
    async fn start(client: &Client, path: &str) -> Result<Self, ClientError> {
        let broken = |error: &dyn std::fmt::Display| ClientError::Broken(error.to_string());
        let stream = UnixStream::connect(&client.0).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission,
            _ => broken(&error),
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let driver = tokio::spawn(async move {
            // How it ends is seen where its body is read.
            let _ = connection.await;
        });
        let request = Request::get(path).header("host", "retryscope").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (status, body) = (response.status(), response.into_body());
        if status != StatusCode::OK {
            let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
            return Err(refusal(status, &body));
        }
        Ok(Self { body, buffer: Vec::new(), told: VecDeque::new(), ended: false, driver })
    }

    /// What comes next; `None` once the instance has ended. May be dropped
    /// while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(Some(told));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                        self.read()?;
                    }
                }
                // An instance that is killed says nothing.
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }

    /// There is more to tell already.
    pub fn is_behind(&self) -> bool {
        !self.told.is_empty()
    }

    /// Takes whole events out of what has come.
    fn read(&mut self) -> Result<(), ClientError> {
        let mut from = 0;
        while let Some(length) = memchr::memmem::find(&self.buffer[from..], b"\n\n") {
            let event = String::from_utf8_lossy(&self.buffer[from..from + length]).into_owned();
            from += length + 2;
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
            let data = field("data:").unwrap_or_default();
            let wrong = |error: serde_json::Error| ClientError::Broken(error.to_string());
            match field("event:") {
                Some("attempt") => self.told.push_back(Told::Attempt(serde_json::from_str(data).map_err(wrong)?)),
                Some("skipped") => {
                    let Skipped { skipped } = serde_json::from_str(data).map_err(wrong)?;
                    self.told.push_back(Told::Skipped(skipped));
                }
                Some("end") => self.ended = true,
                // A comment, or what a later version adds.
                _ => {}
            }
        }
        self.buffer.drain(..from);
        if self.buffer.len() > MAX_EVENT {
            return Err(ClientError::Broken("an event of the instance has no end".into()));
        }
        Ok(())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
