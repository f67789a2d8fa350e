//! How entries are called in Kubernetes.

use crate::cluster::{Key, Kind};

/// Names of objects are no longer.
const LONGEST: usize = 253;
/// As much of a name that can't be taken as it is, is kept for readers.
const KEPT: usize = 180;
/// What begins the part that makes such a name unique.
const MARK: &str = "x-";

/// A kind, as labels and names have it: the last part of its folder.
pub(super) fn kind(kind: Kind) -> &'static str {
    let folder = kind.folder();
    folder.rsplit_once('/').map_or(folder, |(_, last)| last)
}

/// The name of the object that holds an entry. Two entries never share one: what is no name for an object is written with
/// other characters, and bears a hash of the key.
pub(super) fn object(key: &Key) -> String {
    let prefix = if key.kind == Kind::Alive { "tapir-node-".to_owned() } else { format!("{}.", kind(key.kind)) };
    let plain = format!("{prefix}{}", key.name);
    // Characters are ASCII once it is a subdomain.
    let hashed = plain.rsplit('.').next().is_some_and(|last| last.starts_with(MARK));
    if is_subdomain(&plain) && !hashed {
        return plain;
    }
    let readable = plain.chars().map(|letter| match letter {
        'a'..='z' | '0'..='9' | '.' => letter,
        'A'..='Z' => letter.to_ascii_lowercase(),
        _ => '-',
    });
    let readable: String = readable.take(KEPT).collect();
    let labels = readable.split('.').map(|label| label.trim_matches('-')).filter(|label| !label.is_empty());
    let readable = labels.collect::<Vec<_>>().join(".");
    format!("{readable}.{MARK}{:016x}", hash(&key.to_string()))
}

/// RFC 1123, as the API wants it.
fn is_subdomain(name: &str) -> bool {
    let is_end = |letter: Option<&u8>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        is_end(bytes.first())
            && is_end(bytes.last())
            && bytes.iter().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.len() <= LONGEST && name.split('.').all(is_label)
}

/// FNV-1a: the same on every node, whatever it was compiled with.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_say_what_they_hold() {
        for (kind, name, object_name) in [
            (Kind::Block, "10.244.0.0/26", "blocks.10.244.0.0-26"),
            (Kind::Node, "node-1", "nodes.node-1"),
            (Kind::Alive, "node-1", "tapir-node-node-1"),
            (Kind::Format, "version", "format.version"),
            (Kind::Pool, "fd00:10::/48", "pools.fd00-10---48.x-5f9b52e84d65f7ed"),
            (Kind::Node, "~", "nodes.x-2f6c8de0d5ba3b26"),
        ] {
            let name = object(&Key::new(kind, name));
            let (start, _) = object_name.split_once(".x-").unwrap_or((object_name, ""));
            assert!(name == object_name || name.starts_with(&format!("{start}.x-")), "{name}");
            assert!(is_subdomain(&name), "{name}");
        }
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
    }

    proptest! {
        #[test]
        fn names_are_unique_and_allowed(names in prop::collection::btree_set("[aA_.:x~-]{1,6}|x-[0-9a-f]{16}|.{1,300}", 2..60)) {
            let mut seen = BTreeMap::new();
            for name in names {
                for kind in Kind::ALL {
                    let key = Key::new(kind, &name);
                    let object = object(&key);
                    prop_assert!(is_subdomain(&object), "{object}");
                    if let Some(other) = seen.insert((kind == Kind::Alive, object), key.clone()) {
                        prop_assert_eq!(other, key);
                    }
                }
            }
        }
    }
}
