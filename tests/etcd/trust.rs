//! Who may: certificates, passwords, permissions.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use tapir::cluster::{Expect, Kind};
use tapir::store::etcd::Settings;
use tapir::store::session::{Session, Update};
use tapir::store::{Etcd, Store, StoreError, WatchError};
use tokio::time::sleep;

use super::server::{Certificates, Cluster, Options};
use super::{changes, put, settings, store, told, update, write};

async fn listing_fails(settings: Settings) -> StoreError {
    Etcd::new(settings).unwrap().list(&[Kind::Pool]).await.expect_err("it is refused")
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let Some(cluster) = Cluster::start(Options { tls: true, ..Options::default() }) else { return };
    let Certificates { ca, cert, key } = cluster.certificates.clone().unwrap();
    let right = Settings { ca: Some(ca), identity: Some((cert, key)), ..settings(&cluster) };
    let store = Etcd::new(right.clone()).unwrap();
    let first = put(&store, "a").await;
    let mut watch = store.watch(first).await.unwrap();
    let second = put(&store, "b").await;
    assert_eq!(changes(&mut watch).await.iter().map(told).collect::<Vec<_>>(), [("+b".to_owned(), second)]);

    let other = Certificates::make(cluster.folder(), "other");
    let missing = PathBuf::from("/nowhere/ca.pem");
    for (settings, message) in [
        (Settings { ca: Some(other.ca.clone()), ..right.clone() }, "invalid peer certificate"),
        (Settings { ca: None, ..right.clone() }, "invalid peer certificate"),
        (Settings { identity: None, ..right.clone() }, "received fatal alert"),
        (Settings { identity: Some((other.cert, other.key)), ..right.clone() }, "received fatal alert"),
    ] {
        let error = listing_fails(settings).await;
        let text = error.to_string();
        assert!(text.contains(&cluster.endpoint(0)), "{text}");
        if matches!(error, StoreError::Unreachable { .. }) {
            // A server that wants another certificate may be gone before its alert is read.
            assert_eq!(message, "received fatal alert", "{text}");
            assert!(text.ends_with("the server may want another client certificate (store.cert, store.key)"), "{text}");
        } else {
            assert!(matches!(error, StoreError::Untrusted { .. }) && text.contains(message), "{message}: {error:?}");
            assert!(text.ends_with("check store.ca, store.cert and store.key"), "{text}");
        }
    }
    let error = listing_fails(Settings { ca: Some(missing), ..right.clone() }).await;
    assert_eq!(error.to_string(), "store.ca: /nowhere/ca.pem: No such file or directory (os error 2)");
    let plain = vec![cluster.endpoint(0).replace("https", "http")];
    let error = listing_fails(Settings { endpoints: plain, ..right }).await;
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let Some(cluster) = Cluster::start(Options::default()) else { return };
    let endpoints = vec![cluster.endpoint(0).replace("http", "https")];
    let certificates = Certificates::make(cluster.folder(), "ca");
    let error = listing_fails(Settings { endpoints, ca: Some(certificates.ca), ..Settings::default() }).await;
    assert!(error.to_string().contains("is its URL http://?"), "{error}");
}

