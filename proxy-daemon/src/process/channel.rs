//! Messages between two processes of ours, with file descriptors.
//!
//! In and out: bodies of bytes, each with the descriptors that go with it. A
//! message's length comes first, and the descriptors come with the length.
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// The most descriptors that come with one message.
const MAX_DESCRIPTORS: usize = 16;
/// The longest message: a configuration with all its rule files.
const MAX_MESSAGE: usize = 64 << 20;

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// The longest message that is taken.
    most: usize,
}

impl Channel {
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::of(one), Self::of(other)))
    }

    pub fn new(descriptor: OwnedFd) -> Self {
        Self::of(descriptor.into())
    }

    fn of(socket: UnixStream) -> Self {
        Self { socket, most: MAX_MESSAGE }
    }

    /// Takes no longer messages than this: from whoever is to say little.
    pub fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, most: self.most })
    }

    /// How long an answer is waited for.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.set_write_timeout(Some(patience))
    }

    pub fn send(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_bytes(&serde_json::to_vec(message)?, descriptors)
    }

    pub fn send_bytes(&mut self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
        let length = length.ok_or_else(|| io::Error::other("a message is too long"))?.to_be_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let sent = loop {
            match sendmsg(&self.socket, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                sent => break sent?,
            }
        };
        self.socket.write_all(&length[sent..])?;
        self.socket.write_all(body)
    }

    /// `None` once the other end is gone.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some((body, descriptors)) = self.receive_bytes()? else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&body)?, descriptors)))
    }

    pub fn receive_bytes(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = loop {
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut length)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read?.bytes,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if read == 0 {
            return Ok(None);
        }
        self.socket.read_exact(&mut length[read..])?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.most {
            return Err(io::Error::other("a message is too long"));
        }
        let mut body = Vec::new();
        // Grows as it comes: a length alone costs nothing.
        Read::by_ref(&mut self.socket).take(length as u64).read_to_end(&mut body)?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((body, descriptors)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn messages_keep_their_descriptors() {
        let (mut here, mut there) = Channel::pair().expect("a pair");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let long = "x".repeat(1 << 20);
        let sender = std::thread::spawn(move || {
            here.send(&"plain", &[]).expect("sent");
            here.send(&long, &[writer.as_fd()]).expect("sent");
            drop(writer);
        });
        let (plain, none): (String, _) = there.receive().expect("received").expect("a message");
        assert_eq!((plain.as_str(), none.len()), ("plain", 0));
        let (long, mut one): (String, _) = there.receive().expect("received").expect("a message");
        assert_eq!((long.len(), one.len()), (1 << 20, 1));
        sender.join().expect("no panic");
        let mut writer = std::fs::File::from(one.remove(0));
        assert_ne!(writer.as_raw_fd(), reader.as_raw_fd());
        writer.write_all(b"through").expect("written");
        drop(writer);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &reader, &mut text).expect("read");
        assert_eq!(text, "through");
        assert!(there.receive_bytes().expect("received").is_none(), "the other end is gone");
    }

    #[test]
    fn a_length_alone_is_no_message() {
        let (mut here, mut there) = Channel::pair().expect("a pair");
        here.socket.write_all(&u32::MAX.to_be_bytes()).expect("sent");
        assert!(there.receive_bytes().is_err());
        here.socket.write_all(&[0, 0, 0]).expect("sent");
        drop(here);
        assert!(there.receive_bytes().is_err());
    }
}
