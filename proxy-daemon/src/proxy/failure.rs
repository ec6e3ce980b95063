//! What an I/O error on a leg means, and how it is shown on the other leg in
//! kind: a reset stays a reset, a close stays a close.
use std::io;

use nix::libc;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::flow::Failure;

/// The failure behind an error on the upstream's leg.
pub(super) fn of(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => Failure::Closed,
        io::ErrorKind::TimedOut => Failure::TimedOut,
        io::ErrorKind::InvalidData => Failure::Protocol,
        _ if error.raw_os_error() == Some(libc::EHOSTUNREACH) || error.raw_os_error() == Some(libc::ENETUNREACH) => {
            Failure::TimedOut
        }
        _ => Failure::Reset,
    }
}

/// Why a connection could not be made.
pub(super) fn of_connecting(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Failure::Refused,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EACCES | libc::EPERM) => {
            Failure::Unreachable
        }
        Some(libc::ECONNRESET) => Failure::Reset,
        Some(libc::ETIMEDOUT) => Failure::TimedOut,
        _ => Failure::Closed,
    }
}

/// Whether the failure is this machine's: it ran out of something.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// Makes the socket's close a reset.
pub(super) fn reset_on_close(socket: &TcpStream) {
    // Fails only on a socket that is no longer connected, which then needs
    // no reset.
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}
