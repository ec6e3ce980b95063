//! What was found out about upstreams, so that it is found out once.
//!
//! In: upstreams that are beyond us, that ask for client certificates, and
//! clients that were seen to have one or none. Out: whether a connection can
//! be looked into. Bounded; the finding that was used longest ago goes first,
//! and is found again.
//!
//! **Client certificates.** Without `--client-cert`, whether a connection to
//! an upstream that asks can be looked into depends on what the client would
//! answer. So the first connection of a program to such an upstream is passed
//! on, and watched ([`crate::tls::Witness`]). A program that shows a
//! certificate is passed on from then on. One that has none is looked into
//! from its next connection on, where the upstream goes on without; it is
//! asked as the upstream asks, and should it show a certificate after all,
//! that one connection is reset. So no client is ever taken for another, and
//! none is lost but by changing its mind. An upstream that insists on a
//! certificate is beyond us: its connections are passed on.
use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::{
    process::{Process, program},
    tls::CertificateRequest,
};

/// Upstreams, and programs at upstreams.
const MAX_KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// After this an upstream that was beyond us is tried again, and a program's
/// certificate looked for again: neither costs the client anything.
const HOLDS: Duration = Duration::from_secs(10 * 60);

/// The name a client asked for (or the address, without one), and the port.
pub(super) type Place = (Arc<str>, u16);

#[derive(Debug)]
pub struct Findings {
    /// Why nothing can be looked into there, and until when that holds.
    beyond: Mutex<LruCache<Place, (&'static str, Instant)>>,
    /// What upstreams ask of their clients. Sessions that are resumed are not
    /// asked again.
    asking: Mutex<LruCache<Place, Asking>>,
    clients: Mutex<LruCache<(String, Place), Client>>,
}

#[derive(Debug)]
struct Asking {
    /// None where it was shown a certificate of ours.
    request: Option<Arc<CertificateRequest>>,
    /// It was seen to take what it was answered.
    settled: bool,
}

/// What a program answers where it is asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    HasNone,
    HasOne(Instant),
}

/// What is to be done with a program's connection where the upstream asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Unknown,
    HasNone,
    HasOne,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            beyond: Mutex::new(LruCache::new(MAX_KEPT)),
            asking: Mutex::new(LruCache::new(MAX_KEPT)),
            clients: Mutex::new(LruCache::new(MAX_KEPT)),
        }
    }
}

