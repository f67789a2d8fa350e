//! Services in files: what they say is what the daemon answers.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tapir::api::types::{Service, Services};
use tapir_cni::protocol::{HostPort, Request};

use crate::node::{Container, NETWORK, Node, eventually, privileged};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.80
  externalTrafficPolicy: Local
  healthCheckNodePort: 31080
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- addresses: [10.244.0.9]
  nodeName: node-1
- addresses: [10.244.1.9]
";

fn all(node: &Node) -> Vec<Service> {
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let part = node.ask(&Request::Services { after, limit: 2 }).unwrap();
        let part: Services = serde_json::from_value(part).unwrap();
        rows.extend(part.services);
        after = part.next;
        if after.is_none() {
            return rows;
        }
    }
}

/// `KIND ADDRESS:PORT READY/ALL LOCAL`.
fn rows(node: &Node) -> Vec<String> {
    let row = |one: &Service| {
        format!("{} {}:{} {}/{} {}", one.kind, one.address, one.port, one.ready, one.endpoints, one.local)
    };
    all(node).iter().map(row).collect()
}

/// Appears whole.
fn put(path: &Path, text: &str) {
    fs::write(path.with_extension("new"), text).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn problems(node: &Node) -> String {
    node.status().problems.join("\n")
}

#[test]
fn files_are_watched() {
    if !privileged() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (web, config) =
        (folder.path().join("web.yaml"), format!("{NETWORK}services_dir = \"{}\"\n", folder.path().display()));
    let mut node = Node::start(&config);
    assert_eq!(rows(&node), [""; 0]);
    let cluster = |ready: u8, local: u8| format!("ClusterIP 10.96.0.80:80 {ready}/2 {local}");
    put(&web, SERVICE);
    eventually("the service is there", || rows(&node).contains(&cluster(2, 1)));
    let node_port = "NodePort 172.31.0.1:30080 2/2 1".to_owned();
    eventually("the host's addresses are known", || rows(&node).contains(&node_port));
    let routes = node.namespace.ip("route show 10.96.0.0/12");
    assert!(routes.contains("tapir0"), "the host reaches services: {routes}");
    assert!(all(&node).iter().all(|row| row.source == web.display().to_string() && row.name == "shop/web:80"));

    put(&web, &SERVICE.replace("nodeName: node-1", "conditions: {ready: false}"));
    eventually("an endpoint is no more", || rows(&node).contains(&cluster(1, 0)));
    put(&web, &SERVICE.replace("port: 8080", "port: eighty"));
    eventually("a bad file is told of", || problems(&node).contains("web.yaml:15: ports[0].port: "));
    assert!(rows(&node).contains(&cluster(1, 0)), "what it said stays");
    assert!(node.status().ready, "nothing else is wrong");

    put(&web, SERVICE);
    eventually("it is well again", || rows(&node).contains(&cluster(2, 1)) && problems(&node).is_empty());
    node.restart();
    assert!(rows(&node).contains(&cluster(2, 1)), "at once after a restart");
    node.network = node.network.clone() + "services = \"kube-proxy\"\n";
    node.write_config();
    node.signal(Signal::HUP);
    eventually("kube-proxy has them", || rows(&node).is_empty());
    eventually("no route is left", || node.namespace.ip("route show 10.96.0.0/12").is_empty());
    node.network = config;
    node.write_config();
    node.signal(Signal::HUP);
    eventually("they are back", || rows(&node).contains(&cluster(2, 1)));
    fs::remove_file(&web).unwrap();
    eventually("it is gone", || rows(&node).is_empty());
}

#[test]
fn load_balancers_are_answered() {
    if !privileged() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let web = folder.path().join("web.yaml");
    put(&web, SERVICE);
    let node = Node::start(&format!("{NETWORK}services_dir = \"{}\"\n", folder.path().display()));
    let get = || {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/31080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
        let output =
            std::process::Command::new("ip").args(["netns", "exec", &node.namespace.name, "bash", "-c", ask]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    node.namespace.ip("link set lo up");
    eventually("there is one", || get().starts_with("HTTP/1.0 200"));
    assert!(get().contains(r#""localEndpoints":1"#), "{}", get());
    put(&web, &SERVICE.replace("nodeName: node-1", "nodeName: node-2"));
    eventually("there is none", || get().starts_with("HTTP/1.0 503"));
    fs::remove_file(&web).unwrap();
    eventually("nobody is there", || get().is_empty());
}

#[test]
fn host_ports_are_listed() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    let mut add = pod.request();
    add.host_ports = vec![HostPort { address: None, protocol: 17, port: 5353, target: 53 }];
    pod.try_add_with(&node, add).unwrap();
    eventually("at every address of the host", || {
        rows(&node).iter().any(|row| row.starts_with("HostPort 172.31.0.1:5353 1/1"))
    });
    node.del(&pod.id).unwrap();
    assert_eq!(rows(&node), [""; 0]);
}
