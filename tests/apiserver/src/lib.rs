//! A stand-in for the Kubernetes API server, for tests: plain HTTP on a socket, objects in memory, faults on order.
//!
//! What a client of the API relies on is as in the page "Kubernetes API Concepts" of the Kubernetes documentation:
//! one growing resource version, conflicts, preconditions, lists in pages of one revision, watches with bookmarks that
//! expire, patches, the subresource `status`, finalizers, discovery, definitions of custom resources.
//!
//! Left out: validation and defaults of objects, and what controllers do (no addresses for services, no pods for a
//! DaemonSet, no graceful end of pods, no garbage collection by owners), admission, access rules but for those denied
//! on order, `managedFields` and the conflicts of server-side apply, conversion between versions of a custom resource,
//! pruning by its schema, tables, protobuf, all subresources but `status`, create by PUT. A namespace need not exist for
//! objects in it; deleted, it is gone at once with all that is in it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};
use tokio::sync::watch as channel;

mod discovery;
mod failure;
mod faults;
mod handle;
mod list;
mod listen;
mod patch;
mod request;
mod resource;
mod selector;
mod store;
mod watch;
mod write;

pub use failure::Failure;
pub use faults::Refusal;
pub use handle::Handle;
pub use resource::Resource;

use faults::{Faults, Order};
use store::Store;

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The bearer token that every request must bring.
    pub token: Option<String>,
    /// How often a watch that allows bookmarks gets one.
    pub bookmarks: Duration,
    /// How many changes are kept; older revisions are compacted.
    pub history: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { token: None, bookmarks: Duration::from_secs(1), history: 10_000 }
    }
}

/// What the connections and the handles share.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// The latest revision, for who waits for the next one.
    revision: channel::Sender<u64>,
    faults: channel::Sender<Faults>,
    requests: Mutex<BTreeMap<(String, String), u64>>,
    open_watches: AtomicUsize,
    options: Options,
    listener: TcpListener,
    address: SocketAddr,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.store)
    }

    /// Changes the store, and tells who waits for it; a dry run changes a copy.
    fn change<T>(&self, dry: bool, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        if dry {
            return change(&mut store.clone());
        }
        let result = change(&mut store);
        self.revision.send_replace(store.revision());
        result
    }

    fn count(&self, verb: &str, resource: &str) {
        *locked(&self.requests).entry((verb.into(), resource.into())).or_default() += 1;
    }

    /// Whether the answer of this write is to be lost.
    fn take_lost_answer(&self) -> bool {
        let mut lost = false;
        self.faults.send_if_modified(|faults| {
            lost = std::mem::take(&mut faults.lose_answer);
            false
        });
        lost
    }

    /// Refuses connections and ends those there are.
    fn go(&self) -> io::Result<()> {
        self.faults.send_modify(|faults| {
            faults.gone = true;
            faults.connections_cut += 1;
        });
        listen::refuse(&self.listener, self.address)
    }

    fn come_back(&self) -> io::Result<()> {
        listen::accept_again(&self.listener)?;
        self.faults.send_modify(|faults| faults.gone = false);
        Ok(())
    }

    /// `GET /_faults` tells what was counted, `POST /_faults` sets faults.
    fn order(self: &Arc<Self>, method: &Method, body: &Bytes) -> Result<Value, Failure> {
        if method == Method::POST {
            let order = serde_json::from_slice(body)
                .map_err(|e| Failure::bad_request(format!("not an order of faults: {e}")))?;
            self.obey(order)?;
        }
        let requests = locked(&self.requests);
        let requests: BTreeMap<String, u64> =
            requests.iter().map(|((verb, of), n)| (format!("{verb} {of}"), *n)).collect();
        Ok(json!({ "requests": requests, "openWatches": self.open_watches.load(Ordering::Relaxed) }))
    }

    fn obey(self: &Arc<Self>, order: Order) -> Result<(), Failure> {
        self.faults.send_modify(|faults| {
            if order.clear {
                let Faults { gone, over, connections_cut, watches_cut, .. } = *faults;
                *faults = Faults { gone, over, connections_cut, watches_cut, ..Faults::default() };
            }
            faults.hang = order.hang.unwrap_or(faults.hang);
            faults.delay = order.delay_ms.map_or(faults.delay, Duration::from_millis);
            faults.refusal = order.refuse.or(faults.refusal);
            faults.lose_answer |= order.lose_next_answer;
            faults.watches_cut += u64::from(order.cut_watches);
            faults.denied.extend(order.deny);
        });
        if order.compact {
            self.store().compact();
        }
        if let Some(gone) = order.gone_ms {
            self.go().map_err(|e| Failure::new(500, "InternalError", format!("cannot go: {e}")))?;
            let shared = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(gone)).await;
                // Where it cannot, it stays gone, which every client sees.
                shared.come_back().ok();
            });
        }
        Ok(())
    }
}

/// A running server. It ends when this goes.
#[derive(Debug)]
pub struct ApiServer {
    handle: Handle,
}

impl ApiServer {
    /// Serves on a port of 127.0.0.1 that the kernel chooses, by tasks of the current runtime.
    pub async fn start(options: Options) -> io::Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?, options)
    }

    /// Serves on `listener`, by tasks of the current runtime. The listener may have been bound in another network namespace.
    pub fn serve(listener: TcpListener, options: Options) -> io::Result<Self> {
        let server = Self::on(listener, options)?;
        tokio::spawn(listen::accept(server.handle.0.clone()));
        Ok(server)
    }

    /// As [`ApiServer::serve`], from a thread of its own: for who has no runtime.
    pub fn serve_in_thread(listener: TcpListener, options: Options) -> io::Result<Self> {
        let server = Self::on(listener, options)?;
        let shared = server.handle.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("apiserver".into()).spawn(move || runtime.block_on(listen::accept(shared)))?;
        Ok(server)
    }

    fn on(listener: TcpListener, options: Options) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let store = Store::new(options.history);
        let shared = Shared {
            revision: channel::Sender::new(store.revision()),
            store: Mutex::new(store),
            faults: channel::Sender::default(),
            requests: Mutex::default(),
            open_watches: AtomicUsize::new(0),
            options,
            address: listener.local_addr()?,
            listener,
        };
        Ok(Self { handle: Handle(Arc::new(shared)) })
    }

    /// What tests hold it by.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.handle.0.faults.send_modify(|faults| faults.over = true);
        // What it cannot refuse, nobody takes any more.
        self.handle.0.go().ok();
    }
}
