//! retryscope: how often a process retries, and what the waiting costs it.
//!
//! The rooms, top to bottom; each may use those below it, never those above:
//! `cli`, `daemon`, `config`, `view`, `control`, `history`, `report`, `proxy`, `retry`, `rules`, `flow`,
//! `keeper`, `pods`, `redirect`, `tls`, `process`. ARCHITECTURE.md tells how data flows through them.
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod flow;
pub mod history;
pub mod keeper;
pub mod pods;
pub mod process;
pub mod proxy;
pub mod redirect;
pub mod report;
pub mod retry;
pub mod rules;
pub mod tls;
pub mod view;
