//! From a request to its answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::patch::{Kind, patched};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::store::{Key, Store};
use crate::watch::Terms;
use crate::write::{Deleted, Part};
use crate::{Shared, discovery, faults, list, watch};

/// A body may be this long, bytes.
const LONGEST_BODY: usize = 3 << 20;
/// The parameters behind the path.
pub(crate) type Query = BTreeMap<String, String>;

/// The connection breaks instead of an answer.
#[derive(Debug)]
pub(crate) struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost on order")
    }
}

impl std::error::Error for Lost {}

/// Which objects are listed or watched.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub resource: Arc<Resource>,
    /// Empty for all.
    pub namespace: String,
    pub name: Option<String>,
    pub selector: Selector,
}

impl Scope {
    pub fn holds(&self, key: &Key, object: &Value) -> bool {
        (self.namespace.is_empty() || self.namespace == key.0)
            && self.name.as_ref().is_none_or(|name| *name == key.1)
            && self.selector.matches(object)
    }
}

/// What a path names.
#[derive(Clone, Debug)]
struct Target {
    resource: Arc<Resource>,
    namespace: String,
    name: Option<String>,
    status: bool,
}

impl Target {
    fn key(&self) -> Result<Key, Failure> {
        let name = self.name.clone().ok_or_else(not_allowed)?;
        if self.resource.namespaced == self.namespace.is_empty() {
            return Err(Failure::no_such_path());
        }
        Ok((self.namespace.clone(), name))
    }

    fn part(&self) -> Part {
        if self.status { Part::Status } else { Part::Main }
    }

    /// The name that access rules and the counters have for it.
    fn label(&self) -> String {
        if self.status { format!("{}/status", self.resource.id()) } else { self.resource.id() }
    }
}

fn not_allowed() -> Failure {
    Failure::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// `object` as `resource` has it: a definition may serve it in several versions.
pub(crate) fn rendered(resource: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    object["kind"] = json!(resource.kind);
    object["apiVersion"] = json!(resource.api_version());
    object
}

/// Answers a request, unless a fault makes the connection break.
pub(crate) async fn answer(shared: Arc<Shared>, request: axum::extract::Request) -> Result<Response, Lost> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LONGEST_BODY).await.map_err(|_| {
        Failure::new(
            413,
            "RequestEntityTooLarge",
            format!("the body is longer than {LONGEST_BODY} bytes, or broke off"),
        )
    });
    let served = match body {
        Ok(body) => serve(&shared, &parts, &body).await,
        Err(failure) => Err(failure),
    };
    let writes = ![Method::GET, Method::HEAD].contains(&parts.method) && parts.uri.path() != "/_faults";
    if writes && shared.take_lost_answer() {
        return Err(Lost);
    }
    Ok(served.unwrap_or_else(|failure| {
        let mut answer = json_answer(failure.code, &failure.status());
        if let Some(seconds) = failure.details["retryAfterSeconds"].as_u64() {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }))
}

pub(crate) fn json_answer(code: u16, value: &Value) -> Response {
    let mut answer = typed_answer("application/json", serde_json::to_vec(value).unwrap_or_default().into());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

fn typed_answer(kind: &'static str, body: Body) -> Response {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

async fn serve(shared: &Arc<Shared>, parts: &Parts, body: &Bytes) -> Result<Response, Failure> {
    authenticate(shared, &parts.headers)?;
    let decoded: Vec<Cow<str>> =
        parts.uri.path().split('/').filter(|part| !part.is_empty()).map(percent_decoded).collect();
    let path: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
    if path == ["_faults"] {
        return shared.order(&parts.method, body).map(|answer| json_answer(200, &answer));
    }
    let query: Query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let target = target(&shared.store(), &path);
    let Ok(target) = target else {
        let found = about_itself(shared, parts, &path);
        // Paths that there aren't count as one: their number has no bound.
        let counted = if found.is_ok() { parts.uri.path() } else { "/" };
        shared.count("get", counted);
        faults::meet(&shared.faults, "get", counted).await?;
        return found;
    };
    let verb = verb(&parts.method, &target, &query)?;
    shared.count(verb, &target.label());
    faults::meet(&shared.faults, verb, &target.label()).await?;
    match verb {
        "get" => {
            let object = shared.store().get(&target.resource.id(), &target.key()?);
            let object =
                object.ok_or_else(|| Failure::not_found(&target.resource, &target.key().unwrap_or_default().1))?;
            Ok(json_answer(200, &rendered(&target.resource, &object)))
        }
        "list" => Ok(json_answer(200, &list::list(&shared.store(), &scope(&target, &query)?, &query)?)),
        "watch" => {
            let body = watch::body(shared.clone(), scope(&target, &query)?, &terms(&query)?);
            Ok(typed_answer("application/json", body))
        }
        _ => write(shared, &target, verb, &query, &parts.headers, body),
    }
}

fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(token) = &shared.options.token else { return Ok(()) };
    let said = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if said.and_then(|said| said.strip_prefix("Bearer ")) == Some(token) {
        return Ok(());
    }
    Err(Failure::new(401, "Unauthorized", "Unauthorized"))
}

fn about_itself(shared: &Shared, parts: &Parts, path: &[&str]) -> Result<Response, Failure> {
    if parts.method != Method::GET {
        return Err(Failure::no_such_path());
    }
    if path == ["openapi", "v2"] {
        let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (kind, document) = discovery::openapi(accept);
        return Ok(typed_answer(kind, document.into()));
    }
    if matches!(path, ["healthz" | "livez" | "readyz", ..]) {
        return Ok(Response::new(Body::from("ok")));
    }
    let found = discovery::answer(&shared.store().table, path);
    found.map(|answer| json_answer(200, &answer)).ok_or_else(Failure::no_such_path)
}

/// The resource or object that `path` names.
fn target(store: &Store, path: &[&str]) -> Result<Target, Failure> {
    let (group, version, rest) = match path {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(Failure::no_such_path()),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status"]) => (*namespace, rest),
        rest => ("", rest),
    };
    let [plural, rest @ ..] = rest else { return Err(Failure::no_such_path()) };
    let resource = store.table.find(group, version, plural).ok_or_else(Failure::no_such_path)?;
    let (name, status) = match rest {
        [] => (None, false),
        [name] => (Some((*name).to_owned()), false),
        [name, "status"] if resource.status => (Some((*name).to_owned()), true),
        _ => return Err(Failure::no_such_path()),
    };
    if !resource.namespaced && !namespace.is_empty() {
        return Err(Failure::no_such_path());
    }
    Ok(Target { resource, namespace: namespace.into(), name, status })
}

fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, Failure> {
    let watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    match (method.as_str(), target.name.is_some()) {
        ("GET", _) if watch => Ok("watch"),
        ("GET", true) => Ok("get"),
        ("GET", false) => Ok("list"),
        ("POST", false) => Ok("create"),
        ("PUT", true) => Ok("update"),
        ("PATCH", true) => Ok("patch"),
        ("DELETE", true) if !target.status => Ok("delete"),
        ("DELETE", false) => Ok("deletecollection"),
        _ => Err(not_allowed()),
    }
}

fn scope(target: &Target, query: &Query) -> Result<Scope, Failure> {
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let selector = Selector::parse(&target.resource, text("labelSelector"), text("fieldSelector"))?;
    let Target { resource, namespace, name, .. } = target.clone();
    Ok(Scope { resource, namespace, name, selector })
}

/// A number of the query; nothing where it is missing or empty.
pub(crate) fn number(query: &Query, name: &str) -> Result<Option<u64>, Failure> {
    match query.get(name).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Failure::bad_request(format!("Invalid value: {name} is {text:?}, not a number"))),
    }
}

