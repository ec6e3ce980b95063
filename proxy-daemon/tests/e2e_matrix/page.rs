//! docs/clients.md, out of what was found.
use std::{fmt::Write, path::PathBuf};

use crate::{rows::Row, trial::Found};

const HEAD: &str = "\
# Clients

<!-- Written by `cargo xtask test e2e_matrix` with RETRYSCOPE_BLESS=1; not to be edited. -->

Each row was found by running the real client, in six ways or more: directly, under `retryscope run` as it is, \
with `--no-mount`, with no variable of ours at all, with each of the named variables and no other, and with all but \
these. A way counts only where the client printed, made and ended exactly as it does directly, where its server \
received the same requests (method, target, protocol, every header field, body), and where the report counts every \
one of its requests, intercepted, under its process. The test fails where a client behaves otherwise than it is \
written here.

- **`run`**: whether it works as it is, with nothing set by you.
- **mounts alone**: whether it trusts by the files that `run` lays over others in the command's own mount namespace. \
Nothing has to be set then, whatever starts the client.
- **variables**: each is enough alone. They are what `run --no-mount` rests on, and what to set for a process that \
`attach` is to watch (with a bundle of your own: `retryscope ca show` tells how).
";

pub(crate) fn render(rows: &[(&Row, Found)]) -> String {
    let mut page = HEAD.to_owned();
    let mut group = "";
    for (row, found) in rows {
        if row.group != group {
            group = row.group;
            write!(
                page,
                "\n## {group}\n\n| client | protocol | `run` | mounts alone | variables |\n|---|---|---|---|---|\n"
            )
            .expect("a string");
        }
        let yes = |holds: bool| if holds { "yes" } else { "**no**" };
        let alone = found.alone.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let alone = if alone.is_empty() { "none".into() } else { alone };
        let protocol = row.protocol.unwrap_or(if found.http2 { "HTTP/2" } else { "HTTP/1.1" });
        let run = if found.works { "works" } else { "**refuses**; `--passthrough` its hosts" };
        writeln!(page, "| {} | {protocol} | {run} | {} | {alone} |", row.name, yes(found.mounts)).expect("a string");
    }
    page
}

pub(crate) fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md")
}
