//! The command `retryscope`.

fn main() {}
