//! What the probes are asked about, read from the node.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tapir_cni::netlink::{Link, Netlink, NetlinkError, RouteFilter};
use tapir_cni::protocol::Request;

use crate::api::types::Status;
use crate::config::{Config, ConfigError, Services};
use crate::ctl::client::{Client, ClientError};
use crate::host::backend::check_gso;
use crate::host::{HostError, underlay};

/// The largest file, or output of a tool, that is read.
const MAX_TEXT: usize = 16 << 20;

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// `tapird.toml`.
    pub config: &'a Path,
    /// `/etc/cni/net.d`.
    pub cni_conf_dir: &'a Path,
    /// `/opt/cni/bin`.
    pub cni_bin_dir: &'a Path,
    /// The daemon's socket.
    pub socket: &'a Path,
}

/// What a tool said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// This.
    Text(String),
    /// The tool is not installed.
    NoTool,
    /// It was refused, in these words.
    Refused(String),
}

/// A route of the host's main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub prefix: IpNet,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// It drops.
    pub blackhole: bool,
}

/// The interface to the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub interface: String,
    /// In bytes of IP packet.
    pub mtu: u32,
}

/// Everything that is known of the node.
#[derive(Debug)]
pub struct Facts {
    /// Whether `/dev/net/tun` opens.
    pub tun: Result<(), Errno>,
    /// The effective capabilities, a bit each (`CapEff`, proc(5)).
    pub capabilities: Option<u64>,
    /// Where the configuration is.
    pub config_path: PathBuf,
    /// The configuration; none when there is no file.
    pub config: Result<Option<Config>, ConfigError>,
    /// The interfaces.
    pub links: Result<Vec<Link>, NetlinkError>,
    /// The routes.
    pub routes: Result<Vec<Route>, NetlinkError>,
    /// The interface to the other nodes, as tapird finds it.
    pub underlay: Result<Underlay, HostError>,
    /// What keeps the kernel from cutting and merging what goes through the tunnel, if anything does.
    pub gso: Result<(), String>,
    /// IPv6 is there and not disabled.
    pub ipv6: bool,
    /// The module that all kernel tunnels over IPv4 share is loaded.
    pub tunnel4_loaded: bool,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<bool>,
    /// `net.ipv4.conf.*.rp_filter` by interface, with `all` and `default`.
    pub rp_filter: BTreeMap<String, u8>,
    /// `nft -j list ruleset`.
    pub nft: Listing,
    /// `iptables-save`.
    pub iptables: Listing,
    /// The folder of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Their names, in the order in which runtimes take them, and contents.
    pub cni_confs: Vec<(String, String)>,
    /// Where the plugin should be.
    pub cni_plugin: PathBuf,
    /// Its mode; none when it is not there.
    pub cni_plugin_mode: Option<u32>,
    /// What the daemon says of itself.
    pub status: Result<Status, ClientError>,
}

impl Facts {
    /// Looks at everything once.
    pub fn collect(places: &Places<'_>) -> Self {
        let cni_plugin = places.cni_bin_dir.join("tapir-cni");
        let config = load(places.config);
        Self {
            tun: open_tun(),
            capabilities: fs::read_to_string("/proc/self/status").ok().and_then(|text| effective(&text)),
            config_path: places.config.to_path_buf(),
            links: Netlink::open().and_then(|mut netlink| netlink.links()),
            routes: routes(),
            underlay: underlay(config.as_ref().ok().and_then(Option::as_ref)),
            config,
            gso: check_gso(),
            ipv6: sysctl("net/ipv6/conf/all/disable_ipv6").is_some_and(|value| value == "0"),
            tunnel4_loaded: Path::new("/sys/module/tunnel4").exists(),
            ip_forward: sysctl("net/ipv4/ip_forward").map(|value| value != "0"),
            rp_filter: rp_filter(Path::new("/proc/sys/net/ipv4/conf")),
            nft: listing("nft", &["-j", "list", "ruleset"]),
            iptables: listing("iptables-save", &[]),
            cni_conf_dir: places.cni_conf_dir.to_path_buf(),
            cni_confs: configurations(places.cni_conf_dir),
            cni_plugin_mode: fs::metadata(&cni_plugin).ok().map(|found| found.permissions().mode()),
            cni_plugin,
            status: Client::connect(places.socket).and_then(|mut client| client.ask(&Request::Status)),
        }
    }

