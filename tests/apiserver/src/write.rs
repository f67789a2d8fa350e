//! Creating, updating and deleting objects: who owns which field, and what makes a write fail.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::resource::{DEFINITIONS, Resource, established};
use crate::store::{Key, Store};

/// What of an object a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status, if that is a subresource.
    Main,
    /// The subresource `status`.
    Status,
}

/// Metadata that only the server sets.
const OWNED: [&str; 5] = ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"];

impl Store {
    /// Creates `object` in `namespace`, which is empty for what lives in none.
    pub fn create(&mut self, resource: &Resource, namespace: &str, mut object: Value) -> Result<Arc<Value>, Failure> {
        check_kind(resource, &object)?;
        let metadata = metadata_of(&mut object)?;
        if metadata.get("resourceVersion").is_some_and(|version| version != "") {
            return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let name = match (metadata.get("name").and_then(Value::as_str), metadata.get("generateName")) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (_, Some(Value::String(prefix))) => {
                let suffix = uid().replace('-', "");
                format!("{prefix}{}", &suffix[..5])
            }
            _ => {
                return Err(Failure::invalid(
                    resource,
                    "",
                    "metadata.name: Required value: name or generateName is required",
                ));
            }
        };
        check_name(resource, &name)?;
        check_place(metadata, "namespace", namespace)?;
        let key = (namespace.to_owned(), name.clone());
        if self.get(&resource.id(), &key).is_some() {
            return Err(Failure::already_exists(resource, &name));
        }
        OWNED.iter().for_each(|field| drop(metadata.remove(*field)));
        metadata.insert("name".into(), json!(name));
        complete(metadata, namespace);
        // Of what has no spec, only custom resources count their generations.
        if resource.custom || object.get("spec").is_some() {
            object["metadata"]["generation"] = json!(1);
        }
        if resource.status {
            take(&mut object, "status");
        }
        self.commit_defined(resource, key, object)
    }

    /// Replaces a part of the object at `key` by that of `object`.
    pub fn update(
        &mut self,
        resource: &Resource,
        key: &Key,
        mut object: Value,
        part: Part,
    ) -> Result<Arc<Value>, Failure> {
        let (id, name) = (resource.id(), &key.1);
        let current = self.get(&id, key).ok_or_else(|| Failure::not_found(resource, name))?;
        check_kind(resource, &object)?;
        let metadata = metadata_of(&mut object)?;
        check_place(metadata, "name", name)?;
        check_place(metadata, "namespace", &key.0)?;
        match metadata.get("resourceVersion").and_then(Value::as_str).unwrap_or_default() {
            "" if resource.custom => {
                let why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update";
                return Err(Failure::invalid(resource, name, why));
            }
            "" => {}
            version if current["metadata"]["resourceVersion"] != *version => {
                let why = "the object has been modified; please apply your changes to the latest version and try again";
                return Err(Failure::conflict(resource, name, why));
            }
            _ => {}
        }
        check_uid(resource, &current, metadata.get("uid"))?;
        let new = merged(resource, &current, object, part);
        if new == *current {
            return Ok(current);
        }
        if !new["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&new) {
            return Ok(self.remove(resource, key));
        }
        self.commit_defined(resource, key.clone(), new)
    }

    /// Deletes the object at `key` if `preconditions` hold, or marks it as to be deleted while finalizers hold it: then
    /// the object is answered, marked.
    pub fn delete(&mut self, resource: &Resource, key: &Key, preconditions: &Value) -> Result<Deleted, Failure> {
        let current = self.get(&resource.id(), key).ok_or_else(|| Failure::not_found(resource, &key.1))?;
        check_uid(resource, &current, preconditions.get("uid"))?;
        let version = preconditions["resourceVersion"].as_str();
        if version.is_some_and(|version| current["metadata"]["resourceVersion"] != *version) {
            let why = "the resourceVersion in the precondition does not match the resourceVersion in record. The object might \
                       have been modified";
            return Err(Failure::conflict(resource, &key.1, why));
        }
        if !has_finalizers(&current) {
            return Ok(Deleted::Gone(self.remove(resource, key)));
        }
        if !current["metadata"]["deletionTimestamp"].is_null() {
            return Ok(Deleted::Marked(current));
        }
        let mut marked = (*current).clone();
        marked["metadata"]["deletionTimestamp"] = json!(now());
        marked["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        if let Some(generation) = marked["metadata"]["generation"].as_u64() {
            marked["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(Deleted::Marked(self.commit(&resource.id(), key.clone(), Some(marked))))
    }

    /// Puts `object` as it is, status and all, whatever was there.
    pub fn put(&mut self, resource: &Resource, mut object: Value) -> Result<Arc<Value>, Failure> {
        let metadata = metadata_of(&mut object)?;
        let Some(name) = metadata.get("name").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Failure::bad_request("metadata.name is missing"));
        };
        let namespace = match metadata.get("namespace").and_then(Value::as_str) {
            _ if !resource.namespaced => String::new(),
            Some(namespace) => namespace.to_owned(),
            None => "default".into(),
        };
        let key = (namespace, name);
        if let Some(current) = self.get(&resource.id(), &key) {
            for field in ["uid", "creationTimestamp"] {
                metadata.entry(field).or_insert_with(|| current["metadata"][field].clone());
            }
        }
        complete(metadata, &key.0);
        self.commit_defined(resource, key, object)
    }

