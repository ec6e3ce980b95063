//! The listeners that marked packets are handed to: on the loopback, so that
//! no port is open to other machines, and transparent, so that what they
//! accept keeps the address it was sent to.
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::number::OWN_MARK;
use crate::redirect::{Listeners, RedirectError};

const BACKLOG: i32 = 65_535;

pub(super) fn open() -> Result<Listeners, RedirectError> {
    let v4 = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).map_err(|cause| explain("127.0.0.1", cause))?;
    let v6 = match listener(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) {
        Ok(v6) => Some(v6),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => None,
        Err(cause) => return Err(explain("::1", cause)),
    };
    Ok(Listeners { v4, v6 })
}

fn explain(address: &'static str, cause: io::Error) -> RedirectError {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            RedirectError::Capability { what: "opening a transparent listener", cause: cause.to_string() }
        }
        _ => RedirectError::Listener { address, cause },
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Before it is transparent: after that, an address that is not there could
    // be bound to as well.
    socket.bind(&address.into())?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        set_transparent_v6(&socket)?;
    }
    // Answers carry it too: a client's port may be a watched one.
    socket.set_mark(OWN_MARK)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// IPV6_TRANSPARENT.
fn set_transparent_v6(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the value outlives the call, and has the length that is told.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
