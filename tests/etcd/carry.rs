//! `tapirctl store` with a real etcd: what is exported, imported and migrated is the same.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use tapir::api::types::{Entries, StoreEntry};
use tapir::ctl;
use tapir_cni::protocol::{Reply, Request, read_message, write_message};

use crate::server::{Cluster, Options};

fn run(args: &[&str]) -> (u8, String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = ctl::run([&["tapirctl"], args].concat(), &mut stdout, &mut stderr);
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn held() -> Vec<(String, Value)> {
    let node = |last: u8| {
        json!({"instance": "i", "address": format!("172.31.0.{last}"), "subnet": "172.31.0.0/24", "version": "1",
               "later": {"z": 1, "a": [null, 1.5]}})
    };
    let mut entries = vec![
        ("cluster/format/version".to_owned(), json!({"version": 1})),
        ("cluster/pools/10.244.0.0-16".to_owned(), json!({"block_size": 26})),
        ("alive/n1".to_owned(), json!({"instance": "i"})),
    ];
    for number in 1..40_u8 {
        let name = format!("n{number}");
        entries.push((format!("cluster/nodes/{name}"), node(number)));
        let block = json!({"node": name, "claim": "c", "stage": "confirmed"});
        entries.push((format!("cluster/blocks/10.244.{number}.0-26"), block));
        entries.push((format!("usage/{name}"), json!({"addresses": {}})));
    }
    entries
}

/// A daemon that tells its store in parts, and its socket.
fn daemon(folder: &Path) -> String {
    let socket = folder.join("tapird.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Ok(request) = read_message::<Request>(&mut stream) {
                let Request::StoreEntries { after, .. } = request else { panic!("{request:?}") };
                let all = held();
                let start = after.map_or(0, |after| 1 + all.iter().position(|(key, _)| *key == after).unwrap());
                let part = all.iter().skip(start).take(50);
                let entry = |(key, value): &(String, Value)| StoreEntry {
                    key: key.clone(),
                    value: value.to_string(),
                    revision: 1,
                };
                let entries: Vec<StoreEntry> = part.map(entry).collect();
                let next = (start + 50 < all.len()).then(|| entries[entries.len() - 1].key.clone());
                let answer = Entries { revision: 9, stale: None, entries, next };
                write_message(&mut stream, &Reply::Ok(serde_json::to_value(answer).unwrap())).unwrap();
            }
        }
    });
    socket.to_str().unwrap().to_owned()
}

#[test]
fn what_is_carried_arrives_and_is_carried_back() {
    let Some(cluster) = Cluster::start(Options::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config = |name: &str, prefix: &str| {
        let endpoints = cluster.endpoints();
        write(name, format!("[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\nprefix = \"{prefix}\"\n"))
    };
    let (one, two) = (config("one.toml", "/one"), config("two.toml", "/two"));
    let socket = daemon(folder.path());

    let (status, steps, stderr) = run(&["--socket", &socket, "store", "migrate", "--to", &one]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(
        steps.starts_with("119 entries are in the store that") && steps.contains("systemctl restart tapird"),
        "{steps}"
    );
    let (status, exported, stderr) = run(&["store", "export", "--config", &one]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let (_, asked, _) = run(&["--socket", &socket, "store", "export"]);
    assert_eq!(exported, asked, "the leased is left out, the rest is the same");

    let file = write("export.json", exported.clone());
    let (status, told, stderr) = run(&["store", "import", &file, "--config", &two]);
    assert_eq!((status, told.as_str(), stderr.as_str()), (0, "119 entries written, 0 were there\n", ""));
    assert_eq!(run(&["store", "export", "--config", &two]).1, exported);

    let (status, _, stderr) = run(&["store", "import", &file, "--config", &two]);
    assert_eq!(status, 1);
    assert!(stderr.contains("already has 39 nodes and 39 blocks"), "{stderr}");
    let (status, told, _) = run(&["store", "import", &file, "--config", &two, "--force"]);
    assert_eq!((status, told.as_str()), (0, "0 entries written, 119 were there\n"));
}
