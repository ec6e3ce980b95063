//! What people watch.
//!
//! In: the local API, which the page serves beside itself. Out: a running
//! instance as a person sees it, and may change it. Invariant: whatever is
//! shown came from clients and upstreams, and is text.
pub mod page;
