//! What was told last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::annotations::{Annotations, Invalid, Wishes};
use super::object::{Node, Pod};
use super::{News, Resource, Thing, Told};
use crate::control::Event;
use crate::control::service::object::{Name, Object};

/// As many objects that can't be are told one by one.
const MAX_TOLD: usize = 20;

/// Everything that was told.
#[derive(Debug, Default)]
pub struct Known {
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<Name, Pod>,
    namespaces: BTreeMap<String, Annotations>,
    /// Services, and their endpoints.
    objects: BTreeMap<(Resource, Name), Object>,
    /// What can't be, and why.
    refused: BTreeMap<(Resource, Name), String>,
    down: BTreeMap<Resource, String>,
}

/// What is kept over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Services, and their endpoints.
    pub objects: Vec<Object>,
}

/// What follows from news.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the control plane.
    pub events: Vec<Event>,
    /// Nodes are others.
    pub nodes: bool,
    /// Pods or namespaces are others.
    pub pods: bool,
}

impl Known {
    /// Takes news in.
    pub fn take(&mut self, Told { resource, news }: Told) -> Effects {
        let mut effects = Effects::default();
        match news {
            News::Listed(things) => {
                let gone = self.missing(resource, &things);
                gone.into_iter().for_each(|name| self.remove(resource, &name, &mut effects));
                for (name, thing) in things {
                    self.put(resource, name, thing, &mut effects);
                }
            }
            News::Put(name, thing) => self.put(resource, name, *thing, &mut effects),
            News::Deleted(name) => self.remove(resource, &name, &mut effects),
            News::Down(reason) => drop(self.down.insert(resource, reason)),
            News::Up => drop(self.down.remove(&resource)),
        }
        effects
    }

    /// Takes what was kept over a restart: it counts until something else is told.
    pub fn remember(&mut self, Kept { nodes, objects }: Kept) -> Effects {
        let mut effects = Effects::default();
        for node in nodes {
            let name = Name { name: node.metadata.name.as_str().into(), ..Name::default() };
            self.put(Resource::Nodes, name, Thing::Node(node), &mut effects);
        }
        for object in objects {
            let resource = match object {
                Object::Service(_) => Resource::Services,
                Object::Slice(_) => Resource::EndpointSlices,
            };
            let (_, name) = object.identity();
            self.put(resource, name, Thing::Service(object), &mut effects);
        }
        effects
    }

    /// What is to be kept over a restart.
    pub fn kept(&self) -> Kept {
        Kept { nodes: self.nodes.values().cloned().collect(), objects: self.objects.values().cloned().collect() }
    }

    /// The nodes, by name: this one, or all, as far as they are followed.
    pub const fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// What a pod asks for; none: no such pod is known, or it is one that had the name before.
    ///
    /// # Errors
    /// The annotation that can't be granted.
    pub fn wishes(&self, namespace: &str, name: &str, uid: &str) -> Option<Result<Wishes, Invalid>> {
        let name = Name { namespace: namespace.into(), name: name.into() };
        let pod = self.pods.get(&name).filter(|pod| pod.is(uid))?;
        let of_namespace = self.namespaces.get(namespace);
        Some(Wishes::of(&pod.metadata.annotations, of_namespace.unwrap_or(&Annotations::new())))
    }

    /// The uid by which the API server knows a pod, to tell it something about it.
    pub fn uid(&self, namespace: &str, name: &str) -> Option<&str> {
        let name = Name { namespace: namespace.into(), name: name.into() };
        self.pods.get(&name).map(|pod| pod.metadata.uid.as_str())
    }

    /// Whether objects of a kind are followed at this moment, or are about to be.
    pub fn is_followed(&self, resource: Resource) -> bool {
        !self.down.contains_key(&resource)
    }

