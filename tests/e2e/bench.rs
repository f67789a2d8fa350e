//! `scripts/bench`: one small case to the end, and a run that is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab;

/// `scripts/bench` with the programs under test; builds `tapir-load` if nobody has.
fn bench(name: &str) -> Command {
    let programs = lab::programs();
    if !programs.join("tapir-load").exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--release", "--package", "tapir-load"]).current_dir(lab::repository());
        lab::succeed(&mut build);
    }
    let mut command = Command::new(lab::repository().join("scripts/bench"));
    command.args(["--quick", "--name", name, "--bin"]).arg(programs);
    command
}

/// Nothing of the run is left: its labs' names all begin with its own.
fn nothing_left(name: &str) -> bool {
    let netns = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let labs = std::fs::read_dir("/run/tapir-lab").into_iter().flatten().flatten();
    let prefix = format!("tapir-{name}");
    !netns.map(|e| e.file_name()).any(|found| found.to_string_lossy().starts_with(&prefix))
        && !labs.map(|e| e.file_name()).any(|found| found.to_string_lossy().starts_with(name))
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON")
}

#[test]
fn a_case_is_measured_beside_its_yardstick_and_reported() {
    if !lab::possible() {
        return;
    }
    let _noise = lab::noisy();
    let name = lab::fresh_name();
    let folder = tempfile::tempdir().expect("a folder");
    let (json, html) = (folder.path().join("b.json"), folder.path().join("b.html"));
    let mut command = bench(&name);
    command.args(["--only", "^(rtt1/same|connect/same|add/pods0|del/pods0)$", "--rounds", "1", "--json"]).arg(&json);
    let table = lab::succeed(command.arg("--html").arg(&html));

    let report = read(&json);
    for key in ["cpus", "model", "kernel", "date", "revision", "busy_cpus_before"] {
        assert!(!report["machine"][key].is_null(), "no {key} in {}", report["machine"]);
    }
    let samples = report["samples"].as_array().expect("samples");
    let of = |case: &str, path: &str, figure: &str| {
        samples.iter().find(|s| s["case"] == case && s["path"] == path).and_then(|s| s["figures"][figure].as_f64())
    };
    for path in ["same", "veth"] {
        assert!(of("rtt1/same", path, "p50_us").is_some_and(|us| us > 0.0), "{path}: {samples:?}");
        assert!(of("connect/same", path, "per_second").is_some_and(|rate| rate > 0.0), "{path}: {samples:?}");
    }
    assert!(of("add/pods0", "many", "ms").is_some_and(|ms| ms > 0.0), "{samples:?}");
    for row in report["rows"].as_array().expect("rows") {
        assert!(table.contains(row["title"].as_str().expect("a title")), "{row} is not in\n{table}");
    }
    assert!(std::fs::read_to_string(&html).expect("written").contains("<svg"));
    assert!(nothing_left(&name));
}

#[test]
fn a_killed_run_leaves_nothing() {
    if !lab::possible() {
        return;
    }
    let _noise = lab::noisy();
    for signal in [Signal::TERM, Signal::INT] {
        let name = lab::fresh_name();
        let mut command = bench(&name);
        command.args(["--only", "^(rtt1/same|tcp1/same)$", "--rounds", "1000"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
        let mut progress = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = progress.find(|line| line.as_ref().is_ok_and(|line| line.contains("round 1")));
        kill_process(Pid::from_child(&child), signal).expect("it runs");
        // Its progress is read to the end, so that it never waits for us.
        progress.for_each(drop);
        let status = child.wait().expect("it ends");
        assert!(first.is_some(), "no sample was taken");
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?}: {status}");
        assert!(lab::eventually(Duration::from_secs(5), || nothing_left(&name)), "{signal:?} left something");
    }
}

#[test]
fn a_pattern_that_matches_nothing_names_the_cases() {
    if !lab::possible() {
        return;
    }
    let output = bench(&lab::fresh_name()).args(["--only", "nothing-of-the-kind"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{}", lab::text(&output));
    assert!(lab::text(&output).contains("rtt1/same"), "{}", lab::text(&output));
}
