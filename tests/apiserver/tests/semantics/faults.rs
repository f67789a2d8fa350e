//! Faults on order.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tapir_apiserver::{ApiServer, Options, Refusal};
use tokio::time::timeout;

use crate::http::{Watch, config_map, get, node, reason, request, send, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_server_that_is_gone_refuses_and_comes_back() {
    // The kernel gives up a port that it chose when the socket stops to listen, and keeps one that was asked for.
    let asked = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in ["127.0.0.1:0".parse().unwrap(), asked] {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let server = ApiServer::serve(listener, Options::default()).unwrap();
        let handle = server.handle();
        handle.put("nodes", node("a")).unwrap();
        for _ in 0..3 {
            let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1").await;
            assert_eq!(watch.next().await["type"], "ADDED");
            handle.gone().unwrap();
            assert!(watch.try_next().await.is_err(), "the connection breaks");
            let refused = tokio::net::TcpStream::connect(handle.address()).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            handle.back().unwrap();
            assert_eq!(get(&handle, "/api/v1/nodes/a").await.0, 200);
        }
        drop(server);
        assert!(tokio::net::TcpStream::connect(handle.address()).await.is_err(), "it ends with its owner");
    }
}

#[test]
fn a_server_has_a_thread_of_its_own() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = ApiServer::serve_in_thread(listener, Options::default()).unwrap();
    let handle = server.handle();
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(handle.address())?;
        stream.set_read_timeout(Some(crate::http::PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    assert!(ask().unwrap().ends_with("ok"));
    handle.gone().unwrap();
    assert!(ask().is_err());
    handle.back().unwrap();
    assert!(ask().unwrap().ends_with("ok"));
    drop(server);
    assert!(ask().is_err());
}

#[tokio::test]
async fn a_server_that_hangs_answers_afterwards() {
    let (_server, handle) = server().await;
    let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1").await;
    handle.hang(true);
    handle.put("nodes", node("a")).unwrap();
    let mut asked = Box::pin(get(&handle, "/api/v1/nodes/a"));
    assert!(timeout(Duration::from_millis(100), &mut asked).await.is_err());
    assert!(timeout(Duration::from_millis(100), watch.next()).await.is_err());
    handle.hang(false);
    assert_eq!(asked.await.0, 200);
    assert_eq!(watch.next().await["type"], "ADDED");
}

#[tokio::test]
async fn a_server_is_slow() {
    let (_server, handle) = server().await;
    handle.delay(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(get(&handle, "/healthz").await.0, 200);
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn requests_are_refused() {
    let (_server, handle) = server().await;
    for code in [429, 500, 503] {
        handle.refuse(Some(Refusal { code, retry_after: Some(7), times: Some(2) }));
        for _ in 0..2 {
            let answer = request(&handle, "GET", "/api/v1/nodes", "application/json", &Value::Null).await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (code, &"7".parse().unwrap()));
        }
        assert_eq!(get(&handle, "/api/v1/nodes").await.0, 200, "twice only");
    }
    handle.refuse(Some(Refusal { code: 503, retry_after: None, times: None }));
    assert_eq!(reason(&send(&handle, "POST", MAPS, config_map("a")).await), (503, "ServiceUnavailable"));
    handle.refuse(None);
    assert!(handle.list("configmaps").is_empty());
}

#[tokio::test]
async fn one_verb_is_denied() {
    let (_server, handle) = server().await;
    handle.deny("create", "configmaps", true);
    assert_eq!(reason(&send(&handle, "POST", MAPS, config_map("a")).await), (403, "Forbidden"));
    assert_eq!(get(&handle, MAPS).await.0, 200);
    handle.deny("create", "configmaps", false);
    assert_eq!(send(&handle, "POST", MAPS, config_map("a")).await.0, 201);
}

#[tokio::test]
async fn the_answer_of_a_write_is_lost() {
    let (_server, handle) = server().await;
    handle.lose_next_answer();
    assert_eq!(get(&handle, MAPS).await.0, 200, "a read is no write");
    let lost = request(&handle, "POST", MAPS, "application/json", &config_map("a")).await;
    assert!(lost.is_err(), "{lost:?}");
    assert!(handle.get("configmaps", "default/a").is_some(), "it is done all the same");
    assert_eq!(reason(&send(&handle, "POST", MAPS, config_map("a")).await), (409, "AlreadyExists"));
}

#[tokio::test]
async fn watches_are_cut() {
    let (_server, handle) = server().await;
    let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1").await;
    handle.cut_watches();
    assert!(watch.try_next().await.is_err(), "it breaks off, it does not end");
    let mut watch = Watch::open(&handle, "/api/v1/nodes?watch=1").await;
    handle.put("nodes", node("a")).unwrap();
    assert_eq!(watch.next().await["type"], "ADDED");
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let options = Options { token: Some("secret".into()), ..Options::default() };
    let server = ApiServer::start(options).await.unwrap();
    assert_eq!(reason(&get(&server.handle(), "/api/v1/nodes").await), (401, "Unauthorized"));
}

#[tokio::test]
async fn requests_are_counted() {
    let (_server, handle) = server().await;
    send(&handle, "POST", MAPS, config_map("a")).await;
    get(&handle, MAPS).await;
    get(&handle, MAPS).await;
    get(&handle, &format!("{MAPS}/a")).await;
    let _watch = Watch::open(&handle, &format!("{MAPS}?watch=1")).await;
    let counts = ["create", "list", "get", "watch", "update"].map(|verb| handle.requests(verb, "configmaps"));
    assert_eq!(counts, [1, 2, 1, 1, 0]);
    assert_eq!(handle.all_requests().values().sum::<u64>(), 5);
}

#[tokio::test]
async fn faults_are_ordered_over_http() {
    let (_server, handle) = server().await;
    let order = async |body: Value| send(&handle, "POST", "/_faults", body).await;
    order(json!({ "refuse": { "code": 500 }, "deny": [["get", "nodes"]] })).await;
    assert_eq!(get(&handle, "/api/v1/nodes").await.0, 500);
    order(json!({ "clear": true, "hang": true })).await;
    let (_, told) = get(&handle, "/_faults").await;
    assert_eq!(told, json!({ "requests": { "list nodes": 1 }, "openWatches": 0 }));
    let gone = json!({ "hang": false, "compact": true, "gone_ms": 100 });
    // Its own answer may go with it.
    request(&handle, "POST", "/_faults", "application/json", &gone).await.ok();
    assert!(tokio::net::TcpStream::connect(handle.address()).await.is_err());
    let back = async {
        while tokio::net::TcpStream::connect(handle.address()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(crate::http::PATIENCE, back).await.unwrap();
    assert_eq!(get(&handle, "/api/v1/nodes").await.0, 200);
    assert_eq!(reason(&send(&handle, "POST", "/_faults", json!({ "hnag": true })).await), (400, "BadRequest"));
}
