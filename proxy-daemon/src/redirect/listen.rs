//! The listeners that redirected connects come to, and the network namespace
//! they are in.
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::RedirectError;

/// The kernel cuts it down to net.core.somaxconn. A full queue would cost
/// clients a second (a SYN dropped and sent again).
const BACKLOG: i32 = 65_535;

/// Both on the loopback, each on a port that the kernel chose, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1; IPv4-mapped connects come here too.
    pub v4: TcpListener,
    /// ::1; `None` on a host without IPv6, where native IPv6 goes direct.
    pub v6: Option<TcpListener>,
}

pub(super) fn open() -> Result<Listeners, RedirectError> {
    let v4 = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .map_err(|cause| RedirectError::Listener { address: "127.0.0.1", cause })?;
    // Listening works without it, being reached does not.
    if !loopback_is_up(&v4) {
        return Err(RedirectError::Listener { address: "127.0.0.1", cause: io::ErrorKind::NetworkDown.into() });
    }
    let v6 = match listener(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) {
        Ok(v6) => Some(v6),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => None,
        Err(cause) => return Err(RedirectError::Listener { address: "::1", cause }),
    };
    Ok(Listeners { v4, v6 })
}

/// In the network namespace of a socket: asked for in a way that is open also to
/// who may have no netlink socket.
fn loopback_is_up(socket: &impl AsFd) -> bool {
    // SAFETY: integers and a union of such, so that zeros are a value.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in asked.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: the request outlives the call and is what this call takes.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut asked) };
    // SAFETY: the call has written this member of the union, or it is zeros.
    let flags = unsafe { asked.ifr_ifru.ifru_flags };
    // Where it is not told, it may well be.
    result != 0 || libc::c_int::from(flags) & libc::IFF_UP != 0
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

pub(super) fn port(listener: &TcpListener) -> Result<u32, RedirectError> {
    let address = listener.local_addr().map_err(|cause| RedirectError::Listener { address: "the loopback", cause })?;
    Ok(u32::from(address.port()))
}

/// A listener's accept queue: how many connections wait in it, and how many
/// can at the most.
pub fn queue(listener: &impl AsFd) -> io::Result<(u32, u32)> {
    // SAFETY: integers only, so that zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: the value and its length outlive the call, and agree.
    let result = unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    // Of a listener these two fields tell its queue (`tcp_diag` and `ss` go by
    // them as well).
    if result == 0 { Ok((info.tcpi_unacked, info.tcpi_sacked)) } else { Err(io::Error::last_os_error()) }
}

/// The number by which the kernel side tells this network namespace from
/// others.
pub(super) fn netns_cookie() -> Result<u64, RedirectError> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| cookie_of(&socket)).map_err(|cause| {
        RedirectError::Kernel {
            what: "telling network namespaces apart (SO_NETNS_COOKIE)",
            cause: cause.to_string(),
            remedy: "Linux 5.14 or newer is needed",
        }
    })
}

/// That of the network namespace that a socket is in.
pub(super) fn cookie_of(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the value and its length outlive the call, and agree.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
