//! The manifests under `deploy/kubernetes/` say what the programs do: commands, paths, probes, configuration; and hang
//! together.

#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use serde_json::Value;
use tapir::config::Config;
use tapir::ctl::Cli;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// The documents of the folder's files but for kustomize's own.
fn objects() -> Vec<Value> {
    let paths = std::fs::read_dir(folder()).expect("the folder").map(|entry| entry.expect("an entry").path());
    let paths = paths.filter(|path| !path.ends_with("kustomization.yaml"));
    paths.flat_map(|path| documents(&std::fs::read_to_string(path).expect("readable"))).collect()
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

#[track_caller]
fn object(kind: &str) -> Value {
    objects().into_iter().find(|object| object["kind"] == kind).expect("such an object")
}

fn pod() -> Value {
    object("DaemonSet")["spec"]["template"].clone()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|list| pod["spec"][list].as_array().expect("containers"))
}

fn container(name: &str) -> Value {
    containers(&pod()).find(|container| container["name"] == name).expect("such a container").clone()
}

/// Where a container has which of the node's paths.
fn mounts(container: &Value) -> BTreeMap<PathBuf, Value> {
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    mounts.iter().map(|mount| (mount["mountPath"].as_str().expect("a path").into(), mount.clone())).collect()
}

fn config() -> Config {
    let map = object("ConfigMap");
    let (name, text) = map["data"].as_object().and_then(|data| data.iter().next()).expect("a file");
    Config::parse(text.as_str().expect("text"), Path::new(name)).expect("a good config")
}

#[test]
fn the_configuration_is_good_and_what_it_names_is_mounted() {
    let config = config();
    let tapird = container("tapird");
    let mounts = mounts(&tapird);
    assert_eq!(tapird["command"], serde_json::json!(["/usr/local/bin/tapird"]), "the paths are the usual ones");
    for path in [config.node.socket.parent().expect("a folder"), &config.node.state_dir, Path::new("/run/netns")] {
        assert!(mounts.contains_key(path) && mounts[path]["readOnly"] != true, "{}", path.display());
    }
    assert_eq!(mounts[Path::new("/run/netns")]["mountPropagation"], "HostToContainer");
    assert!(mounts.contains_key(Path::new("/etc/tapir")) && mounts.contains_key(Path::new("/dev/net/tun")));
    let http = config.node.http().expect("it is on");
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let get = &tapird[probe]["httpGet"];
        assert_eq!(get["host"], http.ip().to_string(), "{probe}");
        assert_eq!((&get["port"], &get["path"]), (&http.port().into(), &path.into()), "{probe}");
    }
}

#[test]
fn tapirctl_understands_its_commands_and_finds_its_folders() {
    let config = config();
    for (name, writes) in [("install-plugin", "/opt/cni/bin"), ("install-conflist", "/etc/cni/net.d")] {
        let container = container(name);
        let command =
            container["command"].as_array().expect("a command").iter().map(|word| word.as_str().expect("text"));
        let cli = Cli::try_parse_from(command).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(cli.socket, config.node.socket);
        let mounts = mounts(&container);
        assert!(mounts[Path::new(writes)]["readOnly"] != true, "{name}");
        if name == "install-conflist" {
            assert!(mounts.contains_key(config.node.socket.parent().expect("a folder")), "{name}");
        }
    }
}

#[test]
fn nobody_may_more_than_is_needed() {
    let pod = pod();
    for container in containers(&pod) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
        let more = context["capabilities"].get("add").is_some();
        assert_eq!(more, container["name"] == "tapird", "{container}");
    }
    for role in objects().iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))) {
        let text = role.to_string();
        assert!(!text.contains('*') && !text.contains("secrets"), "{text}");
    }
}

#[test]
fn what_is_referred_to_is_there() {
    let (objects, pod) = (objects(), pod());
    let is = |kind: &Value, name: &Value| {
        objects.iter().any(|object| object["kind"] == *kind && object["metadata"]["name"] == *name)
    };
    for binding in objects.iter().filter(|object| object["roleRef"].is_object()) {
        assert!(is(&binding["roleRef"]["kind"], &binding["roleRef"]["name"]), "{binding}");
        let subject = &binding["subjects"][0];
        assert!(is(&subject["kind"], &subject["name"]) && is(&"Namespace".into(), &subject["namespace"]), "{binding}");
    }
    assert!(is(&"ServiceAccount".into(), &pod["spec"]["serviceAccountName"]));
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|volume| volume["name"].as_str().expect("a name").to_owned()).collect()
    };
    let used = containers(&pod).flat_map(|container| names(&container["volumeMounts"])).collect();
    assert_eq!(names(&pod["spec"]["volumes"]), used);
    assert!(is(&"ConfigMap".into(), &pod["spec"]["volumes"][0]["configMap"]["name"]));
    let selected = object("DaemonSet")["spec"]["selector"]["matchLabels"].clone();
    let labels = &pod["metadata"]["labels"];
    assert!(selected.as_object().is_some_and(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value)));
    let entries = object("CustomResourceDefinition");
    let (spec, name) = (&entries["spec"], entries["metadata"]["name"].as_str().expect("a name"));
    let plural = spec["names"]["plural"].as_str().zip(spec["group"].as_str());
    assert_eq!(plural.map(|(plural, group)| format!("{plural}.{group}")).as_deref(), Some(name));
}

#[test]
fn kustomize_puts_everything_into_the_namespace_with_a_real_image() {
    let Ok(output) = Command::new("kubectl").arg("kustomize").arg(folder()).output() else {
        println!("skipped: kubectl is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made = documents(&String::from_utf8(output.stdout).expect("text"));
    assert_eq!(made.len(), objects().len(), "a file is not in kustomization.yaml");
    for object in &made {
        let cluster = ["Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"];
        let expected = (!cluster.iter().any(|kind| object["kind"] == *kind)).then_some("tapir-system");
        assert_eq!(object["metadata"]["namespace"].as_str(), expected, "{object}");
    }
    let version = format!("localhost/tapir:{}", env!("CARGO_PKG_VERSION"));
    let daemon = made.iter().find(|object| object["kind"] == "DaemonSet").expect("it is there");
    for container in containers(&daemon["spec"]["template"]) {
        assert_eq!(container["image"], version.as_str());
    }
}
