//! The program itself, as a runtime starts it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::call::Call;
use crate::daemon::{Daemon, Reaction, obey};
use crate::namespace::Namespace;
use crate::privileged;

fn spawn(call: &Call, stdin: &[u8]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tapir-cni"))
        .envs(&call.variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have given its answer before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child
}

fn run(call: &Call, stdin: &[u8]) -> Output {
    spawn(call, stdin).wait_with_output().unwrap()
}

fn version(text: &str) -> Call {
    let mut call = Call::new("VERSION", Path::new("dummy"), Path::new("/nonexistent/tapird.sock"));
    call.configuration = serde_json::from_str(text).unwrap();
    call
}

#[test]
fn version_needs_nothing_and_is_quick() {
    for (stdin, said) in [
        (r#"{"cniVersion": "1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion": "0.3.1"}"#, "0.3.1"),
        (r#"{"cniVersion": "9.9.9"}"#, "1.1.0"),
        ("", "1.1.0"),
        ("not JSON", "1.1.0"),
    ] {
        let output = run(&version("{}"), stdin.as_bytes());
        assert!(output.status.success());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let supported = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(answer, json!({"cniVersion": said, "supportedVersions": supported}), "{stdin}");
    }
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            run(&version("{}"), b"{}");
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("VERSION: median {:?}, most {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(100), "{times:?}");
}

#[test]
fn errors_go_to_standard_output() {
    let call = version("{}").variable("CNI_COMMAND", "PING");
    let output = run(&call, b"{}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &error["code"]), (Some(1), &json!(4)));

    let call = version("{}").variable("CNI_COMMAND", "STATUS");
    let long = format!("{{\"cniVersion\": \"1.1.0\", \"x\": \"{}\"}}", "x".repeat(1 << 20));
    let error: Value = serde_json::from_slice(&run(&call, long.as_bytes()).stdout).unwrap();
    assert_eq!(error["code"], 6, "{error}");
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_tapir-cni")).env_remove("CNI_COMMAND").output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("container runtime"));
    let output = Command::new(env!("CARGO_BIN_EXE_tapir-cni")).arg("--version").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"tapir-cni "));
}

#[test]
fn the_log_tells_what_was_done() {
    let daemon = Daemon::good();
    let file = daemon.folder().join("cni.log");
    let call =
        Call::new("DEL", Path::new(""), &daemon.socket).key("log_file", json!(file)).key("log_level", json!("Info"));
    assert!(run(&call, call.configuration.to_string().as_bytes()).status.success());
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.lines().count() == 1 && text.contains("DEL c1 eth0 done"), "{text}");
}

#[test]
fn a_plugin_killed_before_it_is_done_leaves_nothing() {
    if !privileged() {
        return;
    }
    let (pod, daemon) = (
        Namespace::new(),
        Daemon::start(|request| match request {
            tapir_cni::protocol::Request::Add(_) => Reaction::Keep(Duration::from_secs(30)),
            other => obey(other),
        }),
    );
    let call = Call::new("ADD", &pod.path(), &daemon.socket);
    let mut child = spawn(&call, call.configuration.to_string().as_bytes());
    while daemon.requests().is_empty() {
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    pod.settles(&[]);
}

/// Killed at any moment it leaves no interface, or a complete one that a DEL removes.
#[test]
fn a_plugin_killed_at_any_moment_leaves_nothing_half_made() {
    if !privileged() {
        return;
    }
    let (mut none, mut complete) = (0, 0);
    for round in 0..40 {
        let (pod, daemon) = (Namespace::new(), Daemon::good());
        let call = Call::new("ADD", &pod.path(), &daemon.socket);
        let mut child = spawn(&call, call.configuration.to_string().as_bytes());
        thread::sleep(Duration::from_micros(500 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        daemon.settle();
        let links = pod.links();
        if links.is_empty() {
            none += 1;
        } else {
            complete += 1;
            let link = &pod.json("-d link show eth0")[0];
            assert_eq!(
                (&link["ifalias"], &link["linkinfo"]["info_data"]["persist"]),
                (&json!("tapir:c1"), &json!(true))
            );
            assert!(pod.ip("route").contains("default via 169.254.1.1") && pod.ip("-6 route").contains("default via"));
        }
        call.verb("DEL").succeed();
        pod.settles(&[]);
    }
    println!("nothing left {none} times, complete {complete} times");
}
