//! Kinds of objects, and which of them are meant.

use std::fmt;

/// A kind of objects, as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// Its group; empty for the core's.
    pub group: &'static str,
    /// The version that is spoken, such as `v1`.
    pub version: &'static str,
    /// What one object is, such as `Node`.
    pub kind: &'static str,
    /// Its name in paths and roles, such as `nodes`.
    pub plural: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

/// `v1` nodes.
pub const NODES: Resource = core("Node", "nodes", false);
/// `v1` pods.
pub const PODS: Resource = core("Pod", "pods", true);
/// `v1` namespaces.
pub const NAMESPACES: Resource = core("Namespace", "namespaces", false);
/// `v1` services.
pub const SERVICES: Resource = core("Service", "services", true);
/// `v1` events.
pub const EVENTS: Resource = core("Event", "events", true);
/// `discovery.k8s.io/v1` endpoint slices. From a server before 1.21, which has none, they come as `v1beta1`: look at
/// the object's `apiVersion`.
pub const ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    namespaced: true,
};
/// `coordination.k8s.io/v1` leases.
pub const LEASES: Resource =
    Resource { group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases", namespaced: true };
/// tapir's own: the entries of its store (`deploy/kubernetes/crd.yaml`).
pub const ENTRIES: Resource =
    Resource { group: "tapir.dev", version: "v1", kind: "Entry", plural: "entries", namespaced: false };

const fn core(kind: &'static str, plural: &'static str, namespaced: bool) -> Resource {
    Resource { group: "", version: "v1", kind, plural, namespaced }
}

impl Resource {
    /// What objects call their `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of its objects: of one namespace, or of all.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let place = match namespace {
            Some(namespace) if self.namespaced => format!("/namespaces/{namespace}"),
            _ => String::new(),
        };
        format!("{root}/{}{place}/{}", self.api_version(), self.plural)
    }
}

/// As roles and `kubectl` name it: `leases.coordination.k8s.io`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// Which objects of a kind are meant. The default: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// Those of this namespace; none: of every one.
    pub namespace: Option<String>,
    /// Those with labels as this selector says, such as `app=web,tier!=test`.
    pub labels: Option<String>,
    /// Those with fields as this selector says, such as `spec.nodeName=node-1`. Servers know few fields of each kind.
    pub fields: Option<String>,
}

impl Selection {
    /// Those of one namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Those with such labels.
    #[must_use]
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = Some(selector.into());
        self
    }

    /// Those with such fields.
    #[must_use]
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = Some(selector.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_apis() {
        for (resource, namespace, path, name) in [
            (NODES, None, "/api/v1/nodes", "nodes"),
            (NODES, Some("ignored"), "/api/v1/nodes", "nodes"),
            (PODS, None, "/api/v1/pods", "pods"),
            (PODS, Some("web"), "/api/v1/namespaces/web/pods", "pods"),
            (
                LEASES,
                Some("tapir-system"),
                "/apis/coordination.k8s.io/v1/namespaces/tapir-system/leases",
                "leases.coordination.k8s.io",
            ),
            (ENTRIES, None, "/apis/tapir.dev/v1/entries", "entries.tapir.dev"),
        ] {
            assert_eq!((resource.path(namespace).as_str(), resource.to_string().as_str()), (path, name));
        }
    }
}
