//! A name for requests that no table knows: `GET api.example.com/v1/users/{}`.
//!
//! In: a request. Out: its method, host and path, with everything in the path
//! replaced that looks like an id, so that one operation of an API has one
//! name and the number of names stays small. Nothing is known of the API: a
//! segment is an id by its look alone, and the path is cut where it is deep.
use super::Request;

/// Segments of a path that are kept; APIs tell operations apart further up.
const MAX_SEGMENTS: usize = 6;
/// The longest segment that is a word.
const MAX_WORD: usize = 32;
/// The longest name, in bytes; past it only the method and the host are told.
const MAX_NAME: usize = 200;

/// `None` for a request whose method and host alone are too long for a name.
pub fn name(request: &Request) -> Option<String> {
    let host = request.host();
    let bare = request.method.len() + 1 + host.len();
    if bare > MAX_NAME {
        return None;
    }
    let path = request.path();
    let mut name = String::with_capacity((bare + path.len() + 4).min(2 * MAX_NAME));
    name.extend([&*request.method, " ", host]);
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    for segment in segments.by_ref().take(MAX_SEGMENTS) {
        name.push('/');
        name.push_str(if is_id(segment) { "{}" } else { segment });
    }
    if segments.next().is_some() {
        name.push_str("/…");
    }
    if name.len() > MAX_NAME {
        name.truncate(bare);
    }
    Some(name)
}

/// Numbers, UUIDs, hashes, tokens, addresses, dates, names of files: what
/// comes in any number. Words of an API are letters, perhaps with hyphens, a
/// version or a verb after a colon.
fn is_id(segment: &str) -> bool {
    // `{id}:cancel`, `items:batchGet`: the verb is the operation's.
    let word = segment.split(':').next().unwrap_or(segment);
    let letters = word.bytes().filter(u8::is_ascii_alphabetic).count();
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    // v1, v2beta1, 2013-04-01: versions. A date alone is one where it leads.
    let version = word.len() <= 10
        && word.strip_prefix(['v', 'V']).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    if version || word == "well-known" || word == ".well-known" {
        return false;
    }
    word.is_empty() || word.len() > MAX_WORD || !plain || letters == 0 || digits > 2 || is_mixed(word)
}

/// Upper and lower case as no word has them: `aGVsbG8`, not `batchGet`.
fn is_mixed(word: &str) -> bool {
    let changes =
        word.as_bytes().windows(2).filter(|pair| pair[0].is_ascii_uppercase() && pair[1].is_ascii_lowercase()).count();
    changes > 4 || (word.len() >= 6 && changes >= 2 && word.bytes().any(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(method: &str, authority: &str, target: &str) -> Option<String> {
        let headers = crate::flow::Headers::default();
        name(&Request { method: method.into(), authority: authority.into(), target: target.into(), headers })
    }

    #[test]
    fn ids_are_replaced_and_words_are_kept() {
        for (target, expected) in [
            ("/", "GET api.test"),
            ("/v1/chat/completions", "GET api.test/v1/chat/completions"),
            ("/v1/users/123/orders?page=2", "GET api.test/v1/users/{}/orders"),
            ("/v1/users/9f1b1a8e-1f3c-4a3e-9d0e-0f6a1c1b2d3e", "GET api.test/v1/users/{}"),
            ("/v1/customers/cus_NffrFeUfNV2Hib", "GET api.test/v1/customers/{}"),
            (
                "/repos/rust-lang/rust/commits/0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
                "GET api.test/repos/rust-lang/rust/commits/{}",
            ),
            ("/storage/v1/b/bucket/o/a%2Fb.txt", "GET api.test/storage/v1/b/bucket/o/{}"),
            ("/files/report.pdf", "GET api.test/files/{}"),
            ("/v1beta1/items:batchGet", "GET api.test/v1beta1/items:batchGet"),
            ("//a///b/", "GET api.test/a/b"),
            ("/a/b/c/d/e/f/g/h", "GET api.test/a/b/c/d/e/f/…"),
            ("/.well-known/openid-configuration", "GET api.test/.well-known/openid-configuration"),
            ("", "GET api.test"),
        ] {
            assert_eq!(named("GET", "api.test:443", target).as_deref(), Some(expected), "{target}");
        }
        let long = "x".repeat(300);
        assert_eq!(named("GET", &long, "/"), None);
        assert_eq!(
            named("GET", &long[..180], "/a-rather-long-word/and-another").as_deref(),
            Some(format!("GET {}", &long[..180]).as_str())
        );
    }

    proptest! {
        #[test]
        fn names_are_bounded(authority: String, target: String) {
            prop_assert!(named("GET", &authority, &target).is_none_or(|name| name.len() <= MAX_NAME));
        }

        #[test]
        fn any_number_of_ids_is_one_name(ids in prop::collection::vec("[0-9]{3,12}|[0-9a-f]{24}|[A-Za-z0-9]{40}", 2..20)) {
            let names: std::collections::HashSet<_> =
                ids.iter().map(|id| named("GET", "a.test", &format!("/v1/items/{id}/x"))).collect();
            prop_assert_eq!(names.len(), 1);
        }
    }
}
