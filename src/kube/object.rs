//! Objects as the server has them.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value};

use super::resource::Resource;

/// One object, and what every object has, read out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its namespace; none for kinds without.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Which object of that name: another one, made after this was deleted, has another.
    pub uid: String,
    /// When it was last written, in the server's count. Of a deleted one: when that was.
    pub resource_version: String,
    /// The whole of it, with `apiVersion` and `kind`, but without `metadata.managedFields`, which is often most of it.
    pub value: Value,
}

impl Object {
    /// Reads an object; none when it has no metadata with a name.
    pub(crate) fn read(resource: &Resource, mut value: Value) -> Option<Self> {
        let object = value.as_object_mut()?;
        let metadata = object.get_mut("metadata")?.as_object_mut()?;
        metadata.remove("managedFields");
        let read = Self {
            namespace: Some(text(metadata, "namespace")).filter(|namespace| !namespace.is_empty()),
            name: Some(text(metadata, "name")).filter(|name| !name.is_empty())?,
            uid: text(metadata, "uid"),
            resource_version: text(metadata, "resourceVersion"),
            value: Value::Null,
        };
        // Items of a list bear neither.
        object.entry("apiVersion").or_insert_with(|| resource.api_version().into());
        object.entry("kind").or_insert_with(|| resource.kind.into());
        Some(Self { value, ..read })
    }
}

/// A time as the API's `MicroTime` has it: `2026-01-31T12:00:00.000000Z`. What no calendar has becomes 1970.
pub fn micro_time(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn text(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::resource::NODES;
    use super::*;

    #[test]
    fn times_are_of_the_api() {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(1_769_860_800_000_010);
        assert_eq!(micro_time(at), "2026-01-31T12:00:00.000010Z");
    }

    #[test]
    fn an_object_has_a_name() {
        let value = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "7", "managedFields": [1]}});
        let object = Object::read(&NODES, value).unwrap();
        assert_eq!((object.name.as_str(), object.uid.as_str(), object.resource_version.as_str()), ("n", "u", "7"));
        assert_eq!(object.namespace, None);
        let kept = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}
        });
        assert_eq!(object.value, kept);
        for value in [json!(null), json!([]), json!({}), json!({"metadata": 1}), json!({"metadata": {"name": ""}})] {
            assert_eq!(Object::read(&NODES, value.clone()), None, "{value}");
        }
    }
}
