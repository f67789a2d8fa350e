//! `tapird` as a service: what the unit and the DaemonSet allow is what it needs, and the service manager is told.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::node::{Container, NETWORK, Node, eventually, privileged};

const UNIT: &str = include_str!("../../deploy/systemd/tapird.service");

/// The words of a key of the unit.
fn words(key: &str) -> Vec<&'static str> {
    let value = |line: &'static str| line.strip_prefix(key)?.strip_prefix('=');
    UNIT.lines().filter_map(value).flat_map(str::split_whitespace).collect()
}

/// A program that starts another with no capabilities but these.
fn with_only(capabilities: &[&str]) -> Vec<String> {
    let kept: Vec<_> =
        capabilities.iter().map(|name| format!(",+{}", name.replace("CAP_", "").to_lowercase())).collect();
    let kept = format!("--bounding-set=-all{}", kept.concat());
    ["setpriv", "--no-new-privs", "--inh-caps=-all", &kept].map(ToOwned::to_owned).into()
}

/// Two pods that reach each other and the node, also after a restart, and no less works than with all capabilities.
fn works(node: &mut Node) {
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(node), b.add(node));
    for _ in 0..2 {
        assert!(a.namespace.pings(of_b[0]) && a.namespace.pings(of_b[1]) && node.namespace.pings(of_a[0]));
        node.restart();
    }
    let unlimited = Node::start(NETWORK).status();
    assert_eq!(node.status().tunnel.backend, unlimited.tunnel.backend, "{}", node.log());
    assert_eq!(node.status().problems, unlimited.problems);
    node.del(&a.id).unwrap();
    node.del(&b.id).unwrap();
}

/// What the unit's filter lets through, by systemd's own lists; none without systemd.
fn allowed_calls() -> Option<BTreeSet<String>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).output().ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let mut groups = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    let mut group = "";
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(member) => groups.entry(group).or_default().push(member.trim()),
            None => group = line.trim(),
        }
    }
    let (mut calls, mut wanted) = (BTreeSet::new(), words("SystemCallFilter"));
    while let Some(name) = wanted.pop() {
        match groups.get(name) {
            Some(members) => wanted.extend(members),
            None => drop(calls.insert(name.to_owned())),
        }
    }
    Some(calls)
}

/// A call as strace writes it: `PID NAME(ARGUMENTS`.
fn call(line: &str) -> Option<(&str, &str)> {
    let (name, arguments) = line.split_once(' ')?.1.trim_start().split_once('(')?;
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some((name, arguments))
}

/// What of a call the unit would refuse.
fn breach(name: &str, arguments: &str, folder: &Path, calls: &BTreeSet<String>) -> Option<&'static str> {
    let families = words("RestrictAddressFamilies");
    // The call ends here, or after another's: `)`, ` <unfinished ...>`.
    let argument =
        |index| arguments.split(", ").nth(index).and_then(|text| text.split([')', ' ']).next()).unwrap_or("");
    let path = || arguments.split('"').nth(1).unwrap_or_default();
    let writes = ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| arguments.contains(flag));
    // Those that DevicePolicy=closed leaves, and the one more.
    let devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/net/tun"];
    match name {
        _ if !calls.contains(name) => Some("SystemCallFilter"),
        "socket" if !families.contains(&argument(0)) => Some("RestrictAddressFamilies"),
        "unshare" if argument(0) != "CLONE_NEWNET" => Some("RestrictNamespaces"),
        "setns" if argument(1) != "CLONE_NEWNET" => Some("RestrictNamespaces"),
        "mmap" | "mprotect" if arguments.contains("PROT_WRITE|PROT_EXEC") => Some("MemoryDenyWriteExecute"),
        "openat" if path().starts_with("/dev/") => (!devices.contains(&path())).then_some("DevicePolicy"),
        "openat" if writes && !path().starts_with("/proc/") && !Path::new(path()).starts_with(folder) => {
            Some("ProtectSystem")
        }
        _ => None,
    }
}

#[test]
fn the_unit_allows_what_the_daemon_does() {
    if !privileged() {
        return;
    }
    let Some(calls) = allowed_calls().filter(|_| Command::new("strace").arg("-V").output().is_ok()) else {
        println!("skipped: needs systemd-analyze and strace");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let mut under = with_only(&words("CapabilityBoundingSet"));
    // Beside the daemon and not above it, so that signals reach the one that is meant.
    let strace = ["strace", "-D", "-A", "-f", "-q", "-s", "256", "-o", trace.to_str().unwrap()];
    // The tracer needs more than the traced.
    under.splice(0..0, strace.map(ToOwned::to_owned));
    let mut node = Node::start_under(under, NETWORK);
    works(&mut node);
    node.signal(Signal::HUP);
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    let mut text = String::new();
    eventually("the trace is complete", || {
        text = std::fs::read_to_string(&trace).unwrap();
        text.contains("+++ exited with 0 +++")
    });
    // What setpriv does comes before.
    let traced: Vec<_> = text.lines().skip_while(|line| !line.contains("tapird\", [")).filter_map(call).collect();
    let made: BTreeSet<_> = traced.iter().map(|(name, _)| *name).collect();
    assert!(["bpf", "setns", "unshare", "socket", "openat"].iter().all(|name| made.contains(name)), "{made:?}");
    let home = node.config_path().parent().unwrap().to_path_buf();
    let breaches: BTreeSet<_> = traced
        .iter()
        .filter_map(|(name, arguments)| Some((breach(name, arguments, &home, &calls)?, *name, *arguments)))
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn the_daemon_works_with_what_its_container_may() {
    if !privileged() {
        return;
    }
    let object: serde_json::Value =
        serde_saphyr::from_str(include_str!("../../deploy/kubernetes/daemonset.yaml")).unwrap();
    let containers = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let tapird = containers.iter().find(|container| container["name"] == "tapird").unwrap();
    let added = tapird["securityContext"]["capabilities"]["add"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|name| name.as_str().unwrap()).collect();
    // As runtimes mount it for what is not privileged. Namespaces that are mounted later are seen (HostToContainer).
    let read_only = "mount -o bind,ro /proc/sys /proc/sys && exec \"$@\"";
    let mut under: Vec<_> =
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", read_only, "sh"].map(ToOwned::to_owned).into();
    under.extend(with_only(&added));
    works(&mut Node::start_under(under, NETWORK));
}

#[test]
fn systemd_understands_the_unit() {
    if !privileged() {
        return;
    }
    // It leaves a folder in /run, so that is one of its own.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let unit = folder.path().join("tapird.service");
    let text = UNIT.replace("/usr/local/bin/tapird", env!("CARGO_BIN_EXE_tapird"));
    assert_ne!(text, UNIT);
    let verify = |text: &str| {
        std::fs::write(&unit, text).unwrap();
        let script = "mount -t tmpfs tmpfs /run && exec systemd-analyze verify --man=no \"$0\"";
        let output = Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(&unit).output().unwrap();
        // It warns of keys that it does not know, and ends well.
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = verify(&text);
    if said.contains("not found") {
        println!("skipped: needs systemd-analyze");
        return;
    }
    assert_eq!(said, "");
    assert!(verify(&text.replace("WatchdogSec=", "Watchdog=")).contains("Watchdog"), "it would say");
}

#[test]
fn the_service_manager_is_told() {
    if !privileged() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let next = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    let mut node = Node::start_under(vec!["env".into(), format!("NOTIFY_SOCKET={}", path.display())], NETWORK);
    assert_eq!(next(), "READY=1");
    assert_eq!(next(), "WATCHDOG=1");
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    let last = std::iter::repeat_with(next).find(|said| said != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}
