//! What every kind of store must do: the same assertions for each, of which [`conform!`] makes tests.

use std::collections::BTreeSet;
use std::time::Duration;

use tapir::cluster::{Change, Entry, Expect, Key, Kind, Revision, Write, Written};
use tapir::store::{Batch, Store, StoreError, Watch, WatchError, layout};
use tokio::time::{sleep, timeout};

/// As long is waited for what has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A store, and what is beyond its interface.
pub trait Rig: Sized {
    type Store: Store;
    /// None: it can't be had here.
    fn new() -> Option<Self>;
    fn store(&self) -> &Self::Store;
    fn compact(&self, to: Revision);
}

/// Tests of a kind of store, in a module of their own.
macro_rules! conform {
    ($module:ident, $rig:ty) => {
        conform!(
            @ $module, $rig,
            a_write_needs_what_it_expects,
            an_entry_is_removed_as_expected,
            kinds_are_listed_by_themselves,
            a_watch_tells_every_change_once_and_in_order,
            a_watch_goes_on_from_any_revision,
            a_compacted_history_is_not_watched,
            an_entry_goes_with_its_lease,
            a_lease_is_lost_with_its_entry,
            an_entry_that_says_nothing_is_anothers,
            who_has_announced_has_an_entry,
            thousands_are_listed_as_of_one_moment,
            of_many_who_write_one_succeeds,
            the_layout_is_agreed_on
        );
    };
    (@ $module:ident, $rig:ty, $($test:ident),*) => {
        mod $module {
            $(#[tokio::test] async fn $test() { crate::suite::$test::<$rig>().await })*
        }
    };
}
pub(crate) use conform;

pub fn write(kind: Kind, name: &str, value: Option<&str>, expect: Expect) -> Write {
    Write { key: Key::new(kind, name), value: value.map(str::to_owned), expect }
}

/// Writes what must succeed.
pub async fn done(store: &impl Store, write: Write) -> Revision {
    match store.write(&write).await {
        Ok(Written::Done(revision)) => revision,
        other => panic!("{write:?}: {other:?}"),
    }
}

pub async fn put(store: &impl Store, name: &str) -> Revision {
    done(store, write(Kind::Block, name, Some("{}"), Expect::Absent)).await
}

/// `+NAME` or `-NAME`, and the revision.
pub fn told(change: &Change) -> (String, Revision) {
    match change {
        Change::Put(entry) => (format!("+{}", entry.key.name), entry.revision),
        Change::Deleted { key, revision } => (format!("-{}", key.name), *revision),
    }
}

/// The next changes; word that there are none is passed over.
pub async fn changes(watch: &mut impl Watch) -> Vec<Change> {
    loop {
        let batch = timeout(PATIENCE, watch.next()).await.expect("a batch in time").unwrap();
        if !batch.changes.is_empty() {
            return batch.changes;
        }
    }
}

pub async fn a_write_needs_what_it_expects<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let block = |value: &'static str, expect| write(Kind::Block, "10.244.0.0/26", Some(value), expect);
    let first = done(store, block("{\"n\":1}", Expect::Absent)).await;
    let entry = Entry { key: Key::new(Kind::Block, "10.244.0.0/26"), value: "{\"n\":1}".into(), revision: first };
    for expect in [Expect::Absent, Expect::Revision(first - 1), Expect::Revision(first + 1)] {
        let written = store.write(&block("{\"n\":2}", expect)).await;
        assert_eq!(written, Ok(Written::Conflict(Some(entry.clone()))), "{expect:?}");
    }
    let second = done(store, block("{\"n\":2}", Expect::Revision(first))).await;
    assert!(second > first);
    let written = store.write(&block("{\"n\":3}", Expect::Revision(first))).await;
    assert_eq!(written, Ok(Written::Conflict(Some(Entry { value: "{\"n\":2}".into(), revision: second, ..entry }))));
    let written = store.write(&write(Kind::Block, "other", Some("{}"), Expect::Revision(second))).await;
    assert_eq!(written, Ok(Written::Conflict(None)), "a revision of another entry");
    let third = done(store, block("{\"n\":2}", Expect::Revision(second))).await;
    assert!(third > second, "the same value is a write too");
}

