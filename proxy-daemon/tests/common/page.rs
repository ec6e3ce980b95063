//! The page of a running instance, asked without a browser.
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;

use super::{SOON, run::retryscope};
use crate::words;

pub struct Page {
    pub address: SocketAddr,
    pub token: String,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Its status, and a refusal's sentence where it is one.
    #[track_caller]
    pub fn is(&self, status: u16, part: &str) {
        assert!(self.status == status && self.body.contains(part), "expected {status} and `{part}`: {self:?}");
    }
}

impl Page {
    /// As `retryscope page` tells it.
    #[track_caller]
    pub fn of(pid: i32) -> Self {
        let told = retryscope(words!["page", "--instance", pid.to_string()]).finish(SOON).ok().text();
        Self::parse(told.trim())
    }

    pub fn parse(url: &str) -> Self {
        let (address, token) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once("/#token="))
            .unwrap_or_else(|| panic!("no address of a page: {url}"));
        Self { address: address.parse().expect("an address"), token: token.into() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/#token={}", self.address, self.token)
    }

    /// With the token, as the page itself asks.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let fields = format!(
            "Host: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n",
            self.address, self.token
        );
        self.send(method, path, &fields, body)
    }

    /// With fields as they are given.
    pub fn send(&self, method: &str, path: &str, fields: &str, body: &str) -> Answer {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.raw(&format!("{method} {path} HTTP/1.1\r\n{fields}{length}Connection: close\r\n\r\n{body}"))
            .expect("an answer")
    }

    pub fn raw(&self, request: &str) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(SOON))?;
        // It may be answered before all of it was sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return Err(read.err().unwrap_or_else(|| io::Error::other(format!("no answer: {answer:?}"))));
        };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.into() })
    }
}
