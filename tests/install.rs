//! `tapirctl install` and `uninstall`, killed at each system call that changes a file: what a runtime reads is always the
//! configuration before or the one after, whole, and a second run completes it.

#![allow(clippy::print_stdout, reason = "a test says what it skips, and what it counted")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tapir_cni::protocol::{Reply, Request, read_message, write_message};

/// What changes a folder or a file in it. A kill comes before the call does anything.
const CALLS: [&str; 8] = ["openat", "write", "fchmod", "fsync", "rename", "unlink", "mkdir", "close"];
/// More steps than any run takes.
const MOST: u32 = 200;
const OTHER: &str = r#"{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge"}]}"#;

/// What a node has: the two folders, the plugin to install, and a daemon that serves.
struct Node {
    root: tempfile::TempDir,
}

impl Node {
    /// With another network's configuration and an older plugin, or with nothing.
    fn new(used: bool) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let node = Self { root };
        fs::write(node.at("new"), plugin("1.1.0")).expect("the plugin");
        make_executable(&node.at("new"));
        if used {
            for folder in ["bin", "net.d"] {
                fs::create_dir(node.at(folder)).expect("a folder");
            }
            fs::write(node.at("bin/tapir-cni"), plugin("0.4.0")).expect("the old plugin");
            fs::write(node.at("net.d/05-other.conflist"), OTHER).expect("another configuration");
            fs::write(node.at("net.d/99-loopback.conf.off"), "not read").expect("another file");
        }
        let config = format!("node.state_dir = {:?}\n", node.at("state"));
        fs::write(node.at("tapird.toml"), config).expect("the config");
        serve(&node.at("tapird.sock"));
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        self.under(verb, &[])
    }

    /// In a network namespace of its own where it would take something away there, and under another program.
    fn under(&self, verb: &str, wrapper: &[&str]) -> Command {
        let alone: &[&str] = if verb == "uninstall" { &["unshare", "--net"] } else { &[] };
        let program = [env!("CARGO_BIN_EXE_tapirctl")];
        let mut words = alone.iter().chain(wrapper).chain(&program);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).current_dir(self.root.path());
        self.arguments(verb, &mut command);
        command
    }

    /// Runs `verb` to its end, which has to be a good one.
    #[track_caller]
    fn completes(&self, verb: &str) -> String {
        let output = self.command(verb).args(aside(verb)).output().expect("run it");
        done(&output);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Under strace, which kills at the `number`th `call`.
    fn killed_at(&self, verb: &str, call: &str, number: u32) -> Output {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
        let strace = ["strace", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        self.under(verb, &strace).args(aside(verb)).output().expect("run strace")
    }

    fn arguments(&self, verb: &str, command: &mut Command) {
        // Uninstalling is for when the daemon is gone.
        let socket = if verb == "install" { "tapird.sock" } else { "none.sock" };
        command.arg(verb).args(["--socket", socket]);
        command.arg("--cni-bin-dir").arg(self.at("bin")).arg("--cni-conf-dir").arg(self.at("net.d"));
        if verb == "install" {
            command.arg("--plugin").arg(self.at("new"));
        } else {
            command.arg("--config").arg(self.at("tapird.toml"));
        }
    }

    /// The configuration that a runtime would use, as libcni chooses and reads it; whole, if there is one.
    fn in_force(&self) -> Option<String> {
        let files = listing(&self.at("net.d"));
        let read = |name: &&String| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
        let name = files.keys().find(read)?;
        let conflist: Value = serde_json::from_slice(&files[name]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let used = conflist["name"].as_str().expect("a name").to_owned();
        if used == "tapir" {
            assert_eq!(conflist["plugins"][0]["socket"], self.at("tapird.sock").to_str().expect("a readable path"));
            assert_eq!(listing(&self.at("bin"))["tapir-cni"], plugin("1.1.0").as_bytes(), "its plugin");
        }
        Some(used)
    }

    /// The plugin is one of those there ever were, whole.
    fn plugin_is_whole(&self) {
        let Some(found) = listing(&self.at("bin")).remove("tapir-cni") else { return };
        let found = String::from_utf8(found).expect("text");
        assert!([plugin("1.1.0"), plugin("0.4.0")].contains(&found), "{found}");
    }

    /// Everything there is, as it would be on a node of another name.
    fn files(&self) -> BTreeMap<String, String> {
        let root = self.root.path().to_str().expect("a readable path");
        let text = |content: Vec<u8>| String::from_utf8(content).expect("text").replace(root, "/node");
        let of = |folder: &str| listing(&self.at(folder)).into_iter();
        of("bin").chain(of("net.d")).map(|(name, content)| (name, text(content))).collect()
    }
}

fn plugin(version: &str) -> String {
    format!("#!/bin/sh\ncat >/dev/null\necho '{{\"supportedVersions\":[\"{version}\"]}}'\n")
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

fn listing(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().expect("a readable name"), fs::read(entry.path()).expect("a file"))
    };
    entries.map(|entry| read(entry.expect("an entry"))).collect()
}

/// A daemon that would serve an ADD.
fn serve(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            while let Ok(request) = read_message::<Request>(&mut stream) {
                assert_eq!(request, Request::Ready { delegated: false });
                if write_message(&mut stream, &Reply::Ok(Value::Null)).is_err() {
                    break;
                }
            }
        }
    });
}

