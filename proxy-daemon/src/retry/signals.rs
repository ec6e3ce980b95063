//! What clients say of their retries: one table, a row per family.
//!
//! In: a request's header fields. Out: a [`Signal`], if the request carries
//! one. A new family is a row in [`TABLE`] and a test. Values are as hostile
//! as any other bytes: an identifier is hashed whatever its length, a number
//! that cannot be read is no number, and reading is linear in the value.
use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use crate::flow::Headers;

/// Whose way of numbering attempts. Identifiers of two families never name
/// the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// AWS SDKs, by `amz-sdk-invocation-id`.
    Aws,
    /// The AWS SDK for PHP, by `aws-sdk-invocation-id`.
    AwsPhp,
    /// Google Cloud clients, by `gccl-invocation-id` or the idempotency token.
    Google,
    /// Clients that send one idempotency key with every attempt of a call.
    IdempotencyKey,
    /// The Stainless SDKs (OpenAI, Anthropic, …): numbers without a name.
    Stainless,
    /// gRPC's own retries: numbers without a name.
    Grpc,
    /// Envoy, for the requests that pass it.
    Envoy,
    /// Azure, by `x-ms-client-request-id`: some of its clients keep the id over
    /// the attempts of a call, others make a new one for each.
    Azure,
}

impl Family {
    /// The same id means the same call; another id means nothing.
    pub fn is_weak(self) -> bool {
        self == Family::Azure
    }
}

/// A client's identifier of a call, as a keyed 128-bit hash: bounded in size
/// whatever the client sent, and not to be collided on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey([u64; 2]);

impl CallKey {
    pub fn of(id: &[u8]) -> Self {
        static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);
        let [low, high] = &*KEYS;
        Self([high.hash_one(id), low.hash_one(id)])
    }
}

/// What a request says of the call it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub family: Family,
    /// Absent where the client numbers attempts and does not name the call:
    /// the request itself has to tell which call goes on.
    pub call: Option<CallKey>,
    /// From 1. Absent where the client does not say, or not legibly: such
    /// attempts are numbered as they arrive.
    pub number: Option<u32>,
    /// The most attempts that the client will make, the first included.
    pub max: Option<u32>,
}