pub async fn an_entry_is_removed_as_expected<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let remove = |expect| write(Kind::Block, "b", None, expect);
    let first = put(store, "b").await;
    let second = done(store, write(Kind::Block, "b", Some("2"), Expect::Revision(first))).await;
    assert!(matches!(store.write(&remove(Expect::Revision(first))).await, Ok(Written::Conflict(Some(_)))));
    assert!(matches!(store.write(&remove(Expect::Absent)).await, Ok(Written::Conflict(Some(_)))));
    let removed = done(store, remove(Expect::Revision(second))).await;
    assert!(removed > second);
    assert_eq!(store.list(&[Kind::Block]).await.unwrap().entries, []);
    assert_eq!(store.write(&remove(Expect::Revision(second))).await, Ok(Written::Conflict(None)));
    // Nothing is done, and nothing is wrong.
    assert_eq!(store.write(&remove(Expect::Absent)).await, Ok(Written::Done(removed)));
    let again = put(store, "b").await;
    assert!(again > removed);
    let written = store.write(&remove(Expect::Revision(second))).await;
    assert!(matches!(written, Ok(Written::Conflict(Some(_)))), "an entry that was removed and made again is another");
}

pub async fn kinds_are_listed_by_themselves<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let writable = [Kind::Format, Kind::Pool, Kind::Node, Kind::Block, Kind::Usage, Kind::Address];
    let mut last = 0;
    for kind in writable {
        // Names that sort around what separates folders.
        for name in ["a-b", "a", "a.b", "z", "~", "0"] {
            last = done(store, write(kind, name, Some("{}"), Expect::Absent)).await;
        }
    }
    for kind in writable {
        let listing = store.list(&[kind]).await.unwrap();
        let names: Vec<_> = listing.entries.iter().map(|entry| (entry.key.kind, entry.key.name.as_str())).collect();
        assert_eq!(names, ["0", "a", "a-b", "a.b", "z", "~"].map(|name| (kind, name)));
        assert_eq!(listing.revision, last);
    }
    let listing = store.list(&[Kind::Usage, Kind::Pool]).await.unwrap();
    assert_eq!(listing.entries.len(), 12);
    assert!(listing.entries.is_sorted_by_key(|entry| entry.key.clone()));
    assert_eq!(store.list(&[Kind::Alive]).await.unwrap().entries, []);
}

/// Takes batches until so many changes were told; they and the last batch's revision.
async fn take(watch: &mut impl Watch, count: usize) -> (Vec<(String, Revision)>, Revision) {
    let (mut changes, mut revision) = (Vec::new(), 0);
    while changes.len() < count {
        let batch = timeout(PATIENCE, watch.next()).await.expect("a batch in time").unwrap();
        changes.extend(batch.changes.iter().map(told));
        revision = batch.revision;
        assert!(changes.last().is_none_or(|(_, at)| *at <= revision));
    }
    (changes, revision)
}

/// Writes, rewrites and removes, also what is not watched; what a watch is to tell.
async fn history(store: &impl Store, count: usize) -> Vec<(String, Revision)> {
    let mut expected = Vec::new();
    for number in 0..count {
        let name = number.to_string();
        let first = put(store, &name).await;
        done(store, write(Kind::Usage, &name, Some("{}"), Expect::Absent)).await;
        expected.push((format!("+{name}"), first));
        if number % 2 == 0 {
            let second = done(store, write(Kind::Block, &name, Some("2"), Expect::Revision(first))).await;
            let removed = done(store, write(Kind::Block, &name, None, Expect::Revision(second))).await;
            expected.extend([(format!("+{name}"), second), (format!("-{name}"), removed)]);
        }
    }
    expected
}

pub async fn a_watch_tells_every_change_once_and_in_order<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    put(store, "before").await;
    let listing = store.list(&Kind::WATCHED).await.unwrap();
    let mut watch = store.watch(listing.revision).await.unwrap();
    let expected = history(store, 20).await;
    let (changes, revision) = take(&mut watch, expected.len()).await;
    assert_eq!(changes, expected);
    assert!(revision >= changes.last().unwrap().1);
    // A watch may be left alone at any time.
    for round in 0..5 {
        let _ = timeout(Duration::from_millis(5), watch.next()).await;
        let at = put(store, &format!("later-{round}")).await;
        let _ = timeout(Duration::ZERO, std::future::pending::<Batch>()).await;
        assert_eq!(take(&mut watch, 1).await.0, [(format!("+later-{round}"), at)]);
    }
}

