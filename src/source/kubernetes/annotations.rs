//! What pods and namespaces ask for by annotations.
//!
//! | `tapir.dev/…` | `cni.projectcalico.org/…` | of a namespace, too | value |
//! |---|---|---|---|
//! | `ipAddrs` | `ipAddrs` | | `["10.244.0.9"]`: exactly these addresses |
//! | `ipv4pools`, `ipv6pools` | `ipv4pools`, `ipv6pools` | yes | `["10.244.0.0/16"]`: addresses from these pools, or parts of them |
//! | `hwAddr` | `hwAddr` | | `"02:00:00:00:00:09"` |
//!
//! and `kubernetes.io/ingress-bandwidth`, `kubernetes.io/egress-bandwidth`: bits a second, as a quantity (`10M`). What
//! a pod says counts before what its namespace does, and our names before Calico's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tapir_cni::protocol::Bandwidth;

use super::quantity;
use crate::control::mac;
use crate::table::Mac;

/// Of the copy that Kubernetes has of a static pod: the uid that its node knows.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const PREFIXES: [&str; 2] = ["tapir.dev/", "cni.projectcalico.org/"];
const ADDRESSES: &str = "ipAddrs";
const POOLS: [&str; 2] = ["ipv4pools", "ipv6pools"];
const HARDWARE: &str = "hwAddr";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// The most addresses or pools that are asked for.
const MAX_WISHES: usize = 64;
/// Bits a second, from 1 kbit/s to 1 Pbit/s: what Kubernetes lets a pod have.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Annotations.
pub type Annotations = BTreeMap<String, String>;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Exactly these addresses; empty: any.
    pub addresses: Vec<IpAddr>,
    /// Only addresses of these ranges, each family by itself: of one without any here, any.
    pub pools: Vec<IpNet>,
    /// This MAC.
    pub mac: Option<Mac>,
    /// No faster than this.
    pub bandwidth: Bandwidth,
}

/// An annotation that can't be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {message}")]
pub struct Invalid {
    /// Its key.
    pub key: String,
    /// What is wrong with its value.
    pub message: String,
}

/// Whether an annotation is one of those.
pub fn is_known(key: &str) -> bool {
    let own = PREFIXES.iter().filter_map(|prefix| key.strip_prefix(prefix));
    let named = |name: &str| name == ADDRESSES || name == HARDWARE || POOLS.contains(&name);
    [MIRROR, INGRESS, EGRESS].contains(&key) || own.into_iter().any(named)
}

impl Wishes {
    /// Reads what a pod and its namespace say.
    ///
    /// # Errors
    /// The first annotation that can't be granted.
    pub fn of(pod: &Annotations, namespace: &Annotations) -> Result<Self, Invalid> {
        let mut pools = Vec::new();
        for (name, ipv6) in POOLS.into_iter().zip([false, true]) {
            if let Some((key, text)) = find(pod, name).or_else(|| find(namespace, name)) {
                pools.extend(ranges(&key, text, ipv6)?);
            }
        }
        let addresses = find(pod, ADDRESSES).map_or(Ok(Vec::new()), |(key, text)| addresses(&key, text))?;
        let mac = find(pod, HARDWARE)
            .map(|(key, text)| mac::parse(text.trim()).map_err(|error| Invalid { key, message: error.to_string() }));
        let bandwidth =
            Bandwidth { ingress_rate: rate(pod, INGRESS)?, egress_rate: rate(pod, EGRESS)?, ..Bandwidth::default() };
        Ok(Self { addresses, pools, mac: mac.transpose()?, bandwidth })
    }
}

/// Under whichever of its keys a value is.
fn find<'a>(annotations: &'a Annotations, name: &str) -> Option<(String, &'a str)> {
    PREFIXES.iter().find_map(|prefix| {
        let key = format!("{prefix}{name}");
        let text = annotations.get(&key)?;
        Some((key, text.as_str()))
    })
}

fn list(key: &str, text: &str) -> Result<Vec<String>, Invalid> {
    let invalid = |message| Invalid { key: key.into(), message };
    let list: Vec<String> = serde_json::from_str(text)
        .map_err(|error| invalid(format!("{} is no list of strings in JSON: {error}", quote(text))))?;
    if list.is_empty() {
        return Err(invalid("the list is empty".into()));
    }
    if list.len() > MAX_WISHES {
        return Err(invalid(format!("more than {MAX_WISHES} are asked for")));
    }
    Ok(list)
}

fn addresses(key: &str, text: &str) -> Result<Vec<IpAddr>, Invalid> {
    let address = |text: &String| {
        let message = || format!("{} is no address", quote(text));
        text.parse().map_err(|_| Invalid { key: key.into(), message: message() })
    };
    list(key, text)?.iter().map(address).collect()
}

