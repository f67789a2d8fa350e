//! How many instructions `forward` takes for a packet, against what it may: `scripts/instructions`.
//!
//! Time says little on a machine that is shared; instructions are the same in every run. This program starts itself under
//! callgrind, which counts inside [`measured`] only and writes what it has counted at each [`counted`]. The
//! budgets stand in `instructions.toml`: who exceeds one fails. `--write` writes them anew, after a change that is worth it,
//! or with another compiler.
//!
//! Usage: `instructions BUDGETS FOLDER [--write]`, where `FOLDER` is for what callgrind writes.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

#[path = "../node/mod.rs"]
mod node;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use node::{Node, Random, Way};
use tapir::drop_reason::DropReason;
use tapir::flow::Flows;
use tapir::forward::{self, Verdict};
use tapir::packet::Packet;
use tapir::table::{PortId, Tables};

/// Packets of each case: routes are of different depth.
const PACKETS: usize = 200;
const ROUTES: [(usize, &str); 2] = [(10, "10 routes"), (1_000_000, "1 M routes")];
/// What a budget allows on top of what was measured.
const SLACK: f64 = 1.05;
/// Less than this part of its budget: the budget should be lowered.
const LOOSE: f64 = 0.85;

#[inline(never)]
fn measured(packet: &mut Packet, ingress: PortId, tables: &Tables, flows: &Flows) -> Result<Verdict, DropReason> {
    forward::forward(packet, ingress, tables, flows, Duration::from_secs(1))
}

#[inline(never)]
fn counted(case: &str) {
    println!("{case}");
}

fn name(way: Way, ipv6: bool, routes: &str) -> String {
    format!("{}, {}, {routes}", way.name(), if ipv6 { "IPv6" } else { "IPv4" })
}

/// Forwards the packets of every case; callgrind counts.
fn run() {
    let (mut packet, mut random, flows) = (Packet::new(), Random::default(), Flows::default());
    for (routes, text) in ROUTES {
        let node = Node::new(routes);
        for (way, ipv6) in Way::ALL.into_iter().flat_map(|way| [(way, false), (way, true)]) {
            for _ in 0..PACKETS {
                let frame = node.frame(&mut random, way, ipv6);
                frame.load(&mut packet);
                let tables = black_box(&node.tables);
                let verdict = black_box(measured(black_box(&mut packet), frame.ingress, tables, &flows));
                let expected = match way {
                    Way::Nowhere => verdict == Err(DropReason::NoRoute),
                    Way::PodToTunnel => verdict == Ok(Verdict::Send(PortId::TUNNEL)),
                    Way::PodToPod | Way::TunnelToPod => {
                        matches!(verdict, Ok(Verdict::Send(port)) if port != PortId::TUNNEL)
                    }
                };
                assert!(expected, "{}: {verdict:?}", name(way, ipv6, text));
            }
            counted(&name(way, ipv6, text));
        }
    }
}

/// Runs this program under callgrind: instructions a packet, by case.
fn count(folder: &Path) -> BTreeMap<String, f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*measured*", "--dump-before=*counted*"])
        .arg(format!("--callgrind-out-file={}", folder.join("out").display()))
        .arg(std::env::current_exe().unwrap())
        .arg("--run")
        .output()
        .expect("valgrind is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases = String::from_utf8(output.stdout).unwrap();
    let instructions = |number: usize| {
        let profile = std::fs::read_to_string(folder.join(format!("out.{number}"))).unwrap();
        let summary = profile.lines().find_map(|line| line.strip_prefix("summary: ")).unwrap();
        summary.trim().parse::<f64>().unwrap() / PACKETS as f64
    };
    cases.lines().zip(1..).map(|(case, number)| (case.to_owned(), instructions(number))).collect()
}

/// Prints what was counted beside what it may be; false when something is over its budget, or has none.
fn compare(counts: &BTreeMap<String, f64>, budgets: &BTreeMap<String, u32>) -> bool {
    println!("{:<32}{:>14}{:>8}", "instructions of forward", "a packet", "budget");
    let mut within = counts.len() == budgets.len();
    for (case, &count) in counts {
        let Some(&budget) = budgets.get(case) else {
            println!("{case:<32}{count:>14.1}       –  has no budget");
            within = false;
            continue;
        };
        let remark = match count / f64::from(budget) {
            ratio if ratio > 1.0 => "over",
            ratio if ratio < LOOSE => "far under: lower the budget (--write)",
            _ => "",
        };
        println!("{case:<32}{count:>14.1}{budget:>8}  {remark}");
        within &= remark != "over";
    }
    within
}

/// The file of budgets for these counts.
fn budgets(counts: &BTreeMap<String, f64>) -> String {
    let head =
        "# Instructions that `forward` may take for a packet: 5 % more than were counted (benches/instructions).\n";
    let line = |(case, count): (&String, &f64)| format!("\"{case}\" = {}\n", (count * SLACK).ceil());
    head.to_owned() + &counts.iter().map(line).collect::<String>()
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--run"] => run(),
        [file, folder, "--write"] => std::fs::write(file, budgets(&count(Path::new(folder)))).unwrap(),
        [file, folder] => {
            let allowed = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
            if !compare(&count(Path::new(folder)), &allowed) {
                println!("Shorten the way, or if that is what it takes: scripts/instructions --write");
                return ExitCode::FAILURE;
            }
        }
        _ => {
            println!("usage: instructions BUDGETS FOLDER [--write]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