    /// What is wrong, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (resource, reason) in &self.down {
            reasons.entry(reason).or_default().push(resource.name());
        }
        let down = reasons.into_iter().map(|(reason, of)| format!("{} can't be followed: {reason}", of.join(", ")));
        let refused = self.refused.iter().map(|((resource, name), why)| format!("{} {name}: {why}", resource.name()));
        let rest = self.refused.len().saturating_sub(MAX_TOLD);
        let rest = (rest > 0).then(|| format!("{rest} more objects can't be taken"));
        down.chain(refused.take(MAX_TOLD)).chain(rest).collect()
    }

    fn put(&mut self, resource: Resource, name: Name, thing: Thing, effects: &mut Effects) {
        let key = (resource, name);
        self.refused.remove(&key);
        match thing {
            Thing::Invalid(why) => drop(self.refused.insert(key, why)),
            Thing::Node(node) => {
                effects.nodes |= self.nodes.get(&*key.1.name) != Some(&node);
                self.nodes.insert(key.1.name.into(), node);
            }
            Thing::Pod(pod) => {
                effects.pods = true;
                self.pods.insert(key.1, pod);
            }
            Thing::Namespace(namespace) => {
                effects.pods = true;
                self.namespaces.insert(key.1.name.into(), namespace.metadata.annotations);
            }
            Thing::Service(object) => {
                if self.objects.get(&key) != Some(&object) {
                    let source = source(&key);
                    effects.events.push(Event::Services { source, objects: vec![object.clone()] });
                }
                self.objects.insert(key, object);
            }
        }
    }

    fn remove(&mut self, resource: Resource, name: &Name, effects: &mut Effects) {
        let key = (resource, name.clone());
        self.refused.remove(&key);
        match resource {
            Resource::Nodes => effects.nodes |= self.nodes.remove(&*name.name).is_some(),
            Resource::Pods => drop(self.pods.remove(name)),
            Resource::Namespaces => drop(self.namespaces.remove(&*name.name)),
            Resource::Services | Resource::EndpointSlices => {
                if self.objects.remove(&key).is_some() {
                    effects.events.push(Event::Services { source: source(&key), objects: Vec::new() });
                }
            }
        }
    }

    /// What is known of a kind and is not in a list of all.
    fn missing(&self, resource: Resource, things: &[(Name, Thing)]) -> Vec<Name> {
        let listed: BTreeSet<&Name> = things.iter().map(|(name, _)| name).collect();
        let plain = |name: &String| Name { name: name.as_str().into(), ..Name::default() };
        let of = |keys: &mut dyn Iterator<Item = &(Resource, Name)>| -> Vec<Name> {
            keys.filter(|(of, _)| *of == resource).map(|(_, name)| name.clone()).collect()
        };
        let mut known = match resource {
            Resource::Nodes => self.nodes.keys().map(plain).collect(),
            Resource::Pods => self.pods.keys().cloned().collect(),
            Resource::Namespaces => self.namespaces.keys().map(plain).collect(),
            Resource::Services | Resource::EndpointSlices => of(&mut self.objects.keys()),
        };
        known.extend(of(&mut self.refused.keys()));
        known.retain(|name| !listed.contains(name));
        known
    }
}

