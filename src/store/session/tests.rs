use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::time::timeout;

use super::*;
use crate::cluster::{Expect, Key};
use crate::store::memory::EmbeddedWatch;
use crate::store::{Batch, Embedded, Memory};

/// A store in memory that can be out of reach.
#[derive(Clone, Debug)]
struct Flaky {
    inner: Arc<Mutex<Embedded>>,
    down: watch::Sender<bool>,
    /// Writes never end.
    stuck: Arc<AtomicBool>,
    in_flight: Arc<Mutex<BTreeSet<Key>>>,
    most: Arc<AtomicUsize>,
    lists: Arc<AtomicUsize>,
}

impl Flaky {
    fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Embedded::new(Memory::new(4)))),
            down: watch::Sender::new(false),
            stuck: Arc::default(),
            in_flight: Arc::default(),
            most: Arc::default(),
            lists: Arc::default(),
        }
    }

    fn store(&self) -> Embedded {
        self.inner.lock().unwrap().clone()
    }

    fn put(&self, name: &str, expect: Expect) -> Revision {
        match self.store().with(|memory| memory.write(&write(name, expect))) {
            Written::Done(revision) => revision,
            other => panic!("{other:?}"),
        }
    }

    fn reachable(&self) -> Result<(), StoreError> {
        if *self.down.borrow() { Err(gone()) } else { Ok(()) }
    }
}

fn gone() -> StoreError {
    StoreError::Unreachable { endpoint: "memory".into(), reason: "switched off".into() }
}

fn write(name: &str, expect: Expect) -> Write {
    Write { key: Key::new(Kind::Block, name), value: Some("{}".into()), expect }
}

impl Store for Flaky {
    type Watch = FlakyWatch;

    async fn list(&self, kinds: &[Kind]) -> Result<Listing, StoreError> {
        self.reachable()?;
        self.lists.fetch_add(1, SeqCst);
        self.store().list(kinds).await
    }

    async fn watch(&self, after: Revision) -> Result<FlakyWatch, WatchError> {
        self.reachable()?;
        Ok(FlakyWatch { inner: self.store().watch(after).await?, down: self.down.subscribe() })
    }

    async fn write(&self, write: &Write) -> Result<Written, StoreError> {
        self.reachable()?;
        let count = {
            let mut in_flight = self.in_flight.lock().unwrap();
            assert!(in_flight.insert(write.key.clone()), "two for one key");
            in_flight.len()
        };
        self.most.fetch_max(count, SeqCst);
        tokio::task::yield_now().await;
        while self.stuck.load(SeqCst) {
            sleep(Duration::from_millis(1)).await;
        }
        self.in_flight.lock().unwrap().remove(&write.key);
        self.store().write(write).await
    }

    async fn announce(&self, name: &str, value: &str, ttl: Duration) -> Result<Lease, StoreError> {
        self.reachable()?;
        self.store().announce(name, value, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.reachable()?;
        self.store().renew(lease).await
    }

    async fn withdraw(&self, lease: &Lease) -> Result<(), StoreError> {
        self.reachable()?;
        self.store().withdraw(lease).await
    }
}

struct FlakyWatch {
    inner: EmbeddedWatch,
    down: watch::Receiver<bool>,
}

impl Watch for FlakyWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        tokio::select! {
            biased;
            _ = self.down.wait_for(|down| *down) => Err(gone().into()),
            batch = self.inner.next() => batch,
        }
    }
}

async fn next(updates: &mut mpsc::Receiver<Update>) -> Update {
    timeout(Duration::from_secs(600), updates.recv()).await.expect("an update in time").expect("a session")
}

async fn listed(updates: &mut mpsc::Receiver<Update>) -> (BTreeSet<String>, bool) {
    match next(updates).await {
        Update::Listed { entries, rewound, .. } => (entries.into_iter().map(|entry| entry.key.name).collect(), rewound),
        other => panic!("{other:?}"),
    }
}

