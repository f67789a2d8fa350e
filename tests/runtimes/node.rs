//! What a container runtime finds on a node: the node's network, a tapir that is installed, and folders of its own in the usual
//! places.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image;
use crate::lab::{Lab, eventually, possible, programs, text};

/// Where Debian has the plugins that others wrote.
pub const DEBIAN: &str = "/usr/lib/cni";
/// The name that the network has for runtimes.
pub const NETWORK: &str = "tapir";

/// Makes a mount namespace in which `/etc`, `/opt`, `/var` and `/run` are the node's own; then stays.
///
/// Only below `/run/netns` mounts are still shared: a daemon elsewhere has to see the namespaces that a runtime puts there, as
/// on a node where it runs in a container (`mountPropagation: HostToContainer`).
const HOLD: &str = r#"
    set -e
    folder=$1 shared=$2
    while read -r _ _ _ _ place _; do
        case $place in /run/netns*) ;; *) mount --make-private "$place" ;; esac
    done </proc/self/mountinfo
    for top in etc opt var; do
        mkdir -p "$folder/$top" "$folder/work/$top"
        mount -t overlay -o "lowerdir=/$top,upperdir=$folder/$top,workdir=$folder/work/$top" overlay "/$top"
    done
    # What tests change meanwhile: an overlay isn't changed from below.
    for place in etc/cni/net.d opt/cni/bin; do
        mkdir -p "/$place" "$folder/cni/$place"
        mount --bind "$folder/cni/$place" "/$place"
    done
    for keep in netns tapir-lab "${shared#/run/}"; do
        [ -d "/run/$keep" ] || continue
        mkdir -p "$folder/run/$keep"
        mount --rbind "/run/$keep" "$folder/run/$keep"
    done
    mount --rbind "$folder/run" /run
    echo ready
    exec sleep infinity
"#;

/// Whether the test can run here; says `skipped:` when not.
pub fn can_run(needed: &[&str]) -> bool {
    let there = |program: &&&str| {
        let path = Path::new(program);
        let named = |folder: &str| Path::new(folder).join(program).exists();
        if path.is_absolute() {
            path.exists()
        } else {
            ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].into_iter().any(named)
        }
    };
    if let Some(missing) = needed.iter().find(|program| !there(program)) {
        println!("skipped: {missing} is not installed");
        return false;
    }
    possible()
}

/// Two nodes.
pub struct Cluster {
    pub lab: Lab,
    pub nodes: [Node; 2],
    _folder: TempDir,
}

/// One of them.
pub struct Node {
    /// `n1` or `n2`.
    pub name: &'static str,
    /// Its underlay address.
    pub address: IpAddr,
    /// What it keeps.
    pub folder: PathBuf,
    /// Below it are the cgroups of its containers.
    pub cgroup: String,
    /// An archive with [`image::IMAGE`].
    pub image: PathBuf,
    holder: Child,
}

impl Cluster {
    /// Two nodes without pods, and on each the plugin and its configuration.
    #[track_caller]
    pub fn up() -> Self {
        let lab = Lab::up(&["--pods", "0"]);
        let folder = tempfile::tempdir().unwrap();
        let image = image::write(folder.path());
        let nodes = ["n1", "n2"].map(|name| Node::new(&lab, name, folder.path(), &image));
        Self { lab, nodes, _folder: folder }
    }

    /// What the daemon of a node knows of its pods.
    #[track_caller]
    pub fn endpoints(&self, node: &Node) -> Vec<Value> {
        self.lab.ctl(node.name, &["endpoints"]).as_array().unwrap().clone()
    }

    /// What it knows of the pod with that name.
    #[track_caller]
    pub fn endpoint(&self, node: &Node, pod: &str) -> Value {
        let endpoints = self.endpoints(node);
        let found = endpoints.iter().find(|endpoint| endpoint["pod"] == pod);
        found.unwrap_or_else(|| panic!("{} knows no {pod}: {endpoints:#?}", node.name)).clone()
    }