/// Each object is a source of its own: one that is another touches no other.
fn source((resource, name): &(Resource, Name)) -> Arc<str> {
    format!("kubernetes {}/{name}", resource.name()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn name(namespace: &str, name: &str) -> Name {
        Name { namespace: namespace.into(), name: name.into() }
    }

    fn put(resource: Resource, value: Value) -> Told {
        let text = |key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
        let name = Name { namespace: text("namespace").into(), name: text("name").into() };
        Told { resource, news: News::Put(name, Thing::read(resource, value).into()) }
    }

    fn service(name: &str, port: u16) -> Value {
        json!({
            "metadata": {"namespace": "default", "name": name, "managedFields": [{"x": 1}]},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": port}]}
        })
    }

    fn sources(effects: &Effects) -> Vec<(String, usize)> {
        let of = |event: &Event| match event {
            Event::Services { source, objects } => (source.to_string(), objects.len()),
            other => panic!("{other:?}"),
        };
        effects.events.iter().map(of).collect()
    }

    #[test]
    fn a_change_is_one_event_and_no_change_is_none() {
        let mut known = Known::default();
        let effects = known.take(put(Resource::Services, service("web", 80)));
        assert_eq!(sources(&effects), [("kubernetes services/default/web".into(), 1)]);
        assert!(known.take(put(Resource::Services, service("web", 80))).events.is_empty());
        assert_eq!(known.take(put(Resource::Services, service("web", 81))).events.len(), 1);
        let gone = Told { resource: Resource::Services, news: News::Deleted(name("default", "web")) };
        assert_eq!(sources(&known.take(gone.clone())), [("kubernetes services/default/web".into(), 0)]);
        assert!(known.take(gone).events.is_empty());
    }

    #[test]
    fn a_list_of_all_takes_away_what_is_not_in_it() {
        let mut known = Known::default();
        for name in ["a", "b"] {
            known.take(put(Resource::Services, service(name, 80)));
        }
        let thing = Thing::read(Resource::Services, service("b", 80));
        let told = Told { resource: Resource::Services, news: News::Listed(vec![(name("default", "b"), thing)]) };
        assert_eq!(sources(&known.take(told)), [("kubernetes services/default/a".into(), 0)]);
    }

    #[test]
    fn what_cannot_be_is_told_and_what_was_there_before_stays() {
        let mut known = Known::default();
        known.take(put(Resource::Services, service("web", 80)));
        assert!(known.take(put(Resource::Services, service("web", 0))).events.is_empty());
        assert_eq!(known.problems(), ["services default/web: spec.ports[0].port: 0 is no port"]);
        assert_eq!(known.kept().objects.len(), 1);
        known.take(put(Resource::Services, service("web", 80)));
        assert!(known.problems().is_empty());
        known.take(put(Resource::Services, service("other", 0)));
        known.take(Told { resource: Resource::Services, news: News::Listed(Vec::new()) });
        assert!(known.problems().is_empty() && known.kept().objects.is_empty());
    }

    #[test]
    fn nothing_is_withdrawn_while_the_server_is_gone() {
        let mut known = Known::default();
        known.take(put(Resource::Nodes, json!({"metadata": {"name": "n1"}})));
        for resource in Resource::ALL {
            let effects = known.take(Told { resource, news: News::Down("connection refused".into()) });
            assert!(effects.events.is_empty() && !effects.nodes && !effects.pods);
        }
        assert!(known.nodes().contains_key("n1") && !known.is_followed(Resource::Pods));
        let all = "nodes, pods, namespaces, services, endpointslices can't be followed: connection refused";
        assert_eq!(known.problems(), [all]);
        known.take(Told { resource: Resource::Pods, news: News::Up });
        assert!(known.is_followed(Resource::Pods));
    }

    #[test]
    fn a_node_whose_health_was_seen_again_is_no_other() {
        let mut known = Known::default();
        let node = |time: &str, ready: &str| {
            let conditions = json!([
                {"type": "Ready", "status": ready, "lastHeartbeatTime": time},
                {"type": "NetworkUnavailable", "status": "False", "lastHeartbeatTime": time}
            ]);
            json!({"metadata": {"name": "n1", "annotations": {"seen": time}}, "status": {"conditions": conditions}})
        };
        assert!(known.take(put(Resource::Nodes, node("1", "True"))).nodes);
        assert!(!known.take(put(Resource::Nodes, node("2", "False"))).nodes);
        assert!(known.nodes()["n1"].has_network());
    }

    #[test]
    fn wishes_are_those_of_the_very_pod_and_its_namespace() {
        let mut known = Known::default();
        let metadata = json!({
            "namespace": "apps", "name": "web-0", "uid": "u2",
            "annotations": {"tapir.dev/ipAddrs": "[\"10.0.0.9\"]"}
        });
        assert!(known.take(put(Resource::Pods, json!({ "metadata": metadata }))).pods);
        let namespace = json!({"name": "apps", "annotations": {"tapir.dev/ipv4pools": "[\"10.0.0.0/24\"]"}});
        assert!(known.take(put(Resource::Namespaces, json!({ "metadata": namespace }))).pods);
        let wishes = known.wishes("apps", "web-0", "u2").unwrap().unwrap();
        assert_eq!((wishes.addresses.len(), wishes.pools.len()), (1, 1));
        assert!(known.wishes("apps", "web-0", "u1").is_none(), "of the pod that had the name before");
        assert!(known.wishes("apps", "web-1", "").is_none() && known.wishes("other", "web-0", "").is_none());
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let mut known = Known::default();
        known.take(put(Resource::Nodes, json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24"}})));
        known.take(put(Resource::Services, service("web", 80)));
        let slice = json!({
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.7"]}], "ports": [{"port": 80}]
        });
        known.take(put(Resource::EndpointSlices, slice));
        let kept = known.kept();
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
        let mut again = Known::default();
        let effects = again.remember(kept.clone());
        assert!(effects.nodes);
        assert_eq!(effects.events.len(), 2);
        assert_eq!(again.kept(), kept);
    }
}