fn ranges(key: &str, text: &str, ipv6: bool) -> Result<Vec<IpNet>, Invalid> {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let range = |text: &String| {
        let range = text.parse().ok().filter(|range: &IpNet| matches!(range, IpNet::V6(_)) == ipv6);
        let message = || format!("{} is no {family} pool: pools are named by their CIDR", quote(text));
        range.map(|range| range.trunc()).ok_or_else(|| Invalid { key: key.into(), message: message() })
    };
    list(key, text)?.iter().map(range).collect()
}

fn rate(annotations: &Annotations, key: &str) -> Result<u64, Invalid> {
    let Some(text) = annotations.get(key) else { return Ok(0) };
    let rate = quantity::parse(text).filter(|rate| RATES.contains(rate));
    rate.ok_or_else(|| Invalid {
        key: key.into(),
        message: format!("{} is no quantity from 1k to 1P (bits a second)", quote(text)),
    })
}

fn quote(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn of(pairs: &[(&str, &str)]) -> Result<Wishes, Invalid> {
        Wishes::of(&annotations(pairs), &Annotations::new())
    }

    #[test]
    fn every_wish_is_read_under_both_names() {
        for prefix in PREFIXES {
            let key = |name| format!("{prefix}{name}");
            let wishes = of(&[
                (&key("ipAddrs"), r#"["10.0.0.9", "fd00::9"]"#),
                (&key("ipv4pools"), r#"["10.0.0.0/24"]"#),
                (&key("ipv6pools"), r#"["fd00::7/64"]"#),
                (&key("hwAddr"), "02:00:00:00:00:09"),
                (INGRESS, "10M"),
                (EGRESS, "1500k"),
            ])
            .unwrap();
            assert_eq!(wishes.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
            assert_eq!(wishes.pools, ["10.0.0.0/24".parse::<IpNet>().unwrap(), "fd00::/64".parse().unwrap()]);
            assert_eq!(wishes.mac, Some(mac::parse("02:00:00:00:00:09").unwrap()));
            let Bandwidth { ingress_rate, egress_rate, .. } = wishes.bandwidth;
            assert_eq!((ingress_rate, egress_rate), (10_000_000, 1_500_000));
            assert!(["ipAddrs", "ipv4pools", "ipv6pools", "hwAddr"].iter().all(|name| is_known(&key(name))));
        }
        assert_eq!(of(&[("other/ipAddrs", "x"), ("ipAddrs", "x")]), Ok(Wishes::default()));
        assert!(!is_known("other/ipAddrs") && !is_known("tapir.dev/other"));
    }

    #[test]
    fn the_pod_counts_before_its_namespace_and_our_name_before_the_other() {
        let namespace = annotations(&[
            ("tapir.dev/ipv4pools", r#"["10.9.0.0/16"]"#),
            ("tapir.dev/ipv6pools", r#"["fd09::/64"]"#),
            // A namespace has no address of its own to give.
            ("tapir.dev/ipAddrs", "nonsense"),
        ]);
        let pod = annotations(&[
            ("tapir.dev/ipv4pools", r#"["10.1.0.0/16"]"#),
            ("cni.projectcalico.org/ipv4pools", r#"["10.2.0.0/16"]"#),
        ]);
        let wishes = Wishes::of(&pod, &namespace).unwrap();
        assert_eq!(wishes.pools, ["10.1.0.0/16".parse::<IpNet>().unwrap(), "fd09::/64".parse().unwrap()]);
    }

    #[test]
    fn what_cannot_be_granted_is_named() {
        let many = format!("[{}]", vec!["\"10.0.0.1\""; 65].join(","));
        for (key, value, said) in [
            ("tapir.dev/ipAddrs", "10.0.0.1", "is no list"),
            ("tapir.dev/ipAddrs", "[]", "is empty"),
            ("tapir.dev/ipAddrs", &many, "more than 64"),
            ("tapir.dev/ipAddrs", r#"["10.0.0"]"#, "\"10.0.0\" is no address"),
            ("cni.projectcalico.org/ipv4pools", r#"["default-pool"]"#, "is no IPv4 pool"),
            ("tapir.dev/ipv4pools", r#"["fd00::/64"]"#, "is no IPv4 pool"),
            ("tapir.dev/ipv6pools", r#"["10.0.0.0/8"]"#, "is no IPv6 pool"),
            ("tapir.dev/hwAddr", "02:00", "02:00"),
            (INGRESS, "999", "is no quantity from 1k to 1P"),
            (EGRESS, "fast", "is no quantity"),
            (EGRESS, "2P", "is no quantity"),
        ] {
            let invalid = of(&[(key, value)]).unwrap_err();
            assert_eq!(invalid.key, key);
            assert!(invalid.message.contains(said), "{invalid}");
        }
    }
}
