//! TPROXY on the real kernel: network namespaces that the tests make, with
//! cables between them, and the product in one of them.
//!
//! Needs root, and fails without it.
#[path = "../common/mod.rs"]
mod common;

mod beside;
mod daemon;
mod gateway;
mod local;
mod refusals;
mod sidecar;
mod world;
