//! The kernel side on the real kernel: real eBPF, cgroups and sockets.
//!
//! Needs root, and fails without it. Each test has a network namespace and a
//! cgroup of its own (`world.rs`); its clients are Python processes that run
//! the snippets a test sends them (`agent.py`).
#![allow(clippy::unwrap_used)]

mod direct;
mod gate;
mod lifetime;
mod network;
mod owner;
mod peername;
mod several;
mod tcp;
mod tree;
mod udp;
mod world;
