//! Raw HTTP: what was answered, not what a library makes of it.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tapir_apiserver::{ApiServer, Handle, Options};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whatever is waited for comes in far less.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server and what holds it.
pub async fn server() -> (ApiServer, Handle) {
    let options = Options { bookmarks: Duration::from_millis(50), ..Options::default() };
    let server = ApiServer::start(options).await.unwrap();
    let handle = server.handle();
    (server, handle)
}

/// A request on a connection of its own.
pub async fn request(
    handle: &Handle,
    method: &str,
    path: &str,
    kind: &str,
    body: &Value,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(handle.address()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).header("host", "test").header("content-type", kind);
    Ok(sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?)
}

/// The status code and the body of the answer.
pub async fn send(handle: &Handle, method: &str, path: &str, body: Value) -> (u16, Value) {
    answer(request(handle, method, path, "application/json", &body).await.unwrap()).await
}

pub async fn patch(handle: &Handle, path: &str, kind: &str, body: Value) -> (u16, Value) {
    let kind = format!("application/{kind}");
    answer(request(handle, "PATCH", path, &kind, &body).await.unwrap()).await
}

pub async fn get(handle: &Handle, path: &str) -> (u16, Value) {
    send(handle, "GET", path, Value::Null).await
}

async fn answer(response: Response<Incoming>) -> (u16, Value) {
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    if code >= 400 {
        assert_eq!(
            (&body["kind"], &body["status"], &body["code"]),
            (&json!("Status"), &json!("Failure"), &json!(code))
        );
    }
    (code, body)
}

/// The reason of a failure.
pub fn reason(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["reason"].as_str().unwrap_or_default())
}

/// The lines of a watch.
pub struct Watch {
    body: Incoming,
    rest: Vec<u8>,
}

impl Watch {
    pub async fn open(handle: &Handle, path: &str) -> Self {
        let response = request(handle, "GET", path, "application/json", &Value::Null).await.unwrap();
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next event; nothing at the end of the answer; an error where it broke off.
    pub async fn try_next(&mut self) -> Result<Option<Value>, hyper::Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let Some(frame) = timeout(PATIENCE, self.body.frame()).await.expect("nothing came of the watch") else {
                return Ok(None);
            };
            self.rest.extend_from_slice(&frame?.into_data().unwrap());
        }
    }

    pub async fn next(&mut self) -> Value {
        self.try_next().await.unwrap().expect("the watch ended")
    }

    /// Type, name and resource version of the next event.
    pub async fn told(&mut self) -> (String, String, u64) {
        let event = self.next().await;
        let metadata = &event["object"]["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        (event["type"].as_str().unwrap().to_owned(), name, version(&event["object"]))
    }
}

pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse().unwrap_or(0)
}

pub fn config_map(name: &str) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name }, "data": { "key": "value" } })
}

pub fn node(name: &str) -> Value {
    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name }, "spec": { "podCIDR": "10.0.0.0/24" } })
}

pub fn pod(name: &str, node: &str, app: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "nodeName": node },
    })
}
