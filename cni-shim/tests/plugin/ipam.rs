//! Delegated IPAM: a plugin that the test writes, and Debian's host-local and tuning where they are installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tapir_cni::protocol::Request;

use crate::call::Call;
use crate::daemon::{Daemon, Reaction, obey};
use crate::namespace::Namespace;
use crate::privileged;

const DEBIAN: &str = "/usr/lib/cni";

/// A plugin that notes its calls, fails where a file says so, and answers ADD from a file.
const SCRIPT: &str = r#"#!/bin/sh
cat > "$0.stdin.$CNI_COMMAND"
env > "$0.env.$CNI_COMMAND"
echo "$CNI_COMMAND" >> "$0.calls"
if [ -f "$0.fail.$CNI_COMMAND" ]; then cat "$0.fail.$CNI_COMMAND"; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$0.result"; fi
"#;

struct Plugin {
    folder: tempfile::TempDir,
}

impl Plugin {
    fn new(result: &Value) -> Self {
        let plugin = Self { folder: tempfile::tempdir().unwrap() };
        plugin.write("", SCRIPT);
        fs::set_permissions(plugin.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        plugin.write(".result", &result.to_string());
        plugin
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("ours{suffix}"))
    }

    fn write(&self, suffix: &str, text: &str) {
        fs::write(self.path(suffix), text).unwrap();
    }

    fn read(&self, suffix: &str) -> String {
        fs::read_to_string(self.path(suffix)).unwrap_or_default()
    }

    fn calls(&self) -> Vec<String> {
        self.read(".calls").lines().map(str::to_owned).collect()
    }

    /// `call`, with this plugin as its IPAM.
    fn on(&self, call: Call) -> Call {
        let path = format!("/nonexistent:{}", self.folder.path().display());
        call.variable("CNI_PATH", &path).key("ipam", json!({"type": "ours", "extra": 1}))
    }
}

fn assigned() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    })
}

/// A daemon that wires what it is told.
fn wire_wishes(request: &Request) -> Reaction {
    let Request::Add(add) = request else { return obey(request) };
    let mut wiring = crate::daemon::wiring();
    wiring.addresses = add.addresses.iter().map(|address| (*address).into()).collect();
    wiring.gateways.truncate(1);
    Reaction::Answer(serde_json::to_value(wiring).unwrap())
}

#[test]
fn the_plugin_sees_what_we_see_and_chooses() {
    if !privileged() {
        return;
    }
    let (pod, daemon, plugin) = (Namespace::new(), Daemon::start(wire_wishes), Plugin::new(&assigned()));
    let add = plugin.on(Call::new("ADD", &pod.path(), &daemon.socket)).variable("CNI_ARGS", "A=b");
    let result = add.result();
    assert_eq!(result["ips"], json!([{"address": "192.0.2.7/32", "interface": 0}]));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]));
    assert_eq!(result["dns"], assigned()["dns"]);
    let requests = daemon.requests();
    let Request::Add(asked) = &requests[0] else { panic!("{requests:?}") };
    assert!(asked.delegated && asked.addresses == ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);

    daemon.respond();
    let stdin = |verb: &str| serde_json::from_str::<Value>(&plugin.read(&format!(".stdin.{verb}"))).unwrap();
    assert_eq!(stdin("ADD"), add.configuration);
    for variable in ["CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_ARGS=A=b", "CNI_PATH=/nonex"] {
        assert!(plugin.read(".env.ADD").contains(variable), "{variable}");
    }
    let check = add.verb("CHECK").key("prevResult", result);
    check.succeed();
    assert_eq!(stdin("CHECK"), check.configuration);
    add.verb("STATUS").succeed();
    add.verb("GC").key("cni.dev/valid-attachments", json!([])).succeed();
    add.verb("DEL").succeed();
    assert_eq!(plugin.calls(), ["ADD", "CHECK", "STATUS", "GC", "DEL"]);
}

