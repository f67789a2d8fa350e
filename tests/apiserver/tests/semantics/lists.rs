//! Lists, pages, selectors.

use serde_json::{Value, json};
use tapir_apiserver::Handle;

use crate::http::{config_map, get, node, pod, reason, send, server, version};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

fn put_pods(handle: &Handle) {
    for (name, node, app) in [("a", "n1", "x"), ("b", "n1", "y"), ("c", "n2", "x")] {
        handle.put("pods", pod(name, node, app)).unwrap();
    }
    let mut other = pod("d", "n2", "z");
    other["metadata"]["namespace"] = json!("other");
    other["metadata"]["labels"] = json!({ "tier": "back" });
    handle.put("pods", other).unwrap();
}

#[tokio::test]
async fn selectors_select() {
    let (_server, handle) = server().await;
    put_pods(&handle);
    let cases = [
        ("labelSelector=app%3Dx", "a c"),
        ("labelSelector=app==x,app", "a c"),
        ("labelSelector=app!=x", "b d"),
        ("labelSelector=app%20in%20(x,y)", "a b c"),
        ("labelSelector=app+in+(y),app+notin+(x)", "b"),
        ("labelSelector=app%20notin%20(x,y)", "d"),
        ("labelSelector=!app", "d"),
        ("labelSelector=tier", "d"),
        ("fieldSelector=spec.nodeName%3Dn1", "a b"),
        ("fieldSelector=spec.nodeName!%3Dn1", "c d"),
        ("fieldSelector=metadata.namespace%3Dother", "d"),
        ("fieldSelector=metadata.name%3Db", "b"),
        ("fieldSelector=spec.nodeName%3Dn2&labelSelector=app%3Dx", "c"),
        ("", "a b c d"),
    ];
    for (query, expected) in cases {
        let (code, list) = get(&handle, &format!("/api/v1/pods?{query}")).await;
        assert_eq!((code, names(&list).join(" ")), (200, expected.to_owned()), "{query}");
    }
    let (_, list) = get(&handle, "/api/v1/namespaces/default/pods?labelSelector=!app").await;
    assert!(names(&list).is_empty(), "a list of a namespace is of it only");
    for wrong in
        ["fieldSelector=spec.hostNetwork%3Dtrue", "labelSelector=app+within+(x)", "labelSelector=%3Dx", "limit=x"]
    {
        assert_eq!(reason(&get(&handle, &format!("/api/v1/pods?{wrong}")).await), (400, "BadRequest"), "{wrong}");
    }
    assert_eq!(reason(&get(&handle, "/api/v1/nodes?fieldSelector=spec.nodeName%3Dn1").await), (400, "BadRequest"));
    handle.put("events", json!({ "metadata": { "name": "e" }, "involvedObject": { "name": "a" } })).unwrap();
    let (_, list) = get(&handle, "/api/v1/events?fieldSelector=involvedObject.name%3Da").await;
    assert_eq!(names(&list), ["e"]);
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let (_server, handle) = server().await;
    for n in 0..5 {
        handle.put("nodes", node(&format!("n{n}"))).unwrap();
    }
    let begun = handle.revision();
    let (_, first) = get(&handle, "/api/v1/nodes?limit=2").await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["n0", "n1"], &json!(3)));
    handle.delete("nodes", "n2").unwrap();
    handle.put("nodes", node("n9")).unwrap();
    let mut changed = node("n3");
    changed["spec"]["podCIDR"] = json!("10.9.9.0/24");
    handle.put("nodes", changed).unwrap();
    let next =
        |page: &Value| format!("/api/v1/nodes?limit=2&continue={}", page["metadata"]["continue"].as_str().unwrap());
    let (_, second) = get(&handle, &next(&first)).await;
    assert_eq!((names(&second), version(&second)), (vec!["n2", "n3"], begun));
    assert_eq!(second["items"][1]["spec"]["podCIDR"], "10.0.0.0/24", "as it was");
    let (_, third) = get(&handle, &next(&second)).await;
    assert_eq!((names(&third), third["metadata"].get("continue")), (vec!["n4"], None));
    let exact = format!("/api/v1/nodes?resourceVersion={begun}&resourceVersionMatch=Exact");
    assert_eq!(names(&get(&handle, &exact).await.1).len(), 5);
    handle.compact();
    assert_eq!(reason(&get(&handle, &next(&second)).await), (410, "Expired"));
    assert_eq!(reason(&get(&handle, &exact).await), (410, "Expired"));
    assert_eq!(reason(&get(&handle, "/api/v1/nodes?continue=nonsense").await), (400, "BadRequest"));
    let future = format!("/api/v1/nodes?resourceVersion={}", handle.revision() + 10);
    assert_eq!(reason(&get(&handle, &future).await), (504, "Timeout"));
}

