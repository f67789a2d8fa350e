//! Every command in the README and the guides is run: the `sh` blocks of each page, in order, in one shell.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let guides = std::fs::read_dir(root().join("docs/guide")).expect("the guides");
    let mut pages: Vec<PathBuf> = guides.map(|entry| entry.expect("readable").path()).collect();
    pages.sort();
    pages
}

/// The contents of a page's `sh` blocks.
fn commands(page: &str) -> String {
    let mut inside = false;
    let mut commands = String::new();
    for line in page.lines() {
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, line) => commands.extend([line, "\n"]),
            (false, _) => {}
        }
    }
    commands
}

#[test]
fn blocks_are_found() {
    assert_eq!(commands("a\n```sh\nx\ny\n```\nb\n```text\nz\n```\n```sh\nw\n```\n"), "x\ny\nw\n");
}

#[test]
fn the_commands_of_the_guides_work() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the guides' commands: needs root for network namespaces");
        return;
    }
    let lab = format!("docs{}", std::process::id());
    let run = |script: &str| {
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(root())
            .env("TAPIR_LAB", &lab)
            .output()
    };
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("readable");
        let script = commands(&text);
        if script.is_empty() {
            continue;
        }
        let output = run(&script).expect("bash runs");
        let down = run("./scripts/lab down").expect("bash runs");
        assert!(
            output.status.success() && down.status.success(),
            "{}:\n{}{}",
            page.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A relative link leads somewhere, and every drop reason is explained.
#[test]
fn links_lead_somewhere_and_every_drop_reason_is_explained() {
    let mut pages = pages();
    pages.extend(["README.md", "docs/ARCHITECTURE.md", "docs/decisions/README.md"].map(|page| root().join(page)));
    for page in &pages {
        let text = std::fs::read_to_string(page).expect("readable");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().expect("split yields one");
            let there = target.is_empty() || target.contains("://") || page.with_file_name(target).exists();
            assert!(there, "{}: {link} leads nowhere", page.display());
        }
    }
    let guide = std::fs::read_to_string(root().join("docs/guide/troubleshooting.md")).expect("readable");
    for reason in tapir::drop_reason::DropReason::ALL {
        assert!(guide.contains(&format!("| `{}` |", reason.name())), "{} is not explained", reason.name());
        assert!(guide.contains(reason.hint()), "the hint of {} differs", reason.name());
    }
}
