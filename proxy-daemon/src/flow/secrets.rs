//! Secrets in bodies and command lines: what lets somebody in, replaced where it is known by
//! its name.
//!
//! In: a body without content codings, maybe cut at its end. Out: the same
//! with [`REDACTED`] in such values' places. Heads are [`super::redact`]'s.
use std::{borrow::Cow, sync::LazyLock};

use regex::bytes::{Captures, Regex};

use super::redact::REDACTED;

/// Names of JSON members, XML elements and form fields, without case; `_` may
/// be left out, or be a `-`.
const NAMES: &[&str] = &[
    "access_token",
    "refresh_token",
    "id_token",
    "auth_token",
    "session_token",
    "security_token",
    "bearer_token",
    "token",
    "web_identity_token",
    "saml_assertion",
    "client_assertion",
    "client_secret",
    "secret_access_key",
    "secret_key",
    "shared_secret",
    "secret_string",
    "secret_binary",
    "secret",
    "api_key",
    "account_key",
    "private_key",
    "new_password",
    "old_password",
    "previous_password",
    "proposed_password",
    "password",
    "passwd",
    "passphrase",
    "plaintext",
    "plain_text",
    "authorization",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "sig",
    "signature",
    "x_amz_signature",
    "x_amz_security_token",
    "x_amz_credential",
    "x_goog_signature",
    "x_goog_credential",
];

