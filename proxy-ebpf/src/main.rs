//! The kernel side: which connects of the target go to the daemon, and what
//! the daemon is told about them.
//!
//! - [`connect`]: sends the target's TCP connects on watched ports to the
//!   daemon's listeners, refuses UDP, and leaves a record on the socket.
//! - [`gate`]: leaves alone, or refuses, what the daemon cannot take.
//! - [`handover`]: carries the record to the socket that the daemon accepts.
//! - [`peername`]: gives the client its original destination back.
//! - [`track`]: follows a process tree, where one process is the target.
//!
//! Nothing here refuses or loses a TCP connection, unless that was asked for
//! (`--fail closed`): whatever is not fit to be redirected goes direct and is
//! counted.
#![no_std]
#![no_main]

mod connect;
mod context;
mod gate;
mod handover;
mod maps;
mod owner;
mod peername;
mod track;

/// `bpf_probe_read_kernel` is for programs under a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier accepts no program that can reach this.
    loop {}
}
