//! The client: pages, watches, and following for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tapir_apiserver::{Options, Refusal};
use tapir_kube::{
    Client, ENDPOINT_SLICES, Error, Followed, NODES, PODS, Patch, Preconditions, Selection, Settings, Told,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Server;
use super::suite::PATIENCE;

fn client(server: &Server, timeout: Duration) -> Client {
    let settings = Settings { kubeconfig: Some(server.kubeconfig()), timeout, ..Settings::default() };
    Client::new(&settings).unwrap()
}

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "web", "labels": {"app": "a"}}, "spec": {"nodeName": node}})
}

async fn next(followed: &mut mpsc::Receiver<Followed>) -> Followed {
    timeout(PATIENCE, followed.recv()).await.expect("word in time").expect("it follows")
}

#[tokio::test]
async fn what_is_selected_is_listed_and_watched() {
    let server = Server::start(Options::default());
    for number in 0..1200 {
        server.handle.put("pods", pod(&format!("p{number:04}"), if number % 2 == 0 { "n" } else { "m" })).unwrap();
    }
    let client = client(&server, Duration::from_secs(20));
    let selection = Selection::default().fields("spec.nodeName=n").labels("app=a");
    let (pods, version) = client.list(&PODS, &selection).await.unwrap();
    let names: BTreeSet<_> = pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!((pods.len(), names.len()), (600, 600));
    assert_eq!((pods[0].namespace.as_deref(), &pods[0].value["kind"]), (Some("web"), &json!("Pod")));
    let mut watch = client.watch(&PODS, &selection, &version).await.unwrap();
    server.handle.put("pods", pod("other", "m")).unwrap();
    server.handle.put("pods", pod("ours", "n")).unwrap();
    server.handle.delete("pods", "web/ours").unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        match timeout(PATIENCE, watch.next()).await.unwrap().unwrap() {
            Told::Put(object) => told.push(format!("+{}", object.name)),
            Told::Deleted(object) => told.push(format!("-{}", object.name)),
            Told::Bookmark(_) => {}
        }
    }
    assert_eq!(told, ["+ours", "-ours"]);
    let (all, _) = client.list(&PODS, &Selection::default().namespace("web")).await.unwrap();
    assert_eq!(all.len(), 1201, "in pages");
    assert_eq!(client.list(&PODS, &Selection::default().namespace("none")).await.unwrap().0, []);
    assert_eq!(client.list(&ENDPOINT_SLICES, &Selection::default()).await.unwrap().0, []);
}

#[tokio::test]
async fn a_write_is_done_once_and_as_expected() {
    let server = Server::start(Options::default());
    let client = client(&server, Duration::from_secs(20));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {}});
    let made = client.create(&NODES, None, &node).await.unwrap();
    assert!(matches!(client.create(&NODES, None, &node).await, Err(Error::AlreadyExists { .. })));
    let condition = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}});
    let patched = client.patch_status(&NODES, None, "n", Patch::Strategic, &condition).await.unwrap();
    assert_eq!(patched.value["status"]["conditions"][0]["status"], "False");
    let old = json!({"metadata": {"resourceVersion": made.resource_version}, "spec": {"unschedulable": true}});
    assert!(matches!(client.merge_patch(&NODES, None, "n", &old).await, Err(Error::Conflict { .. })));
    let expected = Preconditions { uid: Some("another".into()), resource_version: None };
    assert!(matches!(client.delete(&NODES, None, "n", &expected).await, Err(Error::Conflict { .. })));
    client.delete(&NODES, None, "n", &Preconditions::default()).await.unwrap();
    let error = client.get(&NODES, None, "n").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    // Nothing is tried again behind our back: a busy server is asked once.
    server.handle.refuse(Some(Refusal { code: 429, retry_after: Some(9), times: None }));
    let before = server.handle.requests("create", "nodes");
    let error = client.create(&NODES, None, &node).await.unwrap_err();
    assert!(matches!(error, Error::Throttled { retry_after, .. } if retry_after == Duration::from_secs(9)), "{error}");
    assert_eq!(server.handle.requests("create", "nodes"), before + 1);
}

#[tokio::test]
async fn a_kind_is_followed_whatever_happens() {
    let server = Server::start(Options { bookmarks: Duration::from_millis(100), ..Options::default() });
    server.handle.put("nodes", json!({"metadata": {"name": "a"}})).unwrap();
    let mut followed = client(&server, Duration::from_secs(2)).follow(NODES, Selection::default());
    let names = |objects: &[tapir_kube::Object]| objects.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    match next(&mut followed).await {
        Followed::Listed(objects) => assert_eq!(names(&objects), ["a"]),
        other => panic!("{other:?}"),
    }
    // A watch that is cut is opened again; what happened meanwhile is told once.
    server.handle.cut_watches();
    server.handle.put("nodes", json!({"metadata": {"name": "b"}})).unwrap();
    let mut told = Vec::new();
    while !told.iter().any(|word| word == "+b") {
        match next(&mut followed).await {
            Followed::Put(object) => told.push(format!("+{}", object.name)),
            Followed::Down { .. } | Followed::Up => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, ["+b"]);
    // Gone: it says so and takes nothing back; forgetful when it comes back: all of it is told anew.
    server.handle.gone().unwrap();
    let reason = loop {
        match next(&mut followed).await {
            Followed::Down { reason } => break reason,
            Followed::Up => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(reason, Error::Unreachable { .. }), "{reason}");
    server.handle.delete("nodes", "a").unwrap();
    server.handle.put("nodes", json!({"metadata": {"name": "c"}})).unwrap();
    server.handle.compact();
    server.handle.back().unwrap();
    let mut up = false;
    loop {
        match next(&mut followed).await {
            Followed::Up => up = true,
            Followed::Down { .. } => {}
            Followed::Listed(objects) => break assert_eq!(names(&objects), ["b", "c"]),
            other => panic!("{other:?}"),
        }
    }
    assert!(up, "it says that it is back");
    drop(followed);
    timeout(PATIENCE, async {
        while server.handle.open_watches() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("who is not listened to stops");
}
