//! The environment that a runtime calls a plugin with (CNI SPEC, "Parameters"), and Kubernetes' keys in `CNI_ARGS`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::mac::Mac;
use crate::protocol::{AttachmentId, PodRef};

/// Environment variables; of a process, or made up by a test.
pub type Variables = BTreeMap<OsString, OsString>;

/// The longest container ID. It becomes part of a file name and of the interface's alias, of at most 255 and 254 bytes.
pub const MAX_CONTAINER_ID: usize = 200;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as it was?
    Check,
    /// Could an ADD succeed?
    Status,
    /// Remove what is no longer valid.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// As in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A variable that is missing or wrong. Every text names the variable, as the specification asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// It has to be there.
    #[error("{name} is not set; {command} needs it")]
    Missing {
        /// The variable.
        name: &'static str,
        /// The verb that needs it.
        command: Command,
    },
    /// It is there, and wrong.
    #[error("{name} is {value:?}: {why}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it holds, cut to a readable length.
        value: String,
        /// What is wrong with that.
        why: &'static str,
    },
}

impl EnvError {
    fn invalid(name: &'static str, value: &OsStr, why: &'static str) -> Self {
        Self::Invalid { name, value: value.to_string_lossy().chars().take(100).collect(), why }
    }
}

/// The parameters of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The verb.
    pub command: Command,
    /// Container and interface; both empty for STATUS, GC and VERSION.
    pub id: AttachmentId,
    /// The container's network namespace; empty when the runtime has none (any more).
    pub netns: PathBuf,
    /// `CNI_ARGS` as it stands.
    pub args: String,
    /// `CNI_PATH` as it stands.
    pub path: OsString,
    /// The runtime insists that the plugin's own namespace is the container's (`CNI_NETNS_OVERRIDE`).
    pub netns_override: bool,
}

impl Environment {
    /// Reads and validates what the verb needs.
    ///
    /// # Errors
    /// [`EnvError`], naming the variable.
    pub fn parse(variables: &Variables) -> Result<Self, EnvError> {
        let command = command(variables)?;
        let attached = matches!(command, Command::Add | Command::Del | Command::Check);
        let mut environment = Self {
            command,
            id: AttachmentId { container_id: String::new(), interface: String::new() },
            netns: PathBuf::new(),
            args: String::new(),
            path: variables.get(OsStr::new("CNI_PATH")).cloned().unwrap_or_default(),
            netns_override: false,
        };
        if !attached {
            return Ok(environment);
        }
        environment.id.container_id = checked(variables, "CNI_CONTAINERID", command, container_id_problem)?;
        environment.id.interface = checked(variables, "CNI_IFNAME", command, interface_problem)?;
        environment.netns = netns(variables, command)?;
        environment.args = optional(variables, "CNI_ARGS")?;
        let given = optional(variables, "CNI_NETNS_OVERRIDE")?;
        environment.netns_override = given == "1" || given.eq_ignore_ascii_case("true");
        Ok(environment)
    }
}

fn command(variables: &Variables) -> Result<Command, EnvError> {
    let name = "CNI_COMMAND";
    let value = variables.get(OsStr::new(name)).filter(|value| !value.is_empty());
    let value = value.ok_or(EnvError::Invalid { name, value: String::new(), why: "it names the verb" })?;
    Command::ALL
        .into_iter()
        .find(|command| value == command.as_str())
        .ok_or_else(|| EnvError::invalid(name, value, "not one of ADD, DEL, CHECK, STATUS, GC, VERSION"))
}

fn optional(variables: &Variables, name: &'static str) -> Result<String, EnvError> {
    let Some(value) = variables.get(OsStr::new(name)) else { return Ok(String::new()) };
    value.to_str().map(str::to_owned).ok_or_else(|| EnvError::invalid(name, value, "not UTF-8"))
}

fn checked(
    variables: &Variables,
    name: &'static str,
    command: Command,
    problem: impl Fn(&str) -> Option<&'static str>,
) -> Result<String, EnvError> {
    let value = optional(variables, name)?;
    if value.is_empty() {
        return Err(EnvError::Missing { name, command });
    }
    match problem(&value) {
        Some(why) => Err(EnvError::invalid(name, OsStr::new(&value), why)),
        None => Ok(value),
    }
}

