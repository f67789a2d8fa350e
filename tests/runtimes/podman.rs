//! podman with its CNI backend, which has no Kubernetes, no daemon, and port mappings in lower case.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::image::IMAGE;
use crate::lab::succeed;
use crate::node::{Cluster, NETWORK, Node, can_run, pings};

const NEEDED: [&str; 4] = ["podman", "runc", "conmon", "/bin/busybox"];

/// podman on a node.
struct Podman<'a>(&'a Node);

impl Podman<'_> {
    fn prepare(node: &Node) -> Podman<'_> {
        let folder = node.folder.join("podman");
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("containers.conf"),
            format!(
                r#"
                [engine]
                cgroup_manager = "cgroupfs"
                events_logger = "file"
                runtime = "runc"
                [network]
                network_backend = "cni"
                cni_plugin_dirs = ["/opt/cni/bin"]
                network_config_dir = "/etc/cni/net.d"
                default_network = "{NETWORK}"
                "#
            ),
        )
        .unwrap();
        let podman = Podman(node);
        succeed(&mut podman.command(&["load", "--quiet", "--input", &node.image.display().to_string()]));
        podman
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let folder = self.0.folder.join("podman");
        let mut command = self.0.command("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(folder.join(name));
        }
        command.args(["--storage-driver", "overlay"]).args(arguments);
        command.env("CONTAINERS_CONF", folder.join("containers.conf"));
        command
    }

    /// A container in the background. Without the limits podman asks for more than root may have in a container.
    #[track_caller]
    fn run(&self, name: &str, options: &[&str], command: &[&str]) {
        let mut words = vec!["run", "--detach", "--pull=never", "--name", name, "--network", NETWORK];
        words.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        words.extend(["--cgroups", "no-conmon", "--cgroup-parent", &self.0.cgroup]);
        words.extend(options);
        words.push(IMAGE);
        words.extend(command);
        succeed(&mut self.command(&words));
    }
}

#[test]
fn containers_run_stop_start_and_go() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let [node, other] = &cluster.nodes;
    let [podman, remote] = [Podman::prepare(node), Podman::prepare(other)];
    podman.run("web", &["--publish", "18081:80"], &["nc", "-ll", "-p", "80", "-e", "echo", "podman"]);
    remote.run("client", &[], &[]);
    let endpoint = cluster.endpoint(node, "web");
    let port = &endpoint["host_ports"][0];
    assert_eq!((&port["port"], &port["target"]), (&json!(18081), &json!(80)), "{endpoint:#}");
    // There is no namespace to its name.
    let listed = cluster.lab.run(&["ctl", "n1", "endpoints"]);
    assert!(listed.lines().any(|line| line.starts_with("web ")), "{listed}");
    let address = cluster.address(node, "web");
    pings(&mut remote.command(&["exec", "client", "ping", "-c", "3", "-i", "0.2", "-W", "5", &address]));
    pings(&mut podman.command(&[
        "exec",
        "web",
        "ping",
        "-c",
        "3",
        "-i",
        "0.2",
        "-W",
        "5",
        &cluster.address(other, "client"),
    ]));
    cluster.hears("n2", (node.address, 18081).into(), "podman");

    succeed(&mut podman.command(&["stop", "--time", "0", "web"]));
    assert!(cluster.endpoints(node).is_empty());
    assert_eq!(cluster.said("n2", (node.address, 18081).into()), "");
    succeed(&mut podman.command(&["start", "web"]));
    let address = cluster.address(node, "web");
    pings(&mut remote.command(&["exec", "client", "ping", "-c", "3", "-i", "0.2", "-W", "5", &address]));
    cluster.hears("n2", (node.address, 18081).into(), "podman");

    succeed(&mut podman.command(&["rm", "--force", "--time", "0", "web"]));
    succeed(&mut remote.command(&["rm", "--force", "--time", "0", "client"]));
    cluster.nothing_is_left();
}
