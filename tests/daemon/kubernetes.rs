//! A daemon that follows an API server: what objects say is what happens, also while the server is gone.

use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::{Value, json};
use tapir::api::types::Services;
use tapir::sys::netns;
use tapir_apiserver::{ApiServer, Handle, Options};
use tapir_cni::protocol::{PodRef, Request, Wiring};
use tokio::sync::oneshot;

use crate::node::{Container, NETWORK, Node, eventually, privileged};

/// A server inside a node's namespace, on a thread of its own.
struct Api {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    fn start(node: &Node) -> Self {
        let namespace = netns::open(Path::new(&node.namespace.path())).unwrap();
        let listener = netns::run_in(namespace, || TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let (to, handle) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = ApiServer::serve(listener, Options::default()).unwrap();
                to.send(server.handle()).unwrap();
                let _ = ended.await;
            });
        });
        Self { handle: handle.recv().unwrap(), end: Some(end), thread: Some(thread) }
    }

    /// Writes the file by which the daemon finds it.
    fn kubeconfig(&self, node: &Node) -> String {
        let path = node.config_path().with_file_name("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.handle.url()}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path.display().to_string()
    }

    fn put(&self, resource: &str, object: Value) {
        self.handle.put(resource, object).unwrap();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn node_object(name: &str, address: &str, ranges: &[&str]) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": ranges},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "NetworkUnavailable", "status": "True"}]
        }
    })
}

fn pod_object(container: &Container, annotations: Value) -> Value {
    json!({
        "metadata": {
            "namespace": "default", "name": container.id.container_id, "uid": "u1", "annotations": annotations
        },
        "spec": {"nodeName": "node-1"}
    })
}

fn prepare(network: &str) -> (Node, Api) {
    prepare_with(network, "")
}

/// `store`: what `[store]` says beside where the server is.
fn prepare_with(network: &str, store: &str) -> (Node, Api) {
    let mut node = Node::new("172.31.0.1", "");
    node.namespace.ip("link add under0 type veth peer name under1");
    node.namespace.ip("addr add 172.31.0.1/24 dev under0");
    node.namespace.ip("link set under0 up");
    node.namespace.ip("link set under1 up");
    let api = Api::start(&node);
    let kubeconfig = api.kubeconfig(&node);
    node.network =
        format!("{network}\n[kubernetes]\nsource = \"on\"\n[store]\nkubeconfig = \"{kubeconfig}\"\n{store}\n");
    (node, api)
}

fn services(node: &Node) -> Vec<String> {
    let part = node.ask(&Request::Services { after: None, limit: 100 }).unwrap();
    let part: Services = serde_json::from_value(part).unwrap();
    part.services.iter().map(|one| format!("{}:{} {}/{}", one.address, one.port, one.ready, one.endpoints)).collect()
}

fn web(port: u16) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIP": "10.96.0.80", "ports": [{"port": port}]}
    })
}

fn web_slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints
    })
}

#[test]
fn services_come_from_the_server_and_outlive_it() {
    if !privileged() {
        return;
    }
    let (mut node, api) = prepare(NETWORK);
    api.put("services", web(80));
    api.put("endpointslices.discovery.k8s.io", web_slice(&["10.244.0.9", "10.244.1.9"]));
    node.restart();
    eventually("the service is known", || services(&node) == ["10.96.0.80:80 2/2"]);
    api.put("endpointslices.discovery.k8s.io", web_slice(&["10.244.0.9"]));
    eventually("an endpoint goes", || services(&node) == ["10.96.0.80:80 1/1"]);

    eventually("it is on disk", || {
        let kept = std::fs::read_to_string(node.state_dir().join("kubernetes.json")).unwrap_or_default();
        kept.contains("10.244.0.9") && !kept.contains("10.244.1.9")
    });
    api.handle.gone().unwrap();
    eventually("its absence is told", || node.status().problems.iter().any(|one| one.contains("can't be followed")));
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    node.restart();
    assert_eq!(services(&node), ["10.96.0.80:80 1/1"], "what was told last, with nobody to ask");

    api.put("services", web(81));
    api.handle.back().unwrap();
    eventually("what was missed follows", || services(&node) == ["10.96.0.80:81 1/1"]);
    eventually("all is well", || node.status().problems.is_empty());
    api.handle.delete("services", "shop/web").unwrap();
    eventually("the service goes", || services(&node).is_empty());
}

