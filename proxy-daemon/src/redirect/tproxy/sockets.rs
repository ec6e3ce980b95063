//! What the kernel knows of TCP sockets here (sock_diag(7)): whose one end of
//! a connection is, and which connections are open.
use std::{io, net::SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, Nla as _};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc;

use super::{netlink::Netlink, rules::Tuple};

/// The holder of a socket, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) uid: u32,
    /// Of the socket, as in `/proc/PID/fd`; 0 once it has been closed.
    pub(super) inode: u32,
    /// 0 where the kernel does not tell.
    pub(super) cgroup_id: u64,
}

#[derive(Debug)]
pub(super) struct Sockets(Netlink);

impl Sockets {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Who holds the end of a connection that is at `local`; `None` if nobody
    /// here does.
    pub(super) fn holder(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Holder>> {
        let id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            // Whichever.
            cookie: [0xff; 8],
        };
        match self.ask(if local.is_ipv4() { AF_INET } else { AF_INET6 }, id, StateFlags::all(), 0) {
            Ok(found) => Ok(found.first().map(holder)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Connections from here to one of the ports (any, where none is given)
    /// that are open, or about to be; at most `most`, and how many there were
    /// besides.
    pub(super) fn open_to(&self, ports: &[u16], most: usize) -> io::Result<(Vec<Tuple>, usize)> {
        let (mut open, mut besides) = (Vec::new(), 0);
        for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let states = StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE;
            let found = match self.ask(family, id, states, NLM_F_DUMP) {
                // A kernel without IPv6.
                Err(_) if family == AF_INET6 => continue,
                found => found?,
            };
            for socket in found {
                let id = &socket.header.socket_id;
                if !ports.is_empty() && !ports.contains(&id.destination_port) {
                    continue;
                }
                if open.len() == most {
                    besides += 1;
                    continue;
                }
                open.push(Tuple {
                    source: (id.source_address, id.source_port),
                    destination: (id.destination_address, id.destination_port),
                });
            }
        }
        Ok((open, besides))
    }

    fn ask(&self, family: u8, socket_id: SocketId, states: StateFlags, flags: u16) -> io::Result<Vec<InetResponse>> {
        let extensions = ExtensionFlags::empty();
        let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
        let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
        message.header.flags = NLM_F_REQUEST | flags;
        let answers = self.0.ask(message)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                SockDiagMessage::InetResponse(found) => Some(*found),
                _ => None,
            })
            .collect())
    }
}

fn holder(socket: &InetResponse) -> Holder {
    /// INET_DIAG_CGROUP_ID, since Linux 5.8.
    const CGROUP: u16 = 21;
    let cgroup_id = socket.nlas.iter().find_map(|nla| match nla {
        Nla::Other(other) if other.kind() == CGROUP => {
            let mut bytes = vec![0; other.value_len()];
            other.emit_value(&mut bytes);
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        }
        _ => None,
    });
    Holder { uid: socket.header.uid, inode: socket.header.inode, cgroup_id: cgroup_id.unwrap_or_default() }
}

/// An address as a socket of its family has it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn knows_who_holds_a_connection() {
        use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
        let sockets = Sockets::open().expect("sock_diag");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("a listener");
            let there = listener.local_addr().expect("its address");
            let client = TcpStream::connect(there).expect("a connection");
            let here = client.local_addr().expect("its address");
            let holder = sockets.holder(here, there).expect("an answer").expect("a holder");
            let link = std::fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).expect("the link");
            assert_eq!(link.to_string_lossy(), format!("socket:[{}]", holder.inode));
            assert_eq!(holder.uid, std::fs::metadata("/proc/self").expect("myself").uid());
            assert_ne!(holder.cgroup_id, 0);
            let (open, besides) = sockets.open_to(&[there.port()], 10).expect("a dump");
            let expected = Tuple { source: (here.ip(), here.port()), destination: (there.ip(), there.port()) };
            // The same port may be in use at other addresses.
            assert!(open.contains(&expected) && besides == 0, "{open:?}");
            let (open, besides) = sockets.open_to(&[there.port()], 0).expect("a dump");
            assert!(open.is_empty() && besides > 0);
            drop((client, listener));
        }
        let nobody = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(sockets.holder(nobody, nobody).expect("an answer"), None);
    }
}
