//! The words that `tapirctl` understands.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;
use tapir_cni::protocol::DEFAULT_SOCKET;

/// How many of the last drops a table shows unless told otherwise.
pub const LAST_DROPS_SHOWN: usize = 20;
/// How many connections are shown unless told otherwise.
pub const FLOWS_SHOWN: usize = 1000;

/// See, explain and check a tapir node.
#[derive(Clone, Debug, Parser)]
#[command(name = "tapirctl", version, disable_help_subcommand = true)]
pub struct Cli {
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Where tapird listens.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: stable keys.
    Json,
    /// The same keys as YAML.
    Yaml,
}

/// What `tapirctl` does.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Show the node's health. Exit status: 0 healthy, 1 degraded, 2 tapird does not answer.
    Status,
    /// List the pods of this node with their counters.
    #[command(visible_alias = "pods")]
    Endpoints {
        /// Those of all nodes; of other nodes' pods only what is known of their addresses.
        #[arg(long)]
        all: bool,
    },
    /// List routes, or look one address up.
    #[command(args_conflicts_with_subcommands = true)]
    Routes {
        /// Only routes inside this prefix, or covering it.
        #[arg(value_parser = prefix)]
        prefix: Option<IpNet>,
        /// What forwarding reads, rather than what is known.
        #[arg(long)]
        fib: bool,
        /// One lookup instead of a list.
        #[command(subcommand)]
        lookup: Option<Lookup>,
    },
    /// List the other nodes as the tunnel sees them.
    Peers,
    /// List the nodes of the cluster, or delete one that is gone.
    Nodes(Nodes),
    /// Show, check and release pod addresses.
    #[command(subcommand)]
    Ipam(IpamVerb),
    /// Carry cluster state from one store to another.
    #[command(subcommand)]
    Store(StoreVerb),
    /// List services and host ports, and how many endpoints answer.
    #[command(visible_alias = "svc")]
    Services,
    /// List connections that are translated: to services, to ports of the node, out of the pools.
    Flows {
        /// Only those that this pod has begun, or is an end of.
        #[arg(long, value_name = "NAMESPACE/POD")]
        pod: Option<String>,
        /// The most to show.
        #[arg(long, default_value_t = FLOWS_SHOWN, value_name = "N")]
        limit: usize,
    },
    /// Say what would become of a packet, step by step, and why. Exit status: 1 when it would be dropped.
    Explain {
        /// From: an address, NAMESPACE/POD of this node, or host.
        #[arg(value_name = "SRC")]
        source: String,
        /// To: an address, NAMESPACE/POD of this node, NAMESPACE/SERVICE, or host.
        #[arg(value_name = "DST")]
        destination: String,
        /// tcp, udp, sctp or icmp; what the destination speaks, where that is known.
        #[arg(long = "proto", value_name = "PROTOCOL")]
        protocol: Option<String>,
        /// The destination's port.
        #[arg(long, value_name = "N")]
        port: Option<u16>,
        /// The source's port, which a service's endpoint depends on.
        #[arg(long = "sport", value_name = "N")]
        source_port: Option<u16>,
    },
    /// Count drops by reason and show the last ones.
    Drops {
        /// Print drops as they happen, until interrupted.
        #[arg(short, long)]
        follow: bool,
        /// How many of the last drops a table shows; JSON and YAML show all that are kept.
        #[arg(short = 'n', long, default_value_t = LAST_DROPS_SHOWN, value_name = "N")]
        last: usize,
    },
    /// Examine this node: is there anything that keeps tapir from working? Exit status: 1 when something fails.
    Check {
        /// The configuration of tapird.
        #[arg(long, default_value = "/etc/tapir/tapird.toml", value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        folders: CniFolders,
    },
    /// Put the plugin and its configuration where container runtimes look for them: each file at once and whole, the
    /// configuration last, when tapird serves. Can be run again at any time; completes what was interrupted.
    Install {
        #[command(flatten)]
        folders: CniFolders,
        /// Only one of the two.
        #[arg(long, value_enum, value_name = "PART")]
        only: Option<Part>,
        /// What becomes of other networks' configurations.
        #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
        others: Others,
        /// The plugin [default: tapir-cni beside this program].
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// A configuration to put there instead of the usual one; tapir-cni has to be its first plugin.
        #[arg(long, value_name = "FILE")]
        conflist: Option<PathBuf>,
        /// How long to wait for tapird to serve: 90, 90s, 5m, 1h, or forever.
        #[arg(long, default_value = "60s", value_parser = patience, value_name = "DURATION")]
        wait: Patience,
        /// Stay, and do it again after each such time, until told to end: for a container, which may not end by itself.
        #[arg(long, value_parser = duration, value_name = "DURATION")]
        repeat: Option<Duration>,
    },
    /// Undo install, and remove what tapird leaves in the kernel: tapir0, and with it the host's routes to the pods.
    Uninstall {
        #[command(flatten)]
        folders: CniFolders,
        /// The configuration of tapird, which says where it remembers its pods.
        #[arg(long, default_value = "/etc/tapir/tapird.toml", value_name = "FILE")]
        config: PathBuf,
        /// Also while tapird is running, or pods are left that the runtime can then not delete.
        #[arg(long)]
        force: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// The folder; made when it is not there.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Where container runtimes look.
#[derive(Clone, Debug, clap::Args)]
pub struct CniFolders {
    /// For CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// For CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
}

/// What `install` puts there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The plugin: needs no daemon.
    Plugin,
    /// The configuration.
    Conflist,
}

