//! `healthCheckNodePort`: load balancers ask whether a node has endpoints of a service (Kubernetes API, `ServiceSpec`).

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::http::Bounded;

/// What is told of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many ready endpoints this node has.
    pub local: usize,
    /// This node can forward to them.
    pub healthy: bool,
}

/// Answers on `listener` for ever, whatever path is asked for: 200 when packets for the service are welcome here, else 503.
///
/// # Errors
/// None in practice: accepting is repeated.
pub async fn serve(listener: TcpListener, answers: watch::Receiver<Answer>) -> io::Result<()> {
    axum::serve(Bounded::new(listener), Router::new().fallback(answer).with_state(answers)).await
}

async fn answer(State(answers): State<watch::Receiver<Answer>>) -> Response {
    let Answer { namespace, name, local, healthy } = answers.borrow().clone();
    let status = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    });
    let headers =
        [("content-type", "application/json".into()), ("x-load-balancing-endpoint-weight", local.to_string())];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_node_without_endpoints_wants_no_packets() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Answer { namespace: "a".into(), name: "b".into(), local: 2, healthy: true };
        let (to, answers) = watch::channel(told.clone());
        let server = tokio::spawn(serve(listener, answers));
        for (local, healthy, status) in [(2, true, "200"), (0, true, "503"), (2, false, "503")] {
            to.send(Answer { local, healthy, ..told.clone() }).unwrap();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            let body = answer.rsplit("\r\n").next().unwrap();
            let expected = json!({"service": {"namespace": "a", "name": "b"}, "localEndpoints": local, "serviceProxyHealthy": healthy});
            assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap(), expected);
        }
        server.abort();
    }
}