    /// Takes the object at `key` away, and with a definition or a namespace what is in it.
    pub fn remove(&mut self, resource: &Resource, key: &Key) -> Arc<Value> {
        let removed = self.commit(&resource.id(), key.clone(), None);
        let within: Vec<(String, Key)> = match resource.id().as_str() {
            DEFINITIONS => {
                self.table.undefine(&removed);
                self.all(&key.1).map(|(k, _)| (key.1.clone(), k.clone())).collect()
            }
            "namespaces" => self.in_namespace(&key.1),
            _ => Vec::new(),
        };
        for (id, key) in within {
            self.commit(&id, key, None);
        }
        removed
    }

    /// Commits, and serves what the object defines if it is a definition.
    fn commit_defined(&mut self, resource: &Resource, key: Key, mut object: Value) -> Result<Arc<Value>, Failure> {
        if resource.id() == DEFINITIONS {
            self.table.define(&object)?;
            if object.get("status").is_none() {
                object["status"] = established(&object, &now());
            }
        }
        object["kind"] = json!(resource.kind);
        object["apiVersion"] = json!(resource.api_version());
        Ok(self.commit(&resource.id(), key, Some(object)))
    }
}

/// What deleting came to.
#[derive(Clone, Debug)]
pub(crate) enum Deleted {
    /// The object as it was, with the revision of its deletion.
    Gone(Arc<Value>),
    /// The object, which finalizers hold.
    Marked(Arc<Value>),
}

/// `current` with the part that a write may change taken from `object`.
fn merged(resource: &Resource, current: &Value, mut object: Value, part: Part) -> Value {
    if part == Part::Status {
        let mut new = current.clone();
        put_or_take(&mut new, "status", take(&mut object, "status"));
        return new;
    }
    for field in OWNED.into_iter().chain(["name", "namespace", "resourceVersion"]) {
        put_or_take(&mut object["metadata"], field, current["metadata"].get(field).cloned());
    }
    if resource.status {
        put_or_take(&mut object, "status", current.get("status").cloned());
    }
    for field in ["kind", "apiVersion"] {
        object[field] = current[field].clone();
    }
    if let Some(generation) = current["metadata"]["generation"].as_u64()
        && differs(&object, current)
    {
        object["metadata"]["generation"] = json!(generation + 1);
    }
    object
}

/// Whether anything but metadata and status differs.
fn differs(object: &Value, other: &Value) -> bool {
    let content = |object: &Value| {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(name, _)| *name != "metadata" && *name != "status")
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    };
    let (content, others): (Map<_, _>, Map<_, _>) = (content(object), content(other));
    content != others
}

fn take(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut()?.remove(field)
}

fn put_or_take(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object[field] = value,
        None => drop(take(object, field)),
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

fn complete(metadata: &mut Map<String, Value>, namespace: &str) {
    metadata.entry("uid").or_insert_with(|| json!(uid()));
    metadata.entry("creationTimestamp").or_insert_with(|| json!(now()));
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), json!(namespace));
    }
}

fn metadata_of(object: &mut Value) -> Result<&mut Map<String, Value>, Failure> {
    let object = object.as_object_mut().ok_or_else(|| Failure::bad_request("the body is no object"))?;
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| Failure::bad_request("metadata is no object"))
}

/// What the body says of where the object is must be what the path says.
fn check_place(metadata: &Map<String, Value>, field: &str, expected: &str) -> Result<(), Failure> {
    match metadata.get(field).and_then(Value::as_str) {
        Some(said) if !said.is_empty() && said != expected => Err(Failure::bad_request(format!(
            "the {field} of the provided object does not match the {field} sent on the request"
        ))),
        _ => Ok(()),
    }
}

fn check_kind(resource: &Resource, object: &Value) -> Result<(), Failure> {
    let (kind, version) = (&object["kind"], &object["apiVersion"]);
    if *kind == *resource.kind && *version == *resource.api_version() {
        return Ok(());
    }
    let (wanted_version, wanted) = (resource.api_version(), &resource.kind);
    Err(Failure::bad_request(format!("{version} {kind} is not what is served here: {wanted_version} {wanted}")))
}

fn check_uid(resource: &Resource, current: &Value, said: Option<&Value>) -> Result<(), Failure> {
    match said.and_then(Value::as_str) {
        Some(uid) if current["metadata"]["uid"] != *uid => {
            let name = current["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                current["metadata"]["uid"]
            );
            Err(Failure::conflict(resource, name, &why))
        }
        _ => Ok(()),
    }
}

/// A name is a DNS subdomain (RFC 1123), but for roles and their bindings, which may be called anything.
fn check_name(resource: &Resource, name: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let fits = match resource.group.as_str() {
        "rbac.authorization.k8s.io" => !name.contains(['/', '%']),
        _ => name.split('.').all(label),
    };
    if fits && name.len() <= 253 {
        return Ok(());
    }
    let why = format!("metadata.name: Invalid value: \"{name}\": a lowercase RFC 1123 subdomain is wanted");
    Err(Failure::invalid(resource, name, &why))
}

/// The time as metadata has it: whole seconds of UTC.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random UUID, from the kernel.
fn uid() -> String {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes)).ok();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