    /// The configuration, where there is one that can be used.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref().ok().and_then(Option::as_ref)
    }

    /// Who looks after services, by default where no configuration says.
    pub fn services(&self) -> Services {
        self.config().map_or_else(|| Config::default().network.services, |config| config.network.services)
    }

    /// The pod addresses of the cluster, by default where no configuration says.
    pub fn pools(&self) -> Vec<IpNet> {
        let pools =
            self.config().map_or_else(|| Config::default().network.pools, |config| config.network.pools.clone());
        pools.into_iter().map(|pool| pool.cidr).collect()
    }
}

/// Opening makes no device: that takes `TUNSETIFF`.
fn open_tun() -> Result<(), Errno> {
    rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn load(path: &Path) -> Result<Option<Config>, ConfigError> {
    match Config::load(path) {
        Ok(config) => Ok(Some(config)),
        Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn routes() -> Result<Vec<Route>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let unicast = netlink.routes(RouteFilter::default())?.into_iter();
    let unicast = unicast.map(|route| Route { prefix: route.prefix, protocol: route.protocol, blackhole: false });
    let blackholes = netlink.blackholes()?.into_iter();
    let blackholes = blackholes.map(|(prefix, protocol)| Route { prefix, protocol, blackhole: true });
    Ok(unicast.chain(blackholes).collect())
}

fn underlay(config: Option<&Config>) -> Result<Underlay, HostError> {
    let interface = config.map(|config| config.underlay.interface.as_str()).filter(|name| *name != "auto");
    let found = underlay::detect(interface, config.and_then(|config| config.node.address))?;
    Ok(Underlay { interface: found.interface, mtu: found.mtu })
}

fn sysctl(key: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).ok()?;
    Some(text.trim().to_owned())
}

fn rp_filter(folder: &Path) -> BTreeMap<String, u8> {
    let Ok(interfaces) = fs::read_dir(folder) else { return BTreeMap::new() };
    let value = |interface: fs::DirEntry| {
        let value = fs::read_to_string(interface.path().join("rp_filter")).ok()?.trim().parse().ok()?;
        Some((interface.file_name().to_string_lossy().into_owned(), value))
    };
    interfaces.flatten().filter_map(value).collect()
}

fn listing(tool: &str, args: &[&str]) -> Listing {
    match Command::new(tool).args(args).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {
            let bytes = &output.stdout[..output.stdout.len().min(MAX_TEXT)];
            Listing::Text(String::from_utf8_lossy(bytes).into_owned())
        }
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Listing::Refused(complaint.lines().next().unwrap_or("no reason given").to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Listing::NoTool,
        Err(error) => Listing::Refused(error.to_string()),
    }
}

/// What libcni looks at: regular names ending in `.conf`, `.conflist` or `.json`, sorted.
fn configurations(folder: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_conf = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_conf).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let small = fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_TEXT as u64);
        let text = if small { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text)
    };
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(effective("Name:\tx\nCapInh:\t0\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("CapEff:\tnone\n"), None);
        assert_eq!(effective(""), None);
    }

    #[test]
    fn configurations_come_as_libcni_takes_them() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["20-b.conf", "10-a.conflist", "05-x.json", "00-readme.txt", "99-old.conflist.bak"] {
            fs::write(folder.path().join(name), name).expect("written");
        }
        let names: Vec<_> = configurations(folder.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["05-x.json", "10-a.conflist", "20-b.conf"]);
        assert_eq!(configurations(&folder.path().join("nowhere")), []);
    }

    #[test]
    fn reverse_path_filters_are_read_by_interface() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in [("all", "1\n"), ("eth0", "2\n"), ("odd", "many\n")] {
            fs::create_dir(folder.path().join(name)).expect("made");
            fs::write(folder.path().join(name).join("rp_filter"), value).expect("written");
        }
        assert_eq!(rp_filter(folder.path()), BTreeMap::from([("all".into(), 1), ("eth0".into(), 2)]));
    }

    #[test]
    fn a_missing_tool_is_told_from_one_that_fails() {
        assert_eq!(listing("tapir-has-no-such-tool", &[]), Listing::NoTool);
        assert_eq!(listing("sh", &["-c", "echo no way >&2; exit 1"]), Listing::Refused("no way".into()));
        assert_eq!(listing("sh", &["-c", "echo yes"]), Listing::Text("yes\n".into()));
    }
}
