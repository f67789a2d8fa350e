//! Create, update, patch, delete.

use serde_json::{Value, json};

use crate::http::{config_map, get, node, patch, reason, send, server, version};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_is_created_once() {
    let (_server, handle) = server().await;
    let (code, made) = send(&handle, "POST", MAPS, config_map("a")).await;
    assert_eq!(code, 201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(version(&made), handle.revision());
    assert_eq!(reason(&send(&handle, "POST", MAPS, config_map("a")).await), (409, "AlreadyExists"));
    assert_eq!(get(&handle, &format!("{MAPS}/a")).await, (200, made));
    assert_eq!(reason(&get(&handle, &format!("{MAPS}/b")).await), (404, "NotFound"));
    assert_eq!(reason(&send(&handle, "POST", MAPS, config_map("A_b")).await), (422, "Invalid"));
    assert_eq!(reason(&send(&handle, "POST", MAPS, node("b")).await), (400, "BadRequest"));
    assert_eq!(reason(&send(&handle, "POST", "/api/v1/configmaps", config_map("b")).await).0, 405);
    assert_eq!(handle.list("configmaps").len(), 1);
}

#[tokio::test]
async fn a_name_is_generated() {
    let (_server, handle) = server().await;
    let nameless = json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "generateName": "a-" } });
    let (code, first) = send(&handle, "POST", MAPS, nameless.clone()).await;
    let (_, second) = send(&handle, "POST", MAPS, nameless).await;
    assert_eq!(code, 201);
    let names = [&first, &second].map(|object| object["metadata"]["name"].as_str().unwrap());
    assert!(names.iter().all(|name| name.starts_with("a-") && name.len() == 7), "{names:?}");
    assert_ne!(names[0], names[1]);
}

#[tokio::test]
async fn an_update_of_an_old_version_conflicts() {
    let (_server, handle) = server().await;
    let path = format!("{MAPS}/a");
    let (_, first) = send(&handle, "POST", MAPS, config_map("a")).await;
    let mut changed = first.clone();
    changed["data"]["key"] = json!("other");
    let (code, second) = send(&handle, "PUT", &path, changed.clone()).await;
    assert_eq!(code, 200);
    assert!(version(&second) > version(&first));
    assert_eq!(reason(&send(&handle, "PUT", &path, changed.clone()).await), (409, "Conflict"));
    assert_eq!(reason(&patch(&handle, &path, "merge-patch+json", first.clone()).await), (409, "Conflict"));
    assert_eq!(handle.get("configmaps", "default/a").unwrap(), second);
    let unchanged = send(&handle, "PUT", &path, second.clone()).await;
    assert_eq!(unchanged, (200, second.clone()), "what changes nothing makes no version");
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    changed["data"]["key"] = json!("third");
    assert_eq!(send(&handle, "PUT", &path, changed.clone()).await.0, 200, "without a version it is unconditional");
    changed["metadata"]["uid"] = json!("other");
    assert_eq!(reason(&send(&handle, "PUT", &path, changed.clone()).await), (409, "Conflict"));
    changed["metadata"] = json!({ "name": "b" });
    assert_eq!(reason(&send(&handle, "PUT", &path, changed.clone()).await), (400, "BadRequest"));
    assert_eq!(reason(&send(&handle, "PUT", &format!("{MAPS}/b"), changed).await), (404, "NotFound"));
}

#[tokio::test]
async fn a_custom_resource_is_updated_by_version_only() {
    let (_server, handle) = server().await;
    let entry =
        json!({ "kind": "Entry", "apiVersion": "tapir.dev/v1", "metadata": { "name": "a" }, "spec": { "x": 1 } });
    let (_, made) = send(&handle, "POST", "/apis/tapir.dev/v1/entries", entry.clone()).await;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(reason(&send(&handle, "PUT", "/apis/tapir.dev/v1/entries/a", entry).await), (422, "Invalid"));
    let mut changed = made.clone();
    changed["spec"]["x"] = json!(2);
    let (code, changed) = send(&handle, "PUT", "/apis/tapir.dev/v1/entries/a", changed).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    let (_, labelled) = patch(&handle, "/apis/tapir.dev/v1/entries/a", "merge-patch+json", label).await;
    assert_eq!(labelled["metadata"]["generation"], 2, "metadata is no new generation");
    let (_, other) = patch(&handle, "/apis/tapir.dev/v1/entries/a", "merge-patch+json", json!({ "value": 1 })).await;
    assert_eq!(other["metadata"]["generation"], 3);
}