    /// Its address.
    #[track_caller]
    pub fn address(&self, node: &Node, pod: &str) -> String {
        self.endpoint(node, pod)["addresses"][0].as_str().unwrap().to_owned()
    }

    /// What a server says to a client at `place`; nothing when it can't be reached.
    pub fn said(&self, place: &str, server: SocketAddr) -> String {
        let said = self.lab.inside(place, || {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            std::io::read_to_string(&mut stream)
        });
        said.unwrap_or_default().trim().to_owned()
    }

    /// Waits until a server says `expected` to a client at `place`.
    #[track_caller]
    pub fn hears(&self, place: &str, server: SocketAddr, expected: &str) {
        let heard = eventually(Duration::from_secs(10), || self.said(place, server) == expected);
        assert!(heard, "{place} doesn't hear {expected:?} from {server}");
    }

    /// Shows that pods have left nothing: no endpoint, no address, no host port, no process, no cgroup of a container.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        for node in &self.nodes {
            assert_eq!(self.endpoints(node), [Value::Null; 0], "endpoints of {}", node.name);
            let assigned = self.lab.ctl(node.name, &["ipam", "show"])["assignments"].clone();
            let of_pods = |assignment: &&Value| assignment["interface"] != "tapir0";
            let left: Vec<&Value> = assigned.as_array().unwrap().iter().filter(of_pods).collect();
            assert!(left.is_empty(), "addresses of {}: {left:?}", node.name);
            let links = self.lab.check(node.name, "ip -brief link");
            let links: Vec<&str> = links.lines().filter_map(|line| line.split(['@', ' ']).next()).collect();
            assert_eq!(links, ["lo", "eth0", "tapir0"], "interfaces of {}", node.name);
            assert_eq!(node.containers(), [0_i32; 0], "processes of containers of {}", node.name);
            assert_eq!(node.shims(), [""; 0], "shims of {}", node.name);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.end();
        }
    }
}

