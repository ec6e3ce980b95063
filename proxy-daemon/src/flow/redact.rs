//! Credentials taken out of what is shown, kept for viewing or recorded.
//!
//! In: URLs and header fields as they were on the wire. Out: the same with
//! the parts that let somebody in replaced by [`REDACTED`]; names, order and
//! everything else stay, so that two requests can still be told apart. What
//! is not known to be harmless by its name is not touched: these are lists.
use std::borrow::Cow;

use super::Headers;

/// What stands in a credential's place.
pub const REDACTED: &str = "REDACTED";

/// Query keys whose values sign a request or let somebody in, in lower case.
const QUERY: &[&str] = &[
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-credential",
    "x-goog-signature",
    "x-goog-credential",
    "signature",
    "sig",
    "awsaccesskeyid",
    "token",
    "access_token",
    "access-token",
    "id_token",
    "refresh_token",
    "auth_token",
    "oauth_token",
    "session_token",
    "auth",
    "jwt",
    "assertion",
    "client_assertion",
    "api_key",
    "api-key",
    "apikey",
    "subscription-key",
    "key",
    "password",
    "passwd",
    "pwd",
    "secret",
    "client_secret",
    "code",
];

/// Header fields whose values are credentials, in lower case.
const HEADERS: &[&str] = &[
    "x-api-key",
    "api-key",
    "apikey",
    "x-goog-api-key",
    "x-functions-key",
    "ocp-apim-subscription-key",
    "x-ms-authorization-auxiliary",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-ms-encryption-key",
    "x-goog-encryption-key",
    "x-goog-copy-source-encryption-key",
    "authentication-info",
    "proxy-authentication-info",
    "x-forwarded-client-cert",
    "x-amz-cf-signature",
    "signature",
    "dpop",
];

/// How the names of credentials end besides, as `X-Auth-Token` and
/// `X-Amz-Security-Token` do.
const ENDS: &[&str] = &["-token", "-secret", "-password", "-api-key", "-apikey", "-auth-key", "-signature"];

/// Fields that hold a URL, which may be signed.
const URLS: &[&str] = &["location", "content-location", "referer", "x-amz-copy-source", "link", ":path"];

/// The URL, or its path and query, without what signs it or lets somebody in.
pub fn url(url: &str) -> Cow<'_, str> {
    let url = userinfo(url);
    let Some(at) = url.find('?') else { return url };
    let (path, query) = url.split_at(at + 1);
    let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
    if !query.split('&').any(is_secret) {
        return url;
    }
    let mut out = String::with_capacity(url.len());
    out.push_str(path);
    for (number, pair) in query.split('&').enumerate() {
        if number > 0 {
            out.push('&');
        }
        match pair.split_once('=') {
            Some((key, _)) if is_secret(pair) => {
                out.push_str(key);
                out.push('=');
                out.push_str(REDACTED);
            }
            _ => out.push_str(pair),
        }
    }
    out.push_str(fragment);
    Cow::Owned(out)
}

/// A host and port without a user's name and password before them.
pub fn authority(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// `https://user:password@host` without the two.
fn userinfo(url: &str) -> Cow<'_, str> {
    let Some(start) = url.find("://").map(|at| at + 3) else { return Cow::Borrowed(url) };
    let rest = &url[start..];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => Cow::Owned(format!("{}{REDACTED}{}", &url[..start], &rest[at..])),
        None => Cow::Borrowed(url),
    }
}

/// A pair of a query that has a value which is nobody else's business.
fn is_secret(pair: &str) -> bool {
    let Some((key, value)) = pair.split_once('=') else { return false };
    // As whoever reads it decodes it.
    let key = if key.contains('%') { decoded(key) } else { Cow::Borrowed(key) };
    !value.is_empty() && QUERY.iter().any(|name| key.eq_ignore_ascii_case(name))
}

fn decoded(key: &str) -> Cow<'_, str> {
    let bytes = key.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// A field's value without what lets somebody in.
pub fn header<'a>(name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
    let Ok(name) = std::str::from_utf8(name) else { return Cow::Borrowed(value) };
    if value.is_empty() {
        return Cow::Borrowed(value);
    }
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        // How somebody was let in may be known; by what may not.
        "authorization" | "proxy-authorization" => Cow::Owned(scheme(value)),
        "cookie" => Cow::Owned(cookies(value, usize::MAX)),
        "set-cookie" => Cow::Owned(cookies(value, 1)),
        name if HEADERS.contains(&name) || ENDS.iter().any(|end| name.ends_with(end)) => {
            Cow::Borrowed(REDACTED.as_bytes())
        }
        name if URLS.contains(&name) => match std::str::from_utf8(value) {
            Ok(text) => match url(text) {
                Cow::Borrowed(_) => Cow::Borrowed(value),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
            // No URL, so that nothing can be told of it.
            Err(_) => Cow::Borrowed(REDACTED.as_bytes()),
        },
        _ => Cow::Borrowed(value),
    }
}

/// `AWS4-HMAC-SHA256 Credential=…` as `AWS4-HMAC-SHA256 REDACTED`.
fn scheme(value: &[u8]) -> Vec<u8> {
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let scheme = value.get(..end).unwrap_or_default();
    let is_name = !scheme.is_empty() && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    let mut out = if is_name { [scheme, b" "].concat() } else { Vec::new() };
    out.extend_from_slice(REDACTED.as_bytes());
    out
}

