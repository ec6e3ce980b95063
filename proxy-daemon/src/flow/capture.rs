//! What a recording has of an attempt besides its record: when its parts
//! passed, the head that a rule told, and the starts of its bodies.
//!
//! In: bytes as they pass, looked at and never held up. Out: a [`Captured`].
//! A body is kept up to a limit, and all that are kept at one time share a
//! budget: past either, a body is cut, and says by how much. Nothing is
//! copied where no bodies are asked for.
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{Moment, Response};

/// Bytes of bodies that are kept at one time, of all attempts together.
pub const BUDGET: usize = 32 << 20;

/// What is captured, for as long as somebody records.
#[derive(Debug)]
pub struct Capture {
    on: AtomicBool,
    /// The most that is kept of one body; 0: none.
    limit: usize,
    left: Arc<AtomicUsize>,
}

impl Capture {
    /// Keeps up to `limit` bytes of each body.
    pub fn new(limit: usize) -> Self {
        Self { on: AtomicBool::new(true), limit, left: Arc::new(AtomicUsize::new(BUDGET)) }
    }

    /// Nobody records any more.
    pub fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    /// Of an attempt that begins.
    pub fn begin(&self) -> Option<Box<Captured>> {
        let body = || Kept { bytes: Vec::new(), limit: self.limit, seen: 0, left: Arc::clone(&self.left) };
        self.on.load(Ordering::Relaxed).then(|| {
            Box::new(Captured {
                uploaded: None,
                answered: None,
                told: None,
                bodies: Mutex::new(Some(Bodies { request: body(), response: body() })),
            })
        })
    }
}

#[derive(Debug)]
pub struct Captured {
    /// When the last of the request's body passed.
    pub uploaded: Option<Moment>,
    /// When the response's head had come, from the upstream or from a rule.
    pub answered: Option<Moment>,
    /// The head that the client was told, where a rule changed it.
    pub told: Option<Response>,
    bodies: Mutex<Option<Bodies>>,
}

/// Bodies without their framing, as far as they were kept.
#[derive(Debug)]
pub struct Bodies {
    pub request: Kept,
    /// As the client got it.
    pub response: Kept,
}

impl Captured {
    /// The bodies, while nobody has taken them.
    pub fn bodies(&mut self) -> Option<&mut Bodies> {
        self.bodies.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }

    /// Takes the bodies: they are one reader's, so that their room comes back.
    pub fn take_bodies(&self) -> Option<Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The start of a body.
#[derive(Debug)]
pub struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    /// Bytes that passed, kept or not.
    seen: u64,
    left: Arc<AtomicUsize>,
}

impl Kept {
    /// Bodies of this one's kind are not kept at all.
    pub fn is_off(&self) -> bool {
        self.limit == 0
    }

    /// Bytes of the body, in order.
    pub fn add(&mut self, data: &[u8]) {
        let whole = self.seen == self.bytes.len() as u64;
        self.seen += data.len() as u64;
        // After a gap nothing more fits.
        if !whole {
            return;
        }
        let wanted = data.len().min(self.limit.saturating_sub(self.bytes.len()));
        let granted = self.take(wanted);
        self.bytes.extend_from_slice(data.get(..granted).unwrap_or_default());
    }

    fn take(&self, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let mut granted = 0;
        let took = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            granted = wanted.min(left);
            (granted > 0).then(|| left - granted)
        });
        if took.is_ok() { granted } else { 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes are missing at its end.
    pub fn missing(&self) -> u64 {
        self.seen - self.bytes.len() as u64
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_kept_up_to_its_limit() {
        let capture = Capture::new(5);
        let mut captured = capture.begin().expect("on");
        let bodies = captured.bodies().expect("bodies");
        for part in [&b"abc"[..], b"def", b"ghi"] {
            bodies.request.add(part);
        }
        assert_eq!((bodies.request.bytes(), bodies.request.missing()), (&b"abcde"[..], 4));
        assert_eq!((bodies.response.bytes(), bodies.response.missing()), (&b""[..], 0));
        capture.stop();
        assert!(capture.begin().is_none());
    }

    #[test]
    fn all_bodies_share_a_budget_and_give_it_back() {
        let capture = Capture::new(usize::MAX);
        let part = vec![1; BUDGET - 10];
        let mut first = capture.begin().expect("on");
        first.bodies().expect("bodies").request.add(&part);
        let mut second = capture.begin().expect("on");
        let kept = &mut second.bodies().expect("bodies").response;
        kept.add(&[2; 20]);
        assert_eq!((kept.bytes().len(), kept.missing()), (10, 10));
        // What comes after a gap is not its continuation.
        drop(first.take_bodies());
        kept.add(b"x");
        assert_eq!((kept.bytes().len(), kept.missing()), (10, 11));
        let mut third = capture.begin().expect("on");
        third.bodies().expect("bodies").request.add(&part);
        assert_eq!(third.bodies().expect("bodies").request.missing(), 0);
    }

    #[test]
    fn nothing_is_kept_where_nobody_asks() {
        let mut captured = Capture::new(0).begin().expect("on");
        let bodies = captured.bodies().expect("bodies");
        bodies.request.add(&[0; 100]);
        assert_eq!((bodies.request.bytes.capacity(), bodies.request.missing()), (0, 100));
    }
}
