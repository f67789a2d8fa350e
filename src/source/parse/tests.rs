use super::*;

fn parsed(text: &str) -> Result<Vec<Object>, String> {
    parse(text, Path::new("f.yaml")).map_err(|error| format!("{}{}", error.place, error.message))
}

fn identities(text: &str) -> Vec<String> {
    let objects = parsed(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    objects.iter().map(Object::identity).map(|(kind, name)| format!("{kind} {name}")).collect()
}

#[test]
fn documents_and_lists_hold_objects() {
    let text = "\
# a comment
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: x}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: b}
spec: {ports: nonsense}
--- # nothing
---
kind: List
items:
- {kind: Service, metadata: {name: c}}
- {kind: Ingress, spec: 7}
- {apiVersion: serving.knative.dev/v1, kind: Service, spec: 7}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: d, labels: {kubernetes.io/service-name: c}}
  addressType: IPv4
  endpoints: null
- kind: List
  items: [{kind: Service, metadata: {name: e}}]
...
---
kind: ServiceList
items: [{metadata: {name: f}}]
---
kind: List
items: null
";
    assert_eq!(
        identities(text),
        ["Service x/a", "Service default/c", "EndpointSlice default/d", "Service default/e", "Service default/f"]
    );
    assert_eq!(identities(&text.replace('\n', "\r\n")).len(), 5);
    let json = r#"{"kind": "Service", "metadata": {"name": "a", "labels": null}, "spec": {"ports": [{"port": 80}]}}"#;
    assert_eq!(identities(json), ["Service default/a"]);
    assert_eq!(identities("{kind: Service, metadata: {name: a}} # no JSON"), ["Service default/a"]);
    let list = r#"{"kind": "EndpointSliceList", "items": [{"metadata": {"name": "a"}, "addressType": "FQDN"}, {"kind": "Pod"}]}"#;
    assert_eq!(identities(list), ["EndpointSlice default/a"]);
    assert_eq!(identities(""), [""; 0]);
    assert_eq!(identities("---\n---\n"), [""; 0]);
}

#[test]
fn errors_have_line_and_key() {
    let slice = "kind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\n";
    for (text, error) in [
        ("kind: Service\n  x: [", "f.yaml:2: "),
        (
            "a: b\n---\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: x\n",
            "f.yaml:7: spec.ports[0].port: ",
        ),
        ("kind: Service\nmetadata: {name: a}\nspec:\n  type: Cluster\n", "f.yaml:4: spec.type: "),
        ("kind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 10.0.0\n", "f.yaml:4: spec.clusterIP: "),
        ("kind: Service\nmetadata: {name: a}\nspec:\n  externalIPs: [1.2.3]\n", "f.yaml:4: spec.externalIPs[0]: "),
        ("kind: Service\nmetadata: {name: \"a\\nb\"}\n", "f.yaml:1: metadata.name: \"a\\nb\" is no name"),
        (
            "kind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 1, name: a}, {port: 1, name: b}]\n",
            "f.yaml:1: spec.ports[1].port: 1 is another port's",
        ),
        (
            "kind: List\nitems:\n- kind: Service\n  metadata: {name: a}\n- kind: Service\n  metadata:\n    name: [a]\n",
            "f.yaml:7: items[1].metadata.name: ",
        ),
        (
            &format!("{slice}endpoints:\n- addresses: [10.0.0.1]\n- addresses: ['fd00::1']\n"),
            "endpoints[1].addresses[0]: no IPv4 address",
        ),
        (&format!("{slice}ports:\n- {{port: 70000}}\n"), "f.yaml:5: ports[0].port: "),
        ("kind: EndpointSlice\nmetadata: {name: a}\n", "addressType"),
        ("{\"kind\": \"Service\",\n\"metadata\": {\"name\": 7}}", "f.yaml:2: metadata.name: "),
        ("{\"kind\": \"Service\",\n\"metadata\": {\"name\": \"\"}}", "f.yaml: metadata.name: \"\" is no name"),
        ("{\"kind\": \"Service\",\n\"metadata\": ", "f.yaml:1: "),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nkind: Service\n", "f.yaml:4: "),
        (&format!("{slice}---\n{slice}"), "f.yaml: EndpointSlice default/a is in it twice"),
    ] {
        let refused = parsed(text).expect_err(text);
        assert!(refused.contains(error), "{text}\n{refused}\n{error}");
    }
}

#[test]
fn what_swells_is_refused() {
    let mut text = String::from("kind: Service\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n");
    for level in 1..9 {
        let below = format!("*x{}, ", level - 1).repeat(10);
        text += &format!("x{level}: &x{level} [{below}]\n");
    }
    assert!(parsed(&text).is_err(), "a thousand million laughs");
    let deep = format!("kind: Service\nx: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    assert!(parsed(&deep).is_err());
}