/// Names without values, for the first `count` pairs; a `Set-Cookie` has its
/// attributes after those.
fn cookies(value: &[u8], count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for (number, part) in value.split(|byte| *byte == b';').enumerate() {
        if number > 0 {
            out.push(b';');
        }
        if number >= count {
            out.extend_from_slice(part);
            continue;
        }
        match part.iter().position(|byte| *byte == b'=') {
            Some(at) => out.extend_from_slice(&part[..=at]),
            None if number > 0 => out.push(b' '),
            None => {}
        }
        out.extend_from_slice(REDACTED.as_bytes());
    }
    out
}

/// All fields, in a buffer of their own.
pub fn headers(headers: &Headers) -> Headers {
    let fields: Vec<_> = headers.iter().map(|(name, value)| (name, header(name, value))).collect();
    Headers::copied(fields.iter().map(|(name, value)| (*name, &**value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, value: &str) -> String {
        String::from_utf8(header(name.as_bytes(), value.as_bytes()).into_owned()).expect("text")
    }

    #[test]
    fn authorization_keeps_its_scheme() {
        let sigv4 = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=abcdef";
        assert_eq!(shown("Authorization", sigv4), "AWS4-HMAC-SHA256 REDACTED");
        assert_eq!(shown("authorization", "Bearer eyJhbGciOi.x.y"), "Bearer REDACTED");
        assert_eq!(shown("Proxy-Authorization", "Basic dXNlcjpwYXNz"), "Basic REDACTED");
        // What looks like no scheme may be the credential.
        assert_eq!(shown("AUTHORIZATION", "sk_live_12345"), "REDACTED");
        assert_eq!(shown("Authorization", "a:b c"), "REDACTED");
    }

    #[test]
    fn cookies_keep_their_names() {
        assert_eq!(shown("Cookie", "sid=hush; theme=dark; odd"), "sid=REDACTED; theme=REDACTED; REDACTED");
        assert_eq!(shown("Set-Cookie", "sid=hush; Path=/; HttpOnly"), "sid=REDACTED; Path=/; HttpOnly");
        assert_eq!(shown("cookie", "hush"), "REDACTED");
    }

    #[test]
    fn security_tokens() {
        for name in ["X-Amz-Security-Token", "x-amz-s3session-token", "X-aws-ec2-metadata-token", "X-Vault-Token"] {
            assert_eq!(shown(name, "hush"), REDACTED, "{name}");
        }
    }

    #[test]
    fn keys_of_apis_and_of_ciphers() {
        for name in [
            "X-Api-Key",
            "api-key",
            "x-goog-api-key",
            "Ocp-Apim-Subscription-Key",
            "x-functions-key",
            "X-Client-Secret",
            "x-amz-server-side-encryption-customer-key",
        ] {
            assert_eq!(shown(name, "hush"), REDACTED, "{name}");
        }
    }

    #[test]
    fn signatures_of_messages() {
        for name in ["Signature", "X-Slack-Signature", "DPoP", "Authentication-Info"] {
            assert_eq!(shown(name, "hush"), REDACTED, "{name}");
        }
    }

    #[test]
    fn other_fields_stay() {
        for (name, value) in [
            ("Host", "s3.eu-west-1.amazonaws.com"),
            ("amz-sdk-invocation-id", "d8e1"),
            ("x-amz-server-side-encryption-customer-key-md5", "abc="),
            ("Location", "https://b.s3.amazonaws.com/k?versionId=3"),
            ("X-Api-Key", ""),
        ] {
            assert_eq!(shown(name, value), value, "{name}");
        }
        assert_eq!(&*header(b"X-Odd", b"\xff\x00"), b"\xff\x00");
    }

    #[test]
    fn signed_urls_in_fields() {
        let signed = "https://b.s3.amazonaws.com/k?X-Amz-Signature=hush&versionId=3";
        assert_eq!(shown("Location", signed), "https://b.s3.amazonaws.com/k?X-Amz-Signature=REDACTED&versionId=3");
        assert_eq!(shown("Referer", "https://a.test/?code=hush#top"), "https://a.test/?code=REDACTED#top");
        assert_eq!(&*header(b"Location", b"\xff?sig=hush"), REDACTED.as_bytes());
    }

    #[test]
    fn signed_urls() {
        for key in QUERY {
            assert_eq!(url(&format!("/b/k?a=1&{key}=hush&b=2")), format!("/b/k?a=1&{key}=REDACTED&b=2"));
            assert_eq!(
                url(&format!("/b/k?{}=hush", key.to_uppercase())),
                format!("/b/k?{}=REDACTED", key.to_uppercase())
            );
        }
        assert_eq!(url("/b?X%2DAmz%2dSignature=hush&%zz=1"), "/b?X%2DAmz%2dSignature=REDACTED&%zz=1");
        for same in ["/b/k", "/b?x-id=GetObject", "/b?token=&token", "https://a.test/p", "*", "/a%2?b%=c"] {
            assert!(matches!(url(same), Cow::Borrowed(text) if text == same), "{same}");
        }
    }

    #[test]
    fn names_and_passwords_in_urls() {
        assert_eq!((authority("me:hush@a.test:8443"), authority("a.test")), ("a.test:8443", "a.test"));
        assert_eq!(url("https://me:hush@a.test/x@y"), "https://REDACTED@a.test/x@y");
        assert_eq!(url("https://a.test/x@y?z=https://b:c@d"), "https://a.test/x@y?z=https://b:c@d");
    }

    #[test]
    fn all_fields_in_their_order() {
        let fields: Headers = [("Host", "a"), ("Cookie", "s=1"), ("Accept", "*/*")].into_iter().collect();
        let redacted = headers(&fields);
        assert_eq!(redacted.text("cookie"), Some("s=REDACTED"));
        assert_eq!(redacted.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&b"Host"[..], b"Cookie", b"Accept"]);
    }
}
