//! What happens to a node when the API server fails.

use std::time::Duration;

use serde_json::json;
use tapir::cluster::{Expect, Kind, Written};
use tapir::store::session::{Session, Update};
use tapir::store::{Store, StoreError, Watch, WatchError};
use tapir_apiserver::{Options, Refusal};
use tokio::time::timeout;

use super::Server;
use super::suite::{PATIENCE, changes, done, put, told, write};

const HASTY: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_lost_answer_leaves_a_write_unknown() {
    let server = Server::start(Options::default());
    let store = server.store(HASTY);
    let block = |expect| write(Kind::Block, "b", Some("{}"), expect);
    server.handle.lose_next_answer();
    assert_eq!(store.write(&block(Expect::Absent)).await, Ok(Written::Unknown));
    // It was done.
    let Ok(Written::Conflict(Some(entry))) = store.write(&block(Expect::Absent)).await else { panic!("it is there") };
    server.handle.lose_next_answer();
    assert_eq!(store.write(&block(Expect::Revision(entry.revision))).await, Ok(Written::Unknown));
    server.handle.hang(true);
    assert_eq!(store.write(&block(Expect::Revision(entry.revision))).await, Ok(Written::Unknown), "no answer in time");
    server.handle.hang(false);
}

#[tokio::test]
async fn what_is_refused_is_not_done() {
    let server = Server::start(Options::default());
    let store = server.store(HASTY);
    let block = write(Kind::Block, "b", Some("{}"), Expect::Absent);
    server.handle.deny("create", "entries.tapir.dev", true);
    let text = store.write(&block).await.unwrap_err().to_string();
    assert!(text.contains("apiGroups [\"tapir.dev\"], resources [\"entries\"], verbs [\"create\"]"), "{text}");
    server.handle.deny("create", "entries.tapir.dev", false);
    server.handle.refuse(Some(Refusal { code: 429, retry_after: Some(1), times: Some(1) }));
    assert!(matches!(store.write(&block).await, Err(StoreError::Unreachable { .. })), "a busy server did nothing");
    server.handle.refuse(Some(Refusal { code: 503, retry_after: None, times: Some(1) }));
    assert_eq!(store.write(&block).await, Ok(Written::Unknown), "a failing one may have");
    server.handle.gone().unwrap();
    let refused = store.write(&block).await;
    assert!(matches!(refused, Err(StoreError::Unreachable { .. }) | Ok(Written::Unknown)), "{refused:?}");
    let refused = store.write(&block).await;
    assert!(matches!(refused, Err(StoreError::Unreachable { .. })), "nobody listens: {refused:?}");
    server.handle.back().unwrap();
    done(&store, block).await;
    server.handle.deny("list", "entries.tapir.dev", true);
    let text = store.list(&[Kind::Block]).await.unwrap_err().to_string();
    assert!(text.contains("verbs [\"list\"]"), "{text}");
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let server = Server::start(Options { bookmarks: Duration::from_millis(100), ..Options::default() });
    let store = server.store(HASTY);
    let first = put(&store, "a").await;
    let mut watch = store.watch(first).await.unwrap();
    // Words of a server that has nothing to tell.
    let batch = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!(batch.changes, []);
    let second = put(&store, "b").await;
    assert_eq!(told(&changes(&mut watch).await[0]), ("+b".to_owned(), second));
    server.handle.cut_watches();
    let ended = loop {
        match timeout(PATIENCE, watch.next()).await.expect("word in time") {
            Ok(batch) => assert_eq!(batch.changes, []),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, WatchError::Lost(StoreError::Unreachable { .. })), "{ended}");
    let third = put(&store, "c").await;
    let mut watch = store.watch(second).await.unwrap();
    assert_eq!(told(&changes(&mut watch).await[0]), ("+c".to_owned(), third));
}

