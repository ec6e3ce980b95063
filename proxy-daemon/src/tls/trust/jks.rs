//! Java's own store format (JKS), as far as trusted certificates go.
//!
//! In: a store's bytes. Out: the certificates in it; and the other way round.
//! The format is that of `sun.security.provider.JavaKeyStore`: big-endian
//! lengths, strings in UTF-8, and at the end a SHA-1 over the password, a
//! constant and the content. The digest guards against mistakes, not against
//! people: certificates need no secret.
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED: u32 = 2;
const PRIVATE: u32 = 1;
const X509: &str = "X.509";

/// More entries than any store has.
const MAX_ENTRIES: u32 = 65_536;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trusted {
    pub(super) alias: String,
    /// Milliseconds since 1970.
    pub(super) since: u64,
    pub(super) certificate: Vec<u8>,
}

/// Writes a store. An alias appears once: later entries of the same name are
/// left out, as are those whose alias the format cannot hold.
pub(super) fn encode(entries: &[Trusted], password: &str) -> Vec<u8> {
    let mut seen = std::collections::HashSet::new();
    let kept: Vec<(&Trusted, u16, u32)> = entries
        .iter()
        .filter_map(|entry| {
            let alias = u16::try_from(entry.alias.len()).ok()?;
            let certificate = u32::try_from(entry.certificate.len()).ok()?;
            seen.insert(entry.alias.as_str()).then_some((entry, alias, certificate))
        })
        .take(MAX_ENTRIES as usize)
        .collect();
    let mut store = Vec::with_capacity(64 + kept.iter().map(|(entry, ..)| entry.certificate.len() + 64).sum::<usize>());
    store.extend(MAGIC.to_be_bytes());
    store.extend(VERSION.to_be_bytes());
    store.extend(u32::try_from(kept.len()).unwrap_or(MAX_ENTRIES).to_be_bytes());
    for (entry, alias, certificate) in kept {
        store.extend(TRUSTED.to_be_bytes());
        store.extend(alias.to_be_bytes());
        store.extend(entry.alias.as_bytes());
        store.extend(entry.since.to_be_bytes());
        store.extend(5_u16.to_be_bytes());
        store.extend(X509.as_bytes());
        store.extend(certificate.to_be_bytes());
        store.extend(&entry.certificate);
    }
    let seal = seal(&store, password);
    store.extend(seal);
    store
}

/// The trusted certificates of a store; private keys in it are passed over.
/// None if the bytes are not a whole store. The digest is not checked, as
/// Java does not without a password.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Trusted>> {
    let mut rest = Rest(bytes);
    if rest.u32()? != MAGIC {
        return None;
    }
    let version = rest.u32()?;
    if !(1..=2).contains(&version) {
        return None;
    }
    let count = rest.u32()?;
    if count > MAX_ENTRIES {
        return None;
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let tag = rest.u32()?;
        let alias = rest.text()?;
        let since = rest.u64()?;
        match tag {
            TRUSTED => {
                let certificate = rest.certificate(version)?.to_vec();
                entries.push(Trusted { alias, since, certificate });
            }
            PRIVATE => {
                let key = rest.u32()?;
                rest.take(key as usize)?;
                for _ in 0..rest.u32()? {
                    rest.certificate(version)?;
                }
            }
            _ => return None,
        }
    }
    Some(entries)
}

fn seal(store: &[u8], password: &str) -> Vec<u8> {
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    for unit in password.encode_utf16() {
        hash.update(&unit.to_be_bytes());
    }
    hash.update(b"Mighty Aphrodite");
    hash.update(store);
    hash.finish().as_ref().to_vec()
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u16()?;
        Some(String::from_utf8_lossy(self.take(length.into())?).into_owned())
    }

    fn certificate(&mut self, version: u32) -> Option<&'a [u8]> {
        if version == 2 {
            self.text()?;
        }
        let length = self.u32()?;
        self.take(length as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(alias: &str, certificate: &[u8]) -> Trusted {
        Trusted { alias: alias.into(), since: 7, certificate: certificate.to_vec() }
    }

    #[test]
    fn alias_appears_once() {
        let store = encode(&[entry("a", b"1"), entry("b", b"2"), entry("a", b"3")], "changeit");
        assert_eq!(decode(&store), Some(vec![entry("a", b"1"), entry("b", b"2")]));
    }

    #[test]
    fn empty_store_has_the_known_seal() {
        // `keytool` 17 writes these bytes for an empty store with the
        // password `changeit`.
        let store = encode(&[], "changeit");
        let text: String = store.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "feedfeed0000000200000000e2686e45fb43dfa4d992dd41ceb6b21c6330d792");
    }

    proptest! {
        #[test]
        fn round_trip(entries in proptest::collection::hash_map("[a-zé]{0,20}", any::<(u64, Vec<u8>)>(), 0..20)) {
            let entries: Vec<Trusted> = entries
                .into_iter()
                .map(|(alias, (since, certificate))| Trusted { alias, since, certificate })
                .collect();
            prop_assert_eq!(decode(&encode(&entries, "changeit")), Some(entries));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0_usize..200, byte: u8) {
            decode(&bytes);
            let mut store = encode(&[entry("a", b"certificate"), entry("b", &bytes)], "");
            let at = at % store.len();
            store[at] = byte;
            decode(&store);
            decode(&store[..at]);
        }
    }
}
