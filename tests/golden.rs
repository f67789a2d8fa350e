//! Golden packets: rows of `tests/golden/packets.txt` go through a node in memory.

#[path = "common/mod.rs"]
mod common;

use std::fmt::Write;
use std::time::Duration;

use common::Node;
use tapir::packet::Packet;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/packets.txt");

const CONFIG: &str = r#"
    [node]
    address = "172.31.0.1"
    [network]
    pools = ["10.244.0.0/16", "fd00:10::/64"]
    node_cidrs = ["10.244.1.0/24", "fd00:10::1:0/112"]
    [[peer]]
    name = "node-2"
    address = "172.31.0.2"
    pods = ["10.244.2.0/24", "fd00:10::2:0/112"]
    [[peer]]
    name = "node-3"
    address = "172.31.0.3"
    pods = ["10.244.3.0/24", "fd00:10::3:0/112"]
"#;

fn node() -> Node {
    let mut node = Node::new(CONFIG);
    node.use_udp([172, 31, 0, 3].into());
    node.attach("web", "02:00:00:00:00:01", &["10.244.1.5", "fd00:10::1:5"]);
    node.attach("db", "02:00:00:00:00:02", &["10.244.1.6", "fd00:10::1:6"]);
    node
}

/// A case as it stands in the file: its heading and input, and what is expected of it.
struct Case<'a> {
    given: String,
    name: &'a str,
    expected: String,
}

fn cases(text: &str) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for part in text.split("\n== ").skip(1) {
        let (name, lines) = part.split_once('\n').expect("a case has lines");
        let belongs_to_input = |line: &&str| line.starts_with("in ") || line.starts_with('#');
        let join = |lines: Vec<&str>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let (input, output): (Vec<_>, Vec<_>) =
            lines.lines().filter(|line| !line.is_empty()).partition(belongs_to_input);
        cases.push(Case { given: join(input), name, expected: join(output) });
    }
    cases
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs a case on a fresh node and writes down what came of it.
fn run(case: &Case<'_>) -> String {
    let mut node = node();
    for line in case.given.lines().filter_map(|line| line.strip_prefix("in ")) {
        let (port, frame) = line.split_once(' ').expect("a port and a frame");
        let frame = unhex(frame);
        let network = match port {
            "tunnel" => 20,
            "tunnel-udp" => 28,
            "host" => 0,
            _ => 14,
        };
        node.port(port).far.deliver(Packet::copy_of(&frame, network.min(frame.len())));
    }
    node.turn(Duration::ZERO).expect("devices in memory stay");
    let mut result = String::new();
    for port in &node.ports {
        while let Some(packet) = port.far.take() {
            let _ = writeln!(result, "out {} {}", port.name, hex(packet.bytes()));
        }
    }
    for (reason, count) in node.drops() {
        let _ = writeln!(result, "drop {reason} {count}");
    }
    let (answered, originated) = (node.stats.answered.get(), node.stats.originated.get());
    for (name, count) in [("answered", answered), ("heard", node.stats.heard.get()), ("originated", originated)] {
        if count > 0 {
            let _ = writeln!(result, "{name} {count}");
        }
    }
    node.assert_conserved();
    result
}

#[test]
fn packets_come_out_as_written_down() {
    let text = std::fs::read_to_string(FILE).expect("the golden file");
    let cases = cases(&text);
    assert!(cases.len() >= 30, "the golden file lost cases");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let head = text.split("\n== ").next().expect("a head");
        let body = cases.iter().map(|case| format!("\n== {}\n{}{}", case.name, case.given, run(case)));
        std::fs::write(FILE, head.trim_end().to_owned() + "\n" + &body.collect::<String>()).expect("written");
        return;
    }
    for case in &cases {
        assert_eq!(run(case), case.expected, "case: {}", case.name);
    }
}