pub async fn a_watch_goes_on_from_any_revision<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let start = put(store, "before").await;
    let expected = history(store, 5).await;
    let end = expected.last().unwrap().1;
    for after in start..end {
        let rest: Vec<_> = expected.iter().filter(|(_, at)| *at > after).cloned().collect();
        let mut watch = store.watch(after).await.unwrap();
        assert_eq!(take(&mut watch, rest.len()).await.0, rest, "after {after}");
    }
}

pub async fn a_compacted_history_is_not_watched<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let first = put(store, "a").await;
    let mut last = first;
    for name in ["b", "c", "d"] {
        last = put(store, name).await;
    }
    rig.compact(last);
    let ended = match store.watch(first).await {
        Ok(mut watch) => timeout(PATIENCE, watch.next()).await.expect("word in time"),
        Err(error) => Err(error),
    };
    assert!(matches!(ended, Err(WatchError::Compacted(_))), "{ended:?}");
    let ended = store.watch(last + 1000).await.map(|_| ());
    let refused = matches!(ended, Err(WatchError::Compacted(_) | WatchError::Rewritten(_)));
    assert!(refused, "of the future: {ended:?}");
    assert_eq!(store.list(&[Kind::Block]).await.unwrap().entries.len(), 4);
    let mut watch = store.watch(last).await.unwrap();
    let at = put(store, "e").await;
    assert_eq!(take(&mut watch, 1).await.0, [("+e".to_owned(), at)]);
}

async fn alive(store: &impl Store) -> Vec<(String, String)> {
    let listing = store.list(&[Kind::Alive]).await.unwrap();
    listing.entries.into_iter().map(|entry| (entry.key.name, entry.value)).collect()
}

pub async fn an_entry_goes_with_its_lease<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let short = store.announce("short", "1", Duration::from_secs(2)).await.unwrap();
    let long = store.announce("long", "1", Duration::from_secs(600)).await.unwrap();
    assert!(short.ttl >= Duration::from_secs(2) && long.ttl >= Duration::from_secs(600));
    for _ in 0..4 {
        sleep(short.ttl / 3).await;
        store.renew(&short).await.unwrap();
    }
    assert_eq!(alive(store).await.len(), 2);
    timeout(PATIENCE, async {
        while alive(store).await.len() > 1 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it ends");
    assert_eq!(alive(store).await, [("long".to_owned(), "1".to_owned())]);
    assert_eq!(store.renew(&short).await, Err(StoreError::LeaseGone { key: "alive/short".into() }));
    store.withdraw(&short).await.unwrap();
    store.withdraw(&long).await.unwrap();
    assert_eq!(alive(store).await, []);
}

pub async fn a_lease_is_lost_with_its_entry<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let old = store.announce("n", "1", Duration::from_secs(600)).await.unwrap();
    let other = store.announce("n", "2", Duration::from_secs(600)).await;
    assert_eq!(other, Err(StoreError::Taken { key: "alive/n".into(), value: "1".into() }), "another daemon's");
    let new = store.announce("n", "1", Duration::from_secs(600)).await.unwrap();
    assert!(matches!(store.renew(&old).await, Err(StoreError::LeaseGone { .. })), "it is another's");
    store.withdraw(&old).await.unwrap();
    store.renew(&new).await.unwrap();
    assert_eq!(alive(store).await, [("n".to_owned(), "1".to_owned())]);
    let revision = store.list(&[Kind::Alive]).await.unwrap().entries[0].revision;
    done(store, write(Kind::Alive, "n", None, Expect::Revision(revision))).await;
    assert!(matches!(store.renew(&new).await, Err(StoreError::LeaseGone { .. })), "removed by hand");
}

pub async fn an_entry_that_says_nothing_is_anothers<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    done(store, write(Kind::Alive, "n", Some(""), Expect::Absent)).await;
    let announced = store.announce("n", "1", Duration::from_secs(600)).await;
    assert_eq!(announced, Err(StoreError::Taken { key: "alive/n".into(), value: String::new() }));
}

