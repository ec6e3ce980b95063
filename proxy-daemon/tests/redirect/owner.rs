//! Whose a connection is, however short its owner lived and whatever became
//! of it: everything here is accepted only after that.
use std::sync::Arc;

use retryscope::process::{Facts, Memory, Process, ProcessTable};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::world::{Client, Daemon, World, world};

/// A redirection whose connections are accepted late.
struct Late {
    daemon: Daemon,
    table: ProcessTable,
}

impl Late {
    fn start(world: &World) -> Self {
        let daemon = world.daemon();
        let memory = Arc::clone(&daemon.redirect) as Arc<dyn Memory>;
        Self { daemon, table: ProcessTable::new(mpsc::channel(64).0, memory) }
    }

    /// Whose the next connection is.
    fn owner(&self) -> (Arc<Process>, Arc<Facts>) {
        let process = self.table.of(&self.daemon.redirected().owner);
        let facts = process.facts();
        (process, facts)
    }
}

fn pid(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a pid")).expect("a pid")
}

/// The end of a command line as `/proc` shows it.
fn command(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its command line");
    let words: Vec<u8> = bytes.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    String::from_utf8_lossy(&words).trim_end_matches(' ').to_owned()
}

fn path_of(world: &World) -> String {
    let mount = retryscope::redirect::cgroup::Mount::find().expect("a mount");
    mount.path_of(&world.target).expect("below the mount")
}

/// A program that connects and ends, as the agent's `python` starts it.
const CONNECTS: &str = "import socket; s = socket.socket(); s.connect((\"192.0.2.1\", 443))";

/// Starts the program with more words, waits for its end, and tells its pid
/// and its command line.
fn runs(client: &mut Client, start: &str) -> (u32, String) {
    let told = client.run(&format!(
        "words = [sys.executable, '-I', '-S', '-c', '{CONNECTS}', 'the', 'words of', 'this one']\n{start}"
    ));
    let words = format!("/usr/bin/python3 -I -S -c {CONNECTS} the words of this one");
    (pid(&told), words)
}

#[test]
fn children_that_connect_and_end() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        let children = client.run(
            "result = []\n\
             for number in range(20):\n\
             \x20   child = os.fork()\n\
             \x20   if child == 0: connect('192.0.2.1', 443); os._exit(0)\n\
             \x20   os.waitpid(child, 0); result.append(child)",
        );
        for child in children.as_array().expect("pids") {
            let (process, facts) = late.owner();
            assert_eq!((process.key.pid, process.parent), (pid(child), client.pid()));
            assert_eq!((facts.command.as_str(), facts.comm.as_str()), (&*command(client.pid()), "python3"));
            assert_eq!((facts.cgroup.clone(), facts.exe.clone()), (Some(path_of(world)), None));
        }
    });
}

#[test]
fn programs_that_connect_and_end() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        for start in [
            "child = subprocess.Popen(words); child.wait(); result = child.pid",
            // Which makes subprocess fork instead of vfork.
            "child = subprocess.Popen(words, preexec_fn=lambda: None); child.wait(); result = child.pid",
            "result = os.posix_spawn(words[0], words, os.environ); os.waitpid(result, 0)",
            "result = os.fork()\nif result == 0: os.execv(words[0], words)\nos.waitpid(result, 0)",
            "result = os.fork()\nif result == 0: os.execve(words[0], words, {})\nos.waitpid(result, 0)",
        ] {
            let (child, words) = runs(&mut client, start);
            let (process, facts) = late.owner();
            assert_eq!((process.key.pid, facts.command.as_str()), (child, &*words), "{start}");
        }
    });
}