/// How one kind of client marks its attempts.
#[derive(Debug)]
pub struct Row {
    pub family: Family,
    /// The header that names the call; a row without has a number.
    pub call: Option<(&'static str, Id)>,
    /// The header that numbers the attempt, and its grammar. A row applies
    /// only where both of its headers are present.
    pub number: Option<(&'static str, Grammar)>,
    /// Who sends it, and where that is written.
    pub source: &'static str,
}

/// Where in a header's value the call's name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    Whole,
    /// After this name and a slash, among tokens between spaces.
    Token(&'static str),
}

/// How an attempt's number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// `ttl=20261123T101500Z; attempt=2; max=3`: from 1; keys in any order,
    /// each of them optional.
    Pairs,
    /// `1/250` or `1/250/495`: the retries so far, from 0, then the delay
    /// and perhaps the retry quota left.
    Slashes,
    /// The number alone, from 1.
    Attempts,
    /// The retries so far, from 0.
    Retries,
    /// `gccl-attempt-count/2` among tokens between spaces, from 1; perhaps
    /// absent.
    Token(&'static str),
}

/// The families, in the order in which they are looked for.
pub const TABLE: &[Row] = &[
    Row {
        family: Family::Aws,
        call: Some(("amz-sdk-invocation-id", Id::Whole)),
        number: Some(("amz-sdk-request", Grammar::Pairs)),
        source: "AWS SDKs: botocore retries/standard.py and retryhandler.py, @smithy/core retry, Go v2 \
                 aws/retry/middleware.go, Java v2 RetryableStageHelper2.java, smithy-rs \
                 aws-runtime/src/request_info.rs, C++ AWSClient.cpp, Kotlin, .NET, Ruby retry_errors.rb",
    },
    Row {
        family: Family::Aws,
        call: Some(("amz-sdk-invocation-id", Id::Whole)),
        number: Some(("amz-sdk-retry", Grammar::Slashes)),
        source: "AWS SDK for Java v2, early releases: retries/backoff/capacity",
    },
    Row {
        family: Family::Aws,
        call: Some(("amz-sdk-invocation-id", Id::Whole)),
        number: None,
        source: "AWS SDK for Ruby v3 in legacy mode: plugins/invocation_id.rb",
    },
    Row {
        family: Family::AwsPhp,
        call: Some(("aws-sdk-invocation-id", Id::Whole)),
        number: Some(("amz-sdk-request", Grammar::Pairs)),
        source: "AWS SDK for PHP, newest: Retry/RetryHelperTrait.php",
    },
    Row {
        family: Family::AwsPhp,
        call: Some(("aws-sdk-invocation-id", Id::Whole)),
        number: Some(("aws-sdk-retry", Grammar::Slashes)),
        source: "AWS SDK for PHP: Middleware.php, Retry/RetryHelperTrait.php (0/0 first)",
    },
    Row {
        family: Family::AwsPhp,
        call: Some(("aws-sdk-invocation-id", Id::Whole)),
        number: None,
        source: "AWS SDK for PHP with retries off: Middleware.php",
    },
    Row {
        family: Family::Google,
        call: Some(("x-goog-api-client", Id::Token("gccl-invocation-id"))),
        number: Some(("x-goog-api-client", Grammar::Token("gccl-attempt-count"))),
        source: "google-cloud-go storage/invoke.go, google-cloud-php Rest.php (with a count); google-cloud-python \
                 storage/_http.py (without)",
    },
    Row {
        family: Family::Google,
        call: Some(("x-goog-gcs-idempotency-token", Id::Whole)),
        number: None,
        source: "google-cloud-node, -go, -java, -cpp: storage",
    },
    Row {
        family: Family::IdempotencyKey,
        call: Some(("idempotency-key", Id::Whole)),
        number: Some(("x-stainless-retry-count", Grammar::Retries)),
        source: "Stainless SDKs of services with idempotency keys: _base_client.py",
    },
    Row {
        family: Family::Stainless,
        call: None,
        number: Some(("x-stainless-retry-count", Grammar::Retries)),
        source: "openai-python and anthropic-sdk-python _base_client.py; openai-node src/client.ts",
    },
    Row {
        family: Family::Grpc,
        call: None,
        number: Some(("grpc-previous-rpc-attempts", Grammar::Retries)),
        source: "grpc/proposal A6-client-retries.md; absent on the first attempt",
    },
    Row {
        family: Family::Envoy,
        call: Some(("x-request-id", Id::Whole)),
        number: Some(("x-envoy-attempt-count", Grammar::Attempts)),
        source: "Envoy, include_request_attempt_count: router filter documentation",
    },
    Row {
        family: Family::IdempotencyKey,
        call: Some(("idempotency-key", Id::Whole)),
        number: None,
        source: "stripe-python _api_requestor.py; IETF draft-ietf-httpapi-idempotency-key-header",
    },
    Row {
        family: Family::IdempotencyKey,
        call: Some(("x-idempotency-key", Id::Whole)),
        number: None,
        source: "the same under the name that services used before",
    },
    Row {
        family: Family::Azure,
        call: Some(("x-ms-client-request-id", Id::Whole)),
        number: None,
        source: "azure-core RequestIdPolicy (constant); azure-storage-blob (a new one for each attempt)",
    },
];

/// Past this a number is taken for this: no client makes as many attempts.
const MAX_NUMBER: u32 = 1_000_000;

/// More pairs than any client sends; what follows them is not read.
const MAX_PAIRS: usize = 16;

/// What the request says of its call, if anything.
pub fn read(headers: &Headers) -> Option<Signal> {
    TABLE.iter().find_map(|row| row.read(headers))
}

impl Row {
    fn read(&self, headers: &Headers) -> Option<Signal> {
        let call = match self.call {
            None => None,
            Some((header, id)) => Some(CallKey::of(id.read(headers.get(header)?)?)),
        };
        let (number, max) = match self.number {
            None => (None, None),
            Some((header, grammar)) => grammar.read(headers.get(header)?),
        };
        // A number that cannot be read says nothing where it stands alone.
        (call.is_some() || number.is_some()).then_some(Signal { family: self.family, call, number, max })
    }
}

impl Id {
    fn read(self, value: &[u8]) -> Option<&[u8]> {
        let id = match self {
            Id::Whole => value.trim_ascii(),
            Id::Token(name) => token(value, name)?,
        };
        (!id.is_empty()).then_some(id)
    }
}

/// What follows `name/` among tokens between spaces.
fn token<'a>(value: &'a [u8], name: &str) -> Option<&'a [u8]> {
    value
        .split(|byte| *byte == b' ')
        .take(MAX_PAIRS)
        .find_map(|token| token.strip_prefix(name.as_bytes())?.strip_prefix(b"/"))
}