fn netns(variables: &Variables, command: Command) -> Result<PathBuf, EnvError> {
    let name = "CNI_NETNS";
    let value = optional(variables, name)?;
    match command {
        // A runtime may call DEL when the namespace is gone, with whatever it remembers of it.
        Command::Del => Ok(value.into()),
        _ if value.is_empty() => Err(EnvError::Missing { name, command }),
        _ if !value.starts_with('/') => Err(EnvError::invalid(name, OsStr::new(&value), "not an absolute path")),
        _ => Ok(value.into()),
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-` (CNI SPEC, "Parameters" and "name").
pub(crate) fn is_cni_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

fn container_id_problem(text: &str) -> Option<&'static str> {
    if !is_cni_name(text) {
        return Some("it must be a letter or digit, then letters, digits, '_', '.' or '-'");
    }
    (text.len() > MAX_CONTAINER_ID).then_some("longer than 200 bytes")
}

fn interface_problem(text: &str) -> Option<&'static str> {
    if text.len() > 15 {
        return Some("longer than 15 bytes");
    }
    if text == "." || text == ".." {
        return Some("no interface can be called so");
    }
    // '%' would make the kernel number the interface: "eth%d" becomes "eth0" (net/core/dev.c).
    text.contains(|c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c))
        .then_some("it contains '/', ':', '%', a space or a control character")
}

/// What `CNI_ARGS` says that concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The Kubernetes pod.
    pub pod: PodRef,
    /// `IP=`: the addresses wanted, with commas between them.
    pub addresses: Vec<IpAddr>,
    /// `MAC=`: the MAC wanted.
    pub mac: Option<Mac>,
}

impl Args {
    /// Reads `K=V;K=V`. Keys that mean nothing here are let through, with or without `IgnoreUnknown`.
    ///
    /// # Errors
    /// [`EnvError`] naming `CNI_ARGS`, for another form, and for an `IP` or `MAC` that is none.
    pub fn parse(text: &str) -> Result<Self, EnvError> {
        let wrong = |piece: &str, why| EnvError::invalid("CNI_ARGS", OsStr::new(piece), why);
        let mut args = Self::default();
        for piece in text.split(';').filter(|piece| !piece.is_empty()) {
            let (key, value) = piece
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| wrong(piece, "it must be KEY=VALUE;KEY=VALUE"))?;
            match key {
                "K8S_POD_NAMESPACE" => args.pod.namespace = value.into(),
                "K8S_POD_NAME" => args.pod.name = value.into(),
                "K8S_POD_UID" => args.pod.uid = value.into(),
                "IP" => {
                    args.addresses = value
                        .split(',')
                        .filter(|address| !address.is_empty())
                        .map(|address| parse_address(address).ok_or_else(|| wrong(piece, "IP is no address")))
                        .collect::<Result<_, _>>()?;
                }
                "MAC" if value.is_empty() => {}
                "MAC" => args.mac = Some(value.parse().map_err(|_| wrong(piece, "MAC is no MAC address"))?),
                _ => {}
            }
        }
        Ok(args)
    }
}

/// An address, with or without a prefix length behind it.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<ipnet::IpNet>().ok().map(|prefix| prefix.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(key, value)| (key.into(), value.into())).collect()
    }

    fn add() -> Variables {
        variables(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/pod"),
        ])
    }

    fn problem(mut variables: Variables, name: &str, value: Option<&str>) -> String {
        match value {
            Some(value) => variables.insert(name.into(), value.into()),
            None => variables.remove(OsStr::new(name)),
        };
        Environment::parse(&variables).expect_err("it is wrong").to_string()
    }

    #[test]
    fn reads_an_add() {
        let environment = Environment::parse(&add()).unwrap();
        assert_eq!(environment.command, Command::Add);
        assert_eq!(environment.id, AttachmentId { container_id: "c0ffee".into(), interface: "eth0".into() });
        assert_eq!(environment.netns, PathBuf::from("/run/netns/pod"));
        assert!(!environment.netns_override);
    }

    #[test]
    fn names_every_wrong_variable() {
        let long = "x".repeat(MAX_CONTAINER_ID + 1);
        for (name, values) in [
            ("CNI_COMMAND", vec![None, Some(""), Some("add"), Some("PING")]),
            ("CNI_CONTAINERID", vec![None, Some(""), Some("-a"), Some("a/b"), Some("a b"), Some("é"), Some(&long)]),
            (
                "CNI_IFNAME",
                vec![None, Some(""), Some("."), Some(".."), Some("a/b"), Some("a:b"), Some("a b"), Some("eth%d")],
            ),
            ("CNI_IFNAME", vec![Some("a\nb"), Some("sixteen-letters-"), Some("a\u{a0}b")]),
            ("CNI_NETNS", vec![None, Some(""), Some("relative")]),
        ] {
            for value in values {
                let text = problem(add(), name, value);
                assert!(text.contains(name), "{text}");
            }
        }
    }

    #[test]
    fn del_needs_no_namespace() {
        let mut variables = add();
        variables.insert("CNI_COMMAND".into(), "DEL".into());
        variables.remove(OsStr::new("CNI_NETNS"));
        assert_eq!(Environment::parse(&variables).unwrap().netns, PathBuf::new());
    }

    #[test]
    fn status_gc_and_version_need_nothing_else() {
        for command in ["STATUS", "GC", "VERSION"] {
            Environment::parse(&variables(&[("CNI_COMMAND", command)])).unwrap();
        }
    }

    #[test]
    fn reads_kubernetes_args_in_any_order() {
        let text = "K8S_POD_UID=u-1;IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=c;FOO=a=b;K8S_POD_NAME=web-0;\
                    K8S_POD_NAMESPACE=shop;IP=10.0.0.5,fd00::5/64;MAC=02:00:00:00:00:05;";
        let args = Args::parse(text).unwrap();
        assert_eq!(args.pod, PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into() });
        assert_eq!(args.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert_eq!(args.mac.unwrap().to_string(), "02:00:00:00:00:05");
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn refuses_args_of_another_form() {
        for text in ["a", "=1", "a=1;b", "IP=10.0.0", "MAC=zz", "IP=10.0.0.1,x"] {
            assert!(Args::parse(text).unwrap_err().to_string().contains("CNI_ARGS"), "{text}");
        }
    }
}
