//! ADD: what the pod has afterwards, and that a failed one leaves nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tapir_cni::protocol::{Bandwidth, HostPort, PodRef, Request, del_queue};

use crate::call::Call;
use crate::daemon::{Daemon, Reaction, obey, wiring};
use crate::namespace::Namespace;
use crate::privileged;

#[test]
fn wires_a_pod_of_both_families() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    // What container runtimes do to pods by default.
    pod.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    pod.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let result = Call::new("ADD", &pod.path(), &daemon.socket).result();

    let link = &pod.json("-d link show eth0")[0];
    assert_eq!(link["address"], "02:00:0a:f4:00:05");
    assert_eq!(link["mtu"], 1480);
    assert_eq!(link["ifalias"], "tapir:c1");
    assert_eq!(link["qdisc"], "noqueue", "a queue for each of 256 would take 6 MB");
    assert_eq!(link["linkinfo"]["info_kind"], "tun");
    assert_eq!(link["linkinfo"]["info_data"]["type"], "tap");
    for flag in ["persist", "multi_queue", "vnet_hdr"] {
        assert_eq!(link["linkinfo"]["info_data"][flag], true, "{flag}");
    }
    assert_eq!(link["linkinfo"]["info_data"]["pi"], false);
    assert!(link["flags"].as_array().unwrap().contains(&"LOWER_UP".into()), "{link}");
    assert_eq!(pod.json("link show lo")[0]["flags"][1], "UP");

    let addresses = pod.json("address show eth0");
    let of = |local: &str| find(&addresses[0]["addr_info"], "local", local);
    assert_eq!(of("10.244.0.5")["prefixlen"], 32);
    assert_eq!(of("fd00:10::5")["prefixlen"], 128);
    assert_eq!(of("fd00:10::5")["nodad"], true);
    // Of the MAC that was set, and usable at once.
    let link_local = of("fe80::aff:fef4:5");
    for address in [of("fd00:10::5"), link_local] {
        assert!(address.get("tentative").is_none(), "{address}");
    }

    let routes = pod.json("route");
    assert_eq!(find(&routes, "dst", "169.254.1.1")["scope"], "link");
    assert_eq!(find(&routes, "dst", "default")["gateway"], "169.254.1.1");
    let routes = pod.json("-6 route");
    assert_eq!(find(&routes, "dst", "fe80::ecee:eeff:feee:eeee")["dev"], "eth0");
    assert_eq!(find(&routes, "dst", "default")["gateway"], "fe80::ecee:eeff:feee:eeee");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");

    let seen = daemon.seen.lock().unwrap();
    let [Request::Add(add), Request::Attach(id)] = &seen.requests[..] else { panic!("{:?}", seen.requests) };
    assert_eq!((&add.id, add.netns.as_str()), (id, pod.path().to_str().unwrap()));
    assert_eq!(seen.queues[0].len(), 3);
    for queue in &seen.queues[0] {
        assert_eq!(tapir_sys::tap::device_name(queue).unwrap(), "eth0");
    }
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:0a:f4:00:05", "mtu": 1480, "sandbox": pod.path()}],
            "ips": [{"address": "10.244.0.5/32", "interface": 0}, {"address": "fd00:10::5/128", "interface": 0}],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"},
            ],
        })
    );
}

fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|item| item[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

#[test]
fn an_ipv4_pod_gets_by_without_ipv6() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(|request| match request {
        Request::Add(_) => {
            let mut wiring = wiring();
            wiring.addresses.truncate(1);
            wiring.gateways.truncate(1);
            wiring.queues = 1;
            wiring.mtu = 1400;
            Reaction::Answer(serde_json::to_value(wiring).unwrap())
        }
        other => obey(other),
    });
    let pod = Namespace::new();
    pod.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let result = Call::new("ADD", &pod.path(), &daemon.socket).version("0.3.1").result();
    assert_eq!(result["ips"], json!([{"version": "4", "address": "10.244.0.5/32", "interface": 0}]));
    assert_eq!(result["interfaces"][0].get("mtu"), None);
    assert_eq!(pod.json("link show eth0")[0]["mtu"], 1400);
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "1");
}

