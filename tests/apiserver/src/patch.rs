//! The kinds of patches.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// What a patch is, by the request's content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// As a merge, but for lists that are merged by a key of their elements.
    Strategic,
    /// Server-side apply: creates what isn't there, merges as [`Kind::Strategic`] into what is.
    Apply,
}

impl Kind {
    pub fn of(content_type: &str) -> Result<Self, Failure> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Ok(Self::Apply),
            other => Err(Failure::new(415, "UnsupportedMediaType", format!("no patch has the content type {other:?}"))),
        }
    }
}

/// `object` with `patch` applied.
pub(crate) fn patched(mut object: Value, patch: &Value, kind: Kind) -> Result<Value, Failure> {
    match kind {
        Kind::Json => {
            let operations: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|e| Failure::bad_request(format!("not a JSON patch: {e}")))?;
            json_patch::patch(&mut object, &operations)
                .map_err(|e| Failure::new(422, "Invalid", format!("the server rejected our request: {e}")))?;
        }
        Kind::Merge => json_patch::merge(&mut object, patch),
        Kind::Strategic | Kind::Apply => merge("", &mut object, patch),
    }
    if object.is_object() { Ok(object) } else { Err(Failure::bad_request("the patch leaves no object")) }
}

/// The field that tells elements of the list `name` apart, if `elements` have it. The kind of object is not looked at: the
/// ports of an EndpointSlice are merged as those of a Service.
fn merge_key(name: &str, elements: &[Value]) -> Option<&'static str> {
    let keys: &[&str] = match name {
        "conditions" | "addresses" => &["type"],
        "ownerReferences" => &["uid"],
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => &["name"],
        "ports" => &["port", "containerPort"],
        "volumeMounts" => &["mountPath"],
        "podIPs" | "hostIPs" => &["ip"],
        _ => &[],
    };
    keys.iter().copied().find(|key| elements.iter().all(|element| element.get(key).is_some()))
}

fn merge(name: &str, target: &mut Value, patch: &Value) {
    let elements = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    match (patch, merge_key(name, elements)) {
        (Value::Object(patch), _) => merge_object(target, patch),
        (Value::Array(_), Some(key)) => {
            if !target.is_array() {
                *target = Value::Array(Vec::new());
            }
            let Value::Array(list) = target else { return };
            elements.iter().for_each(|element| merge_element(list, element, key));
        }
        // A set of strings, as kubectl treats it in a strategic merge.
        (Value::Array(_), None) if name == "finalizers" && target.is_array() => {
            let Value::Array(list) = target else { return };
            for element in elements {
                if !list.contains(element) {
                    list.push(element.clone());
                }
            }
        }
        _ => *target = patch.clone(),
    }
}

fn merge_object(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() || patch.get("$patch").is_some_and(|directive| directive == "replace") {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if name.starts_with("$setElementOrder/") || name == "$patch" || name == "$retainKeys" {
            continue;
        }
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(list)) = target.get_mut(list) {
                list.retain(|element| !gone.contains(element));
            }
        } else if value.is_null() {
            target.remove(name);
        } else {
            merge(name, target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn merge_element(list: &mut Vec<Value>, element: &Value, key: &str) {
    let place = list.iter().position(|present| present[key] == element[key]);
    match (place, element["$patch"] == "delete") {
        (Some(place), true) => drop(list.remove(place)),
        (None, true) => {}
        (Some(place), false) => merge("", &mut list[place], element),
        (None, false) => {
            let mut new = Value::Null;
            merge("", &mut new, element);
            list.push(new);
        }
    }
}
