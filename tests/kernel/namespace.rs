//! Network namespaces that go away with the test.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tapir::sys::netns;

/// Whether the test can run; says why not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    let tun = std::path::Path::new("/dev/net/tun").exists();
    if !root || !tun {
        eprintln!("skipped: needs root and /dev/net/tun");
    }
    root && tun
}

/// A network namespace, deleted when dropped.
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tapir-kernel-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).expect("ip made it");
        let namespace = Self { name, file };
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(&self.file, work).expect("root may enter a namespace")
    }

    /// `ip -n NAME …`, which has to succeed.
    pub fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<_> = ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        String::from_utf8(run("ip", &arguments).stdout).expect("ip speaks ASCII")
    }

    /// Whether there is an interface of that name.
    pub fn has(&self, interface: &str) -> bool {
        let arguments = ["-n", &self.name, "link", "show", "dev", interface];
        Command::new("ip").args(arguments).output().expect("ip is installed").status.success()
    }

    /// Runs a shell command inside, with `/sys` of the namespace; it has to succeed.
    pub fn shell(&self, command: &str) -> String {
        let output = run("ip", &["netns", "exec", &self.name, "sh", "-c", command]);
        String::from_utf8(output.stdout).expect("ASCII")
    }

    /// Deletes it at once, as a runtime does that forgets to say DEL.
    pub fn delete(self) {}
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Joins two namespaces by a veth pair, `eth0` in both.
pub fn join(a: &Namespace, a_address: &str, b: &Namespace, b_address: &str) {
    veth(a, "eth0", a_address, b, "eth0", b_address);
}

/// Joins two namespaces by a veth pair.
pub fn veth(a: &Namespace, a_name: &str, a_address: &str, b: &Namespace, b_name: &str, b_address: &str) {
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {}", b.name()));
    for (namespace, name, address) in [(a, a_name, a_address), (b, b_name, b_address)] {
        namespace.ip(&format!("addr add {address} dev {name}"));
        namespace.ip(&format!("link set {name} up"));
    }
}

/// Waits until the descriptor is readable, or has an error.
pub fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let fd: BorrowedFd<'_> = fd.as_fd();
    let timeout = Timespec::try_from(timeout).expect("a short time");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("poll") > 0
}

/// Tries `what` for up to two seconds.
pub fn eventually<T>(mut what: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..100 {
        if let Some(found) = what() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().expect("iproute2 is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    output
}
