//! One process and what it starts, and nothing else in its cgroup.
use retryscope::redirect::{Options, Redirect, Target, cgroup};
use serde_json::json;

use crate::world::{Client, Daemon, World, accept, server, world};

fn watch(world: &World, client: &Client) -> Daemon {
    let options = Options { target: Target::Process { pid: client.pid() }, ..world.options() };
    world.daemon_with(&options)
}

#[test]
fn threads_children_and_grandchildren() {
    world(|world| {
        let mut client = world.client();
        let mut neighbour = world.client();
        // One child from before.
        let early = client.run(
            "r, w = os.pipe()\n\
             early = os.fork()\n\
             if early == 0:\n    os.read(r, 1); s = connect('192.0.2.4'); os._exit(0)\n\
             result = early",
        );
        let daemon = watch(world, &client);
        let direct = server("127.0.0.1:443");
        client.run("s = connect('192.0.2.1')");
        assert_eq!(daemon.redirected().owner.key.pid, client.pid());
        client.run("t = threading.Thread(target=lambda: connect('192.0.2.1')); t.start(); t.join()");
        assert_eq!(daemon.redirected().owner.key.pid, client.pid());
        let child = client.run(
            "child = os.fork()\n\
             if child == 0:\n\
             \x20   s = connect('192.0.2.2')\n\
             \x20   if os.fork() == 0: s = connect('192.0.2.3')\n\
             \x20   os._exit(0)\n\
             os.waitpid(child, 0); result = child",
        );
        let first = daemon.redirected();
        assert_eq!(Some(u64::from(first.owner.key.pid)), child.as_u64());
        assert_eq!((first.owner.parent, first.origin.to_string()), (client.pid(), "192.0.2.2:443".into()));
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.3:443");
        client.run("os.write(w, b'x'); os.waitpid(early, 0)");
        assert_eq!(Some(u64::from(daemon.redirected().owner.key.pid)), early.as_u64());
        // The neighbour, in the same cgroup.
        assert_eq!(neighbour.run("s = connect('127.0.0.1'); result = peer(s)"), json!(["127.0.0.1", 443]));
        accept(&direct);
        neighbour.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', 443))");
        let counters = daemon.counters();
        assert_eq!((counters.redirected, counters.udp_refused, counters.process_not_tracked), (5, 0, 0));
    });
}

/// A program run by the target, and a leader that goes before its thread.
#[test]
fn exec_and_a_leader_that_ends_first() {
    world(|world| {
        let mut client = world.client();
        let daemon = watch(world, &client);
        client.run(
            "subprocess.run([sys.executable, '-I', '-S', '-c', \
             'import socket; s = socket.socket(); s.connect((\"192.0.2.5\", 443))'], check=True)",
        );
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.5:443");
        client.run(
            "child = os.fork()\n\
             if child == 0:\n\
             \x20   import ctypes\n\
             \x20   def late():\n\
             \x20       while 'Z' not in open(f'/proc/{os.getpid()}/stat').read().rsplit(')', 1)[1].split()[0]: pass\n\
             \x20       s = connect('192.0.2.6'); os._exit(0)\n\
             \x20   threading.Thread(target=late).start()\n\
             \x20   ctypes.CDLL(None).pthread_exit(None)\n\
             os.waitpid(child, 0)",
        );
        assert_eq!(daemon.redirected().origin.to_string(), "192.0.2.6:443");
    });
}

/// The number of a process that has ended belongs to the next one who gets it.
#[test]
fn recycled_pid() {
    world(|world| {
        let mut client = world.client();
        let daemon = watch(world, &client);
        let direct = server("127.0.0.1:443");
        let ended = client.run(
            "child = os.fork()\n\
             if child == 0: connect('192.0.2.1'); os._exit(0)\n\
             os.waitpid(child, 0); result = child",
        );
        daemon.redirected();
        // A stranger gets the same number: asked for by clone3 (set_tid).
        let mut stranger = world.client();
        let again = stranger.run(&format!(
            "import ctypes\n\
             tid = ctypes.c_int({ended})\n\
             args = struct.pack('<11Q', 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tid), 1, 0)\n\
             again = ctypes.CDLL(None, use_errno=True).syscall(435, args, len(args))\n\
             if again == 0: s = connect('127.0.0.1'); os._exit(0)\n\
             if again > 0: os.waitpid(again, 0)\n\
             result = again if again > 0 else -ctypes.get_errno()"
        ));
        assert_eq!(again, ended);
        accept(&direct);
        assert_eq!(daemon.counters().redirected, 1);
    });
}

#[test]
fn process_that_does_not_exist() {
    world(|world| {
        let options = Options { target: Target::Process { pid: u32::MAX / 2 }, ..world.options() };
        let error = Redirect::start(&options, &cgroup::own().unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{error}");
        let options = Options { target: Target::Cgroup(world.target.join("absent")), ..world.options() };
        let error = Redirect::start(&options, &cgroup::own().unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{error}");
        let options = Options { target: Target::Cgroup("/etc".into()), ..world.options() };
        assert_eq!(Redirect::start(&options, &cgroup::own().unwrap()).unwrap_err().exit_code(), 64);
    });
}