#[test]
fn an_mtu_below_that_of_ipv6_is_for_ipv4_pods() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::start(|request| match request {
        Request::Add(_) => {
            let mut wiring = wiring();
            wiring.addresses.truncate(1);
            wiring.gateways.truncate(1);
            wiring.mtu = 600;
            Reaction::Answer(serde_json::to_value(wiring).unwrap())
        }
        other => obey(other),
    });
    let pod = Namespace::new();
    Call::new("ADD", &pod.path(), &daemon.socket).result();
    assert_eq!(pod.json("link show eth0")[0]["mtu"], 600);
}

#[test]
fn tells_the_daemon_what_the_runtime_wants() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    let args = "K8S_POD_UID=u1;IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_NAMESPACE=shop";
    Call::new("ADD", &pod.path(), &daemon.socket)
        .variable("CNI_ARGS", args)
        .key(
            "runtimeConfig",
            json!({
                "ips": ["10.244.0.5/24"],
                "Mac": "02:00:00:00:00:77",
                "IpRanges": [[{"Subnet": "10.244.0.0/30"}]],
                "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP"}],
                "Bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64},
                "io.kubernetes.cri.pod-annotations": {"a": "b"},
            }),
        )
        .result();
    let requests = daemon.requests();
    let Request::Add(add) = &requests[0] else { panic!("{requests:?}") };
    assert_eq!(add.pod, PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u1".into() });
    assert_eq!(add.addresses, ["10.244.0.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(add.ranges, [("10.244.0.1".parse().unwrap(), "10.244.0.2".parse().unwrap())]);
    assert_eq!(add.mac.as_deref(), Some("02:00:00:00:00:77"));
    assert!(!add.delegated);
    assert_eq!(add.host_ports, [HostPort { address: None, protocol: 6, port: 8080, target: 80 }]);
    let bandwidth = Bandwidth { ingress_rate: 1_000_000, ingress_burst: 4_294_967_295, ..Bandwidth::default() };
    assert_eq!(add.bandwidth, bandwidth);
}

#[test]
fn the_longest_names_fit() {
    if !privileged() {
        return;
    }
    let (pod, mut daemon) = (Namespace::new(), Daemon::good());
    let container = "c".repeat(tapir_cni::env::MAX_CONTAINER_ID);
    let add = Call::new("ADD", &pod.path(), &daemon.socket)
        .variable("CNI_CONTAINERID", &container)
        .variable("CNI_IFNAME", "fifteen-letters");
    add.result();
    assert_eq!(pod.json("link show fifteen-letters")[0]["ifalias"], format!("tapir:{container}"));
    daemon.stop();
    std::fs::remove_file(&daemon.socket).unwrap();
    add.verb("DEL").succeed();
    pod.settles(&[]);
}

#[test]
fn keeps_what_plugins_before_it_made() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:09"}],
        "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "priority": 5}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "vendor": 1,
    });
    let result = Call::new("ADD", &pod.path(), &daemon.socket)
        .key("prevResult", previous.clone())
        .key("dns", json!({"nameservers": ["198.51.100.53"]}))
        .result();
    assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["ips"][0], previous["ips"][0]);
    assert_eq!(result["ips"][1]["interface"], 1);
    assert_eq!(result["routes"][0], previous["routes"][0]);
    assert_eq!((&result["dns"], &result["vendor"]), (&previous["dns"], &previous["vendor"]));
}

#[test]
fn an_interface_that_is_there_is_left_alone() {
    if !privileged() {
        return;
    }
    for make in ["link add eth0 type veth peer name other", "tuntap add eth0 mode tap multi_queue vnet_hdr"] {
        let (pod, daemon) = (Namespace::new(), Daemon::good());
        pod.ip(make);
        let before = pod.json("-d link show eth0");
        Call::new("ADD", &pod.path(), &daemon.socket).fail(4, &["CNI_IFNAME", "eth0", "exists"]);
        assert_eq!(pod.json("-d link show eth0"), before);
        assert_eq!(daemon.requests(), []);
    }
}