#[tokio::test]
async fn users_are_checked_and_tokens_renewed() {
    let options = Options { arguments: &["--auth-token-ttl", "2"], ..Options::default() };
    let Some(mut cluster) = Cluster::start(options) else { return };
    let password = cluster.folder().join("password");
    fs::write(&password, "secret\n").unwrap();
    let named = |name: &str| Settings { user: Some((name.to_owned(), password.clone())), ..settings(&cluster) };
    let error = listing_fails(named("tapir")).await;
    assert!(error.to_string().contains("authentication turned off"), "{error}");
    for command in [
        &["role", "add", "reader"][..],
        &["role", "grant-permission", "reader", "--prefix=true", "read", "/tapir/v1/"],
        &["user", "add", "reader:secret"],
        &["user", "grant-role", "reader", "reader"],
        &["user", "add", "nobody:secret"],
    ] {
        cluster.etcdctl(command);
    }
    limit(&cluster);
    let named = |name: &str| Settings { user: Some((name.to_owned(), password.clone())), ..settings(&cluster) };
    let tapir = Etcd::new(named("tapir")).unwrap();
    let first = put(&tapir, "a").await;
    let mut watch = tapir.watch(first).await.unwrap();
    let lease = tapir.announce("n", "{}", Duration::from_secs(600)).await.unwrap();
    // Nothing uses the token while it runs out.
    sleep(Duration::from_secs(5)).await;
    let second = put(&tapir, "b").await;
    assert_eq!(changes(&mut watch).await.iter().map(told).collect::<Vec<_>>(), [("+b".to_owned(), second)]);
    sleep(Duration::from_secs(5)).await;
    let mut watch = tapir.watch(first).await.unwrap();
    assert_eq!(changes(&mut watch).await.iter().map(told).collect::<Vec<_>>(), [("+b".to_owned(), second)]);
    sleep(Duration::from_secs(5)).await;
    tapir.renew(&lease).await.unwrap();

    let error = listing_fails(settings(&cluster)).await;
    assert!(matches!(error, StoreError::Credentials { .. }), "no user: {error:?}");
    let error = listing_fails(named("nobody")).await;
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("permission denied to list; grant nobody read and write below /tapir/v1"), "{text}");
    let reader = Etcd::new(named("reader")).unwrap();
    assert_eq!(reader.list(&[Kind::Block]).await.unwrap().entries.len(), 2);
    let error = reader.write(&write(Kind::Block, "c", Some("{}"), Expect::Absent)).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    let error = Etcd::new(named("nobody")).unwrap().watch(first).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, WatchError::Lost(StoreError::Denied { .. })), "{error:?}");

    // The password is changed, first in etcd and then in the file.
    cluster.user = Some("root:root");
    cluster.etcdctl(&["user", "delete", "tapir"]);
    cluster.etcdctl(&["user", "add", "tapir:other"]);
    cluster.etcdctl(&["user", "grant-role", "tapir", "tapir"]);
    let error = tapir.list(&[Kind::Block]).await.unwrap_err();
    assert!(matches!(error, StoreError::Credentials { .. }), "{error:?}");
    assert!(error.to_string().ends_with("check store.username and store.password_file"), "{error}");
    fs::write(&password, "other").unwrap();
    assert_eq!(tapir.list(&[Kind::Block]).await.unwrap().entries.len(), 2);
}

/// Lets in whom etcd knows, among them a user who may do what is needed below the prefix and nothing else.
fn limit(cluster: &Cluster) {
    for command in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "tapir"],
        &["role", "grant-permission", "tapir", "--prefix=true", "readwrite", "/tapir/v1/"],
        &["user", "add", "tapir:secret"],
        &["user", "grant-role", "tapir", "tapir"],
        &["auth", "enable"],
    ] {
        cluster.etcdctl(command);
    }
}

/// As that user.
fn limited(cluster: &mut Cluster) -> Settings {
    let password = cluster.folder().join("password");
    fs::write(&password, "secret").unwrap();
    limit(cluster);
    cluster.user = Some("root:root");
    Settings { user: Some(("tapir".to_owned(), password)), ..settings(cluster) }
}

#[tokio::test]
async fn a_silent_server_is_left_by_all_who_wait_for_it() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let limited = limited(&mut cluster);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = [format!("http://{}", silent.local_addr().unwrap()), cluster.endpoint(0)];
    let settings = Settings { endpoints: endpoints.into(), timeout: Duration::from_secs(4), ..limited };
    let store = Etcd::new(settings).unwrap();
    let list = || store.list(&[Kind::Block]);
    // The time of the second goes by while the first is logging in.
    let (first, second) = tokio::join!(list(), list());
    for listing in [first, second] {
        assert_eq!(listing.expect("the other server's").entries, []);
    }
}

#[tokio::test]
async fn a_restored_backup_is_flagged_to_a_user_of_the_prefix_alone() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let settings = limited(&mut cluster);
    let (_session, mut updates) = Session::start(Etcd::new(settings.clone()).unwrap());
    while !matches!(update(&mut updates).await, Update::Listed { .. }) {}
    let snapshot = cluster.folder().join("snapshot");
    cluster.etcdctl(&["snapshot", "save", snapshot.to_str().unwrap()]);
    let other = Etcd::new(settings).unwrap();
    for name in ["a", "b", "c"] {
        put(&other, name).await;
    }
    let mut seen = 0;
    while seen < 3 {
        if let Update::Changed { changes, .. } = update(&mut updates).await {
            seen += changes.len();
        }
    }
    cluster.restore(&snapshot);
    let rewound = loop {
        if let Update::Listed { rewound, .. } = update(&mut updates).await {
            break rewound;
        }
    };
    assert!(rewound);
}

#[tokio::test]
async fn nobody_listens() {
    let Some(mut cluster) = Cluster::start(Options::default()) else { return };
    let store = store(&cluster);
    cluster.kill(0);
    let error = store.list(&[Kind::Pool]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&cluster.endpoint(0)) && text.contains("Connection refused"), "{text}");
    let error = store.write(&write(Kind::Pool, "a", Some("{}"), Expect::Absent)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "nothing was sent: {error:?}");
    cluster.start_member(0);
    cluster.wait();
    put(&store, "a").await;
}