async fn changed(updates: &mut mpsc::Receiver<Update>) -> Vec<String> {
    match next(updates).await {
        Update::Changed { changes, .. } => changes
            .into_iter()
            .map(|change| match change {
                Change::Put(entry) => format!("+{}", entry.key.name),
                Change::Deleted { key, .. } => format!("-{}", key.name),
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

async fn up(updates: &mut mpsc::Receiver<Update>) {
    let update = next(updates).await;
    assert!(matches!(update, Update::Up), "{update:?}");
}

async fn down(updates: &mut mpsc::Receiver<Update>) -> StoreError {
    match next(updates).await {
        Update::Down { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test(start_paused = true)]
async fn a_lost_watch_goes_on_without_a_gap_or_a_repeat() {
    let store = Flaky::new();
    let (_session, mut updates) = Session::start(store.clone());
    up(&mut updates).await;
    assert_eq!(listed(&mut updates).await, (names(["version"]), false));
    store.put("a", Expect::Absent);
    assert_eq!(changed(&mut updates).await, ["+a"]);

    store.down.send_replace(true);
    assert_eq!(down(&mut updates).await, gone());
    store.put("b", Expect::Absent);
    store.put("c", Expect::Absent);
    sleep(Duration::from_secs(100)).await;
    assert!(updates.try_recv().is_err(), "the same reason is told once");
    store.down.send_replace(false);
    up(&mut updates).await;
    assert_eq!(changed(&mut updates).await, ["+b", "+c"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_meanwhile_is_listed() {
    let store = Flaky::new();
    let (_session, mut updates) = Session::start(store.clone());
    up(&mut updates).await;
    listed(&mut updates).await;
    store.down.send_replace(true);
    down(&mut updates).await;
    for name in ["a", "b", "c", "d", "e"] {
        store.put(name, Expect::Absent);
    }
    store.down.send_replace(false);
    up(&mut updates).await;
    assert_eq!(listed(&mut updates).await, (names(["version", "a", "b", "c", "d", "e"]), false));
    store.put("f", Expect::Absent);
    assert_eq!(changed(&mut updates).await, ["+f"]);
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_is_listed_and_flagged() {
    let store = Flaky::new();
    let (_session, mut updates) = Session::start(store.clone());
    up(&mut updates).await;
    listed(&mut updates).await;
    let backup = store.store().with(|memory| memory.clone());
    store.put("a", Expect::Absent);
    assert_eq!(changed(&mut updates).await, ["+a"]);
    store.down.send_replace(true);
    down(&mut updates).await;
    *store.inner.lock().unwrap() = Embedded::new(backup);
    store.down.send_replace(false);
    up(&mut updates).await;
    assert_eq!(listed(&mut updates).await, (names(["version"]), true));
    store.put("b", Expect::Absent);
    assert_eq!(changed(&mut updates).await, ["+b"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_at_first_is_found_later() {
    let store = Flaky::new();
    store.down.send_replace(true);
    let (session, mut updates) = Session::start(store.clone());
    down(&mut updates).await;
    session.write(write("a", Expect::Absent));
    let Update::Written { result: Written::Unknown, error: Some(error), .. } = next(&mut updates).await else {
        panic!("a write that can't be known about")
    };
    assert_eq!(error, gone());
    assert_eq!(session.read(&[Kind::Usage]).await.unwrap(), Err(gone()));
    sleep(Duration::from_secs(1000)).await;
    store.down.send_replace(false);
    up(&mut updates).await;
    assert_eq!(listed(&mut updates).await, (names(["version"]), false));
}

#[tokio::test(start_paused = true)]
async fn another_layout_is_refused_until_it_is_ours() {
    let store = Flaky::new();
    let layout = |value: &str, expect| {
        let write = Write { key: layout::key(), value: Some(value.to_owned()), expect };
        match store.store().with(|memory| memory.write(&write)) {
            Written::Done(revision) => Expect::Revision(revision),
            other => panic!("{other:?}"),
        }
    };
    let expect = layout("{\"version\":2}", Expect::Absent);
    let (_session, mut updates) = Session::start(store.clone());
    let reason = down(&mut updates).await.to_string();
    assert_eq!(reason, "the store's layout is version 2, this tapird knows 1: upgrade tapird");
    let expect = layout("two", expect);
    let reason = down(&mut updates).await.to_string();
    assert!(reason.starts_with("the store's cluster/format/version is \"two\", which tells no version"), "{reason}");
    let expect = layout("{\"version\":1,\"more\":true}", expect);
    up(&mut updates).await;
    listed(&mut updates).await;
    layout("{\"version\":3}", expect);
    assert_eq!(down(&mut updates).await, StoreError::Layout { found: 3, known: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_layout_that_was_deleted_is_written_again() {
    let store = Flaky::new();
    let (_session, mut updates) = Session::start(store.clone());
    up(&mut updates).await;
    listed(&mut updates).await;
    let layout = || store.store().with(|memory| memory.get(&layout::key()).cloned());
    let before = layout().expect("written on the first contact");
    let remove = Write { key: layout::key(), value: None, expect: Expect::Revision(before.revision) };
    assert!(matches!(store.store().with(|memory| memory.write(&remove)), Written::Done(_)));
    assert_eq!(changed(&mut updates).await, ["-version"]);
    assert_eq!(changed(&mut updates).await, ["+version"]);
    assert_eq!(layout().expect("it is there again").value, before.value);
}

#[tokio::test(start_paused = true)]
async fn writes_of_a_key_wait_for_each_other_and_others_do_not() {
    let store = Flaky::new();
    let (session, mut updates) = Session::start(store.clone());
    up(&mut updates).await;
    listed(&mut updates).await;
    store.stuck.store(true, SeqCst);
    for name in 0..40 {
        session.write(write(&name.to_string(), Expect::Absent));
        session.write(write(&name.to_string(), Expect::Absent));
    }
    sleep(Duration::from_millis(10)).await;
    store.stuck.store(false, SeqCst);
    let (mut done, mut conflicts) = (BTreeSet::new(), BTreeSet::new());
    while conflicts.len() < 40 {
        if let Update::Written { write, result, error } = next(&mut updates).await {
            assert_eq!(error, None);
            match result {
                Written::Done(_) => assert!(done.insert(write.key)),
                Written::Conflict(Some(entry)) => {
                    assert_eq!(entry.key, write.key);
                    assert!(done.contains(&write.key), "in order");
                    assert!(conflicts.insert(write.key));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((done.len(), store.most.load(SeqCst)), (40, 32));
}

#[tokio::test(start_paused = true)]
async fn the_node_is_alive_for_as_long_as_it_says() {
    let store = Flaky::new();
    let (session, mut updates) = Session::start(store.clone());
    tokio::spawn(async move { while updates.recv().await.is_some() {} });
    let alive = |value: &str| Alive { name: "n".into(), value: value.into(), ttl: Duration::from_secs(30) };
    let seen = async || {
        let listing = store.store().list(&[Kind::Alive]).await.unwrap();
        listing.entries.into_iter().map(|entry| (entry.key.name, entry.value)).collect::<Vec<_>>()
    };
    let n = |value: &str| vec![("n".to_owned(), value.to_owned())];
    let settle = || sleep(Duration::from_secs(1));

    session.set_alive(Some(alive("1")));
    settle().await;
    assert_eq!(seen().await, n("1"));
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(seen().await, n("1"), "it is renewed");
    session.set_alive(Some(alive("2")));
    settle().await;
    assert_eq!(seen().await, n("2"));

    store.down.send_replace(true);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(seen().await, [], "others see that it is gone");
    store.down.send_replace(false);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(seen().await, n("2"), "it comes back");

    // Somebody removes it by hand.
    let revision = store.store().with(|memory| memory.get(&Key::new(Kind::Alive, "n")).unwrap().revision);
    let remove = Write { key: Key::new(Kind::Alive, "n"), value: None, expect: Expect::Revision(revision) };
    assert!(matches!(store.store().with(|memory| memory.write(&remove)), Written::Done(_)));
    sleep(Duration::from_secs(11)).await;
    assert_eq!(seen().await, n("2"), "it comes back");

    session.set_alive(None);
    settle().await;
    assert_eq!(seen().await, []);
    session.set_alive(Some(alive("3")));
    settle().await;
    session.stop().await;
    assert_eq!(seen().await, []);
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_could_not_be_taken_back_is_not_anothers() {
    let store = Flaky::new();
    let (session, mut updates) = Session::start(store.clone());
    let others = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&others);
    tokio::spawn(async move {
        while let Some(update) = updates.recv().await {
            if let Update::Announced { other: Some(other) } = update {
                told.lock().unwrap().push(other);
            }
        }
    });
    let alive = |value: &str| Alive { name: "n".into(), value: value.into(), ttl: Duration::from_secs(600) };
    session.set_alive(Some(alive("1")));
    sleep(Duration::from_secs(1)).await;
    store.down.send_replace(true);
    session.set_alive(Some(alive("2")));
    sleep(Duration::from_secs(1)).await;
    store.down.send_replace(false);
    sleep(Duration::from_secs(11)).await;
    let entry = store.store().with(|memory| memory.get(&Key::new(Kind::Alive, "n")).cloned());
    assert_eq!(entry.map(|entry| entry.value).as_deref(), Some("2"));
    assert_eq!(*others.lock().unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_hears_ends() {
    let store = Flaky::new();
    let (mut session, updates) = Session::start(store.clone());
    drop(updates);
    store.put("a", Expect::Absent);
    session.write(write("b", Expect::Absent));
    while timeout(Duration::from_secs(600), session._tasks.join_next()).await.expect("they end").is_some() {}
}