#[tokio::test]
async fn a_session_outlives_its_server() {
    let server = Server::start(Options { bookmarks: Duration::from_millis(100), ..Options::default() });
    let store = server.store(HASTY);
    put(&store, "a").await;
    let (_session, mut updates) = Session::start(server.store(HASTY));
    let mut listed = 0;
    let mut seen = Vec::new();
    let mut down = false;
    let mut step = 0;
    while step < 3 {
        let update = timeout(PATIENCE, updates.recv()).await.expect("an update in time").expect("a session");
        match update {
            Update::Listed { entries, rewound, .. } => {
                assert!(!rewound);
                seen.extend(entries.iter().map(|entry| entry.key.name.clone()));
                listed += 1;
                if step == 0 {
                    step = 1;
                    server.handle.gone().unwrap();
                }
            }
            Update::Down { .. } if step == 1 => {
                (down, step) = (true, 2);
                server.handle.back().unwrap();
                put(&store, "b").await;
            }
            Update::Changed { changes, .. } => {
                seen.extend(changes.iter().map(|change| told(change).0));
                if seen.iter().any(|name| name == "+b") {
                    step = 3;
                }
            }
            _ => {}
        }
    }
    assert!(down);
    // The layout's version is written by the session itself, before or after the list.
    seen.retain(|name| !name.ends_with("version"));
    assert_eq!((listed, seen), (1, ["a", "+b"].map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn what_is_no_entry_is_left_out() {
    let server = Server::start(Options::default());
    let store = server.store(HASTY);
    let first = put(&store, "a").await;
    let mut watch = store.watch(first).await.unwrap();
    let labels = json!({"tapir.dev/kind": "blocks", "tapir.dev/watched": "true"});
    for (name, spec) in [
        ("blocks.other", json!({"key": "cluster/blocks/b", "value": {}})),
        ("blocks.c", json!({"key": "nothing", "value": {}})),
        ("blocks.d", json!({})),
    ] {
        let metadata = json!({"name": name, "labels": labels});
        server.handle.put("entries.tapir.dev", json!({"metadata": metadata, "spec": spec})).unwrap();
    }
    let last = put(&store, "z").await;
    assert_eq!(told(&changes(&mut watch).await[0]), ("+z".to_owned(), last));
    let listing = store.list(&Kind::WATCHED).await.unwrap();
    let names: Vec<_> = listing.entries.iter().map(|entry| entry.key.name.as_str()).collect();
    assert_eq!(names, ["a", "z"]);
    assert_ne!(listing.origin, 0, "which cluster it is");
}

#[tokio::test]
async fn another_daemon_takes_over_only_what_is_gone() {
    let server = Server::start(Options::default());
    let (ours, theirs) = (server.store(HASTY), server.store(HASTY));
    let ttl = Duration::from_secs(2);
    let held = ours.announce("n", "1", ttl).await.unwrap();
    let taken = theirs.announce("n", "2", ttl).await;
    assert_eq!(taken, Err(StoreError::Taken { key: "alive/n".into(), value: "1".into() }));
    for _ in 0..4 {
        tokio::time::sleep(ttl / 3).await;
        ours.renew(&held).await.unwrap();
        assert!(matches!(theirs.announce("n", "2", ttl).await, Err(StoreError::Taken { .. })));
    }
    // A renewal whose answer is lost is one.
    server.handle.lose_next_answer();
    assert!(ours.renew(&held).await.is_err());
    ours.renew(&held).await.unwrap();
    let new = timeout(PATIENCE, async {
        loop {
            match theirs.announce("n", "2", ttl).await {
                Ok(lease) => break lease,
                Err(error) => assert!(matches!(error, StoreError::Taken { .. }), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let new = new.await.expect("it ends");
    assert_eq!(ours.renew(&held).await, Err(StoreError::LeaseGone { key: "alive/n".into() }));
    ours.withdraw(&held).await.unwrap();
    theirs.renew(&new).await.unwrap();
}