#[test]
fn ranges_are_waited_for_and_remembered_and_peers_are_nodes() {
    if !privileged() {
        return;
    }
    let (mut node, api) = prepare("[network]\npools = [\"10.244.0.0/16\"]\nipam = \"podcidr\"\n");
    node.restart();
    let refused = node.ask(&Request::Ready { delegated: false }).unwrap_err();
    assert!(refused.message.contains("no addresses"), "{refused:?}");
    api.put("nodes", node_object("node-1", "172.31.0.1", &[]));
    api.put("nodes", node_object("node-2", "172.31.0.2", &["10.244.2.0/24"]));
    eventually("the other node is a peer", || node.peers().iter().any(|peer| peer.name == "node-2"));
    assert!(node.ask(&Request::Ready { delegated: false }).is_err());
    api.put("nodes", node_object("node-1", "172.31.0.1", &["10.244.1.0/24"]));
    eventually("it has its range", || node.ask(&Request::Ready { delegated: false }).is_ok());
    let pod = Container::new();
    let addresses = pod.add(&node);
    assert!(addresses[0].to_string().starts_with("10.244.1."), "{addresses:?}");
    eventually("Kubernetes is told that pods have a network", || {
        let node = api.handle.get("nodes", "node-1").unwrap();
        let conditions = node["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|one| one["type"] == "NetworkUnavailable" && one["status"] == "False")
    });

    eventually("it is on disk", || {
        let kept = std::fs::read_to_string(node.state_dir().join("kubernetes.json")).unwrap_or_default();
        kept.contains("10.244.1.0/24") && kept.contains("10.244.2.0/24")
    });
    api.handle.gone().unwrap();
    node.restart();
    assert!(node.peers().iter().any(|peer| peer.name == "node-2"));
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("attached"));
    let other = Container::new();
    let addresses = other.add(&node);
    assert!(addresses[0].to_string().starts_with("10.244.1."), "{addresses:?}");
    node.del(&pod.id).unwrap();

    api.handle.back().unwrap();
    api.handle.delete("nodes", "node-2").unwrap();
    eventually("a node that is gone is no peer", || node.peers().is_empty());
    assert_eq!(node.state_of(&other.id).as_deref(), Some("attached"));
}

#[test]
fn annotations_are_granted_or_refused_with_their_key() {
    if !privileged() {
        return;
    }
    let (mut node, api) = prepare(NETWORK);
    api.put("nodes", node_object("node-1", "172.31.0.1", &[]));
    let (fixed, wrong, late) = (Container::new(), Container::new(), Container::new());
    let mac = "02:00:00:00:00:09";
    api.put("pods", pod_object(&fixed, json!({"tapir.dev/ipAddrs": "[\"10.244.0.77\"]", "tapir.dev/hwAddr": mac})));
    api.put("pods", pod_object(&wrong, json!({"cni.projectcalico.org/ipAddrs": "[\"nowhere\"]"})));
    node.restart();
    eventually("pods are watched", || api.handle.open_watches() == 5);

    assert_eq!(fixed.add(&node), ["10.244.0.77".parse::<std::net::IpAddr>().unwrap()]);
    assert!(node.endpoints().iter().any(|row| row.mac == mac));
    let before = api.handle.all_requests();
    let refusal = wrong.refused(&node, |_| {});
    assert!(refusal.message.contains("cni.projectcalico.org/ipAddrs: \"nowhere\" is no address"), "{refusal:?}");
    eventually("the pod's owner is told", || {
        let events = api.handle.list("events");
        let about = |one: &Value| one["involvedObject"]["name"] == wrong.id.container_id.as_str();
        events.iter().any(|one| about(one) && one["message"].as_str().unwrap().contains("ipAddrs"))
    });

    let pod = PodRef { namespace: "default".into(), name: late.id.container_id.clone(), uid: "u1".into() };
    let mut client = node.client();
    let adding = std::thread::scope(|scope| {
        let request = tapir_cni::protocol::Add { pod: pod.clone(), ..late.request() };
        let asked = scope.spawn(move || client.ask_for::<Wiring>(&Request::Add(Box::new(request))));
        std::thread::sleep(std::time::Duration::from_millis(300));
        api.put("pods", pod_object(&late, json!({"tapir.dev/ipAddrs": "[\"10.244.0.78\"]"})));
        asked.join().unwrap()
    });
    assert_eq!(adding.unwrap().addresses[0].addr().to_string(), "10.244.0.78", "it waited for the pod to be known");
    let after = api.handle.all_requests();
    let asked = |of: &str| ["get", "list"].map(|verb| (verb.to_owned(), of.to_owned()));
    for key in asked("pods") {
        assert_eq!(after.get(&key), before.get(&key), "no ADD asks the server");
    }
}

