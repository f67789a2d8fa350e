//! A probe of the host's firewall, by reading what its tools list.
//!
//! The tunnel's raw socket gets a packet after netfilter's INPUT. Both tools' rules are brought into one small
//! model and walked for a packet of protocol 4 of which nothing else is known: a rule that names the protocol
//! decides, even under further conditions; one that does not decides only without conditions. So an accept by
//! address alone is not seen, and a drop under a condition is not believed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Item;
use super::facts::Listing;

/// How deep jumps are followed. Rule sets have no cycles, listings from elsewhere might.
const MAX_JUMPS: usize = 16;

/// The INPUT chains let protocol 4 in.
pub fn input(nft: &Listing, iptables: &Listing) -> Item {
    const NAME: &str = "firewall";
    const BY_HAND: &str = "see to it that protocol 4 (and 41 for IPv6 pods) is accepted from the peers";
    let mut unseen = Vec::new();
    let mut read = 0;
    for (tool, listing, parse) in [
        ("nft", nft, nftables as fn(&str) -> Option<Chains>),
        ("iptables-save", iptables, |text| Some(iptables_save(text))),
    ] {
        let chains = match listing {
            Listing::Text(text) => parse(text),
            Listing::NoTool => {
                unseen.push(format!("{tool} not installed"));
                continue;
            }
            Listing::Refused(words) => {
                unseen.push(format!("{tool}: {words}"));
                continue;
            }
        };
        let Some(chains) = chains else {
            unseen.push(format!("{tool}: output can't be read"));
            continue;
        };
        read += 1;
        if let Some(chain) = chains.values().find(|chain| chain.input && blocks(&chains, chain)) {
            return Item::warn(
                NAME,
                format!("{} drops what no rule accepts, and none accepts protocol 4", chain.title),
                format!("{} (for the peers' addresses, if you like it tight)", chain.accept),
            );
        }
    }
    if read == 0 {
        return Item::warn(NAME, format!("not checked: {}", unseen.join(", ")), BY_HAND);
    }
    Item::ok(NAME, "no INPUT chain that drops protocol 4")
}

/// Chains by family, table and name.
type Chains = BTreeMap<(String, String, String), Chain>;

/// A list of rules.
#[derive(Debug, Default)]
struct Chain {
    /// For people.
    title: String,
    /// The command that would let the tunnel through.
    accept: String,
    /// Packets for this host enter here.
    input: bool,
    /// What no rule decides is dropped.
    policy_drop: bool,
    rules: Vec<Rule>,
}

/// A rule, as far as it matters to a packet of protocol 4.
#[derive(Debug)]
struct Rule {
    protocol: Protocol,
    /// It has conditions beside the protocol.
    conditional: bool,
    verdict: Verdict,
}

/// What a rule says about the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Any,
    Tunnel,
    Other,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    None,
    Accept,
    Drop,
    Return,
    /// To a chain of the same table.
    Jump((String, String, String)),
}

/// Where a walk through a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// A rule that names the protocol, or is reached through one that does, accepts it.
    AcceptsByName,
    /// A rule without conditions accepts it.
    Accepts,
    Drops,
    /// Nothing decided.
    Falls,
}

fn blocks(chains: &Chains, chain: &Chain) -> bool {
    match walk(chains, chain, MAX_JUMPS) {
        Decision::Drops => true,
        Decision::Falls => chain.policy_drop,
        Decision::Accepts | Decision::AcceptsByName => false,
    }
}