#[tokio::test]
async fn delete_holds_to_its_preconditions() {
    let (_server, handle) = server().await;
    let path = format!("{MAPS}/a");
    let (_, made) = send(&handle, "POST", MAPS, config_map("a")).await;
    let delete = |preconditions: Value| {
        let body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions });
        send(&handle, "DELETE", &path, body)
    };
    assert_eq!(reason(&delete(json!({ "uid": "other" })).await), (409, "Conflict"));
    assert_eq!(reason(&delete(json!({ "resourceVersion": "1" })).await), (409, "Conflict"));
    assert_eq!(handle.list("configmaps").len(), 1);
    let metadata = &made["metadata"];
    let (code, status) =
        delete(json!({ "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"] })).await;
    assert_eq!((code, &status["status"], &status["details"]["uid"]), (200, &json!("Success"), &metadata["uid"]));
    assert_eq!(reason(&delete(Value::Null).await), (404, "NotFound"));
}

#[tokio::test]
async fn finalizers_hold_what_is_deleted() {
    let (_server, handle) = server().await;
    let path = format!("{MAPS}/a");
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["tapir.dev/held"]);
    send(&handle, "POST", MAPS, object).await;
    let (code, marked) = send(&handle, "DELETE", &path, Value::Null).await;
    assert_eq!((code, marked["metadata"]["deletionTimestamp"].is_string()), (200, true));
    assert_eq!(send(&handle, "DELETE", &path, Value::Null).await, (200, marked.clone()), "it is marked once");
    assert_eq!(get(&handle, &path).await, (200, marked));
    let freed = json!({ "metadata": { "finalizers": null } });
    assert_eq!(patch(&handle, &path, "merge-patch+json", freed).await.0, 200);
    assert_eq!(reason(&get(&handle, &path).await), (404, "NotFound"));
}

#[tokio::test]
async fn status_is_written_apart() {
    let (_server, handle) = server().await;
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
    let mut object = node("a");
    object["status"] = json!({ "conditions": [condition("Ready", "True")] });
    let (_, made) = send(&handle, "POST", "/api/v1/nodes", object).await;
    assert_eq!(made.get("status"), None, "create sets none");
    let status = json!({ "spec": { "podCIDR": "other" }, "status": { "conditions": [condition("Ready", "True")] } });
    let strategic = "strategic-merge-patch+json";
    let (_, ready) = patch(&handle, "/api/v1/nodes/a/status", strategic, status).await;
    assert_eq!(ready["spec"], made["spec"], "the rest stays");
    let other = json!({ "status": { "conditions": [condition("NetworkUnavailable", "False")] } });
    patch(&handle, "/api/v1/nodes/a/status", strategic, other).await;
    let again = json!({ "status": { "conditions": [condition("Ready", "False")] } });
    let (_, both) = patch(&handle, "/api/v1/nodes/a/status", strategic, again).await;
    let expected = json!([condition("Ready", "False"), condition("NetworkUnavailable", "False")]);
    assert_eq!(both["status"]["conditions"], expected, "conditions are merged by their type");
    let main = json!({ "metadata": { "labels": { "x": "y" } }, "status": { "conditions": [] } });
    let (_, labelled) = patch(&handle, "/api/v1/nodes/a", "merge-patch+json", main).await;
    assert_eq!((&labelled["status"], &labelled["metadata"]["labels"]["x"]), (&both["status"], &json!("y")));
    let mut replaced = labelled.clone();
    replaced["metadata"]["labels"]["x"] = json!("z");
    replaced["status"] = json!({ "phase": "Running" });
    let (_, replaced) = send(&handle, "PUT", "/api/v1/nodes/a/status", replaced).await;
    assert_eq!(replaced["status"], json!({ "phase": "Running" }));
    assert_eq!(replaced["metadata"]["labels"], labelled["metadata"]["labels"]);
    assert_eq!(reason(&send(&handle, "PUT", "/api/v1/nodes/a/status", labelled).await), (409, "Conflict"));
    assert_eq!(reason(&get(&handle, &format!("{MAPS}/a/status")).await).0, 404);
}

#[tokio::test]
async fn patches_are_of_four_kinds() {
    let (_server, handle) = server().await;
    let path = format!("{MAPS}/a");
    send(&handle, "POST", MAPS, config_map("a")).await;
    let (_, merged) = patch(&handle, &path, "merge-patch+json", json!({ "data": { "key": null, "b": "1" } })).await;
    assert_eq!(merged["data"], json!({ "b": "1" }));
    let operations =
        json!([{ "op": "test", "path": "/data/b", "value": "1" }, { "op": "add", "path": "/data/c", "value": "2" }]);
    let (_, patched) = patch(&handle, &path, "json-patch+json", operations.clone()).await;
    assert_eq!(patched["data"], json!({ "b": "1", "c": "2" }));
    let failing = json!([{ "op": "test", "path": "/data/b", "value": "2" }]);
    assert_eq!(reason(&patch(&handle, &path, "json-patch+json", failing).await), (422, "Invalid"));
    let apply = format!("{MAPS}/new?fieldManager=test&force=true");
    let (code, _) = patch(&handle, &apply, "apply-patch+yaml", config_map("new")).await;
    assert_eq!(code, 201, "apply creates");
    let (code, _) = patch(&handle, &apply, "apply-patch+yaml", config_map("new")).await;
    assert_eq!(code, 200, "apply merges");
    assert_eq!(reason(&patch(&handle, &format!("{MAPS}/no"), "merge-patch+json", json!({})).await), (404, "NotFound"));
    assert_eq!(reason(&patch(&handle, &path, "json", json!({})).await), (415, "UnsupportedMediaType"));
}

