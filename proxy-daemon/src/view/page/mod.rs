//! The page of a running instance: its files and the local API, for a browser.
//!
//! In: connections to an address of the loopback, unless another was asked
//! for. Out: the page to whoever comes by that address ([`guard`]), and the
//! API to whoever has the token besides ([`Token`]). Invariants: nothing is
//! told or changed without the token; the token is in no log, no report and
//! no file; what is open at once is bounded, and so is how long a request may
//! take to come.
mod assets;
mod guard;
mod serve;
mod token;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::task::JoinHandle;

use crate::control::{self, Controlled, Secret};
use token::Token;

/// Where the page is served unless an address is given: at a free port.
pub const DEFAULT: &str = "127.0.0.1:0";

/// The page's address, open before anything is started, and the token of this
/// start.
#[derive(Debug)]
pub struct Opened {
    listener: std::net::TcpListener,
    address: SocketAddr,
    token: Token,
}

impl Opened {
    /// Opens the address. Nothing is answered yet.
    pub fn at(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, token: Token::new()? })
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, without the token.
    pub fn place(&self) -> String {
        format!("http://{}/", self.reached())
    }

    /// What a browser is to open. The token stands behind the `#`, which
    /// browsers send to nobody.
    pub fn url(&self) -> Secret {
        Secret(format!("{}#token={}", self.place(), self.token.text()))
    }

    /// An address that can be typed: one that stands for all of a machine's is
    /// the loopback's to whoever sits at it.
    fn reached(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// What whoever asked for an address that others can reach should know.
    pub fn warning(&self) -> Option<String> {
        if self.address.ip().is_loopback() {
            return None;
        }
        Some(format!(
            "the page at {} can be reached from other machines, without encryption: who reads along gets its token. An address of the loopback and `ssh -L {port}:127.0.0.1:{port}` are safer",
            self.address,
            port = self.address.port()
        ))
    }
}

/// The page being served; it ends, with every connection to it, when this is
/// dropped.
#[derive(Debug)]
pub struct Page(JoinHandle<()>);

impl Page {
    pub fn start(opened: Opened, controlled: &Arc<Controlled>) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::from_std(opened.listener)?;
        let guarded = guard::around(assets::routes(), control::api(controlled), opened.token);
        Ok(Self(tokio::spawn(serve::serve(listener, guarded))))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_told_where_it_is_asked_for_alone() {
        let opened = Opened::at("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let url = opened.url();
        let (place, token) = url.0.split_once("#token=").expect("a token");
        assert_eq!((place, token.len()), (opened.place().as_str(), 43));
        assert!(!format!("{opened:?} {url:?}").contains(token), "{opened:?}");
        assert_eq!(opened.warning(), None);
        let other = Opened::at("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        assert_ne!(
            other.url().0.split_once('#').map(|it| it.1.to_owned()),
            url.0.split_once('#').map(|it| it.1.to_owned())
        );
    }

    #[test]
    fn an_address_that_others_reach_is_warned_of() {
        let opened = Opened::at("0.0.0.0:0".parse().expect("an address")).expect("a free port");
        assert!(opened.place().starts_with("http://127.0.0.1:"));
        assert!(opened.warning().is_some_and(|it| it.contains("without encryption") && it.contains("ssh -L")));
    }
}
