//! Who gets what of the page.
//!
//! In: each request, and the address that its connection came to. Out: the
//! answer, or a refusal that says why. Three questions, in this order:
//!
//! 1. *Was it us that was asked for?* `Host` has to be the address that the
//!    connection came to, or `localhost` where that is the loopback's. A name
//!    that somebody lets lead here (DNS rebinding) is neither.
//! 2. *Who sent it?* A browser says so in `Origin` and `Sec-Fetch-Site`. Other
//!    sites' pages may have a link to this one, and nothing else of it.
//! 3. *For the API: is there the token?* It comes in `Authorization`. Not in
//!    a cookie: a browser sends those to every port of a host, so that any
//!    other server on the loopback would be handed it, and sends them by
//!    itself, which is what cross-site requests live on.
//!
//! Every answer carries a policy under which nothing runs but the page's own
//! scripts, and nothing is fetched but from here.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::Response,
};

use super::token::Token;
use crate::control::refused;

/// The address that a connection came to, as an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct CameTo(pub(super) SocketAddr);

/// How long a change may take, with all of its request. Reloads wait for a
/// daemon's keeper.
const PATIENCE: Duration = Duration::from_secs(60);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(&str, &str); 8] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("cache-control", "no-store"),
];

/// The page's files and the API, each behind what guards it.
pub(super) fn around(files: Router, api: Router, token: Token) -> Router {
    let api = api.layer(middleware::from_fn_with_state(Arc::new(token), holder)).layer(middleware::from_fn(patience));
    files
        .merge(api)
        .fallback(|| async { refused(StatusCode::NOT_FOUND, &"there is nothing here; the page is at /") })
        .layer(middleware::from_fn(visitor))
        .layer(middleware::from_fn(told))
}

/// Adds what every answer says.
async fn told(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Whoever comes by the page's own address, and not for another site.
async fn visitor(request: Request, next: Next) -> Response {
    let Some(CameTo(address)) = request.extensions().get().copied() else {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, &"the connection's own address is not known");
    };
    // A proxy is asked in this form; we are none.
    if request.uri().authority().is_some() || request.method() == Method::CONNECT {
        return refused(StatusCode::MISDIRECTED_REQUEST, &"this is no proxy");
    }
    let Some(host) = only(request.headers(), &header::HOST).filter(|host| is_ours(host, address)) else {
        return refused(
            StatusCode::MISDIRECTED_REQUEST,
            &format!("this is http://{address}/; open it by that address, since a name could be anybody's"),
        );
    };
    if !is_of_this_site(&request, host) {
        return refused(StatusCode::FORBIDDEN, &"another site asks for this; only the page itself may");
    }
    next.run(request).await
}

/// Whoever has the token.
async fn holder(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    let offered = only(request.headers(), &header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if !offered.is_some_and(|offered| token.is(offered.as_bytes())) {
        let why = "this needs the token of this start; `retryscope page` prints the address that has it";
        let mut response = refused(StatusCode::UNAUTHORIZED, &why);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    next.run(request).await
}

/// A change that does not come to its end is given up.
async fn patience(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => refused(StatusCode::REQUEST_TIMEOUT, &format!("not done within {} s", PATIENCE.as_secs())),
    }
}

/// The value of a field that may stand once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Whether `host` says where the connection came to.
fn is_ours(host: &str, address: SocketAddr) -> bool {
    // `Host` has no user, and HTTP's own port may be left out.
    if host.contains('@') {
        return false;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.port_u16().unwrap_or(80) != address.port() || host.ends_with(':') {
        return false;
    }
    let name = authority.host();
    if name.eq_ignore_ascii_case("localhost") {
        return address.ip().is_loopback();
    }
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    literal.parse() == Ok(address.ip().to_canonical())
}

/// Whether this page has sent it, or somebody without a browser; and for the
/// page itself, whether somebody has followed a link.
fn is_of_this_site(request: &Request, host: &str) -> bool {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        let origin = only(headers, &header::ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
        if !origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return false;
        }
    }
    let said = |name: &'static str| {
        let name = HeaderName::from_static(name);
        headers.contains_key(&name).then(|| only(headers, &name).unwrap_or_default())
    };
    match said("sec-fetch-site") {
        None | Some("same-origin") => true,
        // Typed, from a bookmark, or a link: the page alone, which tells
        // nothing by itself.
        Some(_) => {
            request.method() == Method::GET
                && request.uri().path() == "/"
                && said("sec-fetch-mode") == Some("navigate")
                && said("sec-fetch-dest") == Some("document")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_where_the_connection_came_to() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (host, address, ours) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", true),
            ("localhost:8080", "127.0.0.1:8080", true),
            ("LOCALHOST:8080", "[::1]:8080", true),
            ("[::1]:8080", "[::1]:8080", true),
            ("127.0.0.1", "127.0.0.1:80", true),
            ("10.0.0.1:80", "[::ffff:10.0.0.1]:80", true),
            ("127.0.0.1", "127.0.0.1:8080", false),
            ("127.0.0.1:", "127.0.0.1:80", false),
            ("127.0.0.1:8081", "127.0.0.1:8080", false),
            ("127.0.0.2:8080", "127.0.0.1:8080", false),
            ("localhost:8080", "10.0.0.1:8080", false),
            ("localhost.attacker.test:8080", "127.0.0.1:8080", false),
            ("attacker.test:8080", "127.0.0.1:8080", false),
            ("127.0.0.1:8080@attacker.test:8080", "127.0.0.1:8080", false),
            ("attacker.test@127.0.0.1:8080", "127.0.0.1:8080", false),
            ("0x7f.1:8080", "127.0.0.1:8080", false),
            ("127.0.0.1.:8080", "127.0.0.1:8080", false),
            ("", "127.0.0.1:80", false),
        ] {
            assert_eq!(is_ours(host, at(address)), ours, "{host} at {address}");
        }
    }

    #[test]
    fn other_sites_get_the_page_by_a_link_alone() {
        let asks = |method: Method, path: &str, fields: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            is_of_this_site(&request.body(axum::body::Body::empty()).expect("a request"), "127.0.0.1:8080")
        };
        let link = |site| [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(asks(Method::GET, "/v1/rules", &[]));
        assert!(asks(
            Method::POST,
            "/v1/rules",
            &[("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")]
        ));
        assert!(asks(Method::GET, "/", &link("none")) && asks(Method::GET, "/", &link("cross-site")));
        for origin in ["http://attacker.test", "https://127.0.0.1:8080", "http://127.0.0.1:8081", "null", ""] {
            assert!(!asks(Method::POST, "/v1/rules", &[("origin", origin)]), "{origin}");
            assert!(!asks(Method::GET, "/v1/rules", &[("origin", origin)]), "{origin}");
        }
        let twice = [("origin", "http://127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")];
        assert!(!asks(Method::POST, "/v1/rules", &twice));
        for site in ["cross-site", "same-site", "none"] {
            assert!(!asks(Method::GET, "/v1/rules", &[("sec-fetch-site", site)]), "{site}");
            assert!(!asks(Method::GET, "/main.js", &link(site)), "{site}");
            assert!(!asks(Method::POST, "/", &link(site)), "{site}");
        }
        let frame = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert!(!asks(Method::GET, "/", &frame));
    }
}
