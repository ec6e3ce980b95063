//! Who is at the other end of a Unix socket.
#![allow(unsafe_code)]
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::libc;

/// More groups than anybody has.
const MAX_GROUPS: usize = 65_536;

/// The supplementary groups that the other end had when it connected.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let capacity = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(capacity).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the buffer outlives the call and is as long as told.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = usize::try_from(length).unwrap_or(0) / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel tells how much room it takes.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_groups() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut seen = peer_groups(&one).expect("groups");
        let mut ours: Vec<u32> = nix::unistd::getgroups().expect("groups").iter().map(|group| group.as_raw()).collect();
        seen.sort_unstable();
        ours.sort_unstable();
        assert_eq!(seen, ours);
    }
}
