//! A terminal that a test looks at: tmux, with a server of its own.
use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use super::{SOON, clients, run::RETRYSCOPE, until};

pub struct Tmux {
    socket: PathBuf,
    _dir: TempDir,
}

/// A pane with a shell in it, by tmux's own name.
pub struct Pane<'t> {
    tmux: &'t Tmux,
    id: String,
}

impl Tmux {
    /// A window of so many columns and rows.
    pub fn start(columns: u16, rows: u16) -> Self {
        clients::root();
        let dir = tempfile::Builder::new().prefix("retryscope-test-").tempdir().expect("a temporary folder");
        let tmux = Self { socket: dir.path().join("tmux"), _dir: dir };
        let size = [columns.to_string(), rows.to_string()];
        tmux.tell(&["-f", "/dev/null", "new-session", "-d", "-x", &size[0], "-y", &size[1], "sh"]);
        tmux
    }

    fn tell(&self, words: &[&str]) -> String {
        let mut command = Command::new(clients::need("tmux", "tmux"));
        let here = PathBuf::from(RETRYSCOPE);
        let here = here.parent().expect("a folder").display();
        let path = std::env::join_paths([here.to_string()]).expect("a path");
        let path = format!("{}:{}", path.display(), clients::SYSTEM_PATH);
        command.arg("-S").arg(&self.socket).args(words).env_clear().envs(clients::environment());
        command.env("PATH", path).env("TERM", "xterm-256color").env("PS1", "$ ");
        let output = command.output().expect("running tmux");
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The pane that is there from the start.
    pub fn first(&self) -> Pane<'_> {
        let id = self.tell(&["display-message", "-p", "#{pane_id}"]);
        Pane { tmux: self, id: id.trim().to_owned() }
    }

    /// Another, below the last, of so many rows.
    pub fn below(&self, rows: u16) -> Pane<'_> {
        let id = self.tell(&["split-window", "-v", "-l", &rows.to_string(), "-P", "-F", "#{pane_id}", "sh"]);
        Pane { tmux: self, id: id.trim().to_owned() }
    }
}

impl Tmux {
    /// Gives the window another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.tell(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // Also where a test panics: what runs in it goes with it.
        let tmux = clients::need("tmux", "tmux");
        let _ = Command::new(tmux).arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

impl Pane<'_> {
    /// The shell in it.
    pub fn pid(&self) -> i32 {
        let pid = self.tmux.tell(&["display-message", "-p", "-t", &self.id, "#{pane_pid}"]);
        pid.trim().parse().expect("a pid")
    }

    /// Types a line.
    pub fn types(&self, line: &str) {
        self.tmux.tell(&["send-keys", "-t", &self.id, "-l", line]);
        self.key("Enter");
    }

    /// Presses a key, by tmux's name for it.
    pub fn key(&self, key: &str) {
        self.tmux.tell(&["send-keys", "-t", &self.id, key]);
    }

    /// Types words, and no line's end.
    pub fn writes(&self, text: &str) {
        self.tmux.tell(&["send-keys", "-t", &self.id, "-l", text]);
    }

    /// A press of the mouse's button at a column and a row, from 1, as a
    /// terminal tells of it.
    pub fn clicks(&self, column: usize, row: usize) {
        self.presses(format!("\x1b[<0;{column};{row}M\x1b[<0;{column};{row}m").as_bytes());
    }

    /// Bytes, as a terminal sends them.
    pub fn presses(&self, bytes: &[u8]) {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut words = vec!["send-keys", "-t", &self.id, "-H"];
        words.extend(bytes.iter().map(String::as_str));
        self.tmux.tell(&words);
    }

    /// What tmux knows of it, such as `#{alternate_on}`.
    pub fn tells(&self, format: &str) -> String {
        self.tmux.tell(&["display-message", "-p", "-t", &self.id, format]).trim().to_owned()
    }

    /// What it shows, a line that goes on in the next row as one.
    pub fn screen(&self) -> String {
        self.tmux.tell(&["capture-pane", "-p", "-J", "-t", &self.id])
    }

    /// All that it has shown, once its shell waits again.
    #[track_caller]
    pub fn ends(&self) -> String {
        until("the shell waits for its next line", SOON * 2, || {
            let all = self.tmux.tell(&["capture-pane", "-p", "-J", "-S", "-", "-t", &self.id]);
            let last = all.trim_end().lines().next_back().unwrap_or_default();
            matches!(last.trim_end(), "#" | "$").then(|| all.clone())
        })
    }

    /// Waits until it shows this, and tells what it shows then.
    #[track_caller]
    pub fn shows(&self, part: &str) -> String {
        let mut last = String::new();
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(part, SOON * 2, || {
                last = self.screen();
                last.contains(part).then(|| last.clone())
            })
        }));
        shown.unwrap_or_else(|_| panic!("the pane never showed '{part}', but:\n{last}"))
    }
}
