//! A netlink socket: questions out, answers in.
//!
//! The kernel works on a message before `send` returns, and on a dump while it
//! is read; so an answer is there at once or never comes, and nothing here
//! waits.
use std::io;

use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_sys::{Socket, SocketAddr};
use nix::libc;

/// More than the kernel puts into one datagram.
const ROOM: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.0.send(bytes, 0)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// One datagram; `None` where there is none.
    pub(super) fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(ROOM);
        match self.0.recv(&mut bytes, libc::MSG_DONTWAIT) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A message of a family that a crate speaks, and all that is answered.
    /// An acknowledgement is no answer.
    pub(super) fn ask<M>(&self, mut message: NetlinkMessage<M>) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        while let Some(received) = self.receive()? {
            let mut rest = &received[..];
            while rest.len() >= 16 {
                let answer = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                let length = (answer.header.length as usize).max(16).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
        Ok(answers)
    }
}
