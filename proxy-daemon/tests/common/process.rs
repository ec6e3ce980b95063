//! A child process with its output collected as it comes, and a deadline.
use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::show;

/// Bytes that a child has written so far.
#[derive(Clone, Default)]
pub struct Collected(Arc<(Mutex<SoFar>, Condvar)>);

/// The bytes, and whether the stream has ended.
type SoFar = (Vec<u8>, bool);

impl Collected {
    fn from(mut source: impl Read + Send + 'static) -> Self {
        let collected = Self::default();
        let shared = collected.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            loop {
                let read = source.read(&mut buffer).unwrap_or(0);
                let mut state = shared.0.0.lock().expect("not poisoned");
                state.0.extend_from_slice(&buffer[..read]);
                state.1 = read == 0;
                shared.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        collected
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().expect("not poisoned").0.clone()
    }

    /// Waits until `done` says so of what came so far; false at the deadline
    /// or when the stream has ended without.
    fn wait(&self, deadline: Duration, mut done: impl FnMut(&[u8], bool) -> bool) -> bool {
        let end = Instant::now() + deadline;
        let mut state = self.0.0.lock().expect("not poisoned");
        loop {
            if done(&state.0, state.1) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return false;
            }
            state = self.0.1.wait_timeout(state, left).expect("not poisoned").0;
        }
    }
}

/// A process that is under way. Dropped early, it and its descendants are
/// killed.
pub struct Running {
    pub name: String,
    pub pid: i32,
    pub stdout: Collected,
    pub stderr: Collected,
    stdin: Option<ChildStdin>,
    ended: Mutex<mpsc::Receiver<ExitStatus>>,
    status: Option<ExitStatus>,
    started: Instant,
}

/// What a process left.
#[derive(Debug)]
pub struct Finished {
    pub name: String,
    /// As a shell tells it: 128+n when a signal ended it.
    pub code: i32,
    /// The signal that ended the process itself.
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Finished {
    pub fn text(&self) -> String {
        show(&self.stdout)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON ({error}): {self}"))
    }

    /// Panics with everything the process said unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "expected success: {self}");
        self
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert!(self.code == code, "expected exit code {code}: {self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |text: &str| text.chars().take(6000).collect::<String>();
        write!(
            f,
            "{} exited {} after {:?}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.name,
            self.code,
            self.elapsed,
            cut(&self.text()),
            cut(&self.stderr)
        )
    }
}

impl Running {
    /// Starts `command` with all three streams piped.
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{:?}", command.get_program()).trim_matches('"').to_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child: Child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let stdout = Collected::from(child.stdout.take().expect("piped"));
        let stderr = Collected::from(child.stderr.take().expect("piped"));
        let stdin = child.stdin.take();
        let pid = i32::try_from(child.id()).expect("a pid");
        let (tell, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                let _ = tell.send(status);
            }
        });
        Self { name, pid, stdout, stderr, stdin, ended: Mutex::new(ended), status: None, started: Instant::now() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(bytes).expect("writing to the child's stdin");
        stdin.flush().expect("writing to the child's stdin");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Waits for a complete line on stdout that holds `part`; returns it.
    #[track_caller]
    pub fn line(&self, part: &str) -> String {
        self.line_after(0, part).0
    }

    /// The same from byte `from` on; also tells where the line ended.
    #[track_caller]
    pub fn line_after(&self, from: usize, part: &str) -> (String, usize) {
        self.find_line(super::SOON, from, part)
    }

    /// The first such line of what takes its time.
    #[track_caller]
    pub fn line_within(&self, deadline: Duration, part: &str) -> String {
        self.find_line(deadline, 0, part).0
    }

    /// The first line after `from` that holds `part`; also tells where it
    /// ended.
    #[track_caller]
    pub fn find_line(&self, deadline: Duration, from: usize, part: &str) -> (String, usize) {
        let mut found = None;
        let seen = self.stdout.wait(deadline, |bytes, _| {
            let mut at = from;
            while let Some(length) = bytes[at.min(bytes.len())..].iter().position(|&byte| byte == b'\n') {
                let line = show(&bytes[at..at + length]);
                at += length + 1;
                if line.contains(part) {
                    found = Some((line, at));
                    return true;
                }
            }
            false
        });
        assert!(
            seen,
            "{} never printed a line with '{part}'\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.name,
            show(&self.stdout.bytes()),
            show(&self.stderr.bytes())
        );
        found.expect("seen")
    }

    /// Whether the process has ended by now.
    /// Waits for a line on standard error that holds `part`.
    #[track_caller]
    pub fn error_line(&self, part: &str) -> String {
        super::until(&format!("{} says '{part}'", self.name), super::SOON, || {
            let said = show(&self.stderr.bytes());
            said.lines().find(|line| line.contains(part)).map(str::to_owned)
        })
    }

    pub fn ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.ended.get_mut().expect("not poisoned").try_recv().ok();
        }
        self.status.is_some()
    }

    /// Waits for the end; at the deadline the process tree is killed and the
    /// test fails with what it said.
    #[track_caller]
    pub fn finish(mut self, deadline: Duration) -> Finished {
        self.stdin = None;
        let status = match self.status {
            Some(status) => status,
            None => match self.ended.get_mut().expect("not poisoned").recv_timeout(deadline) {
                Ok(status) => status,
                Err(_) => panic!(
                    "{} did not end within {deadline:?} and was killed\n--- stdout\n{}\n--- stderr\n{}\n---",
                    self.name,
                    show(&self.stdout.bytes()),
                    show(&self.stderr.bytes())
                ),
            },
        };
        self.status = Some(status);
        // What it wrote is in the pipes; a background child of the command may keep them open for longer.
        for stream in [&self.stdout, &self.stderr] {
            stream.wait(Duration::from_secs(1), |_, ended| ended);
        }
        Finished {
            name: self.name.clone(),
            code: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            signal: status.signal(),
            stdout: self.stdout.bytes(),
            stderr: show(&self.stderr.bytes()),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            for pid in descendants(self.pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            let _ = self.ended.get_mut().map(|ended| ended.recv_timeout(super::SOON));
        }
    }
}

/// Children, grandchildren and so on, as `/proc` tells now.
pub fn descendants(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .filter_map(|process| process.ok()?.stat().ok())
        .map(|stat| (stat.pid, stat.ppid))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|&&(_, of)| of == parent).map(|&(pid, _)| pid));
        at += 1;
    }
    found.split_off(1)
}

pub fn alive(pid: i32) -> bool {
    procfs::process::Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.state != 'Z')
}
