//! Signals as a stream of values, each with who sent it.
//!
//! They are blocked before any thread starts and read from a descriptor:
//! that alone tells a key press in the terminal (which the command has
//! received as well) from a `kill` meant for us.
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tokio::io::unix::AsyncFd;

use crate::process;

const HEARD: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// A signal that came for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) signal: Signal,
    /// The terminal sent it to its whole foreground group.
    pub(super) from_terminal: bool,
}

#[derive(Debug)]
pub(super) struct Signals(SignalFd);

#[derive(Debug)]
pub(super) struct Stream {
    signals: SignalFd,
    ready: AsyncFd<OwnedFd>,
}

impl Signals {
    /// Blocks the signals; to be called before any thread is started.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in HEARD {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// To be called within the runtime.
    pub(super) fn listen(self) -> io::Result<Stream> {
        let ready = process::readable(self.0.as_fd().try_clone_to_owned()?)?;
        Ok(Stream { signals: self.0, ready })
    }
}

impl Stream {
    pub(super) async fn next(&self) -> Heard {
        loop {
            let Ok(mut ready) = self.ready.readable().await else { return std::future::pending().await };
            match self.signals.read_signal() {
                Ok(Some(info)) => {
                    if let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) {
                        return Heard { signal, from_terminal: info.ssi_code == libc::SI_KERNEL };
                    }
                }
                Ok(None) | Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return std::future::pending().await,
            }
        }
    }
}
