//! One kernel side on several cgroups, which come and go while it runs.
use std::path::{Path, PathBuf};

use retryscope::redirect::{Attacher, Fail, Listeners, Redirect, Watched, cgroup, listeners};

use crate::world::{Client, Daemon, World, accept, attached_programs, kill_all, server, world};

struct Several<'a> {
    world: &'a World,
    attacher: Attacher,
    daemon: Daemon,
}

/// Nothing attached but the hand-over of the daemon's own cgroup.
fn several<'a>(world: &'a World, own: &Path) -> Several<'a> {
    let listeners: Listeners = listeners().expect("listeners");
    let watched = Watched { ports: vec![443], allow_quic: false };
    let mut attacher = Attacher::load(&watched, &listeners, own).expect("the kernel side: run as root");
    let redirect = Redirect::new(attacher.maps().expect("the maps"), Fail::Open, None).expect("the maps");
    redirect.add(0, attacher.attach_daemon().expect("the hand-over"));
    Several { world, attacher, daemon: Daemon { redirect: redirect.into(), listeners } }
}

impl Several<'_> {
    fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.world.target.join(name);
        cgroup::create(&path).expect("a cgroup");
        path
    }

    fn client(&self, cgroup: &Path) -> Client {
        let client = self.world.stranger();
        cgroup::join(cgroup, client.pid()).expect("join");
        client
    }

    fn attach(&mut self, number: u64, cgroup: &Path) {
        self.daemon.redirect.add(number, self.attacher.attach(cgroup).expect("attached"));
    }
}

#[test]
fn cgroups_come_and_go() {
    world(|world| {
        let direct = server("127.0.0.1:443");
        let mut several = several(world, &cgroup::own().unwrap());
        let (one, two) = (several.cgroup("one"), several.cgroup("two"));
        let (mut first, mut second) = (several.client(&one), several.client(&two));
        several.attach(1, &one);
        first.run("s = connect('192.0.2.1')");
        assert_eq!(several.daemon.redirected().origin.to_string(), "192.0.2.1:443");
        second.run("s = connect('127.0.0.1')");
        accept(&direct);

        several.attach(2, &two);
        second.run("s = connect('192.0.2.2')");
        let seen = several.daemon.redirected();
        assert_eq!(seen.origin.to_string(), "192.0.2.2:443");
        assert_eq!(seen.owner.cgroup_id, cgroup::id(&two).unwrap());

        // What is under way goes on; what begins goes direct.
        second.run("old = connect('192.0.2.3')");
        several.daemon.redirect.retire(2);
        second.run("s = connect('127.0.0.1')");
        accept(&direct);
        assert_eq!(several.daemon.redirected().origin.to_string(), "192.0.2.3:443");
        assert_eq!(second.run("result = peer(old)"), serde_json::json!(["192.0.2.3", 443]));
        several.daemon.redirect.remove(2);
        assert_eq!(attached_programs(&two), 0);
        first.run("s = connect('192.0.2.4')");
        assert_eq!(several.daemon.redirected().origin.to_string(), "192.0.2.4:443");
        assert_eq!(several.daemon.counters().unmatched, 0);

        several.daemon.redirect.detach();
        several.attach(3, &two);
        for client in [&mut first, &mut second] {
            client.run("s = connect('127.0.0.1')");
            accept(&direct);
        }
        drop((first, second));
        kill_all(&world.target);
    });
}

/// A cgroup can be removed while it is attached, and another of its name is
/// another.
#[test]
fn a_removed_cgroup_is_no_burden() {
    world(|world| {
        let mut several = several(world, &cgroup::own().unwrap());
        let path = several.cgroup("short");
        several.attach(1, &path);
        cgroup::remove(&path).unwrap();
        let again = several.cgroup("short");
        let mut client = several.client(&again);
        let direct = server("127.0.0.1:443");
        client.run("s = connect('127.0.0.1')");
        accept(&direct);
        several.attach(1, &again);
        client.run("s = connect('192.0.2.1')");
        assert_eq!(several.daemon.redirected().origin.to_string(), "192.0.2.1:443");
        drop(client);
        kill_all(&world.target);
    });
}
