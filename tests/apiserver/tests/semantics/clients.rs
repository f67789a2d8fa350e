//! The crate `kube`: what it makes of the stand-in's answers.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Error, ResourceExt};
use serde_json::json;
use tapir_apiserver::Handle;
use tokio::time::timeout;

use crate::http::{PATIENCE, node, pod, server};

fn client(handle: &Handle) -> Client {
    Client::try_from(Config::new(handle.url().parse().unwrap())).unwrap()
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result.unwrap_err() {
        Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_typed_client_reads_and_writes() {
    let (_server, handle) = server().await;
    let leases: Api<Lease> = Api::namespaced(client(&handle), "kube-system");
    let lease =
        serde_json::from_value(json!({ "metadata": { "name": "a" }, "spec": { "holderIdentity": "n1" } })).unwrap();
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    assert_eq!(made.namespace().as_deref(), Some("kube-system"));
    assert_eq!(code(leases.create(&PostParams::default(), &lease).await), 409);
    let mut mine = made.clone();
    mine.spec.as_mut().unwrap().holder_identity = Some("n2".into());
    leases.replace("a", &PostParams::default(), &mine).await.unwrap();
    assert_eq!(code(leases.replace("a", &PostParams::default(), &mine).await), 409, "somebody was faster");
    let stale = DeleteParams::default()
        .preconditions(kube::api::Preconditions { resource_version: made.resource_version(), uid: None });
    assert_eq!(code(leases.delete("a", &stale).await), 409);
    assert!(leases.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert_eq!(leases.get_opt("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_typed_client_patches_status() {
    let (_server, handle) = server().await;
    handle.put("nodes", node("a")).unwrap();
    let nodes: Api<Node> = Api::all(client(&handle));
    let condition = json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] } });
    let patched = nodes.patch_status("a", &PatchParams::default(), &Patch::Strategic(condition)).await.unwrap();
    assert_eq!(patched.status.unwrap().conditions.unwrap()[0].type_, "NetworkUnavailable");
    let labels = json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "labels": { "x": "y" } } });
    nodes.patch("a", &PatchParams::apply("test"), &Patch::Apply(labels)).await.unwrap();
    let found = nodes.list(&ListParams::default().labels("x=y")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].status.as_ref().unwrap().conditions.as_ref().unwrap().len(), 1);
}

/// Follows a watcher until its view is `wanted`.
async fn follow<S>(events: &mut S, view: &mut BTreeSet<String>, wanted: &[&str])
where
    S: futures_util::Stream<Item = watcher::Result<watcher::Event<Node>>> + Unpin,
{
    let mut listed = BTreeSet::new();
    let mut whole = true;
    while !whole || !view.iter().map(String::as_str).eq(wanted.iter().copied()) {
        let event =
            timeout(PATIENCE, events.next()).await.unwrap_or_else(|_| panic!("it stays at {view:?}, not {wanted:?}"));
        match event.unwrap() {
            // The watcher says so and tries again.
            Err(_) => {}
            Ok(watcher::Event::Init) => {
                listed.clear();
                whole = false;
            }
            Ok(watcher::Event::InitApply(node)) => drop(listed.insert(node.name_any())),
            Ok(watcher::Event::InitDone) => {
                *view = std::mem::take(&mut listed);
                whole = true;
            }
            Ok(watcher::Event::Apply(node)) => drop(view.insert(node.name_any())),
            Ok(watcher::Event::Delete(node)) => drop(view.remove(&node.name_any())),
        }
    }
}

#[tokio::test]
async fn a_watcher_follows_through_cuts_and_expiry() {
    for config in [watcher::Config::default().page_size(2), watcher::Config::default().streaming_lists()] {
        let (_server, handle) = server().await;
        ["a", "b", "c"].iter().for_each(|name| drop(handle.put("nodes", node(name)).unwrap()));
        let nodes: Api<Node> = Api::all(client(&handle));
        let mut events = pin!(watcher(nodes, config).default_backoff());
        let mut view = BTreeSet::new();
        follow(&mut events, &mut view, &["a", "b", "c"]).await;
        handle.delete("nodes", "a").unwrap();
        follow(&mut events, &mut view, &["b", "c"]).await;
        let lists = handle.requests("list", "nodes");

        handle.cut_watches();
        handle.put("nodes", node("d")).unwrap();
        follow(&mut events, &mut view, &["b", "c", "d"]).await;
        assert_eq!(handle.requests("list", "nodes"), lists, "it goes on where it was");

        handle.gone().unwrap();
        handle.delete("nodes", "b").unwrap();
        handle.put("nodes", node("e")).unwrap();
        handle.compact();
        handle.back().unwrap();
        follow(&mut events, &mut view, &["c", "d", "e"]).await;
        assert!(lists == 0 || handle.requests("list", "nodes") > lists, "it had to list again");
    }
}

#[tokio::test]
async fn a_watcher_of_a_nodes_pods_sees_no_others() {
    let (_server, handle) = server().await;
    handle.put("pods", pod("mine", "n1", "x")).unwrap();
    handle.put("pods", pod("other", "n2", "x")).unwrap();
    let pods: Api<Pod> = Api::all(client(&handle));
    let config = watcher::Config::default().fields("spec.nodeName=n1");
    let mut events = pin!(watcher(pods, config).applied_objects());
    let mut next = async || timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap().name_any();
    assert_eq!(next().await, "mine");
    handle.put("pods", pod("other", "n2", "y")).unwrap();
    handle.put("pods", pod("second", "n1", "x")).unwrap();
    assert_eq!(next().await, "second");
}