pub async fn who_has_announced_has_an_entry<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    // Another daemon's entry comes and goes, and never takes the place of ours.
    let flicker = async {
        loop {
            if let Ok(Written::Done(revision)) = store.write(&write(Kind::Alive, "n", Some("2"), Expect::Absent)).await
            {
                done(store, write(Kind::Alive, "n", None, Expect::Revision(revision))).await;
            }
            tokio::task::yield_now().await;
        }
    };
    let announce = async {
        for _ in 0..300 {
            match store.announce("n", "1", Duration::from_secs(600)).await {
                Ok(lease) => {
                    store.renew(&lease).await.expect("its entry is there");
                    store.withdraw(&lease).await.unwrap();
                }
                Err(error) => assert!(matches!(&error, StoreError::Taken { value, .. } if value == "2"), "{error:?}"),
            }
        }
    };
    tokio::select! {
        () = announce => {}
        () = flicker => unreachable!("it flickers for ever"),
    }
}

pub async fn thousands_are_listed_as_of_one_moment<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let start = store.list(&[Kind::Pool]).await.map(|listing| listing.revision).unwrap();
    let names: Vec<_> = (0..3000).map(|number| format!("{number:05}")).collect();
    for part in names.chunks(50) {
        futures(part.iter().map(|name| put(store, name))).await;
    }
    // While somebody writes, what is listed and what is watched from there is the truth.
    let writing = async {
        for number in 0..30 {
            put(store, &format!("x{number:02}")).await;
        }
    };
    let listing = async {
        let listing = store.list(&[Kind::Pool, Kind::Block]).await.unwrap();
        assert!(listing.entries.iter().all(|entry| entry.revision <= listing.revision));
        listing
    };
    let (listing, ()) = tokio::join!(listing, writing);
    let listed: BTreeSet<_> = listing.entries.iter().map(|entry| entry.key.name.clone()).collect();
    assert_eq!(listed.len(), listing.entries.len(), "none twice");
    let mut watch = store.watch(listing.revision).await.unwrap();
    let rest = 3030 - listed.len();
    let watched: BTreeSet<_> =
        take(&mut watch, rest).await.0.into_iter().map(|(name, _)| name[1..].to_owned()).collect();
    assert!(listed.is_disjoint(&watched));
    assert_eq!(listed.len() + watched.len(), 3030);
    // The whole history in a few batches, each from a watch of its own: where one ends the next goes on.
    let (mut told_all, mut after, mut batches) = (Vec::new(), start, 0);
    while told_all.len() < 3030 {
        let mut watch = store.watch(after).await.unwrap();
        let batch = timeout(PATIENCE, watch.next()).await.expect("a batch in time").unwrap();
        told_all.extend(batch.changes.iter().map(told));
        after = batch.revision;
        batches += 1;
    }
    assert!(told_all.is_sorted_by(|left, right| left.1 < right.1), "once and in order");
    assert_eq!(told_all.len(), 3030, "in {batches}");
}

/// All of them, at the same time.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

pub async fn of_many_who_write_one_succeeds<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    let counted = std::cell::RefCell::new(Vec::new());
    futures((0..20).map(|_| async {
        // Each adds one, as often as it takes.
        loop {
            let listing = store.list(&[Kind::Pool]).await.unwrap();
            let (count, expect) = listing
                .entries
                .first()
                .map_or((0, Expect::Absent), |entry| (entry.value.parse().unwrap(), Expect::Revision(entry.revision)));
            let value = (count + 1).to_string();
            match store.write(&write(Kind::Pool, "counter", Some(&value), expect)).await.unwrap() {
                Written::Done(_) => break counted.borrow_mut().push(count + 1),
                Written::Conflict(Some(entry)) => assert_ne!(Expect::Revision(entry.revision), expect),
                other => panic!("{other:?}"),
            }
        }
    }))
    .await;
    counted.borrow_mut().sort_unstable();
    assert_eq!(counted.into_inner(), (1..=20).collect::<Vec<i32>>());
}

pub async fn the_layout_is_agreed_on<R: Rig>() {
    let Some(rig) = R::new() else { return };
    let store = rig.store();
    layout::agree(store).await.unwrap();
    layout::agree(store).await.unwrap();
    let listing = store.list(&Kind::WATCHED).await.unwrap();
    let [entry] = &listing.entries[..] else { panic!("{listing:?}") };
    assert_eq!((entry.key.to_string().as_str(), entry.value.as_str()), ("cluster/format/version", "{\"version\":1}"));
    done(store, write(Kind::Format, "version", Some("{\"version\":2}"), Expect::Revision(entry.revision))).await;
    assert_eq!(layout::agree(store).await, Err(StoreError::Layout { found: 2, known: 1 }));
    let mut watch = store.watch(listing.revision).await.unwrap();
    let batch = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(&batch.changes[..], [Change::Put(_)]));
}