/// The same process has become another program by the time that its
/// connections are accepted: each belongs to the program that made it.
#[test]
fn exec_after_the_connect() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        let (child, words) = runs(
            &mut client,
            "result = os.fork()\nif result == 0: connect('192.0.2.2'); os.execv(words[0], words)\nos.waitpid(result, 0)",
        );
        let (before, was) = late.owner();
        let (after, is) = late.owner();
        assert_eq!((before.key, before.key.pid), (after.key, child));
        assert_eq!((was.command.as_str(), is.command.as_str()), (&*command(client.pid()), &*words));
        assert!(after.image > before.image);

        // And while it lives on.
        let told = client.run(
            "r, w = os.pipe()\n\
             child = os.fork()\n\
             if child == 0:\n\
             \x20   connect('192.0.2.2'); os.dup2(r, 0); os.execv('/bin/sh', ['sh', '-c', 'read -r line; :', 'later'])\n\
             result = child",
        );
        let running = pid(&told);
        while command(running) != "sh -c read -r line; : later" {
            std::thread::yield_now();
        }
        let (process, facts) = late.owner();
        assert_eq!((process.key.pid, facts.command.as_str()), (running, &*command(client.pid())));
        assert_eq!(facts.exe, None, "the file it runs now is another one");
        client.run("os.write(w, b'\\n'); os.waitpid(child, 0)");
    });
}

/// A thread's name is not its process's.
#[test]
fn threads_with_names() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        client.run(
            "import ctypes\n\
             def named(number):\n\
             \x20   ctypes.CDLL(None).prctl(15, f'worker {number}'.encode(), 0, 0, 0)\n\
             \x20   connect('192.0.2.1')\n\
             threads = [threading.Thread(target=named, args=(number,)) for number in range(40)]\n\
             for thread in threads: thread.start()\n\
             for thread in threads: thread.join()",
        );
        let mut seen = Vec::new();
        for _ in 0..40 {
            let (process, facts) = late.owner();
            assert_eq!((process.key.pid, facts.comm.as_str()), (client.pid(), "python3"));
            assert_eq!(facts.exe.as_deref().map(|exe| exe.starts_with("/usr/bin/python3")), Some(true));
            seen.push(process);
        }
        assert!(seen.iter().all(|process| Arc::ptr_eq(process, &seen[0])));
        // The process's own name is.
        client.run("ctypes.CDLL(None).prctl(15, b'renamed', 0, 0, 0); connect('192.0.2.1')");
        let (process, facts) = late.owner();
        assert!(Arc::ptr_eq(&process, &seen[0]));
        assert_eq!((facts.comm.as_str(), facts.command.as_str()), ("renamed", &*command(client.pid())));
    });
}

#[test]
fn another_user_from_then_on() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        client.run(
            "child = os.fork()\n\
             if child == 0:\n\
             \x20   connect('192.0.2.1'); os.setgid(4321); os.setuid(1234); connect('192.0.2.1'); os._exit(0)\n\
             os.waitpid(child, 0)",
        );
        let root = late.daemon.redirected().owner;
        let user = late.daemon.redirected().owner;
        assert_eq!((root.uid, root.gid, user.uid, user.gid), (0, 0, 1234, 4321));
        assert_eq!(root.key, user.key);
        assert_eq!(late.table.of(&user).facts().command, command(client.pid()));
    });
}

/// Named by its number out here; the one in there is told as well.
#[test]
fn pid_namespace() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        let (outer, words) = runs(
            &mut client,
            "unshare = subprocess.Popen(['unshare', '--pid', '--fork', '--mount-proc', *words]); unshare.wait()\n\
             result = unshare.pid",
        );
        let (process, facts) = late.owner();
        assert_eq!((process.inner, process.parent), (Some(1), outer));
        assert!(process.key.pid > 1 && process.key.pid != outer);
        assert_eq!(facts.command, words);
        client.run("connect('192.0.2.1')");
        assert_eq!(late.owner().0.inner, None, "the same out here as in there");
    });
}