/// What finds a secret, each with the group that is the secret itself.
static PATTERNS: LazyLock<Vec<(Regex, usize)>> = LazyLock::new(|| {
    let names = NAMES.iter().map(|name| name.replace('_', "[_-]?")).collect::<Vec<_>>().join("|");
    let patterns = [
        // Fields of requests that a server shows.
        (r"(?i)\bAWS4-[A-Z0-9-]+\s+Credential=([^<\n]+?Signature=[0-9a-f]+)".to_owned(), 1),
        // JSON, JSON within a JSON string, and Python's own quotes.
        (format!(r#"(?is)"(?:{names})"\s*:\s*"((?:[^"\\]|\\.)*)"#), 1),
        (format!(r#"(?is)\\"(?:{names})\\"\s*:\s*\\"((?:[^"\\]|\\\\\\.)*)"#), 1),
        (format!(r"(?is)'(?:{names})'\s*:\s*'((?:[^'\\]|\\.)*)"), 1),
        // XML.
        (format!(r"(?is)<(?:[\w.-]+:)?(?:{names})(?:\s[^>]*)?>([^<]+)"), 1),
        // Forms, and signed URLs wherever they stand.
        (format!(r#"(?i)(?:^|[&?;\s]|\\u0026)(?:{names})=([^&\s"'<>\\;]+)"#), 1),
        (r#"(?i)(?:[?&]|\\u0026)(?:key|code|auth|jwt|assertion|pwd)=([^&\s"'<>\\;]+)"#.to_owned(), 1),
        (format!(r#"(?i)name="(?:{names})"\r?\n(?:[^\r\n]+\r?\n)*\r?\n([^\r\n]+)"#), 1),
        (r"(?i)\b(?:bearer|basic)\s+([a-z0-9._~+/=-]{8,})".to_owned(), 1),
        // What signs the pieces of an upload.
        (r"(?i)(?:chunk-signature=|x-amz-trailer-signature:\s*)([0-9a-f]+)".to_owned(), 1),
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)(?:-----END|\z)".to_owned(), 1),
    ];
    patterns.into_iter().filter_map(|(text, group)| Some((Regex::new(&text).ok()?, group))).collect()
});

/// The same for command lines, whose arguments are joined by spaces.
static OF_COMMANDS: LazyLock<Vec<(Regex, usize)>> = LazyLock::new(|| {
    let names = NAMES.iter().map(|name| name.replace('_', "[_-]?")).collect::<Vec<_>>().join("|");
    let patterns = [
        // A field of a head, up to the next option or URL.
        (
            r#"(?is)\b(?:authorization|cookie|[\w-]*(?:token|secret|password|api-?key|signature|credential))\s*:\s*(.+?)(?:\s+-|\s+https?://|["'\r\n]|\z)"#.to_owned(),
            1,
        ),
        (r"(?i)(?:^|\s)(?:-u\s*|--(?:proxy-)?user[ =])[^\s:]*:(\S+)".to_owned(), 1),
        (format!(r"(?i)(?:^|\s)--?(?:[\w-]+-)?(?:{names})[ =](\S+)"), 1),
        (r"(?i)\b[a-z][a-z0-9+.-]*://([^\s/@]+)@".to_owned(), 1),
    ];
    patterns.into_iter().filter_map(|(text, group)| Some((Regex::new(&text).ok()?, group))).collect()
});

/// A command line without the secrets in it, as far as they can be told.
pub fn command(text: &str) -> String {
    let without = replaced(text.as_bytes(), &OF_COMMANDS);
    String::from_utf8_lossy(&redacted(&without)).into_owned()
}

/// The body without its secrets.
pub fn redacted(body: &[u8]) -> Cow<'_, [u8]> {
    replaced(body, &PATTERNS)
}

fn replaced<'a>(body: &'a [u8], patterns: &[(Regex, usize)]) -> Cow<'a, [u8]> {
    let mut body = Cow::Borrowed(body);
    for (pattern, group) in patterns {
        let replaced = pattern.replace_all(&body, |found: &Captures<'_>| {
            let Some((whole, secret)) = found.get(0).zip(found.get(*group)) else { return Vec::new() };
            let (before, after) = (secret.start() - whole.start(), secret.end() - whole.start());
            if before == after {
                return whole.as_bytes().to_vec();
            }
            [&whole.as_bytes()[..before], REDACTED.as_bytes(), &whole.as_bytes()[after..]].concat()
        });
        if let Cow::Owned(replaced) = replaced {
            body = Cow::Owned(replaced);
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(body: &str, expected: &str) {
        assert_eq!(String::from_utf8_lossy(&redacted(body.as_bytes())), expected);
    }

    #[test]
    fn every_pattern_is_one() {
        assert_eq!((PATTERNS.len(), OF_COMMANDS.len()), (11, 4));
    }

    #[test]
    fn secrets_in_command_lines() {
        for (text, expected) in [
            (
                "curl -H Authorization: Bearer hush -H X-Api-Key: hush https://a.test/",
                "curl -H Authorization: REDACTED -H X-Api-Key: REDACTED https://a.test/",
            ),
            ("curl -H Cookie: a=hush; b=hush https://a.test/", "curl -H Cookie: REDACTED https://a.test/"),
            (
                "curl -u me:hush --user you:hush https://a.test",
                "curl -u me:REDACTED --user you:REDACTED https://a.test",
            ),
            (
                "curl https://me:hush@a.test/?key=hush&sig=hush&b=2",
                "curl https://REDACTED@a.test/?key=REDACTED&sig=REDACTED&b=2",
            ),
            (
                "app --password hush --api-key=hush --db-password hush",
                "app --password REDACTED --api-key=REDACTED --db-password REDACTED",
            ),
            ("env AWS_SECRET_ACCESS_KEY=hush app", "env AWS_SECRET_ACCESS_KEY=REDACTED app"),
            ("python app.py --tokens 3 -u script", "python app.py --tokens 3 -u script"),
            ("sh -c curl -d '{\"password\": \"hush\"}' a", "sh -c curl -d '{\"password\": \"REDACTED\"}' a"),
        ] {
            assert_eq!(command(text), expected);
        }
    }

    #[test]
    fn tokens_in_json() {
        is(
            r#"{"access_token": "hush", "expires_in": 3600, "refreshToken":"hu\"sh", "id-token" : "hush"}"#,
            r#"{"access_token": "REDACTED", "expires_in": 3600, "refreshToken":"REDACTED", "id-token" : "REDACTED"}"#,
        );
    }

    #[test]
    fn credentials_in_json() {
        is(
            r#"{"Credentials":{"AccessKeyId":"AKID","SecretAccessKey":"hush","SessionToken":"hush"}}"#,
            r#"{"Credentials":{"AccessKeyId":"AKID","SecretAccessKey":"REDACTED","SessionToken":"REDACTED"}}"#,
        );
        is(r#"{"SecretString":"{\"password\":\"hush\"}"}"#, r#"{"SecretString":"REDACTED"}"#);
        is(r#"{"log":"{\"password\":\"hush\",\"a\":1}"}"#, r#"{"log":"{\"password\":\"REDACTED\",\"a\":1}"}"#);
        is("{'password': 'hush'}", "{'password': 'REDACTED'}");
    }

    #[test]
    fn passwords_in_json_also_where_it_is_cut() {
        is(r#"{"user":"me","password":"hush"}"#, r#"{"user":"me","password":"REDACTED"}"#);
        is(r#"{"password":"hus"#, r#"{"password":"REDACTED"#);
        is(r#"{"password":"hus\"#, r#"{"password":"REDACTED\"#);
        is(r#"{"password":"","next_token":"page"}"#, r#"{"password":"","next_token":"page"}"#);
    }

    #[test]
    fn credentials_in_xml() {
        is(
            "<Credentials><AccessKeyId>AKID</AccessKeyId><SecretAccessKey>hush</SecretAccessKey><SessionToken xmlns='x'>hu\nsh</SessionToken>",
            "<Credentials><AccessKeyId>AKID</AccessKeyId><SecretAccessKey>REDACTED</SecretAccessKey><SessionToken xmlns='x'>REDACTED</SessionToken>",
        );
        is("<ns:Password>hus", "<ns:Password>REDACTED");
    }

    #[test]
    fn secrets_in_forms() {
        is(
            "grant_type=refresh_token&refresh_token=hush&client_secret=hush&scope=a",
            "grant_type=refresh_token&refresh_token=REDACTED&client_secret=REDACTED&scope=a",
        );
        is(
            "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nhush\r\n--b--",
            "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nREDACTED\r\n--b--",
        );
    }

    #[test]
    fn signed_urls_in_bodies() {
        is(
            r#"{"url":"https://a.test/k?X-Amz-Credential=AK%2F1&a=1&X-Amz-Signature=hush"}"#,
            r#"{"url":"https://a.test/k?X-Amz-Credential=REDACTED&a=1&X-Amz-Signature=REDACTED"}"#,
        );
        is(r#""https://a.test/k?a=1\u0026sig=hush""#, r#""https://a.test/k?a=1\u0026sig=REDACTED""#);
    }

    #[test]
    fn fields_that_a_server_shows() {
        is(r#"{"Authorization": "Bearer hushhush"}"#, r#"{"Authorization": "REDACTED"}"#);
        is("you sent: Basic dXNlcjpwYXNz", "you sent: Basic REDACTED");
        is(
            "AWS4-HMAC-SHA256 Credential=AK/2026/s3, SignedHeaders=host, Signature=abc123",
            "AWS4-HMAC-SHA256 Credential=REDACTED",
        );
    }

    #[test]
    fn signatures_of_chunks() {
        is(
            "5;chunk-signature=0a1b\r\nhello\r\n0;chunk-signature=ff\r\nx-amz-trailer-signature:aa\r\n",
            "5;chunk-signature=REDACTED\r\nhello\r\n0;chunk-signature=REDACTED\r\nx-amz-trailer-signature:REDACTED\r\n",
        );
    }

    #[test]
    fn private_keys() {
        is(
            "-----BEGIN EC PRIVATE KEY-----\nhush\n-----END EC PRIVATE KEY-----",
            "-----BEGIN EC PRIVATE KEY-----REDACTED-----END EC PRIVATE KEY-----",
        );
        is("-----BEGIN PRIVATE KEY-----\nhus", "-----BEGIN PRIVATE KEY-----REDACTED");
    }

    #[test]
    fn everything_else_stays() {
        for body in ["<Key>secret.txt</Key>", r#"{"tokens": 3, "a": "token"}"#, "monkey=1&a=b", "\u{0}\u{1}"] {
            assert!(matches!(redacted(body.as_bytes()), Cow::Borrowed(_)), "{body}");
        }
        assert!(matches!(redacted(b"\xff\xfe\x00"), Cow::Borrowed(_)));
    }
}