#[test]
fn a_failed_add_gives_the_addresses_back() {
    if !privileged() {
        return;
    }
    type Row = (&'static str, fn(&Plugin), fn(&Request) -> Reaction, u32, &'static str);
    let rows: [Row; 5] = [
        (
            "the plugin says no",
            |plugin| plugin.write(".fail.ADD", r#"{"code": 11, "msg": "no lease", "details": "later"}"#),
            wire_wishes,
            11,
            "no lease",
        ),
        ("the plugin only fails", |plugin| plugin.write(".fail.ADD", "oops"), wire_wishes, 5, "no error object"),
        ("no result", |plugin| plugin.write(".result", "oops"), wire_wishes, 6, "no usable result"),
        ("no address", |plugin| plugin.write(".result", "{}"), wire_wishes, 6, "holds no address"),
        ("the daemon says no", |_| (), |_| Reaction::Refuse(7, "taken"), 7, "taken"),
    ];
    for (what, spoil, script, code, word) in rows {
        let (pod, daemon, plugin) = (Namespace::new(), Daemon::start(script), Plugin::new(&assigned()));
        spoil(&plugin);
        println!("{what}");
        plugin.on(Call::new("ADD", &pod.path(), &daemon.socket)).fail(code, &[word]);
        assert_eq!(plugin.calls(), ["ADD", "DEL"], "{what}");
        pod.settles(&[]);
    }
    let (pod, plugin) = (Namespace::new(), Plugin::new(&assigned()));
    let (socket, _folder) = Daemon::down();
    plugin.on(Call::new("ADD", &pod.path(), &socket)).fail(11, &[]);
    assert_eq!(plugin.calls(), [""; 0]);
}

#[test]
fn its_errors_are_ours() {
    let (daemon, plugin) = (Daemon::good(), Plugin::new(&assigned()));
    for verb in ["DEL", "STATUS", "GC"] {
        plugin.write(&format!(".fail.{verb}"), r#"{"code": 120, "msg": "lease file lost", "details": ""}"#);
        let call = plugin.on(Call::new(verb, Path::new(""), &daemon.socket));
        let code = if verb == "STATUS" { 50 } else { 120 };
        call.key("cni.dev/valid-attachments", json!([])).fail(code, &["ours", verb, "lease file lost"]);
    }
}

#[test]
fn is_looked_up_on_cni_path_only() {
    let daemon = Daemon::good();
    let plugin = Plugin::new(&assigned());
    let call = plugin.on(Call::new("DEL", Path::new(""), &daemon.socket));
    call.clone().variable("CNI_PATH", "").fail(4, &["CNI_PATH"]);
    call.clone().variable("CNI_PATH", "/usr/bin:relative").fail(7, &["ours", "/usr/bin:relative"]);
    fs::set_permissions(plugin.path(""), fs::Permissions::from_mode(0o644)).unwrap();
    call.fail(7, &["ours"]);
}

#[test]
fn a_long_configuration_and_a_plugin_that_doesn_t_read_it_don_t_block() {
    let daemon = Daemon::good();
    let plugin = Plugin::new(&assigned());
    plugin.write("", "#!/bin/sh\nexit 0\n");
    let call = plugin.on(Call::new("DEL", Path::new(""), &daemon.socket)).key("filler", "x".repeat(900_000).into());
    call.succeed();
    plugin.write("", "#!/bin/sh\nhead -c 2000000 /dev/zero\n");
    call.fail(5, &["1 MiB"]);
}

#[test]
fn host_local_assigns_and_takes_back() {
    if !privileged() {
        return;
    }
    if !Path::new(DEBIAN).join("host-local").exists() {
        println!("skipped: Debian's containernetworking-plugins are not installed");
        return;
    }
    let (pod, daemon, data) = (Namespace::new(), Daemon::start(wire_wishes), tempfile::tempdir().unwrap());
    let ipam = json!({
        "type": "host-local", "dataDir": data.path(),
        "ranges": [[{"subnet": "192.0.2.0/29"}]], "routes": [{"dst": "0.0.0.0/0"}],
    });
    let add = Call::new("ADD", &pod.path(), &daemon.socket)
        .version("1.0.0")
        .variable("CNI_PATH", DEBIAN)
        .key("ipam", ipam)
        .key("runtimeConfig", json!({"ips": ["192.0.2.5/29"]}));
    let result = add.result();
    let leases = || fs::read_dir(data.path().join("tapir")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let held =
        |leases: Vec<std::ffi::OsString>| leases.iter().filter(|name| name.as_encoded_bytes()[0] == b'1').count();
    assert_eq!((held(leases()), &result["ips"][0]["address"]), (1, &json!("192.0.2.5/32")));
    daemon.respond();
    add.verb("CHECK").key("prevResult", result).succeed();
    add.verb("DEL").succeed();
    add.verb("DEL").variable("CNI_NETNS", "").succeed();
    assert_eq!(held(leases()), 0);

    // host-local 1.1.1 doesn't speak 1.1.0 yet, and says so.
    let error = add.version("1.1.0").fail(1, &["host-local"]);
    println!("{error}");
    pod.settles(&[]);
}

#[test]
fn a_real_chained_plugin_takes_our_result() {
    if !privileged() {
        return;
    }
    let tuning = Path::new(DEBIAN).join("tuning");
    if !tuning.exists() {
        println!("skipped: Debian's containernetworking-plugins are not installed");
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let (pod, daemon) = (Namespace::new(), Daemon::good());
        let add = Call::new("ADD", &pod.path(), &daemon.socket).version(version);
        let result = add.result();
        let next = json!({
            "cniVersion": version, "name": "tapir", "type": "tuning", "prevResult": result,
            "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"},
        });
        let mut child = std::process::Command::new(&tuning)
            .envs(&add.variables)
            .env("CNI_PATH", DEBIAN)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), next.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let mut theirs: Value = serde_json::from_str(&text).unwrap();
        // Go always writes it.
        theirs.as_object_mut().unwrap().retain(|key, value| key != "dns" || *value != json!({}));
        assert_eq!(theirs, result);
        assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
    }
}
