//! Whatever dies when, no assignment is lost and nothing is left behind.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tapir_cni::client::Client;
use tapir_cni::error::code;
use tapir_cni::protocol::{Del, Request};

use crate::node::{Container, NETWORK, Node, eventually, privileged};

/// A small generator of numbers (xorshift), seeded: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

#[test]
fn a_corrupt_state_is_rebuilt_from_the_kernel() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&node), b.add(&node));
    let before: Vec<_> = node.endpoints().into_iter().map(|row| (row.container_id, row.mac, row.mtu)).collect();
    let path = node.state_dir().join("state.json");
    for damage in 0..3 {
        node.kill();
        let mut bytes = std::fs::read(&path).unwrap();
        match damage {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes[70] ^= 1,
            _ => bytes = b"{\"version\":99}".to_vec(),
        }
        std::fs::write(&path, &bytes).unwrap();
        node.restart();
        let kept = std::fs::read_dir(node.state_dir()).unwrap().flatten().map(|entry| entry.path());
        let kept: Vec<_> = kept.filter(|path| path.to_string_lossy().contains("corrupt")).collect();
        assert!(kept.iter().any(|path| std::fs::read(path).unwrap() == bytes), "set aside as it was");
        let log = node.log();
        assert!(kept.iter().all(|path| log.contains(&*path.to_string_lossy())), "named in the log");

        let rows = node.endpoints();
        let after: Vec<_> = rows.iter().map(|row| (row.container_id.clone(), row.mac.clone(), row.mtu)).collect();
        assert_eq!(after, before);
        assert!(rows.iter().all(|row| row.state == "attached" && row.namespace == "default"), "{rows:?}");
        assert!(a.namespace.pings(of_b[0]) && b.namespace.pings(of_a[1]));
    }
    let next = Container::new().add(&node);
    assert!(!of_a.contains(&next[0]) && !of_b.contains(&next[0]), "nobody's address is given twice");

    node.kill();
    std::fs::remove_file(&path).unwrap();
    node.restart();
    assert_eq!(node.state_of(&a.id).as_deref(), Some("attached"), "a lost state is rebuilt too");
}

#[test]
fn what_cannot_be_written_down_is_not_promised() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (kept, late) = (Container::new(), Container::new());
    kept.add(&node);
    // A folder where the next state is to be written first.
    let obstacle = node.state_dir().join("state.json.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    assert_eq!(late.refused(&node, |_| {}).code, code::IO_FAILURE);
    eventually("the ADD is taken back", || node.state_of(&late.id).is_none());
    assert!(node.status().problems.iter().any(|problem| problem.contains("state.json")));
    assert_eq!(node.ask(&Request::Ready { delegated: false }).unwrap_err().code, code::NOT_AVAILABLE);
    assert_eq!(node.del(&kept.id).unwrap_err().code, code::IO_FAILURE);
    std::fs::remove_dir(&obstacle).unwrap();
    node.del(&kept.id).expect("the next try is written down");
    assert!(node.status().ready);
    late.add(&node);
    node.restart();
    assert_eq!(node.endpoints().len(), 1);
}

/// Adds and deletes from several threads while the daemon is killed again and again.
#[test]
fn kills_lose_nothing() {
    if !privileged() {
        return;
    }
    const THREADS: usize = 4;
    const ROUNDS: usize = 12;
    let node = Mutex::new(Node::start(NETWORK));
    // What each attachment that was answered for has, by container.
    let promised: Mutex<BTreeMap<String, Vec<IpAddr>>> = Mutex::default();
    let containers: Mutex<Vec<Container>> = Mutex::default();
    let over = AtomicBool::new(false);
    let socket = node.lock().unwrap().socket();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                let (promised, containers, socket) = (&promised, &containers, &socket);
                scope.spawn(move || {
                    let mut dice = Dice(0x9e37_79b9 + seed as u64);
                    for _ in 0..ROUNDS {
                        let pod = Container::new();
                        let added = add(&pod, socket, &mut dice);
                        if let Some(addresses) = added {
                            promised.lock().unwrap().insert(pod.id.container_id.clone(), addresses);
                            if dice.roll(2) == 0 {
                                promised.lock().unwrap().remove(&pod.id.container_id);
                                delete(&pod, socket);
                            }
                        } else {
                            // As a runtime does after a failed ADD.
                            delete(&pod, socket);
                        }
                        containers.lock().unwrap().push(pod);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut dice = Dice(0xdead_beef);
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50 + dice.roll(400)));
                node.lock().unwrap().restart();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut node = node.into_inner().unwrap();
    node.restart();
    let rows: BTreeMap<String, Vec<IpAddr>> =
        node.endpoints().into_iter().map(|row| (row.container_id, row.addresses)).collect();
    let promised = promised.into_inner().unwrap();
    for (container, addresses) in &promised {
        assert_eq!(rows.get(container), Some(addresses), "{container} was answered for");
    }
    assert_eq!(rows.len(), promised.len(), "nothing that was deleted or refused is left");
    let mut all: Vec<IpAddr> = rows.values().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 2 * rows.len(), "no address twice");
    for pod in containers.into_inner().unwrap() {
        let there = rows.contains_key(&pod.id.container_id);
        assert_eq!(pod.namespace.has("eth0"), there, "{}", pod.id.container_id);
        if there {
            assert!(pod.namespace.pings("169.254.1.1"));
        }
    }
}

/// An ADD as the plugin does it, which may die half-way. None when it was not answered for.
fn add(pod: &Container, socket: &std::path::Path, dice: &mut Dice) -> Option<Vec<IpAddr>> {
    for _ in 0..50 {
        if let Ok(mut client) = Client::connect(socket, Duration::from_secs(10)) {
            let wiring: tapir_cni::protocol::Wiring = client.ask_for(&Request::Add(Box::new(pod.request()))).ok()?;
            if dice.roll(8) == 0 {
                return None;
            }
            let queues = pod.wire(&wiring);
            if dice.roll(8) == 0 {
                return None;
            }
            client.attach(&pod.id, &queues).ok()?;
            return Some(wiring.addresses.iter().map(|prefix| prefix.addr()).collect());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// A DEL as a runtime does it: again and again until it succeeds.
fn delete(pod: &Container, socket: &std::path::Path) {
    let del = Request::Del(Del { id: pod.id.clone(), netns: pod.namespace.path() });
    eventually("DEL succeeds", || {
        Client::connect(socket, Duration::from_secs(10)).is_ok_and(|mut client| client.ask(&del).is_ok())
    });
}
