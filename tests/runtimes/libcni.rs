//! libcni, the library that runtimes call plugins with, through a small driver in Go (`libcni/main.go`).

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::lab::{Lab, succeed, text};
use crate::node::{Cluster, Node, can_run};

/// What building the driver needs.
pub const NEEDED: [&str; 2] = ["go", "/usr/share/gocode/src/github.com/containernetworking/cni/libcni/api.go"];

/// The driver, built once. What Go keeps for the next time is kept beside it.
fn driver() -> &'static PathBuf {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libcni");
        fs::create_dir_all(&folder).unwrap();
        // Another run may be using the one that is there.
        let (fresh, driver) =
            (tempfile::NamedTempFile::new_in(&folder).unwrap().into_temp_path(), folder.join("libcni"));
        let mut build = Command::new("go");
        build
            .args(["build", "-o"])
            .arg(&fresh)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/runtimes/libcni/main.go"));
        // Debian's packages are a GOPATH; nothing is fetched.
        build.envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")]);
        build.env("GOCACHE", folder.join("cache"));
        succeed(&mut build);
        fresh.persist(&driver).unwrap();
        driver
    })
}

/// A namespace on a node that the network's plugins are called for.
pub struct Pod<'a> {
    pub node: &'a Node,
    /// Container ID, and name of the pod.
    pub name: String,
    /// As `ip netns` calls it.
    pub netns: String,
    capabilities: Value,
}

impl<'a> Pod<'a> {
    /// An empty namespace.
    #[track_caller]
    pub fn new(lab: &Lab, node: &'a Node, name: &str, capabilities: Value) -> Self {
        driver();
        let netns = lab.netns(&format!("{}-{name}", node.name));
        succeed(Command::new("ip").args(["netns", "add", &netns]));
        Self { node, name: name.into(), netns, capabilities }
    }

    /// Calls libcni.
    pub fn call(&self, verb: &str) -> Output {
        self.call_in(verb, &format!("/run/netns/{}", self.netns))
    }

    /// The same with another namespace, or none.
    pub fn call_in(&self, verb: &str, netns: &str) -> Output {
        let mut command = self.node.command(&driver().display().to_string());
        command.args([verb, "/etc/cni/net.d/10-tapir.conflist", &self.name, netns, &self.capabilities.to_string()]);
        command.envs([("CNI_PATH", "/opt/cni/bin"), ("CNI_CACHE", "/var/lib/cni")]);
        command.output().unwrap()
    }

    /// Has to succeed; returns what it printed as JSON, null when that is nothing.
    #[track_caller]
    pub fn succeed(&self, verb: &str) -> Value {
        let output = self.call(verb);
        assert!(output.status.success(), "{verb} of {}: {}", self.name, text(&output));
        if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).unwrap() }
    }

    /// Has to fail with these words.
    #[track_caller]
    pub fn fail(&self, verb: &str, words: &[&str]) {
        let output = self.call(verb);
        let said = text(&output);
        assert!(!output.status.success(), "{verb} of {} succeeded: {said}", self.name);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    }

    /// A command in the namespace.
    #[track_caller]
    pub fn check(&self, words: &str) -> String {
        succeed(Command::new("ip").args(["netns", "exec", &self.netns]).args(words.split_whitespace()))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.netns]).status();
    }
}

#[test]
fn adds_checks_and_deletes_in_each_version() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let [node, other] = &cluster.nodes;
    let client = Pod::new(&cluster.lab, other, "client", json!({}));
    client.succeed("add");
    // This libcni ends at 1.0.0, and knows no CHECK in 0.3.1.
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        node.configure(version, &node.plugin(&cluster.lab, true), &[]);
        let name = format!("v{}", version.replace('.', ""));
        let pod =
            Pod::new(&cluster.lab, node, &name, json!({"portMappings": [{"hostPort": 18082, "containerPort": 80}]}));
        let capabilities = pod.succeed("validate");
        assert!(capabilities.as_array().unwrap().contains(&"portMappings".into()), "{capabilities}");
        let result = pod.succeed("add");
        let address = cluster.address(node, &name);
        assert_eq!(
            (&result["cniVersion"], &result["ips"][0]["address"]),
            (&version.into(), &format!("{address}/32").into())
        );
        assert_eq!(pod.succeed("cached"), result);
        pod.check(&format!("ping -c 3 -i 0.2 -W 5 {}", cluster.address(other, "client")));
        if version == "0.3.1" {
            pod.fail("check", &["0.3.1"]);
        } else {
            pod.succeed("check");
            pod.check(&format!("ip address delete {address}/32 dev eth0"));
            pod.fail("check", &["100:", "lacks the address", &address]);
        }
        pod.succeed("del");
        assert_eq!(pod.succeed("cached"), Value::Null);
        pod.succeed("del");
        let without = pod.call_in("del", "");
        assert!(without.status.success(), "{}", text(&without));
        assert_eq!(pod.check("ip -brief link").lines().count(), 1, "only lo is left");
    }
    node.configure("1.1.0", &node.plugin(&cluster.lab, true), &[]);
    let newer = Pod::new(&cluster.lab, node, "v110", json!({}));
    newer.succeed("validate");
    newer.fail("add", &["unsupported CNI result version \"1.1.0\""]);
    newer.succeed("del");
    client.succeed("del");
    drop((client, newer));
    cluster.nothing_is_left();
}