/// One number, three processes: each connection belongs to the one that made
/// it, also where the number was given out again at once.
#[test]
fn recycled_pids() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        let told = client.run(
            "import ctypes\n\
             def take(number):\n\
             \x20   tid = ctypes.c_int(number)\n\
             \x20   args = struct.pack('<11Q', 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tid), 1, 0)\n\
             \x20   return ctypes.CDLL(None, use_errno=True).syscall(435, args, len(args))\n\
             first = os.fork()\n\
             if first == 0: connect('192.0.2.1'); os._exit(0)\n\
             os.waitpid(first, 0)\n\
             for number in range(2):\n\
             \x20   again = take(first)\n\
             \x20   if again == 0:\n\
             \x20       os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', \
             'import socket; s = socket.socket(); s.connect((\"192.0.2.1\", 443))', str(number)])\n\
             \x20   if again > 0: os.waitpid(again, 0)\n\
             result = [first, again]",
        );
        assert_eq!(told[0], told[1], "the number could be had again");
        let owners: Vec<_> = (0..3).map(|_| late.owner()).collect();
        assert!(owners.iter().all(|(process, _)| process.key.pid == pid(&told[0])));
        assert_eq!(owners[0].1.command, command(client.pid()));
        for (number, (_, facts)) in owners[1..].iter().enumerate() {
            assert!(facts.command.ends_with(&format!("443)) {number}")), "{}", facts.command);
        }
    });
}

/// The connector owns the connection, whoever uses it later.
#[test]
fn connection_that_is_handed_on() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        let told = client.run(
            "ours, theirs = socket.socketpair()\n\
             child = os.fork()\n\
             if child == 0:\n\
             \x20   made = connect('192.0.2.1'); socket.send_fds(theirs, [b'x'], [made.fileno()]); os._exit(0)\n\
             got = socket.recv_fds(ours, 1, 1)[1][0]\n\
             os.waitpid(child, 0)\n\
             kept = socket.socket(fileno=got); kept.send(b'used by another')\n\
             result = child",
        );
        let (process, _) = late.owner();
        assert_eq!(process.key.pid, pid(&told));
    });
}

/// Around the bounds of the kernel's pieces, and past the last of them.
#[test]
fn command_lines_of_all_lengths() {
    const KEPT: usize = 2048;
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        // What comes before the last word and its closing NUL.
        let head = format!("/usr/bin/python3 -I -S -c {CONNECTS} ");
        for length in [127, 128, 129, 255, 256, 257, 300, 2047, 2048, 2049, 4097, 100_000] {
            let word = length - head.len() - 1;
            client.run(&format!(
                "subprocess.run([sys.executable, '-I', '-S', '-c', '{CONNECTS}', 'x' * {word}], check=True)"
            ));
            let (_, facts) = late.owner();
            let whole = format!("{head}{}", "x".repeat(word));
            let expected = if length <= KEPT { whole } else { format!("{}…", &whole[..KEPT]) };
            assert!(facts.command == expected, "{length}: {} bytes", facts.command.len());
        }
        // One that still runs shows more of itself.
        client.run(&format!(
            "words = [sys.executable, '-I', '-S', '-c', '{CONNECTS}; input()', 'x' * 3000]\n\
             running = subprocess.Popen(words, stdin=subprocess.PIPE)"
        ));
        assert!(late.owner().1.command.ends_with(&"x".repeat(3000)));
        client.run("running.communicate(b'\\n')");
    });
}

/// A process that has written a title over its arguments.
#[test]
fn title_of_its_own() {
    world(|world| {
        let mut client = world.client();
        let late = Late::start(world);
        client.run(
            "import ctypes\n\
             child = os.fork()\n\
             if child == 0:\n\
             \x20   fields = open('/proc/self/stat').read().rsplit(')', 1)[1].split()\n\
             \x20   begin, end = int(fields[45]), int(fields[46])\n\
             \x20   ctypes.memset(begin, ord(' '), end - begin)\n\
             \x20   ctypes.memmove(begin, b'worker: idle\\0', 13)\n\
             \x20   connect('192.0.2.1'); os._exit(0)\n\
             os.waitpid(child, 0)",
        );
        assert_eq!(late.owner().1.command, "worker: idle");
    });
}