fn terms(query: &Query) -> Result<Terms, Failure> {
    let is = |name: &str| query.get(name).is_some_and(|value| value == "true" || value == "1");
    let initial = is("sendInitialEvents");
    let from = number(query, "resourceVersion")?.filter(|version| *version != 0 && !initial);
    let bookmarks = is("allowWatchBookmarks");
    let timeout = number(query, "timeoutSeconds")?.filter(|seconds| *seconds != 0).map(Duration::from_secs);
    Ok(Terms { from, bookmarks, mark_initial_end: initial && bookmarks, timeout })
}

fn write(
    shared: &Arc<Shared>,
    target: &Target,
    verb: &str,
    query: &Query,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("application/vnd.kubernetes.protobuf") {
        return Err(Failure::new(415, "UnsupportedMediaType", "only JSON is understood"));
    }
    let given: Value = match verb {
        "delete" | "deletecollection" if body.is_empty() => Value::Null,
        _ => serde_json::from_slice(body).map_err(|e| Failure::bad_request(format!("the body is not JSON: {e}")))?,
    };
    let dry = query.get("dryRun").is_some_and(|value| value == "All") || given["dryRun"] == json!(["All"]);
    shared.change(dry, |store| written(store, target, verb, query, content_type, given))
}

fn written(
    store: &mut Store,
    target: &Target,
    verb: &str,
    query: &Query,
    content_type: &str,
    given: Value,
) -> Result<Response, Failure> {
    let resource = &target.resource;
    let (code, object) = match verb {
        "create" if resource.namespaced == target.namespace.is_empty() => return Err(not_allowed()),
        "create" => (201, store.create(resource, &target.namespace, given)?),
        "update" => (200, store.update(resource, &target.key()?, given, target.part())?),
        "patch" => {
            let (kind, key) = (Kind::of(content_type)?, target.key()?);
            match store.get(&resource.id(), &key) {
                None if kind == Kind::Apply && !target.status => {
                    let mut new = patched(json!({}), &given, kind)?;
                    new["metadata"]["name"] = json!(key.1);
                    (201, store.create(resource, &target.namespace, new)?)
                }
                None => return Err(Failure::not_found(resource, &key.1)),
                Some(current) => {
                    let new = patched(rendered(resource, &current), &given, kind)?;
                    (200, store.update(resource, &key, new, target.part())?)
                }
            }
        }
        "delete" => match store.delete(resource, &target.key()?, &given["preconditions"])? {
            Deleted::Marked(object) => (200, object),
            Deleted::Gone(object) => {
                let details = json!({
                    "name": target.name, "group": resource.group, "kind": resource.plural, "uid": object["metadata"]["uid"],
                });
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                });
                return Ok(json_answer(200, &status));
            }
        },
        _ => {
            let scope = scope(target, query)?;
            let all: Vec<Key> =
                store.all(&resource.id()).filter(|(key, o)| scope.holds(key, o)).map(|(key, _)| key.clone()).collect();
            for key in all {
                store.delete(resource, &key, &Value::Null)?;
            }
            return Ok(json_answer(
                200,
                &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }),
            ));
        }
    };
    Ok(json_answer(code, &rendered(resource, &object)))
}

fn percent_decoded(part: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy()
}
