//! Entries as objects: of our own kind, or leases.
//!
//! ```text
//! apiVersion: tapir.dev/v1               apiVersion: coordination.k8s.io/v1
//! kind: Entry                            kind: Lease
//! metadata:                              metadata:
//!   name: blocks.10.244.0.0-26             name: tapir-node-node-1
//!   labels:                                labels:
//!     tapir.dev/kind: blocks                 tapir.dev/kind: alive
//!     tapir.dev/watched: "true"            annotations:
//!   annotations:                             tapir.dev/name: node-1
//!     tapir.dev/write: 1f0c…                 tapir.dev/value: '{…}'
//! spec:                                      tapir.dev/lease: 6a09…
//!   key: cluster/blocks/10.244.0.0-26    spec:
//!   value: {…}                             holderIdentity, leaseDurationSeconds, renewTime
//! ```
//!
//! A server takes a write that changes nothing for none, and keeps the version. Here every write is one, so each bears a
//! number of its own, `tapir.dev/write`.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tapir_kube::{ENTRIES, LEASES, Object, Resource};

use super::name;
use crate::cluster::{Entry, Key, Kind, Revision};

/// Which kind of entry it is, for selectors.
pub(super) const KIND: &str = "tapir.dev/kind";
/// On entries that every node follows.
pub(super) const WATCHED: &str = "tapir.dev/watched";
const WRITE: &str = "tapir.dev/write";
const NAME: &str = "tapir.dev/name";
const VALUE: &str = "tapir.dev/value";
const LEASE: &str = "tapir.dev/lease";

/// The kind of objects that entries of a kind are.
pub(super) fn resource(kind: Kind) -> &'static Resource {
    if kind == Kind::Alive { &LEASES } else { &ENTRIES }
}

/// The object that an entry is to be; none when its value is no JSON. `expected`: what it replaces.
pub(super) fn write(key: &Key, value: &str, expected: Option<Revision>) -> Option<Value> {
    let mut object = if key.kind == Kind::Alive {
        json!({
            "metadata": {"annotations": {NAME: key.name, VALUE: value}},
            "spec": {"holderIdentity": key.name, "renewTime": now()},
        })
    } else {
        let value: Value = serde_json::from_str(value).ok()?;
        json!({"metadata": {"annotations": {}}, "spec": {"key": key.to_string(), "value": value}})
    };
    let resource = resource(key.kind);
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind.into();
    let metadata = &mut object["metadata"];
    metadata["name"] = name::object(key).into();
    metadata["labels"] = json!({KIND: name::kind(key.kind)});
    if key.kind.is_watched() {
        metadata["labels"][WATCHED] = "true".into();
    }
    metadata["annotations"][WRITE] = format!("{:016x}", number()).into();
    if let Some(revision) = expected {
        metadata["resourceVersion"] = revision.to_string().into();
    }
    Some(object)
}

/// The lease that says that a node runs, under the lease number `id`.
pub(super) fn announcement(key: &Key, value: &str, id: u64, ttl: Duration, expected: Option<&str>) -> Option<Value> {
    let mut object = write(key, value, None)?;
    object["metadata"]["annotations"][LEASE] = format!("{id:016x}").into();
    object["spec"]["leaseDurationSeconds"] = seconds(ttl).into();
    object["spec"]["acquireTime"] = object["spec"]["renewTime"].clone();
    if let Some(version) = expected {
        object["metadata"]["resourceVersion"] = version.into();
    }
    Some(object)
}

/// What renews a lease of that version.
pub(super) fn renewal(version: &str) -> Value {
    json!({"metadata": {"resourceVersion": version}, "spec": {"renewTime": now()}})
}

/// A time to live in whole seconds, as a lease can have it.
pub(super) fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs().clamp(1, i32::MAX.unsigned_abs().into())
}

/// A number that nobody else has.
pub(super) fn number() -> u64 {
    RandomState::new().hash_one(SystemTime::now()).max(1)
}

fn now() -> String {
    tapir_kube::micro_time(SystemTime::now())
}

/// The key and the value of an object; none when it is no entry of this layout, or does not bear its name.
pub(super) fn read(object: &Object) -> Option<(Key, String)> {
    let (key, value) = if object.value.get("kind")? == LEASES.kind {
        (Key::new(Kind::Alive, annotation(object, NAME)?), annotation(object, VALUE)?.to_owned())
    } else {
        let spec = object.value.get("spec")?;
        let key = Key::parse(spec.get("key")?.as_str()?).filter(|key| key.kind != Kind::Alive)?;
        (key, spec.get("value").unwrap_or(&Value::Null).to_string())
    };
    (name::object(&key) == object.name).then_some((key, value))
}

/// The entry that an object holds.
pub(super) fn entry(object: &Object, revision: Revision) -> Option<Entry> {
    read(object).map(|(key, value)| Entry { key, value, revision })
}

/// Under which lease number it was announced.
pub(super) fn lease_id(object: &Object) -> Option<u64> {
    u64::from_str_radix(annotation(object, LEASE)?, 16).ok()
}

/// For how long each renewal keeps it; none: for ever.
pub(super) fn duration(object: &Object) -> Option<Duration> {
    object.value.pointer("/spec/leaseDurationSeconds")?.as_u64().map(Duration::from_secs)
}

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.value.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        Object { namespace: None, name, uid: "u".into(), resource_version: "7".into(), value }
    }

    #[test]
    fn entries_are_read_as_written() {
        for (kind, name) in [(Kind::Block, "10.244.0.0/26"), (Kind::Pool, "fd00::/48"), (Kind::Usage, "N_1")] {
            let key = Key::new(kind, name);
            let object = object(write(&key, "{\"a\":[1,null]}", Some(3)).unwrap());
            assert_eq!(read(&object), Some((key, "{\"a\":[1,null]}".to_owned())));
            assert_eq!(object.value["metadata"]["resourceVersion"], "3");
            assert_eq!(object.value["metadata"]["labels"].get(WATCHED).is_some(), kind.is_watched());
        }
        assert_eq!(write(&Key::new(Kind::Node, "n"), "{", None), None);
        let lease =
            object(announcement(&Key::new(Kind::Alive, "n"), "", 42, Duration::from_millis(2500), None).unwrap());
        assert_eq!(read(&lease), Some((Key::new(Kind::Alive, "n"), String::new())));
        assert_eq!((lease_id(&lease), duration(&lease)), (Some(42), Some(Duration::from_secs(2))));
    }

    #[test]
    fn an_object_under_a_wrong_name_is_no_entry() {
        let value = write(&Key::new(Kind::Node, "n"), "{}", None).unwrap();
        let changed = |change: fn(&mut Value)| {
            let mut value = value.clone();
            change(&mut value);
            read(&object(value))
        };
        assert!(changed(|_| ()).is_some());
        assert_eq!(changed(|value| value["metadata"]["name"] = "nodes.m".into()), None);
        assert_eq!(changed(|value| value["spec"]["key"] = "cluster/nodes/m".into()), None);
        assert_eq!(changed(|value| value["spec"]["key"] = "alive/n".into()), None);
        assert_eq!(changed(|value| value["spec"] = Value::Null), None);
    }
}
