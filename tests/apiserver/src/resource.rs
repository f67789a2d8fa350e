//! The table of resources that are served.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::failure::Failure;

/// One resource in one version of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Name in paths.
    pub plural: String,
    /// Name of one.
    pub singular: String,
    /// Kind of its objects.
    pub kind: String,
    /// What kubectl takes for the plural as well.
    pub short_names: Vec<String>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has the subresource `status`.
    pub status: bool,
    /// Whether a CustomResourceDefinition made it.
    pub custom: bool,
}

impl Resource {
    /// The name across groups: `pods`, `leases.coordination.k8s.io`.
    pub fn id(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Fields besides the object's own name and namespace that a field selector may name.
    pub(crate) fn selectable_fields(&self) -> &'static [&'static str] {
        match self.id().as_str() {
            "pods" => &["spec.nodeName", "status.phase", "status.podIP"],
            "events" => &["involvedObject.name", "involvedObject.namespace", "involvedObject.kind", "reason", "type"],
            _ => &[],
        }
    }
}

/// group, version, plural, singular, kind, short names, namespaced, status.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, bool, bool);

const RBAC: &str = "rbac.authorization.k8s.io";
const BUILT_IN: [Row; 19] = [
    ("", "v1", "nodes", "node", "Node", "no", false, true),
    ("", "v1", "pods", "pod", "Pod", "po", true, true),
    ("", "v1", "namespaces", "namespace", "Namespace", "ns", false, true),
    ("", "v1", "services", "service", "Service", "svc", true, true),
    ("", "v1", "configmaps", "configmap", "ConfigMap", "cm", true, false),
    ("", "v1", "serviceaccounts", "serviceaccount", "ServiceAccount", "sa", true, false),
    ("", "v1", "secrets", "secret", "Secret", "", true, false),
    ("", "v1", "events", "event", "Event", "ev", true, false),
    ("discovery.k8s.io", "v1", "endpointslices", "endpointslice", "EndpointSlice", "", true, false),
    ("coordination.k8s.io", "v1", "leases", "lease", "Lease", "", true, false),
    ("apps", "v1", "daemonsets", "daemonset", "DaemonSet", "ds", true, true),
    ("apps", "v1", "deployments", "deployment", "Deployment", "deploy", true, true),
    (RBAC, "v1", "roles", "role", "Role", "", true, false),
    (RBAC, "v1", "rolebindings", "rolebinding", "RoleBinding", "", true, false),
    (RBAC, "v1", "clusterroles", "clusterrole", "ClusterRole", "", false, false),
    (RBAC, "v1", "clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding", "", false, false),
    ("scheduling.k8s.io", "v1", "priorityclasses", "priorityclass", "PriorityClass", "pc", false, false),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "customresourcedefinition",
        "CustomResourceDefinition",
        "crd",
        false,
        true,
    ),
    ("tapir.dev", "v1", "entries", "entry", "Entry", "", false, false),
];

/// The resource of the definitions of resources.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// All resources that are served, in the order in which they came.
#[derive(Clone, Debug)]
pub(crate) struct Table(Vec<Arc<Resource>>);

impl Table {
    /// What is served from the start.
    pub fn built_in() -> Self {
        let row = |&(group, version, plural, singular, kind, short, namespaced, status): &Row| {
            Arc::new(Resource {
                group: group.into(),
                version: version.into(),
                plural: plural.into(),
                singular: singular.into(),
                kind: kind.into(),
                short_names: short.split_whitespace().map(Into::into).collect(),
                namespaced,
                status,
                custom: group == "tapir.dev",
            })
        };
        Self(BUILT_IN.iter().map(row).collect())
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.0.iter().find(|r| (&*r.group, &*r.version, &*r.plural) == (group, version, plural)).cloned()
    }

    /// By [`Resource::id`]. With several versions: the first one.
    pub fn by_id(&self, id: &str) -> Result<Arc<Resource>, Failure> {
        self.0.iter().find(|r| r.id() == id).cloned().ok_or_else(Failure::no_such_path)
    }

    /// Group and version of everything served, each once.
    pub fn versions(&self) -> Vec<(&str, &str)> {
        let mut versions: Vec<(&str, &str)> = Vec::new();
        for row in &self.0 {
            if !versions.contains(&(&row.group, &row.version)) {
                versions.push((&row.group, &row.version));
            }
        }
        versions
    }

    pub fn of(&self, group: &str, version: &str) -> impl Iterator<Item = &Resource> {
        self.0.iter().map(AsRef::as_ref).filter(move |r| r.group == group && r.version == version)
    }

    /// Serves what `definition` defines, instead of what was known under its name.
    pub fn define(&mut self, definition: &Value) -> Result<(), Failure> {
        let rows = rows_of(definition).ok_or_else(|| {
            Failure::bad_request("spec.group, spec.names.plural, spec.names.kind or spec.versions is missing")
        })?;
        self.undefine(definition);
        self.0.extend(rows.into_iter().map(Arc::new));
        Ok(())
    }

    /// Serves no longer what `definition` defined.
    pub fn undefine(&mut self, definition: &Value) {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        self.0.retain(|r| !r.custom || r.id() != name);
    }
}

fn rows_of(definition: &Value) -> Option<Vec<Resource>> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let kind = names["kind"].as_str()?;
    let strings =
        |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
    let row = |version: &Value| {
        Some(Resource {
            group: spec["group"].as_str()?.into(),
            version: version["name"].as_str()?.into(),
            plural: names["plural"].as_str()?.into(),
            singular: names["singular"].as_str().map_or_else(|| kind.to_lowercase(), Into::into),
            kind: kind.into(),
            short_names: strings(&names["shortNames"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            custom: true,
        })
    };
    spec["versions"].as_array()?.iter().filter(|version| version["served"] == true).map(row).collect()
}

/// The status a definition has once its resource is served.
pub(crate) fn established(definition: &Value, now: &str) -> Value {
    let condition = |kind: &str, reason: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": reason, "lastTransitionTime": now });
    json!({
        "acceptedNames": definition["spec"]["names"],
        "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        "storedVersions": definition["spec"]["versions"].as_array().into_iter().flatten()
            .filter(|version| version["storage"] == true).map(|version| version["name"].clone()).collect::<Vec<_>>(),
    })
}