impl Node {
    fn new(lab: &Lab, name: &'static str, folder: &Path, image: &Path) -> Self {
        let number: u8 = name[1..].parse().unwrap();
        let shared = folder;
        let folder = folder.join(name);
        fs::create_dir_all(folder.join("run")).unwrap();
        let netns = format!("--net=/run/netns/{}", lab.netns(name));
        let mut hold = Command::new("nsenter");
        hold.args([&netns, "unshare", "--mount", "--propagation", "unchanged", "sh", "-c", HOLD, "hold"]);
        let mut holder = hold.arg(&folder).arg(shared).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "{name} has no mount namespace");
        let scope = std::env::var("TAPIR_CGROUP").map_or_else(|_| "tapir-".into(), |scope| scope + "/");
        let node = Self {
            name,
            address: [172, 31, 0, number].into(),
            cgroup: format!("/{scope}{}-{name}", lab.name),
            image: image.into(),
            folder,
            holder,
        };
        fs::copy(programs().join("tapir-cni"), node.plugins().join("tapir-cni")).unwrap();
        node.configure("1.0.0", &node.plugin(lab, true), &[]);
        node
    }

    /// Where plugins are: `/opt/cni/bin`, seen from elsewhere.
    pub fn plugins(&self) -> PathBuf {
        self.folder.join("cni/opt/cni/bin")
    }

    /// Where configurations are: `/etc/cni/net.d`, seen from elsewhere.
    pub fn configurations(&self) -> PathBuf {
        self.folder.join("cni/etc/cni/net.d")
    }

    /// The configuration of the network.
    pub fn conflist(&self) -> PathBuf {
        self.configurations().join("10-tapir.conflist")
    }

    /// The plugin's part of it; without `capabilities` a plugin behind it has those.
    pub fn plugin(&self, lab: &Lab, capabilities: bool) -> Value {
        let mut plugin = json!({"type": "tapir-cni", "socket": lab.state().join(self.name).join("tapird.sock")});
        if capabilities {
            plugin["capabilities"] =
                json!({"portMappings": true, "bandwidth": true, "ips": true, "mac": true, "ipRanges": true});
        }
        plugin
    }

    /// From now on notes each call of the plugin.
    pub fn record_calls(&self) {
        let (plugin, real) = (self.plugins().join("tapir-cni"), self.plugins().join("real"));
        fs::rename(&plugin, &real).unwrap();
        let record = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND ${{CNI_NETNS:+with}}\" >>{}\nexec {} \"$@\"\n",
            self.folder.join("calls").display(),
            real.display()
        );
        fs::write(&plugin, record).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The calls since, verb and whether it came "with" a namespace.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        calls.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Writes the configuration of the network: our plugin, and those chained behind it. As an installer must, since
    /// containerd 1.6 doesn't notice a file that is moved in, it renames within the folder.
    pub fn configure(&self, version: &str, ours: &Value, chained: &[Value]) {
        let plugins: Vec<&Value> = std::iter::once(ours).chain(chained).collect();
        let list = json!({"cniVersion": version, "name": NETWORK, "plugins": plugins});
        let fresh = self.configurations().join(".10-tapir.new");
        fs::write(&fresh, list.to_string()).unwrap();
        fs::rename(fresh, self.conflist()).unwrap();
    }

    /// Puts one of Debian's plugins beside ours.
    #[track_caller]
    pub fn install(&self, plugin: &str) {
        fs::copy(Path::new(DEBIAN).join(plugin), self.plugins().join(plugin)).unwrap();
    }

    /// A command on the node.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", "--", program]);
        command
    }

    /// Process numbers of what runs in its containers.
    pub fn containers(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for group in self.cgroups() {
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(processes.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The cgroups below [`cgroup`](Self::cgroup), in each hierarchy, inner ones first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
        let mut hierarchies: Vec<PathBuf> = hierarchies.unwrap_or_default();
        hierarchies.push(root.into());
        let mut found = Vec::new();
        for hierarchy in hierarchies {
            inner_first(&hierarchy.join(&self.cgroup[1..]), &mut found);
        }
        found
    }

    /// The processes that hold containers for a runtime.
    fn shims(&self) -> Vec<String> {
        let shim = |line: &String| line.contains("containerd-shim") || line.contains("conmon");
        self.processes().into_iter().map(|(_, line)| line).filter(shim).collect()
    }

    /// What runs in the node's mount namespace: process numbers and command lines.
    fn processes(&self) -> Vec<(i32, String)> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = namespace(&self.holder.id().to_string());
        let entries =
            fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        entries
            .filter_map(|pid| Some((pid.parse::<i32>().ok()?, namespace(&pid)?, pid)))
            .filter(|(_, namespace, _)| Some(namespace) == own.as_ref())
            .map(|(number, _, pid)| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                (number, String::from_utf8_lossy(&line).replace('\0', " "))
            })
            .collect()
    }

    /// Ends whatever a failed test left, and removes the cgroups and the mounts.
    fn end(&mut self) {
        let own = i32::try_from(self.holder.id()).unwrap();
        let runtimes = self.processes().into_iter().map(|(pid, _)| pid).filter(|pid| *pid != own);
        for pid in runtimes.chain(self.containers()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let gone = eventually(Duration::from_secs(10), || {
            for group in self.cgroups() {
                let _ = fs::remove_dir(group);
            }
            self.cgroups().is_empty()
        });
        assert!(gone || thread::panicking(), "cgroups of {} can't be removed: {:?}", self.name, self.cgroups());
    }
}

fn inner_first(group: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        inner_first(&entry.path(), found);
    }
    found.push(group.into());
}

/// Runs `command` to the end; panics with its output unless all of three pings were answered.
#[track_caller]
pub fn pings(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = text(&output);
    assert!(output.status.success() && said.contains(" 0% packet loss"), "{command:?}: {}\n{said}", output.status);
}
