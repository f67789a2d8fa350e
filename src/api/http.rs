//! Metrics and health over HTTP. What is told is asked of the control loop, so an answer also shows that it runs.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Sleep, sleep, timeout};

use super::metrics::{self, Snapshot};

/// How many connections are served at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may live. Scrapers come back.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long the control loop may take to answer before the daemon counts as dead.
const PATIENCE: Duration = Duration::from_secs(5);

const INDEX: &str = "<!doctype html><title>tapird</title><h1>tapird</h1><ul>\
    <li><a href=\"/metrics\">/metrics</a>: counters for Prometheus</li>\
    <li><a href=\"/livez\">/livez</a>: does the daemon run?</li>\
    <li><a href=\"/readyz\">/readyz</a>: is anything wrong?</li></ul>\n";

/// What is asked of the control loop.
#[derive(Debug)]
pub enum Query {
    /// Everything that is exported.
    Metrics(oneshot::Sender<Snapshot>),
    /// What is wrong with the node, in words. A pod that is detached doesn't make the node unready.
    Problems(oneshot::Sender<Vec<String>>),
}

/// Serves on `listener` for ever.
///
/// # Errors
/// None in practice: accepting is repeated.
pub async fn serve(listener: TcpListener, queries: mpsc::Sender<Query>) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/metrics", get(export))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(queries);
    axum::serve(Bounded::new(listener), router).await
}

async fn ask<T>(queries: &mpsc::Sender<Query>, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
    let (to, from) = oneshot::channel();
    let answer = async {
        queries.send(query(to)).await.ok()?;
        from.await.ok()
    };
    timeout(PATIENCE, answer).await.ok().flatten()
}

async fn export(State(queries): State<mpsc::Sender<Query>>) -> Response {
    match ask(&queries, Query::Metrics).await {
        Some(snapshot) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::encode(snapshot)).into_response(),
        None => stuck(),
    }
}

async fn live(State(queries): State<mpsc::Sender<Query>>) -> Response {
    match ask(&queries, Query::Problems).await {
        Some(_) => "ok\n".into_response(),
        None => stuck(),
    }
}

async fn ready(State(queries): State<mpsc::Sender<Query>>) -> Response {
    match ask(&queries, Query::Problems).await {
        Some(problems) if problems.is_empty() => "ok\n".into_response(),
        Some(problems) => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n").into_response(),
        None => stuck(),
    }
}

fn stuck() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the control loop does not answer\n").into_response()
}

/// A listener of so many connections at a time, each of which lives so long.
pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection { stream, end: Box::pin(sleep(LIFETIME)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn ended(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(context).is_ready() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ended(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ended(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_what_the_control_loop_says() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, mut from) = mpsc::channel(1);
        let server = tokio::spawn(serve(listener, to));
        let control = tokio::spawn(async move {
            for problems in [vec![], vec![], vec!["the tunnel is closed".to_owned()]] {
                if let Some(Query::Problems(reply)) = from.recv().await {
                    reply.send(problems).unwrap();
                }
            }
        });
        assert!(fetch(address, "/").await.contains("/metrics"));
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let answer = fetch(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("the tunnel is closed\n"), "{answer}");
        control.await.unwrap();
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 503"), "nobody answers");
        assert!(fetch(address, "/nothing").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}
