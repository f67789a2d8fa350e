//! The tasks that follow the API server, and the one that tells it something.

use std::time::SystemTime;

use serde_json::{Value, json};
use tapir_cni::protocol::PodRef;
use tapir_kube::{Client, Followed, Patch, Selection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Report, Scope};
use crate::cluster::kubernetes::Settings;
use crate::control::service::object::Name;
use crate::source::kubernetes::object::NETWORK_UNAVAILABLE;
use crate::source::kubernetes::{News, Resource, Thing, Told};

/// As much that was told may wait; then the server waits.
const WAITING: usize = 64;
/// As many reports may wait; those that are too many are not made.
const REPORTS: usize = 64;
/// The longest message of an event, in characters (`k8s.io/api/core/v1` takes 1,024 bytes).
const MAX_MESSAGE: usize = 250;
/// Who says it.
const COMPONENT: &str = "tapird";

/// A contact with an API server. Ends when dropped.
#[derive(Debug)]
pub struct Link {
    reports: mpsc::Sender<Report>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Link {
    /// Begins to follow, inside a tokio runtime. Contacts nobody before it returns.
    ///
    /// # Errors
    /// Why nobody can be followed: which file is missing or wrong.
    pub fn start(settings: &Settings, scope: &Scope) -> Result<(Self, mpsc::Receiver<Told>), String> {
        let client = Client::new(&settings.into()).map_err(|error| error.to_string())?;
        let (told, receiver) = mpsc::channel(WAITING);
        let (reports, asked) = mpsc::channel(REPORTS);
        let mut tasks = JoinSet::new();
        for resource in Resource::ALL {
            let followed = client.follow(of(resource), selection(resource, scope));
            tasks.spawn(pass_on(resource, followed, told.clone()));
        }
        tasks.spawn(report(client, asked));
        Ok((Self { reports, _tasks: tasks }, receiver))
    }

    /// Tells Kubernetes something, if it can be reached and there is not too much to tell already.
    pub fn report(&self, report: Report) {
        if self.reports.try_send(report).is_err() {
            tracing::debug!("there is too much to tell Kubernetes; left out");
        }
    }
}

const fn of(resource: Resource) -> tapir_kube::Resource {
    match resource {
        Resource::Nodes => tapir_kube::NODES,
        Resource::Pods => tapir_kube::PODS,
        Resource::Namespaces => tapir_kube::NAMESPACES,
        Resource::Services => tapir_kube::SERVICES,
        Resource::EndpointSlices => tapir_kube::ENDPOINT_SLICES,
    }
}

fn selection(resource: Resource, scope: &Scope) -> Selection {
    let node = &scope.node;
    match resource {
        Resource::Nodes if !scope.all_nodes => Selection::default().fields(format!("metadata.name={node}")),
        Resource::Pods => Selection::default().fields(format!("spec.nodeName={node}")),
        _ => Selection::default(),
    }
}

/// Reads what was followed, and passes it on; ends when nobody takes it.
async fn pass_on(resource: Resource, mut followed: mpsc::Receiver<Followed>, told: mpsc::Sender<Told>) {
    while let Some(followed) = followed.recv().await {
        let news = match followed {
            Followed::Listed(objects) => {
                News::Listed(objects.into_iter().map(|object| read(resource, object)).collect())
            }
            Followed::Put(object) => {
                let (name, thing) = read(resource, object);
                News::Put(name, thing.into())
            }
            Followed::Deleted(object) => News::Deleted(name(&object)),
            Followed::Down { reason } => News::Down(reason.to_string()),
            Followed::Up => News::Up,
        };
        if told.send(Told { resource, news }).await.is_err() {
            return;
        }
    }
}

fn name(object: &tapir_kube::Object) -> Name {
    Name { namespace: object.namespace.as_deref().unwrap_or_default().into(), name: object.name.as_str().into() }
}

fn read(resource: Resource, object: tapir_kube::Object) -> (Name, Thing) {
    let name = name(&object);
    let mut value = object.value;
    if resource == Resource::EndpointSlices {
        place(&mut value);
    }
    (name, Thing::read(resource, value))
}

/// Of an endpoint `v1beta1` says in `topology` where it is.
fn place(slice: &mut Value) {
    let endpoints = slice.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten() {
        let node = endpoint.pointer("/topology/kubernetes.io~1hostname").cloned();
        if let (Some(node), Some(endpoint)) = (node, endpoint.as_object_mut()) {
            endpoint.entry("nodeName").or_insert(node);
        }
    }
}

/// Tells one thing after the other, each once: what is still true is told again by whoever wants it told.
async fn report(client: Client, mut asked: mpsc::Receiver<Report>) {
    while let Some(report) = asked.recv().await {
        let told = match &report {
            Report::Network { node } => {
                let patch = condition();
                client.patch_status(&tapir_kube::NODES, None, node, Patch::Strategic, &patch).await
            }
            Report::Refused { pod, node, message } => {
                let namespace = pod.namespace.as_str();
                client.create(&tapir_kube::EVENTS, Some(namespace), &event(pod, node, message)).await
            }
        };
        if let Err(error) = told {
            tracing::warn!(%error, "Kubernetes could not be told");
        }
    }
}

fn condition() -> Value {
    let now = tapir_kube::micro_time(SystemTime::now());
    json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": "TapirIsUp",
        "message": "tapird forwards for this node's pods",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }]}})
}

fn event(pod: &PodRef, node: &str, message: &str) -> Value {
    let now = tapir_kube::micro_time(SystemTime::now());
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": pod.namespace, "generateName": format!("{}.", pod.name)},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        },
        "type": "Warning",
        "reason": "FailedNetwork",
        "message": message,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}
