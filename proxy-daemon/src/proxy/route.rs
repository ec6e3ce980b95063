//! Where a connection leads, and whether it is looked into: a function of
//! the name asked for and the origin.
use std::net::{IpAddr, SocketAddr};

use arc_swap::ArcSwap;
use regex::Regex;

/// `NAME=ADDR[:PORT]`: the name leads to that address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In lower case.
    pub name: String,
    pub address: IpAddr,
    /// The origin's port where none is given.
    pub port: Option<u16>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteError {
    #[error("--map-host '{0}' is not NAME=ADDR[:PORT]; an example: s3.eu-west-1.amazonaws.com=127.0.0.1:8443")]
    Mapping(String),
    #[error("--map-host '{text}': '{name}' is not a host name; write the name without scheme, port or wildcard")]
    Name { text: String, name: String },
    #[error(
        "--map-host '{text}': '{address}' is not an IP address; look the address up and write it, as in NAME=192.0.2.7:443"
    )]
    Address { text: String, address: String },
    #[error(
        "host pattern '{0}' is not one; write a host name in which * stands for any characters, as in '*.amazonaws.com'"
    )]
    Pattern(String),
}

impl Mapping {
    /// Parses `NAME=ADDR[:PORT]`; an IPv6 address with a port stands in
    /// brackets.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let (name, address) = text.split_once('=').ok_or_else(|| RouteError::Mapping(text.into()))?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
            return Err(RouteError::Name { text: text.into(), name: name.into() });
        }
        let name = name.to_ascii_lowercase();
        if let Ok(address) = address.parse::<IpAddr>() {
            return Ok(Self { name, address, port: None });
        }
        match address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self { name, address: address.ip(), port: Some(address.port()) }),
            _ => Err(RouteError::Address { text: text.into(), address: address.into() }),
        }
    }
}

/// The user's wishes about names. A change holds for connections made from
/// then on.
#[derive(Debug, Default)]
pub struct Routes(ArcSwap<Wishes>);

#[derive(Debug, Default)]
struct Wishes {
    mappings: Vec<Mapping>,
    intercept: Vec<Regex>,
    passthrough: Vec<Regex>,
}

impl Routes {
    pub fn new(mappings: Vec<Mapping>, intercept: &[String], passthrough: &[String]) -> Result<Self, RouteError> {
        let patterns = |texts: &[String]| texts.iter().map(|text| pattern(text)).collect::<Result<Vec<_>, _>>();
        let (intercept, passthrough) = (patterns(intercept)?, patterns(passthrough)?);
        Ok(Self(ArcSwap::from_pointee(Wishes { mappings, intercept, passthrough })))
    }

    pub fn mappings(&self) -> Vec<Mapping> {
        self.0.load().mappings.clone()
    }

    /// Puts other wishes in their place.
    pub fn replace(&self, other: Self) {
        self.0.store(other.0.into_inner());
    }

    /// The address to connect to for a client that asked for `name` (if it
    /// did) at `origin`.
    pub(super) fn upstream(&self, name: Option<&str>, origin: SocketAddr) -> SocketAddr {
        let wishes = self.0.load();
        let mapped = match name {
            Some(name) => wishes.mappings.iter().find(|mapping| mapping.name.eq_ignore_ascii_case(name)),
            // Without a name, the address must tell; it can where one mapping
            // alone leads there.
            None => {
                let mut here = wishes.mappings.iter().filter(|mapping| mapping.address == origin.ip());
                here.next().filter(|first| here.all(|other| other.port == first.port))
            }
        };
        mapped.map_or(origin, |mapping| SocketAddr::new(mapping.address, mapping.port.unwrap_or(origin.port())))
    }

    /// Where a name is mapped to, for who has no origin.
    pub fn mapped(&self, name: &str, port: u16) -> Option<SocketAddr> {
        let wishes = self.0.load();
        let mapping = wishes.mappings.iter().find(|mapping| mapping.name.eq_ignore_ascii_case(name))?;
        Some(SocketAddr::new(mapping.address, mapping.port.unwrap_or(port)))
    }

    /// Whether connections to this name (or address, where no name was asked
    /// for) are looked into.
    pub(super) fn intercepts(&self, name: &str) -> bool {
        let wishes = self.0.load();
        let any = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(name));
        (wishes.intercept.is_empty() || any(&wishes.intercept)) && !any(&wishes.passthrough)
    }
}

/// A glob over host names: `*` stands for any characters.
fn pattern(text: &str) -> Result<Regex, RouteError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*' | b':');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) {
        return Err(RouteError::Pattern(text.into()));
    }
    let body = regex::escape(text).replace(r"\*", ".*");
    Regex::new(&format!("(?i)^{body}$")).map_err(|_| RouteError::Pattern(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn mappings_are_parsed() {
        let mapping = Mapping::parse("S3.example=127.0.0.1:8443").expect("valid");
        assert_eq!((mapping.name.as_str(), mapping.port), ("s3.example", Some(8443)));
        assert_eq!(Mapping::parse("a=::1").expect("valid").address, "::1".parse::<IpAddr>().expect("v6"));
        assert_eq!(Mapping::parse("a=[::1]:9").expect("valid").port, Some(9));
        for wrong in
            ["a", "=1.2.3.4", "a=b", "a=1.2.3.4:0", "a=1.2.3.4:99999", "*.a=1.2.3.4", "a b=1.2.3.4", "a\n=1.2.3.4"]
        {
            assert!(Mapping::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_name_decides_then_the_address() {
        let mapping = |text| Mapping::parse(text).expect("valid");
        let routes = Routes::new(
            vec![mapping("a=127.0.0.1:1000"), mapping("b=127.0.0.1:2000"), mapping("c=127.0.0.2")],
            &[],
            &[],
        )
        .expect("valid");
        let origin = address("127.0.0.1:443");
        assert_eq!(routes.upstream(Some("A"), origin), address("127.0.0.1:1000"));
        assert_eq!(routes.upstream(Some("b"), origin), address("127.0.0.1:2000"));
        assert_eq!(routes.upstream(Some("other"), origin), origin);
        assert_eq!(routes.upstream(None, origin), origin);
        assert_eq!(routes.upstream(Some("c"), address("127.0.0.9:8443")), address("127.0.0.2:8443"));
        assert_eq!(routes.upstream(None, address("127.0.0.2:443")), address("127.0.0.2:443"));
    }

    #[test]
    fn passthrough_wins() {
        let routes = Routes::new(vec![], &["*.amazonaws.com".into()], &["sts.*".into()]).expect("valid");
        assert!(routes.intercepts("S3.eu-west-1.amazonaws.com"));
        assert!(!routes.intercepts("sts.amazonaws.com"));
        assert!(!routes.intercepts("example.com"));
        assert!(Routes::default().intercepts("anything"));
        assert!(Routes::new(vec![], &["a b".into()], &[]).is_err());
        let changed = Routes::default();
        changed.replace(routes);
        assert!(!changed.intercepts("anything"));
    }
}
