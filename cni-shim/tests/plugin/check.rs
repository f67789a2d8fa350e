//! CHECK: right after ADD it is content; whatever is broken since, it names.

use serde_json::{Value, json};
use tapir_cni::protocol::Request;

use crate::call::Call;
use crate::daemon::{Daemon, Reaction, obey};
use crate::namespace::Namespace;
use crate::privileged;

/// A pod after ADD with its daemon forwarding, and the CHECK for it.
fn attached(daemon: &Daemon) -> (Namespace, Call) {
    let pod = Namespace::new();
    let add = Call::new("ADD", &pod.path(), &daemon.socket);
    let result = add.result();
    daemon.respond();
    let check = add.verb("CHECK").key("prevResult", result);
    (pod, check)
}

#[test]
fn is_content_right_after_add() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::good();
    let (_pod, check) = attached(&daemon);
    check.succeed();
    let requests = daemon.requests();
    let Some(Request::Check { id, addresses, mac }) = requests.last() else { panic!("{requests:?}") };
    assert_eq!((id.container_id.as_str(), mac.as_str()), ("c1", "02:00:0a:f4:00:05"));
    assert_eq!(addresses.len(), 2);
}

#[test]
fn is_content_with_what_others_added() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::good();
    let (pod, mut check) = attached(&daemon);
    pod.ip("address add 192.0.2.7/32 dev eth0");
    pod.ip("route add 198.51.100.0/24 via 169.254.1.1");
    let previous = &mut check.configuration["prevResult"];
    previous["interfaces"].as_array_mut().unwrap().insert(0, json!({"name": "eth0", "mac": "02:00:00:00:00:99"}));
    for ip in previous["ips"].as_array_mut().unwrap() {
        ip["interface"] = 1.into();
    }
    previous["ips"].as_array_mut().unwrap().push(json!({"address": "203.0.113.1/32", "interface": 0}));
    check.succeed();
}

#[test]
fn names_what_is_broken_in_the_pod() {
    if !privileged() {
        return;
    }
    for (breakage, word) in [
        ("link set eth0 down", "down"),
        ("link set eth0 address 02:00:00:00:00:66", "MAC"),
        ("link set eth0 mtu 1400", "MTU"),
        ("address del 10.244.0.5/32 dev eth0", "lacks the address 10.244.0.5"),
        ("address del fd00:10::5/128 dev eth0", "lacks the address fd00:10::5"),
        ("route del default", "IPv4 default route"),
        ("-6 route del default", "IPv6 default route"),
        ("link del eth0", "no interface eth0"),
    ] {
        let daemon = Daemon::good();
        let (pod, check) = attached(&daemon);
        pod.ip(breakage);
        check.fail(100, &[word]);
    }
}

#[test]
fn needs_a_daemon_that_knows_it_and_forwards() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(|request| match request {
        Request::Check { .. } => Reaction::Refuse(100, "not attached"),
        other => obey(other),
    });
    let (_pod, check) = attached(&daemon);
    check.fail(100, &["not attached"]);

    let daemon = Daemon::good();
    let (pod, check) = attached(&daemon);
    daemon.hush();
    check.fail(100, &["169.254.1.1", "ping"]);
    daemon.drop_queues();
    while pod.json("link show eth0")[0]["flags"].to_string().contains("LOWER_UP") {}
    check.fail(100, &["carrier"]);

    let daemon = Daemon::good();
    let (_pod, check) = attached(&daemon);
    let socket = daemon.folder().join("none");
    check.key("socket", json!(socket)).fail(11, &["doesn't listen"]);
}

#[test]
fn an_ipv6_only_pod_is_probed_too() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(|request| match request {
        Request::Add(_) => {
            let mut wiring = crate::daemon::wiring();
            wiring.addresses.remove(0);
            wiring.gateways.remove(0);
            Reaction::Answer(serde_json::to_value(wiring).unwrap())
        }
        other => obey(other),
    });
    let (_pod, check) = attached(&daemon);
    check.succeed();
    daemon.hush();
    check.fail(100, &["fe80::ecee:eeff:feee:eeee", "ping"]);
}

#[test]
fn needs_what_add_said_and_a_version_that_has_it() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::good();
    let (_pod, check) = attached(&daemon);
    check.clone().key("prevResult", Value::Null).fail(7, &["prevResult"]);
    check.clone().key("prevResult", json!({"interfaces": [{"name": "eth1"}]})).fail(7, &["prevResult", "eth0"]);
    check.clone().key("prevResult", json!({"interfaces": 5})).fail(6, &["prevResult"]);
    check.clone().version("0.3.1").fail(1, &["CHECK", "0.4.0"]);
    check.clone().variable("CNI_NETNS", "/nonexistent/netns").fail(3, &["gone"]);
    check.version("0.4.0").succeed();
}