#[test]
fn a_failed_add_leaves_nothing() {
    if !privileged() {
        return;
    }
    type Row = (&'static str, fn(&Request) -> Reaction, u32, usize);
    let rows: [Row; 7] = [
        ("Add is refused", |_| Reaction::Refuse(11, "no address left"), 11, 0),
        ("hangs up at Add", |_| Reaction::HangUp, 11, 0),
        ("answers garbage", |_| Reaction::Garbage, 101, 0),
        ("answers something else", |_| Reaction::Answer(json!({"mtu": 5})), 101, 0),
        (
            "wants the impossible",
            |_| {
                let mut wiring = wiring();
                wiring.mac = "01:00:00:00:00:01".into();
                Reaction::Answer(serde_json::to_value(wiring).unwrap())
            },
            101,
            1,
        ),
        (
            "Attach is refused",
            |request| match request {
                Request::Attach(_) => Reaction::Refuse(5, "no worker"),
                other => obey(other),
            },
            5,
            1,
        ),
        (
            "hangs up at Attach",
            |request| match request {
                Request::Attach(_) => Reaction::HangUp,
                other => obey(other),
            },
            11,
            1,
        ),
    ];
    for (what, script, code, undone) in rows {
        let (pod, daemon) = (Namespace::new(), Daemon::start(script));
        let call = Call::new("ADD", &pod.path(), &daemon.socket);
        println!("{what}: {}", call.fail(code, &[]));
        pod.settles(&[]);
        daemon.await_undone(undone);
        assert_eq!(del_queue(&daemon.socket).exists(), what == "hangs up at Attach", "{what}: a DEL is queued");
        // The name is free again at once, for a daemon in a better mood.
        daemon.seen.lock().unwrap().queues.clear();
        let good = Daemon::good();
        Call::new("ADD", &pod.path(), &good.socket).result();
    }
}

#[test]
fn a_pod_that_has_a_default_route_is_left_as_it_was() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::good());
    pod.ip("link add net0 type veth peer name other");
    pod.ip("address add 192.0.2.2/24 dev net0");
    pod.ip("link set net0 up");
    pod.ip("link set other up");
    pod.ip("route add default via 192.0.2.1");
    // Everything but the last route has been made when the kernel refuses it.
    Call::new("ADD", &pod.path(), &daemon.socket).fail(5, &["route", "169.254.1.1", "exists"]);
    pod.settles(&["other", "net0"]);
    let routes = pod.json("route");
    assert_eq!(
        (routes.as_array().unwrap().len(), &find(&routes, "dst", "default")["gateway"]),
        (2, &json!("192.0.2.1"))
    );
    daemon.await_undone(1);
}

#[test]
fn a_daemon_that_says_nothing_is_not_waited_for() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (Namespace::new(), Daemon::start(|_| Reaction::Keep(Duration::from_secs(5))));
    let start = Instant::now();
    Call::new("ADD", &pod.path(), &daemon.socket).key("timeout_ms", 200.into()).fail(11, &["in time"]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn without_a_daemon_nothing_is_tried() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (socket, _folder) = Daemon::down();
    Call::new("ADD", &pod.path(), &socket).fail(11, &["doesn't listen", socket.to_str().unwrap(), "running"]);
    pod.settles(&[]);
}

#[test]
fn namespaces_that_can_t_be_a_pod_s_are_refused() {
    if !privileged() {
        return;
    }
    let daemon = Daemon::good();
    let file = daemon.folder().join("file");
    std::fs::write(&file, "").unwrap();
    let fifo = daemon.folder().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    for (path, code, word) in [
        (daemon.folder().join("none").as_path(), 3, "gone"),
        (&file, 4, "CNI_NETNS"),
        (&fifo, 4, "CNI_NETNS"),
        ("/proc/self/ns/uts".as_ref(), 4, "CNI_NETNS"),
        ("/proc/self/ns/net".as_ref(), 4, "own network namespace"),
    ] {
        Call::new("ADD", path, &daemon.socket).fail(code, &[word]);
    }
    assert_eq!(daemon.requests(), []);
}
