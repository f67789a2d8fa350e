//! How entries are called in Kubernetes.

use crate::cluster::kubernetes::is_label;
use crate::cluster::{Key, Kind};
use crate::store::fnv1a;

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
    format!("{readable}.{MARK}{:016x}", fnv1a(key.to_string().as_bytes()))
}

/// RFC 1123, as the API wants it.
fn is_subdomain(name: &str) -> bool {
    name.len() <= LONGEST && name.split('.').all(is_label)
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
            (Kind::Pool, "fd00:10::/48", "pools.fd00-10---48.x-"),
            (Kind::Node, "~", "nodes.x-"),
        ] {
            let name = object(&Key::new(kind, name));
            let is_hashed = object_name.ends_with(".x-") && name.len() == object_name.len() + 16;
            assert!(name == object_name || is_hashed && name.starts_with(object_name), "{name}");
            assert!(is_subdomain(&name), "{name}");
        }
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
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