#[tokio::test]
async fn lists_are_merged_by_their_key() {
    let (_server, handle) = server().await;
    let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 443 }]);
    let service =
        json!({ "metadata": { "name": "s" }, "spec": { "ports": ports, "externalIPs": ["10.0.0.1", "10.0.0.2"] } });
    handle.put("services", service).unwrap();
    let strategic = async |spec: Value| {
        let body = json!({ "spec": spec });
        let (code, answer) =
            patch(&handle, "/api/v1/namespaces/default/services/s", "strategic-merge-patch+json", body).await;
        assert_eq!(code, 200);
        answer["spec"].clone()
    };
    let spec = strategic(json!({ "ports": [{ "port": 80, "targetPort": 8080 }], "externalIPs": ["10.0.0.3"] })).await;
    let merged = json!([{ "name": "a", "port": 80, "targetPort": 8080 }, { "name": "b", "port": 443 }]);
    assert_eq!(spec, json!({ "ports": merged, "externalIPs": ["10.0.0.3"] }), "a list without a key is replaced");
    let spec = strategic(json!({ "ports": [{ "port": 80, "$patch": "delete" }], "externalIPs": null })).await;
    assert_eq!(spec, json!({ "ports": [{ "name": "b", "port": 443 }] }));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let (_server, handle) = server().await;
    let before = handle.revision();
    assert_eq!(send(&handle, "POST", &format!("{MAPS}?dryRun=All"), config_map("a")).await.0, 201);
    assert_eq!((handle.revision(), handle.list("configmaps").len()), (before, 0));
}

#[tokio::test]
async fn a_definition_serves_its_resource() {
    let (_server, handle) = server().await;
    let things = "/apis/test.dev/v1/namespaces/default/things";
    assert_eq!(get(&handle, things).await.0, 404);
    let definition = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": { "name": "things.test.dev" },
        "spec": {
            "group": "test.dev", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} } }],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = send(&handle, "POST", definitions, definition).await;
    assert_eq!((code, &made["status"]["conditions"][1]["type"]), (201, &json!("Established")));
    let thing = json!({ "kind": "Thing", "apiVersion": "test.dev/v1", "metadata": { "name": "a" } });
    assert_eq!(send(&handle, "POST", things, thing).await.0, 201);
    let (_, discovered) = get(&handle, "/apis/test.dev/v1").await;
    let names: Vec<_> =
        discovered["resources"].as_array().unwrap().iter().map(|resource| resource["name"].clone()).collect();
    assert_eq!(names, ["things", "things/status"]);
    send(&handle, "DELETE", &format!("{definitions}/things.test.dev"), Value::Null).await;
    assert_eq!(get(&handle, things).await.0, 404);
    assert!(handle.list("things.test.dev").is_empty(), "its objects go with it");
    let broken = json!({ "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": { "name": "x.y" } });
    assert_eq!(send(&handle, "POST", definitions, broken).await.0, 400);
}

#[tokio::test]
async fn discovery_tells_what_is_served() {
    let (_server, handle) = server().await;
    let (_, core) = get(&handle, "/api/v1").await;
    let pods =
        core["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == "pods").unwrap().clone();
    assert_eq!(
        (&pods["kind"], &pods["namespaced"], &pods["shortNames"][0]),
        (&json!("Pod"), &json!(true), &json!("po"))
    );
    let (_, groups) = get(&handle, "/apis").await;
    let groups: Vec<_> =
        groups["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert!(
        ["apps", "coordination.k8s.io", "discovery.k8s.io", "tapir.dev"].iter().all(|name| groups.contains(name)),
        "{groups:?}"
    );
    assert_eq!(get(&handle, "/version").await.1["major"], "1");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(&handle, path).await, (200, json!("ok")));
    }
    assert_eq!(reason(&get(&handle, "/apis/no.such/v1").await), (404, "NotFound"));
}

#[tokio::test]
async fn a_body_is_bounded_and_json() {
    let (_server, handle) = server().await;
    let mut long = config_map("a");
    long["data"]["key"] = json!("x".repeat(3 << 20));
    assert_eq!(reason(&send(&handle, "POST", MAPS, long).await), (413, "RequestEntityTooLarge"));
    assert_eq!(reason(&send(&handle, "POST", MAPS, json!([1])).await), (400, "BadRequest"));
    assert_eq!(reason(&send(&handle, "POST", MAPS, Value::Null).await), (400, "BadRequest"));
}