/// What `install` does with the configurations of other networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Others {
    /// They stay; refused when one would be read instead of tapir's.
    #[default]
    Keep,
    /// They get names that no runtime reads, until uninstall.
    Aside,
}

/// How long to wait; none: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Option<Duration>);

fn patience(text: &str) -> Result<Patience, String> {
    match text {
        "forever" => Ok(Patience(None)),
        _ => duration(text).map(|wait| Patience(Some(wait))).map_err(|error| error + ", or forever"),
    }
}

/// Whole seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = digits.parse().ok().zip(unit).and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
    seconds.map(Duration::from_secs).ok_or_else(|| "a time such as 90, 90s, 5m, 1h".into())
}

/// `routes get`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Lookup {
    /// Show where packets for an address go.
    Get {
        /// The destination.
        address: IpAddr,
    },
}

/// `ipam …`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum IpamVerb {
    /// Show pools, blocks and the addresses in use on this node.
    Show {
        /// The addresses in use on all nodes.
        #[arg(long)]
        all: bool,
    },
    /// Prove that no address is used twice and none has leaked. Exit status: 1 when something is wrong.
    Check {
        /// Set right what can be without taking an address from anybody.
        #[arg(long)]
        fix: bool,
    },
    /// Give a leaked address back.
    Release {
        /// The address.
        address: IpAddr,
    },
}

/// `nodes …`.
#[derive(Clone, Debug, clap::Args)]
pub struct Nodes {
    /// Something else than a list.
    #[command(subcommand)]
    pub verb: Option<NodesVerb>,
}

/// `nodes …`.
#[derive(Clone, Debug, Subcommand)]
pub enum NodesVerb {
    /// Free what a node had that is gone for good. Refused while it is alive.
    Delete {
        /// The node.
        name: String,
    },
}

/// `store …`.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreVerb {
    /// Print cluster state as one JSON, asked of tapird.
    Export {
        /// Into this file.
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Of the store that this configuration names, without tapird.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Write an export into the store that a configuration names.
    Import {
        /// The export.
        file: PathBuf,
        /// The configuration.
        #[arg(long, default_value = "/etc/tapir/tapird.toml", value_name = "FILE")]
        config: PathBuf,
        /// Also into a store that has nodes or blocks: entries of the same keys are replaced, others stay.
        #[arg(long)]
        force: bool,
    },
    /// Copy cluster state from tapird's store to the store that another configuration names, and say what remains to do.
    Migrate {
        /// The other configuration.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Also into a store that has nodes or blocks: entries of the same keys are replaced, others stay.
        #[arg(long)]
        force: bool,
    },
    /// Confirm that what the store has lost at once is meant to be gone: its routes are no longer kept.
    Accept,
}

/// A prefix, or an address as the prefix that holds it alone.
fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    text.parse().map_err(|_| "neither a prefix such as 10.244.0.0/16 nor an address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn routes_take_a_prefix_an_address_or_a_lookup() {
        let verb = |args: &[&str]| Cli::try_parse_from([&["tapirctl", "routes"], args].concat()).map(|cli| cli.verb);
        let given = |args: &[&str]| match verb(args) {
            Ok(Verb::Routes { prefix, fib, lookup }) => (prefix.map(|p| p.to_string()), fib, lookup.is_some()),
            other => panic!("{other:?}"),
        };
        assert_eq!(given(&[]), (None, false, false));
        assert_eq!(given(&["10.244.0.0/16", "--fib"]), (Some("10.244.0.0/16".into()), true, false));
        assert_eq!(given(&["fd00::5"]), (Some("fd00::5/128".into()), false, false));
        assert_eq!(given(&["get", "10.244.1.5"]), (None, false, true));
        assert!(verb(&["pods"]).is_err());
        assert!(verb(&["--fib", "get", "10.244.1.5"]).is_err());
    }

    #[test]
    fn patience_has_a_unit_or_no_end() {
        let seconds = |text| patience(text).map(|given| given.0.map(|wait| wait.as_secs()));
        for (text, expected) in [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)] {
            assert_eq!(seconds(text), Ok(Some(expected)), "{text}");
        }
        assert_eq!(seconds("forever"), Ok(None));
        for text in ["", "m", "5d", "-1", "1.5s", "5 m", "18446744073709551615h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_stand_before_or_after_the_verb() {
        for args in [["tapirctl", "-o", "json", "pods"], ["tapirctl", "pods", "-o", "json"]] {
            let cli = Cli::try_parse_from(args).expect("parses");
            assert_eq!(cli.output, Format::Json);
            assert!(matches!(cli.verb, Verb::Endpoints { all: false }));
        }
    }
}