fn walk(chains: &Chains, chain: &Chain, jumps: usize) -> Decision {
    for rule in chain.rules.iter().filter(|rule| rule.protocol != Protocol::Other) {
        let named = rule.protocol == Protocol::Tunnel;
        match &rule.verdict {
            Verdict::Accept if named => return Decision::AcceptsByName,
            Verdict::Accept if !rule.conditional => return Decision::Accepts,
            Verdict::Drop if !rule.conditional => return Decision::Drops,
            Verdict::Return if !rule.conditional => return Decision::Falls,
            Verdict::Jump(target) if jumps > 0 => {
                let Some(target) = chains.get(target) else { continue };
                match walk(chains, target, jumps - 1) {
                    Decision::AcceptsByName => return Decision::AcceptsByName,
                    Decision::Falls => {}
                    decision if named || !rule.conditional => return decision,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    Decision::Falls
}

/// `nft -j list ruleset` (libnftables-json(5)).
fn nftables(text: &str) -> Option<Chains> {
    let listing: Value = serde_json::from_str(text).ok()?;
    let mut chains = Chains::new();
    for object in listing.get("nftables")?.as_array()? {
        if let Some(chain) = object.get("chain") {
            if let Some((key, chain)) = nft_chain(chain) {
                chains.insert(key, chain);
            }
        } else if let Some(rule) = object.get("rule") {
            let key = nft_key(rule, "chain");
            if let Some(chain) = key.as_ref().and_then(|key| chains.get_mut(key)) {
                chain.rules.extend(nft_rule(rule));
            }
        }
    }
    Some(chains)
}

fn nft_key(object: &Value, name: &str) -> Option<(String, String, String)> {
    let text = |key: &str| object.get(key)?.as_str().map(ToOwned::to_owned);
    let family = text("family")?;
    matches!(family.as_str(), "ip" | "inet").then_some((family, text("table")?, text(name)?))
}

fn nft_chain(object: &Value) -> Option<((String, String, String), Chain)> {
    let key = nft_key(object, "name")?;
    let is = |field: &str, value: &str| object.get(field).and_then(Value::as_str) == Some(value);
    let (family, table, name) = &key;
    let chain = Chain {
        title: format!("nft table {family} {table}, chain {name},"),
        accept: format!("nft insert rule {family} {table} {name} ip protocol {{ 4, 41 }} accept"),
        input: is("hook", "input"),
        policy_drop: is("policy", "drop"),
        rules: Vec::new(),
    };
    Some((key, chain))
}

fn nft_rule(object: &Value) -> Option<Rule> {
    let (family, table, _) = nft_key(object, "chain")?;
    let mut rule = Rule { protocol: Protocol::Any, conditional: false, verdict: Verdict::None };
    for expression in object.get("expr")?.as_array()? {
        let Some((kind, content)) = expression.as_object().and_then(|object| object.iter().next()) else { continue };
        match kind.as_str() {
            "accept" => rule.verdict = Verdict::Accept,
            "drop" | "reject" => rule.verdict = Verdict::Drop,
            "return" => rule.verdict = Verdict::Return,
            "jump" | "goto" => {
                let target = content.get("target").and_then(Value::as_str).unwrap_or_default();
                rule.verdict = Verdict::Jump((family.clone(), table.clone(), target.to_owned()));
            }
            "counter" | "log" | "mangle" => {}
            "match" => match nft_protocol(content) {
                Some(Protocol::Any) => {}
                Some(protocol) => rule.protocol = protocol,
                None => rule.conditional = true,
            },
            _ => rule.conditional = true,
        }
    }
    Some(rule)
}

/// What a match says about the protocol; none when it is about something else.
fn nft_protocol(content: &Value) -> Option<Protocol> {
    let left = content.get("left")?;
    let right = content.get("right")?;
    let meta = left.pointer("/meta/key").and_then(Value::as_str);
    let payload = left.pointer("/payload/protocol").and_then(Value::as_str);
    let field = left.pointer("/payload/field").and_then(Value::as_str);
    let holds = match (meta, payload, field) {
        (Some("nfproto"), ..) => return Some(if right == "ipv6" { Protocol::Other } else { Protocol::Any }),
        (Some("l4proto"), ..) | (_, Some("ip"), Some("protocol")) => names_tunnel(right),
        (_, Some("ip6" | "tcp" | "udp" | "th" | "icmp" | "icmpv6"), _) => return Some(Protocol::Other),
        _ => return None,
    };
    let negated = content.get("op").and_then(Value::as_str) == Some("!=");
    match (negated, holds) {
        (false, true) => Some(Protocol::Tunnel),
        (true, false) => None,
        (false, false) | (true, true) => Some(Protocol::Other),
    }
}

fn names_tunnel(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64() == Some(4),
        Value::String(name) => is_tunnel(name),
        Value::Array(values) => values.iter().any(names_tunnel),
        Value::Object(object) => object.get("set").is_some_and(names_tunnel),
        Value::Null | Value::Bool(_) => false,
    }
}

/// The names that `/etc/protocols` has had for protocol 4.
fn is_tunnel(name: &str) -> bool {
    matches!(name, "4" | "ipencap" | "ipip" | "ip-encap" | "ipv4")
}

/// `iptables-save` (iptables-save(8)), table `filter`.
fn iptables_save(text: &str) -> Chains {
    let mut chains = Chains::new();
    let in_filter = text.lines().skip_while(|line| *line != "*filter").take_while(|line| *line != "COMMIT");
    for line in in_filter {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let (Some(name), policy) = (words.next(), words.next()) else { continue };
            let chain = Chain {
                title: format!("iptables chain {name}"),
                accept: format!("iptables -I {name} -p 4 -j ACCEPT; iptables -I {name} -p 41 -j ACCEPT"),
                input: name == "INPUT",
                policy_drop: policy == Some("DROP"),
                rules: Vec::new(),
            };
            chains.insert(iptables_key(name), chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let Some((name, rest)) = rule.split_once(' ') else { continue };
            if let Some(chain) = chains.get_mut(&iptables_key(name)) {
                chain.rules.push(iptables_rule(rest));
            }
        }
    }
    chains
}

fn iptables_key(chain: &str) -> (String, String, String) {
    ("ip".to_owned(), "filter".to_owned(), chain.to_owned())
}

fn iptables_rule(text: &str) -> Rule {
    let mut rule = Rule { protocol: Protocol::Any, conditional: false, verdict: Verdict::None };
    let mut words = text.split_whitespace();
    let mut negated = false;
    while let Some(word) = words.next() {
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-p" => {
                let named = words.next().is_some_and(is_tunnel);
                match (negated, named) {
                    (false, true) => rule.protocol = Protocol::Tunnel,
                    (true, false) => rule.conditional = true,
                    (false, false) | (true, true) => rule.protocol = Protocol::Other,
                }
            }
            "-j" | "-g" => {
                rule.verdict = match words.next() {
                    Some("ACCEPT") => Verdict::Accept,
                    Some("DROP" | "REJECT") => Verdict::Drop,
                    Some("RETURN") => Verdict::Return,
                    Some(target) => Verdict::Jump(iptables_key(target)),
                    None => Verdict::None,
                };
                // What follows are the target's own options.
                break;
            }
            _ => rule.conditional = true,
        }
        negated = false;
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::check::Outcome::{Ok as Fine, Warn};

    /// A table `inet f` with an INPUT chain of this policy, another chain `more`, and these rules in them.
    fn nft(policy: &str, input: &[&str], more: &[&str]) -> Listing {
        let rules = |chain: &str, rules: &[&str]| {
            let rule = |expr: &&str| {
                format!(r#",{{"rule":{{"family":"inet","table":"f","chain":"{chain}","expr":[{expr}]}}}}"#)
            };
            rules.iter().map(rule).collect::<String>()
        };
        Listing::Text(format!(
            r#"{{"nftables":[{{"metainfo":{{}}}},{{"table":{{"family":"inet","name":"f"}}}},
            {{"chain":{{"family":"inet","table":"f","name":"in","hook":"input","policy":"{policy}"}}}},
            {{"chain":{{"family":"inet","table":"f","name":"more"}}}}{}{}]}}"#,
            rules("in", input),
            rules("more", more)
        ))
    }

    fn by_nft(policy: &str, input_rules: &[&str], more: &[&str]) -> super::super::Outcome {
        input(&nft(policy, input_rules, more), &Listing::NoTool).result
    }

    const IPIP: &str =
        r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"protocol"}},"right":"ipencap"}}"#;
    const L4_SET: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":{"set":["tcp",4]}}}"#;
    const TCP: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"tcp"}}"#;
    const LOOPBACK: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"iif"}},"right":"lo"}}"#;
    const SOURCE: &str =
        r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"10.0.0.1"}}"#;
    const ACCEPT: &str = r#"{"accept":null}"#;

    #[test]
    fn a_policy_of_drop_needs_a_rule_that_accepts_the_tunnel() {
        let both = |a: &str, b: &str| format!("{a},{b}");
        assert_eq!(by_nft("accept", &[], &[]), Fine);
        assert_eq!(by_nft("drop", &[], &[]), Warn);
        assert_eq!(by_nft("drop", &[&both(LOOPBACK, ACCEPT), &both(TCP, ACCEPT)], &[]), Warn);
        assert_eq!(by_nft("drop", &[&both(LOOPBACK, ACCEPT), &both(IPIP, ACCEPT)], &[]), Fine);
        assert_eq!(by_nft("drop", &[&both(L4_SET, ACCEPT)], &[]), Fine);
        assert_eq!(by_nft("drop", &[&format!("{IPIP},{SOURCE},{{\"counter\":{{}}}},{ACCEPT}")], &[]), Fine);
        assert_eq!(by_nft("drop", &[r#"{"counter":{}},{"accept":null}"#], &[]), Fine);
    }

    #[test]
    fn a_final_reject_counts_like_a_policy() {
        let reject = r#"{"reject":{"type":"icmpx"}}"#;
        assert_eq!(by_nft("accept", &[reject], &[]), Warn);
        assert_eq!(by_nft("accept", &[&format!("{IPIP},{ACCEPT}"), reject], &[]), Fine);
        assert_eq!(by_nft("accept", &[&format!("{TCP},{reject}")], &[]), Fine);
        assert_eq!(by_nft("accept", &[&format!("{IPIP},{reject}")], &[]), Warn);
    }

    #[test]
    fn jumps_are_followed() {
        let jump = r#"{"jump":{"target":"more"}}"#;
        let conditional = format!("{LOOPBACK},{jump}");
        let by_name = format!("{IPIP},{ACCEPT}");
        assert_eq!(by_nft("drop", &[jump], &[&by_name]), Fine);
        assert_eq!(by_nft("drop", &[&conditional], &[&by_name]), Fine);
        assert_eq!(by_nft("drop", &[&conditional], &[ACCEPT]), Warn);
        assert_eq!(by_nft("drop", &[jump], &[r#"{"return":null}"#, ACCEPT]), Warn);
        assert_eq!(by_nft("accept", &[jump], &[r#"{"drop":null}"#]), Warn);
        assert_eq!(by_nft("drop", &[jump], &[jump]), Warn);
    }

    #[test]
    fn what_iptables_saves_is_read_too() {
        let judged = |text: &str| input(&Listing::NoTool, &Listing::Text(text.to_owned())).result;
        let filter = |policy: &str, rules: &str| {
            format!("*nat\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:INPUT {policy} [0:0]\n:more - [0:0]\n{rules}COMMIT\n")
        };
        assert_eq!(judged(&filter("ACCEPT", "")), Fine);
        assert_eq!(
            judged(&filter("DROP", "-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n")),
            Warn
        );
        assert_eq!(judged(&filter("DROP", "-A INPUT -s 10.0.0.0/8 -p ipencap -j ACCEPT\n")), Fine);
        assert_eq!(judged(&filter("DROP", "-A INPUT -p 4 -j ACCEPT\n")), Fine);
        assert_eq!(judged(&filter("DROP", "-A INPUT ! -p 4 -j ACCEPT\n")), Warn);
        assert_eq!(judged(&filter("ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n")), Warn);
        assert_eq!(judged(&filter("DROP", "-A more -p 4 -j ACCEPT\n-A INPUT -j more\n")), Fine);
    }

    #[test]
    fn what_was_not_seen_is_not_called_good() {
        let item = input(&Listing::NoTool, &Listing::Refused("Permission denied".into()));
        assert_eq!(item.result, Warn);
        assert_eq!(item.found, "not checked: nft not installed, iptables-save: Permission denied");
        assert_eq!(input(&Listing::Text("nonsense".into()), &Listing::NoTool).result, Warn);
        assert_eq!(input(&nft("accept", &[], &[]), &Listing::Refused("old kernel".into())).result, Fine);
    }
}
