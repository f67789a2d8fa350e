//! Source translation by the host, for those who want it there: a table of nftables that masquerades what pods send to
//! the world outside.
//!
//! ```text
//!  table inet tapir: postrouting, srcnat: source in SOURCES, destination not in NOT_TO, not into tapir0 -> masquerade
//! ```
//! The table is ours alone, and written whole in one transaction, so that there is no moment without it. Connections that
//! are translated already stay so, whatever becomes of it.

use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::{HostError, routes, tapir0};

const TABLE: &str = "inet tapir";
const FORWARDING4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Has the host masquerade what comes from `sources` and is not for `not_to`, and forward it. As often as one likes.
///
/// IPv6 forwarding is asked for and not set: it makes the host forget its own default route where that is from router
/// advertisements.
///
/// # Errors
/// [`HostError::NoNft`], [`HostError::Nft`], [`HostError::MasqueradeForwarding`].
pub fn install(sources: &[IpNet], not_to: &[IpNet]) -> Result<(), HostError> {
    nft(&script(sources, not_to))?;
    if !routes::is_forwarding()? {
        let failed = |source| HostError::MasqueradeForwarding { setting: "net.ipv4.ip_forward", source };
        std::fs::write(FORWARDING4, "1").map_err(failed)?;
        tracing::warn!("set net.ipv4.ip_forward=1: the host forwards what pods send to the world outside");
    }
    if sources.iter().any(|source| matches!(source, IpNet::V6(_))) {
        let failed = |source| HostError::MasqueradeForwarding { setting: "net.ipv6.conf.all.forwarding", source };
        if std::fs::read_to_string(FORWARDING6).map_err(failed)?.trim() == "0" {
            return Err(failed(std::io::Error::other("it is 0")));
        }
    }
    Ok(())
}

/// Takes the table away. Whether the host forwards stays as it is.
///
/// # Errors
/// [`HostError::NoNft`], [`HostError::Nft`].
pub fn remove() -> Result<(), HostError> {
    nft(&format!("add table {TABLE}\ndelete table {TABLE}\n"))
}

/// The transaction: whatever table there is goes, and ours comes.
fn script(sources: &[IpNet], not_to: &[IpNet]) -> String {
    let mut rules = String::new();
    for (family, ipv6) in [("ip", false), ("ip6", true)] {
        let (sources, not_to) = (of_family(sources, ipv6), of_family(not_to, ipv6));
        if sources.is_empty() {
            continue;
        }
        let beyond = if not_to.is_empty() { String::new() } else { format!(" {family} daddr != {{ {not_to} }}") };
        rules += &format!(
            "    {family} saddr {{ {sources} }}{beyond} oifname != \"{}\" masquerade fully-random\n",
            tapir0::NAME
        );
    }
    format!(
        "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

/// The elements of a set: without those within others, which nftables refuses.
fn of_family(prefixes: &[IpNet], ipv6: bool) -> String {
    let of_family: Vec<_> = prefixes.iter().copied().filter(|prefix| prefix.addr().is_ipv6() == ipv6).collect();
    IpNet::aggregate(&of_family).iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

fn nft(script: &str) -> Result<(), HostError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => HostError::NoNft,
        _ => HostError::System { action: "run nft", source },
    };
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    // When it ends before it has read all, it says why.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let complaint = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    Err(HostError::Nft { complaint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|one| one.parse().expect("a prefix")).collect()
    }

    #[test]
    fn a_rule_for_each_family_that_has_sources() {
        let sources = prefixes(&["10.1.0.0/16", "10.1.7.0/24", "fd00:1::/48"]);
        let written = script(&sources, &prefixes(&["10.0.0.0/9", "10.128.0.0/9"]));
        assert!(written.contains("ip saddr { 10.1.0.0/16 } ip daddr != { 10.0.0.0/8 } oifname"), "{written}");
        assert!(written.contains("ip6 saddr { fd00:1::/48 } oifname"), "{written}");
        let none = script(&[], &sources);
        assert!(!none.contains("masquerade") && none.contains("postrouting"), "{none}");
    }
}
