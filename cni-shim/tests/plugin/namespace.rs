//! Network namespaces that go with the test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A namespace under `/run/netns`.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cni{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        Self { name }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip` with `arguments`, inside.
    pub fn ip(&self, arguments: &str) -> String {
        let mut words = vec!["ip", "-n", &self.name];
        words.extend(arguments.split(' '));
        run(&words)
    }

    /// `ip -j` with `arguments`, inside.
    pub fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ip(&format!("-j {arguments}"))).unwrap()
    }

    pub fn sysctl(&self, key: &str) -> String {
        run(&["ip", "netns", "exec", &self.name, "cat", &format!("/proc/sys/{key}")]).trim().into()
    }

    pub fn set_sysctl(&self, key: &str, value: &str) {
        run(&["ip", "netns", "exec", &self.name, "sh", "-c", &format!("echo {value} > /proc/sys/{key}")]);
    }

    /// Waits until these are all links but loopback. A process that another test is just starting has every
    /// descriptor of this one until it executes, so a device may outlive its last queue by a moment.
    pub fn settles(&self, names: &[&str]) {
        let end = Instant::now() + Duration::from_secs(2);
        while self.links() != names {
            assert!(Instant::now() < end, "{:?} instead of {names:?}", self.links());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The names of all links but loopback.
    pub fn links(&self) -> Vec<String> {
        let links = self.json("link");
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