#[tokio::test]
async fn items_of_built_in_resources_leave_their_kind_to_the_list() {
    let (_server, handle) = server().await;
    handle.put("nodes", node("a")).unwrap();
    handle.put("entries.tapir.dev", json!({ "metadata": { "name": "a" } })).unwrap();
    let (_, nodes) = get(&handle, "/api/v1/nodes").await;
    assert_eq!((&nodes["kind"], nodes["items"][0].get("kind")), (&json!("NodeList"), None));
    let (_, entries) = get(&handle, "/apis/tapir.dev/v1/entries").await;
    assert_eq!((&entries["kind"], &entries["items"][0]["kind"]), (&json!("EntryList"), &json!("Entry")));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let (_server, handle) = server().await;
    put_pods(&handle);
    send(&handle, "DELETE", "/api/v1/namespaces/default/pods?labelSelector=app%3Dx", Value::Null).await;
    assert_eq!(handle.list("pods").len(), 2);
}

#[tokio::test]
async fn a_namespace_goes_with_what_is_in_it() {
    let (_server, handle) = server().await;
    put_pods(&handle);
    let space = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": "other" } });
    assert_eq!(send(&handle, "POST", "/api/v1/namespaces", space).await.0, 201);
    assert_eq!(get(&handle, "/api/v1/namespaces/other").await.0, 200);
    assert_eq!(send(&handle, "DELETE", "/api/v1/namespaces/other", Value::Null).await.0, 200);
    assert_eq!((handle.list("pods").len(), handle.get("pods", "other/d")), (3, None));
}

#[tokio::test]
async fn a_large_cluster_is_listed_whole() {
    let (_server, handle) = server().await;
    for n in 0..5000 {
        handle.put("pods", pod(&format!("p{n}"), &format!("n{}", n % 1000), "x")).unwrap();
    }
    for n in 0..1000 {
        handle.put("nodes", node(&format!("n{n}"))).unwrap();
    }
    for n in 0..2000 {
        handle
            .put("services", json!({ "metadata": { "name": format!("s{n}") }, "spec": { "clusterIP": "None" } }))
            .unwrap();
    }
    for (path, count) in
        [("pods", 5000), ("nodes", 1000), ("services", 2000), ("pods?fieldSelector=spec.nodeName%3Dn7", 5)]
    {
        let (_, list) = get(&handle, &format!("/api/v1/{path}")).await;
        assert_eq!(names(&list).len(), count, "{path}");
    }
    let (mut pages, mut all, mut path) = (0, Vec::new(), "/api/v1/pods?limit=500".to_owned());
    loop {
        let (_, page) = get(&handle, &path).await;
        all.extend(names(&page).into_iter().map(str::to_owned));
        pages += 1;
        // What happens between the pages is in none of them.
        handle.put("pods", pod(&format!("new{pages}"), "n1", "x")).unwrap();
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        path = format!("/api/v1/pods?limit=500&continue={token}");
    }
    all.dedup();
    assert_eq!((pages, all.len()), (10, 5000));
}

#[tokio::test]
async fn what_the_handle_puts_is_kept_as_it_is() {
    let (_server, handle) = server().await;
    let mut object = node("a");
    object["status"] = json!({ "phase": "x" });
    let stored = handle.put("nodes", object.clone()).unwrap();
    assert_eq!(get(&handle, "/api/v1/nodes/a").await, (200, stored.clone()));
    assert_eq!(stored["status"], object["status"]);
    let again = handle.put("nodes", object).unwrap();
    assert_eq!(again["metadata"]["uid"], stored["metadata"]["uid"], "it is the same object");
    assert!(handle.delete("nodes", "a").unwrap().is_some());
    assert_eq!(handle.delete("nodes", "a").unwrap(), None);
    assert!(handle.put("nothing", config_map("a")).is_err());
}