impl Grammar {
    /// The attempt's number from 1, and the most there will be.
    fn read(self, value: &[u8]) -> (Option<u32>, Option<u32>) {
        match self {
            Grammar::Pairs => {
                let (mut number, mut max) = (None, None);
                for pair in value.split(|byte| *byte == b';').take(MAX_PAIRS) {
                    let Some(at) = pair.iter().position(|byte| *byte == b'=') else { continue };
                    let (key, value) = (pair[..at].trim_ascii(), &pair[at + 1..]);
                    if key.eq_ignore_ascii_case(b"attempt") {
                        number = number.or_else(|| count(value));
                    } else if key.eq_ignore_ascii_case(b"max") {
                        max = max.or_else(|| count(value));
                    }
                }
                (number.filter(|number| *number > 0), max.filter(|max| *max > 0))
            }
            Grammar::Slashes => {
                let retries = value.split(|byte| *byte == b'/').next().and_then(count);
                (retries.map(|retries| (retries + 1).min(MAX_NUMBER)), None)
            }
            Grammar::Attempts => (count(value).filter(|number| *number > 0), None),
            Grammar::Retries => (count(value).map(|retries| (retries + 1).min(MAX_NUMBER)), None),
            Grammar::Token(name) => (token(value, name).and_then(count).filter(|number| *number > 0), None),
        }
    }
}

