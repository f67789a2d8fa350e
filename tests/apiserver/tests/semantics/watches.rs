//! Watches.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{PATIENCE, Watch, config_map, get, node, patch, pod, send, server, version};

fn event(kind: &str, name: &str, version: u64) -> (String, String, u64) {
    (kind.into(), name.into(), version)
}

#[tokio::test]
async fn a_watch_begins_with_what_there_is() {
    let (_server, handle) = server().await;
    let a = version(&handle.put("nodes", node("a")).unwrap());
    for version in ["", "&resourceVersion=0"] {
        let mut watch = Watch::open(&handle, &format!("/api/v1/nodes?watch=true{version}")).await;
        assert_eq!(watch.told().await, event("ADDED", "a", a));
        let b = version_of_new(&handle, "b");
        assert_eq!(watch.told().await, event("ADDED", "b", b));
        handle.delete("nodes", "b").unwrap();
        assert_eq!(watch.told().await, event("DELETED", "b", b + 1), "a deletion has a version of its own");
    }
}

fn version_of_new(handle: &tapir_apiserver::Handle, name: &str) -> u64 {
    version(&handle.put("nodes", node(name)).unwrap())
}

#[tokio::test]
async fn a_watch_goes_on_from_a_list() {
    let (_server, handle) = server().await;
    handle.put("nodes", node("a")).unwrap();
    let (_, list) = get(&handle, "/api/v1/nodes").await;
    let from = version(&list);
    // Between the list and the watch.
    send(&handle, "POST", "/api/v1/nodes", node("b")).await;
    handle.put("configmaps", config_map("elsewhere")).unwrap();
    patch(&handle, "/api/v1/nodes/a", "merge-patch+json", json!({ "metadata": { "labels": { "x": "y" } } })).await;
    send(&handle, "DELETE", "/api/v1/nodes/b", Value::Null).await;
    let mut watch = Watch::open(&handle, &format!("/api/v1/nodes?watch=1&resourceVersion={from}")).await;
    assert_eq!(watch.told().await, event("ADDED", "b", from + 1));
    let modified = watch.next().await;
    assert_eq!((&modified["type"], &modified["object"]["kind"]), (&json!("MODIFIED"), &json!("Node")));
    assert_eq!(version(&modified["object"]), from + 3);
    assert_eq!(watch.told().await, event("DELETED", "b", from + 4));
}

#[tokio::test]
async fn what_stops_to_match_is_deleted_for_the_watch() {
    let (_server, handle) = server().await;
    let from = handle.revision();
    let path = format!("/api/v1/namespaces/default/pods?watch=1&labelSelector=app%3Dx&resourceVersion={from}");
    let mut watch = Watch::open(&handle, &path).await;
    handle.put("pods", pod("a", "n", "x")).unwrap();
    handle.put("pods", pod("other", "n", "y")).unwrap();
    handle.put("pods", pod("a", "n", "y")).unwrap();
    handle.put("pods", pod("a", "n", "x")).unwrap();
    let mut elsewhere = pod("b", "n", "x");
    elsewhere["metadata"]["namespace"] = json!("elsewhere");
    handle.put("pods", elsewhere).unwrap();
    handle.put("pods", pod("a", "m", "x")).unwrap();
    assert_eq!(watch.told().await, event("ADDED", "a", from + 1));
    let left = watch.next().await;
    assert_eq!((&left["type"], version(&left["object"])), (&json!("DELETED"), from + 3));
    assert_eq!(left["object"]["metadata"]["labels"]["app"], "x", "as it was while it matched");
    assert_eq!(watch.told().await, event("ADDED", "a", from + 4));
    assert_eq!(watch.told().await, event("MODIFIED", "a", from + 6));
}

#[tokio::test]
async fn one_object_can_be_watched() {
    let (_server, handle) = server().await;
    let mut by_path = Watch::open(&handle, "/api/v1/nodes/a?watch=1").await;
    let mut by_field = Watch::open(&handle, "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Da").await;
    handle.put("nodes", node("b")).unwrap();
    let a = version_of_new(&handle, "a");
    assert_eq!(by_path.told().await, event("ADDED", "a", a));
    assert_eq!(by_field.told().await, event("ADDED", "a", a));
}

#[tokio::test]
async fn bookmarks_tell_how_far_a_watch_is() {
    let (_server, handle) = server().await;
    let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1&allowWatchBookmarks=true").await;
    handle.put("configmaps", config_map("elsewhere")).unwrap();
    let bookmark = loop {
        let event = watch.next().await;
        assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("BOOKMARK"), &json!("Node")));
        if version(&event["object"]) == handle.revision() {
            break event;
        }
    };
    handle.compact();
    let path = format!("/api/v1/nodes?watch=1&resourceVersion={}", version(&bookmark["object"]));
    let mut watch = Watch::open(&handle, &path).await;
    let a = version_of_new(&handle, "a");
    assert_eq!(watch.told().await, event("ADDED", "a", a));
}

#[tokio::test]
async fn the_end_of_what_there_was_is_marked_on_demand() {
    let (_server, handle) = server().await;
    handle.put("nodes", node("a")).unwrap();
    let query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut watch = Watch::open(&handle, &format!("/api/v1/nodes?{query}")).await;
    assert_eq!(watch.next().await["type"], "ADDED");
    assert_eq!(watch.next().await["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_watch_of_the_compacted_past_expires() {
    let (_server, handle) = server().await;
    let from = handle.revision();
    handle.put("nodes", node("a")).unwrap();
    handle.compact();
    let mut watch = Watch::open(&handle, &format!("/api/v1/nodes?watch=1&resourceVersion={from}")).await;
    let error = watch.next().await;
    let status = &error["object"];
    assert_eq!((&error["type"], &status["kind"], &status["code"]), (&json!("ERROR"), &json!("Status"), &json!(410)));
    assert_eq!(status["reason"], "Expired");
    assert_eq!(watch.try_next().await.unwrap(), None, "it ends with that");
}

#[tokio::test]
async fn history_is_bounded() {
    let options = tapir_apiserver::Options { history: 3, ..Default::default() };
    let server = tapir_apiserver::ApiServer::start(options).await.unwrap();
    let handle = server.handle();
    let from = handle.revision();
    (0..4).for_each(|n| drop(handle.put("nodes", node(&format!("n{n}"))).unwrap()));
    let open = async |from| Watch::open(&handle, &format!("/api/v1/nodes?watch=1&resourceVersion={from}")).await;
    assert_eq!(open(from).await.next().await["object"]["code"], 410);
    assert_eq!(open(from + 1).await.told().await, event("ADDED", "n1", from + 2));
}

#[tokio::test]
async fn a_watch_ends_at_its_time() {
    let (_server, handle) = server().await;
    let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1&timeoutSeconds=1").await;
    assert_eq!(handle.open_watches(), 1);
    assert_eq!(watch.try_next().await.unwrap(), None);
    open_watches(&handle, 0).await;
    let left = Watch::open(&handle, "/api/v1/nodes?watch=1").await;
    open_watches(&handle, 1).await;
    drop(left);
    open_watches(&handle, 0).await;
}

async fn open_watches(handle: &tapir_apiserver::Handle, wanted: usize) {
    let all = async {
        while handle.open_watches() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("{} watches are open", handle.open_watches()));
}
