//! What happens to a node when etcd fails.

use std::collections::BTreeSet;
use std::time::Duration;

use tapir::cluster::{Change, Expect, Kind, Written};
use tapir::store::etcd::Settings;
use tapir::store::session::{Alive, Session, Update};
use tapir::store::{Etcd, Store, StoreError, Watch, WatchError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::server::{Cluster, Options};
use super::{PATIENCE, changes, put, settings, store, told, update, write};

/// A store that is impatient, so that tests are quick.
fn hasty(cluster: &Cluster) -> Etcd {
    Etcd::new(Settings { timeout: Duration::from_secs(2), ..settings(cluster) }).unwrap()
}

/// Waits for an update that `wanted` takes; changes meanwhile are given to `seen`.
async fn until<T>(
    updates: &mut mpsc::Receiver<Update>,
    seen: &mut Vec<String>,
    mut wanted: impl FnMut(&Update) -> Option<T>,
) -> T {
    loop {
        let update = update(updates).await;
        if let Update::Changed { changes, .. } = &update {
            seen.extend(changes.iter().map(|change| told(change).0));
        }
        if let Some(found) = wanted(&update) {
            return found;
        }
    }
}

fn is_up(update: &Update) -> Option<()> {
    matches!(update, Update::Up).then_some(())
}

fn reason(update: &Update) -> Option<StoreError> {
    if let Update::Down { reason, .. } = update { Some(reason.clone()) } else { None }
}

fn listed(update: &Update) -> Option<(BTreeSet<String>, bool)> {
    let Update::Listed { entries, rewound, .. } = update else { return None };
    Some((entries.iter().map(|entry| entry.key.name.clone()).collect(), *rewound))
}

#[tokio::test]
async fn the_leader_dies_and_nothing_is_lost_or_told_twice() {
    let Some(mut cluster) = Cluster::start(Options { members: 3, ..Options::default() }) else { return };
    let leader = cluster.leader();
    // The node that follows talks to the leader, which dies.
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(leader);
    let (session, mut updates) = Session::start(Etcd::new(Settings { endpoints, ..settings(&cluster) }).unwrap());
    let mut seen = Vec::new();
    until(&mut updates, &mut seen, listed).await;
    let mut expected = Vec::new();
    for number in 0..60 {
        if number == 20 {
            cluster.kill(leader);
        }
        let write = write(Kind::Block, &format!("{number:02}"), Some("{}"), Expect::Absent);
        // What may be done or not is looked after, as every writer has to.
        loop {
            session.write(write.clone());
            let answer = |update: &Update| match update {
                Update::Written { result, .. } => Some(result.clone()),
                Update::Listed { .. } => panic!("nothing was forgotten: {update:?}"),
                _ => None,
            };
            match until(&mut updates, &mut seen, answer).await {
                Written::Done(_) | Written::Conflict(Some(_)) => break,
                Written::Unknown => tokio::time::sleep(Duration::from_millis(100)).await,
                Written::Conflict(None) => panic!("absent, as expected"),
            }
        }
        expected.push(format!("+{number:02}"));
    }
    while seen.len() < expected.len() {
        let count = seen.len();
        until(&mut updates, &mut seen, |update| matches!(update, Update::Changed { .. }).then_some(())).await;
        assert!(seen.len() <= expected.len(), "{count}");
    }
    assert_eq!(seen, expected);
    cluster.start_member(leader);
    cluster.wait();
}

#[tokio::test]
async fn a_server_that_stands_still_is_noticed_and_left() {
    let Some(cluster) = Cluster::start(Options { members: 3, ..Options::default() }) else { return };
    let follower = (cluster.leader() + 1) % 3;
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(follower);
    let settings = Settings { timeout: Duration::from_secs(2), endpoints, ..settings(&cluster) };
    let follows = Etcd::new(settings.clone()).unwrap();
    let first = put(&follows, "a").await;
    let mut watch = follows.watch(first).await.unwrap();
    // A quiet server says that it is there.
    let batch = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!((batch.changes, batch.revision), (Vec::new(), first));
    cluster.freeze(follower);
    let error = timeout(PATIENCE, watch.next()).await.expect("noticed").unwrap_err();
    assert!(matches!(error, WatchError::Lost(StoreError::Timeout { .. })), "{error:?}");
    let second = put(&follows, "b").await;
    let mut watch = follows.watch(first).await.unwrap();
    assert_eq!(changes(&mut watch).await.iter().map(told).collect::<Vec<_>>(), [("+b".to_owned(), second)]);
    // A read does not wait for the watch to notice.
    let reads = Etcd::new(settings.clone()).unwrap();
    assert_eq!(reads.list(&[Kind::Block]).await.unwrap().entries.len(), 2);
    // A write was sent: whether it is done can't be told.
    let writes = Etcd::new(Settings { endpoints: vec![cluster.endpoint(follower)], ..settings }).unwrap();
    let written = writes.write(&write(Kind::Block, "c", Some("{}"), Expect::Absent)).await;
    assert!(matches!(written, Ok(Written::Unknown) | Err(StoreError::Timeout { .. })), "{written:?}");
    cluster.thaw(follower);
}

#[tokio::test]
async fn a_write_without_an_answer_is_unknown() {
    let Some(cluster) = Cluster::start(Options::default()) else { return };
    let store = hasty(&cluster);
    put(&store, "a").await;
    cluster.freeze(0);
    let second = write(Kind::Block, "b", Some("{}"), Expect::Absent);
    assert_eq!(store.write(&second).await, Ok(Written::Unknown));
    cluster.thaw(0);
    // Server and client race: the request waits in the server's socket, and behind it that the client gave it up. So it
    // is done or not, and writing it again tells.
    let settled = timeout(PATIENCE, async {
        loop {
            match store.write(&second).await {
                Ok(Written::Unknown) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(settled) => break settled,
            }
        }
    });
    let revision = match settled.await.expect("the server is back") {
        Written::Done(revision) => revision,
        Written::Conflict(Some(found)) if found.value == "{}" => found.revision,
        other => panic!("{other:?}"),
    };
    let listing = store.list(&[Kind::Block]).await.unwrap();
    let found: Vec<_> = listing.entries.iter().map(|entry| (entry.key.name.as_str(), entry.revision)).collect();
    assert_eq!(found, [("a", revision - 1), ("b", revision)], "it is done once");
}

#[tokio::test]
async fn without_a_majority_nothing_is_written_and_nothing_forgotten() {
    let Some(mut cluster) = Cluster::start(Options { members: 3, ..Options::default() }) else { return };
    let (session, mut updates) = Session::start(hasty(&cluster));
    let mut seen = Vec::new();
    until(&mut updates, &mut seen, listed).await;
    cluster.kill(1);
    cluster.kill(2);
    let reason = until(&mut updates, &mut seen, reason).await;
    assert!(matches!(
        reason,
        StoreError::Unhealthy { .. } | StoreError::Timeout { .. } | StoreError::Unreachable { .. }
    ));
    session.write(write(Kind::Block, "a", Some("{}"), Expect::Absent));
    let result = until(&mut updates, &mut seen, |update| match update {
        Update::Written { result, .. } => Some(result.clone()),
        _ => None,
    });
    assert_eq!(result.await, Written::Unknown);
    cluster.start_member(1);
    cluster.start_member(2);
    until(&mut updates, &mut seen, is_up).await;
    put(&store(&cluster), "b").await;
    until(&mut updates, &mut seen, |update| match update {
        Update::Changed { changes, .. } => changes.iter().any(|change| told(change).0 == "+b").then_some(()),
        Update::Listed { .. } => panic!("nothing was forgotten"),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn what_is_compacted_while_nobody_looks_is_listed() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let (_session, mut updates) = Session::start(hasty(&cluster));
    let mut seen = Vec::new();
    assert_eq!(until(&mut updates, &mut seen, listed).await.0, ["version".to_owned()].into());
    put(&store(&cluster), "a").await;
    until(&mut updates, &mut seen, |update| matches!(update, Update::Changed { .. }).then_some(())).await;
    // Nothing here waits, so the session does not run meanwhile.
    cluster.kill(0);
    cluster.start_member(0);
    cluster.wait();
    for name in ["b", "c", "d"] {
        cluster.etcdctl(&["put", &format!("/tapir/v1/cluster/blocks/{name}"), "{}"]);
    }
    cluster.etcdctl(&["del", "/tapir/v1/cluster/blocks/a"]);
    cluster.etcdctl(&["compact", &last(&cluster).to_string()]);
    let (names, rewound) = until(&mut updates, &mut seen, listed).await;
    assert_eq!((names, rewound), (["version", "b", "c", "d"].map(str::to_owned).into(), false));
    assert_eq!(seen, ["+a"]);
    put(&store(&cluster), "e").await;
    while seen.last().is_none_or(|last| last != "+e") {
        until(&mut updates, &mut seen, |update| matches!(update, Update::Changed { .. }).then_some(())).await;
    }
}

#[tokio::test]
async fn a_restored_backup_is_flagged() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let (_session, mut updates) = Session::start(hasty(&cluster));
    let mut seen = Vec::new();
    until(&mut updates, &mut seen, listed).await;
    let snapshot = cluster.folder().join("snapshot");
    cluster.etcdctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    let other = store(&cluster);
    for name in ["a", "b", "c"] {
        put(&other, name).await;
    }
    while seen.len() < 3 {
        until(&mut updates, &mut seen, |update| matches!(update, Update::Changed { .. }).then_some(())).await;
    }
    cluster.restore(&snapshot);
    let (names, rewound) = until(&mut updates, &mut seen, listed).await;
    assert!(rewound);
    assert_eq!(names, ["version".to_owned()].into());
    put(&other, "d").await;
    while !seen.contains(&"+d".to_owned()) {
        until(&mut updates, &mut seen, |update| matches!(update, Update::Changed { .. }).then_some(())).await;
    }
}

#[tokio::test]
async fn a_restored_backup_that_has_come_further_is_seen_by_its_history() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let (mine, other) = (store(&cluster), store(&cluster));
    let mut after = mine.list(&Kind::WATCHED).await.expect("a list").revision;
    let snapshot = cluster.folder().join("snapshot");
    cluster.etcdctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    // Of one change at the same revision in both histories nothing could be told: here it is in another part.
    put(&other, "a").await;
    put(&other, "b").await;
    let mut watch = mine.watch(after).await.expect("a watch");
    while after < last(&cluster) {
        after = watch.next().await.expect("a change").revision;
    }
    // What was told is not told again, but it is there.
    let mut again = mine.watch(after).await.expect("a watch");
    assert_eq!(again.next().await.expect("the same history").changes, []);
    cluster.restore(&snapshot);
    for name in ["usage/c", "usage/d", "usage/e", "cluster/blocks/f"] {
        cluster.etcdctl(&["put", &format!("/tapir/v1/{name}"), "{}"]);
    }
    assert!(last(&cluster) > after);
    let told = loop {
        match mine.watch(after).await {
            Ok(mut watch) => break watch.next().await,
            // The connection is of before.
            Err(WatchError::Lost(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(other) => break Err(other),
        }
    };
    assert!(matches!(told, Err(WatchError::Rewritten(_))), "{told:?}");
}

#[tokio::test]
async fn a_full_store_is_named_and_recovers() {
    let options = Options { arguments: &["--quota-backend-bytes", "2000000"], ..Options::default() };
    let Some(cluster) = Cluster::start(options) else { return };
    let store = store(&cluster);
    let large = "x".repeat(100_000);
    let mut full = None;
    for number in 0..500 {
        let name = format!("{number:03}");
        match store.write(&write(Kind::Usage, &name, Some(&large), Expect::Absent)).await {
            // etcd looks at what it has on disk, where it puts what was written ten times a second.
            Ok(written) => {
                assert!(matches!(written, Written::Done(_)), "{written:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                full = Some(error);
                break;
            }
        }
    }
    let error = full.expect("it fills up");
    assert_eq!(error, StoreError::NoSpace { endpoint: cluster.endpoint(0) });
    assert!(error.to_string().contains("etcdctl alarm disarm"), "{error}");
    let listing = store.list(&[Kind::Usage]).await.expect("it can be read");
    // As the message says.
    for entry in &listing.entries {
        let removed = store.write(&write(Kind::Usage, &entry.key.name, None, Expect::Revision(entry.revision))).await;
        assert!(matches!(removed, Ok(Written::Done(_)) | Err(StoreError::NoSpace { .. })), "{removed:?}");
    }
    cluster.etcdctl(&["del", "--prefix", "/tapir/v1/usage/"]);
    cluster.etcdctl(&["compact", &last(&cluster).to_string()]);
    cluster.etcdctl(&["defrag"]);
    cluster.etcdctl(&["alarm", "disarm"]);
    put(&store, "a").await;
}

/// The store's revision.
fn last(cluster: &Cluster) -> u64 {
    let status: serde_json::Value =
        serde_json::from_str(&cluster.etcdctl(&["endpoint", "status", "-w", "json"])).unwrap();
    status[0]["Status"]["header"]["revision"].as_u64().unwrap()
}

#[tokio::test]
async fn a_node_that_is_killed_is_alive_no_more() {
    let Some(cluster) = Cluster::start(Options::default()) else { return };
    let other = store(&cluster);
    let (session, mut updates) = Session::start(store(&cluster));
    until(&mut updates, &mut Vec::new(), listed).await;
    session.set_alive(Some(Alive { name: "n".into(), value: "{}".into(), ttl: Duration::from_secs(2) }));
    let count = async || other.list(&[Kind::Alive]).await.unwrap().entries.len();
    let wait_for = async |wanted: usize| {
        let counted = timeout(PATIENCE, async {
            while count().await != wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        counted.await.unwrap_or_else(|_| panic!("never {wanted}"));
    };
    wait_for(1).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(count().await, 1, "it is renewed");
    cluster.etcdctl(&["del", "/tapir/v1/alive/n"]);
    wait_for(1).await;
    session.stop().await;
    assert_eq!(count().await, 0, "it is taken back at once");
    let (session, _updates) = Session::start(store(&cluster));
    session.set_alive(Some(Alive { name: "n".into(), value: "{}".into(), ttl: Duration::from_secs(2) }));
    wait_for(1).await;
    drop(session);
    wait_for(0).await;
}

/// What others put below the prefix is none of ours.
#[tokio::test]
async fn strange_entries_are_passed_over() {
    let Some(cluster) = Cluster::start(Options::default()) else { return };
    let store = store(&cluster);
    let first = put(&store, "a").await;
    let mut watch = store.watch(first).await.unwrap();
    for key in
        ["/tapir/v1/cluster/later/x", "/tapir/v1/cluster/blocks/a/b", "/tapir/v1/cluster/", "/tapir/v1", "/tapir/v12"]
    {
        cluster.etcdctl(&["put", key, "x"]);
        cluster.etcdctl(&["del", key]);
    }
    cluster.etcdctl(&["put", "/tapir/v1/cluster/blocks/text", "no JSON"]);
    let changes = changes(&mut watch).await;
    let [Change::Put(entry)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((entry.key.name.as_str(), entry.value.as_str()), ("text", "no JSON"));
    assert_eq!(store.list(&Kind::ALL).await.unwrap().entries.len(), 2);
}
