//! The quickstart cleans up after itself, however it ends.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::lab::{self, Background, eventually, fresh_name, namespaces, noisy, programs, repository, succeed};

/// A quickstart in a process group of its own, as from a terminal.
fn quickstart(name: &str) -> Background {
    // A shell's background jobs ignore SIGINT and so would their children; a terminal's do not.
    let mut command = Command::new("setsid");
    command.args(["env", "--default-signal=INT"]).arg(repository().join("scripts/quickstart"));
    command.args(["--name", name, "--rounds", "1", "--bin"]).arg(programs());
    Background::start(&mut command)
}

fn pid(process: &Background) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).expect("a pid")).expect("a pid")
}

fn left(name: &str) -> Vec<String> {
    let mut left = namespaces(name);
    for path in [format!("/run/tapir-lab/{name}"), format!("/run/tapir-lab/{name}.quickstart")] {
        left.extend(Path::new(&path).exists().then_some(path));
    }
    let processes = succeed(Command::new("ps").args(["-eo", "pid=,args="]));
    left.extend(processes.lines().filter(|line| line.contains(&format!("/run/tapir-lab/{name}/"))).map(str::to_owned));
    left
}

#[test]
fn it_works_again_right_after_it_was_killed() {
    if !lab::possible() {
        return;
    }
    let _noisy = noisy();
    let name = fresh_name();
    let mut killed = quickstart(&name);
    killed.wait_for("Ping works", Duration::from_secs(60));
    kill_process(pid(&killed), Signal::KILL).expect("kill it");
    drop(killed);
    assert!(!left(&name).is_empty());

    let (code, output) = quickstart(&name).finish(Duration::from_secs(90));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("two pods on one node") && output.contains("two pods on two nodes"), "{output}");
    assert_eq!(left(&name), Vec::<String>::new());
}

#[test]
fn it_leaves_nothing_after_an_interrupt() {
    if !lab::possible() {
        return;
    }
    let _noisy = noisy();
    for (stage, signal, code) in
        [("Starting", Signal::INT, 130), ("Ping works", Signal::INT, 130), ("Ping works", Signal::TERM, 143)]
    {
        let name = fresh_name();
        let mut interrupted = quickstart(&name);
        interrupted.wait_for(stage, Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(200));
        kill_process_group(pid(&interrupted), signal).expect("interrupt it");
        let (ended, output) = interrupted.finish(Duration::from_secs(30));
        assert_eq!(ended, Some(code), "{stage}: {output}");
        assert!(eventually(Duration::from_secs(5), || left(&name).is_empty()), "{stage}: left {:?}", left(&name));
    }
}