/// 1,000 nodes, 5,000 pods, 2,000 services of ten endpoints. How long it takes and what memory it needs is printed.
#[test]
fn a_big_cluster_is_followed_and_nobody_waits_for_it() {
    if !privileged() {
        return;
    }
    let (mut node, api) = prepare("[network]\npools = [\"10.244.0.0/16\"]\nipam = \"podcidr\"\nblock_size = 28\n");
    for number in 1..=1_000_u32 {
        let address = std::net::Ipv4Addr::from(0xac1f_0000 + number);
        let range = format!("{}/28", std::net::Ipv4Addr::from(0x0af4_0000 + number * 16));
        api.put("nodes", node_object(&format!("node-{number}"), &address.to_string(), &[&range]));
    }
    for number in 0..5_000_u32 {
        let metadata = json!({"namespace": "default", "name": format!("pod-{number}")});
        let on = format!("node-{}", 1 + number / 5);
        api.put("pods", json!({"metadata": metadata, "spec": {"nodeName": on}}));
    }
    for number in 0..2_000_u32 {
        let name = format!("service-{number}");
        let address = std::net::Ipv4Addr::from(0x0a60_0100 + number).to_string();
        let metadata = json!({"namespace": "default", "name": name});
        api.put("services", json!({"metadata": metadata, "spec": {"clusterIP": address, "ports": [{"port": 80}]}}));
        let endpoints = (0..10_u32).map(|one| {
            let place = (number * 7 + one * 1_601) % 15_000;
            json!({"addresses": [std::net::Ipv4Addr::from(0x0af4_0010 + place).to_string()]})
        });
        let labels = json!({"kubernetes.io/service-name": name});
        let metadata = json!({"namespace": "default", "name": format!("{name}-1"), "labels": labels});
        let slice = json!({
            "metadata": metadata, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": endpoints.collect::<Vec<_>>()
        });
        api.put("endpointslices.discovery.k8s.io", slice);
    }
    let start = std::time::Instant::now();
    node.restart();
    let ready = start.elapsed();
    let last = std::net::Ipv4Addr::from(0x0a60_0100 + 1_999).to_string();
    let explained = || {
        let request = Request::Explain {
            source: "host".into(),
            destination: last.clone(),
            protocol: Some("tcp".into()),
            port: Some(80),
            source_port: None,
        };
        node.ask(&request).is_ok_and(|told| told.to_string().contains("service-1999"))
    };
    eventually("all of it is known", || node.peers().len() == 999 && explained());
    println!("ready after {ready:?}, all known after {:?}, {} kB", start.elapsed(), node.resident());

    let asked = || ["list", "watch", "get"].map(|verb| ["pods", "services"].map(|of| api.handle.requests(verb, of)));
    let before = asked();
    api.put("pods", json!({"metadata": {"namespace": "default", "name": "pod-0"}, "spec": {"nodeName": "node-1"}}));
    api.handle.delete("services", "default/service-1999").unwrap();
    eventually("a service goes", || !explained());
    assert_eq!(asked(), before, "a change is told by what is open, and asked for by nobody");
}

#[test]
fn a_node_takes_its_block_through_the_server_and_goes_on_without_it() {
    if !privileged() {
        return;
    }
    let (mut node, api) =
        prepare_with("[network]\npools = [\"10.244.0.0/16\", \"10.245.0.0/16\"]\n", "kind = \"kubernetes\"");
    node.restart();
    assert_eq!(node.status().store.kind, "kubernetes");
    eventually("it has a block", || node.ask(&Request::Ready { delegated: false }).is_ok());
    let pod = Container::new();
    pod.add(&node);
    let keys = || -> Vec<String> {
        let entries = api.handle.list("entries.tapir.dev");
        entries.iter().map(|entry| entry["spec"]["key"].as_str().unwrap().to_owned()).collect()
    };
    eventually("all see it", || {
        let keys = keys();
        ["cluster/nodes/node-1", "cluster/pools/10.244.0.0-16", "usage/node-1"]
            .iter()
            .all(|key| keys.contains(&(*key).into()))
            && keys.iter().any(|key| key.starts_with("cluster/blocks/10.244."))
    });
    eventually("its lease is there", || api.handle.list("leases.coordination.k8s.io").len() == 1);

    let elsewhere = Container::new();
    api.put("pods", pod_object(&elsewhere, json!({"cni.projectcalico.org/ipv4pools": "[\"10.245.0.0/16\"]"})));
    let addresses = elsewhere.add(&node);
    assert!(addresses[0].to_string().starts_with("10.245."), "a block of the pool that it asks for: {addresses:?}");

    api.handle.gone().unwrap();
    node.restart();
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("attached"));
    Container::new().add(&node);
    node.del(&pod.id).unwrap();
    let before = keys();
    api.handle.back().unwrap();
    eventually("it is heard again", || node.status().store.reachable && node.status().problems.is_empty());
    assert_eq!(keys(), before, "nothing was withdrawn");
}
