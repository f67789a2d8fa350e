//! Whatever comes in, the plugin answers with a result or an error object. The mutations are the same in each run.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde_json::{Value, json};
use tapir_cni::conf::Configuration;
use tapir_cni::env::{Args, Variables};
use tapir_cni::pod::Plan;
use tapir_cni::protocol::{Del, Reply, Request, Wiring, encode, read_message};

use crate::daemon::wiring;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

const TOKENS: [&str; 14] =
    ["{", "}", "[", "]", ",", ":", "\"", "null", "-1", "1e999", "\\u0000", "\"ips\":", "::/0", "\u{a0}"];

/// Flips, drops, doubles or inserts, up to four times.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let (at, length) = (random.below(bytes.len()), random.below(8));
        let end = (at + length).min(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].bytes())),
        }
    }
}

/// Puts another value, of another kind, somewhere into a JSON value.
fn mutate_value(value: &mut Value, random: &mut Random) {
    let inner: Vec<&mut Value> = match value {
        Value::Object(keys) => keys.iter_mut().map(|(_, value)| value).collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    };
    let count = inner.len();
    if count > 0 && random.below(4) > 0 {
        return mutate_value(inner.into_iter().nth(random.below(count)).unwrap(), random);
    }
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(1.5),
        json!(""),
        json!("x"),
        json!("0.0.0.0/0"),
        json!("::"),
        json!([]),
        json!({}),
        json!([[]]),
        json!([{}]),
        json!("ff:ff:ff:ff:ff:ff"),
        json!("1.1.0"),
    ];
    *value = others[random.below(others.len())].clone();
}

fn configuration(folder: &Path) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni", "socket": folder.join("tapird.sock"),
        "log_file": folder.join("cni.log"), "log_level": "error", "timeout_ms": 100,
        "ipam": {"type": ""}, "dns": {"nameservers": ["192.0.2.53"], "search": ["a"]},
        "args": {"cni": {"ips": ["10.0.0.1"]}},
        "runtimeConfig": {
            "ips": ["10.0.0.5/24", "fd00::5"], "mac": "02:00:00:00:00:05",
            "ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.20"}]],
        },
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/nonexistent/netns", "mtu": 1480}],
            "ips": [{"address": "10.0.0.5/32", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}],
        },
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    })
}

fn variables(random: &mut Random, command: &str, path: &Path) -> Variables {
    let mut variables: Variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/nonexistent/netns"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;IP=10.0.0.5;MAC=02:00:00:00:00:05"),
        ("CNI_PATH", path.to_str().unwrap()),
    ]
    .into_iter()
    .map(|(key, value)| (key.into(), value.into()))
    .collect();
    if random.below(3) == 0 {
        let key: OsString = variables.keys().nth(random.below(variables.len())).unwrap().clone();
        let mut value = variables.remove(&key).unwrap_or_default().into_vec();
        mutate(&mut value, random);
        value.retain(|byte| *byte != 0);
        variables.insert(key, OsString::from_vec(value));
    }
    variables
}

/// A mutated path must not lead a test out of its folder.
fn stays_inside(stdin: &[u8], folder: &Path) -> bool {
    Configuration::parse(stdin).is_ok_and(|configuration| {
        let inside = |path: &Path| path.parent() == Some(folder) && path.file_name().is_some();
        inside(&configuration.socket) && configuration.log_file.as_deref().is_some_and(inside)
    })
}

#[test]
fn no_input_is_too_strange() {
    // A queued DEL is synced, which takes its time on a disk.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let folder = folder.path();
    let mut random = Random(7);
    let (mut run, mut refused, mut bad) = (0, 0, 0);
    for round in 0..20_000 {
        let mut value = configuration(folder);
        if round % 2 == 0 {
            mutate_value(&mut value, &mut random);
        }
        let mut stdin = value.to_string().into_bytes();
        if round % 3 == 0 {
            mutate(&mut stdin, &mut random);
        }
        let command = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"][round % 6];
        let variables = variables(&mut random, command, folder);
        let args = variables.get(OsString::from("CNI_ARGS").as_os_str()).map(|args| args.as_bytes().to_vec());
        let _ = Args::parse(&String::from_utf8_lossy(&args.unwrap_or_default()));
        if !stays_inside(&stdin, folder) {
            // Refused before anything is done; not worth a line on stderr each.
            bad += usize::from(Configuration::parse(&stdin).is_err());
            continue;
        }
        let mut stdout = Vec::new();
        let exit = tapir_cni::run(&variables, &mut stdin.as_slice(), &mut stdout);
        run += 1;
        if exit == 0 {
            assert!(stdout.is_empty() || serde_json::from_slice::<Value>(&stdout).is_ok());
            continue;
        }
        refused += 1;
        let error: Value = serde_json::from_slice(&stdout).unwrap();
        assert!(exit == 1 && error["code"].as_u64().is_some_and(|code| code > 0), "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    println!("{run} run, {refused} of them refused, {bad} configurations refused");
    assert!(run > 5_000 && bad > 2_000);
}

#[test]
fn no_message_is_too_strange() {
    let mut random = Random(11);
    let seeds = [
        encode(&Request::Ready { delegated: false }).unwrap(),
        encode(&Reply::Ok(serde_json::to_value(wiring()).unwrap())).unwrap(),
        br#"{"verb":"add","container_id":"c","interface":"eth0","netns":"/n","addresses":["10.0.0.1"]}"#.to_vec(),
        br#"{"verb":"check","container_id":"c","interface":"eth0","addresses":[],"mac":""}"#.to_vec(),
    ];
    let mut plans = 0;
    for round in 0..40_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        if round >= seeds.len() {
            mutate(&mut bytes, &mut random);
        }
        let _ = read_message::<Request>(&mut bytes.as_slice());
        let _ = serde_json::from_slice::<Request>(&bytes);
        let _ = serde_json::from_slice::<Del>(&bytes);
        if let Ok(Reply::Ok(value)) = read_message::<Reply>(&mut bytes.as_slice()) {
            plans += usize::from(serde_json::from_value::<Wiring>(value).is_ok_and(|it| Plan::try_from(it).is_ok()));
        }
    }
    println!("{plans} plans");
    assert!(plans > 0);
}

#[test]
fn messages_are_bounded() {
    let long = u32::to_be_bytes(tapir_cni::protocol::MAX_MESSAGE as u32 + 1);
    let error = read_message::<Value>(&mut long.as_slice()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let error = read_message::<Value>(&mut [0, 0, 0, 9, b'{'].as_slice()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    let most = "x".repeat(tapir_cni::protocol::MAX_MESSAGE - 2);
    let bytes = encode(&most).unwrap();
    assert_eq!(read_message::<String>(&mut bytes.as_slice()).unwrap(), most);
    let error = encode(&format!("{most}x")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