impl Findings {
    pub(super) fn beyond(&self, place: &Place, now: Instant) -> Option<&'static str> {
        let mut beyond = self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
        beyond.get(place).filter(|(_, until)| now < *until).map(|(why, _)| *why)
    }

    pub(super) fn is_beyond(&self, place: Place, why: &'static str, now: Instant) {
        self.beyond.lock().unwrap_or_else(PoisonError::into_inner).put(place, (why, now + HOLDS));
    }

    pub(super) fn asks(&self, place: &Place) -> Option<Arc<CertificateRequest>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.get(place)?.request.clone()
    }

    /// An upstream has asked, and was shown nothing where `request` is given.
    /// `true` where it was seen before to take its answer.
    pub(super) fn has_asked(&self, place: &Place, request: Option<&Arc<CertificateRequest>>) -> bool {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let request = request.cloned();
        match asking.get_mut(place) {
            Some(known) => {
                known.request = request;
                known.settled
            }
            None => {
                asking.put(place.clone(), Asking { request, settled: false });
                false
            }
        }
    }

    /// The upstream has taken its answer.
    pub(super) fn has_settled(&self, place: &Place) {
        if let Some(known) = self.asking.lock().unwrap_or_else(PoisonError::into_inner).get_mut(place) {
            known.settled = true;
        }
    }

    /// What the process's program answers at a place.
    pub(super) fn answer(&self, process: &Process, place: &Place, now: Instant) -> Answer {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.is_empty() {
            return Answer::Unknown;
        }
        match clients.get(&(program(&process.facts()), place.clone())) {
            Some(Client::HasNone) => Answer::HasNone,
            Some(Client::HasOne(until)) if now < *until => Answer::HasOne,
            _ => Answer::Unknown,
        }
    }

    /// A program was seen to answer. That it has a certificate outweighs that
    /// it once showed none.
    pub(super) fn answered(&self, process: &Process, place: Place, has_one: bool, now: Instant) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (program(&process.facts()), place);
        if has_one {
            clients.put(key, Client::HasOne(now + HOLDS));
        } else if !matches!(clients.get(&key), Some(Client::HasOne(until)) if now < *until) {
            clients.put(key, Client::HasNone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Facts, ProcessKey};

    fn process(exe: &str) -> Process {
        let key = ProcessKey { pid: 1, start_ticks: 1 };
        Process::new(key, 1, 0, Facts { exe: Some(exe.into()), ..Facts::default() })
    }

    fn place(name: &str) -> Place {
        (name.into(), 443)
    }

    #[test]
    fn an_upstream_beyond_us_is_tried_again() {
        let (findings, now) = (Findings::default(), Instant::now());
        assert_eq!(findings.beyond(&place("a.test"), now), None);
        findings.is_beyond(place("a.test"), "old", now);
        assert_eq!(findings.beyond(&place("a.test"), now + HOLDS / 2), Some("old"));
        assert_eq!(findings.beyond(&("a.test".into(), 8443), now), None);
        assert_eq!(findings.beyond(&place("a.test"), now + HOLDS), None);
    }

    #[test]
    fn a_certificate_outweighs_none() {
        let (findings, now, at) = (Findings::default(), Instant::now(), place("a.test"));
        let (curl, kubectl) = (process("/usr/bin/curl"), process("/usr/bin/kubectl"));
        assert_eq!(findings.answer(&curl, &at, now), Answer::Unknown);
        findings.answered(&curl, at.clone(), false, now);
        assert_eq!(findings.answer(&curl, &at, now + HOLDS * 9), Answer::HasNone);
        assert_eq!(findings.answer(&kubectl, &at, now), Answer::Unknown);
        findings.answered(&curl, at.clone(), true, now);
        findings.answered(&curl, at.clone(), false, now);
        assert_eq!(findings.answer(&curl, &at, now), Answer::HasOne);
        // Watched again, which loses nothing.
        assert_eq!(findings.answer(&curl, &at, now + HOLDS), Answer::Unknown);
        findings.answered(&curl, at.clone(), false, now + HOLDS);
        assert_eq!(findings.answer(&curl, &at, now + HOLDS), Answer::HasNone);
    }

    #[test]
    fn requests_are_kept() {
        let (findings, at, first, second) = (Findings::default(), place("a.test"), Arc::default(), Arc::default());
        assert_eq!(findings.asks(&at), None);
        assert!(!findings.has_asked(&at, Some(&first)));
        assert!(!findings.has_asked(&at, Some(&second)));
        findings.has_settled(&at);
        assert!(findings.has_asked(&at, Some(&first)));
        assert!(Arc::ptr_eq(&findings.asks(&at).expect("kept"), &first));
    }

    #[test]
    fn findings_are_bounded() {
        let (findings, now, curl) = (Findings::default(), Instant::now(), process("/usr/bin/curl"));
        for at in 0..MAX_KEPT.get() + 9 {
            findings.is_beyond(place(&at.to_string()), "old", now);
            findings.has_asked(&place(&at.to_string()), Some(&Arc::default()));
            findings.answered(&curl, place(&at.to_string()), true, now);
        }
        assert_eq!(findings.beyond.lock().expect("not poisoned").len(), MAX_KEPT.get());
        assert_eq!(findings.asking.lock().expect("not poisoned").len(), MAX_KEPT.get());
        assert_eq!(findings.clients.lock().expect("not poisoned").len(), MAX_KEPT.get());
    }
}
