//! The terminal: taken, drawn on, and left as it was.
//!
//! Raw mode, the alternate screen, the mouse's buttons and marked pastes are
//! on while a [`Screen`] is there and nobody has left it; a panic takes them
//! back before it says anything.
use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
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
        take()?;
        self.0.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Keys and the mouse, as they come. Read here and by no thread of its own, so
/// that an editor has the terminal to itself.
#[derive(Debug)]
pub(super) struct Input(AsyncFd<OwnedFd>);

impl Input {
    /// To be called within the runtime.
    pub(super) fn new() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self(process::readable(stdin)?))
    }

    /// What has come, at least one thing; may be dropped while it waits.
    pub(super) async fn events(&self) -> io::Result<Vec<Event>> {
        loop {
            let mut ready = self.0.readable().await?;
            // Cleared first: what comes from here on makes it ready again.
            ready.clear_ready();
            let mut events = Vec::new();
            while event::poll(Duration::ZERO)? {
                events.push(event::read()?);
            }
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}
