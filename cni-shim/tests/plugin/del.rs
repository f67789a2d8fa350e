//! DEL: it succeeds whatever is left, and what it can't tell the daemon it leaves for the next one.

use std::fs;
use std::path::Path;

use serde_json::json;
use tapir_cni::protocol::{AttachmentId, Del, Request, del_queue};

use crate::call::Call;
use crate::daemon::{Daemon, Reaction, obey};
use crate::namespace::Namespace;
use crate::privileged;

fn queued(socket: &Path) -> Vec<Del> {
    let Ok(entries) = fs::read_dir(del_queue(socket)) else { return Vec::new() };
    entries.map(|entry| serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap()).collect()
}

fn del(netns: &str) -> Del {
    Del { id: AttachmentId { container_id: "c1".into(), interface: "eth0".into() }, netns: netns.into() }
}

#[test]
fn tells_the_daemon_once_twice_and_without_an_add() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    let call = Call::new("DEL", &pod.path(), &daemon.socket);
    call.succeed();
    call.verb("ADD").result();
    call.succeed();
    call.succeed();
    pod.settles(&[]);
    let netns = pod.path().to_str().unwrap().to_owned();
    assert_eq!(daemon.requests().iter().filter(|request| **request == Request::Del(del(&netns))).count(), 3);
}

#[test]
fn needs_no_namespace() {
    let daemon = Daemon::good();
    for netns in ["", "/nonexistent/netns", "relative", "/proc/self/ns/uts", "/proc/self/ns/net", "/etc/hostname"] {
        Call::new("DEL", Path::new(netns), &daemon.socket).succeed();
        assert_eq!(daemon.requests().last(), Some(&Request::Del(del(netns))));
    }
    let mut call = Call::new("DEL", Path::new(""), &daemon.socket);
    call.variables.remove(std::ffi::OsStr::new("CNI_NETNS"));
    call.succeed();
}

#[test]
fn is_not_stopped_by_what_it_doesn_t_use() {
    let daemon = Daemon::good();
    Call::new("DEL", Path::new(""), &daemon.socket)
        .variable("CNI_ARGS", "no form")
        .key("prevResult", json!(["nonsense"]))
        .key("runtimeConfig", json!({"mac": "nonsense"}))
        .succeed();
}

#[test]
fn without_a_daemon_it_is_queued_and_the_interface_removed() {
    if !privileged() {
        return;
    }
    let (pod, mut daemon) = (Namespace::new(), Daemon::good());
    let call = Call::new("DEL", &pod.path(), &daemon.socket);
    call.verb("ADD").result();
    daemon.stop();
    fs::remove_file(&daemon.socket).unwrap();
    call.succeed();
    call.succeed();
    assert_eq!(queued(&daemon.socket), [del(pod.path().to_str().unwrap())]);
    pod.settles(&[]);
}

#[test]
fn a_dead_daemon_s_socket_counts_as_none() {
    let (socket, _folder) = Daemon::down();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    Call::new("DEL", Path::new(""), &socket).succeed();
    assert_eq!(queued(&socket), [del("")]);
}

#[test]
fn a_daemon_that_dies_meanwhile_counts_as_none() {
    for reaction in [Reaction::HangUp, Reaction::Keep(std::time::Duration::from_secs(5)), Reaction::Garbage] {
        let daemon = Daemon::start(move |_| reaction.clone());
        Call::new("DEL", Path::new(""), &daemon.socket).key("timeout_ms", 200.into()).succeed();
        assert_eq!(queued(&daemon.socket), [del("")]);
    }
}

#[test]
fn a_refusal_is_passed_on_and_nothing_else_done() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let daemon = Daemon::start(|request| match request {
        Request::Del(_) => Reaction::Refuse(5, "disk full"),
        other => obey(other),
    });
    let call = Call::new("DEL", &pod.path(), &daemon.socket);
    call.verb("ADD").result();
    call.fail(5, &["disk full", "advice"]);
    assert_eq!((queued(&daemon.socket), pod.links()), (vec![], vec!["eth0".into()]));
}

#[test]
fn a_full_queue_asks_to_try_again_and_nothing_else_is_done() {
    if !privileged() {
        return;
    }
    let (pod, mut daemon) = (Namespace::new(), Daemon::good());
    let call = Call::new("DEL", &pod.path(), &daemon.socket);
    call.verb("ADD").result();
    daemon.stop();
    let queue = del_queue(&daemon.socket);
    fs::create_dir(&queue).unwrap();
    for n in 0..tapir_cni::queue::MAX_ENTRIES {
        fs::File::create(queue.join(n.to_string())).unwrap();
    }
    fs::remove_file(&daemon.socket).unwrap();
    call.fail(11, &["4096"]);
    assert_eq!(pod.links(), ["eth0"]);
    // What it holds already may be said again.
    fs::rename(queue.join("0"), queue.join("c1:eth0")).unwrap();
    call.succeed();
    assert_eq!((fs::read_dir(queue).unwrap().count(), pod.links()), (4096, vec![]));
}

#[test]
fn what_is_not_ours_stays() {
    if !privileged() {
        return;
    }
    for make in [
        "link add eth0 type veth peer name other",
        "link add eth0 alias tapir:c1 type veth peer name other",
        "tuntap add eth0 mode tap multi_queue vnet_hdr",
        "tuntap add eth0 mode tun",
    ] {
        let (pod, daemon) = (Namespace::new(), Daemon::good());
        pod.ip(make);
        Call::new("DEL", &pod.path(), &daemon.socket).succeed();
        assert!(pod.links().contains(&"eth0".into()), "{make}");
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    Call::new("ADD", &pod.path(), &daemon.socket).result();
    Call::new("DEL", &pod.path(), &daemon.socket).variable("CNI_CONTAINERID", "c2").succeed();
    assert_eq!(pod.links(), ["eth0"]);
}