/// A decimal number without sign, capped; anything else is none.
fn count(text: &[u8]) -> Option<u32> {
    let text = text.trim_ascii();
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text
        .iter()
        .fold(0_u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')).min(MAX_NUMBER));
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "9f1b1a8e-1f3c-4a3e-9d0e-0f6a1c1b2d3e";

    fn signal(fields: &[(&str, &str)]) -> Option<Signal> {
        read(&fields.iter().copied().collect())
    }

    fn numbers(fields: &[(&str, &str)]) -> (Option<u32>, Option<u32>) {
        let signal = signal(fields).expect("a signal");
        (signal.number, signal.max)
    }

    #[test]
    fn aws_request_header_in_every_order_that_sdks_send() {
        for (value, number, max) in [
            ("attempt=1", Some(1), None),
            ("attempt=1; max=3", Some(1), Some(3)),
            ("ttl=20261123T101500Z; attempt=2; max=5", Some(2), Some(5)),
            ("attempt=2; max=3; ttl=20261123T101500Z", Some(2), Some(3)),
            ("max=4;attempt=3", Some(3), Some(4)),
            ("  Attempt = 2 ;future=yes; MAX=3;", Some(2), Some(3)),
        ] {
            let fields = [("amz-sdk-invocation-id", ID), ("amz-sdk-request", value)];
            let signal = signal(&fields).expect(value);
            assert_eq!((signal.family, signal.number, signal.max), (Family::Aws, number, max), "{value}");
            assert_eq!(signal.call, Some(CallKey::of(ID.as_bytes())));
        }
    }

    #[test]
    fn header_names_have_no_case() {
        assert_eq!(
            numbers(&[("Amz-Sdk-Invocation-Id", ID), ("Amz-Sdk-Request", "attempt=2; max=3")]),
            (Some(2), Some(3))
        );
    }

    #[test]
    fn ruby_in_legacy_mode_sends_only_the_id() {
        assert_eq!(numbers(&[("amz-sdk-invocation-id", ID)]), (None, None));
    }

    #[test]
    fn php_counts_retries_from_zero() {
        let id = ("aws-sdk-invocation-id", "0cc175b9c0f1b6a831c399e269772661");
        assert_eq!(numbers(&[id, ("aws-sdk-retry", "0/0")]), (Some(1), None));
        assert_eq!(numbers(&[id, ("aws-sdk-retry", "2/400")]), (Some(3), None));
        assert_eq!(numbers(&[id, ("amz-sdk-request", "attempt=2; max=3")]), (Some(2), Some(3)));
        assert_eq!(numbers(&[id]), (None, None));
        assert_eq!(signal(&[id]).map(|signal| signal.family), Some(Family::AwsPhp));
    }

    #[test]
    fn early_java_counts_retries_from_zero() {
        assert_eq!(numbers(&[("amz-sdk-invocation-id", ID), ("amz-sdk-retry", "1/100/495")]), (Some(2), None));
        assert_eq!(numbers(&[("amz-sdk-invocation-id", ID), ("amz-sdk-retry", "0/0/")]), (Some(1), None));
    }

    #[test]
    fn every_other_family_as_its_clients_send_it() {
        let google = "gl-python/3.11 gccl/3.17.1 gccl-invocation-id/5f0c";
        let counted = format!("{google} gccl-attempt-count/2");
        for (fields, family, named, number) in [
            (&[("x-goog-api-client", google)][..], Family::Google, true, None),
            (&[("x-goog-api-client", counted.as_str())], Family::Google, true, Some(2)),
            (&[("X-Goog-Gcs-Idempotency-Token", "5f0c")], Family::Google, true, None),
            (&[("x-stainless-retry-count", "0")], Family::Stainless, false, Some(1)),
            (&[("x-stainless-retry-count", "2")], Family::Stainless, false, Some(3)),
            (&[("Idempotency-Key", "k"), ("x-stainless-retry-count", "1")], Family::IdempotencyKey, true, Some(2)),
            (&[("grpc-previous-rpc-attempts", "1")], Family::Grpc, false, Some(2)),
            (&[("x-request-id", "r"), ("x-envoy-attempt-count", "2")], Family::Envoy, true, Some(2)),
            (&[("Idempotency-Key", "k")], Family::IdempotencyKey, true, None),
            (&[("X-Idempotency-Key", "k")], Family::IdempotencyKey, true, None),
            (&[("x-ms-client-request-id", "c")], Family::Azure, true, None),
        ] {
            let signal = signal(fields).unwrap_or_else(|| panic!("{fields:?}"));
            assert_eq!((signal.family, signal.call.is_some(), signal.number), (family, named, number), "{fields:?}");
        }
        for fields in [
            &[("x-goog-api-client", "gl-python/3.11 gccl/3.17.1")][..],
            &[("x-stainless-retry-count", "many")],
            &[("grpc-previous-rpc-attempts", "")],
            &[("x-envoy-attempt-count", "1")],
            &[("x-request-id", "r")],
        ] {
            assert_eq!(signal(fields), None, "{fields:?}");
        }
    }

    #[test]
    fn what_is_no_signal() {
        assert_eq!(signal(&[]), None);
        assert_eq!(signal(&[("amz-sdk-request", "attempt=2; max=3")]), None);
        assert_eq!(signal(&[("amz-sdk-invocation-id", "  "), ("amz-sdk-request", "attempt=2")]), None);
    }

    #[test]
    fn illegible_numbers_are_none_and_large_ones_are_capped() {
        for value in ["", "attempt", "attempt=", "attempt=-1", "attempt=0", "attempt=0x2", "attempt=2.0", "=;=;"] {
            assert_eq!(numbers(&[("amz-sdk-invocation-id", ID), ("amz-sdk-request", value)]).0, None, "{value}");
        }
        let huge = "9".repeat(70_000);
        for (header, value) in [("amz-sdk-request", format!("attempt={huge}")), ("amz-sdk-retry", huge)] {
            let fields = [("amz-sdk-invocation-id", ID), (header, &value)];
            assert_eq!(numbers(&fields).0, Some(MAX_NUMBER));
        }
    }

    #[test]
    fn long_ids_stay_apart_and_take_no_room() {
        let (one, other) = ("x".repeat(70_000) + "1", "x".repeat(70_000) + "2");
        let key = |id: &str| signal(&[("amz-sdk-invocation-id", id)]).expect("a signal").call.expect("an id");
        assert_eq!(key(&one), key(&one));
        assert_ne!(key(&one), key(&other));
        assert_eq!(size_of::<CallKey>(), 16);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(id: Vec<u8>, value: Vec<u8>, row in 0..TABLE.len()) {
            let row = &TABLE[row];
            let number = row.number.map_or("x", |(header, _)| header);
            let headers = Headers::copied(
                [(row.call.map_or("x", |call| call.0).as_bytes(), &id[..]), (number.as_bytes(), &value[..])].into_iter());
            if let Some(signal) = read(&headers) {
                prop_assert!(signal.number.is_none_or(|number| (1..=MAX_NUMBER).contains(&number)));
                prop_assert!(signal.max.is_none_or(|max| (1..=MAX_NUMBER).contains(&max)));
            }
        }

        #[test]
        fn what_sdks_write_is_read_back(attempt in 1..1000_u32, max in 1..1000_u32, order in 0..3_usize) {
            let mut pairs = [format!("attempt={attempt}"), format!("max={max}"), "ttl=20261123T101500Z".to_owned()];
            pairs.rotate_left(order);
            prop_assert_eq!(
                numbers(&[("amz-sdk-invocation-id", ID), ("amz-sdk-request", &pairs.join("; "))]),
                (Some(attempt), Some(max))
            );
        }
    }
}
