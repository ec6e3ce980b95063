//! `retryscope wait`: returns once an instance is ready, for whoever must not
//! start before.
//!
//! Ready is what the instance says once it serves connections. Where everybody's
//! connections are redirected (a sidecar), one is made from here as well: then
//! it is known of this place, not only believed. Nothing is asked over and
//! over: the kernel tells when the socket appears, and the instance when it is
//! ready.
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

use super::{Failure, daemon::DEFAULT_NAME};
use crate::{
    control::{self, ClientError, Shown},
    process::{self, launch},
};

/// News of a file may get lost on some file systems: then it is looked again.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Give up after this time, as in 1s, 2m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// The name of the daemon or sidecar
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME)]
    name: String,

    /// Its control socket, where it is not at its usual place
    #[arg(long, value_name = "PATH", conflicts_with = "name")]
    socket: Option<PathBuf>,
}

/// Why it is not ready yet, or never will be.
enum Not {
    Yet(String),
    Ever(Failure),
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(70, format!("cannot start the runtime ({error})")))?;
    let socket = args.socket.clone().unwrap_or_else(|| control::socket(&args.name));
    runtime.block_on(wait(&socket, args.timeout))?;
    Ok(ExitCode::SUCCESS)
}

async fn wait(socket: &Path, patience: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    loop {
        // Watched before it is looked at: what comes in between is told.
        let news = News::of(socket);
        let why = match look(socket, deadline).await {
            Ok(()) => return Ok(()),
            Err(Not::Ever(failure)) => return Err(failure),
            Err(Not::Yet(why)) => why,
        };
        let again = (Instant::now() + LOOK).min(deadline);
        if let Ok(news) = news {
            let _ = timeout_at(again, news.comes()).await;
        } else {
            tokio::time::sleep_until(again).await;
        }
        if Instant::now() >= deadline {
            let patience = humantime::format_duration(patience);
            return Err(Failure::new(69, format!("retryscope is not ready after {patience}: {why}")));
        }
    }
}

async fn look(socket: &Path, deadline: Instant) -> Result<(), Not> {
    if !socket.exists() {
        return Err(Not::Yet(format!(
            "there is no socket {}; has it been started, and is its folder shared with this container?",
            socket.display()
        )));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let about = control::at(socket.to_owned()).ready(left).await.map_err(|error| match error {
        ClientError::Permission | ClientError::Forbidden(_) => {
            Not::Ever(Failure::new(error.exit_code(), error.to_string()))
        }
        // Of an instance that has just ended the socket may be left.
        error => Not::Yet(format!("{} does not say that it is ready ({error})", socket.display())),
    })?;
    let Some(Shown { address, nonce }) = about.beacon else { return Ok(()) };
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let tried = tokio::task::spawn_blocking(move || redirected(address, nonce, left)).await;
    tried.unwrap_or_else(|error| Err(error.to_string())).map_err(Not::Yet)
}

fn redirected(address: SocketAddr, nonce: [u8; launch::NONCE], patience: Duration) -> Result<(), String> {
    launch::probed(address, &nonce, patience).map_err(|what| {
        format!("it is, but connections from here do not come to it: {what}; is its network namespace shared with this container?")
    })
}

/// What the kernel tells of a file that is to appear.
struct News(AsyncFd<std::os::fd::OwnedFd>);

impl News {
    fn of(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // A socket listens only a moment after it has appeared; its mode is
        // changed then.
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB;
        let innermost = || path.ancestors().skip(1).find(|folder| folder.is_dir());
        let mut watched = None;
        // The innermost folder there is; one that appears meanwhile is it then.
        while let Some(folder) = innermost().filter(|folder| watched != Some(*folder)) {
            inotify.add_watch(folder, what)?;
            watched = Some(folder);
        }
        Ok(Self(process::readable(inotify.as_fd().try_clone_to_owned()?)?))
    }

    async fn comes(self) {
        // Should that fail, it is looked again at once.
        let _ = self.0.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn waits(socket: &Path, patience: Duration) -> Failure {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(wait(socket, patience)).expect_err("nothing is ready")
    }

    #[test]
    fn who_is_not_there_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("main/api.sock");
        let failure = waits(&socket, Duration::from_millis(20));
        assert_eq!(failure.code, 69);
        assert!(failure.message.starts_with("retryscope is not ready after 20ms: there is no socket "), "{failure:?}");
        std::fs::create_dir(dir.path().join("main")).expect("a folder");
        drop(UnixListener::bind(&socket).expect("a socket"));
        let failure = waits(&socket, Duration::from_millis(20));
        assert!(failure.message.contains("does not say that it is ready"), "{failure:?}");
    }

    #[test]
    fn news_of_whatever_appears_on_the_way() {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let folder = dir.path().join("a/b");
        runtime.block_on(async {
            for step in [dir.path().join("a"), folder.clone()] {
                let news = News::of(&folder.join("socket")).expect("news");
                std::fs::create_dir(step).expect("a folder");
                tokio::time::timeout(Duration::from_secs(20), news.comes()).await.expect("news of the folder");
            }
            let news = News::of(&folder.join("socket")).expect("news");
            let _socket = UnixListener::bind(folder.join("socket")).expect("a socket");
            tokio::time::timeout(Duration::from_secs(20), news.comes()).await.expect("news of the socket");
        });
    }
}
