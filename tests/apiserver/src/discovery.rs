//! What the server says of itself: version, health, groups and resources.

use serde_json::{Value, json};

use crate::resource::{Resource, Table};

/// The answer at `path`, if it is one of these paths.
pub(crate) fn answer(table: &Table, path: &[&str]) -> Option<Value> {
    match path {
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0-tapir", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        ["apis"] => {
            let names = table.versions().into_iter().map(|(group, _)| group).filter(|group| !group.is_empty());
            let mut groups: Vec<&str> = names.collect();
            groups.dedup();
            let groups: Vec<Value> = groups.into_iter().filter_map(|name| group(table, name)).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => group(table, name),
        ["api", version] => resources(table, "", version),
        ["apis", group, version] => resources(table, group, version),
        _ => None,
    }
}

/// A schema that says nothing, as kubectl wants to have one before it applies: as JSON, or as the message
/// `openapi.v2.Document` with its fields `swagger`, `info` and `paths`.
pub(crate) fn openapi(accept: &str) -> (&'static str, Vec<u8>) {
    if accept.contains("com.github.proto-openapi") {
        let document = b"\x0a\x032.0\x12\x0b\x0a\x05tapir\x12\x02v1\x42\x00";
        return ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", document.to_vec());
    }
    let document = json!({ "swagger": "2.0", "info": { "title": "tapir", "version": "v1" }, "paths": {} });
    ("application/json", document.to_string().into_bytes())
}

fn group(table: &Table, name: &str) -> Option<Value> {
    let of_group = table.versions().into_iter().filter(|(group, _)| *group == name && !name.is_empty());
    let versions: Vec<Value> = of_group
        .map(|(group, version)| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
        .collect();
    let preferred = versions.first()?;
    Some(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": preferred,
    }))
}

fn resources(table: &Table, group: &str, version: &str) -> Option<Value> {
    let list: Vec<Value> = table.of(group, version).flat_map(entries).collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let found = !list.is_empty();
    found.then(
        || json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list }),
    )
}

/// The resource and its subresource.
fn entries(resource: &Resource) -> Vec<Value> {
    let mut list = vec![json!({
        "name": resource.plural, "singularName": resource.singular, "kind": resource.kind,
        "namespaced": resource.namespaced, "shortNames": resource.short_names,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
    })];
    if resource.status {
        list.push(json!({
            "name": format!("{}/status", resource.plural), "singularName": "", "kind": resource.kind,
            "namespaced": resource.namespaced, "verbs": ["get", "patch", "update"],
        }));
    }
    list
}
