//! The terminal: taken, drawn on, and left as it was.
//!
//! Raw mode, the alternate screen, the mouse's buttons and marked pastes are
//! on while a [`Screen`] is there and nobody has left it; a panic takes them
//! back before it says anything.
use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossterm::{
    cursor::{Hide, Show},
    event::{self, DisableBracketedPaste, EnableBracketedPaste, Event},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};
use tokio::io::unix::AsyncFd;

use crate::process;

/// Presses of buttons and turns of the wheel, in the form that has no bounds;
/// not every movement, which would only be thrown away.
const MOUSE: &[u8] = b"\x1b[?1000h\x1b[?1006h";
const NO_MOUSE: &[u8] = b"\x1b[?1006l\x1b[?1000l";

/// The terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);

fn take() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    let mut stdout = io::stdout();
    execute!(stdout, EnterAlternateScreen, EnableBracketedPaste, Hide)?;
    stdout.write_all(MOUSE)?;
    stdout.flush()
}

/// Gives it back, once. A terminal that is gone needs nothing.
fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut stdout = io::stdout();
    let _ = stdout.write_all(NO_MOUSE);
    let _ = execute!(stdout, DisableBracketedPaste, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

#[derive(Debug)]
pub(super) struct Screen(Terminal<CrosstermBackend<io::BufWriter<io::Stdout>>>);

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        // Dropped where this fails half way.
        let screen = Self(Terminal::new(CrosstermBackend::new(io::BufWriter::new(io::stdout())))?);
        take()?;
        Ok(screen)
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(draw)?;
        Ok(())
    }

    /// Gives the terminal back, for as long as another uses it.
    #[expect(clippy::unused_self, reason = "who has a screen may leave it")]
    pub(super) fn leave(&mut self) {
        give_back();
    }

    /// Takes it again, and draws all of it anew.
    pub(super) fn again(&mut self) -> io::Result<()> {
        // Whoever had it in between may have left it in any state.
        give_back();
        take()?;
        self.0.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// How long an end may take once the terminal is gone.
const GONE: Duration = Duration::from_secs(2);

/// Keys and the mouse, as they come. Read here and by no thread of its own, so
/// that an editor has the terminal to itself.
#[derive(Debug)]
pub(super) struct Input(AsyncFd<OwnedFd>);

impl Input {
    /// To be called within the runtime.
    pub(super) fn new() -> io::Result<Self> {
        // crossterm waits for the rest of a key that came by half, unless its
        // reads never wait. They are made so on an opening of our own: what
        // standard input was opened as is others' as well.
        let terminal = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
            .open("/dev/tty")?;
        nix::unistd::dup2_stdin(&terminal)?;
        let terminal = OwnedFd::from(terminal);
        let watched = terminal.try_clone()?;
        // crossterm reads a terminal that is gone for ever, and nothing else
        // of this thread has its turn then. So another one sees to the end.
        std::thread::Builder::new().name("hang-up".into()).spawn(move || {
            if is_gone(&watched, PollTimeout::NONE) {
                std::thread::sleep(GONE);
                std::process::exit(0);
            }
        })?;
        Ok(Self(process::readable(terminal)?))
    }

    /// Whether reads wait, as other programs expect it.
    pub(super) fn wait(&self, waits: bool) -> io::Result<()> {
        let flags = if waits { OFlag::empty() } else { OFlag::O_NONBLOCK };
        fcntl(self.0.get_ref(), FcntlArg::F_SETFL(flags))?;
        Ok(())
    }

    /// What has come, at least one thing; may be dropped while it waits.
    pub(super) async fn events(&self) -> io::Result<Vec<Event>> {
        loop {
            // Cleared first: what comes from here on makes it ready again.
            self.0.readable().await?.clear_ready();
            let events = self.come()?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// What is there already. To be called after a change of size as well:
    /// crossterm takes note of it by itself, and of no key in the same turn.
    pub(super) fn come(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            if is_gone(self.0.get_ref(), PollTimeout::ZERO) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !event::poll(Duration::ZERO)? {
                return Ok(events);
            }
            events.push(event::read()?);
        }
    }
}

/// Whether nobody is at the terminal any more, or comes to be gone in time.
fn is_gone(terminal: &OwnedFd, patience: PollTimeout) -> bool {
    let mut polled = [PollFd::new(terminal.as_fd(), PollFlags::empty())];
    while let Err(Errno::EINTR) = poll(&mut polled, patience) {}
    let flags = polled[0].revents().unwrap_or(PollFlags::empty());
    flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, process::Command};

    use nix::{
        pty::{Winsize, openpty},
        sys::termios::tcgetattr,
    };

    use super::*;

    /// Not a test: what the one below has its terminal for.
    #[test]
    #[ignore = "it panics, on the terminal of another test"]
    fn panics_on_its_screen() {
        let mut screen = Screen::enter().unwrap();
        screen.draw(|frame| frame.render_widget("something", frame.area())).unwrap();
        panic!("and then it was over");
    }

    /// A program that panics leaves the terminal as it was, and says why on the
    /// shell's screen.
    #[test]
    fn a_panic_gives_it_back() {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&terminal.slave).unwrap();
        let stdio = || terminal.slave.try_clone().unwrap();
        let mut program = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "--exact", "view::top::terminal::tests::panics_on_its_screen"])
            .env("RUST_BACKTRACE", "0")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let mut master = File::from(terminal.master);
        let reading = std::thread::spawn(move || {
            let mut shown = Vec::new();
            // Ends with an error once nobody has the terminal any more.
            let _ = master.read_to_end(&mut shown);
            String::from_utf8_lossy(&shown).into_owned()
        });
        let ended = program.wait().unwrap();
        let after = tcgetattr(&terminal.slave).unwrap();
        drop(terminal.slave);
        let shown = reading.join().unwrap();
        assert!(!ended.success(), "{shown}");
        assert_eq!(after, before, "{shown}");
        let at = |part: &str| shown.find(part).unwrap_or_else(|| panic!("no {part:?} in {shown:?}"));
        assert!(at("\x1b[?1049h") < at("something") && at("something") < at("\x1b[?1049l"), "{shown:?}");
        assert!(at("\x1b[?1049l") < at("and then it was over"), "{shown:?}");
        for on in ["\x1b[?1006l\x1b[?1000l", "\x1b[?2004l", "\x1b[?25h"] {
            assert!(at(on) < at("and then it was over"), "{shown:?}");
        }
    }
}