/// Others' configurations go aside.
fn aside(verb: &str) -> &'static [&'static str] {
    if verb == "install" { &["--others", "aside"] } else { &[] }
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Kills `verb` at each of its calls, on a fresh node each time; returns at how many of each.
fn at_each_call(verb: &str, used: bool, allowed: &[Option<&str>]) -> BTreeMap<&'static str, u32> {
    let start = || {
        let node = Node::new(used);
        if verb == "uninstall" {
            node.completes("install");
        }
        node
    };
    let expected = {
        let node = start();
        node.completes(verb);
        node.files()
    };
    let mut kills = BTreeMap::new();
    for call in CALLS {
        for number in 1..MOST {
            let node = start();
            let output = node.killed_at(verb, call, number);
            if output.status.signal() != Some(9) {
                done(&output);
                break;
            }
            *kills.entry(call).or_default() += 1;
            let view = node.in_force();
            assert!(allowed.contains(&view.as_deref()), "{verb} killed at {call} {number}: {view:?}");
            node.plugin_is_whole();
            node.completes(verb);
            assert_eq!(node.files().keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            assert!(node.files() == expected, "{verb} killed at {call} {number}, and completed");
            assert!(number + 1 < MOST, "{call} has no end");
        }
    }
    kills
}

/// Uninstalling takes what is in the network namespace, too, so that has to be one of its own.
fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for a network namespace");
        return false;
    }
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        println!("skipped: strace is not installed");
    }
    found
}

#[test]
fn killed_anywhere_an_install_leaves_one_whole_configuration_in_force() {
    if !possible() {
        return;
    }
    let kills = at_each_call("install", true, &[Some("other"), Some("tapir")]);
    println!("killed at {kills:?}");
    // The plugin, the configuration, the other one aside; each file and its folder.
    assert!(kills["rename"] >= 3 && kills["fsync"] >= 5 && kills["write"] >= 2, "{kills:?}");
    at_each_call("install", false, &[None, Some("tapir")]);
}

#[test]
fn killed_anywhere_an_uninstall_leaves_one_whole_configuration_in_force() {
    if !possible() {
        return;
    }
    let kills = at_each_call("uninstall", true, &[Some("other"), Some("tapir")]);
    println!("killed at {kills:?}");
    assert!(kills["rename"] >= 1 && kills["unlink"] >= 2 && kills["fsync"] >= 3, "{kills:?}");
    at_each_call("uninstall", false, &[None, Some("tapir")]);
}

#[test]
fn there_and_back_is_as_before() {
    if !possible() {
        return;
    }
    let node = Node::new(true);
    let before = listing(&node.at("net.d"));
    node.completes("install");
    assert_eq!(node.in_force().as_deref(), Some("tapir"));
    assert_eq!(node.completes("install"), "everything is in place already\n");
    node.completes("uninstall");
    assert_eq!(listing(&node.at("net.d")), before);
    assert!(!node.at("bin/tapir-cni").exists());
}

#[test]
fn a_configuration_that_would_not_be_read_is_refused() {
    let node = Node::new(true);
    let before = node.files();
    let output = node.command("install").args(["--others", "keep"]).output().expect("run it");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("05-other.conflist comes before 10-tapir.conflist"), "{said}");
    assert!(node.files() == before, "something changed");
}

#[test]
fn without_a_daemon_there_is_a_plugin_and_no_configuration() {
    let node = Node::new(false);
    fs::remove_file(node.at("tapird.sock")).expect("the daemon's socket");
    let output = node.command("install").args(["--wait", "0"]).output().expect("run it");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("tapird does not serve after 0 s"), "{output:?}");
    assert_eq!(node.files().into_keys().collect::<Vec<_>>(), ["tapir-cni"]);
}

#[test]
fn one_that_waits_for_ever_ends_when_it_is_told_to() {
    let node = Node::new(false);
    fs::remove_file(node.at("tapird.sock")).expect("the daemon's socket");
    let mut child = node.command("install").args(["--repeat", "1s", "--wait", "forever"]).spawn().expect("run it");
    let start = Instant::now();
    while !node.at("bin/tapir-cni").exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "no plugin");
        thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("told");
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn a_plugin_that_does_not_run_changes_nothing() {
    let node = Node::new(true);
    let before = node.files();
    fs::write(node.at("new"), "#!/bin/sh\necho no >&2; exit 3\n").expect("write it");
    let output = node.command("install").args(["--others", "aside"]).output().expect("run it");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("exit status: 3: no; give the plugin"), "{said}");
    assert!(node.files() == before, "something changed");
}

#[test]
fn one_that_stays_does_it_again_until_it_is_told_to_end() {
    let node = Node::new(false);
    let conflist = node.at("net.d/10-tapir.conflist");
    let mut child = node.command("install").args(["--repeat", "1s"]).stdout(Stdio::piped()).spawn().expect("run it");
    for _ in 0..2 {
        let start = Instant::now();
        while !conflist.exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "no configuration");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(node.in_force().as_deref(), Some("tapir"));
        fs::remove_file(&conflist).expect("somebody removes it");
    }
    // Whether it is waiting or at work.
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("told");
    assert!(child.wait().expect("it ends").success());
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(said.matches("10-tapir.conflist written").count(), said.lines().count() - 1, "{said}");
}
