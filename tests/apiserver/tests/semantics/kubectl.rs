//! The real kubectl.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tapir_apiserver::Handle;

use crate::http::{node, server};

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.test.dev}
spec:
  group: test.dev
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing, shortNames: [th]}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data: {key: value}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d, namespace: kube-system}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: i}]}
";

const THING: &str = "
apiVersion: test.dev/v1
kind: Thing
metadata: {name: one}
spec: {size: 1, colour: red}
";

/// A child that goes with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// kubectl against one server, with a home of its own.
#[derive(Clone)]
struct Kubectl {
    url: String,
    home: std::sync::Arc<tempfile::TempDir>,
}

impl Kubectl {
    /// Nothing where there is no kubectl.
    fn of(handle: &Handle) -> Option<Self> {
        let there = Command::new("kubectl").args(["version", "--client"]).output();
        if there.is_err() {
            println!("skipped: no kubectl here");
            return None;
        }
        Some(Self { url: handle.url(), home: tempfile::tempdir().unwrap().into() })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(["--server", &self.url]).args(line.split_whitespace());
        command.env("HOME", self.home.path()).env("KUBECONFIG", "/dev/null").current_dir(self.home.path());
        command
    }

    /// Runs it beside the server's tasks.
    async fn output(&self, line: &str) -> Output {
        let mut command = self.command(line);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What it prints when it succeeds.
    async fn run(&self, line: &str) -> String {
        let Output { status, stdout, stderr } = self.output(line).await;
        assert!(status.success(), "kubectl {line}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).unwrap();
    }
}

#[tokio::test]
async fn kubectl_applies_a_definition_and_its_objects() {
    let (_server, handle) = server().await;
    let Some(kubectl) = Kubectl::of(&handle) else { return };
    kubectl.write("definition.yaml", DEFINITION);
    kubectl.write("thing.yaml", THING);
    let said = kubectl.run("apply -f definition.yaml").await;
    assert_eq!(said.matches("created").count(), 3, "{said}");
    kubectl.run("wait --for=condition=established --timeout=60s crd/things.test.dev").await;
    assert_eq!(kubectl.run("apply -f thing.yaml").await.trim(), "thing.test.dev/one created");
    assert_eq!(kubectl.run("apply -f thing.yaml").await.trim(), "thing.test.dev/one unchanged");
    kubectl.write("thing.yaml", &THING.replace("size: 1, colour: red", "size: 2"));
    assert_eq!(kubectl.run("apply -f thing.yaml").await.trim(), "thing.test.dev/one configured");
    assert_eq!(handle.get("things.test.dev", "default/one").unwrap()["spec"], json!({ "size": 2 }));
    kubectl.write("definition.yaml", &DEFINITION.replace("image: i", "image: j"));
    assert!(kubectl.run("apply -f definition.yaml").await.contains("daemonset.apps/d configured"));
    let daemon = handle.get("daemonsets.apps", "kube-system/d").unwrap();
    assert_eq!(daemon["spec"]["template"]["spec"]["containers"], json!([{ "image": "j", "name": "c" }]));
    let things: Value = serde_json::from_str(&kubectl.run("get th -o json").await).unwrap();
    assert_eq!(things["items"][0]["metadata"]["name"], "one");
    assert!(kubectl.run("get things").await.contains("one"));
    assert!(kubectl.run("delete thing one --timeout=60s").await.contains("deleted"));
    assert!(!kubectl.output("get thing one").await.status.success());
    kubectl.run("delete -f definition.yaml --timeout=60s").await;
    assert!(handle.list("configmaps").is_empty() && handle.list("daemonsets.apps").is_empty());
}

#[tokio::test]
async fn kubectl_applies_on_the_servers_side() {
    let (_server, handle) = server().await;
    let Some(kubectl) = Kubectl::of(&handle) else { return };
    kubectl.write("map.json", &crate::http::config_map("a").to_string());
    kubectl.run("apply --server-side -f map.json").await;
    assert_eq!(handle.get("configmaps", "default/a").unwrap()["data"]["key"], "value");
    kubectl.write("map.json", &crate::http::config_map("a").to_string().replace("value", "other"));
    kubectl.run("apply --server-side -f map.json").await;
    assert_eq!(handle.get("configmaps", "default/a").unwrap()["data"]["key"], "other");
}

#[tokio::test]
async fn kubectl_reads_labels_and_deletes() {
    let (_server, handle) = server().await;
    let Some(kubectl) = Kubectl::of(&handle) else { return };
    handle.put("nodes", node("a")).unwrap();
    handle.put("nodes", node("b")).unwrap();
    let said: Value = serde_json::from_str(&kubectl.run("get node a -o json").await).unwrap();
    assert_eq!(said, handle.get("nodes", "a").unwrap());
    kubectl.run("label node a zone=x").await;
    assert_eq!(kubectl.run("get nodes -l zone=x -o name").await.trim(), "node/a");
    assert_eq!(kubectl.run("get no --chunk-size=1 -o name").await.lines().count(), 2);
    kubectl.run("annotate node a tapir.dev/x=y").await;
    assert_eq!(handle.get("nodes", "a").unwrap()["metadata"]["annotations"]["tapir.dev/x"], "y");
    kubectl.run("delete node a --timeout=60s").await;
    assert_eq!(handle.list("nodes").len(), 1);
    let refused = kubectl.output("get node a").await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nodes \"a\" not found"), "{refused:?}");
    assert_eq!(kubectl.run("get --raw /readyz").await, "ok");
}

#[tokio::test]
async fn kubectl_watches() {
    let (_server, handle) = server().await;
    let Some(kubectl) = Kubectl::of(&handle) else { return };
    handle.put("nodes", node("a")).unwrap();
    let mut watching = Running(kubectl.command("get nodes -w -o name").stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    for name in ["a", "b", "c"] {
        if name != "a" {
            handle.put("nodes", node(name)).unwrap();
        }
        // The reader returns when kubectl prints, or ends.
        let (line, rest) = tokio::task::spawn_blocking(move || (lines.next(), lines)).await.unwrap();
        lines = rest;
        assert_eq!(line.unwrap().unwrap(), format!("node/{name}"));
    }
}
